#!/bin/sh
# A file system that is really full, and one that is really read-only: training goes on, what is made free is used, nothing that was saved
# is lost. Mounts in a namespace of its own: needs root or user namespaces, and exits with 77 (skipped) without.
if [ "${SPT_IN_NAMESPACE:-}" != 1 ]; then
    for flags in -m -rm; do
        # shellcheck disable=SC2016
        if unshare $flags sh -c 'd=$(mktemp -d) && mount -t tmpfs -o size=64k none "$d" && umount "$d"; s=$?; rmdir "$d"; exit $s' 2>/dev/null; then
            SPT_IN_NAMESPACE=1 exec unshare $flags sh "$0" "$@"
        fi
    done
    echo "nothing can be mounted here, neither as root nor in a user namespace"
    exit 77
fi
. "$(dirname "$0")/lib.sh"
make_data
make_job job.toml run
mkdir disk run-ro
launcher=
trap '[ -z "$launcher" ] || { kill "$launcher" 2>/dev/null; sleep 1; } || :; umount -q "$work/disk" "$work/run-ro/checkpoints" || :; rm -rf "$work"' EXIT

mpi 2 --set run.output=run-probe --set schedule.steps=10 job.toml >log 2>&1 || { cat log; fail probe; }
file=$(stat -c %s run-probe/checkpoints/step-00000010.h5)
mount -t tmpfs -o size=$((file * 7 / 4 / 4096 * 4))k none disk # room for one checkpoint and three quarters

# start RUN: two ranks in the background, a save every 10 steps, of which one is kept
start() {
    : >log # the one before must not be read for this one
    sh "$mpi_run" 2 "$trainer" --threads 1 --resume --set run.output="$1" --set checkpoint.keep=1 --set schedule.steps=1000000 --set validation.every=0 job.toml \
        >log 2>&1 &
    launcher=$!
}
# stops CODE: leaves with it, and without a half-written file
stops() {
    leaves "$1"
    [ -z "$(find disk run-ro -name '*.part' 2>/dev/null)" ] || fail "left: $(find disk run-ro -name '*.part')"
}
# whole RUN STEP: its newest checkpoint is intact and of this step, its records are complete
whole() {
    newest=$(ls "$1"/checkpoints/step-*.h5 | tail -n 1)
    "$spectron" inspect "$newest" | grep -q "^step: $2\$" || fail "$newest is not step $2's"
    [ "$(losses "$1" | awk '$1 != NR { print NR; exit }')" = "" ] || fail "$1/metrics.jsonl does not hold each step once"
}

note "one checkpoint fits: the second has no room beside it, until there is more"
start disk/run
wait_line 'step 20 is not saved: .*no space left.*; the newest checkpoint is of step 10; training goes on' 1
wait_line 'is not saved' 3
[ "$(grep -c '^saved ' log)" = 1 ] || { cat log; fail "more than one save"; }
whole disk/run 10
mount -o remount,size=$((file * 4 / 4096 * 4))k disk
wait_line '^saved ' 3
[ "$(find disk/run/checkpoints -name 'step-*.h5' | wc -l)" -le 2 ] || fail "keep = 1, but $(ls disk/run/checkpoints)"
stops 75
whole disk/run "$(wc -l <disk/run/metrics.jsonl)"

note "not a byte left: records wait in memory, a stop is no 75"
start disk/run
wait_line '^saved ' 1
saves=$(grep -c '^saved ' log)
dd if=/dev/zero of=disk/ballast bs=4096 2>/dev/null || true
wait_line 'is not saved: .*no space left' 2
wait_line 'the records cannot be written: .*no space left' 1
rm disk/ballast
wait_line 'all records are written' 1
wait_line '^saved ' $((saves + 1))
kept=$(ls disk/run/checkpoints/step-*.h5 | tail -n 1)
dd if=/dev/zero of=disk/ballast bs=4096 2>/dev/null || true
failures=$(grep -c 'is not saved' log)
wait_line 'is not saved' $((failures + 1))
stops 5
grep -q '^spectron-dist: the run ends at step [0-9]* and is not saved (.*no space left.*' log || { tail -n 5 log; fail "the last line"; }
[ "$kept" = "$(ls disk/run/checkpoints/step-*.h5 | tail -n 1)" ] || note "one more was saved before the disk was full"
"$spectron" inspect "$(ls disk/run/checkpoints/step-*.h5 | tail -n 1)" >/dev/null || fail "the newest checkpoint"
rm disk/ballast
mpi 2 --resume --set run.output=disk/run --set validation.every=0 --set checkpoint.every=0 --set checkpoint.keep=1 \
    --set schedule.steps=$(($(ls disk/run/checkpoints/step-*.h5 | tail -n 1 | sed 's/.*step-0*\([0-9]*\).h5/\1/') + 3)) job.toml >log 2>&1 || { cat log; fail resume; }
whole disk/run "$(wc -l <disk/run/metrics.jsonl)"

note "checkpoints/ becomes read-only, and writable again"
start run-ro
wait_line '^saved ' 2
mount --bind run-ro/checkpoints run-ro/checkpoints
mount -o remount,bind,ro run-ro/checkpoints
wait_line 'is not saved: .*Read-only file system' 2
umount run-ro/checkpoints
saves=$(grep -c '^saved ' log)
wait_line '^saved ' $((saves + 2))
stops 75
whole run-ro "$(wc -l <run-ro/metrics.jsonl)"
