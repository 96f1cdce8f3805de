/* Spectral norms without forming the matrix, and the telemetry of a step, against LAPACK's SVD of the formed one. */
#include "unit_test.h"

#include "core/spectral.h"
#include "core/telemetry.h"

#include <lapacke.h>
#include <math.h>

static uint64_t seed, stream;

static double uniform(double low, double high) {
  return low + (high - low) * (double)(spt_random_bits(seed, stream++, 0) >> 11) * 0x1p-53;
}
static int64_t integer(int64_t low, int64_t high) {
  return low + (int64_t)(spt_random_bits(seed, stream++, 0) % (uint64_t)(high - low + 1));
}
static void normal(int64_t count, double std, float *values) {
  spt_random_normal(seed, stream++, 0, count, std, values);
}

static void *memory(size_t count, size_t size) {
  void *pointer = calloc(count + 1, size);
  assert_non_null(pointer);
  return pointer;
}

/* ---- dense references, in double ---- */

static double *random_matrix(int64_t rows, int64_t cols) {
  double *matrix = memory((size_t)(rows * cols), sizeof *matrix);
  float *values = memory((size_t)(rows * cols), sizeof *values);
  normal(rows * cols, 1, values);
  for (int64_t i = 0; i < rows * cols; i++) matrix[i] = values[i];
  free(values);
  return matrix;
}

/* Random orthonormal columns (rows ≥ cols). */
static double *random_orthonormal(int64_t rows, int64_t cols) {
  double *q = random_matrix(rows, cols), *tau = memory((size_t)cols, sizeof *tau);
  assert_int_equal(LAPACKE_dgeqrf(LAPACK_ROW_MAJOR, (lapack_int)rows, (lapack_int)cols, q, (lapack_int)cols, tau), 0);
  assert_int_equal(LAPACKE_dorgqr(LAPACK_ROW_MAJOR, (lapack_int)rows, (lapack_int)cols, (lapack_int)cols, q, (lapack_int)cols, tau), 0);
  free(tau);
  return q;
}

/* C += P·Qᵀ, P (m, k), Q (n, k). */
static void add_product(int64_t m, int64_t n, int64_t k, const double *p, const double *q, double *c) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      double sum = 0;
      for (int64_t l = 0; l < k; l++) sum += p[i * k + l] * q[j * k + l];
      c[i * n + j] += sum;
    }
}

/* ‖C‖₂ by dgesdd, which overwrites C. */
static double exact_norm(int64_t m, int64_t n, double *c) {
  double *s = memory((size_t)(m < n ? m : n), sizeof *s), unused;
  assert_int_equal(LAPACKE_dgesdd(LAPACK_ROW_MAJOR, 'N', (lapack_int)m, (lapack_int)n, c, (lapack_int)n, s, &unused, 1, &unused, (lapack_int)n), 0);
  const double norm = s[0];
  free(s);
  return norm;
}

/* ---- both bounds ---- */

typedef enum { CLOSE, FLAT, STEEP, GAUSSIAN, UNBALANCED, SPECTRA } spectrum;
static const char *const spectrum_names[SPECTRA] = {"gaps of 5e-4", "flat", "steep", "Gaussian factors", "an update beside a factor"};

/* C = P·Qᵀ with a given spectrum, or of random factors; column groups of P and Q may differ by 1e5, as in [ΔA, A]·[B, ΔB]ᵀ. */
static void make_product(spectrum kind, int64_t m, int64_t n, int64_t k, double **p_p, double **q_p) {
  const bool orthonormal = kind <= STEEP && k <= m && k <= n;
  double *p = orthonormal ? random_orthonormal(m, k) : random_matrix(m, k);
  double *q = orthonormal ? random_orthonormal(n, k) : random_matrix(n, k);
  for (int64_t j = 0; j < k; j++) {
    const double value = kind == CLOSE ? 1 - 5e-4 * (double)j : kind == FLAT ? 1 : kind == STEEP ? pow(0.5, (double)j) : 1;
    for (int64_t i = 0; i < m; i++) p[i * k + j] *= kind == UNBALANCED ? (j < k / 2 ? 1e-5 : 1) : value;
    for (int64_t i = 0; i < n && kind == UNBALANCED; i++) q[i * k + j] *= j < k / 2 ? 1 : 1e-5;
  }
  *p_p = p;
  *q_p = q;
}

static void check(const char *name, const spt_operator *c, double exact, int *steps_p) {
  const size_t count = spt_spectral_workspace(c->m, c->n, c->k);
  double *workspace = memory(count, sizeof *workspace);
  workspace[count] = 123; // nothing is written behind it
  const spt_spectral_norm norm = spt_operator_norm(c, stream++, workspace);
  const double upper = spt_operator_upper(c, norm.value, workspace);
  if (!(norm.value >= exact * (1 - 1e-3) && norm.value <= exact * (1 + 1e-10)))
    fail_msg("%s, %d x %d, k %d: %.12g after %d steps instead of %.12g", name, (int)c->m, (int)c->n, (int)c->k, norm.value, norm.steps, exact);
  if (!(upper >= exact && upper <= 1.05 * exact))
    fail_msg("%s, %d x %d, k %d: upper bound %.12g of %.12g", name, (int)c->m, (int)c->n, (int)c->k, upper, exact);
  assert_true(workspace[count] == 123);
  free(workspace);
  if (norm.steps > *steps_p) *steps_p = norm.steps;
}

static void check_product(spectrum kind, int64_t m, int64_t n, int64_t k, int *steps_p) {
  double *p, *q, *c = memory((size_t)(m * n), sizeof *c), *formed = memory((size_t)(m * n), sizeof *formed);
  make_product(kind, m, n, k, &p, &q);
  add_product(m, n, k, p, q, c);
  memcpy(formed, c, (size_t)(m * n) * sizeof *c);
  const double exact = exact_norm(m, n, formed);
  const spt_operator product = {.m = m, .n = n, .k = k, .p = p, .ldp = k, .q = q, .ldq = k};
  const spt_operator dense = {.m = m, .n = n, .k = n, .p = c, .ldp = n};
  check(spectrum_names[kind], &product, exact, steps_p);
  check("the same, formed", &dense, exact, steps_p);
  free(p);
  free(q);
  free(c);
  free(formed);
}

/* Spectra that a power iteration takes hundreds of steps for. */
static void hard_spectra(void **state) {
  (void)state;
  for (spectrum kind = 0; kind < SPECTRA; kind++) {
    int steps = 0;
    check_product(kind, 160, 120, 96, &steps);
    check_product(kind, 90, 200, 80, &steps);
    print_message("%s: at most %d steps\n", spectrum_names[kind], steps);
  }
}

/* All shapes: one row, one column, k beyond the short side, rank one. */
static void shapes(void **state) {
  (void)state;
  int steps = 0;
  for (int i = 0; i < 300; i++)
    check_product((spectrum)integer(0, SPECTRA - 1), integer(1, 24), integer(1, 24), integer(1, 30), &steps);
  for (int64_t m = 1; m <= 3; m++)
    for (int64_t n = 1; n <= 3; n++) check_product(GAUSSIAN, m, n, 1, &steps);
}

static void nothing_and_no_numbers(void **state) {
  (void)state;
  enum { M = 5, N = 7, K = 2 };
  double p[M * K] = {0}, q[N * K] = {0}, dense[M * N] = {0};
  double *workspace = memory(spt_spectral_workspace(M, N, N), sizeof *workspace);
  const spt_operator operators[] = {{.m = M, .n = N, .k = K, .p = p, .ldp = K, .q = q, .ldq = K}, {.m = M, .n = N, .k = N, .p = dense, .ldp = N}};
  for (int i = 0; i < 2; i++) {
    assert_true(spt_operator_norm(&operators[i], 1, workspace).value == 0);
    assert_true(spt_operator_upper(&operators[i], 0, workspace) == 0);
  }
  p[3] = q[3] = 1;
  p[5] = NAN;
  dense[4] = INFINITY;
  dense[5] = -INFINITY;
  for (int i = 0; i < 2; i++) {
    assert_true(isnan(spt_operator_norm(&operators[i], 1, workspace).value));
    assert_true(isnan(spt_operator_upper(&operators[i], NAN, workspace)));
  }
  free(workspace);
}

/* ---- telemetry ---- */

typedef struct factor {
  int64_t rows, cols;
  float *before, *update, *after; /* after = keep·before + update, as the optimizer rounds it */
} factor;

static factor random_factor(int64_t rows, int64_t cols, double std, double update_std, float keep) {
  const int64_t count = rows * cols;
  factor f = {rows, cols, memory((size_t)count, 4), memory((size_t)count, 4), memory((size_t)count, 4)};
  normal(count, std, f.before);
  normal(count, update_std, f.update);
  for (int64_t i = 0; i < count; i++) f.after[i] = keep * f.before[i] + f.update[i];
  return f;
}

static void free_factor(factor *f) {
  free(f->before);
  free(f->update);
  free(f->after);
}

static double *widened(const float *values, int64_t count) {
  double *wide = memory((size_t)count, sizeof *wide);
  for (int64_t i = 0; i < count; i++) wide[i] = values[i];
  return wide;
}

/* C += X·Yᵀ of two float matrices with `cols` columns. */
static void add_floats(const factor *x, const float *of_x, const factor *y, const float *of_y, double *c) {
  double *p = widened(of_x, x->rows * x->cols), *q = widened(of_y, y->rows * y->cols);
  add_product(x->rows, y->rows, x->cols, p, q, c);
  free(p);
  free(q);
}

static double float_norm(const factor *f) {
  double *w = widened(f->before, f->rows * f->cols);
  const double norm = exact_norm(f->rows, f->cols, w);
  free(w);
  return norm;
}

/* |x|_rms and |ΔW·x|_rms by the formed ΔW (m, n). */
static void formed_probe(int64_t m, int64_t n, const double *dw, int64_t rows, const float *x, double *x_p, double *dy_p) {
  double squares = 0, input_squares = 0;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < m; i++) {
      double y = 0;
      for (int64_t j = 0; j < n; j++) y += dw[i * n + j] * x[r * n + j];
      squares += y * y;
    }
  for (int64_t i = 0; i < rows * n; i++) input_squares += (double)x[i] * x[i];
  *x_p = sqrt(input_squares / (double)(rows * n));
  *dy_p = sqrt(squares / (double)(rows * m));
}

/* ‖·‖_F of one of a factor's arrays. */
static double length(const factor *f, const float *values) {
  double squares = 0;
  for (int64_t i = 0; i < f->rows * f->cols; i++) squares += (double)values[i] * values[i];
  return sqrt(squares);
}

static void assert_near(const char *what, double found, double wanted, double tolerance) {
  if (!(fabs(found - wanted) <= tolerance * fabs(wanted))) fail_msg("%s: %.12g instead of %.12g", what, found, wanted);
}

/* One step of a random pair, or dense matrix (r = 0), whose update is `scale` of it. */
static void check_step(int64_t m, int64_t n, int64_t r, double scale) {
  const int64_t rows = integer(1, 9), inner = r > 0 ? r : n;
  const float keep = (float)uniform(0.5, 1);
  factor a = random_factor(m, inner, 0.1, 0.1 * scale, keep), b = random_factor(n, inner, 0.2, 0.2 * scale, keep);
  double *dw = memory((size_t)(m * n), sizeof *dw), *w = memory((size_t)(m * n), sizeof *w), x_rms, dy;
  float *x = memory((size_t)(rows * n), sizeof *x);
  normal(rows * n, 3, x);
  for (int64_t i = 0; r == 0 && i < m * n; i++) dw[i] = a.update[i], w[i] = a.before[i];
  if (r > 0) {
    add_floats(&a, a.update, &b, b.before, dw);
    add_floats(&a, a.before, &b, b.update, dw);
    add_floats(&a, a.update, &b, b.update, dw);
    add_floats(&a, a.before, &b, b.before, w);
  }
  formed_probe(m, n, dw, rows, x, &x_rms, &dy);
  const spt_matrix_step step = {.name = "model.layers.0.test", .m = m, .n = n, .r = r, .a = a.after, .da = a.update, .b = r > 0 ? b.after : NULL,
                                .db = r > 0 ? b.update : NULL, .keep = keep, .lr = 0.01, .rho = 0.005, .rows = rows, .x = x};
  const size_t count = spt_telemetry_workspace(m, n, r, rows);
  double *workspace = memory(count, sizeof *workspace);
  spt_telemetry found;
  workspace[count] = 123;
  spt_telemetry_measure(&step, workspace, &found);
  assert_true(workspace[count] == 123);
  // A and B before the step are recovered from those after it, to fp32's rounding of these
  const double rounding = r == 0 ? 1e-12 * found.dw : 1.2e-7 / keep * (length(&a, a.before) * length(&b, b.update) + length(&a, a.update) * length(&b, b.before));
  const double norm = exact_norm(m, n, dw), norm_w = exact_norm(m, n, w), kept = r > 0 ? (double)keep * keep : keep;
  assert_near("dw", found.dw, norm, 1e-3);
  assert_true(found.dw_upper >= norm - rounding && found.dw_upper <= 1.05 * norm + rounding);
  assert_near("w", found.w, norm_w, 1e-3);
  assert_near("decay", found.decay, (1 - kept) * norm_w, 1e-3);
  assert_near("x", found.x, x_rms, 1e-12);
  assert_true(fabs(found.dy - dy) <= sqrt((double)n / (double)m) * x_rms * rounding);
  assert_near("dy_bound", found.dy_bound, sqrt((double)n / (double)m) * found.dw_upper * x_rms, 1e-12);
  assert_near("slack", found.slack, norm / 0.01, 1e-3);
  assert_true(found.rho == 0.005 && spt_telemetry_holds(&found));
  if (r > 0) {
    assert_near("a", found.a, float_norm(&a), 1e-3);
    assert_near("b", found.b, float_norm(&b), 1e-3);
  } else
    assert_true(isnan(found.a) && isnan(found.b));
  free_factor(&a);
  free_factor(&b);
  free(dw);
  free(w);
  free(x);
  free(workspace);
}

/* Also updates that are far below the last digit of what they are added to: ΔW keeps its digits. */
static void steps_of_matrices(void **state) {
  (void)state;
  static const double scales[] = {1, 1e-3, 1e-6, 1e-10};
  for (int i = 0; i < 80; i++) {
    const double scale = scales[i % 4];
    check_step(integer(1, 40), integer(1, 40), integer(1, 12), scale);
    check_step(integer(1, 40), integer(1, 40), 0, scale);
    check_step(integer(1, 12), integer(1, 12), integer(12, 20), scale); // wider than it is long
  }
  check_step(100, 80, 25, 1e-3);
}

static void what_must_hold(void **state) {
  (void)state;
  const spt_telemetry good = {.dw = 1, .dw_upper = 1.02, .dy = 2, .dy_bound = 2.1};
  spt_telemetry bad[] = {good, good, good, good};
  assert_true(spt_telemetry_holds(&good));
  bad[0].dw_upper = 0.99;
  bad[1].dy = 2.11;
  bad[2].dy = NAN;
  bad[3].dw = NAN;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(spt_telemetry_holds(&bad[i]));
}

int main(void) {
  seed = unit_test_seed("test_spectral");
  const struct CMUnitTest tests[] = {cmocka_unit_test(hard_spectra), cmocka_unit_test(shapes), cmocka_unit_test(nothing_and_no_numbers),
                                     cmocka_unit_test(steps_of_matrices), cmocka_unit_test(what_must_hold)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
