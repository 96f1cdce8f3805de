/* What a person sees: one live line on a terminal, plain lines at a bounded rate in a log. */
#include "trainer.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LOG_SECONDS = 10, LIVE_PER_SECOND = 5 };

static struct {
  double last_line, first_done; // when the first step, which sets everything up, had ended
  bool live_shown;
} shown; // of rank 0's terminal

/* Open MPI gives every rank a pseudo-terminal, whatever mpirun itself writes to: then the launcher's own output counts.
 */
static bool on_terminal(void) {
  char link[64], target[32] = "";
  if (!isatty(STDOUT_FILENO)) return false;
  if (!getenv("OMPI_COMM_WORLD_SIZE")) return true;
  snprintf(link, sizeof link, "/proc/%d/fd/1", (int)getppid());
  const ssize_t length = readlink(link, target, sizeof target - 1);
  return length > 0 && (strncmp(target, "/dev/pts/", 9) == 0 || strncmp(target, "/dev/tty", 8) == 0);
}

static void clear_live_line(void) {
  if (shown.live_shown) printf("\r\033[K");
  shown.live_shown = false;
}

void trainer_progress_event(const char *format, ...) {
  va_list arguments;
  clear_live_line();
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  putchar('\n');
  fflush(stdout);
}

void trainer_progress_warning(const char *format, ...) {
  va_list arguments;
  clear_live_line();
  fflush(stdout);
  fputs("spectron-dist: ", stderr);
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  fflush(stderr);
}

void trainer_progress_open(const trainer *t) {
  const spt_config *config = &t->config;
  trainer_note_preset(config);
  trainer_progress_event(
      "%s: %s parameters %.2f M, %d tensors, %d factor pairs; %lld sequences × %lld tokens a step, %lld steps",
      config->run.name, config->model.preset[0] ? config->model.preset : "model", (double)t->params->count / 1e6,
      t->params->tensor_count, spt_params_factor_pairs(t->params), (long long)config->batch.sequences,
      (long long)config->model.seq_len, (long long)config->schedule.steps);
  trainer_progress_event("%d rank%s × (%s), micro-batch %lld, %s%s; data: %lld training tokens in %d file%s",
                         t->comm->size, t->comm->size == 1 ? "" : "s", t->backend->description,
                         (long long)config->batch.micro,
                         config->dist.reduction == SPT_REDUCTION_ALL_REDUCE ? "all-reduce" : config->dist.reduction == SPT_REDUCTION_TREE ? "tree" : "reduce-scatter",
                         config->dist.overlap ? ", overlapped" : "", (long long)spt_token_stream_tokens(t->train),
                         spt_token_stream_files(t->train), spt_token_stream_files(t->train) == 1 ? "" : "s");
}

void trainer_note_preset(const spt_config *config) {
  const spt_model_config *model = &config->model;
  spt_model_config preset = *model;
  if (!model->preset[0] || spt_config_apply_preset(model->preset, &preset) != SPT_OK) return;
  if (preset.hidden == model->hidden && preset.layers == model->layers && preset.heads == model->heads) return;
  trainer_progress_event(
      "note: keys of [model] override preset \"%s\": hidden %lld, layers %lld, heads %lld instead of %lld, %lld, %lld",
      model->preset, (long long)model->hidden, (long long)model->layers, (long long)model->heads,
      (long long)preset.hidden, (long long)preset.layers, (long long)preset.heads);
}

static void format_seconds(double seconds, char text[32]) {
  const long long s = seconds < 0 || !isfinite(seconds) ? 0 : (long long)(seconds + 0.5);
  if (s >= 3600)
    snprintf(text, 32, "%lldh%02lldm", s / 3600, s / 60 % 60);
  else
    snprintf(text, 32, "%lldm%02llds", s / 60, s % 60);
}

void trainer_progress_step(const trainer *t, const trainer_step *step) {
  const double now = trainer_now(), interval = on_terminal() ? 1.0 / LIVE_PER_SECOND : LOG_SECONDS;
  const bool last = step->number == t->config.schedule.steps, first = step->number == t->first_step + 1;
  if (first) shown.first_done = now;
  if (now - shown.last_line < interval && !last && !first) return;
  shown.last_line = now;
  const double rate = (double)trainer_tokens_per_step(&t->config) / step->seconds;
  const double peak = t->backend->peak_flops * t->comm->size;
  char left[32], share[32] = "";
  const double per_step = first ? 0 : (now - shown.first_done) / (double)(step->number - t->first_step - 1);
  if (first)
    snprintf(left, sizeof left, "?");
  else
    format_seconds(per_step * (double)(t->config.schedule.steps - step->number), left);
  if (peak > 0) snprintf(share, sizeof share, "  %4.1f%% of peak", 100 * rate * t->flops.train_per_token / peak);
  clear_live_line();
  printf("step %lld/%lld  loss %.4f  lr %.2e  %.0f tokens/s%s  %s left%s", (long long)step->number,
         (long long)t->config.schedule.steps, step->loss, step->lr, rate, share, left, on_terminal() ? "" : "\n");
  shown.live_shown = on_terminal();
  fflush(stdout);
}

void trainer_progress_close(const trainer *t) {
  const trainer_times *times = &t->times;
  const int64_t steps = t->step - t->first_step;
  if (steps == 0) {
    trainer_progress_event("nothing to do: step %lld of %lld is already complete", (long long)t->step,
                           (long long)t->config.schedule.steps);
    return;
  }
  if (t->step < t->config.schedule.steps)
    trainer_progress_event("stopped by a signal after step %lld of %lld; --resume goes on", (long long)t->step,
                           (long long)t->config.schedule.steps);
  trainer_progress_event(
      "%lld steps in %.1f s, %.1f s of it steps: %.0f tokens/s, waiting for data %.2f %%, for the reduction %.2f %%",
      (long long)steps, trainer_now() - t->started, times->total,
      (double)(steps * trainer_tokens_per_step(&t->config)) / times->total, 100 * times->data_wait / times->total,
      100 * times->reduce_wait / times->total);
  trainer_progress_event("saves held the steps up for %.3f s, %.2f %% of the run's loop", times->save,
                         100 * times->save / times->loop);
  if (t->watch.spikes.count > 0)
    trainer_progress_event("%lld loss spike%s so far: %s/post-mortem", (long long)t->watch.spikes.count, t->watch.spikes.count == 1 ? "" : "s",
                           t->config.run.output);
  trainer_progress_event("outputs: %s/checkpoints, %s/metrics.jsonl, %s/metrics.h5", t->config.run.output,
                         t->config.run.output, t->config.run.output);
}
