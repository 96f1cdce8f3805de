/* Preloaded into the trainer: rank 1's all-gather fails in the middle of the run, as a network does; or, with
 * SPT_HANG_GATHER=RANK, that rank's never returns; or, with SPT_HANG_READ=RANK, its reading does not, as on a file system
 * that is gone. */
#include <mpi.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static bool hangs(const char *which, int rank) {
  const char *asked = getenv(which);
  return asked && atoi(asked) == rank;
}

ssize_t pread64(int fd, void *buffer, size_t count, off64_t offset) {
  static int calls;
  const char *rank = getenv("OMPI_COMM_WORLD_RANK");
  if (rank && hangs("SPT_HANG_READ", atoi(rank)) && ++calls > 200)
    for (;;) pause();
  return syscall(SYS_pread64, fd, buffer, count, offset);
}

int MPI_Iallgatherv(const void *send, int send_count, MPI_Datatype send_type, void *receive, const int *counts,
                    const int *displacements, MPI_Datatype receive_type, MPI_Comm comm, MPI_Request *request) {
  static int calls;
  int rank = 0;
  PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (hangs("SPT_HANG_GATHER", rank) && ++calls > 20)
    for (;;) pause();
  if (!getenv("SPT_HANG_GATHER") && !getenv("SPT_HANG_READ") && rank == 1 && ++calls > 20) return MPI_ERR_OTHER;
  return PMPI_Iallgatherv(send, send_count, send_type, receive, counts, displacements, receive_type, comm, request);
}
