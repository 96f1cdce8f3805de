#include "config.h"

#include "config_keys.h"
#include "decimal.h"
#include "newton_schulz.h"

#include <stdio.h>
#include <string.h>

/* Tokens of a pass when batch.micro is chosen: at least this, measured (tiny and S, 512 to 8192 tokens, two threads) to
 * be about as fast as more, while activations grow with it; and so many a thread that all have blocks to work on. */
#define MICRO_TOKENS 2048
#define MICRO_TOKENS_PER_THREAD 512

static const spt_preset presets[] = {
    {"60M", NULL, 512, 8, 8},     {"92M", NULL, 640, 10, 10},   {"134M", "S", 768, 12, 12},
    {"150M", NULL, 768, 14, 12},  {"220M", NULL, 896, 16, 14},  {"325M", NULL, 1024, 20, 16},
    {"500M", "M", 1280, 20, 20},  {"780M", "L", 1536, 24, 24},  {"835M", NULL, 1536, 26, 24},
    {"1.4B", NULL, 2048, 24, 16}, {"1.7B", NULL, 2048, 30, 16}, {"2.7B", NULL, 2560, 32, 20},
};
#define PRESET_COUNT ((int)(sizeof presets / sizeof presets[0]))

const spt_preset *spt_presets(int *count_p) {
  *count_p = PRESET_COUNT;
  return presets;
}

const double spt_quintic[3] = {3.4445, -4.7750, 2.0315};

static void list_presets(char *text, size_t size) {
  size_t used = 0;
  for (int i = 0; i < PRESET_COUNT && used < size; i++) {
    const char *alias = presets[i].alias;
    used += (size_t)snprintf(text + used, size - used, "%s%s%s%s", i ? ", " : "", presets[i].name, alias ? " or " : "",
                             alias ? alias : "");
  }
}

spt_status spt_config_apply_preset(const char *name, spt_model_config *model) {
  for (int i = 0; i < PRESET_COUNT; i++) {
    const spt_preset *preset = &presets[i];
    if (strcmp(name, preset->name) != 0 && (!preset->alias || strcmp(name, preset->alias) != 0)) continue;
    snprintf(model->preset, sizeof model->preset, "%s", name);
    model->hidden = preset->hidden;
    model->layers = preset->layers;
    model->heads = preset->heads;
    model->vocab = 32000;
    model->seq_len = 2048;
    return SPT_OK;
  }
  char known[256];
  list_presets(known, sizeof known);
  return SPT_FAIL(SPT_ERR_USAGE, "[model] preset = \"%s\": no such preset; known are %s", name, known);
}

void spt_config_defaults(spt_config *config) {
  memset(config, 0, sizeof *config); // padding too: equal configurations are equal bytes
  snprintf(config->run.name, sizeof config->run.name, "run");
  snprintf(config->run.output, sizeof config->run.output, "runs/run");
  config->model.vocab = 32000;
  config->model.seq_len = 2048;
  config->model.rope_theta = 10000;
  config->model.norm_eps = 1e-5;
  config->model.rank_ratio = 0.25;
  config->optimizer.lr = 0.01;
  config->optimizer.momentum = 0.95;
  config->optimizer.weight_decay = 0.1; // ours: the paper sweeps 1e-1 … 1e-3 and prints no choice
  config->optimizer.newton_schulz_steps = 5;
  memcpy(config->optimizer.newton_schulz_coefficients, spt_quintic, sizeof spt_quintic);
  config->optimizer.power_steps = 1;
  config->optimizer.adamw.lr = -1;
  config->optimizer.adamw.beta1 = 0.9;
  config->optimizer.adamw.beta2 = 0.95;
  config->optimizer.adamw.eps = 1e-8;
  config->guidance.fraction = 0.5;
  config->schedule.warmup = 0.05;
  config->batch.sequences = 512;
  config->validation.every = 500;
  config->validation.tokens = -1;
  config->checkpoint.every = 1000;
  config->checkpoint.every_seconds = 1800;
  config->checkpoint.keep = 3;
  config->dist.bucket_mib = 25;
  config->dist.overlap = true;
  config->dist.timeout_seconds = 600;
  config->dist.startup_timeout_seconds = 3600;
  config->dist.save_timeout_seconds = 3600;
  config->dist.validation_timeout_seconds = 600;
  config->metrics.every = 1;
  config->metrics.spectral_every = 200;
  config->metrics.spike_z = 7;
}

int64_t spt_factor_rank(double rank_ratio, int64_t m, int64_t n) {
  const int64_t wanted = spt_decimal_product(rank_ratio, n, false), limit = m < n ? m : n;
  const int64_t r = wanted < limit ? wanted : limit;
  return r > 1 ? r : 1;
}

/* Fills in what was left out of the model. */
static spt_status complete_model(spt_model_config *model) {
  if (model->hidden == 0 || model->layers == 0 || model->heads == 0) {
    const char *missing = model->hidden == 0 ? "hidden" : model->layers == 0 ? "layers" : "heads";
    char known[256];
    list_presets(known, sizeof known);
    return SPT_FAIL(SPT_ERR_USAGE, "[model] %s: is missing; give hidden, layers and heads, or preset, one of %s",
                    missing, known);
  }
  if (model->kv_heads == 0) model->kv_heads = model->heads;
  if (model->ffn == 0 && model->hidden > 0 && model->hidden <= 65536) // 8/3·hidden, up to a multiple of 256
    model->ffn = (8 * model->hidden + 767) / 768 * 256;
  return SPT_OK;
}

static spt_status check_model(const spt_model_config *model) {
  const long long hidden = model->hidden, heads = model->heads, kv_heads = model->kv_heads;
  if (hidden % heads != 0) {
    const long long below = hidden / heads * heads, above = below + heads;
    return SPT_FAIL(SPT_ERR_USAGE, "[model] hidden = %lld: must be a multiple of heads (%lld), e.g. %lld", hidden,
                    heads, below ? below : above);
  }
  if (hidden / heads % 2 != 0)
    return SPT_FAIL(SPT_ERR_USAGE,
                    "[model] heads = %lld: the width of a head, hidden / heads = %lld, must be even (rotary embedding)",
                    heads, hidden / heads);
  if (heads % kv_heads != 0)
    return SPT_FAIL(SPT_ERR_USAGE, "[model] kv_heads = %lld: must divide heads (%lld)", kv_heads, heads);
  return SPT_OK;
}

/* Steps from tokens, and the run's total within int64. */
static spt_status complete_schedule(spt_config *config) {
  spt_schedule_config *schedule = &config->schedule;
  const int64_t step_tokens = config->batch.sequences * config->model.seq_len; // at most 2^44
  if (schedule->tokens > 0) {
    const int64_t steps = (schedule->tokens + step_tokens - 1) / step_tokens;
    if (schedule->steps != 0 && schedule->steps != steps)
      return SPT_FAIL(
          SPT_ERR_USAGE,
          "[schedule] steps = %lld: tokens = %lld already gives %lld steps of %lld tokens; keep one of the two",
          (long long)schedule->steps, (long long)schedule->tokens, (long long)steps, (long long)step_tokens);
    schedule->steps = steps;
  }
  if (schedule->steps == 0)
    return SPT_FAIL(SPT_ERR_USAGE, "[schedule] steps: is missing; give steps, tokens (%lld make a step) or match_flops",
                    (long long)step_tokens);
  if (schedule->steps > 0 && schedule->steps > INT64_MAX / 4 / step_tokens)
    return SPT_FAIL(SPT_ERR_USAGE, "[schedule] steps = %lld: at %lld tokens a step the run's tokens exceed 2^61",
                    (long long)schedule->steps, (long long)step_tokens);
  return SPT_OK;
}

/* Every key but one against its table entry. */
static spt_status check_keys(const spt_config *config, const char *except) {
  int count;
  const spt_key *keys = spt_config_keys(&count);
  for (int i = 0; i < count; i++) {
    if (except && !strcmp(keys[i].table, "schedule") && !strcmp(keys[i].key, except)) continue;
    SPT_TRY(spt_key_check(&keys[i], config));
  }
  return SPT_OK;
}

spt_status spt_config_complete(spt_config *config) {
  if (config->model.preset[0]) {
    spt_model_config scratch;
    SPT_TRY(spt_config_apply_preset(config->model.preset, &scratch)); // only whether it is known
  }
  SPT_TRY(complete_model(&config->model));
  SPT_TRY(check_keys(config, "steps")); // the ranges first: what follows multiplies and divides
  SPT_TRY(check_model(&config->model));
  SPT_TRY(complete_schedule(config));
  SPT_TRY(check_keys(config, NULL));
  if (config->guidance.method != SPT_GUIDANCE_NONE && config->model.parameterization == SPT_DENSE)
    return SPT_FAIL(SPT_ERR_USAGE, "[guidance] method = \"self-guided\": guides factor pairs, of which a dense model has none; set "
                                   "model.parameterization to \"low-rank\" or \"low-rank-ffn\", or guidance.method to \"none\"");
  config->model.guided = config->guidance.method != SPT_GUIDANCE_NONE;
  if (config->optimizer.newton_schulz_variant != SPT_NEWTON_SCHULZ_QUINTIC &&
      memcmp(config->optimizer.newton_schulz_coefficients, spt_quintic, sizeof spt_quintic) != 0)
    return SPT_FAIL(SPT_ERR_USAGE, "[optimizer] newton_schulz_coefficients: are the quintic's; leave them out with newton_schulz_variant = "
                                   "\"polar-express\", which has its own");
  SPT_TRY(spt_newton_schulz_check(&config->optimizer));
  if (!config->run.name[0] || strchr(config->run.name, '/'))
    return SPT_FAIL(SPT_ERR_USAGE, "[run] name = \"%s\": must be a plain name, without slashes", config->run.name);
  if (!config->run.output[0]) return SPT_FAIL(SPT_ERR_USAGE, "[run] output = \"\": must not be empty");
  return SPT_OK;
}

int64_t spt_config_validation_tokens(const spt_config *config) {
  enum { LEAST = 32768, MOST = 100 * 1000 * 1000, SHARE = 80 };
  const int64_t every = config->validation.every, steps = config->schedule.steps;
  if (config->validation.tokens >= 0) return config->validation.tokens;
  if (every == 0) return MOST;
  const double step = (double)config->batch.sequences * (double)config->model.seq_len;
  const double tokens = (double)(steps > 0 && steps < every ? steps : every) * step / SHARE;
  return tokens < LEAST ? LEAST : tokens > MOST ? MOST : (int64_t)tokens;
}

/* The nearest divisors of n on both sides of d (0 when there is none above). */
static void nearest_divisors(int64_t n, int64_t d, int64_t *below_p, int64_t *above_p) {
  *below_p = 1;
  *above_p = 0;
  for (int64_t i = 1; i * i <= n; i++) {
    if (n % i != 0) continue;
    const int64_t pair[2] = {i, n / i};
    for (int side = 0; side < 2; side++) {
      if (pair[side] <= d && pair[side] > *below_p) *below_p = pair[side];
      if (pair[side] > d && (*above_p == 0 || pair[side] < *above_p)) *above_p = pair[side];
    }
  }
}

/* "6 or 8", or only one of the two when the other is 0. */
static const char *either(int64_t first, int64_t second, char text[64]) {
  if (first && second) {
    snprintf(text, 64, "%lld or %lld", (long long)first, (long long)second);
  } else {
    snprintf(text, 64, "%lld", (long long)(first ? first : second));
  }
  return text;
}

int64_t spt_config_choose_micro(const spt_config *config, int size, int threads) {
  const bool fixed = config->dist.reduction == SPT_REDUCTION_TREE;
  const int64_t wanted = fixed ? MICRO_TOKENS : (int64_t)threads * MICRO_TOKENS_PER_THREAD;
  const int64_t most = (wanted > MICRO_TOKENS ? wanted : MICRO_TOKENS) / config->model.seq_len;
  int64_t below, above;
  nearest_divisors(config->batch.sequences / (fixed ? 1 : size), most < 1 ? 1 : most, &below, &above);
  return below;
}

spt_status spt_config_check_ranks(spt_config *config, int size) {
  const int64_t sequences = config->batch.sequences;
  int64_t below, above;
  char batches[64], ranks[64];
  if (size < 1) return SPT_FAIL(SPT_ERR_USAGE, "%d ranks: must be at least 1", size);
  if (sequences % size != 0) {
    nearest_divisors(sequences, size, &below, &above);
    return SPT_FAIL(SPT_ERR_USAGE,
                    "[batch] sequences = %lld: does not divide over %d ranks; set sequences to %s, or start %s ranks",
                    (long long)sequences, size,
                    either(sequences / size * size, sequences / size * size + size, batches),
                    either(below, above, ranks));
  }
  const int64_t share = sequences / size;
  int64_t *micro = &config->batch.micro;
  const bool chosen = *micro == 0;
  if (chosen) *micro = spt_config_choose_micro(config, size, 1);
  if (chosen && share % *micro != 0) { // reduction = "tree" alone
    nearest_divisors(sequences / *micro, size, &below, &above);
    return SPT_FAIL(SPT_ERR_USAGE,
                    "[dist] reduction = \"tree\": %d ranks do not divide the %lld micro-batches of %lld sequences chosen "
                    "for it; set batch.micro to a divisor of %lld (the result depends on it), or start %s ranks",
                    size, (long long)(sequences / *micro), (long long)*micro, (long long)share,
                    either(below, above, ranks));
  }
  if (share % *micro != 0) {
    nearest_divisors(share, *micro, &below, &above);
    return SPT_FAIL(SPT_ERR_USAGE, "[batch] micro = %lld: must divide a rank's %lld sequences; set it to %s",
                    (long long)*micro, (long long)share, either(below, above, batches));
  }
  return SPT_OK;
}
