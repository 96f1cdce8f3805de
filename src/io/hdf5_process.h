/* HDF5 files are read in a process of their own: a few wrong bytes make the library crash, hang or ask for all memory,
 * and a checksum of ours proves that a file is undamaged, not that it is harmless. What dies is then the reader, and
 * the file is named; the program goes on.
 *
 * A helper, forked while the process is small, has one thread and knows no MPI, forks one reader a file. The reader
 * gets the open file, answers questions over a socket with plain structs and numbers, and never sees a name to open: no
 * link leads it anywhere. It has no signal handlers, no terminal, no inherited files, SPT_READER_SECONDS of processor
 * time for an answer (ten times as long and a minute by the clock) and SPT_READER_BYTES of memory. Helper and readers
 * end with the process that started them. */
#ifndef SPT_HDF5_PROCESS_H
#define SPT_HDF5_PROCESS_H

#include "core/status.h"

#include <stdint.h>

enum { SPT_READER_SECONDS = 30 };
#define SPT_READER_BYTES (INT64_C(2) << 30)

/* Starts the helper, which every reader of this process comes from; later calls do nothing. The trainer calls it before
 * MPI_Init, as a fork afterwards is unsafe; elsewhere the first reader does, so open one before starting threads. */
spt_status spt_hdf5_process_start(void);

typedef enum { SPT_READ_SHARD, SPT_READ_CHECKPOINT } spt_reader_kind;
typedef enum spt_question_kind {
  SPT_ASK_LAYOUT,   /* one spt_shard_layout; one spt_checkpoint_head */
  SPT_ASK_VALUES,   /* elements [begin, begin + count) of dataset number `set` of a shard */
  SPT_ASK_DATASETS, /* a checkpoint's spt_checkpoint_entry[count], for the extents sent as the argument */
  SPT_ASK_JOB,      /* a checkpoint's job text, `count` bytes with its NUL */
} spt_question_kind;
typedef struct spt_question {
  int32_t kind, set;
  int64_t begin, count;
  int64_t argument_bytes, answer_bytes; /* an answer has exactly so many bytes */
} spt_question;

typedef struct spt_hdf5_reader spt_hdf5_reader;
/* A reader of the file open at `descriptor` (duplicated), `path` names it in errors. SPT_ERR_RESOURCE: no process. */
spt_status spt_hdf5_reader_open(spt_reader_kind kind, int descriptor, const char *path, spt_hdf5_reader **reader_p);
void spt_hdf5_reader_close(spt_hdf5_reader **reader_p);
/* SPT_ERR_DATA with the reader's words, or because it crashed or took too long; after that a reader answers no more. */
spt_status spt_hdf5_reader_ask(spt_hdf5_reader *reader, spt_question question, const void *argument, void *answer);

#endif
