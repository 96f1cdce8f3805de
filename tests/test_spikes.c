/* Loss spikes: the z-score against its definition, what counts as one spike, and a window rebuilt from what was recorded. */
#include "unit_test.h"

#include "core/spikes.h"

#include <math.h>

static uint64_t seed;

static double draw(uint64_t stream, uint64_t index) {
  double value;
  float normal;
  spt_random_normal(seed, stream, (int64_t)index, 1, 1.0, &normal);
  value = 4 + 0.1 * (double)normal;
  return value;
}

/* The k-th smallest of values by counting, ties by place: no sorting, so that it is another definition. */
static double kth(const double *values, int count, int k) {
  for (int i = 0; i < count; i++) {
    int below = 0;
    for (int j = 0; j < count; j++) below += values[j] < values[i] || (values[j] == values[i] && j < i);
    if (below == k) return values[i];
  }
  return NAN;
}

static double middle(const double *values, int count) {
  return 0.5 * kth(values, count, (count - 1) / 2) + 0.5 * kth(values, count, count / 2);
}

static double reference(const double *window, int count, double loss) {
  double away[SPT_SPIKE_WINDOW];
  const double median = middle(window, count);
  for (int i = 0; i < count; i++) away[i] = fabs(window[i] - median);
  return (loss - median) / (1.4826 * middle(away, count));
}

static void z_is_as_defined(void **state) {
  (void)state;
  double all[400];
  spt_spikes spikes = {0};
  int finite = 0;
  for (int i = 0; i < 300; i++) {
    const double loss = i % 13 == 5 ? (double)NAN : i % 17 == 3 ? (double)INFINITY : draw(1, (uint64_t)i);
    const double wanted_of = draw(2, (uint64_t)i), found = spt_spikes_z(&spikes, wanted_of);
    const int count = finite < SPT_SPIKE_WINDOW ? finite : SPT_SPIKE_WINDOW;
    if (count < SPT_SPIKE_LEAST) {
      assert_true(isnan(found));
    } else {
      const double wanted = reference(all + finite - count, count, wanted_of);
      if (fabs(found - wanted) > 1e-12 * (1 + fabs(wanted))) fail_msg("after %d losses z %.17g, wanted %.17g", finite, found, wanted);
    }
    assert_true(isnan(spt_spikes_z(&spikes, NAN)) && isnan(spt_spikes_z(&spikes, INFINITY)));
    spt_spikes_add(&spikes, loss);
    if (isfinite(loss)) all[finite++] = loss;
  }
}

/* A spike's own losses do not hide it, and after half a window the new level is the usual one. */
static void robust_against_the_spike_itself(void **state) {
  (void)state;
  spt_spikes spikes = {0};
  for (int i = 0; i < SPT_SPIKE_WINDOW; i++) spt_spikes_add(&spikes, draw(3, (uint64_t)i));
  for (int i = 0; i < 50; i++) {
    assert_true(spt_spikes_z(&spikes, 9) > 7);
    spt_spikes_add(&spikes, 9);
  }
  for (int i = 0; i < 78; i++) spt_spikes_add(&spikes, 9 + 0.01 * (i % 7));
  assert_true(spt_spikes_z(&spikes, 9) < 7);
}

static void equal_losses(void **state) {
  (void)state;
  spt_spikes spikes = {0};
  for (int i = 0; i < 40; i++) spt_spikes_add(&spikes, 2);
  assert_true(spt_spikes_z(&spikes, 2) == 0);
  const double z = spt_spikes_z(&spikes, 2.0002); // 1e-4 of 2, in deviations of 1e-6
  assert_true(fabs(z - 100) < 1e-6);
}

static void one_spike_is_counted_once(void **state) {
  (void)state;
  static const struct {
    double z;
    bool begins;
    int64_t count;
  } steps[] = {{NAN, false, 0}, {6.9, false, 0}, {7, true, 1},    {20, false, 1}, {NAN, false, 1}, {8, false, 1},
               {-3, false, 1},  {8, true, 2},    {6.9, false, 2}, {INFINITY, true, 3}};
  spt_spikes spikes = {0};
  for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
    assert_int_equal(spt_spikes_judge(&spikes, steps[i].z, 7), steps[i].begins);
    assert_int_equal(spikes.count, steps[i].count);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(z_is_as_defined),
      cmocka_unit_test(robust_against_the_spike_itself),
      cmocka_unit_test(equal_losses),
      cmocka_unit_test(one_spike_is_counted_once),
  };
  seed = unit_test_seed("test_spikes");
  return cmocka_run_group_tests(tests, NULL, NULL);
}
