/* Which table of loops an instruction set uses. */
#include "simd_kernels.h"

extern const spt_simd_kernels spt_kernels_base;
#ifdef SPT_SIMD_X86 // set by kernels/meson.build where the compiler builds the x86 sets
extern const spt_simd_kernels spt_kernels_avx2, spt_kernels_avx512, spt_kernels_avx512_bf16;
#endif

const spt_simd_kernels *spt_simd_kernels_for(spt_isa isa) {
#ifdef SPT_SIMD_X86
  if (isa >= SPT_ISA_AVX512_BF16) return &spt_kernels_avx512_bf16;
  if (isa == SPT_ISA_AVX512) return &spt_kernels_avx512;
  if (isa == SPT_ISA_AVX2) return &spt_kernels_avx2;
#endif
  (void)isa;
  return &spt_kernels_base;
}
