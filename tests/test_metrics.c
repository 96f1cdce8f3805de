/* metrics.jsonl and metrics.h5: bitwise round trips, cutting on resume, torn lines, a full disk. */
#include "unit_test.h"

#include "faults.h"
#include "temp_folder.h"

#include "io/durable_file.h"
#include "io/metrics.h"

#include <hdf5.h>
#include <math.h>
#include <sys/stat.h>

static uint64_t seed;
static char folder[700], jsonl[800];

static int fresh_folder(void **state) {
  (void)state;
  static int count;
  snprintf(folder, sizeof folder, "%s/%d", temp_folder, count++);
  snprintf(jsonl, sizeof jsonl, "%s/metrics.jsonl", folder);
  return mkdir(folder, 0777);
}

static double number(uint64_t step, uint64_t field) {
  const double magnitude = (double)(spt_random_bits(seed, step, 2 * field) % 40) - 20;
  return ldexp((double)spt_random_bits(seed, step, 2 * field + 1), (int)magnitude - 64);
}

/* A record of random numbers; some are not finite, every third step validates, the first 16 have guides. */
static spt_metric_record make(int64_t step) {
  const uint64_t s = (uint64_t)step;
  spt_metric_record r = {.step = step,
                         .tokens = step * 4096,
                         .loss = number(s, 0),
                         .lr = number(s, 1),
                         .grad_norm = number(s, 2),
                         .tokens_per_second = number(s, 3),
                         .step_seconds = number(s, 4),
                         .data_wait_seconds = number(s, 5),
                         .model_flops_per_second = 1e12 * number(s, 6),
                         .reduce_wait_seconds = number(s, 7),
                         .gather_seconds = number(s, 8),
                         .optimizer_seconds = number(s, 9),
                         .save_seconds = number(s, 10),
                         .reduce_bytes = (int64_t)(spt_random_bits(seed, s, 50) >> 2),
                         .reduce_messages = step + 1,
                         .gather_bytes = 3 * step,
                         .gather_messages = step,
                         .ranks = 1 + step % 3,
                         .micro = 2 * step,
                         .threads = 4,
                         .reduction = step % 3 + 1,
                         .precision = step % 2 + 1,
                         .loss_z = step % 4 ? number(s, 30) : (double)NAN,
                         .spikes = step / 2,
                         .gradient_groups = (uint32_t)spt_random_bits(seed, 0, 60) & ((1u << SPT_GRADIENT_GROUPS) - 1)};
  if (step % 11 == 0) r.gradient_groups = 0; // not taken
  for (int g = 0; g < SPT_GRADIENT_GROUPS; g++) r.grad_norms[g] = step % 7 == 0 ? (double)INFINITY : number(s, 70 + (uint64_t)g);
  if (step % 5 == 0) r.loss = NAN;
  if (step % 7 == 0) r.grad_norm = step % 2 ? INFINITY : -INFINITY;
  if (step % 3 == 0) {
    r.validated = true;
    r.validation_loss = number(s, 20);
    r.perplexity = step % 9 == 0 ? INFINITY : number(s, 21);
    r.bits_per_byte = step % 2 ? NAN : number(s, 22);
    r.validation_loss_low_rank = number(s, 23);
  }
  r.guided = step <= 16;
  r.guidance_alpha = number(s, 24);
  if (step % 4 == 0) { // telemetry of one matrix more at every twelfth step
    static spt_metric_matrix matrices[3];
    r.spectral_seconds = number(s, 30);
    r.spectral_violations = step % 8;
    r.matrices = matrices;
    r.matrix_count = step % 12 == 0 ? 3 : 2;
    for (int i = 0; i < r.matrix_count; i++) {
      double *values = &matrices[i].values.a;
      snprintf(matrices[i].name, sizeof matrices[i].name, "model.layers.%d.mlp.up_proj%s", i % 2, i == 2 ? ".guide" : "");
      for (int j = 0; j < SPT_TELEMETRY_FIELDS; j++) values[j] = (step + j) % 5 == 0 ? NAN : number(s, (uint64_t)(100 + 20 * i + j));
    }
  }
  return r;
}

/* Bitwise, but for what null does not tell apart. */
static void assert_same(double found, double wanted) {
  if (isfinite(wanted))
    assert_memory_equal(&found, &wanted, sizeof wanted);
  else
    assert_true(isnan(found));
}

static void assert_record(const spt_metric_record *r, int64_t step) {
  const spt_metric_record w = make(step);
  assert_true(r->step == w.step && r->tokens == w.tokens && r->reduce_bytes == w.reduce_bytes &&
              r->reduce_messages == w.reduce_messages && r->gather_bytes == w.gather_bytes &&
              r->gather_messages == w.gather_messages && r->validated == w.validated && r->guided == w.guided);
  assert_true(r->ranks == w.ranks && r->micro == w.micro && r->threads == w.threads && r->reduction == w.reduction && r->precision == w.precision && r->spikes == w.spikes &&
              r->gradient_groups == w.gradient_groups);
  assert_same(r->loss_z, w.loss_z);
  for (int g = 0; g < SPT_GRADIENT_GROUPS; g++) assert_same(r->grad_norms[g], w.gradient_groups >> g & 1 ? w.grad_norms[g] : (double)NAN);
  const double found[] = {r->loss,
                          r->lr,
                          r->grad_norm,
                          r->tokens_per_second,
                          r->step_seconds,
                          r->data_wait_seconds,
                          r->model_flops_per_second,
                          r->reduce_wait_seconds,
                          r->gather_seconds,
                          r->optimizer_seconds,
                          r->save_seconds};
  const double wanted[] = {w.loss,
                           w.lr,
                           w.grad_norm,
                           w.tokens_per_second,
                           w.step_seconds,
                           w.data_wait_seconds,
                           w.model_flops_per_second,
                           w.reduce_wait_seconds,
                           w.gather_seconds,
                           w.optimizer_seconds,
                           w.save_seconds};
  for (size_t i = 0; i < sizeof found / sizeof *found; i++) assert_same(found[i], wanted[i]);
  if (w.guided) assert_same(r->guidance_alpha, w.guidance_alpha);
  assert_true(r->matrix_count == w.matrix_count && r->spectral_violations == w.spectral_violations);
  assert_same(r->spectral_seconds, w.spectral_seconds);
  for (int i = 0; i < w.matrix_count; i++) {
    assert_string_equal(r->matrices[i].name, w.matrices[i].name);
    for (int j = 0; j < SPT_TELEMETRY_FIELDS; j++) assert_same((&r->matrices[i].values.a)[j], (&w.matrices[i].values.a)[j]);
  }
  if (!w.validated) return;
  if (w.guided) assert_same(r->validation_loss_low_rank, w.validation_loss_low_rank);
  assert_same(r->validation_loss, w.validation_loss);
  assert_same(r->perplexity, w.perplexity);
  assert_same(r->bits_per_byte, w.bits_per_byte);
}

static void assert_steps(int64_t last) {
  spt_metric_record *records;
  int64_t count;
  assert_ok(spt_metrics_read(jsonl, &records, &count));
  assert_int_equal(count, last);
  for (int64_t i = 0; i < count; i++) assert_record(&records[i], i + 1);
  free(records);
}

static void append(spt_metrics *metrics, int64_t first, int64_t last) {
  for (int64_t step = first; step <= last; step++) {
    const spt_metric_record record = make(step);
    assert_ok(spt_metrics_append(metrics, &record));
  }
}

static void write_run(int64_t last) {
  spt_metrics *metrics;
  assert_ok(spt_metrics_open(folder, 0, &metrics));
  append(metrics, 1, last);
  spt_metrics_close(&metrics);
  assert_null(metrics);
}

static void add_text(const char *text, size_t bytes) {
  FILE *file = fopen(jsonl, "ab");
  assert_non_null(file);
  assert_int_equal(fwrite(text, 1, bytes, file), bytes);
  assert_int_equal(fclose(file), 0);
}

/* ---- tests ---- */

static void round_trip(void **unused) {
  (void)unused;
  write_run(400);
  assert_steps(400);
  write_run(30); // step 0 starts a new file
  assert_steps(30);
  char *text;
  size_t bytes;
  assert_ok(spt_file_read_all(jsonl, &text, &bytes));
  int line = 0;
  for (char *at = text, *end; (end = strchr(at, '\n')); at = end + 1) { // plain JSON, whatever a reader makes of NaN
    *end = '\0';
    line++;
    assert_true(at[0] == '{' && end[-1] == '}');
    assert_null(strstr(at, "nan"));
    assert_null(strstr(at, "inf"));
    assert_int_equal(strstr(at, "\"validation_loss\":") != NULL, line % 3 == 0);
    assert_int_equal(strstr(at, "\"loss\":null") != NULL, line % 5 == 0);
    assert_int_equal(strstr(at, "\"guidance_alpha\":") != NULL, line <= 16);
    assert_int_equal(strstr(at, "\"validation_loss_low_rank\":") != NULL, line <= 16 && line % 3 == 0);
  }
  assert_int_equal(line, 30);
  free(text);
}

/* Lines that another hand wrote. */
static void wrong_values(void **unused) {
  (void)unused;
  spt_metric_record record;
  const char *line = "{\"step\":3,\"loss\":\"2.5\",\"lr\":null,\"grad_norm\":[1],\"step_seconds\":2,\"tokens\":\"9\"}";
  assert_true(spt_metrics_parse_line(line, strlen(line), &record));
  assert_int_equal(record.step, 3);
  assert_true(isnan(record.loss) && isnan(record.lr) && isnan(record.grad_norm));
  assert_true(record.step_seconds == 2 && record.data_wait_seconds == 0 && record.tokens == 0);
  const char *none[] = {"", "{", "7", "{\"step\":\"3\"}", "{\"loss\":3}", "{\"step\":3} {\"step\":4}", "{\"step\":3,\"step\":4}"};
  for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) assert_false(spt_metrics_parse_line(none[i], strlen(none[i]), &record));
}

static void resume_cuts(void **unused) {
  (void)unused;
  spt_metrics *metrics;
  write_run(50);
  assert_ok(spt_metrics_open(folder, 41, &metrics)); // the checkpoint's step
  assert_steps(41);
  append(metrics, 42, 60);
  assert_steps(60);
  spt_metrics_close(&metrics);
  assert_ok(spt_metrics_open(folder, 1000, &metrics)); // nothing to cut
  assert_steps(60);
  spt_metrics_close(&metrics);
  assert_int_equal(unlink(jsonl), 0);
  assert_ok(spt_metrics_open(folder, 41, &metrics)); // lost: starts anew
  append(metrics, 1, 2);
  spt_metrics_close(&metrics);
  assert_steps(2);
}

/* Records at every fourth step, a checkpoint between two of them. */
static void resume_between_records(void **unused) {
  (void)unused;
  spt_metrics *metrics;
  spt_metric_record *records;
  int64_t count;
  assert_ok(spt_metrics_open(folder, 0, &metrics));
  for (int64_t step = 4; step <= 40; step += 4) append(metrics, step, step);
  spt_metrics_close(&metrics);
  assert_ok(spt_metrics_open(folder, 22, &metrics));
  append(metrics, 24, 24);
  spt_metrics_close(&metrics);
  assert_ok(spt_metrics_read(jsonl, &records, &count));
  assert_int_equal(count, 6);
  for (int64_t i = 0; i < count; i++) assert_record(&records[i], 4 * (i + 1));
  free(records);
}

static void torn_lines(void **unused) {
  (void)unused;
  static const struct {
    const char *text;
    size_t bytes;
  } tails[] = {{"{\"step\":21,\"lo", 14}, {"{\"step\":21}", 11}, {"\0\0\0\0\0\0", 6}, {"\0\0\0\n", 4},
               {"{\"step\":2\n", 10},     {"[21]\n", 5},         {"\xff\n", 2}};
  for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
    spt_metrics *metrics;
    write_run(20);
    add_text(tails[i].text, tails[i].bytes);
    assert_steps(20);
    assert_ok(spt_metrics_open(folder, 30, &metrics));
    append(metrics, 21, 25);
    spt_metrics_close(&metrics);
    assert_steps(25);
  }
  spt_metric_record *records;
  int64_t count;
  spt_metrics *metrics;
  add_text("nonsense\n{\"step\":26}\n", 21);
  assert_fails(SPT_ERR_DATA, spt_metrics_read(jsonl, &records, &count), "metrics.jsonl:26");
  assert_fails(SPT_ERR_DATA, spt_metrics_open(folder, 26, &metrics), "metrics.jsonl:26");
  assert_ok(spt_metrics_open(folder, 25, &metrics)); // before the damage: it is cut off
  spt_metrics_close(&metrics);
  assert_steps(25);
  assert_fails(SPT_ERR_DATA, spt_metrics_read("/nonexistent/metrics.jsonl", &records, &count),
               "/nonexistent/metrics.jsonl");
}

/* A dataset of metrics.h5; its length. */
static int64_t read_array(const char *name, int dimensions, double *values) {
  char path[800];
  snprintf(path, sizeof path, "%s/metrics.h5", folder);
  const hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT),
              set = file < 0 ? -1 : H5Dopen2(file, name, H5P_DEFAULT);
  if (set < 0) fail_msg("%s: no %s", path, name);
  const hid_t space = H5Dget_space(set);
  const int64_t count = (int64_t)H5Sget_simple_extent_npoints(space);
  assert_int_equal(H5Sget_simple_extent_ndims(space), dimensions);
  assert_true(count <= 1000 &&
              (count == 0 || H5Dread(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0));
  H5Sclose(space);
  H5Dclose(set);
  H5Fclose(file);
  return count;
}

static int64_t read_series(const char *name, double *values) {
  return read_array(name, 1, values);
}

/* Seven records with telemetry, up to step 30; a third matrix at steps 12 and 24 only. */
static void assert_telemetry_in_hdf5(void) {
  double values[1000];
  assert_int_equal(read_series("/spectral/step", values), 7);
  for (int i = 0; i < 7; i++) assert_true(values[i] == 4 * (i + 1));
  assert_int_equal(read_series("/spectral/spectral_violations", values), 7);
  for (int i = 0; i < 7; i++) assert_true(values[i] == 4 * (i + 1) % 8);
  static const char *const names[] = {"/spectral/a", "/spectral/dw_upper", "/spectral/slack"};
  static const size_t offsets[] = {offsetof(spt_telemetry, a), offsetof(spt_telemetry, dw_upper), offsetof(spt_telemetry, slack)};
  for (int k = 0; k < 3; k++) {
    assert_int_equal(read_array(names[k], 2, values), 21);
    for (int i = 0; i < 21; i++) {
      const spt_metric_record record = make(4 * (i / 3 + 1));
      const int matrix = i % 3;
      double wanted = NAN;
      if (matrix < record.matrix_count) memcpy(&wanted, (const char *)&record.matrices[matrix].values + offsets[k], sizeof wanted);
      assert_same(values[i], wanted);
    }
  }
}

static void same_in_hdf5(void **unused) {
  (void)unused;
  double values[1000];
  spt_metrics *metrics;
  assert_ok(spt_metrics_open(folder, 0, &metrics));
  assert_ok(spt_metrics_write_hdf5(metrics)); // empty series
  assert_int_equal(read_series("/loss", values), 0);
  append(metrics, 1, 20);
  assert_ok(spt_metrics_write_hdf5(metrics));
  spt_metrics_close(&metrics);
  assert_ok(spt_metrics_open(folder, 12, &metrics)); // a resume has the earlier series too
  append(metrics, 13, 30);
  assert_ok(spt_metrics_write_hdf5(metrics));
  assert_int_equal(read_series("/step", values), 30);
  for (int i = 0; i < 30; i++) assert_true(values[i] == i + 1);
  assert_int_equal(read_series("/loss", values), 30);
  for (int i = 0; i < 30; i++) assert_same(values[i], make(i + 1).loss);
  const uint32_t groups = make(1).gradient_groups;
  for (int g = 0; g < SPT_GRADIENT_GROUPS; g++) {
    char name[64];
    if (!(groups >> g & 1)) continue;
    snprintf(name, sizeof name, "/grad_norms/%s", spt_gradient_group_name(g));
    assert_int_equal(read_series(name, values), 30);
    for (int i = 0; i < 30; i++) {
      const spt_metric_record r = make(i + 1);
      assert_true(r.gradient_groups ? isfinite(r.grad_norms[g]) ? values[i] == r.grad_norms[g] : isinf(values[i]) || isnan(values[i]) : isnan(values[i]));
    }
  }
  assert_int_equal(read_series("/gather_bytes", values), 30);
  for (int i = 0; i < 30; i++) assert_true(values[i] == 3 * (i + 1));
  assert_int_equal(read_series("/validation/step", values), 10);
  for (int i = 0; i < 10; i++) assert_true(values[i] == 3 * (i + 1));
  assert_int_equal(read_series("/validation/validation_loss", values), 10);
  for (int i = 0; i < 10; i++) assert_same(values[i], make(3 * (i + 1)).validation_loss);
  assert_int_equal(read_series("/guidance/guidance_alpha", values), 16);
  for (int i = 0; i < 16; i++) assert_same(values[i], make(i + 1).guidance_alpha);
  assert_int_equal(read_series("/guidance_validation/step", values), 5);
  for (int i = 0; i < 5; i++) assert_true(values[i] == 3 * (i + 1));
  assert_int_equal(read_series("/guidance_validation/validation_loss_low_rank", values), 5);
  for (int i = 0; i < 5; i++) assert_same(values[i], make(3 * (i + 1)).validation_loss_low_rank);

  assert_telemetry_in_hdf5();

  append(metrics, 31, 31);
  faults.writes_left = 0;
  faults.write_error = ENOSPC;
  assert_fails(SPT_ERR_RESOURCE, spt_metrics_write_hdf5(metrics), "metrics.h5", "no space left");
  faults_reset();
  assert_int_equal(read_series("/step", values), 30); // as it was
  char part[800];
  snprintf(part, sizeof part, "%s/metrics.h5.part", folder);
  assert_int_not_equal(access(part, F_OK), 0);
  spt_metrics_close(&metrics);
}

/* What a full disk keeps out is written with what follows. */
static void full_disk(void **unused) {
  (void)unused;
  spt_metrics *metrics;
  assert_ok(spt_metrics_open(folder, 0, &metrics));
  append(metrics, 1, 10);
  for (int64_t step = 11; step <= 13; step++) {
    const spt_metric_record record = make(step);
    faults.writes_left = 0;
    faults.write_error = ENOSPC; // half a line is written
    assert_fails(SPT_ERR_RESOURCE, spt_metrics_append(metrics, &record), "metrics.jsonl", "no space left");
    assert_fails(SPT_ERR_RESOURCE, spt_metrics_write_hdf5(metrics), "metrics.jsonl", "no space left");
    faults_reset();
    assert_steps(10);
  }
  append(metrics, 14, 14); // space was made
  assert_steps(14);
  const spt_metric_record record = make(15);
  faults.writes_left = 0;
  faults.write_error = EIO;
  assert_fails(SPT_ERR_RESOURCE, spt_metrics_append(metrics, &record), "metrics.jsonl");
  faults_reset();
  assert_ok(spt_metrics_write_hdf5(metrics)); // so does this, without a record that follows
  assert_steps(15);
  spt_metrics_close(&metrics);
  assert_fails(SPT_ERR_RESOURCE, spt_metrics_open("/nonexistent", 0, &metrics), "/nonexistent/metrics.jsonl");
}

/* After a failed fsync the kernel may hold nothing of what was written since the last good one. */
static void lost_pages(void **unused) {
  (void)unused;
  spt_metrics *metrics;
  struct stat info;
  assert_ok(spt_metrics_open(folder, 0, &metrics));
  append(metrics, 1, 4);
  assert_ok(spt_metrics_write_hdf5(metrics));
  assert_int_equal(stat(jsonl, &info), 0);
  append(metrics, 5, 9);
  faults.fsync_error = EIO;
  assert_fails(SPT_ERR_RESOURCE, spt_metrics_write_hdf5(metrics), "metrics.jsonl", "fsync");
  faults_reset();
  assert_int_equal(truncate(jsonl, info.st_size), 0); // they are gone
  assert_steps(4);
  append(metrics, 10, 10);
  assert_steps(10);
  append(metrics, 11, 11);
  assert_ok(spt_metrics_write_hdf5(metrics));
  assert_steps(11);
  spt_metrics_close(&metrics);
}

static void vanished(void **unused) {
  (void)unused;
  spt_metrics *metrics;
  char moved[720];
  snprintf(moved, sizeof moved, "%s-moved", folder);
  assert_ok(spt_metrics_open(folder, 0, &metrics));
  append(metrics, 1, 5);
  assert_ok(spt_metrics_write_hdf5(metrics));
  assert_int_equal(unlink(jsonl), 0);
  append(metrics, 6, 7); // to nowhere
  assert_ok(spt_metrics_write_hdf5(metrics));
  assert_steps(7);
  assert_int_equal(rename(folder, moved), 0);
  append(metrics, 8, 8);
  assert_fails(SPT_ERR_RESOURCE, spt_metrics_write_hdf5(metrics), "metrics.jsonl", "No such file");
  assert_int_equal(mkdir(folder, 0777), 0); // an empty one took its place
  append(metrics, 9, 9);
  assert_ok(spt_metrics_write_hdf5(metrics));
  assert_steps(9);
  spt_metrics_close(&metrics);
}

/* What a run did not write is left as it is. */
static void foreign_file(void **unused) {
  (void)unused;
  static const char notes[] = "{\"notes\": 1}\n";
  char outside[800], trap[900];
  spt_metrics *metrics = NULL;
  snprintf(outside, sizeof outside, "%s-outside", folder);
  snprintf(trap, sizeof trap, "%s/metrics.h5.part", folder);
  assert_ok(spt_file_replace(outside, notes, sizeof notes - 1));
  for (int kind = 0; kind < 3; kind++) {
    if (kind == 0) assert_ok(spt_file_replace(jsonl, notes, sizeof notes - 1));
    if (kind == 1) assert_int_equal(symlink(outside, jsonl), 0);
    if (kind == 2) assert_int_equal(link(outside, jsonl), 0);
    assert_fails(SPT_ERR_USAGE, spt_metrics_open(folder, 0, &metrics), jsonl, "left alone");
    assert_fails(SPT_ERR_USAGE, spt_metrics_open(folder, 5, &metrics), jsonl, "left alone");
    char *text;
    size_t bytes;
    assert_ok(spt_file_read_all(kind ? outside : jsonl, &text, &bytes));
    assert_string_equal(text, notes);
    free(text);
    assert_int_equal(unlink(jsonl), 0);
  }
  // A run that died before its first save, or while it wrote its first line, may start afresh.
  static const char *const beginnings[] = {"", "{\"st", "{\"step\":1,\"tokens\":2"};
  for (int i = 0; i < 3; i++) {
    assert_ok(spt_file_replace(jsonl, beginnings[i], strlen(beginnings[i])));
    assert_ok(spt_metrics_open(folder, 0, &metrics));
    spt_metrics_close(&metrics);
  }
  assert_int_equal(symlink(outside, trap), 0);
  const spt_metric_record record = make(1);
  assert_ok(spt_metrics_open(folder, 0, &metrics));
  assert_ok(spt_metrics_append(metrics, &record));
  assert_ok(spt_metrics_write_hdf5(metrics));
  spt_metrics_close(&metrics);
  char *text;
  size_t bytes;
  assert_ok(spt_file_read_all(outside, &text, &bytes));
  assert_string_equal(text, notes);
  free(text);
}

int main(void) {
  seed = unit_test_seed("test_metrics");
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(round_trip, fresh_folder),
      cmocka_unit_test(wrong_values),
      cmocka_unit_test_setup(resume_cuts, fresh_folder),
      cmocka_unit_test_setup(resume_between_records, fresh_folder),
      cmocka_unit_test_setup(torn_lines, fresh_folder),
      cmocka_unit_test_setup(same_in_hdf5, fresh_folder),
      cmocka_unit_test_setup(full_disk, fresh_folder),
      cmocka_unit_test_setup(lost_pages, fresh_folder),
      cmocka_unit_test_setup(vanished, fresh_folder),
      cmocka_unit_test_setup(foreign_file, fresh_folder),
  };
  return cmocka_run_group_tests(tests, temp_folder_make, temp_folder_remove);
}
