#!/bin/sh
# corpus.sh small|large OUT: English text from Debian packages as one file, documents separated by blank lines; the same each time for the
# same packages. small (20.7 MB, some seconds): a commentary on the Psalms, Jane Austen, the World English Bible. large (about 108 MB, a minute) adds
# kernel and Perl documentation, two dictionaries, an FAQ on politics. Nothing is installed; packages are unpacked in a temporary folder.
# Needs apt-get (any user), mod2imp, perl.
set -eu
fail() { echo "corpus.sh: $*" >&2; exit 2; }
[ $# -eq 2 ] || fail "usage: sh jobs/corpus.sh small|large OUT"
kind=$1 out=$2
case $kind in
small) packages="sword-comm-tdavid r-cran-janeaustenr sword-text-web" ;;
large) packages="sword-comm-tdavid r-cran-janeaustenr sword-text-web linux-doc-6.1 perl-doc dict-gcide wordnet-base anarchism" ;;
*) fail "'$kind' is neither small nor large" ;;
esac
for tool in apt-get dpkg-deb; do command -v $tool >/dev/null || fail "$tool is missing: the text comes from Debian packages"; done
command -v mod2imp >/dev/null || fail "mod2imp is missing: apt-get install libsword-utils"
perl -MCompress::Zlib -MPod::Text -e 1 2>/dev/null || fail "perl with its modules is missing: apt-get install perl"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP
mkdir "$work/deb" "$work/unpacked"
# shellcheck disable=SC2086
(cd "$work/deb" && apt-get -o APT::Sandbox::User= download $packages >log 2>&1) || {
  grep '^E:' "$work/deb/log" >&2 || :
  fail "a package cannot be downloaded (try apt-get update): $packages"
}
for package in "$work"/deb/*.deb; do dpkg-deb -x "$package" "$work/unpacked"; done
LC_ALL=C PERL_UNICODE='' PERL_HASH_SEED=0
export LC_ALL PERL_UNICODE PERL_HASH_SEED

# What the filters share: say(document) prints one, its lines without stray spaces, none of them blank, a long one cut at a line's end; plain(html) strips tags and entities.
cat >"$work/Corpus.pm" <<'PERL'
package Corpus;
use strict; use warnings;
use Exporter 'import';
our @EXPORT = qw(say plain slurp unwrap);
binmode STDOUT, ':utf8';
binmode STDIN, ':utf8';
sub say {
  my $text = shift;
  $text =~ s/\r//g; $text =~ s/[ \t\x{a0}]+/ /g; $text =~ s/ *\n[ \n]*/\n/g; $text =~ s/^\s+|\s+$//g;
  while (length $text > 32768 && (my $cut = rindex $text, "\n", 32768) > 0) { # a validation split by document wants many
    print substr($text, 0, $cut), "\n\n"; $text = substr $text, $cut + 1;
  }
  print "$text\n\n" if length $text;
}
my %named = (lt => '<', gt => '>', quot => '"', apos => "'", nbsp => ' ', mdash => "\x{2014}", ndash => "\x{2013}", hellip => "\x{2026}",
             lsquo => "\x{2018}", rsquo => "\x{2019}", ldquo => "\x{201c}", rdquo => "\x{201d}", eacute => "\x{e9}", amp => '&');
sub plain {
  my $text = shift;
  $text =~ s/<[^>]*>//g;
  $text =~ s/&(#x([0-9a-fA-F]{1,5})|#([0-9]{1,6})|([a-z]+));/defined $2 ? chr hex $2 : defined $3 ? chr $3 : $named{$4} \/\/ "&$4;"/ge;
  return $text;
}
sub slurp { open my $file, '<:utf8', $_[0] or die "$_[0]: $!\n"; local $/; return scalar <$file> }
# Paragraphs of wrapped lines, one a line.
sub unwrap { my $text = shift; return join "\n", map { s/\s*\n\s*/ /g; $_ } split /\n[ \t]*\n\s*/, $text }
1;
PERL

# A SWORD module: a document a chapter. Commentaries repeat an entry for each verse it covers: long lines are taken once.
sword() {
  SWORD_PATH=$work/unpacked/usr/share/sword mod2imp "$1" 2>/dev/null | perl -I"$work" -MCorpus -ne '
    our ($chapter, $text, %seen); BEGIN { ($chapter, $text) = ("", "") }
    if (/^\$\$\$(.*?)(:\d+)?\s*$/) { if ($1 ne $chapter) { say($text); ($chapter, $text) = ($1, "") } next }
    next if length > 200 && $seen{$_}++;
    s/<note\b.*?<\/note>/ /g; s/\s*\n/ /;
    s/<title[^>]*>|<\/(title|item|list|p)>|<div[^>]*sID[^>]*type="x-p"[^>]*>|<div[^>]*type="x-p"\/>|<l [^>]*sID[^>]*>|<lb[^>]*>/\n/g;
    $_ = plain($_); s/ +([,.;:?!])/$1/g;
    $text .= $_;
    END { say($text) }'
}

# Character vectors of R in a lazy-load file: 4 bytes of length, then zlib, again and again. A document a chapter.
austen() {
  perl -I"$work" -MCorpus -MCompress::Zlib -e '
    local $/; open my $file, "<:raw", $ARGV[0] or die "$ARGV[0]: $!\n"; my $bytes = <$file>;
    while (length $bytes > 4) {
      my ($stream, $status) = inflateInit(); $bytes = substr $bytes, 4;
      (my $data, $status) = $stream->inflate($bytes); $status == Z_STREAM_END or die "$ARGV[0]: not zlib\n";
      my $at = 14; $at += 4 + unpack "N", substr $data, $at, 4;             # "X\n", three versions, the encoding name
      next unless unpack("N", substr $data, $at, 4) == 16;                  # a character vector
      my ($count, $text) = (unpack("N", substr $data, $at + 4, 4), ""); $at += 8;
      for (1 .. $count) { my $length = unpack "N", substr $data, $at + 4, 4; $text .= substr($data, $at + 8, $length) . "\n"; $at += 8 + $length }
      utf8::decode($text);
      say(unwrap($_)) for split /\n(?=(?:CHAPTER|Chapter|VOLUME) )/, $text;
    }' "$work/unpacked/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
}

# Files in bytewise order of their names, relative to a folder.
files() { (cd "$1" && find . -type f -name "$2" | sort); }

kernel() { # reStructuredText sources: a document a file, wrapped as they are
  doc=$work/unpacked/usr/share/doc/linux-doc-6.1/html/_sources
  files "$doc" '*.txt*' | perl -I"$work" -MCorpus -MCompress::Zlib -ne '
    chomp; my $in = gzopen("'"$doc"'/$_", "rb") or die "$_\n"; my ($text, $part) = ("", "");
    $text .= $part while $in->gzread($part) > 0; utf8::decode($text); say($text)'
}
perldoc_text() { # a document a manual page
  pod=$(echo "$work"/unpacked/usr/share/perl/5.*/pod)
  files "$pod" '*.pod' | grep -v -e perltoc -e perluniprops | perl -I"$work" -MCorpus -MPod::Text -ne '
    chomp; my $text; my $parser = Pod::Text->new(width => 100000, errors => "none"); $parser->output_string(\$text);
    $parser->parse_file("'"$pod"'/$_"); utf8::decode($text) unless utf8::is_utf8($text); say($text)'
}
gcide() { # a document is 20 entries, found by the index
  gzip -dc <"$work/unpacked/usr/share/dictd/gcide.dict.dz" >"$work/gcide" 2>/dev/null || [ -s "$work/gcide" ]
  perl -I"$work" -MCorpus -e '
    my %digit; @digit{"A" .. "Z", "a" .. "z", 0 .. 9, "+", "/"} = 0 .. 63;
    sub number { my $n = 0; $n = 64 * $n + $digit{$_} for split //, shift; $n }
    open my $index, "<", $ARGV[0] or die; open my $in, "<:raw", $ARGV[1] or die; local $/; my $all = <$in>;
    my %at; for (split /\n/, <$index>) { my ($word, $begin, $length) = split /\t/; $at{number($begin)} = number($length) unless $word =~ /^00-?database/ }
    my @group; for my $begin (sort { $a <=> $b } keys %at) {
      my $entry = substr $all, $begin, $at{$begin}; utf8::decode($entry); push @group, unwrap($entry);
      if (@group == 20) { say(join "\n", @group); @group = () } }
    say(join "\n", @group)' "$work/unpacked/usr/share/dictd/gcide.index" "$work/gcide"
}
wordnet() { # a document is 50 entries "words: gloss"
  (cd "$work/unpacked/usr/share/wordnet" && cat data.noun data.verb data.adj data.adv) | perl -I"$work" -MCorpus -ne '
    our @group; next unless /^\d{8} \d\d \w ([0-9a-f]{2}) (.*?) \| (.*?)\s*$/;
    my ($count, $gloss, @field) = (hex $1, $3, split / /, $2); my @words = map { $field[2 * $_] } 0 .. $count - 1;
    tr/_/ / for @words; push @group, join(", ", @words) . ": $gloss";
    if (@group == 50) { say(join "\n", @group); @group = () }
    END { say(join "\n", @group) }'
}
anarchism_text() { # a document a page
  doc=$work/unpacked/usr/share/doc/anarchism/html
  files "$doc" '*.html' | perl -I"$work" -MCorpus -ne '
    chomp; my $text = slurp("'"$doc"'/$_"); $text =~ s/<head>.*?<\/head>|<(script|style)\b.*?<\/\1>//gs; $text =~ s/\s+/ /g;
    $text =~ s/<\/?(p|h\d|div|li|ul|ol|br|blockquote|tr)\b[^>]*>/\n/g; say(plain($text))'
}

part() { # part NAME FUNCTION [ARGUMENT]: adds its text and says how much it is; an empty one is a failure
  name=$1; shift
  "$@" >"$work/part"
  [ -s "$work/part" ] || fail "no text found in package $name"
  cat "$work/part" >>"$work/text"
  printf '%-20s %10d bytes\n' "$name" "$(wc -c <"$work/part")"
}
part sword-comm-tdavid sword TDavid
part r-cran-janeaustenr austen
part sword-text-web sword "$(sed -n 's/^\[\(.*\)\].*/\1/p' "$work"/unpacked/usr/share/sword/mods.d/engWEB*.conf)"
if [ "$kind" = large ]; then
  part linux-doc-6.1 kernel
  part perl-doc perldoc_text
  part dict-gcide gcide
  part wordnet-base wordnet
  part anarchism anarchism_text
fi
cp "$work/text" "$out.part"
mv "$out.part" "$out"
printf '%-20s %10d bytes in %d documents: %s\n' "$kind" "$(wc -c <"$out")" "$(grep -c '^$' "$out")" "$out"
