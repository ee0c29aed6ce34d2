"""parley on a terminal, as a person sees it: a pty with a screen."""

import os
import re
import time

import pytest

from client_support import Tty
from fake_server import FakeServer
from parleytest import SCALE


@pytest.fixture
def server():
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def open_tty(tmp_path, server):
    made = []

    def open_tty(*args, **kw):
        tty = Tty(tmp_path, server.port, *args, **kw)
        made.append(tty)
        return tty

    yield open_tty
    for tty in made:
        assert b"Sanitizer" not in tty.raw and b"runtime error" not in tty.raw, tty.raw
        tty.kill()


@pytest.fixture
def alice(server, open_tty):
    """alice, logged in, with bob as a friend."""
    server.add_user("alice")
    server.add_user("bob")
    server.friends[1] = [2]
    tty = open_tty("--no-color")
    tty.login("alice")
    tty.expect_last("alice> ")
    return tty


def say(server, text, mid, to=1, sender=2):
    server.online[to].chat({"msgid": 5, "id": sender, "name": server.users[sender]["name"], "to": to,
                            "msg": text, "time": "", "mid": mid, "ts": int(time.time() * 1000)})


def test_register_at_the_prompt(server, open_tty):
    tty = open_tty("newcomer")
    tty.expect("^Password:")
    tty.type("s3cret\n")
    tty.expect(r"^No such account or wrong password. Register newcomer\? \[y/N\]")
    tty.type("y\n")
    tty.expect("^Password again:")
    tty.type("s3cret\n")
    tty.expect(r"^registered newcomer \(id 1\)")
    tty.expect(r"^logged in as newcomer \(id 1\)")
    assert b"s3cret" not in tty.raw
    tty.expect_last("newcomer> ")


def test_wrong_password_may_be_tried_again(server, open_tty):
    server.add_user("alice")
    tty = open_tty("alice")
    tty.expect("^Password:")
    tty.type("wrong\n")
    tty.expect("Register alice")
    tty.type("n\n")
    tty.wait(lambda: str(tty.screen).count("Password:") == 2, "the password is asked for again")
    tty.type("pw\n")
    tty.expect("^logged in as alice")


def test_three_wrong_passwords_are_exit_4(server, open_tty):
    server.add_user("alice")
    tty = open_tty("alice")
    for i in range(3):
        tty.wait(lambda: str(tty.screen).count("Password:") == i + 1, "the question")
        tty.type("wrong\n")
        tty.wait(lambda: str(tty.screen).count("Register alice") == i + 1, "the offer")
        tty.type("\n")
    assert tty.wait_end() == 4


def test_no_server_is_exit_3(tmp_path, server, open_tty):
    server.close()
    tty = open_tty()
    assert tty.wait_end() == 3
    tty.expect("cannot connect")


def test_two_people_chat(server, open_tty):
    for name in ("alice", "bob"):
        server.add_user(name)
    alice, bob = open_tty(), open_tty()
    alice.login("alice")
    bob.login("bob")
    alice.type("/msg bob hello bob\n")
    bob.expect(r"^\[\d\d:\d\d\] alice: hello bob$")
    alice.expect(r"^alice \[delivered\]>")
    bob.type("/r hello alice\n")
    alice.expect(r"^\[\d\d:\d\d\] bob: hello alice$")
    alice.type("/to bob\nhow are you?\n")
    bob.expect("alice: how are you")
    alice.expect(r"^alice->bob \[delivered\]>")


@pytest.mark.parametrize("cols", [80, 20])
@pytest.mark.parametrize("typed", ["half a line", "größe und 日本語 wide", "x" * 77, "日本語" * 6])
def test_a_message_does_not_tear_the_line_being_typed(server, open_tty, typed, cols):
    server.add_user("alice")
    server.add_user("bob")
    tty = open_tty("--no-color", cols=cols)
    tty.login("alice")
    tty.expect_last("alice> ")
    tty.type(typed)

    def shown():
        return "".join(tty.screen.lines()[-6:]).replace(" ", "").endswith(("alice>" + typed).replace(" ", ""))

    tty.wait(shown, typed)
    before = len(tty.screen.lines())
    for i in range(3):
        say(server, f"no {i}", f"mid{i}")
    tty.expect("bob: no 2")
    tty.wait(shown, typed + " again")
    tty.settle()
    assert shown()
    text = str(tty.screen).replace("\n", "")
    assert text.replace(" ", "").count(typed.replace(" ", "")) == 1, tty.screen
    assert len(tty.screen.lines()) == before + 3 or before + 3 > 24
    tty.type("\x01/msg bob \x05!\n")        # to the line's begin, a command there; to its end
    server.wait(lambda: server.of(5), "the message")
    assert server.of(5)[0]["msg"] == typed + "!"


def test_cursor_in_the_middle_of_a_wrapped_line(server, open_tty):
    server.add_user("alice")
    server.add_user("bob")
    tty = open_tty("--no-color", cols=20)
    tty.login("alice")
    tty.expect_last("alice> ")
    tty.type("/msg bob abcdefghijklmnopqrstuvwxyz")
    tty.expect("z$")
    tty.type("\x02" * 20)
    tty.settle()
    say(server, "between", "m1")
    tty.expect("bob: between")
    tty.settle()
    tty.type("-HERE-")
    tty.settle()
    tty.type("\n")
    server.wait(lambda: server.of(5), "the message")
    assert server.of(5)[0]["msg"] == "abcdef-HERE-ghijklmnopqrstuvwxyz"
    assert str(tty.screen).replace("\n", "").count("abcdef") == 1, tty.screen


def test_nothing_received_can_control_the_terminal(server, alice):
    evil = "\x1b[2J\x1b]0;title\x07 \x9b2J \r\n\b\x7f \u202egnp.exe \u2028 \x00".replace("\x00", "")
    server.users[2]["name"] = "b\x1b[31mob"
    server.online[1].send({"msgid": 28 + 1, "errno": 3, "errmsg": "bad \x1b[5m thing"})
    say(server, evil, "m1")
    alice.expect("gnp.exe")
    alice.expect(r"bad \\x1b\[5m thing")
    alice.settle()
    for bad in (b"\x1b[2J", b"\x1b]", b"\x1b[31m", b"\x1b[5m", "\x9b".encode(), "\u202e".encode(), b"\x7f"):
        assert bad not in alice.raw, bad


def test_bursts_keep_their_order(server, alice):
    alice.type("typing")
    for i in range(500):
        say(server, f"message {i}", f"mid{i}")
    alice.expect("message 499$")
    numbers = [int(n) for n in re.findall(rb"message (\d+)", alice.raw)]
    assert numbers == list(range(500))
    alice.expect_last("alice> typing")
    server.wait(lambda: server.online[1].confirmed == 500, "all confirmed")


def test_states_of_a_message(server, alice):
    server.hold_acks = True
    alice.type("/to bob\nfirst\n")
    alice.expect_last("alice->bob [sent]> ")
    cid = server.wait(lambda: server.of(5), "the message")[0]["cid"]
    server.online[1].send({"msgid": 15, "errno": 0, "cid": cid, "mid": "m", "state": "stored"})
    alice.expect_last("alice->bob [stored]> ")
    alice.expect(r"^\* bob is not online: the message is stored")
    alice.type("second\n")
    alice.expect_last("alice->bob [sent]> ")
    server.wait(lambda: len(server.of(5)) == 2, "the second message")
    server.online[1].send({"msgid": 15, "errno": 0, "cid": server.of(5)[1]["cid"], "mid": "m",
                           "state": "delivered"})
    alice.expect_last("alice->bob [delivered]> ")
    server.refusals = [{"errno": 6, "errmsg": "not allowed"}]
    alice.type("third\n")
    alice.expect_last("alice->bob [refused]> ")
    alice.expect(r"^! the message to bob was refused: not allowed \(errno 6\)")


def test_offline_and_back(server, alice):
    server.close()
    alice.expect(r"^\* connection lost")
    alice.type("/msg bob meanwhile\n")
    alice.expect_last("alice [offline, 1 waiting]> ")
    alice.type("half")
    server.open()
    alice.expect(r"^\* connected again as alice", 40)
    server.wait(lambda: server.of(5), "the message")
    alice.expect_last("alice [stored]> half")
    assert str(alice.screen).count("connection lost") == 1


def test_presence_is_told(server, alice):
    server.online[1].send({"msgid": 27, "id": 2, "state": "online"})
    alice.expect(r"^\* bob is online$")
    server.online[1].send({"msgid": 27, "id": 2, "state": "offline"})
    alice.expect(r"^\* bob is offline$")


def test_kicked_waits_for_the_person(server, alice):
    server.online[1].send({"msgid": 28, "reason": "kicked"})
    alice.expect("^! .*kicked")
    alice.expect_last("parley> ")
    server.wait(lambda: 1 not in server.online, "the end")
    alice.type("/login\n")
    alice.expect_last("alice> ")


def test_logout_and_login_as_somebody_else(server, alice):
    alice.type("loginout\n")
    alice.expect("^logged out")
    alice.expect_last("parley> ")
    alice.type("/login bob\n")
    alice.expect("^Password:")
    alice.type("pw\n")
    alice.expect("^logged in as bob")
    alice.expect_last("bob> ")


def test_messages_while_a_password_is_asked_for(server, alice):
    alice.type("/register carol\n")
    alice.expect(r"^Password:$")
    say(server, "interruption", "m1")
    alice.expect("bob: interruption")
    alice.expect_last("Password:")
    alice.type("hidden\n")
    alice.expect("^Password again:")
    alice.type("hidden\n")
    alice.expect("^registered carol")
    assert b"hidden" not in alice.raw
    alice.type("\x10")                      # what the history holds
    alice.settle()
    assert "/register carol" not in alice.screen.lines()[-1]


# ---- editing ----

def test_history_is_kept_and_private(tmp_path, server, alice, open_tty):
    alice.type("/msg bob remember me\n")
    server.wait(lambda: server.of(5), "the message")
    alice.type("/quit\n")
    assert alice.wait_end() == 0
    files = list(tmp_path.glob(".local/state/parley/*/alice/history"))
    assert len(files) == 1 and files[0].stat().st_mode & 0o777 == 0o600
    again = open_tty("--no-color")
    again.login("alice")
    again.expect_last("alice> ")
    again.type("\x10\x10")                  # up, over /quit
    again.expect("^alice> /msg bob remember me$")


@pytest.mark.parametrize("typed, becomes", [
    ("/stat\t", "/status "),
    ("/msg bo\t", "/msg bob "),
    ("/msg BO\t", "/msg bob "),
    ("/g Die\t", '/g "Die Größten" '),
    ('/g "Die\t', '/g "Die Größten" '),
    ("/join #ca\t", "/join #cats "),
    ("/to #ca\t", "/to #cats "),
    ("addfr\t", "addfriend:"),
    ("chat:bo\t", "chat:bob:"),
    ("groupchat:ca\t", "groupchat:cats:"),
])
def test_completion(server, open_tty, typed, becomes):
    server.add_user("alice")
    server.friends[1] = [server.add_user("bob"), server.add_user("carol")]
    server.add_group("cats", 1)
    server.add_group("Die Größten", 1)
    tty = open_tty("--no-color")
    tty.login("alice")
    tty.expect_last("alice> ")
    tty.type(typed)
    tty.expect_last("alice> " + becomes)
    tty.type("|")
    tty.expect_last("alice> " + becomes + "|")


def test_completion_lists_several(server, open_tty):
    server.add_user("alice")
    server.friends[1] = [server.add_user("carol"), server.add_user("carl")]
    tty = open_tty("--no-color")
    tty.login("alice")
    tty.expect_last("alice> ")
    tty.type("/msg c\t")
    tty.expect_last("alice> /msg car")
    tty.type("\t")
    tty.expect("^carl  carol$")
    tty.expect_last("alice> /msg car")


def test_interrupt_drops_the_line_then_leaves(server, alice):
    alice.type("rubbish")
    alice.expect_last("alice> rubbish")
    alice.type("\x03")
    alice.expect_last("alice> ")
    alice.type("\x03")
    assert alice.wait_end() == 0
    assert not server.of(5)


def test_end_of_input_leaves(server, alice):
    alice.type("\x04")
    assert alice.wait_end() == 0
    assert server.of(10)


def test_a_terminal_that_is_gone_ends_it(server, alice):
    alice.type("/msg bob last words\n")
    server.wait(lambda: server.of(5), "the message")
    os.close(alice.fd)
    alice.fd = os.open("/dev/null", os.O_RDONLY)
    end = time.monotonic() + 10 * SCALE
    while not alice.status:
        pid, status = os.waitpid(alice.pid, os.WNOHANG)
        if pid:
            alice.status = status or "ended"
        assert time.monotonic() < end, "it lives on without a terminal"
        time.sleep(0.01)


def test_stop_and_continue(server, open_tty):
    server.add_user("alice")
    tty = open_tty("--no-color", under=["bash", "-mc", '"$@"; echo stopped; read x; fg', "bash"])
    tty.login("alice")
    tty.expect_last("alice> ")
    tty.type("before")
    tty.expect_last("alice> before")
    tty.type("\x1a")
    tty.expect("^stopped$")
    say(server, "while away", "m1", sender=1)
    tty.settle()
    assert "while away" not in str(tty.screen)
    tty.type("\n")
    tty.expect("alice: while away$")
    tty.expect_last("alice> before")
    tty.type(" after")
    tty.expect_last("alice> before after")
    tty.type("\x03")
    tty.expect_last("alice> ")
    tty.type("\x04")
    assert tty.wait_end() == 0


def test_resized_window(server, alice):
    import fcntl
    import struct
    import termios
    alice.type("some text here")
    alice.expect_last("alice> some text here")
    alice.screen = type(alice.screen)(24, 60)
    fcntl.ioctl(alice.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    say(server, "after the resize", "m1")
    alice.expect("after the resize")
    alice.type("!")
    alice.expect_last("alice> some text here!")


def test_colours_only_where_wanted(server, open_tty):
    server.add_user("alice")
    plain = open_tty("alice", NO_COLOR="1", PARLEY_PASSWORD="pw")
    plain.expect("^alice>")
    assert b"\x1b[2m" not in plain.raw and b"\x1b[0m" not in plain.raw
    plain.type("/quit\n")
    plain.wait_end()
    coloured = open_tty("alice", PARLEY_PASSWORD="pw")
    coloured.expect("^\\* /help lists the commands")
    coloured.expect_last("alice>")
    assert b"parley>" not in coloured.raw
    assert b"\x1b[2m" in coloured.raw
