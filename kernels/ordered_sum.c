#include "ordered_sum.h"

#include "vector_math.h"

#include <sched.h>

void spt_ordered_sum_add(spt_ordered_sum *sum, float *destination, int64_t count) {
  sum->term[sum->terms].destination = destination;
  sum->term[sum->terms].count = count;
  sum->term[sum->terms++].offset = sum->chain_floats;
  sum->chain_floats += ((size_t)count + 15) & ~(size_t)15;
}

size_t spt_ordered_sum_bytes(spt_ordered_sum *sum, int64_t blocks) {
  sum->chains = spt_min(SPT_SUM_CHAINS, blocks);
  return (size_t)(sum->chains - 1) * sum->chain_floats * sizeof(float);
}

void spt_ordered_sum_place(spt_ordered_sum *sum, void *memory) {
  sum->partial = memory;
  for (int c = 0; c < SPT_SUM_CHAINS; c++)
    for (int i = 0; i < SPT_SUM_TERMS; i++) atomic_init(&sum->chain[c].done[i], 0);
}

float *spt_ordered_sum_enter(spt_ordered_sum *sum, int term, int64_t block) {
  enum { SPINS = 1000 };
  const int64_t chain = block % sum->chains, before = block / sum->chains;
  for (int i = 0; atomic_load_explicit(&sum->chain[chain].done[term], memory_order_acquire) != before; i++)
    if (i >= SPINS) sched_yield(); // the other thread may be waiting for this processor
  if (chain == 0) return sum->term[term].destination;
  return sum->partial + (size_t)(chain - 1) * sum->chain_floats + sum->term[term].offset;
}

void spt_ordered_sum_leave(spt_ordered_sum *sum, int term, int64_t block) {
  atomic_store_explicit(&sum->chain[block % sum->chains].done[term], block / sum->chains + 1, memory_order_release);
}

void spt_ordered_sum_finish(const spt_ordered_sum *sum, const spt_simd_kernels *simd) {
  enum { PIECE = 4096 };
  for (int i = 0; i < sum->terms; i++) {
#pragma omp for schedule(static) nowait
    for (int64_t at = 0; at < sum->term[i].count; at += PIECE)
      for (int64_t chain = 1; chain < sum->chains; chain++)
        simd->add_row(spt_min(PIECE, sum->term[i].count - at),
                      sum->partial + (size_t)(chain - 1) * sum->chain_floats + sum->term[i].offset + at,
                      sum->term[i].destination + at);
  }
#pragma omp barrier
}
