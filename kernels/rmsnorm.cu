/* RMSNorm: h = x·rstd·gain, rstd = 1/√(mean(x²) + eps), and its backward. Forward takes a warp a row, backward a block some rows. */
#include "vector_access.cuh"

enum { ROW_WARPS = 4, FORWARD_THREADS = 32 * ROW_WARPS };

template <class T>
static __device__ __forceinline__ void apply_row(int64_t n, const float *x, const float *gain, float rstd, T *h, bool aligned) {
  for (int64_t at = (threadIdx.x % 32) * UNIT; at < n; at += 32 * UNIT) {
    float v[UNIT], g[UNIT];
    load_unit(x, at, n, aligned, v);
    load_unit(gain, at, n, aligned, g);
#pragma unroll
    for (int k = 0; k < UNIT; k++) v[k] *= rstd * g[k];
    store_unit(h, at, n, aligned, v);
  }
}

template <class T>
static __global__ void __launch_bounds__(FORWARD_THREADS)
    rmsnorm_kernel(int64_t rows, int64_t n, float eps, const float *x, const float *gain, float *rstd, T *h, bool aligned) {
  const int64_t row = (int64_t)blockIdx.x * ROW_WARPS + threadIdx.x / 32;
  if (row >= rows) return;
  float sum = 0.0f;
  for (int64_t at = (threadIdx.x % 32) * UNIT; at < n; at += 32 * UNIT) {
    float v[UNIT];
    load_unit(x + row * n, at, n, aligned, v);
#pragma unroll
    for (int k = 0; k < UNIT; k++) sum += v[k] * v[k];
  }
  const float s = 1.0f / sqrtf(warp_sum(sum) / (float)n + eps);
  if (threadIdx.x % 32 == 0) rstd[row] = s;
  apply_row(n, x + row * n, gain, s, h + row * n, aligned);
}

template <class T>
static __global__ void __launch_bounds__(FORWARD_THREADS)
    rmsnorm_apply_kernel(int64_t rows, int64_t n, const float *x, const float *gain, const float *rstd, T *h, bool aligned) {
  const int64_t row = (int64_t)blockIdx.x * ROW_WARPS + threadIdx.x / 32;
  if (row < rows) apply_row(n, x + row * n, gain, rstd[row], h + row * n, aligned);
}

/* With x̂ = x·rstd and g = dh·gain: dx = rstd·(g − x̂·mean(g·x̂)), dgain = Σ dh·x̂. A thread has 8 columns of each of the block's rows. */
template <class T>
static __global__ void __launch_bounds__(1024) rmsnorm_backward_kernel(int64_t rows, int64_t n, const float *x, const float *gain,
                                                                      const float *rstd, const T *dh, float *dx, bool add, float *partial,
                                                                      bool aligned) {
  SPT_SHARED(float, warps, 32);
  const int64_t at = (int64_t)threadIdx.x * UNIT, row0 = (int64_t)blockIdx.x * SPT_CUDA_NORM_ROWS;
  const int64_t end = row0 + SPT_CUDA_NORM_ROWS < rows ? row0 + SPT_CUDA_NORM_ROWS : rows;
  float g[UNIT], sum[UNIT];
  load_unit(gain, at, n, aligned, g);
#pragma unroll
  for (int k = 0; k < UNIT; k++) sum[k] = 0.0f;
  for (int64_t row = row0; row < end; row++) {
    float v[UNIT], d[UNIT], dot = 0.0f;
    const float s = rstd[row];
    load_unit(x + row * n, at, n, aligned, v);
    load_unit(dh + row * n, at, n, aligned, d);
#pragma unroll
    for (int k = 0; k < UNIT; k++) {
      dot += d[k] * g[k] * v[k];
      sum[k] += d[k] * v[k] * s;
    }
    const float mean = block_sum(dot, warps) * s * s / (float)n;
    float out[UNIT];
    if (add) load_unit(dx + row * n, at, n, aligned, out);
#pragma unroll
    for (int k = 0; k < UNIT; k++) out[k] = (d[k] * g[k] - v[k] * mean) * s + (add ? out[k] : 0.0f);
    store_unit(dx + row * n, at, n, aligned, out);
  }
  store_unit(partial + (int64_t)blockIdx.x * n, at, n, aligned, sum);
}

enum { SUM_COLUMNS = 32, SUM_GROUPS = 16 };

/* out[c] += Σ partial[b][c], in a fixed order: by groups of rows, then over groups. */
static __global__ void __launch_bounds__(SUM_COLUMNS *SUM_GROUPS) add_rows_kernel(int64_t rows, int64_t n, const float *partial, float *out) {
  SPT_SHARED(float, sums, SUM_COLUMNS * SUM_GROUPS);
  const int64_t column = (int64_t)blockIdx.x * SUM_COLUMNS + threadIdx.x;
  float sum = 0.0f;
  if (column < n)
    for (int64_t row = threadIdx.y; row < rows; row += SUM_GROUPS) sum += partial[row * n + column];
  sums[threadIdx.y * SUM_COLUMNS + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= n) return;
  sum = out[column];
  for (int group = 0; group < SUM_GROUPS; group++) sum += sums[group * SUM_COLUMNS + threadIdx.x];
  out[column] = sum;
}

static bool rows_aligned(int64_t n, const void *a, const void *b, const void *c, const void *d) {
  return n % UNIT == 0 && is_aligned(a) && is_aligned(b) && is_aligned(c) && is_aligned(d);
}

template <class T>
static cudaError_t launch_forward(int64_t rows, int64_t n, float eps, const float *x, const float *gain, float *rstd, void *h,
                                  cudaStream_t stream) {
  return spt_launch((rmsnorm_kernel<T>), dim3(static_cast<unsigned>(blocks_of(rows, ROW_WARPS))), dim3(FORWARD_THREADS), 0, stream, rows, n,
                    eps, x, gain, rstd, static_cast<T *>(h), rows_aligned(n, x, gain, h, h));
}
cudaError_t spt_cuda_rmsnorm(int64_t rows, int64_t n, float eps, const float *x, const float *gain, float *rstd, void *h, spt_dtype act,
                             cudaStream_t stream) {
  return SPT_BY_TYPE(act, launch_forward, rows, n, eps, x, gain, rstd, h, stream);
}

template <class T>
static cudaError_t launch_apply(int64_t rows, int64_t n, const float *x, const float *gain, const float *rstd, void *h, cudaStream_t stream) {
  return spt_launch((rmsnorm_apply_kernel<T>), dim3(static_cast<unsigned>(blocks_of(rows, ROW_WARPS))), dim3(FORWARD_THREADS), 0, stream,
                    rows, n, x, gain, rstd, static_cast<T *>(h), rows_aligned(n, x, gain, h, h));
}
cudaError_t spt_cuda_rmsnorm_apply(int64_t rows, int64_t n, const float *x, const float *gain, const float *rstd, void *h, spt_dtype act,
                                   cudaStream_t stream) {
  return SPT_BY_TYPE(act, launch_apply, rows, n, x, gain, rstd, h, stream);
}

template <class T>
static cudaError_t launch_backward(int64_t rows, int64_t n, const float *x, const float *gain, const float *rstd, const void *dh, float *dx,
                                   bool add, float *partial, cudaStream_t stream) {
  const unsigned threads = static_cast<unsigned>(blocks_of(blocks_of(n, UNIT), 32) * 32);
  const bool aligned = rows_aligned(n, x, gain, dh, dx) && is_aligned(partial);
  return spt_launch((rmsnorm_backward_kernel<T>), dim3(static_cast<unsigned>(blocks_of(rows, SPT_CUDA_NORM_ROWS))), dim3(threads), 0, stream,
                    rows, n, x, gain, rstd, static_cast<const T *>(dh), dx, add, partial, aligned);
}
cudaError_t spt_cuda_rmsnorm_backward(int64_t rows, int64_t n, const float *x, const float *gain, const float *rstd, const void *dh,
                                      spt_dtype dh_dtype, float *dx, bool add, float *dgain, float *partial, cudaStream_t stream) {
  const cudaError_t error = SPT_BY_TYPE(dh_dtype, launch_backward, rows, n, x, gain, rstd, dh, dx, add, partial, stream);
  if (error != cudaSuccess) return error;
  return spt_launch(add_rows_kernel, dim3(static_cast<unsigned>(blocks_of(n, SUM_COLUMNS))), dim3(SUM_COLUMNS, SUM_GROUPS), 0, stream,
                    blocks_of(rows, SPT_CUDA_NORM_ROWS), n, partial, dgain);
}
