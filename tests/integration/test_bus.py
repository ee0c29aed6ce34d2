"""One host and its Redis: the registry, the reader of the host's channel, connections that end, lead nowhere, or
to something that is no Redis."""

import json
import os
import signal
import socket
import threading
import time

import pytest

from parleytest import *
from parleytest.cluster import QUICK
from parleytest.poll import SCALE, Stopwatch, holds_for, wait_until

pytestmark = needs_redis


@pytest.fixture
def make_host(make_daemon):
    def make(redis=None, **conf):
        return make_daemon(**dict(dict(QUICK, redis=redis.url() if hasattr(redis, "url") else redis,
                                       host_id="h1", cluster="bus"), **conf))
    return make


def entry(redis, id="h1"):
    text = redis("GET", "bus:host:" + id)
    return json.loads(text) if text else None


def readers(redis, id="h1"):
    return redis("PUBSUB", "NUMSUB", "bus:to:" + id)[1]


def wait_whole(host, redis, deadline=15):
    """Its entry is there, exactly one worker reads its channel, and every worker is connected."""
    def whole():
        state = host.status()["cluster"]
        return (entry(redis) is not None and readers(redis) == 1 and "leader" in state and
                state["workers_up"] == host.status()["workers_ready"] and state["announced"] and state)
    return wait_until(whole, deadline, "the host is in the registry")


# -- the registry --------------------------------------------------------------------------------

def test_entry(make_host, make_redis):
    redis = make_redis()
    host = make_host(redis, advertise="chat.example:6000", weight=7)
    state = wait_whole(host, redis)
    host.online()
    row = wait_until(lambda: entry(redis)["sessions"] == 1 and entry(redis), 10, "the session is counted")
    assert row["id"] == "h1" and row["epoch"] == str(host.status()["epoch"])
    assert (row["address"], row["weight"], row["workers"]) == ("chat.example:6000", 7, 2)
    assert row["connections"] >= 1 and row["draining"] is False
    assert redis("SMEMBERS", "bus:hosts") == ["h1"]
    assert 0 < redis("PTTL", "bus:host:h1") <= host.conf["host_timeout_ms"]
    assert state["on"] and state["name"] == "bus" and state["hosts"] == 1 and state["error"] == ""
    assert state["leader"] in (0, 1) and not state["draining"]
    assert "cluster bus  hosts 1  Redis at 2 of 2 workers  read by worker" in host.ctl("status").stdout
    metrics = host.ctl_ok("metrics")
    assert 'parley_redis_up{worker="0"} 1' in metrics and "parley_hosts_alive 1" in metrics
    host.stop()                                     # in order: nothing is left behind
    assert entry(redis) is None and redis("SMEMBERS", "bus:hosts") == []


@pytest.mark.parametrize("listen, address", [
    (["0.0.0.0:{port}"], ""), (["{unix}", "127.0.0.1:{port}"], "127.0.0.1:{port}"), (["[::1]:{port}"], "[::1]:{port}")])
def test_address_is_the_first_listener(make_host, make_redis, listen, address):
    redis = make_redis()
    host = make_host(redis, start=False)
    words = {"port": host.port, "unix": host.unix}
    host.write_conf(listen=[text.format(**words) for text in listen])
    host.spawn()
    wait_until(lambda: entry(redis), 15, "an entry")
    assert entry(redis)["address"] == address.format(**words)


def test_reload_tells_the_others(make_host, make_redis):
    redis = make_redis()
    host = make_host(redis)
    wait_whole(host, redis)
    host.write_conf(weight=9, advertise="10.0.0.1:1")
    host.ctl_ok("reload")
    wait_until(lambda: (entry(redis)["weight"], entry(redis)["address"]) == (9, "10.0.0.1:1"), 10, "the new values")


def test_entry_that_vanished_comes_back(make_host, make_redis):
    redis = make_redis()
    host = make_host(redis)
    wait_whole(host, redis)
    client = host.online()
    user = "bus:user:%d" % client.id
    wait_until(lambda: redis("EXISTS", user), 5, "a claim")
    redis("DEL", "bus:host:h1", user)               # as if it had been believed dead
    wait_until(lambda: entry(redis) and redis("EXISTS", user), 10, "entry and claim are there again")
    host.wait_log("had vanished")
    client.ping()


def test_someone_else_takes_the_id(make_host, make_redis):
    redis = make_redis()
    host = make_host(redis)
    wait_whole(host, redis)
    client = host.online()
    other = json.dumps({"epoch": "1", "id": "h1"}, separators=(",", ":"))
    redis("SET", "bus:host:h1", other)
    host.wait_log("another host of the cluster uses our host_id", 10)
    holds_for(lambda: redis("GET", "bus:host:h1") == other, 1, "it wrote over the other's entry")
    assert not host.status()["cluster"]["announced"]
    client.ping()                                   # who is here stays


def test_odd_entries_of_others(make_host, make_redis):
    """What stands in the registry is not trusted to be well formed."""
    redis = make_redis()
    host = make_host(redis)
    wait_whole(host, redis)
    texts = ["", "[]", "{}", "{\"epoch\":1}", "{\"epoch\":\"x\"}", "{\"epoch\":\"99999999999999999999999\"}",
             "\xff" * 10, "{" * 5000, "{\"epoch\":\"5\",\"address\":7,\"weight\":-1,\"draining\":3,\"version\":\"\\u0001\"}"]
    for number, text in enumerate(texts):
        redis("SET", "bus:host:o%d" % number, text)
        redis("SADD", "bus:hosts", "o%d" % number)
    for id in ("a b", "x" * 65, "", "\n"):
        redis("SET", "bus:host:" + id, "{\"epoch\":\"5\"}")
        redis("SADD", "bus:hosts", id)
    redis("SADD", "bus:hosts", "without-an-entry")
    wait_until(lambda: host.status()["cluster"]["hosts"] == 2, 10, "the one that is well formed")
    wait_until(lambda: not redis("SISMEMBER", "bus:hosts", "without-an-entry"), 10, "what has no entry is removed")
    host.online().ping()


def test_many_hosts(make_host, make_redis):
    redis = make_redis()
    host = make_host(redis)
    wait_whole(host, redis)
    for number in range(300):
        redis("SET", "bus:host:m%d" % number, "{\"epoch\":\"5\"}")
        redis("SADD", "bus:hosts", "m%d" % number)
    wait_until(lambda: host.status()["cluster"]["hosts"] == 256, 10, "as many as there is room for")
    host.wait_log("more than 255 hosts")
    host.online().ping()


# -- who reads the channel -----------------------------------------------------------------------

def test_another_worker_reads_on(make_host, make_redis):
    redis = make_redis()
    host = make_host(redis, workers=3)
    wait_whole(host, redis)
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL):
        leader, begun = host.status()["cluster"]["leader"], host.log_text().count("reading the host's channel")
        old = host.kill_worker(leader, number)
        watch = Stopwatch()
        wait_until(lambda: host.log_text().count("reading the host's channel") > begun, 10, "another one leads")
        print("signal %d: %.2f s until another worker led" % (number, watch.seconds))
        if number == signal.SIGSTOP:
            other = host.status()["cluster"]["leader"]
            assert other != leader
            host.kill_worker(leader, signal.SIGCONT)
            holds_for(lambda: host.status()["cluster"]["leader"] == other, 0.5, "the lead went on")
        else:
            host.wait_worker(leader, old)
        wait_whole(host, redis)


def test_leader_that_is_scaled_away(make_host, make_redis):
    redis = make_redis()
    host = make_host(redis, workers=3)
    wait_whole(host, redis)
    host.ctl_ok("scale", "1")
    wait_until(lambda: host.status()["workers_ready"] == 1, 15, "one worker")
    assert wait_whole(host, redis)["leader"] == 0


# -- connections ---------------------------------------------------------------------------------

def test_connections_end(make_host, make_redis):
    redis = make_redis()
    host = make_host(redis)
    wait_whole(host, redis)
    for kind in ("normal", "pubsub", "normal"):
        made = sum(row["bus_connects"] for row in host.status()["workers"])
        redis("CLIENT", "KILL", "TYPE", kind)
        if kind == "normal":
            wait_until(lambda: sum(row["bus_connects"] for row in host.status()["workers"]) >= made + 2, 10,
                       "both workers connect again")
        wait_whole(host, redis)
    host.online().ping()


def test_frozen_redis_is_left(make_host, make_redis):
    """A server that stands still closes nothing: the silence is noticed."""
    redis = make_redis()
    host = make_host(redis)
    wait_whole(host, redis)
    client = host.online()
    redis.freeze()
    try:
        wait_until(lambda: host.status()["cluster"]["workers_up"] == 0, 10 * SCALE, "no worker believes in it")
        assert "no answer" in wait_until(lambda: host.status()["cluster"]["error"], 5, "a reason")
        assert "\nRedis: 127.0.0.1:%d: no answer" % redis.port in host.ctl("status").stdout
        client.ping()
    finally:
        redis.thaw()
    wait_whole(host, redis)
    assert host.status()["cluster"]["error"] == ""
    assert len(redis("PUBSUB", "CHANNELS")) == 1 and readers(redis) == 1


def test_master_that_becomes_a_replica(make_host, make_redis):
    redis, other = make_redis(), make_redis()
    host = make_host(redis)
    wait_whole(host, redis)
    redis("REPLICAOF", *other.address)
    host.wait_log("replica", 10)
    wait_until(lambda: host.status()["cluster"]["workers_up"] == 0, 10, "it is left")
    redis("REPLICAOF", "NO", "ONE")
    wait_whole(host, redis)


def test_redis_cluster_is_named(make_host, make_redis):
    """A node of a Redis Cluster is not what is needed, and the log says so."""
    redis = make_redis()
    redis.stop()
    with open(redis.conf_path, "a") as file:
        file.write("cluster-enabled yes\n")
    redis.spawn()
    host = make_host(redis)
    host.wait_log("Redis Cluster, which is not supported", 15)
    host.online().ping()


class Impostor:
    """Listens where Redis should, and says what it is told to say to each connection."""

    def __init__(self, words):
        self.words, self.open = words, []
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.address = self.sock.getsockname()
        self.count = 0
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                peer = self.sock.accept()[0]
            except OSError:
                return
            self.count += 1
            self.open = self.open[-20:] + [peer]
            try:
                peer.sendall(self.words)
            except OSError:
                pass

    def close(self):
        self.sock.close()
        for peer in self.open:
            peer.close()


@pytest.mark.parametrize("words", [
    b"", b"SSH-2.0-x\r\n", b"+OK\r\n", b"+OK\r\n" * 1000, b"*1000000\r\n", b"$1000000000\r\n", b"-LOADING x\r\n" * 9,
    b"-MOVED 1 127.0.0.1:1\r\n" * 9, b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n" * 9, b"HTTP/1.1 400 Bad\r\n\r\n",
    b"-ERR\r\n" * 50, b":1\r\n" * 50, bytes(range(256)) * 40, b"*1\r\n" * 200], ids=range(14))
def test_something_else_at_its_place(make_host, words):
    impostor = Impostor(words)
    try:
        host = make_host("redis://127.0.0.1:%d" % impostor.address[1], redis_timeout_ms=200)
        alice, bob = host.online(), host.online()
        wait_until(lambda: impostor.count >= 4, 20, "it is tried again")
        wait_until(lambda: alice.chat_acked(bob, "x")["state"] == "delivered", 5)
        alice.ping()
        assert not any(row["restarts"] for row in host.status()["workers"])
    finally:
        impostor.close()


def test_names_are_looked_up(make_host, make_redis):
    redis = make_redis()
    wait_whole(make_host("redis://localhost:%d/0" % redis.port), redis)


def test_a_name_that_there_is_not(make_host):
    host = make_host("redis://no-such-host.invalid:6379")
    host.wait_log("no-such-host.invalid", 15)
    watch = Stopwatch()
    for _ in range(20):
        host.online().ping()
    assert watch.seconds < 10 * SCALE
    assert host.status()["cluster"]["error"] != ""


def test_attempts_are_spaced(make_host):
    """Refused at once, again and again: the attempts back off."""
    impostor = Impostor(b"-ERR max number of clients reached\r\n")
    try:
        host = make_host("redis://127.0.0.1:%d" % impostor.address[1], workers=1)
        wait_until(lambda: impostor.count >= 3, 20, "some attempts")
        count = impostor.count
        time.sleep(3)                               # a rate is what is asked for here
        assert impostor.count - count < 40
        assert len([line for line in host.log_text().splitlines() if "max number of clients" in line]) < 10
    finally:
        impostor.close()


# -- draining ------------------------------------------------------------------------------------

def test_drain_is_spread(make_host):
    """Without an answer of Redis, too."""
    host = make_host("redis://127.0.0.1:%d" % free_port(), drain_seconds=2)
    accounts = host.accounts(40)
    clients = [host.login(account) for account in accounts]
    began = time.monotonic()
    host.ctl_ok("drain")
    ends = []
    while len(ends) < len(clients):
        for client in clients:
            if client not in [c for c, _ in ends] and client.of(SESSION_END):
                ends.append((client, time.monotonic() - began))
        assert time.monotonic() - began < 20 * SCALE
        time.sleep(0.005)
    seconds = [s for _, s in ends]
    assert {client.of(SESSION_END)[0]["reason"] for client in clients} == {"moved"}
    assert sum(s < 1 for s in seconds) > 5 and sum(s >= 1 for s in seconds) > 5, seconds
    assert host.status()["cluster"]["draining"]
    host.ctl_ok("drain", "--cancel")
    host.relogin(accounts[0])


def test_restart_is_not_refused(make_host, make_redis):
    """What a former life of this host left in Redis is no obstacle."""
    redis = make_redis()
    host = make_host(redis, host_timeout_ms=60000)
    wait_whole(host, redis)
    first = entry(redis)["epoch"]
    os.killpg(host.pid, signal.SIGKILL)
    wait_until(lambda: not host.processes() and readers(redis) == 0, 10, "nothing lives")
    assert entry(redis)["epoch"] == first
    host.allow(".")
    host.clients.clear()
    watch = Stopwatch()
    host.start()
    assert watch.seconds < 5 * SCALE
    wait_whole(host, redis)
    assert entry(redis)["epoch"] != first
