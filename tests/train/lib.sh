# Shared by the tests of the whole trainer: a work folder, byte-token shards made from this project's own prose, a tiny job, helpers.
# Called with: BUILD_DIR. Real text, never random tokens.
set -eu
build=$(cd "$1" && pwd)
source=$(cd "$(dirname "$0")/../.." && pwd)
trainer=$build/src/spectron-dist
spectron=$build/src/spectron
compare=$build/tests/compare_checkpoints
work=$(mktemp -d "${TMPDIR:-/tmp}/spt-train.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
mpi_run=$source/tests/mpi_run.sh

fail() { echo "FAIL: $*" >&2; exit 1; }
note() { echo "-- $*"; }

# mpi P ARGUMENT...: the trainer on P ranks of one thread
mpi() { ranks=$1; shift; sh "$mpi_run" "$ranks" "$trainer" --threads 1 "$@"; }

# expect CODE PATTERN COMMAND...: exit code and exactly one line of ours, matching the pattern; ranks that the launcher then ends say where
# they were, which is not counted
expect() {
    code=$1 pattern=$2
    shift 2
    status=0
    "$@" >out.log 2>err.log || status=$?
    [ "$status" = "$code" ] || { cat out.log err.log >&2; fail "exit $status instead of $code: $*"; }
    lines=$(grep '^spectron' err.log | grep -vc ': ended by signal [0-9]* after step ' || true)
    [ "$lines" = 1 ] || { cat err.log >&2; fail "$lines error lines instead of 1: $*"; }
    grep -q "^spectron.*$pattern" err.log || { cat err.log >&2; fail "no '$pattern' in the message: $*"; }
}

# make_data: byte tokens of the project's texts, documents separated by blank lines
make_data() {
    mkdir -p text
    cat "$source"/README.md "$source"/src/core/*.h "$source"/src/core/*.c >text/prose.txt
    "$spectron" tokenize --tokenizer byte --documents blank-line --validation-share 0.1 --output data text/prose.txt >/dev/null
}

# make_job FILE OUTPUT: a tiny job with odd ranks
make_job() {
    cat >"$1" <<END
[run]
name = "tiny"
output = "$2"
seed = 7
[model]
hidden = 48
layers = 2
heads = 3
ffn = 80
vocab = 257
seq_len = 32
rank_ratio = 0.27
[optimizer]
lr = 0.02
weight_decay = 0.1
[schedule]
steps = 20
[batch]
sequences = 24
[data]
train = "data/train-*.h5"
validation = "data/validation-*.h5"
[validation]
every = 10
tokens = 2048
[checkpoint]
every = 10
keep = 9
[dist]
bucket_mib = 1
[device]
precision = "fp32"
END
}

# losses RUN: step and loss, a line each
losses() { sed -E 's/.*"step": *([0-9]+).*/\1 &/; s/^([0-9]+) .*"loss": *([-0-9.e+]+).*/\1 \2/' "$1/metrics.jsonl"; }

# same_losses RUN RUN TOLERANCE
same_losses() {
    losses "$1" >a.loss; losses "$2" >b.loss
    paste a.loss b.loss | awk -v tolerance="$3" '
        $1 != $3 || NF != 4 { print "steps differ: " $0; bad = 1; exit 1 }
        { d = ($2 - $4) / $2; if (d < 0) d = -d; if (d > worst) worst = d; n++ }
        END { if (bad) exit 1; if (n < 1) { print "no losses"; exit 1 }
              printf "%d losses, largest relative difference %.2e\n", n, worst; exit worst > tolerance }' ||
        fail "losses of $1 and $2 differ by more than $3"
}

# wait_records RUN RECORDS: until the run, whose output is in log, has written so many; $wait_limit: tenths of a second
wait_records() {
    n=0
    while [ "$(cat "$1/metrics.jsonl" 2>/dev/null | wc -l)" -lt "$2" ]; do
        n=$((n + 1)); [ $n -lt "${wait_limit:-600}" ] || { cat log; fail "$1 did not come to $2 steps"; }
        sleep 0.1
    done
}

# stop_after RUN RECORDS SIGNAL PID: sends the signal once the run has written so many records, and wants exit 75; its output is in log
stop_after() {
    wait_records "$1" "$2"
    kill -"$3" "$4"
    status=0; wait "$4" || status=$?
    [ $status = 75 ] || { cat log; fail "$3 gave exit $status instead of 75"; }
}

# wait_line PATTERN TIMES: until log has so many such lines
wait_line() {
    n=0
    while [ "$(grep -c "$1" log)" -lt "$2" ]; do
        n=$((n + 1)); [ $n -lt 600 ] || { tail -n 20 log; fail "no '$1'"; }
        sleep 0.1
    done
}

# leaves CODE: sends USR1 to the run of $launcher, whose output is in log, and wants the exit code
leaves() {
    kill -USR1 "$launcher" || { tail -n 30 log; fail "the run has ended before its USR1"; }
    status=0; wait "$launcher" || status=$?
    [ $status = "$1" ] || { tail -n 20 log; fail "USR1 gave exit $status instead of $1"; }
    launcher=
}
