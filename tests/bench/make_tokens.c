/* A token shard of random ids for the cost curves of tests/bench/scaling.sh: make_tokens OUT.h5 VOCAB TOKENS. Speed
 * does not depend on the text, and a tokenizer of 65536 words would take minutes to train. */
#include "core/rng.h"
#include "io/token_file.h"

#include <stdio.h>
#include <stdlib.h>

enum { DOCUMENT = 1024 };

static spt_status write_shard(const char *path, int64_t vocab, int64_t tokens) {
  const spt_token_writer_options options = {
      .vocab_size = vocab, .eos_id = vocab - 1, .tokenizer = "random", .tokenizer_sha256 = "", .source = "make_tokens"};
  spt_token_writer *writer = NULL;
  SPT_TRY(spt_token_writer_open(path, &options, true, &writer));
  spt_status status = SPT_OK;
  uint32_t ids[DOCUMENT];
  for (int64_t begin = 0; begin < tokens && status == SPT_OK; begin += DOCUMENT) {
    const int64_t count = tokens - begin < DOCUMENT ? tokens - begin : DOCUMENT;
    for (int64_t i = 0; i < count; i++)
      ids[i] = (uint32_t)(spt_random_bits(1, 0, (uint64_t)(begin + i)) % (uint64_t)vocab);
    ids[count - 1] = (uint32_t)(vocab - 1);
    status = spt_token_writer_append(writer, ids, (size_t)count, (size_t)count);
  }
  if (status == SPT_OK) status = spt_token_writer_finish(&writer);
  spt_token_writer_close(&writer);
  return status;
}

int main(int argc, char **argv) {
  const long long vocab = argc == 4 ? atoll(argv[2]) : 0, tokens = argc == 4 ? atoll(argv[3]) : 0;
  if (vocab < 2 || tokens < 1) {
    fputs("usage: make_tokens OUT.h5 VOCAB TOKENS\n", stderr);
    return 2;
  }
  const spt_status status = write_shard(argv[1], vocab, tokens);
  if (status != SPT_OK) fprintf(stderr, "make_tokens: %s\n", spt_error_message());
  return (int)status;
}
