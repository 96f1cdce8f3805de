#include "token_seal.h"
#include "durable_file.h"

#include <stddef.h>
#include <string.h>
#include <xxhash.h>

static const char MAGIC[16] = "SPECTRON-TOKENS";

typedef struct seal {
  char magic[16];
  uint64_t version, length, begin, bytes;
  uint64_t digest_low, digest_high; /* XXH3-128 of every byte behind the seal but the tokens */
  char zeros[SPT_TOKEN_SEAL_BYTES - 16 - 7 * 8];
  uint64_t own; /* XXH3-64 of the bytes above */
} seal;
_Static_assert(sizeof(seal) == SPT_TOKEN_SEAL_BYTES, "the seal fills the user block");

/* Digest of [SPT_TOKEN_SEAL_BYTES, length) without [begin, begin + bytes). */
static spt_status digest(int descriptor, const char *path, int64_t length, int64_t begin, int64_t bytes,
                         XXH128_hash_t *digest_p) {
  char buffer[16384];
  XXH3_state_t *state = XXH3_createState();
  if (!state || XXH3_128bits_reset(state) != XXH_OK) {
    XXH3_freeState(state);
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", path);
  }
  const int64_t ends[2] = {begin, length};
  int64_t at = SPT_TOKEN_SEAL_BYTES;
  spt_status status = SPT_OK;
  for (int part = 0; part < 2 && status == SPT_OK; part++, at = begin + bytes)
    while (at < ends[part] && status == SPT_OK) {
      const int64_t left = ends[part] - at;
      const size_t count = left < (int64_t)sizeof buffer ? (size_t)left : sizeof buffer;
      status = spt_file_read_at(descriptor, path, buffer, count, (uint64_t)at);
      if (status == SPT_OK && XXH3_128bits_update(state, buffer, count) != XXH_OK)
        status = SPT_FAIL(SPT_ERR_RESOURCE, "%s: XXH3 failed", path);
      at += (int64_t)count;
    }
  *digest_p = XXH3_128bits_digest(state);
  XXH3_freeState(state);
  return status;
}

spt_status spt_token_seal_write(int descriptor, const char *path, int64_t length, int64_t begin, int64_t bytes) {
  XXH128_hash_t hash;
  SPT_TRY(digest(descriptor, path, length, begin, bytes, &hash));
  seal block = {.version = 1,
                .length = (uint64_t)length,
                .begin = (uint64_t)begin,
                .bytes = (uint64_t)bytes,
                .digest_low = hash.low64,
                .digest_high = hash.high64};
  memcpy(block.magic, MAGIC, sizeof MAGIC);
  block.own = XXH3_64bits(&block, offsetof(seal, own));
  return spt_file_write_at(descriptor, path, &block, sizeof block, 0);
}

spt_status spt_token_seal_check(int descriptor, const char *path, int64_t length, bool *sealed_p, int64_t *begin_p,
                                int64_t *bytes_p) {
  seal block;
  *sealed_p = false;
  if (length < (int64_t)sizeof block) return SPT_OK;
  SPT_TRY(spt_file_read_at(descriptor, path, &block, sizeof block, 0));
  if (memcmp(block.magic, MAGIC, sizeof MAGIC)) return SPT_OK;
  if (block.own != XXH3_64bits(&block, offsetof(seal, own)))
    return SPT_FAIL(SPT_ERR_DATA, "%s: damaged: the seal's checksum differs", path);
  if (block.version != 1)
    return SPT_FAIL(SPT_ERR_DATA, "%s: seal version %llu, this program knows 1", path,
                    (unsigned long long)block.version);
  if (block.length != (uint64_t)length)
    return SPT_FAIL(SPT_ERR_DATA, "%s: damaged: %lld bytes long, should be %llu", path, (long long)length,
                    (unsigned long long)block.length);
  if (block.begin < sizeof block || block.begin > block.length || block.bytes > block.length - block.begin)
    return SPT_FAIL(SPT_ERR_DATA, "%s: damaged: the tokens lie outside of the file", path);
  XXH128_hash_t hash;
  SPT_TRY(digest(descriptor, path, length, (int64_t)block.begin, (int64_t)block.bytes, &hash));
  if (hash.low64 != block.digest_low || hash.high64 != block.digest_high)
    return SPT_FAIL(SPT_ERR_DATA, "%s: damaged: the metadata's checksum differs", path);
  *sealed_p = true;
  *begin_p = (int64_t)block.begin;
  *bytes_p = (int64_t)block.bytes;
  return SPT_OK;
}
