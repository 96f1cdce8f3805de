#include "ops_device.h"

#include "backend_cpu.h"

const char *ops_device_absent(void) {
  return NULL;
}
spt_status ops_device_open(spt_precision precision, int threads, spt_backend **backend_p) {
  return spt_backend_open(SPT_BACKEND_CPU, precision, threads, 1, backend_p);
}
int ops_device_threads(void) {
  return 3;
}
size_t ops_device_group_workspace(const spt_backend *backend, const spt_group_desc *desc, int64_t tokens, bool train) {
  return spt_cpu_group_workspace((const spt_cpu *)backend, desc, tokens, train);
}
size_t ops_device_head_workspace(const spt_backend *backend, int64_t tokens, int64_t hidden, int64_t vocab, bool train) {
  return spt_cpu_head_workspace((const spt_cpu *)backend, tokens, hidden, vocab, train);
}
size_t ops_device_attention_workspace(const spt_backend *backend, const spt_attention_args *args) {
  return spt_cpu_attention_workspace((const spt_cpu *)backend, args->seq_len, args->head_dim, true);
}
int64_t ops_device_made(const spt_backend *backend) {
  return spt_cpu_gemm_misses(backend);
}
int ops_device_attention_ways(void) {
  return 2;
}
void ops_device_attention_way(spt_backend *backend, int way) {
  ((spt_cpu *)backend)->attention_by_products = way; // the way that is taken where whole products reach AMX
}
