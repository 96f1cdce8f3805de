/* Pair groups on a GPU: prologue → h·[B_0|B_1|B_2] in one product → t_j·A_jᵀ → epilogue, and their backward. t is (N, Σr), members side by side. */
#include "backend_cuda.h"

#include "cuda_kernels.h"

#include <math.h>
#include <stdlib.h>

static int64_t inner(const spt_group_desc *desc, int j) {
  return desc->factor_rank[j] > 0 ? desc->factor_rank[j] : desc->in_dim;
}
/* Members of one shape: one strided batch does for all. */
static bool alike(const spt_group_desc *desc) {
  for (int j = 1; j < desc->count; j++)
    if (desc->out_dim[j] != desc->out_dim[0] || desc->factor_rank[j] != desc->factor_rank[0]) return false;
  return true;
}

/* ---- the compute copy: A_0, A_1, A_2 (m_j, r_j) one after another (or W_j (m_j, n)), then [B_0|B_1|B_2] (n, Σr), then the guides W_j (m_j, n)
 * one after another, all act ---- */

enum { PART = 128 }; // elements that parts begin at multiples of

static int64_t a_elements(const spt_group_desc *desc, int members) {
  int64_t sum = 0;
  for (int j = 0; j < members; j++) sum += desc->out_dim[j] * inner(desc, j);
  return sum;
}
static int64_t b_offset(const spt_group_desc *desc) {
  return (a_elements(desc, desc->count) + PART - 1) / PART * PART;
}

static int64_t guide_offset(const spt_group_desc *desc, int members) {
  int64_t rows = 0;
  for (int j = 0; j < members; j++) rows += desc->out_dim[j];
  return (b_offset(desc) + desc->in_dim * spt_group_rank(desc) + PART - 1) / PART * PART + rows * desc->in_dim;
}

size_t spt_cuda_group_packed_bytes(spt_backend *backend, const spt_group_desc *desc) {
  const int64_t factors = b_offset(desc) + desc->in_dim * spt_group_rank(desc);
  return (size_t)(desc->guided ? guide_offset(desc, desc->count) : factors) * spt_dtype_size(backend->act);
}

spt_status spt_cuda_group_pack(spt_backend *backend, const spt_group_desc *desc, const spt_group_sources *masters, void *weights) {
  spt_cuda *cuda;
  SPT_TRY(spt_cuda_begin(backend, &cuda));
  spt_cuda_pieces pieces = {0};
  const int64_t rank = spt_group_rank(desc);
  for (int64_t j = 0, column = 0; j < desc->count; column += desc->factor_rank[j], j++) {
    const int64_t m = desc->out_dim[j], width = inner(desc, (int)j);
    pieces.piece[pieces.count++] =
        (spt_cuda_piece){masters->a[j], spt_cuda_at(weights, a_elements(desc, (int)j), backend->act), m, width, width};
    if (desc->factor_rank[j] > 0)
      pieces.piece[pieces.count++] = (spt_cuda_piece){masters->b[j], spt_cuda_at(weights, b_offset(desc) + column, backend->act), desc->in_dim,
                                                      desc->factor_rank[j], rank};
    if (desc->guided)
      pieces.piece[pieces.count++] = (spt_cuda_piece){masters->guide[j], spt_cuda_at(weights, guide_offset(desc, (int)j), backend->act), m,
                                                      desc->in_dim, desc->in_dim};
  }
  SPT_CUDA(spt_cuda_pack(&pieces, masters->dtype, backend->act, cuda->stream));
  return spt_cuda_end(cuda, spt_cost_group_pack(desc, masters->dtype, backend->act));
}

/* ---- one call ---- */

typedef struct group_call {
  spt_cuda *cuda;
  const spt_group_desc *desc;
  spt_dtype act;
  int64_t tokens, n, rank; // rank: Σr
  const void *weights;
  float alpha[SPT_GROUP_MAX]; // of the guides; 0: none
  bool batch;                 // the members' low-rank (or dense) products in one batch: alike, with the same scale
} group_call;

/* Workspace of a call; pieces that it does not need are NULL. */
typedef struct group_workspace {
  void *h;        // act (N, n), behind a prologue
  void *dz;       // act (N, m) of an fp32 dy
  void *dt;       // act (N, Σr)
  void *dh;       // (N, n) of dh_dtype, where it is not dx itself
  float *partial; // of dgain
} group_workspace;

/* Several dense members, or factors and guides, add up in fp32. */
static spt_dtype dh_dtype(const spt_group_desc *desc, spt_dtype act) {
  return (spt_group_rank(desc) == 0 && desc->count > 1) || desc->guided ? SPT_F32 : act;
}

static size_t carve(const spt_group_desc *desc, spt_dtype act, int64_t tokens, bool backward, void *memory, group_workspace *w) {
  const size_t size = spt_dtype_size(act);
  const spt_dtype dh = dh_dtype(desc, act);
  spt_carve pieces = {memory, 0};
  *w = (group_workspace){0};
  if (desc->prologue != SPT_PROLOGUE_NONE) w->h = spt_cuda_take(&pieces, tokens * desc->in_dim, size);
  if (!backward) return pieces.used;
  if (desc->epilogue == SPT_EPILOGUE_RESIDUAL) w->dz = spt_cuda_take(&pieces, tokens * spt_group_out(desc), size);
  if (spt_group_rank(desc) > 0) w->dt = spt_cuda_take(&pieces, tokens * spt_group_rank(desc), size);
  if (desc->prologue != SPT_PROLOGUE_NONE || dh != act) w->dh = spt_cuda_take(&pieces, tokens * desc->in_dim, spt_dtype_size(dh));
  if (desc->prologue == SPT_PROLOGUE_RMSNORM)
    w->partial = spt_cuda_take(&pieces, (tokens + SPT_CUDA_NORM_ROWS - 1) / SPT_CUDA_NORM_ROWS * desc->in_dim, sizeof(float));
  return pieces.used;
}

size_t spt_cuda_group_workspace(const spt_cuda *cuda, const spt_group_desc *desc, int64_t tokens, bool train) {
  group_workspace ignored;
  return carve(desc, cuda->base.act, tokens, train, NULL, &ignored);
}

static spt_status open_call(spt_backend *backend, const spt_group_desc *desc, int64_t tokens, const void *weights, const float *alpha,
                            group_call *call) {
  SPT_TRY(spt_cuda_begin(backend, &call->cuda));
  call->desc = desc;
  call->act = backend->act;
  call->tokens = tokens;
  call->n = desc->in_dim;
  call->rank = spt_group_rank(desc);
  call->weights = weights;
  call->batch = desc->count > 1 && alike(desc);
  for (int j = 0; j < desc->count; j++) {
    call->alpha[j] = desc->guided ? alpha[j] : 0.0f;
    if (call->alpha[j] != call->alpha[0]) call->batch = false;
  }
  if (desc->prologue == SPT_PROLOGUE_RMSNORM && desc->in_dim > SPT_CUDA_NORM_MAX)
    return SPT_FAIL(SPT_ERR_RESOURCE, "model.hidden = %lld: the CUDA backend takes at most %d", (long long)desc->in_dim, SPT_CUDA_NORM_MAX);
  return SPT_OK;
}

static spt_cuda_matrix plain(const void *data, int64_t ld) {
  return (spt_cuda_matrix){.data = data, .ld = ld};
}
static spt_cuda_matrix transposed(const void *data, int64_t ld) {
  return (spt_cuda_matrix){.data = data, .ld = ld, .transpose = true};
}
static const void *weight_a(const group_call *call, int j) {
  return spt_cuda_at(call->weights, a_elements(call->desc, j), call->act);
}
static const void *weight_b(const group_call *call) {
  return spt_cuda_at(call->weights, b_offset(call->desc), call->act);
}
static const void *weight_guide(const group_call *call, int j) {
  return spt_cuda_at(call->weights, guide_offset(call->desc, j), call->act);
}
/* Columns before those of member j in t. */
static int64_t t_column(const spt_group_desc *desc, int j) {
  int64_t column = 0;
  for (int i = 0; i < j; i++) column += desc->factor_rank[i];
  return column;
}
/* Member j of y, dy or dz. */
static void *member(const group_call *call, const void *data, int j, spt_dtype dtype) {
  int64_t before = 0;
  for (int i = 0; i < j; i++) before += call->desc->out_dim[i];
  return spt_cuda_at(data, call->tokens * before, dtype);
}

static spt_status rotate(const group_call *call, int64_t seq_len, void *y, bool inverse) {
  const spt_group_desc *desc = call->desc;
  SPT_TRY(spt_cuda_rope_prepare(call->cuda, desc->rope_theta, desc->head_dim, seq_len));
  SPT_CUDA(spt_cuda_rope(call->tokens, seq_len, desc->head_dim, desc->out_dim[0], desc->count > 1 ? desc->out_dim[1] : 0,
                         call->cuda->rope.cosine, call->cuda->rope.sine, inverse, y, desc->count > 1 ? member(call, y, 1, call->act) : y,
                         call->act, call->cuda->stream));
  return SPT_OK;
}

/* y_j (N, m_j) = (1 − alpha_j)·input_j·A_jᵀ (or W_jᵀ), of all members in one batch where they are alike; input: t, or h when dense. */
static spt_status multiply_out(const group_call *call, const void *input, float beta, void *y, spt_dtype y_dtype) {
  const spt_group_desc *desc = call->desc;
  const bool dense = call->rank == 0;
  for (int j = 0; j < (call->batch ? 1 : desc->count); j++) {
    const int64_t m = desc->out_dim[j], width = inner(desc, j);
    spt_cuda_product product = {.m = call->tokens,
                                .n = m,
                                .k = width,
                                .a = plain(dense ? input : spt_cuda_at(input, t_column(desc, j), call->act), dense ? call->n : call->rank),
                                .b = transposed(weight_a(call, j), width),
                                .dtype = call->act,
                                .alpha = 1.0f - call->alpha[j],
                                .beta = beta,
                                .c = member(call, y, j, y_dtype),
                                .ldc = m,
                                .stride_c = call->tokens * m,
                                .c_dtype = y_dtype,
                                .batch = call->batch ? desc->count : 1};
    product.a.stride = dense ? 0 : width;
    product.b.stride = m * width;
    SPT_TRY(spt_cuda_gemm(call->cuda, &product));
  }
  return SPT_OK;
}

/* y_j += alpha_j·h·W_jᵀ of the guides in use; a bf16 sum is rounded once more. */
static spt_status multiply_guides(const group_call *call, const void *h, void *y, spt_dtype y_dtype) {
  for (int j = 0; j < call->desc->count; j++) {
    const int64_t m = call->desc->out_dim[j];
    const spt_cuda_product product = {.m = call->tokens,
                                      .n = m,
                                      .k = call->n,
                                      .a = plain(h, call->n),
                                      .b = transposed(weight_guide(call, j), call->n),
                                      .dtype = call->act,
                                      .alpha = call->alpha[j],
                                      .beta = 1.0f,
                                      .c = member(call, y, j, y_dtype),
                                      .ldc = m,
                                      .c_dtype = y_dtype};
    if (call->alpha[j] > 0.0f) SPT_TRY(spt_cuda_gemm(call->cuda, &product));
  }
  return SPT_OK;
}

spt_status spt_cuda_group_forward(spt_backend *backend, const spt_group_forward_args *args) {
  const spt_group_desc *desc = args->desc;
  group_call call;
  group_workspace w;
  SPT_TRY(open_call(backend, desc, args->tokens, args->weights, args->alpha, &call));
  (void)carve(desc, call.act, call.tokens, false, args->workspace, &w);
  const int64_t N = call.tokens, n = call.n;
  cudaStream_t stream = call.cuda->stream;
  if (desc->prologue == SPT_PROLOGUE_RMSNORM)
    SPT_CUDA(spt_cuda_rmsnorm(N, n, (float)desc->norm_eps, args->x, args->gain, args->rstd, w.h, call.act, stream));
  else if (desc->prologue == SPT_PROLOGUE_SWIGLU)
    SPT_CUDA(spt_cuda_swiglu(N * n, args->x, spt_cuda_at(args->x, N * n, call.act), w.h, call.act, stream));
  const void *h = w.h ? w.h : args->x;
  if (call.rank > 0) {
    const spt_cuda_product product = {.m = N,
                                      .n = call.rank,
                                      .k = n,
                                      .a = plain(h, n),
                                      .b = plain(weight_b(&call), call.rank),
                                      .dtype = call.act,
                                      .alpha = 1.0f,
                                      .c = args->t,
                                      .ldc = call.rank,
                                      .c_dtype = call.act};
    SPT_TRY(spt_cuda_gemm(call.cuda, &product));
  }
  const bool residual = desc->epilogue == SPT_EPILOGUE_RESIDUAL;
  if (residual && args->residual != args->y)
    SPT_CUDA(cudaMemcpyAsync(args->y, args->residual, (size_t)(N * spt_group_out(desc)) * sizeof(float), cudaMemcpyDeviceToDevice, stream));
  SPT_TRY(multiply_out(&call, call.rank > 0 ? args->t : h, residual ? 1.0f : 0.0f, args->y, residual ? SPT_F32 : call.act));
  SPT_TRY(multiply_guides(&call, h, args->y, residual ? SPT_F32 : call.act));
  if (desc->epilogue == SPT_EPILOGUE_ROPE) SPT_TRY(rotate(&call, args->seq_len, args->y, false));
  return spt_cuda_end(call.cuda, spt_cost_group(desc, N, backend->act, args->alpha, false));
}

/* dt_j (N, r_j) = (1 − alpha_j)·dz_j·A_j, side by side. */
static spt_status multiply_dt(const group_call *call, const void *dz, void *dt) {
  const spt_group_desc *desc = call->desc;
  for (int j = 0; j < (call->batch ? 1 : desc->count); j++) {
    const int64_t m = desc->out_dim[j], r = desc->factor_rank[j];
    spt_cuda_product product = {.m = call->tokens,
                                .n = r,
                                .k = m,
                                .a = plain(member(call, dz, j, call->act), m),
                                .b = plain(weight_a(call, j), r),
                                .dtype = call->act,
                                .alpha = 1.0f - call->alpha[j],
                                .c = spt_cuda_at(dt, t_column(desc, j), call->act),
                                .ldc = call->rank,
                                .stride_c = r,
                                .c_dtype = call->act,
                                .batch = call->batch ? desc->count : 1};
    product.a.stride = call->tokens * m;
    product.b.stride = m * r;
    SPT_TRY(spt_cuda_gemm(call->cuda, &product));
  }
  return SPT_OK;
}

/* dh (N, n) = Σ dt_j·B_jᵀ, in one product, + Σ alpha_j·dz_j·W_j of the guides, or Σ dz_j·W_j. */
static spt_status multiply_dh(const group_call *call, const void *dz, const void *dt, void *dh, spt_dtype dtype) {
  spt_cuda_product product = {
      .m = call->tokens, .n = call->n, .dtype = call->act, .alpha = 1.0f, .c = dh, .ldc = call->n, .c_dtype = dtype};
  if (call->rank > 0) {
    product.k = call->rank;
    product.a = plain(dt, call->rank);
    product.b = transposed(weight_b(call), call->rank);
    SPT_TRY(spt_cuda_gemm(call->cuda, &product));
  }
  for (int j = 0; j < call->desc->count; j++) {
    if (call->rank > 0 && call->alpha[j] == 0.0f) continue;
    product.k = call->desc->out_dim[j];
    product.a = plain(member(call, dz, j, call->act), product.k);
    product.b = plain(call->rank > 0 ? weight_guide(call, j) : weight_a(call, j), call->n);
    product.alpha = call->rank > 0 ? call->alpha[j] : 1.0f;
    product.beta = call->rank > 0 || j > 0 ? 1.0f : 0.0f;
    SPT_TRY(spt_cuda_gemm(call->cuda, &product));
  }
  return SPT_OK;
}

/* dA_j (m_j, r_j) += (1 − alpha_j)·dz_jᵀ·t_j, dB_j (n, r_j) += hᵀ·dt_j and, of a guide, dW_j (m_j, n) += alpha_j·dz_jᵀ·h; or dW_j += dz_jᵀ·h. */
static spt_status multiply_gradients(const group_call *call, const spt_group_backward_args *args, const void *h, const void *dz, const void *dt) {
  const spt_group_desc *desc = call->desc;
  for (int j = 0; j < desc->count; j++) {
    const int64_t m = desc->out_dim[j], r = desc->factor_rank[j], width = inner(desc, j), column = t_column(desc, j);
    spt_cuda_product product = {.m = m,
                                .n = width,
                                .k = call->tokens,
                                .a = transposed(member(call, dz, j, call->act), m),
                                .b = r > 0 ? plain(spt_cuda_at(args->t, column, call->act), call->rank) : plain(h, call->n),
                                .dtype = call->act,
                                .alpha = 1.0f - call->alpha[j],
                                .beta = 1.0f,
                                .c = args->gradients.a[j],
                                .ldc = width,
                                .c_dtype = SPT_F32};
    SPT_TRY(spt_cuda_gemm(call->cuda, &product));
    if (call->alpha[j] > 0.0f) {
      spt_cuda_product guide = product;
      guide.n = guide.ldc = call->n;
      guide.b = plain(h, call->n);
      guide.alpha = call->alpha[j];
      guide.c = args->gradients.guide[j];
      SPT_TRY(spt_cuda_gemm(call->cuda, &guide));
    }
    if (r == 0) continue;
    product.alpha = 1.0f;
    product.m = call->n;
    product.a = transposed(h, call->n);
    product.b = plain(spt_cuda_at(dt, column, call->act), call->rank);
    product.c = args->gradients.b[j];
    SPT_TRY(spt_cuda_gemm(call->cuda, &product));
  }
  return SPT_OK;
}

/* h again and, from dh, the gradients before the prologue. */
static spt_status prologue_backward(const group_call *call, const spt_group_backward_args *args, const group_workspace *w, spt_dtype dh) {
  const int64_t N = call->tokens, n = call->n;
  cudaStream_t stream = call->cuda->stream;
  if (call->desc->prologue == SPT_PROLOGUE_RMSNORM) {
    SPT_CUDA(spt_cuda_rmsnorm_apply(N, n, args->x, args->gain, args->rstd, w->h, call->act, stream));
    SPT_CUDA(spt_cuda_rmsnorm_backward(N, n, args->x, args->gain, args->rstd, w->dh, dh, args->dx_residual, true, args->dgain, w->partial,
                                       stream));
  } else if (call->desc->prologue == SPT_PROLOGUE_SWIGLU)
    SPT_CUDA(spt_cuda_swiglu_backward(N * n, args->x, spt_cuda_at(args->x, N * n, call->act), w->dh, dh, w->h, args->dx,
                                      spt_cuda_at(args->dx, N * n, call->act), call->act, stream));
  return SPT_OK;
}

spt_status spt_cuda_group_backward(spt_backend *backend, const spt_group_backward_args *args) {
  const spt_group_desc *desc = args->desc;
  group_call call;
  group_workspace w;
  SPT_TRY(open_call(backend, desc, args->tokens, args->weights, args->alpha, &call));
  (void)carve(desc, call.act, call.tokens, true, args->workspace, &w);
  const void *dz = args->dy;
  if (desc->epilogue == SPT_EPILOGUE_RESIDUAL) {
    SPT_CUDA(spt_cuda_convert(call.tokens * spt_group_out(desc), args->dy, w.dz, call.act, call.cuda->stream));
    dz = w.dz;
  } else if (desc->epilogue == SPT_EPILOGUE_ROPE)
    SPT_TRY(rotate(&call, args->seq_len, args->dy, true));
  if (call.rank > 0) SPT_TRY(multiply_dt(&call, dz, w.dt));
  const spt_dtype dh = dh_dtype(desc, call.act);
  if (desc->prologue == SPT_PROLOGUE_NONE) { // x is h, and dx may be x: its gradients first
    SPT_TRY(multiply_gradients(&call, args, args->x, dz, w.dt));
    SPT_TRY(multiply_dh(&call, dz, w.dt, w.dh ? w.dh : args->dx, dh));
    if (w.dh) SPT_CUDA(spt_cuda_convert(call.tokens * call.n, w.dh, args->dx, call.act, call.cuda->stream));
  } else {
    SPT_TRY(multiply_dh(&call, dz, w.dt, w.dh, dh));
    SPT_TRY(prologue_backward(&call, args, &w, dh));
    SPT_TRY(multiply_gradients(&call, args, w.h, dz, w.dt));
  }
  return spt_cuda_end(call.cuda, spt_cost_group(desc, call.tokens, backend->act, args->alpha, true));
}

spt_status spt_cuda_rope_prepare(spt_cuda *cuda, double theta, int64_t head_dim, int64_t positions) {
  spt_cuda_rope_table *table = &cuda->rope;
  if (table->theta == theta && table->head_dim == head_dim && table->positions >= positions) return SPT_OK;
  const int64_t half = head_dim / 2, count = (positions * half + 3) / 4 * 4; // the sines begin at 16 bytes
  const size_t bytes = 2 * (size_t)count * sizeof(float);
  float *values = calloc(1, bytes + 1);
  if (!values) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the rotary table of %lld positions", (long long)positions);
  for (int64_t i = 0; i < half; i++) {
    const double frequency = pow(theta, -2.0 * (double)i / (double)head_dim);
    for (int64_t position = 0; position < positions; position++) {
      values[position * half + i] = (float)cos((double)position * frequency);
      values[count + position * half + i] = (float)sin((double)position * frequency);
    }
  }
  void *memory = NULL;
  spt_status status = cuda->base.ops->alloc(&cuda->base, bytes, &memory);
  if (status == SPT_OK) status = cuda->base.ops->upload(&cuda->base, memory, values, bytes);
  free(values);
  if (status != SPT_OK) {
    (void)cudaFree(memory);
    return status;
  }
  SPT_CUDA(cudaFree(table->cosine)); // waits for what uses it
  cuda->grown++;
  *table = (spt_cuda_rope_table){theta, head_dim, positions, memory, (float *)memory + count};
  return SPT_OK;
}
