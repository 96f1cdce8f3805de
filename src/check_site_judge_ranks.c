/* Facts of ranks into findings: binding and threads, GPUs, speed. */
#include "check_site.h"

#include <stdlib.h>
#include <string.h>

enum { NAMED_MOST = 8 }; /* of one kind of finding */

int site_number_nodes(const site_rank *ranks, int size, int *node_of) {
  int nodes = 0;
  for (int i = 0; i < size; i++) {
    node_of[i] = nodes;
    for (int j = 0; j < i; j++)
      if (strcmp(ranks[i].node, ranks[j].node) == 0) {
        node_of[i] = node_of[j];
        break;
      }
    if (node_of[i] == nodes) nodes++;
  }
  return nodes;
}

/* ---- binding ---- */

static bool share_cpus(const site_rank *a, const site_rank *b) {
  if (strcmp(a->node, b->node) != 0) return false;
  for (int i = 0; i < SITE_CPUS_MAX / 64; i++)
    if (a->cpus[i] & b->cpus[i]) return true;
  return false;
}

int site_default_threads(const site_rank *ranks, int size, int rank) {
  int sharers = 0;
  for (int i = 0; i < size; i++) sharers += share_cpus(&ranks[rank], &ranks[i]);
  const int threads = sharers > 0 ? ranks[rank].cpu_count / sharers : 1;
  return threads > 1 ? threads : 1;
}

/* "0-3,8", shortened where it is long. */
static void print_cpus(const uint64_t cpus[SITE_CPUS_MAX / 64], char text[64]) {
  size_t used = 0;
  text[0] = '\0';
  for (int cpu = 0; cpu < SITE_CPUS_MAX; cpu++) {
    if (!(cpus[cpu / 64] >> (cpu % 64) & 1)) continue;
    int last = cpu;
    while (last + 1 < SITE_CPUS_MAX && (cpus[(last + 1) / 64] >> ((last + 1) % 64) & 1)) last++;
    if (used > 44) {
      snprintf(text + used, 64 - used, ",…");
      return;
    }
    used += (size_t)snprintf(text + used, 64 - used, last > cpu ? "%s%d-%d" : "%s%d", used ? "," : "", cpu, last);
    cpu = last;
  }
}

/* A rank's own CPUs against its threads. True when something was found. */
static bool judge_own_cpus(site_report *report, const site_wish *wish, const site_rank *rank, int number) {
  char cpus[64];
  print_cpus(rank->cpus, cpus);
  if (rank->threads > rank->cpu_count) {
    char remedy[160];
    if (wish->slurm)
      snprintf(remedy, sizeof remedy,
               "--cpus-per-task=%d for sbatch and for srun (jobs/slurm.sh does), or mpirun --map-by slot:PE=%d",
               rank->threads, rank->threads);
    else
      snprintf(remedy, sizeof remedy, "--threads %d, or mpirun --map-by slot:PE=%d or --bind-to none",
               rank->cpu_count > 1 ? rank->cpu_count : 1, rank->threads);
    site_say(report, SITE_FAIL, "binding", "rank %d (%s): %d threads on %d CPU%s (%s); set %s", number, rank->node,
             rank->threads, rank->cpu_count, rank->cpu_count == 1 ? "" : "s", cpus, remedy);
    return true;
  }
  if (rank->threads > rank->core_count && rank->core_count > 0) {
    site_say(report, SITE_WARN, "binding",
             "rank %d (%s): %d threads on %d core%s (CPUs %s are hyperthreads); set --hint=nomultithread, or "
             "--cpus-per-task and --threads to the cores",
             number, rank->node, rank->threads, rank->core_count, rank->core_count == 1 ? "" : "s", cpus);
    return true;
  }
  if (wish->cpus_per_task > rank->cpu_count) {
    site_say(report, SITE_WARN, "binding",
             "rank %d (%s): %d CPUs (%s) of the %d of --cpus-per-task; srun wants --cpus-per-task too (jobs/slurm.sh), "
             "mpirun --map-by slot:PE=%d",
             number, rank->node, rank->cpu_count, cpus, wish->cpus_per_task, wish->cpus_per_task);
    return true;
  }
  return false;
}

/* What the ranks of a node do to each other. True when something was found. */
static bool judge_node_cpus(site_report *report, const site_rank *ranks, int size, int first) {
  uint64_t cpus[SITE_CPUS_MAX / 64] = {0}, all[SITE_CPUS_MAX / 64] = {0};
  int sharing = 0, threads = 0, node_threads = 0, here = 0, count = 0, count_all = 0;
  char list[64] = "", text[64];
  size_t used = 0;
  for (int i = 0; i < size; i++) {
    if (strcmp(ranks[i].node, ranks[first].node) != 0) continue;
    bool shares = false;
    for (int j = 0; j < size && !shares; j++) shares = j != i && share_cpus(&ranks[i], &ranks[j]);
    here++;
    node_threads += ranks[i].threads;
    for (int k = 0; k < SITE_CPUS_MAX / 64; k++) all[k] |= ranks[i].cpus[k];
    if (!shares) continue;
    threads += ranks[i].threads;
    for (int k = 0; k < SITE_CPUS_MAX / 64; k++) cpus[k] |= ranks[i].cpus[k];
    if (sharing++ < NAMED_MOST) used += (size_t)snprintf(list + used, sizeof list - used, "%s%d", used ? "," : "", i);
  }
  for (int k = 0; k < SITE_CPUS_MAX / 64; k++) {
    count += __builtin_popcountll(cpus[k]);
    count_all += __builtin_popcountll(all[k]);
  }
  print_cpus(cpus, text);
  const char *more = sharing > NAMED_MOST ? ",…" : "";
  if (sharing && threads > count) {
    site_say(report, SITE_FAIL, "binding",
             "%s: ranks %s%s share %d CPUs (%s) with %d threads; set --cpus-per-task to the threads of a rank, fewer "
             "--ntasks-per-node, or --threads %d",
             ranks[first].node, list, more, count, text, threads, count / sharing > 1 ? count / sharing : 1);
    return true;
  }
  if (sharing) {
    site_say(report, SITE_WARN, "binding",
             "%s: ranks %s%s share CPUs %s, unbound; set srun --cpu-bind=cores, or mpirun --map-by slot:PE=%d",
             ranks[first].node, list, more, text, ranks[first].threads);
    return true;
  }
  if (2 * node_threads <= count_all) {
    site_say(report, SITE_WARN, "binding",
             "%s: %d rank%s with %d threads use half or less of %d CPUs; raise --cpus-per-task or --ntasks-per-node",
             ranks[first].node, here, here == 1 ? "" : "s", node_threads, count_all);
    return true;
  }
  return false;
}

void site_judge_binding(site_report *report, const site_wish *wish, const site_rank *ranks, int size) {
  int found = 0, least = ranks[0].threads, most = least;
  for (int i = 0; i < size; i++) {
    if (found < NAMED_MOST) found += judge_own_cpus(report, wish, &ranks[i], i);
    if (ranks[i].threads < least) least = ranks[i].threads;
    if (ranks[i].threads > most) most = ranks[i].threads;
  }
  if (found == NAMED_MOST)
    site_say(report, SITE_WARN, "binding", "only the first %d ranks with findings are listed", found);
  int node_findings = 0;
  for (int i = 0; i < size && node_findings < NAMED_MOST; i++) {
    bool is_first = true;
    for (int j = 0; j < i && is_first; j++) is_first = strcmp(ranks[i].node, ranks[j].node) != 0;
    if (is_first) node_findings += judge_node_cpus(report, ranks, size, i);
  }
  if (found + node_findings == 0)
    site_say(report, SITE_OK, "binding", "ranks %d, threads %d to %d, each rank with CPUs of its own", size, least,
             most);
}

/* ---- GPUs ---- */

/* The one that a rank takes: its only one, or that of its number on the node. */
static const char *own_gpu(const site_rank *rank, int local) {
  if (rank->gpu_count == 0) return NULL;
  return rank->gpus[rank->gpu_count == 1 ? 0 : local % rank->gpu_count];
}

void site_judge_gpus(site_report *report, const site_wish *wish, const site_rank *ranks, int size) {
  static const char *const remedy = "one rank a GPU: --ntasks-per-node = --gpus-per-node, SLURM_GPU_BIND=none "
                                    "(jobs/gpu-nodes.sbatch)";
  int *local = calloc((size_t)size, sizeof *local);
  int seen = 0, findings = 0;
  for (int i = 0; local && i < size; i++) {
    for (int j = 0; j < i; j++) local[i] += strcmp(ranks[i].node, ranks[j].node) == 0;
    if (ranks[i].gpu_count > seen) seen = ranks[i].gpu_count;
  }
  if (!local) return;
  if (!wish->gpus_matter || seen == 0) {
    site_say(report, wish->gpus_matter ? SITE_FAIL : SITE_OK, "gpu",
             wish->gpus_matter ? "no rank sees a GPU; set --gpus-per-node, or BACKEND=cpu" : "not asked for");
    free(local);
    return;
  }
  for (int i = 0; i < size && findings < NAMED_MOST; i++) {
    const char *own = own_gpu(&ranks[i], local[i]);
    if (!own) {
      site_say(report, SITE_FAIL, "gpu", "rank %d (%s) sees no GPU; %s", i, ranks[i].node, remedy);
      findings++;
      continue;
    }
    for (int j = 0; j < i; j++) {
      const char *other = own_gpu(&ranks[j], local[j]);
      if (!other || strcmp(ranks[i].node, ranks[j].node) != 0 || strcmp(own, other) != 0) continue;
      site_say(report, SITE_FAIL, "gpu", "ranks %d and %d (%s) both take GPU %s; %s", j, i, ranks[i].node, own, remedy);
      findings++;
      break;
    }
  }
  for (int i = 0; i < size && findings < NAMED_MOST; i++) {
    int here = 0;
    for (int j = 0; j < size; j++) here += strcmp(ranks[i].node, ranks[j].node) == 0;
    if (local[i] != 0 || ranks[i].gpu_count <= 1 || here >= ranks[i].gpu_count) continue;
    site_say(report, SITE_WARN, "gpu", "%s: %d ranks for %d GPUs; %s", ranks[i].node, here, ranks[i].gpu_count, remedy);
    findings++;
  }
  if (findings == 0) site_say(report, SITE_OK, "gpu", "%d ranks, each with a GPU of its own", size);
  free(local);
}

/* ---- who is where ---- */

void site_list_ranks(site_report *report, const site_rank *ranks, int size) {
  int listed = 0;
  for (int first = 0; first < size && listed < NAMED_MOST; first++) {
    char line[400] = "", cpus[64];
    size_t used = 0;
    int local = 0;
    for (int i = 0; i < size; i++) {
      if (strcmp(ranks[i].node, ranks[first].node) != 0) continue;
      if (i < first) break; // listed already
      const char *gpu = own_gpu(&ranks[i], local++);
      print_cpus(ranks[i].cpus, cpus);
      if (used > sizeof line - 160) { // room for one more and the dots
        snprintf(line + used, sizeof line - used, "; …");
        break;
      }
      used += (size_t)snprintf(line + used, sizeof line - used, "%srank %d: CPUs %s, %d thread%s%s%s",
                               local > 1 ? "; " : "", i, cpus, ranks[i].threads, ranks[i].threads == 1 ? "" : "s",
                               gpu ? ", GPU " : "", gpu ? gpu : "");
    }
    if (local == 0) continue;
    site_say(report, SITE_OK, "ranks", "%s: %s", ranks[first].node, line);
    listed++;
  }
}

/* ---- speed ---- */

/* Nodes by the median of their ranks; on a single node, ranks. */
static int judge_rate(site_report *report, const site_rank *ranks, int size, bool memory) {
  int *node_of = malloc((size_t)size * sizeof *node_of), found = 0;
  double *values = malloc((size_t)size * sizeof *values), *own = malloc((size_t)size * sizeof *own), others;
  if (node_of && values && own) {
    const int nodes = site_number_nodes(ranks, size, node_of), units = nodes > 1 ? nodes : size;
    for (int unit = 0; unit < units; unit++) {
      int n = 0;
      for (int i = 0; i < size; i++)
        if ((nodes > 1 ? node_of[i] : i) == unit) own[n++] = memory ? ranks[i].bytes : ranks[i].flops;
      values[unit] = site_median(own, n);
    }
    for (int unit = 0; unit < units && found < NAMED_MOST; unit++) {
      if (!site_is_slow(values, units, unit, &others)) continue;
      int rank = 0;
      while ((nodes > 1 ? node_of[rank] : rank) != unit) rank++;
      found++;
      if (nodes > 1)
        site_say(report, SITE_FAIL, "speed",
                 "%s is slow: %s %.3g G%s a rank, the others' median is %.3g; set --exclude=%s", ranks[rank].node,
                 memory ? "memory" : "matrix products", values[unit] / 1e9, memory ? "B/s" : "FLOP/s", others / 1e9,
                 ranks[rank].node);
      else
        site_say(report, SITE_WARN, "speed",
                 "rank %d is slow: %s %.3g G%s, the others' median is %.3g; see its binding, and what else runs there",
                 rank, memory ? "memory" : "matrix products", values[unit] / 1e9, memory ? "B/s" : "FLOP/s",
                 others / 1e9);
    }
  }
  free(own);
  free(values);
  free(node_of);
  return found;
}

void site_judge_speed(site_report *report, const site_rank *ranks, int size) {
  double flops[2] = {ranks[0].flops, ranks[0].flops}, bytes[2] = {ranks[0].bytes, ranks[0].bytes};
  if (judge_rate(report, ranks, size, false) + judge_rate(report, ranks, size, true) > 0) return;
  for (int i = 1; i < size; i++) {
    if (ranks[i].flops < flops[0]) flops[0] = ranks[i].flops;
    if (ranks[i].flops > flops[1]) flops[1] = ranks[i].flops;
    if (ranks[i].bytes < bytes[0]) bytes[0] = ranks[i].bytes;
    if (ranks[i].bytes > bytes[1]) bytes[1] = ranks[i].bytes;
  }
  site_say(report, SITE_OK, "speed",
           "a rank: matrix products %.3g to %.3g GFLOP/s, memory %.3g to %.3g GB/s, all at once", flops[0] / 1e9,
           flops[1] / 1e9, bytes[0] / 1e9, bytes[1] / 1e9);
}
