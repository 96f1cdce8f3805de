/* name → backend. SPT_HAVE_CUDA: the CUDA backend is linked in; SPT_NO_CPU: the CPU's is not (the GPU simulator's programs). */
#ifdef SPT_HAVE_CUDA
#include "backend_cuda.h"
#endif
#ifndef SPT_NO_CPU
#include "backend_cpu.h"
#endif

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Why AUTO chose: behind what the backend says of itself. */
static void add_reason(spt_backend *backend, const char *reason) {
  const size_t length = strlen(backend->description);
  snprintf(backend->description + length, sizeof backend->description - length, "%s", reason);
}

#ifdef SPT_HAVE_CUDA
/* *done_p false: the CPU it is, for `reason`. */
static spt_status open_cuda(spt_backend_kind kind, spt_precision precision, int threads, int local_ranks, spt_backend **backend_p,
                            bool *done_p, char *reason, size_t size) {
  char why[128];
  const bool present = kind != SPT_BACKEND_CPU && spt_cuda_present(why, sizeof why);
  *done_p = kind == SPT_BACKEND_CUDA || present;
  if (*done_p) {
    SPT_TRY(spt_cuda_open(precision, threads, local_ranks, backend_p));
    if (kind == SPT_BACKEND_AUTO) add_reason(*backend_p, ", by auto: it is present");
  } else if (kind == SPT_BACKEND_AUTO)
    snprintf(reason, size, ", by auto: no CUDA device (%s)", why);
  return SPT_OK;
}
static spt_status choose_cuda(spt_backend_kind kind, int local_rank) {
  return kind == SPT_BACKEND_CPU ? SPT_OK : spt_cuda_choose(local_rank);
}
#else
static spt_status choose_cuda(spt_backend_kind kind, int local_rank) {
  (void)kind, (void)local_rank;
  return SPT_OK;
}
static spt_status open_cuda(spt_backend_kind kind, spt_precision precision, int threads, int local_ranks, spt_backend **backend_p,
                            bool *done_p, char *reason, size_t size) {
  (void)precision, (void)threads, (void)local_ranks, (void)backend_p, (void)reason, (void)size;
  *done_p = false;
  if (kind != SPT_BACKEND_CUDA) return SPT_OK;
  return SPT_FAIL(SPT_ERR_USAGE, "device.backend = \"cuda\": this build has no CUDA backend; use \"cpu\" or \"auto\", or build it where the "
                                 "CUDA toolkit is (meson setup -Dcuda=enabled -Dtoolkit=FOLDER)");
}
#endif

spt_status spt_backend_open(spt_backend_kind kind, spt_precision precision, int threads, int local_ranks,
                            spt_backend **backend_p) {
  bool done;
  char reason[192] = "";
  SPT_TRY(open_cuda(kind, precision, threads, local_ranks, backend_p, &done, reason, sizeof reason));
  if (done) return SPT_OK;
#ifdef SPT_NO_CPU
  return SPT_FAIL(SPT_ERR_USAGE, "device.backend = \"cpu\": this build has no CPU backend");
#else
  SPT_TRY(spt_cpu_open(precision, threads, local_ranks, backend_p));
  add_reason(*backend_p, reason);
  return SPT_OK;
#endif
}

spt_status spt_backend_choose_device(spt_backend_kind kind, int local_rank) {
  return choose_cuda(kind, local_rank);
}

/* The products that are measured: `entries` of edge `edge`, large enough for the device's full rate. A GPU's backend fills up a batch of fewer. */
enum { PEAK_ENTRIES_MAX = 8 };
static int64_t product_edge(const spt_backend *backend) {
#ifdef SPT_SIMGPU
  (void)backend;
  return 32;
#else
  return backend->host_memory ? 768 : 4096;
#endif
}

spt_status spt_backend_open_measure(spt_backend_kind kind, spt_precision precision, int threads, int local_ranks, spt_backend **backend_p) {
#ifdef SPT_HAVE_CUDA
  char why[128];
  if (kind == SPT_BACKEND_CUDA && !spt_cuda_present(why, sizeof why)) return spt_cuda_open_measure(precision, backend_p);
#endif
  return spt_backend_open(kind, precision, threads, local_ranks, backend_p);
}

size_t spt_backend_own_bytes(const spt_backend *backend, const spt_model_config *model, const spt_optimizer_config *optimizer) {
#ifdef SPT_HAVE_CUDA
  if (!backend->host_memory) {
    return spt_cuda_own_bytes(backend->act, model, optimizer, product_edge(backend));
  }
#endif
  (void)backend, (void)model, (void)optimizer;
  return 0;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* What is measured: an op and the work of one call, in FLOPs or bytes. */
typedef struct measured_op {
  spt_status (*run)(spt_backend *backend, const void *arguments);
  const void *arguments;
  double work;
} measured_op;

static spt_status run_to_end(spt_backend *backend, const measured_op *op) {
  SPT_TRY(op->run(backend, op->arguments));
  return backend->ops->synchronize(backend);
}

/* The best rate that two of many calls reached (one alone may be a slip of the clocks). It must have stood for QUIET
 * seconds, and LIMIT ends the search in any case. */
static spt_status measure(spt_backend *backend, const measured_op *op, double *rate_p) {
#ifdef SPT_SIMGPU
  const double QUIET = 0.0, LIMIT = 0.0, MORE = 1.01; // seconds mean nothing there, and every run launches the same
#else
  const double QUIET = 0.1, LIMIT = 0.5, MORE = 1.01;
#endif
  SPT_TRY(run_to_end(backend, op)); // warms the caches up
  const double began = now();
  double best = 0.0, second = 0.0, improved = began, end = began;
  while (end - began < LIMIT && end - improved < QUIET) {
    const double start = now();
    SPT_TRY(run_to_end(backend, op));
    end = now();
    const double rate = end > start ? op->work / (end - start) : 0.0;
    if (rate > MORE * second) improved = end;
    second = rate > best ? best : rate > second ? rate : second;
    if (rate > best) best = rate;
  }
  *rate_p = second > 0.0 ? second : best;
  return SPT_OK;
}

static spt_status run_product(spt_backend *backend, const void *arguments) {
  return backend->ops->batched_gemm(backend, arguments);
}

static spt_status measure_flops(spt_backend *backend) {
  const int64_t edge = product_edge(backend), entries = backend->host_memory ? 1 : PEAK_ENTRIES_MAX;
  const size_t matrix = (size_t)(edge * edge) * spt_dtype_size(backend->act);
  void *slab = NULL;
  const size_t bytes = (size_t)(2 + entries) * matrix;
  SPT_TRY(backend->ops->alloc(backend, bytes, &slab));
  const void *a[PEAK_ENTRIES_MAX], *b[PEAK_ENTRIES_MAX];
  void *c[PEAK_ENTRIES_MAX];
  for (int64_t i = 0; i < entries; i++) {
    a[i] = slab;
    b[i] = (unsigned char *)slab + matrix;
    c[i] = (unsigned char *)slab + (size_t)(2 + i) * matrix;
  }
  const spt_gemm_batch batch = {
      .batch = entries, .m = edge, .n = edge, .k = edge, .alpha = 1.0f, .dtype = backend->act, .a = a, .b = b, .c = c};
  const measured_op op = {run_product, &batch, 2.0 * (double)(entries * edge * edge * edge)};
  const spt_status status = measure(backend, &op, &backend->peak_flops);
  backend->ops->free(backend, slab, bytes);
  backend->peak_flops *= backend->processors;
  return status;
}

typedef struct update_arguments {
  int count;
  const spt_factor_entry *entries;
  const spt_control *control;
} update_arguments;

static spt_status run_update(spt_backend *backend, const void *arguments) {
  const update_arguments *update = arguments;
  return backend->ops->factor_update(backend, update->count, update->entries, 0.0f, 0.0f, false, SPT_F32,
                                     update->control);
}

/* w ← w − rho·x on two fp32 arrays, together far larger than any last-level cache. 12 bytes an element count: w and x
 * are read, w is written; nothing is written that was not read, so no cache line moves uncounted. */
static spt_status measure_bytes(spt_backend *backend) {
  enum { PIECES = 4 }; // a thread's share, so that a late thread costs little
  const size_t least = 64u << 20, per_thread = 32u << 20, wanted = per_thread * (size_t)backend->threads;
  const int count = PIECES * backend->threads;
  const int64_t elements = (int64_t)((wanted > least ? wanted : least) / 2 / sizeof(float)) / count;
  const size_t bytes = 2 * (size_t)(count * elements) * sizeof(float);
  spt_factor_entry *entries = calloc((size_t)count, sizeof *entries);
  if (!entries) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory to measure the memory's rate");
  void *slab = NULL, *control = NULL;
  spt_status status = backend->ops->alloc(backend, bytes, &slab);
  if (status == SPT_OK) status = backend->ops->alloc(backend, sizeof(spt_control), &control);
  const spt_control apply = {.clip = 1.0f, .apply = 1.0f};
  if (status == SPT_OK) status = backend->ops->upload(backend, control, &apply, sizeof apply);
  if (status == SPT_OK) {
    float *w = slab, *x = w + count * elements;
    for (int i = 0; i < count; i++)
      entries[i] = (spt_factor_entry){.rows = 1, .cols = elements, .w = w + i * elements, .x = x + i * elements};
    const update_arguments arguments = {count, entries, control};
    const measured_op op = {run_update, &arguments, 12.0 * (double)(count * elements)};
    status = measure(backend, &op, &backend->peak_bytes);
  }
  if (control) backend->ops->free(backend, control, sizeof(spt_control));
  if (slab) backend->ops->free(backend, slab, bytes);
  free(entries);
  return status;
}

spt_status spt_backend_measure_peak(spt_backend *backend) {
  const spt_backend_profile profile = backend->profile; // a measurement is no training time
  spt_status status = measure_flops(backend);
  if (status == SPT_OK && backend->profiling) status = measure_bytes(backend);
  backend->profile = profile;
  return status;
}
