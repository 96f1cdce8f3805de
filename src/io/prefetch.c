#include "prefetch.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct slot {
  int32_t *ids, *targets; /* (micro, seq_len) each */
  int64_t step, first_index;
} slot;

struct spt_prefetch {
  spt_prefetch_options options;
  int64_t windows;
  int slot_count; /* depth + 1: the consumer keeps one until its next call */
  slot *slots;
  int32_t *memory, *window; /* all slots; seq_len + 1 tokens */
  int64_t limit; /* micro-batches until options.end_step */
  pthread_t thread;
  pthread_mutex_t mutex; /* guards all below */
  pthread_cond_t filled, freed;
  int64_t produced, taken; /* micro-batches read, handed out; slot of n is n mod slot_count */
  int64_t tokens_read;
  bool stop, synchronised, started;
  spt_status status;
  char message[1024];
  double wait_seconds; /* consumer's own */
};

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Reads micro-batch number `n` of this rank since open. */
static spt_status read_micro_batch(spt_prefetch *prefetch, int64_t n) {
  const spt_prefetch_options *o = &prefetch->options;
  const int64_t per_step = o->count / o->micro, seq_len = o->seq_len;
  slot *place = &prefetch->slots[n % prefetch->slot_count];
  place->step = o->step + n / per_step;
  place->first_index = o->first + n % per_step * o->micro;
  for (int64_t i = 0; i < o->micro; i++) {
    const int64_t window =
        spt_sample_window(o->seed, prefetch->windows, o->sequences, place->step, place->first_index + i);
    SPT_TRY(spt_token_stream_read(o->stream, window * seq_len, seq_len + 1, prefetch->window));
    memcpy(place->ids + i * seq_len, prefetch->window, (size_t)seq_len * sizeof *place->ids);
    memcpy(place->targets + i * seq_len, prefetch->window + 1, (size_t)seq_len * sizeof *place->targets);
  }
  return SPT_OK;
}

static void *read_ahead(void *argument) {
  spt_prefetch *prefetch = argument;
  pthread_mutex_lock(&prefetch->mutex);
  while (!prefetch->stop && prefetch->status == SPT_OK) {
    /* the slot handed out last (taken − 1) still belongs to the consumer */
    if (prefetch->produced - prefetch->taken >= prefetch->options.depth || prefetch->produced == prefetch->limit) {
      pthread_cond_wait(&prefetch->freed, &prefetch->mutex);
      continue;
    }
    const int64_t n = prefetch->produced;
    pthread_mutex_unlock(&prefetch->mutex);
    const spt_status status = read_micro_batch(prefetch, n);
    pthread_mutex_lock(&prefetch->mutex);
    prefetch->tokens_read = spt_token_stream_tokens_read(prefetch->options.stream);
    if (status == SPT_OK)
      prefetch->produced++;
    else
      snprintf(prefetch->message, sizeof prefetch->message, "%s", spt_error_message());
    prefetch->status = status;
    pthread_cond_signal(&prefetch->filled);
  }
  pthread_mutex_unlock(&prefetch->mutex);
  return NULL;
}

static spt_status check_options(const spt_prefetch_options *o, int64_t windows) {
  if (o->seq_len < 1 || o->micro < 1 || o->count < 1 || o->count % o->micro || o->first < 0 ||
      o->first + o->count > o->sequences || o->depth < 2 || o->step < 0 ||
      (o->end_step && o->end_step < o->step))
    return SPT_FAIL(SPT_ERR_USAGE, "bad read-ahead: sequences %lld..%lld of %lld in micro-batches of %lld, depth %d",
                    (long long)o->first, (long long)(o->first + o->count), (long long)o->sequences, (long long)o->micro,
                    o->depth);
  if (windows < 1)
    return SPT_FAIL(SPT_ERR_DATA, "%s: %lld tokens in all shards, one window needs %lld ([model] seq_len + 1)",
                    spt_token_file_path(spt_token_stream_file(o->stream, 0)),
                    (long long)spt_token_stream_tokens(o->stream), (long long)(o->seq_len + 1));
  return SPT_OK;
}

static spt_status start(spt_prefetch *prefetch) {
  const spt_prefetch_options *o = &prefetch->options;
  const size_t batch = (size_t)(o->micro * o->seq_len), slots = (size_t)prefetch->slot_count;
  prefetch->slots = calloc(slots, sizeof *prefetch->slots);
  prefetch->memory = malloc(2 * slots * batch * sizeof *prefetch->memory);
  prefetch->window = malloc((size_t)(o->seq_len + 1) * sizeof *prefetch->window);
  if (!prefetch->slots || !prefetch->memory || !prefetch->window)
    return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for %zu micro-batches read ahead", slots);
  for (size_t i = 0; i < slots; i++) {
    prefetch->slots[i].ids = prefetch->memory + 2 * i * batch;
    prefetch->slots[i].targets = prefetch->slots[i].ids + batch;
  }
  if (pthread_mutex_init(&prefetch->mutex, NULL))
    return SPT_FAIL(SPT_ERR_RESOURCE, "no mutex for the read-ahead thread");
  if (pthread_cond_init(&prefetch->filled, NULL)) {
    pthread_mutex_destroy(&prefetch->mutex);
    return SPT_FAIL(SPT_ERR_RESOURCE, "no condition for the read-ahead thread");
  }
  if (pthread_cond_init(&prefetch->freed, NULL)) {
    pthread_cond_destroy(&prefetch->filled);
    pthread_mutex_destroy(&prefetch->mutex);
    return SPT_FAIL(SPT_ERR_RESOURCE, "no condition for the read-ahead thread");
  }
  prefetch->synchronised = true;
  const int error = pthread_create(&prefetch->thread, NULL, read_ahead, prefetch);
  if (error) return SPT_FAIL(SPT_ERR_RESOURCE, "the read-ahead thread does not start: %s", strerror(error));
  prefetch->started = true;
  return SPT_OK;
}

spt_status spt_prefetch_open(const spt_prefetch_options *options, spt_prefetch **prefetch_p) {
  const int64_t windows = spt_token_stream_windows(options->stream, options->seq_len);
  SPT_TRY(check_options(options, windows));
  spt_prefetch *prefetch = calloc(1, sizeof *prefetch);
  if (!prefetch) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
  prefetch->options = *options;
  prefetch->windows = windows;
  prefetch->slot_count = options->depth + 1;
  prefetch->limit =
      options->end_step ? (options->end_step - options->step) * (options->count / options->micro) : INT64_MAX;
  prefetch->tokens_read = spt_token_stream_tokens_read(options->stream);
  const spt_status status = start(prefetch);
  if (status != SPT_OK)
    spt_prefetch_close(&prefetch);
  else
    *prefetch_p = prefetch;
  return status;
}

void spt_prefetch_close(spt_prefetch **prefetch_p) {
  spt_prefetch *prefetch = *prefetch_p;
  if (!prefetch) return;
  if (prefetch->started) {
    pthread_mutex_lock(&prefetch->mutex);
    prefetch->stop = true;
    pthread_cond_signal(&prefetch->freed);
    pthread_mutex_unlock(&prefetch->mutex);
    pthread_join(prefetch->thread, NULL);
  }
  if (prefetch->synchronised) {
    pthread_cond_destroy(&prefetch->freed);
    pthread_cond_destroy(&prefetch->filled);
    pthread_mutex_destroy(&prefetch->mutex);
  }
  free(prefetch->slots);
  free(prefetch->memory);
  free(prefetch->window);
  free(prefetch);
  *prefetch_p = NULL;
}

spt_status spt_prefetch_next(spt_prefetch *prefetch, spt_micro_batch *batch_p) {
  if (prefetch->taken == prefetch->limit)
    return SPT_FAIL(SPT_ERR_USAGE, "read-ahead: no data is read for step %lld, past the last",
                    (long long)prefetch->options.end_step);
  pthread_mutex_lock(&prefetch->mutex);
  if (prefetch->taken == prefetch->produced && prefetch->status == SPT_OK) {
    const double begin = now();
    while (prefetch->taken == prefetch->produced && prefetch->status == SPT_OK)
      pthread_cond_wait(&prefetch->filled, &prefetch->mutex);
    prefetch->wait_seconds += now() - begin;
  }
  const bool ready = prefetch->taken < prefetch->produced; /* what was read before a failure is still served */
  const slot *place = &prefetch->slots[prefetch->taken % prefetch->slot_count];
  if (ready) {
    prefetch->taken++;
    pthread_cond_signal(&prefetch->freed);
  }
  pthread_mutex_unlock(&prefetch->mutex);
  if (!ready) return SPT_FAIL(prefetch->status, "%s", prefetch->message); /* both final once a failure is seen */
  *batch_p = (spt_micro_batch){place->step, place->first_index, prefetch->options.micro, place->ids, place->targets};
  return SPT_OK;
}

double spt_prefetch_wait_seconds(const spt_prefetch *prefetch) {
  return prefetch->wait_seconds;
}

int64_t spt_prefetch_tokens_read(const spt_prefetch *prefetch) {
  spt_prefetch *mutable = (spt_prefetch *)prefetch; /* the lock is no visible change */
  pthread_mutex_lock(&mutable->mutex);
  const int64_t tokens = prefetch->tokens_read;
  pthread_mutex_unlock(&mutable->mutex);
  return tokens;
}
