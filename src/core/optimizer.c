/* Spectron and its ablations on owned factor pairs and dense matrices, AdamW on owned slices (arXiv:2602.12429, Alg. 1). Pairs of equal
 * shape go through Newton–Schulz together, in chunks of a bounded workspace; each matrix's arithmetic is its own, so
 * that neither the owner nor the chunk changes a bit of it. */
#include "optimizer.h"

#include "gradient_groups.h"
#include "newton_schulz.h"
#include "rng.h"
#include "slab.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES_MAX = 64 << 20, CHUNK_PAIRS_MAX = 64 };

/* An owned pair with its state; share_index: position in the share (and in checkpoints), the array is sorted by shape.
 */
typedef struct owned_pair {
  const spt_pair *pair;
  int share_index;
  size_t momentum[2], u[2]; // offsets in the state slab, A and B
} owned_pair;

typedef struct owned_slice {
  spt_slice slice;
  size_t m, v;
} owned_slice;

/* A chunk: pairs of one shape updated together. */
typedef struct chunk {
  int first, count; // in the sorted pairs
} chunk;

struct spt_optimizer {
  spt_backend *backend; /* not owned */
  spt_optimizer_config config;
  const spt_params *params;      /* not owned */
  const spt_layout *layout;      /* not owned; of the gradients, and of the masters unless they are placed apart */
  const spt_layout *masters;     /* not owned */
  float *parameters, *gradients; /* not owned */
  spt_slab state, workspace;
  owned_pair *pairs;
  int pair_count;
  owned_slice *slices;
  int slice_count;
  chunk *chunks;
  int chunk_count, chunk_pairs_max;
  spt_factor_entry *entries; /* [2·chunk_pairs_max] */
  void **lists;              /* [5·2·chunk_pairs_max] */
  size_t scratch, sigmas;    /* workspace: Newton–Schulz; (2·pair_count) by sorted pair */
  spt_state_piece *pieces;
  int piece_count;
  int64_t applied;
  spt_update_observer observer; /* updated is NULL: none */
};

static const spt_tensor *factor(const spt_optimizer *optimizer, const owned_pair *owned, int side) {
  return &optimizer->params->tensors[spt_pair_tensor(owned->pair, side)];
}

/* Newton–Schulz runs in the job's precision; directions that are only scaled stay fp32. */
static spt_dtype direction_dtype(spt_method method, spt_dtype act) {
  return spt_method_orthogonalizes(method) ? act : SPT_F32;
}
/* A dense matrix has no second factor whose norm would amplify its update: rho is eta as it is. */
static bool renormalizes(spt_method method, const spt_pair *pair) {
  return (method == SPT_METHOD_SPECTRON || method == SPT_METHOD_RENORM) && !spt_pair_is_dense(pair);
}

/* ---- plan ---- */

static int compare_shape(const void *left, const void *right) {
  const owned_pair *p = left, *q = right;
  if (p->pair->m != q->pair->m) return p->pair->m < q->pair->m ? -1 : 1;
  if (p->pair->n != q->pair->n) return p->pair->n < q->pair->n ? -1 : 1;
  if (p->pair->r != q->pair->r) return p->pair->r < q->pair->r ? -1 : 1;
  return p->share_index - q->share_index;
}

static bool same_shape(const spt_pair *p, const spt_pair *q) {
  return p->m == q->m && p->n == q->n && p->r == q->r;
}

/* Rows and columns of a pair's tensors: A (m, r) and B (n, r), or W (m, n). */
static int64_t side_rows(const spt_pair *pair, int side) {
  return side ? pair->n : pair->m;
}
static int64_t side_cols(const spt_pair *pair) {
  return spt_pair_is_dense(pair) ? pair->n : pair->r;
}
/* Elements that the direction of one side takes in the workspace. */
static int64_t direction_elements(const spt_pair *pair, int side) {
  return (side_rows(pair, side) * side_cols(pair) + 31) / 32 * 32;
}

/* Elements of workspace one pair needs: the normalised momenta and, to orthogonalise them, Newton–Schulz's scratch. */
static int64_t pair_workspace(const spt_optimizer_config *config, const spt_pair *pair) {
  int64_t elements = 0;
  for (int side = 0; side < spt_pair_sides(pair); side++) {
    elements += direction_elements(pair, side);
    if (spt_method_orthogonalizes(config->method)) elements += spt_newton_schulz_scratch(side_rows(pair, side), side_cols(pair));
  }
  return elements;
}

/* Sorts the pairs by shape, cuts them into chunks and reserves both slabs. Allocates only host lists. */
static spt_status plan(spt_optimizer *optimizer, const spt_share *share, spt_dtype act) {
  const spt_params *params = optimizer->params;
  spt_slab_init(&optimizer->state, "optimizer state");
  spt_slab_init(&optimizer->workspace, "optimizer workspace");
  optimizer->pair_count = share->pair_count;
  optimizer->slice_count = share->slice_count;
  optimizer->pairs = calloc((size_t)share->pair_count + 1, sizeof *optimizer->pairs);
  optimizer->slices = calloc((size_t)share->slice_count + 1, sizeof *optimizer->slices);
  optimizer->chunks = calloc((size_t)share->pair_count + 1, sizeof *optimizer->chunks);
  if (!optimizer->pairs || !optimizer->slices || !optimizer->chunks)
    return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory planning the optimizer");

  for (int i = 0; i < share->pair_count; i++) {
    owned_pair *owned = &optimizer->pairs[i];
    owned->pair = &params->pairs[share->pairs[i]];
    owned->share_index = i;
    for (int side = 0; side < spt_pair_sides(owned->pair); side++) {
      const spt_tensor *tensor = factor(optimizer, owned, side);
      owned->momentum[side] = spt_slab_reserve(&optimizer->state, (size_t)tensor->count * sizeof(float));
      if (!spt_pair_is_dense(owned->pair)) owned->u[side] = spt_slab_reserve(&optimizer->state, (size_t)tensor->rows * sizeof(float));
    }
  }
  for (int i = 0; i < share->slice_count; i++) {
    owned_slice *owned = &optimizer->slices[i];
    owned->slice = share->slices[i];
    const size_t bytes = (size_t)(owned->slice.end - owned->slice.begin) * sizeof(float);
    owned->m = spt_slab_reserve(&optimizer->state, bytes);
    owned->v = spt_slab_reserve(&optimizer->state, bytes);
  }
  qsort(optimizer->pairs, (size_t)share->pair_count, sizeof *optimizer->pairs, compare_shape);

  int64_t scratch = 0;
  for (int i = 0; i < share->pair_count;) {
    const spt_pair *pair = optimizer->pairs[i].pair;
    const int64_t need = pair_workspace(&optimizer->config, pair) *
                         (int64_t)spt_dtype_size(direction_dtype(optimizer->config.method, act));
    int64_t fit = CHUNK_BYTES_MAX / need;
    if (fit < 1) fit = 1;
    if (fit > CHUNK_PAIRS_MAX) fit = CHUNK_PAIRS_MAX;
    int count = 1;
    while (count < fit && i + count < share->pair_count && same_shape(pair, optimizer->pairs[i + count].pair)) count++;
    optimizer->chunks[optimizer->chunk_count++] = (chunk){i, count};
    if (count > optimizer->chunk_pairs_max) optimizer->chunk_pairs_max = count;
    if (count * need > scratch) scratch = count * need;
    i += count;
  }
  optimizer->scratch = spt_slab_reserve(&optimizer->workspace, (size_t)scratch);
  optimizer->sigmas = spt_slab_reserve(&optimizer->workspace, 2 * (size_t)share->pair_count * sizeof(float));
  return SPT_OK;
}

static void free_plan(spt_optimizer *optimizer) {
  spt_slab_fini(&optimizer->state);
  spt_slab_fini(&optimizer->workspace);
  free(optimizer->pairs);
  free(optimizer->slices);
  free(optimizer->chunks);
  free(optimizer->entries);
  free(optimizer->lists);
  free(optimizer->pieces);
}

void spt_optimizer_measure(const spt_optimizer_config *config, const spt_params *params, const spt_share *share,
                           spt_dtype act, size_t *state_bytes_p, size_t *workspace_bytes_p) {
  spt_optimizer optimizer = {.config = *config, .params = params};
  *state_bytes_p = *workspace_bytes_p = 0;
  if (plan(&optimizer, share, act) == SPT_OK) {
    *state_bytes_p = optimizer.state.bytes;
    *workspace_bytes_p = optimizer.workspace.bytes;
  }
  free_plan(&optimizer);
}

/* ---- opening ---- */

static int compare_pieces(const void *left, const void *right) {
  const spt_state_piece *p = left, *q = right;
  if (p->tensor != q->tensor) return p->tensor - q->tensor;
  const int kind = strcmp(p->kind, q->kind);
  return kind ? kind : (p->begin > q->begin) - (p->begin < q->begin);
}

static void list_pieces(spt_optimizer *optimizer) {
  spt_state_piece *piece = optimizer->pieces;
  for (int i = 0; i < optimizer->pair_count; i++) {
    const owned_pair *owned = &optimizer->pairs[i];
    for (int side = 0; side < spt_pair_sides(owned->pair); side++) {
      const int index = spt_pair_tensor(owned->pair, side);
      const spt_tensor *tensor = factor(optimizer, owned, side);
      *piece++ = (spt_state_piece){index,
                                   "momentum",
                                   tensor->rows,
                                   tensor->cols,
                                   0,
                                   tensor->count,
                                   spt_slab_at(&optimizer->state, owned->momentum[side])};
      if (spt_pair_is_dense(owned->pair)) continue;
      *piece++ = (spt_state_piece){
          index, "power_u", tensor->rows, 1, 0, tensor->rows, spt_slab_at(&optimizer->state, owned->u[side])};
    }
  }
  for (int i = 0; i < optimizer->slice_count; i++) {
    const owned_slice *owned = &optimizer->slices[i];
    const spt_slice slice = owned->slice;
    const spt_tensor *tensor = &optimizer->params->tensors[slice.tensor];
    *piece++ = (spt_state_piece){slice.tensor,
                                 "adam_m",
                                 tensor->rows,
                                 tensor->cols,
                                 slice.begin,
                                 slice.end,
                                 spt_slab_at(&optimizer->state, owned->m)};
    *piece++ = (spt_state_piece){slice.tensor,
                                 "adam_v",
                                 tensor->rows,
                                 tensor->cols,
                                 slice.begin,
                                 slice.end,
                                 spt_slab_at(&optimizer->state, owned->v)};
  }
  optimizer->piece_count = (int)(piece - optimizer->pieces);
  qsort(optimizer->pieces, (size_t)optimizer->piece_count, sizeof *optimizer->pieces, compare_pieces);
}

/* u ~ N(0, 1)^rows, normalised (Alg. 1 line 1); keyed by the tensor's name, so that it is the same for every owner. */
static spt_status init_power_vectors(spt_optimizer *optimizer, uint64_t seed) {
  for (int i = 0; i < optimizer->piece_count; i++) {
    const spt_state_piece *piece = &optimizer->pieces[i];
    if (strcmp(piece->kind, "power_u") != 0) continue;
    float *u = malloc((size_t)piece->rows * sizeof *u);
    if (!u) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for a power-iteration vector");
    char name[SPT_NAME_MAX + 16] = "power_u:";
    strcat(name, optimizer->params->tensors[piece->tensor].name);
    spt_random_normal(seed, spt_stream_of(name), 0, piece->rows, 1.0, u);
    double squares = 0;
    for (int64_t j = 0; j < piece->rows; j++) squares += (double)u[j] * u[j];
    for (int64_t j = 0; j < piece->rows; j++) u[j] = (float)(u[j] / sqrt(squares));
    const spt_status status =
        optimizer->backend->ops->upload(optimizer->backend, piece->values, u, (size_t)piece->rows * sizeof *u);
    free(u);
    SPT_TRY(status);
  }
  return SPT_OK;
}

spt_status spt_optimizer_open(spt_backend *backend, const spt_optimizer_config *config, const spt_params *params,
                              const spt_layout *layout, const spt_share *share, float *parameters, float *gradients,
                              uint64_t seed, spt_optimizer **optimizer_p) {
  spt_status status = SPT_OK;
  spt_optimizer *optimizer = calloc(1, sizeof *optimizer);
  if (!optimizer) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory opening the optimizer");
  optimizer->backend = backend;
  optimizer->config = *config;
  optimizer->params = params;
  optimizer->layout = optimizer->masters = layout;
  optimizer->parameters = parameters;
  optimizer->gradients = gradients;
  SPT_TRY_GOTO(plan(optimizer, share, backend->act), fail);
  SPT_TRY_GOTO(spt_slab_allocate(&optimizer->state, backend), fail);
  SPT_TRY_GOTO(spt_slab_allocate(&optimizer->workspace, backend), fail);
  const size_t factors = 2 * (size_t)optimizer->chunk_pairs_max;
  optimizer->entries = calloc(factors + 1, sizeof *optimizer->entries);
  optimizer->lists = calloc(5 * factors + 1, sizeof *optimizer->lists);
  optimizer->pieces =
      calloc(4 * (size_t)share->pair_count + 2 * (size_t)share->slice_count + 1, sizeof *optimizer->pieces);
  if (!optimizer->entries || !optimizer->lists || !optimizer->pieces) {
    status = SPT_FAIL(SPT_ERR_RESOURCE, "out of memory opening the optimizer");
    goto fail;
  }
  list_pieces(optimizer);
  SPT_TRY_GOTO(init_power_vectors(optimizer, seed), fail);
  *optimizer_p = optimizer;
  return SPT_OK;
fail:
  spt_optimizer_close(&optimizer);
  return status;
}

void spt_optimizer_place_masters(spt_optimizer *optimizer, const spt_layout *masters) {
  optimizer->masters = masters;
}

void spt_optimizer_close(spt_optimizer **optimizer_p) {
  if (!*optimizer_p) return;
  free_plan(*optimizer_p);
  free(*optimizer_p);
  *optimizer_p = NULL;
}

const spt_state_piece *spt_optimizer_state(const spt_optimizer *optimizer, int *count_p) {
  *count_p = optimizer->piece_count;
  return optimizer->pieces;
}

int64_t spt_optimizer_applied(const spt_optimizer *optimizer) {
  return optimizer->applied;
}

void spt_optimizer_set_applied(spt_optimizer *optimizer, int64_t applied) {
  optimizer->applied = applied;
}

/* ---- the step ---- */

_Static_assert((int)SPT_GRADIENT_GROUPS == (int)SPT_CONTROL_GROUPS, "a sum for each group");

spt_status spt_optimizer_gradient_stats(spt_optimizer *optimizer, spt_control *control) {
  spt_backend *backend = optimizer->backend;
  for (int i = 0; i < optimizer->pair_count; i++) {
    const owned_pair *owned = &optimizer->pairs[i];
    for (int side = 0; side < spt_pair_sides(owned->pair); side++) {
      const float *gradient = optimizer->gradients + optimizer->layout->offset[spt_pair_tensor(owned->pair, side)];
      const spt_tensor *tensor = factor(optimizer, owned, side);
      SPT_TRY(backend->ops->gradient_stats(backend, tensor->count, gradient, spt_gradient_group(tensor), control));
    }
  }
  for (int i = 0; i < optimizer->slice_count; i++) {
    const spt_slice slice = optimizer->slices[i].slice;
    const float *gradient = optimizer->gradients + optimizer->layout->offset[slice.tensor] + slice.begin;
    const int group = spt_gradient_group(&optimizer->params->tensors[slice.tensor]);
    SPT_TRY(backend->ops->gradient_stats(backend, slice.end - slice.begin, gradient, group, control));
  }
  return SPT_OK;
}

/* Entries 2i, 2i + 1 are A, B of pair i, or entry i is dense matrix i; normalised momenta lie side by side in the workspace: all A, then all B. */
static void fill_entries(spt_optimizer *optimizer, const chunk *part, char *x) {
  const int sides = spt_pair_sides(optimizer->pairs[part->first].pair);
  const int64_t size = (int64_t)spt_dtype_size(direction_dtype(optimizer->config.method, optimizer->backend->act));
  float *sigmas = spt_slab_at(&optimizer->workspace, optimizer->sigmas);
  for (int side = 0; side < sides; side++) {
    for (int i = 0; i < part->count; i++) {
      const owned_pair *owned = &optimizer->pairs[part->first + i];
      const spt_tensor *tensor = factor(optimizer, owned, side);
      const int64_t offset = optimizer->layout->offset[spt_pair_tensor(owned->pair, side)];
      optimizer->entries[sides * i + side] =
          (spt_factor_entry){.rows = tensor->rows,
                             .cols = tensor->cols,
                             .w = optimizer->parameters + optimizer->masters->offset[spt_pair_tensor(owned->pair, side)],
                             .gradient = optimizer->gradients + offset,
                             .momentum = spt_slab_at(&optimizer->state, owned->momentum[side]),
                             .u = sides == 2 ? spt_slab_at(&optimizer->state, owned->u[side]) : NULL,
                             .sigma = sigmas + 2 * (part->first + i) + side,
                             .x = x};
      x += direction_elements(owned->pair, side) * size;
    }
  }
}

void spt_optimizer_observe(spt_optimizer *optimizer, const spt_update_observer *observer) {
  optimizer->observer = observer ? *observer : (spt_update_observer){NULL, NULL};
}

/* Tells the observer of the updates of a chunk's factors or dense matrices, by factor_update's formulas. */
static spt_status tell_chunk(const spt_optimizer *optimizer, const chunk *part, float lr, bool renormalize, spt_dtype dtype) {
  const double keep = (float)(1.0 - (double)lr * (double)(float)optimizer->config.weight_decay);
  const int sides = spt_pair_sides(optimizer->pairs[part->first].pair);
  for (int i = 0; i < part->count; i++) {
    const owned_pair *owned = &optimizer->pairs[part->first + i];
    float sigma_a = 0, sigma_b = 0, rho = lr;
    if (renormalize) {
      SPT_TRY(spt_optimizer_sigmas(optimizer, owned->share_index, &sigma_a, &sigma_b));
      rho = (float)((double)lr / ((double)sigma_a + (double)sigma_b + 1.0));
    }
    for (int side = 0; side < sides; side++) {
      const spt_update update = {.tensor = spt_pair_tensor(owned->pair, side),
                                 .end = factor(optimizer, owned, side)->count,
                                 .lr = lr,
                                 .keep = keep,
                                 .rho = rho,
                                 .direction = optimizer->entries[sides * i + side].x,
                                 .dtype = dtype};
      SPT_TRY(optimizer->observer.updated(optimizer->observer.context, &update));
    }
  }
  return SPT_OK;
}

/* Tells the observer of a slice's update, by adamw's formulas. */
static spt_status tell_slice(const spt_optimizer *optimizer, const owned_slice *owned, float lr, float decay,
                             int64_t applied) {
  const spt_optimizer_config *config = &optimizer->config;
  const double beta1 = (float)config->adamw.beta1, beta2 = (float)config->adamw.beta2, count = (double)applied;
  const spt_update update = {.tensor = owned->slice.tensor,
                             .begin = owned->slice.begin,
                             .end = owned->slice.end,
                             .lr = lr,
                             .keep = (float)(1.0 - (double)lr * (double)decay),
                             .rho = NAN,
                             .m = spt_slab_at(&optimizer->state, owned->m),
                             .v = spt_slab_at(&optimizer->state, owned->v),
                             .step_size = (float)((double)lr / (1.0 - pow(beta1, count))),
                             .second_scale = (float)(1.0 / (1.0 - pow(beta2, count))),
                             .eps = (float)config->adamw.eps};
  return optimizer->observer.updated(optimizer->observer.context, &update);
}

/* Orthogonalises one side of a chunk, in one batch. */
static spt_status orthogonalize(spt_optimizer *optimizer, const chunk *part, int side, char *scratch) {
  const int sides = spt_pair_sides(optimizer->pairs[part->first].pair);
  spt_factor_entry *entries = optimizer->entries;
  void **x = optimizer->lists;
  for (int i = 0; i < part->count; i++) x[i] = entries[sides * i + side].x;
  SPT_TRY(spt_newton_schulz(optimizer->backend, &optimizer->config, part->count, entries[side].rows, entries[side].cols,
                            optimizer->backend->act, x, scratch, optimizer->lists + part->count));
  for (int i = 0; i < part->count; i++) entries[sides * i + side].x = x[i];
  return SPT_OK;
}

/* Alg. 1 lines 7–16 for the pairs, or the dense matrices, of one chunk. */
static spt_status step_chunk(spt_optimizer *optimizer, const chunk *part, float lr, const spt_control *control,
                             bool observed) {
  spt_backend *backend = optimizer->backend;
  const spt_optimizer_config *config = &optimizer->config;
  const spt_dtype dtype = direction_dtype(config->method, backend->act);
  const spt_pair *shape = optimizer->pairs[part->first].pair;
  const int64_t size = (int64_t)spt_dtype_size(dtype);
  const int sides = spt_pair_sides(shape), entries = sides * part->count;
  const bool renormalize = renormalizes(config->method, shape);
  char *x = spt_slab_at(&optimizer->workspace, optimizer->scratch), *scratch = x;

  fill_entries(optimizer, part, x);
  SPT_TRY(backend->ops->factor_momentum(backend, entries, optimizer->entries, (float)config->momentum,
                                        config->method != SPT_METHOD_SGD, dtype, control));
  for (int side = 0; side < sides; side++) scratch += part->count * direction_elements(shape, side) * size;
  for (int side = 0; side < sides && spt_method_orthogonalizes(config->method); side++) {
    SPT_TRY(orthogonalize(optimizer, part, side, scratch));
    scratch += part->count * spt_newton_schulz_scratch(side_rows(shape, side), side_cols(shape)) * size;
  }
  if (renormalize)
    SPT_TRY(backend->ops->power_iteration(backend, entries, optimizer->entries, (int)config->power_steps, control));
  SPT_TRY(backend->ops->factor_update(backend, entries, optimizer->entries, lr, (float)config->weight_decay, renormalize, dtype, control));
  return observed ? tell_chunk(optimizer, part, lr, renormalize, dtype) : SPT_OK;
}

spt_status spt_optimizer_step(spt_optimizer *optimizer, double lr_factor, const spt_control *control) {
  spt_backend *backend = optimizer->backend;
  const spt_optimizer_config *config = &optimizer->config;
  const float lr = (float)(lr_factor * config->lr);
  const float adamw_lr = (float)(lr_factor * (config->adamw.lr < 0 ? config->lr : config->adamw.lr));
  int64_t applied = 0; // on a device the decision and the count are there, and nobody waits for them here
  if (backend->host_memory) {
    if (control->apply == 0) return SPT_OK;
    applied = ++optimizer->applied;
  }
  bool observed = optimizer->observer.updated != NULL;
  int64_t told_applied = applied;
  if (observed && !backend->host_memory) {
    spt_control seen;
    SPT_TRY(backend->ops->download(backend, &seen, control, sizeof seen));
    observed = seen.apply != 0;
    told_applied = seen.applied;
  }
  for (int i = 0; i < optimizer->chunk_count; i++)
    SPT_TRY(step_chunk(optimizer, &optimizer->chunks[i], lr, control, observed));
  for (int i = 0; i < optimizer->slice_count; i++) {
    const owned_slice *owned = &optimizer->slices[i];
    const spt_slice slice = owned->slice;
    const spt_tensor *tensor = &optimizer->params->tensors[slice.tensor];
    const int64_t offset = optimizer->layout->offset[slice.tensor] + slice.begin;
    const float decay = tensor->decay ? (float)config->weight_decay : 0.0f;
    float *w = optimizer->parameters + (optimizer->masters->offset[slice.tensor] + slice.begin);
    SPT_TRY(backend->ops->adamw(backend, slice.end - slice.begin, w,
                                optimizer->gradients + offset, spt_slab_at(&optimizer->state, owned->m),
                                spt_slab_at(&optimizer->state, owned->v), adamw_lr,
                                decay, (float)config->adamw.beta1, (float)config->adamw.beta2,
                                (float)config->adamw.eps, applied, control));
    if (observed) SPT_TRY(tell_slice(optimizer, owned, adamw_lr, decay, told_applied));
  }
  return SPT_OK;
}

spt_status spt_optimizer_check(const spt_optimizer *optimizer) {
  SPT_TRY(spt_slab_check(&optimizer->state));
  return spt_slab_check(&optimizer->workspace);
}

spt_status spt_optimizer_sigmas(const spt_optimizer *optimizer, int i, float *sigma_a_p, float *sigma_b_p) {
  float sigma[2];
  for (int j = 0; j < optimizer->pair_count; j++) {
    if (optimizer->pairs[j].share_index != i) continue;
    const float *sigmas = spt_slab_at(&optimizer->workspace, optimizer->sigmas);
    SPT_TRY(optimizer->backend->ops->download(optimizer->backend, sigma, sigmas + (size_t)2 * (size_t)j, sizeof sigma));
    *sigma_a_p = sigma[0];
    *sigma_b_p = sigma[1];
    return SPT_OK;
  }
  return SPT_FAIL(SPT_ERR_USAGE, "pair %d of %d is not in this share", i, optimizer->pair_count);
}
