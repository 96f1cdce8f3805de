/* The optimizer's ops on a GPU: factors go to the kernels by value, a fixed number at a time. Decisions are read from control by the kernels. */
#include "backend_cuda.h"

#include "cuda_kernels.h"

/* Entries from `first` on, as many as one launch takes: even, so that pairs stay together. */
static spt_cuda_factors factors_from(int count, const spt_factor_entry *entries, int first) {
  spt_cuda_factors factors = {.count = count - first < SPT_CUDA_FACTORS ? count - first : SPT_CUDA_FACTORS};
  for (int i = 0; i < factors.count; i++) factors.entry[i] = entries[first + i];
  return factors;
}

static int64_t count_elements(int count, const spt_factor_entry *entries, int64_t *largest_p) {
  int64_t sum = 0;
  *largest_p = 1;
  for (int i = 0; i < count; i++) {
    const int64_t elements = entries[i].rows * entries[i].cols;
    sum += elements;
    if (elements > *largest_p) *largest_p = elements;
  }
  return sum;
}

spt_status spt_cuda_gradient_stats(spt_backend *backend, int64_t count, const float *g, int group, spt_control *control) {
  spt_cuda *cuda;
  void *scratch;
  SPT_TRY(spt_cuda_begin(backend, &cuda));
  SPT_TRY(spt_cuda_scratch(cuda, SPT_CUDA_STATS_BYTES(count), &scratch));
  SPT_CUDA(spt_cuda_stats(count, g, group, scratch, control, cuda->stream));
  return spt_cuda_end(cuda, spt_cost_flat(SPT_OP_GRADIENT_STATS, count, 4, 0));
}

spt_status spt_cuda_sum_values(spt_backend *backend, int64_t count, const float *values, double *sum) {
  SPT_CUDA(spt_cuda_add_sum(count, values, sum, ((spt_cuda *)backend)->stream));
  return SPT_OK;
}
spt_status spt_cuda_decide(spt_backend *backend, double grad_clip, spt_control *control) {
  SPT_CUDA(spt_cuda_decision(grad_clip, control, ((spt_cuda *)backend)->stream));
  return SPT_OK;
}

spt_status spt_cuda_factor_momentum(spt_backend *backend, int count, const spt_factor_entry *entries, float beta, bool normalize,
                                    spt_dtype dtype, const spt_control *control) {
  spt_cuda *cuda;
  void *scratch;
  int64_t largest;
  SPT_TRY(spt_cuda_begin(backend, &cuda));
  const int64_t elements = count_elements(count, entries, &largest);
  const int64_t chunks = (largest + SPT_CUDA_FACTOR_CHUNK - 1) / SPT_CUDA_FACTOR_CHUNK;
  SPT_TRY(spt_cuda_scratch(cuda, (size_t)(SPT_CUDA_FACTORS * chunks) * sizeof(double), &scratch));
  for (int first = 0; first < count; first += SPT_CUDA_FACTORS) {
    const spt_cuda_factors factors = factors_from(count, entries, first);
    SPT_CUDA(spt_cuda_momentum(&factors, beta, normalize, dtype, scratch, control, cuda->stream));
  }
  return spt_cuda_end(cuda, spt_cost_flat(SPT_OP_MOMENTUM, elements, 8, 4 + (entries[0].x ? (int)spt_dtype_size(dtype) : 0)));
}

spt_status spt_cuda_power_iteration(spt_backend *backend, int count, const spt_factor_entry *entries, int steps, const spt_control *control) {
  spt_cuda *cuda;
  void *scratch;
  size_t most = 0;
  int64_t largest;
  SPT_TRY(spt_cuda_begin(backend, &cuda));
  for (int i = 0; i < count; i++) {
    const size_t bytes = spt_cuda_power_bytes(entries[i].rows, entries[i].cols);
    if (bytes > most) most = bytes;
  }
  SPT_TRY(spt_cuda_scratch(cuda, SPT_CUDA_FACTORS * most, &scratch));
  for (int first = 0; first < count; first += SPT_CUDA_FACTORS) {
    const spt_cuda_factors factors = factors_from(count, entries, first);
    SPT_CUDA(spt_cuda_power(&factors, steps, scratch, control, cuda->stream));
  }
  return spt_cuda_end(cuda, spt_cost_flat(SPT_OP_POWER_ITERATION, count_elements(count, entries, &largest), 8 * steps, 0));
}

spt_status spt_cuda_factor_update(spt_backend *backend, int count, const spt_factor_entry *entries, float lr, float decay, bool renormalize,
                                  spt_dtype dtype, const spt_control *control) {
  spt_cuda *cuda;
  int64_t largest;
  SPT_TRY(spt_cuda_begin(backend, &cuda));
  for (int first = 0; first < count; first += SPT_CUDA_FACTORS) {
    const spt_cuda_factors factors = factors_from(count, entries, first);
    SPT_CUDA(spt_cuda_factor_step(&factors, lr, decay, renormalize, dtype, control, cuda->stream));
  }
  return spt_cuda_end(cuda,
                      spt_cost_flat(SPT_OP_FACTOR_UPDATE, count_elements(count, entries, &largest), 4 + (int)spt_dtype_size(dtype), 4));
}

spt_status spt_cuda_adamw(spt_backend *backend, int64_t count, float *w, const float *gradient, float *m, float *v, float lr, float decay,
                          float beta1, float beta2, float eps, int64_t step, const spt_control *control) {
  spt_cuda *cuda;
  SPT_TRY(spt_cuda_begin(backend, &cuda));
  const spt_cuda_adamw_factors factors = {.keep = (float)(1.0 - (double)lr * (double)decay),
                                          .beta1 = beta1,
                                          .beta2 = beta2,
                                          .lr = lr,
                                          .eps = eps,
                                          .step = step};
  SPT_CUDA(spt_cuda_adamw_update(count, w, gradient, m, v, &factors, control, cuda->stream));
  return spt_cuda_end(cuda, spt_cost_flat(SPT_OP_ADAMW, count, 16, 12));
}
