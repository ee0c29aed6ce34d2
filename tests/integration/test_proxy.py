"""Listeners behind a proxy: the PROXY header, whose address counts, and a real nginx in front."""

import ipaddress
import json
import re
import socket
import struct

import pytest

from parleytest import *

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
TLVS = b"\x03\0\4\1\2\3\4" + b"\x04\0\x08" + bytes(8) + b"\x20\0\5\1\0\0\0\0"


def v1(source, port=51234):
    kind = "TCP6" if ":" in source else "TCP4"
    return ("PROXY %s %s %s %d 6000\r\n" % (kind, source, source, port)).encode()


def v2(source, port=51234, tlvs=b"", command=0x21):
    address = ipaddress.ip_address(source)
    body = address.packed * 2 + struct.pack(">HH", port, 6000) + tlvs
    return SIGNATURE + struct.pack(">BBH", command, 0x11 if address.version == 4 else 0x21, len(body)) + body


LOCAL = SIGNATURE + b"\x20\0\0\0"
UNKNOWN = b"PROXY UNKNOWN\r\n"
HEADERS = {"v1": v1("203.0.113.9"), "v1-ipv6": v1("2001:db8::9"), "v2": v2("203.0.113.9"),
           "v2-ipv6": v2("2001:db8::9", tlvs=TLVS)}
OF_NOBODY = {"v1-unknown": UNKNOWN, "v1-unknown-more": b"PROXY UNKNOWN 1::2 3::4 5 6\r\n", "v2-local": LOCAL,
             "v2-local-address": v2("203.0.113.9", command=0x20),
             "v2-unix": SIGNATURE + b"\x21\x31" + struct.pack(">H", 216) + bytes(216)}


@pytest.fixture(scope="module")
def shared(request):
    holder = []

    def get():
        if not holder:
            holder.append(Daemon().listen_behind_proxy().start())
        return holder[0]

    def drop():
        if holder:
            holder.pop().finish()

    get.drop = drop
    yield get
    drop()


def behind(daemon, header=b"", **kw):
    """A connection as the proxy makes it."""
    client = daemon.connect(address=("127.0.0.1", daemon.proxy_port), **kw)
    if header:
        client.send_raw(header)
    return client


def sessions(daemon):
    return [json.loads(line) for line in daemon.ctl_ok("--json", "sessions").splitlines()]


def addresses(daemon):
    return sorted(row["address"] for row in sessions(daemon))


def known_as(daemon, client):
    client.login(daemon.account())
    return next(row["address"] for row in sessions(daemon) if row["user"] == client.id)


@pytest.mark.parametrize("name", HEADERS)
def test_the_client_is_whom_the_header_names(daemon, name):
    client = behind(daemon, HEADERS[name])
    assert known_as(daemon, client) == ("[2001:db8::9]:51234" if "ipv6" in name else "203.0.113.9:51234")
    assert client.chat_acked(client, "to myself")["state"] == "delivered"
    if "ipv6" not in name:
        assert "203.0.113.9:51234" in daemon.ctl_ok("sessions")


@pytest.mark.parametrize("name", OF_NOBODY)
def test_a_header_that_names_nobody_leaves_the_peer(daemon, name):
    client = behind(daemon, OF_NOBODY[name])
    assert known_as(daemon, client) == "127.0.0.1:%d" % client.local[1]


@pytest.mark.parametrize("name", list(HEADERS) + list(OF_NOBODY))
def test_a_header_cut_at_every_byte(make_daemon, name):
    """In two pieces, wherever they part; the first request comes with the second."""
    daemon = make_daemon(start=False).listen_behind_proxy().start()
    header = dict(HEADERS, **OF_NOBODY)[name]
    clients = [behind(daemon) for _ in range(len(header) + 1)]
    for cut, client in enumerate(clients):
        client.send_raw(header[:cut])
    daemon.wait_read(*clients)
    for cut, client in enumerate(clients):
        client.send_raw(header[cut:] + client.frame(PING, req="p%d" % cut))
    for cut, client in enumerate(clients):
        client.expect(PONG, 10, req="p%d" % cut)
    real = sorted("127.0.0.1:%d" % client.local[1] for client in clients)
    named = "[2001:db8::9]:51234" if "ipv6" in name else "203.0.113.9:51234"
    assert addresses(daemon) == (real if name in OF_NOBODY else [named] * len(clients))


@pytest.mark.parametrize("header", [v1("203.0.113.9"), v2("203.0.113.9", tlvs=TLVS)], ids=["v1", "v2"])
def test_a_header_byte_by_byte(daemon, header):
    client = behind(daemon)
    for place in range(len(header)):
        client.send_raw(header[place:place + 1])
        daemon.wait_read(client)
    assert known_as(daemon, client) == "203.0.113.9:51234"


def test_longest_headers(daemon):
    widest = "2001:1111:2222:3333:4444:5555:6666:7777"
    for header in (v1(widest, 65535), v2(widest, tlvs=bytes(500)), v2("203.0.113.1", tlvs=bytes(524))):
        behind(daemon, header).ping()
    line = b"PROXY UNKNOWN ".ljust(105, b"x") + b"\r\n"
    behind(daemon, line).ping()


BAD = {
    "frame": b'{"msgid":25}\n', "http": b"GET / HTTP/1.0\r\n\r\n", "one-byte": b"x", "lf": b"PROXY UNKNOWN\n",
    "line-too-long": b"PROXY UNKNOWN ".ljust(106, b"x") + b"\r\n", "port": v1("203.0.113.1", 65536),
    "address": v1("203.0.113.256"), "kind": b"PROXY UDP4 1.2.3.4 1.2.3.4 1 1\r\n",
    "command": v2("203.0.113.1", command=0x22), "version": v2("203.0.113.1", command=0x11),
    "short": SIGNATURE + b"\x21\x11\0\4\1\2\3\4", "too-long": v2("203.0.113.1", tlvs=bytes(525)),
    "twice": None,
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_header_ends_the_connection(make_daemon, name):
    daemon = make_daemon(start=False, workers=1).listen_behind_proxy().start()
    account = daemon.account()
    if name == "twice":                     # a second header is a bad frame, as on any listener
        client = behind(daemon, v1("203.0.113.1") + v1("203.0.113.2"))
        assert client.expect(ERROR)["errno"] == MALFORMED
        client.wait_closed()
        return
    client = behind(daemon, BAD[name])
    client.wait_closed(clean=False)
    assert not client.frames
    daemon.wait_log(r"warn: conn 127\.0\.0\.1:%d: no PROXY header: \w+" % client.local[1])
    behind(daemon, v1("203.0.113.1")).login(account)


def test_many_bad_headers_are_few_lines(make_daemon):
    daemon = make_daemon(start=False, workers=1).listen_behind_proxy().start()
    watch = Stopwatch()
    for _ in range(300):
        behind(daemon, b"x").wait_closed(clean=False)
    said = len(re.findall("no PROXY header", daemon.log_text()))
    assert 1 <= said <= 2 + watch.seconds, daemon.log_tail()

    def told():
        behind(daemon, b"x").wait_closed(clean=False)
        return daemon.log_contains(r"no PROXY header: .*\([1-9]\d* more since")

    wait_until(told, 10, "the lines that were left out are counted")


def test_an_end_within_the_header(make_daemon):
    daemon = make_daemon(start=False, workers=1).listen_behind_proxy().start()
    looked = behind(daemon)
    looked.sock.shutdown(socket.SHUT_WR)                # a health check: nothing to complain about
    looked.wait_closed()
    cut = behind(daemon, b"PROXY TC")
    cut.sock.shutdown(socket.SHUT_WR)
    cut.wait_closed()
    daemon.wait_log(r"conn 127\.0\.0\.1:%d: no PROXY header: it ends too early" % cut.local[1])
    assert not daemon.log_contains(r"conn 127\.0\.0\.1:%d: no PROXY" % looked.local[1])
    done = behind(daemon, LOCAL)                        # HAProxy's health check
    done.sock.shutdown(socket.SHUT_WR)
    done.wait_closed()
    assert not daemon.log_contains(r"conn 127\.0\.0\.1:%d: no PROXY" % done.local[1])


@pytest.mark.parametrize("begun", [b"", b"PROXY TCP4 ", SIGNATURE + b"\x21"], ids=["none", "v1", "v2"])
def test_a_header_that_never_comes(make_daemon, begun):
    daemon = make_daemon(start=False, login_seconds=0.5).listen_behind_proxy().start()
    client = behind(daemon, begun)
    client.wait_closed(10)


def test_header_on_a_plain_listener_is_a_bad_frame(daemon):
    for header in (v1("203.0.113.9"), v2("203.0.113.9")):
        client = daemon.connect()
        client.send_raw(header)
        assert client.expect(ERROR)["errno"] == MALFORMED
        client.wait_closed()


def test_connections_of_an_address_are_the_clients(make_daemon):
    daemon = make_daemon(start=False, max_connections_address=3).listen_behind_proxy().start()
    silent = [behind(daemon) for _ in range(10)]        # whose they are is not known yet
    kept = [behind(daemon, make("198.51.100.%d" % host)) for make in (v1, v2, v1) for host in (1, 2)]
    for client in kept:
        client.ping()
    for make in (v1, v2):
        extra = behind(daemon, make("198.51.100.1", 7))
        refused = extra.expect(ERROR)
        assert refused["errno"] == UNAVAILABLE and "address" in refused["errmsg"]
        extra.wait_closed()
    behind(daemon, v1("198.51.100.3")).ping()
    for client in silent:
        client.send_raw(v2("127.0.0.1"))                # exempt, as ever
        client.ping()
    for client in kept:
        client.ping()
    kept[0].close()

    def again():
        client = behind(daemon, v1("198.51.100.1"))
        client.send(PING, req="free")
        return client.expect_next().kind == PONG

    wait_until(again, 5, "a place is free again")


def test_ipv6_addresses_count_by_network(make_daemon):
    daemon = make_daemon(start=False, max_connections_address=3).listen_behind_proxy().start()
    for host in range(3):
        behind(daemon, v2("2001:db8:1::%d" % host)).ping()
    behind(daemon, v1("2001:db8:1::ffff")).expect(ERROR)
    behind(daemon, v1("2001:db8:2::1")).ping()


def test_a_port_of_zero_is_no_unix_client(make_daemon):
    """A proxy that was told another address does not know the port; the limits hold all the same."""
    daemon = make_daemon(start=False, max_connections_address=3).listen_behind_proxy().start()
    for _ in range(3):
        behind(daemon, v2("198.51.100.77", 0)).ping()
    behind(daemon, v1("198.51.100.77", 0)).expect(ERROR)


def test_rate_logins_goes_by_the_clients_address(make_daemon):
    daemon = make_daemon(start=False, rate_logins=3).listen_behind_proxy().start()
    client = behind(daemon, v1("198.51.100.1"))
    replies = [client.request(LOGIN, id=1, password="wrong")["errno"] for _ in range(6)]
    assert replies[:3] == [REFUSED] * 3 and replies[4:] == [TOO_FAST] * 2, replies
    behind(daemon, v2("198.51.100.1")).refused(LOGIN, TOO_FAST, id=1, password="wrong")
    behind(daemon, v2("198.51.100.2")).refused(LOGIN, REFUSED, id=1, password="wrong")
    behind(daemon, LOCAL).refused(LOGIN, REFUSED, id=1, password="wrong")


def test_classic_and_unix_listeners(make_daemon):
    daemon = make_daemon(start=False).listen_behind_proxy("dialect=classic")
    path = daemon.dir + "/behind.sock"
    daemon.write_conf(listen=daemon.conf["listen"] + [path + " proxy"])
    daemon.start()
    classic = behind(daemon, v2("203.0.113.4"), dialect="classic", end=b"\0")
    assert known_as(daemon, classic) == "203.0.113.4:51234"
    unix = daemon.connect(address=path)
    unix.send_raw(v1("203.0.113.5"))
    assert known_as(daemon, unix) == "203.0.113.5:51234"
    classic.chat(unix, "from the classic side")
    unix.expect(CHAT, msg="from the classic side")
    nobody = daemon.connect(address=path)
    nobody.send_raw(UNKNOWN)
    assert known_as(daemon, nobody) == "unix"


def test_moved_to_another_worker_within_the_header(make_daemon):
    daemon = make_daemon(start=False, workers=2, max_connections_address=2).listen_behind_proxy().start()
    at = ("127.0.0.1", daemon.proxy_port)
    header = v2("198.51.100.1", tlvs=TLVS)
    cuts = [0, 1, 12, 13, 20, len(header) - 1]
    clients = [daemon.connect_on(1, address=at) for _ in cuts]
    for cut, client in zip(cuts, clients):
        client.send_raw(header[:cut])
    ready = daemon.connect_on(1, address=at)
    ready.send_raw(v1("198.51.100.2"))
    ready.ping()
    daemon.wait_read(*clients)
    daemon.ctl_ok("scale", 1)
    wait_until(lambda: list(daemon.workers) == [0], 10, "the worker has left")
    for cut, client in zip(cuts, clients):
        client.send_raw(header[cut:] + client.frame(PING, req="moved"))
    answers = []
    for client in clients:
        answers.append(client.expect_next().kind)
        if answers[-1] == ERROR:
            client.close()
    assert answers.count(PONG) == 2 and answers.count(ERROR) == len(cuts) - 2      # counted, each once
    ready.ping()
    wait_until(lambda: addresses(daemon) == ["198.51.100.1:51234"] * 2 + ["198.51.100.2:51234"], 5,
               "the two that were let in, and who had been there")


def test_the_option_needs_a_restart(make_daemon):
    daemon = make_daemon(start=False).listen_behind_proxy().start()
    daemon.write_conf(listen=[text.replace(" proxy", "") for text in daemon.conf["listen"]])
    done = daemon.ctl("reload")
    assert done.returncode != 0 and "listen" in done.stderr + done.stdout, done
    behind(daemon, v1("203.0.113.1")).ping()
