/* Threads and dynamic shared memory of a block of each instance of the attention kernels, a line each, for tests/ptxas_report.py: a log of ptxas has
 * neither. Host code: the kernels' own measures, read with the simulator's words of CUDA. */
#include "attention_tile.cuh"

#include <cstdio>

namespace {

template <class T, int D> void tell(const char *type) {
  using forward = spt_attention::measures<T, D, false>;
  using back = spt_attention::measures<T, D, true>;
  std::printf("attention_forward_kernel %s %d %d %zu\n", type, D, forward::THREADS, (size_t)forward::BYTES);
  std::printf("attention_dkdv_kernel %s %d %d %zu\n", type, D, back::THREADS, (size_t)back::DKDV_BYTES);
  std::printf("attention_dq_kernel %s %d %d %zu\n", type, D, back::THREADS, (size_t)back::BYTES);
}

template <class T> void tell_all(const char *type) {
  tell<T, 16>(type);
  tell<T, 32>(type);
  tell<T, 64>(type);
  tell<T, 96>(type);
  tell<T, 128>(type);
}

} // namespace

int main() {
  tell_all<float>("float");
  tell_all<spt_attention::bf16>("__nv_bfloat16");
  return 0;
}
