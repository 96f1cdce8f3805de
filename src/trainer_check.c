/* What must hold of a run's memory: finite masters before a save, untouched gaps between tensors. */
#include "trainer.h"

#include <stddef.h>

spt_status trainer_parameters_finite(trainer *t, bool *finite_p) {
  spt_control found = {0};
  spt_status status = t->backend->ops->upload(t->backend, t->control, &found, offsetof(spt_control, clip)); // what is applied is kept
  for (int i = 0; status == SPT_OK && i < t->model_item_count; i++) {
    const spt_checkpoint_item *item = &t->items[i];
    if (item->begin < item->end)
      status = t->backend->ops->gradient_stats(t->backend, item->end - item->begin, item->values, 0, t->control); // no gradients, so of no group
  }
  if (status == SPT_OK) status = t->backend->ops->download(t->backend, &found, t->control, sizeof found);
  double bad = found.non_finite;
  SPT_TRY(spt_comm_agree(t->comm, status, NULL));
  SPT_TRY(t->comm->ops->reduce_double(t->comm, &bad, 1, SPT_REDUCE_SUM));
  *finite_p = bad == 0;
  return SPT_OK;
}

/* Red-zone builds leave at least this many floats after each tensor of the parameter and gradient slabs; they stay
 * zero. */
enum { GAP = 16 };

#ifdef SPT_RED_ZONES
/* The gap between each tensor and the next in a slab of `layout`; of the shards' masters, those within a run of this rank. */
static void guard_gaps(const trainer *t, const spt_layout *layout, void *slab, size_t element) {
  for (int i = 0; i < t->params->tensor_count; i++) {
    const int64_t count = t->params->tensors[i].count, end = layout->offset[i] + count, plan_end = t->plan->layout.offset[i] + count;
    const int64_t next = (plan_end + GAP + GAP - 1) / GAP * GAP; // tensors begin at multiples of 16
    bool here = layout == &t->plan->layout;
    for (int b = 0; !here && b < t->plan->bucket_count; b++) {
      const int64_t *cuts = t->plan->buckets[b].cuts + t->comm->rank;
      here = cuts[0] <= plan_end && next <= cuts[1];
    }
    if (here) t->backend->ops->guard(t->backend, (unsigned char *)slab + (size_t)end * element, (size_t)(next - plan_end) * element, true);
  }
}

spt_status trainer_guard_gaps(trainer *t) {
  if (!t->backend->ops->guard) return SPT_OK;
  SPT_TRY(t->backend->ops->synchronize(t->backend));
  guard_gaps(t, &t->plan->layout, t->gradients, sizeof *t->gradients);
  guard_gaps(t, t->masters, t->parameters, sizeof *t->parameters);
  if (t->shards) guard_gaps(t, &t->plan->layout, t->copies.values, spt_dtype_size(SPT_BF16));
  return SPT_OK;
}
#endif

/* A slab in the plan's layout, of elements of this many bytes. */
static spt_status check_gaps(const trainer *t, const void *slab, size_t element, const char *kind) {
  if (t->backend->ops->guard) return SPT_OK; // whoever touches one faults at once
  for (int i = 0; i < t->params->tensor_count; i++) {
    unsigned char gap[GAP * sizeof(float)];
    const size_t at = (size_t)(t->plan->layout.offset[i] + t->params->tensors[i].count) * element;
    SPT_TRY(t->backend->ops->download(t->backend, gap, (const unsigned char *)slab + at, GAP * element));
    for (size_t j = 0; j < GAP * element; j++)
      if (gap[j] != 0)
        return SPT_FAIL(SPT_ERR_RESOURCE, "%s slab: the gap after %s was overwritten", kind,
                        t->params->tensors[i].name);
  }
  return SPT_OK;
}

/* The masters' gaps: where they are sharded, the copies' gaps are rounded from the owners', at every gather. */
static spt_status check_parameter_gaps(const trainer *t) {
  if (t->shards) return check_gaps(t, t->copies.values, spt_dtype_size(SPT_BF16), "bf16 parameters");
  return check_gaps(t, t->parameters, sizeof *t->parameters, "parameters");
}

spt_status trainer_check_red_zones(const trainer *t) {
  SPT_TRY(check_parameter_gaps(t));
  SPT_TRY(check_gaps(t, t->gradients, sizeof *t->gradients, "gradients"));
  SPT_TRY(spt_slab_check(&t->parameter_slab));
  SPT_TRY(spt_slab_check(&t->gradient_slab));
  SPT_TRY(spt_slab_check(&t->copy_slab));
  SPT_TRY(spt_optimizer_check(t->optimizer));
  return spt_model_check(t->model);
}
