/* What a replay needs of a run's folder: tool_replay_find.c reads it, tool_replay.c starts the trainer. */
#ifndef SPT_TOOL_REPLAY_H
#define SPT_TOOL_REPLAY_H

#include "io/metrics.h"

typedef struct replay_plan {
  const char *run;
  int64_t step;
  int64_t from;                  /* completed steps that the replay begins with; in: −1, or the one wanted */
  char checkpoint[SPT_PATH_MAX]; /* of step `from`; "": from the start */
  spt_metric_record *recorded;   /* of steps from + 1 to `step`, ascending; those of the post-mortem where there is one */
  int64_t count;
  char *job; /* the job's text; malloc'ed */
  bool post_mortem;
  char backend[16];                   /* of the post-mortem; "": as the job says */
  const char *reduction, *precision; /* of the records; NULL: as the job says */
  int64_t ranks, micro, threads;
} replay_plan;

/* Fills what lies behind `from`. SPT_ERR_USAGE: this step cannot be replayed, and what to do; SPT_ERR_DATA: damaged files. The caller frees
 * with replay_plan_fini, also after a failure. */
spt_status replay_plan_find(replay_plan *plan);
void replay_plan_fini(replay_plan *plan);

#endif
