/* The LLaMA-shaped model over the ops table: forward and backward, once for all backends.
 * RMSNorm → attention (RoPE, causal) → residual → RMSNorm → SwiGLU → residual; final RMSNorm; head. */
#ifndef SPT_MODEL_H
#define SPT_MODEL_H

#include "backend.h"
#include "params.h"

typedef struct spt_model spt_model;

/* Called during the backward pass of a step's last micro-batch. Stages in back-propagation order: 0 = head and final norm, then
 * 1 + (layers − 1 − l) for layer l, and layers + 1 = embedding (a tied head completes there). */
typedef struct spt_backward_hooks {
  void *context;
  spt_status (*grad_ready)(void *context, int stage); /* all gradients of `stage` are complete */
  spt_status (*progress)(void *context);              /* called between ops */
} spt_backward_hooks;

/* Stage in which tensor `tensor`'s gradient is complete. */
int spt_model_stage(const spt_model_config *model, const spt_params *params, int tensor);

/* What an op of a pass has written, told to an observer right after the op. */
typedef enum {
  SPT_SEEN_OUTPUT,         /* forward: of a matrix, the attention, the embedding; of the head, the losses */
  SPT_SEEN_GRADIENT,       /* backward: of a parameter tensor, summed over the micro-batches so far */
  SPT_SEEN_INPUT_GRADIENT, /* backward: of an op's input */
} spt_seen;
typedef struct spt_observation {
  const char *what; /* "self_attn.q_proj", "self_attn" (the attention), "embed_tokens"; of a gradient the tensor's whole name */
  int layer;        /* −1: none */
  spt_seen seen;
  spt_dtype dtype;
  int64_t count;
  const void *values; /* backend memory, until the next op */
} spt_observation;
typedef struct spt_observer {
  void *context;
  spt_status (*see)(void *context, const spt_observation *observation); /* a failure ends the pass */
} spt_observer;

/* Bytes by kind for one rank, without allocating anything but the table. */
typedef struct spt_model_memory {
  size_t compute_weights, activations, workspace;
} spt_model_memory;
spt_status spt_model_measure(spt_backend *backend, const spt_model_config *config, int64_t micro, bool train, spt_model_memory *memory_p);

/* `parameters` and `gradients` are slabs in `layout` (gradients NULL: evaluation only). micro = sequences per pass at most. All borrowed
 * until close. Allocates the compute copy, activations and workspace. Local. */
spt_status spt_model_open(spt_backend *backend, const spt_model_config *config, const spt_params *params,
                          const spt_layout *layout, float *parameters, float *gradients, int64_t micro,
                          spt_model **model_p);
void spt_model_close(spt_model **model_p);

/* What a model reads where a rank holds no more masters than it owns: all parameters rounded to bf16, in `layout` (the gains' places are unused), and
 * all gains in fp32. Borrowed, backend memory. */
typedef struct spt_model_copies {
  const void *values;         /* bf16 */
  const float *gains;         /* gain `tensor` from gain_offset[tensor] on */
  const int64_t *gain_offset; /* [tensor_count] */
} spt_model_copies;
/* From now on the model reads these; the `parameters` it was opened with are not looked at. For backends that pack from bf16 (backend.h). Local. */
void spt_model_read_copies(spt_model *model, const spt_model_copies *copies);

/* Refreshes the compute copy from the masters, or the copies; call after they change. */
spt_status spt_model_refresh(spt_model *model);
/* How guides are used in the passes that follow, forward, backward and recomputation, until the next call: alphas[layer·SPT_MATRICES + matrix], read
 * where a matrix has a guide; NULL, as at first: not at all. Copied. */
void spt_model_set_guidance(spt_model *model, const float *alphas);
/* One micro-batch: ids and targets are host int32 (sequences, seq_len). Adds gradients of loss_scale·Σ losses; *loss_sum += Σ losses in
 * double, in backend memory. hooks: NULL except for the last micro-batch of a step. */
spt_status spt_model_train(spt_model *model, int64_t sequences, const int32_t *ids, const int32_t *targets,
                           float loss_scale, const spt_backward_hooks *hooks, double *loss_sum);
/* Forward only; *loss_sum_p, the host's, += Σ losses. */
spt_status spt_model_evaluate(spt_model *model, int64_t sequences, const int32_t *ids, const int32_t *targets,
                              double *loss_sum_p);
/* The probe: runs one sequence, ids (seq_len) of the host, forward through the layers, and hands out the inputs h of every matrix (after the norm
 * or the gate, as fp32) at `count` positions. inputs: spt_probe_floats of the host's; those of a layer's matrix are at spt_probe_offset,
 * (count, n), the same for matrices that share their input. Waits for the device. Changes nothing that outlives a pass. Local. */
int64_t spt_probe_floats(const spt_model_config *config, int64_t count);
int64_t spt_probe_offset(const spt_model_config *config, int64_t count, int layer, int matrix);
spt_status spt_model_probe(spt_model *model, const int32_t *ids, int64_t count, const int64_t *positions, float *inputs);
/* Every training pass from now on tells `observer` (borrowed; NULL: none) what each op wrote, in the order of the ops: members of a group in
 * GEMM order, in backward their parameters' gradients before that of their input. With recomputation forward ops are told of twice. Local. */
void spt_model_observe(spt_model *model, const spt_observer *observer);
/* Checks the red zones of the model's slabs. */
spt_status spt_model_check(const spt_model *model);

#endif
