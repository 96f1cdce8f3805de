/* Counts heap allocations, by defining malloc and its family in front of the C library's. Linked into a test that asks
 * for it; not in sanitizer builds, which bring their own. */
#ifndef SPT_COUNT_ALLOCATIONS_H
#define SPT_COUNT_ALLOCATIONS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct allocation_counts {
  int64_t own;     /* called from this program, into which the project's libraries are linked */
  int64_t library; /* from shared libraries: oneDNN and what it calls, libgomp, the C library */
} allocation_counts;

bool allocations_are_counted(void);
/* Of all threads so far. */
allocation_counts allocations(void);

#endif
