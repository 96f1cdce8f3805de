/* What one training step puts on a GPU, counted from the CUDA backend's own calls: launches, products, copies, host waits, device memory. And beside it
 * a roofline of an H100: the least time of each op (src/core/op_cost.h), and an estimate from the very products and kernels that were launched.
 * Nothing is executed (simgpu::counting_only), so that real sizes can be counted. None of the times was measured on hardware.
 *
 *     step_report [PRESET]...   (S M L)      step_report --check: counts as predicted, or exit 1 */
#include "simgpu.h"

extern "C" {
#include "core/flops.h"
#include "core/model.h"
#include "core/op_cost.h"
#include "core/optimizer.h"
/* of backend_cuda.h, which is for C alone */
spt_status spt_cuda_open(spt_precision precision, int threads, int local_ranks, spt_backend **backend_p);
size_t spt_cuda_own_bytes(spt_dtype act, const spt_model_config *model, const spt_optimizer_config *optimizer, int64_t edge);
}

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

namespace {

/* ---- the device ---- */
constexpr double PEAK = 990e12, BANDWIDTH = 3.35e12; // H100 SXM: dense bf16, HBM3
constexpr int PROCESSORS = 132;
/* Of the estimate. Published: 780 TFLOP/s of a 4224 × 2048 × 8192 bf16 product, which fills 132 processors evenly
 * (gist.github.com/Chillee/2ec89696db8b7ed1c24461159e325405); FlashAttention-2, which like ours does not use Hopper's asynchronous products, reaches 35 % of
 * the peak (arXiv:2407.08608). Tiles and waves as NVIDIA's "Matrix Multiplication Background" describes them. */
constexpr double PRODUCT_EFFICIENCY = 780e12 / 990e12, ATTENTION_EFFICIENCY = 0.35;
/* Assumed, with no source: of the bandwidth; time of a launch that has no work; products' k that filling and emptying the pipeline costs. */
constexpr double BANDWIDTH_EFFICIENCY = 0.85, LAUNCH_SECONDS = 3e-6, PIPELINE_K = 128;
struct tile {
  int m, n;
  double efficiency; // of the largest tile's; assumed
};
constexpr tile TILES[] = {{128, 256, 1.0}, {256, 128, 1.0}, {128, 128, 0.9}, {128, 64, 0.7}, {64, 128, 0.7}, {64, 64, 0.5}};

[[noreturn]] void fail(const char *what) {
  fprintf(stderr, "step_report: %s: %s\n", what, spt_error_message());
  exit(1);
}
void ok(spt_status status, const char *what) {
  if (status != SPT_OK) fail(what);
}

/* ---- one step ---- */
struct run {
  spt_config config = {};
  spt_backend *backend = nullptr;
  spt_params *params = nullptr;
  std::vector<int64_t> offsets;
  std::vector<int> pairs;
  std::vector<spt_slice> slices;
  spt_layout layout = {};
  spt_share share = {};
  float *parameters = nullptr, *gradients = nullptr;
  spt_control *control = nullptr;
  spt_model *model = nullptr;
  spt_optimizer *optimizer = nullptr;
  int64_t micro = 0;
  size_t measured = 0; // what a dry run says of this memory
};

void *device(spt_backend *backend, size_t bytes) {
  void *memory = nullptr;
  ok(backend->ops->alloc(backend, bytes, &memory), "memory");
  return memory;
}

/* One rank that owns everything. */
void open_run(run &r, const char *preset, int64_t layers, int64_t micro, int64_t seq_len, bool recompute) {
  spt_config_defaults(&r.config);
  ok(spt_config_apply_preset(preset, &r.config.model), preset);
  if (layers > 0) r.config.model.layers = layers;
  r.config.model.seq_len = seq_len;
  r.config.model.recompute = recompute;
  r.config.schedule.steps = 1;
  ok(spt_config_complete(&r.config), preset);
  r.micro = micro;
  ok(spt_cuda_open(SPT_PRECISION_BF16, 1, 1, &r.backend), "backend");
  ok(spt_params_open(&r.config.model, &r.params), "parameters");
  for (int i = 0; i < r.params->pair_count; i++) r.pairs.push_back(i);
  for (int i = 0; i < r.params->tensor_count; i++) {
    const spt_tensor &tensor = r.params->tensors[i];
    r.offsets.push_back(r.layout.elements);
    r.layout.elements += (tensor.count + 15) / 16 * 16;
    if (tensor.pair < 0) r.slices.push_back({i, 0, tensor.count});
  }
  r.layout.offset = r.offsets.data();
  r.share.pairs = r.pairs.data();
  r.share.pair_count = (int)r.pairs.size();
  r.share.slices = r.slices.data();
  r.share.slice_count = (int)r.slices.size();
  const size_t bytes = (size_t)r.layout.elements * sizeof(float);
  r.parameters = static_cast<float *>(device(r.backend, bytes));
  r.gradients = static_cast<float *>(device(r.backend, bytes));
  r.control = static_cast<spt_control *>(device(r.backend, sizeof(spt_control)));
  ok(spt_model_open(r.backend, &r.config.model, r.params, &r.layout, r.parameters, r.gradients, micro, &r.model), "model");
  ok(spt_optimizer_open(r.backend, &r.config.optimizer, r.params, &r.layout, &r.share, r.parameters, r.gradients, 1, &r.optimizer), "optimizer");
  spt_model_memory memory;
  size_t state, workspace;
  ok(spt_model_measure(r.backend, &r.config.model, micro, true, &memory), "measure");
  spt_optimizer_measure(&r.config.optimizer, r.params, &r.share, r.backend->act, &state, &workspace);
  r.measured = 2 * bytes + sizeof(spt_control) + memory.compute_weights + memory.activations + memory.workspace + state + workspace +
               spt_cuda_own_bytes(r.backend->act, &r.config.model, &r.config.optimizer, 0);
}
void close_run(run &r) {
  spt_optimizer_close(&r.optimizer);
  spt_model_close(&r.model);
  r.backend->ops->free(r.backend, r.parameters, 0);
  r.backend->ops->free(r.backend, r.gradients, 0);
  r.backend->ops->free(r.backend, r.control, 0);
  spt_params_close(&r.params);
  r.backend->ops->close(&r.backend);
}

/* As the trainer's step: zero, one micro-batch, gradient norm, decision, update, compute copy. Returns where the update begins in simgpu::noted. */
size_t step(run &r) {
  const spt_ops *ops = r.backend->ops;
  const int64_t tokens = r.micro * r.config.model.seq_len;
  const std::vector<int32_t> ids((size_t)tokens, 1);
  double loss = 0;
  spt_control control = {};
  control.clip = control.apply = 1;
  ok(ops->upload(r.backend, r.control, &control, sizeof control), "control");
  ok(ops->zero(r.backend, r.gradients, (size_t)r.layout.elements * sizeof(float)), "zero");
  ok(spt_model_train(r.model, r.micro, ids.data(), ids.data(), 1.0f / (float)tokens, nullptr, &loss), "model");
  const size_t update = simgpu::noted.size();
  ok(spt_optimizer_gradient_stats(r.optimizer, r.control), "norm");
  ok(ops->download(r.backend, &control, r.control, sizeof control), "norm");
  control.apply = 1;
  ok(ops->upload(r.backend, r.control, &control, sizeof control), "decision");
  ok(spt_optimizer_step(r.optimizer, 1, r.control), "optimizer");
  ok(spt_model_refresh(r.model), "compute copy");
  return update;
}

struct counts {
  int64_t kernels, products, waits, host_copies, device_copies;
  double host_copied, device_copied; // bytes
  std::vector<simgpu::noted_launch> launches;
  size_t update;
};
counts count_step(run &r) {
  step(r); // the first allocates scratch and tables
  simgpu::noted.clear();
  const simgpu::counters before = simgpu::counted;
  counts c = {};
  c.update = step(r);
  c.kernels = simgpu::counted.launches - before.launches;
  c.products = simgpu::counted.products - before.products;
  c.host_copies = simgpu::counted.host_copies - before.host_copies;
  c.device_copies = simgpu::counted.copies - before.copies - c.host_copies;
  c.waits = simgpu::counted.synchronizations - before.synchronizations;
  c.host_copied = (double)(simgpu::counted.host_copied_bytes - before.host_copied_bytes);
  c.device_copied = (double)(simgpu::counted.copied_bytes - before.copied_bytes) - c.host_copied;
  c.launches = simgpu::noted;
  return c;
}

/* ---- times ---- */
double product_bytes(const simgpu::noted_launch &p) {
  const double m = p.m, n = p.n, k = p.k;
  return p.batch * (p.size * (m * k + k * n) + p.c_size * m * n * (p.adds ? 2 : 1));
}
double product_flops(const simgpu::noted_launch &p) {
  return 2.0 * p.batch * p.m * p.n * p.k;
}
/* The best tile and split of k, in whole waves of blocks, or the memory's time. */
double product_seconds(const simgpu::noted_launch &p) {
  double best = INFINITY;
  for (const tile &t : TILES)
    for (int split = 1; split <= 32; split *= 2) {
      const double k = std::ceil((double)p.k / split), rows = std::ceil((double)p.m / t.m), columns = std::ceil((double)p.n / t.n);
      const double waves = std::ceil(rows * columns * split * p.batch / PROCESSORS);
      const double rate = PEAK / PROCESSORS * PRODUCT_EFFICIENCY * t.efficiency;
      const double compute = waves * 2.0 * t.m * t.n * (k + PIPELINE_K) / rate;
      const double sums = split > 1 ? 8.0 * split * p.m * p.n * p.batch : 0; // partial sums written and read
      best = std::min(best, std::max(compute, (product_bytes(p) + sums) / (BANDWIDTH * BANDWIDTH_EFFICIENCY)));
    }
  return best + LAUNCH_SECONDS;
}

/* Bytes that the kernels of forward and backward move in a step, beside products and attention: by what each reads and writes. */
double elementwise_bytes(const run &r) {
  const spt_model_config &m = r.config.model;
  const double N = (double)(r.micro * m.seq_len), H = (double)m.hidden, F = (double)m.ffn, V = (double)m.vocab, KV = (double)(m.kv_heads * spt_head_dim(&m));
  const double norm = N * H * (4 + 2), norm_backward = N * H * (4 + 2 + 4 + 2 + 8); // h again: x, h; then x, dh, dx added to
  const double rope = 2 * N * (H + KV) * 2, swiglu = N * F * 6, swiglu_backward = N * F * (2 + 2 + 2 + 2 + 2 + 2);
  const double residual = 8 * N * H, narrow = 6 * N * H; // residual copied before a product adds to it; dy to bf16
  const double forward = 2 * norm + rope + swiglu + 2 * residual;
  const double backward = 2 * norm_backward + rope + swiglu_backward + 2 * narrow;
  const double head = norm + N * V * (4 + 4 + 2) + N * H * (4 + 4 + 4) + N * H * 20; // scores read twice, gradient written; norm; embedding
  return (double)m.layers * (forward * (m.recompute ? 2 : 1) + backward) + head;
}

struct times {
  double flops, bound, estimate, update_bound, update_estimate;
};
std::string name_of(spt_op op) { // "|" ends a cell
  std::string name;
  for (const char *c = spt_op_name(op); *c; c++) name += *c == '|' ? std::string("\\|") : std::string(1, *c);
  return name;
}

/* Prints the ops of the step as it counts them. */
times predict(run &r, const char *preset, const counts &c) {
  times t = {};
  memset(&r.backend->profile, 0, sizeof r.backend->profile);
  r.backend->profiling = true;
  step(r);
  r.backend->profiling = false;
  double attention = 0;
  printf("\n%s: each op's least time\n\n| op | pass | calls | GFLOP | GB | bound, ms | by |\n| --- | --- | --- | --- | --- | --- | --- |\n", preset);
  for (int op = 0; op < SPT_OP_COUNT; op++)
    for (int backward = 0; backward < 2; backward++) {
      const spt_op_profile &row = r.backend->profile.ops[op][backward];
      const double least = std::max(row.flops / PEAK, row.bytes / BANDWIDTH);
      const bool update = op >= SPT_OP_ADD && op != SPT_OP_ZERO;
      if (row.calls > 0)
        printf("| %s | %s | %lld | %.1f | %.3f | %.3f | %s |\n", name_of((spt_op)op).c_str(), backward ? "backward" : "forward", (long long)row.calls, row.flops / 1e9,
               row.bytes / 1e9, 1e3 * least, row.flops / PEAK > row.bytes / BANDWIDTH ? "products" : "memory");
      (update ? t.update_bound : t.bound) += least;
      if (op == SPT_OP_ATTENTION) attention += row.flops;
      if (update && op != SPT_OP_BATCHED_GEMM) t.update_estimate += row.bytes / (BANDWIDTH * BANDWIDTH_EFFICIENCY);
    }
  t.estimate = attention / (PEAK * ATTENTION_EFFICIENCY) + elementwise_bytes(r) / (BANDWIDTH * BANDWIDTH_EFFICIENCY);
  for (size_t i = 0; i < c.launches.size(); i++)
    (i < c.update ? t.estimate : t.update_estimate) += c.launches[i].kernel.empty() ? product_seconds(c.launches[i]) : LAUNCH_SECONDS;
  spt_flops flops;
  spt_flops_count(&r.config.model, &r.config.optimizer, r.params, &flops);
  t.flops = flops.train_per_token * (double)(r.micro * r.config.model.seq_len);
  return t;
}

void print_products(const char *preset, const counts &c) {
  std::map<std::string, std::pair<int, simgpu::noted_launch>> shapes;
  for (size_t i = 0; i < c.update; i++) {
    const simgpu::noted_launch &p = c.launches[i];
    char key[96];
    if (!p.kernel.empty()) continue;
    snprintf(key, sizeof key, "%d × %d × %d%s", p.m, p.n, p.k, p.batch > 1 ? (" · " + std::to_string(p.batch)).c_str() : "");
    auto &entry = shapes[std::string(key) + (p.c_size == 4 ? ", fp32 out" : "")];
    entry.first++;
    entry.second = p;
  }
  printf("\n%s: products of forward and backward, as estimated\n\n| m × n × k | calls | TFLOP/s | share of peak |\n| --- | --- | --- | --- |\n", preset);
  for (const auto &[key, entry] : shapes) {
    const double rate = product_flops(entry.second) / product_seconds(entry.second);
    printf("| %s | %d | %.0f | %.0f %% |\n", key.c_str(), entry.first, rate / 1e12, 100 * rate / PEAK);
  }
}

/* Launches of forward and backward outside of the layers, at the real size: those of the head's blocks, mostly. */
size_t fixed_launches(const char *preset, int64_t micro) {
  size_t launches[3] = {};
  for (int layers = 1; layers <= 2; layers++) {
    run part;
    open_run(part, preset, layers, micro, 2048, false);
    launches[layers] = count_step(part).update;
    close_run(part);
  }
  return 2 * launches[1] - launches[2];
}

/* Launches are linear in the layers and few outside of them, and memory is as the dry run says. */
int check() {
  int bad = 0;
  for (int recompute = 0; recompute < 2; recompute++) {
    int64_t of[4], memory_bad = 0;
    for (int layers = 1; layers <= 3; layers++) {
      const size_t before = simgpu::device_free_bytes();
      run r;
      open_run(r, "60M", layers, 1, 256, recompute);
      const counts c = count_step(r);
      size_t updates = 0;
      for (const auto &l : c.launches) updates += l.kernel.find("adamw") != std::string::npos;
      if (c.kernels < 1 || c.products < 1 || updates == 0) bad++, fprintf(stderr, "step_report: no launches\n");
      of[layers] = (int64_t)c.update;
      const size_t held = before - simgpu::device_free_bytes();
      if (held != r.measured) memory_bad++, fprintf(stderr, "step_report: %zu bytes on the device, the dry run counts %zu\n", held, r.measured);
      close_run(r);
      if (simgpu::device_free_bytes() != before) bad++, fprintf(stderr, "step_report: device memory was not given back\n");
    }
    if (of[2] - of[1] != of[3] - of[2]) bad++, fprintf(stderr, "step_report: launches are not linear in the layers: %lld, %lld, %lld\n", (long long)of[1], (long long)of[2], (long long)of[3]);
    bad += (int)memory_bad;
  }
  const size_t fixed = fixed_launches("S", 8);
  if (fixed > 64) bad++, fprintf(stderr, "step_report: %zu launches outside of the layers; the simulator's limits are not the product's\n", fixed);
  return bad ? 1 : 0;
}

} // namespace

int main(int argc, char **argv) {
  setenv("SIMGPU_MEMORY", "400000000000", 0);
  simgpu::counting_only = true;
  if (argc == 2 && strcmp(argv[1], "--check") == 0) return check();
  const int64_t micro = 8;
  std::vector<const char *> presets(argv + 1, argv + argc);
  if (presets.empty()) presets = {"S", "M", "L"};
  printf("One step of one GPU, 8 × 2048 tokens in one pass, bf16, counted from the backend's calls; forward and backward take `fixed + layers · each`\n"
         "launches (kernels and products).\n\n"
         "| preset | fixed | each layer | forward and backward | update of all pairs | host waits | host copies | MB | copies on the device | MB |\n"
         "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
  std::vector<counts> all;
  std::vector<times> predicted;
  for (const char *preset : presets) {
    const size_t fixed = fixed_launches(preset, micro);
    run r;
    open_run(r, preset, 0, micro, 2048, false);
    const counts c = count_step(r);
    const size_t each = (c.update - fixed) / (size_t)r.config.model.layers;
    printf("| %s | %zu | %zu | %zu | %zu | %lld | %lld | %.2f | %lld | %.0f |\n", preset, fixed, each, c.update, c.launches.size() - c.update, (long long)c.waits,
           (long long)c.host_copies, c.host_copied / 1e6, (long long)c.device_copies, c.device_copied / 1e6);
    all.push_back(c);
    close_run(r);
  }
  for (const char *preset : presets) {
    run r;
    open_run(r, preset, 0, micro, 2048, false);
    predicted.push_back(predict(r, preset, all[predicted.size()]));
    close_run(r);
  }
  printf("\nPredicted for an H100 (990 TFLOP/s, 3.35 TB/s, 132 processors), never measured; share of peak in FLOPs of the factored network. The update is that of\n"
         "all pairs on one GPU after every pass; more GPUs share it, more passes a step make it rarer.\n\n"
         "| preset | TFLOP a pass | bound, ms | share | estimate, ms | share | tokens/s | update, bound, ms | estimate, ms | share with it |\n"
         "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
  for (size_t i = 0; i < presets.size(); i++) {
    const times &t = predicted[i];
    printf("| %s | %.1f | %.1f | %.0f %% | %.1f | %.0f %% | %.0f | %.1f | %.1f | %.0f %% |\n", presets[i], t.flops / 1e12, 1e3 * t.bound, 100 * t.flops / (PEAK * t.bound), 1e3 * t.estimate,
           100 * t.flops / (PEAK * t.estimate), (double)micro * 2048 / t.estimate, 1e3 * t.update_bound, 1e3 * t.update_estimate,
           100 * t.flops / (PEAK * (t.estimate + t.update_estimate)));
  }
  for (size_t i = 0; i < presets.size(); i++) print_products(presets[i], all[i]);
  return 0;
}
