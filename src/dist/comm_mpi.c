/* The communicator over MPI (standard calls only). Three duplicates of MPI_COMM_WORLD keep traffic apart: `bulk` for
 * the non-blocking collectives of a step, `small` for blocking decisions, `point` for send and receive on a second
 * thread. */
#include "comm.h"

#include <limits.h>
#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES ((size_t)64 << 20) /* of a message or broadcast: MPI counts are int */

struct spt_request {
  int slot;             /* index of its handle */
  bool busy, complete;  /* complete: seen by progress, not yet by test or wait */
  int *counts, *displs; /* [2·size], of an exchange the received ones second; MPI reads them until completion */
  float *staging;       /* reduce-scatter: receives the own run ... */
  int64_t staging_capacity;
  float *own; /* ... which goes here on completion; NULL: nothing to copy */
  int64_t own_count;
};

typedef struct mpi_comm {
  spt_comm base;
  MPI_Comm bulk, small, point;
  bool initialised_here;
  int slots, pending; /* pending: handles that are not MPI_REQUEST_NULL */
  spt_request **requests;
  MPI_Request *handles; /* [slots], MPI_REQUEST_NULL when idle; apart from the requests for MPI_Testsome */
  int *finished;        /* [slots], MPI_Testsome's answers */
  // [slots] and not MPI_STATUSES_IGNORE, which gcc 12 takes for a zero-sized array with MPICH's header.
  MPI_Status *statuses;
} mpi_comm;

static spt_status mpi_failed(int code, const char *call) {
  char words[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  if (MPI_Error_string(code, words, &length) != MPI_SUCCESS) snprintf(words, sizeof words, "error %d", code);
  for (char *at = words; (at = strchr(at, '\n')); at++) *at = ' '; // MPICH's words are a stack of lines
  return SPT_FAIL(SPT_ERR_RESOURCE, "%s failed: %s; see the launcher's messages and the other ranks", call, words);
}

/* Checks one MPI call; the message names the call without its arguments. */
#define MPI_TRY(call, ...)                                                                                             \
  do {                                                                                                                 \
    int mpi_code_ = call(__VA_ARGS__);                                                                                 \
    if (mpi_code_ != MPI_SUCCESS) return mpi_failed(mpi_code_, #call);                                                 \
  } while (0)

/* Requests ------------------------------------------------------------------------------------------------------- */

static spt_status pool_grow(mpi_comm *comm) {
  size_t slots = (size_t)comm->slots + 1, ranks = (size_t)comm->base.size;
  spt_request **requests = realloc(comm->requests, slots * sizeof *requests);
  if (requests) comm->requests = requests;
  MPI_Request *handles = realloc(comm->handles, slots * sizeof *handles);
  if (handles) comm->handles = handles;
  int *finished = realloc(comm->finished, slots * sizeof *finished);
  if (finished) comm->finished = finished;
  MPI_Status *statuses = realloc(comm->statuses, slots * sizeof *statuses);
  if (statuses) comm->statuses = statuses;
  spt_request *request = calloc(1, sizeof *request);
  int *counts = calloc(4 * ranks, sizeof *counts);
  if (!requests || !handles || !finished || !statuses || !request || !counts) {
    free(request);
    free(counts);
    return SPT_FAIL(SPT_ERR_RESOURCE, "MPI request %zu: out of memory", slots);
  }
  request->slot = comm->slots++;
  request->counts = counts;
  request->displs = counts + 2 * ranks;
  requests[request->slot] = request;
  handles[request->slot] = MPI_REQUEST_NULL;
  return SPT_OK;
}

/* The idle request of the lowest index: a step that starts the same operations in the same order gets the same
 * requests, so that their staging is allocated in the first step only. */
static spt_status pool_take(mpi_comm *comm, spt_request **request_p) {
  int slot = 0;
  while (slot < comm->slots && comm->requests[slot]->busy) slot++;
  if (slot == comm->slots) SPT_TRY(pool_grow(comm));
  spt_request *request = comm->requests[slot];
  request->complete = false;
  request->own = NULL;
  *request_p = request;
  return SPT_OK;
}

static void pool_started(mpi_comm *comm, spt_request *request, spt_collective kind, int64_t elements,
                         size_t element) {
  request->busy = true;
  comm->pending++;
  comm->base.counters[kind].messages++;
  comm->base.counters[kind].bytes += elements * (int64_t)element;
}

static void request_finish(mpi_comm *comm, spt_request *request) {
  comm->pending--;
  request->complete = true;
  if (request->own && request->own_count)
    memcpy(request->own, request->staging, (size_t)request->own_count * sizeof(float));
}

static void request_release(spt_request **request_p) {
  (*request_p)->busy = false;
  *request_p = NULL;
}

/* Bulk collectives ------------------------------------------------------------------------------------------------- */

static spt_status check_count(int64_t count, const char *what) {
  if (count >= 0 && count <= INT_MAX) return SPT_OK;
  return SPT_FAIL(SPT_ERR_RESOURCE, "%s of %lld elements: MPI takes at most %d at once; lower [dist] bucket_mib", what,
                  (long long)count, INT_MAX);
}

static spt_status mpi_all_reduce_start(spt_comm *base, float *buffer, int64_t count, spt_request **request_p) {
  mpi_comm *comm = (mpi_comm *)base;
  spt_request *request;
  *request_p = NULL;
  if (base->size == 1) return SPT_OK;
  SPT_TRY(check_count(count, "all-reduce"));
  SPT_TRY(pool_take(comm, &request));
  MPI_TRY(MPI_Iallreduce, MPI_IN_PLACE, buffer, (int)count, MPI_FLOAT, MPI_SUM, comm->bulk,
          &comm->handles[request->slot]);
  pool_started(comm, request, SPT_COLLECTIVE_ALL_REDUCE, count, sizeof(float));
  *request_p = request;
  return SPT_OK;
}

/* Counts and displacements of the runs; every run is within the first INT_MAX elements. */
static spt_status request_runs(const spt_comm *base, spt_request *request, const int64_t *cuts, const char *what) {
  SPT_TRY(check_count(cuts[base->size] - cuts[0], what));
  for (int p = 0; p < base->size; p++) {
    if (cuts[p + 1] < cuts[p]) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: run of rank %d has negative length", what, p);
    request->counts[p] = (int)(cuts[p + 1] - cuts[p]);
    request->displs[p] = (int)(cuts[p] - cuts[0]);
  }
  return SPT_OK;
}

static spt_status staging_reserve(spt_request *request, int64_t count) {
  if (count <= request->staging_capacity) return SPT_OK;
  free(request->staging);
  request->staging_capacity = 0;
  request->staging = malloc((size_t)count * sizeof(float));
  if (!request->staging)
    return SPT_FAIL(SPT_ERR_RESOURCE,
                    "reduce-scatter buffer of %lld bytes: out of memory; use reduction = \"all-reduce\"",
                    (long long)count * (long long)sizeof(float));
  request->staging_capacity = count;
  return SPT_OK;
}

static spt_status mpi_reduce_scatter_start(spt_comm *base, float *buffer, const int64_t *cuts,
                                           spt_request **request_p) {
  mpi_comm *comm = (mpi_comm *)base;
  spt_request *request;
  *request_p = NULL;
  if (base->size == 1) return SPT_OK;
  SPT_TRY(pool_take(comm, &request));
  SPT_TRY(request_runs(base, request, cuts, "reduce-scatter"));
  request->own = buffer + request->displs[base->rank];
  request->own_count = request->counts[base->rank];
  SPT_TRY(staging_reserve(request, request->own_count));
  // Not MPI_IN_PLACE: that puts the own run at the start of the buffer.
  MPI_TRY(MPI_Ireduce_scatter, buffer, request->staging, request->counts, MPI_FLOAT, MPI_SUM, comm->bulk,
          &comm->handles[request->slot]);
  pool_started(comm, request, SPT_COLLECTIVE_REDUCE_SCATTER, cuts[base->size] - cuts[0], sizeof(float));
  *request_p = request;
  return SPT_OK;
}

static spt_status mpi_all_gather_start(spt_comm *base, void *buffer, size_t element, const int64_t *cuts,
                                       spt_request **request_p) {
  mpi_comm *comm = (mpi_comm *)base;
  spt_request *request;
  *request_p = NULL;
  if (base->size == 1) return SPT_OK;
  SPT_TRY(pool_take(comm, &request));
  SPT_TRY(request_runs(base, request, cuts, "all-gather"));
  const MPI_Datatype type = element == sizeof(float) ? MPI_FLOAT : MPI_UINT16_T;
  MPI_TRY(MPI_Iallgatherv, MPI_IN_PLACE, 0, type, buffer, request->counts, request->displs, type, comm->bulk,
          &comm->handles[request->slot]);
  pool_started(comm, request, SPT_COLLECTIVE_ALL_GATHER, cuts[base->size] - cuts[0], element);
  *request_p = request;
  return SPT_OK;
}

static spt_status mpi_exchange_start(spt_comm *base, const float *buffer, const int64_t *cuts, const bool *senders,
                                     float *received_p, spt_request **request_p) {
  mpi_comm *comm = (mpi_comm *)base;
  const int size = base->size, own = (int)(cuts[base->rank + 1] - cuts[base->rank]);
  spt_request *request;
  int64_t received = 0;
  *request_p = NULL;
  if (size == 1) {
    if (senders[0] && own > 0) memcpy(received_p, buffer, (size_t)own * sizeof *received_p);
    return SPT_OK;
  }
  SPT_TRY(pool_take(comm, &request));
  SPT_TRY(request_runs(base, request, cuts, "exchange"));
  for (int p = 0; p < size; p++) {
    if (!senders[base->rank]) request->counts[p] = 0;
    request->counts[size + p] = senders[p] ? own : 0;
    request->displs[size + p] = (int)received;
    received += request->counts[size + p];
  }
  SPT_TRY(check_count(received, "exchange"));
  MPI_TRY(MPI_Ialltoallv, buffer, request->counts, request->displs, MPI_FLOAT, received_p, request->counts + size,
          request->displs + size, MPI_FLOAT, comm->bulk, &comm->handles[request->slot]);
  pool_started(comm, request, SPT_COLLECTIVE_EXCHANGE, senders[base->rank] ? cuts[size] - cuts[0] : 0, sizeof(float));
  *request_p = request;
  return SPT_OK;
}

static spt_status mpi_test(spt_comm *base, spt_request **request_p, bool *done_p) {
  mpi_comm *comm = (mpi_comm *)base;
  spt_request *request = *request_p;
  if (request && !request->complete) {
    int done = 0;
    MPI_TRY(MPI_Test, &comm->handles[request->slot], &done, MPI_STATUS_IGNORE);
    if (done) request_finish(comm, request);
  }
  *done_p = !request || request->complete;
  if (request && request->complete) request_release(request_p);
  return SPT_OK;
}

static spt_status mpi_wait(spt_comm *base, spt_request **request_p) {
  mpi_comm *comm = (mpi_comm *)base;
  spt_request *request = *request_p;
  if (!request) return SPT_OK;
  if (!request->complete) {
    MPI_TRY(MPI_Wait, &comm->handles[request->slot], MPI_STATUS_IGNORE);
    request_finish(comm, request);
  }
  request_release(request_p);
  return SPT_OK;
}

static spt_status mpi_progress(spt_comm *base) {
  mpi_comm *comm = (mpi_comm *)base;
  if (!comm->pending) return SPT_OK;
  int count = 0;
  MPI_TRY(MPI_Testsome, comm->slots, comm->handles, &count, comm->finished, comm->statuses);
  if (count == MPI_UNDEFINED) return SPT_OK;
  for (int i = 0; i < count; i++) request_finish(comm, comm->requests[comm->finished[i]]);
  return SPT_OK;
}

/* Small and point-to-point operations ------------------------------------------------------------------------------ */

static spt_status mpi_reduce_double(spt_comm *base, double *values, int count, spt_reduce_op op) {
  mpi_comm *comm = (mpi_comm *)base;
  if (base->size == 1) return SPT_OK;
  MPI_Op mpi_op = op == SPT_REDUCE_SUM ? MPI_SUM : op == SPT_REDUCE_MAX ? MPI_MAX : MPI_MIN;
  // The standard demands identical results on all ranks, so that decisions taken on them agree.
  MPI_TRY(MPI_Allreduce, MPI_IN_PLACE, values, count, MPI_DOUBLE, mpi_op, comm->small);
  return SPT_OK;
}

static int chunk_of(size_t rest) {
  return (int)(rest < CHUNK_BYTES ? rest : CHUNK_BYTES);
}

static spt_status mpi_broadcast(spt_comm *base, void *bytes, size_t count, int root) {
  mpi_comm *comm = (mpi_comm *)base;
  if (base->size == 1) return SPT_OK;
  for (size_t at = 0; at < count; at += CHUNK_BYTES)
    MPI_TRY(MPI_Bcast, (char *)bytes + at, chunk_of(count - at), MPI_BYTE, root, comm->small);
  return SPT_OK;
}

static spt_status mpi_barrier(spt_comm *base) {
  MPI_TRY(MPI_Barrier, ((mpi_comm *)base)->small);
  return SPT_OK;
}

/* Both send at least one message, so that an empty one orders too. */
static spt_status mpi_send(spt_comm *base, const void *bytes, size_t count, int to, int tag) {
  size_t at = 0;
  do {
    MPI_TRY(MPI_Send, (const char *)bytes + at, chunk_of(count - at), MPI_BYTE, to, tag, ((mpi_comm *)base)->point);
    at += CHUNK_BYTES;
  } while (at < count);
  return SPT_OK;
}

static spt_status mpi_receive(spt_comm *base, void *bytes, size_t count, int from, int tag) {
  size_t at = 0;
  do {
    MPI_Status status;
    int expected = chunk_of(count - at), received = 0;
    MPI_TRY(MPI_Recv, (char *)bytes + at, expected, MPI_BYTE, from, tag, ((mpi_comm *)base)->point, &status);
    MPI_TRY(MPI_Get_count, &status, MPI_BYTE, &received);
    if (received != expected)
      return SPT_FAIL(SPT_ERR_RESOURCE, "message from rank %d (tag %d) has %d bytes where %d were expected", from, tag,
                      received, expected);
    at += CHUNK_BYTES;
  } while (at < count);
  return SPT_OK;
}

static void mpi_abort(spt_comm *base, int code) {
  if (base->before_abort) base->before_abort();
  MPI_Abort(MPI_COMM_WORLD, code);
  _Exit(code); // where MPI_Abort returned after all
}

/* Opening and closing ---------------------------------------------------------------------------------------------- */

static void comm_free(MPI_Comm *comm) {
  if (*comm != MPI_COMM_NULL) MPI_Comm_free(comm);
}

static void mpi_close(spt_comm **comm_p) {
  mpi_comm *comm = (mpi_comm *)*comm_p;
  if (!comm) return;
  for (int i = 0; i < comm->slots; i++) {
    spt_request *request = comm->requests[i];
    MPI_Wait(&comm->handles[i], MPI_STATUS_IGNORE); // returns at once when idle
    free(request->counts);
    free(request->staging);
    free(request);
  }
  free(comm->requests);
  free(comm->handles);
  free(comm->finished);
  free(comm->statuses);
  comm_free(&comm->bulk);
  comm_free(&comm->small);
  comm_free(&comm->point);
  if (comm->initialised_here) MPI_Finalize();
  free(comm);
  *comm_p = NULL;
}

static const spt_comm_ops mpi_ops = {
    .name = "mpi",
    .close = mpi_close,
    .all_reduce_start = mpi_all_reduce_start,
    .reduce_scatter_start = mpi_reduce_scatter_start,
    .all_gather_start = mpi_all_gather_start,
    .exchange_start = mpi_exchange_start,
    .test = mpi_test,
    .wait = mpi_wait,
    .progress = mpi_progress,
    .reduce_double = mpi_reduce_double,
    .broadcast = mpi_broadcast,
    .barrier = mpi_barrier,
    .send = mpi_send,
    .receive = mpi_receive,
    .abort = mpi_abort,
};

/* Open MPI makes a peer's endpoint at the first message, which its TCP transport does not do safely from two threads at once
 * (open-mpi/ompi issue 3035), and a watchdog's first heartbeat may meet a step's first reduction: here all are made inside
 * MPI_Init. */
static void make_endpoints_early(void) {
  setenv("OMPI_MCA_mpi_add_procs_cutoff", "65536", 0); // ranks; the user's own setting stands
}

static spt_status initialise(int *argc_p, char ***argv_p, mpi_comm *comm) {
  int initialised = 0, provided = MPI_THREAD_SINGLE;
  make_endpoints_early();
  MPI_TRY(MPI_Initialized, &initialised);
  if (initialised) {
    MPI_TRY(MPI_Query_thread, &provided);
  } else {
    MPI_TRY(MPI_Init_thread, argc_p, argv_p, MPI_THREAD_MULTIPLE, &provided);
    comm->initialised_here = true;
  }
  comm->base.threaded = provided >= MPI_THREAD_MULTIPLE;
  MPI_TRY(MPI_Comm_set_errhandler, MPI_COMM_WORLD, MPI_ERRORS_RETURN); // duplicates inherit it
  return SPT_OK;
}

/* Launchers bind ranks to CPUs of their own, or not at all: only ranks with common CPUs share them. Collective over the
 * node. */
static spt_status count_sharers(MPI_Comm node, spt_comm *base) {
  cpu_set_t own, *all = malloc((size_t)base->local_size * sizeof *all);
  if (!all) return SPT_FAIL(SPT_ERR_RESOURCE, "communicator: out of memory");
  if (sched_getaffinity(0, sizeof own, &own) != 0)
    memset(&own, 0xff, sizeof own); // more CPUs than the set holds: shared by all
  const int code = MPI_Allgather(&own, sizeof own, MPI_BYTE, all, sizeof own, MPI_BYTE, node);
  base->cpu_sharers = 0;
  for (int i = 0; code == MPI_SUCCESS && i < base->local_size; i++) {
    cpu_set_t common;
    CPU_AND(&common, &own, &all[i]);
    if (CPU_COUNT(&common) > 0) base->cpu_sharers++;
  }
  free(all);
  if (code != MPI_SUCCESS || base->cpu_sharers < 1) base->cpu_sharers = base->local_size;
  return SPT_OK;
}

static spt_status find_place(spt_comm *base) {
  char host[MPI_MAX_PROCESSOR_NAME] = "";
  int length = 0;
  MPI_TRY(MPI_Comm_rank, MPI_COMM_WORLD, &base->rank);
  MPI_TRY(MPI_Comm_size, MPI_COMM_WORLD, &base->size);
  MPI_TRY(MPI_Get_processor_name, host, &length);
  snprintf(base->host, sizeof base->host, "%.*s", (int)sizeof base->host - 1, host);
  MPI_Comm node;
  MPI_TRY(MPI_Comm_split_type, MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_TRY(MPI_Comm_rank, node, &base->local_rank);
  MPI_TRY(MPI_Comm_size, node, &base->local_size);
  SPT_TRY(count_sharers(node, base));
  MPI_TRY(MPI_Comm_free, &node);
  return SPT_OK;
}

static spt_status duplicate(mpi_comm *comm) {
  MPI_TRY(MPI_Comm_dup, MPI_COMM_WORLD, &comm->bulk);
  MPI_TRY(MPI_Comm_dup, MPI_COMM_WORLD, &comm->small);
  MPI_TRY(MPI_Comm_dup, MPI_COMM_WORLD, &comm->point);
  return SPT_OK;
}

spt_status spt_comm_mpi_open(int *argc_p, char ***argv_p, spt_comm **comm_p) {
  mpi_comm *comm = calloc(1, sizeof *comm);
  if (!comm) return SPT_FAIL(SPT_ERR_RESOURCE, "communicator: out of memory");
  comm->base.ops = &mpi_ops;
  comm->bulk = comm->small = comm->point = MPI_COMM_NULL;
  spt_status status;
  SPT_TRY_GOTO(initialise(argc_p, argv_p, comm), fail);
  SPT_TRY_GOTO(find_place(&comm->base), fail);
  SPT_TRY_GOTO(duplicate(comm), fail);
  *comm_p = &comm->base;
  return SPT_OK;
fail:;
  spt_comm *base = &comm->base;
  mpi_close(&base);
  return status;
}
