/* Reads the committed golden files of tests/reference (HDF5). Any failure, a missing name or an unexpected size fails
 * the running cmocka test. `path` names a dataset or object inside the file. */
#ifndef GOLDEN_H
#define GOLDEN_H

#include <hdf5.h>
#include <stddef.h>
#include <stdint.h>

/* Opens tests/reference/<name> read-only; close with H5Fclose. */
hid_t golden_open(const char *name);
/* A whole dataset of exactly `count` elements, converted to the memory type. */
void golden_floats(hid_t file, const char *path, int64_t count, float *values);
void golden_doubles(hid_t file, const char *path, int64_t count, double *values);
void golden_int32(hid_t file, const char *path, int64_t count, int32_t *values);
void golden_int64(hid_t file, const char *path, int64_t count, int64_t *values);
/* Elements of a dataset; -1 if there is no such path (its parent must exist). */
int64_t golden_count(hid_t file, const char *path);
/* Links in a group. */
int64_t golden_members(hid_t file, const char *path);
int64_t golden_attribute_int(hid_t file, const char *path, const char *name);
double golden_attribute_double(hid_t file, const char *path, const char *name);
void golden_attribute_text(hid_t file, const char *path, const char *name, char *text, size_t size);

/* ‖x − reference‖ / ‖reference − base‖, Euclidean; base NULL = 0. NaN stays NaN, so compare with `<=` only. */
double relative_distance(int64_t count, const float *x, const float *reference, const float *base);

#endif
