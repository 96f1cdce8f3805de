#include "hdf5_process.h"
#include "hdf5_answer.h"
#include "hdf5_util.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

/* The one mutable global of this layer: a process has one helper, and it has to be there before MPI is. */
static pthread_mutex_t helper_mutex = PTHREAD_MUTEX_INITIALIZER;
static int helper_socket = -1;

struct spt_hdf5_reader {
  int socket;
  int seconds; /* for an answer */
  bool ended;
  char path[PATH_MAX];
};

/* An answer's first bytes: the answer or the message follows. */
typedef struct reply {
  int32_t status;
  int64_t bytes;
} reply;
enum { MESSAGE_BYTES = 1024, WALL_PER_CPU = 10, WALL_MORE = 60 };

static bool send_all(int socket, const void *bytes, size_t count) {
  const char *at = bytes;
  while (count > 0) {
    const ssize_t n = send(socket, at, count, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    count -= (size_t)n;
  }
  return true;
}

/* Waits `*patience_p` seconds in all (< 0: for ever), counted one by one: the time in which this process itself was
 * stopped is nobody's fault. False also at the other side's end. */
static bool receive_all(int socket, void *bytes, size_t count, int *patience_p) {
  char *at = bytes;
  while (count > 0) {
    struct pollfd wait = {socket, POLLIN, 0};
    const int ready = poll(&wait, 1, *patience_p < 0 ? -1 : 1000);
    if (ready < 0 && errno != EINTR) return false;
    if (ready == 0 && (*patience_p)-- == 0) return false;
    if (ready <= 0) continue;
    const ssize_t n = recv(socket, at, count, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    count -= (size_t)n;
  }
  return true;
}

/* Red-zone builds are for tests: these may shorten the time and plant a fault. */
static const char *test_setting(const char *name) {
#ifdef SPT_RED_ZONES
  return getenv(name);
#else
  (void)name;
  return NULL;
#endif
}

static int answer_seconds(void) {
  const char *text = test_setting("SPT_TEST_READER_SECONDS");
  const int seconds = text ? atoi(text) : 0;
  return seconds > 0 ? seconds : SPT_READER_SECONDS;
}

/* ---- inside of the reader ---- */

static void limit(int resource, rlim_t most) {
  struct rlimit now;
  if (getrlimit(resource, &now) != 0 || (now.rlim_cur != RLIM_INFINITY && now.rlim_cur <= most)) return;
  now.rlim_cur = most;
  setrlimit(resource, &now); // what cannot be limited is not
}

/* Address space in use; a sanitizer's is no measure. */
static void limit_memory(void) {
  long pages = 0;
  FILE *file = SANITIZED ? NULL : fopen("/proc/self/statm", "re");
  if (!file) return;
  const bool known = fscanf(file, "%ld", &pages) == 1;
  fclose(file);
  if (known) limit(RLIMIT_AS, (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + (rlim_t)SPT_READER_BYTES);
}

static void plant_fault(const char *path) {
  const char *fault = test_setting("SPT_TEST_READER_FAULT"), *where = test_setting("SPT_TEST_READER_FILE");
  if (!fault || (where && !strstr(path, where))) return;
  if (strcmp(fault, "crash") == 0) raise(SIGSEGV);
  while (strcmp(fault, "hang") == 0) {
  }
  if (strcmp(fault, "memory") == 0)
    for (int64_t taken = 0; taken < 2 * SPT_READER_BYTES; taken += 1 << 26)
      if (SANITIZED || mmap(NULL, 1 << 26, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
        abort();
}

/* What a reader says when its time is up; for the signal handler. */
static struct {
  int socket;
  reply head;
  char message[MESSAGE_BYTES];
} last_words;

static void give_up(int signal_number) {
  (void)signal_number;
  if (send(last_words.socket, &last_words.head, sizeof last_words.head, MSG_NOSIGNAL) > 0)
    send(last_words.socket, last_words.message, (size_t)last_words.head.bytes, MSG_NOSIGNAL);
  _exit(1);
}

static void prepare_last_words(int socket, const char *path, int seconds) {
  const int bytes = snprintf(last_words.message, sizeof last_words.message,
                             "%.900s: damaged or hostile: the HDF5 library hangs on it (ended after %d s of processor "
                             "time); make the file again",
                             path, seconds);
  last_words.socket = socket;
  last_words.head = (reply){SPT_ERR_DATA, bytes};
  signal(SIGPROF, give_up);
}

/* Processor time: a busy machine or a suspended job is no hang. */
static void limit_time(int seconds) {
  const struct itimerval once = {.it_value = {.tv_sec = seconds}};
  setitimer(ITIMER_PROF, &once, NULL);
}

static bool send_reply(int socket, spt_status status, const void *answer, int64_t bytes) {
  const char *message = spt_error_message();
  const reply head = {(int32_t)status, status == SPT_OK ? bytes : (int64_t)strlen(message)};
  return send_all(socket, &head, sizeof head) &&
         send_all(socket, status == SPT_OK ? answer : message, (size_t)head.bytes);
}

/* Answers until the asking side closes. */
static void serve(int socket, int descriptor) {
  struct {
    int32_t kind, seconds;
    char path[PATH_MAX];
  } first;
  char name[64];
  void *file = NULL;
  spt_question question;
  int for_ever = -1;
  if (!receive_all(socket, &first, sizeof first, &for_ever)) return;
  snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
  prepare_last_words(socket, first.path, first.seconds);
  const spt_hdf5_answerer *const kinds[] = {&spt_shard_answerer, &spt_checkpoint_answerer};
  while (receive_all(socket, &question, sizeof question, &for_ever)) {
    char *argument = malloc((size_t)question.argument_bytes + 1),
         *answer = calloc(1, (size_t)question.answer_bytes + 1);
    spt_status status = SPT_OK;
    if (!argument || !answer)
      status = SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory in its reader", first.path);
    else if (!receive_all(socket, argument, (size_t)question.argument_bytes, &for_ever))
      return;
    limit_time(first.seconds);
    plant_fault(first.path);
    if (status == SPT_OK && !file) status = kinds[first.kind]->open(name, first.path, &file);
    if (status == SPT_OK) status = kinds[first.kind]->answer(file, &question, argument, answer);
    limit_time(0);
    if (!send_reply(socket, status, answer, question.answer_bytes) || status != SPT_OK) return;
    free(argument);
    free(answer);
  }
}

/* ---- inside of the helper ---- */

static void close_files_from(int first) {
  if (close_range((unsigned)first, ~0u, 0) == 0) return;
  const long most = sysconf(_SC_OPEN_MAX);
  for (int i = first; i < (most > 0 && most < 65536 ? most : 65536); i++) close(i);
}

/* Receives a reader's socket and file. False at the end. */
static bool receive_files(int socket, int files[2]) {
  char byte;
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(2 * sizeof(int))];
  } control = {.bytes = {0}};
  struct iovec vector = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  ssize_t n;
  while ((n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR) {
  }
  files[0] = files[1] = -1;
  const struct cmsghdr *header = n > 0 ? CMSG_FIRSTHDR(&message) : NULL;
  if (header && header->cmsg_type == SCM_RIGHTS && header->cmsg_len == CMSG_LEN(2 * sizeof(int)))
    memcpy(files, CMSG_DATA(header), 2 * sizeof(int));
  return n > 0;
}

static void close_both(const int files[2]) {
  for (int i = 0; i < 2; i++)
    if (files[i] >= 0) close(files[i]);
}

/* A launcher signals whole process groups: USR1 asks ranks to save, TERM to leave. Helper and readers end with the
 * process they work for and listen to nobody; children need no waiting for. What a crash raises kills, handled by no
 * one, but for a sanitizer's report when fuzzing. */
static void set_signals(void) {
  static const int fatal[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
  sigset_t none;
  for (int i = 1; i < NSIG; i++)
    if (i != SIGSEGV && i != SIGBUS && i != SIGFPE && i != SIGILL) signal(i, SIG_IGN);
  for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++)
    if (fatal[i] == SIGABRT || !test_setting("SPT_TEST_READER_REPORTS")) signal(fatal[i], SIG_DFL);
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
}

_Noreturn static void help(int socket) {
  set_signals();
  prctl(PR_SET_NAME, "spt-files");
  const int null = open("/dev/null", O_RDWR);
  for (int i = 0; i < (SANITIZED ? 2 : 3); i++) dup2(null, i);
  if (socket != 3) dup2(socket, 3);
  close_files_from(4);
  setenv("HDF5_PLUGIN_PRELOAD", "::", 1); // no filter plugins, no drivers, no connectors by the environment
  unsetenv("HDF5_PLUGIN_PATH");
  unsetenv("HDF5_DRIVER");
  unsetenv("HDF5_VOL_CONNECTOR");
  limit(RLIMIT_CORE, 0);
  spt_hdf5_quiet();
  H5open(); // once for all readers; where it fails, they say so
  limit_memory();
  for (int files[2]; receive_files(3, files); close_both(files)) {
    if (files[0] < 0) continue;
    const pid_t helper = getpid(), reader = fork();
    if (reader < 0)
      send_reply(files[0], SPT_FAIL(SPT_ERR_RESOURCE, "no process for reading an HDF5 file: %s", strerror(errno)), NULL,
                 0);
    if (reader != 0) continue;
    close(3);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != helper) _exit(0);
    serve(files[0], files[1]);
    _exit(0);
  }
  _exit(0);
}

/* ---- the asking side ---- */

static spt_status start(void) {
  int sockets[2];
  sigset_t all, before;
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0)
    return SPT_FAIL(SPT_ERR_RESOURCE, "no socket for the process that reads HDF5 files: %s", strerror(errno));
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before); // none of the starter's handlers ever runs in the helper
  const pid_t helper = fork();
  if (helper == 0) help(sockets[1]);
  const int error = errno;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  close(sockets[1]);
  if (helper > 0) {
    helper_socket = sockets[0];
    return SPT_OK;
  }
  close(sockets[0]);
  return SPT_FAIL(SPT_ERR_RESOURCE, "no process for reading HDF5 files: %s", strerror(error));
}

spt_status spt_hdf5_process_start(void) {
  pthread_mutex_lock(&helper_mutex);
  const spt_status status = helper_socket < 0 ? start() : SPT_OK;
  pthread_mutex_unlock(&helper_mutex);
  return status;
}

static bool send_files(int socket, int file) {
  char byte = 1;
  const int files[2] = {socket, file};
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof files)];
  } control = {.bytes = {0}};
  struct iovec vector = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof files);
  memcpy(CMSG_DATA(header), files, sizeof files);
  ssize_t n;
  while ((n = sendmsg(helper_socket, &message, MSG_NOSIGNAL)) < 0 && errno == EINTR) {
  }
  return n == 1;
}

spt_status spt_hdf5_reader_open(spt_reader_kind kind, int descriptor, const char *path, spt_hdf5_reader **reader_p) {
  struct {
    int32_t kind, seconds;
    char path[PATH_MAX];
  } first = {(int32_t)kind, answer_seconds(), ""};
  int sockets[2];
  SPT_TRY(spt_hdf5_process_start());
  spt_hdf5_reader *reader = calloc(1, sizeof *reader);
  if (!reader) return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory", path);
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) {
    free(reader);
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: no socket for its reader: %s", path, strerror(errno));
  }
  snprintf(first.path, sizeof first.path, "%s", path);
  *reader = (spt_hdf5_reader){.socket = sockets[0], .seconds = first.seconds};
  snprintf(reader->path, sizeof reader->path, "%s", path);
  const bool sent = send_files(sockets[1], descriptor);
  close(sockets[1]);
  if (!sent || !send_all(reader->socket, &first, sizeof first)) {
    spt_hdf5_reader_close(&reader);
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: the process that reads HDF5 files has ended", path);
  }
  *reader_p = reader;
  return SPT_OK;
}

void spt_hdf5_reader_close(spt_hdf5_reader **reader_p) {
  if (!*reader_p) return;
  close((*reader_p)->socket);
  free(*reader_p);
  *reader_p = NULL;
}

static spt_status refused(const spt_hdf5_reader *reader, const reply *head, int *patience_p) {
  char message[MESSAGE_BYTES];
  if (head->bytes < 0 || head->bytes >= MESSAGE_BYTES ||
      !receive_all(reader->socket, message, (size_t)head->bytes, patience_p))
    return SPT_FAIL(SPT_ERR_DATA, "%s: unreadable (its reader gave no reason)", reader->path);
  message[head->bytes] = '\0';
  for (char *c = message; *c; c++)
    if ((unsigned char)*c < ' ') *c = ' '; // names and texts of the file stand in it
  return SPT_FAIL(head->status == SPT_ERR_RESOURCE ? SPT_ERR_RESOURCE : SPT_ERR_DATA, "%s", message);
}

spt_status spt_hdf5_reader_ask(spt_hdf5_reader *reader, spt_question question, const void *argument, void *answer) {
  reply head;
  if (reader->ended) return SPT_FAIL(SPT_ERR_DATA, "%s: its reader has failed before", reader->path);
  reader->ended = true; // unless all goes well
  int patience = WALL_PER_CPU * reader->seconds + WALL_MORE;
  if (send_all(reader->socket, &question, sizeof question))
    send_all(reader->socket, argument, (size_t)question.argument_bytes);
  // also when it listens no more: it may have said why
  const bool answered = receive_all(reader->socket, &head, sizeof head, &patience);
  if (answered && head.status != SPT_OK) return refused(reader, &head, &patience);
  if (answered && head.bytes == question.answer_bytes &&
      receive_all(reader->socket, answer, (size_t)question.answer_bytes, &patience)) {
    reader->ended = false;
    return SPT_OK;
  }
  return SPT_FAIL(SPT_ERR_DATA, "%s: damaged or hostile: the HDF5 library %s on it; make the file again", reader->path,
                  patience < 0 ? "hangs" : "crashes");
}
