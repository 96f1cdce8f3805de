#include "spikes.h"

#include <math.h>
#include <stdlib.h>

#define MAD_TO_DEVIATION 1.4826 /* 1/Φ⁻¹(3/4): of a normal distribution */
#define LEAST_DEVIATION 1e-6    /* of the median */

static int ascending(const void *left, const void *right) {
  const double a = *(const double *)left, b = *(const double *)right;
  return (a > b) - (a < b);
}

/* Sorts the values. */
static double median(double *values, int count) {
  qsort(values, (size_t)count, sizeof *values, ascending);
  return count % 2 ? values[count / 2] : 0.5 * values[count / 2 - 1] + 0.5 * values[count / 2];
}

double spt_spikes_z(const spt_spikes *spikes, double loss) {
  const int count = spikes->seen < SPT_SPIKE_WINDOW ? (int)spikes->seen : SPT_SPIKE_WINDOW;
  double values[SPT_SPIKE_WINDOW];
  if (!isfinite(loss) || count < SPT_SPIKE_LEAST) return NAN;
  for (int i = 0; i < count; i++) values[i] = spikes->losses[i];
  const double middle = median(values, count);
  for (int i = 0; i < count; i++) values[i] = fabs(values[i] - middle);
  const double deviation = fmax(MAD_TO_DEVIATION * median(values, count), LEAST_DEVIATION * fabs(middle));
  if (deviation == 0) return loss > middle ? INFINITY : 0; // all are 0
  return (loss - middle) / deviation;
}

bool spt_spikes_judge(spt_spikes *spikes, double z, double threshold) {
  if (isnan(z)) return false;
  const bool before = spikes->inside;
  spikes->inside = z >= threshold;
  if (!spikes->inside || before) return false;
  spikes->count++;
  return true;
}

void spt_spikes_add(spt_spikes *spikes, double loss) {
  if (isfinite(loss)) spikes->losses[spikes->seen++ % SPT_SPIKE_WINDOW] = loss;
}
