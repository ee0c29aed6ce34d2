"""Processes are killed and stopped at each instant of an order to a twin: its slot serves again, whole."""

import os
import re
import signal

import pytest

from parleytest import *
from parleytest.daemon import proc_stat


def comms(daemon):
    """Names of the master's children, zombies too."""
    stats = [proc_stat(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    return sorted(stat[0] + ("!" if stat[1] == "Z" else "") for stat in stats if stat and stat[2] == daemon.pid)


def wait_whole(daemon, deadline=30):
    want = sorted(2 * ["parleyd-t0", "parleyd-t1"] + ["parleyd-w0", "parleyd-w1"])

    def whole():
        return comms(daemon) == want and all(
            w["state"] == "ready" and len(w["twins"]) == 2 for w in daemon.status()["workers"])

    wait_until(whole, deadline, "%s; there are %s" % (want, comms(daemon)))
    daemon.remember()


def kill(pid):
    """Returns when it is dead; a new one may be there already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return                                  # the point was quicker
    wait_until(lambda: proc_stat(pid) is None, 5)


def kill_the_worker(daemon):
    if daemon.workers.get(1):
        kill(daemon.workers[1])


def go_through(daemon):
    """Every kind of order: a worker, a twin, a worker while its twin is made, tidying."""
    wait_whole(daemon)
    holds_for(lambda: True, 1.1)
    clients = [daemon.connect() for _ in range(6)]
    kill_the_worker(daemon)                     # replaced at once
    wait_whole(daemon)
    for k in (0, 1):
        kill(daemon.worker_status(1)["twins"][k])
        wait_whole(daemon)
    clients += [daemon.connect() for _ in range(6)]
    kill_the_worker(daemon)                     # after back-off: tidied meanwhile
    wait_whole(daemon)
    kill(daemon.worker_status(1)["twins"][0])
    kill_the_worker(daemon)
    wait_whole(daemon)
    for client in clients:
        client.close()
    seen = set()
    wait_until(lambda: seen.add(daemon.worker_of(daemon.connect())) or seen >= {0, 1}, 10, "both slots serve")


@pytest.mark.parametrize("point,number", [(point, number) for point in (
    "twin.clone.1", "twin.clone.2", "twin.sit.1", "twin.sit.2") for number in (1, 2, 3, 4)] + [
        ("twin.tidy.1", 1), ("twin.tidy.2", 1), ("strays.close", 1), ("strays.close", 9)])
def test_killed_at_each_point(make_daemon, point, number):
    go_through(make_daemon(immortal="on", workers=2, hang_seconds=4,
                           env={"PARLEY_FAULT": "%s=kill:%d:1" % (point, number)}))


@pytest.mark.parametrize("point,number", [("twin.clone.1", 3), ("twin.sit.1", 3)] + [
    pytest.param(point, number, marks=pytest.mark.long) for point, number in (
        ("twin.clone.2", 3), ("twin.sit.2", 3), ("twin.sit.1", 1), ("twin.tidy.1", 1), ("twin.tidy.2", 1), ("strays.close", 1))])
def test_stopped_at_each_point(make_daemon, point, number):
    """Who is stopped there is found out and killed."""
    go_through(make_daemon(immortal="on", workers=2, hang_seconds=1,
                           env={"PARLEY_FAULT": "%s=stop:%d:1" % (point, number)}))


@pytest.mark.parametrize("point", ["twin.sit.1", "twin.clone.1"])
def test_nobody_can_be_born_for_a_while(make_daemon, point):
    """At every pass: the slot begins from nothing again and again, and others serve."""
    daemon = make_daemon(start=False, immortal="on", workers=2, hang_seconds=1,
                         env={"PARLEY_FAULT": "%s=kill:0:1" % point})
    daemon.spawn()
    wait_until(lambda: 0 in daemon.workers, 10)
    client = wait_until(lambda: try_connect(daemon), 10)
    client.ping()
    holds_for(lambda: not re.search(r"panic", daemon.log_text()), 2.0)
    client.ping()
    assert daemon.workers.keys() == {0}


def try_connect(daemon):
    try:
        client = daemon.connect()
        client.ping(2)
        return client
    except (OSError, AssertionError):
        return None
