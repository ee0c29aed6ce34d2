"""Every errno, in the reply that carries it, and the order of the checks."""

import pytest

from parleytest import *
from parleytest.daemon import unique

WITH_REPLY = [LOGIN, REG, ADD_FRIEND, CREATE_GROUP, ADD_GROUP, LOGOUT, DEL_FRIEND, DEL_GROUP,
              FRIEND_LIST, GROUP_LIST]
NEED_LOGIN = [ADD_FRIEND, CREATE_GROUP, ADD_GROUP, LOGOUT, DEL_FRIEND, DEL_GROUP, FRIEND_LIST,
              GROUP_LIST]


def error_of(client, *, req):
    frame = client.expect(ERROR, req=req)
    return frame


# -- 3: malformed, and what says so ---------------------------------------------------------------


@pytest.mark.parametrize("number", [0, -1, 30, 31, 999, 2 ** 31, 2 ** 53, 2, 4, 11, 12, 13, 14, 15, 18, 20, 22, 24, 27, 28, 29])
def test_unknown_number_is_errno_3(daemon, number):
    """Also a number that only the server sends; it is checked before the login is."""
    client = daemon.connect()
    client.send_raw(dump({"msgid": number, "req": "u"}) + b"\n")
    error = error_of(client, req="u")
    assert error["errno"] == MALFORMED
    assert error.get("of", number) == number
    client.ping()


@pytest.mark.parametrize("text", [b'{"req":"m"}', b'{"req":"m","msgid":null}', b'{"req":"m","msgid":"1"}', b'{"req":"m","msgid":1.5}',
                                  b'{"req":"m","msgid":[1]}', b'{"req":"m","msgid":true}', b'{"req":"m","msgid":{"a":1}}'], ids=repr)
def test_msgid_missing_or_no_integer_is_errno_3(daemon, text):
    client = daemon.connect()
    client.send_raw(text + b"\n")
    error = error_of(client, req="m")
    assert error["errno"] == MALFORMED and "msgid" in error["errmsg"]
    client.ping()


WRONG = [
    (LOGIN, {"password": "x"}, "id"), (LOGIN, {"id": 1}, "password"), (LOGIN, {"id": "1", "password": "x"}, "id"),
    (LOGIN, {"id": 1.5, "password": "x"}, "id"), (LOGIN, {"id": 1, "password": 5}, "password"),
    (LOGIN, {"name": 5, "password": "x"}, "name"), (LOGIN, {"id": 1, "token": 7}, "token"),
    (LOGIN, {"id": None, "password": "x"}, "id"), (LOGIN, {"id": 1, "password": None}, "password"),
    (LOGIN, {"id": 1, "password": "x", "ack": 1}, "ack"), (LOGIN, {"id": 1, "password": "x", "ack": "true"}, "ack"),
    (REG, {"password": "x"}, "name"), (REG, {"name": "x"}, "password"), (REG, {"name": 5, "password": "x"}, "name"),
    (REG, {"name": "x", "password": 5}, "password"), (REG, {"name": ["x"], "password": "y"}, "name"),
    (REG, {"name": "", "password": "x"}, "name"), (REG, {"name": "a\nb", "password": "x"}, "name"),
    (REG, {"name": "a\x7fb", "password": "x"}, "name"), (REG, {"name": "a\u0085b", "password": "x"}, "name"),
    (REG, {"name": "empty-password", "password": ""}, "password"),
]


@pytest.mark.parametrize("kind,members,named", WRONG, ids=lambda v: str(v))
def test_malformed_before_login(daemon, kind, members, named):
    """The sentence names the member."""
    client = daemon.connect()
    reply = client.refused(kind, MALFORMED, **members)
    assert named in reply["errmsg"], reply
    client.ping()


WRONG_IN = [
    (ADD_FRIEND, {}, "friendid"), (ADD_FRIEND, {"friendid": 1.5}, "friendid"), (ADD_FRIEND, {"friendid": [1]}, "friendid"),
    (ADD_FRIEND, {"friendid": None}, "friendid"), (ADD_FRIEND, {"friendid": True}, "friendid"),
    (CREATE_GROUP, {"groupdesc": "d"}, "groupname"), (CREATE_GROUP, {"groupname": 5, "groupdesc": "d"}, "groupname"),
    (CREATE_GROUP, {"groupname": "g", "groupdesc": 5}, "groupdesc"), (CREATE_GROUP, {"groupname": "", "groupdesc": "d"}, "groupname"),
    (CREATE_GROUP, {"groupname": "a\tb", "groupdesc": "d"}, "groupname"),
    (ADD_GROUP, {}, "groupid"), (ADD_GROUP, {"groupid": {}}, "groupid"),
    (DEL_FRIEND, {}, "friendid"), (DEL_FRIEND, {"friendid": False}, "friendid"),
    (DEL_GROUP, {}, "groupid"), (DEL_GROUP, {"groupid": []}, "groupid"),
    (FRIEND_LIST, {"after": "x"}, "after"), (GROUP_LIST, {"after": []}, "after"), (GROUP_LIST, {"groupid": 1.25}, "groupid"),
    (ADD_FRIEND, {"friendid": 1, "id": "me"}, "id"), (LOGOUT, {"id": {}}, "id"),
]


@pytest.mark.parametrize("kind,members,named", WRONG_IN, ids=lambda v: str(v))
def test_malformed_after_login(daemon, kind, members, named):
    client = daemon.online()
    reply = client.refused(kind, MALFORMED, **members)
    assert named in reply["errmsg"].replace(" ", ""), reply
    client.ping()


WRONG_CHAT = [
    ({"to": 1}, "msg"), ({"msg": "x"}, "to"), ({"to": 1, "msg": 5}, "msg"), ({"to": 1.5, "msg": "x"}, "to"),
    ({"to": None, "msg": "x"}, "to"), ({"to": [1], "msg": "x"}, "to"), ({"to": 1, "msg": None}, "msg"),
    ({"to": 1, "msg": "x", "time": 5}, "time"), ({"to": 1, "msg": "x", "name": 5}, "name"),
    ({"to": 1, "msg": "x", "id": "y"}, "id"), ({"to": 1, "msg": {"a": 1}}, "msg"),
]


@pytest.mark.parametrize("members,named", WRONG_CHAT, ids=lambda v: str(v))
def test_malformed_chat_is_error_without_cid_and_chat_ack_with_it(daemon, members, named):
    client = daemon.online()
    client.send(CHAT, req="w", **members)
    error = error_of(client, req="w")
    assert error["errno"] == MALFORMED and error["of"] == 5 and named in error["errmsg"]
    client.send(CHAT, cid="w1", **members)
    ack = client.expect(CHAT_ACK, cid="w1")
    assert ack["errno"] == MALFORMED and named in ack["errmsg"]
    members = dict(members)
    if "to" in members:
        members["groupid"] = members.pop("to")
    client.send(GROUP_CHAT, req="g", **members)
    error = error_of(client, req="g")
    assert error["errno"] == MALFORMED and error["of"] == 9


@pytest.mark.parametrize("cid", ["", "x" * 65, "\u00e9" * 33, 1.5, True, [], {}], ids=repr)
def test_cid_is_a_string_of_1_to_64_bytes(daemon, cid):
    client = daemon.online()
    client.chat(client, "x", cid=cid, req="c")
    client.ping()
    errors = [f for f in client.of(ERROR, CHAT_ACK) if f["errno"] == MALFORMED]
    assert len(errors) == 1 and not client.of(CHAT), client.frames


@pytest.mark.parametrize("cid,text", [(7, "7"), ("7", "7"), ("x" * 64, "x" * 64), (-3, "-3"), ("\u00e9" * 32, "\u00e9" * 32)], ids=repr)
def test_cid_integer_is_its_decimal_text(daemon, cid, text):
    client = daemon.online()
    client.chat(client, "x", cid=cid)
    ack = client.expect_next()
    while ack.kind != CHAT_ACK:
        ack = client.expect_next()
    assert ack["errno"] == 0 and str(ack["cid"]) == text, ack
    assert str(client.of(CHAT)[0]["cid"]) == text


@pytest.mark.parametrize("req", ["", "x", "x" * 64, "\u00e9" * 32, 0, -1, 12345678901234567, "\u00e9 \"q\" \\ \n"], ids=repr)
def test_req_is_echoed_as_it_came(daemon, req):
    client = daemon.online()
    client.send(PING, req=req)
    pong = client.expect_next()
    assert pong.kind == PONG and pong["req"] == req and type(pong["req"]) is type(req)
    for kind, members in ((FRIEND_LIST, {}), (ADD_FRIEND, {"friendid": 2 ** 31 - 1}), (LOGIN, {"id": 1, "password": "x"}),
                          (REG, {"name": "", "password": ""})):
        client.send(kind, req=req, **members)
        reply = client.expect(REPLY[kind])
        assert reply["req"] == req and type(reply["req"]) is type(req)
    client.send(CHAT, to=2 ** 31 - 1, msg="x", req=req)
    assert client.expect(ERROR)["req"] == req


def test_reply_without_req_carries_none(daemon):
    client = daemon.online()
    client.send(FRIEND_LIST)
    assert "req" not in client.expect(FRIEND_LIST_ACK)
    client.send(FRIEND_LIST, req=None)
    assert "req" not in client.expect(FRIEND_LIST_ACK)


@pytest.mark.parametrize("req", ["x" * 65, "\u00e9" * 33, 1.5, True, [], {}, ["x"]], ids=repr)
def test_req_of_the_wrong_type_or_length_is_errno_3(daemon, req):
    client = daemon.online()
    client.send(FRIEND_LIST, req=req)
    reply = client.expect_next()
    assert reply.kind in (FRIEND_LIST_ACK, ERROR) and reply["errno"] == MALFORMED and "req" in reply["errmsg"]
    client.ping()


def test_null_counts_as_left_out(daemon):
    account = daemon.account()
    client = daemon.connect()
    client.send(LOGIN, id=None, name=account.name, password=account.password, token=None, ack=None, req="n")
    assert client.expect(LOGIN_ACK, req="n")["errno"] == 0
    client.send(CHAT, to=account.id, msg="x", id=None, name=None, time=None, cid=None)
    chat = client.expect(CHAT)
    assert chat["id"] == account.id and chat["name"] == account.name and "cid" not in chat


def test_unknown_members_are_ignored(daemon):
    account = daemon.account()
    client = daemon.connect()
    client.ok(LOGIN, id=account.id, password=account.password, version=7, client={"os": ["x"]}, mid=5, ts="y", n=[])
    client.ok(FRIEND_LIST, whatever=None, more=[1, 2, {"a": "b"}])


# -- 4: log in first ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NEED_LOGIN)
def test_log_in_first(daemon, kind):
    """Before the members are looked at: these requests have none."""
    client = daemon.connect()
    client.refused(kind, NOT_LOGGED_IN)
    client.ping()


def test_log_in_first_for_what_has_no_reply(daemon):
    client = daemon.connect()
    for kind, number in ((CHAT, 5), (GROUP_CHAT, 9), (RECEIVED, 16)):
        client.send(kind, req="e%d" % number)
        error = error_of(client, req="e%d" % number)
        assert error["errno"] == NOT_LOGGED_IN and error["of"] == number
    client.send(CHAT, cid="c", to=1, msg="x")
    assert client.expect(CHAT_ACK, cid="c")["errno"] == NOT_LOGGED_IN


def test_login_on_a_logged_in_connection_is_errno_6(daemon):
    client, other = daemon.online(), daemon.account()
    reply = client.refused(LOGIN, NOT_ALLOWED, id=other.id, password=other.password)
    assert "log out first" in reply["errmsg"].lower()
    client.refused(LOGIN, NOT_ALLOWED, id=client.id, password=client.account.password)
    client.ok(FRIEND_LIST)


def test_reg_needs_no_login_and_is_allowed_in_one(daemon):
    client = daemon.online()
    client.ok(REG, name=unique("inside"), password="x")


# -- 5, 6 -----------------------------------------------------------------------------------------

NOBODY = 2 ** 31 - 1


@pytest.mark.parametrize("kind,members", [
    (ADD_FRIEND, {"friendid": NOBODY}), (ADD_FRIEND, {"friendid": "nobody of that name"}), (DEL_FRIEND, {"friendid": NOBODY}),
    (ADD_GROUP, {"groupid": NOBODY}), (ADD_GROUP, {"groupid": "no group of that name"}), (DEL_GROUP, {"groupid": NOBODY}),
    (GROUP_LIST, {"groupid": NOBODY}),
], ids=lambda v: str(v))
def test_no_such_user_or_group(daemon, kind, members):
    daemon.online().refused(kind, NO_SUCH, **members)


@pytest.mark.parametrize("ident", [0, -1, 2 ** 31, 2 ** 40, 2 ** 63, 10 ** 30])
def test_ids_out_of_range_name_nobody(daemon, ident):
    """Ids are positive integers below 2^31: another number is malformed, or simply nobody."""
    client = daemon.online()
    client.refused(ADD_FRIEND, (MALFORMED, NO_SUCH), friendid=ident)
    client.refused(ADD_GROUP, (MALFORMED, NO_SUCH), groupid=ident)
    client.chat(ident, "x", req="r")
    assert error_of(client, req="r")["errno"] in (MALFORMED, NO_SUCH)
    with daemon.connect() as other:
        other.refused(LOGIN, (REFUSED, MALFORMED), id=ident, password="x")


def test_chat_to_nobody_is_errno_5(daemon):
    client = daemon.online()
    client.chat(NOBODY, "x", req="r")
    error = error_of(client, req="r")
    assert error["errno"] == NO_SUCH and error["of"] == 5
    client.chat("nobody by that name", "x", req="s")
    assert error_of(client, req="s")["errno"] == NO_SUCH
    ack = client.chat_acked(NOBODY, "x")
    assert ack["errno"] == NO_SUCH
    client.group_chat(NOBODY, "x", req="g")
    error = error_of(client, req="g")
    assert error["errno"] == NO_SUCH and error["of"] == 9
    assert client.group_chat_acked(NOBODY, "x")["errno"] == NO_SUCH


@pytest.mark.parametrize("kind,members", [
    (ADD_FRIEND, {"friendid": 1}), (CREATE_GROUP, {"groupname": "never made", "groupdesc": "d"}), (ADD_GROUP, {"groupid": 1}),
    (LOGOUT, {}), (DEL_FRIEND, {"friendid": 1}), (DEL_GROUP, {"groupid": 1}), (FRIEND_LIST, {}), (GROUP_LIST, {}),
], ids=lambda v: str(v))
def test_naming_another_sender_is_errno_6(daemon, kind, members):
    client, other = daemon.online(), daemon.account()
    client.refused(kind, NOT_ALLOWED, id=other.id, **members)
    client.refused(kind, NOT_ALLOWED, name=other.name, **members)
    client.ok(FRIEND_LIST, id=client.id, name=client.name)


def test_chat_that_names_another_sender_is_errno_6(daemon):
    client, other = daemon.online(), daemon.account()
    for members in ({"id": other.id}, {"name": other.name}, {"id": client.id, "name": other.name}, {"id": other.id, "name": client.name}):
        client.chat(client, "forged", req="r", **members)
        error = error_of(client, req="r")
        assert error["errno"] == NOT_ALLOWED and error["of"] == 5
        client.chat(client, "forged", cid="c%r" % sorted(members), **members)
        assert client.expect(CHAT_ACK)["errno"] == NOT_ALLOWED
    client.ping()
    assert not client.of(CHAT)


def test_sender_may_be_left_out_or_right(daemon):
    client = daemon.online()
    for members in ({}, {"id": client.id}, {"name": client.name}, {"id": client.id, "name": client.name}):
        client.chat(client, "mine", **members)
        chat = client.expect(CHAT)
        assert (chat["id"], chat["name"]) == (client.id, client.name)


def test_group_chat_of_no_member_is_errno_6(daemon):
    alice, bob = daemon.online(), daemon.online()
    group = daemon.group(alice)
    bob.group_chat(group, "let me in", req="r")
    error = error_of(bob, req="r")
    assert error["errno"] == NOT_ALLOWED and error["of"] == 9
    assert bob.group_chat_acked(group, "let me in")["errno"] == NOT_ALLOWED
    bob.refused(DEL_GROUP, NOT_ALLOWED, groupid=group)
    alice.ping()
    assert not alice.of(GROUP_CHAT)


def test_received_without_ack_is_errno_3(daemon):
    client = daemon.online()
    client.send(RECEIVED, n=1, req="r")
    error = error_of(client, req="r")
    assert error["errno"] == MALFORMED and error["of"] == 16


# -- the order of the checks ----------------------------------------------------------------------


def test_checks_come_in_order(daemon):
    out, client, other = daemon.connect(), daemon.online(), daemon.account()
    # msgid before login
    out.send(999, req="1")
    assert error_of(out, req="1")["errno"] == MALFORMED
    # login before members and sender
    out.refused(ADD_FRIEND, NOT_LOGGED_IN, friendid="", id="wrong")
    out.refused(CREATE_GROUP, NOT_LOGGED_IN, id=other.id)
    # members before sender
    client.refused(ADD_FRIEND, MALFORMED, id=other.id)
    client.send(CHAT, id=other.id, to=1, req="2")
    assert error_of(client, req="2")["errno"] == MALFORMED
    # sender before the rest
    client.refused(ADD_FRIEND, NOT_ALLOWED, id=other.id, friendid=NOBODY)
    client.chat(NOBODY, "x", id=other.id, req="3")
    assert error_of(client, req="3")["errno"] == NOT_ALLOWED


# -- 7, 8, 10 -------------------------------------------------------------------------------------


def test_it_is_so_already(daemon):
    alice, bob = daemon.online(), daemon.online()
    alice.ok(ADD_FRIEND, friendid=bob.id)
    alice.refused(ADD_FRIEND, ALREADY, friendid=bob.id)
    group = daemon.group(bob)
    alice.ok(ADD_GROUP, groupid=group)
    alice.refused(ADD_GROUP, ALREADY, groupid=group)
    bob.refused(ADD_GROUP, ALREADY, groupid=group)


def test_names_taken(daemon):
    alice, name = daemon.online(), unique("Taken")
    alice.ok(CREATE_GROUP, groupname=name, groupdesc="")
    alice.refused(CREATE_GROUP, REFUSED, groupname=name.upper(), groupdesc="")
    with daemon.connect() as client:
        client.refused(REG, REFUSED, name=alice.name, password="x")
        client.refused(REG, REFUSED, name=alice.name.upper(), password="x")
        client.ok(REG, name=name, password="x")         # users and groups have their names apart


def test_quotas_are_errno_8(make_daemon):
    daemon = make_daemon(friends_max=3, groups_max=2, group_members_max=2, offline_max=4)
    alice = daemon.online()
    people = daemon.accounts(5)
    daemon.befriend(alice, *people[:3])
    alice.refused(ADD_FRIEND, TOO_LARGE, friendid=people[3].id)
    first = daemon.group(alice)
    daemon.group(alice)
    alice.refused(CREATE_GROUP, TOO_LARGE, groupname=unique("third"), groupdesc="d")
    bob, carol = daemon.login(people[0]), daemon.login(people[1])
    bob.ok(ADD_GROUP, groupid=first)
    carol.refused(ADD_GROUP, TOO_LARGE, groupid=first)
    for number in range(4):
        ack = alice.chat_acked(people[4], "m%d" % number)
        assert (ack["errno"], ack["state"]) == (0, "stored")
    assert alice.chat_acked(people[4], "one too many")["errno"] == TOO_LARGE
    alice.chat(people[4], "silent", req="q")
    error = error_of(alice, req="q")
    assert error["errno"] == TOO_LARGE and error["of"] == 5
    late = daemon.login(people[4])
    assert late.texts() == ["m0", "m1", "m2", "m3"]


def test_lengths(daemon):
    client = daemon.connect()
    for name in ("x" * 49 + "y", "\u00e9" * 49 + "x", "\U0001f600" * 50, "a", "with spaces and \"quotes\" \\ {}"):
        name = name[:-5] + unique("")[-5:] if len(name) > 10 else name
        reply = client.request(REG, name=name, password="x")
        assert reply["errno"] in (0, REFUSED), reply
        assert reply["errno"] == 0 or len(name) == 1
    for name in ("x" * 51, "\u00e9" * 51, "y" * 5000):
        client.refused(REG, (MALFORMED, TOO_LARGE), name=name, password="x")
    client.ok(REG, name=unique("p"), password="x" * 128)
    client.ok(REG, name=unique("p"), password="\u00e9" * 64)
    client.refused(REG, (MALFORMED, TOO_LARGE), name=unique("p"), password="x" * 129)
    client.refused(REG, (MALFORMED, TOO_LARGE), name=unique("p"), password="\u00e9" * 65)
    alice = daemon.online()
    alice.ok(CREATE_GROUP, groupname=unique("g"), groupdesc="\u00e9" * 200)
    alice.refused(CREATE_GROUP, (MALFORMED, TOO_LARGE), groupname=unique("g"), groupdesc="d" * 201)
    alice.refused(CREATE_GROUP, (MALFORMED, TOO_LARGE), groupname="g" * 51, groupdesc="d")
    alice.ok(CREATE_GROUP, groupname="\u20ac" * 45 + unique("")[-5:], groupdesc="")


def test_only_ascii_case_is_folded(daemon):
    client = daemon.connect()
    tail = unique("")
    client.ok(REG, name="\u00c4rger" + tail, password="x")
    client.ok(REG, name="\u00e4rger" + tail, password="x")
    client.ok(REG, name="Arger" + tail, password="x")
    client.ok(REG, name="stra\u00dfe" + tail, password="x")
    client.ok(REG, name="strasse" + tail, password="x")
    client.refused(REG, REFUSED, name="STRASSE" + tail, password="x")
    client.refused(REG, REFUSED, name="\u00c4RGER" + tail, password="x")
    client.ok(REG, name="e\u0301" + tail, password="x")     # no normalisation either
    client.ok(REG, name="\u00e9" + tail, password="x")
    client.ok(REG, name="x" + tail + " ", password="x")      # blanks count
    client.ok(REG, name="x" + tail, password="x")
    reply = client.ok(LOGIN, name="aRGER" + tail, password="x")
    assert reply["name"] == "Arger" + tail


def test_the_same_names_fold_alike_on_mariadb(make_daemon, mariadb):
    daemon = make_daemon(store=mariadb.url(mariadb.database()))
    test_only_ascii_case_is_folded(daemon)
    test_lengths(daemon)


def test_registration_can_be_off(make_daemon):
    daemon = make_daemon(registration="off")
    daemon.connect().refused(REG, NOT_ALLOWED, name="newcomer", password="x")
