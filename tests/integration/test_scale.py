"""Workers are added and removed under load: no client loses its connection, a message or its order."""

import signal

import pytest

from parleytest import *
from parleytest.traffic import Talker


class Crowd:
    """Pairs over all workers, talking all the time."""

    def __init__(self, daemon, pairs, workers):
        self.pairs = []
        for place in range(pairs):
            sender = daemon.online(slot=place % workers)
            receiver = daemon.online(slot=(place + 1) % workers)
            self.pairs.append((Talker(sender, receiver.account, "p%d" % place), receiver))
        for talker, _ in self.pairs:
            talker.start()
        self.progress(20)

    def progress(self, count=30):
        start = [len(t.sent) for t, _ in self.pairs]
        wait_until(lambda: all(len(t.sent) >= n + count for (t, _), n in zip(self.pairs, start)), 20, "traffic flows")

    def check(self):
        """Nobody was disconnected; every message was acknowledged and arrived once, in order."""
        for talker, receiver in self.pairs:
            acked = talker.finish()
            assert not talker.client.eof and not receiver.eof, "a connection was lost"
            assert acked == talker.sent
            receiver.wait_texts(talker.sent)
            talker.client.ping()
            receiver.ping()


def slots_are(daemon, count):
    return wait_until(lambda: len(daemon.workers) == count, 10, "%d workers; there are %s" % (count, daemon.workers))


def test_ttin_and_ttou_under_load(make_daemon):
    daemon = make_daemon(workers=2, max_workers=6)
    crowd = Crowd(daemon, 6, 2)
    for number, count in ((signal.SIGTTIN, 3), (signal.SIGTTIN, 4), (signal.SIGTTOU, 3), (signal.SIGTTOU, 2), (signal.SIGTTOU, 1), (signal.SIGTTIN, 2)):
        daemon.send_signal(number)
        slots_are(daemon, count)
        crowd.progress()
    crowd.check()


def test_scale_under_load(make_daemon):
    daemon = make_daemon(workers=3)
    crowd = Crowd(daemon, 6, 3)
    for count in (1, 3, 2, 4, 1):
        daemon.ctl_ok("scale", count)
        slots_are(daemon, count)
        crowd.progress()
    crowd.check()


def test_idle_clients_move_and_notice_nothing(make_daemon):
    daemon = make_daemon(workers=3)
    people = [daemon.online(slot=n % 3) for n in range(12)]
    pending = daemon.connect_on(2)                         # not logged in
    partial = daemon.online(slot=2)
    whole = partial.frame(CHAT, to=people[0].id, msg="half before, half after \u00e9\u20ac")
    partial.send_raw(whole[:40])
    classic = daemon.online(slot=2, dialect="classic")
    unterminated = daemon.connect_on(2, end=b"\0")
    unterminated.ping()
    daemon.wait_read(partial)
    daemon.ctl_ok("scale", 1)
    slots_are(daemon, 1)
    partial.send_raw(whole[40:])
    people[0].expect(CHAT, msg="half before, half after \u00e9\u20ac")
    for sender in people:
        for receiver in people[:3]:
            sender.chat(receiver, "to %d" % receiver.id)
            receiver.expect(CHAT, id=sender.id)
    pending.refused(FRIEND_LIST, NOT_LOGGED_IN)
    pending.ping()
    classic.chat(people[0], "classic moved")
    people[0].expect(CHAT, msg="classic moved")
    people[0].chat(classic, "still classic")
    assert "mid" not in classic.expect(CHAT)
    unterminated.send(PING, req="nul")
    assert unterminated.expect(PONG, req="nul").end == b"\0"
    for person in people:
        assert not person.eof and not person.of(SESSION_END)
        assert daemon.worker_of(person) in daemon.workers
    assert daemon.users_online() == len(people) + 2


def test_removed_worker_leaves_with_a_login_in_progress(make_daemon):
    """Jobs that run while the worker leaves are answered."""
    daemon = make_daemon(workers=2, hash_memory=32768, hash_passes=3)
    accounts = daemon.accounts(4)
    clients = [daemon.connect_on(1) for _ in accounts]
    for client, account in zip(clients, accounts):
        client.send(LOGIN, id=account.id, password=account.password, req="l")
    daemon.wait_read(*clients)
    daemon.send_signal(signal.SIGTTOU)
    for client in clients:
        assert client.expect(LOGIN_ACK, 20, req="l")["errno"] == 0
        client.ok(FRIEND_LIST)
    slots_are(daemon, 1)
    for client in clients:
        client.ok(FRIEND_LIST)


def test_slow_reader_moves_with_its_unsent_output(make_daemon):
    daemon = make_daemon(workers=2, output_limit="16m", memory_limit="64m")
    alice = daemon.online(slot=0)
    slow = daemon.login(daemon.account(), slot=1, rcvbuf=4096)
    slow.pause()
    texts = ["%d " % n + "x" * 4000 for n in range(2000)]
    for text in texts:
        alice.chat(slow, text)
    alice.ping()
    daemon.ctl_ok("scale", 1)
    slots_are(daemon, 1)
    slow.resume()
    slow.wait_texts(texts, 30)


def test_groups_go_on_while_workers_come_and_go(make_daemon):
    daemon = make_daemon(workers=3)
    people = [daemon.online(slot=n % 3) for n in range(6)]
    group = daemon.group(people[0])
    for member in people[1:]:
        member.ok(ADD_GROUP, groupid=group)
    texts = []
    for count in (1, 3, 2, 3):
        for _ in range(30):
            texts.append("g%d" % len(texts))
            people[0].group_chat(group, texts[-1])
        daemon.ctl_ok("scale", count)
        for _ in range(30):
            texts.append("g%d" % len(texts))
            people[0].group_chat(group, texts[-1])
        slots_are(daemon, count)
    for member in people[1:]:
        member.wait_texts(texts)


def test_limits_of_scaling(make_daemon):
    daemon = make_daemon(workers=2, max_workers=3)
    person = daemon.online()
    assert daemon.ctl("scale", 4).returncode != 0
    assert daemon.ctl("scale", 0).returncode != 0
    assert daemon.ctl("scale", "many").returncode != 0
    for number, count in ((signal.SIGTTIN, 3), (signal.SIGTTIN, 3), (signal.SIGTTOU, 2), (signal.SIGTTOU, 1), (signal.SIGTTOU, 1)):
        daemon.send_signal(number)
        slots_are(daemon, count)
        holds_for(lambda: len(daemon.workers) == count, 0.2)
    person.ping()


def test_kill_while_scaling(make_daemon):
    """A worker dies while its sibling leaves; the rest goes on."""
    daemon = make_daemon(workers=3)
    people = [daemon.online(slot=n % 3) for n in range(9)]
    holds_for(lambda: True, 1.0)
    daemon.send_signal(signal.SIGTTOU)
    daemon.kill_worker(0)
    slots_are(daemon, 2)
    for person in people:
        if person.eof:
            daemon.relogin(person.account).ping()
        else:
            try:
                person.ping()
            except Dropped:
                daemon.relogin(person.account).ping()


@pytest.mark.long
def test_scaling_up_and_down_for_a_minute(make_daemon):
    import random
    dice = random.Random(3)
    daemon = make_daemon(workers=2, max_workers=6)
    crowd = Crowd(daemon, 8, 2)
    watch = Stopwatch()
    while watch.seconds < 60:
        count = dice.randrange(1, 7)
        daemon.ctl_ok("scale", count)
        slots_are(daemon, count)
        crowd.progress(5)
    crowd.check()
