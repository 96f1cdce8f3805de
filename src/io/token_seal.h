/* The seal of our own token shards: a 4096-byte HDF5 user block with a digest of everything but the tokens (which have
 * block checksums), checked before the HDF5 library sees the file, because a few wrong metadata bytes can crash it or
 * be read in silence. Files made elsewhere have no user block and no seal. */
#ifndef SPT_TOKEN_SEAL_H
#define SPT_TOKEN_SEAL_H

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

enum { SPT_TOKEN_SEAL_BYTES = 4096, SPT_TOKEN_BLOCK_BYTES = 65536 };

/* Writes the seal of a file of `length` bytes whose tokens lie at [begin, begin + bytes). */
spt_status spt_token_seal_write(int descriptor, const char *path, int64_t length, int64_t begin, int64_t bytes);
/* *sealed_p: whether the file has a seal; a seal that does not fit the file is SPT_ERR_DATA. The tokens' place is put
 * out. */
spt_status spt_token_seal_check(int descriptor, const char *path, int64_t length, bool *sealed_p, int64_t *begin_p,
                                int64_t *bytes_p);

#endif
