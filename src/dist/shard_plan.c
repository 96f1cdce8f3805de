/* The plan is made in four passes over the parameter table: owners (who updates what), buckets (what is reduced
 * together), layout (where it lies, runs by owner), shares (what each rank updates, read off the layout).
 *
 * A tensor is either WHOLE: a factor of a pair or a dense matrix, or a gain where there are pairs; its owner has all of it. Or CUT:
 * everything updated elementwise. Whole and cut tensors have buckets of their own: the first are sorted by owner inside
 * a bucket, the second lie one after the other and are cut anywhere, each rank taking the same fraction of every
 * bucket. Guides, whole or cut, have buckets and fractions of their own. */
#include "shard_plan.h"

#include "comm.h"
#include "core/model.h"

#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 16 /* floats: a 64-byte line, so that no two ranks or tensors share one */
#ifdef SPT_RED_ZONES
#define ZONE 16 /* floats left after each tensor */
#else
#define ZONE 0
#endif
/* FLOPs of one elementwise update, AdamW's or a factor's momentum, power iteration and update together. */
#define ELEMENT_FLOPS 16.0
#define CUT (-1) /* owner of a tensor that is cut */

/* Of buckets; guides are whole or cut by the method. */
typedef enum { KIND_WHOLE, KIND_CUT, KIND_GUIDE, KINDS } bucket_kind;

/* How cut tensors are shared out. */
typedef struct fractions {
  double *fill; /* [size] elements that each rank takes */
  double sum;   /* of all */
} fractions;

typedef struct builder {
  const spt_model_config *model;
  const spt_optimizer_config *optimizer;
  const spt_params *params;
  spt_shard_plan *plan;
  int64_t bucket_bytes, cut_multiple;
  bool pairs;     /* there are pairs updated as pairs */
  int *owner;     /* [tensor_count] rank, or CUT */
  int *bucket;    /* [tensor_count] bucket of each tensor */
  int *order;     /* [tensor_count] scratch for sorting */
  fractions cut, guides;
} builder;

static int64_t align(int64_t elements) {
  return (elements + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static void *plan_calloc(size_t count, size_t size) {
  return calloc(count ? count : 1, size);
}

/* Owners ----------------------------------------------------------------------------------------------------------- */

static double pair_load(const builder *b, const spt_pair *pair) {
  const bool orthogonalize = b->optimizer->method == SPT_METHOD_SPECTRON || b->optimizer->method == SPT_METHOD_MUON;
  return (orthogonalize ? spt_flops_pair(b->optimizer, pair) : 0) +
         ELEMENT_FLOPS * (double)spt_pair_elements(pair);
}

static int least_loaded(const spt_shard_plan *plan) {
  int rank = 0;
  for (int p = 1; p < plan->size; p++)
    if (plan->load[p] < plan->load[rank]) rank = p;
  return rank;
}

static bool is_guide(const spt_params *params, int tensor) {
  return params->tensors[tensor].role == SPT_ROLE_GUIDE;
}

/* Longest processing time: the heaviest pair first, each to the least loaded rank; table order and the lowest rank
 * break ties. All pairs but guides, or the guides. */
static void own_pairs(builder *b, bool guides) {
  spt_shard_plan *plan = b->plan;
  int *order = b->order, count = 0;
  for (int i = 0; i < b->params->pair_count; i++) { // insertion sort: stable, and a few hundred pairs at most
    if (is_guide(b->params, b->params->pairs[i].a) != guides) continue;
    int at = count++;
    for (; at > 0 && pair_load(b, &b->params->pairs[order[at - 1]]) < pair_load(b, &b->params->pairs[i]); at--)
      order[at] = order[at - 1];
    order[at] = i;
  }
  for (int i = 0; i < count; i++) {
    const spt_pair *pair = &b->params->pairs[order[i]];
    int rank = least_loaded(plan);
    plan->pair_owner[order[i]] = rank;
    for (int side = 0; side < spt_pair_sides(pair); side++) b->owner[spt_pair_tensor(pair, side)] = rank;
    plan->load[rank] += pair_load(b, pair);
    plan->elements[rank] += spt_pair_elements(pair);
  }
}

/* How many cut elements each rank takes: as even as possible (runs of equal length are what collectives like best)
 * without raising the largest load above what it must be, i.e. filling the lightly loaded only, to the level of the
 * others at most. */
static void fill_ranks(const builder *b, const fractions *cut) {
  const spt_shard_plan *plan = b->plan;
  double level = 0, sum = cut->sum * ELEMENT_FLOPS, rest = cut->sum;
  for (int p = 0; p < plan->size; p++) {
    sum += plan->load[p];
    if (plan->load[p] > level) level = plan->load[p];
  }
  if (level < sum / plan->size) level = sum / plan->size;
  for (int p = 0; p < plan->size; p++) cut->fill[p] = -1;
  for (int open = plan->size; open > 0;
       open--) { // those with the least room first: what they cannot take the others share
    int rank = -1;
    for (int p = 0; p < plan->size; p++)
      if (cut->fill[p] < 0 && (rank < 0 || plan->load[p] > plan->load[rank])) rank = p;
    double room = (level - plan->load[rank]) / ELEMENT_FLOPS, even = rest / open;
    cut->fill[rank] = open == 1 || even < room ? even : room;
    rest -= cut->fill[rank];
  }
}

/* On top of all else, whose cut parts are counted in for that long. */
static void own_guides(builder *b) {
  spt_shard_plan *plan = b->plan;
  if (b->params->guide_count == 0) return;
  for (int p = 0; p < plan->size; p++) plan->load[p] += ELEMENT_FLOPS * b->cut.fill[p];
  if (b->pairs) own_pairs(b, true);
  for (int t = 0; t < b->params->tensor_count; t++)
    if (is_guide(b->params, t) && b->owner[t] == CUT) b->guides.sum += (double)b->params->tensors[t].count;
  fill_ranks(b, &b->guides);
  for (int p = 0; p < plan->size; p++) plan->load[p] -= ELEMENT_FLOPS * b->cut.fill[p];
}

static void own_all(builder *b) {
  const spt_params *params = b->params;
  for (int t = 0; t < params->tensor_count; t++) b->owner[t] = CUT;
  if (b->pairs) own_pairs(b, false);
  for (int t = 0; t < params->tensor_count; t++) {
    const spt_tensor *tensor = &params->tensors[t];
    if (b->pairs && tensor->role == SPT_ROLE_GAIN) {
      int rank = b->owner[t] = least_loaded(b->plan);
      b->plan->load[rank] += ELEMENT_FLOPS * (double)tensor->count;
    } else if (b->owner[t] == CUT && tensor->role != SPT_ROLE_GUIDE) {
      b->cut.sum += (double)tensor->count;
    }
  }
  fill_ranks(b, &b->cut);
  own_guides(b);
}

/* Buckets ---------------------------------------------------------------------------------------------------------- */

/* Buckets by stage, then by their first tensor. */
static void sort_buckets(builder *b, spt_bucket *buckets, int count) {
  int *position = b->order;
  for (int i = 0; i < count; i++) {
    position[i] = 0;
    for (int j = 0; j < count; j++)
      if (buckets[j].ready_stage < buckets[i].ready_stage ||
          (buckets[j].ready_stage == buckets[i].ready_stage && j < i))
        position[i]++;
  }
  for (int i = 0; i < count; i++) b->plan->buckets[position[i]].ready_stage = buckets[i].ready_stage;
  for (int t = 0; t < b->params->tensor_count; t++) b->bucket[t] = position[b->bucket[t]];
}

/* Tensors in back-propagation order fill an open bucket of each kind. A full one is closed; so are all before the last
 * stage: nothing of backward is left to hide what waits for that. Until the layout is made, `end` counts bytes. */
static spt_status make_buckets(builder *b) {
  const spt_params *params = b->params;
  spt_shard_plan *plan = b->plan;
  spt_bucket *buckets = plan_calloc((size_t)params->tensor_count, sizeof *buckets); // at most one a tensor
  if (!buckets) return SPT_FAIL(SPT_ERR_RESOURCE, "shard plan: out of memory");
  const int last_stage = (int)b->model->layers + 1;
  int count = 0, open[KINDS] = {-1, -1, -1};
  for (int stage = 0; stage <= last_stage; stage++) {
    if (stage == last_stage) open[KIND_WHOLE] = open[KIND_CUT] = open[KIND_GUIDE] = -1;
    for (int t = 0; t < params->tensor_count; t++) {
      const spt_tensor *tensor = &params->tensors[t];
      const bool whole = b->owner[t] != CUT;
      const spt_pair *pair = whole && tensor->pair >= 0 ? &params->pairs[tensor->pair] : NULL;
      if (spt_model_stage(b->model, params, t) != stage || (pair && pair->b == t)) continue;
      const int64_t bytes = (pair ? spt_pair_elements(pair) : tensor->count) * (int64_t)sizeof(float);
      int *at = &open[is_guide(params, t) ? KIND_GUIDE : whole ? KIND_WHOLE : KIND_CUT];
      if (*at >= 0 && !whole && bytes >= b->bucket_bytes) *at = -1; // a large tensor is a bucket of its own
      if (*at < 0) *at = count++;
      buckets[*at].ready_stage = stage;
      buckets[*at].end += bytes;
      b->bucket[t] = *at;
      if (pair && !spt_pair_is_dense(pair)) b->bucket[pair->b] = *at;
      if (buckets[*at].end >= b->bucket_bytes) *at = -1;
    }
  }
  plan->bucket_count = count;
  plan->buckets = plan_calloc((size_t)count, sizeof *plan->buckets);
  if (plan->buckets) sort_buckets(b, buckets, count);
  free(buckets);
  return plan->buckets ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "shard plan: out of memory");
}

/* Layout ----------------------------------------------------------------------------------------------------------- */

static int64_t place(builder *b, int tensor, int64_t at) {
  b->plan->layout.offset[tensor] = at;
  return align(at + b->params->tensors[tensor].count + ZONE);
}

/* Rank p's whole tensors of a bucket: its pairs, A beside B, and dense matrices, then its gains. */
static int64_t place_run(builder *b, int bucket, int rank, int64_t at) {
  const spt_params *params = b->params;
  for (int i = 0; i < params->pair_count; i++) {
    const spt_pair *pair = &params->pairs[i];
    if (b->bucket[pair->a] != bucket || b->owner[pair->a] != rank) continue;
    for (int side = 0; side < spt_pair_sides(pair); side++) at = place(b, spt_pair_tensor(pair, side), at);
  }
  for (int t = 0; t < params->tensor_count; t++)
    if (params->tensors[t].role == SPT_ROLE_GAIN && b->bucket[t] == bucket && b->owner[t] == rank) at = place(b, t, at);
  return at;
}

/* Cuts [begin, end) into the ranks' fractions, at multiples of cut_multiple. */
static void cut_bucket(const builder *b, const fractions *cut, spt_bucket *bucket) {
  const int size = b->plan->size;
  const int64_t lines = (bucket->end - bucket->begin) / b->cut_multiple;
  double taken = 0;
  bucket->cuts[0] = bucket->begin;
  for (int p = 1; p < size; p++) {
    taken += cut->fill[p - 1];
    int64_t line = (int64_t)((double)lines * (taken / cut->sum) + 0.5);
    bucket->cuts[p] = bucket->begin + b->cut_multiple * (line < lines ? line : lines);
  }
  bucket->cuts[size] = bucket->end;
}

static spt_status lay_out(builder *b) {
  spt_shard_plan *plan = b->plan;
  int64_t at = 0;
  for (int i = 0; i < plan->bucket_count; i++) {
    spt_bucket *bucket = &plan->buckets[i];
    bucket->cuts = plan_calloc((size_t)plan->size + 1, sizeof *bucket->cuts);
    if (!bucket->cuts) return SPT_FAIL(SPT_ERR_RESOURCE, "shard plan: out of memory");
    bucket->begin = at;
    const fractions *cut = NULL;
    for (int t = 0; t < b->params->tensor_count; t++)
      if (b->bucket[t] == i && b->owner[t] == CUT) {
        at = place(b, t, at);
        cut = is_guide(b->params, t) ? &b->guides : &b->cut;
      }
    for (int p = 0; !cut && p < plan->size; p++) {
      bucket->cuts[p] = at;
      at = place_run(b, i, p, at);
    }
    bucket->end = bucket->cuts[plan->size] = at;
    if (cut) cut_bucket(b, cut, bucket);
  }
  plan->layout.elements = at;
  return SPT_OK;
}

/* Shares ----------------------------------------------------------------------------------------------------------- */

/* The part of a tensor inside rank p's run of its bucket. */
static spt_slice slice_of(const builder *b, int tensor, int rank) {
  const int64_t *cuts = b->plan->buckets[b->bucket[tensor]].cuts, offset = b->plan->layout.offset[tensor];
  const int64_t count = b->params->tensors[tensor].count;
  int64_t begin = cuts[rank] - offset, end = cuts[rank + 1] - offset;
  if (begin < 0) begin = 0;
  if (end > count) end = count;
  return (spt_slice){tensor, begin, end};
}

/* Arrays of all ranks lie in one allocation each, which the first rank's share points to. */
static spt_status make_shares(builder *b) {
  spt_shard_plan *plan = b->plan;
  const spt_params *params = b->params;
  const size_t size = (size_t)plan->size, tensors = (size_t)params->tensor_count;
  int *pairs = plan_calloc((size_t)params->pair_count, sizeof *pairs);
  spt_slice *slices = plan_calloc(size * tensors, sizeof *slices);
  plan->shares[0].pairs = pairs;
  plan->shares[0].slices = slices;
  if (!pairs || !slices) return SPT_FAIL(SPT_ERR_RESOURCE, "shard plan: out of memory");
  for (int p = 0; p < plan->size; p++) {
    spt_share share = {.pairs = pairs, .slices = slices};
    for (int i = 0; b->pairs && i < params->pair_count; i++)
      if (plan->pair_owner[i] == p) pairs[share.pair_count++] = i;
    for (int t = 0; t < params->tensor_count; t++) {
      if (b->pairs && params->tensors[t].pair >= 0) continue;
      spt_slice slice = slice_of(b, t, p);
      if (slice.begin >= slice.end) continue;
      slices[share.slice_count++] = slice;
      plan->elements[p] += slice.end - slice.begin;
      if (b->owner[t] == CUT) plan->load[p] += ELEMENT_FLOPS * (double)(slice.end - slice.begin);
    }
    pairs += share.pair_count;
    slices += share.slice_count;
    plan->shares[p] = share;
  }
  return SPT_OK;
}

static double imbalance_of(const spt_shard_plan *plan) {
  double sum = 0, largest = 0;
  for (int p = 0; p < plan->size; p++) {
    sum += plan->load[p];
    if (plan->load[p] > largest) largest = plan->load[p];
  }
  return sum > 0 ? largest * plan->size / sum : 1;
}

static spt_status build(builder *b) {
  spt_shard_plan *plan = b->plan;
  const size_t size = (size_t)plan->size, tensors = (size_t)b->params->tensor_count;
  const size_t pairs = (size_t)b->params->pair_count;
  b->owner = plan_calloc(tensors, sizeof *b->owner);
  b->bucket = plan_calloc(tensors, sizeof *b->bucket);
  b->order = plan_calloc(tensors, sizeof *b->order);
  b->cut.fill = plan_calloc(size, sizeof *b->cut.fill);
  b->guides.fill = plan_calloc(size, sizeof *b->guides.fill);
  plan->load = plan_calloc(size, sizeof *plan->load);
  plan->shares = plan_calloc(size, sizeof *plan->shares);
  plan->elements = plan_calloc(size, sizeof *plan->elements);
  plan->layout.offset = plan_calloc(tensors, sizeof *plan->layout.offset);
  if (b->pairs) plan->pair_owner = plan_calloc(pairs, sizeof *plan->pair_owner);
  if (!b->owner || !b->bucket || !b->order || !b->cut.fill || !b->guides.fill || !plan->load || !plan->shares || !plan->elements ||
      !plan->layout.offset || (b->pairs && !plan->pair_owner))
    return SPT_FAIL(SPT_ERR_RESOURCE, "shard plan: out of memory");
  own_all(b);
  SPT_TRY(make_buckets(b));
  SPT_TRY(lay_out(b));
  SPT_TRY(make_shares(b));
  plan->imbalance = imbalance_of(plan);
  return SPT_OK;
}

spt_status spt_shard_plan_open(const spt_model_config *model, const spt_optimizer_config *optimizer,
                               const spt_params *params, int size, int64_t bucket_bytes, spt_shard_plan **plan_p) {
  return spt_shard_plan_open_coarse(model, optimizer, params, size, bucket_bytes, ALIGNMENT, plan_p);
}

spt_status spt_shard_plan_open_coarse(const spt_model_config *model, const spt_optimizer_config *optimizer,
                                      const spt_params *params, int size, int64_t bucket_bytes, int64_t cut_multiple,
                                      spt_shard_plan **plan_p) {
  if (size < 1) return SPT_FAIL(SPT_ERR_USAGE, "shard plan: %d ranks; at least 1 is needed", size);
  if (bucket_bytes < 1)
    return SPT_FAIL(SPT_ERR_USAGE, "shard plan: buckets of %lld bytes; raise [dist] bucket_mib",
                    (long long)bucket_bytes);
  spt_shard_plan *plan = calloc(1, sizeof *plan);
  if (!plan) return SPT_FAIL(SPT_ERR_RESOURCE, "shard plan: out of memory");
  plan->size = size;
  builder b = {.model = model,
               .optimizer = optimizer,
               .params = params,
               .plan = plan,
               .bucket_bytes = bucket_bytes,
               .cut_multiple = cut_multiple,
               .pairs = params->pair_count > 0 && spt_method_uses_pairs(optimizer->method)};
  spt_status status = build(&b);
  free(b.owner);
  free(b.bucket);
  free(b.order);
  free(b.cut.fill);
  free(b.guides.fill);
  if (status == SPT_OK)
    *plan_p = plan;
  else
    spt_shard_plan_close(&plan);
  return status;
}

void spt_shard_plan_close(spt_shard_plan **plan_p) {
  spt_shard_plan *plan = *plan_p;
  if (!plan) return;
  for (int i = 0; plan->buckets && i < plan->bucket_count; i++) free(plan->buckets[i].cuts);
  if (plan->shares) {
    free((void *)plan->shares[0].pairs);
    free((void *)plan->shares[0].slices);
  }
  free(plan->buckets);
  free(plan->pair_owner);
  free(plan->load);
  free(plan->shares);
  free(plan->elements);
  free(plan->layout.offset);
  free(plan);
  *plan_p = NULL;
}

void spt_shard_plan_traffic(const spt_shard_plan *plan, spt_reduction reduction, spt_comm_counter *counters_p) {
  const spt_collective reduce =
      reduction == SPT_REDUCTION_ALL_REDUCE ? SPT_COLLECTIVE_ALL_REDUCE : SPT_COLLECTIVE_REDUCE_SCATTER;
  memset(counters_p, 0, SPT_COLLECTIVE_KINDS * sizeof *counters_p);
  for (int i = 0; plan->size > 1 && i < plan->bucket_count; i++) {
    const int64_t bytes = (plan->buckets[i].end - plan->buckets[i].begin) * (int64_t)sizeof(float);
    counters_p[reduce].messages++;
    counters_p[reduce].bytes += bytes;
    counters_p[SPT_COLLECTIVE_ALL_GATHER].messages++;
    counters_p[SPT_COLLECTIVE_ALL_GATHER].bytes += bytes;
  }
}
