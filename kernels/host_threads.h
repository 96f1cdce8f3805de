/* Threads of the host that a backend may use. */
#ifndef SPT_HOST_THREADS_H
#define SPT_HOST_THREADS_H

/* CPUs that this process may run on, over `local_ranks` processes that share them; at least 1. */
int spt_host_share(int local_ranks);
/* `threads`, or where it is 0 the share. */
int spt_host_threads(int threads, int local_ranks);

#endif
