/* The simulator's NCCL on two ranks or more: what is right gives its results in any order that events allow; what is wrong is a fault, or a wrong
 * result, and never hangs. Usage: mpirun -np RANKS test_nccl CASE; nccl.sh runs all cases and knows what each must say. */
#include "simgpu/simgpu.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime.h>
#include <mpi.h>
#include <nccl.h>
#include <unistd.h>

enum { N = 96 };

static void must(cudaError_t error) {
  if (error != cudaSuccess) simgpu::fault("CUDA: %s", cudaGetErrorString(error));
}
static void must(ncclResult_t error) {
  if (error != ncclSuccess) simgpu::fault("NCCL: %s", ncclGetErrorString(error));
}
static void expect(bool condition, const char *what) {
  if (!condition) simgpu::fault("wrong result: %s", what);
}

struct world {
  int rank, size;
  ncclComm_t comm;
  cudaStream_t compute, bulk;
  cudaEvent_t ready, done;
  float *data, *host;
};

static world open_world(int *argc, char ***argv) {
  world w;
  int provided;
  MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &w.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &w.size);
  must(cudaStreamCreateWithFlags(&w.compute, cudaStreamNonBlocking));
  must(cudaStreamCreateWithFlags(&w.bulk, cudaStreamNonBlocking));
  must(cudaEventCreateWithFlags(&w.ready, cudaEventDisableTiming));
  must(cudaEventCreateWithFlags(&w.done, cudaEventDisableTiming));
  must(cudaMalloc((void **)&w.data, N * sizeof(float)));
  must(cudaHostAlloc((void **)&w.host, N * sizeof(float), cudaHostAllocDefault));
  ncclUniqueId id;
  if (w.rank == 0) must(ncclGetUniqueId(&id));
  MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, MPI_COMM_WORLD);
  must(ncclCommInitRank(&w.comm, w.size, id, w.rank));
  return w;
}

/* Element i of this rank is rank + i. */
static void fill(const world &w) {
  must(cudaStreamSynchronize(w.compute)); // `host` is free
  for (int i = 0; i < N; i++) w.host[i] = (float)(w.rank + i);
  must(cudaMemcpyAsync(w.data, w.host, N * sizeof(float), cudaMemcpyHostToDevice, w.compute));
}
static void before(const world &w) {
  must(cudaEventRecord(w.ready, w.compute));
  must(cudaStreamWaitEvent(w.bulk, w.ready, 0));
}
static void after(const world &w) {
  must(cudaEventRecord(w.done, w.bulk));
  must(cudaStreamWaitEvent(w.compute, w.done, 0));
}
static void fetch(const world &w) {
  must(cudaMemcpyAsync(w.host, w.data, N * sizeof(float), cudaMemcpyDeviceToHost, w.compute));
  must(cudaStreamSynchronize(w.compute));
}
static float sum_at(const world &w, int i) {
  return (float)(w.size * i + w.size * (w.size - 1) / 2);
}
static void all_reduce(const world &w, int count) {
  must(ncclAllReduce(w.data, w.data, (size_t)count, ncclFloat32, ncclSum, w.comm, w.bulk));
}

static void right(world &w) {
  const int run = N / w.size;
  for (int round = 0; round < 10; round++) {
    fill(w);
    before(w);
    all_reduce(w, N);
    after(w);
    if (round % 2) { // the host waits in MPI while the device has work, on one rank before it waits for the device and on others after
      if (w.rank == 0) fetch(w);
      MPI_Barrier(MPI_COMM_WORLD);
    }
    fetch(w);
    for (int i = 0; i < N; i++) expect(w.host[i] == sum_at(w, i), "all-reduce");
    // runs reduced to their owners, in place, then gathered
    fill(w);
    before(w);
    must(ncclGroupStart());
    for (int p = 0; p < w.size; p++) must(ncclReduce(w.data + p * run, w.data + p * run, (size_t)run, ncclFloat32, ncclSum, p, w.comm, w.bulk));
    must(ncclGroupEnd());
    after(w);
    before(w);
    must(ncclGroupStart());
    for (int p = 0; p < w.size; p++) must(ncclBroadcast(w.data + p * run, w.data + p * run, (size_t)run, ncclFloat32, p, w.comm, w.bulk));
    must(ncclGroupEnd());
    after(w);
    fetch(w);
    for (int i = 0; i < run * w.size; i++) expect(w.host[i] == sum_at(w, i), "grouped reduces and broadcasts");
    fill(w);
    before(w);
    must(ncclReduceScatter(w.data, w.data + w.rank * run, (size_t)run, ncclFloat32, ncclMax, w.comm, w.bulk));
    must(ncclAllGather(w.data + w.rank * run, w.data, (size_t)run, ncclFloat32, w.comm, w.bulk));
    after(w);
    fetch(w);
    for (int i = 0; i < run * w.size; i++) expect(w.host[i] == (float)(w.size - 1 + i), "reduce-scatter and all-gather");
  }
  must(ncclCommDestroy(w.comm));
  MPI_Finalize();
}
static void wrong_counts(world &w) {
  all_reduce(w, w.rank == 1 ? N - 1 : N);
  must(cudaStreamSynchronize(w.bulk));
}
static void broadcast(const world &w) {
  must(ncclBroadcast(w.data, w.data, N, ncclFloat32, 0, w.comm, w.bulk));
}
static void wrong_order(world &w) {
  if (w.rank == 1) broadcast(w);
  all_reduce(w, N);
  if (w.rank != 1) broadcast(w);
  must(cudaStreamSynchronize(w.bulk));
}
static void wrong_absence(world &w) {
  if (w.rank == 1) sleep(20);
  all_reduce(w, N);
  must(cudaStreamSynchronize(w.bulk));
}
static void wrong_host(world &w) {
  must(ncclAllReduce(w.host, w.host, N, ncclFloat32, ncclSum, w.comm, w.bulk));
}
static void wrong_group(world &w) {
  must(ncclGroupStart());
  all_reduce(w, N / 2);
  if (w.rank == 0) all_reduce(w, N / 2);
  must(ncclGroupEnd());
  must(cudaStreamSynchronize(w.bulk));
}
/* What comes before is not waited for. */
static void wrong_before(world &w) {
  for (int round = 0; round < 20; round++) {
    fill(w);
    all_reduce(w, N);
    after(w);
    fetch(w);
    for (int i = 0; i < N; i++) expect(w.host[i] == sum_at(w, i), "all-reduce");
  }
}
/* What comes after does not wait. */
static void wrong_after(world &w) {
  for (int round = 0; round < 20; round++) {
    fill(w);
    before(w);
    all_reduce(w, N);
    fetch(w);
    for (int i = 0; i < N; i++) expect(w.host[i] == sum_at(w, i), "all-reduce");
  }
}
/* The network breaks; whoever polls learns of it and can leave. */
static void broken(world &w) {
  all_reduce(w, N);
  ncclResult_t state = ncclSuccess;
  for (int i = 0; i < 100000 && state == ncclSuccess; i++) {
    (void)cudaStreamQuery(w.bulk);
    must(ncclCommGetAsyncError(w.comm, &state));
  }
  expect(state == ncclRemoteError, "an asynchronous error is polled");
  must(ncclCommAbort(w.comm));
  must(cudaStreamSynchronize(w.bulk));
  MPI_Finalize();
}

int main(int argc, char **argv) {
  static const struct {
    const char *name;
    void (*body)(world &);
  } cases[] = {{"right", right},       {"counts", wrong_counts}, {"order", wrong_order},   {"absence", wrong_absence}, {"host", wrong_host},
               {"group", wrong_group}, {"before", wrong_before}, {"after", wrong_after}, {"broken", broken}};
  world w = open_world(&argc, &argv);
  for (const auto &c : cases)
    if (argc == 2 && strcmp(argv[1], c.name) == 0) {
      c.body(w);
      return 0;
    }
  simgpu::fault("no such case");
}
