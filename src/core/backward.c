/* The backward pass, layer by layer from the head down. dx is the gradient of the residual stream, fp32, updated in
 * place. */
#include "model_internal.h"

typedef struct group_gradients {
  void *dy, *dx;      /* of the group's output and input */
  float *dx_residual; /* RMSNORM groups add to the residual stream's gradient */
  float *dgain;
} group_gradients;

static spt_status group_backward(spt_model *model, int64_t layer, int group, int64_t tokens, const float *gain,
                                 const void *x, const float *rstd, group_gradients gradients) {
  const layer_activations *kept = model_kept(model, layer);
  spt_group_backward_args args = {.desc = &model->groups[group],
                                        .tokens = tokens,
                                        .seq_len = model->config.seq_len,
                                        .weights = model_weights(model, layer, group),
                                        .gain = gain,
                                        .x = x,
                                        .rstd = rstd,
                                        .t = spt_group_rank(&model->groups[group]) ? model_at(model, kept->t[group])
                                                                                   : NULL,
                                        .dy = gradients.dy,
                                        .dx_residual = gradients.dx_residual,
                                        .dx = gradients.dx,
                                        .dgain = gradients.dgain,
                                        .gradients = spt_model_group_tensors(model, model->gradients, layer, group),
                                        .workspace = spt_slab_at(&model->workspace, model->workspace_offset)};
  spt_model_group_alphas(model, layer, group, args.alpha);
  SPT_TRY(model->backend->ops->group_backward(model->backend, &args));
  return spt_model_saw_group_gradients(model, layer, group, tokens, gradients.dgain, gradients.dx ? gradients.dx : gradients.dx_residual);
}

static spt_status progress(const spt_backward_hooks *hooks) {
  return hooks ? hooks->progress(hooks->context) : SPT_OK;
}

static spt_status layer_backward(spt_model *model, int64_t layer, int64_t sequences, const spt_backward_hooks *hooks) {
  const spt_model_config *config = &model->config;
  const layer_activations *kept = model_kept(model, layer);
  const int64_t tokens = sequences * config->seq_len;
  spt_layer_tensors tensors;
  spt_params_layer(model->params, (int)layer, &tensors);
  float *dx = model_at(model, model->dx);
  void *gate_up = model_at(model, kept->gate_up), *o = model_at(model, kept->o), *qkv = model_at(model, kept->qkv);
  void *d_o = model_at(model, kept->d_o), *dqkv = model_at(model, kept->dqkv);

  // x_next = x_middle + down(silu(gate)·up): d(gate|up) takes the place of gate|up
  SPT_TRY(group_backward(model, layer, GROUP_DOWN, tokens, NULL, gate_up, NULL,
                         (group_gradients){.dy = dx, .dx = gate_up}));
  SPT_TRY(progress(hooks));
  SPT_TRY(group_backward(
      model, layer, GROUP_GATE_UP, tokens, model_gain(model, tensors.ffn_norm), model_at(model, kept->x_middle),
      model_at(model, kept->rstd_ffn),
      (group_gradients){.dy = gate_up, .dx_residual = dx, .dgain = model_gradient(model, tensors.ffn_norm)}));
  SPT_TRY(progress(hooks));
  // x_middle = x + o_proj(attention)
  SPT_TRY(group_backward(model, layer, GROUP_O, tokens, NULL, o, NULL, (group_gradients){.dy = dx, .dx = d_o}));
  SPT_TRY(progress(hooks));
  const spt_attention_args attention = {.sequences = sequences,
                                        .seq_len = config->seq_len,
                                        .heads = config->heads,
                                        .kv_heads = config->kv_heads,
                                        .head_dim = spt_head_dim(config),
                                        .qkv = qkv,
                                        .o = o,
                                        .lse = model_at(model, kept->lse),
                                        .d_o = d_o,
                                        .dqkv = dqkv,
                                        .workspace = spt_slab_at(&model->workspace, model->workspace_offset)};
  SPT_TRY(model->backend->ops->attention_backward(model->backend, &attention));
  SPT_TRY(spt_model_saw(model, "self_attn", layer, SPT_SEEN_INPUT_GRADIENT, model->backend->act,
                        tokens * spt_group_out(&model->groups[GROUP_QKV]), dqkv));
  SPT_TRY(progress(hooks));
  return group_backward(
      model, layer, GROUP_QKV, tokens, model_gain(model, tensors.attention_norm), model_at(model, model->x[layer]),
      model_at(model, kept->rstd_attention),
      (group_gradients){.dy = dqkv, .dx_residual = dx, .dgain = model_gradient(model, tensors.attention_norm)});
}

spt_status spt_model_train(spt_model *model, int64_t sequences, const int32_t *ids, const int32_t *targets,
                           float loss_scale, const spt_backward_hooks *hooks, double *loss_sum) {
  spt_backend *backend = model->backend;
  const int64_t layers = model->config.layers;
  SPT_TRY(spt_model_trunk_forward(model, sequences, ids, targets, hooks));
  SPT_TRY(spt_model_head(model, sequences, true, loss_scale, loss_sum));
  if (hooks) SPT_TRY(hooks->grad_ready(hooks->context, 0));
  for (int64_t layer = layers - 1; layer >= 0; layer--) {
    // only the last layer's activations are still there when one set serves all layers
    if (model->kept_layers == 1 && layer < layers - 1) SPT_TRY(spt_model_layer_forward(model, layer, sequences));
    SPT_TRY(layer_backward(model, layer, sequences, hooks));
    if (hooks) SPT_TRY(hooks->grad_ready(hooks->context, (int)(layers - layer)));
  }
  SPT_TRY(backend->ops->embedding_backward(backend, sequences * model->config.seq_len, model->config.hidden,
                                           model->config.vocab, model_at(model, model->ids), model_at(model, model->dx),
                                           model_gradient(model, spt_params_embedding(model->params))));
  SPT_TRY(spt_model_saw_gradient(model, spt_params_embedding(model->params)));
  return hooks ? hooks->grad_ready(hooks->context, (int)layers + 1) : SPT_OK;
}
