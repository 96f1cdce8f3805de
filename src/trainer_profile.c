/* The profile of a run: time by phase on rank 0, and over all ranks what was read, held and sent, to be compared with
 * the plan. */
#include "trainer.h"

#include "core/op_cost.h"

#include <string.h>

static void print_times(const trainer *t) {
  const trainer_times *times = &t->times;
  const struct {
    const char *name;
    double seconds;
  } rows[] = {{"data wait", times->data_wait},
              {"forward and backward", times->model},
              {"reduction wait", times->reduce_wait},
              {"optimizer", times->optimizer},
              {"parameter gather", times->gather},
              {"compute copy", times->refresh},
              {"(validation, beside the steps)", times->validation},
              {"(saves, beside the steps)", times->save}};
  trainer_progress_event("profile of rank 0: %.2f s in %lld steps", times->total, (long long)(t->step - t->first_step));
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
    trainer_progress_event("  %-32s %9.3f s %6.2f %%", rows[i].name, rows[i].seconds,
                           100 * rows[i].seconds / times->total);
  for (int op = 0; op < SPT_OP_COUNT; op++)
    for (int phase = 0; phase < 2; phase++) {
      const spt_op_profile *row = &t->backend->profile.ops[op][phase];
      if (row->calls == 0) continue;
      trainer_progress_event("    %-20s %-9s %9.3f s %6.2f %%  products %9.3f s  %7.1f GFLOP/s  %6.1f GB/s",
                             spt_op_name((spt_op)op), phase ? "backward" : "forward", row->seconds,
                             100 * row->seconds / times->total, row->products, row->flops / row->seconds * 1e-9,
                             row->bytes / row->seconds * 1e-9);
    }
}

/* Smallest and largest over the ranks, and their sum. */
static spt_status spread(const trainer *t, double value, double out[3]) {
  static const spt_reduce_op ops[3] = {SPT_REDUCE_MIN, SPT_REDUCE_MAX, SPT_REDUCE_SUM};
  for (int i = 0; i < 3; i++) {
    out[i] = value;
    SPT_TRY(t->comm->ops->reduce_double(t->comm, &out[i], 1, ops[i]));
  }
  return SPT_OK;
}

static double state_bytes(const trainer *t) {
  int count;
  double bytes = 0;
  const spt_state_piece *pieces = spt_optimizer_state(t->optimizer, &count);
  for (int i = 0; i < count; i++) bytes += (double)(pieces[i].end - pieces[i].begin) * sizeof(float);
  return bytes;
}

/* What this rank's share of the plan takes: momentum and u of its pairs, two moments of its slices. */
static double planned_bytes(const trainer *t) {
  const spt_share *share = &t->plan->shares[t->comm->rank];
  double elements = 0;
  for (int i = 0; i < share->pair_count; i++) {
    const spt_pair *pair = &t->params->pairs[share->pairs[i]];
    elements += (double)((pair->m + pair->n) * (pair->r + 1));
  }
  for (int i = 0; i < share->slice_count; i++)
    elements += 2.0 * (double)(share->slices[i].end - share->slices[i].begin);
  return elements * sizeof(float);
}

spt_status trainer_print_profile(const trainer *t) {
  static const char *const names[SPT_COLLECTIVE_KINDS] = {"all-reduce", "reduce-scatter", "all-gather"};
  double tokens[3], state[3], excess[3];
  SPT_TRY(spread(t, (double)spt_prefetch_tokens_read(t->prefetch), tokens));
  SPT_TRY(spread(t, state_bytes(t), state));
  SPT_TRY(spread(t, state_bytes(t) - planned_bytes(t), excess));
  if (t->comm->rank != 0) return SPT_OK;
  print_times(t);
  trainer_progress_event("  tokens read by a rank: %.0f to %.0f, %.0f together", tokens[0], tokens[1], tokens[2]);
  trainer_progress_event("  optimizer bytes of a rank: %.0f to %.0f, %.0f together; %.0f over the plan's share",
                         state[0], state[1], state[2], excess[1]);
  for (int kind = 0; kind < SPT_COLLECTIVE_KINDS; kind++)
    if (t->comm->counters[kind].messages)
      trainer_progress_event("  %s: %lld messages, %lld bytes in the run", names[kind],
                             (long long)t->comm->counters[kind].messages, (long long)t->comm->counters[kind].bytes);
  trainer_progress_event("  overlap: %d of %d reductions posted during backward, %d complete before the wait",
                         t->overlap.posted_in_backward, t->overlap.buckets, t->overlap.complete_before_wait);
  return SPT_OK;
}
