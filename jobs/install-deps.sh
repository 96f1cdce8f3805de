#!/bin/sh
# install-deps.sh [tests]: installs the Debian or Ubuntu packages that building and training need, with `tests` also
# those that only the tests need (a Slurm), when any is missing.
# As root, or as a user with sudo. On other systems, or without either, it names what is missing and stops; README
# "On a cluster without root" says how to go on there.
set -eu

packages="gcc g++ meson ninja-build pkg-config git ca-certificates perl xz-utils
 libdnnl-dev libopenmpi-dev openmpi-bin libhdf5-dev libsentencepiece-dev libxxhash-dev libjansson-dev
 libtomlplusplus-dev libssl-dev liblapacke-dev libopenblas-dev libcmocka-dev gnuplot-nox libsword-utils"

[ "${1:-}" != tests ] || packages="$packages slurmctld slurmd slurm-client munge procps hostname iproute2 valgrind libboost-context-dev"

if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "install-deps.sh: no dpkg on this system; install the equivalents of:" >&2
    echo "$packages" >&2
    exit 5
fi

missing=""
for package in $packages; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1; then
    as_root="sudo"
else
    echo "install-deps.sh: neither root nor sudo; ask for these packages:$missing" >&2
    exit 5
fi

echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
# $as_root and $missing are lists of words
# shellcheck disable=SC2086
$as_root apt-get update -qq
# shellcheck disable=SC2086
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
