/* Saving, and what follows when it fails: training goes on, the next save tries again, and the end of the run tells. */
#include "trainer.h"

#include <math.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static spt_status sha256_hex(const char *text, char hex[65]) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  if (EVP_Digest(text, strlen(text), digest, &length, EVP_sha256(), NULL) != 1)
    return SPT_FAIL(SPT_ERR_RESOURCE, "OpenSSL could not compute a SHA-256");
  for (unsigned i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
  return SPT_OK;
}

/* ---- what came of a save ---- */

static void newest_words(const trainer_saves *saves, char text[64]) {
  if (saves->durable_step >= 0)
    snprintf(text, 64, "the newest checkpoint is of step %lld", (long long)saves->durable_step);
  else
    snprintf(text, 64, "there is no checkpoint yet");
}

/* The best loss so far is that of a state on disk: the next one that beats it is saved, as this one could not be. */
static void note_failure(trainer *t, const trainer_save_request *request) {
  trainer_saves *saves = &t->saves;
  saves->failed = *request;
  snprintf(saves->failure, sizeof saves->failure, "%s", spt_error_message());
  if (request->best && t->best_validation_loss == request->best_loss)
    t->best_validation_loss = saves->durable_best_loss;
  if (t->comm->rank != 0) return;
  char newest[64];
  newest_words(saves, newest);
  trainer_progress_warning("step %lld is not saved: %s; %s%s", (long long)request->step, saves->failure, newest,
                           request->ending ? "" : "; training goes on, and the next save tries again");
}

/* Rank 0, after a durable save: best.h5 and what is beyond the `keep` newest. A best.h5 that could not be made is owed,
 * and until it is there nothing is removed. */
static void tidy(trainer *t, const trainer_save_request *request) {
  trainer_saves *saves = &t->saves;
  spt_status status = SPT_OK;
  if (saves->best_owed && !request->best) status = spt_run_folder_repair_best(t->folder, saves->durable_best_loss);
  if (status == SPT_OK)
    status = spt_run_folder_after_save(t->folder, saves->path, request->best, t->config.checkpoint.keep);
  if (status == SPT_ERR_USAGE) snprintf(saves->folder_lost, sizeof saves->folder_lost, "%s", spt_error_message());
  saves->best_owed = (saves->best_owed || request->best) && status != SPT_OK;
  trainer_progress_event("saved %s%s", saves->path, request->best ? " (best)" : "");
  if (status != SPT_OK && !saves->folder_lost[0])
    trainer_progress_warning("step %lld is saved, but %s; the next save tries again", (long long)request->step,
                             spt_error_message());
}

static void note_success(trainer *t, const trainer_save_request *request) {
  trainer_saves *saves = &t->saves;
  saves->failed.step = -1;
  saves->durable_step = request->step;
  if (request->best) saves->durable_best_loss = request->best_loss;
  if (t->comm->rank == 0) tidy(t, request);
}

void trainer_finish_save(trainer *t) {
  trainer_saves *saves = &t->saves;
  if (!saves->path[0]) return;
  const trainer_save_request request = saves->under_way;
  if (spt_checkpoint_save_finish(t->saver) == SPT_OK)
    note_success(t, &request);
  else
    note_failure(t, &request);
  saves->path[0] = '\0';
}

/* ---- records ---- */

void trainer_note_records(trainer *t, spt_status status, bool durable) {
  trainer_saves *saves = &t->saves;
  if (status != SPT_OK && !saves->records_owed)
    trainer_progress_warning("step %lld: the records cannot be written: %s; training goes on, they are kept in memory "
                             "until they can be",
                             (long long)t->step, spt_error_message());
  if (status == SPT_OK && durable && saves->records_owed)
    trainer_progress_event("step %lld: all records are written", (long long)t->step);
  saves->records_owed = status != SPT_OK || (saves->records_owed && !durable);
}

/* ---- a save ---- */

/* Rank 0: where the save goes; what is there and not ours keeps its bytes under another name. */
static spt_status choose_path(trainer *t) {
  char kept[SPT_PATH_MAX];
  spt_run_folder_checkpoint_path(t->folder, t->step, t->saves.path);
  SPT_TRY(spt_run_folder_make_room(t->saves.path, kept));
  if (kept[0]) trainer_progress_event("%s is no checkpoint of this program: kept as %s", t->saves.path, kept);
  return SPT_OK;
}

static spt_status begin(trainer *t, const trainer_save_request *request) {
  trainer_saves *saves = &t->saves;
  spt_checkpoint_header header = {.step = t->step,
                                  .tokens = t->tokens,
                                  .applied_updates = spt_optimizer_applied(t->optimizer),
                                  .rank_count = t->comm->size,
                                  .best_validation_loss = t->best_validation_loss};
  memcpy(header.data_fingerprint, t->fingerprint, sizeof header.data_fingerprint);
  char *job = trainer_job_text(t);
  spt_status status = job ? sha256_hex(job, header.config_sha256) : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory saving");
  if (status == SPT_OK && t->comm->rank == 0) status = choose_path(t);
  status = spt_comm_agree(t->comm, status, NULL);
  if (status == SPT_OK) status = t->comm->ops->broadcast(t->comm, saves->path, sizeof saves->path, 0);
  if (status == SPT_OK)
    status = (request->ending ? spt_checkpoint_save_resting : spt_checkpoint_save_begin)(t->saver, saves->path, &header,
                                                                                         job);
  free(job);
  return status;
}

spt_status trainer_save(trainer *t, bool best, bool ending) {
  trainer_saves *saves = &t->saves;
  bool finite;
  SPT_TRY(trainer_parameters_finite(t, &finite));
  if (!finite) {
    trainer_watch_parameters(t);
    return SPT_FAIL(
        SPT_ERR_DIVERGED,
        "training diverged: parameters are not finite after step %lld, which is not saved; start again with a "
        "smaller optimizer.lr in a new run",
        (long long)t->step);
  }
  SPT_TRY(spt_comm_agree(t->comm, t->comm->rank == 0 ? spt_run_folder_check(t->folder) : SPT_OK, NULL));
  trainer_finish_save(t);
  if (t->comm->rank == 0) { // the records of the saved steps are as durable as the checkpoint
    trainer_note_records(t, spt_metrics_write_hdf5(t->metrics), true);
    spt_run_folder_remove_parts(t->folder);
  }
  saves->under_way = (trainer_save_request){t->step, best, ending, t->best_validation_loss};
  if (begin(t, &saves->under_way) != SPT_OK) {
    note_failure(t, &saves->under_way);
    saves->path[0] = '\0';
  }
  saves->tried_at = trainer_now();
  return SPT_OK;
}

/* ---- the end ---- */

static spt_status judge(trainer *t) {
  const trainer_saves *saves = &t->saves;
  char newest[64];
  if (saves->folder_lost[0]) return SPT_FAIL(SPT_ERR_USAGE, "%s", saves->folder_lost);
  newest_words(saves, newest);
  const spt_status records = spt_metrics_write_hdf5(t->metrics);
  if (saves->failed.step >= 0)
    return SPT_FAIL(SPT_ERR_RESOURCE,
                    "the run ends at step %lld and is not saved (%s); %s: mend that and start it again "
                    "with --resume",
                    (long long)t->step, saves->failure, newest);
  if (records != SPT_OK) {
    char reason[512];
    snprintf(reason, sizeof reason, "%s", spt_error_message());
    return SPT_FAIL(records, "step %lld is saved, but the records are not complete: %s", (long long)t->step, reason);
  }
  if (!saves->best_owed || spt_run_folder_repair_best(t->folder, saves->durable_best_loss) == SPT_OK) return SPT_OK;
  char reason[512];
  snprintf(reason, sizeof reason, "%s", spt_error_message());
  return SPT_FAIL(SPT_ERR_RESOURCE, "step %lld is saved, but best.h5 is not made: %s; --resume makes it",
                  (long long)t->step, reason);
}

spt_status trainer_end_saves(trainer *t) {
  trainer_saves *saves = &t->saves;
  trainer_finish_save(t);
  if (saves->failed.step == t->step) { // no next save: once more, now
    const trainer_save_request again = saves->failed;
    if (again.best) t->best_validation_loss = again.best_loss;
    spt_watchdog_at(t->here, t->step, SPT_PHASE_END); // with a time limit of its own
    SPT_TRY(trainer_save(t, again.best, true));
    trainer_finish_save(t);
  }
  return spt_comm_agree(t->comm, t->comm->rank == 0 ? judge(t) : SPT_OK, NULL);
}
