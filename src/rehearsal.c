#include "rehearsal.h"

#include "io/metrics.h"
#include "io/run_folder.h"
#include "tools.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

typedef struct records {
  spt_metric_record *all;
  int64_t count;
} records;

/* Where a start stands, as its files tell. */
typedef struct watch {
  pid_t pid;
  const char *what; /* "the first start" */
  int64_t steps, saved;
  double moved_at; /* seconds: the last new step or save */
} watch;

static void run_path(const rehearsal *r, const char *name, char path[SPT_PATH_MAX]) {
  snprintf(path, SPT_PATH_MAX, "%s/%s", r->folder, name);
}

/* The step of a file called step-00000005.h5. */
static int64_t step_of(const char *path) {
  const char *name = strrchr(path, '/');
  long long step;
  return name && sscanf(name, "/step-%lld.h5", &step) == 1 ? step : 0;
}

static spt_status newest_checkpoint(const rehearsal *r, char path[SPT_PATH_MAX]) {
  char run[SPT_PATH_MAX], best[SPT_PATH_MAX];
  struct stat there;
  run_path(r, "run/checkpoints", run);
  path[0] = '\0';
  if (stat(run, &there) != 0) return SPT_OK; // not yet
  run_path(r, "run", run);
  return spt_run_folder_find(run, path, best);
}

static spt_status read_records(const rehearsal *r, records *records_p) {
  char path[SPT_PATH_MAX];
  struct stat there;
  *records_p = (records){0};
  run_path(r, "run/metrics.jsonl", path);
  if (stat(path, &there) != 0 || there.st_size == 0) return SPT_OK;
  return spt_metrics_read(path, &records_p->all, &records_p->count);
}

static void last_words(const rehearsal *r, char words[REHEARSAL_WORDS]) {
  char path[SPT_PATH_MAX];
  run_path(r, "log", path);
  rehearsal_last_words(path, words);
}

/* The trainer's own code where it has one of the table. */
static spt_status failed_with(const rehearsal *r, const char *what, int code) {
  char words[REHEARSAL_WORDS];
  last_words(r, words);
  return SPT_FAIL(rehearsal_status_of(code), "the rehearsal failed: %s ended with exit code %d%s", what, code, words);
}

static spt_status look(const rehearsal *r, watch *w) {
  char path[SPT_PATH_MAX];
  records now;
  SPT_TRY(newest_checkpoint(r, path));
  SPT_TRY(read_records(r, &now));
  free(now.all);
  const int64_t saved = step_of(path);
  if (now.count != w->steps || saved != w->saved) w->moved_at = spt_tool_seconds();
  w->steps = now.count;
  w->saved = saved;
  return SPT_OK;
}

static spt_status check_patience(const rehearsal *r, const watch *w) {
  if (rehearsal_interrupted) return SPT_FAIL(SPT_STOPPED, "interrupted");
  if (spt_tool_seconds() - w->moved_at < r->patience) return SPT_OK;
  char words[REHEARSAL_WORDS];
  last_words(r, words);
  return SPT_FAIL(SPT_ERR_RESOURCE, "the rehearsal failed: %s made no step for %.0f s after step %lld%s", w->what,
                  r->patience, (long long)w->steps, words);
}

/* Until there is a save and two steps more. Steps without any save end it too: a tenfold of what the first save needs,
 * and the patience on top, because the save is written beside the steps. */
static spt_status wait_for_save(const rehearsal *r, watch *w) {
  double overdue_at = 0;
  for (int code; w->saved == 0 || w->steps < w->saved + 2;) {
    const bool ended = rehearsal_ended(w->pid, &code);
    SPT_TRY(look(r, w));
    if (ended) return failed_with(r, w->what, code);
    SPT_TRY(check_patience(r, w));
    if (w->saved == 0 && w->steps >= 10 * REHEARSAL_SAVE_EVERY) {
      if (overdue_at == 0) overdue_at = spt_tool_seconds();
      if (spt_tool_seconds() - overdue_at > r->patience) {
        char words[REHEARSAL_WORDS];
        last_words(r, words);
        return SPT_FAIL(SPT_ERR_RESOURCE,
                        "the rehearsal failed: no checkpoint after %lld steps, one was due every %d%s",
                        (long long)w->steps, REHEARSAL_SAVE_EVERY, words);
      }
    }
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
  }
  return SPT_OK;
}

/* Until it ends, by itself or, guided, once it has come to r->end and is asked to stop. */
static spt_status wait_for_end(rehearsal *r, watch *w) {
  enum { ASK_AGAIN = 60 }; // seconds
  double asked = -ASK_AGAIN - 1;
  r->end_code = r->guided ? SPT_STOPPED : 0;
  for (int code;;) {
    const bool ended = rehearsal_ended(w->pid, &code);
    SPT_TRY(look(r, w));
    if (ended) return code == r->end_code ? SPT_OK : failed_with(r, w->what, code);
    SPT_TRY(check_patience(r, w));
    // not again at once: a launcher about to end hears USR1 no more, and dies of it
    if (r->guided && w->saved >= r->end && spt_tool_seconds() - asked > ASK_AGAIN) {
      kill(w->pid, SIGUSR1);
      asked = spt_tool_seconds();
    }
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
  }
}

static spt_status start(const rehearsal *r, const char *what, bool resume, int64_t steps, watch *w) {
  char job[SPT_PATH_MAX], log[SPT_PATH_MAX], set[64];
  const char *arguments[8];
  int n = 0;
  run_path(r, "job.toml", job);
  run_path(r, "log", log);
  snprintf(set, sizeof set, "schedule.steps=%lld", (long long)steps);
  if (resume) arguments[n++] = "--resume";
  arguments[n++] = "--set";
  arguments[n++] = set;
  arguments[n++] = job;
  arguments[n] = NULL;
  *w = (watch){.what = what, .moved_at = spt_tool_seconds()};
  return rehearsal_launch(&r->launcher, r->ranks, r->trainer, arguments, log, &w->pid);
}

static int ascending(const void *left, const void *right) {
  const double a = *(const double *)left, b = *(const double *)right;
  return (a > b) - (a < b);
}

static spt_status median_step(rehearsal *r, const records *all) {
  double *seconds = malloc((size_t)all->count * sizeof *seconds);
  if (!seconds) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for %lld steps", (long long)all->count);
  for (int64_t i = 0; i < all->count; i++) seconds[i] = all->all[i].step_seconds;
  qsort(seconds, (size_t)all->count, sizeof *seconds, ascending);
  r->seconds_per_step = seconds[all->count / 2];
  free(seconds);
  return SPT_OK;
}

/* A record that the resume kept is the same to the last digit of its times; one that was made again is not. */
static bool same_record(const spt_metric_record *a, const spt_metric_record *b) {
  return a->step_seconds == b->step_seconds && a->tokens_per_second == b->tokens_per_second && a->loss == b->loss;
}

/* Each step once, those up to the checkpoint kept, those after it made again with the same losses. */
static spt_status compare_records(rehearsal *r, const records *before, const records *after) {
  if (after->count != r->end)
    return SPT_FAIL(SPT_ERR_RESOURCE, "the rehearsal failed: metrics.jsonl holds %lld steps instead of %lld",
                    (long long)after->count, (long long)r->end);
  for (int64_t i = 0; i < after->count; i++)
    if (after->all[i].step != i + 1)
      return SPT_FAIL(SPT_ERR_RESOURCE, "the rehearsal failed: line %lld of metrics.jsonl is of step %lld",
                      (long long)i + 1, (long long)after->all[i].step);
  int64_t kept = 0;
  while (kept < before->count && kept < after->count && same_record(&before->all[kept], &after->all[kept])) kept++;
  if (kept != r->saved)
    return SPT_FAIL(SPT_ERR_RESOURCE,
                    "the rehearsal failed: the newest checkpoint is of step %lld, but the resumed run began with "
                    "step %lld",
                    (long long)r->saved, (long long)kept + 1);
  for (int64_t i = kept; i < before->count && i < after->count; i++) {
    if (before->all[i].loss != after->all[i].loss)
      return SPT_FAIL(SPT_ERR_RESOURCE,
                      "the rehearsal failed: the loss of step %lld was %.17g before the kill and is %.17g after it",
                      (long long)i + 1, before->all[i].loss, after->all[i].loss);
    r->repeated++;
  }
  return median_step(r, after);
}

static spt_status check_last_checkpoint(rehearsal *r) {
  char path[SPT_PATH_MAX];
  struct stat file;
  spt_checkpoint *checkpoint = NULL;
  SPT_TRY(newest_checkpoint(r, path));
  if (step_of(path) != r->end || stat(path, &file) != 0)
    return SPT_FAIL(SPT_ERR_RESOURCE, "the rehearsal failed: no checkpoint of the last step, %lld", (long long)r->end);
  r->checkpoint_bytes = file.st_size;
  SPT_TRY(spt_checkpoint_open(path, &checkpoint));
  const spt_status status = spt_checkpoint_verify(checkpoint);
  spt_checkpoint_close(&checkpoint);
  return status;
}

enum { MANY_STEPS = 1000000 }; // more than a fast machine makes before it is seen that it saved

static spt_status resume(rehearsal *r, const records *before) {
  watch w;
  records after = {0};
  r->end = r->saved + REHEARSAL_SAVE_EVERY > REHEARSAL_STEPS ? r->saved + REHEARSAL_SAVE_EVERY : REHEARSAL_STEPS;
  SPT_TRY(start(r, "the resumed run", true, r->guided ? MANY_STEPS : r->end, &w));
  SPT_TRY(wait_for_end(r, &w));
  spt_status status = read_records(r, &after);
  if (r->guided && after.count > r->end) r->end = after.count; // it was stopped somewhat later
  if (status == SPT_OK) status = compare_records(r, before, &after);
  free(after.all);
  SPT_TRY(status);
  return check_last_checkpoint(r);
}

static spt_status start_and_kill(rehearsal *r, records *before_p) {
  char path[SPT_PATH_MAX];
  watch w;
  SPT_TRY(start(r, "the first start", false, MANY_STEPS, &w));
  SPT_TRY(wait_for_save(r, &w));
  rehearsal_kill_all();
  SPT_TRY(newest_checkpoint(r, path));
  SPT_TRY(read_records(r, before_p));
  r->saved = step_of(path);
  r->killed_after = before_p->count;
  return SPT_OK;
}

spt_status rehearsal_run(rehearsal *r) {
  records before = {0};
  spt_status status = start_and_kill(r, &before);
  if (status == SPT_OK) status = resume(r, &before);
  free(before.all);
  rehearsal_kill_all(); // whatever happened
  return status;
}
