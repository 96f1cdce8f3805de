/* The CPU backend inside: what its ops share. One parallel region per op; a task is a block whose size follows from
 * shapes only, done by one thread, so that no result depends on the number of threads. */
#ifndef SPT_BACKEND_CPU_H
#define SPT_BACKEND_CPU_H

#include "carve.h"
#include "core/op_cost.h"
#include "simd_kernels.h"
#include "vector_math.h"

#define SPT_MESSAGE_MAX 512

/* One thread's own state; padded, so that threads share no cache line. */
typedef struct spt_cpu_thread {
  _Alignas(128) spt_gemm_context *gemm;
  int64_t entered;   /* parallel regions so far */
  spt_status status; /* the first failure inside the running op */
  char message[SPT_MESSAGE_MAX];
} spt_cpu_thread;

enum { SPT_PACKED_SIZES_MAX = 64 };
typedef struct spt_packed_size {
  int64_t n, k;
  size_t bytes;
} spt_packed_size;

typedef struct spt_cpu {
  spt_backend base;
  spt_cpu_thread *threads; /* [base.threads] */
  const spt_simd_kernels *simd;
  bool attention_by_products; /* whole matrix products instead of tiles: where those reach a unit that tiles do not, AMX
                               */
  spt_rope_table rope;
  spt_packed_size *packed_sizes; /* asked for before, [SPT_PACKED_SIZES_MAX] */
  double *partial;               /* fixed-order partial sums of the vector ops */
  int64_t partial_count;
  double began; /* of the running op, while profiling */
  spt_gemm_counts counts_began;
} spt_cpu;

spt_status spt_cpu_open(spt_precision precision, int threads, int local_ranks, spt_backend **backend_p);

/* Frames an op: begin before the parallel region, enter in it by each thread, end after it (returns a thread's failure;
 * while profiling, adds the time and `cost` to the op's row). */
spt_cpu *spt_cpu_begin(spt_backend *backend);
spt_cpu_thread *spt_cpu_enter(spt_cpu *cpu);
spt_status spt_cpu_end(spt_cpu *cpu, spt_op_cost cost);
/* spt_gemm on this thread; a failure is kept in the thread and ends the op. */
void spt_cpu_gemm(spt_cpu_thread *thread, int64_t m, int64_t n, int64_t k, float alpha, spt_operand a, spt_operand b,
                  float beta, void *c, int64_t ldc, spt_dtype c_dtype);
/* Bytes of a weight operand op(B) (k, n) in the library's order, rounded up to whole cache lines. Main thread only. */
size_t spt_cpu_packed_bytes(const spt_cpu *cpu, int64_t n, int64_t k);
/* Packs op(B) (k, n) for it; a failure is kept in the thread and ends the op. */
void spt_cpu_pack(spt_cpu_thread *thread, int64_t n, int64_t k, spt_operand b, void *packed);
/* A thread's own memory for an operand on its way into that order; NULL after a failure, which is kept. */
void *spt_cpu_pack_scratch(spt_cpu_thread *thread, int64_t elements, spt_dtype dtype);
/* Adds to this thread's counts the FLOPs of a matrix product (2·m·n·k) that a kernel executed without spt_cpu_gemm: all
 * that it did, also what a mask or padding then wasted. */
void spt_cpu_count_flops(spt_cpu_thread *thread, double flops);
/* Type of packed weights: act, but fp32 where bf16 products are computed in fp32. */
spt_dtype spt_cpu_weight_dtype(const spt_cpu *cpu);
/* Of all threads together. */
spt_gemm_counts spt_cpu_gemm_counts(const spt_cpu *cpu);
/* Misses of all threads' GEMM caches: constant once the shapes have been seen. For tests. */
int64_t spt_cpu_gemm_misses(const spt_backend *backend);

static inline void *spt_carve_take(spt_carve *carve, int64_t count, size_t size) {
  return spt_carve_aligned(carve, count, size, 64);
}
/* Makes the table cover `positions`. Allocates when shapes are new. */
spt_status spt_rope_prepare(spt_cpu *cpu, double theta, int64_t head_dim, int64_t positions);

/* Ops (backend.h) and the workspace they need. */
size_t spt_cpu_group_workspace(const spt_cpu *cpu, const spt_group_desc *desc, int64_t tokens, bool train);
size_t spt_cpu_attention_workspace(const spt_cpu *cpu, int64_t seq_len, int64_t head_dim, bool train);
size_t spt_cpu_attention_products_workspace(const spt_cpu *cpu, int64_t seq_len, int64_t head_dim, bool train);
size_t spt_cpu_head_workspace(const spt_cpu *cpu, int64_t tokens, int64_t hidden, int64_t vocab, bool train);
size_t spt_cpu_group_packed_bytes(spt_backend *backend, const spt_group_desc *desc);
spt_status spt_cpu_group_pack(spt_backend *backend, const spt_group_desc *desc, const spt_group_sources *masters,
                              void *weights);
/* Packs W (rows, cols) for y = x·Wᵀ and for dx = dy·W. */
void spt_cpu_pack_both(const spt_cpu *cpu, spt_cpu_thread *thread, int64_t rows, int64_t cols, const float *w,
                       void *forward, void *backward);
size_t spt_cpu_head_packed_bytes(spt_backend *backend, int64_t vocab, int64_t hidden);
spt_status spt_cpu_head_pack(spt_backend *backend, int64_t vocab, int64_t hidden, const void *w, spt_dtype dtype, void *weights);
spt_status spt_cpu_embedding_forward(spt_backend *backend, int64_t tokens, int64_t hidden, const int32_t *ids,
                                     const void *table, spt_dtype dtype, float *x);
spt_status spt_cpu_embedding_backward(spt_backend *backend, int64_t tokens, int64_t hidden, int64_t vocab,
                                      const int32_t *ids, const float *dx, float *dtable);
spt_status spt_cpu_group_forward(spt_backend *backend, const spt_group_forward_args *args);
spt_status spt_cpu_group_backward(spt_backend *backend, const spt_group_backward_args *args);
spt_status spt_cpu_attention_forward(spt_backend *backend, const spt_attention_args *args);
spt_status spt_cpu_attention_backward(spt_backend *backend, const spt_attention_args *args);
spt_status spt_cpu_attention_products_forward(spt_backend *backend, const spt_attention_args *args);
spt_status spt_cpu_attention_products_backward(spt_backend *backend, const spt_attention_args *args);
spt_status spt_cpu_head_loss(spt_backend *backend, const spt_head_loss_args *args);
spt_status spt_cpu_batched_gemm(spt_backend *backend, const spt_gemm_batch *batch);
spt_status spt_cpu_add(spt_backend *backend, int64_t count, const float *a, const float *b, float *out);
spt_status spt_cpu_round_bf16(spt_backend *backend, int64_t count, const float *from, void *to);
spt_status spt_cpu_sum(spt_backend *backend, int64_t count, const float *values, double *sum);
spt_status spt_cpu_decide(spt_backend *backend, double grad_clip, spt_control *control);
spt_status spt_cpu_gradient_stats(spt_backend *backend, int64_t count, const float *g, int group, spt_control *control);
spt_status spt_cpu_factor_momentum(spt_backend *backend, int count, const spt_factor_entry *entries, float beta,
                                   bool normalize, spt_dtype dtype, const spt_control *control);
spt_status spt_cpu_power_iteration(spt_backend *backend, int count, const spt_factor_entry *entries, int steps,
                                   const spt_control *control);
spt_status spt_cpu_factor_update(spt_backend *backend, int count, const spt_factor_entry *entries, float lr,
                                 float decay, bool renormalize, spt_dtype dtype, const spt_control *control);
spt_status spt_cpu_adamw(spt_backend *backend, int64_t count, float *w, const float *gradient, float *m, float *v,
                         float lr, float decay, float beta1, float beta2, float eps, int64_t step,
                         const spt_control *control);

#endif
