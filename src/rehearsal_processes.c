#include "rehearsal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WORDS_MAX = 32 };
extern char **environ;

/* ---- where ---- */

spt_status rehearsal_find_trainer(char path[SPT_PATH_MAX]) {
  const ssize_t length = readlink("/proc/self/exe", path, SPT_PATH_MAX - 32);
  if (length <= 0) return SPT_FAIL(SPT_ERR_RESOURCE, "/proc/self/exe: %s", strerror(errno));
  path[length] = '\0';
  char *name = strrchr(path, '/');
  snprintf(name, 32, "/spectron-dist");
  if (access(path, X_OK) == 0) return SPT_OK;
  return SPT_FAIL(SPT_ERR_RESOURCE, "%s: no program; build it beside spectron", path);
}

spt_status rehearsal_whole_path(const char *folder, char path[SPT_PATH_MAX]) {
  char *whole = realpath(folder, NULL);
  const bool fits = whole && strlen(whole) < SPT_PATH_MAX - 128;
  if (fits) snprintf(path, SPT_PATH_MAX, "%s", whole);
  if (!whole) return SPT_FAIL(SPT_ERR_USAGE, "%s: %s", folder, strerror(errno));
  free(whole);
  return fits ? SPT_OK : SPT_FAIL(SPT_ERR_USAGE, "%s: path too long", folder);
}

spt_status rehearsal_make_folder(const char *tool, char path[SPT_PATH_MAX]) {
  char wanted[SPT_PATH_MAX];
  const char *base = getenv("TMPDIR");
  snprintf(wanted, sizeof wanted, "%s/spectron-%s.XXXXXX", base && *base ? base : "/tmp", tool);
  if (!mkdtemp(wanted)) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: %s: %s; set TMPDIR", tool, wanted, strerror(errno));
  return rehearsal_whole_path(wanted, path);
}

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *where) {
  (void)info, (void)kind, (void)where;
  return remove(path);
}

void rehearsal_remove_folder(const char *path) {
  nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* ---- interrupts ---- */

volatile sig_atomic_t rehearsal_interrupted;
static volatile sig_atomic_t caught;

static void interrupt(int signal_number) {
  caught = signal_number;
  rehearsal_interrupted = 1;
}

static void handle_interrupts(void (*handler)(int)) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGHUP, &action, NULL);
}

void rehearsal_hear_interrupts(void) {
  handle_interrupts(interrupt);
}

void rehearsal_obey_interrupts(void) {
  handle_interrupts(SIG_DFL);
  if (!caught) return;
  fflush(stdout);
  raise(caught); // as if it had not been heard
}

/* ---- processes ---- */

/* In a process group of its own, default signals, nothing to read, output at the end of `log`. */
static spt_status spawn(const char *const *words, const char *log, pid_t *pid_p) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  sigset_t all, none;
  sigfillset(&all);
  sigemptyset(&none);
  int error = posix_spawn_file_actions_init(&actions);
  if (error) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: cannot be started: %s", words[0], strerror(error));
  error = posix_spawnattr_init(&attributes);
  if (!error) error = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  if (!error)
    error = posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log, O_WRONLY | O_CREAT | O_APPEND, 0666);
  if (!error) error = posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  if (!error) error = posix_spawnattr_setpgroup(&attributes, 0);
  if (!error) error = posix_spawnattr_setsigdefault(&attributes, &all);
  if (!error) error = posix_spawnattr_setsigmask(&attributes, &none);
  if (!error)
    error =
        posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  // posix_spawnp takes char *const *, and does not write
  if (!error) error = posix_spawnp(pid_p, words[0], &actions, &attributes, (char *const *)(uintptr_t)words, environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (!error) return SPT_OK;
  return SPT_FAIL(SPT_ERR_RESOURCE,
                  "%s: cannot be started: %s; install Open MPI or MPICH (jobs/install-deps.sh), or name a launcher in "
                  "MPIEXEC",
                  words[0], strerror(error));
}

/* What killed ranks leave behind, Open MPI's session and shared memory, lies in `folder` and goes with it. */
static void set_environment(const char *folder) {
  static const char *const pairs[][2] = {
      {"OMPI_MCA_mpi_yield_when_idle", "1"},                // waiting ranks leave the processors to the others
      {"OMPI_MCA_btl_vader_single_copy_mechanism", "none"}, // containers forbid process_vm_readv, with a warning
      {"OMP_WAIT_POLICY", "passive"},
      {"OMP_NUM_THREADS", "1"},
  };
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) setenv(pairs[i][0], pairs[i][1], 0);
  static const char *const folders[] = {"TMPDIR", "OMPI_MCA_btl_vader_backing_directory",
                                        "OMPI_MCA_btl_sm_backing_directory"};
  for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) setenv(folders[i], folder, 1);
  // within an allocation the ranks stay on this machine all the same: the folder is nowhere else
  for (char **entry = environ; *entry;) {
    char name[128];
    const size_t length = strcspn(*entry, "=");
    if (strncmp(*entry, "SLURM_", 6) != 0 || length >= sizeof name) {
      entry++;
      continue;
    }
    snprintf(name, sizeof name, "%.*s", (int)length, *entry);
    unsetenv(name); // moves the later ones up
  }
  if (geteuid() != 0) return;
  setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
  setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
}

spt_status rehearsal_launcher_find(const char *folder, rehearsal_launcher *launcher_p) {
  const char *given = getenv("MPIEXEC");
  *launcher_p = (rehearsal_launcher){.program = given && *given ? given : "mpirun"};
  if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0)
    return SPT_FAIL(SPT_ERR_RESOURCE, "cannot become the parent of orphaned ranks: %s", strerror(errno));
  set_environment(folder);
  char log[SPT_PATH_MAX], text[256] = "";
  const char *const words[] = {launcher_p->program, "--version", NULL};
  pid_t pid;
  int code;
  snprintf(log, sizeof log, "%s/launcher.log", folder);
  SPT_TRY(spawn(words, log, &pid));
  for (int tries = 0; !rehearsal_ended(pid, &code); tries++) {
    if (tries == 3000 || rehearsal_interrupted) {
      rehearsal_kill_all();
      return SPT_FAIL(SPT_ERR_RESOURCE, "%s --version does not end; name another launcher in MPIEXEC",
                      launcher_p->program);
    }
    nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
  }
  FILE *file = fopen(log, "r");
  const size_t length = file ? fread(text, 1, sizeof text - 1, file) : 0;
  text[length] = '\0';
  if (file) fclose(file);
  unlink(log);
  if (code != 0)
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s --version: exit code %d; name another launcher in MPIEXEC",
                    launcher_p->program, code);
  launcher_p->open_mpi = strstr(text, "Open MPI") || strstr(text, "OpenRTE") || strstr(text, "PRRTE");
  return SPT_OK;
}

spt_status rehearsal_launch(const rehearsal_launcher *launcher, int ranks, const char *trainer,
                            const char *const *arguments, const char *log, pid_t *pid_p) {
  // MPICH and its family neither bind nor count slots by default
  const char *words[WORDS_MAX] = {launcher->program};
  char count[16];
  int n = 1;
  snprintf(count, sizeof count, "%d", ranks);
  if (launcher->open_mpi) {
    words[n++] = "--oversubscribe";
    words[n++] = "--bind-to";
    words[n++] = "none";
  }
  words[n++] = launcher->open_mpi ? "-np" : "-n";
  words[n++] = count;
  words[n++] = trainer;
  for (int i = 0; arguments[i]; i++) {
    if (n + 1 == WORDS_MAX) return SPT_FAIL(SPT_ERR_USAGE, "more than %d words to start the trainer", WORDS_MAX);
    words[n++] = arguments[i];
  }
  words[n] = NULL;
  return spawn(words, log, pid_p);
}

spt_status rehearsal_status_of(int code) {
  return code == SPT_ERR_USAGE || code == SPT_ERR_DATA || code == SPT_ERR_DIVERGED ? (spt_status)code : SPT_ERR_RESOURCE;
}

void rehearsal_last_words(const char *log, char words[REHEARSAL_WORDS]) {
  char line[1024];
  words[0] = '\0';
  FILE *file = fopen(log, "r");
  while (file && fgets(line, sizeof line, file)) {
    line[strcspn(line, "\n")] = '\0';
    if (strncmp(line, "spectron-dist: ", 15) == 0) snprintf(words, REHEARSAL_WORDS, ": %s", line + 15);
  }
  if (file) fclose(file);
}

static int exit_code(int status) {
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

bool rehearsal_ended(pid_t pid, int *code_p) {
  int status = 0;
  const pid_t ended = waitpid(pid, &status, WNOHANG);
  if (ended == 0 || (ended < 0 && errno == EINTR)) return false;
  *code_p = ended == pid ? exit_code(status) : 5;
  return true;
}

/* Parent of a process, 0 when it is gone. The name in /proc/PID/stat may hold anything, so the last ')' counts. */
static pid_t parent_of(pid_t pid) {
  char path[64], text[512];
  snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  const ssize_t length = read(fd, text, sizeof text - 1);
  close(fd);
  if (length <= 0) return 0;
  text[length] = '\0';
  const char *end = strrchr(text, ')');
  char state;
  long parent;
  return end && sscanf(end + 1, " %c %ld", &state, &parent) == 2 && state != 'Z' ? (pid_t)parent : 0;
}

static bool is_descendant(pid_t pid) {
  const pid_t self = getpid();
  for (int depth = 0; depth < 64 && pid > 1; depth++) {
    pid = parent_of(pid);
    if (pid == self) return true;
  }
  return false;
}

/* One pass over /proc. */
static int kill_descendants(void) {
  DIR *all = opendir("/proc");
  int found = 0;
  for (const struct dirent *entry; all && (entry = readdir(all));) {
    const pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
    if (pid <= 1 || !is_descendant(pid)) continue;
    if (kill(pid, SIGKILL) == 0) found++;
  }
  if (all) closedir(all);
  return found;
}

int rehearsal_kill_all(void) {
  int total = 0;
  for (int tries = 0; tries < 2000; tries++) {
    const int found = kill_descendants();
    if (tries == 0) total = found;
    pid_t reaped;
    while ((reaped = waitpid(-1, NULL, WNOHANG)) > 0) {
    }
    if (found == 0 && reaped < 0 && errno == ECHILD) break;
    nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
  }
  return total;
}
