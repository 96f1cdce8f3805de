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

int spt_host_share(int local_ranks) {
  const int share = allowed_cpus() / (local_ranks > 0 ? local_ranks : 1);
  return share < 1 ? 1 : share;
}

int spt_host_threads(int threads, int local_ranks) {
  return threads > 0 ? threads : spt_host_share(local_ranks);
}
