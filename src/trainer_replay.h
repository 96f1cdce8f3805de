/* What trainer_replay.c has seen of a step, for trainer_replay_report.c. */
#ifndef SPT_TRAINER_REPLAY_H
#define SPT_TRAINER_REPLAY_H

#include "trainer.h"

/* What one op of a pass wrote: number i of a pass is entry i of the list, on every rank and in every pass. Summed over the passes and ranks;
 * a parameter's gradient is that after the last pass. */
typedef struct replay_entry {
  char name[SPT_NAME_MAX + 32];
  spt_seen seen;
  bool again; /* recomputed: told of before */
  double values, non_finite, squares, largest; /* squares, largest |value|: of the finite ones */
} replay_entry;

typedef struct replay_list {
  replay_entry *entries;
  int count, capacity;
  /* this rank's first op with values that are not finite; place −1: none. The same on every rank after replay_collect. */
  int first_pass, first_place, first_rank;
} replay_list;

/* A parameter tensor's values. */
typedef struct replay_parameter {
  double non_finite, largest;
} replay_parameter;

struct trainer_replay {
  trainer *t; /* not owned */
  spt_observer observer;
  replay_list before, now; /* of steps K − 1 (empty where the replay begins with K) and K */
  replay_list *list;       /* that is filled; NULL: none */
  int pass, place;
  bool backward; /* this pass has come to its backward */
  float *host;   /* on devices: a downloaded piece */
  replay_parameter *parameters, *updated; /* [tensor_count] before and after step K */
};

/* Rank 0: what was found in step K, lines that begin with "replay: ". */
void replay_print(const trainer_replay *replay, const trainer_step *step);

#endif
