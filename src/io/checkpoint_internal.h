/* Shared by the checkpoint_*.c files: the seal (user block), the layout, and who holds which piece. */
#ifndef SPT_CHECKPOINT_INTERNAL_H
#define SPT_CHECKPOINT_INTERNAL_H

#include "checkpoint.h"
#include "hdf5_image.h"

#define SPT_CHECKPOINT_FORMAT "spectron-checkpoint"
enum {
  SPT_CHECKPOINT_VERSION = 1,
  SPT_SEAL_BYTES = 4096,
  SPT_CHECKPOINT_JOB_MAX = 16 << 20, /* bytes of /job */
  SPT_CHECKPOINT_TENSORS_MAX = 1 << 20,
  SPT_CHECKPOINT_CHUNK = 4 << 20, /* bytes per message and per hash step */
  SPT_TAG_PIECES = 7001,
  SPT_TAG_SAVE = 7002,
  SPT_TAG_LOAD = 7003
};

/* One tensor's bytes in the file; as stored in /extents. */
typedef struct spt_extent {
  uint64_t offset, bytes;
} spt_extent;

/* The user block, little-endian:
 *    0 magic (8 bytes) · 8 u32 version · 12 u32 its own length 4096 · 16 u64 file length · 24 u64 offset of the data of
 * /extents · 32 u64 number of tensors · 40 u64 0 · 48 XXH3-128 (canonical) of every byte of the file outside tensor
 * extents and outside [48, 72) · 64 u64 XXH3-64 of the block outside [64, 72) · zeros */
typedef struct spt_seal {
  uint64_t file_bytes, extents_offset, tensor_count;
} spt_seal;

/* True when the bytes begin like a checkpoint of ours. */
bool spt_seal_has_magic(const unsigned char bytes[8]);
/* Writes the seal over the user block, last of all. */
spt_status spt_seal_write(int fd, const char *path, const spt_seal *seal, const spt_extent *extents);
/* Checks everything but the tensors; *extents_p is malloc'ed, in tensor order. SPT_ERR_DATA. */
spt_status spt_seal_check(int fd, const char *path, spt_seal *seal_p, spt_extent **extents_p);

/* Calls visit for every range of the file that belongs to no tensor, from the seal's end on, in order. SPT_ERR_DATA when
 * tensors overlap or leave the file. */
typedef spt_status spt_gap_visit(void *context, uint64_t begin, uint64_t end);
spt_status spt_seal_visit_gaps(const char *path, const spt_seal *seal, const spt_extent *extents, spt_gap_visit *visit,
                               void *context);

/* What a reader process says of a checkpoint (checkpoint_describe.c). */
typedef struct spt_checkpoint_head {
  spt_checkpoint_header header;
  int64_t job_bytes; /* its NUL included */
} spt_checkpoint_head;
typedef struct spt_checkpoint_entry {
  char name[SPT_DATASET_NAME_MAX];
  int64_t rows, cols;
  uint64_t checksum;
} spt_checkpoint_entry;

typedef struct spt_checkpoint_layout {
  spt_extent *extents; /* [item_count], the caller's */
  uint64_t file_bytes, extents_offset, checksums_offset;
  spt_hdf5_image *image; /* the metadata, in memory; NULL: none */
} spt_checkpoint_layout;
/* Has the HDF5 library make all metadata, in memory: no disk can fail it. `part` is for messages. The caller
 * closes layout->image, also when no file is created from it. */
spt_status spt_checkpoint_lay_out(const char *part, const spt_checkpoint_item *items, int item_count,
                                  const spt_checkpoint_header *header, const char *job, spt_checkpoint_layout *layout);
/* Creates `part` with its metadata and unwritten tensors, its disk space reserved, without the HDF5 library, and
 * closes the image. *fd_p is −1 when it could not be opened. */
spt_status spt_checkpoint_create(const char *part, int item_count, spt_checkpoint_layout *layout, int *fd_p);

/* Rank 0 learns all pieces: cuts[i·(size + 1) + p] is where rank p's piece of item i begins; NULL on other ranks. The
 * caller frees. Checks that pieces tile and that all ranks pass the same datasets. Collective. */
spt_status spt_checkpoint_gather_cuts(spt_comm *comm, const spt_checkpoint_item *items, int item_count,
                                      int64_t **cuts_p);

static inline size_t spt_item_bytes(const spt_checkpoint_item *item) {
  return (size_t)item->rows * (size_t)item->cols * sizeof(float);
}

#endif
