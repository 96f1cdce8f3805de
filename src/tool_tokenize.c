/* `spectron tokenize`: text to token shards, in batches of documents that are encoded in parallel and written in order.
 */
#include "core/rng.h"
#include "io/durable_file.h"
#include "io/text_documents.h"
#include "io/token_file.h"
#include "io/tokenizer.h"
#include "tools.h"

#include <errno.h>
#include <getopt.h>
#include <glob.h>
#include <limits.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char help[] =
    "spectron tokenize [OPTION]… --output FOLDER FILE…   text files to HDF5 token shards\n\n"
    "  --output FOLDER         receives train-00000.h5 …, validation-00000.h5 … and tokenizer.model\n"
    "  --tokenizer MODEL|byte  a SentencePiece model, or the built-in byte tokenizer (default)\n"
    "  --train-vocab N         train a BPE tokenizer of N tokens on the text first\n"
    "  --documents KIND        documents are separated by a 'blank-line' (default), or each 'file' is one\n"
    "  --validation-share X    share of the documents set aside for validation (0.01)\n"
    "  --seed N                chooses which documents (0)\n"
    "  --shard-tokens N        tokens per shard, more or less (67108864)\n"
    "  --threads N             encoding threads (all processors)\n"
    "  --force                 replace the shards and tokenizer.model that are in FOLDER\n\n"
    "Example: spectron tokenize --train-vocab 4096 --validation-share 0.02 --output data book1.txt book2.txt\n";

enum { BATCH_BYTES = 8 << 20, BATCH_DOCUMENTS = 8192, PATH_BYTES = 4096 };

typedef struct options {
  const char *output, *tokenizer;
  int64_t train_vocab, seed, shard_tokens, threads;
  double validation_share;
  spt_documents_split split;
  bool force, help;
  const char *const *inputs;
  int input_count;
} options;

typedef struct document {
  char *text;
  size_t bytes;
  uint32_t *ids; /* kept from batch to batch */
  size_t capacity, count;
  bool validation;
} document;

/* The shards of one split, and the paths of those that are finished. */
typedef struct split {
  const char *name;
  spt_token_writer *writer;
  int shards;
  int64_t tokens, documents, bytes;
} split;

typedef struct job {
  options o;
  char source[256];
  spt_tokenizer *tokenizer;
  spt_text_documents *documents;
  split splits[2]; /* train, validation */
  document *batch;
  int64_t documents_seen;
  double began, shown;
} job;

static spt_status parse_share(const char *text, double *share_p) {
  char *end;
  const double share = strtod(text, &end);
  if (end == text || *end || !(share >= 0.0 && share < 1.0))
    return SPT_FAIL(SPT_ERR_USAGE, "--validation-share wants a number in [0, 1), not '%s'", text);
  *share_p = share;
  return SPT_OK;
}

static spt_status parse(int argc, char **argv, options *o) {
  static const struct option table[] = {{"output", 1, NULL, 'o'},
                                        {"tokenizer", 1, NULL, 't'},
                                        {"train-vocab", 1, NULL, 'v'},
                                        {"documents", 1, NULL, 'd'},
                                        {"seed", 1, NULL, 's'},
                                        {"shard-tokens", 1, NULL, 'n'},
                                        {"validation-share", 1, NULL, 'V'},
                                        {"threads", 1, NULL, 'j'},
                                        {"force", 0, NULL, 'f'},
                                        {"help", 0, NULL, 'h'},
                                        {NULL, 0, NULL, 0}};
  *o = (options){.shard_tokens = 64 << 20, .threads = omp_get_num_procs(), .validation_share = 0.01};
  opterr = 0;
  for (int choice; (choice = getopt_long(argc, argv, ":", table, NULL)) != -1;) switch (choice) {
    case 'o': o->output = optarg; break;
    case 't': o->tokenizer = optarg; break;
    case 'v': SPT_TRY(spt_tool_integer("--train-vocab", optarg, 260, 1 << 24, &o->train_vocab)); break;
    case 's': SPT_TRY(spt_tool_integer("--seed", optarg, 0, INT64_MAX, &o->seed)); break;
    case 'n': SPT_TRY(spt_tool_integer("--shard-tokens", optarg, 1, INT64_MAX / 16, &o->shard_tokens)); break;
    case 'j': SPT_TRY(spt_tool_integer("--threads", optarg, 1, 1024, &o->threads)); break;
    case 'V': SPT_TRY(parse_share(optarg, &o->validation_share)); break;
    case 'd':
      if (strcmp(optarg, "blank-line") && strcmp(optarg, "file"))
        return SPT_FAIL(SPT_ERR_USAGE, "--documents wants 'blank-line' or 'file', not '%s'", optarg);
      o->split = strcmp(optarg, "file") ? SPT_DOCUMENTS_BLANK_LINE : SPT_DOCUMENTS_FILE;
      break;
    case 'f': o->force = true; break;
    case 'h': o->help = true; return SPT_OK;
    default: return spt_tool_bad_option("tokenize", choice, argv[optind - 1]);
    }
  o->inputs = (const char *const *)argv + optind;
  o->input_count = argc - optind;
  if (!o->output) return SPT_FAIL(SPT_ERR_USAGE, "tokenize: no --output FOLDER (see spectron tokenize --help)");
  if (o->input_count < 1) return SPT_FAIL(SPT_ERR_USAGE, "tokenize: no text file named (see spectron tokenize --help)");
  if (o->tokenizer && o->train_vocab)
    return SPT_FAIL(SPT_ERR_USAGE, "tokenize: --tokenizer and --train-vocab exclude each other");
  if (strlen(o->output) > PATH_BYTES - 64) return SPT_FAIL(SPT_ERR_USAGE, "--output: the path is too long");
  return SPT_OK;
}

/* Creates the folder and its parents. */
static spt_status make_folder(const char *folder) {
  char path[PATH_BYTES];
  snprintf(path, sizeof path, "%s", folder);
  for (char *slash = path + 1;; slash++) {
    slash = strchrnul(slash, '/');
    const char kept = *slash;
    *slash = '\0';
    if (mkdir(path, 0777) != 0 && errno != EEXIST)
      return SPT_FAIL(SPT_ERR_RESOURCE, "%s: cannot be created: %s", path, strerror(errno));
    if (!kept) return SPT_OK;
    *slash = kept;
  }
}

/* Earlier shards in the folder would be read together with ours: refused, or removed when told so. */
static spt_status clear_folder(const options *o) {
  static const char *const patterns[] = {"train-[0-9][0-9][0-9][0-9][0-9].h5",
                                         "validation-[0-9][0-9][0-9][0-9][0-9].h5"};
  spt_status status = SPT_OK;
  for (int i = 0; i < 2 && status == SPT_OK; i++) {
    char pattern[PATH_BYTES];
    glob_t found = {0};
    snprintf(pattern, sizeof pattern, "%s/%s", o->output, patterns[i]);
    if (glob(pattern, 0, NULL, &found) == 0) {
      if (!o->force)
        status = SPT_FAIL(SPT_ERR_USAGE, "%s: exists already: name another --output or give --force to replace it",
                          found.gl_pathv[0]);
      for (size_t k = 0; k < found.gl_pathc && status == SPT_OK; k++)
        if (unlink(found.gl_pathv[k]) != 0)
          status = SPT_FAIL(SPT_ERR_RESOURCE, "%s: cannot be removed: %s", found.gl_pathv[k], strerror(errno));
    }
    globfree(&found);
  }
  return status;
}

/* The tokenizer to use, its model beside the shards, where inspect and the trainer's tools look for it. */
static spt_status prepare_tokenizer(job *j) {
  const options *o = &j->o;
  char model[PATH_BYTES];
  snprintf(model, sizeof model, "%s/tokenizer.model", o->output);
  struct stat named;
  const bool exists = lstat(model, &named) == 0; // a link is something, wherever it leads
  const bool byte = !o->train_vocab && (!o->tokenizer || !strcmp(o->tokenizer, "byte"));
  if (byte) return spt_tokenizer_open("byte", &j->tokenizer);
  if (o->train_vocab) {
    if (exists && !o->force)
      return SPT_FAIL(SPT_ERR_USAGE, "%s: exists already: name another --output or give --force to replace it", model);
    char prefix[PATH_BYTES];
    snprintf(prefix, sizeof prefix, "%s/tokenizer", o->output);
    const double begin = spt_tool_seconds();
    SPT_TRY(spt_tokenizer_train(o->inputs, o->input_count, o->train_vocab, prefix));
    printf("tokenizer: %lld tokens trained in %.1f s: %s\n", (long long)o->train_vocab, spt_tool_seconds() - begin,
           model);
    return spt_tokenizer_open(model, &j->tokenizer);
  }
  SPT_TRY(spt_tokenizer_open(o->tokenizer, &j->tokenizer));
  struct stat given, found;
  if (exists && stat(o->tokenizer, &given) == 0 && stat(model, &found) == 0 && given.st_ino == found.st_ino &&
      given.st_dev == found.st_dev)
    return SPT_OK;
  if (exists && !o->force)
    return SPT_FAIL(SPT_ERR_USAGE, "%s: exists already: name another --output or give --force to replace it", model);
  return spt_file_copy(o->tokenizer, model);
}

static void shard_path(const job *j, const split *s, int index, char path[PATH_BYTES]) {
  snprintf(path, PATH_BYTES, "%s/%s-%05d.h5", j->o.output, s->name, index);
}

static spt_status append(job *j, const document *d) {
  split *s = &j->splits[d->validation];
  char path[PATH_BYTES];
  if (!s->writer) {
    if (s->shards > 99999) return SPT_FAIL(SPT_ERR_USAGE, "more than 100000 shards: give a larger --shard-tokens");
    shard_path(j, s, s->shards, path);
    const spt_token_writer_options o = {.vocab_size = spt_tokenizer_vocab_size(j->tokenizer),
                                        .eos_id = spt_tokenizer_eos(j->tokenizer),
                                        .tokenizer = spt_tokenizer_name(j->tokenizer),
                                        .source = j->source,
                                        .tokenizer_sha256 = spt_tokenizer_sha256(j->tokenizer)};
    SPT_TRY(spt_token_writer_open(path, &o, false, &s->writer));
  }
  SPT_TRY(spt_token_writer_append(s->writer, d->ids, d->count, d->bytes));
  s->tokens += (int64_t)d->count;
  s->bytes += (int64_t)d->bytes;
  s->documents++;
  if (spt_token_writer_tokens(s->writer) < j->o.shard_tokens) return SPT_OK;
  SPT_TRY(spt_token_writer_finish(&s->writer));
  s->shards++;
  return SPT_OK;
}

static spt_status read_batch(job *j, int *count_p) {
  size_t bytes = 0;
  int count = 0;
  const uint64_t stream = spt_stream_of("validation split");
  for (; count < BATCH_DOCUMENTS && bytes < BATCH_BYTES; count++) {
    document *d = &j->batch[count];
    SPT_TRY(spt_text_documents_next(j->documents, &d->text, &d->bytes));
    if (!d->text) break;
    const uint64_t bits = spt_random_bits((uint64_t)j->o.seed, stream, (uint64_t)j->documents_seen++);
    d->validation = (double)(bits >> 11) * 0x1p-53 < j->o.validation_share;
    bytes += d->bytes;
  }
  *count_p = count;
  return SPT_OK;
}

/* Encodes the batch in parallel. The first failing document's error is worded on the calling thread. */
static spt_status encode_batch(job *j, int count) {
  int failed = INT_MAX;
  spt_status status = SPT_OK;
  char message[1024] = "";
#pragma omp parallel for schedule(dynamic, 4) num_threads((int)j->o.threads)
  for (int i = 0; i < count; i++) {
    document *d = &j->batch[i];
    const spt_status mine = spt_tokenizer_encode(j->tokenizer, d->text, d->bytes, &d->ids, &d->capacity, &d->count);
    if (mine == SPT_OK) continue;
#pragma omp critical
    if (i < failed) {
      failed = i;
      status = mine;
      snprintf(message, sizeof message, "%s", spt_error_message());
    }
  }
  return status == SPT_OK ? SPT_OK : SPT_FAIL(status, "%s", message);
}

static void show_progress(job *j, bool last) {
  const bool terminal = isatty(STDERR_FILENO);
  const double time = spt_tool_seconds(), done = 1e-6 * (double)spt_text_documents_done(j->documents);
  if (!last && time - j->shown < (terminal ? 0.2 : 10.0)) return;
  j->shown = time;
  if (last && !terminal) return;
  fprintf(stderr, "%s%.1f of %.1f MB, %.1f MB/s%s", terminal ? "\r" : "", done,
          1e-6 * (double)spt_text_documents_total(j->documents), done / (time - j->began + 1e-9),
          terminal && !last ? "   " : "\n");
}

static spt_status encode_all(job *j) {
  for (int count;;) {
    SPT_TRY(read_batch(j, &count));
    if (count == 0) break;
    SPT_TRY(encode_batch(j, count));
    for (int i = 0; i < count; i++) {
      SPT_TRY(append(j, &j->batch[i]));
      free(j->batch[i].text);
      j->batch[i].text = NULL;
    }
    show_progress(j, false);
  }
  show_progress(j, true);
  for (int i = 0; i < 2; i++)
    if (j->splits[i].writer) {
      SPT_TRY(spt_token_writer_finish(&j->splits[i].writer));
      j->splits[i].shards++;
    }
  return SPT_OK;
}

static void print_result(const job *j) {
  const double seconds = spt_tool_seconds() - j->began;
  int64_t bytes = 0;
  for (int i = 0; i < 2; i++) {
    const split *s = &j->splits[i];
    if (!s->shards) continue;
    bytes += s->bytes;
    printf("%s: %lld documents, %lld tokens (%.3f bytes/token), %d shard%s: %s/%s-*.h5\n", s->name,
           (long long)s->documents, (long long)s->tokens, (double)s->bytes / (double)s->tokens, s->shards,
           s->shards == 1 ? "" : "s", j->o.output, s->name);
  }
  printf("tokenizer: %s, vocabulary %lld\n", spt_tokenizer_name(j->tokenizer),
         (long long)spt_tokenizer_vocab_size(j->tokenizer));
  printf("encoded: %.1f MB in %.1f s, %.1f MB/s\n", 1e-6 * (double)bytes, seconds,
         1e-6 * (double)bytes / (seconds + 1e-9));
  if (j->o.validation_share > 0.0 && !j->splits[1].shards)
    fprintf(stderr,
            "spectron: warning: none of the %lld documents fell to validation: separate documents by blank lines or "
            "give a larger "
            "--validation-share\n",
            (long long)j->documents_seen);
}

/* Unfinished writers leave nothing; after a failure the finished shards go too, as they are not the whole text. */
static void close_job(job *j, bool failed) {
  for (int i = 0; i < 2; i++) {
    spt_token_writer_close(&j->splits[i].writer);
    for (int k = 0; failed && k < j->splits[i].shards; k++) {
      char path[PATH_BYTES];
      shard_path(j, &j->splits[i], k, path);
      unlink(path);
    }
  }
  for (int i = 0; j->batch && i < BATCH_DOCUMENTS; i++) {
    free(j->batch[i].text);
    free(j->batch[i].ids);
  }
  free(j->batch);
  spt_text_documents_close(&j->documents);
  spt_tokenizer_close(&j->tokenizer);
}

static spt_status tokenize(job *j) {
  SPT_TRY(spt_text_documents_open(j->o.inputs, j->o.input_count, j->o.split, &j->documents));
  SPT_TRY(make_folder(j->o.output));
  SPT_TRY(clear_folder(&j->o));
  SPT_TRY(prepare_tokenizer(j));
  if (!(j->batch = calloc(BATCH_DOCUMENTS, sizeof *j->batch))) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
  j->began = j->shown = spt_tool_seconds();
  SPT_TRY(encode_all(j));
  if (j->documents_seen == 0) return SPT_FAIL(SPT_ERR_DATA, "%s: no text in it", j->o.inputs[0]);
  return SPT_OK;
}

spt_status spt_tool_tokenize(int argc, char **argv) {
  job j = {.splits = {{.name = "train"}, {.name = "validation"}}};
  SPT_TRY(parse(argc, argv, &j.o));
  if (j.o.help) {
    fputs(help, stdout);
    return SPT_OK;
  }
  const char *slash = strrchr(j.o.inputs[0], '/');
  snprintf(j.source, sizeof j.source, "%s", slash ? slash + 1 : j.o.inputs[0]);
  if (j.o.input_count > 1)
    snprintf(j.source, sizeof j.source, "%.200s and %d more", slash ? slash + 1 : j.o.inputs[0], j.o.input_count - 1);
  const spt_status status = tokenize(&j);
  if (status == SPT_OK) print_result(&j);
  close_job(&j, status != SPT_OK);
  return status;
}
