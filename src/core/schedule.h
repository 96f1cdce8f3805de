/* Learning-rate factor of step t = 0…steps−1 (design, "One optimizer step"): w = ⌈warmup·steps⌉ (warmup the exact
 * decimal that was written); (t+1)/w while t < w, then cosine final + (1−final)·½(1 + cos π(t−w)/(steps−w)), linear 1 −
 * (1−final)·(t−w)/(steps−w), or constant 1. */
#ifndef SPT_SCHEDULE_H
#define SPT_SCHEDULE_H

#include "config.h"

double spt_schedule_factor(const spt_schedule_config *schedule, int64_t t);

#endif
