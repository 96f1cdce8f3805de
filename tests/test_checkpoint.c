/* Checkpoints by one process: round trip, plain HDF5, every kind of damage, every kind of failing disk. */
#include "unit_test.h"

#include "faults.h"
#include "host_backend.h"
#include "temp_folder.h"

#include "io/checkpoint.h"

#include <hdf5.h>
#include <math.h>
#include <sys/stat.h>
#include <xxhash.h>

enum { ITEMS = 6 };

static uint64_t seed;
static spt_comm *comm;
static const char job[] = "[run]\nname = \"Größe\"\n";

static int64_t below(uint64_t stream, uint64_t index, int64_t bound) {
  return (int64_t)(spt_random_bits(seed, stream, index) % (uint64_t)bound);
}

/* A state of random shapes and values; `values` holds all of it. */
typedef struct state {
  spt_checkpoint_item items[ITEMS];
  float *values[ITEMS];
  spt_checkpoint_header header;
} state;

static void state_make(state *s, uint64_t stream) {
  static const char *const names[ITEMS] = {"/model/model.embed_tokens.weight",
                                           "/model/model.layers.0.self_attn.q_proj.A",
                                           "/model/model.layers.0.self_attn.q_proj.B",
                                           "/model/model.norm.weight",
                                           "/optimizer/model.layers.0.self_attn.q_proj.A/momentum",
                                           "/optimizer/model.layers.0.self_attn.q_proj.A/power_u"};
  for (int i = 0; i < ITEMS; i++) {
    spt_checkpoint_item *item = &s->items[i];
    *item = (spt_checkpoint_item){.rows = 1 + below(stream, 2 * (uint64_t)i, 60),
                                  .cols = i % 3 == 0 ? 1 : 1 + below(stream, 2 * (uint64_t)i + 1, 40)};
    snprintf(item->dataset, sizeof item->dataset, "%s", names[i]);
    item->end = item->rows * item->cols;
    s->values[i] = malloc((size_t)item->end * sizeof(float));
    assert_non_null(s->values[i]);
    spt_random_normal(seed, stream + 100 + (uint64_t)i, 0, item->end, 1, s->values[i]);
    item->values = s->values[i];
  }
  s->header = (spt_checkpoint_header){.step = below(stream, 90, 1 << 20),
                                      .tokens = INT64_C(1) << 40,
                                      .applied_updates = below(stream, 91, 1 << 20),
                                      .rank_count = 1,
                                      .best_validation_loss = 2.5 + (double)below(stream, 92, 1000) / 7,
                                      .data_fingerprint = "00112233445566778899aabbccddeeff"};
  memset(s->header.config_sha256, 'a', 64);
}

static void state_free(state *s) {
  for (int i = 0; i < ITEMS; i++) free(s->values[i]);
}

static spt_status save(state *s, const char *path, const char *text) {
  spt_checkpoint_saver *saver;
  assert_ok(spt_checkpoint_saver_open(comm, &host_backend, s->items, ITEMS, &saver));
  spt_status status = spt_checkpoint_save_begin(saver, path, &s->header, text);
  if (status == SPT_OK) status = spt_checkpoint_save_finish(saver);
  assert_true(spt_checkpoint_save_idle(saver));
  spt_checkpoint_saver_close(&saver);
  return status;
}

static spt_status open_and_verify(const char *path) {
  spt_checkpoint *checkpoint = NULL;
  SPT_TRY(spt_checkpoint_open(path, &checkpoint));
  const spt_status status = spt_checkpoint_verify(checkpoint);
  spt_checkpoint_close(&checkpoint);
  return status;
}

static unsigned char *slurp(const char *path, size_t *bytes_p) {
  FILE *file = fopen(path, "rb");
  assert_non_null(file);
  assert_int_equal(fseek(file, 0, SEEK_END), 0);
  *bytes_p = (size_t)ftell(file);
  rewind(file);
  unsigned char *bytes = malloc(*bytes_p + 1);
  assert_non_null(bytes);
  assert_int_equal(fread(bytes, 1, *bytes_p, file), *bytes_p);
  fclose(file);
  return bytes;
}

static void spill(const char *path, const unsigned char *bytes, size_t count) {
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(bytes, 1, count, file), count);
  assert_int_equal(fclose(file), 0);
}

static void assert_holds(const char *path, state *s) {
  spt_checkpoint *checkpoint;
  assert_ok(spt_checkpoint_open(path, &checkpoint));
  assert_ok(spt_checkpoint_verify(checkpoint));
  const spt_checkpoint_header *header = spt_checkpoint_header_of(checkpoint);
  assert_true(header->step == s->header.step && header->tokens == s->header.tokens &&
              header->applied_updates == s->header.applied_updates && header->rank_count == s->header.rank_count);
  assert_memory_equal(&header->best_validation_loss, &s->header.best_validation_loss, sizeof(double));
  assert_string_equal(header->config_sha256, s->header.config_sha256);
  assert_string_equal(header->data_fingerprint, s->header.data_fingerprint);
  assert_int_equal(spt_checkpoint_dataset_count(checkpoint), ITEMS);
  assert_int_equal(spt_checkpoint_find(checkpoint, "/model/absent"), -1);
  state loaded = *s;
  for (int i = 0; i < ITEMS; i++) {
    const char *name;
    int64_t rows, cols;
    assert_ok(spt_checkpoint_dataset(checkpoint, i, &name, &rows, &cols)); // tensor order is the order of the items
    assert_string_equal(name, s->items[i].dataset);
    assert_true(rows == s->items[i].rows && cols == s->items[i].cols);
    assert_int_equal(spt_checkpoint_find(checkpoint, name), i);
    loaded.items[i].values = calloc((size_t)(rows * cols), sizeof(float));
  }
  for (int replicated = 0; replicated < 2; replicated++) {
    for (int i = 0; i < ITEMS; i++) memset(loaded.items[i].values, 0xEE, (size_t)loaded.items[i].end * sizeof(float));
    assert_ok((replicated ? spt_checkpoint_load_replicated : spt_checkpoint_load)(comm, &host_backend, checkpoint,
                                                                                  loaded.items, ITEMS));
    for (int i = 0; i < ITEMS; i++)
      assert_memory_equal(loaded.items[i].values, s->values[i], (size_t)s->items[i].end * sizeof(float));
  }
  for (int i = 0; i < ITEMS; i++) free(loaded.items[i].values);
  spt_checkpoint_close(&checkpoint);
  assert_null(checkpoint);
}

static void assert_absent(const char *path) {
  assert_int_not_equal(access(path, F_OK), 0);
}

/* ---- tests ---- */

static void round_trip(void **unused) {
  (void)unused;
  char *long_job = malloc(100001); // an attribute could not hold it
  memset(long_job, 'x', 100000);
  long_job[100000] = '\0';
  for (uint64_t trial = 0; trial < 6; trial++) {
    state s;
    state_make(&s, 1000 * trial);
    if (trial == 1) s.header.best_validation_loss = NAN;
    comm->threaded = trial % 2 == 0;
    const char *const text = trial == 2 ? long_job : trial == 3 ? "" : job;
    assert_ok(save(&s, temp_path("a.h5"), text)); // the later ones replace it
    assert_absent(temp_path("a.h5.part"));
    assert_holds(temp_path("a.h5"), &s);
    spt_checkpoint *checkpoint;
    assert_ok(spt_checkpoint_open(temp_path("a.h5"), &checkpoint));
    assert_string_equal(spt_checkpoint_job(checkpoint), text);
    spt_checkpoint_close(&checkpoint);
    state_free(&s);
  }
  free(long_job);
  comm->threaded = true;
}

static void saved_is_the_snapshot(void **unused) {
  (void)unused;
  state s;
  state_make(&s, 5000);
  spt_checkpoint_saver *saver;
  assert_ok(spt_checkpoint_saver_open(comm, &host_backend, s.items, ITEMS, &saver));
  assert_ok(spt_checkpoint_save_finish(saver)); // none under way
  size_t bytes = 0;
  for (int i = 0; i < ITEMS; i++) bytes += (size_t)s.items[i].end * sizeof(float);
  assert_true(spt_checkpoint_snapshot_bytes(s.items, ITEMS) >= bytes);
  state before = s;
  for (int i = 0; i < ITEMS; i++) {
    before.values[i] = malloc((size_t)s.items[i].end * sizeof(float));
    memcpy(before.values[i], s.values[i], (size_t)s.items[i].end * sizeof(float));
  }
  assert_ok(spt_checkpoint_save_begin(saver, temp_path("first.h5"), &s.header, job));
  for (int i = 0; i < ITEMS; i++) memset(s.values[i], 0, (size_t)s.items[i].end * sizeof(float)); // training goes on
  assert_ok(spt_checkpoint_save_begin(saver, temp_path("second.h5"), &s.header, job)); // ends the first one first
  spt_checkpoint_saver_close(&saver);                                                  // ends the second
  assert_holds(temp_path("first.h5"), &before);
  assert_holds(temp_path("second.h5"), &s);
  state_free(&before);
  state_free(&s);
}

/* Equal states give equal files, so that whoever wrote them cannot be told. */
static void deterministic(void **unused) {
  (void)unused;
  state s;
  size_t bytes[2];
  state_make(&s, 6000);
  assert_ok(save(&s, temp_path("a.h5"), job));
  assert_ok(save(&s, temp_path("b.h5"), job));
  unsigned char *a = slurp(temp_path("a.h5"), &bytes[0]), *b = slurp(temp_path("b.h5"), &bytes[1]);
  assert_int_equal(bytes[0], bytes[1]);
  assert_memory_equal(a, b, bytes[0]);
  free(a);
  free(b);
  state_free(&s);
}

static int64_t int_attribute(hid_t file, const char *name) {
  int64_t value = -1;
  const hid_t attribute = H5Aopen(file, name, H5P_DEFAULT);
  assert_true(attribute >= 0 && H5Aread(attribute, H5T_NATIVE_INT64, &value) >= 0);
  H5Aclose(attribute);
  return value;
}

/* As any other HDF5 program would read it, and with the documented meaning of /extents and /checksums. */
static void plain_hdf5(void **unused) {
  (void)unused;
  state s;
  state_make(&s, 7000);
  assert_ok(save(&s, temp_path("a.h5"), job));
  const hid_t file = H5Fopen(temp_path("a.h5"), H5F_ACC_RDONLY, H5P_DEFAULT);
  assert_true(file >= 0);
  assert_int_equal(int_attribute(file, "version"), 1);
  assert_int_equal(int_attribute(file, "step"), s.header.step);
  assert_int_equal(int_attribute(file, "tokens"), s.header.tokens);
  assert_int_equal(int_attribute(file, "applied_updates"), s.header.applied_updates);
  assert_int_equal(int_attribute(file, "rank_count"), 1);
  uint64_t extents[ITEMS][2], checksums[ITEMS];
  hid_t set = H5Dopen2(file, "/extents", H5P_DEFAULT);
  assert_true(set >= 0 && H5Dread(set, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, extents) >= 0);
  H5Dclose(set);
  set = H5Dopen2(file, "/checksums", H5P_DEFAULT);
  assert_true(set >= 0 && H5Dread(set, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, checksums) >= 0);
  H5Dclose(set);
  size_t size;
  unsigned char *raw = slurp(temp_path("a.h5"), &size);
  for (int i = 0; i < ITEMS; i++) {
    const size_t bytes = (size_t)s.items[i].end * sizeof(float);
    float *values = malloc(bytes);
    set = H5Dopen2(file, s.items[i].dataset, H5P_DEFAULT);
    assert_true(set >= 0 && H5Dread(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0);
    assert_memory_equal(values, s.values[i], bytes);
    assert_true(extents[i][0] == H5Dget_offset(set) && extents[i][1] == bytes);
    assert_memory_equal(raw + extents[i][0], values, bytes);
    assert_true(checksums[i] == XXH3_64bits(values, bytes));
    H5Dclose(set);
    free(values);
  }
  free(raw);
  H5Fclose(file);
  state_free(&s);
}

/* Any flipped byte anywhere is found, without the HDF5 library ever seeing damaged metadata. */
static void flipped_bytes(void **unused) {
  (void)unused;
  state s;
  size_t size;
  state_make(&s, 8000);
  assert_ok(save(&s, temp_path("a.h5"), job));
  unsigned char *bytes = slurp(temp_path("a.h5"), &size);
  const int fd = open(temp_path("a.h5"), O_WRONLY);
  assert_true(fd >= 0);
  for (uint64_t trial = 0; trial < 900; trial++) {
    const size_t at =
        trial < 80 ? (size_t)trial : (size_t)below(8100, trial, (int64_t)size); // the seal's fields, then anywhere
    const unsigned char flipped = bytes[at] ^ (unsigned char)(1 + below(8101, trial, 255));
    assert_int_equal(pwrite(fd, &flipped, 1, (off_t)at), 1);
    spt_error_clear();
    const spt_status status = open_and_verify(temp_path("a.h5"));
    if (status != SPT_ERR_DATA || !strstr(spt_error_message(), temp_path("a.h5")))
      fail_msg("byte %zu of %zu, %02x for %02x: status %d, %s", at, size, flipped, bytes[at], (int)status,
               spt_error_message());
    assert_int_equal(pwrite(fd, &bytes[at], 1, (off_t)at), 1);
  }
  close(fd);
  assert_holds(temp_path("a.h5"), &s);
  free(bytes);
  state_free(&s);
}

static void other_lengths(void **unused) {
  (void)unused;
  state s;
  size_t size;
  state_make(&s, 9000);
  assert_ok(save(&s, temp_path("a.h5"), job));
  unsigned char *bytes = slurp(temp_path("a.h5"), &size);
  bytes = realloc(bytes, size + 64);
  memset(bytes + size, 0, 64);
  for (uint64_t trial = 0; trial < 60; trial++) {
    const size_t kept = trial == 0   ? size - 1
                        : trial == 1 ? 0
                        : trial == 2 ? 4096
                                     : (size_t)below(9100, trial, (int64_t)size);
    spill(temp_path("b.h5"), bytes, kept);
    assert_fails(SPT_ERR_DATA, open_and_verify(temp_path("b.h5")), temp_path("b.h5"));
  }
  for (size_t more = 1; more <= 64; more *= 4) {
    spill(temp_path("b.h5"), bytes, size + more);
    assert_fails(SPT_ERR_DATA, open_and_verify(temp_path("b.h5")), temp_path("b.h5"), "grown");
  }
  free(bytes);
  state_free(&s);
}

/* The seal's own checksum, made good again after a change. */
static void reseal(unsigned char *block) {
  unsigned char rest[4096 - 8];
  memcpy(rest, block, 64);
  memcpy(rest + 64, block + 72, 4096 - 72);
  const uint64_t digest = XXH3_64bits(rest, sizeof rest);
  memcpy(block + 64, &digest, sizeof digest);
}

static void no_checkpoint(void **unused) {
  (void)unused;
  state s, other;
  size_t size, other_size;
  state_make(&s, 10000);
  assert_ok(save(&s, temp_path("a.h5"), job));
  unsigned char *bytes = slurp(temp_path("a.h5"), &size);

  bytes[8] = 2;
  reseal(bytes);
  spill(temp_path("b.h5"), bytes, size);
  assert_fails(SPT_ERR_DATA, open_and_verify(temp_path("b.h5")), temp_path("b.h5"), "version 2");
  bytes[8] = 1;
  reseal(bytes); // control: the same way round it opens
  spill(temp_path("b.h5"), bytes, size);
  assert_ok(open_and_verify(temp_path("b.h5")));

  // Two intact files whose tensors were exchanged: each part is right, together they are not.
  state_make(&other, 10000);
  spt_random_normal(seed, 10999, 0, other.items[1].end, 1, other.values[1]);
  assert_ok(save(&other, temp_path("c.h5"), job));
  unsigned char *strange = slurp(temp_path("c.h5"), &other_size);
  assert_int_equal(size, other_size);
  for (int part = 0; part < 2; part++) {
    const size_t cut = part ? size / 2 : 4096;
    unsigned char *mixed = malloc(size);
    memcpy(mixed, bytes, cut);
    memcpy(mixed + cut, strange + cut, size - cut);
    spill(temp_path("b.h5"), mixed, size);
    assert_fails(SPT_ERR_DATA, open_and_verify(temp_path("b.h5")), temp_path("b.h5"));
    free(mixed);
  }

  memset(bytes, 'x', size);
  spill(temp_path("b.h5"), bytes, size);
  assert_fails(SPT_ERR_DATA, open_and_verify(temp_path("b.h5")), "not a spectron checkpoint");
  assert_fails(SPT_ERR_DATA, open_and_verify(temp_path("absent.h5")), "absent.h5", "No such file");
  assert_fails(SPT_ERR_DATA, open_and_verify(temp_folder), temp_folder);
  bool ours = true;
  assert_ok(spt_checkpoint_recognise(temp_path("b.h5"), &ours));
  assert_false(ours);
  assert_ok(spt_checkpoint_recognise(temp_path("a.h5"), &ours));
  assert_true(ours);
  assert_fails(SPT_ERR_DATA, spt_checkpoint_recognise(temp_path("absent.h5"), &ours), "absent.h5");
  free(strange);
  free(bytes);
  state_free(&other);
  state_free(&s);
}

static void wrong_items(void **unused) {
  (void)unused;
  state s;
  state_make(&s, 11000);
  assert_ok(save(&s, temp_path("a.h5"), job));
  spt_checkpoint *checkpoint;
  assert_ok(spt_checkpoint_open(temp_path("a.h5"), &checkpoint));
  spt_checkpoint_item item = s.items[1];
  snprintf(item.dataset, sizeof item.dataset, "/model/other");
  assert_fails(SPT_ERR_DATA, spt_checkpoint_load(comm, &host_backend, checkpoint, &item, 1), "a.h5", "/model/other");
  item = s.items[1];
  item.rows++;
  item.end = item.rows * item.cols;
  assert_fails(SPT_ERR_DATA, spt_checkpoint_load_replicated(comm, &host_backend, checkpoint, &item, 1), "a.h5",
               item.dataset);
  spt_checkpoint_close(&checkpoint);

  spt_checkpoint_saver *saver = NULL;
  item = s.items[1];
  item.end--; // nobody holds the last element
  assert_fails(SPT_ERR_RESOURCE, spt_checkpoint_saver_open(comm, &host_backend, &item, 1, &saver), item.dataset);
  assert_null(saver);
  state_free(&s);
}

/* A save that fails leaves no .part and the older file as it was; the next one succeeds. */
static void assert_save_fails(state *s, const char *text) {
  assert_fails(SPT_ERR_RESOURCE, save(s, temp_path("a.h5"), job), "a.h5", text);
  faults_reset();
  assert_absent(temp_path("a.h5.part"));
}

static void full_disk(void **unused) {
  (void)unused;
  state old, s;
  state_make(&old, 12000);
  state_make(&s, 13000);
  assert_ok(save(&old, temp_path("a.h5"), job));

  faults.reserve_error = ENOSPC;
  assert_save_fails(&s, "no space left");
  faults.reserve_error = EDQUOT;
  assert_save_fails(&s, "no space left");
  faults.fsync_error = EIO;
  assert_save_fails(&s, "fsync");
  faults.rename_error = EACCES;
  assert_save_fails(&s, "renaming");
  assert_holds(temp_path("a.h5"), &old);

  // The disk fills up at every single write in turn, threaded and not, where space could not be reserved.
  int failures = 0;
  for (long writes = 0;; writes++) {
    faults.writes_left = writes;
    faults.write_error = ENOSPC;
    faults.reserve_error = EOPNOTSUPP; // a file system without fallocate
    comm->threaded = writes % 2 == 0;
    spt_error_clear();
    const spt_status status = save(&s, temp_path("a.h5"), job);
    faults_reset();
    if (status == SPT_OK) break;
    failures++;
    assert_int_equal(status, SPT_ERR_RESOURCE);
    assert_non_null(strstr(spt_error_message(), "no space left"));
    assert_absent(temp_path("a.h5.part"));
    assert_holds(temp_path("a.h5"), &old);
  }
  comm->threaded = true;
  assert_int_equal(failures, 2 + ITEMS + 2); // the probe's two blocks, tensors, checksums and seal
  assert_holds(temp_path("a.h5"), &s);

  assert_fails(SPT_ERR_RESOURCE, save(&s, temp_path("absent/a.h5"), job), "absent/a.h5.part", "No such file");
  state_free(&old);
  state_free(&s);
}

int main(void) {
  seed = unit_test_seed("test_checkpoint");
  if (spt_comm_self_open(&comm) != SPT_OK) return 1;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(round_trip),    cmocka_unit_test(saved_is_the_snapshot), cmocka_unit_test(deterministic),
      cmocka_unit_test(plain_hdf5),    cmocka_unit_test(flipped_bytes),         cmocka_unit_test(other_lengths),
      cmocka_unit_test(no_checkpoint), cmocka_unit_test(wrong_items),           cmocka_unit_test(full_disk),
  };
  const int failed = cmocka_run_group_tests(tests, temp_folder_make, temp_folder_remove);
  comm->ops->close(&comm);
  return failed;
}
