/* Carving workspace into pieces; with base NULL it only counts. */
#ifndef SPT_CARVE_H
#define SPT_CARVE_H

#include <stddef.h>
#include <stdint.h>

typedef struct spt_carve {
  unsigned char *base;
  size_t used;
} spt_carve;

/* The next `count` elements of `size` bytes; what follows begins at a multiple of `alignment`, a power of two. */
static inline void *spt_carve_aligned(spt_carve *carve, int64_t count, size_t size, size_t alignment) {
  void *piece = carve->base ? carve->base + carve->used : NULL;
  carve->used += ((size_t)count * size + alignment - 1) & ~(alignment - 1);
  return piece;
}

#endif
