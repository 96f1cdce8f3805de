#include "schedule.h"

#include "decimal.h"

#include <math.h>

double spt_schedule_factor(const spt_schedule_config *schedule, int64_t t) {
  const double steps = (double)schedule->steps;
  const double warmup = (double)spt_decimal_product(schedule->warmup, schedule->steps, true);
  if ((double)t < warmup) return ((double)t + 1) / warmup;
  const double progress = ((double)t - warmup) / (steps - warmup); // in [0, 1): t < steps
  switch (schedule->kind) {
  case SPT_SCHEDULE_COSINE:
    return schedule->final + (1 - schedule->final) * 0.5 * (1 + cos(3.141592653589793 * progress));
  case SPT_SCHEDULE_LINEAR: return 1 - (1 - schedule->final) * progress;
  case SPT_SCHEDULE_CONSTANT: break;
  }
  return 1;
}
