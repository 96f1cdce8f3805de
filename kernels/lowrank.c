/* Pair groups: prologue → ·B → ·Aᵀ → epilogue on row blocks that stay in a core's cache, and their backward. */
#include "backend_cpu.h"

#include <omp.h>

enum { TILE_ROWS = 256, DEPTH = 512 }; // of a weight gradient: rows of a factor in one task, tokens in one product

/* Packed weights: B_0|B_1|B_2 (n, Σr), then A_0, A_1, A_2 (m_j, r_j); or, dense, W_0, W_1, W_2 on top of each other (M,
 * n). */
typedef struct packed_layout {
  int64_t a[SPT_GROUP_MAX]; // offsets in elements
  int64_t elements;
} packed_layout;

static packed_layout layout_of(const spt_group_desc *desc) {
  packed_layout layout = {.elements = desc->in_dim * spt_group_rank(desc)};
  for (int j = 0; j < desc->count; j++) {
    const int64_t inner = desc->factor_rank[j] > 0 ? desc->factor_rank[j] : desc->in_dim;
    if (desc->factor_rank[j] > 0) layout.elements = (layout.elements + 31) & ~(int64_t)31; // dense ones must touch
    layout.a[j] = layout.elements;
    layout.elements += desc->out_dim[j] * inner;
  }
  return layout;
}

size_t spt_cpu_group_packed_bytes(spt_backend *backend, const spt_group_desc *desc) {
  return (size_t)layout_of(desc).elements * spt_dtype_size(spt_cpu_weight_dtype((const spt_cpu *)backend));
}

/* Converts to act (the rounding that products see), stored as `dtype`. */
static void pack_row(const spt_cpu *cpu, spt_dtype act, spt_dtype dtype, const float *src, void *dst, int64_t count) {
  if (act == dtype) {
    cpu->simd->convert(dst, dtype, src, SPT_F32, count);
    return;
  }
  for (int64_t i = 0; i < count; i++) ((float *)dst)[i] = spt_from_bf16(spt_to_bf16(src[i]));
}

spt_status spt_cpu_group_pack(spt_backend *backend, const spt_group_desc *desc, const spt_group_tensors *masters,
                              void *weights) {
  spt_cpu *cpu = spt_cpu_begin(backend);
  const spt_dtype dtype = spt_cpu_weight_dtype(cpu), act = backend->act;
  const packed_layout layout = layout_of(desc);
  const int64_t total_rank = spt_group_rank(desc), n = desc->in_dim;
#pragma omp parallel num_threads(backend->threads)
  {
    for (int64_t j = 0, column = 0; j < desc->count; column += desc->factor_rank[j], j++) {
      const int64_t r = desc->factor_rank[j], inner = r > 0 ? r : n;
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < (r > 0 ? n : 0); i++)
        pack_row(cpu, act, dtype, masters->b[j] + i * r, spt_at(weights, i * total_rank + column, dtype), r);
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < desc->out_dim[j]; i++)
        pack_row(cpu, act, dtype, masters->a[j] + i * inner, spt_at(weights, layout.a[j] + i * inner, dtype), inner);
    }
  }
  return spt_cpu_end(cpu, spt_cost_group_pack(desc, dtype));
}

/* Rows of a block: enough to amortise a product's own packing of the weights, few enough to stay in the second-level
 * cache and to give every core work. Depends on shapes only. */
static int64_t block_rows(const spt_group_desc *desc, int64_t tokens) {
  const int64_t most = desc->in_dim < 512 ? 256 : 512;
  return spt_min(most, spt_max(128, (tokens / 8 + 63) / 64 * 64));
}

/* Everything about one call that its tasks share. */
typedef struct group_call {
  const spt_group_desc *desc;
  const spt_rope_table *rope;
  const spt_simd_kernels *simd;
  spt_dtype act, weight_dtype;
  packed_layout layout;
  int64_t tokens, seq_len, rows, blocks, out, rank;
  const void *weights;
  void *h;      // act: (N, n) in backward, (threads, rows, n) in forward
  void *dz;     // act (N, M)
  void *dt;     // act (N, Σr)
  float *dgain; // (blocks, n)
  float *dh;    // (threads, rows, n)
} group_call;

static group_call call_of(const spt_cpu *cpu, const spt_group_desc *desc, int64_t tokens) {
  group_call call = {.desc = desc,
                     .rope = &cpu->rope,
                     .simd = cpu->simd,
                     .act = cpu->base.act,
                     .weight_dtype = spt_cpu_weight_dtype(cpu),
                     .layout = layout_of(desc),
                     .tokens = tokens,
                     .rows = block_rows(desc, tokens),
                     .out = spt_group_out(desc),
                     .rank = spt_group_rank(desc)};
  call.blocks = spt_blocks(tokens, call.rows);
  return call;
}

static size_t carve_forward(const spt_cpu *cpu, group_call *call, void *workspace) {
  spt_carve carve = {workspace, 0};
  if (call->desc->prologue != SPT_PROLOGUE_NONE)
    call->h = spt_carve_take(&carve, cpu->base.threads * call->rows * call->desc->in_dim, spt_dtype_size(call->act));
  return carve.used;
}

static size_t carve_backward(const spt_cpu *cpu, group_call *call, void *workspace) {
  const spt_group_desc *desc = call->desc;
  const size_t size = spt_dtype_size(call->act);
  spt_carve carve = {workspace, 0};
  call->h = spt_carve_take(&carve, call->tokens * desc->in_dim, size);
  if (desc->epilogue == SPT_EPILOGUE_RESIDUAL) call->dz = spt_carve_take(&carve, call->tokens * call->out, size);
  if (call->rank > 0) call->dt = spt_carve_take(&carve, call->tokens * call->rank, size);
  if (desc->prologue == SPT_PROLOGUE_RMSNORM)
    call->dgain = spt_carve_take(&carve, call->blocks * desc->in_dim, sizeof(float));
  if (desc->prologue != SPT_PROLOGUE_NONE)
    call->dh = spt_carve_take(&carve, cpu->base.threads * call->rows * desc->in_dim, sizeof(float));
  return carve.used;
}

size_t spt_cpu_group_workspace(const spt_cpu *cpu, const spt_group_desc *desc, int64_t tokens, bool train) {
  group_call call = call_of(cpu, desc, tokens);
  const size_t forward = carve_forward(cpu, &call, NULL), backward = train ? carve_backward(cpu, &call, NULL) : 0;
  return forward > backward ? forward : backward;
}

static spt_operand plain(const void *data, int64_t offset, int64_t ld, spt_dtype dtype) {
  return (spt_operand){spt_at(data, offset, dtype), ld, dtype, false};
}
static spt_operand transposed(const void *data, int64_t offset, int64_t ld, spt_dtype dtype) {
  return (spt_operand){spt_at(data, offset, dtype), ld, dtype, true};
}
/* In fp32 arithmetic on bf16 activations the packed weights are fp32 already, which spt_gemm accepts beside a bf16
 * operand. */
static spt_operand weight(const group_call *call, int64_t offset, int64_t ld, bool transpose) {
  return (spt_operand){spt_at(call->weights, offset, call->weight_dtype), ld, call->weight_dtype, transpose};
}

static void forward_block(const group_call *call, const spt_group_forward_args *args, spt_cpu_thread *thread,
                          int64_t block, void *scratch) {
  const spt_group_desc *desc = call->desc;
  const spt_dtype act = call->act;
  const int64_t n = desc->in_dim, row0 = block * call->rows, rows = spt_min(call->rows, call->tokens - row0),
                r = call->rank;
  const void *h = scratch;
  if (desc->prologue == SPT_PROLOGUE_RMSNORM)
    call->simd->rmsnorm_forward(rows, n, desc->norm_eps, (const float *)args->x + row0 * n, args->gain, args->rstd + row0,
                        scratch, act);
  else if (desc->prologue == SPT_PROLOGUE_SWIGLU)
    call->simd->swiglu_forward(rows, n, spt_at(args->x, 2 * row0 * n, act), scratch, act);
  else
    h = spt_at(args->x, row0 * n, act);
  if (r > 0)
    spt_cpu_gemm(thread, rows, r, n, 1.0f, plain(h, 0, n, act), weight(call, 0, r, false), 0.0f,
                 spt_at(args->t, row0 * r, act), r, act);

  const bool residual = desc->epilogue == SPT_EPILOGUE_RESIDUAL;
  const spt_dtype y_dtype = residual ? SPT_F32 : act;
  void *y = spt_at(args->y, row0 * call->out, y_dtype);
  if (residual && args->residual != args->y)
    memcpy(y, args->residual + row0 * call->out, (size_t)(rows * call->out) * sizeof(float));
  const float beta = residual ? 1.0f : 0.0f;
  if (r == 0) // W_0, W_1, W_2 touch: one product
    spt_cpu_gemm(thread, rows, call->out, n, 1.0f, plain(h, 0, n, act), weight(call, 0, n, true), beta, y, call->out,
                 y_dtype);
  for (int64_t j = 0, column = 0, t_column = 0; r > 0 && j < desc->count; j++) {
    const int64_t m = desc->out_dim[j], r_j = desc->factor_rank[j];
    spt_cpu_gemm(thread, rows, m, r_j, 1.0f, plain(args->t, row0 * r + t_column, r, act),
                 weight(call, call->layout.a[j], r_j, true), beta, spt_at(y, column, y_dtype), call->out, y_dtype);
    column += m;
    t_column += r_j;
  }
  if (desc->epilogue == SPT_EPILOGUE_ROPE)
    call->simd->rope_rotate(call->rope, row0, rows, call->seq_len, desc->out_dim[0] + (desc->count > 1 ? desc->out_dim[1] : 0),
                    y, call->out, act, false);
}

spt_status spt_cpu_group_forward(spt_backend *backend, const spt_group_forward_args *args) {
  spt_cpu *cpu = spt_cpu_begin(backend);
  const spt_group_desc *desc = args->desc;
  group_call call = call_of(cpu, desc, args->tokens);
  call.seq_len = args->seq_len;
  call.weights = args->weights;
  (void)carve_forward(cpu, &call, args->workspace);
  if (desc->epilogue == SPT_EPILOGUE_ROPE)
    SPT_TRY(spt_rope_prepare(cpu, desc->rope_theta, desc->head_dim, args->seq_len));
#pragma omp parallel num_threads(backend->threads)
  {
    spt_cpu_thread *thread = spt_cpu_enter(cpu);
    void *scratch = call.h ? spt_at(call.h, omp_get_thread_num() * call.rows * desc->in_dim, call.act) : NULL;
#pragma omp for schedule(static, 1)
    for (int64_t block = 0; block < call.blocks; block++) forward_block(&call, args, thread, block, scratch);
  }
  return spt_cpu_end(cpu, spt_cost_group(desc, args->tokens, backend->act, false));
}

/* h again, for the weight gradients (behind SwiGLU later, with the gradient through it); dz in act, unrotated. */
static void backward_inputs(const group_call *call, const spt_group_backward_args *args, int64_t row0, int64_t rows) {
  const spt_group_desc *desc = call->desc;
  const spt_dtype act = call->act;
  const int64_t n = desc->in_dim;
  void *h = spt_at(call->h, row0 * n, act);
  if (desc->prologue == SPT_PROLOGUE_RMSNORM)
    call->simd->rmsnorm_apply(rows, n, (const float *)args->x + row0 * n, args->gain, args->rstd + row0, h, act);
  else if (desc->prologue == SPT_PROLOGUE_NONE && args->dx == args->x)
    memcpy(h, spt_at(args->x, row0 * n, act), (size_t)(rows * n) * spt_dtype_size(act));
  if (desc->epilogue == SPT_EPILOGUE_RESIDUAL)
    call->simd->convert(spt_at(call->dz, row0 * call->out, act), act, (const float *)args->dy + row0 * call->out, SPT_F32,
                rows * call->out);
  else if (desc->epilogue == SPT_EPILOGUE_ROPE)
    call->simd->rope_rotate(call->rope, row0, rows, call->seq_len, desc->out_dim[0] + (desc->count > 1 ? desc->out_dim[1] : 0),
                    spt_at(args->dy, row0 * call->out, act), call->out, act, true);
}

static void backward_block(const group_call *call, const spt_group_backward_args *args, spt_cpu_thread *thread,
                           int64_t block, float *dh) {
  const spt_group_desc *desc = call->desc;
  const spt_dtype act = call->act;
  const int64_t n = desc->in_dim, row0 = block * call->rows, rows = spt_min(call->rows, call->tokens - row0),
                r = call->rank, out = call->out;
  backward_inputs(call, args, row0, rows);
  const void *dz = call->dz ? call->dz : args->dy;
  const bool direct = desc->prologue == SPT_PROLOGUE_NONE; // dh is dx
  void *target = direct ? spt_at(args->dx, row0 * n, act) : dh;
  const spt_dtype target_dtype = direct ? act : SPT_F32;
  if (r == 0) {
    spt_cpu_gemm(thread, rows, n, out, 1.0f, plain(dz, row0 * out, out, act), weight(call, 0, n, false), 0.0f, target,
                 n, target_dtype);
  } else {
    for (int64_t j = 0, column = 0, t_column = 0; j < desc->count; j++) {
      const int64_t m = desc->out_dim[j], r_j = desc->factor_rank[j];
      spt_cpu_gemm(thread, rows, r_j, m, 1.0f, plain(dz, row0 * out + column, out, act),
                   weight(call, call->layout.a[j], r_j, false), 0.0f, spt_at(call->dt, row0 * r + t_column, act), r,
                   act);
      column += m;
      t_column += r_j;
    }
    spt_cpu_gemm(thread, rows, n, r, 1.0f, plain(call->dt, row0 * r, r, act), weight(call, 0, r, true), 0.0f, target, n,
                 target_dtype);
  }
  if (desc->prologue == SPT_PROLOGUE_RMSNORM)
    call->simd->rmsnorm_backward(rows, n, (const float *)args->x + row0 * n, args->gain, args->rstd + row0, dh,
                         args->dx_residual + row0 * n, true, call->dgain + block * n);
  else if (desc->prologue == SPT_PROLOGUE_SWIGLU)
    call->simd->swiglu_backward(rows, n, spt_at(args->x, 2 * row0 * n, act), dh, spt_at(call->h, row0 * n, act),
                                spt_at(args->dx, 2 * row0 * n, act), act);
}

/* One gradient += leftᵀ·right over all tokens; a task takes some rows of the gradient and goes through the tokens in
 * order. */
typedef struct weight_gradient {
  spt_operand left, right; // (N, rows), (N, cols)
  float *gradient;         // (rows, cols)
  int64_t rows, cols, first_task;
} weight_gradient;

static int64_t list_gradients(const group_call *call, const spt_group_backward_args *args, weight_gradient *list,
                              int *count_p) {
  const spt_group_desc *desc = call->desc;
  const spt_dtype act = call->act;
  const int64_t n = desc->in_dim;
  const void *dz = call->dz ? call->dz : args->dy;
  const void *h = desc->prologue == SPT_PROLOGUE_NONE && args->dx != args->x ? args->x : call->h;
  int64_t tasks = 0, column = 0, t_column = 0;
  int count = 0;
  for (int j = 0; j < desc->count; j++) {
    const int64_t m = desc->out_dim[j], r = desc->factor_rank[j];
    const spt_operand dz_j = transposed(dz, column, call->out, act);
    if (r == 0)
      list[count++] = (weight_gradient){dz_j, plain(h, 0, n, act), args->gradients.a[j], m, n, 0};
    else {
      list[count++] = (weight_gradient){dz_j, plain(args->t, t_column, call->rank, act), args->gradients.a[j], m, r, 0};
      list[count++] = (weight_gradient){
          transposed(h, 0, n, act), plain(call->dt, t_column, call->rank, act), args->gradients.b[j], n, r, 0};
    }
    column += m;
    t_column += r;
  }
  for (int i = 0; i < count; i++) {
    list[i].first_task = tasks;
    tasks += spt_blocks(list[i].rows, TILE_ROWS);
  }
  *count_p = count;
  return tasks;
}

static void gradient_task(const weight_gradient *list, int count, int64_t task, int64_t tokens,
                          spt_cpu_thread *thread) {
  int i = count - 1;
  while (list[i].first_task > task) i--;
  const weight_gradient *g = &list[i];
  const int64_t row0 = (task - g->first_task) * TILE_ROWS, rows = spt_min(TILE_ROWS, g->rows - row0);
  for (int64_t token = 0; token < tokens; token += DEPTH) {
    spt_operand left = g->left, right = g->right;
    left.data = spt_at(left.data, token * left.ld + row0, left.dtype);
    right.data = spt_at(right.data, token * right.ld, right.dtype);
    spt_cpu_gemm(thread, rows, g->cols, spt_min(DEPTH, tokens - token), 1.0f, left, right, 1.0f,
                 g->gradient + row0 * g->cols, g->cols, SPT_F32);
  }
}

spt_status spt_cpu_group_backward(spt_backend *backend, const spt_group_backward_args *args) {
  spt_cpu *cpu = spt_cpu_begin(backend);
  const spt_group_desc *desc = args->desc;
  group_call call = call_of(cpu, desc, args->tokens);
  call.seq_len = args->seq_len;
  call.weights = args->weights;
  (void)carve_backward(cpu, &call, args->workspace);
  if (desc->epilogue == SPT_EPILOGUE_ROPE)
    SPT_TRY(spt_rope_prepare(cpu, desc->rope_theta, desc->head_dim, args->seq_len));
  weight_gradient list[2 * SPT_GROUP_MAX];
  int count;
  const int64_t tasks = list_gradients(&call, args, list, &count);
#pragma omp parallel num_threads(backend->threads)
  {
    spt_cpu_thread *thread = spt_cpu_enter(cpu);
    float *dh = call.dh ? call.dh + omp_get_thread_num() * call.rows * desc->in_dim : NULL;
#pragma omp for schedule(static, 1)
    for (int64_t block = 0; block < call.blocks; block++) backward_block(&call, args, thread, block, dh);
#pragma omp for schedule(static, 1) nowait
    for (int64_t task = 0; task < tasks; task++) gradient_task(list, count, task, call.tokens, thread);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < (call.dgain ? desc->in_dim : 0); i++)
      for (int64_t block = 0; block < call.blocks; block++) args->dgain[i] += call.dgain[block * desc->in_dim + i];
  }
  return spt_cpu_end(cpu, spt_cost_group(desc, args->tokens, backend->act, true));
}
