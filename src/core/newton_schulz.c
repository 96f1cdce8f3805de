#include "newton_schulz.h"

#include "optimizer.h"

#include <math.h>

/* arXiv:2505.16932, Alg. 1 */
static const double polar_express[][3] = {
    {8.28721201814563, -23.595886519098837, 17.300387312530933}, {4.107059111542203, -2.9478499167379106, 0.5448431082926601},
    {3.9486908534822946, -2.908902115962949, 0.5518191394370137}, {3.3184196573706015, -2.488488024314874, 0.51004894012372},
    {2.300652019954817, -1.6689039845747493, 0.4188073119525673}, {1.891301407787398, -1.2679958271945868, 0.37680408948524835},
    {1.8750014808534479, -1.2500016453999487, 0.3750001645474248}, {1.875, -1.25, 0.375}};
enum { POLAR_EXPRESS_LAST = (int)(sizeof polar_express / sizeof *polar_express) - 1 };
#define SAFETY 1.01

spt_polynomial spt_newton_schulz_polynomial(const spt_optimizer_config *config, int step) {
  const bool quintic = config->newton_schulz_variant == SPT_NEWTON_SCHULZ_QUINTIC;
  const int at = step < POLAR_EXPRESS_LAST ? step : POLAR_EXPRESS_LAST;
  const double *p = quintic ? config->newton_schulz_coefficients : polar_express[at];
  double scale = 1; // p(s / scale)
  if (!quintic && at < POLAR_EXPRESS_LAST) scale *= SAFETY;
  if (!quintic && step == 0) scale *= SAFETY;
  return (spt_polynomial){(float)(p[0] / scale), (float)(p[1] / pow(scale, 3)), (float)(p[2] / pow(scale, 5))};
}

spt_status spt_newton_schulz_check(const spt_optimizer_config *config) {
  enum { VALUES = 16 };
  const double least = 1e-3, most = 10, *p = config->newton_schulz_coefficients;
  if (config->newton_schulz_variant != SPT_NEWTON_SCHULZ_QUINTIC || !spt_method_orthogonalizes(config->method)) return SPT_OK;
  for (int i = 1; i <= VALUES; i++) {
    double s = (double)i / VALUES;
    for (int step = 0; step < config->newton_schulz_steps; step++) s *= p[0] + s * s * (p[1] + s * s * p[2]);
    if (!(s >= least && s <= most))
      return SPT_FAIL(SPT_ERR_USAGE, "[optimizer] newton_schulz_coefficients = [%g, %g, %g]: in %d iterations the singular value %g becomes %g, which must be "
                                     "near 1 and at least in [%g, %g]; the paper's are [%g, %g, %g]", p[0], p[1], p[2], (int)config->newton_schulz_steps,
                      (double)i / VALUES, s, least, most, spt_quintic[0], spt_quintic[1], spt_quintic[2]);
  }
  return SPT_OK;
}

static int64_t align_elements(int64_t count) {
  return (count + 31) / 32 * 32;
}

int64_t spt_newton_schulz_scratch(int64_t rows, int64_t cols) {
  const int64_t s = rows < cols ? rows : cols;
  return align_elements(rows * cols) + 2 * align_elements(s * s);
}

spt_status spt_newton_schulz(spt_backend *backend, const spt_optimizer_config *config, int64_t batch, int64_t rows, int64_t cols, spt_dtype dtype,
                             void **x, void *scratch, void **lists) {
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
  for (int step = 0; step < config->newton_schulz_steps; step++) {
    const spt_polynomial p = spt_newton_schulz_polynomial(config, step);
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
                                   .alpha = p.c,
                                   .beta = p.b,
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
                                   .beta = p.a,
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
