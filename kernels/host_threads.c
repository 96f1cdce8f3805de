#include "host_threads.h"

#include <omp.h>
#include <sched.h>

static int allowed_cpus(void) {
#ifdef __linux__
  for (int cpus = 1024; cpus <= 1 << 20; cpus *= 4) { // the kernel refuses a set smaller than its own
    cpu_set_t *set = CPU_ALLOC((size_t)cpus);
    if (!set) break;
    const size_t size = CPU_ALLOC_SIZE((size_t)cpus);
    const int count = sched_getaffinity(0, size, set) == 0 ? CPU_COUNT_S(size, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
#endif
  return omp_get_num_procs();
}

static void flush_subnormals(void) {
#if defined(__SSE2__)
  __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040); // flush to zero, denormals are zero
#elif defined(__aarch64__)
  unsigned long control;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  __asm__ volatile("msr fpcr, %0" : : "r"(control | 1ul << 24)); // FZ
#endif
}

void spt_host_flush_subnormals(int threads) {
#pragma omp parallel num_threads(threads)
  flush_subnormals();
}

int spt_host_share(int local_ranks) {
  const int share = allowed_cpus() / (local_ranks > 0 ? local_ranks : 1);
  return share < 1 ? 1 : share;
}

int spt_host_threads(int threads, int local_ranks) {
  return threads > 0 ? threads : spt_host_share(local_ranks);
}
