"""PRESENCE: who is told, when, and how often. `offline` is told only after 2 s of absence."""

import time

import pytest

from parleytest import *


def states(client, about):
    return [frame["state"] for frame in client.of(PRESENCE) if frame["id"] == about.id]


def listing(daemon, slot=0):
    """Somebody whose list holds a user who is offline."""
    bob = daemon.account("b")
    alice = daemon.online("a", slot=slot)
    alice.ok(ADD_FRIEND, friendid=bob.id)
    return alice, bob


@pytest.mark.parametrize("slot", [0, 1])
def test_online_and_offline_are_told_once(daemon, slot):
    alice, bob = listing(daemon)
    client = daemon.login(bob, slot=slot)
    frame = alice.expect(PRESENCE)
    assert (frame["id"], frame["state"]) == (bob.id, "online")
    assert "n" not in frame and "mid" not in frame
    client.close()
    gone = time.monotonic()
    frame = alice.expect(PRESENCE, 5)
    assert (frame["id"], frame["state"]) == (bob.id, "offline")
    assert 1.8 < frame.at - gone < 4 * SCALE
    holds_for(lambda: states(alice, bob) == ["online", "offline"], 1.0, "told more than once")


@pytest.mark.parametrize("ending", ["close", "abort", "logout"])
def test_short_absence_is_not_told(daemon, ending):
    alice, bob = listing(daemon)
    client = daemon.login(bob, slot=1)
    alice.expect(PRESENCE, state="online")
    for slot in (0, 1):
        if ending == "logout":
            client.ok(LOGOUT)
        else:
            getattr(client, ending)()
        client = daemon.relogin(bob)
    holds_for(lambda: "offline" not in states(alice, bob), 2.8, "offline was told for an absence of moments")


def test_friendship_is_one_way(daemon):
    """A's list holds B: A is told about B, B is not told about A."""
    alice, bob = listing(daemon)
    client = daemon.login(bob)
    alice.expect(PRESENCE)
    alice.ok(LOGOUT)
    client.ping()
    alice.login(alice.account)
    client.ping()
    holds_for(lambda: not client.of(PRESENCE), 0.3)


def test_strangers_are_told_nothing(daemon):
    alice, bob = listing(daemon)
    stranger = daemon.online()
    daemon.login(bob)
    alice.expect(PRESENCE)
    stranger.ping()
    assert not stranger.of(PRESENCE)


def test_former_friends_are_told_nothing(daemon):
    alice, bob = listing(daemon)
    alice.ok(DEL_FRIEND, friendid=bob.id)
    carol = daemon.account()
    alice.ok(ADD_FRIEND, friendid=carol.id)
    daemon.login(bob)
    daemon.login(carol)
    alice.expect(PRESENCE, id=carol.id)
    assert not states(alice, bob)


def test_presence_is_never_stored(daemon):
    alice, bob = listing(daemon)
    alice.ok(LOGOUT)
    client = daemon.login(bob)
    client.ok(LOGOUT)
    client.login(bob)
    ack = alice.login(alice.account)
    assert ack["offlinemsg"] == []
    alice.ping()
    assert not [f for f in alice.of(PRESENCE) if f["state"] == "offline"]


def test_state_at_login_and_changes_after_it(make_daemon):
    """Nothing falls between the list in LOGIN_MSG_ACK and the PRESENCE after it."""
    daemon = make_daemon(presence_delay_ms=200)
    alice, bob = listing(daemon, slot=1)
    alice.ok(LOGOUT)
    for _ in range(5):
        alice.login(alice.account)
        assert alice.ack["friends"][0]["state"] in ("online", "offline")
        client = daemon.login(bob, slot=0)
        if alice.ack["friends"][0]["state"] == "offline":
            alice.expect(PRESENCE, id=bob.id, state="online")
        client.ok(LOGOUT)
        client.close()
        alice.expect(PRESENCE, 6, id=bob.id, state="offline")
        alice.ok(LOGOUT)


def test_all_who_list_somebody_are_told(daemon):
    bob = daemon.account()
    watchers = [daemon.online(slot=place % 2) for place in range(8)]
    for watcher in watchers:
        watcher.ok(ADD_FRIEND, friendid=bob.id)
    daemon.login(bob)
    for watcher in watchers:
        watcher.expect(PRESENCE, id=bob.id, state="online")


def test_delay_is_a_key(make_daemon):
    daemon = make_daemon(presence_delay_ms=300)
    alice, bob = listing(daemon)
    client = daemon.login(bob)
    alice.expect(PRESENCE, state="online")
    watch = Stopwatch()
    client.close()
    alice.expect(PRESENCE, state="offline")
    assert 0.25 < watch.seconds < 1.5 * SCALE


def test_killed_worker_means_offline_for_those_who_stay_away(make_daemon):
    daemon = make_daemon(presence_delay_ms=500)
    alice, bob = listing(daemon, slot=0)
    client = daemon.login(bob, slot=1)
    alice.expect(PRESENCE, state="online")
    daemon.kill_worker(1)
    client.wait_closed(clean=False)
    alice.expect(PRESENCE, 5, id=bob.id, state="offline")
