/* Hostile files end their reader process, not the program: every trick of files made elsewhere, crashes and hangs of
 * the HDF5 library, planted and real, and limits of time and memory. */
#include "unit_test.h"

#include "temp_folder.h"

#include "fuzz/foreign_checkpoints.h"
#include "fuzz/foreign_shards.h"
#include "io/checkpoint.h"
#include "io/durable_file.h"
#include "io/hdf5_process.h"
#include "io/token_file.h"

#include <hdf5.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

static uint64_t seed;

static spt_status open_shard(const char *path) {
  spt_token_file *file = NULL;
  spt_status status = spt_token_file_open(path, &file);
  if (status == SPT_OK) status = spt_token_file_verify(file);
  spt_token_file_close(&file);
  return status;
}

static spt_status open_checkpoint(const char *path) {
  spt_checkpoint *checkpoint = NULL;
  spt_status status = spt_checkpoint_open(path, &checkpoint);
  if (status == SPT_OK) status = spt_checkpoint_verify(checkpoint);
  spt_checkpoint_close(&checkpoint);
  return status;
}

/* Welcome ones give their tokens, the others say what is odd. */
static void foreign_shards(void **state) {
  (void)state;
  const char *path = temp_path("shard.h5");
  const foreign_shard *about;
  int welcome = 0, index = 0;
  for (; (about = foreign_shard_write(path, index)); index++) {
    if (!about->welcome) {
      spt_error_clear();
      const spt_status status = open_shard(path);
      if (status != SPT_ERR_DATA || !strstr(spt_error_message(), about->complaint) ||
          !strstr(spt_error_message(), path))
        fail_msg("%s: status %d, %s", about->name, (int)status, spt_error_message());
      continue;
    }
    welcome++;
    spt_token_file *file;
    int32_t ids[FOREIGN_TOKENS];
    if (spt_token_file_open(path, &file) != SPT_OK) fail_msg("%s: %s", about->name, spt_error_message());
    assert_ok(spt_token_file_verify(file));
    assert_ok(spt_token_file_read(file, 0, FOREIGN_TOKENS, ids));
    for (int i = 0; i < FOREIGN_TOKENS; i++) assert_int_equal(ids[i], 7 * i % FOREIGN_VOCAB);
    uint64_t starts[6];
    assert_int_equal(spt_token_file_info_of(file)->documents, 6);
    assert_ok(spt_token_file_documents(file, 0, 6, starts));
    for (uint64_t i = 0; i < 6; i++) assert_int_equal(starts[i], 100 * i);
    spt_token_file_close(&file);
  }
  printf("  %d files, %d welcome\n", index, welcome);
  assert_true(welcome >= 10 && index - welcome >= 20);
}

static void foreign_checkpoints(void **state) {
  (void)state;
  const char *path = temp_path("checkpoint.h5");
  const foreign_checkpoint *about;
  for (int index = 0; (about = foreign_checkpoint_write(path, index)); index++) {
    spt_error_clear();
    const spt_status status = open_checkpoint(path);
    if (status != (about->welcome ? SPT_OK : SPT_ERR_DATA) || (!about->welcome && !strstr(spt_error_message(), path)))
      fail_msg("%s: status %d, %s", about->name, (int)status, spt_error_message());
  }
}

/* What the reader does when told by the environment; the helper is a fork of this process and started with it. */
static void planted(void **state) {
  (void)state;
  static const struct {
    const char *fault, *words;
  } faults[] = {{"crash", "crashes"}, {"hang", "1 s of processor time"}, {"memory", "crashes"}};
  for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
    const pid_t child = fork(); // a process of its own has its own helper, with its own environment
    assert_true(child >= 0);
    if (child == 0) {
      setenv("SPT_TEST_READER_FAULT", faults[i].fault, 1);
      setenv("SPT_TEST_READER_FILE", "bad", 1);
      setenv("SPT_TEST_READER_SECONDS", "1", 1);
      const char *good = temp_path("good.h5"), *bad = temp_path("bad.h5"), *sealed = temp_path("bad-sealed.h5");
      foreign_shard_write(good, 0);
      foreign_shard_write(bad, 0);
      foreign_checkpoint_write(sealed, 0);
      int wrong = 0;
      wrong |= open_shard(good) != SPT_OK;
      wrong |= 2 * (open_shard(bad) != SPT_ERR_DATA || !strstr(spt_error_message(), faults[i].words) ||
                    !strstr(spt_error_message(), "bad.h5"));
      wrong |= 4 * (open_checkpoint(sealed) != SPT_ERR_DATA || !strstr(spt_error_message(), faults[i].words));
      wrong |= 8 * (open_shard(good) != SPT_OK); // the helper lives on
      if (wrong) fprintf(stderr, "%s: %s\n", faults[i].fault, spt_error_message());
      _exit(wrong);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (status != 0) fail_msg("%s: status %#x", faults[i].fault, (unsigned)status);
  }
}

/* Chunked files are read by their process: when it is killed meanwhile, the next read says so. */
static void reader_dies_between_reads(void **state) {
  (void)state;
  const char *path = temp_path("chunked.h5");
  for (int index = 0;; index++) {
    const foreign_shard *about = foreign_shard_write(path, index);
    assert_non_null(about);
    if (!strcmp(about->name, "chunked")) break;
  }
  spt_token_file *file;
  int32_t ids[10];
  assert_ok(spt_token_file_open(path, &file));
  assert_ok(spt_token_file_read(file, 50, 10, ids));
  assert_int_equal(ids[0], 350 % FOREIGN_VOCAB);
  char command[128]; // the helper's only child
  snprintf(command, sizeof command, "pkill -KILL -P $(pgrep -P %ld spt-files)", (long)getpid());
  assert_int_equal(system(command), 0);
  assert_fails(SPT_ERR_DATA, spt_token_file_read(file, 50, 10, ids), path, "crashes");
  assert_fails(SPT_ERR_DATA, spt_token_file_read(file, 50, 10, ids), path, "before");
  spt_token_file_close(&file);
  assert_ok(open_shard(path));
}

/* Writes the bytes, one of them changed, and reads the file. */
static spt_status open_changed(const char *path, char *bytes, size_t size, size_t at, int value) {
  const char before = bytes[at];
  bytes[at] = (char)value;
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(bytes, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
  bytes[at] = before;
  spt_error_clear();
  return open_shard(path);
}

/* Single bytes on which HDF5 1.10.8 crashes or hangs, found by trying; other versions may do better. */
static void known_to_kill(void **state) {
  (void)state;
  static const struct {
    const char *name;
    size_t at;
    int value;
  } known[] = {{"variable-length strings", 2216, 75},  {"variable-length strings", 2219, 190},
               {"variable-length strings", 1151, 118}, {"variable-length strings", 2140, 147},
               {"variable-length strings", 2216, 127}, {"variable-length strings", 2143, 60},
               {"variable-length strings", 2217, 95},  {"chunked", 1013, 175}};
  const char *path = temp_path("killer.h5");
  int crashes = 0, hangs = 0;
  setenv("SPT_TEST_READER_SECONDS", "1", 1);
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    const foreign_shard *about;
    for (int index = 0; (about = foreign_shard_write(path, index)); index++)
      if (!strcmp(about->name, known[i].name)) break;
    char *bytes;
    size_t size;
    assert_non_null(about);
    assert_ok(spt_file_read_all(path, &bytes, &size));
    assert_true(known[i].at < size);
    const spt_status status = open_changed(path, bytes, size, known[i].at, known[i].value);
    free(bytes);
    if (status != SPT_OK && (status != SPT_ERR_DATA || !strstr(spt_error_message(), path)))
      fail_msg("%s, byte %zu: status %d: %s", known[i].name, known[i].at, (int)status, spt_error_message());
    crashes += strstr(spt_error_message(), "library crashes") != NULL;
    hangs += strstr(spt_error_message(), "library hangs") != NULL;
  }
  unsetenv("SPT_TEST_READER_SECONDS");
  printf("  HDF5 crashed on %d and hung on %d of %zu\n", crashes, hangs, sizeof known / sizeof *known);
  unsigned major, minor, release;
  assert_true(H5get_libversion(&major, &minor, &release) >= 0);
  if (major == 1 && minor == 10 && release == 8) assert_true(crashes + hangs > 0);
}

/* Some bytes of a plain file are wrong, as by a bad disk: whatever the library makes of it, this program lives and the
 * answer is prompt. */
static void corrupted_for_real(void **state) {
  (void)state;
  enum { TRIALS = 300 };
  int crashes = 0, hangs = 0, accepted = 0;
  const char *path = temp_path("corrupt.h5");
  setenv("SPT_TEST_READER_SECONDS", "1", 1);
  char *whole[3];
  size_t size[3];
  static const int kinds[3] = {0, 4, 5};
  for (int i = 0; i < 3; i++) {
    foreign_shard_write(path, kinds[i]);
    assert_ok(spt_file_read_all(path, &whole[i], &size[i]));
  }
  for (uint64_t trial = 0; trial < TRIALS; trial++) {
    const int kind = (int)(trial / 3 % 3);
    char *bytes = malloc(size[kind]);
    assert_non_null(bytes);
    memcpy(bytes, whole[kind], size[kind]);
    for (uint64_t i = 0; i < trial % 3; i++)
      bytes[spt_random_bits(seed, 2 * i, trial) % size[kind]] = (char)spt_random_bits(seed, 2 * i + 1, trial);
    const spt_status status = open_changed(path, bytes, size[kind], spt_random_bits(seed, 10, trial) % size[kind],
                                           (int)spt_random_bits(seed, 11, trial));
    free(bytes);
    if (status != SPT_OK && status != SPT_ERR_DATA)
      fail_msg("trial %d: status %d: %s", (int)trial, (int)status, spt_error_message());
    accepted += status == SPT_OK;
    crashes += status != SPT_OK && strstr(spt_error_message(), "library crashes") != NULL;
    hangs += status != SPT_OK && strstr(spt_error_message(), "library hangs") != NULL;
  }
  unsetenv("SPT_TEST_READER_SECONDS");
  for (int i = 0; i < 3; i++) free(whole[i]);
  printf("  %d corrupted files: %d read (no checksums in them), HDF5 crashed on %d and hung on %d\n", TRIALS, accepted,
         crashes, hangs);
}

/* The first process of that name below `parent`, 0 where there is none. */
static long child_of(long parent) {
  char command[64];
  long child = 0;
  snprintf(command, sizeof command, "pgrep -P %ld spt-files", parent);
  FILE *list = popen(command, "r");
  assert_non_null(list);
  if (fscanf(list, "%ld", &child) != 1) child = 0;
  pclose(list);
  return child;
}

/* A dead process that nobody waits for is none. */
static bool is_alive(long process) {
  char path[64], state = 'Z';
  snprintf(path, sizeof path, "/proc/%ld/stat", process);
  FILE *file = fopen(path, "r");
  if (!file) return false;
  if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1) state = 'Z';
  fclose(file);
  return state != 'Z' && state != 'X';
}

/* No process outlives the one that it reads for, not even one that hangs. */
static void nothing_is_left(void **state) {
  (void)state;
  const char *path = temp_path("left.h5");
  foreign_shard_write(path, 0);
  int pipes[2];
  assert_int_equal(pipe(pipes), 0);
  const pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    spt_token_file *file;
    close(pipes[0]);
    setenv("SPT_TEST_READER_FAULT", "hang", 1);
    spt_token_file_open(path, &file); // hangs
    _exit(1);
  }
  close(pipes[1]);
  long helper = 0, reader = 0;
  for (int tries = 0; tries < 300 && !reader; tries++) {
    usleep(50000);
    if (!helper) helper = child_of(child);
    if (helper) reader = child_of(helper);
  }
  assert_true(helper > 0 && reader > 0);
  assert_int_equal(kill(child, SIGKILL), 0);
  assert_int_equal(waitpid(child, NULL, 0), child);
  char byte; // the helper closed what it inherited: were the pipe's end open anywhere, this end would not come
  assert_int_equal(read(pipes[0], &byte, 1), 0);
  close(pipes[0]);
  for (int tries = 0; is_alive(helper) || is_alive(reader); tries++) {
    if (tries > 300) fail_msg("processes %ld and %ld: one is left", helper, reader);
    usleep(50000);
  }
}

int main(void) {
  seed = unit_test_seed("test_hostile_files");
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(planted), // first: this process has no helper yet
      cmocka_unit_test(nothing_is_left),
      cmocka_unit_test(foreign_shards),
      cmocka_unit_test(foreign_checkpoints),
      cmocka_unit_test(reader_dies_between_reads),
      cmocka_unit_test(known_to_kill),
      cmocka_unit_test(corrupted_for_real),
  };
  return cmocka_run_group_tests(tests, temp_folder_make, temp_folder_remove);
}
