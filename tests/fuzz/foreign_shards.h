/* Token shards made elsewhere, by the plain HDF5 library: those that are welcome, and every trick that is not. */
#ifndef SPT_FOREIGN_SHARDS_H
#define SPT_FOREIGN_SHARDS_H

#include <stdbool.h>

enum { FOREIGN_TOKENS = 600, FOREIGN_VOCAB = 300 };

typedef struct foreign_shard {
  const char *name;
  bool welcome;
  const char *complaint; /* in the message of one that is not */
} foreign_shard;

/* Writes number `index` to `path`; its companions (targets of links and the like) beside it as `path`.other. Token i is
 * 7·i mod FOREIGN_VOCAB. NULL behind the last. */
const foreign_shard *foreign_shard_write(const char *path, int index);

#endif
