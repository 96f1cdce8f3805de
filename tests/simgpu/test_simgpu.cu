/* The simulator's own test: kernels that are right give their results, and each planted fault is detected, with its words. A fault ends the process, so
 * each case runs in a child. Usage: test_simgpu; exit 0 when all cases are as expected. */
#include "launch.cuh"
#include "planted.h"
#include "simgpu/simgpu.h"

#include <cmath>

using planted::expect;
using planted::must;

enum { N = 256, BLOCK = 64 };

/* Each block turns its part round, through shared memory. */
__global__ void reverse_kernel(const float *in, float *out) {
  SPT_SHARED(float, tile, BLOCK);
  tile[threadIdx.x] = in[blockIdx.x * BLOCK + threadIdx.x];
  __syncthreads();
  out[blockIdx.x * BLOCK + threadIdx.x] = tile[BLOCK - 1 - threadIdx.x];
}
__global__ void reverse_without_barrier(const float *in, float *out) {
  SPT_SHARED(float, tile, BLOCK);
  tile[threadIdx.x] = in[blockIdx.x * BLOCK + threadIdx.x];
  out[blockIdx.x * BLOCK + threadIdx.x] = tile[BLOCK - 1 - threadIdx.x];
}
__global__ void sum_kernel(const float *in, float *out) {
  float sum = in[blockIdx.x * 32 + threadIdx.x];
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}
__global__ void divergent_barrier(float *out) {
  if (threadIdx.x < BLOCK / 2)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void early_exit(float *out) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void divergent_shuffle(float *out) {
  float value = (float)threadIdx.x;
  if (threadIdx.x % 32 != 3) value += __shfl_xor_sync(0xffffffffu, value, 1);
  out[threadIdx.x] = value;
}
__global__ void narrow_shuffle(float *out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, (float)threadIdx.x, 16);
}
__global__ void read_beyond(const float *in, float *out) {
  out[threadIdx.x] = in[threadIdx.x + 1];
}
__global__ void write_at(float *out, int at) {
  if (threadIdx.x == 0) out[at] = 1;
}
__global__ void shared_beyond(float *out) {
  SPT_SHARED(float, tile, BLOCK);
  tile[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}
__global__ void shared_unwritten(float *out) {
  SPT_SHARED(float, tile, BLOCK);
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}
__global__ void dynamic_kernel(float *out) {
  SPT_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x] = (float)threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
__global__ void vector_kernel(const float *in, float *out) { // 16 bytes at once, from where 4 are aligned
  const float4 four = *reinterpret_cast<const float4 *>(in + threadIdx.x);
  out[threadIdx.x] = four.x + four.w;
}
__global__ void add_one(float *values) {
  values[blockIdx.x * BLOCK + threadIdx.x] += 1;
}
__global__ void double_all(const float *in, float *out) {
  out[blockIdx.x * BLOCK + threadIdx.x] = 2 * in[blockIdx.x * BLOCK + threadIdx.x];
}

struct world {
  cudaStream_t stream, other;
  cudaEvent_t event;
  float *in, *out, *host;
};

static world open_world() {
  world w;
  must(cudaStreamCreateWithFlags(&w.stream, cudaStreamNonBlocking));
  must(cudaStreamCreateWithFlags(&w.other, cudaStreamNonBlocking));
  must(cudaEventCreateWithFlags(&w.event, cudaEventDisableTiming));
  must(cudaMalloc((void **)&w.in, N * sizeof(float)));
  must(cudaMalloc((void **)&w.out, N * sizeof(float)));
  must(cudaHostAlloc((void **)&w.host, N * sizeof(float), cudaHostAllocDefault));
  for (int i = 0; i < N; i++) w.host[i] = (float)i;
  must(cudaMemcpyAsync(w.in, w.host, N * sizeof(float), cudaMemcpyHostToDevice, w.stream));
  must(cudaStreamSynchronize(w.stream));
  return w;
}
static void fetch(const world &w, const float *from) {
  must(cudaMemcpyAsync(w.host, from, N * sizeof(float), cudaMemcpyDeviceToHost, w.stream));
  must(cudaStreamSynchronize(w.stream));
}

/* ---- what is right ---- */

static void right_reverse(world &w) {
  must(spt_launch(reverse_kernel, dim3(N / BLOCK), dim3(BLOCK), 0, w.stream, w.in, w.out));
  fetch(w, w.out);
  for (int i = 0; i < N; i++) expect(w.host[i] == (float)(i / BLOCK * BLOCK + BLOCK - 1 - i % BLOCK), "reversed parts");
  expect(simgpu::launches_of("reverse_kernel") == 1, "one launch counted");
}
static void right_sum(world &w) {
  must(spt_launch(sum_kernel, dim3(N / 32), dim3(32), 0, w.stream, w.in, w.out));
  fetch(w, w.out);
  for (int b = 0; b < N / 32; b++) expect(w.host[b] == (float)(32 * 32 * b + 31 * 16), "a warp's sum");
}
static void right_dynamic(world &w) {
  must(spt_launch(dynamic_kernel, dim3(1), dim3(96), 96 * sizeof(float), w.stream, w.out));
  fetch(w, w.out);
  for (int i = 0; i < 96; i++) expect(w.host[i] == (float)(95 - i), "dynamic shared memory");
  expect(std::isnan(w.host[96]), "what nobody wrote is poisoned");
}
static void right_events(world &w) {
  for (int round = 0; round < 50; round++) { // each order that the waits allow gives this
    must(spt_launch(add_one, dim3(N / BLOCK), dim3(BLOCK), 0, w.stream, w.in));
    must(cudaEventRecord(w.event, w.stream));
    must(cudaStreamWaitEvent(w.other, w.event, 0));
    must(spt_launch(double_all, dim3(N / BLOCK), dim3(BLOCK), 0, w.other, w.in, w.out));
    must(cudaEventRecord(w.event, w.other));
    must(cudaStreamWaitEvent(w.stream, w.event, 0));
  }
  fetch(w, w.out);
  for (int i = 0; i < N; i++) expect(w.host[i] == 2 * (float)(i + 50), "ordered by events");
}
static void right_lazy(world &w) { // nothing has run before the host waits
  must(spt_launch(add_one, dim3(N / BLOCK), dim3(BLOCK), 0, w.stream, w.in));
  expect(simgpu::launches_of("add_one") == 0, "lazy");
  must(cudaStreamSynchronize(w.stream));
  expect(simgpu::launches_of("add_one") == 1, "executed");
}

/* ---- what is wrong ---- */

/* A missing barrier shows in the result, under some order: of 20 blocks at least one must differ. */
static void wrong_barrier(world &w) {
  for (int round = 0; round < 5; round++) {
    must(spt_launch(reverse_without_barrier, dim3(N / BLOCK), dim3(BLOCK), 0, w.stream, w.in, w.out));
    fetch(w, w.out);
    for (int i = 0; i < N; i++)
      if (!(w.host[i] == (float)(i / BLOCK * BLOCK + BLOCK - 1 - i % BLOCK))) simgpu::fault("wrong result");
  }
}
static void wrong_wait(world &w) { // no event between two streams
  for (int round = 0; round < 40; round++) {
    must(spt_launch(add_one, dim3(N / BLOCK), dim3(BLOCK), 0, w.stream, w.in));
    must(spt_launch(double_all, dim3(N / BLOCK), dim3(BLOCK), 0, w.other, w.in, w.out));
    must(cudaStreamSynchronize(w.other));
    must(cudaMemcpyAsync(w.host, w.out, N * sizeof(float), cudaMemcpyDeviceToHost, w.other));
    must(cudaStreamSynchronize(w.other));
    must(cudaStreamSynchronize(w.stream));
    if (w.host[0] != 2 * (float)(round + 1)) simgpu::fault("wrong result");
  }
}
static void wrong_divergent(world &w) {
  must(spt_launch(divergent_barrier, dim3(1), dim3(BLOCK), 0, w.stream, w.out));
  must(cudaStreamSynchronize(w.stream));
}
static void wrong_exit(world &w) {
  must(spt_launch(early_exit, dim3(1), dim3(BLOCK), 0, w.stream, w.out));
  must(cudaStreamSynchronize(w.stream));
}
static void wrong_shuffle(world &w) {
  must(spt_launch(divergent_shuffle, dim3(1), dim3(BLOCK), 0, w.stream, w.out));
  must(cudaStreamSynchronize(w.stream));
}
static void wrong_lane(world &w) {
  must(spt_launch(narrow_shuffle, dim3(1), dim3(32), 0, w.stream, w.out));
  must(cudaStreamSynchronize(w.stream));
}
static void wrong_read(world &w) {
  must(spt_launch(read_beyond, dim3(1), dim3(N), 0, w.stream, w.in, w.out));
  must(cudaStreamSynchronize(w.stream));
}
static void wrong_write(world &w) {
  must(spt_launch(write_at, dim3(1), dim3(32), 0, w.stream, w.out, -1));
  must(cudaStreamSynchronize(w.stream));
}
static void wrong_zone(world &w) { // between two tensors of a slab
  simgpu::forbid(w.out + 64, 64);
  must(spt_launch(write_at, dim3(1), dim3(32), 0, w.stream, w.out, 64));
  must(cudaStreamSynchronize(w.stream));
}
static void right_gap(world &w) { // set as a whole
  simgpu::forbid_gap(w.out + 61, 16);
  must(cudaMemsetAsync(w.out, 0, N * sizeof(float), w.stream));
  must(spt_launch(write_at, dim3(1), dim3(32), 0, w.stream, w.out, 60));
  must(spt_launch(write_at, dim3(1), dim3(32), 0, w.stream, w.out, 77));
  must(cudaStreamSynchronize(w.stream));
}
static void wrong_gap(world &w) { // and no kernel's for all that
  right_gap(w);
  must(spt_launch(write_at, dim3(1), dim3(32), 0, w.stream, w.out, 61));
  must(cudaStreamSynchronize(w.stream));
}
static void wrong_gap_copy(world &w) {
  simgpu::forbid_gap(w.out + 61, 16);
  must(cudaMemcpyAsync(w.host, w.out, 62 * sizeof(float), cudaMemcpyDeviceToHost, w.stream));
}
static void wrong_freed(world &w) {
  must(cudaFree(w.out));
  must(spt_launch(write_at, dim3(1), dim3(32), 0, w.stream, w.out, 0));
  must(cudaStreamSynchronize(w.stream));
}
static void wrong_shared(world &w) {
  must(spt_launch(shared_beyond, dim3(1), dim3(BLOCK), 0, w.stream, w.out));
  must(cudaStreamSynchronize(w.stream));
}
static void wrong_unwritten(world &w) { // another block's values must not be found
  must(spt_launch(reverse_kernel, dim3(N / BLOCK), dim3(BLOCK), 0, w.stream, w.in, w.out));
  must(spt_launch(shared_unwritten, dim3(1), dim3(BLOCK), 0, w.stream, w.out));
  fetch(w, w.out);
  for (int i = 0; i < BLOCK; i++)
    if (std::isnan(w.host[i])) simgpu::fault("wrong result");
}
static void wrong_dynamic(world &w) {
  must(spt_launch(dynamic_kernel, dim3(1), dim3(96), 95 * sizeof(float), w.stream, w.out));
  must(cudaStreamSynchronize(w.stream));
}
static void wrong_host(world &w) {
  volatile float *device = w.in;
  printf("%f\n", (double)device[3]);
}
static void wrong_copy(world &w) {
  must(cudaMemcpyAsync(w.host, w.in, N * sizeof(float) + 4, cudaMemcpyDeviceToHost, w.stream));
}
static void wrong_pageable(world &w) {
  float on_stack[4];
  must(cudaMemcpyAsync(on_stack, w.in, sizeof on_stack, cudaMemcpyDeviceToHost, w.stream));
}
static void wrong_default(world &w) {
  must(spt_launch(add_one, dim3(N / BLOCK), dim3(BLOCK), 0, (cudaStream_t) nullptr, w.in));
}
static void wrong_alignment(world &w) {
  must(spt_launch(vector_kernel, dim3(1), dim3(2), 0, w.stream, w.in, w.out));
  must(cudaStreamSynchronize(w.stream));
}
static void wrong_block(world &w) {
  must(spt_launch(add_one, dim3(1), dim3(2048), 0, w.stream, w.in));
}

typedef planted::test_case<world &> test_case;
static const test_case cases[] = {
    {"reversed through shared memory", right_reverse, nullptr},
    {"sums of warps", right_sum, nullptr},
    {"dynamic shared memory", right_dynamic, nullptr},
    {"events order two streams", right_events, nullptr},
    {"lazy", right_lazy, nullptr},
    {"missing __syncthreads", wrong_barrier, "wrong result"},
    {"missing event wait", wrong_wait, "wrong result"},
    {"divergent barrier", wrong_divergent, "divergent barrier"},
    {"barrier after an exit", wrong_exit, "has ended"},
    {"divergent shuffle", wrong_shuffle, "divergent warp operation"},
    {"shuffle from a lane outside its mask", wrong_lane, "not in mask"},
    {"out-of-bounds read", wrong_read, "use-after-poison"},
    {"out-of-bounds write", wrong_write, "use-after-poison"},
    {"write between tensors", wrong_zone, "use-after-poison"},
    {"a slab set over its gaps", right_gap, nullptr},
    {"write into a gap", wrong_gap, "use-after-poison"},
    {"copy into a gap", wrong_gap_copy, "touches a red zone"},
    {"write to freed memory", wrong_freed, "use-after-poison"},
    {"out of a shared array", wrong_shared, "use-after-poison"},
    {"shared memory that nobody wrote", wrong_unwritten, "wrong result"},
    {"out of dynamic shared memory", wrong_dynamic, "use-after-poison"},
    {"host touches device memory", wrong_host, "host code touches device memory"},
    {"copy beyond an allocation", wrong_copy, "of an allocation of"},
    {"asynchronous copy of pageable memory", wrong_pageable, "pageable"},
    {"default stream", wrong_default, "default stream"},
    {"a vector that is not aligned", wrong_alignment, "misaligned address"},
    {"too large a block", wrong_block, "a block of"},
};

int main() {
  return planted::run_all(cases, [](const test_case &c) {
    world w = open_world();
    c.body(w);
  });
}
