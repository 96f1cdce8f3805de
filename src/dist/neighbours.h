/* The ranks of one node see in shared memory where each other's main thread is, so that those that outlive a rank (a crash, the kernel's
 * out-of-memory killer, kill -9) can say which it was and where. The launcher ends them within two seconds, before any heartbeat counts as missed. */
#ifndef SPT_NEIGHBOURS_H
#define SPT_NEIGHBOURS_H

#include "watchdog.h"

typedef struct spt_neighbours spt_neighbours;

/* Moves *here_p into the shared memory. *neighbours_p is NULL, and nothing is shared, for a rank alone on its node, and where ranks do not see
 * each other's processes (containers of their own) or MPI gives no shared memory. Collective; never fails. */
void spt_neighbours_open(spt_comm *comm, spt_whereabouts **here_p, spt_neighbours **neighbours_p);
/* This process ends by its own will: the others blame nobody for it. The communicator's abort says so too. Takes NULL. Async-signal-safe. */
void spt_neighbours_leave(spt_neighbours *neighbours);
/* A rank of this node whose process is gone and has not taken leave; -1: none, or another rank has been told already. *here_p: where it was.
 * Takes NULL. Async-signal-safe. */
int spt_neighbours_lost(spt_neighbours *neighbours, const spt_whereabouts **here_p);
/* Moves *here_p to `own`. Takes NULL. Collective. */
void spt_neighbours_close(spt_comm *comm, spt_neighbours **neighbours_p, spt_whereabouts **here_p, spt_whereabouts *own);

#endif
