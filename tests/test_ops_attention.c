/* Causal attention: head widths 1…128, grouped-query heads, sequence lengths around the block edges. */
#include "ops_fixture.h"

#include "reference.h"

#include <math.h>

static ref_attention shape;
static double spread = 1.5; /* of the operands; huge ones only go forward */
static int way; /* of the device's */

static void body(ops_fixture *f) {
  ops_device_attention_way(f->backend, way);
  ref_attention a = shape;
  const int64_t N = a.sequences * a.seq_len, width = (a.heads + 2 * a.kv_heads) * a.head_dim,
                out = a.heads * a.head_dim;
  double *qkv = ops_random(f, N * width, spread), *d_o = ops_random(f, N * out, 1.0);
  for (int64_t i = 0; spread > 100 && i < N * width; i++) // whole multiples: scores are exact, two keys equal or far apart
    qkv[i] = nearbyint(2 * qkv[i] / spread) * 0x1p9;
  double *o = ops_zeros(f, N * out), *lse = ops_zeros(f, N * a.heads), *dqkv = ops_zeros(f, N * width);
  spt_attention_args args = {
      .sequences = a.sequences,
      .seq_len = a.seq_len,
      .heads = a.heads,
      .kv_heads = a.kv_heads,
      .head_dim = a.head_dim,
      .qkv = ops_put(f, qkv, N * width, f->act),
      .o = ops_poison(f, N * out, f->act),
      .lse = ops_poison(f, N * a.heads, SPT_F32),
      .d_o = ops_put(f, d_o, N * out, f->act),
      .dqkv = ops_poison(f, N * width, f->act)};
  args.workspace = ops_poison_bytes(f, ops_device_attention_workspace(f->backend, &args));
  const int64_t widths[3] = {out, a.kv_heads * a.head_dim, a.kv_heads * a.head_dim};
  a.qkv = ops_join(f, qkv, N, 3, widths); // the reference wants q|k|v by row
  if (f->check) ref_attention_forward(&a, o, lse);
  OPS_OK(f->backend->ops->attention_forward(f->backend, &args));
  ops_check(f, "o", ops_get(f, args.o, N * out, f->act), o, N * out, f->act, 1.0);
  ops_check(f, "lse", ops_get(f, args.lse, N * a.heads, SPT_F32), lse, N * a.heads, SPT_F32,
            1.0); // of exact operands, in fp32
  if (spread > 100) return; // lse, rounded, no longer tells the probabilities
  if (f->check) ref_attention_backward(&a, d_o, dqkv);
  dqkv = ops_split(f, dqkv, N, 3, widths);
  OPS_OK(f->backend->ops->attention_backward(f->backend, &args));
  ops_check(f, "dqkv", ops_get(f, args.dqkv, N * width, f->act), dqkv, N * width, f->act, 1.0);
}

static void run_cases(void) {
  static const struct {
    const char *name;
    ref_attention shape;
  } cases[] = {
      {"attention T=1", {3, 1, 2, 2, 16, NULL}},
      {"attention T=37", {2, 37, 3, 3, 16, NULL}},
      {"attention T=127", {1, 127, 1, 1, 33, NULL}},
      {"attention T=127 d=16 MQA", {1, 127, 2, 1, 16, NULL}}, // odd keys where the first half sees fewer, pairs of bf16
      {"attention T=287 d=34", {1, 287, 2, 2, 34, NULL}},
      {"attention T=128", {1, 128, 2, 2, 32, NULL}},
      {"attention T=129 GQA", {2, 129, 6, 2, 20, NULL}},
      {"attention T=513 GQA", {1, 513, 4, 1, 17, NULL}},
      {"attention T=650", {1, 650, 1, 1, 64, NULL}},
      {"attention T=70 d=128", {2, 70, 2, 1, 128, NULL}},
      {"attention T=9 d=1", {4, 9, 5, 5, 1, NULL}},
      {"attention T=257 d=6", {1, 257, 2, 2, 6, NULL}},
      {"attention T=290 d=48 MQA", {1, 290, 3, 1, 48, NULL}},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    shape = cases[i].shape;
    ops_run(cases[i].name, body, 1);
  }
}

/* Scores so large that their rounding exceeds what exp can take: one key has all the probability, nothing is NaN. */
static void test_huge(void **state) {
  (void)state;
  for (way = 0; way < ops_device_attention_ways(); way++) {
    spread = 1e6;
    shape = (ref_attention){2, 70, 2, 1, 32, NULL};
    ops_run("attention of huge scores", body, 1);
    spread = 1.5;
  }
}

static void test_cases(void **state) {
  (void)state;
  for (way = 0; way < ops_device_attention_ways(); way++) run_cases();
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases), cmocka_unit_test(test_huge)};
  static const char *const kernels[] = {"(attention_forward_kernel<T, D>)", "(attention_delta_kernel<T>)", "(attention_dq_kernel<T, D>)",
                                        "(attention_dkdv_kernel<T, D, OUTPUTS>)"};
  return OPS_MAIN(tests, kernels);
}
