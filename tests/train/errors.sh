#!/bin/sh
# What goes wrong has a documented exit code and one clear line, on one rank and on several; nothing saved is lost.
. "$(dirname "$0")/lib.sh"
make_data
make_job job.toml run
expect 2 'usage' mpi 2
expect 2 'missing.toml' mpi 2 missing.toml
expect 2 'hiden.*hidden' mpi 2 --set model.hiden=64 job.toml
sed 's/^hidden = 48/hidden = "wide"/' job.toml >typed.toml
expect 2 'typed.toml:6' mpi 2 typed.toml
echo '[run' >broken.toml
expect 2 'broken.toml:1' mpi 2 broken.toml
expect 2 'sequences' mpi 5 job.toml
if grep -q 'no CUDA device' "$trainer"; then # a build with CUDA, on a machine without
    [ -e /dev/nvidiactl ] || expect 5 'no CUDA device: .*--backend cpu' mpi 2 --backend cuda job.toml
else
    expect 2 'no CUDA backend' mpi 1 --backend cuda job.toml
fi
expect 3 'nothing-here' mpi 2 --set 'data.train="data/nothing-here-*.h5"' job.toml
expect 3 'vocab' mpi 2 --set model.vocab=200 job.toml

note "validation shards of another tokenizer"
if "$spectron" tokenize --train-vocab 400 --output pieces text/prose.txt >tokenize.log 2>&1; then
    expect 3 'validation-00000.h5.*tokenizer' mpi 2 --set model.vocab=400 --set 'data.validation="pieces/validation-*.h5"' --set run.output=run-mixed job.toml
else # only a build without SentencePiece may go without this case
    grep -q 'SentencePiece' tokenize.log && ! ldd "$spectron" | grep -q sentencepiece || { cat tokenize.log; fail "tokenize"; }
    note "not checked: this build has no SentencePiece"
fi

note "a damaged shard: named, during training, on all ranks' behalf"
mkdir damaged
cp data/*.h5 damaged/
size=$(stat -c %s damaged/train-00000.h5)
dd if=/dev/zero of=damaged/train-00000.h5 bs=1 seek=$((size / 2)) count=64 conv=notrunc 2>/dev/null
expect 3 'train-00000.h5' mpi 2 --set 'data.train="damaged/train-*.h5"' --set run.output=run-damaged --set schedule.steps=400 --set validation.every=0 job.toml
head -c 3000 data/train-00000.h5 >damaged/train-00000.h5
expect 3 'train-00000.h5' mpi 2 --set 'data.train="damaged/train-*.h5"' --set run.output=run-cut job.toml

note "damaged checkpoints"
mpi 2 job.toml >log 2>&1 || { cat log; fail train; }
cp run/checkpoints/step-00000010.h5 good.h5
dd if=/dev/zero of=run/checkpoints/step-00000020.h5 bs=1 seek=20000 count=64 conv=notrunc 2>/dev/null
mpi 2 --resume --set schedule.steps=21 job.toml >log 2>&1 || { cat log; fail "the older intact checkpoint must serve"; }
grep -q 'step-00000020.h5' log || { cat log; fail "the damaged checkpoint is not named"; }
for file in run/checkpoints/*.h5; do head -c 5000 "$file" >x && cat x >"$file"; done
expect 3 'checkpoint' mpi 2 --resume job.toml
expect 3 'bad.h5' sh -c "head -c 5000 good.h5 >bad.h5; '$trainer' --threads 1 --resume=bad.h5 --set run.output=run-bad job.toml"
expect 3 'text/prose.txt' mpi 1 --init-from text/prose.txt --set run.output=run-prose job.toml

note "an output folder that cannot be made, and a full disk"
expect 2 '/proc/none' mpi 1 --set 'run.output="/proc/none"' job.toml
# a limit on file sizes is the full disk that needs no file system of its own; the launcher itself stays outside of it
limited() {
    OMPI_MCA_btl=self sh "$mpi_run" 1 sh -c 'ulimit -f 128; exec "$@"' limited "$trainer" --threads 1 "$@"
}
status=0; limited --set run.output=run-full job.toml >log 2>&1 || status=$?
[ $status = 5 ] || { cat log; fail "a full disk gave exit $status instead of 5"; }
grep -q '^spectron-dist: step 10 is not saved: .*step-00000010.h5.part' log || { cat log; fail "no line on step 10"; }
[ -z "$(ls run-full/checkpoints)" ] || fail "a failed save left $(ls run-full/checkpoints)"

note "one rank fails while the others wait for it: said by that rank, the job ends"
expect 5 'rank 1 .*step [0-9]*, parameter gather' timeout 60 sh "$mpi_run" 3 env LD_PRELOAD="$build/tests/libspt_fail_gather.so${LD_PRELOAD:+:$LD_PRELOAD}" "$trainer" --threads 1 \
    --set run.output=run-failing --set checkpoint.every=2 --set schedule.steps=400 --set validation.every=0 job.toml
"$spectron" inspect "$(ls run-failing/checkpoints/step-*.h5 | tail -1)" | grep -q 'verified' || fail "the newest checkpoint of the failed run"
