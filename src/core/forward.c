/* The forward pass: embedding, layers, head. */
#include "model_internal.h"

static spt_status group_forward(spt_model *model, int64_t layer, int group, int64_t tokens, const float *gain,
                                const void *x, const float *residual, float *rstd, void *y) {
  const layer_activations *kept = model_kept(model, layer);
  spt_group_forward_args args = {.desc = &model->groups[group],
                                       .tokens = tokens,
                                       .seq_len = model->config.seq_len,
                                       .weights = model_weights(model, layer, group),
                                       .gain = gain,
                                       .x = x,
                                       .residual = residual,
                                       .rstd = rstd,
                                       .t = spt_group_rank(&model->groups[group]) ? model_at(model, kept->t[group])
                                                                                  : NULL,
                                       .y = y,
                                       .workspace = spt_slab_at(&model->workspace, model->workspace_offset)};
  spt_model_group_alphas(model, layer, group, args.alpha);
  SPT_TRY(model->backend->ops->group_forward(model->backend, &args));
  return spt_model_saw_group(model, layer, group, tokens, y);
}

spt_status spt_model_layer_forward(spt_model *model, int64_t layer, int64_t sequences) {
  const spt_model_config *config = &model->config;
  const layer_activations *kept = model_kept(model, layer);
  const int64_t tokens = sequences * config->seq_len;
  spt_layer_tensors tensors;
  spt_params_layer(model->params, (int)layer, &tensors);
  const float *x = model_at(model, model->x[layer]); // (N, H)
  float *x_middle = model_at(model, kept->x_middle); // (N, H)
  float *x_next = model_at(model, model->x[layer + 1]);
  void *qkv = model_at(model, kept->qkv), *o = model_at(model, kept->o), *gate_up = model_at(model, kept->gate_up);

  SPT_TRY(group_forward(model, layer, GROUP_QKV, tokens, model_gain(model, tensors.attention_norm), x, NULL,
                        model_at(model, kept->rstd_attention), qkv));
  const spt_attention_args attention = {.sequences = sequences,
                                        .seq_len = config->seq_len,
                                        .heads = config->heads,
                                        .kv_heads = config->kv_heads,
                                        .head_dim = spt_head_dim(config),
                                        .qkv = qkv,
                                        .o = o,
                                        .lse = model_at(model, kept->lse),
                                        .workspace = spt_slab_at(&model->workspace, model->workspace_offset)};
  SPT_TRY(model->backend->ops->attention_forward(model->backend, &attention));
  SPT_TRY(spt_model_saw(model, "self_attn", layer, SPT_SEEN_OUTPUT, model->backend->act, tokens * config->hidden, o));
  SPT_TRY(group_forward(model, layer, GROUP_O, tokens, NULL, o, x, NULL, x_middle));
  SPT_TRY(group_forward(model, layer, GROUP_GATE_UP, tokens, model_gain(model, tensors.ffn_norm), x_middle, NULL,
                        model_at(model, kept->rstd_ffn), gate_up));
  return group_forward(model, layer, GROUP_DOWN, tokens, NULL, gate_up, x_middle, NULL, x_next);
}

spt_status spt_model_embed(spt_model *model, int64_t sequences, const int32_t *ids, const int32_t *targets) {
  spt_backend *backend = model->backend;
  const int64_t tokens = sequences * model->config.seq_len;
  const size_t bytes = (size_t)tokens * sizeof(int32_t);
  int32_t *device_ids = model_at(model, model->ids);
  SPT_TRY(backend->ops->upload(backend, device_ids, ids, bytes));
  SPT_TRY(backend->ops->upload(backend, model_at(model, model->targets), targets, bytes));
  SPT_TRY(backend->ops->embedding_forward(backend, tokens, model->config.hidden, device_ids,
                                          model_source(model, spt_params_embedding(model->params)), model_source_dtype(model),
                                          model_at(model, model->x[0])));
  return spt_model_saw(model, "embed_tokens", -1, SPT_SEEN_OUTPUT, SPT_F32, tokens * model->config.hidden, model_at(model, model->x[0]));
}

spt_status spt_model_trunk_forward(spt_model *model, int64_t sequences, const int32_t *ids, const int32_t *targets,
                                   const spt_backward_hooks *hooks) {
  SPT_TRY(spt_model_embed(model, sequences, ids, targets));
  for (int64_t layer = 0; layer < model->config.layers; layer++) {
    SPT_TRY(spt_model_layer_forward(model, layer, sequences));
    if (hooks) SPT_TRY(hooks->progress(hooks->context));
  }
  return SPT_OK;
}

spt_status spt_model_head(spt_model *model, int64_t sequences, bool train, float loss_scale, double *loss_sum) {
  spt_backend *backend = model->backend;
  const spt_model_config *config = &model->config;
  const int64_t tokens = sequences * config->seq_len;
  const int norm = spt_params_final_norm(model->params), head = spt_params_head(model->params);
  const spt_head_loss_args args = {.tokens = tokens,
                                   .hidden = config->hidden,
                                   .vocab = config->vocab,
                                   .norm_eps = config->norm_eps,
                                   .x = model_at(model, model->x[config->layers]),
                                   .gain = model_gain(model, norm),
                                   .weights = spt_slab_at(&model->weights, model->packed_head),
                                   .targets = model_at(model, model->targets),
                                   .losses = model_at(model, model->losses),
                                   .train = train,
                                   .loss_scale = loss_scale,
                                   .dx = train ? model_at(model, model->dx) : NULL,
                                   .dgain = train ? model_gradient(model, norm) : NULL,
                                   .dw = train ? model_gradient(model, head) : NULL,
                                   .workspace = spt_slab_at(&model->workspace, model->workspace_offset)};
  SPT_TRY(backend->ops->head_loss(backend, &args));
  SPT_TRY(spt_model_saw(model, "lm_head and loss", -1, SPT_SEEN_OUTPUT, SPT_F32, tokens, args.losses));
  if (train) {
    SPT_TRY(spt_model_saw_gradient(model, head));
    SPT_TRY(spt_model_saw_gradient(model, norm));
    SPT_TRY(spt_model_saw(model, "lm_head", -1, SPT_SEEN_INPUT_GRADIENT, SPT_F32, tokens * config->hidden, args.dx));
  }
  return backend->ops->sum(backend, tokens, args.losses, loss_sum);
}

spt_status spt_model_evaluate(spt_model *model, int64_t sequences, const int32_t *ids, const int32_t *targets,
                              double *loss_sum_p) {
  spt_backend *backend = model->backend;
  double sum, *device_sum = model_at(model, model->loss_sum);
  SPT_TRY(backend->ops->zero(backend, device_sum, sizeof sum));
  SPT_TRY(spt_model_trunk_forward(model, sequences, ids, targets, NULL));
  SPT_TRY(spt_model_head(model, sequences, false, 0, device_sum));
  SPT_TRY(backend->ops->download(backend, &sum, device_sum, sizeof sum));
  *loss_sum_p += sum;
  return SPT_OK;
}
