"""A connection whose other end is gone without a goodbye is noticed."""

import re
import subprocess

import pytest

from parleytest import *


@Namespace.needed
@pytest.mark.parametrize("busy", [False, True], ids=["nothing-unsent", "output-unsent"])
def test_pulled_cable_is_noticed(busy):
    """keepalive finds the silent one, the user time-out the one that has not acknowledged output."""
    with Namespace() as ns, ns.daemon(keepalive_seconds=1, user_timeout_seconds=3) as daemon:
        account, friend = daemon.account(), daemon.online()
        lost = ns.connect(daemon, ns.outer)
        lost.login(account)
        ns.cut()
        with daemon.connect() as client:
            client.refused(LOGIN, ELSEWHERE, id=account.id, password=account.password)
            daemon.clients.remove(client)
        if busy:
            friend.chat(account, "into the dark")
        again = daemon.relogin(account, deadline=12)
        assert friend.chat_acked(account, "back", cid="b")["state"] == "delivered"
        again.expect(CHAT, msg="back")


def test_timers_are_on_every_accepted_connection(daemon):
    """As the kernel shows them, with the defaults: noticed within a minute."""
    client = daemon.online()
    out = subprocess.run(["ss", "-tnoH", "state", "established", "sport", "=", ":%d" % daemon.port],
                         capture_output=True, text=True, check=True).stdout
    mine = [line for line in out.splitlines() if line.split()[3].endswith(":%d" % client.local[1])]
    assert len(mine) == 1, out
    timer = re.search(r"timer:\(keepalive,(?:(\d+)min)?(?:([\d.]+)sec)?", mine[0])
    assert timer, mine
    assert int(timer.group(1) or 0) * 60 + float(timer.group(2) or 0) <= 60


def test_keepalive_can_be_off(make_daemon):
    daemon = make_daemon(keepalive_seconds=0)
    client = daemon.online()
    out = subprocess.run(["ss", "-tnoH", "state", "established", "sport", "=", ":%d" % daemon.port],
                         capture_output=True, text=True, check=True).stdout
    mine = [line for line in out.splitlines() if line.split()[3].endswith(":%d" % client.local[1])]
    assert mine and "keepalive" not in mine[0]
