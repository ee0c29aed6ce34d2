"""Registration, login, log-out, tokens, and who may be online where."""

import pytest

from parleytest import *
from parleytest.daemon import Account, unique
from parleytest.netns import Namespace


def test_register_and_log_in_by_id_and_by_name(daemon):
    client = daemon.connect()
    name = unique("anna")
    reg = client.ok(REG, name=name, password="s3cret \u00e9")
    assert type(reg["id"]) is int and 0 < reg["id"] < 2 ** 31
    ack = client.ok(LOGIN, id=reg["id"], password="s3cret \u00e9")
    assert (ack["id"], ack["name"]) == (reg["id"], name)
    assert ack["friends"] == [] and ack["groups"] == [] and ack["offlinemsg"] == []
    assert isinstance(ack["token"], str) and ack["token"]
    client.ok(LOGOUT, id=reg["id"])
    ack = client.ok(LOGIN, name=name, password="s3cret \u00e9")
    assert ack["id"] == reg["id"]


def test_ids_differ(daemon):
    ids = [account.id for account in daemon.accounts(20)]
    assert len(set(ids)) == 20


@pytest.mark.parametrize("change", ["password", "id", "name", "case"])
def test_wrong_id_or_password_is_errno_1(daemon, change):
    account = daemon.account()
    client = daemon.connect()
    if change == "password":
        client.refused(LOGIN, REFUSED, id=account.id, password=account.password + "x")
    elif change == "case":
        client.refused(LOGIN, REFUSED, id=account.id, password=account.password.upper())
    elif change == "id":
        client.refused(LOGIN, REFUSED, id=2 ** 31 - 1, password=account.password)
    else:
        client.refused(LOGIN, REFUSED, name="nobody of that name", password=account.password)
    client.login(account)       # the connection is still good for another try


def test_wrong_and_unknown_are_not_told_apart(daemon):
    account, client = daemon.account(), daemon.connect()
    wrong = client.refused(LOGIN, REFUSED, id=account.id, password="wrong")
    unknown = client.refused(LOGIN, REFUSED, id=2 ** 31 - 1, password="wrong")
    assert wrong["errmsg"] == unknown["errmsg"]


def test_passwords_are_compared_to_the_last_byte(daemon):
    account = daemon.account(password="x" * 127 + "a")
    daemon.connect().refused(LOGIN, REFUSED, id=account.id, password="x" * 127 + "b")
    daemon.connect().refused(LOGIN, REFUSED, id=account.id, password="x" * 127)
    daemon.login(account)


def test_token_login(daemon):
    client = daemon.online()
    token, account = client.ack["token"], client.account
    client.ok(LOGOUT)
    ack = client.ok(LOGIN, id=account.id, token=token)
    assert ack["id"] == account.id and ack["token"]
    client.ok(LOGOUT)
    with daemon.connect() as other:
        other.ok(LOGIN, name=account.name, token=token)
    other = daemon.connect()
    second = daemon.account()
    other.refused(LOGIN, REFUSED, id=second.id, token=token)
    other.refused(LOGIN, REFUSED, id=account.id, token=token[:-1] + ("A" if token[-1] != "A" else "B"))
    other.refused(LOGIN, REFUSED, id=account.id, token="")
    other.refused(LOGIN, REFUSED, id=account.id, token="x" * 300)


def test_every_changed_byte_spoils_a_token(daemon):
    account = daemon.account()
    with daemon.login(account) as client:
        token = client.ack["token"]
        client.ok(LOGOUT)
    client = daemon.connect()
    for place in range(len(token)):
        other = token[:place] + ("0" if token[place] != "0" else "1") + token[place + 1:]
        reply = client.request(LOGIN, id=account.id, token=other)
        assert reply["errno"] == REFUSED, (place, reply)


def test_token_survives_a_restart(make_daemon):
    daemon = make_daemon()
    client = daemon.online()
    account, token = client.account, client.ack["token"]
    daemon.stop()
    daemon.start()
    daemon.connect().ok(LOGIN, id=account.id, token=token)


def test_new_password_ends_the_tokens(make_daemon):
    daemon = make_daemon()
    client = daemon.online()
    account, token = client.account, client.ack["token"]
    client.ok(LOGOUT)
    daemon.ctl_ok("user", "passwd", account.name, input="another-word\n")
    client.refused(LOGIN, REFUSED, id=account.id, token=token)
    client.refused(LOGIN, REFUSED, id=account.id, password=account.password)
    client.ok(LOGIN, id=account.id, password="another-word")


def test_what_follows_a_login_in_the_same_packet_waits_for_it(daemon):
    alice, bob = daemon.account(), daemon.online()
    client = daemon.connect()
    client.send_raw(client.frame(PING, req="0") + client.frame(LOGIN, id=alice.id, password=alice.password, req="1") +
                    client.frame(CHAT, to=bob.id, msg="at once") + client.frame(FRIEND_LIST, req="2") +
                    client.frame(LOGOUT, req="3") + client.frame(CHAT, to=bob.id, msg="too late", req="4") +
                    client.frame(PING, req="5"))
    client.expect(PONG, req="5")
    got = [(f.kind, f.get("req"), f.get("errno")) for f in client.frames]
    assert got == [(PONG, "0", None), (LOGIN_ACK, "1", 0), (FRIEND_LIST_ACK, "2", 0), (LOGOUT_ACK, "3", 0),
                   (ERROR, "4", NOT_LOGGED_IN), (PONG, "5", None)]
    bob.wait_texts(["at once"])


def test_what_follows_a_failed_login_in_the_same_packet(daemon):
    alice, client = daemon.account(), daemon.connect()
    client.send_raw(client.frame(LOGIN, id=alice.id, password="wrong", req="1") + client.frame(FRIEND_LIST, req="2") +
                    client.frame(LOGIN, id=alice.id, password=alice.password, req="3") + client.frame(FRIEND_LIST, req="4"))
    client.expect(FRIEND_LIST_ACK, req="4")
    assert [f["errno"] for f in client.frames] == [REFUSED, NOT_LOGGED_IN, 0, 0]


def test_register_and_log_in_in_one_packet(daemon):
    client, name = daemon.connect(), unique("quick")
    client.send_raw(client.frame(REG, name=name, password="p", req="1") + client.frame(LOGIN, name=name, password="p", req="2") +
                    client.frame(CHAT, to=name, msg="me"))
    client.expect(LOGIN_ACK, req="2", errno=0)
    assert client.expect(CHAT)["to"] == client.of(REG_ACK)[0]["id"]


def test_many_logins_in_one_packet_log_in_once(daemon):
    alice, client = daemon.account(), daemon.connect()
    client.send_raw(client.frame(LOGIN, id=alice.id, password=alice.password) * 20 + client.frame(PING, req="end"))
    client.expect(PONG, req="end", deadline=10)
    assert [f["errno"] for f in client.of(LOGIN_ACK)] == [0] + [NOT_ALLOWED] * 19


def test_logout_leaves_the_connection_for_another_login(daemon):
    alice, bob = daemon.account(), daemon.account()
    client = daemon.login(alice)
    assert client.ok(LOGOUT, id=alice.id)["errno"] == 0
    client.refused(FRIEND_LIST, NOT_LOGGED_IN)
    client.refused(LOGOUT, NOT_LOGGED_IN)
    client.login(bob)
    client.chat(bob, "to myself")
    assert client.expect(CHAT)["id"] == bob.id
    daemon.login(alice)


@pytest.mark.parametrize("slot", [0, 1])
def test_second_login_is_refused_only_after_the_password_was_right(daemon, slot):
    first = daemon.online(slot=0)
    second = daemon.connect_on(slot)
    second.refused(LOGIN, REFUSED, id=first.id, password="wrong")
    second.refused(LOGIN, ELSEWHERE, id=first.id, password=first.account.password)
    second.refused(LOGIN, ELSEWHERE, id=first.id, token=first.ack["token"])
    first.ok(FRIEND_LIST)                                   # and the first one notices nothing
    first.ok(LOGOUT)
    second.login(first.account)                             # at once after LOGINOUT_ACK


@pytest.mark.parametrize("slot", [0, 1])
def test_closing_frees_the_user(daemon, slot):
    for end in ("close", "abort", "shutdown"):
        first = daemon.online(slot=0)
        getattr(first, end)()
        daemon.relogin(first.account, deadline=2).close()


def test_two_logins_at_once_let_in_one(daemon):
    """However they race on two workers, the user is bound once."""
    for _ in range(10):
        account = daemon.account()
        pair = [daemon.connect_on(slot) for slot in (0, 1)]
        for client in pair:
            client.send(LOGIN, id=account.id, password=account.password, req="race")
        errnos = sorted(client.expect(LOGIN_ACK, req="race")["errno"] for client in pair)
        assert errnos == [0, ELSEWHERE]
        for client in pair:
            client.close()


class TestReplace:
    @pytest.fixture
    def daemon(self, make_daemon):
        return make_daemon(duplicate_login="replace")

    @pytest.mark.parametrize("slots", [(0, 0), (0, 1)], ids=["same-worker", "across-workers"])
    def test_the_newer_session_wins(self, daemon, slots):
        friend = daemon.online()
        first = daemon.online(slot=slots[0])
        second = daemon.connect_on(slots[1])
        second.refused(LOGIN, REFUSED, id=first.id, password="wrong")
        second.login(first.account)
        assert first.expect(SESSION_END)["reason"] == "replaced"
        first.wait_closed()
        friend.chat(first.account, "to the new one")
        second.wait_texts(["to the new one"])
        assert not first.of(CHAT)

    def test_no_message_is_lost_or_reordered_by_replacing(self, daemon):
        friend = daemon.online(slot=0)
        account = daemon.account()
        sessions = [daemon.login(account, slot=1)]
        for number in range(300):
            friend.chat(account, "m%d" % number)
            if number % 60 == 59:
                sessions.append(daemon.login(account, slot=number // 60 % 2))
        friend.ping()
        wait_until(lambda: sum(s.count() for s in sessions) >= 300, 10, "all messages arrived")
        texts = [text for session in sessions for text in session.texts()]
        assert texts == ["m%d" % n for n in range(300)]


def test_password_min(make_daemon):
    daemon = make_daemon(password_min=8)
    client = daemon.connect()
    reply = client.refused(REG, MALFORMED, name="shorty", password="1234567")
    assert "8" in reply["errmsg"]
    client.ok(REG, name="shorty", password="12345678")


def test_who_does_not_log_in_is_disconnected(make_daemon):
    daemon = make_daemon(login_seconds=1)
    silent, talking, member = daemon.connect(), daemon.connect(), daemon.online()
    watch = Stopwatch()
    talking.send_raw(b'{"msgid":25}')
    silent.wait_closed(4)
    assert 0.5 < watch.seconds
    talking.wait_closed(4)                                   # PING is no login
    holds_for(lambda: not member.eof, 1.0, "a logged-in session was ended")
    member.ping()
    member.ok(LOGOUT)
    member.wait_closed(4)                                    # logged out counts from there


def test_idle_sessions_are_ended(make_daemon):
    daemon = make_daemon(idle_seconds=1)
    idle, busy = daemon.online(), daemon.online()
    watch = Stopwatch()

    def keep_busy():
        busy.ping()
        return idle.of(SESSION_END)

    end = wait_until(keep_busy, 5, "the idle session is told", step=0.1)
    assert watch.seconds > 0.7
    assert end[0]["reason"] == "idle"
    idle.wait_closed()
    assert not busy.eof
    daemon.login(idle.account)


def test_rate_logins_exempts_loopback(make_daemon):
    daemon = make_daemon(rate_logins=5)
    client = daemon.connect()
    for _ in range(20):
        client.refused(LOGIN, REFUSED, id=1, password="wrong")


@Namespace.needed
def test_rate_logins_by_address_for_the_host():
    """Password attempts and registrations a minute an address, counted over all workers."""
    with Namespace() as ns, ns.daemon(rate_logins=6) as daemon:
        clients = [ns.connect(daemon, ns.outer) for _ in range(4)]
        replies = []
        for number in range(12):
            client = clients[number % 4]
            if number % 2:
                replies.append(client.request(LOGIN, id=1, password="wrong"))
            else:
                replies.append(client.request(REG, name="rate-%d" % number, password="x"))
        slow = [r for r in replies if r["errno"] == TOO_FAST]
        assert 5 <= len(replies) - len(slow) <= 8, replies
        assert all(r["retry_ms"] > 0 for r in slow)
        assert all(r["errno"] == TOO_FAST for r in replies[8:])
        ns.connect(daemon, ns.other).refused(LOGIN, REFUSED, id=1, password="wrong")     # another address
        with ns.connect(daemon, ns.outer) as client:
            client.ping()                                                                 # others go on


@pytest.mark.timed
def test_busy_hashing_answers_and_never_blocks_the_loop(make_daemon):
    """Passwords cost 50 ms here; everybody else is served meanwhile."""
    daemon = make_daemon(hash_memory=32768, hash_passes=3, hash_threads=1)
    account, busy = daemon.account(), daemon.online()
    storm = [daemon.connect() for _ in range(20)]
    for client in storm:
        client.send(LOGIN, id=account.id, password="wrong", req="s")
    slowest = 0
    while not all(c.of(LOGIN_ACK) for c in storm[:5]):
        watch = Stopwatch()
        busy.ping(5)
        slowest = max(slowest, watch.seconds)
    assert slowest < 0.1 * SCALE
    for client in storm:
        assert client.expect(LOGIN_ACK, 20)["errno"] in (REFUSED, TOO_FAST)


def test_unix_listener_needs_no_password_rate_either(daemon):
    client = daemon.connect(address=daemon.unix)
    account = Account(client.ok(REG, name=unique("unix"), password="p")["id"], None, "p")
    client.login(account)
