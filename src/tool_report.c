/* `spectron report`: a run's numbers and its loss picture, from metrics.jsonl. Takes no lock, so it may look at a run
 * that is training. */
#include "io/durable_file.h"
#include "io/metrics.h"
#include "io/run_folder.h"
#include "tools.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char help[] = "spectron report [OPTION]… RUN   a run's numbers, its loss picture, and how to resume it\n\n"
                           "  RUN           the run's output folder\n"
                           "  --no-picture  do not draw RUN/loss.png (gnuplot)\n\n"
                           "Example: spectron report runs/quickstart\n";

typedef struct options {
  char *run;
  bool picture, help;
} options;

static spt_status parse(int argc, char **argv, options *o) {
  static const struct option table[] = {{"no-picture", 0, NULL, 'n'}, {"help", 0, NULL, 'h'}, {NULL, 0, NULL, 0}};
  *o = (options){.picture = true};
  opterr = 0;
  optind = 1;
  for (int choice; (choice = getopt_long(argc, argv, ":", table, NULL)) != -1;) switch (choice) {
    case 'n': o->picture = false; break;
    case 'h': o->help = true; return SPT_OK;
    default: return spt_tool_bad_option("report", choice, argv[optind - 1]);
    }
  if (optind != argc - 1) return SPT_FAIL(SPT_ERR_USAGE, "report: wants one RUN folder (see spectron report --help)");
  o->run = argv[optind];
  size_t length = strlen(o->run);
  while (length > 1 && o->run[length - 1] == '/') o->run[--length] = '\0';
  if (length == 0 || length > SPT_PATH_MAX - 64) return SPT_FAIL(SPT_ERR_USAGE, "report: RUN is empty or too long");
  return SPT_OK;
}

/* ---- numbers ---- */

typedef struct summary {
  int64_t records, validations;
  double mean_loss; /* of the last `window` finite losses */
  int64_t window;
  double tokens_per_second, data_wait; /* median, share of step time */
  const spt_metric_record *last, *last_validated, *best;
  int64_t telemetries, violations;
  const spt_metric_record *steepest; /* with the matrix of the largest |dW|_2 / eta; NULL: none */
  const spt_metric_matrix *steepest_matrix;
} summary;

static int ascending(const void *left, const void *right) {
  const double a = *(const double *)left, b = *(const double *)right;
  return (a > b) - (a < b);
}

static spt_status median_rate(const spt_metric_record *records, int64_t count, double *median_p) {
  double *rates = malloc((size_t)count * sizeof *rates);
  if (!rates) return SPT_FAIL(SPT_ERR_RESOURCE, "report: out of memory for %lld records", (long long)count);
  int64_t n = 0;
  for (int64_t i = 0; i < count; i++)
    if (isfinite(records[i].tokens_per_second)) rates[n++] = records[i].tokens_per_second;
  qsort(rates, (size_t)n, sizeof *rates, ascending);
  *median_p = n == 0 ? NAN : 0.5 * (rates[(n - 1) / 2] + rates[n / 2]);
  free(rates);
  return SPT_OK;
}

static void summarise_telemetry(const spt_metric_record *record, summary *s) {
  s->telemetries += record->matrix_count > 0;
  s->violations += record->spectral_violations;
  for (int i = 0; i < record->matrix_count; i++) {
    const spt_metric_matrix *matrix = &record->matrices[i];
    if (!isfinite(matrix->values.slack) || (s->steepest && matrix->values.slack <= s->steepest_matrix->values.slack)) continue;
    s->steepest = record;
    s->steepest_matrix = matrix;
  }
}

static spt_status summarise(const spt_metric_record *records, int64_t count, summary *s) {
  double seconds = 0, waited = 0, losses = 0;
  *s = (summary){.records = count, .last = &records[count - 1]};
  for (int64_t i = 0; i < count; i++) {
    if (isfinite(records[i].step_seconds) && isfinite(records[i].data_wait_seconds)) {
      seconds += records[i].step_seconds;
      waited += records[i].data_wait_seconds;
    }
    summarise_telemetry(&records[i], s);
    if (!records[i].validated) continue;
    s->validations++;
    s->last_validated = &records[i];
    if (isfinite(records[i].validation_loss) && (!s->best || records[i].validation_loss < s->best->validation_loss))
      s->best = &records[i];
  }
  for (int64_t i = count - 1; i >= 0 && s->window < 20; i--)
    if (isfinite(records[i].loss)) {
      losses += records[i].loss;
      s->window++;
    }
  s->mean_loss = s->window ? losses / (double)s->window : NAN;
  s->data_wait = seconds > 0 ? waited / seconds : NAN;
  return median_rate(records, count, &s->tokens_per_second);
}

static void print_summary(const summary *s) {
  printf("steps: %lld, %lld tokens\n", (long long)s->last->step, (long long)s->last->tokens);
  printf("training loss: %.4f, mean of the last %lld records %.4f\n", s->last->loss, (long long)s->window,
         s->mean_loss);
  if (s->last_validated) {
    printf("validation loss: %.4f at step %lld", s->last_validated->validation_loss,
           (long long)s->last_validated->step);
    if (s->best) printf(", best %.4f at step %lld", s->best->validation_loss, (long long)s->best->step);
    printf("\nperplexity: %.2f\n", s->last_validated->perplexity);
    if (isfinite(s->last_validated->bits_per_byte)) printf("bits per byte: %.4f\n", s->last_validated->bits_per_byte);
  } else {
    printf("validation loss: not taken\n");
  }
  printf("tokens/s: %.0f (median of %lld records)\n", s->tokens_per_second, (long long)s->records);
  printf("data wait: %.2f %% of step time\n", 100 * s->data_wait);
  if (s->telemetries == 0) return;
  printf("telemetry: %lld records", (long long)s->telemetries);
  if (s->steepest)
    printf("; largest |dW|_2 / eta %.4f, of %s at step %lld", s->steepest_matrix->values.slack, s->steepest_matrix->name,
           (long long)s->steepest->step);
  if (s->violations == 0)
    printf("; Eq. 10 holds in all\n");
  else
    printf("; %lld matrices BREAK A BOUND that always holds (spectral_violations in metrics.jsonl)\n", (long long)s->violations);
}

/* ---- files ---- */

/* `text` as one word of a shell. */
static void print_quoted(const char *text) {
  static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-";
  if (text[strspn(text, plain)] == '\0') {
    fputs(text, stdout);
    return;
  }
  putchar('\'');
  for (; *text; text++)
    if (*text == '\'')
      fputs("'\\''", stdout);
    else
      putchar(*text);
  putchar('\'');
}

/* The trainer beside this program, else by its name for the PATH. */
static void find_trainer(char path[SPT_PATH_MAX]) {
  static const char name[] = "spectron-dist";
  const ssize_t length = readlink("/proc/self/exe", path, SPT_PATH_MAX - sizeof name - 1);
  path[length > 0 ? length : 0] = '\0';
  char *slash = strrchr(path, '/');
  if (slash) strcpy(slash + 1, name);
  if (!slash || access(path, X_OK) != 0) strcpy(path, name);
}

static spt_status print_files(const char *run) {
  char newest[SPT_PATH_MAX], best[SPT_PATH_MAX], path[SPT_PATH_MAX];
  int ranks = 0;
  SPT_TRY(spt_run_folder_find(run, newest, best));
  if (newest[0]) {
    spt_checkpoint *checkpoint = NULL;
    if (spt_checkpoint_open(newest, &checkpoint) == SPT_OK) {
      ranks = spt_checkpoint_header_of(checkpoint)->rank_count;
      printf("checkpoint: %s\n", newest);
    } else {
      printf("checkpoint: damaged: %s\n", spt_error_message());
    }
    spt_checkpoint_close(&checkpoint);
  } else {
    printf("checkpoint: none yet\n");
  }
  if (best[0]) printf("best checkpoint: %s\n", best);
  printf("metrics: %s/metrics.jsonl", run);
  snprintf(path, sizeof path, "%s/metrics.h5", run);
  if (access(path, F_OK) == 0) printf(" %s", path);
  printf("\n");
  snprintf(path, sizeof path, "%s/job.toml", run);
  if (!newest[0]) return SPT_OK;
  char trainer[SPT_PATH_MAX];
  find_trainer(trainer);
  printf("resume: %smpirun -np %d --bind-to none ",
         geteuid() == 0 ? "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 " : "", ranks > 0 ? ranks : 1);
  print_quoted(trainer);
  printf(" --resume ");
  print_quoted(path);
  printf("\n");
  return SPT_OK;
}

/* ---- picture ---- */

static void write_points(FILE *script, const spt_metric_record *records, int64_t count, bool validation) {
  fprintf(script, "%s << EOD\n", validation ? "$validation" : "$training");
  for (int64_t i = 0; i < count; i++) {
    const double loss = validation ? records[i].validation_loss : records[i].loss;
    if (isfinite(loss) && (!validation || records[i].validated))
      fprintf(script, "%lld %.9g\n", (long long)records[i].tokens, loss);
  }
  fprintf(script, "EOD\n");
}

/* The picture goes to gnuplot's standard output: no path of ours is in the script. */
static void write_script(FILE *script, const spt_metric_record *records, int64_t count, const summary *s) {
  write_points(script, records, count, false);
  if (s->best) write_points(script, records, count, true);
  fprintf(script, "if (strstrt(GPVAL_TERMINALS, 'pngcairo') > 0) set terminal pngcairo size 960,600; else set terminal "
                  "png size 960,600\n"
                  "set xlabel 'tokens (millions)'\nset ylabel 'loss (nats per token)'\nset grid\n"
                  "set key top right\nplot $training using ($1/1e6):2 with lines lc rgb '#7aa6d8' title 'training'");
  if (s->best)
    fprintf(script, ", $validation using ($1/1e6):2 with linespoints lw 2 pt 7 lc rgb '#c03028' title 'validation'");
  fprintf(script, "\n");
}

/* Runs gnuplot, without a shell, from `script` to the file `out`; its exit status, or −1 with errno set. */
static int run_gnuplot(FILE *script, int out) {
  extern char **environ;
  char *arguments[] = {"gnuplot", "-", NULL};
  posix_spawn_file_actions_t actions;
  int error = posix_spawn_file_actions_init(&actions);
  if (error == 0) {
    pid_t child = -1;
    error = posix_spawn_file_actions_adddup2(&actions, fileno(script), STDIN_FILENO);
    if (!error) error = posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
    if (!error) error = posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    if (!error) error = posix_spawnp(&child, arguments[0], &actions, NULL, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    int status = 0;
    while (!error && waitpid(child, &status, 0) < 0)
      if (errno != EINTR) error = errno;
    if (!error) return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  }
  errno = error;
  return -1;
}

/* A missing picture is no failure: it is said in one line. */
static void draw(const char *run, const spt_metric_record *records, int64_t count, const summary *s) {
  char path[SPT_PATH_MAX], part[SPT_PATH_MAX];
  struct stat info;
  int out = -1;
  snprintf(path, sizeof path, "%s/loss.png", run);
  snprintf(part, sizeof part, "%s/loss.png.part", run);
  if (s->window == 0) {
    printf("picture: none, no finite loss to draw\n");
    return;
  }
  if ((lstat(path, &info) == 0 && !S_ISREG(info.st_mode)) || spt_file_create(part, &out) != SPT_OK) {
    printf("picture: none, %s is no file of this program or %s is not writable\n", path, run);
    return;
  }
  FILE *script = tmpfile();
  if (!script) {
    printf("picture: none, no temporary file: %s\n", strerror(errno));
    close(out);
    unlink(part);
    return;
  }
  write_script(script, records, count, s);
  const bool written = fflush(script) == 0 && !ferror(script) && lseek(fileno(script), 0, SEEK_SET) == 0;
  const int status = written ? run_gnuplot(script, out) : -1;
  const int error = errno;
  close(out);
  fclose(script);
  if (status == 0 && stat(part, &info) == 0 && info.st_size > 0 && rename(part, path) == 0) {
    printf("picture: %s\n", path);
    return;
  }
  unlink(part);
  if ((status < 0 && error == ENOENT) || status == 127)
    printf("picture: none, gnuplot is not installed (Debian: apt-get install gnuplot-nox)\n");
  else if (status < 0)
    printf("picture: none, gnuplot cannot be run: %s\n", strerror(error));
  else
    printf("picture: none, gnuplot failed with status %d or %s is not writable\n", status, run);
}

spt_status spt_tool_report(int argc, char **argv) {
  options o;
  SPT_TRY(parse(argc, argv, &o));
  if (o.help) {
    fputs(help, stdout);
    return SPT_OK;
  }
  char path[SPT_PATH_MAX];
  snprintf(path, sizeof path, "%s/metrics.jsonl", o.run);
  if (access(path, R_OK) != 0)
    return SPT_FAIL(SPT_ERR_DATA, "%s: %s; report wants the output folder of a run", path, strerror(errno));
  spt_metric_record *records = NULL;
  int64_t count = 0;
  SPT_TRY(spt_metrics_read(path, &records, &count));
  summary s = {0};
  spt_status status =
      count > 0 ? summarise(records, count, &s) : SPT_FAIL(SPT_ERR_DATA, "%s: holds no record yet", path);
  if (status == SPT_OK) {
    printf("run: %s\n", o.run);
    print_summary(&s);
    if (o.picture) draw(o.run, records, count, &s);
    status = print_files(o.run);
  }
  free(records);
  return status;
}
