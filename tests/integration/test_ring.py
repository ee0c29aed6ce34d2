"""parleyctl upstream and ring against a real nginx: whom it gives each client, and what a change moves."""

import json
import re
import selectors
import socket
import subprocess
import threading

import pytest

from parleytest import *
from parleytest.daemon import BUILD_DIR, free_port
from parleytest.nginx import Nginx

PARLEYCTL = BUILD_DIR + "/parleyctl"


def ctl(*args, stdin=""):
    done = subprocess.run([PARLEYCTL, *args], input=stdin, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stderr
    return done.stdout


def rows(*args, **kw):
    return [json.loads(line) for line in ctl("--json", *args, **kw).splitlines()]


class Signposts:
    """Servers that say who they are to everybody who connects, and hang up."""

    def __init__(self, count):
        self.selector, self.listeners, self.names = selectors.DefaultSelector(), [], []
        for i in range(count):
            family, host = (socket.AF_INET6, "::1") if i == 1 and socket.has_ipv6 else (socket.AF_INET, "127.0.0.1")
            listener = socket.socket(family)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port = free_port()
            listener.bind((host, port))
            listener.listen(256)
            name = ("[%s]:%d" if family == socket.AF_INET6 else "%s:%d") % (host, port)
            self.selector.register(listener, selectors.EVENT_READ, name)
            self.listeners.append(listener)
            self.names.append(name)
        self.ended = False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.ended:
            for key, _ in self.selector.select(0.1):
                conn, _ = key.fileobj.accept()
                conn.sendall(key.data.encode() + b"\n")
                conn.close()

    def close(self):
        self.ended = True
        self.thread.join()
        for listener in self.listeners:
            listener.close()


@pytest.fixture(scope="module")
def posts():
    posts = Signposts(6)
    yield posts
    posts.close()


@pytest.fixture
def start_nginx():
    made = []

    def start(block):
        """nginx as shipped, with BLOCK as its upstream, and a listener that believes a PROXY header."""
        nginx = Nginx(["127.0.0.1:1"], proxy_protocol="off")
        nginx.believing = free_port()
        text = nginx.sample()
        text, count = re.subn(r"\tupstream parley_by_address \{.*?\n\t\}\n", lambda m: block, text, flags=re.S)
        assert count == 1
        text = text.replace("stream {\n", "stream {\n\tserver {\n\t\tlisten 127.0.0.1:%d proxy_protocol;\n"
                            "\t\tset_real_ip_from 127.0.0.1;\n\t\tproxy_pass parley_by_address;\n\t}\n"
                            % nginx.believing, 1)
        nginx.write(text)
        nginx.check()
        made.append(nginx)
        return nginx.start()

    yield start
    for nginx in made:
        nginx.destroy()


def answer(sock):
    with sock:
        sock.settimeout(20 * SCALE)
        text = b""
        while not text.endswith(b"\n"):
            data = sock.recv(100)
            assert data, "hung up on"
            text += data
        return text.decode().strip()


def from_loopback(nginx, source):
    sock = socket.socket()
    sock.bind((source, 0))
    sock.connect(nginx.hash_address)
    return answer(sock)


def from_anywhere(nginx, source):
    sock = socket.create_connection(("127.0.0.1", nginx.believing))
    family = "TCP6" if ":" in source else "TCP4"
    sock.sendall(("PROXY %s %s %s 4711 6000\r\n" % (family, source, source)).encode())
    return answer(sock)


LOOPBACK = ["127.%d.%d.%d" % (i % 7, i * 37 % 251, i % 250 + 2) for i in range(300)]
ANYWHERE = (["%d.%d.%d.%d" % (i % 200 + 11, i * 7 % 256, i * 31 % 256, i * 101 % 256) for i in range(150)] +
            ["2001:db8::%x" % (i * i + 1) for i in range(60)] +
            ["2a02:%x:0:0:%x:0:0:1" % (i + 1, i * 77 + 1) for i in range(30)] +
            ["fe80::1:%x:0:0" % (i + 1) for i in range(5)] + ["::1", "::", "1::", "::2:0:0:3", "0:0:0:1::"])


def whom(nginx):
    """{address: server} as nginx has it."""
    out = {source: from_loopback(nginx, source) for source in LOOPBACK}
    out.update({source: from_anywhere(nginx, source) for source in ANYWHERE})
    return out


def told(*args):
    """{address as given: row} as `parleyctl ring` has it."""
    asked = LOOPBACK + ANYWHERE
    found = rows("ring", *args, "-", stdin="\n".join(asked) + "\n")
    assert len(found) == len(asked)
    return dict(zip(asked, found))


def test_ring_names_whom_nginx_takes(posts, start_nginx):
    """Several weights, one server down, an IPv6 address among them."""
    weights = [1, 3, 2, 1, 5, 2]
    hosts = ["--from", ",".join("%s=%d" % pair for pair in zip(posts.names, weights)), "--down", posts.names[3]]
    nginx = start_nginx(ctl("upstream", "--consistent", *hosts))
    seen, expected = whom(nginx), told(*hosts)
    assert {a: row["host"] for a, row in expected.items()} == seen
    assert set(seen.values()) == set(posts.names) - {posts.names[3]}


@pytest.mark.parametrize("change", [
    lambda n: ["--add", n[4] + "=2"],
    lambda n: ["--del", n[0]],
    lambda n: ["--down", n[1]],
    lambda n: ["--add", n[4], "--add", n[5] + "=3", "--del", n[1]],
    lambda n: ["--add", n[2] + "=4"],                   # another weight for one that is there
], ids=["add", "del", "down", "several", "weight"])
def test_a_change_moves_what_was_said(posts, start_nginx, change):
    hosts = ["--from", "%s=2,%s,%s=1" % tuple(posts.names[:3]), "--from", posts.names[3]]
    changes = change(posts.names)
    nginx = start_nginx(ctl("upstream", "--consistent", *hosts, *changes))
    seen, expected = whom(nginx), told(*hosts, *changes)
    assert {a: row["host"] for a, row in expected.items()} == seen
    before = {a: row["host"] for a, row in told(*hosts).items()}
    assert {a: row["before"] for a, row in expected.items()} == before
    moves = [(row["before"], row["host"]) for row in expected.values() if row["before"] != row["host"]]
    report = rows("ring", *hosts, *changes)
    share = {(r["from"], r["to"]): r["share"] for r in report if "from" in r}
    moved = next(r["moved"] for r in report if "moved" in r)
    assert set(moves) <= set(share)
    assert abs(sum(share.values()) - moved) < 1e-5
    assert abs(len(moves) / len(expected) - moved) < 0.1, (len(moves), moved)
    parts = {r["host"]: r for r in report if "points" in r}
    assert abs(sum(r["share"] for r in parts.values()) - 1) < 1e-5
    assert abs(sum(r["share_before"] for r in parts.values()) - 1) < 1e-5
    for name, row in parts.items():
        gained = sum(s for (_, to), s in share.items() if to == name)
        lost = sum(s for (frm, _), s in share.items() if frm == name)
        assert abs(row["share_before"] + gained - lost - row["share"]) < 1e-5


def test_round_robin_block(posts, start_nginx):
    """Without --consistent the block is nginx's default, by turns and weights."""
    block = ctl("upstream", "--name", "parley_by_address", "--from", "%s=3,%s" % (posts.names[0], posts.names[2]))
    assert "hash" not in block
    nginx = start_nginx(block)
    seen = [from_loopback(nginx, "127.0.0.1") for _ in range(40)]
    assert (seen.count(posts.names[0]), seen.count(posts.names[2])) == (30, 10)


def test_the_points(posts):
    hosts = ["--from", "10.0.0.1:6000=2,10.0.0.2:6000,10.0.0.3:6000=3"]
    points = [r for r in rows("ring", *hosts) if "point" in r]
    assert len(points) == 160 * 6
    assert [r["point"] for r in points] == sorted({r["point"] for r in points})
    text = ctl("ring", *hosts)
    assert len(re.findall(r"^[0-9a-f]{8}  10\.0\.0\.[123]:6000$", text, re.M)) == 960
    assert re.search(r"^10\.0\.0\.3:6000 +3 up +480 +\d\d\.\d{3} %$", text, re.M)
    # each point is its own host's, and so is the key just before it
    assert {r["host"] for r in points} == {"10.0.0.%d:6000" % i for i in (1, 2, 3)}


def test_text_of_a_change():
    text = ctl("ring", "--from", "10.0.0.1:6000,10.0.0.2:6000", "--add", "10.0.0.3:6000", "--del", "10.0.0.1:6000")
    assert re.search(r"^[\d.]+ % of the clients would move:$", text, re.M)
    pairs = re.findall(r"^(\S+) +-> (\S+) +([\d.]+) %$", text, re.M)
    assert {(a, b) for a, b, _ in pairs} == {("10.0.0.1:6000", "10.0.0.2:6000"), ("10.0.0.1:6000", "10.0.0.3:6000"),
                                             ("10.0.0.2:6000", "10.0.0.3:6000")}


@pytest.mark.parametrize("args, code, said", [
    (["ring", "--from", "10.0.0.1"], 2, "no HOST:PORT"),
    (["ring", "--from", "10.0.0.1:70000"], 2, "no HOST:PORT"),
    (["ring", "--from", "0.0.0.0:6000"], 2, "no HOST:PORT"),
    (["ring", "--from", "10.0.0.1:6000=0"], 2, "weight"),
    (["ring", "--from", "10.0.0.1:6000=9999"], 2, "weight"),
    (["ring", "--from", "a:1;}evil:1"], 2, "no HOST:PORT"),
    (["upstream", "--from", "$host:1"], 2, "no HOST:PORT"),
    (["ring", "--from", "a:1,a:1"], 2, "twice"),
    (["ring", "--from", "a:1", "--del", "b:1"], 2, "no host b:1"),
    (["ring", "--from", "a:1", "--del", "a:1"], 1, "no host that nginx could reach"),
    (["ring", "--from", "a:1", "--down", "a:1", "127.0.0.1"], 1, "no host that nginx could reach"),
    (["ring", "--from", "a:1", "localhost"], 1, "no address"),
    (["ring", "--from", ",".join("h%d:1=1000" % i for i in range(17))], 1, "too large"),
    (["ring", "--from", ",".join("h%d:1" % i for i in range(257))], 2, "more than 256"),
    (["upstream", "--name", "a b", "--from", "a:1"], 2, "--name"),
    (["upstream", "--max-fails", "x", "--from", "a:1"], 2, "--max-fails"),
])
def test_refusals(args, code, said):
    done = subprocess.run([PARLEYCTL, *args], capture_output=True, text=True)
    assert done.returncode == code and said in done.stderr, done.stderr
    assert done.stdout == ""
