#include "pmpi_shim.h"

#include <mpi.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const call_names[PMPI_CALLS] = {
    "MPI_Iallreduce", "MPI_Ireduce_scatter", "MPI_Iallgatherv", "MPI_Ialltoallv", "MPI_Allreduce",
    "MPI_Bcast",      "MPI_Barrier",         "MPI_Send",        "MPI_Recv"};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; // point-to-point calls come from a second thread
static pmpi_total totals[PMPI_CALLS];
static pmpi_event *events;
static MPI_Request *event_requests; // [event_count]; MPI_REQUEST_NULL once complete
static int event_count, event_capacity;
static double start;

static double clock_seconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

double pmpi_shim_now(void) {
  return clock_seconds() - start;
}

pmpi_total pmpi_shim_total(pmpi_call call) {
  pthread_mutex_lock(&lock);
  pmpi_total total = totals[call];
  pthread_mutex_unlock(&lock);
  return total;
}

int pmpi_shim_event_count(void) {
  return event_count;
}

pmpi_event pmpi_shim_event(int i) {
  return events[i];
}

static int64_t bytes_of(int64_t count, MPI_Datatype type) {
  int size = 0;
  PMPI_Type_size(type, &size);
  return count * size;
}

static void count_call(pmpi_call call, int64_t bytes) {
  pthread_mutex_lock(&lock);
  totals[call].count++;
  totals[call].bytes += bytes;
  pthread_mutex_unlock(&lock);
}

static void note_posted(pmpi_call call, int64_t bytes, double posted, MPI_Request request) {
  count_call(call, bytes);
  pthread_mutex_lock(&lock);
  if (event_count == event_capacity) {
    event_capacity = event_capacity ? 2 * event_capacity : 256;
    events = realloc(events, (size_t)event_capacity * sizeof *events);
    event_requests = realloc(event_requests, (size_t)event_capacity * sizeof *event_requests);
    if (!events || !event_requests) {
      fprintf(stderr, "pmpi_shim: out of memory\n");
      abort();
    }
  }
  events[event_count] = (pmpi_event){.call = call, .bytes = bytes, .posted = posted, .completed = -1};
  event_requests[event_count++] = request;
  pthread_mutex_unlock(&lock);
}

/* `request` as it was before a call that completed it. */
static void note_complete(MPI_Request request) {
  if (request == MPI_REQUEST_NULL) return;
  const double time = pmpi_shim_now();
  pthread_mutex_lock(&lock);
  for (int i = event_count - 1; i >= 0; i--) {
    if (event_requests[i] != request) continue;
    event_requests[i] = MPI_REQUEST_NULL;
    events[i].completed = time;
    break;
  }
  pthread_mutex_unlock(&lock);
}

static int64_t sum_of(const int *counts, MPI_Comm comm) {
  int size = 0;
  int64_t sum = 0;
  PMPI_Comm_size(comm, &size);
  for (int p = 0; p < size; p++) sum += counts[p];
  return sum;
}

/* Non-blocking collectives ----------------------------------------------------------------------------------------- */

int MPI_Iallreduce(const void *send, void *receive, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm,
                   MPI_Request *request) {
  const double posted = pmpi_shim_now();
  int code = PMPI_Iallreduce(send, receive, count, type, op, comm, request);
  if (code == MPI_SUCCESS) note_posted(PMPI_IALLREDUCE, bytes_of(count, type), posted, *request);
  return code;
}

int MPI_Ireduce_scatter(const void *send, void *receive, const int counts[], MPI_Datatype type, MPI_Op op,
                        MPI_Comm comm, MPI_Request *request) {
  const double posted = pmpi_shim_now();
  int code = PMPI_Ireduce_scatter(send, receive, counts, type, op, comm, request);
  if (code == MPI_SUCCESS) note_posted(PMPI_IREDUCE_SCATTER, bytes_of(sum_of(counts, comm), type), posted, *request);
  return code;
}

int MPI_Iallgatherv(const void *send, int send_count, MPI_Datatype send_type, void *receive, const int counts[],
                    const int displs[], MPI_Datatype type, MPI_Comm comm, MPI_Request *request) {
  const double posted = pmpi_shim_now();
  int code = PMPI_Iallgatherv(send, send_count, send_type, receive, counts, displs, type, comm, request);
  if (code == MPI_SUCCESS) note_posted(PMPI_IALLGATHERV, bytes_of(sum_of(counts, comm), type), posted, *request);
  return code;
}

int MPI_Ialltoallv(const void *send, const int send_counts[], const int send_displs[], MPI_Datatype send_type,
                   void *receive, const int counts[], const int displs[], MPI_Datatype type, MPI_Comm comm,
                   MPI_Request *request) {
  const double posted = pmpi_shim_now();
  int code =
      PMPI_Ialltoallv(send, send_counts, send_displs, send_type, receive, counts, displs, type, comm, request);
  if (code == MPI_SUCCESS) note_posted(PMPI_IALLTOALLV, bytes_of(sum_of(send_counts, comm), send_type), posted, *request);
  return code;
}

/* Completion ------------------------------------------------------------------------------------------------------- */

int MPI_Wait(MPI_Request *request, MPI_Status *status) {
  const MPI_Request before = *request;
  int code = PMPI_Wait(request, status);
  if (code == MPI_SUCCESS) note_complete(before);
  return code;
}

int MPI_Test(MPI_Request *request, int *flag, MPI_Status *status) {
  const MPI_Request before = *request;
  int code = PMPI_Test(request, flag, status);
  if (code == MPI_SUCCESS && *flag) note_complete(before);
  return code;
}

int MPI_Testsome(int count, MPI_Request requests[], int *done, int indices[], MPI_Status statuses[]) {
  MPI_Request *before = malloc(((size_t)count + 1) * sizeof *before);
  if (before) memcpy(before, requests, (size_t)count * sizeof *before);
  int code = PMPI_Testsome(count, requests, done, indices, statuses);
  for (int i = 0; before && code == MPI_SUCCESS && *done != MPI_UNDEFINED && i < *done; i++)
    note_complete(before[indices[i]]);
  free(before);
  return code;
}

/* Blocking calls --------------------------------------------------------------------------------------------------- */

int MPI_Allreduce(const void *send, void *receive, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  count_call(PMPI_ALLREDUCE, bytes_of(count, type));
  return PMPI_Allreduce(send, receive, count, type, op, comm);
}

int MPI_Bcast(void *buffer, int count, MPI_Datatype type, int root, MPI_Comm comm) {
  count_call(PMPI_BCAST, bytes_of(count, type));
  return PMPI_Bcast(buffer, count, type, root, comm);
}

int MPI_Barrier(MPI_Comm comm) {
  count_call(PMPI_BARRIER, 0);
  return PMPI_Barrier(comm);
}

int MPI_Send(const void *buffer, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm) {
  count_call(PMPI_SEND, bytes_of(count, type));
  return PMPI_Send(buffer, count, type, to, tag, comm);
}

int MPI_Recv(void *buffer, int count, MPI_Datatype type, int from, int tag, MPI_Comm comm, MPI_Status *status) {
  count_call(PMPI_RECV, bytes_of(count, type));
  return PMPI_Recv(buffer, count, type, from, tag, comm, status);
}

/* Start and report ------------------------------------------------------------------------------------------------- */

int MPI_Init_thread(int *argc, char ***argv, int required, int *provided) {
  start = clock_seconds();
  const bool fewer = getenv("SPT_PMPI_SERIALIZED") && required > MPI_THREAD_SERIALIZED;
  return PMPI_Init_thread(argc, argv, fewer ? MPI_THREAD_SERIALIZED : required, provided);
}

/* `pattern` with its first "%d" replaced by the rank. */
static void file_name(const char *pattern, int rank, char *name, size_t size) {
  const char *mark = strstr(pattern, "%d");
  if (mark)
    snprintf(name, size, "%.*s%d%s", (int)(mark - pattern), pattern, rank, mark + 2);
  else
    snprintf(name, size, "%s", pattern);
}

static void write_report(const char *pattern) {
  int rank = 0, size = 0;
  char name[4096];
  PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
  PMPI_Comm_size(MPI_COMM_WORLD, &size);
  file_name(pattern, rank, name, sizeof name);
  FILE *file = fopen(name, "w");
  if (!file) {
    perror(name);
    return;
  }
  fprintf(file, "{\"rank\": %d, \"size\": %d, \"calls\": {", rank, size);
  for (int i = 0; i < PMPI_CALLS; i++)
    fprintf(file, "%s\"%s\": {\"count\": %lld, \"bytes\": %lld}", i ? ", " : "", call_names[i],
            (long long)totals[i].count, (long long)totals[i].bytes);
  fprintf(file, "},\n\"events\": [");
  for (int i = 0; i < event_count; i++) {
    fprintf(file, "%s\n{\"call\": \"%s\", \"bytes\": %lld, \"posted\": %.9f, \"completed\": ", i ? "," : "",
            call_names[events[i].call], (long long)events[i].bytes, events[i].posted);
    if (events[i].completed < 0)
      fprintf(file, "null}");
    else
      fprintf(file, "%.9f}", events[i].completed);
  }
  fprintf(file, "]}\n");
  if (fclose(file) != 0) perror(name);
}

int MPI_Finalize(void) {
  const char *pattern = getenv("SPT_PMPI_OUT");
  if (pattern && *pattern) write_report(pattern);
  free(events);
  free(event_requests);
  events = NULL;
  event_requests = NULL;
  event_count = event_capacity = 0;
  return PMPI_Finalize();
}
