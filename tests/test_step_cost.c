/* What a training step executes, against budgets: matrix-product FLOPs and bytes of each op, products, parallel
 * regions, allocations, memory. Counts, not seconds: the same on every machine and at every load, so a kernel that
 * starts to do more work fails here, however fast the machine that tests it.
 *
 * When a budget is exceeded, the message gives the measured number. Raise a budget only where the step has to do more,
 * and say why in the commit. When a step comes to do less, lower it ("could be" in the output): a budget with room
 * guards nothing. The least that an op can execute is op_cost.h's; FLOPs must not fall below it either, which would
 * mean that a kernel does products without counting them (spt_cpu_count_flops). */
#include "step_cost.h"
#include "unit_test.h"

#include "core/op_cost.h"
#include "gemm_onednn.h"

#include <inttypes.h>

/* Causal attention in tiles computes some scores beyond the diagonal, fewer with narrower vectors. FLOPs in % of the
 * least, with the widest. */
enum { ATTENTION_FORWARD = 103, ATTENTION_BACKWARD = 103 };

/* Arithmetic, then parameterization. WIDENED: bf16 where the processor has no faster unit for it; weights are fp32. */
enum { FP32, BF16, WIDENED, ARITHMETICS };
enum { LOW_RANK, DENSE, MODELS };

/* A step's ops that have products. FLOPs and the bytes of operands and results, in % of the least, rounded up. Of the
 * weight gradients, which are summed in parts (ordered_sum.h), the products' bytes only: not those of adding the parts. */
static const struct {
  spt_op op;
  bool backward;
  int flops, bytes[MODELS][ARITHMETICS], products[MODELS];
} op_budgets[] = {
    {SPT_OP_QKV, false, 100, {{176, 147, 172}, {190, 157, 209}}, {48, 24}},
    {SPT_OP_QKV, true, 100, {{208, 157, 170}, {252, 193, 216}}, {80, 48}},
    {SPT_OP_ATTENTION, false, ATTENTION_FORWARD, {{0}, {0}}, {0, 0}}, // fused: no products of the library
    {SPT_OP_ATTENTION, true, ATTENTION_BACKWARD, {{0}, {0}}, {0, 0}},
    {SPT_OP_O, false, 100, {{119, 112, 121}, {124, 115, 134}}, {16, 8}},
    {SPT_OP_O, true, 100, {{169, 139, 149}, {167, 143, 162}}, {32, 16}},
    {SPT_OP_GATE_UP, false, 100, {{138, 123, 145}, {165, 148, 211}}, {32, 16}},
    {SPT_OP_GATE_UP, true, 100, {{196, 160, 174}, {226, 195, 226}}, {56, 32}},
    {SPT_OP_DOWN, false, 100, {{100, 100, 127}, {92, 94, 121}}, {16, 8}},
    {SPT_OP_DOWN, true, 100, {{111, 117, 133}, {97, 105, 122}}, {32, 16}},
    {SPT_OP_HEAD, true, 100, {{680, 534, 623}, {680, 534, 623}}, {24, 24}},
    {SPT_OP_BATCHED_GEMM, false, 100, {{100, 100, 100}, {0, 0, 0}}, {420, 0}},
};
static const int op_call_budget[MODELS] = {174, 75};
static const int region_budget[MODELS] = {120, 30};
/* The head's block of logits is the largest workspace: what all threads share and one tile a thread. */
static const size_t workspace_budget[] = {[SPT_F32] = 7224 << 10, [SPT_BF16] = 4664 << 10};
static const size_t thread_workspace_budget = 2048 << 10;

/* ---- comparing ---- */

/* What is measured and what is allowed have one form, all whole numbers. */
typedef struct numbers {
  int64_t flops[SPT_OP_COUNT][2], bytes[SPT_OP_COUNT][2], products[SPT_OP_COUNT][2];
  int64_t op_calls, regions, misses, allocations, reference_primitives;
} numbers;
enum { OPS = 2 * SPT_OP_COUNT, NUMBERS = sizeof(numbers) / sizeof(int64_t) };

static const char *number_name(int index, char text[96]) {
  static const char *const kinds[] = {"FLOPs, % of the least", "bytes, % of the least", "products"};
  static const char *const rest[] = {"calls of ops", "parallel regions", "primitives created or buffers grown",
                                     "heap allocations of this project", "primitives of oneDNN's reference loops"};
  if (index >= 3 * OPS) return rest[index - 3 * OPS];
  const int op = index % OPS / 2, backward = index % 2;
  snprintf(text, 96, "%s%s: %s", spt_op_name((spt_op)op), backward ? " backward" : "", kinds[index / OPS]);
  return text;
}

/* How many numbers are over their budgets. Unless quiet, names them, and the budgets that have room. */
static int count_excesses(const char *name, const numbers *measured, const numbers *budget, bool quiet) {
  const int64_t *got = (const int64_t *)measured, *allowed = (const int64_t *)budget;
  int excesses = 0;
  char text[96];
  for (int i = 0; i < NUMBERS; i++) {
    if (got[i] > allowed[i]) excesses++;
    if (got[i] == allowed[i] || quiet) continue;
    print_message("%s: %s: %" PRId64 ", budget %" PRId64 "%s\n", name, number_name(i, text), got[i], allowed[i],
                  got[i] > allowed[i] ? ": EXCEEDED" : ", could be lower");
  }
  return excesses;
}

static int64_t percent(double part, double least) {
  if (least == 0) return part == 0 ? 0 : INT32_MAX;
  return ((int64_t)part * 100 + (int64_t)least - 1) / (int64_t)least;
}

static void fill_measured(const step_cost *cost, numbers *n) {
  *n = (numbers){.op_calls = cost->op_calls,
                 .regions = cost->regions,
                 .misses = cost->misses,
                 .allocations = cost->allocations.own,
                 .reference_primitives = cost->reference_primitives};
  for (int op = 0; op < SPT_OP_COUNT; op++)
    for (int backward = 0; backward < 2; backward++) {
      const spt_op_profile *row = &cost->profile.ops[op][backward];
      n->flops[op][backward] = percent(row->executed_flops, row->flops);
      n->bytes[op][backward] = percent(row->executed_bytes, row->bytes);
      n->products[op][backward] = row->executed_products;
    }
}

static void fill_budget(int model, int arithmetic, numbers *n) {
  *n = (numbers){.op_calls = op_call_budget[model], .regions = region_budget[model]};
  for (size_t i = 0; i < sizeof op_budgets / sizeof *op_budgets; i++) {
    const spt_op op = op_budgets[i].op;
    const bool backward = op_budgets[i].backward;
    n->products[op][backward] = op_budgets[i].products[model];
    n->bytes[op][backward] = op_budgets[i].bytes[model][arithmetic];
    n->flops[op][backward] = n->products[op][backward] > 0 || op == SPT_OP_ATTENTION ? op_budgets[i].flops : 0;
  }
}

/* ---- the tests ---- */

typedef struct named_case {
  const char *name;
  int model;
  spt_precision precision;
} named_case;
static const named_case cases[] = {{"low-rank fp32", LOW_RANK, SPT_PRECISION_FP32},
                                   {"low-rank bf16", LOW_RANK, SPT_PRECISION_BF16},
                                   {"dense fp32", DENSE, SPT_PRECISION_FP32},
                                   {"dense bf16", DENSE, SPT_PRECISION_BF16}};
enum { CASES = sizeof cases / sizeof *cases };

static step_case with_threads(const named_case *c, int threads) {
  return (step_case){c->model == DENSE ? SPT_DENSE : SPT_LOW_RANK, c->precision, threads};
}

/* The same work in every step and with every number of threads; only what libraries allocate may differ. */
static void same_cost(const char *name, const step_cost *a, const step_cost *b) {
  numbers n[2];
  fill_measured(a, &n[0]);
  fill_measured(b, &n[1]);
  if (memcmp(&n[0], &n[1], sizeof n[0]) != 0 || memcmp(&a->profile, &b->profile, sizeof a->profile) != 0) {
    (void)count_excesses(name, &n[0], &n[1], false);
    fail_msg("%s: two steps did not do the same work", name);
  }
}

/* The plan's formula: what forward keeps of each token by layer, the residual stream, what backward needs besides. */
static void check_memory(const named_case *c, const spt_model_memory *memory, int threads) {
  const step_case opened = with_threads(c, threads);
  const spt_model_config config = step_cost_model(opened.parameterization);
  const size_t act = c->precision == SPT_PRECISION_BF16 ? 2 : 4, hidden = (size_t)config.hidden,
               ffn = (size_t)config.ffn, layers = (size_t)config.layers, heads = (size_t)config.heads, qkv = 3 * hidden;
  const size_t weight = act == 2 && spt_gemm_bf16_unit() ? 2 : 4;
  spt_params *params;
  assert_ok(spt_params_open(&config, &params));
  size_t ranks = 0, weights = 0;
  for (int i = 0; i < params->tensor_count; i++) {
    const spt_tensor *tensor = &params->tensors[i];
    if (tensor->layer == 0 && tensor->role == SPT_ROLE_FACTOR_A) ranks += (size_t)tensor->cols;
    if (tensor->matrix >= 0 || tensor->role == SPT_ROLE_HEAD) weights += (size_t)tensor->count;
  }
  spt_params_close(&params);
  const size_t layer = 2 * sizeof(float) + act * (ranks + qkv + hidden + 2 * ffn) + sizeof(float) * (heads + hidden);
  const size_t besides = 3 * sizeof(float) + sizeof(float) * hidden + act * (hidden + qkv);
  const size_t token = layers * layer + (layers + 1) * hidden * sizeof(float) + besides;
  const size_t pieces = 16 * (layers + 1), slack = pieces * 128; // alignment, and red zones where built
  assert_in_range(memory->activations, 0, (size_t)step_cost_tokens() * token + slack);
  assert_in_range(memory->compute_weights, 0, 2 * weights * weight + slack); // packed for either side of a product
  assert_in_range(memory->workspace, 0, workspace_budget[act == 2] + (size_t)threads * thread_workspace_budget + slack);
}

static void test_case(void **state) {
  const named_case *c = *state;
  const int arithmetic = c->precision == SPT_PRECISION_FP32 ? FP32 : spt_gemm_bf16_unit() ? BF16 : WIDENED;
  step_cost one[STEP_COST_STEPS], two[STEP_COST_STEPS];
  spt_model_memory memory;
  const step_case first = with_threads(c, 1), second = with_threads(c, 2);
  step_cost_measure(&first, false, one, &memory);
  check_memory(c, &memory, 1);
  step_cost_measure(&second, false, two, &memory);
  check_memory(c, &memory, 2);
  numbers measured, budget;
  fill_measured(&one[0], &measured);
  fill_budget(c->model, arithmetic, &budget);
  const int excesses = count_excesses(c->name, &measured, &budget, false);
  for (int op = 0; op < SPT_OP_COUNT; op++)
    for (int backward = 0; backward < 2; backward++)
      if (one[0].profile.ops[op][backward].executed_flops < one[0].profile.ops[op][backward].flops)
        fail_msg("%s: %s executes fewer FLOPs than it must: products are not counted", c->name,
                 spt_op_name((spt_op)op));
  print_message("%s: %" PRId64 " products in %" PRId64 " ops; libraries allocate %" PRId64
                " times a step, this project %" PRId64 " times\n",
                c->name, one[0].products, one[0].op_calls, one[0].allocations.library, one[0].allocations.own);
  if (excesses > 0) fail_msg("%s: %d budgets exceeded", c->name, excesses);
  for (int i = 0; i < STEP_COST_STEPS; i++) {
    same_cost(c->name, &one[0], &one[i]);
    same_cost(c->name, &one[0], &two[i]);
  }
}

/* Each budget one lower than what is measured is exceeded, and a step that does something twice exceeds its own. */
static void test_budgets_can_fail(void **state) {
  (void)state;
  const step_case c = with_threads(&cases[0], 1);
  step_cost costs[STEP_COST_STEPS];
  spt_model_memory memory;
  numbers measured, twice;
  step_cost_measure(&c, false, costs, &memory);
  fill_measured(&costs[0], &measured);
  assert_int_equal(count_excesses("", &measured, &measured, true), 0);
  for (int i = 0; i < NUMBERS; i++) {
    numbers budget = measured;
    ((int64_t *)&budget)[i]--;
    assert_int_equal(count_excesses("", &measured, &budget, true), 1);
  }
  step_cost_measure(&c, true, costs, &memory);
  fill_measured(&costs[0], &twice);
  assert_true(count_excesses("", &twice, &measured, true) > 0);
}

/* The counters see what they are meant to see. */
static void test_counters(void **state) {
  (void)state;
  if (!allocations_are_counted()) skip();
  const allocation_counts before = allocations();
  void *volatile own = malloc(100);
  void *volatile more = realloc(own, 1000), *volatile zeroed = calloc(3, 5), *volatile aligned = aligned_alloc(64, 64);
  char *volatile copy = strdup("the C library allocates this one");
  const allocation_counts after = allocations();
  free(more), free(zeroed), free(aligned), free(copy);
  assert_int_equal(after.own - before.own, 4);
  assert_int_equal(after.library - before.library, 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_counters),
      cmocka_unit_test_prestate(test_case, (void *)(uintptr_t)&cases[0]),
      cmocka_unit_test_prestate(test_case, (void *)(uintptr_t)&cases[1]),
      cmocka_unit_test_prestate(test_case, (void *)(uintptr_t)&cases[2]),
      cmocka_unit_test_prestate(test_case, (void *)(uintptr_t)&cases[3]),
      cmocka_unit_test(test_budgets_can_fail),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
