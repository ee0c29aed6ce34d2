"""The shell client with several servers: it finds another when one is gone, whatever the way it went."""

import json
import os
import re
import signal
import socket
import threading
import time

import pytest

from client_support import Filter, Tty, run_filter
from fake_server import FakeServer
from parleytest import SCALE, needs_redis, wait_until
from parleytest.daemon import free_port, unique


class Cluster:
    """Fake servers with one memory: accounts, tokens, stored messages and who is online."""

    def __init__(self, count):
        self.servers = [FakeServer() for _ in range(count)]
        for server in self.servers[1:]:
            for name in ("users", "tokens", "stored", "had", "online", "friends", "count"):
                setattr(server, name, getattr(self.servers[0], name))
        self.servers[0].add_user("alice")
        self.servers[0].add_user("bob")

    def names(self, *which):
        return ",".join(f"127.0.0.1:{self.servers[i].port}" for i in which or range(len(self.servers)))

    def at(self, uid=1, other_than=None):
        """Which server the user is at."""
        session = self.servers[0].online.get(uid)
        if session in (None, other_than):
            return None
        with session.server.lock:           # its answer to the login is out, too
            return self.servers.index(session.server)

    def wait_at(self, number, seconds=15, other_than=None):
        wait_until(lambda: self.at(other_than=other_than) == number, seconds, f"alice at server {number}")


@pytest.fixture
def cluster():
    cluster = Cluster(3)
    yield cluster
    for server in cluster.servers:
        server.close()


@pytest.fixture
def start(tmp_path):
    made = []

    def start(hosts, *args, name="alice", password="pw"):
        each = Filter(tmp_path, 1, name, "-h", hosts, "--wait", "600", *args, password=password)
        made.append(each)
        return each

    yield start
    for each in made:
        each.kill()


@pytest.fixture
def open_tty(tmp_path):
    made = []

    def open_tty(*args, **kw):
        made.append(Tty(tmp_path, 1, "--no-color", *args, cols=120, **kw))
        return made[-1]

    yield open_tty
    for tty in made:
        assert b"Sanitizer" not in tty.raw and b"runtime error" not in tty.raw, tty.raw
        tty.kill()


def notes(each):
    return [line for line in each.err if line]


# ---- where it connects first ----

def test_in_the_order_given(tmp_path, cluster):
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        done = run_filter(tmp_path, 1, "alice", ["/status"], "-h", cluster.names(*order))
        assert done.returncode == 0, done.err
        assert f"logged in at 127.0.0.1:{cluster.servers[order[0]].port} as alice" in done.out


def test_repeated_options_and_commas_mean_the_same(tmp_path, cluster):
    dead = free_port()
    done = run_filter(tmp_path, 1, "alice", ["/status"], "-h", f"127.0.0.1:{dead},[::1]:{dead}",
                      "-h", cluster.names(2), "-h", cluster.names(0))
    assert done.returncode == 0, done.err
    assert f"at 127.0.0.1:{cluster.servers[2].port} as" in done.out
    assert done.err == ""


def test_nobody_answers_is_exit_3(tmp_path):
    ports = free_port(), free_port()
    done = run_filter(tmp_path, 1, "alice", [], "-h", ",".join(f"127.0.0.1:{p}" for p in ports))
    assert done.returncode == 3
    assert "none of 2 servers answers" in done.err and f"127.0.0.1:{ports[1]}: Connection refused" in done.err


def test_too_many_servers(tmp_path):
    done = run_filter(tmp_path, 1, "alice", [], "-h", ",".join(["127.0.0.1"] * 17))
    assert done.returncode == 2 and "too many" in done.err


def test_a_name_that_does_not_exist_is_passed_over(tmp_path, cluster):
    started = time.monotonic()
    done = run_filter(tmp_path, 1, "alice", ["/status"], "-h", "no-such-host.invalid:6000," + cluster.names(1))
    assert done.returncode == 0, done.err
    assert time.monotonic() - started < 10 * SCALE


@pytest.fixture
def unplugged():
    """An address that never answers: its backlog is full, so connecting takes for ever."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        stuffed = []
        for _ in range(4):
            s = socket.socket()
            s.setblocking(False)
            s.connect_ex(full.getsockname())
            stuffed.append(s)
        yield "127.0.0.1:%d" % full.getsockname()[1]
        for s in stuffed:
            s.close()


def test_a_server_that_never_accepts_costs_seconds(tmp_path, cluster, unplugged):
    started = time.monotonic()
    done = run_filter(tmp_path, 1, "alice", ["/status"], "-h", unplugged + "," + cluster.names(1))
    assert done.returncode == 0, done.err
    assert 2 < time.monotonic() - started < 5 * SCALE


def test_a_server_that_hangs_up_during_the_login(tmp_path, cluster):
    """The next one gets it, and the person hears nothing of it."""
    cluster.servers[0]._login = lambda session, frame: session.cut()
    done = run_filter(tmp_path, 1, "alice", ["/status"], "-h", cluster.names())
    assert done.returncode == 0, done.err
    assert f"at 127.0.0.1:{cluster.servers[1].port} as" in done.out and done.err == ""


def test_all_hang_up_during_the_login(tmp_path, cluster):
    for server in cluster.servers:
        server._login = lambda session, frame: session.cut()
    done = run_filter(tmp_path, 1, "alice", [], "-h", cluster.names())
    assert done.returncode == 3 and "cannot connect" in done.err
    assert sum(len(server.of(1)) for server in cluster.servers) <= 6


# ---- a connection is lost ----

def test_goes_round(start, cluster):
    each = start(cluster.names())
    for number in (0, 1, 2, 0):
        cluster.wait_at(number)
        session = cluster.servers[0].online[1]
        session.cut()
        wait_until(lambda: cluster.at(other_than=session) is not None)
    cluster.wait_at(1)
    each.type("chat:bob:after")
    each.wait_out("stored: bob")
    told = notes(each)
    assert len(told) == 8, told
    for i, number in enumerate((1, 2, 0, 1)):
        where = f"127.0.0.1:{cluster.servers[number].port}"
        assert re.search(rf"connection lost \(.*\): reconnecting to {where}$", told[2 * i]), told
        assert told[2 * i + 1].endswith(f"connected again as alice at {where}"), told


def test_dead_ones_are_passed_over_without_a_word(start, cluster):
    each = start(cluster.names(), "--json")
    cluster.wait_at(0)
    cluster.servers[1].close()
    cluster.servers[0].close()
    cluster.wait_at(2)
    each.wait_out('"again":true')
    events = [json.loads(line) for line in each.out]
    assert [e["event"] for e in events] == ["login", "connection", "login"]
    assert events[1]["state"] == "lost" and events[1]["server"].endswith(f":{cluster.servers[1].port}")
    assert events[2]["server"] == cluster.names(2)
    logins = cluster.servers[2].of(1)
    assert len(logins) == 1 and "token" in logins[0] and "password" not in logins[0]


def test_what_was_open_is_sent_again_elsewhere_in_order(start, cluster):
    each = start(cluster.names(), "--timeout", "1")
    cluster.wait_at(0)
    cluster.servers[0].hold_acks = True
    for i in range(3):
        each.type(f"chat:bob:no {i}")
    cluster.servers[0].wait(lambda: len(cluster.servers[0].of(5)) == 3, "three messages", 20 * SCALE)
    cluster.servers[0].close()
    cluster.servers[1].wait(lambda: len(cluster.servers[1].of(5)) == 3, "the same again", 20 * SCALE)
    first, second = cluster.servers[0].of(5), cluster.servers[1].of(5)
    assert [f["msg"] for f in second] == ["no 0", "no 1", "no 2"]
    assert [f["cid"] for f in second] == [f["cid"] for f in first]


@pytest.mark.long
def test_a_silent_server_is_left(start, cluster):
    """The host was unplugged after the login: a message gets no answer, then our PING gets none."""
    each = start(cluster.names())
    cluster.wait_at(0)
    cluster.servers[0].silent = True
    each.type("chat:bob:hello")
    cluster.wait_at(1, 60)
    assert [f["msgid"] for _, f in cluster.servers[0].frames][-2:] == [5, 25]
    each.wait_out("stored: bob")


# ---- a dead host's claim ----

def test_errno_2_after_a_loss_is_waited_for(start, cluster):
    """The cluster has not given up the dead host's claim yet."""
    each = start(cluster.names())
    cluster.wait_at(0)
    with cluster.servers[0].lock:
        dead = cluster.servers[0].online[1]
        cluster.servers[0]._end = lambda session: None      # the claim stays
        dead.cut()
    cluster.servers[1].wait(lambda: len(cluster.servers[1].of(1)) >= 4, "patience", 20 * SCALE)
    assert len(notes(each)) == 1, each.err
    with cluster.servers[0].lock:
        del cluster.servers[0].online[1]
    cluster.wait_at(1)
    wait_until(lambda: len(notes(each)) == 2)
    assert not any("errno" in line for line in each.err), each.err


def test_errno_2_at_the_first_login_is_told(tmp_path, cluster):
    cluster.servers[1].refuse_logins = [{"errno": 2, "errmsg": "online elsewhere"}]
    done = run_filter(tmp_path, 1, "alice", [], "-h", cluster.names(1, 0))
    assert done.returncode == 4 and "(errno 2)" in done.err
    assert not cluster.servers[0].of(1)


# ---- a draining host ----

def refusal(cluster, *which, **more):
    return dict({"errno": 9, "errmsg": "this host is being drained", "retry_ms": 30000,
                 "try": [f"127.0.0.1:{cluster.servers[i].port}" for i in which]}, **more)


def test_try_is_followed_at_the_first_login(tmp_path, cluster):
    """To a server that was not on the command line, at once, without a word."""
    cluster.servers[0].refuse_logins = [refusal(cluster, 2)]
    started = time.monotonic()
    done = run_filter(tmp_path, 1, "alice", ["/status"], "-h", cluster.names(0))
    assert done.returncode == 0, done.err
    assert f"at 127.0.0.1:{cluster.servers[2].port} as" in done.out and done.err == ""
    assert time.monotonic() - started < 10 * SCALE


def test_try_is_followed_when_coming_back(start, cluster):
    each = start(cluster.names(0))
    cluster.wait_at(0)
    cluster.servers[0].refuse_logins = [refusal(cluster, 1, 2)]
    cluster.servers[0].online[1].cut()
    cluster.wait_at(1)
    assert "token" in cluster.servers[1].of(1)[0]
    # what was named is remembered for later
    cluster.servers[1].close()
    cluster.wait_at(2)
    wait_until(lambda: len(notes(each)) == 4)
    assert not any("errno" in line for line in each.err), each.err


def test_try_that_names_the_same_host_or_nonsense(tmp_path, cluster):
    """Then it is errno 9 as ever: wait, and ask again."""
    junk = ["", "x", 7, None, "a b:1", "127.0.0.1:0", "127.0.0.1:99999", "\x1b[2J:1"]
    cluster.servers[0].refuse_logins = [
        refusal(cluster, 0, retry_ms=200), refusal(cluster, retry_ms=200), refusal(cluster, retry_ms=200, **{"try": junk}),
        refusal(cluster, retry_ms=200, **{"try": {"127.0.0.1:1": 1}}), refusal(cluster, retry_ms=200, **{"try": 7})]
    done = run_filter(tmp_path, 1, "alice", [], "-h", cluster.names(0))
    assert done.returncode == 0
    assert len(cluster.servers[0].of(1)) == 6 and done.err.count("errno 9") == 5, done.err


def test_try_that_cannot_be_reached(tmp_path, cluster, unplugged):
    """An address of the servers' own network costs a moment, once; then it is waited for as told."""
    cluster.servers[0].refuse_logins = [refusal(cluster, retry_ms=200, **{"try": [unplugged]}) for _ in range(4)]
    started = time.monotonic()
    done = run_filter(tmp_path, 1, "alice", [], "-h", cluster.names(0))
    assert done.returncode == 0, done.err
    assert 1 < time.monotonic() - started < 5 * SCALE
    assert len(cluster.servers[0].of(1)) == 5 and done.err.count("errno 9") == 3, done.err


def test_two_hosts_that_send_one_to_the_other(tmp_path, cluster):
    """Both are drained: the client is not sent to and fro without a pause."""
    cluster.servers[0].refuse_logins = [refusal(cluster, 1, retry_ms=400) for _ in range(50)]
    cluster.servers[1].refuse_logins = [refusal(cluster, 0, retry_ms=400) for _ in range(50)]

    def relent():
        cluster.servers[0].wait(lambda: len(cluster.servers[0].of(1)) >= 7, "logins", 60)
        cluster.servers[0].refuse_logins.clear()

    thread = threading.Thread(target=relent)
    started = time.monotonic()
    thread.start()
    done = run_filter(tmp_path, 1, "alice", [], "-h", cluster.names(0))
    thread.join()
    assert done.returncode == 0, done.err
    waits = done.err.count("errno 9")
    assert waits >= 2 and time.monotonic() - started > 0.4 * waits
    assert len(cluster.servers[0].of(1)) + len(cluster.servers[1].of(1)) <= 5 * (waits + 1)


def test_a_list_without_end_is_bounded(tmp_path, cluster):
    long = [f"127.0.0.1:{port}" for port in range(1, 400)]
    cluster.servers[0].refuse_logins = [refusal(cluster, **{"try": long})]
    done = run_filter(tmp_path, 1, "alice", ["/status"], "-h", cluster.names(0))
    assert done.returncode == 0, done.err       # after the few that it took: back where it was
    assert f"at 127.0.0.1:{cluster.servers[0].port} as" in done.out


@pytest.mark.parametrize("reason", ["moved", "shutdown"])
def test_session_end_goes_to_another_host_in_one_line(open_tty, cluster, reason):
    tty = open_tty("-h", cluster.names(), "alice", PARLEY_PASSWORD="pw")
    tty.expect_last("alice> ")
    tty.type("half a th")
    first = cluster.servers[0].online[1]
    first.send({"msgid": 28, "reason": reason})
    started = time.monotonic()
    cluster.wait_at(1)
    tty.expect(rf"^\* session ended \({reason}\): connected again as alice at 127.0.0.1:{cluster.servers[1].port}$")
    assert time.monotonic() - started < 5 * SCALE
    tty.expect_last("alice> half a th")
    assert str(tty.screen).count("* ") == 2, tty.screen        # that, and the greeting
    assert len(cluster.servers[0].of(1)) == 1


def test_a_move_that_takes_long_is_told(open_tty, cluster):
    tty = open_tty("-h", cluster.names(0, 1), "alice", PARLEY_PASSWORD="pw")
    tty.expect_last("alice> ")
    cluster.servers[1].close()
    first = cluster.servers[0].online[1]
    cluster.servers[0].refuse_logins = [{"errno": 9, "errmsg": "later", "retry_ms": 5000}]
    first.send({"msgid": 28, "reason": "moved"})
    tty.expect_last("alice [offline]> ", 20)
    tty.expect(r"^\* connection lost \(moved\): reconnecting to 127.0.0.1:", 20)
    tty.expect(r"^\* connected again as alice$", 60)


@pytest.mark.parametrize("reason", ["kicked", "replaced"])
def test_session_end_for_good_waits_for_the_person(start, cluster, reason):
    each = start(cluster.names())
    cluster.wait_at(0)
    cluster.servers[0].online[1].send({"msgid": 28, "reason": reason})
    wait_until(lambda: each.err)
    assert each.end() == 1
    assert reason in each.err[0]
    assert not cluster.servers[1].of(1) and not cluster.servers[2].of(1)


# ---- real servers ----

@pytest.fixture
def hosts(make_daemon, mariadb):
    """Two daemons, one store."""
    url = mariadb.url(mariadb.database())
    return [make_daemon(store=url, workers=2) for _ in range(2)]


def names(hosts):
    return ",".join(f"127.0.0.1:{host.port}" for host in hosts)


def kill_host(host):
    """kill -9, every process at once: nothing of it says goodbye."""
    host.allow(".")
    pids = host.processes()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)            # so that none sees the others die
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    host.wait_exit()


def test_a_killed_host_is_survived_by_its_people(tmp_path, hosts, open_tty):
    ann = unique("ann")
    assert run_filter(tmp_path, 1, ann, (), "-h", names(hosts), "--register").returncode == 0
    bob = hosts[1].account("bob")
    tty = open_tty("-h", names(hosts), ann, PARLEY_PASSWORD="pw")
    tty.expect_last(f"{ann}> ")
    tty.type(f"/msg {bob.name} before\n")
    tty.expect_last(f"{ann} [stored]> ", 20)
    tty.type("half a th")
    tty.expect_last(f"{ann} [stored]> half a th")
    started = time.monotonic()
    kill_host(hosts[0])
    tty.expect(rf"^\* connected again as {ann} at 127.0.0.1:{hosts[1].port}$", 20)
    took = time.monotonic() - started
    assert took < 5 * SCALE, f"back after {took:.1f} s"
    tty.expect_last(f"{ann} [stored]> half a th")
    assert str(tty.screen).count(f"reconnecting to 127.0.0.1:{hosts[1].port}") == 1, tty.screen
    tty.type(f"\x15/msg {bob.name} after\n")
    tty.wait(lambda: hosts[1].login(bob, login={"ack": True}).wait_texts(["before", "after"]) or True, "both")


def test_nothing_is_lost_or_doubled_while_hosts_die(tmp_path, hosts, start):
    """Messages go on while the host of the moment is killed, comes back, and the other is killed."""
    ann, bob = unique("ann"), unique("bob")
    for name in (ann, bob):
        assert run_filter(tmp_path, 1, name, (), "-h", names(hosts), "--register").returncode == 0
    talker = start(names(hosts), "--json", "--timeout", "60", name=ann)
    talker.wait_out('"login"')
    count = 60
    for i in range(count):
        talker.type(f"chat:{bob}:message {i}")
        if i % 20 == 10:
            talker.wait_out('"event":"ack"')
            at = [e for e in map(json.loads, list(talker.out)) if e["event"] == "login"][-1]["server"]
            host = next(h for h in hosts if at.endswith(":%d" % h.port))
            logins = sum('"login"' in line for line in talker.out)
            kill_host(host)
            wait_until(lambda: sum('"login"' in line for line in talker.out) > logins, 30)
            host.start(30)
    wait_until(lambda: sum('"event":"ack"' in line for line in talker.out) == count, 60)
    done = run_filter(tmp_path, 1, bob, (), "-h", names(hosts), "--json")
    assert done.returncode == 0, done.err
    assert [e["text"] for e in done.events if e["event"] == "message"] == [f"message {i}" for i in range(count)]


def test_a_daemon_that_stops_sends_its_people_on(hosts, tmp_path, open_tty):
    ann = unique("ann")
    assert run_filter(tmp_path, 1, ann, (), "-h", names(hosts), "--register").returncode == 0
    tty = open_tty("-h", names(hosts), ann, PARLEY_PASSWORD="pw")
    tty.expect_last(f"{ann}> ")
    hosts[0].stop()
    tty.expect(rf"^\* session ended \(shutdown\): connected again as {ann} at 127.0.0.1:{hosts[1].port}$", 20)


# ---- a real cluster ----

def advertised(cluster):
    return ",".join(host.advertised for host in cluster)


@needs_redis
def test_a_drained_host_sends_its_people_on(tmp_path, make_cluster, open_tty):
    """The client knows one server only: the others are named by it."""
    cluster = make_cluster(hosts=2)
    ann = unique("ann")
    assert run_filter(tmp_path, 1, ann, (), "-h", advertised(cluster), "--register").returncode == 0
    bob = cluster[1].online()
    tty = open_tty("-h", cluster[0].advertised, ann, PARLEY_PASSWORD="pw")
    tty.expect_last(f"{ann}> ")
    tty.type("half a th")
    cluster[0].ctl_ok("drain")
    tty.expect(rf"^\* session ended \(moved\): connected again as {ann} at {re.escape(cluster[1].advertised)}$", 30)
    tty.expect_last(f"{ann}> half a th")
    assert str(tty.screen).count("* ") == 2, tty.screen
    tty.type(f"\x15/msg {bob.name} moved\n")
    bob.wait_texts(["moved"])


@needs_redis
def test_a_killed_host_of_a_cluster(tmp_path, make_cluster, start):
    """Its claims are given up by and by: the client waits for that, and says nothing about it."""
    cluster = make_cluster(hosts=3)
    ann, bob = unique("ann"), unique("bob")
    for name in (ann, bob):
        assert run_filter(tmp_path, 1, name, (), "-h", advertised(cluster), "--register").returncode == 0
    talker = start(advertised(cluster), "--json", "--timeout", "60", name=ann)
    listener = start(advertised(list(cluster)[1:]), "--json", name=bob)
    for each in (talker, listener):
        each.wait_out('"login"')
    cluster[0].allow(".")
    began = time.monotonic()
    cluster[0].kill_host()
    talker.type(f"chat:{bob}:after")
    talker.wait_out('"again":true', 30)
    took = time.monotonic() - began
    listener.wait_out('"after"', 30)
    assert not any("errno" in line for line in talker.err), talker.err
    assert took < 20 * SCALE


@needs_redis
def test_parleyctl_reads_the_live_registry(make_cluster):
    cluster = make_cluster(hosts=2, each=[{"weight": 3}, {}])
    text = cluster[1].ctl_ok("upstream", "--consistent")
    assert re.findall(r"^\tserver (\S+) weight=(\d) .*# (\S+)$", text, re.M) == [
        (cluster[0].advertised, "3", "h1"), (cluster[1].advertised, "1", "h2")]
    live = json.loads(cluster[1].ctl_ok("--json", "ring", "127.0.0.77"))
    typed = json.loads(cluster[1].ctl_ok("--json", "ring", "127.0.0.77", "--from",
                                         f"{cluster[0].advertised}=3,{cluster[1].advertised}"))
    assert live == typed
    cluster[0].ctl_ok("drain")
    cluster[1].wait_hosts("h1", "h2")
    wait_until(lambda: " down;" in cluster[1].ctl_ok("upstream"), 10, "a host that is drained is down")
    assert json.loads(cluster[1].ctl_ok("--json", "ring", "127.0.0.77"))["host"] == cluster[1].advertised
