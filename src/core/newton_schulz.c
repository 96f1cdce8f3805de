#include "newton_schulz.h"

static const float coefficient_a = 3.4445f, coefficient_b = -4.7750f, coefficient_c = 2.0315f;

static int64_t align_elements(int64_t count) {
  return (count + 31) / 32 * 32;
}

int64_t spt_newton_schulz_scratch(int64_t rows, int64_t cols) {
  const int64_t s = rows < cols ? rows : cols;
  return align_elements(rows * cols) + 2 * align_elements(s * s);
}

spt_status spt_newton_schulz(spt_backend *backend, int64_t batch, int64_t rows, int64_t cols, spt_dtype dtype,
                             int steps, void **x, void *scratch, void **lists) {
  const bool tall = rows >= cols;
  const int64_t s = tall ? cols : rows, size = (int64_t)spt_dtype_size(dtype);
  void **from = lists, **to = lists + batch, **gram = lists + 2 * batch, **polynomial = lists + 3 * batch;
  for (int64_t i = 0; i < batch; i++) {
    char *base = (char *)scratch + i * spt_newton_schulz_scratch(rows, cols) * size;
    from[i] = x[i];
    to[i] = base;
    gram[i] = base + align_elements(rows * cols) * size;
    polynomial[i] = (char *)gram[i] + align_elements(s * s) * size;
  }
  for (int step = 0; step < steps; step++) {
    const void *const *x_in = (const void *const *)from, *const *g_in = (const void *const *)gram;
    const void *const *p_in = (const void *const *)polynomial;
    // G = XᵀX (s, s), or X·Xᵀ
    const spt_gemm_batch gram_product = {.batch = batch,
                                         .m = s,
                                         .n = s,
                                         .k = tall ? rows : cols,
                                         .transpose_a = tall,
                                         .transpose_b = !tall,
                                         .alpha = 1,
                                         .dtype = dtype,
                                         .a = x_in,
                                         .b = x_in,
                                         .c = gram};
    SPT_TRY(backend->ops->batched_gemm(backend, &gram_product));
    // P = b·G + c·G²
    const spt_gemm_batch square = {.batch = batch,
                                   .m = s,
                                   .n = s,
                                   .k = s,
                                   .alpha = coefficient_c,
                                   .beta = coefficient_b,
                                   .dtype = dtype,
                                   .a = g_in,
                                   .b = g_in,
                                   .d = g_in,
                                   .c = polynomial};
    SPT_TRY(backend->ops->batched_gemm(backend, &square));
    // X ← a·X + X·P, or a·X + P·X
    const spt_gemm_batch update = {.batch = batch,
                                   .m = rows,
                                   .n = cols,
                                   .k = s,
                                   .alpha = 1,
                                   .beta = coefficient_a,
                                   .dtype = dtype,
                                   .a = tall ? x_in : p_in,
                                   .b = tall ? p_in : x_in,
                                   .d = x_in,
                                   .c = to};
    SPT_TRY(backend->ops->batched_gemm(backend, &update));
    void **swap = from;
    from = to;
    to = swap;
  }
  for (int64_t i = 0; i < batch; i++) x[i] = from[i];
  return SPT_OK;
}
