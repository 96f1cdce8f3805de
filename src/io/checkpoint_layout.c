/* The empty file: everything HDF5 has to say, and where each tensor's bytes will lie. The library does not survive a
 * disk that fails (a failed H5Fclose crashes the process at exit), so it writes into memory, and its metadata are
 * copied from there. Tensors are pwritten later, without the library. */
#include "checkpoint_internal.h"
#include "durable_file.h"
#include "hdf5_util.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

typedef struct writer {
  const char *path; /* of the finished file, for messages */
  hid_t file, dataset_options, link_options;
} writer;

static spt_status failed(const writer *w, const char *what) {
  return SPT_FAIL(SPT_ERR_RESOURCE, "%s: the HDF5 library cannot create %s (out of memory?)", w->path, what);
}

/* A contiguous dataset, its space taken now; `values` NULL: left unwritten. */
static spt_status create_dataset(const writer *w, const char *name, hid_t type, int dimensions, const hsize_t *extent,
                                 const void *values, uint64_t *offset_p) {
  const hid_t space = dimensions ? H5Screate_simple(dimensions, extent, NULL) : H5Screate(H5S_SCALAR);
  const hid_t set =
      space < 0 ? -1 : H5Dcreate2(w->file, name, type, space, w->link_options, w->dataset_options, H5P_DEFAULT);
  bool fine = set >= 0;
  if (fine && values) fine = H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0;
  const haddr_t offset = fine ? H5Dget_offset(set) : HADDR_UNDEF; // from the file's first byte, user block included
  if (set >= 0) fine = H5Dclose(set) >= 0 && fine;
  if (space >= 0) H5Sclose(space);
  if (!fine || offset == HADDR_UNDEF) return failed(w, name);
  *offset_p = offset;
  return SPT_OK;
}

static spt_status put_double(const writer *w, const char *name, double value) {
  const hid_t space = H5Screate(H5S_SCALAR);
  const hid_t attribute = space < 0 ? -1 : H5Acreate2(w->file, name, H5T_IEEE_F64LE, space, H5P_DEFAULT, H5P_DEFAULT);
  bool fine = attribute >= 0 && H5Awrite(attribute, H5T_NATIVE_DOUBLE, &value) >= 0;
  if (attribute >= 0) fine = H5Aclose(attribute) >= 0 && fine;
  if (space >= 0) H5Sclose(space);
  return fine ? SPT_OK : failed(w, name);
}

static spt_status put_header(const writer *w, const spt_checkpoint_header *header) {
  SPT_TRY(spt_hdf5_put_string(w->file, w->path, "format", SPT_CHECKPOINT_FORMAT));
  SPT_TRY(spt_hdf5_put_int(w->file, w->path, "version", SPT_CHECKPOINT_VERSION));
  SPT_TRY(spt_hdf5_put_int(w->file, w->path, "step", header->step));
  SPT_TRY(spt_hdf5_put_int(w->file, w->path, "tokens", header->tokens));
  SPT_TRY(spt_hdf5_put_int(w->file, w->path, "applied_updates", header->applied_updates));
  SPT_TRY(spt_hdf5_put_int(w->file, w->path, "rank_count", header->rank_count));
  SPT_TRY(put_double(w, "best_validation_loss", header->best_validation_loss));
  SPT_TRY(spt_hdf5_put_string(w->file, w->path, "config_sha256", header->config_sha256));
  return spt_hdf5_put_string(w->file, w->path, "data_fingerprint", header->data_fingerprint);
}

/* An attribute holds at most 64 kB, so the job's text is a dataset. */
static spt_status put_job(const writer *w, const char *job) {
  const hid_t type = H5Tcopy(H5T_C_S1);
  uint64_t offset;
  spt_status status = SPT_OK;
  if (type < 0 || H5Tset_size(type, strlen(job) + 1) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0)
    status = failed(w, "/job");
  if (status == SPT_OK) status = create_dataset(w, "/job", type, 0, NULL, job, &offset);
  if (type >= 0) H5Tclose(type);
  return status;
}

static spt_status put_datasets(const writer *w, const spt_checkpoint_item *items, int item_count,
                               spt_checkpoint_layout *layout) {
  for (int i = 0; i < item_count; i++) {
    const hsize_t shape[2] = {(hsize_t)items[i].rows, (hsize_t)items[i].cols};
    layout->extents[i].bytes = spt_item_bytes(&items[i]);
    SPT_TRY(create_dataset(w, items[i].dataset, H5T_IEEE_F32LE, 2, shape, NULL, &layout->extents[i].offset));
  }
  const hsize_t table[2] = {(hsize_t)item_count, 2};
  SPT_TRY(create_dataset(w, "/extents", H5T_STD_U64LE, 2, table, layout->extents, &layout->extents_offset));
  return create_dataset(w, "/checksums", H5T_STD_U64LE, 1, table, NULL, &layout->checksums_offset);
}

static spt_status write_metadata(const char *part, const spt_checkpoint_item *items, int item_count,
                                 const spt_checkpoint_header *header, const char *job, spt_checkpoint_layout *layout) {
  spt_hdf5_quiet();
  writer w = {.path = part,
              .file = -1,
              .dataset_options = H5Pcreate(H5P_DATASET_CREATE),
              .link_options = H5Pcreate(H5P_LINK_CREATE)};
  const hid_t creation = H5Pcreate(H5P_FILE_CREATE), access = H5Pcreate(H5P_FILE_ACCESS);
  spt_status status = SPT_OK;
  // One block for (nearly) all metadata, ahead of the tensors: its digest is then one short read.
  const hsize_t metadata_block = 4096 + 2048 * (hsize_t)item_count;
  if (creation < 0 || access < 0 || w.dataset_options < 0 || w.link_options < 0 ||
      H5Pset_userblock(creation, SPT_SEAL_BYTES) < 0 || H5Pset_meta_block_size(access, metadata_block) < 0 ||
      H5Pset_layout(w.dataset_options, H5D_CONTIGUOUS) < 0 ||
      H5Pset_alloc_time(w.dataset_options, H5D_ALLOC_TIME_EARLY) < 0 ||
      H5Pset_fill_time(w.dataset_options, H5D_FILL_TIME_NEVER) < 0 ||
      H5Pset_obj_track_times(w.dataset_options, false) < 0 || // equal states give equal files
      H5Pset_create_intermediate_group(w.link_options, 1) < 0)
    status = failed(&w, "its settings");
  if (status == SPT_OK && (w.file = spt_hdf5_image_create(layout->image, creation, access)) < 0)
    status = failed(&w, "the file");
  if (status == SPT_OK) status = put_header(&w, header);
  if (status == SPT_OK) status = put_job(&w, job);
  if (status == SPT_OK) status = put_datasets(&w, items, item_count, layout);
  if (w.file >= 0 && H5Fclose(w.file) < 0 && status == SPT_OK) status = failed(&w, "the file's end");
  const hid_t lists[] = {creation, access, w.dataset_options, w.link_options};
  for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
    if (lists[i] >= 0) H5Pclose(lists[i]);
  return status;
}

spt_status spt_checkpoint_lay_out(const char *part, const spt_checkpoint_item *items, int item_count,
                                  const spt_checkpoint_header *header, const char *job, spt_checkpoint_layout *layout) {
  SPT_TRY(spt_hdf5_image_open(&layout->image));
  const spt_status status = write_metadata(part, items, item_count, header, job, layout);
  layout->file_bytes = spt_hdf5_image_bytes(layout->image);
  if (status != SPT_OK) spt_hdf5_image_close(&layout->image);
  return status;
}

typedef struct copier {
  const char *part;
  const spt_hdf5_image *from;
  int to;
} copier;

static spt_status copy_range(void *context, uint64_t begin, uint64_t end) {
  const copier *c = context;
  unsigned char buffer[65536];
  while (begin < end) {
    const size_t count = end - begin < sizeof buffer ? (size_t)(end - begin) : sizeof buffer;
    spt_hdf5_image_read(c->from, buffer, count, begin);
    SPT_TRY(spt_file_write_at(c->to, c->part, buffer, count, begin));
    begin += count;
  }
  return SPT_OK;
}

spt_status spt_checkpoint_create(const char *part, int item_count, spt_checkpoint_layout *layout, int *fd_p) {
  const spt_seal seal = {layout->file_bytes, layout->extents_offset, (uint64_t)item_count};
  spt_status status = spt_file_create(part, fd_p);
  copier c = {part, layout->image, *fd_p};
  if (status == SPT_OK) status = spt_file_reserve(*fd_p, part, layout->file_bytes, NULL);
  if (status == SPT_OK) status = spt_seal_visit_gaps(part, &seal, layout->extents, copy_range, &c);
  spt_hdf5_image_close(&layout->image);
  return status;
}
