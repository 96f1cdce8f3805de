#include "neighbours.h"

#include <errno.h>
#include <math.h>
#include <mpi.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* A rank's part of the shared memory; written by itself, but for `told`. */
typedef struct entry {
  spt_whereabouts here;
  int rank;
  pid_t pid;
  ino_t pid_namespace; /* pids of two processes compare where this is equal */
  atomic_bool left;    /* ended by its own will */
  atomic_bool told;    /* of the node's first: one of them has been said to be gone; those that the launcher then kills are no news */
} entry;

struct spt_neighbours {
  MPI_Comm node;
  MPI_Win window;
  int size, own;   /* ranks of the node; this one among them */
  entry **entries; /* [size], in the shared memory */
  struct pollfd *ends; /* [size]: readable when the process has ended; fd -1: not to be seen, or seen */
};

static ino_t pid_namespace(void) {
  struct stat info;
  return stat("/proc/self/ns/pid", &info) == 0 ? info.st_ino : 0;
}

static int open_process(pid_t pid) {
#ifdef SYS_pidfd_open
  return (int)syscall(SYS_pidfd_open, pid, 0);
#else
  return (void)pid, -1;
#endif
}

static void free_all(spt_neighbours *n) {
  for (int i = 0; n->ends && i < n->size; i++)
    if (n->ends[i].fd >= 0) close(n->ends[i].fd);
  free(n->ends);
  if (n->window != MPI_WIN_NULL) MPI_Win_free(&n->window);
  if (n->node != MPI_COMM_NULL) MPI_Comm_free(&n->node);
  free(n->entries);
  free(n);
}

/* All of the node's entries, when every rank has filled in its own. Collective on the node. */
static bool see_entries(spt_neighbours *n) {
  bool all = MPI_Barrier(n->node) == MPI_SUCCESS;
  for (int i = 0; all && i < n->size; i++) {
    MPI_Aint bytes;
    int unit;
    all = MPI_Win_shared_query(n->window, i, &bytes, &unit, &n->entries[i]) == MPI_SUCCESS;
  }
  for (int i = 0; all && i < n->size; i++)
    all = n->entries[i]->pid_namespace != 0 && n->entries[i]->pid_namespace == n->entries[n->own]->pid_namespace;
  return all;
}

/* False: nothing is shared, on any rank of the node; an allocation fails on all or none. Collective on the node. */
static bool share(spt_neighbours *n, const spt_comm *comm, const spt_whereabouts *here) {
  entry *own = NULL;
  n->entries = calloc((size_t)n->size, sizeof(entry *));
  n->ends = malloc((size_t)n->size * sizeof *n->ends);
  for (int i = 0; n->ends && i < n->size; i++) n->ends[i] = (struct pollfd){.fd = -1, .events = POLLIN};
  int ready = n->entries && n->ends;
  if (MPI_Allreduce(MPI_IN_PLACE, &ready, 1, MPI_INT, MPI_MIN, n->node) != MPI_SUCCESS || !ready) return false;
  if (MPI_Win_allocate_shared(sizeof *own, 1, MPI_INFO_NULL, n->node, &own, &n->window) != MPI_SUCCESS) return false;
  MPI_Win_set_errhandler(n->window, MPI_ERRORS_RETURN);
  memset(own, 0, sizeof *own);
  own->rank = comm->rank;
  own->pid = getpid();
  own->pid_namespace = pid_namespace();
  spt_watchdog_at(&own->here, here->step, (spt_phase)here->phase);
  ready = see_entries(n);
  for (int i = 0; ready && i < n->size; i++)
    if (i != n->own) n->ends[i].fd = open_process(n->entries[i]->pid);
  return MPI_Allreduce(MPI_IN_PLACE, &ready, 1, MPI_INT, MPI_MIN, n->node) == MPI_SUCCESS && ready;
}

void spt_neighbours_open(spt_comm *comm, spt_whereabouts **here_p, spt_neighbours **neighbours_p) {
  *neighbours_p = NULL;
  if (comm->size == 1) return;
  spt_neighbours *n = malloc(sizeof *n);
  // a rank without memory for it keeps the others from it
  if (spt_comm_agree(comm, n ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "neighbours: out of memory"), NULL) != SPT_OK) {
    free(n);
    return;
  }
  *n = (spt_neighbours){.node = MPI_COMM_NULL, .window = MPI_WIN_NULL};
  bool shared = MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &n->node) == MPI_SUCCESS;
  if (shared) {
    MPI_Comm_size(n->node, &n->size);
    MPI_Comm_rank(n->node, &n->own);
    shared = n->size > 1 && share(n, comm, *here_p);
  }
  if (!shared) {
    free_all(n);
    return;
  }
  *here_p = &n->entries[n->own]->here;
  *neighbours_p = n;
}

void spt_neighbours_leave(spt_neighbours *n) {
  if (n) atomic_store(&n->entries[n->own]->left, true);
}

void spt_neighbours_hush(spt_neighbours *n) {
  spt_neighbours_leave(n);
  if (n) atomic_store(&n->entries[0]->told, true);
}

int spt_neighbours_lost(spt_neighbours *n, const spt_whereabouts **here_p) {
  for (int i = 0; n && i < n->size; i++) {
    entry *other = n->entries[i];
    // gone first, then whether it took leave: the other way round it might have done both in between
    if (i == n->own || kill(other->pid, 0) == 0 || errno != ESRCH || atomic_load(&other->left)) continue;
    if (atomic_exchange(&n->entries[0]->told, true)) return -1;
    *here_p = &other->here;
    return other->rank;
  }
  return -1;
}

int spt_neighbours_await(spt_neighbours *n, double seconds, const spt_whereabouts **here_p) {
  const struct timespec time = {(time_t)seconds, (long)((seconds - floor(seconds)) * 1e9)};
  if (!n) return nanosleep(&time, NULL), -1;
  const int ended = ppoll(n->ends, (nfds_t)n->size, &time, NULL);
  if (ended < 0 && errno != EINTR) nanosleep(&time, NULL);
  if (ended <= 0) return -1;
  for (int i = 0; i < n->size; i++) {
    if (n->ends[i].fd < 0 || !(n->ends[i].revents & POLLIN)) continue;
    close(n->ends[i].fd);
    n->ends[i].fd = -1;
    entry *other = n->entries[i];
    if (atomic_load(&other->left) || atomic_exchange(&n->entries[0]->told, true)) continue;
    *here_p = &other->here;
    return other->rank;
  }
  return -1;
}

void spt_neighbours_tell(int rank, const spt_whereabouts *here) {
  spt_signal_text text = {.length = 0};
  spt_signal_text_word(&text, "spectron-dist: rank ");
  spt_signal_text_number(&text, rank);
  spt_signal_text_word(&text, " died");
  spt_watchdog_place(here, &text);
  spt_signal_text_word(&text, ": killed, out of memory, or crashed; all that was saved is intact");
  spt_signal_text_line(&text);
}

void spt_neighbours_close(spt_neighbours **neighbours_p, spt_whereabouts **here_p, spt_whereabouts *own) {
  spt_neighbours *n = *neighbours_p;
  if (!n) return;
  spt_watchdog_at(own, (*here_p)->step, (spt_phase)(*here_p)->phase);
  *here_p = own;
  *neighbours_p = NULL;
  free_all(n);
}
