#!/bin/sh
# It is really distributed: MPI's own view (a PMPI shim preloaded) of messages and bytes equals the plan's formula, each rank reads its share of the
# tokens and holds its share of the optimizer, and reductions are posted before backward ends.
. "$(dirname "$0")/lib.sh"
make_data
make_job job.toml run
sed -i 's/^bucket_mib = 1/bucket_mib = 1\noverlap = true/; s/^hidden = 48/hidden = 240/; s/^ffn = 80/ffn = 640/' job.toml
shim=$build/tests/libspt_pmpi.so
steps=4

# total CALL FIELD FILE: a number of the shim's report
total() { sed -n "s/.*\"$1\": {\"count\": \([0-9]*\), \"bytes\": \([0-9]*\)}.*/\\$2/p" "$3"; }
# recorded KEY: the per-step number in the metrics, which is the plan's formula
recorded() { sed -n "1s/.*\"$1\": *\([0-9]*\).*/\1/p" "$2/metrics.jsonl"; }

for mode in all-reduce reduce-scatter tree; do
    for p in 1 2 3; do
        run=run-$mode-$p
        call=MPI_Iallreduce micro=0 last=$steps # last: reductions that wait for the end of backward, the embedding's
        case $mode in
        reduce-scatter) call=MPI_Ireduce_scatter ;;
        tree) # of six micro-batches one of two ranks has two sums, one of three a single one
            call=MPI_Ialltoallv micro=4
            [ $p != 2 ] || last=$((2 * steps))
            ;;
        esac
        sh "$mpi_run" $p env LD_PRELOAD="$shim${LD_PRELOAD:+:$LD_PRELOAD}" SPT_PMPI_OUT="$work/pmpi-%d.json" "$trainer" --threads 1 --profile --set run.output=$run \
            --set dist.reduction=$mode --set batch.micro=$micro --set schedule.steps=$steps --set validation.every=0 job.toml >log 2>&1 || { cat log; fail "$mode on $p ranks"; }
        rank=0
        while [ $rank -lt $p ]; do
            report=pmpi-$rank.json
            [ "$(total $call 1 $report)" = $(($(recorded reduce_messages $run) * steps)) ] || fail "$mode, $p ranks: messages of $call on rank $rank"
            [ "$(total $call 2 $report)" = $(($(recorded reduce_bytes $run) * steps)) ] || fail "$mode, $p ranks: bytes of $call on rank $rank"
            # one gather more than steps: the initial parameters come from their owners
            [ "$(total MPI_Iallgatherv 1 $report)" = $(($(recorded gather_messages $run) * (steps + 1))) ] || fail "$p ranks: all-gather messages"
            [ "$(total MPI_Iallgatherv 2 $report)" = $(($(recorded gather_bytes $run) * (steps + 1))) ] || fail "$p ranks: all-gather bytes"
            rank=$((rank + 1))
        done
        # named as it is: the profile's own count
        case $mode in tree) kind=exchange ;; *) kind=$mode ;; esac
        [ $p = 1 ] || grep -q "  $kind: $(($(recorded reduce_messages $run) * steps)) messages, " log || { cat log; fail "$mode, $p ranks: the profile names no $kind"; }
        # every rank reads sequences/P windows of seq_len + 1 tokens a step, no more
        share=$((24 / p * 33 * steps))
        grep -q "tokens read by a rank: $share to $share, $((share * p)) together" log || { cat log; fail "$p ranks: tokens read, expected $share"; }
        grep -q 'together; 0 over the plan' log || { cat log; fail "$p ranks: optimizer bytes exceed the plan's share"; }
        sed -n 's/.*optimizer bytes of a rank: .* \([0-9]*\) together.*/\1/p' log >>together
        if [ $p -gt 1 ]; then
            messages=$(($(recorded reduce_messages $run) * steps))
            posted=$(sed -n 's/.*overlap, whole run: \([0-9]*\) of \([0-9]*\) reductions.*/\1 \2/p' log)
            note "$mode, $p ranks: $messages messages, overlap: $posted"
            [ "${posted#* }" = $messages ] || fail "$p ranks: overlap counts ${posted#* } reductions of $messages"
            sed -n 's/.*, \([0-9]*\) complete before the wait.*/\1/p' log >>complete
            [ "${posted% *}" -ge $((messages - last)) ] && [ "${posted% *}" -gt 0 ] || fail "$p ranks: reductions are not posted during backward"
        fi
    done
done
[ "$(sort -u together | wc -l)" = 1 ] || fail "the optimizer's bytes of all ranks together depend on their number: $(cat together)"
# and they do proceed behind backward: some have ended when the step comes to wait for them
awk '{ n += $1 } END { print n " reductions complete before the wait"; exit !(n > 0) }' complete || fail "no reduction was complete before the wait"
