/* The optimizer's ops on factors (src/core/backend.h): momentum and its norm, power iteration, the update. Row blockIdx.y (or z) of a grid is an
 * entry; an entry's arithmetic follows from its shape alone. */
#include "vector_access.cuh"

enum { THREADS = 256, CHUNK = SPT_CUDA_FACTOR_CHUNK };

static __device__ __forceinline__ bool aligned16(const void *pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}
static __device__ __forceinline__ int64_t chunks_of(const spt_factor_entry &entry) {
  return (entry.rows * entry.cols + CHUNK - 1) / CHUNK;
}

/* ---- momentum ---- */

/* momentum ← beta·momentum + (1 − beta)·clip·gradient; partial: Σ momentum² of each chunk. */
static __global__ void __launch_bounds__(THREADS) momentum_kernel(const spt_cuda_factors factors, int64_t most, float beta, double *partial,
                                                                  const spt_control *control) {
  SPT_SHARED(double, warps, THREADS / 32);
  const spt_factor_entry entry = factors.entry[blockIdx.y];
  const int64_t begin = (int64_t)blockIdx.x * CHUNK, count = entry.rows * entry.cols;
  if (begin >= count || control->apply == 0.0f) return;
  const int64_t end = begin + CHUNK < count ? begin + CHUNK : count;
  const float weight = (1.0f - beta) * control->clip;
  const bool aligned = aligned16(entry.gradient) && aligned16(entry.momentum);
  double squares = 0.0;
  for (int64_t at = begin + threadIdx.x * UNIT; at < end; at += THREADS * UNIT) {
    float m[UNIT], g[UNIT];
    load_unit(entry.momentum, at, end, aligned, m);
    load_unit(entry.gradient, at, end, aligned, g);
#pragma unroll
    for (int k = 0; k < UNIT; k++) {
      m[k] = beta * m[k] + weight * g[k];
      squares += (double)m[k] * (double)m[k];
    }
    store_unit(entry.momentum, at, end, aligned, m);
  }
  squares = block_sum(squares, warps);
  if (threadIdx.x == 0) partial[blockIdx.y * most + blockIdx.x] = squares;
}

/* x ← momentum / (‖momentum‖_F + 1e-7), or momentum. */
template <class T>
static __global__ void __launch_bounds__(THREADS) normalize_kernel(const spt_cuda_factors factors, int64_t most, bool normalize,
                                                                   const double *partial, const spt_control *control) {
  SPT_SHARED(double, warps, THREADS / 32);
  const spt_factor_entry entry = factors.entry[blockIdx.y];
  const int64_t begin = (int64_t)blockIdx.x * CHUNK, count = entry.rows * entry.cols;
  if (begin >= count || !entry.x || control->apply == 0.0f) return;
  const int64_t end = begin + CHUNK < count ? begin + CHUNK : count, chunks = chunks_of(entry);
  float scale = 1.0f;
  if (normalize) {
    double squares = 0.0;
    for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += THREADS) squares += partial[blockIdx.y * most + chunk];
    scale = (float)(1.0 / (sqrt(block_sum(squares, warps)) + 1e-7));
  }
  T *x = static_cast<T *>(entry.x);
  const bool aligned = aligned16(entry.momentum) && aligned16(x);
  for (int64_t at = begin + threadIdx.x * UNIT; at < end; at += THREADS * UNIT) {
    float m[UNIT];
    load_unit(entry.momentum, at, end, aligned, m);
#pragma unroll
    for (int k = 0; k < UNIT; k++) m[k] *= scale;
    store_unit(x, at, end, aligned, m);
  }
}

static int64_t most_chunks(const spt_cuda_factors *factors) {
  int64_t most = 1;
  for (int i = 0; i < factors->count; i++) {
    const int64_t chunks = blocks_of(factors->entry[i].rows * factors->entry[i].cols, CHUNK);
    if (chunks > most) most = chunks;
  }
  return most;
}
static dim3 chunks_grid(const spt_cuda_factors *factors) {
  return dim3(static_cast<unsigned>(most_chunks(factors)), static_cast<unsigned>(factors->count));
}

template <class T>
static cudaError_t launch_normalize(const spt_cuda_factors *factors, bool normalize, const double *partial, const spt_control *control,
                                    cudaStream_t stream) {
  return spt_launch((normalize_kernel<T>), chunks_grid(factors), dim3(THREADS), 0, stream, *factors, most_chunks(factors), normalize, partial,
                    control);
}
cudaError_t spt_cuda_momentum(const spt_cuda_factors *factors, float beta, bool normalize, spt_dtype dtype, double *scratch,
                              const spt_control *control, cudaStream_t stream) {
  const cudaError_t error = spt_launch(momentum_kernel, chunks_grid(factors), dim3(THREADS), 0, stream, *factors, most_chunks(factors), beta,
                                       scratch, control);
  if (error != cudaSuccess) return error;
  return SPT_BY_TYPE(dtype, launch_normalize, factors, normalize, scratch, control, stream);
}

/* ---- power iteration (Alg. 3): v = Wᵀu/‖Wᵀu‖, u = Wv/‖Wv‖, sigma = ‖Wv‖ ---- */

/* An entry's part of the scratch. */
struct power_scratch {
  double *sigma;  // of the last whole step; 0 before
  double *active; // 1, or 0 once a norm was 0
  float *u, *v, *partial; // (rows), (cols), (⌈rows / SPT_CUDA_FACTOR_ROWS⌉, cols)
};
enum { POWER_HEAD = 64 }; // bytes of sigma and active

static __host__ __device__ __forceinline__ int64_t rounded(int64_t count) {
  return (count + 15) / 16 * 16;
}
static __device__ __forceinline__ power_scratch scratch_of(void *scratch, int64_t bytes, int entry, const spt_factor_entry &shape) {
  unsigned char *base = static_cast<unsigned char *>(scratch) + bytes * entry;
  float *vectors = reinterpret_cast<float *>(base + POWER_HEAD);
  double *head = reinterpret_cast<double *>(base);
  return {head, head + 1, vectors, vectors + rounded(shape.rows), vectors + rounded(shape.rows) + rounded(shape.cols)};
}

static __device__ double norm_of(int64_t count, const float *x, double *warps) {
  double squares = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) squares += (double)x[i] * (double)x[i];
  return sqrt(block_sum(squares, warps));
}

static __global__ void __launch_bounds__(THREADS) power_begin_kernel(const spt_cuda_factors factors, void *scratch, int64_t bytes,
                                                                     const spt_control *control) {
  SPT_SHARED(double, warps, THREADS / 32);
  if (control->apply == 0.0f) return;
  const spt_factor_entry entry = factors.entry[blockIdx.x];
  const power_scratch own = scratch_of(scratch, bytes, (int)blockIdx.x, entry);
  const double length = norm_of(entry.rows, entry.u, warps);
  const float scale = length > 0.0 ? (float)(1.0 / length) : 0.0f;
  for (int64_t i = threadIdx.x; i < entry.rows; i += THREADS) own.u[i] = scale * entry.u[i];
  if (threadIdx.x == 0) *own.sigma = 0.0, *own.active = length > 0.0;
}

/* partial[s][c] = Σ u[i]·w[i][c] over the rows i of part s. */
static __global__ void __launch_bounds__(THREADS) power_left_kernel(const spt_cuda_factors factors, void *scratch, int64_t bytes,
                                                                    const spt_control *control) {
  const spt_factor_entry entry = factors.entry[blockIdx.z];
  const int64_t column = (int64_t)blockIdx.x * THREADS + threadIdx.x, begin = (int64_t)blockIdx.y * SPT_CUDA_FACTOR_ROWS;
  if (column >= entry.cols || begin >= entry.rows || control->apply == 0.0f) return;
  const power_scratch own = scratch_of(scratch, bytes, (int)blockIdx.z, entry);
  const int64_t end = begin + SPT_CUDA_FACTOR_ROWS < entry.rows ? begin + SPT_CUDA_FACTOR_ROWS : entry.rows;
  float sum = 0.0f;
  for (int64_t i = begin; i < end; i++) sum += own.u[i] * entry.w[i * entry.cols + column];
  own.partial[blockIdx.y * entry.cols + column] = sum;
}
/* v, normalised. */
static __global__ void __launch_bounds__(THREADS) power_middle_kernel(const spt_cuda_factors factors, void *scratch, int64_t bytes,
                                                                      const spt_control *control) {
  SPT_SHARED(double, warps, THREADS / 32);
  if (control->apply == 0.0f) return;
  const spt_factor_entry entry = factors.entry[blockIdx.x];
  const power_scratch own = scratch_of(scratch, bytes, (int)blockIdx.x, entry);
  const int64_t parts = (entry.rows + SPT_CUDA_FACTOR_ROWS - 1) / SPT_CUDA_FACTOR_ROWS;
  for (int64_t c = threadIdx.x; c < entry.cols; c += THREADS) {
    float sum = 0.0f;
    for (int64_t part = 0; part < parts; part++) sum += own.partial[part * entry.cols + c];
    own.v[c] = sum;
  }
  const double length = norm_of(entry.cols, own.v, warps); // of a thread's own columns
  const float scale = length > 0.0 ? (float)(1.0 / length) : 0.0f;
  for (int64_t c = threadIdx.x; c < entry.cols; c += THREADS) own.v[c] *= scale;
  if (threadIdx.x == 0 && !(length > 0.0)) *own.active = 0.0; // w is zero, or u is orthogonal to it
}
/* u[i] = w[i]·v, a warp a row. */
static __global__ void __launch_bounds__(THREADS) power_right_kernel(const spt_cuda_factors factors, void *scratch, int64_t bytes,
                                                                     const spt_control *control) {
  const spt_factor_entry entry = factors.entry[blockIdx.y];
  const int64_t row = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
  if (row >= entry.rows || control->apply == 0.0f) return;
  const power_scratch own = scratch_of(scratch, bytes, (int)blockIdx.y, entry);
  if (*own.active == 0.0) return;
  const bool aligned = entry.cols % 4 == 0 && aligned16(entry.w);
  float sum = 0.0f;
  for (int64_t at = (threadIdx.x % 32) * UNIT; at < entry.cols; at += 32 * UNIT) {
    float x[UNIT], y[UNIT];
    load_unit(entry.w + row * entry.cols, at, entry.cols, aligned, x);
    load_unit(own.v, at, entry.cols, true, y);
#pragma unroll
    for (int k = 0; k < UNIT; k++) sum += x[k] * y[k];
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) own.u[row] = sum;
}
/* u normalised, and sigma; on the last step they are the results. */
static __global__ void __launch_bounds__(THREADS) power_end_kernel(const spt_cuda_factors factors, void *scratch, int64_t bytes, bool last,
                                                                   const spt_control *control) {
  SPT_SHARED(double, warps, THREADS / 32);
  if (control->apply == 0.0f) return;
  const spt_factor_entry entry = factors.entry[blockIdx.x];
  const power_scratch own = scratch_of(scratch, bytes, (int)blockIdx.x, entry);
  if (*own.active != 0.0) {
    const double sigma = norm_of(entry.rows, own.u, warps);
    const float scale = sigma > 0.0 ? (float)(1.0 / sigma) : 0.0f;
    for (int64_t i = threadIdx.x; i < entry.rows; i += THREADS) own.u[i] *= scale;
    if (threadIdx.x == 0) {
      *own.sigma = sigma;
      if (!(sigma > 0.0)) *own.active = 0.0;
    }
  }
  if (!last) return;
  __syncthreads();
  const double sigma = *own.sigma;
  if (threadIdx.x == 0) *entry.sigma = (float)sigma;
  for (int64_t i = threadIdx.x; sigma > 0.0 && i < entry.rows; i += THREADS) entry.u[i] = own.u[i];
}

size_t spt_cuda_power_bytes(int64_t rows, int64_t cols) {
  const int64_t floats = rounded(rows) + rounded(cols) + rounded(blocks_of(rows, SPT_CUDA_FACTOR_ROWS) * cols);
  return POWER_HEAD + static_cast<size_t>(floats) * sizeof(float);
}

cudaError_t spt_cuda_power(const spt_cuda_factors *factors, int steps, void *scratch, const spt_control *control, cudaStream_t stream) {
  int64_t rows = 1, cols = 1;
  size_t bytes = 0;
  for (int i = 0; i < factors->count; i++) {
    const spt_factor_entry *entry = &factors->entry[i];
    const size_t own = spt_cuda_power_bytes(entry->rows, entry->cols);
    if (entry->rows > rows) rows = entry->rows;
    if (entry->cols > cols) cols = entry->cols;
    if (own > bytes) bytes = own;
  }
  const unsigned count = static_cast<unsigned>(factors->count);
  const dim3 left(static_cast<unsigned>(blocks_of(cols, THREADS)), static_cast<unsigned>(blocks_of(rows, SPT_CUDA_FACTOR_ROWS)), count);
  const dim3 right(static_cast<unsigned>(blocks_of(rows, THREADS / 32)), count);
  const int64_t each = static_cast<int64_t>(bytes);
  cudaError_t error = spt_launch(power_begin_kernel, dim3(count), dim3(THREADS), 0, stream, *factors, scratch, each, control);
  for (int step = 0; step < steps && error == cudaSuccess; step++) {
    error = spt_launch(power_left_kernel, left, dim3(THREADS), 0, stream, *factors, scratch, each, control);
    if (error == cudaSuccess) error = spt_launch(power_middle_kernel, dim3(count), dim3(THREADS), 0, stream, *factors, scratch, each, control);
    if (error == cudaSuccess) error = spt_launch(power_right_kernel, right, dim3(THREADS), 0, stream, *factors, scratch, each, control);
    if (error == cudaSuccess)
      error = spt_launch(power_end_kernel, dim3(count), dim3(THREADS), 0, stream, *factors, scratch, each, step == steps - 1, control);
  }
  return error;
}

/* ---- update ---- */

/* w ← keep·w − rho·x,  rho = lr/(sigma_A + sigma_B + 1)  -- arXiv:2602.12429, Alg. 1 lines 13–14 */
template <class T>
static __global__ void __launch_bounds__(THREADS) update_kernel(const spt_cuda_factors factors, float lr, float keep, bool renormalize,
                                                                const spt_control *control) {
  const spt_factor_entry entry = factors.entry[blockIdx.y];
  const int64_t begin = (int64_t)blockIdx.x * CHUNK, count = entry.rows * entry.cols;
  if (begin >= count || control->apply == 0.0f) return;
  const int64_t end = begin + CHUNK < count ? begin + CHUNK : count;
  float rho = lr;
  if (renormalize) {
    const float *a = factors.entry[blockIdx.y & ~1u].sigma, *b = factors.entry[blockIdx.y | 1u].sigma;
    rho = (float)((double)lr / ((double)*a + (double)*b + 1.0));
  }
  const T *x = static_cast<const T *>(entry.x);
  const bool aligned = aligned16(entry.w) && aligned16(x);
  for (int64_t at = begin + threadIdx.x * UNIT; at < end; at += THREADS * UNIT) {
    float w[UNIT], d[UNIT];
    load_unit(entry.w, at, end, aligned, w);
    load_unit(x, at, end, aligned, d);
#pragma unroll
    for (int k = 0; k < UNIT; k++) w[k] = keep * w[k] - rho * d[k];
    store_unit(entry.w, at, end, aligned, w);
  }
}
template <class T>
static cudaError_t launch_update(const spt_cuda_factors *factors, float lr, float keep, bool renormalize, const spt_control *control,
                                 cudaStream_t stream) {
  return spt_launch((update_kernel<T>), chunks_grid(factors), dim3(THREADS), 0, stream, *factors, lr, keep, renormalize, control);
}
cudaError_t spt_cuda_factor_step(const spt_cuda_factors *factors, float lr, float decay, bool renormalize, spt_dtype dtype,
                                 const spt_control *control, cudaStream_t stream) {
  const float keep = static_cast<float>(1.0 - static_cast<double>(lr) * static_cast<double>(decay));
  return SPT_BY_TYPE(dtype, launch_update, factors, lr, keep, renormalize, control, stream);
}
