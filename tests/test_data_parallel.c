/* The data-parallel step under MPI: a backward pass played by the test, in all reductions, with and without overlap.
 */
#include "mpi_test.h"
#include "pmpi_shim.h"

#include "dist/data_parallel.h"
#include "host_backend.h"

#include <math.h>

#define STEPS 3
#define PATIENCE 200.0 /* seconds until a request that never completes fails the test instead of hanging it */

typedef struct setting {
  spt_model_config model;
  spt_optimizer_config optimizer;
  spt_params *params;
  spt_shard_plan *plan;
  float *parameters, *gradients;
  float *base; /* [layout.elements] of the gradients */
  spt_reduction reduction;
  bool overlap;
  spt_data_parallel *dp;
  int64_t micro_batches; /* of a rank; one but for the tree */
  spt_tree_reduction *tree;
} setting;

static void open_setting(setting *s, uint64_t n, spt_reduction reduction, bool overlap) {
  static const spt_method methods[] = {SPT_METHOD_SPECTRON, SPT_METHOD_ADAMW, SPT_METHOD_SGD};
  static const int64_t bucket_bytes[] = {1, 5000, 60000, 1 << 22};
  memset(s, 0, sizeof *s);
  s->model = (spt_model_config){.heads = 2, .kv_heads = 1, .seq_len = 8, .rank_ratio = 0.25};
  s->model.hidden = 4 * (8 + random_below(n, 0, 9));
  s->model.layers = 2 + random_below(n, 1, 3);
  s->model.ffn = 20 + random_below(n, 2, 150);
  s->model.vocab = 50 + random_below(n, 3, 300);
  s->model.parameterization = (spt_parameterization)random_below(n, 4, 3);
  s->model.tie_embeddings = random_below(n, 5, 2) == 1;
  s->optimizer.method = methods[random_below(n, 6, 3)];
  s->optimizer.newton_schulz_steps = 5;
  s->reduction = reduction;
  s->overlap = overlap;
  mpi_test_ok(spt_params_open(&s->model, &s->params));
  mpi_test_ok(spt_shard_plan_open(&s->model, &s->optimizer, s->params, test_comm->size,
                                  bucket_bytes[random_below(n, 7, 4)], &s->plan));
  s->parameters = calloc((size_t)s->plan->layout.elements, sizeof(float));
  s->gradients = calloc((size_t)s->plan->layout.elements, sizeof(float));
  s->base = calloc((size_t)s->plan->layout.elements, sizeof(float));
  assert_true(s->parameters && s->gradients && s->base);
  for (int64_t i = 0; i < s->plan->layout.elements; i++)
    s->base[i] = (float)(random_below(2000 + n, (uint64_t)i, 4001) - 2000);
  s->micro_batches = reduction == SPT_REDUCTION_TREE ? 1 + random_below(n, 8, 9) : 1;
  if (reduction != SPT_REDUCTION_TREE) {
    mpi_test_ok(spt_data_parallel_open(test_comm, s->plan, reduction, overlap, s->parameters, s->gradients, &s->dp));
    return;
  }
  mpi_test_ok(spt_tree_reduction_open(test_comm, &host_backend, s->plan, s->micro_batches * test_comm->size,
                                      s->gradients, &s->tree));
  mpi_test_ok(
      spt_data_parallel_open_tree(test_comm, s->plan, s->tree, overlap, s->parameters, s->gradients, &s->dp));
}

static void close_setting(setting *s) {
  spt_data_parallel_close(&s->dp);
  assert_null(s->dp);
  spt_tree_reduction_close(&s->tree);
  assert_null(s->tree);
  free(s->parameters);
  free(s->gradients);
  free(s->base);
  spt_shard_plan_close(&s->plan);
  spt_params_close(&s->params);
}

/* Gradients are integers, base + (rank + 1)·(step + 3), so that their sums are exact in any order. */
static float gradient_of(const setting *s, int rank, int step, int64_t at) {
  return s->base[at] + (float)((rank + 1) * (step + 3));
}

static float sum_of_gradients(const setting *s, int step, int64_t at) {
  const int size = test_comm->size;
  return (float)size * s->base[at] + (float)(size * (size + 1) / 2 * (step + 3));
}

/* A step's micro-batches but the last, each with a part of the gradient. Returns what the last must have less. */
static float play_kept(setting *s) {
  float kept = 0;
  for (int64_t i = 0; s->tree && i < s->plan->layout.elements; i++) s->gradients[i] = 0;
  for (int64_t batch = 0; batch + 1 < s->micro_batches; batch++) {
    for (int64_t i = 0; i < s->plan->layout.elements; i++) s->gradients[i] += (float)(7 * batch + 1);
    mpi_test_ok(spt_tree_reduction_keep(s->tree));
    kept += (float)(7 * batch + 1);
  }
  return kept;
}

/* Backward: gradients not yet computed are NaN, so a bucket that is sent too early shows. *last_begin_p: when the last
 * stage began. */
static void play_backward(setting *s, int step, double *last_begin_p) {
  spt_backward_hooks hooks = spt_data_parallel_hooks(s->dp);
  const float kept = play_kept(s);
  for (int64_t i = 0; i < s->plan->layout.elements; i++) s->gradients[i] = NAN;
  const int last = (int)s->model.layers + 1;
  for (int stage = 0; stage <= last; stage++) {
    if (stage == last) *last_begin_p = pmpi_shim_now();
    for (int t = 0; t < s->params->tensor_count; t++) {
      if (spt_model_stage(&s->model, s->params, t) != stage) continue;
      for (int64_t i = 0; i < s->params->tensors[t].count; i++)
        s->gradients[s->plan->layout.offset[t] + i] =
            gradient_of(s, test_comm->rank, step, s->plan->layout.offset[t] + i) - kept;
      mpi_test_ok(hooks.progress(hooks.context));
    }
    mpi_test_ok(hooks.grad_ready(hooks.context, stage));
    mpi_test_ok(hooks.progress(hooks.context));
  }
}

/* Calls fn(…, begin, end) for each range of a tensor that rank p owns. */
typedef void (*range_fn)(setting *s, int step, int tensor, int64_t begin, int64_t end);
static void each_owned(setting *s, int step, int p, range_fn fn) {
  const spt_share *share = &s->plan->shares[p];
  for (int i = 0; i < share->pair_count; i++) {
    const spt_pair *pair = &s->params->pairs[share->pairs[i]];
    fn(s, step, pair->a, 0, s->params->tensors[pair->a].count);
    if (!spt_pair_is_dense(pair)) fn(s, step, pair->b, 0, s->params->tensors[pair->b].count);
  }
  for (int i = 0; i < share->slice_count; i++)
    fn(s, step, share->slices[i].tensor, share->slices[i].begin, share->slices[i].end);
}

static void check_gradient(setting *s, int step, int tensor, int64_t begin, int64_t end) {
  const int64_t offset = s->plan->layout.offset[tensor];
  for (int64_t i = offset + begin; i < offset + end; i++) assert_true(s->gradients[i] == sum_of_gradients(s, step, i));
}

/* The owner's update: a function of the summed gradient. */
static void update(setting *s, int step, int tensor, int64_t begin, int64_t end) {
  (void)step;
  const int64_t offset = s->plan->layout.offset[tensor];
  for (int64_t i = begin; i < end; i++) s->parameters[offset + i] -= 0.5F * s->gradients[offset + i];
}

static void check_parameters(const setting *s, int steps) {
  for (int t = 0; t < s->params->tensor_count; t++) {
    const int64_t offset = s->plan->layout.offset[t];
    for (int64_t i = offset; i < offset + s->params->tensors[t].count; i++) {
      float expected = 0;
      for (int step = 0; step < steps; step++) expected -= 0.5F * sum_of_gradients(s, step, i);
      assert_true(s->parameters[i] == expected);
    }
  }
}

static void check_overlap(const setting *s, const spt_overlap *overlap, int first_event, double last_begin) {
  const bool active = s->overlap && test_comm->size > 1;
  const int each = s->tree ? spt_tree_reduction_exchanges_of(s->tree) : 1; // reductions of a bucket
  assert_int_equal(overlap->buckets, s->plan->bucket_count * each);
  assert_true(overlap->wait_seconds >= 0);
  if (!active) {
    assert_int_equal(overlap->posted_in_backward, 0);
    assert_int_equal(overlap->complete_before_wait, 0);
    return;
  }
  int early = 0; // of the plan: ready before the last stage; of MPI: called before it began
  for (int i = 0; i < s->plan->bucket_count; i++) early += s->plan->buckets[i].ready_stage <= (int)s->model.layers;
  assert_true(early > 0);
  early *= each;
  assert_int_equal(overlap->posted_in_backward, early);
  for (int i = 0; i < early; i++) assert_true(pmpi_shim_event(first_event + i).posted <= last_begin);
  assert_true(pmpi_shim_event(first_event + early).posted >= last_begin);
}

/* Every rank sees its owners' sums after the reduction and all parameters after the gather, over several steps. */
static void check_training(setting *s) {
  for (int step = 0; step < STEPS; step++) {
    double last_begin = 0;
    const int first_event = pmpi_shim_event_count();
    play_backward(s, step, &last_begin);
    mpi_test_ok(spt_data_parallel_reduce_finish(s->dp));
    check_overlap(s, spt_data_parallel_overlap(s->dp), first_event, last_begin);
    each_owned(s, step, test_comm->rank, check_gradient);
    if (s->reduction == SPT_REDUCTION_ALL_REDUCE)
      for (int p = 0; p < test_comm->size; p++) each_owned(s, step, p, check_gradient);
    each_owned(s, step, test_comm->rank, update);
    mpi_test_ok(spt_data_parallel_gather(s->dp));
    check_parameters(s, step + 1);
  }
}

static spt_reduction reduction_of(uint64_t n) {
  static const spt_reduction reductions[] = {SPT_REDUCTION_REDUCE_SCATTER, SPT_REDUCTION_ALL_REDUCE, SPT_REDUCTION_TREE};
  return reductions[n % 3];
}

/* All reductions, overlapped or not, give exactly the same parameters: check_training knows them. Bytes and messages
 * handed to MPI are those of the plan's formula. */
static void test_training(void **state) {
  (void)state;
  static const pmpi_call calls[SPT_COLLECTIVE_KINDS] = {PMPI_IALLREDUCE, PMPI_IREDUCE_SCATTER, PMPI_IALLGATHERV,
                                                      PMPI_IALLTOALLV};
  for (uint64_t n = 0; n < 36; n++) {
    setting s;
    pmpi_total before[SPT_COLLECTIVE_KINDS];
    spt_comm_counter expected[SPT_COLLECTIVE_KINDS], counted[SPT_COLLECTIVE_KINDS];
    memcpy(counted, test_comm->counters, sizeof counted);
    for (int k = 0; k < SPT_COLLECTIVE_KINDS; k++) before[k] = pmpi_shim_total(calls[k]);

    open_setting(&s, n / 6, reduction_of(n), n / 3 % 2 == 0);
    check_training(&s);

    if (s.tree)
      spt_tree_reduction_traffic(s.plan, s.micro_batches * test_comm->size, test_comm->rank, expected);
    else
      spt_shard_plan_traffic(s.plan, s.reduction, expected);
    for (int k = 0; k < SPT_COLLECTIVE_KINDS; k++) {
      const pmpi_total total = pmpi_shim_total(calls[k]);
      assert_true(total.count - before[k].count == STEPS * expected[k].messages);
      assert_true(total.bytes - before[k].bytes == STEPS * expected[k].bytes);
      assert_true(test_comm->counters[k].messages - counted[k].messages == STEPS * expected[k].messages);
      assert_true(test_comm->counters[k].bytes - counted[k].bytes == STEPS * expected[k].bytes);
    }
    close_setting(&s);
  }
  mpi_test_passed();
}

static int completed_events(int first, int count) {
  int completed = 0;
  for (int i = 0; i < count; i++) completed += pmpi_shim_event(first + i).completed >= 0;
  return completed;
}

/* Reductions complete while backward goes on, by the progress hook alone, and reduce_finish then finds them complete.
 */
static void test_overlap_completes(void **state) {
  (void)state;
  for (uint64_t n = 0; n < 6; n++) {
    setting s;
    open_setting(&s, 700 + n / 3, reduction_of(n), true);
    spt_backward_hooks hooks = spt_data_parallel_hooks(s.dp);
    const int first = pmpi_shim_event_count();
    double last_begin = 0;
    play_backward(&s, 0, &last_begin);
    const int posted = pmpi_shim_event_count() - first;
    const int each = s.tree ? spt_tree_reduction_exchanges_of(s.tree) : 1;
    assert_int_equal(posted, test_comm->size > 1 ? s.plan->bucket_count * each : 0);
    const double begin = pmpi_shim_now();
    while (completed_events(first, posted) < posted && pmpi_shim_now() - begin < PATIENCE)
      mpi_test_ok(hooks.progress(hooks.context));
    assert_int_equal(completed_events(first, posted), posted);
    mpi_test_ok(spt_data_parallel_reduce_finish(s.dp));
    assert_int_equal(spt_data_parallel_overlap(s.dp)->complete_before_wait, posted);
    each_owned(&s, 0, test_comm->rank, check_gradient);
    close_setting(&s);
  }
  mpi_test_passed();
}

/* Of every element another master, which bf16 rounds. */
static float master_of(int step, int tensor, int64_t i) {
  return 1.0F + (float)((i * 2654435761 + tensor * 40503 + step * 97) % 1000003) / 1000003.0F;
}
static uint16_t rounded(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

static spt_master_shards *filled_shards;
static float *filled_masters;
static void fill_masters(setting *s, int step, int tensor, int64_t begin, int64_t end) {
  (void)s;
  const int64_t offset = filled_shards->masters.offset[tensor];
  assert_true(offset + begin >= 0 && offset + end <= filled_shards->masters.elements);
  for (int64_t i = begin; i < end; i++) {
    assert_true(step > 0 || isnan(filled_masters[offset + i])); // no two share a place
    filled_masters[offset + i] = master_of(step, tensor, i);
  }
}

static void check_copies(const setting *s, int step, const uint16_t *values, const float *gains) {
  for (int t = 0; t < s->params->tensor_count; t++) {
    const int64_t gain = filled_shards->gain_offset[t];
    assert_int_equal(gain >= 0, s->params->tensors[t].role == SPT_ROLE_GAIN);
    for (int64_t i = 0; i < s->params->tensors[t].count; i++) {
      if (gain >= 0)
        assert_true(gains[gain + i] == master_of(step, t, i));
      else
        assert_int_equal(values[s->plan->layout.offset[t] + i], rounded(master_of(step, t, i)));
    }
  }
}

/* Masters at their owners alone: every rank holds them all rounded, and the gains as they are; and no more is sent than that. */
static void test_gathered_copies(void **state) {
  (void)state;
  for (uint64_t n = 0; n < 12; n++) {
    setting s;
    open_setting(&s, 1200 + n, SPT_REDUCTION_REDUCE_SCATTER, true);
    mpi_test_ok(spt_master_shards_open(s.plan, s.params, test_comm->rank, &filled_shards));
    const size_t elements = (size_t)filled_shards->masters.elements, all = (size_t)s.plan->layout.elements;
    assert_true(filled_shards->masters.elements == spt_master_shards_elements(s.plan, test_comm->rank));
    assert_true(filled_shards->gain_elements == spt_master_shards_gains(s.params));
    filled_masters = malloc(elements * sizeof(float) + 1);
    uint16_t *values = malloc(all * sizeof *values);
    float *gains = malloc((size_t)filled_shards->gain_elements * sizeof *gains);
    assert_true(filled_masters && values && gains);
    memset(filled_masters, 0xff, elements * sizeof(float)); // NaN
    memset(values, 0xff, all * sizeof *values);
    memset(gains, 0xff, (size_t)filled_shards->gain_elements * sizeof *gains);
    spt_data_parallel *dp;
    mpi_test_ok(spt_data_parallel_open(test_comm, s.plan, SPT_REDUCTION_ALL_REDUCE, true, filled_masters, s.gradients, &dp));
    const spt_gathered_copies copies = {&host_backend, filled_shards, values, gains};
    spt_data_parallel_gather_copies(dp, &copies);
    for (int step = 0; step < STEPS && test_comm->size > 1; step++) {
      const spt_comm_counter gathers = test_comm->counters[SPT_COLLECTIVE_ALL_GATHER];
      each_owned(&s, step, test_comm->rank, fill_masters);
      mpi_test_ok(spt_data_parallel_gather(dp));
      check_copies(&s, step, values, gains);
      assert_int_equal(test_comm->counters[SPT_COLLECTIVE_ALL_GATHER].messages - gathers.messages, s.plan->bucket_count);
      assert_true(test_comm->counters[SPT_COLLECTIVE_ALL_GATHER].bytes - gathers.bytes == (int64_t)(2 * all));
    }
    spt_data_parallel_close(&dp);
    spt_master_shards_close(&filled_shards);
    assert_null(filled_shards);
    free(filled_masters);
    free(values);
    free(gains);
    close_setting(&s);
  }
  mpi_test_passed();
}

static void test_wrong_plan(void **state) {
  (void)state;
  setting s;
  spt_shard_plan *plan;
  spt_data_parallel *dp = NULL;
  open_setting(&s, 900, SPT_REDUCTION_ALL_REDUCE, true);
  mpi_test_ok(spt_shard_plan_open(&s.model, &s.optimizer, s.params, test_comm->size + 1, 1000, &plan));
  assert_int_equal(
      spt_data_parallel_open(test_comm, plan, SPT_REDUCTION_ALL_REDUCE, true, s.parameters, s.gradients, &dp),
      SPT_ERR_RESOURCE);
  assert_null(dp);
  spt_shard_plan_close(&plan);
  close_setting(&s);
  mpi_test_passed();
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {MPI_TEST(test_training), MPI_TEST(test_overlap_completes),
                                     MPI_TEST(test_gathered_copies), MPI_TEST(test_wrong_plan)};
  return mpi_test_run(argc, argv, "data_parallel", tests, sizeof tests / sizeof *tests);
}
