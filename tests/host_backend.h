/* A backend that only moves and adds memory, for tests of what stores and sums it. */
#ifndef SPT_HOST_BACKEND_H
#define SPT_HOST_BACKEND_H

#include "core/backend.h"

#include <stdlib.h>
#include <string.h>

static int host_moves; /* copies so far */
static spt_status host_move(spt_backend *backend, void *to, const void *from, size_t bytes) {
  (void)backend;
  memcpy(to, from, bytes);
  host_moves++;
  return SPT_OK;
}

static spt_status host_alloc(spt_backend *backend, size_t bytes, void **pointer_p) {
  (void)backend;
  *pointer_p = calloc(bytes + 1, 1);
  return *pointer_p ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "host: out of memory");
}

static void host_free(spt_backend *backend, void *pointer, size_t bytes) {
  (void)backend, (void)bytes;
  free(pointer);
}

static spt_status host_zero(spt_backend *backend, void *pointer, size_t bytes) {
  (void)backend;
  memset(pointer, 0, bytes);
  return SPT_OK;
}

static spt_status host_add(spt_backend *backend, int64_t count, const float *a, const float *b, float *out) {
  (void)backend;
  for (int64_t i = 0; i < count; i++) out[i] = b ? a[i] + b[i] : a[i];
  return SPT_OK;
}

static spt_status host_round_bf16(spt_backend *backend, int64_t count, const float *from, void *to) {
  (void)backend;
  for (int64_t i = 0; i < count; i++) { // no NaN
    uint32_t bits;
    memcpy(&bits, from + i, sizeof bits);
    ((uint16_t *)to)[i] = (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }
  return SPT_OK;
}

static const spt_ops host_ops = {.name = "host",
                                 .alloc = host_alloc,
                                 .free = host_free,
                                 .upload = host_move,
                                 .download = host_move,
                                 .zero = host_zero,
                                 .add = host_add,
                                 .round_bf16 = host_round_bf16};
static spt_backend host_backend = {.ops = &host_ops, .host_memory = true};

#endif
