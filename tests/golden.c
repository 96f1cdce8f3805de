#include "golden.h"

#include "unit_test.h"

#include <math.h>

hid_t golden_open(const char *name) {
  char path[1024];
  assert_true(snprintf(path, sizeof path, "%s/%s", SPT_GOLDEN_DIR, name) < (int)sizeof path);
  const hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
  if (file < 0) fail_msg("cannot open the golden file %s", path);
  return file;
}

int64_t golden_count(hid_t file, const char *path) {
  const htri_t exists = H5Lexists(file, path, H5P_DEFAULT);
  assert_true(exists >= 0);
  if (!exists) return -1;
  const hid_t dataset = H5Dopen2(file, path, H5P_DEFAULT);
  assert_true(dataset >= 0);
  const hid_t space = H5Dget_space(dataset);
  const hssize_t count = H5Sget_simple_extent_npoints(space);
  H5Sclose(space);
  H5Dclose(dataset);
  return (int64_t)count;
}

static void read_all(hid_t file, const char *path, hid_t type, int64_t count, void *values) {
  const int64_t found = golden_count(file, path);
  if (found != count) fail_msg("%s: %lld elements, %lld expected", path, (long long)found, (long long)count);
  const hid_t dataset = H5Dopen2(file, path, H5P_DEFAULT);
  assert_true(dataset >= 0);
  assert_true(H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0);
  H5Dclose(dataset);
}

void golden_floats(hid_t file, const char *path, int64_t count, float *values) {
  read_all(file, path, H5T_NATIVE_FLOAT, count, values);
}
void golden_doubles(hid_t file, const char *path, int64_t count, double *values) {
  read_all(file, path, H5T_NATIVE_DOUBLE, count, values);
}
void golden_int32(hid_t file, const char *path, int64_t count, int32_t *values) {
  read_all(file, path, H5T_NATIVE_INT32, count, values);
}
void golden_int64(hid_t file, const char *path, int64_t count, int64_t *values) {
  read_all(file, path, H5T_NATIVE_INT64, count, values);
}

int64_t golden_members(hid_t file, const char *path) {
  H5G_info_t info;
  assert_true(H5Gget_info_by_name(file, path, &info, H5P_DEFAULT) >= 0);
  return (int64_t)info.nlinks;
}

static void read_attribute(hid_t file, const char *path, const char *name, hid_t type, void *value) {
  const hid_t attribute = H5Aopen_by_name(file, path, name, H5P_DEFAULT, H5P_DEFAULT);
  if (attribute < 0) fail_msg("%s has no attribute %s", path, name);
  assert_true(H5Aread(attribute, type, value) >= 0);
  H5Aclose(attribute);
}

int64_t golden_attribute_int(hid_t file, const char *path, const char *name) {
  int64_t value;
  read_attribute(file, path, name, H5T_NATIVE_INT64, &value);
  return value;
}

double golden_attribute_double(hid_t file, const char *path, const char *name) {
  double value;
  read_attribute(file, path, name, H5T_NATIVE_DOUBLE, &value);
  return value;
}

/* h5py writes text as variable-length UTF-8. */
void golden_attribute_text(hid_t file, const char *path, const char *name, char *text, size_t size) {
  const hid_t type = H5Tcopy(H5T_C_S1);
  assert_true(H5Tset_size(type, H5T_VARIABLE) >= 0 && H5Tset_cset(type, H5T_CSET_UTF8) >= 0);
  char *value = NULL;
  read_attribute(file, path, name, type, &value);
  assert_true(strlen(value) < size);
  strcpy(text, value);
  H5free_memory(value);
  H5Tclose(type);
}

double relative_distance(int64_t count, const float *x, const float *reference, const float *base) {
  double difference = 0, scale = 0;
  for (int64_t i = 0; i < count; i++) {
    const double d = (double)x[i] - reference[i], s = (double)reference[i] - (base ? base[i] : 0.0f);
    difference += d * d;
    scale += s * s;
  }
  return difference == 0 ? 0 : sqrt(difference / scale);
}
