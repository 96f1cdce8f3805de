#include "run_folder.h"

#include "checkpoint_internal.h"
#include "durable_file.h"
#include "run_lock.h"
#include "step_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FOLDER_MAX = SPT_PATH_MAX - 48 }; // room for "/checkpoints/step-….h5.part"

struct spt_run_folder {
  char output[FOLDER_MAX];
  spt_run_lock *lock;
};

/* ---- listing ---- */

typedef struct listing {
  int64_t *steps; /* descending */
  size_t count;
  bool best;
} listing;

static void checkpoints_folder(const char *output, char path[SPT_PATH_MAX]) {
  snprintf(path, SPT_PATH_MAX, "%s/checkpoints", output);
}

static void step_path(const char *output, int64_t step, char path[SPT_PATH_MAX]) {
  char folder[SPT_PATH_MAX];
  checkpoints_folder(output, folder);
  spt_step_file_path(folder, step, ".h5", path);
}

static spt_status list(const char *output, listing *listing_p) {
  char folder[SPT_PATH_MAX], best[SPT_PATH_MAX];
  struct stat info;
  *listing_p = (listing){0};
  checkpoints_folder(output, folder);
  snprintf(best, sizeof best, "%s/checkpoints/best.h5", output);
  SPT_TRY(spt_step_files_list(folder, ".h5", &listing_p->steps, &listing_p->count));
  int64_t *steps = listing_p->steps;
  for (size_t i = 0, j = listing_p->count; i + 1 < j; i++) {
    const int64_t step = steps[i];
    steps[i] = steps[--j];
    steps[j] = step;
  }
  listing_p->best = lstat(best, &info) == 0;
  return SPT_OK;
}

/* What this program leaves of killed and failed saves. A folder that cannot be read will be told of by what needs it. */
static void remove_parts(const char *output) {
  char path[SPT_PATH_MAX];
  checkpoints_folder(output, path);
  DIR *entries = opendir(path);
  if (!entries) return;
  for (struct dirent *entry; (entry = readdir(entries));) {
    const size_t length = strlen(entry->d_name);
    char name[64];
    int64_t step;
    if (length <= 5 || length >= sizeof name || strcmp(entry->d_name + length - 5, ".part") != 0) continue;
    snprintf(name, sizeof name, "%.*s", (int)(length - 5), entry->d_name);
    if (strcmp(name, "best.h5") == 0 || spt_step_file_parse(name, ".h5", &step)) unlinkat(dirfd(entries), entry->d_name, 0);
  }
  closedir(entries);
}

void spt_run_folder_remove_parts(const spt_run_folder *folder) {
  remove_parts(folder->output);
}

/* ---- open, close ---- */

static spt_status make_folders(const char *path) {
  char prefix[SPT_PATH_MAX];
  snprintf(prefix, sizeof prefix, "%s", path);
  for (char *at = prefix + 1;; at++) {
    if (*at != '/' && *at != '\0') continue;
    const char end = *at;
    *at = '\0';
    if (mkdir(prefix, 0777) != 0 && errno != EEXIST)
      return SPT_FAIL(SPT_ERR_USAGE, "%s: cannot be created: %s; choose another run.output", prefix, strerror(errno));
    if (end == '\0') return SPT_OK;
    *at = end;
  }
}

static spt_status refuse_checkpoints(const char *output) {
  listing found;
  spt_status status = list(output, &found);
  if (status == SPT_OK && (found.count > 0 || found.best))
    status = SPT_FAIL(
        SPT_ERR_USAGE,
        "%s: holds checkpoints of an earlier run; add --resume to go on with it, or choose another run.output", output);
  free(found.steps);
  return status;
}

/* Its first line tells our job.toml from one that somebody wrote and keeps there. */
static const char job_mark[] = "# The job as run, written by spectron-dist at every start: edit a copy.\n";

static spt_status refuse_foreign_job(const char *path) {
  char begin[sizeof job_mark - 1];
  struct stat info;
  if (lstat(path, &info) != 0) return SPT_OK;
  const int fd = S_ISREG(info.st_mode) ? open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC) : -1;
  const ssize_t bytes = fd < 0 ? -1 : pread(fd, begin, sizeof begin, 0);
  if (fd >= 0) close(fd);
  if (bytes == (ssize_t)sizeof begin && memcmp(begin, job_mark, sizeof begin) == 0) return SPT_OK;
  return SPT_FAIL(SPT_ERR_USAGE,
                  "%s: was not written by this program and is not overwritten; move it away or choose another "
                  "run.output",
                  path);
}

static spt_status open_folder(spt_run_folder *folder, bool resume) {
  char path[SPT_PATH_MAX];
  checkpoints_folder(folder->output, path);
  SPT_TRY(make_folders(path));
  struct stat info; // run.output itself may be a link, as its user named it; nothing in it leads out of it
  if (lstat(path, &info) != 0 || !S_ISDIR(info.st_mode))
    return SPT_FAIL(SPT_ERR_USAGE, "%s: is %s; choose another run.output", path,
                    S_ISLNK(info.st_mode) ? "a link, and nothing is written outside of run.output" : "not a folder");
  snprintf(path, sizeof path, "%s/lock", folder->output);
  SPT_TRY(spt_run_lock_take(path, &folder->lock));
  snprintf(path, sizeof path, "%s/job.toml", folder->output);
  SPT_TRY(refuse_foreign_job(path)); // now, not when it is to be written
  if (!resume) SPT_TRY(refuse_checkpoints(folder->output));
  remove_parts(folder->output);
  return SPT_OK;
}

spt_status spt_run_folder_open(const char *output, bool resume, spt_run_folder **folder_p) {
  size_t length = strlen(output);
  while (length > 1 && output[length - 1] == '/') length--;
  if (length == 0 || length >= FOLDER_MAX)
    return SPT_FAIL(SPT_ERR_USAGE, "run.output: '%s' is empty or longer than %d bytes", output, FOLDER_MAX - 1);
  spt_run_folder *folder = calloc(1, sizeof *folder);
  if (!folder) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", output);
  memcpy(folder->output, output, length);
  const spt_status status = open_folder(folder, resume);
  if (status != SPT_OK) {
    spt_run_folder_close(&folder);
    return status;
  }
  *folder_p = folder;
  return SPT_OK;
}

void spt_run_folder_close(spt_run_folder **folder_p) {
  spt_run_folder *folder = *folder_p;
  if (!folder) return;
  *folder_p = NULL; // first: a signal handler may look
  spt_run_lock_release(&folder->lock);
  free(folder);
}

void spt_run_folder_abandon(const spt_run_folder *folder) {
  if (folder) spt_run_lock_abandon(folder->lock);
}

spt_status spt_run_folder_check(spt_run_folder *folder) {
  return spt_run_lock_check(folder->lock);
}

spt_status spt_run_folder_write_job(spt_run_folder *folder, const char *text) {
  char path[SPT_PATH_MAX];
  snprintf(path, sizeof path, "%s/job.toml", folder->output);
  SPT_TRY(refuse_foreign_job(path));
  char *marked = NULL;
  const int bytes = asprintf(&marked, "%s%s", job_mark, text);
  if (bytes < 0) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", path);
  const spt_status status = spt_file_replace(path, marked, (size_t)bytes);
  free(marked);
  return status;
}

void spt_run_folder_checkpoint_path(const spt_run_folder *folder, int64_t step, char path[SPT_PATH_MAX]) {
  step_path(folder->output, step, path);
}

/* ---- checkpoints ---- */

spt_status spt_run_folder_find(const char *output, char newest[SPT_PATH_MAX], char best[SPT_PATH_MAX]) {
  listing found;
  const spt_status status = list(output, &found);
  newest[0] = best[0] = '\0';
  if (status == SPT_OK && found.count > 0) step_path(output, found.steps[0], newest);
  if (status == SPT_OK && found.best) snprintf(best, SPT_PATH_MAX, "%s/checkpoints/best.h5", output);
  free(found.steps);
  return status;
}

/* step < 0: any. */
static spt_status open_intact(const char *path, int64_t step, spt_checkpoint **checkpoint_p) {
  spt_checkpoint *checkpoint = NULL;
  spt_status status = spt_checkpoint_open(path, &checkpoint);
  if (status == SPT_OK && step >= 0 && spt_checkpoint_header_of(checkpoint)->step != step)
    status = SPT_FAIL(SPT_ERR_DATA, "%s: holds step %lld: it was renamed or exchanged", path,
                      (long long)spt_checkpoint_header_of(checkpoint)->step);
  if (status == SPT_OK) status = spt_checkpoint_verify(checkpoint);
  if (status == SPT_OK)
    *checkpoint_p = checkpoint;
  else
    spt_checkpoint_close(&checkpoint);
  return status;
}

static void add_warning(char *warning, size_t size, const char *text) {
  if (!warning || size == 0) return;
  const size_t used = strlen(warning);
  snprintf(warning + used, size - used, "%sskipped %s", used ? "\n" : "", text);
}

spt_status spt_run_folder_newest(const spt_run_folder *folder, spt_checkpoint **checkpoint_p, char *warning,
                                 size_t warning_size) {
  listing found;
  *checkpoint_p = NULL;
  if (warning && warning_size > 0) warning[0] = '\0';
  spt_status status = list(folder->output, &found);
  const size_t candidates = found.count + found.best;
  for (size_t i = 0; status == SPT_OK && !*checkpoint_p && i < candidates; i++) {
    char path[SPT_PATH_MAX];
    const int64_t step = i < found.count ? found.steps[i] : -1; // the best last: a step file is as new or newer
    if (step >= 0)
      step_path(folder->output, step, path);
    else
      snprintf(path, sizeof path, "%s/checkpoints/best.h5", folder->output);
    const spt_status opened = open_intact(path, step, checkpoint_p);
    if (opened == SPT_ERR_DATA)
      add_warning(warning, warning_size, spt_error_message());
    else
      status = opened;
  }
  if (status == SPT_OK && !*checkpoint_p && candidates > 0)
    status =
        SPT_FAIL(SPT_ERR_DATA, "%s/checkpoints: none of %zu checkpoint files is intact; remove them to start afresh",
                 folder->output, candidates);
  free(found.steps);
  return status;
}

/* A regular file that begins like a checkpoint, or that a crash left empty. */
static bool is_ours(const char *path) {
  unsigned char head[8];
  struct stat info;
  if (lstat(path, &info) != 0 || !S_ISREG(info.st_mode)) return false;
  if (info.st_size == 0) return true;
  const int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return false;
  const bool ours = pread(fd, head, sizeof head, 0) == (ssize_t)sizeof head && spt_seal_has_magic(head);
  close(fd);
  return ours;
}

spt_status spt_run_folder_make_room(const char *path, char kept[SPT_PATH_MAX]) {
  struct stat info;
  kept[0] = '\0';
  if (lstat(path, &info) != 0 || is_ours(path)) return SPT_OK;
  if (spt_file_set_aside(path, kept, SPT_PATH_MAX)) return SPT_OK;
  return SPT_FAIL(SPT_ERR_RESOURCE, "%s: is no checkpoint of this program and cannot be moved aside; move it away",
                  path);
}

static spt_status replace_best(const spt_run_folder *folder, const char *path) {
  char best[SPT_PATH_MAX], part[SPT_PATH_MAX], kept[SPT_PATH_MAX];
  snprintf(best, sizeof best, "%s/checkpoints/best.h5", folder->output);
  snprintf(part, sizeof part, "%s/checkpoints/best.h5.part", folder->output);
  SPT_TRY(spt_run_folder_make_room(best, kept));
  unlink(part);
  if (link(path, part) != 0) return spt_file_copy(path, best); // no hard links here
  if (rename(part, best) != 0) { // does nothing when both are the same file already; remove_parts takes the rest away
    const int error = errno;
    unlink(part);
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: renaming failed: %s", best, strerror(error));
  }
  return spt_file_sync_folder(best);
}

/* Whether the file at `path` is intact and its run's best loss so far was `best`. */
static bool has_best(const char *path, int64_t step, double best) {
  spt_checkpoint *checkpoint = NULL;
  const bool same = open_intact(path, step, &checkpoint) == SPT_OK &&
                    spt_checkpoint_header_of(checkpoint)->best_validation_loss == best;
  spt_checkpoint_close(&checkpoint);
  return same;
}

spt_status spt_run_folder_repair_best(spt_run_folder *folder, double best) {
  char path[SPT_PATH_MAX];
  snprintf(path, sizeof path, "%s/checkpoints/best.h5", folder->output);
  if (isnan(best) || has_best(path, -1, best)) return SPT_OK;
  listing found;
  spt_status status = list(folder->output, &found);
  bool repaired = false;
  for (size_t i = found.count; status == SPT_OK && !repaired && i-- > 0;) {
    step_path(folder->output, found.steps[i], path);
    repaired = has_best(path, found.steps[i], best);
    if (repaired) status = replace_best(folder, path);
  }
  free(found.steps);
  return status;
}

/* Removes what this program wrote under this name. */
static spt_status remove_ours(const char *path) {
  if (is_ours(path) && unlink(path) != 0 && errno != ENOENT)
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: removing an old checkpoint failed: %s", path, strerror(errno));
  return SPT_OK;
}

spt_status spt_run_folder_after_save(spt_run_folder *folder, const char *path, bool best, int64_t keep) {
  const char *name = strrchr(path, '/');
  int64_t saved;
  if (!spt_step_file_parse(name ? name + 1 : path, ".h5", &saved))
    return SPT_FAIL(SPT_ERR_USAGE, "%s: not a checkpoint of %s", path, folder->output);
  SPT_TRY(spt_run_lock_check(folder->lock)); // another run's files are not ours to link or remove
  if (best) SPT_TRY(replace_best(folder, path));
  listing found;
  spt_status status = list(folder->output, &found);
  int64_t kept = 0;
  for (size_t i = 0; status == SPT_OK && i < found.count; i++) {
    // Files of later steps are another time line's (a resume from an older checkpoint): neither counted nor touched.
    if (found.steps[i] > saved || kept++ < (keep < 1 ? 1 : keep)) continue;
    char old[SPT_PATH_MAX];
    step_path(folder->output, found.steps[i], old);
    status = remove_ours(old);
  }
  free(found.steps);
  remove_parts(folder->output);
  return status;
}
