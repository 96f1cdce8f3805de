#include "simgpu.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <unistd.h>

namespace simgpu {

counters counted;
bool counting_only = false;
std::vector<noted_launch> noted;

static uint64_t seed() {
  static const uint64_t value = [] {
    const char *given = getenv("SIMGPU_SEED");
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return given ? strtoull(given, nullptr, 10) : (uint64_t)now.tv_sec * 1000003 + (uint64_t)now.tv_nsec;
  }();
  return value;
}

uint64_t random_below(uint64_t bound) {
  static std::mt19937_64 engine(seed());
  return bound < 2 ? 0 : engine() % bound;
}

void fault(const char *format, ...) {
  va_list list;
  fprintf(stderr, "simgpu: ");
  va_start(list, format);
  vfprintf(stderr, format, list);
  va_end(list);
  fprintf(stderr, " (SIMGPU_SEED=%llu)\n", (unsigned long long)seed());
  fflush(nullptr);
  _exit(FAULT_STATUS);
}

} // namespace simgpu
