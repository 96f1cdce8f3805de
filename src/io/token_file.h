/* Token shards (HDF5), design "Files": written by `spectron tokenize`, read by pread at the dataset's offset. */
#ifndef SPT_TOKEN_FILE_H
#define SPT_TOKEN_FILE_H

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct spt_token_file_info {
  int64_t tokens, documents, vocab_size, eos_id;
  int64_t text_bytes; /* bytes of the source text, 0 = unknown (attribute "text_bytes") */
  int token_bytes;    /* 2 or 4 */
  bool contiguous;    /* read by pread; else a reader process is asked (hdf5_process.h) */
  bool checksummed;
  char tokenizer[128], tokenizer_sha256[65], source[256];
  char warning[256]; /* "" or why this file is slower or less safe than our own */
} spt_token_file_info;

typedef struct spt_token_file spt_token_file;

/* Opens for reading, checks format, version, links, types, extents and attributes before anything is allocated.
 * SPT_ERR_DATA names the file and what is wrong; HDF5 itself sees the file in a process of its own only
 * (hdf5_process.h), however long it stays open. Each thread needs its own handle. */
spt_status spt_token_file_open(const char *path, spt_token_file **file_p);
void spt_token_file_close(spt_token_file **file_p);
const spt_token_file_info *spt_token_file_info_of(const spt_token_file *file);
const char *spt_token_file_path(const spt_token_file *file);
/* Tokens [begin, begin + count) as int32. Each checksum block is verified when first touched (SPT_ERR_DATA names file
 * and block); an id ≥ vocab_size is SPT_ERR_DATA. */
spt_status spt_token_file_read(spt_token_file *file, int64_t begin, int64_t count, int32_t *ids);
/* Verifies every checksum and id. */
spt_status spt_token_file_verify(spt_token_file *file);
/* First tokens of the documents [begin, begin + count). */
spt_status spt_token_file_documents(spt_token_file *file, int64_t begin, int64_t count, uint64_t *starts);
/* The block checksums (owned by the file), NULL and 0 without. */
const uint64_t *spt_token_file_checksums(const spt_token_file *file, int64_t *count_p);

typedef struct spt_token_writer spt_token_writer;
typedef struct spt_token_writer_options {
  int64_t vocab_size, eos_id;
  const char *tokenizer, *tokenizer_sha256, *source;
} spt_token_writer_options;
/* Writes a temporary file beside `path`, renamed by finish: an unfinished writer leaves nothing under `path`. Refuses
 * an existing `path` (SPT_ERR_USAGE) unless `overwrite`. */
spt_status spt_token_writer_open(const char *path, const spt_token_writer_options *options, bool overwrite,
                                 spt_token_writer **writer_p);
/* Appends one document (its eos included); text_bytes is the length of its source text. */
spt_status spt_token_writer_append(spt_token_writer *writer, const uint32_t *ids, size_t count, size_t text_bytes);
int64_t spt_token_writer_tokens(const spt_token_writer *writer);
spt_status spt_token_writer_finish(spt_token_writer **writer_p);
/* Abandons: removes the temporary file. */
void spt_token_writer_close(spt_token_writer **writer_p);

#endif
