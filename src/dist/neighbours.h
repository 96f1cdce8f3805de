/* The ranks of one node see in shared memory where each other's main thread is, so that those that outlive a rank (a crash, the kernel's
 * out-of-memory killer, kill -9) can say which it was and where: mpirun ends them within two seconds, srun at once, before any heartbeat counts as
 * missed. */
#ifndef SPT_NEIGHBOURS_H
#define SPT_NEIGHBOURS_H

#include "watchdog.h"

typedef struct spt_neighbours spt_neighbours;

/* Moves *here_p into the shared memory. *neighbours_p is NULL, and nothing is shared, for a rank alone on its node, and where ranks do not see
 * each other's processes (containers of their own) or MPI gives no shared memory. Collective; never fails. */
void spt_neighbours_open(spt_comm *comm, spt_whereabouts **here_p, spt_neighbours **neighbours_p);
/* This process ends by its own will: the others blame nobody for it. Takes NULL. Async-signal-safe. */
void spt_neighbours_leave(spt_neighbours *neighbours);
/* The same, and it ends the whole job: nobody of the node is to be blamed. Takes NULL. Async-signal-safe. */
void spt_neighbours_hush(spt_neighbours *neighbours);
/* A rank of this node whose process is gone and has not taken leave, the first of the node; -1: none, or this or another rank has
 * been told already. *here_p: where it was.
 * Takes NULL. Async-signal-safe. */
int spt_neighbours_lost(spt_neighbours *neighbours, const spt_whereabouts **here_p);
/* Sleeps for `seconds`, or until a process of this node ends that has not taken leave: its rank, *here_p and -1 as above.
 * Linux 5.3; before, and with NULL, it only sleeps. Local. */
int spt_neighbours_await(spt_neighbours *neighbours, double seconds, const spt_whereabouts **here_p);
/* The line that says that a rank has died, and where. Async-signal-safe. */
void spt_neighbours_tell(int rank, const spt_whereabouts *here);
/* Moves *here_p to `own`. Takes NULL. Collective. */
void spt_neighbours_close(spt_neighbours **neighbours_p, spt_whereabouts **here_p, spt_whereabouts *own);

#endif
