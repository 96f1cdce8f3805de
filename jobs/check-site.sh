#!/bin/bash
# A minute inside an allocation before the first real job: which launcher works, binding and threads, GPUs, speed, links
# between nodes, the output file system. Names the slow node and the setting to change. With the job's own shape:
#
#     sbatch --nodes=8 --ntasks-per-node=2 --cpus-per-task=32 jobs/check-site.sh /scratch/me/runs
#     salloc --nodes=2 --ntasks-per-node=2 --cpus-per-task=8 bash jobs/check-site.sh /scratch/me/runs
#     bash jobs/check-site.sh runs                # without Slurm: RANKS=2 ranks of this machine, by mpirun
#
# One finding a line, on standard output and in check-site-JOBID.txt. FAIL: a job would fail, or run at less than half its
# speed; WARN: it would run, with a drawback. Exit codes: 0 no FAIL; 5 a FAIL; 2 bad usage.

# ---- settings: what to ask Slurm for ----
#SBATCH --job-name=check-site
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --time=0:10:00
#SBATCH --output=%x-%j.log
# ---- settings: what to check ----
SPECTRON=${SPECTRON:-}          # the checkout (where this script lies, or sbatch was called), built in build-release
LAUNCHER=${LAUNCHER:-auto}      # srun, mpirun or auto: the one that jobs will use
BACKEND=${BACKEND:-auto}        # cuda: every rank must have a GPU of its own
RANKS=${RANKS:-2}               # without Slurm
# ---- end of settings ----

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # called as `sh check-site.sh`
fail_usage() { echo "check-site.sh: $*" >&2; exit 2; }
case $RANKS in '' | *[!0-9]* | 0*) fail_usage "RANKS=$RANKS: wants a whole number from 1" ;; esac
case ${1:-} in -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
[ $# -le 1 ] || fail_usage "wants at most one folder: that of [run] output"
if [ -z "$SPECTRON" ]; then # a batch script is a copy elsewhere
    SPECTRON=$(cd "$(dirname "$0")/.." && pwd)
    [ -f "$SPECTRON/jobs/slurm.sh" ] || SPECTRON=${SLURM_SUBMIT_DIR:-$PWD}
fi
[ -f "$SPECTRON/jobs/slurm.sh" ] || fail_usage "$SPECTRON: no checkout; set SPECTRON"
case $LAUNCHER in srun | mpirun | auto) ;; *) fail_usage "LAUNCHER=$LAUNCHER: wants srun, mpirun or auto" ;; esac
CHECK_SITE=${CHECK_SITE:-$SPECTRON/build-release/src/spectron-check-site}
[ -x "$CHECK_SITE" ] || fail_usage "$CHECK_SITE: no program; build it (README), or set SPECTRON or CHECK_SITE"
folder=${1:-${SPECTRON_OUTPUT:-$PWD}}
mkdir -p "$folder" && folder=$(cd "$folder" && pwd) || fail_usage "$folder: no such folder, and it cannot be made"
tag=${SLURM_JOB_ID:-local}-$$
work=$(mktemp -d) || fail_usage "no temporary folder; set TMPDIR"
trap 'rm -rf "$work" "$folder/.spectron-check-site-$tag"' EXIT
trap 'exit 130' INT TERM HUP

say() { printf '%-4s %-9s %s\n' "$1" "$2" "$3" | tee -a "$work/findings"; }

# starts WHAT COMMAND...: the command runs within half a minute; what it printed is in $work/hello
starts() {
    what=$1 status=0
    shift
    timeout -k 5 30 "$@" >"$work/hello" 2>"$work/error" </dev/null || status=$?
    if [ $status = 0 ]; then
        say OK launcher "$what: $(tail -n 1 "$work/hello")"
        return 0
    fi
    [ $status != 124 ] || echo "no end within 30 s" >>"$work/error"
    why=$(grep -m 1 '^spectron-check-site: ' "$work/error" || grep -m 1 'error: ' "$work/error" || grep -m 1 '[a-z]' "$work/error" || echo "exit code $status")
    [ -z "${CHECK_SITE_DEBUG:-}" ] || cat "$work/error" >&2
    return 1
}

check() {
    . "$SPECTRON/jobs/slurm.sh"
    options=
    [ -z "${SLURM_JOB_ID:-}" ] || options="--slurm --threads ${SLURM_CPUS_PER_TASK:-1}"
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || options="$options --cpus-per-task $SLURM_CPUS_PER_TASK"
    case $BACKEND:${SLURM_GPUS_PER_NODE:-}${SLURM_GPUS:-}${SLURM_GPUS_ON_NODE:-} in
    cuda:* | auto:?*) gpus=--gpus ;;
    *) gpus= ;;
    esac

    if [ -z "${SLURM_JOB_ID:-}" ]; then
        wanted=mpirun other= ranks=$RANKS nodes=1
        mpirun_words="mpirun --oversubscribe --bind-to none -np $ranks"
        mpirun_one="mpirun --bind-to none -np 1"
    else
        nodes=${SLURM_JOB_NUM_NODES:-${SLURM_NNODES:-1}}
        SLURM_NTASKS=${SLURM_NTASKS:-$((nodes * ${SLURM_NTASKS_PER_NODE:-1}))}
        ranks=$SLURM_NTASKS
        export SLURM_GPU_BIND=none # as jobs/gpu-nodes.sbatch
        srun_words=$(LAUNCHER=srun spectron_launcher)
        srun_one="srun --mpi=pmix --nodes=$nodes --ntasks=$nodes --ntasks-per-node=1 --cpus-per-task=${SLURM_CPUS_PER_TASK:-1} --kill-on-bad-exit=1"
        mpirun_words=$(LAUNCHER=mpirun spectron_launcher)
        mpirun_one="mpirun -np $nodes --map-by ppr:1:node"
        wanted=$LAUNCHER other=mpirun
        if [ "$wanted" = auto ]; then
            wanted=srun
            if ! srun --mpi=list 2>&1 | grep -qw pmix; then
                wanted=mpirun
                say WARN launcher "Slurm has no PMIx (srun --mpi=list): jobs start by mpirun; LAUNCHER=mpirun says so"
            fi
        fi
        [ "$wanted" = srun ] || other=srun
    fi

    # both are tried, so that the report names the one that works
    works= refused=
    for launcher in $wanted $other; do
        # the one that jobs will not use need not be there
        [ "$launcher" = "$wanted" ] || [ "$launcher" = mpirun ] || srun --mpi=list 2>&1 | grep -qw pmix || continue
        at_once=
        [ "$launcher" != srun ] || at_once=--kill-on-bad-exit=1 # a rank that crashes ends the trial at once
        one=${launcher}_one words=${launcher}_words
        # shellcheck disable=SC2086 # lists of words
        if starts "$launcher, a rank a node" ${!one} "$CHECK_SITE" --hello "$nodes" &&
            starts "$launcher, all ranks" ${!words} ${at_once} "$CHECK_SITE" --hello "$ranks"; then
            works=${works:-$launcher}
        elif [ "$launcher" = "$wanted" ]; then
            refused="$what does not work: $why"
        else
            say WARN launcher "$what does not work: $why; keep LAUNCHER=$wanted"
        fi
    done
    if [ -n "$refused" ]; then
        [ -n "$works" ] || works_not="load the MPI that the program was built with (ldd $CHECK_SITE)"
        say FAIL launcher "$refused; ${works_not:-set LAUNCHER=$works}"
    fi
    [ -n "$works" ] || return

    words=${works}_words
    # shellcheck disable=SC2086
    timeout -k 5 "${CHECK_SITE_SECONDS:-180}" ${!words} "$CHECK_SITE" $options $gpus --folder "$folder" --tag "$tag" 2>"$work/error" </dev/null | tee -a "$work/findings"
    status=${PIPESTATUS[0]}
    [ "$status" = 0 ] || say FAIL measuring "ended with exit code $status: $(grep -m 1 '^spectron-check-site: ' "$work/error" || tail -n 1 "$work/error"); with 124 a rank, link or file system hangs: the last line above says how far it came"
}

report=check-site-${SLURM_JOB_ID:-local}.txt
[ ! -f /dev/stdout ] || report=/dev/null # a batch job's log is the report
[ "$report" = /dev/null ] || rm -f "$report" # a link there is not followed
: >"$work/findings"
{
    echo "spectron check-site, $(date '+%F %T'): ${SLURM_JOB_NODELIST:-$(hostname)}, folder $folder"
    check
    touch "$work/finished"
    fails=$(grep -c '^FAIL' "$work/findings" || :) warns=$(grep -c '^WARN' "$work/findings" || :)
    echo "$fails FAIL, $warns WARN"
} | tee "$report"
if [ ! -f "$work/finished" ]; then
    echo "check-site.sh: did not come to its end; nothing is said of this site" >&2
    exit 5
fi
if grep -q '^FAIL' "$work/findings"; then exit 5; fi
