/* The telemetry of matrices in metrics.jsonl and metrics.h5. */
#include "metrics_internal.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY(key, meaning) {#key, offsetof(spt_telemetry, key)},
static const struct {
  const char *key;
  size_t offset;
} values[SPT_TELEMETRY_FIELDS] = {SPT_TELEMETRY_TABLE(KEY)};

static double *value_of(spt_telemetry *telemetry, int i) {
  return (double *)(void *)((char *)telemetry + values[i].offset);
}
static double get_value(const spt_telemetry *telemetry, int i) {
  return *(const double *)(const void *)((const char *)telemetry + values[i].offset);
}

json_t *spt_metric_matrices_to_json(const spt_metric_record *record) {
  json_t *all = json_object();
  for (int m = 0; all && m < record->matrix_count; m++) {
    const spt_metric_matrix *matrix = &record->matrices[m];
    json_t *object = json_object();
    bool fine = object != NULL;
    for (int i = 0; fine && i < SPT_TELEMETRY_FIELDS; i++) {
      const double value = get_value(&matrix->values, i);
      fine = json_object_set_new(object, values[i].key, isfinite(value) ? json_real(value) : json_null()) == 0;
    }
    if (!fine) json_decref(object);
    if (!fine || json_object_set_new(all, matrix->name, object) != 0) {
      json_decref(all);
      return NULL;
    }
  }
  return all;
}

bool spt_metric_matrices_from_json(const json_t *spectral, spt_metric_record *record) {
  const size_t count = json_object_size(spectral);
  record->matrices = NULL;
  record->matrix_count = 0;
  if (count == 0) return true;
  record->matrices = calloc(count, sizeof *record->matrices);
  if (!record->matrices) return false;
  for (void *at = json_object_iter((json_t *)spectral); at; at = json_object_iter_next((json_t *)spectral, at)) {
    spt_metric_matrix *matrix = &record->matrices[record->matrix_count++];
    snprintf(matrix->name, sizeof matrix->name, "%s", json_object_iter_key(at));
    for (int i = 0; i < SPT_TELEMETRY_FIELDS; i++) {
      const json_t *value = json_object_get(json_object_iter_value(at), values[i].key);
      *value_of(&matrix->values, i) = json_is_number(value) ? json_number_value(value) : NAN;
    }
  }
  return true;
}

bool spt_metric_matrices_copy(spt_metric_record *record) {
  const spt_metric_matrix *from = record->matrices;
  const size_t bytes = (size_t)record->matrix_count * sizeof *from;
  record->matrices = NULL;
  if (bytes == 0) return true;
  record->matrices = malloc(bytes);
  if (record->matrices) memcpy(record->matrices, from, bytes);
  return record->matrices != NULL;
}

void spt_metric_matrices_free(spt_metric_record *records, int64_t count) {
  for (int64_t i = 0; i < count; i++) free(records[i].matrices);
}

spt_metric_record *spt_metric_records_pack(spt_metric_record *records, int64_t count) {
  size_t matrices = 0;
  for (int64_t i = 0; i < count; i++) matrices += (size_t)records[i].matrix_count;
  const size_t before = (size_t)count * sizeof *records; // a multiple of a double's size
  char *block = malloc(before + matrices * sizeof(spt_metric_matrix) + 1);
  spt_metric_matrix *next = block ? (spt_metric_matrix *)(void *)(block + before) : NULL;
  for (int64_t i = 0; block && i < count; i++) {
    spt_metric_record *record = (spt_metric_record *)(void *)block + i;
    *record = records[i];
    if (record->matrix_count == 0) continue;
    record->matrices = memcpy(next, records[i].matrices, (size_t)record->matrix_count * sizeof *next);
    next += record->matrix_count;
  }
  spt_metric_matrices_free(records, count);
  free(records);
  return (spt_metric_record *)(void *)block;
}

/* ---- metrics.h5 ---- */

/* All names, in the order of their first record; malloc'ed, NULL out of memory. */
static char (*list_names(const spt_metric_record *records, int64_t count, int *names_p))[SPT_NAME_MAX] {
  char(*names)[SPT_NAME_MAX] = malloc(sizeof *names);
  int found = 0;
  for (int64_t r = 0; names && r < count; r++)
    for (int m = 0; names && m < records[r].matrix_count; m++) {
      const char *name = records[r].matrices[m].name;
      int i = m < found && strcmp(names[m], name) == 0 ? m : 0; // as a rule all records have the same
      while (i < found && strcmp(names[i], name) != 0) i++;
      if (i < found) continue;
      char(*grown)[SPT_NAME_MAX] = realloc(names, ((size_t)found + 1) * sizeof *names);
      if (!grown) free(names);
      names = grown;
      if (names) memcpy(names[found++], name, sizeof *names);
    }
  *names_p = found;
  return names;
}

static bool put_dataset(hid_t group, const char *name, int rank, const hsize_t *size, hid_t type, const void *data) {
  const hid_t space = H5Screate_simple(rank, size, NULL);
  const hid_t set = space < 0 ? -1 : H5Dcreate2(group, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  bool fine = set >= 0 && (size[0] == 0 || H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
  if (set >= 0) fine = H5Dclose(set) >= 0 && fine;
  if (space >= 0) H5Sclose(space);
  return fine;
}

static bool put_names(hid_t group, int count, char (*names)[SPT_NAME_MAX]) {
  const hsize_t size[1] = {(hsize_t)count};
  const hid_t type = H5Tcopy(H5T_C_S1);
  const bool fine = type >= 0 && H5Tset_size(type, SPT_NAME_MAX) >= 0 && put_dataset(group, "names", 1, size, type, names);
  if (type >= 0) H5Tclose(type);
  return fine;
}

/* Value i of all records that have telemetry, (records, names). */
static void fill(const spt_metric_record *records, int64_t count, int i, int names, char (*name)[SPT_NAME_MAX], double *table) {
  for (int64_t r = 0; r < count; r++) {
    if (records[r].matrix_count == 0) continue;
    for (int n = 0; n < names; n++) table[n] = NAN;
    for (int m = 0; m < records[r].matrix_count; m++) {
      int n = m < names && strcmp(name[m], records[r].matrices[m].name) == 0 ? m : 0;
      while (n < names && strcmp(name[n], records[r].matrices[m].name) != 0) n++;
      if (n < names) table[n] = get_value(&records[r].matrices[m].values, i);
    }
    table += names;
  }
}

bool spt_metric_matrices_put(hid_t group, const spt_metric_record *records, int64_t count) {
  int names;
  char(*name)[SPT_NAME_MAX] = list_names(records, count, &names);
  hsize_t size[2] = {0, name ? (hsize_t)names : 0};
  for (int64_t r = 0; r < count; r++) size[0] += records[r].matrix_count > 0;
  double *table = malloc((size_t)(size[0] * size[1]) * sizeof *table + 1);
  bool fine = name && table && put_names(group, names, name);
  for (int i = 0; fine && i < SPT_TELEMETRY_FIELDS; i++) {
    fill(records, count, i, names, name, table);
    fine = put_dataset(group, values[i].key, 2, size, H5T_NATIVE_DOUBLE, table);
  }
  free(table);
  free(name);
  return fine;
}
