#include "config_keys.h"

#include "decimal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY(type, table, key, values, fixed)                                                                           \
  { #table, #key, type, offsetof(spt_config, table.key), sizeof(((spt_config *)0)->table.key), values, fixed }
#define SAFE false
#define FIXED true

static const spt_key keys[] = {
    KEY(SPT_KEY_TEXT, run, name, NULL, SAFE),
    KEY(SPT_KEY_PATH, run, output, NULL, SAFE),
    KEY(SPT_KEY_SEED, run, seed, NULL, FIXED),

    KEY(SPT_KEY_TEXT, model, preset, NULL, FIXED),
    KEY(SPT_KEY_INT, model, hidden, "[1, 65536]", FIXED),
    KEY(SPT_KEY_INT, model, layers, "[1, 1024]", FIXED),
    KEY(SPT_KEY_INT, model, heads, "[1, 4096]", FIXED),
    KEY(SPT_KEY_INT, model, kv_heads, "[1, 4096]", FIXED),
    KEY(SPT_KEY_INT, model, ffn, "[1, 1048576]", FIXED),
    KEY(SPT_KEY_INT, model, vocab, "[2, 2147483647]", FIXED),
    KEY(SPT_KEY_INT, model, seq_len, "[1, 1048576]", FIXED),
    KEY(SPT_KEY_REAL, model, rope_theta, "[1, 1e12]", FIXED),
    KEY(SPT_KEY_REAL, model, norm_eps, "(0, 1]", FIXED),
    KEY(SPT_KEY_ENUM, model, parameterization, "low-rank|low-rank-ffn|dense", FIXED),
    KEY(SPT_KEY_REAL, model, rank_ratio, "(0, 1]", FIXED),
    KEY(SPT_KEY_BOOL, model, tie_embeddings, NULL, FIXED),
    KEY(SPT_KEY_BOOL, model, recompute, NULL, SAFE),

    KEY(SPT_KEY_ENUM, optimizer, method, "spectron|muon|renorm|sgd|adamw", FIXED),
    KEY(SPT_KEY_REAL, optimizer, lr, "(0, 1000]", FIXED),
    KEY(SPT_KEY_REAL, optimizer, momentum, "[0, 1)", FIXED),
    KEY(SPT_KEY_REAL, optimizer, weight_decay, "[0, 100]", FIXED),
    KEY(SPT_KEY_REAL, optimizer, grad_clip, "[0, 1e9]", FIXED),
    KEY(SPT_KEY_INT, optimizer, newton_schulz_steps, "[1, 100]", FIXED),
    KEY(SPT_KEY_ENUM, optimizer, newton_schulz_variant, "quintic|polar-express", FIXED),
    KEY(SPT_KEY_REALS, optimizer, newton_schulz_coefficients, "[-100, 100]", FIXED),
    KEY(SPT_KEY_INT, optimizer, power_steps, "[1, 1000]", FIXED),

    KEY(SPT_KEY_REAL, optimizer.adamw, lr, "[-1, 1000]", FIXED),
    KEY(SPT_KEY_REAL, optimizer.adamw, beta1, "[0, 1)", FIXED),
    KEY(SPT_KEY_REAL, optimizer.adamw, beta2, "[0, 1)", FIXED),
    KEY(SPT_KEY_REAL, optimizer.adamw, eps, "(0, 1]", FIXED),

    KEY(SPT_KEY_ENUM, schedule, kind, "cosine|linear|constant", FIXED),
    KEY(SPT_KEY_INT, schedule, steps, "[1, 1e12]", SAFE),
    KEY(SPT_KEY_INT, schedule, tokens, "[0, 1e15]", SAFE),
    KEY(SPT_KEY_REAL, schedule, warmup, "[0, 1]", FIXED),
    KEY(SPT_KEY_REAL, schedule, final, "[0, 1]", SAFE),
    KEY(SPT_KEY_PATH, schedule, match_flops, NULL, SAFE),
    KEY(SPT_KEY_ENUM, schedule, match_count, "nominal|6nd|exact", SAFE),

    KEY(SPT_KEY_INT, batch, sequences, "[1, 16777216]", FIXED),
    KEY(SPT_KEY_INT, batch, micro, "[0, 16777216]", SAFE),

    KEY(SPT_KEY_GLOBS, data, train, NULL, SAFE),
    KEY(SPT_KEY_GLOBS, data, validation, NULL, SAFE),
    KEY(SPT_KEY_SEED, data, seed, NULL, FIXED),

    KEY(SPT_KEY_INT, validation, every, "[0, 1e12]", SAFE),
    KEY(SPT_KEY_INT, validation, tokens, "[-1, 1e15]", SAFE),

    KEY(SPT_KEY_INT, checkpoint, every, "[0, 1e12]", SAFE),
    KEY(SPT_KEY_REAL, checkpoint, every_seconds, "[0, 1e9]", SAFE),
    KEY(SPT_KEY_INT, checkpoint, keep, "[1, 1000000]", SAFE),
    KEY(SPT_KEY_BOOL, checkpoint, resume, NULL, SAFE),

    KEY(SPT_KEY_ENUM, dist, reduction, "all-reduce|reduce-scatter|tree", SAFE),
    KEY(SPT_KEY_INT, dist, bucket_mib, "[1, 65536]", SAFE),
    KEY(SPT_KEY_BOOL, dist, overlap, NULL, SAFE),
    KEY(SPT_KEY_REAL, dist, timeout_seconds, "[0, 1e9]", SAFE),
    KEY(SPT_KEY_REAL, dist, startup_timeout_seconds, "[0, 1e9]", SAFE),
    KEY(SPT_KEY_REAL, dist, save_timeout_seconds, "[0, 1e9]", SAFE),
    KEY(SPT_KEY_REAL, dist, validation_timeout_seconds, "[0, 1e9]", SAFE),
    KEY(SPT_KEY_INT, dist, audit_every, "[0, 1e12]", SAFE),

    KEY(SPT_KEY_INT, metrics, every, "[1, 1e12]", SAFE),
    KEY(SPT_KEY_INT, metrics, spectral_every, "[0, 1e12]", SAFE),
    KEY(SPT_KEY_REAL, metrics, spike_z, "[0, 1e9]", SAFE),

    KEY(SPT_KEY_ENUM, device, backend, "auto|cpu|cuda", SAFE),
    KEY(SPT_KEY_ENUM, device, precision, "auto|bf16|fp32|tf32", SAFE),
    KEY(SPT_KEY_INT, device, threads, "[0, 4096]", SAFE),
};
_Static_assert(sizeof(spt_method) == sizeof(int) && sizeof(spt_match_count) == sizeof(int) && sizeof(spt_newton_schulz_variant) == sizeof(int), "enum keys are read and written as int");

const spt_key *spt_config_keys(int *count_p) {
  *count_p = (int)(sizeof keys / sizeof keys[0]);
  return keys;
}

const spt_key *spt_config_find_key(const char *name) {
  const char *dot = strrchr(name, '.');
  if (!dot) return NULL;
  const size_t length = (size_t)(dot - name);
  for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
    if (strlen(keys[i].table) == length && !strncmp(keys[i].table, name, length) && !strcmp(keys[i].key, dot + 1))
      return &keys[i];
  }
  return NULL;
}

int spt_key_enum_value(const spt_key *key, const char *name) {
  char candidate[32];
  for (int value = 0;; value++) {
    spt_key_enum_name(key, value, candidate);
    if (!candidate[0]) return -1;
    if (strcmp(candidate, name) == 0) return value;
  }
}

void spt_key_enum_name(const spt_key *key, int value, char text[32]) {
  const char *name = key->values;
  for (int i = 0; name && i < value; i++) {
    name = strchr(name, '|');
    if (name) name++;
  }
  text[0] = '\0';
  if (name && value >= 0) snprintf(text, 32, "%.*s", (int)strcspn(name, "|"), name);
}

/* True when value lies in the interval, e.g. "(0, 1]"; false for NaN. */
static bool in_interval(const char *interval, double value) {
  char *end;
  const double low = strtod(interval + 1, &end), high = strtod(end + 1, &end);
  return (*interval == '(' ? value > low : value >= low) && (*end == ')' ? value < high : value <= high);
}

spt_status spt_key_check(const spt_key *key, const spt_config *config) {
  const void *place = (const char *)config + key->offset;
  char text[32];
  switch (key->type) {
  case SPT_KEY_INT: {
    const int64_t value = *(const int64_t *)place;
    if (in_interval(key->values, (double)value)) return SPT_OK;
    snprintf(text, sizeof text, "%lld", (long long)value);
    break;
  }
  case SPT_KEY_REAL: {
    const double value = *(const double *)place;
    if (in_interval(key->values, value)) return SPT_OK;
    spt_shortest_decimal(value, text);
    break;
  }
  case SPT_KEY_REALS: {
    size_t bad = 0;
    while (bad < key->size / sizeof(double) && in_interval(key->values, ((const double *)place)[bad])) bad++;
    if (bad == key->size / sizeof(double)) return SPT_OK;
    spt_shortest_decimal(((const double *)place)[bad], text);
    break;
  }
  case SPT_KEY_SEED: {
    const uint64_t value = *(const uint64_t *)place;
    if (value <= INT64_MAX) return SPT_OK;
    return SPT_FAIL(SPT_ERR_USAGE, "[%s] %s = %lld: must be in [0, 9223372036854775807]", key->table, key->key,
                    (long long)value);
  }
  case SPT_KEY_ENUM: {
    const int value = *(const int *)place;
    spt_key_enum_name(key, value, text);
    if (text[0]) return SPT_OK;
    snprintf(text, sizeof text, "%d", value);
    break;
  }
  default: return SPT_OK;
  }
  return SPT_FAIL(SPT_ERR_USAGE, "[%s] %s = %s: must be in %s", key->table, key->key, text, key->values);
}
