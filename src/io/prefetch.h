/* A thread that reads ahead, so that a step never waits for data in steady state. Serves one rank's micro-batches in order. */
#ifndef SPT_PREFETCH_H
#define SPT_PREFETCH_H

#include "sampler.h"

typedef struct spt_prefetch spt_prefetch;

typedef struct spt_prefetch_options {
  spt_token_stream *stream; /* borrowed; used by the thread only, until close */
  uint64_t seed;
  int64_t sequences;             /* global batch */
  int64_t first, count;          /* this rank's contiguous block of indices [first, first + count) */
  int64_t micro;                 /* sequences per micro-batch; divides count */
  int64_t seq_len;
  int64_t step;                  /* first step to serve */
  int64_t end_step;              /* nothing is read for this step or later ones; 0: no end */
  int depth;                     /* micro-batches held ready, >= 2 */
} spt_prefetch_options;

typedef struct spt_micro_batch {
  int64_t step, first_index, sequences;
  const int32_t *ids, *targets; /* (sequences, seq_len); valid until the next call of next or close */
} spt_micro_batch;

spt_status spt_prefetch_open(const spt_prefetch_options *options, spt_prefetch **prefetch_p);
void spt_prefetch_close(spt_prefetch **prefetch_p);
/* The next micro-batch; waits if it is not ready. A reader's failure is returned here, worded. */
spt_status spt_prefetch_next(spt_prefetch *prefetch, spt_micro_batch *batch_p);
/* Seconds spent waiting in next since open. */
double spt_prefetch_wait_seconds(const spt_prefetch *prefetch);
int64_t spt_prefetch_tokens_read(const spt_prefetch *prefetch);

#endif
