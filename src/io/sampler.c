#include "sampler.h"

#include "core/rng.h"

#include <assert.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

struct spt_token_stream {
  spt_token_file **files;
  int64_t *first; /* files + 1 entries: first token of each shard in the stream */
  int file_count;
  int64_t text_bytes, tokens_read;
  char fingerprint[33];
};

static int by_bytes(const void *left, const void *right) {
  return strcmp(*(char *const *)left, *(char *const *)right);
}

/* All files that match, pattern by pattern (each must match), sorted bytewise over all patterns. */
static spt_status expand(const char *const *patterns, int pattern_count, glob_t *found) {
  for (int i = 0; i < pattern_count; i++) {
    const int error = glob(patterns[i], GLOB_NOSORT | (i ? GLOB_APPEND : 0), NULL, found);
    if (error == GLOB_NOSPACE) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", patterns[i]);
    if (error)
      return SPT_FAIL(SPT_ERR_DATA, "%s: no such token shard (make one with 'spectron tokenize')", patterns[i]);
  }
  if (found->gl_pathc == 0) return SPT_FAIL(SPT_ERR_DATA, "no token shards are named");
  qsort(found->gl_pathv, found->gl_pathc, sizeof *found->gl_pathv, by_bytes);
  return SPT_OK;
}

static spt_status check_match(const spt_token_file *file, const spt_token_file *first, int64_t model_vocab) {
  const spt_token_file_info *mine = spt_token_file_info_of(file), *other = spt_token_file_info_of(first);
  const char *path = spt_token_file_path(file);
  if (mine->vocab_size != other->vocab_size || strcmp(mine->tokenizer_sha256, other->tokenizer_sha256))
    return SPT_FAIL(SPT_ERR_DATA, "%s: tokenizer '%s' (vocabulary %lld) differs from that of %s: '%s' (%lld)", path,
                    mine->tokenizer, (long long)mine->vocab_size, spt_token_file_path(first), other->tokenizer,
                    (long long)other->vocab_size);
  if (model_vocab > 0 && mine->vocab_size > model_vocab)
    return SPT_FAIL(SPT_ERR_DATA, "%s: vocabulary of %lld tokens, the model has %lld: set [model] vocab = %lld", path,
                    (long long)mine->vocab_size, (long long)model_vocab, (long long)mine->vocab_size);
  return SPT_OK;
}

/* What the fingerprint knows of one shard: block checksums, or, without them, its first and last tokens. */
static spt_status digest_file(spt_token_file *file, XXH3_state_t *state) {
  const spt_token_file_info *info = spt_token_file_info_of(file);
  int64_t numbers[3] = {info->tokens, info->vocab_size, info->token_bytes}, blocks;
  const uint64_t *checksums = spt_token_file_checksums(file, &blocks);
  XXH3_128bits_update(state, numbers, sizeof numbers);
  XXH3_128bits_update(state, info->tokenizer_sha256, sizeof info->tokenizer_sha256);
  if (checksums) {
    XXH3_128bits_update(state, checksums, (size_t)blocks * sizeof *checksums);
    return SPT_OK;
  }
  int32_t ids[1024];
  const int64_t count = info->tokens < 1024 ? info->tokens : 1024, begins[2] = {0, info->tokens - count};
  for (int end = 0; end < 2; end++) {
    SPT_TRY(spt_token_file_read(file, begins[end], count, ids));
    XXH3_128bits_update(state, ids, (size_t)count * sizeof *ids);
  }
  return SPT_OK;
}

static spt_status fill_fingerprint(spt_token_stream *stream) {
  XXH3_state_t *state = XXH3_createState();
  if (!state || XXH3_128bits_reset(state) != XXH_OK) {
    XXH3_freeState(state);
    return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
  }
  spt_status status = SPT_OK;
  for (int i = 0; i < stream->file_count && status == SPT_OK; i++) status = digest_file(stream->files[i], state);
  const XXH128_hash_t hash = XXH3_128bits_digest(state);
  XXH3_freeState(state);
  snprintf(stream->fingerprint, sizeof stream->fingerprint, "%016llx%016llx", (unsigned long long)hash.high64,
           (unsigned long long)hash.low64);
  return status;
}

static spt_status open_files(spt_token_stream *stream, const glob_t *found, int64_t model_vocab) {
  stream->files = calloc(found->gl_pathc, sizeof(spt_token_file *));
  stream->first = calloc(found->gl_pathc + 1, sizeof *stream->first);
  if (!stream->files || !stream->first) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
  bool text_known = true;
  for (size_t i = 0; i < found->gl_pathc; i++) {
    if (i && !strcmp(found->gl_pathv[i], found->gl_pathv[i - 1])) continue; /* two patterns may name one file */
    spt_token_file **file = &stream->files[stream->file_count];
    SPT_TRY(spt_token_file_open(found->gl_pathv[i], file));
    const spt_token_file_info *info = spt_token_file_info_of(*file);
    stream->file_count++;
    SPT_TRY(check_match(*file, stream->files[0], model_vocab));
    if (info->tokens > INT64_MAX / 16 - stream->first[stream->file_count - 1])
      return SPT_FAIL(SPT_ERR_DATA, "%s: too many tokens in all", spt_token_file_path(*file));
    stream->first[stream->file_count] = stream->first[stream->file_count - 1] + info->tokens;
    text_known = text_known && info->text_bytes > 0;
    stream->text_bytes += info->text_bytes;
  }
  if (!text_known) stream->text_bytes = 0;
  return fill_fingerprint(stream);
}

spt_status spt_token_stream_open(const char *const *patterns, int pattern_count, int64_t model_vocab,
                                 spt_token_stream **stream_p) {
  spt_token_stream *stream = calloc(1, sizeof *stream);
  if (!stream) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
  glob_t found = {0};
  spt_status status = expand(patterns, pattern_count, &found);
  if (status == SPT_OK) status = open_files(stream, &found, model_vocab);
  globfree(&found);
  if (status != SPT_OK) spt_token_stream_close(&stream);
  if (status == SPT_OK) *stream_p = stream;
  return status;
}

void spt_token_stream_close(spt_token_stream **stream_p) {
  spt_token_stream *stream = *stream_p;
  if (!stream) return;
  for (int i = 0; i < stream->file_count; i++) spt_token_file_close(&stream->files[i]);
  free(stream->files);
  free(stream->first);
  free(stream);
  *stream_p = NULL;
}

int64_t spt_token_stream_tokens(const spt_token_stream *stream) {
  return stream->first[stream->file_count];
}

int64_t spt_token_stream_text_bytes(const spt_token_stream *stream) {
  return stream->text_bytes;
}

int spt_token_stream_files(const spt_token_stream *stream) {
  return stream->file_count;
}

const spt_token_file *spt_token_stream_file(const spt_token_stream *stream, int index) {
  return stream->files[index];
}

spt_status spt_token_stream_same_tokenizer(const spt_token_stream *one, const spt_token_stream *other) {
  const spt_token_file *a = spt_token_stream_file(one, 0), *b = spt_token_stream_file(other, 0);
  const spt_token_file_info *x = spt_token_file_info_of(a), *y = spt_token_file_info_of(b);
  if (x->vocab_size == y->vocab_size && strcmp(x->tokenizer_sha256, y->tokenizer_sha256) == 0) return SPT_OK;
  return SPT_FAIL(
      SPT_ERR_DATA,
      "%s: made with tokenizer '%s' (vocabulary %lld, SHA-256 %.12s…), %s with '%s' (%lld, %.12s…): make both with one",
      spt_token_file_path(b), y->tokenizer, (long long)y->vocab_size, y->tokenizer_sha256, spt_token_file_path(a),
      x->tokenizer, (long long)x->vocab_size, x->tokenizer_sha256);
}

int64_t spt_token_stream_windows(const spt_token_stream *stream, int64_t seq_len) {
  return seq_len < 1 ? 0 : (spt_token_stream_tokens(stream) - 1) / seq_len;
}

static int shard_of(const spt_token_stream *stream, int64_t position) {
  int low = 0, high = stream->file_count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (stream->first[middle] <= position)
      low = middle;
    else
      high = middle;
  }
  return low;
}

const spt_token_file *spt_token_stream_locate(const spt_token_stream *stream, int64_t position, int64_t *offset_p) {
  assert(position >= 0 && position < spt_token_stream_tokens(stream));
  const int shard = shard_of(stream, position);
  *offset_p = position - stream->first[shard];
  return stream->files[shard];
}

spt_status spt_token_stream_read(spt_token_stream *stream, int64_t begin, int64_t count, int32_t *ids) {
  if (begin < 0 || count < 0 || begin > spt_token_stream_tokens(stream) - count)
    return SPT_FAIL(SPT_ERR_DATA, "tokens %lld..%lld wanted of %lld in all shards", (long long)begin,
                    (long long)(begin + count), (long long)spt_token_stream_tokens(stream));
  int shard = shard_of(stream, begin);
  for (int64_t done = 0; done < count; shard++) {
    const int64_t left = stream->first[shard + 1] - (begin + done), some = left < count - done ? left : count - done;
    SPT_TRY(spt_token_file_read(stream->files[shard], begin + done - stream->first[shard], some, ids + done));
    done += some;
  }
  stream->tokens_read += count;
  return SPT_OK;
}

int64_t spt_token_stream_tokens_read(const spt_token_stream *stream) {
  return stream->tokens_read;
}

void spt_token_stream_fingerprint(const spt_token_stream *stream, char fingerprint[33]) {
  memcpy(fingerprint, stream->fingerprint, sizeof stream->fingerprint);
}

/* Feistel network of 8 rounds on 2·half bits, the smallest even width that holds `count`; a value outside of [0, count)
 * is permuted again until it falls inside (cycle walking: fewer than 4 rounds on average, as 4^half < 4·count). The
 * format of runs depends on these numbers. */
int64_t spt_permute(uint64_t seed, uint64_t epoch, int64_t count, int64_t index) {
  assert(index >= 0 && index < count);
  int half = 1;
  while (half < 31 && (1ull << 2 * half) < (uint64_t)count) half++;
  const uint64_t mask = (1ull << half) - 1, stream = spt_stream_of("data order") ^ epoch;
  uint64_t value = (uint64_t)index;
  do {
    uint64_t left = value >> half, right = value & mask;
    for (uint64_t round = 0; round < 8; round++) {
      const uint64_t next = left ^ (spt_random_bits(seed, stream, round << 32 | right) & mask);
      left = right;
      right = next;
    }
    value = left << half | right;
  } while (value >= (uint64_t)count);
  return (int64_t)value;
}

int64_t spt_sample_window(uint64_t seed, int64_t windows, int64_t sequences, int64_t step, int64_t index) {
  const int64_t sample = step * sequences + index;
  return spt_permute(seed, (uint64_t)(sample / windows), windows, sample % windows);
}
