/* The telemetry of [metrics] spectral_every (arXiv:2602.12429, Figures 2 and 3).
 *
 * Before the update of a step that is due, a probe takes the inputs of every matrix. The optimizer tells what it does to
 * the tensors; that goes, exactly as applied, into the gradient slab, whose gradients are used up, and is gathered as the
 * parameters are. Then each rank measures its share of the matrices, and all learn all results. Training is not touched. */
#include "trainer.h"

#include "job_cost.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One of the table's pairs: a factor pair W = A·Bᵀ, or a dense matrix. */
typedef struct matrix {
  const spt_pair *pair;
  int rank; /* that measures it */
} matrix;

/* What the owner of its update tells of each matrix; the same on all ranks after a maximum. */
enum { TOLD_LR, TOLD_KEEP, TOLD_RHO, TOLD };

struct trainer_spectral {
  matrix *matrices;
  int count;
  int *own; /* [own_count] matrices measured here, the costly first */
  int own_count;
  double *told;   /* [count·TOLD] */
  spt_telemetry *found; /* [count] */
  spt_metric_matrix *records; /* [count] */
  spt_metric_matrix *shown; /* [shown_count] what was measured last */
  int shown_count;
  spt_metric_matrix *before; /* `shown` of a table that is no more; NULL: none */
  int64_t rows, positions[JOB_PROBE_ROWS_MAX];
  int32_t *ids;  /* (seq_len) of the probe */
  float *inputs; /* spt_probe_floats */
  int workers;
  size_t workspace, copies; /* doubles, and floats, of one worker */
  double *workspaces;
  float *copied, *scratch; /* where memory is not the host's */
  int64_t taken; /* the step that was measured last; 0: none */
  double seconds;
  int64_t violations;
};

/* ---- opening ---- */

static double cost(const matrix *one) {
  const double m = (double)one->pair->m, n = (double)one->pair->n, s = m < n ? m : n;
  const double k = one->pair->r > 0 ? 2 * (double)one->pair->r : s;
  return k * k * (m + n) + 10 * k * k * k + 200 * k * (m + n); // Gram products, their powers, Lanczos steps
}

/* The dearer first; then in the table's order. */
static int dearer(const void *left, const void *right, void *matrices) {
  const int i = *(const int *)left, j = *(const int *)right;
  const double a = cost((const matrix *)matrices + i), b = cost((const matrix *)matrices + j);
  return a != b ? (a < b ? 1 : -1) : i - j;
}

/* Each by the name of its tensors without .A or .weight. */
static void list_matrices(trainer_spectral *spectral, const spt_params *params) {
  spectral->count = params->pair_count;
  for (int i = 0; i < params->pair_count; i++) {
    char *name = spectral->records[i].name;
    spectral->matrices[i].pair = &params->pairs[i];
    memcpy(name, params->tensors[params->pairs[i].a].name, SPT_NAME_MAX);
    char *end = strrchr(name, '.');
    if (end && (strcmp(end, ".A") == 0 || strcmp(end, ".weight") == 0)) *end = '\0';
  }
}

/* The dearest matrix first, to the rank with the least so far; where masters are their owners' alone, to its owner. */
static spt_status share_out(trainer_spectral *spectral, const trainer *t) {
  int *order = calloc((size_t)spectral->count + 1, sizeof *order);
  double *load = calloc((size_t)t->comm->size, sizeof *load);
  if (!order || !load) {
    free(order);
    free(load);
    return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the telemetry of [metrics] spectral_every");
  }
  for (int i = 0; i < spectral->count; i++) order[i] = i;
  qsort_r(order, (size_t)spectral->count, sizeof *order, dearer, spectral->matrices);
  for (int i = 0; i < spectral->count; i++) {
    matrix *one = &spectral->matrices[order[i]];
    if (t->shards && spt_method_uses_pairs(t->config.optimizer.method)) // nobody else has its masters
      one->rank = t->plan->pair_owner[order[i]];
    else
      for (int rank = 1; rank < t->comm->size; rank++)
        if (load[rank] < load[one->rank]) one->rank = rank;
    load[one->rank] += cost(one);
    if (one->rank == t->comm->rank) spectral->own[spectral->own_count++] = order[i];
  }
  free(order);
  free(load);
  return SPT_OK;
}

static spt_status open_workers(trainer_spectral *spectral, const trainer *t) {
  const job_telemetry telemetry = job_count_telemetry(&t->config, t->params, spectral->own, spectral->own_count, t->backend, t->comm->size);
  const size_t workers = (size_t)telemetry.workers;
  spectral->workers = telemetry.workers;
  spectral->workspace = telemetry.doubles;
  spectral->copies = telemetry.floats;
  spectral->workspaces = malloc(workers * telemetry.doubles * sizeof(double) + 1);
  spectral->copied = malloc(workers * telemetry.floats * sizeof(float) + 1);
  spectral->scratch = malloc(t->backend->host_memory ? 1 : SPT_UPDATE_SCRATCH * sizeof(float));
  if (spectral->workspaces && spectral->copied && spectral->scratch) return SPT_OK;
  return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the telemetry of [metrics] spectral_every (%.0f MiB)",
                  (double)(workers * (telemetry.doubles * sizeof(double) + telemetry.floats * sizeof(float))) / (1 << 20));
}

/* The probe: the first window of the validation data, else of the training data, at evenly spaced positions. */
static spt_status open_probe(trainer_spectral *spectral, const trainer *t) {
  const int64_t seq_len = t->config.model.seq_len;
  spectral->rows = job_probe_rows(&t->config.model);
  for (int64_t i = 0; i < spectral->rows; i++) spectral->positions[i] = (2 * i + 1) * seq_len / (2 * spectral->rows);
  const bool read = spectral->ids != NULL;
  if (!read) spectral->ids = malloc((size_t)seq_len * sizeof *spectral->ids);
  spectral->inputs = malloc((size_t)spt_probe_floats(&t->config.model, spectral->rows) * sizeof(float));
  if (!spectral->ids || !spectral->inputs) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the telemetry's probe");
  if (read) return SPT_OK;
  return spt_token_stream_read(t->validation ? t->validation : t->train, 0, seq_len, spectral->ids);
}

static spt_status open_parts(trainer_spectral *spectral, const trainer *t) {
  const size_t pairs = (size_t)t->params->pair_count;
  spectral->matrices = calloc(pairs + 1, sizeof *spectral->matrices);
  spectral->own = calloc(pairs + 1, sizeof *spectral->own);
  spectral->told = calloc(pairs * TOLD + 1, sizeof *spectral->told);
  spectral->found = calloc(pairs + 1, sizeof *spectral->found);
  spectral->records = calloc(pairs + 1, sizeof *spectral->records);
  if (!spectral->matrices || !spectral->own || !spectral->told || !spectral->found || !spectral->records)
    return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the telemetry of [metrics] spectral_every");
  list_matrices(spectral, t->params);
  SPT_TRY(share_out(spectral, t));
  SPT_TRY(open_probe(spectral, t));
  return open_workers(spectral, t);
}

spt_status trainer_spectral_open(trainer *t) {
  if (t->config.metrics.spectral_every == 0) return SPT_OK;
  t->spectral = calloc(1, sizeof *t->spectral);
  if (!t->spectral) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the telemetry of [metrics] spectral_every");
  return open_parts(t->spectral, t);
}

static void free_parts(trainer_spectral *spectral) {
  void *const parts[] = {spectral->matrices, spectral->own,    spectral->told,   spectral->found,
                         spectral->records,  spectral->ids,    spectral->inputs,     spectral->workspaces, spectral->copied,
                         spectral->scratch,  spectral->before,  spectral};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) free(parts[i]);
}

void trainer_spectral_close(trainer *t) {
  if (t->spectral) free_parts(t->spectral);
  t->spectral = NULL;
}

spt_status trainer_spectral_renew(trainer *t) {
  trainer_spectral *old = t->spectral, *renewed = old ? calloc(1, sizeof *renewed) : NULL;
  if (!old) return SPT_OK;
  if (!renewed) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the telemetry of [metrics] spectral_every");
  renewed->ids = old->ids; // the probe is read once
  old->ids = NULL;
  renewed->taken = old->taken;
  renewed->seconds = old->seconds;
  renewed->violations = old->violations;
  renewed->shown = renewed->before = old->records;
  renewed->shown_count = old->count;
  old->records = NULL;
  free_parts(old);
  t->spectral = renewed;
  return open_parts(renewed, t);
}

/* ---- a step ---- */

bool trainer_spectral_due(const trainer *t, int64_t step) {
  return t->spectral && step % t->config.metrics.spectral_every == 0;
}

static void spend(trainer *t, double since) {
  const double seconds = trainer_now() - since;
  t->spectral->seconds += seconds;
  t->times.spectral += seconds;
}

/* Keeps what was done to a matrix in the place of its gradient. */
static spt_status keep_update(void *context, const spt_update *update) {
  trainer *t = context;
  trainer_spectral *spectral = t->spectral;
  const int index = t->params->tensors[update->tensor].pair;
  if (index < 0) return SPT_OK;
  const double start = trainer_now();
  double *told = spectral->told + (size_t)index * TOLD;
  told[TOLD_LR] = update->lr;
  told[TOLD_KEEP] = update->keep;
  if (isfinite(update->rho)) told[TOLD_RHO] = update->rho;
  SPT_TRY(spt_update_store(t->backend, update, spectral->scratch,
                           t->gradients + t->plan->layout.offset[update->tensor] + update->begin));
  spend(t, start);
  return SPT_OK;
}

spt_status trainer_spectral_begin(trainer *t) {
  trainer_spectral *spectral = t->spectral;
  spt_control control;
  if (!trainer_spectral_due(t, t->step + 1)) return SPT_OK;
  SPT_TRY(t->backend->ops->download(t->backend, &control, t->control, sizeof control)); // on a device, waits for the step so far
  if (control.apply == 0) return SPT_OK;
  const double start = trainer_now();
  const bool profiling = t->backend->profiling;
  const spt_update_observer observer = {t, keep_update};
  spt_optimizer_observe(t->optimizer, &observer);
  spectral->taken = t->step + 1;
  spectral->seconds = 0;
  for (int i = 0; i < spectral->count * TOLD; i++) spectral->told[i] = -INFINITY;
  t->backend->profiling = false;
  trainer_guidance_evaluate(t, t->step, true); // the same on all ranks, whatever they drew
  const spt_status status = spt_model_probe(t->model, spectral->ids, spectral->rows, spectral->positions, spectral->inputs);
  t->backend->profiling = profiling;
  spend(t, start);
  return status;
}

/* A tensor after the step, or its update: in place, or copied from the device to *copy_p, which moves on. */
static spt_status fetch(const trainer *t, const float *from, int64_t count, float **copy_p, const float **values_p) {
  spt_status status = SPT_OK;
  *values_p = from;
  if (t->backend->host_memory) return SPT_OK;
#pragma omp critical(spt_device_copies) // a device's copies are one thread's at a time
  status = t->backend->ops->download(t->backend, *copy_p, from, (size_t)count * sizeof *from);
  *values_p = *copy_p;
  *copy_p += count;
  return status;
}

/* A master after the step. Where masters are their owners' alone and cut elementwise, no rank has a whole one: the bf16 copy. */
static spt_status fetch_master(const trainer *t, int tensor, float **copy_p, const float **values_p) {
  const int64_t count = t->params->tensors[tensor].count;
  if (!t->shards || spt_method_uses_pairs(t->config.optimizer.method))
    return fetch(t, t->parameters + t->masters->offset[tensor], count, copy_p, values_p);
  float *const values = *copy_p;
  unsigned char *const halves = (unsigned char *)values + (size_t)count * sizeof(uint16_t); // are read before they are overwritten
  spt_status status = SPT_OK;
#pragma omp critical(spt_device_copies)
  status = t->backend->ops->download(t->backend, halves, (const uint16_t *)t->copies.values + t->plan->layout.offset[tensor], (size_t)count * sizeof(uint16_t));
  for (int64_t i = 0; status == SPT_OK && i < count; i++) values[i] = spt_element(halves, i, SPT_BF16);
  *values_p = values;
  *copy_p += count;
  return status;
}

static spt_status fetch_update(const trainer *t, int tensor, float **copy_p, const float **values_p) {
  return fetch(t, t->gradients + t->plan->layout.offset[tensor], t->params->tensors[tensor].count, copy_p, values_p);
}

static spt_status measure(trainer *t, int index, int worker) {
  trainer_spectral *spectral = t->spectral;
  const spt_pair *pair = spectral->matrices[index].pair;
  const double *told = spectral->told + (size_t)index * TOLD;
  float *copy = spectral->copied + (size_t)worker * spectral->copies;
  spt_matrix_step step = {.name = spectral->records[index].name,
                          .m = pair->m,
                          .n = pair->n,
                          .r = pair->r,
                          .keep = told[TOLD_KEEP],
                          .lr = told[TOLD_LR],
                          .rho = isfinite(told[TOLD_RHO]) ? told[TOLD_RHO] : NAN,
                          .rows = spectral->rows,
                          .x = spectral->inputs +
                               spt_probe_offset(&t->config.model, spectral->rows, pair->layer, pair->matrix)};
  SPT_TRY(fetch_master(t, pair->a, &copy, &step.a));
  SPT_TRY(fetch_update(t, pair->a, &copy, &step.da));
  if (!spt_pair_is_dense(pair)) {
    SPT_TRY(fetch_master(t, pair->b, &copy, &step.b));
    SPT_TRY(fetch_update(t, pair->b, &copy, &step.db));
  }
  spt_telemetry_measure(&step, spectral->workspaces + (size_t)worker * spectral->workspace, &spectral->found[index]);
  spt_watchdog_at(t->here, t->step, SPT_PHASE_TELEMETRY); // progress
  return SPT_OK;
}

/* This rank's matrices, spread over its threads. A worker's error is carried back to this thread. */
static spt_status measure_own(trainer *t) {
  trainer_spectral *spectral = t->spectral;
  spt_status failed = SPT_OK;
  char message[512] = "";
#pragma omp parallel for schedule(dynamic) num_threads(spectral->workers)
  for (int i = 0; i < spectral->own_count; i++) {
    const spt_status status = measure(t, spectral->own[i], omp_get_thread_num());
    if (status != SPT_OK) {
#pragma omp critical(spt_spectral_failure)
      {
        failed = status;
        snprintf(message, sizeof message, "%s", spt_error_message());
      }
    }
  }
  return failed == SPT_OK ? SPT_OK : SPT_FAIL(failed, "%s", message);
}

/* Counts the matrices for which a bound does not hold, and names the first. */
static void judge(trainer *t) {
  trainer_spectral *spectral = t->spectral;
  spectral->violations = 0;
  spectral->shown = spectral->records;
  spectral->shown_count = spectral->count;
  for (int i = 0; i < spectral->count; i++) {
    const spt_telemetry *found = &spectral->found[i];
    spectral->records[i].values = *found;
    if (spt_telemetry_holds(found) || spectral->told[i * TOLD + TOLD_KEEP] == 0) continue; // nothing is left to measure from
    if (spectral->violations++ == 0 && t->comm->rank == 0)
      trainer_progress_warning("WARNING: telemetry of step %lld: %s breaks a bound that always holds: |dW|_2 %.9g, at most %.9g; "
                               "|dy|_rms %.9g, by Eq. 10 at most %.9g: memory or arithmetic is at fault, or values are not finite",
                               (long long)spectral->taken, spectral->records[i].name, found->dw, found->dw_upper,
                               found->dy, found->dy_bound);
  }
}

spt_status trainer_spectral_end(trainer *t) {
  trainer_spectral *spectral = t->spectral;
  if (!spectral || spectral->taken != t->step + 1) return SPT_OK;
  spt_optimizer_observe(t->optimizer, NULL);
  SPT_TRY(t->backend->ops->synchronize(t->backend));
  const double start = trainer_now();
  const int values = spectral->count * SPT_TELEMETRY_FIELDS;
  spt_watchdog_at(t->here, t->step, SPT_PHASE_TELEMETRY);
  SPT_TRY(spt_data_parallel_gather_gradients(t->data_parallel));
  SPT_TRY(t->comm->ops->reduce_double(t->comm, spectral->told, spectral->count * TOLD, SPT_REDUCE_MAX));
  memset(spectral->found, 0, (size_t)spectral->count * sizeof *spectral->found);
  SPT_TRY(measure_own(t));
  spt_watchdog_at(t->here, t->step, SPT_PHASE_TELEMETRY_SUM);
  SPT_TRY(t->comm->ops->reduce_double(t->comm, (double *)spectral->found, values, SPT_REDUCE_SUM)); // one rank's and zeros: exact
  judge(t);
  spend(t, start);
  return SPT_OK;
}

void trainer_spectral_record(const trainer *t, spt_metric_record *record) {
  const trainer_spectral *spectral = t->spectral;
  if (!spectral || spectral->taken != record->step) return;
  record->matrices = spectral->shown;
  record->matrix_count = spectral->shown_count;
  record->spectral_seconds = spectral->seconds;
  record->spectral_violations = spectral->violations;
}
