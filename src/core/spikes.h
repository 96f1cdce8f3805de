/* Loss spikes. A step's loss is judged by its modified z-score (Iglewicz and Hoaglin 1993)
 *     z = (loss − median) / (1.4826·MAD)
 * over the window: the last 128 finite losses that were recorded before it (llm.c's outlier detector looks at as many).
 * Median and median absolute deviation stand where others have mean and standard deviation (llm.c; OLMo 2's spike score,
 * arXiv:2501.00656, counts losses 7 of them from a rolling average), so that the first losses of a spike do not hide the
 * next. A loss that falls steadily lies below its window's median and gives z < 0.
 *
 * The window is of recorded losses only, so that it can be rebuilt from the records; every step is judged. Local. */
#ifndef SPT_SPIKES_H
#define SPT_SPIKES_H

#include <stdbool.h>
#include <stdint.h>

enum { SPT_SPIKE_WINDOW = 128, SPT_SPIKE_LEAST = 32 /* losses before any is judged */ };

typedef struct spt_spikes {
  double losses[SPT_SPIKE_WINDOW]; /* the newest overwrites the oldest */
  int64_t seen;                    /* finite losses added so far */
  int64_t count;                   /* spikes so far: runs of consecutive steps at or above the threshold */
  bool inside;                     /* the last judged step was at or above it */
} spt_spikes;

/* Zeroed, a spt_spikes has seen nothing. */

/* z of a loss; NAN where it is not finite, or fewer than SPT_SPIKE_LEAST are in the window. A window of equal losses
 * counts as one with a deviation of 1e-6 of its median. */
double spt_spikes_z(const spt_spikes *spikes, double loss);
/* Judges a step by its z; threshold > 0. True when a spike begins with it. NAN leaves all as it is. */
bool spt_spikes_judge(spt_spikes *spikes, double z, double threshold);
/* Adds a recorded loss to the window; one that is not finite is left out. */
void spt_spikes_add(spt_spikes *spikes, double loss);

#endif
