/* What tests that run on several ranks share: one communicator, one seed for all ranks, and an end of the whole job
 * when a rank fails (its peers would wait for it in a collective). */
#ifndef SPT_MPI_TEST_H
#define SPT_MPI_TEST_H

#include "unit_test.h"

#include "dist/comm.h"

extern spt_comm *test_comm;
extern uint64_t test_seed;

/* Opens the communicator (`self` when the only argument is "self", else MPI) and agrees on a seed: SPT_TEST_SEED or a
 * fresh one, printed by rank 0. Then runs the tests, each given by MPI_TEST, closes, and returns main's exit code. */
int mpi_test_run(int argc, char **argv, const char *name, const struct CMUnitTest *tests, size_t count);
int mpi_test_begin(void **state);
int mpi_test_end(void **state);
/* To be the last statement of every test: the rest of the job is ended where it is not reached. */
void mpi_test_passed(void);
/* Fails the test with the stored message unless status is SPT_OK. */
void mpi_test_ok(spt_status status);
/* Random numbers of this run: the same on every rank for equal arguments. random_below(…) is in [0, bound). */
uint64_t random_bits(uint64_t stream, uint64_t index);
int64_t random_below(uint64_t stream, uint64_t index, int64_t bound);

#define MPI_TEST(function) cmocka_unit_test_setup_teardown(function, mpi_test_begin, mpi_test_end)

#endif
