#include "backend_cpu.h"
#include "host_threads.h"

#include <limits.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

spt_gemm_counts spt_cpu_gemm_counts(const spt_cpu *cpu) {
  spt_gemm_counts sum = {0};
  for (int i = 0; i < cpu->base.threads; i++) {
    const spt_gemm_counts *counts = spt_gemm_counters(cpu->threads[i].gemm);
    sum.calls += counts->calls;
    sum.misses += counts->misses;
    sum.reference_primitives += counts->reference_primitives;
    sum.flops += counts->flops;
    sum.bytes += counts->bytes;
    sum.seconds += counts->seconds;
  }
  return sum;
}

spt_cpu *spt_cpu_begin(spt_backend *backend) {
  spt_cpu *cpu = (spt_cpu *)backend;
  if (backend->profiling) {
    for (int i = 0; i < backend->threads; i++) spt_gemm_set_timing(cpu->threads[i].gemm, true);
    cpu->counts_began = spt_cpu_gemm_counts(cpu);
    cpu->began = now();
  }
  return cpu;
}

spt_cpu_thread *spt_cpu_enter(spt_cpu *cpu) {
  spt_gemm_enter();
  spt_cpu_thread *thread = &cpu->threads[omp_get_thread_num()];
  thread->entered++;
  return thread;
}

spt_status spt_cpu_end(spt_cpu *cpu, spt_op_cost cost) {
  if (cpu->base.profiling) {
    spt_op_profile *row = &cpu->base.profile.ops[cost.op][cost.backward];
    const spt_gemm_counts counts = spt_cpu_gemm_counts(cpu), *before = &cpu->counts_began;
    row->calls++;
    row->seconds += now() - cpu->began;
    row->products += (counts.seconds - before->seconds) / cpu->base.threads;
    row->flops += cost.flops;
    row->bytes += cost.bytes;
    row->executed_products += counts.calls - before->calls;
    row->executed_flops += counts.flops - before->flops;
    row->executed_bytes += counts.bytes - before->bytes;
  }
  for (int i = 0; i < cpu->base.threads; i++) {
    spt_cpu_thread *thread = &cpu->threads[i];
    if (thread->status == SPT_OK) continue;
    const spt_status status = thread->status;
    thread->status = SPT_OK;
    return SPT_FAIL(status, "%s", thread->message);
  }
  return SPT_OK;
}

static void keep(spt_cpu_thread *thread, spt_status status) {
  thread->status = status;
  if (status != SPT_OK)
    snprintf(thread->message, sizeof thread->message, "%s", spt_error_message()); // the last error is the thread's own
}

void spt_cpu_gemm(spt_cpu_thread *thread, int64_t m, int64_t n, int64_t k, float alpha, spt_operand a, spt_operand b,
                  float beta, void *c, int64_t ldc, spt_dtype c_dtype) {
  if (thread->status == SPT_OK) keep(thread, spt_gemm(thread->gemm, m, n, k, alpha, a, b, beta, c, ldc, c_dtype));
}

void spt_cpu_count_flops(spt_cpu_thread *thread, double flops) {
  spt_gemm_counters(thread->gemm)->flops += flops;
}

spt_dtype spt_cpu_weight_dtype(const spt_cpu *cpu) {
  return cpu->base.act == SPT_BF16 && spt_gemm_bf16_unit() ? SPT_BF16 : SPT_F32;
}

/* The library answers slowly: what it said is kept. */
size_t spt_cpu_packed_bytes(const spt_cpu *cpu, int64_t n, int64_t k) {
  spt_packed_size *size = cpu->packed_sizes;
  for (int i = 0; i < SPT_PACKED_SIZES_MAX - 1 && size->bytes > 0 && (size->n != n || size->k != k); i++) size++;
  if (size->bytes == 0 || size->n != n || size->k != k)
    *size = (spt_packed_size){n, k, spt_gemm_packed_bytes(cpu->threads[0].gemm, n, k, spt_cpu_weight_dtype(cpu))};
  return (size->bytes + 63) & ~(size_t)63;
}

void spt_cpu_pack(spt_cpu_thread *thread, int64_t n, int64_t k, spt_operand b, void *packed) {
  if (thread->status == SPT_OK) keep(thread, spt_gemm_pack(thread->gemm, n, k, b, packed));
}

void *spt_cpu_pack_scratch(spt_cpu_thread *thread, int64_t elements, spt_dtype dtype) {
  void *scratch = NULL;
  if (thread->status == SPT_OK)
    keep(thread, spt_gemm_scratch(thread->gemm, (size_t)elements * spt_dtype_size(dtype), &scratch));
  return thread->status == SPT_OK ? scratch : NULL;
}

int64_t spt_cpu_gemm_misses(const spt_backend *backend) {
  return spt_cpu_gemm_counts((const spt_cpu *)backend).misses;
}

static void cpu_close(spt_backend **backend_p) {
  spt_cpu *cpu = (spt_cpu *)*backend_p;
  if (!cpu) return;
  for (int i = 0; cpu->threads && i < cpu->base.threads; i++) spt_gemm_close(&cpu->threads[i].gemm);
  free(cpu->threads);
  free(cpu->rope.cosine);
  free(cpu->packed_sizes);
  free(cpu->partial);
  free(cpu);
  *backend_p = NULL;
}

/* Large blocks are aligned to huge pages, which spares the products most TLB misses; pages are first touched by all
 * threads. */
static spt_status cpu_alloc(spt_backend *backend, size_t bytes, void **pointer_p) {
  enum { HUGE_PAGE = 2 << 20, LINE = 64 };
  const size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : LINE;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  unsigned char *memory = rounded >= bytes ? aligned_alloc(alignment, rounded ? rounded : alignment) : NULL;
  if (!memory)
    return SPT_FAIL(SPT_ERR_RESOURCE,
                    "out of memory: %zu bytes; use a smaller micro-batch, model.recompute, or more ranks", bytes);
#ifdef MADV_HUGEPAGE
  if (alignment == HUGE_PAGE) (void)madvise(memory, rounded, MADV_HUGEPAGE); // a wish: refusal costs speed only
#endif
#pragma omp parallel for num_threads(backend->threads) schedule(static)
  for (size_t begin = 0; begin < rounded; begin += HUGE_PAGE)
    memset(memory + begin, 0, rounded - begin < HUGE_PAGE ? rounded - begin : HUGE_PAGE);
  *pointer_p = memory;
  return SPT_OK;
}

static void cpu_free(spt_backend *backend, void *pointer, size_t bytes) {
  (void)backend, (void)bytes;
  free(pointer);
}

static spt_status cpu_copy(spt_backend *backend, void *to, const void *from, size_t bytes) {
  (void)backend;
  memcpy(to, from, bytes);
  return SPT_OK;
}

static spt_status cpu_zero(spt_backend *backend, void *pointer, size_t bytes) {
  enum { CHUNK = 1 << 20 };
  spt_cpu *cpu = spt_cpu_begin(backend);
#pragma omp parallel for num_threads(backend->threads) schedule(static)
  for (size_t begin = 0; begin < bytes; begin += CHUNK)
    memset((unsigned char *)pointer + begin, 0, bytes - begin < CHUNK ? bytes - begin : CHUNK);
  return spt_cpu_end(cpu, spt_cost_flat(SPT_OP_ZERO, (int64_t)bytes, 0, 1));
}

static spt_status cpu_synchronize(spt_backend *backend) {
  (void)backend;
  return SPT_OK;
}

static size_t cpu_workspace_bytes(spt_backend *backend, const spt_model_config *model, int64_t tokens, bool train) {
  const spt_cpu *cpu = (const spt_cpu *)backend;
  const int64_t hidden = model->hidden, ffn = model->ffn, kv = model->kv_heads * spt_head_dim(model);
  const bool attention_low = model->parameterization == SPT_LOW_RANK, ffn_low = model->parameterization != SPT_DENSE;
#define RANK(low, m, n) ((low) ? spt_factor_rank(model->rank_ratio, (m), (n)) : 0)
  spt_group_desc groups[] = {{.count = 3,
                                    .in_dim = hidden,
                                    .out_dim = {hidden, kv, kv},
                                    .prologue = SPT_PROLOGUE_RMSNORM,
                                    .epilogue = SPT_EPILOGUE_ROPE,
                                    .factor_rank = {RANK(attention_low, hidden, hidden),
                                                    RANK(attention_low, kv, hidden), RANK(attention_low, kv, hidden)}},
                                   {.count = 1,
                                    .in_dim = hidden,
                                    .out_dim = {hidden},
                                    .epilogue = SPT_EPILOGUE_RESIDUAL,
                                    .factor_rank = {RANK(attention_low, hidden, hidden)}},
                                   {.count = 2,
                                    .in_dim = hidden,
                                    .out_dim = {ffn, ffn},
                                    .prologue = SPT_PROLOGUE_RMSNORM,
                                    .factor_rank = {RANK(ffn_low, ffn, hidden), RANK(ffn_low, ffn, hidden)}},
                                   {.count = 1,
                                    .in_dim = ffn,
                                    .out_dim = {hidden},
                                    .prologue = SPT_PROLOGUE_SWIGLU,
                                    .epilogue = SPT_EPILOGUE_RESIDUAL,
                                    .factor_rank = {RANK(ffn_low, hidden, ffn)}}};
#undef RANK
  size_t most = spt_cpu_attention_workspace(cpu, model->seq_len, spt_head_dim(model), train);
  const size_t head = spt_cpu_head_workspace(cpu, tokens, hidden, model->vocab, train);
  if (head > most) most = head;
  for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
    groups[i].guided = model->guided && groups[i].factor_rank[0] > 0;
    const size_t bytes = spt_cpu_group_workspace(cpu, &groups[i], tokens, train);
    if (bytes > most) most = bytes;
  }
  return most;
}

static const spt_ops cpu_ops = {.name = "cpu",
                                .close = cpu_close,
                                .alloc = cpu_alloc,
                                .free = cpu_free,
                                .upload = cpu_copy,
                                .download = cpu_copy,
                                .zero = cpu_zero,
                                .synchronize = cpu_synchronize,
                                .workspace_bytes = cpu_workspace_bytes,
                                .group_packed_bytes = spt_cpu_group_packed_bytes,
                                .group_pack = spt_cpu_group_pack,
                                .head_packed_bytes = spt_cpu_head_packed_bytes,
                                .head_pack = spt_cpu_head_pack,
                                .embedding_forward = spt_cpu_embedding_forward,
                                .embedding_backward = spt_cpu_embedding_backward,
                                .group_forward = spt_cpu_group_forward,
                                .group_backward = spt_cpu_group_backward,
                                .attention_forward = spt_cpu_attention_forward,
                                .attention_backward = spt_cpu_attention_backward,
                                .head_loss = spt_cpu_head_loss,
                                .batched_gemm = spt_cpu_batched_gemm,
                                .add = spt_cpu_add,
                                .round_bf16 = spt_cpu_round_bf16,
                                .gradient_stats = spt_cpu_gradient_stats,
                                .sum = spt_cpu_sum,
                                .decide = spt_cpu_decide,
                                .factor_momentum = spt_cpu_factor_momentum,
                                .power_iteration = spt_cpu_power_iteration,
                                .factor_update = spt_cpu_factor_update,
                                .adamw = spt_cpu_adamw};

static spt_status open_threads(spt_cpu *cpu, bool native) {
  const size_t bytes = (size_t)cpu->base.threads * sizeof *cpu->threads;
  cpu->threads = aligned_alloc(_Alignof(spt_cpu_thread), bytes);
  if (!cpu->threads) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for %d threads", cpu->base.threads);
  memset(cpu->threads, 0, bytes);
  for (int i = 0; i < cpu->base.threads; i++) SPT_TRY(spt_gemm_open(native, &cpu->threads[i].gemm));
  return SPT_OK;
}

spt_status spt_cpu_open(spt_precision precision, int threads, int local_ranks, spt_backend **backend_p) {
  if (precision == SPT_PRECISION_TF32)
    return SPT_FAIL(SPT_ERR_USAGE, "device.precision = \"tf32\" is for GPUs: use \"fp32\", \"bf16\" or \"auto\" on the CPU");
  const char *unit = spt_gemm_bf16_unit();
  spt_cpu *cpu = calloc(1, sizeof *cpu);
  if (!cpu) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the CPU backend");
  cpu->packed_sizes = calloc(SPT_PACKED_SIZES_MAX, sizeof *cpu->packed_sizes);
  if (!cpu->packed_sizes) {
    free(cpu);
    return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the CPU backend");
  }
  cpu->base.ops = &cpu_ops;
  cpu->base.host_memory = true;
  cpu->simd = spt_simd_kernels_for(spt_gemm_isa());
  cpu->attention_by_products = unit && strcmp(unit, "AMX") == 0;
  cpu->base.act = precision == SPT_PRECISION_BF16 || (precision == SPT_PRECISION_AUTO && unit) ? SPT_BF16 : SPT_F32;
  cpu->base.threads = spt_host_threads(threads, local_ranks);
  spt_host_flush_subnormals(cpu->base.threads);
  const int share = spt_host_share(local_ranks);
  cpu->base.processors = share < cpu->base.threads ? share : cpu->base.threads;
  const spt_status status = open_threads(cpu, unit != NULL);
  if (status != SPT_OK) {
    spt_backend *base = &cpu->base;
    cpu_close(&base);
    return status;
  }
  char library[64];
  spt_gemm_library(library, sizeof library);
  char arithmetic[64] = "fp32";
  if (cpu->base.act == SPT_BF16)
    snprintf(arithmetic, sizeof arithmetic, "bf16 (%s)", unit ? unit : "rounded operands, fp32 arithmetic");
  snprintf(cpu->base.description, sizeof cpu->base.description, "cpu, %d thread%s, %s, %s, %s loops", cpu->base.threads,
           cpu->base.threads == 1 ? "" : "s", arithmetic, library, cpu->simd->name);
  *backend_p = &cpu->base;
  return SPT_OK;
}
