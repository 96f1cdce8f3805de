/* `spectron baseline`: P(b | a) = (count(a, b) + 1) / (count(a) + V), counted on training shards, scored on validation
 * shards. */
#include "io/sampler.h"
#include "tools.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const char help[] =
    "spectron baseline --train GLOB --validation GLOB   validation loss of an add-one bigram model\n\n"
    "Counts pairs of neighbouring tokens in the training shards and prints nats per token, perplexity and bits per "
    "byte of the\n"
    "validation shards, one 'key value' a line. A trained model has to do better. Both options may be given more than "
    "once.\n\n"
    "Example: spectron baseline --train 'data/train-*.h5' --validation 'data/validation-*.h5'\n";

enum { PATTERNS_MAX = 64, READ_TOKENS = 65536 };

/* Counts of pairs: open addressing with linear probing, at most half full; key 0 is an empty place, so keys are shifted
 * by one. */
typedef struct pair_counts {
  uint64_t *keys, *counts;
  size_t capacity, used; /* capacity is a power of two */
} pair_counts;

static size_t find_place(const pair_counts *pairs, uint64_t key) {
  size_t place = (size_t)(key * UINT64_C(0x9E3779B97F4A7C15) >> 20) & (pairs->capacity - 1);
  while (pairs->keys[place] && pairs->keys[place] != key) place = (place + 1) & (pairs->capacity - 1);
  return place;
}

static spt_status grow(pair_counts *pairs) {
  const size_t capacity = pairs->capacity ? 2 * pairs->capacity : 1 << 16;
  pair_counts larger = {calloc(capacity, sizeof(uint64_t)), calloc(capacity, sizeof(uint64_t)), capacity, pairs->used};
  if (!larger.keys || !larger.counts) {
    free(larger.keys);
    free(larger.counts);
    return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for %zu token pairs", pairs->used);
  }
  for (size_t i = 0; i < pairs->capacity; i++)
    if (pairs->keys[i]) {
      const size_t place = find_place(&larger, pairs->keys[i]);
      larger.keys[place] = pairs->keys[i];
      larger.counts[place] = pairs->counts[i];
    }
  free(pairs->keys);
  free(pairs->counts);
  *pairs = larger;
  return SPT_OK;
}

static uint64_t key_of(int32_t a, int32_t b) {
  return ((uint64_t)(uint32_t)a << 32 | (uint32_t)b) + 1;
}

static spt_status count_pair(pair_counts *pairs, int32_t a, int32_t b) {
  if (2 * pairs->used >= pairs->capacity) SPT_TRY(grow(pairs));
  const size_t place = find_place(pairs, key_of(a, b));
  pairs->used += !pairs->keys[place];
  pairs->keys[place] = key_of(a, b);
  pairs->counts[place]++;
  return SPT_OK;
}

typedef struct bigram {
  pair_counts pairs;
  uint64_t *singles; /* of the pairs' first tokens */
  int64_t vocab;
  double nats; /* of the scored text */
} bigram;

typedef spt_status (*visit_pair)(bigram *model, int32_t a, int32_t b);

static spt_status train_pair(bigram *model, int32_t a, int32_t b) {
  model->singles[a]++;
  return count_pair(&model->pairs, a, b);
}

static spt_status score_pair(bigram *model, int32_t a, int32_t b) {
  const uint64_t count = model->pairs.capacity ? model->pairs.counts[find_place(&model->pairs, key_of(a, b))] : 0;
  model->nats -= log(((double)count + 1.0) / ((double)model->singles[a] + (double)model->vocab));
  return SPT_OK;
}

static spt_status for_each_pair(spt_token_stream *stream, bigram *model, visit_pair visit) {
  const int64_t tokens = spt_token_stream_tokens(stream);
  int32_t *ids = malloc(READ_TOKENS * sizeof *ids);
  spt_status status = ids ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
  for (int64_t begin = 0; begin + 1 < tokens && status == SPT_OK; begin += READ_TOKENS - 1) {
    const int64_t count = tokens - begin < READ_TOKENS ? tokens - begin : READ_TOKENS;
    status = spt_token_stream_read(stream, begin, count, ids);
    for (int64_t i = 1; i < count && status == SPT_OK; i++) status = visit(model, ids[i - 1], ids[i]);
  }
  free(ids);
  return status;
}

static spt_status compare_vocabularies(const spt_token_stream *train, const spt_token_stream *validation) {
  const spt_token_file *first = spt_token_stream_file(train, 0), *other = spt_token_stream_file(validation, 0);
  const int64_t vocab = spt_token_file_info_of(first)->vocab_size, found = spt_token_file_info_of(other)->vocab_size;
  if (vocab != found)
    return SPT_FAIL(SPT_ERR_DATA, "%s: vocabulary of %lld tokens, %s has %lld", spt_token_file_path(other),
                    (long long)found, spt_token_file_path(first), (long long)vocab);
  if (spt_token_stream_tokens(validation) < 2)
    return SPT_FAIL(SPT_ERR_DATA, "%s: fewer than 2 tokens", spt_token_file_path(other));
  return SPT_OK;
}

static spt_status run(spt_token_stream *train, spt_token_stream *validation) {
  SPT_TRY(compare_vocabularies(train, validation));
  bigram model = {.vocab = spt_token_file_info_of(spt_token_stream_file(train, 0))->vocab_size};
  model.singles = calloc((size_t)model.vocab, sizeof *model.singles);
  spt_status status =
      model.singles ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for %lld counts", (long long)model.vocab);
  if (status == SPT_OK) status = for_each_pair(train, &model, train_pair);
  if (status == SPT_OK) status = for_each_pair(validation, &model, score_pair);
  if (status == SPT_OK) {
    const int64_t tokens = spt_token_stream_tokens(validation), bytes = spt_token_stream_text_bytes(validation);
    const double loss = model.nats / (double)(tokens - 1);
    printf("train_tokens %lld\ntrain_pairs %zu\nvalidation_tokens %lld\n", (long long)spt_token_stream_tokens(train),
           model.pairs.used, (long long)tokens);
    printf("loss %.6f\nperplexity %.4f\n", loss, exp(loss));
    if (bytes)
      printf("validation_bytes %lld\nbits_per_byte %.6f\n", (long long)bytes,
             loss * (double)tokens / (double)bytes / log(2.0));
  }
  free(model.pairs.keys);
  free(model.pairs.counts);
  free(model.singles);
  return status;
}

spt_status spt_tool_baseline(int argc, char **argv) {
  static const struct option table[] = {
      {"train", 1, NULL, 0}, {"validation", 1, NULL, 1}, {"help", 0, NULL, 'h'}, {NULL, 0, NULL, 0}};
  const char *patterns[2][PATTERNS_MAX];
  int counts[2] = {0, 0};
  opterr = 0;
  for (int choice; (choice = getopt_long(argc, argv, ":", table, NULL)) != -1;) {
    if (choice == 'h') {
      fputs(help, stdout);
      return SPT_OK;
    }
    if (choice > 1) return spt_tool_bad_option("baseline", choice, argv[optind - 1]);
    if (counts[choice] == PATTERNS_MAX)
      return SPT_FAIL(SPT_ERR_USAGE, "baseline: more than %d --%s", PATTERNS_MAX, table[choice].name);
    patterns[choice][counts[choice]++] = optarg;
  }
  if (!counts[0] || !counts[1] || optind != argc)
    return SPT_FAIL(
        SPT_ERR_USAGE,
        "baseline: wants --train GLOB and --validation GLOB, globs in quotes (see spectron baseline --help)");
  spt_token_stream *train = NULL, *validation = NULL;
  spt_status status = spt_token_stream_open(patterns[0], counts[0], 0, &train);
  if (status == SPT_OK) status = spt_token_stream_open(patterns[1], counts[1], 0, &validation);
  if (status == SPT_OK) status = spt_token_stream_same_tokenizer(train, validation);
  if (status == SPT_OK) status = run(train, validation);
  spt_token_stream_close(&train);
  spt_token_stream_close(&validation);
  return status;
}
