#include "unit_test.h"

#include <math.h>

static uint64_t seed;

/* Known answers of Philox4x32-10 from Random123's kat_vectors. */
static void philox_known_answers(void **state) {
  (void)state;
  const struct {
    uint64_t seed, stream, counter;
    uint32_t out[4];
  } cases[] = {
      {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {UINT64_MAX, UINT64_MAX, UINT64_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      // counter words 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0
      {0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    uint32_t out[4];
    spt_philox(cases[i].seed, cases[i].stream, cases[i].counter, out);
    assert_memory_equal(out, cases[i].out, sizeof out);
  }
}

static void bits_are_the_blocks(void **state) {
  (void)state;
  for (uint64_t i = 0; i < 100; i++) {
    uint32_t word[4];
    spt_philox(seed, 7, i / 2, word);
    const uint64_t expected = (uint64_t)word[i % 2 * 2] << 32 | word[i % 2 * 2 + 1];
    assert_true(spt_random_bits(seed, 7, i) == expected);
  }
}

/* Any cut of a range gives the same numbers: nothing depends on who makes which part. */
static void normal_does_not_depend_on_cuts(void **state) {
  (void)state;
  enum { COUNT = 1000 };
  float whole[COUNT], parts[COUNT];
  const int64_t begin = (int64_t)(seed % 1000003) + (INT64_C(1) << 33);
  spt_random_normal(seed, 3, begin, COUNT, 0.02, whole);
  for (int64_t at = 0, i = 0; at < COUNT; i++) {
    int64_t length = (int64_t)(spt_random_bits(seed, 4, (uint64_t)i) % 13);
    if (length > COUNT - at) length = COUNT - at;
    spt_random_normal(seed, 3, begin + at, length, 0.02, parts + at);
    at += length;
  }
  assert_memory_equal(whole, parts, sizeof whole);
}

static void normal_has_its_moments(void **state) {
  (void)state;
  enum { COUNT = 200000 };
  float *x = malloc(COUNT * sizeof *x);
  assert_non_null(x);
  spt_random_normal(seed, 11, 0, COUNT, 2.0, x);
  double sum = 0, square = 0, fourth = 0, neighbour = 0;
  int64_t inside = 0;
  for (int64_t i = 0; i < COUNT; i++) {
    const double z = x[i] / 2.0;
    assert_true(isfinite(z));
    sum += z;
    square += z * z;
    fourth += z * z * z * z;
    neighbour += i ? z * x[i - 1] / 2.0 : 0;
    inside += fabs(z) < 1;
  }
  free(x);
  // Bounds of six standard errors: 1/√n for the mean, √2 for the variance, √96 for the fourth moment.
  const double error = 6 / sqrt(COUNT);
  assert_true(fabs(sum / COUNT) < error);
  assert_true(fabs(square / COUNT - 1) < sqrt(2) * error);
  assert_true(fabs(fourth / COUNT - 3) < sqrt(96) * error);
  assert_true(fabs(neighbour / COUNT) < error);
  assert_true(fabs((double)inside / COUNT - 0.682689492) < 0.4655 * error);
}

static void streams_differ(void **state) {
  (void)state;
  assert_true(spt_stream_of("") == UINT64_C(0xcbf29ce484222325)); // FNV-1a 64 known answers
  assert_true(spt_stream_of("a") == UINT64_C(0xaf63dc4c8601ec8c));
  assert_true(spt_stream_of("foobar") == UINT64_C(0x85944171f73967e8));
  float base[8], other[8];
  spt_random_normal(seed, spt_stream_of("a"), 0, 8, 1, base);
  spt_random_normal(seed, spt_stream_of("b"), 0, 8, 1, other);
  assert_memory_not_equal(base, other, sizeof base);
  spt_random_normal(seed + 1, spt_stream_of("a"), 0, 8, 1, other);
  assert_memory_not_equal(base, other, sizeof base);
  spt_random_normal(seed, spt_stream_of("a"), 8, 8, 1, other);
  assert_memory_not_equal(base, other, sizeof base);
}

int main(void) {
  seed = unit_test_seed("test_rng");
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(philox_known_answers),
      cmocka_unit_test(bits_are_the_blocks),
      cmocka_unit_test(normal_does_not_depend_on_cuts),
      cmocka_unit_test(normal_has_its_moments),
      cmocka_unit_test(streams_differ),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
