/* foreign_files shard|checkpoint NAME FILE: writes the file of that name (foreign_shards.c, foreign_checkpoints.c), for
 * tests in shell. */
#include "foreign_checkpoints.h"
#include "foreign_shards.h"

#include <stdio.h>
#include <string.h>

static const char *write_number(const char *kind, const char *path, int index) {
  if (strcmp(kind, "shard") == 0) {
    const foreign_shard *about = foreign_shard_write(path, index);
    return about ? about->name : NULL;
  }
  const foreign_checkpoint *about = foreign_checkpoint_write(path, index);
  return about ? about->name : NULL;
}

int main(int argc, char **argv) {
  const char *name;
  if (argc != 4) return fprintf(stderr, "usage: foreign_files shard|checkpoint NAME FILE\n"), 2;
  for (int index = 0; (name = write_number(argv[1], argv[3], index)); index++)
    if (strcmp(name, argv[2]) == 0) return 0;
  return fprintf(stderr, "foreign_files: no %s is called '%s'\n", argv[1], argv[2]), 2;
}
