/* MPI calls of the program under test that wait: on a machine with GPUs the device goes on meanwhile, and another rank may wait for what it does.
 * So they are started here without waiting and looked at again, with steps of the device in between. On threads that do not work for the device
 * they are what they were. */
#include "simgpu.h"

#include <mpi.h>
#include <vector>

using simgpu::device_works_here;

/* Waits for the request while the device goes on. */
static int wait_for(int started, MPI_Request *request, MPI_Status *status) {
  if (started != MPI_SUCCESS) return started;
  for (int done = 0; !done;) {
    const int code = PMPI_Test(request, &done, status);
    if (code != MPI_SUCCESS) return code;
    if (!done) simgpu::advance();
  }
  return MPI_SUCCESS;
}

extern "C" {

int MPI_Allreduce(const void *in, void *out, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  if (!device_works_here()) return PMPI_Allreduce(in, out, count, type, op, comm);
  MPI_Request request;
  return wait_for(PMPI_Iallreduce(in, out, count, type, op, comm, &request), &request, MPI_STATUS_IGNORE);
}
int MPI_Allgather(const void *in, int in_count, MPI_Datatype in_type, void *out, int out_count, MPI_Datatype out_type, MPI_Comm comm) {
  if (!device_works_here()) return PMPI_Allgather(in, in_count, in_type, out, out_count, out_type, comm);
  MPI_Request request;
  return wait_for(PMPI_Iallgather(in, in_count, in_type, out, out_count, out_type, comm, &request), &request, MPI_STATUS_IGNORE);
}
int MPI_Bcast(void *data, int count, MPI_Datatype type, int root, MPI_Comm comm) {
  if (!device_works_here()) return PMPI_Bcast(data, count, type, root, comm);
  MPI_Request request;
  return wait_for(PMPI_Ibcast(data, count, type, root, comm, &request), &request, MPI_STATUS_IGNORE);
}
int MPI_Barrier(MPI_Comm comm) {
  if (!device_works_here()) return PMPI_Barrier(comm);
  MPI_Request request;
  return wait_for(PMPI_Ibarrier(comm, &request), &request, MPI_STATUS_IGNORE);
}
int MPI_Send(const void *data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm) {
  if (!device_works_here()) return PMPI_Send(data, count, type, to, tag, comm);
  MPI_Request request;
  return wait_for(PMPI_Isend(data, count, type, to, tag, comm, &request), &request, MPI_STATUS_IGNORE);
}
int MPI_Recv(void *data, int count, MPI_Datatype type, int from, int tag, MPI_Comm comm, MPI_Status *status) {
  if (!device_works_here()) return PMPI_Recv(data, count, type, from, tag, comm, status);
  MPI_Request request;
  return wait_for(PMPI_Irecv(data, count, type, from, tag, comm, &request), &request, status);
}
int MPI_Wait(MPI_Request *request, MPI_Status *status) {
  return device_works_here() ? wait_for(MPI_SUCCESS, request, status) : PMPI_Wait(request, status);
}
int MPI_Finalize(void) {
  if (device_works_here()) simgpu::synchronize_device(); // what others still wait for
  return PMPI_Finalize();
}
}
