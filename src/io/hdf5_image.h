/* An HDF5 file in memory, whose unwritten parts cost nothing: the library makes a file's metadata there, where no disk
 * can fail it. (Its core driver would hold the tensors too.) Local. */
#ifndef SPT_HDF5_IMAGE_H
#define SPT_HDF5_IMAGE_H

#include "core/status.h"

#include <hdf5.h>
#include <stdint.h>

typedef struct spt_hdf5_image spt_hdf5_image;

/* An empty image; close releases it. SPT_ERR_RESOURCE: out of memory. */
spt_status spt_hdf5_image_open(spt_hdf5_image **image_p);
void spt_hdf5_image_close(spt_hdf5_image **image_p);
/* Creates the HDF5 file in it; `access` is given its driver. The caller closes the file, before the image. < 0: failed.
 */
hid_t spt_hdf5_image_create(spt_hdf5_image *image, hid_t creation, hid_t access);
/* The file's length in bytes, once it is closed. */
uint64_t spt_hdf5_image_bytes(const spt_hdf5_image *image);
/* Copies [offset, offset + count) of the file; what was never written is zero. */
void spt_hdf5_image_read(const spt_hdf5_image *image, void *bytes, size_t count, uint64_t offset);

#endif
