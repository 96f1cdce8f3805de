/* Text to tokens and back: SentencePiece models (where built in) or the built-in byte tokenizer. */
#ifndef SPT_TOKENIZER_H
#define SPT_TOKENIZER_H

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct spt_tokenizer spt_tokenizer;

/* `model`: path of a SentencePiece model, or "byte" (256 byte values, then eos = 256; vocabulary 257). SPT_ERR_DATA for
 * a damaged model, SPT_ERR_USAGE when SentencePiece is needed and not built in. */
spt_status spt_tokenizer_open(const char *model, spt_tokenizer **tokenizer_p);
void spt_tokenizer_close(spt_tokenizer **tokenizer_p);
/* Trains a BPE model with byte fallback on `input` text files, writes `prefix`.model. */
spt_status spt_tokenizer_train(const char *const *inputs, int input_count, int64_t vocab_size, const char *prefix);
int64_t spt_tokenizer_vocab_size(const spt_tokenizer *tokenizer);
int64_t spt_tokenizer_eos(const spt_tokenizer *tokenizer);
const char *spt_tokenizer_name(const spt_tokenizer *tokenizer);
/* 64 hex digits: SHA-256 of the model file; of the text "byte" for the byte tokenizer. */
const char *spt_tokenizer_sha256(const spt_tokenizer *tokenizer);
/* Tokens of one document, eos appended. *ids_p is grown with realloc (capacity in *capacity_p), *count_p tokens are
 * written from 0. */
spt_status spt_tokenizer_encode(const spt_tokenizer *tokenizer, const char *text, size_t bytes, uint32_t **ids_p,
                                size_t *capacity_p, size_t *count_p);
/* Text of `count` ids, malloc'ed and NUL-terminated; eos becomes a newline. */
spt_status spt_tokenizer_decode(const spt_tokenizer *tokenizer, const uint32_t *ids, size_t count, char **text_p);

#ifdef __cplusplus
}
#endif
#endif
