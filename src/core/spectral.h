/* Spectral norms of matrices that are given as products and never formed: a lower bound that converges (Golub–Kahan–Lanczos) and an upper
 * bound that holds whatever the spectrum (a Schatten norm). In double, one thread, no allocation. */
#ifndef SPT_SPECTRAL_H
#define SPT_SPECTRAL_H

#include <stddef.h>
#include <stdint.h>

/* C (m, n) = P·Qᵀ, P (m, k), Q (n, k), or C = P (m, n) itself where q is NULL. Row-major; ld: elements from a row to the next. Borrowed. */
typedef struct spt_operator {
  int64_t m, n, k; /* k: n where q is NULL */
  const double *p, *q;
  int64_t ldp, ldq;
} spt_operator;

/* A largest singular value: value ≤ ‖C‖₂ to rounding, and some singular value of C lies within `residual` of it. */
typedef struct spt_spectral_norm {
  double value, residual;
  int steps; /* products with C and Cᵀ each */
} spt_spectral_norm;

/* Doubles of workspace for either function on operators of at most this size. */
size_t spt_spectral_workspace(int64_t m, int64_t n, int64_t k);
/* By Golub–Kahan–Lanczos bidiagonalisation with full reorthogonalisation (Golub & Van Loan, Matrix Computations, 10.4), from a start vector
 * that `stream` chooses; ends where the residual is below 1e-4 of the value, after 40 steps at least and 300 at most, or when the short
 * side is exhausted, which is exact. NAN where C is not finite. */
spt_spectral_norm spt_operator_norm(const spt_operator *c, uint64_t stream, double *workspace);
/* tr((CᵀC)^k)^(1/2k) ≥ ‖C‖₂ from Gram products: with C = P·Qᵀ it is tr((PᵀP·QᵀQ)^k)^(1/2k), or the like on a side of C shorter than
 * that. k is doubled until the bound is within 3 % of `lower`, at most to 256. NAN where C is not finite. */
double spt_operator_upper(const spt_operator *c, double lower, double *workspace);

#endif
