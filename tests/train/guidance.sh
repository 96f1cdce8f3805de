#!/bin/sh
# [guidance]: the same training on any number of ranks; a resume before, at and after its end; the guides gone then; validations with and without them.
. "$(dirname "$0")/lib.sh"
make_data
make_job job.toml run
sed -i 's/^seed = 7/seed = 7/; s/^tokens = 2048/tokens = 1024/; s/^every = 10/every = 4/; s/^\[schedule\]/[guidance]\nmethod = "self-guided"\nfraction = 0.4\n[schedule]/' job.toml
sed -i 's/^steps = 20/steps = 15/; s/^lr = 0.02/lr = 0.02\ngrad_clip = 0.5/' job.toml # guidance ends at step 6; saves at 4, 8, 12, 15
last=checkpoints/step-00000015.h5
run() { # NAME RANKS OPTION...
    name=$1 p=$2
    shift 2
    mpi "$p" --set run.output="run-$name" "$@" job.toml >log 2>&1 || { cat log; fail "$name"; }
}
guides() { "$spectron" inspect "$1" >inspect.log || { cat inspect.log; fail "inspect $1"; }; grep -c '^.*/model/.*\.guide' inspect.log || true; }
value() { sed -n "s/^{\"step\":$2,.*\"$3\":\([^,}]*\).*/\1/p" "run-$1/metrics.jsonl"; }
