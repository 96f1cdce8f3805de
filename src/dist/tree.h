/* The fixed binary tree of reduction = "tree" over n leaves (the global batch's micro-batches, a step's norm parts): node (first, span) with
 * span = 2^h and first a multiple of it is the sum of its two halves; a half that lies beyond the last leaf is left out.
 * The shape depends on n alone, so that any division of the leaves among ranks gives the same sum, bit for bit. Local. */
#ifndef SPT_TREE_H
#define SPT_TREE_H

#include <stdbool.h>
#include <stdint.h>

/* A node: leaves [first, first + span), those beyond the last left out. */
typedef struct spt_tree_node {
  int64_t first, span;
} spt_tree_node;

enum { SPT_TREE_NODES_MAX = 128 };

/* Whether `left` and `right` are the two halves of one node. */
static inline bool spt_tree_siblings(spt_tree_node left, spt_tree_node right) {
  return left.span == right.span && left.first + left.span == right.first && left.first % (2 * left.span) == 0;
}

/* The fewest nodes that make up leaves [first, first + count), in order; at most SPT_TREE_NODES_MAX. Returns their number. */
int spt_tree_cover(int64_t first, int64_t count, spt_tree_node *nodes);

/* A sum under way: nodes come in order of their leaves, each is joined with its left sibling as soon as both are there.
 * `join` adds node number `right` to node number `left` (places on the stack, from 0). */
typedef struct spt_tree_stack {
  int depth;
  spt_tree_node nodes[SPT_TREE_NODES_MAX];
} spt_tree_stack;
/* Pushes a node. Returns how many of the nodes on the stack it is then joined with, one after another from the top: the caller adds
 * place depth − 1 and what was pushed, then depth − 2 and that, and so on; the stack's depth is already that of after. */
int spt_tree_push(spt_tree_stack *stack, spt_tree_node node);

/* Σ values in the tree's order; 0 for none. */
double spt_tree_sum(const double *values, int64_t count);

#endif
