"""Messages for people who are not there: written to them, then deleted; never lost, in order."""

import pytest

from parleytest import *


def stored(alice, to, texts):
    for text in texts:
        ack = alice.chat_acked(to, text)
        assert (ack["errno"], ack["state"]) == (0, "stored"), ack


def test_delivered_once_in_the_order_stored(daemon):
    alice, bob, carol = daemon.online(slot=0), daemon.online(slot=1), daemon.account()
    texts = []
    for number in range(10):
        for sender in (alice, bob):
            texts.append("%s %d" % (sender.name, number))
            stored(sender, carol, texts[-1:])
    client = daemon.login(carol)
    assert [chat["msg"] for chat in client.ack["offlinemsg"]] == texts
    client.ok(LOGOUT)
    assert client.login(carol)["offlinemsg"] == []


def test_they_look_as_first_sent(daemon):
    alice, bob = daemon.online(), daemon.account()
    alice.chat_acked(bob, "x", cid="c", time="my time", color="blue")
    group = daemon.group(alice)
    with daemon.login(bob) as client:
        chat = client.ack["offlinemsg"][0]
        client.ok(ADD_GROUP, groupid=group)
        client.ok(LOGOUT)
    assert set(chat) == {"msgid", "id", "name", "to", "msg", "time", "ts", "mid", "cid", "color"}
    assert (chat["msgid"], chat["id"], chat["name"], chat["to"], chat["time"]) == (5, alice.id, alice.name, bob.id, "my time")
    alice.group_chat_acked(group, "y", cid="d", time="later")
    chat = daemon.login(bob).ack["offlinemsg"][0]
    assert set(chat) == {"msgid", "id", "name", "groupid", "msg", "time", "ts", "mid", "cid"}
    assert (chat["msgid"], chat["groupid"], chat["msg"]) == (9, group, "y")


def test_ts_is_the_time_of_sending(daemon):
    import time
    alice, bob = daemon.online(), daemon.account()
    before = time.time() * 1000
    stored(alice, bob, ["x"])
    after = time.time() * 1000
    wait_until(lambda: time.time() * 1000 > after + 300, 2)
    assert before - 50 <= daemon.login(bob).ack["offlinemsg"][0]["ts"] <= after + 50


def test_client_that_vanishes_before_its_login_is_answered_gets_them_next_time(make_daemon):
    """The password check takes long enough here for the client to be gone before its answer."""
    daemon = make_daemon(hash_memory=65536, hash_passes=8)
    alice, bob = daemon.online(deadline=20), daemon.account()
    texts = ["m%d" % number for number in range(5)]
    stored(alice, bob, texts)
    for _ in range(5):
        gone = daemon.connect()
        gone.send(LOGIN, id=bob.id, password=bob.password)
        daemon.wait_read(gone)
        gone.abort()
        if gone.of(LOGIN_ACK):          # we were slower than the hash: it has had them
            stored(alice, bob, texts)
    client = daemon.relogin(bob, deadline=20)
    client.wait_texts(texts)


def test_client_that_vanishes_at_any_time_loses_nothing_that_was_not_written(daemon):
    """Ends at many moments around the login; what one session was not given the next one is."""
    alice, bob = daemon.online(), daemon.account()
    sent, got = [], []
    for round_ in range(30):
        sent.append("m%d" % round_)
        stored(alice, bob, sent[-1:])
        client = daemon.connect()
        client.send(LOGIN, id=bob.id, password=bob.password)
        if round_ % 3 == 1:
            daemon.wait_read(client)
        if round_ % 3 != 0:
            client.shutdown()                       # an orderly end: what is written still arrives
            client.wait_closed(clean=False)
        else:
            client.wait(lambda c: c.of(LOGIN_ACK), 5, "the answer")
            client.shutdown()
            client.wait_closed(clean=False)
        got += [text for text in client.texts()]
    client = daemon.relogin(bob)
    client.ping()
    got += client.texts()
    assert sorted(set(got), key=sent.index) == sent
    assert got == sent, "doubled or reordered"


@pytest.mark.parametrize("count,size", [(3000, 20), (400, 3000), (12, 60000)], ids=["many", "much", "huge"])
def test_big_backlogs_arrive_whole_and_in_order(daemon, count, size):
    alice, bob = daemon.online(), daemon.account()
    texts = ["%d " % number + "x" * (size - 5) for number in range(count)]
    for number, text in enumerate(texts):
        alice.chat(bob, text, cid="b%d" % number)
    alice.wait(lambda c: len(c.of(CHAT_ACK)) == count, 60, "all are stored")
    assert all(ack["errno"] == 0 for ack in alice.of(CHAT_ACK))
    client = daemon.login(bob, deadline=20)
    client.wait_texts(texts, 60)
    client.ok(LOGOUT)
    assert client.login(bob)["offlinemsg"] == []


def test_live_messages_during_a_big_drain_keep_their_order(daemon):
    alice, bob = daemon.online(slot=0), daemon.account()
    texts = ["old %d " % number + "x" * 2000 for number in range(300)]
    for number, text in enumerate(texts):
        alice.chat(bob, text, cid="b%d" % number)
    alice.wait(lambda c: len(c.of(CHAT_ACK)) == 300, 60, "all are stored")
    client = daemon.connect_on(1)
    client.send(LOGIN, id=bob.id, password=bob.password)
    fresh = ["new %d" % number for number in range(300)]
    for text in fresh:
        alice.chat(bob, text)
    client.wait_texts(texts + fresh, 30)


def test_messages_sent_while_somebody_comes_and_goes(daemon):
    """Live or stored, every message is seen once and in order."""
    alice, bob = daemon.online(slot=0), daemon.account()
    got, sent = [], []
    for round_ in range(20):
        client = daemon.connect_on(round_ % 2)
        for number in range(30):
            sent.append("%d.%d" % (round_, number))
            alice.chat(bob, sent[-1])
            if number == 10:
                client.send(LOGIN, id=bob.id, password=bob.password, req="in")
            if number == 20:
                client.send(LOGOUT, req="out")
        client.expect(LOGIN_ACK, req="in", errno=0)
        client.expect(LOGOUT_ACK, req="out", errno=0)
        got += client.texts()
        client.close()
    alice.ping()
    client = daemon.relogin(bob)
    client.wait(lambda c: len(got) + c.count() >= len(sent), 10, "the rest")
    got += client.texts()
    assert got == sent


def test_quota(make_daemon):
    daemon = make_daemon(offline_max=5)
    alice, bob = daemon.online(), daemon.account()
    stored(alice, bob, ["1", "2", "3", "4", "5"])
    ack = alice.chat_acked(bob, "6")
    assert ack["errno"] == TOO_LARGE
    with daemon.login(bob) as client:
        assert client.texts() == ["1", "2", "3", "4", "5"]
        client.ok(LOGOUT)
    stored(alice, bob, ["7"])


def test_connection_is_not_needed_for_order(daemon):
    """The same sender over several connections, one after the other, on different workers."""
    alice, bob = daemon.account(), daemon.account()
    texts = []
    for number in range(6):
        client = daemon.login(alice, slot=number % 2)
        for part in range(5):
            texts.append("%d.%d" % (number, part))
            client.chat(bob, texts[-1])
        client.ok(LOGOUT)
        client.close()
    daemon.login(bob).wait_texts(texts)


def test_stop_flushes_what_was_accepted(make_daemon):
    """TERM: what clients have sent and nobody has got is in the store afterwards."""
    daemon = make_daemon()
    alice, bob = daemon.online(slot=0), daemon.account()
    texts = ["m%d" % number for number in range(500)]
    for text in texts:
        alice.chat(bob, text)
    alice.ping()
    daemon.stop()
    daemon.start()
    daemon.login(bob, deadline=10).wait_texts(texts)
