#include "foreign_checkpoints.h"

#include "fuzz_file.h"

#include "io/checkpoint_internal.h"

#include <hdf5.h>
#include <math.h>
#include <xxhash.h>

typedef enum {
  WHOLE,
  LONG_LOSS, /* the best loss is a list: read into one double it would overrun it */
  TEXT_LOSS,
  JOB_LINK, /* /job in another file */
  JOB_LISTS,
  JOB_HUGE, /* claims 1 GiB */
  SUMS_SOFT_LINK,
  SUMS_SHORT,
  TENSOR_SOFT_LINK,
  TENSOR_TWICE, /* two names for one tensor */
  TENSOR_EXTRA, /* one that the table does not list */
  TENSOR_LONG_NAME,
  TENSOR_TURNED,   /* as double, half as wide */
  TENSOR_OVERFLOW, /* rows · cols · 4 is right modulo 2^64 */
  CYCLE,           /* /model/again is /model */
  NEGATIVE_STEP,
  NO_RANKS,
  TRICKS
} trick;

static const foreign_checkpoint tricks[TRICKS] = {
    [WHOLE] = {"whole", true},
    [LONG_LOSS] = {"a list of losses", false},
    [TEXT_LOSS] = {"a loss in words", false},
    [JOB_LINK] = {"a job in another file", false},
    [JOB_LISTS] = {"a job of variable length", false},
    [JOB_HUGE] = {"a huge job", false},
    [SUMS_SOFT_LINK] = {"linked checksums", false},
    [SUMS_SHORT] = {"too few checksums", false},
    [TENSOR_SOFT_LINK] = {"a linked tensor", false},
    [TENSOR_TWICE] = {"a tensor of two names", false},
    [TENSOR_EXTRA] = {"an unlisted tensor", false},
    [TENSOR_LONG_NAME] = {"a long name", false},
    [TENSOR_TURNED] = {"another type", false},
    [TENSOR_OVERFLOW] = {"a size that overflows", false},
    [CYCLE] = {"a group that holds itself", true},
    [NEGATIVE_STEP] = {"a negative step", false},
    [NO_RANKS] = {"no ranks", false},
};

static void check(bool fine, const char *what) {
  if (!fine) fprintf(stderr, "foreign checkpoint: %s failed\n", what), abort();
}

/* ---- sealing ---- */

void foreign_checkpoint_seal(uint8_t *data, size_t size) {
  spt_seal seal = {.file_bytes = size};
  char path[64];
  if (size < SPT_SEAL_BYTES || !spt_seal_has_magic(data)) return;
  memcpy(&seal.extents_offset, data + 24, 8);
  memcpy(&seal.tensor_count, data + 32, 8);
  if (seal.tensor_count > 64 || seal.extents_offset > size ||
      seal.tensor_count * sizeof(spt_extent) > size - seal.extents_offset)
    return;
  spt_extent extents[65];
  memcpy(extents, data + seal.extents_offset, seal.tensor_count * sizeof *extents);
  const int file = fuzz_file(data, size, path);
  if (spt_seal_write(file, path, &seal, extents) == SPT_OK) fuzz_read_back(file, data, SPT_SEAL_BYTES);
  fuzz_file_close(file, path);
}

/* ---- writing ---- */

static void remove_link(hid_t file, const char *name) {
  check(H5Ldelete(file, name, H5P_DEFAULT) >= 0, name);
}

static void put_set(hid_t file, const char *name, hid_t type, int dimensions, const hsize_t *extent, bool stored) {
  const hid_t space = H5Screate_simple(dimensions, extent, NULL), plan = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_alloc_time(plan, stored ? H5D_ALLOC_TIME_EARLY : H5D_ALLOC_TIME_LATE);
  const hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, plan, H5P_DEFAULT);
  check(set >= 0, name);
  H5Dclose(set);
  H5Pclose(plan);
  H5Sclose(space);
}

static void put_attribute(hid_t file, const char *name, hid_t type, hsize_t count, const void *values) {
  const hid_t space = H5Screate_simple(1, &count, NULL);
  check(H5Adelete(file, name) >= 0, name);
  const hid_t attribute = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  check(attribute >= 0 && H5Awrite(attribute, type, values) >= 0, name);
  H5Aclose(attribute);
  H5Sclose(space);
}

static void trick_attributes(hid_t file, trick kind) {
  static const double losses[500] = {1};
  const int64_t negative = -5, none = 0;
  if (kind == LONG_LOSS) put_attribute(file, "best_validation_loss", H5T_NATIVE_DOUBLE, 500, losses);
  if (kind == TEXT_LOSS) put_attribute(file, "best_validation_loss", H5T_C_S1, 1, "x");
  if (kind == NEGATIVE_STEP) put_attribute(file, "step", H5T_NATIVE_INT64, 1, &negative);
  if (kind == NO_RANKS) put_attribute(file, "rank_count", H5T_NATIVE_INT64, 1, &none);
}

static void trick_job(hid_t file, trick kind, const char *other) {
  const hsize_t one = 1;
  if (kind != JOB_LINK && kind != JOB_LISTS && kind != JOB_HUGE) return;
  remove_link(file, "job");
  if (kind == JOB_LINK) {
    check(H5Lcreate_external(other, "/job", file, "job", H5P_DEFAULT, H5P_DEFAULT) >= 0, "link");
    return;
  }
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, kind == JOB_LISTS ? H5T_VARIABLE : (size_t)1 << 30);
  put_set(file, "job", type, 1, &one, false);
  H5Tclose(type);
}

static void trick_tensors(hid_t file, trick kind) {
  const hsize_t few = 1, small[2] = {2, 2}, turned[2] = {5, 2}, wide[2] = {(hsize_t)1 << 61, 8};
  herr_t made = 0;
  char name[300];
  snprintf(name, sizeof name, "/model/%0250d", 7);
  if (kind == SUMS_SOFT_LINK || kind == SUMS_SHORT) {
    made = H5Lmove(file, "checksums", file, "sums", H5P_DEFAULT, H5P_DEFAULT);
    if (kind == SUMS_SHORT)
      put_set(file, "checksums", H5T_STD_U64LE, 1, &few, true);
    else
      H5Lcreate_soft("/sums", file, "checksums", H5P_DEFAULT, H5P_DEFAULT);
  }
  if (kind == TENSOR_SOFT_LINK) {
    made = H5Lmove(file, "/model/a", file, "/a", H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_soft("/a", file, "/model/a", H5P_DEFAULT, H5P_DEFAULT);
  }
  if (kind == TENSOR_TWICE) made = H5Lcreate_hard(file, "/model/a", file, "/model/z", H5P_DEFAULT, H5P_DEFAULT);
  if (kind == TENSOR_EXTRA) put_set(file, "/model/z", H5T_IEEE_F32LE, 2, small, true);
  if (kind == TENSOR_LONG_NAME) made = H5Lmove(file, "/model/a", file, name, H5P_DEFAULT, H5P_DEFAULT);
  if (kind == CYCLE) made = H5Lcreate_hard(file, "/model", file, "/model/again", H5P_DEFAULT, H5P_DEFAULT);
  if (kind == TENSOR_TURNED || kind == TENSOR_OVERFLOW) {
    remove_link(file, "/model/a");
    put_set(file, "/model/a", kind == TENSOR_TURNED ? H5T_IEEE_F64LE : H5T_IEEE_F32LE, 2,
            kind == TENSOR_TURNED ? turned : wide, kind == TENSOR_TURNED);
  }
  check(made >= 0, "trick");
}

/* An honest checkpoint of two small tensors, by our own writer. */
static void write_honest(const char *path) {
  float values[32];
  for (int i = 0; i < 32; i++) values[i] = (float)i / 3;
  spt_checkpoint_item items[] = {
      {.dataset = "/model/a", .rows = 5, .cols = 4, .end = 20, .values = values},
      {.dataset = "/optimizer/a/momentum", .rows = 4, .cols = 3, .end = 12, .values = values}};
  const spt_checkpoint_header header = {.step = 3,
                                        .tokens = 300,
                                        .applied_updates = 3,
                                        .rank_count = 1,
                                        .best_validation_loss = NAN,
                                        .config_sha256 = "aa",
                                        .data_fingerprint = "bb"};
  spt_checkpoint_layout layout = {.extents = (spt_extent[2]){{0, 0}}};
  spt_status status = spt_checkpoint_lay_out(path, items, 2, &header, "[run]\nname = \"x\"\n", &layout);
  int fd = -1;
  if (status == SPT_OK) status = spt_checkpoint_create(path, 2, &layout, &fd);
  check(status == SPT_OK, spt_error_message());
  close(fd);
  static uint8_t bytes[FUZZ_BYTES_MAX];
  FILE *file = fopen(path, "r+b");
  const size_t size = file ? fread(bytes, 1, sizeof bytes, file) : 0;
  check(size == layout.file_bytes, "an honest checkpoint's size");
  uint64_t sums[2];
  for (int i = 0; i < 2; i++) {
    memcpy(bytes + layout.extents[i].offset, values, layout.extents[i].bytes);
    sums[i] = XXH3_64bits(values, layout.extents[i].bytes);
  }
  memcpy(bytes + layout.checksums_offset, sums, sizeof sums);
  rewind(file);
  check(fwrite(bytes, 1, size, file) == size && fclose(file) == 0, "writing");
}

/* Opened read-write, HDF5 keeps the user block; the seal is made anew from where the table lies now. */
static void seal_file(const char *path) {
  static uint8_t bytes[FUZZ_BYTES_MAX];
  const hid_t h5 = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT), table = H5Dopen2(h5, "/extents", H5P_DEFAULT);
  const uint64_t offset = H5Dget_offset(table), count = 2;
  H5Dclose(table);
  H5Fclose(h5);
  FILE *file = fopen(path, "r+b");
  const size_t size = file ? fread(bytes, 1, sizeof bytes, file) : 0;
  check(size > SPT_SEAL_BYTES && size < sizeof bytes, "size");
  memcpy(bytes, "\x89SPTCKP\n", 8);
  memcpy(bytes + 24, &offset, 8);
  memcpy(bytes + 32, &count, 8);
  foreign_checkpoint_seal(bytes, size);
  rewind(file);
  check(fwrite(bytes, 1, size, file) == size && fclose(file) == 0, "sealing");
}

const foreign_checkpoint *foreign_checkpoint_write(const char *path, int index) {
  char other[4096];
  if (index >= TRICKS) return NULL;
  const trick kind = (trick)index;
  snprintf(other, sizeof other, "%s.other", path);
  write_honest(path);
  if (kind == JOB_LINK) write_honest(other);
  const hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
  check(file >= 0, path);
  trick_attributes(file, kind);
  trick_job(file, kind, other);
  trick_tensors(file, kind);
  check(H5Fclose(file) >= 0, path);
  seal_file(path);
  return &tricks[index];
}
