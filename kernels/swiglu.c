#include "backend_cpu.h"

/* silu(g) = g·σ(g), σ(g) = 1/(1 + exp(−g)); silu' = σ·(1 + g·(1 − σ)) */
SPT_INLINE void forward_row(int64_t n, const void *gate, const void *up, void *h, bool bf16) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const float g = spt_load(gate, i, bf16);
    spt_store(h, i, g / (1.0f + spt_exp(-g)) * spt_load(up, i, bf16), bf16);
  }
}

SPT_CLONES void spt_swiglu_forward(int64_t rows, int64_t n, const void *gate_up, void *h, spt_dtype dtype) {
  for (int64_t r = 0; r < rows; r++)
    SPT_BY_DTYPE(dtype, forward_row, n, spt_at(gate_up, 2 * r * n, dtype), spt_at(gate_up, (2 * r + 1) * n, dtype),
                 spt_at(h, r * n, dtype));
}

SPT_INLINE void backward_row(int64_t n, const void *gate, const void *up, const float *dh, void *dgate, void *dup,
                             bool bf16) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const float g = spt_load(gate, i, bf16), u = spt_load(up, i, bf16), d = dh[i];
    const float sigma = 1.0f / (1.0f + spt_exp(-g));
    spt_store(dgate, i, d * u * sigma * (1.0f + g * (1.0f - sigma)), bf16);
    spt_store(dup, i, d * g * sigma, bf16);
  }
}

SPT_CLONES void spt_swiglu_backward(int64_t rows, int64_t n, const void *gate_up, const float *dh, void *d_gate_up,
                                    spt_dtype dtype) {
  for (int64_t r = 0; r < rows; r++)
    SPT_BY_DTYPE(dtype, backward_row, n, spt_at(gate_up, 2 * r * n, dtype), spt_at(gate_up, (2 * r + 1) * n, dtype),
                 dh + r * n, spt_at(d_gate_up, 2 * r * n, dtype), spt_at(d_gate_up, (2 * r + 1) * n, dtype));
}
