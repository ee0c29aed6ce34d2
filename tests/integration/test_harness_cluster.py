"""The harness of the cluster tests: Redis, Sentinel, lines that are cut, networks with cables."""

import socket
import threading
import time

import pytest

from parleytest import *

pytestmark = needs_redis


class Echo:
    """A TCP server that answers every byte with itself."""

    def __init__(self):
        self.sock = Cut.make_listener("127.0.0.1", 0)
        self.address = self.sock.getsockname()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                client, _ = self.sock.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    @staticmethod
    def serve(client):
        with client:
            try:
                while True:
                    data = client.recv(65536)
                    if not data:
                        break
                    client.sendall(data)
            except OSError:
                pass

    def close(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


@pytest.fixture
def line():
    echo = Echo()
    with Cut(echo.address) as cut:
        yield cut
    echo.close()


def dial(cut, timeout=5):
    sock = socket.create_connection(cut.address, timeout)
    return sock


def exactly(sock, count):
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            break
        data += more
    return data


def test_redis_speaks(make_redis):
    redis = make_redis()
    assert redis("SET", "a", "b") == "OK" and redis("GET", "a") == "b" and redis("GET", "none") is None
    assert redis("RPUSH", "list", 1, "zwei", b"\xff\x00") == 3
    assert redis("LRANGE", "list", 0, -1) == ["1", "zwei", "\udcff\0"]
    with pytest.raises(RedisError, match="WRONGTYPE"):
        redis("INCR", "list")
    redis("SET", "other", 1, db=3)
    assert redis.keys() == ["a", "list"] and redis.keys(db=3) == ["other"]
    redis.flush()
    assert redis.keys() == [] and redis.keys(db=3) == []


def test_redis_counts_commands(make_redis):
    redis = make_redis()
    redis.reset_counts()
    for n in range(7):
        redis("SET", n, n)
    assert redis.counts()["set"] == 7


def test_redis_password(make_redis):
    redis = make_redis(password="secret")
    assert redis.url(2) == "redis://:secret@127.0.0.1:%d/2" % redis.port
    assert redis("PING") == "PONG"
    with Resp(redis.address) as stranger, pytest.raises(RedisError, match="NOAUTH"):
        stranger("PING")
    with pytest.raises(RedisError, match="WRONGPASS"):
        Resp(redis.address, password="wrong")


def test_redis_dies_and_returns_empty(make_redis):
    redis = make_redis()
    redis("SET", "a", 1)
    redis.kill()
    assert refused(redis.address) and not redis.running()
    redis.spawn()
    assert redis.keys() == []
    redis("SET", "a", 1)
    redis.stop()
    assert not redis.running()
    redis.spawn()
    assert redis.keys() == []


def test_redis_stands_still(make_redis):
    redis = make_redis()
    redis.freeze()
    with pytest.raises(OSError):
        redis("PING", timeout=0.3)
    redis.thaw()
    assert redis("PING") == "PONG"


@pytest.mark.parametrize("password", [None, "secret"])
def test_sentinel_fails_over(make_redis, password):
    master = make_redis(password=password)
    replica = make_redis(password=password, replica_of=master).wait_replica()
    sentinel = make_redis(sentinel=master, name="house").wait_knows(master, replica)
    assert sentinel.url() == "sentinel://127.0.0.1:%d;house" % sentinel.port
    master("SET", "kept", "yes")
    wait_until(lambda: replica("GET", "kept") == "yes", 5)
    master.kill()
    watch = Stopwatch()
    sentinel.wait_master(replica)
    assert watch.seconds < 20 * SCALE
    assert replica("SET", "new", 1) == "OK" and replica("GET", "kept") == "yes"
    master.spawn()                              # the sentinel makes the old one a replica
    wait_until(lambda: master.role() == "slave", 30)
    master.wait_replica()
    assert master("GET", "new") == "1"


def test_two_sentinels_agree(make_redis):
    master = make_redis()
    replica = make_redis(replica_of=master).wait_replica()
    one = make_redis(sentinel=master, quorum=2)
    two = make_redis(sentinel=master, quorum=2)
    for sentinel in (one, two):
        sentinel.wait_knows(master, replica, others=1)
    assert one.url(two) == "sentinel://127.0.0.1:%d,127.0.0.1:%d;parley" % (one.port, two.port)
    master.kill()
    one.wait_master(replica)
    two.wait_master(replica)


def test_line_passes(line):
    with dial(line) as sock:
        data = bytes(range(256)) * 8192
        threading.Thread(target=sock.sendall, args=(data,), daemon=True).start()
        assert exactly(sock, len(data)) == data
        assert line.connections() == 1 and line.bytes_up == line.bytes_down == len(data)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    wait_until(lambda: line.connections() == 0, 5)


def test_line_is_cut_and_mended(line):
    with dial(line) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        line.cut()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert refused(line.address)
    line.pass_()
    with dial(line) as sock:
        sock.sendall(b"y")
        assert sock.recv(1) == b"y"
        line.drop()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert not refused(line.address)


@pytest.mark.parametrize("up, down", [(True, True), (True, False), (False, True)])
def test_line_freezes(line, up, down):
    with dial(line, 0.3) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        before = line.bytes_up
        line.freeze(up, down)
        sock.sendall(b"late")
        with pytest.raises(socket.timeout):
            sock.recv(1)
        assert (line.bytes_up == before) is up
        line.pass_()
        sock.settimeout(5)
        assert exactly(sock, 4) == b"late"


def test_line_delays(line):
    with dial(line) as sock:
        line.delay(150)
        begin = time.monotonic()
        sock.sendall(b"one")
        sock.sendall(b"two")
        assert exactly(sock, 6) == b"onetwo"
        assert time.monotonic() - begin >= 0.3      # both ways


def test_line_to_nowhere():
    with Cut(("127.0.0.1", free_port())) as cut, pytest.raises(ConnectionResetError):
        with dial(cut) as sock:
            sock.recv(1)


@Switch.needed
def test_switch_and_cables(make_redis):
    switch = Switch(2)
    try:
        redis = make_redis(prefix=switch.inside(switch.center), bind="0.0.0.0")

        def ask(number):
            from parleytest.netns import in_network
            return in_network(switch.cables[number - 1],
                              lambda: Resp((switch.hub, redis.port), timeout=0.5 / SCALE))

        with ask(1) as one, ask(2) as two:
            assert one("PING") == two("PING") == "PONG"
            switch.pull(1)
            with pytest.raises(OSError):
                one("PING")
            with pytest.raises(OSError):
                ask(1)
            assert two("PING") == "PONG"
            switch.plug(1)
        wait_until(lambda: reached(ask), 10, "the cable carries again")
        if switch.delay(2, 100):
            with ask(2) as two:
                begin = time.monotonic()
                two("PING")
                assert time.monotonic() - begin >= 0.1
    finally:
        switch.close()


def reached(ask):
    try:
        with ask(1) as one:
            return one("PING") == "PONG"
    except OSError:
        return False


def test_host_is_killed_as_a_whole(make_cluster):
    cluster = make_cluster(hosts=2, start=False)
    for host in cluster:
        host.start(30)
    one, two = cluster
    assert len(one.workers) == 2 and one.address() == (one.ip, one.port)
    client, other = one.online(), two.online()
    one.kill_host()
    assert not one.processes() and not one.alive() and two.alive()
    client.wait_closed(clean=False)
    other.ping()
    one.restart()
    one.login(client.account)


def test_host_stands_still(make_cluster):
    cluster = make_cluster(hosts=2, start=False)
    for host in cluster:
        host.start(30)
    client, other = cluster[0].online(), cluster[1].online()
    cluster[0].freeze_host()
    with pytest.raises(AssertionError):
        client.ping(0.3 / SCALE)
    other.ping()
    cluster[0].thaw_host()
    client.expect(PONG)
    client.ping()
