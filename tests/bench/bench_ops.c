/* Time and rate of every model op: bench_ops [tiny|S] [fp32|bf16] [threads]. Each op's best of several runs, its FLOPs
 * (a multiply-add is 2; causal attention counts half the square) and its share of the measured rate of a large matrix
 * product. */
#include "core/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { REPETITIONS = 7 };

typedef struct bench {
  spt_backend *backend;
  spt_model_config model;
  int64_t tokens;
  void *workspace;
  double total;
} bench;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void must(spt_status status) {
  if (status == SPT_OK) return;
  fprintf(stderr, "bench_ops: %s\n", spt_error_message());
  exit((int)status);
}

/* Backend memory of small numbers in [−1, 1), as fp32 or bf16. */
static void *memory(const bench *b, int64_t count, spt_dtype dtype) {
  void *data;
  must(b->backend->ops->alloc(b->backend, (size_t)count * spt_dtype_size(dtype), &data));
  uint64_t state = 12345;
  for (int64_t i = 0; i < count; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const float value = (float)(int32_t)(state >> 32) * 0x1p-31f;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (dtype == SPT_BF16)
      ((uint16_t *)data)[i] = (uint16_t)(bits >> 16);
    else
      ((float *)data)[i] = value;
  }
  return data;
}

static void report(bench *b, const char *name, double seconds, double flops, double calls) {
  b->total += seconds * calls;
  printf("%-24s %9.3f ms %9.1f GFLOP/s  %5.1f %% of the GEMM rate\n", name, seconds * 1e3, flops / seconds * 1e-9,
         100.0 * flops / seconds / b->backend->peak_flops);
}

#define TIME(seconds, call)                                                                                            \
  do {                                                                                                                 \
    (seconds) = 1e30;                                                                                                  \
    for (int i_ = 0; i_ < REPETITIONS; i_++) {                                                                         \
      const double began_ = now();                                                                                     \
      must(call);                                                                                                      \
      must(b->backend->ops->synchronize(b->backend));                                                                  \
      if (now() - began_ < (seconds)) (seconds) = now() - began_;                                                      \
    }                                                                                                                  \
  } while (0)

static void bench_group(bench *b, const char *name, const spt_group_desc *desc) {
  const spt_ops *ops = b->backend->ops;
  const spt_dtype act = b->backend->act;
  const int64_t N = b->tokens, n = desc->in_dim, out = spt_group_out(desc), rank = spt_group_rank(desc);
  const bool norm = desc->prologue == SPT_PROLOGUE_RMSNORM, residual = desc->epilogue == SPT_EPILOGUE_RESIDUAL;
  const int64_t in = desc->prologue == SPT_PROLOGUE_SWIGLU ? 2 * n : n;
  spt_group_sources masters = {.dtype = SPT_F32};
  spt_group_tensors gradients = {0};
  double products = 0.0;
  for (int j = 0; j < desc->count; j++) {
    const int64_t r = desc->factor_rank[j], a = desc->out_dim[j] * (r > 0 ? r : n);
    masters.a[j] = memory(b, a, SPT_F32), gradients.a[j] = memory(b, a, SPT_F32);
    if (r > 0) masters.b[j] = memory(b, n * r, SPT_F32), gradients.b[j] = memory(b, n * r, SPT_F32);
    products += 2.0 * (double)(N * (a + n * r));
  }
  void *weights;
  must(ops->alloc(b->backend, ops->group_packed_bytes(b->backend, desc), &weights));
  float *gain = memory(b, n, SPT_F32), *rstd = memory(b, N, SPT_F32), *dx_residual = memory(b, N * n, SPT_F32),
        *stream = memory(b, N * out, SPT_F32);
  void *x = memory(b, N * in, norm ? SPT_F32 : act), *t = memory(b, N * (rank ? rank : 1), act),
       *y = memory(b, N * out, residual ? SPT_F32 : act);
  const spt_group_forward_args forward = {.desc = desc,
                                          .tokens = N,
                                          .seq_len = b->model.seq_len,
                                          .weights = weights,
                                          .gain = gain,
                                          .x = x,
                                          .residual = residual ? y : NULL,
                                          .rstd = rstd,
                                          .t = t,
                                          .y = y,
                                          .workspace = b->workspace};
  const spt_group_backward_args backward = {.desc = desc,
                                            .tokens = N,
                                            .seq_len = b->model.seq_len,
                                            .weights = weights,
                                            .gain = gain,
                                            .x = x,
                                            .rstd = rstd,
                                            .t = t,
                                            .dy = residual ? (void *)stream : y,
                                            .dx_residual = dx_residual,
                                            .dx = memory(b, N * in, act),
                                            .dgain = gain,
                                            .gradients = gradients,
                                            .workspace = b->workspace};
  double seconds;
  char label[64];
  TIME(seconds, ops->group_pack(b->backend, desc, &masters, weights));
  TIME(seconds, ops->group_forward(b->backend, &forward));
  snprintf(label, sizeof label, "%s forward", name);
  report(b, label, seconds, products, (double)b->model.layers);
  TIME(seconds, ops->group_backward(b->backend, &backward));
  snprintf(label, sizeof label, "%s backward", name);
  report(b, label, seconds, 2.0 * products, (double)b->model.layers);
}

static void bench_groups(bench *b) {
  const spt_model_config *m = &b->model;
  const int64_t r = spt_factor_rank(m->rank_ratio, m->hidden, m->hidden),
                r_up = spt_factor_rank(m->rank_ratio, m->ffn, m->hidden);
  const int64_t r_down = spt_factor_rank(m->rank_ratio, m->hidden, m->ffn);
  const spt_group_desc qkv = {.count = 3,
                              .in_dim = m->hidden,
                              .out_dim = {m->hidden, m->hidden, m->hidden},
                              .factor_rank = {r, r, r},
                              .prologue = SPT_PROLOGUE_RMSNORM,
                              .epilogue = SPT_EPILOGUE_ROPE,
                              .head_dim = spt_head_dim(m),
                              .rope_theta = 1e4,
                              .norm_eps = 1e-5};
  const spt_group_desc o = {
      .count = 1, .in_dim = m->hidden, .out_dim = {m->hidden}, .factor_rank = {r}, .epilogue = SPT_EPILOGUE_RESIDUAL};
  const spt_group_desc up = {.count = 2,
                             .in_dim = m->hidden,
                             .out_dim = {m->ffn, m->ffn},
                             .factor_rank = {r_up, r_up},
                             .prologue = SPT_PROLOGUE_RMSNORM,
                             .norm_eps = 1e-5};
  const spt_group_desc down = {.count = 1,
                               .in_dim = m->ffn,
                               .out_dim = {m->hidden},
                               .factor_rank = {r_down},
                               .prologue = SPT_PROLOGUE_SWIGLU,
                               .epilogue = SPT_EPILOGUE_RESIDUAL};
  bench_group(b, "q|k|v", &qkv);
  bench_group(b, "o", &o);
  bench_group(b, "gate|up", &up);
  bench_group(b, "down", &down);
}

static void bench_attention(bench *b) {
  const spt_model_config *m = &b->model;
  const spt_dtype act = b->backend->act;
  const int64_t N = b->tokens, T = m->seq_len;
  const spt_attention_args args = {.sequences = N / T,
                                   .seq_len = T,
                                   .heads = m->heads,
                                   .kv_heads = m->kv_heads,
                                   .head_dim = spt_head_dim(m),
                                   .qkv = memory(b, 3 * N * m->hidden, act),
                                   .o = memory(b, N * m->hidden, act),
                                   .lse = memory(b, N * m->heads, SPT_F32),
                                   .d_o = memory(b, N * m->hidden, act),
                                   .dqkv = memory(b, 3 * N * m->hidden, act),
                                   .workspace = b->workspace};
  const double flops = 4.0 * (double)(N * m->hidden) * (double)(T + 1) / 2.0;
  double seconds;
  TIME(seconds, b->backend->ops->attention_forward(b->backend, &args));
  report(b, "attention forward", seconds, flops, (double)m->layers);
  TIME(seconds, b->backend->ops->attention_backward(b->backend, &args));
  report(b, "attention backward", seconds, 2.5 * flops, (double)m->layers); // scores again, dp, dv, dq, dk
}

static void bench_head(bench *b) {
  const int64_t N = b->tokens, n = b->model.hidden, V = b->model.vocab;
  void *weights;
  const float *w = memory(b, V * n, SPT_F32);
  must(b->backend->ops->alloc(b->backend, b->backend->ops->head_packed_bytes(b->backend, V, n), &weights));
  must(b->backend->ops->head_pack(b->backend, V, n, w, SPT_F32, weights));
  int32_t *targets = memory(b, N, SPT_F32);
  for (int64_t i = 0; i < N; i++) targets[i] = (int32_t)(i * 7919 % V);
  spt_head_loss_args args = {.tokens = N,
                             .hidden = n,
                             .vocab = V,
                             .norm_eps = 1e-5,
                             .x = memory(b, N * n, SPT_F32),
                             .gain = memory(b, n, SPT_F32),
                             .weights = weights,
                             .targets = targets,
                             .losses = memory(b, N, SPT_F32),
                             .loss_scale = 1.0f / (float)N,
                             .dx = memory(b, N * n, SPT_F32),
                             .dgain = memory(b, n, SPT_F32),
                             .dw = memory(b, V * n, SPT_F32),
                             .workspace = b->workspace};
  const double flops = 2.0 * (double)N * (double)n * (double)V;
  double seconds;
  TIME(seconds, b->backend->ops->head_loss(b->backend, &args));
  report(b, "head, evaluation", seconds, flops, 0.0);
  args.train = true;
  TIME(seconds, b->backend->ops->head_loss(b->backend, &args));
  report(b, "head, training", seconds, 3.0 * flops, 1.0);
}

int main(int argc, char **argv) {
  const bool large = argc > 1 && strcmp(argv[1], "S") == 0, bf16 = argc > 2 && strcmp(argv[2], "bf16") == 0;
  bench bench = {.model = {.hidden = large ? 768 : 256,
                           .layers = large ? 12 : 4,
                           .heads = large ? 12 : 8,
                           .kv_heads = large ? 12 : 8,
                           .ffn = large ? 2048 : 768,
                           .vocab = large ? 32000 : 4096,
                           .seq_len = large ? 2048 : 512,
                           .rope_theta = 1e4,
                           .norm_eps = 1e-5,
                           .rank_ratio = 0.25},
                 .tokens = large ? 2048 : 4096};
  must(spt_backend_open(SPT_BACKEND_CPU, bf16 ? SPT_PRECISION_BF16 : SPT_PRECISION_FP32, argc > 3 ? atoi(argv[3]) : 0,
                        1, &bench.backend));
  must(spt_backend_measure_peak(bench.backend));
  const size_t bytes = bench.backend->ops->workspace_bytes(bench.backend, &bench.model, bench.tokens, true);
  must(bench.backend->ops->alloc(bench.backend, bytes, &bench.workspace));
  printf("%s: %s; %lld tokens; GEMM rate %.0f GFLOP/s; workspace %.1f MiB\n", large ? "S" : "tiny",
         bench.backend->description, (long long)bench.tokens, bench.backend->peak_flops * 1e-9,
         (double)bytes / 1048576.0);
  bench_groups(&bench);
  bench_attention(&bench);
  bench_head(&bench);
  printf("forward and backward of %lld layers and the head: %.1f ms, %.0f tokens/s\n", (long long)bench.model.layers,
         bench.total * 1e3, (double)bench.tokens / bench.total);
  return 0; // the system takes the memory back
}
