/* The dry run of every preset: memory, and the largest micro-batch that a GPU takes. */
#include "job_cost.h"
#include "trainer.h"

#include <stdio.h>

/* The largest micro-batch whose memory fits; 0: not even one sequence does. */
static spt_status largest_micro(spt_backend *backend, const spt_model_config *model, const job_memory *fixed, size_t most, int64_t *micro_p) {
  int64_t fits = 0, beyond = 0; // 0: not known yet
  while (beyond == 0 || beyond - fits > 1) {
    const int64_t micro = beyond ? fits + (beyond - fits) / 2 : fits ? 2 * fits : 1;
    job_memory memory = *fixed;
    SPT_TRY(job_memory_add_model(backend, model, micro, &memory));
    if (memory.total <= most)
      fits = micro;
    else
      beyond = micro;
  }
  *micro_p = fits;
  return SPT_OK;
}

/* One row: memory but activations, what a sequence more takes, and the largest micro-batch, kept or recomputed. */
static spt_status print_preset(const spt_config *config, const spt_params *params, const spt_preset *preset, spt_backend *backend, int ranks) {
  spt_shard_plan *plan = NULL;
  job_memory fixed;
  SPT_TRY(job_plan_open(config, params, ranks, &plan));
  job_memory_count_fixed(config, params, plan, backend, ranks, &fixed);
  spt_shard_plan_close(&plan);
  printf("| %s%s%s%s | %lld |", preset->name, preset->alias ? " (" : "", preset->alias ? preset->alias : "", preset->alias ? ")" : "",
         (long long)params->count);
  for (int recompute = 0; recompute < 2; recompute++) {
    spt_model_config model = config->model;
    model.recompute = recompute;
    job_memory one = fixed, two = fixed;
    int64_t micro;
    SPT_TRY(job_memory_add_model(backend, &model, 1, &one));
    SPT_TRY(job_memory_add_model(backend, &model, 2, &two));
    SPT_TRY(largest_micro(backend, &model, &fixed, TRAINER_GPU_BYTES - TRAINER_GPU_RESERVED, &micro));
    if (!recompute) printf(" %.0f |", (double)(one.parameters + one.gradients + one.state + one.compute_weights + one.own + one.staging) / 1e6);
    printf(" %.0f | %.0f | %lld |", (double)one.total / 1e6, (double)(two.total - one.total) / 1e6, (long long)micro);
  }
  printf("\n");
  return SPT_OK;
}

spt_status trainer_print_presets(const spt_config *job, int ranks) {
  static spt_config config; // large
  spt_backend *backend = NULL;
  int count;
  const spt_preset *presets = spt_presets(&count);
  SPT_TRY(spt_backend_open_measure(job->device.backend, job->device.precision, (int)job->device.threads, 1, &backend));
  printf("Memory of %s on %d rank%s by preset, in MB (10^6 bytes); sequences of 2048 tokens. %s\n", backend->host_memory ? "a rank" : "a GPU",
         ranks, ranks == 1 ? "" : "s", backend->description);
  printf("micro: the largest micro-batch that fits in %g GB (10^9 bytes) less %.2f GB for the driver's context, kernels and NCCL's buffers\n\n",
         TRAINER_GPU_BYTES / 1e9, TRAINER_GPU_RESERVED / 1e9);
  printf("| preset | parameters | without activations | one sequence | each more | micro | recompute: one sequence | each more | micro |\n"
         "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
  spt_status status = SPT_OK;
  for (int i = 0; i < count && status == SPT_OK; i++) {
    spt_params *params = NULL;
    config = *job;
    config.model.kv_heads = config.model.ffn = 0;
    status = spt_config_apply_preset(presets[i].name, &config.model);
    if (status == SPT_OK) status = spt_config_complete(&config);
    if (status == SPT_OK) status = spt_config_check_ranks(&config, ranks);
    if (status == SPT_OK) status = spt_params_open(&config.model, &params);
    if (status == SPT_OK) status = print_preset(&config, params, &presets[i], backend, ranks);
    spt_params_close(&params);
  }
  backend->ops->close(&backend);
  return status;
}
