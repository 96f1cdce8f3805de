/* exp and bf16 rounding beneath the CPU's kernels. */
#include "ops_fixture.h"

#include "vector_math.h"

#include <math.h>

static void test_exp(void **state) {
  (void)state;
  double worst = 0.0;
  for (int64_t i = 0; i <= 2000000; i++) {
    const float x = (float)(-87.2 + 175.8 * (double)i / 2e6);
    const double want = exp((double)x), got = (double)spt_exp(x);
    worst = fmax(worst, fabs(got / want - 1.0));
  }
  print_message("exp: largest relative error %.2g\n", worst);
  assert_true(worst < 2e-7);
  assert_true(spt_exp(0.0f) == 1.0f && spt_exp(-INFINITY) == 0.0f && spt_exp(-1e4f) == 0.0f &&
              isinf(spt_exp(INFINITY)) && isnan(spt_exp(NAN)));
}

/* Against rounding by exact arithmetic, over every exponent. */
static void test_bf16(void **state) {
  (void)state;
  ops_fixture f = {.seed = ops_seed()};
  for (int i = 0; i < 300000; i++) {
    const uint32_t bits = (uint32_t)ops_draw(&f, 0, 0xFFFFFFFF);
    const float x = spt_bits_to_float(i & 1 ? bits : (bits & 0xFFFF0000u) | 0x8000u),
                got = spt_from_bf16(spt_to_bf16(x)); // every second one a tie
    if (isnan(x)) {
      assert_true(isnan(got));
      continue;
    }
    const float below = spt_bits_to_float(spt_float_to_bits(x) & 0xFFFF0000u),
                above = spt_bits_to_float((spt_float_to_bits(x) & 0xFFFF0000u) + 0x10000u);
    if (isinf(x) || below == x) {
      assert_true(got == x);
      continue;
    }
    const double down = fabs((double)x - (double)below),
                 up = isinf(above) ? fabs(ldexp(1.0, 128) - fabs((double)x)) : fabs((double)above - (double)x);
    const float want = down < up ? below : (up < down ? above : (spt_float_to_bits(below) & 0x10000u ? above : below));
    assert_true(got == want);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_exp), cmocka_unit_test(test_bf16)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
