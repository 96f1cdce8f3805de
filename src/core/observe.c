/* What the ops of a pass wrote, told to the model's observer (model.h). */
#include "model_internal.h"

void spt_model_observe(spt_model *model, const spt_observer *observer) {
  model->observer = observer;
}

spt_status spt_model_saw(const spt_model *model, const char *what, int64_t layer, spt_seen seen, spt_dtype dtype, int64_t count,
                         const void *values) {
  if (!model->observer) return SPT_OK;
  const spt_observation observation = {
      .what = what, .layer = (int)layer, .seen = seen, .dtype = dtype, .count = count, .values = values};
  return model->observer->see(model->observer->context, &observation);
}

spt_status spt_model_saw_gradient(const spt_model *model, int tensor) {
  const spt_tensor *entry = &model->params->tensors[tensor];
  return spt_model_saw(model, entry->name, entry->layer, SPT_SEEN_GRADIENT, SPT_F32, entry->count,
                       model->gradients + model->layout->offset[tensor]);
}

spt_status spt_model_saw_group(const spt_model *model, int64_t layer, int group, int64_t tokens, const void *y) {
  const spt_group_desc *desc = &model->groups[group];
  const spt_dtype dtype = desc->epilogue == SPT_EPILOGUE_RESIDUAL ? SPT_F32 : model->backend->act;
  const char *at = y;
  if (!model->observer) return SPT_OK;
  for (int j = 0; j < desc->count; j++) { // members one after another (backend.h)
    const int64_t count = tokens * desc->out_dim[j];
    SPT_TRY(spt_model_saw(model, spt_matrix_name(spt_model_member(group, j)), layer, SPT_SEEN_OUTPUT, dtype, count, at));
    at += (size_t)count * spt_dtype_size(dtype);
  }
  return SPT_OK;
}

/* A group's input, as messages name it. */
static const char *const inputs[GROUPS] = {[GROUP_QKV] = "self_attn.{q,k,v}_proj",
                                           [GROUP_O] = "self_attn.o_proj",
                                           [GROUP_GATE_UP] = "mlp.{gate,up}_proj",
                                           [GROUP_DOWN] = "mlp.down_proj"};

spt_status spt_model_saw_group_gradients(const spt_model *model, int64_t layer, int group, int64_t tokens, const float *dgain, const void *dx) {
  const spt_group_desc *desc = &model->groups[group];
  spt_layer_tensors tensors;
  if (!model->observer) return SPT_OK;
  spt_params_layer(model->params, (int)layer, &tensors);
  for (int j = 0; j < desc->count; j++) {
    const spt_matrix matrix = spt_model_member(group, j);
    SPT_TRY(spt_model_saw_gradient(model, tensors.a[matrix]));
    if (tensors.b[matrix] >= 0) SPT_TRY(spt_model_saw_gradient(model, tensors.b[matrix]));
    if (tensors.guide[matrix] >= 0) SPT_TRY(spt_model_saw_gradient(model, tensors.guide[matrix]));
  }
  if (dgain) SPT_TRY(spt_model_saw_gradient(model, group == GROUP_QKV ? tensors.attention_norm : tensors.ffn_norm));
  const bool swiglu = desc->prologue == SPT_PROLOGUE_SWIGLU; // its input is gate and up
  const spt_dtype dtype = desc->prologue == SPT_PROLOGUE_RMSNORM ? SPT_F32 : model->backend->act;
  return spt_model_saw(model, inputs[group], layer, SPT_SEEN_INPUT_GRADIENT, dtype, tokens * desc->in_dim * (swiglu ? 2 : 1), dx);
}
