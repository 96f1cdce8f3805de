/* The lock of a run's folder: a file that names its holder (host, process, Slurm job), kept locked with flock while the run
 * lasts. Many network file systems keep such locks within one host, or have none: there the file itself is the lock, made
 * with O_EXCL. Rank 0 only; all calls Local. */
#ifndef SPT_RUN_LOCK_H
#define SPT_RUN_LOCK_H

#include "core/status.h"

typedef struct spt_run_lock spt_run_lock;

/* Takes the lock `path`, a file in a folder that exists. What a dead process of this host, an earlier start of this Slurm job, or a Slurm job that
 * has ended has left is taken over: the environment's SPECTRON_SLURM_JOBS, where jobs/slurm.sh has put it, lists this user's jobs
 * of the cluster that wait or run; one of theirs with a smaller number than this job's that is not among them has ended.
 * SPT_ERR_USAGE names the holder and the remedy; SPT_ERR_RESOURCE: it cannot be written. */
spt_status spt_run_lock_take(const char *path, spt_run_lock **lock_p);
/* Whether the folder is still ours. A lock file that was removed is made again; SPT_ERR_USAGE names the run that has taken
 * the folder meanwhile. */
spt_status spt_run_lock_check(spt_run_lock *lock);
/* Removes the file where it is still ours. */
void spt_run_lock_release(spt_run_lock **lock_p);
/* The same and nothing else, for a process that ends at once. Takes NULL. Async-signal-safe. */
void spt_run_lock_abandon(const spt_run_lock *lock);

#endif
