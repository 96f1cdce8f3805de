/* A fuzzer a loader: fuzz_<loader>.c defines these, with libFuzzer's names, and runs under libFuzzer (clang,
 * tests/fuzz/run.sh) or under driver.c (any compiler, the test suite). A defect is a crash, a sanitizer's report, a
 * hang, or a failed FUZZ_CHECK. */
#ifndef SPT_FUZZ_H
#define SPT_FUZZ_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One execution of the loader on these bytes. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* Changes `data` (`size` of at most `most` bytes) in place and returns its new size. The mutations of the library or of
 * driver.c. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);
/* The same, knowing the format: what is changed most, and whose checksums are made good again. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned int seed);

/* The inputs to begin with: calls `add` for each. `folder` is an empty one, for files on the way. */
typedef void (*fuzz_add)(void *context, const void *data, size_t size);
void fuzz_seeds(const char *folder, fuzz_add add, void *context);

enum { FUZZ_BYTES_MAX = 1 << 16 };

#ifdef __cplusplus
}
#endif

/* What must always hold, whatever the input. */
#define FUZZ_CHECK(condition, ...)                                                                                     \
  do {                                                                                                                 \
    if (condition) break;                                                                                              \
    fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                                                    \
    fprintf(stderr, __VA_ARGS__);                                                                                      \
    fputc('\n', stderr);                                                                                               \
    abort();                                                                                                           \
  } while (0)

#endif
