/* The shape-weighted ceiling: bench_ceiling [tiny|s|dense12] [bf16|fp32] [threads].
 *
 * Lists every matrix product of one training step, measures for each shape the best rate that whole products reach here
 * on all threads, and adds up what the step would take if there were nothing else to do. A product is cut into blocks
 * of its result, a task of one thread each; rows, columns and depth of a block are searched, the rate is that of the
 * best repetition. Operands lie plainly, or, where the right one is a weight, as the library packs it (the packing is
 * not counted); caches are warm. Products that come in many small pieces (a head of attention,
 * a factor of Newton-Schulz) go one to a thread. Dimensions above 4096 are cut for the measurement only.
 *
 * Prints a table and, as its last line, a JSON object. The products' FLOPs must be those that op_cost.c and flops.c
 * count, else it fails. */
#include "bench_model.h"

#include "core/flops.h"
#include "core/op_cost.h"
#include "gemm_onednn.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { PRODUCTS_MAX = 64, LONGEST = 4096 };
static const double sample_flops = 3e9, trial_seconds = 0.012, final_seconds = 0.08;

/* C (m, n) = op(A)·op(B), op(A) (m, k), op(B) (k, n). */
typedef struct product {
  char name[40];
  int64_t m, n, k;
  bool transpose_a, transpose_b;
  bool narrow;               /* the result is stored in the operands' type, else in fp32 */
  bool pieces;               /* many of them at once: one to a thread */
  double count;              /* in a step */
  double needed;             /* share of it that is computed: causal attention needs about half */
  double rate;               /* measured, FLOP/s */
  int64_t rows, cols, depth; /* of the best blocks */
  const char *way;
} product;

typedef struct bench {
  spt_config config;
  spt_dtype dtype;
  int threads;
  spt_gemm_context **contexts; /* [threads] */
  product products[PRODUCTS_MAX];
  int product_count;
  double optimizer_flops; /* of the products, Newton-Schulz */
} bench;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void must(spt_status status) {
  if (status == SPT_OK) return;
  fprintf(stderr, "bench_ceiling: %s\n", spt_error_message());
  exit((int)status);
}

static double flops_of(const product *p) {
  return 2 * (double)p->m * (double)p->n * (double)p->k * p->count * p->needed;
}

/* ---- the products of a step ---- */

typedef enum { AS_IS, TRANSPOSE_A, TRANSPOSE_B } form;
typedef enum { NARROW, WIDE } result;

static product *add(bench *b, const char *name, int64_t m, int64_t n, int64_t k, form form, result result,
                    double count) {
  if (b->product_count == PRODUCTS_MAX) must(SPT_FAIL(SPT_ERR_USAGE, "more than %d products", (int)PRODUCTS_MAX));
  product *p = &b->products[b->product_count++];
  *p = (product){.m = m, .n = n, .k = k, .count = count, .needed = 1, .narrow = result == NARROW};
  p->transpose_a = form == TRANSPOSE_A, p->transpose_b = form == TRANSPOSE_B;
  snprintf(p->name, sizeof p->name, "%s", name);
  return p;
}

/* One group of every layer, forward and backward: N tokens a pass. Members of one shape are counted together. */
static void add_group(bench *b, const spt_group_desc *desc, int64_t N, double count) {
  const int64_t n = desc->in_dim, out = spt_group_out(desc), rank = spt_group_rank(desc);
  const char *op = spt_op_name(spt_group_op(desc));
  char name[40];
#define ADD(text, m, n, k, form, result, times)                                                                        \
  (snprintf(name, sizeof name, "%s: %s", op, text), add(b, name, m, n, k, form, result, times))
  if (rank == 0) {
    ADD("y = x.W'", N, out, n, TRANSPOSE_B, desc->epilogue == SPT_EPILOGUE_RESIDUAL ? WIDE : NARROW, count);
    ADD("dx = dy.W", N, n, out, AS_IS, NARROW, count);
    ADD("dW = dy'.x", out, n, N, TRANSPOSE_A, WIDE, count);
    return;
  }
  ADD("t = x.B", N, rank, n, AS_IS, NARROW, count);
  ADD("dx = dt.B'", N, n, rank, TRANSPOSE_B, NARROW, count);
  ADD("dB = x'.dt", n, rank, N, TRANSPOSE_A, WIDE, count);
  for (int j = 0; j < desc->count; j++) {
    const int64_t m = desc->out_dim[j], r = desc->factor_rank[j];
    int alike = 1;
    while (j + 1 < desc->count && desc->out_dim[j + 1] == m && desc->factor_rank[j + 1] == r) j++, alike++;
    ADD("z = t.A'", N, m, r, TRANSPOSE_B, desc->epilogue == SPT_EPILOGUE_RESIDUAL ? WIDE : NARROW, alike * count);
    ADD("dt = dz.A", N, r, m, AS_IS, NARROW, alike * count);
    ADD("dA = dz'.t", m, r, N, TRANSPOSE_A, WIDE, alike * count);
  }
#undef ADD
}

/* A head of a sequence: T (T + 1)/2 of the T² pairs are needed. */
static void add_attention(bench *b, const spt_model_config *model, double count) {
  const int64_t T = model->seq_len, d = spt_head_dim(model);
  const struct {
    const char *name;
    int64_t n, k;
    form form;
    result result;
  } rows[] = {{"attention: s = q.k'", T, d, TRANSPOSE_B, WIDE},   {"attention: o = p.v", d, T, AS_IS, NARROW},
              {"attention: s again", T, d, TRANSPOSE_B, WIDE},    {"attention: dp = do.v'", T, d, TRANSPOSE_B, WIDE},
              {"attention: dv = p'.do", d, T, TRANSPOSE_A, WIDE}, {"attention: dq = ds.k", d, T, AS_IS, NARROW},
              {"attention: dk = ds'.q", d, T, TRANSPOSE_A, WIDE}};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    product *p = add(b, rows[i].name, T, rows[i].n, rows[i].k, rows[i].form, rows[i].result, count);
    p->pieces = true;
    p->needed = (double)(T + 1) / (double)(2 * T);
  }
}

static product *find(bench *b, const char *name, int64_t m, int64_t n, int64_t k) {
  for (int i = 0; i < b->product_count; i++) {
    product *p = &b->products[i];
    if (strcmp(p->name, name) == 0 && p->m == m && p->n == n && p->k == k) return p;
  }
  return NULL;
}

/* Newton-Schulz of one factor (rows, cols), the Gram matrix on the short side. */
static void add_factor(bench *b, int64_t rows, int64_t cols, double steps) {
  const bool tall = rows >= cols;
  const int64_t s = tall ? cols : rows, k = tall ? rows : cols;
  const struct {
    const char *name;
    int64_t m, n, k;
    form form;
  } parts[] = {{"Newton-Schulz: G", s, s, k, tall ? TRANSPOSE_A : TRANSPOSE_B},
               {"Newton-Schulz: G.G", s, s, s, AS_IS},
               {"Newton-Schulz: X.P", rows, cols, s, AS_IS}};
  for (int i = 0; i < 3; i++) {
    product *p = find(b, parts[i].name, parts[i].m, parts[i].n, parts[i].k);
    if (!p) {
      p = add(b, parts[i].name, parts[i].m, parts[i].n, parts[i].k, parts[i].form, NARROW, 0);
      p->pieces = true;
    }
    p->count += steps;
    b->optimizer_flops += 2 * (double)p->m * (double)p->n * (double)p->k * steps;
  }
}

static void list_products(bench *b, const spt_params *params) {
  const spt_config *c = &b->config;
  const spt_model_config *model = &c->model;
  const int64_t N = c->batch.micro * model->seq_len, hidden = model->hidden, vocab = model->vocab;
  const double passes = (double)(c->batch.sequences / c->batch.micro), layers = (double)model->layers;
  spt_group_desc groups[BENCH_GROUPS];
  bench_model_groups(model, groups);
  for (int i = 0; i < BENCH_GROUPS; i++) add_group(b, &groups[i], N, passes * layers);
  add_attention(b, model, (double)(c->batch.sequences * model->heads) * layers);
  add(b, "head: logits = h.W'", N, vocab, hidden, TRANSPOSE_B, WIDE, passes);
  add(b, "head: dh = dlogits.W", N, hidden, vocab, AS_IS, NARROW, passes);
  add(b, "head: dW = dlogits'.h", vocab, hidden, N, TRANSPOSE_A, WIDE, passes);
  const bool orthogonal = c->optimizer.method == SPT_METHOD_SPECTRON || c->optimizer.method == SPT_METHOD_MUON;
  for (int i = 0; orthogonal && i < params->pair_count; i++) {
    const spt_pair *pair = &params->pairs[i];
    const bool dense = spt_pair_is_dense(pair);
    add_factor(b, pair->m, dense ? pair->n : pair->r, (double)c->optimizer.newton_schulz_steps);
    if (!dense) add_factor(b, pair->n, pair->r, (double)c->optimizer.newton_schulz_steps);
  }
}

/* ---- the counts of the program itself ---- */

static void same(const char *what, double ours, double counted) {
  if (fabs(ours - counted) <= 1e-9 * counted) return;
  must(SPT_FAIL(SPT_ERR_USAGE, "%s: the products listed here have %.6e FLOPs, the program counts %.6e", what, ours,
                counted));
}

static double total_flops(const bench *b) {
  double sum = 0;
  for (int i = 0; i < b->product_count; i++) sum += flops_of(&b->products[i]);
  return sum;
}

static void check_counts(const bench *b, const spt_params *params) {
  const spt_config *c = &b->config;
  const spt_model_config *model = &c->model;
  const int64_t N = c->batch.micro * model->seq_len;
  const double passes = (double)(c->batch.sequences / c->batch.micro), layers = (double)model->layers;
  spt_group_desc groups[BENCH_GROUPS];
  bench_model_groups(model, groups);
  double counted = 0;
  for (int backward = 0; backward < 2; backward++) {
    for (int i = 0; i < BENCH_GROUPS; i++)
      counted += passes * layers * spt_cost_group(&groups[i], N, b->dtype, NULL, backward).flops;
    const spt_attention_args attention = {.sequences = c->batch.sequences,
                                          .seq_len = model->seq_len,
                                          .heads = model->heads,
                                          .kv_heads = model->kv_heads,
                                          .head_dim = spt_head_dim(model)};
    counted += layers * spt_cost_attention(&attention, b->dtype, backward).flops;
  }
  counted += passes * spt_cost_head(N, model->hidden, model->vocab, b->dtype, true).flops;
  same("forward and backward, op_cost.c", total_flops(b) - b->optimizer_flops, counted);
  // flops.c counts attention's backward as twice its forward, 4 products instead of the 5 that are done
  spt_flops flops;
  spt_flops_count(model, &c->optimizer, params, &flops);
  const double tokens = (double)(c->batch.sequences * model->seq_len);
  same("forward and backward, flops.c", counted,
       tokens * (3 * (flops.matrices_forward + flops.head_forward) + 3.5 * flops.attention_forward));
  double pairs = 0;
  for (int i = 0; b->optimizer_flops > 0 && i < params->pair_count; i++)
    pairs += spt_flops_pair(&c->optimizer, &params->pairs[i]);
  same("Newton-Schulz, flops.c", b->optimizer_flops, pairs);
}

/* ---- measuring ---- */

/* `pieces` products of one shape with their operands, side by side. */
typedef struct sample {
  int64_t m, n, k, pieces;
  bool transpose_a, transpose_b, narrow;
  spt_dtype dtype;
  void *a, *b, *c;
  void *packed; /* b in the library's order; NULL where it is no weight */
} sample;
typedef struct blocking {
  int64_t rows, cols, depth;
} blocking;

static const char *at(const void *base, int64_t elements, spt_dtype dtype) {
  return (const char *)base + elements * (int64_t)spt_dtype_size(dtype);
}

/* A way to compute rows × cols of a piece's result. */
typedef spt_status (*block_function)(spt_gemm_context *context, const sample *s, const blocking *block, int64_t piece,
                                     int64_t row, int64_t rows, int64_t col, int64_t cols);

/* Operands as they lie. Split in depth, the sum is kept in fp32. */
static spt_status plain_block(spt_gemm_context *context, const sample *s, const blocking *block, int64_t piece,
                              int64_t row, int64_t rows, int64_t col, int64_t cols) {
  const spt_dtype c_dtype = s->narrow && block->depth >= s->k ? s->dtype : SPT_F32;
  const int64_t lda = s->transpose_a ? s->m : s->k, ldb = s->transpose_b ? s->k : s->n;
  char *c = (char *)s->c + (piece * s->m * s->n + row * s->n + col) * (int64_t)spt_dtype_size(c_dtype);
  for (int64_t z = 0; z < s->k; z += block->depth) {
    const int64_t depth = s->k - z < block->depth ? s->k - z : block->depth;
    const int64_t in_a = s->transpose_a ? z * lda + row : row * lda + z;
    const int64_t in_b = s->transpose_b ? col * ldb + z : z * ldb + col;
    const spt_operand a = {at(s->a, piece * s->m * s->k + in_a, s->dtype), lda, s->dtype, s->transpose_a};
    const spt_operand b = {at(s->b, piece * s->k * s->n + in_b, s->dtype), ldb, s->dtype, s->transpose_b};
    SPT_TRY(spt_gemm(context, rows, cols, depth, 1.0f, a, b, z == 0 ? 0.0f : 1.0f, c, s->n, c_dtype));
  }
  return SPT_OK;
}

/* The right operand packed: rows of the result only, whole in columns and depth. */
static spt_status packed_block(spt_gemm_context *context, const sample *s, const blocking *block, int64_t piece,
                               int64_t row, int64_t rows, int64_t col, int64_t cols) {
  (void)block, (void)piece, (void)col;
  const spt_dtype c_dtype = s->narrow ? s->dtype : SPT_F32;
  const spt_operand a = {at(s->a, row * s->k, s->dtype), s->k, s->dtype, false}, b = {s->packed, 0, s->dtype, false};
  char *c = (char *)s->c + row * s->n * (int64_t)spt_dtype_size(c_dtype);
  return spt_gemm(context, rows, cols, s->k, 1.0f, a, b, 0.0f, c, s->n, c_dtype);
}

/* A new kind of call to gemm_onednn.h is a new row here. */
static const struct way {
  const char *name;
  block_function block;
  bool packed; /* wants sample.packed; only rows are cut */
} ways[] = {{"plain", plain_block, false}, {"packed", packed_block, true}};
enum { WAYS = sizeof ways / sizeof *ways };

/* Small numbers in [-1, 1). */
static void *operand(int64_t count, spt_dtype dtype) {
  const size_t size = spt_dtype_size(dtype);
  char *memory = aligned_alloc(4096, ((size_t)count * size + 4095) / 4096 * 4096);
  if (!memory) must(SPT_FAIL(SPT_ERR_RESOURCE, "out of memory: %lld elements", (long long)count));
  uint64_t state = 12345;
#pragma omp parallel for schedule(static) firstprivate(state)
  for (int64_t i = 0; i < count; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const float value = (float)(int32_t)(state >> 32) * 0x1p-31f;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (dtype == SPT_BF16)
      ((uint16_t *)(void *)memory)[i] = (uint16_t)(bits >> 16);
    else
      ((float *)(void *)memory)[i] = value;
  }
  return memory;
}

static int64_t lesser(int64_t a, int64_t b) {
  return a < b ? a : b;
}

/* Of long dimensions a part, of many pieces as many as keep all threads busy for about a millisecond. */
static sample sample_open(const bench *b, const product *p) {
  sample s = {.m = lesser(p->m, LONGEST), .n = lesser(p->n, LONGEST), .k = lesser(p->k, LONGEST), .pieces = 1};
  s.transpose_a = p->transpose_a, s.transpose_b = p->transpose_b, s.narrow = p->narrow, s.dtype = b->dtype;
#define FLOPS (2 * (double)s.m * (double)s.n * (double)s.k * (double)s.pieces)
  if (p->pieces) {
    s.pieces = b->threads;
    while (FLOPS < sample_flops / 10 && s.pieces * 2 <= (int64_t)p->count) s.pieces *= 2;
  } else {
    while (FLOPS > sample_flops && s.m >= 1024 * (int64_t)b->threads) s.m /= 2;
    while (FLOPS > sample_flops && s.k >= 2048) s.k /= 2;
    while (FLOPS > sample_flops && s.n >= 2048) s.n /= 2;
  }
#undef FLOPS
  s.a = operand(s.pieces * s.m * s.k, s.dtype);
  s.b = operand(s.pieces * s.k * s.n, s.dtype);
  s.c = operand(s.pieces * s.m * s.n, SPT_F32);
  if (!p->transpose_a && !p->pieces) {
    spt_gemm_enter();
    s.packed = operand((int64_t)spt_gemm_packed_bytes(b->contexts[0], s.n, s.k, s.dtype) / 4 + 1, SPT_F32);
    const spt_operand plain = {s.b, s.transpose_b ? s.k : s.n, s.dtype, s.transpose_b};
    must(spt_gemm_pack(b->contexts[0], s.n, s.k, plain, s.packed));
  }
  return s;
}

static void sample_close(sample *s) {
  free(s->a);
  free(s->b);
  free(s->c);
  free(s->packed);
}

static double run_once(const bench *b, const sample *s, block_function block, const blocking *blocking) {
  const int64_t down = (s->m + blocking->rows - 1) / blocking->rows;
  const int64_t across = (s->n + blocking->cols - 1) / blocking->cols;
  const double began = now();
#pragma omp parallel num_threads(b->threads)
  {
    spt_gemm_context *context = b->contexts[omp_get_thread_num()];
    spt_gemm_enter();
#pragma omp for schedule(dynamic, 1) collapse(3)
    for (int64_t piece = 0; piece < s->pieces; piece++)
      for (int64_t i = 0; i < down; i++)
        for (int64_t j = 0; j < across; j++) {
          const int64_t row = i * blocking->rows, col = j * blocking->cols;
          must(block(context, s, blocking, piece, row, lesser(blocking->rows, s->m - row), col,
                     lesser(blocking->cols, s->n - col)));
        }
  }
  return now() - began;
}

/* Keeps in *p the best rate of a blocking, over `seconds`. */
static void try_blocking(const bench *b, const sample *s, const struct way *way, blocking blocking, double seconds,
                         product *p) {
  const double flops = 2 * (double)s->m * (double)s->n * (double)s->k * (double)s->pieces;
  (void)run_once(b, s, way->block, &blocking); // makes the primitives
  const double began = now();
  for (int i = 0; i < 2 || now() - began < seconds; i++) {
    const double rate = flops / run_once(b, s, way->block, &blocking);
    if (rate <= p->rate) continue;
    p->rate = rate;
    p->rows = blocking.rows, p->cols = blocking.cols, p->depth = blocking.depth;
    p->way = way->name;
  }
}

/* One dimension after the other, the others at their best so far. */
static void measure(const bench *b, product *p) {
  static const int64_t sizes[] = {64, 128, 256, 512, 1024, 2048};
  sample s = sample_open(b, p);
  for (int w = 0; w < WAYS; w++) {
    const struct way *way = &ways[w];
    if (way->packed && !s.packed) continue;
    product best = *p;
    best.rate = 0;
    const int64_t half = p->pieces ? s.m : (s.m + b->threads - 1) / b->threads;
    try_blocking(b, &s, way, (blocking){half, s.n, s.k}, trial_seconds, &best);
    for (int dimension = 0; dimension < (way->packed ? 1 : 3); dimension++) {
      const int64_t whole = dimension == 0 ? half : dimension == 1 ? s.n : s.k;
      for (size_t i = 0; i < sizeof sizes / sizeof *sizes && sizes[i] < whole; i++) {
        blocking tried = {best.rows, best.cols, best.depth};
        *(dimension == 0 ? &tried.rows : dimension == 1 ? &tried.cols : &tried.depth) = sizes[i];
        try_blocking(b, &s, way, tried, trial_seconds, &best);
      }
    }
    try_blocking(b, &s, way, (blocking){best.rows, best.cols, best.depth}, final_seconds, &best);
    if (best.rate > p->rate) *p = best;
  }
  sample_close(&s);
}

static bool same_shape(const product *p, const product *q) {
  return p->m == q->m && p->n == q->n && p->k == q->k && p->transpose_a == q->transpose_a &&
         p->transpose_b == q->transpose_b && p->narrow == q->narrow && p->pieces == q->pieces;
}

/* A shape is measured once, and once more when it stays well below the best: it may have been disturbed. */
static void measure_all(bench *b) {
  double best = 0;
  for (int round = 0; round < 2; round++) {
    for (int i = 0; i < b->product_count; i++) {
      product *p = &b->products[i];
      bool copied = false;
      for (int j = 0; j < i && !copied; j++) {
        const product *q = &b->products[j];
        copied = same_shape(p, q);
        if (copied) p->rate = q->rate, p->rows = q->rows, p->cols = q->cols, p->depth = q->depth, p->way = q->way;
      }
      if (!copied && (p->rate == 0 || p->rate < 0.8 * best)) measure(b, p);
      if (p->rate > best) best = p->rate;
    }
  }
}

/* ---- the result ---- */

static void print_result(const bench *b, const char *shape, const char *precision, double measured_in) {
  const spt_config *c = &b->config;
  char library[64];
  spt_gemm_library(library, sizeof library);
  double seconds = 0, optimizer = 0, best = 0;
  for (int i = 0; i < b->product_count; i++) {
    const product *p = &b->products[i];
    seconds += flops_of(p) / p->rate;
    if (strncmp(p->name, "Newton", 6) == 0) optimizer += flops_of(p) / p->rate;
    if (p->rate > best) best = p->rate;
  }
  const double tokens = (double)(c->batch.sequences * c->model.seq_len), flops = total_flops(b);
  printf("%-24s %6s %6s %6s %7s %9s %8s %7s  %s\n", "product", "M", "N", "K", "count", "GFLOP", "GFLOP/s", "time",
         "blocks");
  for (int i = 0; i < b->product_count; i++) {
    const product *p = &b->products[i];
    printf("%-24s %6lld %6lld %6lld %7.0f %9.2f %8.1f %5.1f %%  %s %lldx%lldx%lld\n", p->name, (long long)p->m,
           (long long)p->n, (long long)p->k, p->count, flops_of(p) * 1e-9, p->rate * 1e-9,
           100 * flops_of(p) / p->rate / seconds, p->way, (long long)p->rows, (long long)p->cols, (long long)p->depth);
  }
  printf("%s, %s, %d threads, %s: %.1f GFLOP a step of %.0f tokens in %.4f s at least: %.0f tokens/s, %.1f GFLOP/s\n",
         shape, precision, b->threads, library, flops * 1e-9, tokens, seconds, tokens / seconds,
         flops / seconds * 1e-9);
  printf("{\"shape\": \"%s\", \"precision\": \"%s\", \"threads\": %d, \"library\": \"%s\", \"tokens_per_step\": %.0f, "
         "\"flops\": %.6e, \"optimizer_flops\": %.6e, \"ceiling_seconds\": %.6f, \"optimizer_ceiling_seconds\": %.6f, "
         "\"tokens_per_second_ceiling\": %.1f, \"best_flops_per_second\": %.4e, \"measured_in_seconds\": %.1f}\n",
         shape, precision, b->threads, library, tokens, flops, b->optimizer_flops, seconds, optimizer, tokens / seconds,
         best, measured_in);
}

int main(int argc, char **argv) {
  static bench b; // large
  const char *shape = argc > 1 ? argv[1] : "tiny", *precision = argc > 2 ? argv[2] : "fp32";
  const bool bf16 = strcmp(precision, "bf16") == 0;
  if (argc > 4 || (!bf16 && strcmp(precision, "fp32") != 0) || !bench_model_config(shape, &b.config)) {
    fputs("usage: bench_ceiling [tiny|s|dense12] [bf16|fp32] [threads]\n", stderr);
    return 2;
  }
  b.threads = argc > 3 ? atoi(argv[3]) : omp_get_num_procs();
  if (b.threads < 1) b.threads = 1;
  const bool native = spt_gemm_bf16_unit() != NULL;
  b.dtype = bf16 && native ? SPT_BF16 : SPT_F32; // elsewhere bf16 is multiplied in fp32
  b.contexts = calloc((size_t)b.threads, sizeof *b.contexts);
  if (!b.contexts) must(SPT_FAIL(SPT_ERR_RESOURCE, "out of memory"));
  for (int i = 0; i < b.threads; i++) must(spt_gemm_open(native, &b.contexts[i]));
  spt_params *params = NULL;
  must(spt_params_open(&b.config.model, &params));
  list_products(&b, params);
  check_counts(&b, params);
  const double began = now();
  measure_all(&b);
  print_result(&b, shape, precision, now() - began);
  spt_params_close(&params);
  for (int i = 0; i < b.threads; i++) spt_gemm_close(&b.contexts[i]);
  free(b.contexts);
  return 0;
}
