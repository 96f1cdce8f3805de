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

/* A run keeps its order and its gaps. */
static void place_masters(spt_master_shards *shards, const spt_shard_plan *plan, const spt_params *params, int rank) {
  for (int b = 0; b < plan->bucket_count; b++) {
    const spt_bucket *bucket = &plan->buckets[b];
    shards->runs[b] = shards->masters.elements;
    shards->masters.elements += run_length(bucket, rank);
    for (int t = 0; t < params->tensor_count; t++) {
      const int64_t at = plan->layout.offset[t];
      if (at >= bucket->begin && at < bucket->end) shards->masters.offset[t] = shards->runs[b] + (at - bucket->cuts[rank]);
    }
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
    shards->runs = calloc((size_t)plan->bucket_count + 1, sizeof *shards->runs);
    shards->gain_offset = calloc((size_t)params->tensor_count + 1, sizeof *shards->gain_offset);
  }
  if (!shards || !shards->masters.offset || !shards->runs || !shards->gain_offset) {
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
  free((*shards_p)->runs);
  free((*shards_p)->gain_offset);
  free(*shards_p);
  *shards_p = NULL;
}
