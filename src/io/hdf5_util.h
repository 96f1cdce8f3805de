/* What every HDF5 file of ours needs: a quiet, lock-free, plugin-free way in, and attributes of any string or integer
 * kind. */
#ifndef SPT_HDF5_UTIL_H
#define SPT_HDF5_UTIL_H

#include "core/status.h"

#include <hdf5.h>
#include <stdbool.h>
#include <stdint.h>

/* No error stack on stderr (per thread in a thread-safe build), no filter plugins. Call before other HDF5 calls on a
 * thread. */
void spt_hdf5_quiet(void);
/* H5Fopen of `open_name` without file locking (network file systems refuse locks). SPT_ERR_DATA names it `path`. Call
 * it in a reader process only (hdf5_process.h). */
spt_status spt_hdf5_open_read(const char *open_name, const char *path, hid_t *file_p);
/* True when `name` is an attribute of `object`. */
bool spt_hdf5_has_attribute(hid_t object, const char *name);
/* One integer of any width or sign, scalar or of one element. SPT_ERR_DATA names file and attribute. */
spt_status spt_hdf5_get_int(hid_t object, const char *path, const char *name, int64_t *value_p);
/* One floating-point number of any width. SPT_ERR_DATA names file and attribute. */
spt_status spt_hdf5_get_double(hid_t object, const char *path, const char *name, double *value_p);
/* One fixed or variable-length string; longer than `size` − 1 bytes is SPT_ERR_DATA. */
spt_status spt_hdf5_get_string(hid_t object, const char *path, const char *name, char *text, size_t size);
/* Scalar attributes: int64 and fixed-length UTF-8. SPT_ERR_RESOURCE names the file. */
spt_status spt_hdf5_put_int(hid_t object, const char *path, const char *name, int64_t value);
spt_status spt_hdf5_put_string(hid_t object, const char *path, const char *name, const char *text);

#endif
