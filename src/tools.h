/* The subcommands of `spectron`, one file each. argv[0] is the subcommand's name. A tool prints its result on stdout
 * and its own --help; on failure it returns a status with the error worded (SPT_FAIL), and spectron.c prints it once
 * and exits with it. */
#ifndef SPT_TOOLS_H
#define SPT_TOOLS_H

#include "core/status.h"

#include <stdint.h>

spt_status spt_tool_tokenize(int argc, char **argv);
spt_status spt_tool_inspect(int argc, char **argv);
spt_status spt_tool_baseline(int argc, char **argv);
spt_status spt_tool_replay(int argc, char **argv);
spt_status spt_tool_report(int argc, char **argv);
spt_status spt_tool_rehearse(int argc, char **argv);

/* A whole number in [low, high] given to `option`. SPT_ERR_USAGE names both. */
spt_status spt_tool_integer(const char *option, const char *text, int64_t low, int64_t high, int64_t *value_p);
/* Seconds of a clock that never jumps. */
double spt_tool_seconds(void);
/* What a tool says when getopt_long returned `choice` for argv[before] and it knows no better. SPT_ERR_USAGE. */
spt_status spt_tool_bad_option(const char *tool, int choice, const char *argument);

#endif
