#!/bin/sh
# jobs/check-site.sh under a real Slurm of three virtual nodes: a site without faults gives none of those that do not
# depend on the machine's load; planted faults are each found, with the node and the setting named.
. "$(dirname "$0")/../train/lib.sh"
. "$source/tests/slurm/sandbox.sh"
trap 'sandbox_down; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

program=$build/src/spectron-check-site
export SPECTRON="$source" CHECK_SITE="$program"
began=$(date +%s)
step() { echo "-- [$(($(date +%s) - began)) s] $*"; }
chmod 755 "$work" # munge wants a socket that all can reach

# field JOB NAME: of scontrol's account of a job
field() { scontrol show job "$1" 2>/dev/null | tr ' ' '\n' | sed -n "s/^$2=//p" | head -n 1; }
has_ended() { case $(field "$1" JobState) in COMPLETED | FAILED | CANCELLED | TIMEOUT | NODE_FAIL) return 0 ;; esac; return 1; }
# check NAME CODES DISTURBED OPTION...: a job of the script; its report is in NAME.log (not sbatch --wait, which looks twice a
# minute). Open MPI's ranks on "nodes" that are one host crash in MPI_Init now and then (4 of 30 starts by srun): the script
# reports that as it should, as a launcher that does not work, and a report with DISTURBED is made again, up to six times.
check() {
    name=$1 codes=$2 disturbed=$3 attempts=0
    shift 3
    while :; do
        rm -f "$name.log"
        job=$(sbatch --parsable --job-name="$name" --output="$work/$name.log" "$@" "$source/jobs/check-site.sh" "$work/shared")
        sandbox_wait 200 "the end of $name" has_ended "$job" || { cat "$name.log"; squeue; fail "$name did not end"; }
        [ -z "$(ls -A shared)" ] || fail "$name left $(ls -A shared)"
        attempts=$((attempts + 1))
        grep -qE "$disturbed" "$name.log" && [ $attempts -lt 6 ] || break
        step "$name again: $(grep -m 1 -E "$disturbed" "$name.log" | cut -c1-150)"
    done
    code=$(field "$job" ExitCode)
    case " $codes " in *" ${code%:*} "*) ;; *) cat "$name.log"; fail "$name: exit code $code instead of $codes" ;; esac
}
# says NAME PATTERN: on a line; says_not NAME PATTERN
says() { grep -qE "$2" "$1.log" || { cat "$1.log"; fail "$1: no '$2'"; }; }
says_not() { ! grep -E "$2" "$1.log" || { cat "$1.log"; fail "$1: '$2' where there is no such fault"; }; }

mkdir shared
sandbox_up slurm 3 4 2
step "Slurm is up"

step "a site without faults"
BACKEND=cpu check fine "0 5" '(launcher|measuring) .*(not work|exit code)' --nodes=3 --ntasks-per-node=1 --cpus-per-task=1 # 5: a busy machine may look slow
says fine '^OK   launcher  srun, a rank a node: 3 ranks on 3 nodes'
says fine '^OK   launcher  srun, all ranks: 3 ranks on 3 nodes'
says fine '^OK   launcher  mpirun, all ranks: 3 ranks on 3 nodes'
says fine '^OK   gpu '
says fine '^OK   link      3 links between nodes, median latency [0-9.e+]+ µs, both ways [0-9.]+ GB/s'
says fine '^OK   files     the same folder on 3 nodes'
says fine '^OK   files     HDF5 writes and reads, with and without'
says fine '^OK   files     rename takes'
says fine '^OK   files     flock and fcntl locks work across nodes'
says fine '^OK   files     .* fsync/s, .* MB/s written'
says fine '^[0-9]+ FAIL, [0-9]+ WARN$'
says_not fine '^FAIL (launcher|binding|gpu|files|measuring)'

step "faults: n2 slow and one of its ranks bound to one CPU, n3 with a folder and a GPU choice of its own"
cat >spoiled <<END
#!/bin/sh
CUDA_VISIBLE_DEVICES=0,1 # Slurm sets it where GPUs are devices, not the files of this sandbox
export CUDA_VISIBLE_DEVICES
case \$SLURMD_NODENAME:\$SLURM_LOCALID in
n2:1) LD_PRELOAD=$build/tests/libspt_spoil_site.so exec taskset -c 0 $program "\$@" ;;
n2:*) LD_PRELOAD=$build/tests/libspt_spoil_site.so exec $program "\$@" ;;
n3:*) CUDA_VISIBLE_DEVICES=1
    case " \$* " in *" --folder "*) set -- "\$@" --folder $work/of-n3 ;; esac
    exec $program "\$@" ;;
*) exec $program "\$@" ;;
esac
END
chmod 755 spoiled
mkdir no_mpirun
printf '#!/bin/sh\necho "mpirun: error: not on this site" >&2\nexit 1\n' >no_mpirun/mpirun
chmod 755 no_mpirun/mpirun
export SPT_SLOW_NODE=n2
PATH=$work/no_mpirun:$PATH CHECK_SITE=$work/spoiled BACKEND=cuda check faults 5 '^FAIL (launcher|measuring) ' --nodes=3 --ntasks-per-node=2 --cpus-per-task=2 --gpus-per-node=2
unset SPT_SLOW_NODE
says faults '^WARN launcher  mpirun, a rank a node does not work: .*; keep LAUNCHER=srun'
says faults '^OK   ranks     n2: rank 2: CPUs [-0-9,]+, 2 threads, GPU 0; rank 3: CPUs 0, 2 threads, GPU 1'
says faults '^FAIL binding   rank 3 \(n2\): 2 threads on 1 CPU \(0\); set --cpus-per-task=2'
says faults '^FAIL gpu       ranks 4 and 5 \(n3\) both take GPU 1; .*--gpus-per-node'
says_not faults '^FAIL gpu .*ranks [0-3] '
says faults '^FAIL link      n2 is slow: best bandwidth .*; set --exclude=n2'
says faults '^FAIL link      n2 is slow: best latency .*; set --exclude=n2'
says faults '^WARN files     n2 is slow: .* fsync/s .*; set --exclude=n2'
says faults "^FAIL files     $work/shared is not the same folder on n1 and n3; put "
says_not faults 'not the same folder on n1 and n2'
[ ! -e of-n3 ] || fail "a folder was left: of-n3"

step "srun without PMIx: asked for, it is found not to work; left to choose, the script takes mpirun"
mkdir bin
cat >bin/srun <<END
#!/bin/sh
case " \$* " in *" --mpi=list "*) echo "MPI plugin types are..."; echo none; exit 0 ;; esac
for word; do
    shift
    [ "\$word" != --mpi=pmix ] || word=--mpi=none
    set -- "\$@" "\$word"
done
exec $(command -v srun) "\$@"
END
chmod 755 bin/srun
PATH=$work/bin:$PATH LAUNCHER=srun BACKEND=cpu check no_pmix 5 '(mpirun.* not work|^FAIL measuring) ' --nodes=2 --ntasks-per-node=1 --cpus-per-task=1
says no_pmix '^FAIL launcher  srun, a rank a node does not work: .*; set LAUNCHER=mpirun'
says no_pmix '^OK   launcher  mpirun, all ranks: 2 ranks on 2 nodes'
says no_pmix '^OK   files     the same folder on 2 nodes'
PATH=$work/bin:$PATH BACKEND=cpu check auto "0 5" '^FAIL (launcher|measuring) ' --nodes=2 --ntasks-per-node=1 --cpus-per-task=1
says auto '^WARN launcher  Slurm has no PMIx .*LAUNCHER=mpirun'
says_not auto '^FAIL launcher'

step "usage; without Slurm"
expect_usage() { status=0; "$@" >usage.log 2>&1 || status=$?; [ $status = 2 ] || { cat usage.log; fail "exit code $status instead of 2: $*"; }; }
expect_usage bash "$source/jobs/check-site.sh" one two
expect_usage env LAUNCHER=rsh bash "$source/jobs/check-site.sh" shared
expect_usage env CHECK_SITE="$work/nothing" bash "$source/jobs/check-site.sh" shared
expect_usage "$program" --threads none
{ # a pipe, because a report whose standard output is a file is in that file only
    status=0
    env -u OMPI_MCA_btl_tcp_if_include OMPI_MCA_btl=self,vader,tcp RANKS=2 bash "$source/jobs/check-site.sh" new-folder 2>&1 || status=$?
    echo $status >local.status
} | cat >local.log
case $(cat local.status) in 0 | 5) ;; *) cat local.log; fail "without Slurm: exit code $(cat local.status)" ;; esac
says local '^OK   launcher  mpirun, all ranks: 2 ranks on 1 node$'
says local '^OK   link      1 link between ranks of one node'
cmp -s check-site-local.txt local.log || fail "the report's file differs"
step "done"
