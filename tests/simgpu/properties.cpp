/* What the simulated device says of itself: the least GPU that the product takes. */
#include "simgpu.h"

#include <cstdio>
#include <cuda_runtime.h>

extern "C" cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  *properties = cudaDeviceProp();
  snprintf(properties->name, sizeof properties->name, "simulated GPU");
  properties->major = 8;
  properties->totalGlobalMem = simgpu::device_total_bytes();
  properties->multiProcessorCount = 1;
  return cudaSuccess;
}
