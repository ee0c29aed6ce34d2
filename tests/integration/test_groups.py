"""Groups: roles, leaving and dissolving, long lists by pages, messages stored once."""

import sqlite3

import pytest

from parleytest import *
from parleytest.daemon import unique


def joined(daemon, count, slots=(0, 1), **kw):
    """A group, its creator and COUNT further members, all online over the workers."""
    people = [daemon.online(slot=slots[place % len(slots)], **kw) for place in range(count + 1)]
    group = daemon.group(people[0])
    for member in people[1:]:
        member.ok(ADD_GROUP, groupid=group)
    return group, people


def test_create_and_list(daemon):
    alice = daemon.online()
    name = unique("Group")
    group = alice.ok(CREATE_GROUP, groupname=name, groupdesc="what for \u00e9")["groupid"]
    listed = alice.ok(GROUP_LIST)["groups"]
    assert listed == [{"id": group, "groupname": name, "groupdesc": "what for \u00e9", "members": 1, "users": [
        {"id": alice.id, "name": alice.name, "state": "online", "role": "creator"}]}]
    alice.ok(LOGOUT)
    assert alice.login(alice.account)["groups"] == listed


def test_roles_and_states(daemon):
    group, (alice, bob, carol) = joined(daemon, 2)
    carol.ok(LOGOUT)
    users = {u["id"]: u for u in bob.ok(GROUP_LIST, groupid=group)["groups"][0]["users"]}
    assert users[alice.id]["role"] == "creator" and users[alice.id]["state"] == "online"
    assert users[bob.id]["role"] == "normal" and users[bob.id]["state"] == "online"
    assert users[carol.id]["role"] == "normal"
    assert wait_until(lambda: {u["id"]: u["state"] for u in bob.ok(GROUP_LIST, groupid=group)["groups"][0]["users"]}
                      == {alice.id: "online", bob.id: "online", carol.id: "offline"}, 5)


def test_message_to_all_members_but_the_sender(daemon):
    group, people = joined(daemon, 5)
    outsider = daemon.online()
    for sender in people:
        sender.group_chat(group, "from %d" % sender.id)
        for member in people:
            if member is not sender:
                member.expect(GROUP_CHAT, msg="from %d" % sender.id, groupid=group, id=sender.id)
    for member in people + [outsider]:
        member.ping()
        assert "from %d" % member.id not in member.texts()
    assert not outsider.of(GROUP_CHAT)


def test_chat_ack_of_a_group_message_is_always_stored(daemon):
    group, (alice, bob) = joined(daemon, 1)
    ack = alice.group_chat_acked(group, "x", cid="g1")
    assert (ack["errno"], ack["state"]) == (0, "stored") and ack["mid"]
    chat = bob.expect(GROUP_CHAT)
    assert chat["mid"] == ack["mid"] and chat["cid"] == "g1"


def test_all_members_see_one_order(daemon):
    group, people = joined(daemon, 5)
    for number in range(40):
        for sender in people:
            sender.group_chat(group, "%d:%d" % (sender.id, number))
    for member in people:
        member.wait(lambda c: c.count(GROUP_CHAT) == 200, 20, "200 messages")
    for sender in people:
        own = ["%d:%d" % (sender.id, number) for number in range(40)]
        for member in people:
            if member is not sender:
                assert [t for t in member.texts() if t.startswith("%d:" % sender.id)] == own
    first = people[0].texts()
    for member in people[1:]:
        both = set(first) & set(member.texts())
        assert [t for t in first if t in both] == [t for t in member.texts() if t in both]


def test_offline_members_get_it_later(daemon):
    group, (alice, bob, carol) = joined(daemon, 2)
    carol.ok(LOGOUT)
    texts = ["g%d" % number for number in range(20)]
    for text in texts:
        alice.group_chat_acked(group, text)
    bob.wait_texts(texts)
    assert carol.login(carol.account)["offlinemsg"] and carol.texts() == texts
    carol.ok(LOGOUT)
    assert carol.login(carol.account)["offlinemsg"] == []
    bob.ok(LOGOUT)
    assert bob.login(bob.account)["offlinemsg"] == []      # seen live is not seen again
    alice.ok(LOGOUT)
    assert alice.login(alice.account)["offlinemsg"] == []  # own messages are not echoed later either


def test_direct_and_group_messages_wait_together(daemon):
    group, (alice, bob) = joined(daemon, 1)
    bob.ok(LOGOUT)
    for number in range(5):
        alice.chat_acked(bob, "d%d" % number)
        alice.group_chat_acked(group, "g%d" % number)
    bob.login(bob.account)
    assert bob.texts(CHAT)[-5:] == ["d%d" % n for n in range(5)]
    assert bob.texts(GROUP_CHAT)[-5:] == ["g%d" % n for n in range(5)]


def test_nothing_from_before_joining(daemon):
    group, (alice,) = joined(daemon, 0)
    alice.group_chat_acked(group, "before")
    bob = daemon.online()
    bob.ok(ADD_GROUP, groupid=group)
    alice.group_chat_acked(group, "after")
    bob.wait_texts(["after"])
    bob.ok(LOGOUT)
    assert bob.login(bob.account)["offlinemsg"] == []


def test_group_message_is_stored_once(make_daemon):
    """One row a message however many members are away, found by looking at the file."""
    daemon = make_daemon()
    creator = daemon.online()
    group = daemon.group(creator)
    with daemon.connect() as client:
        for account in daemon.accounts(20):
            client.login(account)
            client.ok(ADD_GROUP, groupid=group)
            client.ok(LOGOUT)
    ack = creator.group_chat_acked(group, "needle in the haystack")
    assert ack["state"] == "stored"
    daemon.stop()
    base = sqlite3.connect(daemon.conf["store"].split(":", 1)[1])
    rows = 0
    for (table,) in base.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall():
        for row in base.execute('SELECT * FROM "%s"' % table):
            rows += any("needle in the haystack" in (v.decode(errors="replace") if isinstance(v, bytes) else str(v)) for v in row)
    base.close()
    assert rows == 1


def test_member_leaves(daemon):
    group, (alice, bob, carol) = joined(daemon, 2)
    bob.ok(DEL_GROUP, groupid=group)
    bob.refused(DEL_GROUP, NOT_ALLOWED, groupid=group)
    assert bob.ok(GROUP_LIST)["groups"] == []
    alice.group_chat_acked(group, "without bob")
    carol.wait_texts(["without bob"])
    bob.ping()
    assert not bob.of(GROUP_CHAT)
    assert bob.group_chat_acked(group, "no more")["errno"] == NOT_ALLOWED
    listed = alice.ok(GROUP_LIST, groupid=group)["groups"][0]
    assert listed["members"] == 2 and {u["id"] for u in listed["users"]} == {alice.id, carol.id}
    assert bob.ok(ADD_GROUP, groupid=group)["group"]["members"] == 3


def test_leaving_keeps_what_was_not_yet_delivered(daemon):
    """What was acknowledged for a member before it left still reaches it."""
    group, (alice, bob) = joined(daemon, 1)
    bob.ok(LOGOUT)
    alice.group_chat_acked(group, "before leaving")
    client = daemon.connect()
    client.send_raw(client.frame(LOGIN, id=bob.id, password=bob.account.password, req="l") +
                    client.frame(DEL_GROUP, groupid=group, req="d"))
    client.expect(DEL_GROUP_ACK, req="d", errno=0)
    client.wait_texts(["before leaving"])


def test_creator_dissolves(daemon):
    group, (alice, bob, carol) = joined(daemon, 2)
    carol.ok(LOGOUT)
    alice.group_chat_acked(group, "last words")
    bob.wait_texts(["last words"])
    alice.ok(DEL_GROUP, groupid=group)
    for member in (alice, bob):
        assert member.ok(GROUP_LIST)["groups"] == []
        assert member.group_chat_acked(group, "anyone?")["errno"] in (NO_SUCH, NOT_ALLOWED)
        member.refused(GROUP_LIST, NO_SUCH, groupid=group)
    bob.refused(ADD_GROUP, NO_SUCH, groupid=group)
    bob.refused(DEL_GROUP, (NO_SUCH, NOT_ALLOWED), groupid=group)
    carol.login(carol.account)
    assert carol.ack["groups"] == []
    carol.wait_texts(["last words"])        # acknowledged before the end: kept and delivered


def test_name_of_a_dissolved_group_is_free(daemon):
    alice = daemon.online()
    name = unique("again")
    first = alice.ok(CREATE_GROUP, groupname=name, groupdesc="")["groupid"]
    alice.ok(DEL_GROUP, groupid=first)
    second = alice.ok(CREATE_GROUP, groupname=name, groupdesc="")["groupid"]
    assert second != first


def test_long_member_lists_come_in_pages(daemon):
    """`users` lists at most 200, `members` counts all; GROUP_LIST with `after` goes on."""
    creator = daemon.online()
    group = daemon.group(creator)
    accounts = daemon.accounts(430, "member")
    with daemon.connect() as client:
        for account in accounts:
            client.login(account)
            client.ok(ADD_GROUP, groupid=group)
            client.ok(LOGOUT)
    everybody = [creator.id] + [account.id for account in accounts]
    late = daemon.login(accounts[0])
    shown = late.ack["groups"][0]
    assert shown["members"] == len(everybody) and 0 < len(shown["users"]) <= 200
    seen, after = [], None
    for _ in range(100):
        members = {} if after is None else {"after": after}
        listed = late.ok(GROUP_LIST, groupid=group, **members)["groups"][0]
        assert listed["id"] == group and listed["members"] == len(everybody) and len(listed["users"]) <= 200
        if not listed["users"]:
            break
        ids = [u["id"] for u in listed["users"]]
        assert ids == sorted(ids) and (after is None or ids[0] > after)
        seen, after = seen + ids, ids[-1]
    assert seen == sorted(everybody)


def test_long_friend_lists_come_in_pages(daemon):
    alice = daemon.online()
    friends = daemon.accounts(700, "friend")
    for friend in friends:
        alice.send(ADD_FRIEND, friendid=friend.id)
    alice.wait(lambda c: len(c.of(ADD_FRIEND_ACK)) == 700, 30, "700 friends")
    seen, after = [], None
    for _ in range(100):
        page = alice.ok(FRIEND_LIST, **({} if after is None else {"after": after}))["friends"]
        if not page:
            break
        ids = [f["id"] for f in page]
        assert ids == sorted(ids) and (after is None or ids[0] > after)
        assert all(set(f) == {"id", "name", "state"} for f in page)
        seen, after = seen + ids, ids[-1]
    assert seen == sorted(f.id for f in friends)
    alice.ok(LOGOUT)
    first = alice.login(alice.account)["friends"]         # the login shows as many as fit a frame
    assert [f["id"] for f in first] == seen[:len(first)] and first


def test_long_group_lists_come_in_pages(daemon):
    alice = daemon.online()
    desc = "\u00e9" * 200
    groups = [alice.ok(CREATE_GROUP, groupname="\u00e9" * 40 + unique("")[-9:], groupdesc=desc)["groupid"] for _ in range(200)]
    seen, after = [], None
    for _ in range(100):
        page = alice.ok(GROUP_LIST, **({} if after is None else {"after": after}))["groups"]
        if not page:
            break
        ids = [g["id"] for g in page]
        assert ids == sorted(ids) and (after is None or ids[0] > after)
        seen, after = seen + ids, ids[-1]
    assert seen == sorted(groups)
    alice.ok(LOGOUT)
    assert alice.login(alice.account)["groups"]           # and a login with so much is possible


def test_friends_states_are_current(daemon):
    alice, bob = daemon.online(slot=0), daemon.online(slot=1)
    alice.ok(ADD_FRIEND, friendid=bob.id)
    state = lambda: alice.ok(FRIEND_LIST)["friends"][0]["state"]
    assert state() == "online"
    bob.ok(LOGOUT)
    wait_until(lambda: state() == "offline", 3)
    bob.login(bob.account)
    assert state() == "online"
    alice.ok(DEL_FRIEND, friendid=bob.id)
    assert alice.ok(FRIEND_LIST)["friends"] == []


def test_group_chat_at_once_after_joining(daemon):
    """Membership is cached: joining and leaving have to reach every worker's cache."""
    group, (alice, bob) = joined(daemon, 1, slots=(0, 1))
    alice.group_chat_acked(group, "warm")
    for round_ in range(10):
        carol = daemon.online(slot=round_ % 2)
        carol.ok(ADD_GROUP, groupid=group)
        alice.group_chat(group, "hello %d" % round_)
        carol.expect(GROUP_CHAT, msg="hello %d" % round_)
        carol.group_chat(group, "thanks %d" % round_)
        alice.expect(GROUP_CHAT, msg="thanks %d" % round_)
        bob.expect(GROUP_CHAT, msg="thanks %d" % round_)
        carol.ok(DEL_GROUP, groupid=group)
        alice.group_chat_acked(group, "bye %d" % round_)
        carol.ping()
        assert carol.texts() == ["hello %d" % round_]


def test_group_message_resent_is_stored_once(daemon):
    group, (alice, bob) = joined(daemon, 1)
    bob.ok(LOGOUT)
    mids = {alice.group_chat_acked(group, "x", cid="same")["mid"] for _ in range(3)}
    assert len(mids) == 1
    bob.login(bob.account)
    assert bob.texts() == ["x"]


@pytest.mark.parametrize("count", [60])
def test_traffic_in_a_group_while_members_come_and_go(daemon, count):
    group, (alice, bob) = joined(daemon, 1)
    texts = []
    for number in range(count):
        texts.append("m%d" % number)
        alice.group_chat(group, texts[-1])
        if number % 20 == 10:
            bob.ok(LOGOUT)
            bob.login(bob.account)
    bob.wait_texts(texts)
