/* --replay K: steps up to K once more, with an observer in the passes of K − 1 and K. */
#include "trainer_replay.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE = 1 << 18 }; /* values looked at at once */

void trainer_replay_prepare(const trainer_options *options, spt_config *config) {
  if (options->replay == 0) return;
  config->data.validation.count = 0;
  config->validation.every = config->checkpoint.every = 0;
  config->checkpoint.every_seconds = 0;
  config->metrics.every = 1;
  config->metrics.spike_z = 0;
  config->metrics.spectral_every = 0; // it only looks
}

/* ---- values ---- */

typedef struct tally {
  double non_finite, squares, largest;
} tally;

static void count_value(tally *tally_p, float value) {
  if (!isfinite(value)) {
    tally_p->non_finite++;
    return;
  }
  tally_p->squares += (double)value * value;
  if (fabsf(value) > tally_p->largest) tally_p->largest = fabsf(value);
}

/* `values`: backend memory. */
static spt_status count_values(trainer_replay *replay, spt_dtype dtype, int64_t count, const void *values, tally *tally_p) {
  spt_backend *backend = replay->t->backend;
  const size_t size = spt_dtype_size(dtype);
  for (int64_t at = 0; at < count; at += PIECE) {
    const int64_t some = count - at < PIECE ? count - at : PIECE;
    const char *piece = (const char *)values + (size_t)at * size;
    if (replay->host) {
      SPT_TRY(backend->ops->download(backend, replay->host, piece, (size_t)some * size));
      piece = (const char *)replay->host;
    }
    for (int64_t i = 0; i < some; i++) count_value(tally_p, spt_element(piece, i, dtype));
  }
  return SPT_OK;
}

/* ---- the observer ---- */

static spt_status entry_at(replay_list *list, int place, replay_entry **entry_p) {
  if (place == list->capacity) {
    const int capacity = list->capacity ? 2 * list->capacity : 256;
    replay_entry *entries = realloc(list->entries, (size_t)capacity * sizeof *entries);
    if (!entries) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for what a replay sees");
    list->entries = entries;
    list->capacity = capacity;
  }
  if (place == list->count) list->entries[list->count++] = (replay_entry){0};
  *entry_p = &list->entries[place];
  return SPT_OK;
}

static void name_entry(const trainer_replay *replay, const spt_observation *seen, replay_entry *entry) {
  if (seen->layer >= 0 && seen->seen != SPT_SEEN_GRADIENT)
    snprintf(entry->name, sizeof entry->name, "model.layers.%d.%s", seen->layer, seen->what);
  else
    snprintf(entry->name, sizeof entry->name, "%s", seen->what);
  entry->seen = seen->seen;
  entry->again = seen->seen == SPT_SEEN_OUTPUT && replay->backward;
}

static spt_status see(void *context, const spt_observation *seen) {
  trainer_replay *replay = context;
  replay_list *list = replay->list;
  const bool first = seen->seen == SPT_SEEN_OUTPUT && strcmp(seen->what, "embed_tokens") == 0; // of a pass
  replay_entry *entry = NULL;
  tally tally = {0};
  replay->pass += first;
  replay->place = first ? 0 : replay->place + 1;
  replay->backward = !first && (replay->backward || seen->seen != SPT_SEEN_OUTPUT);
  SPT_TRY(entry_at(list, replay->place, &entry));
  name_entry(replay, seen, entry);
  SPT_TRY(count_values(replay, seen->dtype, seen->count, seen->values, &tally));
  if (seen->seen == SPT_SEEN_GRADIENT) entry->values = entry->non_finite = entry->squares = entry->largest = 0;
  entry->values += (double)seen->count;
  entry->non_finite += tally.non_finite;
  entry->squares += tally.squares;
  entry->largest = fmax(entry->largest, tally.largest);
  if (tally.non_finite > 0 && list->first_place < 0) {
    list->first_pass = replay->pass;
    list->first_place = replay->place;
  }
  return SPT_OK;
}

/* ---- over ranks ---- */

/* The earliest first op of all ranks; of ranks at the same, the lowest. */
static spt_status collect_first(trainer_replay *replay, replay_list *list) {
  enum { PLACES = 1 << 24 };
  spt_comm *comm = replay->t->comm;
  const double own = list->first_place < 0 ? (double)INFINITY : (double)list->first_pass * PLACES + list->first_place;
  double first = own;
  SPT_TRY(comm->ops->reduce_double(comm, &first, 1, SPT_REDUCE_MIN));
  if (isinf(first)) return SPT_OK;
  double rank = own == first ? comm->rank : comm->size;
  SPT_TRY(comm->ops->reduce_double(comm, &rank, 1, SPT_REDUCE_MIN));
  list->first_pass = (int)(first / PLACES);
  list->first_place = (int)(first - (double)list->first_pass * PLACES);
  list->first_rank = (int)rank;
  return SPT_OK;
}

static spt_status collect(trainer_replay *replay, replay_list *list) {
  spt_comm *comm = replay->t->comm;
  for (int i = 0; i < list->count; i++) {
    replay_entry *entry = &list->entries[i];
    double sums[] = {entry->values, entry->non_finite, entry->squares};
    SPT_TRY(comm->ops->reduce_double(comm, sums, 3, SPT_REDUCE_SUM));
    SPT_TRY(comm->ops->reduce_double(comm, &entry->largest, 1, SPT_REDUCE_MAX));
    entry->values = sums[0];
    entry->non_finite = sums[1];
    entry->squares = sums[2];
  }
  return collect_first(replay, list);
}

/* Every rank looks at the parameters it owns. */
static spt_status look_at_parameters(trainer_replay *replay, replay_parameter *parameters) {
  trainer *t = replay->t;
  for (int i = 0; i < t->model_item_count; i++) { // in the order of tensors
    const spt_checkpoint_item *item = &t->items[i];
    tally tally = {0};
    SPT_TRY(count_values(replay, SPT_F32, item->end - item->begin, item->values, &tally));
    SPT_TRY(t->comm->ops->reduce_double(t->comm, &tally.non_finite, 1, SPT_REDUCE_SUM));
    SPT_TRY(t->comm->ops->reduce_double(t->comm, &tally.largest, 1, SPT_REDUCE_MAX));
    parameters[i] = (replay_parameter){tally.non_finite, tally.largest};
  }
  return SPT_OK;
}

/* ---- steps ---- */

spt_status trainer_replay_open(trainer *t) {
  if (t->options.replay == 0) return SPT_OK;
  if (t->options.replay <= t->step)
    return SPT_FAIL(SPT_ERR_USAGE, "--replay %lld: the state is already at step %lld; give --resume=PATH of an earlier checkpoint",
                    (long long)t->options.replay, (long long)t->step);
  if (t->options.replay > t->config.schedule.steps)
    return SPT_FAIL(SPT_ERR_USAGE, "--replay %lld: the job has %lld steps", (long long)t->options.replay,
                    (long long)t->config.schedule.steps);
  trainer_replay *replay = t->replay = calloc(1, sizeof *replay);
  if (!replay) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for a replay");
  *replay = (trainer_replay){.t = t, .observer = {replay, see}, .before.first_place = -1, .now.first_place = -1};
  replay->parameters = calloc((size_t)t->params->tensor_count, sizeof *replay->parameters);
  replay->updated = calloc((size_t)t->params->tensor_count, sizeof *replay->updated);
  if (!t->backend->host_memory) replay->host = malloc(PIECE * sizeof *replay->host);
  if (replay->parameters && replay->updated && (t->backend->host_memory || replay->host)) return SPT_OK;
  return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for a replay");
}

void trainer_replay_close(trainer *t) {
  trainer_replay *replay = t->replay;
  if (!replay) return;
  free(replay->before.entries);
  free(replay->now.entries);
  free(replay->parameters);
  free(replay->updated);
  free(replay->host);
  free(replay);
  t->replay = NULL;
}

spt_status trainer_replay_begin(trainer *t) {
  trainer_replay *replay = t->replay;
  const int64_t left = t->options.replay - t->step; // steps, this one included
  if (left > 2) return SPT_OK;
  replay->list = left == 2 ? &replay->before : &replay->now;
  replay->pass = replay->place = -1;
  if (left == 1) SPT_TRY(look_at_parameters(replay, replay->parameters));
  spt_model_observe(t->model, &replay->observer);
  return SPT_OK;
}

spt_status trainer_replay_end(trainer *t, const trainer_step *step) {
  trainer_replay *replay = t->replay;
  if (!replay->list) return SPT_OK;
  spt_model_observe(t->model, NULL);
  SPT_TRY(collect(replay, replay->list));
  if (replay->list == &replay->now) {
    SPT_TRY(look_at_parameters(replay, replay->updated));
    if (t->comm->rank == 0) replay_print(replay, step);
  }
  replay->list = NULL;
  return SPT_OK;
}
