/* Thin wrappers of what tensor-core kernels need beyond CUDA's own words: matrix products of a warp, ldmatrix, asynchronous copies to shared memory.
 * On a GPU of compute capability 8.0 or more they are one instruction each; the simulator has the same functions (tests/simgpu/mma.cuh).
 *
 * Fragments, by lane = 4·g + t (g 0…7, t 0…3), as in PTX ISA, "Matrix fragments":
 *     C (16, 8) fp32:           c[0], c[1] = C[g][2t], C[g][2t+1]      c[2], c[3] = C[g+8][2t], C[g+8][2t+1]
 *     m16n8k16, bf16 pairs:     a[0] = A[g][2t, 2t+1]   a[1] = A[g+8][2t, 2t+1]   a[2] = A[g][2t+8, 2t+9]   a[3] = A[g+8][2t+8, 2t+9]
 *                               b[0] = B[2t, 2t+1][g]   b[1] = B[2t+8, 2t+9][g]                (A (16, 16), B (16, 8))
 *     m16n8k8, tf32:            a[0] = A[g][t]   a[1] = A[g+8][t]   a[2] = A[g][t+4]   a[3] = A[g+8][t+4]
 *                               b[0] = B[t][g]   b[1] = B[t+4][g]                              (A (16, 8), B (8, 8))
 * ldmatrix x4: lane l gives the address of row l%8 of matrix l/8, 8 × 8 of 16 bits (or 8 × 4 of 32); r[i] is of matrix i: row g, the t-th 32
 * bits; transposed: column g, the elements of rows 2t and 2t+1. Every lane of the warp takes part in each but the copies. */
#ifndef SPT_MMA_CUH
#define SPT_MMA_CUH

#include "launch.cuh"

#include <stdint.h>

#ifdef SPT_SIMGPU
#include <simgpu/mma.cuh>
#define SPT_UNROLL
#define SPT_UNROLL_BY(count)
#else

/* Before a loop: unroll it, wholly (as arrays in registers need it) or by so many turns. */
#define SPT_UNROLL _Pragma("unroll")
#define SPT_PRAGMA(text) _Pragma(#text)
#define SPT_UNROLL_BY(count) SPT_PRAGMA(unroll count)

/* C += A·B, bf16 operands, fp32 sums. */
__device__ __forceinline__ void spt_mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* C += A·B, tf32 operands (of spt_tf32), fp32 sums. */
__device__ __forceinline__ void spt_mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* The nearest tf32 (11 bits of mantissa, ties away from zero), as the bits of a float. */
__device__ __forceinline__ uint32_t spt_tf32(float value) {
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
  return result;
}

__device__ __forceinline__ uint32_t spt_shared_address(const void *shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
/* `row` in shared memory, 16-byte aligned. */
__device__ __forceinline__ void spt_ldmatrix_x4(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(spt_shared_address(row))
               : "memory");
}
__device__ __forceinline__ void spt_ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(spt_shared_address(row))
               : "memory");
}

/* Copies BYTES (4, 8 or 16; both pointers aligned to it) to shared memory, there when its group was waited for: the first `bytes` of them from
 * `global`, zeros for the rest; with 0 bytes `global` is not read. */
template <int BYTES> __device__ __forceinline__ void spt_cp_async(void *shared, const void *global, int bytes) {
  if constexpr (BYTES == 16) // not through L1
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(spt_shared_address(shared)), "l"(global), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(spt_shared_address(shared)), "l"(global), "n"(BYTES), "r"(bytes)
                 : "memory");
}
/* This thread's copies since the last commit are a group. */
__device__ __forceinline__ void spt_cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Waits for this thread's groups but the latest PENDING. Other threads see the data after a barrier. */
template <int PENDING> __device__ __forceinline__ void spt_cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

#endif
#endif
