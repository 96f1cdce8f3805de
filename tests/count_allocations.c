#include "count_allocations.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

static atomic_llong own_count, library_count;

allocation_counts allocations(void) {
  return (allocation_counts){.own = own_count, .library = library_count};
}

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *pointer, size_t bytes);
extern void *__libc_memalign(size_t alignment, size_t bytes);
extern const char __executable_start[], etext[]; /* the linker's: where this program's code lies */

bool allocations_are_counted(void) {
  return true;
}

static void count(const void *caller) {
  const uintptr_t at = (uintptr_t)caller;
  if (at >= (uintptr_t)__executable_start && at < (uintptr_t)etext)
    own_count++;
  else
    library_count++;
}
#define COUNT_CALLER() count(__builtin_return_address(0))

void *malloc(size_t bytes) {
  COUNT_CALLER();
  return __libc_malloc(bytes);
}
void *calloc(size_t number, size_t size) {
  COUNT_CALLER();
  return __libc_calloc(number, size);
}
void *realloc(void *pointer, size_t bytes) {
  COUNT_CALLER();
  return __libc_realloc(pointer, bytes);
}
void *memalign(size_t alignment, size_t bytes) {
  COUNT_CALLER();
  return __libc_memalign(alignment, bytes);
}
void *aligned_alloc(size_t alignment, size_t bytes) {
  COUNT_CALLER();
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void **pointer_p, size_t alignment, size_t bytes) {
  COUNT_CALLER();
  if (alignment % sizeof(void *) != 0 || (alignment & (alignment - 1)) != 0 || alignment == 0) return EINVAL;
  void *pointer = __libc_memalign(alignment, bytes);
  if (!pointer) return ENOMEM;
  *pointer_p = pointer;
  return 0;
}

#else

bool allocations_are_counted(void) {
  return false;
}

#endif
