#include "flops.h"

static bool orthogonalizes(spt_method method) {
  return method == SPT_METHOD_SPECTRON || method == SPT_METHOD_MUON;
}

/* All but Newton–Schulz: counted by element. */
static double rest_of_pair(const spt_optimizer_config *optimizer, const spt_pair *pair) {
  const bool dense = spt_pair_is_dense(pair);
  const bool renormalizes = optimizer->method == SPT_METHOD_SPECTRON || optimizer->method == SPT_METHOD_RENORM;
  const double momentum = 3, normalize = optimizer->method == SPT_METHOD_SGD ? 0 : 3, update = 3;
  const double power = renormalizes && !dense ? 4 * (double)optimizer->power_steps : 0; // two matrix-vector products
  return (momentum + normalize + power + update) * (double)spt_pair_elements(pair);
}

double spt_flops_pair(const spt_optimizer_config *optimizer, const spt_pair *pair) {
  const double m = (double)pair->m, n = (double)pair->n, r = (double)pair->r;
  if (!orthogonalizes(optimizer->method)) return rest_of_pair(optimizer, pair);
  if (spt_pair_is_dense(pair)) {
    const double s = m < n ? m : n, l = m < n ? n : m;
    return (double)optimizer->newton_schulz_steps * 2 * s * s * (2 * l + s);
  }
  // One iteration on X (d, r), r <= d: Gram matrix 2·d·r², its square 2·r³, the product with X 2·d·r²; for both factors
  // of a pair together:
  return (double)optimizer->newton_schulz_steps * 4 * r * r * (m + n + r);
}

void spt_flops_count(const spt_model_config *model, const spt_optimizer_config *optimizer, const spt_params *params,
                     spt_flops *flops_p) {
  const double hidden = (double)model->hidden, adamw = 14;
  spt_flops flops = {0};
  for (int i = 0; i < params->tensor_count; i++) {
    const spt_tensor *tensor = &params->tensors[i];
    const bool guide = tensor->role == SPT_ROLE_GUIDE;
    if (tensor->matrix >= 0) *(guide ? &flops.guide_forward : &flops.matrices_forward) += 2 * (double)tensor->count;
    if (tensor->pair < 0 || optimizer->method == SPT_METHOD_ADAMW)
      *(guide ? &flops.guide_step : &flops.optimizer_step) += adamw * (double)tensor->count;
  }
  for (int i = 0; i < params->pair_count && optimizer->method != SPT_METHOD_ADAMW; i++) {
    const spt_pair *pair = &params->pairs[i];
    double *step = spt_params_guided_by(params, i) >= 0 ? &flops.guide_step : &flops.optimizer_step;
    *step += spt_flops_pair(optimizer, pair);
    if (orthogonalizes(optimizer->method)) *step += rest_of_pair(optimizer, pair);
  }
  // A token at position i attends to i + 1 keys: (T + 1)/2 on average, for scores and for values.
  flops.attention_forward = (double)model->layers * 2 * 2 * hidden * ((double)model->seq_len + 1) / 2;
  flops.head_forward = 2 * hidden * (double)model->vocab;
  flops.train_per_token = 3 * (flops.matrices_forward + flops.attention_forward + flops.head_forward);
  flops.six_nd_per_token = 6 * (double)params->count;
  *flops_p = flops;
}
