/* Checkpoints with our seal that our program did not write: a whole one, and every trick that a sealed file can play.
 */
#ifndef SPT_FOREIGN_CHECKPOINTS_H
#define SPT_FOREIGN_CHECKPOINTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct foreign_checkpoint {
  const char *name;
  bool welcome;
} foreign_checkpoint;

/* Writes number `index` to `path`, sealed; a companion file may lie beside it. NULL behind the last. */
const foreign_checkpoint *foreign_checkpoint_write(const char *path, int index);
/* A new seal for a file whose user block still tells where its table of tensors is; nothing where it does not. */
void foreign_checkpoint_seal(uint8_t *data, size_t size);

#endif
