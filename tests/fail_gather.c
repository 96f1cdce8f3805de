/* Preloaded into the trainer: rank 1's all-gather fails in the middle of the run, as a network does; or, with
 * SPT_HANG_RANK, that rank's never returns. */
#include <mpi.h>
#include <stdlib.h>
#include <unistd.h>

int MPI_Iallgatherv(const void *send, int send_count, MPI_Datatype send_type, void *receive, const int *counts,
                    const int *displacements, MPI_Datatype receive_type, MPI_Comm comm, MPI_Request *request) {
  static int calls;
  int rank = 0;
  PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
  const char *hang = getenv("SPT_HANG_RANK");
  if (hang && rank == atoi(hang) && ++calls > 20)
    for (;;) pause();
  if (!hang && rank == 1 && ++calls > 20) return MPI_ERR_OTHER;
  return PMPI_Iallgatherv(send, send_count, send_type, receive, counts, displacements, receive_type, comm, request);
}
