/* A fresh folder below $TMPDIR for a test's files, removed with all it holds. */
#ifndef SPT_TEMP_FOLDER_H
#define SPT_TEMP_FOLDER_H

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>

static char temp_folder[512];

static int temp_remove_entry(const char *path, const struct stat *info, int kind, struct FTW *where) {
  (void)info, (void)kind, (void)where;
  return remove(path);
}

static inline int temp_folder_make(void **state) {
  (void)state;
  const char *base = getenv("TMPDIR");
  snprintf(temp_folder, sizeof temp_folder, "%s/spectron-test-XXXXXX", base && *base ? base : "/tmp");
  return mkdtemp(temp_folder) ? 0 : -1;
}

static inline int temp_folder_remove(void **state) {
  (void)state;
  return nftw(temp_folder, temp_remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* temp_folder/name, in one of four buffers used in turn. */
static inline const char *temp_path(const char *name) {
  static char paths[4][1024];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", temp_folder, name);
  return path;
}

#endif
