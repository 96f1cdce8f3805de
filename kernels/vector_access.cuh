/* What the kernels share: units of 8 elements moved by 16-byte accesses, and sums over a warp and a block in a fixed order. */
#ifndef SPT_VECTOR_ACCESS_CUH
#define SPT_VECTOR_ACCESS_CUH

#include "cuda_kernels.h"
#include "launch.cuh"

#include <math.h>
#include <string.h>

typedef __nv_bfloat16 bf16;
enum { UNIT = SPT_CUDA_UNIT };

static __device__ __forceinline__ float bits_to_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
static __device__ __forceinline__ unsigned float_to_bits(float value) {
  unsigned bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

/* Elements at … at + 7 of p, `beyond` in place of those at or after `count`. aligned: p + at is a multiple of 16 bytes. */
static __device__ __forceinline__ void load_unit(const float *p, int64_t at, int64_t count, bool aligned, float (&v)[UNIT], float beyond = 0.0f) {
  if (aligned && at + UNIT <= count) {
    const float4 low = *reinterpret_cast<const float4 *>(p + at), high = *reinterpret_cast<const float4 *>(p + at + 4);
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    return;
  }
#pragma unroll
  for (int k = 0; k < UNIT; k++) v[k] = at + k < count ? p[at + k] : beyond;
}
static __device__ __forceinline__ void load_unit(const bf16 *p, int64_t at, int64_t count, bool aligned, float (&v)[UNIT], float beyond = 0.0f) {
  if (aligned && at + UNIT <= count) {
    const uint4 raw = *reinterpret_cast<const uint4 *>(p + at);
    const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int k = 0; k < 4; k++) {
      v[2 * k] = bits_to_float(words[k] << 16);
      v[2 * k + 1] = bits_to_float(words[k] & 0xffff0000u);
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < UNIT; k++) v[k] = at + k < count ? __bfloat162float(p[at + k]) : beyond;
}

static __device__ __forceinline__ void store_unit(float *p, int64_t at, int64_t count, bool aligned, const float (&v)[UNIT]) {
  if (aligned && at + UNIT <= count) {
    *reinterpret_cast<float4 *>(p + at) = make_float4(v[0], v[1], v[2], v[3]);
    *reinterpret_cast<float4 *>(p + at + 4) = make_float4(v[4], v[5], v[6], v[7]);
    return;
  }
#pragma unroll
  for (int k = 0; k < UNIT; k++)
    if (at + k < count) p[at + k] = v[k];
}
static __device__ __forceinline__ void store_unit(bf16 *p, int64_t at, int64_t count, bool aligned, const float (&v)[UNIT]) {
  if (aligned && at + UNIT <= count) {
    unsigned words[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(v[2 * k], v[2 * k + 1]);
      memcpy(&words[k], &pair, sizeof pair);
    }
    *reinterpret_cast<uint4 *>(p + at) = make_uint4(words[0], words[1], words[2], words[3]);
    return;
  }
#pragma unroll
  for (int k = 0; k < UNIT; k++)
    if (at + k < count) p[at + k] = __float2bfloat16(v[k]);
}

/* The same sum in every lane. All lanes of the warp. */
template <class T> static __device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(0xffffffffu, value, bits);
  return value;
}
static __device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, bits));
  return value;
}
/* The same sum in every thread; `warps` is shared, one element a warp, and free again afterwards. All threads of a one-dimensional block. */
template <class T> static __device__ __forceinline__ T block_sum(T value, T *warps) {
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  T sum = 0;
  for (unsigned w = 0; w < blockDim.x / 32; w++) sum += warps[w];
  __syncthreads();
  return sum;
}

/* ---- host side ---- */

static inline bool is_aligned(const void *pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}
static inline int64_t blocks_of(int64_t count, int64_t each) {
  return (count + each - 1) / each;
}
/* Blocks for a loop over units with a stride of the grid: enough for any GPU, few enough to start at once. */
static inline dim3 grid_of(int64_t threads, int64_t block) {
  const int64_t blocks = blocks_of(threads, block), most = 4096;
  return dim3(static_cast<unsigned>(blocks < 1 ? 1 : blocks < most ? blocks : most));
}
/* Calls launch<T>(…) for the type that `dtype` names; the arguments are evaluated there alone. */
#define SPT_BY_TYPE(dtype, launch, ...) ((dtype) == SPT_BF16 ? launch<bf16>(__VA_ARGS__) : launch<float>(__VA_ARGS__))

#endif
