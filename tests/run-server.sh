#!/bin/sh
# What `make run` starts: a server with everything it keeps below build/run/, and how to use it.
set -eu

listen=${LISTEN:-127.0.0.1:6000}
dir=$PWD/build/run
mkdir -p "$dir"
port=${listen##*:}
cat <<END

  parleyd serves on $listen. To chat, open two other terminals here and type

      build/parley${LISTEN:+ -p $port} alice          (and in the other one: build/parley${LISTEN:+ -p $port} bob)

  Who and what is there:  build/parleyctl -s build/run/control status
  Accounts and messages:  build/run/parley.db         Ctrl-C here ends the server.

END
exec build/parleyd -o listen="$listen" -o state_dir="$dir" -o store="sqlite:$dir/parley.db" \
	-o control="$dir/control" "$@"
