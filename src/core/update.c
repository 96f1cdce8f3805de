#include "update.h"

#include <string.h>

enum { PIECE = SPT_UPDATE_SCRATCH / 3 };

/* Δ of `count` elements; all in host memory. */
static void compute(const spt_update *update, int64_t count, const void *direction, const float *m, const float *v,
                    float *delta) {
  const float rho = (float)update->rho, step_size = (float)update->step_size;
  const float second_scale = (float)update->second_scale, eps = (float)update->eps;
  if (direction)
    for (int64_t i = 0; i < count; i++) delta[i] = -rho * spt_element(direction, i, update->dtype);
  else
    for (int64_t i = 0; i < count; i++) delta[i] = -step_size * m[i] / (sqrtf(v[i] * second_scale) + eps);
}

spt_status spt_update_store(spt_backend *backend, const spt_update *update, float *scratch, float *to) {
  const int64_t total = update->end - update->begin;
  if (backend->host_memory) {
    compute(update, total, update->direction, update->m, update->v, to);
    return SPT_OK;
  }
  float *first = scratch, *second = scratch + PIECE, *delta = scratch + 2 * PIECE;
  const size_t size = update->direction ? spt_dtype_size(update->dtype) : sizeof(float);
  for (int64_t at = 0; at < total; at += PIECE) {
    const int64_t count = total - at < PIECE ? total - at : PIECE;
    if (update->direction)
      SPT_TRY(backend->ops->download(backend, first, (const char *)update->direction + (size_t)at * size, (size_t)count * size));
    else {
      SPT_TRY(backend->ops->download(backend, first, update->m + at, (size_t)count * size));
      SPT_TRY(backend->ops->download(backend, second, update->v + at, (size_t)count * size));
    }
    compute(update, count, update->direction ? first : NULL, first, second, delta);
    SPT_TRY(backend->ops->upload(backend, to + at, delta, (size_t)count * sizeof *delta));
  }
  return SPT_OK;
}
