/* The models that tests/bench measures, and the pair groups of one of their layers. */
#ifndef SPT_BENCH_MODEL_H
#define SPT_BENCH_MODEL_H

#include "core/backend.h"
#include "core/params.h"

#include <string.h>

enum { BENCH_GROUPS = 4 }; /* of a layer: q|k|v, o, gate|up, down */

/* tiny: as configs/tiny.toml. s: the paper's S, 4 sequences a step. dense12: S with dense matrices and AdamW. False for
 * any other name. */
static inline bool bench_model_config(const char *shape, spt_config *config) {
  const bool tiny = strcmp(shape, "tiny") == 0, dense = strcmp(shape, "dense12") == 0;
  if (!tiny && !dense && strcmp(shape, "s") != 0) return false;
  spt_config_defaults(config);
  if (spt_config_apply_preset("S", &config->model) != SPT_OK) return false;
  config->batch.sequences = 4;
  if (tiny) {
    config->model.hidden = 256, config->model.layers = config->model.heads = 8;
    config->model.vocab = 4096, config->model.seq_len = 512;
    config->batch.sequences = 16;
  }
  if (dense) config->model.parameterization = SPT_DENSE, config->optimizer.method = SPT_METHOD_ADAMW;
  config->schedule.steps = 1;
  return spt_config_complete(config) == SPT_OK && spt_config_check_ranks(config, 1) == SPT_OK;
}

static inline spt_group_desc bench_group(const spt_model_config *model, int first, int count, spt_prologue prologue,
                                         spt_epilogue epilogue) {
  spt_group_desc desc = {.count = count, .prologue = prologue, .epilogue = epilogue, .head_dim = spt_head_dim(model)};
  desc.rope_theta = model->rope_theta, desc.norm_eps = model->norm_eps;
  for (int j = 0; j < count; j++) {
    const spt_matrix matrix = (spt_matrix)(first + j);
    spt_matrix_shape(model, matrix, &desc.out_dim[j], &desc.in_dim);
    if (spt_matrix_low_rank(model, matrix))
      desc.factor_rank[j] = spt_factor_rank(model->rank_ratio, desc.out_dim[j], desc.in_dim);
  }
  return desc;
}

static inline void bench_model_groups(const spt_model_config *model, spt_group_desc groups[BENCH_GROUPS]) {
  groups[0] = bench_group(model, SPT_Q, 3, SPT_PROLOGUE_RMSNORM, SPT_EPILOGUE_ROPE);
  groups[1] = bench_group(model, SPT_O, 1, SPT_PROLOGUE_NONE, SPT_EPILOGUE_RESIDUAL);
  groups[2] = bench_group(model, SPT_GATE, 2, SPT_PROLOGUE_RMSNORM, SPT_EPILOGUE_NONE);
  groups[3] = bench_group(model, SPT_DOWN, 1, SPT_PROLOGUE_SWIGLU, SPT_EPILOGUE_RESIDUAL);
}

#endif
