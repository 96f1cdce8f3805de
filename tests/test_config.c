#include "unit_test.h"

#include "core/config_keys.h"

#include <math.h>

static uint64_t seed;

/* A configuration that is complete and passes; fields are spoilt one at a time. */
static spt_config good(void) {
  spt_config config;
  spt_config_defaults(&config);
  assert_ok(spt_config_apply_preset("S", &config.model));
  config.schedule.steps = 100;
  assert_ok(spt_config_complete(&config));
  return config;
}

static void presets_are_the_designs(void **state) {
  (void)state;
  const struct {
    const char *name;
    int64_t hidden, layers, heads, ffn;
  } rows[] = {
      {"60M", 512, 8, 8, 1536},     {"92M", 640, 10, 10, 1792},   {"134M", 768, 12, 12, 2048},
      {"150M", 768, 14, 12, 2048},  {"220M", 896, 16, 14, 2560},  {"325M", 1024, 20, 16, 2816},
      {"500M", 1280, 20, 20, 3584}, {"780M", 1536, 24, 24, 4096}, {"835M", 1536, 26, 24, 4096},
      {"1.4B", 2048, 24, 16, 5632}, {"1.7B", 2048, 30, 16, 5632}, {"2.7B", 2560, 32, 20, 6912},
      {"S", 768, 12, 12, 2048},     {"M", 1280, 20, 20, 3584},    {"L", 1536, 24, 24, 4096},
  };
  int count;
  const spt_preset *presets = spt_presets(&count);
  assert_int_equal(count, 12);
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    if (i < 12) assert_string_equal(presets[i].name, rows[i].name);
    spt_config config;
    spt_config_defaults(&config);
    assert_ok(spt_config_apply_preset(rows[i].name, &config.model));
    config.schedule.steps = 1;
    assert_ok(spt_config_complete(&config));
    assert_string_equal(config.model.preset, rows[i].name);
    assert_int_equal(config.model.hidden, rows[i].hidden);
    assert_int_equal(config.model.layers, rows[i].layers);
    assert_int_equal(config.model.heads, rows[i].heads);
    assert_int_equal(config.model.kv_heads, rows[i].heads);
    assert_int_equal(config.model.ffn, rows[i].ffn);
    assert_int_equal(config.model.vocab, 32000);
    assert_int_equal(config.model.seq_len, 2048);
  }
  spt_model_config model = {0};
  assert_fails(SPT_ERR_USAGE, spt_config_apply_preset("1B", &model), "[model] preset = \"1B\"", "60M", "134M or S",
               "2.7B");
  assert_int_equal(model.hidden, 0);
}

static void defaults_are_the_papers(void **state) {
  (void)state;
  spt_config config;
  memset(&config, 0xA5, sizeof config);
  spt_config_defaults(&config);
  assert_int_equal(config.model.parameterization, SPT_LOW_RANK);
  assert_true(config.model.rank_ratio == 0.25);
  assert_int_equal(config.batch.sequences * config.model.seq_len, 512 * 2048);
  assert_int_equal(config.schedule.kind, SPT_SCHEDULE_COSINE);
  assert_true(config.schedule.warmup == 0.05 && config.schedule.final == 0);
  assert_int_equal(config.optimizer.method, SPT_METHOD_SPECTRON);
  assert_true(config.optimizer.momentum == 0.95 && config.optimizer.grad_clip == 0);
  assert_int_equal(config.optimizer.newton_schulz_steps, 5);
  assert_int_equal(config.optimizer.power_steps, 1);
  assert_true(config.optimizer.adamw.lr < 0 && config.optimizer.adamw.beta1 == 0.9);
  assert_true(config.optimizer.adamw.beta2 == 0.95 && config.optimizer.adamw.eps == 1e-8);
  assert_true(config.model.rope_theta == 10000 && config.model.norm_eps == 1e-5);
  assert_int_equal(config.validation.tokens, -1);
  config.validation.every = 500, config.batch.sequences = 512, config.model.seq_len = 2048;
  assert_int_equal(spt_config_validation_tokens(&config), 512 * 2048 * 500 / 80);
  config.batch.sequences = 1;
  assert_int_equal(spt_config_validation_tokens(&config), 32768);
  config.batch.sequences = 65536;
  assert_int_equal(spt_config_validation_tokens(&config), 100000000);
  config.validation.every = 1000000, config.schedule.steps = 100, config.batch.sequences = 512;
  assert_int_equal(spt_config_validation_tokens(&config), 512 * 2048 * 100 / 80);
  config.validation.every = 0;
  assert_int_equal(spt_config_validation_tokens(&config), 100000000);
  config.validation.tokens = 0;
  assert_int_equal(spt_config_validation_tokens(&config), 0);
  spt_config_defaults(&config);
  assert_int_equal(config.checkpoint.keep, 3);
}

static void rank_rule(void **state) {
  (void)state;
  const struct {
    double ratio;
    int64_t m, n, r;
  } cases[] = {
      {0.25, 768, 768, 192}, {0.25, 768, 2048, 512}, {0.4, 768, 2048, 768}, // 819 is clamped to full rank
      {0.4, 768, 768, 307},  {0.29, 100, 100, 29},   {0.57, 1000, 100, 57}, {0.07, 100, 100, 7}, {1, 7, 9, 7},
      {0.001, 10, 10, 1},    {0.9, 3, 1000000, 3},   {0.1, 1000, 30, 3},    {0.3, 1000, 10, 3},  {1e-9, 5, 5, 1},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
    assert_int_equal(spt_factor_rank(cases[i].ratio, cases[i].m, cases[i].n), cases[i].r);
  for (uint64_t round = 0; round < 5000; round++) { // percent as written, against integers
    const uint64_t bits = spt_random_bits(seed, 1, round);
    const int64_t percent = 1 + (int64_t)(bits % 100), m = 1 + (int64_t)(bits >> 8) % 5000,
                  n = 1 + (int64_t)(bits >> 32) % 5000;
    int64_t r = percent * n / 100;
    r = r < m ? r : m;
    r = r < n ? r : n;
    assert_int_equal(spt_factor_rank((double)percent / 100, m, n), r > 1 ? r : 1);
  }
}

/* Every number of the table is refused on both sides of its interval, and NaN, with its name in the message. */
static void every_range_is_checked(void **state) {
  (void)state;
  int count, checked = 0;
  const spt_key *keys = spt_config_keys(&count);
  for (int i = 0; i < count; i++) {
    const spt_key *key = &keys[i];
    char label[64];
    snprintf(label, sizeof label, "[%s] %s", key->table, key->key);
    for (int side = 0; side < 3; side++) {
      spt_config config = good();
      void *place = (char *)&config + key->offset;
      double low = 0, high = 0;
      if (key->type == SPT_KEY_INT || key->type == SPT_KEY_REAL) {
        assert_int_equal(sscanf(key->values + 1, "%lf, %lf", &low, &high), 2);
      }
      const bool derived = key->type == SPT_KEY_INT && low == 1 && side == 0; // 0 may mean "not given": try −1 below
      if (key->type == SPT_KEY_INT && side < 2) {
        *(int64_t *)place = side ? (int64_t)high + 1 : derived ? -1 : (int64_t)low - 1;
      } else if (key->type == SPT_KEY_REAL) {
        *(double *)place = side == 2 ? NAN : side ? nextafter(high, INFINITY) : nextafter(low, -INFINITY);
      } else if (key->type == SPT_KEY_ENUM && side < 2) {
        *(int *)place = side ? 100 : -1;
      } else if (key->type == SPT_KEY_SEED && side == 0) {
        *(uint64_t *)place = UINT64_MAX;
      } else {
        continue;
      }
      assert_fails(SPT_ERR_USAGE, spt_config_complete(&config), label, "must be");
      checked++;
    }
    // Open ends themselves are out.
    if (key->type == SPT_KEY_REAL && strchr("(", key->values[0])) {
      spt_config config = good();
      *(double *)((char *)&config + key->offset) = 0;
      assert_fails(SPT_ERR_USAGE, spt_config_complete(&config), label);
    }
    if (key->type == SPT_KEY_REAL && strchr(key->values, ')')) {
      spt_config config = good();
      *(double *)((char *)&config + key->offset) = 1;
      assert_fails(SPT_ERR_USAGE, spt_config_complete(&config), label);
    }
  }
  assert_true(checked > 80);
}

static void combinations_are_checked(void **state) {
  (void)state;
  spt_config config = good();
  config.model.hidden = 100;
  assert_fails(SPT_ERR_USAGE, spt_config_complete(&config), "[model] hidden = 100: must be a multiple of heads (12)",
               "96");
  config = good();
  config.model.hidden = 12 * 15;
  assert_fails(SPT_ERR_USAGE, spt_config_complete(&config), "[model] heads = 12", "15", "even");
  config = good();
  config.model.kv_heads = 5;
  assert_fails(SPT_ERR_USAGE, spt_config_complete(&config), "[model] kv_heads = 5", "12");
  config = good();
  config.model.kv_heads = 4;
  assert_ok(spt_config_complete(&config));
  for (spt_method method = SPT_METHOD_SPECTRON; method <= SPT_METHOD_ADAMW; method++) {
    config = good();
    config.optimizer.method = method;
    assert_ok(spt_config_complete(&config));
    config.model.parameterization = SPT_DENSE;
    assert_ok(spt_config_complete(&config));
  }
  spt_config_defaults(&config);
  config.schedule.steps = 1;
  assert_fails(SPT_ERR_USAGE, spt_config_complete(&config), "[model] hidden", "missing", "preset", "2.7B");
  config.model.hidden = 64;
  assert_fails(SPT_ERR_USAGE, spt_config_complete(&config), "[model] layers", "missing");
  config = good();
  config.guidance.method = SPT_GUIDANCE_SELF;
  assert_false(config.model.guided);
  assert_ok(spt_config_complete(&config));
  assert_true(config.model.guided);
  config.model.parameterization = SPT_DENSE;
  assert_fails(SPT_ERR_USAGE, spt_config_complete(&config), "[guidance] method = \"self-guided\"", "model.parameterization", "guidance.method");
  config = good();
  strcpy(config.run.name, "a/b");
  assert_fails(SPT_ERR_USAGE, spt_config_complete(&config), "[run] name = \"a/b\"");
  config = good();
  config.run.output[0] = '\0';
  assert_fails(SPT_ERR_USAGE, spt_config_complete(&config), "[run] output");
}

static void steps_from_tokens(void **state) {
  (void)state;
  spt_config config = good();
  const int64_t step_tokens = 512 * 2048;
  config.schedule.steps = 0;
  assert_fails(SPT_ERR_USAGE, spt_config_complete(&config), "[schedule] steps", "missing", "1048576");
  config.schedule.tokens = 10 * step_tokens + 1; // rounded up
  assert_ok(spt_config_complete(&config));
  assert_int_equal(config.schedule.steps, 11);
  assert_ok(spt_config_complete(&config)); // again: nothing changes
  assert_int_equal(config.schedule.steps, 11);
  config.schedule.steps = 12;
  assert_fails(SPT_ERR_USAGE, spt_config_complete(&config), "[schedule] steps = 12", "11 steps");
  config = good();
  config.batch.sequences = 1 << 24;
  config.model.seq_len = 1 << 20;
  config.schedule.steps = 1000000000;
  assert_fails(SPT_ERR_USAGE, spt_config_complete(&config), "[schedule] steps = 1000000000", "exceed");
}

static void ranks_divide_the_batch(void **state) {
  (void)state;
  spt_config config = good();
  assert_ok(spt_config_check_ranks(&config, 64));
  assert_int_equal(config.batch.micro, 1); // 8 sequences a rank, 2048 tokens a pass
  assert_int_equal(spt_config_choose_micro(&config, 64, 4), 1);
  assert_int_equal(spt_config_choose_micro(&config, 64, 8), 2); // 512 tokens a thread
  assert_int_equal(spt_config_choose_micro(&config, 64, 1000), 8);
  config.batch.micro = 3;
  assert_fails(SPT_ERR_USAGE, spt_config_check_ranks(&config, 64), "[batch] micro = 3", "2 or 4");
  config.batch.micro = 0;
  config.batch.sequences = 100;
  assert_fails(SPT_ERR_USAGE, spt_config_check_ranks(&config, 7), "[batch] sequences = 100", "98 or 105", "5 or 10");
  assert_fails(SPT_ERR_USAGE, spt_config_check_ranks(&config, 101), "101 ranks", "sequences to 101", "100 ranks");
  assert_fails(SPT_ERR_USAGE, spt_config_check_ranks(&config, 0), "0 ranks");
  assert_int_equal(config.batch.micro, 0);
}

/* What the messages name works, and the chosen micro-batch is the largest that fits. */
static void random_ranks(void **state) {
  (void)state;
  spt_config config = good();
  for (uint64_t round = 0; round < 3000; round++) {
    const uint64_t bits = spt_random_bits(seed, 2, round);
    const int size = 1 + (int)(bits % 70);
    config.batch.sequences = 1 + (int64_t)(bits >> 8) % 600;
    config.batch.micro = 0;
    config.model.seq_len = 1 + (int64_t)(bits >> 24) % 10000;
    spt_status status = spt_config_check_ranks(&config, size);
    if (config.batch.sequences % size == 0) {
      assert_int_equal(status, SPT_OK);
      const int64_t share = config.batch.sequences / size;
      int64_t best = 1;
      for (int64_t micro = 1; micro <= share; micro++) {
        if (share % micro == 0 && micro * config.model.seq_len <= 2048) best = micro;
      }
      assert_int_equal(config.batch.micro, best);
      continue;
    }
    assert_int_equal(status, SPT_ERR_USAGE);
    long long sequences, ranks;
    const char *advice = strstr(spt_error_message(), "set sequences to ");
    assert_non_null(advice);
    assert_int_equal(sscanf(advice, "set sequences to %lld", &sequences), 1);
    advice = strstr(advice, "start ");
    assert_non_null(advice);
    assert_int_equal(sscanf(advice, "start %lld", &ranks), 1);
    assert_int_equal(config.batch.sequences % ranks, 0);
    config.batch.sequences = sequences;
    assert_ok(spt_config_check_ranks(&config, size));
  }
}

int main(void) {
  seed = unit_test_seed("test_config");
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(presets_are_the_designs),
      cmocka_unit_test(defaults_are_the_papers),
      cmocka_unit_test(rank_rule),
      cmocka_unit_test(every_range_is_checked),
      cmocka_unit_test(combinations_are_checked),
      cmocka_unit_test(steps_from_tokens),
      cmocka_unit_test(ranks_divide_the_batch),
      cmocka_unit_test(random_ranks),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
