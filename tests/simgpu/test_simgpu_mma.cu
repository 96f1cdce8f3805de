/* The simulator's test of kernels/mma.cuh: fragments as the PTX ISA numbers their elements against a naive product, ldmatrix, asynchronous copies, and
 * planted faults, each detected with its words. Usage: test_simgpu_mma; exit 0 when all cases are as expected. */
#include "../../kernels/mma.cuh" // not the simulator's beside this file
#include "planted.h"
#include "simgpu/simgpu.h"

#include <cmath>

using planted::expect;
using planted::must;

enum { N = 1024, WARP = 32, BLOCK = 128 };

__device__ static uint32_t pair_of(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

/* C (16, 8) = C + A (16, 16)·B (16, 8), elements numbered a0…a7, b0…b3, c0…c3 as in the PTX ISA. */
__global__ void bf16_product(const float *a, const float *b, float *c) {
  const int group = (int)threadIdx.x / 4, in_group = (int)threadIdx.x % 4;
  float a_element[8], b_element[4], sum[4];
  for (int i = 0; i < 8; i++) {
    const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8, column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
    a_element[i] = a[16 * row + column];
  }
  for (int i = 0; i < 4; i++) b_element[i] = b[8 * (in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)) + group];
  for (int i = 0; i < 4; i++) sum[i] = c[8 * (i < 2 ? group : group + 8) + in_group * 2 + (i & 1)];
  uint32_t a_part[4], b_part[2];
  for (int i = 0; i < 4; i++) a_part[i] = pair_of(a_element[2 * i], a_element[2 * i + 1]);
  for (int i = 0; i < 2; i++) b_part[i] = pair_of(b_element[2 * i], b_element[2 * i + 1]);
  spt_mma_bf16(sum, a_part, b_part);
  for (int i = 0; i < 4; i++) c[8 * (i < 2 ? group : group + 8) + in_group * 2 + (i & 1)] = sum[i];
}
/* C (16, 8) = C + A (16, 8)·B (8, 8). */
__global__ void tf32_product(const float *a, const float *b, float *c) {
  const int group = (int)threadIdx.x / 4, in_group = (int)threadIdx.x % 4;
  uint32_t a_part[4], b_part[2];
  float sum[4];
  for (int i = 0; i < 4; i++) a_part[i] = spt_tf32(a[8 * (i % 2 ? group + 8 : group) + (i < 2 ? in_group : in_group + 4)]);
  for (int i = 0; i < 2; i++) b_part[i] = spt_tf32(b[8 * (i ? in_group + 4 : in_group) + group]);
  for (int i = 0; i < 4; i++) sum[i] = c[8 * (i < 2 ? group : group + 8) + in_group * 2 + (i & 1)];
  spt_mma_tf32(sum, a_part, b_part);
  for (int i = 0; i < 4; i++) c[8 * (i < 2 ? group : group + 8) + in_group * 2 + (i & 1)] = sum[i];
}
__global__ void round_to_tf32(const float *in, float *out) {
  const uint32_t bits = spt_tf32(in[threadIdx.x]);
  memcpy(out + threadIdx.x, &bits, sizeof bits);
}
/* out[8·lane + 2·i…] are the two elements of r[i]; the four matrices hold 64·matrix + 8·row + column. */
template <bool TRANSPOSED> __global__ void four_matrices(float *out) {
  SPT_SHARED(uint16_t, tile, WARP * 8);
  for (int i = 0; i < 8; i++) tile[8 * threadIdx.x + i] = (uint16_t)(8 * threadIdx.x + i);
  __syncwarp();
  uint32_t r[4];
  if (TRANSPOSED) spt_ldmatrix_x4_trans(r, tile + 8 * threadIdx.x);
  else spt_ldmatrix_x4(r, tile + 8 * threadIdx.x);
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 2; j++) out[8 * threadIdx.x + 2 * i + j] = (float)(r[i] >> 16 * j & 0xffff);
}

/* Turned round by asynchronous copies; faults are planted by leaving out a step. */
enum step { COMMIT = 1, WAIT = 2, BARRIER = 4, ALL = 7 };
template <int STEPS> __global__ void reverse(const float *in, float *out) {
  SPT_SHARED(float, tile, 4 * BLOCK);
  const int i = (int)threadIdx.x;
  spt_cp_async<16>(tile + 4 * i, in + 4 * i, 16);
  if (STEPS & COMMIT) spt_cp_async_commit();
  if (STEPS & WAIT) spt_cp_async_wait<0>();
  if (STEPS & BARRIER) __syncthreads();
  for (int j = 0; j < 4; j++) out[4 * i + j] = tile[4 * BLOCK - 1 - 4 * i - j];
}
/* out: the first group's copies, three parts of zeros, and what is in the place of the second group's before it is waited for. */
__global__ void two_groups(const float *in, float *out) {
  SPT_SHARED(float, tile, 3 * BLOCK);
  const int i = (int)threadIdx.x;
  spt_cp_async<4>(tile + i, in + i, 4);
  spt_cp_async<4>(tile + BLOCK + i, in, 0);
  spt_cp_async_commit();
  spt_cp_async<4>(tile + 2 * BLOCK + i, in + i, 4);
  spt_cp_async_commit();
  spt_cp_async_wait<1>();
  for (int part = 0; part < 3; part++) out[part * BLOCK + i] = tile[part * BLOCK + i];
  spt_cp_async_wait<0>();
  out[3 * BLOCK + i] = tile[2 * BLOCK + i];
}
/* Two buffers in turn; without the barrier a thread overwrites what others still read. */
template <bool BARRIER_BEFORE_COPY> __global__ void turns(const float *in, float *out) {
  SPT_SHARED(float, tile, BLOCK);
  const int i = (int)threadIdx.x;
  float sum = 0;
  for (int turn = 0; turn < 4; turn++) {
    if (BARRIER_BEFORE_COPY) __syncthreads();
    spt_cp_async<4>(tile + i, in + turn * BLOCK + i, 4);
    spt_cp_async_commit();
    spt_cp_async_wait<0>();
    __syncthreads();
    sum += tile[BLOCK - 1 - i];
  }
  out[i] = sum;
}
__global__ void crooked_copy(const float *in, float *out) {
  SPT_SHARED(float, tile, 2 * BLOCK);
  spt_cp_async<16>(tile, in + 1, 16);
  spt_cp_async_commit();
  spt_cp_async_wait<0>();
  out[threadIdx.x] = tile[0];
}
__global__ void copy_beyond(const float *in) {
  SPT_SHARED(float, tile, 4);
  spt_cp_async<16>(tile, in + N, 16);
  spt_cp_async_commit();
  spt_cp_async_wait<0>();
}
__global__ void crooked_rows(float *out) {
  SPT_SHARED(uint16_t, tile, WARP * 8 + 8);
  uint32_t r[4];
  spt_ldmatrix_x4(r, tile + 8 * threadIdx.x + 1);
  out[threadIdx.x] = (float)r[0];
}
__global__ void rows_of_global(const float *in, float *out) {
  uint32_t r[4];
  spt_ldmatrix_x4(r, in + 4 * threadIdx.x);
  out[threadIdx.x] = (float)r[0];
}
__global__ void half_a_warp(float *out) {
  float c[4] = {0, 0, 0, 0};
  const uint32_t a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
  if (threadIdx.x < 16) spt_mma_bf16(c, a, b);
  out[threadIdx.x] = c[0];
}
__global__ void two_places(float *out) {
  float c[4] = {0, 0, 0, 0};
  const uint32_t a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
  if (threadIdx.x < 16)
    spt_mma_bf16(c, a, b);
  else
    spt_mma_bf16(c, a, b);
  out[threadIdx.x] = c[0];
}
__global__ void much_shared(float *out) {
  SPT_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x] = 1;
  out[threadIdx.x] = tile[threadIdx.x];
}

struct world {
  cudaStream_t stream;
  float *a, *b, *c, *host; // N each; a and b hold integers in −4…4
};
static void fetch(const world &w, const float *from) {
  must(cudaMemcpyAsync(w.host, from, N * sizeof(float), cudaMemcpyDeviceToHost, w.stream));
  must(cudaStreamSynchronize(w.stream));
}
static void put(const world &w, float *to) {
  must(cudaMemcpyAsync(to, w.host, N * sizeof(float), cudaMemcpyHostToDevice, w.stream));
  must(cudaStreamSynchronize(w.stream));
}
static world open_world() {
  world w;
  must(cudaStreamCreateWithFlags(&w.stream, cudaStreamNonBlocking));
  for (float **array : {&w.a, &w.b, &w.c}) must(cudaMalloc((void **)array, N * sizeof(float)));
  must(cudaHostAlloc((void **)&w.host, N * sizeof(float), cudaHostAllocDefault));
  for (float *array : {w.a, w.b, w.c}) {
    for (int i = 0; i < N; i++) w.host[i] = (float)simgpu::random_below(9) - 4.0f;
    put(w, array);
  }
  return w;
}

template <int DEPTH> static void right_product(world &w) {
  static float a[N], b[N], c[N];
  fetch(w, w.a), memcpy(a, w.host, sizeof a);
  fetch(w, w.b), memcpy(b, w.host, sizeof b);
  fetch(w, w.c), memcpy(c, w.host, sizeof c);
  if (DEPTH == 16) must(spt_launch(bf16_product, dim3(1), dim3(WARP), 0, w.stream, w.a, w.b, w.c));
  else must(spt_launch(tf32_product, dim3(1), dim3(WARP), 0, w.stream, w.a, w.b, w.c));
  fetch(w, w.c);
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 8; j++) {
      float sum = c[8 * i + j];
      for (int k = 0; k < DEPTH; k++) sum += a[DEPTH * i + k] * b[8 * k + j];
      expect(w.host[8 * i + j] == sum, "the naive product");
    }
}
static void right_tf32(world &w) {
  const float ulp = 0x1p-10f; // of 1 in tf32
  const float cases[][2] = {{1 + 0.25f * ulp, 1}, {1 + 0.5f * ulp, 1 + ulp}, {-1 - 0.5f * ulp, -1 - ulp}, {1 + 0.75f * ulp, 1 + ulp}, {0, 0}};
  for (int i = 0; i < 5; i++) w.host[i] = cases[i][0];
  put(w, w.a);
  must(spt_launch(round_to_tf32, dim3(1), dim3(5), 0, w.stream, w.a, w.c));
  fetch(w, w.c);
  for (int i = 0; i < 5; i++) expect(w.host[i] == cases[i][1], "to the nearest, ties away from zero");
}
template <bool TRANSPOSED> static void right_matrices(world &w) {
  must(spt_launch((four_matrices<TRANSPOSED>), dim3(1), dim3(WARP), 0, w.stream, w.c));
  fetch(w, w.c);
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 2; j++) {
        const int row = TRANSPOSED ? 2 * (lane % 4) + j : lane / 4, column = TRANSPOSED ? lane / 4 : 2 * (lane % 4) + j;
        expect(w.host[8 * lane + 2 * i + j] == (float)(64 * i + 8 * row + column), "an element of its matrix");
      }
}
template <int STEPS> static void reversed(world &w) {
  static float in[N];
  fetch(w, w.a), memcpy(in, w.host, sizeof in);
  must(spt_launch((reverse<STEPS>), dim3(1), dim3(BLOCK), 0, w.stream, w.a, w.c));
  fetch(w, w.c);
  for (int i = 0; i < 4 * BLOCK; i++) expect(w.host[i] == in[4 * BLOCK - 1 - i], "reversed");
}
static void right_groups(world &w) {
  static float in[N];
  fetch(w, w.a), memcpy(in, w.host, sizeof in);
  must(spt_launch(two_groups, dim3(1), dim3(BLOCK), 0, w.stream, w.a, w.c));
  fetch(w, w.c);
  for (int i = 0; i < BLOCK; i++)
    expect(w.host[i] == in[i] && w.host[BLOCK + i] == 0 && std::isnan(w.host[2 * BLOCK + i]) && w.host[3 * BLOCK + i] == in[i],
           "groups come when they are waited for");
}
template <bool BARRIER_BEFORE_COPY> static void in_turns(world &w) {
  static float in[N];
  fetch(w, w.a), memcpy(in, w.host, sizeof in);
  must(spt_launch((turns<BARRIER_BEFORE_COPY>), dim3(1), dim3(BLOCK), 0, w.stream, w.a, w.c));
  fetch(w, w.c);
  for (int i = 0; i < BLOCK; i++) {
    float sum = 0;
    for (int turn = 0; turn < 4; turn++) sum += in[turn * BLOCK + BLOCK - 1 - i];
    expect(w.host[i] == sum, "the sum of four turns");
  }
}
static void right_shared(world &w) {
  const auto *function = reinterpret_cast<const void *>(much_shared);
  expect(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, (99 << 10) + 1) != cudaSuccess, "no more than 99 KiB");
  must(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, 99 << 10));
  must(spt_launch(much_shared, dim3(1), dim3(WARP), 99 << 10, w.stream, w.c));
  must(cudaStreamSynchronize(w.stream));
}
static void wrong_shared(world &w) {
  must(spt_launch(much_shared, dim3(1), dim3(WARP), (48 << 10) + 16, w.stream, w.c));
}
template <class... Parameters, class... Arguments> static void launch(world &w, void (*kernel)(Parameters...), Arguments... arguments) {
  must(spt_launch(kernel, dim3(1), dim3(WARP), 0, w.stream, arguments...));
  must(cudaStreamSynchronize(w.stream));
}

typedef planted::test_case<world &> test_case;
static const test_case cases[] = {
    {"bf16 product", right_product<16>, nullptr},
    {"tf32 product", right_product<8>, nullptr},
    {"tf32 rounding", right_tf32, nullptr},
    {"ldmatrix", right_matrices<false>, nullptr},
    {"ldmatrix, transposed", right_matrices<true>, nullptr},
    {"asynchronous copies", reversed<ALL>, nullptr},
    {"groups and zeros", right_groups, nullptr},
    {"copies in turns", in_turns<true>, nullptr},
    {"99 KiB of shared memory", right_shared, nullptr},
    {"missing wait", reversed<COMMIT | BARRIER>, "has not waited for"},
    {"missing commit", reversed<WAIT | BARRIER>, "has not waited for"},
    {"missing barrier after the wait", reversed<COMMIT | WAIT>, "not so: reversed"},
    {"missing barrier before a copy over what is read", in_turns<false>, "not so: the sum"},
    {"copy that is not aligned", [](world &w) { launch(w, crooked_copy, w.a, w.c); }, "must be aligned"},
    {"copy beyond an allocation", [](world &w) { launch(w, copy_beyond, w.a); }, "lies in no allocation"},
    {"ldmatrix that is not aligned", [](world &w) { launch(w, crooked_rows, w.c); }, "not aligned to 16 bytes"},
    {"ldmatrix of global memory", [](world &w) { launch(w, rows_of_global, w.a, w.c); }, "is not in shared memory"},
    {"product of half a warp", [](world &w) { launch(w, half_a_warp, w.c); }, "divergent warp operation"},
    {"product in two places", [](world &w) { launch(w, two_places, w.c); }, "divergent warp operation"},
    {"more shared memory than asked for", wrong_shared, "cudaFuncSetAttribute raises it"},
};

int main() {
  return planted::run_all(cases, [](const test_case &c) {
    world w = open_world();
    c.body(w);
  });
}
