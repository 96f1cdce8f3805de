#include "backend_cpu.h"

#include <assert.h>

spt_status spt_cpu_embedding_forward(spt_backend *backend, int64_t tokens, int64_t hidden, const int32_t *ids,
                                     const void *table, spt_dtype dtype, float *x) {
  const float *rows = table;
  assert(dtype == SPT_F32);
  (void)dtype;
  spt_cpu *cpu = spt_cpu_begin(backend);
#pragma omp parallel for num_threads(backend->threads) schedule(static)
  for (int64_t i = 0; i < tokens; i++)
    memcpy(x + i * hidden, rows + (int64_t)ids[i] * hidden, (size_t)hidden * sizeof(float));
  return spt_cpu_end(cpu, spt_cost_embedding(tokens, hidden, SPT_F32, false));
}

/* A task owns columns, so that every row of the table is summed in the order of tokens. */
spt_status spt_cpu_embedding_backward(spt_backend *backend, int64_t tokens, int64_t hidden, int64_t vocab,
                                      const int32_t *ids, const float *dx, float *dtable) {
  (void)vocab;
  enum { COLUMNS = 64 };
  spt_cpu *cpu = spt_cpu_begin(backend);
#pragma omp parallel for num_threads(backend->threads) schedule(static)
  for (int64_t begin = 0; begin < hidden; begin += COLUMNS) {
    const int64_t count = spt_min(COLUMNS, hidden - begin);
    for (int64_t i = 0; i < tokens; i++) {
      float *row = dtable + (int64_t)ids[i] * hidden + begin;
      const float *add = dx + i * hidden + begin;
#pragma omp simd
      for (int64_t c = 0; c < count; c++) row[c] += add[c];
    }
  }
  return spt_cpu_end(cpu, spt_cost_embedding(tokens, hidden, SPT_F32, true));
}
