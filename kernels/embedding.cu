/* The embedding: rows of a table by id, and their gradients added in the order of tokens. */
#include "vector_access.cuh"

enum { THREADS = 128, COLUMNS = THREADS * 4, IDS = THREADS * 4 }; // of a block: columns and, at a time, ids

template <class T>
static __global__ void __launch_bounds__(256) embed_kernel(int64_t units, int64_t hidden, const int32_t *ids, const T *table, float *x,
                                                           bool aligned) {
  const int64_t per_row = (hidden + UNIT - 1) / UNIT, stride = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < units; i += stride) {
    const int64_t row = i / per_row, at = (i - row * per_row) * UNIT;
    float v[UNIT];
    load_unit(table + (int64_t)ids[row] * hidden, at, hidden, aligned, v);
    store_unit(x + row * hidden, at, hidden, aligned, v);
  }
}

template <class T>
static cudaError_t launch_embed(int64_t tokens, int64_t hidden, const int32_t *ids, const void *table, float *x, cudaStream_t stream) {
  const int64_t units = tokens * blocks_of(hidden, UNIT);
  const bool aligned = hidden * sizeof(T) % 16 == 0 && is_aligned(table) && is_aligned(x);
  return spt_launch((embed_kernel<T>), grid_of(units, 256), dim3(256), 0, stream, units, hidden, ids, static_cast<const T *>(table), x, aligned);
}
cudaError_t spt_cuda_embed(int64_t tokens, int64_t hidden, const int32_t *ids, const void *table, spt_dtype dtype, float *x, cudaStream_t stream) {
  return SPT_BY_TYPE(dtype, launch_embed, tokens, hidden, ids, table, x, stream);
}

/* Bits of which of four consecutive tokens, the first of them `at`, within [begin, end) have this id. */
static __device__ __forceinline__ unsigned matches(const int32_t *ids, int64_t at, int64_t begin, int64_t end, int32_t id) {
  unsigned found = 0;
#pragma unroll
  for (int k = 0; k < 4; k++)
    if (at + k >= begin && at + k < end && ids[at + k] == id) found |= 1u << k;
  return found;
}

/* Is there a token before this one with its id? The nearest is usually near, so the search goes backwards. */
static __device__ bool seen_before(const int32_t *ids, int64_t token, int32_t id, unsigned *found_by_warp) {
  for (int64_t end = token; end > 0; end -= IDS) {
    const unsigned found = matches(ids, end - IDS + 4 * threadIdx.x, 0, end, id);
    const unsigned any = __ballot_sync(0xffffffffu, found != 0);
    if (threadIdx.x % 32 == 0) found_by_warp[threadIdx.x / 32] = any;
    __syncthreads();
    unsigned all = 0;
    for (unsigned w = 0; w < THREADS / 32; w++) all |= found_by_warp[w];
    __syncthreads();
    if (all) return true;
  }
  return false;
}

/* Writes the tokens of [base, base + IDS) with this id to list, in their order; returns how many. Its first barrier ends all reading of the list
 * before. */
static __device__ int list_matches(const int32_t *ids, int64_t base, int64_t begin, int64_t tokens, int32_t id, int *list, unsigned *by_warp) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned found = matches(ids, base + 4 * threadIdx.x, begin, tokens, id);
  const unsigned own = (found & 1) + (found >> 1 & 1) + (found >> 2 & 1) + (found >> 3);
  unsigned until = own; // of this and the lanes before
#pragma unroll
  for (unsigned d = 1; d < 32; d *= 2) {
    const unsigned other = __shfl_up_sync(0xffffffffu, until, d);
    if (lane >= d) until += other;
  }
  if (lane == 31) by_warp[warp] = until;
  __syncthreads();
  unsigned at = until - own, all = 0;
  for (unsigned w = 0; w < THREADS / 32; w++) {
    if (w < warp) at += by_warp[w];
    all += by_warp[w];
  }
#pragma unroll
  for (int k = 0; k < 4; k++)
    if (found >> k & 1) list[at++] = (int)(4 * threadIdx.x) + k;
  __syncthreads();
  return (int)all;
}

/* A block a token; that of an id's first token adds for all of that id's, in their order, so that the sum is always the same. Others end at once.
 * Ids are read again and again, but by distinct ids only: 16 ki tokens of 4 ki ids read 0.3 GB of them, from the L2 cache. */
static __global__ void __launch_bounds__(THREADS) embed_backward_kernel(int64_t tokens, int64_t hidden, const int32_t *ids, const float *dx,
                                                                        float *dtable, bool aligned) {
  SPT_SHARED(int, list, IDS);
  SPT_SHARED(unsigned, by_warp, THREADS / 32);
  const int64_t token = blockIdx.x;
  const int32_t id = ids[token];
  if (seen_before(ids, token, id, by_warp)) return;
  const int64_t at = (int64_t)blockIdx.y * COLUMNS + 4 * threadIdx.x, left = hidden - at;
  const bool whole = aligned && left >= 4;
  float *row = dtable + (int64_t)id * hidden + at;
  float sum[4];
  if (whole) {
    const float4 four = *reinterpret_cast<const float4 *>(row);
    sum[0] = four.x, sum[1] = four.y, sum[2] = four.z, sum[3] = four.w;
  } else {
#pragma unroll
    for (int k = 0; k < 4; k++) sum[k] = k < left ? row[k] : 0.0f;
  }
  for (int64_t base = token / IDS * IDS; base < tokens; base += IDS) {
    const int count = list_matches(ids, base, token, tokens, id, list, by_warp);
    for (int i = 0; i < count; i++) {
      const float *from = dx + (base + list[i]) * hidden + at;
      if (whole) {
        const float4 four = *reinterpret_cast<const float4 *>(from);
        sum[0] += four.x, sum[1] += four.y, sum[2] += four.z, sum[3] += four.w;
      } else {
#pragma unroll
        for (int k = 0; k < 4; k++)
          if (k < left) sum[k] += from[k];
      }
    }
  }
  if (whole) {
    *reinterpret_cast<float4 *>(row) = make_float4(sum[0], sum[1], sum[2], sum[3]);
  } else {
#pragma unroll
    for (int k = 0; k < 4; k++)
      if (k < left) row[k] = sum[k];
  }
}

cudaError_t spt_cuda_embed_backward(int64_t tokens, int64_t hidden, const int32_t *ids, const float *dx, float *dtable, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(tokens), static_cast<unsigned>(blocks_of(hidden, COLUMNS)));
  const bool aligned = hidden % 4 == 0 && is_aligned(dx) && is_aligned(dtable);
  return spt_launch(embed_backward_kernel, grid, dim3(THREADS), 0, stream, tokens, hidden, ids, dx, dtable, aligned);
}
