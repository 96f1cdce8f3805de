/* What must hold of a run's memory: finite masters before a save, untouched gaps between tensors. */
#include "trainer.h"

spt_status trainer_parameters_finite(trainer *t, bool *finite_p) {
  double bad = 0;
  spt_control found = {0};
  spt_status status = t->backend->ops->upload(t->backend, t->control, &found, sizeof found);
  for (int i = 0; status == SPT_OK && i < t->model_item_count; i++) {
    const spt_checkpoint_item *item = &t->items[i];
    if (item->begin < item->end)
      status = t->backend->ops->gradient_stats(t->backend, item->end - item->begin, item->values, t->control);
  }
  if (status == SPT_OK) status = t->backend->ops->download(t->backend, &found, t->control, sizeof found);
  bad = found.non_finite;
  SPT_TRY(spt_comm_agree(t->comm, status, NULL));
  SPT_TRY(t->comm->ops->reduce_double(t->comm, &bad, 1, SPT_REDUCE_SUM));
  *finite_p = bad == 0;
  return SPT_OK;
}

/* Red-zone builds leave at least this many floats after each tensor of the parameter and gradient slabs; they stay
 * zero. */
enum { GAP = 16 };

static spt_status check_gaps(const trainer *t, const float *slab, const char *kind) {
  for (int i = 0; i < t->params->tensor_count; i++) {
    float gap[GAP];
    SPT_TRY(t->backend->ops->download(t->backend, gap, slab + t->plan->layout.offset[i] + t->params->tensors[i].count, sizeof gap));
    for (int j = 0; j < GAP; j++)
      if (gap[j] != 0)
        return SPT_FAIL(SPT_ERR_RESOURCE, "%s slab: the gap after %s was overwritten", kind,
                        t->params->tensors[i].name);
  }
  return SPT_OK;
}

spt_status trainer_check_red_zones(const trainer *t) {
  SPT_TRY(check_gaps(t, t->parameters, "parameters"));
  SPT_TRY(check_gaps(t, t->gradients, "gradients"));
  SPT_TRY(spt_slab_check(&t->parameter_slab));
  SPT_TRY(spt_slab_check(&t->gradient_slab));
  SPT_TRY(spt_optimizer_check(t->optimizer));
  return spt_model_check(t->model);
}
