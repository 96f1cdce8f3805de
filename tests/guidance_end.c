/* guidance_end JOB [KEY=VALUE]...: the trainer's own end of guidance, with values that are known: opens the job on all ranks, writes numbers of each
 * dataset's name into parameters and optimizer state, ends guidance, and finds the same numbers in what is left, which is all but the guides. Exits 1
 * where something differs. */
#include "core/rng.h"
#include "io/hdf5_process.h"
#include "io/job_toml.h"
#include "trainer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { APPLIED = 17, SEED = 5 };
static spt_whereabouts whereabouts;
static trainer the_trainer = {.here = &whereabouts};

/* Elements [begin, end) of a dataset. */
static void make(const char *dataset, int64_t begin, int64_t end, float *values) {
  spt_random_normal(SEED, spt_stream_of(dataset), begin, end - begin, 1, values);
}

static void fill(trainer *t) {
  for (int i = 0; i < t->item_count; i++) {
    const spt_checkpoint_item *item = &t->items[i];
    if (i < t->model_item_count) // whole on every rank
      make(item->dataset, 0, item->rows * item->cols, t->parameters + t->plan->layout.offset[i]);
    else if (item->begin < item->end)
      make(item->dataset, item->begin, item->end, item->values);
  }
  spt_optimizer_set_applied(t->optimizer, APPLIED);
}

static spt_status expect(const trainer *t, const char *dataset, int64_t begin, int64_t end, const float *values) {
  float *wanted = malloc((size_t)(end - begin) * sizeof *wanted + 1);
  if (!wanted) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
  make(dataset, begin, end, wanted);
  const bool same = memcmp(wanted, values, (size_t)(end - begin) * sizeof *wanted) == 0;
  free(wanted);
  return same ? SPT_OK : SPT_FAIL(SPT_ERR_DATA, "rank %d: %s has changed", t->comm->rank, dataset);
}

static spt_status check(const trainer *t, int items, int guides) {
  if (guides == 0 || t->item_count >= items || t->guidance || t->params->guide_count != 0)
    return SPT_FAIL(SPT_ERR_DATA, "%d guides before, %d datasets of %d after", guides, t->item_count, items);
  if (spt_optimizer_applied(t->optimizer) != APPLIED) return SPT_FAIL(SPT_ERR_DATA, "the applied updates are not kept");
  for (int i = 0; i < t->item_count; i++) {
    const spt_checkpoint_item *item = &t->items[i];
    if (strstr(item->dataset, ".guide")) return SPT_FAIL(SPT_ERR_DATA, "%s is still there", item->dataset);
    if (i < t->model_item_count)
      SPT_TRY(expect(t, item->dataset, 0, item->rows * item->cols, t->parameters + t->plan->layout.offset[i]));
    else if (item->begin < item->end)
      SPT_TRY(expect(t, item->dataset, item->begin, item->end, item->values));
  }
  return SPT_OK;
}

static spt_status run(trainer *t, int set_count, char **sets) {
  SPT_TRY(spt_job_load(t->options.job, (const char *const *)sets, set_count, &t->config));
  SPT_TRY(spt_config_check_ranks(&t->config, t->comm->size));
  t->asked_micro = t->config.batch.micro;
  SPT_TRY(trainer_open(t));
  const int items = t->item_count, guides = (int)(t->params->guide_count > 0);
  fill(t);
  t->step = t->guided_steps;
  SPT_TRY(trainer_guidance_end(t));
  return spt_comm_agree(t->comm, check(t, items, guides), NULL);
}

int main(int argc, char **argv) {
  trainer *t = &the_trainer;
  if (argc < 2 || spt_hdf5_process_start() != SPT_OK || spt_comm_mpi_open(&argc, &argv, &t->comm) != SPT_OK) return 2;
  t->options.job = argv[1];
  const spt_status status = run(t, argc - 2, argv + 2);
  if (status != SPT_OK && t->comm->rank == 0) fprintf(stderr, "%s\n", spt_error_message());
  trainer_close(t);
  t->comm->ops->barrier(t->comm);
  t->comm->ops->close(&t->comm);
  return status != SPT_OK;
}
