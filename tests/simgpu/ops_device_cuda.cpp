/* The CUDA backend on the simulator, for the conformance tests. */
#include "../ops_device.h"

#include "attention_cuda.h"
#include "backend_cuda.h"
#include "simgpu/simgpu.h"

#include <cstdio>

spt_status ops_device_open(spt_precision precision, int threads, spt_backend **backend_p) {
  return spt_cuda_open(precision, threads, 1, backend_p);
}
int ops_device_threads(void) {
  return 1; // each case runs twice, in another order of blocks, threads and streams
}
size_t ops_device_group_workspace(const spt_backend *backend, const spt_group_desc *desc, int64_t tokens, bool train) {
  return spt_cuda_group_workspace(reinterpret_cast<const spt_cuda *>(backend), desc, tokens, train);
}
size_t ops_device_head_workspace(const spt_backend *backend, int64_t tokens, int64_t hidden, int64_t vocab, bool train) {
  return spt_cuda_head_workspace(reinterpret_cast<const spt_cuda *>(backend), tokens, hidden, vocab, train);
}
size_t ops_device_attention_workspace(const spt_backend *backend, const spt_attention_args *args) {
  (void)backend;
  return spt_cuda_attention_workspace(args->sequences * args->seq_len, args->heads);
}
int64_t ops_device_made(const spt_backend *backend) {
  (void)backend; // scratch alone is made for new shapes; the test's own buffers are no shapes
  return 0;
}
int ops_device_attention_ways(void) {
  return 1;
}
void ops_device_attention_way(spt_backend *backend, int way) {
  (void)backend, (void)way;
}
void ops_device_forbid(void *memory, size_t bytes) {
  simgpu::synchronize_device(); // what is under way may still touch them
  simgpu::forbid(memory, bytes);
}
void ops_device_allow(void *memory, size_t bytes) {
  simgpu::permit(memory, bytes);
}
int64_t ops_device_launches(void) {
  return simgpu::counted.launches + simgpu::counted.products;
}
int ops_device_unused(const char *const *kernels, size_t count) {
  int unused = 0;
  for (size_t i = 0; i < count; i++) {
    const int64_t launches = simgpu::launches_of(kernels[i]);
    printf("%s: %lld launches\n", kernels[i], (long long)launches);
    if (launches == 0) fprintf(stderr, "%s was never launched\n", kernels[i]);
    unused += launches == 0;
  }
  printf("cuBLAS: %lld products, %lld of them off 16 bytes\n", (long long)simgpu::counted.products, (long long)simgpu::counted.unaligned_products);
  return unused;
}
