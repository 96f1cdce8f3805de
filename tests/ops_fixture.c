#include "ops_fixture.h"

#include "core/rng.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CANARY = 64 };

uint64_t ops_seed(void) {
  static uint64_t seed;
  if (seed) return seed;
  const char *given = getenv("SPT_TEST_SEED");
  struct timespec time;
  clock_gettime(CLOCK_REALTIME, &time);
  seed = given ? strtoull(given, NULL, 0) : (uint64_t)time.tv_sec * 1000000007u + (uint64_t)time.tv_nsec;
  if (!seed) seed = 1;
  print_message("seed: SPT_TEST_SEED=%" PRIu64 "\n", seed);
  return seed;
}

bool ops_absent(void) {
  const char *why = ops_device_absent();
  if (why) printf("not run: %s\n", why);
  return why != NULL;
}

int64_t ops_draw(ops_fixture *f, int64_t low, int64_t high) {
  return low + (int64_t)(spt_random_bits(f->seed, f->counter++, 0) % (uint64_t)(high - low + 1));
}

static void *track(ops_fixture *f, void *memory, size_t bytes, bool host) {
  assert_non_null(memory);
  assert_true(f->buffer_count < (int)(sizeof f->buffers / sizeof *f->buffers));
  f->buffers[f->buffer_count].memory = memory;
  f->buffers[f->buffer_count].bytes = bytes;
  f->buffers[f->buffer_count++].host = host;
  return memory;
}

double *ops_zeros(ops_fixture *f, int64_t count) {
  return track(f, calloc((size_t)count + 1, sizeof(double)), 0, true);
}

double *ops_random(ops_fixture *f, int64_t count, double std) {
  double *values = ops_zeros(f, count);
  float *narrow = malloc(((size_t)count + 1) * sizeof *narrow);
  assert_non_null(narrow);
  spt_random_normal(f->seed, f->counter++, 0, count, std, narrow);
  for (int64_t i = 0; i < count; i++) values[i] = (double)narrow[i];
  free(narrow);
  return values;
}

void *ops_poison_bytes(ops_fixture *f, size_t bytes) {
  void *memory = NULL, *host = malloc(bytes + CANARY);
  assert_non_null(host);
  OPS_OK(f->backend->ops->alloc(f->backend, bytes + CANARY, &memory));
  assert_int_equal((uintptr_t)memory % 64, 0);
  memset(host, 0xFF, bytes); // NaN in fp32 and in bf16
  memset((unsigned char *)host + bytes, 0xA5, CANARY);
  OPS_OK(f->backend->ops->upload(f->backend, memory, host, bytes + CANARY));
  free(host);
  ops_device_forbid((unsigned char *)memory + bytes, CANARY);
  return track(f, memory, bytes, false);
}

void *ops_poison(ops_fixture *f, int64_t count, spt_dtype dtype) {
  return ops_poison_bytes(f, (size_t)count * spt_dtype_size(dtype));
}

/* Round to nearest even by frexp and nearbyint, another way than the kernels'. */
static uint16_t bf16_of(double value) {
  int exponent;
  const double mantissa = frexp(value, &exponent);
  const float rounded = (float)ldexp(nearbyint(ldexp(mantissa, 8)), exponent - 8);
  uint32_t bits;
  memcpy(&bits, &rounded, sizeof bits);
  return (uint16_t)(bits >> 16);
}
static double double_of(uint16_t value) {
  const uint32_t bits = (uint32_t)value << 16;
  float single;
  memcpy(&single, &bits, sizeof single);
  return (double)single;
}

void *ops_put(ops_fixture *f, double *values, int64_t count, spt_dtype dtype) {
  void *memory = ops_poison(f, count, dtype), *host = malloc((size_t)count * sizeof(float) + 1);
  assert_non_null(host);
  for (int64_t i = 0; i < count; i++)
    if (dtype == SPT_BF16) {
      ((uint16_t *)host)[i] = bf16_of(values[i]);
      values[i] = double_of(((uint16_t *)host)[i]);
    } else {
      ((float *)host)[i] = (float)values[i];
      values[i] = (double)((float *)host)[i];
    }
  OPS_OK(f->backend->ops->upload(f->backend, memory, host, (size_t)count * spt_dtype_size(dtype)));
  free(host);
  return memory;
}

spt_dtype ops_draw_source(ops_fixture *f) {
  const bool copies = ops_draw(f, 0, 1);
  return copies && f->act == SPT_BF16 && !f->backend->host_memory ? SPT_BF16 : SPT_F32;
}

int32_t *ops_put_ids(ops_fixture *f, const int32_t *ids, int64_t count) {
  int32_t *memory = ops_poison(f, count, SPT_F32);
  OPS_OK(f->backend->ops->upload(f->backend, memory, ids, (size_t)count * sizeof *ids));
  return memory;
}

spt_control *ops_put_control(ops_fixture *f, spt_control control) {
  spt_control *memory = ops_poison_bytes(f, sizeof control);
  OPS_OK(f->backend->ops->upload(f->backend, memory, &control, sizeof control));
  return memory;
}

static double *reorder(ops_fixture *f, const double *from, int64_t rows, int count, const int64_t *widths, bool split) {
  int64_t all = 0, before = 0;
  for (int j = 0; j < count; j++) all += widths[j];
  double *to = ops_zeros(f, rows * all);
  for (int j = 0; j < count; before += widths[j], j++)
    for (int64_t i = 0; i < rows; i++)
      for (int64_t c = 0; c < widths[j]; c++) {
        const int64_t side = i * all + before + c, one = rows * before + i * widths[j] + c;
        to[split ? one : side] = from[split ? side : one];
      }
  return to;
}
double *ops_split(ops_fixture *f, const double *side_by_side, int64_t rows, int count, const int64_t *widths) {
  return reorder(f, side_by_side, rows, count, widths, true);
}
double *ops_join(ops_fixture *f, const double *one_by_one, int64_t rows, int count, const int64_t *widths) {
  return reorder(f, one_by_one, rows, count, widths, false);
}

double *ops_get(ops_fixture *f, const void *memory, int64_t count, spt_dtype dtype) {
  const size_t bytes = (size_t)count * spt_dtype_size(dtype);
  unsigned char *host = malloc(bytes + 1);
  assert_non_null(host);
  OPS_OK(f->backend->ops->download(f->backend, host, memory, bytes));
  for (size_t i = 0; i < bytes; i++) f->hash = (f->hash ^ host[i]) * 0x100000001B3u;
  double *values = ops_zeros(f, count);
  for (int64_t i = 0; i < count; i++)
    values[i] = dtype == SPT_BF16 ? double_of(((uint16_t *)(void *)host)[i]) : (double)((float *)(void *)host)[i];
  free(host);
  return values;
}

void ops_check(const ops_fixture *f, const char *what, const double *got, const double *want, int64_t count,
               spt_dtype arithmetic, double factor) {
  if (!f->check) return;
  const double few = arithmetic == SPT_BF16 ? 1.0 + 3.0 / sqrt((double)count) : 1.0; // few elements may all cancel
  const double tolerance = factor * few * (arithmetic == SPT_BF16 ? 1.2e-2 : 1e-5);
  double error = 0.0, size = 0.0, worst = 0.0, largest = 0.0;
  int64_t where = 0;
  for (int64_t i = 0; i < count; i++) {
    const double off = fabs(got[i] - want[i]);
    error += off * off;
    size += want[i] * want[i];
    largest = fmax(largest, fabs(want[i]));
    if (!(off <= worst)) worst = off, where = i; // a NaN counts as worst
  }
  if (!(sqrt(error) <= tolerance * sqrt(size) + 1e-30) || !(worst <= 8.0 * tolerance * largest + 1e-30))
    fail_msg("%s (%s, seed %" PRIu64
             "): %s differs: relative error %.3g, worst at %lld of %lld: %.9g, expected %.9g (tolerance %.3g)",
             f->name, f->backend->description, f->seed, what, sqrt(error / size), (long long)where, (long long)count,
             got[where], want[where], tolerance);
}

static void release(ops_fixture *f) {
  for (int i = 0; i < f->buffer_count; i++) {
    void *memory = f->buffers[i].memory;
    if (f->buffers[i].host) {
      free(memory);
      continue;
    }
    unsigned char canary[CANARY];
    ops_device_allow((unsigned char *)memory + f->buffers[i].bytes, CANARY);
    OPS_OK(f->backend->ops->download(f->backend, canary, (unsigned char *)memory + f->buffers[i].bytes, CANARY));
    for (int k = 0; k < CANARY; k++)
      if (canary[k] != 0xA5)
        fail_msg("%s: wrote past the end of buffer %d (%zu bytes)", f->name, i, f->buffers[i].bytes);
    f->backend->ops->free(f->backend, memory, f->buffers[i].bytes + CANARY);
  }
  f->buffer_count = 0;
}

static uint64_t run_once(spt_backend *backend, const char *name, uint64_t seed, bool check,
                         void (*body)(ops_fixture *f)) {
  ops_fixture f = {
      .backend = backend, .act = backend->act, .name = name, .seed = seed, .check = check, .hash = 0xCBF29CE484222325u};
  const int64_t launches = ops_device_launches();
  body(&f);
  release(&f);
  if (launches >= 0 && ops_device_launches() == launches) fail_msg("%s: launched nothing", name);
  return f.hash;
}

void ops_run(const char *name, void (*body)(ops_fixture *f), int repetitions) {
  const spt_precision precisions[] = {SPT_PRECISION_FP32, SPT_PRECISION_BF16};
  for (int p = 0; p < 2; p++)
    for (int threads = 1; threads <= ops_device_threads(); threads++) {
      spt_backend *backend = NULL;
      OPS_OK(ops_device_open(precisions[p], threads, &backend));
      if (p == 1 && threads == 1) print_message("%s: %s\n", name, backend->description);
      for (int i = 0; i < repetitions; i++) {
        static uint64_t one_thread[64];
        assert_true(i < 64);
        const uint64_t seed = ops_seed() + (uint64_t)i * 1000003u,
                       hash = run_once(backend, name, seed, threads == 1, body);
        if (threads == 1) one_thread[i] = hash;
        if (hash != one_thread[i])
          fail_msg("%s (%s, seed %" PRIu64 "): not the same bits as with 1 thread", name, backend->description, seed);
        const int64_t misses = ops_device_made(backend);
        if (run_once(backend, name, seed, false, body) != hash)
          fail_msg("%s (%s, seed %" PRIu64 "): not the same bits when run again", name, backend->description, seed);
        if (ops_device_made(backend) != misses)
          fail_msg("%s (%s, seed %" PRIu64 "): allocated when run again", name, backend->description, seed);
      }
      backend->ops->close(&backend);
      assert_null(backend);
    }
}
