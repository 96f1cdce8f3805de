#include "rehearsal.h"

#include "core/rng.h"
#include "io/durable_file.h"
#include "io/job_toml.h"
#include "io/token_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
  LEAST_HIDDEN = 32,
  BUCKETS = 4,               /* wanted, where the full job has as many */
  MOST_PARAMETERS = 1500000, /* more buckets are not worth more than this */
  VOCAB = 256,
  SEQ_LEN = 16,
  PASSES = 2,
  WINDOWS = 4096 /* of the training shard */
};

static int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

/* Heads of `width` (even), all else in proportion, so that pairs keep the order of their loads. */
static void set_width(const spt_model_config *full, int64_t width, spt_model_config *model) {
  model->hidden = full->heads * width;
  model->ffn = (full->ffn * model->hidden + full->hidden / 2) / full->hidden;
  if (model->ffn < 1) model->ffn = 1;
}

static spt_status measure(const spt_config *small, int ranks, int64_t *parameters_p, int *buckets_p) {
  spt_params *params = NULL;
  spt_shard_plan *plan = NULL;
  SPT_TRY(spt_params_open(&small->model, &params));
  const spt_status status =
      spt_shard_plan_open(&small->model, &small->optimizer, params, ranks, small->dist.bucket_mib << 20, &plan);
  *parameters_p = params->count;
  *buckets_p = plan ? plan->bucket_count : 0;
  spt_shard_plan_close(&plan);
  spt_params_close(&params);
  return status;
}

/* The narrowest heads that give the wanted number of buckets, within bounds. */
static spt_status choose_width(const spt_config *full, const job_cost *full_cost, spt_config *small) {
  const int64_t most = spt_head_dim(&full->model);
  const int wanted = (int)smaller(full_cost->plan->bucket_count, BUCKETS);
  small->dist.bucket_mib = 1;
  for (int64_t width = 2; width <= most; width += 2) {
    int64_t parameters;
    int buckets;
    set_width(&full->model, width, &small->model);
    if (small->model.hidden < LEAST_HIDDEN && width < most) continue;
    SPT_TRY(measure(small, full_cost->ranks, &parameters, &buckets));
    if (buckets >= wanted || parameters > MOST_PARAMETERS) break;
  }
  return SPT_OK;
}

/* What is trained and how often: enough to pass through everything. A constant learning rate does not depend on the
 * number of steps, so that a start of many steps and a resume of few do the same. */
static void shorten(const spt_config *full, int ranks, spt_config *small) {
  small->model.seq_len = smaller(full->model.seq_len, SEQ_LEN);
  small->batch.micro = 1;
  small->batch.sequences = ranks * smaller(full->batch.sequences / ranks / full->batch.micro, PASSES);
  small->schedule = (spt_schedule_config){.kind = SPT_SCHEDULE_CONSTANT, .steps = REHEARSAL_STEPS};
  if (small->optimizer.lr > 0.01) small->optimizer.lr = 0.01;
  if (full->data.validation.count == 0) small->validation.every = 0;
  if (small->validation.every > 0) small->validation.every = REHEARSAL_STEPS / 2;
  small->validation.tokens = ranks * small->model.seq_len;
  small->checkpoint.every = REHEARSAL_SAVE_EVERY;
  small->checkpoint.every_seconds = 0;
  small->checkpoint.resume = false;
  small->dist.audit_every = smaller(full->dist.audit_every, REHEARSAL_SAVE_EVERY);
  small->metrics.every = 1;
  small->device.backend = SPT_BACKEND_CPU;
  small->device.threads = 1;
}

static void set_glob(const char *folder, const char *name, spt_globs *globs) {
  globs->count = 1;
  snprintf(globs->pattern[0], sizeof globs->pattern[0], "%s/%s", folder, name);
}

spt_status rehearsal_shrink(const spt_config *full, const job_cost *full_cost, const char *folder,
                            spt_config *small_p) {
  *small_p = *full;
  small_p->model.preset[0] = '\0';
  small_p->model.vocab = smaller(full->model.vocab, VOCAB);
  snprintf(small_p->run.output, sizeof small_p->run.output, "%s/run", folder);
  set_glob(folder, "data-train.h5", &small_p->data.train);
  if (full->data.validation.count > 0) set_glob(folder, "data-validation.h5", &small_p->data.validation);
  shorten(full, full_cost->ranks, small_p);
  SPT_TRY(choose_width(full, full_cost, small_p));
  SPT_TRY(spt_config_complete(small_p));
  return spt_config_check_ranks(small_p, full_cost->ranks);
}

/* Random ids: what the ranks do does not depend on the text. */
static spt_status write_shard(const char *path, int64_t vocab, int64_t tokens) {
  enum { DOCUMENT = 1024 };
  const spt_token_writer_options options = {
      .vocab_size = vocab, .eos_id = vocab - 1, .tokenizer = "random", .tokenizer_sha256 = "", .source = "rehearsal"};
  spt_token_writer *writer = NULL;
  SPT_TRY(spt_token_writer_open(path, &options, true, &writer));
  spt_status status = SPT_OK;
  uint32_t ids[DOCUMENT];
  for (int64_t begin = 0; begin < tokens && status == SPT_OK; begin += DOCUMENT) {
    for (int64_t i = 0; i < DOCUMENT; i++)
      ids[i] = (uint32_t)(spt_random_bits(1, 0, (uint64_t)(begin + i)) % (uint64_t)vocab);
    ids[DOCUMENT - 1] = (uint32_t)(vocab - 1);
    status = spt_token_writer_append(writer, ids, DOCUMENT, DOCUMENT);
  }
  if (status == SPT_OK) status = spt_token_writer_finish(&writer);
  spt_token_writer_close(&writer);
  return status;
}

spt_status rehearsal_write_files(const spt_config *small, int ranks, const char *folder) {
  char path[SPT_PATH_MAX];
  char *job = spt_job_print(small);
  if (!job) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory writing the rehearsal's job file");
  snprintf(path, sizeof path, "%s/job.toml", folder);
  spt_status status = spt_file_replace(path, job, strlen(job));
  free(job);
  SPT_TRY(status);
  SPT_TRY(write_shard(small->data.train.pattern[0], small->model.vocab, WINDOWS * small->model.seq_len));
  if (small->data.validation.count == 0) return SPT_OK;
  return write_shard(small->data.validation.pattern[0], small->model.vocab, 2 * (ranks + 1) * small->model.seq_len);
}
