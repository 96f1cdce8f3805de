/* Softmax cross-entropy of rows of logits, and the gradient in the logits' place. */
#include "vector_access.cuh"

enum { THREADS = 256, CHUNK = THREADS * UNIT };

/* Σ exp(l − maximum) over some of a row; none: −∞ and 0. */
struct partial_sum {
  float maximum, sum;
};
static __device__ __forceinline__ partial_sum joined(partial_sum a, partial_sum b) {
  const float maximum = fmaxf(a.maximum, b.maximum);
  const float sum = (a.maximum == -INFINITY ? a.sum : a.sum * expf(a.maximum - maximum)) +
                    (b.maximum == -INFINITY ? b.sum : b.sum * expf(b.maximum - maximum));
  return {maximum, sum};
}

/* log Σ exp(row), the same in every thread. */
static __device__ __forceinline__ float log_sum_exp(int64_t vocab, const float *row, bool aligned, float *maxima, float *sums) {
  partial_sum own = {-INFINITY, 0.0f};
  for (int64_t at = threadIdx.x * UNIT; at < vocab; at += CHUNK) {
    float l[UNIT];
    load_unit(row, at, vocab, aligned, l, -INFINITY);
    partial_sum part = {l[0], 0.0f};
#pragma unroll
    for (int k = 1; k < UNIT; k++) part.maximum = fmaxf(part.maximum, l[k]);
#pragma unroll
    for (int k = 0; k < UNIT; k++) part.sum += expf(l[k] - part.maximum); // a NaN, or an infinite maximum, makes it NaN
    own = joined(own, part);
  }
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) {
    const partial_sum other = {__shfl_xor_sync(0xffffffffu, own.maximum, bits), __shfl_xor_sync(0xffffffffu, own.sum, bits)};
    own = joined(own, other);
  }
  if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = own.maximum, sums[threadIdx.x / 32] = own.sum;
  __syncthreads();
  partial_sum all = {maxima[0], sums[0]};
  for (int w = 1; w < THREADS / 32; w++) all = joined(all, {maxima[w], sums[w]});
  return all.maximum + logf(all.sum);
}

/* A block a row. The gradient of type T is no wider than the logits that it replaces: what a chunk writes has been read by this chunk or before. */
template <class T>
static __global__ void __launch_bounds__(THREADS) cross_entropy_kernel(int64_t vocab, int64_t ld, float *logits, const int32_t *targets,
                                                                       float *losses, bool train, float scale, bool aligned) {
  SPT_SHARED(float, maxima, THREADS / 32);
  SPT_SHARED(float, sums, THREADS / 32);
  float *row = logits + blockIdx.x * ld;
  const float lse = log_sum_exp(vocab, row, aligned, maxima, sums);
  const int64_t target = targets[blockIdx.x];
  if (threadIdx.x == 0) losses[blockIdx.x] = lse - row[target];
  if (!train) return;
  T *gradient = reinterpret_cast<T *>(row);
  for (int64_t base = 0; base < vocab; base += CHUNK) {
    const int64_t at = base + threadIdx.x * UNIT;
    float l[UNIT];
    load_unit(row, at, vocab, aligned, l);
#pragma unroll
    for (int k = 0; k < UNIT; k++) l[k] = scale * (expf(l[k] - lse) - (at + k == target ? 1.0f : 0.0f));
    __syncthreads(); // everyone has read, thread 0 the target too
    store_unit(gradient, at, vocab, aligned, l);
  }
}

template <class T>
static cudaError_t launch(int64_t rows, int64_t vocab, int64_t ld, float *logits, const int32_t *targets, float *losses, bool train,
                          float scale, cudaStream_t stream) {
  return spt_launch((cross_entropy_kernel<T>), dim3(static_cast<unsigned>(rows)), dim3(THREADS), 0, stream, vocab, ld, logits, targets,
                    losses, train, scale, ld % UNIT == 0 && is_aligned(logits));
}
cudaError_t spt_cuda_cross_entropy(int64_t rows, int64_t vocab, int64_t ld, float *logits, const int32_t *targets, float *losses, bool train,
                                   float scale, spt_dtype act, cudaStream_t stream) {
  return SPT_BY_TYPE(act, launch, rows, vocab, ld, logits, targets, losses, train, scale, stream);
}
