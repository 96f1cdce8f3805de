/* Checkpoints: every kind of damage is found, and every kind of failing disk leaves the older file whole. */
#include "unit_test.h"

#include "checkpoint_fixture.h"
#include "faults.h"

#include <xxhash.h>

/* Where a trial damages the file, and how. */
typedef struct damage {
  size_t at;
  unsigned char flip;
} damage;

/* Every trial's damage is found, by name, and without the HDF5 library ever seeing damaged metadata. */
static void assert_found(const char *what, uint64_t stream, size_t trials, damage choose(uint64_t trial, size_t size)) {
  state s;
  size_t size;
  state_make(&s, stream);
  assert_ok(save(&s, temp_path("a.h5"), job));
  unsigned char *bytes = slurp(temp_path("a.h5"), &size);
  const int fd = open(temp_path("a.h5"), O_WRONLY);
  assert_true(fd >= 0);
  if (trials == 0) trials = size;
  for (uint64_t trial = 0; trial < trials; trial++) {
    const size_t at = choose(trial, size).at;
    const unsigned char flipped = bytes[at] ^ choose(trial, size).flip;
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
  print_message("%s: %zu of %zu found in a file of %zu bytes\n", what, trials, trials, size);
  free(bytes);
  state_free(&s);
}

/* A random bit; the first trials meet the seal's fields. */
static damage choose_bit(uint64_t trial, size_t size) {
  return (damage){trial < 80 ? (size_t)trial : (size_t)below(8100, trial, (int64_t)size),
                  (unsigned char)(1 << below(8101, trial, 8))};
}
static void flipped_bits(void **unused) {
  (void)unused;
  assert_found("random bits", 8000, 900, choose_bit);
}

/* Each byte of the file in turn, changed at random. */
static damage choose_byte(uint64_t trial, size_t size) {
  (void)size;
  return (damage){(size_t)trial, (unsigned char)(1 + below(8102, trial, 255))};
}
static void every_byte(void **unused) {
  (void)unused;
  assert_found("every byte", 8200, 0, choose_byte);
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
  for (uint64_t trial = 0; trial < 300; trial++) {
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
  print_message("other lengths: 304 of 304 found\n");
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

/* A save that fails leaves no .part and the older file as it was; the next one succeeds. */
static void assert_save_fails(state *s, const char *text) {
  assert_fails(SPT_ERR_RESOURCE, save(s, temp_path("a.h5"), job), "a.h5", text);
  assert_int_equal(faults.locks, 0); // HDF5 takes none
  faults_reset();
  assert_absent(temp_path("a.h5.part"));
}

static void full_disk(void **unused) {
  (void)unused;
  state old, s;
  state_make(&old, 12000);
  state_make(&s, 13000);
  assert_ok(save(&old, temp_path("a.h5"), job));

  faults_reset();
  faults.reserve_error = ENOSPC;
  assert_save_fails(&s, "no space left");
  faults.reserve_error = EDQUOT;
  assert_save_fails(&s, "no space left");
  faults.fsync_error = EIO;
  assert_save_fails(&s, "fsync");
  faults.rename_error = EACCES;
  assert_save_fails(&s, "renaming");
  faults.closes_left = 0;
  faults.close_error = EDQUOT; // some network file systems tell only here
  assert_save_fails(&s, "no space left");
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
  assert_int_equal(failures, 2 + ITEMS + 2); // metadata before and after the tensors, tensors, checksums and seal
  assert_holds(temp_path("a.h5"), &s);

  assert_fails(SPT_ERR_RESOURCE, save(&s, temp_path("absent/a.h5"), job), "absent/a.h5.part", "No such file");
  state_free(&old);
  state_free(&s);
}

int main(void) {
  seed = unit_test_seed("test_checkpoint_damage");
  if (spt_comm_self_open(&comm) != SPT_OK) return 1;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(flipped_bits),
      cmocka_unit_test(every_byte),
      cmocka_unit_test(other_lengths),
      cmocka_unit_test(no_checkpoint),
      cmocka_unit_test(full_disk),
  };
  const int failed = cmocka_run_group_tests(tests, temp_folder_make, temp_folder_remove);
  comm->ops->close(&comm);
  return failed;
}
