/* Bulk collectives by NCCL. Order: what a collective reads was put on the compute stream before it was started (`ready`, an event that the bulk
 * stream waits for); what comes after wait is put behind it (`done`, an event that the compute stream waits for). */
#include "comm_nccl.h"

#include "nccl_library.h"

#include <cuda_runtime_api.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>

struct spt_request {
  bool busy;
  cudaEvent_t done;
};

typedef struct nccl_comm {
  spt_comm base;
  spt_comm *mpi;        /* not owned */
  cudaStream_t compute; /* not owned */
  cudaStream_t bulk;
  cudaEvent_t ready;
  spt_nccl call; /* the library */
  ncclComm_t nccl;
  bool broken;
  int slots;
  spt_request **requests;
} nccl_comm;

#define CUDA_TRY(call)                                                                                                 \
  do {                                                                                                                 \
    const cudaError_t cuda_error_ = (call);                                                                            \
    if (cuda_error_ != cudaSuccess)                                                                                    \
      return SPT_FAIL(SPT_ERR_RESOURCE, "CUDA: %s: %s", #call, cudaGetErrorString(cuda_error_));                       \
  } while (0)

/* ---- errors ---- */

static void break_off(nccl_comm *comm) {
  comm->broken = true;
  if (comm->nccl) (void)comm->call.abort(comm->nccl); // ends its kernels, so that nothing waits for a peer for ever
  comm->nccl = NULL;
}

static spt_status nccl_failed(nccl_comm *comm, ncclResult_t result, const char *call) {
  break_off(comm);
  return SPT_FAIL(SPT_ERR_RESOURCE, "NCCL: rank %d (%s): %s: %s; see the other ranks' messages, and NCCL_DEBUG=INFO", comm->base.rank,
                  comm->base.host, call, comm->call.error_string(result));
}

#define NCCL_TRY(comm, words, call)                                                                                           \
  do {                                                                                                                 \
    const ncclResult_t nccl_result_ = (call);                                                                          \
    if (nccl_result_ != ncclSuccess) return nccl_failed((comm), nccl_result_, words);                                  \
  } while (0)

/* Errors that NCCL met since. */
static spt_status poll_errors(nccl_comm *comm) {
  ncclResult_t state = ncclSuccess;
  if (comm->broken) return SPT_FAIL(SPT_ERR_RESOURCE, "NCCL: rank %d: the communicator was aborted after an error", comm->base.rank);
  NCCL_TRY(comm, "ncclCommGetAsyncError", comm->call.async_error(comm->nccl, &state));
  return state == ncclSuccess || state == ncclInProgress ? SPT_OK : nccl_failed(comm, state, "a collective");
}

/* ---- requests ---- */

static spt_status grow(nccl_comm *comm) {
  spt_request **requests = realloc(comm->requests, ((size_t)comm->slots + 1) * sizeof *requests);
  if (requests) comm->requests = requests;
  spt_request *request = calloc(1, sizeof *request);
  if (!requests || !request) {
    free(request);
    return SPT_FAIL(SPT_ERR_RESOURCE, "NCCL request %d: out of memory", comm->slots);
  }
  comm->requests[comm->slots++] = request;
  CUDA_TRY(cudaEventCreateWithFlags(&request->done, cudaEventDisableTiming));
  return SPT_OK;
}

/* What was put on the compute stream so far comes before what follows on the bulk stream. */
static spt_status after_compute(nccl_comm *comm) {
  CUDA_TRY(cudaEventRecord(comm->ready, comm->compute));
  CUDA_TRY(cudaStreamWaitEvent(comm->bulk, comm->ready, 0));
  return SPT_OK;
}

/* Begins an operation: an idle request, and the bulk stream behind the compute stream. */
static spt_status begin(nccl_comm *comm, spt_request **request_p) {
  int slot = 0;
  SPT_TRY(poll_errors(comm));
  while (slot < comm->slots && comm->requests[slot]->busy) slot++;
  if (slot == comm->slots) SPT_TRY(grow(comm));
  SPT_TRY(after_compute(comm));
  *request_p = comm->requests[slot];
  return SPT_OK;
}

static spt_status end(nccl_comm *comm, spt_request *request, spt_collective kind, int64_t elements, size_t element) {
  CUDA_TRY(cudaEventRecord(request->done, comm->bulk));
  request->busy = true;
  comm->base.counters[kind].messages++;
  comm->base.counters[kind].bytes += elements * (int64_t)element;
  return SPT_OK;
}

/* ---- bulk collectives ---- */

static spt_status all_reduce_start(spt_comm *base, float *buffer, int64_t count, spt_request **request_p) {
  nccl_comm *comm = (nccl_comm *)base;
  spt_request *request;
  *request_p = NULL;
  SPT_TRY(begin(comm, &request));
  NCCL_TRY(comm, "ncclAllReduce", comm->call.all_reduce(buffer, buffer, (size_t)count, ncclFloat32, ncclSum, comm->nccl, comm->bulk));
  SPT_TRY(end(comm, request, SPT_COLLECTIVE_ALL_REDUCE, count, sizeof(float)));
  *request_p = request;
  return SPT_OK;
}

/* One operation a run, all in one group: unequal runs need no padding. */
static spt_status each_run(nccl_comm *comm, void *buffer, size_t element, const int64_t *cuts, bool reduce) {
  const ncclDataType_t type = element == sizeof(float) ? ncclFloat32 : ncclBfloat16;
  NCCL_TRY(comm, "ncclGroupStart", comm->call.group_start());
  ncclResult_t result = ncclSuccess;
  for (int p = 0; p < comm->base.size && result == ncclSuccess; p++) {
    unsigned char *run = (unsigned char *)buffer + (size_t)(cuts[p] - cuts[0]) * element;
    const size_t count = (size_t)(cuts[p + 1] - cuts[p]);
    if (count == 0) continue;
    result = reduce ? comm->call.reduce(run, run, count, type, ncclSum, p, comm->nccl, comm->bulk)
                    : comm->call.broadcast(run, run, count, type, p, comm->nccl, comm->bulk);
  }
  const ncclResult_t ended = comm->call.group_end();
  NCCL_TRY(comm, reduce ? "ncclReduce" : "ncclBroadcast", result);
  NCCL_TRY(comm, "ncclGroupEnd", ended);
  return SPT_OK;
}

static spt_status runs_start(spt_comm *base, void *buffer, size_t element, const int64_t *cuts, spt_collective kind, spt_request **request_p) {
  nccl_comm *comm = (nccl_comm *)base;
  spt_request *request;
  *request_p = NULL;
  SPT_TRY(begin(comm, &request));
  SPT_TRY(each_run(comm, buffer, element, cuts, kind == SPT_COLLECTIVE_REDUCE_SCATTER));
  SPT_TRY(end(comm, request, kind, cuts[base->size] - cuts[0], element));
  *request_p = request;
  return SPT_OK;
}
static spt_status reduce_scatter_start(spt_comm *base, float *buffer, const int64_t *cuts, spt_request **request_p) {
  return runs_start(base, buffer, sizeof *buffer, cuts, SPT_COLLECTIVE_REDUCE_SCATTER, request_p);
}
static spt_status all_gather_start(spt_comm *base, void *buffer, size_t element, const int64_t *cuts, spt_request **request_p) {
  return runs_start(base, buffer, element, cuts, SPT_COLLECTIVE_ALL_GATHER, request_p);
}

static spt_status exchange_start(spt_comm *base, const float *buffer, const int64_t *cuts, const bool *senders, float *received_p,
                                 spt_request **request_p) {
  (void)base, (void)buffer, (void)cuts, (void)senders, (void)received_p, (void)request_p;
  return SPT_FAIL(SPT_ERR_USAGE, "[dist] reduction = \"tree\" is for the CPU; use \"all-reduce\" or \"reduce-scatter\" on GPUs");
}

static void release(spt_request **request_p) {
  (*request_p)->busy = false;
  *request_p = NULL;
}

/* Complete: what the host does from now on comes after it by itself. */
static spt_status test(spt_comm *base, spt_request **request_p, bool *done_p) {
  nccl_comm *comm = (nccl_comm *)base;
  *done_p = true;
  if (!*request_p) return SPT_OK;
  SPT_TRY(poll_errors(comm));
  const cudaError_t state = cudaEventQuery((*request_p)->done);
  *done_p = state == cudaSuccess;
  if (state == cudaErrorNotReady) return (void)cudaGetLastError(), SPT_OK; // or the next launch might be blamed
  CUDA_TRY(state);
  release(request_p);
  return SPT_OK;
}

/* The compute stream waits, not the host. */
static spt_status wait_for(spt_comm *base, spt_request **request_p) {
  nccl_comm *comm = (nccl_comm *)base;
  if (!*request_p) return SPT_OK;
  SPT_TRY(poll_errors(comm));
  CUDA_TRY(cudaStreamWaitEvent(comm->compute, (*request_p)->done, 0));
  release(request_p);
  return SPT_OK;
}

static spt_status progress(spt_comm *base) {
  return poll_errors((nccl_comm *)base);
}

/* Sums and maxima of doubles on the device, in the compute stream's order. */
static spt_status reduce_device(spt_comm *base, double *values, int sums, int maxima) {
  nccl_comm *comm = (nccl_comm *)base;
  spt_request *request;
  SPT_TRY(begin(comm, &request));
  NCCL_TRY(comm, "ncclGroupStart", comm->call.group_start());
  ncclResult_t result = comm->call.all_reduce(values, values, (size_t)sums, ncclFloat64, ncclSum, comm->nccl, comm->bulk);
  if (result == ncclSuccess && maxima)
    result = comm->call.all_reduce(values + sums, values + sums, (size_t)maxima, ncclFloat64, ncclMax, comm->nccl, comm->bulk);
  const ncclResult_t ended = comm->call.group_end();
  NCCL_TRY(comm, "ncclAllReduce", result);
  NCCL_TRY(comm, "ncclGroupEnd", ended);
  CUDA_TRY(cudaEventRecord(request->done, comm->bulk));
  CUDA_TRY(cudaStreamWaitEvent(comm->compute, request->done, 0));
  return SPT_OK;
}

/* ---- what MPI does ---- */

static spt_status reduce_double(spt_comm *base, double *values, int count, spt_reduce_op op) {
  spt_comm *mpi = ((nccl_comm *)base)->mpi;
  return mpi->ops->reduce_double(mpi, values, count, op);
}
static spt_status broadcast(spt_comm *base, void *bytes, size_t count, int root) {
  spt_comm *mpi = ((nccl_comm *)base)->mpi;
  return mpi->ops->broadcast(mpi, bytes, count, root);
}
static spt_status barrier(spt_comm *base) {
  spt_comm *mpi = ((nccl_comm *)base)->mpi;
  return mpi->ops->barrier(mpi);
}
static spt_status send(spt_comm *base, const void *bytes, size_t count, int to, int tag) {
  spt_comm *mpi = ((nccl_comm *)base)->mpi;
  return mpi->ops->send(mpi, bytes, count, to, tag);
}
static spt_status receive(spt_comm *base, void *bytes, size_t count, int from, int tag) {
  spt_comm *mpi = ((nccl_comm *)base)->mpi;
  return mpi->ops->receive(mpi, bytes, count, from, tag);
}
static void abort_all(spt_comm *base, int code) {
  nccl_comm *comm = (nccl_comm *)base;
  break_off(comm);
  comm->mpi->ops->abort(comm->mpi, code);
}

/* ---- opening and closing ---- */

static void close_comm(spt_comm **comm_p) {
  nccl_comm *comm = (nccl_comm *)*comm_p;
  if (!comm) return;
  if (comm->bulk && !comm->broken) (void)cudaStreamSynchronize(comm->bulk);
  if (comm->nccl) (void)comm->call.destroy(comm->nccl);
  for (int i = 0; i < comm->slots; i++) {
    if (comm->requests[i]->done) (void)cudaEventDestroy(comm->requests[i]->done);
    free(comm->requests[i]);
  }
  free(comm->requests);
  if (comm->ready) (void)cudaEventDestroy(comm->ready);
  if (comm->bulk) (void)cudaStreamDestroy(comm->bulk);
  free(comm);
  *comm_p = NULL;
}

static const spt_comm_ops nccl_ops = {
    .name = "nccl",
    .close = close_comm,
    .all_reduce_start = all_reduce_start,
    .reduce_scatter_start = reduce_scatter_start,
    .all_gather_start = all_gather_start,
    .exchange_start = exchange_start,
    .test = test,
    .wait = wait_for,
    .progress = progress,
    .reduce_device = reduce_device,
    .reduce_double = reduce_double,
    .broadcast = broadcast,
    .barrier = barrier,
    .send = send,
    .receive = receive,
    .abort = abort_all,
};

enum { UUID_BYTES = 16 };

/* The lowest rank of this node that has this rank's GPU: itself, or the two share one. By UUID: Slurm may show each task another device 0. */
static spt_status check_alone(const spt_comm *mpi) {
  struct cudaDeviceProp properties;
  int device = 0;
  CUDA_TRY(cudaGetDevice(&device));
  CUDA_TRY(cudaGetDeviceProperties(&properties, device));
  MPI_Comm node = MPI_COMM_NULL;
  unsigned char *all = malloc((size_t)mpi->local_size * UUID_BYTES);
  if (!all) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory comparing GPUs");
  int code = MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  if (code == MPI_SUCCESS) code = MPI_Allgather(&properties.uuid, UUID_BYTES, MPI_BYTE, all, UUID_BYTES, MPI_BYTE, node);
  if (node != MPI_COMM_NULL) MPI_Comm_free(&node);
  int other = -1;
  for (int i = 0; code == MPI_SUCCESS && i < mpi->local_size; i++)
    if (i != mpi->local_rank && memcmp(all + (size_t)i * UUID_BYTES, &properties.uuid, UUID_BYTES) == 0) other = i;
  free(all);
  if (code != MPI_SUCCESS) return SPT_FAIL(SPT_ERR_RESOURCE, "MPI failed comparing the node's GPUs");
  if (other < 0) return SPT_OK;
  return SPT_FAIL(SPT_ERR_USAGE,
                  "rank %d and another of the %d ranks on %s (number %d there) have the same GPU, %s: start one rank a GPU (--gpus-per-task=1, or "
                  "-np as many as GPUs)",
                  mpi->rank, mpi->local_size, mpi->host, other, properties.name);
}

static spt_status connect(nccl_comm *comm) {
  ncclUniqueId id;
  spt_status status = spt_nccl_load(&comm->call);
  if (status == SPT_OK && comm->base.rank == 0) {
    const ncclResult_t result = comm->call.get_unique_id(&id);
    if (result != ncclSuccess) status = nccl_failed(comm, result, "ncclGetUniqueId");
  }
  SPT_TRY(spt_comm_agree(comm->mpi, status, NULL));
  SPT_TRY(comm->mpi->ops->broadcast(comm->mpi, &id, sizeof id, 0));
  NCCL_TRY(comm, "ncclCommInitRank", comm->call.init_rank(&comm->nccl, comm->base.size, id, comm->base.rank));
  CUDA_TRY(cudaStreamCreateWithFlags(&comm->bulk, cudaStreamNonBlocking));
  CUDA_TRY(cudaEventCreateWithFlags(&comm->ready, cudaEventDisableTiming));
  return SPT_OK;
}

spt_status spt_comm_nccl_open(spt_comm *mpi, void *stream, spt_comm **comm_p) {
  SPT_TRY(spt_comm_agree(mpi, check_alone(mpi), NULL));
  nccl_comm *comm = calloc(1, sizeof *comm);
  SPT_TRY(spt_comm_agree(mpi, comm ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "NCCL communicator: out of memory"), NULL));
  comm->base = *mpi;
  memset(comm->base.counters, 0, sizeof comm->base.counters);
  comm->base.ops = &nccl_ops;
  comm->mpi = mpi;
  comm->compute = stream;
  const spt_status status = connect(comm);
  if (status != SPT_OK) {
    spt_comm *base = &comm->base;
    close_comm(&base);
    return status;
  }
  *comm_p = &comm->base;
  return SPT_OK;
}
