#!/bin/sh
# `spectron rehearse`: a tiny job on four ranks is rehearsed, and what it says of the full size is the dry run's and a real
# checkpoint's; a trainer that cannot save or cannot resume is found out; nothing is left behind. SPT_REHEARSE_LONG=1: the
# preset S on 64 ranks too (a minute or two, 4 GB).
. "$(dirname "$0")/lib.sh"
TMPDIR=$work/tmp
export TMPDIR
mkdir tmp
nothing_left() {
    [ -z "$(ls tmp)" ] || fail "files were left: $(ls tmp)"
    for process in /proc/[0-9]*; do # the trainers' command lines name the folder
        if { tr '\0' ' ' <"$process/cmdline"; } 2>/dev/null | grep -q "^[^ ]*spectron-dist .*$work/tmp"; then fail "a process was left: ${process#/proc/}"; fi
    done
}
# expect_failure CODE PATTERN COMMAND...: exit code and exactly one line of ours
expect_failure() { expect "$@"; nothing_left; }

cat >job.toml <<END
[model]
hidden = 256
layers = 4
heads = 8
vocab = 4096
seq_len = 64
[optimizer]
lr = 0.02
[schedule]
steps = 400
[batch]
sequences = 32
[data]
train = "data/train-*.h5"
[checkpoint]
every = 100
keep = 2
[dist]
reduction = "reduce-scatter"
audit_every = 50
END

note "four ranks; a walltime of 2.5 times what a time limit leaves"
"$trainer" --dry-run --ranks 4 job.toml >dry.log
flops=$(sed -n 's/^FLOPs of the run *\([0-9.e+]*\) .*/\1/p' dry.log)
rate=$(awk -v f="$flops" 'BEGIN { printf "%.6g", f / 4 / (2.5 * (1800 - 360)) }')
"$spectron" rehearse --ranks 4 --time-limit 00:30:00 --flops-per-second-per-rank "$rate" --link-gb-s 1e6 job.toml >rehearse.log 2>&1 ||
    { cat rehearse.log; fail rehearse; }
nothing_left
says() { grep -qE "$1" rehearse.log || { cat rehearse.log; fail "no '$1'"; }; }
says '^rehearsed: hidden [0-9]+ for 256, .* for 4096, .* batch 4 for 32$'
says 'as it will be: 4 ranks, 4 layers, 67 tensors, 28 pairs \(28 with their owner of then\)'
says '^OK: killed after step [0-9]+ with a checkpoint of step [0-9]+; resumed with step [0-9]+, ended with step [0-9]+ and exit code 0;$'
# killed two steps after a save was seen; another one may have ended meanwhile
awk '/^OK: killed/ { gsub("[;,]", ""); killed = $5; saved = $11; resumed = $15; end = $19 }
     END { exit !(saved > 0 && saved % 5 == 0 && killed >= saved && resumed == saved + 1 && end >= 20 && end >= saved + 5) }' rehearse.log ||
    { cat rehearse.log; fail "the steps do not fit"; }
[ "$(sed -n 's/^\(memory per rank *[0-9.]* MiB\).*/\1/p' dry.log)" = "$(sed -n 's/^\(memory per rank *[0-9.]* MiB\).*/\1/p' rehearse.log)" ] ||
    { cat dry.log rehearse.log; fail "memory per rank is not the dry run's"; }
says '^walltime            60 min: 400 steps of 9 s'
says ' 4 saves; .* 2 kept'
says '^requeues                      2 at a time limit of 30 min'
says '^lost when a node dies at most 15 min'

note "its checkpoints' size, against a real one"
make_data
mpi 2 --set run.output=run --set schedule.steps=1 --set batch.sequences=2 --set dist.audit_every=0 job.toml >log 2>&1 || { cat log; fail train; }
size=$(stat -c %s run/checkpoints/step-00000001.h5)
predicted=$(sed -n 's/^checkpoints *\([0-9.]*\) MiB each.*/\1/p' rehearse.log)
awk -v size="$size" -v predicted="$predicted" 'BEGIN { d = size / 1048576 - predicted; print "checkpoint " size / 1048576 " MiB, predicted " predicted; exit !(d > -0.06 && d < 0.06) }' ||
    fail "the predicted size is wrong"

note "self-guided: where guidance ends hangs on the steps; the resumed run is stopped by USR1"
"$spectron" rehearse --ranks 2 --flops-per-second-per-rank 1e12 --set guidance.method=self-guided job.toml >rehearse.log 2>&1 || { cat rehearse.log; fail "a self-guided job"; }
says '^OK: killed after step [0-9]+ with a checkpoint of step [0-9]+; resumed with step [0-9]+, ended with step [0-9]+ and exit code 75, asked to stop;$'
awk '/^OK: killed/ { gsub("[;,]", ""); killed = $5; saved = $11; resumed = $15; end = $19 }
     END { exit !(saved > 0 && killed >= saved && resumed == saved + 1 && end >= 20 && end >= saved + 5) }' rehearse.log || { cat rehearse.log; fail "the steps do not fit"; }
mpi 2 --set run.output=guided --set schedule.steps=2 --set batch.sequences=2 --set dist.audit_every=0 --set guidance.method=self-guided --set checkpoint.every=1 \
    --set guidance.fraction=1 job.toml >log 2>&1 || { cat log; fail train; }
size=$(stat -c %s guided/checkpoints/step-00000001.h5)
predicted=$(sed -n 's/^checkpoints *\([0-9.]*\) MiB each.*/\1/p' rehearse.log)
awk -v size="$size" -v predicted="$predicted" 'BEGIN { d = size / 1048576 - predicted; print "checkpoint " size / 1048576 " MiB, predicted " predicted; exit !(d > -0.06 && d < 0.06) }' ||
    fail "the predicted size of a guided checkpoint is wrong"
nothing_left

note "the preset S, counted as the dry run does"
cat >s.toml <<END
[model]
preset = "S"
[schedule]
steps = 10
[batch]
sequences = 64
END
"$trainer" --dry-run --ranks 2 s.toml | grep '^memory per rank' | cut -d'(' -f1 >dry.log
"$spectron" rehearse --ranks 2 --flops-per-second-per-rank 1e12 s.toml >rehearse.log 2>&1 || { cat rehearse.log; fail S; }
grep '^memory per rank' rehearse.log | cut -d'(' -f1 | cmp - dry.log || fail "another memory than the dry run's"
says '^checkpoints  *90[34]\.[0-9] MiB each, 1 save;'
nothing_left

note "a trainer that cannot save, and ones that cannot resume"
# launcher NAME SCRIPT: stands for mpirun; "$@" are its words
launcher() { printf '#!/bin/sh\n%s\n' "$2" >"$1"; chmod 755 "$1"; }
launcher no_save "case \" \$* \" in *spectron-dist*) LD_PRELOAD=$build/tests/libspt_spoil_site.so; SPT_FAIL_SYNC=1; export LD_PRELOAD SPT_FAIL_SYNC ;; esac
exec mpirun \"\$@\""
expect_failure 5 'rehearsal failed: .*step-0*[0-9]*\.h5' env MPIEXEC="$work/no_save" "$spectron" rehearse --patience 20 --ranks 2 job.toml
launcher afresh 'case " $* " in *" --resume "*) for job; do :; done; rm -rf "${job%/*}/run" ;; esac
exec mpirun "$@"'
expect_failure 5 'rehearsal failed: .* began with step 1$' env MPIEXEC="$work/afresh" "$spectron" rehearse --ranks 2 --set model.parameterization=dense job.toml
launcher forgets 'for word; do
    shift
    [ "$word" = --resume ] || set -- "$@" "$word"
done
exec mpirun "$@"'
expect_failure 2 'rehearsal failed: the resumed run ended with exit code 2: ' env MPIEXEC="$work/forgets" "$spectron" rehearse --ranks 2 job.toml
# another learning rate after the resume shows in the losses of the steps made twice
launcher drifts 'case " $* " in *" --resume "*) for job; do :; done
    cp "${job%/*}/run/metrics.jsonl" "${job%/*}/before"; mpirun "$@" || exit
    sed -i "s/\"loss\": *[0-9.]*/\"loss\": 1.5/" "${job%/*}/run/metrics.jsonl"
    saved=$(sed -n "s/^resumed at step \([0-9]*\).*/\1/p" "${job%/*}/log")
    { head -n $saved "${job%/*}/before"; tail -n +$((saved + 1)) "${job%/*}/run/metrics.jsonl"; } >"${job%/*}/joined"
    mv "${job%/*}/joined" "${job%/*}/run/metrics.jsonl"; exit 0 ;; esac
exec mpirun "$@"'
expect_failure 5 'rehearsal failed: the loss of step [0-9]* was [0-9.]* before the kill and is 1.5 after it' env MPIEXEC="$work/drifts" "$spectron" rehearse --ranks 2 job.toml

note "interrupted: its processes and files are gone"
"$spectron" rehearse --ranks 4 job.toml >log 2>&1 &
rehearsal=$!
n=0
until ls tmp/*/run/metrics.jsonl >/dev/null 2>&1; do
    n=$((n + 1)); [ $n -lt 600 ] || { cat log; fail "the rehearsal does not start"; }
    sleep 0.1
done
kill -TERM $rehearsal
status=0; wait $rehearsal || status=$?
[ $status = 143 ] || { cat log; fail "TERM gave exit $status instead of 143"; }
nothing_left

note "usage"
expect_failure 2 'ranks N' "$spectron" rehearse job.toml
expect_failure 2 'sequences = 32.*5 ranks' "$spectron" rehearse --ranks 5 job.toml
expect_failure 2 'hiden.*hidden' "$spectron" rehearse --ranks 2 --set model.hiden=64 job.toml
expect_failure 2 'missing.toml' "$spectron" rehearse --ranks 2 missing.toml
expect_failure 2 'time-limit' "$spectron" rehearse --ranks 2 --time-limit 12h job.toml
expect_failure 2 'time-limit' "$spectron" rehearse --ranks 2 --time-limit 00:06:00 job.toml
expect_failure 2 'flops-per' "$spectron" rehearse --ranks 2 --flops-per-second-per-rank -1 job.toml
expect_failure 2 'output.*tmp' "$spectron" rehearse --ranks 2 --output tmp job.toml
expect_failure 5 'nothing-here.*MPIEXEC' env MPIEXEC=/nothing-here "$spectron" rehearse --ranks 2 job.toml
"$spectron" rehearse --help | grep -q '^Example: spectron rehearse' || fail "--help"

[ -n "${SPT_REHEARSE_LONG:-}" ] || exit 0
note "S on 64 ranks"
"$spectron" rehearse --ranks 64 --set schedule.steps=1786 s.toml || fail "S on 64 ranks"
nothing_left
