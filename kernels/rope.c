#include "backend_cpu.h"

#include <stdlib.h>

spt_status spt_rope_prepare(spt_cpu *cpu, double theta, int64_t head_dim, int64_t positions) {
  spt_rope_table *table = &cpu->rope;
  if (table->theta == theta && table->head_dim == head_dim && table->positions >= positions) return SPT_OK;
  const int64_t half = head_dim / 2;
  float *values = aligned_alloc(64, ((size_t)(2 * positions * half) * sizeof(float) + 64) & ~(size_t)63);
  if (!values)
    return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the rotary table of %lld positions", (long long)positions);
  free(table->cosine);
  *table = (spt_rope_table){theta, head_dim, positions, values, values + positions * half};
  for (int64_t i = 0; i < half; i++) {
    const double frequency = pow(theta, -2.0 * (double)i / (double)head_dim);
    for (int64_t position = 0; position < positions; position++) {
      table->cosine[position * half + i] = (float)cos((double)position * frequency);
      table->sine[position * half + i] = (float)sin((double)position * frequency);
    }
  }
  return SPT_OK;
}

SPT_INLINE void rotate_head(int64_t half, const float *cosine, const float *sine, float sign, void *a, void *b,
                            bool bf16) {
#pragma omp simd
  for (int64_t i = 0; i < half; i++) {
    const float x = spt_load(a, i, bf16), y = spt_load(b, i, bf16), s = sign * sine[i];
    spt_store(a, i, x * cosine[i] - y * s, bf16);
    spt_store(b, i, y * cosine[i] + x * s, bf16);
  }
}

SPT_CLONES void spt_rope_rotate(const spt_rope_table *table, int64_t row0, int64_t rows, int64_t seq_len, int64_t cols,
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
