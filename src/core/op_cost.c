#include "op_cost.h"

const char *spt_op_name(spt_op op) {
  static const char *const names[SPT_OP_COUNT] = {[SPT_OP_EMBEDDING] = "embedding",
                                                  [SPT_OP_QKV] = "q|k|v",
                                                  [SPT_OP_ATTENTION] = "attention",
                                                  [SPT_OP_O] = "o",
                                                  [SPT_OP_GATE_UP] = "gate|up",
                                                  [SPT_OP_DOWN] = "down",
                                                  [SPT_OP_HEAD] = "head and loss",
                                                  [SPT_OP_PACK] = "compute copy",
                                                  [SPT_OP_ZERO] = "zero gradients",
                                                  [SPT_OP_ADD] = "add gradients",
                                                  [SPT_OP_BATCHED_GEMM] = "Newton-Schulz",
                                                  [SPT_OP_GRADIENT_STATS] = "gradient norm",
                                                  [SPT_OP_MOMENTUM] = "momentum",
                                                  [SPT_OP_POWER_ITERATION] = "power iteration",
                                                  [SPT_OP_FACTOR_UPDATE] = "factor update",
                                                  [SPT_OP_ADAMW] = "AdamW"};
  return names[op];
}

spt_op spt_group_op(const spt_group_desc *desc) {
  if (desc->epilogue == SPT_EPILOGUE_ROPE) return SPT_OP_QKV;
  if (desc->prologue == SPT_PROLOGUE_RMSNORM) return SPT_OP_GATE_UP;
  return desc->prologue == SPT_PROLOGUE_SWIGLU ? SPT_OP_DOWN : SPT_OP_O;
}

/* Elements of a group's matrices. */
static double group_weights(const spt_group_desc *desc) {
  double sum = 0;
  for (int j = 0; j < desc->count; j++) {
    const double m = (double)desc->out_dim[j], n = (double)desc->in_dim, r = (double)desc->factor_rank[j];
    sum += r > 0 ? r * (m + n) : m * n;
  }
  return sum;
}

/* Elements of the guides that are used; alpha NULL: of all. */
static double group_guides(const spt_group_desc *desc, const float *alpha) {
  double sum = 0;
  for (int j = 0; desc->guided && j < desc->count; j++)
    if (!alpha || alpha[j] > 0) sum += (double)(desc->out_dim[j] * desc->in_dim);
  return sum;
}

spt_op_cost spt_cost_group(const spt_group_desc *desc, int64_t tokens, spt_dtype act, const float *alpha, bool backward) {
  const double N = (double)tokens, n = (double)desc->in_dim, out = (double)spt_group_out(desc),
               rank = (double)spt_group_rank(desc), size = (double)spt_dtype_size(act), weights = group_weights(desc) + group_guides(desc, alpha);
  const bool norm = desc->prologue == SPT_PROLOGUE_RMSNORM, residual = desc->epilogue == SPT_EPILOGUE_RESIDUAL;
  const double x = N * n * (norm ? 4 : desc->prologue == SPT_PROLOGUE_SWIGLU ? 2 * size : size);
  const double y = N * out * (residual ? 4 : size), t = N * rank * size;
  spt_op_cost cost = {.op = spt_group_op(desc), .backward = backward};
  if (!backward) {
    cost.flops = 2 * N * weights;
    cost.bytes = x + weights * size + t + y * (residual ? 2 : 1); // the residual is read
  } else {
    cost.flops = 4 * N * weights;
    // x, t, dy read, dx written (added to behind a norm), gradients of the weights added to
    cost.bytes = x + t + y + x * (norm ? 2 : 1) + weights * (size + 8);
  }
  return cost;
}

spt_op_cost spt_cost_group_pack(const spt_group_desc *desc, spt_dtype masters, spt_dtype weights) {
  return (spt_op_cost){.op = SPT_OP_PACK, .bytes = (group_weights(desc) + group_guides(desc, NULL)) *
                                                   (double)(spt_dtype_size(masters) + spt_dtype_size(weights))};
}

spt_op_cost spt_cost_attention(const spt_attention_args *args, spt_dtype act, bool backward) {
  const double T = (double)args->seq_len, d = (double)args->head_dim, size = (double)spt_dtype_size(act);
  const double query_heads = (double)(args->sequences * args->heads),
               kv_heads = (double)(args->sequences * args->kv_heads);
  const double pairs = query_heads * T * (T + 1) / 2;
  const double qkv = (query_heads + 2 * kv_heads) * T * d * size, o = query_heads * T * d * size;
  return (spt_op_cost){.op = SPT_OP_ATTENTION,
                       .backward = backward,
                       .flops = (backward ? 5 : 2) * 2 * d * pairs,
                       .bytes = backward ? 2 * qkv + 2 * o : qkv + o};
}

spt_op_cost spt_cost_head(int64_t tokens, int64_t hidden, int64_t vocab, spt_dtype act, bool train) {
  const double N = (double)tokens, n = (double)hidden, V = (double)vocab, size = (double)spt_dtype_size(act);
  return (spt_op_cost){.op = SPT_OP_HEAD,
                       .backward = train,
                       .flops = (train ? 3 : 1) * 2 * N * n * V,
                       .bytes = N * n * (train ? 8 : 4) + V * n * (train ? size + 8 : size)};
}

spt_op_cost spt_cost_embedding(int64_t tokens, int64_t hidden, spt_dtype table, bool backward) {
  return (spt_op_cost){.op = SPT_OP_EMBEDDING,
                       .backward = backward,
                       .bytes = (double)(tokens * hidden) * (backward ? 12 : 4 + (double)spt_dtype_size(table))};
}

spt_op_cost spt_cost_batched_gemm(const spt_gemm_batch *batch) {
  const double m = (double)batch->m, n = (double)batch->n, k = (double)batch->k, entries = (double)batch->batch;
  return (spt_op_cost){.op = SPT_OP_BATCHED_GEMM,
                       .flops = 2 * entries * m * n * k,
                       .bytes = entries * (double)spt_dtype_size(batch->dtype) *
                                (m * k + k * n + m * n * (batch->beta != 0.0f ? 2 : 1))};
}

spt_op_cost spt_cost_flat(spt_op op, int64_t count, int read, int written) {
  return (spt_op_cost){.op = op, .bytes = (double)count * (double)(read + written)};
}
