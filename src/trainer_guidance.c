/* Self-guided training (core/guidance.h): the guides' alphas by pass, their first values, and their end, after which the run goes on without them.
 *
 * When guidance ends, everything made from the parameter table is made anew from the table without guides. What a rank owns of the rest is the same
 * in both plans, so that parameters and optimizer state are copied from slab to slab inside each rank. Gradients, activations and compute weights
 * are freed first: the peak does not grow. */
#include "trainer.h"

#include "core/guidance.h"

#include <stdlib.h>
#include <string.h>

struct trainer_guidance {
  int64_t matrices; /* layers·SPT_MATRICES */
  float *alphas;    /* [matrices] */
};

spt_status trainer_guidance_open(trainer *t) {
  if (!t->config.model.guided) return SPT_OK;
  trainer_guidance *guidance = t->guidance = calloc(1, sizeof *guidance);
  if (guidance) {
    guidance->matrices = t->config.model.layers * SPT_MATRICES;
    guidance->alphas = calloc((size_t)guidance->matrices, sizeof *guidance->alphas);
  }
  if (!guidance || !guidance->alphas) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for guidance");
  t->guided_steps = spt_guidance_steps(&t->config.guidance, t->config.schedule.steps);
  return SPT_OK;
}

void trainer_guidance_close(trainer *t) {
  if (!t->guidance) return;
  free(t->guidance->alphas);
  free(t->guidance);
  t->guidance = NULL;
}

/* ---- first values ---- */

static spt_status init_guide(trainer *t, int index, void *context) {
  (void)context;
  const int guided = spt_params_guided_by(t->params, index);
  int64_t begin, end;
  if (guided < 0) return SPT_OK;
  const int guide = t->params->pairs[index].a;
  trainer_owned_range(t, guide, &begin, &end);
  if (begin >= end) return SPT_OK;
  const spt_pair *pair = &t->params->pairs[guided];
  const size_t a_bytes = (size_t)(pair->m * pair->r) * sizeof(float), b_bytes = (size_t)(pair->n * pair->r) * sizeof(float),
               bytes = (size_t)(end - begin) * sizeof(float);
  const int64_t *offset = t->plan->layout.offset;
  spt_backend *backend = t->backend;
  float *a = malloc(a_bytes), *b = malloc(b_bytes), *w = malloc(bytes);
  spt_status status = a && b && w ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory initialising %s", t->params->tensors[guide].name);
  if (status == SPT_OK) {
#pragma omp critical(upload) // a device's copies are one thread's at a time
    {
      status = backend->ops->download(backend, a, t->parameters + offset[pair->a], a_bytes);
      if (status == SPT_OK) status = backend->ops->download(backend, b, t->parameters + offset[pair->b], b_bytes);
    }
  }
  if (status == SPT_OK) status = spt_params_init_guide(pair, a, b, begin, end, w);
  if (status == SPT_OK) {
#pragma omp critical(upload)
    status = backend->ops->upload(backend, t->parameters + offset[guide] + begin, w, bytes);
  }
  free(a);
  free(b);
  free(w);
  return status;
}

spt_status trainer_guidance_init(trainer *t) {
  if (!t->guidance) return SPT_OK;
  SPT_TRY(spt_comm_agree(t->comm, trainer_for_pairs(t, init_guide, NULL), NULL)); // W_0 = A_0·B_0ᵀ -- arXiv:2602.12429, Eq. 18
  return spt_data_parallel_gather(t->data_parallel);
}

/* ---- alphas ---- */

void trainer_guidance_train(trainer *t, int64_t pass) {
  trainer_guidance *guidance = t->guidance;
  if (!guidance) return;
  const double alpha = spt_guidance_alpha(t->guided_steps, t->step);
  const int64_t batch = t->tree ? trainer_tree_first_batch(t) + pass : pass; // the tree's result may not depend on the ranks
  if (t->config.guidance.stochastic)
    spt_guidance_draw(t->config.run.seed, t->step, batch, alpha, guidance->matrices, guidance->alphas);
  else
    for (int64_t i = 0; i < guidance->matrices; i++) guidance->alphas[i] = (float)alpha;
  spt_model_set_guidance(t->model, guidance->alphas);
}

void trainer_guidance_evaluate(trainer *t, int64_t step, bool as_trained) {
  trainer_guidance *guidance = t->guidance;
  if (!guidance) return;
  const double alpha = spt_guidance_alpha(t->guided_steps, step);
  for (int64_t i = 0; i < guidance->matrices; i++) guidance->alphas[i] = (float)alpha;
  spt_model_set_guidance(t->model, as_trained ? guidance->alphas : NULL);
}

/* ---- the end ---- */

/* What the run had with guides, until it is copied. */
typedef struct guided_parts {
  spt_params *params;
  spt_shard_plan *plan;
  spt_slab slab;
  float *parameters;
  spt_optimizer *optimizer;
} guided_parts;

bool trainer_guidance_is_over(const trainer *t) {
  return t->guidance && t->step == t->guided_steps;
}

static spt_status copy_parameters(trainer *t, const guided_parts *from) {
  for (int i = 0; i < t->params->tensor_count; i++) {
    const spt_tensor *tensor = &t->params->tensors[i];
    const int old = spt_params_find(from->params, tensor->name);
    SPT_TRY(t->backend->ops->add(t->backend, tensor->count, from->parameters + from->plan->layout.offset[old], NULL,
                                 t->parameters + t->plan->layout.offset[i]));
  }
  return t->backend->ops->synchronize(t->backend); // the old slab is freed next
}

static const spt_state_piece *find_piece(const guided_parts *from, const char *tensor, const spt_state_piece *wanted) {
  int count;
  const spt_state_piece *pieces = spt_optimizer_state(from->optimizer, &count);
  for (int i = 0; i < count; i++)
    if (strcmp(pieces[i].kind, wanted->kind) == 0 && pieces[i].begin == wanted->begin && pieces[i].end == wanted->end &&
        strcmp(from->params->tensors[pieces[i].tensor].name, tensor) == 0)
      return &pieces[i];
  return NULL;
}

static spt_status copy_state(trainer *t, const guided_parts *from) {
  int count;
  const spt_state_piece *pieces = spt_optimizer_state(t->optimizer, &count);
  for (int i = 0; i < count; i++) {
    const char *name = t->params->tensors[pieces[i].tensor].name;
    const spt_state_piece *old = find_piece(from, name, &pieces[i]);
    if (!old) return SPT_FAIL(SPT_ERR_RESOURCE, "ending guidance: rank %d does not hold %s of %s", t->comm->rank, pieces[i].kind, name);
    SPT_TRY(t->backend->ops->add(t->backend, old->end - old->begin, old->values, NULL, pieces[i].values));
  }
  spt_optimizer_set_applied(t->optimizer, spt_optimizer_applied(from->optimizer));
  return t->backend->ops->synchronize(t->backend);
}

/* Parameters, then gradients and optimizer state, each freed where it was before more is taken. Local. */
static spt_status move(trainer *t, guided_parts *from) {
  SPT_TRY(trainer_open_table(t));
  SPT_TRY(trainer_open_slab(t, "parameters", t->masters, &t->parameter_slab, &t->parameters));
  SPT_TRY(copy_parameters(t, from));
  spt_slab_fini(&from->slab);
  SPT_TRY(trainer_open_slab(t, "gradients", &t->plan->layout, &t->gradient_slab, &t->gradients));
  SPT_TRY(trainer_open_optimizer(t));
  return copy_state(t, from);
}

spt_status trainer_guidance_end(trainer *t) {
  const spt_flops flops = t->flops;
  const int64_t guides = t->params->guide_count;
  SPT_TRY(trainer_audit_check(t));
  spt_watchdog_at(t->here, t->step, SPT_PHASE_SAVE);
  trainer_finish_save(t);
  spt_watchdog_at(t->here, t->step, SPT_PHASE_REFRESH);
  trainer_close_step(t);
  spt_slab_fini(&t->gradient_slab);
  guided_parts from = {t->params, t->plan, t->parameter_slab, t->parameters, t->optimizer};
  t->params = NULL;
  t->plan = NULL;
  t->optimizer = NULL;
  t->parameter_slab = (spt_slab){0};
  trainer_guidance_close(t);
  t->config.model.guided = false;
  const spt_status status = move(t, &from);
  spt_optimizer_close(&from.optimizer);
  spt_slab_fini(&from.slab);
  spt_shard_plan_close(&from.plan);
  spt_params_close(&from.params);
  t->flops.guide_forward = flops.guide_forward; // of the steps so far, for their records
  SPT_TRY(spt_comm_agree(t->comm, status, NULL));
  SPT_TRY(spt_comm_agree(t->comm, trainer_spectral_renew(t), NULL));
  SPT_TRY(trainer_open_step(t));
  if (t->comm->rank == 0)
    trainer_progress_event("step %lld: guidance ends, its %lld elements of guides are freed", (long long)t->step, (long long)guides);
  return spt_comm_agree(t->comm, spt_model_refresh(t->model), NULL);
}
