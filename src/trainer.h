/* The trainer's parts, opened and closed together by spectron_dist.c. One struct, borrowed by the trainer_*.c files;
 * each of them holds one concept: options, dry run, opening, state (checkpoints), validation, progress. */
#ifndef SPT_TRAINER_H
#define SPT_TRAINER_H

#include "core/flops.h"
#include "core/model.h"
#include "core/optimizer.h"
#include "core/schedule.h"
#include "core/slab.h"
#include "dist/data_parallel.h"
#include "dist/watchdog.h"
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
} trainer_options;

/* Where the wall time went, summed over the run on this rank, in seconds. */
typedef struct trainer_times {
  double data_wait, model, reduce_wait, optimizer, decide, gather, refresh; /* inside a step */
  double logging, validation, save;                                         /* between steps */
  double total;                                                             /* of the steps alone */
  double loop;     /* of the steps and all that is between them */
  int64_t records; /* lines of metrics.jsonl */
} trainer_times;

/* What the profile reads, as it stood after the run's first step. */
typedef struct trainer_first_step {
  trainer_times times;
  spt_backend_profile ops;
} trainer_first_step;

/* What a finished step was; the same on every rank. */
typedef struct trainer_step {
  double loss, grad_norm, lr;
  double seconds, data_wait_seconds; /* of the slowest rank */
  double optimizer_seconds;
  bool applied;                    /* false: gradients were not finite, the update was skipped */
  bool stop, save_due, saves_idle; /* a signal on any rank; rank 0's clock; no save under way anywhere */
} trainer_step;

typedef struct trainer_audit trainer_audit;
typedef struct trainer_tree trainer_tree;

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
  spt_whereabouts here; /* of the main thread, for the watchdog and the signal handlers */
  spt_watchdog *watchdog;
  spt_backend *backend;
  spt_params *params;
  spt_shard_plan *plan;
  spt_flops flops;
  spt_slab parameter_slab, gradient_slab;
  float *parameters, *gradients;
  spt_control *control; /* backend memory: a step's statistics and decision */
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
  trainer_tree *tree;     /* NULL without reduction = "tree" */
  int32_t *validation_tokens;

  int64_t step, tokens; /* completed */
  int64_t asked_micro;  /* batch.micro of the job; config has the chosen one */
  bool saved_since_start; /* a save was begun */
  bool save_pending, stop_in_validation, has_checkpoint, new_validation_set;
  double best_validation_loss; /* NAN: none yet */
  double last_validation_loss, last_bits_per_byte;
  int skipped_in_a_row;
  char pending_path[SPT_PATH_MAX]; /* of the save under way, "" if none */
  bool pending_best;
  double started, last_save_at; /* seconds, monotonic */
  trainer_times times;
  trainer_first_step first;
  spt_overlap overlap; /* summed over the run's steps */
  int64_t first_step;
} trainer;

double trainer_now(void); /* monotonic seconds */
static inline int64_t trainer_tokens_per_step(const spt_config *config) {
  return config->batch.sequences * config->model.seq_len;
}

/* trainer_options.c */
spt_status trainer_options_parse(int argc, char **argv, trainer_options *options_p);
void trainer_print_help(void);

/* trainer_dry_run.c */
/* The plan that the configuration wants. Local. */
spt_status trainer_plan_open(const spt_config *config, const spt_params *params, int ranks, spt_shard_plan **plan_p);
/* Traffic of one step as rank 0 counts it: [SPT_COLLECTIVE_KINDS]. Local. */
void trainer_traffic(const spt_config *config, const spt_shard_plan *plan, spt_comm_counter *traffic_p);
/* parameters, FLOPs per step, memory per rank by kind, traffic, without training. Local. */
spt_status trainer_dry_run(const spt_config *config, int ranks);

/* trainer_memory.c. Bytes that a rank holds, on its GPU where it has one; of every kind the largest of all ranks. */
typedef struct trainer_memory {
  size_t parameters, gradients, state, compute_weights, activations, workspace;
  size_t own;      /* of the backend itself */
  size_t staging;  /* of a reduce-scatter, or the tree's sums */
  size_t snapshot; /* of a save, in the host's memory */
  size_t total;    /* without the snapshot on a GPU */
} trainer_memory;
/* Local. */
spt_status trainer_memory_count(const spt_config *config, const spt_params *params, const spt_shard_plan *plan, spt_backend *backend, int ranks,
                                trainer_memory *memory_p);
/* A GPU "of 80 GB" has 80 to 85.5·10^9 bytes; the driver's context with our kernels takes about 0.5 of them, NCCL's buffers up to 1. */
#define TRAINER_GPU_BYTES ((size_t)80000000000)
#define TRAINER_GPU_RESERVED ((size_t)2 << 30)
/* A table of memory for all presets with the job's other keys, and the largest micro-batch that fits a GPU of 80 GB. Local. */
spt_status trainer_print_presets(const spt_config *job, int ranks);

/* trainer_open.c: everything a run needs, in order; on failure what was opened stays for trainer_close. Collective. */
spt_status trainer_open(trainer *t);
void trainer_close(trainer *t);

/* trainer_state.c */
/* The checkpoint's datasets and this rank's pieces, the same list on every rank. */
spt_status trainer_list_items(trainer *t);
/* Resumes from the newest intact (or the named) checkpoint, or starts fresh where there is none; or initialises; or
 * --init-from. Collective. */
spt_status trainer_load_state(trainer *t);
/* The job as a job file, as it was asked for; malloc'ed. */
char *trainer_job_text(const trainer *t);
/* Starts a save of the present step (ending: no step follows); SPT_ERR_DIVERGED instead when a parameter is not finite. Collective. */
spt_status trainer_save(trainer *t, bool best, bool ending);
/* Ends the save under way: waits, then tidies the folder. Collective. */
spt_status trainer_finish_save(trainer *t);

/* trainer_validate.c: mean loss per token on the held-out windows, computed by all ranks. Abandoned (*done_p false) as
 * soon as *stop is set on any rank. Collective. */
spt_status trainer_validate(trainer *t, const volatile sig_atomic_t *stop, double *loss_p, bool *done_p);

/* Micro-batches of a validation, with reduction = "tree". Local. */
int64_t trainer_validation_batches(const trainer *t);

/* trainer_tree.c: reduction = "tree"; open and close do nothing without it, the others are for it alone. */
spt_status trainer_tree_open(trainer *t);
void trainer_tree_close(trainer *t);
spt_tree_reduction *trainer_tree_reduction(const trainer *t);
/* Begins a step: all values are 0. Local. */
void trainer_tree_begin(trainer *t);
/* Where this rank's pass `pass` of the step adds its loss. Local. */
double *trainer_tree_loss(trainer *t, int64_t pass);
/* The own gradient's statistics, kept for the step's sums; found->non_finite is added to. Local. */
spt_status trainer_tree_gradient_stats(trainer *t, spt_control *found);
/* Sums over ranks; loss and squares are the trees'. Collective. */
spt_status trainer_tree_reduce(trainer *t, double sums[TRAINER_SUMS]);
/* A validation's losses by micro-batch, all 0 at first; and their sum once all ranks have added theirs (Collective). */
double *trainer_tree_validation(trainer *t);
spt_status trainer_tree_validation_sum(trainer *t, int64_t batches, double *sum_p);

/* trainer_check.c */
/* The masters this rank owns are finite. Collective: all ranks get the same answer. */
spt_status trainer_parameters_finite(trainer *t, bool *finite_p);
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

/* trainer_progress.c, rank 0: a live line on a terminal, plain lines in a log. */
void trainer_progress_open(const trainer *t);
/* Says so when keys of [model] override the preset's. */
void trainer_note_preset(const spt_config *config);
void trainer_progress_step(const trainer *t, const trainer_step *step);
void trainer_progress_event(const char *format, ...) __attribute__((format(printf, 1, 2)));
void trainer_progress_close(const trainer *t);

/* trainer_profile.c */
/* Call after the first step: it creates what later steps reuse, and is left out where more steps follow. Local. */
void trainer_profile_first_step(trainer *t);
/* Where the time went by phase and by op, what each rank read and holds, what the messages were; printed by rank 0.
 * Collective. */
spt_status trainer_print_profile(const trainer *t);

#endif
