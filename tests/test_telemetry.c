/* What the telemetry is made from: the updates as the optimizer tells of them, and the inputs that the probe hands out. */
#include "unit_test.h"

#include "core/model_internal.h"
#include "core/optimizer.h"

#include <math.h>

static uint64_t seed, stream;

static void normal(int64_t count, double std, float *values) {
  spt_random_normal(seed, stream++, 0, count, std, values);
}

/* One rank with everything: tensors one after another. Dense matrices and factor pairs are pairs unless the method is adamw. */
typedef struct run {
  spt_backend *backend;
  spt_params *params;
  spt_layout layout;
  int *pairs;
  spt_slice *slices;
  spt_share share;
  float *parameters, *gradients;
} run;

static void *host(size_t bytes) {
  void *pointer = calloc(1, bytes + 64);
  assert_non_null(pointer);
  return pointer;
}

static spt_model_config make_model(spt_parameterization parameterization) {
  return (spt_model_config){.hidden = 24, .layers = 2, .heads = 3, .kv_heads = 1, .ffn = 40, .vocab = 50, .seq_len = 12, .rope_theta = 1e4,
                            .norm_eps = 1e-5, .parameterization = parameterization, .rank_ratio = 0.3};
}

static void open_run(const spt_model_config *model, spt_method method, spt_precision precision, run *r) {
  *r = (run){0};
  assert_ok(spt_backend_open(SPT_BACKEND_CPU, precision, 2, 1, &r->backend));
  assert_ok(spt_params_open(model, &r->params));
  const size_t tensors = (size_t)r->params->tensor_count;
  r->layout.offset = host(tensors * sizeof *r->layout.offset);
  r->pairs = host(tensors * sizeof *r->pairs);
  r->slices = host(2 * tensors * sizeof *r->slices);
  for (int i = 0; method != SPT_METHOD_ADAMW && i < r->params->pair_count; i++) r->pairs[r->share.pair_count++] = i;
  for (int i = 0; i < r->params->tensor_count; i++) {
    const spt_tensor *tensor = &r->params->tensors[i];
    r->layout.offset[i] = r->layout.elements;
    r->layout.elements += (tensor->count + 31) / 16 * 16;
    if (method != SPT_METHOD_ADAMW && tensor->pair >= 0) continue;
    const int64_t cut = tensor->count / 3; // as between two owners
    r->slices[r->share.slice_count++] = (spt_slice){i, 0, cut};
    r->slices[r->share.slice_count++] = (spt_slice){i, cut, tensor->count};
  }
  r->share.pairs = r->pairs;
  r->share.slices = r->slices;
  r->parameters = host((size_t)r->layout.elements * sizeof(float));
  r->gradients = host((size_t)r->layout.elements * sizeof(float));
  for (int i = 0; i < r->params->tensor_count; i++)
    normal(r->params->tensors[i].count, 0.2, r->parameters + r->layout.offset[i]);
}

static void close_run(run *r) {
  spt_params_close(&r->params);
  r->backend->ops->close(&r->backend);
  free(r->layout.offset);
  free(r->pairs);
  free(r->slices);
  free(r->parameters);
  free(r->gradients);
}

/* ---- updates ---- */

typedef struct told {
  run *r;
  float *updates; /* in the layout; NAN: not told of */
  double keep[128], lr[128], rho[128]; /* by tensor */
} told;

static spt_status keep_update(void *context, const spt_update *update) {
  told *t = context;
  t->keep[update->tensor] = update->keep;
  t->lr[update->tensor] = update->lr;
  t->rho[update->tensor] = update->rho;
  float *to = t->updates + t->r->layout.offset[update->tensor] + update->begin;
  for (int64_t i = 0; i < update->end - update->begin; i++) assert_true(isnan(to[i])); // once
  return spt_update_store(t->r->backend, update, NULL, to);
}

static spt_status refuse(void *context, const spt_update *update) {
  (void)context;
  return SPT_FAIL(SPT_ERR_RESOURCE, "tensor %d is not wanted", update->tensor);
}

/* w after the step is keep·w + Δ to the last digit of either. */
static void compare(const told *t, const float *before, const spt_optimizer_config *config, double factor) {
  for (int i = 0; i < t->r->params->tensor_count; i++) {
    const spt_tensor *tensor = &t->r->params->tensors[i];
    const bool pair = config->method != SPT_METHOD_ADAMW && tensor->pair >= 0;
    const double lr = factor * (pair ? config->lr : config->adamw.lr);
    if (!(fabs(t->lr[i] - lr) <= 1e-6 * lr)) fail_msg("%s: eta %g instead of %g", tensor->name, t->lr[i], lr);
    assert_true(fabs(t->keep[i] - (tensor->decay ? 1 - lr * config->weight_decay : 1)) < 1e-7);
    assert_true(pair ? t->rho[i] > 0 && t->rho[i] <= lr * (1 + 1e-6) : isnan(t->rho[i]));
    for (int64_t j = 0; j < tensor->count; j++) {
      const int64_t at = t->r->layout.offset[i] + j;
      const double kept = t->keep[i] * before[at], wanted = kept + t->updates[at], found = t->r->parameters[at];
      if (!(fabs(found - wanted) <= 3e-7 * (fabs(kept) + fabs(t->updates[at]))))
        fail_msg("%s[%d]: %.9g became %.9g, told of %.9g", tensor->name, (int)j, before[at], found, wanted);
    }
  }
}

static void check_updates(spt_method method, spt_parameterization parameterization, spt_precision precision) {
  const spt_model_config model = make_model(parameterization);
  const spt_optimizer_config config = {.method = method, .lr = 0.03, .momentum = 0.9, .weight_decay = 0.5, .newton_schulz_steps = 5, .power_steps = 1,
                                       .adamw = {.lr = 0.02, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8}};
  run r;
  spt_optimizer *optimizer;
  open_run(&model, method, precision, &r);
  const size_t bytes = (size_t)r.layout.elements * sizeof(float);
  told t = {.r = &r, .updates = host(bytes)};
  float *before = host(bytes);
  const spt_update_observer observer = {&t, keep_update}, refusal = {NULL, refuse};
  const spt_control apply = {.clip = 0.7f, .apply = 1}, skip = {.clip = 1};
  assert_true(r.params->tensor_count <= 128);
  assert_ok(spt_optimizer_open(r.backend, &config, r.params, &r.layout, &r.share, r.parameters, r.gradients, seed, &optimizer));
  for (int step = 0; step < 3; step++) { // also with moments of earlier steps
    for (int i = 0; i < r.params->tensor_count; i++) normal(r.params->tensors[i].count, 1e-2, r.gradients + r.layout.offset[i]);
    for (int64_t i = 0; i < r.layout.elements; i++) t.updates[i] = NAN;
    memcpy(before, r.parameters, bytes);
    spt_optimizer_observe(optimizer, step == 1 ? NULL : &observer);
    assert_ok(spt_optimizer_step(optimizer, 0.5, &apply));
    if (step != 1) compare(&t, before, &config, 0.5);
  }
  spt_optimizer_observe(optimizer, &refusal);
  assert_ok(spt_optimizer_step(optimizer, 0.5, &skip)); // nothing is done, nothing is told
  assert_fails(SPT_ERR_RESOURCE, spt_optimizer_step(optimizer, 0.5, &apply), "is not wanted");
  spt_optimizer_close(&optimizer);
  close_run(&r);
  free(t.updates);
  free(before);
}

static void updates(void **state) {
  (void)state;
  static const spt_method methods[] = {SPT_METHOD_SPECTRON, SPT_METHOD_MUON, SPT_METHOD_RENORM, SPT_METHOD_SGD, SPT_METHOD_ADAMW};
  static const spt_parameterization models[] = {SPT_LOW_RANK, SPT_LOW_RANK_FFN, SPT_DENSE};
  for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
    for (size_t j = 0; j < sizeof models / sizeof *models; j++) {
      check_updates(methods[i], models[j], SPT_PRECISION_FP32);
      check_updates(methods[i], models[j], SPT_PRECISION_BF16);
    }
}

/* ---- the probe ---- */

/* y = W·x by the masters, W = A·Bᵀ or dense. */
static double output(const run *r, int layer, spt_matrix matrix, const float *x, int64_t row) {
  spt_layer_tensors tensors;
  spt_params_layer(r->params, layer, &tensors);
  const spt_tensor *first = &r->params->tensors[tensors.a[matrix]];
  const float *a = r->parameters + r->layout.offset[tensors.a[matrix]] + row * first->cols;
  double y = 0;
  if (tensors.b[matrix] < 0) {
    for (int64_t j = 0; j < first->cols; j++) y += (double)a[j] * x[j];
    return y;
  }
  const spt_tensor *second = &r->params->tensors[tensors.b[matrix]];
  const float *b = r->parameters + r->layout.offset[tensors.b[matrix]];
  for (int64_t k = 0; k < second->cols; k++) {
    double t = 0;
    for (int64_t j = 0; j < second->rows; j++) t += (double)b[j * second->cols + k] * x[j];
    y += a[k] * t;
  }
  return y;
}

static double activation(const spt_model *model, size_t offset, int64_t index) {
  const void *values = model_at(model, offset);
  if (model->backend->act == SPT_F32) return ((const float *)values)[index];
  const uint32_t bits = (uint32_t)((const uint16_t *)values)[index] << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* What the model itself made of the matrix's input, where the pass has left it: before the residual, of v and gate and up as it is. */
static double made(const spt_model *model, int layer, spt_matrix matrix, int64_t position, int64_t row) {
  const spt_model_config *config = &model->config;
  const layer_activations *kept = model_kept(model, layer);
  const int64_t hidden = config->hidden, kv = config->kv_heads * spt_head_dim(config), tokens = config->seq_len;
  const float *x = model_at(model, model->x[layer]), *middle = model_at(model, kept->x_middle), *next = model_at(model, model->x[layer + 1]);
  const int64_t at = position * hidden + row;
  switch (matrix) {
  case SPT_V: return activation(model, kept->qkv, tokens * (hidden + kv) + position * kv + row);
  case SPT_O: return (double)middle[at] - x[at];
  case SPT_GATE: return activation(model, kept->gate_up, position * config->ffn + row);
  case SPT_UP: return activation(model, kept->gate_up, (tokens + position) * config->ffn + row);
  default: return (double)next[at] - middle[at];
  }
}

/* The handed-out inputs, multiplied by the masters, are the outputs that the pass has kept (of q and k, which are rotated, the input is v's). */
static void check_probe(const spt_model_config *config, spt_precision precision, bool train) {
  enum { COUNT = 3 };
  static const int64_t positions[COUNT] = {0, 5, 11};
  static const spt_matrix matrices[] = {SPT_V, SPT_O, SPT_GATE, SPT_UP, SPT_DOWN};
  run r;
  spt_model *model;
  int32_t ids[12];
  open_run(config, SPT_METHOD_SPECTRON, precision, &r);
  for (int i = 0; i < 12; i++) ids[i] = (int32_t)(spt_random_bits(seed, stream++, 0) % 50);
  assert_ok(spt_model_open(r.backend, config, r.params, &r.layout, r.parameters, train ? r.gradients : NULL, 2, &model));
  assert_ok(spt_model_refresh(model));
  const size_t floats = (size_t)spt_probe_floats(config, COUNT);
  float *inputs = host(floats * sizeof *inputs + sizeof *inputs);
  inputs[floats] = 123;
  assert_ok(spt_model_probe(model, ids, COUNT, positions, inputs));
  assert_true(inputs[floats] == 123);
  const int first = model->kept_layers == 1 ? (int)config->layers - 1 : 0; // what a pass leaves of earlier layers
  const double tolerance = precision == SPT_PRECISION_BF16 ? 0.03 : 2e-5;
  for (int layer = first; layer < config->layers; layer++)
    for (size_t k = 0; k < sizeof matrices / sizeof *matrices; k++) {
      int64_t m, n;
      double largest = 0, error = 0;
      spt_matrix_shape(config, matrices[k], &m, &n);
      assert_true(matrices[k] != SPT_V || spt_probe_offset(config, COUNT, layer, SPT_Q) == spt_probe_offset(config, COUNT, layer, SPT_V));
      const float *x = inputs + spt_probe_offset(config, COUNT, layer, matrices[k]);
      for (int64_t i = 0; i < COUNT; i++)
        for (int64_t row = 0; row < m; row++) {
          const double y = output(&r, layer, matrices[k], x + i * n, row);
          largest = fmax(largest, fabs(y));
          error = fmax(error, fabs(y - made(model, layer, matrices[k], positions[i], row)));
        }
      if (!(error <= tolerance * largest && largest > 0)) fail_msg("layer %d, matrix %d: off by %g of %g", layer, (int)matrices[k], error, largest);
    }
  assert_ok(spt_model_check(model));
  spt_model_close(&model);
  close_run(&r);
  free(inputs);
}

static void probe(void **state) {
  (void)state;
  static const spt_parameterization models[] = {SPT_LOW_RANK, SPT_LOW_RANK_FFN, SPT_DENSE};
  for (size_t i = 0; i < sizeof models / sizeof *models; i++)
    for (int variant = 0; variant < 6; variant++) {
      spt_model_config config = make_model(models[i]);
      config.recompute = variant % 3 == 1;
      check_probe(&config, variant < 3 ? SPT_PRECISION_FP32 : SPT_PRECISION_BF16, variant % 3 < 2);
    }
}

int main(void) {
  seed = unit_test_seed("test_telemetry");
  const struct CMUnitTest tests[] = {cmocka_unit_test(updates), cmocka_unit_test(probe)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
