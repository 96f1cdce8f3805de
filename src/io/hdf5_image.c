/* A file driver for the HDF5 library: pages of memory, taken when something is written to them. */
#include "hdf5_image.h"

#include <stdlib.h>
#include <string.h>
#if H5_VERSION_GE(1, 13, 2) // where drivers moved to, and began to carry a version
#include <H5FDdevelop.h>
#define DRIVER_IDENTITY .version = H5FD_CLASS_VERSION, .value = 300, // of those for private use
#else
#define DRIVER_IDENTITY
#endif

enum { PAGE = 1 << 16 };

struct spt_hdf5_image {
  unsigned char **pages; /* NULL: zeros */
  size_t page_count;
  haddr_t end_allocated, end_written;
};

/* What the library holds of an open file. */
typedef struct image_file {
  H5FD_t base;           /* first, as it demands */
  spt_hdf5_image *image; /* not owned */
} image_file;

/* Carried by the access properties. */
typedef struct image_access {
  spt_hdf5_image *image;
} image_access;

static spt_hdf5_image *image_of(const H5FD_t *file) {
  return ((const image_file *)(const void *)file)->image;
}

static H5FD_t *image_open(const char *name, unsigned flags, hid_t access, haddr_t max_address) {
  (void)name, (void)flags, (void)max_address;
  const image_access *info = H5Pget_driver_info(access);
  image_file *file = info ? calloc(1, sizeof *file) : NULL;
  if (!file) return NULL;
  file->image = info->image;
  return &file->base;
}

static herr_t image_close(H5FD_t *file) {
  free(file);
  return 0;
}

/* As the library's own driver for files, so that the layout is the same. */
static herr_t image_query(const H5FD_t *file, unsigned long *flags) {
  (void)file;
  *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
           H5FD_FEAT_AGGREGATE_SMALLDATA;
  return 0;
}

static haddr_t image_get_eoa(const H5FD_t *file, H5FD_mem_t type) {
  (void)type;
  return image_of(file)->end_allocated;
}

static herr_t image_set_eoa(H5FD_t *file, H5FD_mem_t type, haddr_t address) {
  (void)type;
  image_of(file)->end_allocated = address;
  return 0;
}

static haddr_t image_get_eof(const H5FD_t *file, H5FD_mem_t type) {
  (void)type;
  return image_of(file)->end_written;
}

static herr_t image_read(H5FD_t *file, H5FD_mem_t type, hid_t transfer, haddr_t address, size_t size, void *buffer) {
  (void)type, (void)transfer;
  spt_hdf5_image_read(image_of(file), buffer, size, address);
  return 0;
}

static unsigned char *take_page(spt_hdf5_image *image, size_t page) {
  if (page >= image->page_count) {
    const size_t count = page + page / 2 + 64;
    unsigned char **pages = realloc(image->pages, count * sizeof *pages);
    if (!pages) return NULL;
    memset(pages + image->page_count, 0, (count - image->page_count) * sizeof *pages);
    image->pages = pages;
    image->page_count = count;
  }
  if (!image->pages[page]) image->pages[page] = calloc(1, PAGE);
  return image->pages[page];
}

static herr_t image_write(H5FD_t *file, H5FD_mem_t type, hid_t transfer, haddr_t address, size_t size,
                          const void *buffer) {
  (void)type, (void)transfer;
  spt_hdf5_image *image = image_of(file);
  const unsigned char *from = buffer;
  while (size > 0) {
    const size_t at = (size_t)(address % PAGE), count = PAGE - at < size ? PAGE - at : size;
    unsigned char *page = take_page(image, (size_t)(address / PAGE));
    if (!page) return -1;
    memcpy(page + at, from, count);
    from += count;
    address += count;
    size -= count;
  }
  if (address > image->end_written) image->end_written = address;
  return 0;
}

static const H5FD_class_t driver = {DRIVER_IDENTITY.name = "spectron_image",
                                    .maxaddr = (haddr_t)INT64_MAX,
                                    .fc_degree = H5F_CLOSE_WEAK,
                                    .fapl_size = sizeof(image_access),
                                    .open = image_open,
                                    .close = image_close,
                                    .query = image_query,
                                    .get_eoa = image_get_eoa,
                                    .set_eoa = image_set_eoa,
                                    .get_eof = image_get_eof,
                                    .read = image_read,
                                    .write = image_write,
                                    .fl_map = H5FD_FLMAP_DICHOTOMY};

spt_status spt_hdf5_image_open(spt_hdf5_image **image_p) {
  *image_p = calloc(1, sizeof **image_p);
  return *image_p ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for a file's metadata");
}

void spt_hdf5_image_close(spt_hdf5_image **image_p) {
  spt_hdf5_image *image = *image_p;
  if (!image) return;
  for (size_t i = 0; i < image->page_count; i++) free(image->pages[i]);
  free(image->pages);
  free(image);
  *image_p = NULL;
}

hid_t spt_hdf5_image_create(spt_hdf5_image *image, hid_t creation, hid_t access) {
  const image_access info = {image};
  const hid_t registered = H5FDregister(&driver);
  if (registered < 0) return -1;
  hid_t file = -1;
  if (H5Pset_driver(access, registered, &info) >= 0) file = H5Fcreate("image", H5F_ACC_TRUNC, creation, access);
  H5FDunregister(registered); // the file and `access` keep it as long as they need it
  return file;
}

uint64_t spt_hdf5_image_bytes(const spt_hdf5_image *image) {
  return image->end_allocated;
}

void spt_hdf5_image_read(const spt_hdf5_image *image, void *bytes, size_t count, uint64_t offset) {
  unsigned char *to = bytes;
  while (count > 0) {
    const size_t page = (size_t)(offset / PAGE), at = (size_t)(offset % PAGE),
                 n = PAGE - at < count ? PAGE - at : count;
    if (page < image->page_count && image->pages[page])
      memcpy(to, image->pages[page] + at, n);
    else
      memset(to, 0, n);
    to += n;
    offset += n;
    count -= n;
  }
}
