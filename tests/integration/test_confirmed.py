"""Confirmed delivery: sessions that log in with `ack`."""

import pytest

from parleytest import *

DAEMON = {"confirm_timeout": 1}


def ack_login(daemon, account, slot=None, **kw):
    return daemon.login(account, slot=slot, login={"ack": True}, **kw)


def ack_online(daemon, slot=None, **kw):
    return ack_login(daemon, daemon.account(), slot, **kw)


def numbers(client):
    return [chat["n"] for chat in client.chats()]


@pytest.mark.parametrize("slot", [0, 1])
def test_delivered_only_when_the_client_has_confirmed(daemon, slot):
    alice, bob = daemon.online(slot=0), ack_online(daemon, slot)
    alice.chat(bob, "x", cid="x")
    chat = bob.expect(CHAT)
    assert chat["n"] == 1
    alice.ping()
    bob.ping()
    assert not alice.of(CHAT_ACK)
    bob.send(RECEIVED, n=1)
    ack = alice.expect(CHAT_ACK, cid="x")
    assert (ack["errno"], ack["state"], ack["mid"]) == (0, "delivered", chat["mid"])


@pytest.mark.parametrize("slot", [0, 1])
def test_unconfirmed_is_stored_after_confirm_timeout(daemon, slot):
    alice, bob = daemon.online(slot=0), ack_online(daemon, slot)
    watch = Stopwatch()
    alice.chat(bob, "x", cid="x")
    bob.expect(CHAT)
    ack = alice.expect(CHAT_ACK, 5, cid="x")
    assert (ack["errno"], ack["state"]) == (0, "stored") and watch.seconds > 0.8
    bob.send(RECEIVED, n=1)                     # late: the row is deleted
    bob.ping()
    bob.ok(LOGOUT)
    ack = bob.login(bob.account, ack=True)
    assert ack["offlinemsg"] == []


def test_numbers_count_over_the_connection(daemon):
    """1, 2, 3 ... those in offlinemsg first, not restarted by another login on the connection."""
    alice, account = daemon.online(), daemon.account()
    for text in ("a", "b"):
        alice.chat_acked(account, text)
    bob = ack_login(daemon, account)
    assert [chat["n"] for chat in bob.ack["offlinemsg"]] == [1, 2]
    alice.chat(bob, "c")
    assert bob.expect(CHAT)["n"] == 3
    group = daemon.group(alice)
    bob.ok(ADD_GROUP, groupid=group)
    alice.group_chat(group, "d")
    assert bob.expect(GROUP_CHAT)["n"] == 4
    bob.send(RECEIVED, n=4)
    bob.ok(LOGOUT)
    bob.login(account, ack=True)
    alice.chat(bob, "e")
    assert bob.expect(CHAT)["n"] == 5


def test_received_below_is_ignored_and_above_is_errno_3(daemon):
    alice, bob = daemon.online(), ack_online(daemon)
    for text in ("a", "b", "c"):
        alice.chat(bob, text)
    bob.wait_texts(["a", "b", "c"])
    bob.send(RECEIVED, n=2)
    for n in (2, 1, 0):
        bob.send(RECEIVED, n=n, req="low")
    bob.ping()
    assert not bob.of(ERROR)
    bob.send(RECEIVED, n=4, req="high")
    error = bob.expect(ERROR, req="high")
    assert (error["errno"], error["of"]) == (MALFORMED, 16)
    for n in ("3", 1.5, None, True):
        bob.send(RECEIVED, n=n, req="type")
        assert bob.expect(ERROR, req="type")["errno"] == MALFORMED
    bob.send(RECEIVED, n=3)
    bob.ping()


@pytest.mark.parametrize("ending", ["logout", "close", "abort", "shutdown"])
@pytest.mark.parametrize("slot", [0, 1])
def test_unconfirmed_goes_to_the_store_when_the_session_ends(daemon, ending, slot):
    alice, bob = daemon.online(slot=0), ack_online(daemon, slot)
    for text in ("a", "b", "c", "d"):
        alice.chat(bob, text, cid=text)
    bob.wait_texts(["a", "b", "c", "d"])
    bob.send(RECEIVED, n=2)
    alice.expect(CHAT_ACK, cid="b")
    if ending == "logout":
        bob.ok(LOGOUT)
    else:
        getattr(bob, ending)()
    again = daemon.connect()
    ack = wait_until(lambda: (lambda r: r if r["errno"] == 0 else None)(
        again.request(LOGIN, id=bob.id, password=bob.account.password, ack=True)), 5)
    assert [chat["msg"] for chat in ack["offlinemsg"]] == ["c", "d"]
    for cid in ("c", "d"):
        assert alice.expect(CHAT_ACK, cid=cid)["state"] == "stored"


def test_same_mid_after_resending(daemon):
    alice, bob = daemon.online(), ack_online(daemon)
    alice.chat(bob, "x", cid="again")
    alice.chat(bob, "x", cid="again")
    first = bob.expect(CHAT)
    bob.send(RECEIVED, n=1)
    assert alice.expect(CHAT_ACK, cid="again")["errno"] == 0
    for chat in bob.of(CHAT):
        assert chat["mid"] == first["mid"]


def test_window_of_256_messages(daemon):
    """The server may wait at 256 unconfirmed messages; a confirmation lets it go on."""
    alice, bob = daemon.online(slot=0), ack_online(daemon, 1)
    texts = ["m%d" % n for n in range(1000)]
    alice.send_raw(b"".join(alice.frame(CHAT, to=bob.id, msg=t) for t in texts))
    confirmed = 0
    while len(bob.texts()) < 1000:
        have = confirmed
        bob.wait(lambda c: c.count() > have, 10, "more messages")
        confirmed = bob.count()
        bob.send(RECEIVED, n=confirmed)
    bob.wait_texts(texts)
    assert numbers(bob) == list(range(1, 1001))


def test_silent_reader_gets_everything_again(daemon):
    """It never confirms: what it got is stored, and comes again, in order."""
    alice, account = daemon.online(slot=0), daemon.account()
    texts = ["m%d" % n for n in range(600)]
    bob = ack_login(daemon, account, 1)
    for text in texts:
        alice.chat(bob, text, cid=text)
    alice.wait(lambda c: len(c.of(CHAT_ACK)) == 600, 20, "600 answers")
    assert {ack["state"] for ack in alice.of(CHAT_ACK)} == {"stored"}
    bob.close()
    again = daemon.relogin(account)
    again.wait_texts(texts)


@pytest.mark.parametrize("victim", [0, 1], ids=["senders-worker", "receivers-worker"])
def test_kill_of_either_worker_loses_nothing_acknowledged(make_daemon, victim):
    daemon = make_daemon(confirm_timeout=1)
    alice, bob = daemon.online(slot=0), ack_online(daemon, 1)
    texts = ["m%d" % n for n in range(200)]
    holds_for(lambda: True, 1.0)
    for number, text in enumerate(texts):
        alice.chat(bob, text, cid=text)
        if number == 100:
            bob.wait(lambda c: c.count() >= 40, 5, "forty messages")
            bob.send(RECEIVED, n=40)
            daemon.kill_worker(victim)
            break
    (bob if victim else alice).wait_closed(clean=False)
    if victim:
        alice.wait(lambda c: len(c.of(CHAT_ACK)) >= 101, 15, "every message is answered")
    acked = [ack["cid"] for ack in alice.of(CHAT_ACK) if ack["errno"] == 0]
    if not bob.eof:
        bob.close()
    again = daemon.relogin(bob.account)
    seen = set(bob.texts()[:40])
    wait_until(lambda: not set(acked) - seen - set(again.texts()), 10, "acknowledged messages arrive")
    if victim:
        assert acked == texts[:101]


def test_resend_after_reconnection_shows_once(make_daemon):
    """The whole of a careful client's life across kills of both workers: each message once, in order."""
    daemon = make_daemon(confirm_timeout=1)
    a, b = daemon.account(), daemon.account()
    texts = ["m%d" % n for n in range(300)]
    open_, shown, had = list(texts), [], set()
    sender = receiver = None
    watch = Stopwatch()
    kills = iter([0, 1, 0, 1])
    while (open_ or len(shown) < len(texts)) and watch.seconds < 40 * SCALE:
        if sender is None or sender.eof:
            sender = daemon.relogin(a)
            for text in open_:
                sender.chat(b, text, cid=text)
        if receiver is None or receiver.eof:
            receiver = ack_relogin(daemon, b)
            taken = 0
        try:
            fresh = receiver.chats()[taken:]
            for chat in fresh:
                if chat["mid"] not in had:
                    had.add(chat["mid"])
                    shown.append(chat["msg"])
            if fresh:
                taken += len(fresh)
                receiver.send(RECEIVED, n=taken)
            done = {f["cid"] for f in sender.of(CHAT_ACK) if f["errno"] == 0}
            again = [f for f in sender.of(CHAT_ACK) if f["errno"] in (TOO_FAST, UNAVAILABLE)]
            open_ = [text for text in open_ if text not in done]
            if again and open_:
                sender.close()
                sender.eof = True
        except OSError:
            continue
        if len(shown) > 60 and (slot := next(kills, None)) is not None:
            try:
                daemon.kill_worker(slot)
            except KeyError:
                pass
    assert shown == texts and not open_


def ack_relogin(daemon, account):
    def attempt():
        client = daemon.connect()
        try:
            reply = client.request(LOGIN, id=account.id, password=account.password, ack=True)
            if reply["errno"] == 0:
                client.account, client.id = account, account.id
                return client
        except (OSError, Dropped):
            pass
        client.close()
        return None

    return wait_until(attempt, 10)


def test_group_message_to_an_ack_session(daemon):
    alice, bob = daemon.online(slot=0), ack_online(daemon, 1)
    group = daemon.group(alice)
    bob.ok(ADD_GROUP, groupid=group)
    ack = alice.group_chat_acked(group, "g1", cid="g1")
    assert ack["state"] == "stored"             # at its commit, whoever has confirmed
    bob.expect(GROUP_CHAT)
    bob.ok(LOGOUT)                              # never confirmed: it comes again
    assert [c["msg"] for c in bob.login(bob.account, ack=True)["offlinemsg"]] == ["g1"]
    bob.send(RECEIVED, n=2)
    bob.ok(LOGOUT)
    assert bob.login(bob.account, ack=True)["offlinemsg"] == []


def test_refused_message_holds_its_lane_until_it_comes_again(make_daemon):
    """After 7 or 9, further messages to the same recipient get 9 until the refused one came again."""
    daemon = make_daemon(rate_messages=20, confirm_timeout=1)
    alice = ack_online(daemon, 0)
    bob = daemon.account()
    for number in range(60):
        alice.chat(bob, "m%d" % number, cid="m%d" % number)
    alice.wait(lambda c: len(c.of(CHAT_ACK)) == 60, 20, "60 answers")
    answers = [alice_ack["errno"] for alice_ack in sorted(alice.of(CHAT_ACK), key=lambda f: int(f["cid"][1:]))]
    if all(e == 0 for e in answers):
        pytest.skip("the server throttles such a sender instead of refusing")
    first = next(n for n, e in enumerate(answers) if e)
    assert answers[first] in (TOO_FAST, UNAVAILABLE)
    assert all(e in (TOO_FAST, UNAVAILABLE) for e in answers[first:]), "a later message overtook a refused one"
    texts = ["m%d" % number for number in range(60)]
    done = set(texts[:first])
    for _ in range(200):
        todo = [t for t in texts if t not in done]
        if not todo:
            break
        for text in todo[:15]:
            ack = alice.chat_acked(bob, text, cid=text)
            if ack["errno"] == 0:
                done.add(text)
            else:
                assert ack["retry_ms"] >= 0
                holds_for(lambda: True, ack["retry_ms"] / 1000)
                break
    assert len(done) == 60
    daemon.relogin(bob).wait_texts(texts)


def test_server_pings_ack_sessions_only(make_daemon):
    daemon = make_daemon(ping_seconds=1)
    plain, confirming, answering = daemon.online(), ack_online(daemon), ack_online(daemon)
    for _ in range(2):
        ping = answering.expect(PING, 5)
        answering.send(PONG, **({"req": ping["req"]} if "req" in ping else {}))
    confirming.wait_closed(8, clean=False)      # it never answers
    assert confirming.of(PING) and not plain.of(PING)
    assert not answering.eof and not plain.eof


def test_drain_of_a_big_backlog_respects_the_window(daemon):
    alice, account = daemon.online(), daemon.account()
    texts = ["m%d" % n for n in range(700)]
    for text in texts:
        alice.chat(account, text, cid=text)
    alice.wait(lambda c: len(c.of(CHAT_ACK)) == 700, 30, "700 answers")
    bob = ack_login(daemon, account)
    confirmed = 0
    while confirmed < 700:
        have = confirmed
        bob.wait(lambda c: c.count() > have, 10, "more of the backlog")
        confirmed = bob.count()
        bob.send(RECEIVED, n=confirmed)
    assert bob.texts() == texts and numbers(bob) == list(range(1, 701))
    bob.ok(LOGOUT)
    assert bob.login(account, ack=True)["offlinemsg"] == []


def test_vanishing_half_way_through_a_backlog(daemon):
    """Confirmed ones do not come again, the others do, with the live ones behind them."""
    alice, account = daemon.online(), daemon.account()
    for number in range(100):
        alice.chat_acked(account, "m%d" % number)
    bob = ack_login(daemon, account)
    bob.wait(lambda c: c.count() >= 50, 5, "half of it")
    bob.send(RECEIVED, n=30)
    bob.ping()
    bob.abort()
    again = ack_relogin(daemon, account)
    alice.chat(account, "live")
    again.wait_texts(["m%d" % n for n in range(30, 100)] + ["live"])


def test_moving_to_another_worker_keeps_numbers_and_confirmations(make_daemon):
    daemon = make_daemon(workers=2, confirm_timeout=30)
    alice, bob = daemon.online(slot=0), ack_online(daemon, 1)
    for number in range(10):
        alice.chat(bob, "m%d" % number, cid="m%d" % number)
    bob.wait(lambda c: c.count() == 10, 5, "ten messages")
    daemon.ctl_ok("scale", 1)
    wait_until(lambda: len(daemon.workers) == 1, 5)
    for number in range(10, 20):
        alice.chat(bob, "m%d" % number, cid="m%d" % number)
    bob.wait_texts(["m%d" % n for n in range(20)])
    assert numbers(bob) == list(range(1, 21))
    bob.send(RECEIVED, n=20)
    for number in range(20):
        assert alice.expect(CHAT_ACK, cid="m%d" % number)["state"] == "delivered"
    assert not bob.eof
