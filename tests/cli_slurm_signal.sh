#!/bin/sh
# jobs/slurm.sh without a Slurm, where its timing can be had: a USR1 before the launcher is there is passed on once it is; a task of an array
# requeues itself by its own name. A fake srun plays the ranks.
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
*--mpi=list*) echo pmix; kill -USR1 "$(cat batch.pid)" ;; # before anything is started
*) trap 'echo "the ranks save"; exit 75' USR1
   n=0; while [ $n -lt 600 ]; do sleep 0.1; n=$((n + 1)); done; exit 1 ;;
esac
END
printf '#!/bin/sh\necho "$@" >>scontrol.log\n' >bin/scontrol
chmod +x bin/*
: >job.toml
cat >batch.sh <<END
echo \$\$ >batch.pid
. "$source/jobs/slurm.sh"
spectron_run job.toml
END
env PATH="$work/bin:$PATH" SPECTRON="$source" TRAINER=/bin/true LAUNCHER=auto SLURM_JOB_ID=9 SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=3 \
    SLURM_NTASKS=1 SLURM_JOB_NODELIST=n1 SLURM_SUBMIT_DIR="$work" bash batch.sh >log 2>&1 &
batch=$!
n=0
until [ -s scontrol.log ]; do
    kill -0 $batch 2>/dev/null || fail "the script has ended without a requeue"
    n=$((n + 1)); [ $n -lt 600 ] || fail "no requeue"
    sleep 0.1
done
grep -q 'the ranks save' log || fail "the ranks heard no USR1"
[ "$(cat scontrol.log)" = "requeue 7_3" ] || fail "scontrol $(cat scontrol.log) instead of requeue 7_3"
echo "slurm.sh: an early USR1 arrives, a task requeues itself alone"
