/* A shard is written in two passes, because a contiguous dataset needs its size first: documents are appended to a raw
 * temporary file; finish lays the HDF5 file out, copies the tokens in with their checksums, seals, syncs and renames
 * it. */
#include "durable_file.h"
#include "hdf5_util.h"
#include "token_file.h"
#include "token_seal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

struct spt_token_writer {
  char *path, *part_path, *raw_path;
  spt_token_file_info info;
  FILE *raw;
  uint64_t *starts;
  size_t starts_capacity;
  uint16_t *narrow; /* scratch for one document */
  size_t narrow_capacity;
};

/* Where the datasets lie in the laid-out file. */
typedef struct layout {
  int64_t tokens, checksums, starts; /* offsets in bytes */
} layout;

static spt_status io_failed(const char *path) {
  return SPT_FAIL(SPT_ERR_RESOURCE, "%s: cannot be written: %s", path, strerror(errno));
}

static char *with_suffix(const char *path, const char *suffix) {
  char *text = NULL;
  return asprintf(&text, "%s%s", path, suffix) < 0 ? NULL : text;
}

static spt_status open_raw(spt_token_writer *writer) {
  int descriptor = -1;
  SPT_TRY(spt_file_create(writer->raw_path, &descriptor));
  if ((writer->raw = fdopen(descriptor, "w+b"))) return SPT_OK;
  const spt_status status = io_failed(writer->raw_path);
  close(descriptor);
  unlink(writer->raw_path);
  return status;
}

spt_status spt_token_writer_open(const char *path, const spt_token_writer_options *options, bool overwrite,
                                 spt_token_writer **writer_p) {
  if (options->vocab_size < 1 || options->vocab_size > INT32_MAX)
    return SPT_FAIL(SPT_ERR_USAGE, "%s: vocabulary %lld is not in [1, 2^31)", path, (long long)options->vocab_size);
  struct stat about;
  if (!overwrite && lstat(path, &about) == 0)
    return SPT_FAIL(SPT_ERR_USAGE, "%s: exists already and is not overwritten", path);
  spt_token_writer *writer = calloc(1, sizeof *writer);
  if (!writer) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", path);
  spt_token_file_info *info = &writer->info;
  info->vocab_size = options->vocab_size;
  info->eos_id = options->eos_id;
  info->token_bytes = options->vocab_size > 65536 ? 4 : 2;
  snprintf(info->tokenizer, sizeof info->tokenizer, "%s", options->tokenizer);
  snprintf(info->tokenizer_sha256, sizeof info->tokenizer_sha256, "%s", options->tokenizer_sha256);
  snprintf(info->source, sizeof info->source, "%s", options->source ? options->source : "");
  writer->path = strdup(path);
  writer->part_path = with_suffix(path, ".part");
  writer->raw_path = with_suffix(path, ".raw");
  spt_status status = SPT_OK;
  if (!writer->path || !writer->part_path || !writer->raw_path)
    status = SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", path);
  else
    status = open_raw(writer);
  if (status != SPT_OK) {
    spt_token_writer_close(&writer);
    return status;
  }
  *writer_p = writer;
  return SPT_OK;
}

static spt_status note_start(spt_token_writer *writer) {
  if ((size_t)writer->info.documents == writer->starts_capacity) {
    const size_t capacity = writer->starts_capacity ? 2 * writer->starts_capacity : 1024;
    uint64_t *starts = realloc(writer->starts, capacity * sizeof *starts);
    if (!starts) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", writer->path);
    writer->starts = starts;
    writer->starts_capacity = capacity;
  }
  writer->starts[writer->info.documents++] = (uint64_t)writer->info.tokens;
  return SPT_OK;
}

spt_status spt_token_writer_append(spt_token_writer *writer, const uint32_t *ids, size_t count, size_t text_bytes) {
  for (size_t i = 0; i < count; i++)
    if (ids[i] >= (uint64_t)writer->info.vocab_size)
      return SPT_FAIL(SPT_ERR_DATA, "%s: token %u is outside of the vocabulary of %lld", writer->path, ids[i],
                      (long long)writer->info.vocab_size);
  if (count == 0) return SPT_FAIL(SPT_ERR_DATA, "%s: a document without tokens (not even its end)", writer->path);
  SPT_TRY(note_start(writer));
  const void *bytes = ids;
  if (writer->info.token_bytes == 2) {
    if (count > writer->narrow_capacity) {
      uint16_t *narrow = realloc(writer->narrow, count * sizeof *narrow);
      if (!narrow) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", writer->path);
      writer->narrow = narrow;
      writer->narrow_capacity = count;
    }
    for (size_t i = 0; i < count; i++) writer->narrow[i] = (uint16_t)ids[i];
    bytes = writer->narrow;
  }
  if (fwrite(bytes, (size_t)writer->info.token_bytes, count, writer->raw) != count) return io_failed(writer->raw_path);
  writer->info.tokens += (int64_t)count;
  writer->info.text_bytes += (int64_t)text_bytes;
  return SPT_OK;
}

int64_t spt_token_writer_tokens(const spt_token_writer *writer) {
  return writer->info.tokens;
}

/* A contiguous 1-D dataset with its space allocated and never filled; its offset in the file, −1 on failure. */
static int64_t create_dataset(hid_t place, const char *name, hid_t type, int64_t count) {
  const hsize_t extent = (hsize_t)count;
  int64_t offset = -1;
  const hid_t space = H5Screate_simple(1, &extent, NULL), plan = H5Pcreate(H5P_DATASET_CREATE);
  hid_t set = -1;
  if (space >= 0 && plan >= 0 && H5Pset_layout(plan, H5D_CONTIGUOUS) >= 0 &&
      H5Pset_alloc_time(plan, H5D_ALLOC_TIME_EARLY) >= 0 && H5Pset_fill_time(plan, H5D_FILL_TIME_NEVER) >= 0 &&
      H5Pset_obj_track_times(plan, false) >= 0) // equal text gives equal files
    set = H5Dcreate2(place, name, type, space, H5P_DEFAULT, plan, H5P_DEFAULT);
  if (set >= 0) {
    const haddr_t address = H5Dget_offset(set);
    if (address != HADDR_UNDEF) offset = (int64_t)address;
    if (H5Dclose(set) < 0) offset = -1;
  }
  if (space >= 0) H5Sclose(space);
  if (plan >= 0) H5Pclose(plan);
  return offset;
}

static spt_status put_attributes(const spt_token_writer *writer, hid_t file) {
  const spt_token_file_info *info = &writer->info;
  const char *path = writer->part_path;
  SPT_TRY(spt_hdf5_put_string(file, path, "format", "spectron-tokens"));
  SPT_TRY(spt_hdf5_put_int(file, path, "version", 1));
  SPT_TRY(spt_hdf5_put_int(file, path, "vocab_size", info->vocab_size));
  SPT_TRY(spt_hdf5_put_int(file, path, "eos_id", info->eos_id));
  SPT_TRY(spt_hdf5_put_int(file, path, "block_bytes", SPT_TOKEN_BLOCK_BYTES));
  SPT_TRY(spt_hdf5_put_int(file, path, "text_bytes", info->text_bytes));
  SPT_TRY(spt_hdf5_put_string(file, path, "tokenizer", info->tokenizer));
  SPT_TRY(spt_hdf5_put_string(file, path, "tokenizer_sha256", info->tokenizer_sha256));
  return spt_hdf5_put_string(file, path, "source", info->source);
}

static int64_t token_blocks(const spt_token_writer *writer) {
  return (writer->info.tokens * writer->info.token_bytes + SPT_TOKEN_BLOCK_BYTES - 1) / SPT_TOKEN_BLOCK_BYTES;
}

/* HDF5 does not survive a full disk (a failed H5Fclose crashes the process at exit), so the space is asked for before
 * it writes. */
static spt_status try_space(const spt_token_writer *writer) {
  const uint64_t metadata = SPT_TOKEN_SEAL_BYTES + 65536,
                 entries = (uint64_t)(token_blocks(writer) + writer->info.documents);
  int descriptor = -1;
  SPT_TRY(spt_file_create(writer->part_path, &descriptor));
  const uint64_t bytes = metadata + 8 * entries + (uint64_t)(writer->info.tokens * writer->info.token_bytes);
  const spt_status status = spt_file_claim(descriptor, writer->part_path, bytes, metadata);
  if (status == SPT_OK) return spt_file_close(&descriptor, writer->part_path);
  close(descriptor);
  return status;
}

static spt_status lay_out(const spt_token_writer *writer, layout *layout_p) {
  spt_hdf5_quiet();
  layout place = {-1, -1, -1};
  spt_status status = SPT_OK;
  const hid_t plan = H5Pcreate(H5P_FILE_CREATE), access = H5Pcreate(H5P_FILE_ACCESS);
  hid_t file = -1, group = -1;
  if (access >= 0) spt_hdf5_no_locks(access);
  if (plan >= 0 && access >= 0 && H5Pset_userblock(plan, SPT_TOKEN_SEAL_BYTES) >= 0)
    file = H5Fcreate(writer->part_path, H5F_ACC_TRUNC, plan, access);
  if (file >= 0) {
    status = put_attributes(writer, file);
    place.checksums = create_dataset(file, "tokens_xxh3", H5T_NATIVE_UINT64, token_blocks(writer));
    group = H5Gcreate2(file, "documents", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    if (group >= 0) place.starts = create_dataset(group, "start", H5T_NATIVE_UINT64, writer->info.documents);
    place.tokens = create_dataset(file, "tokens", writer->info.token_bytes == 2 ? H5T_NATIVE_UINT16 : H5T_NATIVE_UINT32,
                                  writer->info.tokens);
  }
  const bool group_closed = group >= 0 && H5Gclose(group) >= 0;
  const bool file_closed = file >= 0 && H5Fclose(file) >= 0;
  if (plan >= 0) H5Pclose(plan);
  if (access >= 0) H5Pclose(access);
  if (status == SPT_OK &&
      (!group_closed || !file_closed || place.tokens < 0 || place.checksums < 0 || place.starts < 0))
    status = SPT_FAIL(SPT_ERR_RESOURCE, "%s: HDF5 cannot lay the file out (disk full?)", writer->part_path);
  if (status == SPT_OK) *layout_p = place;
  return status;
}

/* Copies the raw tokens to their place, block by block, each with its checksum. */
static spt_status copy_tokens(const spt_token_writer *writer, int descriptor, const layout *place) {
  static const size_t block_bytes = SPT_TOKEN_BLOCK_BYTES;
  const int64_t bytes = writer->info.tokens * writer->info.token_bytes;
  char *block = malloc(block_bytes);
  if (!block) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", writer->path);
  spt_status status = SPT_OK;
  uint64_t index = 0;
  for (int64_t at = 0; at < bytes && status == SPT_OK; at += (int64_t)block_bytes, index++) {
    const size_t count = bytes - at < (int64_t)block_bytes ? (size_t)(bytes - at) : block_bytes;
    status = spt_file_read_at(fileno(writer->raw), writer->raw_path, block, count, (uint64_t)at);
    if (status != SPT_OK) break;
    const uint64_t hash = XXH3_64bits(block, count), hash_at = (uint64_t)place->checksums + index * sizeof hash;
    status = spt_file_write_at(descriptor, writer->part_path, block, count, (uint64_t)(place->tokens + at));
    if (status == SPT_OK) status = spt_file_write_at(descriptor, writer->part_path, &hash, sizeof hash, hash_at);
  }
  free(block);
  return status;
}

static spt_status fill(const spt_token_writer *writer, int descriptor, const layout *place) {
  struct stat about;
  if (fstat(descriptor, &about) != 0) return io_failed(writer->part_path);
  SPT_TRY(spt_file_reserve(descriptor, writer->part_path, (uint64_t)about.st_size, NULL));
  SPT_TRY(copy_tokens(writer, descriptor, place));
  SPT_TRY(spt_file_write_at(descriptor, writer->part_path, writer->starts,
                            (size_t)writer->info.documents * sizeof *writer->starts, (uint64_t)place->starts));
  return spt_token_seal_write(descriptor, writer->part_path, about.st_size, place->tokens,
                              writer->info.tokens * writer->info.token_bytes);
}

spt_status spt_token_writer_finish(spt_token_writer **writer_p) {
  spt_token_writer *writer = *writer_p;
  spt_status status = SPT_OK;
  layout place;
  int descriptor = -1;
  if (writer->info.tokens == 0) {
    status = SPT_FAIL(SPT_ERR_DATA, "%s: no document was written", writer->path);
    goto done;
  }
  if (fflush(writer->raw) != 0) {
    status = io_failed(writer->raw_path);
    goto done;
  }
  SPT_TRY_GOTO(try_space(writer), done);
  SPT_TRY_GOTO(lay_out(writer, &place), done);
  status = spt_file_reopen(writer->part_path, &descriptor);
  if (status == SPT_OK) status = fill(writer, descriptor, &place);
  if (status == SPT_OK) status = spt_file_publish(&descriptor, writer->part_path, writer->path);
  if (descriptor >= 0) close(descriptor);
done:
  spt_token_writer_close(writer_p);
  return status;
}

void spt_token_writer_close(spt_token_writer **writer_p) {
  spt_token_writer *writer = *writer_p;
  if (!writer) return;
  if (writer->raw) {
    fclose(writer->raw);
    unlink(writer->raw_path);
  }
  if (writer->part_path) unlink(writer->part_path);
  free(writer->path);
  free(writer->part_path);
  free(writer->raw_path);
  free(writer->starts);
  free(writer->narrow);
  free(writer);
  *writer_p = NULL;
}
