/* spectron-check-site: started by jobs/check-site.sh on every rank of an allocation. Looks, measures, and rank 0 prints
 * one finding a line. */
#include "check_site.h"

#include <getopt.h>
#include <mpi.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS_MAX = 40 }; /* of links: about 0.4 s each */

static const char help[] =
    "spectron-check-site [OPTION]…   measures ranks, links and the output file system; jobs/check-site.sh starts it\n\n"
    "  --folder DIR          the output file system (the working directory)\n"
    "  --tag WORD            names the probe's folder DIR/.spectron-check-site-WORD, which is removed at the end\n"
    "  --threads N           threads of a rank (as the trainer would take)\n"
    "  --cpus-per-task N     what Slurm was asked for\n"
    "  --slurm               name Slurm's settings in remedies\n"
    "  --gpus                every rank must have a GPU of its own\n"
    "  --hello N             only say whether N ranks found each other\n\n"
    "Prints one finding a line: OK, WARN or FAIL, what, where, and what to set. Exit codes: 0 measured, whatever was "
    "found\n"
    "· 2 bad usage · 5 MPI or another resource failed.\n"
    "Example: mpirun -np 4 --bind-to none spectron-check-site --folder runs\n";

typedef struct site_options {
  site_wish wish;
  const char *folder, *tag;
  int hello;
  bool help;
} site_options;

static spt_status read_number(const char *option, const char *text, int *value_p) {
  char *end;
  const long value = strtol(text, &end, 10);
  if (end == text || *end || value < 1 || value > 1000000)
    return SPT_FAIL(SPT_ERR_USAGE, "--%s wants a whole number from 1 to 1000000, not '%s'", option, text);
  *value_p = (int)value;
  return SPT_OK;
}

static spt_status read_options(int argc, char **argv, site_options *o) {
  static const struct option table[] = {
      {"folder", 1, NULL, 'f'},        {"tag", 1, NULL, 't'},        {"threads", 1, NULL, 'n'},
      {"cpus-per-task", 1, NULL, 'c'}, {"slurm", 0, NULL, 's'},      {"gpus", 0, NULL, 'g'},
      {"hello", 1, NULL, 'h'},         {"help", 0, NULL, '?' + 256}, {NULL, 0, NULL, 0}};
  *o = (site_options){.folder = ".", .tag = "probe"};
  opterr = 0;
  for (int choice, index = 0; (choice = getopt_long(argc, argv, ":", table, &index)) != -1;) {
    switch (choice) {
    case 'f': o->folder = optarg; break;
    case 't': o->tag = optarg; break;
    case 'n': SPT_TRY(read_number("threads", optarg, &o->wish.threads)); break;
    case 'c': SPT_TRY(read_number("cpus-per-task", optarg, &o->wish.cpus_per_task)); break;
    case 'h': SPT_TRY(read_number("hello", optarg, &o->hello)); break;
    case 's': o->wish.slurm = true; break;
    case 'g': o->wish.gpus_matter = true; break;
    case '?' + 256: o->help = true; return SPT_OK;
    default:
      return SPT_FAIL(SPT_ERR_USAGE, "%s: %s; see spectron-check-site --help", argv[optind - 1],
                      choice == ':' ? "a value is missing" : "unknown option");
    }
  }
  if (optind < argc) return SPT_FAIL(SPT_ERR_USAGE, "%s: unknown word; see spectron-check-site --help", argv[optind]);
  if (!*o->folder || strlen(o->folder) >= SITE_PATH_MAX)
    return SPT_FAIL(SPT_ERR_USAGE, "--folder '%s': empty or longer than %d bytes", o->folder, SITE_PATH_MAX - 1);
  if (!*o->tag || strlen(o->tag) > 64 || strchr(o->tag, '/'))
    return SPT_FAIL(SPT_ERR_USAGE, "--tag '%s': wants 1 to 64 characters without slashes", o->tag);
  return SPT_OK;
}

/* Every rank's facts on every rank; malloc'ed. */
static spt_status share_ranks(const site_rank *own, int size, site_rank **ranks_p) {
  *ranks_p = malloc((size_t)size * sizeof **ranks_p);
  if (!*ranks_p) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the facts of %d ranks", size);
  SITE_MPI_TRY(MPI_Allgather, own, (int)sizeof *own, MPI_BYTE, *ranks_p, (int)sizeof *own, MPI_BYTE, MPI_COMM_WORLD);
  return SPT_OK;
}

/* The first rank of each node; on a single node, every rank, for its links. */
typedef struct site_units {
  int nodes, links;
  int *leaders, *link_leaders;
  char (*names)[SITE_NAME_MAX];
} site_units;

static spt_status find_units(const site_rank *ranks, int size, site_units *units) {
  int *node_of = malloc((size_t)size * sizeof *node_of);
  units->leaders = malloc((size_t)size * sizeof *units->leaders);
  units->link_leaders = malloc((size_t)size * sizeof *units->link_leaders);
  units->names = calloc((size_t)size, sizeof *units->names);
  if (!node_of || !units->leaders || !units->link_leaders || !units->names) {
    free(node_of);
    return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for %d ranks", size);
  }
  units->nodes = site_number_nodes(ranks, size, node_of);
  for (int i = size - 1; i >= 0; i--) units->leaders[node_of[i]] = i;
  units->links = units->nodes > 1 ? units->nodes : size;
  for (int i = 0; i < units->links; i++) {
    units->link_leaders[i] = units->nodes > 1 ? units->leaders[i] : i;
    if (units->nodes > 1)
      snprintf(units->names[i], sizeof units->names[i], "%s", ranks[units->leaders[i]].node);
    else
      snprintf(units->names[i], sizeof units->names[i], "rank %d", i);
  }
  free(node_of);
  return SPT_OK;
}

static void free_units(site_units *units) {
  free(units->names);
  free(units->link_leaders);
  free(units->leaders);
}

static spt_status measure_links(site_report *report, const site_units *units, bool reporter) {
  site_link *links = NULL;
  int count = 0;
  SPT_TRY(site_links_measure(units->link_leaders, units->links, ROUNDS_MAX, &links, &count));
  if (reporter)
    site_judge_links(report, (const char(*)[SITE_NAME_MAX])units->names, units->links, units->nodes == 1, links, count);
  free(links);
  return SPT_OK;
}

static spt_status measure_files(site_report *report, const site_options *o, const site_units *units, bool reporter) {
  site_files *files = calloc((size_t)units->nodes, sizeof *files);
  if (!files) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for the facts of %d nodes", units->nodes);
  spt_status status = site_files_measure(o->folder, o->tag, units->leaders, units->nodes, files);
  for (int i = 0; i < units->nodes; i++)
    snprintf(files[i].node, sizeof files[i].node, "%s", units->nodes > 1 ? units->names[i] : "this node");
  if (status == SPT_OK && reporter) site_judge_files(report, o->folder, files, units->nodes);
  free(files);
  return status;
}

static spt_status measure(const site_options *o, site_rank *own, int rank, int size) {
  site_report report = {.out = stdout};
  site_units units = {0};
  site_rank *ranks = NULL;
  const bool reporter = rank == 0;
  spt_status status = share_ranks(own, size, &ranks);
  if (status == SPT_OK && own->threads == 0) own->threads = site_default_threads(ranks, size, rank);
  if (status == SPT_OK) status = site_rank_measure(own);
  free(ranks);
  ranks = NULL;
  if (status == SPT_OK) status = share_ranks(own, size, &ranks);
  if (status == SPT_OK) status = find_units(ranks, size, &units);
  if (status == SPT_OK && reporter) {
    site_list_ranks(&report, ranks, size);
    site_judge_binding(&report, &o->wish, ranks, size);
    site_judge_gpus(&report, &o->wish, ranks, size);
    site_judge_speed(&report, ranks, size);
    fflush(stdout);
  }
  if (status == SPT_OK) status = measure_links(&report, &units, reporter);
  if (reporter) fflush(stdout);
  if (status == SPT_OK) status = measure_files(&report, o, &units, reporter);
  free_units(&units);
  free(ranks);
  return status;
}

/* Ranks that were started without knowing of each other are each alone, and each say so. */
static spt_status hello(const site_options *o, const site_rank *own, int rank, int size) {
  if (size != o->hello)
    return SPT_FAIL(SPT_ERR_RESOURCE,
                    "%d ranks were started, but MPI tells a rank of %d: this launcher and MPI do not know each other",
                    o->hello, size);
  site_rank *ranks = NULL;
  int *node_of = malloc((size_t)size * sizeof *node_of);
  spt_status status = node_of ? share_ranks(own, size, &ranks) : SPT_FAIL(SPT_ERR_RESOURCE, "out of memory");
  if (status == SPT_OK && rank == 0) {
    const int nodes = site_number_nodes(ranks, size, node_of);
    printf("%d rank%s on %d node%s\n", size, size == 1 ? "" : "s", nodes, nodes == 1 ? "" : "s");
  }
  free(ranks);
  free(node_of);
  return status;
}

static int leave(spt_status status) {
  if (status != SPT_OK) fprintf(stderr, "spectron-check-site: %s\n", spt_error_message());
  return (int)status;
}

int main(int argc, char **argv) {
  static site_rank own; // large
  site_options o;
  signal(SIGPIPE, SIG_IGN);
  spt_status status = read_options(argc, argv, &o);
  if (status != SPT_OK) return leave(status);
  if (o.help) return fputs(help, stdout), 0;
  site_rank_look(&o.wish, &own);
  int rank = 0, size = 0;
  if (MPI_Init(&argc, &argv) != MPI_SUCCESS ||
      MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN) != MPI_SUCCESS ||
      MPI_Comm_rank(MPI_COMM_WORLD, &rank) != MPI_SUCCESS || MPI_Comm_size(MPI_COMM_WORLD, &size) != MPI_SUCCESS)
    return leave(SPT_FAIL(SPT_ERR_RESOURCE, "MPI cannot be started; see the launcher's messages"));
  status = o.hello ? hello(&o, &own, rank, size) : measure(&o, &own, rank, size);
  if (status != SPT_OK && size > 1) {
    leave(status);
    fflush(NULL);
    MPI_Abort(MPI_COMM_WORLD, (int)status); // the others may wait for this rank
  }
  MPI_Finalize();
  return size > 1 ? (int)status : leave(status);
}
