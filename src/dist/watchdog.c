/* One thread a rank. Every heartbeat each rank sends its whereabouts to rank 0, and rank 0 answers all; what has not
 * arrived by the next heartbeat counts as silence. Messages are a few bytes, sent without waiting; a peer that takes
 * none holds up nobody. */
#include "watchdog.h"

#include "neighbours.h"

#include <inttypes.h>
#include <math.h>
#include <mpi.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TAG = 1, GREETING, HEARTBEATS_PER_TIMEOUT = 20, POLLS_PER_HEARTBEAT = 5 };
static const double heartbeat_longest = 1.0, heartbeat_shortest = 0.05;

typedef struct message {
  int64_t step;
  int32_t phase, idle, goodbye;
} message;

struct spt_watchdog {
  spt_comm *comm; /* not owned */
  spt_whereabouts *here;
  spt_neighbours *neighbours; /* not owned; may be NULL */
  MPI_Comm wire;
  double heartbeat; /* seconds */
  int32_t limit[SPT_PHASES], silent_limit;
  pthread_t thread;
  atomic_bool closing;

  spt_rank_report *reports; /* [size] on rank 0, else [1], of rank 0 */
  bool *gone;               /* [size] or [1]: has said goodbye */
  int peers;                /* entries of the above */
  message incoming, *outgoing; /* outgoing [peers] */
  MPI_Request receive, *sends; /* sends [peers] */
  int64_t beats;
  int32_t idle;
};

static const char *const names[SPT_PHASES] = {"start-up",  "validation", "save",      "forward and backward",
                                              "gradient reduction", "agreement of the ranks", "optimizer",
                                              "parameter gather",   "compute copy",           "telemetry",
                                              "telemetry's sum",    "end"};

const char *spt_phase_name(spt_phase phase) {
  return (unsigned)phase < SPT_PHASES ? names[phase] : "an unknown phase";
}

static bool waits(int32_t phase) {
  return phase == SPT_PHASE_REDUCE || phase == SPT_PHASE_DECIDE || phase == SPT_PHASE_GATHER ||
         phase == SPT_PHASE_TELEMETRY_SUM;
}

static bool behind(const spt_rank_report *a, const spt_rank_report *b) {
  return a->step != b->step ? a->step < b->step : a->phase < b->phase;
}

int spt_watchdog_judge(const spt_rank_report *reports, int size, const int32_t limit[SPT_PHASES], int32_t silent_limit,
                       bool *silent_p) {
  int last = 0, worst = -1;
  *silent_p = true;
  for (int p = 0; p < size; p++)
    if (silent_limit > 0 && reports[p].silent > silent_limit && (worst < 0 || reports[p].silent > reports[worst].silent))
      worst = p;
  if (worst >= 0) return worst;
  *silent_p = false;
  for (int p = 1; p < size; p++)
    if (behind(&reports[p], &reports[last])) last = p;
  const int32_t phase = reports[last].phase;
  for (int p = 0; p < size; p++) {
    if (behind(&reports[last], &reports[p])) continue;
    if (worst < 0 || (waits(phase) ? reports[p].idle < reports[worst].idle : reports[p].idle > reports[worst].idle))
      worst = p;
  }
  return limit[phase] > 0 && reports[worst].idle > limit[phase] ? worst : -1;
}

static void add_place(int64_t step, int phase, spt_signal_text *text) {
  spt_signal_text_word(text, " after step ");
  spt_signal_text_number(text, step);
  spt_signal_text_word(text, ", in ");
  spt_signal_text_word(text, spt_phase_name((spt_phase)phase));
}

void spt_watchdog_place(const spt_whereabouts *here, spt_signal_text *text) {
  add_place(atomic_load_explicit(&here->step, memory_order_relaxed), atomic_load_explicit(&here->phase, memory_order_relaxed), text);
}

static bool same_place(const spt_rank_report *a, const spt_rank_report *b) {
  return a->step == b->step && a->phase == b->phase;
}

/* "ranks 1, 4-7": those of [first, end) at the place of `first`. */
static void name_ranks(const spt_rank_report *reports, int first, int end, spt_signal_text *text) {
  bool alone = true;
  for (int p = first + 1; p < end && alone; p++) alone = !same_place(&reports[p], &reports[first]);
  for (int p = first, last; p < end; p = last + 1) {
    for (last = p; last + 1 < end && same_place(&reports[last + 1], &reports[p]);) last++;
    if (!same_place(&reports[p], &reports[first])) continue;
    spt_signal_text_word(text, p > first ? ", " : alone ? "rank " : "ranks ");
    spt_signal_text_number(text, p);
    if (last == p) continue;
    spt_signal_text_word(text, "-");
    spt_signal_text_number(text, last);
  }
}

void spt_watchdog_describe(const spt_rank_report *reports, int first, int end, spt_signal_text *text) {
  for (int p = first; p < end; p++) {
    bool told = false;
    for (int other = first; other < p && !told; other++) told = same_place(&reports[other], &reports[p]);
    if (told) continue;
    spt_signal_text_word(text, p == first ? "; at the last heartbeats: " : "; ");
    name_ranks(reports, p, end, text);
    add_place(reports[p].step, reports[p].phase, text);
  }
}

void spt_watchdog_last_heard(const spt_watchdog *w, spt_signal_text *text) {
  if (w) spt_watchdog_describe(w->reports, w->comm->rank == 0 ? 1 : 0, w->peers, text);
}

/* ---- the end of the job ---- */

/* MPI_Abort ends all ranks; should it not return, or not end this one, the alarm does. */
static void end_job(spt_watchdog *w) {
  fflush(stderr);
  signal(SIGALRM, SIG_DFL);
  alarm(10);
  w->comm->ops->abort(w->comm, SPT_ERR_RESOURCE);
}

static const char *limit_key(int32_t phase) {
  return phase == SPT_PHASE_STARTUP                            ? "startup_timeout_seconds"
         : phase == SPT_PHASE_SAVE || phase == SPT_PHASE_END ? "save_timeout_seconds"
         : phase == SPT_PHASE_VALIDATION                     ? "validation_timeout_seconds"
                                                             : "timeout_seconds";
}

static void blame(spt_watchdog *w, int rank, const spt_rank_report *report, bool silent) {
  const int32_t beats = silent ? report->silent : report->idle;
  if (!silent && waits(report->phase)) { // nobody is behind: who of them hangs cannot be told from here
    fprintf(stderr,
            "spectron-dist: no rank makes progress for %.0f s, after step %" PRId64 ", in %s, where all have arrived; "
            "the job is ended, all that was saved is intact ([dist] %s)\n",
            beats * w->heartbeat, report->step, spt_phase_name((spt_phase)report->phase), limit_key(report->phase));
    end_job(w);
    return;
  }
  fprintf(stderr,
          "spectron-dist: rank %d %s for %.0f s, after step %" PRId64 ", in %s; the job is ended, all that was saved is "
          "intact ([dist] %s)\n",
          rank, silent ? "gives no sign of life" : "makes no progress", beats * w->heartbeat, report->step,
          spt_phase_name((spt_phase)report->phase), silent ? "timeout_seconds" : limit_key(report->phase));
  end_job(w);
}

static void mpi_must(spt_watchdog *w, int code, const char *call) {
  if (code == MPI_SUCCESS) return;
  fprintf(stderr, "spectron-dist: rank %d (%s): the watchdog's %s failed; the job is ended\n", w->comm->rank,
          w->comm->host, call);
  end_job(w);
}

/* ---- heartbeats ---- */

static void send_all(spt_watchdog *w, bool goodbye) {
  const int64_t beats = atomic_load_explicit(&w->here->beats, memory_order_relaxed);
  w->idle = beats == w->beats ? w->idle + 1 : 0;
  w->beats = beats;
  const message now = {atomic_load_explicit(&w->here->step, memory_order_relaxed),
                       atomic_load_explicit(&w->here->phase, memory_order_relaxed), w->idle, goodbye};
  for (int i = 0; i < w->peers; i++) {
    if (w->comm->rank == 0 && i == 0) {
      w->reports[0] = (spt_rank_report){now.step, now.phase, now.idle, 0};
      continue;
    }
    int sent = 1;
    mpi_must(w, MPI_Test(&w->sends[i], &sent, MPI_STATUS_IGNORE), "MPI_Test");
    if (!sent && goodbye) mpi_must(w, MPI_Wait(&w->sends[i], MPI_STATUS_IGNORE), "MPI_Wait");
    if (!sent && !goodbye) continue; // still on its way
    w->outgoing[i] = now;
    mpi_must(w, MPI_Isend(&w->outgoing[i], sizeof now, MPI_BYTE, i, TAG, w->wire, &w->sends[i]), "MPI_Isend");
  }
}

static void receive_all(spt_watchdog *w) {
  for (;;) {
    int arrived = 0;
    MPI_Status status;
    mpi_must(w, MPI_Test(&w->receive, &arrived, &status), "MPI_Test");
    if (!arrived) return;
    const int from = w->comm->rank == 0 ? status.MPI_SOURCE : 0;
    w->reports[from] = (spt_rank_report){w->incoming.step, w->incoming.phase, w->incoming.idle, 0};
    if (w->incoming.goodbye) w->gone[from] = true;
    mpi_must(w, MPI_Irecv(&w->incoming, sizeof w->incoming, MPI_BYTE, MPI_ANY_SOURCE, TAG, w->wire, &w->receive),
             "MPI_Irecv");
  }
}

static void judge(spt_watchdog *w) {
  bool silent = false;
  for (int i = 0; i < w->peers; i++)
    if (!w->gone[i] && (w->comm->rank != 0 || i != 0)) w->reports[i].silent++;
  if (w->comm->rank == 0) {
    const int rank = spt_watchdog_judge(w->reports, w->peers, w->limit, w->silent_limit, &silent);
    if (rank >= 0) blame(w, rank, &w->reports[rank], silent);
  } else if (w->reports[0].silent > w->silent_limit + w->comm->rank % HEARTBEATS_PER_TIMEOUT) {
    blame(w, 0, &w->reports[0], true); // not all ranks at the same moment: one line is enough
  }
}

static void sleep_seconds(spt_watchdog *w, double seconds) {
  const spt_whereabouts *place;
  const int lost = spt_neighbours_await(w->neighbours, seconds, &place);
  if (lost >= 0) spt_neighbours_tell(lost, place);
}

static bool all_gone(const spt_watchdog *w) {
  for (int i = w->comm->rank == 0 ? 1 : 0; i < w->peers; i++)
    if (!w->gone[i]) return false;
  return true;
}

/* Until all ranks' main threads have come to close: the others say goodbye to rank 0, which answers them all. */
static void *watch(void *context) {
  spt_watchdog *w = context;
  const bool coordinator = w->comm->rank == 0;
  const double poll = w->heartbeat / POLLS_PER_HEARTBEAT, closing_poll = 0.001;
  bool said_goodbye = false;
  for (double slept = w->heartbeat;;) { // slept, not passed: a suspended job's clocks go on
    receive_all(w);
    const bool closing = atomic_load(&w->closing);
    if (closing && !said_goodbye && (!coordinator || all_gone(w))) {
      send_all(w, true);
      said_goodbye = true;
    }
    if (said_goodbye && all_gone(w)) break;
    if (slept >= w->heartbeat) {
      if (!said_goodbye) send_all(w, false);
      judge(w);
      slept = 0;
    }
    sleep_seconds(w, closing ? closing_poll : poll);
    slept += closing ? closing_poll : poll;
  }
  for (int i = 0; i < w->peers; i++) mpi_must(w, MPI_Wait(&w->sends[i], MPI_STATUS_IGNORE), "MPI_Wait");
  mpi_must(w, MPI_Cancel(&w->receive), "MPI_Cancel");
  mpi_must(w, MPI_Wait(&w->receive, MPI_STATUS_IGNORE), "MPI_Wait");
  return NULL;
}

/* ---- opening and closing ---- */

static int32_t allowance(double seconds, double heartbeat) {
  const double beats = ceil(seconds / heartbeat);
  return seconds <= 0 ? 0 : beats > INT32_MAX ? INT32_MAX : (int32_t)beats;
}

double spt_watchdog_allowances(const spt_watchdog_limits *limits, int32_t allowed[SPT_PHASES]) {
  const double heartbeat = fmax(heartbeat_shortest, fmin(heartbeat_longest, limits->timeout / HEARTBEATS_PER_TIMEOUT));
  for (int phase = 0; phase < SPT_PHASES; phase++) {
    const double seconds = phase == SPT_PHASE_STARTUP                            ? limits->startup
                           : phase == SPT_PHASE_SAVE || phase == SPT_PHASE_END ? limits->save
                           : phase == SPT_PHASE_VALIDATION                     ? limits->validation
                                                                               : limits->timeout;
    allowed[phase] = allowance(seconds, heartbeat);
  }
  return heartbeat;
}

static void free_all(spt_watchdog *w) {
  if (!w) return;
  free(w->reports);
  free(w->gone);
  free(w->outgoing);
  free(w->sends);
  free(w);
}

/* NULL without memory. */
static spt_watchdog *new_watchdog(spt_comm *comm, spt_whereabouts *here, const spt_watchdog_limits *limits) {
  spt_watchdog *w = calloc(1, sizeof *w);
  if (!w) return NULL;
  w->comm = comm;
  w->here = here;
  w->peers = comm->rank == 0 ? comm->size : 1;
  const size_t peers = (size_t)w->peers;
  w->reports = calloc(peers, sizeof *w->reports);
  w->gone = calloc(peers, sizeof *w->gone);
  w->outgoing = calloc(peers, sizeof *w->outgoing);
  w->sends = malloc(peers * sizeof *w->sends);
  w->heartbeat = spt_watchdog_allowances(limits, w->limit);
  w->silent_limit = allowance(limits->timeout, w->heartbeat);
  if (w->reports && w->gone && w->outgoing && w->sends) return w;
  free_all(w);
  return NULL;
}

/* A first message each way between rank 0 and every other, before there is a second thread: connections are made when
 * first used, which MPI libraries do less surely with two threads at it. Collective. */
static int greet(spt_watchdog *w) {
  message hello = {0};
  int code = MPI_SUCCESS;
  for (int i = 0; code == MPI_SUCCESS && i < w->peers; i++) {
    if (w->comm->rank == 0 && i == 0) continue;
    code = MPI_Sendrecv_replace(&hello, sizeof hello, MPI_BYTE, i, GREETING, i, GREETING, w->wire, MPI_STATUS_IGNORE);
  }
  return code;
}

spt_status spt_watchdog_open(spt_comm *comm, spt_whereabouts *here, const spt_watchdog_limits *limits, struct spt_neighbours *neighbours,
                             spt_watchdog **watchdog_p) {
  *watchdog_p = NULL;
  if (comm->size == 1 || !comm->threaded || limits->timeout <= 0) return SPT_OK;
  spt_watchdog *w = new_watchdog(comm, here, limits);
  const spt_status status =
      spt_comm_agree(comm, w ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "watchdog: out of memory"), NULL);
  if (status != SPT_OK) return free_all(w), status;
  w->neighbours = neighbours;
  for (int i = 0; i < w->peers; i++) w->sends[i] = MPI_REQUEST_NULL;
  if (MPI_Comm_dup(MPI_COMM_WORLD, &w->wire) != MPI_SUCCESS || greet(w) != MPI_SUCCESS ||
      MPI_Irecv(&w->incoming, sizeof w->incoming, MPI_BYTE, MPI_ANY_SOURCE, TAG, w->wire, &w->receive) != MPI_SUCCESS) {
    free_all(w);
    return SPT_FAIL(SPT_ERR_RESOURCE, "watchdog: MPI gives it no communicator");
  }
  const int code = pthread_create(&w->thread, NULL, watch, w);
  if (code != 0) { // the others' threads would wait for this one
    fprintf(stderr, "spectron-dist: rank %d (%s): the watchdog has no thread: %s\n", comm->rank, comm->host,
            strerror(code));
    end_job(w);
  }
  *watchdog_p = w;
  return SPT_OK;
}

void spt_watchdog_close(spt_watchdog **watchdog_p) {
  spt_watchdog *w = *watchdog_p;
  if (!w) return;
  atomic_store(&w->closing, true);
  pthread_join(w->thread, NULL);
  MPI_Comm_free(&w->wire);
  free_all(w);
  *watchdog_p = NULL;
}
