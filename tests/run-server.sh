#!/bin/sh
# What `make run` starts: a server with everything that it keeps below build/run/, and how to use it.
# LISTEN=ADDRESS:PORT serves elsewhere; build/run/parleyd.conf is made once and can be edited.
set -eu

dir=$PWD/build/run
conf=$dir/parleyd.conf
mkdir -p "$dir"
[ -e "$conf" ] || cat >"$conf" <<END
# The server of "make run". Every key: etc/parleyd.conf
state_dir = "$dir"
control = "$dir/control"
store = "sqlite:$dir/parley.db"
listen = 127.0.0.1:6000
END
port=
[ -z "${LISTEN:-}" ] || port="-p ${LISTEN##*:} "
cat <<END

  To chat, open two other terminals in this directory and type

      build/parley ${port}alice          in one, and
      build/parley ${port}bob            in the other

  Who and what is there:  build/parleyctl -s build/run/control status
  Configuration and data: build/run/         Ctrl-C here ends the server, which listens on ${LISTEN:-127.0.0.1:6000}.

END
exec build/parleyd -c "$conf" ${LISTEN:+-o listen="$LISTEN"} "$@"
