/* Pair groups: prologue → ·B → ·Aᵀ → epilogue on row blocks that stay in a core's cache, and their backward, in which a
 * block's part of the weights' gradients is taken while its operands are still there. Every operand is dense (its
 * leading dimension is its width): the matrix library is up to a quarter slower on others.
 *
 * The scales of a guided group change from step to step, and the library makes a product for each scale that it is
 * given: so operands are scaled instead, t_j and dt_j by 1 − alpha_j where they lie, and h, or dz_j, by alpha_j into
 * scratch. In bf16 each such operand, and the sum of the two products, is rounded once more. */
#include "backend_cpu.h"
#include "ordered_sum.h"

#include <assert.h>
#include <omp.h>

enum { BLOCK_ROWS = 256 };

/* Packed weights: each operand in the library's order, for the side of the product it stands on. */
typedef struct packed_layout {
  size_t b[SPT_GROUP_MAX];          // B_j: t_j = h·B_j
  size_t a[SPT_GROUP_MAX];          // A_jᵀ or W_jᵀ: y_j = t_j·A_jᵀ
  size_t a_backward[SPT_GROUP_MAX]; // A_j or W_j: dt_j = dz_j·A_j
  size_t b_backward;                // the B_jᵀ on top of each other, (Σr, n): dh = dt·Bᵀ
  size_t guide[SPT_GROUP_MAX];      // guided: W_jᵀ, y_j += alpha_j·h·W_jᵀ
  size_t guide_backward[SPT_GROUP_MAX]; // W_j: dh += alpha_j·dz_j·W_j
  size_t bytes;
} packed_layout;

static packed_layout layout_of(const spt_cpu *cpu, const spt_group_desc *desc) {
  packed_layout layout = {0};
  const int64_t n = desc->in_dim;
  for (int j = 0; j < desc->count; j++) {
    const int64_t m = desc->out_dim[j], r = desc->factor_rank[j], inner = r > 0 ? r : n;
    layout.b[j] = layout.bytes;
    layout.a[j] = layout.b[j] + (r > 0 ? spt_cpu_packed_bytes(cpu, r, n) : 0);
    layout.a_backward[j] = layout.a[j] + spt_cpu_packed_bytes(cpu, m, inner);
    layout.bytes = layout.a_backward[j] + spt_cpu_packed_bytes(cpu, inner, m);
  }
  layout.b_backward = layout.bytes;
  const int64_t rank = spt_group_rank(desc);
  if (rank > 0) layout.bytes += spt_cpu_packed_bytes(cpu, n, rank);
  for (int j = 0; desc->guided && j < desc->count; j++) {
    layout.guide[j] = layout.bytes;
    layout.guide_backward[j] = layout.guide[j] + spt_cpu_packed_bytes(cpu, desc->out_dim[j], n);
    layout.bytes = layout.guide_backward[j] + spt_cpu_packed_bytes(cpu, n, desc->out_dim[j]);
  }
  return layout;
}

size_t spt_cpu_group_packed_bytes(spt_backend *backend, const spt_group_desc *desc) {
  return layout_of((const spt_cpu *)backend, desc).bytes;
}

static spt_operand plain(const void *data, int64_t ld, spt_dtype dtype) {
  return (spt_operand){data, ld, dtype, false};
}
static spt_operand transposed(const void *data, int64_t ld, spt_dtype dtype) {
  return (spt_operand){data, ld, dtype, true};
}

/* Converts to act (the rounding that products see), stored as the type of weights. */
static void round_weights(const spt_cpu *cpu, const float *src, void *dst, int64_t count) {
  const spt_dtype dtype = spt_cpu_weight_dtype(cpu);
  cpu->simd->convert(dst, dtype, src, SPT_F32, count);
  if (cpu->base.act == SPT_BF16 && dtype == SPT_F32)
    for (int64_t i = 0; i < count; i++) ((float *)dst)[i] = spt_from_bf16(spt_to_bf16(src[i]));
}

/* W (rows, cols), as it is used transposed (y = x·Wᵀ) and as it is (dx = dy·W). */
void spt_cpu_pack_both(const spt_cpu *cpu, spt_cpu_thread *thread, int64_t rows, int64_t cols, const float *w,
                       void *forward, void *backward) {
  const spt_dtype dtype = spt_cpu_weight_dtype(cpu);
  void *scratch = spt_cpu_pack_scratch(thread, rows * cols, dtype);
  if (!scratch) return;
  round_weights(cpu, w, scratch, rows * cols);
  spt_cpu_pack(thread, rows, cols, transposed(scratch, cols, dtype), forward);
  spt_cpu_pack(thread, cols, rows, plain(scratch, cols, dtype), backward);
}

/* The B_jᵀ on top of each other. */
static void pack_stack(const spt_cpu *cpu, spt_cpu_thread *thread, const spt_group_desc *desc,
                       const spt_group_sources *masters, void *packed) {
  const spt_dtype dtype = spt_cpu_weight_dtype(cpu);
  const int64_t n = desc->in_dim, rank = spt_group_rank(desc);
  void *scratch = spt_cpu_pack_scratch(thread, rank * n, dtype);
  if (!scratch) return;
  for (int64_t j = 0, row = 0; j < desc->count; row += desc->factor_rank[j], j++)
    cpu->simd->transpose(n, desc->factor_rank[j], masters->b[j], desc->factor_rank[j], spt_at(scratch, row * n, dtype),
                         n, dtype, cpu->base.act == SPT_BF16);
  spt_cpu_pack(thread, n, rank, plain(scratch, n, dtype), packed);
}

static void pack_b(const spt_cpu *cpu, spt_cpu_thread *thread, int64_t n, int64_t r, const float *b, void *packed) {
  const spt_dtype dtype = spt_cpu_weight_dtype(cpu);
  void *scratch = spt_cpu_pack_scratch(thread, n * r, dtype);
  if (!scratch) return;
  round_weights(cpu, b, scratch, n * r);
  spt_cpu_pack(thread, r, n, plain(scratch, r, dtype), packed);
}

spt_status spt_cpu_group_pack(spt_backend *backend, const spt_group_desc *desc, const spt_group_sources *masters,
                              void *weights) {
  assert(masters->dtype == SPT_F32);
  spt_cpu *cpu = spt_cpu_begin(backend);
  const packed_layout layout = layout_of(cpu, desc);
  const int64_t n = desc->in_dim;
  // all A_j, all B_j, the stack, all guides
  const int low_rank = 2 * desc->count + 1, tasks = spt_group_rank(desc) == 0 ? desc->count
                                                    : desc->guided            ? low_rank + desc->count
                                                                              : low_rank;
#pragma omp parallel num_threads(backend->threads)
  {
    spt_cpu_thread *thread = spt_cpu_enter(cpu);
    unsigned char *to = weights;
#pragma omp for schedule(static, 1)
    for (int task = 0; task < tasks; task++) {
      const int j = task < low_rank ? task % desc->count : task - low_rank;
      const int64_t r = desc->factor_rank[j];
      if (task < desc->count)
        spt_cpu_pack_both(cpu, thread, desc->out_dim[j], r > 0 ? r : n, masters->a[j], to + layout.a[j],
                          to + layout.a_backward[j]);
      else if (task < 2 * desc->count)
        pack_b(cpu, thread, n, r, masters->b[j], to + layout.b[j]);
      else if (task >= low_rank)
        spt_cpu_pack_both(cpu, thread, desc->out_dim[j], n, masters->guide[j], to + layout.guide[j],
                          to + layout.guide_backward[j]);
      else
        pack_stack(cpu, thread, desc, masters, to + layout.b_backward);
    }
  }
  return spt_cpu_end(cpu, spt_cost_group_pack(desc, SPT_F32, spt_cpu_weight_dtype(cpu)));
}

/* Everything about one call that its blocks share. */
typedef struct group_call {
  const spt_group_desc *desc;
  const spt_rope_table *rope;
  const spt_simd_kernels *simd;
  spt_dtype act, weight_dtype;
  packed_layout layout;
  int64_t tokens, seq_len, rows, blocks, out, rank;
  const void *weights;
  float alpha[SPT_GROUP_MAX]; // 0: no guide
  size_t scratch_bytes; // of a thread
  unsigned char *scratch;
  float *dgain; // (blocks, n)
  spt_ordered_sum sum;
} group_call;

static group_call call_of(const spt_cpu *cpu, const spt_group_desc *desc, int64_t tokens, const float *alpha) {
  group_call call = {.desc = desc,
                     .rope = &cpu->rope,
                     .simd = cpu->simd,
                     .act = cpu->base.act,
                     .weight_dtype = spt_cpu_weight_dtype(cpu),
                     .layout = layout_of(cpu, desc),
                     .tokens = tokens,
                     .rows = spt_min(BLOCK_ROWS, tokens),
                     .out = spt_group_out(desc),
                     .rank = spt_group_rank(desc)};
  call.blocks = spt_blocks(tokens, call.rows);
  for (int j = 0; desc->guided && j < desc->count; j++) call.alpha[j] = alpha[j];
  return call;
}

/* A block's matrices in a thread's scratch. */
typedef struct block_scratch {
  void *h;       // act (rows, n), behind a prologue
  void *dz;      // act (rows, M) of an fp32 dy
  void *dt;      // act: dt_0 (rows, r_0), dt_1, dt_2
  void *dt_rows; // act (rows, Σr), of several members
  void *dh;      // act (rows, n)
  void *scaled;  // act (rows, max(n, m_j)): h or dz_j times alpha_j
} block_scratch;

static int64_t widest(const spt_group_desc *desc) {
  int64_t most = desc->in_dim;
  for (int j = 0; j < desc->count; j++) most = desc->out_dim[j] > most ? desc->out_dim[j] : most;
  return most;
}

static size_t carve_block(const group_call *call, bool backward, void *memory, block_scratch *s) {
  const spt_group_desc *desc = call->desc;
  const size_t size = spt_dtype_size(call->act);
  const bool prologue = desc->prologue != SPT_PROLOGUE_NONE;
  spt_carve carve = {memory, 0};
  *s = (block_scratch){0};
  if (prologue || backward) s->h = spt_carve_take(&carve, call->rows * desc->in_dim, size);
  if (desc->guided) s->scaled = spt_carve_take(&carve, call->rows * widest(desc), size);
  if (!backward) return carve.used;
  if (desc->epilogue == SPT_EPILOGUE_RESIDUAL) s->dz = spt_carve_take(&carve, call->rows * call->out, size);
  s->dt = spt_carve_take(&carve, call->rows * call->rank, size);
  if (desc->count > 1) s->dt_rows = spt_carve_take(&carve, call->rows * call->rank, size);
  if (prologue) s->dh = spt_carve_take(&carve, call->rows * desc->in_dim, size);
  return carve.used;
}

/* The gradients, summed over blocks. */
static void add_gradients(group_call *call, const spt_group_tensors *gradients) {
  const spt_group_desc *desc = call->desc;
  for (int j = 0; j < desc->count; j++) {
    const int64_t m = desc->out_dim[j], r = desc->factor_rank[j], n = desc->in_dim;
    spt_ordered_sum_add(&call->sum, gradients ? gradients->a[j] : NULL, m * (r > 0 ? r : n));
    if (r > 0) spt_ordered_sum_add(&call->sum, gradients ? gradients->b[j] : NULL, n * r);
    if (call->alpha[j] > 0) spt_ordered_sum_add(&call->sum, gradients ? gradients->guide[j] : NULL, m * n);
  }
}

static size_t carve_call(const spt_cpu *cpu, group_call *call, bool backward, void *workspace) {
  block_scratch ignored;
  spt_carve carve = {workspace, 0};
  call->scratch_bytes = carve_block(call, backward, NULL, &ignored);
  call->scratch = spt_carve_take(&carve, cpu->base.threads, call->scratch_bytes);
  if (!backward) return carve.used;
  if (call->desc->prologue == SPT_PROLOGUE_RMSNORM)
    call->dgain = spt_carve_take(&carve, call->blocks * call->desc->in_dim, sizeof(float));
  const size_t bytes = spt_ordered_sum_bytes(&call->sum, call->blocks);
  spt_ordered_sum_place(&call->sum, spt_carve_take(&carve, (int64_t)bytes, 1));
  return carve.used;
}

size_t spt_cpu_group_workspace(const spt_cpu *cpu, const spt_group_desc *desc, int64_t tokens, bool train) {
  const float used[SPT_GROUP_MAX] = {1, 1, 1};
  group_call call = call_of(cpu, desc, tokens, used);
  const size_t forward = carve_call(cpu, &call, false, NULL);
  add_gradients(&call, NULL);
  const size_t backward = train ? carve_call(cpu, &call, true, NULL) : 0;
  return forward > backward ? forward : backward;
}

/* A packed operand. In fp32 arithmetic on bf16 activations weights are fp32, which spt_gemm accepts beside a bf16
 * operand. */
static spt_operand weight(const group_call *call, size_t offset) {
  return (spt_operand){(const unsigned char *)call->weights + offset, 0, call->weight_dtype, false};
}
/* Row `row0` of member j of a matrix whose members (N, m_j) lie one after another. */
static void *member_at(const group_call *call, const void *data, int64_t column, int64_t m, int64_t row0,
                       spt_dtype dtype) {
  return spt_at(data, call->tokens * column + row0 * m, dtype);
}

/* factor·from, `count` elements: from itself, or in the scratch. */
static const void *scaled(const group_call *call, const block_scratch *s, float factor, const void *from, int64_t count) {
  if (factor == 1.0f) return from;
  call->simd->scale(count, factor, from, s->scaled, call->act);
  return s->scaled;
}

/* t_j or dt_j in its place times 1 − alpha_j. */
static void scale_low_rank(const group_call *call, int64_t j, void *t, int64_t count) {
  if (call->alpha[j] > 0) call->simd->scale_row(count, 1.0f - call->alpha[j], t, call->act);
}

static void rotate(const group_call *call, void *y, int64_t row0, int64_t rows, bool inverse) {
  for (int64_t j = 0, column = 0; j < spt_min(2, call->desc->count); column += call->desc->out_dim[j], j++) {
    const int64_t m = call->desc->out_dim[j];
    call->simd->rope_rotate(call->rope, row0, rows, call->seq_len, m, member_at(call, y, column, m, row0, call->act), m,
                            call->act, inverse);
  }
}

static void forward_block(const group_call *call, const spt_group_forward_args *args, spt_cpu_thread *thread,
                          int64_t block, const block_scratch *s) {
  const spt_group_desc *desc = call->desc;
  const spt_dtype act = call->act;
  const int64_t n = desc->in_dim, row0 = block * call->rows, rows = spt_min(call->rows, call->tokens - row0);
  const void *h = s->h;
  if (desc->prologue == SPT_PROLOGUE_RMSNORM)
    call->simd->rmsnorm_forward(rows, n, desc->norm_eps, (const float *)args->x + row0 * n, args->gain,
                                args->rstd + row0, s->h, act);
  else if (desc->prologue == SPT_PROLOGUE_SWIGLU)
    call->simd->swiglu_forward(rows * n, spt_at(args->x, row0 * n, act),
                               spt_at(args->x, (call->tokens + row0) * n, act), s->h, act);
  else
    h = spt_at(args->x, row0 * n, act);

  const bool residual = desc->epilogue == SPT_EPILOGUE_RESIDUAL;
  const spt_dtype y_dtype = residual ? SPT_F32 : act;
  if (residual && args->residual != args->y)
    memcpy((float *)args->y + row0 * call->out, args->residual + row0 * call->out,
           (size_t)(rows * call->out) * sizeof(float));
  void *t = call->rank > 0 ? spt_at(args->t, row0 * call->rank, act) : NULL;
  for (int64_t j = 0, column = 0; j < desc->count; column += desc->out_dim[j], j++) {
    const int64_t m = desc->out_dim[j], r = desc->factor_rank[j], inner = r > 0 ? r : n;
    const void *input = h;
    if (r > 0) {
      spt_cpu_gemm(thread, rows, r, n, 1.0f, plain(h, n, act), weight(call, call->layout.b[j]), 0.0f, t, r, act);
      scale_low_rank(call, j, t, rows * r);
      input = t;
      t = spt_at(t, rows * r, act);
    }
    void *y = member_at(call, args->y, column, m, row0, y_dtype);
    spt_cpu_gemm(thread, rows, m, inner, 1.0f, plain(input, inner, act), weight(call, call->layout.a[j]),
                 residual ? 1.0f : 0.0f, y, m, y_dtype);
    if (call->alpha[j] > 0)
      spt_cpu_gemm(thread, rows, m, n, 1.0f, plain(scaled(call, s, call->alpha[j], h, rows * n), n, act),
                   weight(call, call->layout.guide[j]), 1.0f, y, m, y_dtype);
  }
  if (desc->epilogue == SPT_EPILOGUE_ROPE) rotate(call, args->y, row0, rows, false);
}

spt_status spt_cpu_group_forward(spt_backend *backend, const spt_group_forward_args *args) {
  spt_cpu *cpu = spt_cpu_begin(backend);
  const spt_group_desc *desc = args->desc;
  group_call call = call_of(cpu, desc, args->tokens, args->alpha);
  call.seq_len = args->seq_len;
  call.weights = args->weights;
  (void)carve_call(cpu, &call, false, args->workspace);
  if (desc->epilogue == SPT_EPILOGUE_ROPE)
    SPT_TRY(spt_rope_prepare(cpu, desc->rope_theta, desc->head_dim, args->seq_len));
#pragma omp parallel num_threads(backend->threads)
  {
    spt_cpu_thread *thread = spt_cpu_enter(cpu);
    block_scratch scratch;
    (void)carve_block(&call, false, call.scratch + (size_t)omp_get_thread_num() * call.scratch_bytes, &scratch);
#pragma omp for schedule(static, 1)
    for (int64_t block = 0; block < call.blocks; block++) forward_block(&call, args, thread, block, &scratch);
  }
  return spt_cpu_end(cpu, spt_cost_group(desc, args->tokens, backend->act, args->alpha, false));
}

/* A block of the backward pass. */
typedef struct backward_operands {
  int64_t block, row0, rows;
  const void *h, *t; // act (rows, n); act t_0 (rows, r_0), t_1, t_2
  const void *dz;    // act: member j at dz_at
} backward_operands;

static const void *dz_at(const group_call *call, const backward_operands *b, const block_scratch *s, int64_t column,
                         int64_t m) {
  return s->dz ? b->dz : member_at(call, b->dz, column, m, b->row0, call->act);
}

/* h again (behind SwiGLU later, with the gradient through it); dz in act, unrotated. */
static backward_operands backward_inputs(const group_call *call, const spt_group_backward_args *args, int64_t block,
                                         const block_scratch *s) {
  const spt_group_desc *desc = call->desc;
  const spt_dtype act = call->act;
  const int64_t n = desc->in_dim, row0 = block * call->rows, rows = spt_min(call->rows, call->tokens - row0);
  backward_operands b = {.block = block, .row0 = row0, .rows = rows, .h = s->h, .dz = s->dz ? s->dz : args->dy};
  if (call->rank > 0) b.t = spt_at(args->t, row0 * call->rank, act);
  if (desc->prologue == SPT_PROLOGUE_RMSNORM)
    call->simd->rmsnorm_apply(rows, n, (const float *)args->x + row0 * n, args->gain, args->rstd + row0, s->h, act);
  else if (desc->prologue == SPT_PROLOGUE_NONE && args->dx == args->x)
    memcpy(s->h, spt_at(args->x, row0 * n, act), (size_t)(rows * n) * spt_dtype_size(act));
  else if (desc->prologue == SPT_PROLOGUE_NONE)
    b.h = spt_at(args->x, row0 * n, act);
  if (desc->epilogue == SPT_EPILOGUE_RESIDUAL)
    call->simd->convert(s->dz, act, (const float *)args->dy + row0 * call->out, SPT_F32, rows * call->out);
  else if (desc->epilogue == SPT_EPILOGUE_ROPE)
    rotate(call, args->dy, row0, rows, true);
  return b;
}

/* dt_0|dt_1|dt_2 by row, so that dh is one product. */
static void interleave(const group_call *call, const backward_operands *b, const block_scratch *s) {
  const size_t size = spt_dtype_size(call->act);
  const void *from = s->dt;
  for (int64_t j = 0, column = 0; j < call->desc->count; column += call->desc->factor_rank[j], j++) {
    const int64_t r = call->desc->factor_rank[j];
    for (int64_t i = 0; i < b->rows; i++)
      memcpy(spt_at(s->dt_rows, i * call->rank + column, call->act), spt_at(from, i * r, call->act), (size_t)r * size);
    from = spt_at(from, b->rows * r, call->act);
  }
}

/* dh = Σ dz_j·W_j, or dt_j = (1 − alpha_j)·dz_j·A_j and dh = dt·Bᵀ, then + Σ alpha_j·dz_j·W_j */
static void backward_products(const group_call *call, const backward_operands *b, spt_cpu_thread *thread,
                              const block_scratch *s, void *target) {
  const spt_group_desc *desc = call->desc;
  const spt_dtype act = call->act;
  const int64_t n = desc->in_dim, rows = b->rows;
  void *dt = s->dt;
  for (int64_t j = 0, column = 0; j < desc->count; column += desc->out_dim[j], j++) {
    const int64_t m = desc->out_dim[j], r = desc->factor_rank[j];
    const spt_operand dz = plain(dz_at(call, b, s, column, m), m, act);
    if (r == 0) {
      spt_cpu_gemm(thread, rows, n, m, 1.0f, dz, weight(call, call->layout.a_backward[j]), j > 0 ? 1.0f : 0.0f, target,
                   n, act);
      continue;
    }
    spt_cpu_gemm(thread, rows, r, m, 1.0f, dz, weight(call, call->layout.a_backward[j]), 0.0f, dt, r, act);
    scale_low_rank(call, j, dt, rows * r);
    dt = spt_at(dt, rows * r, act);
  }
  if (call->rank == 0) return;
  if (desc->count > 1) interleave(call, b, s);
  spt_cpu_gemm(thread, rows, n, call->rank, 1.0f, plain(desc->count > 1 ? s->dt_rows : s->dt, call->rank, act),
               weight(call, call->layout.b_backward), 0.0f, target, n, act);
  for (int64_t j = 0, column = 0; j < desc->count; column += desc->out_dim[j], j++) {
    const int64_t m = desc->out_dim[j];
    if (call->alpha[j] > 0)
      spt_cpu_gemm(thread, rows, n, m, 1.0f,
                   plain(scaled(call, s, call->alpha[j], dz_at(call, b, s, column, m), rows * m), m, act),
                   weight(call, call->layout.guide_backward[j]), 1.0f, target, n, act);
  }
}

/* gradient += leftᵀ·right over the block's rows, in the order of blocks. */
static void add_product(group_call *call, const backward_operands *b, spt_cpu_thread *thread, int term,
                        spt_operand left, spt_operand right, int64_t rows, int64_t cols) {
  float *sum = spt_ordered_sum_enter(&call->sum, term, b->block);
  const bool first = spt_ordered_sum_first(&call->sum, b->block);
  spt_cpu_gemm(thread, rows, cols, b->rows, 1.0f, left, right, first ? 0.0f : 1.0f, sum, cols, SPT_F32);
  spt_ordered_sum_leave(&call->sum, term, b->block);
}

static void weight_gradients(group_call *call, const backward_operands *b, spt_cpu_thread *thread,
                             const block_scratch *s) {
  const spt_group_desc *desc = call->desc;
  const spt_dtype act = call->act;
  const int64_t n = desc->in_dim;
  const void *t = b->t, *dt = s->dt;
  int term = 0;
  for (int64_t j = 0, column = 0; j < desc->count; column += desc->out_dim[j], j++) {
    const int64_t m = desc->out_dim[j], r = desc->factor_rank[j];
    const spt_operand dz = transposed(dz_at(call, b, s, column, m), m, act);
    if (r == 0) {
      add_product(call, b, thread, term++, dz, plain(b->h, n, act), m, n);
      continue;
    }
    add_product(call, b, thread, term++, dz, plain(t, r, act), m, r);
    add_product(call, b, thread, term++, transposed(b->h, n, act), plain(dt, r, act), n, r);
    if (call->alpha[j] > 0)
      add_product(call, b, thread, term++, dz, plain(scaled(call, s, call->alpha[j], b->h, b->rows * n), n, act), m, n);
    t = spt_at(t, b->rows * r, act);
    dt = spt_at(dt, b->rows * r, act);
  }
}

static void backward_block(group_call *call, const spt_group_backward_args *args, spt_cpu_thread *thread, int64_t block,
                           const block_scratch *s) {
  const spt_group_desc *desc = call->desc;
  const spt_dtype act = call->act;
  const int64_t n = desc->in_dim;
  const backward_operands b = backward_inputs(call, args, block, s);
  const bool direct = desc->prologue == SPT_PROLOGUE_NONE; // dh is dx
  backward_products(call, &b, thread, s, direct ? spt_at(args->dx, b.row0 * n, act) : s->dh);
  if (desc->prologue == SPT_PROLOGUE_RMSNORM)
    call->simd->rmsnorm_backward(b.rows, n, (const float *)args->x + b.row0 * n, args->gain, args->rstd + b.row0, s->dh,
                                 act, args->dx_residual + b.row0 * n, true, call->dgain + block * n);
  else if (desc->prologue == SPT_PROLOGUE_SWIGLU)
    call->simd->swiglu_backward(
        b.rows * n, spt_at(args->x, b.row0 * n, act), spt_at(args->x, (call->tokens + b.row0) * n, act), s->dh, s->h,
        spt_at(args->dx, b.row0 * n, act), spt_at(args->dx, (call->tokens + b.row0) * n, act), act);
  weight_gradients(call, &b, thread, s);
}

spt_status spt_cpu_group_backward(spt_backend *backend, const spt_group_backward_args *args) {
  spt_cpu *cpu = spt_cpu_begin(backend);
  const spt_group_desc *desc = args->desc;
  group_call call = call_of(cpu, desc, args->tokens, args->alpha);
  call.seq_len = args->seq_len;
  call.weights = args->weights;
  add_gradients(&call, &args->gradients);
  (void)carve_call(cpu, &call, true, args->workspace);
  if (desc->epilogue == SPT_EPILOGUE_ROPE)
    SPT_TRY(spt_rope_prepare(cpu, desc->rope_theta, desc->head_dim, args->seq_len));
#pragma omp parallel num_threads(backend->threads)
  {
    spt_cpu_thread *thread = spt_cpu_enter(cpu);
    block_scratch scratch;
    (void)carve_block(&call, true, call.scratch + (size_t)omp_get_thread_num() * call.scratch_bytes, &scratch);
#pragma omp for schedule(static, 1)
    for (int64_t block = 0; block < call.blocks; block++) backward_block(&call, args, thread, block, &scratch);
    spt_ordered_sum_finish(&call.sum, cpu->simd);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < (call.dgain ? desc->in_dim : 0); i++)
      for (int64_t block = 0; block < call.blocks; block++) args->dgain[i] += call.dgain[block * desc->in_dim + i];
  }
  return spt_cpu_end(cpu, spt_cost_group(desc, args->tokens, backend->act, args->alpha, true));
}
