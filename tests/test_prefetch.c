/* Read-ahead: the sampler's order for any number of ranks, exact token counts, resume, failure, and a close that never
 * hangs. */
#include "token_fixture.h"

#include "io/prefetch.h"

#include <sys/stat.h>
#include <unistd.h>

enum { TOKENS = 20011, VOCAB = 700, SEQ_LEN = 19, SEQUENCES = 12 };

static uint64_t seed;
static uint32_t *ids; /* of the shard that every test reads */

static int make_shard(void **state) {
  if (temp_folder_make(state)) return -1;
  ids = fixture_shard(temp_path("data.h5"), seed, 1, TOKENS, VOCAB);
  return 0;
}

static int remove_shard(void **state) {
  free(ids);
  return temp_folder_remove(state);
}

static spt_token_stream *open_stream(void) {
  const char *const pattern = temp_path("data.h5");
  spt_token_stream *stream;
  assert_ok(spt_token_stream_open(&pattern, 1, VOCAB, &stream));
  return stream;
}

static spt_prefetch_options options_for(spt_token_stream *stream, int rank, int ranks, int64_t micro, int64_t step,
                                        int depth) {
  const int64_t count = SEQUENCES / ranks;
  return (spt_prefetch_options){.stream = stream,
                                .seed = seed,
                                .sequences = SEQUENCES,
                                .first = rank * count,
                                .count = count,
                                .micro = micro,
                                .seq_len = SEQ_LEN,
                                .step = step,
                                .depth = depth};
}

static void check_batch(const spt_micro_batch *batch, int64_t windows, int64_t step, int64_t first, int64_t micro) {
  assert_int_equal(batch->step, step);
  assert_int_equal(batch->first_index, first);
  assert_int_equal(batch->sequences, micro);
  for (int64_t i = 0; i < micro; i++) {
    const int64_t begin = spt_sample_window(seed, windows, SEQUENCES, step, first + i) * SEQ_LEN;
    for (int64_t t = 0; t < SEQ_LEN; t++) {
      assert_int_equal(batch->ids[i * SEQ_LEN + t], ids[begin + t]);
      assert_int_equal(batch->targets[i * SEQ_LEN + t], ids[begin + t + 1]);
    }
  }
}

/* Steps [from, to) of one rank; returns the tokens read. The thread reads ahead of what is taken, by at most depth
 * micro-batches. */
static void run_rank(int rank, int ranks, int64_t micro, int64_t from, int64_t to, int depth, bool ends) {
  spt_token_stream *stream = open_stream();
  const int64_t windows = spt_token_stream_windows(stream, SEQ_LEN);
  spt_prefetch_options options = options_for(stream, rank, ranks, micro, from, depth);
  spt_prefetch *prefetch;
  options.end_step = ends ? to : 0;
  assert_ok(spt_prefetch_open(&options, &prefetch));
  int64_t taken = 0;
  for (int64_t step = from; step < to; step++)
    for (int64_t first = options.first; first < options.first + options.count; first += micro) {
      spt_micro_batch batch;
      assert_ok(spt_prefetch_next(prefetch, &batch));
      check_batch(&batch, windows, step, first, micro);
      taken++;
    }
  const int64_t batch_tokens = micro * (SEQ_LEN + 1), read = spt_prefetch_tokens_read(prefetch);
  if (ends) { /* exactly the rank's share, and no more */
    spt_micro_batch none;
    assert_int_equal(read, (to - from) * options.count * (SEQ_LEN + 1));
    assert_fails(SPT_ERR_USAGE, spt_prefetch_next(prefetch, &none), "past the last");
  }
  assert_in_range(read, taken * batch_tokens, (taken + depth) * batch_tokens);
  assert_true(spt_prefetch_wait_seconds(prefetch) >= 0);
  spt_prefetch_close(&prefetch);
  /* after close the thread is gone: whole micro-batches only, never more than depth ahead */
  assert_int_equal(spt_token_stream_tokens_read(stream) % batch_tokens, 0);
  assert_in_range(spt_token_stream_tokens_read(stream), taken * batch_tokens, (taken + depth) * batch_tokens);
  spt_token_stream_close(&stream);
}

static void test_order_on_any_ranks(void **state) {
  (void)state;
  const int64_t steps = 1 + (TOKENS / SEQ_LEN / SEQUENCES) + 5; /* into the second epoch */
  for (int ranks = 1; ranks <= 4; ranks++)
    for (int rank = 0; rank < ranks; rank++) {
      const int64_t count = SEQUENCES / ranks,
                    micro = count % 2 || fixture_below(seed, 5, (uint64_t)(8 * ranks + rank), 2) ? count : count / 2;
      run_rank(rank, ranks, micro, 0, steps, 2 + (int)fixture_below(seed, 6, (uint64_t)(8 * ranks + rank), 4), true);
    }
}

static void test_resume(void **state) {
  (void)state;
  const int64_t step = fixture_below(seed, 7, 0, 1000000);
  run_rank(0, 1, 3, step, step + 20, 3, false);
  run_rank(1, 2, 2, step, step + 20, 2, true);
}

/* A full ring stops the thread: exactly depth micro-batches are read when none is taken, and exactly one more for each
 * that is. */
static void test_reads_no_more_than_depth(void **state) {
  (void)state;
  enum { DEPTH = 3, MICRO = 2 };
  spt_token_stream *stream = open_stream();
  const spt_prefetch_options options = options_for(stream, 0, 1, MICRO, 0, DEPTH);
  spt_prefetch *prefetch;
  assert_ok(spt_prefetch_open(&options, &prefetch));
  for (int64_t taken = 0; taken < 10; taken++) {
    const int64_t expected = (taken + DEPTH) * MICRO * (SEQ_LEN + 1);
    for (int wait = 0; wait < 10000 && spt_prefetch_tokens_read(prefetch) < expected; wait++) usleep(1000);
    assert_int_equal(spt_prefetch_tokens_read(prefetch), expected);
    usleep(2000); /* time for a thread that does not stop */
    assert_int_equal(spt_prefetch_tokens_read(prefetch), expected);
    spt_micro_batch batch;
    assert_ok(spt_prefetch_next(prefetch, &batch));
  }
  spt_prefetch_close(&prefetch);
  spt_token_stream_close(&stream);
}

static void test_close_at_any_time(void **state) {
  (void)state;
  spt_prefetch *prefetch = NULL;
  spt_prefetch_close(&prefetch);
  for (uint64_t i = 0; i < 200; i++) {
    spt_token_stream *stream = open_stream();
    const spt_prefetch_options options = options_for(stream, 0, 1, 4, 0, 2 + (int)(i % 3));
    assert_ok(spt_prefetch_open(&options, &prefetch));
    for (int64_t k = fixture_below(seed, 8, i, 6); k > 0; k--) {
      spt_micro_batch batch;
      assert_ok(spt_prefetch_next(prefetch, &batch));
    }
    if (i % 4 == 0) usleep(500); /* the thread waits on a full ring */
    spt_prefetch_close(&prefetch);
    assert_null(prefetch);
    spt_token_stream_close(&stream);
  }
}

/* The file is damaged behind the stream's back: what was read before is served, then the failure, again and again;
 * close returns. */
static void test_failure_reaches_the_consumer(void **state) {
  (void)state;
  uint32_t *own = fixture_shard(temp_path("broken.h5"), seed, 20, 400000, VOCAB);
  const char *const pattern = temp_path("broken.h5");
  spt_token_stream *stream;
  assert_ok(spt_token_stream_open(&pattern, 1, VOCAB, &stream));
  assert_int_equal(truncate(pattern, 300000), 0);
  const spt_prefetch_options options = options_for(stream, 0, 1, 1, 0, 2);
  spt_prefetch *prefetch;
  spt_micro_batch batch;
  assert_ok(spt_prefetch_open(&options, &prefetch));
  int64_t good = 0;
  while (good < 100000 && spt_prefetch_next(prefetch, &batch) == SPT_OK) good++;
  assert_true(good < 100000);
  assert_fails(SPT_ERR_DATA, spt_prefetch_next(prefetch, &batch), "broken.h5");
  assert_fails(SPT_ERR_DATA, spt_prefetch_next(prefetch, &batch), "broken.h5");
  spt_prefetch_close(&prefetch);
  spt_token_stream_close(&stream);
  free(own);
}

static void test_refusals(void **state) {
  (void)state;
  spt_token_stream *stream = open_stream();
  spt_prefetch *prefetch = NULL;
  spt_prefetch_options options = options_for(stream, 0, 1, 5, 0, 2); /* 5 does not divide 12 */
  assert_fails(SPT_ERR_USAGE, spt_prefetch_open(&options, &prefetch), "micro-batches of 5");
  options = options_for(stream, 0, 1, 4, 0, 2);
  options.seq_len = TOKENS;
  assert_fails(SPT_ERR_DATA, spt_prefetch_open(&options, &prefetch), "data.h5", "20011", "20012");
  assert_null(prefetch);
  spt_token_stream_close(&stream);
}

int main(void) {
  seed = unit_test_seed("test_prefetch");
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_order_on_any_ranks),           cmocka_unit_test(test_resume),
      cmocka_unit_test(test_reads_no_more_than_depth),     cmocka_unit_test(test_close_at_any_time),
      cmocka_unit_test(test_failure_reaches_the_consumer), cmocka_unit_test(test_refusals),
  };
  return cmocka_run_group_tests(tests, make_shard, remove_shard);
}
