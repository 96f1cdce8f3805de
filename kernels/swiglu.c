#include "simd.h"
#include "simd_kernels.h"

/* silu(g) = g·σ(g), σ(g) = 1/(1 + exp(−g)); silu' = σ·(1 + g·(1 − σ)) */
SPT_INLINE void forward_row(int64_t n, const void *gate, const void *up, void *h, bool bf16) {
  int64_t i = 0;
  for (; i + SPT_LANES <= n; i += SPT_LANES) {
    const vf g = vf_load_act(gate, i, bf16);
    vf_store_act(h, i, g * vf_sigmoid(g) * vf_load_act(up, i, bf16), bf16);
  }
  if (i < n) {
    const vf g = vf_load_act_part(gate, i, n - i, bf16);
    vf_store_act_part(h, i, g * vf_sigmoid(g) * vf_load_act_part(up, i, n - i, bf16), n - i, bf16);
  }
}

void SPT_SIMD(swiglu_forward)(int64_t rows, int64_t n, const void *gate_up, void *h, spt_dtype dtype) {
  for (int64_t r = 0; r < rows; r++)
    SPT_BY_DTYPE(dtype, forward_row, n, spt_at(gate_up, 2 * r * n, dtype), spt_at(gate_up, (2 * r + 1) * n, dtype),
                 spt_at(h, r * n, dtype));
}

typedef struct swiglu_gradient {
  vf h, gate, up;
} swiglu_gradient;
SPT_INLINE swiglu_gradient differentiate(vf g, vf u, vf d) {
  const vf sigma = vf_sigmoid(g), silu = g * sigma;
  return (swiglu_gradient){silu * u, d * u * vf_fma(silu, 1.0f - sigma, sigma), d * silu};
}

SPT_INLINE void backward_row(int64_t n, const void *gate, const void *up, const float *dh, void *h, void *dgate,
                             void *dup, bool bf16) {
  int64_t i = 0;
  for (; i + SPT_LANES <= n; i += SPT_LANES) {
    const swiglu_gradient s = differentiate(vf_load_act(gate, i, bf16), vf_load_act(up, i, bf16), vf_load(dh + i));
    vf_store_act(h, i, s.h, bf16);
    vf_store_act(dgate, i, s.gate, bf16);
    vf_store_act(dup, i, s.up, bf16);
  }
  if (i < n) {
    const int64_t rest = n - i;
    const swiglu_gradient s = differentiate(vf_load_act_part(gate, i, rest, bf16), vf_load_act_part(up, i, rest, bf16),
                                            vf_load_part(dh + i, rest));
    vf_store_act_part(h, i, s.h, rest, bf16);
    vf_store_act_part(dgate, i, s.gate, rest, bf16);
    vf_store_act_part(dup, i, s.up, rest, bf16);
  }
}

void SPT_SIMD(swiglu_backward)(int64_t rows, int64_t n, const void *gate_up, const float *dh, void *h,
                               void *d_gate_up, spt_dtype dtype) {
  for (int64_t r = 0; r < rows; r++)
    SPT_BY_DTYPE(dtype, backward_row, n, spt_at(gate_up, 2 * r * n, dtype), spt_at(gate_up, (2 * r + 1) * n, dtype),
                 dh + r * n, spt_at(h, r * n, dtype), spt_at(d_gate_up, 2 * r * n, dtype),
                 spt_at(d_gate_up, (2 * r + 1) * n, dtype));
}
