/* What a job costs on a number of ranks, counted without training it: the trainer's dry run and `spectron rehearse`
 * print from here. Local. */
#ifndef SPT_JOB_COST_H
#define SPT_JOB_COST_H

#include "core/flops.h"
#include "core/model.h"
#include "dist/comm.h"
#include "dist/shard_plan.h"

/* Bytes of the rank that holds most of each, which is what a node must have. */
typedef struct job_memory {
  size_t parameters; /* masters; and where they are the owner's alone, the bf16 copy of all and the gains */
  size_t gradients, state, compute_weights, activations, workspace, snapshot;
  size_t staging; /* of a reduce-scatter, or the tree's sums; 0 without */
  size_t telemetry; /* in the host's memory, from the first record on; 0 without */
  size_t own;     /* of the backend itself, on a GPU */
  size_t total;   /* on a GPU without snapshot and telemetry, which are in the host's memory */
} job_memory;

/* All but what grows with the micro-batch; then that is added. */
void job_memory_count_fixed(const spt_config *config, const spt_params *params, const spt_shard_plan *plan, const spt_backend *backend, int ranks,
                            job_memory *memory_p);
spt_status job_memory_add_model(spt_backend *backend, const spt_model_config *model, int64_t micro, job_memory *memory);
/* The plan that a job wants on `ranks` ranks. The caller closes it. */
spt_status job_plan_open(const spt_config *config, const spt_params *params, int ranks, spt_shard_plan **plan_p);
/* Whether masters are at their owners alone, and are gathered rounded to bf16 (dist/master_shards.h): between GPUs that compute in bf16,
 * but for self-guided runs. */
bool job_shards_masters(const spt_config *config, const spt_backend *backend, int ranks);
enum { JOB_PROBE_ROWS_MAX = 64 };
/* Positions of the telemetry's probe. */
int64_t job_probe_rows(const spt_model_config *model);
/* Memory of the telemetry's workers, all for the dearest matrix; at most a thread and a matrix each, and 1 GiB together (one may have more). */
typedef struct job_telemetry {
  size_t doubles, floats; /* of one worker: workspace, and where memory is not the host's, copies */
  int workers;
} job_telemetry;
/* For the pairs[count] of `params` that a rank measures; pairs NULL: as for a rank that measures its even share of all, the dearest included. */
job_telemetry job_count_telemetry(const spt_config *config, const spt_params *params, const int *pairs, int count, const spt_backend *backend, int ranks);
/* Traffic of one step as rank 0 counts it: traffic_p[SPT_COLLECTIVE_KINDS]. The sum that gathers the gains of sharded masters is told as a gather. */
void job_count_traffic(const spt_config *config, const spt_params *params, const spt_shard_plan *plan, const spt_backend *backend,
                       spt_comm_counter *traffic_p);

typedef struct job_cost {
  int ranks;
  spt_backend *backend;
  spt_params *params;
  spt_shard_plan *plan;
  spt_flops flops;
  job_memory memory;
  spt_comm_counter traffic[SPT_COLLECTIVE_KINDS]; /* of a step */
  int64_t checkpoint_bytes;                       /* of a save's datasets; the file adds its metadata */
} job_cost;

/* Checks that `ranks` divide the batch and chooses batch.micro where the job leaves it open (config->batch.micro is
 * written), then counts. The caller closes; on failure nothing is open. SPT_ERR_USAGE, SPT_ERR_RESOURCE. */
spt_status job_cost_open(spt_config *config, int ranks, job_cost *cost_p);
/* Takes a zeroed cost too. */
void job_cost_close(job_cost *cost);

#endif
