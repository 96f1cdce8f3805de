/* Opening a run: backend, plan, memory, data, model, optimizer, folder; and closing it in reverse. */
#include "job_cost.h"
#include "trainer.h"

#include "dist/comm_nccl.h"
#include "io/job_toml.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

double trainer_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Each phase may fail on some ranks only: all ranks agree before the next one. */
#define PHASE(expression)                                                                                              \
  do {                                                                                                                 \
    const spt_status phase_status_ = spt_comm_agree(t->comm, (expression), NULL);                                      \
    if (phase_status_ != SPT_OK) return phase_status_;                                                                 \
  } while (0)

static spt_status open_stream(const spt_globs *globs, int64_t vocab, spt_token_stream **stream_p) {
  const char *patterns[SPT_GLOBS_MAX];
  for (int i = 0; i < globs->count; i++) patterns[i] = globs->pattern[i];
  return spt_token_stream_open(patterns, globs->count, vocab, stream_p);
}

static spt_status open_data(trainer *t) {
  const spt_config *config = &t->config;
  const int64_t seq_len = config->model.seq_len;
  if (config->data.train.count == 0)
    return SPT_FAIL(SPT_ERR_USAGE,
                    "%s: [data] train is missing: name the token shards, e.g. train = \"data/train-*.h5\"",
                    t->options.job);
  SPT_TRY(open_stream(&config->data.train, config->model.vocab, &t->train));
  if (spt_token_stream_windows(t->train, seq_len) < 1)
    return SPT_FAIL(SPT_ERR_DATA, "%s: [data] train holds %lld tokens, fewer than one sequence of seq_len + 1 = %lld",
                    t->options.job, (long long)spt_token_stream_tokens(t->train), (long long)seq_len + 1);
  spt_token_stream_fingerprint(t->train, t->fingerprint);
  if (config->data.validation.count == 0) return SPT_OK;
  SPT_TRY(open_stream(&config->data.validation, config->model.vocab, &t->validation));
  SPT_TRY(spt_token_stream_same_tokenizer(t->train, t->validation));
  if (spt_token_stream_windows(t->validation, seq_len) < 1)
    return SPT_FAIL(SPT_ERR_DATA,
                    "%s: [data] validation holds %lld tokens, fewer than one sequence of seq_len + 1 = %lld",
                    t->options.job, (long long)spt_token_stream_tokens(t->validation), (long long)seq_len + 1);
  return SPT_OK;
}

spt_status trainer_open_table(trainer *t) {
  SPT_TRY(spt_params_open(&t->config.model, &t->params));
  spt_flops_count(&t->config.model, &t->config.optimizer, t->params, &t->flops);
  SPT_TRY(job_plan_open(&t->config, t->params, t->comm->size, &t->plan));
  t->masters = &t->plan->layout;
  return SPT_OK;
}

spt_status trainer_open_slab(trainer *t, const char *kind, const spt_layout *layout, spt_slab *slab, float **values_p) {
  spt_slab_init(slab, kind);
  const size_t at = spt_slab_reserve(slab, (size_t)layout->elements * sizeof(float));
  SPT_TRY(spt_slab_allocate(slab, t->backend));
  *values_p = spt_slab_at(slab, at);
  return SPT_OK;
}

spt_status trainer_open_optimizer(trainer *t) {
  SPT_TRY(spt_optimizer_open(t->backend, &t->config.optimizer, t->params, &t->plan->layout, &t->plan->shares[t->comm->rank],
                             t->parameters, t->gradients, t->config.run.seed, &t->optimizer));
  spt_optimizer_place_masters(t->optimizer, t->masters);
  return SPT_OK;
}

/* Where masters are their owners' alone: where they lie. */
static spt_status open_shards(trainer *t) {
  if (!job_shards_masters(&t->config, t->backend, t->comm->size)) return SPT_OK;
  SPT_TRY(spt_master_shards_open(t->plan, t->params, t->comm->rank, &t->shards));
  t->masters = &t->shards->masters;
  return SPT_OK;
}

/* And the copies of all. */
static spt_status open_copies(trainer *t) {
  spt_slab_init(&t->copy_slab, "bf16 parameters");
  if (!t->shards) return SPT_OK;
  const size_t values = spt_slab_reserve(&t->copy_slab, (size_t)t->plan->layout.elements * spt_dtype_size(SPT_BF16));
  const size_t gains = spt_slab_reserve(&t->copy_slab, (size_t)t->shards->gain_elements * sizeof(float));
  SPT_TRY(spt_slab_allocate(&t->copy_slab, t->backend));
  t->copies = (spt_gathered_copies){.backend = t->backend,
                                    .shards = t->shards,
                                    .values = spt_slab_at(&t->copy_slab, values),
                                    .gains = spt_slab_at(&t->copy_slab, gains)};
  return SPT_OK;
}

static spt_status open_control(trainer *t) {
  void *control = NULL;
  SPT_TRY(t->backend->ops->alloc(t->backend, sizeof *t->control, &control));
  t->control = control;
  return SPT_OK;
}

/* A rank of many threads wants longer passes than the batch's check could know; all ranks take the same. */
static spt_status choose_micro(trainer *t) {
  double threads = t->backend->threads;
  SPT_TRY(t->comm->ops->reduce_double(t->comm, &threads, 1, SPT_REDUCE_MAX));
  if (t->asked_micro == 0) t->config.batch.micro = spt_config_choose_micro(&t->config, t->comm->size, (int)threads);
  return SPT_OK;
}

static spt_status open_backend(trainer *t) {
  const spt_config *config = &t->config;
  SPT_TRY(spt_backend_choose_device(config->device.backend, t->comm->local_rank));
  SPT_TRY(spt_backend_open(config->device.backend, config->device.precision, (int)config->device.threads,
                           t->comm->cpu_sharers, &t->backend));
  if (!t->backend->host_memory && config->dist.reduction == SPT_REDUCTION_TREE)
    return SPT_FAIL(SPT_ERR_USAGE, "[dist] reduction = \"tree\" is for the CPU; use \"all-reduce\" or \"reduce-scatter\" on GPUs");
  return SPT_OK;
}

/* With backend = "auto" each rank chose by itself. */
static spt_status check_backends(trainer *t) {
  double on_host = t->backend->host_memory;
  SPT_TRY(t->comm->ops->reduce_double(t->comm, &on_host, 1, SPT_REDUCE_SUM));
  if (on_host == 0 || on_host == t->comm->size) return SPT_OK;
  return SPT_FAIL(SPT_ERR_USAGE,
                  "[device] backend = \"auto\": %d of %d ranks have no GPU: start ranks where there are GPUs only, or say --backend cpu",
                  (int)on_host, t->comm->size);
}

/* Ranks with GPUs reduce by NCCL. */
static spt_status open_bulk(trainer *t) {
  if (t->backend->host_memory || t->comm->size == 1) return SPT_OK;
  return spt_comm_nccl_open(t->comm, t->backend->stream, &t->bulk);
}

static spt_status open_compute(trainer *t) {
  const spt_config *config = &t->config;
  SPT_TRY(spt_comm_agree(t->comm, open_backend(t), NULL));
  SPT_TRY(check_backends(t));
  SPT_TRY(choose_micro(t));
  t->backend->profiling = t->options.profile;
  SPT_TRY(spt_backend_measure_peak(t->backend));
  t->backend->profiling = false; // until the first step
  SPT_TRY(trainer_open_table(t));
  SPT_TRY(open_shards(t));
  SPT_TRY(trainer_open_slab(t, "parameters", t->masters, &t->parameter_slab, &t->parameters));
  SPT_TRY(trainer_open_slab(t, "gradients", &t->plan->layout, &t->gradient_slab, &t->gradients));
  SPT_TRY(open_copies(t));
  SPT_TRY(open_control(t));
  SPT_TRY(trainer_open_optimizer(t));
  const size_t window = (size_t)(config->batch.micro * (config->model.seq_len + 1));
  t->validation_tokens = malloc(3 * window * sizeof *t->validation_tokens); // windows, ids, targets
  if (!t->validation_tokens) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for a validation micro-batch");
  return trainer_guidance_open(t);
}

static spt_status open_folder(trainer *t) {
  if (t->comm->rank != 0) return SPT_OK;
  const bool resume = t->options.resume || t->config.checkpoint.resume;
  SPT_TRY(spt_run_folder_open(t->config.run.output, resume, &t->folder));
  return SPT_OK;
}

static spt_status open_records(trainer *t) {
  if (t->comm->rank != 0) return SPT_OK;
  char *job = trainer_job_text(t);
  if (!job) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory writing the job file");
  const spt_status status = spt_run_folder_write_job(t->folder, job);
  free(job);
  SPT_TRY(status);
  SPT_TRY(spt_metrics_open(t->config.run.output, t->step, &t->metrics));
  trainer_watch_open(t);
  return SPT_OK;
}

static spt_status open_prefetch(trainer *t) {
  const spt_config *config = &t->config;
  const int64_t share = config->batch.sequences / t->comm->size, passes = share / config->batch.micro;
  const spt_prefetch_options options = {.stream = t->train,
                                        .seed = config->data.seed,
                                        .sequences = config->batch.sequences,
                                        .first = t->comm->rank * share,
                                        .count = share,
                                        .micro = config->batch.micro,
                                        .seq_len = config->model.seq_len,
                                        .step = t->step,
                                        .end_step = config->schedule.steps,
                                        .depth = passes < 4    ? 4
                                                 : passes > 16 ? 16
                                                               : (int)passes};
  return spt_prefetch_open(&options, &t->prefetch);
}

static spt_status open_data_parallel(trainer *t) {
  const bool overlap = t->config.dist.overlap;
  spt_comm *comm = t->bulk ? t->bulk : t->comm;
  if (t->tree)
    return spt_data_parallel_open_tree(comm, t->plan, trainer_tree_reduction(t), overlap, t->parameters,
                                       t->gradients, &t->data_parallel);
  SPT_TRY(spt_data_parallel_open(comm, t->plan, t->config.dist.reduction, overlap, t->parameters, t->gradients,
                                 &t->data_parallel));
  if (t->shards) spt_data_parallel_gather_copies(t->data_parallel, &t->copies);
  return SPT_OK;
}

/* Whether the run saves before its end: every so often, or a new best validation. */
static bool saves_on_the_way(const spt_config *config) {
  const int64_t steps = config->schedule.steps;
  return (config->checkpoint.every > 0 && config->checkpoint.every < steps) || config->checkpoint.every_seconds > 0 ||
         (config->data.validation.count > 0 && config->validation.every > 0 && config->validation.every < steps);
}

static spt_status open_model(trainer *t) {
  SPT_TRY(spt_model_open(t->backend, &t->config.model, t->params, &t->plan->layout, t->parameters, t->gradients,
                         t->config.batch.micro, &t->model));
  if (t->shards)
    spt_model_read_copies(t->model, &(spt_model_copies){.values = t->copies.values,
                                                        .gains = t->copies.gains,
                                                        .gain_offset = t->shards->gain_offset});
  SPT_TRY(trainer_list_items(t));
#ifdef SPT_RED_ZONES
  SPT_TRY(trainer_guard_gaps(t));
  if (getenv("SPT_TEST_ADDRESSES")) trainer_print_addresses(t);
#endif
  return SPT_OK;
}

spt_status trainer_open_step(trainer *t) {
  PHASE(open_model(t));
  PHASE(trainer_audit_open(t));
  PHASE(trainer_tree_open(t));
  PHASE(open_data_parallel(t));
  PHASE(spt_checkpoint_saver_open(t->comm, t->backend, t->items, t->item_count, &t->saver));
  if (saves_on_the_way(&t->config)) spt_checkpoint_saver_prepare(t->saver);
  return SPT_OK;
}

void trainer_close_step(trainer *t) {
  spt_checkpoint_saver_close(&t->saver);
  spt_data_parallel_close(&t->data_parallel);
  trainer_tree_close(t);
  spt_model_close(&t->model);
  trainer_audit_close(t);
  free(t->items);
  t->items = NULL;
  t->item_count = t->model_item_count = 0;
}

spt_status trainer_open(trainer *t) {
  t->started = t->saves.tried_at = trainer_now();
  t->saves.durable_step = t->saves.failed.step = -1;
  t->saves.durable_best_loss = t->best_validation_loss = t->last_bits_per_byte = NAN;
  t->last_validation = (trainer_validation){NAN, NAN};
  PHASE(open_folder(t));
  PHASE(open_data(t));
  PHASE(trainer_find_state(t));
  PHASE(open_compute(t));
  PHASE(trainer_spectral_open(t));
  PHASE(open_bulk(t));
  PHASE(trainer_open_step(t));
  PHASE(trainer_load_state(t));
  PHASE(trainer_decide_open(t));
  PHASE(spt_model_refresh(t->model));
  PHASE(open_records(t));
  PHASE(open_prefetch(t));
  t->first_step = t->step;
  PHASE(trainer_replay_open(t));
  return SPT_OK;
}

void trainer_close(trainer *t) {
  spt_prefetch_close(&t->prefetch);
  trainer_close_step(t);
  trainer_watch_close(t);
  if (t->metrics) spt_metrics_close(&t->metrics);
  if (t->bulk) t->bulk->ops->close(&t->bulk);
  trainer_guidance_close(t);
  trainer_spectral_close(t);
  trainer_replay_close(t);
  spt_checkpoint_close(&t->source.checkpoint);
  spt_optimizer_close(&t->optimizer);
  spt_slab_fini(&t->copy_slab);
  spt_slab_fini(&t->gradient_slab);
  spt_slab_fini(&t->parameter_slab);
  free(t->validation_tokens);
  spt_token_stream_close(&t->validation);
  spt_token_stream_close(&t->train);
  spt_master_shards_close(&t->shards);
  spt_shard_plan_close(&t->plan);
  spt_params_close(&t->params);
  if (t->control) t->backend->ops->free(t->backend, t->control, sizeof *t->control);
  if (t->backend) t->backend->ops->close(&t->backend);
  spt_run_folder_close(&t->folder); // last: the lock covers everything above
}
