/* What the model tells an observer: each op of a pass in order, and of a matrix that overflows, first its own output. */
#include "unit_test.h"

#include "core/model.h"

#include <math.h>

enum { SEQUENCES = 2, SEQ_LEN = 12, VOCAB = 31, LAYERS = 3 };

static uint64_t seed;

typedef struct run {
  spt_model_config config;
  spt_backend *backend;
  spt_params *params;
  spt_layout layout;
  float *parameters, *gradients; /* host */
  spt_model *model;
  int32_t ids[SEQUENCES * SEQ_LEN], targets[SEQUENCES * SEQ_LEN];
  /* what the observer saw */
  int seen, outputs, gradients_seen, input_gradients;
  char first_wrong[160]; /* "" if none */
  double loss;
} run;

static float *memory(spt_backend *backend, int64_t floats) {
  void *pointer = NULL;
  assert_ok(backend->ops->alloc(backend, (size_t)floats * sizeof(float), &pointer));
  return pointer;
}

static void open_run(spt_parameterization how, bool recompute, bool tied, run *r) {
  *r = (run){.config = {.hidden = 16,
                        .layers = LAYERS,
                        .heads = 2,
                        .kv_heads = 1,
                        .ffn = 24,
                        .vocab = VOCAB,
                        .seq_len = SEQ_LEN,
                        .rope_theta = 1e4,
                        .norm_eps = 1e-5,
                        .parameterization = how,
                        .rank_ratio = 0.4,
                        .tie_embeddings = tied,
                        .recompute = recompute}};
  assert_ok(spt_backend_open(SPT_BACKEND_CPU, SPT_PRECISION_FP32, 1, 1, &r->backend));
  assert_ok(spt_params_open(&r->config, &r->params));
  r->layout.offset = calloc((size_t)r->params->tensor_count, sizeof *r->layout.offset);
  assert_non_null(r->layout.offset);
  for (int i = 0; i < r->params->tensor_count; i++) {
    r->layout.offset[i] = r->layout.elements;
    r->layout.elements += (r->params->tensors[i].count + 31) / 16 * 16;
  }
  r->parameters = memory(r->backend, r->layout.elements);
  r->gradients = memory(r->backend, r->layout.elements);
  spt_random_normal(seed, 1, 0, r->layout.elements, 0.3, r->parameters);
  for (int i = 0; i < r->params->tensor_count; i++) // inputs of matrices well above 1
    for (int64_t j = 0; r->params->tensors[i].role == SPT_ROLE_GAIN && j < r->params->tensors[i].count; j++)
      r->parameters[r->layout.offset[i] + j] = 30;
  assert_ok(spt_model_open(r->backend, &r->config, r->params, &r->layout, r->parameters, r->gradients, SEQUENCES, &r->model));
  for (int i = 0; i < SEQUENCES * SEQ_LEN; i++) {
    r->ids[i] = (int32_t)(spt_random_bits(seed, 2, (uint64_t)i) % VOCAB);
    r->targets[i] = (int32_t)(spt_random_bits(seed, 3, (uint64_t)i) % VOCAB);
  }
}

static void close_run(run *r) {
  spt_model_close(&r->model);
  r->backend->ops->free(r->backend, r->parameters, (size_t)r->layout.elements * sizeof(float));
  r->backend->ops->free(r->backend, r->gradients, (size_t)r->layout.elements * sizeof(float));
  spt_params_close(&r->params);
  r->backend->ops->close(&r->backend);
  free(r->layout.offset);
}

static spt_status see(void *context, const spt_observation *seen) {
  run *r = context;
  const float *values = seen->values;
  assert_int_equal(seen->dtype, SPT_F32);
  r->seen++;
  r->outputs += seen->seen == SPT_SEEN_OUTPUT;
  r->gradients_seen += seen->seen == SPT_SEEN_GRADIENT;
  r->input_gradients += seen->seen == SPT_SEEN_INPUT_GRADIENT;
  bool finite = true;
  for (int64_t i = 0; i < seen->count; i++) finite = finite && isfinite(values[i]);
  if (!finite && !r->first_wrong[0]) snprintf(r->first_wrong, sizeof r->first_wrong, "%d %d %s", seen->layer, seen->seen, seen->what);
  return SPT_OK;
}

static void pass(run *r, bool observed, float loss_scale) {
  const spt_observer observer = {r, see};
  r->seen = r->outputs = r->gradients_seen = r->input_gradients = 0;
  r->first_wrong[0] = '\0';
  r->loss = 0;
  memset(r->gradients, 0, (size_t)r->layout.elements * sizeof(float));
  assert_ok(spt_model_refresh(r->model));
  spt_model_observe(r->model, observed ? &observer : NULL);
  assert_ok(spt_model_train(r->model, SEQUENCES, r->ids, r->targets, loss_scale, NULL, &r->loss));
  spt_model_observe(r->model, NULL);
}

/* Observed or not, loss and gradients are the same bits; every parameter's gradient is told of once. */
static void sees_all_and_changes_nothing(void **state) {
  (void)state;
  for (int i = 0; i < 3 * 2 * 2; i++) {
    const spt_parameterization how = (spt_parameterization)(i % 3);
    const bool recompute = i / 3 % 2, tied = i / 6;
    run r;
    open_run(how, recompute, tied, &r);
    pass(&r, false, 0.01f);
    assert_int_equal(r.seen, 0);
    const double loss = r.loss;
    const size_t bytes = (size_t)r.layout.elements * sizeof(float);
    float *before = malloc(bytes);
    assert_non_null(before);
    memcpy(before, r.gradients, bytes);
    pass(&r, true, 0.01f);
    assert_true(r.loss == loss);
    assert_memory_equal(r.gradients, before, bytes);
    free(before);
    assert_string_equal(r.first_wrong, "");
    // embedding, 7 matrices and the attention a layer (once more but for the last where recomputed), losses
    assert_int_equal(r.outputs, 2 + 8 * (LAYERS + (recompute ? LAYERS - 1 : 0)));
    assert_int_equal(r.gradients_seen, r.params->tensor_count + tied); // a tied head's twice
    assert_int_equal(r.input_gradients, 5 * LAYERS + 1);
    close_run(&r);
  }
}

/* Each tensor of each layer in turn overflows whatever is multiplied by it: its matrix is named, and nothing before it. */
static void names_the_matrix_that_overflows(void **state) {
  (void)state;
  for (spt_parameterization how = SPT_LOW_RANK; how <= SPT_DENSE; how++) {
    run r;
    open_run(how, how == SPT_LOW_RANK_FFN, false, &r);
    for (int i = 0; i < r.params->tensor_count; i++) {
      const spt_tensor *tensor = &r.params->tensors[i];
      if (tensor->matrix < 0) continue;
      float *values = r.parameters + r.layout.offset[i], kept[4096];
      char wanted[160];
      assert_true(tensor->count <= 4096);
      memcpy(kept, values, (size_t)tensor->count * sizeof *kept);
      for (int64_t j = 0; j < tensor->count; j++) values[j] = j * 7919 % 3 ? 3.4e38f : -3.4e38f;
      pass(&r, true, 0.01f);
      snprintf(wanted, sizeof wanted, "%d %d %s", tensor->layer, SPT_SEEN_OUTPUT, spt_matrix_name((spt_matrix)tensor->matrix));
      if (strcmp(r.first_wrong, wanted) != 0) fail_msg("%s is poisoned: first wrong '%s', wanted '%s'", tensor->name, r.first_wrong, wanted);
      memcpy(values, kept, (size_t)tensor->count * sizeof *kept);
    }
    pass(&r, true, 0.01f);
    assert_string_equal(r.first_wrong, "");
    close_run(&r);
  }
}

/* A forward that is finite and a backward that is not: gradients of the head come first. */
static void backward_is_told_of_as_such(void **state) {
  (void)state;
  char wanted[160];
  run r;
  open_run(SPT_LOW_RANK, false, false, &r);
  pass(&r, true, 3e38f); // the loss's scale
  assert_true(isfinite(r.loss));
  snprintf(wanted, sizeof wanted, "-1 %d lm_head.weight", SPT_SEEN_GRADIENT);
  assert_string_equal(r.first_wrong, wanted);
  close_run(&r);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(sees_all_and_changes_nothing),
      cmocka_unit_test(names_the_matrix_that_overflows),
      cmocka_unit_test(backward_is_told_of_as_such),
  };
  seed = unit_test_seed("test_observe");
  return cmocka_run_group_tests(tests, NULL, NULL);
}
