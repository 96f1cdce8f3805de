/* Embedding, and the fused final norm, head and cross-entropy. */
#include "ops_fixture.h"

#include "reference.h"

#include <stdlib.h>

static struct head_shape {
  int64_t tokens, hidden, vocab;
  double scale; /* of the logits: large ones make the softmax one-sided */
} shape;

static int32_t *draw_ids(ops_fixture *f, int64_t count, int64_t vocab) {
  int32_t *ids = (int32_t *)(void *)ops_zeros(f, count);
  for (int64_t i = 0; i < count; i++) ids[i] = (int32_t)ops_draw(f, 0, vocab - 1);
  ids[0] = (int32_t)vocab - 1;
  return ids;
}

static void head_body(ops_fixture *f) {
  const int64_t N = shape.tokens, n = shape.hidden, V = shape.vocab;
  const float loss_scale = 0.37f;
  const spt_ops *ops = f->backend->ops;
  double *x = ops_random(f, N * n, 2.0), *gain = ops_random(f, n, 1.0), *w = ops_random(f, V * n, shape.scale);
  double *losses = ops_zeros(f, N), *dx = ops_zeros(f, N * n), *dgain = ops_zeros(f, n), *dw = ops_zeros(f, V * n);
  double *start_gain = ops_random(f, n, 0.1), *start_w = ops_random(f, V * n, 0.1);
  const int32_t *targets = draw_ids(f, N, V);
  ops_put(f, w, V * n, f->act);
  const spt_dtype source = ops_draw_source(f);
  const void *master = ops_put(f, w, V * n, source);
  void *weights = ops_poison_bytes(f, ops->head_packed_bytes(f->backend, V, n));
  OPS_OK(ops->head_pack(f->backend, V, n, master, source, weights));
  spt_head_loss_args args = {
      .tokens = N,
      .hidden = n,
      .vocab = V,
      .norm_eps = 1e-5,
      .x = ops_put(f, x, N * n, SPT_F32),
      .gain = ops_put(f, gain, n, SPT_F32),
      .weights = weights,
      .targets = ops_put_ids(f, targets, N),
      .losses = ops_poison(f, N, SPT_F32),
      .loss_scale = loss_scale,
      .workspace = ops_poison_bytes(f, ops_device_head_workspace(f->backend, N, n, V, false))};
  if (f->check) ref_head_loss(N, n, V, 1e-5, x, gain, w, targets, (double)loss_scale, losses, dx, dgain, dw);
  OPS_OK(ops->head_loss(f->backend, &args)); // evaluation writes losses only
  ops_check(f, "evaluation losses", ops_get(f, args.losses, N, SPT_F32), losses, N, f->act, 1.0);

  args.train = true;
  args.losses = ops_poison(f, N, SPT_F32);
  args.dx = ops_poison(f, N * n, SPT_F32);
  args.dgain = ops_put(f, start_gain, n, SPT_F32);
  args.dw = ops_put(f, start_w, V * n, SPT_F32);
  args.workspace = ops_poison_bytes(f, ops_device_head_workspace(f->backend, N, n, V, true));
  OPS_OK(ops->head_loss(f->backend, &args));
  for (int64_t i = 0; i < n; i++) dgain[i] += start_gain[i];
  for (int64_t i = 0; i < V * n; i++) dw[i] += start_w[i];
  ops_check(f, "losses", ops_get(f, args.losses, N, SPT_F32), losses, N, f->act, 1.0);
  ops_check(f, "dx", ops_get(f, args.dx, N * n, SPT_F32), dx, N * n, f->act, 1.0);
  ops_check(f, "dgain", ops_get(f, args.dgain, n, SPT_F32), dgain, n, f->act, 1.0);
  ops_check(f, "dw", ops_get(f, args.dw, V * n, SPT_F32), dw, V * n, f->act, 1.0);
}

static void test_head(void **state) {
  (void)state;
  static const struct {
    const char *name;
    struct head_shape shape;
  } cases[] = {{"head tiny", {7, 5, 3, 1.0}},
               {"head small", {37, 48, 97, 0.2}},
               {"head several tiles", {70, 21, 1300, 0.3}},
               {"head peaked", {33, 24, 600, 5.0}},
               {"head many groups", {19, 9, 512 * 11 + 5, 0.5}},
               {"head several blocks", {1061, 8, 61, 0.5}}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    shape = cases[i].shape;
    ops_run(cases[i].name, head_body, 1);
  }
}

static int64_t more_tokens;

static void embedding_body(ops_fixture *f) {
  const int64_t N = more_tokens + ops_draw(f, 1, 300), hidden = ops_draw(f, 1, 200), vocab = ops_draw(f, 1, 40); // many repeated ids
  const int32_t *ids = draw_ids(f, N, vocab), *device_ids = ops_put_ids(f, ids, N);
  double *table = ops_random(f, vocab * hidden, 1.0), *dx = ops_random(f, N * hidden, 1.0),
         *dtable = ops_random(f, vocab * hidden, 1.0);
  const spt_dtype source = ops_draw_source(f);
  const void *device_table = ops_put(f, table, vocab * hidden, source);
  const float *device_dx = ops_put(f, dx, N * hidden, SPT_F32);
  float *x = ops_poison(f, N * hidden, SPT_F32), *device_dtable = ops_put(f, dtable, vocab * hidden, SPT_F32);
  OPS_OK(f->backend->ops->embedding_forward(f->backend, N, hidden, device_ids, device_table, source, x));
  const double *got = ops_get(f, x, N * hidden, SPT_F32);
  for (int64_t i = 0; i < N * hidden; i++) assert_true(got[i] == table[ids[i / hidden] * hidden + i % hidden]);
  OPS_OK(f->backend->ops->embedding_backward(f->backend, N, hidden, vocab, device_ids, device_dx, device_dtable));
  for (int64_t i = 0; i < N * hidden; i++) {
    double *sum = &dtable[ids[i / hidden] * hidden + i % hidden];
    *sum = (double)((float)*sum + (float)dx[i]); // in the order of i, so exactly
  }
  const double *sums = ops_get(f, device_dtable, vocab * hidden, SPT_F32);
  for (int64_t i = 0; i < vocab * hidden; i++) assert_true(sums[i] == dtable[i]);
}

static void test_embedding(void **state) {
  (void)state;
  more_tokens = 0;
  ops_run("embedding", embedding_body, 5);
  more_tokens = 900; // ids of several blocks
  ops_run("embedding of many tokens", embedding_body, 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_embedding), cmocka_unit_test(test_head)};
  static const char *const kernels[] = {"(embed_kernel<T>)", "embed_backward_kernel", "(cross_entropy_kernel<T>)",
                                        "(rmsnorm_backward_kernel<T>)"};
  return OPS_MAIN(tests, kernels);
}
