#include "post_mortem.h"

#include "checkpoint.h"
#include "durable_file.h"
#include "step_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void folder_of(const char *output, char path[SPT_PATH_MAX]) {
  snprintf(path, SPT_PATH_MAX, "%s/post-mortem", output);
}

void spt_post_mortem_path(const char *output, int64_t step, char path[SPT_PATH_MAX]) {
  char folder[SPT_PATH_MAX];
  folder_of(output, folder);
  spt_step_file_path(folder, step, ".json", path);
}

/* A file of ours by its first bytes. */
static bool is_our_text(const char *path) {
  static const char begin[] = "{\"format\":\"" SPT_POST_MORTEM_FORMAT "\"";
  char text[sizeof begin - 1];
  const int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) return false;
  const bool ours = pread(fd, text, sizeof text, 0) == (ssize_t)sizeof text && memcmp(text, begin, sizeof text) == 0;
  close(fd);
  return ours;
}

static bool is_our_checkpoint(const char *path) {
  struct stat info;
  bool ours = false;
  return lstat(path, &info) == 0 && S_ISREG(info.st_mode) && spt_checkpoint_recognise(path, &ours) == SPT_OK && ours;
}

static spt_status make_folder(const char *output, char path[SPT_PATH_MAX]) {
  struct stat info;
  folder_of(output, path);
  if (mkdir(path, 0777) != 0 && errno != EEXIST)
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: cannot be created: %s", path, strerror(errno));
  if (lstat(path, &info) == 0 && S_ISDIR(info.st_mode)) return SPT_OK;
  return SPT_FAIL(SPT_ERR_USAGE, "%s: is no folder, or a link: nothing is written there; move it away", path);
}

/* The name is free, or its bearer is ours. */
static spt_status check_name(const char *path, bool (*is_ours)(const char *path)) {
  struct stat info;
  if (lstat(path, &info) != 0 || is_ours(path)) return SPT_OK;
  return SPT_FAIL(SPT_ERR_USAGE, "%s: was not written by this program and is left alone; move it away", path);
}

/* Removes files of ours between the `first` first and the `newest` newest. */
static spt_status thin_out(const char *folder, const char *suffix, bool (*is_ours)(const char *path), size_t first, size_t newest) {
  int64_t *steps;
  size_t count;
  SPT_TRY(spt_step_files_list(folder, suffix, &steps, &count));
  spt_status status = SPT_OK;
  for (size_t i = first; status == SPT_OK && i + newest < count; i++) {
    char path[SPT_PATH_MAX];
    spt_step_file_path(folder, steps[i], suffix, path);
    if (is_ours(path) && unlink(path) != 0 && errno != ENOENT)
      status = SPT_FAIL(SPT_ERR_RESOURCE, "%s: removing it failed: %s", path, strerror(errno));
  }
  free(steps);
  return status;
}

spt_status spt_post_mortem_write(const char *output, int64_t step, const char *text) {
  char folder[SPT_PATH_MAX], path[SPT_PATH_MAX];
  SPT_TRY(make_folder(output, folder));
  spt_step_file_path(folder, step, ".json", path);
  SPT_TRY(check_name(path, is_our_text));
  SPT_TRY(spt_file_replace(path, text, strlen(text)));
  return thin_out(folder, ".json", is_our_text, SPT_POST_MORTEMS_KEPT, SPT_POST_MORTEMS_KEPT);
}

spt_status spt_post_mortem_set_aside(const char *output, int64_t step) {
  static const char *const suffixes[] = {".json", ".h5"};
  char folder[SPT_PATH_MAX], path[SPT_PATH_MAX], kept[SPT_PATH_MAX];
  struct stat info;
  folder_of(output, folder);
  if (lstat(folder, &info) != 0 || !S_ISDIR(info.st_mode)) return SPT_OK;
  for (size_t s = 0; s < sizeof suffixes / sizeof *suffixes; s++) {
    int64_t *steps;
    size_t count;
    SPT_TRY(spt_step_files_list(folder, suffixes[s], &steps, &count));
    spt_status status = SPT_OK;
    for (size_t i = 0; status == SPT_OK && i < count; i++) {
      spt_step_file_path(folder, steps[i], suffixes[s], path);
      if (steps[i] <= step || !(s == 0 ? is_our_text(path) : is_our_checkpoint(path)) || spt_file_set_aside(path, kept, sizeof kept)) continue;
      status = SPT_FAIL(SPT_ERR_RESOURCE, "%s, of steps that are made anew, cannot be moved aside; a replay may take it for theirs", path);
    }
    free(steps);
    SPT_TRY(status);
  }
  return SPT_OK;
}

static bool same_file(const char *one, const char *other) {
  struct stat a, b;
  return lstat(one, &a) == 0 && lstat(other, &b) == 0 && a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

spt_status spt_post_mortem_keep_checkpoint(const char *output, int64_t step) {
  char folder[SPT_PATH_MAX], checkpoints[SPT_PATH_MAX], from[SPT_PATH_MAX], to[SPT_PATH_MAX], part[SPT_PATH_MAX];
  SPT_TRY(make_folder(output, folder));
  snprintf(checkpoints, sizeof checkpoints, "%s/checkpoints", output);
  spt_step_file_path(checkpoints, step, ".h5", from);
  spt_step_file_path(folder, step, ".h5", to);
  spt_step_file_path(folder, step, ".h5.part", part);
  if (same_file(from, to)) return SPT_OK;
  if (!is_our_checkpoint(from)) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: is not there", from);
  SPT_TRY(check_name(to, is_our_checkpoint)); // another time line's makes way
  if (is_our_checkpoint(part)) unlink(part);  // of a killed run
  if (link(from, part) != 0) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: cannot be linked: %s", part, strerror(errno));
  if (rename(part, to) != 0) {
    const int error = errno;
    unlink(part);
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: renaming failed: %s", to, strerror(error));
  }
  SPT_TRY(spt_file_sync_folder(to));
  return thin_out(folder, ".h5", is_our_checkpoint, 1, 1);
}
