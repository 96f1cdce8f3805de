#include "simd.h"
#include "simd_kernels.h"

/* silu(g) = g·σ(g), σ(g) = 1/(1 + exp(−g)); silu' = σ·(1 + g·(1 − σ)) */
SPT_INLINE void forward_loop(int64_t n, const void *gate, const void *up, void *h, bool bf16) {
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

void SPT_SIMD(swiglu_forward)(int64_t count, const void *gate, const void *up, void *h, spt_dtype dtype) {
  SPT_BY_DTYPE(dtype, forward_loop, count, gate, up, h);
}

typedef struct swiglu_gradient {
  vf h, gate, up;
} swiglu_gradient;
SPT_INLINE swiglu_gradient differentiate(vf g, vf u, vf d) {
  const vf sigma = vf_sigmoid(g), silu = g * sigma;
  return (swiglu_gradient){silu * u, d * u * vf_fma(silu, 1.0f - sigma, sigma), d * silu};
}

SPT_INLINE void backward_loop(int64_t n, const void *gate, const void *up, const void *dh, void *h, void *dgate,
                              void *dup, bool bf16) {
  int64_t i = 0;
  for (; i + SPT_LANES <= n; i += SPT_LANES) {
    const swiglu_gradient s =
        differentiate(vf_load_act(gate, i, bf16), vf_load_act(up, i, bf16), vf_load_act(dh, i, bf16));
    vf_store_act(h, i, s.h, bf16);
    vf_store_act(dgate, i, s.gate, bf16);
    vf_store_act(dup, i, s.up, bf16);
  }
  if (i < n) {
    const int64_t rest = n - i;
    const swiglu_gradient s = differentiate(vf_load_act_part(gate, i, rest, bf16), vf_load_act_part(up, i, rest, bf16),
                                            vf_load_act_part(dh, i, rest, bf16));
    vf_store_act_part(h, i, s.h, rest, bf16);
    vf_store_act_part(dgate, i, s.gate, rest, bf16);
    vf_store_act_part(dup, i, s.up, rest, bf16);
  }
}

void SPT_SIMD(swiglu_backward)(int64_t count, const void *gate, const void *up, const void *dh, void *h, void *dgate,
                               void *dup, spt_dtype dtype) {
  SPT_BY_DTYPE(dtype, backward_loop, count, gate, up, dh, h, dgate, dup);
}
