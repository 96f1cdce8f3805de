/* What a run's folder says of a step: how it was computed, what its loss was, and which checkpoint it can be computed again from. */
#include "tool_replay.h"

#include "core/schedule.h"
#include "io/checkpoint.h"
#include "io/durable_file.h"
#include "io/job_toml.h"
#include "io/post_mortem.h"
#include "io/step_files.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { RANKS_MAX = 65536, THREADS_MAX = 4096 };

/* ---- records ---- */

/* Records from `records` on go to the end of the plan's, in place of those of the same steps or later ones. */
static spt_status take_records(replay_plan *plan, const json_t *records) {
  size_t i;
  const json_t *value;
  json_array_foreach(records, i, value) {
    char *line = json_dumps(value, JSON_COMPACT);
    spt_metric_record record, *more;
    const bool fine = line && spt_metrics_parse_line(line, strlen(line), &record);
    free(line);
    if (!fine) return SPT_FAIL(SPT_ERR_DATA, "replay: the post-mortem of step %lld: its record %zu is none", (long long)plan->step, i);
    while (plan->count > 0 && plan->recorded[plan->count - 1].step >= record.step) plan->count--;
    more = realloc(plan->recorded, (size_t)(plan->count + 1) * sizeof *more);
    if (!more) return SPT_FAIL(SPT_ERR_RESOURCE, "replay: out of memory for records");
    plan->recorded = more;
    plan->recorded[plan->count++] = record;
  }
  return SPT_OK;
}

static void take_text(const json_t *from, const char *key, char text[16]) {
  const char *value = json_string_value(json_object_get(from, key));
  snprintf(text, 16, "%s", value ? value : "");
}

static spt_status take_post_mortem(replay_plan *plan, const char *path) {
  char *text;
  size_t size;
  SPT_TRY(spt_file_read_all(path, &text, &size));
  json_t *all = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);
  free(text);
  const char *format = json_string_value(json_object_get(all, "format")), *job = json_string_value(json_object_get(all, "job"));
  spt_status status = SPT_OK;
  if (!format || !job || strcmp(format, SPT_POST_MORTEM_FORMAT) != 0)
    status = SPT_FAIL(SPT_ERR_DATA, "replay: %s: no post-mortem of this program; move it away to do without", path);
  if (status == SPT_OK) status = take_records(plan, json_object_get(all, "records"));
  if (status == SPT_OK && (plan->count == 0 || plan->recorded[plan->count - 1].step != plan->step))
    status = SPT_FAIL(SPT_ERR_DATA, "replay: %s: its records do not end with step %lld; move it away to do without", path, (long long)plan->step);
  if (status == SPT_OK) {
    const json_t *machine = json_object_get(all, "machine");
    take_text(machine, "backend", plan->backend);
    plan->post_mortem = true;
    plan->job = strdup(job);
    if (!plan->job) status = SPT_FAIL(SPT_ERR_RESOURCE, "replay: out of memory for the job");
  }
  json_decref(all);
  return status;
}

static spt_status find_records(replay_plan *plan) {
  char path[SPT_PATH_MAX];
  struct stat there;
  snprintf(path, sizeof path, "%s/metrics.jsonl", plan->run);
  if (stat(path, &there) != 0)
    return SPT_FAIL(SPT_ERR_USAGE, "replay: %s: %s; give a run's folder, [run] output", path, strerror(errno));
  SPT_TRY(spt_metrics_read(path, &plan->recorded, &plan->count));
  for (int64_t i = 1; i < plan->count; i++)
    if (plan->recorded[i].step <= plan->recorded[i - 1].step)
      return SPT_FAIL(SPT_ERR_DATA, "replay: %s: step %lld stands after step %lld", path, (long long)plan->recorded[i].step, (long long)plan->recorded[i - 1].step);
  const int64_t newest = plan->count > 0 ? plan->recorded[plan->count - 1].step : 0;
  spt_post_mortem_path(plan->run, plan->step, path);
  if (stat(path, &there) == 0) return take_post_mortem(plan, path);
  if (plan->step > newest)
    return SPT_FAIL(SPT_ERR_USAGE, "replay: --step %lld: %s has recorded steps up to %lld", (long long)plan->step, plan->run, (long long)newest);
  while (plan->count > 0 && plan->recorded[plan->count - 1].step > plan->step) plan->count--;
  return SPT_OK;
}

/* ---- the checkpoint ---- */

typedef struct candidate {
  int64_t step;
  char path[SPT_PATH_MAX];
} candidate;

typedef struct candidates {
  candidate *all;
  size_t count;
} candidates;

static spt_status add(candidates *list, int64_t step, const char *path) {
  candidate *all = realloc(list->all, (list->count + 1) * sizeof *all);
  if (!all) return SPT_FAIL(SPT_ERR_RESOURCE, "replay: out of memory for the list of checkpoints");
  list->all = all;
  all[list->count].step = step;
  snprintf(all[list->count++].path, SPT_PATH_MAX, "%s", path);
  return SPT_OK;
}

static spt_status add_folder(const char *run, const char *name, candidates *list) {
  char folder[SPT_PATH_MAX], path[SPT_PATH_MAX];
  int64_t *steps;
  size_t count;
  snprintf(folder, sizeof folder, "%s/%s", run, name);
  SPT_TRY(spt_step_files_list(folder, ".h5", &steps, &count));
  spt_status status = SPT_OK;
  for (size_t i = 0; status == SPT_OK && i < count; i++) {
    spt_step_file_path(folder, steps[i], ".h5", path);
    status = add(list, steps[i], path);
  }
  free(steps);
  return status;
}

static spt_status add_best(const char *run, candidates *list) {
  char path[SPT_PATH_MAX];
  struct stat there;
  spt_checkpoint *checkpoint = NULL;
  snprintf(path, sizeof path, "%s/checkpoints/best.h5", run);
  if (stat(path, &there) != 0 || spt_checkpoint_open(path, &checkpoint) != SPT_OK) return SPT_OK; // no candidate then
  const int64_t step = spt_checkpoint_header_of(checkpoint)->step;
  spt_checkpoint_close(&checkpoint);
  return add(list, step, path);
}

static int newest_first(const void *left, const void *right) {
  const candidate *a = left, *b = right;
  return (a->step < b->step) - (a->step > b->step);
}

/* Opens it and checks it whole; its job goes to *job_p. */
static bool is_intact(const candidate *one, char **job_p) {
  spt_checkpoint *checkpoint = NULL;
  const bool intact = spt_checkpoint_open(one->path, &checkpoint) == SPT_OK &&
                      spt_checkpoint_header_of(checkpoint)->step == one->step && spt_checkpoint_verify(checkpoint) == SPT_OK;
  if (intact) *job_p = strdup(spt_checkpoint_job(checkpoint));
  spt_checkpoint_close(&checkpoint);
  return intact;
}

static spt_status refuse(const replay_plan *plan, const candidates *list) {
  const char *remedy = "[checkpoint] every and keep set what a run keeps, and --from 0 computes from the start";
  const int64_t oldest = list->count > 0 ? list->all[list->count - 1].step : -1;
  if (plan->from > 0)
    return SPT_FAIL(SPT_ERR_USAGE, "replay: --from %lld: %s has no intact checkpoint of that step", (long long)plan->from, plan->run);
  if (oldest < 0 || oldest < plan->step)
    return SPT_FAIL(SPT_ERR_USAGE, "replay: %s has no intact checkpoint before step %lld: %s", plan->run, (long long)plan->step, remedy);
  return SPT_FAIL(SPT_ERR_USAGE, "replay: %s has no checkpoint before step %lld: the oldest is of step %lld, so that steps from %lld on can be replayed; %s",
                  plan->run, (long long)plan->step, (long long)oldest, (long long)oldest + 1, remedy);
}

/* *job_p: of the checkpoint; NULL: from the start. */
static spt_status find_checkpoint(replay_plan *plan, char **job_p) {
  candidates list = {0};
  spt_status status = SPT_OK;
  bool found = plan->from == 0;
  char passed_over[512] = ""; // why the newest that might do does not
  if (found) return SPT_OK;
  SPT_TRY_GOTO(add_folder(plan->run, "checkpoints", &list), done);
  SPT_TRY_GOTO(add_folder(plan->run, "post-mortem", &list), done);
  SPT_TRY_GOTO(add_best(plan->run, &list), done);
  if (list.count > 1) qsort(list.all, list.count, sizeof *list.all, newest_first);
  for (size_t i = 0; !found && i < list.count; i++) {
    const candidate *one = &list.all[i];
    if (one->step >= plan->step || (plan->from > 0 && one->step != plan->from)) continue;
    found = is_intact(one, job_p);
    if (!found && !passed_over[0]) snprintf(passed_over, sizeof passed_over, "%s", spt_error_message());
    if (!found) continue;
    plan->from = one->step;
    snprintf(plan->checkpoint, sizeof plan->checkpoint, "%s", one->path);
  }
  if (!found) status = passed_over[0] ? SPT_FAIL(SPT_ERR_DATA, "replay: no checkpoint before step %lld serves; the newest: %s", (long long)plan->step, passed_over) : refuse(plan, &list);
done:
  free(list.all);
  return status;
}

/* ---- the job ---- */

/* Whether the job's learning rate of the step is the recorded one: steps, for one, may change between two starts of a run. */
static bool has_rate(const replay_plan *plan, const char *job) {
  static spt_config config; // large
  if (!job || plan->count == 0 || spt_job_parse(job, "the run's job", ".", NULL, 0, &config) != SPT_OK) return false;
  const spt_metric_record *last = &plan->recorded[plan->count - 1];
  return spt_schedule_factor(&config.schedule, last->step - 1) * config.optimizer.lr == last->lr;
}

/* Without a post-mortem: the folder's job, which is that of the run's last start, or the checkpoint's. Takes checkpoint_job. */
static spt_status find_job(replay_plan *plan, char *checkpoint_job) {
  char path[SPT_PATH_MAX];
  size_t size;
  snprintf(path, sizeof path, "%s/job.toml", plan->run);
  spt_status status = SPT_OK;
  if (!plan->job && spt_file_read_all(path, &plan->job, &size) != SPT_OK) { // the checkpoint's, where there is one
    if (checkpoint_job) {
      plan->job = checkpoint_job;
      return SPT_OK;
    }
    status = SPT_FAIL(SPT_ERR_DATA, "replay: %s cannot be read, and there is no checkpoint to take the job from", path);
  }
  if (status == SPT_OK && !plan->post_mortem && !has_rate(plan, plan->job) && has_rate(plan, checkpoint_job)) {
    free(plan->job);
    plan->job = checkpoint_job;
    return SPT_OK;
  }
  free(checkpoint_job);
  return status;
}

/* ---- the whole ---- */

/* Only steps that are computed again; how they were computed, all alike. */
static spt_status settle(replay_plan *plan) {
  int64_t first = 0;
  while (first < plan->count && plan->recorded[first].step <= plan->from) first++;
  plan->count -= first;
  if (plan->count > 0) memmove(plan->recorded, plan->recorded + first, (size_t)plan->count * sizeof *plan->recorded);
  if (plan->count == 0)
    return SPT_FAIL(SPT_ERR_USAGE, "replay: %s has recorded no step from %lld to %lld to compare with ([metrics] every); take a recorded step", plan->run,
                    (long long)plan->from + 1, (long long)plan->step);
  const spt_metric_record *last = &plan->recorded[plan->count - 1];
  if (last->ranks < 1)
    return SPT_FAIL(SPT_ERR_USAGE, "replay: %s/metrics.jsonl does not say how many ranks computed step %lld: an earlier version wrote it", plan->run,
                    (long long)last->step);
  if (last->ranks > RANKS_MAX || last->threads < 1 || last->threads > THREADS_MAX || last->micro < 1)
    return SPT_FAIL(SPT_ERR_DATA, "replay: step %lld of %s: ranks = %lld, threads = %lld, micro = %lld: no such run", (long long)last->step, plan->run,
                    (long long)last->ranks, (long long)last->threads, (long long)last->micro);
  plan->ranks = last->ranks;
  plan->micro = last->micro;
  plan->threads = last->threads;
  if (last->reduction > 0) plan->reduction = spt_metric_reductions[last->reduction - 1];
  if (last->precision > 0) plan->precision = spt_metric_precisions[last->precision - 1];
  static spt_config config; // large
  const bool parsed = spt_job_parse(plan->job, "the run's job", ".", NULL, 0, &config) == SPT_OK;
  const int64_t sequences = config.batch.sequences;
  if (parsed && (last->micro > sequences || sequences % last->micro != 0 || sequences / last->micro % last->ranks != 0))
    return SPT_FAIL(SPT_ERR_DATA, "replay: step %lld of %s: %lld ranks with a micro-batch of %lld do not divide the job's %lld sequences: no such run",
                    (long long)last->step, plan->run, (long long)last->ranks, (long long)last->micro, (long long)sequences);
  for (int64_t i = 0; i < plan->count; i++) {
    const spt_metric_record *one = &plan->recorded[i];
    if (one->ranks != last->ranks || one->micro != last->micro)
      return SPT_FAIL(SPT_ERR_USAGE,
                      "replay: step %lld was computed on %lld ranks, micro-batch %lld, step %lld on %lld, %lld: choose a later checkpoint with --from",
                      (long long)one->step, (long long)one->ranks, (long long)one->micro, (long long)last->step, (long long)last->ranks,
                      (long long)last->micro);
    if (one->reduction != last->reduction || one->precision != last->precision)
      return SPT_FAIL(SPT_ERR_USAGE, "replay: step %lld was computed with another [dist] reduction or [device] precision than step %lld: choose a later checkpoint with --from",
                      (long long)one->step, (long long)last->step);
  }
  return SPT_OK;
}

spt_status replay_plan_find(replay_plan *plan) {
  char *job = NULL;
  SPT_TRY(find_records(plan));
  SPT_TRY(find_checkpoint(plan, &job));
  SPT_TRY(find_job(plan, job));
  return settle(plan);
}

void replay_plan_fini(replay_plan *plan) {
  free(plan->recorded);
  free(plan->job);
}
