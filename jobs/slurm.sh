# slurm.sh: what a job of ours does inside its allocation: start the trainer on every task, pass USR1 on, resume, requeue.
# Sourced by the *.sbatch templates, which hold the settings:
#
#   SPECTRON   the checkout (default: the folder sbatch was called in)
#   TRAINER    the program (default $SPECTRON/build-release/src/spectron-dist)
#   LAUNCHER   srun, mpirun, or auto: srun where Slurm has PMIx, else mpirun
#   BACKEND    cpu, cuda or auto
#   SETTLE     seconds after the launcher's start in which a USR1 waits, until the ranks can hear it (10)
#
# spectron_run JOB [OPTION]...: runs the trainer with --resume and ends the script with its exit code. On 75 (stopped by
# USR1 after saving everything) the job is put back into the queue, unless it was submitted with --no-requeue or
# `scontrol update jobid=… requeue=0` has said since that it shall not be.

SPECTRON=${SPECTRON:-$SLURM_SUBMIT_DIR}
TRAINER=${TRAINER:-$SPECTRON/build-release/src/spectron-dist}
LAUNCHER=${LAUNCHER:-auto}
BACKEND=${BACKEND:-auto}
SETTLE=${SETTLE:-10}

spectron_say() { echo "[$(date '+%F %T')] job $SLURM_JOB_ID: $*"; }

# The launcher as words, one task a rank. srun 22.05 and later no longer take --cpus-per-task from sbatch.
spectron_launcher() {
    if [ "$LAUNCHER" = auto ]; then
        LAUNCHER=mpirun
        if srun --mpi=list 2>&1 | grep -qw pmix; then LAUNCHER=srun; fi
    fi
    case $LAUNCHER in
    # a rank that is gone ends the others after a minute, not at once: they may be about to leave with 75
    srun) echo "srun --mpi=pmix --cpus-per-task=${SLURM_CPUS_PER_TASK:-1} --kill-on-bad-exit=0 --wait=60" ;;
    mpirun) echo "mpirun -np $SLURM_NTASKS --map-by slot:PE=${SLURM_CPUS_PER_TASK:-1}" ;;
    *) echo "slurm.sh: LAUNCHER=$LAUNCHER: wants srun, mpirun or auto" >&2; return 2 ;;
    esac
}

# The numbers of this user's jobs that wait or run, for the lock of the run's folder: one that another job has left and that is not among them is
# taken over. None where there are more than an environment can hold.
spectron_jobs() (
    for spectron_name in $(env | sed -n 's/^\(SQUEUE_[A-Z0-9_]*\)=.*/\1/p'); do unset "$spectron_name"; done # a user's filters
    spectron_list=$(squeue --all --noheader --user="$(id -un)" --format=%A 2>/dev/null) || exit 0
    [ ${#spectron_list} -gt 100000 ] || echo "$spectron_list" | tr '\n' ' '
)

# USR1 to the launcher, which passes it on; not before the ranks can hear it.
spectron_pass_on() {
    spectron_signalled=yes
    spectron_age=$(($(date +%s) - spectron_began))
    [ $spectron_age -ge "$SETTLE" ] || sleep $((SETTLE - spectron_age))
    kill -USR1 $spectron_pid 2>/dev/null
}

spectron_run() {
    if [ $# -lt 1 ] || [ ! -f "$1" ]; then
        echo "usage: sbatch TEMPLATE JOB.toml [OPTION]...${1:+ ($1: no such file)}" >&2
        exit 2
    fi
    if [ ! -x "$TRAINER" ]; then
        echo "slurm.sh: $TRAINER: no program; build it (README), or set SPECTRON or TRAINER at the top of the template" >&2
        exit 2
    fi
    spectron_job=$1
    shift
    spectron_early=no
    trap 'spectron_early=yes' USR1 # before the launcher is there
    spectron_command=$(spectron_launcher) || exit 2
    SPECTRON_SLURM_JOBS=$(spectron_jobs)
    export SPECTRON_SLURM_JOBS
    spectron_say "start $((${SLURM_RESTART_COUNT:-0} + 1)) on $SLURM_JOB_NODELIST, $SLURM_NTASKS ranks by ${spectron_command%% *}"

    # In the background, so that the shell can hear USR1 meanwhile. A signal ends `wait` early; it is called again until
    # the launcher itself has ended. 127 then: it had ended already, and its status is known.
    # shellcheck disable=SC2086
    $spectron_command "$TRAINER" --resume --backend "$BACKEND" --threads "${SLURM_CPUS_PER_TASK:-1}" "$@" "$spectron_job" &
    spectron_pid=$!
    spectron_began=$(date +%s)
    trap spectron_pass_on USR1
    [ $spectron_early = no ] || spectron_pass_on
    spectron_status=
    while :; do
        spectron_signalled=no spectron_now=0
        wait "$spectron_pid" || spectron_now=$?
        if [ $spectron_now != 127 ] || [ -z "$spectron_status" ]; then spectron_status=$spectron_now; fi
        [ $spectron_signalled = yes ] || break
    done
    trap '' USR1

    case $spectron_status in
    0) spectron_say "done" ;;
    75)
        # of an array this task alone: one task's job number is that of the whole array
        spectron_task=$SLURM_JOB_ID
        [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || spectron_task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
        if scontrol requeue "$spectron_task"; then
            spectron_say "stopped after saving everything, back in the queue"
            sleep 60 # until Slurm ends this start
        else
            spectron_say "stopped after saving everything; not requeued: submit it again to go on"
        fi
        ;;
    126 | 127) spectron_say "failed with exit code $spectron_status: the launcher, the program or one of its libraries is not there" ;;
    *) spectron_say "failed with exit code $spectron_status (README, exit codes)" ;;
    esac
    exit $spectron_status
}
