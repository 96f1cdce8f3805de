#include "foreign_shards.h"

#include <hdf5.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is odd about a file; zero is plain. */
typedef enum { PLAIN, CHUNKED, DEFLATED, SUMMED, SCALED, COMPACT, EXTERNAL, VIRTUAL, MISSING_CHUNK, LATE } storage;
typedef enum { OWN, SOFT, OTHER_FILE, USER_DEFINED, OTHER_GROUP, CYCLE, SOFT_GROUP, DANGLING } linking;
typedef enum { U16, U16_BIG, U32, U64, I16, F32, TEXT, COMPOUND, LISTS, COMMITTED, ODD_BITS } type_kind;
typedef enum { LINE, PLANE, POINT, NOTHING, ENDLESS, OVERFLOWING } shape;
typedef enum { FIXED, LISTED, LONG_TEXT, MANY, WIDE_INT, FLOAT_INT, NO_SPACE, VARIABLE } attributes;
typedef enum { NO_SUMS, GOOD_COUNT, HUGE_COUNT, WRONG_TYPE, BAD_BLOCK } sums;

typedef struct oddity {
  foreign_shard about;
  storage storage;
  linking linking;
  type_kind type;
  shape shape;
  attributes attributes;
  sums sums;
  bool latest;     /* the library's newest format */
  bool user_block; /* of zeros */
  bool disordered; /* documents; by the byte tokenizer */
} oddity;

static const oddity oddities[] = {
    {{"plain", true, NULL}, .storage = PLAIN},
    {{"uint32", true, NULL}, .type = U32},
    {{"big-endian", true, NULL}, .type = U16_BIG},
    {{"12 of 16 bits", true, NULL}, .type = ODD_BITS},
    {{"chunked", true, NULL}, .storage = CHUNKED},
    {{"deflated", true, NULL}, .storage = DEFLATED},
    {{"Fletcher32", true, NULL}, .storage = SUMMED},
    {{"newest format", true, NULL}, .latest = true},
    {{"newest format, deflated", true, NULL}, .latest = true, .storage = DEFLATED},
    {{"variable-length strings", true, NULL}, .attributes = VARIABLE},
    {{"many attributes", true, NULL}, .attributes = MANY, .latest = true},
    {{"wide integers", true, NULL}, .attributes = WIDE_INT},
    {{"scale-offset filter", false, "filter"}, .storage = SCALED},
    {{"compact", false, "compact"}, .storage = COMPACT},
    {{"external", false, "external"}, .storage = EXTERNAL},
    {{"virtual", false, "virtual"}, .storage = VIRTUAL},
    {{"missing chunks", false, "incomplete"}, .storage = MISSING_CHUNK},
    {{"never written", false, "outside of the file"}, .storage = LATE},
    {{"soft link", false, "link"}, .linking = SOFT},
    {{"link to another file", false, "link"}, .linking = OTHER_FILE},
    {{"user-defined link", false, "link"}, .linking = USER_DEFINED},
    {{"dangling link", false, "link"}, .linking = DANGLING},
    {{"documents in another file", false, "link"}, .linking = OTHER_GROUP},
    {{"documents by a soft link", false, "link"}, .linking = SOFT_GROUP},
    {{"a group that holds itself", true, NULL}, .linking = CYCLE},
    {{"uint64", false, "uint16 or uint32"}, .type = U64},
    {{"int16", false, "uint16 or uint32"}, .type = I16},
    {{"float", false, "uint16 or uint32"}, .type = F32},
    {{"strings", false, "uint16 or uint32"}, .type = TEXT},
    {{"compound", false, "uint16 or uint32"}, .type = COMPOUND},
    {{"lists", false, "uint16 or uint32"}, .type = LISTS},
    {{"committed datatype", false, "committed"}, .type = COMMITTED},
    {{"two dimensions", false, "dimensions"}, .shape = PLANE},
    {{"a scalar", false, "dimensions"}, .shape = POINT},
    {{"no extent", false, "dimensions"}, .shape = NOTHING},
    {{"endless", false, "more than its"}, .shape = ENDLESS, .storage = MISSING_CHUNK},
    {{"size overflows", false, "claims"}, .shape = OVERFLOWING, .storage = MISSING_CHUNK},
    {{"integers in a list", false, "one integer"}, .attributes = LISTED},
    {{"integers as floats", false, "one integer"}, .attributes = FLOAT_INT},
    {{"attributes without space", false, "one"}, .attributes = NO_SPACE},
    {{"long text", false, "at most"}, .attributes = LONG_TEXT},
    {{"wrong block checksums", false, "checksum of block 0"}, .sums = GOOD_COUNT},
    {{"too many block checksums", false, "entries for"}, .sums = HUGE_COUNT, .storage = PLAIN},
    {{"block checksums of 32 bits", false, "uint64"}, .sums = WRONG_TYPE},
    {{"blocks of 7 bytes", false, "block_bytes 7"}, .sums = BAD_BLOCK},
    {{"disordered documents", false, "out of order"}, .disordered = true},
    {{"user block", false, "user block"}, .user_block = true},
};

static void check(bool fine, const char *what) {
  if (fine) return;
  fprintf(stderr, "foreign shard: %s failed\n", what);
  abort();
}

/* ---- attributes ---- */

static void put_int(hid_t file, const oddity *o, const char *name, int64_t value) {
  const hsize_t three = 3;
  const int64_t values[3] = {value, value, value};
  const double number = (double)value;
  hid_t type = H5Tcopy(H5T_STD_I64LE);
  if (o->attributes == WIDE_INT) H5Tset_size(type, 16);
  const hid_t space = o->attributes == LISTED     ? H5Screate_simple(1, &three, NULL)
                      : o->attributes == NO_SPACE ? H5Screate(H5S_NULL)
                                                  : H5Screate(H5S_SCALAR);
  const bool real = o->attributes == FLOAT_INT;
  const hid_t attribute = H5Acreate2(file, name, real ? H5T_IEEE_F64LE : type, space, H5P_DEFAULT, H5P_DEFAULT);
  check(attribute >= 0, name);
  if (o->attributes != NO_SPACE)
    check(H5Awrite(attribute, real ? H5T_NATIVE_DOUBLE : H5T_NATIVE_INT64, real ? (const void *)&number : values) >= 0,
          name);
  H5Aclose(attribute);
  H5Sclose(space);
  H5Tclose(type);
}

static void put_text(hid_t file, const oddity *o, const char *name, const char *value) {
  char text[5000];
  snprintf(text, sizeof text, "%s", value);
  if (o->attributes == LONG_TEXT && !strcmp(name, "source")) {
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
  }
  const bool variable = o->attributes == VARIABLE;
  const char *pointer = text;
  const hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
  H5Tset_size(type, variable ? H5T_VARIABLE : strlen(text) + 1);
  const hid_t attribute = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  check(attribute >= 0 && H5Awrite(attribute, type, variable ? (const void *)&pointer : text) >= 0, name);
  H5Aclose(attribute);
  H5Sclose(space);
  H5Tclose(type);
}

static void put_attributes(hid_t file, const oddity *o) {
  put_text(file, o, "format", "spectron-tokens");
  put_int(file, o, "version", 1);
  put_int(file, o, "vocab_size", FOREIGN_VOCAB);
  put_int(file, o, "eos_id", FOREIGN_VOCAB - 1);
  put_text(file, o, "tokenizer", o->disordered ? "byte" : "elsewhere");
  put_text(file, o, "tokenizer_sha256",
           o->disordered ? "1c31626f568a075d2fd6934828ba678fe64655ef4e78e42c49367cbbfcaf42f5" // SHA-256 of "byte"
                         : "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef");
  put_text(file, o, "source", "elsewhere");
  if (o->sums != NO_SUMS) put_int(file, o, "block_bytes", o->sums == BAD_BLOCK ? 7 : 1024);
  for (int i = 0; o->attributes == MANY && i < 40; i++) { // the newest format stores so many in a heap and a tree
    char name[32];
    snprintf(name, sizeof name, "note %d", i);
    put_text(file, o, name, "nothing to see here");
  }
}

/* ---- tokens ---- */

static hid_t make_type(hid_t file, const oddity *o) {
  hid_t type;
  switch (o->type) {
  case U16_BIG: return H5Tcopy(H5T_STD_U16BE);
  case U32: return H5Tcopy(H5T_STD_U32LE);
  case U64: return H5Tcopy(H5T_STD_U64LE);
  case I16: return H5Tcopy(H5T_STD_I16LE);
  case F32: return H5Tcopy(H5T_IEEE_F32LE);
  case LISTS: return H5Tvlen_create(H5T_STD_U16LE);
  case TEXT:
    type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, 2);
    return type;
  case COMPOUND:
    type = H5Tcreate(H5T_COMPOUND, 2);
    H5Tinsert(type, "id", 0, H5T_STD_U16LE);
    return type;
  case COMMITTED:
    type = H5Tcopy(H5T_STD_U16LE);
    check(H5Tcommit2(file, "id", type, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT) >= 0, "commit");
    return type;
  case ODD_BITS:
    type = H5Tcopy(H5T_STD_U16LE);
    H5Tset_precision(type, 12);
    return type;
  default: return H5Tcopy(H5T_STD_U16LE);
  }
}

static hid_t make_space(const oddity *o) {
  const hsize_t line = FOREIGN_TOKENS, plane[2] = {FOREIGN_TOKENS / 2, 2}, endless = (hsize_t)1 << 50,
                overflow = ((hsize_t)1 << 63) - 8;
  switch (o->shape) {
  case PLANE: return H5Screate_simple(2, plane, NULL);
  case POINT: return H5Screate(H5S_SCALAR);
  case NOTHING: return H5Screate(H5S_NULL);
  case ENDLESS: return H5Screate_simple(1, &endless, NULL);
  case OVERFLOWING: return H5Screate_simple(1, &overflow, NULL);
  default: return H5Screate_simple(1, &line, NULL);
  }
}

static hid_t make_plan(const oddity *o, const char *other) {
  const hid_t plan = H5Pcreate(H5P_DATASET_CREATE);
  const hsize_t chunk = 100, whole = FOREIGN_TOKENS;
  const bool chunked = o->storage == CHUNKED || o->storage == DEFLATED || o->storage == SUMMED ||
                       o->storage == SCALED || o->storage == MISSING_CHUNK;
  if (chunked) H5Pset_chunk(plan, 1, &chunk);
  if (o->storage == DEFLATED) H5Pset_shuffle(plan), H5Pset_deflate(plan, 6);
  if (o->storage == SUMMED) H5Pset_fletcher32(plan);
  if (o->storage == SCALED) H5Pset_scaleoffset(plan, H5Z_SO_INT, 0);
  if (o->storage == COMPACT) H5Pset_layout(plan, H5D_COMPACT);
  if (o->storage == EXTERNAL) H5Pset_external(plan, other, 0, whole * 2);
  if (o->storage == LATE) H5Pset_alloc_time(plan, H5D_ALLOC_TIME_LATE);
  if (o->storage == VIRTUAL) {
    const hid_t space = H5Screate_simple(1, &whole, NULL);
    H5Pset_virtual(plan, space, other, "tokens", space);
    H5Sclose(space);
  }
  return plan;
}

/* Tokens as dataset `name`. */
static void put_tokens(hid_t file, const oddity *o, const char *name, const char *other) {
  uint32_t ids[FOREIGN_TOKENS];
  for (uint32_t i = 0; i < FOREIGN_TOKENS; i++) ids[i] = 7 * i % FOREIGN_VOCAB;
  const hid_t type = make_type(file, o), space = make_space(o), plan = make_plan(o, other);
  const hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, plan, H5P_DEFAULT);
  check(set >= 0, "tokens");
  const bool writable = o->type != TEXT && o->type != COMPOUND && o->type != LISTS &&
                        (o->shape == LINE || o->shape == PLANE) && o->storage != VIRTUAL && o->storage != LATE;
  if (writable && o->storage == MISSING_CHUNK) {
    const hsize_t begin = 150, count = 300;
    const hid_t part = H5Screate_simple(1, &count, NULL);
    H5Sselect_hyperslab(space, H5S_SELECT_SET, &begin, NULL, &count, NULL);
    check(H5Dwrite(set, H5T_NATIVE_UINT32, part, space, H5P_DEFAULT, ids) >= 0, "some tokens");
    H5Sclose(part);
  } else if (writable) {
    check(H5Dwrite(set, H5T_NATIVE_UINT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, ids) >= 0, "tokens");
  }
  H5Dclose(set);
  H5Pclose(plan);
  H5Sclose(space);
  H5Tclose(type);
}

/* ---- the rest ---- */

static void put_line(hid_t place, const char *name, hid_t type, hsize_t count, uint64_t step) {
  uint64_t *values = calloc(count, sizeof *values);
  check(values != NULL, "memory");
  for (hsize_t i = 0; i < count; i++) values[i] = step * i;
  const hid_t space = H5Screate_simple(1, &count, NULL),
              set = H5Dcreate2(place, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  check(set >= 0 && H5Dwrite(set, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0, name);
  H5Dclose(set);
  H5Sclose(space);
  free(values);
}

static void put_documents(hid_t file, const oddity *o, const char *other) {
  const bool elsewhere = o->linking == SOFT_GROUP;
  if (o->linking == CYCLE) { // /documents is the root itself
    put_line(file, "start", H5T_STD_U64LE, 6, 100);
    check(H5Lcreate_hard(file, "/", file, "documents", H5P_DEFAULT, H5P_DEFAULT) >= 0, "cycle");
    return;
  }
  if (o->linking == OTHER_GROUP) {
    check(H5Lcreate_external(other, "/documents", file, "documents", H5P_DEFAULT, H5P_DEFAULT) >= 0, "external link");
    return;
  }
  const hid_t group = H5Gcreate2(file, elsewhere ? "papers" : "documents", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  put_line(group, "start", H5T_STD_U64LE, 6, o->disordered ? (uint64_t)-100 : 100);
  H5Gclose(group);
  if (elsewhere) check(H5Lcreate_soft("/papers", file, "documents", H5P_DEFAULT, H5P_DEFAULT) >= 0, "soft link");
}

static hid_t never_follow(const char *name, hid_t group, const void *data, size_t size, hid_t link, hid_t transfer) {
  (void)name, (void)group, (void)data, (void)size, (void)link, (void)transfer;
  return -1;
}

static void put_linked_tokens(hid_t file, const oddity *o, const char *other) {
  static const H5L_class_t class = {.version = H5L_LINK_CLASS_T_VERS, .id = (H5L_type_t)200, .trav_func = never_follow};
  herr_t made = 0;
  if (o->linking != OTHER_FILE && o->linking != USER_DEFINED && o->linking != DANGLING)
    put_tokens(file, o, o->linking == SOFT ? "elsewhere" : "tokens", other);
  if (o->linking == SOFT) made = H5Lcreate_soft("/elsewhere", file, "tokens", H5P_DEFAULT, H5P_DEFAULT);
  if (o->linking == DANGLING) made = H5Lcreate_soft("/nowhere", file, "tokens", H5P_DEFAULT, H5P_DEFAULT);
  if (o->linking == OTHER_FILE) made = H5Lcreate_external(other, "/tokens", file, "tokens", H5P_DEFAULT, H5P_DEFAULT);
  if (o->linking == USER_DEFINED) {
    check(H5Lregister(&class) >= 0, "link class");
    made = H5Lcreate_ud(file, "tokens", class.id, "x", 1, H5P_DEFAULT, H5P_DEFAULT);
    H5Lunregister(class.id);
  }
  check(made >= 0, "link");
}

static void write_file(const char *path, const oddity *o, const char *other) {
  const hid_t creation = H5Pcreate(H5P_FILE_CREATE), access = H5Pcreate(H5P_FILE_ACCESS);
  if (o->user_block) H5Pset_userblock(creation, 512);
  if (o->latest) H5Pset_libver_bounds(access, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
  const hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, creation, access);
  check(file >= 0, path);
  put_attributes(file, o);
  put_linked_tokens(file, o, other);
  put_documents(file, o, other);
  const hsize_t blocks = o->sums == HUGE_COUNT ? 5000 : (FOREIGN_TOKENS * 2 + 1023) / 1024;
  if (o->sums != NO_SUMS)
    put_line(file, "tokens_xxh3", o->sums == WRONG_TYPE ? H5T_STD_U32LE : H5T_STD_U64LE, blocks, 1);
  check(H5Fclose(file) >= 0, path);
  H5Pclose(creation);
  H5Pclose(access);
}

const foreign_shard *foreign_shard_write(const char *path, int index) {
  static const oddity plain = {{"companion", true, NULL}, .storage = PLAIN};
  char other[4096];
  if (index >= (int)(sizeof oddities / sizeof *oddities)) return NULL;
  const oddity *o = &oddities[index];
  snprintf(other, sizeof other, "%s.other", path);
  if (o->linking == OTHER_FILE || o->linking == OTHER_GROUP || o->storage == VIRTUAL) write_file(other, &plain, "");
  write_file(path, o, other);
  return &o->about;
}
