#!/bin/sh
# The templates of jobs/ under a real Slurm of three virtual nodes: finish, time limit, USR1, scancel, preemption, a dead
# node, a job array. A resumed run must go on at exactly the saved step and end as an undisturbed one, bit for bit.
. "$(dirname "$0")/../train/lib.sh"
. "$source/tests/slurm/sandbox.sh"
trap 'sandbox_down; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

export SPECTRON="$source" TRAINER="$trainer" BACKEND=cpu SETTLE=1
began=$(date +%s)
step() { echo "-- [$(($(date +%s) - began)) s] $*"; }

chmod 755 "$work" # munge wants a socket that all can reach
make_data
make_job job.toml unused
steps=1000
sandbox_up slurm 3 4 2
sandbox_patient_srun
step "Slurm is up: $(sinfo -h -o '%D nodes of %c CPUs, %G' | sort -u | head -n 1)"

# submit NAME TEMPLATE OPTION... -- SETTING...: a job of four one-thread ranks on two nodes unless the options say otherwise; prints its number
submit() {
    name=$1 template=$2
    shift 2
    options="--parsable --job-name=$name --output=$work/$name.log --cpus-per-task=1"
    while [ "$1" != -- ]; do options="$options $1"; shift; done
    shift
    # shellcheck disable=SC2086
    sbatch $options "$source/jobs/$template" job.toml --set run.output="run-$name" --set schedule.steps=$steps --set checkpoint.every=50 \
        --set validation.every=0 "$@"
}
four="--nodes=2 --ntasks-per-node=2"
# field JOB NAME: of scontrol's account of a job
field() { scontrol show job "$1" 2>/dev/null | tr ' ' '\n' | sed -n "s/^$2=//p" | head -n 1; }
is() { [ "$(field "$1" "$2")" = "$3" ]; }
ends() { # JOB STATE CODE NAME
    sandbox_wait 400 "the end of $4" has_ended "$1" || { cat "$4.log"; squeue; fail "$4 did not end"; }
    is "$1" JobState "$2" && is "$1" ExitCode "$3:0" ||
        { cat "$4.log"; fail "$4: state $(field "$1" JobState), exit code $(field "$1" ExitCode) instead of $2 $3:0"; }
}
has_ended() { case $(field "$1" JobState) in COMPLETED | FAILED | CANCELLED | TIMEOUT | NODE_FAIL | PREEMPTED) return 0 ;; esac; return 1; }
records() { cat "run-$1/metrics.jsonl" 2>/dev/null | wc -l; }
has_records() { [ "$(records "$1")" -ge "$2" ]; }
runs() { # NAME RECORDS
    sandbox_wait 120 "$2 steps of $1" has_records "$1" "$2" || { cat "$1.log"; squeue; fail "$1 does not run"; }
}
saved() { ls "run-$1/checkpoints" | sed -n 's/^step-0*\([0-9]*\)\.h5$/\1/p' | tail -n 1; }
# went_on NAME STARTS: each step once; every start but the first resumed at the step at which the one before it was saved
went_on() {
    [ "$(losses "run-$1" | awk '{ print $1 }' | sort -n | uniq | wc -l)" = $steps ] && [ "$(records "$1")" = $steps ] ||
        fail "$1: not each of $steps steps once in metrics.jsonl"
    [ "$(grep -c ': start [0-9]* on ' "$1.log")" = "$2" ] || { cat "$1.log"; fail "$1: not $2 starts"; }
    [ "$(grep -c '^resumed at step ' "$1.log")" = $(($2 - 1)) ] || { cat "$1.log"; fail "$1: not $(($2 - 1)) resumes"; }
}
resumed_where_saved() { # NAME: of the log's saves, the last before each resume is of the step resumed at
    awk '/^saved .*step-[0-9]*\.h5/ { match($0, /step-[0-9]+/); at = substr($0, RSTART + 5, RLENGTH - 5) + 0 }
         /^resumed at step / { n++; if ($4 + 0 != at) { print "saved at " at ", resumed at " $4; exit 1 } }
         END { exit n < 1 }' "$1.log" || { cat "$1.log"; fail "$1 did not resume at the saved step"; }
}
as_whole() { # NAME [UNDISTURBED]: the parameters and state of the undisturbed run
    "$compare" "run-${2:-whole}/$last" "run-$1/$last" 0 || fail "$1 ended differently from an undisturbed run"
    same_losses "run-${2:-whole}" "run-$1" 0
}
last=$(printf 'checkpoints/step-%08d.h5' $steps)

step "an undisturbed run"
# shellcheck disable=SC2086
job=$(submit whole cpu-nodes.sbatch $four --)
ends "$job" COMPLETED 0 whole
went_on whole 1
grep -q 'ranks by srun' whole.log || { cat whole.log; fail "not started by srun"; }
grep -q '^4 ranks' whole.log || { cat whole.log; fail "not on 4 ranks"; }
step "whole: $(grep -o '[0-9]* steps in [0-9.]* s' whole.log)"

step "USR1 to the script: saved, 75, requeued, resumed; and once more, under mpirun"
# shellcheck disable=SC2086
job=$(submit usr1 cpu-nodes.sbatch $four --)
runs usr1 100
scancel --batch --signal=USR1 "$job"
sandbox_wait 60 "a resume" grep -q '^resumed at step ' usr1.log || { cat usr1.log; fail "no resume"; }
# shellcheck disable=SC2086
other=$(LAUNCHER=mpirun submit mpirun cpu-nodes.sbatch $four --)
runs mpirun 100
scancel --batch --signal=USR1 "$other" # at once: it may end before the resumed one does
ends "$job" COMPLETED 0 usr1
went_on usr1 2
resumed_where_saved usr1
as_whole usr1
ends "$other" COMPLETED 0 mpirun
went_on mpirun 2
resumed_where_saved mpirun
as_whole mpirun

step "USR1 to the ranks, twice, requeueing forbidden: saved, ended with 75; submitted again, it goes on"
# shellcheck disable=SC2086
job=$(submit stop cpu-nodes.sbatch $four --)
runs stop 60
scontrol update jobid="$job" requeue=0
scancel --signal=USR1 "$job"
scancel --signal=USR1 "$job" 2>/dev/null || :
ends "$job" FAILED 75 stop
[ "$(saved stop)" = "$(records stop)" ] || fail "saved step $(saved stop), made $(records stop)"
# shellcheck disable=SC2086
job=$(submit stop cpu-nodes.sbatch $four --)
ends "$job" COMPLETED 0 stop
went_on stop 2
resumed_where_saved stop
as_whole stop

step "plain scancel: the newest checkpoint is intact"
# shellcheck disable=SC2086
job=$(submit cancel cpu-nodes.sbatch $four --)
runs cancel 60
scancel "$job"
sandbox_wait 30 "the end" has_ended "$job"
newest=$(saved cancel)
"$spectron" inspect "run-cancel/checkpoints/step-$(printf %08d "$newest").h5" >inspect.log || { cat inspect.log; fail "the newest checkpoint is not intact"; }
# shellcheck disable=SC2086
job=$(submit cancel cpu-nodes.sbatch $four --)
ends "$job" COMPLETED 0 cancel
went_on cancel 2
grep -q "^resumed at step $newest " cancel.log || { cat cancel.log; fail "cancel did not resume at step $newest, its newest checkpoint"; }
as_whole cancel

step "a rank is killed: named with its step and phase; submitted again, the run goes on"
# shellcheck disable=SC2086
job=$(submit killed cpu-nodes.sbatch $four --)
runs killed 60
for process in $(pgrep -f 'spectron-dist .*run-killed'); do
    case $(readlink "/proc/$process/exe") in *spectron-dist) ;; *) continue ;; esac
    if { tr '\0' '\n' <"/proc/$process/environ"; } 2>/dev/null | grep -qx SLURM_PROCID=2; then kill -KILL "$process" && break; fi
done
ends "$job" FAILED 137 killed
[ "$(grep -c '^spectron-dist: rank [0-9]* died' killed.log)" -ge 1 ] && grep -m 1 '^spectron-dist: rank [0-9]* died' killed.log | grep -q 'rank 2 died after step [1-9][0-9]*, in [a-z]' ||
    { cat killed.log; fail "the killed rank is not named first"; }
newest=$(saved killed)
# shellcheck disable=SC2086
job=$(submit killed cpu-nodes.sbatch $four --)
ends "$job" COMPLETED 0 killed
went_on killed 2
grep -q "^resumed at step $newest " killed.log || { cat killed.log; fail "killed did not resume at step $newest, its newest checkpoint"; }
as_whole killed

step "preempted by an urgent job: saved first, requeued, resumed"
# shellcheck disable=SC2086
job=$(submit preempted preemptible.sbatch $four --)
runs preempted 60
urgent=$(sbatch --parsable --partition=urgent --nodes=3 --exclusive --output=urgent.log --wrap 'sleep 1')
ends "$urgent" COMPLETED 0 urgent
ends "$job" COMPLETED 0 preempted
went_on preempted 2
resumed_where_saved preempted
as_whole preempted

# A minute of work at the rate of now, beside what follows: Slurm looks at its time limits twice a minute.
mpi 1 --set run.output=run-rate --set schedule.steps=500 --set checkpoint.every=0 --set validation.every=0 job.toml >log 2>&1 || { cat log; fail "measuring the rate"; }
limit_steps=$(sed -n 's/^500 steps in .* s, \([0-9.]*\) s of it steps.*/\1/p' log | awk '{ printf "%d", 500 / $1 * 60 }')
step "the time limit: USR1 before it, requeued until the run of $limit_steps steps is done"
all=$steps steps=$limit_steps
limit=$(submit limit cpu-one-node.sbatch --nodes=1 --ntasks-per-node=1 --nodelist=n1 --time=1 --signal=B:USR1@50 -- --set checkpoint.every=0)
steps=$all

step "a node dies: Slurm requeues, the run resumes on the others"
# shellcheck disable=SC2086
job=$(submit dead cpu-nodes.sbatch $four --)
runs dead 60
node=$(scontrol show hostnames "$(field "$job" NodeList)" | tail -n 1) # not the first one, where the other job runs
sandbox_node_dies "$node"
ends "$job" COMPLETED 0 dead
went_on dead 2
# a save that was on disk, but not yet told of, may be newer than the last in the log
awk '/^saved .*step-[0-9]*\.h5/ { match($0, /step-[0-9]+/); at = substr($0, RSTART + 5, RLENGTH - 5) + 0 }
     /^resumed at step / { found = 1; if ($4 % 50 != 0 || $4 < at || $4 > at + 50) { print "saved at " at ", resumed at " $4; exit 1 } }
     END { exit !found }' dead.log || { cat dead.log; fail "dead did not resume at its newest checkpoint"; }
as_whole dead

step "a job array, a run a line"
printf 'run.output=run-sweep-1 optimizer.lr=0.01\nrun.output=run-sweep-2 optimizer.lr=0.03\noptimizer.lr=0.1\n' >variants
cp job.toml sweep.toml
sed -i 's/^steps = .*/steps = 30/' sweep.toml
job=$(sbatch --parsable --array=1-3 --cpus-per-task=1 --output="$work/sweep-%a.log" "$source/jobs/sweep.sbatch" sweep.toml variants)
for i in 1 2; do
    ends "${job}_$i" COMPLETED 0 sweep-$i
    [ "$(records sweep-$i)" = 30 ] || fail "sweep-$i made $(records sweep-$i) steps"
done
ends "${job}_3" FAILED 2 sweep-3
grep -q 'line 3: wants run.output' sweep-3.log || { cat sweep-3.log; fail "a line without an output folder"; }

step "USR1 to one task of an array: it alone is requeued, also the one whose job number is the whole array's"
printf 'run.output=run-task-1\nrun.output=run-task-2\n' >variants
sed "s/^steps = .*/steps = 3000/; s/^every = 10/every = 0/" job.toml >array.toml
job=$(sbatch --parsable --array=1-2 --cpus-per-task=1 --output="$work/task-%a.log" "$source/jobs/sweep.sbatch" array.toml variants)
runs task-1 60
runs task-2 60
one=1 other=2
[ "$(field "${job}_2" JobId)" != "$job" ] || one=2 other=1
is "${job}_$one" JobId "$job" || fail "no task has the array's own number"
scancel --batch --signal=USR1 "${job}_$one"
for i in 1 2; do ends "${job}_$i" COMPLETED 0 task-$i; done
[ "$(grep -c ': start [0-9]* on ' task-$one.log)" = 2 ] || { cat task-$one.log; fail "the task was not requeued once"; }
[ "$(grep -c ': start [0-9]* on ' task-$other.log)" = 1 ] || { cat task-$other.log; fail "another task was requeued with it"; }
resumed_where_saved task-$one

step "GPUs asked for, one a rank; a forgotten job file; no program"
job=$(BACKEND=cpu submit gpus gpu-nodes.sbatch --nodes=2 --ntasks-per-node=2 --gpus-per-node=2 -- --set schedule.steps=20)
ends "$job" COMPLETED 0 gpus
job=$(sbatch --parsable --nodes=1 --ntasks-per-node=1 --cpus-per-task=1 --output="$work/none.log" "$source/jobs/cpu-one-node.sbatch" no-such.toml)
ends "$job" FAILED 2 none
grep -q 'no-such.toml: no such file' none.log || { cat none.log; fail "a missing job file"; }
job=$(TRAINER=$work/nothing sbatch --parsable --nodes=1 --ntasks-per-node=1 --cpus-per-task=1 --output="$work/none.log" "$source/jobs/cpu-one-node.sbatch" job.toml)
ends "$job" FAILED 2 none
grep -q 'nothing: no program' none.log || { cat none.log; fail "a missing program"; }

step "the end of the run that meets its time limit, and meanwhile one of as many steps undisturbed"
steps=$limit_steps
mpi 1 --set run.output=run-unlimited --set schedule.steps="$steps" --set checkpoint.every=0 --set validation.every=0 job.toml >log 2>&1 || { cat log; fail "the undisturbed run"; }
ends "$limit" COMPLETED 0 limit
starts=$(grep -c ': start [0-9]* on ' limit.log)
[ "$starts" -ge 2 ] || { cat limit.log; fail "the time limit was not felt"; }
went_on limit "$starts"
resumed_where_saved limit
last=$(printf 'checkpoints/step-%08d.h5' "$steps")
as_whole limit unlimited
step "limit: $starts starts"
