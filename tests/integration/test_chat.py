"""Chat between two people: what is carried, by name, to oneself, CHAT_ACK."""

import re

import pytest

from parleytest import *


def test_unknown_members_are_carried_through_unchanged(daemon):
    alice, bob = daemon.online(slot=0), daemon.online(slot=1)
    extra = {"color": "#ff0000", "n1": 12345678901234567890, "f": 1.5, "list": [1, [2, {"a": None}], True],
             "object": {"x": "\u00e9\U0001f600", "": ""}, "empty": [], "flag": False, "reply-to": "abc", "toID": 5}
    alice.chat(bob, "x", **extra)
    chat = bob.expect(CHAT)
    for name, value in extra.items():
        assert chat[name] == value, name
    ack = alice.chat_acked(daemon.account(), "y", **extra)
    assert ack["errno"] == 0


def test_carried_members_survive_the_store(daemon):
    alice, bob = daemon.online(), daemon.account()
    extra = {"color": "red", "deep": {"a": [1, {"b": "\"\\\n"}]}, "big": 12345678901234567890}
    alice.chat_acked(bob, "x", cid="carried", **extra)
    chat = daemon.login(bob).ack["offlinemsg"][0]
    for name, value in extra.items():
        assert chat[name] == value
    assert chat["cid"] == "carried"


def test_what_is_never_carried(daemon):
    """`msgid id name to toid groupid msg time ts mid n cid req` mean what they mean, or nothing."""
    alice, bob = daemon.online(), daemon.online()
    alice.chat(bob, "x", groupid=77, toid=78, ts=1, mid="m", n=5, req="r")
    chat = bob.expect(CHAT)
    assert not {"groupid", "toid", "n", "req", "cid"} & chat.keys()
    assert chat["mid"] != "m" and chat["ts"] != 1
    group = daemon.group(alice)
    bob.ok(ADD_GROUP, groupid=group)
    alice.group_chat(group, "y", to=1, toid=2, n=5, req="r")
    chat = bob.expect(GROUP_CHAT)
    assert not {"to", "toid", "n", "req", "cid"} & chat.keys()


def test_recipient_by_name(daemon):
    alice, bob = daemon.online(), daemon.online("Bob")
    for name in (bob.name, bob.name.upper(), bob.name.lower()):
        alice.chat(name, "by name")
        assert bob.expect(CHAT)["to"] == bob.id
    carol = daemon.account()
    alice.chat(carol.name, "later")
    alice.ping()
    client = daemon.relogin(carol)
    client.wait_texts(["later"])
    assert client.chats()[0]["to"] == carol.id


def test_friend_and_group_by_name(daemon):
    alice, bob = daemon.online(), daemon.online()
    assert alice.ok(ADD_FRIEND, friendid=bob.name.upper())["friend"]["id"] == bob.id
    alice.ok(DEL_FRIEND, friendid=bob.name)
    group = daemon.group(alice, "By Name")
    name = alice.ok(GROUP_LIST)["groups"][0]["groupname"]
    assert bob.ok(ADD_GROUP, groupid=name.lower())["group"]["id"] == group
    bob.group_chat(name.upper(), "hi")
    assert alice.expect(GROUP_CHAT)["groupid"] == group
    assert bob.ok(GROUP_LIST, groupid=name)["groups"][0]["id"] == group
    bob.ok(DEL_GROUP, groupid=name)


def test_name_made_of_digits_is_a_name(daemon):
    """A string in `to` is a name even where it looks like an id."""
    alice, bob = daemon.online(), daemon.online()
    alice.chat(str(bob.id), "x", req="r")
    assert alice.expect(ERROR, req="r")["errno"] == NO_SUCH
    bob.ping()
    assert not bob.of(CHAT)


def test_message_to_oneself_is_delivered(daemon):
    alice = daemon.online()
    alice.chat(alice, "note")
    chat = alice.expect(CHAT)
    assert (chat["id"], chat["to"], chat["msg"]) == (alice.id, alice.id, "note")


def test_success_without_cid_is_silent(daemon):
    alice, bob = daemon.online(slot=0), daemon.online(slot=1)
    alice.chat(bob, "quiet")
    alice.chat(daemon.account(), "quiet, stored", req="r")
    bob.expect(CHAT)
    alice.ping()
    assert [f.kind for f in alice.frames] == [LOGIN_ACK, PONG]


@pytest.mark.parametrize("slot", [0, 1])
def test_chat_ack_delivered_and_stored(daemon, slot):
    alice, bob = daemon.online(slot=0), daemon.online(slot=slot)
    ack = alice.chat_acked(bob, "x", cid="one")
    assert (ack["errno"], ack["cid"], ack["state"]) == (0, "one", "delivered")
    chat = bob.expect(CHAT)
    assert chat["cid"] == "one" and chat["mid"] == ack["mid"]
    bob.ok(LOGOUT)
    ack = alice.chat_acked(bob, "y", cid="two", req="echoed")
    assert (ack["errno"], ack["cid"], ack["state"], ack["req"]) == (0, "two", "stored", "echoed")
    later = bob.login(bob.account)["offlinemsg"]
    assert [(c["msg"], c["cid"], c["mid"]) for c in later] == [("y", "two", ack["mid"])]


def test_mid_names_a_message_for_good(daemon):
    """With a cid: the hex of a 128-bit hash of sender and cid; without one never repeated."""
    alice, bob, carol = daemon.online(), daemon.online(), daemon.online()
    first = alice.chat_acked(carol, "x", cid="same")["mid"]
    again = alice.chat_acked(carol, "x", cid="same")["mid"]
    other = bob.chat_acked(carol, "x", cid="same")["mid"]
    third = alice.chat_acked(carol, "x", cid="other")["mid"]
    assert first == again and len({first, other, third}) == 3
    assert all(re.fullmatch(r"[0-9a-f]{32}", mid) for mid in (first, other, third))
    for _ in range(50):
        alice.chat(carol, "no cid")
    alice.ping()
    carol.wait(lambda c: len([f for f in c.of(CHAT) if "cid" not in f]) == 50, 5, "50 messages")
    mids = [f["mid"] for f in carol.of(CHAT) if "cid" not in f]
    assert len(set(mids)) == 50


def test_resent_cid_is_stored_once(daemon):
    """The store holds a `mid` once a recipient."""
    alice, bob = daemon.online(), daemon.account()
    acks = [alice.chat_acked(bob, "x", cid="again") for _ in range(3)]
    assert all(ack["errno"] == 0 and ack["state"] == "stored" for ack in acks)
    assert daemon.login(bob).texts() == ["x"]


def test_delivered_messages_are_not_stored_too(daemon):
    alice, bob = daemon.online(), daemon.online()
    alice.chat_acked(bob, "seen")
    bob.expect(CHAT)
    bob.ok(LOGOUT)
    assert bob.login(bob.account)["offlinemsg"] == []


@pytest.mark.parametrize("count", [2000])
def test_order_from_many_senders(daemon, count):
    receiver = daemon.online(slot=1)
    senders = [daemon.online(slot=place % 2) for place in range(4)]
    for start in range(0, count, 100):
        for sender in senders:
            sender.send_raw(b"".join(sender.frame(CHAT, to=receiver.id, msg="%d/%d" % (sender.id, n))
                                     for n in range(start, start + 100)))
    receiver.wait(lambda c: c.count(CHAT) == 4 * count, 30, "all messages")
    texts = receiver.texts()
    for sender in senders:
        assert [t for t in texts if t.startswith("%d/" % sender.id)] == ["%d/%d" % (sender.id, n) for n in range(count)]
