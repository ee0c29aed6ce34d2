"""Chat between hosts: three of them, one Redis, one database."""

import itertools

import pytest

from parleytest import *
from parleytest.traffic import Confirmer, Talker, distinct, in_order

CLUSTER = {"hosts": 3}
pytestmark = needs_redis


def pair(cluster, one=0, two=1, **kw):
    """Two new users, logged in on two hosts."""
    first, second = cluster.accounts(2)
    return cluster[one].login(first), cluster[two].login(second, **kw)


def joined(cluster, count, **kw):
    """A group and COUNT members, on the hosts in turn; the first is its creator."""
    people = cluster.people(count, **kw)
    group = cluster[0].group(people[0])
    for member in people[1:]:
        member.ok(ADD_GROUP, groupid=group)
    return group, people


def states(users):
    return {user["id"]: user["state"] for user in users}


def told(client, about):
    return [frame["state"] for frame in client.of(PRESENCE) if frame["id"] == about.id]


# -- one to one ----------------------------------------------------------------------------------

@pytest.mark.parametrize("one, two", [pair for pair in itertools.permutations(range(3), 2)])
def test_message_crosses(cluster, one, two):
    alice, bob = pair(cluster, one, two)
    ack = alice.chat_acked(bob, "hello", color="red", cid="c")
    assert (ack["errno"], ack["state"]) == (0, "delivered")
    chat = bob.expect(CHAT)
    assert (chat["id"], chat["name"], chat["to"], chat["msg"]) == (alice.id, alice.name, bob.id, "hello")
    assert chat["mid"] == ack["mid"] and chat["cid"] == "c" and chat["color"] == "red" and "n" not in chat
    bob.chat(alice, "back")
    assert alice.expect(CHAT)["msg"] == "back"
    bob.ok(LOGOUT)
    assert bob.login(bob.account)["offlinemsg"] == []       # delivered is not stored


def test_every_worker_reaches_every_worker(cluster):
    accounts = cluster.accounts(4)
    people = [cluster[host].login(accounts[2 * host + slot], slot=slot) for host in (0, 1) for slot in (0, 1)]
    for sender in people:
        for receiver in people:
            text = "%d>%d" % (sender.id, receiver.id)
            assert sender.chat_acked(receiver, text)["state"] == "delivered"
            receiver.expect(CHAT, msg=text)


def test_delivered_only_when_the_client_has_confirmed(cluster):
    alice, bob = pair(cluster, login={"ack": True})
    alice.chat(bob, "x", cid="x")
    chat = bob.expect(CHAT)
    assert chat["n"] == 1
    holds_for(lambda: not alice.of(CHAT_ACK), 0.3, "acknowledged before it was confirmed")
    bob.send(RECEIVED, n=1)
    ack = alice.expect(CHAT_ACK, cid="x")
    assert (ack["errno"], ack["state"], ack["mid"]) == (0, "delivered", chat["mid"])


def test_unconfirmed_is_stored_and_shown_on_another_host(cluster):
    alice, bob = pair(cluster, login={"ack": True})
    alice.chat(bob, "x", cid="x")
    chat = bob.expect(CHAT)
    assert alice.expect(CHAT_ACK, 10, cid="x")["state"] == "stored"
    bob.close()
    again = cluster[2].relogin(bob.account, deadline=10)
    assert [(c["msg"], c["mid"]) for c in again.ack["offlinemsg"]] == [("x", chat["mid"])]


def test_late_confirmation_deletes_what_was_stored(cluster):
    alice, bob = pair(cluster, login={"ack": True})
    alice.chat(bob, "x", cid="x")
    bob.expect(CHAT)
    assert alice.expect(CHAT_ACK, 10, cid="x")["state"] == "stored"
    bob.send(RECEIVED, n=1)
    bob.ok(LOGOUT)
    assert cluster[2].relogin(bob.account).ack["offlinemsg"] == []


def test_offline_and_login_on_another_host(cluster):
    alice, bob = cluster[0].online(), cluster.accounts(1)[0]
    mids = []
    for text in ("a", "b", "c"):
        ack = alice.chat_acked(bob, text)
        assert ack["state"] == "stored"
        mids.append(ack["mid"])
    client = cluster[2].login(bob)
    assert [(c["msg"], c["mid"]) for c in client.ack["offlinemsg"]] == list(zip("abc", mids))
    client.ok(LOGOUT)
    assert cluster[1].relogin(bob).ack["offlinemsg"] == []


def test_follows_a_user_from_host_to_host(cluster):
    """Every message arrives once, in order, wherever the user has just gone."""
    alice, bob = cluster[0].online(), cluster.accounts(1)[0]
    seen, sent = [], itertools.count()
    for host in [1, 2, 0, 2, 1, 0, 1, 2] * 2:
        client = cluster[host].relogin(bob)
        live = ["m%d" % next(sent) for _ in range(3)]
        for text in live:
            assert alice.chat_acked(bob, text)["errno"] == 0
        client.wait(lambda c: live[-1] in c.texts(), 5, "what was sent to it live")
        client.ok(LOGOUT)
        seen += client.texts()
        assert alice.chat_acked(bob, "m%d" % next(sent))["state"] == "stored"
        client.close()
    seen += cluster[0].relogin(bob).texts()
    assert seen == ["m%d" % number for number in range(next(sent))]


def test_order_of_many(cluster):
    alice, bob = pair(cluster)
    texts = ["m%d" % number for number in range(1500)]
    for text in texts:
        alice.chat(bob, text)
    bob.wait_texts(texts, 30)


def test_order_while_confirming(cluster):
    """Both directions at once, windows of open messages, ack sessions."""
    alice, bob = pair(cluster, login={"ack": True})
    alice.ok(LOGOUT)
    alice.login(alice.account, ack=True)
    readers = [Confirmer(client) for client in (alice, bob)]
    talkers = [Talker(alice, bob.id, "a").start(), Talker(bob, alice.id, "b").start()]
    alice.wait(lambda _: all(len(t.sent) > 300 for t in talkers), 30, "300 messages each way")
    done = [talker.finish() for talker in talkers]
    for reader in readers:
        reader.stop()
    for client, texts in ((bob, done[0]), (alice, done[1])):
        assert distinct(client.chats()) == texts
    acks = [ack["state"] for ack in alice.of(CHAT_ACK) + bob.of(CHAT_ACK)]
    assert set(acks) == {"delivered"}


def test_order_of_short_and_long(cluster):
    """What is too long for a packet between hosts takes another way, and overtakes nothing."""
    alice, bob = pair(cluster)
    texts = []
    for number in range(30):
        texts.append("%d %s" % (number, "x" * (0, 100, 60000, 20000, 45000, 5)[number % 6]))
        alice.chat(bob, texts[-1], cid="c%d" % number)
    bob.wait_texts(texts, 30)
    for number in range(30):
        assert alice.expect(CHAT_ACK, 20, cid="c%d" % number)["errno"] == 0


def test_resent_cid_is_shown_with_the_same_mid(cluster):
    alice, bob = pair(cluster)
    first, second = (alice.chat_acked(bob, "x", cid="again") for _ in range(2))
    assert first["mid"] == second["mid"]
    bob.ping()
    assert len(bob.of(CHAT)) in (1, 2) and len(distinct(bob.chats())) == 1


def test_recipient_by_name_and_unknown(cluster):
    alice, bob = pair(cluster)
    alice.chat(bob.name, "by name")
    assert bob.expect(CHAT)["to"] == bob.id
    assert alice.chat_acked(2000000000, "x")["errno"] == NO_SUCH


@pytest.mark.parametrize("one, two", [("classic", "plain"), ("plain", "classic"), ("classic", "classic")])
def test_dialects(cluster, one, two):
    alice, bob = cluster.accounts(2)
    alice, bob = cluster[0].login(alice, dialect=one), cluster[1].login(bob, dialect=two)
    alice.chat(bob, "hello", name=alice.name, id=alice.id, time="now", color="red")
    chat = bob.expect(CHAT)
    other = "toid" if two == "classic" else "to"
    assert (chat["id"], chat["name"], chat[other], chat["msg"], chat["time"]) == (
        alice.id, alice.name, bob.id, "hello", "now")
    assert ("color" in chat) is (two == "plain")
    bob.chat(alice, "back", name=bob.name, id=bob.id, time="now")
    assert alice.expect(CHAT)["msg"] == "back"


# -- friends -------------------------------------------------------------------------------------

def test_friends_on_other_hosts(cluster):
    bob, carol = cluster.accounts(2)
    there = cluster[1].login(bob)
    alice = cluster[0].online()
    assert alice.ok(ADD_FRIEND, friendid=bob.id)["friend"]["state"] == "online"
    assert alice.ok(ADD_FRIEND, friendid=carol.id)["friend"]["state"] == "offline"
    want = {bob.id: "online", carol.id: "offline"}
    assert states(alice.ok(FRIEND_LIST)["friends"]) == want
    alice.ok(LOGOUT)
    assert states(alice.login(alice.account)["friends"]) == want
    alice.ok(LOGOUT)
    assert states(cluster[2].relogin(alice.account).ack["friends"]) == want
    there.ping()


def test_presence_crosses(cluster):
    bob = cluster.accounts(1)[0]
    alice = cluster[0].online()
    alice.ok(ADD_FRIEND, friendid=bob.id)
    client = cluster[1].login(bob)
    frame = alice.expect(PRESENCE, id=bob.id)
    assert frame["state"] == "online"
    client.ok(LOGOUT)
    assert alice.expect(PRESENCE, 10, id=bob.id)["state"] == "offline"
    cluster[2].relogin(bob)
    assert alice.expect(PRESENCE, 10, id=bob.id)["state"] == "online"
    holds_for(lambda: told(alice, bob) == ["online", "offline", "online"], 0.5, "told once")


def test_change_of_host_is_not_told(cluster):
    bob = cluster.accounts(1)[0]
    alice = cluster[0].online()
    alice.ok(ADD_FRIEND, friendid=bob.id)
    client = cluster[1].login(bob)
    alice.expect(PRESENCE, id=bob.id)
    for host in (2, 1, 0, 1):
        client.ok(LOGOUT)
        client.close()
        client = cluster[host].relogin(bob)
    holds_for(lambda: "offline" not in told(alice, bob), 2.8, "offline was told for an absence of moments")
    assert states(alice.ok(FRIEND_LIST)["friends"]) == {bob.id: "online"}


# -- groups --------------------------------------------------------------------------------------

def test_group_over_three_hosts(cluster):
    group, people = joined(cluster, 6)
    for sender in people:
        text = "from %d" % sender.id
        ack = sender.group_chat_acked(group, text)
        assert (ack["errno"], ack["state"]) == (0, "stored")
        for member in people:
            if member is not sender:
                chat = member.expect(GROUP_CHAT, 10, msg=text)
                assert (chat["groupid"], chat["id"], chat["mid"]) == (group, sender.id, ack["mid"])
    for member in people:
        member.ping()
        assert len(member.of(GROUP_CHAT)) == 5


def test_members_see_one_order(cluster):
    group, people = joined(cluster, 6)
    for number in range(30):
        for sender in people:
            sender.group_chat(group, "%d:%d" % (sender.id, number))
    for member in people:
        member.wait(lambda c: c.count(GROUP_CHAT) == 150, 30, "150 messages")
    for sender in people:
        own = ["%d:%d" % (sender.id, number) for number in range(30)]
        for member in people:
            if member is not sender:
                assert [t for t in member.texts() if t.startswith("%d:" % sender.id)] == own
    first = people[0].texts()
    for member in people[1:]:
        both = set(first) & set(member.texts())
        assert [t for t in first if t in both] == [t for t in member.texts() if t in both]


def test_states_of_members(cluster):
    group, people = joined(cluster, 3)
    people[2].ok(LOGOUT)
    want = {people[0].id: "online", people[1].id: "online", people[2].id: "offline"}

    def seen(by):
        return states(by.ok(GROUP_LIST, groupid=group)["groups"][0]["users"])

    for member in people[:2]:
        wait_until(lambda: seen(member) == want, 10, "the members' states")
    ack = people[2].login(people[2].account)
    assert states(ack["groups"][0]["users"]) == {**want, people[2].id: "online"}
    late = cluster[1].online()
    users = late.ok(ADD_GROUP, groupid=group)["group"]["users"]
    assert set(states(users).values()) == {"online"} and len(users) == 4


def test_joining_and_leaving_are_known_at_once(cluster):
    """No host goes on with a list of members that it kept."""
    group, people = joined(cluster, 3)
    people[0].group_chat(group, "before")
    for member in people[1:]:
        member.expect(GROUP_CHAT, msg="before")
    late = cluster[1].online()
    late.ok(ADD_GROUP, groupid=group)
    people[0].group_chat(group, "to all")
    late.expect(GROUP_CHAT, 10, msg="to all")
    late.group_chat(group, "from the new one")
    for member in people:
        member.expect(GROUP_CHAT, 10, msg="from the new one")
    people[1].ok(DEL_GROUP, groupid=group)
    assert people[1].group_chat_acked(group, "x")["errno"] == NOT_ALLOWED
    people[0].group_chat_acked(group, "without one")
    people[2].expect(GROUP_CHAT, msg="without one")
    people[1].ping()
    assert "without one" not in people[1].texts()


def test_dissolved_for_all_hosts(cluster):
    group, people = joined(cluster, 3)
    people[1].group_chat_acked(group, "before")
    people[0].ok(DEL_GROUP, groupid=group)
    for member in people:
        wait_until(lambda: member.group_chat_acked(group, "x")["errno"] in (NO_SUCH, NOT_ALLOWED), 10,
                   "the group is no more")
        assert member.ok(GROUP_LIST)["groups"] == []


def test_absent_members_get_it_on_another_host(cluster):
    group, people = joined(cluster, 4)
    absent = people[1]
    absent.ok(LOGOUT)
    texts = ["g%d" % number for number in range(20)]
    for text in texts:
        people[0].group_chat_acked(group, text)
    people[2].wait_texts(texts)
    again = cluster[2].relogin(absent.account)
    assert again.texts() == texts
    again.ok(LOGOUT)
    assert cluster[1].relogin(absent.account).texts() == []


def test_long_group_messages(cluster):
    group, people = joined(cluster, 3)
    texts = ["%d %s" % (number, "x" * (60000, 10, 30000)[number % 3]) for number in range(9)]
    for text in texts:
        people[0].group_chat(group, text)
    for member in people[1:]:
        member.wait_texts(texts, 20)


def test_talk_in_a_group_of_ack_sessions(cluster):
    group, people = joined(cluster, 6, login={"ack": True})
    readers = [Confirmer(member) for member in people]
    for number in range(20):
        for sender in people:
            sender.group_chat(group, "%d %d" % (sender.id, number), cid="%d" % number)
    for member in people:
        member.wait(lambda c: c.count(GROUP_CHAT) >= 100, 30, "100 messages")
        for number in range(20):
            assert member.expect(CHAT_ACK, cid="%d" % number)["errno"] == 0
    for reader in readers:
        reader.stop()
    for member in people:
        shown = distinct(member.chats())
        assert len(shown) == 100
        for sender in people:
            assert in_order(shown, str(sender.id))
