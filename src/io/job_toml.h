/* Reads a job file (TOML, libtomlplusplus) into a spt_config. One table of keys drives reading, --set, printing and
 * comparing. */
#ifndef SPT_JOB_TOML_H
#define SPT_JOB_TOML_H

#include "core/config.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Loads `path` over the defaults, applies `sets` ("table.key=value", TOML values; bare words are taken as strings),
 * resolves relative paths against the job file's folder, completes and checks (spt_config_complete). SPT_ERR_USAGE:
 * "file:line:column: …"; an unknown key names the nearest known one. What --set gives replaces the file's other way of
 * saying it: a preset the file's shape (hidden, layers, heads, kv_heads, ffn); steps, tokens and match_flops each other. match_flops loads
 * the other job too, by itself (no --set), and the steps that follow are the configuration's; printed, they stand for it. Defaults that depend on other keys: run.name is the file's name without .toml, run.output runs/<name> beside
 * the file, data.seed is run.seed, and a dense model's method is adamw unless one is named. Paths come out absolute.
 * *config_p is written only after success. */
spt_status spt_job_load(const char *path, const char *const *sets, int set_count, spt_config *config_p);
/* The same from text; `origin` names it in errors, `folder` resolves relative paths. */
spt_status spt_job_parse(const char *text, const char *origin, const char *folder, const char *const *sets,
                         int set_count, spt_config *config_p);
/* The complete configuration as a job file, every key in table order; malloc'ed, the caller frees. Parsing it gives the
 * same configuration. */
char *spt_job_print(const spt_config *config);

typedef enum { SPT_JOB_SAFE, SPT_JOB_FIXED } spt_job_change;
/* Calls `visit` for each key that differs (key "table.key", both values as TOML text), SAFE when a resume may change it
 * (steps, schedule end, run name and output, validation, checkpoint, metrics, dist, device, batch.micro, data file
 * locations), FIXED when not. */
typedef void (*spt_job_visit)(void *context, const char *key, const char *before, const char *after,
                              spt_job_change change);
void spt_job_compare(const spt_config *before, const spt_config *after, spt_job_visit visit, void *context);

#ifdef __cplusplus
}
#endif
#endif
