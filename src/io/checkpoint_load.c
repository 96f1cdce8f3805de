/* Loading: rank 0 reads each dataset once and hands out the pieces. */
#include "checkpoint_internal.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* What a rank tells rank 0 before its pieces: are these the same datasets? */
static int64_t fingerprint(const spt_checkpoint_item *items, int item_count) {
  uint64_t hash = (uint64_t)item_count;
  for (int i = 0; i < item_count; i++) {
    const int64_t shape[2] = {items[i].rows, items[i].cols};
    hash = XXH3_64bits_withSeed(items[i].dataset, strnlen(items[i].dataset, SPT_DATASET_NAME_MAX), hash);
    hash = XXH3_64bits_withSeed(shape, sizeof shape, hash);
  }
  return (int64_t)hash;
}

/* pieces: fingerprint, then (begin, end) by item. */
static spt_status add_pieces(const spt_checkpoint_item *items, int item_count, int rank, int size, const int64_t *mine,
                             const int64_t *pieces, int64_t *cuts) {
  if (pieces[0] != mine[0])
    return SPT_FAIL(SPT_ERR_RESOURCE,
                    "checkpoint: rank %d has other tensors than rank 0: run the same program and job on every rank",
                    rank);
  for (int i = 0; i < item_count; i++) {
    int64_t *cut = cuts + (size_t)i * ((size_t)size + 1);
    const int64_t begin = pieces[1 + 2 * i], end = pieces[2 + 2 * i];
    if (begin > end || (begin < end && begin != cut[rank]))
      return SPT_FAIL(SPT_ERR_RESOURCE,
                      "checkpoint: %s: rank %d holds [%lld, %lld), but the ranks before it end at %lld",
                      items[i].dataset, rank, (long long)begin, (long long)end, (long long)cut[rank]);
    cut[rank + 1] = cut[rank] + (end - begin);
  }
  return SPT_OK;
}

static spt_status check_whole(const spt_checkpoint_item *items, int item_count, int size, const int64_t *cuts) {
  for (int i = 0; i < item_count; i++) {
    const int64_t total = cuts[(size_t)i * ((size_t)size + 1) + (size_t)size];
    if (items[i].rows < 1 || items[i].cols < 1 || total != items[i].rows * items[i].cols)
      return SPT_FAIL(SPT_ERR_RESOURCE, "checkpoint: %s (%lld, %lld): the ranks hold %lld elements of it",
                      items[i].dataset, (long long)items[i].rows, (long long)items[i].cols, (long long)total);
  }
  return SPT_OK;
}

spt_status spt_checkpoint_gather_cuts(spt_comm *comm, const spt_checkpoint_item *items, int item_count,
                                      int64_t **cuts_p) {
  const size_t count = 1 + 2 * (size_t)item_count, bytes = count * sizeof(int64_t);
  int64_t *mine = malloc(bytes), *theirs = NULL, *cuts = NULL;
  bool fine = mine != NULL;
  if (comm->rank == 0) {
    theirs = malloc(bytes);
    cuts = calloc((size_t)item_count * ((size_t)comm->size + 1) + 1, sizeof *cuts);
    fine = fine && theirs && cuts;
  }
  spt_status status =
      fine ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the pieces of %d tensors", item_count);
  status = spt_comm_agree(comm, status, NULL);
  if (status == SPT_OK) {
    mine[0] = fingerprint(items, item_count);
    for (int i = 0; i < item_count; i++) {
      mine[1 + 2 * i] = items[i].begin;
      mine[2 + 2 * i] = items[i].end;
    }
    if (comm->rank != 0) status = comm->ops->send(comm, mine, bytes, 0, SPT_TAG_PIECES);
    for (int rank = 0; comm->rank == 0 && rank < comm->size; rank++) {
      const spt_status received = rank ? comm->ops->receive(comm, theirs, bytes, rank, SPT_TAG_PIECES) : SPT_OK;
      if (status == SPT_OK) status = received;
      if (status == SPT_OK) status = add_pieces(items, item_count, rank, comm->size, mine, rank ? theirs : mine, cuts);
    }
    if (comm->rank == 0 && status == SPT_OK) status = check_whole(items, item_count, comm->size, cuts);
    status = spt_comm_agree(comm, status, NULL);
  }
  free(theirs);
  free(mine);
  if (status != SPT_OK) {
    free(cuts);
    return status;
  }
  *cuts_p = cuts;
  return SPT_OK;
}

/* Rank 0: where each item is in the file; elsewhere nothing to do. Buffers: a whole tensor on rank 0, a message
 * elsewhere. */
static spt_status prepare(spt_comm *comm, const spt_checkpoint *checkpoint, const spt_checkpoint_item *items,
                          int item_count, int **index_p, float **buffer_p) {
  size_t largest = SPT_CHECKPOINT_CHUNK;
  if (comm->rank == 0) {
    if (!(*index_p = malloc(((size_t)item_count + 1) * sizeof **index_p)))
      return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for loading");
    for (int i = 0; i < item_count; i++) {
      const int index = (*index_p)[i] = spt_checkpoint_find(checkpoint, items[i].dataset);
      const char *name;
      int64_t rows, cols;
      if (index < 0)
        return SPT_FAIL(SPT_ERR_DATA, "%s: holds no %s: it is of another model or method",
                        spt_checkpoint_path(checkpoint), items[i].dataset);
      SPT_TRY(spt_checkpoint_dataset(checkpoint, index, &name, &rows, &cols));
      if (rows != items[i].rows || cols != items[i].cols)
        return SPT_FAIL(SPT_ERR_DATA, "%s: %s is (%lld, %lld), the job's model wants (%lld, %lld)",
                        spt_checkpoint_path(checkpoint), name, (long long)rows, (long long)cols,
                        (long long)items[i].rows, (long long)items[i].cols);
      if (spt_item_bytes(&items[i]) > largest) largest = spt_item_bytes(&items[i]);
    }
  }
  *buffer_p = malloc(largest);
  return *buffer_p ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for loading (%zu bytes)", largest);
}

/* One message's worth of an item, from rank 0's buffer to its place. A rank that has failed goes on with the messages,
 * so that none waits. */
typedef struct loader {
  spt_comm *comm;
  spt_backend *backend;
  spt_status status;
} loader;

static void note(loader *load, spt_status status) {
  if (load->status == SPT_OK) load->status = status;
}

static void upload(loader *load, float *to, const void *from, size_t bytes) {
  if (load->status == SPT_OK) note(load, load->backend->ops->upload(load->backend, to, from, bytes));
}

static size_t chunk_of(size_t total, size_t at) {
  return total - at < SPT_CHECKPOINT_CHUNK ? total - at : SPT_CHECKPOINT_CHUNK;
}

static void send_item(loader *load, const spt_checkpoint_item *item, const int64_t *cuts, const float *whole) {
  for (int rank = 1; rank < load->comm->size; rank++) {
    const size_t total = (size_t)(cuts[rank + 1] - cuts[rank]) * sizeof(float);
    const unsigned char *from = (const unsigned char *)(whole + cuts[rank]);
    for (size_t at = 0; at < total; at += SPT_CHECKPOINT_CHUNK)
      note(load, load->comm->ops->send(load->comm, from + at, chunk_of(total, at), rank, SPT_TAG_LOAD));
  }
  if (item->end > item->begin)
    upload(load, item->values, whole + item->begin, (size_t)(item->end - item->begin) * sizeof(float));
}

static void receive_item(loader *load, const spt_checkpoint_item *item, float *buffer) {
  const size_t total = (size_t)(item->end - item->begin) * sizeof(float);
  for (size_t at = 0; at < total; at += SPT_CHECKPOINT_CHUNK) {
    const size_t count = chunk_of(total, at);
    note(load, load->comm->ops->receive(load->comm, buffer, count, 0, SPT_TAG_LOAD));
    upload(load, item->values + at / sizeof(float), buffer, count);
  }
}

static void broadcast_item(loader *load, const spt_checkpoint_item *item, float *buffer) {
  const size_t total = spt_item_bytes(item);
  for (size_t at = 0; at < total; at += SPT_CHECKPOINT_CHUNK) {
    const size_t count = chunk_of(total, at);
    float *bytes = load->comm->rank == 0 ? buffer + at / sizeof(float) : buffer;
    note(load, load->comm->ops->broadcast(load->comm, bytes, count, 0));
    upload(load, item->values + at / sizeof(float), bytes, count);
  }
}

static spt_status load_items(spt_comm *comm, spt_backend *backend, spt_checkpoint *checkpoint,
                             const spt_checkpoint_item *items, int item_count, const int64_t *cuts, bool replicated) {
  int *index = NULL;
  float *buffer = NULL;
  spt_status status = prepare(comm, checkpoint, items, item_count, &index, &buffer);
  status = spt_comm_agree(comm, status, NULL);
  if (status == SPT_OK) {
    loader load = {comm, backend, SPT_OK};
    for (int i = 0; i < item_count; i++) {
      if (comm->rank == 0 && load.status == SPT_OK) note(&load, spt_checkpoint_read(checkpoint, index[i], buffer));
      if (replicated)
        broadcast_item(&load, &items[i], buffer);
      else if (comm->rank == 0)
        send_item(&load, &items[i], cuts + (size_t)i * ((size_t)comm->size + 1), buffer);
      else
        receive_item(&load, &items[i], buffer);
    }
    status = spt_comm_agree(comm, load.status, NULL);
  }
  free(buffer);
  free(index);
  return status;
}

spt_status spt_checkpoint_load(spt_comm *comm, spt_backend *backend, spt_checkpoint *checkpoint,
                               const spt_checkpoint_item *items, int item_count) {
  int64_t *cuts = NULL;
  SPT_TRY(spt_checkpoint_gather_cuts(comm, items, item_count, &cuts));
  const spt_status status = load_items(comm, backend, checkpoint, items, item_count, cuts, false);
  free(cuts);
  return status;
}

spt_status spt_checkpoint_load_replicated(spt_comm *comm, spt_backend *backend, spt_checkpoint *checkpoint,
                                          const spt_checkpoint_item *items, int item_count) {
  return load_items(comm, backend, checkpoint, items, item_count, NULL, true);
}
