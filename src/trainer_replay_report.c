/* What a replay found, in words. */
#include "trainer_replay.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINES_MAX = 8 };

static const char *const seen_words[] = {[SPT_SEEN_OUTPUT] = "forward, its output",
                                         [SPT_SEEN_GRADIENT] = "backward, its gradient",
                                         [SPT_SEEN_INPUT_GRADIENT] = "backward, the gradient of its input"};

/* NaN has a sign, which tells nothing. */
static double unsigned_nan(double value) {
  return isnan(value) ? (double)NAN : value;
}

static double rms(const replay_entry *entry) {
  return sqrt(entry->squares / entry->values);
}

/* ---- not finite ---- */

static void print_parameters(const trainer_replay *replay, const replay_parameter *parameters, const char *when) {
  const spt_params *params = replay->t->params;
  int shown = 0, more = 0;
  for (int i = 0; i < params->tensor_count; i++) {
    if (parameters[i].non_finite == 0) continue;
    if (shown++ < LINES_MAX)
      trainer_progress_event("replay: parameters %s: %s: %.0f of %lld are not finite", when, params->tensors[i].name,
                             parameters[i].non_finite, (long long)params->tensors[i].count);
    else
      more++;
  }
  if (more > 0) trainer_progress_event("replay: and those of %d tensors more", more);
}

/* The parameters of the op that went wrong: tensors whose names begin like the entry's. */
static void print_weights(const trainer_replay *replay, const char *name) {
  const spt_params *params = replay->t->params;
  const size_t length = strlen(name);
  for (int i = 0; i < params->tensor_count; i++) {
    const spt_tensor *tensor = &params->tensors[i];
    if (strncmp(tensor->name, name, length) != 0 || (tensor->name[length] != '.' && tensor->name[length] != '\0')) continue;
    trainer_progress_event("replay: before the step the largest element of %s was %.4g", tensor->name, replay->parameters[i].largest);
  }
}

/* False where every op's values are finite. */
static bool print_first(const trainer_replay *replay) {
  const replay_list *now = &replay->now;
  const replay_entry *entry = &now->entries[now->first_place < 0 ? 0 : now->first_place];
  if (now->first_place < 0) return false;
  trainer_progress_event("replay: the first to go wrong: %s, %s: %.0f of %.0f values are not finite in all; first on rank %d, micro-batch %d",
                         entry->name, seen_words[entry->seen], entry->non_finite, entry->values, now->first_rank, now->first_pass);
  char name[sizeof entry->name];
  snprintf(name, sizeof name, "%s", entry->name);
  if (entry->seen == SPT_SEEN_GRADIENT) name[strrchr(name, '.') - name] = '\0';
  print_weights(replay, name);
  return true;
}

/* ---- growth ---- */

typedef struct growth {
  const replay_entry *entry;
  double before, now;
} growth;

static int by_growth(const void *left, const void *right) {
  const growth *a = left, *b = right;
  const double x = a->now * b->before, y = b->now * a->before;
  return (x < y) - (x > y);
}

/* Those that grew most against the step before, by rms of what they wrote or by norm of their gradient; entries behind the first that is not
 * finite tell nothing. */
static void print_growth(const trainer_replay *replay, bool gradients) {
  const replay_list *before = &replay->before, *now = &replay->now;
  const int end = now->first_place < 0 ? now->count : now->first_place;
  growth *all = malloc(((size_t)end + 1) * sizeof *all);
  int count = 0;
  for (int i = 0; all && i < end && i < before->count; i++) {
    const replay_entry *entry = &now->entries[i], *old = &before->entries[i];
    if (entry->again || (entry->seen == SPT_SEEN_GRADIENT) != gradients || entry->values == 0 || old->non_finite > 0) continue;
    if (strcmp(entry->name, old->name) != 0) break; // guidance ended between the two: other ops
    all[count] = (growth){entry, rms(old), rms(entry)};
    if (all[count].before > 0) count++;
  }
  if (count > 0) {
    qsort(all, (size_t)count, sizeof *all, by_growth);
    trainer_progress_event("replay: largest growth against step %lld, %s:", (long long)replay->t->options.replay - 1,
                           gradients ? "gradients by rms (of a rank's share of the batch)" : "what ops wrote by rms");
  }
  for (int i = 0; i < count && i < LINES_MAX; i++)
    trainer_progress_event("replay:   %8.3f × %-44s %-36s %10.4g from %.4g", all[i].now / all[i].before, all[i].entry->name,
                           seen_words[all[i].entry->seen], all[i].now, all[i].before);
  free(all);
}

void replay_print(const trainer_replay *replay, const trainer_step *step) {
  trainer_progress_event("replay: step %lld: loss %.17g, gradient norm %.17g, learning rate %g%s", (long long)step->number,
                         unsigned_nan(step->loss), unsigned_nan(step->grad_norm), step->lr, step->applied ? "" : "; the update is skipped");
  print_parameters(replay, replay->parameters, "before the step");
  const bool wrong = print_first(replay);
  if (!wrong && step->applied) trainer_progress_event("replay: every value of every op is finite");
  if (!wrong && !step->applied)
    trainer_progress_event("replay: every value of every op is finite on its rank: the sum over ranks, or the loss or norm of all, is not");
  if (step->applied) print_parameters(replay, replay->updated, "after the update");
  if (replay->before.count == 0)
    trainer_progress_event("replay: this step is the first of the replay: from an earlier checkpoint its sizes could be compared with the step before");
  print_growth(replay, false);
  print_growth(replay, true);
}
