/* Facts into findings. A node, rank or link is slow when it reaches less than half of the median of the others. */
#include "check_site.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { NAMED_MOST = 8 }; /* ranks that one finding lists */

void site_say(site_report *report, site_level level, const char *subject, const char *format, ...) {
  static const char *const levels[SITE_LEVELS] = {"OK", "WARN", "FAIL"};
  va_list arguments;
  report->counts[level]++;
  fprintf(report->out, "%-4s %-9s ", levels[level], subject);
  va_start(arguments, format);
  vfprintf(report->out, format, arguments);
  va_end(arguments);
  fputc('\n', report->out);
}

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
      snprintf(remedy, sizeof remedy, "--cpus-per-task=%d for sbatch and for srun (jobs/slurm.sh does), or mpirun --map-by slot:PE=%d",
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
  if (found == NAMED_MOST) site_say(report, SITE_WARN, "binding", "only the first %d ranks with findings are listed", found);
  int node_findings = 0;
  for (int i = 0; i < size && node_findings < NAMED_MOST; i++) {
    bool is_first = true;
    for (int j = 0; j < i && is_first; j++) is_first = strcmp(ranks[i].node, ranks[j].node) != 0;
    if (is_first) node_findings += judge_node_cpus(report, ranks, size, i);
  }
  if (found + node_findings == 0)
    site_say(report, SITE_OK, "binding", "ranks %d, threads %d to %d, each rank with CPUs of its own", size, least, most);
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

/* ---- speed ---- */

/* The median of all but one; 0 where there is no other. */
static double median_of_others(const double *values, int count, int one) {
  double *others = malloc((size_t)count * sizeof *others);
  int n = 0;
  if (!others) return 0;
  for (int i = 0; i < count; i++)
    if (i != one) others[n++] = values[i];
  const double median = site_median(others, n);
  free(others);
  return median;
}

static bool is_slow(const double *values, int count, int one, double *others_p) {
  *others_p = median_of_others(values, count, one);
  return values[one] > 0 && values[one] < 0.5 * *others_p;
}

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
      if (!is_slow(values, units, unit, &others)) continue;
      int rank = 0;
      while ((nodes > 1 ? node_of[rank] : rank) != unit) rank++;
      found++;
      if (nodes > 1)
        site_say(report, SITE_FAIL, "speed", "%s is slow: %s %.3g G%s a rank, the others' median is %.3g; set --exclude=%s",
                 ranks[rank].node, memory ? "memory" : "matrix products", values[unit] / 1e9, memory ? "B/s" : "FLOP/s",
                 others / 1e9, ranks[rank].node);
      else
        site_say(report, SITE_WARN, "speed",
                 "rank %d is slow: %s %.3g G%s, the others' median is %.3g; see its binding, and what else runs there",
                 rank, memory ? "memory" : "matrix products", values[unit] / 1e9, memory ? "B/s" : "FLOP/s", others / 1e9);
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
  site_say(report, SITE_OK, "speed", "a rank: matrix products %.3g to %.3g GFLOP/s, memory %.3g to %.3g GB/s, all at once",
           flops[0] / 1e9, flops[1] / 1e9, bytes[0] / 1e9, bytes[1] / 1e9);
}

/* ---- links ---- */

/* What a link is good for: bandwidth, or the inverse of latency, so that more is better. */
static double goodness(const site_link *link, bool latency) {
  if (!latency) return link->bandwidth;
  return link->latency > 0 ? 1 / link->latency : 0;
}

static void print_goodness(char text[48], double value, bool latency) {
  if (latency)
    snprintf(text, 48, "latency %.3g µs", 1e6 / value);
  else
    snprintf(text, 48, "bandwidth %.3g GB/s", value / 1e9);
}

/* A unit is as good as its best link: a slow one spoils all of its links, and one of each of the others'. slow[] is set
 * for those named. */
static int judge_units(site_report *report, const char (*names)[SITE_NAME_MAX], int units, bool rank_units,
                       const site_link *links, int count, bool latency, bool *slow) {
  double *best = calloc((size_t)units, sizeof *best), others;
  int found = 0;
  if (!best || units < 3) { // a link between two says nothing of either
    free(best);
    return 0;
  }
  for (int i = 0; i < count; i++) {
    const double value = goodness(&links[i], latency);
    if (value > best[links[i].a]) best[links[i].a] = value;
    if (value > best[links[i].b]) best[links[i].b] = value;
  }
  for (int unit = 0; unit < units; unit++) {
    if (!is_slow(best, units, unit, &others)) continue;
    char own[48], median[48];
    print_goodness(own, best[unit], latency);
    print_goodness(median, others, latency);
    slow[unit] = true;
    if (found++ >= NAMED_MOST) continue;
    if (rank_units)
      site_say(report, SITE_WARN, "link", "%s is slow: best %s, the others' median %s; see its binding", names[unit], own, median);
    else
      site_say(report, SITE_FAIL, "link", "%s is slow: best %s, the others' median %s; set --exclude=%s", names[unit], own,
               median, names[unit]);
  }
  free(best);
  return found;
}

/* Single slow links between nodes that are fine. */
static int judge_pairs(site_report *report, const char (*names)[SITE_NAME_MAX], bool rank_units, const site_link *links,
                       int count, bool latency, const bool *slow) {
  double *values = malloc(((size_t)count + 1) * sizeof *values);
  int n = 0, found = 0;
  if (!values) return 0;
  for (int i = 0; i < count; i++)
    if (!slow[links[i].a] && !slow[links[i].b]) values[n++] = goodness(&links[i], latency);
  const double median = site_median(values, n);
  for (int i = 0; i < count && found < NAMED_MOST; i++) {
    const double value = goodness(&links[i], latency);
    if (slow[links[i].a] || slow[links[i].b] || n < 3 || value >= 0.5 * median || value <= 0) continue;
    char own[48], usual[48];
    print_goodness(own, value, latency);
    print_goodness(usual, median, latency);
    site_say(report, SITE_WARN, "link", "%s and %s: %s, the median of links is %s; %s", names[links[i].a],
             names[links[i].b], own, usual,
             rank_units ? "see their binding, and what else runs there" : "set --exclude for one of them, or --switches=1");
    found++;
  }
  free(values);
  return found;
}

void site_judge_links(site_report *report, const char (*names)[SITE_NAME_MAX], int units, bool rank_units,
                      const site_link *links, int count) {
  if (count == 0) {
    site_say(report, SITE_OK, "link", "one rank: none");
    return;
  }
  bool *slow = calloc((size_t)units, sizeof *slow);
  double *values = malloc((size_t)count * sizeof *values);
  if (slow && values) {
    int found = 0;
    for (int latency = 0; latency < 2; latency++)
      found += judge_units(report, names, units, rank_units, links, count, latency, slow);
    for (int latency = 0; latency < 2; latency++) found += judge_pairs(report, names, rank_units, links, count, latency, slow);
    for (int i = 0; i < count; i++) values[i] = links[i].latency;
    const double latency = site_median(values, count);
    for (int i = 0; i < count; i++) values[i] = links[i].bandwidth;
    site_say(report, SITE_OK, "link", "%d link%s between %s, median latency %.3g µs, both ways %.3g GB/s in messages of 4 MiB%s",
             count, count == 1 ? "" : "s", rank_units ? "ranks of one node" : "nodes", 1e6 * latency,
             site_median(values, count) / 1e9, found ? "; the exceptions are above" : "");
  }
  free(values);
  free(slow);
}

/* ---- files ---- */

static void judge_locks(site_report *report, const char *folder, const site_files *files, int count) {
  int works = 0, refused = 0, not_seen = 0;
  for (int i = 0; i < count; i++) {
    const site_lock locks[2] = {files[i].flock, files[i].fcntl};
    for (int k = 0; k < 2; k++) {
      works += locks[k] == SITE_LOCK_WORKS;
      refused += locks[k] == SITE_LOCK_REFUSED;
      not_seen += locks[k] == SITE_LOCK_NOT_SEEN;
    }
  }
  if (refused)
    site_say(report, SITE_WARN, "files",
             "%s: the file system refuses locks (Lustre: mount option flock); a second run in one output folder is then "
             "told by host name and process only; export HDF5_USE_FILE_LOCKING=FALSE for other HDF5 programs",
             folder);
  if (not_seen)
    site_say(report, SITE_WARN, "files",
             "%s: a lock held on one node is not seen on another (Lustre: mount option flock instead of localflock); do "
             "not start two jobs on one output folder",
             folder);
  if (!refused && !not_seen && works) site_say(report, SITE_OK, "files", "flock and fcntl locks work%s", count > 1 ? " across nodes" : "");
}

static void judge_first(site_report *report, const char *folder, const site_files *first) {
  if (!first->hdf5)
    site_say(report, SITE_FAIL, "files", "%s: HDF5 cannot write and read there, even without locks; choose another [run] output", folder);
  else if (!first->hdf5_locked)
    site_say(report, SITE_WARN, "files",
             "%s: HDF5 with file locking fails; export HDF5_USE_FILE_LOCKING=FALSE for h5py and others (spectron-dist does "
             "not lock)",
             folder);
  else
    site_say(report, SITE_OK, "files", "HDF5 writes and reads, with and without file locking");
  if (!first->renames)
    site_say(report, SITE_FAIL, "files", "%s: a file cannot be renamed over another; choose another [run] output", folder);
  else if (first->missed_renames)
    site_say(report, SITE_WARN, "files",
             "%s: while a file was replaced, another rank found none or half of it %d times; read best.h5 and metrics.h5 "
             "from the node that writes them",
             folder, first->missed_renames);
  else
    site_say(report, SITE_OK, "files", "rename takes a file's place at once");
  if (!first->reserves)
    site_say(report, SITE_WARN, "files",
             "%s: posix_fallocate is not supported: a full disk shows in the middle of a save; keep room for [checkpoint] "
             "keep + 2 files",
             folder);
}

static void judge_sync(site_report *report, const char *folder, const site_files *files, int count) {
  double *rates = malloc((size_t)count * sizeof *rates), others;
  if (!rates) return;
  for (int i = 0; i < count; i++) rates[i] = files[i].sync_seconds > 0 ? 1 / files[i].sync_seconds : 0;
  for (int i = 0; i < count; i++) {
    if (!is_slow(rates, count, i, &others)) continue;
    site_say(report, SITE_WARN, "files",
             "%s is slow: %.3g fsync/s in %s, the others' median is %.3g; set --exclude=%s, above all where it is the first node",
             files[i].node, rates[i], folder, others, files[i].node);
  }
  if (files[0].sync_seconds > 1)
    site_say(report, SITE_WARN, "files", "%s: an fsync takes %.2g s; save rarely ([checkpoint] every, every_seconds)", folder,
             files[0].sync_seconds);
  site_say(report, SITE_OK, "files", "%s: %.3g fsync/s, %.3g MB/s written with fsync (by %s), %.4g GB free", folder, rates[0],
           files[0].write_bytes / 1e6, files[0].node, files[0].free_bytes / 1e9);
  free(rates);
}

void site_judge_files(site_report *report, const char *folder, const site_files *files, int count) {
  int apart = 0, broken = 0;
  for (int i = 0; i < count; i++) {
    if (files[i].error[0]) {
      broken++;
      site_say(report, SITE_FAIL, "files", "%s: %s; choose another [run] output", files[i].node, files[i].error);
    }
    if (files[i].sees_first && files[i].first_sees) continue;
    apart++;
    site_say(report, SITE_FAIL, "files",
             "%s is not the same folder on %s and %s; put [run] output and [data] on a file system that all nodes share",
             folder, files[0].node, files[i].node);
  }
  if (files[0].error[0]) return;
  if (!apart && !broken && count > 1) site_say(report, SITE_OK, "files", "the same folder on %d nodes", count);
  judge_first(report, folder, &files[0]);
  judge_locks(report, folder, files, count);
  judge_sync(report, folder, files, count);
}
