/* The reference's gradients against finite differences of its forward, in float64, along random directions. */
#include "reference.h"

#include "ops_fixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* A scalar function of its inputs, of which `values` may be moved; `context` holds the rest. */
typedef double (*scalar_function)(void *context);

static void check_direction(ops_fixture *f, const char *what, double *values, int64_t count, const double *gradient,
                            scalar_function function, void *context) {
  const double step = 1e-5;
  double *direction = ops_random(f, count, 1.0), slope = 0.0, size = 0.0;
  for (int64_t i = 0; i < count; i++) {
    slope += direction[i] * gradient[i];
    size += direction[i] * direction[i] * gradient[i] * gradient[i];
  }
  double sums[2];
  for (int side = 0; side < 2; side++) {
    const double move = side == 0 ? step : -step;
    for (int64_t i = 0; i < count; i++) values[i] += move * direction[i];
    sums[side] = function(context);
    for (int64_t i = 0; i < count; i++) values[i] -= move * direction[i];
  }
  const double difference = (sums[0] - sums[1]) / (2.0 * step);
  if (!(fabs(difference - slope) <= 1e-6 * (sqrt(size) + fabs(sums[0]) * 1e-4)))
    fail_msg("%s: slope %.12g, by differences %.12g", what, slope, difference);
}

static void release(ops_fixture *f) {
  for (int i = 0; i < f->buffer_count; i++) free(f->buffers[i].memory);
  f->buffer_count = 0;
}

typedef struct group_context {
  ref_group g;
  double *y;
  const double *dy;
} group_context;

static double group_value(void *context) {
  group_context *c = context;
  double sum = 0.0;
  ref_group_forward(&c->g, NULL, NULL, c->y);
  for (int64_t i = 0; i < c->g.tokens * spt_group_out(c->g.desc); i++) sum += c->dy[i] * c->y[i];
  return sum;
}

typedef enum { DENSE, LOW_RANK, GUIDED, KINDS } group_kind;

static void check_group(ops_fixture *f, spt_prologue prologue, spt_epilogue epilogue, group_kind kind) {
  spt_group_desc desc = {
      .prologue = prologue, .epilogue = epilogue, .rope_theta = 100.0, .norm_eps = 0.1, .head_dim = 4, .guided = kind == GUIDED};
  desc.count = epilogue == SPT_EPILOGUE_RESIDUAL ? 1 : 3;
  desc.in_dim = ops_draw(f, 2, 12);
  for (int j = 0; j < desc.count; j++)
    desc.out_dim[j] = 4 * ops_draw(f, 1, 3), desc.factor_rank[j] = kind == DENSE ? 0 : ops_draw(f, 1, 5);
  const int64_t T = ops_draw(f, 1, 6), N = 2 * T, n = desc.in_dim, in = prologue == SPT_PROLOGUE_SWIGLU ? 2 * n : n,
                out = spt_group_out(&desc);
  double *x = ops_random(f, N * in, 1.0), *gain = ops_random(f, n, 1.0), *dx = ops_zeros(f, N * in),
         *dgain = ops_zeros(f, n);
  double *a[SPT_GROUP_MAX], *b[SPT_GROUP_MAX], *da[SPT_GROUP_MAX], *db[SPT_GROUP_MAX], *guide[SPT_GROUP_MAX], *dguide[SPT_GROUP_MAX];
  group_context c = {
      .g = {.desc = &desc, .tokens = N, .seq_len = T, .x = x, .gain = gain, .residual = ops_random(f, N * out, 1.0)},
      .y = ops_zeros(f, N * out),
      .dy = ops_random(f, N * out, 1.0)};
  for (int j = 0; j < desc.count; j++) {
    const int64_t r = desc.factor_rank[j], inner = r > 0 ? r : n;
    c.g.a[j] = a[j] = ops_random(f, desc.out_dim[j] * inner, 1.0), da[j] = ops_zeros(f, desc.out_dim[j] * inner);
    c.g.b[j] = b[j] = ops_random(f, n * r, 1.0), db[j] = ops_zeros(f, n * r);
    c.g.guide[j] = guide[j] = ops_random(f, desc.out_dim[j] * n, 1.0), dguide[j] = ops_zeros(f, desc.out_dim[j] * n);
    c.g.alpha[j] = (double)ops_draw(f, 0, 4) / 4.0;
  }
  ref_group_backward(&c.g, c.dy, dx, dgain, da, db, dguide);
  check_direction(f, "group dx", x, N * in, dx, group_value, &c);
  if (prologue == SPT_PROLOGUE_RMSNORM) check_direction(f, "group dgain", gain, n, dgain, group_value, &c);
  for (int j = 0; j < desc.count; j++) {
    const int64_t r = desc.factor_rank[j];
    check_direction(f, "group dA", a[j], desc.out_dim[j] * (r > 0 ? r : n), da[j], group_value, &c);
    if (r > 0) check_direction(f, "group dB", b[j], n * r, db[j], group_value, &c);
    if (kind == GUIDED) check_direction(f, "group d guide", guide[j], desc.out_dim[j] * n, dguide[j], group_value, &c);
  }
  release(f);
}

static void test_group(void **state) {
  (void)state;
  ops_fixture f = {.seed = ops_seed()};
  for (int p = 0; p < 3; p++)
    for (int e = 0; e < 3; e++)
      for (int kind = 0; kind < KINDS; kind++)
        for (int i = 0; i < 5; i++) check_group(&f, (spt_prologue)p, (spt_epilogue)e, (group_kind)kind);
}

typedef struct attention_context {
  ref_attention a;
  double *o, *lse;
  const double *d_o;
} attention_context;

static double attention_value(void *context) {
  attention_context *c = context;
  double sum = 0.0;
  ref_attention_forward(&c->a, c->o, c->lse);
  for (int64_t i = 0; i < c->a.sequences * c->a.seq_len * c->a.heads * c->a.head_dim; i++) sum += c->d_o[i] * c->o[i];
  return sum;
}

static void test_attention(void **state) {
  (void)state;
  ops_fixture f = {.seed = ops_seed() + 1};
  for (int i = 0; i < 10; i++) {
    const int64_t kv = ops_draw(&f, 1, 2), heads = kv * ops_draw(&f, 1, 3), T = ops_draw(&f, 1, 9),
                  d = ops_draw(&f, 1, 7), N = 2 * T;
    double *qkv = ops_random(&f, N * (heads + 2 * kv) * d, 1.0), *dqkv = ops_zeros(&f, N * (heads + 2 * kv) * d);
    attention_context c = {.a = {2, T, heads, kv, d, qkv},
                           .o = ops_zeros(&f, N * heads * d),
                           .lse = ops_zeros(&f, N * heads),
                           .d_o = ops_random(&f, N * heads * d, 1.0)};
    ref_attention_backward(&c.a, c.d_o, dqkv);
    check_direction(&f, "attention dqkv", qkv, N * (heads + 2 * kv) * d, dqkv, attention_value, &c);
    release(&f);
  }
}

typedef struct head_context {
  int64_t tokens, hidden, vocab;
  double *x, *gain, *w, *losses;
  const int32_t *targets;
} head_context;

static double head_value(void *context) {
  head_context *c = context;
  double sum = 0.0;
  ref_head_loss(c->tokens, c->hidden, c->vocab, 0.1, c->x, c->gain, c->w, c->targets, 0.7, c->losses, NULL, NULL, NULL);
  for (int64_t i = 0; i < c->tokens; i++) sum += 0.7 * c->losses[i];
  return sum;
}

static void test_head(void **state) {
  (void)state;
  ops_fixture f = {.seed = ops_seed() + 2};
  for (int i = 0; i < 10; i++) {
    const int64_t N = ops_draw(&f, 1, 9), n = ops_draw(&f, 2, 9), V = ops_draw(&f, 2, 30);
    int32_t *targets = (int32_t *)(void *)ops_zeros(&f, N);
    for (int64_t k = 0; k < N; k++) targets[k] = (int32_t)ops_draw(&f, 0, V - 1);
    head_context c = {
        N,      n, V, ops_random(&f, N * n, 1.0), ops_random(&f, n, 1.0), ops_random(&f, V * n, 1.0), ops_zeros(&f, N),
        targets};
    double *dx = ops_zeros(&f, N * n), *dgain = ops_zeros(&f, n), *dw = ops_zeros(&f, V * n);
    ref_head_loss(N, n, V, 0.1, c.x, c.gain, c.w, targets, 0.7, c.losses, dx, dgain, dw);
    check_direction(&f, "head dx", c.x, N * n, dx, head_value, &c);
    check_direction(&f, "head dgain", c.gain, n, dgain, head_value, &c);
    check_direction(&f, "head dw", c.w, V * n, dw, head_value, &c);
    release(&f);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_group), cmocka_unit_test(test_attention),
                                     cmocka_unit_test(test_head)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
