/* Rows of the cross-entropy's softmax. */
#include "simd.h"
#include "simd_kernels.h"

static const float log2e = 1.44269504088896341f;

SPT_INLINE float exponentials(int64_t n, const float *logits, float maximum, void *e, bool keep, bool bf16) {
  vf sum = vf_zero();
  const vf shift = vf_set(-maximum);
  int64_t i = 0;
  for (; i + SPT_LANES <= n; i += SPT_LANES) {
    const vf value = vf_exp2((vf_load(logits + i) + shift) * log2e);
    sum += value;
    if (keep) vf_store_act(e, i, value, bf16);
  }
  float total = vf_sum(sum);
  if (i < n) {
    const vf value = vf_exp2((vf_load_part(logits + i, n - i) + shift) * log2e);
    for (int64_t k = 0; k < n - i; k++) total += value[k];
    if (keep) vf_store_act_part(e, i, value, n - i, bf16);
  }
  return total;
}

void SPT_SIMD(softmax_row)(int64_t n, const float *logits, void *e, spt_dtype dtype, float *maximum_p, float *sum_p) {
  vf largest = vf_set(-INFINITY);
  int64_t i = 0;
  for (; i + SPT_LANES <= n; i += SPT_LANES) largest = vf_max(vf_load(logits + i), largest);
  float maximum = vf_largest(largest);
  for (; i < n; i++) maximum = logits[i] > maximum ? logits[i] : maximum;
  *maximum_p = maximum;
  if (!e)
    *sum_p = exponentials(n, logits, maximum, NULL, false, false);
  else
    *sum_p = dtype == SPT_BF16 ? exponentials(n, logits, maximum, e, true, true)
                               : exponentials(n, logits, maximum, e, true, false);
}

SPT_INLINE void scale_loop(int64_t n, float factor, const void *from, void *to, bool bf16) {
  int64_t i = 0;
  for (; i + SPT_LANES <= n; i += SPT_LANES) vf_store_act(to, i, vf_load_act(from, i, bf16) * factor, bf16);
  if (i < n) vf_store_act_part(to, i, vf_load_act_part(from, i, n - i, bf16) * factor, n - i, bf16);
}
void SPT_SIMD(scale_row)(int64_t n, float factor, void *e, spt_dtype dtype) {
  SPT_BY_DTYPE(dtype, scale_loop, n, factor, e, e);
}
void SPT_SIMD(scale)(int64_t n, float factor, const void *from, void *to, spt_dtype dtype) {
  SPT_BY_DTYPE(dtype, scale_loop, n, factor, from, to);
}

void SPT_SIMD(add_row)(int64_t n, const float *from, float *to) {
  int64_t i = 0;
  for (; i + SPT_LANES <= n; i += SPT_LANES) vf_store(to + i, vf_load(to + i) + vf_load(from + i));
  for (; i < n; i++) to[i] += from[i];
}
