"""The classic dialect: its numbers, its strings of JSON, its reads of 1,023 bytes; and both dialects together."""

import json

import pytest

from parleytest import *
from parleytest.daemon import unique
from parleytest.wire import NUMBER

ONE_CHAT_MEMBERS = {"msgid", "id", "name", "toid", "msg", "time"}
GROUP_CHAT_MEMBERS = {"msgid", "id", "name", "groupid", "msg", "time"}


def unpacked(strings):
    """The elements of a classic array, which are strings that hold JSON."""
    assert all(isinstance(text, str) for text in strings), strings
    return [json.loads(text) for text in strings]


def test_numbers_of_the_classic_dialect():
    """The table of the document, written out once more."""
    assert [NUMBER["classic"][k] for k in (LOGIN, LOGIN_ACK, LOGOUT, REG, REG_ACK, CHAT, ADD_FRIEND, CREATE_GROUP, ADD_GROUP, GROUP_CHAT)] == list(range(1, 11))
    assert [NUMBER["plain"][k] for k in (LOGIN, LOGIN_ACK, REG, REG_ACK, CHAT, ADD_FRIEND, CREATE_GROUP, ADD_GROUP, GROUP_CHAT, LOGOUT)] == list(range(1, 11))


def test_register_and_log_in(daemon):
    client = daemon.connect("classic")
    name = unique("old")
    client.send_raw(b'{"msgid":4,"name":"%s","password":"pw"}\0' % name.encode())
    reg = client.expect_next()
    assert reg["msgid"] == 5 and reg["errno"] == 0 and reg.end == b"\0"
    client.send_raw(b'{"msgid":1,"id":%d,"password":"pw"}\0' % reg["id"])
    ack = client.expect_next()
    assert (ack["msgid"], ack["errno"], ack["id"], ack["name"]) == (2, 0, reg["id"], name)
    assert ack["friends"] == [] and ack["groups"] == [] and ack["offlinemsg"] == []
    client.send_raw(b'{"msgid":4,"name":"%s","password":"pw"}\0' % name.encode())
    assert client.expect(REG_ACK)["errno"] == REFUSED
    bad = daemon.connect("classic")
    bad.send_raw(b'{"msgid":1,"id":%d,"password":"no"}\0' % reg["id"])
    refused = bad.expect(LOGIN_ACK)
    assert refused["errno"] == REFUSED and refused["errmsg"]
    bad.send_raw(b'{"msgid":1,"id":%d,"password":"pw"}\0' % reg["id"])
    assert bad.expect(LOGIN_ACK)["errno"] == ELSEWHERE


def test_arrays_hold_strings_of_json(daemon):
    alice, bob = daemon.online(), daemon.account("bob")
    classic = daemon.account("classic")
    client = daemon.connect("classic")
    client.login(classic)
    client.send(ADD_FRIEND, id=classic.id, friendid=alice.id)
    client.send(ADD_FRIEND, id=classic.id, friendid=bob.id)
    client.send(CREATE_GROUP, id=classic.id, groupname=unique("cg"), groupdesc="desc")
    client.ping()
    client.send(LOGOUT, id=classic.id)
    group = alice.ok(ADD_GROUP, groupid=wait_until(lambda: group_of(daemon, classic), 3))["group"]["id"]
    alice.chat_acked(classic, "waiting", cid="c", color="red")
    again = daemon.connect("classic")
    ack = again.login(classic)
    friends = unpacked(ack["friends"])
    assert friends == [{"id": alice.id, "name": alice.name, "state": "online"}, {"id": bob.id, "name": bob.name, "state": "offline"}]
    (one,) = unpacked(ack["groups"])
    assert {"id", "groupname", "groupdesc", "users"} <= one.keys() and (one["id"], one["groupdesc"]) == (group, "desc")
    users = unpacked(one["users"])
    assert sorted((u["id"], u["role"]) for u in users) == sorted([(classic.id, "creator"), (alice.id, "normal")])
    assert all(set(u) == {"id", "name", "state", "role"} for u in users)
    (message,) = unpacked(ack["offlinemsg"])
    assert set(message) == ONE_CHAT_MEMBERS
    assert (message["msgid"], message["id"], message["toid"], message["msg"]) == (6, alice.id, classic.id, "waiting")
    assert "token" not in ack


def group_of(daemon, account):
    """The id of the group that a classic user made: it is told with the next login only."""
    with daemon.connect("classic") as client:
        reply = client.request(LOGIN, id=account.id, password=account.password)
        if reply["errno"] != 0:
            return None
        groups = unpacked(reply["groups"])
        client.send(LOGOUT, id=account.id)
        client.ping()
        daemon.clients.remove(client)
        return groups[0]["id"] if groups else None


def test_chat_between_the_dialects(daemon):
    plain = daemon.online(slot=0)
    classic = daemon.online(slot=1, dialect="classic")
    plain.chat(classic, "to the old one", cid="x", color="red", toid=5)
    chat = classic.expect(CHAT)
    assert chat["msgid"] == 6 and set(chat) == ONE_CHAT_MEMBERS
    assert (chat["id"], chat["name"], chat["toid"], chat["msg"]) == (plain.id, plain.name, classic.id, "to the old one")
    assert plain.expect(CHAT_ACK, cid="x")["state"] == "delivered"
    classic.send_raw(dump({"msgid": 6, "id": classic.id, "name": classic.name, "toid": plain.id, "msg": "to the new one",
                           "time": "2026-01-01 00:00:00", "mood": "fine"}) + b"\0")
    chat = plain.expect(CHAT)
    assert (chat["msgid"], chat["id"], chat["name"], chat["to"], chat["msg"], chat["time"]) == (
        5, classic.id, classic.name, plain.id, "to the new one", "2026-01-01 00:00:00")
    assert chat["mood"] == "fine" and chat["mid"] and "toid" not in chat


@pytest.mark.parametrize("sender,receiver", [("plain", "classic"), ("classic", "plain"), ("classic", "classic")])
def test_stored_messages_are_dialect_free(daemon, sender, receiver):
    first, account = daemon.online(dialect=sender), daemon.account()
    first.chat(account, "stored")
    first.ping()
    client = daemon.relogin(account, dialect=receiver)
    client.wait(lambda c: c.count(CHAT) == 1, 5, "the message")
    chat = client.chats()[0]
    if receiver == "classic":
        assert (chat["msgid"], chat["toid"]) == (6, account.id) and set(chat) == ONE_CHAT_MEMBERS
    else:
        assert (chat["msgid"], chat["to"]) == (5, account.id) and chat["mid"]


def test_group_of_both_dialects(daemon):
    alice, bob = daemon.online(slot=0), daemon.online(slot=1)
    old = daemon.online(slot=0, dialect="classic")
    group = daemon.group(alice)
    bob.ok(ADD_GROUP, groupid=group)
    old.send(ADD_GROUP, id=old.id, groupid=group)
    old.ping()
    wait_until(lambda: alice.ok(GROUP_LIST, groupid=group)["groups"][0]["members"] == 3, 3)
    alice.group_chat(group, "from plain", cid="g", extra=1)
    chat = old.expect(GROUP_CHAT)
    assert chat["msgid"] == 10 and set(chat) == GROUP_CHAT_MEMBERS and chat["msg"] == "from plain"
    bob.expect(GROUP_CHAT, msg="from plain")
    old.send(GROUP_CHAT, id=old.id, name=old.name, groupid=group, msg="from classic", time="t")
    for member in (alice, bob):
        chat = member.expect(GROUP_CHAT, msg="from classic")
        assert chat["msgid"] == 9 and chat["groupid"] == group and chat["id"] == old.id
    old.ping()
    assert old.texts() == ["from plain"]


def test_nothing_above_10_unasked(daemon):
    """No acknowledgement, PRESENCE, ERROR or SESSION_END: what is refused is refused in silence."""
    old = daemon.online(dialect="classic")
    friend = daemon.account()
    old.send(ADD_FRIEND, id=old.id, friendid=friend.id)
    old.send(ADD_FRIEND, id=old.id, friendid=friend.id)
    old.send(ADD_FRIEND, id=old.id, friendid=2 ** 31 - 1)
    old.send(ADD_FRIEND, id=old.id)
    old.send(CREATE_GROUP, id=old.id, groupname=unique("g"), groupdesc="d")
    old.send(CREATE_GROUP, id=old.id, groupname="", groupdesc="d")
    old.send(ADD_GROUP, id=old.id, groupid=2 ** 31 - 1)
    old.chat(2 ** 31 - 1, "nobody")
    old.chat(old.id, "me", cid="with cid")
    old.group_chat(2 ** 31 - 1, "nobody")
    old.send(GROUP_CHAT, id=old.id)
    old.send(999)
    old.send_raw(b"{}\0")
    with daemon.login(friend):
        old.ping()
    assert [f.kind for f in old.frames] == [LOGIN_ACK, CHAT, PONG]
    old.send(LOGOUT, id=old.id)
    old.send(LOGOUT, id=old.id)
    old.ping()
    old.login(old.account)


def test_replies_to_requests_above_10(daemon):
    old, other = daemon.online(dialect="classic"), daemon.online()
    old.send(ADD_FRIEND, id=old.id, friendid=other.id)
    old.send(FRIEND_LIST)
    reply = old.expect(FRIEND_LIST_ACK)
    assert reply["errno"] == 0 and unpacked(reply["friends"]) == [{"id": other.id, "name": other.name, "state": "online"}]
    old.send(DEL_FRIEND, friendid=other.id)
    assert old.expect(DEL_FRIEND_ACK)["errno"] == 0
    old.send(DEL_GROUP, groupid=2 ** 31 - 1)
    assert old.expect(DEL_GROUP_ACK)["errno"] == NO_SUCH
    old.send(GROUP_LIST)
    assert old.expect(GROUP_LIST_ACK)["groups"] == []


@pytest.mark.parametrize("junk", [b"\0nonsense", b'{"msgid":1,}', b'{"msgid":6,"msg":"\xff"}'], ids=repr)
def test_no_error_frame_even_for_junk(daemon, junk):
    """The connection is closed all the same."""
    old = daemon.online(dialect="classic")
    old.send_raw(junk)
    old.wait_closed()
    assert [f.kind for f in old.frames] == [LOGIN_ACK]


def test_login_ack_within_1000_bytes_and_alone_then_one_message_a_write(daemon):
    alice, old = daemon.online(), daemon.account("old")
    texts = ["%02d " % number + "x" * 150 for number in range(20)]
    for text in texts:
        assert alice.chat_acked(old, text)["errno"] == 0
    client = daemon.connect("classic")
    ack = client.login(old)
    client.wait_texts(texts, 10)
    assert len(ack.raw) <= 1000
    assert 1 <= len(ack["offlinemsg"]) < 20
    assert len(ack["offlinemsg"]) >= 2, "as much as fits: two such messages do"
    chats = client.of(CHAT)
    assert len({frame.chunk for frame in [ack] + chats}) == 1 + len(chats), "two frames in one write"
    for chunk in {frame.chunk for frame in [ack] + chats}:
        assert len(client.chunks[chunk][1]) <= 1023 and client.chunks[chunk][1].count(b"\0") == 1
    times = [frame.at for frame in [ack] + chats]
    gaps = [later - earlier for earlier, later in zip(times, times[1:])]
    assert min(gaps) > 0.012 and sum(gaps) / len(gaps) > 0.022, gaps
    client.send(LOGOUT, id=old.id)
    client.ping()
    again = daemon.relogin(old)
    assert again.ack["offlinemsg"] == []


def test_login_ack_takes_messages_before_groups_before_friends(daemon):
    old = daemon.account("old")
    with daemon.login(old) as client:
        for friend in daemon.accounts(60, "somebody-with-a-long-name"):
            client.ok(ADD_FRIEND, friendid=friend.id)
        for _ in range(3):
            daemon.group(client, "g")
        client.ok(LOGOUT)
    ack = daemon.login(old, dialect="classic").ack
    assert len(ack.raw) <= 1000
    assert len(ack["groups"]) == 3 and 0 < len(ack["friends"]) < 60
    assert len(ack.raw) > 850, "as much as fits"


def test_a_single_message_longer_than_1000_bytes_still_arrives(daemon):
    alice, old = daemon.online(), daemon.account("old")
    texts = ["a" * 3000, "short", "b" * 1200]
    for text in texts:
        alice.chat_acked(old, text)
    client = daemon.connect("classic")
    assert len(client.login(old).raw) <= 1000
    client.wait_texts(texts)


def test_live_messages_come_after_the_offline_ones(daemon):
    alice, old = daemon.online(slot=0), daemon.account("old")
    texts = ["%02d " % number + "x" * 300 for number in range(10)]
    for text in texts:
        alice.chat_acked(old, text)
    client = daemon.connect_on(1, dialect="classic")
    client.login(old)
    live = ["live %d" % number for number in range(20)]
    for text in live:
        alice.chat(old, text)
    client.wait_texts(texts + live)
    client.ping()                       # replies are not held up for ever


def test_vanishing_during_the_slow_drain_keeps_the_rest(daemon):
    alice, old = daemon.online(), daemon.account("old")
    texts = ["%02d " % number + "x" * 300 for number in range(12)]
    for text in texts:
        alice.chat_acked(old, text)
    client = daemon.connect("classic")
    client.login(old)
    client.wait(lambda c: c.count() >= 5, 5, "five messages")
    client.shutdown()
    client.wait_closed()
    got = client.texts()
    assert len(got) < 12
    again = daemon.relogin(old)
    again.wait(lambda c: len(got) + c.count() >= 12, 5, "the rest")
    assert got + again.texts() == texts


def test_live_messages_are_batched(daemon):
    """Many live messages need fewer writes than messages."""
    alice, old = daemon.online(slot=0), daemon.online(slot=1, dialect="classic")
    alice.send_raw(b"".join(alice.frame(CHAT, to=old.id, msg="m%d" % n) for n in range(200)))
    old.wait_texts(["m%d" % n for n in range(200)])
    assert len({frame.chunk for frame in old.of(CHAT)}) < 100


def test_undelimited_classic_client(daemon):
    """The original ends its requests with a NUL or with nothing at all."""
    account = daemon.account()
    client = daemon.connect("classic", end=b"")
    ack = client.login(account)
    assert ack.end == b"\0"
    client.chat(account, "a")
    client.chat(account, "b")
    client.wait_texts(["a", "b"])


def test_classic_sessions_end_without_a_word(make_daemon):
    daemon = make_daemon(duplicate_login="replace", idle_seconds=0)
    old = daemon.online(dialect="classic")
    daemon.login(old.account)
    old.wait_closed()
    other = daemon.online(dialect="classic")
    daemon.ctl_ok("kick", other.name)
    other.wait_closed()
    third = daemon.online(dialect="classic")
    daemon.stop()
    assert not third.of(SESSION_END)


def test_plain_numbers_mean_other_things_on_a_classic_listener(daemon):
    """LOGINOUT is 3 here, which is REG on a plain listener."""
    old = daemon.online(dialect="classic")
    old.send_raw(b'{"msgid":3,"id":%d}\0' % old.id)
    old.ping()
    assert daemon.relogin(old.account)
