#!/bin/sh
# The whole job, launcher and ranks, is killed at random instants, many of them inside a save, and resumed each time: the first step executed is
# the one after the newest intact checkpoint, metrics.jsonl holds each step once, there are never two half-written files, and in the end parameters and
# optimizer state are those of the undisturbed run, bit for bit.
#   SPT_CAMPAIGN_KILLS (20)  SPT_CAMPAIGN_RANKS (2)  SPT_CAMPAIGN_STEPS (40: most steps between a resume and its kill)  SPT_TEST_SEED
. "$(dirname "$0")/lib.sh"
kills=${SPT_CAMPAIGN_KILLS:-20} ranks=${SPT_CAMPAIGN_RANKS:-2} most=${SPT_CAMPAIGN_STEPS:-40}
seed=${SPT_TEST_SEED:-$(date +%s)}
echo "campaign: SPT_TEST_SEED=$seed, $kills kills, $ranks ranks"
draw() { seed=$(((seed * 1103515245 + 12345) % 2147483648)); drawn=$((seed / 65536 % $1)); }
now() { date +%s%N; }
make_data
make_job job.toml run
# A save every 8 to 15 steps, another interval in each life, is under way for about half of the time, for each of its writes waits. The schedule does
# not depend on where the run ends.
cat >settings <<END
--set checkpoint.keep=3 --set validation.every=36 --set schedule.kind="constant" --set schedule.warmup=0
END
settings=$(cat settings)
slow="pwrite:${SPT_CAMPAIGN_WRITE:-1000}:.h5.part"

session=
# members: processes of the job's session that live
members() { ps -o pid=,stat= -s "$session" 2>/dev/null | awk '$2 !~ /^Z/ { print $1 }'; }
end_all() {
    # shellcheck disable=SC2046
    kill -KILL $(members) 2>/dev/null || true
    n=0
    while [ -n "$(members)" ]; do
        n=$((n + 1)); [ $n -lt 3000 ] || fail "processes of the killed job are left"
        sleep 0.02
    done
    session=
}
trap '[ -z "$session" ] || kill -KILL $(members) 2>/dev/null || :; rm -rf "$work"' EXIT

start() {
    draw 8
    every=$((8 + drawn))
    : >log
    # shellcheck disable=SC2086
    SPT_FAULTS=$slow setsid sh "$mpi_run" "$ranks" env LD_PRELOAD="$build/tests/libspt_fail_disk.so${LD_PRELOAD:+:$LD_PRELOAD}" "$trainer" --threads 1 --resume $settings \
        --set checkpoint.every=$every --set schedule.steps=1000000 job.toml >>log 2>&1 &
    session=$! # setsid runs in a child of this shell that leads no group, so it does not fork
    n=0
    while [ -z "$(members)" ]; do
        n=$((n + 1)); [ $n -lt 3000 ] || fail "the job does not start"
        sleep 0.02
    done
}
# newest: step of the newest checkpoint that `spectron inspect` calls intact, 0 if none
newest() {
    for file in $(ls -r run/checkpoints/step-*.h5 2>/dev/null); do
        if "$spectron" inspect "$file" >/dev/null 2>&1; then
            echo "$file" | sed 's/.*step-0*\([0-9]*\)\.h5/\1/'
            return
        fi
        echo "damaged after a kill: $file" >&2
    done
    echo 0
}
parts() { find run/checkpoints -name '*.part' 2>/dev/null | wc -l; }
recorded() { if [ -f run/metrics.jsonl ]; then wc -l <run/metrics.jsonl; else echo 0; fi; }
# each_once: the number of records, which must be those of the steps 1, 2, …; a line torn by the kill is none
each_once() { head -n "$(recorded)" run/metrics.jsonl | sed -E 's/.*"step": *([0-9]+).*/\1/' | awk '$1 != NR { exit 1 } END { print NR }'; }

killed=0 inside=0 idle=0 executed=0 lived=0 before=0
while [ $killed -lt "$kills" ]; do
    began=$(now)
    start
    # where to strike: by time alone from the start on (1 of 4), or some records after the resume and some milliseconds later
    draw 4
    if [ $drawn = 0 ]; then
        draw 1500; after=0 wait=$drawn
    else
        draw "$most"; after=$((drawn + 1))
        draw 120; wait=$drawn
    fi
    n=0
    while [ $after -gt 0 ] && { ! grep -q '^step [0-9]*/' log || [ "$(recorded)" -lt $((before + after)) ]; }; do
        n=$((n + 1)); [ $n -lt 3000 ] || { cat log; fail "the job does not come to step $((before + after))"; }
        [ "$(parts)" -le 1 ] || fail "two half-written files: $(ls run/checkpoints)"
        [ -n "$(members)" ] || { cat log; fail "the job has left"; }
        sleep 0.02
    done
    sleep "$(printf '0.%03d' $((wait % 1000)))"
    [ $wait -lt 1000 ] || sleep 1
    end_all
    lived=$((lived + ($(now) - began) / 1000000))
    killed=$((killed + 1))

    # what it did: the log says from where it went on, the records what it executed
    if grep -q '^step [0-9]*/' log; then
        first=$(sed -n 's/^step \([0-9]*\)\/.*/\1/p' log | head -n 1)
        [ "$first" = $((before + 1)) ] || { cat log; fail "kill $killed: the first executed step is $first, the newest intact checkpoint was of step $before"; }
        [ $before = 0 ] || grep -q "^resumed at step $before " log || { cat log; fail "kill $killed: not resumed at step $before"; }
        last=$(each_once) || fail "kill $killed: metrics.jsonl does not hold each step once"
        [ "$last" -ge "$before" ] || fail "kill $killed: metrics.jsonl ends at step $last, before the checkpoint of step $before"
        executed=$((executed + last - before))
        [ "$(parts)" -le 1 ] || fail "kill $killed: two half-written files: $(ls run/checkpoints)"
        if [ "$(parts)" = 1 ]; then inside=$((inside + 1)); fi
    else
        idle=$((idle + 1))
    fi
    next=$(newest)
    [ "$next" -ge "$before" ] || fail "kill $killed: the newest intact checkpoint went back from step $before to $next"
    before=$next
done
[ "$before" -gt 0 ] || fail "no save survived"
[ $inside -ge $((kills / 10)) ] || fail "only $inside of $kills kills were inside a save"

until=$((before + 7))
# shellcheck disable=SC2086
mpi "$ranks" --resume $settings --set schedule.steps=$until job.toml >log 2>&1 || { cat log; fail "the last life"; }
grep -q "^resumed at step $before " log || { cat log; fail "the last life is not resumed at step $before"; }
executed=$((executed + until - before))
[ -z "$(find run -name '*.part')" ] || fail "left: $(find run -name '*.part')"
began=$(now)
# shellcheck disable=SC2086
mpi "$ranks" $settings --set run.output=run-whole --set schedule.steps=$until job.toml >log 2>&1 || { cat log; fail "the undisturbed run"; }
whole=$((($(now) - began) / 1000000))
file=$(printf 'checkpoints/step-%08d.h5' $until)
"$compare" run-whole/"$file" run/"$file" 0
same_losses run-whole run 0
"$compare" run-whole/checkpoints/best.h5 run/checkpoints/best.h5 0
[ "$(each_once)" = $until ] || fail "metrics.jsonl does not hold each of $until steps once"

awk -v kills=$killed -v inside=$inside -v idle=$idle -v steps=$until -v executed=$executed -v whole=$whole -v lived=$lived 'BEGIN {
    printf "%d kills survived, %d of them inside a save, %d before the first step\n", kills, inside, idle
    printf "%d steps, %d executed, %d of them redone; a kill every %.0f executed steps: goodput %.1f %% of the steps", steps, executed, executed - steps, executed / kills, 100 * steps / executed
    printf ", %.1f %% of the wall time (undisturbed %.1f s, killed and resumed %.1f s, start-ups and slowed saves included)\n", 100 * whole / lived, whole / 1000, lived / 1000 }'
