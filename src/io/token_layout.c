/* What HDF5 says of a token shard. Runs in a reader process (hdf5_process.h); everything is checked before it is
 * believed: links, types, ranks, extents, layouts, filters. Afterwards only numbers leave. */
#include "token_layout.h"
#include "hdf5_answer.h"
#include "hdf5_util.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { CHUNK_BYTES_MAX = 1 << 28, DEFLATE_RATIO_MAX = 1032 };

typedef struct shard {
  const char *path;
  int64_t size; /* bytes of the file */
  hid_t file, sets[SPT_SHARD_SETS];
  spt_shard_layout layout;
} shard;

/* Space, type: one dimension of unsigned integers of an allowed width. */
static spt_status check_shape(const char *path, const char *name, hid_t set, bool wide_only, spt_shard_set *extent_p,
                              bool *native_p) {
  const hid_t type = H5Dget_type(set), space = H5Dget_space(set);
  hsize_t count = 0;
  const int dimensions = space < 0 ? -1 : H5Sget_simple_extent_ndims(space);
  if (dimensions == 1 && H5Sget_simple_extent_dims(space, &count, NULL) != 1) count = 0;
  const bool integer = type >= 0 && H5Tget_class(type) == H5T_INTEGER && H5Tget_sign(type) == H5T_SGN_NONE;
  const size_t width = type < 0 ? 0 : H5Tget_size(type);
  const hid_t native = width == 2 ? H5T_NATIVE_UINT16 : width == 4 ? H5T_NATIVE_UINT32 : H5T_NATIVE_UINT64;
  *native_p = integer && H5Tequal(type, native) > 0;
  const bool committed = type < 0 || H5Tcommitted(type) != 0;
  if (type >= 0) H5Tclose(type);
  if (space >= 0) H5Sclose(space);
  if (dimensions != 1) return SPT_FAIL(SPT_ERR_DATA, "%s: /%s has %d dimensions, wanted 1", path, name, dimensions);
  if (!integer || (wide_only ? width != 8 : width != 2 && width != 4))
    return SPT_FAIL(SPT_ERR_DATA, "%s: /%s must hold %s", path, name, wide_only ? "uint64" : "uint16 or uint32");
  if (committed) return SPT_FAIL(SPT_ERR_DATA, "%s: /%s has a committed datatype, wanted its own", path, name);
  if (count > INT64_MAX / 16)
    return SPT_FAIL(SPT_ERR_DATA, "%s: /%s claims %llu elements", path, name, (unsigned long long)count);
  extent_p->count = (int64_t)count;
  extent_p->width = (int32_t)width;
  return SPT_OK;
}

/* Plain chunks: those filters that can neither load code nor make much of nothing. */
static spt_status check_filters(const char *path, const char *name, hid_t plan, bool *fletcher32_p) {
  const int filters = H5Pget_nfilters(plan);
  for (int i = 0; i < filters; i++) {
    unsigned flags;
    size_t values = 0;
    char label[64] = "";
    const H5Z_filter_t filter = H5Pget_filter2(plan, (unsigned)i, &flags, &values, NULL, sizeof label, label, NULL);
    label[sizeof label - 1] = '\0';
    if (filter == H5Z_FILTER_FLETCHER32) *fletcher32_p = true;
    if ((filter != H5Z_FILTER_FLETCHER32 && filter != H5Z_FILTER_SHUFFLE && filter != H5Z_FILTER_DEFLATE) ||
        H5Zfilter_avail(filter) <= 0)
      return SPT_FAIL(SPT_ERR_DATA, "%s: /%s is packed with HDF5 filter %d (%s), which this program does not load",
                      path, name, (int)filter, label);
  }
  return filters < 0 ? SPT_FAIL(SPT_ERR_DATA, "%s: /%s has unreadable filters", path, name) : SPT_OK;
}

/* Every chunk is stored: what is not would read as zeros. */
static bool chunks_are_there(hid_t set, int64_t count, hsize_t chunk) {
#if H5_VERSION_GE(1, 10, 5)
  const hid_t space = H5Dget_space(set);
  hsize_t stored = 0;
  const bool known = space >= 0 && H5Dget_num_chunks(set, space, &stored) >= 0;
  if (space >= 0) H5Sclose(space);
  return known && stored == ((hsize_t)count + chunk - 1) / chunk;
#else
  (void)set, (void)count, (void)chunk;
  return true;
#endif
}

/* Chunked storage: no more elements than its bytes can hold, none missing. */
static spt_status check_chunks(const shard *s, const char *name, hid_t set, hsize_t chunk,
                               const spt_shard_set *extent) {
  const hsize_t stored = H5Dget_storage_size(set);
  const int64_t bytes = extent->count * extent->width;
  if (chunk < 1 || chunk > (hsize_t)(CHUNK_BYTES_MAX / extent->width))
    return SPT_FAIL(SPT_ERR_DATA, "%s: /%s has chunks of more than %d bytes", s->path, name, CHUNK_BYTES_MAX);
  if (stored > (hsize_t)s->size || bytes / DEFLATE_RATIO_MAX > (int64_t)stored)
    return SPT_FAIL(SPT_ERR_DATA, "%s: /%s claims %lld elements, more than its %llu bytes can hold", s->path, name,
                    (long long)extent->count, (unsigned long long)stored);
  if (!chunks_are_there(set, extent->count, chunk))
    return SPT_FAIL(SPT_ERR_DATA, "%s: /%s is incomplete: chunks of its %lld elements are missing", s->path, name,
                    (long long)extent->count);
  return SPT_OK;
}

/* Contiguous or chunked storage inside of this file. */
static spt_status check_layout(shard *s, const char *name, hid_t set, spt_shard_set *extent_p) {
  const hid_t plan = H5Dget_create_plist(set);
  if (plan < 0) return SPT_FAIL(SPT_ERR_DATA, "%s: /%s has no readable layout", s->path, name);
  const H5D_layout_t kind = H5Pget_layout(plan);
  const int external = H5Pget_external_count(plan);
  bool fletcher32 = false;
  hsize_t chunk = 0;
  if (kind == H5D_CHUNKED && H5Pget_chunk(plan, 1, &chunk) != 1) chunk = 0;
  const spt_status status = check_filters(s->path, name, plan, &fletcher32);
  H5Pclose(plan);
  SPT_TRY(status);
  s->layout.fletcher32 |= fletcher32;
  if (external != 0 || (kind != H5D_CONTIGUOUS && kind != H5D_CHUNKED))
    return SPT_FAIL(SPT_ERR_DATA, "%s: /%s has %s layout, wanted contiguous or chunked", s->path, name,
                    external              ? "external"
                    : kind == H5D_VIRTUAL ? "virtual"
                    : kind == H5D_COMPACT ? "compact"
                                          : "an unknown");
  extent_p->offset = -1;
  if (kind == H5D_CHUNKED) return check_chunks(s, name, set, chunk, extent_p);
  const haddr_t offset = extent_p->count ? H5Dget_offset(set) : 0;
  if (offset == HADDR_UNDEF || offset > (haddr_t)s->size ||
      extent_p->count * extent_p->width > s->size - (int64_t)offset)
    return SPT_FAIL(SPT_ERR_DATA, "%s: /%s of %lld elements lies outside of the file (truncated?)", s->path, name,
                    (long long)extent_p->count);
  extent_p->offset = (int64_t)offset;
  return SPT_OK;
}

/* Whether `name` is there, as an object of this very file: any other link may lead anywhere. */
static spt_status find_link(const shard *s, const char *name, bool *there_p) {
  H5L_info_t link;
  const htri_t exists = H5Lexists(s->file, name, H5P_DEFAULT);
  *there_p = exists > 0;
  if (exists == 0) return SPT_OK;
  if (exists < 0 || H5Lget_info(s->file, name, &link, H5P_DEFAULT) < 0)
    return SPT_FAIL(SPT_ERR_DATA, "%s: /%s is no readable link", s->path, name);
  if (link.type != H5L_TYPE_HARD)
    return SPT_FAIL(SPT_ERR_DATA, "%s: /%s is a link, wanted a dataset in this file", s->path, name);
  return SPT_OK;
}

/* Opens dataset `number`, if it is there, and checks all of the above. `group`: the folder it lies in, or NULL. */
static spt_status open_set(shard *s, int number, const char *group, const char *name) {
  spt_shard_set *extent = &s->layout.sets[number];
  bool there = true, native = false;
  *extent = (spt_shard_set){.count = -1, .offset = -1};
  if (group) SPT_TRY(find_link(s, group, &there)); // first: a path through it follows it
  if (there) SPT_TRY(find_link(s, name, &there));
  if (!there) return SPT_OK;
  const hid_t set = s->sets[number] = H5Dopen2(s->file, name, H5P_DEFAULT);
  if (set < 0) return SPT_FAIL(SPT_ERR_DATA, "%s: /%s is no readable dataset", s->path, name);
  SPT_TRY(check_shape(s->path, name, set, number != SPT_SHARD_TOKENS, extent, &native));
  SPT_TRY(check_layout(s, name, set, extent));
  if (!native) extent->offset = -1; // another byte order: the library converts
  return SPT_OK;
}

static spt_status load_attributes(shard *s) {
  spt_token_file_info *info = &s->layout.info;
  const char *path = s->path;
  char format[64];
  int64_t version;
  SPT_TRY(spt_hdf5_get_string(s->file, path, "format", format, sizeof format));
  if (strcmp(format, "spectron-tokens"))
    return SPT_FAIL(SPT_ERR_DATA, "%s: format is '%s', wanted 'spectron-tokens'", path, format);
  SPT_TRY(spt_hdf5_get_int(s->file, path, "version", &version));
  if (version != 1) return SPT_FAIL(SPT_ERR_DATA, "%s: version %lld, this program reads 1", path, (long long)version);
  SPT_TRY(spt_hdf5_get_int(s->file, path, "vocab_size", &info->vocab_size));
  SPT_TRY(spt_hdf5_get_int(s->file, path, "eos_id", &info->eos_id));
  SPT_TRY(spt_hdf5_get_string(s->file, path, "tokenizer", info->tokenizer, sizeof info->tokenizer));
  SPT_TRY(
      spt_hdf5_get_string(s->file, path, "tokenizer_sha256", info->tokenizer_sha256, sizeof info->tokenizer_sha256));
  if (spt_hdf5_has_attribute(s->file, "source"))
    SPT_TRY(spt_hdf5_get_string(s->file, path, "source", info->source, sizeof info->source));
  if (spt_hdf5_has_attribute(s->file, "text_bytes"))
    SPT_TRY(spt_hdf5_get_int(s->file, path, "text_bytes", &info->text_bytes));
  if (spt_hdf5_has_attribute(s->file, "block_bytes"))
    SPT_TRY(spt_hdf5_get_int(s->file, path, "block_bytes", &s->layout.block_bytes));
  return SPT_OK;
}

static spt_status load(shard *s) {
  const hid_t plan = H5Fget_create_plist(s->file);
  hsize_t bytes = 0;
  const bool known = plan >= 0 && H5Pget_userblock(plan, &bytes) >= 0;
  if (plan >= 0) H5Pclose(plan);
  s->layout.user_block = !known || bytes;
  SPT_TRY(load_attributes(s));
  SPT_TRY(open_set(s, SPT_SHARD_TOKENS, NULL, "tokens"));
  SPT_TRY(open_set(s, SPT_SHARD_CHECKSUMS, NULL, "tokens_xxh3"));
  return open_set(s, SPT_SHARD_STARTS, "documents", "documents/start");
}

static spt_status open_shard(const char *open_name, const char *path, void **file_p) {
  struct stat about;
  shard *s = calloc(1, sizeof *s);
  if (!s) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", path);
  *file_p = s; // nothing is closed: the process ends
  s->path = path;
  for (int i = 0; i < SPT_SHARD_SETS; i++) s->sets[i] = -1;
  if (stat(open_name, &about) != 0) return SPT_FAIL(SPT_ERR_DATA, "%s: cannot be opened by its reader", path);
  s->size = about.st_size;
  SPT_TRY(spt_hdf5_open_read(open_name, path, &s->file));
  return load(s);
}

/* Elements [begin, begin + count) of an open dataset, converted by the library. */
static spt_status read_values(const shard *s, const spt_question *question, void *values) {
  const hid_t set = s->sets[question->set];
  const int32_t width = s->layout.sets[question->set].width;
  const hid_t memory_type = width == 2 ? H5T_NATIVE_UINT16 : width == 4 ? H5T_NATIVE_UINT32 : H5T_NATIVE_UINT64;
  const hsize_t start = (hsize_t)question->begin, extent = (hsize_t)question->count;
  const hid_t space = H5Dget_space(set), memory = H5Screate_simple(1, &extent, NULL);
  const bool good = question->answer_bytes == question->count * width && space >= 0 && memory >= 0 &&
                    H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &extent, NULL) >= 0 &&
                    H5Dread(set, memory_type, memory, space, H5P_DEFAULT, values) >= 0;
  if (space >= 0) H5Sclose(space);
  if (memory >= 0) H5Sclose(memory);
  static const char *const names[SPT_SHARD_SETS] = {"/tokens", "/tokens_xxh3", "/documents/start"};
  if (good) return SPT_OK;
  return SPT_FAIL(SPT_ERR_DATA, "%s: %s %lld..%lld cannot be read (damaged chunk)", s->path, names[question->set],
                  (long long)question->begin, (long long)(question->begin + question->count));
}

static spt_status answer_shard(void *file, const spt_question *question, const void *argument, void *answer) {
  const shard *s = file;
  (void)argument;
  if (question->kind == SPT_ASK_VALUES) return read_values(s, question, answer);
  memcpy(answer, &s->layout, sizeof s->layout);
  return SPT_OK;
}

const spt_hdf5_answerer spt_shard_answerer = {open_shard, answer_shard};
