/* The CUDA backend inside: what its ops share. One device, one compute stream; ops put work on it and return. The host waits in download and
 * synchronize alone (and around every op while profiling). Shapes seen for the first time may allocate. */
#ifndef SPT_BACKEND_CUDA_H
#define SPT_BACKEND_CUDA_H

#include "cublas_library.h"

#include <cuda_runtime_api.h>

#include "carve.h"
#include "core/op_cost.h"

/* What cuBLAS takes on the largest GPUs; set by us, so that it never allocates and always chooses alike. The simulator's needs none. */
#ifdef SPT_SIMGPU
enum { SPT_CUDA_CUBLAS_WORKSPACE = 4096 };
#else
enum { SPT_CUDA_CUBLAS_WORKSPACE = 32 << 20 };
#endif

/* Of activations, compute copies and what Newton–Schulz multiplies. */
static inline spt_dtype spt_cuda_act(spt_precision precision) {
  return precision == SPT_PRECISION_FP32 || precision == SPT_PRECISION_TF32 ? SPT_F32 : SPT_BF16;
}

/* Pinned memory through which ordinary host memory is copied: a ring of slots, each free again once its copy's event has passed. A step takes one,
 * and two a micro-batch of up to 32,768 tokens: where a step has more than 63 of these and the host is a step ahead of the device, it waits for a slot. */
enum { SPT_CUDA_SLOTS = 256, SPT_CUDA_SLOT_BYTES = 1 << 17 };
typedef struct spt_cuda_staging {
  unsigned char *memory; /* (SLOTS, SLOT_BYTES) pinned */
  cudaEvent_t done[SPT_CUDA_SLOTS];
  int64_t used; /* slots taken so far */
} spt_cuda_staging;

/* Small downloads that are taken later, each in a slot of its own. */
enum { SPT_CUDA_LATER = 2 };
typedef struct spt_cuda_later {
  unsigned char *memory; /* (LATER, SPT_LATER_BYTES) pinned */
  cudaEvent_t done[SPT_CUDA_LATER];
} spt_cuda_later;

typedef struct spt_cuda_rope_table {
  double theta;
  int64_t head_dim, positions;
  float *cosine, *sine; /* (positions, head_dim / 2), one allocation */
} spt_cuda_rope_table;

typedef struct spt_cuda {
  spt_backend base;
  int device;
  cudaStream_t stream;
  spt_cublas lib;
  cublasHandle_t cublas;
  void *cublas_workspace;
  spt_cuda_staging staging;
  spt_cuda_later later;
  spt_cuda_rope_table rope;
  void *scratch; /* of the vector ops, in the stream's order */
  size_t scratch_bytes;
  const void **batch_table; /* (3, SPT_CUDA_BATCH) */
  int64_t grown;            /* times that new shapes have allocated */
  /* of the running op, while profiling: seconds, and matrix products executed */
  double began, products;
  struct {
    int64_t calls;
    double flops, bytes;
  } executed;
} spt_cuda;

#define SPT_CUDA(call)                                                                                                 \
  do {                                                                                                                 \
    const cudaError_t spt_cuda_error_ = (call);                                                                        \
    if (spt_cuda_error_ != cudaSuccess)                                                                                \
      return SPT_FAIL(SPT_ERR_RESOURCE, "CUDA: %s: %s", #call, cudaGetErrorString(spt_cuda_error_));                   \
  } while (0)

/* Opens the current device (cudaSetDevice before it chooses another; the first is the default). precision AUTO is bf16, TF32 is fp32 but for
 * the operands of products. threads: of the host, as for
 * the CPU backend. SPT_ERR_RESOURCE: no device, or its libraries failed. */
spt_status spt_cuda_open(spt_precision precision, int threads, int local_ranks, spt_backend **backend_p);
/* Whether a device can be used; why_p: its name, or why not (64 bytes or more). */
bool spt_cuda_present(char *why_p, size_t size);

/* Makes device number local_rank modulo the visible ones the current one; nothing where there is none. */
spt_status spt_cuda_choose(int local_rank);
/* cuda_measure.c: a backend that needs no device and tells sizes alone: its *_bytes work, all else fails with SPT_ERR_RESOURCE. */
spt_status spt_cuda_open_measure(spt_precision precision, spt_backend **backend_p);
/* Device memory that the backend itself comes to hold in training this model, beside the slabs: cuBLAS's workspace, tables, scratch;
 * `edge`: of the largest square products it has been asked for. */
size_t spt_cuda_own_bytes(spt_dtype act, const spt_model_config *model, const spt_optimizer_config *optimizer, int64_t edge);

/* Frames an op: while profiling, both wait for the device, and end adds the time and `cost` to the op's row. */
spt_status spt_cuda_begin(spt_backend *backend, spt_cuda **cuda_p);
spt_status spt_cuda_end(spt_cuda *cuda, spt_op_cost cost);
/* Backend-owned scratch of at least this size, valid until the next call; grows for new shapes only. */
spt_status spt_cuda_scratch(spt_cuda *cuda, size_t bytes, void **scratch_p);

/* cuda_gemm.c: C (m, n) = alpha·op(A)·op(B) + beta·C, row-major, op(A) (m, k), op(B) (k, n); A and B of one type, C of it or fp32; sums in fp32. */
typedef struct spt_cuda_matrix {
  const void *data;
  int64_t ld;
  bool transpose;
  int64_t stride; /* to the next of a batch, in elements */
} spt_cuda_matrix;
typedef struct spt_cuda_product {
  int64_t m, n, k;
  spt_cuda_matrix a, b;
  spt_dtype dtype;
  float alpha, beta;
  void *c;
  int64_t ldc, stride_c;
  spt_dtype c_dtype;
  int batch; /* 0 or 1: one product */
} spt_cuda_product;
spt_status spt_cuda_gemm(spt_cuda *cuda, const spt_cuda_product *product);

static inline void *spt_cuda_take(spt_carve *carve, int64_t count, size_t size) {
  return spt_carve_aligned(carve, count, size, 256);
}
static inline void *spt_cuda_at(const void *data, int64_t index, spt_dtype dtype) {
  return (unsigned char *)(uintptr_t)data + index * (int64_t)spt_dtype_size(dtype);
}

/* Ops (backend.h) and the workspace they need. */
size_t spt_cuda_workspace_bytes(spt_backend *backend, const spt_model_config *model, int64_t tokens, bool train);
size_t spt_cuda_group_workspace(const spt_cuda *cuda, const spt_group_desc *desc, int64_t tokens, bool train);
size_t spt_cuda_head_workspace(const spt_cuda *cuda, int64_t tokens, int64_t hidden, int64_t vocab, bool train);
spt_status spt_cuda_rope_prepare(spt_cuda *cuda, double theta, int64_t head_dim, int64_t positions);
size_t spt_cuda_group_packed_bytes(spt_backend *backend, const spt_group_desc *desc);
spt_status spt_cuda_group_pack(spt_backend *backend, const spt_group_desc *desc, const spt_group_sources *masters, void *weights);
size_t spt_cuda_head_packed_bytes(spt_backend *backend, int64_t vocab, int64_t hidden);
spt_status spt_cuda_head_pack(spt_backend *backend, int64_t vocab, int64_t hidden, const void *w, spt_dtype dtype, void *weights);
spt_status spt_cuda_embedding_forward(spt_backend *backend, int64_t tokens, int64_t hidden, const int32_t *ids, const void *table, spt_dtype dtype,
                                      float *x);
spt_status spt_cuda_embedding_backward(spt_backend *backend, int64_t tokens, int64_t hidden, int64_t vocab, const int32_t *ids,
                                       const float *dx, float *dtable);
spt_status spt_cuda_group_forward(spt_backend *backend, const spt_group_forward_args *args);
spt_status spt_cuda_group_backward(spt_backend *backend, const spt_group_backward_args *args);
spt_status spt_cuda_head_loss(spt_backend *backend, const spt_head_loss_args *args);
spt_status spt_cuda_batched_gemm(spt_backend *backend, const spt_gemm_batch *batch);
spt_status spt_cuda_sum_values(spt_backend *backend, int64_t count, const float *values, double *sum);
spt_status spt_cuda_decide(spt_backend *backend, double grad_clip, spt_control *control);
spt_status spt_cuda_gradient_stats(spt_backend *backend, int64_t count, const float *g, int group, spt_control *control);
spt_status spt_cuda_factor_momentum(spt_backend *backend, int count, const spt_factor_entry *entries, float beta, bool normalize,
                                    spt_dtype dtype, const spt_control *control);
spt_status spt_cuda_power_iteration(spt_backend *backend, int count, const spt_factor_entry *entries, int steps, const spt_control *control);
spt_status spt_cuda_factor_update(spt_backend *backend, int count, const spt_factor_entry *entries, float lr, float decay, bool renormalize,
                                  spt_dtype dtype, const spt_control *control);
spt_status spt_cuda_adamw(spt_backend *backend, int64_t count, float *w, const float *gradient, float *m, float *v, float lr, float decay,
                          float beta1, float beta2, float eps, int64_t step, const spt_control *control);

#endif
