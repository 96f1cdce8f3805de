#include "check_site.h"

#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
  TAG_PING = 71,
  TAG_BULK = 72,
  TAG_RESULT = 73,
  PINGS_LEAST = 5,
  PINGS_MOST = 300,
  BULK_BYTES = 4 << 20,
  BULKS_LEAST = 3,
  BULKS_MOST = 16
};
#define PING_SECONDS 0.1
#define BULK_SECONDS 0.2

spt_status site_mpi_failed(int code, const char *call) {
  char words[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  if (MPI_Error_string(code, words, &length) != MPI_SUCCESS) snprintf(words, sizeof words, "error %d", code);
  for (char *at = words; (at = strchr(at, '\n')); at++) *at = ' ';
  return SPT_FAIL(SPT_ERR_RESOURCE, "%s failed: %s", call, words);
}

double site_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int ascending(const void *left, const void *right) {
  const double a = *(const double *)left, b = *(const double *)right;
  return (a > b) - (a < b);
}

double site_median(double *values, int64_t count) {
  if (count < 1) return 0;
  qsort(values, (size_t)count, sizeof *values, ascending);
  return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static spt_status quiet_barrier(MPI_Comm comm) {
  MPI_Request request;
  int done = 0;
  SITE_MPI_TRY(MPI_Ibarrier, comm, &request);
  for (;;) {
    SITE_MPI_TRY(MPI_Test, &request, &done, MPI_STATUS_IGNORE);
    if (done) return SPT_OK;
    nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
  }
}

spt_status site_quiet_barrier(void) {
  return quiet_barrier(MPI_COMM_WORLD);
}

int site_round_partner(int units, int round, int unit) {
  // the circle method: the last place stands still, the others turn by one a round; with an odd number nobody is there
  const int places = units + units % 2, turning = places - 1;
  int partner;
  if (unit == turning) {
    for (partner = 0; partner < turning && (2 * partner - round) % turning != 0; partner++) {
    }
  } else {
    partner = ((round - unit) % turning + turning) % turning;
    if (partner == unit) partner = turning;
  }
  return partner < units ? partner : -1;
}

/* Half the median time there and back of 8 bytes, which say whether another comes. */
static spt_status ping(int other, bool first, double *seconds_p) {
  double times[PINGS_MOST];
  int64_t more = 1;
  int count = 0;
  const double began = site_now();
  for (bool warm = true; more; warm = false) {
    const double start = site_now();
    if (first) {
      more = count < PINGS_LEAST || (count + 1 < PINGS_MOST && start - began < PING_SECONDS);
      SITE_MPI_TRY(MPI_Send, &more, 1, MPI_INT64_T, other, TAG_PING, MPI_COMM_WORLD);
      SITE_MPI_TRY(MPI_Recv, &more, 1, MPI_INT64_T, other, TAG_PING, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    } else {
      SITE_MPI_TRY(MPI_Recv, &more, 1, MPI_INT64_T, other, TAG_PING, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
      SITE_MPI_TRY(MPI_Send, &more, 1, MPI_INT64_T, other, TAG_PING, MPI_COMM_WORLD);
    }
    if (first && !warm) times[count++] = site_now() - start;
  }
  *seconds_p = site_median(times, count) / 2;
  return SPT_OK;
}

/* Both send at once, as the ranks of a ring do; the first word of a message says whether another comes. */
static spt_status exchange(int other, bool first, int64_t *out, int64_t *in, double *rate_p) {
  double times[BULKS_MOST];
  int64_t more = 1;
  int count = 0;
  const double began = site_now();
  for (bool warm = true; more; warm = false) {
    const double start = site_now();
    out[0] = count < BULKS_LEAST || (count + 1 < BULKS_MOST && start - began < BULK_SECONDS);
    SITE_MPI_TRY(MPI_Sendrecv, out, BULK_BYTES, MPI_BYTE, other, TAG_BULK, in, BULK_BYTES, MPI_BYTE, other, TAG_BULK,
                 MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    if (!warm && count < BULKS_MOST) times[count++] = site_now() - start;
    more = first ? out[0] : in[0];
  }
  const double median = site_median(times, count);
  *rate_p = median > 0 ? 2.0 * BULK_BYTES / median : 0;
  return SPT_OK;
}

/* One leader's rounds; the first of a pair keeps what was found. */
static spt_status measure_rounds(const int *leaders, int units, int self, int rounds, MPI_Comm comm, int64_t *buffers,
                                 site_link *links, int *count_p) {
  const int turning = units + units % 2 - 1;
  for (int i = 0; i < rounds; i++) {
    const int round = (int)((int64_t)i * turning / rounds); // spread over all, where not all are taken
    const int partner = site_round_partner(units, round, self);
    SPT_TRY(quiet_barrier(comm));
    if (partner < 0) continue;
    const bool first = self < partner;
    site_link link = {.a = self, .b = partner};
    SPT_TRY(ping(leaders[partner], first, &link.latency));
    SPT_TRY(exchange(leaders[partner], first, buffers, buffers + BULK_BYTES / sizeof *buffers, &link.bandwidth));
    if (first) links[(*count_p)++] = link;
  }
  return SPT_OK;
}

/* To rank 0, which is the first leader. */
static spt_status collect(const int *leaders, int units, int self, const site_link *own, int own_count,
                          site_link **links_p, int *count_p) {
  if (self != 0) {
    SITE_MPI_TRY(MPI_Send, own, own_count * (int)sizeof *own, MPI_BYTE, leaders[0], TAG_RESULT, MPI_COMM_WORLD);
    return SPT_OK;
  }
  site_link *all = NULL;
  int count = own_count;
  for (int unit = 0; unit < units; unit++) {
    MPI_Status status;
    int bytes = own_count * (int)sizeof *own;
    if (unit > 0) {
      SITE_MPI_TRY(MPI_Probe, leaders[unit], TAG_RESULT, MPI_COMM_WORLD, &status);
      SITE_MPI_TRY(MPI_Get_count, &status, MPI_BYTE, &bytes);
      count += bytes / (int)sizeof *own;
    }
    site_link *larger = realloc(all, ((size_t)count + 1) * sizeof *all);
    if (!larger) {
      free(all);
      return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for %d links", count);
    }
    all = larger;
    if (unit == 0) {
      memcpy(all, own, (size_t)own_count * sizeof *own);
    } else {
      site_link *to = all + count - bytes / (int)sizeof *own;
      SITE_MPI_TRY(MPI_Recv, to, bytes, MPI_BYTE, leaders[unit], TAG_RESULT, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
  }
  *links_p = all;
  *count_p = count;
  return SPT_OK;
}

spt_status site_links_measure(const int *leaders, int units, int rounds_max, site_link **links_p, int *count_p) {
  int rank, self = -1, count = 0;
  MPI_Comm comm;
  *links_p = NULL;
  *count_p = 0;
  if (units < 2) return SPT_OK;
  SITE_MPI_TRY(MPI_Comm_rank, MPI_COMM_WORLD, &rank);
  for (int unit = 0; unit < units; unit++)
    if (leaders[unit] == rank) self = unit;
  SITE_MPI_TRY(MPI_Comm_split, MPI_COMM_WORLD, self < 0 ? MPI_UNDEFINED : 0, rank, &comm);
  spt_status status = SPT_OK;
  if (self >= 0) {
    const int turning = units + units % 2 - 1, rounds = turning < rounds_max ? turning : rounds_max;
    site_link *own = calloc((size_t)rounds, sizeof *own);
    int64_t *buffers = calloc(2, BULK_BYTES);
    status = own && buffers ? SPT_OK : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for messages of 4 MiB");
    if (status == SPT_OK) status = measure_rounds(leaders, units, self, rounds, comm, buffers, own, &count);
    if (status == SPT_OK) status = collect(leaders, units, self, own, count, links_p, count_p);
    free(buffers);
    free(own);
    MPI_Comm_free(&comm);
  }
  SPT_TRY(status);
  return site_quiet_barrier();
}
