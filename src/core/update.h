/* What an optimizer step did, told piece by piece to an observer. */
#ifndef SPT_UPDATE_H
#define SPT_UPDATE_H

#include "backend.h"

/* Elements [begin, end) of a tensor were updated: w ← keep·w + Δ, with Δ = −rho·direction or, by AdamW,
 * Δ = −step_size·m/(√(second_scale·v) + eps). Arrays are backend memory, valid until the observer returns. */
typedef struct spt_update {
  int tensor;
  int64_t begin, end;
  double lr, keep;       /* η_t of this tensor; 1 − η_t·λ */
  double rho;            /* NAN: AdamW */
  const void *direction; /* [end − begin] of `dtype`; NULL: AdamW */
  spt_dtype dtype;
  const float *m, *v; /* [end − begin], after the step */
  double step_size, second_scale, eps;
} spt_update;

typedef struct spt_update_observer {
  void *context;
  spt_status (*updated)(void *context, const spt_update *update);
} spt_update_observer;

/* Floats of scratch, host memory, that storing takes where memory is not the host's. */
enum { SPT_UPDATE_SCRATCH = 3 << 16 };
/* Writes Δ to `to`, backend memory. Waits for the device. Local. */
spt_status spt_update_store(spt_backend *backend, const spt_update *update, float *scratch, float *to);

#endif
