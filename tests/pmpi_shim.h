/* Interposes on MPI calls by the profiling interface (PMPI): counts them and the bytes handed to them, and notes when
 * each non-blocking collective was posted and when it was seen complete. Linked into a test, or preloaded into a
 * program as libspt_pmpi.so; at MPI_Finalize it writes a JSON file when SPT_PMPI_OUT names one ("%d" in the name is the
 * rank; with SPT_PMPI_SERIALIZED set, MPI supports no more than MPI_THREAD_SERIALIZED):
 * {"rank", "size", "calls": {"MPI_Iallreduce": {"count", "bytes"}, ...}, "events": [{"call", "bytes", "posted",
 * "completed"}, ...]}, times in seconds since MPI was initialised, "completed" null when it never was. */
#ifndef SPT_PMPI_SHIM_H
#define SPT_PMPI_SHIM_H

#include <stdint.h>

typedef enum {
  PMPI_IALLREDUCE,      /* bytes: count·4 */
  PMPI_IREDUCE_SCATTER, /* bytes: of all ranks' runs together */
  PMPI_IALLGATHERV,     /* bytes: of all ranks' runs together */
  PMPI_IALLTOALLV,      /* bytes: handed over, to all ranks together */
  PMPI_ALLREDUCE,
  PMPI_BCAST,
  PMPI_BARRIER,
  PMPI_SEND,
  PMPI_RECV,
  PMPI_CALLS
} pmpi_call;

typedef struct pmpi_total {
  int64_t count, bytes;
} pmpi_total;

typedef struct pmpi_event {
  pmpi_call call;
  int64_t bytes;
  double posted, completed; /* completed < 0: not yet */
} pmpi_event;

pmpi_total pmpi_shim_total(pmpi_call call);
/* Non-blocking collectives in the order of their posting; a copy of event i, of pmpi_shim_event_count(). */
int pmpi_shim_event_count(void);
pmpi_event pmpi_shim_event(int i);
/* Seconds on the events' clock. */
double pmpi_shim_now(void);

#endif
