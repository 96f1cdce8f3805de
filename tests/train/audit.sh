#!/bin/sh
# Bits flipped from outside, in a rank's copy of parameters, in an owner's, in momentum, are caught by the audit: the run stops with
# 5, names the rank and the tensor, and can be resumed. Without flips the audit changes nothing.
. "$(dirname "$0")/lib.sh"
seed=${SPT_TEST_SEED:-$(date +%s)}
echo "audit: SPT_TEST_SEED=$seed"
make_data
make_job job.toml run
draw() { seed=$(((seed * 1103515245 + 12345) % 2147483648)); echo $((seed / 65536 % $1)); }

note "it changes nothing"
mpi 3 --set run.output=run-plain job.toml >log 2>&1 || { cat log; fail plain; }
mpi 3 --set run.output=run-audited --set dist.audit_every=2 job.toml >log 2>&1 || { cat log; fail audited; }
"$compare" run-plain/checkpoints/step-00000020.h5 run-audited/checkpoints/step-00000020.h5 0

# flip PROCESS HEX-ADDRESS BYTE BIT
flip() {
    perl -e 'my ($pid, $at, $byte, $bit) = @ARGV; open(my $m, "+<", "/proc/$pid/mem") or die "mem: $!"; binmode $m;
        my $where = hex($at) + $byte; my $value;
        sysseek($m, $where, 0) or die; sysread($m, $value, 1) == 1 or die "read: $!";
        sysseek($m, $where, 0) or die; syswrite($m, chr(ord($value) ^ (1 << $bit)), 1) == 1 or die "write: $!";' "$@"
}

# A flip in the short time between the audit's end and the next audit's begin is not seen: it may take more than one.
tried=0 caught=0
for case in 'model/model.layers.1.self_attn.o_proj.A 0' 'model/model.layers.0.mlp.down_proj.B 1' 'model/lm_head.weight 2' \
    'optimizer/model.layers.0.self_attn.q_proj.A/momentum any' 'optimizer/model.embed_tokens.weight/adam_v any'; do
    # shellcheck disable=SC2086
    set -- $case
    dataset=/$1 rank=$2
    rm -rf run-flipped
    SPT_TEST_ADDRESSES=1 sh "$mpi_run" 3 "$trainer" --threads 1 --set run.output=run-flipped --set dist.audit_every=1 --set checkpoint.every=20 --set checkpoint.keep=2 \
        --set schedule.steps=1000000 --set validation.every=0 job.toml >log 2>&1 &
    launcher=$!
    wait_records run-flipped 30
    line=$(grep "^address [0-9]* [0-9]* $dataset " log | awk -v rank="$rank" 'rank == "any" || $2 == rank' | head -n 1)
    [ -n "$line" ] || { grep -c '^address' log; fail "no address of $dataset on rank $rank"; }
    # shellcheck disable=SC2086
    set -- $line
    rank=$2 process=$3 address=$5 bytes=$6 once=0
    while kill -0 $launcher 2>/dev/null && [ $once -lt 20 ]; do
        flip "$process" "$address" "$(draw "$bytes")" "$(draw 8)" 2>flip.log || break
        once=$((once + 1)) tried=$((tried + 1))
        sleep 0.3
    done
    status=0; wait $launcher || status=$?
    [ $status = 5 ] || { grep -v '^address' log | tail -n 20; fail "$dataset on rank $rank: exit $status instead of 5 after $once flips"; }
    caught=$((caught + 1))
    line=$(grep '^spectron-dist: audit ' log) || { grep -v '^address' log; fail "no line of the audit"; }
    case $line in *"rank $rank "*) ;; *) fail "rank $rank is not named: $line" ;; esac
    # seen against itself the tensor is named, seen against the owner's copy the part
    case $line in *"${dataset#/model/}"* | *" holds other parameters of rank "*) ;; *) fail "$dataset is not named: $line" ;; esac
    note "after $once flip(s): $line"
    "$spectron" inspect "$(ls run-flipped/checkpoints/step-*.h5 | tail -n 1)" >/dev/null || fail "the newest checkpoint is not intact"
done
reached=$(ls run-flipped/checkpoints/step-*.h5 | tail -n 1 | sed 's/.*step-0*\([0-9]*\).h5/\1/')
mpi 3 --resume --set run.output=run-flipped --set dist.audit_every=1 --set checkpoint.every=20 --set validation.every=0 --set schedule.steps=$((reached + 5)) job.toml >log 2>&1 ||
    { cat log; fail "resume"; }
grep -q "^resumed at step $reached " log || { cat log; fail "not resumed at step $reached"; }
note "$tried flips, $caught runs stopped of 5"
[ $tried -le 20 ] || fail "only one flip in $((tried / caught)) is caught"
