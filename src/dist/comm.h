/* Communicators: one interface over a single process (comm_self), MPI (comm_mpi) and, with GPUs, NCCL. Reductions are fp32 sums.
 * Every started operation is counted (messages and bytes handed to it, without any algorithm's factor). */
#ifndef SPT_COMM_H
#define SPT_COMM_H

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct spt_comm spt_comm;
typedef struct spt_request spt_request; /* opaque; owned by the communicator, reused */

typedef enum { SPT_COLLECTIVE_ALL_REDUCE, SPT_COLLECTIVE_REDUCE_SCATTER, SPT_COLLECTIVE_ALL_GATHER, SPT_COLLECTIVE_EXCHANGE, SPT_COLLECTIVE_KINDS } spt_collective;
typedef struct spt_comm_counter {
  int64_t messages;
  int64_t bytes; /* all-reduce: count·4; reduce-scatter, all-gather: the whole bucket's; exchange: that of a sender, of others 0 */
} spt_comm_counter;

typedef enum { SPT_REDUCE_SUM, SPT_REDUCE_MAX, SPT_REDUCE_MIN } spt_reduce_op;

typedef struct spt_comm_ops {
  const char *name;
  void (*close)(spt_comm **comm); /* Collective */
  /* Non-blocking, on contiguous float buffers; cuts has size + 1 entries, rank p's run is buffer[cuts[p] − cuts[0], cuts[p+1] − cuts[0]).
   * The request is complete after wait or a true test. Collective, same order on every rank. */
  spt_status (*all_reduce_start)(spt_comm *comm, float *buffer, int64_t count, spt_request **request_p);
  /* Afterwards the own run of `buffer` holds the sum; other runs are unspecified. */
  spt_status (*reduce_scatter_start)(spt_comm *comm, float *buffer, const int64_t *cuts, spt_request **request_p);
  /* Every run of `buffer` becomes that of its rank. element: bytes of an element, 4 or 2 (bf16); cuts count elements. */
  spt_status (*all_gather_start)(spt_comm *comm, void *buffer, size_t element, const int64_t *cuts, spt_request **request_p);
  /* Each sender's run p goes to rank p. senders: [size], the same on every rank; buffer NULL on ranks that do not send. received_p: the
   * own run of each sender, in the order of their ranks, one after another; apart from the buffer. */
  spt_status (*exchange_start)(spt_comm *comm, const float *buffer, const int64_t *cuts, const bool *senders, float *received_p,
                               spt_request **request_p);
  /* Local. test also drives progress; both release the request when it is complete (*request_p becomes NULL). */
  spt_status (*test)(spt_comm *comm, spt_request **request_p, bool *done_p);
  spt_status (*wait)(spt_comm *comm, spt_request **request_p);
  /* Local: lets started operations advance. */
  spt_status (*progress)(spt_comm *comm);
  /* On device memory, in the compute stream's order and without waiting: values[0, sums) become sums over ranks, the `maxima` behind them maxima.
   * NULL where buffers are the host's. Collective, in order with the operations above. */
  spt_status (*reduce_device)(spt_comm *comm, double *values, int sums, int maxima);
  /* Blocking, small. Collective. */
  spt_status (*reduce_double)(spt_comm *comm, double *values, int count, spt_reduce_op op);
  spt_status (*broadcast)(spt_comm *comm, void *bytes, size_t count, int root);
  spt_status (*barrier)(spt_comm *comm);
  /* Point to point on a communicator of their own, safe on another thread when `threaded`; chunked, any size. Blocking. */
  spt_status (*send)(spt_comm *comm, const void *bytes, size_t count, int to, int tag);
  spt_status (*receive)(spt_comm *comm, void *bytes, size_t count, int from, int tag);
  /* Calls before_abort, then ends the whole job at once with exit code `code` (MPI_Abort). Does not return for MPI. */
  void (*abort)(spt_comm *comm, int code);
} spt_comm_ops;

struct spt_comm {
  const spt_comm_ops *ops;
  int rank, size;
  int local_rank, local_size; /* on this node */
  int cpu_sharers; /* ranks of this node, itself included, whose allowed CPUs meet this rank's: 1 when bound apart */
  bool threaded;              /* MPI_THREAD_MULTIPLE: send/receive may run on a second thread */
  void (*before_abort)(void); /* called by abort first: what others would find left; NULL: nothing */
  char host[64];
  spt_comm_counter counters[SPT_COLLECTIVE_KINDS];
};

/* "all-reduce", … for messages. */
const char *spt_collective_name(spt_collective kind);

spt_status spt_comm_self_open(spt_comm **comm_p);
/* MPI_Init_thread when not yet initialised, then duplicates of MPI_COMM_WORLD. The caller closes it; close finalises MPI when open
 * initialised it. Collective. */
spt_status spt_comm_mpi_open(int *argc_p, char ***argv_p, spt_comm **comm_p);

/* All ranks learn the worst status (the largest code, but SPT_STOPPED, which means that all is saved, is less than any failure) and its
 * message and origin: those of the lowest rank that has it, *first_rank_p (may be NULL; -1 when all are fine). Collective; call it at the end of
 * each phase that can fail on some ranks only. Returns the agreed status. */
spt_status spt_comm_agree(spt_comm *comm, spt_status status, int *first_rank_p);

#endif
