"""A unix stream socket is a listener like any other."""

import os
import socket
import stat

from parleytest import *


def test_chat_between_unix_and_tcp(daemon):
    alice = daemon.online(address=daemon.unix)
    bob = daemon.online(slot=1)
    alice.chat(bob, "from the unix side")
    bob.expect(CHAT, msg="from the unix side")
    bob.chat(alice, "from tcp")
    alice.expect(CHAT, msg="from tcp")
    alice.ok(LOGOUT)
    assert bob.chat_acked(alice, "later")["state"] == "stored"
    assert alice.login(alice.account)["offlinemsg"][0]["msg"] == "later"


def test_many_unix_clients_are_served(daemon):
    people = [daemon.online(address=daemon.unix) for _ in range(20)]
    for sender, receiver in zip(people, people[1:]):
        sender.chat(receiver, "x")
        receiver.expect(CHAT)


def test_errors_and_end_on_unix(daemon):
    client = daemon.connect(address=daemon.unix)
    client.send_raw(b"nonsense\n")
    client.expect(ERROR)
    client.wait_closed()


def test_unix_clients_survive_other_workers_deaths(make_daemon):
    daemon = make_daemon(workers=3)
    people = [daemon.online(address=daemon.unix) for _ in range(9)]
    ended = 0
    for slot in range(3):
        daemon.wait_worker(slot, daemon.kill_worker(slot))
        daemon.connect(address=daemon.unix).ping()
    ended = sum(p.eof for p in people)
    assert ended <= len(people)
    for person in people:
        if not person.eof:
            person.ping()
        else:
            daemon.relogin(person.account, address=daemon.unix)


def test_file_is_made_and_removed(make_daemon):
    daemon = make_daemon()
    assert stat.S_ISSOCK(os.stat(daemon.unix).st_mode)
    daemon.stop()
    assert not os.path.exists(daemon.unix)


def test_stale_socket_file_is_replaced(make_daemon):
    daemon = make_daemon(start=False)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(daemon.unix)
    assert os.path.exists(daemon.unix)
    daemon.start()
    daemon.connect(address=daemon.unix).ping()


def test_living_server_is_not_replaced(make_daemon):
    daemon = make_daemon(start=False)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(daemon.unix)
        other.listen()
        daemon.allow(".")
        daemon.spawn()
        assert daemon.wait_exit() not in (0, None)
        assert daemon.log_contains("chat.sock")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(daemon.unix)


def test_other_files_are_not_replaced(make_daemon):
    daemon = make_daemon(start=False)
    with open(daemon.unix, "w") as file:
        file.write("precious")
    daemon.allow(".")
    daemon.spawn()
    assert daemon.wait_exit() not in (0, None)
    with open(daemon.unix) as file:
        assert file.read() == "precious"


def test_classic_dialect_on_unix(make_daemon):
    daemon = make_daemon(start=False)
    daemon.write_conf(listen=["127.0.0.1:%d" % daemon.port, daemon.unix + " dialect=classic"])
    daemon.start()
    client = daemon.connect("classic", address=daemon.unix)
    account = daemon.account()
    client.login(account)
    client.chat(account, "x")
    assert client.expect(CHAT)["toid"] == account.id
