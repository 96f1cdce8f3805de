/* `spectron report` on made-up runs: its numbers, its picture, and that no name reaches a shell. */
#include "unit_test.h"

#include "host_backend.h"
#include "temp_folder.h"

#include "io/durable_file.h"
#include "io/metrics.h"
#include "io/run_folder.h"
#include "tools.h"

#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

/* What spectron.c lends to the tools. */
spt_status spt_tool_bad_option(const char *tool, int choice, const char *argument) {
  return SPT_FAIL(SPT_ERR_USAGE, "%s: option %d %s", tool, choice, argument);
}

/* Runs `spectron report …`; *out_p receives its standard output, the caller's to free. */
static spt_status report(const char *first, const char *second, char **out_p) {
  char words[3][1100] = {"report"};
  char *argv[4] = {words[0], words[1], second ? words[2] : NULL, NULL};
  snprintf(words[1], sizeof words[1], "%s", first);
  snprintf(words[2], sizeof words[2], "%s", second ? second : "");
  const char *path = temp_path("stdout");
  fflush(stdout);
  const int saved = dup(STDOUT_FILENO), file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0666);
  assert_true(saved >= 0 && file >= 0 && dup2(file, STDOUT_FILENO) >= 0);
  const spt_status status = spt_tool_report(second ? 3 : 2, argv);
  fflush(stdout);
  assert_true(dup2(saved, STDOUT_FILENO) >= 0);
  close(saved);
  close(file);
  size_t bytes;
  assert_ok(spt_file_read_all(path, out_p, &bytes));
  return status;
}

static void assert_says(const char *out, const char *text) {
  if (!strstr(out, text)) fail_msg("\"%s\" is not in:\n%s", text, out);
}

static void assert_silent(const char *out, const char *text) {
  if (strstr(out, text)) fail_msg("\"%s\" is in:\n%s", text, out);
}

/* 30 records, validated at steps 10 (best), 20 and 30; losses 10 − step/10; a checkpoint of 3 ranks at step 30. */
static void make_run(const char *output, bool validated, bool saved) {
  spt_run_folder *folder;
  spt_metrics *metrics;
  assert_ok(spt_run_folder_open(output, false, &folder));
  assert_ok(spt_metrics_open(output, 0, &metrics));
  for (int64_t step = 1; step <= 30; step++) {
    spt_metric_record r = {.step = step,
                           .tokens = step * 1000,
                           .loss = 10 - 0.1 * (double)step,
                           .tokens_per_second = 100.0 * (double)step,
                           .step_seconds = 2,
                           .data_wait_seconds = 0.01,
                           .bits_per_byte = 1.25};
    r.validated = validated && step % 10 == 0;
    r.validation_loss = step == 10 ? 3 : step == 20 ? NAN : 4.5;
    r.perplexity = exp(r.validation_loss);
    spt_metric_matrix matrices[2] = {{"model.layers.0.self_attn.o_proj", {.slack = step == 20 ? 0.75 : 0.5}},
                                     {"model.layers.1.mlp.up_proj", {.slack = step == 30 ? NAN : 0.25}}};
    if (validated && step % 10 == 0) {
      r.matrices = matrices;
      r.matrix_count = 2;
      r.spectral_violations = saved ? 0 : 1;
    }
    assert_ok(spt_metrics_append(metrics, &r));
  }
  spt_metrics_close(&metrics);
  if (saved) {
    spt_comm *comm;
    spt_checkpoint_saver *saver;
    char path[SPT_PATH_MAX];
    float value = 1;
    const spt_checkpoint_item item = {.dataset = "/model/w", .rows = 1, .cols = 1, .end = 1, .values = &value};
    const spt_checkpoint_header header = {.step = 30, .rank_count = 3};
    assert_ok(spt_comm_self_open(&comm));
    assert_ok(spt_checkpoint_saver_open(comm, &host_backend, &item, 1, &saver));
    spt_run_folder_checkpoint_path(folder, 30, path);
    assert_ok(spt_checkpoint_save_begin(saver, path, &header, ""));
    assert_ok(spt_checkpoint_save_finish(saver));
    assert_ok(spt_run_folder_after_save(folder, path, validated, 2));
    spt_checkpoint_saver_close(&saver);
    comm->ops->close(&comm);
  }
  spt_run_folder_close(&folder);
}

static void numbers(void **unused) {
  (void)unused;
  char run[1000], *out;
  snprintf(run, sizeof run, "%s/run", temp_folder);
  make_run(run, true, true);
  assert_ok(report(run, "--no-picture", &out));
  static const char *const lines[] = {"steps: 30, 30000 tokens\n",
                                      "training loss: 7.0000, mean of the last 20 records 7.9500\n",
                                      "validation loss: 4.5000 at step 30, best 3.0000 at step 10\n",
                                      "perplexity: 90.02\n",
                                      "bits per byte: 1.2500\n",
                                      "tokens/s: 1550 (median of 30 records)\n",
                                      "data wait: 0.50 % of step time\n",
                                      "telemetry: 3 records; largest |dW|_2 / eta 0.7500, of model.layers.0.self_attn.o_proj at step 20; Eq. 10 holds in all\n",
                                      "/checkpoints/step-00000030.h5\n",
                                      "/checkpoints/best.h5\n",
                                      "/run/metrics.jsonl\n"};
  for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) assert_says(out, lines[i]);
  char resume[1200];
  snprintf(resume, sizeof resume, "mpirun -np 3 --bind-to none spectron-dist --resume %s/job.toml\n", run);
  assert_says(out, resume);
  assert_silent(out, "picture:");
  free(out);
}

static void young_run(void **unused) {
  (void)unused;
  char *out;
  make_run(temp_path("broken"), true, false);
  assert_ok(report(temp_path("broken"), "--no-picture", &out));
  assert_says(out, "; 3 matrices BREAK A BOUND that always holds");
  free(out);
  make_run(temp_path("young"), false, false);
  assert_ok(report("--no-picture", temp_path("young/"), &out));
  assert_says(out, "validation loss: not taken\n");
  assert_says(out, "checkpoint: none yet\n");
  assert_silent(out, "resume:");
  free(out);
  assert_ok(spt_file_replace(temp_path("young/metrics.jsonl"), "", 0));
  assert_fails(SPT_ERR_DATA, report(temp_path("young"), NULL, &out), "young/metrics.jsonl", "no record");
  free(out);
  assert_fails(SPT_ERR_DATA, report(temp_path("absent"), NULL, &out), "absent/metrics.jsonl");
  free(out);
  assert_fails(SPT_ERR_USAGE, report("--nonsense", temp_path("young"), &out), "--nonsense");
  free(out);
  assert_ok(report("--help", NULL, &out));
  assert_says(out, "spectron report");
  free(out);
}

/* The run's name would do harm in a shell or in a gnuplot string. */
static void picture(void **unused) {
  (void)unused;
  char run[1000], *out, *png;
  size_t bytes;
  snprintf(run, sizeof run, "%s/it's \"$(touch pwned)\" `touch pwned`; touch pwned", temp_folder);
  make_run(run, true, true);
  assert_int_equal(chdir(temp_folder), 0);
  assert_ok(report(run, NULL, &out));
  assert_int_not_equal(access("pwned", F_OK), 0);
  const char *resume = strstr(out, "--resume ");
  assert_non_null(resume);
  char command[3000];
  snprintf(command, sizeof command, "test \"$(dirname %.*s)\" = \"$EXPECTED_RUN\"", (int)strcspn(resume + 9, "\n"),
           resume + 9);
  assert_int_equal(setenv("EXPECTED_RUN", run, 1), 0);
  assert_int_equal(system(command), 0); // the printed word is the path again in a shell
  assert_int_not_equal(access("pwned", F_OK), 0);
  char path[1100];
  snprintf(path, sizeof path, "%s/loss.png", run);
  if (strstr(out, "gnuplot is not installed")) {
    free(out);
    skip();
  }
  assert_says(out, path);
  free(out);
  assert_ok(spt_file_read_all(path, &png, &bytes));
  assert_true(bytes > 2000 && memcmp(png, "\x89PNG\r\n", 6) == 0);
  free(png);
  snprintf(path, sizeof path, "%s/loss.png.part", run);
  assert_int_not_equal(access(path, F_OK), 0);
}

static void no_gnuplot(void **unused) {
  (void)unused;
  char *out, *before = strdup(getenv("PATH"));
  make_run(temp_path("plain"), true, true);
  assert_int_equal(setenv("PATH", temp_folder, 1), 0);
  const spt_status status = report(temp_path("plain"), NULL, &out);
  assert_int_equal(setenv("PATH", before, 1), 0);
  free(before);
  assert_int_equal(status, SPT_OK);
  assert_says(out, "picture: none, gnuplot is not installed");
  assert_says(out, "resume: ");
  assert_int_not_equal(access(temp_path("plain/loss.png"), F_OK), 0);
  assert_int_not_equal(access(temp_path("plain/loss.png.part"), F_OK), 0);
  free(out);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(numbers), cmocka_unit_test(young_run), cmocka_unit_test(picture),
                                     cmocka_unit_test(no_gnuplot)};
  return cmocka_run_group_tests(tests, temp_folder_make, temp_folder_remove);
}
