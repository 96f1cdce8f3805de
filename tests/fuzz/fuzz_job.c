/* Job files, and (behind a line "--set") what the command line sets. What is accepted must print and parse back to the
 * same. */
#include "fuzz_file.h"

#include "io/job_toml.h"

enum { SETS_MAX = 8 };
static const char marker[] = "\n--set\n";

static void refuse_difference(void *context, const char *key, const char *before, const char *after,
                              spt_job_change change) {
  (void)context, (void)change;
  FUZZ_CHECK(false, "%s: %s printed and parsed is %s", key, before, after);
}

static void check_round_trip(const spt_config *config) {
  static spt_config again;
  char *text = spt_job_print(config);
  FUZZ_CHECK(text, "memory");
  FUZZ_CHECK(spt_job_parse(text, "printed.toml", "/", NULL, 0, &again) == SPT_OK, "%s\n%s", spt_error_message(), text);
  spt_job_compare(config, &again, refuse_difference, NULL);
  char *second = spt_job_print(&again);
  FUZZ_CHECK(second && strcmp(text, second) == 0, "printed twice:\n%s\n%s", text, second);
  free(text);
  free(second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static spt_config config;
  const char *sets[SETS_MAX];
  int count = 0;
  char *text = malloc(size + 1);
  FUZZ_CHECK(text, "memory");
  memcpy(text, data, size);
  text[size] = '\0';
  char *at = strstr(text, marker);
  if (at) {
    *at = '\0';
    for (at += sizeof marker - 1; at && count < SETS_MAX;) {
      char *end = strchr(at, '\n');
      if (end) *end++ = '\0';
      sets[count++] = at;
      at = end;
    }
  }
  spt_error_clear();
  const spt_status status = spt_job_parse(text, "job.toml", "/somewhere", sets, count, &config);
  fuzz_judge(status, SPT_ERR_USAGE);
  if (status == SPT_OK) check_round_trip(&config);
  free(text);
  return 0;
}

/* Besides bytes: whole lines of this input or pieces of a number are put elsewhere. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
  static const char *const words[] = {"[",
                                      "]",
                                      "[[",
                                      "]]",
                                      "=",
                                      "\"",
                                      "\"\"\"",
                                      "'''",
                                      "{",
                                      "}",
                                      ",",
                                      "\\u0000",
                                      "\\UFFFFFFFF",
                                      "1e999",
                                      "-0",
                                      "nan",
                                      "inf",
                                      "9223372036854775807",
                                      "-9223372036854775808",
                                      "0x7fffffffffffffff",
                                      "1979-05-27T07:32:00Z",
                                      "\n--set\n",
                                      "model.",
                                      "a.b.c",
                                      "\xff",
                                      "\xef\xbb\xbf",
                                      "preset = \"S\"\n",
                                      "tokens = 1e3\n",
                                      "rank_ratio = 1e-300\n",
                                      "[optimizer.adamw]\n",
                                      "#",
                                      "\r\n"};
  if (seed % 3) return LLVMFuzzerMutate(data, size, most);
  const char *word = words[(seed >> 2) % (sizeof words / sizeof *words)];
  const size_t length = strlen(word), at = size ? (seed >> 8) % size : 0;
  if (size + length > most) return size;
  memmove(data + at + length, data + at, size - at);
  memcpy(data + at, word, length);
  return size + length;
}

static void add_text(const char *text, fuzz_add add, void *context) {
  add(context, text, strlen(text));
}

void fuzz_seeds(const char *folder, fuzz_add add, void *context) {
  static const char *const files[] = {"configs/example.toml", "configs/quickstart.toml", "configs/tiny.toml"};
  const char *root = getenv("SPT_SOURCE_ROOT");
  char path[4096];
  (void)folder;
  FUZZ_CHECK(root, "SPT_SOURCE_ROOT names the source tree");
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    snprintf(path, sizeof path, "%s/%s", root, files[i]);
    fuzz_add_file(path, add, context);
  }
  add_text("[model]\npreset = \"60M\"\n[schedule]\ntokens = 1000000\n[data]\ntrain = [\"a*.h5\", \"/b/c.h5\"]\n", add,
           context);
  add_text("[model]\nhidden = 64\nlayers = 2\nheads = 4\nvocab = 257\nseq_len = 32\nrank_ratio = "
           "0.27\n[schedule]\nsteps = 20\n[batch]\nsequences = 24\n",
           add, context);
  add_text("\n--set\nmodel.preset=S\nschedule.steps=10\noptimizer.lr=0.02\ndata.train=x-*.h5\nrun.name=a b", add,
           context);
  add_text("[schedule]\nsteps = "
           "5\n\n--set\nrun.output=\"/x\"\ndevice.backend=cpu\ncheckpoint.resume=true\nschedule.tokens=1e6",
           add, context);
  add_text("model = {hidden = 64, layers = 2}\nschedule.steps = 1\n", add, context);
}
