"""Slow readers, full inboxes, floods of connections, descriptors running out, rates."""

import os
import resource
import signal
import time

import pytest

from parleytest import *
from parleytest.traffic import distinct


def test_slow_reader_is_disconnected_and_its_messages_kept(make_daemon):
    daemon = make_daemon(output_limit="256k")
    alice = daemon.online(slot=0)
    slow = daemon.login(daemon.account(), slot=1, rcvbuf=4096)
    slow.may_be_cut_off = True
    slow.pause()
    texts = ["%d " % n + "x" * 8000 for n in range(2000)]       # 16 MB: past every kernel buffer
    others = daemon.online(slot=1)
    for number, text in enumerate(texts):
        alice.chat(slow, text)
        if number % 100 == 0:
            others.ping()
    alice.ping(20)
    slow.resume()
    slow.wait_closed(20, clean=False)
    again = daemon.relogin(slow.account, deadline=10)
    wait_until(lambda: len(distinct(slow.chats() + again.chats())) >= len(texts), 30, "all messages are kept", step=0.1)
    assert distinct(slow.chats() + again.chats()) == texts
    assert not alice.of(ERROR)


def test_slow_reader_of_a_group_does_not_hold_up_the_others(make_daemon):
    daemon = make_daemon(output_limit="256k")
    alice, fast = daemon.online(slot=0), daemon.online(slot=1)
    slow = daemon.login(daemon.account(), slot=1, rcvbuf=4096)
    group = daemon.group(alice)
    for member in (fast, slow):
        member.ok(ADD_GROUP, groupid=group)
    slow.may_be_cut_off = True
    slow.pause()
    texts = ["%d " % n + "x" * 8000 for n in range(1500)]
    for text in texts:
        alice.group_chat(group, text)
    fast.wait_texts(texts, 40)
    slow.resume()                           # it was disconnected, or is served from the store from here on
    slow.wait(lambda c: c.eof or c.count() >= len(texts), 40, "the rest or the end")
    chats = slow.chats()
    if slow.eof:
        again = daemon.relogin(slow.account, deadline=10)
        wait_until(lambda: len(distinct(chats + again.chats())) >= len(texts), 40, "all messages are kept", step=0.1)
        chats += again.chats()
    assert distinct(chats) == texts


def test_slow_reader_within_its_limit_loses_nothing(make_daemon):
    daemon = make_daemon(output_limit="32m", memory_limit="256m")
    alice = daemon.online(slot=0)
    slow = daemon.login(daemon.account(), slot=1, rcvbuf=4096)
    slow.may_be_cut_off = True
    slow.pause()
    texts = ["%d " % n + "x" * 8000 for n in range(1000)]
    for text in texts:
        alice.chat(slow, text)
    alice.ping(20)
    slow.resume()
    slow.wait_texts(texts, 30)
    slow.ping()


def test_who_only_sends_requests_and_never_reads_is_bounded(make_daemon):
    """Replies, too, count against the output limit."""
    daemon = make_daemon(output_limit="256k")
    rude, polite = daemon.connect(rcvbuf=4096, reading=False), daemon.connect()
    rude.sock.settimeout(0.5)
    block = b"".join(rude.frame(PING, req="x" * 64) for _ in range(1000))
    try:
        for _ in range(400):
            rude.send_raw(block)
    except OSError:
        pass                                # not read any more, or cut off: both are bounds
    polite.ping()
    status = daemon.status()
    assert sum(w["connections"] for w in status["workers"]) <= 3


def test_full_inboxes_lose_nothing(make_daemon):
    """The receiving worker stands still while its inbox fills; the sending one goes on serving."""
    daemon = make_daemon(workers=2, hang_seconds=60, offline_max=0)
    alice, bob, third = daemon.online(slot=0), daemon.online(slot=1), daemon.online(slot=0)
    stopped = daemon.kill_worker(1, signal.SIGSTOP)
    texts = ["%d " % n + "x" * 1000 for n in range(12000)]
    alice.sock.settimeout(60)
    try:
        sender = Sender(alice, bob, texts)
        for _ in range(50):
            third.ping()
            third.chat(third, "still here")
        holds_for(lambda: True, 1.0)
        third.ping()
    finally:
        os.kill(stopped, signal.SIGCONT)
    sender.join()
    alice.ping(30)
    bob.may_be_cut_off = True               # so much at once may be too much for it
    bob.wait(lambda c: c.count() >= len(texts) or c.eof, 40, "all messages")
    sessions = [bob]
    if bob.eof:
        sessions.append(daemon.relogin(bob.account, deadline=15))
        wait_until(lambda: len(distinct([c for s in sessions for c in s.chats()])) >= len(texts), 40, step=0.2)
    assert distinct([c for s in sessions for c in s.chats()]) == texts


class Sender:
    """Sends in the background: the server may stop reading for a while."""

    def __init__(self, client, to, texts):
        import threading
        self.error = None

        def run():
            try:
                for start in range(0, len(texts), 50):
                    client.send_raw(b"".join(client.frame(CHAT, to=to.id, msg=t) for t in texts[start:start + 50]))
            except OSError as why:
                self.error = why

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def join(self):
        self.thread.join(60)
        assert not self.thread.is_alive() and self.error is None, self.error


def test_rate_throttles_a_silent_sender_without_loss(make_daemon):
    """It is not read for a while instead of losing messages."""
    daemon = make_daemon(rate_messages=200)
    alice, bob = daemon.online(slot=0), daemon.online(slot=1)
    texts = ["m%d" % n for n in range(1000)]
    watch = Stopwatch()
    alice.send_raw(b"".join(alice.frame(CHAT, to=bob.id, msg=t) for t in texts))
    bob.ping()
    bob.wait_texts(texts, 20)
    assert watch.seconds > 2.0, "1000 messages at 200 a second in %.1f s" % watch.seconds
    assert not alice.of(ERROR)
    alice.ping()


def test_rate_is_a_sessions_own(make_daemon):
    daemon = make_daemon(rate_messages=20)
    loud, calm, bob = daemon.online(slot=0), daemon.online(slot=0), daemon.online(slot=0)
    loud.send_raw(b"".join(loud.frame(CHAT, to=bob.id, msg="loud") for _ in range(300)))
    watch = Stopwatch()
    calm.chat(bob, "calm")
    bob.expect(CHAT, id=calm.id)
    assert watch.seconds < 1 * SCALE


def test_rate_zero_is_no_limit(daemon):
    alice, bob = daemon.online(), daemon.online()
    watch = Stopwatch()
    alice.send_raw(b"".join(alice.frame(CHAT, to=bob.id, msg="m") for _ in range(5000)))
    bob.wait(lambda c: c.count() == 5000, 10, "5000 messages")
    assert watch.seconds < 4 * SCALE


def test_max_connections(make_daemon):
    daemon = make_daemon(max_connections=20)
    kept = [daemon.connect() for _ in range(20)]
    for client in kept:
        client.ping()
    extra = [daemon.connect() for _ in range(10)]
    for client in extra:
        client.wait_closed(5, clean=False)
        assert all(f.kind in (ERROR, SESSION_END) for f in client.frames)
    for client in kept:
        client.ping()
    for client in kept[:5]:
        client.close()
    wait_until(lambda: answers(daemon), 5, "a place is free again")


@Namespace.needed
def test_max_connections_of_an_address():
    with Namespace() as ns, ns.daemon(max_connections_address=3) as daemon:
        kept = [ns.connect(daemon, ns.outer) for _ in range(3)]
        for client in kept:
            client.ping()
        ns.connect(daemon, ns.outer).wait_closed(clean=False)
        ns.connect(daemon, ns.other).ping()
        for client in kept:
            client.ping()
        kept[0].close()
        wait_until(lambda: placed(ns, daemon), 5, "a place is free again")


def placed(ns, daemon):
    try:
        ns.connect(daemon, ns.outer).ping(1)
        return True
    except (AssertionError, OSError):
        return False


def answers(daemon):
    client = daemon.connect()
    try:
        client.ping(1)
        return True
    except (AssertionError, OSError):
        return False
    finally:
        client.close()


def test_out_of_descriptors(make_daemon):
    """Few descriptors a process: accepting pauses, nothing spins, and everything works again afterwards."""
    daemon = make_daemon(start=False, workers=2, max_workers=4)
    daemon.start(preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300)))
    member = daemon.online()
    crowd = []
    for _ in range(700):
        try:
            crowd.append(daemon.connect(reading=False))
        except OSError:
            break
    member.ping()
    before = cpu_seconds(daemon)
    watch = Stopwatch()
    holds_for(lambda: not member.eof, 1.0)
    assert cpu_seconds(daemon) - before < 0.6 * watch.seconds * SCALE, "it spins"
    member.ping()
    for client in crowd:
        client.close()
    wait_until(lambda: answers(daemon), 5, "new connections are served again")
    member.ping()
    assert sorted(daemon.workers) == [0, 1]


def cpu_seconds(daemon):
    ticks = 0
    for pid in [daemon.pid] + list(daemon.workers.values()):
        with open("/proc/%d/stat" % pid) as file:
            field = file.read().rsplit(")", 1)[1].split()
        ticks += int(field[11]) + int(field[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def test_flood_of_connections(make_daemon):
    """Thousands come and go; a member is served all the time and nothing is left of them."""
    daemon = make_daemon()
    member = daemon.online()
    slowest = 0
    for _ in range(20):
        crowd = [daemon.connect(reading=False) for _ in range(100)]
        for client in crowd[:50]:
            client.send_raw(b'{"msgid":25')
        watch = Stopwatch()
        member.ping()
        slowest = max(slowest, watch.seconds)
        for place, client in enumerate(crowd):
            client.abort() if place % 2 else client.close()
        daemon.clients = [c for c in daemon.clients if not c.closed]
    assert slowest < 0.5 * SCALE
    wait_until(lambda: sum(w["connections"] for w in daemon.status()["workers"]) == 1, 10, "all are gone")


def test_idle_daemon_is_idle(make_daemon):
    daemon = make_daemon(log_level="info")
    people = [daemon.online() for _ in range(20)]
    before = cpu_seconds(daemon)
    holds_for(lambda: True, 2.0)
    assert cpu_seconds(daemon) - before < 0.2 * SCALE
    for person in people:
        person.ping()


def test_half_closed_client_still_gets_its_replies(daemon):
    client = daemon.online()
    client.send_raw(client.frame(FRIEND_LIST, req="a") + client.frame(PING, req="b"))
    client.shutdown()
    client.expect(FRIEND_LIST_ACK, req="a")
    client.expect(PONG, req="b")
    client.wait_closed()


def test_messages_of_a_client_that_hangs_up_at_once_are_delivered(daemon):
    """Sent, then closed: what the server has read is delivered or stored."""
    bob, away = daemon.online(slot=1), daemon.account()
    for round_ in range(10):
        alice = daemon.online(slot=0)
        alice.send_raw(b"".join(alice.frame(CHAT, to=to.id, msg="%d.%d" % (round_, n)) for n in range(20) for to in (bob, away)))
        alice.close()
    texts = ["%d.%d" % (r, n) for r in range(10) for n in range(20)]
    bob.wait_texts(texts)
    client = daemon.relogin(away)
    client.wait_texts(texts)


@pytest.mark.long
def test_a_worker_with_thousands_of_clients_dies(make_daemon):
    """Users can log in again within 200 ms also where their worker had many connections."""
    count = 4000
    daemon = make_daemon(workers=2, hash_memory=8, log_level="warn")
    accounts = daemon.accounts(count)
    people = []
    for start in range(0, count, 10):           # more logins at once may be told to wait
        group = accounts[start:start + 10]
        people += [daemon.connect() for _ in group]
        for client, account in zip(people[start:], group):
            client.send(LOGIN, id=account.id, password=account.password, req="l")
        for client in people[start:]:
            assert client.expect(LOGIN_ACK, 60)["errno"] == 0
    holds_for(lambda: True, 1.0)
    victim = next(a for a, c in zip(accounts, people) if daemon.worker_of(c) == 1)
    start = time.monotonic()
    daemon.kill_worker(1)
    daemon.connect_hard(victim)
    assert time.monotonic() - start < 0.2 * SCALE
