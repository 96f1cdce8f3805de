/* Opening and reading. HDF5 sees a file only after every byte of its metadata was checked, and in a process of its own;
 * tensors are read without it. */
#include "checkpoint_internal.h"
#include "durable_file.h"
#include "hdf5_process.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_STATIC_LINKING_ONLY // streaming state on the stack
#include <xxhash.h>

typedef struct dataset {
  spt_checkpoint_entry entry;
  spt_extent extent;
} dataset;

struct spt_checkpoint {
  char path[SPT_PATH_MAX];
  int fd;
  spt_checkpoint_header header;
  char *job;
  int count;
  dataset *datasets; /* in tensor order */
};

static spt_status damaged(const spt_checkpoint *checkpoint, const char *what) {
  return SPT_FAIL(SPT_ERR_DATA, "%s: damaged checkpoint: %s; use an older one", checkpoint->path, what);
}

/* Whether `text` ends inside of its array. */
static bool terminated(const char *text, size_t size) {
  return memchr(text, '\0', size) != NULL;
}

static spt_status read_head(spt_checkpoint *checkpoint, spt_hdf5_reader *reader) {
  spt_checkpoint_head head;
  SPT_TRY(spt_hdf5_reader_ask(reader, (spt_question){.kind = SPT_ASK_LAYOUT, .answer_bytes = sizeof head}, NULL, &head));
  checkpoint->header = head.header;
  if (!terminated(head.header.config_sha256, sizeof head.header.config_sha256) ||
      !terminated(head.header.data_fingerprint, sizeof head.header.data_fingerprint) || head.job_bytes < 1 ||
      head.job_bytes > SPT_CHECKPOINT_JOB_MAX)
    return damaged(checkpoint, "impossible lengths inside");
  if (!(checkpoint->job = calloc(1, (size_t)head.job_bytes + 1)))
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for its job", checkpoint->path);
  const spt_question question = {.kind = SPT_ASK_JOB, .answer_bytes = head.job_bytes};
  return spt_hdf5_reader_ask(reader, question, NULL, checkpoint->job);
}

/* Names and shapes of all tensors. What the reader says is believed only as far as it fits the sealed table. */
static spt_status read_entries(spt_checkpoint *checkpoint, spt_hdf5_reader *reader, const spt_extent *extents) {
  const size_t count = (size_t)checkpoint->count;
  spt_checkpoint_entry *entries = calloc(count + 1, sizeof *entries);
  if (!entries) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for its list of tensors", checkpoint->path);
  const spt_question question = {.kind = SPT_ASK_DATASETS,
                                 .count = checkpoint->count,
                                 .argument_bytes = (int64_t)(count * sizeof *extents),
                                 .answer_bytes = (int64_t)(count * sizeof *entries)};
  spt_status status = spt_hdf5_reader_ask(reader, question, extents, entries);
  for (size_t i = 0; status == SPT_OK && i < count; i++) {
    const spt_checkpoint_entry *entry = &entries[i];
    int64_t bytes;
    if (!terminated(entry->name, sizeof entry->name) || entry->rows < 1 || entry->cols < 1 ||
        __builtin_mul_overflow(entry->rows, entry->cols, &bytes) ||
        __builtin_mul_overflow(bytes, (int64_t)sizeof(float), &bytes) || (uint64_t)bytes != extents[i].bytes)
      status = damaged(checkpoint, "impossible tensors inside");
    checkpoint->datasets[i] = (dataset){.entry = *entry, .extent = extents[i]};
  }
  free(entries);
  return status;
}

static spt_status read_metadata(spt_checkpoint *checkpoint, const spt_extent *extents) {
  spt_hdf5_reader *reader = NULL;
  spt_status status = spt_hdf5_reader_open(SPT_READ_CHECKPOINT, checkpoint->fd, checkpoint->path, &reader);
  if (status == SPT_OK) status = read_head(checkpoint, reader);
  if (status == SPT_OK) status = read_entries(checkpoint, reader, extents);
  spt_hdf5_reader_close(&reader);
  return status;
}

static spt_status open_file(spt_checkpoint *checkpoint) {
  struct stat info;
  checkpoint->fd = open(checkpoint->path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); // a pipe would be waited for
  if (checkpoint->fd < 0) return SPT_FAIL(SPT_ERR_DATA, "%s: opening failed: %s", checkpoint->path, strerror(errno));
  if (fstat(checkpoint->fd, &info) != 0 || !S_ISREG(info.st_mode)) return SPT_FAIL(SPT_ERR_DATA, "%s: not a regular file", checkpoint->path);
  spt_seal seal;
  spt_extent *extents;
  SPT_TRY(spt_seal_check(checkpoint->fd, checkpoint->path, &seal, &extents));
  checkpoint->count = (int)seal.tensor_count;
  checkpoint->datasets = calloc((size_t)seal.tensor_count + 1, sizeof *checkpoint->datasets);
  const spt_status status =
      checkpoint->datasets ? read_metadata(checkpoint, extents)
                           : SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for its list of tensors", checkpoint->path);
  free(extents);
  return status;
}

spt_status spt_checkpoint_open(const char *path, spt_checkpoint **checkpoint_p) {
  spt_checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
  if (!checkpoint) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", path);
  checkpoint->fd = -1;
  const bool fits = snprintf(checkpoint->path, sizeof checkpoint->path, "%s", path) < (int)sizeof checkpoint->path;
  const spt_status status = fits ? open_file(checkpoint) : SPT_FAIL(SPT_ERR_DATA, "%s: path too long", path);
  if (status != SPT_OK) {
    spt_checkpoint_close(&checkpoint);
    return status;
  }
  *checkpoint_p = checkpoint;
  return SPT_OK;
}

spt_status spt_checkpoint_recognise(const char *path, bool *checkpoint_p) {
  unsigned char head[8];
  const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  const ssize_t bytes = fd < 0 ? -1 : pread(fd, head, sizeof head, 0);
  const int error = errno;
  if (fd >= 0) close(fd);
  if (bytes < 0) return SPT_FAIL(SPT_ERR_DATA, "%s: reading failed: %s", path, strerror(error));
  *checkpoint_p = bytes == (ssize_t)sizeof head && spt_seal_has_magic(head);
  return SPT_OK;
}

void spt_checkpoint_close(spt_checkpoint **checkpoint_p) {
  spt_checkpoint *checkpoint = *checkpoint_p;
  if (!checkpoint) return;
  if (checkpoint->fd >= 0) close(checkpoint->fd);
  free(checkpoint->datasets);
  free(checkpoint->job);
  free(checkpoint);
  *checkpoint_p = NULL;
}

const char *spt_checkpoint_path(const spt_checkpoint *checkpoint) {
  return checkpoint->path;
}
const spt_checkpoint_header *spt_checkpoint_header_of(const spt_checkpoint *checkpoint) {
  return &checkpoint->header;
}
const char *spt_checkpoint_job(const spt_checkpoint *checkpoint) {
  return checkpoint->job;
}
int spt_checkpoint_dataset_count(const spt_checkpoint *checkpoint) {
  return checkpoint->count;
}

static spt_status check_index(const spt_checkpoint *checkpoint, int index) {
  if (index >= 0 && index < checkpoint->count) return SPT_OK;
  return SPT_FAIL(SPT_ERR_DATA, "%s: no dataset %d, it holds %d", checkpoint->path, index, checkpoint->count);
}

spt_status spt_checkpoint_dataset(const spt_checkpoint *checkpoint, int index, const char **name_p, int64_t *rows_p,
                                  int64_t *cols_p) {
  SPT_TRY(check_index(checkpoint, index));
  *name_p = checkpoint->datasets[index].entry.name;
  *rows_p = checkpoint->datasets[index].entry.rows;
  *cols_p = checkpoint->datasets[index].entry.cols;
  return SPT_OK;
}

bool spt_checkpoint_is_guide(const char *dataset) {
  static const char begin[] = "/model/", end[] = ".guide";
  const size_t length = strlen(dataset);
  return length >= strlen(begin) + strlen(end) && strncmp(dataset, begin, strlen(begin)) == 0 && strcmp(dataset + length - strlen(end), end) == 0;
}

bool spt_checkpoint_has_guides(const spt_checkpoint *checkpoint) {
  for (int i = 0; i < checkpoint->count; i++)
    if (spt_checkpoint_is_guide(checkpoint->datasets[i].entry.name)) return true;
  return false;
}

int spt_checkpoint_find(const spt_checkpoint *checkpoint, const char *dataset) {
  for (int i = 0; i < checkpoint->count; i++)
    if (strcmp(checkpoint->datasets[i].entry.name, dataset) == 0) return i;
  return -1;
}

static spt_status wrong_checksum(const spt_checkpoint *checkpoint, int index) {
  return SPT_FAIL(SPT_ERR_DATA, "%s: damaged checkpoint: %s fails its checksum; use an older one", checkpoint->path,
                  checkpoint->datasets[index].entry.name);
}

spt_status spt_checkpoint_read(spt_checkpoint *checkpoint, int index, float *values) {
  SPT_TRY(check_index(checkpoint, index));
  const dataset *entry = &checkpoint->datasets[index];
  SPT_TRY(spt_file_read_at(checkpoint->fd, checkpoint->path, values, entry->extent.bytes, entry->extent.offset));
  return XXH3_64bits(values, entry->extent.bytes) == entry->entry.checksum ? SPT_OK : wrong_checksum(checkpoint, index);
}

static spt_status verify_tensor(spt_checkpoint *checkpoint, int index, unsigned char *buffer) {
  const dataset *entry = &checkpoint->datasets[index];
  XXH3_state_t hash;
  XXH3_64bits_reset(&hash);
  for (uint64_t at = 0; at < entry->extent.bytes; at += SPT_CHECKPOINT_CHUNK) {
    const uint64_t left = entry->extent.bytes - at;
    const size_t count = left < SPT_CHECKPOINT_CHUNK ? (size_t)left : SPT_CHECKPOINT_CHUNK;
    SPT_TRY(spt_file_read_at(checkpoint->fd, checkpoint->path, buffer, count, entry->extent.offset + at));
    XXH3_64bits_update(&hash, buffer, count);
  }
  return XXH3_64bits_digest(&hash) == entry->entry.checksum ? SPT_OK : wrong_checksum(checkpoint, index);
}

spt_status spt_checkpoint_verify(spt_checkpoint *checkpoint) {
  unsigned char *buffer = malloc(SPT_CHECKPOINT_CHUNK);
  if (!buffer) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for verifying", checkpoint->path);
  spt_status status = SPT_OK;
  for (int i = 0; status == SPT_OK && i < checkpoint->count; i++) status = verify_tensor(checkpoint, i, buffer);
  free(buffer);
  return status;
}
