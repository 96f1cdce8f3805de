#include "gemm_onednn.h"

#include "simd_kernels.h"
#include "vector_math.h"

#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* What a primitive depends on: a product's, or, with m = 0, the packing of an op(B). ldb 0: packed. Compared bytewise,
 * so it has no padding. */
typedef struct gemm_key {
  int64_t m, n, k, lda, ldb, ldc;
  float alpha, beta;
  int32_t operand_dtype, c_dtype, transpose_a, transpose_b;
} gemm_key;

typedef struct gemm_entry {
  gemm_key key;
  dnnl_primitive_t primitive; /* NULL: free slot */
  dnnl_memory_t a, b, c, scratchpad;
  size_t scratchpad_bytes;
} gemm_entry;

typedef struct grown_buffer {
  void *data;
  size_t bytes;
} grown_buffer;

struct spt_gemm_context {
  dnnl_engine_t engine;
  dnnl_stream_t stream;
  const spt_simd_kernels *simd;
  bool native_bf16, timing;
  gemm_entry *entries; /* open addressing, capacity a power of two */
  int64_t capacity, used;
  grown_buffer scratchpad, wide_a, wide_b, wide_c, plain;
  spt_gemm_counts counts;
};

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

#define DNNL_TRY(call)                                                                                                 \
  do {                                                                                                                 \
    const dnnl_status_t dnnl_status_ = (call);                                                                         \
    if (dnnl_status_ != dnnl_success)                                                                                  \
      return SPT_FAIL(SPT_ERR_RESOURCE, "oneDNN: %s failed with status %d%s", #call, (int)dnnl_status_,                \
                      dnnl_status_ == dnnl_out_of_memory ? " (out of memory: use a smaller micro-batch)" : "");        \
  } while (0)

/* Where the two major versions differ. */
#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t matrix_desc; // opaque handle
static void matrix_desc_destroy(matrix_desc *desc) {
  if (*desc) (void)dnnl_memory_desc_destroy(*desc);
}
static const_dnnl_memory_desc_t matrix_desc_use(const matrix_desc *desc) {
  return *desc;
}
static dnnl_status_t matrix_desc_make(matrix_desc *desc, const dnnl_dims_t dims, dnnl_data_type_t type,
                                      const dnnl_dims_t strides) {
  return dnnl_memory_desc_create_with_strides(desc, 2, dims, type, strides);
}
static dnnl_status_t matrix_desc_any(matrix_desc *desc, const dnnl_dims_t dims, dnnl_data_type_t type) {
  return dnnl_memory_desc_create_with_tag(desc, 2, dims, type, dnnl_format_tag_any);
}
static dnnl_status_t matrix_desc_copy(matrix_desc *desc, const_dnnl_memory_desc_t from) {
  return dnnl_memory_desc_clone(desc, from);
}
static size_t matrix_desc_bytes(const matrix_desc *desc) {
  return dnnl_memory_desc_get_size(*desc);
}
static dnnl_status_t reorder_desc(dnnl_primitive_desc_t *desc, dnnl_engine_t engine, const matrix_desc *from,
                                  const matrix_desc *to, dnnl_primitive_attr_t attributes) {
  return dnnl_reorder_primitive_desc_create(desc, *from, engine, *to, engine, attributes);
}
static dnnl_status_t append_linear(dnnl_post_ops_t ops, float alpha) {
  return dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_linear, alpha, 0.0f);
}
static dnnl_status_t append_sum(dnnl_post_ops_t ops, float beta) {
  return dnnl_post_ops_append_sum(ops, beta, 0, dnnl_data_type_undef);
}
static dnnl_status_t matmul_desc(dnnl_primitive_desc_t *desc, dnnl_engine_t engine, const matrix_desc *a,
                                 const matrix_desc *b, const matrix_desc *c, dnnl_primitive_attr_t attributes) {
  return dnnl_matmul_primitive_desc_create(desc, engine, *a, *b, NULL, *c, attributes);
}
#else
typedef dnnl_memory_desc_t matrix_desc; // plain data
static void matrix_desc_destroy(matrix_desc *desc) {
  (void)desc;
}
static const dnnl_memory_desc_t *matrix_desc_use(const matrix_desc *desc) {
  return desc;
}
static dnnl_status_t matrix_desc_make(matrix_desc *desc, const dnnl_dims_t dims, dnnl_data_type_t type,
                                      const dnnl_dims_t strides) {
  return dnnl_memory_desc_init_by_strides(desc, 2, dims, type, strides);
}
static dnnl_status_t matrix_desc_any(matrix_desc *desc, const dnnl_dims_t dims, dnnl_data_type_t type) {
  return dnnl_memory_desc_init_by_tag(desc, 2, dims, type, dnnl_format_tag_any);
}
static dnnl_status_t matrix_desc_copy(matrix_desc *desc, const dnnl_memory_desc_t *from) {
  *desc = *from;
  return dnnl_success;
}
static size_t matrix_desc_bytes(const matrix_desc *desc) {
  return dnnl_memory_desc_get_size(desc);
}
static dnnl_status_t reorder_desc(dnnl_primitive_desc_t *desc, dnnl_engine_t engine, const matrix_desc *from,
                                  const matrix_desc *to, dnnl_primitive_attr_t attributes) {
  return dnnl_reorder_primitive_desc_create(desc, from, engine, to, engine, attributes);
}
static dnnl_status_t append_linear(dnnl_post_ops_t ops, float alpha) {
  return dnnl_post_ops_append_eltwise(ops, 1.0f, dnnl_eltwise_linear, alpha, 0.0f);
}
static dnnl_status_t append_sum(dnnl_post_ops_t ops, float beta) {
  return dnnl_post_ops_append_sum(ops, beta);
}
static dnnl_status_t matmul_desc(dnnl_primitive_desc_t *desc, dnnl_engine_t engine, const matrix_desc *a,
                                 const matrix_desc *b, const matrix_desc *c, dnnl_primitive_attr_t attributes) {
  dnnl_matmul_desc_t operation;
  const dnnl_status_t status = dnnl_matmul_desc_init(&operation, a, b, NULL, c);
  return status == dnnl_success ? dnnl_primitive_desc_create(desc, &operation, attributes, engine, NULL) : status;
}
#endif

#if defined(__x86_64__) // elsewhere oneDNN reports no instruction set
static bool have(dnnl_cpu_isa_t isa) {
  return ((unsigned)dnnl_get_effective_cpu_isa() & (unsigned)isa) == (unsigned)isa;
}
spt_isa spt_gemm_isa(void) {
  if (have(dnnl_cpu_isa_avx512_core_bf16)) return SPT_ISA_AVX512_BF16;
  if (have(dnnl_cpu_isa_avx512_core)) return SPT_ISA_AVX512;
  return have(dnnl_cpu_isa_avx2) && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") ? SPT_ISA_AVX2
                                                                                                   : SPT_ISA_BASE;
}
const char *spt_gemm_bf16_unit(void) {
  if (have(dnnl_cpu_isa_avx512_core_amx)) return "AMX";
  // Intel's vdpbf16ps runs at half the rate of its fp32 units (measured: bf16 143 GFLOP/s, fp32 222); AMD's at the full
  // one
  return have(dnnl_cpu_isa_avx512_core_bf16) && __builtin_cpu_is("amd") ? "AVX512-BF16" : NULL;
}
#else
spt_isa spt_gemm_isa(void) {
  return SPT_ISA_BASE;
}
const char *spt_gemm_bf16_unit(void) {
  return NULL;
}
#endif

void spt_gemm_library(char *text, size_t size) {
  const dnnl_version_t *version = dnnl_version();
  snprintf(text, size, "oneDNN %d.%d.%d", version->major, version->minor, version->patch);
}

void spt_gemm_enter(void) {
  omp_set_num_threads(1);
}

spt_gemm_counts *spt_gemm_counters(spt_gemm_context *context) {
  return &context->counts;
}
void spt_gemm_set_timing(spt_gemm_context *context, bool timing) {
  context->timing = timing;
}

static spt_status open_engine(spt_gemm_context *context) {
  DNNL_TRY(dnnl_engine_create(&context->engine, dnnl_cpu, 0));
  DNNL_TRY(dnnl_stream_create(&context->stream, context->engine, dnnl_stream_default_flags));
  return SPT_OK;
}

spt_status spt_gemm_open(bool native_bf16, spt_gemm_context **context_p) {
  spt_gemm_context *context = calloc(1, sizeof *context);
  if (!context) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for a GEMM context");
  context->simd = spt_simd_kernels_for(spt_gemm_isa());
  context->native_bf16 = native_bf16;
  const spt_status status = open_engine(context);
  if (status != SPT_OK) {
    spt_gemm_close(&context);
    return status;
  }
  *context_p = context;
  return SPT_OK;
}

static void destroy_entry(gemm_entry *entry) {
  if (entry->primitive) (void)dnnl_primitive_destroy(entry->primitive);
  dnnl_memory_t *memories[] = {&entry->a, &entry->b, &entry->c, &entry->scratchpad};
  for (int i = 0; i < 4; i++)
    if (*memories[i]) (void)dnnl_memory_destroy(*memories[i]);
  memset(entry, 0, sizeof *entry);
}

void spt_gemm_close(spt_gemm_context **context_p) {
  spt_gemm_context *context = *context_p;
  if (!context) return;
  for (int64_t i = 0; i < context->capacity; i++) destroy_entry(&context->entries[i]);
  free(context->entries);
  free(context->scratchpad.data);
  free(context->wide_a.data);
  free(context->wide_b.data);
  free(context->wide_c.data);
  free(context->plain.data);
  if (context->stream) (void)dnnl_stream_destroy(context->stream);
  if (context->engine) (void)dnnl_engine_destroy(context->engine);
  free(context);
  *context_p = NULL;
}

static spt_status grow(spt_gemm_context *context, grown_buffer *buffer, size_t bytes) {
  if (bytes <= buffer->bytes) return SPT_OK;
  context->counts.misses++;
  const size_t rounded = (bytes + bytes / 4 + 4095) & ~(size_t)4095;
  free(buffer->data);
  buffer->data = aligned_alloc(4096, rounded);
  buffer->bytes = buffer->data ? rounded : 0;
  if (!buffer->data)
    return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory: %zu bytes for a matrix product's scratch", rounded);
  return SPT_OK;
}

static dnnl_data_type_t library_type(int32_t dtype) {
  return dtype == SPT_BF16 ? dnnl_bf16 : dnnl_f32;
}

/* The order in which the library wants an op(B) (k, n): what it chooses for a product of this many rows. It takes the
 * same order in products of other sizes. */
static spt_status packed_desc(spt_gemm_context *context, int64_t n, int64_t k, spt_dtype dtype, matrix_desc *desc_p) {
  enum { ROWS = 256 };
  const dnnl_data_type_t type = library_type((int32_t)dtype);
  const dnnl_dims_t dims_a = {ROWS, k}, dims_b = {k, n}, dims_c = {ROWS, n}, strides_a = {k, 1}, strides_c = {n, 1};
  matrix_desc descs[3];
  dnnl_primitive_desc_t desc = NULL;
  memset(descs, 0, sizeof descs);
  dnnl_status_t status = matrix_desc_make(&descs[0], dims_a, type, strides_a);
  if (status == dnnl_success) status = matrix_desc_any(&descs[1], dims_b, type);
  if (status == dnnl_success) status = matrix_desc_make(&descs[2], dims_c, type, strides_c);
  if (status == dnnl_success) status = matmul_desc(&desc, context->engine, &descs[0], &descs[1], &descs[2], NULL);
  if (status == dnnl_success)
    status = matrix_desc_copy(desc_p, dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 0));
  if (desc) (void)dnnl_primitive_desc_destroy(desc);
  for (int i = 0; i < 3; i++) matrix_desc_destroy(&descs[i]);
  if (status != dnnl_success)
    return SPT_FAIL(SPT_ERR_RESOURCE, "oneDNN: no order for a matrix %lld×%lld (status %d)", (long long)k, (long long)n,
                    (int)status);
  return SPT_OK;
}

/* Makes the entry's primitive and scratchpad. */
static spt_status make_primitive(spt_gemm_context *context, const gemm_key *key, dnnl_primitive_desc_t desc,
                                 gemm_entry *entry) {
  dnnl_status_t status = dnnl_primitive_create(&entry->primitive, desc);
  if (status == dnnl_success) {
    const void *pad = dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
    entry->scratchpad_bytes = pad ? dnnl_memory_desc_get_size(pad) : 0;
    const char *name = NULL; // of the implementation
    if (dnnl_primitive_desc_query(desc, dnnl_query_impl_info_str, 0, &name) == dnnl_success && name &&
        strncmp(name, "ref", 3) == 0)
      context->counts.reference_primitives++;
    if (pad) status = dnnl_memory_create(&entry->scratchpad, pad, context->engine, DNNL_MEMORY_NONE);
  }
  if (status != dnnl_success)
    return SPT_FAIL(SPT_ERR_RESOURCE, "oneDNN: no matrix product %lld×%lld×%lld (status %d)", (long long)key->m,
                    (long long)key->n, (long long)key->k, (int)status);
  return SPT_OK;
}

/* descs: A, B, C; of a packing, B plain and packed. */
static spt_status create_primitive(spt_gemm_context *context, const gemm_key *key, dnnl_primitive_attr_t attributes,
                                   dnnl_post_ops_t post_ops, matrix_desc descs[3], gemm_entry *entry) {
  const dnnl_data_type_t type = library_type(key->operand_dtype);
  const dnnl_dims_t dims_a = {key->m, key->k}, dims_b = {key->k, key->n}, dims_c = {key->m, key->n};
  const dnnl_dims_t strides_a = {key->transpose_a ? 1 : key->lda, key->transpose_a ? key->lda : 1};
  const dnnl_dims_t strides_b = {key->transpose_b ? 1 : key->ldb, key->transpose_b ? key->ldb : 1};
  const dnnl_dims_t strides_c = {key->ldc, 1};
  const bool packing = key->m == 0;
  DNNL_TRY(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user));
  if (key->ldb == 0)
    SPT_TRY(packed_desc(context, key->n, key->k, (spt_dtype)key->operand_dtype, &descs[1]));
  else
    DNNL_TRY(matrix_desc_make(&descs[1], dims_b, type, strides_b));
  dnnl_primitive_desc_t desc = NULL;
  if (packing) {
    SPT_TRY(packed_desc(context, key->n, key->k, (spt_dtype)key->operand_dtype, &descs[2]));
    DNNL_TRY(reorder_desc(&desc, context->engine, &descs[1], &descs[2], attributes));
  } else {
    DNNL_TRY(matrix_desc_make(&descs[0], dims_a, type, strides_a));
    DNNL_TRY(matrix_desc_make(&descs[2], dims_c, library_type(key->c_dtype), strides_c));
    // alpha·(A·B + beta/alpha·C): below AVX-512 oneDNN adds in a fast product only if that comes first, else it falls
    // back to its reference loops, a thousand times slower
    if (key->beta != 0.0f) DNNL_TRY(append_sum(post_ops, key->beta / key->alpha));
    if (key->alpha != 1.0f) DNNL_TRY(append_linear(post_ops, key->alpha));
    DNNL_TRY(dnnl_primitive_attr_set_post_ops(attributes, post_ops));
    DNNL_TRY(matmul_desc(&desc, context->engine, &descs[0], &descs[1], &descs[2], attributes));
  }
  const spt_status status = make_primitive(context, key, desc, entry);
  (void)dnnl_primitive_desc_destroy(desc);
  SPT_TRY(status);
  if (!packing) DNNL_TRY(dnnl_memory_create(&entry->a, matrix_desc_use(&descs[0]), context->engine, DNNL_MEMORY_NONE));
  DNNL_TRY(dnnl_memory_create(&entry->b, matrix_desc_use(&descs[1]), context->engine, DNNL_MEMORY_NONE));
  DNNL_TRY(dnnl_memory_create(&entry->c, matrix_desc_use(&descs[2]), context->engine, DNNL_MEMORY_NONE));
  return SPT_OK;
}

static spt_status create_entry(spt_gemm_context *context, const gemm_key *key, gemm_entry *entry) {
  dnnl_primitive_attr_t attributes = NULL;
  dnnl_post_ops_t post_ops = NULL;
  matrix_desc descs[3];
  memset(descs, 0, sizeof descs);
  spt_status status = SPT_OK;
  if (dnnl_primitive_attr_create(&attributes) != dnnl_success || dnnl_post_ops_create(&post_ops) != dnnl_success)
    status = SPT_FAIL(SPT_ERR_RESOURCE, "oneDNN: out of memory for attributes");
  else
    status = create_primitive(context, key, attributes, post_ops, descs, entry);
  for (int i = 0; i < 3; i++) matrix_desc_destroy(&descs[i]);
  if (post_ops) (void)dnnl_post_ops_destroy(post_ops);
  if (attributes) (void)dnnl_primitive_attr_destroy(attributes);
  if (status != SPT_OK)
    destroy_entry(entry);
  else
    entry->key = *key;
  return status;
}

static gemm_entry *find_slot(gemm_entry *entries, int64_t capacity, const gemm_key *key) {
  uint64_t hash = 0xCBF29CE484222325u;
  uint64_t words[sizeof *key / 8];
  memcpy(words, key, sizeof words);
  for (size_t i = 0; i < sizeof words / 8; i++) hash = (hash ^ words[i]) * 0x9E3779B97F4A7C15u, hash ^= hash >> 29;
  for (int64_t i = (int64_t)(hash & (uint64_t)(capacity - 1));; i = (i + 1) & (capacity - 1))
    if (!entries[i].primitive || memcmp(&entries[i].key, key, sizeof *key) == 0) return &entries[i];
}

static spt_status find_entry(spt_gemm_context *context, const gemm_key *key, gemm_entry **entry_p) {
  if (context->used * 2 >= context->capacity) {
    const int64_t capacity = context->capacity ? 2 * context->capacity : 64;
    gemm_entry *entries = calloc((size_t)capacity, sizeof *entries);
    if (!entries) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the table of matrix products");
    for (int64_t i = 0; i < context->capacity; i++)
      if (context->entries[i].primitive) *find_slot(entries, capacity, &context->entries[i].key) = context->entries[i];
    free(context->entries);
    context->entries = entries;
    context->capacity = capacity;
  }
  gemm_entry *entry = find_slot(context->entries, context->capacity, key);
  if (!entry->primitive) {
    context->counts.misses++;
    SPT_TRY(create_entry(context, key, entry));
    context->used++;
  }
  *entry_p = entry;
  return SPT_OK;
}

/* C = beta·C: a product over nothing. */
static void scale_matrix(int64_t m, int64_t n, float beta, void *c, int64_t ldc, spt_dtype dtype) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++)
      spt_store(c, i * ldc + j, beta == 0.0f ? 0.0f : beta * spt_load(c, i * ldc + j, dtype == SPT_BF16),
                dtype == SPT_BF16);
}

/* On AVX-512, oneDNN 3.7 takes a vector that lies with a stride for a dense one: a C of one column, a transposed A of
 * one row. Such products are small; these loops do them. */
static bool mistaken(int64_t m, int64_t n, spt_operand a, spt_operand b, int64_t ldc) {
  return DNNL_VERSION_MAJOR >= 3 && b.ld > 0 && ((n == 1 && ldc > 1) || (m == 1 && a.transposed && a.ld > 1));
}
static double element(spt_operand x, int64_t row, int64_t column) {
  return (double)spt_load(x.data, x.transposed ? column * x.ld + row : row * x.ld + column, x.dtype == SPT_BF16);
}
static void multiply_vectors(int64_t m, int64_t n, int64_t k, float alpha, spt_operand a, spt_operand b, float beta,
                             void *c, int64_t ldc, spt_dtype c_dtype) {
  const bool narrow = c_dtype == SPT_BF16;
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      double sum = 0.0;
      for (int64_t l = 0; l < k; l++) sum += element(a, i, l) * element(b, l, j);
      const float start = beta == 0.0f ? 0.0f : beta * spt_load(c, i * ldc + j, narrow);
      spt_store(c, i * ldc + j, start + alpha * (float)sum, narrow);
    }
}

static spt_status execute(spt_gemm_context *context, int64_t m, int64_t n, int64_t k, float alpha, spt_operand a,
                          spt_operand b, float beta, void *c, int64_t ldc, spt_dtype c_dtype) {
  if (mistaken(m, n, a, b, ldc)) {
    multiply_vectors(m, n, k, alpha, a, b, beta, c, ldc, c_dtype);
    return SPT_OK;
  }
  gemm_key key;
  memset(&key, 0, sizeof key);
  key =
      (gemm_key){m, n, k, a.ld, b.ld, ldc, alpha, beta, (int32_t)a.dtype, (int32_t)c_dtype, a.transposed, b.transposed};
  gemm_entry *entry = NULL;
  SPT_TRY(find_entry(context, &key, &entry));
  SPT_TRY(grow(context, &context->scratchpad, entry->scratchpad_bytes));
  DNNL_TRY(dnnl_memory_set_data_handle(entry->a, (void *)(uintptr_t)a.data));
  DNNL_TRY(dnnl_memory_set_data_handle(entry->b, (void *)(uintptr_t)b.data));
  DNNL_TRY(dnnl_memory_set_data_handle(entry->c, c));
  if (entry->scratchpad) DNNL_TRY(dnnl_memory_set_data_handle(entry->scratchpad, context->scratchpad.data));
  const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, entry->a},
                                       {DNNL_ARG_WEIGHTS, entry->b},
                                       {DNNL_ARG_DST, entry->c},
                                       {DNNL_ARG_SCRATCHPAD, entry->scratchpad}};
  DNNL_TRY(dnnl_primitive_execute(entry->primitive, context->stream, entry->scratchpad ? 4 : 3, arguments));
  return SPT_OK;
}

size_t spt_gemm_packed_bytes(spt_gemm_context *context, int64_t n, int64_t k, spt_dtype dtype) {
  matrix_desc desc;
  memset(&desc, 0, sizeof desc);
  if (packed_desc(context, n, k, dtype, &desc) != SPT_OK) // the packing itself will say why: room for any order
    return (size_t)((n + 63) / 64 * 64 * ((k + 63) / 64 * 64)) * spt_dtype_size(dtype);
  const size_t bytes = matrix_desc_bytes(&desc);
  matrix_desc_destroy(&desc);
  return bytes;
}

spt_status spt_gemm_pack(spt_gemm_context *context, int64_t n, int64_t k, spt_operand b, void *packed) {
  gemm_key key;
  memset(&key, 0, sizeof key);
  key = (gemm_key){0, n, k, 0, b.ld, 0, 0.0f, 0.0f, (int32_t)b.dtype, (int32_t)b.dtype, 0, b.transposed};
  gemm_entry *entry = NULL;
  SPT_TRY(find_entry(context, &key, &entry));
  SPT_TRY(grow(context, &context->scratchpad, entry->scratchpad_bytes));
  DNNL_TRY(dnnl_memory_set_data_handle(entry->b, (void *)(uintptr_t)b.data));
  DNNL_TRY(dnnl_memory_set_data_handle(entry->c, packed));
  if (entry->scratchpad) DNNL_TRY(dnnl_memory_set_data_handle(entry->scratchpad, context->scratchpad.data));
  const dnnl_exec_arg_t arguments[] = {
      {DNNL_ARG_FROM, entry->b}, {DNNL_ARG_TO, entry->c}, {DNNL_ARG_SCRATCHPAD, entry->scratchpad}};
  DNNL_TRY(dnnl_primitive_execute(entry->primitive, context->stream, entry->scratchpad ? 3 : 2, arguments));
  return SPT_OK;
}

spt_status spt_gemm_scratch(spt_gemm_context *context, size_t bytes, void **scratch_p) {
  SPT_TRY(grow(context, &context->plain, bytes));
  *scratch_p = context->plain.data;
  return SPT_OK;
}

/* Widens a bf16 operand of rows × cols as stored into `buffer`. */
static spt_status widen(spt_gemm_context *context, grown_buffer *buffer, int64_t rows, int64_t cols,
                        spt_operand *operand) {
  SPT_TRY(grow(context, buffer, (size_t)(rows * cols) * sizeof(float)));
  for (int64_t i = 0; i < rows; i++)
    context->simd->convert((float *)buffer->data + i * cols, SPT_F32, (const uint16_t *)operand->data + i * operand->ld,
                           SPT_BF16, cols);
  operand->data = buffer->data;
  operand->ld = cols;
  operand->dtype = SPT_F32;
  return SPT_OK;
}

static spt_status multiply(spt_gemm_context *context, int64_t m, int64_t n, int64_t k, float alpha, spt_operand a,
                           spt_operand b, float beta, void *c, int64_t ldc, spt_dtype c_dtype) {
  if (context->native_bf16 || (a.dtype == SPT_F32 && b.dtype == SPT_F32 && c_dtype == SPT_F32))
    return execute(context, m, n, k, alpha, a, b, beta, c, ldc, c_dtype);
  if (a.dtype == SPT_BF16) SPT_TRY(widen(context, &context->wide_a, a.transposed ? k : m, a.transposed ? m : k, &a));
  if (b.dtype == SPT_BF16) SPT_TRY(widen(context, &context->wide_b, b.transposed ? n : k, b.transposed ? k : n, &b));
  if (c_dtype == SPT_F32) return execute(context, m, n, k, alpha, a, b, beta, c, ldc, SPT_F32);
  SPT_TRY(grow(context, &context->wide_c, (size_t)(m * n) * sizeof(float)));
  float *wide = context->wide_c.data;
  if (beta != 0.0f)
    for (int64_t i = 0; i < m; i++) context->simd->convert(wide + i * n, SPT_F32, (uint16_t *)c + i * ldc, SPT_BF16, n);
  SPT_TRY(execute(context, m, n, k, alpha, a, b, beta, wide, n, SPT_F32));
  for (int64_t i = 0; i < m; i++) context->simd->convert((uint16_t *)c + i * ldc, SPT_BF16, wide + i * n, SPT_F32, n);
  return SPT_OK;
}

static void count_product(spt_gemm_counts *counts, int64_t m, int64_t n, int64_t k, spt_operand a, spt_operand b,
                          float beta, spt_dtype c_dtype) {
  counts->calls++;
  counts->flops += 2.0 * (double)m * (double)n * (double)k;
  counts->bytes += (double)(m * k) * (double)spt_dtype_size(a.dtype) +
                   (double)(k * n) * (double)spt_dtype_size(b.dtype) +
                   (double)(m * n) * (double)spt_dtype_size(c_dtype) * (beta != 0.0f ? 2.0 : 1.0);
}

spt_status spt_gemm(spt_gemm_context *context, int64_t m, int64_t n, int64_t k, float alpha, spt_operand a,
                    spt_operand b, float beta, void *c, int64_t ldc, spt_dtype c_dtype) {
  if (m <= 0 || n <= 0) return SPT_OK;
  if (k <= 0 || alpha == 0.0f) {
    scale_matrix(m, n, beta, c, ldc, c_dtype);
    return SPT_OK;
  }
  count_product(&context->counts, m, n, k, a, b, beta, c_dtype);
  const double began = context->timing ? now() : 0.0;
  const spt_status status = multiply(context, m, n, k, alpha, a, b, beta, c, ldc, c_dtype);
  if (context->timing) context->counts.seconds += now() - began;
  return status;
}
