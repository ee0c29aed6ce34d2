"""parley without a terminal: commands on standard input, results on standard output, exit codes."""

import json
import os
import subprocess

import pytest

from client_support import Filter, PROGRAM, environment, run_filter
from fake_server import FakeServer
from parleytest import holds_for, wait_until


@pytest.fixture
def server():
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def filters():
    made = []
    yield made
    for each in made:
        each.kill()


def events(done, kind):
    return [e for e in done.events if e["event"] == kind]


# ---- arguments and exit codes ----

@pytest.mark.parametrize("args, said", [
    (["--bogus"], "no option"),
    (["-p"], "needs a value"),
    (["-p", "70000"], "is no port"),
    (["-p", "6o00"], "is no port"),
    (["--wait", "soon"], "number of seconds"),
    (["alice", "bob"], "one NAME"),
    (["-h", ""], "is no host"),
    (["-h", "[::1"], "is no host"),
    (["-h", "host:99999"], "is no port"),
    (["-h", "one,,two"], "is no host"),
    (["--register", "17"], "is an id"),
    (["--password-file", "/nonexistent", "alice"], "No such file"),
    (["--password-file", "-", "alice"], "standard input"),
    (["--password-file", "/dev/null", "alice"], "is empty"),
    (["alice\xff".encode("latin-1")], "not UTF-8"),
])
def test_usage_errors_are_exit_2(tmp_path, args, said):
    done = subprocess.run([PROGRAM, *args], capture_output=True, stdin=subprocess.DEVNULL,
                          env=environment(tmp_path), timeout=20)
    assert done.returncode == 2
    assert said in done.stderr.decode("utf-8", "replace")
    assert done.stdout == b""


@pytest.mark.parametrize("option", ["--help", "-V", "--version"])
def test_help_and_version(tmp_path, option):
    done = subprocess.run([PROGRAM, option], capture_output=True, env=environment(tmp_path), timeout=20)
    assert done.returncode == 0 and done.stdout and not done.stderr


def test_no_server_is_exit_3(tmp_path, server):
    server.close()
    done = run_filter(tmp_path, server.port, "alice", ["help"])
    assert done.returncode == 3
    assert "cannot connect" in done.err and "refused" in done.err


def test_refused_login_is_exit_4(tmp_path, server):
    server.add_user("alice", "right")
    done = run_filter(tmp_path, server.port, "alice", ["chat:alice:hi"])
    assert done.returncode == 4
    assert "wrong id or password" in done.err
    assert server.of(5) == []


def test_login_elsewhere_is_exit_4(tmp_path, server):
    server.add_user("alice")
    server.refuse_logins.append({"errno": 2, "errmsg": "this account is online elsewhere"})
    done = run_filter(tmp_path, server.port, "alice")
    assert done.returncode == 4 and "online elsewhere" in done.err


def test_login_waits_where_it_is_asked_to(tmp_path, server):
    server.add_user("alice")
    server.refuse_logins += [{"errno": 7, "retry_ms": 150}, {"errno": 9, "retry_ms": 150}]
    done = run_filter(tmp_path, server.port, "alice")
    assert done.returncode == 0
    assert len(server.of(1)) == 3


def test_no_password_is_exit_2(tmp_path, server):
    server.add_user("alice")
    done = run_filter(tmp_path, server.port, "alice", password=None)
    assert done.returncode == 2 and "PARLEY_PASSWORD" in done.err


def test_password_file_and_environment(tmp_path, server):
    server.add_user("alice", "from a file")
    file = tmp_path / "password"
    file.write_text("from a file\nsecond line\n")
    done = run_filter(tmp_path, server.port, "alice", (), "--password-file", str(file), password="wrong")
    assert done.returncode == 0


def test_failed_command_is_exit_1_and_the_rest_is_done(tmp_path, server):
    server.add_user("alice")
    done = run_filter(tmp_path, server.port, "alice", ["addfriend:nobody", "/bogus", "chat:alice:still"])
    assert done.returncode == 1
    assert "line 1: cannot add nobody to your friends: no such user (errno 5)" in done.err
    assert "line 2: /bogus is no command" in done.err
    assert "delivered: alice" in done.out


def test_register_and_taken_name(tmp_path, server):
    done = run_filter(tmp_path, server.port, "zoë", (), "--register")
    assert done.returncode == 0
    assert "registered zoë (id 1)" in done.out and "logged in as zoë (id 1)" in done.out
    done = run_filter(tmp_path, server.port, "zoë", (), "--register")
    assert done.returncode == 4 and "taken" in done.err


def test_several_hosts(tmp_path, server):
    server.add_user("alice")
    gone = FakeServer()
    gone.close()
    done = run_filter(tmp_path, 1, "alice", (), "-h", f"127.0.0.1:{gone.port}", "-h",
                      f"localhost:{server.port}")
    assert done.returncode == 0 and "logged in" in done.out


def test_a_script_may_log_in_by_itself(tmp_path, server):
    done = run_filter(tmp_path, server.port, None, ["chat:ann:hi", "/register ann secret word",
                      "chat:ann:hi", "loginout", "chat:ann:hi", "/login ann secret word", "chat:1:again"],
                      password=None)
    assert done.returncode == 1
    assert done.err.count("not logged in") == 2
    assert server.users[1]["password"] == "secret word"
    assert [f["msg"] for f in server.of(5)] == ["hi", "again"]


# ---- commands ----

def test_the_commands_of_the_documents(tmp_path, server):
    server.add_user("alice")
    bob = server.add_user("bob")
    done = run_filter(tmp_path, server.port, "alice", [
        "help", f"addfriend:{bob}", "chat:2:by id: with colons", "chat:bob:by name", "showfriendlist",
        "creategroup:cats:we: like cats", "groupchat:100:by id", "groupchat:cats:by name",
        "showgrouplist", "delgroup:cats", "addgroup:100", "delfriend:bob", "loginout"])
    assert (done.returncode, done.err) == (0, "")
    assert [(f["to"], f["msg"]) for f in server.of(5)] == [(2, "by id: with colons"), (2, "by name")]
    assert [(f["groupid"], f["msg"]) for f in server.of(9)] == [(100, "by id"), (100, "by name")]
    assert server.of(7)[0]["groupname"] == "cats" and server.of(7)[0]["groupdesc"] == "we: like cats"
    assert [f["friendid"] for f in server.of(6) + server.of(17)] == [2, 2]
    assert server.of(10) and server.of(21) and server.of(23)
    assert "we: like cats" in done.out


def test_the_slash_commands(tmp_path, server):
    server.add_user("alice")
    server.add_user("Bob Smith")
    done = run_filter(tmp_path, server.port, "alice", [
        '/friend Bob Smith', '/msg "Bob Smith" hello there', '/to "Bob Smith"', "plain text",
        "//slash", "/say help", '/create "a:b c" about it', '/g "a:b c" to the group', '/to #a:b c',
        "in the group", "/who", "/who #a:b c", "/friends", "/groups", "/status", "/ping",
        '/unfriend Bob Smith', '/leave a:b c', "/quit", "never reached"])
    assert (done.returncode, done.err) == (
        0, "parley: what you type goes to \"Bob Smith\" now\n"
           "parley: what you type goes to #\"a:b c\" now\n")
    assert [(f["to"], f["msg"]) for f in server.of(5)] == [
        (2, "hello there"), (2, "plain text"), (2, "/slash"), (2, "help")]
    assert [(f["groupid"], f["msg"]) for f in server.of(9)] == [
        (100, "to the group"), (100, "in the group")]
    assert "alice  (creator)" in done.out and "never" not in done.out


def test_names_made_of_digits(tmp_path, server):
    server.add_user("alice")
    server.add_user("bob")
    server.add_user("2")
    run_filter(tmp_path, server.port, "alice", ["/msg 2 to the id", '/msg "2" to the name',
                                               "/msg @2 to the name"])
    assert [f["to"] for f in server.of(5)] == [2, "2", "2"]


def test_reply_goes_to_the_last_writer(tmp_path, server, filters):
    alice, bob = server.add_user("alice"), server.add_user("bob")
    server.stored[alice] = [{"msgid": 5, "id": bob, "name": "bob", "to": alice, "msg": "ping?",
                             "time": "", "mid": "m1"}]
    done = run_filter(tmp_path, server.port, "alice", ["/r pong"])
    assert done.returncode == 0
    assert [(f["to"], f["msg"]) for f in server.of(5)] == [(bob, "pong")]


def test_long_lists_come_in_pages(tmp_path, server):
    alice = server.add_user("alice")
    server.friends[alice] = [server.add_user(f"friend{i}") for i in range(7)]
    server.add_group("big", *([alice] + server.friends[alice]))
    done = run_filter(tmp_path, server.port, "alice", ["/friends", "/who big"], "--json")
    assert [f["name"] for f in events(done, "friends")[0]["friends"]] == [f"friend{i}" for i in range(7)]
    members = events(done, "members")[0]
    assert [m["name"] for m in members["users"]] == ["alice"] + [f"friend{i}" for i in range(7)]
    assert members["users"][0] == {"id": 1, "name": "alice", "state": "online", "role": "creator"}


@pytest.mark.parametrize("line, said", [
    (b"\xff\xfe\n", "not UTF-8"),
    (b"a\0b\n", "not UTF-8"),
    (b"x" * 200000 + b"\n", "too long"),
    (b"chat:bob:" + b"x" * 61500 + b"\n", "too long"),
    (b"chat:bob:" + b"\x01" * 20000 + b"\n", "too long"),
    (b"chat:bob:\n", "empty"),
    (b"/msg\n", "who?"),
    (b"/g\n", "which group?"),
    (b"chat:" + b"n" * 51 + b":x\n", "1 to 50 characters"),
    (b'/msg "bob hello\n', "closing quote"),
    (b"hello\n", "no conversation"),
    (b"/r hello\n", "nobody has written"),
    (b"/create\n", "what is the group's name"),
    (b"/create g " + b"d" * 801 + b"\n", "200 characters"),
], ids=lambda v: ascii(v)[:24])
def test_bad_lines(tmp_path, server, line, said):
    server.add_user("alice")
    server.add_user("bob")
    done = subprocess.run([PROGRAM, "-p", str(server.port), "alice"], input=line + b"chat:bob:after\n",
                          capture_output=True, env=environment(tmp_path, PARLEY_PASSWORD="pw"), timeout=20)
    assert done.returncode == 1
    assert said in done.stderr.decode() and "line 1" in done.stderr.decode()
    assert [f["msg"] for f in server.of(5)] == ["after"]


def test_errors_of_the_server_are_one_line_each(tmp_path, server):
    server.add_user("alice")
    server.add_group("cats", 1)
    server.refusals = [{"errno": n, "errmsg": f"because of {n}\x1b[31m"} for n in (3, 5, 6, 8)]
    done = run_filter(tmp_path, server.port, "alice",
                      ["chat:alice:a", "chat:alice:b", "groupchat:cats:c", "chat:alice:d", "addgroup:cats"])
    assert done.returncode == 1
    lines = done.err.splitlines()
    assert lines[0] == ("parley: line 1: the message to alice was refused: because of 3\\x1b[31m (errno 3)")
    assert [l[-9:] for l in lines] == ["(errno 3)", "(errno 5)", "(errno 6)", "(errno 8)", "errno 10)"]
    assert "#cats" in lines[2] and "cannot join #cats" in lines[4]


# ---- output ----

def test_json_is_documented_events(tmp_path, server):
    alice, bob = server.add_user("alice"), server.add_user("bob")
    cats = server.add_group("cats", bob, alice)
    server.stored[alice] = [
        {"msgid": 5, "id": bob, "name": "bob", "to": alice, "msg": 'quote " \x1b[2J \x9b2J \u202e', "time": "T",
         "mid": "m1", "ts": 1700000000000},
        {"msgid": 9, "id": bob, "name": "bob", "groupid": cats, "msg": "hi all", "time": "T",
         "mid": "m2", "ts": 1700000000001}]
    done = run_filter(tmp_path, server.port, "alice",
                      ["addfriend:bob", "chat:bob:hi", "addfriend:nobody", "/groups"], "--json")
    assert done.returncode == 1
    assert not set("\x1b\x9b\u202e") & set(done.out)
    assert done.events[0] == {"event": "login", "id": 1, "name": "alice", "again": False,
                              "server": f"127.0.0.1:{server.port}", "waiting": 2}
    assert done.events[1] == {
        "event": "message", "from": {"id": bob, "name": "bob"}, "to": {"id": alice, "name": "alice"},
        "text": 'quote " \x1b[2J \x9b2J \u202e', "time": "T", "ts": 1700000000000, "mid": "m1", "waiting": True}
    assert done.events[2]["group"] == {"id": cats, "name": "cats"} and "to" not in done.events[2]
    assert done.events[3] == {"event": "friend_added", "friend": {"id": bob, "name": "bob"}}
    ack = done.events[4]
    assert (ack["event"], ack["state"], ack["to"]) == ("ack", "stored", {"id": bob, "name": "bob"})
    assert ack["cid"] == server.of(5)[0]["cid"] and ack["mid"] in server.had
    assert done.events[5]["groups"] == [{"id": cats, "name": "cats", "desc": "", "members": 2}]
    error = json.loads(done.err)
    assert (error["event"], error["errno"], error["line"]) == ("error", 5, 3)


def test_text_output_of_messages(tmp_path, server):
    alice, bob = server.add_user("alice"), server.add_user("b:ob")
    server.stored[alice] = [{"msgid": 5, "id": bob, "name": "b:ob", "to": alice, "time": "",
                             "msg": "bell \a, C1 \x9b31m, override \u202e, line\nbreak, 日本 ok 👩‍🚀",
                             "mid": "m1", "ts": 1700000000000}]
    done = run_filter(tmp_path, server.port, "alice")
    assert ('[2023-11-14 22:13:20] "b:ob": bell \\x07, C1 \\u009b31m, override \\u202e, line\\nbreak, '
            "日本 ok 👩‍🚀\n") in done.out
    assert "\033" not in done.out


def test_no_colours_and_no_escapes_without_a_terminal(tmp_path, server):
    server.add_user("alice")
    done = run_filter(tmp_path, server.port, "alice", ["help", "chat:alice:x", "/friends"])
    assert "\033" not in done.out + done.err


def test_wait_prints_what_comes(tmp_path, server, filters):
    alice, bob = server.add_user("alice"), server.add_user("bob")
    each = Filter(tmp_path, server.port, "alice", "--json", "--wait", "600")
    filters.append(each)
    each.process.stdin.close()
    session = server.wait_online(alice)
    session.chat({"msgid": 5, "id": bob, "name": "bob", "to": alice, "msg": "late", "time": "", "mid": "m"})
    each.wait_out('"late"')
    server.wait(lambda: session.confirmed == 1, "RECEIVED 1", 2)
    each.process.terminate()
    assert each.process.wait(10) == 128 + 15
    assert server.of(10), "a client that is told to end says goodbye"


def test_wait_ends_by_itself(tmp_path, server):
    server.add_user("alice")
    assert run_filter(tmp_path, server.port, "alice", (), "--wait", "1").returncode == 0


def test_kicked_ends_a_script(tmp_path, server, filters):
    alice = server.add_user("alice")
    each = Filter(tmp_path, server.port, "alice", "--wait", "600")
    filters.append(each)
    session = server.wait_online(alice)
    session.send({"msgid": 28, "reason": "kicked"})
    session.cut()
    assert each.end() == 1
    wait_until(lambda: any("kicked" in line for line in each.err))
    assert len(server.of(1)) == 1, "it must wait for the person"


def test_each_command_is_awaited(tmp_path, server, filters):
    server.add_user("alice")
    server.hold_acks = True
    each = Filter(tmp_path, server.port, "alice")
    filters.append(each)
    each.type("chat:alice:first")
    each.type("chat:alice:second")
    server.wait(lambda: server.of(5), "the first message")
    cid = server.of(5)[0]["cid"]
    session = server.wait_online(1)
    session.send({"msgid": 25, "req": "barrier"})
    server.wait(lambda: server.of(26), "PONG")
    assert len(server.of(5)) == 1
    session.send({"msgid": 15, "errno": 0, "cid": cid, "mid": "m", "state": "delivered"})
    server.wait(lambda: len(server.of(5)) == 2, "the second message")


def test_timeout_of_an_answer(tmp_path, server):
    server.add_user("alice")
    server.hold_acks = True
    done = run_filter(tmp_path, server.port, "alice", ["chat:alice:x"], "--timeout", "1")
    assert done.returncode == 1 and "not confirmed within 1 s" in done.err


def test_a_full_pipe_does_not_lose_and_does_not_confirm(tmp_path, server, filters):
    """Nobody reads its output: it stops reading, confirms nothing that is not written, loses nothing."""
    alice, bob = server.add_user("alice"), server.add_user("bob")
    read, write = os.pipe()
    env = environment(tmp_path, PARLEY_PASSWORD="pw")
    client = subprocess.Popen([PROGRAM, "-p", str(server.port), "--json", "--wait", "600", "alice"],
                              stdin=subprocess.DEVNULL, stdout=write, env=env)
    os.close(write)
    try:
        session = server.wait_online(alice)
        count = 100
        for i in range(count):
            session.chat({"msgid": 5, "id": bob, "name": "bob", "to": alice, "msg": f"{i} " + "x" * 20000,
                          "time": "", "mid": f"m{i}"})
        session.send({"msgid": 25, "req": "flood"})
        server.wait(lambda: session.confirmed > 0, "a first confirmation")
        holds_for(lambda: session.confirmed < 10, 0.5, "confirmed what nobody can have read")
        with os.fdopen(read) as lines:
            texts = []
            for line in lines:
                event = json.loads(line)
                if event["event"] == "message":
                    texts.append(event["text"].split()[0])
                if len(texts) == count:
                    break
            assert texts == [str(i) for i in range(count)]
            server.wait(lambda: session.confirmed == count, "RECEIVED of all")
    finally:
        client.kill()
        client.wait()


def test_garbage_from_the_server(tmp_path, server, filters):
    """Frames of wrong types are survived; what is no frame ends the connection, and it comes back."""
    alice = server.add_user("alice")
    each = Filter(tmp_path, server.port, "alice", "--wait", "600")
    filters.append(each)
    session = server.wait_online(alice)
    for frame in ({}, {"msgid": "5"}, {"msgid": 5}, {"msgid": 5, "msg": 7, "n": "x"}, {"msgid": 2},
                  {"msgid": 15, "cid": 5}, {"msgid": 15}, {"msgid": 22, "friends": 5}, {"msgid": 27},
                  {"msgid": 29, "errno": -5, "errmsg": 7}, {"msgid": 9999}, {"msgid": 4, "errno": 0},
                  {"msgid": 11, "friend": []}, {"msgid": 24, "groups": [1, "x", None, {}]},
                  {"msgid": 5, "id": -1, "msg": "from nobody", "mid": "x" * 400, "n": 1}):
        session.send(frame)
    each.wait_out("from nobody")
    session.send_raw(b"}{ this is no frame")
    second = server.wait_online(alice, other_than=session)
    second.send_raw(b'{"msgid":5,"msg":"' + b"y" * 200000)
    third = server.wait_online(alice, other_than=second)
    third.chat({"msgid": 5, "id": 9, "name": "x", "to": alice, "msg": "still here", "mid": "z", "time": ""})
    each.wait_out("still here")
