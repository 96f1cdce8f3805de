/* Checkpoints by one process: round trip, snapshot, plain HDF5. */
#include "unit_test.h"

#include "checkpoint_fixture.h"

#include <hdf5.h>
#include <math.h>
#include <xxhash.h>

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
  const int moves = host_moves;
  assert_true(moves > 0);
  assert_ok(spt_checkpoint_save_resting(saver, temp_path("last.h5"), &s.header, job)); // ends the second
  assert_int_equal(host_moves, moves);                                                 // nothing was copied
  spt_checkpoint_saver_close(&saver);                                                  // ends the last
  assert_holds(temp_path("last.h5"), &s);
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

int main(void) {
  seed = unit_test_seed("test_checkpoint");
  if (spt_comm_self_open(&comm) != SPT_OK) return 1;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(round_trip), cmocka_unit_test(saved_is_the_snapshot), cmocka_unit_test(deterministic),
      cmocka_unit_test(plain_hdf5), cmocka_unit_test(wrong_items),
  };
  const int failed = cmocka_run_group_tests(tests, temp_folder_make, temp_folder_remove);
  comm->ops->close(&comm);
  return failed;
}
