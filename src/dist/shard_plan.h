/* Who owns what, and where it lies. A factor pair has one owner (rho couples both norms), and so has a dense matrix unless it is AdamW's:
 * longest-processing-time rule on its Newton–Schulz FLOPs. Elementwise tensors fill the lightly loaded: embedding, head and AdamW's are cut anywhere, as evenly
 * as the largest load allows; gains go whole (and are cut like the rest where there are no pairs).
 * Guides come after all else, onto the lightest loads, and have buckets of their own: what a rank owns of the rest, pairs and slices, is the same with
 * and without them, so that no state moves between ranks when guidance ends.
 * Buckets are contiguous in back-propagation order and hold, inside, runs by owner: collectives need no staging and no padding.
 * The plan is the same on every rank. Local, deterministic. */
#ifndef SPT_SHARD_PLAN_H
#define SPT_SHARD_PLAN_H

#include "core/flops.h"
#include "core/optimizer.h"

typedef struct spt_bucket {
  int64_t begin, end; /* elements in the slab */
  int64_t *cuts;      /* [size + 1] slab positions: rank p owns [cuts[p], cuts[p+1]) */
  int ready_stage;    /* its gradients are complete after this stage of backward */
} spt_bucket;

typedef struct spt_shard_plan {
  int size;
  spt_layout layout;
  int bucket_count;
  spt_bucket *buckets; /* in back-propagation order */
  int *pair_owner;     /* [pair_count]; empty for adamw */
  /* by rank: */
  double *load;       /* optimizer FLOPs: Newton–Schulz of its pairs + 16 for each element */
  spt_share *shares;  /* arrays owned by the plan */
  int64_t *elements;  /* master elements owned */
  double imbalance;   /* largest load over mean load, 1 when there is none */
} spt_shard_plan;

/* bucket_bytes: a bucket is closed once it holds this much (pairs are never cut; an elementwise tensor larger than this is a bucket of its own). */
spt_status spt_shard_plan_open(const spt_model_config *model, const spt_optimizer_config *optimizer, const spt_params *params,
                               int size, int64_t bucket_bytes, spt_shard_plan **plan_p);
/* The same with cuts at multiples of `cut_multiple` elements from a bucket's beginning, a multiple of 16: coarser, less even shares, for sums
 * over parts that no cut divides. */
spt_status spt_shard_plan_open_coarse(const spt_model_config *model, const spt_optimizer_config *optimizer, const spt_params *params,
                                      int size, int64_t bucket_bytes, int64_t cut_multiple, spt_shard_plan **plan_p);
void spt_shard_plan_close(spt_shard_plan **plan_p);
/* Bytes and messages of one step by the formula: all-reduce or reduce-scatter of every bucket, all-gather of every bucket; nothing for
 * one rank. Not of reduction = "tree" (spt_tree_reduction_traffic). counters_p has SPT_COLLECTIVE_KINDS entries of {messages, bytes} as in comm.h. */
struct spt_comm_counter;
void spt_shard_plan_traffic(const spt_shard_plan *plan, spt_reduction reduction, struct spt_comm_counter *counters_p);

#endif
