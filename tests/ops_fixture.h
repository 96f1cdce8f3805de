/* Conformance of a backend's ops (ops_device.h): runs a case in fp32 and bf16 with 1, 2 and 3 threads, twice each,
 * against the reference. Outputs start as NaN, every buffer is followed by a canary, all outputs must be the same bits
 * whatever the threads, and the second run must create no primitive; where launches are counted, each run has some. */
#ifndef SPT_OPS_FIXTURE_H
#define SPT_OPS_FIXTURE_H

#include "ops_device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

typedef struct ops_fixture {
  spt_backend *backend;
  spt_dtype act;
  const char *name; /* of the running case */
  uint64_t seed, counter;
  uint64_t hash; /* of every output fetched */
  bool check;    /* compare with the reference; other runs need only be the same bits */
  int buffer_count;
  struct {
    void *memory; /* a host copy's or the backend's */
    size_t bytes;
    bool host;
  } buffers[128];
} ops_fixture;

/* The run's seed: SPT_TEST_SEED or fresh; printed once. */
uint64_t ops_seed(void);
/* An integer in [low, high], and values of mean 0 and deviation std: functions of seed and the number of draws before.
 */
int64_t ops_draw(ops_fixture *f, int64_t low, int64_t high);
double *ops_random(ops_fixture *f, int64_t count, double std);
double *ops_zeros(ops_fixture *f, int64_t count);
/* Backend memory holding the values as `dtype`; `values` are rounded alike, so that the reference sees what the op
 * sees. */
void *ops_put(ops_fixture *f, double *values, int64_t count, spt_dtype dtype);
/* The type of what a compute copy is made from: fp32, or, drawn, bf16 where the backend takes it. */
spt_dtype ops_draw_source(ops_fixture *f);
int32_t *ops_put_ids(ops_fixture *f, const int32_t *ids, int64_t count);
spt_control *ops_put_control(ops_fixture *f, spt_control control);
/* Backend memory full of NaN. */
void *ops_poison(ops_fixture *f, int64_t count, spt_dtype dtype);
void *ops_poison_bytes(ops_fixture *f, size_t bytes);
/* Matrices side by side by row, (rows, Σ widths), as matrices one after another, and back; the fixture frees. */
double *ops_split(ops_fixture *f, const double *side_by_side, int64_t rows, int count, const int64_t *widths);
double *ops_join(ops_fixture *f, const double *one_by_one, int64_t rows, int count, const int64_t *widths);
/* Fetches and adds to the hash. */
double *ops_get(ops_fixture *f, const void *memory, int64_t count, spt_dtype dtype);
/* Fails unless |got − want|₂ ≤ tolerance·|want|₂ and no element is off by more than 8·tolerance·max|want|. The
 * tolerance of fp32 is 1e-5, of bf16 1.2e-2 (about six roundings of 2^-9; more for few elements), each times `factor`.
 */
void ops_check(const ops_fixture *f, const char *what, const double *got, const double *want, int64_t count,
               spt_dtype arithmetic, double factor);
#define OPS_OK(call)                                                                                                   \
  do {                                                                                                                 \
    if ((call) != SPT_OK) fail_msg("%s: %s", #call, spt_error_message());                                              \
  } while (0)

/* Runs `body` `repetitions` times with different draws. */
void ops_run(const char *name, void (*body)(ops_fixture *f), int repetitions);
/* True, and says why, where the device is not here: the test program then ends with OPS_SKIPPED. */
bool ops_absent(void);
enum { OPS_SKIPPED = 77 };
/* The status of a test program: failed tests, or kernels (as launched, ops_device.h) that it should have launched and did
 * not. */
#define OPS_MAIN(tests, kernels)                                                                                        \
  (ops_absent() ? OPS_SKIPPED                                                                                           \
                : cmocka_run_group_tests(tests, NULL, NULL) + ops_device_unused(kernels, sizeof(kernels) / sizeof *(kernels)))

#endif
