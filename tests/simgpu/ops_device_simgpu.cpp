/* What the simulator sees of a conformance test: forbidden memory, launches. */
#include "../ops_device.h"

#include "simgpu/simgpu.h"

#include <cstdio>

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
