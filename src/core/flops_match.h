/* Equal compute: how many steps of one job spend the FLOPs of another ([schedule] match_flops). */
#ifndef SPT_FLOPS_MATCH_H
#define SPT_FLOPS_MATCH_H

#include "flops.h"

/* The count that a dense model of a preset's shape goes by: 134e6 of preset "S" or "134M". Of any other model its exact count. */
double spt_nominal_parameters(const spt_model_config *model, const spt_params *params);

/* FLOPs of a run of `steps` steps by the ops' own counts, optimizer included; validation is not counted. */
double spt_flops_run(const spt_config *config, const spt_flops *flops, int64_t steps);

/* The number of steps of `own` that spend the FLOPs of the whole of `other`, both complete (own but for its steps), by
 *   SPT_MATCH_NOMINAL  6·N·D, N of `other` nominal, of `own` exact, truncated: the paper's 2556, 9537, 14878 steps of S, M, L
 *   SPT_MATCH_SIX_ND   6·N·D, N exact, to the nearest: 2559, 9314, 14837
 *   SPT_MATCH_EXACT    spt_flops_run, to the nearest
 * into steps_p[3]. SPT_ERR_RESOURCE out of memory. Local. */
spt_status spt_flops_match(const spt_config *other, const spt_config *own, int64_t steps_p[3]);

#endif
