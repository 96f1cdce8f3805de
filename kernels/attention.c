/* Causal attention: which thread does which head, and with what scratch. The arithmetic is attention_tiles.c's or,
 * where whole products reach a faster unit, attention_products.c's. */
#include "backend_cpu.h"

#include <omp.h>

void spt_attention_scratch_words(int64_t seq_len, int64_t head_dim, spt_dtype act, bool train,
                                 int64_t words[SPT_ATTENTION_SCRATCH_ARRAYS]) {
  const int64_t padded = spt_attention_padded(head_dim), queries = SPT_TILE_QUERIES, keys = SPT_TILE_KEYS;
  const int64_t wide = act == SPT_BF16 ? seq_len * head_dim : 0, only = train ? 1 : 0;
  const int64_t list[SPT_ATTENTION_SCRATCH_ARRAYS] = {queries * head_dim, // q
                                                      only * queries * head_dim,
                                                      only * queries * padded, // q_rows
                                                      only * queries * padded,
                                                      keys * padded, // pairs
                                                      wide,
                                                      wide,
                                                      keys * 32, // scores
                                                      only * keys * 32,
                                                      keys * 32, // probs
                                                      only * keys * 32,
                                                      only * keys * queries, // p_rows
                                                      only * keys * queries,
                                                      queries * head_dim + 32, // out
                                                      2 * queries,
                                                      2 * only * seq_len * padded}; // dk, dv
  for (int i = 0; i < SPT_ATTENTION_SCRATCH_ARRAYS; i++) words[i] = list[i];
}

static size_t scratch_bytes(int64_t seq_len, int64_t head_dim, spt_dtype act, bool train) {
  int64_t words[SPT_ATTENTION_SCRATCH_ARRAYS];
  spt_carve carve = {NULL, 0};
  spt_attention_scratch_words(seq_len, head_dim, act, train, words);
  for (int i = 0; i < SPT_ATTENTION_SCRATCH_ARRAYS; i++) (void)spt_carve_take(&carve, words[i], sizeof(uint32_t));
  return carve.used;
}

size_t spt_cpu_attention_workspace(const spt_cpu *cpu, int64_t seq_len, int64_t head_dim, bool train) {
  if (cpu->attention_by_products) return spt_cpu_attention_products_workspace(cpu, seq_len, head_dim, train);
  return scratch_bytes(seq_len, head_dim, cpu->base.act, train) * (size_t)cpu->base.threads;
}

static spt_attention_scratch scratch_of(const spt_attention_args *args, spt_dtype act, bool train, int thread) {
  int64_t words[SPT_ATTENTION_SCRATCH_ARRAYS];
  const size_t bytes = scratch_bytes(args->seq_len, args->head_dim, act, train);
  spt_carve carve = {(unsigned char *)args->workspace + (size_t)thread * bytes, 0};
  void *at[SPT_ATTENTION_SCRATCH_ARRAYS];
  spt_attention_scratch_words(args->seq_len, args->head_dim, act, train, words);
  for (int i = 0; i < SPT_ATTENTION_SCRATCH_ARRAYS; i++) at[i] = spt_carve_take(&carve, words[i], sizeof(uint32_t));
  spt_attention_scratch s = {at[0], at[1],  at[2],  at[3],  at[4],  at[5],  at[6],  at[7], at[8],
                             at[9], at[10], at[11], at[12], at[13], at[14], at[15], NULL};
  s.dv = s.dk + args->seq_len * spt_attention_padded(args->head_dim);
  return s;
}

/* Row `row`, head `head` of q (0), k (1) or v (2), which lie one after another. */
static void *head_at(const spt_attention_args *args, const void *qkv, int matrix, int64_t row, int64_t head,
                     spt_dtype act) {
  const int64_t tokens = args->sequences * args->seq_len, d = args->head_dim;
  const int64_t before = matrix == 0 ? 0 : args->heads + (matrix - 1) * args->kv_heads;
  return spt_at(qkv, (tokens * before + row * (matrix == 0 ? args->heads : args->kv_heads) + head) * d, act);
}

static spt_attention_tile tile_of(const spt_attention_args *args, spt_dtype act, int64_t sequence, int64_t head) {
  const int64_t d = args->head_dim, row0 = sequence * args->seq_len, width = args->heads * d;
  const int64_t kv = head * args->kv_heads / args->heads;
  return (spt_attention_tile){
      .seq_len = args->seq_len,
      .head_dim = d,
      .width = width,
      .kv_width = args->kv_heads * d,
      .query_end = args->seq_len,
      .scale = (float)(1.0 / sqrt((double)d)),
      .act = act,
      .q = head_at(args, args->qkv, 0, row0, head, act),
      .k = head_at(args, args->qkv, 1, row0, kv, act),
      .v = head_at(args, args->qkv, 2, row0, kv, act),
      .d_o = args->d_o ? spt_at(args->d_o, row0 * width + head * d, act) : NULL,
      .o = spt_at(args->o, row0 * width + head * d, act),
      .lse = args->lse + (sequence * args->heads + head) * args->seq_len,
      .dq = args->dqkv ? head_at(args, args->dqkv, 0, row0, head, act) : NULL,
  };
}

/* A task is some query blocks of a head: whole heads where there are enough of them, so that the threads' shares are
 * even. */
spt_status spt_cpu_attention_forward(spt_backend *backend, const spt_attention_args *args) {
  spt_cpu *cpu = spt_cpu_begin(backend);
  if (cpu->attention_by_products) return spt_cpu_attention_products_forward(backend, args);
  const int64_t heads = args->sequences * args->heads, blocks = spt_blocks(args->seq_len, SPT_TILE_QUERIES);
  const int64_t parts = spt_max(1, spt_min(blocks, spt_blocks(8 * backend->threads, heads)));
#pragma omp parallel num_threads(backend->threads)
  {
    spt_cpu_thread *thread = spt_cpu_enter(cpu);
    const spt_attention_scratch scratch = scratch_of(args, backend->act, false, omp_get_thread_num());
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < heads * parts; task++) { // the parts with most keys first
      const int64_t head = task % heads, part = parts - 1 - task / heads;
      spt_attention_tile tile = tile_of(args, backend->act, head / args->heads, head % args->heads);
      tile.scratch = scratch;
      tile.query_begin = blocks * part / parts * SPT_TILE_QUERIES;
      tile.query_end = spt_min(args->seq_len, blocks * (part + 1) / parts * SPT_TILE_QUERIES);
      cpu->simd->attention_tile_forward(&tile);
      spt_cpu_count_flops(thread, tile.flops);
    }
  }
  return spt_cpu_end(cpu, spt_cost_attention(args, backend->act, false));
}

/* dk and dv of one key-value head, summed over all the query heads that use it. */
static void backward_task(spt_cpu *cpu, spt_cpu_thread *thread, const spt_attention_args *args, int64_t task,
                          const spt_attention_scratch *scratch) {
  const spt_dtype act = cpu->base.act;
  const int64_t d = args->head_dim, padded = spt_attention_padded(d), group = args->heads / args->kv_heads;
  const int64_t sequence = task / args->kv_heads, kv = task % args->kv_heads;
  memset(scratch->dk, 0, (size_t)(2 * args->seq_len * padded) * sizeof(float));
  for (int64_t head = kv * group; head < (kv + 1) * group; head++) {
    spt_attention_tile tile = tile_of(args, act, sequence, head);
    tile.scratch = *scratch;
    cpu->simd->attention_tile_backward(&tile);
    spt_cpu_count_flops(thread, tile.flops);
  }
  const int64_t row = sequence * args->seq_len, width = args->kv_heads * d;
  void *dk = head_at(args, args->dqkv, 1, row, kv, act), *dv = head_at(args, args->dqkv, 2, row, kv, act);
  for (int64_t c = 0; c < d; c += SPT_TILE_PANEL) {
    const int64_t columns = spt_min(SPT_TILE_PANEL, d - c), panel = c * args->seq_len;
    cpu->simd->store_rows(args->seq_len, columns, (float)(1.0 / sqrt((double)d)), scratch->dk + panel, SPT_TILE_PANEL,
                          spt_at(dk, c, act), width, act);
    cpu->simd->store_rows(args->seq_len, columns, 1.0f, scratch->dv + panel, SPT_TILE_PANEL, spt_at(dv, c, act), width,
                          act);
  }
}

/* A task is a sequence's key-value head, so that dk and dv are summed in one order. */
spt_status spt_cpu_attention_backward(spt_backend *backend, const spt_attention_args *args) {
  spt_cpu *cpu = spt_cpu_begin(backend);
  if (cpu->attention_by_products) return spt_cpu_attention_products_backward(backend, args);
#pragma omp parallel num_threads(backend->threads)
  {
    spt_cpu_thread *thread = spt_cpu_enter(cpu);
    const spt_attention_scratch scratch = scratch_of(args, backend->act, true, omp_get_thread_num());
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < args->sequences * args->kv_heads; task++)
      backward_task(cpu, thread, args, task, &scratch);
  }
  return spt_cpu_end(cpu, spt_cost_attention(args, backend->act, true));
}
