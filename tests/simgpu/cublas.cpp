/* The subset of cuBLAS that the product calls, over the simulator. Arguments that cuBLAS would refuse, or take and read or write beyond a matrix with,
 * are faults; products run in their stream's turn. Pointers that lie in device memory are followed then, as a GPU does. */
#include "gemm.h"
#include "simgpu.h"

#include <cstring>
#include <cublas_v2.h>
#include <vector>

using namespace simgpu;

namespace {

struct handle {
  stream *on = nullptr;
  void *workspace = nullptr;
  size_t workspace_bytes = 0;
  bool tf32 = false; // products of fp32 on tensor cores
};
handle *of(cublasHandle_t h, const char *what) {
  if (!h) fault("%s: no handle", what);
  return reinterpret_cast<handle *>(h);
}

const char *name_of(cudaDataType_t type) {
  return type == CUDA_R_16BF ? "bf16" : type == CUDA_R_32F ? "fp32" : "another type";
}
size_t size_of(cudaDataType_t type) {
  return type == CUDA_R_16BF ? 2 : 4;
}

/* A column-major matrix in device memory as it is stored: `rows` elements of each of `columns` columns, ld apart. */
struct matrix {
  const char *name;
  int rows, columns, ld;
  cudaDataType_t type;

  size_t bytes() const { return ((size_t)(columns - 1) * (size_t)ld + (size_t)rows) * size_of(type); }
  const unsigned char *column(const void *data, int j) const { return static_cast<const unsigned char *>(data) + (size_t)j * (size_t)ld * size_of(type); }
  /* Every element lies in one allocation and none in a red zone. */
  void check(const void *data) const {
    char text[64];
    snprintf(text, sizeof text, "cuBLAS, matrix %s (%d, %d), ld %d", name, rows, columns, ld);
    if (reinterpret_cast<uintptr_t>(data) % size_of(type) != 0) fault("%s: misaligned address %p", text, data);
    for (int j = 0; j < columns; j++) check_device(column(data, j), (size_t)rows * size_of(type), text);
  }
};

float load(const unsigned char *at, int i, cudaDataType_t type, bool tf32 = false) {
  uint32_t bits = 0;
  if (type == CUDA_R_16BF) {
    uint16_t half;
    memcpy(&half, at + 2 * (size_t)i, sizeof half);
    bits = (uint32_t)half << 16;
  } else {
    memcpy(&bits, at + 4 * (size_t)i, sizeof bits);
    if (tf32 && (bits & 0x7f800000) != 0x7f800000) bits = (bits + 0x1000) & ~0x1fffu; // 11 bits of mantissa, one of them hidden
  }
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
void store(unsigned char *at, int i, cudaDataType_t type, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (type == CUDA_R_16BF) { // to nearest even; a NaN stays one
    const bool nan = value != value;
    const uint16_t half = nan ? 0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    memcpy(at + 2 * (size_t)i, &half, sizeof half);
  } else {
    memcpy(at + 4 * (size_t)i, &bits, sizeof bits);
  }
}

/* One call: C (m, n) = alpha·op(A)·op(B) + beta·C. */
struct product {
  int m, n, k;
  bool transpose_a, transpose_b;
  float alpha, beta;
  bool tf32;
  matrix a, b, c;
};

void check_leading(const char *name, int ld, int rows) {
  if (ld < rows) fault("cuBLAS: the leading dimension of %s is %d, its columns have %d elements", name, ld, rows);
}

product make_product(const char *what, handle *h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, const void *alpha,
                     cudaDataType_t a_type, int lda, cudaDataType_t b_type, int ldb, const void *beta, cudaDataType_t c_type, int ldc,
                     cublasComputeType_t compute) {
  if (!h->on) fault("%s on the default stream: cublasSetStream", what);
  if (!h->workspace) fault("%s without cublasSetWorkspace: cuBLAS would choose its algorithm by a workspace of its own", what);
  if (m < 1 || n < 1 || k < 1) fault("%s: shape (%d, %d, %d)", what, m, n, k);
  if ((op_a != CUBLAS_OP_N && op_a != CUBLAS_OP_T) || (op_b != CUBLAS_OP_N && op_b != CUBLAS_OP_T)) fault("%s: operation", what);
  const bool bf16 = a_type == CUDA_R_16BF && b_type == CUDA_R_16BF && (c_type == CUDA_R_16BF || c_type == CUDA_R_32F);
  const bool fp32 = a_type == CUDA_R_32F && b_type == CUDA_R_32F && c_type == CUDA_R_32F;
  const bool computes = compute == CUBLAS_COMPUTE_32F || compute == CUBLAS_COMPUTE_32F_PEDANTIC || (fp32 && compute == CUBLAS_COMPUTE_32F_FAST_TF32);
  if ((!bf16 && !fp32) || !computes)
    fault("%s: types %s × %s → %s with compute type %d are not supported", what, name_of(a_type), name_of(b_type), name_of(c_type), (int)compute);
  const bool ta = op_a == CUBLAS_OP_T, tb = op_b == CUBLAS_OP_T;
  product p = {m,  n,  k,  ta, tb, 0, 0, fp32 && (h->tf32 || compute == CUBLAS_COMPUTE_32F_FAST_TF32), {"A", ta ? k : m, ta ? m : k, lda, a_type}, {"B", tb ? n : k, tb ? k : n, ldb, b_type}, {"C", m, n, ldc, c_type}};
  check_leading("A", lda, p.a.rows);
  check_leading("B", ldb, p.b.rows);
  check_leading("C", ldc, m);
  if (is_device(alpha) || is_device(beta)) fault("%s: alpha and beta are host pointers by default", what);
  memcpy(&p.alpha, alpha, sizeof p.alpha);
  memcpy(&p.beta, beta, sizeof p.beta);
  return p;
}

void check_apart(const matrix &input, const void *from, const matrix &c, const void *to) {
  const auto *f = static_cast<const unsigned char *>(from), *t = static_cast<const unsigned char *>(to);
  if (f < t + c.bytes() && t < f + input.bytes()) fault("cuBLAS: matrices %s and C overlap", input.name);
}

void note_alignment(const product &p, const void *a, const void *b, const void *c) {
  const uintptr_t all = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | reinterpret_cast<uintptr_t>(c) |
                        (size_t)p.a.ld * size_of(p.a.type) | (size_t)p.b.ld * size_of(p.b.type) | (size_t)p.c.ld * size_of(p.c.type);
  if (all % 16 != 0) counted.unaligned_products++; // right, but slow on a GPU
}

/* True: noted, and done with. */
bool note_call(const product &p, int batch) {
  if (!counting_only) return false;
  counted.products++;
  noted.push_back({"", p.n, p.m, p.k, batch, (int)size_of(p.a.type), (int)size_of(p.c.type), p.beta != 0.0f}); // as the product's rows see it
  return true;
}

/* In the stream's turn. */
void run_product(const product &p, const void *a, const void *b, void *c) {
  p.a.check(a);
  p.b.check(b);
  p.c.check(c);
  check_apart(p.a, a, p.c, c);
  check_apart(p.b, b, p.c, c);
  note_alignment(p, a, b, c);
  counted.products++;
  const size_t m = (size_t)p.m, n = (size_t)p.n, k = (size_t)p.k;
  std::vector<float> left(m * k), right(n * k), out(m * n);
  for (int j = 0; j < p.a.columns; j++)
    for (int i = 0; i < p.a.rows; i++) left[p.transpose_a ? (size_t)i * m + (size_t)j : (size_t)j * m + (size_t)i] = load(p.a.column(a, j), i, p.a.type, p.tf32);
  for (int j = 0; j < p.b.columns; j++)
    for (int i = 0; i < p.b.rows; i++) right[p.transpose_b ? (size_t)i * k + (size_t)j : (size_t)j * k + (size_t)i] = load(p.b.column(b, j), i, p.b.type, p.tf32);
  multiply(p.m, p.n, p.k, left.data(), right.data(), out.data());
  for (int j = 0; j < p.n; j++) {
    auto *column = const_cast<unsigned char *>(p.c.column(c, j));
    for (int i = 0; i < p.m; i++) {
      const float product = p.alpha * out[(size_t)j * m + (size_t)i];
      store(column, i, p.c.type, p.beta == 0.0f ? product : product + p.beta * load(column, i, p.c.type));
    }
  }
}

const void *entry(const void *data, long long stride, int i, cudaDataType_t type) {
  return static_cast<const unsigned char *>(data) + stride * i * (long long)size_of(type);
}

} // namespace

extern "C" {

cublasStatus_t cublasCreate(cublasHandle_t *h) {
  *h = reinterpret_cast<cublasHandle_t>(new handle);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t h) {
  delete of(h, "cublasDestroy");
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream(cublasHandle_t h, cudaStream_t s) {
  handle *own = of(h, "cublasSetStream");
  if (s == nullptr || s == cudaStreamLegacy || s == cudaStreamPerThread) fault("cublasSetStream: the default stream");
  own->on = reinterpret_cast<stream *>(s);
  own->workspace = nullptr; // as cuBLAS does
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace(cublasHandle_t h, void *workspace, size_t bytes) {
  check_device(workspace, bytes, "cublasSetWorkspace");
  if (reinterpret_cast<uintptr_t>(workspace) % 256 != 0) fault("cublasSetWorkspace: %p is not aligned to 256 bytes", workspace);
  handle *own = of(h, "cublasSetWorkspace");
  own->workspace = workspace;
  own->workspace_bytes = bytes;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t h, cublasMath_t mode) {
  const int known = CUBLAS_TF32_TENSOR_OP_MATH | CUBLAS_PEDANTIC_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
  if (mode & ~known) fault("cublasSetMathMode(%d)", (int)mode);
  of(h, "cublasSetMathMode")->tf32 = mode & CUBLAS_TF32_TENSOR_OP_MATH;
  return CUBLAS_STATUS_SUCCESS;
}
const char *cublasGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS ? "success" : "an error";
}

cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, const void *alpha, const void *a,
                            cudaDataType a_type, int lda, const void *b, cudaDataType b_type, int ldb, const void *beta, void *c,
                            cudaDataType c_type, int ldc, cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
  (void)algorithm;
  handle *own = of(h, "cublasGemmEx");
  const product p = make_product("cublasGemmEx", own, op_a, op_b, m, n, k, alpha, a_type, lda, b_type, ldb, beta, c_type, ldc, compute);
  if (note_call(p, 1)) return CUBLAS_STATUS_SUCCESS;
  p.a.check(a);
  p.b.check(b);
  p.c.check(c);
  stream_push(own->on, "cublasGemmEx", [=] { run_product(p, a, b, c); });
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, const void *alpha,
                                          const void *a, cudaDataType a_type, int lda, long long a_stride, const void *b, cudaDataType b_type,
                                          int ldb, long long b_stride, const void *beta, void *c, cudaDataType c_type, int ldc,
                                          long long c_stride, int count, cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
  (void)algorithm;
  const char *what = "cublasGemmStridedBatchedEx";
  handle *own = of(h, what);
  const product p = make_product(what, own, op_a, op_b, m, n, k, alpha, a_type, lda, b_type, ldb, beta, c_type, ldc, compute);
  if (count < 1) fault("%s: %d products", what, count);
  const long long whole = (long long)(n - 1) * ldc + m;
  const bool apart = count == 1 || c_stride >= whole || (c_stride >= m && (count - 1) * c_stride + m <= ldc); // one after another, or side by side
  if (!apart) fault("%s: the results overlap: stride %lld, (%d, %d), ld %d", what, c_stride, m, n, ldc);
  if (note_call(p, count)) return CUBLAS_STATUS_SUCCESS;
  for (int i = 0; i < count; i++) {
    p.a.check(entry(a, a_stride, i, a_type));
    p.b.check(entry(b, b_stride, i, b_type));
    p.c.check(entry(c, c_stride, i, c_type));
  }
  stream_push(own->on, what, [=] {
    for (int i = 0; i < count; i++)
      run_product(p, entry(a, a_stride, i, a_type), entry(b, b_stride, i, b_type), const_cast<void *>(entry(c, c_stride, i, c_type)));
  });
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmBatchedEx(cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, const void *alpha,
                                   const void *const a[], cudaDataType a_type, int lda, const void *const b[], cudaDataType b_type, int ldb,
                                   const void *beta, void *const c[], cudaDataType c_type, int ldc, int count, cublasComputeType_t compute,
                                   cublasGemmAlgo_t algorithm) {
  (void)algorithm;
  const char *what = "cublasGemmBatchedEx";
  handle *own = of(h, what);
  const product p = make_product(what, own, op_a, op_b, m, n, k, alpha, a_type, lda, b_type, ldb, beta, c_type, ldc, compute);
  if (count < 1) fault("%s: %d products", what, count);
  if (note_call(p, count)) return CUBLAS_STATUS_SUCCESS;
  const size_t bytes = (size_t)count * sizeof(void *);
  check_device(a, bytes, "cublasGemmBatchedEx: the list of A");
  check_device(b, bytes, "cublasGemmBatchedEx: the list of B");
  check_device(c, bytes, "cublasGemmBatchedEx: the list of C");
  stream_push(own->on, what, [=] {
    for (int i = 0; i < count; i++) // the manual's advice; of pointers that lie in device memory cuBLAS itself cannot see it
      if (((uintptr_t)a[i] | (uintptr_t)b[i] | (uintptr_t)c[i]) % 16 != 0) fault("%s: matrix %d is not aligned to 16 bytes", what, i);
    for (int i = 0; i < count; i++)
      for (int j = 0; j < i; j++) {
        const auto *x = static_cast<unsigned char *>(c[i]), *y = static_cast<unsigned char *>(c[j]);
        if (x < y + p.c.bytes() && y < x + p.c.bytes()) fault("%s: results %d and %d overlap", what, j, i);
      }
    for (int i = 0; i < count; i++) run_product(p, a[i], b[i], c[i]);
  });
  return CUBLAS_STATUS_SUCCESS;
}
}
