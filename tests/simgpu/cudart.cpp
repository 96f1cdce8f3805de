/* The CUDA runtime's functions that the product calls, over the simulator. Strict: what would be slow, unordered or undefined on a GPU is a fault. */
#include "simgpu.h"

#include <cstdio>
#include <cstring>
#include <cuda_runtime.h>
#include <map>

using namespace simgpu;

namespace {

int current_device; // a process uses one: all that it has is there

stream *of(cudaStream_t s, const char *what) {
  if (s == nullptr || s == cudaStreamLegacy || s == cudaStreamPerThread)
    fault("%s on the default stream, which waits for all others: use a stream of your own", what);
  return reinterpret_cast<stream *>(s);
}
event *of(cudaEvent_t e) {
  return reinterpret_cast<event *>(e);
}

/* Checks the host's and the device's side of a copy when it is issued. */
void check_copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, bool asynchronous) {
  const bool to_device = is_device(to), from_device = is_device(from);
  const bool matches = kind == cudaMemcpyHostToDevice   ? to_device && !from_device
                       : kind == cudaMemcpyDeviceToHost ? !to_device && from_device
                       : kind == cudaMemcpyDeviceToDevice ? to_device && from_device
                                                          : false;
  if (bytes == 0) return;
  if (!matches) fault("cudaMemcpy: pointers are not of kind %d", (int)kind);
  if (to_device) check_device(to, bytes, "cudaMemcpy to the device");
  if (from_device) check_device(from, bytes, "cudaMemcpy from the device");
  const void *host = to_device ? from : to;
  if (asynchronous && !(to_device && from_device) && !is_pinned(host, bytes))
    fault("cudaMemcpyAsync with pageable host memory: it would wait; allocate it by cudaHostAlloc");
}

void count_copy(const void *to, const void *from, size_t bytes) {
  const bool inside = is_device(to) && is_device(from);
  counted.copies++;
  counted.copied_bytes += (int64_t)bytes;
  counted.host_copies += !inside;
  counted.host_copied_bytes += inside ? 0 : (int64_t)bytes;
}

void copy(void *to, const void *from, size_t bytes) {
  count_copy(to, from, bytes);
  memcpy(to, from, bytes);
}

/* Dynamic shared memory in bytes: what every kernel may have, and what one may ask for on every GPU of capability 8.0 or more (8.6 has the least). */
constexpr size_t SHARED_DEFAULT = 48 << 10, SHARED_LIMIT = 99 << 10;
std::map<const void *, size_t> shared_allowed; // by kernel, where it asked

} // namespace

namespace simgpu {
void launch_kernel(const char *name, const void *function, dim3 grid, dim3 block, size_t shared, cudaStream_t s, std::function<void()> body) {
  const auto asked = shared_allowed.find(function);
  const size_t allowed = asked == shared_allowed.end() ? SHARED_DEFAULT : asked->second;
  if (shared > allowed)
    fault("%s: %zu bytes of dynamic shared memory, %zu are allowed: cudaFuncSetAttribute raises it", name, shared, allowed);
  const launch l = {name, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared, std::move(body)};
  check_launch(l);
  if (counting_only) {
    counted.launches++;
    noted.push_back({name, 0, 0, 0, 0, 0, 0, false});
  }
  stream_push(of(s, name), name, [l] { run(l); });
}
} // namespace simgpu

extern "C" {

cudaError_t cudaGetDeviceCount(int *count) {
  *count = device_count();
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) return cudaErrorInvalidDevice;
  if (device != current_device && device_total_bytes() != device_free_bytes()) fault("cudaSetDevice(%d): the process uses another device already", device);
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
  *available = device_free_bytes();
  *total = device_total_bytes();
  return cudaSuccess;
}
cudaError_t cudaMalloc(void **pointer, size_t bytes) {
  *pointer = device_allocate(bytes);
  return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void *pointer) { // waits for all that may use it
  if (!pointer) return cudaSuccess;
  synchronize_device();
  device_free(pointer);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned int flags) {
  (void)flags;
  *pointer = pinned_allocate(bytes);
  return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void *pointer) {
  if (!pointer) return cudaSuccess;
  synchronize_device();
  pinned_free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
  check_copy(to, from, bytes, kind, false);
  synchronize_device(); // as the default stream does
  device_access access;
  if (bytes) copy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s) {
  check_copy(to, from, bytes, kind, true);
  stream *on = of(s, "cudaMemcpyAsync");
  if (counting_only && bytes) count_copy(to, from, bytes);
  if (bytes) stream_push(on, "copy", [=] { copy(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *pointer, int value, size_t bytes, cudaStream_t s) {
  {
    const spanning whole(pointer, bytes);
    check_device(pointer, bytes, "cudaMemsetAsync");
  }
  stream *on = of(s, "cudaMemsetAsync");
  if (bytes)
    stream_push(on, "set", [=] {
      const spanning whole(pointer, bytes);
      memset(pointer, value, bytes);
    });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned int flags) {
  if (flags != cudaStreamNonBlocking) fault("a stream that waits for the default stream: create it with cudaStreamNonBlocking");
  *s = reinterpret_cast<cudaStream_t>(stream_create());
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
  stream_destroy(of(s, "cudaStreamDestroy"));
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  synchronize_stream(of(s, "cudaStreamSynchronize"));
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t s) {
  drift();
  return stream_empty(of(s, "cudaStreamQuery")) ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned int flags) {
  (void)flags;
  stream_wait(of(s, "cudaStreamWaitEvent"), of(e));
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned int flags) {
  (void)flags;
  *e = reinterpret_cast<cudaEvent_t>(event_create());
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
  event_destroy(of(e));
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  event_record(of(e), of(s, "cudaEventRecord"));
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
  drift();
  return event_complete(of(e)) ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  synchronize_event(of(e));
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
  synchronize_device();
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) fault("cudaFuncSetAttribute: attribute %d is not simulated", (int)attribute);
  if (value < 0 || (size_t)value > SHARED_LIMIT) return cudaErrorInvalidValue;
  shared_allowed[function] = (size_t)value;
  return cudaSuccess;
}
cudaError_t cudaGetLastError(void) {
  return cudaSuccess;
}
cudaError_t cudaPeekAtLastError(void) {
  return cudaSuccess;
}
const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
  case cudaSuccess: return "no error";
  case cudaErrorMemoryAllocation: return "out of memory";
  case cudaErrorInvalidDevice: return "invalid device ordinal";
  case cudaErrorInvalidValue: return "invalid argument";
  case cudaErrorNotReady: return "device not ready";
  default: return "another error";
  }
}
const char *cudaGetErrorName(cudaError_t error) {
  return cudaGetErrorString(error);
}
}
