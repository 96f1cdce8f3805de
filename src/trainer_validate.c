/* Validation: the first windows of the held-out stream, split over ranks in contiguous blocks, the mean taken per
 * token. */
#include "trainer.h"

#include <string.h>

/* Windows [begin, begin + count) of the held-out stream as ids and targets. */
static spt_status read_windows(trainer *t, int64_t begin, int64_t count, int32_t **ids_p, int32_t **targets_p) {
  const int64_t seq_len = t->config.model.seq_len, micro = t->config.batch.micro;
  int32_t *window = t->validation_tokens, *ids = window + micro * (seq_len + 1), *targets = ids + micro * seq_len;
  SPT_TRY(
      spt_token_stream_read(t->validation, begin * seq_len, count * seq_len + 1, window)); // windows share one token
  memcpy(ids, window, (size_t)(count * seq_len) * sizeof *ids);
  memcpy(targets, window + 1, (size_t)(count * seq_len) * sizeof *targets);
  *ids_p = ids;
  *targets_p = targets;
  return SPT_OK;
}

/* This rank's pass number `pass` over its windows [begin, end); nothing where they have run out. */
static spt_status validate_pass(trainer *t, int64_t begin, int64_t end, int64_t pass, double *sum_p) {
  const int64_t micro = t->config.batch.micro, first = begin + pass * micro;
  const int64_t count = end - first < micro ? end - first : micro;
  int32_t *ids, *targets;
  if (count <= 0) return SPT_OK;
  SPT_TRY(read_windows(t, first, count, &ids, &targets));
  return spt_model_evaluate(t->model, count, ids, targets, sum_p);
}

static int64_t count_windows(const trainer *t) {
  const int64_t seq_len = t->config.model.seq_len, held = spt_token_stream_windows(t->validation, seq_len);
  const int64_t tokens = spt_config_validation_tokens(&t->config), wanted = tokens / seq_len;
  if (tokens == 0 || wanted >= held) return held;
  return wanted > 0 ? wanted : 1;
}

int64_t trainer_validation_batches(const trainer *t) {
  return (count_windows(t) + t->config.batch.micro - 1) / t->config.batch.micro;
}

/* This rank's windows. With reduction = "tree" whole micro-batches, so that each is the same on any number of ranks. */
static void own_windows(const trainer *t, int64_t windows, int64_t *begin_p, int64_t *end_p) {
  const int64_t size = t->comm->size, rank = t->comm->rank, micro = t->config.batch.micro;
  const int64_t units = t->tree ? trainer_validation_batches(t) : windows, length = t->tree ? micro : 1;
  *begin_p = units * rank / size * length;
  *end_p = units * (rank + 1) / size * length;
  if (*end_p > windows) *end_p = windows;
}

/* The mean loss with the guides' alphas as they are set. */
static spt_status evaluate(trainer *t, const volatile sig_atomic_t *stop, double *loss_p, bool *done_p) {
  const int64_t windows = count_windows(t), size = t->comm->size, micro = t->config.batch.micro;
  const int64_t batches = trainer_validation_batches(t);
  const int64_t passes = t->tree ? (batches + size - 1) / size
                                 : ((windows + size - 1) / size + micro - 1) / micro; // of the rank with most windows
  int64_t begin, end;
  double sum = 0, *sums = t->tree ? trainer_tree_validation(t) : NULL;
  own_windows(t, windows, &begin, &end);
  *done_p = true;
  for (int64_t pass = 0; *done_p && pass < passes; pass++) {
    spt_watchdog_at(t->here, t->step, SPT_PHASE_VALIDATION);
    const int64_t batch = begin / micro + pass; // of the tree
    const spt_status status = validate_pass(t, begin, end, pass, sums && batch < batches ? &sums[batch] : &sum);
    double flags[2] = {status != SPT_OK, *stop != 0}; // one small message a pass keeps all ranks together
    SPT_TRY(t->comm->ops->reduce_double(t->comm, flags, 2, SPT_REDUCE_SUM));
    if (flags[0] > 0) return spt_comm_agree(t->comm, status, NULL);
    *done_p = flags[1] == 0;
  }
  SPT_TRY(t->tree ? trainer_tree_validation_sum(t, batches, &sum)
                  : t->comm->ops->reduce_double(t->comm, &sum, 1, SPT_REDUCE_SUM));
  *loss_p = sum / (double)(windows * t->config.model.seq_len);
  return SPT_OK;
}

spt_status trainer_validate(trainer *t, const volatile sig_atomic_t *stop, trainer_validation *validation_p, bool *done_p) {
  const double start = trainer_now();
  trainer_guidance_evaluate(t, t->step - 1, true);
  SPT_TRY(evaluate(t, stop, &validation_p->loss, done_p));
  validation_p->low_rank_loss = validation_p->loss;
  if (t->guidance && *done_p) {
    trainer_guidance_evaluate(t, t->step - 1, false);
    SPT_TRY(evaluate(t, stop, &validation_p->low_rank_loss, done_p));
  }
  t->times.validation += trainer_now() - start;
  return SPT_OK;
}
