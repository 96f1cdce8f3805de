/* Saving: snapshot, then a stream of pieces to the coordinator. The file is the thread's business alone: a slow disk
 * does not hold up the caller, and a failing one shows when the save is finished. */
#include "checkpoint_internal.h"
#include "core/slab.h"
#include "durable_file.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define XXH_STATIC_LINKING_ONLY // streaming state on the stack
#include <xxhash.h>

struct spt_checkpoint_saver {
  spt_comm *comm;       /* not owned */
  spt_backend *backend; /* not owned */
  spt_checkpoint_item *items;
  int item_count;
  spt_slab snapshot; /* this rank's pieces, host memory */
  size_t *offset;    /* [item_count] in the snapshot */
  /* coordinator */
  int64_t *cuts;        /* see spt_checkpoint_gather_cuts */
  unsigned char *chunk; /* a message */
  spt_checkpoint_layout layout;
  uint64_t *checksums; /* [item_count] */
  /* the save under way */
  bool under_way, joinable;
  bool resting; /* streams from the values themselves, without the snapshot */
  atomic_bool done;
  pthread_t thread;
  char path[SPT_PATH_MAX], part[SPT_PATH_MAX];
  spt_status status;
  char message[1024]; /* the thread's error, worded again for the caller's thread */
};

static size_t piece_bytes(const spt_checkpoint_item *item) {
  return (size_t)(item->end - item->begin) * sizeof(float);
}

size_t spt_checkpoint_snapshot_bytes(const spt_checkpoint_item *items, int item_count) {
  spt_slab slab;
  spt_slab_init(&slab, "checkpoint snapshot");
  for (int i = 0; i < item_count; i++) spt_slab_reserve(&slab, piece_bytes(&items[i]));
  const size_t bytes = slab.bytes;
  spt_slab_fini(&slab);
  return bytes;
}

static spt_status allocate(spt_checkpoint_saver *saver, const spt_checkpoint_item *items, int item_count) {
  const size_t count = (size_t)item_count + 1;
  saver->items = malloc(count * sizeof *items);
  saver->offset = calloc(count, sizeof *saver->offset);
  bool fine = saver->items && saver->offset;
  if (saver->comm->rank == 0) {
    saver->chunk = malloc(SPT_CHECKPOINT_CHUNK);
    saver->layout.extents = calloc(count, sizeof *saver->layout.extents);
    saver->checksums = calloc(count, sizeof *saver->checksums);
    fine = fine && saver->chunk && saver->layout.extents && saver->checksums;
  }
  if (!fine) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for saving checkpoints (%d tensors)", item_count);
  memcpy(saver->items, items, (size_t)item_count * sizeof *items);
  for (int i = 0; i < item_count; i++) saver->offset[i] = spt_slab_reserve(&saver->snapshot, piece_bytes(&items[i]));
  return spt_slab_allocate(&saver->snapshot, NULL);
}

spt_status spt_checkpoint_saver_open(spt_comm *comm, spt_backend *backend, const spt_checkpoint_item *items,
                                     int item_count, spt_checkpoint_saver **saver_p) {
  spt_checkpoint_saver *saver = calloc(1, sizeof *saver);
  spt_status status = saver ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for saving checkpoints");
  if (saver) {
    *saver = (spt_checkpoint_saver){.comm = comm, .backend = backend, .item_count = item_count};
    atomic_init(&saver->done, true);
    spt_slab_init(&saver->snapshot, "checkpoint snapshot");
    status = allocate(saver, items, item_count);
  }
  status = spt_comm_agree(comm, status, NULL);
  if (status == SPT_OK) status = spt_checkpoint_gather_cuts(comm, items, item_count, &saver->cuts);
  if (status != SPT_OK) {
    spt_checkpoint_saver_close(&saver);
    return status;
  }
  *saver_p = saver;
  return SPT_OK;
}

void spt_checkpoint_saver_prepare(spt_checkpoint_saver *saver) {
  for (int i = 0; i < saver->item_count; i++)
    memset(spt_slab_at(&saver->snapshot, saver->offset[i]), 0, piece_bytes(&saver->items[i]));
}

void spt_checkpoint_saver_close(spt_checkpoint_saver **saver_p) {
  spt_checkpoint_saver *saver = *saver_p;
  if (!saver) return;
  if (saver->under_way) spt_checkpoint_save_finish(saver); // its failure was the caller's to ask for
  spt_slab_fini(&saver->snapshot);
  free(saver->checksums);
  free(saver->layout.extents);
  free(saver->chunk);
  free(saver->cuts);
  free(saver->offset);
  free(saver->items);
  free(saver);
  *saver_p = NULL;
}

static const unsigned char *piece_of(const spt_checkpoint_saver *saver, int i) {
  return saver->resting ? (const unsigned char *)saver->items[i].values
                        : (const unsigned char *)spt_slab_at(&saver->snapshot, saver->offset[i]);
}

/* Sends this rank's pieces in item order. A failed send does not stop the others: the coordinator waits for each. */
static spt_status send_pieces(spt_checkpoint_saver *saver) {
  spt_comm *comm = saver->comm;
  spt_status status = SPT_OK;
  for (int i = 0; i < saver->item_count; i++) {
    const unsigned char *bytes = piece_of(saver, i);
    const size_t total = piece_bytes(&saver->items[i]);
    for (size_t at = 0; at < total; at += SPT_CHECKPOINT_CHUNK) {
      const size_t count = total - at < SPT_CHECKPOINT_CHUNK ? total - at : SPT_CHECKPOINT_CHUNK;
      const spt_status sent = comm->ops->send(comm, bytes + at, count, 0, SPT_TAG_SAVE);
      if (status == SPT_OK) status = sent;
    }
  }
  return status;
}

/* Receives and writes one tensor, rank by rank. Once `status` is a failure it only drains the messages, so that no
 * sender waits for ever. */
static spt_status write_tensor(spt_checkpoint_saver *saver, int fd, int i, spt_status status) {
  spt_comm *comm = saver->comm;
  const int64_t *cuts = saver->cuts + (size_t)i * ((size_t)comm->size + 1);
  uint64_t position = saver->layout.extents[i].offset;
  XXH3_state_t hash;
  XXH3_64bits_reset(&hash);
  for (int rank = 0; rank < comm->size; rank++) {
    const size_t total = (size_t)(cuts[rank + 1] - cuts[rank]) * sizeof(float);
    for (size_t at = 0; at < total; at += SPT_CHECKPOINT_CHUNK) {
      const size_t count = total - at < SPT_CHECKPOINT_CHUNK ? total - at : SPT_CHECKPOINT_CHUNK;
      const unsigned char *bytes = saver->chunk;
      if (rank == 0) {
        bytes = piece_of(saver, i) + at;
      } else {
        const spt_status received = comm->ops->receive(comm, saver->chunk, count, rank, SPT_TAG_SAVE);
        if (status == SPT_OK) status = received;
      }
      if (status != SPT_OK) continue;
      XXH3_64bits_update(&hash, bytes, count);
      status = spt_file_write_at(fd, saver->part, bytes, count, position);
      position += count;
    }
  }
  saver->checksums[i] = XXH3_64bits_digest(&hash);
  return status;
}

static spt_status write_file(spt_checkpoint_saver *saver) {
  const spt_checkpoint_layout *layout = &saver->layout;
  const spt_seal seal = {layout->file_bytes, layout->extents_offset, (uint64_t)saver->item_count};
  int fd = -1;
  spt_status status = spt_checkpoint_create(saver->part, saver->item_count, &saver->layout, &fd);
  for (int i = 0; i < saver->item_count; i++) status = write_tensor(saver, fd, i, status);
  if (status == SPT_OK)
    status = spt_file_write_at(fd, saver->part, saver->checksums, (size_t)saver->item_count * sizeof *saver->checksums,
                               layout->checksums_offset);
  if (status == SPT_OK) status = spt_seal_write(fd, saver->part, &seal, layout->extents);
  if (status == SPT_OK) return spt_file_publish(&fd, saver->part, saver->path);
  if (fd >= 0) close(fd);
  unlink(saver->part);
  return status;
}

static void *stream(void *argument) {
  spt_checkpoint_saver *saver = argument;
  saver->status = saver->comm->rank == 0 ? write_file(saver) : send_pieces(saver);
  if (saver->status != SPT_OK) snprintf(saver->message, sizeof saver->message, "%s", spt_error_message());
  atomic_store(&saver->done, true);
  return NULL;
}

/* Signals stay with the main thread. */
static bool start_thread(spt_checkpoint_saver *saver) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  const bool started = pthread_create(&saver->thread, NULL, stream, saver) == 0;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return started;
}

static spt_status take_snapshot(spt_checkpoint_saver *saver) {
  for (int i = 0; i < saver->item_count; i++) {
    const size_t bytes = piece_bytes(&saver->items[i]);
    void *to = spt_slab_at(&saver->snapshot, saver->offset[i]);
    if (bytes > 0) SPT_TRY(saver->backend->ops->download(saver->backend, to, saver->items[i].values, bytes));
  }
  return SPT_OK;
}

static spt_status begin(spt_checkpoint_saver *saver, bool resting, const char *path,
                        const spt_checkpoint_header *header, const char *job) {
  SPT_TRY(spt_checkpoint_save_finish(saver));
  saver->resting = resting && saver->backend->host_memory;
  spt_status status = saver->resting ? SPT_OK : take_snapshot(saver);
  if (status == SPT_OK && saver->comm->rank == 0) {
    // The library is used here, on the caller's thread, because an HDF5 without thread safety must see one thread only.
    snprintf(saver->path, sizeof saver->path, "%s", path);
    if (snprintf(saver->part, sizeof saver->part, "%s.part", path) >= (int)sizeof saver->part)
      status = SPT_FAIL(SPT_ERR_USAGE, "%s: checkpoint path too long", path);
    else
      status = spt_checkpoint_lay_out(saver->part, saver->items, saver->item_count, header, job, &saver->layout);
  }
  const spt_status agreed = spt_comm_agree(saver->comm, status, NULL);
  if (agreed != SPT_OK) {
    spt_hdf5_image_close(&saver->layout.image);
    return agreed;
  }
  saver->under_way = true;
  atomic_store(&saver->done, false);
  saver->joinable = saver->comm->threaded && start_thread(saver);
  if (!saver->joinable) stream(saver); // without a second thread: now
  return saver->comm->threaded ? SPT_OK : spt_checkpoint_save_finish(saver);
}

spt_status spt_checkpoint_save_begin(spt_checkpoint_saver *saver, const char *path, const spt_checkpoint_header *header,
                                     const char *job) {
  return begin(saver, false, path, header, job);
}

spt_status spt_checkpoint_save_resting(spt_checkpoint_saver *saver, const char *path,
                                       const spt_checkpoint_header *header, const char *job) {
  return begin(saver, true, path, header, job);
}

bool spt_checkpoint_save_idle(const spt_checkpoint_saver *saver) {
  return atomic_load(&saver->done);
}

spt_status spt_checkpoint_save_finish(spt_checkpoint_saver *saver) {
  if (!saver->under_way) return SPT_OK;
  if (saver->joinable) pthread_join(saver->thread, NULL);
  saver->under_way = saver->joinable = false;
  if (saver->status != SPT_OK) SPT_FAIL(saver->status, "%s", saver->message);
  return spt_comm_agree(saver->comm, saver->status, NULL);
}
