#include "flops.h"

#include "optimizer.h"

static bool orthogonalizes(spt_method method) {
  return method == SPT_METHOD_SPECTRON || method == SPT_METHOD_MUON;
}

/* Two matrix-vector products a power iteration, on every element of a factor. */
static double power_of_pair(const spt_optimizer_config *optimizer, const spt_pair *pair) {
  const bool renormalizes = optimizer->method == SPT_METHOD_SPECTRON || optimizer->method == SPT_METHOD_RENORM;
  if (!renormalizes || spt_pair_is_dense(pair)) return 0;
  return 4 * (double)optimizer->power_steps * (double)spt_pair_elements(pair);
}

/* Momentum, norm and update. */
static double elements_of_pair(const spt_optimizer_config *optimizer, const spt_pair *pair) {
  const double momentum = 3, normalize = optimizer->method == SPT_METHOD_SGD ? 0 : 3, update = 3;
  return (momentum + normalize + update) * (double)spt_pair_elements(pair);
}

/* One iteration on X, short side s and long side l: Gram matrix 2·l·s², its square 2·s³, the product with X 2·l·s². */
static double newton_schulz_of_pair(const spt_optimizer_config *optimizer, const spt_pair *pair) {
  if (!orthogonalizes(optimizer->method)) return 0;
  const double m = (double)pair->m, n = (double)pair->n, r = (double)pair->r, steps = (double)optimizer->newton_schulz_steps;
  if (!spt_pair_is_dense(pair)) return steps * 4 * r * r * (m + n + r); // both factors, r the short side
  const double s = m < n ? m : n, l = m < n ? n : m;
  return steps * 2 * s * s * (2 * l + s);
}

double spt_flops_pair(const spt_optimizer_config *optimizer, const spt_pair *pair) {
  if (orthogonalizes(optimizer->method)) return newton_schulz_of_pair(optimizer, pair);
  return elements_of_pair(optimizer, pair) + power_of_pair(optimizer, pair);
}

static void count_optimizer(const spt_optimizer_config *optimizer, const spt_params *params, spt_flops *flops) {
  const bool pairs = spt_method_uses_pairs(optimizer->method);
  for (int i = 0; i < params->tensor_count; i++)
    if (params->tensors[i].pair < 0 || !pairs) flops->adamw += 14 * (double)params->tensors[i].count;
  for (int i = 0; pairs && i < params->pair_count; i++) {
    flops->newton_schulz += newton_schulz_of_pair(optimizer, &params->pairs[i]);
    flops->power_iteration += power_of_pair(optimizer, &params->pairs[i]);
    flops->pair_elements += elements_of_pair(optimizer, &params->pairs[i]);
  }
  flops->optimizer_step = flops->newton_schulz + flops->power_iteration + flops->pair_elements + flops->adamw;
}

void spt_flops_count(const spt_model_config *model, const spt_optimizer_config *optimizer, const spt_params *params,
                     spt_flops *flops_p) {
  const double hidden = (double)model->hidden;
  spt_flops flops = {0};
  for (int i = 0; i < params->tensor_count; i++) {
    const spt_tensor *tensor = &params->tensors[i];
    if (tensor->matrix >= 0) flops.matrix_forward[tensor->matrix] += 2 * (double)tensor->count;
  }
  for (int matrix = 0; matrix < SPT_MATRICES; matrix++) flops.matrices_forward += flops.matrix_forward[matrix];
  count_optimizer(optimizer, params, &flops);
  // A token at position i attends to i + 1 keys: (T + 1)/2 on average, for scores and for values.
  flops.attention_forward = (double)model->layers * 2 * 2 * hidden * ((double)model->seq_len + 1) / 2;
  flops.head_forward = 2 * hidden * (double)model->vocab;
  flops.train_per_token = 3 * (flops.matrices_forward + flops.attention_forward + flops.head_forward);
  flops.six_nd_per_token = 6 * (double)params->count;
  *flops_p = flops;
}
