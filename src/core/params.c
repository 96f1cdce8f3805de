#include "params.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const matrix_name[SPT_MATRICES] = {
    [SPT_Q] = "self_attn.q_proj", [SPT_K] = "self_attn.k_proj", [SPT_V] = "self_attn.v_proj",
    [SPT_O] = "self_attn.o_proj", [SPT_GATE] = "mlp.gate_proj", [SPT_UP] = "mlp.up_proj",
    [SPT_DOWN] = "mlp.down_proj",
};

const char *spt_matrix_name(spt_matrix matrix) {
  return matrix_name[matrix];
}

void spt_matrix_shape(const spt_model_config *model, spt_matrix matrix, int64_t *m_p, int64_t *n_p) {
  const int64_t hidden = model->hidden, kv = model->kv_heads * spt_head_dim(model);
  const int64_t shape[SPT_MATRICES][2] = {
      [SPT_Q] = {hidden, hidden},
      [SPT_K] = {kv, hidden},
      [SPT_V] = {kv, hidden},
      [SPT_O] = {hidden, hidden},
      [SPT_GATE] = {model->ffn, hidden},
      [SPT_UP] = {model->ffn, hidden},
      [SPT_DOWN] = {hidden, model->ffn},
  };
  *m_p = shape[matrix][0];
  *n_p = shape[matrix][1];
}

bool spt_matrix_low_rank(const spt_model_config *model, spt_matrix matrix) {
  return model->parameterization == SPT_LOW_RANK || (model->parameterization == SPT_LOW_RANK_FFN && matrix >= SPT_GATE);
}

/* Appends a tensor (the array is large enough). Returns its index. */
static int add_tensor(spt_params *params, spt_role role, int layer, const char *name, int64_t rows, int64_t cols) {
  spt_tensor *tensor = &params->tensors[params->tensor_count];
  *tensor = (spt_tensor){.role = role, .layer = layer, .matrix = -1, .pair = -1, .rows = rows, .cols = cols};
  tensor->count = rows * cols;
  tensor->decay = role != SPT_ROLE_GAIN;
  if (layer >= 0) {
    snprintf(tensor->name, sizeof tensor->name, "model.layers.%d.%s", layer, name);
  } else {
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
  }
  params->count += tensor->count;
  return params->tensor_count++;
}

/* One of a layer's matrices: a factor pair W = A·Bᵀ, or a dense tensor. */
static void add_matrix(spt_params *params, const spt_model_config *model, int layer, spt_matrix matrix) {
  int64_t m, n;
  spt_matrix_shape(model, matrix, &m, &n);
  char name[SPT_NAME_MAX];
  if (!spt_matrix_low_rank(model, matrix)) {
    snprintf(name, sizeof name, "%s.weight", matrix_name[matrix]);
    const int dense = add_tensor(params, SPT_ROLE_DENSE, layer, name, m, n);
    params->tensors[dense].matrix = (int)matrix;
    params->tensors[dense].pair = params->pair_count;
    params->pairs[params->pair_count++] = (spt_pair){.a = dense, .b = -1, .layer = layer, .matrix = matrix, .m = m, .n = n};
    return;
  }
  const int64_t r = spt_factor_rank(model->rank_ratio, m, n);
  snprintf(name, sizeof name, "%s.A", matrix_name[matrix]);
  const int a = add_tensor(params, SPT_ROLE_FACTOR_A, layer, name, m, r);
  snprintf(name, sizeof name, "%s.B", matrix_name[matrix]);
  const int b = add_tensor(params, SPT_ROLE_FACTOR_B, layer, name, n, r);
  params->tensors[a].matrix = params->tensors[b].matrix = (int)matrix;
  params->tensors[a].pair = params->tensors[b].pair = params->pair_count;
  params->pairs[params->pair_count++] =
      (spt_pair){.a = a, .b = b, .layer = layer, .matrix = matrix, .m = m, .n = n, .r = r};
}

spt_status spt_params_open(const spt_model_config *model, spt_params **params_p) {
  const size_t layers = (size_t)model->layers;
  spt_params *params = calloc(1, sizeof *params);
  if (params) {
    params->tensors = calloc(3 + layers * (2 + 2 * SPT_MATRICES), sizeof *params->tensors);
    params->pairs = calloc(layers * SPT_MATRICES + 1, sizeof *params->pairs);
  }
  if (!params || !params->tensors || !params->pairs) {
    spt_params_close(&params);
    return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the parameter table of %lld layers", (long long)model->layers);
  }
  const int64_t hidden = model->hidden;
  add_tensor(params, SPT_ROLE_EMBEDDING, -1, "model.embed_tokens.weight", model->vocab, hidden);
  for (int layer = 0; layer < model->layers; layer++) {
    add_tensor(params, SPT_ROLE_GAIN, layer, "input_layernorm.weight", 1, hidden);
    for (spt_matrix matrix = SPT_Q; matrix <= SPT_O; matrix++) add_matrix(params, model, layer, matrix);
    add_tensor(params, SPT_ROLE_GAIN, layer, "post_attention_layernorm.weight", 1, hidden);
    for (spt_matrix matrix = SPT_GATE; matrix <= SPT_DOWN; matrix++) add_matrix(params, model, layer, matrix);
  }
  add_tensor(params, SPT_ROLE_GAIN, -1, "model.norm.weight", 1, hidden);
  if (!model->tie_embeddings) add_tensor(params, SPT_ROLE_HEAD, -1, "lm_head.weight", model->vocab, hidden);
  *params_p = params;
  return SPT_OK;
}

void spt_params_close(spt_params **params_p) {
  if (!params_p || !*params_p) return;
  free((*params_p)->tensors);
  free((*params_p)->pairs);
  free(*params_p);
  *params_p = NULL;
}

int spt_params_factor_pairs(const spt_params *params) {
  int count = 0;
  for (int i = 0; i < params->pair_count; i++) count += !spt_pair_is_dense(&params->pairs[i]);
  return count;
}

int spt_params_find(const spt_params *params, const char *name) {
  for (int i = 0; i < params->tensor_count; i++) {
    if (strcmp(params->tensors[i].name, name) == 0) return i;
  }
  return -1;
}

void spt_params_layer(const spt_params *params, int layer, spt_layer_tensors *tensors_p) {
  spt_layer_tensors found = {.attention_norm = -1, .ffn_norm = -1};
  for (int i = 0; i < SPT_MATRICES; i++) found.a[i] = found.b[i] = -1;
  for (int i = 0; i < params->tensor_count; i++) {
    const spt_tensor *tensor = &params->tensors[i];
    if (tensor->layer != layer) continue;
    if (tensor->role == SPT_ROLE_FACTOR_B) {
      found.b[tensor->matrix] = i;
    } else if (tensor->matrix >= 0) {
      found.a[tensor->matrix] = i;
    } else if (found.attention_norm < 0) { // the attention's norm stands first in a layer
      found.attention_norm = i;
    } else {
      found.ffn_norm = i;
    }
  }
  *tensors_p = found;
}

static int find_role(const spt_params *params, spt_role role) {
  for (int i = params->tensor_count - 1; i >= 0; i--) {
    if (params->tensors[i].role == role) return i;
  }
  return -1;
}

int spt_params_embedding(const spt_params *params) {
  return find_role(params, SPT_ROLE_EMBEDDING);
}

int spt_params_final_norm(const spt_params *params) {
  return find_role(params, SPT_ROLE_GAIN);
} // the last gain

int spt_params_head(const spt_params *params) {
  const int head = find_role(params, SPT_ROLE_HEAD);
  return head >= 0 ? head : spt_params_embedding(params);
}
