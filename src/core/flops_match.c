#include "flops_match.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* "134M" → 134e6, "1.4B" → 1.4e9. */
static double nominal_of(const spt_preset *preset) {
  char *unit;
  const double number = strtod(preset->name, &unit);
  return number * (*unit == 'B' ? 1e9 : 1e6);
}

static bool is_shape_of(const spt_model_config *model, const spt_preset *preset) {
  return model->hidden == preset->hidden && model->layers == preset->layers && model->heads == preset->heads && model->kv_heads == model->heads &&
         model->ffn == (8 * model->hidden + 767) / 768 * 256 && model->vocab == 32000 && !model->tie_embeddings;
}

double spt_nominal_parameters(const spt_model_config *model, const spt_params *params) {
  int count;
  const spt_preset *presets = spt_presets(&count);
  for (int i = 0; model->parameterization == SPT_DENSE && i < count; i++)
    if (is_shape_of(model, &presets[i])) return nominal_of(&presets[i]);
  return (double)params->count;
}

double spt_flops_run(const spt_config *config, const spt_flops *flops, int64_t steps) {
  const double tokens = (double)config->batch.sequences * (double)config->model.seq_len;
  return (double)steps * (tokens * flops->train_per_token + flops->optimizer_step);
}

/* The number of steps whose FLOPs are nearest to `target`; they grow with the steps. */
static int64_t nearest_steps(const spt_config *config, const spt_flops *flops, double target) {
  int64_t low = 0, high = (int64_t)1 << 40; // as many as the job file may say
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (spt_flops_run(config, flops, middle) <= target)
      low = middle;
    else
      high = middle - 1;
  }
  const double below = spt_flops_run(config, flops, low), above = spt_flops_run(config, flops, low + 1);
  return above - target < target - below ? low + 1 : low;
}

static int64_t whole(double steps) {
  const double most = (double)((int64_t)1 << 40);
  return (int64_t)(steps < most ? floor(steps) : most);
}

spt_status spt_flops_match(const spt_config *other, const spt_config *own, int64_t steps_p[3]) {
  spt_params *params[2] = {NULL};
  spt_flops flops[2];
  spt_status status = spt_params_open(&other->model, &params[0]);
  if (status == SPT_OK) status = spt_params_open(&own->model, &params[1]);
  if (status == SPT_OK) {
    spt_flops_count(&other->model, &other->optimizer, params[0], &flops[0]);
    spt_flops_count(&own->model, &own->optimizer, params[1], &flops[1]);
    const double tokens = (double)other->schedule.steps * (double)other->batch.sequences * (double)other->model.seq_len,
                 own_step = (double)params[1]->count * (double)own->batch.sequences * (double)own->model.seq_len;
    steps_p[SPT_MATCH_NOMINAL] = whole(spt_nominal_parameters(&other->model, params[0]) * tokens / own_step);
    steps_p[SPT_MATCH_SIX_ND] = whole((double)params[0]->count * tokens / own_step + 0.5);
    steps_p[SPT_MATCH_EXACT] = nearest_steps(own, &flops[1], spt_flops_run(other, &flops[0], other->schedule.steps));
  }
  spt_params_close(&params[0]);
  spt_params_close(&params[1]);
  return status;
}
