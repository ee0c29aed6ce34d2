"""A worker dies in the middle of what two hosts do together, on any line that matters."""

import pytest

from parleytest import *
from parleytest.cluster import Cluster, needs_redis
from parleytest.traffic import distinct

pytestmark = needs_redis


@pytest.fixture
def pair(mariadb):
    made = []

    def make(fault):
        made.append(Cluster(mariadb, 2, each=[{}, {}], confirm_timeout=2, log_level="info", start=False))
        made[0][1].env = dict(made[0][1].env or {}, PARLEY_FAULT=fault)
        return made[0].start()

    yield make
    for cluster in made:
        cluster.finish()


@pytest.mark.parametrize("passes", [1, 4])
def test_worker_dies_with_a_message_of_another_host(pair, passes):
    """It is copied, and nobody knows: the other host has it still, and it comes once, in its place."""
    cluster = pair("far.take.1=kill:%d:1" % passes)
    near, far = cluster
    alice, bob = cluster.accounts(2)
    sender, receiver = near.login(alice), far.login(bob, slot=1, login={"ack": True})
    receiver.may_be_cut_off = True
    texts = ["m%d" % number for number in range(8)]
    for text in texts:
        sender.chat(bob, text, cid=text)
    wait_until(lambda: far.log_contains(r"worker 1 .*signal 9"), 20, "the worker dies")
    again, _, _ = cluster.login_anywhere(bob, deadline=30)
    wait_until(lambda: set(distinct(receiver.chats() + again.chats())) >= set(texts), 20, "all of it arrives")
    for text in texts:
        assert sender.expect(CHAT_ACK, 20, cid=text)["errno"] == 0
    assert distinct(receiver.chats() + again.chats()) == texts
    far.ctl_ok("fsck")
