/* Token shards, sealed and not. Mutations of a sealed file get a new seal (7 of 8): without it they would only try the
 * checksum. */
#include "fuzz_file.h"

#include "foreign_shards.h"
#include "hdf5_places.h"

#include "io/hdf5_process.h"
#include "io/token_file.h"
#include "io/token_seal.h"

#include <sys/stat.h>

/* Everything that a program of ours asks of a shard. */
static spt_status read_all(spt_token_file *file) {
  const spt_token_file_info *info = spt_token_file_info_of(file);
  int32_t ids[300];
  FUZZ_CHECK(info->tokens > 0 && info->documents >= 0 && info->documents <= info->tokens, "counts");
  FUZZ_CHECK(info->vocab_size > 0 && info->eos_id >= 0 && info->eos_id < info->vocab_size, "vocabulary");
  int64_t blocks;
  FUZZ_CHECK((spt_token_file_checksums(file, &blocks) != NULL) == info->checksummed, "checksums");
  SPT_TRY(spt_token_file_verify(file));
  for (int64_t begin = 0; begin < info->tokens; begin += info->tokens / 3 + 1) {
    const int64_t count = info->tokens - begin < 300 ? info->tokens - begin : 300;
    SPT_TRY(spt_token_file_read(file, begin, count, ids));
    for (int64_t i = 0; i < count; i++) FUZZ_CHECK(ids[i] >= 0 && ids[i] < info->vocab_size, "token %d", ids[i]);
  }
  return SPT_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char path[64];
  setenv("SPT_TEST_READER_SECONDS", "1", 0);
  const int bytes = fuzz_file(data, size, path);
  spt_token_file *file = NULL;
  spt_error_clear();
  spt_status status = spt_token_file_open(path, &file);
  FUZZ_CHECK((status == SPT_OK) == (file != NULL), "a file with status %d", (int)status);
  if (status == SPT_OK) status = read_all(file);
  spt_token_file_close(&file);
  fuzz_file_close(bytes, path);
  fuzz_judge(status, SPT_ERR_DATA);
  return 0;
}

/* Where our seal says that the tokens lie: offsets of token_seal.c's block. */
static void reseal(uint8_t *data, size_t size) {
  uint64_t begin, bytes;
  char path[64];
  if (size < SPT_TOKEN_SEAL_BYTES || memcmp(data, "SPECTRON-TOKENS", 16) != 0) return;
  memcpy(&begin, data + 32, sizeof begin);
  memcpy(&bytes, data + 40, sizeof bytes);
  if (begin < SPT_TOKEN_SEAL_BYTES || begin > size || bytes > size - begin) return;
  const int file = fuzz_file(data, size, path);
  FUZZ_CHECK(spt_token_seal_write(file, path, (int64_t)size, (int64_t)begin, (int64_t)bytes) == SPT_OK, "%s",
             spt_error_message());
  fuzz_read_back(file, data, SPT_TOKEN_SEAL_BYTES);
  fuzz_file_close(file, path);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
  const size_t header = size >= SPT_TOKEN_SEAL_BYTES && memcmp(data, "SPECTRON", 8) == 0 ? SPT_TOKEN_SEAL_BYTES : 0;
  size = hdf5_places_mutate(data, size, most, header, seed);
  if (seed % 8) reseal(data, size);
  return size;
}

void fuzz_seeds(const char *folder, fuzz_add add, void *context) {
  char path[4096];
  FUZZ_CHECK(spt_hdf5_process_start() == SPT_OK, "%s", spt_error_message());
  snprintf(path, sizeof path, "%s/ours.h5", folder);
  for (int wide = 0; wide < 2; wide++) {
    const spt_token_writer_options options = {.vocab_size = wide ? 70000 : 300,
                                              .eos_id = 256,
                                              .tokenizer = "fixture",
                                              .tokenizer_sha256 = "0123",
                                              .source = "x"};
    const uint32_t ids[] = {1, 2, 3, 250, 256};
    spt_token_writer *writer;
    spt_status status = spt_token_writer_open(path, &options, true, &writer);
    for (int i = 0; status == SPT_OK && i < 200; i++) status = spt_token_writer_append(writer, ids, 5, 15);
    if (status == SPT_OK) status = spt_token_writer_finish(&writer);
    FUZZ_CHECK(status == SPT_OK, "%s", spt_error_message());
    fuzz_add_file(path, add, context);
  }
  snprintf(path, sizeof path, "%s/foreign.h5", folder);
  for (int i = 0; foreign_shard_write(path, i); i++) fuzz_add_file(path, add, context);
}
