/* The ops table: all that a device must do. The model (forward, backward), the optimizer and their order are written once, over this
 * table; kernels/ holds the implementations. tests/reference.{c,h} defines every op by naive loops.
 *
 * Conventions. Matrices are row-major. N = tokens = sequences·seq_len; rows of one sequence are adjacent. "act" is the backend's
 * activation type (spt_backend.act): bf16 or fp32; products accumulate in fp32. The residual stream, gains, statistics, masters and gradients of
 * parameters are fp32. Gradients of parameters are ADDED to what is there; other outputs are overwritten unless said otherwise.
 * All pointers are the backend's memory (`alloc`). Ops are Local, may run asynchronously in issue order, and fail only with SPT_ERR_RESOURCE.
 * The result of an op does not depend on the number of threads. Nothing is allocated after the first step. */
#ifndef SPT_BACKEND_H
#define SPT_BACKEND_H

#include "config.h"

#include <math.h>
#include <string.h>

typedef enum { SPT_F32, SPT_BF16 } spt_dtype;
static inline size_t spt_dtype_size(spt_dtype dtype) { return dtype == SPT_BF16 ? 2 : 4; }
/* Element i of host memory of any alignment; bf16 is the upper half of an fp32. */
static inline float spt_element(const void *values, int64_t i, spt_dtype dtype) {
  const char *at = (const char *)values + (size_t)i * spt_dtype_size(dtype);
  float value;
  if (dtype == SPT_BF16) {
    uint16_t half;
    memcpy(&half, at, sizeof half);
    const uint32_t bits = (uint32_t)half << 16;
    memcpy(&value, &bits, sizeof value);
  } else {
    memcpy(&value, at, sizeof value);
  }
  return value;
}

#define SPT_GROUP_MAX 3
enum { SPT_LATER_BYTES = 512 };

typedef enum { SPT_PROLOGUE_NONE, SPT_PROLOGUE_RMSNORM, SPT_PROLOGUE_SWIGLU } spt_prologue;
typedef enum { SPT_EPILOGUE_NONE, SPT_EPILOGUE_ROPE, SPT_EPILOGUE_RESIDUAL } spt_epilogue;

/* A pair group: 1–3 matrices that share one input. With h = prologue(x) (N, n):
 *     t_j = h·B_j (N, r_j),  y_j = epilogue(t_j·A_jᵀ) (N, m_j)      or, dense (r_j = 0),  y_j = epilogue(h·W_jᵀ), W_j (m_j, n)
 * y is the members one after another, y_0 (N, m_0), y_1 (N, m_1), y_2 (N, m_2), M = Σ m_j elements a token: q, then k, then v; gate, then
 * up. Each is dense, which matrix libraries are fastest on. Either all of a group's members are dense or none. Prologues: NONE: h = x, x act (N, n). RMSNORM: x fp32 (N, n),
 * h = x·rstd·gain, rstd = 1/√(mean(x²) + norm_eps). SWIGLU: x = gate act (N, n), then up act (N, n), h = silu(gate)·up.
 * Epilogues: NONE: y act. ROPE: y act, members 0 and 1 (q, k) are rotated, half-split as in Hugging Face LLaMA: for head position
 * i < head_dim/2, angle = pos·theta^(−2i/head_dim), (a, b) = (z[i], z[i + head_dim/2]) → (a·cos − b·sin, b·cos + a·sin), pos the
 * index in the sequence. RESIDUAL: y fp32 = residual + z (single member).
 * In a guided group every low-rank member has a guide W_j (m_j, n) beside its factors (arXiv:2602.12429, Eq. 17), and each pass its own
 * alpha_j in [0, 1]: y_j = epilogue((1 − alpha_j)·t_j·A_jᵀ + alpha_j·h·W_jᵀ). With alpha_j = 0 the guide is neither read nor given a gradient. */
typedef struct spt_group_desc {
  int count;
  int64_t in_dim;                      /* n */
  int64_t out_dim[SPT_GROUP_MAX];      /* m_j */
  int64_t factor_rank[SPT_GROUP_MAX];  /* r_j; 0 = dense */
  spt_prologue prologue;
  spt_epilogue epilogue;
  int64_t head_dim;  /* ROPE */
  double rope_theta; /* ROPE */
  double norm_eps;   /* RMSNORM */
  bool guided;       /* the low-rank members have guides; never where the group is dense */
} spt_group_desc;

static inline int64_t spt_group_out(const spt_group_desc *desc) {
  int64_t sum = 0;
  for (int j = 0; j < desc->count; j++) sum += desc->out_dim[j];
  return sum;
}
static inline int64_t spt_group_rank(const spt_group_desc *desc) {
  int64_t sum = 0;
  for (int j = 0; j < desc->count; j++) sum += desc->factor_rank[j];
  return sum;
}

/* fp32 masters (or their gradients) of a group: a[j] is A_j (m_j, r_j), or the dense W_j (m_j, n); b[j] is B_j (n, r_j) or NULL; guide[j] is
 * W_j (m_j, n) of a guided group, else NULL. */
typedef struct spt_group_tensors {
  float *a[SPT_GROUP_MAX], *b[SPT_GROUP_MAX], *guide[SPT_GROUP_MAX];
} spt_group_tensors;

/* What a compute copy is made from: the fp32 masters of a group, or bf16 copies of them in a backend of act bf16 whose memory is a device's. */
typedef struct spt_group_sources {
  spt_dtype dtype;
  const void *a[SPT_GROUP_MAX], *b[SPT_GROUP_MAX], *guide[SPT_GROUP_MAX];
} spt_group_sources;

typedef struct spt_group_forward_args {
  const spt_group_desc *desc;
  int64_t tokens, seq_len;
  const void *weights;   /* compute copy made by group_pack */
  const float *gain;     /* (n), RMSNORM */
  const void *x;         /* see prologue */
  const float *residual; /* (N, m), RESIDUAL; may be y itself */
  float *rstd;           /* (N) out, RMSNORM: kept for backward */
  void *t;               /* act, N·Σr elements out: the t_j in an order and with a scale of the backend's own, kept for backward; NULL when dense */
  void *y;               /* out, N·M elements */
  float alpha[SPT_GROUP_MAX]; /* guided groups; others leave it unread */
  void *workspace;       /* workspace_bytes */
} spt_group_forward_args;

typedef struct spt_group_backward_args {
  const spt_group_desc *desc;
  int64_t tokens, seq_len;
  const void *weights;
  const float *gain;
  const void *x;      /* as in forward */
  const float *rstd;  /* as written by forward */
  const void *t;      /* as written by forward */
  void *dy;           /* act, as y, may be overwritten; RESIDUAL: fp32 (N, m), left unchanged (the residual passes through) */
  float *dx_residual; /* RMSNORM: fp32 (N, n), ADDED to */
  void *dx;           /* NONE: act (N, n); SWIGLU: d(gate), then d(up), as x; may be x itself */
  float *dgain;       /* (n), added to, RMSNORM */
  float alpha[SPT_GROUP_MAX];  /* as in forward */
  spt_group_tensors gradients; /* added to */
  void *workspace;
} spt_group_backward_args;

/* Causal attention, o_i = Σ_{j≤i} softmax_j(q_i·k_j/√head_dim)·v_j, by sequence and head; kv head = head·kv_heads/heads (grouped-query).
 * q (N, heads·head_dim), k and v (N, kv_heads·head_dim) lie one after another, act. Never stores a T×T matrix per head. */
typedef struct spt_attention_args {
  int64_t sequences, seq_len, heads, kv_heads, head_dim;
  const void *qkv;
  void *o;     /* act (N, heads·head_dim): out in forward, in in backward */
  float *lse;  /* (sequences·heads, seq_len) log-sum-exp of the scaled scores: out in forward, in in backward */
  const void *d_o;   /* backward: act (N, heads·head_dim) */
  void *dqkv;        /* backward: act, like qkv; must not be qkv */
  void *workspace;
} spt_attention_args;

/* Final RMSNorm, head and cross-entropy: h = rmsnorm(x)·gain, logits = h·Wᵀ, W (vocab, hidden), loss_i = lse_i − logits[i, target_i].
 * Stores a bounded block of logits only. With train, gradients of Σ_i loss_scale·loss_i: dx is overwritten, dgain and dw added to. */
typedef struct spt_head_loss_args {
  int64_t tokens, hidden, vocab;
  double norm_eps;
  const float *x;         /* (N, hidden) */
  const float *gain;      /* (hidden) */
  const void *weights;    /* compute copy made by head_pack */
  const int32_t *targets; /* (N), in [0, vocab) */
  float *losses;          /* (N) out, unscaled */
  bool train;
  float loss_scale;
  float *dx;    /* (N, hidden) */
  float *dgain; /* (hidden) */
  float *dw;    /* (vocab, hidden) */
  void *workspace;
} spt_head_loss_args;

/* One entry of a batch: C (m, n) = alpha·op(A)·op(B) + beta·D, all of one dtype, contiguous rows (leading dimension = columns).
 * op(A) is (m, k), op(B) is (k, n); D (m, n) may be the very A or B entry (X·P + a·X, c·G·G + b·G of Newton–Schulz).
 * Each entry's arithmetic is independent of the batch it is in. */
typedef struct spt_gemm_batch {
  int64_t batch, m, n, k;
  bool transpose_a, transpose_b;
  float alpha, beta;
  spt_dtype dtype;         /* of A, B, C, D; accumulation in fp32 */
  const void *const *a, *const *b; /* [batch]; host arrays of device pointers */
  const void *const *d;            /* [batch]; NULL: D is C (unread when beta is 0) */
  void *const *c;                  /* [batch]; overlaps no a, b or d entry */
} spt_gemm_batch;

/* What a step knows of its gradient, and what is decided from it; host-readable on the CPU. Sums and maxima over ranks are taken of the first
 * SPT_CONTROL_SUMS and the SPT_CONTROL_MAXIMA doubles behind them. */
enum { SPT_CONTROL_GROUPS = 31, SPT_CONTROL_TOLD = 3, SPT_CONTROL_SUMS = SPT_CONTROL_GROUPS + 4 + SPT_CONTROL_TOLD, SPT_CONTROL_MAXIMA = 1 };
typedef struct spt_control {
  double group_squares[SPT_CONTROL_GROUPS]; /* sum_squares, by group (gradient_groups.h) */
  double sum_squares; /* of the (owned) gradients */
  double non_finite;  /* number of non-finite gradient elements */
  double loss;        /* Σ losses of the step */
  double failed;      /* ranks that could not do their part */
  double told[SPT_CONTROL_TOLD]; /* the trainer's own, summed with these */
  double slowest;                /* the trainer's own, the largest of all ranks */
  float clip;         /* factor on the gradients, 1 = none */
  float apply;        /* 0: skip the update, 1: apply */
  int64_t applied;    /* number of applied updates, kept by decide */
} spt_control;

/* From sums over ranks: apply is 1 when loss and gradients are finite and no rank has failed, and is then counted; clip brings the gradients' norm
 * to grad_clip where it is larger (0: never). */
static inline void spt_control_decide(spt_control *control, double grad_clip) {
  const double norm = sqrt(control->sum_squares);
  const bool apply = control->non_finite == 0 && isfinite(control->loss) && isfinite(norm) && control->failed == 0;
  control->clip = grad_clip > 0 && norm > grad_clip ? (float)(grad_clip / (norm + 1e-6)) : 1.0f;
  control->apply = apply ? 1.0f : 0.0f;
  if (apply) control->applied++;
}

/* One factor in the optimizer's batch (rows ≥ 1, cols ≥ 1). */
typedef struct spt_factor_entry {
  int64_t rows, cols;
  float *w;              /* master */
  const float *gradient; /* (rows, cols) */
  float *momentum;       /* (rows, cols) */
  float *u;              /* (rows), left singular vector, kept normalised */
  float *sigma;          /* out of power_iteration */
  void *x;               /* (rows, cols) of momentum's `dtype`: normalised momentum out, and the orthogonalised update in */
} spt_factor_entry;

typedef struct spt_backend spt_backend;

/* The rows of a profile. SPT_OP_HEAD with backward is head, loss and their gradients together. */
typedef enum {
  SPT_OP_EMBEDDING,
  SPT_OP_QKV,
  SPT_OP_ATTENTION,
  SPT_OP_O,
  SPT_OP_GATE_UP,
  SPT_OP_DOWN,
  SPT_OP_HEAD,
  SPT_OP_ZERO,
  SPT_OP_ADD,
  SPT_OP_GRADIENT_STATS,
  SPT_OP_MOMENTUM,
  SPT_OP_BATCHED_GEMM,
  SPT_OP_POWER_ITERATION,
  SPT_OP_FACTOR_UPDATE,
  SPT_OP_ADAMW,
  SPT_OP_PACK,
  SPT_OP_COUNT
} spt_op;

/* What one call costs at least (op_cost.h). */
typedef struct spt_op_cost {
  spt_op op;
  bool backward;
  double flops, bytes;
} spt_op_cost;

/* Calls of one op in one phase, summed. */
typedef struct spt_op_profile {
  int64_t calls;
  double seconds;  /* wall time */
  double products; /* of it in matrix products: the threads' mean; attention's products are fused with the rest and not told apart */
  double flops, bytes; /* spt_op_cost, summed */
  /* what the backend did: matrix products called, their FLOPs (fused ones included) and the bytes of their operands and results */
  int64_t executed_products;
  double executed_flops, executed_bytes;
} spt_op_profile;
typedef struct spt_backend_profile {
  spt_op_profile ops[SPT_OP_COUNT][2]; /* [op][backward] */
} spt_backend_profile;

typedef struct spt_ops {
  const char *name;
  void (*close)(spt_backend **backend);
  /* memory */
  spt_status (*alloc)(spt_backend *backend, size_t bytes, void **pointer_p); /* zeroed, 64-byte aligned at least */
  void (*free)(spt_backend *backend, void *pointer, size_t bytes);
  spt_status (*upload)(spt_backend *backend, void *device, const void *host, size_t bytes);
  spt_status (*download)(spt_backend *backend, void *host, const void *device, size_t bytes); /* waits for issued work */
  spt_status (*zero)(spt_backend *backend, void *pointer, size_t bytes);
  /* Red zones, in builds that have them: from now on an op that touches these bytes faults at once. A `gap` lies in a slab that zero and the communicator
   * pass over as a whole, which they still may. Nothing that has been issued may be under way. NULL where memory is not watched. */
  void (*guard)(spt_backend *backend, void *memory, size_t bytes, bool gap);
  /* out = a + b, or a copy of a where b is NULL; out may be a or b */
  spt_status (*add)(spt_backend *backend, int64_t count, const float *a, const float *b, float *out);
  spt_status (*synchronize)(spt_backend *backend);
  /* A download that is issued now and taken later, SPT_LATER_BYTES at most; slot: 0 or 1, taken before it is used again. take: *done_p is false, and
   * nothing is written, until all that was issued before has been done; it does not wait. NULL where memory is the host's. */
  spt_status (*later_issue)(spt_backend *backend, int slot, const void *device, size_t bytes);
  spt_status (*later_take)(spt_backend *backend, int slot, void *host, size_t bytes, bool *done_p);
  /* bytes of `workspace` that cover every model op for this model at `tokens` per pass; train = backward too */
  size_t (*workspace_bytes)(spt_backend *backend, const spt_model_config *model, int64_t tokens, bool train);

  /* to ← from, rounded to bf16 (nearest even) */
  spt_status (*round_bf16)(spt_backend *backend, int64_t count, const float *from, void *to);

  /* compute copies, made once per optimizer step from the masters, or from bf16 copies as spt_group_sources has them */
  size_t (*group_packed_bytes)(spt_backend *backend, const spt_group_desc *desc);
  spt_status (*group_pack)(spt_backend *backend, const spt_group_desc *desc, const spt_group_sources *masters, void *weights);
  size_t (*head_packed_bytes)(spt_backend *backend, int64_t vocab, int64_t hidden);
  spt_status (*head_pack)(spt_backend *backend, int64_t vocab, int64_t hidden, const void *w, spt_dtype dtype, void *weights);

  /* model */
  /* x (N, hidden) = table[ids]; dtype: of the table, as of spt_group_sources */
  spt_status (*embedding_forward)(spt_backend *backend, int64_t tokens, int64_t hidden, const int32_t *ids, const void *table, spt_dtype dtype, float *x);
  /* dtable[ids[i]] += dx[i], in the order of i */
  spt_status (*embedding_backward)(spt_backend *backend, int64_t tokens, int64_t hidden, int64_t vocab, const int32_t *ids, const float *dx, float *dtable);
  spt_status (*group_forward)(spt_backend *backend, const spt_group_forward_args *args);
  spt_status (*group_backward)(spt_backend *backend, const spt_group_backward_args *args);
  spt_status (*attention_forward)(spt_backend *backend, const spt_attention_args *args);
  spt_status (*attention_backward)(spt_backend *backend, const spt_attention_args *args);
  spt_status (*head_loss)(spt_backend *backend, const spt_head_loss_args *args);

  /* optimizer; a factor (or a slice) is one thread's work or one entry of a fixed batch */
  spt_status (*batched_gemm)(spt_backend *backend, const spt_gemm_batch *batch);
  /* control->sum_squares += Σ g², as do its group_squares[group]; control->non_finite += number of non-finite g; sums in double, in a fixed order per
   * call */
  spt_status (*gradient_stats)(spt_backend *backend, int64_t count, const float *g, int group, spt_control *control);
  /* *sum += Σ values, in double, in a fixed order; sum is backend memory */
  spt_status (*sum)(spt_backend *backend, int64_t count, const float *values, double *sum);
  /* spt_control_decide on the device */
  spt_status (*decide)(spt_backend *backend, double grad_clip, spt_control *control);
  /* momentum ← beta·momentum + (1 − beta)·clip·gradient; if x: x ← momentum/(‖momentum‖_F + 1e-7) as `dtype`, or, with
   * normalize false, x ← momentum.  Alg. 1 lines 7–8, Alg. 2 lines 1–3. Nothing happens when control->apply is 0. */
  spt_status (*factor_momentum)(spt_backend *backend, int count, const spt_factor_entry *entries, float beta, bool normalize, spt_dtype dtype, const spt_control *control);
  /* Alg. 3, `steps` iterations on w, in fp32 (norms in double): updates u, writes sigma. A zero w gives sigma 0 and leaves u. */
  spt_status (*power_iteration)(spt_backend *backend, int count, const spt_factor_entry *entries, int steps, const spt_control *control);
  /* w ← (1 − lr·decay)·w − rho·x; with renormalize entries 2i, 2i+1 are A, B of pair i and rho = lr/(sigma_A + sigma_B + 1), else each entry is by
   * itself and rho = lr */
  spt_status (*factor_update)(spt_backend *backend, int count, const spt_factor_entry *entries, float lr, float decay, bool renormalize, spt_dtype dtype, const spt_control *control);
  /* Decoupled AdamW on `count` elements; step is the number of applied updates including this one (from 1), or 0: control->applied is. */
  spt_status (*adamw)(spt_backend *backend, int64_t count, float *w, const float *gradient, float *m, float *v, float lr, float decay, float beta1, float beta2, float eps, int64_t step, const spt_control *control);
} spt_ops;

struct spt_backend {
  const spt_ops *ops;
  spt_dtype act;
  int threads;
  int processors;              /* that the threads have: on the CPU at most `threads`; 1 on a GPU */
  bool host_memory;            /* backend memory is ordinary memory, which the host may read between ops */
  void *stream;                /* the device's compute stream (a cudaStream_t), in whose order ops run after they return; NULL: ops run at once */
  char description[192];       /* "cpu, 2 threads, bf16 (AMX), oneDNN 2.6.3" */
  double peak_flops;           /* measured matrix-product rate of this backend for `act`, 0 = not measured */
  double peak_bytes;           /* measured rate of moving memory, bytes read and bytes written a second, 0 = not measured */
  bool profiling;
  spt_backend_profile profile; /* accumulated while profiling */
};

/* Opens the backend `kind`; AUTO takes CUDA where built and present, else CPU. precision AUTO and threads 0 are resolved as the design's
 * "The job file" says (threads: allowed CPUs over local_ranks, at least 1; local_ranks: those that share the CPUs). Defined in kernels/backend.c. The caller closes it by ops->close. */
spt_status spt_backend_open(spt_backend_kind kind, spt_precision precision, int threads, int local_ranks, spt_backend **backend_p);
/* Before spt_backend_open, which then uses it: the CUDA device number local_rank modulo the visible ones, where `kind` may be CUDA's. Does nothing
 * without a device. SPT_ERR_RESOURCE: the device cannot be chosen. */
spt_status spt_backend_choose_device(spt_backend_kind kind, int local_rank);
/* The same, but CUDA where there is no device (in a build that has it) is opened too, to measure memory: its *_bytes tell what the backend would
 * take, all else fails with SPT_ERR_RESOURCE. For dry runs. */
spt_status spt_backend_open_measure(spt_backend_kind kind, spt_precision precision, int threads, int local_ranks, spt_backend **backend_p);
/* Bytes of device memory that the backend holds in training this model beside what it is asked for (libraries' workspaces, tables, scratch); 0 on
 * the CPU, where it is small. */
size_t spt_backend_own_bytes(const spt_backend *backend, const spt_model_config *model, const spt_optimizer_config *optimizer);
/* Measures the rate of a large matrix product in `act` into peak_flops (0.1 to 0.5 s) and, while profiling, that of moving memory into
 * peak_bytes (as long again; takes 32 MiB a thread meanwhile, 64 MiB at least: more than a core's share of a cache). */
spt_status spt_backend_measure_peak(spt_backend *backend);

#endif
