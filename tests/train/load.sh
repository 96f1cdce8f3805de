#!/bin/sh
# Many more ranks than cores, with saves in the background, validation and audits on: the losses are those of one rank, each step stands once in
# metrics.jsonl, every save is intact, no process and no temporary file is left. SPT_LOAD_RANKS (16) and SPT_LOAD_STEPS (16): the nightly
# script takes 64 and 200.
. "$(dirname "$0")/lib.sh"
launcher=
trap '[ -z "$launcher" ] || kill "$launcher" 2>/dev/null || :; rm -rf "$work"' EXIT
many=${SPT_LOAD_RANKS:-16} steps=${SPT_LOAD_STEPS:-16}
case $((steps % 4)) in 0) ;; *) fail "SPT_LOAD_STEPS must be a multiple of 4" ;; esac
make_data
make_job job.toml run
mkdir session segments
# Where the launcher and its ranks keep their temporary files: here, so that what is left can be seen.
export OMPI_MCA_orte_tmpdir_base="$work/session" PRTE_MCA_prte_tmpdir_base="$work/session" TMPDIR="$work/session"
export OMPI_MCA_btl_vader_backing_directory="$work/segments"
set -- --set batch.sequences="$many" --set batch.micro=1 --set schedule.steps="$steps" --set optimizer.adamw.eps=1e-6 --set validation.every=4 \
    --set checkpoint.every=4 --set checkpoint.keep=100 --set dist.audit_every=3
mpi 1 "$@" --set run.output=run-1 job.toml >log 2>&1 || { cat log; fail "one rank"; }

note "$many ranks, $steps steps"
began=$(date +%s)
# not by the function: the launcher's own process
sh "$mpi_run" "$many" "$trainer" --threads 1 "$@" --set dist.startup_timeout_seconds=1800 job.toml >log 2>&1 &
launcher=$!
wait_limit=18000
wait_records run $((steps / 2))
pids=$(pgrep -P $launcher -f spectron-dist) || fail "no ranks"
[ "$(echo "$pids" | wc -l)" = "$many" ] || fail "not $many ranks"
memory() { # of the ranks, in KiB: the largest peak, the sum of what each has for itself
    for pid in $pids; do
        cat "/proc/$pid/status" "/proc/$pid/smaps_rollup"
    done 2>/dev/null | awk '$1 == "VmHWM:" && $2 > peak { peak = $2 } $1 == "Pss:" { sum += $2; n++ }
        END { if (n) printf "memory per rank: peak %.1f MiB, %.1f MiB of it its own on average\n", peak / 1024, sum / n / 1024 }'
}
memory=$(memory)
status=0; wait $launcher || status=$?
[ $status = 0 ] || { cat log; fail "exit $status"; }
note "$(($(date +%s) - began)) s; $memory"

note "losses, parameters, saves"
[ "$(losses run | awk '{ print $1 }' | sort -n | uniq | wc -l)" = "$steps" ] && [ "$(wc -l <run/metrics.jsonl)" = "$steps" ] || fail "not each step once in metrics.jsonl"
same_losses run-1 run 2e-5
step=4 saves=0
while [ $step -le "$steps" ]; do
    file=$(printf 'checkpoints/step-%08d.h5' $step)
    "$spectron" inspect "run/$file" >inspect.log 2>&1 && grep -q verified inspect.log || { cat inspect.log; fail "$file is not intact"; }
    [ $step -gt 16 ] || "$compare" "run-1/$file" "run/$file" 1e-3 || fail "$file is not that of one rank"
    step=$((step + 4)) saves=$((saves + 1))
done
[ "$(ls run/checkpoints | grep -c '^step-')" = $saves ] || fail "there are other saves: $(ls run/checkpoints)"
[ "$(grep -c '"validation_loss"' run/metrics.jsonl)" = $((steps / 4)) ] || fail "not $((steps / 4)) validations"
note "$saves saves intact"

for pid in $pids; do
    n=0
    while kill -0 "$pid" 2>/dev/null; do n=$((n + 1)); [ $n -lt 50 ] || fail "process $pid is left"; sleep 0.1; done
done
left=$(find run session segments \( -name '*.part' -o -name '*.raw' -o -name lock -o -path 'segments/*' -o -path 'session/*' \) ! -type d)
[ -z "$left" ] || fail "files are left: $left"
[ "$(ls run | tr '\n' ' ')" = "checkpoints job.toml metrics.h5 metrics.jsonl " ] || fail "the run's folder holds $(ls run)"
