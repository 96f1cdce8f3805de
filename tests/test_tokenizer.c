/* Tokenizers: decoding gives back what was encoded, whatever the text. With the argument `sentencepiece`, its
 * cases, which are there only where it is built in (io_dep says so). */
#include "temp_folder.h"
#include "unit_test.h"

#include "io/tokenizer.h"

#include <unistd.h>

static uint64_t seed;
static char model_path[1100];

static int64_t below(uint64_t stream, uint64_t index, int64_t bound) {
  return (int64_t)(spt_random_bits(seed, stream, index) % (uint64_t)bound);
}

#ifdef SPT_HAVE_SENTENCEPIECE
long direct_encode(const char *model, const char *text, size_t bytes, uint32_t *ids, size_t capacity);

/* Our encoding is the library's, to the token. */
static void check_direct(const spt_tokenizer *tokenizer, const char *text, size_t bytes) {
  uint32_t *ids = NULL, *direct = malloc((8 * bytes + 8) * sizeof *direct);
  size_t capacity = 0, count = 0;
  assert_non_null(direct);
  assert_ok(spt_tokenizer_encode(tokenizer, text, bytes, &ids, &capacity, &count));
  const long wanted = direct_encode(model_path, text, bytes, direct, 8 * bytes + 8);
  if (wanted != (long)count - 1 || memcmp(ids, direct, (count - 1) * sizeof *ids))
    fail_msg("%zu tokens, the library makes %ld or others: '%.200s'", count - 1, wanted, text);
  free(direct);
  free(ids);
}
#endif

static void check_round_trip(const spt_tokenizer *tokenizer, const char *text, size_t bytes) {
  uint32_t *ids = NULL;
  size_t capacity = 0, count = 0;
  assert_ok(spt_tokenizer_encode(tokenizer, text, bytes, &ids, &capacity, &count));
  assert_true(count >= 1 && count <= capacity);
  assert_int_equal(ids[count - 1], spt_tokenizer_eos(tokenizer));
  for (size_t i = 0; i + 1 < count; i++) {
    assert_in_range(ids[i], 0, spt_tokenizer_vocab_size(tokenizer) - 1);
    assert_int_not_equal(ids[i], spt_tokenizer_eos(tokenizer));
  }
  char *decoded;
  assert_ok(spt_tokenizer_decode(tokenizer, ids, count - 1, &decoded));
  if (memcmp(decoded, text, bytes) || decoded[bytes]) fail_msg("'%.200s' became '%.200s'", text, decoded);
  free(decoded);
  assert_ok(spt_tokenizer_decode(tokenizer, ids, count, &decoded)); /* the end of a document is a newline */
  assert_int_equal(strlen(decoded + bytes), 1);
  assert_int_equal(decoded[bytes], '\n');
  free(decoded);
  free(ids);
}

static void test_byte(void **state) {
  (void)state;
  spt_tokenizer *tokenizer;
  assert_ok(spt_tokenizer_open("byte", &tokenizer));
  assert_int_equal(spt_tokenizer_vocab_size(tokenizer), 257);
  assert_int_equal(spt_tokenizer_eos(tokenizer), 256);
  assert_string_equal(spt_tokenizer_name(tokenizer), "byte");
  /* printf byte | sha256sum */
  assert_string_equal(spt_tokenizer_sha256(tokenizer),
                      "1c31626f568a075d2fd6934828ba678fe64655ef4e78e42c49367cbbfcaf42f5");
  char all[256];
  for (int i = 0; i < 256; i++) all[i] = (char)i;
  uint32_t *ids = NULL;
  size_t capacity = 0, count;
  assert_ok(spt_tokenizer_encode(tokenizer, all, 256, &ids, &capacity, &count));
  assert_int_equal(count, 257);
  for (uint32_t i = 0; i < 257; i++) assert_int_equal(ids[i], i);
  char *text;
  assert_ok(spt_tokenizer_decode(tokenizer, ids, 256, &text));
  assert_memory_equal(text, all, 256);
  free(text);
  ids[7] = 257;
  assert_fails(SPT_ERR_DATA, spt_tokenizer_decode(tokenizer, ids, 257, &text), "257");
  free(ids);
  check_round_trip(tokenizer, "", 0);
  check_round_trip(tokenizer, "Größe\nzwei  ", strlen("Größe\nzwei  "));
  spt_tokenizer_close(&tokenizer);
  assert_null(tokenizer);
  spt_tokenizer_close(&tokenizer);
}

#ifdef SPT_HAVE_SENTENCEPIECE
/* Text of random words from a small vocabulary, so that pieces are worth learning. */
static char *random_prose(uint64_t stream, size_t words, size_t *bytes_p) {
  static const char *const syllables[] = {"the",  "and", "ing",  "er", "low", "rank", "Spec",
                                          "tron", "ma",  "trix", "é",  "12",  "n't",  "Größe"};
  char *text = NULL;
  FILE *out = open_memstream(&text, bytes_p);
  assert_non_null(out);
  for (uint64_t i = 0; i < words; i++) {
    for (int64_t k = below(stream, 8 * i, 3); k >= 0; k--)
      fputs(syllables[below(stream, 8 * i + 1 + (uint64_t)k, 14)], out);
    fputs(below(stream, 8 * i + 5, 12) ? " " : below(stream, 8 * i + 6, 3) ? ".\n" : ",  ", out);
  }
  assert_int_equal(fclose(out), 0);
  return text;
}

static int train_model(void **state) {
  if (temp_folder_make(state)) return -1;
  size_t bytes;
  char *text = random_prose(1, 20000, &bytes);
  const char *const input = temp_path("prose.txt");
  FILE *file = fopen(input, "w");
  if (!file || fwrite(text, 1, bytes, file) != bytes || fclose(file) != 0) return -1;
  free(text);
  if (spt_tokenizer_train(&input, 1, 400, temp_path("model")) != SPT_OK) return printf("%s\n", spt_error_message()), -1;
  snprintf(model_path, sizeof model_path, "%s", temp_path("model.model"));
  return 0;
}

/* One random character of 1 to 4 bytes, neither U+2581 (SentencePiece's space) nor a surrogate nor NUL. */
static size_t random_character(uint64_t stream, uint64_t index, char *out) {
  static const uint32_t low[] = {1, 0x80, 0x800, 0x10000}, high[] = {0x80, 0x800, 0xD800, 0x110000};
  const int64_t kind = below(stream, 2 * index, 4);
  const uint32_t c = low[kind] + (uint32_t)below(stream, 2 * index + 1, high[kind] - low[kind]);
  if (c == 0x2581) return random_character(stream + 1, index, out);
  if (kind == 0) return out[0] = (char)c, 1;
  static const uint32_t lead[] = {0, 0xC0, 0xE0, 0xF0};
  const size_t size = (size_t)kind + 1;
  uint32_t rest = c;
  for (size_t i = size - 1; i > 0; i--, rest >>= 6) out[i] = (char)(0x80 | (rest & 0x3F));
  out[0] = (char)(lead[kind] | rest);
  return size;
}

static void test_trained_round_trip(void **state) {
  (void)state;
  spt_tokenizer *tokenizer;
  assert_ok(spt_tokenizer_open(model_path, &tokenizer));
  assert_int_equal(spt_tokenizer_vocab_size(tokenizer), 400);
  assert_string_equal(spt_tokenizer_name(tokenizer), "model.model");
  assert_int_equal(strlen(spt_tokenizer_sha256(tokenizer)), 64);
  static const char *const texts[] = {"",
                                      " ",
                                      "  ",
                                      "\n",
                                      "a",
                                      " a",
                                      "  a",
                                      "a ",
                                      "a  b",
                                      "\ta\t\n\n b \r\n",
                                      "Spectron 2024: 3.14",
                                      "日本語 text",
                                      "</s>",
                                      "<unk> <0x41>"};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    check_round_trip(tokenizer, texts[i], strlen(texts[i]));
    check_direct(tokenizer, texts[i], strlen(texts[i]));
  }
  for (uint64_t i = 0; i < 100; i++) { /* any characters, spaces often */
    char text[4 * 300];
    size_t bytes = 0;
    for (uint64_t k = 0; k < (uint64_t)below(20, i, 300); k++)
      if (below(21, 300 * i + k, 4) == 0)
        text[bytes++] = ' ';
      else
        bytes += random_character(22, 300 * i + k, text + bytes);
    check_round_trip(tokenizer, text, bytes);
    check_direct(tokenizer, text, bytes);
  }
  size_t bytes;
  char *prose = random_prose(30, 30000, &bytes); /* a long document */
  check_round_trip(tokenizer, prose, bytes);
  for (size_t k = 0; k < 3; k++) check_direct(tokenizer, prose + k, bytes - 2 * k); /* also words met before */
  free(prose);
  spt_tokenizer_close(&tokenizer);
}

/* Pieces were learnt: fewer than half as many tokens as bytes; digits stand alone. */
static void test_trained_pieces(void **state) {
  (void)state;
  spt_tokenizer *tokenizer;
  assert_ok(spt_tokenizer_open(model_path, &tokenizer));
  size_t bytes, capacity = 0, count, other;
  uint32_t *ids = NULL;
  char *prose = random_prose(40, 2000, &bytes);
  assert_ok(spt_tokenizer_encode(tokenizer, prose, bytes, &ids, &capacity, &count));
  assert_true(2 * count < bytes);
  free(prose);
  assert_ok(spt_tokenizer_encode(tokenizer, "1", 1, &ids, &capacity, &count));
  assert_ok(spt_tokenizer_encode(tokenizer, "121212", 6, &ids, &capacity, &other));
  assert_int_equal(other, count + 5);
  free(ids);
  spt_tokenizer_close(&tokenizer);
}

static void test_training_is_repeatable(void **state) {
  (void)state;
  const char *const input = temp_path("prose.txt");
  assert_ok(spt_tokenizer_train(&input, 1, 400, temp_path("again")));
  assert_int_not_equal(access(temp_path("again.vocab"), F_OK), 0);
  spt_tokenizer *first, *second;
  assert_ok(spt_tokenizer_open(model_path, &first));
  assert_ok(spt_tokenizer_open(temp_path("again.model"), &second));
  for (uint64_t i = 0; i < 20; i++) {
    size_t bytes, capacity[2] = {0, 0}, count[2];
    uint32_t *ids[2] = {NULL, NULL};
    char *prose = random_prose(50 + i, 100, &bytes);
    assert_ok(spt_tokenizer_encode(first, prose, bytes, &ids[0], &capacity[0], &count[0]));
    assert_ok(spt_tokenizer_encode(second, prose, bytes, &ids[1], &capacity[1], &count[1]));
    assert_int_equal(count[0], count[1]);
    assert_memory_equal(ids[0], ids[1], count[0] * sizeof **ids);
    free(ids[0]);
    free(ids[1]);
    free(prose);
  }
  spt_tokenizer_close(&first);
  spt_tokenizer_close(&second);
}

/* A damaged model is refused in one line, whatever stands in it. */
static void test_message_of_one_line(void **state) {
  (void)state;
  spt_tokenizer *tokenizer = NULL;
  FILE *file = fopen(model_path, "rb");
  assert_non_null(file);
  static char bytes[1 << 20];
  const size_t size = fread(bytes, 1, sizeof bytes, file);
  fclose(file);
  char *piece = memmem(bytes, size, "<0x41>", 6);
  assert_non_null(piece);
  memcpy(piece, "<\n\r\t1>", 6); // the library quotes it
  file = fopen(temp_path("lines.model"), "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(bytes, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
  assert_fails(SPT_ERR_DATA, spt_tokenizer_open(temp_path("lines.model"), &tokenizer), "lines.model");
  for (const char *c = spt_error_message(); *c; c++) assert_true((unsigned char)*c >= ' ');
}

static void test_refusals(void **state) {
  (void)state;
  spt_tokenizer *tokenizer = NULL;
  assert_fails(SPT_ERR_DATA, spt_tokenizer_open(temp_path("absent.model"), &tokenizer), "absent.model");
  assert_fails(SPT_ERR_DATA, spt_tokenizer_open(temp_path("prose.txt"), &tokenizer), "prose.txt",
               "not a SentencePiece model");
  static const char *const no_models[] = {"/dev/zero", "/dev/null", "/"};
  for (int i = 0; i < 3; i++) assert_fails(SPT_ERR_DATA, spt_tokenizer_open(no_models[i], &tokenizer), no_models[i]);
  const char *const absent = temp_path("absent.txt"), *const input = temp_path("prose.txt");
  assert_fails(SPT_ERR_DATA, spt_tokenizer_train(&absent, 1, 400, temp_path("no")), "absent.txt");
  assert_fails(SPT_ERR_USAGE, spt_tokenizer_train(&input, 1, 1000000, temp_path("no")), "1000000");
  assert_null(tokenizer);
}
#endif

int main(int argc, char **argv) {
  seed = unit_test_seed("test_tokenizer");
  if (argc == 1) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_byte)};
    return cmocka_run_group_tests(tests, NULL, NULL);
  }
#ifdef SPT_HAVE_SENTENCEPIECE
  if (!strcmp(argv[1], "sentencepiece")) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trained_round_trip),
        cmocka_unit_test(test_trained_pieces),
        cmocka_unit_test(test_training_is_repeatable),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_message_of_one_line),
    };
    return cmocka_run_group_tests(tests, train_model, temp_folder_remove);
  }
#else
  (void)model_path, (void)temp_path, (void)temp_folder_make, (void)temp_folder_remove, (void)below;
#endif
  fprintf(stderr, "test_tokenizer: no part '%s' in this build\n", argv[1]);
  return 2;
}
