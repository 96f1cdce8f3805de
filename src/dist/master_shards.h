/* Masters that lie at their owners alone: where a rank's own are in a slab that holds no others, and where all gains lie in a slab of theirs. Beside
 * them every rank holds all parameters rounded to bf16, in the plan's layout, which the owners' masters are gathered into (data_parallel.h); gains
 * are few and stay fp32. Local, deterministic. */
#ifndef SPT_MASTER_SHARDS_H
#define SPT_MASTER_SHARDS_H

#include "shard_plan.h"

/* Elements of an own run without a red zone between them: in a build without zones the run. */
typedef struct spt_master_piece {
  int64_t at, from, count; /* in the plan's layout; in masters */
} spt_master_piece;

typedef struct spt_master_shards {
  spt_layout masters;   /* the rank's runs one after another; element i of an owned part of tensor t at offset[t] + i; of other tensors unspecified */
  spt_master_piece *pieces;
  int *first_piece;     /* [bucket_count + 1] of each bucket, ascending */
  int64_t *gain_offset; /* [tensor_count] a gain's first element among the gains; −1: no gain */
  int64_t gain_elements;
} spt_master_shards;

/* SPT_ERR_RESOURCE: out of memory. The caller closes; close takes NULL. */
spt_status spt_master_shards_open(const spt_shard_plan *plan, const spt_params *params, int rank, spt_master_shards **shards_p);
void spt_master_shards_close(spt_master_shards **shards_p);
/* Elements of the slab of rank `rank`, gaps between tensors included, and of the gains', without opening. */
int64_t spt_master_shards_elements(const spt_shard_plan *plan, int rank);
int64_t spt_master_shards_gains(const spt_params *params);

#endif
