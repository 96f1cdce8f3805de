/* Counted floating-point operations of the factored network; a multiply-add is 2. */
#ifndef SPT_FLOPS_H
#define SPT_FLOPS_H

#include "params.h"

typedef struct spt_flops {
  double matrices_forward;  /* per token: every factor or dense product of the layers */
  double matrix_forward[SPT_MATRICES]; /* the same by kind of matrix, over all layers */
  double attention_forward; /* per token: causal scores and values, average over positions: 2·2·H·(T+1)/2 a layer */
  double head_forward;      /* per token: 2·H·V */
  double train_per_token;   /* 3 × (matrices + attention + head): forward, and backward at twice its cost */
  double optimizer_step; /* whole model, the sum of these: */
  double newton_schulz, power_iteration; /* 4 per element and power iteration */
  double pair_elements;                  /* per element of a pair: 3 momentum, 3 norm, 3 update */
  double adamw;                          /* 14 per element */
  double six_nd_per_token; /* 6·N as the paper counts */
} spt_flops;

void spt_flops_count(const spt_model_config *model, const spt_optimizer_config *optimizer, const spt_params *params,
                     spt_flops *flops_p);
/* FLOPs of one optimizer step of a pair: 20·r²·(m+n+r) for 5 Newton–Schulz steps of both factors (the plan's load,
 * design "Ranks"), of a dense matrix 10·s²·(2·l+s) with short side s and long side l; with the methods that do not orthogonalise, its elementwise work. */
double spt_flops_pair(const spt_optimizer_config *optimizer, const spt_pair *pair);

#endif
