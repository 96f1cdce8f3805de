/* Facts of links and file systems into findings. A node, rank or link is slow when it reaches less than half of the
 * median of the others. */
#include "check_site.h"

#include <stdarg.h>
#include <stdlib.h>

enum { NAMED_MOST = 8 }; /* of one kind of finding */

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

bool site_is_slow(const double *values, int count, int one, double *others_p) {
  *others_p = median_of_others(values, count, one);
  return values[one] > 0 && values[one] < 0.5 * *others_p;
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
    if (!site_is_slow(best, units, unit, &others)) continue;
    char own[48], median[48];
    print_goodness(own, best[unit], latency);
    print_goodness(median, others, latency);
    slow[unit] = true;
    if (found++ >= NAMED_MOST) continue;
    if (rank_units)
      site_say(report, SITE_WARN, "link", "%s is slow: best %s, the others' median %s; see its binding", names[unit],
               own, median);
    else
      site_say(report, SITE_FAIL, "link", "%s is slow: best %s, the others' median %s; set --exclude=%s", names[unit],
               own, median, names[unit]);
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
             rank_units ? "see their binding, and what else runs there"
                        : "set --exclude for one of them, or --switches=1");
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
    for (int latency = 0; latency < 2; latency++)
      found += judge_pairs(report, names, rank_units, links, count, latency, slow);
    for (int i = 0; i < count; i++) values[i] = links[i].latency;
    const double latency = site_median(values, count);
    for (int i = 0; i < count; i++) values[i] = links[i].bandwidth;
    site_say(report, SITE_OK, "link",
             "%d link%s between %s, median latency %.3g µs, both ways %.3g GB/s in messages of 4 MiB%s", count,
             count == 1 ? "" : "s", rank_units ? "ranks of one node" : "nodes", 1e6 * latency,
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
    site_say(
        report, SITE_WARN, "files",
        "%s: the file system refuses locks (Lustre: mount option flock); a second run in one output folder is then "
        "told by host name and process only; export HDF5_USE_FILE_LOCKING=FALSE for other HDF5 programs",
        folder);
  if (not_seen)
    site_say(
        report, SITE_WARN, "files",
        "%s: a lock held on one node is not seen on another (Lustre: mount option flock instead of localflock); do "
        "not start two jobs on one output folder",
        folder);
  if (!refused && !not_seen && works)
    site_say(report, SITE_OK, "files", "flock and fcntl locks work%s", count > 1 ? " across nodes" : "");
}

static void judge_first(site_report *report, const char *folder, const site_files *first) {
  if (!first->hdf5)
    site_say(report, SITE_FAIL, "files",
             "%s: HDF5 cannot write and read there, even without locks; choose another [run] output", folder);
  else if (!first->hdf5_locked)
    site_say(
        report, SITE_WARN, "files",
        "%s: HDF5 with file locking fails; export HDF5_USE_FILE_LOCKING=FALSE for h5py and others (spectron-dist does "
        "not lock)",
        folder);
  else
    site_say(report, SITE_OK, "files", "HDF5 writes and reads, with and without file locking");
  if (!first->renames)
    site_say(report, SITE_FAIL, "files", "%s: a file cannot be renamed over another; choose another [run] output",
             folder);
  else if (first->missed_renames)
    site_say(
        report, SITE_WARN, "files",
        "%s: while a file was replaced, another rank found none or half of it %d times; read best.h5 and metrics.h5 "
        "from the node that writes them",
        folder, first->missed_renames);
  else
    site_say(report, SITE_OK, "files", "rename takes a file's place at once");
  if (!first->reserves)
    site_say(
        report, SITE_WARN, "files",
        "%s: posix_fallocate is not supported: a full disk shows in the middle of a save; keep room for [checkpoint] "
        "keep + 2 files",
        folder);
}

static void judge_sync(site_report *report, const char *folder, const site_files *files, int count) {
  double *rates = malloc((size_t)count * sizeof *rates), others;
  if (!rates) return;
  for (int i = 0; i < count; i++) rates[i] = files[i].sync_seconds > 0 ? 1 / files[i].sync_seconds : 0;
  for (int i = 0; i < count; i++) {
    if (!site_is_slow(rates, count, i, &others)) continue;
    site_say(report, SITE_WARN, "files",
             "%s is slow: %.3g fsync/s in %s, the others' median is %.3g; set --exclude=%s, above all where it is the "
             "first node",
             files[i].node, rates[i], folder, others, files[i].node);
  }
  if (files[0].sync_seconds > 1)
    site_say(report, SITE_WARN, "files", "%s: an fsync takes %.2g s; save rarely ([checkpoint] every, every_seconds)",
             folder, files[0].sync_seconds);
  site_say(report, SITE_OK, "files", "%s: %.3g fsync/s, %.3g MB/s written with fsync (by %s), %.4g GB free", folder,
           rates[0], files[0].write_bytes / 1e6, files[0].node, files[0].free_bytes / 1e9);
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
    site_say(
        report, SITE_FAIL, "files",
        "%s is not the same folder on %s and %s; put [run] output and [data] on a file system that all nodes share",
        folder, files[0].node, files[i].node);
  }
  if (files[0].error[0]) return;
  if (!apart && !broken && count > 1) site_say(report, SITE_OK, "files", "the same folder on %d nodes", count);
  judge_first(report, folder, &files[0]);
  judge_locks(report, folder, files, count);
  judge_sync(report, folder, files, count);
}
