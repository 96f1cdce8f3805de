/* The CUDA backend without a device: it tells what the backend would allocate, for a dry run where there is no GPU. Whatever would use a device
 * fails. */
#include "backend_cuda.h"

#include "core/optimizer.h"
#include "core/params.h"
#include "cuda_kernels.h"

#include <stdio.h>
#include <stdlib.h>

static spt_status refuse(void) {
  return SPT_FAIL(SPT_ERR_RESOURCE, "no CUDA device: this backend was opened to measure memory alone; use --backend cpu, or a machine with an "
                                    "NVIDIA GPU and its driver");
}

/* `backend` is every op's first parameter. */
#define REFUSE(name, ...)                                                                                              \
  static spt_status name(spt_backend *backend, __VA_ARGS__) {                                                          \
    (void)backend;                                                                                                     \
    return refuse();                                                                                                   \
  }
#define UNUSED __attribute__((unused))

REFUSE(alloc_none, UNUSED size_t bytes, UNUSED void **pointer_p)
REFUSE(upload_none, UNUSED void *device, UNUSED const void *host, UNUSED size_t bytes)
REFUSE(download_none, UNUSED void *host, UNUSED const void *device, UNUSED size_t bytes)
REFUSE(zero_none, UNUSED void *pointer, UNUSED size_t bytes)
REFUSE(add_none, UNUSED int64_t count, UNUSED const float *a, UNUSED const float *b, UNUSED float *out)
REFUSE(round_none, UNUSED int64_t count, UNUSED const float *from, UNUSED void *to)
REFUSE(group_pack_none, UNUSED const spt_group_desc *desc, UNUSED const spt_group_sources *masters, UNUSED void *weights)
REFUSE(head_pack_none, UNUSED int64_t vocab, UNUSED int64_t hidden, UNUSED const void *w, UNUSED spt_dtype dtype, UNUSED void *weights)
REFUSE(embed_none, UNUSED int64_t tokens, UNUSED int64_t hidden, UNUSED const int32_t *ids, UNUSED const void *table, UNUSED spt_dtype dtype,
       UNUSED float *x)
REFUSE(embed_backward_none, UNUSED int64_t tokens, UNUSED int64_t hidden, UNUSED int64_t vocab, UNUSED const int32_t *ids, UNUSED const float *dx,
       UNUSED float *dtable)
REFUSE(group_forward_none, UNUSED const spt_group_forward_args *args)
REFUSE(group_backward_none, UNUSED const spt_group_backward_args *args)
REFUSE(attention_none, UNUSED const spt_attention_args *args)
REFUSE(head_loss_none, UNUSED const spt_head_loss_args *args)
REFUSE(batched_gemm_none, UNUSED const spt_gemm_batch *batch)
REFUSE(gradient_stats_none, UNUSED int64_t count, UNUSED const float *g, UNUSED int group, UNUSED spt_control *control)
REFUSE(momentum_none, UNUSED int count, UNUSED const spt_factor_entry *entries, UNUSED float beta, UNUSED bool normalize, UNUSED spt_dtype dtype,
       UNUSED const spt_control *control)
REFUSE(power_none, UNUSED int count, UNUSED const spt_factor_entry *entries, UNUSED int steps, UNUSED const spt_control *control)
REFUSE(update_none, UNUSED int count, UNUSED const spt_factor_entry *entries, UNUSED float lr, UNUSED float decay, UNUSED bool renormalize,
       UNUSED spt_dtype dtype, UNUSED const spt_control *control)
REFUSE(adamw_none, UNUSED int64_t count, UNUSED float *w, UNUSED const float *gradient, UNUSED float *m, UNUSED float *v, UNUSED float lr,
       UNUSED float decay, UNUSED float beta1, UNUSED float beta2, UNUSED float eps, UNUSED int64_t step, UNUSED const spt_control *control)

static spt_status synchronize_none(UNUSED spt_backend *backend) {
  return refuse();
}
static void free_none(UNUSED spt_backend *backend, UNUSED void *pointer, UNUSED size_t bytes) {}
static void close_none(spt_backend **backend_p) {
  free(*backend_p); // a spt_cuda, whose first member it is
  *backend_p = NULL;
}

static const spt_ops measure_ops = {.name = "cuda",
                                    .close = close_none,
                                    .alloc = alloc_none,
                                    .free = free_none,
                                    .upload = upload_none,
                                    .download = download_none,
                                    .zero = zero_none,
                                    .add = add_none,
                                    .round_bf16 = round_none,
                                    .synchronize = synchronize_none,
                                    .workspace_bytes = spt_cuda_workspace_bytes,
                                    .group_packed_bytes = spt_cuda_group_packed_bytes,
                                    .group_pack = group_pack_none,
                                    .head_packed_bytes = spt_cuda_head_packed_bytes,
                                    .head_pack = head_pack_none,
                                    .embedding_forward = embed_none,
                                    .embedding_backward = embed_backward_none,
                                    .group_forward = group_forward_none,
                                    .group_backward = group_backward_none,
                                    .attention_forward = attention_none,
                                    .attention_backward = attention_none,
                                    .head_loss = head_loss_none,
                                    .batched_gemm = batched_gemm_none,
                                    .gradient_stats = gradient_stats_none,
                                    .factor_momentum = momentum_none,
                                    .power_iteration = power_none,
                                    .factor_update = update_none,
                                    .adamw = adamw_none};

spt_status spt_cuda_open_measure(spt_precision precision, spt_backend **backend_p) {
  spt_cuda *cuda = calloc(1, sizeof *cuda);
  if (!cuda) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the CUDA backend");
  cuda->base.ops = &measure_ops;
  cuda->base.act = spt_cuda_act(precision);
  cuda->base.threads = cuda->base.processors = 1;
  snprintf(cuda->base.description, sizeof cuda->base.description, "cuda, no device: memory alone is counted, %s",
           cuda->base.act == SPT_BF16 ? "bf16" : "fp32");
  *backend_p = &cuda->base;
  return SPT_OK;
}

static size_t larger(size_t a, size_t b) {
  return a > b ? a : b;
}

static size_t batch_scratch(spt_dtype act, size_t elements) {
  return (SPT_CUDA_BATCH - 1) * spt_cuda_spare_bytes((int64_t)elements, act);
}

/* Scratch that the optimizer's ops take for one factor (rows, cols) or, of AdamW, tensor. */
static size_t factor_scratch(const spt_optimizer_config *optimizer, spt_dtype act, int64_t rows, int64_t cols) {
  const int64_t s = rows < cols ? rows : cols, chunks = (rows * cols + SPT_CUDA_FACTOR_CHUNK - 1) / SPT_CUDA_FACTOR_CHUNK;
  const bool orthogonalizes = spt_method_orthogonalizes(optimizer->method);
  const bool renormalizes = optimizer->method == SPT_METHOD_SPECTRON || optimizer->method == SPT_METHOD_RENORM;
  size_t most = SPT_CUDA_STATS_BYTES(rows * cols);
  if (optimizer->method == SPT_METHOD_ADAMW) return most;
  most = larger(most, (size_t)(SPT_CUDA_FACTORS * chunks) * sizeof(double));
  if (orthogonalizes) most = larger(most, batch_scratch(act, larger((size_t)(rows * cols), (size_t)(s * s))));
  if (renormalizes) most = larger(most, SPT_CUDA_FACTORS * spt_cuda_power_bytes(rows, cols));
  return most;
}

size_t spt_cuda_own_bytes(spt_dtype act, const spt_model_config *model, const spt_optimizer_config *optimizer, int64_t edge) {
  size_t scratch = larger(SPT_CUDA_STATS_BYTES(model->vocab * model->hidden), batch_scratch(act, (size_t)(edge * edge)));
  for (int matrix = 0; matrix < SPT_MATRICES; matrix++) {
    int64_t m, n;
    spt_matrix_shape(model, (spt_matrix)matrix, &m, &n);
    const bool low_rank = spt_matrix_low_rank(model, (spt_matrix)matrix);
    if (!low_rank || model->guided) scratch = larger(scratch, factor_scratch(optimizer, act, m, n));
    if (!low_rank) continue;
    const int64_t r = spt_factor_rank(model->rank_ratio, m, n);
    scratch = larger(scratch, factor_scratch(optimizer, act, m, r));
    scratch = larger(scratch, factor_scratch(optimizer, act, n, r));
  }
  const size_t rope = 2 * (size_t)((model->seq_len * (spt_head_dim(model) / 2) + 3) / 4 * 4) * sizeof(float);
  return SPT_CUDA_CUBLAS_WORKSPACE + rope + scratch + 3 * SPT_CUDA_BATCH * sizeof(void *);
}
