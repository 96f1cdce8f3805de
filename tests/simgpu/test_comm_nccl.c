/* The NCCL communicator over the CUDA backend, on simulated GPUs, and on real ones where there are as many as ranks (else it ends with 77): exact sums and copies of unequal runs, empty ones too, each between kernels of the
 * compute stream that nothing but the communicator's events orders with it; and the backend's copies, which events end. mpirun -np RANKS test_comm_nccl. */
#include "dist/comm_nccl.h"

#include "backend_cuda.h"

#include <cuda_runtime_api.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 400, ROUNDS = 12, COUNTS = 3 };

static spt_comm *mpi, *comm;
static spt_backend *backend;

static void must(spt_status status) {
  if (status == SPT_OK) return;
  fprintf(stderr, "test_comm_nccl: rank %d: %s\n", mpi ? mpi->rank : -1, spt_error_message());
  exit(3);
}
static void expect(bool condition, const char *what, int round) {
  if (condition) return;
  fprintf(stderr, "test_comm_nccl: rank %d, round %d: not so: %s\n", mpi->rank, round, what);
  exit(4);
}

static float *device_floats(int64_t count) {
  void *memory = NULL;
  must(backend->ops->alloc(backend, (size_t)count * sizeof(float), &memory));
  return memory;
}

/* Small whole numbers, so that sums are exact: of this rank, before it doubles them. */
static float own(int rank, int round, int i) {
  return (float)((rank + 1) * (i % 50 + round));
}
static float sum_of_all(int round, int i) {
  float sum = 0;
  for (int p = 0; p < mpi->size; p++) sum += 2 * own(p, round, i);
  return sum;
}

/* values ← 2·own by a kernel that has just been issued; after the operation values ← values + values. */
static void prepare(float *values, float *half, int round) {
  float host[N];
  for (int i = 0; i < N; i++) host[i] = own(mpi->rank, round, i);
  must(backend->ops->upload(backend, half, host, sizeof host));
  must(backend->ops->add(backend, N, half, half, values));
}
static void finish(float *values, spt_request **request, int round, bool by_test, float *host) {
  bool done = false;
  for (int i = 0; by_test && !done && i < 3; i++) must(comm->ops->test(comm, request, &done));
  if (!done) must(comm->ops->wait(comm, request));
  expect(!*request, "the request is released", round);
  must(backend->ops->add(backend, N, values, values, values));
  must(backend->ops->download(backend, host, values, N * sizeof *host));
}

/* Runs of unequal lengths; every third round one of them is empty. */
static void cut(int64_t *cuts, int round) {
  cuts[0] = 100; // a bucket does not begin at 0
  for (int p = 0; p < mpi->size; p++) cuts[p + 1] = cuts[p] + (p == round % 3 ? 0 : 37 + 11 * p);
}

static void all_reduce_round(float *values, float *half, int round) {
  float host[N];
  spt_request *request = NULL;
  prepare(values, half, round);
  must(comm->ops->all_reduce_start(comm, values, N, &request));
  must(comm->ops->progress(comm));
  finish(values, &request, round, round % 2, host);
  for (int i = 0; i < N; i++) expect(host[i] == 2 * sum_of_all(round, i), "all-reduce", round);
}

static void runs_round(float *values, float *half, int round) {
  float host[N];
  int64_t cuts[65];
  spt_request *request = NULL;
  cut(cuts, round);
  prepare(values, half, round);
  must(comm->ops->reduce_scatter_start(comm, values, cuts, &request));
  finish(values, &request, round, round % 2, host);
  for (int64_t i = cuts[mpi->rank] - cuts[0]; i < cuts[mpi->rank + 1] - cuts[0]; i++)
    expect(host[i] == 2 * sum_of_all(round, (int)i), "own run of a reduce-scatter", round);
  // two at once, waited for in the other order; the buffers apart
  spt_request *second = NULL;
  prepare(values, half, round);
  must(comm->ops->all_gather_start(comm, values, sizeof *values, cuts, &request));
  must(comm->ops->all_reduce_start(comm, half, N, &second));
  must(comm->ops->wait(comm, &second));
  finish(values, &request, round, false, host);
  for (int p = 0; p < mpi->size; p++)
    for (int64_t i = cuts[p] - cuts[0]; i < cuts[p + 1] - cuts[0]; i++)
      expect(host[i] == 4 * own(p, round, (int)i), "run of an all-gather", round);
  must(backend->ops->download(backend, host, half, sizeof host));
  for (int i = 0; i < N; i++) expect(2 * host[i] == sum_of_all(round, i), "all-reduce beside it", round);
}

/* Runs of bf16 that a kernel has just rounded; the sum is exact in bf16 up to 256. */
static void halves_round(float *values, float *half, int round) {
  uint16_t host[N];
  int64_t cuts[65];
  spt_request *request = NULL;
  cut(cuts, round);
  prepare(values, half, round);
  must(backend->ops->round_bf16(backend, N, values, half));
  must(comm->ops->all_gather_start(comm, half, sizeof *host, cuts, &request));
  must(comm->ops->wait(comm, &request));
  must(backend->ops->round_bf16(backend, 1, values, (uint16_t *)(void *)half + N)); // behind it, and beside
  must(backend->ops->download(backend, host, half, sizeof host));
  for (int p = 0; p < mpi->size; p++)
    for (int64_t i = cuts[p] - cuts[0]; i < cuts[p + 1] - cuts[0]; i++) {
      const float want = 2 * own(p, round, (int)i);
      const uint32_t bits = (uint32_t)host[i] << 16;
      float found;
      memcpy(&found, &bits, sizeof found);
      expect(want > 256 ? found > 0.99f * want && found < 1.01f * want : found == want, "run of bf16", round);
    }
}

/* Sums and maxima in the compute stream's order, without a request. */
static void device_round(double *values, float *half, int round) {
  const double numbers[COUNTS] = {mpi->rank + round, 2 * mpi->rank, mpi->rank == round % mpi->size ? 7 + round : -1};
  double host[COUNTS];
  float ones[N];
  for (int i = 0; i < N; i++) ones[i] = 1;
  must(backend->ops->upload(backend, half, ones, sizeof ones));
  must(backend->ops->upload(backend, values, numbers, sizeof numbers));
  must(backend->ops->sum(backend, N, half, values)); // + N on each rank
  must(comm->ops->reduce_device(comm, values, COUNTS - 1, 1));
  must(backend->ops->sum(backend, N, half, values + 1)); // + N once
  must(backend->ops->download(backend, host, values, sizeof host));
  const int ranks = mpi->size, triangle = ranks * (ranks - 1) / 2;
  expect(host[0] == triangle + ranks * (round + N), "sum on the device", round);
  expect(host[1] == 2 * triangle + N, "sum on the device, added to after it", round);
  expect(host[2] == 7 + round, "maximum on the device", round);
}

/* More uploads on the way than there are slots for them: none may take another's place. */
static void uploads_round(float *values, int round) {
  float host[N];
  for (int i = 0; i < N; i++) {
    const float value = own(mpi->rank, round, i);
    must(backend->ops->upload(backend, values + i, &value, sizeof value));
  }
  must(backend->ops->download(backend, host, values, sizeof host));
  for (int i = 0; i < N; i++) expect(host[i] == own(mpi->rank, round, i), "upload", round);
}

/* What was issued is taken later, as it was then. */
static void later_round(float *values, float *half, int round) {
  float taken[2] = {0, 0};
  prepare(values, half, round);
  must(backend->ops->later_issue(backend, 0, values + 7, sizeof *values));
  must(backend->ops->add(backend, N, values, values, values));
  must(backend->ops->later_issue(backend, 1, values + 7, sizeof *values));
  must(backend->ops->add(backend, N, values, values, values));
  for (int slot = 0; slot < 2; slot++)
    for (bool done = false; !done;) {
      must(backend->ops->later_take(backend, slot, &taken[slot], sizeof *taken, &done));
      if (!done) expect(taken[slot] == 0, "nothing is written before", round);
    }
  expect(taken[0] == 2 * own(mpi->rank, round, 7) && taken[1] == 2 * taken[0], "taken later", round);
}

int main(int argc, char **argv) {
  int devices = 0;
  must(spt_comm_mpi_open(&argc, &argv, &mpi));
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices < mpi->size) {
    if (mpi->rank == 0) printf("not run: %d ranks want as many GPUs, and here are %d\n", mpi->size, devices);
    mpi->ops->close(&mpi);
    return 77;
  }
  must(spt_backend_choose_device(SPT_BACKEND_CUDA, mpi->local_rank));
  must(spt_backend_open(SPT_BACKEND_CUDA, SPT_PRECISION_FP32, 1, 1, &backend));
  must(spt_comm_nccl_open(mpi, backend->stream, &comm));
  expect(comm->rank == mpi->rank && comm->size == mpi->size && strcmp(comm->ops->name, "nccl") == 0, "the same ranks", 0);
  float *values = device_floats(N), *half = device_floats(N);
  void *numbers = NULL;
  must(backend->ops->alloc(backend, COUNTS * sizeof(double), &numbers));
  for (int round = 0; round < ROUNDS; round++) {
    all_reduce_round(values, half, round);
    runs_round(values, half, round);
    halves_round(values, half, round);
    device_round(numbers, half, round);
    uploads_round(values, round);
    later_round(values, half, round);
  }
  expect(comm->counters[SPT_COLLECTIVE_ALL_REDUCE].messages == 2 * ROUNDS, "counted messages", ROUNDS);
  expect(comm->counters[SPT_COLLECTIVE_ALL_REDUCE].bytes == (int64_t)2 * ROUNDS * N * 4, "counted bytes", ROUNDS);
  expect(comm->counters[SPT_COLLECTIVE_ALL_GATHER].messages == 2 * ROUNDS, "counted gathers", ROUNDS);
  double sum = 1;
  must(comm->ops->reduce_double(comm, &sum, 1, SPT_REDUCE_SUM));
  expect(sum == mpi->size, "the host's sum", ROUNDS);
  comm->ops->close(&comm);
  backend->ops->free(backend, values, N * sizeof *values);
  backend->ops->free(backend, half, N * sizeof *half);
  backend->ops->free(backend, numbers, COUNTS * sizeof(double));
  backend->ops->close(&backend);
  mpi->ops->close(&mpi);
  return 0;
}
