/* A run's state: the datasets of a checkpoint and who holds which piece; resuming, initialising. */
#include "trainer.h"

#include "core/guidance.h"
#include "io/job_toml.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the list of datasets ---- */

void trainer_owned_range(const trainer *t, int tensor, int64_t *begin_p, int64_t *end_p) {
  const spt_share *share = &t->plan->shares[t->comm->rank];
  *begin_p = *end_p = 0;
  for (int i = 0; i < share->pair_count; i++) {
    const spt_pair *pair = &t->params->pairs[share->pairs[i]];
    if (pair->a == tensor || pair->b == tensor) *end_p = t->params->tensors[tensor].count;
  }
  for (int i = 0; i < share->slice_count; i++)
    if (share->slices[i].tensor == tensor) {
      *begin_p = share->slices[i].begin;
      *end_p = share->slices[i].end;
    }
}

static void add_model_item(trainer *t, int tensor) {
  const spt_tensor *entry = &t->params->tensors[tensor];
  spt_checkpoint_item *item = &t->items[t->item_count++];
  *item = (spt_checkpoint_item){.rows = entry->rows, .cols = entry->cols};
  snprintf(item->dataset, sizeof item->dataset, "/model/%s", entry->name);
  trainer_owned_range(t, tensor, &item->begin, &item->end);
  item->values = t->parameters + (t->masters->offset[tensor] + item->begin);
}

static void add_state_item(trainer *t, int tensor, const char *kind) {
  const spt_tensor *entry = &t->params->tensors[tensor];
  spt_checkpoint_item *item = &t->items[t->item_count++];
  *item = (spt_checkpoint_item){.rows = entry->rows, .cols = strcmp(kind, "power_u") == 0 ? 1 : entry->cols};
  snprintf(item->dataset, sizeof item->dataset, "/optimizer/%s/%s", entry->name, kind);
  int count;
  const spt_state_piece *pieces = spt_optimizer_state(t->optimizer, &count);
  for (int i = 0; i < count; i++) {
    if (pieces[i].tensor != tensor || strcmp(pieces[i].kind, kind) != 0) continue;
    item->begin = pieces[i].begin;
    item->end = pieces[i].end;
    item->values = pieces[i].values;
  }
}

spt_status trainer_list_items(trainer *t) {
  const bool pairs = spt_method_uses_pairs(t->config.optimizer.method);
  t->items = calloc(3 * (size_t)t->params->tensor_count, sizeof *t->items);
  if (!t->items) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory listing the checkpoint's datasets");
  for (int i = 0; i < t->params->tensor_count; i++) add_model_item(t, i);
  t->model_item_count = t->item_count;
  for (int i = 0; i < t->params->tensor_count; i++) {
    const spt_tensor *tensor = &t->params->tensors[i];
    const bool pair = pairs && tensor->pair >= 0;
    add_state_item(t, i, pair ? "momentum" : "adam_m");
    if (!pair || spt_tensor_is_factor(tensor)) add_state_item(t, i, pair ? "power_u" : "adam_v");
  }
  return SPT_OK;
}

/* ---- initialisation ---- */

static bool initialises_pair(const trainer *t, int index);

/* host: NULL, or all parameters in host memory, where a pair goes that is not this rank's alone. */
static spt_status init_pair(trainer *t, int index, void *host_memory) {
  float *const host = host_memory;
  if (!initialises_pair(t, index)) return SPT_OK;
  const spt_pair *pair = &t->params->pairs[index];
  const size_t a_bytes = (size_t)(pair->m * pair->r) * sizeof(float),
               b_bytes = (size_t)(pair->n * pair->r) * sizeof(float);
  float *a = malloc(a_bytes), *b = malloc(b_bytes);
  spt_status status = a && b ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory initialising a factor pair");
  if (status == SPT_OK) status = spt_params_init_pair(t->params, index, t->config.run.seed, a, b);
  const int64_t *offset = host ? t->plan->layout.offset : t->masters->offset;
  if (status == SPT_OK && host) {
    memcpy(host + offset[pair->a], a, a_bytes);
    memcpy(host + offset[pair->b], b, b_bytes);
  } else if (status == SPT_OK) {
#pragma omp critical(upload) // a device's copies are one thread's at a time
    {
      status = t->backend->ops->upload(t->backend, t->parameters + offset[pair->a], a, a_bytes);
      if (status == SPT_OK) status = t->backend->ops->upload(t->backend, t->parameters + offset[pair->b], b, b_bytes);
    }
  }
  free(a);
  free(b);
  return status;
}

static spt_status init_slice(trainer *t, int tensor, int64_t begin, int64_t end) {
  enum { PIECE = 1 << 20 };
  float *values = malloc(PIECE * sizeof *values);
  if (!values) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory initialising %s", t->params->tensors[tensor].name);
  const int64_t to = t->masters->offset[tensor];
  spt_status status = SPT_OK;
  for (int64_t at = begin; status == SPT_OK && at < end; at += PIECE) {
    const int64_t until = at + PIECE < end ? at + PIECE : end;
    spt_params_init_slice(t->params, tensor, t->config.run.seed, at, until, values);
    status = t->backend->ops->upload(t->backend, t->parameters + (to + at), values, (size_t)(until - at) * sizeof *values);
  }
  free(values);
  return status;
}

/* Factor pairs, whatever their update rule, are decomposed as pairs: by their owner, or round robin where slices own
 * the factors. */
static bool initialises_pair(const trainer *t, int index) {
  if (spt_pair_is_dense(&t->params->pairs[index])) return false; // as the rest is: init_parameters
  if (!spt_method_uses_pairs(t->config.optimizer.method)) return index % t->comm->size == t->comm->rank;
  return t->plan->pair_owner[index] == t->comm->rank;
}

/* A worker's error is carried back to this thread. */
spt_status trainer_for_pairs(trainer *t, spt_status (*work)(trainer *t, int pair, void *context), void *context) {
  spt_status failed = SPT_OK;
  char message[512] = "";
#pragma omp parallel for schedule(dynamic) num_threads(t->backend->threads)
  for (int i = 0; i < t->params->pair_count; i++) {
    const spt_status status = work(t, i, context);
    if (status != SPT_OK) {
#pragma omp critical
      {
        failed = status;
        snprintf(message, sizeof message, "%s", spt_error_message());
      }
    }
  }
  return failed == SPT_OK ? SPT_OK : SPT_FAIL(failed, "%s", message);
}

/* With method adamw a pair's factors are cut over ranks, while one rank decomposes them. */
static bool shares_pairs(const trainer *t) {
  return !spt_method_uses_pairs(t->config.optimizer.method) && t->comm->size > 1;
}

/* One tensor from rank `root`, which has it in `host` (all parameters, in the plan's layout), to all; on a device each takes its own part, by
 * way of `buffer`. Without one, `host` is the parameters themselves. */
static spt_status share_tensor(trainer *t, int tensor, int root, float *host, float *buffer) {
  float *const values = buffer && t->comm->rank != root ? buffer : host + t->plan->layout.offset[tensor];
  int64_t begin, end;
  SPT_TRY(t->comm->ops->broadcast(t->comm, values, (size_t)t->params->tensors[tensor].count * sizeof *values, root));
  trainer_owned_range(t, tensor, &begin, &end);
  if (!buffer || begin == end) return SPT_OK;
  return t->backend->ops->upload(t->backend, t->parameters + (t->masters->offset[tensor] + begin), values + begin,
                                 (size_t)(end - begin) * sizeof *values);
}

static spt_status share_pairs(trainer *t, float *host) {
  int64_t largest = 1;
  for (int i = 0; i < t->params->tensor_count; i++)
    if (t->params->tensors[i].count > largest) largest = t->params->tensors[i].count;
  float *buffer = t->backend->host_memory ? NULL : malloc((size_t)largest * sizeof *buffer);
  const bool without = !t->backend->host_memory && !buffer;
  spt_status status = spt_comm_agree(
      t->comm, without ? SPT_FAIL(SPT_ERR_RESOURCE, "out of memory sharing the initial parameters") : SPT_OK, NULL);
  for (int i = 0; status == SPT_OK && i < t->params->pair_count; i++) {
    const spt_pair *pair = &t->params->pairs[i];
    if (spt_pair_is_dense(pair)) continue;
    status = share_tensor(t, pair->a, i % t->comm->size, host, buffer);
    if (status == SPT_OK) status = share_tensor(t, pair->b, i % t->comm->size, host, buffer);
  }
  free(buffer);
  return status;
}

/* Pairs that are shared wait in host memory, of which only pages in use are taken. */
static spt_status init_shared_pairs(trainer *t) {
  spt_slab slab;
  spt_slab_init(&slab, "initial parameters");
  float *host = t->parameters;
  spt_status status = SPT_OK;
  if (!t->backend->host_memory) {
    const size_t at = spt_slab_reserve(&slab, (size_t)t->plan->layout.elements * sizeof *host);
    status = spt_slab_allocate(&slab, NULL);
    host = spt_slab_at(&slab, at);
  }
  if (status == SPT_OK) status = trainer_for_pairs(t, init_pair, host);
  status = spt_comm_agree(t->comm, status, NULL);
  if (status == SPT_OK) status = share_pairs(t, host);
  spt_slab_fini(&slab);
  return status;
}

static spt_status init_parameters(trainer *t) {
  const spt_share *share = &t->plan->shares[t->comm->rank];
  spt_status status = shares_pairs(t) ? init_shared_pairs(t) : trainer_for_pairs(t, init_pair, NULL); // truncated SVDs
  for (int i = 0; status == SPT_OK && i < share->slice_count; i++) {
    const spt_slice *slice = &share->slices[i];
    const spt_role role = t->params->tensors[slice->tensor].role;
    if (role != SPT_ROLE_FACTOR_A && role != SPT_ROLE_FACTOR_B && role != SPT_ROLE_GUIDE) status = init_slice(t, slice->tensor, slice->begin, slice->end);
  }
  for (int i = 0; status == SPT_OK && i < share->pair_count; i++) {
    const spt_pair *pair = &t->params->pairs[share->pairs[i]];
    if (t->params->tensors[pair->a].role == SPT_ROLE_DENSE) status = init_slice(t, pair->a, 0, spt_pair_elements(pair));
  }
  SPT_TRY(spt_comm_agree(t->comm, status, NULL));
  SPT_TRY(spt_data_parallel_gather(t->data_parallel));
  return trainer_guidance_init(t);
}

/* ---- resuming ---- */

typedef struct change_list {
  const char *path;
  spt_status status;
  bool validation; // another validation set: losses cannot be compared with the best so far
} change_list;

static void visit_change(void *context, const char *key, const char *before, const char *after, spt_job_change change) {
  change_list *changes = context;
  if (strcmp(key, "data.validation") == 0) changes->validation = true;
  if (change == SPT_JOB_SAFE) {
    trainer_progress_event("resume: %s was %s, now %s", key, before, after);
  } else if (changes->status == SPT_OK) {
    changes->status =
        SPT_FAIL(SPT_ERR_USAGE,
                 "%s was trained with %s = %s, this job says %s: a resume cannot change it; restore it, or start a "
                 "new run with --init-from",
                 changes->path, key, before, after);
  }
}

/* Going on from an older checkpoint than the folder's newest would leave two histories in one folder. */
static spt_status refuse_newer(const trainer *t, int64_t step) {
  spt_checkpoint *newest = NULL;
  const spt_status found = spt_run_folder_newest(t->folder, &newest, NULL, 0);
  if (found == SPT_ERR_DATA || !newest) return SPT_OK; // none is intact: they may be replaced
  SPT_TRY(found);
  const int64_t newest_step = spt_checkpoint_header_of(newest)->step;
  spt_checkpoint_close(&newest);
  if (newest_step <= step) return SPT_OK;
  return SPT_FAIL(
      SPT_ERR_USAGE,
      "--resume=%s is at step %lld, but %s holds step %lld: give another run.output, or move the newer ones away",
      t->options.resume_path, (long long)step, t->config.run.output, (long long)newest_step);
}

/* While there are guides, alpha must go on as it was planned. Once they are gone they are gone, whatever the steps are now. */
static spt_status check_guidance(const trainer *t, const spt_checkpoint *checkpoint, const spt_config *before) {
  const int64_t planned = spt_guidance_steps(&before->guidance, before->schedule.steps),
                now = spt_guidance_steps(&t->config.guidance, t->config.schedule.steps);
  if (!spt_checkpoint_has_guides(checkpoint) || planned == now) return SPT_OK;
  return SPT_FAIL(SPT_ERR_USAGE,
                  "[schedule] steps = %lld: guidance would end at step %lld instead of %lld, which the checkpoint of step %lld has not reached: keep "
                  "steps = %lld until then",
                  (long long)t->config.schedule.steps, (long long)now, (long long)planned,
                  (long long)spt_checkpoint_header_of(checkpoint)->step, (long long)before->schedule.steps);
}

/* Rank 0: the checkpoint to go on from (NULL: none), compared with this job and its data. */
static spt_status find_checkpoint(trainer *t, spt_checkpoint **checkpoint_p) {
  char warning[1024] = "";
  if (t->options.resume_path) {
    SPT_TRY(spt_checkpoint_open(t->options.resume_path, checkpoint_p));
    SPT_TRY(spt_checkpoint_verify(*checkpoint_p));
  } else {
    SPT_TRY(spt_run_folder_newest(t->folder, checkpoint_p, warning, sizeof warning));
  }
  if (warning[0]) trainer_progress_event("%s", warning);
  if (!*checkpoint_p) {
    trainer_progress_event("resume: no checkpoint in %s, starting fresh", t->config.run.output);
    return SPT_OK;
  }
  const spt_checkpoint_header *header = spt_checkpoint_header_of(*checkpoint_p);
  if (t->options.resume_path) SPT_TRY(refuse_newer(t, header->step));
  static spt_config before; // large
  SPT_TRY(spt_job_parse(spt_checkpoint_job(*checkpoint_p), "the checkpoint's job", ".", NULL, 0, &before));
  change_list changes = {.path = t->options.resume_path ? t->options.resume_path : t->config.run.output,
                         .validation =
                             spt_config_validation_tokens(&before) != spt_config_validation_tokens(&t->config)};
  static spt_config asked; // as the checkpoint's job was written: without the chosen micro-batch
  asked = t->config;
  asked.batch.micro = t->asked_micro;
  spt_job_compare(&before, &asked, visit_change, &changes);
  SPT_TRY(changes.status);
  SPT_TRY(check_guidance(t, *checkpoint_p, &before));
  t->new_validation_set = changes.validation;
  if (strcmp(header->data_fingerprint, t->fingerprint) != 0)
    return SPT_FAIL(SPT_ERR_DATA,
                    "[data] train has other content (fingerprint %s) than the checkpoint was trained on (%s): restore "
                    "the shards, or start a new run with --init-from",
                    t->fingerprint, header->data_fingerprint);
  if (header->step > t->config.schedule.steps)
    return SPT_FAIL(SPT_ERR_USAGE, "[schedule] steps = %lld, but the checkpoint has completed %lld: raise it",
                    (long long)t->config.schedule.steps, (long long)header->step);
  return SPT_OK;
}

/* Reads the masters, guides where `guides` is: all on every rank, or its own on each, which then gather the copies. */
static spt_status load_model(trainer *t, spt_checkpoint *checkpoint, bool guides) {
  if (t->shards) {
    SPT_TRY(spt_checkpoint_load(t->comm, t->backend, checkpoint, t->items, t->model_item_count));
    return spt_data_parallel_gather(t->data_parallel);
  }
  spt_checkpoint_item *whole = calloc((size_t)t->model_item_count, sizeof *whole);
  spt_status status = whole ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory loading a checkpoint");
  status = spt_comm_agree(t->comm, status, NULL);
  if (status == SPT_OK) {
    int count = 0;
    for (int i = 0; i < t->model_item_count; i++) {
      if (!guides && t->params->tensors[i].role == SPT_ROLE_GUIDE) continue;
      spt_checkpoint_item *item = &whole[count++];
      *item = t->items[i];
      item->begin = 0;
      item->end = item->rows * item->cols;
      item->values = t->parameters + t->plan->layout.offset[i];
    }
    status = spt_checkpoint_load_replicated(t->comm, t->backend, checkpoint, whole, count);
  }
  free(whole);
  return status;
}

static spt_status resume(trainer *t, spt_checkpoint *checkpoint) {
  spt_checkpoint_header header = {0};
  if (checkpoint) header = *spt_checkpoint_header_of(checkpoint);
  SPT_TRY(t->comm->ops->broadcast(t->comm, &header, sizeof header, 0));
  SPT_TRY(load_model(t, checkpoint, true));
  SPT_TRY(spt_checkpoint_load(t->comm, t->backend, checkpoint, t->items + t->model_item_count,
                              t->item_count - t->model_item_count));
  spt_optimizer_set_applied(t->optimizer, header.applied_updates);
  t->step = header.step;
  t->tokens = header.tokens;
  t->best_validation_loss = t->saves.durable_best_loss = header.best_validation_loss;
  t->saves.durable_step = header.step;
  if (t->comm->rank == 0) {
    const spt_status repaired = spt_run_folder_repair_best(t->folder, header.best_validation_loss);
    if (repaired != SPT_OK) trainer_progress_event("resume: best.h5 is not restored: %s", spt_error_message());
  }
  SPT_TRY(t->comm->ops->broadcast(t->comm, &t->new_validation_set, sizeof t->new_validation_set, 0));
  if (t->new_validation_set) t->best_validation_loss = t->saves.durable_best_loss = NAN;
  if (t->comm->rank == 0)
    trainer_progress_event("resumed at step %lld (%lld tokens), written by %d rank(s)", (long long)t->step,
                           (long long)t->tokens, header.rank_count);
  return SPT_OK;
}

/* Rank 0: a checkpoint whose parameters mean the same function in this job's model. Shapes are compared when they are
 * read. */
static spt_status open_branch(trainer *t, spt_checkpoint **checkpoint_p) {
  static spt_config config; // large
  SPT_TRY(spt_checkpoint_open(t->options.init_from, checkpoint_p));
  SPT_TRY(spt_job_parse(spt_checkpoint_job(*checkpoint_p), "the checkpoint's job", ".", NULL, 0, &config));
  const spt_model_config *from = &config.model, *to = &t->config.model;
  static const char *const kinds[] = {[SPT_LOW_RANK] = "low-rank", [SPT_LOW_RANK_FFN] = "low-rank-ffn", [SPT_DENSE] = "dense"};
  if (from->parameterization != to->parameterization)
    return SPT_FAIL(SPT_ERR_USAGE, "--init-from %s: its model.parameterization is \"%s\", this job's \"%s\": they must be the same",
                    t->options.init_from, kinds[from->parameterization], kinds[to->parameterization]);
  const struct {
    const char *key;
    double from, to;
  } keys[] = {{"hidden", (double)from->hidden, (double)to->hidden},
              {"layers", (double)from->layers, (double)to->layers},
              {"ffn", (double)from->ffn, (double)to->ffn},
              {"vocab", (double)from->vocab, (double)to->vocab},
              {"rank_ratio", from->rank_ratio, to->rank_ratio},
              {"heads", (double)from->heads, (double)to->heads},
              {"kv_heads", (double)from->kv_heads, (double)to->kv_heads},
              {"tie_embeddings", from->tie_embeddings, to->tie_embeddings},
              {"rope_theta", from->rope_theta, to->rope_theta},
              {"norm_eps", from->norm_eps, to->norm_eps}};
  for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
    if (keys[i].from != keys[i].to)
      return SPT_FAIL(SPT_ERR_USAGE,
                      "--init-from %s: trained with model.%s = %g, this job says %g: they must be the same",
                      t->options.init_from, keys[i].key, keys[i].from, keys[i].to);
  trainer_progress_event("parameters from %s, at step %lld of its run", t->options.init_from,
                         (long long)spt_checkpoint_header_of(*checkpoint_p)->step);
  return SPT_OK;
}

spt_status trainer_find_state(trainer *t) {
  trainer_source *source = &t->source;
  source->resuming = t->options.resume || t->config.checkpoint.resume;
  spt_status status = SPT_OK;
  if (t->comm->rank == 0) {
    if (source->resuming) status = find_checkpoint(t, &source->checkpoint);
    if (status == SPT_OK &&
        !source->checkpoint) { // a branch that is requeued resumes itself; before that it starts from the other run
      source->resuming = false;
      if (t->options.init_from) status = open_branch(t, &source->checkpoint);
    }
    source->found = source->checkpoint != NULL;
    if (status == SPT_OK && source->resuming) t->config.model.guided = spt_checkpoint_has_guides(source->checkpoint);
  }
  SPT_TRY(spt_comm_agree(t->comm, status, NULL));
  SPT_TRY(t->comm->ops->broadcast(t->comm, &source->found, sizeof source->found, 0));
  SPT_TRY(t->comm->ops->broadcast(t->comm, &source->resuming, sizeof source->resuming, 0));
  return t->comm->ops->broadcast(t->comm, &t->config.model.guided, sizeof t->config.model.guided, 0);
}

/* Another run's parameters. Guidance begins anew, with the guides that leave its function as it is. */
static spt_status branch(trainer *t) {
  SPT_TRY(load_model(t, t->source.checkpoint, false));
  return trainer_guidance_init(t);
}

spt_status trainer_load_state(trainer *t) {
  trainer_source *source = &t->source;
  const spt_status status = !source->found      ? init_parameters(t)
                            : source->resuming ? resume(t, source->checkpoint)
                                               : branch(t);
  spt_checkpoint_close(&source->checkpoint);
  return status;
}

/* ---- the job ---- */

char *trainer_job_text(const trainer *t) {
  static spt_config asked; // large
  asked = t->config;
  asked.batch.micro = t->asked_micro; // the chosen one fits this number of ranks only
  return spt_job_print(&asked);
}
