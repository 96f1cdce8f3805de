/* The order of the data, a pure function of (seed, step, index in the global batch), independent of ranks (design
 * "Files"): window i is tokens [i·T, i·T + T] inclusive; sample s = step·sequences + index; epoch = s div windows; each
 * epoch is shuffled by a seeded permutation that needs no table (cycle-walking Feistel network over Philox). */
#ifndef SPT_SAMPLER_H
#define SPT_SAMPLER_H

#include "token_file.h"

/* The concatenation of all shards that a list of globs matches, sorted bytewise. */
typedef struct spt_token_stream spt_token_stream;

/* SPT_ERR_DATA when no file matches a pattern, when shards disagree on vocabulary or tokenizer, or vocab_size >
 * model_vocab (say how to mend it: [model] vocab = …). */
spt_status spt_token_stream_open(const char *const *patterns, int pattern_count, int64_t model_vocab,
                                 spt_token_stream **stream_p);
void spt_token_stream_close(spt_token_stream **stream_p);
int64_t spt_token_stream_tokens(const spt_token_stream *stream);
int64_t spt_token_stream_text_bytes(const spt_token_stream *stream); /* 0 when any shard does not say */
int spt_token_stream_files(const spt_token_stream *stream);
const spt_token_file *spt_token_stream_file(const spt_token_stream *stream, int index);
/* SPT_ERR_DATA names a file of each stream when their tokens come from different tokenizers: losses would mean nothing. */
spt_status spt_token_stream_same_tokenizer(const spt_token_stream *one, const spt_token_stream *other);
/* Windows of seq_len + 1 tokens, (tokens − 1) div seq_len. */
int64_t spt_token_stream_windows(const spt_token_stream *stream, int64_t seq_len);
/* Tokens [begin, begin + count) across shards. */
spt_status spt_token_stream_read(spt_token_stream *stream, int64_t begin, int64_t count, int32_t *ids);
/* The shard that holds token `position` of [0, tokens), and its place there. */
const spt_token_file *spt_token_stream_locate(const spt_token_stream *stream, int64_t position, int64_t *offset_p);
/* Tokens read so far through this handle. */
int64_t spt_token_stream_tokens_read(const spt_token_stream *stream);
/* 32 hex digits + NUL: XXH3-128 over the shards' sizes, vocabularies, tokenizers and block checksums (their content,
 * not their paths). */
void spt_token_stream_fingerprint(const spt_token_stream *stream, char fingerprint[33]);

/* A permutation of [0, count) keyed by (seed, epoch). */
int64_t spt_permute(uint64_t seed, uint64_t epoch, int64_t count, int64_t index);
/* Window of sample `index` of the global batch of `step`. */
int64_t spt_sample_window(uint64_t seed, int64_t windows, int64_t sequences, int64_t step, int64_t index);

#endif
