/* What the simulated device says of itself: the least GPU that the product takes. */
#include "simgpu.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime.h>

int simgpu::device_count() {
  const char *given = getenv("SIMGPU_DEVICES");
  return given ? atoi(given) : 8;
}
static int first_device() {
  const char *given = getenv("SIMGPU_FIRST_DEVICE");
  return given ? atoi(given) : 0;
}

extern "C" cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
  if (device < 0 || device >= simgpu::device_count()) return cudaErrorInvalidDevice;
  *properties = cudaDeviceProp();
  snprintf(properties->name, sizeof properties->name, "simulated GPU");
  memcpy(properties->uuid.bytes, "simgpu", 6);
  properties->uuid.bytes[15] = static_cast<char>(first_device() + device);
  properties->major = 8;
  properties->totalGlobalMem = simgpu::device_total_bytes();
  properties->multiProcessorCount = 1;
  return cudaSuccess;
}
