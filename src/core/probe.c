/* A probe of the model: the inputs of every matrix at a few positions of one sequence. */
#include "model_internal.h"

#include <math.h>
#include <string.h>

static const int groups_of[SPT_MATRICES] = {GROUP_QKV, GROUP_QKV, GROUP_QKV, GROUP_O, GROUP_GATE_UP, GROUP_GATE_UP, GROUP_DOWN};

/* Widths of the four groups' inputs. */
static void widths(const spt_model_config *config, int64_t width[GROUPS]) {
  width[GROUP_QKV] = width[GROUP_O] = width[GROUP_GATE_UP] = config->hidden;
  width[GROUP_DOWN] = config->ffn;
}

int64_t spt_probe_offset(const spt_model_config *config, int64_t positions, int layer, int matrix) {
  int64_t width[GROUPS], before = 0, all = 0;
  widths(config, width);
  for (int g = 0; g < GROUPS; g++) {
    if (g < groups_of[matrix]) before += width[g];
    all += width[g];
  }
  return positions * (layer * all + before);
}

static int64_t scratch_floats(const spt_model_config *config) {
  return 2 * (config->hidden > config->ffn ? config->hidden : config->ffn);
}

int64_t spt_probe_floats(const spt_model_config *config, int64_t positions) {
  return spt_probe_offset(config, positions, (int)config->layers, SPT_Q) + scratch_floats(config);
}

/* `count` activations from backend memory, as fp32. */
static spt_status fetch(spt_model *model, const void *from, int64_t index, int64_t count, spt_dtype dtype, float *to) {
  const size_t size = spt_dtype_size(dtype);
  SPT_TRY(model->backend->ops->download(model->backend, to, (const char *)from + (size_t)index * size, (size_t)count * size));
  if (dtype == SPT_F32) return SPT_OK;
  for (int64_t i = count - 1; i >= 0; i--) to[i] = spt_element(to, i, dtype); // in place, from the end
  return SPT_OK;
}

/* h = x·rstd·gain of one position, x (N, n). */
static spt_status normalised(spt_model *model, const float *x, int64_t position, const float *gain, float *h) {
  const int64_t n = model->config.hidden;
  double squares = 0;
  SPT_TRY(fetch(model, x, position * n, n, SPT_F32, h));
  for (int64_t i = 0; i < n; i++) squares += (double)h[i] * h[i];
  const double rstd = 1 / sqrt(squares / (double)n + model->config.norm_eps);
  for (int64_t i = 0; i < n; i++) h[i] = (float)(h[i] * rstd * gain[i]);
  return SPT_OK;
}

/* h = silu(gate)·up of one position; gate (N, F), then up (N, F). */
static spt_status gated(spt_model *model, const void *gate_up, int64_t position, float *up, float *h) {
  const int64_t width = model->config.ffn, tokens = model->config.seq_len;
  const spt_dtype act = model->backend->act;
  SPT_TRY(fetch(model, gate_up, position * width, width, act, h));
  SPT_TRY(fetch(model, gate_up, (tokens + position) * width, width, act, up));
  for (int64_t i = 0; i < width; i++) h[i] = h[i] / (1 + expf(-h[i])) * up[i];
  return SPT_OK;
}

/* The four groups' inputs in a layer that has just run. */
static spt_status hand_out(spt_model *model, int layer, int64_t count, const int64_t *positions, float *inputs, float *scratch) {
  const spt_model_config *config = &model->config;
  const layer_activations *kept = model_kept(model, layer);
  const size_t gain_bytes = (size_t)config->hidden * sizeof(float);
  static const spt_matrix first[GROUPS] = {SPT_Q, SPT_O, SPT_GATE, SPT_DOWN};
  float *h[GROUPS], *gain = scratch;
  spt_layer_tensors tensors;
  spt_params_layer(model->params, layer, &tensors);
  for (int g = 0; g < GROUPS; g++) h[g] = inputs + spt_probe_offset(config, count, layer, first[g]);
  SPT_TRY(model->backend->ops->download(model->backend, gain, model_gain(model, tensors.attention_norm), gain_bytes));
  for (int64_t i = 0; i < count; i++)
    SPT_TRY(normalised(model, model_at(model, model->x[layer]), positions[i], gain, h[GROUP_QKV] + i * config->hidden));
  SPT_TRY(model->backend->ops->download(model->backend, gain, model_gain(model, tensors.ffn_norm), gain_bytes));
  for (int64_t i = 0; i < count; i++) {
    SPT_TRY(normalised(model, model_at(model, kept->x_middle), positions[i], gain, h[GROUP_GATE_UP] + i * config->hidden));
    SPT_TRY(fetch(model, model_at(model, kept->o), positions[i] * config->hidden, config->hidden, model->backend->act,
                  h[GROUP_O] + i * config->hidden));
    SPT_TRY(gated(model, model_at(model, kept->gate_up), positions[i], scratch + scratch_floats(config) / 2,
                  h[GROUP_DOWN] + i * config->ffn));
  }
  return SPT_OK;
}

spt_status spt_model_probe(spt_model *model, const int32_t *ids, int64_t count, const int64_t *positions, float *inputs) {
  float *scratch = inputs + spt_probe_offset(&model->config, count, (int)model->config.layers, SPT_Q);
  SPT_TRY(spt_model_embed(model, 1, ids, ids)); // no loss: the targets are not looked at
  for (int layer = 0; layer < model->config.layers; layer++) {
    SPT_TRY(spt_model_layer_forward(model, layer, 1));
    SPT_TRY(hand_out(model, layer, count, positions, inputs, scratch));
  }
  return SPT_OK;
}
