/* A backend that only moves memory, for tests of what stores and restores it. */
#ifndef SPT_HOST_BACKEND_H
#define SPT_HOST_BACKEND_H

#include "core/backend.h"

#include <string.h>

static int host_moves; /* copies so far */
static spt_status host_move(spt_backend *backend, void *to, const void *from, size_t bytes) {
  (void)backend;
  memcpy(to, from, bytes);
  host_moves++;
  return SPT_OK;
}

static const spt_ops host_ops = {.name = "host", .upload = host_move, .download = host_move};
static spt_backend host_backend = {.ops = &host_ops, .host_memory = true};

#endif
