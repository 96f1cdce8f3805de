/* The whole model's loss and gradients against the float64 PyTorch reference of tests/reference (model_reference.py),
 * in every parameterization and every way a pass can be run. */
#include "golden.h"
#include "unit_test.h"

#include "core/model.h"

static const char *const cases[] = {"low_rank", "low_rank_gqa", "dense", "low_rank_ffn", "low_rank_tied", "guided", "guided_mixed", "guided_ffn"};

/* How the passes run, and the largest relative error of the loss and of any tensor's gradient. fp32 rounding is about
 * 1e-6 here. In bf16 an operand is rounded to 2^-9; the bound is some of those roundings on the way through the
 * network. */
typedef struct mode {
  const char *name;
  spt_precision precision;
  int threads;
  int64_t micro; /* sequences per pass, of 2; 3 leaves room unused */
  bool recompute;
  double loss_tolerance, gradient_tolerance;
} mode;

static const mode modes[] = {
    {"fp32", SPT_PRECISION_FP32, 1, 2, false, 1e-6, 1e-5},
    {"fp32, two threads, room to spare", SPT_PRECISION_FP32, 2, 3, false, 1e-6, 1e-5},
    {"fp32, two passes", SPT_PRECISION_FP32, 1, 1, false, 1e-6, 1e-5},
    {"fp32, recompute", SPT_PRECISION_FP32, 1, 2, true, 1e-6, 1e-5},
    {"bf16", SPT_PRECISION_BF16, 2, 2, false, 5e-3, 5e-2},
    {"bf16, recompute", SPT_PRECISION_BF16, 1, 1, true, 5e-3, 5e-2},
};

typedef struct problem {
  char path[64]; /* "/cases/<name>" */
  hid_t file;
  spt_model_config config;
  int64_t sequences;
  double loss;
  float *alphas; /* [layers·SPT_MATRICES] of the guides; NULL: there are none */
  int32_t *ids, *targets;
  spt_params *params;
  spt_layout layout;
} problem;

static spt_parameterization parse_parameterization(const char *text) {
  if (strcmp(text, "low-rank") == 0) return SPT_LOW_RANK;
  if (strcmp(text, "low-rank-ffn") == 0) return SPT_LOW_RANK_FFN;
  assert_string_equal(text, "dense");
  return SPT_DENSE;
}

static void read_config(problem *p) {
  spt_model_config *config = &p->config;
  const struct {
    const char *name;
    int64_t *value;
  } integers[] = {{"hidden", &config->hidden},  {"layers", &config->layers},     {"heads", &config->heads},
                  {"ffn", &config->ffn},        {"kv_heads", &config->kv_heads}, {"vocab", &config->vocab},
                  {"seq_len", &config->seq_len}};
  for (size_t i = 0; i < sizeof integers / sizeof *integers; i++)
    *integers[i].value = golden_attribute_int(p->file, p->path, integers[i].name);
  config->rope_theta = golden_attribute_double(p->file, p->path, "rope_theta");
  config->norm_eps = golden_attribute_double(p->file, p->path, "norm_eps");
  config->rank_ratio = golden_attribute_double(p->file, p->path, "rank_ratio");
  config->tie_embeddings = golden_attribute_int(p->file, p->path, "tie_embeddings") != 0;
  char text[32];
  golden_attribute_text(p->file, p->path, "parameterization", text, sizeof text);
  config->parameterization = parse_parameterization(text);
}

static void open_problem(const char *name, problem *p) {
  char text[256];
  memset(p, 0, sizeof *p);
  snprintf(text, sizeof text, "model_%s.h5", name);
  p->file = golden_open(text);
  snprintf(p->path, sizeof p->path, "/cases/%s", name);
  read_config(p);
  p->sequences = golden_attribute_int(p->file, p->path, "sequences");
  p->loss = golden_attribute_double(p->file, p->path, "loss");
  const int64_t tokens = p->sequences * p->config.seq_len;
  p->ids = calloc((size_t)tokens, sizeof *p->ids);
  p->targets = calloc((size_t)tokens, sizeof *p->targets);
  assert_true(p->ids && p->targets);
  snprintf(text, sizeof text, "%s/ids", p->path);
  golden_int32(p->file, text, tokens, p->ids);
  snprintf(text, sizeof text, "%s/targets", p->path);
  golden_int32(p->file, text, tokens, p->targets);

  snprintf(text, sizeof text, "%s/alphas", p->path);
  const int64_t alphas = golden_count(p->file, text);
  p->config.guided = alphas > 0;
  if (p->config.guided) {
    assert_int_equal(alphas, p->config.layers * SPT_MATRICES);
    p->alphas = calloc((size_t)alphas, sizeof *p->alphas);
    assert_non_null(p->alphas);
    golden_floats(p->file, text, alphas, p->alphas);
  }
  assert_ok(spt_params_open(&p->config, &p->params));
  // offsets out of table order and with gaps: nothing may assume a dense slab
  p->layout.offset = calloc((size_t)p->params->tensor_count, sizeof *p->layout.offset);
  assert_non_null(p->layout.offset);
  for (int i = p->params->tensor_count - 1; i >= 0; i--) {
    p->layout.offset[i] = p->layout.elements;
    p->layout.elements += (p->params->tensors[i].count + 31) / 16 * 16;
  }
}

static void close_problem(problem *p) {
  spt_params_close(&p->params);
  free(p->layout.offset);
  free(p->alphas);
  free(p->ids);
  free(p->targets);
  H5Fclose(p->file);
}

static void load(const problem *p, const char *kind, float *slab) {
  for (int i = 0; i < p->params->tensor_count; i++) {
    const spt_tensor *tensor = &p->params->tensors[i];
    char path[256];
    snprintf(path, sizeof path, "%s/%s/%s", p->path, kind, tensor->name);
    golden_floats(p->file, path, tensor->count, slab + p->layout.offset[i]);
  }
}

/* The table names the golden file's tensors, each with its size, and no others. */
static void test_table(void **state) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    problem p;
    open_problem(cases[i], &p);
    char path[128];
    snprintf(path, sizeof path, "%s/model", p.path);
    assert_int_equal(golden_members(p.file, path), p.params->tensor_count);
    float *slab = calloc((size_t)p.layout.elements, sizeof *slab);
    assert_non_null(slab);
    load(&p, "model", slab);
    free(slab);
    close_problem(&p);
  }
  (void)state;
}

static void run_mode(const problem *p, const mode *mode, const float *parameters, const float *expected) {
  const size_t bytes = (size_t)p->layout.elements * sizeof(float);
  spt_backend *backend = NULL;
  spt_model *model = NULL;
  void *device_parameters, *device_gradients;
  spt_model_config config = p->config;
  config.recompute = mode->recompute;
  assert_ok(spt_backend_open(SPT_BACKEND_CPU, mode->precision, mode->threads, 1, &backend));
  assert_ok(backend->ops->alloc(backend, bytes, &device_parameters));
  assert_ok(backend->ops->alloc(backend, bytes, &device_gradients));
  assert_ok(backend->ops->upload(backend, device_parameters, parameters, bytes));
  assert_ok(spt_model_open(backend, &config, p->params, &p->layout, device_parameters, device_gradients, mode->micro,
                           &model));
  assert_ok(spt_model_refresh(model));
  spt_model_set_guidance(model, p->alphas);

  // evaluation first: it must leave nothing behind that training sees
  double evaluated = 0, trained = 0;
  const int64_t pass = mode->micro < p->sequences ? mode->micro : p->sequences;
  const double tokens = (double)(p->sequences * config.seq_len);
  for (int64_t s = 0; s < p->sequences; s += pass)
    assert_ok(
        spt_model_evaluate(model, pass, p->ids + s * config.seq_len, p->targets + s * config.seq_len, &evaluated));
  for (int64_t s = 0; s < p->sequences; s += pass)
    assert_ok(spt_model_train(model, pass, p->ids + s * config.seq_len, p->targets + s * config.seq_len,
                              (float)(1 / tokens), NULL, &trained));
  assert_ok(spt_model_check(model));
  float *gradients = malloc(bytes);
  assert_non_null(gradients);
  assert_ok(backend->ops->download(backend, gradients, device_gradients, bytes));

  double worst = 0;
  const char *worst_name = "";
  for (int i = 0; i < p->params->tensor_count; i++) {
    const int64_t offset = p->layout.offset[i];
    const double error = relative_distance(p->params->tensors[i].count, gradients + offset, expected + offset, NULL);
    if (!(error <= mode->gradient_tolerance))
      fail_msg("%s, %s: gradient of %s is off by %.2e", p->path, mode->name, p->params->tensors[i].name, error);
    if (error >= worst) worst = error, worst_name = p->params->tensors[i].name;
  }
  const double loss_error = trained / tokens / p->loss - 1;
  print_message("%s, %s: loss %+.1e, worst gradient %.1e (%s)\n", p->path, mode->name, loss_error, worst, worst_name);
  assert_true(loss_error <= mode->loss_tolerance && loss_error >= -mode->loss_tolerance);
  assert_true(evaluated <= trained + mode->loss_tolerance * tokens &&
              evaluated >= trained - mode->loss_tolerance * tokens);

  free(gradients);
  spt_model_close(&model);
  backend->ops->free(backend, device_parameters, bytes);
  backend->ops->free(backend, device_gradients, bytes);
  backend->ops->close(&backend);
}

static void test_case(void **state) {
  problem p;
  open_problem(*state, &p);
  float *parameters = calloc((size_t)p.layout.elements, sizeof *parameters);
  float *expected = calloc((size_t)p.layout.elements, sizeof *expected);
  assert_true(parameters && expected);
  load(&p, "model", parameters);
  load(&p, "gradients", expected);
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) run_mode(&p, &modes[i], parameters, expected);
  free(parameters);
  free(expected);
  close_problem(&p);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_table),
      cmocka_unit_test_prestate(test_case, (void *)"low_rank"),
      cmocka_unit_test_prestate(test_case, (void *)"low_rank_gqa"),
      cmocka_unit_test_prestate(test_case, (void *)"dense"),
      cmocka_unit_test_prestate(test_case, (void *)"low_rank_ffn"),
      cmocka_unit_test_prestate(test_case, (void *)"low_rank_tied"),
      cmocka_unit_test_prestate(test_case, (void *)"guided"),
      cmocka_unit_test_prestate(test_case, (void *)"guided_mixed"),
      cmocka_unit_test_prestate(test_case, (void *)"guided_ffn"),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
