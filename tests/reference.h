/* The definition of every op of src/core/backend.h: naive float64 loops, one index at a time, sharing nothing with the
 * backends. */
#ifndef SPT_REFERENCE_H
#define SPT_REFERENCE_H

#include "core/backend.h"

/* A pair group's operands in float64; a[j] (m_j, r_j) or dense (m_j, n), b[j] (n, r_j). */
typedef struct ref_group {
  const spt_group_desc *desc;
  int64_t tokens, seq_len;
  const double *x;        /* (N, n), or gate|up (N, 2n) for SWIGLU */
  const double *gain;     /* (n), RMSNORM */
  const double *residual; /* (N, m), RESIDUAL */
  const double *a[SPT_GROUP_MAX], *b[SPT_GROUP_MAX];
  const double *guide[SPT_GROUP_MAX]; /* (m_j, n), of a guided group */
  double alpha[SPT_GROUP_MAX];
} ref_group;

/* rstd (N), t (N, Σr) and y (N, M) out; rstd and t may be NULL. */
void ref_group_forward(const ref_group *g, double *rstd, double *t, double *y);
/* Gradients of Σ dy·y, all overwritten; dx like x (without the residual's part). Any of them may be NULL. */
void ref_group_backward(const ref_group *g, const double *dy, double *dx, double *dgain, double *da[SPT_GROUP_MAX],
                        double *db[SPT_GROUP_MAX], double *dguide[SPT_GROUP_MAX]);

typedef struct ref_attention {
  int64_t sequences, seq_len, heads, kv_heads, head_dim;
  const double *qkv;
} ref_attention;
void ref_attention_forward(const ref_attention *a, double *o, double *lse);
/* dqkv, overwritten, of Σ d_o·o. */
void ref_attention_backward(const ref_attention *a, const double *d_o, double *dqkv);

/* losses (N); dx, dgain, dw overwritten, of scale·Σ losses, unless dx is NULL. */
void ref_head_loss(int64_t tokens, int64_t hidden, int64_t vocab, double eps, const double *x, const double *gain,
                   const double *w, const int32_t *targets, double scale, double *losses, double *dx, double *dgain,
                   double *dw);

/* C = alpha·op(A)·op(B) + beta·C, contiguous rows */
void ref_gemm(int64_t m, int64_t n, int64_t k, bool transpose_a, bool transpose_b, double alpha, const double *a,
              const double *b, double beta, double *c);
/* Alg. 3: u (rows) in and out, normalised; returns sigma. */
double ref_power_iteration(int64_t rows, int64_t cols, const double *w, int steps, double *u);
void ref_adamw(int64_t count, double *w, const double *gradient, double *m, double *v, double lr, double decay,
               double beta1, double beta2, double eps, int64_t step, double clip);

#endif
