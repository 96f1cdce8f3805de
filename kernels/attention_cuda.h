/* Attention on a GPU: what the CUDA backend calls for its attention_forward and attention_backward (src/core/backend.h says what they compute).
 * Products run on tensor cores: in bf16, or for fp32 operands in three tf32 products each, which keeps fp32's accuracy. Deterministic, no atomics. */
#ifndef SPT_ATTENTION_CUDA_H
#define SPT_ATTENTION_CUDA_H

#ifdef __cplusplus
extern "C" {
#endif

#include "core/backend.h"

struct CUstream_st; /* a cudaStream_t is a pointer to it */

/* The widest head that the kernels have. */
#define SPT_CUDA_HEAD_DIM_MAX 128

/* Bytes of args->workspace that backward needs for `tokens` in a pass; forward needs none. */
size_t spt_cuda_attention_workspace(int64_t tokens, int64_t heads);

/* Put on the stream; return before it is done. All pointers of args are device memory; 16-byte aligned operands whose rows are multiples of 16 bytes
 * go by 16 bytes, others by elements. SPT_ERR_RESOURCE: a shape beyond the kernels' limits, or the launch failed. Local. */
spt_status spt_cuda_attention_forward(const spt_attention_args *args, spt_dtype act, struct CUstream_st *stream);
spt_status spt_cuda_attention_backward(const spt_attention_args *args, spt_dtype act, struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif
#endif
