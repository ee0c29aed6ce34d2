#!/bin/bash
# Runs stages of the test suite and counts: the last line is "N passed, N failed".
#
#   tests/run.sh STAGE...          (make check and its parts call this; from the top of the tree)
#
#   includes     who includes whom
#   docs         configuration keys, message numbers, README: do they say what the code has
#   clang        every source compiles without a warning under clang, too
#   unit[:KIND]  tests/unit/test_*.c, built as KIND (release, asan, tsan, cov, faults)
#   fault        tests/fault/test_*.c and .py against the build with fault points
#   chaos        short runs of the checker of confirmed delivery under kills
#   corpus       the fuzz corpus through the fuzz targets, under the sanitizers
#   int[:KIND]   tests/integration/test_*.py against the programs of KIND
#   long         the tests marked "long" of tests/integration and tests/fault
#
# Environment: MAKE, CC, CI as for make; PYTEST_ARGS is handed to pytest (-k NAME, -x ...);
# LIMIT is the seconds that one test program may take (120), WRAP what it runs under (valgrind).
# What each stage printed stays below build/check/.
set -u

out=build/check
mkdir -p $out
passed=0 failed=0
# The distribution's Python has the distribution's pytest, whatever else comes first in PATH.
python=python3
for p in /usr/bin/python3 python3; do
	if "$p" -c 'import pytest' 2>/dev/null; then
		python=$p
		break
	fi
done
make() { env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL "${MAKE:-make}" -s -j"$(nproc)" \
	CC="${CC:-gcc}" ${CI:+CI="$CI"} "$@"; }

dir_of() { if [ "$1" = release ]; then echo build; else echo "build/$1"; fi; }

# tally NAME PASSED FAILED: one line a program, and the sum.
tally() {
	passed=$((passed + $2)) failed=$((failed + $3))
	printf '  %-44s %5d passed %4d failed\n' "$1" "$2" "$3"
}

# one NAME COMMAND...: a check that is right or wrong as a whole.
one() {
	local name=$1 log
	log="$out/${1//[^a-zA-Z0-9.]/-}.log"
	shift
	if "$@" >"$log" 2>&1; then
		tally "$name" 1 0
	else
		tail -n 40 "$log"
		tally "$name" 0 1
	fi
}

# build KIND TARGET...: false, and one failure counted, where it does not build.
build() {
	local kind=$1 log="$out/build-$1.log"
	shift
	make BUILD="$kind" "$@" >"$log" 2>&1 && return
	grep -E 'error|undefined|\*\*\*' "$log" | head -n 20
	tally "build of $kind" 0 1
	return 1
}

# count PATTERN FILE: the sum of the numbers that PATTERN's group finds.
count() { sed -n "s/$1/\\1/p" "$2" | { n=0; while read -r i; do n=$((n + i)); done; echo $n; }; }

# cmocka NAME PROGRAM: counts what a cmocka program reports. One that dies, hangs or runs nothing
# is a failure of its own.
cmocka() {
	local name=$1 log="$out/${1//[^a-zA-Z0-9_.]/-}.log" rc=0 ok bad
	# shellcheck disable=SC2086
	PARLEY_BIN=$bin timeout -k 5 "${LIMIT:-120}" ${WRAP:-} "$2" >"$log" 2>&1 </dev/null || rc=$?
	ok=$(count '^\[  PASSED  \] \([0-9]*\) test(s)\.$' "$log")
	# Tests whose set-up failed are in no list of cmocka's, but in its total.
	bad=$(($(count '^\[==========\] \([0-9]*\) test(s) run\.$' "$log") - ok -
		$(count '^\[  SKIPPED \] \([0-9]*\) test(s), listed below:$' "$log")))
	if [ $bad -eq 0 ] && { [ $rc -ne 0 ] || [ $ok -eq 0 ]; }; then
		bad=1
		echo "$2: exit status $rc" >>"$log"
	fi
	[ $bad -eq 0 ] || grep -v '^\[ RUN  \|^\[       OK' "$log" | tail -n 40
	tally "$name" $ok $bad
}

# py NAME KIND ARGUMENTS...: pytest, counted from its own report.
py() {
	local name=$1 kind=$2 rc=0 xml="$out/${1//[^a-zA-Z0-9_.]/-}.xml" counts
	shift 2
	rm -f "$xml"
	# shellcheck disable=SC2086
	PARLEY_BIN=$PWD/$(dir_of "$kind") PARLEY_BUILD=$kind PYTHONDONTWRITEBYTECODE=1 \
		"$python" -m pytest -q --tb=short -p no:cacheprovider --durations=8 --junitxml="$xml" "$@" \
		${PYTEST_ARGS:-} >"$out/${name//[^a-zA-Z0-9_.]/-}.log" 2>&1 </dev/null || rc=$?
	counts=$("$python" -c 'import sys, xml.etree.ElementTree as e
s = [x for x in e.parse(sys.argv[1]).getroot().iter("testsuite")]
n = lambda k: sum(int(x.get(k, 0)) for x in s)
bad = n("failures") + n("errors")
print(max(n("tests") - bad - n("skipped"), 0), bad, n("skipped"))' "$xml" 2>/dev/null) || counts="0 1 0"
	# shellcheck disable=SC2086
	set -- $counts
	[ $rc -eq 0 ] || [ "$2" -gt 0 ] || set -- "$1" 1 "$3"		# also when it collected nothing
	[ "$2" -eq 0 ] || tail -n 150 "$out/${name//[^a-zA-Z0-9_.]/-}.log"
	tally "$name" "$1" "$2"
	[ "$3" -eq 0 ] || echo "    ($3 skipped)"
}

has() { compgen -G "$1" >/dev/null; }

stage() {
	local kind=release p bin
	case $1 in *:*) kind=${1#*:} ;; esac
	bin=$PWD/$(dir_of "$kind")
	case $1 in
	includes)
		one "includes" "$python" tests/run-includes.py ;;
	docs)
		build release build/tests/run-keys || return
		build/tests/run-keys >$out/keys
		one "docs" "$python" tests/run-docs.py $out/keys ;;
	clang)
		one "clang" make syntax CC=clang WERROR=-Werror ;;
	unit|unit:*)
		build "$kind" unit-programs || return
		for p in tests/unit/test_*.c; do
			p=$(basename "$p" .c)
			cmocka "unit $kind ${p#test_}" "$bin/tests/$p"
		done ;;
	fault)
		kind=faults bin=$PWD/build/faults
		build faults all fault-programs || return
		if has 'tests/fault/test_*.c'; then
			for p in tests/fault/test_*.c; do
				p=$(basename "$p" .c)
				cmocka "fault ${p#test_}" "$bin/tests/$p"
			done
		fi
		! has 'tests/fault/test_*.py' || py "fault" faults tests/fault -m "not long" ;;
	corpus)
		build asan corpus-programs || return
		for p in tests/fuzz/fuzz_*.c; do
			p=$(basename "$p" .c)
			one "corpus ${p#fuzz_}" timeout 120 "build/asan/tests/$p" "tests/fuzz/corpus/${p#fuzz_}"
		done ;;
	int|int:*)
		build "$kind" all || return
		set -- tests/integration -m "not long"
		# Four at a time, because most of a test is waiting; but those that promise a time.
		if "$python" -c 'import xdist' 2>/dev/null; then
			py "integration timed $kind" "$kind" tests/integration -m "timed and not long"
			set -- tests/integration -m "not long and not timed" -n 4 --dist loadfile
		fi
		py "integration $kind" "$kind" "$@" ;;
	chaos)
		# Short runs of make chaos; a failing one prints its seed.
		build release all || return
		build faults all || return
		one "chaos sqlite" timeout 150 tests/fault/chaos.py --seconds 20 --store sqlite --build release
		one "chaos mysql" timeout 150 tests/fault/chaos.py --seconds 20 --store mysql --build release
		one "chaos fault points" timeout 150 tests/fault/chaos.py --seconds 20 --store sqlite --build faults
		one "chaos hosts" timeout 200 tests/fault/chaos.py --seconds 40 --hosts 2 ;;
	long)
		build release all || return
		build faults all || return
		py "long" release tests/integration -m long
		! has 'tests/fault/test_*.py' || py "long fault" faults tests/fault -m long ;;
	*)
		echo "run.sh: no stage named $1" >&2
		exit 2 ;;
	esac
}

start=$SECONDS
for s in "$@"; do
	t=$SECONDS
	echo "-- $s"
	stage "$s"
	echo "   $((SECONDS - t)) s"
done
echo "$((SECONDS - start)) s in all"
echo "$passed passed, $failed failed" | tee $out/result
[ $failed -eq 0 ] && [ $passed -gt 0 ]
