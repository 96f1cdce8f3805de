#!/bin/sh
# Two ranks in two network namespaces, as on two hosts. One is killed: the other says where it was. The link between them is cut: each side must
# notice and leave by itself.
# Needs root and iproute2's `ip netns`; exits with 77 (skipped) without them.
. "$(dirname "$0")/lib.sh"
a=spt-a-$$ b=spt-b-$$
if ! ip netns add "$a" 2>netns.log; then
    echo "no network namespace can be made here: $(cat netns.log)"
    exit 77
fi
trap 'ip netns pids $b 2>/dev/null | xargs -r kill -9; ip netns pids $a 2>/dev/null | xargs -r kill -9; ip netns del $a; ip netns del $b 2>/dev/null; rm -rf "$work"' EXIT
ip netns add "$b"
ip link add "va$$" netns "$a" type veth peer name "vb$$" netns "$b"
ip -n "$a" addr add 10.77.0.1/24 dev "va$$"
ip -n "$b" addr add 10.77.0.2/24 dev "vb$$"
for side in "$a va$$" "$b vb$$"; do
    # shellcheck disable=SC2086
    set -- $side
    ip -n "$1" link set lo up
    ip -n "$1" link set "$2" up
done

# mpirun's remote shell: the second host is the second namespace
cat >agent <<END
#!/bin/sh
shift
exec ip netns exec $b env TMPDIR=$work/tmp-b sh -c "\$*"
END
chmod +x agent
mkdir tmp-a tmp-b

make_data
make_job job.toml run
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_WAIT_POLICY=passive
# start RUN: a rank in each namespace, in the background
start() {
    TMPDIR=$work/tmp-a ip netns exec "$a" mpirun --mca plm_rsh_agent "$work/agent" --mca btl self,tcp --mca pml ob1 --mca btl_tcp_if_include 10.77.0.0/24 \
        --mca oob_tcp_if_include 10.77.0.0/24 --mca mpi_yield_when_idle 1 --host 10.77.0.1:1,10.77.0.2:1 -np 2 --bind-to none \
        -x OMP_WAIT_POLICY "$trainer" --threads 1 --set run.output="$work/$1" --set checkpoint.every=0 --set schedule.steps=1000000 --set validation.every=0 \
        --set dist.timeout_seconds=3 "$work/job.toml" >log 2>&1 &
    launcher=$!
    wait_records "$1" 5
    sleep 1 # some heartbeats
    [ -n "$(trainers "$a")" ] && [ -n "$(trainers "$b")" ] || { cat log; fail "not a rank in each namespace"; }
}
trainers() { # NAMESPACE: the ranks in it
    ip netns pids "$1" | while read -r pid; do
        if { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -q '^[^ ]*spectron-dist '; then echo "$pid"; fi
    done
}
all_leave() {
    began=$(date +%s) n=0
    while [ -n "$(trainers "$a")$(trainers "$b")" ]; do
        n=$((n + 1)); [ $n -lt 400 ] || { cat log; fail "after 40 s there are still ranks: $(trainers "$a") and $(trainers "$b")"; }
        sleep 0.1
    done
    note "no rank is left after $(($(date +%s) - began)) s"
}

# killed RANK NAMESPACE OTHER-RANK. Open MPI 4.1's mpirun crashes now and then as it passes on what the other rank's MPI has to say of it (a segmentation fault
# of its own in pmix_server_log_fn), and takes the other rank with it: then once more.
killed() {
    for attempt in 1 2 3; do
        note "rank $1 is killed"
        start "killed-$1-$attempt"
        # shellcheck disable=SC2046
        kill -KILL $(trainers "$2")
        all_leave
        ! wait "$launcher" || fail "success"
        grep -q 'Segmentation fault' log && grep -q pmix_server_log_fn log || break
        note "mpirun itself has crashed"
    done
    grep -q "^spectron-dist: rank $3: ended by signal 15 after step [0-9]*, in .*; at the last heartbeats: rank $1 after step [1-9][0-9]*, in [a-z]" log ||
        { cat log; fail "no word of where rank $1 was"; }
    grep '^spectron-dist:' log
}
killed 1 "$b" 0
killed 0 "$a" 1

note "the link is cut"
start run
ip -n "$b" link set "vb$$" down
all_leave
grep -q '^spectron-dist: rank 1 gives no sign of life for [0-9]* s, after step [0-9]*, in ' log || { cat log; fail "rank 0 does not name rank 1"; }
grep '^spectron-dist:' log
kill "$launcher" 2>/dev/null || :
