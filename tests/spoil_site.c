/* Preloaded into a program: the faults of a site. On the node of Slurm's name SPT_SLOW_NODE messages and fsync are
 * slow; with SPT_FAIL_SYNC every fsync of a checkpoint fails, as on a file system that is gone. */
#include <errno.h>
#include <mpi.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void delay(long milliseconds) {
  const char *slow = getenv("SPT_SLOW_NODE"), *node = getenv("SLURMD_NODENAME");
  if (slow && node && strcmp(slow, node) == 0)
    nanosleep(&(struct timespec){.tv_sec = milliseconds / 1000, .tv_nsec = milliseconds % 1000 * 1000000}, NULL);
}

static bool is_checkpoint(int fd) {
  char link[64], path[1024];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  path[length > 0 ? length : 0] = '\0';
  return strstr(path, "/checkpoints/") != NULL;
}

int fsync(int fd) {
  if (getenv("SPT_FAIL_SYNC") && is_checkpoint(fd)) {
    errno = EIO;
    return -1;
  }
  delay(150);
  return (int)syscall(SYS_fsync, fd);
}

int MPI_Send(const void *buffer, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm) {
  delay(20);
  return PMPI_Send(buffer, count, type, to, tag, comm);
}

int MPI_Sendrecv(const void *out, int out_count, MPI_Datatype out_type, int to, int out_tag, void *in, int in_count,
                 MPI_Datatype in_type, int from, int in_tag, MPI_Comm comm, MPI_Status *status) {
  delay(150);
  return PMPI_Sendrecv(out, out_count, out_type, to, out_tag, in, in_count, in_type, from, in_tag, comm, status);
}
