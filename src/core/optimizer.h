/* The sharded optimizer step: Spectron and its ablations on factor pairs (arXiv:2602.12429, Alg. 1–3), the same directions with rho = eta on dense
 * matrices (one matrix alone: ‖ΔW‖₂ ≤ eta as it is), AdamW on all else.
 * A rank holds state only for its share. */
#ifndef SPT_OPTIMIZER_H
#define SPT_OPTIMIZER_H

#include "backend.h"
#include "params.h"
#include "update.h"

/* Elements [begin, end) of a tensor updated elementwise (AdamW). */
typedef struct spt_slice {
  int tensor;
  int64_t begin, end;
} spt_slice;

/* What one rank owns. Borrowed arrays. */
typedef struct spt_share {
  const int *pairs; /* pair indices, ascending */
  int pair_count;
  const spt_slice *slices; /* ascending by (tensor, begin) */
  int slice_count;
} spt_share;

/* True when factor pairs and dense matrices are updated as such (every method but adamw). */
static inline bool spt_method_uses_pairs(spt_method method) { return method != SPT_METHOD_ADAMW; }
/* True when Newton–Schulz orthogonalises their momentum. */
static inline bool spt_method_orthogonalizes(spt_method method) { return method == SPT_METHOD_SPECTRON || method == SPT_METHOD_MUON; }

typedef struct spt_optimizer spt_optimizer;

/* One piece of state for checkpoints: elements [begin, end) of dataset /optimizer/<tensor>/<kind>. */
typedef struct spt_state_piece {
  int tensor;
  const char *kind;   /* "momentum", "power_u", "adam_m", "adam_v" */
  int64_t rows, cols; /* shape of the whole dataset: the tensor's, or (rows, 1) for power_u (factors only) */
  int64_t begin, end;
  float *values; /* backend memory, end − begin elements */
} spt_state_piece;

/* Bytes of state and of workspace for a share, without allocating. */
void spt_optimizer_measure(const spt_optimizer_config *config, const spt_params *params, const spt_share *share, spt_dtype act,
                           size_t *state_bytes_p, size_t *workspace_bytes_p);
/* Allocates the share's state (momentum zero, u random from (seed, tensor name), normalised). Local. */
spt_status spt_optimizer_open(spt_backend *backend, const spt_optimizer_config *config, const spt_params *params, const spt_layout *layout,
                              const spt_share *share, float *parameters, float *gradients, uint64_t seed, spt_optimizer **optimizer_p);
/* The masters, `parameters`, have a layout of their own: only those of this share are there, element i of tensor t at offset[t] + i. Borrowed. Local. */
void spt_optimizer_place_masters(spt_optimizer *optimizer, const spt_layout *masters);
void spt_optimizer_close(spt_optimizer **optimizer_p);
/* The pieces of state this rank holds, ascending by (tensor, kind); owned by the optimizer. */
const spt_state_piece *spt_optimizer_state(const spt_optimizer *optimizer, int *count_p);
/* Number of applied updates (Adam's count); settable on resume. Where memory is not the host's, control->applied counts, and this is what was last
 * set. */
int64_t spt_optimizer_applied(const spt_optimizer *optimizer);
void spt_optimizer_set_applied(spt_optimizer *optimizer, int64_t applied);
/* Adds the share's gradient statistics to *control (backend memory). Local: the caller sums over ranks, then decides clip and apply. */
spt_status spt_optimizer_gradient_stats(spt_optimizer *optimizer, spt_control *control);
/* Updates the share's masters with learning rate lr_factor·lr (Alg. 1). Counts the update as applied when control->apply is 1, where
 * memory is the host's; elsewhere control->applied has it counted already (decide), and nothing waits for the decision. */
spt_status spt_optimizer_step(spt_optimizer *optimizer, double lr_factor, const spt_control *control);
/* From now on each step tells what it did to the share's tensors, piece by piece, if it is applied; where memory is not the host's, it then waits
 * for the device. By the time a piece is told of, its gradient is used up. NULL: no more. The observer is copied. Local. */
void spt_optimizer_observe(spt_optimizer *optimizer, const spt_update_observer *observer);
/* Checks the red zones of the optimizer's slabs. Local. */
spt_status spt_optimizer_check(const spt_optimizer *optimizer);
/* sigma_A, sigma_B of owned pair i of the share, as of the last step (host values). */
spt_status spt_optimizer_sigmas(const spt_optimizer *optimizer, int i, float *sigma_a_p, float *sigma_b_p);

#endif
