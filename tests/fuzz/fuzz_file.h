/* What the fuzzers of files share: bytes as a file, and what became of them. */
#ifndef SPT_FUZZ_FILE_H
#define SPT_FUZZ_FILE_H

#include "fuzz.h"

#include "core/status.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static inline void fuzz_write(int file, const void *bytes, size_t count) {
  FUZZ_CHECK(count == 0 || pwrite(file, bytes, count, 0) == (ssize_t)count, "a temporary file cannot be written");
}

/* A temporary file that holds `data`; its path goes to `path`. Not memfd_create's: HDF5 wants a name that leads
 * somewhere. */
static inline int fuzz_file(const uint8_t *data, size_t size, char path[64]) {
  snprintf(path, 64, "%s/spt-fuzz-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
  const int file = mkostemp(path, O_CLOEXEC);
  FUZZ_CHECK(file >= 0, "no temporary file %s", path);
  fuzz_write(file, data, size);
  return file;
}

static inline void fuzz_file_close(int file, const char *path) {
  close(file);
  unlink(path);
}

/* The file's bytes go back to `data`. */
static inline void fuzz_read_back(int file, uint8_t *data, size_t size) {
  FUZZ_CHECK(pread(file, data, size, 0) == (ssize_t)size, "a temporary file cannot be read");
}

/* Adds the file at `path`. */
static inline void fuzz_add_file(const char *path, fuzz_add add, void *context) {
  static uint8_t bytes[FUZZ_BYTES_MAX + 1];
  FILE *file = fopen(path, "rb");
  FUZZ_CHECK(file, "%s cannot be read", path);
  const size_t size = fread(bytes, 1, sizeof bytes, file);
  fclose(file);
  add(context, bytes, size);
}

/* How executions ended: said at the end, so that one sees how far inside the inputs came. */
static struct { long accepted, refused, crashes, hangs; /* the last two: of HDF5, in a reader process */ } fuzz_counts;

static inline void fuzz_print_counts(void) {
  printf("accepted: %ld, refused: %ld, of these crashes of HDF5 contained: %ld, hangs: %ld\n", fuzz_counts.accepted,
         fuzz_counts.refused, fuzz_counts.crashes, fuzz_counts.hangs);
}

/* A loader accepts, or says in one line that the data is bad; it never runs out of a resource, as inputs are small. */
static inline void fuzz_judge(spt_status status, spt_status refusal) {
  static int registered;
  if (!registered++) atexit(fuzz_print_counts);
  const char *message = spt_error_message();
  FUZZ_CHECK(status == SPT_OK || status == refusal, "status %d: %s", (int)status, message);
  if (status == SPT_OK) {
    fuzz_counts.accepted++;
    return;
  }
  fuzz_counts.refused++;
  if (getenv("SPT_FUZZ_VERBOSE")) printf("%s\n", message);
  FUZZ_CHECK(message[0], "no message");
  for (const char *c = message; *c; c++) FUZZ_CHECK((unsigned char)*c >= ' ', "a message of two lines: %s", message);
  if (refusal != SPT_ERR_DATA) return; // a job's message quotes the job
  fuzz_counts.crashes += strstr(message, "library crashes on it") != NULL;
  fuzz_counts.hangs += strstr(message, "library hangs on it") != NULL;
}

#endif
