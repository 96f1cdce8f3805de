/* A slab: one allocation per kind of memory, carved from tables. First reserve every piece (gives offsets and the total, which is
 * all a dry run needs), then allocate once. In red-zone builds (-Dred_zones=true) each piece is followed by a checked zone. */
#ifndef SPT_SLAB_H
#define SPT_SLAB_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>

struct spt_backend;

typedef struct spt_slab {
  const char *kind; /* "activations", … for messages and reports */
  struct spt_backend *backend; /* not owned; NULL: host memory */
  unsigned char *base;
  size_t bytes; /* reserved so far */
  size_t *zones; /* offsets of the red zones */
  size_t zone_count, zone_capacity;
} spt_slab;

void spt_slab_init(spt_slab *slab, const char *kind);
/* Reserves `bytes` at 64-byte alignment; returns the offset. Only before allocation. */
size_t spt_slab_reserve(spt_slab *slab, size_t bytes);
/* Allocates, zeroed, from the backend (huge-page aligned), or from the host when backend is NULL: then pages are taken as they are first used. SPT_ERR_RESOURCE names the
 * kind and the size. */
spt_status spt_slab_allocate(spt_slab *slab, struct spt_backend *backend);
void *spt_slab_at(const spt_slab *slab, size_t offset);
/* SPT_ERR_RESOURCE when a red zone was overwritten (names the kind and offset). Looks at nothing where the backend guards zones. */
spt_status spt_slab_check(const spt_slab *slab);
/* Frees; the slab may be used again after init. Takes never-allocated slabs. */
void spt_slab_fini(spt_slab *slab);

#endif
