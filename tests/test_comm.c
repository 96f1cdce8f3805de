/* Communicators: every operation, on any number of ranks, in one process alone and under MPI. */
#include "mpi_test.h"
#include "pmpi_shim.h"

#include <limits.h>
#include <pthread.h>

#define IN_FLIGHT 6
#define LENGTH_MAX 40000
#define GUARD 3

/* Integers, base + 7·rank, so that sums in any order are exact. */
static float base_value(uint64_t stream, int64_t i) {
  return (float)(random_below(1000 + stream, (uint64_t)i, 2001) - 1000);
}

static float value(int rank, uint64_t stream, int64_t i) {
  return base_value(stream, i) + (float)(7 * rank);
}

static float sum_of_values(uint64_t stream, int64_t i) {
  const int size = test_comm->size;
  return (float)size * base_value(stream, i) + (float)(7 * (size * (size - 1) / 2));
}

static float *new_buffer(int64_t count) {
  float *buffer = malloc((size_t)(count + 2 * GUARD) * sizeof *buffer);
  assert_non_null(buffer);
  for (int64_t i = 0; i < count + 2 * GUARD; i++) buffer[i] = -12345.5F;
  return buffer + GUARD;
}

static void free_buffer(float *buffer, int64_t count) {
  for (int i = 0; i < GUARD; i++) assert_true(buffer[-1 - i] == -12345.5F && buffer[count + i] == -12345.5F);
  free(buffer - GUARD);
}

/* cuts[size + 1] from a non-zero origin, some runs empty; kind 0 random, 1 all on one rank, 2 nothing at all. */
static void random_cuts(uint64_t stream, int kind, int64_t *cuts) {
  const int heir = (int)random_below(stream, 1, test_comm->size);
  cuts[0] = 48;
  for (int p = 0; p < test_comm->size; p++) {
    int64_t run = random_below(stream, 10 + (uint64_t)p, 3) == 0 ? 0 : random_below(stream, 100 + (uint64_t)p, 5000);
    if (kind) run = kind == 1 && p == heir ? 7777 : 0;
    cuts[p + 1] = cuts[p] + run;
  }
}

/* The three ways to complete a request. */
static void complete(spt_request **request, int way) {
  const spt_comm_ops *ops = test_comm->ops;
  bool done = false;
  if (way == 0) {
    mpi_test_ok(ops->wait(test_comm, request));
  } else if (way == 1) {
    while (!done) mpi_test_ok(ops->test(test_comm, request, &done));
  } else { // progress must remember what it completed
    while (!done) {
      for (int i = 0; i < 3; i++) mpi_test_ok(ops->progress(test_comm));
      mpi_test_ok(ops->test(test_comm, request, &done));
    }
  }
  assert_null(*request);
  mpi_test_ok(ops->wait(test_comm, request)); // complete ones may be waited for and tested again
  mpi_test_ok(ops->test(test_comm, request, &done));
  assert_true(done);
}

static void test_place(void **state) {
  (void)state;
  assert_in_range(test_comm->rank, 0, test_comm->size - 1);
  assert_in_range(test_comm->local_size, 1, test_comm->size);
  assert_in_range(test_comm->local_rank, 0, test_comm->local_size - 1);
  assert_int_equal(test_comm->cpu_sharers, test_comm->local_size); // mpi_run.sh binds nobody
  assert_true(strlen(test_comm->host) > 0);
  double sums[2] = {1, test_comm->rank};
  mpi_test_ok(test_comm->ops->reduce_double(test_comm, sums, 2, SPT_REDUCE_SUM));
  assert_true(sums[0] == test_comm->size && sums[1] == test_comm->size * (test_comm->size - 1) / 2.0);
  mpi_test_passed();
}

static void test_all_reduce(void **state) {
  (void)state;
  static const int64_t lengths[IN_FLIGHT] = {1, 2, 15, 4097, 0, LENGTH_MAX};
  float *buffers[IN_FLIGHT];
  spt_request *requests[IN_FLIGHT];
  for (uint64_t round = 0; round < 4; round++) {
    for (int k = 0; k < IN_FLIGHT; k++) {
      buffers[k] = new_buffer(lengths[k]);
      for (int64_t i = 0; i < lengths[k]; i++) buffers[k][i] = value(test_comm->rank, round, i + k);
      mpi_test_ok(test_comm->ops->all_reduce_start(test_comm, buffers[k], lengths[k], &requests[k]));
    }
    for (int k = IN_FLIGHT - 1; k >= 0; k--) { // not in the order of their start
      complete(&requests[k], (k + (int)round) % 3);
      for (int64_t i = 0; i < lengths[k]; i++) assert_true(buffers[k][i] == sum_of_values(round, i + k));
      free_buffer(buffers[k], lengths[k]);
    }
  }
  mpi_test_passed();
}

/* reduce-scatter: the own run holds the sum. */
static void test_reduce_scatter(void **state) {
  (void)state;
  const int size = test_comm->size, rank = test_comm->rank;
  int64_t *cuts = malloc((size_t)(IN_FLIGHT * (size + 1)) * sizeof *cuts);
  assert_non_null(cuts);
  float *buffers[IN_FLIGHT];
  spt_request *requests[IN_FLIGHT];
  for (uint64_t round = 0; round < 6; round++) {
    for (int k = 0; k < IN_FLIGHT; k++) {
      int64_t *mine = cuts + k * (size + 1);
      random_cuts(31 * round + (uint64_t)k, k < 2 ? k + 1 : 0, mine);
      const int64_t count = mine[size] - mine[0];
      buffers[k] = new_buffer(count);
      for (int64_t i = 0; i < count; i++) buffers[k][i] = value(rank, round, i + k);
      mpi_test_ok(test_comm->ops->reduce_scatter_start(test_comm, buffers[k], mine, &requests[k]));
    }
    for (int k = 0; k < IN_FLIGHT; k++) {
      const int64_t *mine = cuts + k * (size + 1);
      complete(&requests[k], (k + (int)round) % 3);
      for (int64_t i = mine[rank] - mine[0]; i < mine[rank + 1] - mine[0]; i++)
        assert_true(buffers[k][i] == sum_of_values(round, i + k));
      free_buffer(buffers[k], mine[size] - mine[0]);
    }
  }
  free(cuts);
  mpi_test_passed();
}

static void test_all_gather(void **state) {
  (void)state;
  const int size = test_comm->size, rank = test_comm->rank;
  int64_t *cuts = malloc((size_t)(IN_FLIGHT * (size + 1)) * sizeof *cuts);
  assert_non_null(cuts);
  float *buffers[IN_FLIGHT];
  spt_request *requests[IN_FLIGHT];
  for (uint64_t round = 0; round < 6; round++) {
    for (int k = 0; k < IN_FLIGHT; k++) {
      int64_t *mine = cuts + k * (size + 1);
      random_cuts(37 * round + (uint64_t)k, k < 2 ? k + 1 : 0, mine);
      buffers[k] = new_buffer(mine[size] - mine[0]);
      for (int64_t i = mine[rank] - mine[0]; i < mine[rank + 1] - mine[0]; i++) buffers[k][i] = value(rank, round, i);
      mpi_test_ok(test_comm->ops->all_gather_start(test_comm, buffers[k], sizeof(float), mine, &requests[k]));
    }
    for (int k = 0; k < IN_FLIGHT; k++) {
      const int64_t *mine = cuts + k * (size + 1);
      complete(&requests[k], (k + (int)round) % 3);
      for (int p = 0; p < size; p++)
        for (int64_t i = mine[p] - mine[0]; i < mine[p + 1] - mine[0]; i++)
          assert_true(buffers[k][i] == value(p, round, i));
      free_buffer(buffers[k], mine[size] - mine[0]);
    }
  }
  free(cuts);
  mpi_test_passed();
}

/* Elements of two bytes, as copies in bf16 are. */
static void test_all_gather_halves(void **state) {
  (void)state;
  enum { MOST = 70 };
  const int size = test_comm->size, rank = test_comm->rank;
  int64_t *cuts = malloc((size_t)(size + 1) * sizeof *cuts);
  uint16_t *buffer = malloc((size_t)(size * MOST) * sizeof *buffer);
  assert_true(cuts && buffer);
  for (uint64_t round = 0; round < 6; round++) {
    const int64_t bytes = test_comm->counters[SPT_COLLECTIVE_ALL_GATHER].bytes;
    spt_request *request;
    cuts[0] = 1000;
    for (int p = 0; p < size; p++) cuts[p + 1] = cuts[p] + (int64_t)random_below(700 + round, (uint64_t)p, MOST);
    memset(buffer, 0xff, (size_t)(size * MOST) * sizeof *buffer);
    for (int64_t i = cuts[rank]; i < cuts[rank + 1]; i++) buffer[i - cuts[0]] = (uint16_t)(i * 31 + (int64_t)round);
    mpi_test_ok(test_comm->ops->all_gather_start(test_comm, buffer, sizeof *buffer, cuts, &request));
    complete(&request, (int)round % 3);
    for (int64_t i = cuts[0]; i < cuts[size]; i++) assert_true(buffer[i - cuts[0]] == (uint16_t)(i * 31 + (int64_t)round));
    for (int64_t i = cuts[size] - cuts[0]; i < size * MOST; i++) assert_true(buffer[i] == 0xffff);
    if (size > 1) assert_true(test_comm->counters[SPT_COLLECTIVE_ALL_GATHER].bytes - bytes == 2 * (cuts[size] - cuts[0]));
  }
  free(cuts);
  free(buffer);
  mpi_test_passed();
}

/* Each sender's runs go to their ranks; those that do not send hand over nothing. */
static void test_exchange(void **state) {
  (void)state;
  const int size = test_comm->size, rank = test_comm->rank;
  int64_t *cuts = malloc((size_t)(IN_FLIGHT * (size + 1)) * sizeof *cuts);
  bool *senders = malloc((size_t)(IN_FLIGHT * size) * sizeof *senders);
  assert_true(cuts && senders);
  float *buffers[IN_FLIGHT], *received[IN_FLIGHT];
  spt_request *requests[IN_FLIGHT];
  for (uint64_t round = 0; round < 6; round++) {
    for (int k = 0; k < IN_FLIGHT; k++) {
      int64_t *mine = cuts + k * (size + 1), own;
      random_cuts(41 * round + (uint64_t)k, k < 2 ? k + 1 : 0, mine);
      own = mine[rank + 1] - mine[rank];
      for (int p = 0; p < size; p++) // all, none, some
        senders[k * size + p] = k == 0 || (k > 1 && random_below(500 + round, (uint64_t)(k * size + p), 2) == 0);
      buffers[k] = new_buffer(mine[size] - mine[0]);
      received[k] = new_buffer(size * own);
      for (int64_t i = 0; i < mine[size] - mine[0]; i++) buffers[k][i] = value(rank, round, i + k);
      mpi_test_ok(test_comm->ops->exchange_start(test_comm, senders[k * size + rank] ? buffers[k] : NULL, mine,
                                                 senders + k * size, received[k], &requests[k]));
    }
    for (int k = 0; k < IN_FLIGHT; k++) {
      const int64_t *mine = cuts + k * (size + 1), own = mine[rank + 1] - mine[rank];
      complete(&requests[k], (k + (int)round) % 3);
      const float *at = received[k];
      for (int p = 0; p < size; p++) {
        if (!senders[k * size + p]) continue;
        for (int64_t i = 0; i < own; i++) assert_true(*at++ == value(p, round, mine[rank] - mine[0] + i + k));
      }
      free_buffer(buffers[k], mine[size] - mine[0]);
      free_buffer(received[k], size * own);
    }
  }
  free(senders);
  free(cuts);
  mpi_test_passed();
}

/* What the communicator counts is what MPI was given. */
static void test_counters(void **state) {
  (void)state;
  static const pmpi_call calls[SPT_COLLECTIVE_KINDS] = {PMPI_IALLREDUCE, PMPI_IREDUCE_SCATTER, PMPI_IALLGATHERV,
                                                      PMPI_IALLTOALLV};
  for (int kind = 0; kind < SPT_COLLECTIVE_KINDS; kind++) {
    pmpi_total total = pmpi_shim_total(calls[kind]);
    assert_true(total.count == test_comm->counters[kind].messages);
    assert_true(total.bytes == test_comm->counters[kind].bytes);
    assert_true((total.count > 0) ==
                (test_comm->size > 1)); // alone nothing is started; else all kinds were, above
  }
  mpi_test_passed();
}

static void test_small_operations(void **state) {
  (void)state;
  const int size = test_comm->size, rank = test_comm->rank;
  double values[3];
  for (int op = SPT_REDUCE_SUM; op <= SPT_REDUCE_MIN; op++) {
    for (int i = 0; i < 3; i++) values[i] = (i + 1) * (rank + 1);
    mpi_test_ok(test_comm->ops->reduce_double(test_comm, values, 3, (spt_reduce_op)op));
    const double expected = op == SPT_REDUCE_SUM ? size * (size + 1) / 2.0 : op == SPT_REDUCE_MAX ? size : 1;
    for (int i = 0; i < 3; i++) assert_true(values[i] == (i + 1) * expected);
  }
  for (int root = 0; root < size; root++) {
    unsigned char bytes[1000];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = rank == root ? (unsigned char)(i * 7 + (size_t)root) : 0;
    mpi_test_ok(test_comm->ops->broadcast(test_comm, bytes, sizeof bytes, root));
    for (size_t i = 0; i < sizeof bytes; i++) assert_true(bytes[i] == (unsigned char)(i * 7 + (size_t)root));
    mpi_test_ok(test_comm->ops->broadcast(test_comm, bytes, 0, root));
  }
  mpi_test_ok(test_comm->ops->barrier(test_comm));
  mpi_test_passed();
}

/* One rank fails: all learn its code and message, and where it happened. */
static void test_agree_one(void **state) {
  (void)state;
  char expected[64];
  for (int failing = 0; failing < test_comm->size; failing++) {
    spt_error_clear();
    snprintf(expected, sizeof expected, "shard-%d.h5: cannot open", failing);
    spt_status status = SPT_OK;
    if (test_comm->rank == failing) status = spt_fail_at(SPT_ERR_DATA, "somewhere.c", 40 + failing, "%s", expected);
    int first = -2;
    assert_int_equal(spt_comm_agree(test_comm, status, &first), SPT_ERR_DATA);
    assert_int_equal(first, failing);
    assert_string_equal(spt_error_message(), expected);
    snprintf(expected, sizeof expected, "somewhere.c:%d", 40 + failing);
    assert_string_equal(spt_error_origin(), expected);
  }
  mpi_test_passed();
}

static void test_agree_many(void **state) {
  (void)state;
  const int size = test_comm->size, rank = test_comm->rank;
  int first = -2;
  assert_int_equal(spt_comm_agree(test_comm, SPT_OK, &first), SPT_OK);
  assert_int_equal(first, -1);
  assert_int_equal(spt_comm_agree(test_comm, SPT_OK, NULL), SPT_OK);

  // All ranks fail, the last one worse: its code and words, on all.
  const spt_status mine = rank == size - 1 ? SPT_ERR_RESOURCE : SPT_ERR_USAGE;
  char expected[32];
  SPT_FAIL(mine, "rank %d", rank);
  assert_int_equal(spt_comm_agree(test_comm, mine, &first), SPT_ERR_RESOURCE);
  assert_int_equal(first, size - 1);
  snprintf(expected, sizeof expected, "rank %d", size - 1);
  assert_string_equal(spt_error_message(), expected);

  // All fail alike: the lowest.
  SPT_FAIL(SPT_ERR_DATA, "rank %d", rank);
  assert_int_equal(spt_comm_agree(test_comm, SPT_ERR_DATA, &first), SPT_ERR_DATA);
  assert_int_equal(first, 0);
  assert_string_equal(spt_error_message(), "rank 0");

  // A stop means that all is saved: a failure elsewhere is worse.
  const spt_status stop = rank == 0 && size > 1 ? SPT_ERR_USAGE : SPT_STOPPED;
  SPT_FAIL(stop, "rank %d", rank);
  assert_int_equal(spt_comm_agree(test_comm, stop, &first), size > 1 ? SPT_ERR_USAGE : SPT_STOPPED);
  assert_int_equal(first, 0);
  mpi_test_passed();
}

static unsigned char byte_of(size_t i, int from, int tag) {
  return (unsigned char)((i * 2654435761U >> 7) + (size_t)from * 11 + (size_t)tag);
}

/* Rank 0 receives from each other rank in turn, as a save does. Ends with a failed status, not with an assertion: it
 * runs on any thread. */
static spt_status stream_to_coordinator(size_t count, int tag) {
  unsigned char *bytes = malloc(count + 1);
  if (!bytes) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
  spt_status status = SPT_OK;
  bytes[count] = 0x5A;
  if (test_comm->rank > 0) {
    for (size_t i = 0; i < count; i++) bytes[i] = byte_of(i, test_comm->rank, tag);
    status = test_comm->ops->send(test_comm, bytes, count, 0, tag);
  }
  for (int from = 1; test_comm->rank == 0 && from < test_comm->size && status == SPT_OK; from++) {
    memset(bytes, 0, count);
    status = test_comm->ops->receive(test_comm, bytes, count, from, tag);
    for (size_t i = 0; i < count && status == SPT_OK; i++)
      if (bytes[i] != byte_of(i, from, tag)) status = SPT_FAIL(SPT_ERR_DATA, "byte %zu from rank %d differs", i, from);
  }
  if (status == SPT_OK && bytes[count] != 0x5A) status = SPT_FAIL(SPT_ERR_DATA, "written past the end");
  free(bytes);
  return status;
}

static void test_send_receive(void **state) {
  (void)state;
  static const size_t counts[] = {0, 1, 1000, (1 << 20) + 3};
  for (int k = 0; k < 4; k++) mpi_test_ok(stream_to_coordinator(counts[k], k));
  if (test_comm->size == 2) mpi_test_ok(stream_to_coordinator(((size_t)64 << 20) + 5, 9)); // more than one chunk
  mpi_test_passed();
}

static void *stream_thread(void *argument) {
  spt_status *status = argument;
  for (int k = 0; k < 8 && *status == SPT_OK; k++) *status = stream_to_coordinator(200000 + (size_t)k, 20 + k);
  return NULL;
}

/* A save streams on a second thread while the main thread trains. */
static void test_second_thread(void **state) {
  (void)state;
  if (!test_comm->threaded) {
    mpi_test_passed();
    skip(); // this MPI has no MPI_THREAD_MULTIPLE
  }
  pthread_t thread;
  spt_status status = SPT_OK;
  assert_int_equal(pthread_create(&thread, NULL, stream_thread, &status), 0);
  float *buffer = new_buffer(5000);
  for (uint64_t round = 0; round < 20; round++) {
    spt_request *request;
    double one = 1;
    for (int64_t i = 0; i < 5000; i++) buffer[i] = value(test_comm->rank, round, i);
    mpi_test_ok(test_comm->ops->all_reduce_start(test_comm, buffer, 5000, &request));
    mpi_test_ok(test_comm->ops->reduce_double(test_comm, &one, 1, SPT_REDUCE_SUM));
    assert_true(one == test_comm->size);
    complete(&request, (int)(round % 3));
    for (int64_t i = 0; i < 5000; i++) assert_true(buffer[i] == sum_of_values(round, i));
  }
  assert_int_equal(pthread_join(thread, NULL), 0);
  assert_int_equal(status, SPT_OK);
  free_buffer(buffer, 5000);
  mpi_test_passed();
}

static void assert_refused(spt_status status, const char *words) {
  assert_int_equal(status, SPT_ERR_RESOURCE);
  if (!strstr(spt_error_message(), words)) fail_msg("\"%s\" does not say \"%s\"", spt_error_message(), words);
  assert_null(strchr(spt_error_message(), '\n'));
}

/* What MPI or we refuse comes back as a status with words; the job goes on. */
static void test_errors(void **state) {
  (void)state;
  const spt_comm_ops *ops = test_comm->ops;
  if (strcmp(ops->name, "self") == 0) {
    char byte = 0;
    assert_refused(ops->send(test_comm, &byte, 1, 1, 0), "alone");
    assert_refused(ops->receive(test_comm, &byte, 1, 1, 0), "alone");
  } else if (test_comm->size > 1) {
    spt_request *request;
    float element = 0;
    char bytes[16] = {0};
    assert_refused(ops->all_reduce_start(test_comm, &element, (int64_t)INT_MAX + 1, &request), "2147483648");
    assert_null(request);
    assert_refused(ops->broadcast(test_comm, bytes, 4, test_comm->size), "MPI_Bcast");
    assert_refused(ops->send(test_comm, bytes, 4, test_comm->size, 0), "MPI_Send");
    if (test_comm->rank == 1) mpi_test_ok(ops->send(test_comm, bytes, 5, 0, 77));
    if (test_comm->rank == 0) assert_refused(ops->receive(test_comm, bytes, 8, 1, 77), "5 bytes where 8");
    if (test_comm->rank == 1) mpi_test_ok(ops->send(test_comm, bytes, 16, 0, 78));
    if (test_comm->rank == 0) assert_refused(ops->receive(test_comm, bytes, 8, 1, 78), "MPI_Recv");
    mpi_test_ok(ops->barrier(test_comm));
  }
  mpi_test_passed();
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      MPI_TEST(test_place),         MPI_TEST(test_all_reduce), MPI_TEST(test_reduce_scatter),
      MPI_TEST(test_all_gather), MPI_TEST(test_all_gather_halves), MPI_TEST(test_exchange),    MPI_TEST(test_counters),   MPI_TEST(test_small_operations),
      MPI_TEST(test_agree_one),     MPI_TEST(test_agree_many), MPI_TEST(test_send_receive),
      MPI_TEST(test_second_thread), MPI_TEST(test_errors),     MPI_TEST(test_counters),
  };
  return mpi_test_run(argc, argv, "comm", tests, sizeof tests / sizeof *tests);
}
