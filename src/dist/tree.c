#include "tree.h"

int spt_tree_push(spt_tree_stack *stack, spt_tree_node node) {
  int joined = 0;
  while (stack->depth > 0 && spt_tree_siblings(stack->nodes[stack->depth - 1], node)) {
    node = (spt_tree_node){stack->nodes[stack->depth - 1].first, 2 * node.span};
    stack->depth--;
    joined++;
  }
  stack->nodes[stack->depth++] = node;
  return joined;
}

int spt_tree_cover(int64_t first, int64_t count, spt_tree_node *nodes) {
  int n = 0;
  for (const int64_t end = first + count; first < end; n++) {
    int64_t span = 1;
    while (first % (2 * span) == 0 && first + 2 * span <= end) span *= 2;
    nodes[n] = (spt_tree_node){first, span};
    first += span;
  }
  return n;
}

double spt_tree_sum(const double *values, int64_t count) {
  if (count < 2) return count ? values[0] : 0;
  int64_t half = 1;
  while (2 * half < count) half *= 2;
  return spt_tree_sum(values, half) + spt_tree_sum(values + half, count - half);
}
