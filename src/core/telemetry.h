/* The telemetry of a step, matrix by matrix (arXiv:2602.12429, Figures 2 and 3): what the update did to W = A·Bᵀ, or to a dense W, without
 * forming it. In double, one thread, no allocation. */
#ifndef SPT_TELEMETRY_H
#define SPT_TELEMETRY_H

#include "params.h"

/* key, meaning. A value that a matrix does not have, and one that is not finite, is NAN. */
#define SPT_TELEMETRY_TABLE(X)                                                                                         \
  X(a, "|A|_2 before the update; of a dense matrix none")                                                              \
  X(b, "|B|_2 before the update; of a dense matrix none")                                                              \
  X(rho, "factor on the direction; under AdamW none")                                                                  \
  X(dw, "|dW|_2 of the update without weight decay, from below: converged to 1e-4 as a rule")                          \
  X(dw_upper, "the same from above")                                                                                   \
  X(w, "|W|_2 before the update")                                                                                      \
  X(decay, "spectral norm of what weight decay took off W")                                                            \
  X(x, "|x|_rms of the matrix's inputs in the probe, before the update")                                               \
  X(dy, "|dW x|_rms")                                                                                                  \
  X(dy_bound, "Eq. 10: sqrt(n/m) |dW|_2 |x|_rms, with dw_upper; dy exceeds it never")                                  \
  X(slack, "dw over the learning rate eta_t")

typedef struct spt_telemetry {
#define SPT_TELEMETRY_FIELD(key, meaning) double key;
  SPT_TELEMETRY_TABLE(SPT_TELEMETRY_FIELD)
#undef SPT_TELEMETRY_FIELD
} spt_telemetry;
enum { SPT_TELEMETRY_FIELDS = sizeof(spt_telemetry) / sizeof(double) };

/* What a step did to one matrix: A ← keep·A + ΔA, B ← keep·B + ΔB, or W ← keep·W + ΔW. Borrowed, row-major. */
typedef struct spt_matrix_step {
  const char *name;    /* chooses the start vectors */
  int64_t m, n, r;     /* r = 0: dense */
  const float *a, *b;  /* after the step: A (m, r), B (n, r), or W (m, n) and NULL */
  const float *da, *db; /* as applied, alike */
  double keep;         /* 1 − η_t·λ; not 0 */
  double lr, rho;      /* η_t; rho NAN: none */
  int64_t rows;        /* inputs x of the probe: x (rows, n) */
  const float *x;
} spt_matrix_step;

/* Doubles of workspace. */
size_t spt_telemetry_workspace(int64_t m, int64_t n, int64_t r, int64_t rows);
/* ΔW = ΔA·Bᵀ + A·ΔBᵀ + ΔA·ΔBᵀ (Eq. 2), A and B before the step: recovered from those after it, to their own rounding, which
 * costs ΔW no digits. */
void spt_telemetry_measure(const spt_matrix_step *step, double *workspace, spt_telemetry *telemetry_p);
/* Whether what must hold does: dw ≤ dw_upper and Eq. 10, dy ≤ dy_bound, to rounding. False where a value is not finite. */
bool spt_telemetry_holds(const spt_telemetry *telemetry);

#endif
