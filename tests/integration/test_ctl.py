"""parleyctl: every command, as text and as JSON, and its exit codes."""

import json
import os
import re
import signal

import pytest

from parleytest import *
from parleytest.daemon import proc_text, unique

WORKER_KEYS = {"slot", "pid", "generation", "state", "connections", "sessions", "heartbeat_age_ms",
               "messages_in", "messages_out", "restarts"}


def lines(text):
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def test_status(daemon):
    before = daemon.status()
    people = [daemon.online(slot=n % 2) for n in range(6)]
    people[0].chat_acked(people[1], "counted")
    status = daemon.status()
    assert status["pid"] == daemon.pid
    assert re.match(r"\d+\.\d+", status["version"]) and status["uptime_ms"] > 0
    assert status["users_online"] == before["users_online"] + 6
    assert {w["slot"]: w["pid"] for w in status["workers"]} == daemon.workers
    for worker in status["workers"]:
        assert WORKER_KEYS <= worker.keys(), WORKER_KEYS - worker.keys()
        assert worker["heartbeat_age_ms"] < 2000 * SCALE
        assert all(type(worker[key]) is int for key in WORKER_KEYS - {"state"})
    old = {w["slot"]: w for w in before["workers"]}
    for worker in status["workers"]:
        assert worker["sessions"] == old[worker["slot"]]["sessions"] + 3
    assert sum(w["messages_in"] for w in status["workers"]) > sum(w["messages_in"] for w in before["workers"])
    assert sum(w["messages_out"] for w in status["workers"]) > sum(w["messages_out"] for w in before["workers"])


def test_status_as_text(daemon):
    text = daemon.ctl_ok("status")
    assert str(daemon.pid) in text
    for pid in daemon.workers.values():
        assert str(pid) in text
    with pytest.raises(ValueError):
        json.loads(text)


def test_json_option_before_or_after_the_command(daemon):
    assert json.loads(daemon.ctl_ok("--json", "status"))["pid"] == json.loads(daemon.ctl_ok("status", "--json"))["pid"]


def test_sessions_and_who(daemon):
    people = [daemon.online(slot=n % 2) for n in range(4)]
    rows = {row["name"]: row for row in lines(daemon.ctl_ok("--json", "sessions")) if row.get("name")}
    for place, person in enumerate(people):
        row = rows[person.name]
        assert (row["user"], row["worker"], row["dialect"], row["ack"]) == (person.id, place % 2, "plain", False)
    names = daemon.ctl_ok("who")
    assert all(person.name in names for person in people)
    who = daemon.ctl_ok("--json", "who")
    assert all(person.name in who for person in people)
    people[0].ok(LOGOUT)
    assert people[0].name not in daemon.ctl_ok("who")
    assert people[1].name in daemon.ctl_ok("sessions")


def test_status_and_sessions_answer_while_workers_hang(make_daemon):
    daemon = make_daemon(hang_seconds=60)
    alice = daemon.online(slot=1)
    stopped = list(daemon.workers.values())
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        watch = Stopwatch()
        wait_until(lambda: daemon.worker_status(1)["heartbeat_age_ms"] > 500, 5)
        rows = lines(daemon.ctl_ok("--json", "sessions"))
        assert alice.name in [row.get("name") for row in rows]
        daemon.ctl_ok("metrics")
        assert watch.seconds < 4 * SCALE
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    alice.ping()


def test_kick(daemon):
    for slot in (0, 1):
        person = daemon.online(slot=slot)
        daemon.ctl_ok("kick", person.name)
        assert person.expect(SESSION_END)["reason"] == "kicked"
        person.wait_closed()
        daemon.relogin(person.account)
    person = daemon.online()
    daemon.ctl_ok("--json", "kick", person.name.upper())
    person.expect(SESSION_END)
    assert daemon.ctl("kick", "nobody of that name").returncode != 0
    assert daemon.ctl("kick", daemon.account().name).returncode != 0      # known, and not there


def test_kicked_user_keeps_its_messages(daemon):
    alice, bob = daemon.online(slot=0), daemon.online(slot=1)
    alice.send_raw(b"".join(alice.frame(CHAT, to=bob.id, msg="m%d" % n) for n in range(200)))
    daemon.ctl_ok("kick", bob.name)
    bob.wait_closed()
    again = daemon.relogin(bob.account)
    alice.ping()
    wait_until(lambda: bob.count() + again.count() >= 200, 10)
    assert bob.texts() + again.texts() == ["m%d" % n for n in range(200)]


def test_scale_reload_and_their_verdicts(make_daemon):
    daemon = make_daemon()
    daemon.ctl_ok("scale", 3)
    wait_until(lambda: len(daemon.workers) == 3, 5)
    assert json.loads(daemon.ctl_ok("--json", "scale", 2)) is not None
    wait_until(lambda: len(daemon.workers) == 2, 5)
    assert json.loads(daemon.ctl_ok("--json", "reload")) is not None
    daemon.write_conf(text=daemon.conf_text() + "nonsense = 1\n")
    done = daemon.ctl("--json", "reload")
    assert done.returncode != 0 and "nonsense" in done.stdout + done.stderr
    for line in done.stdout.splitlines():
        json.loads(line)


METRIC = re.compile(r'^[a-zA-Z_:][a-zA-Z0-9_:]*(\{[a-zA-Z_]\w*="[^"]*"(,[a-zA-Z_]\w*="[^"]*")*\})? -?[0-9.eE+-]+$')


def test_metrics_are_prometheus_text(daemon):
    daemon.online()
    text = daemon.ctl_ok("metrics")
    names, typed = set(), {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in typed and kind in ("counter", "gauge", "histogram", "summary")
            typed[name] = kind
        elif line and not line.startswith("#"):
            assert METRIC.match(line), line
            names.add(re.split(r"[{ ]", line)[0])
    assert len(names) >= 8
    assert all(re.sub(r"_(bucket|sum|count)$", "", n) in typed or n in typed for n in names), names - typed.keys()
    assert all(name.startswith("parley_") for name in names)
    json.loads(daemon.ctl_ok("--json", "metrics"))


def test_token_lets_a_user_in(daemon):
    person = daemon.account()
    token = daemon.ctl_ok("token", person.name).strip().split()[-1]
    daemon.connect().ok(LOGIN, id=person.id, token=token)
    assert json.loads(daemon.ctl_ok("--json", "token", person.name))["token"]
    assert daemon.ctl("token", "nobody of that name").returncode != 0


def test_fsck_finds_a_sound_table(daemon):
    [daemon.online(slot=n % 2) for n in range(6)]
    daemon.ctl_ok("fsck")
    json.loads(daemon.ctl_ok("--json", "fsck"))


def test_stop(make_daemon):
    daemon = make_daemon()
    person = daemon.online()
    daemon.ctl_ok("stop")
    assert person.expect(SESSION_END)["reason"] == "shutdown"
    person.wait_closed()
    assert daemon.wait_exit() == 0
    assert daemon.ctl("status").returncode != 0


@pytest.mark.parametrize("args", [(), ("no-such-command",), ("kick",), ("scale",), ("token",), ("user",), ("user", "no-such"),
                                  ("user", "add"), ("--no-such-option", "status"), ("status", "surplus")], ids=str)
def test_wrong_use(daemon, args):
    done = daemon.ctl(*args)
    assert done.returncode == 2 and done.stderr.strip()


def test_no_daemon(make_daemon):
    daemon = make_daemon(start=False)
    done = daemon.ctl("status")
    assert done.returncode == 3 and daemon.control in done.stderr


def test_help_and_version(daemon):
    done = daemon.ctl("-h")
    assert done.returncode == 0
    for word in ("status", "reload", "scale", "sessions", "who", "kick", "metrics", "user", "token", "stop", "--json"):
        assert word in done.stdout, word


def test_control_socket_is_for_its_owner(daemon):
    assert os.stat(daemon.control).st_mode & 0o007 == 0


def test_many_ctl_at_once_and_broken_ones(daemon):
    """Strange, slow and many admin connections do not hold up the daemon."""
    import socket
    strange = []
    for data in (b"", b"\n", b"x" * 100000, b"status", b"\xff\xfe\n", b"kick \n", b"{}\n"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        sock.connect(daemon.control)
        try:
            sock.sendall(data)
        except OSError:
            pass
        strange.append(sock)
    for _ in range(5):
        assert daemon.status()["pid"] == daemon.pid
    for sock in strange:
        sock.close()
    assert proc_text(daemon.pid, "comm")
    daemon.online().ping()


def test_registered_by_admin_or_wire_are_the_same(daemon):
    name = unique("adm")
    daemon.ctl_ok("user", "add", name, input="pass word\n")
    daemon.connect().ok(LOGIN, name=name, password="pass word")
