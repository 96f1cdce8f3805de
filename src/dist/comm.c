#include "comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *spt_collective_name(spt_collective kind) {
  switch (kind) {
  case SPT_COLLECTIVE_ALL_REDUCE: return "all-reduce";
  case SPT_COLLECTIVE_REDUCE_SCATTER: return "reduce-scatter";
  case SPT_COLLECTIVE_ALL_GATHER: return "all-gather";
  case SPT_COLLECTIVE_EXCHANGE: return "exchange";
  case SPT_COLLECTIVE_KINDS: break;
  }
  return "unknown";
}

/* What the reporting rank tells the others. */
typedef struct agreement {
  char message[1024];
  char origin[128]; /* "file:line" */
} agreement;

/* SPT_STOPPED means that everything was saved, so any real failure is worse although its code is smaller. */
static int severity(spt_status status) {
  return status == SPT_STOPPED ? 1 : status == SPT_OK ? 0 : 1 + (int)status;
}

static spt_status status_of(int severity) {
  return severity == 0 ? SPT_OK : severity == 1 ? SPT_STOPPED : (spt_status)(severity - 1);
}

/* Makes `told` this thread's last error, with the origin it had where it happened. */
static spt_status adopt(spt_status status, agreement *told) {
  char *colon = strrchr(told->origin, ':');
  int line = colon ? atoi(colon + 1) : 0;
  if (colon) *colon = '\0';
  return spt_fail_at(status, told->origin, line, "%s", told->message);
}

spt_status spt_comm_agree(spt_comm *comm, spt_status status, int *first_rank_p) {
  if (first_rank_p) *first_rank_p = status == SPT_OK ? -1 : comm->rank;
  if (comm->size == 1) return status;

  agreement told = {0};
  snprintf(told.message, sizeof told.message, "%s", spt_error_message());
  snprintf(told.origin, sizeof told.origin, "%s", spt_error_origin());

  // One maximum gives both: the worst status, and among the ranks that have it the lowest.
  double key = (double)severity(status) * comm->size + (comm->size - 1 - comm->rank);
  SPT_TRY(comm->ops->reduce_double(comm, &key, 1, SPT_REDUCE_MAX));
  spt_status worst = status_of((int)((int64_t)key / comm->size));
  if (worst == SPT_OK) return SPT_OK;

  int first_rank = comm->size - 1 - (int)((int64_t)key % comm->size);
  if (first_rank_p) *first_rank_p = first_rank;
  SPT_TRY(comm->ops->broadcast(comm, &told, sizeof told, first_rank));
  return comm->rank == first_rank ? worst : adopt(worst, &told);
}
