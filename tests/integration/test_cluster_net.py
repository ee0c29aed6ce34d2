"""Hosts in networks of their own, with cables that can be pulled."""

import pytest

from parleytest import *
from parleytest.traffic import Confirmer, Talker, distinct, in_order

pytestmark = [needs_redis, Switch.needed]


def test_hosts_on_a_network(make_cluster):
    cluster = make_cluster(NetCluster, hosts=3)
    people = cluster.people(3)
    for sender in people:
        for receiver in people:
            assert sender.chat_acked(receiver, "x")["state"] == "delivered"


def test_pulled_cable(make_cluster):
    """The host is alive and alone: its people chat, others may come to another host; then it returns."""
    cluster = make_cluster(NetCluster, hosts=2)
    accounts = cluster.accounts(3)
    stale, neighbour = (cluster[0].login(account) for account in accounts[:2])
    alice = cluster[1].login(accounts[2])
    cluster.switch.pull(1)
    try:
        stale.chat_delivered(neighbour, "within")
        younger, _, seconds = cluster.login_anywhere(accounts[0], [cluster[1]])
        print("pulled cable: its user is back after %.2f s" % seconds)
        assert seconds < 10 * SCALE
        alice.chat_delivered(accounts[0], "new")
        younger.expect(CHAT, msg="new")
        stale.chat(alice, "from the island", cid="i")
        cluster[1].wait_hosts("h2")
    finally:
        cluster.switch.plug(1)
    assert stale.expect(SESSION_END, 30)["reason"] == "replaced"
    cluster.wait_whole(30)
    assert alice.chat_acked(accounts[1], "hello again", deadline=15)["errno"] == 0
    neighbour.wait(lambda c: "hello again" in c.texts(), 15, "the neighbour has it")
    younger.ping()
    assert not younger.of(SESSION_END) and "new" not in stale.texts()


def test_traffic_while_cables_are_pulled(make_cluster):
    cluster = make_cluster(NetCluster, hosts=2)
    people = cluster.people(4, login={"ack": True})
    readers = [Confirmer(client) for client in people]
    talkers = [Talker(client, people[(number + 1) % 4].id, "t%d" % number).start()
               for number, client in enumerate(people)]
    for number in (1, 2):
        sent = len(talkers[0].sent)
        wait_until(lambda: len(talkers[0].sent) > sent + 50, 30, "traffic")
        cluster.switch.pull(number)
        holds_for(lambda: not any(client.eof for client in people), 3, "a session ended")
        cluster.switch.plug(number)
        cluster.wait_whole(30)
    for number, talker in enumerate(talkers):
        done, receiver = talker.finish(60), people[(number + 1) % 4]
        receiver.wait(lambda c: set(done) <= set(c.texts()), 30, "all that was acknowledged")
        texts = distinct(receiver.chats())
        assert len(texts) == len(set(texts)) and in_order(texts, "t%d" % number)
    for reader in readers:
        reader.stop()


def test_long_way(make_cluster):
    cluster = make_cluster(NetCluster, hosts=2)
    if not cluster.switch.delay(1, 50):
        pytest.skip("this kernel cannot delay packets (netem); test_slow_redis delays with a forwarder")
    alice, bob = cluster.people(2)
    texts = ["m%d" % number for number in range(100)]
    for text in texts:
        alice.chat(bob, text)
    bob.wait(lambda c: len(distinct(c.chats())) == 100, 30, "all of them")
    assert distinct(bob.chats()) == texts
