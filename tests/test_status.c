#include "unit_test.h"

#include <pthread.h>

static void codes_are_the_exit_codes(void **state) {
  (void)state;
  assert_int_equal(SPT_OK, 0);
  assert_int_equal(SPT_ERR_USAGE, 2);
  assert_int_equal(SPT_ERR_DATA, 3);
  assert_int_equal(SPT_ERR_DIVERGED, 4);
  assert_int_equal(SPT_ERR_RESOURCE, 5);
  assert_int_equal(SPT_STOPPED, 75);
  assert_string_equal(spt_status_text(SPT_OK), "done");
  assert_non_null(strstr(spt_status_text(SPT_ERR_DIVERGED), "diverged"));
  assert_string_equal(spt_status_text((spt_status)17), "unknown status");
}

static void failure_stores_words_and_place(void **state) {
  (void)state;
  spt_error_clear();
  assert_string_equal(spt_error_message(), "");
  const int line = __LINE__ + 1;
  assert_int_equal(SPT_FAIL(SPT_ERR_DATA, "shard %d of %s", 3, "corpus"), SPT_ERR_DATA);
  assert_string_equal(spt_error_message(), "shard 3 of corpus");
  char end[64];
  snprintf(end, sizeof end, "test_status.c:%d", line);
  const char *origin = spt_error_origin();
  assert_true(strlen(origin) >= strlen(end));
  assert_string_equal(origin + strlen(origin) - strlen(end), end);
  // The old message may be part of the new one.
  SPT_FAIL(SPT_ERR_USAGE, "job.toml: %s", spt_error_message());
  assert_string_equal(spt_error_message(), "job.toml: shard 3 of corpus");
  spt_error_clear();
  assert_string_equal(spt_error_message(), "");
  assert_string_equal(spt_error_origin(), "");
}

static void long_message_is_cut(void **state) {
  (void)state;
  char text[5000];
  memset(text, 'x', sizeof text - 1);
  text[sizeof text - 1] = '\0';
  SPT_FAIL(SPT_ERR_USAGE, "%s", text);
  const size_t length = strlen(spt_error_message());
  assert_true(length > 500 && length < sizeof text - 1);
  assert_memory_equal(spt_error_message(), text, length);
}

static int reached;
static spt_status fails_then_goes_on(spt_status status) {
  SPT_TRY(status);
  reached = 1;
  return SPT_OK;
}
static spt_status cleans_up(spt_status inner) {
  spt_status status = SPT_ERR_DATA;
  SPT_TRY_GOTO(inner, done);
  status = SPT_STOPPED;
done:
  reached = 2;
  return status;
}

static void try_propagates(void **state) {
  (void)state;
  reached = 0;
  assert_int_equal(fails_then_goes_on(SPT_ERR_RESOURCE), SPT_ERR_RESOURCE);
  assert_int_equal(reached, 0);
  assert_int_equal(fails_then_goes_on(SPT_OK), SPT_OK);
  assert_int_equal(reached, 1);
  assert_int_equal(cleans_up(SPT_ERR_DIVERGED), SPT_ERR_DIVERGED);
  assert_int_equal(reached, 2);
  assert_int_equal(cleans_up(SPT_OK), SPT_STOPPED);
}

static void *fails_elsewhere(void *unused) {
  (void)unused;
  char *seen = strdup(spt_error_message());
  SPT_FAIL(SPT_ERR_DATA, "another thread's");
  return seen;
}

static void each_thread_has_its_own(void **state) {
  (void)state;
  SPT_FAIL(SPT_ERR_USAGE, "mine");
  pthread_t thread;
  void *seen = NULL;
  assert_int_equal(pthread_create(&thread, NULL, fails_elsewhere, NULL), 0);
  assert_int_equal(pthread_join(thread, &seen), 0);
  assert_string_equal((char *)seen, "");
  assert_string_equal(spt_error_message(), "mine");
  free(seen);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(codes_are_the_exit_codes), cmocka_unit_test(failure_stores_words_and_place),
      cmocka_unit_test(long_message_is_cut),      cmocka_unit_test(try_propagates),
      cmocka_unit_test(each_thread_has_its_own),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
