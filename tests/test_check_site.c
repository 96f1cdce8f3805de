/* What spectron-check-site makes of facts: made-up ranks, links and file systems, each fault named and nothing else. */
#include "unit_test.h"

#include "check_site.h"

enum { RANKS = 8 };

static char *text;
static size_t text_bytes;
static site_report report;

static void begin(void) {
  report = (site_report){.out = open_memstream(&text, &text_bytes)};
  assert_non_null(report.out);
}

static void end(int warnings, int failures) {
  assert_int_equal(fclose(report.out), 0);
  if (report.counts[SITE_WARN] != warnings || report.counts[SITE_FAIL] != failures)
    fail_msg("%d warnings and %d failures wanted:\n%s", warnings, failures, text);
}

/* One line has all the parts. */
static void says(const char *first, const char *second, const char *third) {
  char *copy = strdup(text), *rest = copy;
  bool found = false;
  for (char *line; (line = strsep(&rest, "\n"));)
    found |= strstr(line, first) && strstr(line, second) && strstr(line, third);
  free(copy);
  if (!found) fail_msg("no line with '%s', '%s', '%s':\n%s", first, second, third, text);
}

static void finish(void) {
  free(text);
  text = NULL;
}

static void use_cpus(site_rank *rank, int first, int count, int cores) {
  memset(rank->cpus, 0, sizeof rank->cpus);
  for (int cpu = first; cpu < first + count; cpu++) rank->cpus[cpu / 64] |= UINT64_C(1) << cpu % 64;
  rank->cpu_count = count;
  rank->core_count = cores;
}

/* Two ranks a node on n0, n1, …, each bound to four CPUs across a word's end, with two GPUs a node. */
static void make_ranks(site_rank *ranks, int size) {
  memset(ranks, 0, (size_t)size * sizeof *ranks);
  for (int i = 0; i < size; i++) {
    snprintf(ranks[i].node, sizeof ranks[i].node, "n%d", i / 2);
    use_cpus(&ranks[i], 58 + i % 2 * 4, 4, 4);
    ranks[i].threads = 4;
    ranks[i].gpu_count = 2;
    snprintf(ranks[i].gpus[0], sizeof ranks[i].gpus[0], "0");
    snprintf(ranks[i].gpus[1], sizeof ranks[i].gpus[1], "1");
    ranks[i].flops = 1e11 * (1 + 0.1 * i);
    ranks[i].bytes = 2e10 * (1 - 0.05 * i);
  }
}

static void test_list(void **state) {
  (void)state;
  site_rank ranks[RANKS];
  make_ranks(ranks, RANKS);
  begin();
  site_list_ranks(&report, ranks, RANKS);
  end(0, 0);
  assert_int_equal(report.counts[SITE_OK], 4);
  says("OK   ranks     n2: ", "rank 4: CPUs 58-61, 4 threads, GPU 0; ", "rank 5: CPUs 62-65, 4 threads, GPU 1");
  finish();
  for (int i = 0; i < RANKS; i++) { // a line has an end
    snprintf(ranks[i].node, sizeof ranks[i].node, "n");
    for (int cpu = 0; cpu < SITE_CPUS_MAX; cpu += 2) ranks[i].cpus[cpu / 64] |= UINT64_C(1) << cpu % 64;
    memset(ranks[i].gpus, 'G', sizeof ranks[i].gpus);
    for (int gpu = 0; gpu < SITE_GPUS_MAX; gpu++) ranks[i].gpus[gpu][SITE_GPU_NAME_MAX - 1] = '\0';
  }
  begin();
  site_list_ranks(&report, ranks, RANKS);
  end(0, 0);
  assert_int_equal(report.counts[SITE_OK], 1);
  says("n: rank 0: CPUs 0,2,4", ",…, 4 threads, GPU GGG", "; …");
  finish();
}

static const site_wish wish = {.threads = 4, .cpus_per_task = 4, .slurm = true, .gpus_matter = true};

static void judge_ranks(site_rank *ranks, int warnings, int failures) {
  begin();
  site_judge_binding(&report, &wish, ranks, RANKS);
  site_judge_gpus(&report, &wish, ranks, RANKS);
  site_judge_speed(&report, ranks, RANKS);
  end(warnings, failures);
}

static void test_ranks(void **state) {
  (void)state;
  site_rank ranks[RANKS];
  make_ranks(ranks, RANKS);
  judge_ranks(ranks, 0, 0);
  finish();

  use_cpus(&ranks[3], 62, 1, 1);
  judge_ranks(ranks, 0, 1);
  says("FAIL binding", "rank 3 (n1): 4 threads on 1 CPU (62)", "--cpus-per-task=4");
  finish();

  make_ranks(ranks, RANKS);
  use_cpus(&ranks[5], 62, 4, 2);
  judge_ranks(ranks, 1, 0);
  says("WARN binding", "rank 5 (n2): 4 threads on 2 cores (CPUs 62-65", "nomultithread");
  finish();

  make_ranks(ranks, RANKS);
  use_cpus(&ranks[6], 0, 4, 4);
  use_cpus(&ranks[7], 0, 4, 4);
  judge_ranks(ranks, 0, 1);
  says("FAIL binding", "n3: ranks 6,7 share 4 CPUs (0-3) with 8 threads", "--threads 2");
  finish();

  make_ranks(ranks, RANKS);
  use_cpus(&ranks[0], 0, 8, 8);
  use_cpus(&ranks[1], 0, 8, 8);
  judge_ranks(ranks, 1, 0);
  says("WARN binding", "n0: ranks 0,1 share CPUs 0-7, unbound", "--cpu-bind=cores");
  finish();
  assert_int_equal(site_default_threads(ranks, RANKS, 0), 4);
  assert_int_equal(site_default_threads(ranks, RANKS, 2), 4);

  make_ranks(ranks, RANKS);
  use_cpus(&ranks[2], 0, 32, 32);
  judge_ranks(ranks, 1, 0);
  says("WARN binding", "n1: 2 ranks with 8 threads use half or less of 36 CPUs", "--cpus-per-task");
  finish();
}

static void test_gpus(void **state) {
  (void)state;
  site_rank ranks[RANKS];
  make_ranks(ranks, RANKS);
  snprintf(ranks[5].gpus[1], sizeof ranks[5].gpus[1], "0");
  judge_ranks(ranks, 0, 1);
  says("FAIL gpu", "ranks 4 and 5 (n2) both take GPU 0", "--gpus-per-node");
  finish();

  make_ranks(ranks, RANKS);
  ranks[7].gpu_count = 0;
  judge_ranks(ranks, 0, 1);
  says("FAIL gpu", "rank 7 (n3) sees no GPU", "SLURM_GPU_BIND");
  finish();

  make_ranks(ranks, RANKS); // Slurm gave each one of its own, and CUDA numbers it 0: only the UUID tells
  for (int i = 0; i < RANKS; i++) {
    ranks[i].gpu_count = 1;
    snprintf(ranks[i].gpus[0], sizeof ranks[i].gpus[0], "GPU-%d", i);
  }
  judge_ranks(ranks, 0, 0);
  finish();

  make_ranks(ranks, RANKS);
  for (int i = 0; i < RANKS; i++) ranks[i].gpu_count = 0;
  judge_ranks(ranks, 0, 1);
  says("FAIL gpu", "no rank sees a GPU", "BACKEND=cpu");
  finish();
}

static void test_speed(void **state) {
  (void)state;
  site_rank ranks[RANKS];
  make_ranks(ranks, RANKS);
  ranks[2].flops *= 0.3;
  ranks[3].flops *= 0.3;
  judge_ranks(ranks, 0, 1);
  says("FAIL speed", "n1 is slow: matrix products", "--exclude=n1");
  finish();

  make_ranks(ranks, RANKS); // one of two ranks: the node's median stays above half
  ranks[2].flops *= 0.6;
  judge_ranks(ranks, 0, 0);
  finish();

  make_ranks(ranks, RANKS);
  ranks[6].bytes = ranks[7].bytes = 1e9;
  judge_ranks(ranks, 0, 1);
  says("FAIL speed", "n3 is slow: memory 1 GB/s", "--exclude=n3");
  finish();

  make_ranks(ranks, RANKS);
  for (int i = 0; i < RANKS; i++) {
    snprintf(ranks[i].node, sizeof ranks[i].node, "alone");
    use_cpus(&ranks[i], 4 * i, 4, 4);
    snprintf(ranks[i].gpus[0], sizeof ranks[i].gpus[0], "%d", i);
    ranks[i].gpu_count = 1;
  }
  ranks[4].flops = 1e10;
  judge_ranks(ranks, 1, 0);
  says("WARN speed", "rank 4 is slow", "binding");
  finish();
}

/* Every pair once, nobody twice in a round. */
static void test_rounds(void **state) {
  (void)state;
  for (int units = 2; units <= 17; units++) {
    int met[17][17] = {{0}};
    for (int round = 0; round < units + units % 2 - 1; round++)
      for (int unit = 0; unit < units; unit++) {
        const int partner = site_round_partner(units, round, unit);
        assert_true(partner != unit && partner >= -1 && partner < units);
        if (partner < 0) continue;
        assert_int_equal(site_round_partner(units, round, partner), unit);
        met[unit][partner]++;
      }
    for (int a = 0; a < units; a++)
      for (int b = 0; b < units; b++) assert_int_equal(met[a][b], a != b);
  }
}

enum { UNITS = 6, LINKS = UNITS * (UNITS - 1) / 2 };

static void make_links(site_link links[LINKS], uint64_t seed) {
  int count = 0;
  for (int a = 0; a < UNITS; a++)
    for (int b = a + 1; b < UNITS; b++, count++) {
      const double noise = (double)(spt_random_bits(seed, 0, (uint64_t)count) % 1000) / 2500; // below half
      links[count] = (site_link){a, b, 2e-6 * (1 + noise), 2e10 * (1 - noise)};
    }
}

static void judge_links(const site_link *links, bool rank_units, int warnings, int failures) {
  static const char names[UNITS][SITE_NAME_MAX] = {"n0", "n1", "n2", "n3", "n4", "n5"};
  begin();
  site_judge_links(&report, names, UNITS, rank_units, links, LINKS);
  end(warnings, failures);
}

static void test_links(void **state) {
  (void)state;
  const uint64_t seed = unit_test_seed("test_links");
  site_link links[LINKS];
  make_links(links, seed);
  judge_links(links, false, 0, 0);
  says("OK   link", "15 links between nodes", "4 MiB");
  finish();

  const int slow = (int)(spt_random_bits(seed, 1, 0) % UNITS);
  char named[64], remedy[64];
  for (int i = 0; i < LINKS; i++)
    if (links[i].a == slow || links[i].b == slow) links[i].bandwidth *= 0.2;
  judge_links(links, false, 0, 1);
  snprintf(named, sizeof named, "n%d is slow: best bandwidth", slow);
  snprintf(remedy, sizeof remedy, "--exclude=n%d", slow);
  says("FAIL link", named, remedy);
  finish();

  make_links(links, seed);
  links[7].latency *= 10;
  judge_links(links, false, 1, 0);
  snprintf(named, sizeof named, "n%d and n%d: latency", links[7].a, links[7].b);
  says("WARN link", named, "--exclude");
  finish();
  judge_links(links, true, 1, 0);
  says("WARN link", named, "binding");
  finish();
}

static void make_files(site_files *files, int count) {
  memset(files, 0, (size_t)count * sizeof *files);
  for (int i = 0; i < count; i++) {
    files[i] = (site_files){.sees_first = true,
                            .first_sees = true,
                            .sync_seconds = 1e-3 * (1 + 0.1 * i),
                            .flock = SITE_LOCK_WORKS,
                            .fcntl = SITE_LOCK_WORKS};
    snprintf(files[i].node, sizeof files[i].node, "n%d", i);
  }
  files[0].write_bytes = 1e9;
  files[0].reserves = files[0].renames = files[0].hdf5 = files[0].hdf5_locked = true;
  files[0].flock = files[0].fcntl = SITE_LOCK_UNTRIED;
}

static void judge_files(const site_files *files, int warnings, int failures) {
  begin();
  site_judge_files(&report, "/scratch", files, 4);
  end(warnings, failures);
}

static void test_files(void **state) {
  (void)state;
  site_files files[4];
  make_files(files, 4);
  judge_files(files, 0, 0);
  finish();

  files[2].sync_seconds = 0.1;
  judge_files(files, 1, 0);
  says("WARN files", "n2 is slow: 10 fsync/s", "--exclude=n2");
  finish();

  make_files(files, 4);
  files[3].first_sees = false;
  judge_files(files, 0, 1);
  says("FAIL files", "/scratch is not the same folder on n0 and n3", "[run] output");
  finish();

  make_files(files, 4);
  snprintf(files[1].error, sizeof files[1].error, "/scratch: cannot be made: Read-only file system");
  judge_files(files, 0, 1);
  says("FAIL files", "n1: /scratch: cannot be made", "[run] output");
  finish();

  make_files(files, 4);
  files[1].flock = SITE_LOCK_REFUSED;
  files[2].fcntl = SITE_LOCK_NOT_SEEN;
  files[0].hdf5_locked = files[0].reserves = false;
  files[0].missed_renames = 7;
  judge_files(files, 5, 0);
  says("WARN files", "refuses locks", "HDF5_USE_FILE_LOCKING=FALSE");
  says("WARN files", "not seen on another", "localflock");
  says("WARN files", "HDF5 with file locking fails", "HDF5_USE_FILE_LOCKING=FALSE");
  says("WARN files", "7 times", "node that writes");
  says("WARN files", "posix_fallocate", "keep");
  finish();

  make_files(files, 4);
  files[0].hdf5 = files[0].renames = false;
  judge_files(files, 0, 2);
  says("FAIL files", "HDF5 cannot", "[run] output");
  says("FAIL files", "renamed", "[run] output");
  finish();
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_list),   cmocka_unit_test(test_ranks),
                                     cmocka_unit_test(test_gpus),   cmocka_unit_test(test_speed),
                                     cmocka_unit_test(test_rounds), cmocka_unit_test(test_links),
                                     cmocka_unit_test(test_files)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
