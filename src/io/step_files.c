#include "step_files.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool spt_step_file_parse(const char *name, const char *suffix, int64_t *step_p) {
  char again[64];
  long long step;
  if (sscanf(name, "step-%lld", &step) != 1 || step < 0) return false;
  snprintf(again, sizeof again, "step-%08lld%s", step, suffix);
  *step_p = step;
  return strcmp(again, name) == 0;
}

void spt_step_file_path(const char *folder, int64_t step, const char *suffix, char path[SPT_PATH_MAX]) {
  snprintf(path, SPT_PATH_MAX, "%s/step-%08lld%s", folder, (long long)step, suffix);
}

static int ascending(const void *left, const void *right) {
  const int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
  return (a > b) - (a < b);
}

spt_status spt_step_files_list(const char *folder, const char *suffix, int64_t **steps_p, size_t *count_p) {
  size_t count = 0, capacity = 0;
  int64_t *steps = NULL;
  spt_status status = SPT_OK;
  DIR *entries = opendir(folder);
  if (!entries && errno != ENOENT)
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: cannot be read: %s", folder, strerror(errno));
  for (struct dirent *entry; status == SPT_OK && entries && (entry = readdir(entries));) {
    int64_t step;
    if (!spt_step_file_parse(entry->d_name, suffix, &step)) continue;
    if (count == capacity) {
      capacity = capacity ? 2 * capacity : 16;
      int64_t *more = realloc(steps, capacity * sizeof *steps);
      if (!more) {
        status = SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for its listing", folder);
        break;
      }
      steps = more;
    }
    steps[count++] = step;
  }
  if (entries) closedir(entries);
  if (status != SPT_OK) {
    free(steps);
    return status;
  }
  if (count > 1) qsort(steps, count, sizeof *steps, ascending);
  *steps_p = steps;
  *count_p = count;
  return SPT_OK;
}
