"""The scripts of worker/claim.c against a real Redis: who gets a user, and who keeps one."""

import json
import os
import re
import threading

import pytest

from parleytest import *

pytestmark = needs_redis

SOURCE = os.path.join(os.path.dirname(__file__), "..", "..", "worker", "claim.c")
GRACE = 400
TEXT = r'"((?:[^"\\]|\\.)*)"'


def unescape(text):
    return text.encode().decode("unicode_escape")


def read_scripts():
    """{name: Lua} of the C source's string literals."""
    with open(SOURCE) as file:
        source = file.read()
    parts = {m[1]: "".join(unescape(t) for t in re.findall(TEXT, m[2]))
             for m in re.finditer(r"#define (LUA_\w+) \\\n((?:.*\\\n)*.*\n)", source)}
    return {m[1]: "".join(parts[t[2]] if t[2] else unescape(t[1])
                          for t in re.finditer(TEXT + r"|\b(LUA_\w+)", m[2]))
            for m in re.finditer(r"struct bus_script script_(\w+) = \{ \.text =(.*?)\};", source, re.S)}


class Book:
    """The claims of one Redis, as hosts make them."""

    def __init__(self, redis):
        self.redis, self.scripts = redis, read_scripts()
        self.redis.flush()
        self.readers = {}

    def host(self, name, epoch, entry=True, reader=True):
        """An entry and a reader, each there or not."""
        if entry:
            self.redis("SET", "p:host:" + name, json.dumps({"epoch": str(epoch), "address": "x:1"}))
        else:
            self.redis("DEL", "p:host:" + name)
        if name in self.readers:
            self.readers.pop(name).close()
            wait_until(lambda: not self.redis.channels("p:to:" + name), 5)
        if reader:
            self.readers[name] = self.redis.connect()
            self.readers[name]("SUBSCRIBE", "p:to:" + name)

    def take(self, user, host, epoch, login, number, over="", redis=None):
        """[0, former claim of a host that may live, 1 where it was another host's] or [1 or 2, claim]."""
        return (redis or self.redis)("EVAL", self.scripts["take"], 1, "p:user:%d" % user, host, epoch, login,
                                     number, over, GRACE, "p:host:", "p:to:", "p:silent:")

    def release(self, user, host, epoch, number):
        self.redis("EVAL", self.scripts["release"], 1, "p:user:%d" % user, host, epoch, number)

    def restore(self, host, epoch, *sessions):
        """SESSIONS: (user, login_ms, number, mode)."""
        flat = self.redis("EVAL", self.scripts["restore"], 0, host, epoch, "p:user:", "p:host:",
                          *("%d %d %d %s" % s for s in sessions))
        self.missing = flat.pop()               # how many were not there
        return [tuple(flat[i:i + 3]) for i in range(0, len(flat), 3)]

    def where(self, user):
        return self.redis("EVAL", self.scripts["where"], 1, "p:user:%d" % user, "p:host:")

    def claim(self, user):
        return self.redis("GET", "p:user:%d" % user)


@pytest.fixture(scope="module")
def redis_of_module():
    with Redis() as redis:
        yield redis


@pytest.fixture
def book(redis_of_module):
    made = Book(redis_of_module)
    yield made
    for reader in made.readers.values():
        reader.close()


def test_free_then_taken(book):
    book.host("a", 1)
    book.host("b", 2)
    assert book.take(7, "a", 1, 100, 1) == [0, "", 0]
    assert book.claim(7) == "a 1 100 1"
    assert book.take(7, "b", 2, 200, 1) == [1, "a 1 100 1"]
    assert book.claim(7) == "a 1 100 1"
    assert book.where(7) == "a 1 100 1"


def test_ours_whatever_epoch(book):
    book.host("a", 1)
    assert book.take(7, "a", 1, 100, 1) == [0, "", 0]
    assert book.take(7, "a", 1, 200, 2) == [0, "", 0]
    assert book.claim(7) == "a 1 200 2"
    assert book.take(7, "a", 9, 300, 1) == [0, "", 0]      # numbers begin anew with a life
    assert book.claim(7) == "a 9 300 1"


def test_an_older_login_of_ours_gives_way(book):
    """Executed late, behind the claim of the login that followed it."""
    book.take(7, "a", 1, 200, 12)
    assert book.take(7, "a", 1, 100, 9)[0] == 0
    assert book.claim(7) == "a 1 200 12"
    assert book.restore("a", 1, (7, 100, 9, "s")) == []
    assert book.claim(7) == "a 1 200 12"


def test_release_is_exact(book):
    book.take(7, "a", 1, 100, 5)
    for host, epoch, number in (("b", 1, 5), ("a", 2, 5), ("a", 1, 4), ("a", 1, 55)):
        book.release(7, host, epoch, number)
        assert book.claim(7) == "a 1 100 5"
    book.release(7, "a", 1, 5)
    assert book.claim(7) is None
    book.release(7, "a", 1, 5)
    assert book.where(7) is None


def test_of_a_host_without_entry_and_reader(book):
    book.host("a", 1, entry=False, reader=False)
    book.take(7, "a", 1, 100, 1)
    assert book.where(7) is None
    assert book.take(7, "b", 2, 50, 1) == [0, "", 1]


def test_of_another_epoch(book):
    book.host("a", 2)
    book.take(7, "a", 1, 100, 1)
    assert book.where(7) is None
    assert book.take(7, "b", 2, 50, 1) == [0, "", 1]


@pytest.mark.parametrize("entry, reader", [(True, False), (False, True)])
def test_grace(book, entry, reader):
    """A leader is being replaced, or a host writes its entry for the first time."""
    book.take(7, "a", 1, 100, 1)
    book.host("a", 1, entry=entry, reader=reader)
    assert book.take(7, "b", 2, 200, 1) == [2, "a 1 100 1"]
    assert "p:silent:a:1" in book.redis.keys()
    assert 0 < book.redis("PTTL", "p:silent:a:1") <= GRACE * 6
    assert book.claim(7) == "a 1 100 1"
    answers = []
    wait_until(lambda: answers.append(book.take(7, "b", 2, 200, 1)) or answers[-1][0] == 0, 10)
    assert answers[-1] == [0, "a 1 100 1", 1]              # and whose it was, who may yet live
    assert book.claim(7) == "b 2 200 1"


def test_grace_begins_anew_after_a_reader(book):
    book.take(7, "a", 1, 100, 1)
    book.host("a", 1, reader=False)
    assert book.take(7, "b", 2, 200, 1)[0] == 2
    book.host("a", 1)
    assert book.take(7, "b", 2, 200, 1)[0] == 1
    assert "p:silent:a:1" not in book.redis.keys()
    book.host("a", 1, reader=False)
    book.redis("SET", "p:silent:a:0", "1")              # another life's silence says nothing
    assert book.take(7, "b", 2, 200, 1)[0] == 2


def test_over(book):
    """Its host says that there is no such session: only exactly that claim is overridden."""
    book.host("a", 1)
    book.take(7, "a", 1, 100, 1)
    assert book.take(7, "b", 2, 200, 1, over="a 1 100 2")[0] == 1
    assert book.take(7, "b", 2, 200, 1, over="a 1 100 1") == [0, "", 1]
    assert book.claim(7) == "b 2 200 1"


@pytest.mark.parametrize("text", ["", "nonsense", "a 1 2", "a 1 2 3 4", "a x 2 3"])
def test_what_is_no_claim_is_free(book, text):
    book.redis("SET", "p:user:7", text)
    assert book.take(7, "b", 2, 200, 1) == [0, "", 0]


@pytest.mark.parametrize("text", ["nonsense", "[]", "3", "{}"])
def test_entry_that_cannot_be_read_counts_as_alive(book, text):
    book.host("a", 1)
    book.take(7, "a", 1, 100, 1)
    book.redis("SET", "p:host:a", text)
    assert book.take(7, "b", 2, 200, 1)[0] == 1


def test_large_numbers_keep_their_digits(book):
    big = 2 ** 64 - 1
    book.host("a", big)
    assert book.take(7, "a", big, 1700000000123, 1) == [0, "", 0]
    assert book.claim(7) == "a %d 1700000000123 1" % big
    assert book.take(7, "b", big - 1, 1700000000124, 1)[0] == 1


def test_one_wins(book):
    """Eight hosts want the same fifty users at the same time."""
    for k in range(8):
        book.host("h%d" % k, k + 1)
    won = [[] for _ in range(8)]

    def run(k):
        with book.redis.connect() as redis:
            for user in range(1, 51):
                if book.take(user, "h%d" % k, k + 1, 100, user, redis=redis)[0] == 0:
                    won[k].append(user)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sum(won, [])) == list(range(1, 51))


# -- restore -------------------------------------------------------------------------------------

def test_restore_after_a_flush(book):
    book.host("a", 1)
    sessions = [(user, 100 + user, user, "s") for user in range(1, 300)]
    assert book.restore("a", 1, *sessions) == [] and book.missing == 299
    assert all(book.claim(u) == "a 1 %d %d" % (100 + u, u) for u in range(1, 300))
    assert book.restore("a", 1, *sessions) == [] and book.missing == 0


@pytest.mark.parametrize("ours, theirs, wins", [(200, 100, True), (100, 200, False), (100, 100, True)])
def test_restore_newer_login_wins(book, ours, theirs, wins):
    """Where both are of the same moment, both hosts come to the same end."""
    book.host("b", 2)
    book.host("a", 1)
    book.take(7, "a", 1, theirs, 3)
    assert book.restore("b", 2, (6, 1, 1, "s"), (7, ours, 4, "s"), (8, 1, 2, "s")) == [
        (1, int(wins), "a 1 %d 3" % theirs)]
    assert book.claim(7) == ("b 2 %d 4" % ours if wins else "a 1 %d 3" % theirs)
    again = book.restore("a", 1, (7, theirs, 3, "s"))
    assert again == ([(0, 0, "b 2 %d 4" % ours)] if wins else [])


def test_restore_of_an_ending_session_takes_nothing(book):
    book.host("a", 1)
    book.take(7, "a", 1, 100, 3)
    assert book.restore("b", 2, (7, 200, 4, "w"), (8, 200, 5, "w")) == []
    assert (book.claim(7), book.claim(8)) == ("a 1 100 3", "b 2 200 5")


def test_restore_over_a_life_that_is_over(book):
    book.take(7, "a", 1, 900, 3)
    assert book.restore("b", 2, (7, 200, 4, "s")) == []
    assert book.claim(7) == "b 2 200 4"
