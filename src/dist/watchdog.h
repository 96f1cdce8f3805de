/* The watchdog: a thread on every rank that exchanges heartbeats with the coordinator (rank 0) outside the collectives, on a
 * communicator of its own, and ends the job when a rank has died, is stopped, cannot be reached, or makes no progress. A
 * collective alone would wait for such a rank for ever.
 *
 * The main thread says where it is (spt_watchdog_at); the threads count heartbeats, not seconds, so that a job that was
 * suspended as a whole, and all its clocks with it, is not taken for a dead one. */
#ifndef SPT_WATCHDOG_H
#define SPT_WATCHDOG_H

#include "comm.h"
#include "core/signal_text.h"

#include <stdatomic.h>

/* Where a rank's main thread is, in the order in which a step passes through them. */
typedef enum {
  SPT_PHASE_STARTUP,
  SPT_PHASE_VALIDATION,
  SPT_PHASE_SAVE,
  SPT_PHASE_COMPUTE,   /* data, forward and backward */
  SPT_PHASE_REDUCE,    /* waits for the others' gradients */
  SPT_PHASE_DECIDE,    /* clip factor, finite flag, stop: waits for all */
  SPT_PHASE_OPTIMIZER,
  SPT_PHASE_GATHER,    /* waits for the others' parameters */
  SPT_PHASE_REFRESH,   /* compute copy of the weights */
  SPT_PHASE_TELEMETRY,
  SPT_PHASE_TELEMETRY_SUM, /* waits for the others' part of it */
  SPT_PHASE_END,       /* last save, closing */
  SPT_PHASES
} spt_phase;

/* "forward and backward", … */
const char *spt_phase_name(spt_phase phase);

/* Where this process is, for its watchdog and its signal handlers. Zero before the first call. */
typedef struct spt_whereabouts {
  _Atomic int64_t step; /* completed */
  _Atomic int phase;
  _Atomic int64_t beats; /* grows with every call of spt_watchdog_at: progress */
} spt_whereabouts;

static inline void spt_watchdog_at(spt_whereabouts *here, int64_t step, spt_phase phase) {
  atomic_store_explicit(&here->step, step, memory_order_relaxed);
  atomic_store_explicit(&here->phase, (int)phase, memory_order_relaxed);
  atomic_fetch_add_explicit(&here->beats, 1, memory_order_relaxed);
}

/* Appends " after step 7, in gradient reduction". Async-signal-safe. */
void spt_watchdog_place(const spt_whereabouts *here, spt_signal_text *text);

/* What one rank last told of itself. */
typedef struct spt_rank_report {
  int64_t step;
  int32_t phase;
  int32_t idle;   /* heartbeats without progress */
  int32_t silent; /* heartbeats since it was last heard of */
} spt_rank_report;

/* Who, if anyone, holds the others up: ranks are compared by step and phase, and only those furthest behind can be to
 * blame; `limit` has each phase's allowance of idle heartbeats (0: none), silent_limit that of all phases. In a phase
 * that waits for others the last to arrive counts. Returns the rank, or -1; *silent_p: it is not heard of, else it makes
 * no progress. Pure. */
int spt_watchdog_judge(const spt_rank_report *reports, int size, const int32_t limit[SPT_PHASES], int32_t silent_limit,
                       bool *silent_p);

/* Appends to `text` where ranks [first, end) were by their reports, those at the same place together; nothing where there are none:
 *   "; at the last heartbeats: ranks 1, 4-7 after step 7, in forward and backward; ranks 2-3 after step 7, in gradient reduction"
 * Pure, async-signal-safe. */
void spt_watchdog_describe(const spt_rank_report *reports, int first, int end, spt_signal_text *text);

typedef struct spt_watchdog spt_watchdog;

/* Seconds without progress that are allowed; 0: for ever. `timeout` is also how long a rank may be silent. */
typedef struct spt_watchdog_limits {
  double timeout, startup, save, validation;
} spt_watchdog_limits;

/* Seconds between heartbeats, and each phase's allowance of them without progress (0: none). Pure. */
double spt_watchdog_allowances(const spt_watchdog_limits *limits, int32_t allowed[SPT_PHASES]);

struct spt_neighbours;

/* Starts the thread, which also tells of a neighbour that dies (neighbours.h). `here` and `neighbours`, which may be NULL, must outlive
 * it. *watchdog_p is NULL, and nothing runs, with one rank, without
 * MPI_THREAD_MULTIPLE, or with timeout 0. SPT_ERR_RESOURCE: no thread. Collective. */
spt_status spt_watchdog_open(spt_comm *comm, spt_whereabouts *here, const spt_watchdog_limits *limits, struct spt_neighbours *neighbours,
                             spt_watchdog **watchdog_p);
/* The same of those this rank hears of: rank 0 of all others, they of rank 0. Takes NULL. Async-signal-safe. */
void spt_watchdog_last_heard(const spt_watchdog *watchdog, spt_signal_text *text);
/* Says goodbye to the other ranks' threads and ends this one. Takes NULL. Collective; not after abort. */
void spt_watchdog_close(spt_watchdog **watchdog_p);

#endif
