/* What test_checkpoint.c and test_checkpoint_damage.c share: random states, saving them, and comparing a file with one.
 */
#ifndef SPT_CHECKPOINT_FIXTURE_H
#define SPT_CHECKPOINT_FIXTURE_H

#include "host_backend.h"
#include "temp_folder.h"

#include "io/checkpoint.h"

#include <unistd.h>

enum { ITEMS = 6 };

static uint64_t seed;
static spt_comm *comm;
static const char job[] = "[run]\nname = \"Größe\"\n";

static inline int64_t below(uint64_t stream, uint64_t index, int64_t bound) {
  return (int64_t)(spt_random_bits(seed, stream, index) % (uint64_t)bound);
}

/* A state of random shapes and values; `values` holds all of it. */
typedef struct state {
  spt_checkpoint_item items[ITEMS];
  float *values[ITEMS];
  spt_checkpoint_header header;
} state;

static inline void state_make(state *s, uint64_t stream) {
  static const char *const names[ITEMS] = {"/model/model.embed_tokens.weight",
                                           "/model/model.layers.0.self_attn.q_proj.A",
                                           "/model/model.layers.0.self_attn.q_proj.B",
                                           "/model/model.norm.weight",
                                           "/optimizer/model.layers.0.self_attn.q_proj.A/momentum",
                                           "/optimizer/model.layers.0.self_attn.q_proj.A/power_u"};
  for (int i = 0; i < ITEMS; i++) {
    spt_checkpoint_item *item = &s->items[i];
    *item = (spt_checkpoint_item){.rows = 1 + below(stream, 2 * (uint64_t)i, 60),
                                  .cols = i % 3 == 0 ? 1 : 1 + below(stream, 2 * (uint64_t)i + 1, 40)};
    snprintf(item->dataset, sizeof item->dataset, "%s", names[i]);
    item->end = item->rows * item->cols;
    s->values[i] = malloc((size_t)item->end * sizeof(float));
    assert_non_null(s->values[i]);
    spt_random_normal(seed, stream + 100 + (uint64_t)i, 0, item->end, 1, s->values[i]);
    item->values = s->values[i];
  }
  s->header = (spt_checkpoint_header){.step = below(stream, 90, 1 << 20),
                                      .tokens = INT64_C(1) << 40,
                                      .applied_updates = below(stream, 91, 1 << 20),
                                      .rank_count = 1,
                                      .best_validation_loss = 2.5 + (double)below(stream, 92, 1000) / 7,
                                      .data_fingerprint = "00112233445566778899aabbccddeeff"};
  memset(s->header.config_sha256, 'a', 64);
}

static inline void state_free(state *s) {
  for (int i = 0; i < ITEMS; i++) free(s->values[i]);
}

static inline spt_status save(state *s, const char *path, const char *text) {
  spt_checkpoint_saver *saver;
  assert_ok(spt_checkpoint_saver_open(comm, &host_backend, s->items, ITEMS, &saver));
  spt_status status = spt_checkpoint_save_begin(saver, path, &s->header, text);
  if (status == SPT_OK) status = spt_checkpoint_save_finish(saver);
  assert_true(spt_checkpoint_save_idle(saver));
  spt_checkpoint_saver_close(&saver);
  return status;
}

static inline spt_status open_and_verify(const char *path) {
  spt_checkpoint *checkpoint = NULL;
  SPT_TRY(spt_checkpoint_open(path, &checkpoint));
  const spt_status status = spt_checkpoint_verify(checkpoint);
  spt_checkpoint_close(&checkpoint);
  return status;
}

static inline unsigned char *slurp(const char *path, size_t *bytes_p) {
  FILE *file = fopen(path, "rb");
  assert_non_null(file);
  assert_int_equal(fseek(file, 0, SEEK_END), 0);
  *bytes_p = (size_t)ftell(file);
  rewind(file);
  unsigned char *bytes = malloc(*bytes_p + 1);
  assert_non_null(bytes);
  assert_int_equal(fread(bytes, 1, *bytes_p, file), *bytes_p);
  fclose(file);
  return bytes;
}

static inline void spill(const char *path, const unsigned char *bytes, size_t count) {
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(bytes, 1, count, file), count);
  assert_int_equal(fclose(file), 0);
}

static inline void assert_holds(const char *path, state *s) {
  spt_checkpoint *checkpoint;
  assert_ok(spt_checkpoint_open(path, &checkpoint));
  assert_ok(spt_checkpoint_verify(checkpoint));
  const spt_checkpoint_header *header = spt_checkpoint_header_of(checkpoint);
  assert_true(header->step == s->header.step && header->tokens == s->header.tokens &&
              header->applied_updates == s->header.applied_updates && header->rank_count == s->header.rank_count);
  assert_memory_equal(&header->best_validation_loss, &s->header.best_validation_loss, sizeof(double));
  assert_string_equal(header->config_sha256, s->header.config_sha256);
  assert_string_equal(header->data_fingerprint, s->header.data_fingerprint);
  assert_int_equal(spt_checkpoint_dataset_count(checkpoint), ITEMS);
  assert_int_equal(spt_checkpoint_find(checkpoint, "/model/absent"), -1);
  state loaded = *s;
  for (int i = 0; i < ITEMS; i++) {
    const char *name;
    int64_t rows, cols;
    assert_ok(spt_checkpoint_dataset(checkpoint, i, &name, &rows, &cols)); // tensor order is the order of the items
    assert_string_equal(name, s->items[i].dataset);
    assert_true(rows == s->items[i].rows && cols == s->items[i].cols);
    assert_int_equal(spt_checkpoint_find(checkpoint, name), i);
    loaded.items[i].values = calloc((size_t)(rows * cols), sizeof(float));
  }
  for (int replicated = 0; replicated < 2; replicated++) {
    for (int i = 0; i < ITEMS; i++) memset(loaded.items[i].values, 0xEE, (size_t)loaded.items[i].end * sizeof(float));
    assert_ok((replicated ? spt_checkpoint_load_replicated : spt_checkpoint_load)(comm, &host_backend, checkpoint,
                                                                                  loaded.items, ITEMS));
    for (int i = 0; i < ITEMS; i++)
      assert_memory_equal(loaded.items[i].values, s->values[i], (size_t)s->items[i].end * sizeof(float));
  }
  for (int i = 0; i < ITEMS; i++) free(loaded.items[i].values);
  spt_checkpoint_close(&checkpoint);
  assert_null(checkpoint);
}

static inline void assert_absent(const char *path) {
  assert_int_not_equal(access(path, F_OK), 0);
}

#endif
