/* Reading token shards. Our own files are checked against their seal before HDF5 opens them; files made elsewhere are
 * checked for everything that could make a read wrong, endless or huge. Every HDF5 call of a contiguous file happens in
 * open: afterwards reads are plain pread. */
#include "token_file.h"
#include "durable_file.h"
#include "hdf5_util.h"
#include "token_seal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { CHUNK_BYTES_MAX = 1 << 28, BLOCK_BYTES_MAX = 1 << 26, DEFLATE_RATIO_MAX = 1032, READ_TOKENS = 16384 };

struct spt_token_file {
  char *path;
  spt_token_file_info info;
  int descriptor;
  int64_t size, offset;        /* bytes in the file; where the tokens begin when contiguous */
  hid_t file, tokens, starts;  /* kept open only while they are needed */
  int64_t starts_offset;       /* −1: read through the library */
  int64_t block_bytes, blocks; /* 0 without checksums */
  uint64_t *checksums;
  unsigned char *verified; /* a byte a block */
  void *block;             /* scratch of block_bytes */
  uint32_t *wide;          /* scratch of READ_TOKENS tokens */
};

/* What HDF5 says of a 1-D dataset. */
typedef struct extent {
  int64_t count;
  size_t width;   /* bytes of an element */
  int64_t offset; /* −1: not to be read by pread */
  bool fletcher32;
} extent;

static void warn(spt_token_file *file, const char *text) {
  const size_t used = strlen(file->info.warning);
  snprintf(file->info.warning + used, sizeof file->info.warning - used, "%s%s", used ? "; " : "", text);
}

/* Space, type: one dimension of unsigned integers of an allowed width. */
static spt_status check_shape(const char *path, const char *name, hid_t set, bool wide_only, extent *extent_p,
                              bool *native_p) {
  const hid_t type = H5Dget_type(set), space = H5Dget_space(set);
  hsize_t count = 0;
  const int dimensions = space < 0 ? -1 : H5Sget_simple_extent_ndims(space);
  if (dimensions == 1 && H5Sget_simple_extent_dims(space, &count, NULL) != 1) count = 0;
  const bool integer = type >= 0 && H5Tget_class(type) == H5T_INTEGER && H5Tget_sign(type) == H5T_SGN_NONE;
  const size_t width = type < 0 ? 0 : H5Tget_size(type);
  const hid_t native = width == 2 ? H5T_NATIVE_UINT16 : width == 4 ? H5T_NATIVE_UINT32 : H5T_NATIVE_UINT64;
  *native_p = integer && H5Tequal(type, native) > 0;
  if (type >= 0) H5Tclose(type);
  if (space >= 0) H5Sclose(space);
  if (dimensions != 1) return SPT_FAIL(SPT_ERR_DATA, "%s: /%s has %d dimensions, wanted 1", path, name, dimensions);
  if (!integer || (wide_only ? width != 8 : width != 2 && width != 4))
    return SPT_FAIL(SPT_ERR_DATA, "%s: /%s must hold %s", path, name, wide_only ? "uint64" : "uint16 or uint32");
  if (count > INT64_MAX / 16)
    return SPT_FAIL(SPT_ERR_DATA, "%s: /%s claims %llu elements", path, name, (unsigned long long)count);
  extent_p->count = (int64_t)count;
  extent_p->width = width;
  return SPT_OK;
}

static spt_status check_filters(const char *path, const char *name, hid_t plan, extent *extent_p) {
  const int filters = H5Pget_nfilters(plan);
  for (int i = 0; i < filters; i++) {
    unsigned flags;
    size_t values = 0;
    char label[64] = "";
    const H5Z_filter_t filter = H5Pget_filter2(plan, (unsigned)i, &flags, &values, NULL, sizeof label, label, NULL);
    if (filter == H5Z_FILTER_FLETCHER32) extent_p->fletcher32 = true;
    if (filter < 0 || H5Zfilter_avail(filter) <= 0)
      return SPT_FAIL(SPT_ERR_DATA, "%s: /%s is packed with HDF5 filter %d (%s), which this program does not load",
                      path, name, (int)filter, label);
  }
  return filters < 0 ? SPT_FAIL(SPT_ERR_DATA, "%s: /%s has unreadable filters", path, name) : SPT_OK;
}

/* Layout: plain contiguous or chunked storage inside this file, no more elements than the file can hold. */
static spt_status check_layout(const char *path, const char *name, int64_t size, hid_t set, extent *extent_p) {
  const hid_t plan = H5Dget_create_plist(set);
  if (plan < 0) return SPT_FAIL(SPT_ERR_DATA, "%s: /%s has no readable layout", path, name);
  const H5D_layout_t kind = H5Pget_layout(plan);
  const int external = H5Pget_external_count(plan);
  hsize_t chunk = 1;
  if (kind == H5D_CHUNKED && H5Pget_chunk(plan, 1, &chunk) != 1) chunk = HSIZE_UNDEF;
  const spt_status status = kind == H5D_CHUNKED ? check_filters(path, name, plan, extent_p) : SPT_OK;
  H5Pclose(plan);
  SPT_TRY(status);
  const int64_t bytes = extent_p->count * (int64_t)extent_p->width;
  if (external != 0 || (kind != H5D_CONTIGUOUS && kind != H5D_CHUNKED))
    return SPT_FAIL(SPT_ERR_DATA, "%s: /%s has %s layout, wanted contiguous or chunked", path, name,
                    external              ? "external"
                    : kind == H5D_VIRTUAL ? "virtual"
                    : kind == H5D_COMPACT ? "compact"
                                          : "an unknown");
  if (chunk > CHUNK_BYTES_MAX / extent_p->width)
    return SPT_FAIL(SPT_ERR_DATA, "%s: /%s has chunks of more than %d bytes", path, name, CHUNK_BYTES_MAX);
  extent_p->offset = -1;
  if (kind == H5D_CONTIGUOUS) {
    const haddr_t offset = extent_p->count ? H5Dget_offset(set) : 0;
    if (offset == HADDR_UNDEF || offset > (haddr_t)size || bytes > size - (int64_t)offset)
      return SPT_FAIL(SPT_ERR_DATA, "%s: /%s of %lld elements lies outside of the file (truncated?)", path, name,
                      (long long)extent_p->count);
    extent_p->offset = (int64_t)offset;
  } else {
    const hsize_t stored = H5Dget_storage_size(set);
    if (stored > (hsize_t)size || bytes / DEFLATE_RATIO_MAX > (int64_t)stored)
      return SPT_FAIL(SPT_ERR_DATA, "%s: /%s claims %lld elements, more than its %llu bytes can hold", path, name,
                      (long long)extent_p->count, (unsigned long long)stored);
  }
  return SPT_OK;
}

/* Opens /`name` (a hard link: others may lead out of the file) and checks all of the above. */
static spt_status open_dataset(spt_token_file *file, const char *name, bool wide_only, hid_t *set_p, extent *extent_p) {
  const char *path = file->path;
  H5L_info_t link;
  if (H5Lget_info(file->file, name, &link, H5P_DEFAULT) < 0)
    return SPT_FAIL(SPT_ERR_DATA, "%s: no dataset /%s", path, name);
  if (link.type != H5L_TYPE_HARD)
    return SPT_FAIL(SPT_ERR_DATA, "%s: /%s is a link, wanted a dataset in this file", path, name);
  const hid_t set = H5Dopen2(file->file, name, H5P_DEFAULT);
  if (set < 0) return SPT_FAIL(SPT_ERR_DATA, "%s: /%s is no readable dataset", path, name);
  bool native = false;
  *extent_p = (extent){.offset = -1};
  spt_status status = check_shape(path, name, set, wide_only, extent_p, &native);
  if (status == SPT_OK) status = check_layout(path, name, file->size, set, extent_p);
  if (status != SPT_OK) {
    H5Dclose(set);
    return status;
  }
  if (!native) extent_p->offset = -1; /* another byte order: the library converts */
  *set_p = set;
  return SPT_OK;
}

static bool has_dataset(const spt_token_file *file, const char *group, const char *name) {
  return (!group || H5Lexists(file->file, group, H5P_DEFAULT) > 0) && H5Lexists(file->file, name, H5P_DEFAULT) > 0;
}

/* Elements [begin, begin + count) of an open dataset, converted by the library. */
static bool read_slab(hid_t set, hid_t memory_type, int64_t begin, int64_t count, void *values) {
  const hsize_t start = (hsize_t)begin, extent = (hsize_t)count;
  const hid_t space = H5Dget_space(set), memory = H5Screate_simple(1, &extent, NULL);
  const bool good = space >= 0 && memory >= 0 &&
                    H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &extent, NULL) >= 0 &&
                    H5Dread(set, memory_type, memory, space, H5P_DEFAULT, values) >= 0;
  if (space >= 0) H5Sclose(space);
  if (memory >= 0) H5Sclose(memory);
  return good;
}

static spt_status load_attributes(spt_token_file *file) {
  spt_token_file_info *info = &file->info;
  const char *path = file->path;
  char format[64];
  int64_t version;
  SPT_TRY(spt_hdf5_get_string(file->file, path, "format", format, sizeof format));
  if (strcmp(format, "spectron-tokens"))
    return SPT_FAIL(SPT_ERR_DATA, "%s: format is '%s', wanted 'spectron-tokens'", path, format);
  SPT_TRY(spt_hdf5_get_int(file->file, path, "version", &version));
  if (version != 1) return SPT_FAIL(SPT_ERR_DATA, "%s: version %lld, this program reads 1", path, (long long)version);
  SPT_TRY(spt_hdf5_get_int(file->file, path, "vocab_size", &info->vocab_size));
  SPT_TRY(spt_hdf5_get_int(file->file, path, "eos_id", &info->eos_id));
  SPT_TRY(spt_hdf5_get_string(file->file, path, "tokenizer", info->tokenizer, sizeof info->tokenizer));
  SPT_TRY(
      spt_hdf5_get_string(file->file, path, "tokenizer_sha256", info->tokenizer_sha256, sizeof info->tokenizer_sha256));
  if (spt_hdf5_has_attribute(file->file, "source"))
    SPT_TRY(spt_hdf5_get_string(file->file, path, "source", info->source, sizeof info->source));
  if (spt_hdf5_has_attribute(file->file, "text_bytes"))
    SPT_TRY(spt_hdf5_get_int(file->file, path, "text_bytes", &info->text_bytes));
  if (info->vocab_size < 1 || info->vocab_size > INT32_MAX)
    return SPT_FAIL(SPT_ERR_DATA, "%s: vocab_size %lld is not in [1, 2^31)", path, (long long)info->vocab_size);
  if (info->eos_id < 0 || info->eos_id >= info->vocab_size)
    return SPT_FAIL(SPT_ERR_DATA, "%s: eos_id %lld is outside of the vocabulary of %lld", path, (long long)info->eos_id,
                    (long long)info->vocab_size);
  if (info->text_bytes < 0)
    return SPT_FAIL(SPT_ERR_DATA, "%s: text_bytes %lld is negative", path, (long long)info->text_bytes);
  return SPT_OK;
}

static spt_status load_tokens(spt_token_file *file) {
  extent tokens;
  SPT_TRY(open_dataset(file, "tokens", false, &file->tokens, &tokens));
  if (tokens.count == 0) return SPT_FAIL(SPT_ERR_DATA, "%s: /tokens is empty", file->path);
  file->info.tokens = tokens.count;
  file->info.token_bytes = (int)tokens.width;
  file->info.contiguous = tokens.offset >= 0;
  file->offset = tokens.offset;
  hbool_t threadsafe = 0;
  if (!file->info.contiguous && (H5is_library_threadsafe(&threadsafe) < 0 || !threadsafe))
    return SPT_FAIL(
        SPT_ERR_DATA,
        "%s: /tokens is not contiguous, and this HDF5 library is not thread-safe, as reading it ahead needs: "
        "rewrite it with h5repack -l CONTI",
        file->path);
  if (!file->info.contiguous) warn(file, "not contiguous in this machine's byte order: reads go through HDF5, slower");
  if (tokens.fletcher32) warn(file, "Fletcher32 checksums, checked by HDF5");
  return SPT_OK;
}

static spt_status load_checksums(spt_token_file *file) {
  if (!has_dataset(file, NULL, "tokens_xxh3")) {
    warn(file, "no block checksums: damage is not noticed");
    return SPT_OK;
  }
  const int64_t bytes = file->info.tokens * file->info.token_bytes;
  SPT_TRY(spt_hdf5_get_int(file->file, file->path, "block_bytes", &file->block_bytes));
  if (file->block_bytes < 1024 || file->block_bytes > BLOCK_BYTES_MAX || file->block_bytes % 8)
    return SPT_FAIL(SPT_ERR_DATA, "%s: block_bytes %lld is not a multiple of 8 in [1024, 2^26]", file->path,
                    (long long)file->block_bytes);
  hid_t set;
  extent sums;
  SPT_TRY(open_dataset(file, "tokens_xxh3", true, &set, &sums));
  file->blocks = (bytes + file->block_bytes - 1) / file->block_bytes;
  spt_status status = SPT_OK;
  if (sums.count != file->blocks)
    status = SPT_FAIL(SPT_ERR_DATA, "%s: /tokens_xxh3 has %lld entries for %lld blocks", file->path,
                      (long long)sums.count, (long long)file->blocks);
  else if (!(file->checksums = malloc((size_t)file->blocks * sizeof *file->checksums)) ||
           !(file->verified = calloc(1, (size_t)file->blocks)) || !(file->block = malloc((size_t)file->block_bytes)))
    status = SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", file->path);
  else if (!read_slab(set, H5T_NATIVE_UINT64, 0, file->blocks, file->checksums))
    status = SPT_FAIL(SPT_ERR_DATA, "%s: /tokens_xxh3 cannot be read", file->path);
  H5Dclose(set);
  file->info.checksummed = status == SPT_OK;
  return status;
}

static spt_status load_documents(spt_token_file *file) {
  if (!has_dataset(file, "documents", "documents/start")) {
    warn(file, "no /documents/start");
    return SPT_OK;
  }
  extent starts;
  SPT_TRY(open_dataset(file, "documents/start", true, &file->starts, &starts));
  if (starts.count > file->info.tokens)
    return SPT_FAIL(SPT_ERR_DATA, "%s: %lld documents but %lld tokens", file->path, (long long)starts.count,
                    (long long)file->info.tokens);
  file->info.documents = starts.count;
  file->starts_offset = starts.offset;
  return SPT_OK;
}

/* Plain-file checks and, for our own files, the seal. */
static spt_status open_descriptor(spt_token_file *file, bool *sealed_p, int64_t *begin_p, int64_t *bytes_p) {
  struct stat about;
  file->descriptor = open(file->path, O_RDONLY | O_CLOEXEC);
  if (file->descriptor < 0 || fstat(file->descriptor, &about) != 0)
    return SPT_FAIL(SPT_ERR_DATA, "%s: cannot be opened: %s", file->path, strerror(errno));
  if (!S_ISREG(about.st_mode)) return SPT_FAIL(SPT_ERR_DATA, "%s: not a file", file->path);
  file->size = about.st_size;
  return spt_token_seal_check(file->descriptor, file->path, file->size, sealed_p, begin_p, bytes_p);
}

/* A user block that is no seal may be a damaged seal: refused, so that no single wrong byte turns our file into a
 * trusted foreign one. */
static spt_status check_user_block(const spt_token_file *file) {
  const hid_t plan = H5Fget_create_plist(file->file);
  hsize_t bytes = 0;
  const bool known = plan >= 0 && H5Pget_userblock(plan, &bytes) >= 0;
  if (plan >= 0) H5Pclose(plan);
  if (!known || bytes) return SPT_FAIL(SPT_ERR_DATA, "%s: damaged: its HDF5 user block holds no seal", file->path);
  return SPT_OK;
}

static spt_status load(spt_token_file *file) {
  bool sealed;
  int64_t begin, bytes;
  SPT_TRY(open_descriptor(file, &sealed, &begin, &bytes));
  SPT_TRY(spt_hdf5_open_read(file->path, &file->file));
  if (!sealed) SPT_TRY(check_user_block(file));
  SPT_TRY(load_attributes(file));
  SPT_TRY(load_tokens(file));
  if (sealed && (file->offset != begin || file->info.tokens * file->info.token_bytes != bytes))
    return SPT_FAIL(SPT_ERR_DATA, "%s: damaged: the seal names another place for /tokens", file->path);
  SPT_TRY(load_checksums(file));
  SPT_TRY(load_documents(file));
  if (!sealed) warn(file, "not made by 'spectron tokenize'");
  if (!file->info.contiguous && !(file->wide = malloc(READ_TOKENS * sizeof *file->wide)))
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", file->path);
  return SPT_OK;
}

static void close_dataset(hid_t *set_p) {
  if (*set_p >= 0) H5Dclose(*set_p);
  *set_p = -1;
}

spt_status spt_token_file_open(const char *path, spt_token_file **file_p) {
  spt_token_file *file = calloc(1, sizeof *file);
  if (!file || !(file->path = strdup(path))) {
    free(file);
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", path);
  }
  file->descriptor = -1;
  file->file = file->tokens = file->starts = -1;
  file->starts_offset = -1;
  const spt_status status = load(file);
  if (status != SPT_OK) {
    spt_token_file_close(&file);
    return status;
  }
  if (file->info.contiguous) close_dataset(&file->tokens);
  if (file->starts_offset >= 0) close_dataset(&file->starts);
  if (file->tokens < 0 && file->starts < 0) {
    H5Fclose(file->file);
    file->file = -1;
  }
  *file_p = file;
  return SPT_OK;
}

void spt_token_file_close(spt_token_file **file_p) {
  spt_token_file *file = *file_p;
  if (!file) return;
  close_dataset(&file->tokens);
  close_dataset(&file->starts);
  if (file->file >= 0) H5Fclose(file->file);
  if (file->descriptor >= 0) close(file->descriptor);
  free(file->path);
  free(file->checksums);
  free(file->verified);
  free(file->block);
  free(file->wide);
  free(file);
  *file_p = NULL;
}

const spt_token_file_info *spt_token_file_info_of(const spt_token_file *file) {
  return &file->info;
}

const char *spt_token_file_path(const spt_token_file *file) {
  return file->path;
}

const uint64_t *spt_token_file_checksums(const spt_token_file *file, int64_t *count_p) {
  *count_p = file->blocks;
  return file->checksums;
}

/* The tokens of [begin, begin + count) as they lie in the file. */
static spt_status read_raw(spt_token_file *file, int64_t begin, int64_t count, void *tokens) {
  const int64_t width = file->info.token_bytes;
  if (file->info.contiguous)
    return spt_file_read_at(file->descriptor, file->path, tokens, (size_t)(count * width),
                            (uint64_t)(file->offset + begin * width));
  if (!read_slab(file->tokens, width == 2 ? H5T_NATIVE_UINT16 : H5T_NATIVE_UINT32, begin, count, tokens))
    return SPT_FAIL(SPT_ERR_DATA, "%s: tokens %lld..%lld cannot be read (damaged chunk)", file->path, (long long)begin,
                    (long long)(begin + count));
  return SPT_OK;
}

static spt_status verify_block(spt_token_file *file, int64_t index) {
  const int64_t per_block = file->block_bytes / file->info.token_bytes, begin = index * per_block;
  const int64_t left = file->info.tokens - begin, count = left < per_block ? left : per_block;
  SPT_TRY(read_raw(file, begin, count, file->block));
  if (XXH3_64bits(file->block, (size_t)(count * file->info.token_bytes)) != file->checksums[index])
    return SPT_FAIL(SPT_ERR_DATA, "%s: damaged: checksum of block %lld (tokens %lld..%lld) differs", file->path,
                    (long long)index, (long long)begin, (long long)(begin + count));
  file->verified[index] = 1;
  return SPT_OK;
}

/* Raw tokens (from `raw`, at position `begin`) to int32, each inside the vocabulary. */
static spt_status widen(const spt_token_file *file, const void *raw, int64_t begin, int64_t count, int32_t *ids) {
  const uint32_t limit = (uint32_t)file->info.vocab_size;
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; i++) {
    const uint32_t id = file->info.token_bytes == 2 ? ((const uint16_t *)raw)[i] : ((const uint32_t *)raw)[i];
    largest = id > largest ? id : largest;
    ids[i] = (int32_t)id;
  }
  if (largest >= limit)
    return SPT_FAIL(SPT_ERR_DATA, "%s: token %u in %lld..%lld is outside of the vocabulary of %u", file->path, largest,
                    (long long)begin, (long long)(begin + count), limit);
  return SPT_OK;
}

spt_status spt_token_file_read(spt_token_file *file, int64_t begin, int64_t count, int32_t *ids) {
  if (begin < 0 || count < 0 || begin > file->info.tokens - count)
    return SPT_FAIL(SPT_ERR_DATA, "%s: tokens %lld..%lld wanted of %lld", file->path, (long long)begin,
                    (long long)(begin + count), (long long)file->info.tokens);
  if (count && file->info.checksummed) {
    const int64_t per_block = file->block_bytes / file->info.token_bytes;
    for (int64_t index = begin / per_block; index <= (begin + count - 1) / per_block; index++)
      if (!file->verified[index]) SPT_TRY(verify_block(file, index));
  }
  uint16_t piece[4096];
  void *raw = file->info.contiguous ? (void *)piece : file->wide;
  const int64_t most = file->info.contiguous ? (int64_t)sizeof piece / file->info.token_bytes : READ_TOKENS;
  for (int64_t done = 0; done < count;) {
    const int64_t some = count - done < most ? count - done : most;
    SPT_TRY(read_raw(file, begin + done, some, raw));
    SPT_TRY(widen(file, raw, begin + done, some, ids + done));
    done += some;
  }
  return SPT_OK;
}

spt_status spt_token_file_verify(spt_token_file *file) {
  int32_t ids[4096];
  for (int64_t begin = 0; begin < file->info.tokens; begin += 4096) {
    const int64_t left = file->info.tokens - begin;
    SPT_TRY(spt_token_file_read(file, begin, left < 4096 ? left : 4096, ids));
  }
  uint64_t starts[4096], previous = 0;
  for (int64_t begin = 0; begin < file->info.documents; begin += 4096) {
    const int64_t left = file->info.documents - begin, count = left < 4096 ? left : 4096;
    SPT_TRY(spt_token_file_documents(file, begin, count, starts));
    for (int64_t i = 0; i < count; previous = starts[i++])
      if (starts[i] >= (uint64_t)file->info.tokens || (begin + i > 0 && starts[i] <= previous))
        return SPT_FAIL(SPT_ERR_DATA, "%s: document %lld starts at token %llu, out of order", file->path,
                        (long long)(begin + i), (unsigned long long)starts[i]);
  }
  return SPT_OK;
}

spt_status spt_token_file_documents(spt_token_file *file, int64_t begin, int64_t count, uint64_t *starts) {
  if (begin < 0 || count < 0 || begin > file->info.documents - count)
    return SPT_FAIL(SPT_ERR_DATA, "%s: documents %lld..%lld wanted of %lld", file->path, (long long)begin,
                    (long long)(begin + count), (long long)file->info.documents);
  if (count == 0) return SPT_OK;
  if (file->starts_offset >= 0)
    return spt_file_read_at(file->descriptor, file->path, starts, (size_t)count * sizeof *starts,
                            (uint64_t)file->starts_offset + (uint64_t)begin * sizeof *starts);
  return read_slab(file->starts, H5T_NATIVE_UINT64, begin, count, starts)
             ? SPT_OK
             : SPT_FAIL(SPT_ERR_DATA, "%s: /documents/start cannot be read", file->path);
}
