/* Attention of the CUDA backend on the simulator against the naive definition (tests/reference.h): fresh random operands, outputs poisoned, widths and
 * lengths around the edges of tiles, bf16 and fp32. Usage: test_attention_cuda_sim; SPT_TEST_SEED repeats the operands, SIMGPU_SEED the order.
 * Exit 0 when all is as defined. */
#include "attention_cuda.h"
#include "simgpu/simgpu.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <random>
#include <string>
#include <vector>

extern "C" {
#include "reference.h"
}

namespace {

struct test_case {
  const char *name;
  int64_t sequences, seq_len, heads, kv_heads, head_dim;
  int shift = 0;     /* elements that tensors begin after an aligned address */
  bool huge = false; /* scores whose rounding exceeds what exp can take; forward only */
};
const test_case cases[] = {
    {"T=1", 2, 1, 1, 1, 16},
    {"T=2 GQA, d=24", 1, 2, 3, 1, 24},
    {"T=15 GQA", 1, 15, 4, 2, 16},
    {"T=16", 2, 16, 1, 1, 32},
    {"T=17 GQA, d=64", 1, 17, 3, 1, 64},
    {"T=17 GQA, d=128", 1, 17, 4, 2, 128},
    {"T=15 GQA, d=96", 1, 15, 3, 1, 96},
    {"T=64, d=96", 1, 64, 1, 1, 96},
    {"T=64 GQA", 1, 64, 4, 2, 16},
    {"T=100, d=128", 1, 100, 1, 1, 128},
    {"T=100 GQA, d=24", 1, 100, 3, 1, 24},
    {"T=100 GQA, d=32", 1, 100, 4, 2, 32},
    {"T=150 GQA, d=64", 1, 150, 2, 1, 64},
    {"T=17, d=48", 2, 17, 1, 1, 48},
    {"T=37 GQA, d=33", 1, 37, 2, 1, 33},
    {"T=9, d=1", 4, 9, 5, 5, 1},
    {"T=70, unaligned", 1, 70, 2, 2, 16, 1},
    {"T=20 GQA, d=66", 2, 20, 6, 2, 66},
    {"huge scores", 2, 70, 2, 1, 32, 0, true},
};

std::mt19937_64 engine;
cudaStream_t stream;
int failures;

void must(cudaError_t error) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "test_attention_cuda_sim: %s\n", cudaGetErrorString(error));
  exit(3);
}

std::vector<double> draw(int64_t count, double spread) {
  std::normal_distribution<double> normal(0.0, spread);
  std::vector<double> values((size_t)count);
  for (double &v : values) v = normal(engine);
  return values;
}

/* A tensor in an allocation of its own; every element starts as NaN. */
struct tensor {
  spt_dtype dtype;
  int64_t count;
  unsigned char *base, *pinned;
  void *data;

  tensor(int64_t count_, spt_dtype dtype_, int shift) : dtype(dtype_), count(count_) {
    must(cudaMalloc((void **)&base, bytes() + (size_t)shift * spt_dtype_size(dtype)));
    must(cudaHostAlloc((void **)&pinned, bytes(), cudaHostAllocDefault));
    data = base + (size_t)shift * spt_dtype_size(dtype);
  }
  tensor(const tensor &) = delete;
  ~tensor() {
    must(cudaFree(base));
    must(cudaFreeHost(pinned));
  }
  size_t bytes() const { return (size_t)count * spt_dtype_size(dtype); }
  /* Values rounded to the type, to the device and in place. */
  void put(std::vector<double> &values) {
    for (size_t i = 0; i < (size_t)count; i++)
      if (dtype == SPT_BF16) {
        const __nv_bfloat16 rounded = __float2bfloat16((float)values[i]);
        memcpy(pinned + 2 * i, &rounded, 2);
        values[i] = (double)__bfloat162float(rounded);
      } else {
        const float rounded = (float)values[i];
        memcpy(pinned + 4 * i, &rounded, 4);
        values[i] = (double)rounded;
      }
    must(cudaMemcpyAsync(data, pinned, bytes(), cudaMemcpyHostToDevice, stream));
    must(cudaStreamSynchronize(stream));
  }
  std::vector<double> get() {
    must(cudaMemcpyAsync(pinned, data, bytes(), cudaMemcpyDeviceToHost, stream));
    must(cudaStreamSynchronize(stream));
    std::vector<double> values((size_t)count);
    for (size_t i = 0; i < (size_t)count; i++)
      if (dtype == SPT_BF16) {
        __nv_bfloat16 value;
        memcpy(&value, pinned + 2 * i, 2);
        values[i] = (double)__bfloat162float(value);
      } else {
        float value;
        memcpy(&value, pinned + 4 * i, 4);
        values[i] = (double)value;
      }
    return values;
  }
};

/* The tolerances of ops_check (tests/ops_fixture.h). */
void compare(const test_case &c, spt_dtype act, const char *what, const std::vector<double> &got, const std::vector<double> &want,
             spt_dtype arithmetic) {
  const double few = arithmetic == SPT_BF16 ? 1.0 + 3.0 / std::sqrt((double)want.size()) : 1.0;
  const double tolerance = few * (arithmetic == SPT_BF16 ? 1.2e-2 : 1e-5);
  double error = 0.0, size = 0.0, worst = 0.0, largest = 0.0;
  size_t where = 0;
  for (size_t i = 0; i < want.size(); i++) {
    const double off = std::fabs(got[i] - want[i]);
    error += off * off;
    size += want[i] * want[i];
    largest = std::fmax(largest, std::fabs(want[i]));
    if (!(off <= worst)) worst = off, where = i; // a NaN counts as worst
  }
  if (std::sqrt(error) <= tolerance * std::sqrt(size) + 1e-30 && worst <= 8.0 * tolerance * largest + 1e-30) return;
  failures++;
  printf("FAIL: %s, %s: %s differs: relative error %.3g, worst at %zu of %zu: %.9g, expected %.9g (tolerance %.3g)\n", c.name,
         act == SPT_BF16 ? "bf16" : "fp32", what, std::sqrt(error / size), where, want.size(), got[where], want[where], tolerance);
}

/* q|k|v by row, as the reference has it, of matrices one after another; or back. */
std::vector<double> reorder(const test_case &c, const std::vector<double> &from, bool to_rows) {
  const int64_t N = c.sequences * c.seq_len, widths[3] = {c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim};
  const int64_t all = widths[0] + 2 * widths[1];
  std::vector<double> to(from.size());
  for (int64_t part = 0, before = 0; part < 3; before += widths[part++])
    for (int64_t row = 0; row < N; row++)
      for (int64_t i = 0; i < widths[part]; i++) {
        const size_t by_row = (size_t)(row * all + before + i), apart = (size_t)(N * before + row * widths[part] + i);
        to[to_rows ? by_row : apart] = from[to_rows ? apart : by_row];
      }
  return to;
}

void ok(spt_status status) {
  if (status == SPT_OK) return;
  fprintf(stderr, "test_attention_cuda_sim: %s\n", spt_error_message());
  exit(3);
}

/* A launch of each of these is wanted. */
struct launch_counts {
  std::vector<const char *> kernels;
  std::vector<int64_t> before;
  explicit launch_counts(std::vector<const char *> names) : kernels(std::move(names)) {
    for (const char *k : kernels) before.push_back(simgpu::launches_of(k));
  }
  void check(const test_case &c) const {
    for (size_t i = 0; i < kernels.size(); i++)
      if (simgpu::launches_of(kernels[i]) <= before[i]) {
        failures++;
        printf("FAIL: %s: %s was not launched\n", c.name, kernels[i]);
      }
  }
};

void check_backward(const test_case &c, spt_dtype act, const ref_attention &definition, spt_attention_args args) {
  const int64_t N = c.sequences * c.seq_len, width = (c.heads + 2 * c.kv_heads) * c.head_dim, out = c.heads * c.head_dim;
  std::vector<double> d_o = draw(N * out, 1.0), wanted((size_t)(N * width)), first;
  tensor device_d_o(N * out, act, c.shift);
  device_d_o.put(d_o);
  ref_attention_backward(&definition, d_o.data(), wanted.data());
  wanted = reorder(c, wanted, false);
  args.d_o = device_d_o.data;
  for (int run = 0; run < (c.seq_len <= 17 ? 2 : 1); run++) { // the same bits in another order of blocks and threads
    tensor dqkv(N * width, act, c.shift), workspace((int64_t)spt_cuda_attention_workspace(N, c.heads) / 4, SPT_F32, 0);
    args.dqkv = dqkv.data;
    args.workspace = workspace.data;
    const launch_counts counts({"(attention_delta_kernel<T>)", "(attention_dq_kernel<T, D>)", "(attention_dkdv_kernel<T, D, OUTPUTS>)"});
    ok(spt_cuda_attention_backward(&args, act, stream));
    const std::vector<double> got = dqkv.get();
    counts.check(c);
    if (run == 0) compare(c, act, "dqkv", first = got, wanted, act);
    if (memcmp(first.data(), got.data(), got.size() * sizeof(double)) != 0) {
      failures++;
      printf("FAIL: %s: dqkv is not the same bits when computed again\n", c.name);
    }
  }
}

void run(const test_case &c, spt_dtype act) {
  const int64_t N = c.sequences * c.seq_len, width = (c.heads + 2 * c.kv_heads) * c.head_dim, out = c.heads * c.head_dim;
  std::vector<double> qkv = draw(N * width, c.huge ? 2.0 : 1.5), o((size_t)(N * out)), lse((size_t)(N * c.heads));
  for (double &x : qkv)
    if (c.huge) x = std::nearbyint(x) * 512.0; // whole multiples: scores are exact, two keys equal or far apart
  tensor device_qkv(N * width, act, c.shift), device_o(N * out, act, c.shift), device_lse(N * c.heads, SPT_F32, 0);
  device_qkv.put(qkv);
  qkv = reorder(c, qkv, true);
  const ref_attention definition = {c.sequences, c.seq_len, c.heads, c.kv_heads, c.head_dim, qkv.data()};
  ref_attention_forward(&definition, o.data(), lse.data());

  spt_attention_args args = {};
  args.sequences = c.sequences, args.seq_len = c.seq_len, args.heads = c.heads, args.kv_heads = c.kv_heads, args.head_dim = c.head_dim;
  args.qkv = device_qkv.data;
  args.o = device_o.data;
  args.lse = static_cast<float *>(device_lse.data);
  const launch_counts counts({"(attention_forward_kernel<T, D>)"});
  ok(spt_cuda_attention_forward(&args, act, stream));
  compare(c, act, "o", device_o.get(), o, act);
  compare(c, act, "lse", device_lse.get(), lse, SPT_F32); // of exact operands, in fp32
  counts.check(c);
  if (!c.huge) check_backward(c, act, definition, args); // lse, rounded, no longer tells the probabilities
}

void too_wide() {
  spt_attention_args args = {};
  args.sequences = args.seq_len = args.heads = args.kv_heads = 1;
  args.head_dim = 129;
  if (spt_cuda_attention_forward(&args, SPT_BF16, stream) == SPT_ERR_RESOURCE && strstr(spt_error_message(), "129")) return;
  failures++;
  printf("FAIL: a head of width 129 is not refused\n");
}

} // namespace

int main(int argc, char **argv) {
  const char *given = getenv("SPT_TEST_SEED"), *only = argc > 1 ? argv[1] : nullptr;
  const uint64_t seed = given ? strtoull(given, nullptr, 0) : (uint64_t)time(nullptr) * 1000003 + (uint64_t)clock();
  setvbuf(stdout, nullptr, _IOLBF, 0);
  printf("seed: SPT_TEST_SEED=%llu\n", (unsigned long long)seed);
  engine.seed(seed);
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  too_wide();
  for (const test_case &c : cases)
    for (const spt_dtype act : {SPT_BF16, SPT_F32}) {
      if (only && !strstr(c.name, only)) continue;
      const int before = failures;
      const clock_t start = clock();
      run(c, act);
      printf("%s: %s, %s, %.2f s\n", failures == before ? "ok" : "FAIL", c.name, act == SPT_BF16 ? "bf16" : "fp32",
             (double)(clock() - start) / CLOCKS_PER_SEC);
    }
  must(cudaStreamDestroy(stream));
  printf("%d failures\n", failures);
  return failures != 0;
}
