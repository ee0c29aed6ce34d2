"""parleyctl's side of what concerns several hosts: what it asks, and what it makes of the answers."""

import json
import os
import re
import socket
import subprocess
import threading

import pytest

from parleytest.daemon import BUILD_DIR

PARLEYCTL = BUILD_DIR + "/parleyctl"


class Registry:
    """An admin socket that answers every request with LINES and a last line."""

    def __init__(self, path):
        self.path, self.lines, self.code, self.message, self.requests = path, [], 0, "", []
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(path)
        self.sock.listen(16)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                conn, _ = self.sock.accept()
            except OSError:
                return
            with conn:
                text = b""
                while not text.endswith(b"\n"):
                    text += conn.recv(4096)
                self.requests.append(json.loads(text))
                last = {"done": True, "code": self.code, "message": self.message}
                conn.sendall("".join(json.dumps(x) + "\n" for x in self.lines + [last]).encode())

    def close(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def ctl(self, *args, code=0, stderr=""):
        done = subprocess.run([PARLEYCTL, "-s", self.path, *args], capture_output=True, text=True, timeout=60,
                              env=dict(os.environ, TZ="UTC"))
        assert done.returncode == code, (done.stdout, done.stderr)
        assert re.fullmatch(stderr, done.stderr, re.S), done.stderr
        return done.stdout


def host(number, **more):
    row = {"id": "host%d" % number, "address": "10.0.0.%d:6000" % number, "weight": 1, "state": "up", "workers": 2,
           "connections": 120 + number, "sessions": 100 + number, "epoch": "1234", "version": "0.1.0",
           "since": 1700000000000, "self": number == 1, "seen_ms": 850}
    return dict(row, **more)


@pytest.fixture
def registry(tmp_path):
    registry = Registry(str(tmp_path / "ctl.sock"))
    registry.lines = [host(3), host(1, weight=3), host(2, state="draining")]
    yield registry
    registry.close()


def test_hosts_as_text(registry):
    lines = registry.ctl("hosts").splitlines()
    assert registry.requests == [{"cmd": "hosts", "args": []}]
    assert lines[0].split() == ["HOST", "ADDRESS", "WEIGHT", "STATE", "WORKERS", "CONNECTED", "SESSIONS", "SINCE",
                                "SEEN", "VERSION"]
    assert [line[:7] for line in lines[1:]] == ["* host1", "  host2", "  host3"]
    assert lines[1].split() == ["*", "host1", "10.0.0.1:6000", "3", "up", "2", "121", "101", "2023-11-14",
                                "22:13:20", "0.8", "s", "0.1.0"]


def test_hosts_as_json(registry):
    assert [json.loads(line) for line in registry.ctl("--json", "hosts").splitlines()] == registry.lines
    registry.lines = []
    assert registry.ctl("--json", "hosts") == ""


def test_upstream(registry):
    assert registry.ctl("upstream") == (
        "upstream parley {\n"
        "\tzone parley 128k;\n"
        "\tserver 10.0.0.1:6000 weight=3 max_fails=2 fail_timeout=10s;\t# host1\n"
        "\tserver 10.0.0.2:6000 weight=1 max_fails=2 fail_timeout=10s down;\t# host2, draining\n"
        "\tserver 10.0.0.3:6000 weight=1 max_fails=2 fail_timeout=10s;\t# host3\n"
        "}\n")
    text = registry.ctl("upstream", "--consistent")
    assert text.startswith("upstream parley_by_address {\n\tzone parley_by_address 128k;\n"
                           "\thash $remote_addr consistent;\n\tserver ")
    text = registry.ctl("upstream", "--name", "chat", "--max-fails", "0", "--fail-timeout", "3")
    assert text.startswith("upstream chat {\n\tzone chat 128k;\n") and "max_fails=0 fail_timeout=3s" in text


def test_upstream_does_not_change_with_the_load(registry):
    before = registry.ctl("upstream", "--consistent")
    registry.lines = [dict(row, connections=7, sessions=7, seen_ms=1, epoch="9") for row in reversed(registry.lines)]
    assert registry.ctl("upstream", "--consistent") == before


def test_hosts_that_nginx_cannot_reach_are_left_out(registry):
    evil = ["", "0.0.0.0:6000", "[::]:6000", "10.0.0.9", "::1:6000", "a:1; } http { x", "$host:6000", "a:1#", "a:1\n}",
            "unix:relative", "ü:1", "a" * 400 + ":1"]
    registry.lines += [host(10 + i, address=text) for i, text in enumerate(evil)]
    registry.lines += [host(50, weight=0), host(51, weight=-1), host(52, weight=99999), host(53, weight="x"),
                       host(54, address="unix:/run/parley.sock"), host(55, address="[2001:db8::1]:6000"),
                       host(56, id="h\n}\x1b[2J")]
    warned = registry.ctl("upstream", stderr="(parleyctl: [^\n]*: left out\n){%d}" % (len(evil) + 4))
    servers = re.findall(r"^\tserver (\S+) ", warned, re.M)
    assert servers == ["10.0.0.56:6000", "10.0.0.1:6000", "10.0.0.2:6000", "10.0.0.3:6000", "unix:/run/parley.sock",
                       "[2001:db8::1]:6000"]
    assert warned.count("\n") == 9 and "\x1b" not in warned
    assert len(registry.ctl("hosts", "--json").splitlines()) == len(registry.lines)


def test_two_hosts_at_one_address(registry):
    """One of them is a former life: the one heard of last is real."""
    registry.lines = [host(1, seen_ms=8000), host(2, address="10.0.0.1:6000", seen_ms=10, weight=5)]
    text = registry.ctl("upstream", stderr=".*host1 has the address of host2.*")
    assert re.findall(r"server (\S+) weight=(\d).*# (\S+)", text) == [("10.0.0.1:6000", "5", "host2")]


def test_nobody_to_name(registry):
    registry.lines = [host(1, address="")]
    assert registry.ctl("upstream", code=1, stderr=".*left out\n.*no host that nginx could reach\n") == ""
    assert registry.ctl("ring", code=1, stderr=".*left out\n.*no host that nginx could reach\n") == ""


def test_ring_of_the_registry(registry):
    rows = [json.loads(line) for line in registry.ctl("--json", "ring").splitlines()]
    hosts = {r["host"]: r for r in rows if "share" in r}
    assert [(r["id"], r["state"], r["points"]) for r in hosts.values()] == [
        ("host1", "up", 480), ("host2", "down", 0), ("host3", "up", 160)]
    assert len(rows) == 3 + 640
    # what a drain moved: it stands in the registry as draining already, so it is asked the other way round
    row, = [json.loads(line) for line in registry.ctl("--json", "ring", "--add", "10.0.0.2:6000", "192.0.2.7").splitlines()]
    same, = [json.loads(line) for line in registry.ctl(
        "--json", "ring", "--from", "10.0.0.1:6000=3,10.0.0.2:6000,10.0.0.3:6000", "192.0.2.7").splitlines()]
    assert row["host"] == same["host"] and row["hash"] == same["hash"]


def test_refusals_and_warnings(registry):
    registry.lines, registry.code, registry.message = [], 1, "this host is on its own \x1b[2J"
    for command in ("hosts", "upstream", "ring"):
        assert registry.ctl(command, code=1, stderr="parleyctl: this host is on its own \\\\x1b\\[2J\n") == ""
    registry.lines, registry.code, registry.message = [{"warning": "Redis is away"}, host(1)], 0, ""
    assert "server 10.0.0.1:6000" in registry.ctl("upstream", stderr="parleyctl: Redis is away\n")
    assert "host1" in registry.ctl("hosts", stderr="parleyctl: Redis is away\n")


def test_no_daemon_is_exit_3(tmp_path):
    for command in ("hosts", "upstream", "ring"):
        done = subprocess.run([PARLEYCTL, "-s", str(tmp_path / "none"), command], capture_output=True)
        assert done.returncode == 3


def test_lines_that_are_not_hosts(registry):
    registry.lines = [{}, {"id": ""}, {"id": 5, "address": {}, "weight": 1e300, "state": None}, {"id": [1]}, host(1)]
    text = registry.ctl("hosts", stderr=".*")
    assert "host1" in text and len(text.splitlines()) == 4
    assert "10.0.0.1:6000" in registry.ctl("upstream", stderr=".*")


def test_more_hosts_than_anybody_has(registry):
    registry.lines = [host(i, address="10.1.%d.%d:6000" % (i // 250, i % 250)) for i in range(1, 600)]
    assert registry.ctl("upstream", stderr="parleyctl: more than 256 hosts: .*\n").count("server ") == 256


@pytest.mark.parametrize("args, request_", [
    (["drain"], {"cmd": "drain", "args": []}),
    (["drain", "cancel"], {"cmd": "drain", "args": ["cancel"]}),
    (["drain", "--cancel"], {"cmd": "drain", "args": ["cancel"]}),
    (["--host", "host2", "drain"], {"cmd": "drain", "host": "host2", "args": []}),
    (["--host", "host2", "status", "--json"], {"cmd": "status", "host": "host2", "args": []}),
    (["--host", "host2", "scale", "3"], {"cmd": "scale", "host": "host2", "args": ["3"]}),
    (["--host", "host2", "hosts"], {"cmd": "hosts", "host": "host2", "args": []}),
    (["who"], {"cmd": "who", "args": []}),
    (["who", "--local"], {"cmd": "who", "local": True, "args": []}),
    (["--host", "h2", "--local", "who"], {"cmd": "who", "host": "h2", "local": True, "args": []}),
    (["kick", "alice"], {"cmd": "kick", "args": ["alice"]}),
    (["kick", "--local", "alice"], {"cmd": "kick", "local": True, "args": ["alice"]}),
    (["token", "--host", "h2", "a"], {"cmd": "token", "host": "h2", "args": ["a"]}),
])
def test_requests(registry, args, request_):
    registry.lines = []
    registry.ctl(*args)
    assert registry.requests == [request_]


def test_drain_says_what_the_host_says(registry):
    registry.lines = [{"host": "host1", "draining": True, "sessions": 12, "seconds": 30}]
    registry.message = "no more logins; 12 sessions are sent away over 30 seconds"
    assert registry.ctl("drain") == registry.message + "\n"
    assert json.loads(registry.ctl("--json", "drain")) == registry.lines[0]


def test_who_names_the_host(registry):
    registry.lines = [{"warning": "no answer", "host": "host3"},
                      {"id": 1, "name": "alice", "worker": 0, "since": 1700000000000, "host": "host1"},
                      {"id": 2, "name": "bob", "worker": 1, "since": 1700000000000, "host": "host2"}]
    lines = registry.ctl("who", stderr="parleyctl: host3: no answer\n").splitlines()
    assert lines[0].split()[-1] == "HOST"
    assert [line.split()[-1] for line in lines[1:]] == ["host1", "host2"]
    registry.lines = [{"id": 1, "name": "alice", "worker": 0, "since": 1700000000000}]
    assert "HOST" not in registry.ctl("who")
