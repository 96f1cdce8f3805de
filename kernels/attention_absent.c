/* In the place of attention's kernels where they are not built: says so. */
#include "attention_cuda.h"

size_t spt_cuda_attention_workspace(int64_t tokens, int64_t heads) {
  (void)tokens, (void)heads;
  return 0;
}

static spt_status absent(void) {
  return SPT_FAIL(SPT_ERR_RESOURCE, "this build's CUDA backend has no attention kernels; use --backend cpu");
}
spt_status spt_cuda_attention_forward(const spt_attention_args *args, spt_dtype act, struct CUstream_st *stream) {
  (void)args, (void)act, (void)stream;
  return absent();
}
spt_status spt_cuda_attention_backward(const spt_attention_args *args, spt_dtype act, struct CUstream_st *stream) {
  (void)args, (void)act, (void)stream;
  return absent();
}
