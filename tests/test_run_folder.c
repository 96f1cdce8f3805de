/* A run's folder: the lock, the newest intact checkpoint, the best one, and what is never touched. */
#include "unit_test.h"

#include "faults.h"
#include "host_backend.h"
#include "temp_folder.h"

#include "io/durable_file.h"
#include "io/run_folder.h"

#include <math.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

static uint64_t seed;
static spt_comm *comm;
static char output[700]; /* of the running test */

static int fresh_output(void **state) {
  (void)state;
  static int count;
  unsetenv("SLURM_JOB_ID");
  snprintf(output, sizeof output, "%s/runs/%d", temp_folder, count++); // "runs" does not exist at first
  return 0;
}

static const char *in_output(const char *name) {
  static char paths[4][1024];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", output, name);
  return path;
}

static bool exists(const char *name) {
  return access(in_output(name), F_OK) == 0;
}

static void spill(const char *name, const char *text) {
  assert_ok(spt_file_replace(in_output(name), text, strlen(text)));
}

static char *slurp(const char *name) {
  char *text;
  size_t bytes;
  assert_ok(spt_file_read_all(in_output(name), &text, &bytes));
  return text;
}

/* Saves step `step` to its own name; `path` receives it. */
static void save(const spt_run_folder *folder, int64_t step, char path[SPT_PATH_MAX]) {
  float values[33];
  spt_random_normal(seed, (uint64_t)step, 0, 33, 1, values);
  spt_checkpoint_item item = {.dataset = "/model/w", .rows = 11, .cols = 3, .end = 33, .values = values};
  const spt_checkpoint_header header = {.step = step, .rank_count = 1, .best_validation_loss = NAN};
  spt_checkpoint_saver *saver;
  spt_run_folder_checkpoint_path(folder, step, path);
  assert_ok(spt_checkpoint_saver_open(comm, &host_backend, &item, 1, &saver));
  assert_ok(spt_checkpoint_save_begin(saver, path, &header, "job"));
  assert_ok(spt_checkpoint_save_finish(saver));
  spt_checkpoint_saver_close(&saver);
}

static void damage(const char *path) {
  char *bytes;
  size_t count;
  assert_ok(spt_file_read_all(path, &bytes, &count));
  bytes[spt_random_bits(seed, 999, (uint64_t)count) % count] ^= 0x10;
  assert_ok(spt_file_replace(path, bytes, count));
  free(bytes);
}

static void assert_newest(const spt_run_folder *folder, int64_t step, const char *warned) {
  char warning[2000];
  spt_checkpoint *checkpoint;
  assert_ok(spt_run_folder_newest(folder, &checkpoint, warning, sizeof warning));
  assert_non_null(checkpoint);
  assert_int_equal(spt_checkpoint_header_of(checkpoint)->step, step);
  spt_checkpoint_close(&checkpoint);
  if (warned)
    assert_non_null(strstr(warning, warned));
  else
    assert_string_equal(warning, "");
  assert_ok(spt_run_folder_newest(folder, &checkpoint, NULL, 0));
  spt_checkpoint_close(&checkpoint);
}

/* ---- lock ---- */

static void one_run_at_a_time(void **unused) {
  (void)unused;
  spt_run_folder *folder, *second = NULL;
  char host[128] = "", process[32];
  assert_ok(spt_run_folder_open(output, false, &folder));
  assert_true(exists("checkpoints") && exists("lock"));
  gethostname(host, sizeof host - 1);
  snprintf(process, sizeof process, "process %ld", (long)getpid());
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, false, &second), output, host, process);
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &second), output, host, process);
  assert_null(second);
  const pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) _exit(spt_run_folder_open(output, true, &second) == SPT_ERR_USAGE ? 0 : 1);
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(status, 0);
  assert_true(exists("lock")); // those refused left it
  spt_run_folder_close(&folder);
  assert_null(folder);
  assert_false(exists("lock"));
  assert_ok(spt_run_folder_open(output, true, &folder));
  spt_run_folder_close(&folder);
}

/* A killed run leaves its lock file; the same host knows that it is dead. */
static void killed_run(void **unused) {
  (void)unused;
  spt_run_folder *folder;
  int ready[2];
  assert_int_equal(pipe(ready), 0);
  const pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    const char done = spt_run_folder_open(output, false, &folder) == SPT_OK ? 'y' : 'n';
    if (write(ready[1], &done, 1) == 1)
      for (;;) pause();
    _exit(1);
  }
  char answer = 0;
  assert_int_equal(read(ready[0], &answer, 1), 1);
  assert_int_equal(answer, 'y');
  char process[32];
  snprintf(process, sizeof process, "process %ld", (long)child);
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &folder), process);
  assert_int_equal(kill(child, SIGKILL), 0);
  assert_int_equal(waitpid(child, NULL, 0), child);
  assert_true(exists("lock"));
  assert_ok(spt_run_folder_open(output, true, &folder));
  spt_run_folder_close(&folder);
  close(ready[0]);
  close(ready[1]);
}

/* Under another Slurm job than the one that left the lock, on another node: SPECTRON_SLURM_JOBS says which jobs have not ended. */
static void ended_job(void **unused) {
  (void)unused;
  static const char left[] = "host elsewhere process 123 slurm_job 41 since 2020-01-01T00:00:00Z\n";
  static const struct {
    const char *own, *list;
    bool free;
    const char *cluster;
  } cases[] = {{"42", "40 42 43", true, NULL},   {"42", " 42 ", true, NULL},      {"42", "41 42", false, NULL}, {"42", "40 43", false, NULL},
               {"42", "", false, NULL},          {"42", NULL, false, NULL},       {"40", "40 43", false, NULL}, {"41", NULL, true, NULL},
               {NULL, "40 42", false, NULL},     {"42", "x 42", false, NULL},     {"42", "411 142 42", true, NULL}, {"4x", "42 4", false, NULL},
               {"42", "42", false, "there"},     {"41", NULL, false, "there"}};
  spt_run_folder *folder;
  assert_ok(spt_run_folder_open(output, true, &folder));
  spt_run_folder_close(&folder);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    spill("lock", left);
    if (cases[i].own) assert_int_equal(setenv("SLURM_JOB_ID", cases[i].own, 1), 0);
    else unsetenv("SLURM_JOB_ID");
    if (cases[i].cluster) assert_int_equal(setenv("SLURM_CLUSTER_NAME", cases[i].cluster, 1), 0);
    if (cases[i].list) assert_int_equal(setenv("SPECTRON_SLURM_JOBS", cases[i].list, 1), 0);
    else unsetenv("SPECTRON_SLURM_JOBS");
    if (cases[i].free) {
      assert_ok(spt_run_folder_open(output, true, &folder));
      spt_run_folder_close(&folder);
    } else {
      assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &folder), "host elsewhere, process 123, Slurm job 41", "remove this file");
    }
  }
  spill("lock", "host elsewhere process 123 slurm_job 41@there since 2020-01-01T00:00:00Z\n");
  assert_int_equal(setenv("SLURM_JOB_ID", "42", 1) | setenv("SPECTRON_SLURM_JOBS", "42", 1), 0);
  assert_ok(spt_run_folder_open(output, true, &folder));
  char *text = slurp("lock");
  assert_non_null(strstr(text, "slurm_job 42@there "));
  free(text);
  spt_run_folder_close(&folder);
  assert_int_equal(setenv("SLURM_CLUSTER_NAME", "of two\twords", 1), 0);
  assert_ok(spt_run_folder_open(output, true, &folder));
  assert_ok(spt_run_folder_check(folder));
  spt_run_folder_close(&folder);
  assert_false(exists("lock"));
  unsetenv("SLURM_CLUSTER_NAME");
  unsetenv("SLURM_JOB_ID");
  unsetenv("SPECTRON_SLURM_JOBS");
}

/* What a signal handler does: the lock goes, but not another's. */
static void abandoned(void **unused) {
  (void)unused;
  spt_run_folder *folder;
  spt_run_folder_abandon(NULL);
  assert_ok(spt_run_folder_open(output, true, &folder));
  spt_run_folder_abandon(folder);
  assert_false(exists("lock"));
  assert_ok(spt_run_folder_check(folder)); // made again
  spt_run_folder_abandon(folder);
  assert_false(exists("lock"));
  spill("lock", "host elsewhere process 123 slurm_job 41 since 2020-01-01T00:00:00Z\n");
  spt_run_folder_abandon(folder);
  assert_true(exists("lock"));
  spt_run_folder_close(&folder);
  assert_true(exists("lock"));
}

/* ---- lock: many starts at once, file systems without locks, a lock that is removed ---- */

enum { STARTS = 4 };

/* STARTS processes open the folder in the same instant and hold it until all have answered: exactly one may get it. */
static void race(bool kernel_locks) {
  int go[2], answers[2], hold[2], winners = 0;
  pid_t children[STARTS];
  assert_true(pipe(go) == 0 && pipe(answers) == 0 && pipe(hold) == 0);
  for (int i = 0; i < STARTS; i++) {
    children[i] = fork();
    assert_true(children[i] >= 0);
    if (children[i] != 0) continue;
    spt_run_folder *folder;
    char word;
    close(go[1]), close(hold[1]);
    faults.lock_error = kernel_locks ? 0 : ENOLCK;
    if (read(go[0], &word, 1) != 0) _exit(3); // until the parent closes it
    const spt_status status = spt_run_folder_open(output, true, &folder);
    const char answer = status == SPT_OK ? 'y' : status == SPT_ERR_USAGE ? 'n' : 'e';
    if (write(answers[1], &answer, 1) != 1 || read(hold[0], &word, 1) != 0) _exit(3);
    if (status == SPT_OK) spt_run_folder_close(&folder);
    _exit(answer == 'e');
  }
  close(go[0]), close(hold[0]), close(answers[1]), close(go[1]);
  for (int i = 0; i < STARTS; i++) {
    char answer = 0;
    assert_int_equal(read(answers[0], &answer, 1), 1);
    assert_true(answer == 'y' || answer == 'n');
    winners += answer == 'y';
  }
  assert_int_equal(winners, 1);
  assert_true(exists("lock"));
  close(hold[1]), close(answers[0]);
  for (int i = 0; i < STARTS; i++) {
    int status;
    assert_int_equal(waitpid(children[i], &status, 0), children[i]);
    assert_int_equal(status, 0);
  }
  assert_false(exists("lock"));
}

/* The lock file of a process of this host that is no more. */
static void leave_stale_lock(void) {
  char host[128] = "", text[300];
  const pid_t child = fork();
  if (child == 0) _exit(0);
  assert_int_equal(waitpid(child, NULL, 0), child);
  gethostname(host, sizeof host - 1);
  snprintf(text, sizeof text, "host %s process %ld slurm_job - since 2020-01-01T00:00:00Z\n", host, (long)child);
  spill("lock", text);
}

static void starts_at_once(void **unused) {
  (void)unused;
  spt_run_folder *folder;
  assert_ok(spt_run_folder_open(output, true, &folder));
  spt_run_folder_close(&folder);
  for (int i = 0; i < 20; i++) {
    race(true);
    leave_stale_lock();
    race(true);
    race(false);
  }
  leave_stale_lock(); // a second each
  race(false);
}

/* A network file system without locks, or with locks that other hosts do not see: the file alone keeps the others out. */
static void no_kernel_lock(void **unused) {
  (void)unused;
  static const int errors[] = {ENOLCK, ENOSYS, EOPNOTSUPP};
  spt_run_folder *folder, *second = NULL;
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
    faults.lock_error = errors[i];
    assert_ok(spt_run_folder_open(output, true, &folder));
    assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &second), "another run uses this folder", "wait for it");
    assert_null(second);
    spt_run_folder_close(&folder);
    assert_false(exists("lock"));
  }
  leave_stale_lock();
  assert_ok(spt_run_folder_open(output, true, &folder));
  spt_run_folder_close(&folder);
  spill("lock", ""); // of a start on another host that has not written yet, or never will
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &second), in_output("lock"), "remove this file");
  assert_true(exists("lock"));
  faults.fsync_error = EIO;
  assert_int_equal(unlink(in_output("lock")), 0);
  assert_fails(SPT_ERR_RESOURCE, spt_run_folder_open(output, true, &second), in_output("lock"), "fsync");
  assert_false(exists("lock")); // or it would keep the next start out
  faults_reset();
}

static void lock_removed(void **unused) {
  (void)unused;
  spt_run_folder *first, *second = NULL;
  char path[SPT_PATH_MAX];
  assert_ok(spt_run_folder_open(output, false, &first));
  assert_int_equal(unlink(in_output("lock")), 0);
  save(first, 10, path);
  assert_ok(spt_run_folder_after_save(first, path, false, 9));
  assert_true(exists("lock")); // made again
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &second), "another run uses this folder");

  // removed, and another run starts: this one touches nothing of it any more, its lock included
  assert_int_equal(unlink(in_output("lock")), 0);
  assert_ok(spt_run_folder_open(output, true, &second));
  spill("checkpoints/step-00000099.h5.part", "the other's save under way");
  assert_ok(spt_run_folder_check(second));
  assert_fails(SPT_ERR_USAGE, spt_run_folder_check(first), in_output("lock"), "another run has this folder");
  save(first, 20, path);
  assert_fails(SPT_ERR_USAGE, spt_run_folder_after_save(first, path, true, 1), in_output("lock"), "another run has this folder");
  assert_true(exists("checkpoints/step-00000099.h5.part") && exists("checkpoints/step-00000010.h5"));
  assert_false(exists("checkpoints/best.h5"));
  spt_run_folder_close(&first);
  assert_true(exists("lock"));
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &first), "another run uses this folder");
  spt_run_folder_close(&second);
  assert_false(exists("lock"));

  // a link to a foreign file is neither followed nor overwritten
  spill("precious", "mine");
  assert_int_equal(symlink(in_output("precious"), in_output("lock")), 0);
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &first), in_output("lock"));
  char *text = slurp("precious");
  assert_string_equal(text, "mine");
  free(text);
}

static void other_host(void **unused) {
  (void)unused;
  spt_run_folder *folder;
  setenv("SLURM_JOB_ID", "4711", 1);
  assert_ok(spt_run_folder_open(output, false, &folder));
  char *text = slurp("lock");
  assert_non_null(strstr(text, "slurm_job 4711"));
  free(text);
  spt_run_folder_close(&folder);

  setenv("SLURM_JOB_ID", "100", 1); // another job than the lock's
  spill("lock", "host elsewhere process 1234 slurm_job 99 since 2020-01-01T00:00:00Z\n");
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &folder), in_output("lock"), "host elsewhere",
               "process 1234", "Slurm job 99", "remove");
  assert_true(exists("lock"));
  setenv("SLURM_JOB_ID", "99", 1); // requeued after its node died
  assert_ok(spt_run_folder_open(output, true, &folder));
  spt_run_folder_close(&folder);
  spill("lock", "host else"); // torn
  assert_ok(spt_run_folder_open(output, true, &folder));
  spt_run_folder_close(&folder);
}

/* Behind its first line, a comment, job.toml is the text. */
static void assert_job(const char *wanted) {
  char *text = slurp("job.toml");
  const size_t first = strcspn(text, "\n");
  assert_true(text[0] == '#' && text[first] == '\n');
  assert_string_equal(text + first + 1, wanted);
  free(text);
}

static void unusable_output(void **unused) {
  (void)unused;
  spt_run_folder *folder;
  char name[3000];
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open("", false, &folder), "run.output");
  memset(name, 'x', sizeof name - 1);
  name[sizeof name - 1] = '\0';
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(name, false, &folder), "run.output");
  assert_ok(spt_run_folder_open(output, false, &folder));
  assert_ok(spt_run_folder_write_job(folder, "first"));
  assert_ok(spt_run_folder_write_job(folder, "second"));
  assert_job("second");
  faults.writes_left = 0;
  faults.write_error = ENOSPC;
  assert_fails(SPT_ERR_RESOURCE, spt_run_folder_write_job(folder, "third"), "job.toml", "no space left");
  faults_reset();
  assert_job("second");
  assert_false(exists("job.toml.part"));
  spt_run_folder_close(&folder);
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(in_output("job.toml"), false, &folder), "job.toml"); // a file
}

/* ---- checkpoints ---- */

static void newest(void **unused) {
  (void)unused;
  spt_run_folder *folder;
  spt_checkpoint *checkpoint = (spt_checkpoint *)&seed; // to be overwritten
  char path[3][SPT_PATH_MAX], found[SPT_PATH_MAX], best[SPT_PATH_MAX];
  assert_ok(spt_run_folder_open(output, false, &folder));
  assert_ok(spt_run_folder_newest(folder, &checkpoint, NULL, 0));
  assert_null(checkpoint);
  assert_ok(spt_run_folder_find(output, found, best));
  assert_true(found[0] == '\0' && best[0] == '\0');
  static const int64_t steps[] = {5, 20, 123456789}; // as text the last is not the largest
  for (int i = 0; i < 3; i++) save(folder, steps[i], path[i]);
  assert_string_equal(path[0], in_output("checkpoints/step-00000005.h5"));
  assert_ok(spt_run_folder_find(output, found, best));
  assert_string_equal(found, path[2]);
  assert_newest(folder, steps[2], NULL);
  damage(path[2]);
  assert_newest(folder, steps[1], path[2]);
  spill("checkpoints/step-99999999999.h5", "");
  assert_newest(folder, steps[1], "step-99999999999.h5");
  assert_int_equal(rename(path[0], path[1]), 0); // holds step 5 under the name of step 20
  save(folder, steps[0], path[0]);
  assert_newest(folder, steps[0], path[1]);
  damage(path[0]);
  assert_fails(SPT_ERR_DATA, spt_run_folder_newest(folder, &checkpoint, NULL, 0), output, "none of 4");
  assert_null(checkpoint);
  spt_run_folder_close(&folder);
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, false, &folder), output, "--resume");
  assert_false(exists("lock"));
}

static void keeps_and_removes(void **unused) {
  (void)unused;
  static const char *const foreign[] = {"notes.txt",
                                        "checkpoints/step-1.h5",
                                        "checkpoints/step-00000001.h5",
                                        "checkpoints/step-00000010.h5.bak",
                                        "checkpoints/mine-00000010.h5",
                                        "checkpoints/mine.part"};
  spt_run_folder *folder;
  char path[SPT_PATH_MAX], older[SPT_PATH_MAX];
  assert_ok(spt_run_folder_open(output, false, &folder));
  for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) spill(foreign[i], "not a checkpoint");
  save(folder, 900, older); // of another time line
  for (int64_t step = 10; step <= 60; step += 10) {
    spill("checkpoints/step-00000099.h5.part", "a killed save");
    save(folder, step, path);
    assert_ok(spt_run_folder_after_save(folder, path, step == 20, 2));
    assert_false(exists("checkpoints/step-00000099.h5.part"));
  }
  static const struct {
    const char *name;
    bool kept;
  } steps[] = {{"checkpoints/step-00000010.h5", false}, {"checkpoints/step-00000020.h5", false},
               {"checkpoints/step-00000030.h5", false}, {"checkpoints/step-00000040.h5", false},
               {"checkpoints/step-00000050.h5", true},  {"checkpoints/step-00000060.h5", true},
               {"checkpoints/step-00000900.h5", true}};
  for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) assert_int_equal(exists(steps[i].name), steps[i].kept);
  for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) assert_true(exists(foreign[i]));
  spt_checkpoint *best;
  assert_ok(spt_checkpoint_open(in_output("checkpoints/best.h5"), &best)); // though step 20's own name is gone
  assert_int_equal(spt_checkpoint_header_of(best)->step, 20);
  assert_ok(spt_checkpoint_verify(best));
  spt_checkpoint_close(&best);
  assert_ok(spt_run_folder_after_save(folder, path, false, 0)); // at least one is kept: the one just saved
  assert_true(exists("checkpoints/step-00000060.h5") && !exists("checkpoints/step-00000050.h5"));
  assert_fails(SPT_ERR_USAGE, spt_run_folder_after_save(folder, in_output("notes.txt"), false, 1), "notes.txt");
  spt_run_folder_close(&folder);
}

/* What a killed save left is removed before it can stand beside another half-written file. */
static void leftover_parts(void **unused) {
  (void)unused;
  spt_run_folder *folder;
  char path[SPT_PATH_MAX];
  assert_ok(spt_run_folder_open(output, false, &folder));
  static const char *const parts[] = {"checkpoints/step-00000007.h5.part", "checkpoints/best.h5.part"};
  static const char *const foreign[] = {"checkpoints/mine.h5.part", "checkpoints/step-7.h5.part"};
  for (int turn = 0; turn < 3; turn++) {
    for (int i = 0; i < 2; i++) spill(parts[i], "half of it");
    for (int i = 0; i < 2; i++) spill(foreign[i], "not ours");
    if (turn == 0) {
      spt_run_folder_remove_parts(folder);
    } else {
      spt_run_folder_close(&folder);
      if (turn == 2) { // without --resume, a folder with a checkpoint is left as it is
        assert_ok(spt_run_folder_open(output, true, &folder));
        save(folder, 3, path);
        spt_run_folder_close(&folder);
        spill(parts[0], "half of it");
        assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, false, &folder), "--resume");
        assert_true(exists(parts[0]));
      }
      assert_ok(spt_run_folder_open(output, turn == 2, &folder));
    }
    for (int i = 0; i < 2; i++) assert_false(exists(parts[i]));
    for (int i = 0; i < 2; i++) assert_true(exists(foreign[i]));
  }
  spt_run_folder_close(&folder);
}

static void best_by_link_or_copy(void **unused) {
  (void)unused;
  spt_run_folder *folder;
  struct stat step, best;
  char path[SPT_PATH_MAX];
  assert_ok(spt_run_folder_open(output, false, &folder));
  for (int64_t i = 1; i <= 4; i++) {
    const bool copy = i > 2;
    save(folder, i, path);
    for (int twice = 0; twice < 2; twice++) {
      if (copy) faults.link_error = i == 3 ? EPERM : EMLINK;
      assert_ok(spt_run_folder_after_save(folder, path, true, 1));
      faults_reset();
      assert_int_equal(stat(path, &step), 0);
      assert_int_equal(stat(in_output("checkpoints/best.h5"), &best), 0);
      assert_int_equal(step.st_ino != best.st_ino, copy);
      assert_false(exists("checkpoints/best.h5.part"));
      spt_checkpoint *checkpoint;
      assert_ok(spt_checkpoint_open(in_output("checkpoints/best.h5"), &checkpoint));
      assert_int_equal(spt_checkpoint_header_of(checkpoint)->step, i);
      assert_ok(spt_checkpoint_verify(checkpoint));
      spt_checkpoint_close(&checkpoint);
    }
  }
  // The best alone is enough to go on from.
  assert_int_equal(unlink(path), 0);
  assert_newest(folder, 4, NULL);
  // A copy that does not fit leaves the older best.
  save(folder, 5, path);
  faults.link_error = EPERM;
  faults.reserve_error = ENOSPC;
  assert_fails(SPT_ERR_RESOURCE, spt_run_folder_after_save(folder, path, true, 1), "best.h5", "no space left");
  faults_reset();
  assert_false(exists("checkpoints/best.h5.part"));
  assert_int_equal(unlink(path), 0);
  assert_newest(folder, 4, NULL);
  spt_run_folder_close(&folder);
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, false, &folder), "--resume"); // best.h5 is a checkpoint too
}

/* ---- what others made ---- */

static const char *outside(const char *name) {
  static char path[1024];
  snprintf(path, sizeof path, "%s/outside-%s", temp_folder, name);
  return path;
}

static void spill_outside(const char *name, const char *text) {
  assert_ok(spt_file_replace(outside(name), text, strlen(text)));
}

static void assert_outside(const char *name, const char *wanted) {
  char *text;
  size_t bytes;
  assert_ok(spt_file_read_all(outside(name), &text, &bytes));
  assert_string_equal(text, wanted);
  free(text);
}

static void assert_still(const char *name, const char *wanted) {
  char *text = slurp(name);
  assert_string_equal(text, wanted);
  free(text);
}

/* Each refusal leaves what is there as it is, and no lock. */
static void foreign_folder(void **unused) {
  (void)unused;
  spt_run_folder *folder = NULL;
  assert_ok(spt_run_folder_open(output, false, &folder));
  spt_run_folder_close(&folder);
  assert_int_equal(rmdir(in_output("checkpoints")), 0);

  assert_int_equal(mkdir(outside("folder"), 0777), 0);
  assert_int_equal(symlink(outside("folder"), in_output("checkpoints")), 0);
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &folder), "checkpoints", "a link");
  assert_int_equal(rmdir(outside("folder")), 0);                                          // empty, as before
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &folder), "checkpoints"); // now it leads nowhere
  assert_int_equal(unlink(in_output("checkpoints")), 0);

  spill_outside("lock", "precious");
  assert_int_equal(symlink(outside("lock"), in_output("lock")), 0);
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &folder), "lock", "a link");
  assert_outside("lock", "precious");
  assert_int_equal(unlink(in_output("lock")), 0);
  assert_int_equal(link(outside("lock"), in_output("lock")), 0);
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &folder), "lock", "not made by this program");
  assert_outside("lock", "precious");
  assert_int_equal(unlink(in_output("lock")), 0);
  spill("lock", "padlock");
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &folder), "lock", "not made by this program");
  assert_still("lock", "padlock");
  assert_int_equal(unlink(in_output("lock")), 0);
  assert_int_equal(mkfifo(in_output("lock"), 0666), 0);
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &folder), "lock");
  assert_int_equal(unlink(in_output("lock")), 0);

  spill("job.toml", "[run]\n# my own notes\n");
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &folder), "job.toml", "not overwritten");
  assert_still("job.toml", "[run]\n# my own notes\n");
  assert_false(exists("lock"));
  assert_int_equal(unlink(in_output("job.toml")), 0);
  spill_outside("job", "precious");
  assert_int_equal(symlink(outside("job"), in_output("job.toml")), 0);
  assert_fails(SPT_ERR_USAGE, spt_run_folder_open(output, true, &folder), "job.toml");
  assert_outside("job", "precious");
  assert_int_equal(unlink(in_output("job.toml")), 0);

  assert_int_equal(symlink(outside("job"), in_output("job.toml.part")), 0); // a trap on the way of temp + rename
  assert_ok(spt_run_folder_open(output, true, &folder));
  assert_ok(spt_run_folder_write_job(folder, "mine"));
  assert_job("mine");
  assert_outside("job", "precious");
  spt_run_folder_close(&folder);
}

/* A link in run.output's own name is its user's wish. */
static void linked_output(void **unused) {
  (void)unused;
  spt_run_folder *folder;
  char name[1100];
  assert_ok(spt_run_folder_open(output, false, &folder));
  spt_run_folder_close(&folder);
  snprintf(name, sizeof name, "%s-link", output);
  assert_int_equal(symlink(output, name), 0);
  assert_ok(spt_run_folder_open(name, false, &folder));
  assert_true(exists("lock"));
  spt_run_folder_close(&folder);
}

static void assert_room(const char *name, const char *kept_name) {
  char kept[SPT_PATH_MAX];
  assert_ok(spt_run_folder_make_room(in_output(name), kept));
  assert_string_equal(kept, kept_name ? in_output(kept_name) : "");
}

static void foreign_checkpoints(void **unused) {
  (void)unused;
  spt_run_folder *folder;
  char path[SPT_PATH_MAX];
  static const char step[] = "checkpoints/step-00000007.h5", part[] = "checkpoints/step-00000007.h5.part";
  assert_ok(spt_run_folder_open(output, false, &folder));
  assert_room(step, NULL);
  spill(step, "somebody's");
  assert_room(step, "checkpoints/step-00000007.h5.kept-1");
  assert_still("checkpoints/step-00000007.h5.kept-1", "somebody's");
  assert_int_equal(mkdir(in_output(step), 0777), 0);
  assert_room(step, "checkpoints/step-00000007.h5.kept-2");
  spill_outside("step", "precious");
  assert_int_equal(symlink(outside("step"), in_output(step)), 0);
  assert_room(step, "checkpoints/step-00000007.h5.kept-3");
  assert_outside("step", "precious");
  spill(step, ""); // a crash's
  assert_room(step, NULL);
  assert_int_equal(symlink(outside("step"), in_output(part)), 0);
  save(folder, 7, path);
  assert_outside("step", "precious");
  assert_room(step, NULL); // ours
  spill("checkpoints/best.h5", "somebody's best");
  assert_int_equal(symlink(outside("step"), in_output("checkpoints/best.h5.part")), 0);
  assert_ok(spt_run_folder_after_save(folder, path, true, 3));
  assert_still("checkpoints/best.h5.kept-1", "somebody's best");
  assert_outside("step", "precious");
  assert_newest(folder, 7, NULL);
  spt_run_folder_close(&folder);
}

int main(void) {
  seed = unit_test_seed("test_run_folder");
  if (spt_comm_self_open(&comm) != SPT_OK) return 1;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(one_run_at_a_time, fresh_output),
      cmocka_unit_test_setup(killed_run, fresh_output),
      cmocka_unit_test_setup(other_host, fresh_output),
      cmocka_unit_test_setup(ended_job, fresh_output),
      cmocka_unit_test_setup(abandoned, fresh_output),
      cmocka_unit_test_setup(starts_at_once, fresh_output),
      cmocka_unit_test_setup(no_kernel_lock, fresh_output),
      cmocka_unit_test_setup(lock_removed, fresh_output),
      cmocka_unit_test_setup(unusable_output, fresh_output),
      cmocka_unit_test_setup(foreign_folder, fresh_output),
      cmocka_unit_test_setup(linked_output, fresh_output),
      cmocka_unit_test_setup(foreign_checkpoints, fresh_output),
      cmocka_unit_test_setup(newest, fresh_output),
      cmocka_unit_test_setup(keeps_and_removes, fresh_output),
      cmocka_unit_test_setup(leftover_parts, fresh_output),
      cmocka_unit_test_setup(best_by_link_or_copy, fresh_output),
  };
  const int failed = cmocka_run_group_tests(tests, temp_folder_make, temp_folder_remove);
  comm->ops->close(&comm);
  return failed;
}
