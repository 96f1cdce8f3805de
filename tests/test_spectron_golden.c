/* Twenty optimizer steps of every method against the PyTorch reference of tests/reference (spectron_reference.py):
 * parameters, momentum, u, norms and Adam's moments; and the contract that a pair's arithmetic is the same whoever owns
 * it. */
#include "golden.h"
#include "ops_device.h"
#include "unit_test.h"

#include "core/optimizer.h"
#include "core/schedule.h"

#include <math.h>

/* The reference in fp32 is 3e-7 to 6e-7 from itself in float64 (attribute fp32_spread), parameters measured against the
 * distance they moved. The issue asks for 1e-4; this is tighter and still 20 roundings wide. */
static const double tolerance = 1e-5;
/* Newton–Schulz on bf16 operands: its own noise, about 1 % of the update, averaged over the steps. */
static const double tolerance_bf16 = 3e-2;

enum { PAIRS_MAX = 16, TENSORS_MAX = 2 * PAIRS_MAX + 2, STEPS_MAX = 32 };
static const char *const kinds[] = {"momentum", "power_u", "adam_m", "adam_v"};

/* The golden file's table, in the order of its flat datasets. */
typedef struct problem {
  hid_t file;
  int64_t steps;
  spt_tensor tensors[TENSORS_MAX];
  spt_pair pairs[PAIRS_MAX];
  spt_params params;
  int64_t offset[TENSORS_MAX]; /* in the slabs: with gaps */
  spt_layout layout;
  int factor_pairs;    /* pairs before the dense matrices */
  int64_t factor_rows; /* elements of all u */
  float *value, *power_u, *gradients;
} problem;

static problem golden;

static int add_tensor(const char *name, spt_role role, int pair, int64_t rows, int64_t cols, bool decay) {
  const int index = golden.params.tensor_count++;
  assert_true(index < TENSORS_MAX);
  spt_tensor *tensor = &golden.tensors[index];
  *tensor = (spt_tensor){.role = role,
                         .layer = -1,
                         .matrix = pair >= 0 ? SPT_Q : -1,
                         .pair = pair,
                         .rows = rows,
                         .cols = cols,
                         .count = rows * cols,
                         .decay = decay};
  strcpy(tensor->name, name);
  golden.params.count += tensor->count;
  golden.offset[index] = golden.layout.elements;
  golden.layout.elements += (tensor->count + 31) / 16 * 16;
  if (spt_tensor_is_factor(tensor)) golden.factor_rows += rows;
  return index;
}

static int open_golden(void **state) {
  (void)state;
  golden.file = golden_open("spectron_steps.h5");
  golden.steps = golden_attribute_int(golden.file, "/", "steps");
  assert_true(golden.steps > 0 && golden.steps <= STEPS_MAX);
  golden.params.tensors = golden.tensors;
  golden.params.pairs = golden.pairs;
  golden.layout.offset = golden.offset;

  int64_t shapes[PAIRS_MAX][3], dense[PAIRS_MAX][2], others[2][3];
  golden.factor_pairs = (int)golden_count(golden.file, "pairs") / 3;
  golden.params.pair_count = golden.factor_pairs + (int)golden_count(golden.file, "dense") / 2;
  assert_in_range(golden.factor_pairs, 1, PAIRS_MAX);
  assert_in_range(golden.params.pair_count, golden.factor_pairs + 1, PAIRS_MAX);
  golden_int64(golden.file, "pairs", 3 * golden.factor_pairs, shapes[0]);
  golden_int64(golden.file, "dense", 2 * (golden.params.pair_count - golden.factor_pairs), dense[0]);
  for (int i = 0; i < golden.factor_pairs; i++) {
    char name[SPT_NAME_MAX];
    const int64_t m = shapes[i][0], n = shapes[i][1], r = shapes[i][2];
    snprintf(name, sizeof name, "pair%d.A", i);
    const int a = add_tensor(name, SPT_ROLE_FACTOR_A, i, m, r, true);
    snprintf(name, sizeof name, "pair%d.B", i);
    const int b = add_tensor(name, SPT_ROLE_FACTOR_B, i, n, r, true);
    golden.pairs[i] = (spt_pair){.a = a, .b = b, .layer = 0, .matrix = SPT_Q, .m = m, .n = n, .r = r};
  }
  for (int i = golden.factor_pairs; i < golden.params.pair_count; i++) {
    char name[SPT_NAME_MAX];
    const int64_t m = dense[i - golden.factor_pairs][0], n = dense[i - golden.factor_pairs][1];
    snprintf(name, sizeof name, "dense%d", i - golden.factor_pairs);
    golden.pairs[i] = (spt_pair){.a = add_tensor(name, SPT_ROLE_DENSE, i, m, n, true), .b = -1, .layer = 0, .matrix = SPT_Q, .m = m, .n = n};
  }
  golden_int64(golden.file, "others", 6, others[0]);
  add_tensor("embed", SPT_ROLE_EMBEDDING, -1, others[0][0], others[0][1], others[0][2] != 0);
  add_tensor("gain", SPT_ROLE_GAIN, -1, others[1][0], others[1][1], others[1][2] != 0);

  const size_t count = (size_t)golden.params.count;
  golden.value = calloc(count, sizeof(float));
  golden.power_u = calloc((size_t)golden.factor_rows, sizeof(float));
  golden.gradients = calloc(count * (size_t)golden.steps, sizeof(float));
  if (!golden.value || !golden.power_u || !golden.gradients) return -1;
  golden_floats(golden.file, "initial/value", golden.params.count, golden.value);
  golden_floats(golden.file, "initial/power_u", golden.factor_rows, golden.power_u);
  golden_floats(golden.file, "gradients", golden.params.count * golden.steps, golden.gradients);
  return 0;
}

static int close_golden(void **state) {
  (void)state;
  free(golden.value);
  free(golden.power_u);
  free(golden.gradients);
  return H5Fclose(golden.file) < 0 ? -1 : 0;
}

/* One golden case: the method and the series by step. */
typedef struct method_case {
  const char *name;
  spt_optimizer_config config;
  spt_schedule_config schedule;
  double lr_factor[STEPS_MAX], sum_squares[STEPS_MAX], clip[STEPS_MAX], apply[STEPS_MAX];
  double sigma[STEPS_MAX * PAIRS_MAX * 2]; /* (steps, pairs, 2) */
  bool has_sigma;
} method_case;

static const char *case_path(const method_case *c, const char *item) {
  static char path[128];
  snprintf(path, sizeof path, "cases/%s%s%s", c->name, *item ? "/" : "", item);
  return path;
}

static double case_number(const method_case *c, const char *name) {
  return golden_attribute_double(golden.file, case_path(c, ""), name);
}

static int index_of(const char *text, int count, const char *const names[]) {
  for (int i = 0; i < count; i++)
    if (strcmp(text, names[i]) == 0) return i;
  fail_msg("the golden file says %s", text);
  return -1;
}

static void read_case(const char *name, method_case *c) {
  static const char *const methods[] = {"spectron", "muon", "renorm", "sgd", "adamw"};
  static const char *const schedules[] = {"cosine", "linear", "constant"};
  static const char *const variants[] = {"quintic", "polar-express"};
  char text[32];
  *c = (method_case){.name = name};
  golden_attribute_text(golden.file, case_path(c, ""), "method", text, sizeof text);
  c->config = (spt_optimizer_config){
      .method = (spt_method)index_of(text, 5, methods),
      .lr = case_number(c, "lr"),
      .momentum = case_number(c, "momentum"),
      .weight_decay = case_number(c, "weight_decay"),
      .grad_clip = case_number(c, "grad_clip"),
      .newton_schulz_steps = golden_attribute_int(golden.file, case_path(c, ""), "newton_schulz_steps"),
      .power_steps = golden_attribute_int(golden.file, case_path(c, ""), "power_steps"),
      .adamw = {case_number(c, "adamw_lr"), case_number(c, "beta1"), case_number(c, "beta2"), case_number(c, "eps")}};
  golden_attribute_text(golden.file, case_path(c, ""), "variant", text, sizeof text);
  c->config.newton_schulz_variant = (spt_newton_schulz_variant)index_of(text, 2, variants);
  for (int i = 0; i < 3; i++) {
    const char name[] = {'c', 'o', 'e', 'f', 'f', 'i', 'c', 'i', 'e', 'n', 't', '_', (char)('a' + i), '\0'};
    c->config.newton_schulz_coefficients[i] = case_number(c, name);
  }
  golden_attribute_text(golden.file, case_path(c, ""), "kind", text, sizeof text);
  c->schedule = (spt_schedule_config){.kind = (spt_schedule_kind)index_of(text, 3, schedules),
                                      .steps = golden.steps,
                                      .warmup = case_number(c, "warmup"),
                                      .final = case_number(c, "final")};
  golden_doubles(golden.file, case_path(c, "lr_factor"), golden.steps, c->lr_factor);
  golden_doubles(golden.file, case_path(c, "sum_squares"), golden.steps, c->sum_squares);
  golden_doubles(golden.file, case_path(c, "clip"), golden.steps, c->clip);
  golden_doubles(golden.file, case_path(c, "apply"), golden.steps, c->apply);
  const int64_t sigmas = golden_count(golden.file, case_path(c, "sigma"));
  c->has_sigma = sigmas >= 0;
  if (c->has_sigma)
    golden_doubles(golden.file, case_path(c, "sigma"), golden.steps * golden.factor_pairs * 2, c->sigma);
}

/* Optimizers over one pair of slabs, each with its share, as ranks would have them. */
enum { RANKS_MAX = 3 };
typedef struct run {
  spt_backend *backend;
  int ranks;
  int pairs[RANKS_MAX][PAIRS_MAX];
  spt_slice slices[RANKS_MAX][TENSORS_MAX + 1];
  spt_share share[RANKS_MAX];
  spt_optimizer *optimizer[RANKS_MAX];
  float *parameters, *gradients; /* backend memory */
  spt_control *control;          /* backend memory */
} run;

/* Pair i goes to rank i mod ranks; every other tensor is cut in two unequal slices. */
static void share_out(run *r, bool uses_pairs) {
  for (int rank = 0; rank < r->ranks; rank++) {
    r->share[rank].pairs = r->pairs[rank];
    r->share[rank].slices = r->slices[rank];
  }
  for (int i = 0; uses_pairs && i < golden.params.pair_count; i++) {
    spt_share *share = &r->share[i % r->ranks];
    r->pairs[i % r->ranks][share->pair_count++] = i;
  }
  for (int i = 0; i < golden.params.tensor_count; i++) {
    if (uses_pairs && golden.tensors[i].pair >= 0) continue;
    const int64_t count = golden.tensors[i].count, cut = count / 3 + 1;
    spt_share *first = &r->share[i % r->ranks], *second = &r->share[(i + 1) % r->ranks];
    r->slices[i % r->ranks][first->slice_count++] = (spt_slice){i, 0, r->ranks == 1 ? count : cut};
    if (r->ranks > 1) r->slices[(i + 1) % r->ranks][second->slice_count++] = (spt_slice){i, cut, count};
  }
}

static void upload_all(run *r, float *device, const float *flat) {
  for (int i = 0; i < golden.params.tensor_count; flat += golden.tensors[i++].count)
    assert_ok(r->backend->ops->upload(r->backend, device + golden.offset[i], flat,
                                      (size_t)golden.tensors[i].count * sizeof *flat));
}

/* Position of a tensor's part in the flat dataset of `kind`; u is (rows), all else (rows, cols). */
static int64_t flat_offset(const char *kind, int tensor, bool uses_pairs) {
  const bool of_pairs = strcmp(kind, "momentum") == 0 || strcmp(kind, "power_u") == 0;
  int64_t offset = 0;
  for (int i = 0; i < tensor; i++)
    if ((uses_pairs && golden.tensors[i].pair >= 0) == of_pairs)
      offset += strcmp(kind, "power_u") == 0 ? golden.tensors[i].rows : golden.tensors[i].count;
  return offset;
}

static void open_run(const method_case *c, spt_precision precision, int threads, int ranks, run *r) {
  const bool uses_pairs = spt_method_uses_pairs(c->config.method);
  const size_t bytes = (size_t)golden.layout.elements * sizeof(float);
  void *memory;
  *r = (run){.ranks = ranks};
  share_out(r, uses_pairs);
  assert_ok(ops_device_open(precision, threads, &r->backend));
  const spt_ops *ops = r->backend->ops;
  assert_ok(ops->alloc(r->backend, bytes, &memory));
  r->parameters = memory;
  assert_ok(ops->alloc(r->backend, bytes, &memory));
  r->gradients = memory;
  assert_ok(ops->alloc(r->backend, sizeof *r->control, &memory));
  r->control = memory;
  upload_all(r, r->parameters, golden.value);
  for (int rank = 0; rank < ranks; rank++) {
    assert_ok(spt_optimizer_open(r->backend, &c->config, &golden.params, &golden.layout, &r->share[rank], r->parameters,
                                 r->gradients, 1, &r->optimizer[rank]));
    int count;
    const spt_state_piece *pieces = spt_optimizer_state(r->optimizer[rank], &count);
    for (int i = 0; i < count; i++) {
      if (strcmp(pieces[i].kind, "power_u") != 0) continue;
      assert_int_equal(pieces[i].end - pieces[i].begin, golden.tensors[pieces[i].tensor].rows);
      assert_ok(ops->upload(r->backend, pieces[i].values,
                            golden.power_u + flat_offset("power_u", pieces[i].tensor, true),
                            (size_t)pieces[i].rows * sizeof(float)));
    }
  }
}

static void close_run(run *r) {
  const size_t bytes = (size_t)golden.layout.elements * sizeof(float);
  for (int rank = 0; rank < r->ranks; rank++) spt_optimizer_close(&r->optimizer[rank]);
  r->backend->ops->free(r->backend, r->parameters, bytes);
  r->backend->ops->free(r->backend, r->gradients, bytes);
  r->backend->ops->free(r->backend, r->control, sizeof *r->control);
  r->backend->ops->close(&r->backend);
}

static void check_sigmas(const method_case *c, const run *r, int64_t t, double bound) {
  for (int i = 0; i < golden.factor_pairs; i++) {
    float sigma[2];
    assert_ok(spt_optimizer_sigmas(r->optimizer[i % r->ranks], i / r->ranks, &sigma[0], &sigma[1]));
    for (int side = 0; side < 2; side++) {
      const double expected = c->sigma[(t * golden.factor_pairs + i) * 2 + side];
      if (!(fabs(sigma[side] / expected - 1) <= bound))
        fail_msg("%s, step %d: sigma %d of pair %d is %.9g, not %.9g", c->name, (int)t, side, i, sigma[side], expected);
    }
  }
}

/* All steps as the program makes them: statistics, then the decision, then the update. */
static void run_steps(const method_case *c, run *r, double bound) {
  const spt_ops *ops = r->backend->ops;
  for (int64_t t = 0; t < golden.steps; t++) {
    upload_all(r, r->gradients, golden.gradients + t * golden.params.count);
    spt_control control = {0};
    assert_ok(ops->upload(r->backend, r->control, &control, sizeof control));
    for (int rank = 0; rank < r->ranks; rank++) assert_ok(spt_optimizer_gradient_stats(r->optimizer[rank], r->control));
    assert_ok(ops->download(r->backend, &control, r->control, sizeof control));
    assert_true(control.non_finite == 0);
    assert_true(fabs(control.sum_squares / c->sum_squares[t] - 1) <= 1e-6);

    const double factor = spt_schedule_factor(&c->schedule, t);
    assert_true(fabs(factor - c->lr_factor[t]) <= 1e-12);
    control.clip = (float)c->clip[t];
    control.apply = (float)c->apply[t];
    for (int64_t i = 0; i <= t; i++) control.applied += c->apply[i] != 0;
    assert_ok(ops->upload(r->backend, r->control, &control, sizeof control));
    for (int rank = 0; rank < r->ranks; rank++) assert_ok(spt_optimizer_step(r->optimizer[rank], factor, r->control));
    for (int rank = 0; rank < r->ranks; rank++) // a device's control has counted; the CPU's optimizer counts by itself
      if (!r->backend->host_memory) spt_optimizer_set_applied(r->optimizer[rank], control.applied);
    if (c->has_sigma) check_sigmas(c, r, t, bound);
  }
}

/* The worst relative distance of each kind of state; momentum and u come from fp32 arithmetic in every precision. */
static void check_state(const method_case *c, const run *r, const char *kind, double bound) {
  char item[64];
  snprintf(item, sizeof item, "final/%s", kind);
  const int64_t total = golden_count(golden.file, case_path(c, item));
  if (total < 0) return; // this method has no such state
  float *expected = calloc((size_t)total, sizeof *expected), *found = calloc((size_t)total, sizeof *found);
  assert_true(expected && found);
  golden_floats(golden.file, case_path(c, item), total, expected);
  int64_t covered = 0;
  double worst = 0;
  for (int rank = 0; rank < r->ranks; rank++) {
    int count;
    const spt_state_piece *pieces = spt_optimizer_state(r->optimizer[rank], &count);
    for (int i = 0; i < count; i++) {
      if (strcmp(pieces[i].kind, kind) != 0) continue;
      const int64_t begin =
          flat_offset(kind, pieces[i].tensor, spt_method_uses_pairs(c->config.method)) + pieces[i].begin;
      const int64_t elements = pieces[i].end - pieces[i].begin;
      assert_true(begin >= 0 && begin + elements <= total);
      assert_ok(
          r->backend->ops->download(r->backend, found + begin, pieces[i].values, (size_t)elements * sizeof *found));
      const double error = relative_distance(elements, found + begin, expected + begin, NULL);
      if (!(error <= bound))
        fail_msg("%s: %s of %s is off by %.2e", c->name, kind, golden.tensors[pieces[i].tensor].name, error);
      worst = fmax(worst, error);
      covered += elements;
    }
  }
  assert_int_equal(covered, total);
  print_message("  %s: %s %.1e\n", c->name, kind, worst);
  free(expected);
  free(found);
}

static void download_parameters(const run *r, float *flat) {
  for (int i = 0; i < golden.params.tensor_count; flat += golden.tensors[i++].count)
    assert_ok(r->backend->ops->download(r->backend, flat, r->parameters + golden.offset[i],
                                        (size_t)golden.tensors[i].count * sizeof *flat));
}

/* Parameters, relative to the distance they moved. */
static void check_parameters(const method_case *c, const float *found, double factor_bound, double other_bound) {
  float *expected = calloc((size_t)golden.params.count, sizeof *expected);
  assert_non_null(expected);
  golden_floats(golden.file, case_path(c, "final/value"), golden.params.count, expected);
  double worst = 0;
  for (int64_t i = 0, begin = 0; i < golden.params.tensor_count; begin += golden.tensors[i++].count) {
    const spt_tensor *tensor = &golden.tensors[i];
    const double error = relative_distance(tensor->count, found + begin, expected + begin, golden.value + begin);
    if (!(error <= (tensor->pair >= 0 ? factor_bound : other_bound)))
      fail_msg("%s: %s is off by %.2e of its way", c->name, tensor->name, error);
    worst = fmax(worst, error);
  }
  print_message("  %s: parameters %.1e\n", c->name, worst);
  free(expected);
}

static void test_method(void **state) {
  method_case c;
  run r;
  read_case(*state, &c);
  float *alone = calloc((size_t)golden.params.count, sizeof *alone),
        *shared = calloc((size_t)golden.params.count, sizeof *shared);
  assert_true(alone && shared);

  open_run(&c, SPT_PRECISION_FP32, 1, 1, &r);
  run_steps(&c, &r, tolerance);
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) check_state(&c, &r, kinds[i], tolerance);
  int64_t applied = 0;
  for (int64_t t = 0; t < golden.steps; t++) applied += c.apply[t] != 0;
  assert_true(applied < golden.steps);
  assert_int_equal(spt_optimizer_applied(r.optimizer[0]), applied);
  download_parameters(&r, alone);
  check_parameters(&c, alone, tolerance, tolerance);
  close_run(&r);

  // three owners and another number of threads: the same bits
  open_run(&c, SPT_PRECISION_FP32, 2, RANKS_MAX, &r);
  run_steps(&c, &r, tolerance);
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) check_state(&c, &r, kinds[i], tolerance);
  download_parameters(&r, shared);
  close_run(&r);
  assert_memory_equal(alone, shared, (size_t)golden.params.count * sizeof *alone);

  // the job's precision is felt in Newton–Schulz alone
  open_run(&c, SPT_PRECISION_BF16, 2, 2, &r);
  run_steps(&c, &r, tolerance_bf16);
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
    check_state(&c, &r, kinds[i], strcmp(kinds[i], "power_u") == 0 ? tolerance_bf16 : tolerance);
  download_parameters(&r, shared);
  const bool orthogonalized = c.config.method == SPT_METHOD_SPECTRON || c.config.method == SPT_METHOD_MUON;
  check_parameters(&c, shared, orthogonalized ? tolerance_bf16 : tolerance, tolerance);
  close_run(&r);
  free(alone);
  free(shared);
}

int main(void) {
  const char *absent = ops_device_absent();
  if (absent) return printf("not run: %s\n", absent), 77;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_prestate(test_method, (void *)"spectron"),
      cmocka_unit_test_prestate(test_method, (void *)"spectron_clipped"),
      cmocka_unit_test_prestate(test_method, (void *)"muon"),
      cmocka_unit_test_prestate(test_method, (void *)"renorm"),
      cmocka_unit_test_prestate(test_method, (void *)"sgd"),
      cmocka_unit_test_prestate(test_method, (void *)"polar_express"),
      cmocka_unit_test_prestate(test_method, (void *)"coefficients"),
      cmocka_unit_test_prestate(test_method, (void *)"adamw"),
  };
  return cmocka_run_group_tests(tests, open_golden, close_golden);
}
