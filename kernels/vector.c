/* Elementwise ops, the optimizer's ops and batched products. */
#include "backend_cpu.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 1 << 16 }; // elements of a task in ops on flat arrays

/* Rows of C in one task: all, or, of a large product, so many that a few matrices occupy many threads. By the shape alone: an entry's arithmetic
 * depends neither on the batch nor on the threads. */
static int64_t rows_of_task(const spt_gemm_batch *batch) {
  enum { ROWS = 256 };
  const double LARGE = 1 << 28; // multiply-adds: a millisecond or more of a core
  return (double)batch->m * (double)batch->n * (double)batch->k < LARGE ? batch->m : ROWS;
}

spt_status spt_cpu_batched_gemm(spt_backend *backend, const spt_gemm_batch *batch) {
  spt_cpu *cpu = spt_cpu_begin(backend);
  const int64_t lda = batch->transpose_a ? batch->m : batch->k, ldb = batch->transpose_b ? batch->k : batch->n;
  const int64_t most = rows_of_task(batch), blocks = spt_blocks(batch->m, most);
#pragma omp parallel num_threads(backend->threads)
  {
    spt_cpu_thread *thread = spt_cpu_enter(cpu);
#pragma omp for schedule(static, 1)
    for (int64_t task = 0; task < batch->batch * blocks; task++) {
      const int64_t i = task / blocks, row0 = task % blocks * most, rows = spt_min(most, batch->m - row0);
      void *c = spt_at(batch->c[i], row0 * batch->n, batch->dtype);
      if (batch->d && batch->beta != 0.0f) // the product adds to C: start it from D
        memcpy(c, spt_at(batch->d[i], row0 * batch->n, batch->dtype), (size_t)(rows * batch->n) * spt_dtype_size(batch->dtype));
      spt_cpu_gemm(thread, rows, batch->n, batch->k, batch->alpha,
                   (spt_operand){spt_at(batch->a[i], batch->transpose_a ? row0 : row0 * lda, batch->dtype), lda, batch->dtype,
                                 batch->transpose_a},
                   (spt_operand){batch->b[i], ldb, batch->dtype, batch->transpose_b}, batch->beta, c, batch->n, batch->dtype);
    }
  }
  return spt_cpu_end(cpu, spt_cost_batched_gemm(batch));
}

SPT_CLONES static void add_chunk(int64_t count, const float *a, const float *b, float *out) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) out[i] = a[i] + b[i];
}

spt_status spt_cpu_add(spt_backend *backend, int64_t count, const float *a, const float *b, float *out) {
  spt_cpu *cpu = spt_cpu_begin(backend);
#pragma omp parallel for num_threads(backend->threads) schedule(static)
  for (int64_t begin = 0; begin < count; begin += CHUNK) {
    const int64_t part = spt_min(CHUNK, count - begin);
    if (b)
      add_chunk(part, a + begin, b + begin, out + begin);
    else
      memmove(out + begin, a + begin, (size_t)part * sizeof *out);
  }
  return spt_cpu_end(cpu, spt_cost_flat(SPT_OP_ADD, count, b ? 8 : 4, 4));
}

spt_status spt_cpu_round_bf16(spt_backend *backend, int64_t count, const float *from, void *to) {
  spt_cpu *cpu = spt_cpu_begin(backend);
#pragma omp parallel for num_threads(backend->threads) schedule(static)
  for (int64_t begin = 0; begin < count; begin += CHUNK)
    cpu->simd->convert(spt_at(to, begin, SPT_BF16), SPT_BF16, from + begin, SPT_F32, spt_min(CHUNK, count - begin));
  return spt_cpu_end(cpu, spt_cost_flat(SPT_OP_PACK, count, 4, 2));
}

SPT_CLONES static double chunk_stats(const float *g, int64_t count, int64_t *non_finite_p) {
  double sum = 0.0;
  int64_t bad = 0;
#pragma omp simd reduction(+ : sum, bad)
  for (int64_t i = 0; i < count; i++) {
    sum += (double)g[i] * (double)g[i];
    bad += (spt_float_to_bits(g[i]) & 0x7F800000u) == 0x7F800000u;
  }
  *non_finite_p = bad;
  return sum;
}

spt_status spt_cpu_gradient_stats(spt_backend *backend, int64_t count, const float *g, int group, spt_control *control) {
  spt_cpu *cpu = spt_cpu_begin(backend);
  const int64_t chunks = spt_blocks(count, CHUNK);
  if (2 * chunks > cpu->partial_count) {
    double *partial = realloc(cpu->partial, (size_t)(2 * chunks) * sizeof *partial);
    if (!partial)
      return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the gradient statistics of %lld elements", (long long)count);
    cpu->partial = partial;
    cpu->partial_count = 2 * chunks;
  }
  double *partial = cpu->partial;
#pragma omp parallel for num_threads(backend->threads) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    int64_t bad;
    partial[2 * chunk] = chunk_stats(g + chunk * CHUNK, spt_min(CHUNK, count - chunk * CHUNK), &bad);
    partial[2 * chunk + 1] = (double)bad;
  }
  double squares = 0;
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    squares += partial[2 * chunk];
    control->non_finite += partial[2 * chunk + 1];
  }
  control->sum_squares += squares;
  control->group_squares[group] += squares;
  return spt_cpu_end(cpu, spt_cost_flat(SPT_OP_GRADIENT_STATS, count, 4, 0));
}

spt_status spt_cpu_sum(spt_backend *backend, int64_t count, const float *values, double *sum) {
  (void)backend;
  double own = 0;
  for (int64_t i = 0; i < count; i++) own += (double)values[i];
  *sum += own;
  return SPT_OK;
}

spt_status spt_cpu_decide(spt_backend *backend, double grad_clip, spt_control *control) {
  (void)backend;
  spt_control_decide(control, grad_clip);
  return SPT_OK;
}

static int64_t count_elements(int count, const spt_factor_entry *entries) {
  int64_t sum = 0;
  for (int i = 0; i < count; i++) sum += entries[i].rows * entries[i].cols;
  return sum;
}

SPT_CLONES static double decay_momentum(int64_t count, float beta, float weight, const float *gradient,
                                        float *momentum) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; i++) {
    const float value = beta * momentum[i] + weight * gradient[i];
    momentum[i] = value;
    sum += (double)value * (double)value;
  }
  return sum;
}

SPT_INLINE void scale_to(int64_t count, float scale, const float *src, void *dst, bool bf16) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) spt_store(dst, i, scale * src[i], bf16);
}
SPT_CLONES static void scaled(int64_t count, float scale, const float *src, void *dst, spt_dtype dtype) {
  SPT_BY_DTYPE(dtype, scale_to, count, scale, src, dst);
}

spt_status spt_cpu_factor_momentum(spt_backend *backend, int count, const spt_factor_entry *entries, float beta,
                                   bool normalize, spt_dtype dtype, const spt_control *control) {
  if (control->apply == 0.0f) return SPT_OK;
  spt_cpu *cpu = spt_cpu_begin(backend);
#pragma omp parallel for num_threads(backend->threads) schedule(dynamic)
  for (int i = 0; i < count; i++) {
    const spt_factor_entry *entry = &entries[i];
    const int64_t elements = entry->rows * entry->cols;
    const double sum = decay_momentum(elements, beta, (1.0f - beta) * control->clip, entry->gradient, entry->momentum);
    if (entry->x)
      scaled(elements, normalize ? (float)(1.0 / (sqrt(sum) + 1e-7)) : 1.0f, entry->momentum, entry->x, dtype);
  }
  return spt_cpu_end(cpu, spt_cost_flat(SPT_OP_MOMENTUM, count_elements(count, entries), 8,
                                        4 + (entries[0].x ? (int)spt_dtype_size(dtype) : 0)));
}

SPT_CLONES static void add_scaled(int64_t count, float scale, const float *x, float *y) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) y[i] += scale * x[i];
}
SPT_CLONES static float dot(int64_t count, const float *x, const float *y) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; i++) sum += x[i] * y[i];
  return sum;
}
static double norm(int64_t count, const float *x) {
  int64_t ignored;
  return sqrt(chunk_stats(x, count, &ignored));
}

/* Alg. 3; u and v are normalised by scaling the product's sums, sigma = uᵀ·W·v = |W·v| before the last normalisation.
 */
static void iterate(const spt_factor_entry *entry, int steps, float *v, float *next) {
  const int64_t rows = entry->rows, cols = entry->cols;
  double sigma = 0.0, length = norm(rows, entry->u);
  if (length > 0.0) scaled(rows, (float)(1.0 / length), entry->u, next, SPT_F32);
  for (int step = 0; step < steps && length > 0.0; step++) {
    memset(v, 0, (size_t)cols * sizeof *v);
    for (int64_t i = 0; i < rows; i++) add_scaled(cols, next[i], entry->w + i * cols, v);
    length = norm(cols, v);
    if (!(length > 0.0)) break; // w is zero, or u is orthogonal to it
    scaled(cols, (float)(1.0 / length), v, v, SPT_F32);
    for (int64_t i = 0; i < rows; i++) next[i] = dot(cols, entry->w + i * cols, v);
    sigma = norm(rows, next);
    if (!(sigma > 0.0)) break;
    scaled(rows, (float)(1.0 / sigma), next, next, SPT_F32);
  }
  *entry->sigma = (float)sigma;
  if (sigma > 0.0) memcpy(entry->u, next, (size_t)rows * sizeof *next);
}

/* A thread's two vectors: v (cols) and the next u (rows). */
static float *iteration_scratch(spt_cpu *cpu, int64_t longest) {
  const int64_t doubles = cpu->base.threads * longest; // two floats each
  if (doubles > cpu->partial_count) {
    double *partial = realloc(cpu->partial, (size_t)doubles * sizeof *partial);
    if (!partial) return NULL;
    cpu->partial = partial;
    cpu->partial_count = doubles;
  }
  return (float *)cpu->partial;
}

spt_status spt_cpu_power_iteration(spt_backend *backend, int count, const spt_factor_entry *entries, int steps,
                                   const spt_control *control) {
  if (control->apply == 0.0f) return SPT_OK;
  spt_cpu *cpu = spt_cpu_begin(backend);
  int64_t longest = 1;
  for (int i = 0; i < count; i++) longest = spt_max(longest, spt_max(entries[i].rows, entries[i].cols));
  longest = (longest + 15) / 16 * 16;
  float *scratch = iteration_scratch(cpu, longest);
  if (!scratch)
    return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for a power iteration of %lld elements", (long long)longest);
#pragma omp parallel for num_threads(backend->threads) schedule(dynamic)
  for (int i = 0; i < count; i++) {
    float *own = scratch + 2 * longest * omp_get_thread_num();
    iterate(&entries[i], steps, own, own + longest);
  }
  return spt_cpu_end(cpu, spt_cost_flat(SPT_OP_POWER_ITERATION, count_elements(count, entries), 8 * steps, 0));
}

SPT_INLINE void update_loop(int64_t count, float keep, float rho, float *w, const void *x, bool bf16) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) w[i] = keep * w[i] - rho * spt_load(x, i, bf16);
}
SPT_CLONES static void update_factor(int64_t count, float keep, float rho, float *w, const void *x, spt_dtype dtype) {
  SPT_BY_DTYPE(dtype, update_loop, count, keep, rho, w, x);
}

spt_status spt_cpu_factor_update(spt_backend *backend, int count, const spt_factor_entry *entries, float lr,
                                 float decay, bool renormalize, spt_dtype dtype, const spt_control *control) {
  if (control->apply == 0.0f) return SPT_OK;
  spt_cpu *cpu = spt_cpu_begin(backend);
  const float keep = (float)(1.0 - (double)lr * (double)decay);
#pragma omp parallel for num_threads(backend->threads) schedule(dynamic)
  for (int i = 0; i < count; i++) {
    const spt_factor_entry *entry = &entries[i], *pair = &entries[i & ~1];
    // rho = lr/(sigma_A + sigma_B + 1)  -- arXiv:2602.12429, Alg. 1 lines 13–14
    const float rho = renormalize ? (float)((double)lr / ((double)*pair[0].sigma + (double)*pair[1].sigma + 1.0)) : lr;
    update_factor(entry->rows * entry->cols, keep, rho, entry->w, entry->x, dtype);
  }
  return spt_cpu_end(
      cpu, spt_cost_flat(SPT_OP_FACTOR_UPDATE, count_elements(count, entries), 4 + (int)spt_dtype_size(dtype), 4));
}

typedef struct adamw_factors {
  float keep, clip, beta1, beta2, step_size, second_scale, eps;
} adamw_factors;

SPT_CLONES static void adamw_chunk(int64_t count, float *w, const float *gradient, float *m, float *v,
                                   adamw_factors f) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) {
    const float g = f.clip * gradient[i];
    m[i] = f.beta1 * m[i] + (1.0f - f.beta1) * g;
    v[i] = f.beta2 * v[i] + (1.0f - f.beta2) * g * g;
    w[i] = f.keep * w[i] - f.step_size * m[i] / (sqrtf(v[i] * f.second_scale) + f.eps);
  }
}

spt_status spt_cpu_adamw(spt_backend *backend, int64_t count, float *w, const float *gradient, float *m, float *v,
                         float lr, float decay, float beta1, float beta2, float eps, int64_t step,
                         const spt_control *control) {
  if (control->apply == 0.0f) return SPT_OK;
  spt_cpu *cpu = spt_cpu_begin(backend);
  if (step == 0) step = control->applied;
  const adamw_factors factors = {.keep = (float)(1.0 - (double)lr * (double)decay),
                                 .clip = control->clip,
                                 .beta1 = beta1,
                                 .beta2 = beta2,
                                 .step_size = (float)((double)lr / (1.0 - pow((double)beta1, (double)step))),
                                 .second_scale = (float)(1.0 / (1.0 - pow((double)beta2, (double)step))),
                                 .eps = eps};
#pragma omp parallel for num_threads(backend->threads) schedule(static)
  for (int64_t begin = 0; begin < count; begin += CHUNK)
    adamw_chunk(spt_min(CHUNK, count - begin), w + begin, gradient + begin, m + begin, v + begin, factors);
  return spt_cpu_end(cpu, spt_cost_flat(SPT_OP_ADAMW, count, 16, 12));
}
