# sandbox.sh: a private Slurm of several virtual nodes on this machine, without systemd: its own munge, ports, configuration
# and state, all in one folder. Sourced by the tests here.
#
# sandbox_up FOLDER NODES CPUS GPUS   starts it, and waits until the nodes are idle; exports SLURM_CONF and what Open MPI needs there
# sandbox_patient_srun                puts an srun before Slurm's that repeats a start of MPI ranks which crashes in MPI_Init
# sandbox_down                        cancels all jobs, stops all daemons
# sandbox_node_dies NODE              kills a node's daemon and everything that runs on it
# Nodes are called n1, n2 …; partitions: normal (default; jobs can be preempted) and urgent (preempts).
PATH=$PATH:/usr/sbin:/sbin
export PATH

sandbox_ports() { # N: so many free ports, taken together so that they differ
    perl -MIO::Socket::INET -e 'my @s = map { IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1") } 1 .. $ARGV[0];
        print join(" ", map { $_->sockport } @s), "\n"' "$1"
}

sandbox_config() { # NODES CPUS GPUS
    nodes=$1 cpus=$2 gpus=$3 host=$(hostname -s)
    # shellcheck disable=SC2046
    set -- $(sandbox_ports $((nodes + 1)))
    cat <<END
ClusterName=sandbox
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$1
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$sandbox/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation=$sandbox/state
SlurmdSpoolDir=$sandbox/spool/%n
TmpFS=$sandbox/tmp/%n
SlurmctldPidFile=$sandbox/slurmctld.pid
SlurmdPidFile=$sandbox/slurmd-%n.pid
SlurmctldLogFile=$sandbox/log/slurmctld
SlurmdLogFile=$sandbox/log/slurmd-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MailProg=/bin/true
ReturnToService=2
KillWait=2
SlurmdTimeout=6
MinJobAge=300
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
JobRequeue=1
GresTypes=gpu
PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
END
    shift
    for node in $(seq "$nodes"); do
        echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$1 CPUs=$cpus RealMemory=1000 Gres=gpu:$gpus State=UNKNOWN"
        shift
    done
}

sandbox_up() {
    mkdir -p "$1/state" "$1/log"
    sandbox=$(cd "$1" && pwd) sandbox_nodes=$2
    chmod 755 "$sandbox"
    sandbox_config "$2" "$3" "$4" >"$sandbox/slurm.conf"
    mkdir -p "$sandbox/dev" # empty files stand in for the GPUs: nothing here opens one
    for gpu in $(seq 0 $(($4 - 1))); do : >"$sandbox/dev/gpu$gpu"; done
    echo "Name=gpu File=$sandbox/dev/gpu[0-$(($4 - 1))]" >"$sandbox/gres.conf"
    head -c 1024 /dev/urandom >"$sandbox/munge.key"
    chmod 600 "$sandbox/munge.key"
    munged -F --key-file="$sandbox/munge.key" --socket="$sandbox/munge.sock" --pid-file="$sandbox/munged.pid" \
        --log-file="$sandbox/log/munged" --seed-file="$sandbox/munge.seed" >"$sandbox/log/munged.out" 2>&1 &
    sandbox_pids=$!
    sandbox_wait 5 "munge" test -S "$sandbox/munge.sock"
    export SLURM_CONF="$sandbox/slurm.conf"
    # "Nodes" of one machine must not share memory: that is the sandbox's affair, not the templates'. Ports apart from those of other MPI jobs
    # here, which such a "node" could take for a rank of its own.
    export OMPI_MCA_btl=self,tcp OMPI_MCA_pml=ob1 OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_mpi_yield_when_idle=1
    export OMPI_MCA_btl_tcp_port_min_v4=$((20000 + $$ % 20000)) OMPI_MCA_btl_tcp_port_range_v4=1000
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_WAIT_POLICY=passive
    export PMIX_MCA_gds=hash # no shared memory between the "nodes" here either: ranks were seen to crash in MPI_Init
    slurmctld -D -c >"$sandbox/log/slurmctld.out" 2>&1 &
    sandbox_pids="$! $sandbox_pids"
    for node in $(seq "$2"); do
        mkdir -p "$sandbox/spool/n$node" "$sandbox/tmp/n$node"
        slurmd -D -N "n$node" >"$sandbox/log/slurmd-n$node.out" 2>&1 &
        sandbox_pids="$! $sandbox_pids"
        eval "sandbox_slurmd_n$node=$!"
    done
    sandbox_wait 20 "idle nodes" sandbox_idle
}
sandbox_idle() { [ "$(sinfo -h -p normal -N -t idle -o %N 2>/dev/null | wc -l)" = "$sandbox_nodes" ]; }

# sandbox_wait SECONDS WHAT COMMAND...: until the command succeeds
sandbox_wait() {
    tries=$((20 * $1)) what=$2
    shift 2
    while ! "$@"; do
        tries=$((tries - 1))
        if [ $tries -le 0 ]; then
            echo "sandbox: waited in vain for $what" >&2
            tail -n 5 "$sandbox"/log/* >&2
            return 1
        fi
        sleep 0.05
    done
}

# Where several nodes are one host, Open MPI 4.1 over Slurm's PMIx now and then lets some ranks out of MPI_Init while another is still in it,
# and their first message crashes that one (a call of a null pointer, tag 65 of btl_tcp): no fault of what is tested here. Such a start, known by its
# words and by having printed nothing else yet, is made again; each is told in the job's log.
sandbox_patient_srun() {
    mkdir -p "$sandbox/bin"
    cat >"$sandbox/bin/srun" <<END
#!/bin/bash
real=$(command -v srun)
case " \$* " in *" --mpi=pmix "*) ;; *) exec "\$real" "\$@" ;; esac
log=\$(mktemp)
trap 'rm -f "\$log"' EXIT
for try in 1 2 3 4 5 6; do
    "\$real" "\$@" > >(tee "\$log.out") 2> >(tee "\$log" >&2) &
    pid=\$!
    trap 'kill -USR1 \$pid' USR1
    status=127
    while kill -0 \$pid 2>/dev/null || [ \$status = 127 ]; do
        wait \$pid
        now=\$?
        [ \$now = 127 ] && break
        status=\$now
    done
    if [ \$status = 139 ] && grep -q 'Failing at address: (nil)' "\$log" && ! grep -q ' ranks × ' "\$log.out"; then
        echo "srun of the sandbox: a rank crashed in MPI_Init; once more"
        continue
    fi
    break
done
rm -f "\$log.out"
exit \$status
END
    chmod 755 "$sandbox/bin/srun"
    PATH=$sandbox/bin:$PATH
    export PATH
}

sandbox_node_dies() {
    eval "pid=\$sandbox_slurmd_$1"
    kill -9 "$pid"
    # its step daemons and what they started have the node's name in their environment
    for process in /proc/[0-9]*; do
        if { tr '\0' '\n' <"$process/environ"; } 2>/dev/null | grep -qx "SLURMD_NODENAME=$1"; then kill -9 "${process#/proc/}" 2>/dev/null || :; fi
    done
}

sandbox_down() {
    [ -n "${sandbox_pids:-}" ] || return 0
    timeout 5 scancel -u "$(id -un)" 2>/dev/null || :
    for try in $(seq 40); do [ -n "$(timeout 5 squeue -h 2>/dev/null)" ] || break; sleep 0.1; done
    # shellcheck disable=SC2086
    kill $sandbox_pids 2>/dev/null || :
    for try in $(seq 40); do
        # shellcheck disable=SC2086
        kill -0 $sandbox_pids 2>/dev/null || break
        sleep 0.05
    done
    # shellcheck disable=SC2086
    kill -9 $sandbox_pids 2>/dev/null || :
    sandbox_pids=
}
