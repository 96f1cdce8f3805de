/* `spectron rehearse`: tomorrow's job tonight on a laptop. The job shrunk in width is started, saves, is killed and
 * resumes on as many ranks as the real one (rehearsal.h); what the real one will need is counted (job_cost.h). */
#include "io/job_toml.h"
#include "rehearsal.h"
#include "tools.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char help[] =
    "spectron rehearse JOB.toml --ranks N [OPTION]…   tomorrow's job tonight: rehearsed on this machine\n\n"
    "Starts the job with its width shrunk, on N ranks of this machine and random tokens; lets it save, kills it "
    "(SIGKILL), "
    "resumes it\n"
    "up to step 20 and checks that it goes on with the step after the save and loses nothing. 64 ranks take about a "
    "minute on two\n"
    "cores and 4 GB. Then prints what the job needs at full size: memory per rank, walltime, checkpoints, requeues.\n\n"
    "  --ranks N                        ranks of the real job (needed)\n"
    "  --set TABLE.KEY=VALUE            override a key of the job file; may be repeated\n"
    "  --time-limit [D-]HH:MM:SS        of the Slurm job (24:00:00); it saves 360 s before\n"
    "  --flops-per-second-per-rank R    for the walltime, e.g. 2e14 for a GPU; else 0.8 of what this machine reaches\n"
    "  --link-gb-s B                    GB/s that a rank sends to another node (1)\n"
    "  --output DIR                     keep the rehearsal's files there (must not exist); else a temporary folder\n"
    "  --patience SECONDS               without a step, or a due save, until the rehearsal has failed (300)\n\n"
    "Exit codes: 0 rehearsed · 2 bad usage or job file · 5 a resource failed, or the trainer's own code.\n"
    "$MPIEXEC names another launcher than mpirun.\n\n"
    "Example: spectron rehearse my.toml --ranks 64 --time-limit 12:00:00 --flops-per-second-per-rank 1.5e12\n";

enum { SETS_MAX = 64, SAVE_AHEAD = 360 /* the templates' --signal=B:USR1@300, which Slurm may send 60 s early */ };
#define PEAK_SHARE 0.8 /* of the peak that whole steps reached on the machines of README, "Speed" */

typedef struct options {
  const char *job, *output;
  const char *sets[SETS_MAX];
  int set_count;
  int64_t ranks, patience;
  double time_limit, rate, link; /* seconds; FLOP/s a rank, 0: measured; bytes/s */
} options;

/* ---- options ---- */

static spt_status read_time(const char *text, double *seconds_p) {
  long days = 0, hours, minutes, seconds;
  int used = 0;
  const char *dash = strchr(text, '-');
  if (dash && sscanf(text, "%ld-%n", &days, &used) == 1) text = dash + 1;
  used = 0;
  if (sscanf(text, "%ld:%ld:%ld%n", &hours, &minutes, &seconds, &used) != 3 || text[used] || days < 0 || hours < 0 ||
      minutes < 0 || minutes > 59 || seconds < 0 || seconds > 59 || days > 3650 || hours > 87600)
    return SPT_FAIL(SPT_ERR_USAGE, "rehearse: --time-limit wants [D-]HH:MM:SS, not '%s'", optarg);
  *seconds_p = 86400.0 * (double)days + 3600.0 * (double)hours + 60.0 * (double)minutes + (double)seconds;
  if (*seconds_p > SAVE_AHEAD) return SPT_OK;
  return SPT_FAIL(SPT_ERR_USAGE, "rehearse: --time-limit %s: a job saves %d s before its end and would make no step",
                  optarg, SAVE_AHEAD);
}

static spt_status read_positive(const char *option, const char *text, double *value_p) {
  char *end;
  const double value = strtod(text, &end);
  if (end == text || *end || !(value > 0) || !isfinite(value))
    return SPT_FAIL(SPT_ERR_USAGE, "rehearse: %s wants a number above 0, not '%s'", option, text);
  *value_p = value;
  return SPT_OK;
}

static spt_status read_option(int choice, char **argv, options *o) {
  switch (choice) {
  case 'n': return spt_tool_integer("--ranks", optarg, 1, 65536, &o->ranks);
  case 'p': return spt_tool_integer("--patience", optarg, 1, 1000000, &o->patience);
  case 't': return read_time(optarg, &o->time_limit);
  case 'f': return read_positive("--flops-per-second-per-rank", optarg, &o->rate);
  case 'l':
    SPT_TRY(read_positive("--link-gb-s", optarg, &o->link));
    o->link *= 1e9;
    return SPT_OK;
  case 'o': o->output = optarg; return SPT_OK;
  case 's':
    if (o->set_count == SETS_MAX) return SPT_FAIL(SPT_ERR_USAGE, "rehearse: more than %d --set", SETS_MAX);
    o->sets[o->set_count++] = optarg;
    return SPT_OK;
  default: return spt_tool_bad_option("rehearse", choice, argv[optind - 1]);
  }
}

static spt_status read_options(int argc, char **argv, options *o, bool *help_p) {
  static const struct option table[] = {{"ranks", 1, NULL, 'n'},
                                        {"set", 1, NULL, 's'},
                                        {"time-limit", 1, NULL, 't'},
                                        {"flops-per-second-per-rank", 1, NULL, 'f'},
                                        {"link-gb-s", 1, NULL, 'l'},
                                        {"output", 1, NULL, 'o'},
                                        {"patience", 1, NULL, 'p'},
                                        {"help", 0, NULL, 'h'},
                                        {NULL, 0, NULL, 0}};
  *o = (options){.patience = 300, .time_limit = 86400, .link = 1e9};
  *help_p = false;
  opterr = 0;
  for (int choice; (choice = getopt_long(argc, argv, ":h", table, NULL)) != -1;) {
    if (choice == 'h') {
      *help_p = true;
      return SPT_OK;
    }
    SPT_TRY(read_option(choice, argv, o));
  }
  if (optind + 1 != argc || o->ranks == 0)
    return SPT_FAIL(SPT_ERR_USAGE, "rehearse: wants a job file and --ranks N (see spectron rehearse --help)");
  o->job = argv[optind];
  return SPT_OK;
}

/* ---- what the job needs ---- */

static double mib(double bytes) {
  return bytes / (1 << 20);
}

static void print_seconds(double seconds) {
  if (seconds < 120)
    printf("%.3g s", seconds);
  else if (seconds < 7200)
    printf("%.3g min", seconds / 60);
  else if (seconds < 172800)
    printf("%.3g h", seconds / 3600);
  else
    printf("%.4g days", seconds / 86400);
}

typedef struct step_time {
  double compute, reduce, gather, hidden, total; /* seconds; hidden: of reduce, behind the backward pass */
} step_time;

/* A ring moves (P − 1)/P of the bytes of a reduce-scatter or an all-gather through each rank, twice that of an
 * all-reduce. Two thirds of the FLOPs are the backward pass's, behind which the reduction can hide. */
static step_time time_step(const spt_config *config, const job_cost *cost, double rate, double link) {
  const double tokens = (double)config->batch.sequences * (double)config->model.seq_len, ranks = cost->ranks;
  const double share = (ranks - 1) / ranks / link;
  const spt_comm_counter *traffic = cost->traffic;
  step_time t = {.compute =
                     (tokens * cost->flops.train_per_token + cost->plan->imbalance * cost->flops.optimizer_step) /
                     ranks / rate,
                 .reduce = share * (2 * (double)traffic[SPT_COLLECTIVE_ALL_REDUCE].bytes +
                                    (double)traffic[SPT_COLLECTIVE_REDUCE_SCATTER].bytes +
                                    (double)traffic[SPT_COLLECTIVE_EXCHANGE].bytes),
                 .gather = share * (double)traffic[SPT_COLLECTIVE_ALL_GATHER].bytes};
  if (config->dist.overlap) {
    const double passes = (double)config->batch.sequences / ranks / (double)config->batch.micro;
    t.hidden = fmin(t.reduce, t.compute / passes * 2 / 3); // it begins in the last pass
  }
  t.total = t.compute + t.reduce - t.hidden + t.gather;
  return t;
}

/* All validations of the run; forward only. 0 where the set is taken whole, whose size is not looked at. */
static double time_validation(const spt_config *config, const job_cost *cost, double rate) {
  if (config->data.validation.count == 0) return 0;
  const int64_t steps = config->schedule.steps, every = config->validation.every;
  const int64_t count = 1 + (every > 0 ? (steps - 1) / every : 0);
  return (double)count * (double)spt_config_validation_tokens(config) * cost->flops.train_per_token / 3 / cost->ranks /
         rate;
}

static void print_walltime(const spt_config *config, const options *o, const job_cost *cost, double rate,
                           const step_time *step, double walltime) {
  printf("walltime            ");
  print_seconds(walltime);
  printf(": %lld steps of ", (long long)config->schedule.steps);
  print_seconds(step->total);
  printf("\n  compute           ");
  print_seconds(step->compute);
  printf(" a step at %.4g FLOP/s a rank", rate);
  if (o->rate > 0)
    printf(", as given\n");
  else
    printf(": %g of what THIS machine reaches (%s); --flops-per-second-per-rank says it for yours\n", PEAK_SHARE,
           cost->backend->description);
  printf("  communication     ");
  print_seconds(step->reduce + step->gather);
  printf(" a step at %g GB/s a rank (--link-gb-s)", o->link / 1e9);
  if (step->hidden > 0)
    printf(", %.0f %% of it behind the backward pass", 100 * step->hidden / (step->reduce + step->gather));
  printf("\n");
}

static void print_checkpoints(const spt_config *config, double bytes, double step, double walltime) {
  const int64_t every = config->checkpoint.every;
  const double seconds = config->checkpoint.every_seconds;
  double saves = 1 + (double)(every > 0 ? (config->schedule.steps - 1) / every : 0);
  // a save by the clock comes only where none by steps came before it
  if (seconds > 0 && (every == 0 || seconds < (double)every * step)) saves = 1 + floor(walltime / seconds);
  const double kept = fmin((double)config->checkpoint.keep, saves);
  printf("checkpoints         %11.1f MiB each, %.0f save%s%s; up to %.4g GiB on disk: %.0f kept, the best, one being "
         "written, two that loss spikes keep\n",
         mib(bytes), saves, saves == 1 ? "" : "s",
         config->data.validation.count > 0 ? " and one for each new best validation" : "",
         mib((kept + 4) * bytes) / 1024, kept);
  double lost = walltime;
  if (every > 0) lost = fmin(lost, (double)every * step);
  if (seconds > 0) lost = fmin(lost, seconds);
  printf("lost when a node dies at most ");
  print_seconds(lost);
  printf(" of work ([checkpoint] every_seconds sets it)\n");
}

static void print_requeues(double walltime, double limit) {
  const double usable = limit - SAVE_AHEAD, starts = fmax(1, ceil(walltime / usable));
  printf("requeues            %11.0f at a time limit of ", starts - 1);
  print_seconds(limit);
  printf(" (--time-limit), each start ending %d s before it; starting up and waiting in the queue come on top\n",
         SAVE_AHEAD);
}

static spt_status print_full_size(const options *o, const spt_config *config, job_cost *cost, double checkpoint_bytes) {
  double rate = o->rate;
  if (rate == 0) {
    SPT_TRY(spt_backend_measure_peak(cost->backend));
    rate = PEAK_SHARE * cost->backend->peak_flops;
  }
  const step_time step = time_step(config, cost, rate, o->link);
  const double walltime = (double)config->schedule.steps * step.total + time_validation(config, cost, rate);
  printf("at full size, on %d ranks:\n", cost->ranks);
  printf("memory per rank     %11.1f MiB  (spectron-dist --dry-run --ranks %d says of what)\n",
         mib((double)cost->memory.total), cost->ranks);
  print_walltime(config, o, cost, rate, &step, walltime);
  print_checkpoints(config, checkpoint_bytes, step.total, walltime);
  print_requeues(walltime, o->time_limit);
  return SPT_OK;
}

/* ---- the rehearsal ---- */

static spt_status make_folder(const options *o, char path[SPT_PATH_MAX]) {
  if (!o->output) return rehearsal_make_folder("rehearse", path);
  if (mkdir(o->output, 0777) != 0)
    return SPT_FAIL(SPT_ERR_USAGE, "rehearse: --output %s: %s; choose a folder that is not there yet", o->output,
                    strerror(errno));
  return rehearsal_whole_path(o->output, path);
}

/* How much of the full job's plan the small one has. */
static spt_status print_shrunk(const spt_config *full, const job_cost *full_cost, spt_config *small,
                               int64_t *data_bytes_p) {
  job_cost cost;
  SPT_TRY(job_cost_open(small, full_cost->ranks, &cost));
  int same = 0;
  for (int i = 0; i < cost.params->pair_count && spt_method_uses_pairs(full->optimizer.method); i++)
    if (cost.plan->pair_owner[i] == full_cost->plan->pair_owner[i]) same++;
  printf("rehearsed: hidden %lld for %lld, ffn %lld for %lld, vocab %lld for %lld, sequence %lld for %lld, batch %lld "
         "for %lld\n",
         (long long)small->model.hidden, (long long)full->model.hidden, (long long)small->model.ffn,
         (long long)full->model.ffn, (long long)small->model.vocab, (long long)full->model.vocab,
         (long long)small->model.seq_len, (long long)full->model.seq_len, (long long)small->batch.sequences,
         (long long)full->batch.sequences);
  printf("           as it will be: %d ranks, %lld layers, %d tensors, %d pairs", full_cost->ranks,
         (long long)full->model.layers, cost.params->tensor_count, cost.params->pair_count);
  if (spt_method_uses_pairs(full->optimizer.method)) printf(" (%d with their owner of then)", same);
  printf("; buckets %d for %d\n", cost.plan->bucket_count, full_cost->plan->bucket_count);
  fflush(stdout);
  *data_bytes_p = cost.checkpoint_bytes;
  job_cost_close(&cost);
  return SPT_OK;
}

/* The small job's file has as many datasets as the full one's: what it holds beside them, the full one does too. */
static spt_status rehearse(const options *o, const spt_config *full, job_cost *cost, const char *folder) {
  static spt_config small; // large
  char trainer[SPT_PATH_MAX];
  int64_t small_bytes;
  rehearsal r = {.trainer = trainer, .folder = folder, .ranks = (int)o->ranks, .patience = (double)o->patience,
                 .guided = full->guidance.method != SPT_GUIDANCE_NONE};
  const double began = spt_tool_seconds();
  SPT_TRY(rehearsal_find_trainer(trainer));
  SPT_TRY(rehearsal_launcher_find(folder, &r.launcher));
  SPT_TRY(rehearsal_shrink(full, cost, folder, &small));
  SPT_TRY(rehearsal_write_files(&small, r.ranks, folder));
  SPT_TRY(print_shrunk(full, cost, &small, &small_bytes));
  SPT_TRY(rehearsal_run(&r));
  printf("OK: killed after step %lld with a checkpoint of step %lld; resumed with step %lld, ended with step %lld and "
         "exit code %d%s;\n    each step once in metrics.jsonl, %lld made twice with the same loss; last checkpoint intact; "
         "%.3g s a step, %.0f s in all\n",
         (long long)r.killed_after, (long long)r.saved, (long long)r.saved + 1, (long long)r.end, r.end_code,
         r.guided ? ", asked to stop" : "",
         (long long)r.repeated, r.seconds_per_step, spt_tool_seconds() - began);
  return print_full_size(o, full, cost, (double)(cost->checkpoint_bytes + r.checkpoint_bytes - small_bytes));
}

static spt_status run(const options *o) {
  static spt_config full; // large
  char folder[SPT_PATH_MAX];
  job_cost cost;
  SPT_TRY(spt_job_load(o->job, o->sets, o->set_count, &full));
  if (full.device.backend == SPT_BACKEND_CUDA) {
    full.device.backend = SPT_BACKEND_CPU;
    printf("note: [device] backend = \"cuda\" is rehearsed and counted on the CPU\n");
  }
  SPT_TRY(job_cost_open(&full, (int)o->ranks, &cost));
  spt_status status = make_folder(o, folder);
  if (status == SPT_OK) {
    rehearsal_hear_interrupts();
    status = rehearse(o, &full, &cost, folder);
    if (o->output)
      printf("the rehearsal's files: %s\n", folder);
    else
      rehearsal_remove_folder(folder);
  }
  job_cost_close(&cost);
  rehearsal_obey_interrupts();
  return status;
}

spt_status spt_tool_rehearse(int argc, char **argv) {
  options o;
  bool wants_help;
  SPT_TRY(read_options(argc, argv, &o, &wants_help));
  if (!wants_help) return run(&o);
  fputs(help, stdout);
  return SPT_OK;
}
