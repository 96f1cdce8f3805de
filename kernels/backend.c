/* name → backend */
#include "backend_cpu.h"

#include <stdlib.h>
#include <time.h>

spt_status spt_backend_open(spt_backend_kind kind, spt_precision precision, int threads, int local_ranks,
                            spt_backend **backend_p) {
  if (kind == SPT_BACKEND_CUDA)
    return SPT_FAIL(SPT_ERR_USAGE,
                    "device.backend = \"cuda\": this build has no CUDA backend; use \"cpu\" or \"auto\"");
  return spt_cpu_open(precision, threads, local_ranks, backend_p);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Repeats a batch of products, one entry a thread, for about 0.1 s; the best repetition counts. */
static spt_status measure(spt_backend *backend, const spt_gemm_batch *batch) {
  const double flops = 2.0 * (double)batch->batch * (double)batch->m * (double)batch->n * (double)batch->k;
  SPT_TRY(backend->ops->batched_gemm(backend, batch)); // warms the caches up
  SPT_TRY(backend->ops->synchronize(backend));
  double best = 0.0;
  const double began = now();
  do {
    const double start = now();
    SPT_TRY(backend->ops->batched_gemm(backend, batch));
    SPT_TRY(backend->ops->synchronize(backend));
    const double seconds = now() - start;
    if (seconds > 0.0 && flops / seconds > best) best = flops / seconds;
  } while (now() - began < 0.1);
  backend->peak_flops = best;
  return SPT_OK;
}

spt_status spt_backend_measure_peak(spt_backend *backend) {
  enum { EDGE = 768 };
  const int entries = backend->threads;
  const size_t matrix = (size_t)EDGE * EDGE * spt_dtype_size(backend->act), bytes = 3 * (size_t)entries * matrix;
  void **pointers = calloc(3 * (size_t)entries, sizeof *pointers), *slab = NULL;
  if (!pointers) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory to measure the matrix-product rate");
  spt_status status = backend->ops->alloc(backend, bytes, &slab);
  if (status == SPT_OK) {
    for (int i = 0; i < 3 * entries; i++) pointers[i] = (unsigned char *)slab + (size_t)i * matrix;
    const spt_gemm_batch batch = {.batch = entries,
                                  .m = EDGE,
                                  .n = EDGE,
                                  .k = EDGE,
                                  .alpha = 1.0f,
                                  .dtype = backend->act,
                                  .a = (const void *const *)pointers,
                                  .b = (const void *const *)(pointers + entries),
                                  .c = pointers + 2 * entries};
    const spt_backend_profile profile = backend->profile; // a measurement is no training time
    status = measure(backend, &batch);
    backend->profile = profile;
    backend->ops->free(backend, slab, bytes);
  }
  free(pointers);
  return status;
}
