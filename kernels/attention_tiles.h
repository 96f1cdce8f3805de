/* Flash-style attention on one thread (Dao et al., arXiv:2205.14135), in tiles held transposed: a score tile is (keys,
 * queries) with queries along the vector, so that maxima, sums and the causal mask are vertical, scores of the next key
 * need one broadcast, and probabilities leave the registers in the order the next product reads. All that a tile
 * touches repeatedly fits the first-level cache. */
#ifndef SPT_ATTENTION_TILES_H
#define SPT_ATTENTION_TILES_H

#include "core/backend.h"

enum { SPT_TILE_QUERIES = 256, SPT_TILE_KEYS = 64, SPT_TILE_PANEL = 32 };

/* One thread's scratch, 32-bit words: an fp32 element, or a pair of bf16 ones. */
typedef struct spt_attention_scratch {
  uint32_t *q, *d_o;          /* (head_dim words, queries) by groups of queries */
  uint32_t *q_rows, *do_rows; /* (queries or pairs of them, head_dim padded) */
  uint32_t *pairs;            /* a chunk of v in forward, k in backward: (keys or pairs of them, head_dim padded) */
  float *k, *v; /* fp32 copies of the head's keys and values, where its bf16 ones are not multiplied as they are */
  float *scores, *d_probs;    /* (keys, queries of a group) */
  uint32_t *probs, *d_scores; /* the same, as words for the next product */
  uint32_t *p_rows, *ds_rows; /* (keys, queries): rows for dv, dk */
  float *out;                 /* (head_dim, queries) by groups: o or dq, transposed */
  float *row;                 /* per query: maximum, sum; or lse, delta */
  float *dk, *dv;             /* panels of SPT_TILE_PANEL columns, (seq_len, SPT_TILE_PANEL) each */
} spt_attention_scratch;

/* Work of one head of one sequence. Pointers are to its first row, at the head's first column. */
typedef struct spt_attention_tile {
  int64_t seq_len, head_dim;
  int64_t width, kv_width;        /* leading dimensions of q, o and their gradients; of k and v */
  int64_t query_begin, query_end; /* forward: these queries; begin a multiple of SPT_TILE_QUERIES. backward: all */
  float scale;                    /* 1/√head_dim */
  spt_dtype act;
  const void *q, *k, *v, *d_o;
  void *o;                       /* forward: out */
  float *lse;                    /* (seq_len) out in forward */
  void *dq;                      /* backward: out */
  spt_attention_scratch scratch; /* backward adds to scratch.dk (without the factor scale) and scratch.dv */
  double flops;                  /* executed in products, added to */
} spt_attention_tile;

/* Words of the scratch's arrays, in the order of its members. Enough for every instruction set. */
enum { SPT_ATTENTION_SCRATCH_ARRAYS = 16 };
void spt_attention_scratch_words(int64_t seq_len, int64_t head_dim, spt_dtype act, bool train,
                                 int64_t words[SPT_ATTENTION_SCRATCH_ARRAYS]);
/* head_dim padded to whole panels, which hold a pair of the widest vectors. */
static inline int64_t spt_attention_padded(int64_t head_dim) {
  return (head_dim + SPT_TILE_PANEL - 1) / SPT_TILE_PANEL * SPT_TILE_PANEL;
}

#endif
