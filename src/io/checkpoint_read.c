/* Opening and reading. HDF5 sees a file only after every byte of its metadata was checked; tensors are read without it.
 */
#include "checkpoint_internal.h"
#include "durable_file.h"
#include "hdf5_util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define XXH_STATIC_LINKING_ONLY // streaming state on the stack
#include <xxhash.h>

typedef struct dataset {
  char name[SPT_DATASET_NAME_MAX];
  int64_t rows, cols;
  spt_extent extent;
  uint64_t checksum;
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

static spt_status read_header(spt_checkpoint *checkpoint, hid_t file) {
  spt_checkpoint_header *header = &checkpoint->header;
  const char *path = checkpoint->path;
  char format[64];
  int64_t version, rank_count;
  SPT_TRY(spt_hdf5_get_string(file, path, "format", format, sizeof format));
  SPT_TRY(spt_hdf5_get_int(file, path, "version", &version));
  if (strcmp(format, SPT_CHECKPOINT_FORMAT) != 0 || version != SPT_CHECKPOINT_VERSION)
    return damaged(checkpoint, "another format or version inside");
  SPT_TRY(spt_hdf5_get_int(file, path, "step", &header->step));
  SPT_TRY(spt_hdf5_get_int(file, path, "tokens", &header->tokens));
  SPT_TRY(spt_hdf5_get_int(file, path, "applied_updates", &header->applied_updates));
  SPT_TRY(spt_hdf5_get_int(file, path, "rank_count", &rank_count));
  header->rank_count = (int)rank_count;
  SPT_TRY(spt_hdf5_get_string(file, path, "config_sha256", header->config_sha256, sizeof header->config_sha256));
  SPT_TRY(
      spt_hdf5_get_string(file, path, "data_fingerprint", header->data_fingerprint, sizeof header->data_fingerprint));
  const hid_t attribute = H5Aopen(file, "best_validation_loss", H5P_DEFAULT);
  const bool fine = attribute >= 0 && H5Aread(attribute, H5T_NATIVE_DOUBLE, &header->best_validation_loss) >= 0;
  if (attribute >= 0) H5Aclose(attribute);
  return fine ? SPT_OK : damaged(checkpoint, "no attribute best_validation_loss");
}

static spt_status read_job(spt_checkpoint *checkpoint, hid_t file) {
  const hid_t set = H5Dopen2(file, "/job", H5P_DEFAULT), type = set < 0 ? -1 : H5Dget_type(set);
  const size_t bytes = type < 0 ? 0 : H5Tget_size(type);
  bool fine = bytes > 0 && H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0;
  if (fine) {
    checkpoint->job = calloc(1, bytes + 1);
    fine = checkpoint->job && H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, checkpoint->job) >= 0;
  }
  if (type >= 0) H5Tclose(type);
  if (set >= 0) H5Dclose(set);
  return fine ? SPT_OK : damaged(checkpoint, "no readable /job");
}

static spt_status read_checksums(spt_checkpoint *checkpoint, hid_t file) {
  uint64_t *values = calloc((size_t)checkpoint->count + 1, sizeof *values);
  const hid_t set = values ? H5Dopen2(file, "/checksums", H5P_DEFAULT) : -1, space = set < 0 ? -1 : H5Dget_space(set);
  const bool fine = space >= 0 && H5Sget_simple_extent_npoints(space) == checkpoint->count &&
                    H5Dread(set, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0;
  for (int i = 0; fine && i < checkpoint->count; i++) checkpoint->datasets[i].checksum = values[i];
  if (space >= 0) H5Sclose(space);
  if (set >= 0) H5Dclose(set);
  free(values);
  return fine ? SPT_OK : damaged(checkpoint, "no readable /checksums");
}

/* Fills the entry whose extent this dataset has. */
static bool describe(spt_checkpoint *checkpoint, hid_t set, const char *name) {
  hsize_t shape[2] = {0, 0};
  const hid_t space = H5Dget_space(set), type = H5Dget_type(set);
  const bool matrix = space >= 0 && type >= 0 && H5Sget_simple_extent_ndims(space) == 2 &&
                      H5Sget_simple_extent_dims(space, shape, NULL) == 2 && H5Tequal(type, H5T_IEEE_F32LE) > 0;
  if (type >= 0) H5Tclose(type);
  if (space >= 0) H5Sclose(space);
  const haddr_t offset = H5Dget_offset(set);
  for (int i = 0; matrix && i < checkpoint->count; i++) {
    dataset *entry = &checkpoint->datasets[i];
    if (entry->extent.offset != offset) continue;
    if (entry->name[0] || shape[0] * shape[1] * sizeof(float) != entry->extent.bytes) return false;
    entry->rows = (int64_t)shape[0];
    entry->cols = (int64_t)shape[1];
    return snprintf(entry->name, sizeof entry->name, "/%s", name) < (int)sizeof entry->name;
  }
  return false;
}

static herr_t visit(hid_t group, const char *name, const H5L_info_t *info, void *context) {
  if (strncmp(name, "model/", 6) != 0 && strncmp(name, "optimizer/", 10) != 0) return 0;
  if (info->type != H5L_TYPE_HARD) return -1;
  const hid_t object = H5Oopen(group, name, H5P_DEFAULT);
  if (object < 0) return -1;
  const bool fine = H5Iget_type(object) != H5I_DATASET || describe(context, object, name);
  H5Oclose(object);
  return fine ? 0 : -1;
}

static spt_status read_metadata(spt_checkpoint *checkpoint) {
  hid_t file;
  SPT_TRY(spt_hdf5_open_read(checkpoint->path, &file));
  spt_status status = read_header(checkpoint, file);
  if (status == SPT_OK) status = read_job(checkpoint, file);
  if (status == SPT_OK && H5Lvisit(file, H5_INDEX_NAME, H5_ITER_NATIVE, visit, checkpoint) < 0)
    status = damaged(checkpoint, "a tensor is not where /extents says");
  for (int i = 0; status == SPT_OK && i < checkpoint->count; i++)
    if (!checkpoint->datasets[i].name[0]) status = damaged(checkpoint, "/extents lists a tensor that is not there");
  if (status == SPT_OK) status = read_checksums(checkpoint, file);
  if (H5Fclose(file) < 0 && status == SPT_OK) status = damaged(checkpoint, "the HDF5 library cannot close it");
  return status;
}

static spt_status open_file(spt_checkpoint *checkpoint) {
  checkpoint->fd = open(checkpoint->path, O_RDONLY | O_CLOEXEC);
  if (checkpoint->fd < 0) return SPT_FAIL(SPT_ERR_DATA, "%s: opening failed: %s", checkpoint->path, strerror(errno));
  spt_seal seal;
  spt_extent *extents;
  SPT_TRY(spt_seal_check(checkpoint->fd, checkpoint->path, &seal, &extents));
  checkpoint->count = (int)seal.tensor_count;
  checkpoint->datasets = calloc((size_t)seal.tensor_count + 1, sizeof *checkpoint->datasets);
  for (int i = 0; checkpoint->datasets && i < checkpoint->count; i++) checkpoint->datasets[i].extent = extents[i];
  free(extents);
  if (!checkpoint->datasets)
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for its list of tensors", checkpoint->path);
  return read_metadata(checkpoint);
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
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
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
  *name_p = checkpoint->datasets[index].name;
  *rows_p = checkpoint->datasets[index].rows;
  *cols_p = checkpoint->datasets[index].cols;
  return SPT_OK;
}

int spt_checkpoint_find(const spt_checkpoint *checkpoint, const char *dataset) {
  for (int i = 0; i < checkpoint->count; i++)
    if (strcmp(checkpoint->datasets[i].name, dataset) == 0) return i;
  return -1;
}

static spt_status wrong_checksum(const spt_checkpoint *checkpoint, int index) {
  return SPT_FAIL(SPT_ERR_DATA, "%s: damaged checkpoint: %s fails its checksum; use an older one", checkpoint->path,
                  checkpoint->datasets[index].name);
}

spt_status spt_checkpoint_read(spt_checkpoint *checkpoint, int index, float *values) {
  SPT_TRY(check_index(checkpoint, index));
  const dataset *entry = &checkpoint->datasets[index];
  SPT_TRY(spt_file_read_at(checkpoint->fd, checkpoint->path, values, entry->extent.bytes, entry->extent.offset));
  return XXH3_64bits(values, entry->extent.bytes) == entry->checksum ? SPT_OK : wrong_checksum(checkpoint, index);
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
  return XXH3_64bits_digest(&hash) == entry->checksum ? SPT_OK : wrong_checksum(checkpoint, index);
}

spt_status spt_checkpoint_verify(spt_checkpoint *checkpoint) {
  unsigned char *buffer = malloc(SPT_CHECKPOINT_CHUNK);
  if (!buffer) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for verifying", checkpoint->path);
  spt_status status = SPT_OK;
  for (int i = 0; status == SPT_OK && i < checkpoint->count; i++) status = verify_tensor(checkpoint, i, buffer);
  free(buffer);
  return status;
}
