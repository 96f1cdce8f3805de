/* Preloaded: a file system as some clusters have it. No locks, no reservation of space; HDF5 files are refused where the
 * library insists on a lock. */
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>

int flock(int fd, int operation) {
  (void)fd, (void)operation;
  errno = ENOLCK;
  return -1;
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
  (void)fd, (void)mode, (void)offset, (void)length;
  errno = EOPNOTSUPP;
  return -1;
}

int posix_fallocate64(int fd, off64_t offset, off64_t length) {
  (void)fd, (void)offset, (void)length;
  return EOPNOTSUPP;
}
