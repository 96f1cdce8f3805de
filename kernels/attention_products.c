/* Causal attention by query blocks and key chunks (online softmax: Milakov & Gimelshein 2018; Dao et al.,
 * arXiv:2205.14135), its products whole calls of the matrix library: for processors whose library reaches AMX. */
#include "backend_cpu.h"

#include <omp.h>

enum {
  QUERIES = 128,
  KEYS = 512
}; // KEYS is a multiple of QUERIES, so that only a block's last chunk meets the diagonal

/* A thread's scratch. */
typedef struct attention_scratch {
  float *scores, *d_probs; // (QUERIES, KEYS)
  void *probs, *d_scores;  // act (QUERIES, KEYS)
  float *out;              // (QUERIES, head_dim): o in forward, dq in backward
  float *row;              // maximum, sum, correction or delta of QUERIES rows each
  float *dk, *dv;          // (seq_len, head_dim)
} attention_scratch;

static attention_scratch carve(spt_carve *carve, int64_t seq_len, int64_t head_dim, spt_dtype act, bool train) {
  attention_scratch s = {0};
  const size_t size = spt_dtype_size(act);
  s.scores = spt_carve_take(carve, QUERIES * KEYS, sizeof(float));
  s.probs = spt_carve_take(carve, QUERIES * KEYS, size);
  s.out = spt_carve_take(carve, QUERIES * head_dim, sizeof(float));
  s.row = spt_carve_take(carve, 3 * QUERIES, sizeof(float));
  if (train) {
    s.d_probs = spt_carve_take(carve, QUERIES * KEYS, sizeof(float));
    s.d_scores = spt_carve_take(carve, QUERIES * KEYS, size);
    s.dk = spt_carve_take(carve, seq_len * head_dim, sizeof(float));
    s.dv = spt_carve_take(carve, seq_len * head_dim, sizeof(float));
  }
  return s;
}

static attention_scratch scratch_of(void *workspace, int thread, const spt_attention_args *args, spt_dtype act,
                                    bool train) {
  spt_carve counted = {NULL, 0};
  (void)carve(&counted, args->seq_len, args->head_dim, act, train);
  spt_carve own = {(unsigned char *)workspace + (size_t)thread * counted.used, 0};
  return carve(&own, args->seq_len, args->head_dim, act, train);
}

size_t spt_cpu_attention_products_workspace(const spt_cpu *cpu, int64_t seq_len, int64_t head_dim, bool train) {
  spt_carve counted = {NULL, 0};
  (void)carve(&counted, seq_len, head_dim, cpu->base.act, train);
  return counted.used * (size_t)cpu->base.threads;
}

/* One row of a chunk: folds `valid` scores into the running maximum and sum, writes probabilities relative to the new
 * maximum (zero beyond the diagonal) and returns the factor for what was accumulated before. */
SPT_INLINE float softmax_row(int64_t valid, int64_t keys, float scale, const float *scores, float *maximum_p,
                             float *sum_p, void *probs, bool bf16) {
  float maximum = *maximum_p, sum = 0.0f;
#pragma omp simd reduction(max : maximum)
  for (int64_t j = 0; j < valid; j++) maximum = scores[j] * scale > maximum ? scores[j] * scale : maximum;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < valid; j++) {
    const float p = spt_exp(scores[j] * scale - maximum);
    sum += p;
    spt_store(probs, j, p, bf16);
  }
  for (int64_t j = valid; j < keys; j++) spt_store(probs, j, 0.0f, bf16);
  const float correction = spt_exp(*maximum_p - maximum);
  *maximum_p = maximum;
  *sum_p = *sum_p * correction + sum;
  return correction;
}

SPT_CLONES static void softmax_chunk(int64_t rows, int64_t keys, int64_t diagonal, float scale,
                                     const attention_scratch *s, spt_dtype dtype) {
  float *maximum = s->row, *sum = s->row + QUERIES, *correction = s->row + 2 * QUERIES;
  for (int64_t i = 0; i < rows; i++) {
    const int64_t valid = spt_max(0, spt_min(keys, diagonal + i + 1));
    void *probs = spt_at(s->probs, i * keys, dtype);
    correction[i] = dtype == SPT_BF16
                        ? softmax_row(valid, keys, scale, s->scores + i * keys, &maximum[i], &sum[i], probs, true)
                        : softmax_row(valid, keys, scale, s->scores + i * keys, &maximum[i], &sum[i], probs, false);
  }
}

SPT_INLINE void finish_row(int64_t n, float scale, const float *src, void *dst, bool bf16) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) spt_store(dst, i, src[i] * scale, bf16);
}
SPT_CLONES static void store_scaled(int64_t n, float scale, const float *src, void *dst, spt_dtype dtype) {
  SPT_BY_DTYPE(dtype, finish_row, n, scale, src, dst);
}
SPT_CLONES static void scale_row(int64_t n, float scale, float *row) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) row[i] *= scale;
}

/* Where one head's vectors lie: first row of the sequence, leading dimension the matrix's width. */
typedef struct head_view {
  spt_operand q, k, v;
  int64_t row0, o_column, width, q_at, k_at, v_at; // the last three: its first row in qkv, in elements
} head_view;

static head_view view_of(const spt_attention_args *args, int64_t sequence, int64_t head, spt_dtype act) {
  const int64_t d = args->head_dim, kv = head * args->kv_heads / args->heads, row0 = sequence * args->seq_len,
                tokens = args->sequences * args->seq_len, kv_width = args->kv_heads * d;
  head_view v = {.row0 = row0, .width = args->heads * d, .o_column = head * d};
  v.q_at = row0 * v.width + head * d;
  v.k_at = tokens * v.width + row0 * kv_width + kv * d;
  v.v_at = v.k_at + tokens * kv_width;
  v.q = (spt_operand){spt_at(args->qkv, v.q_at, act), v.width, act, false};
  v.k = (spt_operand){spt_at(args->qkv, v.k_at, act), kv_width, act, false};
  v.v = (spt_operand){spt_at(args->qkv, v.v_at, act), kv_width, act, false};
  return v;
}
static spt_operand from_row(spt_operand operand, int64_t row, bool transposed) {
  operand.data = spt_at(operand.data, row * operand.ld, operand.dtype);
  operand.transposed = transposed;
  return operand;
}

static void forward_block(const spt_attention_args *args, spt_cpu_thread *thread, const attention_scratch *s,
                          const head_view *view, int64_t query0, float *lse, spt_dtype act) {
  const int64_t d = args->head_dim, rows = spt_min(QUERIES, args->seq_len - query0), end = query0 + rows;
  const float scale = (float)(1.0 / sqrt((double)d));
  float *maximum = s->row, *sum = s->row + QUERIES, *correction = s->row + 2 * QUERIES;
  for (int64_t i = 0; i < rows; i++) maximum[i] = -INFINITY, sum[i] = 0.0f;
  for (int64_t key0 = 0; key0 < end; key0 += KEYS) {
    const int64_t keys = spt_min(KEYS, end - key0);
    spt_cpu_gemm(thread, rows, keys, d, 1.0f, from_row(view->q, query0, false), from_row(view->k, key0, true), 0.0f,
                 s->scores, keys, SPT_F32);
    softmax_chunk(rows, keys, query0 - key0, scale, s, act);
    if (key0 > 0)
      for (int64_t i = 0; i < rows; i++) scale_row(d, correction[i], s->out + i * d);
    spt_cpu_gemm(thread, rows, d, keys, 1.0f, (spt_operand){s->probs, keys, act, false}, from_row(view->v, key0, false),
                 key0 > 0 ? 1.0f : 0.0f, s->out, d, SPT_F32);
  }
  for (int64_t i = 0; i < rows; i++) {
    store_scaled(d, 1.0f / sum[i], s->out + i * d,
                 spt_at(args->o, (view->row0 + query0 + i) * view->width + view->o_column, act), act);
    lse[query0 + i] = maximum[i] + logf(sum[i]);
  }
}

/* A task is a head of a sequence. */
spt_status spt_cpu_attention_products_forward(spt_backend *backend, const spt_attention_args *args) {
  spt_cpu *cpu = spt_cpu_begin(backend);
  const spt_dtype act = backend->act;
  const int64_t heads = args->sequences * args->heads, blocks = spt_blocks(args->seq_len, QUERIES);
#pragma omp parallel num_threads(backend->threads)
  {
    spt_cpu_thread *thread = spt_cpu_enter(cpu);
    const attention_scratch scratch = scratch_of(args->workspace, omp_get_thread_num(), args, act, false);
#pragma omp for schedule(static, 1)
    for (int64_t head = 0; head < heads; head++) {
      const head_view view = view_of(args, head / args->heads, head % args->heads, act);
      for (int64_t block = 0; block < blocks; block++)
        forward_block(args, thread, &scratch, &view, block * QUERIES, args->lse + head * args->seq_len, act);
    }
  }
  return spt_cpu_end(cpu, spt_cost_attention(args, act, false));
}

SPT_INLINE float dot_row(int64_t n, const void *x, const void *y, bool bf16) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += spt_load(x, i, bf16) * spt_load(y, i, bf16);
  return sum;
}
SPT_CLONES static float dot_act(int64_t n, const void *x, const void *y, spt_dtype dtype) {
  return dtype == SPT_BF16 ? dot_row(n, x, y, true) : dot_row(n, x, y, false);
}

/* p = exp(scale·s − lse), ds = scale·p·(dp − delta) */
SPT_INLINE void probability_row(int64_t valid, int64_t keys, float scale, float lse, float delta, const float *scores,
                                const float *d_probs, void *probs, void *d_scores, bool bf16) {
#pragma omp simd
  for (int64_t j = 0; j < valid; j++) {
    const float p = spt_exp(scores[j] * scale - lse);
    spt_store(probs, j, p, bf16);
    spt_store(d_scores, j, scale * p * (d_probs[j] - delta), bf16);
  }
  for (int64_t j = valid; j < keys; j++) {
    spt_store(probs, j, 0.0f, bf16);
    spt_store(d_scores, j, 0.0f, bf16);
  }
}

SPT_CLONES static void probability_chunk(int64_t rows, int64_t keys, int64_t diagonal, float scale, const float *lse,
                                         const attention_scratch *s, spt_dtype dtype) {
  for (int64_t i = 0; i < rows; i++) {
    const int64_t valid = spt_max(0, spt_min(keys, diagonal + i + 1)), at = i * keys;
    SPT_BY_DTYPE(dtype, probability_row, valid, keys, scale, lse[i], s->row[i], s->scores + at, s->d_probs + at,
                 spt_at(s->probs, at, dtype), spt_at(s->d_scores, at, dtype));
  }
}

static void backward_block(const spt_cpu *cpu, const spt_attention_args *args, spt_cpu_thread *thread,
                           const attention_scratch *s, const head_view *view, int64_t query0, const float *lse,
                           spt_dtype act) {
  const int64_t d = args->head_dim, rows = spt_min(QUERIES, args->seq_len - query0), end = query0 + rows;
  const float scale = (float)(1.0 / sqrt((double)d));
  const int64_t o_at = (view->row0 + query0) * view->width + view->o_column;
  const spt_operand d_o = {spt_at(args->d_o, o_at, act), view->width, act, false};
  const spt_operand probs_t = {s->probs, 0, act, true}, d_scores = {s->d_scores, 0, act, false};
  for (int64_t i = 0; i < rows; i++) // delta = Σ o·do
    s->row[i] =
        dot_act(d, spt_at(args->o, o_at + i * view->width, act), spt_at(args->d_o, o_at + i * view->width, act), act);
  for (int64_t key0 = 0; key0 < end; key0 += KEYS) {
    const int64_t keys = spt_min(KEYS, end - key0);
    spt_operand p = probs_t, ds = d_scores, ds_t = d_scores;
    p.ld = ds.ld = ds_t.ld = keys;
    ds_t.transposed = true;
    spt_cpu_gemm(thread, rows, keys, d, 1.0f, from_row(view->q, query0, false), from_row(view->k, key0, true), 0.0f,
                 s->scores, keys, SPT_F32);
    spt_cpu_gemm(thread, rows, keys, d, 1.0f, d_o, from_row(view->v, key0, true), 0.0f, s->d_probs, keys, SPT_F32);
    probability_chunk(rows, keys, query0 - key0, scale, lse + query0, s, act);
    spt_cpu_gemm(thread, keys, d, rows, 1.0f, p, d_o, 1.0f, s->dv + key0 * d, d, SPT_F32);
    spt_cpu_gemm(thread, keys, d, rows, 1.0f, ds_t, from_row(view->q, query0, false), 1.0f, s->dk + key0 * d, d,
                 SPT_F32);
    spt_cpu_gemm(thread, rows, d, keys, 1.0f, ds, from_row(view->k, key0, false), key0 > 0 ? 1.0f : 0.0f, s->out, d,
                 SPT_F32);
  }
  for (int64_t i = 0; i < rows; i++)
    cpu->simd->convert(spt_at(args->dqkv, view->q_at + (query0 + i) * view->width, act), act, s->out + i * d, SPT_F32,
                       d);
}

/* A task owns a sequence's key-value head and all the query heads that use it, so that dk and dv are summed in one
 * order. */
spt_status spt_cpu_attention_products_backward(spt_backend *backend, const spt_attention_args *args) {
  spt_cpu *cpu = spt_cpu_begin(backend);
  const spt_dtype act = backend->act;
  const int64_t seq_len = args->seq_len, d = args->head_dim, group = args->heads / args->kv_heads,
                tasks = args->sequences * args->kv_heads;
#pragma omp parallel num_threads(backend->threads)
  {
    spt_cpu_thread *thread = spt_cpu_enter(cpu);
    const attention_scratch scratch = scratch_of(args->workspace, omp_get_thread_num(), args, act, true);
#pragma omp for schedule(static, 1)
    for (int64_t task = 0; task < tasks; task++) {
      const int64_t sequence = task / args->kv_heads, head0 = task % args->kv_heads * group;
      memset(scratch.dk, 0, (size_t)(seq_len * d) * sizeof(float));
      memset(scratch.dv, 0, (size_t)(seq_len * d) * sizeof(float));
      head_view view = view_of(args, sequence, head0, act);
      for (int64_t head = head0; head < head0 + group; head++) {
        view = view_of(args, sequence, head, act);
        for (int64_t query0 = 0; query0 < seq_len; query0 += QUERIES)
          backward_block(cpu, args, thread, &scratch, &view, query0,
                         args->lse + (sequence * args->heads + head) * seq_len, act);
      }
      for (int64_t i = 0; i < seq_len; i++) {
        cpu->simd->convert(spt_at(args->dqkv, view.k_at + i * view.k.ld, act), act, scratch.dk + i * d, SPT_F32, d);
        cpu->simd->convert(spt_at(args->dqkv, view.v_at + i * view.v.ld, act), act, scratch.dv + i * d, SPT_F32, d);
      }
    }
  }
  return spt_cpu_end(cpu, spt_cost_attention(args, act, true));
}
