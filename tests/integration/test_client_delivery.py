"""Confirmed delivery, the shell client's half: outbox, resending, order, duplicates, reconnection."""

import json
import pathlib
import time

import pytest

from client_support import Filter, run_filter
from fake_server import FakeServer
from parleytest import holds_for, wait_until


@pytest.fixture
def server():
    server = FakeServer()
    server.add_user("alice")
    server.add_user("bob")
    yield server
    server.close()


@pytest.fixture
def start(tmp_path, server):
    made = []

    def start(name="alice", *args, port=None):
        each = Filter(tmp_path, port or server.port, name, *args)
        made.append(each)
        return each

    yield start
    for each in made:
        each.kill()


def chat(server, text, mid, to=1, sender=2):
    return {"msgid": 5, "id": sender, "name": server.users[sender]["name"], "to": to, "msg": text,
            "time": "", "mid": mid}


def outbox(tmp_path):
    found = list(pathlib.Path(tmp_path).glob(".local/state/parley/*/alice/outbox"))
    assert len(found) == 1
    return found[0]


def test_logs_in_with_ack_and_unique_cids(tmp_path, server):
    for _ in range(2):
        assert run_filter(tmp_path, server.port, "alice", ["chat:bob:a", "chat:bob:b"]).returncode == 0
    assert all(f["ack"] is True for f in server.of(1))
    cids = [f["cid"] for f in server.of(5)]
    assert len(set(cids)) == 4 and all(1 <= len(c) <= 64 for c in cids)
    assert all(int(c.split("-")[0], 16) for c in cids)
    assert len({c.split("-")[0] for c in cids}) == 2, "a new base a run"


def test_reconnects_with_the_token(tmp_path, server, start):
    each = start("alice", "--wait", "600")
    first = server.wait_online(1)
    first.cut()
    server.wait_online(1, other_than=first)
    logins = server.of(1)
    assert "password" in logins[0] and "token" not in logins[0]
    assert "token" in logins[1] and "password" not in logins[1]
    each.type("chat:bob:after")
    each.wait_out("stored: bob")
    wait_until(lambda: len(each.err) == 2)
    assert "connection lost" in each.err[0] and "connected again" in each.err[1]


def test_an_old_token_falls_back_to_the_password(server, start):
    start("alice", "--wait", "600")
    first = server.wait_online(1)
    with server.lock:
        server.tokens.clear()
        first.cut()
    server.wait(lambda: len(server.of(1)) == 3 and 1 in server.online, "a login with the password")
    assert "password" in server.of(1)[2]


def test_own_dead_session_is_waited_for(server, start):
    start("alice", "--wait", "600")
    first = server.wait_online(1)
    with server.lock:
        server.refuse_logins += [{"errno": 2, "errmsg": "online elsewhere"}] * 2
        first.cut()
    server.wait(lambda: len(server.of(1)) == 4 and 1 in server.online, "patience")


def test_reconnection_backs_off(server, start):
    """A server that hangs up at once is not called many times a second."""
    start("alice", "--wait", "600")
    server.wait_online(1)
    port = server.port
    server.close()
    refusing = FakeServer.__new__(FakeServer)
    refusing.__dict__.update(server.__dict__)
    refusing._serve = lambda conn: (calls.append(time.monotonic()), conn.close())
    calls = []
    refusing.port = port
    refusing.open()
    wait_until(lambda: len(calls) >= 6, 20)
    refusing.close()
    gaps = [b - a for a, b in zip(calls, calls[1:])]
    assert gaps[-1] > 4 * gaps[0] or gaps[-1] > 0.8, gaps
    assert sum(gaps[:5]) > 0.7, gaps


def test_a_server_that_hangs_up_after_each_login_is_not_called_without_end(server, start):
    start("alice", "--wait", "600")
    server.wait_online(1)
    logins = []
    for _ in range(5):
        session = server.wait_online(1)
        logins.append(time.monotonic())
        with server.lock:
            session.cut()
        server.wait(lambda: server.online.get(1) is not session, "the end of the session")
    gaps = [b - a for a, b in zip(logins, logins[1:])]
    assert gaps[-1] > 0.35 and gaps[-1] > 2 * gaps[0], gaps


@pytest.mark.parametrize("reason, returns", [
    ("shutdown", True), ("moved", True), ("idle", True), ("unheard of", True),
    ("kicked", False), ("replaced", False),
])
def test_session_end(server, start, reason, returns):
    each = start("alice", "--wait", "600")
    first = server.wait_online(1)
    first.send({"msgid": 28, "reason": reason})
    if returns:
        server.wait_online(1, other_than=first)
        return
    assert each.end() == 1
    assert len(server.of(1)) == 1
    wait_until(lambda: any(reason in line for line in each.err), 5, "it says why")


def test_ping_is_answered(server, start):
    start("alice", "--wait", "600")
    server.wait_online(1).send({"msgid": 25, "req": {"not": "a string"}["not"]})
    pong = server.wait(lambda: server.of(26), "PONG")
    assert pong[0]["req"] == "a string"


# ---- the outbox ----

def test_outbox_survives_kill_and_is_sent_first_and_in_order(tmp_path, server, start):
    server.hold_acks = True
    each = start("alice", "--timeout", "1")
    texts = ["one", "two \\ with\ttab", "drei — ünïcode", "#four"]
    for text in texts:
        each.type("chat:bob:" + text)
    server.wait(lambda: len(server.of(5)) == 4, "four messages")
    each.process.kill()
    each.process.wait()
    cids = [f["cid"] for f in server.of(5)]
    assert outbox(tmp_path).stat().st_mode & 0o777 == 0o600
    assert outbox(tmp_path).parent.stat().st_mode & 0o777 == 0o700
    server.wait(lambda: 1 not in server.online, "the end of the session")
    with server.lock:
        server.hold_acks = False
        server.frames.clear()
    done = run_filter(tmp_path, server.port, "alice", ["chat:bob:new"])
    assert done.returncode == 0
    assert [(f["msg"], f["cid"]) for f in server.of(5)][:4] == list(zip(texts, cids))
    assert server.of(5)[4]["msg"] == "new" and server.of(5)[4]["cid"] not in cids
    assert set(server.had.values()) == {1, 2}
    with server.lock:
        server.frames.clear()
    run_filter(tmp_path, server.port, "alice")
    assert server.of(5) == [], "what was acknowledged is not sent again"


def test_a_torn_outbox_is_read_to_the_tear(tmp_path, server):
    server.hold_acks = True
    run_filter(tmp_path, server.port, "alice", ["chat:bob:whole"], "--timeout", "1")
    with outbox(tmp_path).open("ab") as file:
        file.write(b"+\tcid-torn\t17000000")
    with server.lock:
        server.hold_acks = False
        server.frames.clear()
    assert run_filter(tmp_path, server.port, "alice", ["chat:bob:next"]).returncode == 0
    assert [f["msg"] for f in server.of(5)] == ["whole", "next"]


def test_open_messages_are_resent_after_a_loss_in_order(server, start):
    server.hold_acks = True
    each = start("alice", "--json", "--timeout", "1")
    for text in "abcd":
        each.type("chat:bob:" + text)
    server.wait(lambda: len(server.of(5)) == 4, "four messages")
    first = server.wait_online(1)
    cids = [f["cid"] for f in server.of(5)]
    with server.lock:
        server.hold_acks = False
        server.frames.clear()
        first.cut()
    server.wait(lambda: len(server.of(5)) == 4, "all again")
    assert [f["cid"] for f in server.of(5)] == cids
    wait_until(lambda: sum('"ack"' in line for line in each.out) == 4)


def test_down_server_comes_back(server, start):
    each = start("alice", "--timeout", "60")
    server.wait_online(1)
    server.close()
    wait_until(lambda: any("connection lost" in line for line in each.err))
    each.type("chat:bob:while away")
    server.open()
    each.wait_out("stored: bob", 30)
    assert [f["msg"] for f in server.of(5)] == ["while away"]


def test_a_script_waits_for_the_connection(server, start):
    each = start("alice", "--timeout", "60")
    server.wait_online(1)
    server.close()
    wait_until(lambda: any("connection lost" in line for line in each.err))
    each.type("addfriend:bob")
    server.open()
    each.wait_out("bob is your friend", 30)
    assert each.end() == 0


def test_an_answer_that_the_connection_took_along_is_a_failure(server, start):
    each = start("alice", "--timeout", "60")
    first = server.wait_online(1)
    with server.lock:
        server.silent = True
    each.type("addfriend:bob")
    server.wait(lambda: server.of(6), "the request")
    with server.lock:
        server.silent = False
        first.cut()
    server.wait_online(1, other_than=first)
    assert each.end() == 1
    assert any("cannot add bob to your friends: the connection was lost" in line for line in each.err)


@pytest.mark.parametrize("errno", [7, 9])
def test_refused_for_now_waits_then_sends_the_lane_again_in_order(tmp_path, server, start, errno):
    """After 7 or 9 everything that is open for that recipient comes again, others are not held."""
    server.hold_acks = True
    each = start("alice", "--timeout", "1")
    each.type("chat:bob:b1")
    each.type("chat:bob:b2")
    each.type("chat:alice:a1")
    server.wait(lambda: len(server.of(5)) == 3, "three messages")
    session = server.wait_online(1)
    cids = [f["cid"] for f in server.of(5)]
    with server.lock:
        server.hold_acks = False
        server.frames.clear()
        refused = time.monotonic()
        for cid in cids[:2]:
            session.send({"msgid": 15, "errno": errno, "errmsg": "not now", "cid": cid, "retry_ms": 700})
    each.type("chat:bob:b3")
    each.type("chat:alice:a2")
    server.wait(lambda: any(f["msg"] == "a2" for f in server.of(5)), "the other conversation")
    assert time.monotonic() - refused < 3
    server.wait(lambda: len(server.of(5)) >= 4, "the lane again")
    assert time.monotonic() - refused >= 0.7
    assert [f["msg"] for f in server.of(5) if f["to"] == "bob"] == ["b1", "b2", "b3"]
    assert [f["cid"] for f in server.of(5) if f["to"] == "bob"][:2] == cids[:2]


def test_refused_without_a_time_backs_off(server, start):
    server.refusals = [{"errno": 9}] * 3
    each = start("alice", "--timeout", "60")
    began = time.monotonic()
    each.type("chat:bob:stubborn")
    each.wait_out("stored: bob", 30)
    assert len(server.of(5)) == 4
    assert time.monotonic() - began >= 3


@pytest.mark.parametrize("errno", [3, 5, 6, 8])
def test_final_refusals_are_dropped(tmp_path, server, errno):
    server.refusals = [{"errno": errno, "errmsg": "final"}]
    done = run_filter(tmp_path, server.port, "alice", ["chat:bob:bad", "chat:bob:good"])
    assert done.returncode == 1 and f"(errno {errno})" in done.err
    with server.lock:
        server.frames.clear()
    run_filter(tmp_path, server.port, "alice")
    assert server.of(5) == []


@pytest.mark.parametrize("errno", [3, 8])
def test_a_message_too_long_for_the_server_does_not_loop(tmp_path, server, start, errno):
    """The server cannot read it, says so without a cid, and hangs up: the client must not send it for ever."""
    server.hold_acks = True
    each = start("alice", "--timeout", "1", "--wait", "600")
    each.type("chat:bob:short")
    each.type("chat:bob:" + "x" * 5000)
    server.wait(lambda: len(server.of(5)) == 2, "both")
    session = server.wait_online(1)
    with server.lock:
        server.hold_acks = False
        server.frames.clear()
        session.send({"msgid": 29, "errno": errno, "errmsg": "the frame is too long"})
    wait_until(lambda: any("the frame is too long" in line for line in each.err))
    with server.lock:
        session.cut()
    each.wait_out("stored: bob")
    assert [f["msg"] for f in server.of(5)] == ["short"]


def test_gives_up_after_seven_days(tmp_path, server):
    server.hold_acks = True
    run_filter(tmp_path, server.port, "alice", ["chat:bob:old", "chat:bob:young"], "--timeout", "1")
    lines = outbox(tmp_path).read_text().splitlines()
    fields = lines[0].split("\t")
    fields[2] = str(int(fields[2]) - 7 * 24 * 3600 * 1000 - 1000)
    outbox(tmp_path).write_text("\t".join(fields) + "\n" + lines[1] + "\n")
    with server.lock:
        server.hold_acks = False
        server.frames.clear()
    done = run_filter(tmp_path, server.port, "alice")
    assert "gave up the message to bob" in done.err and done.returncode == 1
    assert [f["msg"] for f in server.of(5)] == ["young"]


def test_a_second_client_leaves_the_outbox_alone(tmp_path, server, start):
    start("alice", "--wait", "600")
    first = server.wait_online(1)
    with server.lock:
        del server.online[1]            # a server that lets both in
    done = run_filter(tmp_path, server.port, "alice", ["chat:bob:x"])
    assert done.returncode == 0 and "in use by another parley" in done.err
    assert first


def test_state_folder_that_cannot_be_made(tmp_path, server):
    done = run_filter(tmp_path, server.port, "alice", ["chat:bob:x"], "--state-dir", "/proc/nope")
    assert done.returncode == 0 and "in memory only" in done.err


def test_names_cannot_leave_the_state_folder(tmp_path, server):
    server.add_user("../../evil/..")
    done = run_filter(tmp_path, server.port, "../../evil/..", ["chat:bob:x"], "--state-dir",
                      str(tmp_path / "state"))
    assert done.returncode == 0
    files = [p for p in (tmp_path / "state").rglob("outbox")]
    assert len(files) == 1 and files[0].parent.parent.parent == tmp_path / "state"


# ---- incoming ----

def test_confirms_at_once_and_at_least_every_64(server, start):
    each = start("alice", "--json", "--wait", "600")
    session = server.wait_online(1)
    with server.lock:                       # in one piece, so that they arrive together
        session.n = 200
        session.send_raw(b"".join(json.dumps(dict(chat(server, f"m{i}", f"mid{i}"), n=i + 1)).encode()
                                  for i in range(200)))
    server.wait(lambda: session.confirmed == 200, "RECEIVED 200", 3)
    numbers = [0] + [f["n"] for f in server.of(16)]
    assert all(0 < b - a <= 64 for a, b in zip(numbers, numbers[1:])), numbers
    session.chat(chat(server, "last", "midlast"))
    server.wait(lambda: session.confirmed == 201, "RECEIVED within a second", 1)
    wait_until(lambda: sum('"message"' in line for line in each.out) == 201)


def test_duplicates_are_shown_once_and_confirmed(tmp_path, server, start):
    each = start("alice", "--wait", "600")
    session = server.wait_online(1)
    for _ in range(3):
        session.chat(chat(server, "once", "same-mid"))
    session.chat(chat(server, "end", "other-mid"))
    each.wait_out("end")
    server.wait(lambda: session.confirmed == 4, "duplicates confirmed, too")
    assert sum("once" in line for line in each.out) == 1
    each.kill()
    server.wait(lambda: 1 not in server.online, "the end")
    server.stored[1] = [chat(server, "once", "same-mid"), chat(server, "fresh", "fresh-mid")]
    done = run_filter(tmp_path, server.port, "alice")
    assert "fresh" in done.out and "once" not in done.out, "remembered across a kill -9"


def test_group_and_own_messages(tmp_path, server):
    cats = server.add_group("cats", 1, 2)
    server.stored[1] = [{"msgid": 9, "id": 2, "name": "bob", "groupid": cats, "msg": "hi", "time": "",
                         "mid": "g1"}]
    done = run_filter(tmp_path, server.port, "alice", ["chat:alice:to myself"])
    assert "#cats bob: hi" in done.out and "alice: to myself" in done.out


def test_messages_without_mid_are_always_shown(server, start):
    each = start("alice", "--wait", "600")
    session = server.wait_online(1)
    for _ in range(2):
        message = chat(server, "plain", "x")
        del message["mid"]
        session.chat(message)
    wait_until(lambda: sum("plain" in line for line in each.out) == 2)


def test_quitting_says_goodbye_after_the_confirmations(tmp_path, server):
    server.stored[1] = [chat(server, f"m{i}", f"mid{i}") for i in range(40)]
    assert run_filter(tmp_path, server.port, "alice").returncode == 0
    kinds = [f["msgid"] for _, f in server.frames]
    assert server.of(16)[-1]["n"] == 40
    assert kinds.index(10) > max(i for i, k in enumerate(kinds) if k == 16)
