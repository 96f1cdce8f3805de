#include "data_parallel.h"

#include <stdlib.h>
#include <time.h>

struct spt_data_parallel {
  spt_comm *comm;             /* not owned */
  const spt_shard_plan *plan; /* not owned */
  spt_reduction reduction;
  bool overlap;
  float *parameters, *gradients; /* not owned */
  spt_tree_reduction *tree;      /* not owned; NULL but for the tree */
  spt_gathered_copies copies;    /* values NULL: parameters are all there, and are gathered themselves */
  int a_bucket;                  /* reductions of a bucket */
  spt_request **requests;        /* [bucket_count·a_bucket] */
  int posted;                    /* buckets whose reductions are started in this step */
  int last_stage;
  int posted_in_backward; /* of the step that is going on */
  spt_overlap last;       /* of the last whole step */
};

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* tree: NULL but for the tree. */
static spt_status open_reduction(spt_comm *comm, const spt_shard_plan *plan, spt_reduction reduction,
                                 spt_tree_reduction *tree, bool overlap, float *parameters, float *gradients,
                                 spt_data_parallel **dp_p) {
  if (plan->size != comm->size)
    return SPT_FAIL(SPT_ERR_RESOURCE, "data-parallel step: the plan is for %d ranks, there are %d", plan->size,
                    comm->size);
  const int a_bucket = tree ? spt_tree_reduction_exchanges_of(tree) : 1;
  spt_data_parallel *dp = calloc(1, sizeof *dp);
  spt_request **requests = calloc((size_t)(plan->bucket_count * (a_bucket > 1 ? a_bucket : 1)) + 1, sizeof *requests); // + 1: the gains
  if (!dp || !requests) {
    free(dp);
    free(requests);
    return SPT_FAIL(SPT_ERR_RESOURCE, "data-parallel step: out of memory");
  }
  *dp = (spt_data_parallel){.comm = comm,
                            .plan = plan,
                            .reduction = reduction,
                            .overlap = overlap,
                            .parameters = parameters,
                            .gradients = gradients,
                            .tree = tree,
                            .a_bucket = a_bucket,
                            .requests = requests};
  if (plan->bucket_count) dp->last_stage = plan->buckets[plan->bucket_count - 1].ready_stage;
  dp->last.buckets = plan->bucket_count * a_bucket;
  *dp_p = dp;
  return SPT_OK;
}

spt_status spt_data_parallel_open(spt_comm *comm, const spt_shard_plan *plan, spt_reduction reduction, bool overlap,
                                  float *parameters, float *gradients, spt_data_parallel **dp_p) {
  return open_reduction(comm, plan, reduction, NULL, overlap, parameters, gradients, dp_p);
}

spt_status spt_data_parallel_open_tree(spt_comm *comm, const spt_shard_plan *plan, spt_tree_reduction *tree,
                                       bool overlap, float *parameters, float *gradients, spt_data_parallel **dp_p) {
  return open_reduction(comm, plan, SPT_REDUCTION_TREE, tree, overlap, parameters, gradients, dp_p);
}
void spt_data_parallel_close(spt_data_parallel **dp_p) {
  if (!*dp_p) return;
  free((*dp_p)->requests);
  free(*dp_p);
  *dp_p = NULL;
}

/* Starts the reductions, in bucket order on every rank, of all buckets that are complete after `stage`. */
static spt_status post_until(spt_data_parallel *dp, int stage) {
  const spt_comm_ops *ops = dp->comm->ops;
  for (; dp->posted < dp->plan->bucket_count && dp->plan->buckets[dp->posted].ready_stage <= stage; dp->posted++) {
    const spt_bucket *bucket = &dp->plan->buckets[dp->posted];
    float *gradients = dp->gradients + bucket->begin;
    spt_request **request_p = &dp->requests[dp->posted * dp->a_bucket];
    if (dp->tree)
      SPT_TRY(spt_tree_reduction_start(dp->tree, dp->posted, request_p));
    else if (dp->reduction == SPT_REDUCTION_ALL_REDUCE)
      SPT_TRY(ops->all_reduce_start(dp->comm, gradients, bucket->end - bucket->begin, request_p));
    else
      SPT_TRY(ops->reduce_scatter_start(dp->comm, gradients, bucket->cuts, request_p));
  }
  return SPT_OK;
}

static spt_status grad_ready(void *context, int stage) {
  spt_data_parallel *dp = context;
  if (!dp->overlap || dp->comm->size == 1) return SPT_OK;
  SPT_TRY(post_until(dp, stage));
  if (stage < dp->last_stage) dp->posted_in_backward = dp->posted * dp->a_bucket;
  return SPT_OK;
}

/* A large message moves by one fragment or one stage of its tree in a call: a few calls each time keep it going through a backward of
 * few, long ops, and cost microseconds when there is nothing to move. */
static spt_status progress(void *context) {
  enum { CALLS = 16 };
  spt_data_parallel *dp = context;
  for (int i = 0; dp->posted && i < CALLS; i++) SPT_TRY(dp->comm->ops->progress(dp->comm));
  return SPT_OK;
}

spt_backward_hooks spt_data_parallel_hooks(spt_data_parallel *dp) {
  return (spt_backward_hooks){.context = dp, .grad_ready = grad_ready, .progress = progress};
}

static spt_status wait_all(spt_data_parallel *dp, int count) {
  for (int i = 0; i < count; i++) SPT_TRY(dp->comm->ops->wait(dp->comm, &dp->requests[i]));
  return SPT_OK;
}

spt_status spt_data_parallel_reduce_finish(spt_data_parallel *dp) {
  const int reductions = dp->plan->bucket_count * dp->a_bucket;
  if (dp->comm->size == 1 && !dp->tree) return SPT_OK;
  spt_overlap overlap = {.buckets = reductions, .posted_in_backward = dp->posted_in_backward};
  const double begin = now();
  for (int i = 0; i < dp->posted * dp->a_bucket; i++) {
    bool done = false;
    SPT_TRY(dp->comm->ops->test(dp->comm, &dp->requests[i], &done));
    overlap.complete_before_wait += done;
  }
  SPT_TRY(post_until(dp, dp->last_stage));
  SPT_TRY(wait_all(dp, reductions));
  if (dp->tree) SPT_TRY(spt_tree_reduction_finish(dp->tree));
  overlap.wait_seconds = now() - begin;
  dp->posted = dp->posted_in_backward = 0;
  dp->last = overlap;
  return SPT_OK;
}

void spt_data_parallel_gather_copies(spt_data_parallel *dp, const spt_gathered_copies *copies) {
  dp->copies = *copies;
}

/* Gains lie anywhere among the runs. They are few: each rank puts its own among zeros, and a sum, exact, makes them all. */
static spt_status gather_gains(spt_data_parallel *dp, spt_request **request_p) {
  spt_backend *backend = dp->copies.backend;
  const spt_master_shards *shards = dp->copies.shards;
  const spt_share *share = &dp->plan->shares[dp->comm->rank];
  SPT_TRY(backend->ops->zero(backend, dp->copies.gains, (size_t)shards->gain_elements * sizeof(float)));
  for (int i = 0; i < share->slice_count; i++) {
    const spt_slice *slice = &share->slices[i];
    const int64_t at = shards->gain_offset[slice->tensor];
    if (at < 0) continue;
    SPT_TRY(backend->ops->add(backend, slice->end - slice->begin,
                              dp->parameters + (shards->masters.offset[slice->tensor] + slice->begin), NULL,
                              dp->copies.gains + at + slice->begin));
  }
  return dp->comm->ops->all_reduce_start(dp->comm, dp->copies.gains, shards->gain_elements, request_p);
}

/* Every bucket's own run is rounded into its place among the copies, and goes from there to the others. */
static spt_status gather_copies(spt_data_parallel *dp) {
  spt_backend *backend = dp->copies.backend;
  const spt_master_shards *shards = dp->copies.shards;
  const int count = dp->plan->bucket_count;
  uint16_t *values = dp->copies.values;
  for (int i = 0; i < count; i++) {
    const spt_bucket *bucket = &dp->plan->buckets[i];
    for (int j = shards->first_piece[i]; j < shards->first_piece[i + 1]; j++) {
      const spt_master_piece *piece = &shards->pieces[j];
      SPT_TRY(backend->ops->round_bf16(backend, piece->count, dp->parameters + piece->from, values + piece->at));
    }
    SPT_TRY(dp->comm->ops->all_gather_start(dp->comm, values + bucket->begin, sizeof *values, bucket->cuts, &dp->requests[i]));
  }
  SPT_TRY(gather_gains(dp, &dp->requests[count]));
  return wait_all(dp, count + 1);
}

static spt_status gather(spt_data_parallel *dp, float *slab) {
  if (dp->comm->size == 1) return SPT_OK;
  for (int i = 0; i < dp->plan->bucket_count; i++) {
    const spt_bucket *bucket = &dp->plan->buckets[i];
    SPT_TRY(dp->comm->ops->all_gather_start(dp->comm, slab + bucket->begin, sizeof *slab, bucket->cuts, &dp->requests[i]));
  }
  return wait_all(dp, dp->plan->bucket_count);
}

spt_status spt_data_parallel_gather(spt_data_parallel *dp) {
  if (dp->comm->size == 1) return SPT_OK;
  const double begin = now();
  SPT_TRY(dp->copies.values ? gather_copies(dp) : gather(dp, dp->parameters));
  dp->last.gather_seconds = now() - begin;
  return SPT_OK;
}

spt_status spt_data_parallel_gather_gradients(spt_data_parallel *dp) {
  return gather(dp, dp->gradients);
}

const spt_overlap *spt_data_parallel_overlap(const spt_data_parallel *dp) {
  return &dp->last;
}
