/* The parts of the attention kernels: tiles of rows in shared memory, and products of a warp's 16 rows with them.
 *
 * A tile is rows of D elements (head_dim rounded up to a bucket, zeros behind it), STRIDE = D + 16 bytes apart: then the eight rows that ldmatrix
 * reads at once, and the 32-bit columns that fp32 reads, lie in different banks. One step of a product is 32 bytes of a row deep, 16 bf16 or 8
 * fp32, so that both types have the same addresses. */
#ifndef SPT_ATTENTION_TILE_CUH
#define SPT_ATTENTION_TILE_CUH

#include "mma.cuh"

#include <string.h>

namespace spt_attention {

typedef __nv_bfloat16 bf16;

/* Measures of the kernels for a type and a bucket. A block has FIXED rows of its own (queries of forward and dq, keys of dk and dv), 16 to a
 * warp, and goes over STREAMED rows of the others, two tiles in turn; in backward by CHUNK rows, which bounds registers. */
template <class T, int D> struct measures {
  static constexpr bool WIDE = D > 64, FLOAT = sizeof(T) == 4;
  static constexpr int WORD = 16 / sizeof(T);  // elements in 16 bytes
  static constexpr int DEPTH = 32 / sizeof(T); // of one step of a product
  static constexpr int STRIDE = D + WORD;
  static constexpr int FIXED = FLOAT && WIDE ? 32 : 64;
  static constexpr int STREAMED = FLOAT ? (WIDE ? 16 : 32) : (WIDE ? 32 : 64);
  static constexpr int CHUNK = STREAMED < 32 ? STREAMED : 32;
  static constexpr bool APART = FLOAT && D > 96; // dk and dv in a launch each: together they have too many registers
  static constexpr int DKDV_BLOCKS = FLOAT || WIDE ? 1 : (D > 16 ? 4 : 5); // that a multiprocessor is to hold: bounds registers, without spills
  static constexpr int THREADS = FIXED / 16 * 32;
  static constexpr size_t FORWARD_BYTES = (FIXED + 4 * STREAMED) * STRIDE * sizeof(T);
  static constexpr size_t DQ_BYTES = (2 * FIXED + 4 * STREAMED) * STRIDE * sizeof(T);
  static constexpr size_t DKDV_BYTES = DQ_BYTES + 4 * STREAMED * sizeof(float); // and lse, delta
  static_assert(DKDV_BYTES <= 99 * 1024, "what every GPU of capability 8.0 or more allows");
};

__device__ __forceinline__ float as_float(float x) {
  return x;
}
__device__ __forceinline__ float as_float(bf16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ void assign(float &to, float x) {
  to = x;
}
__device__ __forceinline__ void assign(bf16 &to, float x) {
  to = __float2bfloat16(x);
}
__device__ __forceinline__ uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
__device__ __forceinline__ float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
__device__ __forceinline__ uint32_t pair_of(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

/* ---- tiles ---- */

/* Rows [first, first + ROWS) of a matrix of `rows` rows and `width` columns, `stride` elements apart, to a tile; zeros for rows and columns that
 * are not there. By 16-byte asynchronous copies if `vector`, else at once. All threads of the block. */
template <class T, int D, int ROWS>
__device__ __forceinline__ void load_tile(T *tile, const T *matrix, int64_t stride, int first, int rows, int width, bool vector) {
  using m = measures<T, D>;
  constexpr int WORDS = D / m::WORD; // to a row
  for (int i = (int)threadIdx.x; i < ROWS * WORDS; i += m::THREADS) {
    const int row = i / WORDS, column = i % WORDS * m::WORD;
    const bool there = first + row < rows && column < width;
    const T *from = there ? matrix + (first + row) * stride + column : matrix;
    T *to = tile + row * m::STRIDE + column;
    if (vector) {
      spt_cp_async<16>(to, from, there ? 16 : 0);
      continue;
    }
    for (int j = 0; j < m::WORD; j++) {
      if (there && column + j < width) to[j] = from[j];
      else assign(to[j], 0.0f);
    }
  }
}

/* COUNT values [first, first + COUNT) of a vector of `count`, zeros behind it. */
template <int COUNT> __device__ __forceinline__ void load_vector(float *to, const float *from, int first, int count) {
  const int i = (int)threadIdx.x;
  if (i >= COUNT) return;
  const bool there = first + i < count;
  spt_cp_async<4>(to + i, there ? from + first + i : from, there ? 4 : 0);
}

/* A warp's accumulators (16, D) times `factor` of row g and of row g + 8, through its own 16 rows of a tile, to the matrix's rows first….
 * The warp alone reads these rows of the tile, so no barrier of the block is needed. */
template <class T, int D>
__device__ __forceinline__ void store_rows(const float (&c)[D / 8][4], const float (&factor)[2], T *tile, T *matrix, int64_t stride,
                                           int first, int rows, int width, bool vector) {
  using m = measures<T, D>;
  const int lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4;
  SPT_UNROLL
  for (int n = 0; n < D / 8; n++) {
    SPT_UNROLL
    for (int half = 0; half < 2; half++) {
      T *to = tile + (g + 8 * half) * m::STRIDE + 8 * n + 2 * t;
      assign(to[0], c[n][2 * half] * factor[half]);
      assign(to[1], c[n][2 * half + 1] * factor[half]);
    }
  }
  __syncwarp();
  constexpr int WORDS = D / m::WORD;
  for (int i = lane; i < 16 * WORDS; i += 32) {
    const int row = i / WORDS, column = i % WORDS * m::WORD;
    if (first + row >= rows || column >= width) continue;
    const T *from = tile + row * m::STRIDE + column;
    T *to = matrix + (first + row) * stride + column;
    if (vector) {
      *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(from);
      continue;
    }
    for (int j = 0; j < m::WORD && column + j < width; j++) to[j] = from[j];
  }
}

/* ---- products ---- */

__device__ __forceinline__ void multiply_add(bf16, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  spt_mma_bf16(c, a, b);
}
/* fp32 as high + low, both tf32: what is left out is low·low, 2^-24 of the product. The sum is rounded to nearest here, not cut off as the
 * tensor cores' own is. */
__device__ __forceinline__ void multiply_add(float, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  uint32_t a_high[4], a_low[4], b_high[2], b_low[2];
  SPT_UNROLL
  for (int i = 0; i < 4; i++) {
    a_high[i] = spt_tf32(float_of(a[i]));
    a_low[i] = spt_tf32(float_of(a[i]) - float_of(a_high[i]));
  }
  SPT_UNROLL
  for (int i = 0; i < 2; i++) {
    b_high[i] = spt_tf32(float_of(b[i]));
    b_low[i] = spt_tf32(float_of(b[i]) - float_of(b_high[i]));
  }
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  spt_mma_tf32(sum, a_low, b_high);
  spt_mma_tf32(sum, a_high, b_low);
  spt_mma_tf32(sum, a_high, b_high);
  SPT_UNROLL
  for (int i = 0; i < 4; i++) c[i] += sum[i];
}

/* s (16, COLUMNS) = A·Bᵀ of 16 rows of one tile and COLUMNS rows of another. */
template <class T, int D, int COLUMNS> __device__ __forceinline__ void score(const T *a, const T *b, float (&s)[COLUMNS / 8][4]) {
  using m = measures<T, D>;
  const int lane = (int)threadIdx.x % 32;
  const T *a_row = a + lane % 16 * m::STRIDE + lane / 16 * m::WORD;
  const T *b_row = b + (lane / 16 * 8 + lane % 8) * m::STRIDE + lane / 8 % 2 * m::WORD;
  SPT_UNROLL
  for (int n = 0; n < COLUMNS / 8; n++) {
    SPT_UNROLL
    for (int i = 0; i < 4; i++) s[n][i] = 0.0f;
  }
  SPT_UNROLL_BY(4)
  for (int k = 0; k < D; k += m::DEPTH) {
    uint32_t left[4];
    spt_ldmatrix_x4(left, a_row + k);
    SPT_UNROLL
    for (int n = 0; n < COLUMNS; n += 16) {
      uint32_t right[4];
      spt_ldmatrix_x4(right, b_row + n * m::STRIDE + k);
      multiply_add(T(), s[n / 8], left, {right[0], right[1]});
      multiply_add(T(), s[n / 8 + 1], left, {right[2], right[3]});
    }
  }
}

/* Accumulators as the left operand of the next product: their k-th step, of 16 (bf16) or 8 (fp32) columns. The fragments agree but for fp32's
 * order of depth, where t stands for column 2t and t + 4 for 2t + 1; columns_of reads the rows in that order. */
template <int TILES> __device__ __forceinline__ void left_of(bf16, const float (&p)[TILES][4], int k, uint32_t (&a)[4]) {
  a[0] = pair_of(p[2 * k][0], p[2 * k][1]);
  a[1] = pair_of(p[2 * k][2], p[2 * k][3]);
  a[2] = pair_of(p[2 * k + 1][0], p[2 * k + 1][1]);
  a[3] = pair_of(p[2 * k + 1][2], p[2 * k + 1][3]);
}
template <int TILES> __device__ __forceinline__ void left_of(float, const float (&p)[TILES][4], int k, uint32_t (&a)[4]) {
  a[0] = bits_of(p[k][0]);
  a[1] = bits_of(p[k][2]);
  a[2] = bits_of(p[k][1]);
  a[3] = bits_of(p[k][3]);
}
/* Right operands of one step's rows and 16 columns: r[0], r[1] of the first eight columns. */
template <int STRIDE> __device__ __forceinline__ void columns_of(const bf16 *rows, uint32_t (&r)[4]) {
  const int lane = (int)threadIdx.x % 32;
  spt_ldmatrix_x4_trans(r, rows + lane % 16 * STRIDE + lane / 16 * 8);
}
template <int STRIDE> __device__ __forceinline__ void columns_of(const float *rows, uint32_t (&r)[4]) {
  const int lane = (int)threadIdx.x % 32;
  const float *at = rows + 2 * (lane % 4) * STRIDE + lane / 4;
  r[0] = bits_of(at[0]);
  r[1] = bits_of(at[STRIDE]);
  r[2] = bits_of(at[8]);
  r[3] = bits_of(at[STRIDE + 8]);
}

/* out (16, D) += P·B, P (16, KEYS) accumulators, B KEYS rows of a tile. */
template <class T, int D, int KEYS>
__device__ __forceinline__ void accumulate(const float (&p)[KEYS / 8][4], const T *b, float (&out)[D / 8][4]) {
  using m = measures<T, D>;
  SPT_UNROLL
  for (int k = 0; k < KEYS / m::DEPTH; k++) {
    uint32_t left[4];
    left_of(T(), p, k, left);
    SPT_UNROLL
    for (int n = 0; n < D; n += 16) {
      uint32_t right[4];
      columns_of<m::STRIDE>(b + k * m::DEPTH * m::STRIDE + n, right);
      multiply_add(T(), out[n / 8], left, {right[0], right[1]});
      multiply_add(T(), out[n / 8 + 1], left, {right[2], right[3]});
    }
  }
}

template <int TILES> __device__ __forceinline__ void clear(float (&c)[TILES][4]) {
  SPT_UNROLL
  for (int n = 0; n < TILES; n++) {
    SPT_UNROLL
    for (int i = 0; i < 4; i++) c[n][i] = 0.0f;
  }
}

} // namespace spt_attention

#endif
