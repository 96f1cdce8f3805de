#!/bin/sh
# jobs/slurm.sh without a Slurm, where its timing can be had: a USR1 before the launcher is there is passed on once it is; a task of an array
# requeues itself by its own name; a launcher or a program that is not there, and one that fails, is told as a failure. A fake srun plays the ranks.
set -eu
source=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/spt-slurm-signal.XXXXXX")
batch=
trap '[ -z "$batch" ] || kill "$batch" 2>/dev/null || :; rm -rf "$work"' EXIT
cd "$work"
mkdir bin
fail() { echo "FAIL: $*" >&2; cat log >&2; exit 1; }
cat >bin/srun <<'END'
#!/bin/sh
case "$*" in
*--mpi=list*) echo pmix; [ -z "${RANKS:-}" ] || exit 0; kill -USR1 "$(cat batch.pid)" ;; # before anything is started
*) [ -z "${RANKS:-}" ] || exit "$RANKS"
   echo "jobs: $SPECTRON_SLURM_JOBS"
   trap 'echo "the ranks save"; exit 75' USR1
   n=0; while [ $n -lt 600 ]; do sleep 0.1; n=$((n + 1)); done; exit 1 ;;
esac
END
printf '#!/bin/sh\necho "$@" >>scontrol.log\n' >bin/scontrol
cat >bin/squeue <<'END'
#!/bin/sh
[ "$*" = "--all --noheader --user=$(id -un) --format=%A" ] && [ -z "${SQUEUE_STATES:-}" ] || exit 1
[ -z "${MANY:-}" ] || exec seq 100000 120000
printf '7\n9\n11\n'
END
chmod +x bin/*
: >job.toml
cat >batch.sh <<END
echo \$\$ >batch.pid
. "$source/jobs/slurm.sh"
spectron_run job.toml
END
export SPECTRON="$source" TRAINER=/bin/true SETTLE=2 SLURM_JOB_ID=9 SLURM_NTASKS=1 SLURM_JOB_NODELIST=n1 SLURM_SUBMIT_DIR="$work"
env PATH="$work/bin:$PATH" LAUNCHER=auto SQUEUE_STATES=PENDING SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=3 bash batch.sh >log 2>&1 &
batch=$!
n=0
until [ -s scontrol.log ]; do
    kill -0 $batch 2>/dev/null || fail "the script has ended without a requeue"
    n=$((n + 1)); [ $n -lt 600 ] || fail "no requeue"
    sleep 0.1
done
grep -q 'the ranks save' log || fail "the ranks heard no USR1"
[ "$(cat scontrol.log)" = "requeue 7_3" ] || fail "scontrol $(cat scontrol.log) instead of requeue 7_3"
grep -q '^jobs: 7 9 11 $' log || fail "the ranks are not told which jobs there are"

# ends CODE WORDS VARIABLE=VALUE...: without a signal
ends() {
    code=$1 words=$2 status=0
    shift 2
    env "$@" bash batch.sh >log 2>&1 || status=$?
    [ $status = "$code" ] || fail "exit $status instead of $code: $*"
    grep -q "$words" log || fail "no '$words': $*"
}
mkdir empty
for tool in bash sh date grep tr cat sleep env sed id; do ln -s "$(command -v $tool)" empty/$tool; done
ends 127 'failed with exit code 127' PATH="$work/empty" LAUNCHER=mpirun # no mpirun
ends 127 'failed with exit code 127' PATH="$work/bin:$PATH" LAUNCHER=srun RANKS=127 # a library that is not there, on the nodes
ends 5 'failed with exit code 5' PATH="$work/bin:$PATH" LAUNCHER=srun RANKS=5
ends 0 ': done$' PATH="$work/bin:$PATH" LAUNCHER=srun RANKS=0
ends 0 ': done$' PATH="$work/bin:$PATH" LAUNCHER=srun RANKS=0 MANY=1 # more jobs than an environment can hold
echo "slurm.sh: an early USR1 arrives, a task requeues itself alone"
