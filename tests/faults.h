/* System calls that can be told to fail: include in ONE source file of a test program, whose definitions then take the
 * place of libc's. */
#ifndef SPT_FAULTS_H
#define SPT_FAULTS_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static struct {
  int reserve_error; /* every fallocate fails so; 0 = real */
  long writes_left;  /* < 0: no fault; else this many writes succeed, then write_error */
  long closes_left; /* < 0: no fault; else this many closes of files open for writing succeed, then close_error */
  int write_error, fsync_error, link_error, rename_error, close_error;
  int lock_error; /* every flock fails so; 0 = real */
  long locks;     /* flocks called */
} faults = {.writes_left = -1, .closes_left = -1};

static void faults_reset(void) {
  memset(&faults, 0, sizeof faults);
  faults.writes_left = faults.closes_left = -1;
}

int fallocate(int fd, int mode, off_t offset, off_t length) {
  if (faults.reserve_error) {
    errno = faults.reserve_error;
    return -1;
  }
  return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

/* The write that fails still writes half of its bytes, as a disk that fills up does. */
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) {
  struct iovec vector = {(void *)(uintptr_t)bytes, count};
  if (faults.writes_left >= 0 && faults.writes_left-- <= 0) {
    faults.writes_left = 0;
    vector.iov_len = count / 2;
    if (pwritev(fd, &vector, 1, offset) >= 0) errno = faults.write_error;
    return -1;
  }
  return pwritev(fd, &vector, 1, offset);
}

int fsync(int fd) {
  if (faults.fsync_error) {
    errno = faults.fsync_error;
    return -1;
  }
  return (int)syscall(SYS_fsync, fd);
}

/* The descriptor is closed all the same, as Linux does. */
int close(int fd) {
  const bool writable = faults.closes_left >= 0 && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
  const int closed = (int)syscall(SYS_close, fd);
  if (!writable || faults.closes_left-- > 0) return closed;
  faults.closes_left = 0;
  errno = faults.close_error;
  return -1;
}

int flock(int fd, int operation) {
  faults.locks++;
  if (faults.lock_error) {
    errno = faults.lock_error;
    return -1;
  }
  return (int)syscall(SYS_flock, fd, operation);
}

int link(const char *from, const char *to) {
  if (faults.link_error) {
    errno = faults.link_error;
    return -1;
  }
  return linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int rename(const char *from, const char *to) {
  if (faults.rename_error) {
    errno = faults.rename_error;
    return -1;
  }
  return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

#endif
