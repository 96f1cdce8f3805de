/* Batched products, gradient statistics and the factor and AdamW updates. */
#include "ops_fixture.h"

#include "reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const spt_control *control_of(ops_fixture *f, float clip, float apply) {
  return ops_put_control(f, (spt_control){.clip = clip, .apply = apply});
}

static void gemm_body(ops_fixture *f) {
  enum { BATCH = 11 };
  const int64_t m = ops_draw(f, 1, 70), n = ops_draw(f, 1, 70), k = ops_draw(f, 1, 150), entries = ops_draw(f, 3, BATCH);
  spt_gemm_batch batch = {.batch = entries,
                          .m = m,
                          .n = n,
                          .k = k,
                          .transpose_a = ops_draw(f, 0, 1),
                          .transpose_b = ops_draw(f, 0, 1),
                          .alpha = ops_draw(f, 0, 1) ? 1.0f : -1.75f,
                          .dtype = f->act};
  batch.beta = (float)ops_draw(f, -1, 1) * 0.5f;
  const void *a[BATCH], *b[BATCH];
  void *c[BATCH];
  double *want[BATCH];
  for (int64_t i = 0; i < entries; i++) {
    double *a_values = ops_random(f, m * k, 1.0), *b_values = ops_random(f, k * n, 1.0);
    want[i] = ops_random(f, m * n, 1.0);
    a[i] = ops_put(f, a_values, m * k, f->act);
    b[i] = ops_put(f, b_values, k * n, f->act);
    c[i] = batch.beta == 0.0f ? ops_poison(f, m * n, f->act)
                              : ops_put(f, want[i], m * n, f->act); // beta 0 must not read C
    if (f->check)
      ref_gemm(m, n, k, batch.transpose_a, batch.transpose_b, (double)batch.alpha, a_values, b_values,
               (double)batch.beta, want[i]);
  }
  batch.a = a, batch.b = b, batch.c = c;
  OPS_OK(f->backend->ops->batched_gemm(f->backend, &batch));
  for (int64_t i = 0; i < entries; i++) ops_check(f, "C", ops_get(f, c[i], m * n, f->act), want[i], m * n, f->act, 1.0);

  void *alone = ops_poison(f, m * n, f->act); // an entry rounds alike in any batch
  batch.beta = 0.0f;
  OPS_OK(f->backend->ops->batched_gemm(f->backend, &batch));
  const double *in_batch = ops_get(f, c[2], m * n, f->act);
  batch.batch = 1, batch.a = a + 2, batch.b = b + 2, batch.c = &alone;
  OPS_OK(f->backend->ops->batched_gemm(f->backend, &batch));
  const double *single = ops_get(f, alone, m * n, f->act);
  for (int64_t i = 0; i < m * n; i++) assert_true(single[i] == in_batch[i]);
}

/* C = alpha·A·B + beta·D with D one of the operands, as Newton–Schulz has it: X·P + a·X, P·X + a·X, c·G·G + b·G. */
static void gemm_apart_body(ops_fixture *f) {
  enum { BATCH = 9 };
  const int64_t m = ops_draw(f, 1, 70), n = ops_draw(f, 1, 70), entries = ops_draw(f, 1, BATCH);
  const bool right = ops_draw(f, 0, 1), same = ops_draw(f, 0, 1); // D is B; A and B are one square matrix
  const int64_t rows = same ? n : m, k = right ? rows : n;
  const void *a[BATCH], *b[BATCH];
  void *c[BATCH];
  double *want[BATCH];
  for (int64_t i = 0; i < entries; i++) {
    double *a_values = ops_random(f, rows * k, 1.0), *b_values = same ? a_values : ops_random(f, k * n, 1.0);
    a[i] = ops_put(f, a_values, rows * k, f->act);
    b[i] = same ? a[i] : ops_put(f, b_values, k * n, f->act);
    c[i] = ops_poison(f, rows * n, f->act);
    want[i] = ops_zeros(f, rows * n);
    memcpy(want[i], right ? b_values : a_values, (size_t)(rows * n) * sizeof(double));
    if (f->check) ref_gemm(rows, n, k, false, false, -1.5, a_values, b_values, 3.25, want[i]);
  }
  const spt_gemm_batch batch = {.batch = entries,
                                .m = rows,
                                .n = n,
                                .k = k,
                                .alpha = -1.5f,
                                .beta = 3.25f,
                                .dtype = f->act,
                                .a = a,
                                .b = b,
                                .d = right ? b : a,
                                .c = c};
  OPS_OK(f->backend->ops->batched_gemm(f->backend, &batch));
  for (int64_t i = 0; i < entries; i++) ops_check(f, "C", ops_get(f, c[i], rows * n, f->act), want[i], rows * n, f->act, 1.0);
}

static void add_body(ops_fixture *f) {
  const int64_t count = ops_draw(f, 1, 200000);
  double *a = ops_random(f, count, 3.0), *b = ops_random(f, count, 3.0);
  float *x = ops_put(f, a, count, SPT_F32), *y = ops_put(f, b, count, SPT_F32), *out = ops_poison(f, count, SPT_F32);
  double *want = ops_random(f, count, 1.0);
  for (int64_t i = 0; i < count; i++) want[i] = (double)((float)a[i] + (float)b[i]);
  OPS_OK(f->backend->ops->add(f->backend, count, x, y, out));
  const double *sum = ops_get(f, out, count, SPT_F32);
  for (int64_t i = 0; i < count; i++) assert_true(sum[i] == want[i]);
  OPS_OK(f->backend->ops->add(f->backend, count, x, NULL, out));
  const double *copy = ops_get(f, out, count, SPT_F32);
  for (int64_t i = 0; i < count; i++) assert_true((float)copy[i] == (float)a[i]);
  OPS_OK(f->backend->ops->add(f->backend, count, x, y, ops_draw(f, 0, 1) ? x : y)); // in place
  const double *left = ops_get(f, x, count, SPT_F32), *right = ops_get(f, y, count, SPT_F32);
  for (int64_t i = 0; i < count; i++) assert_true(left[i] == want[i] || right[i] == want[i]);
}

/* Rounded to nearest even, ties included; what lies behind is left alone (a canary). */
static void round_body(ops_fixture *f) {
  const int64_t count = ops_draw(f, 1, 200000);
  double *values = ops_random(f, count, 3.0), *rounded = ops_zeros(f, count);
  for (int64_t i = 0; i < count; i++) {
    if (i % 7 == 3) values[i] = (double)(float)(1.0 + (double)(2 * ops_draw(f, 0, 127) + 1) / 256.0); // half way
    if (i % 11 == 5) values[i] = 0.0;
  }
  const float *from = ops_put(f, values, count, SPT_F32);
  void *to = ops_poison(f, count, SPT_BF16);
  memcpy(rounded, values, (size_t)count * sizeof *rounded);
  ops_put(f, rounded, count, SPT_BF16); // rounds them
  OPS_OK(f->backend->ops->round_bf16(f->backend, count, from, to));
  const double *got = ops_get(f, to, count, SPT_BF16);
  for (int64_t i = 0; i < count; i++) assert_true(got[i] == rounded[i]);
}

static void stats_body(ops_fixture *f) {
  const int64_t count = ops_draw(f, 1, 200000), bad = ops_draw(f, 0, 3);
  const int group = (int)ops_draw(f, 0, SPT_CONTROL_GROUPS - 1);
  double *g = ops_random(f, count, 3.0), want = 1.5;
  const float *device = ops_put(f, g, count, SPT_F32);
  for (int64_t i = 0; i < count; i++) want += g[i] * g[i];
  spt_control control = {.sum_squares = 1.5, .non_finite = 2.0}, *const device_control = ops_put_control(f, control);
  OPS_OK(f->backend->ops->gradient_stats(f->backend, count, device, group, device_control));
  OPS_OK(f->backend->ops->download(f->backend, &control, device_control, sizeof control));
  ops_check(f, "sum of squares", &control.sum_squares, &want, 1, SPT_F32, 1e-5);
  assert_true(control.non_finite == 2.0);
  control.sum_squares -= 1.5;
  for (int g = 0; g < SPT_CONTROL_GROUPS; g++) {
    if (g == group) ops_check(f, "squares of the group", &control.group_squares[g], &control.sum_squares, 1, SPT_F32, 1e-12);
    else assert_true(control.group_squares[g] == 0);
  }
  static const double broken[] = {(double)INFINITY, -(double)INFINITY, (double)NAN};
  for (int64_t i = 0; i < bad && i < count; i++) g[(i + 1) * count / (bad + 1) - 1] = broken[i];
  float *host = malloc((size_t)count * sizeof *host);
  assert_non_null(host);
  for (int64_t i = 0; i < count; i++) host[i] = (float)g[i];
  int64_t found = 0;
  for (int64_t i = 0; i < count; i++) found += !isfinite(host[i]);
  OPS_OK(f->backend->ops->upload(f->backend, (void *)(uintptr_t)device, host, (size_t)count * sizeof *host));
  free(host);
  OPS_OK(f->backend->ops->gradient_stats(f->backend, count, device, group, device_control));
  OPS_OK(f->backend->ops->download(f->backend, &control, device_control, sizeof control));
  assert_true(control.non_finite == 2.0 + (double)found);
}

static void sum_body(ops_fixture *f) {
  const int64_t count = ops_draw(f, 1, 5000);
  double *values = ops_random(f, count, 3.0), want = -2.5, found = -2.5;
  const float *device = ops_put(f, values, count, SPT_F32);
  for (int64_t i = 0; i < count; i++) want += values[i];
  double *const sum = ops_poison_bytes(f, sizeof *sum);
  OPS_OK(f->backend->ops->upload(f->backend, sum, &found, sizeof found));
  OPS_OK(f->backend->ops->sum(f->backend, count, device, sum));
  OPS_OK(f->backend->ops->download(f->backend, &found, sum, sizeof found));
  assert_true(fabs(found - want) < 1e-9 * (double)count);
}

/* Every case of a decision: finite or not, by each of its four grounds; with a norm above the limit, below it, and without one. */
static void decide_body(ops_fixture *f) {
  for (int bad = 0; bad < 5; bad++) {
    for (int limit = 0; limit < 3; limit++) {
      const double norm = (double)ops_draw(f, 1, 1000) / 10.0, clip = limit == 0 ? 0.0 : limit == 1 ? 0.5 * norm : 2.0 * norm;
      const int64_t applied = ops_draw(f, 0, 1000);
      const spt_control before = {.sum_squares = bad == 1 ? (double)INFINITY : norm * norm,
                                  .non_finite = bad == 2 ? 3.0 : 0.0,
                                  .loss = bad == 3 ? (double)NAN : 1.5,
                                  .failed = bad == 4 ? 1.0 : 0.0,
                                  .clip = 7.0f,
                                  .apply = 7.0f,
                                  .applied = applied};
      spt_control *const device = ops_put_control(f, before), after;
      OPS_OK(f->backend->ops->decide(f->backend, clip, device));
      OPS_OK(f->backend->ops->download(f->backend, &after, device, sizeof after));
      assert_true(after.apply == (bad ? 0.0f : 1.0f));
      assert_int_equal(after.applied, applied + !bad);
      if (!bad) assert_true(fabs((double)after.clip - (limit == 1 ? clip / (norm + 1e-6) : 1.0)) < 1e-6);
    }
  }
}

/* A pair of factors with their reference copies. */
typedef struct factor_test {
  spt_factor_entry entry;
  double *w, *gradient, *momentum, *u;
} factor_test;

static factor_test make_factor(ops_fixture *f) {
  factor_test t = {.entry = {.rows = ops_draw(f, 1, 90), .cols = ops_draw(f, 1, 90)}};
  const int64_t count = t.entry.rows * t.entry.cols;
  t.w = ops_random(f, count, 1.0), t.gradient = ops_random(f, count, 2.0), t.momentum = ops_random(f, count, 1.0);
  t.u = ops_random(f, t.entry.rows, 1.0);
  t.entry.w = ops_put(f, t.w, count, SPT_F32);
  t.entry.gradient = ops_put(f, t.gradient, count, SPT_F32);
  t.entry.momentum = ops_put(f, t.momentum, count, SPT_F32);
  t.entry.u = ops_put(f, t.u, t.entry.rows, SPT_F32);
  t.entry.sigma = ops_poison(f, 1, SPT_F32);
  t.entry.x = ops_poison(f, count, f->act);
  return t;
}

static void factor_body(ops_fixture *f) {
  enum { MOST = 6 };
  const spt_ops *ops = f->backend->ops;
  factor_test t[MOST];
  spt_factor_entry entries[MOST];
  const bool normalize = ops_draw(f, 0, 1), renormalize = ops_draw(f, 0, 1);
  const int count_of = renormalize ? MOST : (int)ops_draw(f, 1, MOST); // pairs, or any number of matrices
  for (int i = 0; i < count_of; i++) t[i] = make_factor(f), entries[i] = t[i].entry;
  const float beta = 0.9f, clip = 0.25f, lr = 0.02f, decay = 0.1f;
  const int steps = (int)ops_draw(f, 1, 3);
  const spt_control *const skip = control_of(f, clip, 0.0f), *const go = control_of(f, clip, 1.0f);
  OPS_OK(ops->factor_momentum(f->backend, count_of, entries, beta, normalize, f->act, skip)); // nothing happens
  OPS_OK(ops->factor_momentum(f->backend, count_of, entries, beta, normalize, f->act, go));
  OPS_OK(ops->power_iteration(f->backend, count_of, entries, steps, skip));
  OPS_OK(ops->power_iteration(f->backend, count_of, entries, steps, go));
  double sigma[MOST], *x[MOST];
  for (int i = 0; i < count_of; i++) {
    const int64_t rows = entries[i].rows, cols = entries[i].cols, count = rows * cols;
    double norm = 0.0, *want_x = ops_zeros(f, count);
    for (int64_t k = 0; k < count; k++) {
      t[i].momentum[k] = (double)beta * t[i].momentum[k] + (1.0 - (double)beta) * (double)clip * t[i].gradient[k];
      norm += t[i].momentum[k] * t[i].momentum[k];
    }
    for (int64_t k = 0; k < count; k++)
      want_x[k] = normalize ? t[i].momentum[k] / (sqrt(norm) + 1e-7) : t[i].momentum[k];
    ops_check(f, "momentum", ops_get(f, entries[i].momentum, count, SPT_F32), t[i].momentum, count, SPT_F32, 0.1);
    x[i] = ops_get(f, entries[i].x, count, f->act);
    ops_check(f, "x", x[i], want_x, count, f->act, 0.5);
    sigma[i] = ref_power_iteration(rows, cols, t[i].w, steps, t[i].u);
    ops_check(f, "sigma", ops_get(f, entries[i].sigma, 1, SPT_F32), &sigma[i], 1, SPT_F32, 1.0);
    ops_check(f, "u", ops_get(f, entries[i].u, rows, SPT_F32), t[i].u, rows, SPT_F32, 2.0);
  }
  OPS_OK(ops->factor_update(f->backend, count_of, entries, lr, decay, renormalize, f->act, skip));
  OPS_OK(ops->factor_update(f->backend, count_of, entries, lr, decay, renormalize, f->act, go));
  for (int i = 0; i < count_of; i++) {
    const int64_t count = entries[i].rows * entries[i].cols;
    const double rho = renormalize ? (double)lr / (sigma[i & ~1] + sigma[i | 1] + 1.0) : (double)lr;
    for (int64_t k = 0; k < count; k++) t[i].w[k] = (1.0 - (double)lr * (double)decay) * t[i].w[k] - rho * x[i][k];
    ops_check(f, "w", ops_get(f, entries[i].w, count, SPT_F32), t[i].w, count, SPT_F32, 0.1);
  }
}

/* A zero w gives sigma 0 and leaves u; without x only momentum is written. */
static void zero_body(ops_fixture *f) {
  factor_test t = make_factor(f);
  spt_factor_entry entry = t.entry;
  const spt_control *const go = control_of(f, 1.0f, 1.0f);
  OPS_OK(f->backend->ops->zero(f->backend, entry.w, (size_t)(entry.rows * entry.cols) * sizeof(float)));
  OPS_OK(f->backend->ops->power_iteration(f->backend, 1, &entry, 2, go));
  assert_true(ops_get(f, entry.sigma, 1, SPT_F32)[0] == 0.0);
  const double *u = ops_get(f, entry.u, entry.rows, SPT_F32);
  for (int64_t i = 0; i < entry.rows; i++) assert_true(u[i] == t.u[i]);
  entry.x = NULL;
  OPS_OK(f->backend->ops->factor_momentum(f->backend, 1, &entry, 0.5f, true, f->act, go));
  const double *momentum = ops_get(f, entry.momentum, entry.rows * entry.cols, SPT_F32);
  for (int64_t i = 0; i < entry.rows * entry.cols; i++) t.momentum[i] = 0.5 * t.momentum[i] + 0.5 * t.gradient[i];
  ops_check(f, "momentum without x", momentum, t.momentum, entry.rows * entry.cols, SPT_F32, 0.1);
}

static void adamw_body(ops_fixture *f) {
  const int64_t count = ops_draw(f, 1, 150000), step = ops_draw(f, 1, 2000);
  double *w = ops_random(f, count, 1.0), *g = ops_random(f, count, 1.0), *m = ops_random(f, count, 0.1),
         *v = ops_random(f, count, 0.3);
  for (int64_t i = 0; i < count; i++) v[i] *= v[i];
  float *device_w = ops_put(f, w, count, SPT_F32), *device_m = ops_put(f, m, count, SPT_F32),
        *device_v = ops_put(f, v, count, SPT_F32);
  const float *device_g = ops_put(f, g, count, SPT_F32), lr = 1e-2f, decay = 0.1f, beta1 = 0.9f, beta2 = 0.95f,
              eps = 1e-8f;
  const bool counted = ops_draw(f, 0, 1) == 1; // the count of updates is the control's
  const spt_control *const skip = control_of(f, 0.5f, 0.0f),
                           *const go = ops_put_control(f, (spt_control){.clip = 0.5f, .apply = 1.0f, .applied = counted ? step : 77});
  const int64_t given = counted ? 0 : step;
  OPS_OK(f->backend->ops->adamw(f->backend, count, device_w, device_g, device_m, device_v, lr, decay, beta1, beta2, eps,
                                given, skip));
  OPS_OK(f->backend->ops->adamw(f->backend, count, device_w, device_g, device_m, device_v, lr, decay, beta1, beta2, eps,
                                given, go));
  ref_adamw(count, w, g, m, v, (double)lr, (double)decay, (double)beta1, (double)beta2, (double)eps, step, 0.5);
  ops_check(f, "w", ops_get(f, device_w, count, SPT_F32), w, count, SPT_F32, 0.5);
  ops_check(f, "m", ops_get(f, device_m, count, SPT_F32), m, count, SPT_F32, 0.5);
  ops_check(f, "v", ops_get(f, device_v, count, SPT_F32), v, count, SPT_F32, 0.5);
}

static void test_batched_gemm(void **state) {
  (void)state;
  ops_run("batched gemm", gemm_body, 12);
  ops_run("batched gemm with an operand added", gemm_apart_body, 8);
}
static void test_stats(void **state) {
  (void)state;
  ops_run("gradient stats", stats_body, 4);
  ops_run("add", add_body, 4);
  ops_run("round to bf16", round_body, 4);
  ops_run("sum", sum_body, 4);
  ops_run("decide", decide_body, 2);
}
static void test_factors(void **state) {
  (void)state;
  ops_run("factors", factor_body, 6);
  ops_run("zero factor", zero_body, 2);
}
static void test_adamw(void **state) {
  (void)state;
  ops_run("adamw", adamw_body, 5);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_batched_gemm), cmocka_unit_test(test_stats),
                                     cmocka_unit_test(test_factors), cmocka_unit_test(test_adamw)};
  static const char *const kernels[] = {"batch_kernel",      "sum_kernel",        "stats_kernel",        "stats_end_kernel",
                                        "momentum_kernel",   "(normalize_kernel<T>)", "power_begin_kernel", "power_left_kernel",
                                        "power_middle_kernel", "power_right_kernel", "power_end_kernel",   "(update_kernel<T>)",
                                        "adamw_kernel",      "(convert_kernel<T>)", "add_sum_kernel",    "decide_kernel"};
  return OPS_MAIN(tests, kernels);
}
