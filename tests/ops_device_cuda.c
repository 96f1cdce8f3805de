/* The CUDA backend, for the conformance tests. */
#include "ops_device.h"

#include "attention_cuda.h"
#include "backend_cuda.h"

const char *ops_device_absent(void) {
  static char why[128];
  return spt_cuda_present(why, sizeof why) ? NULL : why;
}
spt_status ops_device_open(spt_precision precision, int threads, spt_backend **backend_p) {
  return spt_cuda_open(precision, threads, 1, backend_p);
}
int ops_device_threads(void) {
  return 1; // each case runs twice, in another order of blocks, threads and streams
}
size_t ops_device_group_workspace(const spt_backend *backend, const spt_group_desc *desc, int64_t tokens, bool train) {
  return spt_cuda_group_workspace((const spt_cuda *)backend, desc, tokens, train);
}
size_t ops_device_head_workspace(const spt_backend *backend, int64_t tokens, int64_t hidden, int64_t vocab, bool train) {
  return spt_cuda_head_workspace((const spt_cuda *)backend, tokens, hidden, vocab, train);
}
size_t ops_device_attention_workspace(const spt_backend *backend, const spt_attention_args *args) {
  (void)backend;
  return spt_cuda_attention_workspace(args->sequences * args->seq_len, args->heads);
}
int64_t ops_device_made(const spt_backend *backend) {
  return ((const spt_cuda *)backend)->grown;
}
int ops_device_attention_ways(void) {
  return 1;
}
void ops_device_attention_way(spt_backend *backend, int way) {
  (void)backend, (void)way;
}
