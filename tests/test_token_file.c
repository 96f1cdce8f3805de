/* Token shards: round trips, every kind of damage, files made elsewhere, failing disks. */
#include "token_fixture.h"

#include "faults.h"

#include <hdf5.h>
#include <sys/stat.h>

static uint64_t seed;

static int64_t below(uint64_t stream, uint64_t index, int64_t bound) {
  return fixture_below(seed, stream, index, bound);
}

static int64_t file_size(const char *path) {
  struct stat info;
  assert_int_equal(stat(path, &info), 0);
  return info.st_size;
}

/* Flips bits of one byte in place. */
static void flip(const char *path, int64_t at, int mask) {
  FILE *file = fopen(path, "r+b");
  assert_non_null(file);
  assert_int_equal(fseek(file, (long)at, SEEK_SET), 0);
  const int byte = fgetc(file);
  assert_true(byte != EOF);
  assert_int_equal(fseek(file, (long)at, SEEK_SET), 0);
  assert_int_equal(fputc(byte ^ mask, file), byte ^ mask);
  assert_int_equal(fclose(file), 0);
}

static void check_reads(const char *path, const uint32_t *ids, int64_t tokens, uint64_t stream) {
  spt_token_file *file;
  assert_ok(spt_token_file_open(path, &file));
  assert_string_equal(spt_token_file_path(file), path);
  assert_int_equal(spt_token_file_info_of(file)->tokens, tokens);
  int32_t *read = malloc((size_t)tokens * sizeof *read);
  assert_non_null(read);
  for (uint64_t i = 0; i < 30; i++) {
    const int64_t begin = below(stream, 2 * i, tokens), count = i ? 1 + below(stream, 2 * i + 1, tokens - begin) : 0;
    memset(read, 0xFF, (size_t)tokens * sizeof *read);
    assert_ok(spt_token_file_read(file, begin, count, read));
    for (int64_t k = 0; k < count; k++)
      if (read[k] != (int32_t)ids[begin + k])
        fail_msg("token %lld is %d, not %u", (long long)(begin + k), read[k], ids[begin + k]);
    if (count < tokens) assert_int_equal(read[count], -1);
  }
  assert_ok(spt_token_file_verify(file));
  assert_fails(SPT_ERR_DATA, spt_token_file_read(file, tokens - 1, 2, read), path);
  assert_fails(SPT_ERR_DATA, spt_token_file_read(file, -1, 1, read), path);
  free(read);
  spt_token_file_close(&file);
  spt_token_file_close(&file);
}

static void test_round_trip(void **state) {
  (void)state;
  static const struct {
    int64_t tokens, vocab;
    int token_bytes;
  } cases[] = {{1, 2, 2}, {32768, 257, 2}, {32769, 4096, 2}, {100003, 65536, 2}, {16384, 65537, 4}, {50001, 128256, 4}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const char *path = temp_path("round.h5");
    uint32_t *ids = fixture_shard(path, seed, 100 + 10 * i, cases[i].tokens, cases[i].vocab);
    check_reads(path, ids, cases[i].tokens, 500 + i);
    spt_token_file *file;
    assert_ok(spt_token_file_open(path, &file));
    const spt_token_file_info *info = spt_token_file_info_of(file);
    assert_int_equal(info->token_bytes, cases[i].token_bytes);
    assert_int_equal(info->vocab_size, cases[i].vocab);
    assert_int_equal(info->eos_id, cases[i].vocab - 1);
    assert_int_equal(info->text_bytes, 3 * cases[i].tokens);
    assert_true(info->contiguous && info->checksummed);
    assert_string_equal(info->warning, "");
    assert_string_equal(info->tokenizer, "fixture");
    assert_string_equal(info->tokenizer_sha256, fixture_sha256);
    assert_string_equal(info->source, "random");
    uint64_t *starts = malloc((size_t)info->documents * sizeof *starts);
    assert_non_null(starts);
    assert_ok(spt_token_file_documents(file, 0, info->documents, starts));
    assert_int_equal(starts[0], 0);
    for (int64_t k = 1; k < info->documents; k++) {
      assert_true(starts[k] > starts[k - 1]);
      assert_int_equal(ids[starts[k] - 1], info->eos_id);
    }
    assert_fails(SPT_ERR_DATA, spt_token_file_documents(file, info->documents, 1, starts), path);
    free(starts);
    free(ids);
    spt_token_file_close(&file);
  }
}

/* Whatever byte of our file is wrong, open or verify says so and names the file. */
static void test_any_flipped_byte(void **state) {
  (void)state;
  const char *path = temp_path("flip.h5");
  free(fixture_shard(path, seed, 1000, 700, 300));
  const int64_t size = file_size(path);
  for (uint64_t i = 0; i < 1200; i++) {
    const int64_t at = i < 64 ? (int64_t)i : i < 100 ? 4000 + (int64_t)i : below(1010, i, size);
    const int mask = 1 << below(1011, i, 8);
    flip(path, at, mask);
    spt_token_file *file = NULL;
    spt_error_clear();
    spt_status status = spt_token_file_open(path, &file);
    if (status == SPT_OK) status = spt_token_file_verify(file);
    if (status != SPT_ERR_DATA || !strstr(spt_error_message(), path))
      fail_msg("byte %lld: status %d, '%s'", (long long)at, (int)status, spt_error_message());
    spt_token_file_close(&file);
    flip(path, at, mask);
  }
  spt_token_file *file;
  assert_ok(spt_token_file_open(path, &file));
  assert_ok(spt_token_file_verify(file));
  spt_token_file_close(&file);
}

static void test_damaged_block(void **state) {
  (void)state;
  const char *path = temp_path("block.h5");
  uint32_t *ids = fixture_shard(path, seed, 1100, 150000, 4096);
  hid_t plain = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
  hid_t set = H5Dopen2(plain, "tokens", H5P_DEFAULT);
  const int64_t offset = (int64_t)H5Dget_offset(set);
  H5Dclose(set);
  H5Fclose(plain);
  flip(path, offset + 2 * 65536 + below(1110, 0, 65536), 1);
  spt_token_file *file;
  int32_t read[16];
  assert_ok(spt_token_file_open(path, &file));
  assert_ok(spt_token_file_read(file, 2 * 32768 - 16, 16, read));
  assert_int_equal(read[15], ids[2 * 32768 - 1]);
  assert_fails(SPT_ERR_DATA, spt_token_file_read(file, 2 * 32768 - 15, 16, read), path, "block 2");
  assert_fails(SPT_ERR_DATA, spt_token_file_read(file, 3 * 32768 - 1, 1, read), path, "block 2");
  assert_ok(spt_token_file_read(file, 3 * 32768, 16, read));
  assert_fails(SPT_ERR_DATA, spt_token_file_verify(file), path, "block 2");
  spt_token_file_close(&file);
  free(ids);
}

static void test_truncated_or_alien(void **state) {
  (void)state;
  spt_token_file *file = NULL;
  const char *path = temp_path("cut.h5");
  for (uint64_t i = 0; i < 40; i++) {
    free(fixture_shard(path, seed, 1200, 3000, 300));
    const int64_t size = file_size(path), left = i == 0   ? size - 1
                                                 : i == 1 ? 0
                                                 : i == 2 ? size + 1
                                                          : below(1210, i, size);
    assert_int_equal(truncate(path, left), 0);
    assert_fails(SPT_ERR_DATA, spt_token_file_open(path, &file), path);
    assert_null(file);
  }
  FILE *text = fopen(path, "w");
  for (int i = 0; i < 3000; i++) fputs("not HDF5\n", text);
  assert_int_equal(fclose(text), 0);
  assert_fails(SPT_ERR_DATA, spt_token_file_open(path, &file), path);
  assert_fails(SPT_ERR_DATA, spt_token_file_open(temp_path("absent.h5"), &file), "absent.h5");
  assert_fails(SPT_ERR_DATA, spt_token_file_open(temp_folder, &file), temp_folder);
}

/* A file as another program would write it, changed in one way: zero is the default of every field. */
typedef struct foreign {
  const char *name;
  enum { U16, U16_BIG, U32, U32_BIG, U64, I16, F32 } type; /* of tokens in the file */
  enum { PLAIN, CHUNKED, DEFLATED, SUMMED, COMPACT, EXTERNAL, VIRTUAL, HOLLOW } layout;
  bool variable_strings, no_documents, two_dimensions, soft_link, empty;
  const char *without; /* attribute left out */
  int64_t version, vocab, eos;
  const char *format;
  const char *complaint; /* NULL: welcome, with a warning */
  int64_t tokens;
} foreign;

static hid_t foreign_type(const foreign *f) {
  const hid_t types[] = {H5T_STD_U16LE, H5T_STD_U16BE, H5T_STD_U32LE, H5T_STD_U32BE,
                         H5T_STD_U64LE, H5T_STD_I16LE, H5T_IEEE_F32LE};
  return types[f->type];
}

static void put_int(hid_t file, const foreign *f, const char *name, int64_t value) {
  if (f->without && !strcmp(f->without, name)) return;
  const hid_t space = H5Screate(H5S_SCALAR),
              attribute = H5Acreate2(file, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
  assert_true(H5Awrite(attribute, H5T_NATIVE_INT64, &value) >= 0);
  H5Aclose(attribute);
  H5Sclose(space);
}

static void put_text(hid_t file, const foreign *f, const char *name, const char *value) {
  if (f->without && !strcmp(f->without, name)) return;
  const hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
  H5Tset_size(type, f->variable_strings ? H5T_VARIABLE : strlen(value)); /* fixed without room for a NUL */
  H5Tset_strpad(type, f->variable_strings ? H5T_STR_NULLTERM : H5T_STR_NULLPAD);
  H5Tset_cset(type, H5T_CSET_UTF8);
  const hid_t attribute = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  assert_true(H5Awrite(attribute, type, f->variable_strings ? (const void *)&value : (const void *)value) >= 0);
  H5Aclose(attribute);
  H5Tclose(type);
  H5Sclose(space);
}

static hid_t foreign_plan(const foreign *f) {
  const hid_t plan = H5Pcreate(H5P_DATASET_CREATE);
  const hsize_t chunk[2] = {1000, 1}, whole = (hsize_t)f->tokens;
  if (f->layout == CHUNKED || f->layout == DEFLATED || f->layout == SUMMED || f->layout == HOLLOW)
    H5Pset_chunk(plan, f->two_dimensions ? 2 : 1, chunk);
  if (f->layout == DEFLATED) H5Pset_deflate(plan, 4);
  if (f->layout == SUMMED) H5Pset_fletcher32(plan);
  if (f->layout == COMPACT) H5Pset_layout(plan, H5D_COMPACT);
  if (f->layout == EXTERNAL) H5Pset_external(plan, temp_path("outside.bin"), 0, whole * 2);
  if (f->layout == VIRTUAL) {
    const hid_t space = H5Screate_simple(1, &whole, NULL);
    H5Pset_virtual(plan, space, "elsewhere.h5", "tokens", space);
    H5Sclose(space);
  }
  return plan;
}

static void foreign_write(const char *path, const foreign *f, const uint32_t *ids) {
  const hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  assert_true(file >= 0);
  put_text(file, f, "format", f->format);
  put_int(file, f, "version", f->version);
  put_int(file, f, "vocab_size", f->vocab);
  put_int(file, f, "eos_id", f->eos);
  put_text(file, f, "tokenizer", "fixture");
  put_text(file, f, "tokenizer_sha256", fixture_sha256);
  put_text(file, f, "source", "élsewhere");
  const hsize_t extent[2] = {f->layout == HOLLOW ? (hsize_t)1 << 56 : (hsize_t)f->tokens, 1};
  const hid_t space = H5Screate_simple(f->two_dimensions ? 2 : 1, extent, NULL), plan = foreign_plan(f);
  const hid_t set =
      H5Dcreate2(file, f->soft_link ? "other" : "tokens", foreign_type(f), space, H5P_DEFAULT, plan, H5P_DEFAULT);
  assert_true(set >= 0);
  if (f->layout != VIRTUAL && f->layout != HOLLOW && f->tokens)
    assert_true(H5Dwrite(set, H5T_NATIVE_UINT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, ids) >= 0);
  if (f->soft_link) H5Lcreate_soft("/other", file, "tokens", H5P_DEFAULT, H5P_DEFAULT);
  H5Dclose(set);
  H5Pclose(plan);
  H5Sclose(space);
  if (!f->no_documents) {
    const hsize_t one = 1;
    const uint64_t start = 0;
    const hid_t group = H5Gcreate2(file, "documents", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
                line = H5Screate_simple(1, &one, NULL);
    const hid_t starts = H5Dcreate2(group, "start", H5T_STD_U64LE, line, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Dwrite(starts, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, &start) >= 0);
    H5Dclose(starts);
    H5Sclose(line);
    H5Gclose(group);
  }
  assert_true(H5Fclose(file) >= 0);
}

static void test_foreign(void **state) {
  (void)state;
  enum { TOKENS = 20000, VOCAB = 5000 };
  uint32_t ids[TOKENS];
  for (int i = 0; i < TOKENS; i++) ids[i] = (uint32_t)below(1300, (uint64_t)i, VOCAB);
  static const foreign cases[] = {
      {"contiguous", .layout = PLAIN},
      {"variable-length strings", .variable_strings = true},
      {"uint32", .type = U32},
      {"big-endian", .type = U16_BIG},
      {"chunked", .layout = CHUNKED},
      {"chunked big-endian uint32", .layout = CHUNKED, .type = U32_BIG},
      {"deflated", .layout = DEFLATED},
      {"Fletcher32", .layout = SUMMED},
      {"without documents", .no_documents = true},
      {"without source", .without = "source"},
      {"signed", .type = I16, .complaint = "uint16 or uint32"},
      {"float", .type = F32, .complaint = "uint16 or uint32"},
      {"wide", .type = U64, .complaint = "uint16 or uint32"},
      {"two dimensions", .two_dimensions = true, .complaint = "dimensions"},
      {"compact", .layout = COMPACT, .complaint = "compact"},
      {"external", .layout = EXTERNAL, .complaint = "external"},
      {"virtual", .layout = VIRTUAL, .complaint = "virtual"},
      {"hollow", .layout = HOLLOW, .complaint = "more than its"},
      {"soft link", .soft_link = true, .complaint = "link"},
      {"empty", .empty = true, .complaint = "empty"},
      {"format", .format = "spectron-checkpoint", .complaint = "spectron-checkpoint"},
      {"version", .version = 2, .complaint = "version 2"},
      {"vocabulary", .vocab = -1, .complaint = "vocab_size -1"},
      {"eos", .eos = VOCAB, .complaint = "eos_id"},
      {"no format", .without = "format", .complaint = "'format'"},
      {"no version", .without = "version", .complaint = "'version'"},
      {"no vocabulary", .without = "vocab_size", .complaint = "'vocab_size'"},
      {"no eos", .without = "eos_id", .complaint = "'eos_id'"},
      {"no tokenizer", .without = "tokenizer", .complaint = "'tokenizer'"},
      {"no digest", .without = "tokenizer_sha256", .complaint = "'tokenizer_sha256'"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    foreign f = cases[i];
    const char *path = temp_path("foreign.h5");
    f.tokens = f.empty ? 0 : f.layout == COMPACT ? 1000 : TOKENS; /* compact: the format's limit is 64 KiB */
    if (!f.version) f.version = 1;
    if (!f.vocab) f.vocab = VOCAB;
    if (!f.format) f.format = "spectron-tokens";
    foreign_write(path, &f, ids);
    spt_token_file *file = NULL;
    printf("  %s\n", f.name);
    if (f.complaint) {
      assert_fails(SPT_ERR_DATA, spt_token_file_open(path, &file), path, f.complaint);
      continue;
    }
    check_reads(path, ids, TOKENS, 1400 + i);
    assert_ok(spt_token_file_open(path, &file));
    const spt_token_file_info *info = spt_token_file_info_of(file);
    assert_true(info->warning[0] && !info->checksummed);
    assert_int_equal(info->documents, !f.no_documents);
    assert_string_equal(info->source, f.without ? "" : "élsewhere");
    assert_int_equal(info->contiguous, f.layout == PLAIN && f.type != U16_BIG);
    spt_token_file_close(&file);
  }
}

static void test_id_outside_of_vocabulary(void **state) {
  (void)state;
  uint32_t ids[9000];
  for (int i = 0; i < 9000; i++) ids[i] = (uint32_t)below(1500, (uint64_t)i, 100);
  const int64_t at = below(1501, 0, 9000);
  ids[at] = 100;
  for (int layout = PLAIN; layout <= CHUNKED; layout++) {
    const foreign f = {.layout = layout, .version = 1, .vocab = 100, .format = "spectron-tokens", .tokens = 9000};
    const char *path = temp_path("vocab.h5");
    foreign_write(path, &f, ids);
    spt_token_file *file;
    int32_t read[9000];
    assert_ok(spt_token_file_open(path, &file));
    assert_ok(spt_token_file_read(file, 0, at, read));
    assert_fails(SPT_ERR_DATA, spt_token_file_read(file, at, 1, read), path, "token 100", "vocabulary of 100");
    assert_fails(SPT_ERR_DATA, spt_token_file_verify(file), path);
    spt_token_file_close(&file);
  }
}

static const spt_token_writer_options plain_options = {
    .vocab_size = 300, .eos_id = 256, .tokenizer = "fixture", .tokenizer_sha256 = fixture_sha256, .source = ""};

static void assert_only(const char *path, bool exists) {
  char other[1100];
  assert_int_equal(access(path, F_OK) == 0, exists);
  snprintf(other, sizeof other, "%s.part", path);
  assert_int_not_equal(access(other, F_OK), 0);
  snprintf(other, sizeof other, "%s.raw", path);
  assert_int_not_equal(access(other, F_OK), 0);
}

static void test_writer_refusals(void **state) {
  (void)state;
  const char *path = temp_path("writer.h5");
  const uint32_t good[] = {1, 2, 256}, bad[] = {1, 300, 256};
  spt_token_writer *writer;
  assert_ok(spt_token_writer_open(path, &plain_options, false, &writer));
  assert_ok(spt_token_writer_append(writer, good, 3, 2));
  assert_fails(SPT_ERR_DATA, spt_token_writer_append(writer, bad, 3, 2), path, "300");
  spt_token_writer_close(&writer);
  assert_only(path, false);
  assert_ok(spt_token_writer_open(path, &plain_options, false, &writer));
  assert_fails(SPT_ERR_DATA, spt_token_writer_finish(&writer), path);
  assert_only(path, false);
  free(fixture_shard(path, seed, 1600, 50, 300));
  assert_fails(SPT_ERR_USAGE, spt_token_writer_open(path, &plain_options, false, &writer), path, "exists");
  assert_only(path, true);
  assert_fails(SPT_ERR_RESOURCE, spt_token_writer_open(temp_path("no/such/folder.h5"), &plain_options, false, &writer),
               "folder.h5");
}

/* Links where the writer's own files are to be lead nowhere. */
static void test_writer_follows_no_link(void **state) {
  (void)state;
  char trap[1100], text[16] = "";
  const char *path = temp_path("linked.h5"), *outside = temp_path("precious.txt");
  FILE *file = fopen(outside, "w+");
  assert_non_null(file);
  assert_true(fputs("precious", file) >= 0 && fclose(file) == 0);
  static const char *const suffixes[] = {".part", ".raw"};
  for (int i = 0; i < 2; i++) {
    snprintf(trap, sizeof trap, "%s%s", path, suffixes[i]);
    assert_int_equal(symlink(outside, trap), 0);
  }
  const uint32_t ids[] = {1, 2, 256};
  spt_token_writer *writer;
  assert_ok(spt_token_writer_open(path, &plain_options, false, &writer));
  assert_ok(spt_token_writer_append(writer, ids, 3, 2));
  assert_ok(spt_token_writer_finish(&writer));
  assert_only(path, true);
  check_reads(path, ids, 3, 1690);
  file = fopen(outside, "r");
  assert_true(file && fgets(text, sizeof text, file) && fclose(file) == 0);
  assert_string_equal(text, "precious");
  const char *dangling = temp_path("dangling.h5");
  assert_int_equal(symlink(temp_path("nowhere"), dangling), 0);
  assert_fails(SPT_ERR_USAGE, spt_token_writer_open(dangling, &plain_options, false, &writer), "exists");
}

/* A disk that fails while a shard is replaced leaves the old shard as it was. */
static void test_failing_disk(void **state) {
  (void)state;
  const char *path = temp_path("disk.h5");
  uint32_t *ids = fixture_shard(path, seed, 1700, 40000, 300);
  const uint32_t other[] = {7, 256};
  static const char *const names[] = {"seal", "starts", "checksum", "tokens", "reserve", "fsync", "rename", "probe's close",
                                      "HDF5's first close", "close"};
  static const long closes[] = {0, 1, 3}; /* not 2: after a failed H5Fclose the library itself leaves the file open */
  spt_token_writer *writer;
  faults_reset();
  faults.writes_left = 1000000; /* how many there are; the last four come after HDF5's */
  assert_ok(spt_token_writer_open(temp_path("count.h5"), &plain_options, true, &writer));
  assert_ok(spt_token_writer_append(writer, other, 2, 1));
  assert_ok(spt_token_writer_finish(&writer));
  const long writes = 1000000 - faults.writes_left;
  assert_int_equal(faults.locks, 0); /* HDF5 takes none */
  faults_reset();
  assert_true(writes >= 4);
  for (int i = 0; i < 10; i++) {
    assert_ok(spt_token_writer_open(path, &plain_options, true, &writer));
    assert_ok(spt_token_writer_append(writer, other, 2, 1));
    printf("  %s\n", names[i]);
    if (i < 4) faults.writes_left = writes - 1 - i, faults.write_error = ENOSPC;
    if (i == 4) faults.reserve_error = ENOSPC;
    if (i == 5) faults.fsync_error = EIO;
    if (i == 6) faults.rename_error = EIO;
    if (i > 6) faults.closes_left = closes[i - 7], faults.close_error = EDQUOT; /* some network file systems tell only here */
    assert_fails(SPT_ERR_RESOURCE, spt_token_writer_finish(&writer), "disk.h5");
    faults_reset();
    assert_null(writer);
    assert_only(path, true);
    check_reads(path, ids, 40000, 1710);
  }
  free(ids);
}

/* Whatever happened, no HDF5 object stays open. */
static int check_closed(void **state) {
  (void)state;
  const ssize_t open = H5Fget_obj_count((hid_t)H5F_OBJ_ALL, H5F_OBJ_ALL);
  if (open) printf("%zd HDF5 objects are left open\n", open);
  return open ? -1 : 0;
}

int main(void) {
  seed = unit_test_seed("test_token_file");
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(test_round_trip, check_closed),
      cmocka_unit_test_teardown(test_any_flipped_byte, check_closed),
      cmocka_unit_test_teardown(test_damaged_block, check_closed),
      cmocka_unit_test_teardown(test_truncated_or_alien, check_closed),
      cmocka_unit_test_teardown(test_foreign, check_closed),
      cmocka_unit_test_teardown(test_id_outside_of_vocabulary, check_closed),
      cmocka_unit_test_teardown(test_writer_refusals, check_closed),
      cmocka_unit_test_teardown(test_writer_follows_no_link, check_closed),
      cmocka_unit_test_teardown(test_failing_disk, check_closed),
  };
  return cmocka_run_group_tests(tests, temp_folder_make, temp_folder_remove);
}
