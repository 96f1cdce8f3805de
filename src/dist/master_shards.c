#include "master_shards.h"

#include <stdlib.h>

enum { ALIGNMENT = 16 }; // floats: vectorised access wants every tensor on a cache line

static int64_t aligned(int64_t elements) {
  return (elements + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static int64_t run_length(const spt_bucket *bucket, int rank) {
  return bucket->cuts[rank + 1] - bucket->cuts[rank];
}

int64_t spt_master_shards_elements(const spt_shard_plan *plan, int rank) {
  int64_t sum = 0;
  for (int b = 0; b < plan->bucket_count; b++) sum += run_length(&plan->buckets[b], rank);
  return sum;
}

int64_t spt_master_shards_gains(const spt_params *params) {
  int64_t sum = 0;
  for (int t = 0; t < params->tensor_count; t++)
    if (params->tensors[t].role == SPT_ROLE_GAIN) sum += aligned(params->tensors[t].count);
  return sum;
}

/* The tensor that ends first behind `position`; −1: none. */
static int next_tensor(const spt_shard_plan *plan, const spt_params *params, int64_t position) {
  int next = -1;
  for (int t = 0; t < params->tensor_count; t++)
    if (plan->layout.offset[t] + params->tensors[t].count > position && (next < 0 || plan->layout.offset[t] < plan->layout.offset[next]))
      next = t;
  return next;
}

/* Neighbours that alignment alone parts are one piece. */
static void place_pieces(spt_master_shards *shards, const spt_shard_plan *plan, const spt_params *params, int bucket, int rank, int64_t run) {
  const int64_t first = plan->buckets[bucket].cuts[rank], last = plan->buckets[bucket].cuts[rank + 1];
  int *const count = &shards->first_piece[bucket + 1];
  *count = shards->first_piece[bucket];
  for (int64_t position = first; position < last;) {
    const int t = next_tensor(plan, params, position);
    int64_t begin = t < 0 ? last : plan->layout.offset[t];
    if (begin >= last) break;
    if (begin < first) begin = first;
    const int64_t end = plan->layout.offset[t] + params->tensors[t].count;
    position = end < last ? end : last;
    spt_master_piece *before = *count > shards->first_piece[bucket] ? &shards->pieces[*count - 1] : NULL;
    if (before && begin - (before->at + before->count) < ALIGNMENT)
      before->count = position - before->at;
    else
      shards->pieces[(*count)++] = (spt_master_piece){.at = begin, .from = run + (begin - first), .count = position - begin};
  }
}

/* A run keeps its order and its gaps. */
static void place_masters(spt_master_shards *shards, const spt_shard_plan *plan, const spt_params *params, int rank) {
  for (int b = 0; b < plan->bucket_count; b++) {
    const spt_bucket *bucket = &plan->buckets[b];
    const int64_t run = shards->masters.elements;
    shards->masters.elements += run_length(bucket, rank);
    for (int t = 0; t < params->tensor_count; t++) {
      const int64_t at = plan->layout.offset[t];
      if (at >= bucket->begin && at < bucket->end) shards->masters.offset[t] = run + (at - bucket->cuts[rank]);
    }
    place_pieces(shards, plan, params, b, rank, run);
  }
}

static void place_gains(spt_master_shards *shards, const spt_params *params) {
  for (int t = 0; t < params->tensor_count; t++) {
    const bool gain = params->tensors[t].role == SPT_ROLE_GAIN;
    shards->gain_offset[t] = gain ? shards->gain_elements : -1;
    if (gain) shards->gain_elements += aligned(params->tensors[t].count);
  }
}

spt_status spt_master_shards_open(const spt_shard_plan *plan, const spt_params *params, int rank, spt_master_shards **shards_p) {
  spt_master_shards *shards = calloc(1, sizeof *shards);
  if (shards) {
    shards->masters.offset = calloc((size_t)params->tensor_count + 1, sizeof *shards->masters.offset);
    shards->pieces = calloc((size_t)(params->tensor_count + plan->bucket_count) + 1, sizeof *shards->pieces); // a tensor is in one bucket
    shards->first_piece = calloc((size_t)plan->bucket_count + 1, sizeof *shards->first_piece);
    shards->gain_offset = calloc((size_t)params->tensor_count + 1, sizeof *shards->gain_offset);
  }
  if (!shards || !shards->masters.offset || !shards->pieces || !shards->first_piece || !shards->gain_offset) {
    spt_master_shards_close(&shards);
    return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory placing the masters");
  }
  place_masters(shards, plan, params, rank);
  place_gains(shards, params);
  *shards_p = shards;
  return SPT_OK;
}

void spt_master_shards_close(spt_master_shards **shards_p) {
  if (!*shards_p) return;
  free((*shards_p)->masters.offset);
  free((*shards_p)->pieces);
  free((*shards_p)->first_piece);
  free((*shards_p)->gain_offset);
  free(*shards_p);
  *shards_p = NULL;
}
