/* Random token shards for tests. */
#ifndef SPT_TOKEN_FIXTURE_H
#define SPT_TOKEN_FIXTURE_H

#include "temp_folder.h"
#include "unit_test.h"

#include "io/token_file.h"

static const char fixture_sha256[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

static inline int64_t fixture_below(uint64_t seed, uint64_t stream, uint64_t index, int64_t bound) {
  return (int64_t)(spt_random_bits(seed, stream, index) % (uint64_t)bound);
}

/* Writes `tokens` random ids (the last of each document is eos = vocab − 1) as a shard, and returns them, malloc'ed. */
static inline uint32_t *fixture_shard(const char *path, uint64_t seed, uint64_t stream, int64_t tokens, int64_t vocab) {
  uint32_t *ids = malloc((size_t)tokens * sizeof *ids);
  assert_non_null(ids);
  const spt_token_writer_options options = {.vocab_size = vocab,
                                            .eos_id = vocab - 1,
                                            .tokenizer = "fixture",
                                            .tokenizer_sha256 = fixture_sha256,
                                            .source = "random"};
  spt_token_writer *writer;
  assert_ok(spt_token_writer_open(path, &options, true, &writer));
  for (int64_t begin = 0, document = 0; begin < tokens; document++) {
    const int64_t wanted = 1 + fixture_below(seed, stream + 1, (uint64_t)document, document % 7 == 0 ? 5000 : 40);
    const int64_t count = wanted < tokens - begin ? wanted : tokens - begin;
    for (int64_t i = 0; i < count; i++)
      ids[begin + i] = (uint32_t)fixture_below(seed, stream, (uint64_t)(begin + i), vocab);
    ids[begin + count - 1] = (uint32_t)vocab - 1;
    assert_ok(spt_token_writer_append(writer, ids + begin, (size_t)count, (size_t)(3 * count)));
    begin += count;
  }
  assert_int_equal(spt_token_writer_tokens(writer), tokens);
  assert_ok(spt_token_writer_finish(&writer));
  assert_null(writer);
  return ids;
}

#endif
