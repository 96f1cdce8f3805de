#include "reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double *zeros(int64_t count) {
  double *values = calloc(count > 0 ? (size_t)count : 1, sizeof *values);
  if (!values) abort();
  return values;
}

void ref_gemm(int64_t m, int64_t n, int64_t k, bool transpose_a, bool transpose_b, double alpha, const double *a,
              const double *b, double beta, double *c) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      double sum = 0.0;
      for (int64_t l = 0; l < k; l++)
        sum += (transpose_a ? a[l * m + i] : a[i * k + l]) * (transpose_b ? b[j * k + l] : b[l * n + j]);
      c[i * n + j] = alpha * sum + (beta == 0.0 ? 0.0 : beta * c[i * n + j]);
    }
}

static double row_rstd(int64_t n, const double *x, double eps) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
  return 1.0 / sqrt(sum / (double)n + eps);
}

static double sigmoid(double x) {
  return 1.0 / (1.0 + exp(-x));
}

/* Scale of member j's guide, and of its low-rank product. */
static double guide_scale(const ref_group *g, int64_t j) {
  return g->desc->guided ? g->alpha[j] : 0.0;
}

/* h (N, n) */
static double *prologue(const ref_group *g, double *rstd) {
  const int64_t n = g->desc->in_dim;
  double *h = zeros(g->tokens * n);
  for (int64_t row = 0; row < g->tokens; row++) {
    const double s = g->desc->prologue == SPT_PROLOGUE_RMSNORM ? row_rstd(n, g->x + row * n, g->desc->norm_eps) : 1.0;
    if (rstd) rstd[row] = s;
    for (int64_t i = 0; i < n; i++) switch (g->desc->prologue) {
      case SPT_PROLOGUE_NONE: h[row * n + i] = g->x[row * n + i]; break;
      case SPT_PROLOGUE_RMSNORM: h[row * n + i] = g->x[row * n + i] * s * g->gain[i]; break;
      case SPT_PROLOGUE_SWIGLU: {
        const double gate = g->x[row * 2 * n + i], up = g->x[row * 2 * n + n + i];
        h[row * n + i] = gate * sigmoid(gate) * up;
      } break;
      }
  }
  return h;
}

static void rotate(const ref_group *g, double *z, double sign) {
  const int64_t d = g->desc->head_dim, out = spt_group_out(g->desc), half = d / 2;
  const int64_t columns = g->desc->out_dim[0] + (g->desc->count > 1 ? g->desc->out_dim[1] : 0);
  for (int64_t row = 0; row < g->tokens; row++)
    for (int64_t head = 0; head < columns / d; head++)
      for (int64_t i = 0; i < half; i++) {
        const double angle = (double)(row % g->seq_len) * pow(g->desc->rope_theta, -2.0 * (double)i / (double)d);
        double *a = &z[row * out + head * d + i], *b = a + half;
        const double x = *a, y = *b;
        *a = x * cos(angle) - y * sign * sin(angle);
        *b = y * cos(angle) + x * sign * sin(angle);
      }
}

void ref_group_forward(const ref_group *g, double *rstd, double *t, double *y) {
  const spt_group_desc *desc = g->desc;
  const int64_t n = desc->in_dim, out = spt_group_out(desc), rank = spt_group_rank(desc);
  double *h = prologue(g, rstd);
  for (int64_t j = 0, column = 0, t_column = 0; j < desc->count; j++) {
    const int64_t m = desc->out_dim[j], r = desc->factor_rank[j];
    double *t_j = zeros(g->tokens * r), *z = zeros(g->tokens * m);
    if (r > 0) {
      ref_gemm(g->tokens, r, n, false, false, 1.0, h, g->b[j], 0.0, t_j);
      ref_gemm(g->tokens, m, r, false, true, 1.0 - guide_scale(g, j), t_j, g->a[j], 0.0, z);
      if (guide_scale(g, j) > 0.0) ref_gemm(g->tokens, m, n, false, true, guide_scale(g, j), h, g->guide[j], 1.0, z);
    } else
      ref_gemm(g->tokens, m, n, false, true, 1.0, h, g->a[j], 0.0, z);
    for (int64_t row = 0; row < g->tokens; row++) {
      for (int64_t i = 0; i < m; i++)
        y[row * out + column + i] =
            z[row * m + i] + (desc->epilogue == SPT_EPILOGUE_RESIDUAL ? g->residual[row * m + i] : 0.0);
      for (int64_t i = 0; t && i < r; i++) t[row * rank + t_column + i] = t_j[row * r + i];
    }
    column += m;
    t_column += r;
    free(t_j);
    free(z);
  }
  if (desc->epilogue == SPT_EPILOGUE_ROPE) rotate(g, y, 1.0);
  free(h);
}

/* dx from dh (N, n) */
static void prologue_backward(const ref_group *g, const double *dh, double *dx, double *dgain) {
  const int64_t n = g->desc->in_dim;
  for (int64_t row = 0; row < g->tokens; row++) {
    const double *x = g->x + row * n, *d = dh + row * n;
    if (g->desc->prologue == SPT_PROLOGUE_RMSNORM) {
      const double s = row_rstd(n, x, g->desc->norm_eps);
      double mean = 0.0;
      for (int64_t i = 0; i < n; i++) mean += d[i] * g->gain[i] * x[i] * s / (double)n;
      for (int64_t i = 0; i < n; i++) {
        if (dx) dx[row * n + i] = s * (d[i] * g->gain[i] - x[i] * s * mean);
        if (dgain) dgain[i] += d[i] * x[i] * s;
      }
    } else if (g->desc->prologue == SPT_PROLOGUE_SWIGLU && dx) {
      for (int64_t i = 0; i < n; i++) {
        const double gate = g->x[row * 2 * n + i], up = g->x[row * 2 * n + n + i], s = sigmoid(gate);
        dx[row * 2 * n + i] = d[i] * up * (s + gate * s * (1.0 - s));
        dx[row * 2 * n + n + i] = d[i] * gate * s;
      }
    } else if (dx)
      memcpy(dx + row * n, d, (size_t)n * sizeof *d);
  }
}

void ref_group_backward(const ref_group *g, const double *dy, double *dx, double *dgain, double *da[SPT_GROUP_MAX],
                        double *db[SPT_GROUP_MAX], double *dguide[SPT_GROUP_MAX]) {
  const spt_group_desc *desc = g->desc;
  const int64_t n = desc->in_dim, out = spt_group_out(desc), N = g->tokens;
  double *h = prologue(g, NULL), *dz_all = zeros(N * out), *dh = zeros(N * n);
  memcpy(dz_all, dy, (size_t)(N * out) * sizeof *dy);
  if (desc->epilogue == SPT_EPILOGUE_ROPE) rotate(g, dz_all, -1.0);
  for (int64_t j = 0, column = 0; j < desc->count; column += desc->out_dim[j], j++) {
    const int64_t m = desc->out_dim[j], r = desc->factor_rank[j];
    double *dz = zeros(N * m), *t = zeros(N * r), *dt = zeros(N * r);
    for (int64_t row = 0; row < N; row++)
      for (int64_t i = 0; i < m; i++) dz[row * m + i] = dz_all[row * out + column + i];
    if (r > 0) {
      ref_gemm(N, r, n, false, false, 1.0, h, g->b[j], 0.0, t);
      const double alpha = guide_scale(g, j);
      ref_gemm(N, r, m, false, false, 1.0 - alpha, dz, g->a[j], 0.0, dt);
      ref_gemm(N, n, r, false, true, 1.0, dt, g->b[j], 1.0, dh);
      if (alpha > 0.0) ref_gemm(N, n, m, false, false, alpha, dz, g->guide[j], 1.0, dh);
      if (desc->guided && dguide) ref_gemm(m, n, N, true, false, alpha, dz, h, 0.0, dguide[j]);
      if (da) ref_gemm(m, r, N, true, false, 1.0 - alpha, dz, t, 0.0, da[j]);
      if (db) ref_gemm(n, r, N, true, false, 1.0, h, dt, 0.0, db[j]);
    } else {
      ref_gemm(N, n, m, false, false, 1.0, dz, g->a[j], 1.0, dh);
      if (da) ref_gemm(m, n, N, true, false, 1.0, dz, h, 0.0, da[j]);
    }
    free(dz);
    free(t);
    free(dt);
  }
  if (dgain) memset(dgain, 0, (size_t)n * sizeof *dgain);
  prologue_backward(g, dh, dx, dgain);
  free(h);
  free(dz_all);
  free(dh);
}

/* Offsets of a head's vectors at one position. */
static int64_t at(const ref_attention *a, int64_t sequence, int64_t position, int64_t slot) {
  return (sequence * a->seq_len + position) * (a->heads + 2 * a->kv_heads) * a->head_dim + slot * a->head_dim;
}

/* p (T) of one query; returns its log-sum-exp. */
static double probabilities(const ref_attention *a, int64_t sequence, int64_t head, int64_t query, double *p) {
  const int64_t kv = head * a->kv_heads / a->heads;
  double maximum = -INFINITY, sum = 0.0;
  for (int64_t key = 0; key <= query; key++) {
    const double *q = a->qkv + at(a, sequence, query, head), *k = a->qkv + at(a, sequence, key, a->heads + kv);
    p[key] = 0.0;
    for (int64_t i = 0; i < a->head_dim; i++) p[key] += q[i] * k[i];
    p[key] /= sqrt((double)a->head_dim);
    maximum = fmax(maximum, p[key]);
  }
  for (int64_t key = 0; key <= query; key++) sum += exp(p[key] - maximum);
  const double lse = maximum + log(sum);
  for (int64_t key = 0; key <= query; key++) p[key] = exp(p[key] - lse);
  return lse;
}

void ref_attention_forward(const ref_attention *a, double *o, double *lse) {
  double *p = zeros(a->seq_len);
  for (int64_t sequence = 0; sequence < a->sequences; sequence++)
    for (int64_t head = 0; head < a->heads; head++)
      for (int64_t query = 0; query < a->seq_len; query++) {
        lse[(sequence * a->heads + head) * a->seq_len + query] = probabilities(a, sequence, head, query, p);
        double *out = o + ((sequence * a->seq_len + query) * a->heads + head) * a->head_dim;
        for (int64_t i = 0; i < a->head_dim; i++) {
          out[i] = 0.0;
          for (int64_t key = 0; key <= query; key++)
            out[i] += p[key] * a->qkv[at(a, sequence, key, a->heads + a->kv_heads + head * a->kv_heads / a->heads) + i];
        }
      }
  free(p);
}

void ref_attention_backward(const ref_attention *a, const double *d_o, double *dqkv) {
  const int64_t d = a->head_dim;
  double *p = zeros(a->seq_len), *dp = zeros(a->seq_len);
  memset(dqkv, 0, (size_t)at(a, a->sequences, 0, 0) * sizeof *dqkv);
  for (int64_t sequence = 0; sequence < a->sequences; sequence++)
    for (int64_t head = 0; head < a->heads; head++)
      for (int64_t query = 0; query < a->seq_len; query++) {
        const int64_t k_slot = a->heads + head * a->kv_heads / a->heads, v_slot = k_slot + a->kv_heads;
        const double *out = d_o + ((sequence * a->seq_len + query) * a->heads + head) * d;
        probabilities(a, sequence, head, query, p);
        double mean = 0.0;
        for (int64_t key = 0; key <= query; key++) {
          dp[key] = 0.0;
          for (int64_t i = 0; i < d; i++) {
            dp[key] += out[i] * a->qkv[at(a, sequence, key, v_slot) + i];
            dqkv[at(a, sequence, key, v_slot) + i] += p[key] * out[i];
          }
          mean += p[key] * dp[key];
        }
        for (int64_t key = 0; key <= query; key++) {
          const double ds = p[key] * (dp[key] - mean) / sqrt((double)d);
          for (int64_t i = 0; i < d; i++) {
            dqkv[at(a, sequence, query, head) + i] += ds * a->qkv[at(a, sequence, key, k_slot) + i];
            dqkv[at(a, sequence, key, k_slot) + i] += ds * a->qkv[at(a, sequence, query, head) + i];
          }
        }
      }
  free(p);
  free(dp);
}

void ref_head_loss(int64_t tokens, int64_t hidden, int64_t vocab, double eps, const double *x, const double *gain,
                   const double *w, const int32_t *targets, double scale, double *losses, double *dx, double *dgain,
                   double *dw) {
  const spt_group_desc desc = {
      .count = 1, .in_dim = hidden, .out_dim = {vocab}, .prologue = SPT_PROLOGUE_RMSNORM, .norm_eps = eps};
  const ref_group g = {.desc = &desc, .tokens = tokens, .seq_len = tokens, .x = x, .gain = gain, .a = {w}};
  double *logits = zeros(tokens * vocab);
  ref_group_forward(&g, NULL, NULL, logits);
  for (int64_t row = 0; row < tokens; row++) {
    double *l = logits + row * vocab, maximum = -INFINITY, sum = 0.0;
    for (int64_t i = 0; i < vocab; i++) maximum = fmax(maximum, l[i]);
    for (int64_t i = 0; i < vocab; i++) sum += exp(l[i] - maximum);
    const double lse = maximum + log(sum);
    losses[row] = lse - l[targets[row]];
    for (int64_t i = 0; i < vocab; i++) l[i] = scale * (exp(l[i] - lse) - (i == targets[row] ? 1.0 : 0.0));
  }
  double *da[SPT_GROUP_MAX] = {dw};
  if (dx) ref_group_backward(&g, logits, dx, dgain, da, NULL, NULL);
  free(logits);
}

static double normalise(int64_t count, double *x) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; i++) sum += x[i] * x[i];
  for (int64_t i = 0; sum > 0.0 && i < count; i++) x[i] /= sqrt(sum);
  return sqrt(sum);
}

double ref_power_iteration(int64_t rows, int64_t cols, const double *w, int steps, double *u) {
  double sigma = 0.0, *v = zeros(cols), *next = zeros(rows);
  normalise(rows, u);
  for (int step = 0; step < steps; step++) {
    ref_gemm(1, cols, rows, false, false, 1.0, u, w, 0.0, v);
    normalise(cols, v);
    ref_gemm(rows, 1, cols, false, false, 1.0, w, v, 0.0, next);
    sigma = normalise(rows, next);
    if (sigma > 0.0) memcpy(u, next, (size_t)rows * sizeof *u);
  }
  free(v);
  free(next);
  return sigma;
}

void ref_adamw(int64_t count, double *w, const double *gradient, double *m, double *v, double lr, double decay,
               double beta1, double beta2, double eps, int64_t step, double clip) {
  for (int64_t i = 0; i < count; i++) {
    const double g = clip * gradient[i];
    m[i] = beta1 * m[i] + (1.0 - beta1) * g;
    v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
    const double m_hat = m[i] / (1.0 - pow(beta1, (double)step)), v_hat = v[i] / (1.0 - pow(beta2, (double)step));
    w[i] = (1.0 - lr * decay) * w[i] - lr * m_hat / (sqrt(v_hat) + eps);
  }
}
