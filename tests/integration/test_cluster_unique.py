"""An account is online at most once in the cluster, whatever becomes of hosts."""

import time

import pytest

from parleytest import *
from parleytest.traffic import distinct

CLUSTER = {"hosts": 3}
pytestmark = needs_redis


def attempt(host, account, **members):
    """One LOGIN on a connection of its own; returns (client, reply)."""
    client = host.connect()
    return client, client.request(LOGIN, id=account.id, password=account.password, **members)


# -- in peace ------------------------------------------------------------------------------------

def test_online_elsewhere(cluster):
    account = cluster.accounts(1)[0]
    first = cluster[0].login(account)
    for host in cluster:
        _, reply = attempt(host, account)
        assert reply["errno"] == ELSEWHERE
    stranger = cluster[1].connect()
    assert stranger.request(LOGIN, id=account.id, password="wrong")["errno"] == REFUSED
    first.ping()
    cluster[2].online().chat_delivered(account, "still there")


def test_after_logout_anywhere_at_once(cluster):
    account = cluster.accounts(1)[0]
    client = cluster[0].login(account)
    for host in (1, 2, 1, 0, 2, 0):
        client.ok(LOGOUT)
        client = cluster[host].login(account)       # the first attempt, on another host


@pytest.mark.parametrize("ending", ["close", "abort"])
def test_after_the_connection_anywhere_soon(cluster, ending):
    account = cluster.accounts(1)[0]
    client = cluster[0].login(account)
    getattr(client, ending)()
    watch = Stopwatch()
    cluster[1].relogin(account)
    assert watch.seconds < 2 * SCALE


def test_one_of_many_at_once(cluster):
    """Everybody tries at the same moment: one is let in."""
    for account in cluster.accounts(12):
        clients = [host.connect() for host in cluster for _ in range(2)]
        for client in clients:
            client.send(LOGIN, id=account.id, password=account.password, req="race")
        replies = [client.expect(LOGIN_ACK, 10, req="race")["errno"] for client in clients]
        assert replies.count(OK) <= 1 and set(replies) <= {OK, ELSEWHERE, UNAVAILABLE}, replies
        if OK not in replies:                       # each refused the other: somebody gets in next
            cluster[0].relogin(account)
        for client in clients:
            client.close()


def test_claims_end_with_sessions(cluster):
    """Nothing is left in Redis of users who are gone."""
    people = cluster.people(9)
    ids = [str(client.id) for client in people]

    def claims():
        return [key for key in cluster.presence() if ":user" in key and key.rsplit(":", 1)[1] in ids]

    assert len(claims()) == 9
    for number, client in enumerate(people):
        (client.close, client.abort, lambda: client.ok(LOGOUT))[number % 3]()
    wait_until(lambda: not claims(), 10, "no claim is left")


# -- duplicate_login = replace -------------------------------------------------------------------

def test_replace(make_cluster):
    cluster = make_cluster(hosts=2, duplicate_login="replace")
    account = cluster.accounts(1)[0]
    alice = cluster[0].online()
    first = cluster[0].login(account, login={"ack": True})
    alice.chat(account, "unconfirmed", cid="u")
    first.expect(CHAT)
    second = cluster[1].relogin(account)
    assert first.expect(SESSION_END)["reason"] == "replaced"
    first.wait_closed()
    wait_until(lambda: "unconfirmed" in second.texts(), 5, "what the first had not confirmed")
    alice.chat_delivered(account, "new")
    second.expect(CHAT, msg="new")
    third = cluster[0].relogin(account)
    assert second.expect(SESSION_END)["reason"] == "replaced"
    third.ping()


def test_replace_back_and_forth_loses_nothing(make_cluster):
    cluster = make_cluster(hosts=2, duplicate_login="replace")
    account, alice = cluster.accounts(1)[0], cluster[0].online()
    chats, sent = [], []
    for turn in range(10):
        client = cluster[turn % 2].relogin(account)
        for number in range(5):
            sent.append("%d.%d" % (turn, number))
            assert alice.chat_acked(account, sent[-1])["errno"] == 0
        chats.append(client)
    last = cluster[0].relogin(account)
    wait_until(lambda: set(sent) <= {t for c in chats + [last] for t in c.texts()}, 10, "everything arrived")
    assert distinct([chat for client in chats + [last] for chat in client.chats()]) == sent


# -- hosts that die ------------------------------------------------------------------------------

def test_users_of_a_killed_host_are_back_at_once(make_cluster):
    cluster = make_cluster(hosts=3)
    accounts = cluster.accounts(10)
    clients = [cluster[0].login(account) for account in accounts]
    friend = cluster[1].online()
    cluster[1].befriend(friend, *accounts)
    cluster[0].kill_host()
    times = []
    for number, account in enumerate(accounts):
        _, host, seconds = cluster.login_anywhere(account, [cluster[1 + number % 2]])
        times.append(seconds)
    print("killed host: users are back after %s" % ["%.2f" % t for t in times])
    assert max(times) < 2 * SCALE
    for client in clients:
        client.wait_closed(clean=False)
    assert {f["state"] for f in friend.ok(FRIEND_LIST)["friends"]} == {"online"}
    cluster[1].wait_hosts("h2", "h3")


def test_default_times_suffice_for_a_killed_host(make_cluster):
    """The users of a host whose processes are gone do not wait for host_timeout_ms."""
    cluster = make_cluster(hosts=2, heartbeat_ms=2000, host_timeout_ms=8000)
    account = cluster.accounts(1)[0]
    cluster[0].login(account)
    cluster[0].kill_host()
    _, _, seconds = cluster.login_anywhere(account, [cluster[1]])
    assert seconds < 2 * SCALE


def test_messages_to_a_killed_host(make_cluster):
    """What was under way is stored; what nobody acknowledged is in its sender's hands."""
    cluster = make_cluster(hosts=2)
    account, alice = cluster.accounts(1)[0], cluster[1].online()
    bob = cluster[0].login(account, login={"ack": True})
    alice.chat(bob, "under way", cid="u")
    bob.expect(CHAT)
    cluster[0].kill_host()
    alice.chat(account, "after", cid="a")
    for cid in ("u", "a"):
        assert alice.expect(CHAT_ACK, 15, cid=cid) ["state"] == "stored"
    client, _, _ = cluster.login_anywhere(account)
    client.wait_texts(["under way", "after"])


def test_friends_are_told_of_a_killed_host(make_cluster):
    cluster = make_cluster(hosts=2)
    account, alice = cluster.accounts(1)[0], cluster[1].online()
    cluster[0].login(account)
    alice.ok(ADD_FRIEND, friendid=account.id)
    cluster[0].kill_host()
    assert alice.expect(PRESENCE, 15, id=account.id)["state"] == "offline"
    assert alice.ok(FRIEND_LIST)["friends"][0]["state"] == "offline"


def test_quick_return_is_a_new_epoch(make_cluster):
    cluster = make_cluster(hosts=2)
    accounts = cluster.accounts(6)
    for account in accounts:
        cluster[0].login(account)
    alice = cluster[1].online()
    before = cluster[1].hosts()["h1"]["epoch"]
    cluster[0].kill_host()
    cluster[0].restart()
    wait_until(lambda: cluster[1].hosts().get("h1", {"epoch": before})["epoch"] != before, 10,
               "the other host sees the new epoch")
    for number, account in enumerate(accounts):         # nobody is online by a former life
        _, reply = attempt(cluster[number % 2], account)
        if reply["errno"] == UNAVAILABLE:
            cluster.login_anywhere(account, [cluster[number % 2]])
        else:
            assert reply["errno"] == OK
    cluster.wait_whole()
    for account in accounts:
        wait_until(lambda: alice.chat_acked(account, "x", deadline=15)["state"] == "delivered", 15)


def test_orderly_stop_frees_everybody(make_cluster):
    cluster = make_cluster(hosts=2)
    account = cluster.accounts(1)[0]
    first = cluster[0].login(account)
    cluster[0].stop()
    assert first.of(SESSION_END)[0]["reason"] == "shutdown"
    cluster[1].login(account)
    assert list(cluster[1].wait_hosts("h2")) == ["h2"]
    assert not [key for key in cluster.presence() if key.endswith(":host:h1")]


def test_killed_worker_frees_its_users(make_cluster):
    cluster = make_cluster(hosts=2)
    account = cluster.accounts(1)[0]
    for slot in (0, 1):                                 # one of them leads
        cluster[0].login(account, slot=slot).may_be_cut_off = True
        old = cluster[0].kill_worker(slot)
        client, _, seconds = cluster.login_anywhere(account, [cluster[1]])
        assert seconds < 3 * SCALE
        client.ok(LOGOUT)
        cluster[0].wait_worker(slot, old)


# -- hosts that fall silent ----------------------------------------------------------------------

def silence(cluster, limit):
    """A host stands still; its user logs in elsewhere; it wakes up and honours nothing of before."""
    account, alice = cluster.accounts(1)[0], cluster[1].online()
    stale = cluster[0].login(account)
    alice.chat_delivered(account, "before")
    cluster[0].freeze_host()
    try:
        alice.chat(account, "meanwhile", cid="m")       # to a host of which nobody knows
        client, _, seconds = cluster.login_anywhere(account, [cluster[1]], deadline=limit + 5)
        print("silent host: its user is back after %.2f s" % seconds)
        assert seconds < limit * SCALE
        assert alice.expect(CHAT_ACK, 20, cid="m")["errno"] == 0
        client.wait(lambda c: "meanwhile" in c.texts(), 10, "what was sent to the silent host")
        stale.chat(alice, "from the past")
        assert alice.chat_acked(account, "to the new one")["errno"] == 0
        client.wait(lambda c: "to the new one" in c.texts(), 10, "what was sent to the new session")
        cluster[1].wait_hosts("h2")
    finally:
        cluster[0].thaw_host()
    assert stale.expect(SESSION_END, 20)["reason"] == "replaced"
    stale.wait_closed(10)
    assert "to the new one" not in stale.texts()
    cluster[1].wait_hosts("h1", "h2", state="up", deadline=30)
    alice.chat_delivered(account, "later")
    client.expect(CHAT, msg="later")
    client.ping()
    assert not client.of(SESSION_END)
    _, reply = attempt(cluster[0], account)             # and its claim is the younger's
    assert reply["errno"] == ELSEWHERE
    cluster[0].login(cluster.accounts(1)[0])            # the host serves others again


def test_silent_host(make_cluster):
    silence(make_cluster(hosts=2), 5)


@pytest.mark.long
def test_silent_host_with_the_default_times(make_cluster):
    silence(make_cluster(hosts=2, heartbeat_ms=2000, host_timeout_ms=8000, redis_timeout_ms=2000), 10)


def test_silent_moment_changes_nothing(make_cluster):
    """Shorter than host_timeout_ms: the session goes on."""
    cluster = make_cluster(hosts=2, heartbeat_ms=1000, host_timeout_ms=6000)
    account, alice = cluster.accounts(1)[0], cluster[1].online()
    client = cluster[0].login(account)
    cluster[0].freeze_host()
    time.sleep(1)                                       # the length of the silence, not a wait
    cluster[0].thaw_host()
    client.ping()
    _, reply = attempt(cluster[1], account)
    assert reply["errno"] == ELSEWHERE
    assert alice.chat_acked(account, "x")["errno"] == 0
    client.expect(CHAT, 10, msg="x")
    assert not client.of(SESSION_END)
