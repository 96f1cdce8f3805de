/* cuBLAS, loaded when a device is opened: linked in, it would add a sixth of a second to every start, and programs would not start where it is not
 * installed. The simulator's is linked in. */
#ifndef SPT_CUBLAS_LIBRARY_H
#define SPT_CUBLAS_LIBRARY_H

#include <cublas_v2.h>

/* For C: in C++ some of these names are overloaded. */
#include "core/status.h"

#define SPT_CUBLAS_TABLE(X)                                           \
  X(create, cublasCreate_v2)                                          \
  X(destroy, cublasDestroy_v2)                                        \
  X(set_stream, cublasSetStream_v2)                                   \
  X(set_workspace, cublasSetWorkspace_v2)                             \
  X(set_math_mode, cublasSetMathMode)                                 \
  X(status_string, cublasGetStatusString)                             \
  X(gemm, cublasGemmEx)                                               \
  X(gemm_strided, cublasGemmStridedBatchedEx)                         \
  X(gemm_batched, cublasGemmBatchedEx)

typedef struct spt_cublas {
#define SPT_CUBLAS_MEMBER(member, function) __typeof__(function) *member;
  SPT_CUBLAS_TABLE(SPT_CUBLAS_MEMBER)
#undef SPT_CUBLAS_MEMBER
} spt_cublas;

/* SPT_ERR_RESOURCE: the library is not there, or not the one this program was built for. It stays loaded. */
spt_status spt_cublas_load(spt_cublas *cublas_p);

#endif
