/* `spectron TOOL …`: the tools around the trainer. */
#include "tools.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct tool {
  const char *name;
  spt_status (*run)(int argc, char **argv);
  const char *help;
} tool;

static const tool tools[] = {
    {"tokenize", spt_tool_tokenize, "text files to HDF5 token shards; trains a tokenizer where wanted"},
    {"inspect", spt_tool_inspect, "what a token shard or checkpoint holds; verifies every checksum"},
    {"baseline", spt_tool_baseline, "loss of an add-one bigram model, to compare a trained model with"},
    {"rehearse", spt_tool_rehearse, "a job rehearsed on this machine, killed and resumed; what it will need at full size"},
    {"replay", spt_tool_replay, "recomputes a step of a run bit for bit and names the first matrix that went wrong"},
    {"report", spt_tool_report, "a run's numbers and picture from its metrics"},
};
enum { TOOLS = sizeof tools / sizeof *tools };

double spt_tool_seconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

spt_status spt_tool_integer(const char *option, const char *text, int64_t low, int64_t high, int64_t *value_p) {
  char *end;
  errno = 0;
  const long long value = strtoll(text, &end, 10);
  if (errno || end == text || *end || value < low || value > high)
    return SPT_FAIL(SPT_ERR_USAGE, "%s wants a whole number in [%lld, %lld], not '%s'", option, (long long)low,
                    (long long)high, text);
  *value_p = value;
  return SPT_OK;
}

spt_status spt_tool_bad_option(const char *tool_name, int choice, const char *argument) {
  return SPT_FAIL(SPT_ERR_USAGE, "%s: %s '%s' (see spectron %s --help)", tool_name,
                  choice == ':' ? "a value is missing after" : "unknown option", argument, tool_name);
}

static void print_help(FILE *out) {
  fputs("spectron TOOL [OPTION]… [FILE]…   the tools around spectron-dist\n\n", out);
  for (int i = 0; i < TOOLS; i++) fprintf(out, "  %-10s %s\n", tools[i].name, tools[i].help);
  fputs("\nspectron TOOL --help explains a tool, with an example.\nExit codes:", out);
#define PRINT_STATUS(name, code, text) fprintf(out, "%s %d %s", code ? " ·" : "", code, text);
  SPT_STATUS_TABLE(PRINT_STATUS)
#undef PRINT_STATUS
  fputs("\n", out);
}

static spt_status run(int argc, char **argv) {
  if (argc < 2) return SPT_FAIL(SPT_ERR_USAGE, "no tool named (see spectron --help)");
  if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
    print_help(stdout);
    return SPT_OK;
  }
  for (int i = 0; i < TOOLS; i++)
    if (!strcmp(argv[1], tools[i].name)) return tools[i].run(argc - 1, argv + 1);
  return SPT_FAIL(SPT_ERR_USAGE, "no tool is called '%s' (see spectron --help)", argv[1]);
}

int main(int argc, char **argv) {
  signal(SIGXFSZ, SIG_IGN); // a file size limit is then reported like a full disk
  spt_status status = run(argc, argv);
  if (status == SPT_OK && (fflush(stdout) != 0 || ferror(stdout)))
    status = SPT_FAIL(SPT_ERR_RESOURCE, "standard output cannot be written: %s", strerror(errno));
  if (status != SPT_OK) fprintf(stderr, "spectron: %s\n", spt_error_message());
  return status;
}
