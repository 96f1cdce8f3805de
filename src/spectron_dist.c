/* spectron-dist: the trainer. Open all, the step loop, close all. */
#include "job_cost.h"
#include "trainer.h"

#include "core/guidance.h"
#include "io/hdf5_process.h"
#include "io/job_toml.h"

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { SKIPPED_STEPS_MAX = 10 };

static volatile sig_atomic_t stop_requested;
static spt_whereabouts whereabouts; // until, and unless, the ranks of the node share theirs
static trainer the_trainer = {.here = &whereabouts}; // at file scope for the signal handler

static void request_stop(int signal_number) {
  (void)signal_number;
  stop_requested = 1;
}

/* A value of the launcher's environment: rank or size. SLURM_PROCID alone also stands in a batch script, above any
 * launcher. */
static const char *launcher_value(const char *const names[3]) {
  for (int i = 0; i < 3; i++)
    if (names[i] && getenv(names[i])) return getenv(names[i]);
  return NULL;
}
static const char *const rank_names[3] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"};
static const char *const size_names[3] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", NULL};

/* As the environment was at the start: MPI adds to it, also where there is no launcher. */
static struct {
  bool above;
  int rank; /* -1: not known */
} launcher;

static void look_for_launcher(void) {
  const char *rank = launcher_value(rank_names);
  launcher.above = rank || getenv("SLURM_STEP_ID");
  launcher.rank = rank ? atoi(rank) : -1;
}

/* The next start, perhaps on another node, shall not find the folder locked by this one. Async-signal-safe. */
static void *abandon_folder(void *done) {
  spt_run_folder_abandon(the_trainer.folder);
  if (done) atomic_store((atomic_bool *)done, true);
  return NULL;
}

/* Before the job is aborted. A file system that hangs, perhaps the reason for it, does not hold it up for more than a second. */
static void before_abort(void) {
  static atomic_bool done;
  pthread_t thread;
  spt_neighbours_hush(the_trainer.neighbours);
  if (!the_trainer.folder || pthread_create(&thread, NULL, abandon_folder, &done) != 0) return;
  for (int polls = 0; polls < 100 && !atomic_load(&done); polls++) nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

/* Under a launcher TERM may mean that another rank has died, and KILL follows soon: no collective would end. Says which rank of this node is gone,
 * where this one was, and where others were at their last heartbeats (the launcher says which rank of another node died); dies of the signal. */
static void leave_at_once(int signal_number) {
  static spt_signal_text text;
  const spt_whereabouts *other;
  spt_neighbours_leave(the_trainer.neighbours);
  const int lost = spt_neighbours_lost(the_trainer.neighbours, &other);
  if (lost >= 0) spt_neighbours_tell(lost, other);
  spt_signal_text_word(&text, "spectron-dist: rank ");
  spt_signal_text_number(&text, the_trainer.comm ? the_trainer.comm->rank : launcher.rank);
  spt_signal_text_word(&text, ": ended by signal ");
  spt_signal_text_number(&text, signal_number);
  spt_watchdog_place(the_trainer.here, &text);
  spt_signal_text_word(&text, "; nothing more is saved");
  spt_watchdog_last_heard(the_trainer.watchdog, &text);
  spt_signal_text_line(&text);
  abandon_folder(NULL); // last: its file system may hang
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

/* libgomp's waiting threads spin for milliseconds, which on a shared machine costs a hundred times the work. Its
 * settings are read before main: set a short spin and start again, once, unless the user has chosen. */
static void shorten_openmp_spin(char **argv) {
  if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
  if (setenv("GOMP_SPINCOUNT", "2000", 1) == 0) execv("/proc/self/exe", argv); // without it, only slower
}

/* A USR1 before the handlers stand must not kill and is not to be lost: it waits, also across an exec. */
static void hold_stop(int how) {
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGUSR1);
  sigprocmask(how, &stop, NULL);
}

/* USR1 asks for a save and exit 75 everywhere. TERM and INT do so only where no launcher is above: a launcher that
 * sends TERM kills soon after. */
static void install_signal_handlers(void) {
  struct sigaction action = {.sa_handler = request_stop, .sa_flags = SA_RESTART};
  sigemptyset(&action.sa_mask);
  sigaction(SIGUSR1, &action, NULL);
  signal(SIGXFSZ, SIG_IGN); // a file too large is an error of the write, reported like a full disk
  signal(SIGPIPE, SIG_IGN); // nobody reads the progress any more: no reason to lose a run
  if (launcher.above) action = (struct sigaction){.sa_handler = leave_at_once, .sa_flags = SA_RESETHAND | SA_NODEFER};
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGHUP, &action, NULL);
}

/* ---- one step ---- */

/* Forward and backward of this rank's share of the batch; the gradient reduction starts during the last backward. *loss_sum, backend memory, is
 * added to. */
static spt_status accumulate_gradients(trainer *t, double *loss_sum) {
  const spt_config *config = &t->config;
  const int64_t passes = config->batch.sequences / t->comm->size / config->batch.micro;
  const float loss_scale = (float)(1.0 / (double)trainer_tokens_per_step(config));
  const spt_backward_hooks hooks = spt_data_parallel_hooks(t->data_parallel);
  if (t->tree) trainer_tree_begin(t);
  for (int64_t pass = 0; pass < passes; pass++) {
    spt_micro_batch batch;
    double *sum_p = t->tree ? trainer_tree_loss(t, pass) : loss_sum;
    spt_watchdog_at(t->here, t->step, SPT_PHASE_COMPUTE);
    SPT_TRY(spt_prefetch_next(t->prefetch, &batch));
    trainer_guidance_train(t, pass);
    SPT_TRY(spt_model_train(t->model, batch.sequences, batch.ids, batch.targets, loss_scale,
                            pass == passes - 1 ? &hooks : NULL, sum_p));
    if (t->tree && pass < passes - 1) SPT_TRY(spt_tree_reduction_keep(trainer_tree_reduction(t)));
  }
  return SPT_OK;
}

static void add_overlap(trainer *t) {
  const spt_overlap *last = spt_data_parallel_overlap(t->data_parallel);
  t->last_overlap = *last;
  t->overlap.buckets += last->buckets;
  t->overlap.posted_in_backward += last->posted_in_backward;
  t->overlap.complete_before_wait += last->complete_before_wait;
  t->overlap.wait_seconds += last->wait_seconds;
  t->overlap.gather_seconds += last->gather_seconds;
}

/* Prefetched tokens → forward → backward → reduction → sharded update → gather. On a device all of it is issued, and trainer_settle completes
 * *step. */
static spt_status train_step(trainer *t, trainer_step *step) {
  const double start = trainer_now(), waited = spt_prefetch_wait_seconds(t->prefetch), spectral = t->times.spectral;
  const bool on_host = t->backend->host_memory;
  double loss_sum = 0;
  if (t->settled_at == 0) t->settled_at = start;
  // a rank whose data or backend fails goes on with the step's collectives, so that all ranks can leave together
  spt_status status = t->backend->ops->zero(t->backend, t->gradients, (size_t)t->plan->layout.elements * sizeof(float));
  if (status == SPT_OK && !on_host) status = trainer_decide_begin(t);
  const double zeroed = trainer_now();
  if (t->saves.folder_lost[0]) status = SPT_FAIL(SPT_ERR_USAGE, "%s", t->saves.folder_lost);
  if (status == SPT_OK) status = accumulate_gradients(t, on_host ? &loss_sum : &t->control->loss);
  const double data_wait = spt_prefetch_wait_seconds(t->prefetch) - waited;
  const double computed = trainer_now();
  spt_watchdog_at(t->here, t->step, SPT_PHASE_REDUCE);
  SPT_TRY(trainer_abort_on_failure(t, spt_data_parallel_reduce_finish(t->data_parallel), "gradient reduction"));
  const double reduced = trainer_now();

  spt_control control = {.clip = 1, .apply = 1}; // as the backend's memory has it
  if (status == SPT_OK && on_host) status = trainer_gradient_stats(t, &control);
  const double counted = trainer_now();
  spt_watchdog_at(t->here, t->step, SPT_PHASE_DECIDE);
  if (on_host) {
    SPT_TRY(trainer_decide(t, status, loss_sum, data_wait, stop_requested, &control, step));
    SPT_TRY(trainer_abort_on_failure(t, t->backend->ops->upload(t->backend, t->control, &control, sizeof control), "decision"));
  } else
    SPT_TRY(trainer_abort_on_failure(t, trainer_decide_issue(t, status, data_wait, stop_requested), "decision"));
  const double decided = trainer_now();
  SPT_TRY(trainer_audit_check(t));
  spt_watchdog_at(t->here, t->step, SPT_PHASE_OPTIMIZER);
  SPT_TRY(trainer_abort_on_failure(t, trainer_spectral_begin(t), "telemetry"));
  const double factor = spt_schedule_factor(&t->config.schedule, t->step);
  step->lr = factor * t->config.optimizer.lr;
  SPT_TRY(trainer_abort_on_failure(t, spt_optimizer_step(t->optimizer, factor, t->control), "optimizer"));
  const double updated = trainer_now(), told = t->times.spectral - spectral;
  spt_watchdog_at(t->here, t->step, SPT_PHASE_GATHER);
  SPT_TRY(trainer_abort_on_failure(t, spt_data_parallel_gather(t->data_parallel), "parameter gather"));
  const double gathered = trainer_now();
  spt_watchdog_at(t->here, t->step, SPT_PHASE_REFRESH);
  SPT_TRY(trainer_abort_on_failure(t, spt_model_refresh(t->model), "compute copy"));
  SPT_TRY(trainer_abort_on_failure(t, trainer_spectral_end(t), "telemetry"));
  SPT_TRY(trainer_audit_take(t));
#ifdef SPT_RED_ZONES
  if (on_host) SPT_TRY(trainer_abort_on_failure(t, trainer_check_red_zones(t), "red zones"));
#endif

  step->number = ++t->step;
  step->tokens = t->tokens += trainer_tokens_per_step(&t->config);
  t->times.data_wait += data_wait;
  t->times.model += computed - zeroed - data_wait;
  t->times.reduce_wait += reduced - computed;
  step->optimizer_seconds = updated - reduced - told;
  t->times.decide += decided - counted;
  t->times.optimizer += zeroed - start + step->optimizer_seconds - (decided - counted);
  t->times.gather += gathered - updated;
  const double measured = t->times.spectral - spectral;
  t->times.refresh += trainer_now() - gathered - (measured - told);
  if (on_host) t->times.total += step->seconds = trainer_now() - start - measured;
  t->settled_at += measured; // on a device a step lasts from decision to decision
  add_overlap(t);
  return SPT_OK;
}

/* ---- between steps ---- */

/* Stops after too many skipped steps in a row, and at once when the last step was one: nothing of it is saved. */
static spt_status check_divergence(trainer *t, const trainer_step *step) {
  t->skipped_in_a_row = step->applied ? 0 : t->skipped_in_a_row + 1;
  if (t->skipped_in_a_row > 0 && t->comm->rank == 0)
    trainer_progress_event("step %lld: gradients or loss are not finite, the update is skipped (%d in a row)",
                           (long long)step->number, t->skipped_in_a_row);
  const bool last = step->number == t->config.schedule.steps;
  if (t->skipped_in_a_row == 0 || (t->skipped_in_a_row < SKIPPED_STEPS_MAX && !last)) return SPT_OK;
  return SPT_FAIL(SPT_ERR_DIVERGED,
                  "training diverged: no finite gradients for %d step%s up to step %lld, nothing is saved since; start "
                  "again with a smaller "
                  "optimizer.lr in a new run%s",
                  t->skipped_in_a_row, t->skipped_in_a_row == 1 ? "" : "s", (long long)step->number,
                  t->saves.durable_step >= 0 ? ", from a checkpoint of this one (--init-from) if you like" : "");
}

/* *validated_p is false when a stop was asked for meanwhile: the validation is then abandoned. */
static spt_status validate(trainer *t, bool *validated_p, bool *best_p) {
  trainer_validation validation;
  SPT_TRY(trainer_validate(t, &stop_requested, &validation, validated_p));
  t->stop_in_validation = !*validated_p;
  if (!*validated_p) return SPT_OK;
  const double loss = validation.loss, kept = validation.low_rank_loss; // of the model that one keeps: without guides
  *best_p = isfinite(kept) && !(kept >= t->best_validation_loss); // true for the first, when best is NAN
  if (*best_p) t->best_validation_loss = kept;
  t->last_validation = validation;
  const double bytes = (double)spt_token_stream_text_bytes(t->validation);
  const double tokens = (double)spt_token_stream_tokens(t->validation);
  t->last_bits_per_byte = bytes > 0 ? loss / log(2.0) * tokens / bytes : NAN;
  if (t->comm->rank == 0)
    trainer_progress_event("step %lld: validation loss %.4f, perplexity %.2f%s", (long long)t->step, loss, exp(loss),
                           *best_p && !t->guidance ? " (best)" : "");
  if (t->comm->rank == 0 && t->guidance)
    trainer_progress_event("step %lld: without guides %.4f, perplexity %.2f%s", (long long)t->step, kept, exp(kept), *best_p ? " (best)" : "");
  return SPT_OK;
}

static spt_metric_record make_record(const trainer *t, const trainer_step *step, bool validated) {
  const double rate = (double)trainer_tokens_per_step(&t->config) / step->seconds;
  const bool guided = step->number <= t->guided_steps;
  const double guides = guided ? spt_guidance_share(&t->config.guidance, t->config.schedule.steps, step->number - 1) : 0;
  spt_comm_counter traffic[SPT_COLLECTIVE_KINDS];
  job_count_traffic(&t->config, t->params, t->plan, t->backend, traffic);
  static const spt_collective kinds[] = {[SPT_REDUCTION_ALL_REDUCE] = SPT_COLLECTIVE_ALL_REDUCE,
                                         [SPT_REDUCTION_REDUCE_SCATTER] = SPT_COLLECTIVE_REDUCE_SCATTER,
                                         [SPT_REDUCTION_TREE] = SPT_COLLECTIVE_EXCHANGE};
  const spt_comm_counter reduce = traffic[kinds[t->config.dist.reduction]];
  const spt_overlap *overlap = &t->last_overlap;
  spt_metric_record entry = {.step = step->number,
                                   .tokens = step->tokens,
                                   .loss = step->loss,
                                   .lr = step->lr,
                                   .grad_norm = step->grad_norm,
                                   .tokens_per_second = rate,
                                   .step_seconds = step->seconds,
                                   .data_wait_seconds = step->data_wait_seconds,
                                   .model_flops_per_second = rate * (t->flops.train_per_token + 3 * guides * t->flops.guide_forward),
                                   .reduce_wait_seconds = overlap->wait_seconds,
                                   .gather_seconds = overlap->gather_seconds,
                                   .optimizer_seconds = step->optimizer_seconds,
                                   .save_seconds = t->times.save - t->times.save_recorded,
                                   .reduce_bytes = reduce.bytes,
                                   .reduce_messages = reduce.messages,
                                   .gather_bytes = traffic[SPT_COLLECTIVE_ALL_GATHER].bytes,
                                   .gather_messages = traffic[SPT_COLLECTIVE_ALL_GATHER].messages,
                                   .guided = guided,
                                   .guidance_alpha = guided ? spt_guidance_alpha(t->guided_steps, step->number - 1) : 0,
                                   .validated = validated,
                                   .validation_loss = t->last_validation.loss,
                                   .validation_loss_low_rank = t->last_validation.low_rank_loss,
                                   .perplexity = exp(t->last_validation.loss),
                                   .bits_per_byte = t->last_bits_per_byte,
                                   .ranks = t->comm->size,
                                   .micro = t->config.batch.micro,
                                   .threads = t->backend->threads,
                                   .reduction = 1 + t->config.dist.reduction,
                                   .precision = trainer_precision(t) + 1,
                                   .loss_z = t->watch.z,
                                   .spikes = t->watch.spikes.count,
                                   .gradient_groups = spt_gradient_groups_present(t->params)};
  for (int g = 0; g < SPT_GRADIENT_GROUPS; g++) entry.grad_norms[g] = sqrt(step->group_squares[g]);
  trainer_spectral_record(t, &entry);
  return entry;
}

/* Rank 0. A disk that fails is told of, and ends nothing. */
static void record(trainer *t, const trainer_step *step, bool validated) {
  const spt_metric_record entry = make_record(t, step, validated);
  t->times.records++;
  t->times.save_recorded = t->times.save;
  spt_spikes_add(&t->watch.spikes, entry.loss);
  if (validated) trainer_watch_amend(t, &entry);
  spt_status status = spt_metrics_append(t->metrics, &entry);
  if (validated && status == SPT_OK) status = spt_metrics_write_hdf5(t->metrics);
  trainer_note_records(t, status, validated);
}

/* Rank 0: before anything is decided about the step, even to end the run. */
static void watch(trainer *t, const trainer_step *step) {
  if (t->comm->rank != 0) return;
  trainer_watch_judge(t, step);
  const spt_metric_record entry = make_record(t, step, false);
  trainer_watch_step(t, step, &entry);
}

static bool is_due(int64_t every, int64_t step) {
  return every > 0 && step % every == 0;
}

static bool record_due(const trainer *t, const trainer_step *step) {
  return t->watch.notable || is_due(t->config.metrics.every, step->number) || trainer_spectral_due(t, step->number);
}

/* Adds what has passed since *since_p to a sum of seconds. */
static void add_time(double *since_p, double *sum_p) {
  const double now = trainer_now();
  *sum_p += now - *since_p;
  *since_p = now;
}

/* Of a step that another was issued after: nothing here needs the device at rest. */
static spt_status after_issued_step(trainer *t, const trainer_step *step) {
  watch(t, step);
  SPT_TRY(check_divergence(t, step));
  spt_watchdog_at(t->here, t->step, SPT_PHASE_SAVE);
  double since = trainer_now();
  if (t->comm->rank == 0 && record_due(t, step)) record(t, step, false);
  add_time(&since, &t->times.logging);
  if (step->saves_idle && t->saves.path[0] && t->skipped_in_a_row == 0) trainer_finish_save(t);
  add_time(&since, &t->times.save);
  if (t->comm->rank == 0) trainer_progress_step(t, step);
  add_time(&since, &t->times.logging);
  return SPT_OK;
}

/* What follows the issued step needs the device at rest. */
static bool needs_rest(const trainer *t) {
  const spt_config *config = &t->config;
  return t->step == config->schedule.steps || t->options.profile || trainer_spectral_due(t, t->step) || t->save_pending || t->skipped_in_a_row > 0 ||
         trainer_guidance_is_over(t) || is_due(config->checkpoint.every, t->step) || (t->validation && is_due(config->validation.every, t->step));
}

/* On a device: the step before the issued one is known by now, or soon; the issued one is waited for where something follows that needs it. */
static spt_status settle(trainer *t, trainer_step *step, bool *settled_p) {
  bool stop = false, save_due = false;
  if (t->unsettled.number > 0) {
    trainer_step before = t->unsettled;
    SPT_TRY(trainer_settle(t, &before));
    SPT_TRY(after_issued_step(t, &before));
    stop = before.stop;
    save_due = before.save_due;
  }
  t->unsettled = *step;
  *settled_p = stop || save_due || needs_rest(t);
  if (!*settled_p) return SPT_OK;
  SPT_TRY(trainer_settle(t, step));
  t->unsettled.number = 0;
  step->stop |= stop;
  step->save_due |= save_due;
  return SPT_OK;
}

/* A save is put off while updates are skipped, and until the parameters have proved themselves finite in a validation
 * or by their own values: a poisoned state never takes the place of a good one. Validation precedes a due save; a new
 * best forces one; the last step is always saved; a stop waits for no validation. */
static spt_status after_step(trainer *t, const trainer_step *step) {
  const spt_config *config = &t->config;
  const bool last = t->step == config->schedule.steps;
  bool validated = false, best = false;
  watch(t, step);
  SPT_TRY(check_divergence(t, step));
  if (t->validation && t->skipped_in_a_row == 0 && (last || (!step->stop && is_due(config->validation.every, t->step))))
    SPT_TRY(validate(t, &validated, &best));
  spt_watchdog_at(t->here, t->step, SPT_PHASE_SAVE); // records too
  double since = trainer_now();
  if (t->comm->rank == 0 && (validated || last || record_due(t, step))) record(t, step, validated);
  add_time(&since, &t->times.logging);
  if (trainer_guidance_is_over(t)) SPT_TRY(trainer_guidance_end(t)); // told of and validated with guides, saved without
  const bool stop = step->stop || t->stop_in_validation;
  t->save_pending |= last || best || stop || step->save_due || is_due(config->checkpoint.every, t->step);
  if (t->save_pending && t->skipped_in_a_row == 0) {
    SPT_TRY(trainer_audit_check(t));
#ifdef SPT_RED_ZONES
    if (!t->backend->host_memory) SPT_TRY(trainer_abort_on_failure(t, trainer_check_red_zones(t), "red zones")); // each check waits for the device
#endif
    SPT_TRY(trainer_save(t, best, last || stop));
    t->save_pending = false; // also after a failure: the next one comes with the next interval
  } else if (stop && t->comm->rank == 0) {
    trainer_progress_event(
        "step %lld: stopped while updates are skipped; not saved, a resume goes on from the last checkpoint",
        (long long)t->step);
  } else if (step->saves_idle && t->saves.path[0] && t->skipped_in_a_row == 0) {
    trainer_finish_save(t);
  }
  add_time(&since, &t->times.save);
  if (t->comm->rank == 0) trainer_progress_step(t, step);
  add_time(&since, &t->times.logging);
  return SPT_OK;
}

static spt_status train(trainer *t) {
  trainer_step step = {0};
  bool stop = false;
  double since = trainer_now();
  while (t->step < t->config.schedule.steps && !stop) {
    t->backend->profiling = t->options.profile;
    SPT_TRY(train_step(t, &step));
    t->backend->profiling = false; // a validation's or a save's ops are not a step's
    bool settled = true;
    if (!t->backend->host_memory) SPT_TRY(settle(t, &step, &settled));
    if (settled) SPT_TRY(after_step(t, &step));
    stop = settled && (step.stop || t->stop_in_validation);
    add_time(&since, &t->times.loop);
    if (t->step == t->first_step + 1) trainer_profile_first_step(t);
  }
  double saving = since;
  spt_watchdog_at(t->here, t->step, SPT_PHASE_END);
  SPT_TRY(trainer_end_saves(t));
  add_time(&saving, &t->times.save);
  add_time(&since, &t->times.loop);
  if (!stop || t->step >= t->config.schedule.steps) return SPT_OK;
  if (t->saves.durable_step > t->first_step) return SPT_STOPPED;
  return SPT_FAIL(SPT_ERR_DIVERGED, // 75 would have the job started again and again
                  "stopped at step %lld while updates are skipped: nothing was saved since the start, so that a resume "
                  "would only repeat it; start again with a smaller optimizer.lr in a new run",
                  (long long)t->step);
}

/* The steps up to --replay once more, with records and nothing else between them. */
static spt_status replay(trainer *t) {
  trainer_step step = {0};
  while (t->step < t->options.replay) {
    SPT_TRY(trainer_replay_begin(t));
    SPT_TRY(train_step(t, &step));
    if (!t->backend->host_memory) SPT_TRY(trainer_settle(t, &step));
    if (t->comm->rank == 0) record(t, &step, false);
    SPT_TRY(trainer_replay_end(t, &step));
    if (step.stop) return SPT_STOPPED;
    if (trainer_guidance_is_over(t) && t->step < t->options.replay) SPT_TRY(trainer_guidance_end(t));
  }
  return SPT_OK;
}

/* ---- the program ---- */

/* The job is read once, by rank 0, so that all ranks train the same thing. */
static spt_status load_job(trainer *t) {
  spt_status status = SPT_OK;
  if (t->comm->rank == 0) status = spt_job_load(t->options.job, t->options.sets, t->options.set_count, &t->config);
  SPT_TRY(spt_comm_agree(t->comm, status, NULL));
  SPT_TRY(t->comm->ops->broadcast(t->comm, &t->config, sizeof t->config, 0));
  trainer_replay_prepare(&t->options, &t->config);
  t->asked_micro = t->config.batch.micro;
  return spt_config_check_ranks(&t->config, t->comm->size);
}

static spt_status start_watchdog(trainer *t) {
  const spt_watchdog_limits limits = {.timeout = t->config.dist.timeout_seconds,
                                      .startup = t->config.dist.startup_timeout_seconds,
                                      .save = t->config.dist.save_timeout_seconds,
                                      .validation = t->config.dist.validation_timeout_seconds};
  if (!t->comm->threaded && t->comm->size > 1 && t->comm->rank == 0)
    trainer_progress_event("note: this MPI does not support MPI_THREAD_MULTIPLE: no watchdog ends a job that hangs "
                           "([dist] timeout_seconds), and training waits for each save");
  return spt_watchdog_open(t->comm, t->here, &limits, t->neighbours, &t->watchdog);
}

static spt_status run(trainer *t) {
  t->comm->before_abort = before_abort;
  spt_neighbours_open(t->comm, &t->here, &t->neighbours);
  SPT_TRY(load_job(t));
  SPT_TRY(start_watchdog(t));
  SPT_TRY(trainer_open(t));
  if (t->comm->rank == 0) trainer_progress_open(t);
  if (t->replay) return replay(t);
  const spt_status status = train(t);
  if (status == SPT_OK || status == SPT_STOPPED) {
    if (t->options.profile) SPT_TRY(trainer_print_profile(t));
    if (t->comm->rank == 0) trainer_progress_close(t);
  }
  return status;
}

static int report(spt_status status) {
  if (status != SPT_OK && status != SPT_STOPPED) fprintf(stderr, "spectron-dist: %s\n", spt_error_message());
  return (int)status;
}

/* Paths that need no other rank. */
static spt_status run_alone(trainer *t) {
  SPT_TRY(spt_job_load(t->options.job, t->options.sets, t->options.set_count, &t->config));
  const char *rank = launcher_value(rank_names), *size = launcher_value(size_names);
  if (rank && atoi(rank) != 0) return SPT_OK; // printed once, for the launcher's number of ranks
  const int ranks = t->options.ranks ? t->options.ranks : size ? atoi(size) : 1;
  return t->options.presets ? trainer_print_presets(&t->config, ranks) : trainer_dry_run(&t->config, ranks);
}

int main(int argc, char **argv) {
  prctl(PR_SET_NAME, "spectron-dist"); // exec has called it exe
  hold_stop(SIG_BLOCK);
  look_for_launcher();
  shorten_openmp_spin(argv);
  spt_status status = trainer_options_parse(argc, argv, &the_trainer.options);
  install_signal_handlers(); // before MPI_Init
  hold_stop(SIG_UNBLOCK);
  if (status == SPT_OK && the_trainer.options.help) return trainer_print_help(), 0;
  if (status == SPT_OK && the_trainer.options.version) return puts("spectron-dist " SPT_VERSION), 0;
  if (status == SPT_OK && the_trainer.options.dry_run) return report(run_alone(&the_trainer));
  const spt_status parsed = status;
  char message[1024];
  snprintf(message, sizeof message, "%s", spt_error_message());

  if (parsed == SPT_OK && (status = spt_hdf5_process_start()) != SPT_OK) return report(status); // before MPI: it forks
  status = spt_comm_mpi_open(&argc, &argv, &the_trainer.comm);
  if (status != SPT_OK) return report(status);
  status = parsed == SPT_OK ? run(&the_trainer) : SPT_FAIL(parsed, "%s", message);
  if (the_trainer.comm->rank == 0) report(status);
  spt_watchdog_at(the_trainer.here, the_trainer.step, SPT_PHASE_END);
  spt_neighbours_leave(the_trainer.neighbours);
  if (launcher.above) { // all are leaving: that it hurries up the last ones is nothing to tell
    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    signal(SIGHUP, SIG_DFL);
  }
  trainer_close(&the_trainer);
  spt_watchdog_close(&the_trainer.watchdog);
  spt_neighbours_close(&the_trainer.neighbours, &the_trainer.here, &whereabouts);
  the_trainer.comm->ops->barrier(the_trainer.comm); // the launcher kills the rest once one rank has left with a failure
  the_trainer.comm->ops->close(&the_trainer.comm);
  return (int)status;
}
