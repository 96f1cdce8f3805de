/* The communicator of ranks with a GPU each: bulk collectives by NCCL on a stream of their own, ordered by events with the compute stream; small and
 * point-to-point operations by the MPI communicator beneath. No call waits for the device. */
#ifndef SPT_COMM_NCCL_H
#define SPT_COMM_NCCL_H

#include "comm.h"

/* Over `mpi`, borrowed, for the current CUDA device; `stream` is the compute stream (spt_backend.stream): buffers are device memory in its order,
 * and a finished request means that what is put on it from now on comes after the operation. Requests are reused; an error of NCCL's, seen by
 * start, test, wait or progress, aborts its communicator, and every later call fails. SPT_ERR_USAGE: two ranks of a node have the same GPU, or this
 * build has no NCCL. Collective; `mpi` has two ranks at least. */
spt_status spt_comm_nccl_open(spt_comm *mpi, void *stream, spt_comm **comm_p);

#endif
