/* Runs a fuzzer without libFuzzer: mutates its seeds, each input a function of the printed seed and the execution's
 * number. fuzz_X [--runs N | --seconds N] [--seed K] [--from N]   mutated seeds; the first executions are the seeds
 * themselves fuzz_X --write-seeds FOLDER                             the seeds as files fuzz_X FILE... these inputs An
 * input that crashes, or takes more than HANG_SECONDS of processor time, is left as crash-<execution> in the working
 * folder. */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { SEEDS_MAX = 256, HANG_SECONDS = 60 };

typedef struct input {
  uint8_t *data;
  size_t size;
} input;
static input seeds[SEEDS_MAX];
static int seed_count;

static uint8_t current[FUZZ_BYTES_MAX];
static size_t current_size;
static char crash_name[64];
static uint64_t random_state;

/* splitmix64 */
static uint64_t next_random(void) {
  uint64_t z = random_state += UINT64_C(0x9E3779B97F4A7C15);
  z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
  return z ^ (z >> 31);
}

static size_t below(size_t bound) {
  return bound ? (size_t)(next_random() % bound) : 0;
}

/* ---- mutations ---- */

static size_t remove_some(uint8_t *data, size_t size) {
  if (size < 2) return size;
  const size_t at = below(size), most = size - at < 64 ? size - at : 64, count = 1 + below(most);
  memmove(data + at, data + at + count, size - at - count);
  return size - count;
}

static size_t insert_some(uint8_t *data, size_t size, size_t most) {
  const size_t at = below(size + 1), count = 1 + below(16);
  if (size + count > most) return size;
  memmove(data + at + count, data + at, size - at);
  const bool same = below(2);
  const uint8_t byte = (uint8_t)next_random();
  for (size_t i = 0; i < count; i++) data[at + i] = same ? byte : (uint8_t)next_random();
  return size + count;
}

/* Integers at the edges, in 1, 2, 4 or 8 bytes. */
static void put_edge(uint8_t *data, size_t size) {
  static const uint64_t edges[] = {0,
                                   1,
                                   2,
                                   7,
                                   8,
                                   127,
                                   128,
                                   255,
                                   256,
                                   65535,
                                   65536,
                                   UINT64_C(1) << 31,
                                   UINT64_C(1) << 32,
                                   UINT64_C(1) << 56,
                                   UINT64_C(1) << 62,
                                   UINT64_MAX / 2,
                                   UINT64_MAX / 8,
                                   UINT64_MAX / 4 + 1,
                                   UINT64_MAX - 7,
                                   UINT64_MAX - 1,
                                   UINT64_MAX};
  const size_t width = (size_t)1 << below(4);
  if (size < width) return;
  const size_t at = below(size - width + 1);
  const uint64_t edge = edges[below(sizeof edges / sizeof *edges)];
  memcpy(data + at, &edge, width); // the low bytes: formats here are little-endian
}

static void copy_some(uint8_t *data, size_t size, const uint8_t *from, size_t from_size) {
  if (size == 0 || from_size == 0) return;
  const size_t source = below(from_size), target = below(size);
  size_t count = 1 + below(64);
  if (count > from_size - source) count = from_size - source;
  if (count > size - target) count = size - target;
  memmove(data + target, from + source, count);
}

static size_t mutate_once(uint8_t *data, size_t size, size_t most) {
  if (size == 0) return insert_some(data, size, most);
  switch (below(10)) {
  case 0:
  case 1: data[below(size)] ^= (uint8_t)(1u << below(8)); break;
  case 2:
  case 3: data[below(size)] = (uint8_t)next_random(); break;
  case 4: put_edge(data, size); break;
  case 5: data[below(size)] += (uint8_t)(below(2) ? 1 : 255); break;
  case 6: return remove_some(data, size);
  case 7: return insert_some(data, size, most);
  case 8: copy_some(data, size, data, size); break;
  case 9: {
    const input *other = &seeds[below((size_t)seed_count)];
    copy_some(data, size, other->data, other->size);
    break;
  }
  }
  return size;
}

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most) {
  for (size_t i = 0, times = 1 + below(4); i < times; i++) size = mutate_once(data, size, most);
  return size;
}

/* ---- running ---- */

static void keep_input(void) {
  const int file = open(crash_name, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  if (file < 0 || write(file, current, current_size) < 0 || write(STDERR_FILENO, "input kept as ", 14) < 0 ||
      write(STDERR_FILENO, crash_name, strlen(crash_name)) < 0 || write(STDERR_FILENO, "\n", 1) < 0)
    _exit(1);
  close(file);
}

static void on_signal(int number) {
  static const char hang[] = "hang: an execution takes too long\n";
  if (number == SIGPROF && write(STDERR_FILENO, hang, sizeof hang - 1) < 0) _exit(1);
  keep_input();
  signal(number, SIG_DFL);
  raise(number);
}

/* Where the build has sanitizers, these report and then keep the input. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void watch(void) {
  const int fatal[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
  if (__sanitizer_set_death_callback) {
    __sanitizer_set_death_callback(keep_input);
    signal(SIGABRT, on_signal);
  } else {
    for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++) signal(fatal[i], on_signal);
  }
  signal(SIGPROF, on_signal);
}

static void execute(void) {
  const struct itimerval time = {.it_value = {.tv_sec = HANG_SECONDS}};
  setitimer(ITIMER_PROF, &time, NULL);
  uint8_t *exact = malloc(current_size + !current_size); // its own allocation: a sanitizer sees what reads beyond
  if (!exact) exit(5);
  memcpy(exact, current, current_size);
  LLVMFuzzerTestOneInput(exact, current_size);
  free(exact);
}

static void take(const uint8_t *data, size_t size) {
  current_size = size < sizeof current ? size : sizeof current;
  memcpy(current, data, current_size);
}

static void add_seed(void *context, const void *data, size_t size) {
  (void)context;
  if (seed_count == SEEDS_MAX || size > FUZZ_BYTES_MAX) {
    fprintf(stderr, "a seed too many or too large (%zu bytes)\n", size);
    exit(1);
  }
  seeds[seed_count].data = malloc(size + 1);
  if (!seeds[seed_count].data) exit(5);
  memcpy(seeds[seed_count].data, data, size);
  seeds[seed_count++].size = size;
}

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *where) {
  (void)info, (void)kind, (void)where;
  return remove(path);
}

static void make_seeds(void) {
  char folder[256];
  snprintf(folder, sizeof folder, "%s/spt-fuzz-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
  if (!mkdtemp(folder)) exit(5);
  fuzz_seeds(folder, add_seed, NULL);
  nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static int write_seeds(const char *folder) {
  for (int i = 0; i < seed_count; i++) {
    char path[4096];
    snprintf(path, sizeof path, "%s/seed-%03d", folder, i);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(seeds[i].data, 1, seeds[i].size, file) != seeds[i].size || fclose(file) != 0) {
      fprintf(stderr, "%s: %s\n", path, strerror(errno));
      return 5;
    }
  }
  return 0;
}

static int run_file(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) {
    fprintf(stderr, "%s: %s\n", path, strerror(errno));
    return 2;
  }
  current_size = fread(current, 1, sizeof current, file);
  fclose(file);
  snprintf(crash_name, sizeof crash_name, "crash-file");
  execute();
  return 0;
}

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Execution `number`: a seed as it is, then seeds mutated once or twice. */
static void make_input(uint64_t seed, uint64_t number) {
  random_state = seed ^ (number * UINT64_C(0xD1342543DE82EF95));
  if (number < (uint64_t)seed_count) {
    take(seeds[number].data, seeds[number].size);
    return;
  }
  const input *start = &seeds[below((size_t)seed_count)];
  take(start->data, start->size);
  for (size_t i = 0, times = 1 + below(2); i < times; i++)
    current_size = LLVMFuzzerCustomMutator(current, current_size, sizeof current, (unsigned)next_random());
}

int main(int argc, char **argv) {
  uint64_t runs = 1000, from = 0, seed = (uint64_t)time(NULL) * 1000003 + (uint64_t)getpid();
  double seconds = 0;
  const char *folder = NULL;
  if (getenv("SPT_TEST_SEED")) seed = strtoull(getenv("SPT_TEST_SEED"), NULL, 10);
  int at = 1;
  for (; at + 1 < argc && strncmp(argv[at], "--", 2) == 0; at += 2) {
    const char *value = argv[at + 1];
    if (strcmp(argv[at], "--runs") == 0)
      runs = strtoull(value, NULL, 10);
    else if (strcmp(argv[at], "--seconds") == 0)
      seconds = atof(value), runs = UINT64_MAX;
    else if (strcmp(argv[at], "--seed") == 0)
      seed = strtoull(value, NULL, 10);
    else if (strcmp(argv[at], "--from") == 0)
      from = strtoull(value, NULL, 10);
    else if (strcmp(argv[at], "--write-seeds") == 0)
      folder = value;
    else
      return fprintf(stderr, "unknown option %s\n", argv[at]), 2;
  }
  watch();
  if (at < argc) {
    for (int status = 0; at < argc; at++)
      if ((status = run_file(argv[at])) != 0) return status;
    return 0;
  }
  make_seeds();
  if (folder) return write_seeds(folder);
  printf("SPT_TEST_SEED=%llu, %d seeds\n", (unsigned long long)seed, seed_count);
  fflush(stdout);
  const double began = seconds_now();
  uint64_t number = from;
  for (; number < runs && (seconds == 0 || seconds_now() - began < seconds); number++) {
    make_input(seed, number);
    snprintf(crash_name, sizeof crash_name, "crash-%llu", (unsigned long long)number);
    execute();
  }
  printf("executions: %llu in %.1f s\n", (unsigned long long)(number - from), seconds_now() - began);
  for (int i = 0; i < seed_count; i++) free(seeds[i].data);
  return 0;
}
