"""The ten messages of the documents, on both engines, with the users spread over the workers."""

import re

import pytest

from parleytest import *
from parleytest.daemon import unique

WORKERS = 3


@pytest.fixture(scope="module", params=["sqlite", "mariadb"])
def shared(request):
    """As the conftest's, once an engine."""
    holder = {"daemon": None}

    def get():
        if holder["daemon"] is None:
            keys = {"workers": WORKERS, "pool_max": 6, "pool_init": 3}
            if request.param == "mariadb":
                server = request.getfixturevalue("mariadb_server")
                if not server.running():
                    server.start()
                keys["store"] = server.url(server.database())
            holder["daemon"] = Daemon(**keys).start()
        return holder["daemon"]

    def drop():
        daemon, holder["daemon"] = holder["daemon"], None
        if daemon is not None:
            daemon.finish()

    get.drop = drop
    yield get
    drop()


def spread(daemon, *names):
    """Users, logged in on workers 0, 1, 2, 0, ..."""
    return [daemon.online(name, slot=place % WORKERS) for place, name in enumerate(names)]


def test_1_to_4_register_and_log_in_on_every_worker(daemon):
    for slot in range(WORKERS):
        client = daemon.connect_on(slot)
        name = unique("reg")
        reg = client.ok(REG, name=name, password="pw")
        assert set(reg) <= {"msgid", "errno", "id", "req", "errmsg"}
        ack = client.ok(LOGIN, id=reg["id"], password="pw")
        assert (ack["id"], ack["name"]) == (reg["id"], name)
        for array in ("friends", "groups", "offlinemsg"):
            assert ack[array] == []
        client.refused(REG, REFUSED, name=name, password="pw")


def test_5_one_chat_between_all_pairs_of_workers(daemon):
    people = spread(daemon, "a", "b", "c")
    for sender in people:
        for receiver in people:
            sender.send(CHAT, id=sender.id, name=sender.name, to=receiver.id, msg="hello %d" % receiver.id,
                        time="2026-01-02 03:04:05")
            chat = receiver.expect(CHAT, id=sender.id, msg="hello %d" % receiver.id)
            assert (chat["id"], chat["name"], chat["to"]) == (sender.id, sender.name, receiver.id)
            assert chat["time"] == "2026-01-02 03:04:05"
            assert chat["msgid"] == 5 and chat["mid"]
    assert len({chat["mid"] for person in people for chat in person.of(CHAT)}) == 9


def test_5_one_chat_to_somebody_offline(daemon):
    alice, bob = daemon.online(slot=1), daemon.account("b")
    alice.send(CHAT, id=alice.id, name=alice.name, to=bob.id, msg="while you were out", time="noon")
    alice.ping()
    client = daemon.relogin(bob)
    if not client.ack["offlinemsg"]:            # the message was still on its way to the store
        client.expect(CHAT, msg="while you were out")
    chat = client.chats()[0]
    assert (chat["msgid"], chat["id"], chat["name"], chat["to"], chat["msg"], chat["time"]) == (
        5, alice.id, alice.name, bob.id, "while you were out", "noon")


def test_6_add_friend(daemon):
    alice, bob, carol = spread(daemon, "a", "b", "c")
    dora = daemon.account("d")
    friend = alice.ok(ADD_FRIEND, id=alice.id, friendid=bob.id)["friend"]
    assert friend == {"id": bob.id, "name": bob.name, "state": "online"}
    assert alice.ok(ADD_FRIEND, friendid=carol.name)["friend"]["id"] == carol.id
    assert alice.ok(ADD_FRIEND, friendid=dora.id)["friend"] == {"id": dora.id, "name": dora.name, "state": "offline"}
    alice.ok(LOGOUT)
    ack = alice.login(alice.account)
    assert [(f["id"], f["name"], f["state"]) for f in ack["friends"]] == sorted([
        (bob.id, bob.name, "online"), (carol.id, carol.name, "online"), (dora.id, dora.name, "offline")])
    bob.ok(LOGOUT)
    assert bob.login(bob.account)["friends"] == []         # friendship is one-way


def test_7_to_9_groups(daemon):
    alice, bob, carol = spread(daemon, "a", "b", "c")
    dora = daemon.account("d")
    name = unique("group")
    group = alice.ok(CREATE_GROUP, id=alice.id, groupname=name, groupdesc="for tests")["groupid"]
    assert type(group) is int and 0 < group < 2 ** 31
    joined = bob.ok(ADD_GROUP, id=bob.id, groupid=group)["group"]
    assert (joined["id"], joined["groupname"], joined["groupdesc"], joined["members"]) == (group, name, "for tests", 2)
    assert sorted((u["id"], u["name"], u["state"], u["role"]) for u in joined["users"]) == sorted([
        (alice.id, alice.name, "online", "creator"), (bob.id, bob.name, "online", "normal")])
    carol.ok(ADD_GROUP, groupid=name)
    with daemon.login(dora) as client:
        client.ok(ADD_GROUP, groupid=group)
        client.ok(LOGOUT)
    alice.send(GROUP_CHAT, id=alice.id, name=alice.name, groupid=group, msg="all of you", time="now")
    for member in (bob, carol):
        chat = member.expect(GROUP_CHAT)
        assert (chat["msgid"], chat["id"], chat["name"], chat["groupid"], chat["msg"], chat["time"]) == (
            9, alice.id, alice.name, group, "all of you", "now")
        assert "to" not in chat
    client = daemon.login(dora)
    client.wait_texts(["all of you"])
    assert client.ack["groups"][0]["members"] == 4
    alice.ping()
    assert not alice.of(GROUP_CHAT)


def test_10_log_out(daemon):
    alice, bob, _ = spread(daemon, "a", "b", "c")
    bob.ok(LOGOUT, id=bob.id)
    ack = alice.chat_acked(bob.id, "are you there?")
    assert (ack["errno"], ack["state"]) == (0, "stored")
    elsewhere = daemon.login(bob.account, slot=2)
    assert elsewhere.texts() == ["are you there?"]


def test_time_is_filled_in_where_it_is_missing(daemon):
    alice, bob, _ = spread(daemon, "a", "b", "c")
    alice.chat(bob, "now")
    chat = bob.expect(CHAT)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", chat["time"])


def test_ts_is_the_servers_clock(daemon):
    import time
    alice, bob, _ = spread(daemon, "a", "b", "c")
    before = int(time.time() * 1000)
    alice.chat(bob, "now", ts=5, mid="mine", n=9)
    chat = bob.expect(CHAT)
    assert before - 50 <= chat["ts"] <= int(time.time() * 1000) + 50
    assert chat["mid"] != "mine" and "n" not in chat


def test_names_and_texts_of_the_world(daemon):
    texts = ["\u00e9\u00df\u4e2d\u6587 \U0001f469\u200d\U0001f4bb", "it's; DROP TABLE User; -- \" \\ %s ' \u0000"[:-1], "\u202e\ufeff",
             "x" * 5000, " leading and trailing ", ""]
    alice, bob = daemon.online("\u4e2d\u6587-\U0001f600", slot=0), daemon.account("o'Brien \\ %")
    for text in texts:
        assert alice.chat_acked(bob, text)["errno"] == 0
    client = daemon.login(bob)
    assert client.texts() == texts
    assert client.chats()[0]["name"] == alice.name


def test_conversation_over_all_workers_keeps_its_order(daemon):
    people = spread(daemon, "a", "b", "c", "d", "e", "f")
    for number in range(50):
        for sender in people:
            sender.send_raw(b"".join(sender.frame(CHAT, to=receiver.id, msg="%d:%d" % (sender.id, number))
                                     for receiver in people if receiver is not sender))
    for receiver in people:
        receiver.wait(lambda c: c.count(CHAT) == 50 * 5, 20, "250 messages")
        for sender in people:
            if sender is not receiver:
                assert [t for t in receiver.texts() if t.startswith("%d:" % sender.id)] == [
                    "%d:%d" % (sender.id, n) for n in range(50)]


def test_everything_is_there_after_a_restart(daemon):
    alice, bob, carol = spread(daemon, "a", "b", "c")
    alice.ok(ADD_FRIEND, friendid=bob.id)
    group = daemon.group(alice)
    carol.ok(ADD_GROUP, groupid=group)
    carol.ok(LOGOUT)
    assert alice.chat_acked(carol, "direct")["errno"] == 0
    assert alice.group_chat_acked(group, "to all")["errno"] == 0
    daemon.stop()
    for client in daemon.clients:
        client.close()
    daemon.clients.clear()
    daemon.start()
    again = daemon.login(alice.account)
    assert [f["id"] for f in again.ack["friends"]] == [bob.id]
    assert [(g["id"], g["members"]) for g in again.ack["groups"]] == [(group, 2)]
    late = daemon.login(carol.account)
    assert sorted(late.texts()) == ["direct", "to all"]
