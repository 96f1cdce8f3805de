/* The data-parallel part of a step: bucketed gradient reduction that runs during backward, and the gather of updated parameters. */
#ifndef SPT_DATA_PARALLEL_H
#define SPT_DATA_PARALLEL_H

#include "comm.h"
#include "core/model.h"
#include "master_shards.h"
#include "shard_plan.h"
#include "tree_reduction.h"

typedef struct spt_data_parallel spt_data_parallel;

/* What the last step's overlap was: evidence, not assumption. */
typedef struct spt_overlap {
  int buckets;              /* reductions: of a bucket one, with reduction = "tree" one an exchange */
  int posted_in_backward;   /* reductions started before the last stage was ready */
  int complete_before_wait; /* requests found complete when reduce_finish began */
  double wait_seconds;      /* spent waiting in reduce_finish */
  double gather_seconds;    /* spent in gather */
} spt_overlap;

/* parameters, gradients: slabs in the plan's layout; borrowed. overlap false posts all reductions in reduce_finish. Collective. */
spt_status spt_data_parallel_open(spt_comm *comm, const spt_shard_plan *plan, spt_reduction reduction, bool overlap, float *parameters,
                                  float *gradients, spt_data_parallel **dp_p);
void spt_data_parallel_close(spt_data_parallel **dp_p);
/* The same with reduction = "tree", over a tree of its own, borrowed: call spt_tree_reduction_keep after each micro-batch but the last. */
spt_status spt_data_parallel_open_tree(spt_comm *comm, const spt_shard_plan *plan, spt_tree_reduction *tree, bool overlap, float *parameters,
                                       float *gradients, spt_data_parallel **dp_p);
/* Masters that lie at their owners alone (master_shards.h): `parameters` are this rank's, and a gather fills the copies of all. Borrowed. Before the first
 * gather. */
typedef struct spt_gathered_copies {
  spt_backend *backend;
  const spt_master_shards *shards;
  void *values; /* bf16, in the plan's layout */
  float *gains; /* [shards->gain_elements] */
} spt_gathered_copies;
void spt_data_parallel_gather_copies(spt_data_parallel *dp, const spt_gathered_copies *copies);
/* Hooks for the backward pass of the step's last micro-batch: starts each bucket as soon as its stage is ready. */
spt_backward_hooks spt_data_parallel_hooks(spt_data_parallel *dp);
/* Starts what was not started and waits for all: afterwards the gradients this rank owns (all-reduce: all gradients) are summed over ranks. Collective. */
spt_status spt_data_parallel_reduce_finish(spt_data_parallel *dp);
/* Every rank receives the owners' parameters, or their copies: masters rounded to bf16, and gains as they are. Collective. */
spt_status spt_data_parallel_gather(spt_data_parallel *dp);
/* The same with what the owners have in the gradient slab, once its gradients are used up. Collective. */
spt_status spt_data_parallel_gather_gradients(spt_data_parallel *dp);
/* Of the last step. */
const spt_overlap *spt_data_parallel_overlap(const spt_data_parallel *dp);

#endif
