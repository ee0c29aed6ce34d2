"""Calls between hosts, and admin requests that concern other hosts, as the admin socket has them."""

import json
import os
import signal
import socket

import pytest

from parleytest import *

CLUSTER = {"hosts": 2}


def ask(at, cmd, *args, **members):
    """One admin request: (lines, code, message)."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60 * SCALE)
        sock.connect(at.control)
        sock.sendall(json.dumps(dict(members, cmd=cmd, args=[str(a) for a in args])).encode() + b"\n")
        rows = [json.loads(line) for line in sock.makefile("rb")]
    assert rows and rows[-1].get("done") is True, rows
    return rows[:-1], rows[-1]["code"], rows[-1]["message"]


def call(host, there, method, **with_):
    rows, code, message = ask(host, "call", there.id, method, **{"with": with_})
    assert code == 0, message
    assert len(rows) <= 1
    return rows[0] if rows else None


# -- a host on its own ---------------------------------------------------------------------------

def test_alone(daemon):
    for cmd, args in (("hosts", ()), ("drain", ()), ("drain", ("cancel",)), ("call", ("x", "ping"))):
        rows, code, message = ask(daemon, cmd, *args)
        assert (rows, code) == ([], 1) and "redis" in message
    for cmd in ("status", "who", "version", "no such command"):
        rows, code, message = ask(daemon, cmd, host="other")
        assert (rows, code) == ([], 1) and "redis" in message, (cmd, message)
    own = daemon.status()["host_id"]
    rows, code, _ = ask(daemon, "status", host=own)
    assert code == 0 and rows[0]["pid"] == daemon.pid
    person = daemon.online()
    rows, code, _ = ask(daemon, "who", host=own)
    assert code == 0 and [row["name"] for row in rows] == [person.name] and "host" not in rows[0]


def test_methods_are_listed(daemon):
    rows, code, _ = ask(daemon, "methods")
    assert code == 0
    names = [row["name"] for row in rows]
    assert names == sorted(names) and {"ping", "ctl", "session.check", "session.end", "user.forget", "host.status"} <= set(names)
    assert all(row["help"] for row in rows)


def test_who_in_pages(daemon):
    people = [daemon.online(slot=n % 2) for n in range(7)]
    seen, after = [], 0
    for _ in range(20):
        rows, code, _ = ask(daemon, "who", local=True, after=after, limit=2)
        assert code == 0
        more = [row["more"] for row in rows if "more" in row]
        rows = [row["name"] for row in rows if "name" in row]
        assert len(rows) <= 2
        seen += rows
        if not more:
            break
        assert more[0] > after
        after = more[0]
    else:
        pytest.fail("it never ends")
    assert sorted(seen) == sorted(person.name for person in people)
    assert len(ask(daemon, "who", local=True, limit=7)[0]) in (7, 8)


@pytest.mark.parametrize("line", [
    b'{"cmd":"status","host":7}', b'{"cmd":"status","host":["x"]}', b'{"cmd":"status","host":""}',
    b'{"cmd":"who","host":"' + b"x" * 2900 + b'"}', b'{"cmd":"who","limit":-1,"after":"x","local":7}',
    b'{"cmd":"call","args":["a","b","c"],"with":[]}', b'{"cmd":"call"}',
    b'{"cmd":"who","after":99999999999999,"limit":99999999999999}', b'{"cmd":"drain","args":["sideways"]}'], ids=str)
def test_strange_requests(daemon, line):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20 * SCALE)
        sock.connect(daemon.control)
        sock.sendall(line + b"\n")
        rows = [json.loads(row) for row in sock.makefile("rb")]
    assert rows[-1]["done"] is True
    daemon.online().ping()


# -- methods -------------------------------------------------------------------------------------

@needs_redis
def test_ping_and_status(cluster):
    for host in cluster:
        for there in cluster:
            answer = call(host, there, "ping")
            assert answer["host"] == there.id and answer["ms"] > 1e12
    people = cluster.people(4)
    status = call(cluster[0], cluster[1], "host.status")
    assert (status["host"], status["workers"], status["sessions"], status["draining"]) == ("h2", 2, 2, False)
    people[0].ping()


@needs_redis
def test_session_check(cluster):
    account = cluster.accounts(1)[0]
    for host in cluster:
        assert call(host, cluster[1], "session.check", user=account.id) == {"state": "none"}
    person = cluster[1].login(account)
    for host in cluster:
        assert call(host, cluster[1], "session.check", user=account.id) == {"state": "live"}
        assert call(host, cluster[0], "session.check", user=account.id) == {"state": "none"}
    person.ok(LOGOUT)
    assert call(cluster[0], cluster[1], "session.check", user=account.id)["state"] == "none"


@needs_redis
def test_a_session_whose_worker_is_dead_is_closing(make_cluster):
    cluster = make_cluster(hosts=2)
    person = cluster[1].online(slot=1)
    mariadb = cluster.mariadb

    def state():                            # a call may be lost with the worker that reads them
        rows, code, _ = ask(cluster[0], "call", "h2", "session.check", **{"with": {"user": person.id}})
        return rows[0]["state"] if code == 0 else "lost"

    person.may_be_cut_off = True
    sender = cluster[1].online(slot=0)
    mariadb.freeze()                        # so that its leavings wait
    try:
        sender.chat(person, "on its way", cid="c")
        os.kill(cluster[1].workers[1], signal.SIGKILL)
        wait_until(lambda: state() not in ("lost", "live"), 30)
    finally:
        mariadb.thaw()
    wait_until(lambda: state() == "none", 30)


@needs_redis
def test_session_end(cluster):
    for slot in (0, 1):
        person = cluster[1].online(slot=slot)
        assert call(cluster[0], cluster[1], "session.end", user=person.id, reason="kicked", number=2 ** 60) == {"ended": False}
        assert call(cluster[0], cluster[1], "session.check", user=person.id) == {"state": "live"}
        assert call(cluster[0], cluster[0], "session.end", user=person.id, reason="replaced") == {"ended": False}
        assert call(cluster[0], cluster[1], "session.end", user=person.id, reason="replaced") == {"ended": True}
        assert person.expect(SESSION_END)["reason"] == "replaced"
        person.wait_closed()
        wait_until(lambda: call(cluster[0], cluster[1], "session.end", user=person.id, reason="kicked") == {"ended": False}, 5)


@needs_redis
def test_bad_arguments(cluster):
    for method, with_ in (("session.check", {}), ("session.check", {"user": "7"}), ("session.check", {"user": 0}),
                          ("session.check", {"user": 2 ** 40}), ("session.end", {"user": 7}),
                          ("session.end", {"user": 7, "reason": "because"}),
                          ("session.end", {"user": 7, "reason": "kicked", "number": -1}),
                          ("user.forget", {"user": None}), ("ctl", {}), ("ctl", {"cmd": 7})):
        for there in cluster:
            rows, code, message = ask(cluster[0], "call", there.id, method, **{"with": with_})
            assert (rows, code) == ([], 1) and "understand" in message, (method, with_, message)
    rows, code, message = ask(cluster[0], "call", "h2", "no.such")
    assert code == 1 and "does not know" in message
    assert ask(cluster[0], "call", "h2", "x" * 70)[1] == 1
    assert call(cluster[0], cluster[1], "user.forget", user=7) is None


# -- requests for another host -------------------------------------------------------------------

@needs_redis
def test_any_request_of_any_host(cluster):
    for host in cluster:
        for there in cluster:
            rows, code, _ = ask(host, "status", host=there.id)
            assert code == 0 and rows[0]["pid"] == there.pid
            assert ask(host, "version", host=there.id)[0] == ask(there, "version")[0]
            rows, code, _ = ask(host, "metrics", host=there.id)
            text = "".join(row["text"] for row in rows)
            assert code == 0 and 'host_id="%s"' % there.id in text and text.count("\n") > 40
            rows, code, message = ask(host, "fsck", host=there.id)
            assert code == 0 and rows[0]["violations"] == 0 and "sound" in message
            assert ask(host, "reload", host=there.id)[1] == 0


@needs_redis
def test_scale_and_reload_of_another_host(make_cluster):
    cluster = make_cluster(hosts=2)
    rows, code, message = ask(cluster[0], "scale", 3, host="h2")
    assert code == 0, message
    assert len(cluster[1].workers) == 3 and len(cluster[0].workers) == 2
    assert ask(cluster[0], "scale", 1, host="h2")[1] == 0
    assert ask(cluster[0], "scale", "many", host="h2")[1] == 1
    cluster[1].write_conf(text=cluster[1].conf_text() + "nonsense = 1\n")
    rows, code, message = ask(cluster[0], "reload", host="h2")
    assert code == 1 and any("nonsense" in row["error"] for row in rows)


@needs_redis
def test_stop_of_another_host(make_cluster):
    cluster = make_cluster(hosts=2)
    rows, code, message = ask(cluster[0], "stop", host="h2")
    assert code == 0, message
    assert cluster[1].wait_exit() == 0
    cluster[0].wait_hosts("h1")
    watch = Stopwatch()
    rows, code, message = ask(cluster[0], "status", host="h2")
    assert code == 1 and "h2" in message and "h1" in message and watch.seconds < 2 * SCALE


@needs_redis
def test_unknown_host_names_the_live_ones(cluster):
    rows, code, message = ask(cluster[0], "status", host="nobody")
    assert (rows, code) == ([], 1) and all(name in message for name in ("nobody", "h1", "h2"))


@needs_redis
def test_a_request_is_forwarded_once(cluster):
    """One that came through another host goes no further, whoever sends it."""
    rows, code, message = ask(cluster[0], "status", host="h2", ctl=True)
    assert (rows, code) == ([], 1) and "third" in message
    people = cluster.people(2)
    rows, code, _ = ask(cluster[0], "who", host="h2")
    assert code == 0 and [row["name"] for row in rows] == [people[1].name]
    rows, code, _ = ask(cluster[0], "call", "h2", "ctl", **{"with": {"cmd": "status", "host": "h1"}})
    assert code == 0 and rows[0]["pid"] == cluster[1].pid


@needs_redis
def test_accounts_stay_out_of_redis(cluster):
    """They are the same everywhere, so they are made where they are asked for."""
    rows, code, message = ask(cluster[0], "call", "h2", "ctl", **{"with": {"cmd": "token", "args": ["1"]}})
    assert rows[-1]["code"] == 1 and "same on every host" in rows[-1]["message"]
    account = cluster.accounts(1)[0]
    rows, code, _ = ask(cluster[0], "token", account.id, host="h2")
    assert code == 0
    cluster[1].connect().ok(LOGIN, id=account.id, token=rows[0]["token"])
    assert ask(cluster[0], "user", "add", "made-here", host="h2", password="pass word")[1] == 0
    cluster[1].connect().ok(LOGIN, name="made-here", password="pass word")


@needs_redis
def test_a_host_that_dies_is_an_error_at_once(make_cluster):
    """Its callers hear of it when its entry is gone, long before the deadline."""
    cluster = make_cluster(hosts=2)
    cluster[1].freeze_host()
    watch = Stopwatch()
    try:
        rows, code, message = ask(cluster[0], "status", host="h2")
        assert code == 1 and "h2" in message and 0.3 < watch.seconds < 15 * SCALE
    finally:
        cluster[1].thaw_host()


# -- who and kick --------------------------------------------------------------------------------

@needs_redis
def test_who_on_all_hosts(cluster):
    people = cluster.people(6)
    for host in cluster:
        rows, code, message = ask(host, "who")
        assert (code, message) == (0, "")
        assert {(row["host"], row["name"]) for row in rows} == {
            (cluster[n % 2].id, person.name) for n, person in enumerate(people)}
        rows, code, _ = ask(host, "who", local=True)
        assert {row["host"] for row in rows} == {host.id} and len(rows) == 3


@needs_redis
def test_who_tells_which_host_is_silent(make_cluster):
    cluster = make_cluster(hosts=3, heartbeat_ms=2000, host_timeout_ms=60000)
    people = cluster.people(3)
    cluster[1].freeze_host()
    try:
        rows, code, message = ask(cluster[0], "who")
    finally:
        cluster[1].thaw_host()
    assert {row.get("name") for row in rows} >= {people[0].name, people[2].name}
    assert [row["host"] for row in rows if "warning" in row] == ["h2"]
    assert code == 0 and message


@needs_redis
def test_who_without_redis(make_cluster):
    cluster = make_cluster(hosts=2)
    people = cluster.people(2)
    cluster.redis.kill()
    wait_until(lambda: ask(cluster[0], "hosts")[1:] == (1, "Redis does not answer: this is what was known before"), 15)
    rows, code, message = ask(cluster[0], "who")
    assert [row["name"] for row in rows if "name" in row] == [people[0].name]
    assert any("warning" in row for row in rows) and message
    assert ask(cluster[0], "kick", people[1].name)[1] == 1
    assert "Redis" in ask(cluster[0], "kick", people[1].name)[2]
    assert ask(cluster[0], "kick", people[0].name)[1] == 0
    assert ask(cluster[0], "status", host="h2")[1] == 1


@pytest.mark.long
@needs_redis
def test_who_of_very_many(make_cluster):
    """More than one answer holds: in pages, each of which arrives."""
    cluster = make_cluster(hosts=2)
    accounts = cluster.accounts(4500)
    clients = [cluster[1].login(account) for account in accounts]
    rows, code, message = ask(cluster[0], "who")
    assert (code, message) == (0, "") and len(rows) == len(clients)
    assert {row["id"] for row in rows} == {account.id for account in accounts}


@needs_redis
def test_kick_and_delete_elsewhere(cluster):
    person = cluster[1].online()
    assert ask(cluster[0], "kick", person.name) == ([], 0, "kicked")
    assert person.expect(SESSION_END)["reason"] == "kicked"
    person.wait_closed()
    wait_until(lambda: ask(cluster[0], "kick", person.name) == ([], 1, "not online"), 5)
    writer, person = cluster[1].online(), cluster[1].online()
    writer.chat_acked(person, "known")
    assert ask(cluster[0], "user", "del", person.name)[1:] == (0, "deleted")
    assert person.expect(SESSION_END)["reason"] == "kicked"
    person.wait_closed()
    wait_until(lambda: writer.request(CHAT, to=person.id, msg="nobody", cid="x", reply=CHAT_ACK)["errno"] != 0, 5)


# -- draining ------------------------------------------------------------------------------------

@needs_redis
def test_drain_says_what_it_will_do(make_cluster):
    cluster = make_cluster(hosts=2, drain_seconds=50)
    cluster.people(6)
    rows, code, message = ask(cluster[1], "drain", host="h1")
    assert code == 0 and "3" in message and "50" in message
    assert rows == [{"host": "h1", "draining": True, "sessions": 3, "seconds": 50}]
    assert call(cluster[1], cluster[0], "host.status")["draining"] is True
    rows, code, message = ask(cluster[0], "drain", "cancel")
    assert code == 0 and rows[0]["draining"] is False
    assert call(cluster[1], cluster[0], "host.status")["draining"] is False


# -- by hand -------------------------------------------------------------------------------------

@needs_redis
def test_parleyctl_call(cluster):
    person = cluster[1].online()
    out = cluster[0].ctl_ok("--json", "call", "h2", "session.check", '{\n "user": %d }' % person.id)
    assert json.loads(out) == {"state": "live"}
    assert "live" in cluster[0].ctl_ok("call", "h2", "session.check", '{"user":%d}' % person.id)
    assert "h2" in cluster[0].ctl_ok("call", "h2", "ping")
    assert "session.check" in cluster[0].ctl_ok("methods")
    for wrong in ("7", "[]", "{", ""):
        assert cluster[0].ctl("call", "h2", "ping", wrong).returncode == 2
    done = cluster[0].ctl("call", "h2", "no.such")
    assert done.returncode == 1 and "h2" in done.stderr
    assert cluster[0].ctl("call", "h9", "ping").returncode == 1
