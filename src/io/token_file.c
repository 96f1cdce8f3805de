/* Reading token shards. A seal of ours is checked first; then a process of its own (hdf5_process.h) says where things
 * lie, sealed or not. Contiguous datasets are read with plain pread at once and for ever; for others the reader process
 * stays and is asked for each piece: HDF5 never sees a file in this process. */
#include "token_file.h"
#include "durable_file.h"
#include "hdf5_process.h"
#include "token_layout.h"
#include "token_seal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { BLOCK_BYTES_MAX = 1 << 26, READ_TOKENS = 16384 };

struct spt_token_file {
  char *path;
  spt_token_file_info info;
  int descriptor;
  int64_t size; /* bytes in the file */
  spt_shard_set sets[SPT_SHARD_SETS];
  spt_hdf5_reader *reader;     /* kept only while a dataset needs it */
  int64_t block_bytes, blocks; /* 0 without checksums */
  uint64_t *checksums;
  unsigned char *verified; /* a byte a block */
  void *block;             /* scratch of a block */
  uint32_t *wide;          /* scratch of READ_TOKENS tokens */
};

static void warn(spt_token_file *file, const char *text) {
  const size_t used = strlen(file->info.warning);
  snprintf(file->info.warning + used, sizeof file->info.warning - used, "%s%s", used ? "; " : "", text);
}

static spt_status check_info(const spt_token_file *file) {
  const spt_token_file_info *info = &file->info;
  const char *path = file->path;
  if (info->vocab_size < 1 || info->vocab_size > INT32_MAX)
    return SPT_FAIL(SPT_ERR_DATA, "%s: vocab_size %lld is not in [1, 2^31)", path, (long long)info->vocab_size);
  if (info->eos_id < 0 || info->eos_id >= info->vocab_size)
    return SPT_FAIL(SPT_ERR_DATA, "%s: eos_id %lld is outside of the vocabulary of %lld", path, (long long)info->eos_id,
                    (long long)info->vocab_size);
  if (info->text_bytes < 0)
    return SPT_FAIL(SPT_ERR_DATA, "%s: text_bytes %lld is negative", path, (long long)info->text_bytes);
  return SPT_OK;
}

/* What the reader says is believed only as far as it fits the file: it may have been led astray. */
static spt_status check_sets(const spt_token_file *file) {
  static const char *const names[SPT_SHARD_SETS] = {"tokens", "tokens_xxh3", "documents/start"};
  for (int i = 0; i < SPT_SHARD_SETS; i++) {
    const spt_shard_set *set = &file->sets[i];
    if (set->count < 0 && i != SPT_SHARD_TOKENS) continue;
    if (set->count < 0) return SPT_FAIL(SPT_ERR_DATA, "%s: no dataset /%s", file->path, names[i]);
    const bool width = i == SPT_SHARD_TOKENS ? set->width == 2 || set->width == 4 : set->width == 8;
    if (!width || set->count > INT64_MAX / 16 || set->offset < -1 || set->offset > file->size ||
        (set->offset >= 0 && set->count * set->width > file->size - set->offset))
      return SPT_FAIL(SPT_ERR_DATA, "%s: /%s lies outside of the file", file->path, names[i]);
  }
  if (file->sets[SPT_SHARD_TOKENS].count == 0) return SPT_FAIL(SPT_ERR_DATA, "%s: /tokens is empty", file->path);
  return SPT_OK;
}

/* Elements [begin, begin + count) of a dataset, in this machine's byte order. */
static spt_status read_set(spt_token_file *file, int number, int64_t begin, int64_t count, void *values) {
  const spt_shard_set *set = &file->sets[number];
  if (count == 0) return SPT_OK;
  if (set->offset >= 0)
    return spt_file_read_at(file->descriptor, file->path, values, (size_t)(count * set->width),
                            (uint64_t)(set->offset + begin * set->width));
  const spt_question question = {
      .kind = SPT_ASK_VALUES, .set = number, .begin = begin, .count = count, .answer_bytes = count * set->width};
  return spt_hdf5_reader_ask(file->reader, question, NULL, values);
}

static spt_status load_checksums(spt_token_file *file) {
  const spt_shard_set *sums = &file->sets[SPT_SHARD_CHECKSUMS];
  if (sums->count < 0) {
    warn(file, "no block checksums: damage is not noticed");
    return SPT_OK;
  }
  const int64_t bytes = file->info.tokens * file->info.token_bytes;
  if (file->block_bytes < 1024 || file->block_bytes > BLOCK_BYTES_MAX || file->block_bytes % 8)
    return SPT_FAIL(SPT_ERR_DATA, "%s: block_bytes %lld is not a multiple of 8 in [1024, 2^26]", file->path,
                    (long long)file->block_bytes);
  file->blocks = (bytes + file->block_bytes - 1) / file->block_bytes;
  if (sums->count != file->blocks)
    return SPT_FAIL(SPT_ERR_DATA, "%s: /tokens_xxh3 has %lld entries for %lld blocks", file->path,
                    (long long)sums->count, (long long)file->blocks);
  const int64_t largest = bytes < file->block_bytes ? bytes : file->block_bytes;
  if (!(file->checksums = malloc((size_t)file->blocks * sizeof *file->checksums)) ||
      !(file->verified = calloc(1, (size_t)file->blocks)) || !(file->block = malloc((size_t)largest)))
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", file->path);
  for (int64_t at = 0; at < file->blocks; at += READ_TOKENS) {
    const int64_t left = file->blocks - at;
    SPT_TRY(read_set(file, SPT_SHARD_CHECKSUMS, at, left < READ_TOKENS ? left : READ_TOKENS, file->checksums + at));
  }
  file->info.checksummed = true;
  return SPT_OK;
}

/* Plain-file checks and, for our own files, the seal. */
static spt_status open_descriptor(spt_token_file *file, bool *sealed_p, int64_t *begin_p, int64_t *bytes_p) {
  struct stat about;
  file->descriptor = open(file->path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); // a pipe would be waited for
  if (file->descriptor < 0 || fstat(file->descriptor, &about) != 0)
    return SPT_FAIL(SPT_ERR_DATA, "%s: cannot be opened: %s", file->path, strerror(errno));
  if (!S_ISREG(about.st_mode)) return SPT_FAIL(SPT_ERR_DATA, "%s: not a file", file->path);
  file->size = about.st_size;
  return spt_token_seal_check(file->descriptor, file->path, file->size, sealed_p, begin_p, bytes_p);
}

/* Asks the reader, and checks all that it says. */
static spt_status load_layout(spt_token_file *file, bool *user_block_p, bool *fletcher32_p) {
  spt_shard_layout layout;
  const spt_question question = {.kind = SPT_ASK_LAYOUT, .answer_bytes = sizeof layout};
  SPT_TRY(spt_hdf5_reader_open(SPT_READ_SHARD, file->descriptor, file->path, &file->reader));
  SPT_TRY(spt_hdf5_reader_ask(file->reader, question, NULL, &layout));
  spt_token_file_info *info = &file->info;
  *info = layout.info;
  info->tokenizer[sizeof info->tokenizer - 1] = info->source[sizeof info->source - 1] = '\0';
  info->tokenizer_sha256[sizeof info->tokenizer_sha256 - 1] = info->warning[0] = '\0';
  memcpy(file->sets, layout.sets, sizeof file->sets);
  file->block_bytes = layout.block_bytes;
  *user_block_p = layout.user_block;
  *fletcher32_p = layout.fletcher32;
  SPT_TRY(check_info(file));
  SPT_TRY(check_sets(file));
  const spt_shard_set *tokens = &file->sets[SPT_SHARD_TOKENS], *starts = &file->sets[SPT_SHARD_STARTS];
  info->tokens = tokens->count;
  info->token_bytes = tokens->width;
  info->contiguous = tokens->offset >= 0;
  info->checksummed = false;
  info->documents = starts->count < 0 ? 0 : starts->count;
  if (info->documents > info->tokens)
    return SPT_FAIL(SPT_ERR_DATA, "%s: %lld documents but %lld tokens", file->path, (long long)info->documents,
                    (long long)info->tokens);
  return SPT_OK;
}

static bool needs_reader(const spt_token_file *file) {
  const spt_shard_set *tokens = &file->sets[SPT_SHARD_TOKENS], *starts = &file->sets[SPT_SHARD_STARTS];
  return tokens->offset < 0 || (starts->count > 0 && starts->offset < 0);
}

static spt_status load(spt_token_file *file) {
  bool sealed, user_block, fletcher32;
  int64_t begin, bytes;
  SPT_TRY(open_descriptor(file, &sealed, &begin, &bytes));
  SPT_TRY(load_layout(file, &user_block, &fletcher32));
  // A user block that is no seal may be a damaged seal: no single wrong byte may turn our file into a foreign one.
  if (!sealed && user_block)
    return SPT_FAIL(SPT_ERR_DATA, "%s: damaged: its HDF5 user block holds no seal", file->path);
  if (sealed && (file->sets[SPT_SHARD_TOKENS].offset != begin || file->info.tokens * file->info.token_bytes != bytes))
    return SPT_FAIL(SPT_ERR_DATA, "%s: damaged: the seal names another place for /tokens", file->path);
  if (!file->info.contiguous) warn(file, "not contiguous in this machine's byte order: reads go through HDF5, slower");
  if (fletcher32) warn(file, "Fletcher32 checksums, checked by HDF5");
  SPT_TRY(load_checksums(file));
  if (file->sets[SPT_SHARD_STARTS].count < 0) warn(file, "no /documents/start");
  if (!sealed) warn(file, "not made by 'spectron tokenize'");
  if (!file->info.contiguous && !(file->wide = malloc(READ_TOKENS * sizeof *file->wide)))
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", file->path);
  if (!needs_reader(file)) spt_hdf5_reader_close(&file->reader);
  return SPT_OK;
}

spt_status spt_token_file_open(const char *path, spt_token_file **file_p) {
  spt_token_file *file = calloc(1, sizeof *file);
  if (!file || !(file->path = strdup(path))) {
    free(file);
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", path);
  }
  file->descriptor = -1;
  const spt_status status = load(file);
  if (status != SPT_OK) {
    spt_token_file_close(&file);
    return status;
  }
  *file_p = file;
  return SPT_OK;
}

void spt_token_file_close(spt_token_file **file_p) {
  spt_token_file *file = *file_p;
  if (!file) return;
  spt_hdf5_reader_close(&file->reader);
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

static spt_status verify_block(spt_token_file *file, int64_t index) {
  const int64_t per_block = file->block_bytes / file->info.token_bytes, begin = index * per_block;
  const int64_t left = file->info.tokens - begin, count = left < per_block ? left : per_block;
  SPT_TRY(read_set(file, SPT_SHARD_TOKENS, begin, count, file->block));
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
    SPT_TRY(read_set(file, SPT_SHARD_TOKENS, begin + done, some, raw));
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
  return read_set(file, SPT_SHARD_STARTS, begin, count, starts);
}
