#include "simd.h"
#include "simd_kernels.h"

SPT_INLINE void rotate_head(int64_t half, const float *cosine, const float *sine, float sign, void *a, void *b,
                            bool bf16) {
  int64_t i = 0;
  for (; i + SPT_LANES <= half; i += SPT_LANES) {
    const vf x = vf_load_act(a, i, bf16), y = vf_load_act(b, i, bf16);
    const vf c = vf_load(cosine + i), s = vf_load(sine + i) * sign;
    vf_store_act(a, i, vf_fma(x, c, -(y * s)), bf16);
    vf_store_act(b, i, vf_fma(y, c, x * s), bf16);
  }
  if (i < half) {
    const int64_t n = half - i;
    const vf x = vf_load_act_part(a, i, n, bf16), y = vf_load_act_part(b, i, n, bf16);
    const vf c = vf_load_part(cosine + i, n), s = vf_load_part(sine + i, n) * sign;
    vf_store_act_part(a, i, vf_fma(x, c, -(y * s)), n, bf16);
    vf_store_act_part(b, i, vf_fma(y, c, x * s), n, bf16);
  }
}

void SPT_SIMD(rope_rotate)(const spt_rope_table *table, int64_t row0, int64_t rows, int64_t seq_len, int64_t cols,
                           void *z, int64_t ld, spt_dtype dtype, bool inverse) {
  const int64_t half = table->head_dim / 2;
  const float sign = inverse ? -1.0f : 1.0f;
  for (int64_t r = 0; r < rows; r++) {
    const float *cosine = table->cosine + (row0 + r) % seq_len * half,
                *sine = table->sine + (row0 + r) % seq_len * half;
    for (int64_t c = 0; c < cols; c += table->head_dim)
      SPT_BY_DTYPE(dtype, rotate_head, half, cosine, sine, sign, spt_at(z, r * ld + c, dtype),
                   spt_at(z, r * ld + c + half, dtype));
  }
}
