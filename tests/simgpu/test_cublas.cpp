/* The simulator's cuBLAS: its products are right, and each wrong argument is detected. */
#include "simgpu/planted.h"
#include "simgpu/simgpu.h"

#include <cmath>
#include <cstring>
#include <cublas_v2.h>
#include <cuda_runtime_api.h>

enum { M = 5, N = 7, K = 3, ROOM = 64 }; // C (M, N) = A (M, K)·B (K, N), column-major, each in ROOM elements

struct world {
  cudaStream_t stream;
  cublasHandle_t cublas;
  float *a, *b, *c, *host; /* host: pinned */
  void *workspace;
  float one, zero;
};

using planted::expect;
using planted::must;

static void want(cublasStatus_t status) {
  expect(status == CUBLAS_STATUS_SUCCESS, "cuBLAS succeeds");
}
static void put(const world &w, float *to) {
  must(cudaMemcpyAsync(to, w.host, ROOM * sizeof(float), cudaMemcpyHostToDevice, w.stream));
  must(cudaStreamSynchronize(w.stream));
}
static void get(const world &w, const float *from) {
  must(cudaMemcpyAsync(w.host, from, ROOM * sizeof(float), cudaMemcpyDeviceToHost, w.stream));
  must(cudaStreamSynchronize(w.stream));
}
static float *device(size_t bytes) {
  void *memory;
  must(cudaMalloc(&memory, bytes));
  return static_cast<float *>(memory);
}

static world open_world() {
  world w = {};
  w.one = 1;
  must(cudaStreamCreateWithFlags(&w.stream, cudaStreamNonBlocking));
  must(cudaHostAlloc(reinterpret_cast<void **>(&w.host), ROOM * sizeof(float), cudaHostAllocDefault));
  w.a = device(ROOM * sizeof(float));
  w.b = device(ROOM * sizeof(float));
  w.c = device(ROOM * sizeof(float));
  w.workspace = device(4096);
  for (int i = 0; i < ROOM; i++) w.host[i] = (float)(i % 11 - 5);
  put(w, w.a);
  for (int i = 0; i < ROOM; i++) w.host[i] = (float)(i % 7 - 2);
  put(w, w.b);
  want(cublasCreate(&w.cublas));
  want(cublasSetStream(w.cublas, w.stream));
  want(cublasSetWorkspace(w.cublas, w.workspace, 4096));
  return w;
}

/* The plain product, but for what a case changes. */
struct call {
  cublasOperation_t op_a = CUBLAS_OP_N, op_b = CUBLAS_OP_N;
  int m = M, n = N, k = K, lda = M, ldb = K, ldc = M;
  cudaDataType_t a_type = CUDA_R_32F, b_type = CUDA_R_32F, c_type = CUDA_R_32F;
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  const void *a = nullptr, *b = nullptr;
  void *c = nullptr;
};
static void product(const world &w, const call &p) {
  want(cublasGemmEx(w.cublas, p.op_a, p.op_b, p.m, p.n, p.k, &w.one, p.a ? p.a : w.a, p.a_type, p.lda, p.b ? p.b : w.b, p.b_type, p.ldb, &w.zero,
                    p.c ? p.c : w.c, p.c_type, p.ldc, p.compute, CUBLAS_GEMM_DEFAULT));
  must(cudaStreamSynchronize(w.stream));
}

static float a_at(int i) {
  return (float)(i % 11 - 5);
}
static float b_at(int i) {
  return (float)(i % 7 - 2);
}

/* ---- what is right ---- */

static void right_products(world &w) {
  for (int form = 0; form < 4; form++) {
    call p;
    if (form & 1) p.op_a = CUBLAS_OP_T, p.lda = K + 1;
    if (form & 2) p.op_b = CUBLAS_OP_T, p.ldb = N + 1;
    p.ldc = M + 2;
    product(w, p);
    get(w, w.c);
    for (int j = 0; j < N; j++)
      for (int i = 0; i < M; i++) {
        float sum = 0;
        for (int l = 0; l < K; l++) sum += a_at(form & 1 ? i * p.lda + l : l * p.lda + i) * b_at(form & 2 ? l * p.ldb + j : j * p.ldb + l);
        expect(w.host[j * p.ldc + i] == sum, "the product");
      }
    expect(std::isnan(w.host[M]) && std::isnan(w.host[M + 1]), "what lies between columns is left");
  }
}
static void right_scales(world &w) { // alpha, beta; beta 0 does not read
  product(w, call());
  get(w, w.c);
  float first[ROOM];
  memcpy(first, w.host, sizeof first);
  const float alpha = 2, beta = -0.5f;
  want(cublasGemmEx(w.cublas, CUBLAS_OP_N, CUBLAS_OP_N, M, N, K, &alpha, w.a, CUDA_R_32F, M, w.b, CUDA_R_32F, K, &beta, w.c, CUDA_R_32F, M,
                    CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  get(w, w.c);
  for (int i = 0; i < M * N; i++) expect(w.host[i] == 1.5f * first[i], "alpha·A·B + beta·C");
}
static void right_bf16(world &w) { // 1.0 is 0x3f80; to bf16 and to fp32; a sum that bf16 cannot hold is rounded to even
  auto *words = reinterpret_cast<uint16_t *>(w.host);
  for (int i = 0; i < 2 * ROOM; i++) words[i] = 0x3f80;
  words[0] = 0x4380; // 256, and 256 + 1 + 1 = 258
  put(w, w.a);
  words[0] = 0x3f80;
  put(w, w.b);
  call p;
  p.a_type = p.b_type = CUDA_R_16BF;
  product(w, p);
  get(w, w.c);
  expect(w.host[0] == 258 && w.host[1] == 3, "fp32 of bf16");
  p.c_type = CUDA_R_16BF;
  product(w, p);
  get(w, w.c);
  expect(words[0] == 0x4381 && words[1] == 0x4040, "bf16 of bf16"); // 258, 3
}
static void right_tf32(world &w) { // operands are rounded to 11 bits where that is asked for, and only there
  for (int i = 0; i < ROOM; i++) w.host[i] = 1 + 0x1p-11f;
  put(w, w.a);
  for (int i = 0; i < ROOM; i++) w.host[i] = i % K == 0;
  put(w, w.b);
  product(w, call());
  get(w, w.c);
  expect(w.host[0] == 1 + 0x1p-11f, "fp32 by default");
  want(cublasSetMathMode(w.cublas, CUBLAS_TF32_TENSOR_OP_MATH));
  product(w, call());
  get(w, w.c);
  expect(w.host[0] == 1 + 0x1p-10f, "tf32 when asked for");
}
static void right_batches(world &w) {
  float *list = device(9 * sizeof(void *));
  const void *entries[9];
  for (int i = 0; i < 3; i++) entries[i] = w.a + 4 * i, entries[3 + i] = w.b + 4 * i, entries[6 + i] = w.c + 4 * i;
  memcpy(w.host, entries, sizeof entries);
  must(cudaMemcpyAsync(list, w.host, sizeof entries, cudaMemcpyHostToDevice, w.stream));
  auto *lists = reinterpret_cast<void **>(list);
  want(cublasGemmBatchedEx(w.cublas, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, K, &w.one, lists, CUDA_R_32F, 2, lists + 3, CUDA_R_32F, K, &w.zero, lists + 6,
                           CUDA_R_32F, 2, 3, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  get(w, w.c);
  float by_lists[12];
  memcpy(by_lists, w.host, sizeof by_lists);
  want(cublasGemmStridedBatchedEx(w.cublas, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, K, &w.one, w.a, CUDA_R_32F, 2, 4, w.b, CUDA_R_32F, K, 4, &w.zero,
                                  w.c + 16, CUDA_R_32F, 2, 4, 3, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  get(w, w.c);
  for (int i = 0; i < 12; i++) expect(w.host[16 + i] == by_lists[i] && std::isfinite(by_lists[i]), "by strides as by lists");
}
static void right_lazy(world &w) { // in the stream's turn
  want(cublasGemmEx(w.cublas, CUBLAS_OP_N, CUBLAS_OP_N, M, N, K, &w.one, w.a, CUDA_R_32F, M, w.b, CUDA_R_32F, K, &w.zero, w.c, CUDA_R_32F, M,
                    CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  expect(simgpu::counted.products == 0, "lazy");
  must(cudaStreamSynchronize(w.stream));
  expect(simgpu::counted.products == 1, "executed");
}

/* ---- what is wrong ---- */

template <class Change> static void with(world &w, Change change) {
  call p;
  change(p);
  product(w, p);
}
static void wrong_leading(world &w) {
  with(w, [](call &p) { p.lda = M - 1; });
}
static void wrong_leading_b(world &w) { // of the stored matrix, which is (N, K) when transposed
  with(w, [](call &p) { p.op_b = CUBLAS_OP_T; });
}
static void wrong_leading_c(world &w) {
  with(w, [](call &p) { p.ldc = N - 3; });
}
static void wrong_type(world &w) {
  with(w, [](call &p) { p.a_type = CUDA_R_16BF; });
}
static void wrong_result_type(world &w) {
  with(w, [](call &p) { p.c_type = CUDA_R_16BF; });
}
static void wrong_compute(world &w) {
  with(w, [](call &p) { p.compute = CUBLAS_COMPUTE_16F; });
}
static void wrong_extent(world &w) { // the last column ends one element too late
  with(w, [&](call &p) { p.c = w.c + ROOM - M * N + 1; });
}
static void wrong_input_extent(world &w) {
  with(w, [](call &p) { p.ldb = (ROOM - K) / (N - 1) + 1; });
}
static void wrong_zone(world &w) { // between two tensors of a slab
  simgpu::forbid(w.b + 8, 32);
  product(w, call());
}
static void wrong_host(world &w) {
  with(w, [&](call &p) { p.a = w.host; });
}
static void wrong_overlap(world &w) {
  with(w, [&](call &p) { p.c = w.a + 2; });
}
static void wrong_misaligned(world &w) {
  with(w, [&](call &p) { p.b = reinterpret_cast<const char *>(w.b) + 2; });
}
static void wrong_stride(world &w) {
  want(cublasGemmStridedBatchedEx(w.cublas, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, K, &w.one, w.a, CUDA_R_32F, 2, 3, w.b, CUDA_R_32F, K, 1, &w.zero, w.c,
                                  CUDA_R_32F, 2, 3, 3, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}
static void wrong_list(world &w) { // of pointers, in host memory
  void *lists[3] = {w.a, w.b, w.c};
  want(cublasGemmBatchedEx(w.cublas, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, K, &w.one, lists, CUDA_R_32F, 2, lists + 1, CUDA_R_32F, K, &w.zero, lists + 2,
                           CUDA_R_32F, 2, 1, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}
static void wrong_place(world &w) { // a result that only its element aligns
  float *list = device(3 * sizeof(void *));
  const void *entries[3] = {w.a, w.b, w.c + 1};
  memcpy(w.host, entries, sizeof entries);
  must(cudaMemcpyAsync(list, w.host, sizeof entries, cudaMemcpyHostToDevice, w.stream));
  auto *lists = reinterpret_cast<void **>(list);
  want(cublasGemmBatchedEx(w.cublas, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, K, &w.one, lists, CUDA_R_32F, 2, lists + 1, CUDA_R_32F, K, &w.zero, lists + 2,
                           CUDA_R_32F, 2, 1, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  must(cudaStreamSynchronize(w.stream));
}
static void wrong_workspace(world &w) {
  want(cublasSetStream(w.cublas, w.stream));
  product(w, call());
}
static void wrong_stream(world &w) {
  want(cublasSetStream(w.cublas, nullptr));
}
static void wrong_freed(world &w) {
  must(cudaFree(w.b));
  product(w, call());
}

typedef planted::test_case<world &> test_case;
static const test_case cases[] = {
    {"products, transposed or not", right_products, nullptr},
    {"alpha and beta", right_scales, nullptr},
    {"bf16 operands", right_bf16, nullptr},
    {"fp32, and tf32 by option", right_tf32, nullptr},
    {"batches by lists and by strides", right_batches, nullptr},
    {"lazy", right_lazy, nullptr},
    {"too small a leading dimension of A", wrong_leading, "the leading dimension of A is 4"},
    {"the leading dimension of what is transposed", wrong_leading_b, "the leading dimension of B is 3"},
    {"too small a leading dimension of C", wrong_leading_c, "the leading dimension of C is 4"},
    {"operands of two types", wrong_type, "bf16 × fp32"},
    {"bf16 of fp32", wrong_result_type, "fp32 → bf16"},
    {"a compute type that these types do not have", wrong_compute, "are not supported"},
    {"a result beyond its allocation", wrong_extent, "matrix C"},
    {"an operand beyond its allocation", wrong_input_extent, "matrix B"},
    {"a red zone in an operand", wrong_zone, "touches a red zone"},
    {"an operand in host memory", wrong_host, "is no device memory"},
    {"a result over an operand", wrong_overlap, "A and C overlap"},
    {"an operand off its elements", wrong_misaligned, "misaligned"},
    {"a matrix of a batch that is not aligned", wrong_place, "not aligned to 16 bytes"},
    {"results of a batch over each other", wrong_stride, "the results overlap"},
    {"a list of pointers in host memory", wrong_list, "the list of A"},
    {"no workspace", wrong_workspace, "without cublasSetWorkspace"},
    {"default stream", wrong_stream, "default stream"},
    {"freed memory", wrong_freed, "lies in no allocation"},
};

int main() {
  return planted::run_all(cases, [](const test_case &c) {
    world w = open_world();
    c.body(w);
  });
}
