/* Compiled once per instruction set: that set's table. */
#include "simd_kernels.h"

#define SPT_TEXT2(text) #text
#define SPT_TEXT(text) SPT_TEXT2(text)
#define SPT_SIMD_ENTRY(result, name, parameters) .name = SPT_SIMD(name),

extern const spt_simd_kernels SPT_SIMD(kernels);
const spt_simd_kernels SPT_SIMD(kernels) = {.name = SPT_TEXT(SPT_SIMD_SUFFIX), SPT_SIMD_KERNELS(SPT_SIMD_ENTRY)};
