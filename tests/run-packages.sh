#!/bin/sh
# Installs the Debian packages that a job needs and this machine lacks.
#
#   tests/run-packages.sh build|check|bench|lint|fuzz|valgrind ...
#
# Nothing is done, and nothing is asked, when all are there. The tests start servers of their own:
# the database comes as its -core package and Redis with its tools, without a service around them;
# the one that has no such package, nginx, is kept from starting, now and when the machine boots.
set -eu

BUILD="gcc libc6-dev make pkg-config libsqlite3-dev default-libmysqlclient-dev libhiredis-dev
	libjsmn-dev libsodium-dev libedit-dev"
CHECK="$BUILD libcmocka-dev python3 python3-pytest python3-pytest-xdist mariadb-server-core
	mariadb-client-core redis-tools nginx libnginx-mod-stream
	clang procps iproute2"

want=
for job in "$@"; do
	case $job in
	build)    want="$want $BUILD" ;;
	check)    want="$want $CHECK" ;;
	bench)    want="$want $BUILD python3 strace procps" ;;
	lint)     want="$want $BUILD cppcheck clang-tidy" ;;
	fuzz)     want="$want $BUILD clang" ;;
	valgrind) want="$want $CHECK valgrind" ;;
	*)        echo "run-packages: no such job: $job" >&2; exit 2 ;;
	esac
done

missing=
if command -v dpkg-query >/dev/null; then
	for p in $want; do
		case $(dpkg-query -W -f '${db:Status-Status} ' "$p" 2>/dev/null) in
		"installed "*) ;;
		*) missing="$missing $p" ;;
		esac
	done
else
	missing=$want
fi
[ -n "$missing" ] || exit 0
missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')

if ! command -v apt-get >/dev/null; then
	# Not Debian: what is called for may be there under another name, so try.
	echo "run-packages: no apt-get here. If the build fails, install what Debian calls:" >&2
	echo "    $missing" >&2
	exit 0
fi

as_root=
if [ "$(id -u)" -ne 0 ]; then
	if ! command -v sudo >/dev/null; then
		echo "run-packages: missing packages, and neither root nor sudo to install them. As root:" >&2
		echo "    apt-get install $missing" >&2
		exit 1
	fi
	as_root=sudo
	[ -t 0 ] || as_root="sudo -n"		# nobody there to type a password
fi

echo "installing: $missing"
log=$(mktemp)
policy=/usr/sbin/policy-rc.d		# what a package asks before it starts its service
new_policy= new_nginx=
tidy() {
	rm -f "$log"
	[ -z "$new_policy" ] || $as_root rm -f $policy
}
trap tidy EXIT
trap 'exit 1' HUP INT TERM
case " $missing " in *" nginx "*) new_nginx=yes ;; esac
if [ -n "$new_nginx" ] && [ ! -e $policy ]; then
	new_policy=yes
	printf '#!/bin/sh\nexit 101\n' | $as_root tee $policy >/dev/null
	$as_root chmod 755 $policy
fi
apt() {
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" \
		>"$log" 2>&1 </dev/null
}
# shellcheck disable=SC2086
if ! { apt update; apt install -y --no-install-recommends $missing; }; then
	tail -n 20 "$log" >&2
	echo "run-packages: could not install them (the lines above are apt's). By hand, as root:" >&2
	echo "    apt-get update && apt-get install $missing" >&2
	exit 1
fi
[ -z "$new_nginx" ] || $as_root update-rc.d nginx disable >/dev/null 2>&1 || :
