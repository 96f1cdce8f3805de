#!/bin/sh
# usage: test_checkpoint_mpi.sh PROGRAM
# Writes a checkpoint with 1, 2 and 3 ranks: the files are equal byte for byte, and each is read with 1, 2 and 3 ranks. A tensor
# damaged by one byte is refused by all ranks.
set -eu
program=$1
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d "${TMPDIR:-/tmp}/spectron-test-XXXXXX")
trap 'rm -rf "$folder"' EXIT
SPT_TEST_SEED=${SPT_TEST_SEED:-$(date +%s)}
export SPT_TEST_SEED
echo "SPT_TEST_SEED=$SPT_TEST_SEED"

for ranks in 1 2 3; do
    sh "$here/mpi_run.sh" "$ranks" "$program" write "$folder/$ranks.h5"
done
cmp "$folder/1.h5" "$folder/2.h5"
cmp "$folder/1.h5" "$folder/3.h5"
for ranks in 1 2 3; do # written by $ranks, read by another number
    sh "$here/mpi_run.sh" $((ranks % 3 + 1)) "$program" read "$folder/$ranks.h5"
done

size=$(wc -c <"$folder/1.h5")
for ranks in 1 3; do # near the end lies the large tensor
    cp "$folder/1.h5" "$folder/damaged.h5"
    at=$((size - 100000))
    byte=$(od -An -tu1 -j "$at" -N 1 "$folder/damaged.h5" | tr -d ' ')
    # shellcheck disable=SC2059
    printf "\\$(printf %o $((255 - byte)))" | dd of="$folder/damaged.h5" bs=1 seek="$at" conv=notrunc 2>/dev/null
    sh "$here/mpi_run.sh" "$ranks" "$program" damaged "$folder/damaged.h5"
done
