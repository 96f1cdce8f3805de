/* SentencePiece models: open, encode, decode. What is accepted must encode any text into its own vocabulary, the same
 * each time. */
#include "fuzz_file.h"

#include "io/tokenizer.h"

static void try_text(const spt_tokenizer *tokenizer, const char *text, size_t bytes, spt_status *status_p) {
  uint32_t *ids[2] = {NULL, NULL};
  size_t capacity[2] = {0, 0}, count[2] = {0, 0};
  char *back = NULL;
  const int64_t vocab = spt_tokenizer_vocab_size(tokenizer);
  for (int i = 0; i < 2 && *status_p == SPT_OK; i++)
    *status_p = spt_tokenizer_encode(tokenizer, text, bytes, &ids[i], &capacity[i], &count[i]);
  if (*status_p == SPT_OK) {
    FUZZ_CHECK(count[0] >= 1 && ids[0][count[0] - 1] == (uint64_t)spt_tokenizer_eos(tokenizer), "no end of document");
    FUZZ_CHECK(count[0] == count[1] && memcmp(ids[0], ids[1], count[0] * sizeof **ids) == 0,
               "encoded twice, it differs");
    for (size_t i = 0; i < count[0]; i++)
      FUZZ_CHECK(ids[0][i] < (uint64_t)vocab, "token %u of %lld", ids[0][i], (long long)vocab);
    *status_p = spt_tokenizer_decode(tokenizer, ids[0], count[0], &back);
  }
  free(back);
  free(ids[0]);
  free(ids[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const char *const texts[] = {"", " ", "the cat  sat\non 123 mats.", "\xC3\xA9\xE2\x96\x81x \xFF\xFE",
                                      "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
  char path[64];
  setenv("SPT_TEST_READER_SECONDS", "2", 0);
  const int bytes = fuzz_file(data, size, path);
  spt_tokenizer *tokenizer = NULL;
  spt_error_clear();
  spt_status status = spt_tokenizer_open(path, &tokenizer);
  FUZZ_CHECK((status == SPT_OK) == (tokenizer != NULL), "a tokenizer with status %d", (int)status);
  if (status == SPT_OK) {
    FUZZ_CHECK(spt_tokenizer_vocab_size(tokenizer) > spt_tokenizer_eos(tokenizer) && spt_tokenizer_eos(tokenizer) >= 0,
               "end of document");
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) try_text(tokenizer, texts[i], strlen(texts[i]), &status);
    spt_tokenizer_close(&tokenizer);
  }
  fuzz_file_close(bytes, path);
  fuzz_judge(status, SPT_ERR_DATA);
  return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
  // The trainer's and normaliser's settings stand behind thousands of pieces: as often as these.
  const size_t tail = size > 400 ? size - 400 : 0;
  return seed % 2 ? LLVMFuzzerMutate(data, size, most) : tail + LLVMFuzzerMutate(data + tail, size - tail, most - tail);
}

void fuzz_seeds(const char *folder, fuzz_add add, void *context) {
  const char *root = getenv("SPT_SOURCE_ROOT");
  char input[4096], prefix[4096], model[4200];
  FUZZ_CHECK(root, "SPT_SOURCE_ROOT names the source tree");
  snprintf(input, sizeof input, "%s/README.md", root);
  snprintf(prefix, sizeof prefix, "%s/small", folder);
  snprintf(model, sizeof model, "%s.model", prefix);
  const char *inputs[] = {input};
  for (int64_t vocab = 380; vocab <= 460; vocab += 80) {
    FUZZ_CHECK(spt_tokenizer_train(inputs, 1, vocab, prefix) == SPT_OK, "%s", spt_error_message());
    fuzz_add_file(model, add, context);
  }
}
