/* Opening the backend: kinds, threads, precision, the description, profile and measured rate; workspace_bytes covers
 * every op of a model. */
#include "ops_fixture.h"

#include "backend_cpu.h"
#include "core/rng.h"

#include <math.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static spt_backend *open_cpu(spt_backend_kind kind, spt_precision precision, int threads, int local_ranks) {
  spt_backend *backend = NULL;
  OPS_OK(spt_backend_open(kind, precision, threads, local_ranks, &backend));
  return backend;
}

static void test_open(void **state) {
  (void)state;
  spt_backend *backend = NULL;
  assert_int_equal(spt_backend_open(SPT_BACKEND_CUDA, SPT_PRECISION_AUTO, 0, 1, &backend), SPT_ERR_USAGE);
  assert_null(backend);
  assert_non_null(strstr(spt_error_message(), "cuda"));
  assert_int_equal(spt_backend_open(SPT_BACKEND_CPU, SPT_PRECISION_TF32, 0, 1, &backend), SPT_ERR_USAGE);
  assert_null(backend);
  assert_non_null(strstr(spt_error_message(), "tf32"));
  static const struct {
    spt_precision precision;
    int threads, local_ranks;
  } cases[] = {{SPT_PRECISION_FP32, 3, 1},
               {SPT_PRECISION_BF16, 1, 1},
               {SPT_PRECISION_AUTO, 0, 1},
               {SPT_PRECISION_AUTO, 0, 1 << 20}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    backend = open_cpu(i % 2 ? SPT_BACKEND_CPU : SPT_BACKEND_AUTO, cases[i].precision, cases[i].threads,
                       cases[i].local_ranks);
    const bool bf16 = cases[i].precision == SPT_PRECISION_BF16 ||
                      (cases[i].precision == SPT_PRECISION_AUTO && spt_gemm_bf16_unit());
    assert_int_equal(backend->act, bf16 ? SPT_BF16 : SPT_F32);
    if (cases[i].threads) assert_int_equal(backend->threads, cases[i].threads);
    assert_true(backend->threads >= 1);
    if (cases[i].local_ranks > 1) assert_int_equal(backend->threads, 1);
    assert_string_equal(backend->ops->name, "cpu");
    assert_non_null(strstr(backend->description, bf16 ? "bf16" : "fp32"));
    backend->ops->close(&backend);
    assert_null(backend);
    backend = NULL;
  }
}

static void test_peak_and_profile(void **state) {
  (void)state;
  spt_backend *backend = open_cpu(SPT_BACKEND_CPU, SPT_PRECISION_FP32, 1, 1);
  assert_true(backend->peak_flops == 0.0 && backend->peak_bytes == 0.0);
  OPS_OK(spt_backend_measure_peak(backend));
  assert_true(backend->peak_flops > 0.0 && backend->peak_bytes == 0.0);
  backend->profiling = true;
  OPS_OK(spt_backend_measure_peak(backend));
  assert_true(backend->peak_flops > 0.0 && backend->peak_bytes > 0.0);
  for (int op = 0; op < SPT_OP_COUNT; op++) // the measurement does not count
    assert_true(backend->profile.ops[op][0].calls == 0 && backend->profile.ops[op][1].calls == 0);
  void *memory;
  OPS_OK(backend->ops->alloc(backend, 1 << 22, &memory));
  assert_int_equal((uintptr_t)memory % 64, 0);
  for (int i = 0; i < 1 << 22; i++) assert_int_equal(((unsigned char *)memory)[i], 0);
  void *control; // zeroed
  OPS_OK(backend->ops->alloc(backend, sizeof(spt_control), &control));
  OPS_OK(backend->ops->gradient_stats(backend, 1 << 20, memory, 0, control));
  const spt_op_profile *row = &backend->profile.ops[SPT_OP_GRADIENT_STATS][0];
  assert_true(row->calls == 1 && row->seconds > 0.0 && row->products == 0.0 && row->flops == 0.0);
  assert_true(row->bytes == 4.0 * (1 << 20));
  backend->ops->free(backend, control, sizeof(spt_control));
  backend->ops->free(backend, memory, 1 << 22);
  backend->ops->close(&backend);
}

static void test_workspace(void **state) {
  (void)state;
  ops_fixture f = {.seed = ops_seed()};
  for (int i = 0; i < 200; i++) {
    spt_backend *backend =
        open_cpu(SPT_BACKEND_CPU, i % 2 ? SPT_PRECISION_BF16 : SPT_PRECISION_FP32, (int)ops_draw(&f, 1, 4), 1);
    const int64_t kv = ops_draw(&f, 1, 3), heads = kv * ops_draw(&f, 1, 3), d = 2 * ops_draw(&f, 4, 20),
                  T = ops_draw(&f, 1, 700);
    const bool guided = i % 3 != SPT_DENSE && ops_draw(&f, 0, 1) == 1;
    const spt_model_config model = {.hidden = heads * d,
                                    .layers = 1,
                                    .heads = heads,
                                    .kv_heads = kv,
                                    .ffn = ops_draw(&f, 8, 900),
                                    .vocab = ops_draw(&f, 2, 9000),
                                    .seq_len = T,
                                    .parameterization = (spt_parameterization)(i % 3),
                                    .rank_ratio = 0.3,
                                    .guided = guided};
    const int64_t tokens = T * ops_draw(&f, 1, 3),
                  r = i % 3 == SPT_LOW_RANK ? spt_factor_rank(0.3, model.hidden, model.hidden) : 0;
    const int64_t r_kv = i % 3 == SPT_LOW_RANK ? spt_factor_rank(0.3, kv * d, model.hidden) : 0;
    const int64_t r_up = i % 3 == SPT_DENSE ? 0 : spt_factor_rank(0.3, model.ffn, model.hidden),
                  r_down = i % 3 == SPT_DENSE ? 0 : spt_factor_rank(0.3, model.hidden, model.ffn);
    spt_group_desc groups[] = {{.count = 3,
                                      .in_dim = model.hidden,
                                      .out_dim = {model.hidden, kv * d, kv * d},
                                      .factor_rank = {r, r_kv, r_kv},
                                      .prologue = SPT_PROLOGUE_RMSNORM,
                                      .epilogue = SPT_EPILOGUE_ROPE},
                                     {.count = 1,
                                      .in_dim = model.hidden,
                                      .out_dim = {model.hidden},
                                      .factor_rank = {r},
                                      .epilogue = SPT_EPILOGUE_RESIDUAL},
                                     {.count = 2,
                                      .in_dim = model.hidden,
                                      .out_dim = {model.ffn, model.ffn},
                                      .factor_rank = {r_up, r_up},
                                      .prologue = SPT_PROLOGUE_RMSNORM},
                                     {.count = 1,
                                      .in_dim = model.ffn,
                                      .out_dim = {model.hidden},
                                      .factor_rank = {r_down},
                                      .prologue = SPT_PROLOGUE_SWIGLU,
                                      .epilogue = SPT_EPILOGUE_RESIDUAL}};
    for (int g = 0; g < 4; g++) groups[g].guided = guided && groups[g].factor_rank[0] > 0;
    for (int train = 0; train < 2; train++) {
      const size_t bytes = backend->ops->workspace_bytes(backend, &model, tokens, train);
      const spt_cpu *cpu = (const spt_cpu *)backend;
      for (int g = 0; g < 4; g++) // a shorter pass too: its blocks are smaller, but not fewer per token
        for (int64_t part = T; part <= tokens; part += T)
          assert_true(spt_cpu_group_workspace(cpu, &groups[g], part, train) <= bytes);
      for (int64_t part = T; part <= tokens; part += T)
        assert_true(spt_cpu_head_workspace(cpu, part, model.hidden, model.vocab, train) <= bytes);
      assert_true(spt_cpu_attention_workspace(cpu, T, d, train) <= bytes);
    }
    backend->ops->close(&backend);
  }
}

/* Products so large that one is several tasks: the same bits for any number of threads and in any batch, and right (rows of all blocks, the ragged
 * last one among them, against sums in double). */
static void check_large(bool transpose_a, bool transpose_b) {
  enum { M = 700, N = 600, K = 700, BATCH = 3, ROWS = 7 };
  static const int rows[ROWS] = {0, 255, 256, 300, 511, 512, 699};
  float *a = malloc(BATCH * M * K * sizeof *a), *b = malloc(K * N * sizeof *b), *d = malloc(M * N * sizeof *d), *c = malloc((BATCH + 1) * M * N * sizeof *c);
  assert_true(a && b && d && c);
  spt_random_normal(ops_seed(), 70, 0, BATCH * M * K, 1, a);
  spt_random_normal(ops_seed(), 71, 0, K * N, 1, b);
  spt_random_normal(ops_seed(), 72, 0, M * N, 1, d);
  const void *as[BATCH], *bs[BATCH], *ds[BATCH];
  void *cs[BATCH], *alone = c + BATCH * M * N;
  for (int i = 0; i < BATCH; i++) as[i] = a + i * M * K, bs[i] = b, ds[i] = d, cs[i] = c + i * M * N;
  spt_gemm_batch batch = {.batch = BATCH, .m = M, .n = N, .k = K, .transpose_a = transpose_a, .transpose_b = transpose_b, .alpha = 0.5f, .beta = 2.0f,
                          .dtype = SPT_F32, .a = as, .b = bs, .d = ds, .c = cs};
  spt_backend *backend = open_cpu(SPT_BACKEND_CPU, SPT_PRECISION_FP32, 3, 1);
  OPS_OK(backend->ops->batched_gemm(backend, &batch));
  backend->ops->close(&backend);
  backend = open_cpu(SPT_BACKEND_CPU, SPT_PRECISION_FP32, 1, 1);
  batch.batch = 1;
  for (int i = 0; i < BATCH; i++) {
    batch.a = as + i;
    batch.c = &alone;
    OPS_OK(backend->ops->batched_gemm(backend, &batch));
    assert_memory_equal(alone, cs[i], M * N * sizeof(float));
  }
  backend->ops->close(&backend);
  for (int r = 0; r < ROWS; r++)
    for (int j = 0; j < N; j += 37) {
      const int i = rows[r];
      double sum = 0, size = 0;
      for (int k = 0; k < K; k++) {
        const double product = (double)(transpose_a ? a[k * M + i] : a[i * K + k]) * (double)(transpose_b ? b[j * K + k] : b[k * N + j]);
        sum += product;
        size += fabs(product);
      }
      assert_true(fabs(c[i * N + j] - (0.5 * sum + 2.0 * (double)d[i * N + j])) <= 1e-6 * size);
    }
  free(a);
  free(b);
  free(d);
  free(c);
}
static void test_large_products(void **state) {
  (void)state;
  for (int form = 0; form < 4; form++) check_large(form & 1, form & 2);
}

static volatile float normal = 2e-38f, subnormal = 1e-40f, factor = 1e-3f, large = 1e10f; // a local one the compiler multiplies itself
/* Once a backend is open, no thread of its team makes a subnormal number or reads one as other than 0. */
static void test_subnormals(void **state) {
  (void)state;
  enum { THREADS = 3 };
  spt_backend *backend = open_cpu(SPT_BACKEND_CPU, SPT_PRECISION_FP32, THREADS, 1);
  float made[THREADS], read[THREADS];
#pragma omp parallel for num_threads(THREADS) schedule(static)
  for (int i = 0; i < THREADS; i++) {
    made[i] = normal * factor;
    read[i] = subnormal * large;
  }
#if defined(__x86_64__) || defined(__aarch64__)
  for (int i = 0; i < THREADS; i++) assert_true(made[i] == 0 && read[i] == 0);
#endif
  backend->ops->close(&backend);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_open), cmocka_unit_test(test_large_products), cmocka_unit_test(test_peak_and_profile),
                                     cmocka_unit_test(test_workspace), cmocka_unit_test(test_subnormals)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
