/* post-mortem/: which files stay, and what is never written to. */
#include "unit_test.h"

#include "host_backend.h"
#include "temp_folder.h"

#include "io/checkpoint.h"
#include "io/durable_file.h"
#include "io/post_mortem.h"
#include "io/step_files.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

static char output[700];
static const char text[] = "{\"format\":\"" SPT_POST_MORTEM_FORMAT "\",\"version\":1}";

static int fresh_output(void **state) {
  (void)state;
  static int count;
  snprintf(output, sizeof output, "%s/%d", temp_folder, count++);
  return mkdir(output, 0777);
}

static const char *in_output(const char *name) {
  static char paths[4][1024];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", output, name);
  return path;
}

static void make_checkpoint(int64_t step, float value) {
  char path[SPT_PATH_MAX];
  spt_comm *comm;
  spt_checkpoint_saver *saver;
  const spt_checkpoint_item item = {.dataset = "/model/w", .rows = 1, .cols = 1, .end = 1, .values = &value};
  const spt_checkpoint_header header = {.step = step, .rank_count = 1, .best_validation_loss = NAN};
  mkdir(in_output("checkpoints"), 0777);
  spt_step_file_path(in_output("checkpoints"), step, ".h5", path);
  assert_ok(spt_comm_self_open(&comm));
  assert_ok(spt_checkpoint_saver_open(comm, &host_backend, &item, 1, &saver));
  assert_ok(spt_checkpoint_save_begin(saver, path, &header, "job"));
  assert_ok(spt_checkpoint_save_finish(saver));
  spt_checkpoint_saver_close(&saver);
  comm->ops->close(&comm);
}

static void assert_steps(const char *suffix, const int64_t *steps, size_t count) {
  int64_t *found;
  size_t number;
  assert_ok(spt_step_files_list(in_output("post-mortem"), suffix, &found, &number));
  assert_int_equal(number, count);
  for (size_t i = 0; i < count; i++) assert_int_equal(found[i], steps[i]);
  free(found);
}

static void first_and_newest_stay(void **state) {
  (void)state;
  int64_t steps[2 * SPT_POST_MORTEMS_KEPT];
  for (int64_t step = 1; step <= 100; step++) assert_ok(spt_post_mortem_write(output, step, text));
  for (int i = 0; i < SPT_POST_MORTEMS_KEPT; i++) {
    steps[i] = i + 1;
    steps[SPT_POST_MORTEMS_KEPT + i] = 100 - SPT_POST_MORTEMS_KEPT + i + 1;
  }
  assert_steps(".json", steps, 2 * SPT_POST_MORTEMS_KEPT);
  assert_ok(spt_post_mortem_write(output, 100, text)); // again, as after a resume
  assert_steps(".json", steps, 2 * SPT_POST_MORTEMS_KEPT);
}

static void foreign_files_stay(void **state) {
  (void)state;
  char *kept;
  size_t bytes;
  struct stat info;
  assert_int_equal(mkdir(in_output("post-mortem"), 0777), 0);
  assert_ok(spt_file_replace(in_output("post-mortem/step-00000007.json"), "mine", 4));
  assert_fails(SPT_ERR_USAGE, spt_post_mortem_write(output, 7, text), "step-00000007.json", "not written by this program");
  assert_ok(spt_file_replace(in_output("post-mortem/step-00000075.json"), "mine too", 8));
  for (int64_t step = 50; step < 100; step++) // 7 is among the first, 75 among those that go
    if (step != 75) assert_ok(spt_post_mortem_write(output, step, text));
  assert_ok(spt_file_read_all(in_output("post-mortem/step-00000075.json"), &kept, &bytes));
  assert_string_equal(kept, "mine too");
  free(kept);
  assert_ok(spt_file_read_all(in_output("post-mortem/step-00000007.json"), &kept, &bytes));
  assert_string_equal(kept, "mine");
  free(kept);
  assert_int_equal(symlink(in_output("elsewhere"), in_output("post-mortem/step-00000200.json")), 0);
  assert_fails(SPT_ERR_USAGE, spt_post_mortem_write(output, 200, text), "step-00000200.json");
  assert_int_equal(access(in_output("elsewhere"), F_OK), -1);
  make_checkpoint(30, 1);
  assert_ok(spt_file_replace(in_output("post-mortem/step-00000030.h5"), "mine", 4));
  assert_fails(SPT_ERR_USAGE, spt_post_mortem_keep_checkpoint(output, 30), "step-00000030.h5");
  assert_int_equal(stat(in_output("post-mortem/step-00000030.h5"), &info), 0);
  assert_int_equal(info.st_size, 4);
}

static void a_link_is_no_folder(void **state) {
  (void)state;
  assert_int_equal(mkdir(in_output("elsewhere"), 0777), 0);
  assert_int_equal(symlink("elsewhere", in_output("post-mortem")), 0);
  assert_fails(SPT_ERR_USAGE, spt_post_mortem_write(output, 1, text), "post-mortem", "nothing is written");
  assert_int_equal(rmdir(in_output("elsewhere")), 0); // still empty
}

static void checkpoints_outlive_their_removal(void **state) {
  (void)state;
  spt_checkpoint *checkpoint;
  char path[SPT_PATH_MAX];
  for (int64_t step = 10; step <= 50; step += 10) {
    make_checkpoint(step, (float)step);
    assert_ok(spt_post_mortem_keep_checkpoint(output, step));
    assert_ok(spt_post_mortem_keep_checkpoint(output, step)); // two spikes after one checkpoint
    spt_step_file_path(in_output("checkpoints"), step, ".h5", path);
    assert_int_equal(unlink(path), 0);
  }
  assert_steps(".h5", (int64_t[]){10, 50}, 2);
  assert_ok(spt_checkpoint_open(in_output("post-mortem/step-00000050.h5"), &checkpoint));
  assert_ok(spt_checkpoint_verify(checkpoint));
  spt_checkpoint_close(&checkpoint);
  make_checkpoint(50, -1); // another time line's, after a resume from an older one
  assert_ok(spt_post_mortem_keep_checkpoint(output, 50));
  assert_ok(spt_checkpoint_open(in_output("post-mortem/step-00000050.h5"), &checkpoint));
  float value;
  assert_ok(spt_checkpoint_read(checkpoint, 0, &value));
  assert_true(value == -1);
  spt_checkpoint_close(&checkpoint);
  assert_fails(SPT_ERR_RESOURCE, spt_post_mortem_keep_checkpoint(output, 60), "step-00000060.h5", "is not there");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(first_and_newest_stay, fresh_output),
      cmocka_unit_test_setup(foreign_files_stay, fresh_output),
      cmocka_unit_test_setup(a_link_is_no_folder, fresh_output),
      cmocka_unit_test_setup(checkpoints_outlive_their_removal, fresh_output),
  };
  return cmocka_run_group_tests(tests, temp_folder_make, temp_folder_remove);
}
