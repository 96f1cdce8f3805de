/* What one call of an op costs at least: FLOPs of its matrix products and bytes that must move. The profile divides by
 * them, the regression test bounds what a backend executes by them, and README's curves are made from them. Pure
 * functions of shapes. */
#ifndef SPT_OP_COST_H
#define SPT_OP_COST_H

#include "backend.h"

/* Products: a multiply-add is 2. Causal attention counts the keys at or before each query, T·(T + 1)/2 pairs a head: 2
 * products forward, 5 backward (scores again, dp, dv, dq, dk). Bytes: every operand read once and every result written
 * once (read too where it is added to), with nothing in a cache before. */
/* alpha: of a guided group's members; others leave it unread (NULL). */
spt_op_cost spt_cost_group(const spt_group_desc *desc, int64_t tokens, spt_dtype act, const float *alpha, bool backward);
spt_op_cost spt_cost_group_pack(const spt_group_desc *desc, spt_dtype masters, spt_dtype weights);
spt_op_cost spt_cost_attention(const spt_attention_args *args, spt_dtype act, bool backward);
spt_op_cost spt_cost_head(int64_t tokens, int64_t hidden, int64_t vocab, spt_dtype act, bool train);
spt_op_cost spt_cost_embedding(int64_t tokens, int64_t hidden, spt_dtype table, bool backward);
spt_op_cost spt_cost_batched_gemm(const spt_gemm_batch *batch);
/* Ops on flat arrays: bytes of `count` elements, `read` and `written` bytes each. */
spt_op_cost spt_cost_flat(spt_op op, int64_t count, int read, int written);

const char *spt_op_name(spt_op op);
/* Which of a layer's groups this is, by its prologue and epilogue. */
spt_op spt_group_op(const spt_group_desc *desc);

#endif
