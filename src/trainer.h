/* The trainer's parts, opened and closed together by spectron_dist.c. One struct, borrowed by the trainer_*.c files;
 * each of them holds one concept: options, dry run, opening, state (resuming), guidance, saving, validation, progress. */
#ifndef SPT_TRAINER_H
#define SPT_TRAINER_H

#include "core/flops.h"
#include "core/gradient_groups.h"
#include "core/model.h"
#include "core/optimizer.h"
#include "core/schedule.h"
#include "core/slab.h"
#include "core/spikes.h"
#include "dist/data_parallel.h"
#include "dist/neighbours.h"
#include "io/metrics.h"
#include "io/prefetch.h"
#include "io/run_folder.h"

#include <signal.h>

enum { TRAINER_SETS_MAX = 64 };

/* The command line. */
typedef struct trainer_options {
  const char *job;
  const char *sets[TRAINER_SETS_MAX + 2]; /* --set, then --backend and --threads as sets */
  int set_count;
  bool resume;
  const char *resume_path; /* NULL: the newest intact checkpoint of the output folder */
  const char *init_from;
  bool dry_run, presets, profile, help, version;
  int ranks; /* of the dry run; 0: not given */
  int64_t replay; /* the step to recompute and look into; 0: none */
} trainer_options;

/* Where the wall time went, summed over the run on this rank, in seconds. */
typedef struct trainer_times {
  double data_wait, model, reduce_wait, optimizer, decide, gather, refresh; /* inside a step */
  double spectral;                                                          /* telemetry: in a step, and no part of the others */
  double logging, validation, save;                                         /* between steps */
  double total;                                                             /* of the steps alone */
  double loop;     /* of the steps and all that is between them */
  int64_t records; /* lines of metrics.jsonl */
  double save_recorded; /* of `save`, what a record has told */
} trainer_times;

/* What the profile reads, as it stood after the run's first step. */
typedef struct trainer_first_step {
  trainer_times times;
  spt_backend_profile ops;
} trainer_first_step;

/* What a finished step was; the same on every rank. */
typedef struct trainer_step {
  int64_t number, tokens; /* completed with it */
  double loss, grad_norm, lr;
  double seconds, data_wait_seconds; /* of the slowest rank */
  double optimizer_seconds;
  bool applied;                    /* false: gradients were not finite, the update was skipped */
  double group_squares[SPT_GRADIENT_GROUPS]; /* of the gradient, by group */
  bool stop, save_due, saves_idle; /* a signal on any rank; rank 0's clock; no save under way anywhere */
} trainer_step;

typedef struct trainer_save_request {
  int64_t step;
  bool best, ending; /* a new best validation; no step follows */
  double best_loss;  /* the best validation loss so far, this step's included */
} trainer_save_request;

/* Saves, under way and past; the same on every rank but for what is rank 0's. */
typedef struct trainer_saves {
  char path[SPT_PATH_MAX]; /* of the save under way, "" if none */
  trainer_save_request under_way;
  int64_t durable_step;        /* the newest step on disk, of this run or resumed from; −1: none */
  double durable_best_loss;    /* the best validation loss whose state is on disk; NAN: none */
  trainer_save_request failed; /* the newest save, when it failed; step −1: it did not */
  char failure[1024];          /* why */
  bool best_owed, records_owed; /* rank 0: best.h5, or records, that could not be written yet */
  char folder_lost[1024];       /* rank 0: another run has the folder now, in words; "": none. The next step ends the run */
  double tried_at;              /* seconds, monotonic */
} trainer_saves;

/* Rank 0: what steps' losses were, for spikes and post-mortems. */
enum { TRAINER_WATCHED = 50 };
typedef struct trainer_watch {
  spt_spikes spikes;
  double z;    /* of the last step's loss, NAN: not judged */
  bool begins;  /* a spike begins with it */
  bool notable; /* it is to be recorded: at or above the threshold, or skipped */
  int skipped; /* in a row, up to the last step */
  spt_metric_record last[TRAINER_WATCHED]; /* of the last steps, recorded or not; matrices in memory of their own */
  int64_t count;                           /* steps seen */
} trainer_watch;

typedef struct trainer_audit trainer_audit;
typedef struct trainer_tree trainer_tree;
typedef struct trainer_guidance trainer_guidance;

/* Where the run's state comes from; the same on every rank but for the file, which rank 0 holds. */
typedef struct trainer_source {
  spt_checkpoint *checkpoint; /* rank 0's; NULL elsewhere, and without one */
  bool found, resuming;       /* there is one; it is this run's own */
} trainer_source;

/* A validation: the mean loss per token as the model is trained, and without its guides, which is the same where it has none. */
typedef struct trainer_validation {
  double loss, low_rank_loss;
} trainer_validation;
typedef struct trainer_spectral trainer_spectral;
typedef struct trainer_replay trainer_replay;

/* What a step sums over ranks before its update. */
enum {
  TRAINER_SUM_SQUARES,
  TRAINER_SUM_NON_FINITE,
  TRAINER_SUM_LOSS,
  TRAINER_SUM_STOP,
  TRAINER_SUM_DUE,
  TRAINER_SUM_BUSY,
  TRAINER_SUM_FAILED,
  TRAINER_SUMS
};

typedef struct trainer {
  trainer_options options;
  spt_config config;
  spt_comm *comm;
  spt_comm *bulk; /* for gradients and parameters where they are on GPUs, NULL elsewhere: comm then */
  spt_whereabouts *here; /* of the main thread, for the watchdog, the signal handlers and the ranks of this node */
  spt_neighbours *neighbours;
  spt_watchdog *watchdog;
  spt_backend *backend;
  spt_params *params;
  spt_shard_plan *plan;
  spt_flops flops;
  spt_slab parameter_slab, gradient_slab, copy_slab;
  float *parameters, *gradients;
  const spt_layout *masters; /* of `parameters`: the plan's, or that of the shards */
  spt_master_shards *shards; /* NULL: every rank holds all masters */
  spt_gathered_copies copies; /* with shards */
  spt_control *control; /* backend memory: a step's statistics and decision */
  trainer_step unsettled; /* issued, and not yet known to the host: on devices one step at most, number 0: none */
  double settled_at;
  spt_status failed; /* this rank's, told to the others a step late */
  char failed_words[1024];
  spt_model *model;
  spt_optimizer *optimizer;
  spt_data_parallel *data_parallel;
  spt_token_stream *train, *validation; /* validation: NULL without [data] validation */
  char fingerprint[33];
  spt_prefetch *prefetch;
  spt_checkpoint_item *items;
  int item_count, model_item_count;
  spt_checkpoint_saver *saver;
  spt_run_folder *folder; /* rank 0 */
  spt_metrics *metrics;   /* rank 0 */
  trainer_audit *audit;   /* NULL without [dist] audit_every */
  trainer_replay *replay; /* NULL without --replay */
  trainer_tree *tree;     /* NULL without reduction = "tree" */
  trainer_source source;  /* until the state is loaded */
  trainer_guidance *guidance; /* NULL: the model has no guides, or no more */
  int64_t guided_steps;       /* of this run: steps up to this one were trained with guides; 0: none */
  trainer_spectral *spectral; /* NULL without [metrics] spectral_every */
  int32_t *validation_tokens;

  int64_t step, tokens; /* completed */
  int64_t asked_micro;  /* batch.micro of the job; config has the chosen one */
  bool save_pending, stop_in_validation, new_validation_set;
  double best_validation_loss; /* without guides; NAN: none yet */
  trainer_validation last_validation;
  double last_bits_per_byte;
  int skipped_in_a_row;
  trainer_saves saves;
  trainer_watch watch; /* rank 0 */
  double started; /* seconds, monotonic */
  trainer_times times;
  trainer_first_step first;
  spt_overlap overlap; /* summed over the run's steps */
  spt_overlap last_overlap;
  int64_t first_step;
} trainer;

double trainer_now(void); /* monotonic seconds */
static inline int64_t trainer_tokens_per_step(const spt_config *config) {
  return config->batch.sequences * config->model.seq_len;
}

/* trainer_options.c */
spt_status trainer_options_parse(int argc, char **argv, trainer_options *options_p);
void trainer_print_help(void);

/* trainer_dry_run.c: parameters, FLOPs per step, memory per rank by kind, traffic, without training. Local. */
spt_status trainer_dry_run(const spt_config *config, int ranks);

/* trainer_presets.c */
/* A GPU "of 80 GB" has 80 to 85.5·10^9 bytes; the driver's context with our kernels takes about 0.5 of them, NCCL's buffers up to 1. */
#define TRAINER_GPU_BYTES ((size_t)80000000000)
#define TRAINER_GPU_RESERVED ((size_t)2 << 30)
/* A table of memory for all presets with the job's other keys, and the largest micro-batch that fits a GPU of 80 GB. Local. */
spt_status trainer_print_presets(const spt_config *job, int ranks);

/* trainer_open.c: everything a run needs, in order; on failure what was opened stays for trainer_close. Collective. */
spt_status trainer_open(trainer *t);
void trainer_close(trainer *t);
/* Parts of it, done again when guidance ends. The parameter table, by config.model.guided, and its plan; then slabs by it. Local. */
spt_status trainer_open_table(trainer *t);
spt_status trainer_open_slab(trainer *t, const char *kind, const spt_layout *layout, spt_slab *slab, float **values_p);
spt_status trainer_open_optimizer(trainer *t);
/* All that hangs on parameters, gradients and optimizer: model, checkpoint items, audit, tree, data parallelism, saver. Collective. */
spt_status trainer_open_step(trainer *t);
void trainer_close_step(trainer *t);

/* trainer_state.c */
/* The checkpoint's datasets and this rank's pieces, the same list on every rank. */
spt_status trainer_list_items(trainer *t);
/* This rank's elements of a tensor: a whole factor, dense matrix or guide, a slice, or nothing. */
void trainer_owned_range(const trainer *t, int tensor, int64_t *begin_p, int64_t *end_p);
/* Calls work(t, i) for each pair i of the table, spread over the backend's threads; the error of one of them. Local. */
spt_status trainer_for_pairs(trainer *t, spt_status (*work)(trainer *t, int pair, void *context), void *context);
/* Finds what trainer_load_state will load, before the parameter table is made: config.model.guided becomes what the file has. Collective. */
spt_status trainer_find_state(trainer *t);
/* Resumes from the newest intact (or the named) checkpoint, or starts fresh where there is none; or initialises; or
 * --init-from. Collective. */
spt_status trainer_load_state(trainer *t);
/* The job as a job file, as it was asked for; malloc'ed. */
char *trainer_job_text(const trainer *t);

/* trainer_save.c: a save that fails is told of by rank 0, on stderr, and ends nothing. */
/* Starts a save of the present step (ending: no step follows), after ending the one under way. SPT_ERR_DIVERGED when a parameter
 * is not finite; a failing disk is no error here. Collective. */
spt_status trainer_save(trainer *t, bool best, bool ending);
/* Ends the save under way: waits, tells what came of it, tidies the folder. Collective. */
void trainer_finish_save(trainer *t);
/* Rank 0: what came of writing records (durable: all of them to disk). Told when it begins to fail, and when it works again. */
void trainer_note_records(trainer *t, spt_status status, bool durable);
/* Ends the last save, and tries it once more if it failed. SPT_ERR_RESOURCE when the run's last step, its records or its
 * best.h5 are not on disk. Collective. */
spt_status trainer_end_saves(trainer *t);

/* trainer_validate.c: mean losses per token on the held-out windows, computed by all ranks. Abandoned (*done_p false) as
 * soon as *stop is set on any rank. Collective. */
spt_status trainer_validate(trainer *t, const volatile sig_atomic_t *stop, trainer_validation *validation_p, bool *done_p);

/* Micro-batches of a validation, with reduction = "tree". Local. */
int64_t trainer_validation_batches(const trainer *t);

/* trainer_tree.c: reduction = "tree"; open and close do nothing without it, the others are for it alone. */
spt_status trainer_tree_open(trainer *t);
void trainer_tree_close(trainer *t);
spt_tree_reduction *trainer_tree_reduction(const trainer *t);
/* The number in the global batch of this rank's pass 0. */
int64_t trainer_tree_first_batch(const trainer *t);
/* Begins a step: all values are 0. Local. */
void trainer_tree_begin(trainer *t);
/* Where this rank's pass `pass` of the step adds its loss. Local. */
double *trainer_tree_loss(trainer *t, int64_t pass);
/* The own gradient's statistics, kept for the step's sums; found->non_finite is added to. Local. */
spt_status trainer_tree_gradient_stats(trainer *t, spt_control *found);
/* Sums over ranks; loss and squares are the trees'. Collective. */
spt_status trainer_tree_reduce(trainer *t, double sums[TRAINER_SUMS]);
/* After it: the gradient's squares by group, each tensor's the tree's, the same bits on any number of ranks. Local. */
void trainer_tree_group_squares(const trainer *t, double group_squares[SPT_GRADIENT_GROUPS]);
/* A validation's losses by micro-batch, all 0 at first; and their sum once all ranks have added theirs (Collective). */
double *trainer_tree_validation(trainer *t);
spt_status trainer_tree_validation_sum(trainer *t, int64_t batches, double *sum_p);

/* trainer_guidance.c: self-guided training; all do nothing where the model has no guides. */
spt_status trainer_guidance_open(trainer *t); /* Local */
void trainer_guidance_close(trainer *t);
/* Every guide becomes the product of its factors; they are gathered on every rank already. Collective. */
spt_status trainer_guidance_init(trainer *t);
/* The guides' alphas in this rank's pass `pass` of the present step; outside of training, as in step `step` (from 0), alpha for all without draws, or
 * none. Local. */
void trainer_guidance_train(trainer *t, int64_t pass);
void trainer_guidance_evaluate(trainer *t, int64_t step, bool as_trained);
/* After the last guided step: ends a save under way and frees the guides, their gradients and their optimizer state; all else goes on as it is,
 * where it is. The device is at rest. Collective. */
bool trainer_guidance_is_over(const trainer *t);
spt_status trainer_guidance_end(trainer *t);

/* trainer_decide.c: what a step sums over ranks, and clip and apply. Where memory is the host's, sums are, and are decided on, at once. On a
 * device both happen there, in the stream's order, and the host learns of them a step late. */
spt_status trainer_decide_open(trainer *t); /* after the state is loaded; Local */
/* A failure where the other ranks already wait in a collective: this rank words it and ends the job. */
spt_status trainer_abort_on_failure(trainer *t, spt_status status, const char *phase);
/* Host: the own gradient's statistics into *control (with the tree all but its squares, which come with the step's sums). Local. */
spt_status trainer_gradient_stats(trainer *t, spt_control *control);
/* Host: sums what every rank must know before the update, in one message, and decides the same on all ranks. Collective. */
spt_status trainer_decide(trainer *t, spt_status status, double loss_sum, double data_wait, bool stop, spt_control *control, trainer_step *step);
/* Device: begins a step's sums; and all that is to be done after its backward. status is this rank's so far. Collective, waits for nothing. */
spt_status trainer_decide_begin(trainer *t);
spt_status trainer_decide_issue(trainer *t, spt_status status, double data_wait, bool stop);
/* Device: waits until the issued step's decision is known, and completes *step. When a rank has failed, its error. Collective. */
spt_status trainer_settle(trainer *t, trainer_step *step);

/* trainer_check.c */
/* The masters this rank owns are finite. Collective: all ranks get the same answer. */
spt_status trainer_parameters_finite(trainer *t, bool *finite_p);
/* In red-zone builds, of backends that guard them (backend.h): whatever touches a gap between tensors from now on faults. Local. */
spt_status trainer_guard_gaps(trainer *t);
/* In red-zone builds: nothing was written between tensors. Local. */
spt_status trainer_check_red_zones(const trainer *t);

/* trainer_audit.c: memory that changes by itself. All three do nothing without [dist] audit_every. Collective. */
spt_status trainer_audit_open(trainer *t);
void trainer_audit_close(trainer *t); /* local */
/* Local, for tests: "address RANK PROCESS DATASET HEX BYTES" of all parameters and the own optimizer state, on stderr. */
void trainer_print_addresses(const trainer *t);
/* After the gather of a step that is due: hashes all parameters and the own optimizer state, and compares copies with
 * their owners'. SPT_ERR_RESOURCE names the rank that differs. */
spt_status trainer_audit_take(trainer *t);
/* Before a save and before the next update: hashes again. SPT_ERR_RESOURCE names the rank and the tensor that changed. */
spt_status trainer_audit_check(trainer *t);

/* trainer_spectral.c: the telemetry of [metrics] spectral_every; open and close do nothing without it. */
spt_status trainer_spectral_open(trainer *t); /* after the data and the plan, before training reads data; Local */
/* The same for another parameter table; what was measured last stays to be recorded. Local. */
spt_status trainer_spectral_renew(trainer *t);
void trainer_spectral_close(trainer *t);
bool trainer_spectral_due(const trainer *t, int64_t step);
/* Once the present step is decided, before its update; where memory is not the host's, waits for the device. Does nothing where the step is
 * not due or not applied. Local. */
spt_status trainer_spectral_begin(trainer *t);
/* After the step's gather; overwrites the gradients. Does nothing where begin did nothing. Collective. */
spt_status trainer_spectral_end(trainer *t);
/* What was measured in the record's step, if anything was: borrowed, until the next step that is due. */
void trainer_spectral_record(const trainer *t, spt_metric_record *record);
/* trainer_watch.c, rank 0: spikes, and what they and skipped steps leave behind. A disk that fails is told of, and ends nothing. */
/* After the metrics are open: takes up where the recorded losses end. */
void trainer_watch_open(trainer *t);
/* The place in spt_metric_precisions of what matrices are multiplied in. */
int trainer_precision(const trainer *t);
void trainer_watch_close(trainer *t);
/* Judges a step's loss: watch.z, watch.spikes, watch.notable. Before the step's record is made. */
void trainer_watch_judge(trainer *t, const trainer_step *step);
/* Every step, with the record as it stands before a validation: keeps it; at a spike's first step, and the first of skipped ones, writes
 * post-mortem/step-….json and keeps the newest checkpoint. */
void trainer_watch_step(trainer *t, const trainer_step *step, const spt_metric_record *record);
/* The last step's record, with its validation. */
void trainer_watch_amend(trainer *t, const spt_metric_record *record);
/* The last step's update has left parameters that are not finite: writes its post-mortem. Any rank. */
void trainer_watch_parameters(trainer *t);

/* trainer_replay.c: --replay K looks into steps K − 1 and K; open and close do nothing without it. */
/* Takes validations, saves and spikes out of the job. */
void trainer_replay_prepare(const trainer_options *options, spt_config *config);
/* SPT_ERR_USAGE where the state is already at step K. Local. */
spt_status trainer_replay_open(trainer *t);
void trainer_replay_close(trainer *t);
/* Before and after each step. After step K rank 0 prints what was found. Collective. */
spt_status trainer_replay_begin(trainer *t);
spt_status trainer_replay_end(trainer *t, const trainer_step *step);

/* trainer_progress.c, rank 0: a live line on a terminal, plain lines in a log. */
void trainer_progress_open(const trainer *t);
/* Says so when keys of [model] override the preset's. */
void trainer_note_preset(const spt_config *config);
void trainer_progress_step(const trainer *t, const trainer_step *step);
void trainer_progress_event(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* One line on stderr, "spectron-dist: …": something failed, and the run goes on. */
void trainer_progress_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
void trainer_progress_close(const trainer *t);

/* trainer_profile.c */
/* Call after the first step: it creates what later steps reuse, and is left out where more steps follow. Local. */
void trainer_profile_first_step(trainer *t);
/* Where the time went by phase and by op, what each rank read and holds, what the messages were; printed by rank 0.
 * Collective. */
spt_status trainer_print_profile(const trainer *t);

#endif
