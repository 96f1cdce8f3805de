#include "unit_test.h"

#include "core/config_keys.h"
#include "core/params.h"
#include "io/job_toml.h"

#include <glob.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "temp_folder.h"

static uint64_t seed;
static spt_config config, other; // large: kept off the stack

static const char *const good_text = "[model]\nhidden = 96\nlayers = 2\nheads = 4\n[schedule]\nsteps = 10\n";

static spt_status parse(const char *text, const char *const *sets, int set_count) {
  return spt_job_parse(text, "dir/my job.toml", "/jobs", sets, set_count, &config);
}

static void minimal_job(void **state) {
  (void)state;
  assert_ok(parse(good_text, NULL, 0));
  assert_int_equal(config.model.hidden, 96);
  assert_int_equal(config.model.ffn, 256);
  assert_int_equal(config.model.kv_heads, 4);
  assert_int_equal(config.schedule.steps, 10);
  assert_int_equal(config.batch.sequences, 512);
  assert_string_equal(config.run.name, "my job"); // the file's stem
  assert_string_equal(config.run.output, "/jobs/runs/my job");
  assert_int_equal(config.data.train.count, 0);
}

static void paths_are_the_job_files(void **state) {
  (void)state;
  char text[512];
  snprintf(text, sizeof text, "%s%s", good_text,
           "[run]\noutput = '../out'\n[data]\ntrain = ['a/*.h5', '/b/[0-9].h5', './c']\nvalidation = 'v.h5'\n");
  assert_ok(spt_job_parse(text, "x.toml", "/jobs/we[i]rd*", NULL, 0, &config));
  assert_string_equal(config.run.output, "/jobs/out");
  assert_int_equal(config.data.train.count, 3);
  assert_string_equal(config.data.train.pattern[0], "/jobs/we\\[i\\]rd\\*/a/*.h5"); // the folder's name is no pattern
  assert_string_equal(config.data.train.pattern[1], "/b/[0-9].h5");
  assert_string_equal(config.data.train.pattern[2], "/jobs/we\\[i\\]rd\\*/c");
  assert_int_equal(config.data.validation.count, 1);
  // A relative folder, or none, is the working directory's.
  char here[SPT_PATH_MAX], expected[2 * SPT_PATH_MAX];
  assert_non_null(getcwd(here, sizeof here));
  const char *const folders[] = {"sub", NULL};
  for (int i = 0; i < 2; i++) {
    assert_ok(spt_job_parse(good_text, "x.toml", folders[i], NULL, 0, &config));
    snprintf(expected, sizeof expected, "%s/%sruns/x", here, i ? "" : "sub/");
    assert_string_equal(config.run.output, expected);
  }
}

static void presets_and_overrides(void **state) {
  (void)state;
  assert_ok(parse("model.layers = 3\nmodel.preset = 'M'\nschedule.steps = 1", NULL, 0)); // in any order
  assert_int_equal(config.model.hidden, 1280);
  assert_int_equal(config.model.layers, 3);
  // --set of a preset replaces the file's shape, but not what fits its data; other --set keys override the preset.
  const char *const sets[] = {"model.layers=5", "model.preset=S"};
  assert_ok(parse("[model]\npreset = 'M'\nffn = 512\nvocab = 4096\nheads = 2\n[schedule]\nsteps = 1", sets, 2));
  assert_string_equal(config.model.preset, "S");
  assert_int_equal(config.model.hidden, 768);
  assert_int_equal(config.model.layers, 5);
  assert_int_equal(config.model.heads, 12);
  assert_int_equal(config.model.ffn, 2048);
  assert_int_equal(config.model.vocab, 4096);
}

static void dependent_defaults(void **state) {
  (void)state;
  char text[512];
  snprintf(text, sizeof text, "%s[run]\nseed = 7\n", good_text);
  assert_ok(parse(text, NULL, 0));
  assert_int_equal(config.data.seed, 7);
  const char *const own_seed[] = {"data.seed=9"};
  assert_ok(parse(text, own_seed, 1));
  assert_int_equal(config.run.seed, 7);
  assert_int_equal(config.data.seed, 9);
  // Dense trains by AdamW unless a method was named.
  const char *const dense[] = {"model.parameterization=dense", "optimizer.method=adamw"};
  for (int count = 1; count <= 2; count++) {
    assert_ok(parse(good_text, dense, count));
    assert_int_equal(config.optimizer.method, SPT_METHOD_ADAMW);
  }
  const char *const pair_method[] = {"model.parameterization=dense", "optimizer.method=spectron"};
  assert_ok(parse(good_text, pair_method, 2));
  assert_int_equal(config.optimizer.method, SPT_METHOD_SPECTRON);
  // Steps given on the command line replace the file's tokens, and the reverse.
  const char *const tokens[] = {"schedule.tokens=10485761"}, *const steps[] = {"schedule.steps=5"};
  assert_ok(parse(good_text, tokens, 1));
  assert_int_equal(config.schedule.steps, 11);
  assert_ok(parse("[model]\npreset='S'\n[schedule]\ntokens = 10485761", NULL, 0));
  assert_int_equal(config.schedule.steps, 11);
  assert_ok(parse("[model]\npreset='S'\n[schedule]\ntokens = 10485761", steps, 1));
  assert_int_equal(config.schedule.steps, 5);
  assert_int_equal(config.schedule.tokens, 0);
}

static void sets_are_toml_or_words(void **state) {
  (void)state;
  const char *const sets[] = {"run.name=2024-01-01",       "optimizer.lr=2e-2",
                              "dist.overlap=false",        "device.precision=bf16",
                              "data.train=['/a', '/b=c']", "data.validation=/v*.h5",
                              "optimizer.adamw.lr=1",      "dist.reduction=\"reduce-scatter\"",
                              "run.output=/x = y"};
  assert_ok(parse(good_text, sets, 9));
  assert_string_equal(config.run.name, "2024-01-01"); // a TOML date, but the key holds text
  assert_true(config.optimizer.lr == 2e-2);
  assert_false(config.dist.overlap);
  assert_int_equal(config.device.precision, SPT_PRECISION_BF16);
  assert_int_equal(config.data.train.count, 2);
  assert_string_equal(config.data.train.pattern[1], "/b=c");
  assert_string_equal(config.data.validation.pattern[0], "/v*.h5");
  assert_true(config.optimizer.adamw.lr == 1);
  assert_int_equal(config.dist.reduction, SPT_REDUCTION_REDUCE_SCATTER);
  assert_string_equal(config.run.output, "/x = y");
}

static void errors_name_place_and_remedy(void **state) {
  (void)state;
  const struct {
    const char *text, *part[3];
  } cases[] = {
      {"[model]\n  hidden = 100\nlayers = 1\nheads = 12\n[schedule]\nsteps = 1",
       {"my job.toml:2:3: [model] hidden = 100: must be a multiple of heads (12)", "96", ""}},
      {"[model]\nhiden = 1", {"my job.toml:2:1: unknown key [model] hiden", "did you mean hidden?", "rank_ratio"}},
      {"[model]\nlayesr = 1", {"did you mean layers?", "", ""}}, // a swap
      {"[model]\nlr = 1", {":2:1: unknown key [model] lr", "did you mean [optimizer] lr?", ""}},
      {"[modle]\nhidden = 1", {":1:2: unknown table [modle]", "did you mean model?", "checkpoint"}},
      {"steps = 1", {":1:1: unknown table [steps]", "schedule", ""}},
      {"[wallpaper]\nmethod = 'none'", {":1:2: unknown table [wallpaper]", "known: run", "guidance"}},
      {"[guidance]\nfraction = 0", {":2:1: [guidance] fraction = 0: must be in (0, 1]", "", ""}},
      {"[model.x]\ny = 1", {"unknown key [model] x", "", ""}},
      {"[optimizer]\nnewton_schulz_coefficients = 3", {":2:1: [optimizer] newton_schulz_coefficients: must be a list of 3 numbers", "", ""}},
      {"[optimizer]\nnewton_schulz_coefficients = [3, 4]", {":2:1: [optimizer] newton_schulz_coefficients: must be a list of 3 numbers", "", ""}},
      {"[optimizer]\nnewton_schulz_coefficients = [3, 4, 500.5]", {":2:1: [optimizer] newton_schulz_coefficients = 500.5", "[-100, 100]", ""}},
      {"[optimizer]\nnewton_schulz_coefficients = [0, 0, 0]", {":2:1: [optimizer] newton_schulz_coefficients = [0, 0, 0]", "0.0625 becomes 0,", "[3.4445, -4.775, 2.0315]"}},
      {"[optimizer]\nmethod = 'muon'\nnewton_schulz_coefficients = [-1, 0, 0]", {":3:1: [optimizer] newton_schulz_coefficients = [-1, 0, 0]", "0.0625 becomes -0.0625,", ""}},
      {"[optimizer]\nnewton_schulz_coefficients = [3, 4, 5]", {":2:1: [optimizer] newton_schulz_coefficients = [3, 4, 5]", "0.0625 becomes ", ""}},
      {"[optimizer]\nnewton_schulz_coefficients = [3, 4, 5]\nnewton_schulz_variant = 'polar-express'", {":2:1: [optimizer] newton_schulz_coefficients", "are the quintic's", ""}},
      {"[optimizer]\nadamw = 1", {":2:1: [optimizer.adamw] must be a table", "", ""}},
      {"model = 1", {":1:1: [model] must be a table", "", ""}},
      {"[[model]]\nhidden = 1", {"[model] must be a table", "", ""}},
      {"[model]\nhidden = 'big'", {":2:1: [model] hidden: must be an integer, not \"big\"", "", ""}},
      {"[model]\nhidden = 64.0", {":2:1: [model] hidden: must be an integer, not floating-point", "", ""}},
      {"[model]\ntie_embeddings = 1", {"[model] tie_embeddings: must be true or false, not integer", "", ""}},
      {"[run]\nname = 1", {"[run] name: must be a string in quotes, not integer", "", ""}},
      {"[optimizer]\nlr = true", {"[optimizer] lr: must be a number, not boolean", "", ""}},
      {"[data]\ntrain = [1]", {"[data] train: must be a string or a list of strings", "", ""}},
      {"[data]\ntrain = ['a', '']", {"[data] train: a pattern must not be empty", "", ""}},
      {"[optimizer]\nmethod = 'spectorn'",
       {":2:1: [optimizer] method = \"spectorn\"", "did you mean spectron?", "muon, renorm"}},
      {"[optimizer]\nlr = nan", {":2:1: [optimizer] lr = nan: must be in (0, 1000]", "", ""}},
      {"[optimizer]\nlr = -inf", {"[optimizer] lr = -inf: must be in (0, 1000]", "", ""}},
      {"[optimizer]\nmomentum = 1", {":2:1: [optimizer] momentum = 1: must be in [0, 1)", "", ""}},
      {"[model]\nhidden = 65537", {"[model] hidden = 65537: must be in [1, 65536]", "", ""}},
      {"[model]\nhidden = 0", {":2:1: [model] hidden = 0: must be in [1, 65536]", "", ""}},
      {"[model]\nlayers = -3", {"[model] layers = -3: must be in [1, 1024]", "", ""}},
      {"[model]\nvocab = 2147483648", {"[model] vocab = 2147483648: must be in [2, 2147483647]", "", ""}},
      {"[run]\nseed = -1", {":2:1: [run] seed = -1: must be in [0, 9223372036854775807]", "", ""}},
      {"[schedule]\nsteps = 99999999999999999999", {"my job.toml:2:", "99999999999999999999", ""}},
      {"[model]\nhidden = 1 2", {"my job.toml:2:12: ", "", ""}},
      {"[model]\nhidden = 8\nhidden = 9", {"my job.toml:3:", "redefin", "hidden"}},
      {"[model\n", {"my job.toml:1:", "", ""}},
      {"[run]\nname = \"\\u0000\"", {"[run] name: must not hold a NUL", "", ""}},
      {"[run]\nname = \"\xff\"", {"my job.toml:2:", "", ""}}, // no UTF-8
      {"[run]\nname = \"a\\nb/c\"", {"[run] name", "slash", ""}},
      {"[model]\npreset = 'XL'", {":2:1: [model] preset = \"XL\": no such preset", "780M or L", ""}},
      {"[schedule]\nsteps = 1", {"my job.toml: [model] hidden: is missing", "preset", ""}},
      {"[model]\npreset = 'S'", {"my job.toml: [schedule] steps: is missing", "tokens", ""}},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    // Required keys last, where the case does not give them, so that each case fails for its own reason only.
    char text[600];
    const bool complete = i + 2 >= sizeof cases / sizeof cases[0] || strstr(cases[i].text, "missing");
    const char *model = strstr(cases[i].text, "model") ? "" : "\n[model]\npreset = 'S'\n";
    const char *schedule = strstr(cases[i].text, "schedule") ? "" : "\n[schedule]\nsteps = 10\n";
    if (strstr(cases[i].text, "[model]") && !strstr(cases[i].text, "preset") && !strstr(cases[i].text, "heads = 12"))
      model = "\npreset = 'S'\n";
    snprintf(text, sizeof text, "%s%s%s", cases[i].text, complete ? "" : model, complete ? "" : schedule);
    memset(&config, 0x5a, sizeof config);
    other = config;
    assert_fails(SPT_ERR_USAGE, parse(text, NULL, 0), cases[i].part[0], cases[i].part[1], cases[i].part[2]);
    assert_memory_equal(&config, &other, sizeof config); // outputs are written only after success
  }
}

static void errors_of_sets(void **state) {
  (void)state;
  const struct {
    const char *set, *part[2];
  } cases[] = {
      {"model.hiden=3", {"--set model.hiden=3: unknown key [model] hiden", "did you mean hidden?"}},
      {"modle.hidden=3", {"--set modle.hidden=3: unknown table [modle]", "did you mean model?"}},
      {"model.hidden", {"--set model.hidden: must be table.key=value", ""}},
      {"hidden=3", {"--set hidden=3: must be table.key=value", ""}},
      {"model.hidden=", {"--set model.hidden=: [model] hidden: must be an integer", ""}},
      {"model.hidden=abc", {"[model] hidden: must be an integer, not \"abc\"", ""}},
      {"model.hidden=9\nx=1", {"[model] hidden: must be an integer", ""}}, // one value, not two lines
      {"model.hidden=98", {"--set model.hidden=98: [model] hidden = 98: must be a multiple of heads (4)", "96"}},
      {"model.hidden=92", {"my job.toml:4:1: [model] heads = 4: the width of a head", "23"}}, // where heads was given
      {"dist.reduction=trees", {"[dist] reduction = \"trees\": no such name", "all-reduce, reduce-scatter, tree"}},
      {"run.name=\xff", {"[run] name: must be UTF-8", ""}},
      {"schedule.steps=1e3", {"[schedule] steps: must be an integer, not floating-point", ""}},
      {"model.preset=XXL", {"--set model.preset=XXL: [model] preset", "2.7B"}},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
    assert_fails(SPT_ERR_USAGE, parse(good_text, &cases[i].set, 1), cases[i].part[0], cases[i].part[1]);
  char long_name[400] = "run.name=";
  memset(long_name + strlen(long_name), 'n', 300);
  const char *set = long_name;
  assert_fails(SPT_ERR_USAGE, parse(good_text, &set, 1), "[run] name", "longer than 127 bytes");
}

static void limits_of_globs(void **state) {
  (void)state;
  static char text[8192];
  for (int count = SPT_GLOBS_MAX; count <= SPT_GLOBS_MAX + 1; count++) {
    int used = snprintf(text, sizeof text, "%s[data]\ntrain = [", good_text);
    for (int i = 0; i < count; i++) used += snprintf(text + used, sizeof text - (size_t)used, "'/f%d',", i);
    snprintf(text + used, sizeof text - (size_t)used, "]\n");
    if (count <= SPT_GLOBS_MAX) {
      assert_ok(parse(text, NULL, 0));
      assert_int_equal(config.data.train.count, SPT_GLOBS_MAX);
      assert_string_equal(config.data.train.pattern[SPT_GLOBS_MAX - 1], "/f63");
    } else {
      assert_fails(SPT_ERR_USAGE, parse(text, NULL, 0), "[data] train: has 65 patterns; at most 64");
    }
  }
}

/* Random text for a string: printable, TOML's special characters, controls and multi-byte ones. */
static void random_text(uint64_t *draw, const char *start, size_t size, char *out) {
  static const char *const pieces[] = {"a",  "Z",    "0",    " ", "\"", "\\", "'", "#", "\n",
                                       "\t", "\x01", "\x7f", "é", "模", "=",  "]", "*"};
  strcpy(out, start);
  const int length = 1 + (int)(spt_random_bits(seed, 20, ++*draw) % 12);
  for (int i = 0; i < length && strlen(out) + 4 < size; i++)
    strcat(out, pieces[spt_random_bits(seed, 20, ++*draw) % (sizeof pieces / sizeof pieces[0])]);
}

/* Any value within its key's range, by the table. */
static void random_value(const spt_key *key, spt_config *target, uint64_t *draw) {
  char *place = (char *)target + key->offset, end[2];
  const uint64_t bits = spt_random_bits(seed, 20, ++*draw);
  const double u = (double)(bits >> 11) * 0x1p-53;
  double low, high;
  if (key->type == SPT_KEY_TEXT || key->type == SPT_KEY_PATH || key->type == SPT_KEY_GLOBS) memset(place, 0, key->size);
  switch (key->type) {
  case SPT_KEY_TEXT: random_text(draw, "n", key->size, place); break;
  case SPT_KEY_PATH: random_text(draw, "/", key->size, place); break;
  case SPT_KEY_GLOBS: {
    spt_globs *globs = (spt_globs *)place;
    globs->count = (int)(bits % 5);
    for (int i = 0; i < globs->count; i++) random_text(draw, "/", SPT_PATH_MAX, globs->pattern[i]);
    break;
  }
  case SPT_KEY_INT:
    assert_int_equal(sscanf(key->values + 1, "%lf, %lf%1s", &low, &high, end), 3);
    *(int64_t *)place = (int64_t)(low + floor((high - low) * (bits & 1 ? u : u * u * u * u)));
    break;
  case SPT_KEY_SEED: *(uint64_t *)place = bits >> 1; break;
  case SPT_KEY_REAL:
    assert_int_equal(sscanf(key->values + 1, "%lf, %lf%1s", &low, &high, end), 3);
    *(double *)place = low + (high - low) * (u > 0 ? bits & 1 ? u : u * u * u * u : 0.5);
    if (bits & 2) *(double *)place = floor(*(double *)place) > low ? floor(*(double *)place) : *(double *)place;
    break;
  case SPT_KEY_REALS:
    assert_int_equal(sscanf(key->values + 1, "%lf, %lf%1s", &low, &high, end), 3);
    for (size_t i = 0; i < key->size / sizeof(double); i++)
      ((double *)place)[i] = low + (high - low) * ((double)(spt_random_bits(seed, 20, ++*draw) >> 11) * 0x1p-53);
    break;
  case SPT_KEY_BOOL: *(bool *)place = bits & 1; break;
  case SPT_KEY_ENUM: {
    char name[32];
    int count = 0;
    for (spt_key_enum_name(key, 0, name); name[0]; spt_key_enum_name(key, count, name)) count++;
    *(int *)place = (int)(bits % (uint64_t)count);
    break;
  }
  }
}

static void random_config(spt_config *target, uint64_t *draw) {
  int count;
  const spt_key *keys = spt_config_keys(&count);
  spt_config_defaults(target);
  memset(&target->run, 0, sizeof target->run);
  for (int i = 0; i < count; i++) random_value(&keys[i], target, draw);
  const uint64_t bits = spt_random_bits(seed, 20, ++*draw);
  snprintf(target->model.preset, sizeof target->model.preset, "%s", bits & 1 ? "" : bits & 2 ? "S" : "1.4B");
  memset(target->model.preset + strlen(target->model.preset), 0,
         sizeof target->model.preset - strlen(target->model.preset));
  for (char *c = target->run.name; *c; c++) *c = *c == '/' ? '_' : *c;
  target->model.heads = target->model.kv_heads = 1 + (int64_t)(bits >> 8) % 64;
  target->model.hidden = target->model.heads * 2 * (1 + (int64_t)(bits >> 16) % 100);
  memset(target->schedule.match_flops, 0, sizeof target->schedule.match_flops); // matched_flops has it, and its way of counting
  target->schedule.match_count = SPT_MATCH_NOMINAL;
  if (target->model.parameterization == SPT_DENSE) target->guidance.method = SPT_GUIDANCE_NONE;
  for (int i = 0; i < 3; i++) { // near those that orthogonalise
    double *coefficient = &target->optimizer.newton_schulz_coefficients[i];
    const double little = target->optimizer.newton_schulz_variant == SPT_NEWTON_SCHULZ_QUINTIC ? 1e-4 * *coefficient : 0;
    *coefficient = spt_quintic[i] + little;
  }
  target->schedule.steps = 1 + (int64_t)(bits >> 20) % 100000;
  target->schedule.tokens = 0;
  if (bits & 4) {
    target->schedule.tokens = target->schedule.steps;
    target->schedule.steps = 0;
  }
  assert_ok(spt_config_complete(target));
}

static void printed_job_reads_back(void **state) {
  (void)state;
  uint64_t draw = 0;
  for (int round = 0; round < 300; round++) {
    random_config(&config, &draw);
    char *text = spt_job_print(&config);
    assert_non_null(text);
    // Another place and folder: nothing in it is relative.
    if (spt_job_parse(text, "elsewhere.toml", "/somewhere", NULL, 0, &other) != SPT_OK)
      fail_msg("%s\n%s", spt_error_message(), text);
    if (memcmp(&config, &other, sizeof config) != 0) {
      char *again = spt_job_print(&other);
      fail_msg("printed:\n%s\nread back as:\n%s", text, again);
    }
    char *again = spt_job_print(&other);
    assert_string_equal(text, again);
    free(again);
    free(text);
  }
}

typedef struct seen {
  int count;
  char key[64], before[64], after[64];
  spt_job_change change;
} seen;

static void see(void *context, const char *key, const char *before, const char *after, spt_job_change change) {
  seen *s = context;
  s->count++;
  snprintf(s->key, sizeof s->key, "%s", key);
  snprintf(s->before, sizeof s->before, "%s", before);
  snprintf(s->after, sizeof s->after, "%s", after);
  s->change = change;
}

static void compare_names_each_change(void **state) {
  (void)state;
  int count;
  const spt_key *keys = spt_config_keys(&count);
  uint64_t draw = 1000000;
  random_config(&config, &draw);
  other = config;
  seen s = {0};
  spt_job_compare(&config, &other, see, &s);
  assert_int_equal(s.count, 0);
  for (int i = 0; i < count; i++) {
    const spt_key *key = &keys[i];
    char name[64];
    snprintf(name, sizeof name, "%s.%s", key->table, key->key);
    other = config;
    char *place = (char *)&other + key->offset;
    for (int attempt = 0; attempt < 100 && memcmp(place, (char *)&config + key->offset, key->size) == 0; attempt++)
      random_value(key, &other, &draw);
    assert_memory_not_equal(place, (char *)&config + key->offset, key->size);
    s = (seen){0};
    spt_job_compare(&config, &other, see, &s);
    // only names for values that are compared themselves
    if (strcmp(name, "model.preset") == 0 || strncmp(name, "schedule.match_", 15) == 0) {
      assert_int_equal(s.count, 0);
      continue;
    }
    assert_int_equal(s.count, 1);
    assert_string_equal(s.key, name);
    assert_string_not_equal(s.before, s.after);
    // What issue "Train" calls safe, written a second time.
    const char *const fixed[] = {"run.seed",  "model.",        "optimizer.",      "batch.sequences",
                                 "data.seed", "schedule.kind", "schedule.warmup", "guidance."};
    bool expected = false;
    for (size_t f = 0; f < sizeof fixed / sizeof fixed[0]; f++) expected |= !strncmp(name, fixed[f], strlen(fixed[f]));
    if (!strcmp(name, "model.recompute")) expected = false;
    assert_int_equal(s.change, expected ? SPT_JOB_FIXED : SPT_JOB_SAFE);
  }
  other = config;
  config.optimizer.lr = 0.01;
  other.optimizer.lr = 0.02;
  spt_job_compare(&config, &other, see, &s);
  assert_string_equal(s.before, "0.01");
  assert_string_equal(s.after, "0.02");
}

static void refuse_change(void *context, const char *key, const char *before, const char *after, spt_job_change change) {
  (void)context, (void)change;
  fail_msg("%s: %s, %s", key, before, after);
}

static void files(void **state) {
  (void)state;
  char folder[SPT_PATH_MAX], path[SPT_PATH_MAX + 32], expected[SPT_PATH_MAX + 64];
  const char *base = getenv("TMPDIR");
  snprintf(folder, sizeof folder, "%s/spt-job-XXXXXX", base ? base : "/tmp");
  assert_non_null(mkdtemp(folder));
  snprintf(path, sizeof path, "%s/a.b.toml", folder);
  assert_fails(SPT_ERR_USAGE, spt_job_load(path, NULL, 0, &config), path, "cannot open the job file: No such file");
  assert_fails(SPT_ERR_USAGE, spt_job_load(folder, NULL, 0, &config), folder, "cannot read the job file");
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  assert_true(fputs(good_text, file) >= 0 && fclose(file) == 0);
  assert_ok(spt_job_load(path, NULL, 0, &config));
  assert_string_equal(config.run.name, "a.b");
  snprintf(expected, sizeof expected, "%s/runs/a.b", folder);
  assert_string_equal(config.run.output, expected);
  file = fopen(path, "w");
  assert_non_null(file);
  assert_true(fputs("[model]\nhidden = \n", file) >= 0 && fclose(file) == 0);
  snprintf(expected, sizeof expected, "%s:2:", path);
  assert_fails(SPT_ERR_USAGE, spt_job_load(path, NULL, 0, &config), expected);
  assert_int_equal(unlink(path), 0);
  assert_int_equal(rmdir(folder), 0);
}

static void write_job(const char *name, const char *text) {
  FILE *file = fopen(temp_path(name), "w");
  assert_non_null(file);
  assert_true(fputs(text, file) >= 0 && fclose(file) == 0);
}

/* Steps that spend another job's FLOPs: 6·N·D on the same batch is the ratio of the counts. What is printed and compared is the steps. */
static void matched_flops(void **state) {
  (void)state;
  const char *const low = "[model]\nhidden = 96\nlayers = 2\nheads = 4\n[schedule]\nmatch_flops = \"dense.toml\"\n";
  write_job("dense.toml", "[model]\nhidden = 96\nlayers = 2\nheads = 4\nparameterization = \"dense\"\n[schedule]\nsteps = 1000\n");
  write_job("low.toml", low);
  assert_ok(spt_job_load(temp_path("low.toml"), NULL, 0, &config));
  spt_params *dense, *factors;
  assert_ok(spt_params_open(&config.model, &factors));
  assert_ok(spt_job_load(temp_path("dense.toml"), NULL, 0, &other));
  assert_ok(spt_params_open(&other.model, &dense));
  const double ratio = (double)dense->count / (double)factors->count;
  assert_int_equal(config.schedule.matched[SPT_MATCH_NOMINAL], (int64_t)(1000 * ratio)); // no preset's shape: exact, truncated
  assert_int_equal(config.schedule.matched[SPT_MATCH_SIX_ND], (int64_t)(1000 * ratio + 0.5));
  assert_int_equal(config.schedule.steps, config.schedule.matched[SPT_MATCH_NOMINAL]);
  spt_params_close(&dense);
  spt_params_close(&factors);

  char *text = spt_job_print(&config);
  assert_non_null(text);
  assert_null(strstr(text, "match_"));
  assert_int_equal(unlink(temp_path("dense.toml")), 0);
  assert_ok(spt_job_parse(text, "kept.toml", temp_folder, NULL, 0, &other));
  free(text);
  spt_job_compare(&config, &other, refuse_change, NULL);
  assert_fails(SPT_ERR_USAGE, spt_job_load(temp_path("low.toml"), NULL, 0, &config), "low.toml:6:", "[schedule] match_flops", "dense.toml",
               "No such file");
  const char *const sets[] = {"schedule.steps=7"}; // replaces it
  assert_ok(spt_job_load(temp_path("low.toml"), sets, 1, &config));
  assert_int_equal(config.schedule.steps, 7);

  write_job("dense.toml", low);
  assert_fails(SPT_ERR_USAGE, spt_job_load(temp_path("low.toml"), NULL, 0, &config), "dense.toml", "leads back to it");
  assert_fails(SPT_ERR_USAGE, spt_job_load(temp_path("dense.toml"), NULL, 0, &config), "leads back to it");
  write_job("dense.toml", "[model]\nhidden = 96\nlayers = 2\nheads = x\n");
  assert_fails(SPT_ERR_USAGE, spt_job_load(temp_path("low.toml"), NULL, 0, &config), "low.toml:6:", "dense.toml:4:");
  write_job("dense.toml", "[model]\nhidden = 48\nlayers = 1\nheads = 4\nvocab = 16\n[batch]\nsequences = 1\n[schedule]\nsteps = 1\n");
  assert_fails(SPT_ERR_USAGE, spt_job_load(temp_path("low.toml"), NULL, 0, &config), "fewer than one step");
  write_job("both.toml", "[model]\nhidden = 48\nlayers = 1\nheads = 4\nvocab = 16\n[batch]\nsequences = 1\n[schedule]\nsteps = 2\nmatch_flops = \"dense.toml\"\n");
  assert_fails(SPT_ERR_USAGE, spt_job_load(temp_path("both.toml"), NULL, 0, &config), "gives 1 steps", "leave [schedule] steps and tokens out");
}

/* The job files of configs/ load, and example.toml shows every key at its default. */
static void shipped_job_files(void **state) {
  (void)state;
  const char *root = getenv("SPT_SOURCE_ROOT");
  char pattern[SPT_PATH_MAX], path[SPT_PATH_MAX];
  snprintf(pattern, sizeof pattern, "%s/configs/*.toml", root ? root : ".");
  glob_t found;
  assert_int_equal(glob(pattern, 0, NULL, &found), 0);
  assert_true(found.gl_pathc >= 3);
  for (size_t i = 0; i < found.gl_pathc; i++) assert_ok(spt_job_load(found.gl_pathv[i], NULL, 0, &config));
  globfree(&found);

  snprintf(path, sizeof path, "%s/configs/example.toml", root ? root : ".");
  assert_ok(spt_job_load(path, NULL, 0, &config));
  char folder[SPT_PATH_MAX];
  snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(path, '/') - path), path);
  assert_ok(spt_job_parse("model.preset = 'S'\nschedule.steps = 1786\n"
                          "data.train = 'tokens/train-*.h5'\ndata.validation = 'tokens/validation-*.h5'\n",
                          "example.toml", folder, NULL, 0, &other));
  char *shown = spt_job_print(&config), *defaults = spt_job_print(&other);
  assert_string_equal(shown, defaults);
  free(shown);
  free(defaults);

  static char text[16384];
  FILE *file = fopen(path, "r");
  assert_non_null(file);
  text[fread(text, 1, sizeof text - 1, file)] = '\0';
  assert_int_equal(fclose(file), 0);
  int count;
  const spt_key *keys = spt_config_keys(&count);
  for (int i = 0; i < count; i++) {
    char table[64], line[64], alternative[70];
    snprintf(table, sizeof table, "\n[%s]", keys[i].table);
    snprintf(line, sizeof line, "\n%s = ", keys[i].key);
    snprintf(alternative, sizeof alternative, "\n# %s = ", keys[i].key);
    const char *from = strstr(text, table);
    assert_non_null(from);
    const char *next = strstr(from + 1, "\n["), *at = strstr(from, line);
    if (!at || (next && at > next)) at = strstr(from, alternative);
    if (!at || (next && at > next)) fail_msg("example.toml does not show [%s] %s", keys[i].table, keys[i].key);
  }
}

/* Text cut and spoilt at random never crashes, and fails with one line or is read. */
static void damaged_text(void **state) {
  (void)state;
  char *text = NULL;
  uint64_t draw = 2000000;
  random_config(&config, &draw);
  text = spt_job_print(&config);
  assert_non_null(text);
  const size_t length = strlen(text);
  char *copy = malloc(length + 1);
  assert_non_null(copy);
  int failed = 0;
  for (int round = 0; round < 500; round++) {
    memcpy(copy, text, length + 1);
    for (int i = 0; i < 1 + round % 3; i++) {
      const uint64_t bits = spt_random_bits(seed, 21, ++draw);
      copy[bits % length] = (char)(1 + (bits >> 32) % 255);
    }
    if (round % 5 == 0) copy[spt_random_bits(seed, 21, ++draw) % length] = '\0';
    spt_error_clear();
    const spt_status status = spt_job_parse(copy, "damaged.toml", "/", NULL, 0, &other);
    assert_true(status == SPT_OK || status == SPT_ERR_USAGE);
    if (status == SPT_OK) continue;
    failed++;
    assert_non_null(strstr(spt_error_message(), "damaged.toml"));
    for (const char *c = spt_error_message(); *c; c++) assert_true((unsigned char)*c >= 0x20);
  }
  assert_true(failed > 50);
  free(copy);
  free(text);
}

int main(void) {
  seed = unit_test_seed("test_job_toml");
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(minimal_job),
      cmocka_unit_test(paths_are_the_job_files),
      cmocka_unit_test(presets_and_overrides),
      cmocka_unit_test(dependent_defaults),
      cmocka_unit_test(sets_are_toml_or_words),
      cmocka_unit_test(errors_name_place_and_remedy),
      cmocka_unit_test(errors_of_sets),
      cmocka_unit_test(limits_of_globs),
      cmocka_unit_test(printed_job_reads_back),
      cmocka_unit_test(compare_names_each_change),
      cmocka_unit_test(files),
      cmocka_unit_test_setup_teardown(matched_flops, temp_folder_make, temp_folder_remove),
      cmocka_unit_test(shipped_job_files),
      cmocka_unit_test(damaged_text),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
