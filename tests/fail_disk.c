/* Preloaded into the trainer: a disk that fails, or is slow, on rank 0 (or alone). SPT_FAULTS names the faults,
 * separated by spaces: CALL:ERROR:PART or CALL:ERROR:PART:TIMES, for calls on files whose path contains PART, the first
 * TIMES of them or all. CALL: open (for writing), fallocate, pwrite, fsync, close, rename (its first path), link
 * (likewise), unlink, flock. ERROR: a name below, or a number: so many microseconds of waiting, then the call itself. A
 * call that fails changes nothing, but close closes, and pwrite writes half. */
#undef _FILE_OFFSET_BITS // both names of a call are to be defined here
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

enum { FAULTS_MAX = 16, WORD = 128 };

static struct {
  char call[16], error[16], part[WORD];
  int times; /* left; < 0: always */
} faults[FAULTS_MAX];
static int fault_count;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static const struct {
  const char *name;
  int number;
} errors[] = {{"EIO", EIO},       {"ENOSPC", ENOSPC}, {"EROFS", EROFS},           {"EDQUOT", EDQUOT},
              {"EACCES", EACCES}, {"ESTALE", ESTALE}, {"EOPNOTSUPP", EOPNOTSUPP}, {"EINVAL", EINVAL},
              {"ENOLCK", ENOLCK}};

static void parse(void) {
  const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *text = getenv("SPT_FAULTS");
  if (!text || (rank && atoi(rank) != 0)) return;
  for (int used = 0; fault_count < FAULTS_MAX; text += used) {
    int times = -1;
    if (sscanf(text, " %15[^: ]:%15[^: ]:%127[^: ]%n:%d%n", faults[fault_count].call, faults[fault_count].error,
               faults[fault_count].part, &used, &times, &used) < 3)
      return;
    faults[fault_count++].times = times;
  }
}

/* 0, or the error that the call is to have. */
static int fault(const char *call, const char *path) {
  int found = 0;
  long wait = 0;
  pthread_once(&once, parse);
  for (int i = 0; i < fault_count && !found; i++) {
    if (strcmp(faults[i].call, call) != 0 || !strstr(path, faults[i].part)) continue;
    pthread_mutex_lock(&lock);
    const bool due = faults[i].times != 0;
    if (faults[i].times > 0) faults[i].times--;
    pthread_mutex_unlock(&lock);
    if (!due) continue;
    wait += atol(faults[i].error);
    for (size_t e = 0; e < sizeof errors / sizeof *errors; e++)
      if (strcmp(errors[e].name, faults[i].error) == 0) found = errors[e].number;
  }
  if (wait > 0) usleep((useconds_t)wait);
  return found;
}

static int fault_of_file(const char *call, int fd) {
  char link[64], path[PATH_MAX];
  pthread_once(&once, parse);
  if (fault_count == 0) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = '\0';
  return fault(call, path);
}

static int failed(int error) {
  errno = error;
  return -1;
}

static int open_file(const char *path, int flags, va_list arguments) {
  const mode_t mode = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(arguments, mode_t) : 0;
  const int error = (flags & O_ACCMODE) == O_RDONLY ? 0 : fault("open", path);
  return error ? failed(error) : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const int fd = open_file(path, flags, arguments);
  va_end(arguments);
  return fd;
}

int open64(const char *path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const int fd = open_file(path, flags, arguments);
  va_end(arguments);
  return fd;
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
  const int error = fault_of_file("fallocate", fd);
  return error ? failed(error) : (int)syscall(SYS_fallocate, fd, mode, offset, length);
}
int fallocate(int fd, int mode, off_t offset, off_t length) {
  return fallocate64(fd, mode, offset, length);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) {
  const int error = fault_of_file("pwrite", fd);
  const ssize_t written = syscall(SYS_pwrite64, fd, bytes, error ? count / 2 : count, offset);
  return error ? failed(error) : written;
}
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) {
  return pwrite64(fd, bytes, count, offset);
}

int fsync(int fd) {
  const int error = fault_of_file("fsync", fd);
  return error ? failed(error) : (int)syscall(SYS_fsync, fd);
}

int close(int fd) {
  const int error = fault_of_file("close", fd), closed = (int)syscall(SYS_close, fd);
  return error ? failed(error) : closed;
}

int rename(const char *from, const char *to) {
  const int error = fault("rename", from);
  return error ? failed(error) : renameat(AT_FDCWD, from, AT_FDCWD, to);
}

int link(const char *from, const char *to) {
  const int error = fault("link", from);
  return error ? failed(error) : linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int unlink(const char *path) {
  const int error = fault("unlink", path);
  return error ? failed(error) : unlinkat(AT_FDCWD, path, 0);
}

int flock(int fd, int operation) {
  const int error = fault_of_file("flock", fd);
  return error ? failed(error) : (int)syscall(SYS_flock, fd, operation);
}
