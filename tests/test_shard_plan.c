/* The ownership plan's invariants, on random models, and its numbers for the paper's model S. */
#include "unit_test.h"

#include "core/model.h"
#include "dist/comm.h"
#include "dist/shard_plan.h"

#include <math.h>

#define ELEMENT_FLOPS 16.0 /* of the plan's load */
#define LINE 16

static uint64_t seed;

static int64_t draw(uint64_t stream, uint64_t index, int64_t bound) {
  return (int64_t)(spt_random_bits(seed, stream, index) % (uint64_t)bound);
}

typedef struct random_case {
  spt_model_config model;
  spt_optimizer_config optimizer;
  spt_params *params;
  int size;
  int64_t bucket_bytes;
  spt_shard_plan *plan;
} random_case;

static void open_case(random_case *c, uint64_t n) {
  static const double ratios[] = {0.25, 0.1, 0.4, 1.0, 0.01};
  static const int64_t bytes[] = {1, 1000, 40000, 300000, (int64_t)25 << 20};
  memset(c, 0, sizeof *c);
  c->model.heads = 1 + draw(n, 0, 4);
  c->model.kv_heads = draw(n, 1, 2) ? c->model.heads : 1;
  c->model.hidden = c->model.heads * 2 * (1 + draw(n, 2, 20));
  c->model.layers = 1 + draw(n, 3, 5);
  c->model.ffn = 1 + draw(n, 4, 400);
  c->model.vocab = 2 + draw(n, 5, 900);
  c->model.seq_len = 8;
  c->model.parameterization = (spt_parameterization)draw(n, 6, 3);
  c->model.rank_ratio = ratios[draw(n, 7, 5)];
  c->model.tie_embeddings = draw(n, 8, 2) == 1;
  c->optimizer.method = (spt_method)draw(n, 9, 5);
  c->optimizer.newton_schulz_steps = draw(n, 10, 4) ? 5 : 0;
  c->size = draw(n, 11, 3) ? 1 + (int)draw(n, 12, 8) : 1 + (int)draw(n, 12, 64);
  c->bucket_bytes = bytes[draw(n, 13, 5)];
  c->model.guided = c->model.parameterization != SPT_DENSE && draw(n, 14, 2) == 1;
  assert_ok(spt_params_open(&c->model, &c->params));
  assert_ok(spt_shard_plan_open(&c->model, &c->optimizer, c->params, c->size, c->bucket_bytes, &c->plan));
}

static void close_case(random_case *c) {
  spt_shard_plan_close(&c->plan);
  spt_params_close(&c->params);
}

static bool uses_pairs(const random_case *c) {
  return c->params->pair_count > 0 && c->optimizer.method != SPT_METHOD_ADAMW;
}

/* The bucket that holds the whole tensor. */
static int bucket_of(const random_case *c, int tensor) {
  const int64_t offset = c->plan->layout.offset[tensor], end = offset + c->params->tensors[tensor].count;
  int found = -1;
  for (int i = 0; i < c->plan->bucket_count; i++)
    if (offset >= c->plan->buckets[i].begin && end <= c->plan->buckets[i].end) found = i;
  assert_true(found >= 0);
  return found;
}

/* Buckets tile the slab in back-propagation order, their cuts tile them, all at whole cache lines. */
static void check_buckets(const random_case *c) {
  const spt_shard_plan *plan = c->plan;
  int64_t at = 0;
  int stage = 0;
  assert_true(plan->size == c->size && plan->bucket_count > 0);
  for (int i = 0; i < plan->bucket_count; i++) {
    const spt_bucket *bucket = &plan->buckets[i];
    assert_true(bucket->begin == at && bucket->end > at);
    assert_true(bucket->cuts[0] == bucket->begin && bucket->cuts[plan->size] == bucket->end);
    for (int p = 0; p < plan->size; p++) assert_true(bucket->cuts[p] <= bucket->cuts[p + 1]);
    for (int p = 0; p <= plan->size; p++) assert_true(bucket->cuts[p] % LINE == 0);
    assert_true(bucket->ready_stage >= stage);
    stage = bucket->ready_stage;
    at = bucket->end;
  }
  assert_true(at == plan->layout.elements);
}

/* A bucket is ready with the last of its tensors, none waits for the last stage that need not, and none goes on once it
 * is full. */
static void check_stages(const random_case *c) {
  const int last = (int)c->model.layers + 1;
  int *latest = calloc((size_t)c->plan->bucket_count, sizeof *latest);
  int64_t *largest = calloc((size_t)c->plan->bucket_count, sizeof *largest);
  int64_t *bytes = calloc((size_t)c->plan->bucket_count, sizeof *bytes);
  assert_true(latest && largest && bytes);
  for (int t = 0; t < c->params->tensor_count; t++) {
    const int i = bucket_of(c, t), stage = spt_model_stage(&c->model, c->params, t);
    const spt_tensor *tensor = &c->params->tensors[t];
    int64_t piece = 4 * tensor->count;
    bytes[i] += piece;
    if (uses_pairs(c) && tensor->pair >= 0) {
      const spt_pair *pair = &c->params->pairs[tensor->pair];
      piece = 4 * (spt_pair_is_dense(pair) ? pair->m * pair->n : (pair->m + pair->n) * pair->r);
    }
    if (piece > largest[i]) largest[i] = piece;
    if (stage > latest[i]) latest[i] = stage;
    if (c->plan->buckets[i].ready_stage == last) assert_int_equal(stage, last);
  }
  for (int i = 0; i < c->plan->bucket_count; i++) {
    assert_int_equal(latest[i], c->plan->buckets[i].ready_stage);
    assert_true(bytes[i] < c->bucket_bytes + largest[i]);
  }
  assert_true(c->plan->buckets[0].ready_stage < last); // something can be sent while backward goes on
  free(latest);
  free(largest);
  free(bytes);
}

/* No two tensors share a cache line (nor, in red-zone builds, come closer than a zone). */
static void check_layout(const random_case *c) {
#ifdef SPT_RED_ZONES
  const int64_t zone = 16;
#else
  const int64_t zone = 0;
#endif
  unsigned char *used = calloc((size_t)(c->plan->layout.elements / LINE), 1);
  assert_non_null(used);
  for (int t = 0; t < c->params->tensor_count; t++) {
    const int64_t offset = c->plan->layout.offset[t], end = offset + c->params->tensors[t].count + zone;
    assert_true(offset >= 0 && offset % LINE == 0 && end <= c->plan->layout.elements);
    for (int64_t line = offset / LINE; line * LINE < end; line++) {
      assert_int_equal(used[line], 0);
      used[line] = 1;
    }
  }
  free(used);
}

/* Marks [begin, end) of a tensor as owned by rank p, and checks that it lies in p's run. */
static void own(const random_case *c, int64_t *owned, int p, int tensor, int64_t begin, int64_t end) {
  const spt_bucket *bucket = &c->plan->buckets[bucket_of(c, tensor)];
  const int64_t offset = c->plan->layout.offset[tensor];
  assert_true(begin >= 0 && begin < end && end <= c->params->tensors[tensor].count);
  assert_true(bucket->cuts[p] <= offset + begin && offset + end <= bucket->cuts[p + 1]);
  owned[tensor] += end - begin; // slices ascend and lie in disjoint runs, so the sum tells "exactly once"
}

/* Every element has exactly one owner, pairs and gains a single one; elements and load say what the shares hold. */
static void check_shares(const random_case *c) {
  const spt_params *params = c->params;
  const bool orthogonal = c->optimizer.method == SPT_METHOD_SPECTRON || c->optimizer.method == SPT_METHOD_MUON;
  int64_t *owned = calloc((size_t)params->tensor_count, sizeof *owned);
  assert_non_null(owned);
  int64_t elements_sum = 0;
  for (int p = 0; p < c->size; p++) {
    const spt_share *share = &c->plan->shares[p];
    int64_t elements = 0;
    double load = 0;
    for (int i = 0; i < share->pair_count; i++) {
      const spt_pair *pair = &params->pairs[share->pairs[i]];
      assert_true(i == 0 || share->pairs[i - 1] < share->pairs[i]);
      assert_int_equal(c->plan->pair_owner[share->pairs[i]], p);
      own(c, owned, p, pair->a, 0, params->tensors[pair->a].count);
      elements += params->tensors[pair->a].count;
      if (!spt_pair_is_dense(pair)) {
        own(c, owned, p, pair->b, 0, params->tensors[pair->b].count);
        assert_true(c->plan->layout.offset[pair->a] < c->plan->layout.offset[pair->b]);
        elements += params->tensors[pair->b].count;
      }
      if (orthogonal) load += spt_flops_pair(&c->optimizer, pair);
    }
    for (int i = 0; i < share->slice_count; i++) {
      const spt_slice *slice = &share->slices[i], *before = i ? slice - 1 : slice;
      assert_true(i == 0 || before->tensor < slice->tensor ||
                  (before->tensor == slice->tensor && before->end <= slice->begin));
      assert_true(!uses_pairs(c) || params->tensors[slice->tensor].pair < 0);
      if (uses_pairs(c) && params->tensors[slice->tensor].role == SPT_ROLE_GAIN)
        assert_true(slice->end - slice->begin == params->tensors[slice->tensor].count);
      own(c, owned, p, slice->tensor, slice->begin, slice->end);
      elements += slice->end - slice->begin;
    }
    load += ELEMENT_FLOPS * (double)elements;
    assert_true(elements == c->plan->elements[p]);
    assert_true(fabs(load - c->plan->load[p]) <= 1e-9 * load);
    elements_sum += elements;
  }
  for (int t = 0; t < params->tensor_count; t++) assert_true(owned[t] == params->tensors[t].count);
  assert_true(elements_sum == params->count + params->guide_count);
  assert_true((c->plan->pair_owner != NULL) == uses_pairs(c));
  free(owned);
}

/* List scheduling's bound: the largest load is below the mean plus one indivisible piece (and the rounding of cuts to
 * lines). */
static void check_balance(const random_case *c) {
  double sum = 0, largest = 0, piece = ELEMENT_FLOPS * (double)c->model.hidden;
  for (int p = 0; p < c->size; p++) {
    sum += c->plan->load[p];
    if (c->plan->load[p] > largest) largest = c->plan->load[p];
  }
  for (int i = 0; uses_pairs(c) && i < c->params->pair_count; i++) {
    const spt_pair *pair = &c->params->pairs[i];
    const double load = spt_flops_pair(&c->optimizer, pair) + ELEMENT_FLOPS * (double)spt_pair_elements(pair);
    if (load > piece) piece = load;
  }
  const double padding = ELEMENT_FLOPS * LINE * (c->params->tensor_count + 2.0 * c->plan->bucket_count);
  assert_true(largest <= sum / c->size + piece + padding);
  assert_true(fabs(c->plan->imbalance - largest * c->size / sum) < 1e-9);
}

static void check_traffic(const random_case *c) {
  spt_comm_counter counters[SPT_COLLECTIVE_KINDS];
  for (int reduction = SPT_REDUCTION_ALL_REDUCE; reduction <= SPT_REDUCTION_REDUCE_SCATTER; reduction++) {
    const int kind = reduction == SPT_REDUCTION_ALL_REDUCE ? SPT_COLLECTIVE_ALL_REDUCE : SPT_COLLECTIVE_REDUCE_SCATTER;
    spt_shard_plan_traffic(c->plan, (spt_reduction)reduction, counters);
    for (int k = 0; k < SPT_COLLECTIVE_KINDS; k++) {
      const bool used = c->size > 1 && (k == kind || k == SPT_COLLECTIVE_ALL_GATHER);
      assert_true(counters[k].messages == (used ? c->plan->bucket_count : 0));
      assert_true(counters[k].bytes == (used ? 4 * c->plan->layout.elements : 0));
    }
  }
}

static void test_invariants(void **state) {
  (void)state;
  for (uint64_t n = 0; n < 300; n++) {
    random_case c;
    open_case(&c, n);
    check_buckets(&c);
    check_stages(&c);
    check_layout(&c);
    check_shares(&c);
    check_balance(&c);
    check_traffic(&c);
    close_case(&c);
  }
}

/* The same question has the same answer, to the last cut. */
static void test_deterministic(void **state) {
  (void)state;
  for (uint64_t n = 0; n < 20; n++) {
    random_case first, second;
    open_case(&first, 5000 + n);
    open_case(&second, 5000 + n);
    assert_int_equal(first.plan->bucket_count, second.plan->bucket_count);
    assert_memory_equal(first.plan->layout.offset, second.plan->layout.offset,
                        (size_t)first.params->tensor_count * sizeof(int64_t));
    for (int i = 0; i < first.plan->bucket_count; i++)
      assert_memory_equal(first.plan->buckets[i].cuts, second.plan->buckets[i].cuts,
                          ((size_t)first.size + 1) * sizeof(int64_t));
    close_case(&first);
    close_case(&second);
  }
}

/* When guides go, nothing of the rest moves: each rank's pairs and slices are the same with and without them. */
static void test_guides_move_nothing(void **state) {
  (void)state;
  int guided = 0;
  for (uint64_t n = 0; n < 200; n++) {
    random_case with, without;
    open_case(&with, 9000 + n);
    without = with;
    without.model.guided = false;
    assert_ok(spt_params_open(&without.model, &without.params));
    assert_ok(spt_shard_plan_open(&without.model, &without.optimizer, without.params, with.size, with.bucket_bytes, &without.plan));
    assert_true(with.params->count == without.params->count && without.params->guide_count == 0);
    guided += with.model.guided;
    for (int p = 0; p < with.size; p++) {
      const spt_share *more = &with.plan->shares[p], *less = &without.plan->shares[p];
      assert_true(more->pair_count >= less->pair_count && more->slice_count >= less->slice_count);
      for (int i = 0; i < more->pair_count; i++) // guides are the last of the table's pairs
        assert_true(i < less->pair_count ? more->pairs[i] == less->pairs[i] : spt_params_guided_by(with.params, more->pairs[i]) >= 0);
      int same = 0;
      for (int i = 0; i < more->slice_count; i++) {
        const spt_slice *slice = &more->slices[i], *other = &less->slices[same];
        if (with.params->tensors[slice->tensor].role == SPT_ROLE_GUIDE) continue;
        assert_true(same < less->slice_count && slice->begin == other->begin && slice->end == other->end);
        assert_string_equal(with.params->tensors[slice->tensor].name, without.params->tensors[other->tensor].name);
        same++;
      }
      assert_int_equal(same, less->slice_count);
    }
    close_case(&with);
    close_case(&without);
  }
  assert_true(guided > 20);
}

static void open_small_or_s(random_case *c, bool s, spt_method method, int size, int64_t bucket_bytes) {
  memset(c, 0, sizeof *c);
  c->model = (spt_model_config){
      .hidden = 64, .layers = 1, .heads = 2, .kv_heads = 2, .ffn = 64, .vocab = 100, .rank_ratio = 0.25};
  if (s) assert_ok(spt_config_apply_preset("S", &c->model));
  if (s) c->model.kv_heads = c->model.heads, c->model.ffn = 2048;
  c->optimizer = (spt_optimizer_config){.method = method, .newton_schulz_steps = 5};
  c->size = size;
  c->bucket_bytes = bucket_bytes;
  assert_ok(spt_params_open(&c->model, &c->params));
  assert_ok(spt_shard_plan_open(&c->model, &c->optimizer, c->params, size, bucket_bytes, &c->plan));
}

/* Equal pairs go round in table order, the lowest rank first. */
static void test_ties(void **state) {
  (void)state;
  static const int expected[] = {0, 1, 2, 0, 1, 2, 0};
  random_case c;
  open_small_or_s(&c, false, SPT_METHOD_SPECTRON, 3, 1 << 20);
  assert_int_equal(c.params->pair_count, 7);
  assert_memory_equal(c.plan->pair_owner, expected, sizeof expected);
  close_case(&c);
}

/* More ranks than pairs: most runs are empty, the elementwise tensors go to those that have no pair. */
static void test_more_ranks_than_pairs(void **state) {
  (void)state;
  random_case c;
  open_small_or_s(&c, false, SPT_METHOD_SPECTRON, 64, 1 << 20);
  check_buckets(&c);
  check_shares(&c);
  for (int p = 0; p < 7; p++) assert_true(c.plan->shares[p].pair_count == 1 && c.plan->shares[p].slice_count == 0);
  for (int p = 7; p < 64; p++) assert_true(c.plan->shares[p].pair_count == 0);
  close_case(&c);
}

/* Model S on 64 ranks: a down_proj pair alone is 3.45 times the mean load, so the plan cannot do better, and the ranks
 * that have none share the embedding and the head evenly. */
static void test_s_on_64_ranks(void **state) {
  (void)state;
  random_case c;
  open_small_or_s(&c, true, SPT_METHOD_SPECTRON, 64, (int64_t)25 << 20);
  assert_true(c.params->count == 93604608);
  check_buckets(&c);
  check_shares(&c);
  const double down = 20.0 * 512 * 512 * (768 + 2048 + 512) + ELEMENT_FLOPS * (768 + 2048) * 512;
  double largest = 0;
  int64_t fewest = INT64_MAX, most = 0;
  for (int p = 0; p < 64; p++) {
    int64_t cut = 0;
    if (c.plan->load[p] > largest) largest = c.plan->load[p];
    for (int i = 0; i < c.plan->shares[p].slice_count; i++)
      if (c.params->tensors[c.plan->shares[p].slices[i].tensor].count > 768)
        cut += c.plan->shares[p].slices[i].end - c.plan->shares[p].slices[i].begin;
    if (cut && cut < fewest) fewest = cut;
    if (cut > most) most = cut;
  }
  printf("S on 64 ranks: %d buckets, imbalance %.3f\n", c.plan->bucket_count, c.plan->imbalance);
  assert_true(largest == down);
  assert_true(c.plan->imbalance > 3.42 && c.plan->imbalance < 3.47);
  assert_true(most - fewest <= 4 * LINE);
  assert_true(most <= 2 * 32000 * 768 / 52 + 4 * LINE);
  close_case(&c);
}

/* Without pairs everything is cut: even to a few cache lines. */
static void test_adamw_is_even(void **state) {
  (void)state;
  random_case c;
  open_small_or_s(&c, true, SPT_METHOD_ADAMW, 64, (int64_t)25 << 20);
  check_buckets(&c);
  check_shares(&c);
  assert_null(c.plan->pair_owner);
  assert_true(c.plan->imbalance < 1.01);
  close_case(&c);
}

static void test_refusals(void **state) {
  (void)state;
  random_case c;
  spt_shard_plan *plan = NULL;
  open_small_or_s(&c, false, SPT_METHOD_SPECTRON, 2, 1 << 20);
  assert_fails(SPT_ERR_USAGE, spt_shard_plan_open(&c.model, &c.optimizer, c.params, 0, 1, &plan), "0 ranks");
  assert_fails(SPT_ERR_USAGE, spt_shard_plan_open(&c.model, &c.optimizer, c.params, 2, 0, &plan), "bucket_mib");
  assert_null(plan);
  spt_shard_plan_close(&plan);
  close_case(&c);
}

int main(void) {
  seed = unit_test_seed("shard_plan");
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_invariants),    cmocka_unit_test(test_deterministic),
      cmocka_unit_test(test_ties),          cmocka_unit_test(test_more_ranks_than_pairs),
      cmocka_unit_test(test_s_on_64_ranks), cmocka_unit_test(test_adamw_is_even),
      cmocka_unit_test(test_refusals),      cmocka_unit_test(test_guides_move_nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
