#include "unit_test.h"

#include "core/flops_match.h"

#include <math.h>

static spt_config config;

static spt_params *open_preset(const char *name, spt_parameterization parameterization, spt_method method) {
  spt_config_defaults(&config);
  assert_ok(spt_config_apply_preset(name, &config.model));
  config.model.parameterization = parameterization;
  config.optimizer.method = method;
  config.schedule.steps = 1;
  assert_ok(spt_config_complete(&config));
  spt_params *params;
  assert_ok(spt_params_open(&config.model, &params));
  return params;
}

/* S, by hand. r = 192 but for down_proj, 512. Factors of a layer: 4·192·(768 + 768) + 2·192·(2048 + 768) + 512·(768 +
 * 2048) = 3,702,784; of 12 layers 44,433,408. */
static void low_rank_s_by_hand(void **state) {
  (void)state;
  spt_params *params = open_preset("S", SPT_LOW_RANK, SPT_METHOD_SPECTRON);
  spt_flops flops;
  spt_flops_count(&config.model, &config.optimizer, params, &flops);
  assert_true(flops.matrices_forward == 88866816.0);  // 2 · 44,433,408
  assert_true(flops.attention_forward == 37767168.0); // 12 · 2·2 · 768 · 2049/2
  assert_true(flops.head_forward == 49152000.0);      // 2 · 768 · 32000
  assert_true(flops.train_per_token == 527357952.0);
  assert_true(flops.six_nd_per_token == 561627648.0); // 6 · 93,604,608
  const double q = spt_flops_pair(&config.optimizer, &params->pairs[SPT_Q]);
  const double up = spt_flops_pair(&config.optimizer, &params->pairs[SPT_UP]);
  const double down = spt_flops_pair(&config.optimizer, &params->pairs[SPT_DOWN]);
  assert_true(q == 1274019840.0);     // 20 · 192² · (768 + 768 + 192)
  assert_true(up == 2217738240.0);    // 20 · 192² · (2048 + 768 + 192)
  assert_true(down == 17448304640.0); // 20 · 512² · (768 + 2048 + 512)
  // 12 layers of Newton–Schulz, 13 per factor element (momentum, norm, power iteration, update), 14 per other element
  // (AdamW)
  assert_true(flops.optimizer_step == 12 * (4 * q + 2 * up + down) + 13 * 44433408.0 + 14 * (93604608.0 - 44433408.0));
  spt_params_close(&params);
}

static void dense_s_by_hand(void **state) {
  (void)state;
  spt_params *params = open_preset("S", SPT_DENSE, SPT_METHOD_ADAMW);
  spt_flops flops;
  spt_flops_count(&config.model, &config.optimizer, params, &flops);
  assert_true(flops.matrices_forward == 2 * 12 * (4 * 768.0 * 768 + 3 * 2048.0 * 768));
  assert_true(flops.train_per_token == 3 * (flops.matrices_forward + 37767168.0 + 49152000.0));
  assert_true(flops.six_nd_per_token == 6 * 134105856.0);
  assert_true(flops.optimizer_step == 14 * 134105856.0);
  spt_params_close(&params);
}

/* Dense matrices by Muon: 5 iterations of 2·s²·(2·l + s) each, 9 per element (momentum, norm, update; no power iteration, with Spectron neither);
 * 14 per other element. */
static void dense_s_by_muon(void **state) {
  (void)state;
  for (int i = 0; i < 2; i++) {
    spt_params *params = open_preset("S", SPT_DENSE, i ? SPT_METHOD_SPECTRON : SPT_METHOD_MUON);
    spt_flops flops;
    spt_flops_count(&config.model, &config.optimizer, params, &flops);
    const double square = 10 * 768.0 * 768 * (3 * 768), wide = 10 * 768.0 * 768 * (2 * 2048 + 768),
                 matrices = 12 * (4 * 768.0 * 768 + 3 * 2048.0 * 768);
    assert_true(spt_flops_pair(&config.optimizer, &params->pairs[SPT_O]) == square);
    assert_true(spt_flops_pair(&config.optimizer, &params->pairs[SPT_UP]) == wide);
    assert_true(spt_flops_pair(&config.optimizer, &params->pairs[SPT_DOWN]) == wide);
    assert_true(flops.optimizer_step == 12 * (4 * square + 3 * wide) + 9 * matrices + 14 * (134105856.0 - matrices));
    spt_params_close(&params);
  }
}

/* The paper's equal-FLOPs steps of S, M, L (App. E.3), and by exact counts. */
static void paper_steps(void **state) {
  (void)state;
  const struct {
    const char *preset;
    int64_t dense, nominal, six_nd;
    double millions;
  } cases[] = {{"S", 1786, 2556, 2559, 134}, {"M", 5664, 9537, 9314, 500}, {"L", 8657, 14878, 14837, 780}};
  static spt_config dense, low;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    int64_t steps[3];
    spt_params *params = open_preset(cases[i].preset, SPT_DENSE, SPT_METHOD_MUON);
    spt_params_close(&params);
    dense = config;
    dense.schedule.steps = cases[i].dense;
    assert_ok(spt_config_complete(&dense));
    params = open_preset(cases[i].preset, SPT_LOW_RANK, SPT_METHOD_SPECTRON);
    low = config;
    low.schedule.steps = 1;
    assert_ok(spt_config_complete(&low));
    assert_ok(spt_flops_match(&dense, &low, steps));
    assert_int_equal(steps[SPT_MATCH_NOMINAL], cases[i].nominal);
    assert_int_equal(steps[SPT_MATCH_SIX_ND], cases[i].six_nd);
    // nearest by all FLOPs
    spt_flops flops[2];
    spt_flops_count(&low.model, &low.optimizer, params, &flops[0]);
    assert_true(spt_nominal_parameters(&low.model, params) == (double)params->count);
    spt_params_close(&params);
    assert_ok(spt_params_open(&dense.model, &params));
    spt_flops_count(&dense.model, &dense.optimizer, params, &flops[1]);
    assert_true(spt_nominal_parameters(&dense.model, params) == cases[i].millions * 1e6);
    const double target = spt_flops_run(&dense, &flops[1], cases[i].dense), step = spt_flops_run(&low, &flops[0], 1);
    assert_true(fabs((double)steps[SPT_MATCH_EXACT] * step - target) <= 0.5 * step);
    spt_params_close(&params);
  }
}

/* The parts are the whole, and the matrices' kinds all matrices. */
static void parts_add_up(void **state) {
  (void)state;
  for (spt_method method = SPT_METHOD_SPECTRON; method <= SPT_METHOD_ADAMW; method++) {
    for (spt_parameterization p = SPT_LOW_RANK; p <= SPT_DENSE; p++) {
      spt_params *params = open_preset("92M", p, method);
      spt_flops flops;
      spt_flops_count(&config.model, &config.optimizer, params, &flops);
      double matrices = 0;
      for (int i = 0; i < SPT_MATRICES; i++) matrices += flops.matrix_forward[i];
      assert_true(matrices == flops.matrices_forward);
      assert_true(fabs(flops.newton_schulz + flops.power_iteration + flops.pair_elements + flops.adamw - flops.optimizer_step) <=
                  1e-12 * flops.optimizer_step);
      assert_true((flops.newton_schulz > 0) == (method == SPT_METHOD_SPECTRON || method == SPT_METHOD_MUON));
      assert_true((flops.power_iteration > 0) ==
                  (p != SPT_DENSE && (method == SPT_METHOD_SPECTRON || method == SPT_METHOD_RENORM)));
      spt_params_close(&params);
    }
  }
}

/* What each method leaves out, and that Newton–Schulz is proportional to its steps. */
static void methods(void **state) {
  (void)state;
  double step[SPT_METHOD_ADAMW + 1], pair[SPT_METHOD_ADAMW + 1];
  for (spt_method method = SPT_METHOD_SPECTRON; method <= SPT_METHOD_ADAMW; method++) {
    spt_params *params = open_preset("60M", SPT_LOW_RANK_FFN, method);
    spt_flops flops;
    spt_flops_count(&config.model, &config.optimizer, params, &flops);
    step[method] = flops.optimizer_step;
    pair[method] = spt_flops_pair(&config.optimizer, &params->pairs[SPT_GATE]);
    config.optimizer.newton_schulz_steps = 10;
    const double twice = spt_flops_pair(&config.optimizer, &params->pairs[SPT_GATE]);
    const bool orthogonal = method == SPT_METHOD_SPECTRON || method == SPT_METHOD_MUON;
    assert_true(twice == (orthogonal ? 2 : 1) * pair[method]);
    assert_int_equal(params->pair_count, 7 * 8); // four dense matrices a layer among them
    assert_int_equal(spt_params_factor_pairs(params), 3 * 8);
    spt_params_close(&params);
  }
  assert_true(step[SPT_METHOD_SPECTRON] > step[SPT_METHOD_MUON]);
  assert_true(step[SPT_METHOD_MUON] > step[SPT_METHOD_RENORM]);
  assert_true(step[SPT_METHOD_RENORM] > step[SPT_METHOD_SGD]);
  assert_true(pair[SPT_METHOD_SPECTRON] == pair[SPT_METHOD_MUON]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(low_rank_s_by_hand),
      cmocka_unit_test(dense_s_by_hand),
      cmocka_unit_test(dense_s_by_muon),
      cmocka_unit_test(methods),
      cmocka_unit_test(parts_add_up),
      cmocka_unit_test(paper_steps),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
