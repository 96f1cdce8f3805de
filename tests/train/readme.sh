#!/bin/sh
# README's own commands, taken from its text: the first own job, and the build without root and without SentencePiece.
. "$(dirname "$0")/lib.sh"
readme=$source/README.md

# block HEADING: the indented lines under it
block() { awk -v heading="## $1" '$0 == heading { on = 1; next } /^## / { on = 0 } on && /^    / { print substr($0, 5) }' "$readme"; }

note "your own first job"
mkdir configs
cp "$source/configs/tiny.toml" configs/
cat "$source"/README.md "$source"/src/*/*.h "$source"/src/*/*.c "$source"/src/*.c >my.txt
block "Your own first job" | sed "s|^build=.*|build=$build/src|" >commands
grep -q 'spectron-dist --resume' commands || fail "README has no such block any more"
# as the reader is told: name the shards; and here, make it short
sed 's|^cp .*|&\nsh ./shorten|' commands >commands.sh
cat >shorten <<'END'
sed -i 's|^train = .*|train = "../data/mine/train-*.h5"|; s|^validation = .*|validation = "../data/mine/validation-*.h5"|
        s|^steps = .*|steps = 3|; s|^seq_len = .*|seq_len = 64|; s|^layers = .*|layers = 1|; s|^hidden = .*|hidden = 64|; s|^vocab = .*|vocab = 600|' configs/my-job.toml
END
sed -i 's/--train-vocab 4096/--train-vocab 600/' commands.sh
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe # Open MPI 4, 5
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
sh -eu commands.sh >log 2>&1 || { cat commands.sh log; fail "README's first own job"; }
grep -q 'parameters  *[0-9]' log || { cat log; fail "no dry run"; }
grep -q 'validation loss' log || { cat log; fail "no report"; }

note "the build without root"
export PREFIX="$work/prefix"
block "Building elsewhere" >commands.sh
grep -q 'sentencepiece=disabled' commands.sh || fail "README has no such block any more"
(cd "$source" && sed "s|build-site|$work/build-site|" "$work/commands.sh" | sh -eu) >log 2>&1 || { tail -30 log; fail "README's build"; }
build-site/src/spectron tokenize --tokenizer byte --output bytes my.txt >/dev/null || fail "byte tokens without SentencePiece"
status=0
build-site/src/spectron tokenize --train-vocab 600 --output pieces my.txt 2>err.log || status=$?
[ $status = 2 ] && grep -qi sentencepiece err.log || { cat err.log; fail "SentencePiece missing must be said (exit $status)"; }
