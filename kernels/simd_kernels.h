/* The loops that are compiled once per instruction set, and the table by which the CPU backend reaches the best set it
 * may use. The files that define them (rmsnorm.c, swiglu.c, rope.c, softmax.c, convert.c, attention_tiles.c) write
 * SPT_SIMD(name) and include simd.h. All are Local, run on the calling thread, and allocate nothing. */
#ifndef SPT_SIMD_KERNELS_H
#define SPT_SIMD_KERNELS_H

#include "attention_tiles.h"
#include "gemm_onednn.h"

/* cos and sin of pos·theta^(−2i/head_dim): (positions, head_dim/2) each */
typedef struct spt_rope_table {
  double theta;
  int64_t head_dim, positions;
  float *cosine, *sine;
} spt_rope_table;

/* X(result, name, (parameters)) */
#define SPT_SIMD_KERNELS(X)                                                                                            \
  /* dst and src may be the same array where types agree */                                                            \
  X(void, convert, (void *dst, spt_dtype dst_dtype, const void *src, spt_dtype src_dtype, int64_t count))              \
  /* dst (rows, cols; leading dimension ld_dst) = factor·src (rows, cols; ld_src) */                                  \
  X(void, store_rows,                                                                                                  \
    (int64_t rows, int64_t cols, float factor, const float *src, int64_t ld_src, void *dst, int64_t ld_dst,            \
     spt_dtype dst_dtype))                                                                                             \
  /* dst (cols, rows; leading dimension ld_dst) = srcᵀ, src (rows, cols); rounded to bf16 even where dst is fp32 if  \
   * `round` */                                                                                                        \
  X(void, transpose,                                                                                                   \
    (int64_t rows, int64_t cols, const float *src, int64_t ld_src, void *dst, int64_t ld_dst, spt_dtype dst_dtype,     \
     bool round))                                                                                                      \
  /* h = x·rstd·gain by row; writes rstd (rows) */                                                                   \
  X(void, rmsnorm_forward,                                                                                             \
    (int64_t rows, int64_t n, double eps, const float *x, const float *gain, float *rstd, void *h, spt_dtype dtype))   \
  /* the same h from a kept rstd */                                                                                    \
  X(void, rmsnorm_apply,                                                                                               \
    (int64_t rows, int64_t n, const float *x, const float *gain, const float *rstd, void *h, spt_dtype dtype))         \
  /* dx += (or = without add) the gradient through the norm; dgain (n) is overwritten with the rows' sum */            \
  X(void, rmsnorm_backward,                                                                                            \
    (int64_t rows, int64_t n, const float *x, const float *gain, const float *rstd, const void *dh,                    \
     spt_dtype dh_dtype, float *dx, bool add, float *dgain))                                                           \
  /* h = silu(gate)·up */                                                                                             \
  X(void, swiglu_forward, (int64_t count, const void *gate, const void *up, void *h, spt_dtype dtype))                 \
  /* h again, and d_gate, d_up, which may be gate and up themselves, from dh */                                        \
  X(void, swiglu_backward,                                                                                             \
    (int64_t count, const void *gate, const void *up, const void *dh, void *h, void *dgate, void *dup,                 \
     spt_dtype dtype))                                                                                                 \
  /* rotates the first `cols` columns of rows row0…row0+rows of z (leading dimension ld) in place; inverse: by the   \
   * negative angle */                                                                                                 \
  X(void, rope_rotate,                                                                                                 \
    (const spt_rope_table *table, int64_t row0, int64_t rows, int64_t seq_len, int64_t cols, void *z, int64_t ld,      \
     spt_dtype dtype, bool inverse))                                                                                   \
  /* *maximum_p = max logits, e = exp(logits − maximum) unless NULL, *sum_p = Σ exp(logits − maximum) */          \
  X(void, softmax_row, (int64_t n, const float *logits, void *e, spt_dtype dtype, float *maximum_p, float *sum_p))     \
  /* to = factor·from */                                                                                               \
  X(void, scale, (int64_t n, float factor, const void *from, void *to, spt_dtype dtype))                               \
  /* e *= factor */                                                                                                    \
  X(void, scale_row, (int64_t n, float factor, void *e, spt_dtype dtype))                                              \
  /* to += from */                                                                                                     \
  X(void, add_row, (int64_t n, const float *from, float *to))                                                          \
  X(void, attention_tile_forward, (spt_attention_tile * tile))                                                         \
  X(void, attention_tile_backward, (spt_attention_tile * tile))

typedef struct spt_simd_kernels {
  const char *name;
#define SPT_SIMD_MEMBER(result, name, parameters) result(*name) parameters;
  SPT_SIMD_KERNELS(SPT_SIMD_MEMBER)
#undef SPT_SIMD_MEMBER
} spt_simd_kernels;

#define SPT_SIMD_JOIN2(name, suffix) spt_##name##_##suffix
#define SPT_SIMD_JOIN(name, suffix) SPT_SIMD_JOIN2(name, suffix)
#ifdef SPT_SIMD_SUFFIX
#define SPT_SIMD(name) SPT_SIMD_JOIN(name, SPT_SIMD_SUFFIX)
#define SPT_SIMD_PROTOTYPE(result, name, parameters) result SPT_SIMD(name) parameters;
SPT_SIMD_KERNELS(SPT_SIMD_PROTOTYPE)
#undef SPT_SIMD_PROTOTYPE
#endif

/* The table for `isa`, or for the best set before it that this build has. */
const spt_simd_kernels *spt_simd_kernels_for(spt_isa isa);

#endif
