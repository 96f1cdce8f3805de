/* silu(g)·u, silu(g) = g·σ(g), σ(g) = 1/(1 + exp(−g)); silu' = σ·(1 + g·(1 − σ)) */
#include "vector_access.cuh"

enum { THREADS = 256 };

static __device__ __forceinline__ float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

template <class T>
static __global__ void __launch_bounds__(THREADS) swiglu_kernel(int64_t count, const T *gate, const T *up, T *h, bool aligned) {
  const int64_t stride = (int64_t)gridDim.x * THREADS * UNIT;
  for (int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * UNIT; at < count; at += stride) {
    float g[UNIT], u[UNIT];
    load_unit(gate, at, count, aligned, g);
    load_unit(up, at, count, aligned, u);
#pragma unroll
    for (int k = 0; k < UNIT; k++) g[k] = g[k] * sigmoid(g[k]) * u[k];
    store_unit(h, at, count, aligned, g);
  }
}

template <class T, class D>
static __global__ void __launch_bounds__(THREADS) swiglu_backward_kernel(int64_t count, const T *gate, const T *up, const D *dh, T *h, T *dgate,
                                                                         T *dup, bool aligned) {
  const int64_t stride = (int64_t)gridDim.x * THREADS * UNIT;
  for (int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * UNIT; at < count; at += stride) {
    float g[UNIT], u[UNIT], d[UNIT], out[UNIT];
    load_unit(gate, at, count, aligned, g);
    load_unit(up, at, count, aligned, u);
    load_unit(dh, at, count, aligned, d);
#pragma unroll
    for (int k = 0; k < UNIT; k++) {
      const float s = sigmoid(g[k]), silu = g[k] * s;
      out[k] = silu * u[k];
      g[k] = d[k] * u[k] * (s + silu * (1.0f - s));
      u[k] = d[k] * silu;
    }
    store_unit(h, at, count, aligned, out);
    store_unit(dgate, at, count, aligned, g);
    store_unit(dup, at, count, aligned, u);
  }
}

template <class T> static cudaError_t launch(int64_t count, const void *gate, const void *up, void *h, cudaStream_t stream) {
  return spt_launch((swiglu_kernel<T>), grid_of(blocks_of(count, UNIT), THREADS), dim3(THREADS), 0, stream, count,
                    static_cast<const T *>(gate), static_cast<const T *>(up), static_cast<T *>(h),
                    is_aligned(gate) && is_aligned(up) && is_aligned(h));
}
cudaError_t spt_cuda_swiglu(int64_t count, const void *gate, const void *up, void *h, spt_dtype act, cudaStream_t stream) {
  return SPT_BY_TYPE(act, launch, count, gate, up, h, stream);
}

template <class T, class D>
static cudaError_t launch_backward(int64_t count, const void *gate, const void *up, const void *dh, void *h, void *dgate, void *dup,
                                   cudaStream_t stream) {
  const bool aligned = is_aligned(gate) && is_aligned(up) && is_aligned(dh) && is_aligned(h) && is_aligned(dgate) && is_aligned(dup);
  return spt_launch((swiglu_backward_kernel<T, D>), grid_of(blocks_of(count, UNIT), THREADS), dim3(THREADS), 0, stream, count,
                    static_cast<const T *>(gate), static_cast<const T *>(up), static_cast<const D *>(dh), static_cast<T *>(h),
                    static_cast<T *>(dgate), static_cast<T *>(dup), aligned);
}
cudaError_t spt_cuda_swiglu_backward(int64_t count, const void *gate, const void *up, const void *dh, spt_dtype dh_dtype, void *h, void *dgate,
                                     void *dup, spt_dtype act, cudaStream_t stream) {
  if (act == SPT_F32) return launch_backward<float, float>(count, gate, up, dh, h, dgate, dup, stream);
  if (dh_dtype == SPT_F32) return launch_backward<bf16, float>(count, gate, up, dh, h, dgate, dup, stream);
  return launch_backward<bf16, bf16>(count, gate, up, dh, h, dgate, dup, stream);
}
