/* The profile of a run: time by phase, on rank 0 also by op, and over all ranks what was read, held and sent, to be
 * compared with the plan. */
#include "trainer.h"

#include "core/op_cost.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

void trainer_profile_first_step(trainer *t) {
  t->first = (trainer_first_step){t->times, t->backend->profile};
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

/* ---- by phase ---- */

static const struct {
  const char *name;
  size_t offset; /* of its seconds in trainer_times */
  bool beside;   /* between the steps, no step time */
} phases[] = {{"data wait", offsetof(trainer_times, data_wait), false},
              {"forward and backward", offsetof(trainer_times, model), false},
              {"reduction wait", offsetof(trainer_times, reduce_wait), false},
              {"optimizer", offsetof(trainer_times, optimizer), false},
              {"agreement of the ranks", offsetof(trainer_times, decide), false},
              {"parameter gather", offsetof(trainer_times, gather), false},
              {"compute copy", offsetof(trainer_times, refresh), false},
              {"logging", offsetof(trainer_times, logging), false},
              {"beside: telemetry", offsetof(trainer_times, spectral), true},
              {"beside: validation", offsetof(trainer_times, validation), true},
              {"beside: saves", offsetof(trainer_times, save), true}};
enum { PHASES = sizeof phases / sizeof phases[0] };

/* What this rank measured, without the first step where others followed. */
typedef struct measured {
  int64_t steps, records;
  double seconds[PHASES], rest, step_time; /* step_time: all that is not beside the steps */
  spt_op_profile ops[SPT_OP_COUNT][2], all;
} measured;

static double seconds_at(const trainer_times *times, size_t offset) {
  double seconds;
  memcpy(&seconds, (const char *)times + offset, sizeof seconds);
  return seconds;
}

static spt_op_profile add_profile(spt_op_profile a, const spt_op_profile *b, int sign) {
  a.calls += sign * b->calls;
  a.seconds += sign * b->seconds;
  a.products += sign * b->products;
  a.flops += sign * b->flops;
  a.bytes += sign * b->bytes;
  a.executed_products += sign * b->executed_products;
  a.executed_flops += sign * b->executed_flops;
  a.executed_bytes += sign * b->executed_bytes;
  return a;
}

static void collect(const trainer *t, measured *m) {
  static const trainer_first_step none;
  const bool all = t->step - t->first_step <= 1;
  const trainer_first_step *first = all ? &none : &t->first;
  *m = (measured){.steps = t->step - t->first_step - (all ? 0 : 1), .records = t->times.records - first->times.records};
  m->step_time = t->times.loop - first->times.loop;
  for (int i = 0; i < PHASES; i++) {
    m->seconds[i] = seconds_at(&t->times, phases[i].offset) - seconds_at(&first->times, phases[i].offset);
    if (phases[i].beside)
      m->step_time -= m->seconds[i];
    else
      m->rest -= m->seconds[i];
  }
  m->rest += m->step_time;
  for (int op = 0; op < SPT_OP_COUNT; op++)
    for (int backward = 0; backward < 2; backward++) {
      m->ops[op][backward] = add_profile(t->backend->profile.ops[op][backward], &first->ops.ops[op][backward], -1);
      m->all = add_profile(m->all, &m->ops[op][backward], 1);
    }
}

/* One line of the table of phases; with more ranks also the smallest and largest share among them. Collective. */
static spt_status print_phase(const trainer *t, const measured *m, const char *name, double seconds, const char *note) {
  const double share = 100 * seconds / m->step_time;
  double shares[3];
  char ranks[64] = "";
  if (t->comm->size > 1) {
    SPT_TRY(spread(t, share, shares));
    snprintf(ranks, sizeof ranks, "  %7.2f to %6.2f", shares[0], shares[1]);
  }
  if (t->comm->rank == 0) trainer_progress_event("  %-24s %10.3f %9.2f%s%s", name, seconds, share, ranks, note);
  return SPT_OK;
}

static spt_status print_phases(const trainer *t, const measured *m) {
  char records[64];
  snprintf(records, sizeof records, "  (%lld records)", (long long)m->records);
  if (t->comm->rank == 0) {
    trainer_progress_event("profile of %lld step%s%s%s", (long long)m->steps, m->steps == 1 ? "" : "s",
                           m->steps < t->step - t->first_step
                               ? "; the run's first step, which creates what the others reuse, is left out"
                               : ", the first, which creates what others would reuse",
                           t->comm->size > 1 ? "; rank 0, and the shares of all ranks" : "");
    trainer_progress_event("  %-24s %10s %9s%s", "phase", "seconds", "share %",
                           t->comm->size > 1 ? "  least to most" : "");
  }
  for (int i = 0; i < PHASES; i++) {
    if (i > 0 && phases[i].beside && !phases[i - 1].beside) {
      SPT_TRY(print_phase(t, m, "rest", m->rest, ""));
      SPT_TRY(print_phase(t, m, "step time", m->step_time, ""));
    }
    SPT_TRY(print_phase(t, m, phases[i].name, m->seconds[i],
                        phases[i].offset == offsetof(trainer_times, logging) && t->comm->rank == 0 ? records : ""));
  }
  return SPT_OK;
}

/* ---- by op ---- */

static const char *const passes[] = {"forward", "loss", "backward", "optimizer", "copy"};
enum { FORWARD, LOSS, BACKWARD, OPTIMIZER, COPY, PASSES };

static int pass_of(spt_op op, bool backward) {
  switch (op) {
  case SPT_OP_EMBEDDING:
  case SPT_OP_QKV:
  case SPT_OP_ATTENTION:
  case SPT_OP_O:
  case SPT_OP_GATE_UP:
  case SPT_OP_DOWN: return backward ? BACKWARD : FORWARD;
  case SPT_OP_HEAD: return LOSS; /* in training forward and backward at once */
  case SPT_OP_PACK: return COPY;
  default: return OPTIMIZER;
  }
}

/* A number, or a dash where there is nothing to divide. */
static const char *cell(char text[16], bool there, int decimals, double value) {
  snprintf(text, 16, there ? "%.*f" : "-", decimals, value);
  return text;
}

static void print_row(const trainer *t, const measured *m, const char *pass, const char *name,
                      const spt_op_profile *row) {
  const double steps = (double)m->steps, flop_rate = row->flops / row->seconds, byte_rate = row->bytes / row->seconds;
  const double peak_flops = t->backend->peak_flops, peak_bytes = t->backend->peak_bytes;
  const bool flops = row->flops > 0;
  char text[5][16];
  trainer_progress_event("  %-9s  %-15s %8.2f %10.1f %9.4f %11s %10s %7s %9s %7s", pass, name,
                         100 * row->seconds / m->step_time, (double)row->calls / steps, 1e3 * row->seconds / steps,
                         cell(text[0], row->products > 0, 1, 100 * row->products / row->seconds),
                         cell(text[1], flops, 2, flop_rate * 1e-9),
                         cell(text[2], flops && peak_flops > 0, 1, 100 * flop_rate / peak_flops),
                         cell(text[3], row->bytes > 0, 2, byte_rate * 1e-9),
                         cell(text[4], row->bytes > 0 && peak_bytes > 0, 1, 100 * byte_rate / peak_bytes));
}

static void print_ops(const trainer *t, const measured *m) {
  trainer_progress_event(
      "by op and pass%s; peak: %.1f GFLOP/s (one thread's in a large %s product, times the processors), %.1f GB/s of memory on %d thread%s",
      t->comm->size > 1 ? ", rank 0" : "", t->backend->peak_flops * 1e-9, t->backend->act == SPT_BF16 ? "bf16" : "fp32",
      t->backend->peak_bytes * 1e-9, t->backend->threads, t->backend->threads == 1 ? "" : "s");
  trainer_progress_event("  %-9s  %-15s %8s %10s %9s %11s %10s %7s %9s %7s", "pass", "op", "share %", "calls/step",
                         "ms/step", "products %", "GFLOP/s", "peak %", "GB/s", "peak %");
  for (int pass = 0; pass < PASSES; pass++) {
    spt_op_profile sum = {0};
    int rows = 0;
    for (int op = 0; op < SPT_OP_COUNT; op++)
      for (int backward = 0; backward < 2; backward++) {
        const spt_op_profile *row = &m->ops[op][backward];
        if (row->calls == 0 || pass_of((spt_op)op, backward) != pass) continue;
        print_row(t, m, passes[pass], spt_op_name((spt_op)op), row);
        sum = add_profile(sum, row, 1);
        rows++;
      }
    if (rows > 1) print_row(t, m, passes[pass], "(together)", &sum);
  }
  print_row(t, m, "all", "(together)", &m->all);
  trainer_progress_event("  FLOPs are those of the matrix products (attention's backward is 5 products, where the dry run counts twice "
                         "its forward), products %% the part of the time in the library's, bytes those that must be read or written once: the least; above 100 %% of peak, caches helped");
}

/* Counted FLOPs of a whole step over its wall time. Collective. */
static spt_status print_whole_step(const trainer *t, const measured *m) {
  double flops[3], seconds[3], peak[3];
  SPT_TRY(spread(t, m->all.flops / (double)m->steps, flops));
  SPT_TRY(spread(t, m->step_time / (double)m->steps, seconds));
  SPT_TRY(spread(t, t->backend->peak_flops, peak));
  if (t->comm->rank != 0) return SPT_OK;
  const double own = m->all.flops / m->step_time, together = flops[2] / seconds[1];
  trainer_progress_event("whole step: %.6e FLOPs in %.4f ms, %.2f GFLOP/s, %.1f %% of peak",
                         m->all.flops / (double)m->steps, 1e3 * m->step_time / (double)m->steps, own * 1e-9,
                         100 * own / t->backend->peak_flops);
  if (t->comm->size > 1)
    trainer_progress_event("  %d ranks together: %.6e FLOPs, %.2f GFLOP/s, %.1f %% of peak", t->comm->size, flops[2],
                           together * 1e-9, 100 * together / peak[2]);
  return SPT_OK;
}

/* ---- over the ranks ---- */

static double state_bytes(const trainer *t) {
  int count;
  double bytes = 0;
  const spt_state_piece *pieces = spt_optimizer_state(t->optimizer, &count);
  for (int i = 0; i < count; i++) bytes += (double)(pieces[i].end - pieces[i].begin) * sizeof(float);
  return bytes;
}

/* What this rank's share of the plan takes: momentum and, of factors, u of its pairs, two moments of its slices. */
static double planned_bytes(const trainer *t) {
  const spt_share *share = &t->plan->shares[t->comm->rank];
  double elements = 0;
  for (int i = 0; i < share->pair_count; i++) {
    const spt_pair *pair = &t->params->pairs[share->pairs[i]];
    elements += (double)(spt_pair_elements(pair) + (spt_pair_is_dense(pair) ? 0 : pair->m + pair->n));
  }
  for (int i = 0; i < share->slice_count; i++)
    elements += 2.0 * (double)(share->slices[i].end - share->slices[i].begin);
  return elements * sizeof(float);
}

spt_status trainer_print_profile(const trainer *t) {
  double tokens[3], state[3], excess[3];
  SPT_TRY(spread(t, (double)spt_prefetch_tokens_read(t->prefetch), tokens));
  SPT_TRY(spread(t, state_bytes(t), state));
  SPT_TRY(spread(t, state_bytes(t) - planned_bytes(t), excess));
  measured m;
  collect(t, &m);
  if (m.steps > 0) {
    SPT_TRY(print_phases(t, &m));
    if (t->comm->rank == 0) print_ops(t, &m);
    SPT_TRY(print_whole_step(t, &m));
  }
  if (t->comm->rank != 0) return SPT_OK;
  trainer_progress_event("  tokens read by a rank: %.0f to %.0f, %.0f together", tokens[0], tokens[1], tokens[2]);
  trainer_progress_event("  optimizer bytes of a rank: %.0f to %.0f, %.0f together; %.0f over the plan's share",
                         state[0], state[1], state[2], excess[1]);
  const spt_comm *comm = t->bulk ? t->bulk : t->comm;
  for (int kind = 0; kind < SPT_COLLECTIVE_KINDS; kind++)
    if (comm->counters[kind].messages)
      trainer_progress_event("  %s: %lld messages, %lld bytes in the run", spt_collective_name((spt_collective)kind),
                             (long long)comm->counters[kind].messages, (long long)comm->counters[kind].bytes);
  if (t->comm->size == 1) return SPT_OK;
  trainer_progress_event("  overlap, whole run: %d of %d reductions posted during backward, %d complete before the wait",
                         t->overlap.posted_in_backward, t->overlap.buckets, t->overlap.complete_before_wait);
  return SPT_OK;
}
