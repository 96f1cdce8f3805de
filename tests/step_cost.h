/* What one training step of a small model executes on the CPU backend: counts, no times. */
#ifndef SPT_STEP_COST_H
#define SPT_STEP_COST_H

#include "core/backend.h"
#include "core/model.h"
#include "count_allocations.h"

enum { STEP_COST_STEPS = 3 }; /* counted after the first, which creates what they reuse */

/* A step: gradients zeroed, forward and backward of one micro-batch, gradient statistics, update, compute copy. */
typedef struct step_cost {
  spt_backend_profile profile;   /* seconds set to 0 */
  int64_t op_calls, regions;     /* of all ops; parallel regions that the first thread entered by spt_cpu_enter */
  int64_t products;              /* spt_gemm calls */
  int64_t misses;                /* primitives created, buffers grown */
  int64_t reference_primitives;  /* those of the whole run that oneDNN runs by its slow reference loops */
  allocation_counts allocations; /* while the step ran */
} step_cost;

typedef struct step_case {
  spt_parameterization parameterization; /* dense: AdamW, else Spectron */
  spt_precision precision;
  int threads;
} step_case;

/* The model and batch of every case. */
spt_model_config step_cost_model(spt_parameterization parameterization);
int64_t step_cost_tokens(void);

/* Runs 1 + STEP_COST_STEPS steps; fails the test on any error. With `again`, each step's forward and backward are done
 * twice: a step that does more than it should. */
void step_cost_measure(const step_case *c, bool again, step_cost costs[STEP_COST_STEPS], spt_model_memory *memory_p);

#endif
