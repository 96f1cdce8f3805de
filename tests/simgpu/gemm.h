/* The arithmetic of the simulated cuBLAS, compiled without the address sanitizer: all of its operands are the simulator's own copies. */
#ifndef SIMGPU_GEMM_H
#define SIMGPU_GEMM_H

namespace simgpu {

/* c[j·m + i] = Σ_l a[l·m + i]·b[j·k + l], in fp32, in the order of l. */
void multiply(int m, int n, int k, const float *a, const float *b, float *c);

} // namespace simgpu

#endif
