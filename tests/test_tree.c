/* The fixed tree: nodes that cover a block, sums under way, and the same sum however the leaves are divided. */
#include "unit_test.h"

#include "dist/tree.h"

#include <math.h>

enum { LEAVES_MAX = 400 };
static uint64_t seed;

/* In [0, below): number `index` of a stream. */
static int64_t random_below(uint64_t stream, uint64_t index, int64_t below) {
  return (int64_t)(spt_random_bits(seed, stream, index) % (uint64_t)below);
}

/* The definition: leaves [first, first + span) of n, span a power of two. */
static double node_sum(const double *values, int64_t n, int64_t first, int64_t span) {
  if (span == 1) return values[first];
  const int64_t half = span / 2;
  if (first + half >= n) return node_sum(values, n, first, half);
  return node_sum(values, n, first, half) + node_sum(values, n, first + half, half);
}

static int64_t root_span(int64_t n) {
  int64_t span = 1;
  while (span < n) span *= 2;
  return span;
}

static void fill(uint64_t stream, double *values) {
  for (int i = 0; i < LEAVES_MAX; i++)
    values[i] = ldexp((double)random_below(stream, (uint64_t)(2 * i), 1 << 30) - (1 << 29),
                      (int)random_below(stream, (uint64_t)(2 * i + 1), 60) - 30);
}

static void test_sum(void **state) {
  (void)state;
  double values[LEAVES_MAX] = {0};
  int in_another_order = 0;
  assert_true(spt_tree_sum(values, 0) == 0);
  for (int64_t n = 1; n <= LEAVES_MAX; n++) {
    fill((uint64_t)n, values);
    assert_true(spt_tree_sum(values, n) == node_sum(values, n, 0, root_span(n)));
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += values[i];
    in_another_order += sum != spt_tree_sum(values, n);
  }
  assert_true(in_another_order > LEAVES_MAX / 2); // the values do tell one order from another
}

/* Nodes are aligned, adjacent and the fewest: no two are siblings. Pushing the leaves one by one leaves the same. */
static void test_cover(void **state) {
  (void)state;
  for (uint64_t round = 0; round < 2000; round++) {
    const int64_t first = random_below(7000, 2 * round, 1000), count = random_below(7000, 2 * round + 1, 300);
    spt_tree_node nodes[SPT_TREE_NODES_MAX];
    spt_tree_stack stack = {0};
    const int n = spt_tree_cover(first, count, nodes);
    int64_t at = first;
    for (int i = 0; i < n; i++) {
      assert_true(nodes[i].first == at && nodes[i].span > 0 && (nodes[i].span & (nodes[i].span - 1)) == 0);
      assert_true(at % nodes[i].span == 0);
      if (i) assert_false(spt_tree_siblings(nodes[i - 1], nodes[i]));
      at += nodes[i].span;
    }
    assert_true(at == first + count);
    for (int64_t i = 0; i < count; i++) spt_tree_push(&stack, (spt_tree_node){first + i, 1});
    assert_int_equal(stack.depth, n);
    assert_memory_equal(stack.nodes, nodes, (size_t)n * sizeof *nodes);
  }
}

/* Sums kept as the stack says, over blocks of any division of the leaves, then joined from the right: the tree's sum. */
static void test_divided(void **state) {
  (void)state;
  double values[LEAVES_MAX], kept[SPT_TREE_NODES_MAX];
  for (uint64_t round = 0; round < 300; round++) {
    const int64_t blocks = 1 + random_below(8000, 2 * round, 20), share = 1 + random_below(8000, 2 * round + 1, 20);
    spt_tree_stack all = {0};
    double sums[SPT_TREE_NODES_MAX];
    fill(9000 + round, values);
    for (int64_t p = 0; p < blocks; p++) {
      spt_tree_stack stack = {0};
      for (int64_t i = p * share; i < (p + 1) * share; i++) { // within the block
        double sum = values[i];
        for (int before = stack.depth, joined = spt_tree_push(&stack, (spt_tree_node){i, 1}), j = 0; j < joined; j++)
          sum += kept[before - 1 - j];
        kept[stack.depth - 1] = sum;
      }
      for (int i = 0; i < stack.depth; i++) { // and over blocks
        double sum = kept[i];
        for (int before = all.depth, joined = spt_tree_push(&all, stack.nodes[i]), j = 0; j < joined; j++)
          sum += sums[before - 1 - j];
        sums[all.depth - 1] = sum;
      }
    }
    for (int i = all.depth - 1; i > 0; i--) sums[i - 1] += sums[i];
    assert_true(sums[0] == spt_tree_sum(values, blocks * share));
  }
}

int main(void) {
  seed = unit_test_seed("test_tree");
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_sum), cmocka_unit_test(test_cover),
                                     cmocka_unit_test(test_divided)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
