/* A run's output folder: lock, job copy, checkpoints (design "Files"). Rank 0 only. */
#ifndef SPT_RUN_FOLDER_H
#define SPT_RUN_FOLDER_H

#include "checkpoint.h"

typedef struct spt_run_folder spt_run_folder;

/* Creates the folder and checkpoints/, takes the lock (run_lock.h). With resume false a folder that holds checkpoints is SPT_ERR_USAGE, and so are
 * a lock of somebody else's and a checkpoints/ that is a link: nothing is written outside of `output`. What killed saves left half-written
 * (.part) is removed: it would take the space of the next ones. */
spt_status spt_run_folder_open(const char *output, bool resume, spt_run_folder **folder_p);
void spt_run_folder_close(spt_run_folder **folder_p); /* releases the lock */
/* Releases the lock and nothing else, for a process that ends at once. Takes NULL. Async-signal-safe. */
void spt_run_folder_abandon(const spt_run_folder *folder);
/* Before anything is written late in a run: SPT_ERR_USAGE where the lock was removed or replaced and another run has the folder. */
spt_status spt_run_folder_check(spt_run_folder *folder);
/* Writes job.toml, marked as ours in its first line, by temp + rename. One without the mark is SPT_ERR_USAGE. */
spt_status spt_run_folder_write_job(spt_run_folder *folder, const char *text);
/* "<output>/checkpoints/step-00001000.h5" */
void spt_run_folder_checkpoint_path(const spt_run_folder *folder, int64_t step, char path[SPT_PATH_MAX]);
/* Before a file of ours takes the name `path`: what bears it and is no checkpoint of ours is renamed to `kept` ("" where there was nothing). */
spt_status spt_run_folder_make_room(const char *path, char kept[SPT_PATH_MAX]);
/* The newest intact checkpoint, every tensor verified: opens it. Damaged newer ones are skipped and each is named in `warning` (may be NULL). *checkpoint_p = NULL and
 * SPT_OK when there is no checkpoint file at all; files but none intact is SPT_ERR_DATA. */
spt_status spt_run_folder_newest(const spt_run_folder *folder, spt_checkpoint **checkpoint_p, char *warning, size_t warning_size);
/* Before a save, while none is under way: removes what failed ones could not, so that there are never two half-written files. */
void spt_run_folder_remove_parts(const spt_run_folder *folder);
/* After a durable save: makes sure that the lock is still ours (else SPT_ERR_USAGE, and nothing is touched); best.h5 becomes a hard link (else a copy) to `path` by temp + rename when `best`; then removes step files beyond the `keep` newest and stale .part files;
 * none is removed where best.h5 fails, whose state may be in one of them. */
spt_status spt_run_folder_after_save(spt_run_folder *folder, const char *path, bool best, int64_t keep);
/* After a resume: where best.h5 is missing or of another loss than `best` (a run that ended between a save and its link), it becomes a
 * link to the earliest intact step file whose header has that loss: the save that the new best forced. NAN: nothing to do. */
spt_status spt_run_folder_repair_best(spt_run_folder *folder, double best);

/* Paths of the newest checkpoint (by name, not opened) and of the best one, "" where there is none. Takes no lock: for tools that look at a run. */
spt_status spt_run_folder_find(const char *output, char newest[SPT_PATH_MAX], char best[SPT_PATH_MAX]);

#endif
