/* Checkpoints: open, every dataset, verify. Mutations get a new seal (7 of 8), and so reach what HDF5 says of the file.
 */
#include "fuzz_file.h"

#include "foreign_checkpoints.h"
#include "hdf5_places.h"

#include "io/checkpoint_internal.h"
#include "io/hdf5_process.h"

#include <math.h>

static spt_status read_all(spt_checkpoint *checkpoint, size_t file_bytes) {
  const spt_checkpoint_header *header = spt_checkpoint_header_of(checkpoint);
  FUZZ_CHECK(header->step >= 0 && header->tokens >= 0 && header->rank_count > 0, "counts");
  FUZZ_CHECK(strlen(header->config_sha256) < 65 && strlen(header->data_fingerprint) < 33, "digests");
  FUZZ_CHECK(strlen(spt_checkpoint_job(checkpoint)) < file_bytes, "job");
  SPT_TRY(spt_checkpoint_verify(checkpoint));
  for (int i = 0; i < spt_checkpoint_dataset_count(checkpoint); i++) {
    const char *name;
    int64_t rows, cols;
    SPT_TRY(spt_checkpoint_dataset(checkpoint, i, &name, &rows, &cols));
    FUZZ_CHECK(rows > 0 && cols > 0 && rows <= (int64_t)file_bytes && cols <= (int64_t)file_bytes &&
                   (size_t)(rows * cols) * sizeof(float) <= file_bytes,
               "%s of %lld by %lld", name, (long long)rows, (long long)cols);
    FUZZ_CHECK(name[0] == '/' && spt_checkpoint_find(checkpoint, name) >= 0, "name");
    float *values = malloc((size_t)(rows * cols) * sizeof *values);
    FUZZ_CHECK(values, "memory");
    const spt_status status = spt_checkpoint_read(checkpoint, i, values);
    free(values);
    SPT_TRY(status);
  }
  return SPT_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char path[64];
  setenv("SPT_TEST_READER_SECONDS", "1", 0);
  const int bytes = fuzz_file(data, size, path);
  spt_checkpoint *checkpoint = NULL;
  spt_error_clear();
  spt_status status = spt_checkpoint_open(path, &checkpoint);
  FUZZ_CHECK((status == SPT_OK) == (checkpoint != NULL), "a checkpoint with status %d", (int)status);
  if (status == SPT_OK) status = read_all(checkpoint, size);
  spt_checkpoint_close(&checkpoint);
  fuzz_file_close(bytes, path);
  fuzz_judge(status, SPT_ERR_DATA);
  return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
  const size_t header = size >= SPT_SEAL_BYTES && spt_seal_has_magic(data) ? SPT_SEAL_BYTES : 0;
  size = hdf5_places_mutate(data, size, most, header, seed);
  if (seed % 8) foreign_checkpoint_seal(data, size);
  return size;
}

void fuzz_seeds(const char *folder, fuzz_add add, void *context) {
  char path[4096];
  FUZZ_CHECK(spt_hdf5_process_start() == SPT_OK, "%s", spt_error_message());
  snprintf(path, sizeof path, "%s/checkpoint.h5", folder);
  for (int i = 0; foreign_checkpoint_write(path, i); i++) fuzz_add_file(path, add, context);
}
