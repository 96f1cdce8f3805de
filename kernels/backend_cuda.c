/* The CUDA backend: device, memory, copies, and the table of its ops. */
#include "backend_cuda.h"

#include "attention_cuda.h"
#include "cuda_kernels.h"
#include "host_threads.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

spt_status spt_cuda_begin(spt_backend *backend, spt_cuda **cuda_p) {
  spt_cuda *cuda = *cuda_p = (spt_cuda *)backend;
  if (!backend->profiling) return SPT_OK;
  SPT_CUDA(cudaStreamSynchronize(cuda->stream));
  cuda->products = cuda->executed.flops = cuda->executed.bytes = 0.0;
  cuda->executed.calls = 0;
  cuda->began = now();
  return SPT_OK;
}

spt_status spt_cuda_end(spt_cuda *cuda, spt_op_cost cost) {
  if (!cuda->base.profiling) return SPT_OK;
  SPT_CUDA(cudaStreamSynchronize(cuda->stream));
  spt_op_profile *row = &cuda->base.profile.ops[cost.op][cost.backward];
  row->calls++;
  row->seconds += now() - cuda->began;
  row->products += cuda->products;
  row->flops += cost.flops;
  row->bytes += cost.bytes;
  row->executed_products += cuda->executed.calls;
  row->executed_flops += cuda->executed.flops;
  row->executed_bytes += cuda->executed.bytes;
  return SPT_OK;
}

/* ---- memory ---- */

static spt_status allocate(size_t bytes, void **pointer_p) {
  const cudaError_t error = cudaMalloc(pointer_p, bytes ? bytes : 1);
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError(); // it is told here, not by the next call
    size_t available = 0, total = 0;
    (void)cudaMemGetInfo(&available, &total);
    return SPT_FAIL(SPT_ERR_RESOURCE,
                    "out of GPU memory: %zu bytes asked for, %zu of %zu free; use a smaller batch.micro, model.recompute, or more ranks",
                    bytes, available, total);
  }
  SPT_CUDA(error);
  return SPT_OK;
}

static spt_status cuda_alloc(spt_backend *backend, size_t bytes, void **pointer_p) {
  spt_cuda *cuda = (spt_cuda *)backend;
  void *memory = NULL;
  SPT_TRY(allocate(bytes, &memory));
  const cudaError_t error = cudaMemsetAsync(memory, 0, bytes, cuda->stream);
  if (error != cudaSuccess) (void)cudaFree(memory);
  SPT_CUDA(error);
  *pointer_p = memory;
  return SPT_OK;
}

static void cuda_free(spt_backend *backend, void *pointer, size_t bytes) {
  (void)backend, (void)bytes;
  (void)cudaFree(pointer); // waits for what uses it
}

spt_status spt_cuda_scratch(spt_cuda *cuda, size_t bytes, void **scratch_p) {
  if (bytes > cuda->scratch_bytes) {
    void *larger = NULL;
    SPT_TRY(allocate(bytes, &larger));
    cuda->grown++;
    SPT_CUDA(cudaFree(cuda->scratch)); // waits for what uses it
    cuda->scratch = larger;
    cuda->scratch_bytes = bytes;
  }
  *scratch_p = cuda->scratch;
  return SPT_OK;
}

/* The next slot, once its last copy is done: as a rule it is, and the host does not wait. */
static spt_status take_slot(spt_cuda *cuda, int *slot_p) {
  const int slot = (int)(cuda->staging.used % SPT_CUDA_SLOTS);
  if (cuda->staging.used >= SPT_CUDA_SLOTS) {
    const cudaError_t state = cudaEventQuery(cuda->staging.done[slot]);
    if (state == cudaErrorNotReady) {
      (void)cudaGetLastError(); // or the next launch might be blamed
      SPT_CUDA(cudaEventSynchronize(cuda->staging.done[slot]));
    } else {
      SPT_CUDA(state);
    }
  }
  cuda->staging.used++;
  *slot_p = slot;
  return SPT_OK;
}
static unsigned char *slot_memory(const spt_cuda *cuda, int slot) {
  return cuda->staging.memory + (size_t)slot * SPT_CUDA_SLOT_BYTES;
}
static size_t part_at(size_t bytes, size_t begin) {
  return bytes - begin < SPT_CUDA_SLOT_BYTES ? bytes - begin : SPT_CUDA_SLOT_BYTES;
}

/* The host's memory is free again on return, the copy is still under way. */
static spt_status cuda_upload(spt_backend *backend, void *device, const void *host, size_t bytes) {
  spt_cuda *cuda = (spt_cuda *)backend;
  SPT_CUDA(cudaSetDevice(cuda->device)); // a thread's own, and device 0 in one that never chose: copies are made by workers too
  for (size_t begin = 0; begin < bytes; begin += SPT_CUDA_SLOT_BYTES) {
    const size_t part = part_at(bytes, begin);
    int slot = 0;
    SPT_TRY(take_slot(cuda, &slot));
    memcpy(slot_memory(cuda, slot), (const unsigned char *)host + begin, part);
    SPT_CUDA(cudaMemcpyAsync((unsigned char *)device + begin, slot_memory(cuda, slot), part, cudaMemcpyHostToDevice, cuda->stream));
    SPT_CUDA(cudaEventRecord(cuda->staging.done[slot], cuda->stream));
  }
  return SPT_OK;
}

/* Copies of the next parts go on while one is taken from its slot. */
static spt_status cuda_download(spt_backend *backend, void *host, const void *device, size_t bytes) {
  spt_cuda *cuda = (spt_cuda *)backend;
  SPT_CUDA(cudaSetDevice(cuda->device)); // as in upload
  int slots[SPT_CUDA_SLOTS];
  size_t issued = 0, taken = 0; // parts
  const size_t parts = (bytes + SPT_CUDA_SLOT_BYTES - 1) / SPT_CUDA_SLOT_BYTES;
  if (parts == 0) SPT_CUDA(cudaStreamSynchronize(cuda->stream));
  while (taken < parts) {
    for (; issued < parts && issued < taken + SPT_CUDA_SLOTS; issued++) {
      const size_t begin = issued * SPT_CUDA_SLOT_BYTES;
      int *slot = &slots[issued % SPT_CUDA_SLOTS];
      SPT_TRY(take_slot(cuda, slot));
      SPT_CUDA(cudaMemcpyAsync(slot_memory(cuda, *slot), (const unsigned char *)device + begin, part_at(bytes, begin), cudaMemcpyDeviceToHost,
                               cuda->stream));
      SPT_CUDA(cudaEventRecord(cuda->staging.done[*slot], cuda->stream));
    }
    const size_t begin = taken * SPT_CUDA_SLOT_BYTES;
    const int slot = slots[taken % SPT_CUDA_SLOTS];
    SPT_CUDA(cudaEventSynchronize(cuda->staging.done[slot]));
    memcpy((unsigned char *)host + begin, slot_memory(cuda, slot), part_at(bytes, begin));
    taken++;
  }
  return SPT_OK;
}

static unsigned char *later_memory(const spt_cuda *cuda, int slot) {
  return cuda->later.memory + (size_t)slot * SPT_LATER_BYTES;
}
static spt_status cuda_later_issue(spt_backend *backend, int slot, const void *device, size_t bytes) {
  spt_cuda *cuda = (spt_cuda *)backend;
  SPT_CUDA(cudaMemcpyAsync(later_memory(cuda, slot), device, bytes, cudaMemcpyDeviceToHost, cuda->stream));
  SPT_CUDA(cudaEventRecord(cuda->later.done[slot], cuda->stream));
  return SPT_OK;
}
static spt_status cuda_later_take(spt_backend *backend, int slot, void *host, size_t bytes, bool *done_p) {
  spt_cuda *cuda = (spt_cuda *)backend;
  const cudaError_t state = cudaEventQuery(cuda->later.done[slot]);
  *done_p = state == cudaSuccess;
  if (state == cudaErrorNotReady) return (void)cudaGetLastError(), SPT_OK;
  SPT_CUDA(state);
  memcpy(host, later_memory(cuda, slot), bytes);
  return SPT_OK;
}

static spt_status cuda_zero(spt_backend *backend, void *pointer, size_t bytes) {
  spt_cuda *cuda;
  SPT_TRY(spt_cuda_begin(backend, &cuda));
  SPT_CUDA(cudaMemsetAsync(pointer, 0, bytes, cuda->stream));
  return spt_cuda_end(cuda, spt_cost_flat(SPT_OP_ZERO, (int64_t)bytes, 0, 1));
}

static spt_status cuda_synchronize(spt_backend *backend) {
  SPT_CUDA(cudaStreamSynchronize(((spt_cuda *)backend)->stream));
  return SPT_OK;
}

static spt_status cuda_add(spt_backend *backend, int64_t count, const float *a, const float *b, float *out) {
  spt_cuda *cuda;
  SPT_TRY(spt_cuda_begin(backend, &cuda));
  if (b)
    SPT_CUDA(spt_cuda_sum(count, a, b, out, cuda->stream));
  else if (out != a)
    SPT_CUDA(cudaMemcpyAsync(out, a, (size_t)count * sizeof *out, cudaMemcpyDeviceToDevice, cuda->stream));
  return spt_cuda_end(cuda, spt_cost_flat(SPT_OP_ADD, count, b ? 8 : 4, 4));
}

static spt_status cuda_round_bf16(spt_backend *backend, int64_t count, const float *from, void *to) {
  spt_cuda *cuda;
  SPT_TRY(spt_cuda_begin(backend, &cuda));
  SPT_CUDA(spt_cuda_convert(count, from, to, SPT_BF16, cuda->stream));
  return spt_cuda_end(cuda, spt_cost_flat(SPT_OP_PACK, count, 4, 2));
}

/* ---- attention, embedding ---- */

static spt_status attention_forward(spt_backend *backend, const spt_attention_args *args) {
  spt_cuda *cuda;
  SPT_TRY(spt_cuda_begin(backend, &cuda));
  SPT_TRY(spt_cuda_attention_forward(args, backend->act, cuda->stream));
  return spt_cuda_end(cuda, spt_cost_attention(args, backend->act, false));
}
static spt_status attention_backward(spt_backend *backend, const spt_attention_args *args) {
  spt_cuda *cuda;
  SPT_TRY(spt_cuda_begin(backend, &cuda));
  SPT_TRY(spt_cuda_attention_backward(args, backend->act, cuda->stream));
  return spt_cuda_end(cuda, spt_cost_attention(args, backend->act, true));
}

spt_status spt_cuda_embedding_forward(spt_backend *backend, int64_t tokens, int64_t hidden, const int32_t *ids, const void *table, spt_dtype dtype,
                                      float *x) {
  spt_cuda *cuda;
  SPT_TRY(spt_cuda_begin(backend, &cuda));
  SPT_CUDA(spt_cuda_embed(tokens, hidden, ids, table, dtype, x, cuda->stream));
  return spt_cuda_end(cuda, spt_cost_embedding(tokens, hidden, dtype, false));
}
spt_status spt_cuda_embedding_backward(spt_backend *backend, int64_t tokens, int64_t hidden, int64_t vocab, const int32_t *ids,
                                       const float *dx, float *dtable) {
  (void)vocab;
  spt_cuda *cuda;
  SPT_TRY(spt_cuda_begin(backend, &cuda));
  SPT_CUDA(spt_cuda_embed_backward(tokens, hidden, ids, dx, dtable, cuda->stream));
  return spt_cuda_end(cuda, spt_cost_embedding(tokens, hidden, SPT_F32, true));
}

/* ---- the table ---- */

static int64_t rank_of(const spt_model_config *model, bool low, int64_t m, int64_t n) {
  return low ? spt_factor_rank(model->rank_ratio, m, n) : 0;
}

size_t spt_cuda_workspace_bytes(spt_backend *backend, const spt_model_config *model, int64_t tokens, bool train) {
  const spt_cuda *cuda = (const spt_cuda *)backend;
  const int64_t hidden = model->hidden, ffn = model->ffn, kv = model->kv_heads * spt_head_dim(model);
  const bool attention_low = model->parameterization == SPT_LOW_RANK, ffn_low = model->parameterization != SPT_DENSE;
  const int64_t r = rank_of(model, attention_low, hidden, hidden), r_kv = rank_of(model, attention_low, kv, hidden),
                r_up = rank_of(model, ffn_low, ffn, hidden), r_down = rank_of(model, ffn_low, hidden, ffn);
  spt_group_desc groups[] = {{.count = 3,
                                    .in_dim = hidden,
                                    .out_dim = {hidden, kv, kv},
                                    .factor_rank = {r, r_kv, r_kv},
                                    .prologue = SPT_PROLOGUE_RMSNORM,
                                    .epilogue = SPT_EPILOGUE_ROPE},
                                   {.count = 1,
                                    .in_dim = hidden,
                                    .out_dim = {hidden},
                                    .factor_rank = {r},
                                    .epilogue = SPT_EPILOGUE_RESIDUAL},
                                   {.count = 2,
                                    .in_dim = hidden,
                                    .out_dim = {ffn, ffn},
                                    .factor_rank = {r_up, r_up},
                                    .prologue = SPT_PROLOGUE_RMSNORM},
                                   {.count = 1,
                                    .in_dim = ffn,
                                    .out_dim = {hidden},
                                    .factor_rank = {r_down},
                                    .prologue = SPT_PROLOGUE_SWIGLU,
                                    .epilogue = SPT_EPILOGUE_RESIDUAL}};
  size_t most = train ? spt_cuda_attention_workspace(tokens, model->heads) : 0;
  const size_t head = spt_cuda_head_workspace(cuda, tokens, hidden, model->vocab, train);
  if (head > most) most = head;
  for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
    groups[i].guided = model->guided && groups[i].factor_rank[0] > 0;
    const size_t bytes = spt_cuda_group_workspace(cuda, &groups[i], tokens, train);
    if (bytes > most) most = bytes;
  }
  return most;
}

static void cuda_close(spt_backend **backend_p) {
  spt_cuda *cuda = (spt_cuda *)*backend_p;
  if (!cuda) return;
  if (cuda->stream) (void)cudaStreamSynchronize(cuda->stream);
  if (cuda->cublas) (void)cuda->lib.destroy(cuda->cublas);
  (void)cudaFree(cuda->cublas_workspace);
  (void)cudaFree(cuda->rope.cosine);
  (void)cudaFree(cuda->scratch);
  (void)cudaFree(cuda->batch_table);
  for (int i = 0; i < SPT_CUDA_SLOTS; i++)
    if (cuda->staging.done[i]) (void)cudaEventDestroy(cuda->staging.done[i]);
  (void)cudaFreeHost(cuda->staging.memory);
  for (int i = 0; i < SPT_CUDA_LATER; i++)
    if (cuda->later.done[i]) (void)cudaEventDestroy(cuda->later.done[i]);
  (void)cudaFreeHost(cuda->later.memory);
  if (cuda->stream) (void)cudaStreamDestroy(cuda->stream);
  free(cuda);
  *backend_p = NULL;
}

#ifdef SPT_SIMGPU
void simgpu_guard(void *memory, size_t bytes, bool gap); // tests/simgpu/memory.cpp
static void cuda_guard(spt_backend *backend, void *memory, size_t bytes, bool gap) {
  (void)backend;
  simgpu_guard(memory, bytes, gap);
}
#endif

static const spt_ops cuda_ops = {.name = "cuda",
#ifdef SPT_SIMGPU
                                 .guard = cuda_guard,
#endif
                                 .close = cuda_close,
                                 .alloc = cuda_alloc,
                                 .free = cuda_free,
                                 .upload = cuda_upload,
                                 .download = cuda_download,
                                 .zero = cuda_zero,
                                 .add = cuda_add,
                                 .round_bf16 = cuda_round_bf16,
                                 .synchronize = cuda_synchronize,
                                 .later_issue = cuda_later_issue,
                                 .later_take = cuda_later_take,
                                 .workspace_bytes = spt_cuda_workspace_bytes,
                                 .group_packed_bytes = spt_cuda_group_packed_bytes,
                                 .group_pack = spt_cuda_group_pack,
                                 .head_packed_bytes = spt_cuda_head_packed_bytes,
                                 .head_pack = spt_cuda_head_pack,
                                 .embedding_forward = spt_cuda_embedding_forward,
                                 .embedding_backward = spt_cuda_embedding_backward,
                                 .group_forward = spt_cuda_group_forward,
                                 .group_backward = spt_cuda_group_backward,
                                 .attention_forward = attention_forward,
                                 .attention_backward = attention_backward,
                                 .head_loss = spt_cuda_head_loss,
                                 .batched_gemm = spt_cuda_batched_gemm,
                                 .gradient_stats = spt_cuda_gradient_stats,
                                 .sum = spt_cuda_sum_values,
                                 .decide = spt_cuda_decide,
                                 .factor_momentum = spt_cuda_factor_momentum,
                                 .power_iteration = spt_cuda_power_iteration,
                                 .factor_update = spt_cuda_factor_update,
                                 .adamw = spt_cuda_adamw};

/* ---- opening ---- */

bool spt_cuda_present(char *why_p, size_t size) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();
  if (error != cudaSuccess || count < 1) {
    snprintf(why_p, size, "%s", error != cudaSuccess ? cudaGetErrorString(error) : "none is visible");
    return false;
  }
  struct cudaDeviceProp properties;
  int device = 0;
  if (cudaGetDevice(&device) == cudaSuccess && cudaGetDeviceProperties(&properties, device) == cudaSuccess && properties.major >= 8) {
    snprintf(why_p, size, "%s", properties.name);
    return true;
  }
  snprintf(why_p, size, "its compute capability is below 8.0");
  return false;
}

spt_status spt_cuda_choose(int local_rank) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();
  if (error != cudaSuccess || count < 1) return SPT_OK; // told where one is asked for
  SPT_CUDA(cudaSetDevice(local_rank % count));
  return SPT_OK;
}

static spt_status open_cublas(spt_cuda *cuda, bool tf32) {
  const spt_cublas *lib = &cuda->lib;
  SPT_TRY(spt_cublas_load(&cuda->lib));
  cublasStatus_t status = lib->create(&cuda->cublas);
  if (status == CUBLAS_STATUS_SUCCESS) status = lib->set_stream(cuda->cublas, cuda->stream);
  // after the stream, which resets it; a workspace of our own makes results repeatable
  if (status == CUBLAS_STATUS_SUCCESS) {
    SPT_TRY(allocate(SPT_CUDA_CUBLAS_WORKSPACE, &cuda->cublas_workspace));
    status = lib->set_workspace(cuda->cublas, cuda->cublas_workspace, SPT_CUDA_CUBLAS_WORKSPACE);
  }
  const cublasMath_t math = (tf32 ? CUBLAS_TF32_TENSOR_OP_MATH : CUBLAS_DEFAULT_MATH) | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
  if (status == CUBLAS_STATUS_SUCCESS) status = lib->set_math_mode(cuda->cublas, math);
  if (status != CUBLAS_STATUS_SUCCESS) return SPT_FAIL(SPT_ERR_RESOURCE, "cuBLAS does not start: %s", lib->status_string(status));
  return SPT_OK;
}

static spt_status open_device(spt_cuda *cuda, bool tf32) {
  SPT_CUDA(cudaGetDevice(&cuda->device));
  SPT_CUDA(cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking));
  void *memory = NULL;
  SPT_CUDA(cudaHostAlloc(&memory, (size_t)SPT_CUDA_SLOTS * SPT_CUDA_SLOT_BYTES, cudaHostAllocDefault));
  cuda->staging.memory = memory;
  for (int i = 0; i < SPT_CUDA_SLOTS; i++) SPT_CUDA(cudaEventCreateWithFlags(&cuda->staging.done[i], cudaEventDisableTiming));
  void *later = NULL;
  SPT_CUDA(cudaHostAlloc(&later, (size_t)SPT_CUDA_LATER * SPT_LATER_BYTES, cudaHostAllocDefault));
  cuda->later.memory = later;
  for (int i = 0; i < SPT_CUDA_LATER; i++) SPT_CUDA(cudaEventCreateWithFlags(&cuda->later.done[i], cudaEventDisableTiming));
  cuda->base.stream = cuda->stream;
  void *table = NULL;
  SPT_TRY(allocate(3 * SPT_CUDA_BATCH * sizeof *cuda->batch_table, &table));
  cuda->batch_table = table;
  SPT_TRY(open_cublas(cuda, tf32));
  struct cudaDeviceProp properties;
  SPT_CUDA(cudaGetDeviceProperties(&properties, cuda->device));
  snprintf(cuda->base.description, sizeof cuda->base.description, "cuda, %.80s (capability %d.%d, %.1f GiB), %s", properties.name,
           properties.major, properties.minor, (double)properties.totalGlobalMem / (1 << 30), cuda->base.act == SPT_BF16 ? "bf16" : tf32 ? "fp32, products in tf32" : "fp32");
  return SPT_OK;
}

spt_status spt_cuda_open(spt_precision precision, int threads, int local_ranks, spt_backend **backend_p) {
  char why[128];
  if (!spt_cuda_present(why, sizeof why))
    return SPT_FAIL(SPT_ERR_RESOURCE, "no CUDA device: %s; use --backend cpu, or a machine with an NVIDIA GPU and its driver", why);
  spt_cuda *cuda = calloc(1, sizeof *cuda);
  if (!cuda) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the CUDA backend");
  cuda->base.ops = &cuda_ops;
  cuda->base.act = spt_cuda_act(precision);
  cuda->base.threads = spt_host_threads(threads, local_ranks);
  cuda->base.processors = 1;
  const spt_status status = open_device(cuda, precision == SPT_PRECISION_TF32);
  if (status != SPT_OK) {
    spt_backend *base = &cuda->base;
    cuda_close(&base);
    return status;
  }
  *backend_p = &cuda->base;
  return SPT_OK;
}
