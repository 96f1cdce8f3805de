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

static spt_status sum_losses(trainer *t, int64_t begin, int64_t end, double *sum_p) {
  const int64_t micro = t->config.batch.micro;
  for (int64_t first = begin; first < end; first += micro) {
    const int64_t count = end - first < micro ? end - first : micro;
    int32_t *ids, *targets;
    SPT_TRY(read_windows(t, first, count, &ids, &targets));
    SPT_TRY(spt_model_evaluate(t->model, count, ids, targets, sum_p));
  }
  return SPT_OK;
}

spt_status trainer_validate(trainer *t, double *loss_p) {
  const double start = trainer_now();
  const int64_t seq_len = t->config.model.seq_len, size = t->comm->size, rank = t->comm->rank;
  int64_t windows = spt_token_stream_windows(t->validation, seq_len);
  if (t->config.validation.tokens > 0 && windows > t->config.validation.tokens / seq_len)
    windows = t->config.validation.tokens < seq_len ? 1 : t->config.validation.tokens / seq_len;
  double sum = 0;
  const spt_status status = sum_losses(t, windows * rank / size, windows * (rank + 1) / size, &sum);
  SPT_TRY(spt_comm_agree(t->comm, status, NULL));
  SPT_TRY(t->comm->ops->reduce_double(t->comm, &sum, 1, SPT_REDUCE_SUM));
  *loss_p = sum / (double)(windows * seq_len);
  t->times.validation += trainer_now() - start;
  return SPT_OK;
}
