/* Opening a model: the memory plan, the compute copy of the weights. forward.c and backward.c hold the passes. */
#include "model_internal.h"

#include <stdlib.h>
#include <string.h>

/* members of each group, in GEMM order */
static const struct {
  int count;
  spt_matrix matrix[SPT_GROUP_MAX];
  spt_prologue prologue;
  spt_epilogue epilogue;
} group_table[GROUPS] = {
    [GROUP_QKV] = {3, {SPT_Q, SPT_K, SPT_V}, SPT_PROLOGUE_RMSNORM, SPT_EPILOGUE_ROPE},
    [GROUP_O] = {1, {SPT_O}, SPT_PROLOGUE_NONE, SPT_EPILOGUE_RESIDUAL},
    [GROUP_GATE_UP] = {2, {SPT_GATE, SPT_UP}, SPT_PROLOGUE_RMSNORM, SPT_EPILOGUE_NONE},
    [GROUP_DOWN] = {1, {SPT_DOWN}, SPT_PROLOGUE_SWIGLU, SPT_EPILOGUE_RESIDUAL},
};

static void describe_groups(const spt_model_config *config, spt_group_desc groups[GROUPS]) {
  for (int g = 0; g < GROUPS; g++) {
    spt_group_desc *desc = &groups[g];
    *desc = (spt_group_desc){.count = group_table[g].count,
                             .prologue = group_table[g].prologue,
                             .epilogue = group_table[g].epilogue,
                             .head_dim = spt_head_dim(config),
                             .rope_theta = config->rope_theta,
                             .norm_eps = config->norm_eps};
    for (int j = 0; j < desc->count; j++) {
      const spt_matrix matrix = group_table[g].matrix[j];
      spt_matrix_shape(config, matrix, &desc->out_dim[j], &desc->in_dim);
      if (spt_matrix_low_rank(config, matrix))
        desc->factor_rank[j] = spt_factor_rank(config->rank_ratio, desc->out_dim[j], desc->in_dim);
    }
    desc->guided = config->guided && desc->factor_rank[0] > 0;
  }
}

spt_matrix spt_model_member(int group, int member) {
  return group_table[group].matrix[member];
}

spt_group_tensors spt_model_group_tensors(const spt_model *model, float *slab, int64_t layer, int group) {
  spt_layer_tensors tensors;
  spt_group_tensors view = {.a = {NULL}};
  spt_params_layer(model->params, (int)layer, &tensors);
  for (int j = 0; j < group_table[group].count; j++) {
    const spt_matrix matrix = group_table[group].matrix[j];
    view.a[j] = slab + model->layout->offset[tensors.a[matrix]];
    if (tensors.b[matrix] >= 0) view.b[j] = slab + model->layout->offset[tensors.b[matrix]];
    if (tensors.guide[matrix] >= 0) view.guide[j] = slab + model->layout->offset[tensors.guide[matrix]];
  }
  return view;
}

static spt_group_sources group_sources(const spt_model *model, int64_t layer, int group) {
  spt_layer_tensors tensors;
  spt_group_sources sources = {.dtype = model_source_dtype(model)};
  spt_params_layer(model->params, (int)layer, &tensors);
  for (int j = 0; j < group_table[group].count; j++) {
    const spt_matrix matrix = group_table[group].matrix[j];
    sources.a[j] = model_source(model, tensors.a[matrix]);
    if (tensors.b[matrix] >= 0) sources.b[j] = model_source(model, tensors.b[matrix]);
    if (tensors.guide[matrix] >= 0) sources.guide[j] = model_source(model, tensors.guide[matrix]);
  }
  return sources;
}

void spt_model_group_alphas(const spt_model *model, int64_t layer, int group, float alphas[SPT_GROUP_MAX]) {
  for (int j = 0; j < group_table[group].count; j++)
    alphas[j] = model->alphas[layer * SPT_MATRICES + group_table[group].matrix[j]];
}

void spt_model_set_guidance(spt_model *model, const float *alphas) {
  const size_t bytes = (size_t)(model->config.layers * SPT_MATRICES) * sizeof *alphas;
  if (alphas)
    memcpy(model->alphas, alphas, bytes);
  else
    memset(model->alphas, 0, bytes);
}

int spt_model_stage(const spt_model_config *model, const spt_params *params, int tensor) {
  const spt_tensor *entry = &params->tensors[tensor];
  if (entry->layer >= 0) return 1 + (int)model->layers - 1 - entry->layer;
  if (entry->role == SPT_ROLE_EMBEDDING) return (int)model->layers + 1;
  return 0;
}

/* ---- memory plan ---- */

static void reserve_layer(spt_model *model, layer_activations *kept) {
  spt_slab *slab = &model->activations;
  const spt_model_config *config = &model->config;
  const size_t tokens = (size_t)(model->micro * config->seq_len), act = spt_dtype_size(model->backend->act);
  kept->rstd_attention = spt_slab_reserve(slab, tokens * sizeof(float));
  kept->rstd_ffn = spt_slab_reserve(slab, tokens * sizeof(float));
  for (int g = 0; g < GROUPS; g++)
    kept->t[g] = spt_slab_reserve(slab, tokens * (size_t)spt_group_rank(&model->groups[g]) * act);
  kept->qkv = spt_slab_reserve(slab, tokens * (size_t)spt_group_out(&model->groups[GROUP_QKV]) * act);
  kept->o = spt_slab_reserve(slab, tokens * (size_t)config->hidden * act);
  kept->lse = spt_slab_reserve(slab, tokens * (size_t)config->heads * sizeof(float));
  kept->x_middle = spt_slab_reserve(slab, tokens * (size_t)config->hidden * sizeof(float));
  const size_t gate_up = tokens * (size_t)(2 * config->ffn) * act;
  const size_t d_o = (tokens * (size_t)config->hidden * act + 63) / 64 * 64,
               dqkv = tokens * (size_t)spt_group_out(&model->groups[GROUP_QKV]) * act;
  kept->gate_up = spt_slab_reserve(slab, gate_up);
  if (!model->train) return;
  if (d_o + dqkv <= gate_up)
    kept->d_o = kept->gate_up;
  else // one for all layers
    kept->d_o = kept == model->kept ? spt_slab_reserve(slab, d_o + dqkv) : model->kept->d_o;
  kept->dqkv = kept->d_o + d_o;
}

/* Fills every offset; allocates only the plan's own arrays. */
static spt_status plan_memory(spt_model *model) {
  const spt_model_config *config = &model->config;
  spt_backend *backend = model->backend;
  const int64_t layers = config->layers;
  const size_t tokens = (size_t)(model->micro * config->seq_len);
  const size_t residual = tokens * (size_t)config->hidden * sizeof(float);

  describe_groups(config, model->groups);
  spt_slab_init(&model->weights, "compute weights");
  spt_slab_init(&model->activations, "activations");
  spt_slab_init(&model->workspace, "workspace");
  model->kept_layers = model->train && !config->recompute ? (int)layers : 1;
  model->alphas = calloc((size_t)layers * SPT_MATRICES, sizeof *model->alphas);
  model->packed = calloc((size_t)layers * GROUPS, sizeof *model->packed);
  model->kept = calloc((size_t)model->kept_layers, sizeof *model->kept);
  model->x = calloc((size_t)layers + 1, sizeof *model->x);
  if (!model->alphas || !model->packed || !model->kept || !model->x)
    return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory planning the model");

  for (int64_t i = 0; i < layers * GROUPS; i++)
    model->packed[i] =
        spt_slab_reserve(&model->weights, backend->ops->group_packed_bytes(backend, &model->groups[i % GROUPS]));
  model->packed_head =
      spt_slab_reserve(&model->weights, backend->ops->head_packed_bytes(backend, config->vocab, config->hidden));

  spt_slab *slab = &model->activations;
  for (int i = 0; i < model->kept_layers; i++) reserve_layer(model, &model->kept[i]);
  for (int64_t l = 0; l <= layers; l++)
    model->x[l] = model->train || l < 2 ? spt_slab_reserve(slab, residual) : model->x[l - 2];
  model->ids = spt_slab_reserve(slab, tokens * sizeof(int32_t));
  model->targets = spt_slab_reserve(slab, tokens * sizeof(int32_t));
  model->losses = spt_slab_reserve(slab, tokens * sizeof(float));
  model->loss_sum = spt_slab_reserve(slab, sizeof(double));
  if (model->train) model->dx = spt_slab_reserve(slab, residual);
  model->workspace_offset = spt_slab_reserve(
      &model->workspace, backend->ops->workspace_bytes(backend, config, (int64_t)tokens, model->train));
  return SPT_OK;
}

static void free_plan(spt_model *model) {
  spt_slab_fini(&model->weights);
  spt_slab_fini(&model->activations);
  spt_slab_fini(&model->workspace);
  free(model->alphas);
  free(model->packed);
  free(model->kept);
  free(model->x);
}

spt_status spt_model_measure(spt_backend *backend, const spt_model_config *config, int64_t micro, bool train,
                             spt_model_memory *memory_p) {
  spt_model model = {.backend = backend, .config = *config, .micro = micro, .train = train};
  const spt_status status = plan_memory(&model);
  if (status == SPT_OK)
    *memory_p = (spt_model_memory){.compute_weights = model.weights.bytes,
                                   .activations = model.activations.bytes,
                                   .workspace = model.workspace.bytes};
  free_plan(&model);
  return status;
}

/* ---- opening ---- */

spt_status spt_model_open(spt_backend *backend, const spt_model_config *config, const spt_params *params,
                          const spt_layout *layout, float *parameters, float *gradients, int64_t micro,
                          spt_model **model_p) {
  spt_status status = SPT_OK;
  spt_model *model = calloc(1, sizeof *model);
  if (!model) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory opening the model");
  model->backend = backend;
  model->config = *config;
  model->params = params;
  model->layout = layout;
  model->parameters = parameters;
  model->gradients = gradients;
  model->micro = micro;
  model->train = gradients != NULL;
  SPT_TRY_GOTO(plan_memory(model), fail);
  SPT_TRY_GOTO(spt_slab_allocate(&model->weights, backend), fail);
  SPT_TRY_GOTO(spt_slab_allocate(&model->activations, backend), fail);
  SPT_TRY_GOTO(spt_slab_allocate(&model->workspace, backend), fail);
  *model_p = model;
  return SPT_OK;
fail:
  spt_model_close(&model);
  return status;
}

void spt_model_close(spt_model **model_p) {
  if (!*model_p) return;
  free_plan(*model_p);
  free(*model_p);
  *model_p = NULL;
}

void spt_model_read_copies(spt_model *model, const spt_model_copies *copies) {
  model->copies = *copies;
}

spt_status spt_model_refresh(spt_model *model) {
  spt_backend *backend = model->backend;
  for (int64_t layer = 0; layer < model->config.layers; layer++) {
    for (int g = 0; g < GROUPS; g++) {
      const spt_group_sources masters = group_sources(model, layer, g);
      void *weights = spt_slab_at(&model->weights, model->packed[layer * GROUPS + g]);
      SPT_TRY(backend->ops->group_pack(backend, &model->groups[g], &masters, weights));
    }
  }
  return backend->ops->head_pack(backend, model->config.vocab, model->config.hidden,
                                 model_source(model, spt_params_head(model->params)), model_source_dtype(model),
                                 spt_slab_at(&model->weights, model->packed_head));
}

spt_status spt_model_check(const spt_model *model) {
  SPT_TRY(spt_slab_check(&model->weights));
  SPT_TRY(spt_slab_check(&model->activations));
  return spt_slab_check(&model->workspace);
}
