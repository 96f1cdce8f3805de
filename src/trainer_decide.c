/* What a step sums over ranks before its update, and what is decided: clip factor, skip, stop, save. */
#include "trainer.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { TOLD_STOP, TOLD_DUE, TOLD_BUSY };
_Static_assert(sizeof(spt_control) <= SPT_LATER_BYTES, "is taken a step late");
_Static_assert(offsetof(spt_control, slowest) == SPT_CONTROL_SUMS * sizeof(double), "sums, then maxima");

spt_status trainer_decide_open(trainer *t) {
  if (t->backend->host_memory) return SPT_OK;
  const spt_control control = {.clip = 1, .applied = spt_optimizer_applied(t->optimizer)};
  return t->backend->ops->upload(t->backend, t->control, &control, sizeof control);
}

spt_status trainer_abort_on_failure(trainer *t, spt_status status, const char *phase) {
  if (status == SPT_OK || t->comm->size == 1) return status;
  fprintf(stderr, "spectron-dist: rank %d (%s), step %lld, %s: %s\n", t->comm->rank, t->comm->host,
          (long long)t->step + 1, phase, spt_error_message());
  fflush(stderr);
  spt_comm *comm = t->bulk ? t->bulk : t->comm;
  comm->ops->abort(comm, (int)status);
  return status;
}

static bool save_due(const trainer *t) {
  const double every = t->config.checkpoint.every_seconds;
  return t->comm->rank == 0 && every > 0 && trainer_now() - t->saves.tried_at >= every;
}

/* ---- on the host ---- */

spt_status trainer_gradient_stats(trainer *t, spt_control *control) {
  if (t->tree) return trainer_tree_gradient_stats(t, control);
  spt_backend *backend = t->backend;
  SPT_TRY(backend->ops->upload(backend, t->control, control, sizeof *control));
  SPT_TRY(spt_optimizer_gradient_stats(t->optimizer, t->control));
  return backend->ops->download(backend, control, t->control, sizeof *control);
}

/* Sums, and with them the squares by group, over ranks. */
static spt_status reduce_sums(trainer *t, double sums[TRAINER_SUMS], double group_squares[SPT_GRADIENT_GROUPS]) {
  double all[TRAINER_SUMS + SPT_GRADIENT_GROUPS];
  if (t->tree) {
    SPT_TRY(trainer_tree_reduce(t, sums));
    trainer_tree_group_squares(t, group_squares);
    return SPT_OK;
  }
  memcpy(all, sums, TRAINER_SUMS * sizeof *all);
  memcpy(all + TRAINER_SUMS, group_squares, SPT_GRADIENT_GROUPS * sizeof *all);
  SPT_TRY(t->comm->ops->reduce_double(t->comm, all, TRAINER_SUMS + SPT_GRADIENT_GROUPS, SPT_REDUCE_SUM));
  memcpy(sums, all, TRAINER_SUMS * sizeof *all);
  memcpy(group_squares, all + TRAINER_SUMS, SPT_GRADIENT_GROUPS * sizeof *all);
  return SPT_OK;
}

spt_status trainer_decide(trainer *t, spt_status status, double loss_sum, double data_wait, bool stop,
                          spt_control *control, trainer_step *step) {
  double sums[TRAINER_SUMS] = {[TRAINER_SUM_SQUARES] = control->sum_squares,
                               [TRAINER_SUM_NON_FINITE] = control->non_finite,
                               [TRAINER_SUM_LOSS] = loss_sum,
                               [TRAINER_SUM_STOP] = stop,
                               [TRAINER_SUM_DUE] = save_due(t),
                               [TRAINER_SUM_FAILED] = status != SPT_OK,
                               [TRAINER_SUM_BUSY] = !spt_checkpoint_save_idle(t->saver)};
  memcpy(step->group_squares, control->group_squares, sizeof step->group_squares);
  SPT_TRY(reduce_sums(t, sums, step->group_squares));
  if (sums[TRAINER_SUM_FAILED] > 0) return spt_comm_agree(t->comm, status, NULL);
  double slowest = data_wait;
  SPT_TRY(t->comm->ops->reduce_double(t->comm, &slowest, 1, SPT_REDUCE_MAX));
  step->data_wait_seconds = slowest;
  step->loss = sums[TRAINER_SUM_LOSS] / (double)trainer_tokens_per_step(&t->config);
  step->grad_norm = sqrt(sums[TRAINER_SUM_SQUARES]);
  step->stop = sums[TRAINER_SUM_STOP] > 0;
  step->save_due = sums[TRAINER_SUM_DUE] > 0;
  step->saves_idle = sums[TRAINER_SUM_BUSY] == 0;
  *control = (spt_control){.sum_squares = sums[TRAINER_SUM_SQUARES],
                           .non_finite = sums[TRAINER_SUM_NON_FINITE],
                           .loss = sums[TRAINER_SUM_LOSS]};
  spt_control_decide(control, t->config.optimizer.grad_clip);
  step->applied = control->apply != 0;
  return SPT_OK;
}

/* ---- on a device ---- */

spt_status trainer_decide_begin(trainer *t) {
  return t->backend->ops->zero(t->backend, t->control, offsetof(spt_control, clip));
}

/* The first failure is kept: until the others learn of it this rank goes on with the step's collectives. */
static void keep_failure(trainer *t, spt_status status) {
  if (status == SPT_OK || t->failed != SPT_OK) return;
  t->failed = status;
  snprintf(t->failed_words, sizeof t->failed_words, "%s", spt_error_message());
}

spt_status trainer_decide_issue(trainer *t, spt_status status, double data_wait, bool stop) {
  spt_backend *backend = t->backend;
  keep_failure(t, status);
  SPT_TRY(spt_optimizer_gradient_stats(t->optimizer, t->control));
  const spt_control own = {.failed = t->failed != SPT_OK,
                           .told = {[TOLD_STOP] = stop, [TOLD_DUE] = save_due(t), [TOLD_BUSY] = !spt_checkpoint_save_idle(t->saver)},
                           .slowest = data_wait};
  SPT_TRY(backend->ops->upload(backend, &t->control->failed, &own.failed, offsetof(spt_control, clip) - offsetof(spt_control, failed)));
  if (t->bulk) SPT_TRY(t->bulk->ops->reduce_device(t->bulk, t->control->group_squares, SPT_CONTROL_SUMS, SPT_CONTROL_MAXIMA));
  SPT_TRY(backend->ops->decide(backend, t->config.optimizer.grad_clip, t->control));
  return backend->ops->later_issue(backend, (int)(t->step % 2), t->control, sizeof *t->control);
}

/* Looks again and again instead of waiting, so that a broken connection is noticed. */
static spt_status take(trainer *t, int64_t number, spt_control *control_p) {
  const struct timespec pause = {.tv_nsec = 20000};
  bool done = false;
  while (!done) {
    SPT_TRY(t->backend->ops->later_take(t->backend, (int)((number - 1) % 2), control_p, sizeof *control_p, &done));
    if (done) break;
    if (t->bulk) SPT_TRY(t->bulk->ops->progress(t->bulk));
    nanosleep(&pause, NULL);
  }
  return SPT_OK;
}

spt_status trainer_settle(trainer *t, trainer_step *step) {
  spt_control control;
  SPT_TRY(trainer_abort_on_failure(t, take(t, step->number, &control), "waiting for the device"));
  if (control.failed > 0)
    return spt_comm_agree(t->comm, t->failed == SPT_OK ? SPT_OK : SPT_FAIL(t->failed, "%s", t->failed_words), NULL);
  step->loss = control.loss / (double)trainer_tokens_per_step(&t->config);
  step->grad_norm = sqrt(control.sum_squares);
  memcpy(step->group_squares, control.group_squares, sizeof step->group_squares);
  step->stop = control.told[TOLD_STOP] > 0;
  step->save_due = control.told[TOLD_DUE] > 0;
  step->saves_idle = control.told[TOLD_BUSY] == 0;
  step->data_wait_seconds = control.slowest;
  step->applied = control.apply != 0;
  spt_optimizer_set_applied(t->optimizer, control.applied);
  const double now = trainer_now();
  step->seconds = now - t->settled_at; // from decision to decision
  t->settled_at = now;
  t->times.total += step->seconds;
  return SPT_OK;
}
