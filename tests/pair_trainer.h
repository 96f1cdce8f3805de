/* For tests: the program's optimizer over all factor pairs of a table, with its slabs, one step at a time. Any failure
 * fails the running cmocka test. */
#ifndef PAIR_TRAINER_H
#define PAIR_TRAINER_H

#include "core/optimizer.h"

typedef struct pair_trainer {
  spt_backend *backend;     /* not owned */
  const spt_params *params; /* not owned */
  const spt_layout *layout; /* not owned */
  spt_share share;          /* all pairs, nothing else */
  spt_optimizer *optimizer;
  float *parameters, *gradients; /* backend memory */
  spt_control *control;          /* backend memory: apply, no clipping */
} pair_trainer;

void *trainer_memory(spt_backend *backend, size_t bytes);
void trainer_open(spt_backend *backend, const spt_params *params, const spt_layout *layout, pair_trainer *t);
void trainer_close(pair_trainer *t);
/* One tensor of a slab, from or to host memory. */
void trainer_put(const pair_trainer *t, float *slab, int tensor, const float *values);
void trainer_get(const pair_trainer *t, const float *slab, int tensor, float *values);
/* Opens the optimizer anew: 5 Newton–Schulz steps, one power iteration, no decay. With momentum 0, M is the gradient.
 */
void trainer_use(pair_trainer *t, spt_method method, double lr, double momentum, uint64_t seed);
/* Exact norms: with u the leading left singular vector, one power iteration returns sigma itself. */
void trainer_use_exact_vectors(pair_trainer *t);
void trainer_step(pair_trainer *t);

/* A parameter table of pairs alone, by hand. */
typedef struct pair_table {
  spt_params params;
  spt_layout layout;
} pair_table;
void pair_table_open(int count, pair_table *table); /* room for `count` pairs, empty */
void pair_table_add(pair_table *table, int64_t m, int64_t n, int64_t r);
void pair_table_close(pair_table *table);

/* The largest part of ‖ΔW‖₂ that fp32 masters may add to a step of length rho: every element of A (m, r), B (n, r) is
 * off by at most 2^-23 of itself and of its step. */
double fp32_rounding(const spt_pair *pair, const float *a, const float *b, double rho);

#endif
