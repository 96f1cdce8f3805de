#include "durable_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, COPY_BYTES = 1 << 20 };

static spt_status write_failed(const char *path, const char *what, uint64_t bytes, int error) {
  if (error == ENOSPC || error == EDQUOT)
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: no space left on the disk for %llu bytes; free some or use another folder",
                    path, (unsigned long long)bytes);
  return SPT_FAIL(SPT_ERR_RESOURCE, "%s: %s failed: %s", path, what, strerror(error));
}

spt_status spt_file_write_at(int fd, const char *path, const void *bytes, size_t count, uint64_t offset) {
  const unsigned char *at = bytes;
  for (size_t left = count; left > 0;) {
    const ssize_t n = pwrite(fd, at, left, (off_t)offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return write_failed(path, "writing", count, n < 0 ? errno : EIO);
    at += n;
    offset += (uint64_t)n;
    left -= (size_t)n;
  }
  return SPT_OK;
}

spt_status spt_file_read_at(int fd, const char *path, void *bytes, size_t count, uint64_t offset) {
  unsigned char *at = bytes;
  for (size_t left = count; left > 0;) {
    const ssize_t n = pread(fd, at, left, (off_t)offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return SPT_FAIL(SPT_ERR_DATA, "%s: reading failed: %s", path, strerror(errno));
    if (n == 0) return SPT_FAIL(SPT_ERR_DATA, "%s: ends early, at byte %llu", path, (unsigned long long)offset);
    at += n;
    offset += (uint64_t)n;
    left -= (size_t)n;
  }
  return SPT_OK;
}

spt_status spt_file_create(const char *path, int *fd_p) {
  if (unlink(path) != 0 && errno != ENOENT) return write_failed(path, "replacing", 0, errno);
  *fd_p = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
  return *fd_p >= 0 ? SPT_OK : write_failed(path, "creating", 0, errno);
}

spt_status spt_file_reopen(const char *path, int *fd_p) {
  *fd_p = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
  return *fd_p >= 0 ? SPT_OK : write_failed(path, "opening", 0, errno);
}

spt_status spt_file_reserve(int fd, const char *path, uint64_t bytes, bool *reserved_p) {
  int error = 0;
#ifdef __linux__ // glibc's posix_fallocate would write a byte into every block where the file system has no such call
  while (fallocate(fd, 0, 0, (off_t)bytes) != 0) {
    error = errno;
    if (error != EINTR) break;
    error = 0;
  }
#else
  error = posix_fallocate(fd, 0, (off_t)bytes);
#endif
  const bool unsupported = error == EOPNOTSUPP || error == EINVAL || error == ENOSYS;
  if (reserved_p) *reserved_p = !unsupported;
  if (unsupported) error = ftruncate(fd, (off_t)bytes) == 0 ? 0 : errno;
  return error == 0 ? SPT_OK : write_failed(path, "reserving space", bytes, error);
}

spt_status spt_file_claim(int fd, const char *path, uint64_t bytes, uint64_t first) {
  static const unsigned char zeros[65536];
  bool reserved;
  SPT_TRY(spt_file_reserve(fd, path, bytes, &reserved));
  if (reserved) return SPT_OK;
  for (uint64_t at = 0; at < first; at += sizeof zeros)
    SPT_TRY(spt_file_write_at(fd, path, zeros, first - at < sizeof zeros ? (size_t)(first - at) : sizeof zeros, at));
  return spt_file_sync(fd, path);
}

static int sync_error(int fd) {
  while (fsync(fd) != 0)
    if (errno != EINTR) return errno;
  return 0;
}

spt_status spt_file_sync(int fd, const char *path) {
  const int error = sync_error(fd);
  return error == 0 ? SPT_OK : write_failed(path, "fsync", 0, error);
}

spt_status spt_file_close(int *fd_p, const char *path) {
  const int fd = *fd_p;
  *fd_p = -1;
  if (fd < 0 || close(fd) == 0 || errno == EINTR) return SPT_OK; // EINTR: closed all the same
  return write_failed(path, "close", 0, errno);
}

spt_status spt_file_sync_folder(const char *path) {
  char folder[PATH_BYTES];
  if (strlen(path) >= sizeof folder) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: path too long", path);
  const char *slash = strrchr(path, '/');
  if (!slash)
    strcpy(folder, ".");
  else
    snprintf(folder, sizeof folder, "%.*s", slash == path ? 1 : (int)(slash - path), path);
  const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return write_failed(folder, "opening the folder", 0, errno);
  const int error = sync_error(fd);
  close(fd);
  // EINVAL: this file system has no fsync for folders
  return error == 0 || error == EINVAL ? SPT_OK : write_failed(folder, "fsync of the folder", 0, error);
}

spt_status spt_file_publish(int *fd_p, const char *part, const char *path) {
  spt_status status = spt_file_sync(*fd_p, part);
  if (status == SPT_OK) status = spt_file_close(fd_p, part);
  if (*fd_p >= 0) close(*fd_p);
  *fd_p = -1;
  if (status == SPT_OK && rename(part, path) != 0) status = write_failed(path, "renaming the finished file", 0, errno);
  if (status != SPT_OK) {
    unlink(part);
    return status;
  }
  return spt_file_sync_folder(path);
}

static spt_status open_part(const char *path, char part[PATH_BYTES], int *fd_p) {
  if (snprintf(part, PATH_BYTES, "%s.part", path) >= PATH_BYTES)
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: path too long", path);
  return spt_file_create(part, fd_p);
}

static spt_status publish_or_remove(spt_status status, int fd, const char *part, const char *path) {
  if (status == SPT_OK) return spt_file_publish(&fd, part, path);
  close(fd);
  unlink(part);
  return status;
}

spt_status spt_file_replace(const char *path, const void *bytes, size_t count) {
  char part[PATH_BYTES];
  int fd = -1;
  SPT_TRY(open_part(path, part, &fd));
  return publish_or_remove(spt_file_write_at(fd, part, bytes, count, 0), fd, part, path);
}

spt_status spt_file_copy(const char *from, const char *to) {
  char part[PATH_BYTES];
  struct stat info;
  int fd = -1;
  const int source = open(from, O_RDONLY | O_CLOEXEC);
  if (source < 0 || fstat(source, &info) != 0) {
    const int error = errno;
    if (source >= 0) close(source);
    return SPT_FAIL(SPT_ERR_DATA, "%s: opening failed: %s", from, strerror(error));
  }
  spt_status status = open_part(to, part, &fd);
  if (status == SPT_OK) {
    unsigned char *buffer = malloc(COPY_BYTES);
    status = buffer ? spt_file_reserve(fd, part, (uint64_t)info.st_size, NULL)
                    : SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for a copy", to);
    for (off_t at = 0; status == SPT_OK && at < info.st_size; at += COPY_BYTES) {
      const size_t count = (size_t)(info.st_size - at < COPY_BYTES ? info.st_size - at : COPY_BYTES);
      status = spt_file_read_at(source, from, buffer, count, (uint64_t)at);
      if (status == SPT_OK) status = spt_file_write_at(fd, part, buffer, count, (uint64_t)at);
    }
    free(buffer);
    status = publish_or_remove(status, fd, part, to);
  }
  close(source);
  return status;
}

bool spt_file_set_aside(const char *path, char *kept, size_t size) {
  struct stat info;
  for (int number = 1; number < 1000; number++) {
    if (snprintf(kept, size, "%s.kept-%d", path, number) >= (int)size) break;
    if (lstat(kept, &info) == 0) continue;
    if (rename(path, kept) == 0) return true;
    break;
  }
  kept[0] = '\0';
  return false;
}

spt_status spt_file_read_all(const char *path, char **bytes_p, size_t *count_p) {
  struct stat info;
  const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); // a pipe would be waited for
  if (fd < 0) return SPT_FAIL(SPT_ERR_DATA, "%s: opening failed: %s", path, strerror(errno));
  spt_status status = SPT_OK;
  char *bytes = NULL;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode))
    status = SPT_FAIL(SPT_ERR_DATA, "%s: not a regular file", path);
  else if (!(bytes = malloc((size_t)info.st_size + 1)))
    status = SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory (%lld bytes)", path, (long long)info.st_size);
  else
    status = spt_file_read_at(fd, path, bytes, (size_t)info.st_size, 0);
  close(fd);
  if (status != SPT_OK) {
    free(bytes);
    return status;
  }
  bytes[info.st_size] = '\0';
  *bytes_p = bytes;
  *count_p = (size_t)info.st_size;
  return SPT_OK;
}
