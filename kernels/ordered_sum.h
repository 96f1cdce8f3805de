/* Sums over the blocks of a parallel loop that must come out the same whatever the number of threads: a few matrices to
 * which every block adds its term. Blocks are dealt to CHAINS partial sums, block by block, the first of which is the
 * destination itself. Within a chain they add in order, each waiting for the one before it, matrix by matrix, so that
 * blocks follow each other as on an assembly line and hardly ever wait. At the end the other chains are added to the
 * destination in order. Blocks must be started in order (schedule(static, 1)), or a thread would wait for a block of its
 * own; with a dynamic schedule a thread would also meet its first block of a shape, and make its product, in any step. */
#ifndef SPT_ORDERED_SUM_H
#define SPT_ORDERED_SUM_H

#include "simd_kernels.h"

#include <stdatomic.h>

enum { SPT_SUM_CHAINS = 4, SPT_SUM_TERMS = 3 * SPT_GROUP_MAX };

typedef struct spt_ordered_sum {
  int terms;
  int64_t chains; /* min(CHAINS, blocks) */
  struct {
    float *destination; /* added to */
    int64_t count;
    size_t offset; /* in a chain's partial sums, in floats */
  } term[SPT_SUM_TERMS];
  size_t chain_floats;
  float *partial; /* (chains - 1, chain_floats) */
  struct {
    _Alignas(64) _Atomic int64_t done[SPT_SUM_TERMS]; /* blocks of the chain that have added this term */
  } chain[SPT_SUM_CHAINS];
} spt_ordered_sum;

/* One more matrix of `count` elements; before place. */
void spt_ordered_sum_add(spt_ordered_sum *sum, float *destination, int64_t count);
/* Bytes of partial sums for this number of blocks. */
size_t spt_ordered_sum_bytes(spt_ordered_sum *sum, int64_t blocks);
void spt_ordered_sum_place(spt_ordered_sum *sum, void *memory);

/* The partial sum of a term, once all earlier blocks of the chain have left it; leave when the block's term is added.
 */
float *spt_ordered_sum_enter(spt_ordered_sum *sum, int term, int64_t block);
void spt_ordered_sum_leave(spt_ordered_sum *sum, int term, int64_t block);
/* True for the first block of a chain's own memory, which overwrites. */
static inline bool spt_ordered_sum_first(const spt_ordered_sum *sum, int64_t block) {
  return block > 0 && block < sum->chains;
}
/* Adds the chains to the destinations. By all threads of the parallel region, after a barrier; ends with one. */
void spt_ordered_sum_finish(const spt_ordered_sum *sum, const spt_simd_kernels *simd);

#endif
