/* Matrix products by cuBLAS. Ours are row-major, cuBLAS's column-major: Cᵀ = op(B)ᵀ·op(A)ᵀ, the same memory with the operands swapped. */
#include "backend_cuda.h"

#include "cuda_kernels.h"

#include <limits.h>
#include <time.h>

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static cudaDataType_t type_of(spt_dtype dtype) {
  return dtype == SPT_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}
static cublasOperation_t operation(bool transpose) {
  return transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
}

static spt_status check(const spt_cuda *cuda, cublasStatus_t status, int64_t m, int64_t n, int64_t k) {
  if (status == CUBLAS_STATUS_SUCCESS) return SPT_OK;
  return SPT_FAIL(SPT_ERR_RESOURCE, "cuBLAS, product of (%lld, %lld) and (%lld, %lld): %s", (long long)m, (long long)k, (long long)k,
                  (long long)n, cuda->lib.status_string(status));
}

/* While profiling: what was executed, and its time. */
static spt_status begin_product(spt_cuda *cuda, double *began_p) {
  if (!cuda->base.profiling) return SPT_OK;
  SPT_CUDA(cudaStreamSynchronize(cuda->stream));
  *began_p = now();
  return SPT_OK;
}
static spt_status end_product(spt_cuda *cuda, double began) {
  if (!cuda->base.profiling) return SPT_OK;
  SPT_CUDA(cudaStreamSynchronize(cuda->stream));
  cuda->products += now() - began;
  return SPT_OK;
}
static void count_product(spt_cuda *cuda, double batch, double m, double n, double k, double operand_size, double c_bytes) {
  if (!cuda->base.profiling) return;
  cuda->executed.calls++;
  cuda->executed.flops += 2 * batch * m * n * k;
  cuda->executed.bytes += batch * (operand_size * (m * k + k * n) + c_bytes * m * n);
}

spt_status spt_cuda_gemm(spt_cuda *cuda, const spt_cuda_product *p) {
  const int batch = p->batch > 1 ? p->batch : 1;
  if (p->m > INT_MAX || p->n > INT_MAX || p->k > INT_MAX || p->a.ld > INT_MAX || p->b.ld > INT_MAX || p->ldc > INT_MAX)
    return SPT_FAIL(SPT_ERR_RESOURCE, "a matrix of more than %d rows or columns: use a smaller batch.micro", INT_MAX);
  const int m = (int)p->m, n = (int)p->n, k = (int)p->k, lda = (int)p->a.ld, ldb = (int)p->b.ld, ldc = (int)p->ldc;
  const cublasOperation_t op_a = operation(p->a.transpose), op_b = operation(p->b.transpose);
  const cudaDataType_t type = type_of(p->dtype), c_type = type_of(p->c_dtype);
  double began = 0.0;
  SPT_TRY(begin_product(cuda, &began));
  const cublasStatus_t status =
      batch == 1 ? cuda->lib.gemm(cuda->cublas, op_b, op_a, n, m, k, &p->alpha, p->b.data, type, ldb, p->a.data, type, lda, &p->beta, p->c, c_type,
                                ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT)
                 : cuda->lib.gemm_strided(cuda->cublas, op_b, op_a, n, m, k, &p->alpha, p->b.data, type, ldb, p->b.stride, p->a.data, type, lda,
                                              p->a.stride, &p->beta, p->c, c_type, ldc, p->stride_c, batch, CUBLAS_COMPUTE_32F,
                                              CUBLAS_GEMM_DEFAULT);
  SPT_TRY(check(cuda, status, p->m, p->n, p->k));
  count_product(cuda, batch, m, n, k, (double)spt_dtype_size(p->dtype), (double)spt_dtype_size(p->c_dtype) * (p->beta != 0.0f ? 2 : 1));
  return end_product(cuda, began);
}

/* Entries go in batches of one fixed size, the last one filled up by products into scratch: cuBLAS chooses its kernel by the shape and the size of
 * a batch, so that an entry's arithmetic does not depend on how many there are. Strides are not used for the same reason: an entry's place must
 * not matter. */
static spt_status run_batch(spt_cuda *cuda, const spt_gemm_batch *g, int64_t first, void *spare) {
  const int64_t elements = g->m * g->n, size = (int64_t)spt_dtype_size(g->dtype);
  const bool copy = g->d && g->beta != 0.0f;
  spt_cuda_batch entries = {0};
  for (int64_t i = 0; i < SPT_CUDA_BATCH; i++) {
    const bool real = first + i < g->batch;
    const int64_t entry = real ? first + i : first;
    entries.a[i] = g->a[entry];
    entries.b[i] = g->b[entry];
    entries.c[i] = real ? g->c[entry] : (unsigned char *)spare + (size_t)(i - 1) * spt_cuda_spare_bytes(elements, g->dtype);
    if (copy && real && g->d[entry] != g->c[entry]) entries.d[i] = g->d[entry]; // the product adds to C: start it from D
  }
  SPT_CUDA(spt_cuda_batch_prepare(&entries, copy ? elements * size : 0, cuda->batch_table, cuda->stream));
  const int m = (int)g->m, n = (int)g->n, k = (int)g->k, lda = g->transpose_a ? m : k, ldb = g->transpose_b ? k : n;
  const cudaDataType_t type = type_of(g->dtype);
  const void *const *a = cuda->batch_table, *const *b = a + SPT_CUDA_BATCH;
  void *const *c = (void *const *)(uintptr_t)(b + SPT_CUDA_BATCH);
  double began = 0.0;
  SPT_TRY(begin_product(cuda, &began));
  SPT_TRY(check(cuda, cuda->lib.gemm_batched(cuda->cublas, operation(g->transpose_b), operation(g->transpose_a), n, m, k, &g->alpha, b, type, ldb, a, type,
                                    lda, &g->beta, c, type, n, SPT_CUDA_BATCH, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                g->m, g->n, g->k));
  count_product(cuda, SPT_CUDA_BATCH, m, n, k, (double)size, (double)size * (g->beta != 0.0f ? 2 : 1));
  return end_product(cuda, began);
}

spt_status spt_cuda_batched_gemm(spt_backend *backend, const spt_gemm_batch *batch) {
  spt_cuda *cuda;
  SPT_TRY(spt_cuda_begin(backend, &cuda));
  void *spare = NULL;
  SPT_TRY(spt_cuda_scratch(cuda, (SPT_CUDA_BATCH - 1) * spt_cuda_spare_bytes(batch->m * batch->n, batch->dtype), &spare));
  for (int64_t first = 0; first < batch->batch; first += SPT_CUDA_BATCH) SPT_TRY(run_batch(cuda, batch, first, spare));
  return spt_cuda_end(cuda, spt_cost_batched_gemm(batch));
}
