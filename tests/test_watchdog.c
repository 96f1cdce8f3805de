/* Whom the watchdog blames. The threads themselves: tests/train/watchdog.sh. */
#include "dist/watchdog.h"

#include "unit_test.h"

#include <math.h>
#include <string.h>

enum { RANKS = 4, ALLOWED = 20, SILENT = 30 };

static const int32_t limit[SPT_PHASES] = {[SPT_PHASE_STARTUP] = 200, [SPT_PHASE_VALIDATION] = 50, [SPT_PHASE_SAVE] = 100,
                                          [SPT_PHASE_COMPUTE] = ALLOWED, [SPT_PHASE_REDUCE] = ALLOWED,
                                          [SPT_PHASE_DECIDE] = ALLOWED, [SPT_PHASE_OPTIMIZER] = ALLOWED,
                                          [SPT_PHASE_GATHER] = ALLOWED, [SPT_PHASE_REFRESH] = ALLOWED,
                                          [SPT_PHASE_END] = 100};

static int judge(const spt_rank_report reports[RANKS], bool *silent_p) {
  return spt_watchdog_judge(reports, RANKS, limit, SILENT, silent_p);
}

static void test_nobody(void **state) {
  (void)state;
  bool silent;
  const spt_rank_report fine[RANKS] = {{7, SPT_PHASE_REDUCE, 5, 0}, {7, SPT_PHASE_COMPUTE, 19, 1}, {7, SPT_PHASE_REDUCE, 3, 2}, {7, SPT_PHASE_REDUCE, 2, 0}};
  assert_int_equal(judge(fine, &silent), -1);
  const spt_rank_report starting[RANKS] = {{0, SPT_PHASE_STARTUP, 199, 0}, {0, SPT_PHASE_STARTUP, 150, 0}, {0, SPT_PHASE_STARTUP, 3, 0}, {0, SPT_PHASE_STARTUP, 2, 0}};
  assert_int_equal(judge(starting, &silent), -1);
}

/* Those that wait for a slow rank have long made no progress: as long as it makes some, nobody is to blame. */
static void test_slow_is_not_stuck(void **state) {
  (void)state;
  bool silent;
  const spt_rank_report slow[RANKS] = {{7, SPT_PHASE_REDUCE, 500, 0}, {7, SPT_PHASE_REDUCE, 490, 0}, {7, SPT_PHASE_COMPUTE, 3, 0}, {7, SPT_PHASE_REDUCE, 495, 0}};
  assert_int_equal(judge(slow, &silent), -1);
}

static void test_stuck(void **state) {
  (void)state;
  bool silent;
  const spt_rank_report stuck[RANKS] = {{7, SPT_PHASE_REDUCE, 20, 0}, {7, SPT_PHASE_REDUCE, 19, 0}, {7, SPT_PHASE_COMPUTE, ALLOWED + 1, 0}, {7, SPT_PHASE_REDUCE, 18, 0}};
  assert_int_equal(judge(stuck, &silent), 2);
  assert_false(silent);
  // a step behind is further behind than a phase
  const spt_rank_report saving[RANKS] = {{7, SPT_PHASE_SAVE, 101, 0}, {7, SPT_PHASE_COMPUTE, 500, 0}, {8, SPT_PHASE_VALIDATION, 500, 0}, {7, SPT_PHASE_REDUCE, 500, 0}};
  assert_int_equal(judge(saving, &silent), 0);
  const spt_rank_report still_saving[RANKS] = {{7, SPT_PHASE_SAVE, 99, 0}, {7, SPT_PHASE_REDUCE, 98, 0}, {7, SPT_PHASE_REDUCE, 98, 0}, {7, SPT_PHASE_REDUCE, 98, 0}};
  assert_int_equal(judge(still_saving, &silent), -1);
}

/* All wait in the same collective: it has hung since the last of them came. */
static void test_hung_collective(void **state) {
  (void)state;
  bool silent;
  spt_rank_report hung[RANKS] = {{7, SPT_PHASE_GATHER, 90, 0}, {7, SPT_PHASE_GATHER, 80, 0}, {7, SPT_PHASE_GATHER, ALLOWED, 0}, {7, SPT_PHASE_GATHER, 70, 0}};
  assert_int_equal(judge(hung, &silent), -1);
  hung[2].idle++;
  assert_int_equal(judge(hung, &silent), 2);
}

static void test_silence_comes_first(void **state) {
  (void)state;
  bool silent;
  const spt_rank_report mute[RANKS] = {{7, SPT_PHASE_COMPUTE, 500, 0}, {7, SPT_PHASE_REDUCE, 2, SILENT + 1}, {7, SPT_PHASE_REDUCE, 2, SILENT}, {7, SPT_PHASE_REDUCE, 2, SILENT + 3}};
  assert_int_equal(judge(mute, &silent), 3);
  assert_true(silent);
}

static void test_without_limit(void **state) {
  (void)state;
  bool silent;
  const int32_t none[SPT_PHASES] = {0};
  const spt_rank_report stuck[RANKS] = {{7, SPT_PHASE_COMPUTE, 1 << 30, 0}, {7, SPT_PHASE_REDUCE, 1 << 30, 0}, {7, SPT_PHASE_REDUCE, 0, 0}, {7, SPT_PHASE_REDUCE, 0, 0}};
  assert_int_equal(spt_watchdog_judge(stuck, RANKS, none, SILENT, &silent), -1);
}

/* Each phase has its own key's seconds. */
static void test_allowances(void **state) {
  (void)state;
  int32_t allowed[SPT_PHASES];
  const spt_watchdog_limits limits = {.timeout = 40, .startup = 100, .save = 200, .validation = 300};
  assert_true(spt_watchdog_allowances(&limits, allowed) == 1); // 20 in the timeout, a second at most
  for (int phase = 0; phase < SPT_PHASES; phase++) {
    const int wanted = phase == SPT_PHASE_STARTUP ? 100 : phase == SPT_PHASE_SAVE || phase == SPT_PHASE_END ? 200 : phase == SPT_PHASE_VALIDATION ? 300 : 40;
    assert_int_equal(allowed[phase], wanted);
  }
  const spt_watchdog_limits close = {.timeout = 4, .startup = 0, .save = 1, .validation = 1e12};
  assert_true(fabs(spt_watchdog_allowances(&close, allowed) - 0.2) < 1e-12);
  assert_int_equal(allowed[SPT_PHASE_COMPUTE], 20);
  assert_int_equal(allowed[SPT_PHASE_STARTUP], 0); // for ever
  assert_int_equal(allowed[SPT_PHASE_SAVE], 5);
  assert_int_equal(allowed[SPT_PHASE_VALIDATION], INT32_MAX);
}

static void expect_text(const spt_rank_report *reports, int first, int end, const char *expected) {
  spt_signal_text text = {0};
  spt_watchdog_describe(reports, first, end, &text);
  assert_int_equal(text.length, strlen(expected));
  assert_memory_equal(text.bytes, expected, text.length);
}

static void test_last_heard(void **state) {
  (void)state;
  enum { MORE = 7 };
  const spt_rank_report reports[MORE] = {{7, SPT_PHASE_COMPUTE, 0, 0}, {6, SPT_PHASE_COMPUTE, 3, 0}, {7, SPT_PHASE_REDUCE, 2, 1}, {7, SPT_PHASE_REDUCE, 1, 0},
                                         {7, SPT_PHASE_COMPUTE, 0, 0}, {7, SPT_PHASE_REDUCE, 0, 0},  {6, SPT_PHASE_REDUCE, 0, 0}};
  expect_text(reports, 1, 4, "; at the last heartbeats: rank 1 after step 6, in forward and backward; ranks 2-3 after step 7, in gradient reduction");
  expect_text(reports, 1, MORE, "; at the last heartbeats: rank 1 after step 6, in forward and backward; ranks 2-3, 5 after step 7, in gradient reduction; "
                                "rank 4 after step 7, in forward and backward; rank 6 after step 6, in gradient reduction");
  expect_text(reports, 0, 1, "; at the last heartbeats: rank 0 after step 7, in forward and backward");
  expect_text(reports, 1, 1, "");
}

/* What does not fit is left out; numbers at both ends of their range. */
static void test_signal_text(void **state) {
  (void)state;
  spt_signal_text text = {0};
  spt_signal_text_number(&text, INT64_MIN);
  spt_signal_text_word(&text, " ");
  spt_signal_text_number(&text, INT64_MAX);
  spt_signal_text_number(&text, 0);
  assert_int_equal(text.length, 20 + 1 + 19 + 1);
  assert_memory_equal(text.bytes, "-9223372036854775808 92233720368547758070", text.length);
  for (int i = 0; i < 1000; i++) spt_signal_text_word(&text, "long word");
  assert_int_equal(text.length, sizeof text.bytes - 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_nobody),          cmocka_unit_test(test_slow_is_not_stuck),
      cmocka_unit_test(test_stuck),           cmocka_unit_test(test_hung_collective),
      cmocka_unit_test(test_silence_comes_first), cmocka_unit_test(test_without_limit),
      cmocka_unit_test(test_allowances),
      cmocka_unit_test(test_last_heard),      cmocka_unit_test(test_signal_text),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
