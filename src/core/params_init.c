#include "params.h"

#include "blas.h"
#include "rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define INIT_STD 0.02

/* Stream of a tensor's W0: its name without .A, .B or .weight, so that a factor pair and its dense matrix start from
 * the same W0. */
static uint64_t base_stream(const spt_tensor *tensor) {
  char base[SPT_NAME_MAX];
  memcpy(base, tensor->name, sizeof base);
  if (tensor->matrix >= 0) *strrchr(base, '.') = '\0';
  return spt_stream_of(base);
}

/* Top r singular triplets of W (m, n), row-major, by the eigenvectors of the Gram matrix on its short side s: in double
 * its squared condition number is harmless, and sigma is taken as the length of W applied to the vector, so that A·Bᵀ
 * at full rank is W itself whatever the rounding of the eigenvalues. Column-major results: short_vectors (s, r),
 * ascending, and the other side's vectors times sigma (l, r). */
static spt_status decompose(const char *name, int64_t m, int64_t n, int64_t r, const double *w, double *gram,
                            double *eigenvalues, lapack_int *support, double *short_vectors, double *long_products) {
  const lapack_int rows = (lapack_int)n, cols = (lapack_int)m, rank = (lapack_int)r; // of Wᵀ, which column-major sees
  const bool short_is_m = m <= n;
  const lapack_int s = short_is_m ? cols : rows, l = short_is_m ? rows : cols;
  const double one = 1, zero = 0;
  dsyrk_("L", short_is_m ? "T" : "N", &s, &l, &one, w, &rows, &zero, gram, &s);
  lapack_int found = 0;
  const lapack_int info = LAPACKE_dsyevr(LAPACK_COL_MAJOR, 'V', 'I', 'L', s, gram, s, 0, 0, s - rank + 1, s, 0, &found,
                                         eigenvalues, short_vectors, s, support);
  if (info != 0 || found != rank)
    return SPT_FAIL(SPT_ERR_RESOURCE, "initialising %s: LAPACK's dsyevr failed (info %lld, %lld of %lld vectors)%s",
                    name, (long long)info, (long long)found, (long long)rank, info < -1000 ? ": out of memory" : "");
  dgemm_(short_is_m ? "N" : "T", "N", &l, &rank, &s, &one, w, &rows, short_vectors, &s, &zero, long_products, &l);
  return SPT_OK;
}

/* short_factor (s, r) = vectors·√Σ and long_factor (l, r) = products/√Σ, row-major, largest sigma first. A vector's
 * sign is free: its largest element is made positive, so that it is not the library's choice. */
static void scale_factors(int64_t s, int64_t l, int64_t r, const double *vectors, const double *products,
                          float *short_factor, float *long_factor) {
  for (int64_t j = 0; j < r; j++) {
    const double *vector = vectors + (r - 1 - j) * s, *product = products + (r - 1 - j) * l;
    double largest = 0, square = 0;
    for (int64_t i = 0; i < s; i++) largest = fabs(vector[i]) > fabs(largest) ? vector[i] : largest;
    for (int64_t i = 0; i < l; i++) square += product[i] * product[i];
    const double root = copysign(sqrt(sqrt(square)), largest); // ±√sigma
    for (int64_t i = 0; i < s; i++) short_factor[i * r + j] = (float)(vector[i] * root);
    for (int64_t i = 0; i < l; i++) long_factor[i * r + j] = root != 0 ? (float)(product[i] / root) : 0;
  }
}

spt_status spt_params_init_pair(const spt_params *params, int pair, uint64_t seed, float *a, float *b) {
  const int64_t m = params->pairs[pair].m, n = params->pairs[pair].n, r = params->pairs[pair].r;
  const int64_t s = m < n ? m : n, l = m < n ? n : m;
  const spt_tensor *tensor = &params->tensors[params->pairs[pair].a];
  spt_status status = SPT_OK;
  double *w = malloc((size_t)(m * n) * sizeof *w), *gram = malloc((size_t)(s * s) * sizeof *gram);
  double *vectors = malloc((size_t)(s * r) * sizeof *vectors), *products = malloc((size_t)(l * r) * sizeof *products);
  double *eigenvalues = malloc((size_t)s * sizeof *eigenvalues);
  lapack_int *support = malloc(2 * (size_t)s * sizeof *support);
  float *row = malloc((size_t)n * sizeof *row);
  if (!w || !gram || !vectors || !products || !eigenvalues || !support || !row) {
    status = SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the initial values of %s (%lld x %lld)", tensor->name,
                      (long long)m, (long long)n);
    goto done;
  }
  for (int64_t i = 0; i < m; i++) {
    spt_random_normal(seed, base_stream(tensor), i * n, n, INIT_STD, row);
    for (int64_t k = 0; k < n; k++) w[i * n + k] = row[k];
  }
  spt_blas_enter();
  status = decompose(tensor->name, m, n, r, w, gram, eigenvalues, support, vectors, products);
  spt_blas_leave();
  if (status == SPT_OK) scale_factors(s, l, r, vectors, products, m <= n ? a : b, m <= n ? b : a);
done:
  free(w);
  free(gram);
  free(vectors);
  free(products);
  free(eigenvalues);
  free(support);
  free(row);
  return status;
}

void spt_params_init_slice(const spt_params *params, int tensor_index, uint64_t seed, int64_t begin, int64_t end,
                           float *values) {
  const spt_tensor *tensor = &params->tensors[tensor_index];
  if (tensor->role == SPT_ROLE_GAIN) {
    for (int64_t i = 0; i < end - begin; i++) values[i] = 1;
  } else {
    spt_random_normal(seed, base_stream(tensor), begin, end - begin, INIT_STD, values);
  }
}
