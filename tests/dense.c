#include "dense.h"

#include "unit_test.h"

#include <lapacke.h>
#include <math.h>

static int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

void dense_svd(int64_t rows, int64_t cols, const float *w, double *u, double *s, double *vt) {
  double copy[DENSE_MAX * DENSE_MAX];
  assert_true(rows <= DENSE_MAX && cols <= DENSE_MAX);
  for (int64_t i = 0; i < rows * cols; i++) copy[i] = w[i];
  const int64_t k = smaller(rows, cols);
  assert_int_equal(LAPACKE_dgesdd(LAPACK_ROW_MAJOR, 'S', (lapack_int)rows, (lapack_int)cols, copy, (lapack_int)cols, s,
                                  u, (lapack_int)k, vt, (lapack_int)cols),
                   0);
}

static double largest_singular_value(int64_t rows, int64_t cols, double *w) {
  double s[DENSE_MAX], unused;
  assert_int_equal(LAPACKE_dgesdd(LAPACK_ROW_MAJOR, 'N', (lapack_int)rows, (lapack_int)cols, w, (lapack_int)cols, s,
                                  &unused, 1, &unused, (lapack_int)cols),
                   0);
  return s[0];
}

double dense_norm2(int64_t rows, int64_t cols, const float *w, float *u) {
  double left[DENSE_MAX * DENSE_MAX], s[DENSE_MAX], vt[DENSE_MAX * DENSE_MAX];
  dense_svd(rows, cols, w, left, s, vt);
  const int64_t k = smaller(rows, cols);
  for (int64_t i = 0; u && i < rows; i++) u[i] = (float)left[i * k];
  return s[0];
}

double dense_frobenius(int64_t count, const float *w) {
  double squares = 0;
  for (int64_t i = 0; i < count; i++) squares += (double)w[i] * w[i];
  return sqrt(squares);
}

double dense_composite_norm2(int64_t m, int64_t n, int64_t r, const float *a, const float *b, const float *a_new,
                             const float *b_new) {
  double delta[DENSE_MAX * DENSE_MAX];
  assert_true(m <= DENSE_MAX && n <= DENSE_MAX);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      double sum = 0;
      for (int64_t k = 0; k < r; k++)
        sum += (double)a_new[i * r + k] * b_new[j * r + k] - (double)a[i * r + k] * b[j * r + k];
      delta[i * n + j] = sum;
    }
  return largest_singular_value(m, n, delta);
}

void dense_compose(int64_t rows, int64_t cols, const double *u, const double *d, const double *vt, float *w) {
  const int64_t k = smaller(rows, cols);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < cols; j++) {
      double sum = 0;
      for (int64_t l = 0; l < k; l++) sum += u[i * k + l] * (d ? d[l] : 1) * vt[l * cols + j];
      w[i * cols + j] = (float)sum;
    }
}
