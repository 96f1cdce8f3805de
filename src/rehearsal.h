/* A rehearsal: a job shrunk in width is started on as many ranks as the real one, saves, is killed, and resumes.
 * rehearsal_shrink.c makes the small job, rehearsal_processes.c starts and ends processes (also a replay's), rehearsal.c is the
 * rehearsal itself; tool_rehearse.c is its command line. Local: the ranks are processes below this one. */
#ifndef SPT_REHEARSAL_H
#define SPT_REHEARSAL_H

#include "job_cost.h"

#include <signal.h>
#include <sys/types.h>

enum { REHEARSAL_STEPS = 20, REHEARSAL_SAVE_EVERY = 5 };

/* ---- the small job ---- */

/* Writes into *small_p the job as it is rehearsed: ranks, layers, heads, rank ratio, method, reduction and what else
 * decides who owns and sends what stay; widths, vocabulary, sequence and batch shrink, with about as many buckets as
 * can be had. `full` is complete and divides over full_cost->ranks. Its files lie in `folder`. */
spt_status rehearsal_shrink(const spt_config *full, const job_cost *full_cost, const char *folder, spt_config *small_p);
/* The job file and token shards of random ids, in `folder`: <folder>/job.toml, data-*.h5. */
spt_status rehearsal_write_files(const spt_config *small, int ranks, const char *folder);

/* ---- processes ---- */

/* The trainer, beside this program. SPT_ERR_RESOURCE: there is none. */
spt_status rehearsal_find_trainer(char path[SPT_PATH_MAX]);
/* A new temporary folder for `tool`, below $TMPDIR or /tmp; and its removal with all that is in it. */
spt_status rehearsal_make_folder(const char *tool, char path[SPT_PATH_MAX]);
void rehearsal_remove_folder(const char *path);
/* The absolute path of a folder, with room for the names of the rehearsal's files. */
spt_status rehearsal_whole_path(const char *folder, char path[SPT_PATH_MAX]);
/* INT, TERM and HUP set rehearsal_interrupted from now on; until all is cleared away and they are obeyed: then this process ends by
 * the one that came, or goes on and hears none. */
void rehearsal_hear_interrupts(void);
void rehearsal_obey_interrupts(void);

extern volatile sig_atomic_t rehearsal_interrupted; /* whoever waits then ends its processes and returns SPT_STOPPED */

/* How ranks are started here: $MPIEXEC, else mpirun. */
typedef struct rehearsal_launcher {
  const char *program;
  bool open_mpi;
} rehearsal_launcher;

/* Takes this process's orphaned descendants as its own children from now on, so that none escapes, and sets what ranks
 * that share few processors want in the environment. SPT_ERR_RESOURCE: no launcher, with the remedy. */
spt_status rehearsal_launcher_find(const char *folder, rehearsal_launcher *launcher_p);
/* Starts `trainer` with `arguments` (NULL at the end) on `ranks` ranks, in a process group of their own; what they
 * print goes to the end of `log`. */
spt_status rehearsal_launch(const rehearsal_launcher *launcher, int ranks, const char *trainer,
                            const char *const *arguments, const char *log, pid_t *pid_p);
/* True when the launcher has ended; *code_p receives its exit code, 128 + N for signal N. */
bool rehearsal_ended(pid_t pid, int *code_p);
/* The trainer's own code where it gave one of the table, else SPT_ERR_RESOURCE. */
spt_status rehearsal_status_of(int code);
/* ": " and the last line of a log that is a message of the trainer's; "" if none. */
enum { REHEARSAL_WORDS = 512 };
void rehearsal_last_words(const char *log, char words[REHEARSAL_WORDS]);
/* SIGKILL to every descendant of this process, until none is left; returns how many were found. */
int rehearsal_kill_all(void);

/* ---- the rehearsal ---- */

typedef struct rehearsal {
  const char *trainer, *folder;
  int ranks;
  bool guided;     /* the job is self-guided: where guidance ends hangs on the steps, which then stay; the resumed run is stopped with USR1 */
  double patience; /* seconds without a new step, or after a save was due, before it has failed */
  rehearsal_launcher launcher;
  /* results */
  int64_t killed_after, saved, end; /* steps */
  int64_t repeated;                 /* steps done twice, with the same losses */
  int end_code;                     /* of the resumed run: 0, guided SPT_STOPPED */
  int64_t checkpoint_bytes;         /* size of the file of step `end` */
  double seconds_per_step;          /* median, of the resumed run */
} rehearsal;

/* Starts, waits for a save and two steps more, kills, resumes, checks: the resumed run begins with the step after the
 * newest checkpoint, has every step once, repeats the losses bit for bit, exits as it should and leaves an intact last
 * checkpoint. A failure has the trainer's code where it gave one, and words what failed. No process is left. */
spt_status rehearsal_run(rehearsal *r);

#endif
