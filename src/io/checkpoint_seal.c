#include "checkpoint_internal.h"
#include "durable_file.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#define XXH_STATIC_LINKING_ONLY // streaming state on the stack
#include <xxhash.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "checkpoints are written as they lie in memory: little-endian only"
#endif

static const unsigned char magic[8] = {0x89, 'S', 'P', 'T', 'C', 'K', 'P', '\n'};
enum { DIGEST_AT = 48, DIGEST_END = 64, SELF_END = 72, READ_BYTES = 1 << 18 };

bool spt_seal_has_magic(const unsigned char bytes[8]) {
  return memcmp(bytes, magic, sizeof magic) == 0;
}

static void put(unsigned char *block, size_t at, const void *value, size_t bytes) {
  memcpy(block + at, value, bytes);
}

static uint64_t get64(const unsigned char *block, size_t at) {
  uint64_t value;
  memcpy(&value, block + at, sizeof value);
  return value;
}

static uint32_t get32(const unsigned char *block, size_t at) {
  uint32_t value;
  memcpy(&value, block + at, sizeof value);
  return value;
}

static uint64_t self_digest(const unsigned char block[SPT_SEAL_BYTES]) {
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, block, DIGEST_END);
  XXH3_64bits_update(&state, block + SELF_END, SPT_SEAL_BYTES - SELF_END);
  return XXH3_64bits_digest(&state);
}

static int by_offset(const void *left, const void *right) {
  const uint64_t a = ((const spt_extent *)left)->offset, b = ((const spt_extent *)right)->offset;
  return (a > b) - (a < b);
}

spt_status spt_seal_visit_gaps(const char *path, const spt_seal *seal, const spt_extent *extents, spt_gap_visit *visit,
                               void *context) {
  const size_t count = (size_t)seal->tensor_count;
  spt_extent *sorted = malloc((count + 1) * sizeof *sorted);
  if (!sorted) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for its table of tensors", path);
  memcpy(sorted, extents, count * sizeof *sorted);
  qsort(sorted, count, sizeof *sorted, by_offset);
  sorted[count] = (spt_extent){seal->file_bytes, 0};
  spt_status status = SPT_OK;
  uint64_t at = SPT_SEAL_BYTES;
  for (size_t i = 0; status == SPT_OK && i <= count; i++) {
    if (sorted[i].offset < at || sorted[i].offset > seal->file_bytes ||
        sorted[i].bytes > seal->file_bytes - sorted[i].offset)
      status =
          SPT_FAIL(SPT_ERR_DATA, "%s: damaged checkpoint: tensors overlap or leave the file; use an older one", path);
    else if (sorted[i].offset > at)
      status = visit(context, at, sorted[i].offset);
    at = sorted[i].offset + sorted[i].bytes;
  }
  free(sorted);
  return status;
}

typedef struct hasher {
  XXH3_state_t state;
  int fd;
  const char *path;
  unsigned char *buffer; /* [READ_BYTES] */
} hasher;

static spt_status hash_range(void *context, uint64_t begin, uint64_t end) {
  hasher *h = context;
  while (begin < end) {
    const size_t count = end - begin < READ_BYTES ? (size_t)(end - begin) : READ_BYTES;
    SPT_TRY(spt_file_read_at(h->fd, h->path, h->buffer, count, begin));
    XXH3_128bits_update(&h->state, h->buffer, count);
    begin += count;
  }
  return SPT_OK;
}

/* XXH3-128 of the block outside its digest fields and of the file between and after the tensors. */
static spt_status metadata_digest(int fd, const char *path, const spt_seal *seal, const unsigned char *block,
                                  const spt_extent *extents, XXH128_canonical_t *digest_p) {
  hasher h = {.fd = fd, .path = path, .buffer = malloc(READ_BYTES)};
  if (!h.buffer) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for its checks", path);
  XXH3_128bits_reset(&h.state);
  XXH3_128bits_update(&h.state, block, DIGEST_AT);
  XXH3_128bits_update(&h.state, block + SELF_END, SPT_SEAL_BYTES - SELF_END);
  const spt_status status = spt_seal_visit_gaps(path, seal, extents, hash_range, &h);
  if (status == SPT_OK) XXH128_canonicalFromHash(digest_p, XXH3_128bits_digest(&h.state));
  free(h.buffer);
  return status;
}

spt_status spt_seal_write(int fd, const char *path, const spt_seal *seal, const spt_extent *extents) {
  unsigned char block[SPT_SEAL_BYTES] = {0};
  const uint32_t version = SPT_CHECKPOINT_VERSION, length = SPT_SEAL_BYTES;
  put(block, 0, magic, sizeof magic);
  put(block, 8, &version, sizeof version);
  put(block, 12, &length, sizeof length);
  put(block, 16, &seal->file_bytes, 8);
  put(block, 24, &seal->extents_offset, 8);
  put(block, 32, &seal->tensor_count, 8);
  XXH128_canonical_t digest;
  SPT_TRY(metadata_digest(fd, path, seal, block, extents, &digest));
  put(block, DIGEST_AT, &digest, sizeof digest);
  const uint64_t self = self_digest(block);
  put(block, DIGEST_END, &self, sizeof self);
  return spt_file_write_at(fd, path, block, sizeof block, 0);
}

static spt_status check_block(const char *path, const unsigned char block[SPT_SEAL_BYTES], uint64_t file_bytes,
                              spt_seal *seal_p) {
  if (!spt_seal_has_magic(block))
    return SPT_FAIL(SPT_ERR_DATA, "%s: not a spectron checkpoint, or its first bytes are damaged", path);
  const uint32_t version = get32(block, 8);
  if (get64(block, DIGEST_END) != self_digest(block))
    return SPT_FAIL(SPT_ERR_DATA, "%s: damaged checkpoint: its first 4096 bytes fail their checksum; use an older one",
                    path);
  if (version != SPT_CHECKPOINT_VERSION)
    return SPT_FAIL(SPT_ERR_DATA, "%s: checkpoint version %u, this program reads %d; use the program that wrote it",
                    path, (unsigned)version, SPT_CHECKPOINT_VERSION);
  *seal_p = (spt_seal){get64(block, 16), get64(block, 24), get64(block, 32)};
  if (seal_p->file_bytes != file_bytes)
    return SPT_FAIL(SPT_ERR_DATA, "%s: damaged checkpoint: %llu bytes, %s from %llu; use an older one", path,
                    (unsigned long long)file_bytes, file_bytes < seal_p->file_bytes ? "truncated" : "grown",
                    (unsigned long long)seal_p->file_bytes);
  if (get32(block, 12) != SPT_SEAL_BYTES || seal_p->tensor_count > file_bytes / sizeof(spt_extent) ||
      seal_p->tensor_count > SPT_CHECKPOINT_TENSORS_MAX || seal_p->extents_offset > file_bytes ||
      seal_p->tensor_count * sizeof(spt_extent) > file_bytes - seal_p->extents_offset)
    return SPT_FAIL(SPT_ERR_DATA, "%s: damaged checkpoint: impossible table of tensors; use an older one", path);
  return SPT_OK;
}

spt_status spt_seal_check(int fd, const char *path, spt_seal *seal_p, spt_extent **extents_p) {
  struct stat info;
  unsigned char block[SPT_SEAL_BYTES];
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) return SPT_FAIL(SPT_ERR_DATA, "%s: not a regular file", path);
  if (info.st_size < SPT_SEAL_BYTES)
    return SPT_FAIL(SPT_ERR_DATA, "%s: not a checkpoint: only %lld bytes (truncated?)", path, (long long)info.st_size);
  SPT_TRY(spt_file_read_at(fd, path, block, sizeof block, 0));
  SPT_TRY(check_block(path, block, (uint64_t)info.st_size, seal_p));
  const size_t table_bytes = (size_t)seal_p->tensor_count * sizeof(spt_extent);
  spt_extent *extents = malloc(table_bytes + 1);
  if (!extents) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory for its table of tensors", path);
  XXH128_canonical_t digest;
  spt_status status = spt_file_read_at(fd, path, extents, table_bytes, seal_p->extents_offset);
  if (status == SPT_OK) status = metadata_digest(fd, path, seal_p, block, extents, &digest);
  if (status == SPT_OK && memcmp(&digest, block + DIGEST_AT, sizeof digest) != 0)
    status = SPT_FAIL(SPT_ERR_DATA, "%s: damaged checkpoint: its metadata fail their checksum; use an older one", path);
  if (status != SPT_OK) {
    free(extents);
    return status;
  }
  *extents_p = extents;
  return SPT_OK;
}
