/* The groups that gradient norms are told by: embedding, head, norm gains, and each kind of matrix over all layers, its
 * factors A and B apart from the dense ones. Local. */
#ifndef SPT_GRADIENT_GROUPS_H
#define SPT_GRADIENT_GROUPS_H

#include "params.h"

enum {
  SPT_GRADIENT_EMBEDDING,
  SPT_GRADIENT_HEAD,
  SPT_GRADIENT_GAINS,
  SPT_GRADIENT_MATRICES, /* from here: A, B and dense of each spt_matrix */
  SPT_GRADIENT_GROUPS = SPT_GRADIENT_MATRICES + 3 * SPT_MATRICES
};

/* The group of a tensor. */
int spt_gradient_group(const spt_tensor *tensor);
/* "embedding", "q_proj.A", "q_proj.B", "q_proj" (dense). */
const char *spt_gradient_group_name(int group);
/* Bit g: the model has tensors of group g. */
uint32_t spt_gradient_groups_present(const spt_params *params);

#endif
