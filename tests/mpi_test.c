#include "mpi_test.h"

spt_comm *test_comm;
uint64_t test_seed;
static bool passed;

int mpi_test_begin(void **state) {
  (void)state;
  passed = false;
  return 0;
}

int mpi_test_end(void **state) {
  (void)state;
  if (!passed && test_comm->size > 1) {
    fprintf(stderr, "rank %d failed (seed %llu): ending the job\n", test_comm->rank, (unsigned long long)test_seed);
    fflush(NULL);
    test_comm->ops->abort(test_comm, 1);
  }
  return 0;
}

void mpi_test_passed(void) {
  passed = true;
}

void mpi_test_ok(spt_status status) {
  if (status != SPT_OK) fail_msg("status %d: %s (%s)", (int)status, spt_error_message(), spt_error_origin());
}

uint64_t random_bits(uint64_t stream, uint64_t index) {
  return spt_random_bits(test_seed, stream, index);
}

int64_t random_below(uint64_t stream, uint64_t index, int64_t bound) {
  return (int64_t)(random_bits(stream, index) % (uint64_t)bound);
}

int mpi_test_run(int argc, char **argv, const char *name, const struct CMUnitTest *tests, size_t count) {
  const bool self = argc == 2 && strcmp(argv[1], "self") == 0;
  spt_status status = self ? spt_comm_self_open(&test_comm) : spt_comm_mpi_open(&argc, &argv, &test_comm);
  if (status != SPT_OK) {
    fprintf(stderr, "%s\n", spt_error_message());
    return 1;
  }
  if (test_comm->rank == 0) test_seed = unit_test_seed(name);
  if (test_comm->ops->broadcast(test_comm, &test_seed, sizeof test_seed, 0) != SPT_OK) {
    fprintf(stderr, "%s\n", spt_error_message());
    test_comm->ops->abort(test_comm, 1);
  }
  int failed = _cmocka_run_group_tests(name, tests, count, NULL, NULL);
  test_comm->ops->close(&test_comm);
  return failed ? 1 : 0;
}
