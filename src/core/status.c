#include "status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char last_message[1024];
static _Thread_local char last_origin[128];

spt_status spt_fail_at(spt_status code, const char *file, int line, const char *format, ...) {
  va_list arguments;
  char message[sizeof last_message]; // the old message may be one of the arguments
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  snprintf(last_message, sizeof last_message, "%s", message);
  snprintf(last_origin, sizeof last_origin, "%s:%d", file, line);
  return code;
}

const char *spt_error_message(void) { return last_message; }

const char *spt_error_origin(void) { return last_origin; }

void spt_error_clear(void) {
  last_message[0] = '\0';
  last_origin[0] = '\0';
}

const char *spt_status_text(spt_status status) {
  switch (status) {
#define SPT_STATUS_CASE(name, code, text)                                                                              \
  case name: return text;
    SPT_STATUS_TABLE(SPT_STATUS_CASE)
#undef SPT_STATUS_CASE
  }
  return "unknown status";
}
