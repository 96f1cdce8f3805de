#include "check_site.h"

#include "core/backend.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The lowest CPU of the core that `cpu` belongs to, which names the core; the CPU itself where the kernel does not say.
 */
static int core_of(int cpu) {
  char path[128];
  int first = cpu;
  snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
  FILE *file = fopen(path, "r");
  if (file) {
    if (fscanf(file, "%d", &first) != 1) first = cpu;
    fclose(file);
  }
  return first;
}

static void look_at_cpus(site_rank *rank) {
  static unsigned char seen[SITE_CPUS_MAX];
  memset(rank->cpus, 0, sizeof rank->cpus);
  // the kernel's mask is an array of longs, as this one is on 64-bit machines
  if (sched_getaffinity(0, sizeof rank->cpus, (cpu_set_t *)rank->cpus) != 0) return;
  for (int cpu = 0; cpu < SITE_CPUS_MAX; cpu++) {
    if (!(rank->cpus[cpu / 64] >> (cpu % 64) & 1)) continue;
    rank->cpu_count++;
    const int core = core_of(cpu);
    if (core < 0 || core >= SITE_CPUS_MAX || seen[core]) continue;
    seen[core] = 1;
    rank->core_count++;
  }
}

/* UUIDs of the node's GPUs in their order, by nvidia-smi -L; 0 where there is no such program. */
static int list_gpus(char uuids[SITE_GPUS_MAX][SITE_GPU_NAME_MAX]) {
  FILE *list = popen("nvidia-smi -L 2>/dev/null", "r");
  char line[512];
  int count = 0;
  while (list && fgets(line, sizeof line, list)) {
    const char *uuid = strstr(line, "UUID: ");
    if (strncmp(line, "GPU ", 4) != 0 || !uuid || count == SITE_GPUS_MAX) continue;
    uuid += 6;
    snprintf(uuids[count++], SITE_GPU_NAME_MAX, "%.*s", (int)strcspn(uuid, ") \n"), uuid);
  }
  return list && pclose(list) == 0 ? count : 0;
}

static void look_at_gpus(site_rank *rank) {
  char uuids[SITE_GPUS_MAX][SITE_GPU_NAME_MAX];
  const int known = list_gpus(uuids);
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  if (!visible) {
    rank->gpu_count = known;
    memcpy(rank->gpus, uuids, (size_t)known * sizeof *uuids);
    return;
  }
  while (*visible && rank->gpu_count < SITE_GPUS_MAX) {
    const int length = (int)strcspn(visible, ",");
    char *end;
    const long number = strtol(visible, &end, 10);
    const bool is_number = end == visible + length && length > 0;
    if (is_number && number < 0) break; // CUDA stops there too
    char *name = rank->gpus[rank->gpu_count++];
    if (is_number && number < known)
      snprintf(name, SITE_GPU_NAME_MAX, "%s", uuids[number]);
    else
      snprintf(name, SITE_GPU_NAME_MAX, "%.*s", length, visible);
    visible += length;
    if (*visible == ',') visible++;
  }
}

void site_rank_look(const site_wish *wish, site_rank *rank_p) {
  memset(rank_p, 0, sizeof *rank_p); // padding too: it is sent as bytes
  const char *node = getenv("SLURMD_NODENAME");
  if (node && *node)
    snprintf(rank_p->node, sizeof rank_p->node, "%s", node);
  else if (gethostname(rank_p->node, sizeof rank_p->node - 1) != 0)
    snprintf(rank_p->node, sizeof rank_p->node, "unknown");
  rank_p->threads = wish->threads;
  look_at_cpus(rank_p);
  look_at_gpus(rank_p);
}

spt_status site_rank_measure(site_rank *rank) {
  spt_backend *backend = NULL;
  SPT_TRY(spt_backend_open(SPT_BACKEND_CPU, SPT_PRECISION_AUTO, rank->threads, 1, &backend));
  backend->profiling = true; // memory too
  SPT_TRY(site_quiet_barrier());
  const spt_status status = spt_backend_measure_peak(backend);
  rank->flops = backend->peak_flops;
  rank->bytes = backend->peak_bytes;
  backend->ops->close(&backend);
  return status;
}
