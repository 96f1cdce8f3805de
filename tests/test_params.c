#include "unit_test.h"

#include "core/gradient_groups.h"
#include "core/params.h"

#include <dlfcn.h>
#include <lapacke.h>
#include <math.h>

static uint64_t seed;

static spt_params *open_table(const spt_model_config *model) {
  spt_params *params = NULL;
  assert_ok(spt_params_open(model, &params));
  return params;
}

static spt_model_config preset(const char *name, spt_parameterization parameterization) {
  spt_config config;
  spt_config_defaults(&config);
  assert_ok(spt_config_apply_preset(name, &config.model));
  config.model.parameterization = parameterization;
  config.optimizer.method = SPT_METHOD_ADAMW;
  config.schedule.steps = 1;
  assert_ok(spt_config_complete(&config));
  return config.model;
}

/* A model of odd sizes whose matrices are tall, wide and square. */
static spt_model_config odd_model(double rank_ratio, uint64_t draw) {
  const uint64_t bits = spt_random_bits(seed, 99, draw);
  const int64_t heads = 2 + (int64_t)(bits % 3) * 2;
  return (spt_model_config){.hidden = heads * 2 * (2 + (int64_t)(bits >> 8) % 5),
                            .layers = 2,
                            .heads = heads,
                            .kv_heads = heads / 2,
                            .ffn = 5 + (int64_t)(bits >> 16) % 90,
                            .vocab = 37,
                            .seq_len = 8,
                            .rank_ratio = rank_ratio};
}

static void counts_of_the_designs_table(void **state) {
  (void)state;
  const struct {
    const char *name;
    int64_t dense, low_rank;
  } rows[] = {
      {"60M", 60039680, 47456768},     {"92M", 91763840, 67843200},     {"134M", 134105856, 93604608},
      {"150M", 148264704, 101013248},  {"220M", 218854272, 143225728},  {"325M", 322479104, 200909824},
      {"500M", 488295680, 296930560},  {"780M", 777856512, 453846528},  {"835M", 834485760, 483474944},
      {"1.4B", 1364297728, 780765184}, {"1.7B", 1672603648, 943187968}, {"2.7B", 2701560320, 1495173632},
  };
  int count;
  const spt_preset *presets = spt_presets(&count);
  assert_int_equal(count, sizeof rows / sizeof rows[0]);
  for (int i = 0; i < count; i++) {
    assert_string_equal(presets[i].name, rows[i].name);
    for (spt_parameterization how = SPT_LOW_RANK; how <= SPT_DENSE; how++) {
      const spt_model_config model = preset(rows[i].name, how);
      spt_params *params = open_table(&model);
      int64_t sum = 0;
      for (int t = 0; t < params->tensor_count; t++) {
        assert_int_equal(params->tensors[t].count, params->tensors[t].rows * params->tensors[t].cols);
        sum += params->tensors[t].count;
      }
      assert_int_equal(params->count, sum);
      if (how == SPT_DENSE) assert_int_equal(sum, rows[i].dense);
      if (how == SPT_LOW_RANK) assert_int_equal(sum, rows[i].low_rank);
      if (how == SPT_LOW_RANK_FFN) assert_true(sum > rows[i].low_rank && sum < rows[i].dense);
      spt_params_close(&params);
      assert_null(params);
    }
  }
}

static void names_and_roles(void **state) {
  (void)state;
  const spt_model_config model = preset("S", SPT_LOW_RANK);
  spt_params *params = open_table(&model);
  assert_int_equal(params->tensor_count, 3 + 12 * (2 + 14));
  assert_int_equal(params->pair_count, 12 * 7);
  const struct {
    const char *name;
    spt_role role;
    int layer, matrix, pair;
    int64_t rows, cols;
  } cases[] = {
      {"model.embed_tokens.weight", SPT_ROLE_EMBEDDING, -1, -1, -1, 32000, 768},
      {"model.layers.0.input_layernorm.weight", SPT_ROLE_GAIN, 0, -1, -1, 1, 768},
      {"model.layers.0.self_attn.q_proj.A", SPT_ROLE_FACTOR_A, 0, SPT_Q, 0, 768, 192},
      {"model.layers.0.self_attn.q_proj.B", SPT_ROLE_FACTOR_B, 0, SPT_Q, 0, 768, 192},
      {"model.layers.3.self_attn.k_proj.A", SPT_ROLE_FACTOR_A, 3, SPT_K, 22, 768, 192},
      {"model.layers.3.self_attn.v_proj.B", SPT_ROLE_FACTOR_B, 3, SPT_V, 23, 768, 192},
      {"model.layers.3.self_attn.o_proj.B", SPT_ROLE_FACTOR_B, 3, SPT_O, 24, 768, 192},
      {"model.layers.3.post_attention_layernorm.weight", SPT_ROLE_GAIN, 3, -1, -1, 1, 768},
      {"model.layers.3.mlp.gate_proj.A", SPT_ROLE_FACTOR_A, 3, SPT_GATE, 25, 2048, 192},
      {"model.layers.3.mlp.up_proj.B", SPT_ROLE_FACTOR_B, 3, SPT_UP, 26, 768, 192},
      {"model.layers.11.mlp.down_proj.A", SPT_ROLE_FACTOR_A, 11, SPT_DOWN, 83, 768, 512},
      {"model.layers.11.mlp.down_proj.B", SPT_ROLE_FACTOR_B, 11, SPT_DOWN, 83, 2048, 512},
      {"model.norm.weight", SPT_ROLE_GAIN, -1, -1, -1, 1, 768},
      {"lm_head.weight", SPT_ROLE_HEAD, -1, -1, -1, 32000, 768},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const int index = spt_params_find(params, cases[i].name);
    if (index < 0) fail_msg("no tensor %s", cases[i].name);
    const spt_tensor *tensor = &params->tensors[index];
    assert_int_equal(tensor->role, cases[i].role);
    assert_int_equal(tensor->layer, cases[i].layer);
    assert_int_equal(tensor->matrix, cases[i].matrix);
    assert_int_equal(tensor->pair, cases[i].pair);
    assert_int_equal(tensor->rows, cases[i].rows);
    assert_int_equal(tensor->cols, cases[i].cols);
    assert_int_equal(tensor->decay, cases[i].role != SPT_ROLE_GAIN);
  }
  assert_int_equal(spt_params_find(params, "model.layers.12.input_layernorm.weight"), -1);
  assert_int_equal(spt_params_embedding(params), 0);
  assert_string_equal(params->tensors[spt_params_final_norm(params)].name, "model.norm.weight");
  assert_string_equal(params->tensors[spt_params_head(params)].name, "lm_head.weight");
  spt_params_close(&params);
  spt_params_close(&params); // takes NULL
}

/* The views of the table (pairs, layers) name the tensors they should, for every parameterization and grouped queries.
 */
static void pairs_and_layers(void **state) {
  (void)state;
  for (uint64_t draw = 0; draw < 30; draw++) {
    spt_model_config model = odd_model(0.25, draw);
    model.parameterization = (spt_parameterization)(draw % 3);
    model.tie_embeddings = draw % 2;
    spt_params *params = open_table(&model);
    assert_true((spt_params_head(params) == spt_params_embedding(params)) == model.tie_embeddings);
    int pair = 0;
    for (int layer = 0; layer < model.layers; layer++) {
      spt_layer_tensors at;
      spt_params_layer(params, layer, &at);
      assert_non_null(strstr(params->tensors[at.attention_norm].name, "input_layernorm"));
      assert_non_null(strstr(params->tensors[at.ffn_norm].name, "post_attention_layernorm"));
      for (spt_matrix matrix = SPT_Q; matrix < SPT_MATRICES; matrix++) {
        int64_t m, n;
        spt_matrix_shape(&model, matrix, &m, &n);
        const spt_tensor *a = &params->tensors[at.a[matrix]];
        assert_int_equal(a->layer, layer);
        assert_int_equal(a->matrix, matrix);
        assert_int_equal(a->rows, m);
        if (!spt_matrix_low_rank(&model, matrix)) {
          assert_int_equal(at.b[matrix], -1);
          assert_int_equal(a->role, SPT_ROLE_DENSE);
          assert_int_equal(a->cols, n);
          assert_int_equal(a->pair, pair);
          const spt_pair *alone = &params->pairs[pair++];
          assert_true(spt_pair_is_dense(alone) && alone->a == at.a[matrix] && alone->m == m && alone->n == n && alone->r == 0);
          assert_int_equal(spt_pair_elements(alone), a->count);
          continue;
        }
        const spt_tensor *b = &params->tensors[at.b[matrix]];
        const spt_pair *p = &params->pairs[pair];
        assert_int_equal(b->rows, n);
        assert_int_equal(a->cols, b->cols);
        assert_int_equal(a->cols, spt_factor_rank(model.rank_ratio, m, n));
        assert_int_equal(p->a, at.a[matrix]);
        assert_int_equal(p->b, at.b[matrix]);
        assert_int_equal(a->pair, pair);
        assert_int_equal(b->pair, pair);
        assert_true(p->m == m && p->n == n && p->r == a->cols && p->layer == layer && p->matrix == matrix);
        pair++;
      }
    }
    assert_int_equal(pair, params->pair_count);
    spt_params_close(&params);
  }
}

/* W0 of a pair, from the same model's dense table, and A·Bᵀ. */
static void fill(const spt_model_config *model, const spt_params *params, int pair, float *a, float *b, float *w) {
  const spt_pair *p = &params->pairs[pair];
  assert_ok(spt_params_init_pair(params, pair, seed, a, b));
  spt_model_config dense = *model;
  dense.parameterization = SPT_DENSE;
  spt_params *dense_params = open_table(&dense);
  spt_layer_tensors at;
  spt_params_layer(dense_params, p->layer, &at);
  spt_params_init_slice(dense_params, at.a[p->matrix], seed, 0, p->m * p->n, w);
  spt_params_close(&dense_params);
}

/* Against LAPACK's SVD of W0: the same singular values, balanced orthogonal factors, and the least possible distance to
 * W0. */
static void check_pair(const spt_model_config *model, const spt_params *params, int pair) {
  const int64_t m = params->pairs[pair].m, n = params->pairs[pair].n, r = params->pairs[pair].r;
  float *a = malloc((size_t)(m * r) * sizeof *a), *b = malloc((size_t)(n * r) * sizeof *b);
  float *w = malloc((size_t)(m * n) * sizeof *w);
  double *copy = malloc((size_t)(m * n) * sizeof *copy), *sigma = malloc((size_t)(m + n) * sizeof *sigma);
  assert_true(a && b && w && copy && sigma);
  memset(a, 0xff, (size_t)(m * r) * sizeof *a); // NaN
  memset(b, 0xff, (size_t)(n * r) * sizeof *b);
  fill(model, params, pair, a, b, w);
  double error = 0, tail = 0;
  for (int64_t i = 0; i < m; i++) {
    for (int64_t j = 0; j < n; j++) {
      double product = 0;
      for (int64_t k = 0; k < r; k++) product += (double)a[i * r + k] * b[j * r + k];
      const double difference = copy[i * n + j] = w[i * n + j];
      error += (difference - product) * (difference - product);
    }
  }
  double unused;
  assert_int_equal(LAPACKE_dgesdd(LAPACK_ROW_MAJOR, 'N', (lapack_int)m, (lapack_int)n, copy, (lapack_int)n, sigma,
                                  &unused, (lapack_int)m, &unused, (lapack_int)n),
                   0);
  for (int64_t k = r; k < (m < n ? m : n); k++) tail += sigma[k] * sigma[k];
  assert_true(fabs(sqrt(error) - sqrt(tail)) < 1e-6 * sigma[0]);
  for (int64_t k = 0; k < r; k++) {
    for (int64_t l = 0; l <= k; l++) { // AᵀA = BᵀB = Σ
      double aa = 0, bb = 0;
      for (int64_t i = 0; i < m; i++) aa += (double)a[i * r + k] * a[i * r + l];
      for (int64_t i = 0; i < n; i++) bb += (double)b[i * r + k] * b[i * r + l];
      const double expected = k == l ? sigma[k] : 0;
      assert_true(fabs(aa - expected) < 1e-6 * sigma[0]);
      assert_true(fabs(bb - expected) < 1e-6 * sigma[0]);
    }
  }
  free(a);
  free(b);
  free(w);
  free(copy);
  free(sigma);
}

/* A tensor's group by its name alone: the last part for a factor or dense matrix, with .A, .B or nothing. */
static void group_name_of(const char *tensor, char name[64]) {
  const char *dot = strrchr(tensor, '.'), *proj = strstr(tensor, "_proj.");
  if (proj) {
    const char *begin = proj;
    while (begin[-1] != '.') begin--;
    snprintf(name, 64, "%.*s%s", (int)(proj + 5 - begin), begin, strcmp(dot, ".weight") == 0 ? "" : dot);
  } else
    snprintf(name, 64, "%s", strstr(tensor, "norm") ? "gains" : strstr(tensor, "lm_head") ? "head" : "embedding");
}

static void gradient_groups_follow_names(void **state) {
  (void)state;
  for (spt_parameterization how = SPT_LOW_RANK; how <= SPT_DENSE; how++) {
    spt_model_config model = odd_model(0.4, 7);
    model.parameterization = how;
    spt_params *params = open_table(&model);
    uint32_t present = 0;
    for (int i = 0; i < params->tensor_count; i++) {
      char wanted[64];
      const int group = spt_gradient_group(&params->tensors[i]);
      group_name_of(params->tensors[i].name, wanted);
      assert_true(group >= 0 && group < SPT_GRADIENT_GROUPS);
      assert_string_equal(spt_gradient_group_name(group), wanted);
      present |= 1u << group;
    }
    assert_int_equal(spt_gradient_groups_present(params), present);
    assert_int_equal(__builtin_popcount(present), how == SPT_LOW_RANK ? 17 : how == SPT_LOW_RANK_FFN ? 13 : 10);
    spt_params_close(&params);
  }
}

static void factors_are_the_truncated_svd(void **state) {
  (void)state;
  const double ratios[] = {0.25, 0.4, 1, 0.01}; // full rank at 1, rank 1 at 0.01
  for (uint64_t draw = 0; draw < 12; draw++) {
    const spt_model_config model = odd_model(ratios[draw % 4], draw);
    spt_params *params = open_table(&model);
    for (int pair = 0; pair < params->pair_count; pair++) check_pair(&model, params, pair);
    spt_params_close(&params);
  }
}

/* The same bytes alone, beside others, and whatever number of threads the BLAS was told, which it keeps. */
static void pairs_do_not_depend_on_threads(void **state) {
  (void)state;
  spt_model_config model = odd_model(0.25, 7);
  model.hidden = 160;
  model.heads = model.kv_heads = 4;
  model.ffn = 300;
  spt_params *params = open_table(&model);
  int (*get_threads)(void);
  void (*set_threads)(int);
  *(void **)&get_threads = dlsym(RTLD_DEFAULT, "openblas_get_num_threads");
  *(void **)&set_threads = dlsym(RTLD_DEFAULT, "openblas_set_num_threads");
  enum { MOST = 300 * 75 };
  float *alone = malloc(2 * MOST * sizeof *alone),
        *beside = malloc((size_t)params->pair_count * 2 * MOST * sizeof *beside);
  assert_true(alone && beside);
  if (set_threads) set_threads(3);
  const int threads = get_threads ? get_threads() : 0;
  int failures = 0;
#pragma omp parallel for num_threads(4) schedule(dynamic) reduction(+ : failures)
  for (int pair = 0; pair < params->pair_count; pair++) {
    float *out = beside + (size_t)pair * 2 * MOST;
    failures += spt_params_init_pair(params, pair, seed, out, out + MOST) != SPT_OK;
  }
  assert_int_equal(failures, 0);
  if (get_threads) assert_int_equal(get_threads(), threads);
  for (int pair = 0; pair < params->pair_count; pair++) {
    const spt_pair *p = &params->pairs[pair];
    assert_true(p->m * p->r <= MOST && p->n * p->r <= MOST);
    if (set_threads) set_threads(1 + pair % 2);
    assert_ok(spt_params_init_pair(params, pair, seed, alone, alone + MOST));
    assert_memory_equal(alone, beside + (size_t)pair * 2 * MOST, (size_t)(p->m * p->r) * sizeof(float));
    assert_memory_equal(alone + MOST, beside + ((size_t)pair * 2 + 1) * MOST, (size_t)(p->n * p->r) * sizeof(float));
    if (pair) // another name, other numbers
      assert_memory_not_equal(alone, beside + ((size_t)pair - 1) * 2 * MOST, 16);
  }
  free(alone);
  free(beside);
  spt_params_close(&params);
}

static void slices_do_not_depend_on_cuts(void **state) {
  (void)state;
  const spt_model_config model = odd_model(0.25, 3);
  spt_params *params = open_table(&model);
  const int tensors[] = {spt_params_embedding(params), spt_params_head(params), spt_params_final_norm(params)};
  for (int i = 0; i < 3; i++) {
    const spt_tensor *tensor = &params->tensors[tensors[i]];
    const int64_t count = tensor->count, cut = (int64_t)(spt_random_bits(seed, 5, (uint64_t)i) % (uint64_t)count);
    float *whole = malloc((size_t)count * sizeof *whole), *parts = malloc((size_t)count * sizeof *parts);
    assert_true(whole && parts);
    spt_params_init_slice(params, tensors[i], seed, 0, count, whole);
    spt_params_init_slice(params, tensors[i], seed, cut, count, parts + cut);
    spt_params_init_slice(params, tensors[i], seed, 0, cut, parts);
    assert_memory_equal(whole, parts, (size_t)count * sizeof *whole);
    double square = 0;
    for (int64_t k = 0; k < count; k++) square += (double)whole[k] * whole[k];
    if (tensor->role == SPT_ROLE_GAIN) {
      for (int64_t k = 0; k < count; k++) assert_true(whole[k] == 1);
    } else { // deviation 0.02, six standard errors of a variance
      assert_true(fabs(square / (double)count / 4e-4 - 1) < 6 * sqrt(2.0 / (double)count));
    }
    free(whole);
    free(parts);
  }
  spt_params_close(&params);
}

int main(void) {
  seed = unit_test_seed("test_params");
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(counts_of_the_designs_table),
      cmocka_unit_test(names_and_roles),
      cmocka_unit_test(pairs_and_layers),
      cmocka_unit_test(gradient_groups_follow_names),
      cmocka_unit_test(factors_are_the_truncated_svd),
      cmocka_unit_test(pairs_do_not_depend_on_threads),
      cmocka_unit_test(slices_do_not_depend_on_cuts),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
