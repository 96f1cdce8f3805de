/* The central claim (arXiv:2602.12429, Sec. 4): W = A·Bᵀ does not know how its size is shared between A and B.
 * Rescaling every pair of a model, (A, B) → (λA, B/λ), leaves the forward pass as it is; Spectron's ‖ΔW‖₂ stays within
 * its bound for every λ, Muon's grows with it. Model, gradients and updates are the program's; norms are exact. */
#include "dense.h"
#include "pair_trainer.h"
#include "unit_test.h"

#include "core/model.h"
#include "core/rng.h"

#include <math.h>

enum { SEQUENCES = 2, SCALES = 9, BASE = 4 };
/* Powers of two are exact in fp32: there the loss may not change by a bit. */
static const double scales[SCALES] = {1e-3, 1e-2, 0x1p-5, 1e-1, 1, 1e1, 0x1p5, 1e2, 1e3};
static const double eta = 0.01, bound = 1.21; /* five Newton–Schulz iterations reach 1.2024 */

static uint64_t seed;

static const spt_model_config config = {.hidden = 48,
                                        .layers = 2,
                                        .heads = 3,
                                        .kv_heads = 3,
                                        .ffn = 80,
                                        .vocab = 97,
                                        .seq_len = 37,
                                        .rope_theta = 10000,
                                        .norm_eps = 1e-5,
                                        .parameterization = SPT_LOW_RANK,
                                        .rank_ratio = 0.28};

/* Initial values as the program makes them, but twenty times larger: at N(0, 0.02²) the layers hardly touch the loss.
 */
static float *initial_values(const spt_params *params, const spt_layout *layout) {
  float *values = calloc((size_t)layout->elements, sizeof *values);
  assert_non_null(values);
  for (int i = 0; i < params->pair_count; i++) {
    const spt_pair *pair = &params->pairs[i];
    float *a = values + layout->offset[pair->a], *b = values + layout->offset[pair->b];
    assert_ok(spt_params_init_pair(params, i, seed, a, b));
    for (int64_t j = 0; j < params->tensors[pair->a].count; j++) a[j] *= sqrtf(20);
    for (int64_t j = 0; j < params->tensors[pair->b].count; j++) b[j] *= sqrtf(20);
  }
  for (int i = 0; i < params->tensor_count; i++) {
    if (params->tensors[i].pair >= 0) continue;
    float *w = values + layout->offset[i];
    spt_params_init_slice(params, i, seed, 0, params->tensors[i].count, w);
    for (int64_t j = 0; params->tensors[i].role != SPT_ROLE_GAIN && j < params->tensors[i].count; j++) w[j] *= 20;
  }
  return values;
}

static void rescale(const spt_params *params, const spt_layout *layout, double lambda, const float *values,
                    float *scaled) {
  memcpy(scaled, values, (size_t)layout->elements * sizeof *scaled);
  for (int i = 0; i < params->tensor_count; i++) {
    const spt_role role = params->tensors[i].role;
    const double factor = role == SPT_ROLE_FACTOR_A ? lambda : role == SPT_ROLE_FACTOR_B ? 1 / lambda : 1;
    float *w = scaled + layout->offset[i];
    for (int64_t j = 0; j < params->tensors[i].count; j++) w[j] = (float)(factor * w[j]);
  }
}

/* One step with exact norms from `scaled`, gradients as they lie there. Returns the largest ‖ΔW‖₂/η of all pairs,
 * rounding taken off. */
static double largest_step(pair_trainer *t, spt_method method, const float *scaled) {
  const size_t bytes = (size_t)t->layout->elements * sizeof(float);
  float *updated = malloc(bytes);
  assert_non_null(updated);
  assert_ok(t->backend->ops->upload(t->backend, t->parameters, scaled, bytes));
  trainer_use(t, method, eta, 0, seed);
  trainer_use_exact_vectors(t);
  trainer_step(t);
  assert_ok(t->backend->ops->download(t->backend, updated, t->parameters, bytes));
  double largest = 0;
  for (int i = 0; i < t->params->pair_count; i++) {
    const spt_pair *pair = &t->params->pairs[i];
    const int64_t offset_a = t->layout->offset[pair->a], offset_b = t->layout->offset[pair->b];
    const float *a = scaled + offset_a, *b = scaled + offset_b;
    const double rho = eta / (dense_norm2(pair->m, pair->r, a, NULL) + dense_norm2(pair->n, pair->r, b, NULL) + 1);
    const double norm = dense_composite_norm2(pair->m, pair->n, pair->r, a, b, updated + offset_a, updated + offset_b);
    if (method == SPT_METHOD_SPECTRON) assert_true(norm > 0.1 * eta); // it still moves, at every scale
    const double slack = method == SPT_METHOD_SPECTRON ? fp32_rounding(pair, a, b, rho) : 0;
    assert_true(slack <= 0.03 * eta);
    largest = fmax(largest, (norm - slack) / eta);
  }
  free(updated);
  return largest;
}

static void test_rescaling(void **state) {
  (void)state;
  spt_backend *backend = NULL;
  spt_params *params = NULL;
  spt_model *model = NULL;
  spt_layout layout = {0};
  pair_trainer t;
  int32_t ids[SEQUENCES * 37], targets[SEQUENCES * 37];
  assert_ok(spt_backend_open(SPT_BACKEND_CPU, SPT_PRECISION_FP32, 1, 1, &backend));
  assert_ok(spt_params_open(&config, &params));
  layout.offset = calloc((size_t)params->tensor_count, sizeof *layout.offset);
  assert_non_null(layout.offset);
  for (int i = 0; i < params->tensor_count; i++) {
    layout.offset[i] = layout.elements;
    layout.elements += (params->tensors[i].count + 15) / 16 * 16;
  }
  const size_t bytes = (size_t)layout.elements * sizeof(float);
  float *values = initial_values(params, &layout), *scaled = malloc(bytes);
  assert_non_null(scaled);
  for (int i = 0; i < SEQUENCES * 37; i++) {
    ids[i] = (int32_t)(spt_random_bits(seed, 1, (uint64_t)i) % (uint64_t)config.vocab);
    targets[i] = (int32_t)(spt_random_bits(seed, 2, (uint64_t)i) % (uint64_t)config.vocab);
  }
  trainer_open(backend, params, &layout, &t);
  assert_ok(spt_model_open(backend, &config, params, &layout, t.parameters, t.gradients, SEQUENCES, &model));

  double loss[SCALES], spectron[SCALES], muon[SCALES];
  for (int i = 0; i < SCALES; i++) {
    rescale(params, &layout, scales[i], values, scaled);
    assert_ok(backend->ops->upload(backend, t.parameters, scaled, bytes));
    assert_ok(backend->ops->zero(backend, t.gradients, bytes));
    assert_ok(spt_model_refresh(model));
    loss[i] = 0;
    assert_ok(spt_model_train(model, SEQUENCES, ids, targets, 1, NULL, &loss[i]));
    spectron[i] = largest_step(&t, SPT_METHOD_SPECTRON, scaled);
    muon[i] = largest_step(&t, SPT_METHOD_MUON, scaled);
    print_message("lambda %-8g loss %.9f, largest step: Spectron %.3f eta, Muon %.3f eta\n", scales[i],
                  loss[i] / (SEQUENCES * 37), spectron[i], muon[i]);
  }
  for (int i = 0; i < SCALES; i++) {
    assert_true(fabs(loss[i] / loss[BASE] - 1) <= 2e-6);
    if (frexp(scales[i], &(int){0}) == 0.5) assert_true(loss[i] == loss[BASE]);
    assert_true(spectron[i] <= bound * (1 + 1e-5));
  }
  for (int i = BASE; i < SCALES - 1; i++) assert_true(muon[i + 1] > 1.5 * muon[i]);
  for (int i = BASE; i > 0; i--) assert_true(muon[i - 1] > 1.5 * muon[i]);
  assert_true(muon[0] > 100 * muon[BASE] && muon[SCALES - 1] > 100 * muon[BASE]);

  spt_model_close(&model);
  trainer_close(&t);
  spt_params_close(&params);
  free(layout.offset);
  free(values);
  free(scaled);
  backend->ops->close(&backend);
}

int main(void) {
  seed = unit_test_seed("test_spectron_rescaling");
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_rescaling)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
