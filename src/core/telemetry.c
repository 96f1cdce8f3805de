#include "telemetry.h"

#include "blas.h"
#include "rng.h"
#include "spectral.h"

#include <math.h>
#include <stdio.h>

/* The pieces of the workspace. Low rank: ΔW = P·Qᵀ with P = [ΔA, A] (m, 2r), Q = [B + ΔB, ΔB], and B beside it (n, 3r). Dense: ΔW, then W. */
typedef struct pieces {
  spt_operator update, matrix, a, b;
  double *x, *xq, *dy; /* (rows, n), (rows, 2r), (rows, m) */
  double *rest;
} pieces;

static size_t operands(int64_t m, int64_t n, int64_t r) {
  return (size_t)(r > 0 ? 2 * m * r + 3 * n * r : 2 * m * n);
}

size_t spt_telemetry_workspace(int64_t m, int64_t n, int64_t r, int64_t rows) {
  size_t norms = spt_spectral_workspace(m, n, r > 0 ? 2 * r : n);
  const size_t probe = (size_t)(rows * (m + n + 2 * r)), factor = spt_spectral_workspace(m > n ? m : n, r, r);
  if (r > 0 && factor > norms) norms = factor;
  return operands(m, n, r) + (norms > probe ? norms : probe);
}

/* w before the step: (w − dw)/keep. */
static void expand_factors(const spt_matrix_step *step, double *p, double *q) {
  const int64_t m = step->m, n = step->n, r = step->r;
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < r; j++) {
      const double update = step->da[i * r + j];
      p[i * 2 * r + j] = update;
      p[i * 2 * r + r + j] = (step->a[i * r + j] - update) / step->keep;
    }
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < r; j++) {
      const double update = step->db[i * r + j], before = (step->b[i * r + j] - update) / step->keep;
      q[i * 3 * r + j] = before + update;
      q[i * 3 * r + r + j] = update;
      q[i * 3 * r + 2 * r + j] = before;
    }
}

static pieces lay_out(const spt_matrix_step *step, double *workspace) {
  const int64_t m = step->m, n = step->n, r = step->r;
  pieces at = {.rest = workspace + operands(m, n, r)};
  at.x = at.rest;
  at.xq = at.x + step->rows * n;
  at.dy = at.xq + step->rows * 2 * r;
  if (r > 0) {
    double *p = workspace, *q = workspace + 2 * m * r;
    expand_factors(step, p, q);
    at.update = (spt_operator){.m = m, .n = n, .k = 2 * r, .p = p, .ldp = 2 * r, .q = q, .ldq = 3 * r};
    at.matrix = (spt_operator){.m = m, .n = n, .k = r, .p = p + r, .ldp = 2 * r, .q = q + 2 * r, .ldq = 3 * r};
    at.a = (spt_operator){.m = m, .n = r, .k = r, .p = p + r, .ldp = 2 * r};
    at.b = (spt_operator){.m = n, .n = r, .k = r, .p = q + 2 * r, .ldp = 3 * r};
    return at;
  }
  double *update = workspace, *matrix = workspace + m * n;
  for (int64_t i = 0; i < m * n; i++) {
    update[i] = step->da[i];
    matrix[i] = (step->a[i] - update[i]) / step->keep;
  }
  at.update = (spt_operator){.m = m, .n = n, .k = n, .p = update, .ldp = n};
  at.matrix = (spt_operator){.m = m, .n = n, .k = n, .p = matrix, .ldp = n};
  return at;
}

static double rms(int64_t count, const double *values) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += values[i] * values[i];
  return sqrt(sum / (double)count);
}

/* C = X·M of column-major operands, as BLAS sees row-major ones. */
static void product(const char *transpose, int64_t m, int64_t n, int64_t k, const double *a, int64_t lda,
                    const double *b, int64_t ldb, double *c) {
  const lapack_int rows = (lapack_int)m, cols = (lapack_int)n, inner = (lapack_int)k, ld_a = (lapack_int)lda,
                   ld_b = (lapack_int)ldb;
  const double one = 1, zero = 0;
  dgemm_(transpose, "N", &rows, &cols, &inner, &one, a, &ld_a, b, &ld_b, &zero, c, &rows);
}

/* |x|_rms, and |Δy|_rms of Δy = x·ΔWᵀ = (x·Q)·Pᵀ. */
static void probe(const spt_matrix_step *step, const pieces *at, spt_telemetry *telemetry) {
  const int64_t rows = step->rows, m = step->m, n = step->n, k = 2 * step->r;
  const spt_operator *update = &at->update;
  for (int64_t i = 0; i < rows * n; i++) at->x[i] = step->x[i];
  if (step->r > 0) {
    product("N", k, rows, n, update->q, update->ldq, at->x, n, at->xq); // (rows, k)
    product("T", m, rows, k, update->p, update->ldp, at->xq, k, at->dy);
  } else
    product("T", m, rows, n, update->p, update->ldp, at->x, n, at->dy);
  telemetry->x = rms(rows * n, at->x);
  telemetry->dy = rms(rows * m, at->dy);
}

static double norm_of(const spt_operator *c, const spt_matrix_step *step, const char *what, double *workspace) {
  char name[SPT_NAME_MAX + 16];
  snprintf(name, sizeof name, "%s:%s", what, step->name);
  return spt_operator_norm(c, spt_stream_of(name), workspace).value;
}

void spt_telemetry_measure(const spt_matrix_step *step, double *workspace, spt_telemetry *telemetry_p) {
  spt_blas_enter();
  const pieces at = lay_out(step, workspace);
  spt_telemetry found = {.a = NAN, .b = NAN, .rho = step->rho};
  probe(step, &at, &found);
  if (step->r > 0) {
    found.a = norm_of(&at.a, step, "a", at.rest);
    found.b = norm_of(&at.b, step, "b", at.rest);
  }
  found.w = norm_of(&at.matrix, step, "w", at.rest);
  found.dw = norm_of(&at.update, step, "dw", at.rest);
  found.dw_upper = spt_operator_upper(&at.update, found.dw, at.rest);
  const double kept = step->r > 0 ? step->keep * step->keep : step->keep; // of W: both factors decay
  found.decay = fabs(1 - kept) * found.w;
  found.dy_bound = sqrt((double)step->n / (double)step->m) * found.dw_upper * found.x;
  found.slack = found.dw / step->lr;
  spt_blas_leave();
  *telemetry_p = found;
}

bool spt_telemetry_holds(const spt_telemetry *telemetry) {
  const double rounding = 1 + 1e-6;
  return telemetry->dw <= telemetry->dw_upper * rounding && telemetry->dy <= telemetry->dy_bound * rounding;
}
