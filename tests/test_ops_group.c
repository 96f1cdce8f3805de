/* Pair groups: every prologue × epilogue × dense/low-rank/guided, odd shapes drawn anew in each run. */
#include "ops_fixture.h"

#include "reference.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct group_test {
  spt_group_desc desc;
  ref_group ref;
  int64_t tokens, seq_len, in_width, out, rank;
  spt_group_sources masters;
  double *a[SPT_GROUP_MAX], *b[SPT_GROUP_MAX], *guide[SPT_GROUP_MAX];
  float alpha[SPT_GROUP_MAX];
  void *weights, *workspace, *x, *y, *t;
  float *gain, *rstd, *residual;
  bool in_place;
} group_test;

static spt_prologue chosen_prologue;
static spt_epilogue chosen_epilogue;
static bool chosen_dense, chosen_large, chosen_guided;
/* Which of the members use their guides; members that do draw a common alpha, or each its own. */
typedef enum { GUIDE_NONE, GUIDE_ALIKE, GUIDE_MIXED, GUIDE_ALONE, GUIDE_PATTERNS } guide_pattern;
static guide_pattern chosen_pattern;

static void draw_shape(ops_fixture *f, group_test *g) {
  spt_group_desc *desc = &g->desc;
  *desc = (spt_group_desc){
      .prologue = chosen_prologue, .epilogue = chosen_epilogue, .rope_theta = 10000.0, .norm_eps = 1e-5};
  const int64_t low = f->act == SPT_BF16 ? 6 : 1; // in bf16 a lone element may cancel to nothing but rounding
  desc->count = chosen_epilogue == SPT_EPILOGUE_RESIDUAL ? 1 : (int)ops_draw(f, 1, 3);
  desc->in_dim = ops_draw(f, low, 90);
  desc->head_dim = 2 * ops_draw(f, 1, 9);
  for (int j = 0; j < desc->count; j++) {
    desc->out_dim[j] = chosen_epilogue == SPT_EPILOGUE_ROPE ? desc->head_dim * ops_draw(f, 1, 5) : ops_draw(f, low, 90);
    desc->factor_rank[j] = chosen_dense ? 0 : ops_draw(f, 1, 40); // may exceed both dimensions
  }
  desc->guided = chosen_guided;
  g->seq_len = ops_draw(f, low, 60);
  g->tokens = g->seq_len * (chosen_large ? 1100 / g->seq_len + 1 : ops_draw(f, 1, 3));
  if (chosen_large) desc->in_dim = 520 + ops_draw(f, 0, 20), desc->out_dim[0] += 2 * desc->head_dim * 9;
  g->in_width = desc->prologue == SPT_PROLOGUE_SWIGLU ? 2 * desc->in_dim : desc->in_dim;
  g->out = spt_group_out(desc);
  g->rank = spt_group_rank(desc);
}

/* ALONE: alpha is 1, which leaves nothing to the factors. MIXED: some members without. */
static void draw_alpha(ops_fixture *f, group_test *g) {
  const float common = (float)ops_draw(f, 1, 99) / 100.0f;
  for (int j = 0; j < g->desc.count; j++) {
    const float drawn = (float)ops_draw(f, 0, 4) / 4.0f;
    const float values[GUIDE_PATTERNS] = {
        [GUIDE_NONE] = 0.0f, [GUIDE_ALIKE] = common, [GUIDE_MIXED] = drawn, [GUIDE_ALONE] = 1.0f};
    g->alpha[j] = chosen_guided ? values[chosen_pattern] : NAN; // NaN: nothing may read it
    g->ref.alpha[j] = (double)g->alpha[j];
  }
}

static const int64_t *gate_up(const spt_group_desc *desc) {
  static int64_t widths[2];
  widths[0] = widths[1] = desc->in_dim;
  return widths;
}

static void make_group(ops_fixture *f, group_test *g) {
  draw_shape(f, g);
  const spt_group_desc *desc = &g->desc;
  const bool act_out = desc->epilogue != SPT_EPILOGUE_RESIDUAL;
  double *x = ops_random(f, g->tokens * g->in_width, 1.0), *gain = ops_random(f, desc->in_dim, 1.0);
  double *residual = ops_random(f, g->tokens * g->out, 1.0);
  g->x = ops_put(f, x, g->tokens * g->in_width, desc->prologue == SPT_PROLOGUE_RMSNORM ? SPT_F32 : f->act);
  if (desc->prologue == SPT_PROLOGUE_SWIGLU)
    x = ops_join(f, x, g->tokens, 2, gate_up(desc)); // as the reference wants it
  g->gain = ops_put(f, gain, desc->in_dim, SPT_F32);
  g->residual = ops_put(f, residual, g->tokens * g->out, SPT_F32);
  g->masters.dtype = ops_draw_source(f);
  for (int j = 0; j < desc->count; j++) {
    const int64_t r = desc->factor_rank[j], inner = r > 0 ? r : desc->in_dim;
    g->a[j] = ops_random(f, desc->out_dim[j] * inner, 0.3);
    ops_put(f, g->a[j], desc->out_dim[j] * inner, f->act); // rounds what the reference sees
    g->masters.a[j] = ops_put(f, g->a[j], desc->out_dim[j] * inner, g->masters.dtype);
    if (r == 0) continue;
    g->b[j] = ops_random(f, desc->in_dim * r, 0.3);
    ops_put(f, g->b[j], desc->in_dim * r, f->act);
    g->masters.b[j] = ops_put(f, g->b[j], desc->in_dim * r, g->masters.dtype);
    if (!desc->guided) continue;
    g->guide[j] = ops_random(f, desc->out_dim[j] * desc->in_dim, 0.3);
    ops_put(f, g->guide[j], desc->out_dim[j] * desc->in_dim, f->act);
    g->masters.guide[j] = ops_put(f, g->guide[j], desc->out_dim[j] * desc->in_dim, g->masters.dtype);
  }
  g->in_place = ops_draw(f, 0, 1);
  g->y = !act_out && g->in_place ? (void *)g->residual : ops_poison(f, g->tokens * g->out, act_out ? f->act : SPT_F32);
  g->t = chosen_dense ? NULL : ops_poison(f, g->tokens * g->rank, f->act);
  g->rstd = ops_poison(f, g->tokens, SPT_F32);
  g->weights = ops_poison_bytes(f, f->backend->ops->group_packed_bytes(f->backend, desc));
  g->workspace = ops_poison_bytes(f, ops_device_group_workspace(f->backend, desc, g->tokens, true));
  g->ref =
      (ref_group){.desc = desc, .tokens = g->tokens, .seq_len = g->seq_len, .x = x, .gain = gain, .residual = residual};
  for (int j = 0; j < desc->count; j++) g->ref.a[j] = g->a[j], g->ref.b[j] = g->b[j], g->ref.guide[j] = g->guide[j];
  draw_alpha(f, g);
}

static void check_forward(ops_fixture *f, group_test *g) {
  double *y = ops_zeros(f, g->tokens * g->out), *t = ops_zeros(f, g->tokens * g->rank), *rstd = ops_zeros(f, g->tokens);
  if (f->check) ref_group_forward(&g->ref, rstd, t, y);
  y = ops_split(f, y, g->tokens, g->desc.count, g->desc.out_dim);
  OPS_OK(f->backend->ops->group_pack(f->backend, &g->desc, &g->masters, g->weights));
  spt_group_forward_args args = {.desc = &g->desc,
                                       .tokens = g->tokens,
                                       .seq_len = g->seq_len,
                                       .weights = g->weights,
                                       .gain = g->gain,
                                       .x = g->x,
                                       .residual = g->residual,
                                       .rstd = g->rstd,
                                       .t = g->t,
                                       .y = g->y,
                                       .workspace = g->workspace};
  memcpy(args.alpha, g->alpha, sizeof args.alpha);
  OPS_OK(f->backend->ops->group_forward(f->backend, &args));
  const bool act_out = g->desc.epilogue != SPT_EPILOGUE_RESIDUAL;
  ops_check(f, "y", ops_get(f, g->y, g->tokens * g->out, act_out ? f->act : SPT_F32), y, g->tokens * g->out, f->act,
            1.0);
  if (g->desc.prologue == SPT_PROLOGUE_RMSNORM)
    ops_check(f, "rstd", ops_get(f, g->rstd, g->tokens, SPT_F32), rstd, g->tokens, SPT_F32, 1.0);
}

/* Gradients are added: want += start. */
static void add(double *want, const double *start, int64_t count) {
  for (int64_t i = 0; i < count; i++) want[i] += start[i];
}

static void check_backward(ops_fixture *f, group_test *g) {
  const spt_group_desc *desc = &g->desc;
  const int64_t n = desc->in_dim, N = g->tokens;
  const bool norm = desc->prologue == SPT_PROLOGUE_RMSNORM, fp32_dy = desc->epilogue == SPT_EPILOGUE_RESIDUAL;
  double *dy = ops_random(f, N * g->out, 1.0), *dx = ops_zeros(f, N * g->in_width), *dgain = ops_zeros(f, n);
  double *start_dx = ops_random(f, N * n, 1.0), *start_gain = ops_random(f, n, 1.0), *da[SPT_GROUP_MAX] = {0},
         *db[SPT_GROUP_MAX] = {0}, *dguide[SPT_GROUP_MAX] = {0};
  double *start_a[SPT_GROUP_MAX] = {0}, *start_b[SPT_GROUP_MAX] = {0}, *start_guide[SPT_GROUP_MAX] = {0};
  spt_group_backward_args args = {.desc = desc,
                                  .tokens = N,
                                  .seq_len = g->seq_len,
                                  .weights = g->weights,
                                  .gain = g->gain,
                                  .x = g->x,
                                  .rstd = g->rstd,
                                  .t = g->t,
                                  .workspace = g->workspace};
  memcpy(args.alpha, g->alpha, sizeof args.alpha);
  void *dy_memory = args.dy = ops_put(f, dy, N * g->out, fp32_dy ? SPT_F32 : f->act);
  const double *dy_rows = ops_join(f, dy, N, desc->count, desc->out_dim);
  if (norm) {
    args.dx_residual = ops_put(f, start_dx, N * n, SPT_F32);
    args.dgain = ops_put(f, start_gain, n, SPT_F32);
  } else
    args.dx = g->in_place ? g->x : ops_poison(f, N * g->in_width, f->act);
  for (int j = 0; j < desc->count; j++) {
    const int64_t r = desc->factor_rank[j], a_count = desc->out_dim[j] * (r > 0 ? r : n);
    da[j] = ops_zeros(f, a_count);
    start_a[j] = ops_random(f, a_count, 1.0);
    args.gradients.a[j] = ops_put(f, start_a[j], a_count, SPT_F32);
    if (r == 0) continue;
    db[j] = ops_zeros(f, n * r);
    start_b[j] = ops_random(f, n * r, 1.0);
    args.gradients.b[j] = ops_put(f, start_b[j], n * r, SPT_F32);
    if (!desc->guided) continue;
    dguide[j] = ops_zeros(f, desc->out_dim[j] * n);
    start_guide[j] = ops_random(f, desc->out_dim[j] * n, 1.0);
    args.gradients.guide[j] = ops_put(f, start_guide[j], desc->out_dim[j] * n, SPT_F32);
  }
  if (f->check) ref_group_backward(&g->ref, dy_rows, dx, dgain, da, db, dguide);
  OPS_OK(f->backend->ops->group_backward(f->backend, &args));
  if (norm) {
    add(dx, start_dx, N * n);
    add(dgain, start_gain, n);
    ops_check(f, "dx", ops_get(f, args.dx_residual, N * n, SPT_F32), dx, N * n, f->act, 1.0);
    ops_check(f, "dgain", ops_get(f, args.dgain, n, SPT_F32), dgain, n, f->act, 1.0);
  } else {
    if (desc->prologue == SPT_PROLOGUE_SWIGLU) dx = ops_split(f, dx, N, 2, gate_up(desc));
    ops_check(f, "dx", ops_get(f, args.dx, N * g->in_width, f->act), dx, N * g->in_width, f->act, 1.0);
  }
  for (int j = 0; j < desc->count; j++) {
    const int64_t r = desc->factor_rank[j], a_count = desc->out_dim[j] * (r > 0 ? r : n);
    add(da[j], start_a[j], a_count);
    ops_check(f, r > 0 ? "dA" : "dW", ops_get(f, args.gradients.a[j], a_count, SPT_F32), da[j], a_count, f->act, 1.0);
    if (r == 0) continue;
    add(db[j], start_b[j], n * r);
    ops_check(f, "dB", ops_get(f, args.gradients.b[j], n * r, SPT_F32), db[j], n * r, f->act, 1.0);
    if (!desc->guided) continue;
    add(dguide[j], start_guide[j], desc->out_dim[j] * n);
    ops_check(f, "d guide", ops_get(f, args.gradients.guide[j], desc->out_dim[j] * n, SPT_F32), dguide[j],
              desc->out_dim[j] * n, f->act, 1.0);
  }
  if (fp32_dy) { // is left unchanged
    const double *after = ops_get(f, dy_memory, N * g->out, SPT_F32);
    for (int64_t i = 0; i < N * g->out; i++) assert_true(after[i] == dy[i]);
  }
}

static void body(ops_fixture *f) {
  group_test g = {0};
  make_group(f, &g);
  check_forward(f, &g);
  check_backward(f, &g);
}

static void test_all(void **state) {
  (void)state;
  static const char *const prologues[] = {"none", "rmsnorm", "swiglu"}, *const epilogues[] = {"none", "rope",
                                                                                              "residual"};
  for (int p = 0; p < 3; p++)
    for (int e = 0; e < 3; e++)
      for (int dense = 0; dense < 2; dense++) {
        char name[64];
        snprintf(name, sizeof name, "%s group %s-%s", dense ? "dense" : "low-rank", prologues[p], epilogues[e]);
        chosen_prologue = (spt_prologue)p, chosen_epilogue = (spt_epilogue)e, chosen_dense = dense,
        chosen_large = false;
        ops_run(name, body, 4);
      }
}

/* Guided groups, in the patterns of alpha. */
static void test_guided(void **state) {
  (void)state;
  static const char *const patterns[] = {"no guide", "one alpha", "mixed alphas", "guide alone"};
  chosen_dense = chosen_large = false, chosen_guided = true;
  for (int p = 0; p < 3; p++)
    for (int e = 0; e < 3; e++)
      for (int a = 0; a < GUIDE_PATTERNS; a++) {
        if (p != e && (a == GUIDE_NONE || a == GUIDE_ALONE)) continue; // mixed alphas have them too
        char name[64];
        snprintf(name, sizeof name, "guided group %d-%d, %s", p, e, patterns[a]);
        chosen_prologue = (spt_prologue)p, chosen_epilogue = (spt_epilogue)e, chosen_pattern = (guide_pattern)a;
        ops_run(name, body, 1);
      }
  chosen_guided = false;
}

/* More tokens than a block, a tail, and factors of several tiles. */
static void test_large(void **state) {
  (void)state;
  chosen_prologue = SPT_PROLOGUE_RMSNORM, chosen_epilogue = SPT_EPILOGUE_ROPE, chosen_dense = false,
  chosen_large = true;
  ops_run("large group", body, 1);
  chosen_guided = true, chosen_pattern = GUIDE_MIXED;
  ops_run("large guided group", body, 1);
  chosen_guided = false;
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_all), cmocka_unit_test(test_guided), cmocka_unit_test(test_large)};
  static const char *const kernels[] = {"(pack_kernel<S, T>)",        "(rmsnorm_kernel<T>)",         "(rmsnorm_apply_kernel<T>)",
                                        "(rmsnorm_backward_kernel<T>)", "add_rows_kernel",             "(rope_kernel<T>)",
                                        "(swiglu_kernel<T>)",         "(swiglu_backward_kernel<T, D>)", "(convert_kernel<T>)"};
  return OPS_MAIN(tests, kernels);
}
