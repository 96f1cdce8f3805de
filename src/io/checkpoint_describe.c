/* What HDF5 says of a checkpoint. Runs in a reader process (hdf5_process.h), after the seal was checked; links, types,
 * shapes and layouts are checked nevertheless, as whoever makes a file can seal it. Only numbers and names leave. */
#include "checkpoint_internal.h"
#include "hdf5_answer.h"
#include "hdf5_util.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct description {
  const char *path;
  hid_t file;
  spt_checkpoint_head head;
  /* while tensors are looked for */
  int count;
  const spt_extent *extents;
  spt_checkpoint_entry *entries;
} description;

static spt_status damaged(const description *d, const char *what) {
  return SPT_FAIL(SPT_ERR_DATA, "%s: damaged checkpoint: %s; use an older one", d->path, what);
}

static spt_status read_header(description *d) {
  spt_checkpoint_header *header = &d->head.header;
  const char *path = d->path;
  const hid_t file = d->file;
  char format[64];
  int64_t version, rank_count;
  SPT_TRY(spt_hdf5_get_string(file, path, "format", format, sizeof format));
  SPT_TRY(spt_hdf5_get_int(file, path, "version", &version));
  if (strcmp(format, SPT_CHECKPOINT_FORMAT) != 0 || version != SPT_CHECKPOINT_VERSION)
    return damaged(d, "another format or version inside");
  SPT_TRY(spt_hdf5_get_int(file, path, "step", &header->step));
  SPT_TRY(spt_hdf5_get_int(file, path, "tokens", &header->tokens));
  SPT_TRY(spt_hdf5_get_int(file, path, "applied_updates", &header->applied_updates));
  SPT_TRY(spt_hdf5_get_int(file, path, "rank_count", &rank_count));
  if (header->step < 0 || header->tokens < 0 || header->applied_updates < 0 || rank_count < 1 || rank_count > INT32_MAX)
    return damaged(d, "impossible counts inside");
  header->rank_count = (int)rank_count;
  SPT_TRY(spt_hdf5_get_string(file, path, "config_sha256", header->config_sha256, sizeof header->config_sha256));
  SPT_TRY(
      spt_hdf5_get_string(file, path, "data_fingerprint", header->data_fingerprint, sizeof header->data_fingerprint));
  return spt_hdf5_get_double(file, path, "best_validation_loss", &header->best_validation_loss);
}

/* A dataset of this very file, with storage of its own in one piece; −1 where it is anything else. */
static hid_t open_plain(const description *d, const char *name) {
  H5L_info_t link;
  if (H5Lexists(d->file, name, H5P_DEFAULT) <= 0 || H5Lget_info(d->file, name, &link, H5P_DEFAULT) < 0 ||
      link.type != H5L_TYPE_HARD)
    return -1;
  const hid_t set = H5Dopen2(d->file, name, H5P_DEFAULT), plan = set < 0 ? -1 : H5Dget_create_plist(set);
  const bool plain = plan >= 0 && H5Pget_layout(plan) == H5D_CONTIGUOUS && H5Pget_external_count(plan) == 0;
  if (plan >= 0) H5Pclose(plan);
  if (plain || set < 0) return set;
  H5Dclose(set);
  return -1;
}

/* Bytes of a dataset's elements, 0 when they are not in the file. */
static int64_t stored_bytes(hid_t set) {
  return H5Dget_offset(set) == HADDR_UNDEF ? 0 : (int64_t)H5Dget_storage_size(set);
}

/* The job's length; with `text` its bytes too. */
static spt_status read_job(description *d, char *text) {
  const hid_t set = open_plain(d, "job"), type = set < 0 ? -1 : H5Dget_type(set),
              space = set < 0 ? -1 : H5Dget_space(set);
  const size_t bytes = type < 0 ? 0 : H5Tget_size(type);
  bool fine = bytes > 0 && bytes <= SPT_CHECKPOINT_JOB_MAX && H5Tget_class(type) == H5T_STRING &&
              H5Tis_variable_str(type) == 0 && space >= 0 && H5Sget_simple_extent_npoints(space) == 1 &&
              stored_bytes(set) == (int64_t)bytes;
  d->head.job_bytes = (int64_t)bytes;
  if (fine && text) fine = H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text) >= 0;
  if (space >= 0) H5Sclose(space);
  if (type >= 0) H5Tclose(type);
  if (set >= 0) H5Dclose(set);
  return fine ? SPT_OK : damaged(d, "no readable /job");
}

static spt_status read_checksums(description *d) {
  uint64_t *values = calloc((size_t)d->count + 1, sizeof *values);
  const hid_t set = values ? open_plain(d, "checksums") : -1, space = set < 0 ? -1 : H5Dget_space(set);
  const bool fine = space >= 0 && H5Sget_simple_extent_npoints(space) == d->count &&
                    H5Dread(set, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0;
  for (int i = 0; fine && i < d->count; i++) d->entries[i].checksum = values[i];
  if (space >= 0) H5Sclose(space);
  if (set >= 0) H5Dclose(set);
  free(values);
  return fine ? SPT_OK : damaged(d, "no readable /checksums");
}

/* Fills the entry whose extent this dataset has. */
static bool describe(description *d, hid_t set, const char *name) {
  hsize_t shape[2] = {0, 0};
  const hid_t space = H5Dget_space(set), type = H5Dget_type(set);
  const bool matrix = space >= 0 && type >= 0 && H5Sget_simple_extent_ndims(space) == 2 &&
                      H5Sget_simple_extent_dims(space, shape, NULL) == 2 && H5Tequal(type, H5T_IEEE_F32LE) > 0;
  if (type >= 0) H5Tclose(type);
  if (space >= 0) H5Sclose(space);
  const haddr_t offset = H5Dget_offset(set);
  for (int i = 0; matrix && offset != HADDR_UNDEF && i < d->count; i++) {
    spt_checkpoint_entry *entry = &d->entries[i];
    uint64_t bytes;
    if (d->extents[i].offset != offset) continue;
    if (entry->name[0] || __builtin_mul_overflow((uint64_t)shape[0], (uint64_t)shape[1], &bytes) ||
        __builtin_mul_overflow(bytes, sizeof(float), &bytes) || bytes != d->extents[i].bytes)
      return false;
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

static spt_status find_tensors(description *d, const spt_question *question, const void *extents, void *entries) {
  d->count = (int)question->count;
  d->extents = extents;
  d->entries = entries;
  if (H5Lvisit(d->file, H5_INDEX_NAME, H5_ITER_NATIVE, visit, d) < 0)
    return damaged(d, "a tensor is not where /extents says");
  for (int i = 0; i < d->count; i++)
    if (!d->entries[i].name[0]) return damaged(d, "/extents lists a tensor that is not there");
  return read_checksums(d);
}

static spt_status open_checkpoint(const char *open_name, const char *path, void **file_p) {
  description *d = calloc(1, sizeof *d);
  if (!d) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", path);
  *file_p = d; // nothing is closed: the process ends
  d->path = path;
  SPT_TRY(spt_hdf5_open_read(open_name, path, &d->file));
  SPT_TRY(read_header(d));
  return read_job(d, NULL);
}

static spt_status answer_checkpoint(void *file, const spt_question *question, const void *argument, void *answer) {
  description *d = file;
  if (question->kind == SPT_ASK_JOB) return read_job(d, answer);
  if (question->kind == SPT_ASK_DATASETS) return find_tensors(d, question, argument, answer);
  memcpy(answer, &d->head, sizeof d->head);
  return SPT_OK;
}

const spt_hdf5_answerer spt_checkpoint_answerer = {open_checkpoint, answer_checkpoint};
