/* Final RMSNorm, head and cross-entropy on a GPU: rows in blocks whose logits take at most 256 MiB; the logits' gradient replaces them. */
#include "backend_cuda.h"

#include "cuda_kernels.h"

typedef struct block_limit {
  int64_t bytes, rows_step;
} block_limit;
static block_limit limit_of(int64_t vocab) {
#ifdef SPT_SIMGPU
  if (vocab < 4096) return (block_limit){1 << 16, 16}; // several blocks in a test's small cases; real sizes are counted as they are
#endif
  (void)vocab;
  return (block_limit){256 << 20, 128};
}

typedef struct head_workspace {
  void *h;        // act (N, hidden)
  float *rstd;    // (N)
  float *logits;  // (rows, ld)
  float *dh;      // (rows, hidden)
  float *partial; // of dgain
} head_workspace;

static int64_t logits_ld(int64_t vocab) {
  return (vocab + SPT_CUDA_UNIT - 1) / SPT_CUDA_UNIT * SPT_CUDA_UNIT;
}
static int64_t block_rows(int64_t tokens, int64_t vocab) {
  const block_limit limit = limit_of(vocab);
  const int64_t fit = limit.bytes / (logits_ld(vocab) * (int64_t)sizeof(float)) / limit.rows_step * limit.rows_step;
  const int64_t rows = fit < limit.rows_step ? limit.rows_step : fit;
  return rows < tokens ? rows : tokens;
}

static size_t carve(spt_dtype act, int64_t tokens, int64_t hidden, int64_t vocab, bool train, void *memory, head_workspace *w) {
  const int64_t rows = block_rows(tokens, vocab);
  spt_carve pieces = {memory, 0};
  *w = (head_workspace){0};
  w->h = spt_cuda_take(&pieces, tokens * hidden, spt_dtype_size(act));
  w->rstd = spt_cuda_take(&pieces, tokens, sizeof(float));
  w->logits = spt_cuda_take(&pieces, rows * logits_ld(vocab), sizeof(float));
  if (!train) return pieces.used;
  w->dh = spt_cuda_take(&pieces, rows * hidden, sizeof(float));
  w->partial = spt_cuda_take(&pieces, (rows + SPT_CUDA_NORM_ROWS - 1) / SPT_CUDA_NORM_ROWS * hidden, sizeof(float));
  return pieces.used;
}

size_t spt_cuda_head_workspace(const spt_cuda *cuda, int64_t tokens, int64_t hidden, int64_t vocab, bool train) {
  head_workspace ignored;
  return carve(cuda->base.act, tokens, hidden, vocab, train, NULL, &ignored);
}

size_t spt_cuda_head_packed_bytes(spt_backend *backend, int64_t vocab, int64_t hidden) {
  return (size_t)(vocab * hidden) * spt_dtype_size(backend->act);
}

spt_status spt_cuda_head_pack(spt_backend *backend, int64_t vocab, int64_t hidden, const void *w, spt_dtype dtype, void *weights) {
  spt_cuda *cuda;
  SPT_TRY(spt_cuda_begin(backend, &cuda));
  if (dtype == backend->act)
    SPT_CUDA(cudaMemcpyAsync(weights, w, (size_t)(vocab * hidden) * spt_dtype_size(dtype), cudaMemcpyDeviceToDevice, cuda->stream));
  else
    SPT_CUDA(spt_cuda_convert(vocab * hidden, w, weights, backend->act, cuda->stream));
  const spt_group_desc desc = {.count = 1, .in_dim = hidden, .out_dim = {vocab}};
  return spt_cuda_end(cuda, spt_cost_group_pack(&desc, dtype, backend->act));
}

/* dW += dlogitsᵀ·h, dh = dlogits·W, then through the norm; of one block. */
static spt_status block_backward(spt_cuda *cuda, const spt_head_loss_args *args, const head_workspace *w, int64_t row0, int64_t rows) {
  const int64_t n = args->hidden, V = args->vocab;
  const spt_dtype act = cuda->base.act;
  const int64_t ld = logits_ld(V) * (act == SPT_BF16 ? 2 : 1); // the gradient's, in its own elements
  const void *h = spt_cuda_at(w->h, row0 * n, act);
  const spt_cuda_product weights = {.m = V,
                                    .n = n,
                                    .k = rows,
                                    .a = {.data = w->logits, .ld = ld, .transpose = true},
                                    .b = {.data = h, .ld = n},
                                    .dtype = act,
                                    .alpha = 1.0f,
                                    .beta = 1.0f,
                                    .c = args->dw,
                                    .ldc = n,
                                    .c_dtype = SPT_F32};
  SPT_TRY(spt_cuda_gemm(cuda, &weights));
  const spt_cuda_product inputs = {.m = rows,
                                   .n = n,
                                   .k = V,
                                   .a = {.data = w->logits, .ld = ld},
                                   .b = {.data = args->weights, .ld = n},
                                   .dtype = act,
                                   .alpha = 1.0f,
                                   .c = w->dh,
                                   .ldc = n,
                                   .c_dtype = SPT_F32};
  SPT_TRY(spt_cuda_gemm(cuda, &inputs));
  SPT_CUDA(spt_cuda_rmsnorm_backward(rows, n, args->x + row0 * n, args->gain, w->rstd + row0, w->dh, SPT_F32, args->dx + row0 * n, false,
                                     args->dgain, w->partial, cuda->stream));
  return SPT_OK;
}

spt_status spt_cuda_head_loss(spt_backend *backend, const spt_head_loss_args *args) {
  spt_cuda *cuda;
  SPT_TRY(spt_cuda_begin(backend, &cuda));
  const int64_t N = args->tokens, n = args->hidden, V = args->vocab, most = block_rows(N, V);
  if (n > SPT_CUDA_NORM_MAX)
    return SPT_FAIL(SPT_ERR_RESOURCE, "model.hidden = %lld: the CUDA backend takes at most %d", (long long)n, SPT_CUDA_NORM_MAX);
  head_workspace w;
  (void)carve(backend->act, N, n, V, args->train, args->workspace, &w);
  SPT_CUDA(spt_cuda_rmsnorm(N, n, (float)args->norm_eps, args->x, args->gain, w.rstd, w.h, backend->act, cuda->stream));
  for (int64_t row0 = 0; row0 < N; row0 += most) {
    const int64_t rows = N - row0 < most ? N - row0 : most;
    const spt_cuda_product scores = {.m = rows,
                                     .n = V,
                                     .k = n,
                                     .a = {.data = spt_cuda_at(w.h, row0 * n, backend->act), .ld = n},
                                     .b = {.data = args->weights, .ld = n, .transpose = true},
                                     .dtype = backend->act,
                                     .alpha = 1.0f,
                                     .c = w.logits,
                                     .ldc = logits_ld(V),
                                     .c_dtype = SPT_F32};
    SPT_TRY(spt_cuda_gemm(cuda, &scores));
    SPT_CUDA(spt_cuda_cross_entropy(rows, V, logits_ld(V), w.logits, args->targets + row0, args->losses + row0, args->train, args->loss_scale,
                                    backend->act, cuda->stream));
    if (args->train) SPT_TRY(block_backward(cuda, args, &w, row0, rows));
  }
  return spt_cuda_end(cuda, spt_cost_head(N, n, V, backend->act, args->train));
}
