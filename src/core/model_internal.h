/* What model.c, forward.c and backward.c share: the memory plan and the order of groups. Not for other files. */
#ifndef SPT_MODEL_INTERNAL_H
#define SPT_MODEL_INTERNAL_H

#include "model.h"
#include "slab.h"

/* The four pair groups of a layer, in forward order. */
enum { GROUP_QKV, GROUP_O, GROUP_GATE_UP, GROUP_DOWN, GROUPS };

/* Offsets in the activation slab of what one layer keeps for its backward (N tokens). */
typedef struct layer_activations {
  size_t rstd_attention, rstd_ffn; // (N) fp32
  size_t t[GROUPS];                // (N, Σr) act, low-rank groups only
  size_t qkv;                      // (N, (heads + 2·kv_heads)·head_dim) act, rotated
  size_t o;                        // (N, H) act
  size_t lse;                      // (sequences·heads, T) fp32
  size_t x_middle;                 // (N, H) fp32: residual stream after attention
  size_t gate_up;                  // (N, 2F) act; its gradient in backward
  size_t d_o, dqkv; // backward: act like o and qkv, in the place of d(gate|up), then done with, where they fit there
} layer_activations;

struct spt_model {
  spt_backend *backend; /* not owned */
  spt_model_config config;
  const spt_params *params;      /* not owned */
  const spt_layout *layout;      /* not owned */
  float *parameters, *gradients; /* not owned */
  spt_model_copies copies;       /* read in place of parameters where values is not NULL */
  int64_t micro;
  bool train;

  spt_group_desc groups[GROUPS]; /* the same in every layer */
  float *alphas;                 /* [layers·SPT_MATRICES] of the guides */
  size_t *packed;                /* [layers·GROUPS] offsets in weights */
  size_t packed_head;
  spt_slab weights, activations, workspace;

  int kept_layers;         /* layers: all kept; 1: recompute or evaluation only */
  layer_activations *kept; /* [kept_layers] */
  size_t *x;               /* [layers + 1] residual stream before each layer; evaluation alternates two */
  size_t ids, targets;     /* (N) int32 */
  size_t losses;           /* (N) fp32 */
  size_t loss_sum;         /* double, of an evaluation */
  size_t dx;               /* backward: (N, H) fp32 */
  size_t workspace_offset;
  const spt_observer *observer; /* not owned; NULL: none */
};

static inline void *model_at(const spt_model *model, size_t offset) {
  return spt_slab_at(&model->activations, offset);
}
static inline const layer_activations *model_kept(const spt_model *model, int64_t layer) {
  return &model->kept[model->kept_layers == 1 ? 0 : layer];
}
static inline const void *model_weights(const spt_model *model, int64_t layer, int group) {
  return spt_slab_at(&model->weights, model->packed[layer * GROUPS + group]);
}
/* What is read of a parameter that is no gain, of type model_source_dtype. */
static inline spt_dtype model_source_dtype(const spt_model *model) {
  return model->copies.values ? SPT_BF16 : SPT_F32;
}
static inline const void *model_source(const spt_model *model, int tensor) {
  const int64_t offset = model->layout->offset[tensor];
  if (model->copies.values) return (const uint16_t *)model->copies.values + offset;
  return model->parameters + offset;
}
static inline const float *model_gain(const spt_model *model, int tensor) {
  if (model->copies.values) return model->copies.gains + model->copies.gain_offset[tensor];
  return model->parameters + model->layout->offset[tensor];
}
static inline float *model_gradient(const spt_model *model, int tensor) {
  return model->gradients + model->layout->offset[tensor];
}

/* observe.c: what the ops of forward.c and backward.c wrote, to the observer; nothing without one. */
spt_status spt_model_saw(const spt_model *model, const char *what, int64_t layer, spt_seen seen, spt_dtype dtype, int64_t count,
                         const void *values);
/* The output of a layer's group, each member's. */
spt_status spt_model_saw_group(const spt_model *model, int64_t layer, int group, int64_t tokens, const void *y);
/* Gradients of a group's parameters (and of its gain, NULL: none), then of its input. */
spt_status spt_model_saw_group_gradients(const spt_model *model, int64_t layer, int group, int64_t tokens, const float *dgain, const void *dx);
spt_status spt_model_saw_gradient(const spt_model *model, int tensor);
/* The matrix that is member `member` of a group. */
spt_matrix spt_model_member(int group, int member);

/* The gradients of one group of a layer, in `slab`. */
spt_group_tensors spt_model_group_tensors(const spt_model *model, float *slab, int64_t layer, int group);
/* The alphas of one group's members. */
void spt_model_group_alphas(const spt_model *model, int64_t layer, int group, float alphas[SPT_GROUP_MAX]);
/* Layer `layer`, from x[layer] to x[layer + 1], filling what backward needs. */
spt_status spt_model_layer_forward(spt_model *model, int64_t layer, int64_t sequences);
/* Uploads ids and targets and runs the embedding. */
spt_status spt_model_embed(spt_model *model, int64_t sequences, const int32_t *ids, const int32_t *targets);
/* The same, and all layers. */
spt_status spt_model_trunk_forward(spt_model *model, int64_t sequences, const int32_t *ids, const int32_t *targets,
                                   const spt_backward_hooks *hooks);
/* Final norm, head and loss, added to *loss_sum (backend memory); with train also their backward (dx is written). */
spt_status spt_model_head(spt_model *model, int64_t sequences, bool train, float loss_scale, double *loss_sum);

#endif
