#include "unit_test.h"

#include "core/decimal.h"
#include "core/schedule.h"

#include <math.h>

static uint64_t seed;

static void assert_near(double a, double b) {
  if (!(fabs(a - b) <= 1e-14)) fail_msg("%.17g is not %.17g", a, b);
}

static void hand_computed_factors(void **state) {
  (void)state;
  const double half = 0.5, c1 = 0.5 * (1 + cos(3.14159265358979323846 / 4));
  const struct {
    spt_schedule_kind kind;
    int64_t steps;
    double warmup, final;
    int64_t t;
    double factor;
  } cases[] = {
      // 10 steps, 0.2: w = 2; t = 2 … 9 is progress 0, 1/8 … 7/8
      {SPT_SCHEDULE_COSINE, 10, 0.2, 0, 0, 0.5},
      {SPT_SCHEDULE_COSINE, 10, 0.2, 0, 1, 1},
      {SPT_SCHEDULE_COSINE, 10, 0.2, 0, 2, 1},
      {SPT_SCHEDULE_COSINE, 10, 0.2, 0, 4, c1},
      {SPT_SCHEDULE_COSINE, 10, 0.2, 0, 6, half},
      {SPT_SCHEDULE_COSINE, 10, 0.2, 0.1, 6, 0.1 + 0.9 * half},
      {SPT_SCHEDULE_LINEAR, 10, 0.2, 0, 1, 1},
      {SPT_SCHEDULE_LINEAR, 10, 0.2, 0, 4, 0.75},
      {SPT_SCHEDULE_LINEAR, 10, 0.2, 0.5, 9, 1 - 0.5 * 7 / 8},
      {SPT_SCHEDULE_CONSTANT, 10, 0.2, 0, 0, 0.5},
      {SPT_SCHEDULE_CONSTANT, 10, 0.2, 0, 9, 1},
      {SPT_SCHEDULE_COSINE, 10, 0, 0, 0, 1},    // no warm-up
      {SPT_SCHEDULE_COSINE, 10, 1, 0, 9, 1},    // nothing else
      {SPT_SCHEDULE_LINEAR, 10, 0.21, 0, 2, 1}, // w = ⌈2.1⌉ = 3: the peak is reached at t = 2
      {SPT_SCHEDULE_LINEAR, 10, 0.21, 0, 0, 1.0 / 3},
      {SPT_SCHEDULE_LINEAR, 100, 0.07, 0, 6, 1}, // w = 7 exactly, though 0.07 · 100 > 7 in doubles
      {SPT_SCHEDULE_LINEAR, 100, 0.07, 0, 0, 1.0 / 7},
      {SPT_SCHEDULE_COSINE, 1, 0.05, 0, 0, 1},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const spt_schedule_config schedule = {
        .kind = cases[i].kind, .steps = cases[i].steps, .warmup = cases[i].warmup, .final = cases[i].final};
    assert_near(spt_schedule_factor(&schedule, cases[i].t), cases[i].factor);
  }
}

/* Rises to exactly 1, then never rises; ends one step before `final` would be reached. */
static void shape_of_random_schedules(void **state) {
  (void)state;
  for (uint64_t round = 0; round < 200; round++) {
    const uint64_t bits = spt_random_bits(seed, 1, round);
    const spt_schedule_config schedule = {.kind = (spt_schedule_kind)(bits % 3),
                                          .steps = 1 + (int64_t)(bits >> 8) % 400,
                                          .warmup = (double)(bits >> 20 & 127) / 128,
                                          .final = (double)(bits >> 30 & 63) / 64};
    const int64_t w = spt_decimal_product(schedule.warmup, schedule.steps, true);
    assert_true(w == (int64_t)ceil(schedule.warmup * (double)schedule.steps)); // binary fractions are exact
    double last = 0;
    for (int64_t t = 0; t < schedule.steps; t++) {
      const double factor = spt_schedule_factor(&schedule, t);
      if (t < w) {
        assert_near(factor, (double)(t + 1) / (double)w);
        assert_true(factor > last);
      } else {
        assert_true(factor <= (t == w ? 1 : last));
        assert_true(factor >= schedule.final - 1e-15);
        if (t == w) assert_near(factor, 1);
      }
      last = factor;
    }
  }
}

static void decimals_are_exact(void **state) {
  (void)state;
  // k/1000 as it is written, times n, against integer arithmetic.
  for (uint64_t round = 0; round < 20000; round++) {
    const uint64_t bits = spt_random_bits(seed, 2, round);
    const int64_t k = (int64_t)(bits % 1001), n = (int64_t)(bits >> 16) % 100000;
    char text[32];
    snprintf(text, sizeof text, "%d.%03d", (int)(k / 1000), (int)(k % 1000));
    const double fraction = strtod(text, NULL);
    assert_int_equal(spt_decimal_product(fraction, n, false), k * n / 1000);
    assert_int_equal(spt_decimal_product(fraction, n, true), (k * n + 999) / 1000);
  }
  assert_int_equal(spt_decimal_product(1e-300, INT64_C(1) << 53, false), 0);
  assert_int_equal(spt_decimal_product(1e-300, INT64_C(1) << 53, true), 1);
  assert_int_equal(spt_decimal_product(1e-10, 20000000000, false), 2);
  assert_int_equal(spt_decimal_product(0, 5, true), 0);
  assert_int_equal(spt_decimal_product(1, INT64_C(1) << 53, false), INT64_C(1) << 53);
  assert_int_equal(spt_decimal_product(0.12345678901234567, 100, true), 13);
}

static void shortest_decimal_reads_back(void **state) {
  (void)state;
  char text[32];
  for (uint64_t round = 0; round < 20000; round++) {
    const uint64_t bits = spt_random_bits(seed, 3, round);
    double value;
    memcpy(&value, &bits, sizeof value);
    if (!isfinite(value)) continue;
    spt_shortest_decimal(value, text);
    const double back = strtod(text, NULL);
    assert_memory_equal(&back, &value, sizeof value);
  }
  spt_shortest_decimal(0.1, text);
  assert_string_equal(text, "0.1");
  spt_shortest_decimal(1.0 / 3, text);
  assert_string_equal(text, "0.3333333333333333");
}

int main(void) {
  seed = unit_test_seed("test_schedule");
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(hand_computed_factors),
      cmocka_unit_test(shape_of_random_schedules),
      cmocka_unit_test(decimals_are_exact),
      cmocka_unit_test(shortest_decimal_reads_back),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
