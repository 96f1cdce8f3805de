/* `spectron inspect`: says what a token shard or checkpoint holds and verifies all of it. */
#include "io/checkpoint_internal.h"
#include "io/token_file.h"
#include "io/tokenizer.h"
#include "tools.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
    "spectron inspect [OPTION]… FILE   what a token shard or checkpoint holds; verifies every checksum (damage: exit "
    "3)\n\n"
    "  --sample N              tokens of a shard to decode (64; 0: none)\n"
    "  --from N                first token of the sample (0)\n"
    "  --tokenizer MODEL|byte  to decode with (the shard's own: 'byte', or tokenizer.model in its folder)\n"
    "  --text                  only the whole text of a shard, decoded, documents separated by blank lines\n"
    "  --job                   of a checkpoint: also the job it was trained by\n\n"
    "Example: spectron inspect --sample 100 data/train-00000.h5\n";

typedef struct options {
  const char *path, *tokenizer;
  int64_t sample, from;
  bool help, job, text;
} options;

static spt_status parse(int argc, char **argv, options *o) {
  static const struct option table[] = {{"sample", 1, NULL, 's'}, {"from", 1, NULL, 'f'}, {"tokenizer", 1, NULL, 't'},
                                        {"job", 0, NULL, 'j'},    {"text", 0, NULL, 'x'}, {"help", 0, NULL, 'h'},
                                        {NULL, 0, NULL, 0}};
  *o = (options){.sample = 64};
  opterr = 0;
  for (int choice; (choice = getopt_long(argc, argv, ":", table, NULL)) != -1;) switch (choice) {
    case 's': SPT_TRY(spt_tool_integer("--sample", optarg, 0, 1 << 20, &o->sample)); break;
    case 'f': SPT_TRY(spt_tool_integer("--from", optarg, 0, INT64_MAX / 2, &o->from)); break;
    case 't': o->tokenizer = optarg; break;
    case 'j': o->job = true; break;
    case 'x': o->text = true; break;
    case 'h': o->help = true; return SPT_OK;
    default: return spt_tool_bad_option("inspect", choice, argv[optind - 1]);
    }
  if (optind != argc - 1) return SPT_FAIL(SPT_ERR_USAGE, "inspect: wants one FILE (see spectron inspect --help)");
  o->path = argv[optind];
  return SPT_OK;
}

/* Opens the tokenizer that made the shard. Without one to be found *tokenizer_p stays NULL; one with another digest is
 * refused. */
static spt_status find_tokenizer(const options *o, const spt_token_file_info *info, spt_tokenizer **tokenizer_p) {
  char beside[4096];
  const char *model = o->tokenizer, *slash = strrchr(o->path, '/');
  if (!model && !strcmp(info->tokenizer, "byte")) model = "byte";
  if (!model) {
    snprintf(beside, sizeof beside, "%.*stokenizer.model", slash ? (int)(slash + 1 - o->path) : 0, o->path);
    if (access(beside, R_OK) != 0) return SPT_OK;
    model = beside;
  }
  SPT_TRY(spt_tokenizer_open(model, tokenizer_p));
  if (strcmp(spt_tokenizer_sha256(*tokenizer_p), info->tokenizer_sha256)) {
    spt_tokenizer_close(tokenizer_p);
    return SPT_FAIL(SPT_ERR_DATA,
                    "%s: made with tokenizer '%s' (SHA-256 %.12s…), %s is another: give the right one with --tokenizer",
                    o->path, info->tokenizer, info->tokenizer_sha256, model);
  }
  return SPT_OK;
}

static spt_status print_sample(const options *o, spt_token_file *file) {
  const spt_token_file_info *info = spt_token_file_info_of(file);
  const int64_t from = o->from < info->tokens ? o->from : info->tokens, left = info->tokens - from;
  const int64_t count = o->sample < left ? o->sample : left;
  spt_tokenizer *tokenizer = NULL;
  if (count == 0) return SPT_OK;
  SPT_TRY(find_tokenizer(o, info, &tokenizer));
  if (!tokenizer) {
    printf("sample: no tokenizer.model beside the file to decode with: give --tokenizer MODEL\n");
    return SPT_OK;
  }
  char *text = NULL;
  int32_t *ids = malloc((size_t)count * sizeof *ids);
  spt_status status = ids ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
  if (status == SPT_OK) status = spt_token_file_read(file, from, count, ids);
  if (status == SPT_OK) status = spt_tokenizer_decode(tokenizer, (const uint32_t *)ids, (size_t)count, &text);
  if (status == SPT_OK) printf("sample: tokens %lld to %lld:\n%s\n", (long long)from, (long long)(from + count), text);
  free(text);
  free(ids);
  spt_tokenizer_close(&tokenizer);
  return status;
}

/* The starts of a file made elsewhere may be anything. */
static spt_status print_document(spt_token_file *file, const spt_tokenizer *tokenizer, int64_t begin, int64_t end) {
  char *text = NULL;
  if (begin < 0 || end < begin || end > spt_token_file_info_of(file)->tokens)
    return SPT_FAIL(SPT_ERR_DATA, "%s: a document of tokens %lld to %lld: /documents/start is out of order",
                    spt_token_file_path(file), (long long)begin, (long long)end);
  int32_t *ids = malloc((size_t)(end - begin) * sizeof *ids + 1);
  spt_status status = ids ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
  if (status == SPT_OK) status = spt_token_file_read(file, begin, end - begin, ids);
  if (status == SPT_OK) status = spt_tokenizer_decode(tokenizer, (const uint32_t *)ids, (size_t)(end - begin), &text);
  if (status == SPT_OK) puts(text);
  free(text);
  free(ids);
  return status;
}

/* --text: the documents in order; every block's checksum is verified as it is read. */
static spt_status print_text(const options *o, spt_token_file *file) {
  const spt_token_file_info *info = spt_token_file_info_of(file);
  spt_tokenizer *tokenizer = NULL;
  uint64_t *starts = malloc((size_t)info->documents * sizeof *starts + 1);
  spt_status status = starts ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
  if (status == SPT_OK) status = find_tokenizer(o, info, &tokenizer);
  if (status == SPT_OK && !tokenizer)
    status = SPT_FAIL(SPT_ERR_USAGE, "%s: no tokenizer.model beside the file to decode with: give --tokenizer MODEL",
                      o->path);
  if (status == SPT_OK) status = spt_token_file_documents(file, 0, info->documents, starts);
  for (int64_t i = 0; status == SPT_OK && i < info->documents; i++)
    status = print_document(file, tokenizer, (int64_t)starts[i],
                            i + 1 < info->documents ? (int64_t)starts[i + 1] : info->tokens);
  spt_tokenizer_close(&tokenizer);
  free(starts);
  return status;
}

static spt_status inspect_tokens(const options *o) {
  spt_token_file *file;
  SPT_TRY(spt_token_file_open(o->path, &file));
  if (o->text) {
    const spt_status printed = print_text(o, file);
    spt_token_file_close(&file);
    return printed;
  }
  const spt_token_file_info *info = spt_token_file_info_of(file);
  printf("file: %s\nkind: token shard\n", o->path);
  printf("tokens: %lld (uint%d)\ndocuments: %lld\n", (long long)info->tokens, 8 * info->token_bytes,
         (long long)info->documents);
  printf("vocabulary: %lld, end of document %lld\n", (long long)info->vocab_size, (long long)info->eos_id);
  printf("tokenizer: %s, SHA-256 %s\n", info->tokenizer, info->tokenizer_sha256);
  if (info->source[0]) printf("source: %s\n", info->source);
  if (info->text_bytes)
    printf("text: %lld bytes, %.3f bytes/token\n", (long long)info->text_bytes,
           (double)info->text_bytes / (double)info->tokens);
  if (info->warning[0]) printf("warning: %s\n", info->warning);
  spt_status status = spt_token_file_verify(file);
  if (status == SPT_OK) {
    printf("verified: %s\n", info->checksummed ? "all checksums and tokens are right"
                                               : "all tokens are inside the vocabulary (no checksums in the file)");
    status = print_sample(o, file);
  }
  spt_token_file_close(&file);
  return status;
}

enum { MODEL, GUIDES, OPTIMIZER, PARTS };

static void print_checkpoint(const options *o, const spt_checkpoint *checkpoint, const int64_t elements[PARTS]) {
  const spt_checkpoint_header *header = spt_checkpoint_header_of(checkpoint);
  printf("file: %s\nkind: checkpoint\n", o->path);
  printf("step: %lld\ntokens: %lld\napplied updates: %lld\nranks: %d\n", (long long)header->step,
         (long long)header->tokens, (long long)header->applied_updates, header->rank_count);
  if (isfinite(header->best_validation_loss)) printf("best validation loss: %.6f\n", header->best_validation_loss);
  printf("configuration: SHA-256 %s\ndata: fingerprint %s\n", header->config_sha256, header->data_fingerprint);
  printf("model: %lld parameters\n", (long long)elements[MODEL]);
  if (elements[GUIDES]) printf("guides: %lld values\n", (long long)elements[GUIDES]);
  printf("optimizer: %lld values\n", (long long)elements[OPTIMIZER]);
  if (o->job) printf("job:\n%s\n", spt_checkpoint_job(checkpoint));
}

static spt_status inspect_checkpoint(const options *o) {
  spt_checkpoint *checkpoint;
  SPT_TRY(spt_checkpoint_open(o->path, &checkpoint));
  spt_status status = SPT_OK;
  const int count = spt_checkpoint_dataset_count(checkpoint);
  int64_t elements[PARTS] = {0};
  for (int i = 0; i < count && status == SPT_OK; i++) {
    const char *name;
    int64_t rows, cols;
    status = spt_checkpoint_dataset(checkpoint, i, &name, &rows, &cols);
    const int part = status != SPT_OK || strncmp(name, "/model/", 7) != 0 ? OPTIMIZER : spt_checkpoint_is_guide(name) ? GUIDES : MODEL;
    if (status == SPT_OK) elements[part] += rows * cols;
  }
  if (status == SPT_OK) {
    print_checkpoint(o, checkpoint, elements);
    status = spt_checkpoint_verify(checkpoint);
  }
  if (status == SPT_OK) printf("verified: all %d tensors are right\n", count);
  spt_checkpoint_close(&checkpoint);
  return status;
}

spt_status spt_tool_inspect(int argc, char **argv) {
  options o;
  SPT_TRY(parse(argc, argv, &o));
  if (o.help) {
    fputs(help, stdout);
    return SPT_OK;
  }
  bool checkpoint = false;
  SPT_TRY(spt_checkpoint_recognise(o.path, &checkpoint)); // by the first bytes: HDF5 must not see a file before it is checked
  return checkpoint ? inspect_checkpoint(&o) : inspect_tokens(&o);
}
