/* Device memory: one large range of addresses without access rights, which device_access opens. The shadow of the address sanitizer is poisoned
 * outside live allocations, so that a kernel's access beside them is caught where it happens. */
#include "simgpu.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sys/mman.h>
#include <unistd.h>

#ifndef __SANITIZE_ADDRESS__
#error "the simulator is built with -fsanitize=address: without it nobody checks a kernel's accesses"
#endif
#include <sanitizer/asan_interface.h>

namespace simgpu {

namespace {

constexpr size_t RANGE = (size_t)64 << 30, ALIGNMENT = 256, ZONE = 4096;

struct range {
  unsigned char *base = nullptr;
  size_t used = 0, live = 0;             // bytes: of the range, ever; allocated now
  std::map<unsigned char *, size_t> allocations;
  std::map<unsigned char *, size_t> pinned;
  std::map<unsigned char *, size_t> gaps; // by their first byte
  int open = 0;                          // device_access objects
};
range memory;

struct sigaction before;

bool inside(const void *pointer) {
  const auto *at = static_cast<const unsigned char *>(pointer);
  return memory.base && at >= memory.base && at < memory.base + RANGE;
}

void on_segv(int number, siginfo_t *info, void *context) {
  if (inside(info->si_addr) && memory.open == 0) {
    const char text[] = "simgpu: host code touches device memory\n";
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) {}
    _exit(FAULT_STATUS);
  }
  sigaction(number, &before, nullptr); // the access is repeated and meets the former handler
  (void)context;
}

void open_range() {
  if (memory.base) return;
  void *base = mmap(nullptr, RANGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) fault("no address range of %zu bytes: %s", RANGE, strerror(errno));
  memory.base = static_cast<unsigned char *>(base);
  struct sigaction action = {};
  action.sa_sigaction = on_segv;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigemptyset(&action.sa_mask);
  sigaction(SIGSEGV, &action, &before);
}

/* The allocation that holds `pointer`, or end(). */
std::map<unsigned char *, size_t>::iterator find(const void *pointer) {
  auto *at = const_cast<unsigned char *>(static_cast<const unsigned char *>(pointer));
  auto it = memory.allocations.upper_bound(at);
  if (it == memory.allocations.begin()) return memory.allocations.end();
  --it;
  return at < it->first + it->second ? it : memory.allocations.end();
}

/* Of all from the first live allocation on; what lies before has been freed and keeps its rights, none. */
void protect(int rights) {
  if (memory.allocations.empty() || counting_only) return;
  unsigned char *first = memory.allocations.begin()->first;
  if (mprotect(first, (size_t)(memory.base + memory.used - first), rights) != 0) fault("mprotect: %s", strerror(errno));
}

size_t limit() {
  static const size_t bytes = getenv("SIMGPU_MEMORY") ? strtoull(getenv("SIMGPU_MEMORY"), nullptr, 10) : (size_t)8 << 30;
  return bytes;
}

} // namespace

device_access::device_access() {
  if (memory.open++ == 0) protect(PROT_READ | PROT_WRITE);
}
device_access::~device_access() {
  if (--memory.open == 0) protect(PROT_NONE);
}

void *device_allocate(size_t bytes) {
  open_range();
  if (memory.live + bytes > limit()) return nullptr;
  const size_t taken = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + ZONE; // addresses are never used again
  const size_t whole = (memory.used + taken + 4095) / 4096 * 4096 - memory.used;
  if (counting_only) { // no page is touched
    unsigned char *at = memory.base + memory.used;
    memory.used += whole;
    memory.allocations[at] = bytes;
    memory.live += bytes;
    return at;
  }
  if (memory.used + whole > RANGE) fault("the simulated device has run out of addresses");
  unsigned char *at = memory.base + memory.used;
  memory.used += whole;
  if (mprotect(at, whole, PROT_READ | PROT_WRITE) != 0) fault("mprotect: %s", strerror(errno));
  memset(at, 0xff, bytes); // NaN as float, bf16 and double
  ASAN_POISON_MEMORY_REGION(at, whole);
  ASAN_UNPOISON_MEMORY_REGION(at, bytes);
  if (memory.open == 0 && mprotect(at, whole, PROT_NONE) != 0) fault("mprotect: %s", strerror(errno));
  memory.allocations[at] = bytes;
  memory.live += bytes;
  return at;
}

void device_free(void *pointer) {
  auto it = memory.allocations.find(static_cast<unsigned char *>(pointer));
  if (it == memory.allocations.end()) fault("cudaFree(%p): no such allocation", pointer);
  memory.live -= it->second;
  if (counting_only) {
    memory.allocations.erase(it);
    if (memory.allocations.empty()) memory.used = 0;
    return;
  }
  memory.gaps.erase(memory.gaps.lower_bound(it->first), memory.gaps.lower_bound(it->first + it->second));
  ASAN_POISON_MEMORY_REGION(it->first, it->second);
  const size_t pages = (it->second + 4095) / 4096 * 4096;
  if (pages && (madvise(it->first, pages, MADV_DONTNEED) != 0 || mprotect(it->first, pages, PROT_NONE) != 0))
    fault("madvise or mprotect: %s", strerror(errno));
  memory.allocations.erase(it);
}

bool is_device(const void *pointer) {
  return inside(pointer);
}

void check_device(const void *pointer, size_t bytes, const char *what) {
  if (bytes == 0) return;
  if (!inside(pointer)) fault("%s: %p is no device memory", what, pointer);
  auto it = find(pointer);
  const auto *at = static_cast<const unsigned char *>(pointer);
  if (it == memory.allocations.end()) fault("%s: %p lies in no allocation", what, pointer);
  if (at + bytes > it->first + it->second)
    fault("%s: %zu bytes at offset %zu of an allocation of %zu", what, bytes, (size_t)(at - it->first), it->second);
  if (counting_only) return;
  const void *bad = __asan_region_is_poisoned(const_cast<unsigned char *>(at), bytes);
  if (bad)
    fault("%s: touches a red zone at offset %zu of an allocation of %zu", what,
          (size_t)(static_cast<const unsigned char *>(bad) - it->first), it->second);
}

size_t device_free_bytes() {
  return limit() - memory.live;
}
size_t device_total_bytes() {
  return limit();
}

void forbid(const void *pointer, size_t bytes) {
  if (find(pointer) == memory.allocations.end()) fault("a red zone outside every allocation");
  ASAN_POISON_MEMORY_REGION(pointer, bytes);
}
void permit(const void *pointer, size_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(pointer, bytes);
}

void forbid_gap(const void *pointer, size_t bytes) {
  forbid(pointer, bytes);
  memory.gaps[const_cast<unsigned char *>(static_cast<const unsigned char *>(pointer))] = bytes;
}

namespace {
/* visit(pointer, bytes) of the part of each gap that lies in the range. */
template <class Visit> void each_gap(unsigned char *begin, unsigned char *end, Visit visit) {
  auto it = memory.gaps.lower_bound(begin);
  if (it != memory.gaps.begin()) --it;
  for (; it != memory.gaps.end() && it->first < end; ++it) {
    unsigned char *from = std::max(it->first, begin), *to = std::min(it->first + it->second, end);
    if (from < to) visit(from, (size_t)(to - from));
  }
}
} // namespace

spanning::spanning(const void *pointer, size_t bytes)
    : begin(const_cast<unsigned char *>(static_cast<const unsigned char *>(pointer))), end(begin + bytes) {
  each_gap(begin, end, [](unsigned char *at, size_t part) { ASAN_UNPOISON_MEMORY_REGION(at, part); });
}
spanning::~spanning() {
  each_gap(begin, end, [](unsigned char *at, size_t part) { ASAN_POISON_MEMORY_REGION(at, part); });
}

void *pinned_allocate(size_t bytes) {
  auto *at = static_cast<unsigned char *>(malloc(bytes ? bytes : 1));
  if (at) memset(at, 0xff, bytes);
  if (at) memory.pinned[at] = bytes;
  return at;
}
void pinned_free(void *pointer) {
  if (!memory.pinned.erase(static_cast<unsigned char *>(pointer))) fault("cudaFreeHost(%p): no such allocation", pointer);
  free(pointer);
}
bool is_pinned(const void *pointer, size_t bytes) {
  auto *at = const_cast<unsigned char *>(static_cast<const unsigned char *>(pointer));
  auto it = memory.pinned.upper_bound(at);
  if (it == memory.pinned.begin()) return false;
  --it;
  return at + bytes <= it->first + it->second;
}

} // namespace simgpu

/* What the CUDA backend tells of its red zones. */
extern "C" void simgpu_guard(void *memory, size_t bytes, bool gap) {
  if (simgpu::counting_only) return;
  if (gap)
    simgpu::forbid_gap(memory, bytes);
  else
    simgpu::forbid(memory, bytes);
}
