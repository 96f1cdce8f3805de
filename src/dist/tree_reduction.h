/* reduction = "tree": the gradient as one fixed binary tree's sum over the global batch's micro-batches (tree.h), the same bits on any number of
 * ranks that divides them.
 *
 * A rank sums what is complete within its own contiguous block of micro-batches: a few partial sums of whole slabs, kept as a binary counter
 * keeps its digits. What remains (one sum where the block is a node, a few where it is not) goes, bucket by bucket, to the
 * owners of its runs, who join the sums of all ranks in the tree's order. Each rank sends and receives about one slab a sum. */
#ifndef SPT_TREE_REDUCTION_H
#define SPT_TREE_REDUCTION_H

#include "comm.h"
#include "core/backend.h"
#include "shard_plan.h"

typedef struct spt_tree_reduction spt_tree_reduction;

/* micro_batches: of the global batch; the ranks divide it. `gradients` is the slab that each micro-batch adds to; borrowed. Collective in
 * that all ranks open alike; Local. */
spt_status spt_tree_reduction_open(spt_comm *comm, spt_backend *backend, const spt_shard_plan *plan, int64_t micro_batches,
                                   float *gradients, spt_tree_reduction **tree_p);
void spt_tree_reduction_close(spt_tree_reduction **tree_p);
/* Bytes that rank `rank` of the plan's needs beside the gradients. */
size_t spt_tree_reduction_bytes(const spt_shard_plan *plan, int64_t micro_batches, int rank);
/* Exchanges of a bucket: the most sums that a rank sends. 0 for one rank. */
int spt_tree_reduction_exchanges(int size, int64_t micro_batches);
int spt_tree_reduction_exchanges_of(const spt_tree_reduction *tree);

/* After each of a step's micro-batches but the last: takes the gradients into the partial sums and zeroes them. Local. */
spt_status spt_tree_reduction_keep(spt_tree_reduction *tree);
/* When the last micro-batch's gradients of a bucket are complete: joins them with the kept sums and starts the bucket's exchanges, whose requests go
 * to requests_p[spt_tree_reduction_exchanges]. Collective: buckets in order. */
spt_status spt_tree_reduction_start(spt_tree_reduction *tree, int bucket, spt_request **requests_p);
/* Once all exchanges are complete: the own runs of the gradients become the sums. Ends the step. Local. */
spt_status spt_tree_reduction_finish(spt_tree_reduction *tree);

/* Traffic of one step, as counted on `rank`: see spt_shard_plan_traffic, which has the gathers. */
void spt_tree_reduction_traffic(const spt_shard_plan *plan, int64_t micro_batches, int rank, spt_comm_counter *counters_p);

#endif
