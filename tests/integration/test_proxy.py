"""Listeners behind a proxy: the PROXY header, whose address counts, and a real nginx in front."""

import ipaddress
import json
import re
import socket
import struct

import pytest

from parleytest import *
from parleytest.nginx import SAMPLE

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


@Namespace.needed
def test_the_proxys_own_address_does_not_count():
    """But for those of whom it says nothing."""
    with Namespace() as ns, ns.daemon(max_connections_address=3) as daemon:
        daemon.stop()
        daemon.write_conf(listen=["%s:%d proxy" % (ns.inner, daemon.port), daemon.unix])
        daemon.start()

        def behind_it(header):
            client = ns.connect(daemon, ns.outer)
            client.send_raw(header)
            client.send(PING)
            return client, client.expect_next().kind

        for _ in range(3):                              # nothing of it is left over, either
            kept = [behind_it(v1("198.51.100.%d" % n)) for n in range(1, 11)]
            assert [kind for _, kind in kept] == [PONG] * 10
            nobody = [behind_it(UNKNOWN if n % 2 else LOCAL) for n in range(5)]
            assert [kind for _, kind in nobody] == [PONG] * 3 + [ERROR] * 2
            for client, _ in kept + nobody:
                client.close()
            wait_until(lambda: not addresses(daemon), 10, "all are gone")


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


# -- a real nginx, with the shipped configuration ------------------------------------------------


def hosts(make_daemon, count=2, **conf):
    return [make_daemon(start=False, **conf).listen_behind_proxy().start() for _ in range(count)]


def servers(daemons, options="max_fails=1 fail_timeout=60s"):
    return ["127.0.0.1:%d %s" % (daemon.proxy_port, options) for daemon in daemons]


def through(daemon, address, source="127.0.0.1"):
    """A connection through nginx; DAEMON only closes it at the end."""
    client = daemon.connect(address=address, source=(source, 0))
    client.ping(10)
    return client


def host_of(daemons, client):
    """The number of the host that has the client, as the hosts themselves see it."""
    name = "%s:%d" % client.local
    found = [place for place, daemon in enumerate(daemons) if name in addresses(daemon)]
    assert len(found) == 1, (name, found)
    return found[0]


def test_the_shipped_nginx_conf_is_accepted(make_nginx):
    nginx = make_nginx(["127.0.0.1:6010"], start=False)
    assert "warn" not in nginx.check()
    text = nginx.sample()
    for shown in ("proxy_protocol on;", "hash $remote_addr consistent;", "weight=2", "max_fails=2",
                  "fail_timeout=10s", "proxy_connect_timeout", "so_keepalive=", "worker_rlimit_nofile"):
        assert shown in text or shown in open(SAMPLE).read(), shown
    # what stands in it as an example, but for the certificates that are not there
    for block in re.findall(r"^\t#(?:server|upstream) .*\n(?:\t#.*\n)*", text, re.M):
        if " ssl" not in block:
            text = text.replace(block, re.sub("^\t#", "\t", block, flags=re.M))
    text = re.sub(r"^#(worker_shutdown_timeout)", r"\1", text, flags=re.M)
    assert "\n\tupstream parley_classic {" in text and "\nworker_shutdown_timeout" in text
    nginx.write(text.replace("listen 6001", "listen 127.0.0.1:%d" % free_port()))
    nginx.check()


def test_turns_spread_over_the_hosts(make_daemon, make_nginx):
    daemons = hosts(make_daemon)
    nginx = make_nginx(servers(daemons))
    clients = [through(daemons[0], nginx.address) for _ in range(12)]
    places = [host_of(daemons, client) for client in clients]
    assert sorted(places) == [0] * 6 + [1] * 6
    six = daemons[0].connect(address=("::1", nginx.port))
    six.ping()
    assert "[::1]:%d" % six.local[1] in addresses(daemons[0]) + addresses(daemons[1])


def test_weights(make_daemon, make_nginx):
    daemons = hosts(make_daemon)
    nginx = make_nginx(["127.0.0.1:%d weight=3" % daemons[0].proxy_port, "127.0.0.1:%d" % daemons[1].proxy_port])
    for _ in range(12):
        through(daemons[0], nginx.address)
    assert [len(addresses(daemon)) for daemon in daemons] == [9, 3]


def test_the_hash_sticks_to_the_address(make_daemon, make_nginx):
    daemons = hosts(make_daemon, 3)
    nginx = make_nginx(servers(daemons))
    sources = ["127.0.%d.%d" % (n % 3, n + 1) for n in range(30)]

    def places():
        return [host_of(daemons, through(daemons[0], nginx.hash_address, source)) for source in sources]

    before = places()
    assert set(before) == {0, 1, 2}
    assert places() == before                           # connected anew: the same host
    nginx.write(servers=list(reversed(nginx.servers)))  # the order does not matter
    nginx.reload()
    assert places() == before
    nginx.write(servers=servers(daemons[:2]))           # one host less: only its clients change places
    nginx.reload()
    after = places()
    assert set(after) == {0, 1}
    assert all(new == old for old, new in zip(before, after) if old != 2)


def test_a_dead_host_is_left_out(make_daemon, make_nginx):
    daemons = hosts(make_daemon)
    nginx = make_nginx(servers(daemons))
    sources = ["127.0.0.%d" % n for n in range(1, 21)]
    before = [host_of(daemons, through(daemons[0], nginx.hash_address, source)) for source in sources]
    assert set(before) == {0, 1}
    lost = [through(daemons[0], nginx.address) for _ in range(6)]
    with_one = [client for client in lost if host_of(daemons, client) == 1]
    daemons[1].destroy()
    for client in with_one:
        client.wait_closed(clean=False)
    for client in lost:
        assert client in with_one or not client.eof
    for source in sources:                              # turns, and by address: all are served
        assert host_of(daemons[:1], through(daemons[0], nginx.address, source)) == 0
        assert host_of(daemons[:1], through(daemons[0], nginx.hash_address, source)) == 0
    daemons[1].start()
    nginx.write(servers=servers(daemons))               # a reload forgets the failures
    nginx.reload()
    assert [host_of(daemons, through(daemons[0], nginx.hash_address, source)) for source in sources] == before


def test_a_host_comes_back_after_fail_timeout(make_daemon, make_nginx):
    daemons = hosts(make_daemon)
    nginx = make_nginx(servers(daemons, "max_fails=1 fail_timeout=1s"))
    daemons[1].stop()
    for _ in range(4):
        through(daemons[0], nginx.address)
    daemons[1].start()
    wait_until(lambda: through(daemons[0], nginx.address) and addresses(daemons[1]), 20,
               "the host gets clients again")


def test_an_idle_session_is_not_cut_off(make_daemon, make_nginx):
    """Longer than keepalive on every side; the same with a short proxy_timeout ends it."""
    daemon = hosts(make_daemon, 1, ping_seconds=0, keepalive_seconds=1)[0]
    nginx = make_nginx(servers([daemon]))
    text = nginx.sample()
    nginx.write(re.sub(r"so_keepalive=\S+;", "so_keepalive=1s:1s:2;", text))
    nginx.reload()
    idle, short = daemon.account(), make_nginx(servers([daemon]), proxy_timeout="1s")
    idle = daemon.login(idle, address=nginx.address)
    cut = through(daemon, short.address)
    holds_for(lambda: not idle.eof, 4, "an idle session goes on")
    cut.wait_closed(5)
    other = daemon.online(address=nginx.address)
    assert other.chat_acked(idle, "still there?")["state"] == "delivered"
    idle.expect(CHAT, msg="still there?")


def test_sessions_outlive_a_reload_of_nginx(make_daemon, make_nginx):
    daemons = hosts(make_daemon, 1)
    nginx = make_nginx(servers(daemons))
    one, two = (daemons[0].online(address=nginx.address) for _ in range(2))
    nginx.reload()
    three = daemons[0].online(address=nginx.address)
    for sender, receiver in ((one, two), (two, three), (three, one)):
        sender.chat(receiver, "after the reload")
        receiver.expect(CHAT, msg="after the reload")


def test_killed_nginx_costs_a_new_login(make_daemon, make_nginx):
    daemon = hosts(make_daemon, 1)[0]
    nginx = make_nginx(servers([daemon]))
    one, two = (daemon.online(address=nginx.address) for _ in range(2))
    two.chat(one, "before")
    one.expect(CHAT, msg="before")
    nginx.kill()
    one.wait_closed(clean=False)
    nginx.start()
    again = daemon.relogin(one.account, address=nginx.address)
    two = daemon.relogin(two.account, address=nginx.address)
    assert two.chat_acked(again, "after")["state"] == "delivered"
    assert sorted("%s:%d" % c.local for c in (again, two)) == addresses(daemon)


def test_proxy_protocol_towards_a_plain_listener(make_daemon, make_nginx):
    """The usual mistake, both ways round, ends with a plain word in the log or to the client."""
    daemon = hosts(make_daemon, 1)[0]
    wrong = make_nginx(["127.0.0.1:%d" % daemon.port])
    client = daemon.connect(address=wrong.address)
    client.send(PING)
    assert client.expect(ERROR)["errno"] == MALFORMED
    without = make_nginx(servers([daemon]), proxy_protocol="off")
    client = daemon.connect(address=without.address)
    client.send(PING)
    client.wait_closed(clean=False)
    daemon.wait_log("no PROXY header: bytes that begin no PROXY header")
