"""Order over "not now" (errno 9): what was refused comes again, and nothing behind it may be there first.

The store is locked for a moment, with little patience in the daemon, so that messages of one
conversation fail at different times.
"""
import os
import signal
import sqlite3

import pytest

from parleytest import *

DAEMON = {"workers": 2, "store_timeout_seconds": 1, "pool_wait_ms": 500, "confirm_timeout": 3}


class Lock:
    """Holds the write lock of the daemon's SQLite file."""

    def __init__(self, daemon):
        path = daemon.conf["store"].split(":", 1)[1]
        self.db = sqlite3.connect(path, isolation_level=None, timeout=5)
        self.db.execute("BEGIN IMMEDIATE")

    def release(self):
        self.db.close()


def let(seconds):
    """Lets the daemon get on: not a synchronisation, only the order of two causes."""
    holds_for(lambda: True, seconds)


def answers(client, cid):
    return [f["errno"] for f in client.of(CHAT_ACK) if f.get("cid") == cid]


def answer(client, cid):
    return client.expect(CHAT_ACK, 10, cid=cid)["errno"]


def test_the_conversation_goes_on_with_what_was_sent_first(daemon):
    """The second message expires in the queue before the first one fails in the store."""
    away, alice = daemon.account(), daemon.online(slot=0)
    alice.chat_acked(away, "m0")
    lock = Lock(daemon)
    alice.chat(away, "m1", cid="m1")
    let(0.1)
    alice.chat(away, "m2", cid="m2")
    state = {"m2": answer(alice, "m2"), "m1": answer(alice, "m1")}
    lock.release()
    assert set(state.values()) == {9}

    def all_taken():
        for cid in ("m1", "m2"):
            if state[cid]:
                alice.chat(away, cid, cid=cid)
                state[cid] = answer(alice, cid)
        return not any(state.values())

    wait_until(all_taken, 10, "both are taken", step=0.2)
    daemon.relogin(away).wait_texts(["m0", "m1", "m2"])


@pytest.mark.parametrize("group", [False, True], ids=["person", "group"])
def test_a_successor_stores_nothing_that_stood_behind_a_refused_message(daemon, group):
    away, other, alice = daemon.account(), daemon.account(), daemon.online(slot=0)
    alice.chat_acked(away, "m0")
    alice.chat_acked(other, "x")
    if group:
        room = daemon.group(alice)
        member = daemon.relogin(away)
        member.ok(ADD_GROUP, groupid=room)
        member.ok(LOGOUT)
        member.close()

    def say(client, text):
        if group:
            client.group_chat(room, text, cid=text)
        else:
            client.chat(away, text, cid=text)

    lock = Lock(daemon)
    alice.chat(other, "busy", cid="busy")
    let(0.1)
    say(alice, "m1")
    let(0.3)
    say(alice, "m2")
    assert answer(alice, "m1") == 9
    assert not answers(alice, "m2")
    old = daemon.kill_worker(0)
    lock.release()
    daemon.wait_worker(0, old)
    alice = daemon.relogin(alice.account)
    for text in ("m1", "m2"):
        say(alice, text)
        assert answer(alice, text) == 0
    got = daemon.relogin(away)
    got.wait(lambda c: {"m1", "m2"} <= set(c.texts()), 10)
    assert [t for t in got.texts() if t in ("m1", "m2")] == ["m1", "m2"]


def test_what_a_worker_took_from_another_is_not_refused(daemon):
    """The receiver's window is full and its worker's store locked; the sender's next messages are there already."""
    bob = daemon.login(daemon.account(), slot=1, login={"ack": True})
    alice = daemon.online(slot=0)
    for n in range(256):
        alice.chat(bob, "w%d" % n, cid="w%d" % n)
    bob.wait(lambda c: len(c.texts()) == 256, 10)
    lock = Lock(daemon)
    alice.chat(bob, "m0", cid="m0")
    let(0.1)
    alice.chat(bob, "m1", cid="m1")
    let(0.3)
    workers, count = daemon.workers, 2000
    os.kill(workers[1], signal.SIGSTOP)
    alice.send_raw(b"".join(alice.frame(CHAT, to=bob.id, msg="b%d" % k, cid="b%d" % k) for k in range(count)))
    alice.ping()
    os.kill(workers[0], signal.SIGSTOP)
    let(0.3)
    os.kill(workers[1], signal.SIGCONT)
    let(0.1)
    lock.release()
    let(0.3)
    os.kill(workers[0], signal.SIGCONT)
    order = ["m0", "m1"] + ["b%d" % k for k in range(count)]
    alice.wait(lambda c: len([f for f in c.of(CHAT_ACK) if f["cid"] in set(order)]) >= len(order), 20, "answers")
    errnos = {f["cid"]: f["errno"] for f in alice.of(CHAT_ACK)}
    refused = [cid for cid in order if errnos[cid] == 9]
    behind = order[order.index(refused[0]):] if refused else []
    assert not [cid for cid in behind if errnos[cid] == 0]


def test_an_accepted_message_that_is_tried_again_is_not_overtaken(daemon):
    bob = daemon.login(daemon.account(), slot=1, login={"ack": True})
    alice = daemon.online(slot=0)
    alice.chat_acked(bob.account, "w", deadline=10)
    bob.pause()
    alice.chat(bob, "m1", cid="m1")             # written, and never confirmed
    let(2.7)
    lock = Lock(daemon)                         # confirm_timeout finds the store locked
    let(1.45)
    lock.release()
    alice.chat(bob, "m2", cid="m2")
    wait_until(lambda: answers(alice, "m1") and answers(alice, "m2"), 10, "answers")
    if answers(alice, "m2")[-1] == 9:
        wait_until(lambda: alice.chat(bob, "m2", cid="m2") or answer(alice, "m2") == 0, 10, step=0.3)
    bob.abort()
    got = daemon.relogin(bob.account)
    got.wait(lambda c: {"m1", "m2"} <= set(c.texts()), 10)
    assert [t for t in got.texts() if t in ("m1", "m2")] == ["m1", "m2"]
