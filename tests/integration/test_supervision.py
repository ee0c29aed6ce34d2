"""Workers die, hang and crash in loops; the master dies. Others go on, and nothing accepted is lost."""

import os
import re
import signal
import time

import pytest

from parleytest import *
from parleytest.daemon import proc_stat, proc_text
from parleytest.traffic import Talker, distinct, in_order

AGAIN_IN = 0.2 if not SANITIZED else 2.0       # seconds until users of a killed worker are back


def test_processes_say_what_they_are(daemon):
    workers = daemon.workers
    assert sorted(workers) == [0, 1]
    for slot, pid in workers.items():
        assert proc_text(pid, "cmdline").rstrip("\0 ") == "parleyd: worker %d" % slot
        assert proc_text(pid, "comm") == "parleyd-w%d\n" % slot
    named = [pid for pid in daemon.processes() if re.match(r"parleyd-w\d", proc_text(pid, "comm"))]
    assert sorted(named) == sorted(workers.values())
    assert "worker" not in proc_text(daemon.pid, "cmdline")


def test_threads_do_not_bear_the_workers_name(daemon):
    """A thread is named right after it was made."""
    def names(pid):
        return [(int(task), proc_text(pid, "task/%s/comm" % task).strip())
                for task in os.listdir("/proc/%d/task" % pid)]

    for pid in daemon.workers.values():
        wait_until(lambda: not [n for task, n in names(pid) if task != pid and re.fullmatch(r"parleyd-w\d+", n)],
                   2, "its threads have names of their own")


def test_every_worker_gets_connections(daemon):
    slots = {daemon.worker_of(daemon.connect()) for _ in range(60)}
    assert slots == {0, 1}


@pytest.mark.timed
@pytest.mark.parametrize("slot", [0, 1, 2])
def test_kill_a_worker_under_traffic(make_daemon, slot):
    """Others are unaffected; the dead worker's users are back within 200 ms, none of them counts as
    online meanwhile; every acknowledged message arrives."""
    daemon = make_daemon(workers=3)
    receivers = {n: daemon.online(slot=n) for n in range(3)}
    away = daemon.account("away")
    talkers = [Talker(daemon.online(slot=a), receivers[b].account, "%d>%d" % (a, b)).start() for a in range(3) for b in range(3)]
    talkers += [Talker(daemon.online(slot=a), away, "%d>away" % a).start() for a in range(3)]
    bystanders = [daemon.online(slot=n) for n in range(3) if n != slot]
    wait_until(lambda: all(len(t.sent) > 100 for t in talkers), 20, "traffic flows")
    holds_for(lambda: True, 1.0)                # a worker that served for a second is replaced at once

    old, start = daemon.kill_worker(slot), time.monotonic()
    again = daemon.connect_hard(receivers[slot].account)
    seconds = time.monotonic() - start
    daemon.wait_worker(slot, old)
    assert seconds < AGAIN_IN, "%.0f ms until the user was back" % (seconds * 1000)
    for client in bystanders:
        client.ping()
    counts = [len(t.sent) for t in talkers]
    alive = [t for t in talkers if not t.client.eof]
    wait_until(lambda: all(len(t.sent) > n + 50 for t, n in zip(talkers, counts) if t in alive), 20, "traffic goes on")
    acked = {t.tag: t.finish() for t in talkers}
    for n, receiver in receivers.items():
        assert receiver.eof == (n == slot)
    for a in range(3):
        for b in range(3):
            tag = "%d>%d" % (a, b)
            missing = lambda: set(acked[tag]) - set(distinct(receivers[b].chats() + (again.chats() if b == slot else [])))
            wait_until(lambda: not missing(), 10, "acknowledged messages of %s arrive: %s" % (tag, sorted(missing())[:5]))
    for b in range(3):
        texts = distinct(receivers[b].chats() + (again.chats() if b == slot else []))
        for a in range(3):
            if a != slot and b != slot:
                assert in_order(texts, "%d>%d" % (a, b))
    late = daemon.relogin(away)
    for a in range(3):
        tag = "%d>away" % a
        wait_until(lambda: not set(acked[tag]) - set(late.texts()), 20, "stored messages of %s" % tag)


def test_accepted_silent_messages_survive_the_receivers_worker(make_daemon):
    """No cid: what the surviving worker took from its client arrives, live or stored."""
    daemon = make_daemon(workers=2)
    alice, bob = daemon.online(slot=0), daemon.online(slot=1)
    texts = ["m%d" % n for n in range(2000)]
    for number, text in enumerate(texts):
        alice.chat(bob, text)
        if number == 1000:
            daemon.kill_worker(1)
    alice.ping()
    bob.wait_closed(clean=False)
    again = daemon.relogin(bob.account)
    wait_until(lambda: set(texts) <= set(bob.texts() + again.texts()), 15, "every message arrived")
    assert distinct(bob.chats() + again.chats()) == texts
    assert not alice.of(ERROR)


def test_kill_every_worker_at_once(make_daemon):
    daemon = make_daemon(workers=3)
    people = [daemon.online(slot=n % 3) for n in range(9)]
    old = dict(daemon.workers)
    holds_for(lambda: True, 1.0)
    for pid in old.values():
        os.kill(pid, signal.SIGKILL)
    for person in people:
        daemon.connect_hard(person.account)
    for slot in old:
        daemon.wait_worker(slot, old[slot])


def test_no_stale_online_state(make_daemon):
    daemon = make_daemon(workers=2, presence_delay_ms=300)
    watcher = daemon.online(slot=0)
    lost = [daemon.online(slot=1) for _ in range(10)]
    kept = [daemon.online(slot=0) for _ in range(5)]
    daemon.befriend(watcher, *lost, *kept)
    assert daemon.users_online() == 16
    old = daemon.kill_worker(1)
    wait_until(lambda: {f["id"]: f["state"] for f in watcher.ok(FRIEND_LIST)["friends"]} == dict(
        [(p.id, "offline") for p in lost] + [(p.id, "online") for p in kept]), 3, "the dead worker's users are offline")
    wait_until(lambda: daemon.users_online() == 6, 3, "users_online")
    daemon.wait_worker(1, old)
    for person in lost:
        watcher.expect(PRESENCE, 5, id=person.id, state="offline")
    ack = watcher.chat_acked(lost[0].account, "stored meanwhile")
    assert (ack["errno"], ack["state"]) == (0, "stored")
    assert "stored meanwhile" in daemon.relogin(lost[0].account).texts()


def test_a_worker_that_served_is_replaced_in_well_under_100_ms(make_daemon):
    daemon = make_daemon()
    holds_for(lambda: True, 1.1)
    times = []
    for slot in (0, 1):
        old, start = daemon.kill_worker(slot), time.monotonic()
        wait_until(lambda: daemon.workers.get(slot) not in (None, old), 5, step=0.001)
        times.append(time.monotonic() - start)
    assert max(times) < 0.1 * SCALE, times


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT], ids=lambda s: s.name)
def test_whatever_kills_it(make_daemon, number):
    """A worker that ends without having been told by the master is replaced."""
    if SANITIZED and number in (signal.SIGSEGV, signal.SIGABRT):
        pytest.skip("a sanitizer reports this signal itself")
    daemon = make_daemon()
    daemon.allow("signal|SIG|killed|abort|segmentation")
    client = daemon.online(slot=0)
    holds_for(lambda: True, 1.1)
    old = daemon.kill_worker(1, number)
    daemon.wait_worker(1, old)
    client.ping()
    daemon.login(daemon.account(), slot=1)
    assert daemon.worker_status(1)["restarts"] == 1
    assert daemon.worker_status(0)["restarts"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT], ids=lambda s: s.name)
def test_signals_of_a_terminal_reach_the_whole_group(make_daemon, number):
    """^C and a closed terminal signal every process; the master decides what that means."""
    daemon = make_daemon()
    away, client = daemon.account(), daemon.online(slot=1)
    client.chat(away, "flushed")
    client.ping()
    os.killpg(daemon.pid, number)
    if number == signal.SIGHUP:
        client.ping()
        daemon.online(slot=0).ping()
        assert all(w["restarts"] == 0 for w in daemon.status()["workers"])
    else:
        daemon.wait_exit()
        daemon.check_gone()
        if number != signal.SIGQUIT:
            assert client.expect(SESSION_END)["reason"] == "shutdown"
            daemon.start()
            daemon.login(away).wait_texts(["flushed"])


def test_hung_worker_is_killed_and_replaced(make_daemon):
    daemon = make_daemon(hang_seconds=1, workers=2)
    alice, bob = daemon.online(slot=0), daemon.online(slot=1)
    holds_for(lambda: True, 1.0)
    old = daemon.kill_worker(1, signal.SIGSTOP)
    watch = Stopwatch()
    alice.chat(bob, "into the hanging worker", cid="h")
    while daemon.workers.get(1) == old:
        ping = Stopwatch()
        alice.ping()
        assert ping.seconds < 0.5 * SCALE, "others are unaffected"
        assert watch.seconds < 6
    assert watch.seconds > 0.6                  # the last beat may be a third of a second old
    daemon.wait_worker(1, old)
    bob.wait_closed(clean=False)
    assert daemon.log_contains(r"(?i)hang|hung|heartbeat")
    again = daemon.relogin(bob.account)
    again.wait_texts(["into the hanging worker"])
    assert alice.expect(CHAT_ACK, 10, cid="h")["errno"] == 0


def test_short_stall_is_no_hang(make_daemon):
    daemon = make_daemon(hang_seconds=3)
    alice, bob = daemon.online(slot=0), daemon.online(slot=1)
    old = daemon.kill_worker(1, signal.SIGSTOP)
    for number in range(100):
        alice.chat(bob, "m%d" % number)
    alice.ping()
    holds_for(lambda: daemon.workers.get(1) == old, 1.0)
    os.kill(old, signal.SIGCONT)
    bob.wait_texts(["m%d" % n for n in range(100)])
    bob.ping()
    assert daemon.workers[1] == old


def test_crash_loop_backs_off(make_daemon):
    """One that dies within its first second backs off from 100 ms, doubling; others are served."""
    daemon = make_daemon(workers=2)
    client = daemon.online(slot=0)
    holds_for(lambda: True, 1.1)
    gaps = []
    for _ in range(6):
        old, start = daemon.kill_worker(1), time.monotonic()
        wait_until(lambda: daemon.workers.get(1) not in (None, old), 10, step=0.002)
        gaps.append(time.monotonic() - start)
    assert gaps[0] < 0.1 * SCALE
    for gap, least in zip(gaps[1:], (0.1, 0.2, 0.4, 0.8, 1.6)):
        assert least * 0.9 < gap < least * 2 + 0.4 * SCALE, gaps
    client.ping()


def test_clients_are_served_during_a_back_off(make_daemon):
    """The slot is steered around and what waits at its listener is served by a sibling."""
    daemon = make_daemon(workers=2)
    for _ in range(5):                          # the next back-off lasts more than a second
        old = daemon.workers.get(1)
        daemon.kill_worker(1)
        wait_until(lambda: daemon.workers.get(1) not in (None, old), 10, step=0.002)
    daemon.kill_worker(1)
    clients = [daemon.connect() for _ in range(20)]
    for client in clients:
        client.ping(1.0)
    assert 1 not in daemon.workers, "the back-off was over too soon to prove anything"
    daemon.online(address=daemon.unix).ping(1.0)


def test_users_of_a_worker_that_stays_away_can_log_in(make_daemon):
    """Its sessions are swept by a sibling; messages that it held are stored."""
    daemon = make_daemon(workers=2)
    for _ in range(5):
        old = daemon.workers.get(1)
        daemon.kill_worker(1)
        wait_until(lambda: daemon.workers.get(1) not in (None, old), 10, step=0.002)
    bob = daemon.online(slot=1)
    alice = daemon.online(slot=0)
    daemon.kill_worker(1)
    again = daemon.relogin(bob.account, deadline=1.5)
    alice.chat(bob, "hello again")
    again.wait_texts(["hello again"])


def test_masters_death_ends_the_workers(make_daemon):
    daemon = make_daemon(stop_seconds=2)
    alice, bob, away = daemon.online(slot=0), daemon.online(slot=1), daemon.account()
    texts = ["m%d" % n for n in range(300)]
    for text in texts:
        alice.chat(away, text)
    alice.ping()
    workers = daemon.workers
    daemon.send_signal(signal.SIGKILL)
    daemon.wait_exit()
    wait_until(lambda: not any(proc_stat(pid) and proc_stat(pid)[1] != "Z" for pid in workers.values()), 2 + 2,
               "the workers end within stop_seconds")
    for client in (alice, bob):
        client.wait_closed(clean=False)
    daemon.start()                              # the same state_dir, the same ports
    daemon.login(away).wait_texts(texts)


def test_masters_death_with_a_stopped_worker(make_daemon):
    """A new master waits for the lock, then kills what still holds it, before it binds."""
    daemon = make_daemon(stop_seconds=1)
    stopped = daemon.kill_worker(1, signal.SIGSTOP)
    daemon.send_signal(signal.SIGKILL)
    daemon.wait_exit()
    daemon.start(deadline=15)
    assert proc_stat(stopped) is None or proc_stat(stopped)[1] == "Z"
    daemon.online().ping()


@pytest.mark.long
def test_kills_for_a_minute(make_daemon):
    """Workers die at random moments under traffic; acknowledged messages all arrive, in order."""
    import random
    daemon = make_daemon(workers=3)
    dice = random.Random(7)
    people = [daemon.account() for _ in range(6)]
    acked, seen, counter = {p.id: [] for p in people}, {p.id: [] for p in people}, 0
    end = time.monotonic() + 60
    while time.monotonic() < end:
        clients = {p.id: daemon.relogin(p) for p in people}
        talkers = []
        for place, person in enumerate(people):
            other = people[(place + 1) % len(people)]
            counter += 1
            talkers.append((other, Talker(clients[person.id], other, "t%d" % counter).start()))
        wait_until(lambda: all(len(t.sent) > dice.randrange(20, 200) or t.client.eof for _, t in talkers), 20)
        holds_for(lambda: True, 1.1)            # long enough to be replaced at once
        slot = dice.randrange(3)
        if slot in daemon.workers:
            daemon.kill_worker(slot)
        for other, talker in talkers:
            acked[other.id] += talker.finish()
        for person in people:
            clients[person.id].shutdown()
        for person in people:
            clients[person.id].wait_closed(clean=False)
            seen[person.id] += clients[person.id].chats()
    for person in people:
        client = daemon.relogin(person)
        wait_until(lambda: not set(acked[person.id]) - set(distinct(seen[person.id] + client.chats())), 30, step=0.5)
