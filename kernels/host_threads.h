/* Threads of the host that a backend may use. */
#ifndef SPT_HOST_THREADS_H
#define SPT_HOST_THREADS_H

/* CPUs that this process may run on, over `local_ranks` processes that share them; at least 1. */
int spt_host_share(int local_ranks);
/* `threads`, or where it is 0 the share. */
int spt_host_threads(int threads, int local_ranks);
/* From now on this thread, those of a team of `threads`, and all that they start take subnormal numbers for zero and make none, as GPUs do in their fast
 * modes. CPUs compute with them many times slower, and a model that dies (vanishing gradients, second moments squared from them) is full of
 * them. Does nothing where neither x86 nor 64-bit Arm. */
void spt_host_flush_subnormals(int threads);

#endif
