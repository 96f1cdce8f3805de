#include "pair_trainer.h"

#include "dense.h"
#include "unit_test.h"

#include <math.h>

void *trainer_memory(spt_backend *backend, size_t bytes) {
  void *pointer = NULL;
  assert_ok(backend->ops->alloc(backend, bytes, &pointer));
  return pointer;
}

void trainer_open(spt_backend *backend, const spt_params *params, const spt_layout *layout, pair_trainer *t) {
  *t = (pair_trainer){.backend = backend, .params = params, .layout = layout};
  int *pairs = calloc((size_t)params->pair_count, sizeof *pairs);
  assert_non_null(pairs);
  for (int i = 0; i < params->pair_count; i++) pairs[i] = i;
  t->share = (spt_share){.pairs = pairs, .pair_count = params->pair_count};
  t->parameters = trainer_memory(backend, (size_t)layout->elements * sizeof(float));
  t->gradients = trainer_memory(backend, (size_t)layout->elements * sizeof(float));
  t->control = trainer_memory(backend, sizeof *t->control);
  const spt_control apply = {.clip = 1, .apply = 1};
  assert_ok(backend->ops->upload(backend, t->control, &apply, sizeof apply));
}

void trainer_close(pair_trainer *t) {
  const spt_ops *ops = t->backend->ops;
  spt_optimizer_close(&t->optimizer);
  ops->free(t->backend, t->parameters, (size_t)t->layout->elements * sizeof(float));
  ops->free(t->backend, t->gradients, (size_t)t->layout->elements * sizeof(float));
  ops->free(t->backend, t->control, sizeof *t->control);
  free((int *)t->share.pairs);
}

void trainer_put(const pair_trainer *t, float *slab, int tensor, const float *values) {
  assert_ok(t->backend->ops->upload(t->backend, slab + t->layout->offset[tensor], values,
                                    (size_t)t->params->tensors[tensor].count * sizeof *values));
}

void trainer_get(const pair_trainer *t, const float *slab, int tensor, float *values) {
  assert_ok(t->backend->ops->download(t->backend, values, slab + t->layout->offset[tensor],
                                      (size_t)t->params->tensors[tensor].count * sizeof *values));
}

void trainer_use(pair_trainer *t, spt_method method, double lr, double momentum, uint64_t seed) {
  const spt_optimizer_config config = {.method = method,
                                       .lr = lr,
                                       .momentum = momentum,
                                       .newton_schulz_steps = 5,
                                       .newton_schulz_coefficients = {3.4445, -4.7750, 2.0315},
                                       .power_steps = 1,
                                       .adamw = {.lr = -1, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8}};
  spt_optimizer_close(&t->optimizer);
  assert_ok(spt_optimizer_open(t->backend, &config, t->params, t->layout, &t->share, t->parameters, t->gradients, seed,
                               &t->optimizer));
}

void trainer_use_exact_vectors(pair_trainer *t) {
  float w[DENSE_MAX * DENSE_MAX], u[DENSE_MAX];
  int count;
  const spt_state_piece *pieces = spt_optimizer_state(t->optimizer, &count);
  for (int i = 0; i < count; i++) {
    if (strcmp(pieces[i].kind, "power_u") != 0) continue;
    const spt_tensor *tensor = &t->params->tensors[pieces[i].tensor];
    trainer_get(t, t->parameters, pieces[i].tensor, w);
    dense_norm2(tensor->rows, tensor->cols, w, u);
    assert_ok(t->backend->ops->upload(t->backend, pieces[i].values, u, (size_t)tensor->rows * sizeof *u));
  }
}

void trainer_step(pair_trainer *t) {
  assert_ok(spt_optimizer_step(t->optimizer, 1, t->control));
}

void pair_table_open(int count, pair_table *table) {
  *table = (pair_table){{0}, {0}};
  table->params.tensors = calloc(2 * (size_t)count, sizeof *table->params.tensors);
  table->params.pairs = calloc((size_t)count, sizeof *table->params.pairs);
  table->layout.offset = calloc(2 * (size_t)count, sizeof *table->layout.offset);
  assert_true(table->params.tensors && table->params.pairs && table->layout.offset);
}

static int add_factor(pair_table *table, int pair, spt_role role, int64_t rows, int64_t cols) {
  const int index = table->params.tensor_count++;
  spt_tensor *tensor = &table->params.tensors[index];
  *tensor = (spt_tensor){.role = role, .pair = pair, .rows = rows, .cols = cols, .count = rows * cols, .decay = true};
  snprintf(tensor->name, sizeof tensor->name, "pair%d.%c", pair, role == SPT_ROLE_FACTOR_A ? 'A' : 'B');
  table->layout.offset[index] = table->layout.elements;
  table->layout.elements += (tensor->count + 15) / 16 * 16;
  table->params.count += tensor->count;
  return index;
}

void pair_table_add(pair_table *table, int64_t m, int64_t n, int64_t r) {
  const int pair = table->params.pair_count++;
  const int a = add_factor(table, pair, SPT_ROLE_FACTOR_A, m, r), b = add_factor(table, pair, SPT_ROLE_FACTOR_B, n, r);
  table->params.pairs[pair] = (spt_pair){.a = a, .b = b, .m = m, .n = n, .r = r};
}

void pair_table_close(pair_table *table) {
  free(table->params.tensors);
  free(table->params.pairs);
  free(table->layout.offset);
}

double fp32_rounding(const spt_pair *pair, const float *a, const float *b, double rho) {
  const double step = 1.21 * rho, part = step * sqrt((double)pair->r); // spectral and Frobenius norm of a step
  const double norm_a = dense_frobenius(pair->m * pair->r, a), norm_b = dense_frobenius(pair->n * pair->r, b);
  return 0x1p-23 * ((norm_a + part) * (norm_b + step) + (norm_b + part) * (norm_a + step));
}
