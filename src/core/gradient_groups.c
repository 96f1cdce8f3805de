#include "gradient_groups.h"

_Static_assert(SPT_GRADIENT_GROUPS <= 32, "groups are bits of 32");

#define MATRIX(name) name ".A", name ".B", name
static const char *const names[SPT_GRADIENT_GROUPS] = {
    "embedding",         "head",              "gains",           MATRIX("q_proj"),    MATRIX("k_proj"),
    MATRIX("v_proj"),    MATRIX("o_proj"),    MATRIX("gate_proj"), MATRIX("up_proj"), MATRIX("down_proj"),
};

int spt_gradient_group(const spt_tensor *tensor) {
  switch (tensor->role) {
  case SPT_ROLE_EMBEDDING: return SPT_GRADIENT_EMBEDDING;
  case SPT_ROLE_HEAD: return SPT_GRADIENT_HEAD;
  case SPT_ROLE_GAIN: return SPT_GRADIENT_GAINS;
  default: break;
  }
  const int kind = tensor->role == SPT_ROLE_FACTOR_A ? 0 : tensor->role == SPT_ROLE_FACTOR_B ? 1 : 2;
  return SPT_GRADIENT_MATRICES + 3 * tensor->matrix + kind;
}

const char *spt_gradient_group_name(int group) {
  return names[group];
}

uint32_t spt_gradient_groups_present(const spt_params *params) {
  uint32_t present = 0;
  for (int i = 0; i < params->tensor_count; i++) present |= 1u << spt_gradient_group(&params->tensors[i]);
  return present;
}
