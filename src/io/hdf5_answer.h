/* What a reader process (hdf5_process.h) knows of one file: implemented for shards and for checkpoints. All of it runs
 * inside of the reader. */
#ifndef SPT_HDF5_ANSWER_H
#define SPT_HDF5_ANSWER_H

#include "hdf5_process.h"

typedef struct spt_hdf5_answerer {
  /* Opens the file by the name `open_name` (/proc/self/fd/N), `path` being its name in errors. */
  spt_status (*open)(const char *open_name, const char *path, void **file_p);
  /* Fills question->answer_bytes bytes, or says why not. The question's numbers are the asking process's: trusted. */
  spt_status (*answer)(void *file, const spt_question *question, const void *argument, void *answer);
} spt_hdf5_answerer;

extern const spt_hdf5_answerer spt_shard_answerer, spt_checkpoint_answerer;

#endif
