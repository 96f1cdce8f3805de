/* The BLAS beneath LAPACKE. It has no C header that is the same everywhere; these are the Fortran symbols of every BLAS. */
#ifndef SPT_BLAS_H
#define SPT_BLAS_H

#include <lapacke.h>

void dsyrk_(const char *uplo, const char *trans, const lapack_int *n, const lapack_int *k, const double *alpha,
            const double *a, const lapack_int *lda, const double *beta, double *c, const lapack_int *ldc);
void dgemm_(const char *transa, const char *transb, const lapack_int *m, const lapack_int *n, const lapack_int *k,
            const double *alpha, const double *a, const lapack_int *lda, const double *b, const lapack_int *ldb,
            const double *beta, double *c, const lapack_int *ldc);
void dgemv_(const char *trans, const lapack_int *m, const lapack_int *n, const double *alpha, const double *a,
            const lapack_int *lda, const double *x, const lapack_int *incx, const double *beta, double *y,
            const lapack_int *incy);

/* OpenBLAS splits sums by its number of threads; results must not depend on it, and callers run matrices in parallel. So it is one
 * thread while any thread of this process is between enter and leave. */
void spt_blas_enter(void);
void spt_blas_leave(void);

#endif
