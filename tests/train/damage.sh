#!/bin/sh
# A trainer's own checkpoints, damaged at random: `spectron inspect` refuses each with 3, a resume takes the previous intact one and says so, and
# ends with 3 where none is left. Every single byte of a file in turn: tests/test_checkpoint_damage.c.
. "$(dirname "$0")/lib.sh"
seed=${SPT_TEST_SEED:-$(date +%s)}
echo "damage: SPT_TEST_SEED=$seed"
flips=${SPT_DAMAGE_FLIPS:-60}
make_data
make_job job.toml run
mpi 2 --set validation.every=0 job.toml >log 2>&1 || { cat log; fail train; }
[ "$(ls run/checkpoints)" = "best.h5
step-00000010.h5
step-00000020.h5" ] || fail "run holds $(ls run/checkpoints)"
rm run/checkpoints/best.h5
cp -r run/checkpoints good

# damage FILE TURN: most often flips a random bit, else cuts the file, makes it longer, or clears a page of it; says what it did
damage() {
    perl -e 'use Fcntl; my ($file, $seed, $turn) = @ARGV; srand($seed * 1000 + $turn); my $size = -s $file;
        open(my $f, "+<:raw", $file) or die; my $at = int(rand($size)); my $kind = $turn % 6;
        if ($kind == 3) { truncate($f, $at); print "cut at $at of $size" }
        elsif ($kind == 4) { my $more = 1 + int(rand(5000)); sysseek($f, $size, 0); syswrite($f, "\0" x $more); print "$more bytes more" }
        elsif ($kind == 5) { my ($page, $old) = ($at - $at % 4096); sysseek($f, $page, 0); my $n = sysread($f, $old, 4096);
            my $new = "\0" x $n; $new = "\xff" x $n if $new eq $old; sysseek($f, $page, 0); syswrite($f, $new); print "page $page of $size" }
        else { my ($bit, $old) = int(rand(8)); sysseek($f, $at, 0); sysread($f, $old, 1); sysseek($f, $at, 0);
            syswrite($f, chr(ord($old) ^ (1 << $bit))); print "bit $bit of byte $at of $size" }' "$1" "$seed" "$2"
}

note "spectron inspect"
found=0 turn=0
while [ $turn -lt "$flips" ]; do
    cp good/step-00000020.h5 damaged.h5
    what=$(damage damaged.h5 $turn)
    status=0; "$spectron" inspect damaged.h5 >out.log 2>err.log || status=$?
    [ $status = 3 ] || { cat out.log err.log; fail "$what: exit $status instead of 3"; }
    [ "$(grep -c '^spectron inspect: .*damaged.h5' err.log)" = 1 ] || [ "$(grep -c '^spectron: .*damaged.h5' err.log)" = 1 ] || { cat err.log; fail "$what: no line that names the file"; }
    if grep -q '^verified' out.log; then fail "$what: called right"; fi
    found=$((found + 1)) turn=$((turn + 1))
done
note "$found of $flips found"

note "resume"
tried=0
while [ $tried -lt 6 ]; do
    rm -rf run-back
    mkdir -p run-back/checkpoints
    cp good/*.h5 run-back/checkpoints/
    cp run/metrics.jsonl run-back/
    what=$(damage run-back/checkpoints/step-00000020.h5 $((10000 + tried)))
    mpi 2 --resume --set run.output=run-back --set validation.every=0 job.toml >log 2>&1 || { cat log; fail "$what: resume"; }
    grep -q '^skipped .*step-00000020.h5' log || { cat log; fail "$what: the damaged checkpoint is not named"; }
    grep -q '^resumed at step 10 ' log || { cat log; fail "$what: not resumed at step 10"; }
    "$compare" good/step-00000020.h5 run-back/checkpoints/step-00000020.h5 0 >/dev/null || fail "$what: another end"
    tried=$((tried + 1))
done
note "$tried of 6 went back to the previous one and came to the same end"
damage run-back/checkpoints/step-00000020.h5 20000; echo
damage run-back/checkpoints/step-00000010.h5 20001; echo
if [ -f run-back/checkpoints/best.h5 ]; then cp run-back/checkpoints/step-00000010.h5 run-back/checkpoints/best.h5; fi
expect 3 'none of [23] checkpoint files is intact' mpi 2 --resume --set run.output=run-back job.toml
