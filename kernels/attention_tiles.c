#include "attention_tiles.h"

#include "simd.h"
#include "simd_kernels.h"

/* A group of queries: two vectors side by side. */
enum { GROUP = 2 * SPT_LANES, ROWS = SPT_LANES == 16 ? 8 : 4, PANEL = SPT_TILE_PANEL };

static const float log2e = 1.44269504088896341f, lowest = -1e38f; // its products with log2 e are finite

/* Words are pairs of bf16 only where the processor multiplies such pairs; else everything is widened on the way in. */
SPT_INLINE bool paired(const spt_attention_tile *t) {
#ifdef SPT_AVX512_BF16
  return t->act == SPT_BF16 && t->head_dim % 2 == 0;
#else
  (void)t;
  return false;
#endif
}

/* ---- products ---- */

SPT_INLINE vf dot(vf sum, vf a, vf b, bool bf16) {
#ifdef SPT_AVX512_BF16
  if (bf16) return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  (void)bf16;
#endif
  return vf_fma(a, b, sum);
}
SPT_INLINE vf broadcast(const uint32_t *word) {
  float value;
  memcpy(&value, word, sizeof value);
  return vf_set(value);
}
SPT_INLINE vf load_words(const uint32_t *words) {
  vf x;
  memcpy(&x, words, sizeof x);
  return x;
}

/* C (rows, `vectors` vectors, 2 or 1) = [add] C·factor + A·B over `depth` words: A's word (i, w) at a[i·a_row +
 * w·a_word], B (depth, vectors) with leading dimension ldb, C with GROUP or, in a panel, PANEL: constants, for eight
 * multiples of a variable do not fit the registers. */
typedef struct product {
  int64_t depth, a_row, a_word, ldb;
  bool panel, narrow; // narrow: one vector
  const uint32_t *a, *b;
  float *c;
  const float *factor; // by column; NULL: 1
  bool add;
} product;

SPT_INLINE void product_rows(const product *p, int64_t row, int rows, int vectors, int64_t ldc, bool bf16) {
  vf sum[ROWS][2];
  float *c = p->c + row * ldc;
  const uint32_t *a = p->a + row * p->a_row, *b = p->b;
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) {
    sum[i][0] = p->add ? vf_load(c + i * ldc) : vf_zero();
    if (vectors == 2) sum[i][1] = p->add ? vf_load(c + i * ldc + SPT_LANES) : vf_zero();
  }
  if (p->factor) {
    const vf f0 = vf_load(p->factor), f1 = vectors == 2 ? vf_load(p->factor + SPT_LANES) : vf_zero();
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      sum[i][0] *= f0;
      if (vectors == 2) sum[i][1] *= f1;
    }
  }
  for (int64_t w = 0; w < p->depth; w++, a += p->a_word, b += p->ldb) {
    const vf b0 = load_words(b), b1 = vectors == 2 ? load_words(b + SPT_LANES) : vf_zero();
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      const vf x = broadcast(a + i * p->a_row);
      sum[i][0] = dot(sum[i][0], x, b0, bf16);
      if (vectors == 2) sum[i][1] = dot(sum[i][1], x, b1, bf16);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) {
    vf_store(c + i * ldc, sum[i][0]);
    if (vectors == 2) vf_store(c + i * ldc + SPT_LANES, sum[i][1]);
  }
}

SPT_INLINE void multiply_rows(int64_t rows, const product *p, int vectors, int64_t ldc, bool bf16) {
  int64_t row = 0;
  for (; row + ROWS <= rows; row += ROWS) product_rows(p, row, ROWS, vectors, ldc, bf16);
  if (ROWS > 4 && row + 4 <= rows) product_rows(p, row, 4, vectors, ldc, bf16), row += 4;
  for (; row < rows; row++) product_rows(p, row, 1, vectors, ldc, bf16);
}
SPT_INLINE void multiply_dtype(int64_t rows, const product *p, bool bf16) {
  if (p->narrow)
    multiply_rows(rows, p, 1, GROUP, bf16);
  else if (PANEL != GROUP && p->panel)
    multiply_rows(rows, p, 2, PANEL, bf16);
  else
    multiply_rows(rows, p, 2, GROUP, bf16);
}
static void multiply(int64_t rows, product p, bool bf16, double *flops_p) {
  if (bf16)
    multiply_dtype(rows, &p, true);
  else
    multiply_dtype(rows, &p, false);
  *flops_p += (bf16 ? 4.0 : 2.0) * (double)(rows * p.depth) * (p.narrow ? SPT_LANES : GROUP);
}

/* ---- packing ---- */

/* Row `row` of an activation matrix as words; fp32 rows of bf16 matrices are widened. */
SPT_INLINE vf row_words(const spt_attention_tile *t, const void *matrix, int64_t ld, int64_t row, int64_t word,
                        int64_t count, bool bf16) {
  if (bf16) { // pairs as they lie
    const float *words = (const float *)(const void *)((const uint16_t *)matrix + row * ld) + word;
    return count < SPT_LANES ? vf_load_part(words, count) : vf_load(words);
  }
  const bool narrow = t->act == SPT_BF16;
  return count < SPT_LANES ? vf_load_act_part(matrix, row * ld + word, count, narrow)
                           : vf_load_act(matrix, row * ld + word, narrow);
}

/* (words, GROUP) of queries query0…: transposed blocks of SPT_LANES; zeros beyond `rows`. */
static void pack_columns(const spt_attention_tile *t, const void *matrix, int64_t ld, int64_t query0, int64_t rows,
                         int64_t words, uint32_t *to, bool bf16) {
  for (int64_t word = 0; word < words; word += SPT_LANES) {
    const int64_t count = spt_min(SPT_LANES, words - word);
    for (int64_t strip = 0; strip < GROUP; strip += SPT_LANES) {
      vf block[SPT_LANES];
#pragma GCC unroll 16
      for (int i = 0; i < SPT_LANES; i++)
        block[i] = strip + i < rows ? row_words(t, matrix, ld, query0 + strip + i, word, count, bf16) : vf_zero();
      vf_transpose(block);
      for (int64_t w = 0; w < count; w++) memcpy(to + (word + w) * GROUP + strip, &block[w], sizeof block[w]);
    }
  }
}

/* Rows of `matrix` from row0, `rows` of them, as the B operand or the transposed A of a product over rows: (rows,
 * padded), or pairs of rows interleaved by element, (rows/2, padded); zeros beyond. */
static void pack_rows(const spt_attention_tile *t, const void *matrix, int64_t ld, int64_t row0, int64_t rows,
                      uint32_t *to, bool bf16) {
  const int64_t d = t->head_dim, padded = spt_attention_padded(d);
  if (bf16) {
    for (int64_t row = 0; row < rows; row += 2) {
      const uint16_t *low = (const uint16_t *)matrix + (row0 + row) * ld, *high = row + 1 < rows ? low + ld : NULL;
      uint32_t *out = to + row / 2 * padded;
      for (int64_t c = 0; c < padded; c += SPT_LANES) {
        const int64_t count = d - c < 0 ? 0 : spt_min(SPT_LANES, d - c);
        vu word = {0};
        if (count == SPT_LANES) {
          word = (vu)vf_load_bf16(low + c) >> 16;
          if (high) word |= (vu)vf_load_bf16(high + c);
        } else if (count > 0) {
          word = (vu)vf_load_act_part(low, c, count, true) >> 16;
          if (high) word |= (vu)vf_load_act_part(high, c, count, true);
        }
        memcpy(out + c, &word, sizeof word);
      }
    }
    return;
  }
  for (int64_t row = 0; row < rows; row++)
    for (int64_t c = 0; c < padded; c += SPT_LANES) {
      const int64_t count = d - c < 0 ? 0 : spt_min(SPT_LANES, d - c);
      const vf x = count > 0 ? row_words(t, matrix, ld, row0 + row, c, count, false) : vf_zero();
      vf_store((float *)(void *)(to + row * padded + c), x);
    }
}

/* (head_dim, GROUP) of fp32 back into rows of an activation matrix, each column times its factor. */
static void unpack_columns(const spt_attention_tile *t, const float *from, const float *factor, void *matrix,
                           int64_t ld, int64_t query0, int64_t rows) {
  const bool narrow = t->act == SPT_BF16;
  for (int64_t c = 0; c < t->head_dim; c += SPT_LANES) {
    const int64_t count = spt_min(SPT_LANES, t->head_dim - c);
    for (int64_t strip = 0; strip < spt_min(GROUP, rows); strip += SPT_LANES) {
      vf block[SPT_LANES];
      const vf scale = vf_load(factor + strip);
#pragma GCC unroll 16
      for (int i = 0; i < SPT_LANES; i++)
        block[i] = i < count ? vf_load(from + (c + i) * GROUP + strip) * scale : vf_zero();
      vf_transpose(block);
      for (int64_t i = 0; i < spt_min(SPT_LANES, rows - strip); i++) {
        if (count == SPT_LANES)
          vf_store_act(matrix, (query0 + strip + i) * ld + c, block[i], narrow);
        else
          vf_store_act_part(matrix, (query0 + strip + i) * ld + c, block[i], count, narrow);
      }
    }
  }
}

/* Keys and values as products read them: in place, or widened copies (seq_len, head_dim). */
typedef struct operands {
  const uint32_t *k, *v;
  int64_t ld; // in words
} operands;

static operands open_operands(const spt_attention_tile *t, int64_t rows) {
  const bool in_place = paired(t) || t->act == SPT_F32;
  if (in_place) {
    const int64_t per_word = t->act == SPT_BF16 ? 2 : 1;
    return (operands){t->k, t->v, t->kv_width / per_word};
  }
  const int64_t d = t->head_dim;
  for (int64_t i = 0; i < rows; i++) {
    SPT_SIMD(convert)(t->scratch.k + i * d, SPT_F32, (const uint16_t *)t->k + i * t->kv_width, SPT_BF16, d);
    SPT_SIMD(convert)(t->scratch.v + i * d, SPT_F32, (const uint16_t *)t->v + i * t->kv_width, SPT_BF16, d);
  }
  return (operands){(const uint32_t *)(const void *)t->scratch.k, (const uint32_t *)(const void *)t->scratch.v, d};
}

/* ---- softmax ---- */

/* Which of SPT_LANES queries from `query` on may see `key`. */
SPT_INLINE vi visible(int64_t query, int64_t key) {
  vi index;
  for (int i = 0; i < SPT_LANES; i++) index[i] = i;
  return index >= ((int32_t)(key - query) - (vi){0});
}

/* Words of the next product from the probabilities of keys `key` and key + 1. */
SPT_INLINE void store_pair(uint32_t *to, int64_t key, vf even, vf odd, bool bf16) {
#ifdef SPT_AVX512_BF16
  if (bf16) {
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
    static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i interleaved = _mm512_permutexvar_epi16(_mm512_loadu_si512(order), halves);
    _mm512_storeu_si512(to + key / 2 * GROUP, interleaved);
    return;
  }
#else
  (void)bf16;
#endif
  memcpy(to + key * GROUP, &even, sizeof even);
  memcpy(to + (key + 1) * GROUP, &odd, sizeof odd);
}

/* Of the chunk's keys, the group's first vector of queries sees none after the first `both`: on the diagonal a quarter
 * of a square of GROUP keys. */
typedef struct group_state {
  int64_t query, key0, keys; // the group's first query; the chunk's first key and number of keys
  int64_t both;
  bool diagonal; // some of the chunk's keys lie after some of the group's queries
} group_state;

SPT_INLINE vf score(const spt_attention_scratch *s, const group_state *g, int64_t key, int strip, bool diagonal) {
  const vf x = vf_load(s->scores + key * GROUP + strip * SPT_LANES);
  if (!diagonal) return x;
  const vi seen = visible(g->query + strip * SPT_LANES, g->key0 + key);
  return (vf)(((vi)x & seen) | (~seen & (vi)vf_set(lowest)));
}

/* The difference first: a product with c would round, and where scores are huge its error would be a power of two. */
SPT_INLINE vf probability(const spt_attention_scratch *s, const group_state *g, int64_t key, int strip, vf c,
                          vf maximum, bool diagonal) {
  const vf p = vf_exp2((vf_load(s->scores + key * GROUP + strip * SPT_LANES) - maximum) * c);
  return diagonal ? vf_where(visible(g->query + strip * SPT_LANES, g->key0 + key), p) : p;
}

/* Folds a chunk into the running maximum and sum of one vector of queries; writes probabilities relative to the new
 * maximum and returns the factor for what was accumulated before. */
SPT_INLINE vf softmax_strip(const spt_attention_scratch *s, const group_state *g, int strip, float scale,
                            float *maximum_p, float *sum_p, bool diagonal, bool bf16) {
  const vf before = vf_load(maximum_p), c = vf_set(scale * log2e);
  vf maximum = before, sum = vf_zero();
  const int64_t keys = strip == 0 ? g->both : g->keys;
  for (int64_t key = 0; key < keys; key++) maximum = vf_max(score(s, g, key, strip, diagonal), maximum);
  for (int64_t key = 0; key < keys; key += 2) {
    const vf even = probability(s, g, key, strip, c, maximum, diagonal);
    const vf odd = key + 1 < keys ? probability(s, g, key + 1, strip, c, maximum, diagonal) : vf_zero();
    sum += even + odd;
    store_pair(s->probs + strip * SPT_LANES, key, even, odd, bf16);
  }
  const vf factor = vf_exp2((before - maximum) * c);
  vf_store(maximum_p, maximum);
  vf_store(sum_p, vf_fma(vf_load(sum_p), factor, sum));
  return factor;
}

SPT_INLINE void softmax_group(const spt_attention_scratch *s, const group_state *g, float scale, float *maximum,
                              float *sum, float factor[GROUP], bool bf16) {
  for (int strip = 0; strip < 2; strip++) {
    const int64_t at = strip * SPT_LANES;
    vf_store(factor + at, g->diagonal ? softmax_strip(s, g, strip, scale, maximum + at, sum + at, true, bf16)
                                      : softmax_strip(s, g, strip, scale, maximum + at, sum + at, false, bf16));
  }
}

/* ---- forward ---- */

/* Scores (keys, GROUP) of the chunk's rows of k against packed queries; likewise d_probs = v·d_oᵀ. Only what is seen:
 * beyond g->both the first vector is left as it was. */
static void score_chunk(spt_attention_tile *t, const uint32_t *rows, int64_t ld, const group_state *g,
                        const uint32_t *columns, float *to, bool bf16) {
  product p = {.depth = bf16 ? t->head_dim / 2 : t->head_dim,
               .a = rows + g->key0 * ld,
               .a_row = ld,
               .a_word = 1,
               .b = columns,
               .ldb = GROUP,
               .c = to};
  multiply(g->both, p, bf16, &t->flops);
  if (g->both == g->keys) return;
  p.narrow = true;
  p.a += g->both * ld, p.b += SPT_LANES, p.c += g->both * GROUP + SPT_LANES;
  multiply(g->keys - g->both, p, bf16, &t->flops);
}

/* C (head_dim, GROUP) = [add] C·factor + rowsᵀ·words over the chunk's keys: o += vᵀ·p, dq += kᵀ·ds. `rows` are pairs of
 * keys, or keys, ld words apart. */
static void sum_keys(spt_attention_tile *t, const uint32_t *rows, int64_t ld, const group_state *g,
                     const uint32_t *words, float *to, const float *factor, bool add, bool bf16) {
  const int64_t per_word = bf16 ? 2 : 1, both = (g->both + per_word - 1) / per_word,
                all = (g->keys + per_word - 1) / per_word;
  product p = {.depth = both,
               .a = rows,
               .a_row = 1,
               .a_word = ld,
               .b = words,
               .ldb = GROUP,
               .c = to,
               .factor = factor,
               .add = add};
  multiply(t->head_dim, p, bf16, &t->flops);
  if (both == all) return;
  p.narrow = p.add = true;
  p.factor = NULL;
  p.depth = all - both;
  p.a += both * ld, p.b += both * GROUP + SPT_LANES, p.c += SPT_LANES;
  multiply(t->head_dim, p, bf16, &t->flops);
}

/* Of a chunk of keys, what this group sees; false: nothing. */
static bool group_chunk(int64_t query, int64_t rows, int64_t key0, int64_t keys, group_state *g) {
  *g = (group_state){.query = query, .key0 = key0, .keys = spt_min(keys, query + spt_min(rows, GROUP) - key0)};
  g->both = spt_min(g->keys, query + SPT_LANES - key0); // even, or all: key0 and SPT_LANES are
  g->diagonal = key0 + g->keys - 1 > query;
  return g->keys > 0;
}

static void forward_block(spt_attention_tile *t, const operands *in, int64_t query0, int64_t rows, bool bf16) {
  const spt_attention_scratch *s = &t->scratch;
  const int64_t d = t->head_dim, words = bf16 ? d / 2 : d, padded = spt_attention_padded(d);
  float *maximum = s->row, *sum = s->row + SPT_TILE_QUERIES, factor[GROUP];
  for (int64_t i = 0; i < SPT_TILE_QUERIES; i++) maximum[i] = lowest, sum[i] = 0.0f;
  for (int64_t at = 0; at < rows; at += GROUP)
    pack_columns(t, t->q, t->width, query0 + at, rows - at, words, s->q + at * words, bf16);
  for (int64_t key0 = 0; key0 < query0 + rows; key0 += SPT_TILE_KEYS) {
    const int64_t keys = spt_min(SPT_TILE_KEYS, query0 + rows - key0);
    const uint32_t *v = bf16 ? s->pairs : in->v + key0 * in->ld;
    if (bf16) pack_rows(t, t->v, t->kv_width, key0, keys, s->pairs, true);
    for (int64_t at = 0; at < rows; at += GROUP) {
      group_state g;
      if (!group_chunk(query0 + at, rows - at, key0, keys, &g)) continue;
      score_chunk(t, in->k, in->ld, &g, s->q + at * words, s->scores, bf16);
      softmax_group(s, &g, t->scale, maximum + at, sum + at, factor, bf16);
      sum_keys(t, v, bf16 ? padded : in->ld, &g, s->probs, s->out + at * d, key0 > 0 ? factor : NULL, key0 > 0, bf16);
    }
  }
  for (int64_t i = 0; i < rows; i++) t->lse[query0 + i] = maximum[i] * t->scale + logf(sum[i]);
  for (int64_t i = 0; i < SPT_TILE_QUERIES; i++) sum[i] = i < rows ? 1.0f / sum[i] : 0.0f;
  for (int64_t at = 0; at < rows; at += GROUP)
    unpack_columns(t, s->out + at * d, sum + at, t->o, t->width, query0 + at, rows - at);
}

void SPT_SIMD(attention_tile_forward)(spt_attention_tile *t) {
  const operands in = open_operands(t, t->query_end);
  for (int64_t query = t->query_begin; query < t->query_end; query += SPT_TILE_QUERIES) {
    const int64_t rows = spt_min(SPT_TILE_QUERIES, t->query_end - query);
    if (paired(t))
      forward_block(t, &in, query, rows, true);
    else
      forward_block(t, &in, query, rows, false);
  }
}

/* ---- backward ---- */

/* delta = Σ o·do of a query, and its lse in powers of two. */
static void row_terms(const spt_attention_tile *t, int64_t query0, int64_t rows, float *lse2, float *delta) {
  const bool narrow = t->act == SPT_BF16;
  for (int64_t i = 0; i < SPT_TILE_QUERIES; i++) {
    lse2[i] = delta[i] = 0.0f;
    if (i >= rows) continue;
    const int64_t at = (query0 + i) * t->width;
    vf sum = vf_zero();
    int64_t c = 0;
    for (; c + SPT_LANES <= t->head_dim; c += SPT_LANES)
      sum = vf_fma(vf_load_act(t->o, at + c, narrow), vf_load_act(t->d_o, at + c, narrow), sum);
    if (c < t->head_dim)
      sum = vf_fma(vf_load_act_part(t->o, at + c, t->head_dim - c, narrow),
                   vf_load_act_part(t->d_o, at + c, t->head_dim - c, narrow), sum);
    delta[i] = vf_sum(sum);
    lse2[i] = t->lse[query0 + i] * log2e;
  }
}

/* Two vectors of a key's row, queries in order. */
SPT_INLINE void store_row(uint32_t *to, vf first, vf second, bool bf16) {
#ifdef SPT_AVX512_BF16
  if (bf16) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
    return;
  }
#else
  (void)bf16;
#endif
  memcpy(to, &first, sizeof first);
  memcpy(to + SPT_LANES, &second, sizeof second);
}

typedef struct strip_pair {
  vf p[2], ds[2];
} strip_pair;

/* p = 2^(c·s − lse2), ds = p·(dp − delta); the factor scale of ds is left to the results. */
SPT_INLINE strip_pair differentiate(const spt_attention_scratch *s, const group_state *g, int64_t key, vf c,
                                    const float *lse2, const float *delta, bool diagonal) {
  strip_pair x = {{vf_zero(), vf_zero()}, {vf_zero(), vf_zero()}};
#pragma GCC unroll 2
  for (int strip = diagonal && key >= g->both ? 1 : 0; strip < 2; strip++) {
    const int64_t at = strip * SPT_LANES;
    vf p = vf_exp2(vf_fma(vf_load(s->scores + key * GROUP + at), c, -vf_load(lse2 + at)));
    if (diagonal) p = vf_where(visible(g->query + at, g->key0 + key), p);
    x.p[strip] = p;
    x.ds[strip] = p * (vf_load(s->d_probs + key * GROUP + at) - vf_load(delta + at));
  }
  return x;
}

SPT_INLINE void differentiate_group(const spt_attention_tile *t, const group_state *g, const float *lse2,
                                    const float *delta, uint32_t *p_rows, uint32_t *ds_rows, int64_t ld, bool diagonal,
                                    bool bf16) {
  const spt_attention_scratch *s = &t->scratch;
  const vf c = vf_set(t->scale * log2e);
  for (int64_t key = 0; key < g->keys; key += 2) {
    const strip_pair even = differentiate(s, g, key, c, lse2, delta, diagonal);
    strip_pair odd = {{vf_zero(), vf_zero()}, {vf_zero(), vf_zero()}};
    store_row(p_rows + key * ld, even.p[0], even.p[1], bf16);
    store_row(ds_rows + key * ld, even.ds[0], even.ds[1], bf16);
    if (key + 1 < g->keys) {
      odd = differentiate(s, g, key + 1, c, lse2, delta, diagonal);
      store_row(p_rows + (key + 1) * ld, odd.p[0], odd.p[1], bf16);
      store_row(ds_rows + (key + 1) * ld, odd.ds[0], odd.ds[1], bf16);
    }
    store_pair(s->d_scores, key, even.ds[0], odd.ds[0], bf16);
    store_pair(s->d_scores + SPT_LANES, key, even.ds[1], odd.ds[1], bf16);
  }
}

/* dv += pᵀ·do and dk += dsᵀ·q of some of a chunk's keys, from its key `key` on, over the block's queries from `first`
 * on. */
static void accumulate_rows(spt_attention_tile *t, int64_t key0, int64_t key, int64_t keys, int64_t first, int64_t end,
                            bool bf16) {
  const spt_attention_scratch *s = &t->scratch;
  const int64_t padded = spt_attention_padded(t->head_dim), per_word = bf16 ? 2 : 1, ld = SPT_TILE_QUERIES / per_word,
                a = key * ld + first / per_word;
  for (int64_t c = 0; c < padded; c += GROUP) {
    const int64_t b = first / per_word * padded + c,
                  to = c / PANEL * t->seq_len * PANEL + (key0 + key) * PANEL + c % PANEL;
    product p = {.depth = (end - first) / per_word,
                 .a = s->p_rows + a,
                 .a_row = ld,
                 .a_word = 1,
                 .b = s->do_rows + b,
                 .ldb = padded,
                 .c = s->dv + to,
                 .panel = true,
                 .add = true};
    if (c >= t->head_dim) break;
    multiply(keys, p, bf16, &t->flops);
    p.a = s->ds_rows + a, p.b = s->q_rows + b, p.c = s->dk + to;
    multiply(keys, p, bf16, &t->flops);
  }
}

/* The whole chunk, a few keys at a time, each from the first queries that may see them; `first`: of the block, the
 * first whose probabilities of this chunk were computed. */
static void accumulate_keys(spt_attention_tile *t, int64_t query0, int64_t key0, int64_t keys, int64_t first,
                            int64_t rows, bool bf16) {
  enum { KEYS = 16 };
  const int64_t end = (rows + GROUP - 1) / GROUP * GROUP;
  if (key0 + keys <= query0 + first) {
    accumulate_rows(t, key0, 0, keys, first, end, bf16);
    return;
  }
  for (int64_t key = 0; key < keys; key += KEYS) {
    const int64_t seen = (key0 + key - query0) / KEYS * KEYS;
    accumulate_rows(t, key0, key, spt_min(KEYS, keys - key), seen > first ? seen : first, end, bf16);
  }
}

static void backward_block(spt_attention_tile *t, const operands *in, int64_t query0, int64_t rows, bool bf16) {
  const spt_attention_scratch *s = &t->scratch;
  const int64_t d = t->head_dim, per_word = bf16 ? 2 : 1, words = d / per_word, padded = spt_attention_padded(d),
                ld = SPT_TILE_QUERIES / per_word;
  float *lse2 = s->row, *delta = s->row + SPT_TILE_QUERIES;
  row_terms(t, query0, rows, lse2, delta);
  for (int64_t at = 0; at < rows; at += GROUP) {
    pack_columns(t, t->q, t->width, query0 + at, rows - at, words, s->q + at * words, bf16);
    pack_columns(t, t->d_o, t->width, query0 + at, rows - at, words, s->d_o + at * words, bf16);
  }
  const int64_t whole = SPT_TILE_QUERIES / per_word * padded;
  if (rows % GROUP) memset(s->q_rows, 0, (size_t)whole * 4), memset(s->do_rows, 0, (size_t)whole * 4);
  pack_rows(t, t->q, t->width, query0, rows, s->q_rows, bf16);
  pack_rows(t, t->d_o, t->width, query0, rows, s->do_rows, bf16);
  for (int64_t key0 = 0; key0 < query0 + rows; key0 += SPT_TILE_KEYS) {
    const int64_t keys = spt_min(SPT_TILE_KEYS, query0 + rows - key0);
    const uint32_t *k = bf16 ? s->pairs : in->k + key0 * in->ld;
    if (bf16) pack_rows(t, t->k, t->kv_width, key0, keys, s->pairs, true);
    int64_t first = rows; // of the queries that see any of these keys
    for (int64_t at = 0; at < rows; at += GROUP) {
      group_state g;
      if (!group_chunk(query0 + at, rows - at, key0, keys, &g)) continue;
      if (at < first) first = at;
      uint32_t *p_rows = s->p_rows + at / per_word, *ds_rows = s->ds_rows + at / per_word;
      for (int64_t key = g.keys; key < keys; key++) { // what this group does not see
        store_row(p_rows + key * ld, vf_zero(), vf_zero(), bf16);
        store_row(ds_rows + key * ld, vf_zero(), vf_zero(), bf16);
      }
      score_chunk(t, in->k, in->ld, &g, s->q + at * words, s->scores, bf16);
      score_chunk(t, in->v, in->ld, &g, s->d_o + at * words, s->d_probs, bf16);
      if (g.diagonal)
        differentiate_group(t, &g, lse2 + at, delta + at, p_rows, ds_rows, ld, true, bf16);
      else
        differentiate_group(t, &g, lse2 + at, delta + at, p_rows, ds_rows, ld, false, bf16);
      sum_keys(t, k, bf16 ? padded : in->ld, &g, s->d_scores, s->out + at * d, NULL, key0 > 0, bf16);
    }
    accumulate_keys(t, query0, key0, keys, first, rows, bf16);
  }
  float factor[GROUP];
  for (int i = 0; i < GROUP; i++) factor[i] = t->scale;
  for (int64_t at = 0; at < rows; at += GROUP)
    unpack_columns(t, s->out + at * d, factor, t->dq, t->width, query0 + at, rows - at);
}

void SPT_SIMD(attention_tile_backward)(spt_attention_tile *t) {
  const operands in = open_operands(t, t->seq_len);
  for (int64_t query = 0; query < t->seq_len; query += SPT_TILE_QUERIES) {
    const int64_t rows = spt_min(SPT_TILE_QUERIES, t->seq_len - query);
    if (paired(t))
      backward_block(t, &in, query, rows, true);
    else
      backward_block(t, &in, query, rows, false);
  }
}
