/* reduction = "tree": what a step sums outside the gradient, loss and norm, goes through a fixed tree too, so that every rank count that
 * divides the micro-batches takes the same decisions and the same clip factor, bit for bit. Each rank knows some of the values, the others
 * are 0 there: a sum over ranks only puts them together. */
#include "trainer.h"

#include "dist/gradient_parts.h"
#include "dist/tree.h"

#include <stdlib.h>
#include <string.h>

struct trainer_tree {
  spt_tree_reduction *reduction;
  int64_t losses, parts, first_loss; /* of the global batch; of the gradient; of this rank's share */
  int64_t *first_part;               /* [tensor_count + 1] */
  double *values;                    /* [TRAINER_SUMS + losses + parts]; also a validation's losses */
  int64_t capacity;
};

static double *losses_of(trainer_tree *tree) {
  return tree->values + TRAINER_SUMS;
}

spt_status trainer_tree_open(trainer *t) {
  const spt_config *config = &t->config;
  if (config->dist.reduction != SPT_REDUCTION_TREE) return SPT_OK;
  trainer_tree *tree = t->tree = calloc(1, sizeof *tree);
  if (tree) tree->first_part = calloc((size_t)t->params->tensor_count + 1, sizeof *tree->first_part);
  if (!tree || !tree->first_part) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the tree of losses and norms");
  tree->losses = config->batch.sequences / config->batch.micro;
  tree->first_loss = tree->losses / t->comm->size * t->comm->rank;
  tree->parts = spt_gradient_parts(t->plan, t->params, tree->first_part);
  tree->capacity = TRAINER_SUMS + tree->losses + tree->parts;
  if (t->validation) {
    const int64_t batches = trainer_validation_batches(t);
    if (batches > tree->capacity) tree->capacity = batches;
  }
  if (tree->capacity > INT32_MAX)
    return SPT_FAIL(SPT_ERR_USAGE, "[dist] reduction = \"tree\": %lld sums a step; raise batch.micro, or lower validation.tokens",
                    (long long)tree->capacity);
  tree->values = calloc((size_t)tree->capacity, sizeof *tree->values);
  if (!tree->values) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for %lld losses and norms", (long long)tree->capacity);
  return spt_tree_reduction_open(t->comm, t->backend, t->plan, tree->losses, t->gradients, &tree->reduction);
}

void trainer_tree_close(trainer *t) {
  if (!t->tree) return;
  spt_tree_reduction_close(&t->tree->reduction);
  free(t->tree->first_part);
  free(t->tree->values);
  free(t->tree);
  t->tree = NULL;
}

spt_tree_reduction *trainer_tree_reduction(const trainer *t) {
  return t->tree->reduction;
}

void trainer_tree_begin(trainer *t) {
  memset(t->tree->values, 0, (size_t)t->tree->capacity * sizeof *t->tree->values);
}

double *trainer_tree_loss(trainer *t, int64_t pass) {
  return losses_of(t->tree) + t->tree->first_loss + pass;
}

spt_status trainer_tree_gradient_stats(trainer *t, spt_control *found) {
  trainer_tree *tree = t->tree;
  return spt_gradient_part_sums(t->backend, t->plan, t->params, t->comm->rank, t->gradients, t->control, tree->first_part,
                                losses_of(tree) + tree->losses, &found->non_finite);
}

spt_status trainer_tree_reduce(trainer *t, double sums[TRAINER_SUMS]) {
  trainer_tree *tree = t->tree;
  memcpy(tree->values, sums, TRAINER_SUMS * sizeof *sums);
  SPT_TRY(t->comm->ops->reduce_double(t->comm, tree->values, (int)(TRAINER_SUMS + tree->losses + tree->parts),
                                      SPT_REDUCE_SUM));
  memcpy(sums, tree->values, TRAINER_SUMS * sizeof *sums);
  sums[TRAINER_SUM_LOSS] = spt_tree_sum(losses_of(tree), tree->losses);
  sums[TRAINER_SUM_SQUARES] = spt_tree_sum(losses_of(tree) + tree->losses, tree->parts);
  return SPT_OK;
}

void trainer_tree_group_squares(const trainer *t, double group_squares[SPT_GRADIENT_GROUPS]) {
  const trainer_tree *tree = t->tree;
  const double *parts = tree->values + TRAINER_SUMS + tree->losses;
  for (int g = 0; g < SPT_GRADIENT_GROUPS; g++) group_squares[g] = 0;
  for (int i = 0; i < t->params->tensor_count; i++)
    group_squares[spt_gradient_group(&t->params->tensors[i])] +=
        spt_tree_sum(parts + tree->first_part[i], tree->first_part[i + 1] - tree->first_part[i]);
}

double *trainer_tree_validation(trainer *t) {
  trainer_tree_begin(t);
  return t->tree->values;
}

spt_status trainer_tree_validation_sum(trainer *t, int64_t batches, double *sum_p) {
  SPT_TRY(t->comm->ops->reduce_double(t->comm, t->tree->values, (int)batches, SPT_REDUCE_SUM));
  *sum_p = spt_tree_sum(t->tree->values, batches);
  return SPT_OK;
}
