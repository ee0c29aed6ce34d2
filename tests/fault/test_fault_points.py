"""A worker is killed at each fault point of the source, under traffic; what must hold, holds.

The fault build reads PARLEY_FAULT="name=kill:N:slot" (shm/fault.h): the worker in that slot kills
itself at the N-th pass of the point. A point that this traffic does not reach has to be named in
ELSEWHERE, with the test that reaches it, so that none is forgotten.
"""

import os
import re

import pytest

from parleytest import *
from parleytest.daemon import ROOT
from parleytest.traffic import Talker, distinct

FOLDERS = ("shm", "worker", "master", "sql")

# Points that this traffic does not come to, and who kills a process there.
ELSEWHERE = {
    "sess.compact": "test_shm.c", "sess.repair": "test_shm.c", "chunk.trim": "test_shm.c", "chunk.cut": "test_shm.c",
    "chunk.run": "test_shm.c", "chunk.unrun": "test_shm.c",
    "far.take": "test_cluster_faults.py",
    "twin.clone": "test_twin_faults.py", "twin.sit": "test_twin_faults.py", "twin.tidy": "test_twin_faults.py",
    "strays": "test_twin_faults.py",
    "group.commit": "test_worker_dies_around_a_group_commit", "rec.give": "test_shm.c", "sweep.copy": "test_sibling_dies_while_it_sweeps",
}


def points():
    found = {}
    for folder in FOLDERS:
        for name in sorted(os.listdir(os.path.join(ROOT, folder))):
            if name.endswith(".c"):
                with open(os.path.join(ROOT, folder, name)) as file:
                    for point in re.findall(r'\bFAULT\("([^"]+)"\)', file.read()):
                        found.setdefault(point, folder + "/" + name)
    return found


POINTS = points()


def family(point):
    return point.rsplit(".", 1)[0]


def test_there_are_fault_points():
    assert len(POINTS) > 10
    assert not set(ELSEWHERE) - set(map(family, POINTS)), "ELSEWHERE names points that are gone"


def died(daemon, slot=1):
    return daemon.log_contains(r"worker %d .*signal 9" % slot)


def lively(daemon, people):
    """Everything that touches shared memory: logins, messages, ends of all kinds, moves between workers."""
    for person in people:
        client = None
        try:
            client = daemon.connect()
            client.login(person, 3)
            client.send(FRIEND_LIST)
            client.chat(people[0], "x" * 3000)
            client.chat(people[-1], "y")
            client.ping(3)
            client.send(LOGOUT)
            client.ping(3)
        except (AssertionError, OSError):
            pass                            # its worker died, or it is still bound: that is the point
        finally:
            if client is not None:
                client.close()
    if not died(daemon):
        daemon.ctl("scale", 3)
        idle = [daemon.connect() for _ in range(12)]
        daemon.ctl("scale", 2)              # those of slot 2 move, some to slot 1
        daemon.ctl("scale", 1)              # those of slot 1 move
        for client in idle:
            client.close()
        daemon.ctl("scale", 2)


def cases():
    """The first point of each function now, all the others with `make check-long`."""
    for point in POINTS:
        if family(point) not in ELSEWHERE:
            yield pytest.param(point, 3, marks=[] if point.endswith(".1") else [pytest.mark.long])
            yield pytest.param(point, 20, marks=[pytest.mark.long])


@pytest.mark.parametrize("point,passes", cases())
def test_worker_dies_at(make_daemon, point, passes):
    daemon = make_daemon(workers=2, max_workers=4, env={"PARLEY_FAULT": "%s=kill:%d:1" % (point, passes)}, log_level="info")
    people = daemon.accounts(7, slot=0)
    away = people.pop()
    steady, other = daemon.login(people[0], slot=0), daemon.relogin(people[1])
    talkers = [Talker(steady, other.account, "live").start(), Talker(daemon.relogin(people[2]), away, "away").start()]
    watch = Stopwatch()
    while not died(daemon) and watch.seconds < 20:
        lively(daemon, people[3:])
        daemon.clients = [c for c in daemon.clients if not c.closed]
    assert died(daemon), "the traffic never came to %s (%s)" % (point, POINTS[point])
    acked = [t.finish() for t in talkers]
    again = daemon.relogin(away, deadline=15)
    wait_until(lambda: not set(acked[1]) - set(again.texts()), 15, "stored messages arrive", step=0.05)
    late = other if not other.eof else daemon.relogin(other.account, deadline=15)
    wait_until(lambda: not set(acked[0]) - set(distinct(other.chats() + late.chats())), 15, "live messages arrive", step=0.05)
    daemon.ctl_ok("fsck")


@pytest.mark.parametrize("point", ["group.commit.1", "group.commit.2"])
def test_worker_dies_around_a_group_commit(make_daemon, point):
    """Committed, and then nobody told, or all but the sender: each member has it once, in order."""
    daemon = make_daemon(workers=2, env={"PARLEY_FAULT": point + "=kill:3:1"}, log_level="info")
    member, speaker = daemon.online(slot=0), daemon.account()
    room = daemon.group(member)
    alice = daemon.login(speaker, slot=1)
    alice.ok(ADD_GROUP, groupid=room)
    alice.may_be_cut_off = True
    texts = ["g%d" % number for number in range(6)]
    for text in texts:
        try:
            alice.group_chat(room, text, cid=text)
        except OSError:
            break
    wait_until(lambda: died(daemon), 10, "the worker dies")
    again = daemon.relogin(speaker, deadline=15)
    for text in texts:                          # all that is open, in order: it may have been taken
        again.group_chat(room, text, cid=text)
        assert again.expect(CHAT_ACK, 10, cid=text)["errno"] == 0
    member.wait(lambda c: len(c.texts()) >= len(texts), 10, "all of it")
    member.ping()
    assert member.texts() == texts
    daemon.ctl_ok("fsck")


def test_sibling_dies_while_it_sweeps(make_daemon):
    """Slot 1 is in back-off; worker 0 stores what its dead sessions held, and dies in the middle."""
    daemon = make_daemon(workers=2, env={"PARLEY_FAULT": "sweep.copy.1=kill:3:0"}, log_level="info", confirm_timeout=60)
    alice, bob = daemon.accounts(2, slot=0)
    sender = daemon.login(alice, slot=0)
    for _ in range(4):
        old = daemon.workers[1]
        daemon.kill_worker(1)
        wait_until(lambda: daemon.workers.get(1) not in (None, old), 10, step=0.002)
    crowd = [daemon.connect() for _ in range(20)]
    receiver = next(client for client in crowd if daemon.worker_of(client) == 1)
    receiver.login(bob, ack=True)
    texts = ["m%d" % number for number in range(10)]
    for text in texts:
        sender.chat(bob, text, cid=text)
    receiver.wait_texts(texts)                  # and confirms none of them
    daemon.kill_worker(1)
    assert daemon.log_contains("worker 1 .*a new one in"), "it had served too long for a back-off"
    wait_until(lambda: died(daemon, 0), 10, "worker 0 comes to sweep.copy")
    again = daemon.relogin(bob, deadline=15)
    wait_until(lambda: set(again.texts()) == set(texts), 10, "what was held arrives")
    assert again.texts() == texts
    daemon.ctl_ok("fsck")
