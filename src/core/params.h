/* The parameter table: every tensor's name, shape, role and update rule, in checkpoint order. It drives initialisation,
 * decay, the optimizer, sharding, checkpoints and export. Tensor names are Hugging Face LLaMA's (design, "Files"). */
#ifndef SPT_PARAMS_H
#define SPT_PARAMS_H

#include "config.h"

#define SPT_NAME_MAX 96

typedef enum {
  SPT_ROLE_EMBEDDING,
  SPT_ROLE_GAIN,
  SPT_ROLE_FACTOR_A,
  SPT_ROLE_FACTOR_B,
  SPT_ROLE_DENSE,
  SPT_ROLE_HEAD
} spt_role;

/* The seven matrices of a layer, in table order. */
typedef enum { SPT_Q, SPT_K, SPT_V, SPT_O, SPT_GATE, SPT_UP, SPT_DOWN, SPT_MATRICES } spt_matrix;

typedef struct spt_tensor {
  char name[SPT_NAME_MAX];
  spt_role role;
  int layer;          /* -1: none */
  int matrix;         /* spt_matrix, or -1 */
  int pair;           /* index in pairs, or -1 */
  int64_t rows, cols; /* a gain is (1, hidden) */
  int64_t count;      /* rows·cols */
  bool decay;         /* weight decay applies */
} spt_tensor;

/* What an optimizer other than AdamW updates as one: a factor pair W = A·Bᵀ, A (m, r), B (n, r), or a dense matrix by itself, W (m, n), with
 * b = -1 and r = 0. W maps n inputs to m outputs. */
typedef struct spt_pair {
  int a, b; /* tensor indices; a: of a dense matrix itself */
  int layer;
  spt_matrix matrix;
  int64_t m, n, r;
} spt_pair;

static inline bool spt_pair_is_dense(const spt_pair *pair) { return pair->b < 0; }
/* Its tensors: 2 of a factor pair, 1 of a dense matrix; tensor `side` of them. */
static inline int spt_pair_sides(const spt_pair *pair) { return spt_pair_is_dense(pair) ? 1 : 2; }
static inline int spt_pair_tensor(const spt_pair *pair, int side) { return side ? pair->b : pair->a; }
static inline int64_t spt_pair_elements(const spt_pair *pair) {
  return spt_pair_is_dense(pair) ? pair->m * pair->n : (pair->m + pair->n) * pair->r;
}
static inline bool spt_tensor_is_factor(const spt_tensor *tensor) {
  return tensor->role == SPT_ROLE_FACTOR_A || tensor->role == SPT_ROLE_FACTOR_B;
}

typedef struct spt_params {
  int tensor_count, pair_count;
  spt_tensor *tensors; /* table order */
  spt_pair *pairs;     /* table order */
  int64_t count;       /* parameters, the sum of all tensors' count */
} spt_params;

/* Tensor indices of one layer; for a dense matrix a[] is the dense tensor and b[] is -1. */
typedef struct spt_layer_tensors {
  int attention_norm, ffn_norm;
  int a[SPT_MATRICES], b[SPT_MATRICES];
} spt_layer_tensors;

/* Builds the table. The caller closes it. SPT_ERR_RESOURCE out of memory. Local. */
spt_status spt_params_open(const spt_model_config *model, spt_params **params_p);
void spt_params_close(spt_params **params_p);
/* How many of the pairs are factor pairs. */
int spt_params_factor_pairs(const spt_params *params);
/* Index of the tensor `name`, -1 if there is none. */
int spt_params_find(const spt_params *params, const char *name);
/* Outputs m and inputs n of one of a layer's matrices. */
void spt_matrix_shape(const spt_model_config *model, spt_matrix matrix, int64_t *m_p, int64_t *n_p);
/* "self_attn.q_proj". */
const char *spt_matrix_name(spt_matrix matrix);
bool spt_matrix_low_rank(const spt_model_config *model, spt_matrix matrix);
void spt_params_layer(const spt_params *params, int layer, spt_layer_tensors *tensors_p);
/* Tensor indices outside layers. With tied embeddings the head IS the embedding. */
int spt_params_embedding(const spt_params *params);
int spt_params_final_norm(const spt_params *params);
int spt_params_head(const spt_params *params);

/* Where each tensor lies in the parameter slab and, alike, in the gradient slab: offsets in floats. Made by the shard
 * plan (buckets in back-propagation order, inside a bucket runs by owner). */
typedef struct spt_layout {
  int64_t *offset;  /* [tensor_count] */
  int64_t elements; /* of a slab, alignment and red zones included */
} spt_layout;

/* Initial values (design, "The model"). W0 ~ N(0, 0.02²) from (seed, name without .A, .B or .weight, so a pair and its
 * dense matrix share it): gains 1; embedding, head and dense matrices W0; a factor pair the truncated SVD of its W0, A
 * = U_r·√Σ_r, B = V_r·√Σ_r (spectral initialisation, Khodak et al. 2021). */
spt_status spt_params_init_pair(const spt_params *params, int pair, uint64_t seed, float *a, float *b);
/* Elements [begin, end) of a tensor that is no factor. */
void spt_params_init_slice(const spt_params *params, int tensor, uint64_t seed, int64_t begin, int64_t end,
                           float *values);

#endif
