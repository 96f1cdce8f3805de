#include "tree_reduction.h"

#include "core/slab.h"
#include "tree.h"

#include <stdlib.h>
#include <string.h>

/* One sum that some rank sends to the owners. */
typedef struct sent_sum {
  spt_tree_node node;
  int rank, exchange; /* its sender, and in which of a bucket's exchanges */
  int place;          /* among the sums that an owner receives, by exchange and then by rank */
} sent_sum;

/* sums[left] += sums[right] */
typedef struct join {
  int left, right;
} join;

struct spt_tree_reduction {
  spt_comm *comm;             /* not owned */
  spt_backend *backend;       /* not owned */
  const spt_shard_plan *plan; /* not owned */
  float *gradients;           /* not owned */
  int64_t own_first, own_count, kept; /* micro-batches; kept in this step */
  spt_tree_stack stack;               /* the kept sums */
  spt_slab slab;
  size_t *partial;     /* [partial_count] offsets of slabs of sums */
  int partial_count;
  size_t received;     /* offset: the sums of all ranks for the own runs, bucket by bucket */
  int64_t *received_at; /* [bucket_count] elements */
  int exchanges;
  bool *senders; /* [exchanges·size] */
  sent_sum *sums; /* [sum_count] in the order of their leaves */
  int sum_count;
  join *joins; /* [sum_count − 1], in order; the last gives the whole */
};

/* ---- shapes ---- */

/* The most sums kept at once: of all micro-batches but the last, whose gradients stay where they are. */
static int count_partials(int64_t first, int64_t count) {
  spt_tree_stack stack = {0};
  int most = 0;
  for (int64_t i = 0; i + 1 < count; i++) {
    spt_tree_push(&stack, (spt_tree_node){first + i, 1});
    if (stack.depth > most) most = stack.depth;
  }
  return most;
}

int spt_tree_reduction_exchanges(int size, int64_t micro_batches) {
  spt_tree_node nodes[SPT_TREE_NODES_MAX];
  const int64_t share = micro_batches / size;
  int most = 0;
  for (int p = 0; size > 1 && p < size; p++) {
    const int count = spt_tree_cover(p * share, share, nodes);
    if (count > most) most = count;
  }
  return most;
}

int spt_tree_reduction_exchanges_of(const spt_tree_reduction *tree) {
  return tree->exchanges;
}

static int count_sums(int size, int64_t micro_batches) {
  spt_tree_node nodes[SPT_TREE_NODES_MAX];
  const int64_t share = micro_batches / size;
  int sum = 0;
  for (int p = 0; p < size; p++) sum += spt_tree_cover(p * share, share, nodes);
  return sum;
}

static int64_t own_run(const spt_bucket *bucket, int rank) {
  return bucket->cuts[rank + 1] - bucket->cuts[rank];
}

/* Reserves partial sums and received sums; offsets may be NULL. */
static void reserve(spt_slab *slab, const spt_shard_plan *plan, int rank, int partials, int sums, size_t *partial,
                    size_t *received_p) {
  int64_t own = 0;
  for (int b = 0; b < plan->bucket_count; b++) own += own_run(&plan->buckets[b], rank);
  for (int i = 0; i < partials; i++) {
    const size_t at = spt_slab_reserve(slab, (size_t)plan->layout.elements * sizeof(float));
    if (partial) partial[i] = at;
  }
  const size_t at = spt_slab_reserve(slab, plan->size > 1 ? (size_t)(own * sums) * sizeof(float) : 0);
  if (received_p) *received_p = at;
}

size_t spt_tree_reduction_bytes(const spt_shard_plan *plan, int64_t micro_batches, int rank) {
  const int64_t share = micro_batches / plan->size;
  spt_slab slab;
  spt_slab_init(&slab, "tree reduction");
  reserve(&slab, plan, rank, count_partials(rank * share, share), count_sums(plan->size, micro_batches), NULL, NULL);
  const size_t bytes = slab.bytes;
  spt_slab_fini(&slab);
  return bytes;
}

void spt_tree_reduction_traffic(const spt_shard_plan *plan, int64_t micro_batches, int rank,
                                spt_comm_counter *counters_p) {
  spt_tree_node nodes[SPT_TREE_NODES_MAX];
  const int64_t share = micro_batches / plan->size;
  const int exchanges = spt_tree_reduction_exchanges(plan->size, micro_batches);
  const int sent = spt_tree_cover(rank * share, share, nodes);
  memset(counters_p, 0, SPT_COLLECTIVE_KINDS * sizeof *counters_p);
  for (int b = 0; plan->size > 1 && b < plan->bucket_count; b++) {
    const int64_t bytes = (plan->buckets[b].end - plan->buckets[b].begin) * (int64_t)sizeof(float);
    counters_p[SPT_COLLECTIVE_EXCHANGE].messages += exchanges;
    counters_p[SPT_COLLECTIVE_EXCHANGE].bytes += sent * bytes;
    counters_p[SPT_COLLECTIVE_ALL_GATHER].messages++;
    counters_p[SPT_COLLECTIVE_ALL_GATHER].bytes += bytes;
  }
}

/* ---- opening ---- */

/* The sums of all ranks, in the order of their leaves, and who sends when. */
static void list_sums(spt_tree_reduction *tree, int64_t micro_batches) {
  spt_tree_node nodes[SPT_TREE_NODES_MAX];
  const int size = tree->plan->size;
  const int64_t share = micro_batches / size;
  for (int p = 0; p < size; p++) {
    const int count = spt_tree_cover(p * share, share, nodes);
    for (int i = 0; i < count; i++) {
      tree->sums[tree->sum_count++] = (sent_sum){nodes[i], p, i, 0};
      if (tree->exchanges) tree->senders[i * size + p] = true;
    }
  }
  for (int i = 0; i < tree->sum_count; i++) // place: of those sent in earlier exchanges, then by lower ranks in this
    for (int j = 0; j < tree->sum_count; j++)
      tree->sums[i].place += tree->sums[j].exchange < tree->sums[i].exchange ||
                             (tree->sums[j].exchange == tree->sums[i].exchange && tree->sums[j].rank < tree->sums[i].rank);
}

/* The order in which the sums are joined: siblings as they come, and in the end, from the right, those whose other half
 * lies partly beyond the last leaf. */
static void plan_joins(spt_tree_reduction *tree) {
  spt_tree_stack stack = {0};
  int held[SPT_TREE_NODES_MAX], count = 0; // sums on the stack
  for (int i = 0; i < tree->sum_count; i++) {
    int depth = stack.depth;
    const int joined = spt_tree_push(&stack, tree->sums[i].node);
    held[depth] = i;
    for (int j = 0; j < joined; j++, depth--) tree->joins[count++] = (join){held[depth - 1], held[depth]};
  }
  for (int depth = stack.depth - 1; depth > 0; depth--) tree->joins[count++] = (join){held[depth - 1], held[depth]};
}

static spt_status allocate(spt_tree_reduction *tree, int64_t micro_batches) {
  const spt_shard_plan *plan = tree->plan;
  const int sums = count_sums(plan->size, micro_batches);
  tree->exchanges = spt_tree_reduction_exchanges(plan->size, micro_batches);
  tree->partial_count = count_partials(tree->own_first, tree->own_count);
  tree->partial = calloc((size_t)tree->partial_count + 1, sizeof *tree->partial);
  tree->received_at = calloc((size_t)plan->bucket_count + 1, sizeof *tree->received_at);
  tree->senders = calloc((size_t)(tree->exchanges * plan->size) + 1, sizeof *tree->senders);
  tree->sums = calloc((size_t)sums + 1, sizeof *tree->sums);
  tree->joins = calloc((size_t)sums + 1, sizeof *tree->joins);
  if (!tree->partial || !tree->received_at || !tree->senders || !tree->sums || !tree->joins)
    return SPT_FAIL(SPT_ERR_RESOURCE, "tree reduction: out of memory");
  reserve(&tree->slab, plan, tree->comm->rank, tree->partial_count, sums, tree->partial, &tree->received);
  for (int b = 0; b < plan->bucket_count; b++)
    tree->received_at[b + 1] = tree->received_at[b] + sums * own_run(&plan->buckets[b], tree->comm->rank);
  return spt_slab_allocate(&tree->slab, tree->backend);
}

spt_status spt_tree_reduction_open(spt_comm *comm, spt_backend *backend, const spt_shard_plan *plan,
                                   int64_t micro_batches, float *gradients, spt_tree_reduction **tree_p) {
  if (micro_batches < 1 || micro_batches % plan->size != 0)
    return SPT_FAIL(SPT_ERR_USAGE, "tree reduction: %lld micro-batches do not divide over %d ranks",
                    (long long)micro_batches, plan->size);
  spt_tree_reduction *tree = calloc(1, sizeof *tree);
  if (!tree) return SPT_FAIL(SPT_ERR_RESOURCE, "tree reduction: out of memory");
  const int64_t share = micro_batches / plan->size;
  *tree = (spt_tree_reduction){.comm = comm,
                               .backend = backend,
                               .plan = plan,
                               .gradients = gradients,
                               .own_first = comm->rank * share,
                               .own_count = share};
  spt_slab_init(&tree->slab, "tree reduction");
  const spt_status status = allocate(tree, micro_batches);
  if (status != SPT_OK) {
    spt_tree_reduction_close(&tree);
    return status;
  }
  list_sums(tree, micro_batches);
  plan_joins(tree);
  *tree_p = tree;
  return SPT_OK;
}

void spt_tree_reduction_close(spt_tree_reduction **tree_p) {
  spt_tree_reduction *tree = *tree_p;
  if (!tree) return;
  spt_slab_fini(&tree->slab);
  free(tree->partial);
  free(tree->received_at);
  free(tree->senders);
  free(tree->sums);
  free(tree->joins);
  free(tree);
  *tree_p = NULL;
}

/* ---- the step ---- */

static float *partial_at(const spt_tree_reduction *tree, int i) {
  return spt_slab_at(&tree->slab, tree->partial[i]);
}

spt_status spt_tree_reduction_keep(spt_tree_reduction *tree) {
  spt_backend *backend = tree->backend;
  const int64_t count = tree->plan->layout.elements;
  const int before = tree->stack.depth;
  const int joined = spt_tree_push(&tree->stack, (spt_tree_node){tree->own_first + tree->kept++, 1});
  if (joined == 0) SPT_TRY(backend->ops->add(backend, count, tree->gradients, NULL, partial_at(tree, before)));
  for (int j = 0; j < joined; j++) {
    float *left = partial_at(tree, before - 1 - j);
    SPT_TRY(backend->ops->add(backend, count, left, j ? partial_at(tree, before - j) : tree->gradients, left));
  }
  return backend->ops->zero(backend, tree->gradients, (size_t)count * sizeof(float));
}

spt_status spt_tree_reduction_start(spt_tree_reduction *tree, int bucket, spt_request **requests_p) {
  const spt_bucket *range = &tree->plan->buckets[bucket];
  const spt_comm_ops *ops = tree->comm->ops;
  const int size = tree->comm->size;
  spt_tree_stack stack = tree->stack;
  const int joined = spt_tree_push(&stack, (spt_tree_node){tree->own_first + tree->own_count - 1, 1});
  float *gradients = tree->gradients + range->begin; // the sum that the last micro-batch is part of stays there
  for (int j = 0; j < joined; j++)
    SPT_TRY(tree->backend->ops->add(tree->backend, range->end - range->begin,
                                    partial_at(tree, tree->stack.depth - 1 - j) + range->begin, gradients, gradients));
  float *received = (float *)spt_slab_at(&tree->slab, tree->received) + tree->received_at[bucket];
  for (int e = 0; e < tree->exchanges; e++) {
    // a rank whose step has failed kept fewer sums than it sends: any values do, all ranks are about to leave
    const bool sends = tree->senders[e * size + tree->comm->rank];
    const float *sum = !sends ? NULL : e < stack.depth - 1 ? partial_at(tree, e) + range->begin : gradients;
    SPT_TRY(ops->exchange_start(tree->comm, sum, range->cuts, tree->senders + e * size, received, &requests_p[e]));
    for (int p = 0; p < size; p++) received += tree->senders[e * size + p] ? own_run(range, tree->comm->rank) : 0;
  }
  return SPT_OK;
}

/* Where sum i of a bucket's own run lies: received, or, for a single rank, kept here. */
static float *sum_at(const spt_tree_reduction *tree, int bucket, int i) {
  const spt_bucket *range = &tree->plan->buckets[bucket];
  const int rank = tree->comm->rank;
  if (tree->comm->size > 1)
    return (float *)spt_slab_at(&tree->slab, tree->received) + tree->received_at[bucket] +
           tree->sums[i].place * own_run(range, rank);
  return (i == tree->sum_count - 1 ? tree->gradients : partial_at(tree, i)) + range->cuts[rank];
}

spt_status spt_tree_reduction_finish(spt_tree_reduction *tree) {
  for (int b = 0; b < tree->plan->bucket_count; b++) {
    const spt_bucket *range = &tree->plan->buckets[b];
    const int64_t count = own_run(range, tree->comm->rank);
    for (int i = 0; count > 0 && i < tree->sum_count - 1; i++) {
      float *left = sum_at(tree, b, tree->joins[i].left);
      float *out = i == tree->sum_count - 2 ? tree->gradients + range->cuts[tree->comm->rank] : left;
      SPT_TRY(tree->backend->ops->add(tree->backend, count, left, sum_at(tree, b, tree->joins[i].right), out));
    }
  }
  tree->stack.depth = 0;
  tree->kept = 0;
  return SPT_OK;
}
