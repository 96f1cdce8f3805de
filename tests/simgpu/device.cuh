/* The words of CUDA for .cu files that a C++ compiler builds for the simulator; included by kernels/launch.cuh after the toolkit's own headers,
 * which bring types and bf16 arithmetic. */
#ifndef SIMGPU_DEVICE_CUH
#define SIMGPU_DEVICE_CUH

#include "simgpu/block.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#undef __launch_bounds__
#define __launch_bounds__(...) /* a hint to nvcc; check_launch has the limits */

/* Shared memory is declared by SPT_SHARED alone: a bare __shared__ would be an ordinary variable here. */
#undef __shared__
#define __shared__ static_assert(false, "declare shared memory by SPT_SHARED or SPT_DYNAMIC_SHARED (kernels/launch.cuh)");
#undef __launch_bounds__
#define __launch_bounds__(...)
#define SPT_SHARED(type, name, count)                                                                                  \
  type(&name)[count] = *static_cast<type(*)[count]>(simgpu::shared_array(__FILE__ #name, __LINE__, sizeof(type) * (count)))
#define SPT_DYNAMIC_SHARED(type, name) type *name = static_cast<type *>(simgpu::dynamic_shared())

namespace simgpu {

static inline uint3 as_uint3(extent e) {
  return uint3{e.x, e.y, e.z};
}

enum kind { SHFL, SHFL_XOR, SHFL_DOWN, SHFL_UP, BALLOT, SYNC, MMA, KINDS };

/* Each lane gives a value and gets that of the lane `from(own lane)`, its own where that is not in the segment. */
template <class T, class From> T shuffle(site at, int kind, unsigned mask, T value, From from) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= EXCHANGE_BYTES, "a shuffle's value");
  const auto *all = warp_exchange(kind, mask, at, &value, sizeof value);
  const unsigned own = lane(), source = from(own);
  if (source != own && !(mask >> source & 1)) fault("a shuffle at %s:%d reads lane %u, which is not in mask %08x", at.file, at.line, source, mask);
  T result;
  memcpy(&result, all[source], sizeof result);
  warp_seen();
  return result;
}
template <class T> T shfl_xor(site at, unsigned mask, T value, int bits, int width = 32) {
  return shuffle(at, SHFL_XOR, mask, value, [=](unsigned own) {
    const unsigned source = own ^ (unsigned)bits;
    return source / (unsigned)width == own / (unsigned)width ? source : own;
  });
}
template <class T> T shfl_down(site at, unsigned mask, T value, unsigned delta, int width = 32) {
  return shuffle(at, SHFL_DOWN, mask, value, [=](unsigned own) {
    const unsigned source = own + delta;
    return source / (unsigned)width == own / (unsigned)width ? source : own;
  });
}
template <class T> T shfl_up(site at, unsigned mask, T value, unsigned delta, int width = 32) {
  return shuffle(at, SHFL_UP, mask, value, [=](unsigned own) { return own % (unsigned)width >= delta ? own - delta : own; });
}
template <class T> T shfl(site at, unsigned mask, T value, int source, int width = 32) {
  return shuffle(at, SHFL, mask, value, [=](unsigned own) { return own / (unsigned)width * (unsigned)width + (unsigned)source % (unsigned)width; });
}
static inline unsigned ballot(site at, unsigned mask, int predicate) {
  const auto *all = warp_exchange(BALLOT, mask, at, &predicate, sizeof predicate);
  unsigned result = 0;
  for (unsigned l = 0; l < 32; l++) {
    int value = 0;
    if (mask >> l & 1) memcpy(&value, all[l], sizeof value);
    if (value) result |= 1u << l;
  }
  warp_seen();
  return result;
}
struct sync_warp { // called with a mask or without
  site at;
  void operator()(unsigned mask = 0xffffffffu) const {
    const char nothing = 0;
    warp_exchange(SYNC, mask, at, &nothing, 1);
    warp_seen();
  }
};

} // namespace simgpu

#define threadIdx (simgpu::as_uint3(simgpu::thread_index()))
#define blockIdx (simgpu::as_uint3(simgpu::block_index()))
#define blockDim (simgpu::as_uint3(simgpu::block_extent()))
#define gridDim (simgpu::as_uint3(simgpu::grid_extent()))
#define __syncthreads() simgpu::barrier(SIMGPU_HERE)
#define __shfl_xor_sync(...) simgpu::shfl_xor(SIMGPU_HERE, __VA_ARGS__)
#define __shfl_down_sync(...) simgpu::shfl_down(SIMGPU_HERE, __VA_ARGS__)
#define __shfl_up_sync(...) simgpu::shfl_up(SIMGPU_HERE, __VA_ARGS__)
#define __shfl_sync(...) simgpu::shfl(SIMGPU_HERE, __VA_ARGS__)
#define __ballot_sync(...) simgpu::ballot(SIMGPU_HERE, __VA_ARGS__)
#define __syncwarp(...) simgpu::sync_warp{SIMGPU_HERE}(__VA_ARGS__)

namespace simgpu {
void launch_kernel(const char *name, const void *function, dim3 grid, dim3 block, size_t shared, cudaStream_t stream, std::function<void()> body);
}
template <class... Parameters, class... Arguments>
static inline cudaError_t spt_launch_named(const char *name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                                           cudaStream_t stream, Arguments... arguments) {
  simgpu::launch_kernel(name, reinterpret_cast<const void *>(kernel), grid, block, shared, stream, [=] { kernel(static_cast<Parameters>(arguments)...); });
  return cudaSuccess;
}

#endif
