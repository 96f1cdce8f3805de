/* Checkpoints by several ranks. usage: test_checkpoint_mpi write|read FILE   (test_checkpoint_mpi.sh runs it with
 * several numbers of ranks) Values and shapes are a function of the seed alone, pieces of the seed and the number of
 * ranks. */
#include "unit_test.h"

#include "faults.h"
#include "host_backend.h"

#include "io/hdf5_process.h"
#include "mpi_test.h"

#include "io/checkpoint.h"

enum { ITEMS = 7, RANKS_MAX = 64 };

static const char *file;
static spt_checkpoint_item items[ITEMS];
static float *whole[ITEMS]; /* what the file is to hold */

/* The last item is longer than several messages and not a multiple of one. */
static void make_items(void) {
  for (int i = 0; i < ITEMS; i++) {
    const uint64_t index = (uint64_t)i;
    const bool large = i == ITEMS - 1;
    items[i] =
        (spt_checkpoint_item){.rows = large ? 2500 : 1 + random_below(1, index, 90),
                              .cols = large ? 1000 + random_below(3, index, 100) : 1 + random_below(2, index, 70)};
    snprintf(items[i].dataset, sizeof items[i].dataset, i % 2 ? "/optimizer/t%d/momentum" : "/model/t%d", i);
    const int64_t count = items[i].rows * items[i].cols;
    whole[i] = malloc((size_t)count * sizeof(float));
    assert_non_null(whole[i]);
    spt_random_normal(test_seed, 100 + index, 0, count, 1, whole[i]);
    // Every third item belongs to one rank alone; the others are cut anywhere, some pieces empty.
    int64_t cuts[RANKS_MAX + 1] = {0};
    const int owner = (int)random_below(4, index * 97 + (uint64_t)test_comm->size, test_comm->size);
    for (int p = 0; p < test_comm->size; p++) {
      const int64_t left = count - cuts[p];
      const int64_t piece = random_below(5, index * 1000 + (uint64_t)(p * 64 + test_comm->size), left + 1);
      cuts[p + 1] = i % 3 == 0 ? (p < owner ? 0 : count) : p == test_comm->size - 1 ? count : cuts[p] + piece;
    }
    items[i].begin = cuts[test_comm->rank];
    items[i].end = cuts[test_comm->rank + 1];
    items[i].values = calloc((size_t)(items[i].end - items[i].begin) + 1, sizeof(float));
    assert_non_null(items[i].values);
  }
}

static void free_items(void) {
  for (int i = 0; i < ITEMS; i++) {
    free(items[i].values);
    free(whole[i]);
  }
}

static size_t piece_bytes(int i) {
  return (size_t)(items[i].end - items[i].begin) * sizeof(float);
}

static spt_checkpoint_header make_header(void) {
  return (spt_checkpoint_header){
      .step = 7, .tokens = 700, .applied_updates = 6, .rank_count = 1, .best_validation_loss = 3.5};
}

static void fill_pieces(void) {
  for (int i = 0; i < ITEMS; i++) memcpy(items[i].values, whole[i] + items[i].begin, piece_bytes(i));
}

static void assert_loads(const char *path) {
  spt_checkpoint *checkpoint = NULL;
  if (test_comm->rank == 0) assert_ok(spt_checkpoint_open(path, &checkpoint));
  for (int i = 0; i < ITEMS; i++) memset(items[i].values, 0xEE, piece_bytes(i));
  assert_ok(spt_checkpoint_load(test_comm, &host_backend, checkpoint, items, ITEMS));
  spt_checkpoint_item all[ITEMS];
  for (int i = 0; i < ITEMS; i++) {
    assert_memory_equal(items[i].values, whole[i] + items[i].begin, piece_bytes(i));
    all[i] = items[i];
    all[i].begin = 0;
    all[i].end = all[i].rows * all[i].cols;
    all[i].values = calloc((size_t)all[i].end, sizeof(float));
    assert_non_null(all[i].values);
  }
  assert_ok(spt_checkpoint_load_replicated(test_comm, &host_backend, checkpoint, all, ITEMS));
  for (int i = 0; i < ITEMS; i++) {
    assert_memory_equal(all[i].values, whole[i], (size_t)all[i].end * sizeof(float));
    free(all[i].values);
  }
  spt_checkpoint_close(&checkpoint);
}

/* The coordinator's disk fills up half way, a rank's device fails, ranks disagree: every rank learns it, nobody waits,
 * and the next save is fine. */
static spt_status failing_download(spt_backend *backend, void *to, const void *from, size_t bytes) {
  (void)backend, (void)to, (void)from, (void)bytes;
  return SPT_FAIL(SPT_ERR_RESOURCE, "rank %d: the device is gone", test_comm->rank);
}

static void failures(spt_checkpoint_saver *saver) {
  const spt_checkpoint_header header = make_header();
  const spt_ops broken_ops = {.name = "broken", .download = failing_download, .upload = failing_download};
  for (long writes = 0; writes < 3; writes++) {
    if (test_comm->rank == 0) {
      faults.writes_left = writes;
      faults.write_error = ENOSPC;
    }
    spt_status status = spt_checkpoint_save_begin(saver, file, &header, "job");
    if (status == SPT_OK) status = spt_checkpoint_save_finish(saver);
    faults_reset();
    assert_int_equal(status, SPT_ERR_RESOURCE);
    assert_non_null(strstr(spt_error_message(), "no space left"));
    assert_int_not_equal(access(file, F_OK), 0);
  }
  const spt_ops *const ops = host_backend.ops;
  const int unlucky = test_comm->size - 1;
  if (test_comm->rank == unlucky) host_backend.ops = &broken_ops;
  char expected[64];
  snprintf(expected, sizeof expected, "rank %d: the device is gone", unlucky);
  assert_fails(SPT_ERR_RESOURCE, spt_checkpoint_save_begin(saver, file, &header, "job"), expected);
  host_backend.ops = ops;
}

static void write_test(void **unused) {
  (void)unused;
  spt_checkpoint_saver *saver;
  const spt_checkpoint_header header = make_header();
  make_items();
  items[1].rows += test_comm->rank; // another model on another rank
  if (test_comm->size > 1)
    assert_fails(SPT_ERR_RESOURCE, spt_checkpoint_saver_open(test_comm, &host_backend, items, ITEMS, &saver),
                 "rank 1 has other tensors");
  items[1].rows -= test_comm->rank;
  assert_ok(spt_checkpoint_saver_open(test_comm, &host_backend, items, ITEMS, &saver));
  fill_pieces();
  failures(saver);
  assert_ok(spt_checkpoint_save_begin(saver, file, &header, "job"));
  for (int i = 0; i < ITEMS; i++) memset(items[i].values, 0, piece_bytes(i)); // training goes on, with its collectives
  for (int i = 0; i < 50; i++) {
    double sum = test_comm->rank;
    assert_ok(test_comm->ops->reduce_double(test_comm, &sum, 1, SPT_REDUCE_SUM));
    assert_true(sum == 0.5 * test_comm->size * (test_comm->size - 1));
  }
  assert_ok(spt_checkpoint_save_finish(saver));
  assert_true(spt_checkpoint_save_idle(saver));
  spt_checkpoint_saver_close(&saver);
  assert_loads(file);
  free_items();
  mpi_test_passed();
}

static void read_test(void **unused) {
  (void)unused;
  make_items();
  assert_loads(file);
  if (test_comm->rank == 0) {
    spt_checkpoint *checkpoint;
    assert_ok(spt_checkpoint_open(file, &checkpoint));
    assert_ok(spt_checkpoint_verify(checkpoint));
    spt_checkpoint_close(&checkpoint);
  }
  free_items();
  mpi_test_passed();
}

/* On a file that the script has damaged inside a tensor. */
static void damaged_test(void **unused) {
  (void)unused;
  make_items();
  spt_checkpoint *checkpoint = NULL;
  if (test_comm->rank == 0) assert_ok(spt_checkpoint_open(file, &checkpoint));
  assert_fails(SPT_ERR_DATA, spt_checkpoint_load(test_comm, &host_backend, checkpoint, items, ITEMS), file,
               "fails its checksum");
  spt_checkpoint_close(&checkpoint);
  free_items();
  mpi_test_passed();
}

int main(int argc, char **argv) {
  const struct CMUnitTest all[] = {MPI_TEST(write_test), MPI_TEST(read_test), MPI_TEST(damaged_test)};
  static const char *const modes[] = {"write", "read", "damaged"};
  for (int i = 0; argc == 3 && i < 3; i++)
    if (strcmp(argv[1], modes[i]) == 0) {
      file = argv[2];
      if (spt_hdf5_process_start() != SPT_OK) return 1; // before MPI: it forks
      return mpi_test_run(argc, argv, "test_checkpoint_mpi", &all[i], 1);
    }
  fprintf(stderr, "usage: test_checkpoint_mpi write|read|damaged FILE\n");
  return 2;
}
