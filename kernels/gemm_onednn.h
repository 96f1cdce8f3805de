/* Single-threaded matrix products on oneDNN (2.6 and 3.x): the only file that calls it. A context belongs to one
 * thread; it caches primitives and memory objects by shape, so that a repeated product creates nothing. (oneDNN itself
 * allocates about six small blocks in each execution; tests/test_step_cost.c counts them.) */
#ifndef SPT_GEMM_ONEDNN_H
#define SPT_GEMM_ONEDNN_H

#include "core/backend.h"

typedef struct spt_gemm_context spt_gemm_context;

/* A row-major operand with leading dimension ld; `transposed` means that the product uses its transpose. ld 0: a right
 * operand op(B) in the library's own order, as spt_gemm_pack made it. */
typedef struct spt_operand {
  const void *data;
  int64_t ld;
  spt_dtype dtype;
  bool transposed;
} spt_operand;

/* Instruction sets that the CPU kernels are compiled for, each includes those before. Follows ONEDNN_MAX_CPU_ISA. */
typedef enum { SPT_ISA_BASE, SPT_ISA_AVX2, SPT_ISA_AVX512, SPT_ISA_AVX512_BF16, SPT_ISAS } spt_isa;
spt_isa spt_gemm_isa(void);
/* The unit that multiplies bf16 faster than fp32 here ("AMX", "AVX512-BF16"); NULL: none does. Follows
 * ONEDNN_MAX_CPU_ISA. */
const char *spt_gemm_bf16_unit(void);
/* "oneDNN 2.6.3" */
void spt_gemm_library(char *text, size_t size);

/* With native_bf16 false, bf16 operands are widened and multiplied in fp32. The caller closes. Local. */
spt_status spt_gemm_open(bool native_bf16, spt_gemm_context **context_p);
void spt_gemm_close(spt_gemm_context **context_p);
/* Call once by the context's thread at the start of each parallel region: keeps oneDNN on one thread, whose blocking
 * (and so its rounding) then does not depend on the number of threads. */
void spt_gemm_enter(void);
/* C (m, n; leading dimension ldc) = alpha·op(A)·op(B) + beta·C, op(A) (m, k), op(B) (k, n), accumulated in fp32. A and
 * B have one dtype; C is fp32 or that dtype. SPT_ERR_RESOURCE when oneDNN fails. */
spt_status spt_gemm(spt_gemm_context *context, int64_t m, int64_t n, int64_t k, float alpha, spt_operand a,
                    spt_operand b, float beta, void *c, int64_t ldc, spt_dtype c_dtype);
/* Bytes of an op(B) (k, n) in the library's own order for products with it on the right, the same in every context. */
size_t spt_gemm_packed_bytes(spt_gemm_context *context, int64_t n, int64_t k, spt_dtype dtype);
/* Brings op(B) (k, n), plain, into that order, keeping its dtype. */
spt_status spt_gemm_pack(spt_gemm_context *context, int64_t n, int64_t k, spt_operand b, void *packed);
/* `bytes` of the context's own memory, valid until the next call. */
spt_status spt_gemm_scratch(spt_gemm_context *context, size_t bytes, void **scratch_p);
/* Products so far; how often one had to create a primitive or grow a buffer; primitives that oneDNN runs by its slow
 * reference loops; what the products executed, FLOPs (2·m·n·k each) and bytes of A, B and C as stored, C twice where it
 * is added to (exact: whole numbers below 2^53); and seconds in them while `timing`. */
typedef struct spt_gemm_counts {
  int64_t calls, misses, reference_primitives;
  double flops, bytes;
  double seconds;
} spt_gemm_counts;
spt_gemm_counts *spt_gemm_counters(spt_gemm_context *context);
void spt_gemm_set_timing(spt_gemm_context *context, bool timing);

#endif
