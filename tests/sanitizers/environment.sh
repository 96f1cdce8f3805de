# To be sourced with $source (the tree) set: how programs run under each tool, and where it reports.
#   asan_environment REPORT    tsan_environment REPORT    mpi_environment LIBRARY    checker REPORT
# REPORT is the beginning of the reports' names: PROGRAM.PROCESS follows. Reports go to files, because a test may read its
# program's stderr, or expect the program to fail.
sanitizers=$source/tests/sanitizers

# verify_asan_link_order: the tests' own preloaded libraries come before the runtime; they call the system themselves.
asan_environment() {
    export ASAN_OPTIONS="halt_on_error=1:exitcode=99:detect_leaks=1:detect_stack_use_after_return=1:allocator_may_return_null=1:verify_asan_link_order=0:log_path=$1"
    export UBSAN_OPTIONS="halt_on_error=1:exitcode=99:print_stacktrace=1:log_path=$1"
    export LSAN_OPTIONS="exitcode=99:print_suppressions=0:suppressions=$sanitizers/hdf5.supp"
}

# Without halt_on_error: a race is reported, and the run goes on to the next.
tsan_environment() {
    plugins=$(ompi_info --path pkglibdir --parsable 2>/dev/null | sed -n "s/^path:pkglibdir://p" | head -n 1)
    { cat "$sanitizers/tsan.supp"; find "${plugins:-/none}" -name 'mca_*.so' 2>/dev/null | sed 's|.*/|called_from_lib:|'; } >"$1-suppressions"
    export TSAN_OPTIONS="exitcode=99:history_size=5:second_deadlock_stack=1:suppressions=$1-suppressions:log_path=$1"
    export OMP_NUM_THREADS=1 # GCC's OpenMP does not tell ThreadSanitizer of its barriers; it is not what is looked at here
}

# What MPI programs need besides; LIBRARY is made of keep_loaded.c.
mpi_environment() {
    [ -f "$1" ] || cc -shared -fPIC -o "$1" "$sanitizers/keep_loaded.c"
    export LD_PRELOAD="$1"
    export LSAN_OPTIONS="exitcode=99:print_suppressions=0:suppressions=$sanitizers/lsan.supp"
}

# The command that a program runs under: valgrind's memcheck. oneDNN writes its code for the processor at hand, and valgrind
# knows no AVX-512: AVX2 is the limit, for our own loops too.
# One thread runs at a time: fair-sched, or one that waits in MPI keeps the others from running.
checker() {
    export ONEDNN_MAX_CPU_ISA=AVX2
    supplied=/usr/share/openmpi/openmpi-valgrind.supp
    checker="valgrind --quiet --fair-sched=yes --error-exitcode=99 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite
 --keep-debuginfo=yes --num-callers=30 --gen-suppressions=all --child-silent-after-fork=yes
 --suppressions=$sanitizers/valgrind.supp --log-file=$1.%p"
    [ ! -f "$supplied" ] || checker="$checker --suppressions=$supplied"
}

# HDF5 itself reads and writes where it should not on files made to be hostile. They are opened in reader processes (spt-files), which
# such a file may crash: a report of one, in HDF5's own code or in what it calls, is the library's.
of_the_library() {
    grep -q 'thread T0 (spt-files)' "$1" && sed -n 's/^ *#[01] //p' "$1" | head -n 2 | grep -v '__interceptor_' | head -n 1 | grep -q '/libhdf5'
}

# no_reports REPORT: fails, and prints them, where there are any
no_reports() {
    found=0
    for report in "$1".*; do
        [ -s "$report" ] || continue
        # an allocation that returns NULL, as it may: not an error
        grep -qv 'WARNING: AddressSanitizer failed to allocate' "$report" || continue
        # pidfd_open, which older valgrinds do not know: it fails, and the program does without
        sed '/ WARNING: unhandled .* syscall: 434$/,/ it at http.*bug_reports/d' "$report" | grep -q . || continue
        if of_the_library "$report"; then
            echo "== $report: HDF5's own, in a reader process: $(sed -n 's/^SUMMARY: //p' "$report" | cut -c 1-60)" >&2
            continue
        fi
        echo "== $report" >&2
        head -n 60 "$report" >&2
        found=1
    done
    return $found
}
