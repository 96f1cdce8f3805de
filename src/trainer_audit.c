/* The audit, against memory that changes by itself: [dist] audit_every.
 *
 * Between the all-gather of one step and the update of the next, neither the parameters nor the optimizer state may
 * change. In an audited step every rank hashes all parameters, and its part of the optimizer state, at the one end
 * (take) and again at the other (check): a rank that differs from itself is named with the tensor. At the taking, the
 * ranks also compare each owner's part: a copy that differs from its owner's is named. Comparing copies alone would not
 * do: the next all-gather mends a flipped copy, and spreads what was flipped at its owner. Where masters are their owners' alone, the parameters are
 * the copies of all, and each rank hashes its masters too. */
#include "trainer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

/* A run of one tensor's elements with one owner, or of optimizer state. */
typedef struct piece {
  const void *values; /* backend memory */
  size_t bytes;
  const char *name; /* dataset or tensor, not owned */
  int owner;
  uint64_t hash; /* as taken */
} piece;

struct trainer_audit {
  piece *pieces;
  int count, capacity, parameters; /* the first `parameters` of them are parameters, of all owners in their order */
  size_t largest;
  void *buffer;    /* [largest], where backend memory is no host memory */
  uint64_t *found; /* [count], by check */
  double *halves;  /* [4·size] */
  bool taken;
};

static void add_piece(trainer_audit *audit, const void *values, int64_t count, size_t element, const char *name, int owner) {
  if (count <= 0 || !audit) return;
  const size_t bytes = (size_t)count * element;
  if (audit->count == audit->capacity) {
    const int capacity = audit->capacity ? 2 * audit->capacity : 256;
    piece *grown = realloc(audit->pieces, (size_t)capacity * sizeof *grown);
    if (!grown) {
      audit->capacity = -1; // told by open
      return;
    }
    audit->pieces = grown;
    audit->capacity = capacity;
  }
  audit->pieces[audit->count++] = (piece){values, bytes, name, owner, 0};
  if (bytes > audit->largest) audit->largest = bytes;
}

/* The runs of an owner in a bucket, tensor by tensor: the gaps between tensors are nobody's. */
static void add_owned(trainer_audit *audit, const trainer *t, const spt_bucket *bucket, int owner) {
  for (int i = 0; i < t->params->tensor_count && audit->capacity >= 0; i++) {
    const spt_tensor *tensor = &t->params->tensors[i];
    const int64_t first = t->plan->layout.offset[i], last = first + tensor->count;
    const int64_t begin = first > bucket->cuts[owner] ? first : bucket->cuts[owner],
                  end = last < bucket->cuts[owner + 1] ? last : bucket->cuts[owner + 1];
    if (!t->shards)
      add_piece(audit, t->parameters + begin, end - begin, sizeof(float), tensor->name, owner);
    else if (tensor->role == SPT_ROLE_GAIN)
      add_piece(audit, t->copies.gains + (t->shards->gain_offset[i] + begin - first), end - begin, sizeof(float), tensor->name, owner);
    else
      add_piece(audit, (const uint16_t *)t->copies.values + begin, end - begin, sizeof(uint16_t), tensor->name, owner);
  }
}

static spt_status list_pieces(trainer_audit *audit, const trainer *t) {
  for (int owner = 0; owner < t->comm->size; owner++)
    for (int b = 0; b < t->plan->bucket_count; b++) add_owned(audit, t, &t->plan->buckets[b], owner);
  audit->parameters = audit->count;
  for (int i = t->shards ? 0 : t->model_item_count; i < t->item_count && audit->capacity >= 0; i++)
    add_piece(audit, t->items[i].values, t->items[i].end - t->items[i].begin, sizeof(float), t->items[i].dataset, t->comm->rank);
  audit->found = calloc((size_t)audit->count + 1, sizeof *audit->found);
  audit->halves = calloc(4 * (size_t)t->comm->size, sizeof *audit->halves);
  if (!t->backend->host_memory) audit->buffer = malloc(audit->largest + 1);
  if (audit->capacity < 0 || !audit->found || !audit->halves || (!t->backend->host_memory && !audit->buffer))
    return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the audit");
  return SPT_OK;
}

spt_status trainer_audit_open(trainer *t) {
  if (t->config.dist.audit_every == 0) return SPT_OK;
  t->audit = calloc(1, sizeof *t->audit);
  const spt_status status =
      t->audit ? list_pieces(t->audit, t) : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the audit");
  return spt_comm_agree(t->comm, status, NULL);
}

void trainer_audit_close(trainer *t) {
  if (!t->audit) return;
  free(t->audit->pieces);
  free(t->audit->buffer);
  free(t->audit->found);
  free(t->audit->halves);
  free(t->audit);
  t->audit = NULL;
}

void trainer_print_addresses(const trainer *t) {
  for (int i = 0; i < t->params->tensor_count && !t->shards; i++)
    fprintf(stderr, "address %d %ld /model/%s %" PRIxPTR " %zu\n", t->comm->rank, (long)getpid(), t->params->tensors[i].name,
            (uintptr_t)(t->parameters + t->plan->layout.offset[i]), (size_t)t->params->tensors[i].count * sizeof(float));
  for (int i = t->shards ? 0 : t->model_item_count; i < t->item_count; i++)
    if (t->items[i].begin < t->items[i].end)
      fprintf(stderr, "address %d %ld %s %" PRIxPTR " %zu\n", t->comm->rank, (long)getpid(), t->items[i].dataset,
              (uintptr_t)t->items[i].values, (size_t)(t->items[i].end - t->items[i].begin) * sizeof(float));
}

/* XXH3-64 of every piece's bytes into found. */
static spt_status hash_pieces(trainer *t) {
  trainer_audit *audit = t->audit;
  if (t->backend->host_memory) {
#pragma omp parallel for schedule(dynamic) num_threads(t->backend->threads)
    for (int i = 0; i < audit->count; i++)
      audit->found[i] = XXH3_64bits(audit->pieces[i].values, audit->pieces[i].bytes);
    return SPT_OK;
  }
  for (int i = 0; i < audit->count; i++) {
    const piece *piece = &audit->pieces[i];
    SPT_TRY(t->backend->ops->download(t->backend, audit->buffer, piece->values, piece->bytes));
    audit->found[i] = XXH3_64bits(audit->buffer, piece->bytes);
  }
  return SPT_OK;
}

/* Of owner q's parameters here: one hash, as two halves that a double holds exactly. */
static void owner_hash(const trainer_audit *audit, int q, double halves[2]) {
  uint64_t hash = 0;
  for (int i = 0; i < audit->parameters; i++)
    if (audit->pieces[i].owner == q) hash = XXH3_64bits_withSeed(&audit->found[i], sizeof audit->found[i], hash);
  halves[0] = (double)(hash >> 32);
  halves[1] = (double)(hash & 0xffffffffu);
}

/* All copies of each owner's part are the same, else the odd ones are named: the copies, unless most of them differ
 * from the owner's, which is then the odd one. */
static spt_status compare_copies(trainer *t) {
  trainer_audit *audit = t->audit;
  const int size = t->comm->size;
  double *halves = audit->halves;
  for (int q = 0; q < size; q++) {
    owner_hash(audit, q, halves + 4 * q);
    halves[4 * q + 2] = -halves[4 * q];
    halves[4 * q + 3] = -halves[4 * q + 1];
  }
  SPT_TRY(t->comm->ops->reduce_double(t->comm, halves, 4 * size, SPT_REDUCE_MAX));
  int odd = -1;
  for (int q = 0; q < size && odd < 0; q++)
    if (halves[4 * q] != -halves[4 * q + 2] || halves[4 * q + 1] != -halves[4 * q + 3]) odd = q;
  if (odd < 0) return SPT_OK;

  double mine[2], owners[2] = {0, 0};
  owner_hash(audit, odd, mine);
  if (t->comm->rank == odd) owners[0] = mine[0], owners[1] = mine[1];
  SPT_TRY(t->comm->ops->reduce_double(t->comm, owners, 2, SPT_REDUCE_SUM));
  const bool differs = mine[0] != owners[0] || mine[1] != owners[1];
  double others = differs;
  SPT_TRY(t->comm->ops->reduce_double(t->comm, &others, 1, SPT_REDUCE_SUM));
  const bool owner_is_odd = size > 2 && (int)others == size - 1, guilty = owner_is_odd ? t->comm->rank == odd : differs;
  const spt_status status =
      guilty ? SPT_FAIL(SPT_ERR_RESOURCE,
                        "audit after step %" PRId64 ": rank %d (%s) holds other parameters of rank %d's part than %s: "
                        "its memory or network is at fault; nothing of this is saved, resume without that machine",
                        t->step + 1, t->comm->rank, t->comm->host, odd, owner_is_odd ? "all others" : "its owner")
             : SPT_OK;
  return spt_comm_agree(t->comm, status, NULL);
}

spt_status trainer_audit_take(trainer *t) {
  trainer_audit *audit = t->audit;
  if (!audit) return SPT_OK;
  audit->taken = (t->step + 1) % t->config.dist.audit_every == 0;
  if (!audit->taken) return SPT_OK;
  SPT_TRY(spt_comm_agree(t->comm, hash_pieces(t), NULL));
  for (int i = 0; i < audit->count; i++) audit->pieces[i].hash = audit->found[i];
  return compare_copies(t);
}

spt_status trainer_audit_check(trainer *t) {
  trainer_audit *audit = t->audit;
  if (!audit || !audit->taken) return SPT_OK;
  spt_status status = hash_pieces(t);
  for (int i = 0; status == SPT_OK && i < audit->count; i++)
    if (audit->found[i] != audit->pieces[i].hash)
      status = SPT_FAIL(SPT_ERR_RESOURCE,
                        "audit of step %" PRId64 ": rank %d (%s): %s%s changed by itself during the step: the "
                        "machine's memory is at fault; nothing of this is saved, resume without it",
                        t->step + 1, t->comm->rank, t->comm->host, i < audit->parameters ? "parameters " : "",
                        audit->pieces[i].name);
  return spt_comm_agree(t->comm, status, NULL);
}
