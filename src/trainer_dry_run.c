/* The dry run: what a job costs, without training it. */
#include "job_cost.h"
#include "core/flops_match.h"
#include "core/guidance.h"
#include "trainer.h"

#include <math.h>
#include <stdio.h>

static double mib(size_t bytes) {
  return (double)bytes / (1 << 20);
}

static void print_parameters(const spt_config *config, const spt_params *params) {
  static const char *const names[] = {"embedding", "norm gains", "factors A", "factors B", "dense matrices", "head", "guides"};
  int64_t counts[SPT_ROLES] = {0};
  for (int i = 0; i < params->tensor_count; i++) counts[params->tensors[i].role] += params->tensors[i].count;
  printf("parameters          %14lld\n", (long long)params->count);
  for (int role = 0; role < SPT_ROLES; role++)
    if (counts[role] && role != SPT_ROLE_GUIDE) printf("  %-17s %14lld\n", names[role], (long long)counts[role]);
  if (params->guide_count)
    printf("%-19s %14lld  (beside them, in the first %lld of %lld steps; memory, traffic and checkpoints below are with them)\n",
           names[SPT_ROLE_GUIDE], (long long)params->guide_count,
           (long long)spt_guidance_steps(&config->guidance, config->schedule.steps), (long long)config->schedule.steps);
  for (int i = 0; i < params->pair_count; i++) {
    const spt_pair *pair = &params->pairs[i];
    if (pair->layer == 0 && !spt_pair_is_dense(pair) && pair->r * (pair->m + pair->n) > pair->m * pair->n)
      printf("  note: %s (%lld × %lld at rank %lld) costs more than its dense matrix, in every layer\n",
             params->tensors[pair->a].name, (long long)pair->m, (long long)pair->n, (long long)pair->r);
  }
  if (config->model.tie_embeddings) printf("  embedding and head are tied\n");
}

/* One op of a step, over all layers: forward, and backward at twice its cost. */
static void print_op(const char *name, double forward) {
  printf("  %-17s %14.4e %14.4e\n", name, forward, 2 * forward);
}

/* What the optimizer does beyond AdamW's elementwise work, against the paper's statement. */
static void print_overhead(const spt_config *config, const spt_flops *flops, double training) {
  const double extra = flops->newton_schulz + flops->power_iteration;
  if (extra == 0) return;
  printf("  overhead          %14.4f %%  of the step's FLOPs: Newton-Schulz %.4f %%, power iteration %.4f %%", 100 * extra / training,
         100 * flops->newton_schulz / training, 100 * flops->power_iteration / training);
  printf(config->optimizer.method == SPT_METHOD_SPECTRON ? " (the paper: under 1 %%)\n" : "\n");
}

static void print_matched(const spt_config *config) {
  const spt_schedule_config *schedule = &config->schedule;
  if (!schedule->match_flops[0]) return;
  static const char *const by[] = {[SPT_MATCH_NOMINAL] = "nominal 6ND", [SPT_MATCH_SIX_ND] = "6ND", [SPT_MATCH_EXACT] = "all FLOPs"};
  printf("steps               %14lld  that spend the FLOPs of %s by", (long long)schedule->steps, schedule->match_flops);
  for (int i = 0; i < 3; i++)
    printf("%s %s%s: %lld", i ? "," : "", by[i], i == (int)schedule->match_count ? " (this job's match_count)" : "", (long long)schedule->matched[i]);
  printf("\n");
}

static void print_flops(const spt_config *config, const spt_flops *flops) {
  const double tokens = (double)trainer_tokens_per_step(config), training = tokens * flops->train_per_token,
               steps = (double)config->schedule.steps;
  const double *matrix = flops->matrix_forward;
  printf("FLOPs per step      %14.4e  (%.0f tokens; below, forward and backward)\n", training + flops->optimizer_step, tokens);
  print_op("q|k|v", tokens * (matrix[SPT_Q] + matrix[SPT_K] + matrix[SPT_V]));
  print_op("attention", tokens * flops->attention_forward);
  print_op("o", tokens * matrix[SPT_O]);
  print_op("gate|up", tokens * (matrix[SPT_GATE] + matrix[SPT_UP]));
  print_op("down", tokens * matrix[SPT_DOWN]);
  print_op("head", tokens * flops->head_forward);
  if (flops->newton_schulz > 0) printf("  Newton-Schulz     %14.4e\n", flops->newton_schulz);
  if (flops->power_iteration > 0) printf("  power iteration   %14.4e\n", flops->power_iteration);
  printf("  other optimizer   %14.4e  (optimizer: %.3f %% of the step, all ranks together)\n", flops->adamw + flops->pair_elements,
         100 * flops->optimizer_step / (training + flops->optimizer_step));
  print_overhead(config, flops, training);
  printf("  6·N·D             %14.4e  (as the paper counts)\n", tokens * flops->six_nd_per_token);
  printf("FLOPs of the run    %14.4e  (%lld steps; 6·N·D: %.4e)\n", spt_flops_run(config, flops, config->schedule.steps),
         (long long)config->schedule.steps, steps * tokens * flops->six_nd_per_token);
  if (flops->guide_forward > 0) {
    const double guidance = spt_flops_guidance(config, flops, config->schedule.steps),
                 rest = spt_flops_run(config, flops, config->schedule.steps) - guidance;
    printf("  guidance          %14.4e  (%.2f %% on top of the run's; the paper: about 25 %%%s)\n", guidance, 100 * guidance / rest,
           config->guidance.stochastic ? "" : " with the stochastic variant");
  }
  print_matched(config);
}

static void print_memory(const spt_config *config, const job_memory *memory, const spt_backend *backend, int ranks) {
  const bool device = !backend->host_memory;
  printf("memory per %s     %s%11.1f MiB  (the largest of %d %s%s, micro-batch %lld%s)\n", device ? "GPU" : "rank", device ? " " : "",
         mib(memory->total), ranks, device ? "GPU" : "rank", ranks == 1 ? "" : "s", (long long)config->batch.micro,
         config->model.recompute ? ", activations recomputed" : "");
  printf("  parameters        %11.1f MiB\n  gradients         %11.1f MiB\n", mib(memory->parameters), mib(memory->gradients));
  printf("  optimizer state   %11.1f MiB\n  compute weights   %11.1f MiB\n", mib(memory->state), mib(memory->compute_weights));
  printf("  activations       %11.1f MiB\n  workspace         %11.1f MiB\n", mib(memory->activations), mib(memory->workspace));
  if (memory->own) printf("  libraries, scratch%11.1f MiB\n", mib(memory->own));
  if (!device) printf("  snapshot of a save%11.1f MiB\n", mib(memory->snapshot));
  if (memory->staging)
    printf("  %-17s %11.1f MiB\n", config->dist.reduction == SPT_REDUCTION_TREE ? "tree's sums" : "reduce-scatter",
           mib(memory->staging));
  if (!device && memory->telemetry) printf("  telemetry         %11.1f MiB  (from step %lld on)\n", mib(memory->telemetry), (long long)config->metrics.spectral_every);
  if (device) printf("memory of the host  %11.1f MiB  (snapshot of a save and telemetry, a rank)\n", mib(memory->snapshot + memory->telemetry));
}

/* Forward only, so a third of training on as many tokens; named where it is no longer small beside the training. The
 * set itself is not looked at. */
static void print_validation(const spt_config *config) {
  const double every = (double)config->validation.every, step = (double)trainer_tokens_per_step(config), most = 0.005;
  const double tokens = (double)spt_config_validation_tokens(config), share = tokens / 3 / (every * step);
  const bool end_only = every == 0 || every > (double)config->schedule.steps;
  char set[64] = "the whole set, whose size is not looked at";
  if (config->data.validation.count == 0) return;
  if (tokens > 0) snprintf(set, sizeof set, "at most %.4g tokens", tokens);
  if (end_only || tokens == 0) {
    printf("validation          %16s  %s", "", set);
    if (end_only)
      printf(", at the end only\n");
    else
      printf(", every %.4g steps\n", every);
    return;
  }
  printf("validation          %14.3f %%  of the training's FLOPs: %s every %.4g steps", 100 * share, set, every);
  if (share > most)
    printf(" (below %g %%: at most %.3g tokens, or every %.4g steps)", 100 * most, 3 * most * every * step,
           ceil(tokens / 3 / (most * step)));
  printf("\n");
}

static void print_distribution(const spt_config *config, const job_cost *cost) {
  printf("ranks               %14d  (%lld sequences each; optimizer load: largest %.2f × the mean)\n", cost->ranks,
         (long long)(config->batch.sequences / cost->ranks), cost->plan->imbalance);
  for (int kind = 0; kind < SPT_COLLECTIVE_KINDS; kind++)
    if (cost->traffic[kind].messages)
      printf("  %-17s %11.1f MiB  in %lld messages a step\n", spt_collective_name((spt_collective)kind), mib((size_t)cost->traffic[kind].bytes),
             (long long)cost->traffic[kind].messages);
}

spt_status trainer_dry_run(const spt_config *job, int ranks) {
  static spt_config config; // large
  job_cost cost;
  config = *job;
  SPT_TRY(job_cost_open(&config, ranks, &cost));
  trainer_note_preset(&config);
  printf("%s: hidden %lld, %lld layers, %lld heads, ffn %lld, vocab %lld, sequence %lld; %s\n", config.run.name,
         (long long)config.model.hidden, (long long)config.model.layers, (long long)config.model.heads,
         (long long)config.model.ffn, (long long)config.model.vocab, (long long)config.model.seq_len,
         cost.backend->description);
  print_parameters(&config, cost.params);
  print_flops(&config, &cost.flops);
  print_validation(&config);
  print_memory(&config, &cost.memory, cost.backend, ranks);
  print_distribution(&config, &cost);
  job_cost_close(&cost);
  return SPT_OK;
}
