#include "simd.h"
#include "simd_kernels.h"

static float sum_of_squares(int64_t n, const float *x) {
  vf sum0 = vf_zero(), sum1 = vf_zero();
  int64_t i = 0;
  for (; i + 2 * SPT_LANES <= n; i += 2 * SPT_LANES) {
    const vf a = vf_load(x + i), b = vf_load(x + i + SPT_LANES);
    sum0 = vf_fma(a, a, sum0);
    sum1 = vf_fma(b, b, sum1);
  }
  for (; i < n; i += SPT_LANES) {
    const vf a = n - i < SPT_LANES ? vf_load_part(x + i, n - i) : vf_load(x + i);
    sum0 = vf_fma(a, a, sum0);
  }
  return vf_sum(sum0 + sum1);
}

SPT_INLINE void apply_row(int64_t n, const float *x, const float *gain, float rstd, void *h, bool bf16) {
  int64_t i = 0;
  for (; i + SPT_LANES <= n; i += SPT_LANES) vf_store_act(h, i, vf_load(x + i) * rstd * vf_load(gain + i), bf16);
  if (i < n) vf_store_act_part(h, i, vf_load_part(x + i, n - i) * rstd * vf_load_part(gain + i, n - i), n - i, bf16);
}

void SPT_SIMD(rmsnorm_apply)(int64_t rows, int64_t n, const float *x, const float *gain, const float *rstd, void *h,
                             spt_dtype dtype) {
  for (int64_t r = 0; r < rows; r++)
    SPT_BY_DTYPE(dtype, apply_row, n, x + r * n, gain, rstd[r], spt_at(h, r * n, dtype));
}

void SPT_SIMD(rmsnorm_forward)(int64_t rows, int64_t n, double eps, const float *x, const float *gain, float *rstd,
                               void *h, spt_dtype dtype) {
  for (int64_t r = 0; r < rows; r++) {
    rstd[r] = (float)(1.0 / sqrt((double)sum_of_squares(n, x + r * n) / (double)n + eps));
    SPT_BY_DTYPE(dtype, apply_row, n, x + r * n, gain, rstd[r], spt_at(h, r * n, dtype));
  }
}

/* With x̂ = x·rstd and g = dh·gain: dx = rstd·(g − x̂·mean(g·x̂)), dgain = Σ dh·x̂. */
SPT_INLINE void backward_row(int64_t n, const float *x, const float *gain, float s, const void *dh, float *dx, bool add,
                             float *dgain, bool bf16) {
  const int64_t whole = n / SPT_LANES * SPT_LANES, rest = n - whole;
  vf dot = vf_zero();
  for (int64_t i = 0; i < whole; i += SPT_LANES) {
    const vf product = vf_load_act(dh, i, bf16) * vf_load(x + i);
    dot = vf_fma(product, vf_load(gain + i), dot);
    vf_store(dgain + i, vf_fma(product, vf_set(s), vf_load(dgain + i)));
  }
  if (rest) {
    const vf product = vf_load_act_part(dh, whole, rest, bf16) * vf_load_part(x + whole, rest);
    dot = vf_fma(product, vf_load_part(gain + whole, rest), dot);
    vf_store_part(dgain + whole, vf_fma(product, vf_set(s), vf_load_part(dgain + whole, rest)), rest);
  }
  const float mean = vf_sum(dot) * s * s / (float)n;
  for (int64_t i = 0; i < whole; i += SPT_LANES) {
    const vf g = vf_load_act(dh, i, bf16) * vf_load(gain + i) - vf_load(x + i) * mean;
    vf_store(dx + i, add ? vf_fma(g, vf_set(s), vf_load(dx + i)) : g * s);
  }
  if (rest) {
    const vf g = vf_load_act_part(dh, whole, rest, bf16) * vf_load_part(gain + whole, rest) -
                 vf_load_part(x + whole, rest) * mean;
    vf_store_part(dx + whole, add ? vf_fma(g, vf_set(s), vf_load_part(dx + whole, rest)) : g * s, rest);
  }
}

void SPT_SIMD(rmsnorm_backward)(int64_t rows, int64_t n, const float *x, const float *gain, const float *rstd,
                                const void *dh, spt_dtype dh_dtype, float *dx, bool add, float *dgain) {
  for (int64_t i = 0; i < n; i++) dgain[i] = 0.0f;
  for (int64_t r = 0; r < rows; r++)
    SPT_BY_DTYPE(dh_dtype, backward_row, n, x + r * n, gain, rstd[r], spt_at(dh, r * n, dh_dtype), dx + r * n, add,
                 dgain);
}
