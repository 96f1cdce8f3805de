/* The CUDA backend beside its ops' results: memory and copies, no waiting inside ops, nothing allocated for known shapes, workspace that covers a
 * model, the profile. On the simulator. */
#include "ops_fixture.h"

#include "attention_cuda.h"
#include "backend_cuda.h"

#include "core/slab.h"
#include "simgpu/waits.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static spt_backend *open_backend(spt_precision precision) {
  spt_backend *backend = NULL;
  OPS_OK(ops_device_open(precision, 1, &backend));
  return backend;
}

static void *take(spt_backend *backend, size_t bytes) {
  void *memory = NULL;
  OPS_OK(backend->ops->alloc(backend, bytes, &memory));
  return memory;
}

static void test_open(void **state) {
  (void)state;
  static const struct {
    spt_precision precision;
    spt_dtype act;
    const char *word;
  } cases[] = {{SPT_PRECISION_AUTO, SPT_BF16, "bf16"}, {SPT_PRECISION_BF16, SPT_BF16, "bf16"}, {SPT_PRECISION_FP32, SPT_F32, "fp32"},
               {SPT_PRECISION_TF32, SPT_F32, "tf32"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    spt_backend *backend = open_backend(cases[i].precision);
    assert_int_equal(backend->act, cases[i].act);
    assert_string_equal(backend->ops->name, "cuda");
    assert_true(!backend->host_memory && backend->threads == 1);
    assert_non_null(strstr(backend->description, cases[i].word));
    backend->ops->close(&backend);
    assert_null(backend);
  }
}

/* More than the ring of slots holds, odd sizes; the host's memory is free when upload returns, and what download gives is what was last put. */
static void test_copies(void **state) {
  (void)state;
  spt_backend *backend = open_backend(SPT_PRECISION_FP32);
  const size_t bytes = (size_t)SPT_CUDA_SLOTS * SPT_CUDA_SLOT_BYTES + 12345;
  unsigned char *host = malloc(bytes), *back = malloc(bytes);
  assert_true(host && back);
  void *memory = take(backend, bytes);
  OPS_OK(backend->ops->download(backend, back, memory, bytes));
  for (size_t i = 0; i < bytes; i++) assert_int_equal(back[i], 0); // zeroed
  for (size_t i = 0; i < bytes; i++) host[i] = (unsigned char)(i * 2654435761u >> 24);
  OPS_OK(backend->ops->upload(backend, memory, host, bytes));
  memset(host, 0, bytes);
  OPS_OK(backend->ops->download(backend, back, memory, bytes));
  for (size_t i = 0; i < bytes; i++) assert_int_equal(back[i], (unsigned char)(i * 2654435761u >> 24));
  for (int i = 0; i < 3 * SPT_CUDA_SLOTS; i++) { // each overtakes none
    OPS_OK(backend->ops->upload(backend, memory, &i, sizeof i));
    int found = -1;
    if (i % 5 == 0) OPS_OK(backend->ops->download(backend, &found, memory, sizeof found));
    assert_true(i % 5 != 0 || found == i);
  }
  OPS_OK(backend->ops->zero(backend, (unsigned char *)memory + 7, 9));
  OPS_OK(backend->ops->download(backend, back, memory, 32));
  for (int i = 7; i < 16; i++) assert_int_equal(back[i], 0);
  assert_true(back[16] == (unsigned char)(16 * 2654435761u >> 24));
  OPS_OK(backend->ops->download(backend, back, memory, 0));
  backend->ops->free(backend, memory, bytes);
  void *none = NULL;
  assert_int_equal(backend->ops->alloc(backend, (size_t)1 << 50, &none), SPT_ERR_RESOURCE);
  assert_non_null(strstr(spt_error_message(), "out of GPU memory"));
  assert_null(none);
  free(host);
  free(back);
  backend->ops->close(&backend);
}

enum { TOKENS = 12, HIDDEN = 16, OUT = 24, VOCAB = 40 };

/* Every op of a step but attention. */
static void issue_ops(ops_fixture *f, unsigned char *memory) {
  const spt_ops *ops = f->backend->ops;
  float *at = (float *)(void *)memory;
#define PIECE(count) (at += 2048, (void)(count), (void *)(at - 2048))
  const spt_group_desc desc = {.count = 2,
                               .in_dim = HIDDEN,
                               .out_dim = {OUT, OUT},
                               .factor_rank = {8, 8},
                               .prologue = SPT_PROLOGUE_RMSNORM,
                               .epilogue = SPT_EPILOGUE_ROPE,
                               .head_dim = 8,
                               .rope_theta = 1e4,
                               .norm_eps = 1e-5};
  spt_group_tensors masters = {.a = {PIECE(OUT * 8), PIECE(OUT * 8)}, .b = {PIECE(HIDDEN * 8), PIECE(HIDDEN * 8)}};
  void *weights = PIECE(0), *x = PIECE(0), *gain = PIECE(0), *rstd = PIECE(0), *t = PIECE(0), *y = PIECE(0), *head = PIECE(0), *losses = PIECE(0),
       *dx = PIECE(0), *dgain = PIECE(0), *workspace = memory + (1 << 19);
  float *table = PIECE(0), *dtable = PIECE(0), *u = PIECE(0), *sigma = PIECE(0), *momentum = PIECE(0), *direction = PIECE(0);
  const int32_t *ids = PIECE(0);
  spt_control *control = PIECE(0);
  const spt_group_sources sources = {.dtype = f->act, .a = {masters.a[0], masters.a[1]}, .b = {masters.b[0], masters.b[1]}};
  OPS_OK(ops->round_bf16(f->backend, VOCAB * HIDDEN, dtable, momentum));
  OPS_OK(ops->group_pack(f->backend, &desc, &sources, weights));
  OPS_OK(ops->head_pack(f->backend, VOCAB, HIDDEN, table, f->act, head));
  OPS_OK(ops->embedding_forward(f->backend, TOKENS, HIDDEN, ids, table, f->act, x));
  const spt_group_forward_args forward = {.desc = &desc, .tokens = TOKENS, .seq_len = TOKENS, .weights = weights, .gain = gain, .x = x,
                                          .rstd = rstd, .t = t, .y = y, .workspace = workspace};
  OPS_OK(ops->group_forward(f->backend, &forward));
  const spt_head_loss_args loss = {.tokens = TOKENS, .hidden = HIDDEN, .vocab = VOCAB, .norm_eps = 1e-5, .x = x, .gain = gain, .weights = head,
                                   .targets = ids, .losses = losses, .train = true, .loss_scale = 1.0f, .dx = dx, .dgain = dgain, .dw = dtable,
                                   .workspace = workspace};
  OPS_OK(ops->head_loss(f->backend, &loss));
  const spt_group_backward_args backward = {.desc = &desc, .tokens = TOKENS, .seq_len = TOKENS, .weights = weights, .gain = gain, .x = x,
                                            .rstd = rstd, .t = t, .dy = y, .dx_residual = dx, .dgain = dgain, .gradients = masters,
                                            .workspace = workspace};
  OPS_OK(ops->group_backward(f->backend, &backward));
  OPS_OK(ops->embedding_backward(f->backend, TOKENS, HIDDEN, VOCAB, ids, dx, dtable));
  OPS_OK(ops->gradient_stats(f->backend, VOCAB * HIDDEN, dtable, 0, control));
  const spt_factor_entry entries[2] = {{HIDDEN, 8, masters.a[0], masters.b[0], momentum, u, sigma, direction},
                                       {HIDDEN, 8, masters.a[1], masters.b[1], momentum + 512, u + 64, sigma + 1, direction + 512}};
  OPS_OK(ops->factor_momentum(f->backend, 2, entries, 0.9f, true, f->act, control));
  const void *a = direction;
  void *c = workspace;
  const spt_gemm_batch gram = {.batch = 1, .m = 8, .n = 8, .k = HIDDEN, .transpose_a = true, .alpha = 1, .dtype = f->act, .a = &a, .b = &a, .c = &c};
  OPS_OK(ops->batched_gemm(f->backend, &gram));
  OPS_OK(ops->power_iteration(f->backend, 2, entries, 1, control));
  OPS_OK(ops->factor_update(f->backend, 2, entries, 1e-2f, 0.1f, true, f->act, control));
  OPS_OK(ops->adamw(f->backend, VOCAB * HIDDEN, table, dtable, momentum, direction, 1e-2f, 0.1f, 0.9f, 0.95f, 1e-8f, 1, control));
  OPS_OK(ops->add(f->backend, HIDDEN, gain, dgain, gain));
  OPS_OK(ops->zero(f->backend, dgain, HIDDEN * sizeof(float)));
#undef PIECE
}

/* The host waits for nothing: what is issued is executed at the next synchronisation, and known shapes allocate nothing. */
static void test_asynchronous(void **state) {
  (void)state;
  const spt_precision precisions[] = {SPT_PRECISION_FP32, SPT_PRECISION_BF16};
  for (int p = 0; p < 2; p++) {
    ops_fixture f = {.backend = open_backend(precisions[p])};
    f.act = f.backend->act;
    unsigned char *memory = take(f.backend, 1 << 20); // zeroed: numbers do not matter here
    issue_ops(&f, memory);
    OPS_OK(f.backend->ops->synchronize(f.backend));
    const int64_t made = ops_device_made(f.backend), waits = simgpu_waits(), launches = ops_device_launches();
    assert_true(made > 0);
    issue_ops(&f, memory);
    assert_int_equal(simgpu_waits(), waits);
    assert_int_equal(ops_device_launches(), launches);
    OPS_OK(f.backend->ops->synchronize(f.backend));
    assert_int_equal(simgpu_waits(), waits + 1);
    assert_true(ops_device_launches() > launches);
    assert_int_equal(ops_device_made(f.backend), made);
    print_message("%s: %lld launches and products\n", f.backend->description, (long long)(ops_device_launches() - launches));
    f.backend->ops->free(f.backend, memory, 1 << 20);
    f.backend->ops->close(&f.backend);
  }
}

static void test_profile(void **state) {
  (void)state;
  ops_fixture f = {.backend = open_backend(SPT_PRECISION_BF16), .act = SPT_BF16};
  unsigned char *memory = take(f.backend, 1 << 20);
  f.backend->profiling = true;
  issue_ops(&f, memory);
  static const spt_op products[] = {SPT_OP_QKV, SPT_OP_HEAD, SPT_OP_BATCHED_GEMM},
                      others[] = {SPT_OP_EMBEDDING, SPT_OP_ZERO, SPT_OP_ADD, SPT_OP_GRADIENT_STATS, SPT_OP_MOMENTUM, SPT_OP_POWER_ITERATION,
                                  SPT_OP_FACTOR_UPDATE, SPT_OP_ADAMW, SPT_OP_PACK};
  for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
    const spt_op_profile *row = &f.backend->profile.ops[products[i]][products[i] == SPT_OP_HEAD];
    assert_true(row->calls == 1 && row->products > 0 && row->seconds >= row->products && row->executed_products > 0);
    assert_true(row->executed_flops >= row->flops && row->executed_bytes > 0);
  }
  for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
    const spt_op_profile *row = &f.backend->profile.ops[others[i]][0];
    assert_true(row->calls > 0 && row->seconds > 0 && row->bytes > 0 && row->executed_products == 0);
  }
  f.backend->ops->free(f.backend, memory, 1 << 20);
  f.backend->ops->close(&f.backend);
}

/* The body in a child process, whose fault must say these words; NULL: it must end well. */
static void in_child(void (*body)(spt_backend *, float *, float *), const char *words) {
  int ends[2];
  char text[1 << 14];
  size_t at = 0;
  assert_int_equal(pipe(ends), 0);
  const pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    spt_backend *backend = open_backend(SPT_PRECISION_FP32);
    spt_slab slab;
    spt_slab_init(&slab, "test");
    const size_t first = spt_slab_reserve(&slab, 21 * sizeof(float)), second = spt_slab_reserve(&slab, 21 * sizeof(float));
    OPS_OK(spt_slab_allocate(&slab, backend));
    body(backend, spt_slab_at(&slab, first), spt_slab_at(&slab, second));
    OPS_OK(backend->ops->synchronize(backend));
    OPS_OK(spt_slab_check(&slab));
    spt_slab_fini(&slab);
    backend->ops->close(&backend);
    _exit(0);
  }
  close(ends[1]);
  for (ssize_t n; at + 1 < sizeof text && (n = read(ends[0], text + at, sizeof text - 1 - at)) > 0;) at += (size_t)n;
  text[at] = '\0';
  close(ends[0]);
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  if (words ? status == 0 || !strstr(text, words) : status != 0) fail_msg("status %d, wanted %s: %s", status, words ? words : "none", text);
}

static void inside(spt_backend *backend, float *first, float *second) {
  OPS_OK(backend->ops->add(backend, 21, first, second, second));
  OPS_OK(backend->ops->zero(backend, first, 21 * sizeof(float)));
}
static void kernel_beyond(spt_backend *backend, float *first, float *second) {
  OPS_OK(backend->ops->add(backend, 22, first, second, first));
}
static void kernel_before(spt_backend *backend, float *first, float *second) {
  OPS_OK(backend->ops->add(backend, 1, first, first, second - 1));
}
static void copy_beyond(spt_backend *backend, float *first, float *second) {
  float values[22];
  (void)second;
  OPS_OK(backend->ops->download(backend, values, first, sizeof values));
}
static void set_beyond(spt_backend *backend, float *first, float *second) {
  (void)second;
  OPS_OK(backend->ops->zero(backend, first, 22 * sizeof(float)));
}

/* Red-zone builds: an op that leaves its piece of a slab faults there and then. */
static void test_red_zones(void **state) {
  (void)state;
#ifdef SPT_RED_ZONES
  in_child(inside, NULL);
  in_child(kernel_beyond, "use-after-poison");
  in_child(kernel_before, "use-after-poison");
  in_child(copy_beyond, "touches a red zone");
  in_child(set_beyond, "touches a red zone");
#else
  skip();
#endif
}

static void check_workspace(const spt_backend *backend, const spt_model_config *model, int64_t tokens, bool train) {
  const size_t bytes = backend->ops->workspace_bytes((spt_backend *)(uintptr_t)backend, model, tokens, train);
  const int64_t hidden = model->hidden, kv = model->kv_heads * spt_head_dim(model), ffn = model->ffn;
  const bool attention_low = model->parameterization == SPT_LOW_RANK, ffn_low = model->parameterization != SPT_DENSE;
#define RANK(low, m, n) ((low) ? spt_factor_rank(model->rank_ratio, m, n) : 0)
  const spt_group_desc groups[] = {
      {.count = 3, .in_dim = hidden, .out_dim = {hidden, kv, kv}, .prologue = SPT_PROLOGUE_RMSNORM, .epilogue = SPT_EPILOGUE_ROPE,
       .factor_rank = {RANK(attention_low, hidden, hidden), RANK(attention_low, kv, hidden), RANK(attention_low, kv, hidden)}},
      {.count = 1, .in_dim = hidden, .out_dim = {hidden}, .epilogue = SPT_EPILOGUE_RESIDUAL, .factor_rank = {RANK(attention_low, hidden, hidden)}},
      {.count = 2, .in_dim = hidden, .out_dim = {ffn, ffn}, .prologue = SPT_PROLOGUE_RMSNORM,
       .factor_rank = {RANK(ffn_low, ffn, hidden), RANK(ffn_low, ffn, hidden)}},
      {.count = 1, .in_dim = ffn, .out_dim = {hidden}, .prologue = SPT_PROLOGUE_SWIGLU, .epilogue = SPT_EPILOGUE_RESIDUAL,
       .factor_rank = {RANK(ffn_low, hidden, ffn)}}};
#undef RANK
  for (int64_t part = model->seq_len; part <= tokens; part += model->seq_len) { // a shorter pass too
    for (int g = 0; g < 4; g++) assert_true(ops_device_group_workspace(backend, &groups[g], part, train) <= bytes);
    assert_true(ops_device_head_workspace(backend, part, hidden, model->vocab, train) <= bytes);
    assert_true(!train || spt_cuda_attention_workspace(part, model->heads) <= bytes);
  }
}

static void test_workspace(void **state) {
  (void)state;
  ops_fixture f = {.seed = ops_seed()};
  for (int p = 0; p < 2; p++) {
    spt_backend *backend = open_backend(p ? SPT_PRECISION_BF16 : SPT_PRECISION_FP32);
    for (int i = 0; i < 300; i++) {
      const int64_t kv = ops_draw(&f, 1, 3), heads = kv * ops_draw(&f, 1, 3), d = 2 * ops_draw(&f, 4, 20), T = ops_draw(&f, 1, 700);
      const spt_model_config model = {.hidden = heads * d, .layers = 1, .heads = heads, .kv_heads = kv, .ffn = ops_draw(&f, 8, 900),
                                      .vocab = ops_draw(&f, 2, 9000), .seq_len = T, .parameterization = (spt_parameterization)(i % 3),
                                      .rank_ratio = 0.3};
      const int64_t tokens = T * ops_draw(&f, 1, 3);
      check_workspace(backend, &model, tokens, false);
      check_workspace(backend, &model, tokens, true);
    }
    backend->ops->close(&backend);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_open), cmocka_unit_test(test_copies), cmocka_unit_test(test_asynchronous),
                                     cmocka_unit_test(test_profile), cmocka_unit_test(test_red_zones), cmocka_unit_test(test_workspace)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
