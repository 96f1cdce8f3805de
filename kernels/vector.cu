/* Flat arrays: sums, conversion, the compute copy's layout, gradient statistics, AdamW. */
#include "vector_access.cuh"

enum { THREADS = 256 };

static __device__ __forceinline__ int64_t first_unit() {
  return ((int64_t)blockIdx.x * THREADS + threadIdx.x) * UNIT;
}
static __device__ __forceinline__ int64_t unit_stride() {
  return (int64_t)gridDim.x * THREADS * UNIT;
}
static dim3 units_grid(int64_t count) {
  return grid_of(blocks_of(count, UNIT), THREADS);
}

static __global__ void __launch_bounds__(THREADS) sum_kernel(int64_t count, const float *a, const float *b, float *out, bool aligned) {
  for (int64_t at = first_unit(); at < count; at += unit_stride()) {
    float x[UNIT], y[UNIT];
    load_unit(a, at, count, aligned, x);
    load_unit(b, at, count, aligned, y);
#pragma unroll
    for (int k = 0; k < UNIT; k++) x[k] += y[k];
    store_unit(out, at, count, aligned, x);
  }
}
cudaError_t spt_cuda_sum(int64_t count, const float *a, const float *b, float *out, cudaStream_t stream) {
  return spt_launch(sum_kernel, units_grid(count), dim3(THREADS), 0, stream, count, a, b, out, is_aligned(a) && is_aligned(b) && is_aligned(out));
}

template <class T> static __global__ void __launch_bounds__(THREADS) convert_kernel(int64_t count, const float *from, T *to, bool aligned) {
  for (int64_t at = first_unit(); at < count; at += unit_stride()) {
    float x[UNIT];
    load_unit(from, at, count, aligned, x);
    store_unit(to, at, count, aligned, x);
  }
}
template <class T> static cudaError_t launch_convert(int64_t count, const float *from, void *to, cudaStream_t stream) {
  return spt_launch((convert_kernel<T>), units_grid(count), dim3(THREADS), 0, stream, count, from, static_cast<T *>(to),
                    is_aligned(from) && is_aligned(to));
}
cudaError_t spt_cuda_convert(int64_t count, const float *from, void *to, spt_dtype dtype, cudaStream_t stream) {
  return SPT_BY_TYPE(dtype, launch_convert, count, from, to, stream);
}

/* Row blockIdx.y of the grid is a piece. */
template <class S, class T> static __global__ void __launch_bounds__(THREADS) pack_kernel(const spt_cuda_pieces pieces) {
  const spt_cuda_piece piece = pieces.piece[blockIdx.y];
  const int64_t per_row = (piece.cols + UNIT - 1) / UNIT, units = piece.rows * per_row, stride = (int64_t)gridDim.x * THREADS;
  const S *src = static_cast<const S *>(piece.src);
  T *dst = static_cast<T *>(piece.dst);
  const bool from_aligned = piece.cols * sizeof(S) % 16 == 0 && reinterpret_cast<uintptr_t>(src) % 16 == 0;
  const bool to_aligned = piece.ld % UNIT == 0 && reinterpret_cast<uintptr_t>(dst) % 16 == 0;
  for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < units; i += stride) {
    const int64_t row = i / per_row, at = (i - row * per_row) * UNIT;
    float x[UNIT];
    load_unit(src + row * piece.cols, at, piece.cols, from_aligned, x);
    store_unit(dst + row * piece.ld, at, piece.cols, to_aligned, x);
  }
}
template <class S, class T> static cudaError_t launch_pack(const spt_cuda_pieces *pieces, cudaStream_t stream) {
  int64_t most = 1;
  for (int i = 0; i < pieces->count; i++) {
    const int64_t units = pieces->piece[i].rows * blocks_of(pieces->piece[i].cols, UNIT);
    if (units > most) most = units;
  }
  dim3 grid = grid_of(most, THREADS);
  grid.y = static_cast<unsigned>(pieces->count);
  return spt_launch((pack_kernel<S, T>), grid, dim3(THREADS), 0, stream, *pieces);
}
cudaError_t spt_cuda_pack(const spt_cuda_pieces *pieces, spt_dtype from, spt_dtype act, cudaStream_t stream) {
  if (from == SPT_BF16) return launch_pack<bf16, bf16>(pieces, stream); // act is bf16 too
  return act == SPT_BF16 ? launch_pack<float, bf16>(pieces, stream) : launch_pack<float, float>(pieces, stream);
}

/* ---- gradient statistics ---- */

/* partial: Σ g² and the number of non-finite g of each chunk. */
static __global__ void __launch_bounds__(THREADS) stats_kernel(int64_t count, const float *g, double *partial, bool aligned) {
  SPT_SHARED(double, warps, THREADS / 32);
  const int64_t begin = (int64_t)blockIdx.x * SPT_CUDA_STATS_CHUNK;
  const int64_t end = begin + SPT_CUDA_STATS_CHUNK < count ? begin + SPT_CUDA_STATS_CHUNK : count;
  double squares = 0.0, bad = 0.0;
  for (int64_t at = begin + threadIdx.x * UNIT; at < end; at += THREADS * UNIT) {
    float x[UNIT];
    load_unit(g, at, end, aligned, x);
    int broken = 0;
#pragma unroll
    for (int k = 0; k < UNIT; k++) {
      squares += (double)x[k] * (double)x[k];
      broken += (float_to_bits(x[k]) & 0x7f800000u) == 0x7f800000u;
    }
    bad += broken;
  }
  squares = block_sum(squares, warps);
  bad = block_sum(bad, warps);
  if (threadIdx.x == 0) partial[2 * blockIdx.x] = squares, partial[2 * blockIdx.x + 1] = bad;
}
static __global__ void __launch_bounds__(THREADS) stats_end_kernel(int64_t chunks, const double *partial, int group, spt_control *control) {
  SPT_SHARED(double, warps, THREADS / 32);
  double squares = 0.0, bad = 0.0;
  for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
    squares += partial[2 * chunk];
    bad += partial[2 * chunk + 1];
  }
  squares = block_sum(squares, warps);
  bad = block_sum(bad, warps);
  if (threadIdx.x == 0) control->sum_squares += squares, control->group_squares[group] += squares, control->non_finite += bad;
}
cudaError_t spt_cuda_stats(int64_t count, const float *g, int group, double *scratch, spt_control *control, cudaStream_t stream) {
  const int64_t chunks = blocks_of(count, SPT_CUDA_STATS_CHUNK);
  const cudaError_t error =
      spt_launch(stats_kernel, dim3(static_cast<unsigned>(chunks)), dim3(THREADS), 0, stream, count, g, scratch, is_aligned(g));
  if (error != cudaSuccess) return error;
  return spt_launch(stats_end_kernel, dim3(1), dim3(THREADS), 0, stream, chunks, scratch, group, control);
}

/* One block: a micro-batch's losses are few. */
static __global__ void __launch_bounds__(THREADS) add_sum_kernel(int64_t count, const float *values, double *sum) {
  SPT_SHARED(double, warps, THREADS / 32);
  double own = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += THREADS) own += (double)values[i];
  own = block_sum(own, warps);
  if (threadIdx.x == 0) *sum += own;
}
cudaError_t spt_cuda_add_sum(int64_t count, const float *values, double *sum, cudaStream_t stream) {
  return spt_launch(add_sum_kernel, dim3(1), dim3(THREADS), 0, stream, count, values, sum);
}

/* spt_control_decide of core/backend.h. */
static __global__ void __launch_bounds__(32) decide_kernel(double grad_clip, spt_control *control) {
  if (threadIdx.x != 0) return;
  const double norm = sqrt(control->sum_squares);
  const bool apply = control->non_finite == 0.0 && isfinite(control->loss) && isfinite(norm) && control->failed == 0.0;
  control->clip = grad_clip > 0.0 && norm > grad_clip ? (float)(grad_clip / (norm + 1e-6)) : 1.0f;
  control->apply = apply ? 1.0f : 0.0f;
  if (apply) control->applied++;
}
cudaError_t spt_cuda_decision(double grad_clip, spt_control *control, cudaStream_t stream) {
  return spt_launch(decide_kernel, dim3(1), dim3(32), 0, stream, grad_clip, control);
}

/* ---- AdamW ---- */

static __global__ void __launch_bounds__(THREADS) adamw_kernel(int64_t count, float *w, const float *gradient, float *m, float *v,
                                                               spt_cuda_adamw_factors f, const spt_control *control, bool aligned) {
  SPT_SHARED(float, corrections, 2);
  if (control->apply == 0.0f) return;
  if (threadIdx.x == 0) { // double powers are slow: one thread's work
    const double step = (double)(f.step > 0 ? f.step : control->applied);
    corrections[0] = (float)((double)f.lr / (1.0 - pow((double)f.beta1, step)));
    corrections[1] = (float)(1.0 / (1.0 - pow((double)f.beta2, step)));
  }
  __syncthreads();
  const float clip = control->clip, step_size = corrections[0], second_scale = corrections[1];
  for (int64_t at = first_unit(); at < count; at += unit_stride()) {
    float x[UNIT], g[UNIT], first[UNIT], second[UNIT];
    load_unit(w, at, count, aligned, x);
    load_unit(gradient, at, count, aligned, g);
    load_unit(m, at, count, aligned, first);
    load_unit(v, at, count, aligned, second);
#pragma unroll
    for (int k = 0; k < UNIT; k++) {
      g[k] *= clip;
      first[k] = f.beta1 * first[k] + (1.0f - f.beta1) * g[k];
      second[k] = f.beta2 * second[k] + (1.0f - f.beta2) * g[k] * g[k];
      x[k] = f.keep * x[k] - step_size * first[k] / (sqrtf(second[k] * second_scale) + f.eps);
    }
    store_unit(w, at, count, aligned, x);
    store_unit(m, at, count, aligned, first);
    store_unit(v, at, count, aligned, second);
  }
}
cudaError_t spt_cuda_adamw_update(int64_t count, float *w, const float *gradient, float *m, float *v, const spt_cuda_adamw_factors *factors,
                                  const spt_control *control, cudaStream_t stream) {
  const bool aligned = is_aligned(w) && is_aligned(gradient) && is_aligned(m) && is_aligned(v);
  return spt_launch(adamw_kernel, units_grid(count), dim3(THREADS), 0, stream, count, w, gradient, m, v, *factors, control, aligned);
}

/* ---- batches of products ---- */

/* Row blockIdx.y of the grid copies entry blockIdx.y, by 16 bytes where it can, else by 2. */
static __global__ void __launch_bounds__(THREADS) batch_kernel(const spt_cuda_batch batch, int64_t bytes, const void **table) {
  const int entry = (int)blockIdx.y;
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    table[entry] = batch.a[entry];
    table[SPT_CUDA_BATCH + entry] = batch.b[entry];
    table[2 * SPT_CUDA_BATCH + entry] = batch.c[entry];
  }
  const unsigned char *from = static_cast<const unsigned char *>(batch.d[entry]);
  unsigned char *to = static_cast<unsigned char *>(batch.c[entry]);
  if (!from || bytes == 0) return;
  const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, stride = (int64_t)gridDim.x * THREADS;
  const bool aligned = (reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) % 16 == 0;
  const int64_t whole = aligned ? bytes / 16 : 0;
  for (int64_t k = i; k < whole; k += stride) reinterpret_cast<uint4 *>(to)[k] = reinterpret_cast<const uint4 *>(from)[k];
  for (int64_t k = 8 * whole + i; k < bytes / 2; k += stride)
    reinterpret_cast<unsigned short *>(to)[k] = reinterpret_cast<const unsigned short *>(from)[k];
}
cudaError_t spt_cuda_batch_prepare(const spt_cuda_batch *batch, int64_t copy_bytes, const void **table, cudaStream_t stream) {
  dim3 grid = grid_of(blocks_of(copy_bytes, 16), THREADS);
  grid.y = SPT_CUDA_BATCH;
  return spt_launch(batch_kernel, grid, dim3(THREADS), 0, stream, *batch, copy_bytes, table);
}
