/* `spectron replay`: a step of a run once more, bit for bit, with a look into every op of it. */
#include "tool_replay.h"

#include "io/durable_file.h"
#include "rehearsal.h"
#include "tools.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <time.h>

static const char help[] =
    "spectron replay RUN --step K [OPTION]…   step K of a run once more, bit for bit\n\n"
    "RUN is a run's folder. Takes the newest intact checkpoint before step K (post-mortem/ holds those that spikes and skipped steps need),\n"
    "starts the trainer with as many ranks and threads, the micro-batch and the job that computed the step, and compares loss and\n"
    "gradient norm of every recorded step up to K. Then names the first matrix whose values were not finite in step K, or, where all are\n"
    "finite, those that grew most against step K − 1. All ranks run on this machine; nothing is written into RUN.\n\n"
    "  --step K                the step (needed), counted as in metrics.jsonl\n"
    "  --from STEP             begin with this checkpoint; 0: with the run's first step (not where --init-from began it)\n"
    "  --set TABLE.KEY=VALUE   override a key of the job, e.g. data.train where the shards have moved; may be repeated\n\n"
    "Exit codes: 0 the same bits · 3 other bits, or damaged files · 2 bad usage, or no checkpoint before step K · 5 a resource failed.\n"
    "$MPIEXEC names another launcher than mpirun. Processors of another kind compute other bits. Where this machine is too small for the\n"
    "ranks: srun spectron-dist --replay K --resume=CHECKPOINT --set run.output=ELSEWHERE RUN/job.toml, which compares nothing.\n\n"
    "Example: spectron replay runs/my --step 1234\n";

enum { SETS_MAX = 8 };

typedef struct options {
  const char *run;
  const char *sets[SETS_MAX];
  int set_count;
  int64_t step, from;
} options;

static spt_status read_options(int argc, char **argv, options *o, bool *help_p) {
  static const struct option table[] = {
      {"step", 1, NULL, 'k'}, {"from", 1, NULL, 'f'}, {"set", 1, NULL, 's'}, {"help", 0, NULL, 'h'}, {NULL, 0, NULL, 0}};
  *o = (options){.from = -1};
  *help_p = false;
  opterr = 0;
  for (int choice; (choice = getopt_long(argc, argv, ":h", table, NULL)) != -1;) {
    switch (choice) {
    case 'h': *help_p = true; return SPT_OK;
    case 'k': SPT_TRY(spt_tool_integer("--step", optarg, 1, INT64_C(1000000000000), &o->step)); break;
    case 'f': SPT_TRY(spt_tool_integer("--from", optarg, 0, INT64_C(1000000000000), &o->from)); break;
    case 's':
      if (o->set_count == SETS_MAX) return SPT_FAIL(SPT_ERR_USAGE, "replay: more than %d --set", SETS_MAX);
      o->sets[o->set_count++] = optarg;
      break;
    default: return spt_tool_bad_option("replay", choice, argv[optind - 1]);
    }
  }
  if (optind + 1 != argc || o->step == 0)
    return SPT_FAIL(SPT_ERR_USAGE, "replay: wants a run's folder and --step K (see spectron replay --help)");
  if (o->from >= o->step)
    return SPT_FAIL(SPT_ERR_USAGE, "replay: --from %lld is not before --step %lld", (long long)o->from, (long long)o->step);
  o->run = argv[optind];
  return SPT_OK;
}

/* ---- the trainer ---- */

static spt_status wait_for(pid_t pid, const char *log) {
  int code;
  while (!rehearsal_ended(pid, &code)) {
    if (rehearsal_interrupted) {
      rehearsal_kill_all();
      return SPT_FAIL(SPT_STOPPED, "interrupted");
    }
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
  }
  if (code == 0) return SPT_OK;
  char words[REHEARSAL_WORDS];
  rehearsal_last_words(log, words);
  return SPT_FAIL(rehearsal_status_of(code), "replay: the trainer ended with exit code %d%s", code, words);
}

/* The trainer as it computed the step, with an output of its own. */
static spt_status compute(const options *o, const replay_plan *plan, const char *folder, const char *log) {
  char trainer[SPT_PATH_MAX], job[SPT_PATH_MAX], from[SPT_PATH_MAX + 16], step[32], threads[32];
  char output[SPT_PATH_MAX + 32], micro[64], backend[64], reduction[64], precision[64];
  const char *arguments[2 * SETS_MAX + 20];
  rehearsal_launcher launcher;
  pid_t pid;
  int n = 0;
  snprintf(job, sizeof job, "%s/job.toml", folder);
  SPT_TRY(spt_file_replace(job, plan->job, strlen(plan->job)));
  SPT_TRY(rehearsal_find_trainer(trainer));
  SPT_TRY(rehearsal_launcher_find(folder, &launcher));
  snprintf(from, sizeof from, "--resume=%s", plan->checkpoint);
  snprintf(step, sizeof step, "--replay=%lld", (long long)plan->step);
  snprintf(threads, sizeof threads, "--threads=%lld", (long long)plan->threads);
  snprintf(output, sizeof output, "--set=run.output=%s/run", folder);
  snprintf(micro, sizeof micro, "--set=batch.micro=%lld", (long long)plan->micro);
  snprintf(backend, sizeof backend, "--set=device.backend=%s", plan->backend);
  snprintf(reduction, sizeof reduction, "--set=dist.reduction=%s", plan->reduction ? plan->reduction : "");
  snprintf(precision, sizeof precision, "--set=device.precision=%s", plan->precision ? plan->precision : "");
  arguments[n++] = step;
  arguments[n++] = threads;
  arguments[n++] = micro;
  arguments[n++] = "--set=checkpoint.resume=false";
  if (plan->checkpoint[0]) arguments[n++] = from;
  if (plan->backend[0]) arguments[n++] = backend;
  if (plan->reduction) arguments[n++] = reduction;
  if (plan->precision) arguments[n++] = precision;
  for (int i = 0; i < o->set_count; i++) {
    arguments[n++] = "--set";
    arguments[n++] = o->sets[i];
  }
  arguments[n++] = output;
  arguments[n++] = job;
  arguments[n] = NULL;
  SPT_TRY(rehearsal_launch(&launcher, (int)plan->ranks, trainer, arguments, log, &pid));
  const spt_status status = wait_for(pid, log);
  rehearsal_kill_all(); // whatever happened
  return status;
}

/* ---- what came of it ---- */

static bool same(double one, double other) {
  return one == other || (!isfinite(one) && !isfinite(other)); // a record does not tell what is not finite apart
}

static spt_status compare(const replay_plan *plan, const spt_metric_record *computed, int64_t count) {
  const spt_metric_record *last = &plan->recorded[plan->count - 1];
  for (int64_t i = 0; i < plan->count; i++) {
    const spt_metric_record *was = &plan->recorded[i], *is = computed + (was->step - plan->from - 1);
    if (was->step - plan->from > count || is->step != was->step) // the trainer recorded every step
      return SPT_FAIL(SPT_ERR_RESOURCE, "replay: step %lld was not computed", (long long)was->step);
    if (!same(was->loss, is->loss) || !same(was->grad_norm, is->grad_norm))
      return SPT_FAIL(SPT_ERR_DATA,
                      "replay: not reproduced: the first step that differs is %lld, loss %.17g recorded and %.17g computed, gradient norm %.17g and "
                      "%.17g, learning rate %.17g and %.17g",
                      (long long)was->step, was->loss, is->loss, was->grad_norm, is->grad_norm, was->lr, is->lr);
  }
  if (last->step != plan->step)
    printf("step %lld itself is not recorded ([metrics] every); the last recorded one before it:\n", (long long)plan->step);
  printf("step %lld: loss %.17g, gradient norm %.17g: bit for bit as recorded, like the %lld recorded step%s before it\n", (long long)last->step,
         last->loss, last->grad_norm, (long long)plan->count - 1, plan->count == 2 ? "" : "s");
  return SPT_OK;
}

static void print_findings(const char *log) {
  static const char begin[] = "replay: ";
  char line[1024];
  FILE *file = fopen(log, "r");
  while (file && fgets(line, sizeof line, file))
    if (strncmp(line, begin, sizeof begin - 1) == 0) fputs(line + sizeof begin - 1, stdout);
  if (file) fclose(file);
}

static spt_status replay(const options *o, const replay_plan *plan, const char *folder) {
  char log[SPT_PATH_MAX], path[SPT_PATH_MAX];
  spt_metric_record *computed = NULL;
  int64_t count = 0;
  snprintf(log, sizeof log, "%s/log", folder);
  snprintf(path, sizeof path, "%s/run/metrics.jsonl", folder);
  printf("steps %lld to %lld on %lld rank%s of %lld thread%s, micro-batch %lld, from %s%s\n", (long long)plan->from + 1, (long long)plan->step,
         (long long)plan->ranks, plan->ranks == 1 ? "" : "s", (long long)plan->threads, plan->threads == 1 ? "" : "s", (long long)plan->micro,
         plan->checkpoint[0] ? plan->checkpoint : "the start", plan->post_mortem ? ", as the post-mortem says" : "");
  fflush(stdout);
  SPT_TRY(compute(o, plan, folder, log));
  print_findings(log);
  if (access(path, F_OK) != 0)
    return SPT_FAIL(SPT_ERR_RESOURCE, "replay: the launcher ended well, but has not run the trainer; name another one in MPIEXEC");
  SPT_TRY(spt_metrics_read(path, &computed, &count));
  const spt_status status = compare(plan, computed, count);
  free(computed);
  return status;
}

static spt_status run(const options *o) {
  char folder[SPT_PATH_MAX], whole[SPT_PATH_MAX];
  SPT_TRY(rehearsal_whole_path(o->run, whole)); // the trainer may be started elsewhere
  replay_plan plan = {.run = whole, .step = o->step, .from = o->from};
  spt_status status = replay_plan_find(&plan);
  if (status == SPT_OK) status = rehearsal_make_folder("replay", folder);
  if (status == SPT_OK) {
    rehearsal_hear_interrupts();
    status = replay(o, &plan, folder);
    rehearsal_remove_folder(folder);
    replay_plan_fini(&plan);
    rehearsal_obey_interrupts();
    return status;
  }
  replay_plan_fini(&plan);
  return status;
}

spt_status spt_tool_replay(int argc, char **argv) {
  options o;
  bool wants_help;
  SPT_TRY(read_options(argc, argv, &o, &wants_help));
  if (!wants_help) return run(&o);
  fputs(help, stdout);
  return SPT_OK;
}
