#include "spectral.h"

#include "blas.h"
#include "rng.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

/* A start vector that happens to lie almost across the largest direction meets a smaller singular value first, and with as small a
 * residual: no convergence is believed before STEPS_MIN, by when Lanczos steps have brought the largest one out. */
enum { STEPS_MIN = 40, STEPS_MAX = 300, CHECK_EVERY = 4, POWER_MAX = 256 };
static const double residual_wanted = 1e-4; // of the value
static const double bound_wanted = 1.03;    // of the lower bound
static const double nothing = 1e-13;        // of the largest coefficient: rounding
static const double rounding = 1e-9;        // what the upper bound is raised by

static int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

size_t spt_spectral_workspace(int64_t m, int64_t n, int64_t k) {
  const int64_t s = smaller(m, n), l = larger(m, n), steps = smaller(s, STEPS_MAX);
  const int64_t lanczos = (steps + 1) * s + steps * l + k + 10 * steps;
  const int64_t grams = 3 * k * k, on_side = k * k + s * k + 2 * s * s;
  return (size_t)larger(lanczos, s < k || k == n ? on_side : grams);
}

/* ---- products ---- */

/* y = M·x, and x = Mᵀ·y, of a row-major M (rows, cols). */
static void multiply(int64_t rows, int64_t cols, const double *matrix, int64_t ld, const double *x, double *y) {
  const lapack_int m = (lapack_int)cols, n = (lapack_int)rows, lda = (lapack_int)ld, step = 1;
  const double one = 1, zero = 0;
  dgemv_("T", &m, &n, &one, matrix, &lda, x, &step, &zero, y, &step);
}
static void multiply_transposed(int64_t rows, int64_t cols, const double *matrix, int64_t ld, const double *y,
                                double *x) {
  const lapack_int m = (lapack_int)cols, n = (lapack_int)rows, lda = (lapack_int)ld, step = 1;
  const double one = 1, zero = 0;
  dgemv_("N", &m, &n, &one, matrix, &lda, y, &step, &zero, x, &step);
}

/* From the short side of C to the long one, and back. t: k doubles. */
static void to_long(const spt_operator *c, const double *x, double *t, double *y) {
  const bool tall = c->m >= c->n;
  if (!c->q) {
    if (tall)
      multiply(c->m, c->n, c->p, c->ldp, x, y);
    else
      multiply_transposed(c->m, c->n, c->p, c->ldp, x, y);
  } else if (tall) {
    multiply_transposed(c->n, c->k, c->q, c->ldq, x, t);
    multiply(c->m, c->k, c->p, c->ldp, t, y);
  } else {
    multiply_transposed(c->m, c->k, c->p, c->ldp, x, t);
    multiply(c->n, c->k, c->q, c->ldq, t, y);
  }
}
static void to_short(const spt_operator *c, const double *y, double *t, double *x) {
  const bool tall = c->m >= c->n;
  if (!c->q) {
    if (tall)
      multiply_transposed(c->m, c->n, c->p, c->ldp, y, x);
    else
      multiply(c->m, c->n, c->p, c->ldp, y, x);
  } else if (tall) {
    multiply_transposed(c->m, c->k, c->p, c->ldp, y, t);
    multiply(c->n, c->k, c->q, c->ldq, t, x);
  } else {
    multiply_transposed(c->n, c->k, c->q, c->ldq, y, t);
    multiply(c->m, c->k, c->p, c->ldp, t, x);
  }
}

static double length(int64_t count, const double *x) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += x[i] * x[i];
  return sqrt(sum);
}
static void scale(int64_t count, double factor, double *x) {
  for (int64_t i = 0; i < count; i++) x[i] *= factor;
}

/* Takes the directions of basis (count, length), orthonormal rows, out of x; twice is enough (Kahan, Parlett). */
static void orthogonalize(int64_t count, int64_t size, const double *basis, double *coefficients, double *x) {
  const lapack_int rows = (lapack_int)size, cols = (lapack_int)count, step = 1;
  const double minus = -1, one = 1;
  for (int pass = 0; pass < 2 && count > 0; pass++) {
    multiply(count, size, basis, size, x, coefficients);
    dgemv_("N", &rows, &cols, &minus, basis, &rows, coefficients, &step, &one, x, &step);
  }
}

/* ---- the lower bound ---- */

/* The bidiagonal matrix so far: alpha on its diagonal, beta above it. */
typedef struct bidiagonal {
  double *alpha, *beta;
  double *d, *e, *last, *work; /* dbdsqr's */
  double largest;              /* coefficient */
} bidiagonal;

/* Its largest singular value, and the residual beta_j·|p_j|, p the left singular vector (Golub & Van Loan 10.4). */
static spt_spectral_norm ritz(const bidiagonal *b, int steps, double beta) {
  memcpy(b->d, b->alpha, (size_t)steps * sizeof(double));
  memcpy(b->e, b->beta, (size_t)(steps - 1) * sizeof(double));
  memset(b->last, 0, (size_t)steps * sizeof(double));
  b->last[steps - 1] = 1; // the last row of the identity becomes that of the left singular vectors
  const lapack_int info = LAPACKE_dbdsqr_work(LAPACK_COL_MAJOR, 'U', steps, 0, 1, 0, b->d, b->e, NULL, 1, b->last, 1,
                                              NULL, 1, b->work);
  if (info != 0) return (spt_spectral_norm){NAN, NAN, steps};
  return (spt_spectral_norm){b->d[0], beta * fabs(b->last[0]), steps};
}

spt_spectral_norm spt_operator_norm(const spt_operator *c, uint64_t stream, double *workspace) {
  const int64_t s = smaller(c->m, c->n), l = larger(c->m, c->n), limit = smaller(s, STEPS_MAX);
  double *v = workspace, *u = v + (limit + 1) * s, *t = u + limit * l; // v (limit + 1, s), u (limit, l)
  double *coefficients = t + c->k, *rest = coefficients + limit;
  bidiagonal b = {rest, rest + limit, rest + 2 * limit, rest + 3 * limit, rest + 4 * limit, rest + 5 * limit, 0}; // work: 4·limit
  spt_spectral_norm norm = {0, 0, 0};
  for (int64_t i = 0; i < s; i++) {
    float value;
    spt_random_normal(0, stream, i, 1, 1.0, &value);
    v[i] = value;
  }
  scale(s, 1 / length(s, v), v);
  for (int j = 0; j < limit; j++) {
    double *vj = v + j * s, *uj = u + j * l;
    to_long(c, vj, t, uj); // alpha_j·u_j = C·v_j − beta_{j−1}·u_{j−1}
    orthogonalize(j, l, u, coefficients, uj);
    b.alpha[j] = length(l, uj);
    if (!isfinite(b.alpha[j])) return (spt_spectral_norm){NAN, NAN, j + 1};
    b.largest = fmax(b.largest, b.alpha[j]);
    if (b.alpha[j] <= nothing * b.largest) { // C has no further rank: the rest is exact
      b.alpha[j] = 0;
      return ritz(&b, j + 1, 0);
    }
    scale(l, 1 / b.alpha[j], uj);
    to_short(c, uj, t, vj + s); // beta_j·v_{j+1} = Cᵀ·u_j − alpha_j·v_j
    orthogonalize(j + 1, s, v, coefficients, vj + s);
    b.beta[j] = length(s, vj + s);
    if (!isfinite(b.beta[j])) return (spt_spectral_norm){NAN, NAN, j + 1};
    b.largest = fmax(b.largest, b.beta[j]);
    if (b.beta[j] <= nothing * b.largest || j + 1 == s) return ritz(&b, j + 1, 0);
    if ((j + 1 >= STEPS_MIN && j % CHECK_EVERY == 0) || j + 1 == limit) {
      norm = ritz(&b, j + 1, b.beta[j]);
      if (!(norm.residual > residual_wanted * norm.value)) return norm;
    }
    scale(s, 1 / b.beta[j], vj + s);
  }
  return norm;
}

/* ---- the upper bound ---- */

static void mirror(int64_t count, double *gram) { // column-major, lower to upper
  for (int64_t j = 0; j < count; j++)
    for (int64_t i = j + 1; i < count; i++) gram[i * count + j] = gram[j * count + i];
}

/* MᵀM (cols, cols), or M·Mᵀ (rows, rows), of a row-major M. */
static void gram_of(int64_t rows, int64_t cols, const double *matrix, int64_t ld, bool of_rows, double *gram) {
  const lapack_int n = (lapack_int)(of_rows ? rows : cols), k = (lapack_int)(of_rows ? cols : rows),
                   lda = (lapack_int)ld;
  const double one = 1, zero = 0;
  dsyrk_("L", of_rows ? "T" : "N", &n, &k, &one, matrix, &lda, &zero, gram, &n);
  mirror(n, gram);
}

static void square_product(int64_t count, const double *a, const double *b, double *c) {
  const lapack_int n = (lapack_int)count;
  const double one = 1, zero = 0;
  dgemm_("N", "N", &n, &n, &n, &one, a, &n, b, &n, &zero, c, &n);
}

/* D·(PᵀP)·(QᵀQ)·D⁻¹, whose eigenvalues are those of CᵀC that are not 0. The columns of P and Q may differ by orders of magnitude (an update
 * beside a factor); D, which changes no eigenvalue, gives P·D and Q·D⁻¹ equal ones. */
static void inner_product(const spt_operator *c, double *grams, double *product) {
  const int64_t k = c->k;
  double *of_p = grams, *of_q = grams + k * k;
  gram_of(c->m, k, c->p, c->ldp, false, of_p);
  gram_of(c->n, k, c->q, c->ldq, false, of_q);
  square_product(k, of_p, of_q, product);
  for (int64_t j = 0; j < k; j++) { // the diagonals become D: they are used up
    const double p = of_p[j * k + j], q = of_q[j * k + j];
    of_p[j] = p > 0 && q > 0 ? sqrt(sqrt(q / p)) : 1; // row 0 is behind row j
  }
  for (int64_t j = 0; j < k; j++)
    for (int64_t i = 0; i < k; i++) product[j * k + i] *= of_p[i] / of_p[j];
}

/* C·Cᵀ on C's short side: P·(QᵀQ)·Pᵀ or Q·(PᵀP)·Qᵀ. */
static void side_product(const spt_operator *c, double *scratch, double *product) {
  const bool short_is_m = c->m <= c->n;
  const double *inner = short_is_m ? c->q : c->p, *outer = short_is_m ? c->p : c->q;
  const lapack_int s = (lapack_int)smaller(c->m, c->n), k = (lapack_int)c->k,
                   ld = (lapack_int)(short_is_m ? c->ldp : c->ldq);
  const double one = 1, zero = 0;
  double *gram = scratch, *between = scratch + c->k * c->k; // (k, k); column-major (k, s)
  gram_of(larger(c->m, c->n), c->k, inner, short_is_m ? c->ldq : c->ldp, false, gram);
  dgemm_("N", "N", &k, &s, &k, &one, gram, &k, outer, &ld, &zero, between, &k);
  dgemm_("T", "N", &s, &s, &k, &one, outer, &ld, between, &k, &zero, product, &s);
}

/* Divides by the Frobenius norm, which is returned. */
static double normalise(int64_t count, double *matrix) {
  const double norm = length(count, matrix);
  if (norm > 0) scale(count, 1 / norm, matrix);
  return norm;
}

double spt_operator_upper(const spt_operator *c, double lower, double *workspace) {
  const int64_t s = smaller(c->m, c->n), size = c->q ? smaller(c->k, s) : s;
  double *power = workspace, *next = power + size * size; // M^k = e^log_scale·power
  if (!c->q)
    gram_of(c->m, c->n, c->p, c->ldp, c->m <= c->n, power);
  else if (size < c->k)
    side_product(c, next, power);
  else
    inner_product(c, next, power);
  double norm = normalise(size * size, power), log_scale = log(norm), upper = NAN;
  if (norm == 0) return 0;
  for (int k = 2; isfinite(norm); k *= 2) { // from M^(k/2) the trace of M^k
    double trace = 0;
    for (int64_t j = 0; j < size; j++)
      for (int64_t i = 0; i < size; i++) trace += power[j * size + i] * power[i * size + j];
    upper = exp((2 * log_scale + log(trace)) / (2 * k)) * (1 + rounding);
    if (!(upper > bound_wanted * lower) || k >= POWER_MAX) break;
    square_product(size, power, power, next);
    double *swap = power;
    power = next;
    next = swap;
    norm = normalise(size * size, power);
    log_scale = 2 * log_scale + log(norm);
  }
  return isfinite(upper) ? upper : NAN;
}
