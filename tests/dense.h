/* Exact spectral quantities for tests: float64 and LAPACKE, small row-major matrices. A failed LAPACK call fails the
 * cmocka test. */
#ifndef DENSE_H
#define DENSE_H

#include <stdint.h>

enum { DENSE_MAX = 96 }; /* largest row or column count */

/* w (rows, cols) = u (rows, k)·diag(s)·vt (k, cols), k = min(rows, cols), s descending. */
void dense_svd(int64_t rows, int64_t cols, const float *w, double *u, double *s, double *vt);
/* ‖w‖₂; the left singular vector of it in u (rows) unless NULL. */
double dense_norm2(int64_t rows, int64_t cols, const float *w, float *u);
double dense_frobenius(int64_t count, const float *w);
/* ‖A'·B'ᵀ − A·Bᵀ‖₂ of a step from A (m, r), B (n, r). */
double dense_composite_norm2(int64_t m, int64_t n, int64_t r, const float *a, const float *b, const float *a_new,
                             const float *b_new);
/* w (rows, cols) = u·diag(d)·vt of an SVD; d NULL = ones, which gives the polar factor. */
void dense_compose(int64_t rows, int64_t cols, const double *u, const double *d, const double *vt, float *w);

#endif
