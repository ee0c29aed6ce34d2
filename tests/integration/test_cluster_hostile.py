"""Redis holds, says or refuses what no host of ours wrote: the hosts go on, and nothing of it sticks."""

import random

import pytest

from parleytest import *

pytestmark = needs_redis
HUGE = 96 << 20


def key(cluster, *words):
    return ":".join((cluster.name,) + words)


def elsewhere(host, account):
    """What a second LOGIN of the account is told."""
    client = host.connect()
    return client.request(LOGIN, 10, id=account.id, password=account.password)["errno"]


def put_wrong(redis, name):
    redis("DEL", name)
    redis("RPUSH", name, "a", "b")


def put_huge(redis, name):
    """Far more than any answer may have."""
    redis("DEL", name)
    redis("SETRANGE", name, HUGE, "x")


KINDS = pytest.mark.parametrize("put", [put_wrong, put_huge], ids=["wrong type", "huge"])


@KINDS
def test_claim_of_a_user(make_cluster, put):
    """It is none: the user is let in, and once only."""
    cluster = make_cluster(hosts=2)
    account = cluster.accounts(1)[0]
    name = key(cluster, "user", str(account.id))
    put(cluster.redis, name)
    client = cluster[0].login(account)
    assert elsewhere(cluster[1], account) == ELSEWHERE
    put(cluster.redis, name)                        # and while he is there
    cluster[0].link.cut()
    cluster[0].link.pass_()
    wait_until(lambda: cluster.redis("TYPE", name) == "string" and cluster.redis("STRLEN", name) < 200, 20,
               "his claim is made again")
    assert elsewhere(cluster[1], account) == ELSEWHERE
    client.ok(LOGOUT)
    cluster[1].relogin(account)


@KINDS
def test_claim_of_somebody_spoken_to(make_cluster, put):
    """Looking for him disturbs nobody else: no connection is lost by it."""
    cluster = make_cluster(hosts=2)
    alice, bob = cluster.people(2)
    other = cluster.accounts(1)[0]
    assert alice.chat_acked(bob, "x", deadline=20)["errno"] == 0
    cluster.redis.reset_counts()
    put(cluster.redis, key(cluster, "user", str(other.id)))
    assert alice.chat_acked(other.id, "x", deadline=20)["state"] == "stored"
    alice.chat_delivered(bob, "y")
    assert "client|setname" not in cluster.redis.counts()
    assert alice.ok(FRIEND_LIST)["errno"] == 0


@KINDS
@pytest.mark.parametrize("what", ["host:h1", "host:stranger", "hosts", "born"])
def test_registry(make_cluster, put, what):
    cluster = make_cluster(hosts=2)
    alice, bob = cluster.people(2)
    put(cluster.redis, key(cluster, what))
    if what == "host:stranger":
        cluster.redis("SADD", key(cluster, "hosts"), "stranger")
    for host in cluster:
        host.wait_hosts("h1", "h2", state="up", deadline=20)
    wait_until(lambda: alice.chat_acked(bob, "x", deadline=20)["state"] == "delivered", 20)
    cluster[1].kill_host()
    cluster[0].wait_hosts("h1", deadline=20)        # what died is seen
    cluster.redis("DEL", key(cluster, "host:stranger"))


@KINDS
def test_silence_of_a_host(make_cluster, put):
    """The note since when a host is silent."""
    cluster = make_cluster(hosts=2)
    account = cluster.accounts(1)[0]
    cluster[0].login(account)
    put(cluster.redis, key(cluster, "silent", "h1", cluster[0].epoch()))
    cluster[0].freeze_host()
    try:
        _, _, seconds = cluster.login_anywhere(account, [cluster[1]], deadline=30)
        assert seconds < 10 * SCALE
        assert cluster.redis("GET", key(cluster, "user", str(account.id))).startswith("h2 ")
    finally:
        cluster[0].thaw_host()


def test_no_memory(make_cluster):
    """Redis takes nothing more: as if it was away, and all is well when it has room again."""
    cluster = make_cluster(hosts=2)
    accounts = cluster.accounts(4)
    alice, bob = cluster[0].login(accounts[0]), cluster[1].login(accounts[1])
    cluster.redis("CONFIG", "SET", "maxmemory-policy", "noeviction")
    cluster.redis("CONFIG", "SET", "maxmemory", "1")
    try:
        carol = cluster[0].relogin(accounts[2])
        alice.chat_delivered(carol, "near")
        wait_until(lambda: not cluster.redis("EXISTS", key(cluster, "host:h1")), 20, "the entry runs out")
        assert alice.chat_acked(bob, "far", deadline=20)["errno"] == 0
        bob.wait(lambda c: "far" in c.texts(), 20)
        cluster[1].relogin(accounts[3])
    finally:
        cluster.redis("CONFIG", "SET", "maxmemory", "0")
    cluster.wait_whole()
    bob.wait(lambda c: "far" in c.texts(), 20)
    for account in accounts:
        wait_until(lambda: elsewhere(cluster[0], account) == elsewhere(cluster[1], account) == ELSEWHERE, 20)
    assert alice.chat_acked(bob, "again", deadline=20)["errno"] == 0


def test_only_a_replica(make_cluster, make_redis):
    """The address of a replica: its hosts say so, chat within each of them goes on."""
    master = make_redis()
    replica = make_redis(replica_of=master).wait_replica()
    cluster = make_cluster(hosts=2, redis=replica, start=False)
    for host in cluster:
        host.start()
        host.wait_log("it is a replica, not a master", 15)
    alice, bob = cluster[0].online(), cluster[0].online()
    assert alice.chat_acked(bob, "x")["errno"] == 0
    bob.expect(CHAT, msg="x")
    replica("REPLICAOF", "NO", "ONE")
    cluster.wait_whole()


def test_garbage_in_the_channel(make_cluster):
    rng = random.Random(4)
    cluster = make_cluster(hosts=2)
    alice, bob = cluster.people(2)
    names = [key(cluster, "to", host.id) for host in cluster]
    with cluster.redis.connect() as redis:
        for number in range(400):
            junk = rng.randbytes(rng.choice((0, 1, 8, 56, 64, 72, 200, 5000, 70000)))
            if number % 2:
                junk = b"ylnk\x01\x00\x02\x00" + junk
            redis("PUBLISH", names[number % 2], junk)
            if number % 100 == 0:
                assert alice.chat_acked(bob, "n%d" % number)["errno"] == 0
    alice.chat_delivered(bob, "last")
    for host in cluster:
        assert not any(row["restarts"] for row in host.status()["workers"])
