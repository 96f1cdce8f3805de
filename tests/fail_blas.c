/* Preloaded into the trainer: matrix products of 29 columns whose first operand is transposed come out a thousand times too large, as of a
 * processor that computes wrongly; with seq_len 29 those are the telemetry's |dy|. */
#include <dlfcn.h>

typedef void gemm(const char *, const char *, const int *, const int *, const int *, const double *, const double *, const int *, const double *,
                  const int *, const double *, double *, const int *);
gemm dgemm_;

void dgemm_(const char *transa, const char *transb, const int *m, const int *n, const int *k, const double *alpha, const double *a, const int *lda,
            const double *b, const int *ldb, const double *beta, double *c, const int *ldc) {
  gemm *real;
  *(void **)&real = dlsym(RTLD_NEXT, "dgemm_");
  const double wrong = 1000 * *alpha;
  real(transa, transb, m, n, k, *transa == 'T' && *n == 29 ? &wrong : alpha, a, lda, b, ldb, beta, c, ldc);
}
