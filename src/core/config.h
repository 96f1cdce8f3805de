/* The configuration of a run, as plain data. Filled by src/io/job_toml from a job file; checked and completed here.
 * Names and defaults are the job file's; the paper's values are the defaults (arXiv:2602.12429, App. E). */
#ifndef SPT_CONFIG_H
#define SPT_CONFIG_H

#include "status.h"

#include <stdbool.h>
#include <stdint.h>

#define SPT_PATH_MAX 1024
#define SPT_GLOBS_MAX 64

typedef enum { SPT_LOW_RANK, SPT_LOW_RANK_FFN, SPT_DENSE } spt_parameterization;
typedef enum { SPT_METHOD_SPECTRON, SPT_METHOD_MUON, SPT_METHOD_RENORM, SPT_METHOD_SGD, SPT_METHOD_ADAMW } spt_method;
typedef enum { SPT_NEWTON_SCHULZ_QUINTIC, SPT_NEWTON_SCHULZ_POLAR_EXPRESS } spt_newton_schulz_variant;
typedef enum { SPT_SCHEDULE_COSINE, SPT_SCHEDULE_LINEAR, SPT_SCHEDULE_CONSTANT } spt_schedule_kind;
typedef enum { SPT_MATCH_NOMINAL, SPT_MATCH_SIX_ND, SPT_MATCH_EXACT } spt_match_count;
typedef enum { SPT_REDUCTION_ALL_REDUCE, SPT_REDUCTION_REDUCE_SCATTER, SPT_REDUCTION_TREE } spt_reduction;
typedef enum { SPT_PRECISION_AUTO, SPT_PRECISION_BF16, SPT_PRECISION_FP32, SPT_PRECISION_TF32 } spt_precision;
typedef enum { SPT_BACKEND_AUTO, SPT_BACKEND_CPU, SPT_BACKEND_CUDA } spt_backend_kind;

typedef struct spt_model_config {
  char preset[16]; /* "" or the preset's name; explicit keys override the preset's */
  int64_t hidden, layers, heads, kv_heads, ffn, vocab, seq_len;
  double rope_theta, norm_eps;
  spt_parameterization parameterization;
  double rank_ratio; /* taken as the exact decimal that was written, see spt_factor_rank */
  bool tie_embeddings;
  bool recompute; /* keep only each layer's input for backward and run its forward again */
} spt_model_config;

typedef struct spt_optimizer_config {
  spt_method method;
  double lr, momentum, weight_decay, grad_clip; /* grad_clip: global L2 norm, 0 = off */
  int64_t newton_schulz_steps, power_steps;
  spt_newton_schulz_variant newton_schulz_variant;
  double newton_schulz_coefficients[3]; /* a, b, c of the quintic */
  struct {
    double lr; /* < 0: the schedule's eta_t; else scaled like it (lr · schedule factor) */
    double beta1, beta2, eps;
  } adamw; /* for all that is no factor */
} spt_optimizer_config;

typedef struct spt_schedule_config {
  spt_schedule_kind kind;
  int64_t steps;  /* > 0 after completion */
  int64_t tokens; /* alternative to steps: rounded up to whole steps; 0 = not given */
  double warmup;  /* fraction of the steps */
  double final;   /* last factor of the peak lr */
  char match_flops[SPT_PATH_MAX]; /* another job: as many steps as spend its FLOPs; "": not given. steps has them once the job is loaded */
  spt_match_count match_count;    /* which FLOPs (flops_match.h) */
  int64_t matched[3];             /* no key: the steps by each way of counting */
} spt_schedule_config;

typedef struct spt_globs {
  int count;
  char pattern[SPT_GLOBS_MAX][SPT_PATH_MAX]; /* absolute, or relative to the working directory, after loading */
} spt_globs;

typedef struct spt_config {
  struct {
    char name[128];
    char output[SPT_PATH_MAX];
    uint64_t seed;
  } run;
  spt_model_config model;
  spt_optimizer_config optimizer;
  spt_schedule_config schedule;
  struct {
    int64_t sequences; /* global batch */
    int64_t micro;     /* sequences per rank and pass; 0 = chosen */
  } batch;
  struct {
    spt_globs train, validation;
    uint64_t seed;
  } data;
  struct {
    int64_t every;  /* steps; 0 = only at the end */
    int64_t tokens; /* 0 = all of the validation set, -1 = chosen (spt_config_validation_tokens) */
  } validation;
  struct {
    int64_t every;        /* steps; 0 = only at the end */
    double every_seconds; /* 0 = off */
    int64_t keep;         /* newest files kept, >= 1 */
    bool resume;          /* as if --resume were given */
  } checkpoint;
  struct {
    spt_reduction reduction; /* TREE: bit-identical for any number of ranks that divides sequences/micro */
    int64_t bucket_mib;
    bool overlap;
    /* Without progress, or without a sign of life, the job is ended; 0 = never. */
    double timeout_seconds, startup_timeout_seconds, save_timeout_seconds, validation_timeout_seconds;
    int64_t audit_every; /* steps; 0 = never */
  } dist;
  struct {
    int64_t every;          /* steps between metric records, >= 1 */
    int64_t spectral_every; /* steps between telemetries of the matrices; 0 = never */
    double spike_z;         /* a loss with this z-score or a larger one is a spike (spikes.h); 0 = none is */
  } metrics;
  struct {
    spt_backend_kind backend;
    spt_precision precision;
    int64_t threads; /* 0 = allowed CPUs over local ranks */
  } device;
} spt_config;

/* Newton–Schulz's usual a, b, c (arXiv:2602.12429, Alg. 2; Jordan et al. 2024). */
extern const double spt_quintic[3];
/* All keys at their defaults (no preset chosen, no data). Never fails. */
void spt_config_defaults(spt_config *config);

/* A row of the design's table of models ("S", "M", "L" are the names of three of them). */
typedef struct spt_preset {
  const char *name, *alias; /* alias may be NULL */
  int64_t hidden, layers, heads;
} spt_preset;
/* The presets in the table's order; *count_p receives their number (12). */
const spt_preset *spt_presets(int *count_p);
/* Sets hidden, layers, heads of the preset `name` (e.g. "60M", "S"), vocab 32000 and seq_len 2048.
 * SPT_ERR_USAGE names the known presets. */
spt_status spt_config_apply_preset(const char *name, spt_model_config *model);

/* Derives what was left out (kv_heads = heads, ffn = 8/3·hidden rounded up to a multiple of 256, steps from tokens) and
 * checks every value that needs no file and no rank count. SPT_ERR_USAGE words the key, the value and the remedy. */
spt_status spt_config_complete(spt_config *config);
/* Checks that `size` ranks divide the batch, with reduction = "tree" its micro-batches, and chooses batch.micro when it is 0 (spt_config_choose_micro). SPT_ERR_USAGE names the nearest batch sizes or rank counts that do. */
spt_status spt_config_check_ranks(spt_config *config, int size);
/* The micro-batch that is chosen where none is given: the largest divisor of a rank's share of the batch, which `size`
 * divides, with at most 2048 tokens, or 512 a thread where that is more. With reduction = "tree", whose sums depend on
 * it, it must not depend on the ranks and threads: the largest divisor of the batch with at most 2048 tokens. */
int64_t spt_config_choose_micro(const spt_config *config, int size, int threads);

/* Tokens of one validation, at most; 0 = all of the set. Where none are given: an eightieth of the tokens that are
 * trained between two validations, which costs 0.4 % of the training (a forward pass is a third of a training pass), at
 * least 32,768, which costs more where steps are small, and at most 100 M, which is what the paper validates on; 100 M
 * where validation comes at the end only. */
int64_t spt_config_validation_tokens(const spt_config *config);

/* r = max(1, min(floor(ratio·n), m, n)) with n the input width and the ratio an exact decimal (design, "The model"). */
int64_t spt_factor_rank(double rank_ratio, int64_t m, int64_t n);
/* Width of one attention head. */
static inline int64_t spt_head_dim(const spt_model_config *model) {
  return model->hidden / model->heads;
}

#endif
