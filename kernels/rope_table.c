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
