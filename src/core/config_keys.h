/* The table of the job file's keys: name, place in spt_config, type, allowed values and whether a resume may change it.
 * It drives reading, --set, checking, printing and comparing. */
#ifndef SPT_CONFIG_KEYS_H
#define SPT_CONFIG_KEYS_H

#include "config.h"

#include <stddef.h>

typedef enum {
  SPT_KEY_TEXT,  /* char[size] */
  SPT_KEY_PATH,  /* char[size], relative to the job file */
  SPT_KEY_GLOBS, /* spt_globs, relative to the job file */
  SPT_KEY_INT,   /* int64_t */
  SPT_KEY_SEED,  /* uint64_t below 2^63 (TOML's integers are signed) */
  SPT_KEY_REAL,  /* double */
  SPT_KEY_REALS, /* double[size / sizeof(double)], a list of so many numbers */
  SPT_KEY_BOOL,
  SPT_KEY_ENUM /* an enum of int's size; its names in `values` stand in the enum's order */
} spt_key_type;

typedef struct spt_key {
  const char *table, *key; /* "optimizer.adamw", "lr" */
  spt_key_type type;
  size_t offset, size;
  const char *values; /* numbers: an interval such as "(0, 1]"; enums: names, "spectron|muon"; else NULL */
  bool fixed;         /* a resume may not change it */
} spt_key;

/* All keys, table by table, in the order in which they are printed. */
const spt_key *spt_config_keys(int *count_p);
/* The key "table.key", NULL when there is none. */
const spt_key *spt_config_find_key(const char *name);
/* Number of an enum key's name, -1 when it is none of them; and the name of number `value` into text ("" when there is
 * none). */
int spt_key_enum_value(const spt_key *key, const char *name);
void spt_key_enum_name(const spt_key *key, int value, char text[32]);
/* Checks a number or enum against `values`. SPT_ERR_USAGE "[table] key = value: must be in …". */
spt_status spt_key_check(const spt_key *key, const spt_config *config);

#endif
