#include "slab.h"

#include "backend.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGNMENT = 64 };
#ifdef SPT_RED_ZONES
enum { ZONE_BYTES = 64 };
#else
enum { ZONE_BYTES = 0 };
#endif
static const unsigned char zone_byte = 0xA5;

static size_t align_up(size_t bytes) {
  return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

void spt_slab_init(spt_slab *slab, const char *kind) {
  memset(slab, 0, sizeof *slab);
  slab->kind = kind;
}

size_t spt_slab_reserve(spt_slab *slab, size_t bytes) {
  const size_t offset = slab->bytes;
  slab->bytes += align_up(bytes);
  if (ZONE_BYTES > 0) {
    if (slab->zone_count == slab->zone_capacity) {
      const size_t capacity = slab->zone_capacity ? 2 * slab->zone_capacity : 64;
      size_t *zones = realloc(slab->zones, capacity * sizeof *zones);
      if (!zones) return offset; // one zone fewer is checked
      slab->zones = zones;
      slab->zone_capacity = capacity;
    }
    slab->zones[slab->zone_count++] = offset + bytes; // where the piece ends, what alignment leaves behind it included
    slab->bytes += ZONE_BYTES;
  }
  return offset;
}

/* Whoever touches a zone faults there and then. */
static bool is_guarded(const spt_slab *slab) {
  return slab->backend && slab->backend->ops->guard;
}

spt_status spt_slab_allocate(spt_slab *slab, spt_backend *backend) {
  if (slab->bytes == 0) return SPT_OK;
  void *base = NULL;
  if (backend) {
    SPT_TRY(backend->ops->alloc(backend, slab->bytes, &base));
  } else {
    base = mmap(NULL, slab->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) base = NULL;
  }
  if (!base)
    return SPT_FAIL(SPT_ERR_RESOURCE,
                    "out of memory: %s need %.1f MiB on this rank; use a smaller batch.micro or more ranks", slab->kind,
                    (double)slab->bytes / (1 << 20));
  slab->backend = backend;
  slab->base = base;
  unsigned char zone[64];
  memset(zone, zone_byte, sizeof zone);
  for (size_t i = 0; i < slab->zone_count; i++) {
    if (backend)
      SPT_TRY(backend->ops->upload(backend, slab->base + slab->zones[i], zone, sizeof zone));
    else
      memcpy(slab->base + slab->zones[i], zone, sizeof zone);
  }
  if (!is_guarded(slab) || slab->zone_count == 0) return SPT_OK;
  SPT_TRY(backend->ops->synchronize(backend));
  for (size_t i = 0; i < slab->zone_count; i++) // up to the next piece
    backend->ops->guard(backend, slab->base + slab->zones[i], align_up(slab->zones[i]) + ZONE_BYTES - slab->zones[i], false);
  return SPT_OK;
}

void *spt_slab_at(const spt_slab *slab, size_t offset) {
  return slab->base ? slab->base + offset : NULL;
}

spt_status spt_slab_check(const spt_slab *slab) {
  unsigned char zone[64], found[64];
  memset(zone, zone_byte, sizeof zone);
  for (size_t i = 0; slab->base && !is_guarded(slab) && i < slab->zone_count; i++) {
    const unsigned char *at = slab->base + slab->zones[i];
    if (slab->backend && !slab->backend->host_memory) {
      SPT_TRY(slab->backend->ops->download(slab->backend, found, at, sizeof found));
      at = found;
    }
    if (memcmp(at, zone, sizeof zone) != 0)
      return SPT_FAIL(SPT_ERR_RESOURCE, "%s slab: red zone %zu at byte %zu was overwritten", slab->kind, i,
                      slab->zones[i]);
  }
  return SPT_OK;
}

void spt_slab_fini(spt_slab *slab) {
  if (slab->base) {
    if (slab->backend)
      slab->backend->ops->free(slab->backend, slab->base, slab->bytes);
    else
      munmap(slab->base, slab->bytes);
  }
  free(slab->zones);
  spt_slab_init(slab, slab->kind);
}
