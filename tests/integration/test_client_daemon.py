"""parley and parleyd together: what two people and their scripts can do."""

import json
import os
import re
import signal
import time

import pytest

from client_support import Filter, Tty, run_filter
from parleytest import SCALE, wait_until
from parleytest.daemon import unique


@pytest.fixture
def open_tty(tmp_path):
    made = []

    def open_tty(port, *args, **kw):
        tty = Tty(tmp_path, port, *args, **kw)
        made.append(tty)
        return tty

    yield open_tty
    for tty in made:
        assert b"Sanitizer" not in tty.raw and b"runtime error" not in tty.raw, tty.raw
        tty.kill()


@pytest.fixture
def filters(tmp_path):
    made = []

    def start(port, name, *args, password="pw"):
        made.append(Filter(tmp_path, port, name, *args, password=password))
        return made[-1]

    yield start
    for each in made:
        each.kill()


def make(tmp_path, daemon, name, home=None):
    name = unique(name)
    done = run_filter(home or tmp_path, daemon.port, name, (), "--register")
    assert done.returncode == 0, done.err
    return name


def last_events(done, kind):
    return [e for e in done.events if e["event"] == kind]


def test_two_newcomers_chat(daemon, open_tty):
    names = [unique("ann"), unique("bob")]
    ttys = []
    for name in names:
        tty = open_tty(daemon.port, name)
        tty.expect("^Password:")
        tty.type("secret\n")
        tty.expect("Register " + name)
        tty.type("y\n")
        tty.expect("^Password again:")
        tty.type("secret\n")
        tty.expect(f"^logged in as {name}")
        tty.expect(f"^{name}> *$")
        ttys.append(tty)
    ann, bob = ttys
    ann.type(f"/friend {names[1]}\n")
    ann.expect(r"is your friend now \(online\)")
    ann.type(f"/to {names[1]}\nhello, are you there?\n")
    bob.expect(rf"^\[\d\d:\d\d\] {names[0]}: hello, are you there\?$")
    ann.expect(r"\[delivered\]>")
    bob.type("/r i am\n")
    ann.expect(rf"^\[\d\d:\d\d\] {names[1]}: i am$")
    bob.type("/create room\n/quit\n")
    assert bob.wait_end() == 0
    ann.expect(rf"^\* {names[1]} is offline$")
    ann.type("too late?\n")
    ann.expect(r"is not online: the message is stored")


def test_all_commands(tmp_path, daemon):
    ann, bob = make(tmp_path, daemon, "ann"), make(tmp_path, daemon, "b:o b")
    room = unique("the room: a")
    done = run_filter(tmp_path, daemon.port, ann, [
        f'addfriend:{bob}', f'/msg "{bob}" one', f'chat:"{bob}":two', "showfriendlist",
        f'creategroup:"{room}":where we meet', f'groupchat:"{room}":alone', "showgrouplist",
        f"/who {room}", "/ping", "/status", f'delfriend:{bob}', "loginout"], "--json")
    assert (done.returncode, done.err) == (0, "")
    kinds = [e["event"] for e in done.events]
    assert kinds == ["login", "friend_added", "ack", "ack", "friends", "group_created", "ack", "groups",
                     "members", "pong", "status", "friend_removed", "logout"]
    assert done.events[4]["friends"][0]["name"] == bob
    assert done.events[7]["groups"][0]["desc"] == "where we meet"
    done = run_filter(tmp_path, daemon.port, bob, [f"/join {room}", f'/g "{room}" hi', f"/leave {room}"],
                      "--json")
    assert done.returncode == 0
    assert [e["text"] for e in last_events(done, "message")] == ["one", "two"]
    assert all(e["from"]["name"] == ann and e["waiting"] for e in last_events(done, "message"))
    done = run_filter(tmp_path, daemon.port, ann, [f"/leave {room}", "/groups"], "--json")
    assert last_events(done, "message")[0]["text"] == "hi"
    assert last_events(done, "message")[0]["group"]["name"] == room
    assert last_events(done, "groups")[0]["groups"] == []


def test_errors(tmp_path, daemon):
    ann = make(tmp_path, daemon, "ann")
    room = unique("room")
    done = run_filter(tmp_path, daemon.port, ann, [
        "addfriend:999999999", f"/create {room}", f"/create {room}", f"/join {room}", "/leave nowhere",
        "/g nowhere hi"])
    assert done.returncode == 1
    codes = re.findall(r"\(errno (\d+)\)", done.err)
    assert codes == ["5", "1", "10", "5", "5"], done.err
    assert run_filter(tmp_path, daemon.port, ann, (), password="wrong").returncode == 4


def test_long_list_of_friends(tmp_path, daemon):
    ann = make(tmp_path, daemon, "ann")
    friends = daemon.accounts(230, "friend")
    done = run_filter(tmp_path, daemon.port, ann,
                      [f"addfriend:{f.id}" for f in friends] + ["/friends"], "--json")
    assert done.returncode == 0, done.err
    assert {f["name"] for f in last_events(done, "friends")[0]["friends"]} == {f.name for f in friends}


def test_unix_socket(tmp_path, daemon):
    done = run_filter(tmp_path, 1, unique("ann"), ["/ping"], "-u", daemon.unix, "--register")
    assert done.returncode == 0 and "answers" in done.out


def test_a_long_message_and_one_too_long(tmp_path, daemon):
    ann = make(tmp_path, daemon, "ann")
    long = "x" * 60000
    done = run_filter(tmp_path, daemon.port, ann, [f"chat:{ann}:{long}", f"chat:{ann}:" + '"' * 35000,
                                                  f"chat:{ann}:after"], "--json")
    assert [e["text"] for e in last_events(done, "message")] == [long, "after"]
    assert done.returncode == 1 and "too long" in done.err


def test_a_smaller_limit_of_the_server(tmp_path, make_daemon):
    daemon = make_daemon(max_frame="2k")
    ann = make(tmp_path, daemon, "ann")
    done = run_filter(tmp_path, daemon.port, ann, [f"chat:{ann}:before", f"chat:{ann}:" + "x" * 3000,
                                                  f"chat:{ann}:after"], "--json")
    assert done.returncode == 1 and "refused" in done.err
    texts = [e["text"] for e in last_events(done, "message")]
    assert texts == ["before", "after"]


def test_nothing_is_lost_or_doubled_while_workers_die(tmp_path, make_daemon, filters):
    """Two scripts talk; workers are killed all the time; each message is shown once, in order."""
    daemon = make_daemon(workers=2)
    ann = make(tmp_path, daemon, "ann")
    bob = make(tmp_path, daemon, "bob")
    listener = filters(daemon.port, bob, "--json", "--wait", "600")
    listener.wait_out('"login"')
    talker = filters(daemon.port, ann, "--json", "--timeout", "60")
    talker.wait_out('"login"')
    count, kills = 120, 0
    for i in range(count):
        talker.type(f"chat:{bob}:message {i}")
        if i % 30 == 15:
            slot = kills % 2
            old = daemon.kill_worker(slot)
            daemon.wait_worker(slot, old)
            kills += 1
    assert talker.end(120) == 0, talker.err
    daemon.allow("killed")

    def shown():
        return [e["text"] for e in map(json.loads, list(listener.out)) if e["event"] == "message"]

    wait_until(lambda: len(shown()) >= count, 30)
    assert shown() == [f"message {i}" for i in range(count)]


def test_reconnects_after_a_restart_of_the_daemon(tmp_path, daemon_restarts, open_tty):
    daemon = daemon_restarts
    ann = make(tmp_path, daemon, "ann")
    tty = open_tty(daemon.port, "--no-color", ann, PARLEY_PASSWORD="pw")
    tty.expect(f"^{ann}> *$")
    tty.type("half a th")
    daemon.stop()
    tty.expect(r"^\* connection lost")
    tty.expect_last(f"{ann} [offline]> half a th")
    daemon.start()
    tty.expect(r"^\* connected again", 60)
    tty.expect_last(f"{ann}> half a th")


@pytest.fixture
def daemon_restarts(make_daemon):
    return make_daemon(workers=1)


def test_kicked(tmp_path, daemon, open_tty):
    ann = make(tmp_path, daemon, "ann")
    tty = open_tty(daemon.port, "--no-color", ann, PARLEY_PASSWORD="pw")
    tty.expect(f"^{ann}> *$")
    daemon.ctl_ok("kick", ann)
    tty.expect("^! .*kicked")
    tty.expect_last("parley> ")
    tty.type("/login\n")
    tty.expect_last(f"{ann}> ")


def test_online_elsewhere(tmp_path, daemon, filters):
    ann = make(tmp_path, daemon, "ann")
    filters(daemon.port, ann, "--wait", "600").wait_out("logged in")
    done = run_filter(tmp_path, daemon.port, ann)
    assert done.returncode == 4 and "(errno 2)" in done.err


def test_replaced(tmp_path, make_daemon, filters):
    daemon = make_daemon(duplicate_login="replace")
    ann = make(tmp_path, daemon, "ann")
    first = filters(daemon.port, ann, "--wait", "600")
    first.wait_out("logged in")
    assert run_filter(tmp_path, daemon.port, ann).returncode == 0
    assert first.end() == 1
    assert any("replaced" in line for line in first.err)


def test_a_killed_client_sends_the_rest_at_its_next_start(tmp_path, daemon, filters):
    ann, bob = make(tmp_path, daemon, "ann"), daemon.account("bob")
    client = filters(daemon.port, ann, "--json", "--wait", "600")
    client.wait_out('"login"')
    for slot, pid in daemon.workers.items():
        os.kill(pid, signal.SIGSTOP)            # nothing is answered, nothing refused
    try:
        client.type(f"chat:{bob.id}:survivor")
        outbox = lambda: list(tmp_path.rglob("outbox"))
        wait_until(lambda: any(b"survivor" in p.read_bytes() for p in outbox()), 10)
        client.kill()
    finally:
        for slot, pid in daemon.workers.items():
            os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + 20 * SCALE
    while True:                                 # until the dead session is gone
        done = run_filter(tmp_path, daemon.port, ann)
        if done.returncode == 0 or time.monotonic() > deadline:
            break
    assert done.returncode == 0, done.err
    receiver = daemon.login(bob, login={"ack": True})
    receiver.wait_texts(["survivor"])
