/* For unit tests: cmocka with its prerequisites, and the random seed. */
#ifndef SPT_UNIT_TEST_H
#define SPT_UNIT_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/rng.h"
#include "core/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* SPT_TEST_SEED, else fresh; printed, so that a failure can be run again. */
static inline uint64_t unit_test_seed(const char *test) {
  const char *given = getenv("SPT_TEST_SEED");
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  const uint64_t seed = given ? strtoull(given, NULL, 10) : (uint64_t)now.tv_sec * 1000003 + (uint64_t)now.tv_nsec;
  printf("%s: SPT_TEST_SEED=%llu\n", test, (unsigned long long)seed);
  return seed;
}

#define assert_ok(expression)                                                                                          \
  do {                                                                                                                 \
    if ((expression) != SPT_OK) fail_msg("%s: %s", #expression, spt_error_message());                                  \
  } while (0)

/* Fails with `code`, and the message holds every one of the given parts. */
#define assert_fails(code, expression, ...)                                                                            \
  do {                                                                                                                 \
    const char *const parts_[] = {__VA_ARGS__};                                                                        \
    spt_error_clear();                                                                                                 \
    assert_int_equal((expression), (code));                                                                            \
    for (size_t i_ = 0; i_ < sizeof parts_ / sizeof parts_[0]; i_++) {                                                 \
      if (!strstr(spt_error_message(), parts_[i_])) fail_msg("\"%s\" is not in: %s", parts_[i_], spt_error_message()); \
    }                                                                                                                  \
    assert_null(strchr(spt_error_message(), '\n'));                                                                    \
  } while (0)

#endif
