/* What a reader process finds out about a token shard (token_layout.c) and token_file.c then reads by: plain numbers.
 */
#ifndef SPT_TOKEN_LAYOUT_H
#define SPT_TOKEN_LAYOUT_H

#include "token_file.h"

enum { SPT_SHARD_TOKENS, SPT_SHARD_CHECKSUMS, SPT_SHARD_STARTS, SPT_SHARD_SETS };

/* A 1-D dataset of unsigned integers in this file, `width` bytes each. */
typedef struct spt_shard_set {
  int64_t count;  /* −1: not there */
  int64_t offset; /* in the file; −1: to be asked for, not to be read by pread */
  int32_t width;
} spt_shard_set;

typedef struct spt_shard_layout {
  spt_token_file_info info; /* of the attributes; counts and warning are token_file.c's */
  spt_shard_set sets[SPT_SHARD_SETS];
  int64_t block_bytes; /* of the checksums */
  int32_t user_block, fletcher32;
} spt_shard_layout;

#endif
