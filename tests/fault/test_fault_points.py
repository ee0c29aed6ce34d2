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

# Points that need something else than this traffic: killed by the unit test that is named.
ELSEWHERE = {}


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


def test_there_are_fault_points():
    assert len(POINTS) > 10
    assert not set(ELSEWHERE) - set(POINTS), "ELSEWHERE names points that are gone"


def lively(daemon, people):
    """Everything that touches shared memory: logins, groups, presence, messages, ends of all kinds."""
    for person in people:
        try:
            client = daemon.login(person, deadline=3)
            client.send(FRIEND_LIST)
            client.chat(people[0], "x" * 3000)
            client.chat(people[-1], "y")
            client.ping(3)
            client.send(LOGOUT)
            client.ping(3)
        except (AssertionError, OSError):
            pass                            # its worker died, or it is still bound: that is the point
        finally:
            for client in daemon.clients[-1:]:
                client.close()


def cases():
    """The first point of each function now, all the others with `make check-long`."""
    for point in POINTS:
        if point not in ELSEWHERE:
            first = point.endswith(".1")
            yield pytest.param(point, 3, marks=[] if first else [pytest.mark.long])
            yield pytest.param(point, 40, marks=[pytest.mark.long])


@pytest.mark.parametrize("point,passes", cases())
def test_worker_dies_at(make_daemon, point, passes):
    daemon = make_daemon(workers=2, env={"PARLEY_FAULT": "%s=kill:%d:1" % (point, passes)}, log_level="info")
    people = daemon.accounts(6)
    away = daemon.account("away")
    steady, other = daemon.relogin(people[0]), daemon.relogin(people[1])
    talkers = [Talker(steady, other.account, "live").start(), Talker(daemon.relogin(people[2]), away, "away").start()]
    watch = Stopwatch()
    while daemon.worker_status(1)["restarts"] == 0 and watch.seconds < 8:
        lively(daemon, people[3:])
        daemon.clients = [c for c in daemon.clients if not c.closed]
    assert daemon.worker_status(1)["restarts"] > 0, "the traffic never came to %s (%s)" % (point, POINTS[point])
    acked = [t.finish() for t in talkers]
    again = daemon.relogin(away, deadline=15)
    wait_until(lambda: not set(acked[1]) - set(again.texts()), 15, "stored messages arrive")
    late = other if not other.eof else daemon.relogin(other.account, deadline=15)
    wait_until(lambda: not set(acked[0]) - set(distinct(other.chats() + late.chats())), 15, "live messages arrive")
    daemon.ctl_ok("fsck")
