/* Rotary embedding in place, half-split as in Hugging Face LLaMA: (a, b) → (a·cos − b·sin, b·cos + a·sin). */
#include "vector_access.cuh"

enum { THREADS = 64 };

/* The heads of one token, of q and then of k. */
template <class T>
static __global__ void __launch_bounds__(THREADS) rope_kernel(int64_t seq_len, int half, int q_heads, int k_heads, const float *cosine,
                                                              const float *sine, float sign, T *q, T *k, bool aligned) {
  const int64_t token = blockIdx.x, position = token % seq_len;
  const int units = (half + UNIT - 1) / UNIT, all = (q_heads + k_heads) * units;
  for (int i = (int)threadIdx.x; i < all; i += THREADS) {
    const int head = i / units, at = (i - head * units) * UNIT;
    T *a = head < q_heads ? q + (token * q_heads + head) * 2 * half : k + (token * k_heads + head - q_heads) * 2 * half;
    float x[UNIT], y[UNIT], c[UNIT], s[UNIT];
    load_unit(a, at, half, aligned, x);
    load_unit(a + half, at, half, aligned, y);
    load_unit(cosine + position * half, at, half, aligned, c);
    load_unit(sine + position * half, at, half, aligned, s);
#pragma unroll
    for (int j = 0; j < UNIT; j++) {
      const float turned = x[j] * c[j] - y[j] * s[j] * sign;
      y[j] = y[j] * c[j] + x[j] * s[j] * sign;
      x[j] = turned;
    }
    store_unit(a, at, half, aligned, x);
    store_unit(a + half, at, half, aligned, y);
  }
}

template <class T>
static cudaError_t launch(int64_t tokens, int64_t seq_len, int64_t head_dim, int64_t q_width, int64_t k_width, const float *cosine,
                          const float *sine, bool inverse, void *q, void *k, cudaStream_t stream) {
  const int half = static_cast<int>(head_dim / 2);
  const bool aligned = half % UNIT == 0 && is_aligned(q) && is_aligned(k) && is_aligned(cosine) && is_aligned(sine);
  return spt_launch((rope_kernel<T>), dim3(static_cast<unsigned>(tokens)), dim3(THREADS), 0, stream, seq_len, half,
                    static_cast<int>(q_width / head_dim), static_cast<int>(k_width / head_dim), cosine, sine, inverse ? -1.0f : 1.0f,
                    static_cast<T *>(q), static_cast<T *>(k), aligned);
}
cudaError_t spt_cuda_rope(int64_t tokens, int64_t seq_len, int64_t head_dim, int64_t q_width, int64_t k_width, const float *cosine,
                          const float *sine, bool inverse, void *q, void *k, spt_dtype act, cudaStream_t stream) {
  return SPT_BY_TYPE(act, launch, tokens, seq_len, head_dim, q_width, k_width, cosine, sine, inverse, q, k, stream);
}
