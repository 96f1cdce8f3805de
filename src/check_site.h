/* spectron-check-site: what a site's nodes, links and output file system do, measured in about a minute before the first
 * real job. check_site_ranks.c, _links.c and _files.c gather facts (Collective over MPI_COMM_WORLD); check_site_judge.c
 * and _judge_ranks.c turn facts into findings; check_site.c is the program. */
#ifndef SPT_CHECK_SITE_H
#define SPT_CHECK_SITE_H

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { SITE_NAME_MAX = 64, SITE_CPUS_MAX = 4096, SITE_GPUS_MAX = 16, SITE_GPU_NAME_MAX = 48, SITE_PATH_MAX = 768 };

/* ---- findings ---- */

/* SITE_FAIL: a job would fail, or run at less than half its speed. SITE_WARN: it would run, with a drawback. */
typedef enum { SITE_OK, SITE_WARN, SITE_FAIL, SITE_LEVELS } site_level;

typedef struct site_report {
  FILE *out; /* not owned */
  int counts[SITE_LEVELS];
} site_report;

/* One line: level, subject, what and where, and after it what to set. */
void site_say(site_report *report, site_level level, const char *subject, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Whether values[one] (more is better) is below half of the median of the others, which *others_p receives. */
bool site_is_slow(const double *values, int count, int one, double *others_p);

/* ---- ranks: where they are, what they may use, how fast they compute ---- */

typedef struct site_rank {
  char node[SITE_NAME_MAX];          /* Slurm's name of the node, else the host's */
  int threads;                       /* that the trainer will start */
  int cpu_count, core_count;         /* that the rank may use; a core may have several CPUs */
  uint64_t cpus[SITE_CPUS_MAX / 64]; /* the affinity mask */
  int gpu_count;
  char gpus[SITE_GPUS_MAX][SITE_GPU_NAME_MAX]; /* that it sees: UUIDs where nvidia-smi tells them, else numbers */
  double flops, bytes; /* a second: matrix products, memory; all ranks at once; 0: not measured */
} site_rank;

typedef struct site_wish {
  int threads;       /* 0: allowed CPUs over the ranks that share them, as the trainer takes */
  int cpus_per_task; /* Slurm's; 0: not given */
  bool slurm, gpus_matter;
} site_wish;

/* Fills *rank_p before MPI_Init (a child process runs nvidia-smi, where there is one). Local. */
void site_rank_look(const site_wish *wish, site_rank *rank_p);
/* Measures flops and bytes on all ranks at once. */
spt_status site_rank_measure(site_rank *rank);

/* A node's number for each rank, in order of first appearance, and the number of nodes. */
int site_number_nodes(const site_rank *ranks, int size, int *node_of);
/* Threads that the trainer takes where none are asked for. */
int site_default_threads(const site_rank *ranks, int size, int rank);

/* One line a node, of the first nodes: each rank's affinity mask, threads and GPU. */
void site_list_ranks(site_report *report, const site_rank *ranks, int size);
void site_judge_binding(site_report *report, const site_wish *wish, const site_rank *ranks, int size);
void site_judge_gpus(site_report *report, const site_wish *wish, const site_rank *ranks, int size);
void site_judge_speed(site_report *report, const site_rank *ranks, int size);

/* ---- links: between nodes, or between ranks where there is one node ---- */

typedef struct site_link {
  int a, b;         /* units: nodes or ranks */
  double latency;   /* seconds, median, one way */
  double bandwidth; /* bytes a second, both directions together, median */
} site_link;

/* Of `units` units whose leaders are the ranks leaders[]: rounds of disjoint pairs, so that every pair is measured where
 * there are at most `rounds_max` + 1 units, else rounds_max links of each. *links_p (rank 0): malloc'ed. */
spt_status site_links_measure(const int *leaders, int units, int rounds_max, site_link **links_p, int *count_p);
/* The partner of unit `unit` in `round` (0 … units − 2, or units − 1 when units is odd), −1 when it rests. */
int site_round_partner(int units, int round, int unit);

/* names: of the units; rank_units: they are ranks of one node. */
void site_judge_links(site_report *report, const char (*names)[SITE_NAME_MAX], int units, bool rank_units,
                      const site_link *links, int count);

/* ---- the output file system, as one leader a node sees it ---- */

typedef enum { SITE_LOCK_WORKS, SITE_LOCK_NOT_SEEN, SITE_LOCK_REFUSED, SITE_LOCK_UNTRIED } site_lock;

typedef struct site_files {
  char node[SITE_NAME_MAX];
  char error[256];      /* "": the folder can be written */
  bool sees_first;      /* what the first leader wrote */
  bool first_sees;      /* its own file is seen by the first leader */
  double sync_seconds;  /* median of writing 4 KiB and fsync, all nodes at once; 0: not measured */
  double write_bytes;   /* a second, with fsync: the first leader's */
  double free_bytes;
  bool reserves;        /* posix_fallocate without emulation */
  bool renames;         /* rename takes the place of a file */
  int missed_renames;   /* looks at a file under replacement that found none, or half of it */
  site_lock flock, fcntl; /* as the other leaders, or another process here, find the first leader's lock */
  bool hdf5, hdf5_locked; /* writes and reads without and with file locking */
} site_files;

/* folder: as this rank was told; tag: of the probe's subfolder ".spectron-check-site-TAG", which is removed. leaders: one
 * rank a node, leaders[0] = 0. files: [count], filled on rank 0. */
spt_status site_files_measure(const char *folder, const char *tag, const int *leaders, int count, site_files *files);
void site_judge_files(site_report *report, const char *folder, const site_files *files, int count);

/* ---- helpers ---- */

double site_now(void);                           /* monotonic seconds */
double site_median(double *values, int64_t count); /* sorts; 0 of none */
/* A barrier of MPI_COMM_WORLD that sleeps instead of spinning, so that waiting ranks do not disturb measuring ones. */
spt_status site_quiet_barrier(void);
spt_status site_mpi_failed(int code, const char *call);
#define SITE_MPI_TRY(call, ...)                                                                                        \
  do {                                                                                                                 \
    const int site_mpi_code_ = call(__VA_ARGS__);                                                                      \
    if (site_mpi_code_ != 0) return site_mpi_failed(site_mpi_code_, #call);                                            \
  } while (0)

#endif
