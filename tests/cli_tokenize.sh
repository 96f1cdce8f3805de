#!/bin/sh
# cli_tokenize.sh SPECTRON [sentencepiece]: the tools tokenize, inspect and baseline as a user runs them; their exit codes and messages. The second
# word runs the part that needs SentencePiece, without it the rest is run.
set -eu
spectron=$(cd "$(dirname "$1")" && pwd)/${1##*/}
work=$(mktemp -d "${TMPDIR:-/tmp}/spectron-cli-XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
fail() { echo "cli_tokenize: $*" >&2; exit 1; }
# expect STATUS TEXT COMMAND…: the exit status, and TEXT in what it prints; on failure exactly one line on stderr, beginning with the program's name.
expect() {
  status=$1 text=$2; shift 2
  got=0; "$@" >out 2>err || got=$?
  [ "$got" -eq "$status" ] || { cat out err >&2; fail "exit $got, not $status: $*"; }
  cat out err | grep -qF -- "$text" || { cat out err >&2; fail "no '$text': $*"; }
  [ "$status" -eq 0 ] || { [ "$(wc -l <err)" -eq 1 ] && grep -q '^spectron: ' err; } || { cat err >&2; fail "not one line of error: $*"; }
}
value() { sed -n "s/^$1 //p" out; }

# 300 documents of a few sentences; two of them hold the whole byte alphabet's rarer parts.
awk 'BEGIN { srand(7); n = split("the low rank matrix trains on a cluster with momentum and spectral norm of its factors", w, " ");
  for (d = 0; d < 300; d++) { for (s = 0; s < 4; s++) { line = ""; for (k = 0; k < 12; k++) line = line w[1 + int(rand() * n)] (k < 11 ? " " : "."); print line } print "" } }' >text.txt
printf 'Gr\303\266\303\237e  zwei\r\n\ttab\n\n\n\n\360\237\230\200\n' >>text.txt

# Trained tokenizer: beside the shards, found by inspect, checked by its digest.
if [ "${2:-}" = sentencepiece ]; then
  expect 3 'none.model' "$spectron" tokenize --tokenizer none.model --output d text.txt
  expect 3 'text.txt' "$spectron" tokenize --tokenizer text.txt --output d text.txt
  expect 0 'tokenizer: 320 tokens' "$spectron" tokenize --train-vocab 320 --validation-share 0.1 --output t text.txt
  [ -e t/tokenizer.model ] || fail "no tokenizer.model"
  expect 0 'low rank' "$spectron" inspect --sample 400 t/train-00000.h5
  expect 0 'train: ' "$spectron" tokenize --tokenizer t/tokenizer.model --validation-share 0.1 --output u text.txt
  cmp t/train-00000.h5 u/train-00000.h5 || fail "the model gives other tokens when it is loaded"
  cmp t/tokenizer.model u/tokenizer.model || fail "the model was not copied"
  expect 3 'tokenizer' "$spectron" inspect --tokenizer byte t/train-00000.h5
  expect 0 'train: ' "$spectron" tokenize --output d text.txt
  expect 3 'vocabulary' "$spectron" baseline --train 'd/*.h5' --validation 't/validation-*.h5'
  expect 2 'exclude' "$spectron" tokenize --tokenizer byte --train-vocab 400 --output v text.txt
  echo "cli_tokenize: the part with SentencePiece passed"
  exit 0
fi

for tool in tokenize inspect baseline report; do expect 0 Example "$spectron" "$tool" --help; done
expect 0 tokenize "$spectron" --help
expect 2 'no tool is called' "$spectron" tokenise
expect 2 'no tool named' "$spectron"
expect 2 '--output' "$spectron" tokenize text.txt
expect 2 "'--bogus'" "$spectron" tokenize --bogus text.txt
expect 2 'value is missing' "$spectron" tokenize text.txt --output
expect 2 '--validation-share' "$spectron" tokenize --validation-share 1.5 --output d text.txt
expect 2 '--shard-tokens' "$spectron" tokenize --shard-tokens 12x --output d text.txt
expect 3 'absent.txt' "$spectron" tokenize --output d absent.txt
[ ! -e d ] || fail "a refused run left a folder"
: >empty.txt
expect 3 'empty.txt' "$spectron" tokenize --output d empty.txt

# The byte tokenizer: shards, split, refusal to overwrite, the same files on any number of threads.
expect 0 'train: ' "$spectron" tokenize --validation-share 0.1 --shard-tokens 20000 --threads 1 --output d text.txt
[ -e d/train-00001.h5 ] && [ -e d/validation-00000.h5 ] || fail "shards are missing: $(ls d)"
expect 2 'train-00000.h5: exists already' "$spectron" tokenize --output d text.txt
expect 0 'train: ' "$spectron" tokenize --validation-share 0.1 --shard-tokens 20000 --threads 3 --output e text.txt
sleep 1 # not even the time of day may show in them
expect 0 'train: ' "$spectron" tokenize --validation-share 0.1 --shard-tokens 20000 --threads 2 --force --output e text.txt
for file in d/*; do cmp "$file" "e/${file#d/}" || fail "$file depends on the number of threads"; done
expect 0 'train: ' "$spectron" tokenize --validation-share 0 --force --output d text.txt
[ "$(ls d)" = train-00000.h5 ] || fail "--force left old shards: $(ls d)"
[ -z "$(find . -name '*.part' -o -name '*.raw')" ] || fail "temporary files are left"

# Every document comes back, in order: the sample of all tokens is the text without its blank lines' number.
expect 0 'verified: all checksums' "$spectron" inspect --sample 1000000 d/train-00000.h5
sed '1,/^sample: /d' out | sed '$d' >decoded.txt
sed 's/\r$//' text.txt | grep . >lines.txt
sed 's/\r$//' decoded.txt | grep . | cmp - lines.txt || fail "decoding does not give the text back"
bytes=$(sed -n 's/^text: \([0-9]*\) bytes.*/\1/p' out)
[ "$bytes" -gt 20000 ] && [ "$bytes" -lt "$(wc -c <text.txt)" ] || fail "text bytes: $bytes"

# --documents file
printf 'one\n\ntwo\n' >one.txt
expect 0 'train: 1 documents, 9 tokens' "$spectron" tokenize --documents file --validation-share 0 --output f one.txt
expect 0 'train: 2 documents, 8 tokens' "$spectron" tokenize --documents blank-line --validation-share 0 --output g one.txt

# The baseline against its definition: 'ab' and 'ba' with their ends (256) as one stream a b E b a E, V = 257.
printf 'ab\n\nba\n' >ab.txt
"$spectron" tokenize --validation-share 0 --output h ab.txt >/dev/null
expect 0 'perplexity' "$spectron" baseline --train 'h/train-*.h5' --validation 'h/train-*.h5'
awk -v loss="$(value loss)" -v bits="$(value bits_per_byte)" 'BEGIN {
  want = (log(259 / 2) * 4 + log(258 / 2)) / 5; # pairs ab bE Eb ba aE; a and b begin two of them each, E one
  if ((loss - want) ^ 2 > 1e-10 || (bits - want * 6 / 4 / log(2)) ^ 2 > 1e-10) { print loss, want, bits; exit 1 } }' || fail "the baseline's loss"
expect 2 '--validation' "$spectron" baseline --train 'h/*.h5'
expect 3 'nothing-*.h5' "$spectron" baseline --train 'h/train-*.h5' --validation 'nothing-*.h5'

# Damage and other files: exit 3.
cp d/train-00000.h5 bad.h5
size=$(wc -c <bad.h5)
printf '\377' | dd of=bad.h5 bs=1 seek=$((size / 2)) conv=notrunc 2>/dev/null
cmp -s bad.h5 d/train-00000.h5 && fail "no byte was changed"
expect 3 'bad.h5: damaged' "$spectron" inspect bad.h5
head -c 5000 d/train-00000.h5 >cut.h5
expect 3 'cut.h5' "$spectron" inspect cut.h5
expect 3 'text.txt' "$spectron" inspect text.txt
expect 3 'absent.h5' "$spectron" inspect absent.h5
echo "cli_tokenize: passed"
