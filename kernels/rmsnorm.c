#include "backend_cpu.h"

SPT_CLONES static float sum_of_squares(int64_t n, const float *x) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
  return sum;
}

SPT_INLINE void scale_row(int64_t n, const float *x, const float *gain, float rstd, void *h, bool bf16) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) spt_store(h, i, x[i] * rstd * gain[i], bf16);
}

SPT_CLONES void spt_rmsnorm_apply(int64_t rows, int64_t n, const float *x, const float *gain, const float *rstd,
                                  void *h, spt_dtype dtype) {
  for (int64_t r = 0; r < rows; r++)
    SPT_BY_DTYPE(dtype, scale_row, n, x + r * n, gain, rstd[r], spt_at(h, r * n, dtype));
}

void spt_rmsnorm_forward(int64_t rows, int64_t n, double eps, const float *x, const float *gain, float *rstd, void *h,
                         spt_dtype dtype) {
  for (int64_t r = 0; r < rows; r++)
    rstd[r] = (float)(1.0 / sqrt((double)sum_of_squares(n, x + r * n) / (double)n + eps));
  spt_rmsnorm_apply(rows, n, x, gain, rstd, h, dtype);
}

/* With x̂ = x·rstd and g = dh·gain: dx = rstd·(g − x̂·mean(g·x̂)), dgain = Σ dh·x̂. */
SPT_CLONES void spt_rmsnorm_backward(int64_t rows, int64_t n, const float *x, const float *gain, const float *rstd,
                                     const float *dh, float *dx, bool add, float *dgain) {
  for (int64_t i = 0; i < n; i++) dgain[i] = 0.0f;
  for (int64_t r = 0; r < rows; r++) {
    const float *xr = x + r * n, *dr = dh + r * n;
    const float s = rstd[r];
    float *out = dx + r * n, dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < n; i++) {
      const float product = dr[i] * xr[i];
      dot += product * gain[i];
      dgain[i] += product * s;
    }
    const float mean = dot * s * s / (float)n;
    if (add) {
#pragma omp simd
      for (int64_t i = 0; i < n; i++) out[i] += s * (dr[i] * gain[i] - xr[i] * mean);
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; i++) out[i] = s * (dr[i] * gain[i] - xr[i] * mean);
    }
  }
}
