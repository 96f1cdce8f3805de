/* Causal attention on tensor cores, forward and backward (attention_cuda.h). Scores live in registers: a block holds FIXED rows in shared memory, a
 * warp 16 of them, and goes over tiles of the others, of which the next is copied while one is used (attention_tile.cuh).
 *     forward   by query tiles, over keys:     S = Q·Kᵀ, online softmax, O += P·V
 *     delta     D = rowsum(dO∘O)
 *     dq        by query tiles, over keys:     P = exp(S − lse), dS = P∘(dO·Vᵀ − D), dQ += dS·K
 *     dkdv      by key tiles, over queries and the heads that share the keys:  the same transposed, dV += Pᵀ·dO, dK += dSᵀ·Q
 * Tiles beyond the diagonal are not visited. Blocks with the most tiles come first. */
#include "attention_cuda.h"
#include "attention_tile.cuh"

#include <math.h>

using namespace spt_attention;

namespace {

struct shape {
  int seq_len, heads, kv_heads, head_dim;
  float scale; /* 1/√head_dim */
  bool vector; /* rows are whole 16-byte words */
};

constexpr float LOG2_E = 1.4426950408889634f;

/* Where a head of a sequence begins in a matrix (N, heads·head_dim). */
template <class T> __device__ __forceinline__ T *head_of(T *matrix, const shape &s, int sequence, int head, int heads) {
  return matrix + ((int64_t)sequence * s.seq_len * heads + head) * s.head_dim;
}

/* One tile of scores of the forward pass: masks, moves the maxima, makes p of s. `carry` is what the sums so far are to be multiplied by. */
template <int COLUMNS>
__device__ __forceinline__ void softmax_step(float (&s)[COLUMNS / 8][4], int query, int first_key, float scale_log2, float (&maximum)[2],
                                             float (&sum)[2], float (&carry)[2]) {
  const int t = (int)threadIdx.x % 4;
  SPT_UNROLL
  for (int half = 0; half < 2; half++) {
    float largest = maximum[half];
    SPT_UNROLL
    for (int n = 0; n < COLUMNS / 8; n++) {
      SPT_UNROLL
      for (int i = 2 * half; i < 2 * half + 2; i++) {
        if (first_key + 8 * n + 2 * t + i % 2 > query + 8 * half) s[n][i] = -INFINITY;
        largest = fmaxf(largest, s[n][i]);
      }
    }
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    carry[half] = exp2f((maximum[half] - largest) * scale_log2); // 0 at first; key 0 is seen by all, so largest is finite
    maximum[half] = largest;
    float part = 0.0f;
    SPT_UNROLL
    for (int n = 0; n < COLUMNS / 8; n++) {
      SPT_UNROLL
      for (int i = 2 * half; i < 2 * half + 2; i++) {
        s[n][i] = exp2f((s[n][i] - largest) * scale_log2); // the difference first: equal scores give 1 however large they are
        part += s[n][i];
      }
    }
    sum[half] = sum[half] * carry[half] + part; // of this lane's columns
  }
}

template <class T, int D>
__global__ void __launch_bounds__(measures<T, D>::THREADS)
    attention_forward_kernel(shape s, const T *q, const T *k, const T *v, T *o, float *lse) {
  using m = measures<T, D>;
  SPT_DYNAMIC_SHARED(T, queries);
  T *streamed = queries + m::FIXED * m::STRIDE; // keys, values, keys, values
  const int first = (int)(gridDim.y - 1 - blockIdx.y) * m::FIXED;
  const int sequence = (int)blockIdx.x / s.heads, head = (int)blockIdx.x % s.heads, kv = head * s.kv_heads / s.heads;
  const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, query = first + 16 * warp + lane / 4;
  const int64_t stride = (int64_t)s.heads * s.head_dim, kv_stride = (int64_t)s.kv_heads * s.head_dim;
  const T *keys = head_of(k, s, sequence, kv, s.kv_heads), *values = head_of(v, s, sequence, kv, s.kv_heads);
  const int last = first + m::FIXED < s.seq_len ? first + m::FIXED - 1 : s.seq_len - 1, tiles = last / m::STREAMED + 1;
  constexpr int TILE = m::STREAMED * m::STRIDE;
  auto load = [&](int tile) {
    T *to = streamed + tile % 2 * 2 * TILE;
    load_tile<T, D, m::STREAMED>(to, keys, kv_stride, tile * m::STREAMED, s.seq_len, s.head_dim, s.vector);
    load_tile<T, D, m::STREAMED>(to + TILE, values, kv_stride, tile * m::STREAMED, s.seq_len, s.head_dim, s.vector);
    spt_cp_async_commit();
  };

  float out[D / 8][4], maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  clear(out);
  load_tile<T, D, m::FIXED>(queries, head_of(q, s, sequence, head, s.heads), stride, first, s.seq_len, s.head_dim, s.vector);
  load(0);
  for (int tile = 0; tile < tiles; tile++) {
    const T *key_tile = streamed + tile % 2 * 2 * TILE;
    spt_cp_async_wait<0>();
    __syncthreads(); // this tile is there, and all have done with the one that the next overwrites
    if (tile + 1 < tiles) load(tile + 1);
    float p[m::STREAMED / 8][4], carry[2];
    score<T, D, m::STREAMED>(queries + 16 * warp * m::STRIDE, key_tile, p);
    softmax_step<m::STREAMED>(p, query, tile * m::STREAMED, s.scale * LOG2_E, maximum, sum, carry);
    SPT_UNROLL
    for (int n = 0; n < D / 8; n++) {
      SPT_UNROLL
      for (int i = 0; i < 4; i++) out[n][i] *= carry[i / 2];
    }
    accumulate<T, D, m::STREAMED>(p, key_tile + TILE, out);
  }

  float factor[2];
  SPT_UNROLL
  for (int half = 0; half < 2; half++) {
    sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
    sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
    factor[half] = 1.0f / sum[half];
    const int row = query + 8 * half;
    if (lane % 4 == 0 && row < s.seq_len) lse[(int64_t)blockIdx.x * s.seq_len + row] = maximum[half] * s.scale + logf(sum[half]);
  }
  store_rows<T, D>(out, factor, queries + 16 * warp * m::STRIDE, head_of(o, s, sequence, head, s.heads), stride, first + 16 * warp,
                   s.seq_len, s.head_dim, s.vector);
}

enum { DELTA_THREADS = 128, DELTA_LANES = 8 };

/* delta (sequences·heads, seq_len) = rowsum(dO∘O), eight lanes to a row (N, heads). */
template <class T> __global__ void __launch_bounds__(DELTA_THREADS) attention_delta_kernel(shape s, int64_t rows, const T *o, const T *d_o, float *delta) {
  constexpr int WORD = 16 / sizeof(T);
  const int64_t row = (int64_t)blockIdx.x * (DELTA_THREADS / DELTA_LANES) + (int)threadIdx.x / DELTA_LANES;
  const int lane = (int)threadIdx.x % DELTA_LANES;
  float sum = 0.0f;
  if (row < rows) {
    const T *left = o + row * s.head_dim, *right = d_o + row * s.head_dim;
    if (s.vector)
      for (int i = lane * WORD; i < s.head_dim; i += DELTA_LANES * WORD) {
        const uint4 a_word = *reinterpret_cast<const uint4 *>(left + i), b_word = *reinterpret_cast<const uint4 *>(right + i);
        T a[WORD], b[WORD];
        memcpy(static_cast<void *>(a), &a_word, sizeof a);
        memcpy(static_cast<void *>(b), &b_word, sizeof b);
        SPT_UNROLL
        for (int j = 0; j < WORD; j++) sum += as_float(a[j]) * as_float(b[j]);
      }
    else
      for (int i = lane; i < s.head_dim; i += DELTA_LANES) sum += as_float(left[i]) * as_float(right[i]);
  }
  for (int bits = DELTA_LANES / 2; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
  if (lane != 0 || row >= rows) return;
  const int64_t token = row / s.heads, head = row % s.heads, sequence = token / s.seq_len;
  delta[(sequence * s.heads + head) * s.seq_len + token % s.seq_len] = sum;
}

/* P of a score: 0 where the key comes after the query. lse is rounded, so that S − lse of huge scores may come out positive: at most 1. */
__device__ __forceinline__ float probability(float score, float scale, float lse, int query, int key) {
  return key > query ? 0.0f : exp2f(fminf(score * scale - lse, 0.0f) * LOG2_E);
}

template <class T, int D>
__global__ void __launch_bounds__(measures<T, D>::THREADS)
    attention_dq_kernel(shape s, const T *q, const T *k, const T *v, const T *d_o, const float *lse, const float *delta, T *dq) {
  using m = measures<T, D>;
  SPT_DYNAMIC_SHARED(T, queries);
  T *gradients = queries + m::FIXED * m::STRIDE, *streamed = gradients + m::FIXED * m::STRIDE; // keys, values, keys, values
  const int first = (int)(gridDim.y - 1 - blockIdx.y) * m::FIXED;
  const int sequence = (int)blockIdx.x / s.heads, head = (int)blockIdx.x % s.heads, kv = head * s.kv_heads / s.heads;
  const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, t = lane % 4, query = first + 16 * warp + lane / 4;
  const int64_t stride = (int64_t)s.heads * s.head_dim, kv_stride = (int64_t)s.kv_heads * s.head_dim;
  const T *keys = head_of(k, s, sequence, kv, s.kv_heads), *values = head_of(v, s, sequence, kv, s.kv_heads);
  const int last = first + m::FIXED < s.seq_len ? first + m::FIXED - 1 : s.seq_len - 1, tiles = last / m::STREAMED + 1;
  constexpr int TILE = m::STREAMED * m::STRIDE;
  auto load = [&](int tile) {
    T *to = streamed + tile % 2 * 2 * TILE;
    load_tile<T, D, m::STREAMED>(to, keys, kv_stride, tile * m::STREAMED, s.seq_len, s.head_dim, s.vector);
    load_tile<T, D, m::STREAMED>(to + TILE, values, kv_stride, tile * m::STREAMED, s.seq_len, s.head_dim, s.vector);
    spt_cp_async_commit();
  };

  float out[D / 8][4], row_lse[2], row_delta[2];
  clear(out);
  load_tile<T, D, m::FIXED>(queries, head_of(q, s, sequence, head, s.heads), stride, first, s.seq_len, s.head_dim, s.vector);
  load_tile<T, D, m::FIXED>(gradients, head_of(d_o, s, sequence, head, s.heads), stride, first, s.seq_len, s.head_dim, s.vector);
  load(0);
  SPT_UNROLL
  for (int half = 0; half < 2; half++) {
    const int row = query + 8 * half;
    const int64_t at = (int64_t)blockIdx.x * s.seq_len + row;
    row_lse[half] = row < s.seq_len ? lse[at] : 0.0f;
    row_delta[half] = row < s.seq_len ? delta[at] : 0.0f;
  }
  for (int tile = 0; tile < tiles; tile++) {
    const T *key_tile = streamed + tile % 2 * 2 * TILE;
    spt_cp_async_wait<0>();
    __syncthreads(); // this tile is there, and all have done with the one that the next overwrites
    if (tile + 1 < tiles) load(tile + 1);
    for (int chunk = 0; chunk < m::STREAMED; chunk += m::CHUNK) {
      const int first_key = tile * m::STREAMED + chunk;
      if (first_key > first + 16 * warp + 15) break; // after the warp's last query
      const T *chunk_keys = key_tile + chunk * m::STRIDE;
      float p[m::CHUNK / 8][4], dp[m::CHUNK / 8][4];
      score<T, D, m::CHUNK>(queries + 16 * warp * m::STRIDE, chunk_keys, p);
      score<T, D, m::CHUNK>(gradients + 16 * warp * m::STRIDE, chunk_keys + TILE, dp);
      SPT_UNROLL
      for (int n = 0; n < m::CHUNK / 8; n++) {
        SPT_UNROLL
        for (int i = 0; i < 4; i++)
          p[n][i] = probability(p[n][i], s.scale, row_lse[i / 2], query + 8 * (i / 2), first_key + 8 * n + 2 * t + i % 2) *
                    (dp[n][i] - row_delta[i / 2]);
      }
      accumulate<T, D, m::CHUNK>(p, chunk_keys, out);
    }
  }
  const float factor[2] = {s.scale, s.scale};
  store_rows<T, D>(out, factor, queries + 16 * warp * m::STRIDE, head_of(dq, s, sequence, head, s.heads), stride, first + 16 * warp,
                   s.seq_len, s.head_dim, s.vector);
}

enum { DK = 1, DV = 2 };

/* dk, dv or both. */
template <class T, int D, int OUTPUTS>
__global__ void __launch_bounds__(measures<T, D>::THREADS, measures<T, D>::DKDV_BLOCKS)
    attention_dkdv_kernel(shape s, const T *q, const T *k, const T *v, const T *d_o, const float *lse, const float *delta, T *dk, T *dv) {
  using m = measures<T, D>;
  SPT_DYNAMIC_SHARED(T, keys);
  T *values = keys + m::FIXED * m::STRIDE, *streamed = values + m::FIXED * m::STRIDE; // queries, their dO, queries, their dO
  constexpr int TILE = m::STREAMED * m::STRIDE;
  float *statistics = reinterpret_cast<float *>(streamed + 4 * TILE); // lse, delta, lse, delta
  const int first = (int)blockIdx.y * m::FIXED, sequence = (int)blockIdx.x / s.kv_heads, kv = (int)blockIdx.x % s.kv_heads;
  const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, t = lane % 4, key = first + 16 * warp + lane / 4;
  const int64_t stride = (int64_t)s.heads * s.head_dim, kv_stride = (int64_t)s.kv_heads * s.head_dim;
  /* the heads with kv = head·kv_heads/heads; of each the query tiles from the diagonal on */
  const int first_head = (kv * s.heads + s.kv_heads - 1) / s.kv_heads, end_head = ((kv + 1) * s.heads + s.kv_heads - 1) / s.kv_heads;
  const int first_tile = first / m::STREAMED, tiles = (s.seq_len + m::STREAMED - 1) / m::STREAMED - first_tile;
  const int turns = (end_head - first_head) * tiles;
  auto load = [&](int turn) {
    const int head = first_head + turn / tiles, row = (first_tile + turn % tiles) * m::STREAMED;
    T *to = streamed + turn % 2 * 2 * TILE;
    float *numbers = statistics + turn % 2 * 2 * m::STREAMED;
    const int64_t at = ((int64_t)sequence * s.heads + head) * s.seq_len;
    load_tile<T, D, m::STREAMED>(to, head_of(q, s, sequence, head, s.heads), stride, row, s.seq_len, s.head_dim, s.vector);
    load_tile<T, D, m::STREAMED>(to + TILE, head_of(d_o, s, sequence, head, s.heads), stride, row, s.seq_len, s.head_dim, s.vector);
    load_vector<m::STREAMED>(numbers, lse + at, row, s.seq_len);
    load_vector<m::STREAMED>(numbers + m::STREAMED, delta + at, row, s.seq_len);
    spt_cp_async_commit();
  };

  float key_out[D / 8][4], value_out[D / 8][4];
  clear(key_out);
  clear(value_out);
  load_tile<T, D, m::FIXED>(keys, head_of(k, s, sequence, kv, s.kv_heads), kv_stride, first, s.seq_len, s.head_dim, s.vector);
  load_tile<T, D, m::FIXED>(values, head_of(v, s, sequence, kv, s.kv_heads), kv_stride, first, s.seq_len, s.head_dim, s.vector);
  load(0);
  for (int turn = 0; turn < turns; turn++) {
    const T *query_tile = streamed + turn % 2 * 2 * TILE;
    const float *numbers = statistics + turn % 2 * 2 * m::STREAMED;
    spt_cp_async_wait<0>();
    __syncthreads(); // this tile is there, and all have done with the one that the next overwrites
    if (turn + 1 < turns) load(turn + 1);
    for (int chunk = 0; chunk < m::STREAMED; chunk += m::CHUNK) {
      const int first_query = (first_tile + turn % tiles) * m::STREAMED + chunk;
      if (first_query + m::CHUNK - 1 < first + 16 * warp) continue; // all before the warp's first key
      const T *chunk_queries = query_tile + chunk * m::STRIDE;
      float p[m::CHUNK / 8][4], dp[m::CHUNK / 8][4]; // transposed: rows are keys
      score<T, D, m::CHUNK>(keys + 16 * warp * m::STRIDE, chunk_queries, p);
      SPT_UNROLL
      for (int n = 0; n < m::CHUNK / 8; n++) {
        SPT_UNROLL
        for (int i = 0; i < 4; i++) {
          const int column = chunk + 8 * n + 2 * t + i % 2;
          p[n][i] = probability(p[n][i], s.scale, numbers[column], first_query - chunk + column, key + 8 * (i / 2));
        }
      }
      if constexpr ((OUTPUTS & DV) != 0) accumulate<T, D, m::CHUNK>(p, chunk_queries + TILE, value_out);
      if constexpr (OUTPUTS == DV) continue;
      score<T, D, m::CHUNK>(values + 16 * warp * m::STRIDE, chunk_queries + TILE, dp);
      SPT_UNROLL
      for (int n = 0; n < m::CHUNK / 8; n++) {
        SPT_UNROLL
        for (int i = 0; i < 4; i++) dp[n][i] = p[n][i] * (dp[n][i] - numbers[m::STREAMED + chunk + 8 * n + 2 * t + i % 2]);
      }
      accumulate<T, D, m::CHUNK>(dp, chunk_queries, key_out);
    }
  }
  const float key_factor[2] = {s.scale, s.scale}, value_factor[2] = {1.0f, 1.0f};
  if constexpr ((OUTPUTS & DK) != 0)
    store_rows<T, D>(key_out, key_factor, keys + 16 * warp * m::STRIDE, head_of(dk, s, sequence, kv, s.kv_heads), kv_stride,
                     first + 16 * warp, s.seq_len, s.head_dim, s.vector);
  if constexpr ((OUTPUTS & DV) != 0)
    store_rows<T, D>(value_out, value_factor, values + 16 * warp * m::STRIDE, head_of(dv, s, sequence, kv, s.kv_heads), kv_stride,
                     first + 16 * warp, s.seq_len, s.head_dim, s.vector);
}

/* ---- host ---- */

constexpr int64_t GRID_Y = 65535;

bool aligned(const void *pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

/* Checks the arguments against the kernels' limits and makes their shape. */
spt_status shape_of(const spt_attention_args *a, spt_dtype act, shape *shape_p) {
  if (a->head_dim < 1 || a->head_dim > SPT_CUDA_HEAD_DIM_MAX)
    return SPT_FAIL(SPT_ERR_RESOURCE, "attention on a GPU: heads of width 1 to %d, not %lld", SPT_CUDA_HEAD_DIM_MAX, (long long)a->head_dim);
  if (a->seq_len > 16 * GRID_Y || a->heads > 65535 || a->sequences * a->heads > INT32_MAX)
    return SPT_FAIL(SPT_ERR_RESOURCE, "attention on a GPU: %lld sequences of %lld tokens with %lld heads are too many",
                    (long long)a->sequences, (long long)a->seq_len, (long long)a->heads);
  const bool whole = (size_t)a->head_dim * spt_dtype_size(act) % 16 == 0;
  *shape_p = {(int)a->seq_len, (int)a->heads, (int)a->kv_heads, (int)a->head_dim, 1.0f / sqrtf((float)a->head_dim),
              whole && aligned(a->qkv) && aligned(a->o) && aligned(a->d_o) && aligned(a->dqkv)};
  return SPT_OK;
}

spt_status check(cudaError_t error, const char *what) {
  return error == cudaSuccess ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "attention on a GPU, %s: %s", what, cudaGetErrorString(error));
}

/* The kernel may have `bytes` of dynamic shared memory. */
template <class Kernel> spt_status allow(Kernel *kernel, size_t bytes) {
  return check(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
               "shared memory");
}

dim3 grid_of(int64_t matrices, int64_t seq_len, int rows) {
  return dim3((unsigned)matrices, (unsigned)((seq_len + rows - 1) / rows));
}

/* q, k and v of one buffer. */
template <class T> struct parts {
  T *q, *k, *v;
};
template <class T> parts<T> parts_of(T *qkv, const spt_attention_args *a) {
  const int64_t tokens = a->sequences * a->seq_len;
  T *k = qkv + tokens * a->heads * a->head_dim;
  return {qkv, k, k + tokens * a->kv_heads * a->head_dim};
}

template <class T, int D> spt_status forward(const spt_attention_args *a, const shape &s, cudaStream_t stream) {
  using m = measures<T, D>;
  const parts<const T> in = parts_of(static_cast<const T *>(a->qkv), a);
  SPT_TRY(allow(attention_forward_kernel<T, D>, m::FORWARD_BYTES));
  return check(spt_launch((attention_forward_kernel<T, D>), grid_of(a->sequences * a->heads, a->seq_len, m::FIXED), dim3(m::THREADS),
                          m::FORWARD_BYTES, stream, s, in.q, in.k, in.v, static_cast<T *>(a->o), a->lse),
               "forward");
}

template <class T, int D, int OUTPUTS>
spt_status launch_dkdv(const spt_attention_args *a, const shape &s, const float *delta, const parts<T> &out, cudaStream_t stream) {
  using m = measures<T, D>;
  const parts<const T> in = parts_of(static_cast<const T *>(a->qkv), a);
  SPT_TRY(allow(attention_dkdv_kernel<T, D, OUTPUTS>, m::DKDV_BYTES));
  return check(spt_launch((attention_dkdv_kernel<T, D, OUTPUTS>), grid_of(a->sequences * a->kv_heads, a->seq_len, m::FIXED),
                          dim3(m::THREADS), m::DKDV_BYTES, stream, s, in.q, in.k, in.v, static_cast<const T *>(a->d_o), a->lse, delta,
                          out.k, out.v),
               "dk and dv");
}

template <class T, int D> spt_status backward(const spt_attention_args *a, const shape &s, cudaStream_t stream) {
  using m = measures<T, D>;
  const parts<const T> in = parts_of(static_cast<const T *>(a->qkv), a);
  const parts<T> out = parts_of(static_cast<T *>(a->dqkv), a);
  const T *o = static_cast<const T *>(a->o), *d_o = static_cast<const T *>(a->d_o);
  float *delta = static_cast<float *>(a->workspace);
  const int64_t rows = a->sequences * a->seq_len * a->heads, block_rows = DELTA_THREADS / DELTA_LANES;
  SPT_TRY(check(spt_launch((attention_delta_kernel<T>), dim3((unsigned)((rows + block_rows - 1) / block_rows)), dim3(DELTA_THREADS), 0,
                           stream, s, rows, o, d_o, delta),
                "delta"));
  SPT_TRY(allow(attention_dq_kernel<T, D>, m::DQ_BYTES));
  SPT_TRY(check(spt_launch((attention_dq_kernel<T, D>), grid_of(a->sequences * a->heads, a->seq_len, m::FIXED), dim3(m::THREADS),
                           m::DQ_BYTES, stream, s, in.q, in.k, in.v, d_o, a->lse, delta, out.q),
                "dq"));
  if constexpr (m::APART) {
    SPT_TRY((launch_dkdv<T, D, DK>(a, s, delta, out, stream)));
    return launch_dkdv<T, D, DV>(a, s, delta, out, stream);
  } else {
    return launch_dkdv<T, D, DK | DV>(a, s, delta, out, stream);
  }
}

template <class T, int D> spt_status pass(const spt_attention_args *a, const shape &s, bool back, cudaStream_t stream) {
  return back ? backward<T, D>(a, s, stream) : forward<T, D>(a, s, stream);
}
/* The bucket of the head's width. */
template <class T> spt_status dispatch(const spt_attention_args *a, const shape &s, bool back, cudaStream_t stream) {
  if (s.head_dim <= 16) return pass<T, 16>(a, s, back, stream);
  if (s.head_dim <= 32) return pass<T, 32>(a, s, back, stream);
  if (s.head_dim <= 64) return pass<T, 64>(a, s, back, stream);
  if (s.head_dim <= 96) return pass<T, 96>(a, s, back, stream);
  return pass<T, 128>(a, s, back, stream);
}

spt_status attention(const spt_attention_args *a, spt_dtype act, bool back, cudaStream_t stream) {
  shape s;
  SPT_TRY(shape_of(a, act, &s));
  return act == SPT_BF16 ? dispatch<bf16>(a, s, back, stream) : dispatch<float>(a, s, back, stream);
}

} // namespace

size_t spt_cuda_attention_workspace(int64_t tokens, int64_t heads) {
  return (size_t)(tokens * heads) * sizeof(float);
}
spt_status spt_cuda_attention_forward(const spt_attention_args *args, spt_dtype act, cudaStream_t stream) {
  return attention(args, act, false, stream);
}
spt_status spt_cuda_attention_backward(const spt_attention_args *args, spt_dtype act, cudaStream_t stream) {
  return attention(args, act, true, stream);
}
