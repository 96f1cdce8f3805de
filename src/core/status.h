/* Status codes and the thread-local last error.
 *
 * A status IS the exit code of the programs, so that whoever decides that something is an error also decides how the
 * program ends. Libraries never print or exit: they word the error here and return; main prints it once. */
#ifndef SPT_STATUS_H
#define SPT_STATUS_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* name, exit code, meaning (printed by `--help`) */
#define SPT_STATUS_TABLE(X)                                                                                            \
  X(SPT_OK, 0, "done")                                                                                                 \
  X(SPT_ERR_USAGE, 2, "bad usage or job file")                                                                         \
  X(SPT_ERR_DATA, 3, "bad or damaged data or checkpoint file")                                                         \
  X(SPT_ERR_DIVERGED, 4, "training diverged")                                                                          \
  X(SPT_ERR_RESOURCE, 5, "a resource failed (disk, memory, device, MPI)")                                              \
  X(SPT_STOPPED, 75, "stopped by a signal after saving everything; submit again to go on")

typedef enum spt_status {
#define SPT_STATUS_ENUM(name, code, text) name = code,
  SPT_STATUS_TABLE(SPT_STATUS_ENUM)
#undef SPT_STATUS_ENUM
} spt_status;

/* Stores "file:line" and the worded message for this thread, and returns `code`. Use SPT_FAIL. */
spt_status spt_fail_at(spt_status code, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The last message stored on this thread ("" if none), and where it was stored. Valid until the next SPT_FAIL. */
const char *spt_error_message(void);
const char *spt_error_origin(void);
/* Forgets this thread's last error. */
void spt_error_clear(void);
/* The table's meaning of a code; "unknown status" for others. */
const char *spt_status_text(spt_status status);

#define SPT_FAIL(code, ...) spt_fail_at((code), __FILE__, __LINE__, __VA_ARGS__)
/* Propagates a failure unchanged. */
#define SPT_TRY(expression)                                                                                            \
  do {                                                                                                                 \
    spt_status spt_try_status_ = (expression);                                                                         \
    if (spt_try_status_ != SPT_OK) return spt_try_status_;                                                             \
  } while (0)
/* Propagates a failure through the cleanup label `label`; needs a local `spt_status status`. */
#define SPT_TRY_GOTO(expression, label)                                                                                \
  do {                                                                                                                 \
    status = (expression);                                                                                             \
    if (status != SPT_OK) goto label;                                                                                  \
  } while (0)

#ifdef __cplusplus
}
#endif
#endif
