/* Newton–Schulz against an SVD: the singular vectors stay, and each singular value becomes what the polynomials make of it; what they make of
 * those in [1e-3, 1] is near 1, for Polar Express nearer than for the quintic. */
#include "ops_device.h"
#include "unit_test.h"

#include "core/newton_schulz.h"
#include "core/rng.h"

#include <lapacke.h>
#include <math.h>

static uint64_t seed;

static spt_optimizer_config variant_of(spt_newton_schulz_variant variant, int64_t steps) {
  spt_optimizer_config config = {.newton_schulz_variant = variant, .newton_schulz_steps = steps};
  memcpy(config.newton_schulz_coefficients, spt_quintic, sizeof spt_quintic);
  return config;
}

/* The polynomials on one singular value, in double. */
static double scalar(const spt_optimizer_config *config, double s) {
  for (int step = 0; step < config->newton_schulz_steps; step++) {
    const spt_polynomial p = spt_newton_schulz_polynomial(config, step);
    s = s * (p.a + s * s * (p.b + s * s * (double)p.c));
  }
  return s;
}

/* What comes of all singular values in [1e-3, 1]: known bounds of either variant. */
static void ranges(void **state) {
  (void)state;
  const struct {
    spt_newton_schulz_variant variant;
    int64_t steps;
    double low, high; /* of singular values above 1e-3 */
  } cases[] = {{SPT_NEWTON_SCHULZ_QUINTIC, 5, 0.470, 1.2025},
               {SPT_NEWTON_SCHULZ_QUINTIC, 8, 0.680, 1.2025},
               {SPT_NEWTON_SCHULZ_POLAR_EXPRESS, 5, 0.840, 1.124},
               {SPT_NEWTON_SCHULZ_POLAR_EXPRESS, 7, 0.9999, 1.0001},
               {SPT_NEWTON_SCHULZ_POLAR_EXPRESS, 9, 0.9999, 1.0001}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const spt_optimizer_config config = variant_of(cases[i].variant, cases[i].steps);
    double low = INFINITY, high = 0;
    for (int k = 0; k <= 20000; k++) {
      const double s = scalar(&config, pow(10, -3.0 * k / 20000));
      low = fmin(low, s);
      high = fmax(high, s);
    }
    print_message("%s, %d steps: singular values of 0.001 to 1 become %.4f to %.4f\n", cases[i].variant ? "Polar Express" : "quintic",
                  (int)cases[i].steps, low, high);
    assert_true(low >= cases[i].low && high <= cases[i].high);
  }
}

typedef struct matrix_case {
  int64_t rows, cols;
  double condition;
} matrix_case;

/* A random matrix of Frobenius norm 1 with singular values from 1 down to 1/condition, times a constant. */
static void random_matrix(const matrix_case *c, uint64_t stream, double *x) {
  const int64_t s = c->rows < c->cols ? c->rows : c->cols;
  double *u = malloc((size_t)(c->rows * s) * sizeof *u), *vt = malloc((size_t)(s * c->cols) * sizeof *vt),
         *sigma = malloc((size_t)s * sizeof *sigma), *unused = malloc((size_t)s * sizeof *unused);
  float *normal = malloc((size_t)(c->rows * c->cols) * sizeof *normal);
  assert_true(u && vt && sigma && unused && normal);
  spt_random_normal(seed, stream, 0, c->rows * c->cols, 1, normal);
  for (int64_t i = 0; i < c->rows * c->cols; i++) x[i] = normal[i];
  assert_int_equal(LAPACKE_dgesvd(LAPACK_ROW_MAJOR, 'S', 'S', (lapack_int)c->rows, (lapack_int)c->cols, x, (lapack_int)c->cols, sigma, u,
                                  (lapack_int)s, vt, (lapack_int)c->cols, unused),
                   0);
  double squares = 0;
  for (int64_t k = 0; k < s; k++) sigma[k] = pow(c->condition, s > 1 ? -(double)k / (double)(s - 1) : 0), squares += sigma[k] * sigma[k];
  memset(x, 0, (size_t)(c->rows * c->cols) * sizeof *x);
  for (int64_t i = 0; i < c->rows; i++)
    for (int64_t k = 0; k < s; k++)
      for (int64_t j = 0; j < c->cols; j++) x[i * c->cols + j] += u[i * s + k] * sigma[k] / sqrt(squares) * vt[k * c->cols + j];
  free(u);
  free(vt);
  free(sigma);
  free(unused);
  free(normal);
}

/* Frobenius distance of `found` from U·f(Σ)·Vᵀ of x, relative. */
static double distance(const spt_optimizer_config *config, const matrix_case *c, const float *input, const float *found) {
  const int64_t s = c->rows < c->cols ? c->rows : c->cols, count = c->rows * c->cols;
  double *x = malloc((size_t)count * sizeof *x), *u = malloc((size_t)(c->rows * s) * sizeof *u), *vt = malloc((size_t)(s * c->cols) * sizeof *vt),
         *sigma = malloc((size_t)s * sizeof *sigma), *unused = malloc((size_t)s * sizeof *unused);
  assert_true(x && u && vt && sigma && unused);
  for (int64_t i = 0; i < count; i++) x[i] = input[i];
  assert_int_equal(LAPACKE_dgesvd(LAPACK_ROW_MAJOR, 'S', 'S', (lapack_int)c->rows, (lapack_int)c->cols, x, (lapack_int)c->cols, sigma, u,
                                  (lapack_int)s, vt, (lapack_int)c->cols, unused),
                   0);
  double error = 0, scale = 0;
  for (int64_t i = 0; i < c->rows; i++)
    for (int64_t j = 0; j < c->cols; j++) {
      double expected = 0;
      for (int64_t k = 0; k < s; k++) expected += u[i * s + k] * scalar(config, sigma[k]) * vt[k * c->cols + j];
      error += pow(found[i * c->cols + j] - expected, 2);
      scale += expected * expected;
    }
  free(x);
  free(u);
  free(vt);
  free(sigma);
  free(unused);
  return sqrt(error / scale);
}

static void widen(spt_dtype dtype, int64_t count, const void *from, float *to) {
  for (int64_t i = 0; i < count; i++) {
    uint32_t bits = dtype == SPT_BF16 ? (uint32_t)((const uint16_t *)from)[i] << 16 : ((const uint32_t *)from)[i];
    memcpy(&to[i], &bits, sizeof bits);
  }
}
static void narrow(spt_dtype dtype, int64_t count, const double *from, void *to) {
  for (int64_t i = 0; i < count; i++) {
    const float value = (float)from[i];
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (dtype == SPT_BF16)
      ((uint16_t *)to)[i] = (uint16_t)(bits >> 16);
    else
      ((uint32_t *)to)[i] = bits;
  }
}

static void check(spt_backend *backend, const spt_optimizer_config *config, const matrix_case *c, uint64_t stream, double bound) {
  const int64_t count = c->rows * c->cols, size = (int64_t)spt_dtype_size(backend->act), scratch_elements = spt_newton_schulz_scratch(c->rows, c->cols);
  double *x = malloc((size_t)count * sizeof *x);
  void *host = malloc((size_t)(count * size)), *memory, *scratch, *lists[5];
  float *input = malloc((size_t)count * sizeof *input), *found = malloc((size_t)count * sizeof *found);
  assert_true(x && host && input && found);
  random_matrix(c, stream, x);
  narrow(backend->act, count, x, host);
  widen(backend->act, count, host, input);
  const spt_ops *ops = backend->ops;
  assert_ok(ops->alloc(backend, (size_t)(count * size), &memory));
  assert_ok(ops->alloc(backend, (size_t)(scratch_elements * size), &scratch));
  assert_ok(ops->upload(backend, memory, host, (size_t)(count * size)));
  lists[0] = memory;
  assert_ok(spt_newton_schulz(backend, config, 1, c->rows, c->cols, backend->act, lists, scratch, lists + 1));
  assert_ok(ops->download(backend, host, lists[0], (size_t)(count * size)));
  widen(backend->act, count, host, found);
  const double error = distance(config, c, input, found);
  if (!(error <= bound))
    fail_msg("%d x %d, condition %g, variant %d, %d steps: off by %.2e", (int)c->rows, (int)c->cols, c->condition, (int)config->newton_schulz_variant,
             (int)config->newton_schulz_steps, error);
  ops->free(backend, memory, (size_t)(count * size));
  ops->free(backend, scratch, (size_t)(scratch_elements * size));
  free(x);
  free(host);
  free(input);
  free(found);
}

/* The rounding of a singular value near 0 grows with it, up to 8.3·4.1·3.9·3.3·2.3-fold in five iterations: a condition of 100 keeps that small. */
static void against_svd(void **state) {
  (void)state;
  const matrix_case cases[] = {{48, 16, 3}, {16, 48, 3}, {33, 33, 10}, {70, 9, 100}, {9, 70, 30}, {40, 1, 1}, {1, 13, 1}, {64, 64, 100}};
  for (int precision = 0; precision < 2; precision++) {
    spt_backend *backend;
    assert_ok(ops_device_open(precision ? SPT_PRECISION_BF16 : SPT_PRECISION_FP32, 2, &backend));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
      for (int variant = 0; variant < 2; variant++) {
        const spt_optimizer_config config = variant_of((spt_newton_schulz_variant)variant, variant ? 7 : 5);
        check(backend, &config, &cases[i], 10 + i, precision ? 6e-2 : 2e-5);
      }
    spt_optimizer_config cubic = variant_of(SPT_NEWTON_SCHULZ_QUINTIC, 6); // coefficients of one's own: the classical iteration
    memcpy(cubic.newton_schulz_coefficients, (double[]){1.5, -0.5, 0}, sizeof cubic.newton_schulz_coefficients);
    check(backend, &cubic, &cases[0], 30, precision ? 6e-2 : 2e-5);
    backend->ops->close(&backend);
  }
}

int main(void) {
  seed = unit_test_seed("test_newton_schulz");
  const struct CMUnitTest tests[] = {cmocka_unit_test(ranges), cmocka_unit_test(against_svd)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
