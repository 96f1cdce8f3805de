#include "step_cost.h"

#include "unit_test.h"

#include "backend_cpu.h"
#include "core/optimizer.h"

#include <math.h>

enum { SEQUENCES = 2 };

/* Long enough for attention to have several blocks of queries and keys, wide enough for several tiles of a factor. */
spt_model_config step_cost_model(spt_parameterization parameterization) {
  return (spt_model_config){.hidden = 256,
                            .layers = 2,
                            .heads = 8,
                            .kv_heads = 8,
                            .ffn = 768,
                            .vocab = 1024,
                            .seq_len = 512,
                            .rope_theta = 1e4,
                            .norm_eps = 1e-5,
                            .parameterization = parameterization,
                            .rank_ratio = 0.25};
}
int64_t step_cost_tokens(void) {
  return SEQUENCES * step_cost_model(SPT_DENSE).seq_len;
}

typedef struct run {
  spt_backend *backend;
  spt_params *params;
  spt_layout layout;
  float *parameters, *gradients;
  spt_control *control; /* backend memory */
  int *pairs;
  spt_slice *slices;
  spt_model *model;
  spt_optimizer *optimizer;
  int32_t *ids, *targets;
} run;

/* One rank owns everything, tensors follow each other. */
static spt_share lay_out(run *r, bool pairs) {
  const spt_params *params = r->params;
  spt_share share = {0};
  r->layout.offset = calloc((size_t)params->tensor_count, sizeof *r->layout.offset);
  r->pairs = calloc((size_t)params->pair_count + 1, sizeof *r->pairs);
  r->slices = calloc((size_t)params->tensor_count, sizeof *r->slices);
  assert_true(r->layout.offset && r->pairs && r->slices);
  for (int i = 0; pairs && i < params->pair_count; i++) r->pairs[share.pair_count++] = i;
  for (int i = 0; i < params->tensor_count; i++) {
    const spt_tensor *tensor = &params->tensors[i];
    r->layout.offset[i] = r->layout.elements;
    r->layout.elements += (tensor->count + 31) / 16 * 16;
    if (!pairs || tensor->pair < 0) r->slices[share.slice_count++] = (spt_slice){i, 0, tensor->count};
  }
  share.pairs = r->pairs;
  share.slices = r->slices;
  return share;
}

static void *memory(spt_backend *backend, size_t bytes) {
  void *pointer = NULL;
  assert_ok(backend->ops->alloc(backend, bytes, &pointer));
  return pointer;
}

static void open_run(const step_case *c, run *r) {
  const spt_model_config config = step_cost_model(c->parameterization);
  const bool pairs = c->parameterization != SPT_DENSE;
  const spt_optimizer_config update = {.method = pairs ? SPT_METHOD_SPECTRON : SPT_METHOD_ADAMW,
                                       .lr = 1e-3,
                                       .momentum = 0.95,
                                       .newton_schulz_steps = 5,
                                       .newton_schulz_coefficients = {3.4445, -4.7750, 2.0315},
                                       .power_steps = 1,
                                       .adamw = {.lr = -1, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8}};
  *r = (run){0};
  assert_ok(spt_backend_open(SPT_BACKEND_CPU, c->precision, c->threads, 1, &r->backend));
  ((spt_cpu *)r->backend)->attention_by_products = false; // as budgeted, also where AMX would make it so
  assert_ok(spt_params_open(&config, &r->params));
  const spt_share share = lay_out(r, pairs);
  const size_t bytes = (size_t)r->layout.elements * sizeof(float);
  r->parameters = memory(r->backend, bytes);
  r->gradients = memory(r->backend, bytes);
  r->control = memory(r->backend, sizeof *r->control);
  for (int64_t i = 0; i < r->layout.elements; i++) r->parameters[i] = 0.01f * (float)(i * 7919 % 13 - 6);
  assert_ok(
      spt_model_open(r->backend, &config, r->params, &r->layout, r->parameters, r->gradients, SEQUENCES, &r->model));
  assert_ok(spt_optimizer_open(r->backend, &update, r->params, &r->layout, &share, r->parameters, r->gradients, 1,
                               &r->optimizer));
  assert_ok(spt_model_refresh(r->model));
  r->ids = calloc((size_t)step_cost_tokens(), sizeof *r->ids);
  r->targets = calloc((size_t)step_cost_tokens(), sizeof *r->targets);
  assert_true(r->ids && r->targets);
  for (int64_t i = 0; i < step_cost_tokens(); i++) {
    r->ids[i] = (int32_t)(i * 7919 % config.vocab); // what a token is changes no count
    r->targets[i] = (int32_t)((i + 1) * 7919 % config.vocab);
  }
}

static void close_run(run *r) {
  const size_t bytes = (size_t)r->layout.elements * sizeof(float);
  spt_optimizer_close(&r->optimizer);
  spt_model_close(&r->model);
  r->backend->ops->free(r->backend, r->parameters, bytes);
  r->backend->ops->free(r->backend, r->gradients, bytes);
  r->backend->ops->free(r->backend, r->control, sizeof *r->control);
  spt_params_close(&r->params);
  r->backend->ops->close(&r->backend);
  free(r->layout.offset);
  free(r->pairs);
  free(r->slices);
  free(r->ids);
  free(r->targets);
}

static void step(const run *r, bool again) {
  spt_backend *backend = r->backend;
  double loss = 0;
  spt_control control = {.clip = 1, .apply = 1};
  assert_ok(backend->ops->upload(backend, r->control, &control, sizeof control));
  assert_ok(backend->ops->zero(backend, r->gradients, (size_t)r->layout.elements * sizeof(float)));
  for (int i = 0; i < (again ? 2 : 1); i++)
    assert_ok(spt_model_train(r->model, SEQUENCES, r->ids, r->targets, 1.0f / (float)step_cost_tokens(), NULL, &loss));
  assert_ok(spt_optimizer_gradient_stats(r->optimizer, r->control));
  assert_ok(backend->ops->download(backend, &control, r->control, sizeof control));
  assert_true(isfinite(loss) && control.non_finite == 0);
  assert_ok(spt_optimizer_step(r->optimizer, 1, r->control));
  assert_ok(spt_model_refresh(r->model));
}

static int64_t count_regions(const spt_backend *backend) {
  return ((const spt_cpu *)backend)->threads[0].entered;
}

static void count_step(const run *r, bool again, step_cost *cost) {
  *cost = (step_cost){.regions = -count_regions(r->backend), .misses = -spt_cpu_gemm_misses(r->backend)};
  memset(&r->backend->profile, 0, sizeof r->backend->profile);
  const allocation_counts before = allocations();
  step(r, again);
  const allocation_counts after = allocations();
  cost->allocations = (allocation_counts){after.own - before.own, after.library - before.library};
  cost->regions += count_regions(r->backend);
  cost->misses += spt_cpu_gemm_misses(r->backend);
  cost->reference_primitives = spt_cpu_gemm_counts((const spt_cpu *)r->backend).reference_primitives;
  cost->profile = r->backend->profile;
  for (int op = 0; op < SPT_OP_COUNT; op++)
    for (int backward = 0; backward < 2; backward++) {
      spt_op_profile *row = &cost->profile.ops[op][backward];
      row->seconds = row->products = 0;
      cost->op_calls += row->calls;
      cost->products += row->executed_products;
    }
}

void step_cost_measure(const step_case *c, bool again, step_cost costs[STEP_COST_STEPS], spt_model_memory *memory_p) {
  run r;
  open_run(c, &r);
  r.backend->profiling = true;
  step(&r, again);
  for (int i = 0; i < STEP_COST_STEPS; i++) count_step(&r, again, &costs[i]);
  const spt_model_config config = step_cost_model(c->parameterization);
  assert_ok(spt_model_measure(r.backend, &config, SEQUENCES, true, memory_p));
  close_run(&r);
}
