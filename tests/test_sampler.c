/* The order of the data: a fixed contract, each window once an epoch, each target once a pass, no dependence on ranks.
 */
#include "token_fixture.h"

#include "io/sampler.h"

static uint64_t seed;

/* Computed by another implementation (Python) of the same definition. They must never change: runs resume by them. */
static void test_permutation_is_fixed(void **state) {
  (void)state;
  static const struct {
    uint64_t seed, epoch;
    int64_t count, expected[10];
  } golden[] = {
      {0, 0, 10, {5, 2, 1, 0, 6, 4, 3, 8, 7, 9}},
      {1, 0, 10, {4, 3, 8, 0, 9, 5, 6, 7, 1, 2}},
      {1, 1, 10, {2, 9, 4, 0, 6, 3, 5, 1, 7, 8}},
      {42, 3, 1000, {707, 311, 852, 277, 678, 400, 299, 283, 564, 688}},
      {0xdeadbeefcafe, 7, 1000003, {634057, 26342, 833126, 808389, 344282, 823997, 615577, 612531, 353223, 24581}},
      {5, 0, 1, {0}},
      {9, 2, 2, {1, 0}},
  };
  for (size_t i = 0; i < sizeof golden / sizeof *golden; i++)
    for (int64_t k = 0; k < 10 && k < golden[i].count; k++)
      assert_int_equal(spt_permute(golden[i].seed, golden[i].epoch, golden[i].count, k), golden[i].expected[k]);
  assert_int_equal(spt_permute(3, 1, INT64_C(1000000000000), INT64_C(123456789012)), INT64_C(40102764312));
}

static void test_permutation_is_one(void **state) {
  (void)state;
  for (uint64_t i = 0; i < 60; i++) {
    const int64_t count = i < 20 ? (int64_t)i + 1 : 1 + fixture_below(seed, 1, i, 20000);
    unsigned char *seen = calloc(1, (size_t)count);
    assert_non_null(seen);
    for (int64_t k = 0; k < count; k++) {
      const int64_t to = spt_permute(seed, i, count, k);
      assert_in_range(to, 0, count - 1);
      assert_int_equal(seen[to]++, 0);
    }
    free(seen);
  }
}

/* Over epochs each position is as likely as any other: χ² of the images of every index over 16 cells, and few repeats
 * of an epoch's order. */
static void test_permutation_is_random(void **state) {
  (void)state;
  enum { COUNT = 160, EPOCHS = 4000, CELLS = 16 };
  int64_t same = 0;
  for (int64_t index = 0; index < COUNT; index += 13) {
    int64_t cells[CELLS] = {0}, previous = -1;
    for (uint64_t epoch = 0; epoch < EPOCHS; epoch++) {
      const int64_t to = spt_permute(seed, epoch, COUNT, index);
      cells[to * CELLS / COUNT]++;
      same += to == previous;
      previous = to;
    }
    double chi2 = 0;
    for (int c = 0; c < CELLS; c++)
      chi2 += ((double)cells[c] - EPOCHS / CELLS) * ((double)cells[c] - EPOCHS / CELLS) / (EPOCHS / CELLS);
    if (chi2 > 60)
      fail_msg("index %lld: chi-squared %.1f with 15 degrees of freedom", (long long)index, chi2); /* P < 3e-7 */
  }
  assert_in_range(same, 200, 460); /* 13 · 3999 / 160 = 325 expected, deviation 18 */
}

/* Any split of the global batch over ranks gives the same windows, an epoch at a time, epochs differing. */
static void test_each_window_once_an_epoch(void **state) {
  (void)state;
  const int64_t windows = 50 + fixture_below(seed, 2, 0, 200), sequences = 24;
  int *seen = calloc((size_t)windows, sizeof *seen);
  int64_t *first = malloc((size_t)windows * sizeof *first), moved = 0;
  assert_true(seen && first);
  for (int64_t sample = 0; sample < 3 * windows; sample++) {
    const int64_t window = spt_sample_window(seed, windows, sequences, sample / sequences, sample % sequences);
    assert_in_range(window, 0, windows - 1);
    assert_int_equal(window, spt_sample_window(seed, windows, 1, sample, 0)); /* only step·sequences + index counts */
    assert_int_equal(seen[window]++, sample / windows);
    if (sample < windows)
      first[sample] = window;
    else
      moved += first[sample % windows] != window;
  }
  assert_true(moved > windows);
  free(seen);
  free(first);
}

static void test_stream_concatenates(void **state) {
  (void)state;
  enum { FILES = 4, VOCAB = 900 };
  /* bytewise order: capitals before small letters, "10" before "2" */
  static const char *const names[FILES] = {"s/B.h5", "s/a10.h5", "s/a2.h5", "s/b.h5"};
  int64_t sizes[FILES], total = 0;
  uint32_t *all = NULL;
  assert_int_equal(mkdir(temp_path("s"), 0777), 0);
  for (int i = FILES - 1; i >= 0; i--) sizes[i] = 1 + fixture_below(seed, 3, (uint64_t)i, 50000);
  for (int i = 0; i < FILES; i++) {
    uint32_t *ids = fixture_shard(temp_path(names[i]), seed, 10 + 2 * (uint64_t)i, sizes[i], VOCAB);
    all = realloc(all, (size_t)(total + sizes[i]) * sizeof *all);
    assert_non_null(all);
    memcpy(all + total, ids, (size_t)sizes[i] * sizeof *ids);
    total += sizes[i];
    free(ids);
  }
  /* out of order, and one file by two patterns */
  const char *const patterns[] = {temp_path("s/b*.h5"), temp_path("s/a*.h5"), temp_path("s/[Bb].h5")};
  spt_token_stream *stream;
  assert_ok(spt_token_stream_open(patterns, 3, VOCAB, &stream));
  assert_int_equal(spt_token_stream_files(stream), FILES);
  assert_int_equal(spt_token_stream_tokens(stream), total);
  assert_int_equal(spt_token_stream_text_bytes(stream), 3 * total);
  for (int i = 0; i < FILES; i++)
    assert_string_equal(spt_token_file_path(spt_token_stream_file(stream, i)), temp_path(names[i]));
  int32_t *read = malloc((size_t)total * sizeof *read);
  assert_non_null(read);
  int64_t tokens_read = 0;
  for (uint64_t i = 0; i < 40; i++) {
    const int64_t begin = i ? fixture_below(seed, 4, 2 * i, total) : 0,
                  count = i ? 1 + fixture_below(seed, 4, 2 * i + 1, total - begin) : total;
    assert_ok(spt_token_stream_read(stream, begin, count, read));
    for (int64_t k = 0; k < count; k++)
      if (read[k] != (int32_t)all[begin + k]) fail_msg("token %lld differs", (long long)(begin + k));
    tokens_read += count;
  }
  assert_int_equal(spt_token_stream_tokens_read(stream), tokens_read);
  assert_fails(SPT_ERR_DATA, spt_token_stream_read(stream, total - 1, 2, read), "wanted");
  free(read);
  free(all);
  spt_token_stream_close(&stream);
}

/* Windows overlap by the one token that is the last target of one and the first input of the next: all targets of [1,
 * windows·T] once. */
static void test_windows_tile_targets(void **state) {
  (void)state;
  free(fixture_shard(temp_path("tile.h5"), seed, 30, 2 + fixture_below(seed, 31, 0, 5000), 300));
  const char *const pattern = temp_path("tile.h5");
  spt_token_stream *stream;
  assert_ok(spt_token_stream_open(&pattern, 1, 300, &stream));
  const int64_t tokens = spt_token_stream_tokens(stream);
  for (int64_t seq_len = 1; seq_len < 70; seq_len += 1 + fixture_below(seed, 32, (uint64_t)seq_len, 9)) {
    const int64_t windows = spt_token_stream_windows(stream, seq_len);
    int *trained = calloc((size_t)tokens, sizeof *trained);
    assert_non_null(trained);
    for (int64_t s = 0; s < windows; s++) {
      const int64_t begin = spt_sample_window(seed, windows, 1, s, 0) * seq_len;
      assert_true(begin + seq_len < tokens); /* the last target exists */
      for (int64_t k = 1; k <= seq_len; k++) trained[begin + k]++;
    }
    assert_int_equal(trained[0], 0);
    for (int64_t k = 1; k < tokens; k++) assert_int_equal(trained[k], k <= windows * seq_len);
    assert_true(tokens - 1 - windows * seq_len < seq_len);
    free(trained);
  }
  spt_token_stream_close(&stream);
}

static void fingerprint_of(const char *pattern, char fingerprint[33]) {
  spt_token_stream *stream;
  assert_ok(spt_token_stream_open(&pattern, 1, 0, &stream));
  spt_token_stream_fingerprint(stream, fingerprint);
  assert_int_equal(strlen(fingerprint), 32);
  assert_int_equal(strspn(fingerprint, "0123456789abcdef"), 32);
  spt_token_stream_close(&stream);
}

/* The fingerprint is of the content: the same under another name, another when one token is another. */
static void test_fingerprint(void **state) {
  (void)state;
  char first[33], moved[33], other[33], longer[33];
  free(fixture_shard(temp_path("f.h5"), seed, 40, 3000, 300));
  fingerprint_of(temp_path("f.h5"), first);
  assert_int_equal(rename(temp_path("f.h5"), temp_path("g.h5")), 0);
  fingerprint_of(temp_path("g.h5"), moved);
  assert_string_equal(first, moved);
  free(fixture_shard(temp_path("g.h5"), seed + 1, 40, 3000, 300));
  fingerprint_of(temp_path("g.h5"), other);
  assert_string_not_equal(first, other);
  free(fixture_shard(temp_path("g.h5"), seed, 40, 3001, 300));
  fingerprint_of(temp_path("g.h5"), longer);
  assert_string_not_equal(first, longer);
}

static void test_refusals(void **state) {
  (void)state;
  spt_token_stream *stream = NULL;
  const char *none[] = {temp_path("nothing-*.h5")};
  assert_fails(SPT_ERR_DATA, spt_token_stream_open(none, 1, 300, &stream), "nothing-*.h5");
  free(fixture_shard(temp_path("v1.h5"), seed, 50, 100, 300));
  free(fixture_shard(temp_path("v2.h5"), seed, 50, 100, 301));
  const char *small[] = {temp_path("v1.h5")}, *mixed[] = {temp_path("v?.h5")};
  assert_fails(SPT_ERR_DATA, spt_token_stream_open(small, 1, 299, &stream), "v1.h5", "[model] vocab = 300");
  assert_fails(SPT_ERR_DATA, spt_token_stream_open(mixed, 1, 400, &stream), "v1.h5", "v2.h5", "301");
  const char *half[] = {temp_path("v1.h5"), temp_path("nothing-*.h5")};
  assert_fails(SPT_ERR_DATA, spt_token_stream_open(half, 2, 300, &stream), "nothing-*.h5");
  assert_null(stream);
}

int main(void) {
  seed = unit_test_seed("test_sampler");
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_permutation_is_fixed),  cmocka_unit_test(test_permutation_is_one),
      cmocka_unit_test(test_permutation_is_random), cmocka_unit_test(test_each_window_once_an_epoch),
      cmocka_unit_test(test_stream_concatenates),   cmocka_unit_test(test_windows_tile_targets),
      cmocka_unit_test(test_fingerprint),           cmocka_unit_test(test_refusals),
  };
  return cmocka_run_group_tests(tests, temp_folder_make, temp_folder_remove);
}
