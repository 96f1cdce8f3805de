/* poison_checkpoint FILE DATASET ELEMENT VALUE: writes the checkpoint anew, intact, with one element changed: a matrix that goes wrong. */
#include "host_backend.h"

#include "io/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static spt_status read_all(spt_checkpoint *from, spt_checkpoint_item *items, int count) {
  for (int i = 0; i < count; i++) {
    const char *name;
    SPT_TRY(spt_checkpoint_dataset(from, i, &name, &items[i].rows, &items[i].cols));
    snprintf(items[i].dataset, sizeof items[i].dataset, "%s", name);
    items[i].end = items[i].rows * items[i].cols;
    items[i].values = malloc((size_t)items[i].end * sizeof(float));
    if (!items[i].values) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
    SPT_TRY(spt_checkpoint_read(from, i, items[i].values));
  }
  return SPT_OK;
}

static spt_status save(const spt_checkpoint *from, const char *path, const spt_checkpoint_item *items, int count) {
  spt_comm *comm = NULL;
  spt_checkpoint_saver *saver = NULL;
  SPT_TRY(spt_comm_self_open(&comm));
  SPT_TRY(spt_checkpoint_saver_open(comm, &host_backend, items, count, &saver));
  SPT_TRY(spt_checkpoint_save_begin(saver, path, spt_checkpoint_header_of(from), spt_checkpoint_job(from)));
  SPT_TRY(spt_checkpoint_save_finish(saver));
  spt_checkpoint_saver_close(&saver);
  comm->ops->close(&comm);
  return SPT_OK;
}

static spt_status poison(const char *path, const char *dataset, int64_t element, float value) {
  spt_checkpoint *from = NULL;
  SPT_TRY(spt_checkpoint_open(path, &from));
  const int count = spt_checkpoint_dataset_count(from), place = spt_checkpoint_find(from, dataset);
  spt_checkpoint_item *items = calloc((size_t)count, sizeof *items);
  if (!items) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
  SPT_TRY(read_all(from, items, count));
  if (place < 0 || element >= items[place].end) return SPT_FAIL(SPT_ERR_USAGE, "%s has no element %lld of %s", path, (long long)element, dataset);
  items[place].values[element] = value;
  SPT_TRY(save(from, path, items, count)); // by rename: the open file is the old one
  spt_checkpoint_close(&from);
  for (int i = 0; i < count; i++) free(items[i].values);
  free(items);
  return SPT_OK;
}

int main(int argc, char **argv) {
  if (argc != 5) return fprintf(stderr, "usage: poison_checkpoint FILE DATASET ELEMENT VALUE\n"), 2;
  const spt_status status = poison(argv[1], argv[2], atoll(argv[3]), strtof(argv[4], NULL));
  if (status != SPT_OK) fprintf(stderr, "poison_checkpoint: %s\n", spt_error_message());
  return (int)status;
}
