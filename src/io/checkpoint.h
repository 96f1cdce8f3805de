/* Checkpoints: one HDF5 file per save, independent of the ranks that wrote it and will read it (design "Files" and "Ranks").
 *
 * A save has two halves. `begin` (Collective, short) copies this rank's own pieces into its snapshot slab; a thread then streams them, tensor by
 * tensor, to the coordinator (rank 0), which lays the file out first, then pwrites, computes checksums, fsyncs, renames and fsyncs the directory, holding at most one tensor.
 * A run's last save needs no copy and streams from the values themselves.
 * `finish` (Collective) joins the thread and agrees on the outcome. Without comm->threaded all happens in begin. */
#ifndef SPT_CHECKPOINT_H
#define SPT_CHECKPOINT_H

#include "core/backend.h"
#include "dist/comm.h"

#define SPT_DATASET_NAME_MAX 160

/* A dataset of the file and this rank's piece of it. Every rank passes the same datasets in the same order; pieces of all ranks, taken in
 * rank order, tile [0, rows·cols). An empty piece has begin = end. */
typedef struct spt_checkpoint_item {
  char dataset[SPT_DATASET_NAME_MAX]; /* "/model/model.embed_tokens.weight", "/optimizer/<tensor>/momentum" */
  int64_t rows, cols;
  int64_t begin, end; /* this rank's elements */
  float *values;      /* end − begin floats, backend memory; may change after begin returns */
} spt_checkpoint_item;

typedef struct spt_checkpoint_header {
  int64_t step;   /* completed steps */
  int64_t tokens; /* trained so far */
  int64_t applied_updates;
  int rank_count;
  double best_validation_loss; /* NAN: none yet */
  char config_sha256[65];
  char data_fingerprint[33];
} spt_checkpoint_header;

typedef struct spt_checkpoint_saver spt_checkpoint_saver;

/* Allocates the snapshot slab for `items` (copied); its pages are taken by the first save that copies. Collective. */
spt_status spt_checkpoint_saver_open(spt_comm *comm, spt_backend *backend, const spt_checkpoint_item *items, int item_count, spt_checkpoint_saver **saver_p);
/* Takes the snapshot's memory now, where saves that copy are to come: no surprise in the middle of a run. Local. */
void spt_checkpoint_saver_prepare(spt_checkpoint_saver *saver);
/* Waits for a save under way. Collective. */
void spt_checkpoint_saver_close(spt_checkpoint_saver **saver_p);
size_t spt_checkpoint_snapshot_bytes(const spt_checkpoint_item *items, int item_count);
/* Starts a save to `path` (written as `path`.part, renamed when durable). job: the job file's text. A save under way is finished first. Collective. */
spt_status spt_checkpoint_save_begin(spt_checkpoint_saver *saver, const char *path, const spt_checkpoint_header *header, const char *job);
/* The same without a copy where memory is the host's: no value changes until the save is finished (the end of a run). Collective. */
spt_status spt_checkpoint_save_resting(spt_checkpoint_saver *saver, const char *path, const spt_checkpoint_header *header, const char *job);
/* True (on every rank's own view) when no save is under way. Local. */
bool spt_checkpoint_save_idle(const spt_checkpoint_saver *saver);
/* Joins; every rank gets the agreed status. SPT_OK when none was under way. Collective. */
spt_status spt_checkpoint_save_finish(spt_checkpoint_saver *saver);

typedef struct spt_checkpoint spt_checkpoint;
/* Whether the file begins like a checkpoint of ours; nothing more is checked. SPT_ERR_DATA when it cannot be read. */
spt_status spt_checkpoint_recognise(const char *path, bool *checkpoint_p);
/* Opens and checks magic, version, length, the metadata digests, all before the HDF5 library sees the file. SPT_ERR_DATA names the file and the reason.
 * Local: rank 0 or a tool. */
spt_status spt_checkpoint_open(const char *path, spt_checkpoint **checkpoint_p);
void spt_checkpoint_close(spt_checkpoint **checkpoint_p);
const char *spt_checkpoint_path(const spt_checkpoint *checkpoint);
const spt_checkpoint_header *spt_checkpoint_header_of(const spt_checkpoint *checkpoint);
const char *spt_checkpoint_job(const spt_checkpoint *checkpoint);
int spt_checkpoint_dataset_count(const spt_checkpoint *checkpoint);
spt_status spt_checkpoint_dataset(const spt_checkpoint *checkpoint, int index, const char **name_p, int64_t *rows_p, int64_t *cols_p);
/* Index of a dataset, −1 if absent. */
int spt_checkpoint_find(const spt_checkpoint *checkpoint, const char *dataset);
/* Whether a dataset is a guide of the model (core/guidance.h); and whether the file has any. */
bool spt_checkpoint_is_guide(const char *dataset);
bool spt_checkpoint_has_guides(const spt_checkpoint *checkpoint);
/* Reads a whole dataset (rows·cols floats, host) and verifies its checksum. */
spt_status spt_checkpoint_read(spt_checkpoint *checkpoint, int index, float *values);
/* Verifies every tensor's checksum. */
spt_status spt_checkpoint_verify(spt_checkpoint *checkpoint);

/* Loads `items` on every rank from the file that rank 0 has open (`checkpoint` NULL elsewhere): rank 0 reads each dataset once and sends each rank its piece.
 * A missing dataset or another shape is SPT_ERR_DATA and names it. Collective. */
spt_status spt_checkpoint_load(spt_comm *comm, spt_backend *backend, spt_checkpoint *checkpoint, const spt_checkpoint_item *items, int item_count);
/* The same for items whose values are whole tensors on every rank (begin 0, end rows·cols): broadcast. Collective. */
spt_status spt_checkpoint_load_replicated(spt_comm *comm, spt_backend *backend, spt_checkpoint *checkpoint, const spt_checkpoint_item *items, int item_count);

#endif
