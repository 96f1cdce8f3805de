#!/bin/sh
# Files that are hostile, and files of others in the output folder: a foreign shard on which HDF5 crashes or hangs is named with exit 3, promptly, on one
# rank and on several; nothing of others is overwritten, and nothing is written outside of run.output.
. "$(dirname "$0")/lib.sh"
make_data
make_job job.toml run
foreign=$build/tests/foreign_files

note "files made elsewhere: contiguous and chunked ones are trained on, whatever the ranks"
"$foreign" shard plain data/foreign-plain.h5
"$foreign" shard deflated data/foreign-deflated.h5
few="--set model.vocab=300 --set model.seq_len=8 --set batch.sequences=6 --set schedule.steps=6 --set validation.every=0 --set checkpoint.every=0 --set data.validation=[]"
for kind in plain deflated; do
    # shellcheck disable=SC2086 # a list of words
    mpi 2 $few --set "data.train=\"data/foreign-$kind.h5\"" --set run.output=run-$kind job.toml >log 2>&1 || { cat log; fail "$kind"; }
done
same_losses run-plain run-deflated 0

note "one on which the library crashes, hangs, or wants all memory"
for fault in crash hang memory; do
    for ranks in 1 3; do
        [ $fault = crash ] || [ $ranks = 3 ] || continue
        began=$(date +%s)
        words='crashes'; [ $fault != hang ] || words='hangs on it'
        # shellcheck disable=SC2086
        expect 3 "foreign-plain.h5: damaged or hostile: the HDF5 library $words" timeout 200 env SPT_TEST_READER_FAULT=$fault SPT_TEST_READER_FILE=foreign \
            SPT_TEST_READER_SECONDS=1 sh "$mpi_run" $ranks "$trainer" --threads 1 $few --set 'data.train="data/foreign-plain.h5"' --set run.output=run-fault job.toml
        took=$(($(date +%s) - began))
        [ $took -lt 150 ] || fail "$fault on $ranks ranks took $took s"
    done
done
note "the same in the middle of a run: chunks are read as they are needed"
"$foreign" shard chunked data/foreign-chunked.h5
# shellcheck disable=SC2086
sh "$mpi_run" 2 "$trainer" --threads 1 $few --set 'data.train="data/foreign-chunked.h5"' --set run.output=run-chunked --set schedule.steps=1000000 \
    job.toml >log 2>&1 &
launcher=$!
wait_records run-chunked 3
pid=$(pgrep -P $launcher -f spectron-dist | tail -1)
helper=$(pgrep -P "$pid" spt-files)
for signal in USR1 TERM INT HUP; do # some launchers signal all processes of a rank
    kill -$signal "$helper" "$(pgrep -P "$helper" spt-files)"
done
stop_after run-chunked $(($(wc -l <run-chunked/metrics.jsonl) + 5)) USR1 $launcher
# shellcheck disable=SC2086
sh "$mpi_run" 2 "$trainer" --threads 1 --resume $few --set 'data.train="data/foreign-chunked.h5"' --set run.output=run-chunked --set schedule.steps=1000000 \
    job.toml >log 2>&1 &
launcher=$!
wait_records run-chunked $(($(wc -l <run-chunked/metrics.jsonl) + 3))
pid=$(pgrep -P $launcher -f spectron-dist | tail -1)
helper=$(pgrep -P "$pid" spt-files)
kill -KILL "$(pgrep -P "$helper" spt-files)"
status=0; wait $launcher || status=$?
[ $status = 3 ] || { cat log; fail "exit $status instead of 3 when a reader dies"; }
grep -q '^spectron-dist: .*foreign-chunked.h5: damaged or hostile' log || { cat log; fail "the file is not named"; }
expect 3 'foreign-plain.h5: damaged or hostile' env SPT_TEST_READER_FAULT=crash "$spectron" inspect data/foreign-plain.h5
expect 3 'foreign-plain.h5: damaged or hostile' env SPT_TEST_READER_FAULT=hang SPT_TEST_READER_SECONDS=1 "$spectron" inspect data/foreign-plain.h5
expect 3 'foreign-plain.h5: damaged or hostile' env SPT_TEST_READER_FAULT=crash "$spectron" baseline --train data/foreign-plain.h5 --validation data/foreign-plain.h5

note "every trick of a foreign file, through the program"
for kind in external virtual 'link to another file' 'documents in another file' 'size overflows' 'user-defined link' 'committed datatype'; do
    "$foreign" shard "$kind" data/foreign-trick.h5
    expect 3 'foreign-trick.h5' "$spectron" inspect data/foreign-trick.h5
done
"$foreign" shard 'disordered documents' data/foreign-trick.h5
expect 3 'foreign-trick.h5.*out of order' "$spectron" inspect --text data/foreign-trick.h5
for kind in 'a list of losses' 'a job in another file' 'a size that overflows'; do
    "$foreign" checkpoint "$kind" trick.h5
    expect 3 'trick.h5' "$spectron" inspect trick.h5
    expect 3 'trick.h5' mpi 1 --init-from trick.h5 --set run.output=run-trick job.toml
done

note "pipes, which would be waited for, are refused"
mkfifo pipe.h5
expect 3 'pipe.h5' timeout 60 "$spectron" inspect pipe.h5
expect 3 'pipe.h5: not a regular file' mpi 1 --init-from pipe.h5 --set run.output=run-pipe job.toml
expect 3 'pipe.h5: not a file' mpi 1 --set 'data.train="pipe.h5"' --set run.output=run-pipe job.toml
rm pipe.h5

note "nothing is written outside of run.output"
touch stamp
sleep 1.1
mpi 2 --set schedule.steps=10 job.toml >log 2>&1 || { cat log; fail train; }
"$spectron" report run >/dev/null || fail report
changed=$(find . -newer stamp ! -path './run' ! -path './run/*' ! -path . ! -name log ! -name 'out.log' ! -name 'err.log')
[ -z "$changed" ] || fail "written outside of run.output: $changed"

note "what others keep in the output folder is left alone"
# refuse WHAT FILE: exit 2, FILE as before
refuse() {
    before=$(cat "$2")
    expect 2 "$1" mpi 2 --resume --set schedule.steps=12 job.toml
    [ "$(cat "$2")" = "$before" ] || fail "$2 was written to"
}
echo 'precious' >precious
mv run/job.toml saved-job; echo '# my notes' >run/job.toml
refuse 'job.toml' run/job.toml
rm run/job.toml; ln -s ../precious run/job.toml
refuse 'job.toml' precious
rm run/job.toml; mv saved-job run/job.toml
mv run/metrics.jsonl saved-metrics; ln -s ../saved-metrics run/metrics.jsonl
refuse 'metrics.jsonl' saved-metrics
rm run/metrics.jsonl; echo 'my own log' >run/metrics.jsonl
refuse 'metrics.jsonl' run/metrics.jsonl
rm run/metrics.jsonl; mv saved-metrics run/metrics.jsonl
echo 'padlock' >run/lock
refuse 'run/lock' run/lock
rm run/lock; ln -s ../precious run/lock
refuse 'run/lock' precious
rm run/lock
mv run/checkpoints elsewhere; ln -s ../elsewhere run/checkpoints
expect 2 'checkpoints' mpi 2 --resume --set schedule.steps=12 job.toml
[ "$(ls elsewhere)" = "$(printf 'best.h5\nstep-00000010.h5')" ] || fail "written through run/checkpoints: $(ls elsewhere)"
rm run/checkpoints; mv elsewhere run/checkpoints

note "traps under the names that a run writes: a save goes beside them"
ln -s ../../precious run/checkpoints/step-00000012.h5.part
ln -s ../precious run/metrics.h5.part
ln -s ../precious run/job.toml.part
ln -s ../precious run/loss.png.part
echo 'somebody else' >run/checkpoints/step-00000012.h5
mkdir run/checkpoints/step-00000014.h5
mpi 2 --resume --set schedule.steps=14 --set checkpoint.every=2 job.toml >log 2>&1 || { cat log; fail "traps"; }
[ "$(cat precious)" = precious ] || fail "a link was followed"
[ "$(cat run/checkpoints/step-00000012.h5.kept-1)" = 'somebody else' ] || fail "a checkpoint's place was taken"
[ -d run/checkpoints/step-00000014.h5.kept-1 ] || fail "a folder was not kept"
grep -q 'kept as' log || { cat log; fail "nothing is said of what was kept"; }
"$spectron" inspect run/checkpoints/step-00000012.h5 | grep -q verified || fail "step 12"
"$spectron" inspect run/checkpoints/step-00000014.h5 | grep -q verified || fail "step 14"
"$spectron" report run >/dev/null || fail report
[ "$(cat precious)" = precious ] || fail "report followed a link"

note "tokenize"
mkdir shards; ln -s ../precious shards/train-00000.h5.part; ln -s ../precious shards/train-00000.h5.raw; ln -s ../precious shards/tokenizer.model.part
"$spectron" tokenize --tokenizer byte --output shards text/prose.txt >log 2>&1 || { cat log; fail tokenize; }
rm shards/*.h5; ln -s ../precious shards/train-00000.h5
expect 2 'train-00000.h5' "$spectron" tokenize --tokenizer byte --output shards text/prose.txt
rm shards/train-00000.h5
if ldd "$spectron" | grep -q sentencepiece; then
    ln -sf ../precious shards/tokenizer.model.part
    "$spectron" tokenize --train-vocab 400 --output shards text/prose.txt >log 2>&1 || { cat log; fail "tokenize --train-vocab"; }
    mkdir shards-linked; ln -s ../precious shards-linked/tokenizer.model
    expect 2 'tokenizer.model' "$spectron" tokenize --train-vocab 400 --output shards-linked text/prose.txt
fi
[ "$(cat precious)" = precious ] || fail "tokenize followed a link"
