#include "metrics.h"

#include "durable_file.h"
#include "hdf5_util.h"
#include "metrics_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef enum { COUNT, NUMBER, REDUCTION, PRECISION } field_kind; /* the last two: a word in a line, its number + 1 in a record and in metrics.h5 */
typedef enum { ALWAYS, VALIDATED, MEASURED, GUIDED, GUIDED_VALIDATED, KNOWN } field_presence; /* all but the first: only where it was taken */
typedef struct field {
  const char *key;
  field_kind kind;
  field_presence presence;
  size_t offset;
} field;
#define FIELD(key, kind, presence)                                                                                     \
  { #key, kind, presence, offsetof(spt_metric_record, key) }

const char *const spt_metric_reductions[] = {"all-reduce", "reduce-scatter", "tree", NULL}, *const spt_metric_precisions[] = {"fp32", "bf16", "tf32", NULL};

/* One table writes, reads and converts. In the order of a line. */
static const field fields[] = {
    FIELD(step, COUNT, ALWAYS),
    FIELD(tokens, COUNT, ALWAYS),
    FIELD(loss, NUMBER, ALWAYS),
    FIELD(lr, NUMBER, ALWAYS),
    FIELD(grad_norm, NUMBER, ALWAYS),
    FIELD(tokens_per_second, NUMBER, ALWAYS),
    FIELD(step_seconds, NUMBER, ALWAYS),
    FIELD(data_wait_seconds, NUMBER, ALWAYS),
    FIELD(model_flops_per_second, NUMBER, ALWAYS),
    FIELD(reduce_wait_seconds, NUMBER, ALWAYS),
    FIELD(gather_seconds, NUMBER, ALWAYS),
    FIELD(optimizer_seconds, NUMBER, ALWAYS),
    FIELD(save_seconds, NUMBER, ALWAYS),
    FIELD(reduce_bytes, COUNT, ALWAYS),
    FIELD(reduce_messages, COUNT, ALWAYS),
    FIELD(gather_bytes, COUNT, ALWAYS),
    FIELD(gather_messages, COUNT, ALWAYS),
    FIELD(guidance_alpha, NUMBER, GUIDED),
    FIELD(validation_loss, NUMBER, VALIDATED),
    FIELD(perplexity, NUMBER, VALIDATED),
    FIELD(bits_per_byte, NUMBER, VALIDATED),
    FIELD(validation_loss_low_rank, NUMBER, GUIDED_VALIDATED),
    FIELD(ranks, COUNT, ALWAYS),
    FIELD(micro, COUNT, ALWAYS),
    FIELD(threads, COUNT, ALWAYS),
    FIELD(reduction, REDUCTION, KNOWN),
    FIELD(precision, PRECISION, KNOWN),
    FIELD(loss_z, NUMBER, ALWAYS),
    FIELD(spikes, COUNT, ALWAYS),
    FIELD(spectral_seconds, NUMBER, MEASURED),
    FIELD(spectral_violations, COUNT, MEASURED),
};
enum { FIELDS = sizeof fields / sizeof *fields };

struct spt_metrics {
  char *jsonl, *hdf5; /* paths */
  int fd;
  uint64_t bytes;             /* of whole lines */
  spt_metric_record *records; /* all, for metrics.h5 */
  int64_t count, capacity;
  int64_t written;       /* the first `written` records have their lines in the file */
  int64_t synced;        /* and these are durable: what a failed fsync left out is written once more */
  uint64_t synced_bytes;
};

static bool is_present(const spt_metric_record *record, field_presence presence) {
  const bool has[] = {[ALWAYS] = true,
                      [VALIDATED] = record->validated,
                      [MEASURED] = record->matrix_count > 0,
                      [GUIDED] = record->guided,
                      [KNOWN] = record->reduction > 0 && record->precision > 0,
                      [GUIDED_VALIDATED] = record->guided && record->validated};
  return has[presence];
}

static double get_number(const spt_metric_record *record, const field *field) {
  const char *at = (const char *)record + field->offset;
  return field->kind != NUMBER ? (double)*(const int64_t *)(const void *)at : *(const double *)(const void *)at;
}

/* ---- lines ---- */

/* Of a field whose kind is a word; NULL: of another. */
static const char *const *words_of(field_kind kind) {
  return kind == REDUCTION ? spt_metric_reductions : kind == PRECISION ? spt_metric_precisions : NULL;
}

/* 1 + its place; 0: none of them. */
static int64_t word_number(const char *const *words, const char *word) {
  for (int64_t i = 0; word && words[i]; i++)
    if (strcmp(words[i], word) == 0) return i + 1;
  return 0;
}

static json_t *number_to_json(double number) {
  return isfinite(number) ? json_real(number) : json_null();
}

static bool has_norm(const spt_metric_record *record, int group) {
  return record->gradient_groups >> group & 1;
}

/* "grad_norms": an object of the groups that were taken; none where none was. */
static bool put_norms(json_t *line, const spt_metric_record *record) {
  if (record->gradient_groups == 0) return true;
  json_t *norms = json_object();
  bool fine = json_object_set_new(line, "grad_norms", norms) == 0; // takes it, NULL included
  for (int g = 0; fine && g < SPT_GRADIENT_GROUPS; g++)
    if (has_norm(record, g))
      fine = json_object_set_new(norms, spt_gradient_group_name(g), number_to_json(record->grad_norms[g])) == 0;
  return fine;
}

static void get_norms(const json_t *line, spt_metric_record *record) {
  const json_t *norms = json_object_get(line, "grad_norms");
  for (int g = 0; g < SPT_GRADIENT_GROUPS; g++) {
    const json_t *value = json_object_get(norms, spt_gradient_group_name(g));
    record->grad_norms[g] = json_is_number(value) ? json_number_value(value) : NAN;
    if (value) record->gradient_groups |= 1u << g;
  }
}

static json_t *to_json(const spt_metric_record *record) {
  json_t *line = json_object();
  for (int i = 0; line && i < FIELDS; i++) {
    if (!is_present(record, fields[i].presence)) continue;
    const char *at = (const char *)record + fields[i].offset;
    const char *const *words = words_of(fields[i].kind);
    const int64_t count = fields[i].kind == NUMBER ? 0 : *(const int64_t *)(const void *)at;
    json_t *value = words ? json_string(words[count - 1]) : fields[i].kind == COUNT ? json_integer(count) : number_to_json(get_number(record, &fields[i]));
    if (json_object_set_new(line, fields[i].key, value) != 0) { // takes the value, NULL included
      json_decref(line);
      return NULL;
    }
  }
  if (line && (!put_norms(line, record) ||
               (record->matrix_count > 0 && json_object_set_new(line, "spectral", spt_metric_matrices_to_json(record)) != 0))) {
    json_decref(line);
    return NULL;
  }
  return line;
}

/* Keys that are not there read as 0, unknown ones are left alone. What is no number, null too, reads as NAN where the field is real, as 0 where it
 * counts. All but the matrices. */
static bool from_json(const json_t *line, spt_metric_record *record) {
  memset(record, 0, sizeof *record);
  if (!json_is_integer(json_object_get(line, "step"))) return false;
  for (int i = 0; i < FIELDS; i++) {
    const json_t *value = json_object_get(line, fields[i].key);
    char *at = (char *)record + fields[i].offset;
    const char *const *words = words_of(fields[i].kind);
    if (words)
      *(int64_t *)(void *)at = word_number(words, json_string_value(value));
    else if (fields[i].kind == COUNT)
      *(int64_t *)(void *)at = value ? json_integer_value(value) : 0;
    else
      *(double *)(void *)at = value && !json_is_number(value) ? NAN : json_number_value(value);
  }
  record->validated = json_object_get(line, "validation_loss") != NULL;
  get_norms(line, record);
  record->guided = json_object_get(line, "guidance_alpha") != NULL;
  return true;
}

bool spt_metrics_parse_line(const char *line, size_t length, spt_metric_record *record_p) {
  json_t *object = json_loadb(line, length, JSON_REJECT_DUPLICATES, NULL);
  const bool fine = object && from_json(object, record_p);
  json_decref(object);
  return fine;
}

/* With the matrices, where the record is of a step up to last_step: 1, 0: no record, −1: out of memory. */
static int parse_line(const char *line, size_t length, int64_t last_step, spt_metric_record *record_p) {
  json_t *object = json_loadb(line, length, JSON_REJECT_DUPLICATES, NULL);
  int parsed = object && from_json(object, record_p);
  if (parsed && record_p->step <= last_step && !spt_metric_matrices_from_json(json_object_get(object, "spectral"), record_p)) parsed = -1;
  json_decref(object);
  return parsed;
}

static spt_status push(spt_metric_record **records_p, int64_t *count_p, int64_t *capacity_p,
                       const spt_metric_record *record) {
  if (*count_p == *capacity_p) {
    const int64_t capacity = *capacity_p ? 2 * *capacity_p : 256;
    spt_metric_record *records = realloc(*records_p, (size_t)capacity * sizeof *records);
    if (!records) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for %lld metric records", (long long)capacity);
    *records_p = records;
    *capacity_p = capacity;
  }
  (*records_p)[(*count_p)++] = *record;
  return SPT_OK;
}

/* Records up to `last_step`; *bytes_p is the length of their lines. A damaged last line (a writer was killed) is left
 * out. */
static spt_status parse(const char *path, int64_t last_step, spt_metric_record **records_p, int64_t *count_p,
                        int64_t *capacity_p, uint64_t *bytes_p) {
  char *text;
  size_t size;
  SPT_TRY(spt_file_read_all(path, &text, &size));
  spt_status status = SPT_OK;
  size_t at = 0;
  for (int number = 1; at < size; number++) {
    if (*count_p > 0 && (*records_p)[*count_p - 1].step >= last_step) break; // what follows is cut off, damaged or not
    const char *end = memchr(text + at, '\n', size - at);
    const size_t length = end ? (size_t)(end - (text + at)) : size - at;
    spt_metric_record record;
    const int parsed = end ? parse_line(text + at, length, last_step, &record) : 0;
    const bool fine = parsed > 0;
    if (parsed < 0) {
      status = SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for the telemetry of step %lld", path, (long long)record.step);
      break;
    }
    if (!fine) {
      if (end && at + length + 1 < size)
        status = SPT_FAIL(SPT_ERR_DATA, "%s:%d: not a metric record (one JSON object with a step); remove that line",
                          path, number);
      break;
    }
    if (record.step > last_step) break;
    if ((status = push(records_p, count_p, capacity_p, &record)) != SPT_OK) {
      free(record.matrices);
      break;
    }
    at += length + 1;
  }
  free(text);
  *bytes_p = at;
  return status;
}

spt_status spt_metrics_read(const char *path, spt_metric_record **records_p, int64_t *count_p) {
  spt_metric_record *records = NULL;
  int64_t count = 0, capacity = 0;
  uint64_t bytes;
  const spt_status status = parse(path, INT64_MAX, &records, &count, &capacity, &bytes);
  if (status != SPT_OK) {
    spt_metric_matrices_free(records, count);
    free(records);
    return status;
  }
  records = spt_metric_records_pack(records, count);
  if (!records) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for %lld metric records", path, (long long)count);
  *records_p = records;
  *count_p = count;
  return SPT_OK;
}

/* ---- the run's series ---- */

static char *join(const char *folder, const char *name) {
  const size_t bytes = strlen(folder) + strlen(name) + 2;
  char *path = malloc(bytes);
  if (path) snprintf(path, bytes, "%s/%s", folder, name);
  return path;
}

/* A file that a run of ours can have begun: regular, with no other name, empty or with our first key. */
static bool is_ours(int fd) {
  static const char begin[] = "{\"step\":";
  char text[sizeof begin - 1];
  struct stat info;
  const ssize_t bytes = pread(fd, text, sizeof text, 0);
  return fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_nlink == 1 && bytes >= 0 &&
         memcmp(text, begin, (size_t)bytes) == 0;
}

static spt_status open_files(spt_metrics *metrics, int64_t step) {
  metrics->fd = open(metrics->jsonl, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
  if (metrics->fd < 0 && errno != ELOOP)
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: opening failed: %s", metrics->jsonl, strerror(errno));
  if (metrics->fd < 0 || !is_ours(metrics->fd))
    return SPT_FAIL(SPT_ERR_USAGE,
                    "%s: is a link or was not written by this program, and is left alone; move it away or choose "
                    "another run.output",
                    metrics->jsonl);
  if (step > 0)
    SPT_TRY(parse(metrics->jsonl, step, &metrics->records, &metrics->count, &metrics->capacity, &metrics->bytes));
  if (ftruncate(metrics->fd, (off_t)metrics->bytes) != 0)
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: cutting at step %lld failed: %s", metrics->jsonl, (long long)step,
                    strerror(errno));
  metrics->written = metrics->synced = metrics->count;
  metrics->synced_bytes = metrics->bytes;
  return SPT_OK;
}

spt_status spt_metrics_open(const char *folder, int64_t step, spt_metrics **metrics_p) {
  spt_metrics *metrics = calloc(1, sizeof *metrics);
  if (!metrics) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for metrics", folder);
  metrics->fd = -1;
  metrics->jsonl = join(folder, "metrics.jsonl");
  metrics->hdf5 = join(folder, "metrics.h5");
  const spt_status status = metrics->jsonl && metrics->hdf5
                                ? open_files(metrics, step)
                                : SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for metrics", folder);
  if (status != SPT_OK) {
    spt_metrics_close(&metrics);
    return status;
  }
  *metrics_p = metrics;
  return SPT_OK;
}

void spt_metrics_close(spt_metrics **metrics_p) {
  spt_metrics *metrics = *metrics_p;
  if (!metrics) return;
  if (metrics->fd >= 0) close(metrics->fd);
  spt_metric_matrices_free(metrics->records, metrics->count);
  free(metrics->records);
  free(metrics->hdf5);
  free(metrics->jsonl);
  free(metrics);
  *metrics_p = NULL;
}

const spt_metric_record *spt_metrics_records(const spt_metrics *metrics, int64_t *count_p) {
  *count_p = metrics->count;
  return metrics->records;
}

char *spt_metrics_line(const spt_metric_record *record) {
  json_t *object = to_json(record);
  char *line = object ? json_dumps(object, JSON_COMPACT | JSON_PRESERVE_ORDER) : NULL;
  json_decref(object);
  return line;
}

static spt_status write_line(spt_metrics *metrics, const spt_metric_record *record) {
  char *line = spt_metrics_line(record);
  if (!line) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for a line", metrics->jsonl);
  const size_t length = strlen(line);
  line[length] = '\n'; // in place of the NUL: one write, so that a reader sees whole lines
  const spt_status status = spt_file_write_at(metrics->fd, metrics->jsonl, line, length + 1, metrics->bytes);
  free(line);
  if (status == SPT_OK)
    metrics->bytes += length + 1;
  else if (ftruncate(metrics->fd, (off_t)metrics->bytes) != 0)
    return status; // the torn line is left out by every reader, and overwritten by the next
  return status;
}

static spt_status write_lines(spt_metrics *metrics) {
  for (; metrics->written < metrics->count; metrics->written++)
    SPT_TRY(write_line(metrics, &metrics->records[metrics->written]));
  return SPT_OK;
}

spt_status spt_metrics_append(spt_metrics *metrics, const spt_metric_record *record) {
  spt_metric_record own = *record;
  if (!spt_metric_matrices_copy(&own)) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for a metric record");
  const spt_status status = push(&metrics->records, &metrics->count, &metrics->capacity, &own);
  if (status != SPT_OK) free(own.matrices);
  SPT_TRY(status);
  return write_lines(metrics);
}

/* Opens the file anew where its name no longer leads to it (a folder that was moved or removed), to write all of it. */
static spt_status reopen_vanished(spt_metrics *metrics) {
  struct stat opened, named;
  if (fstat(metrics->fd, &opened) == 0 && stat(metrics->jsonl, &named) == 0 && opened.st_ino == named.st_ino &&
      opened.st_dev == named.st_dev)
    return SPT_OK;
  const int fd = open(metrics->jsonl, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666); // another's stays as it is
  if (fd < 0) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: opening failed: %s", metrics->jsonl, strerror(errno));
  close(metrics->fd);
  metrics->fd = fd;
  metrics->bytes = metrics->synced_bytes = 0;
  metrics->written = metrics->synced = 0;
  return SPT_OK;
}

static spt_status sync_lines(spt_metrics *metrics) {
  SPT_TRY(reopen_vanished(metrics));
  SPT_TRY(write_lines(metrics));
  const spt_status status = spt_file_sync(metrics->fd, metrics->jsonl);
  if (status == SPT_OK) {
    metrics->synced = metrics->written;
    metrics->synced_bytes = metrics->bytes;
  } else { // the kernel may have dropped what it could not write
    metrics->written = metrics->synced;
    metrics->bytes = metrics->synced_bytes;
  }
  return status;
}

/* ---- metrics.h5 ---- */

/* One 1-D array of doubles. */
static bool put_values(hid_t group, const char *name, hsize_t count, const double *values) {
  const hid_t space = H5Screate_simple(1, &count, NULL);
  const hid_t set =
      space < 0 ? -1 : H5Dcreate2(group, name, H5T_IEEE_F64LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  bool fine = set >= 0 && (count == 0 || H5Dwrite(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0);
  if (set >= 0) fine = H5Dclose(set) >= 0 && fine;
  if (space >= 0) H5Sclose(space);
  return fine;
}

/* One 1-D array of doubles: the field over all records that have what is asked for. */
static bool put_series(hid_t group, const spt_metrics *metrics, const field *field, const char *name,
                       field_presence presence, double *values) {
  hsize_t count = 0;
  for (int64_t i = 0; i < metrics->count; i++)
    if (is_present(&metrics->records[i], presence)) values[count++] = get_number(&metrics->records[i], field);
  return put_values(group, name, count, values);
}

/* /grad_norms/<group>: over all records, NaN where a record has it not. */
static bool put_norm_series(hid_t file, const spt_metrics *metrics, double *values) {
  uint32_t present = 0;
  for (int64_t i = 0; i < metrics->count; i++) present |= metrics->records[i].gradient_groups;
  if (present == 0) return true;
  const hid_t group = H5Gcreate2(file, "/grad_norms", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  bool fine = group >= 0;
  for (int g = 0; fine && g < SPT_GRADIENT_GROUPS; g++) {
    if (!(present >> g & 1)) continue;
    for (int64_t i = 0; i < metrics->count; i++) {
      const spt_metric_record *record = &metrics->records[i];
      values[i] = has_norm(record, g) ? record->grad_norms[g] : (double)NAN;
    }
    fine = put_values(group, spt_gradient_group_name(g), (hsize_t)metrics->count, values);
  }
  if (group >= 0) fine = H5Gclose(group) >= 0 && fine;
  return fine;
}

/* A group of the fields that are there only where they were taken, with their steps and tokens. */
static bool put_group(hid_t file, const spt_metrics *metrics, const char *name, field_presence presence, double *values) {
  const hid_t group = H5Gcreate2(file, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  bool fine = group >= 0;
  for (int i = 0; fine && i < FIELDS; i++) {
    const bool axis = strcmp(fields[i].key, "step") == 0 || strcmp(fields[i].key, "tokens") == 0;
    if (axis || fields[i].presence == presence)
      fine = put_series(group, metrics, &fields[i], fields[i].key, presence, values);
  }
  if (fine && presence == MEASURED) fine = spt_metric_matrices_put(group, metrics->records, metrics->count);
  if (group >= 0) fine = H5Gclose(group) >= 0 && fine;
  return fine;
}

static bool put_all(hid_t file, const spt_metrics *metrics, double *values) {
  bool fine = true, measured = false, guided = false;
  for (int i = 0; fine && i < FIELDS; i++)
    if (fields[i].presence == ALWAYS) fine = put_series(file, metrics, &fields[i], fields[i].key, ALWAYS, values);
  for (int64_t i = 0; i < metrics->count; i++) measured |= metrics->records[i].matrix_count > 0, guided |= metrics->records[i].guided;
  fine = fine && put_group(file, metrics, "/validation", VALIDATED, values) && put_norm_series(file, metrics, values);
  fine = fine && (!guided || (put_group(file, metrics, "/guidance", GUIDED, values) &&
                              put_group(file, metrics, "/guidance_validation", GUIDED_VALIDATED, values)));
  return fine && (!measured || put_group(file, metrics, "/spectral", MEASURED, values));
}

/* The file as bytes, made in memory: HDF5 never meets a full disk. */
static bool make_image(const spt_metrics *metrics, double *values, void **image_p, size_t *bytes_p) {
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  hid_t file = -1;
  if (access >= 0 && H5Pset_fapl_core(access, 1 << 20, false) >= 0)
    file = H5Fcreate("metrics.h5", H5F_ACC_TRUNC, H5P_DEFAULT, access);
  bool fine = file >= 0 && put_all(file, metrics, values) && H5Fflush(file, H5F_SCOPE_GLOBAL) >= 0;
  const ssize_t bytes = fine ? H5Fget_file_image(file, NULL, 0) : -1;
  void *image = bytes > 0 ? malloc((size_t)bytes) : NULL;
  fine = image && H5Fget_file_image(file, image, (size_t)bytes) == bytes;
  if (file >= 0) H5Fclose(file);
  if (access >= 0) H5Pclose(access);
  if (!fine) {
    free(image);
    return false;
  }
  *image_p = image;
  *bytes_p = (size_t)bytes;
  return true;
}

spt_status spt_metrics_write_hdf5(spt_metrics *metrics) {
  spt_hdf5_quiet();
  SPT_TRY(sync_lines(metrics));
  double *values = malloc(((size_t)metrics->count + 1) * sizeof *values);
  void *image = NULL;
  size_t bytes = 0;
  spt_status status = SPT_OK;
  if (!values || !make_image(metrics, values, &image, &bytes))
    status = SPT_FAIL(SPT_ERR_RESOURCE, "%s: the HDF5 library cannot make it (out of memory?)", metrics->hdf5);
  if (status == SPT_OK) status = spt_file_replace(metrics->hdf5, image, bytes);
  free(image);
  free(values);
  return status;
}
