/* The host side of the .cu files: each call puts kernels on `stream` and returns the launch's error. All pointers are device memory but those
 * said to be the host's; what is vectorised is so where operands are 16-byte aligned, with the same result elsewhere. No result depends on the
 * order in which blocks run: sums over blocks go through partial sums that one block adds in order. */
#ifndef SPT_CUDA_KERNELS_H
#define SPT_CUDA_KERNELS_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "core/backend.h"

/* Elements that a thread moves at once: 16 bytes of bf16, twice 16 of fp32. */
enum { SPT_CUDA_UNIT = 8 };

/* ---- embedding.cu ---- */
cudaError_t spt_cuda_embed(int64_t tokens, int64_t hidden, const int32_t *ids, const void *table, spt_dtype dtype, float *x, cudaStream_t stream);
/* dtable[ids[i]] += dx[i], in the order of i. */
cudaError_t spt_cuda_embed_backward(int64_t tokens, int64_t hidden, const int32_t *ids, const float *dx, float *dtable, cudaStream_t stream);

/* ---- rmsnorm.cu ---- rows of n ≤ SPT_CUDA_NORM_MAX; h and dh are act */
enum { SPT_CUDA_NORM_MAX = 8192, SPT_CUDA_NORM_ROWS = 32 }; // rows of a block of the backward pass
/* rstd (rows) out; h (rows, n) out. */
cudaError_t spt_cuda_rmsnorm(int64_t rows, int64_t n, float eps, const float *x, const float *gain, float *rstd, void *h, spt_dtype act,
                             cudaStream_t stream);
/* h again, from rstd. */
cudaError_t spt_cuda_rmsnorm_apply(int64_t rows, int64_t n, const float *x, const float *gain, const float *rstd, void *h, spt_dtype act,
                                   cudaStream_t stream);
/* dx is added to or overwritten; dgain is added to; partial (⌈rows / SPT_CUDA_NORM_ROWS⌉, n) fp32 scratch. dh is of type `dh_dtype`. */
cudaError_t spt_cuda_rmsnorm_backward(int64_t rows, int64_t n, const float *x, const float *gain, const float *rstd, const void *dh,
                                      spt_dtype dh_dtype, float *dx, bool add, float *dgain, float *partial, cudaStream_t stream);

/* ---- rope.cu ---- */
/* Rotates the heads of q (tokens, q_width) and, where k_width > 0, of k behind it in place; tables (positions, head_dim / 2). */
cudaError_t spt_cuda_rope(int64_t tokens, int64_t seq_len, int64_t head_dim, int64_t q_width, int64_t k_width, const float *cosine,
                          const float *sine, bool inverse, void *q, void *k, spt_dtype act, cudaStream_t stream);

/* ---- swiglu.cu ---- all act, `count` elements */
cudaError_t spt_cuda_swiglu(int64_t count, const void *gate, const void *up, void *h, spt_dtype act, cudaStream_t stream);
/* h, dgate and dup out; these may be gate and up. dh is of type `dh_dtype`. */
cudaError_t spt_cuda_swiglu_backward(int64_t count, const void *gate, const void *up, const void *dh, spt_dtype dh_dtype, void *h, void *dgate,
                                     void *dup, spt_dtype act, cudaStream_t stream);

/* ---- cross_entropy.cu ---- */
/* losses[i] = lse_i − logits[i, targets[i]] of fp32 logits (rows, vocab), leading dimension ld. With train the logits' memory receives their
 * gradient of scale·Σ losses: as fp32 with leading dimension ld, or as bf16 with 2·ld. */
cudaError_t spt_cuda_cross_entropy(int64_t rows, int64_t vocab, int64_t ld, float *logits, const int32_t *targets, float *losses, bool train,
                                   float scale, spt_dtype act, cudaStream_t stream);

/* ---- vector.cu ---- */
/* out = a + b; out may be a or b. */
cudaError_t spt_cuda_sum(int64_t count, const float *a, const float *b, float *out, cudaStream_t stream);
cudaError_t spt_cuda_convert(int64_t count, const float *from, void *to, spt_dtype dtype, cudaStream_t stream);
/* Pieces of a compute copy: src (rows, cols) of type `from` to act dst, leading dimension ld. */
typedef struct spt_cuda_piece {
  const void *src;
  void *dst;
  int64_t rows, cols, ld;
} spt_cuda_piece;
typedef struct spt_cuda_pieces {
  int count;
  spt_cuda_piece piece[3 * SPT_GROUP_MAX];
} spt_cuda_pieces;
cudaError_t spt_cuda_pack(const spt_cuda_pieces *pieces, spt_dtype from, spt_dtype act, cudaStream_t stream);
/* control->sum_squares, group_squares[group] and non_finite are added to; scratch of SPT_CUDA_STATS_BYTES(count). */
enum { SPT_CUDA_STATS_CHUNK = 1 << 14 };
#define SPT_CUDA_STATS_BYTES(count) ((size_t)(((count) + SPT_CUDA_STATS_CHUNK - 1) / SPT_CUDA_STATS_CHUNK) * 2 * sizeof(double))
cudaError_t spt_cuda_stats(int64_t count, const float *g, int group, double *scratch, spt_control *control, cudaStream_t stream);
/* *sum += Σ values, in double. */
cudaError_t spt_cuda_add_sum(int64_t count, const float *values, double *sum, cudaStream_t stream);
/* spt_control_decide. */
cudaError_t spt_cuda_decision(double grad_clip, spt_control *control, cudaStream_t stream);
typedef struct spt_cuda_adamw_factors {
  float keep, beta1, beta2, lr, eps;
  int64_t step; /* 0: control->applied */
} spt_cuda_adamw_factors;
cudaError_t spt_cuda_adamw_update(int64_t count, float *w, const float *gradient, float *m, float *v, const spt_cuda_adamw_factors *factors,
                                  const spt_control *control, cudaStream_t stream);
/* Makes one fixed batch of products ready: writes the pointers to `table` (3·SPT_CUDA_BATCH: A, B, C) and, where d[i] is not NULL, copies that many
 * bytes of d[i] to c[i]. */
enum { SPT_CUDA_BATCH = 8, SPT_CUDA_ALIGNMENT = 256 };
/* Bytes of one result that only fills a batch up: as cudaMalloc aligns, so that cuBLAS meets no pointer less aligned than those it knows. */
static inline size_t spt_cuda_spare_bytes(int64_t elements, spt_dtype dtype) {
  return ((size_t)elements * spt_dtype_size(dtype) + SPT_CUDA_ALIGNMENT - 1) / SPT_CUDA_ALIGNMENT * SPT_CUDA_ALIGNMENT;
}
typedef struct spt_cuda_batch {
  const void *a[SPT_CUDA_BATCH], *b[SPT_CUDA_BATCH], *d[SPT_CUDA_BATCH];
  void *c[SPT_CUDA_BATCH];
} spt_cuda_batch;
cudaError_t spt_cuda_batch_prepare(const spt_cuda_batch *batch, int64_t copy_bytes, const void **table, cudaStream_t stream);

/* ---- factor.cu ---- the optimizer's ops on at most SPT_CUDA_FACTORS factors in one launch each */
enum { SPT_CUDA_FACTORS = 32, SPT_CUDA_FACTOR_CHUNK = 1 << 14, SPT_CUDA_FACTOR_ROWS = 64 };
typedef struct spt_cuda_factors {
  int count;
  spt_factor_entry entry[SPT_CUDA_FACTORS];
} spt_cuda_factors;
/* scratch: one double a chunk of SPT_CUDA_FACTOR_CHUNK elements, SPT_CUDA_FACTORS · the largest entry's chunks */
cudaError_t spt_cuda_momentum(const spt_cuda_factors *factors, float beta, bool normalize, spt_dtype dtype, double *scratch,
                              const spt_control *control, cudaStream_t stream);
/* Bytes of scratch for entries of at most this many rows and columns. */
size_t spt_cuda_power_bytes(int64_t rows, int64_t cols);
cudaError_t spt_cuda_power(const spt_cuda_factors *factors, int steps, void *scratch, const spt_control *control, cudaStream_t stream);
/* Entries 2i and 2i + 1 are a pair. */
cudaError_t spt_cuda_factor_step(const spt_cuda_factors *factors, float lr, float decay, bool renormalize, spt_dtype dtype,
                                 const spt_control *control, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
