/* A kernel's blocks, one after another in a random order; a block's threads are fibers that run in a random order until each waits or ends.
 * Nothing runs in lockstep: what a barrier or a warp's synchronisation does not order may happen in any order. */
#include "block.h"
#include "simgpu.h"

#include <algorithm>
#include <boost/context/detail/fcontext.hpp>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <numeric>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>
#include <vector>

namespace simgpu {

namespace {

namespace ctx = boost::context::detail;
constexpr size_t STACK = 256 << 10;
constexpr size_t SHARED_RANGE = 1 << 20, SHARED_ZONE = 256;

enum class state { able, at_barrier, in_warp, done };

/* What the lanes of a warp gave in one exchange; freed when the last has seen it. */
struct exchange {
  unsigned char values[32][EXCHANGE_BYTES];
  int readers;
};

struct pending_copy {
  void *shared;
  const void *global;
  size_t bytes, copied;
  uint64_t group;
  site at;
};

struct thread {
  ctx::fcontext_t context = nullptr;
  unsigned char *stack = nullptr; // of STACK bytes
  void *fake_stack = nullptr;
  extent index;
  unsigned linear;
  state now;
  site at;
  int kind;
  unsigned mask;
  unsigned char value[EXCHANGE_BYTES];
  exchange *seen;
  std::vector<pending_copy> copies; // in the order of issue
  uint64_t groups;                  // committed so far
};

std::vector<thread> threads; // of the block; stacks are kept from launch to launch
std::deque<exchange> exchanges; // all there are
std::vector<exchange *> spare;
thread *current;
const launch *running;
extent block_at;
ctx::fcontext_t scheduler;
void *scheduler_fake;
const void *scheduler_bottom;
size_t scheduler_size;
std::map<std::string, int64_t> launched;

unsigned char *shared_base;
size_t shared_used;
std::map<std::pair<const char *, int>, unsigned char *> shared_arrays;
unsigned char *dynamic_base;

std::string name_of(const thread &t) {
  char text[160];
  snprintf(text, sizeof text, "%s, block (%u, %u, %u), thread (%u, %u, %u)", running->name, block_at.x, block_at.y, block_at.z,
           t.index.x, t.index.y, t.index.z);
  return text;
}

void to_scheduler() {
  thread *t = current;
  const bool ending = t->now == state::done;
  __sanitizer_start_switch_fiber(ending ? nullptr : &t->fake_stack, scheduler_bottom, scheduler_size);
  const ctx::transfer_t from = ctx::jump_fcontext(scheduler, nullptr);
  __sanitizer_finish_switch_fiber(t->fake_stack, &scheduler_bottom, &scheduler_size);
  scheduler = from.fctx;
}

void enter(ctx::transfer_t from) {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
  scheduler = from.fctx;
  running->body();
  if (!current->copies.empty())
    fault("%s ends with an asynchronous copy of %s:%d that it has not waited for", name_of(*current).c_str(),
          current->copies[0].at.file, current->copies[0].at.line);
  current->now = state::done;
  to_scheduler();
}

void resume(thread &t) {
  current = &t;
  __sanitizer_start_switch_fiber(&scheduler_fake, t.stack, STACK);
  const ctx::transfer_t from = ctx::jump_fcontext(t.context, nullptr);
  __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
  t.context = from.fctx;
  current = nullptr;
}

size_t count(const extent &e) {
  return (size_t)e.x * e.y * e.z;
}

void make_threads() {
  const size_t n = count(running->block);
  if (threads.size() < n) threads.resize(n);
  for (size_t i = 0; i < n; i++) {
    thread &t = threads[i];
    if (!t.stack) {
      void *stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (stack == MAP_FAILED) fault("no memory for a thread's stack");
      t.stack = static_cast<unsigned char *>(stack);
    }
    t.context = ctx::make_fcontext(t.stack + STACK, STACK, enter);
    t.linear = (unsigned)i;
    t.index = {(unsigned)(i % running->block.x), (unsigned)(i / running->block.x % running->block.y),
               (unsigned)(i / running->block.x / running->block.y)};
    t.now = state::able;
    t.seen = nullptr;
    t.copies.clear();
    t.groups = 0;
  }
}

/* ---- shared memory ---- */

unsigned char *carve(size_t bytes) {
  if (!shared_base) {
    void *base = mmap(nullptr, SHARED_RANGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) fault("no memory for shared memory");
    shared_base = static_cast<unsigned char *>(base);
    ASAN_POISON_MEMORY_REGION(shared_base, SHARED_RANGE);
  }
  const size_t taken = (bytes + SHARED_ZONE - 1) / SHARED_ZONE * SHARED_ZONE + SHARED_ZONE;
  if (shared_used + taken > SHARED_RANGE) fault("%s: more shared memory than there is", running->name);
  unsigned char *at = shared_base + shared_used;
  shared_used += taken;
  ASAN_UNPOISON_MEMORY_REGION(at, bytes);
  memset(at, 0xff, bytes); // NaN: what nobody has written is not used unnoticed
  return at;
}

void forget_shared() {
  if (shared_base) ASAN_POISON_MEMORY_REGION(shared_base, SHARED_RANGE);
  shared_used = 0;
  shared_arrays.clear();
  dynamic_base = nullptr;
}

/* ---- waiting ---- */

[[noreturn]] void stuck(size_t n) {
  const thread *left = nullptr, *waits = nullptr, *other = nullptr;
  for (size_t i = 0; i < n; i++) {
    const thread &t = threads[i];
    if (t.now == state::done) left = &t;
    else if (!waits) waits = &t;
    else if (t.now != waits->now || t.at.line != waits->at.line || t.at.file != waits->at.file) other = &t;
  }
  const char *what = waits->now == state::at_barrier ? "barrier" : "warp operation";
  if (other)
    fault("divergent %s: %s waits at %s:%d, %s at %s:%d", what, name_of(*waits).c_str(), waits->at.file, waits->at.line,
          name_of(*other).c_str(), other->at.file, other->at.line);
  if (left)
    fault("divergent %s: %s waits at %s:%d, %s has ended", what, name_of(*waits).c_str(), waits->at.file, waits->at.line,
          name_of(*left).c_str());
  fault("%s: a %s at %s:%d waits for lanes that do not exist (mask %08x)", name_of(*waits).c_str(), what, waits->at.file,
        waits->at.line, waits->mask);
}

/* All threads at one barrier: they go on. */
bool release_barrier(size_t n) {
  for (size_t i = 0; i < n; i++)
    if (threads[i].now != state::at_barrier || threads[i].at.line != threads[0].at.line || threads[i].at.file != threads[0].at.file)
      return false;
  for (size_t i = 0; i < n; i++) threads[i].now = state::able;
  return true;
}

/* Runs all able threads once, in a random order; skewed: those of one warp alone, so that others fall far behind. False when there was none. */
bool turn(size_t n, bool skewed) {
  static std::vector<unsigned> order;
  order.clear();
  for (unsigned i = 0; i < n; i++)
    if (threads[i].now == state::able) order.push_back(i);
  if (order.empty()) return false;
  if (skewed) {
    const unsigned warp = order[random_below(order.size())] / 32;
    order.erase(std::remove_if(order.begin(), order.end(), [=](unsigned i) { return i / 32 != warp; }), order.end());
  }
  for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random_below(i)]);
  for (unsigned i : order) resume(threads[i]);
  return true;
}

void run_block(extent at) {
  const size_t n = count(running->block);
  block_at = at;
  make_threads();
  forget_shared();
  dynamic_base = running->dynamic_shared ? carve(running->dynamic_shared) : nullptr;
  const bool skewed = random_below(2) == 0;
  for (;;) {
    if (turn(n, skewed)) continue;
    if (std::all_of(threads.begin(), threads.begin() + (long)n, [](const thread &t) { return t.now == state::done; })) break;
    if (!release_barrier(n)) stuck(n);
  }
  forget_shared();
}

} // namespace

void check_launch(const launch &l) {
  const size_t n = count(l.block);
  if (n < 1 || n > 1024 || l.block.x > 1024 || l.block.y > 1024 || l.block.z > 64)
    fault("%s: a block of (%u, %u, %u) threads", l.name, l.block.x, l.block.y, l.block.z);
  if (count(l.grid) < 1 || l.grid.x > 2147483647u || l.grid.y > 65535 || l.grid.z > 65535)
    fault("%s: a grid of (%u, %u, %u) blocks", l.name, l.grid.x, l.grid.y, l.grid.z);
}

void run(const launch &l) {
  running = &l;
  launched[l.name]++;
  counted.launches++;
  const size_t blocks = count(l.grid), step = 1 + 2 * random_below(blocks);
  // a random order without a list of all: a multiplier without a factor in common
  size_t multiplier = step % blocks;
  while (blocks > 1 && std::gcd(multiplier, blocks) != 1) multiplier = (multiplier + 1) % blocks;
  const size_t first = random_below(blocks);
  for (size_t i = 0; i < blocks; i++) {
    const size_t b = blocks > 1 ? (first + i * multiplier) % blocks : 0;
    run_block({(unsigned)(b % l.grid.x), (unsigned)(b / l.grid.x % l.grid.y), (unsigned)(b / l.grid.x / l.grid.y)});
  }
  running = nullptr;
}

int64_t launches_of(const char *kernel) {
  auto it = launched.find(kernel);
  return it == launched.end() ? 0 : it->second;
}

/* ---- what a thread asks for ---- */

static thread &self(const char *what) {
  if (!current) fault("%s outside a kernel", what);
  return *current;
}

extent thread_index() {
  return self("threadIdx").index;
}
extent block_index() {
  self("blockIdx");
  return block_at;
}
extent block_extent() {
  self("blockDim");
  return running->block;
}
extent grid_extent() {
  self("gridDim");
  return running->grid;
}
unsigned lane() {
  return self("lane").linear % 32;
}

void barrier(site at) {
  thread &t = self("__syncthreads");
  t.now = state::at_barrier;
  t.at = at;
  to_scheduler();
}

const unsigned char (*warp_exchange(int kind, unsigned mask, site at, const void *value, size_t bytes))[EXCHANGE_BYTES] {
  thread &t = self("a warp operation");
  const size_t n = count(running->block), first = t.linear / 32 * 32;
  if (bytes > EXCHANGE_BYTES) fault("%s: a warp operation of %zu bytes", running->name, bytes);
  if (!(mask >> t.linear % 32 & 1)) fault("%s: is not in the mask %08x at %s:%d", name_of(t).c_str(), mask, at.file, at.line);
  t.now = state::in_warp;
  t.at = at;
  t.kind = kind;
  t.mask = mask;
  memcpy(t.value, value, bytes);
  bool all = true;
  for (unsigned l = 0; l < 32; l++) {
    if (!(mask >> l & 1)) continue;
    if (first + l >= n) fault("%s: mask %08x names lanes beyond the block at %s:%d", name_of(t).c_str(), mask, at.file, at.line);
    const thread &o = threads[first + l];
    if (o.now == state::in_warp && (o.kind != kind || o.mask != mask || o.at.line != at.line || o.at.file != at.file))
      fault("divergent warp operation: %s waits at %s:%d with mask %08x, %s at %s:%d with mask %08x", name_of(t).c_str(), at.file,
            at.line, mask, name_of(o).c_str(), o.at.file, o.at.line, o.mask);
    if (o.now == state::done)
      fault("divergent warp operation: %s waits at %s:%d, %s has ended", name_of(t).c_str(), at.file, at.line, name_of(o).c_str());
    if (o.now != state::in_warp) { // the last to come looks at all; if none does, stuck() says why
      all = false;
      break;
    }
  }
  if (all) {
    if (spare.empty()) spare.push_back(&exchanges.emplace_back());
    exchange *e = spare.back();
    spare.pop_back();
    e->readers = 0;
    for (unsigned l = 0; l < 32; l++) {
      if (!(mask >> l & 1)) continue;
      thread &o = threads[first + l];
      memcpy(e->values[l], o.value, EXCHANGE_BYTES);
      o.seen = e;
      o.now = state::able;
      e->readers++;
    }
  }
  to_scheduler();
  return t.seen->values;
}

void warp_seen() {
  exchange *e = self("a warp operation").seen;
  if (--e->readers == 0) spare.push_back(e);
}

void *shared_array(const char *name, int line, size_t bytes) {
  self("shared memory");
  unsigned char *&array = shared_arrays[{name, line}];
  if (!array) array = carve(bytes);
  return array;
}
void *dynamic_shared() {
  self("shared memory");
  if (!dynamic_base) fault("%s: asks for dynamic shared memory, launched with none", running->name);
  return dynamic_base;
}

void check_shared(const void *pointer, size_t bytes, site at) {
  const thread &t = self("shared memory");
  const auto *p = static_cast<const unsigned char *>(pointer);
  if (!shared_base || p < shared_base || p + bytes > shared_base + shared_used)
    fault("%s: %p is not in shared memory, at %s:%d", name_of(t).c_str(), pointer, at.file, at.line);
}

void copy_later(void *shared, const void *global, size_t bytes, int copied, site at) {
  thread &t = self("an asynchronous copy");
  check_shared(shared, bytes, at);
  if (copied < 0 || (size_t)copied > bytes || (uintptr_t)shared % bytes != 0 || (uintptr_t)global % bytes != 0)
    fault("%s: an asynchronous copy of %d of %zu bytes from %p to %p at %s:%d, which must be aligned to its size", name_of(t).c_str(),
          copied, bytes, global, shared, at.file, at.line);
  if (copied) check_device(global, (size_t)copied, "an asynchronous copy to shared memory");
  memset(shared, 0xff, bytes);
  t.copies.push_back({shared, global, bytes, (size_t)copied, t.groups, at});
}
void commit_copies() {
  self("an asynchronous copy").groups++;
}
void wait_copies(int pending_groups) {
  thread &t = self("an asynchronous copy");
  size_t done = 0;
  while (done < t.copies.size() && t.copies[done].group + (uint64_t)pending_groups < t.groups) {
    const pending_copy &c = t.copies[done++];
    if (c.copied) memcpy(c.shared, c.global, c.copied);
    memset(static_cast<unsigned char *>(c.shared) + c.copied, 0, c.bytes - c.copied);
  }
  t.copies.erase(t.copies.begin(), t.copies.begin() + (long)done);
}

} // namespace simgpu
