#include "run_lock.h"

#include "durable_file.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { ATTEMPTS = 100, SETTLE_POLLS = 20, POLL_MILLISECONDS = 50 }; // settles in one second

enum { HOLDER_BYTES = 512 };

struct spt_run_lock {
  char *path;
  int fd;
  char written[HOLDER_BYTES]; /* the file as it is ours */
  ssize_t written_bytes;
};

/* ---- the holder ---- */

typedef struct holder {
  char host[128], job[64]; /* job: "41@cluster", "41" of a nameless cluster, "-": none */
  long process;
} holder;

/* One word: the file is read word by word. */
static void join_words(char *text) {
  for (; *text; text++)
    if (isspace((unsigned char)*text)) *text = '_';
}

static holder this_process(void) {
  holder me = {.process = (long)getpid()};
  if (gethostname(me.host, sizeof me.host - 1) != 0 || me.host[0] == '\0') strcpy(me.host, "unknown");
  const char *job = getenv("SLURM_JOB_ID"), *cluster = getenv("SLURM_CLUSTER_NAME");
  const bool named = job && *job && cluster && *cluster; // two clusters may share a file system, and have their own numbers
  snprintf(me.job, sizeof me.job, "%s%s%s", job && *job ? job : "-", named ? "@" : "", named ? cluster : "");
  join_words(me.host);
  join_words(me.job);
  return me;
}

static bool same_holder(const holder *a, const holder *b) {
  return a->process == b->process && strcmp(a->host, b->host) == 0 && strcmp(a->job, b->job) == 0;
}

static bool read_holder(int fd, holder *holder_p) {
  char text[HOLDER_BYTES];
  const ssize_t bytes = pread(fd, text, sizeof text - 1, 0);
  if (bytes <= 0) return false;
  text[bytes] = '\0';
  return sscanf(text, "host %127s process %ld slurm_job %63s", holder_p->host, &holder_p->process, holder_p->job) == 3;
}

/* A file called lock that no run of ours wrote: no regular one, with other names, or not begun as write_holder does. */
static bool is_foreign(int fd) {
  static const char begin[] = "host ";
  char text[sizeof begin - 1];
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_nlink > 1) return true;
  const ssize_t bytes = pread(fd, text, sizeof text, 0);
  return bytes > 0 && memcmp(text, begin, (size_t)bytes) != 0;
}

/* Opens the file anew: a network file system shows what another host has written only then. */
static bool read_named_holder(const char *path, holder *holder_p) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return false;
  const bool known = read_holder(fd, holder_p);
  close(fd);
  return known;
}

static spt_status write_holder(const char *path, int fd) {
  const holder me = this_process();
  char text[HOLDER_BYTES], when[32] = "";
  const time_t now = time(NULL);
  struct tm utc;
  if (gmtime_r(&now, &utc)) strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &utc);
  const int bytes =
      snprintf(text, sizeof text, "host %s process %ld slurm_job %s since %s\n", me.host, me.process, me.job, when);
  if (ftruncate(fd, 0) != 0) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: writing failed: %s", path, strerror(errno));
  SPT_TRY(spt_file_write_at(fd, path, text, (size_t)bytes, 0));
  return spt_file_sync(fd, path); // other hosts must see it now
}

static spt_status in_use(const char *path, const holder *by, const char *remedy) {
  if (!by) return SPT_FAIL(SPT_ERR_USAGE, "%s: another run uses this folder; %s", path, remedy);
  return SPT_FAIL(SPT_ERR_USAGE, "%s: another run uses this folder: host %s, process %ld, Slurm job %s; %s", path,
                  by->host, by->process, by->job, remedy);
}

/* ---- taking ---- */

static const char remove_it[] = "if that run is dead, remove this file", wait_for_it[] = "wait for it or choose another output";

static void pause_milliseconds(long milliseconds) {
  const struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
  nanosleep(&time, NULL);
}

static bool is_listed(const char *list, long long job) {
  for (char *end; *list; list = end) {
    const long long entry = strtoll(list, &end, 10);
    if (end == list) return false;
    if (entry == job) return true;
  }
  return false;
}

/* Whether this user's job of an earlier holder has ended, by the list of those on this cluster that have not
 * (run_lock.h). Later jobs than this one may have come after the list was made; other users' may be hidden from it. */
static bool job_has_ended(const holder *before, const holder *me, int fd) {
  const char *list = getenv("SPECTRON_SLURM_JOBS");
  struct stat info;
  char *end, *own_end;
  const long long job = strtoll(before->job, &end, 10), own = strtoll(me->job, &own_end, 10);
  if (!list || (*end && *end != '@') || strcmp(end, own_end) != 0 || job <= 0 || job >= own) return false;
  return fstat(fd, &info) == 0 && info.st_uid == geteuid() && is_listed(list, own) && !is_listed(list, job);
}

/* Whether a lock file that another start has made, and that nobody on this host keeps locked, may be taken over. */
static spt_status judge_leftover(const char *path, int fd, bool kernel_lock) {
  const holder me = this_process();
  holder before;
  bool known = read_holder(fd, &before);
  for (int poll = 0; !known && poll < SETTLE_POLLS; poll++) { // empty or torn: perhaps it is being written now
    pause_milliseconds(POLL_MILLISECONDS);
    known = read_named_holder(path, &before);
  }
  if (!known) return kernel_lock ? SPT_OK : in_use(path, NULL, remove_it); // its writer died before it began
  if (strcmp(before.job, "-") != 0 && strcmp(before.job, me.job) == 0)
    return SPT_OK; // Slurm requeued the job: its earlier processes are gone
  if (job_has_ended(&before, &me, fd)) return SPT_OK;
  if (strcmp(before.host, me.host) != 0) return in_use(path, &before, remove_it);
  if (kernel_lock || (kill((pid_t)before.process, 0) != 0 && errno == ESRCH)) return SPT_OK;
  return in_use(path, &before, wait_for_it);
}

/* Without the kernel's lock two starts may take over the same leftover in the same instant: the last one written has it. */
static spt_status await_rival(const char *path) {
  const holder me = this_process();
  holder now;
  pause_milliseconds(SETTLE_POLLS * POLL_MILLISECONDS);
  if (!read_named_holder(path, &now)) return in_use(path, NULL, wait_for_it);
  return same_holder(&now, &me) ? SPT_OK : in_use(path, &now, wait_for_it);
}

/* Whether `path` names the file that is open as `fd`. */
static bool names_this(const char *path, int fd) {
  struct stat opened, named;
  return fstat(fd, &opened) == 0 && lstat(path, &named) == 0 && opened.st_ino == named.st_ino &&
         opened.st_dev == named.st_dev;
}

/* *again_p: the file was unlinked by its last holder between open and lock. */
static spt_status try_lock(const char *path, int fd, bool created, bool *again_p) {
  const bool kernel_lock = flock(fd, LOCK_EX | LOCK_NB) == 0;
  if (!kernel_lock && errno == EWOULDBLOCK) {
    holder by;
    const bool known = read_holder(fd, &by);
    return in_use(path, known ? &by : NULL, wait_for_it);
  }
  *again_p = !names_this(path, fd);
  if (*again_p) return SPT_OK;
  if (is_foreign(fd))
    return SPT_FAIL(SPT_ERR_USAGE, "%s: was not made by this program and is left alone; choose another run.output", path);
  if (!created) SPT_TRY(judge_leftover(path, fd, kernel_lock));
  SPT_TRY(write_holder(path, fd));
  return kernel_lock || created ? SPT_OK : await_rival(path);
}

static spt_status take(const char *path, int *fd_p) {
  for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    const bool created = fd >= 0;
    if (!created && errno == EEXIST) {
      fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
      if (fd < 0 && errno == ENOENT) continue; // just released
    }
    if (fd < 0)
      return SPT_FAIL(SPT_ERR_USAGE, "%s: cannot be created: %s; choose another run.output", path,
                      errno == ELOOP ? "it is a link" : strerror(errno));
    bool again = false;
    const spt_status status = try_lock(path, fd, created, &again);
    if (status == SPT_OK && !again) {
      *fd_p = fd;
      return SPT_OK;
    }
    if (status == SPT_ERR_RESOURCE && created && names_this(path, fd)) unlink(path);
    close(fd);
    if (status != SPT_OK) return status;
  }
  return SPT_FAIL(SPT_ERR_USAGE, "%s: other runs keep taking this folder", path);
}

static void remember(spt_run_lock *lock) {
  lock->written_bytes = pread(lock->fd, lock->written, sizeof lock->written, 0);
}

spt_status spt_run_lock_take(const char *path, spt_run_lock **lock_p) {
  spt_run_lock *lock = calloc(1, sizeof *lock);
  if (lock) lock->path = strdup(path);
  spt_status status = lock && lock->path ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", path);
  if (status == SPT_OK) status = take(path, &lock->fd);
  if (status == SPT_OK) {
    remember(lock);
    *lock_p = lock;
    return SPT_OK;
  }
  if (lock) free(lock->path);
  free(lock);
  return status;
}

/* ---- keeping and releasing ---- */

spt_status spt_run_lock_check(spt_run_lock *lock) {
  const holder me = this_process();
  holder now;
  struct stat named;
  if (names_this(lock->path, lock->fd)) {
    if (!read_named_holder(lock->path, &now) || same_holder(&now, &me)) return SPT_OK;
  } else if (lstat(lock->path, &named) != 0) {
    if (errno != ENOENT) return SPT_OK; // not to be told now
    int fd = -1;
    if (take(lock->path, &fd) == SPT_OK) { // removed, by hand or by a clean-up
      close(lock->fd);
      lock->fd = fd;
      remember(lock);
      return SPT_OK;
    }
  }
  if (!read_named_holder(lock->path, &now)) return SPT_OK; // nobody is known to have it
  return SPT_FAIL(SPT_ERR_USAGE,
                  "%s: was removed or replaced during the run, and now another run has this folder: host %s, process %ld, "
                  "Slurm job %s; stop one of the two",
                  lock->path, now.host, now.process, now.job);
}

void spt_run_lock_release(spt_run_lock **lock_p) {
  spt_run_lock *lock = *lock_p;
  if (!lock) return;
  const holder me = this_process();
  holder now;
  // while it is still locked: a waiting opener sees that its file is gone and tries again
  if (names_this(lock->path, lock->fd) && read_holder(lock->fd, &now) && same_holder(&now, &me)) unlink(lock->path);
  close(lock->fd);
  free(lock->path);
  free(lock);
  *lock_p = NULL;
}

void spt_run_lock_abandon(const spt_run_lock *lock) {
  char now[HOLDER_BYTES];
  if (!lock || lock->written_bytes <= 0 || !names_this(lock->path, lock->fd)) return;
  const ssize_t bytes = pread(lock->fd, now, sizeof now, 0);
  if (bytes == lock->written_bytes && memcmp(now, lock->written, (size_t)bytes) == 0) unlink(lock->path);
}
