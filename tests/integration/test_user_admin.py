"""parleyctl user add, passwd, del, import: accounts without the wire."""

import json
import os
import sqlite3

import pytest

from parleytest import *
from parleytest.daemon import Account, unique


def add(daemon, name, password):
    out = daemon.ctl_ok("--json", "user", "add", name, input=password + "\n")
    return Account(json.loads(out)["id"], name, password)


def test_add(daemon):
    account = add(daemon, unique("added"), "first word")
    assert daemon.login(account).id == account.id
    for name in (account.name, account.name.upper(), "", "x" * 51, "a\tb"):
        assert daemon.ctl("user", "add", name, input="pw\n").returncode != 0
    assert daemon.ctl("user", "add", unique("nopw"), input="").returncode != 0


def test_passwd(daemon):
    account = daemon.account()
    online = daemon.login(account)
    daemon.ctl_ok("user", "passwd", account.name, input="new word\n")
    online.ok(LOGOUT)
    client = daemon.connect()
    client.refused(LOGIN, REFUSED, id=account.id, password=account.password)
    client.ok(LOGIN, id=account.id, password="new word")
    assert daemon.ctl("user", "passwd", "nobody of that name", input="x\n").returncode != 0


@pytest.mark.parametrize("is_online", [True, False])
def test_del(daemon, is_online):
    account, friend = daemon.account(), daemon.online()
    friend.ok(ADD_FRIEND, friendid=account.id)
    group = daemon.group(friend)
    client = daemon.login(account)
    client.ok(ADD_GROUP, groupid=group)
    own = daemon.group(client)
    if not is_online:
        client.ok(LOGOUT)
        friend.chat_acked(account, "waiting")
    daemon.ctl_ok("user", "del", account.name)
    if is_online:
        client.wait_closed()
    with daemon.connect() as other:
        other.refused(LOGIN, REFUSED, id=account.id, password=account.password)
        daemon.clients.remove(other)
    assert wait_until(lambda: friend.ok(FRIEND_LIST)["friends"] == [], 3)
    wait_until(lambda: friend.ok(GROUP_LIST, groupid=group)["groups"][0]["members"] == 1, 3)
    friend.refused(ADD_GROUP, NO_SUCH, groupid=own)
    assert friend.chat_acked(account, "gone")["errno"] == NO_SUCH
    assert daemon.ctl("user", "del", account.name).returncode != 0
    with daemon.connect() as other:
        fresh = other.ok(REG, name=account.name, password="x")
        assert fresh["id"] != account.id        # ids are not given again


def test_import(daemon):
    """One user a line: name, a tab (or a colon), password, or an argon2id hash, or * for tokens only."""
    names = [unique("imp") for _ in range(30)]
    done = daemon.ctl_ok("user", "import", "-", input="".join("%s\tpw %s\n" % (n, n) for n in names))
    for name in names[:5]:
        daemon.connect().ok(LOGIN, name=name, password="pw " + name)
    again = daemon.ctl("user", "import", "-", input="%s\tpw\n%s\tpw\n" % (names[0], unique("imp")))
    assert again.returncode != 0 and names[0] in again.stdout + again.stderr
    assert "30" in done
    hashed = sqlite_hash(daemon, names[0])
    path = os.path.join(daemon.dir, "import.txt")
    with open(path, "w") as file:
        file.write("%s:with: colons\n%s\t%s\n%s\t*\n" % ((first := unique("imp")), (second := unique("imp")), hashed, (third := unique("imp"))))
    daemon.ctl_ok("user", "import", path)
    daemon.connect().ok(LOGIN, name=first, password="with: colons")
    daemon.connect().ok(LOGIN, name=second, password="pw " + names[0])
    daemon.connect().refused(LOGIN, REFUSED, name=third, password="*")
    token = daemon.ctl_ok("--quiet", "token", third).strip()
    daemon.connect().ok(LOGIN, name=third, token=token)


def sqlite_hash(daemon, name):
    """The stored hash of a user's password."""
    base = sqlite3.connect("file:%s?mode=ro" % daemon.conf["store"].split(":", 1)[1], uri=True)
    rows = base.execute("SELECT * FROM User").fetchall()
    base.close()
    row = next(r for r in rows if name in r)
    return next(v for v in row if isinstance(v, str) and v.startswith("$argon2id$"))


def test_registration_off_leaves_the_admins_way(make_daemon):
    daemon = make_daemon(registration="off")
    account = add(daemon, "known", "pw")
    daemon.login(account)


def test_password_is_not_taken_from_the_command_line(daemon):
    """It would be in ps for everybody."""
    assert daemon.ctl("user", "add", unique("argv"), "password", input="").returncode != 0
