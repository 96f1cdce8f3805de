/* What ranks cost by count, not by time: bench_counts JOB.toml RANKS... prints a CSV line for each number of ranks.
 *
 * Of one step of the job, for one rank:
 *   model_flops            its share of forward and backward (flops.h)
 *   optimizer_flops        the plan's load: Newton-Schulz of its pairs and 16 for each element; largest rank, and mean
 *   optimizer_share        optimizer_flops of the largest / (that + model_flops)
 *   reduce, gather         messages, and bytes handed to the communicator: what MPI is seen to do
 * (tests/train/traffic.sh) wire_bytes             what a ring sends from one rank for these: 2 (P - 1)/P of an
 * all-reduce's bytes, (P - 1)/P of a reduce-scatter's or an all-gather's memory_bytes           what forward and
 * backward must move between memory and cores at least (op_cost.h) communication_share    wire_bytes / (wire_bytes +
 * memory_bytes) */
#include "bench_model.h"

#include "core/op_cost.h"
#include "dist/comm.h"
#include "dist/shard_plan.h"
#include "io/job_toml.h"

#include <stdio.h>
#include <stdlib.h>

/* Bytes of forward and backward of one micro-batch. */
static double pass_bytes(const spt_config *config, spt_dtype act) {
  const spt_model_config *model = &config->model;
  const int64_t N = config->batch.micro * model->seq_len;
  const spt_attention_args attention = {.sequences = config->batch.micro,
                                        .seq_len = model->seq_len,
                                        .heads = model->heads,
                                        .kv_heads = model->kv_heads,
                                        .head_dim = spt_head_dim(model)};
  spt_group_desc groups[BENCH_GROUPS];
  bench_model_groups(model, groups);
  double layer = 0, rest = spt_cost_head(N, model->hidden, model->vocab, act, true).bytes;
  for (int backward = 0; backward < 2; backward++) {
    for (int i = 0; i < BENCH_GROUPS; i++) layer += spt_cost_group(&groups[i], N, act, NULL, backward).bytes;
    layer += spt_cost_attention(&attention, act, backward).bytes;
    rest += spt_cost_embedding(N, model->hidden, SPT_F32, backward).bytes;
  }
  return (double)model->layers * layer + rest;
}

static spt_status print_counts(const spt_config *job, const spt_params *params, int ranks) {
  static spt_config config; // large
  config = *job;
  SPT_TRY(spt_config_check_ranks(&config, ranks));
  spt_shard_plan *plan = NULL;
  SPT_TRY(spt_shard_plan_open(&config.model, &config.optimizer, params, ranks, config.dist.bucket_mib << 20, &plan));
  spt_comm_counter traffic[SPT_COLLECTIVE_KINDS];
  spt_shard_plan_traffic(plan, config.dist.reduction, traffic);
  spt_flops flops;
  spt_flops_count(&config.model, &config.optimizer, params, &flops);

  const double sequences = (double)(config.batch.sequences / ranks);
  const double model_flops = sequences * (double)config.model.seq_len * flops.train_per_token;
  double largest = 0, sum = 0;
  for (int p = 0; p < ranks; p++) {
    sum += plan->load[p];
    if (plan->load[p] > largest) largest = plan->load[p];
  }
  const spt_comm_counter *all = &traffic[SPT_COLLECTIVE_ALL_REDUCE], *part = &traffic[SPT_COLLECTIVE_REDUCE_SCATTER],
                         *gather = &traffic[SPT_COLLECTIVE_ALL_GATHER];
  const double wire = (double)(2 * all->bytes + part->bytes + gather->bytes) * (double)(ranks - 1) / (double)ranks;
  const spt_dtype act = config.device.precision == SPT_PRECISION_FP32 ? SPT_F32 : SPT_BF16;
  const double memory = sequences / (double)config.batch.micro * pass_bytes(&config, act);
  printf("%d,%.6e,%.6e,%.6e,%.6e,%lld,%lld,%lld,%lld,%.0f,%.0f,%.6e\n", ranks, model_flops, largest, sum / ranks,
         largest / (largest + model_flops), (long long)(all->messages + part->messages),
         (long long)(all->bytes + part->bytes), (long long)gather->messages, (long long)gather->bytes, wire, memory,
         wire / (wire + memory));
  spt_shard_plan_close(&plan);
  return SPT_OK;
}

int main(int argc, char **argv) {
  static spt_config config; // large
  spt_params *params = NULL;
  if (argc < 3) {
    fputs("usage: bench_counts JOB.toml RANKS...\n", stderr);
    return 2;
  }
  spt_status status = spt_job_load(argv[1], NULL, 0, &config);
  if (status == SPT_OK) status = spt_params_open(&config.model, &params);
  if (status == SPT_OK)
    puts("ranks,model_flops,optimizer_flops,optimizer_flops_mean,optimizer_share,reduce_messages,reduce_bytes,"
         "gather_messages,gather_bytes,wire_bytes,memory_bytes,communication_share");
  for (int i = 2; i < argc && status == SPT_OK; i++) {
    const int ranks = atoi(argv[i]);
    status =
        ranks > 0 ? print_counts(&config, params, ranks) : SPT_FAIL(SPT_ERR_USAGE, "%s is no number of ranks", argv[i]);
  }
  if (status != SPT_OK) fprintf(stderr, "bench_counts: %s\n", spt_error_message());
  spt_params_close(&params);
  return (int)status;
}
