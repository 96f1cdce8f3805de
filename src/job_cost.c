#include "job_cost.h"

#include "core/telemetry.h"
#include "dist/gradient_parts.h"
#include "dist/master_shards.h"
#include "dist/tree_reduction.h"

spt_status job_plan_open(const spt_config *config, const spt_params *params, int ranks, spt_shard_plan **plan_p) {
  const int64_t bucket_bytes = config->dist.bucket_mib << 20;
  if (config->dist.reduction == SPT_REDUCTION_TREE)
    return spt_shard_plan_open_coarse(&config->model, &config->optimizer, params, ranks, bucket_bytes,
                                      SPT_GRADIENT_PART, plan_p);
  return spt_shard_plan_open(&config->model, &config->optimizer, params, ranks, bucket_bytes, plan_p);
}

bool job_shards_masters(const spt_config *config, const spt_backend *backend, int ranks) {
  if (config->guidance.method != SPT_GUIDANCE_NONE) return false; // guides begin from whole pairs, and end in one copy of all
  return !backend->host_memory && backend->act == SPT_BF16 && ranks > 1;
}

void job_count_traffic(const spt_config *config, const spt_params *params, const spt_shard_plan *plan, const spt_backend *backend,
                       spt_comm_counter *traffic_p) {
  if (config->dist.reduction == SPT_REDUCTION_TREE)
    spt_tree_reduction_traffic(plan, config->batch.sequences / config->batch.micro, 0, traffic_p);
  else
    spt_shard_plan_traffic(plan, config->dist.reduction, traffic_p);
  if (!job_shards_masters(config, backend, plan->size)) return;
  traffic_p[SPT_COLLECTIVE_ALL_GATHER].bytes /= (int64_t)(sizeof(float) / spt_dtype_size(SPT_BF16));
  traffic_p[SPT_COLLECTIVE_ALL_GATHER].messages++; // the gains
  traffic_p[SPT_COLLECTIVE_ALL_GATHER].bytes += spt_master_shards_gains(params) * (int64_t)sizeof(float);
}

static size_t larger(size_t a, size_t b) {
  return a > b ? a : b;
}

/* The largest share over the ranks, which is what a node must have. */
static void count_shares(const spt_config *config, const spt_params *params, const spt_shard_plan *plan,
                         const spt_backend *backend, int ranks, job_memory *memory) {
  for (int rank = 0; rank < ranks; rank++) {
    size_t state, workspace, staging = 0;
    spt_optimizer_measure(&config->optimizer, params, &plan->shares[rank], backend->act, &state, &workspace);
    const size_t own_runs = (size_t)plan->elements[rank] * sizeof(float);
    // a reduce-scatter receives the own runs beside the buckets
    if (ranks > 1 && config->dist.reduction == SPT_REDUCTION_REDUCE_SCATTER) staging = own_runs;
    // the tree keeps partial sums of whole slabs, and receives those of all ranks for its own runs
    if (config->dist.reduction == SPT_REDUCTION_TREE)
      staging = spt_tree_reduction_bytes(plan, config->batch.sequences / config->batch.micro, rank);
    memory->state = larger(memory->state, state);
    memory->workspace = larger(memory->workspace, workspace);
    memory->snapshot = larger(memory->snapshot, state + own_runs);
    memory->staging = larger(memory->staging, staging);
  }
}

/* Of the rank with the most masters. */
static size_t sharded_bytes(const spt_params *params, const spt_shard_plan *plan, int ranks) {
  int64_t most = 0;
  for (int rank = 0; rank < ranks; rank++)
    if (spt_master_shards_elements(plan, rank) > most) most = spt_master_shards_elements(plan, rank);
  return (size_t)(most + spt_master_shards_gains(params)) * sizeof(float) + (size_t)plan->layout.elements * spt_dtype_size(SPT_BF16);
}

static const size_t workers_most = (size_t)1 << 30; // bytes

int64_t job_probe_rows(const spt_model_config *model) {
  return model->seq_len < JOB_PROBE_ROWS_MAX ? model->seq_len : JOB_PROBE_ROWS_MAX;
}

static size_t worker_bytes(const job_telemetry *telemetry) {
  return telemetry->doubles * sizeof(double) + telemetry->floats * sizeof(float);
}

job_telemetry job_count_telemetry(const spt_config *config, const spt_params *params, const int *pairs, int count, const spt_backend *backend, int ranks) {
  const int64_t rows = job_probe_rows(&config->model);
  const int total = pairs ? count : params->pair_count, share = pairs ? count : (total + ranks - 1) / ranks;
  job_telemetry telemetry = {0};
  for (int i = 0; i < total; i++) {
    const spt_pair *pair = &params->pairs[pairs ? pairs[i] : i];
    const size_t doubles = spt_telemetry_workspace(pair->m, pair->n, pair->r, rows), floats = 2 * (size_t)spt_pair_elements(pair);
    if (doubles > telemetry.doubles) telemetry.doubles = doubles;
    if (!backend->host_memory && floats > telemetry.floats) telemetry.floats = floats;
  }
  const size_t fit = workers_most / (worker_bytes(&telemetry) + 1);
  telemetry.workers = backend->threads < share ? backend->threads : share;
  if (fit < (size_t)telemetry.workers) telemetry.workers = (int)fit;
  if (telemetry.workers < 1) telemetry.workers = 1;
  return telemetry;
}

static size_t telemetry_bytes(const spt_config *config, const spt_params *params, const spt_backend *backend, int ranks) {
  if (config->metrics.spectral_every == 0) return 0;
  const job_telemetry telemetry = job_count_telemetry(config, params, NULL, 0, backend, ranks);
  return (size_t)telemetry.workers * worker_bytes(&telemetry) + (size_t)spt_probe_floats(&config->model, job_probe_rows(&config->model)) * sizeof(float);
}

void job_memory_count_fixed(const spt_config *config, const spt_params *params, const spt_shard_plan *plan,
                            const spt_backend *backend, int ranks, job_memory *memory_p) {
  *memory_p = (job_memory){0};
  count_shares(config, params, plan, backend, ranks, memory_p);
  memory_p->parameters = memory_p->gradients = (size_t)plan->layout.elements * sizeof(float);
  if (job_shards_masters(config, backend, ranks)) memory_p->parameters = sharded_bytes(params, plan, ranks);
  memory_p->telemetry = telemetry_bytes(config, params, backend, ranks);
  memory_p->own = spt_backend_own_bytes(backend, &config->model, &config->optimizer);
}

spt_status job_memory_add_model(spt_backend *backend, const spt_model_config *model, int64_t micro, job_memory *memory) {
  spt_model_memory bytes;
  SPT_TRY(spt_model_measure(backend, model, micro, true, &bytes));
  memory->compute_weights = bytes.compute_weights;
  memory->activations = bytes.activations;
  memory->workspace += bytes.workspace;
  memory->total = memory->parameters + memory->gradients + memory->state + memory->compute_weights +
                  memory->activations + memory->workspace + memory->own + memory->staging;
  if (backend->host_memory) memory->total += memory->snapshot + memory->telemetry;
  return SPT_OK;
}

/* Parameters and optimizer state, in fp32: momentum, with the left singular vector of a factor, else two moments. */
static int64_t count_checkpoint(const spt_config *config, const spt_params *params) {
  const bool pairs = spt_method_uses_pairs(config->optimizer.method);
  int64_t elements = 0;
  for (int i = 0; i < params->tensor_count; i++) {
    const spt_tensor *tensor = &params->tensors[i];
    if (pairs && tensor->pair >= 0)
      elements += 2 * tensor->count + (spt_tensor_is_factor(tensor) ? tensor->rows : 0);
    else
      elements += 3 * tensor->count;
  }
  return elements * (int64_t)sizeof(float);
}

static spt_status count(spt_config *config, bool choose_micro, job_cost *cost) {
  SPT_TRY(spt_backend_open_measure(config->device.backend, config->device.precision, (int)config->device.threads, 1,
                                   &cost->backend));
  if (choose_micro) config->batch.micro = spt_config_choose_micro(config, cost->ranks, cost->backend->threads);
  SPT_TRY(spt_params_open(&config->model, &cost->params));
  SPT_TRY(job_plan_open(config, cost->params, cost->ranks, &cost->plan));
  job_memory_count_fixed(config, cost->params, cost->plan, cost->backend, cost->ranks, &cost->memory);
  SPT_TRY(job_memory_add_model(cost->backend, &config->model, config->batch.micro, &cost->memory));
  spt_flops_count(&config->model, &config->optimizer, cost->params, &cost->flops);
  job_count_traffic(config, cost->params, cost->plan, cost->backend, cost->traffic);
  cost->checkpoint_bytes = count_checkpoint(config, cost->params);
  return SPT_OK;
}

spt_status job_cost_open(spt_config *config, int ranks, job_cost *cost_p) {
  const bool choose_micro = config->batch.micro == 0;
  SPT_TRY(spt_config_check_ranks(config, ranks));
  *cost_p = (job_cost){.ranks = ranks};
  const spt_status status = count(config, choose_micro, cost_p);
  if (status != SPT_OK) job_cost_close(cost_p);
  return status;
}

void job_cost_close(job_cost *cost) {
  spt_shard_plan_close(&cost->plan);
  spt_params_close(&cost->params);
  if (cost->backend) cost->backend->ops->close(&cost->backend);
}
