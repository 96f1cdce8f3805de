/* What a thread of a simulated block asks its block for. device.cuh makes the words of CUDA of it. */
#ifndef SIMGPU_BLOCK_H
#define SIMGPU_BLOCK_H

#include "simgpu.h"

namespace simgpu {

/* Where in the source: two waits are the same only if they stand in the same place. */
struct site {
  const char *file;
  int line;
};
#define SIMGPU_HERE (simgpu::site{__FILE__, __LINE__})

enum { EXCHANGE_BYTES = 64 };

extent thread_index();
extent block_index();
extent block_extent();
extent grid_extent();
unsigned lane();
/* Every thread of the block comes here, or it is a fault. */
void barrier(site at);
/* Every lane of the mask comes here with a value; each then sees all. warp_seen ends the look. Kinds tell operations apart. */
const unsigned char (*warp_exchange(int kind, unsigned mask, site at, const void *value, size_t bytes))[EXCHANGE_BYTES];
void warp_seen();
/* The block's array `name`, declared at `line`: the same for all its threads, poisoned at the block's beginning. */
void *shared_array(const char *name, int line, size_t bytes);
void *dynamic_shared();
/* Faults unless [pointer, pointer + bytes) lies in the block's shared memory. */
void check_shared(const void *pointer, size_t bytes, site at);
/* Asynchronous copies of this thread: `copied` bytes of `global` and zeros to `shared`, `bytes` in all, when their group is waited for; until then
 * the target is NaN. A thread that ends with copies that nobody waited for is a fault. */
void copy_later(void *shared, const void *global, size_t bytes, int copied, site at);
void commit_copies();
void wait_copies(int pending_groups);

} // namespace simgpu

#endif
