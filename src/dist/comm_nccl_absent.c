/* In the place of comm_nccl.c where there is no NCCL: says so. */
#include "comm_nccl.h"

spt_status spt_comm_nccl_open(spt_comm *mpi, void *stream, spt_comm **comm_p) {
  (void)stream, (void)comm_p;
  return SPT_FAIL(SPT_ERR_USAGE, "%d ranks on GPUs need NCCL, which this build lacks; start one rank, use --backend cpu, or build it where NCCL is",
                  mpi->size);
}
