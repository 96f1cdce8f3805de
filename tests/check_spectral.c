/* check_spectral svd BEFORE AFTER METRICS METHOD: the telemetry of the step from one checkpoint to the next, trained without weight decay,
 *   against LAPACK's SVD of A'·B'ᵀ − A·Bᵀ, A·Bᵀ, A and B; and what must hold of it, Eq. 10 and the method's bound included.
 * check_spectral same METRICS METRICS TOLERANCE: the telemetry of two runs is the same, but for the time it took; 0: bit for bit.
 * Prints the worst; exits 1 when it does not hold, 2 on errors. */
#include "io/checkpoint.h"
#include "io/metrics.h"

#include <lapacke.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double newton_schulz_bound = 1.21; /* of five iterations, test_spectron_bounds.c */

static double worst; /* relative error */

static bool near(const char *name, const char *what, double found, double wanted, double tolerance, double slack) {
  const double error = fabs(found - wanted);
  if (wanted != 0 && error > slack) worst = fmax(worst, (error - slack) / fabs(wanted));
  if (error <= tolerance * fabs(wanted) + slack) return true;
  printf("%s: %s is %.9g, by the SVD %.9g\n", name, what, found, wanted);
  return false;
}

static bool holds(const char *name, bool condition, const char *what) {
  if (!condition) printf("%s: %s does not hold\n", name, what);
  return condition;
}

/* ---- exact values ---- */

typedef struct tensor {
  int64_t rows, cols;
  float *values;
} tensor;

/* False where the checkpoint has no such tensor. */
static bool read_tensor(spt_checkpoint *checkpoint, const char *name, const char *end, tensor *tensor_p) {
  char dataset[256];
  const char *found_name;
  snprintf(dataset, sizeof dataset, "/model/%s%s", name, end);
  const int index = spt_checkpoint_find(checkpoint, dataset);
  if (index < 0 || spt_checkpoint_dataset(checkpoint, index, &found_name, &tensor_p->rows, &tensor_p->cols) != SPT_OK) return false;
  tensor_p->values = malloc((size_t)(tensor_p->rows * tensor_p->cols) * sizeof(float));
  return tensor_p->values && spt_checkpoint_read(checkpoint, index, tensor_p->values) == SPT_OK;
}

/* C (m, n) += sign·A·Bᵀ; B NULL: += sign·A. */
static void add(double *c, double sign, const tensor *a, const tensor *b) {
  const int64_t m = a->rows, n = b ? b->rows : a->cols;
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      double sum = b ? 0 : a->values[i * n + j];
      for (int64_t k = 0; b && k < a->cols; k++) sum += (double)a->values[i * a->cols + k] * b->values[j * a->cols + k];
      c[i * n + j] += sign * sum;
    }
}

static double norm(int64_t m, int64_t n, double *c) {
  double *s = malloc((size_t)(m < n ? m : n) * sizeof *s), unused;
  const lapack_int info = LAPACKE_dgesdd(LAPACK_ROW_MAJOR, 'N', (lapack_int)m, (lapack_int)n, c, (lapack_int)n, s, &unused, 1, &unused, (lapack_int)n);
  const double largest = info == 0 ? s[0] : NAN;
  free(s);
  return largest;
}

static double frobenius(const tensor *t) {
  double squares = 0;
  for (int64_t i = 0; i < t->rows * t->cols; i++) squares += (double)t->values[i] * t->values[i];
  return sqrt(squares);
}

/* ‖·‖₂ of A·Bᵀ, or of A; minus that of the step before, where it is given. */
static double exact(const tensor *a, const tensor *b, const tensor *a_before, const tensor *b_before) {
  const int64_t m = a->rows, n = b ? b->rows : a->cols;
  double *c = calloc((size_t)(m * n), sizeof *c);
  add(c, 1, a, b);
  if (a_before) add(c, -1, a_before, b_before);
  const double found = norm(m, n, c);
  free(c);
  return found;
}

/* ---- one matrix ---- */

static bool check_bounds(const char *name, const char *method, double lr, bool dense, const spt_telemetry *t) {
  bool fine = holds(name, t->dw <= t->dw_upper && t->dw_upper <= 1.05 * t->dw, "dw <= dw_upper <= 1.05 dw");
  fine &= holds(name, t->dy > 0 && t->x > 0 && t->dy <= t->dy_bound, "Eq. 10");
  fine &= holds(name, fabs(t->slack - t->dw / lr) <= 1e-6 * t->slack, "slack = dw / eta");
  if (strcmp(method, "adamw") == 0) return holds(name, isnan(t->rho), "no rho under AdamW") && fine;
  const bool renorm = strcmp(method, "renorm") == 0, renormalized = renorm || strcmp(method, "spectron") == 0;
  const double direction = renorm ? 1 + 1e-3 : newton_schulz_bound; // its spectral norm, at most; of renorm its Frobenius norm
  if (dense || !renormalized) { // of a dense matrix ‖ΔW‖₂ = η·‖O‖₂
    fine &= holds(name, fabs(t->rho - lr) <= 1e-6 * lr, "rho = eta");
    return holds(name, !dense || t->slack <= direction, "|dW|_2 <= |O|_2 eta") && fine;
  }
  // sigma_A and sigma_B, of one power iteration, fall short of the norms: by this much Eq. 16's bound is exceeded at most
  const double excess = (t->a + t->b + 1) * t->rho / lr;
  fine &= holds(name, excess >= 1 - 1e-3 && excess <= 3, "rho = eta / (sigma_A + sigma_B + 1)");
  return holds(name, t->slack <= direction * excess, "|dW|_2 <= |O|_2 eta (|A| + |B| + 1) / (sigma_A + sigma_B + 1)") && fine;
}

static bool check_matrix(spt_checkpoint *before, spt_checkpoint *after, const char *method, double lr, const spt_metric_matrix *matrix) {
  tensor a = {0}, b = {0}, a_before = {0}, b_before = {0};
  const spt_telemetry *t = &matrix->values;
  const char *name = matrix->name;
  const bool dense = !read_tensor(after, name, ".A", &a);
  if (!read_tensor(before, name, dense ? ".weight" : ".A", &a_before) || (dense && !read_tensor(after, name, ".weight", &a)) ||
      (!dense && (!read_tensor(before, name, ".B", &b_before) || !read_tensor(after, name, ".B", &b))))
    return holds(name, false, "is in both checkpoints");
  // the checkpoints' elements are rounded to fp32
  const double rounding = 6e-8 * (dense ? frobenius(&a) : 2 * frobenius(&a) * frobenius(&b));
  bool fine = true;
  if (dense) {
    fine &= near(name, "dw", t->dw, exact(&a, NULL, &a_before, NULL), 1e-3, rounding);
    fine &= near(name, "w", t->w, exact(&a_before, NULL, NULL, NULL), 1e-3, 0);
    fine &= holds(name, isnan(t->a) && isnan(t->b), "a dense matrix has no factors");
  } else {
    fine &= near(name, "dw", t->dw, exact(&a, &b, &a_before, &b_before), 1e-3, rounding);
    fine &= near(name, "w", t->w, exact(&a_before, &b_before, NULL, NULL), 1e-3, 0);
    fine &= near(name, "a", t->a, exact(&a_before, NULL, NULL, NULL), 1e-3, 0);
    fine &= near(name, "b", t->b, exact(&b_before, NULL, NULL, NULL), 1e-3, 0);
  }
  fine &= holds(name, t->decay == 0, "no decay");
  fine &= check_bounds(name, method, lr, dense, t);
  free(a.values);
  free(b.values);
  free(a_before.values);
  free(b_before.values);
  return fine;
}

/* ---- files ---- */

static spt_status find_record(const char *path, int64_t step, spt_metric_record **records_p, const spt_metric_record **record_p) {
  int64_t count;
  SPT_TRY(spt_metrics_read(path, records_p, &count));
  for (int64_t i = 0; i < count; i++)
    if ((*records_p)[i].step == step) *record_p = &(*records_p)[i];
  return *record_p ? SPT_OK : SPT_FAIL(SPT_ERR_DATA, "%s: no step %lld", path, (long long)step);
}

/* Matrices of the model: factors A and dense matrices in the layers. */
static int count_matrices(spt_checkpoint *checkpoint) {
  int matrices = 0;
  for (int i = 0; i < spt_checkpoint_dataset_count(checkpoint); i++) {
    const char *name;
    int64_t rows, cols;
    if (spt_checkpoint_dataset(checkpoint, i, &name, &rows, &cols) != SPT_OK || strncmp(name, "/model/model.layers.", 20) != 0) continue;
    const char *end = strrchr(name, '.');
    matrices += strcmp(end, ".A") == 0 || (strcmp(end, ".weight") == 0 && rows > 1);
  }
  return matrices;
}

static spt_status check_svd(char **argv, bool *fine_p) {
  spt_checkpoint *before, *after;
  spt_metric_record *records = NULL;
  const spt_metric_record *record = NULL;
  SPT_TRY(spt_checkpoint_open(argv[0], &before));
  SPT_TRY(spt_checkpoint_open(argv[1], &after));
  SPT_TRY(find_record(argv[2], spt_checkpoint_header_of(after)->step, &records, &record));
  const int count = count_matrices(after);
  *fine_p = holds(argv[2], count > 0 && record->matrix_count == count, "telemetry of every matrix") && record->spectral_violations == 0;
  double slack = 0;
  for (int i = 0; i < record->matrix_count; i++) {
    *fine_p &= check_matrix(before, after, argv[3], record->lr, &record->matrices[i]);
    slack = fmax(slack, record->matrices[i].values.slack);
  }
  printf("step %lld: %d matrices, largest error against the SVD %.1e, largest |dW|_2 / eta %.4f\n", (long long)record->step, record->matrix_count,
         worst, slack);
  free(records);
  spt_checkpoint_close(&before);
  spt_checkpoint_close(&after);
  return SPT_OK;
}

static spt_status check_same(char **argv, bool *fine_p) {
  spt_metric_record *runs[2];
  int64_t counts[2];
  int compared = 0;
  const double tolerance = atof(argv[2]);
  for (int i = 0; i < 2; i++) SPT_TRY(spt_metrics_read(argv[i], &runs[i], &counts[i]));
  *fine_p = holds(argv[1], counts[0] == counts[1], "as many records");
  for (int64_t i = 0; *fine_p && i < counts[0]; i++) {
    const spt_metric_record *a = &runs[0][i], *b = &runs[1][i];
    *fine_p = holds(argv[1], a->matrix_count == b->matrix_count, "as many matrices");
    for (int m = 0; *fine_p && m < a->matrix_count; m++, compared++) {
      const double *x = &a->matrices[m].values.a, *y = &b->matrices[m].values.a;
      *fine_p = holds(argv[1], strcmp(a->matrices[m].name, b->matrices[m].name) == 0, "the same matrices");
      for (int k = 0; k < SPT_TELEMETRY_FIELDS; k++)
        if (!isnan(x[k]) || !isnan(y[k])) *fine_p &= near(a->matrices[m].name, "a value", y[k], x[k], tolerance, 0);
    }
  }
  printf("%d matrices compared, largest relative difference %.1e\n", compared, worst);
  *fine_p &= holds(argv[1], compared > 0, "any telemetry");
  free(runs[0]);
  free(runs[1]);
  return SPT_OK;
}

int main(int argc, char **argv) {
  bool fine = false;
  spt_status status;
  if (argc == 6 && strcmp(argv[1], "svd") == 0)
    status = check_svd(argv + 2, &fine);
  else if (argc == 5 && strcmp(argv[1], "same") == 0)
    status = check_same(argv + 2, &fine);
  else
    return fprintf(stderr, "usage: check_spectral svd BEFORE AFTER METRICS METHOD | same METRICS METRICS TOLERANCE\n"), 2;
  if (status != SPT_OK) fprintf(stderr, "check_spectral: %s\n", spt_error_message());
  return status != SPT_OK ? 2 : !fine;
}
