/* Twenty steps of self-guided training, AdamW and Muon, deterministic and stochastic, against the PyTorch reference of tests/reference
 * (guidance_reference.py): losses, parameters, and the guides as they are when guidance ends; first the alphas and draws by themselves. */
#include "golden.h"
#include "unit_test.h"

#include "core/guidance.h"
#include "core/model.h"
#include "core/optimizer.h"

#include <math.h>

/* The reference in fp32 is 2e-5 from itself in float64 (attribute fp32_spread), parameters measured against the distance they moved; its losses 2e-7. */
static const double parameter_tolerance = 2e-4, loss_tolerance = 4e-6;

enum { STEPS_MAX = 64 };
static const char *const cases[] = {"adamw", "adamw_stochastic", "muon", "muon_stochastic"};

typedef struct problem {
  hid_t file;
  spt_model_config model;
  int64_t steps, guided, micro_batches, sequences;
  uint64_t seed;
  int32_t *tokens; /* (steps, micro_batches, sequences, seq_len + 1) */
  spt_params *params;
  spt_layout layout;
  float *start; /* a slab */
  int *pairs;
  spt_slice *slices;
} problem;

static int64_t attribute(const problem *p, const char *name) {
  return golden_attribute_int(p->file, "/", name);
}

static void read_model(problem *p) {
  p->model = (spt_model_config){.hidden = attribute(p, "hidden"),
                                .layers = attribute(p, "layers"),
                                .heads = attribute(p, "heads"),
                                .kv_heads = attribute(p, "kv_heads"),
                                .ffn = attribute(p, "ffn"),
                                .vocab = attribute(p, "vocab"),
                                .seq_len = attribute(p, "seq_len"),
                                .rope_theta = golden_attribute_double(p->file, "/", "rope_theta"),
                                .norm_eps = golden_attribute_double(p->file, "/", "norm_eps"),
                                .rank_ratio = golden_attribute_double(p->file, "/", "rank_ratio"),
                                .guided = true};
}

/* Initial values: the file's factors and the rest, the guides made of the factors, a piece at a time. */
static void make_start(problem *p) {
  char path[SPT_NAME_MAX + 16];
  p->start = calloc((size_t)p->layout.elements, sizeof *p->start);
  assert_non_null(p->start);
  for (int i = 0; i < p->params->tensor_count; i++) {
    const spt_tensor *tensor = &p->params->tensors[i];
    snprintf(path, sizeof path, "model/%s", tensor->name);
    if (tensor->role != SPT_ROLE_GUIDE) golden_floats(p->file, path, tensor->count, p->start + p->layout.offset[i]);
  }
  for (int i = 0; i < p->params->pair_count; i++) {
    const int guided = spt_params_guided_by(p->params, i);
    if (guided < 0) continue;
    const spt_pair *guide = &p->params->pairs[i], *pair = &p->params->pairs[guided];
    const int64_t *offset = p->layout.offset, count = spt_pair_elements(guide), cut = count / 3 + 1;
    float *w = p->start + offset[guide->a];
    assert_ok(spt_params_init_guide(pair, p->start + offset[pair->a], p->start + offset[pair->b], cut, count, w + cut));
    assert_ok(spt_params_init_guide(pair, p->start + offset[pair->a], p->start + offset[pair->b], 0, cut, w));
  }
}

static void open_problem(problem *p) {
  memset(p, 0, sizeof *p);
  p->file = golden_open("guidance_steps.h5");
  read_model(p);
  p->steps = attribute(p, "steps");
  p->guided = attribute(p, "guided");
  p->micro_batches = attribute(p, "micro_batches");
  p->sequences = attribute(p, "sequences");
  p->seed = (uint64_t)attribute(p, "run_seed");
  assert_in_range(p->steps, 1, STEPS_MAX);
  const int64_t count = p->steps * p->micro_batches * p->sequences * (p->model.seq_len + 1);
  p->tokens = calloc((size_t)count, sizeof *p->tokens);
  assert_non_null(p->tokens);
  golden_int32(p->file, "tokens", count, p->tokens);
  assert_ok(spt_params_open(&p->model, &p->params));
  const size_t tensors = (size_t)p->params->tensor_count;
  p->layout.offset = calloc(tensors, sizeof *p->layout.offset);
  p->slices = calloc(tensors, sizeof *p->slices);
  p->pairs = calloc((size_t)p->params->pair_count, sizeof *p->pairs);
  assert_true(p->layout.offset && p->slices && p->pairs);
  for (int i = 0; i < p->params->tensor_count; i++) {
    p->layout.offset[i] = p->layout.elements;
    p->layout.elements += (p->params->tensors[i].count + 31) / 16 * 16;
  }
  make_start(p);
}

static void close_problem(problem *p) {
  spt_params_close(&p->params);
  free(p->layout.offset);
  free(p->slices);
  free(p->pairs);
  free(p->tokens);
  free(p->start);
  H5Fclose(p->file);
}

/* All of the model is one rank's. */
static spt_share own_all(problem *p, spt_method method) {
  spt_share share = {.pairs = p->pairs, .slices = p->slices};
  for (int i = 0; spt_method_uses_pairs(method) && i < p->params->pair_count; i++) p->pairs[share.pair_count++] = i;
  for (int i = 0; i < p->params->tensor_count; i++)
    if (!spt_method_uses_pairs(method) || p->params->tensors[i].pair < 0)
      p->slices[share.slice_count++] = (spt_slice){i, 0, p->params->tensors[i].count};
  return share;
}

typedef struct run {
  spt_backend *backend;
  float *parameters, *gradients; /* the CPU's memory is ordinary */
  spt_model *model;
  spt_optimizer *optimizer;
  bool stochastic;
} run;

static void open_run(problem *p, const char *name, run *r) {
  char path[64], method[16];
  snprintf(path, sizeof path, "cases/%s", name);
  golden_attribute_text(p->file, path, "method", method, sizeof method);
  spt_optimizer_config config = {.method = strcmp(method, "muon") == 0 ? SPT_METHOD_MUON : SPT_METHOD_ADAMW,
                                       .lr = golden_attribute_double(p->file, path, "lr"),
                                       .momentum = golden_attribute_double(p->file, "/", "momentum"),
                                       .weight_decay = golden_attribute_double(p->file, "/", "weight_decay"),
                                       .newton_schulz_steps = 5,
                                       .power_steps = 1,
                                       .adamw = {.lr = -1, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8}};
  memcpy(config.newton_schulz_coefficients, spt_quintic, sizeof spt_quintic);
  const size_t bytes = (size_t)p->layout.elements * sizeof(float);
  const spt_share share = own_all(p, config.method);
  void *memory[2];
  *r = (run){.stochastic = golden_attribute_int(p->file, path, "stochastic") != 0};
  assert_ok(spt_backend_open(SPT_BACKEND_CPU, SPT_PRECISION_FP32, 2, 1, &r->backend));
  for (int i = 0; i < 2; i++) assert_ok(r->backend->ops->alloc(r->backend, bytes, &memory[i]));
  r->parameters = memory[0];
  r->gradients = memory[1];
  memcpy(r->parameters, p->start, bytes);
  assert_ok(spt_model_open(r->backend, &p->model, p->params, &p->layout, r->parameters, r->gradients, p->sequences, &r->model));
  assert_ok(spt_optimizer_open(r->backend, &config, p->params, &p->layout, &share, r->parameters, r->gradients, 0, &r->optimizer));
}

static void close_run(const problem *p, run *r) {
  const size_t bytes = (size_t)p->layout.elements * sizeof(float);
  spt_optimizer_close(&r->optimizer);
  spt_model_close(&r->model);
  r->backend->ops->free(r->backend, r->parameters, bytes);
  r->backend->ops->free(r->backend, r->gradients, bytes);
  r->backend->ops->close(&r->backend);
}

/* One step; its loss, before the update. */
static double train_step(const problem *p, run *r, int64_t step) {
  const int64_t T = p->model.seq_len, rows = p->sequences, matrices = p->model.layers * SPT_MATRICES;
  const double tokens = (double)(p->micro_batches * rows * T), alpha = spt_guidance_alpha(p->guided, step);
  float alphas[64];
  int32_t ids[1024], targets[1024];
  double sum = 0;
  assert_true(matrices <= 64 && rows * T <= 1024);
  memset(r->gradients, 0, (size_t)p->layout.elements * sizeof(float));
  assert_ok(spt_model_refresh(r->model));
  for (int64_t batch = 0; batch < p->micro_batches; batch++) {
    const int32_t *window = p->tokens + (step * p->micro_batches + batch) * rows * (T + 1);
    for (int64_t i = 0; i < rows * T; i++) {
      ids[i] = window[i / T * (T + 1) + i % T];
      targets[i] = window[i / T * (T + 1) + i % T + 1];
    }
    for (int64_t i = 0; i < matrices; i++) alphas[i] = (float)alpha;
    if (r->stochastic) spt_guidance_draw(p->seed, step, batch, alpha, matrices, alphas);
    spt_model_set_guidance(r->model, alphas);
    assert_ok(spt_model_train(r->model, rows, ids, targets, (float)(1 / tokens), NULL, &sum));
  }
  const spt_control control = {.clip = 1, .apply = 1};
  assert_ok(spt_optimizer_step(r->optimizer, 1, &control));
  return sum / tokens;
}

/* The guides, or all else, against the case's final ones. */
static double worst_distance(const problem *p, const char *name, const float *parameters, bool guides) {
  double worst = 0;
  float *expected = calloc((size_t)p->layout.elements, sizeof *expected);
  assert_non_null(expected);
  for (int i = 0; i < p->params->tensor_count; i++) {
    const spt_tensor *tensor = &p->params->tensors[i];
    char path[SPT_NAME_MAX + 64];
    if ((tensor->role == SPT_ROLE_GUIDE) != guides) continue;
    snprintf(path, sizeof path, "cases/%s/model/%s", name, tensor->name);
    golden_floats(p->file, path, tensor->count, expected);
    const double error =
        relative_distance(tensor->count, parameters + p->layout.offset[i], expected, p->start + p->layout.offset[i]);
    if (!(error <= parameter_tolerance)) fail_msg("%s: %s is off by %.2e", name, tensor->name, error);
    if (error > worst) worst = error;
  }
  free(expected);
  return worst;
}

static void test_case(void **state) {
  const char *name = *state;
  char path[64];
  problem p;
  run r;
  double losses[STEPS_MAX], worst = 0, guides = 0;
  open_problem(&p);
  snprintf(path, sizeof path, "cases/%s/losses", name);
  golden_doubles(p.file, path, p.steps, losses);
  open_run(&p, name, &r);
  for (int64_t step = 0; step < p.steps; step++) {
    const double loss = train_step(&p, &r, step), error = fabs(loss / losses[step] - 1);
    if (!(error <= loss_tolerance)) fail_msg("%s, step %lld: loss %.9f, expected %.9f", name, (long long)step, loss, losses[step]);
    worst = error > worst ? error : worst;
    if (step == p.guided - 1) guides = worst_distance(&p, name, r.parameters, true);
  }
  print_message("%s: losses %.1e, parameters %.1e, guides %.1e\n", name, worst, worst_distance(&p, name, r.parameters, false), guides);
  close_run(&p, &r);
  close_problem(&p);
}

static void test_schedule(void **state) {
  (void)state;
  const struct {
    double fraction;
    int64_t steps, guided;
  } ends[] = {{0.5, 20, 10}, {0.55, 20, 11}, {0.29, 100, 29}, {0.3, 1, 1}, {1, 7, 7}, {0.001, 20, 1}};
  for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
    spt_guidance_config config = {.method = SPT_GUIDANCE_SELF, .fraction = ends[i].fraction};
    const int64_t guided = spt_guidance_steps(&config, ends[i].steps);
    assert_int_equal(guided, ends[i].guided);
    assert_true(spt_guidance_alpha(guided, 0) == 1 && spt_guidance_alpha(guided, guided) == 0);
    for (int stochastic = 0; stochastic < 2; stochastic++) {
      double sum = 0;
      config.stochastic = stochastic;
      for (int64_t t = 0; t < ends[i].steps; t++) sum += spt_guidance_share(&config, ends[i].steps, t);
      assert_true(fabs(sum - spt_guidance_sum(&config, ends[i].steps)) < 1e-9);
    }
    config.method = SPT_GUIDANCE_NONE;
    assert_int_equal(spt_guidance_steps(&config, ends[i].steps), 0);
  }
}

/* Draws: as often as alpha says, independent of the number of matrices asked for only through their order, new in every step and batch. */
static void test_draws(void **state) {
  (void)state;
  enum { MATRICES = 14, DRAWS = 4000 };
  const double alphas[] = {1, 0.7, 0.2};
  for (size_t a = 0; a < sizeof alphas / sizeof *alphas; a++) {
    int used[MATRICES] = {0}, repeated = 0;
    float now[MATRICES], before[MATRICES] = {0};
    for (int i = 0; i < DRAWS; i++) {
      spt_guidance_draw(9, i / 3, i % 3, alphas[a], MATRICES, now);
      for (int j = 0; j < MATRICES; j++) {
        assert_true(now[j] == 0 || now[j] == (float)alphas[a]);
        used[j] += now[j] > 0;
      }
      repeated += memcmp(now, before, sizeof now) == 0;
      memcpy(before, now, sizeof now);
    }
    for (int j = 0; j < MATRICES; j++) // five deviations
      assert_true(fabs(used[j] - DRAWS * alphas[a]) <= 5 * sqrt(DRAWS * alphas[a] * (1 - alphas[a])));
    assert_true(alphas[a] == 1 || repeated < DRAWS / 10);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_schedule),
                                     cmocka_unit_test(test_draws),
                                     cmocka_unit_test_prestate(test_case, (void *)cases[0]),
                                     cmocka_unit_test_prestate(test_case, (void *)cases[1]),
                                     cmocka_unit_test_prestate(test_case, (void *)cases[2]),
                                     cmocka_unit_test_prestate(test_case, (void *)cases[3])};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
