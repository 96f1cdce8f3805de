#include "blas.h"

#include <dlfcn.h>

/* The count and the saved number are the process's, as OpenBLAS's own is. */
static int blas_users, blas_threads;

void spt_blas_enter(void) {
#pragma omp critical(spt_blas_threads)
  if (blas_users++ == 0) {
    int (*get)(void);
    void (*set)(int);
    *(void **)&get = dlsym(RTLD_DEFAULT, "openblas_get_num_threads");
    *(void **)&set = dlsym(RTLD_DEFAULT, "openblas_set_num_threads");
    blas_threads = get && set ? get() : 0;
    if (blas_threads > 1) set(1);
  }
}

void spt_blas_leave(void) {
#pragma omp critical(spt_blas_threads)
  if (--blas_users == 0 && blas_threads > 1) {
    void (*set)(int);
    *(void **)&set = dlsym(RTLD_DEFAULT, "openblas_set_num_threads");
    set(blas_threads);
  }
}
