#include "simgpu.h"

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace simgpu {

static void report() {
  const char *rank = getenv("OMPI_COMM_WORLD_RANK");
  if (!rank) rank = getenv("PMI_RANK");
  const std::string path = std::string(getenv("SIMGPU_REPORT")) + "." + (rank ? rank : "0");
  FILE *file = fopen(path.c_str(), "w");
  if (!file) fault("SIMGPU_REPORT: cannot write %s", path.c_str());
  const struct {
    const char *name;
    int64_t value;
  } rows[] = {{"launches", counted.launches},
              {"products", counted.products},
              {"unaligned_products", counted.unaligned_products},
              {"synchronizations", counted.synchronizations},
              {"event_waits", counted.event_waits},
              {"copies", counted.copies},
              {"copied_bytes", counted.copied_bytes},
              {"collectives", counted.collectives},
              {"collective_bytes", counted.collective_bytes}};
  for (const auto &row : rows) fprintf(file, "%s %" PRId64 "\n", row.name, row.value);
  if (fclose(file) != 0) fault("SIMGPU_REPORT: cannot write %s", path.c_str());
}

void report_at_exit() {
  if (getenv("SIMGPU_REPORT")) atexit(report);
}

} // namespace simgpu
