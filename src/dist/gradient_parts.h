/* The parts of the gradient whose sums of squares do not depend on the number of ranks: whole tensors where they have one owner, and where
 * they are cut, pieces that no cut divides. For reduction = "tree". Local. */
#ifndef SPT_GRADIENT_PARTS_H
#define SPT_GRADIENT_PARTS_H

#include "core/backend.h"
#include "shard_plan.h"

/* Elements of a piece, counted from its bucket's beginning; open the plan with cuts at multiples of this (spt_shard_plan_open_coarse). */
enum { SPT_GRADIENT_PART = 4096 };

/* first_p: [tensor_count + 1] the first part of each tensor, and their number, which is returned too. */
int64_t spt_gradient_parts(const spt_shard_plan *plan, const spt_params *params, int64_t *first_p);
/* sums[part] = Σ g² of the parts that `rank` owns, others are left as they are; *non_finite_p += elements that are not finite. `control`, backend
 * memory, is overwritten. */
spt_status spt_gradient_part_sums(spt_backend *backend, const spt_shard_plan *plan, const spt_params *params, int rank,
                                  const float *gradients, spt_control *control, const int64_t *first, double *sums, double *non_finite_p);

#endif
