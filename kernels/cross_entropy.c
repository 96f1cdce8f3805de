/* Head and cross-entropy. Rows go in blocks; for a block the vocabulary goes in tiles that stay in a core's cache:
 *   scores: logits of a tile in fp32, kept as e = exp(logit − the tile's maximum) in act, with the tile's maximum and
 * sum by row losses: lse of each row from the tiles' maxima and sums, in tile order gradients: a tile's e becomes
 * dlogits = e·exp(maximum − lse) − [target]; dW_tile += dlogitsᵀ·h and dh += dlogits·W_tile dh is summed over a fixed
 * number of groups of tiles, then over the groups, whatever the number of threads. */
#include "backend_cpu.h"

#include <assert.h>
#include <omp.h>

enum { TILE = 512, PIECE_ROWS = 256, GROUPS = 8, PIECE = 32, ROWS_MAX = 1024, BLOCK_BYTES = 32 << 20 };

typedef struct head_call {
  const spt_head_loss_args *args;
  const void *weights;
  const spt_simd_kernels *simd;
  spt_dtype act, weight_dtype;
  int64_t rows, row0, count; // block size; first row and number of rows of the running block
  int64_t tiles, groups;
  size_t tile_bytes,
      forward_bytes[2]; // packed weights of a tile; of these for the logits, in a whole and in the last tile
  void *h;              // act (rows, hidden)
  float *rstd;          // (rows)
  void *e;              // act, by tiles: (rows, TILE) each; NULL without train
  float *maximum;       // (tiles, rows), later the factor exp(maximum − lse)
  float *sum;           // (tiles, rows)
  float *target;        // (rows) logit of the target
  float *dh;            // (groups, rows, hidden)
  float *dgain;         // (pieces of a block, hidden)
  float *logits;        // (threads, PIECE_ROWS, TILE)
} head_call;

static head_call call_of(const spt_cpu *cpu, int64_t tokens, int64_t vocab) {
  head_call call = {.simd = cpu->simd,
                    .act = cpu->base.act,
                    .weight_dtype = spt_cpu_weight_dtype(cpu),
                    .tiles = spt_blocks(vocab, TILE)};
  const int64_t fit = BLOCK_BYTES / (vocab * (int64_t)spt_dtype_size(call.act)) / 64 * 64;
  call.rows = spt_min(spt_max(64, spt_min(ROWS_MAX, fit)), spt_max(1, tokens));
  call.groups = spt_min(GROUPS, call.tiles);
  return call;
}

static size_t carve(const spt_cpu *cpu, head_call *call, int64_t hidden, bool train, void *workspace) {
  spt_carve carve = {workspace, 0};
  call->h = spt_carve_take(&carve, call->rows * hidden, spt_dtype_size(call->act));
  call->rstd = spt_carve_take(&carve, call->rows, sizeof(float));
  call->maximum = spt_carve_take(&carve, call->tiles * call->rows, sizeof(float));
  call->sum = spt_carve_take(&carve, call->tiles * call->rows, sizeof(float));
  call->target = spt_carve_take(&carve, call->rows, sizeof(float));
  call->logits = spt_carve_take(&carve, cpu->base.threads * spt_min(PIECE_ROWS, call->rows) * TILE, sizeof(float));
  if (train) {
    call->e = spt_carve_take(&carve, call->tiles * call->rows * TILE, spt_dtype_size(call->act));
    call->dh = spt_carve_take(&carve, call->groups * call->rows * hidden, sizeof(float));
    call->dgain = spt_carve_take(&carve, spt_blocks(call->rows, PIECE) * hidden, sizeof(float));
  }
  return carve.used;
}

size_t spt_cpu_head_workspace(const spt_cpu *cpu, int64_t tokens, int64_t hidden, int64_t vocab, bool train) {
  head_call call = call_of(cpu, tokens, vocab);
  return carve(cpu, &call, hidden, train, NULL);
}

/* The head's matrix by tiles, each packed for both of its products. */
static size_t tile_bytes(const spt_cpu *cpu, int64_t vocab, int64_t hidden) {
  const int64_t width = spt_min(TILE, vocab);
  return spt_cpu_packed_bytes(cpu, width, hidden) + spt_cpu_packed_bytes(cpu, hidden, width);
}

size_t spt_cpu_head_packed_bytes(spt_backend *backend, int64_t vocab, int64_t hidden) {
  const spt_cpu *cpu = (const spt_cpu *)backend;
  const int64_t last = vocab % TILE ? vocab % TILE : spt_min(TILE, vocab);
  return (size_t)(spt_blocks(vocab, TILE) - 1) * tile_bytes(cpu, vocab, hidden) + tile_bytes(cpu, last, hidden);
}

spt_status spt_cpu_head_pack(spt_backend *backend, int64_t vocab, int64_t hidden, const void *w, spt_dtype dtype, void *weights) {
  assert(dtype == SPT_F32);
  (void)dtype;
  spt_cpu *cpu = spt_cpu_begin(backend);
  const size_t each = tile_bytes(cpu, vocab, hidden);
  const size_t whole = spt_cpu_packed_bytes(cpu, spt_min(TILE, vocab), hidden),
               rest = spt_cpu_packed_bytes(cpu, vocab % TILE ? vocab % TILE : TILE, hidden);
#pragma omp parallel num_threads(backend->threads)
  {
    spt_cpu_thread *thread = spt_cpu_enter(cpu);
#pragma omp for schedule(static, 1)
    for (int64_t column = 0; column < vocab; column += TILE) {
      const int64_t width = spt_min(TILE, vocab - column);
      unsigned char *to = (unsigned char *)weights + (size_t)(column / TILE) * each;
      spt_cpu_pack_both(cpu, thread, width, hidden, (const float *)w + column * hidden, to, to + (width == TILE ? whole : rest));
    }
  }
  const spt_group_desc desc = {.count = 1, .in_dim = hidden, .out_dim = {vocab}};
  return spt_cpu_end(cpu, spt_cost_group_pack(&desc, SPT_F32, spt_cpu_weight_dtype(cpu)));
}

static spt_operand tile_weights(const head_call *call, int64_t tile, bool backward) {
  const bool last = tile == call->tiles - 1;
  const unsigned char *at = (const unsigned char *)call->weights + (size_t)tile * call->tile_bytes;
  return (spt_operand){at + (backward ? call->forward_bytes[last] : 0), 0, call->weight_dtype, false};
}

/* A few rows at a time, so that their logits stay in the cache. */
static void score_tile(const head_call *call, spt_cpu_thread *thread, int64_t tile, float *logits) {
  const spt_head_loss_args *args = call->args;
  const int64_t column = tile * TILE, width = spt_min(TILE, args->vocab - column), n = args->hidden;
  void *e = call->e ? spt_at(call->e, tile * call->rows * TILE, call->act) : NULL;
  for (int64_t row0 = 0; row0 < call->count; row0 += PIECE_ROWS) {
    const int64_t rows = spt_min(PIECE_ROWS, call->count - row0);
    spt_cpu_gemm(thread, rows, width, n, 1.0f, (spt_operand){spt_at(call->h, row0 * n, call->act), n, call->act, false},
                 tile_weights(call, tile, false), 0.0f, logits, width, SPT_F32);
    for (int64_t i = row0; i < row0 + rows; i++) {
      const float *row = logits + (i - row0) * width;
      const int64_t target = args->targets[call->row0 + i] - column;
      if (target >= 0 && target < width) call->target[i] = row[target];
      call->simd->softmax_row(width, row, e ? spt_at(e, i * width, call->act) : NULL, call->act,
                              &call->maximum[tile * call->rows + i], &call->sum[tile * call->rows + i]);
    }
  }
}

/* lse and loss of one row; turns the tiles' maxima into factors. */
static void finish_row(const head_call *call, int64_t i) {
  double sum = 0.0;
  float maximum = -INFINITY;
  for (int64_t tile = 0; tile < call->tiles; tile++) maximum = fmaxf(maximum, call->maximum[tile * call->rows + i]);
  for (int64_t tile = 0; tile < call->tiles; tile++)
    sum +=
        (double)call->sum[tile * call->rows + i] * exp((double)call->maximum[tile * call->rows + i] - (double)maximum);
  const double lse = (double)maximum + log(sum);
  call->args->losses[call->row0 + i] = (float)(lse - (double)call->target[i]);
  for (int64_t tile = 0; tile < call->tiles; tile++) {
    float *factor = &call->maximum[tile * call->rows + i];
    *factor = (float)((double)call->args->loss_scale * exp((double)*factor - lse));
  }
}

/* e becomes dlogits = p − [target], by a few rows at a time, each then used in both products. */
static void gradient_rows(const head_call *call, spt_cpu_thread *thread, int64_t tile, int64_t row0, int64_t rows,
                          float *dh, bool first) {
  const spt_head_loss_args *args = call->args;
  const int64_t column = tile * TILE, width = spt_min(TILE, args->vocab - column), n = args->hidden;
  void *e = spt_at(call->e, tile * call->rows * TILE + row0 * width, call->act);
  for (int64_t i = row0; i < row0 + rows; i++) {
    const int64_t target = args->targets[call->row0 + i] - column;
    void *row = spt_at(e, (i - row0) * width, call->act);
    call->simd->scale_row(width, call->maximum[call->rows * tile + i], row, call->act);
    if (target >= 0 && target < width)
      spt_store(row, target, args->loss_scale * expm1f(-args->losses[call->row0 + i]),
                call->act == SPT_BF16); // p − 1, without cancellation
  }
  const spt_operand d_logits = {e, width, call->act, false};
  spt_operand d_logits_t = d_logits;
  d_logits_t.transposed = true;
  spt_cpu_gemm(thread, width, n, rows, 1.0f, d_logits_t,
               (spt_operand){spt_at(call->h, row0 * n, call->act), n, call->act, false}, 1.0f, args->dw + column * n, n,
               SPT_F32);
  spt_cpu_gemm(thread, rows, n, width, 1.0f, d_logits, tile_weights(call, tile, true), first ? 0.0f : 1.0f,
               dh + row0 * n, n, SPT_F32);
}

static void gradient_tile(const head_call *call, spt_cpu_thread *thread, int64_t tile, float *dh, bool first) {
  for (int64_t row0 = 0; row0 < call->count; row0 += PIECE_ROWS)
    gradient_rows(call, thread, tile, row0, spt_min(PIECE_ROWS, call->count - row0), dh, first);
}

/* Sums the groups' dh of a piece of rows in order and goes back through the norm. */
static void finish_piece(const head_call *call, int64_t piece) {
  const spt_head_loss_args *args = call->args;
  const int64_t n = args->hidden, i0 = piece * PIECE, rows = spt_min(PIECE, call->count - i0);
  for (int64_t group = 1; group < call->groups; group++)
    call->simd->add_row(rows * n, call->dh + (group * call->rows + i0) * n, call->dh + i0 * n);
  call->simd->rmsnorm_backward(rows, n, args->x + (call->row0 + i0) * n, args->gain, call->rstd + i0, call->dh + i0 * n,
                               SPT_F32, args->dx + (call->row0 + i0) * n, false, call->dgain + piece * n);
}

static void run_block(const head_call *call, spt_cpu_thread *thread) {
  const spt_head_loss_args *args = call->args;
  const int64_t n = args->hidden, pieces = spt_blocks(call->count, PIECE);
  float *logits = call->logits + omp_get_thread_num() * spt_min(PIECE_ROWS, call->rows) * TILE;
#pragma omp for schedule(static)
  for (int64_t piece = 0; piece < pieces; piece++) {
    const int64_t i0 = piece * PIECE, rows = spt_min(PIECE, call->count - i0);
    call->simd->rmsnorm_forward(rows, n, args->norm_eps, args->x + (call->row0 + i0) * n, args->gain, call->rstd + i0,
                                spt_at(call->h, i0 * n, call->act), call->act);
  }
#pragma omp for schedule(static, 1)
  for (int64_t tile = 0; tile < call->tiles; tile++) score_tile(call, thread, tile, logits);
#pragma omp for schedule(static)
  for (int64_t i = 0; i < call->count; i++) finish_row(call, i);
  if (!args->train) return;
#pragma omp for schedule(static, 1)
  for (int64_t group = 0; group < call->groups; group++) {
    const int64_t begin = group * call->tiles / call->groups, end = (group + 1) * call->tiles / call->groups;
    for (int64_t tile = begin; tile < end; tile++)
      gradient_tile(call, thread, tile, call->dh + group * call->rows * n, tile == begin);
  }
#pragma omp for schedule(static)
  for (int64_t piece = 0; piece < pieces; piece++) finish_piece(call, piece);
#pragma omp for schedule(static)
  for (int64_t i = 0; i < n; i++)
    for (int64_t piece = 0; piece < pieces; piece++) args->dgain[i] += call->dgain[piece * n + i];
}

spt_status spt_cpu_head_loss(spt_backend *backend, const spt_head_loss_args *args) {
  spt_cpu *cpu = spt_cpu_begin(backend);
  head_call call = call_of(cpu, args->tokens, args->vocab);
  call.args = args;
  call.weights = args->weights;
  call.tile_bytes = tile_bytes(cpu, args->vocab, args->hidden);
  call.forward_bytes[0] = spt_cpu_packed_bytes(cpu, spt_min(TILE, args->vocab), args->hidden);
  call.forward_bytes[1] = spt_cpu_packed_bytes(cpu, args->vocab - (call.tiles - 1) * TILE, args->hidden);
  (void)carve(cpu, &call, args->hidden, args->train, args->workspace);
#pragma omp parallel num_threads(backend->threads)
  {
    spt_cpu_thread *thread = spt_cpu_enter(cpu);
    head_call own = call;
    for (own.row0 = 0; own.row0 < args->tokens; own.row0 += call.rows) {
      own.count = spt_min(call.rows, args->tokens - own.row0);
      run_block(&own, thread);
    }
  }
  return spt_cpu_end(cpu, spt_cost_head(args->tokens, args->hidden, args->vocab, backend->act, args->train));
}
