/* Loss spikes, and the post-mortem that a spike or a skipped step leaves: what the step was, what it was made of, and the steps before. */
#include "trainer.h"

#include "io/post_mortem.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Keeps a record, its matrices copied: those given are borrowed. Without memory for them, without them. */
static void keep(trainer_watch *watch, int64_t index, const spt_metric_record *record) {
  spt_metric_record *slot = &watch->last[index % TRAINER_WATCHED];
  const size_t bytes = (size_t)record->matrix_count * sizeof *record->matrices;
  spt_metric_matrix *own = bytes > 0 ? realloc(slot->matrices, bytes) : NULL, *before = slot->matrices;
  *slot = *record;
  slot->matrices = own ? own : before; // for the next time
  if (own)
    memcpy(own, record->matrices, bytes);
  else
    slot->matrix_count = 0;
}

void trainer_watch_close(trainer *t) {
  for (int i = 0; i < TRAINER_WATCHED; i++) free(t->watch.last[i].matrices);
}

void trainer_watch_open(trainer *t) {
  trainer_watch *watch = &t->watch;
  int64_t count;
  const spt_metric_record *records = spt_metrics_records(t->metrics, &count);
  *watch = (trainer_watch){.z = NAN};
  if (spt_post_mortem_set_aside(t->config.run.output, t->step) != SPT_OK) trainer_progress_warning("%s; training goes on", spt_error_message());
  for (int64_t i = 0; i < count; i++) {
    spt_spikes_add(&watch->spikes, records[i].loss);
    keep(watch, watch->count++, &records[i]);
  }
  if (count == 0) return;
  const spt_metric_record *last = &records[count - 1]; // steps in a spike are all recorded
  const double threshold = t->config.metrics.spike_z;
  watch->spikes.count = last->spikes;
  watch->spikes.inside = threshold > 0 && last->step == t->step && last->loss_z >= threshold;
}

void trainer_watch_judge(trainer *t, const trainer_step *step) {
  trainer_watch *watch = &t->watch;
  const double threshold = t->config.metrics.spike_z;
  watch->z = threshold > 0 ? spt_spikes_z(&watch->spikes, step->loss) : (double)NAN;
  watch->begins = threshold > 0 && spt_spikes_judge(&watch->spikes, watch->z, threshold);
  watch->notable = watch->spikes.inside || !step->applied;
}

/* ---- the post-mortem ---- */

int trainer_precision(const trainer *t) {
  return t->backend->act == SPT_BF16 ? 1 : t->config.device.precision == SPT_PRECISION_TF32 ? 2 : 0;
}

/* Which windows of which shards the global batch was, and who trained them. */
static json_t *list_samples(const trainer *t, int64_t number) {
  const spt_config *config = &t->config;
  const int64_t sequences = config->batch.sequences, windows = spt_token_stream_windows(t->train, config->model.seq_len);
  json_t *samples = json_array();
  for (int64_t i = 0; samples && i < sequences; i++) {
    int64_t offset;
    const int64_t window = spt_sample_window(config->data.seed, windows, sequences, number - 1, i);
    const spt_token_file *file = spt_token_stream_locate(t->train, window * config->model.seq_len, &offset);
    json_t *sample = json_pack("{s:I, s:I, s:I, s:I, s:s, s:I}", "index", (json_int_t)i, "rank", (json_int_t)(i / (sequences / t->comm->size)),
                               "window", (json_int_t)window, "epoch", (json_int_t)(((number - 1) * sequences + i) / windows), "file",
                               spt_token_file_path(file), "offset", (json_int_t)offset);
    if (json_array_append_new(samples, sample) != 0) { // takes it, NULL included
      json_decref(samples);
      return NULL;
    }
  }
  return samples;
}

/* The last steps' records, the oldest first. */
static json_t *list_records(const trainer_watch *watch) {
  json_t *records = json_array();
  const int64_t first = watch->count > TRAINER_WATCHED ? watch->count - TRAINER_WATCHED : 0;
  for (int64_t i = first; records && i < watch->count; i++) {
    char *line = spt_metrics_line(&watch->last[i % TRAINER_WATCHED]);
    json_t *record = line ? json_loads(line, 0, NULL) : NULL;
    free(line);
    if (json_array_append_new(records, record) != 0) {
      json_decref(records);
      return NULL;
    }
  }
  return records;
}

static json_t *describe_machine(const trainer *t) {
  const spt_backend *backend = t->backend;
  return json_pack("{s:i, s:i, s:I, s:s, s:s, s:s, s:s}", "ranks", t->comm->size, "threads", backend->threads, "micro",
                   (json_int_t)t->config.batch.micro, "reduction", spt_metric_reductions[t->config.dist.reduction], "backend",
                   backend->host_memory ? "cpu" : "cuda", "precision", spt_metric_precisions[trainer_precision(t)], "description", backend->description);
}

/* The whole as text; malloc'ed, NULL: out of memory. checkpoint: of a step, kept for the replay, −1: none. */
static char *describe(const trainer *t, int64_t number, const char *reason, int64_t checkpoint) {
  const trainer_watch *watch = &t->watch;
  char *job = trainer_job_text(t), *text = NULL;
  json_t *samples = list_samples(t, number), *records = list_records(watch), *machine = describe_machine(t);
  // each o takes its value, on failure too
  json_t *all = json_pack("{s:s, s:i, s:s, s:I, s:I, s:o?, s:o?, s:o?, s:o?, s:s?}", "format", SPT_POST_MORTEM_FORMAT, "version", 1, "reason",
                          reason, "step", (json_int_t)number, "spikes", (json_int_t)watch->spikes.count, "checkpoint_step",
                          checkpoint < 0 ? NULL : json_integer(checkpoint), "machine", machine, "records", records, "samples", samples, "job",
                          job);
  if (all && job && samples && records && machine) text = json_dumps(all, JSON_COMPACT | JSON_PRESERVE_ORDER);
  json_decref(all);
  free(job);
  return text;
}

static spt_status write_post_mortem(trainer *t, int64_t number, const char *reason, int64_t *checkpoint_p) {
  const char *output = t->config.run.output;
  SPT_TRY(spt_run_folder_check(t->folder)); // another run's folder by now?
  if (*checkpoint_p >= 0 && spt_post_mortem_keep_checkpoint(output, *checkpoint_p) != SPT_OK) {
    trainer_progress_event("step %lld: the checkpoint of step %lld is not kept for a replay: %s", (long long)number,
                           (long long)*checkpoint_p, spt_error_message());
    *checkpoint_p = -1;
  }
  char *text = describe(t, number, reason, *checkpoint_p);
  if (!text) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
  const spt_status status = spt_post_mortem_write(output, number, text);
  free(text);
  return status;
}

static void leave_post_mortem(trainer *t, int64_t number, const char *reason) {
  int64_t checkpoint = t->saves.durable_step;
  char path[SPT_PATH_MAX];
  if (write_post_mortem(t, number, reason, &checkpoint) != SPT_OK) {
    trainer_progress_warning("step %lld: no post-mortem: %s; training goes on", (long long)number, spt_error_message());
    return;
  }
  spt_post_mortem_path(t->config.run.output, number, path);
  trainer_progress_event("step %lld: post-mortem in %s", (long long)number, path);
}

void trainer_watch_step(trainer *t, const trainer_step *step, const spt_metric_record *record) {
  trainer_watch *watch = &t->watch;
  keep(watch, watch->count++, record);
  const bool first_skipped = !step->applied && watch->skipped == 0;
  watch->skipped = step->applied ? 0 : watch->skipped + 1;
  if (watch->begins)
    trainer_progress_event("step %lld: loss spike, %.4f is %.1f deviations above the recent median; number %lld of the run",
                           (long long)step->number, step->loss, watch->z, (long long)watch->spikes.count);
  if (t->options.replay > 0 || (!watch->begins && !first_skipped)) return;
  leave_post_mortem(t, step->number, first_skipped ? "skipped" : "spike");
}

void trainer_watch_amend(trainer *t, const spt_metric_record *record) {
  trainer_watch *watch = &t->watch;
  if (watch->count > 0) keep(watch, watch->count - 1, record);
}

void trainer_watch_parameters(trainer *t) {
  if (t->comm->rank == 0 && t->watch.skipped == 0) leave_post_mortem(t, t->step, "parameters");
}
