#!/bin/sh
# usage: mpi_run.sh RANKS PROGRAM [ARGUMENT]...
# Runs a test on RANKS processes of this machine, more than it has cores if need be, as root or not, under Open MPI or MPICH.
# $MPIEXEC names another launcher. Exit status: the launcher's.
set -eu
ranks=$1
shift
launcher=${MPIEXEC:-mpirun}

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_mpi_yield_when_idle=1                     # waiting ranks leave the cores to the others
export OMPI_MCA_btl_vader_single_copy_mechanism=none      # containers forbid process_vm_readv, with a warning
export OMPI_MCA_orte_abort_print_stack=0
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

case $("$launcher" --version 2>&1) in
*"Open MPI"* | *OpenRTE* | *PRRTE*) exec "$launcher" --oversubscribe --bind-to none -np "$ranks" "$@" ;;
*) exec "$launcher" -n "$ranks" "$@" ;; # MPICH and its family neither bind nor count slots by default
esac
