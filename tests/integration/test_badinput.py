"""A corpus of bad input against the whole daemon: whatever comes, it answers and goes on."""

import os
import random

import pytest

from parleytest import *
from parleytest.daemon import ROOT

CORPUS = os.path.join(ROOT, "tests", "fuzz", "corpus")


def corpus():
    for folder, _, names in sorted(os.walk(CORPUS)):
        for name in sorted(names):
            with open(os.path.join(folder, name), "rb") as file:
                yield os.path.relpath(os.path.join(folder, name), CORPUS), file.read()


def throw(daemon, data, account=None, dialect="plain"):
    """Sends DATA on a fresh connection, logged in or not, and reads to the end of the stream."""
    client = daemon.connect(dialect)
    if account:
        client.login(account)
    try:
        client.send_raw(data)
        client.shutdown()
    except OSError:
        pass
    return client


@pytest.mark.parametrize("logged_in", [False, True], ids=["before-login", "after-login"])
@pytest.mark.parametrize("dialect", ["plain", "classic"])
def test_corpus(daemon, dialect, logged_in):
    files = list(corpus())
    assert files, "no corpus in tests/fuzz/corpus"
    accounts = daemon.accounts(20)
    workers = daemon.workers
    for start in range(0, len(files), 20):
        clients = [throw(daemon, data, account if logged_in else None, dialect)
                   for (_, data), account in zip(files[start:start + 20], accounts)]
        for client in clients:
            client.wait(lambda c: c.eof, 10, "the end")
        for client in clients:
            client.close()
            daemon.clients.remove(client)
        if logged_in:
            accounts = daemon.accounts(20)      # what was sent may have changed anything about them
    assert daemon.workers == workers
    daemon.online().ping()


def test_bad_frames_of_the_corpus_get_error_and_the_end(daemon):
    names = []
    for name, data in corpus():
        if name.startswith("frame/bad-"):
            client = throw(daemon, data)
            client.wait(lambda c: c.eof, 10, "the end after " + name)
            assert client.frames and client.frames[-1].kind == ERROR, name
            names.append(name)
            client.close()
    assert len(names) > 20


GOOD = b'{"msgid":5,"to":%d,"msg":"h\\u00e9llo","time":"now","extra":{"a":[1,2.5e3,true,null]},"cid":"c%d"}\n'


@pytest.mark.parametrize("seed", range(4))
def test_mutated_requests(daemon, seed):
    """Good frames with bytes changed, cut, doubled and swapped; never a dead worker, never silence."""
    dice = random.Random(seed)
    workers = daemon.workers
    watcher = daemon.online()
    for round_ in range(8):
        clients = []
        for account in daemon.accounts(10):
            client = daemon.login(account)
            data = bytearray(b"".join(GOOD % (account.id, n) for n in range(5)))
            for _ in range(dice.randrange(1, 6)):
                place = dice.randrange(len(data))
                choice = dice.randrange(4)
                if choice == 0:
                    data[place] = dice.randrange(256)
                elif choice == 1:
                    del data[place:place + dice.randrange(1, 20)]
                elif choice == 2:
                    data[place:place] = data[place:place + dice.randrange(1, 40)]
                else:
                    data[place:place] = bytes(dice.choice(b'{}[]",:\\0123456789-eE.tfn\n\0 ') for _ in range(dice.randrange(1, 5)))
            client.send_raw(bytes(data))
            client.shutdown()
            clients.append(client)
        for client in clients:
            client.wait(lambda c: c.eof, 10, "the end")
            client._raise_violations()
            client.close()
    watcher.ping()
    assert daemon.workers == workers


def test_random_bytes(daemon):
    dice = random.Random(1)
    for _ in range(100):
        client = daemon.connect()
        client.send_raw(bytes(dice.randrange(256) for _ in range(dice.randrange(1, 300))))
        client.shutdown()
        client.wait(lambda c: c.eof, 10, "the end")
    daemon.online().ping()


@pytest.mark.parametrize("name,data", [
    ("brackets", b'{"a":' + b"[" * 32000 + b"]" * 32000 + b"}"),
    ("empty keys", b"{" + b",".join(b'"%d":0' % n for n in range(8000)) + b"}"),
    ("one long string", b'{"a":"' + b"x" * 65000 + b'"}'),
    ("many escapes", b'{"a":"' + b"\\u0041" * 10000 + b'"}'),
    ("deep objects", b'{"a":' * 5000),
], ids=lambda v: v if isinstance(v, str) else "")
def test_expensive_input_is_cheap(daemon, name, data):
    """Nothing quadratic: twenty of them are answered in a moment."""
    watch = Stopwatch()
    clients = []
    for _ in range(20):
        client = daemon.connect()
        client.send_raw(data + b"\n")
        client.send_raw(b'{"msgid":25}\n')
        clients.append(client)
    for client in clients:
        client.wait(lambda c: c.frames, 10, "an answer")
    assert watch.seconds < 2 * SCALE
