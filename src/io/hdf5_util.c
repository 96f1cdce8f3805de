#include "hdf5_util.h"

#include <stdlib.h>
#include <string.h>

enum { STRING_MAX = 65536 };

void spt_hdf5_quiet(void) {
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  H5PLset_loading_state(0);
}

void spt_hdf5_no_locks(hid_t access) {
#if H5_VERSION_GE(1, 12, 1) || (H5_VERS_MAJOR == 1 && H5_VERS_MINOR == 10 && H5_VERS_RELEASE >= 7)
  H5Pset_file_locking(access, false, true);
#else
  (void)access; // these libraries heed HDF5_USE_FILE_LOCKING=FALSE in the environment only
#endif
}

spt_status spt_hdf5_open_read(const char *open_name, const char *path, hid_t *file_p) {
  spt_hdf5_quiet();
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  if (access < 0) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: HDF5 is out of resources", path);
  spt_hdf5_no_locks(access);
  const hid_t file = H5Fopen(open_name, H5F_ACC_RDONLY, access);
  H5Pclose(access);
  if (file < 0) return SPT_FAIL(SPT_ERR_DATA, "%s: not a whole HDF5 file (damaged, truncated or something else)", path);
  *file_p = file;
  return SPT_OK;
}

bool spt_hdf5_has_attribute(hid_t object, const char *name) {
  return H5Aexists(object, name) > 0;
}

/* Opens an attribute of one element and of the wanted class. */
static spt_status open_attribute(hid_t object, const char *path, const char *name, H5T_class_t class,
                                 hid_t *attribute_p, hid_t *type_p) {
  if (!spt_hdf5_has_attribute(object, name)) return SPT_FAIL(SPT_ERR_DATA, "%s: no attribute '%s'", path, name);
  const hid_t attribute = H5Aopen(object, name, H5P_DEFAULT);
  if (attribute < 0) return SPT_FAIL(SPT_ERR_DATA, "%s: attribute '%s' cannot be opened", path, name);
  const hid_t type = H5Aget_type(attribute), space = H5Aget_space(attribute);
  const hssize_t points = space < 0 ? -1 : H5Sget_simple_extent_npoints(space);
  if (space >= 0) H5Sclose(space);
  if (type >= 0 && points == 1 && H5Tget_class(type) == class) {
    *attribute_p = attribute;
    *type_p = type;
    return SPT_OK;
  }
  if (type >= 0) H5Tclose(type);
  H5Aclose(attribute);
  return SPT_FAIL(SPT_ERR_DATA, "%s: attribute '%s' is not one %s", path, name,
                  class == H5T_INTEGER ? "integer"
                  : class == H5T_FLOAT ? "number"
                                       : "string");
}

spt_status spt_hdf5_get_int(hid_t object, const char *path, const char *name, int64_t *value_p) {
  hid_t attribute, type;
  SPT_TRY(open_attribute(object, path, name, H5T_INTEGER, &attribute, &type));
  int64_t value = 0;
  const herr_t error = H5Aread(attribute, H5T_NATIVE_INT64, &value);
  H5Tclose(type);
  H5Aclose(attribute);
  if (error < 0) return SPT_FAIL(SPT_ERR_DATA, "%s: attribute '%s' cannot be read", path, name);
  *value_p = value;
  return SPT_OK;
}

spt_status spt_hdf5_get_double(hid_t object, const char *path, const char *name, double *value_p) {
  hid_t attribute, type;
  SPT_TRY(open_attribute(object, path, name, H5T_FLOAT, &attribute, &type));
  double value = 0;
  const herr_t error = H5Aread(attribute, H5T_NATIVE_DOUBLE, &value);
  H5Tclose(type);
  H5Aclose(attribute);
  if (error < 0) return SPT_FAIL(SPT_ERR_DATA, "%s: attribute '%s' cannot be read", path, name);
  *value_p = value;
  return SPT_OK;
}

/* NUL-terminated copy of the attribute's string, NULL when it cannot be read. */
static char *read_string(hid_t attribute, hid_t type) {
  const bool variable = H5Tis_variable_str(type) > 0;
  const size_t width = H5Tget_size(type);
  char *text = NULL, *bytes = NULL;
  const hid_t memory = H5Tcopy(H5T_C_S1);
  if (memory < 0 || H5Tset_cset(memory, H5Tget_cset(type)) < 0) goto done;
  if (variable) {
    if (H5Tset_size(memory, H5T_VARIABLE) < 0 || H5Aread(attribute, memory, &bytes) < 0) goto done;
    text = strdup(bytes ? bytes : "");
    H5free_memory(bytes);
  } else if (width > 0 && width < STRING_MAX) {
    text = calloc(1, width + 1); // one byte more: a full fixed string has no NUL of its own
    if (text && (H5Tset_size(memory, width + 1) < 0 || H5Aread(attribute, memory, text) < 0)) {
      free(text);
      text = NULL;
    }
    if (text && H5Tget_strpad(type) == H5T_STR_SPACEPAD)
      for (size_t n = strlen(text); n > 0 && text[n - 1] == ' '; n--) text[n - 1] = '\0';
  }
done:
  if (memory >= 0) H5Tclose(memory);
  return text;
}

spt_status spt_hdf5_get_string(hid_t object, const char *path, const char *name, char *text, size_t size) {
  hid_t attribute, type;
  SPT_TRY(open_attribute(object, path, name, H5T_STRING, &attribute, &type));
  char *found = read_string(attribute, type);
  H5Tclose(type);
  H5Aclose(attribute);
  if (!found) return SPT_FAIL(SPT_ERR_DATA, "%s: attribute '%s' cannot be read", path, name);
  const size_t length = strlen(found);
  if (length < size) memcpy(text, found, length + 1);
  free(found);
  if (length >= size)
    return SPT_FAIL(SPT_ERR_DATA, "%s: attribute '%s' has %zu bytes, at most %zu", path, name, length, size - 1);
  return SPT_OK;
}

static spt_status put(hid_t object, const char *path, const char *name, hid_t type, const void *value) {
  const hid_t space = H5Screate(H5S_SCALAR);
  const hid_t attribute = space < 0 || type < 0 ? -1 : H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  const bool written = attribute >= 0 && H5Awrite(attribute, type, value) >= 0;
  const bool closed = attribute >= 0 && H5Aclose(attribute) >= 0;
  if (space >= 0) H5Sclose(space);
  if (!written || !closed) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: attribute '%s' cannot be written", path, name);
  return SPT_OK;
}

spt_status spt_hdf5_put_int(hid_t object, const char *path, const char *name, int64_t value) {
  return put(object, path, name, H5T_NATIVE_INT64, &value);
}

spt_status spt_hdf5_put_string(hid_t object, const char *path, const char *name, const char *text) {
  const hid_t type = H5Tcopy(H5T_C_S1);
  spt_status status = SPT_ERR_RESOURCE;
  if (type >= 0 && H5Tset_size(type, strlen(text) + 1) >= 0 && H5Tset_cset(type, H5T_CSET_UTF8) >= 0)
    status = put(object, path, name, type, text);
  else
    SPT_FAIL(SPT_ERR_RESOURCE, "%s: attribute '%s' cannot be written", path, name);
  if (type >= 0) H5Tclose(type);
  return status;
}
