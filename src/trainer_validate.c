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

spt_status trainer_validate(trainer *t, const volatile sig_atomic_t *stop, double *loss_p, bool *done_p) {
  const double start = trainer_now();
  const int64_t windows = count_windows(t), size = t->comm->size, rank = t->comm->rank, micro = t->config.batch.micro;
  const int64_t begin = windows * rank / size, end = windows * (rank + 1) / size;
  const int64_t passes = ((windows + size - 1) / size + micro - 1) / micro; // of the rank with most windows
  double sum = 0;
  *done_p = true;
  for (int64_t pass = 0; *done_p && pass < passes; pass++) {
    spt_watchdog_at(&t->here, t->step, SPT_PHASE_VALIDATION);
    const spt_status status = validate_pass(t, begin, end, pass, &sum);
    double flags[2] = {status != SPT_OK, *stop != 0}; // one small message a pass keeps all ranks together
    SPT_TRY(t->comm->ops->reduce_double(t->comm, flags, 2, SPT_REDUCE_SUM));
    if (flags[0] > 0) return spt_comm_agree(t->comm, status, NULL);
    *done_p = flags[1] == 0;
  }
  SPT_TRY(t->comm->ops->reduce_double(t->comm, &sum, 1, SPT_REDUCE_SUM));
  *loss_p = sum / (double)(windows * t->config.model.seq_len);
  t->times.validation += trainer_now() - start;
  return SPT_OK;
}
