"""The database goes away and comes back: errno 9 for what needs it, online chat goes on, nothing hangs."""

import os

import pytest

from parleytest import *
from parleytest.daemon import unique
from parleytest.traffic import Talker

ANSWER_IN = 8       # seconds in which every request has its answer, with the time-outs below


@pytest.fixture
def setting(make_daemon, mariadb):
    daemon = make_daemon(store=mariadb.url(mariadb.database()), pool_wait_ms=1000, store_timeout_seconds=2, pool_init=2, pool_max=4)
    return daemon, mariadb


def outage(mariadb, how):
    """Starts an outage; returns what ends it."""
    if how == "stopped":
        mariadb.stop()
        return mariadb.start
    if how == "killed":
        mariadb.kill()
        return mariadb.start
    mariadb.freeze()
    return mariadb.thaw


HOW = ["stopped", "killed", "frozen"]


@pytest.mark.parametrize("how", HOW)
def test_outage_under_traffic(setting, how):
    daemon, mariadb = setting
    alice, bob = daemon.online(slot=0), daemon.online(slot=1)
    friend, away = daemon.account(), daemon.account("away")
    group = daemon.group(alice)
    bob.ok(ADD_GROUP, groupid=group)
    online = Talker(daemon.online(slot=1), bob.account, "online").start()
    offline = Talker(daemon.online(slot=0), away.name if how == "killed" else away, "offline").start()
    wait_until(lambda: len(offline.sent) > 50 and len(online.sent) > 50, 10, "traffic flows")

    mend = outage(mariadb, how)
    # What needs the store: errno 9 with retry_ms, and soon.
    clients = {kind: daemon.connect(address=daemon.unix) for kind in (REG, LOGIN)}
    clients[REG].send(REG, name=unique("out"), password="x", req="o")
    clients[LOGIN].send(LOGIN, id=friend.id, password=friend.password, req="o")
    alice.send(ADD_FRIEND, friendid=friend.id, req="friend")
    alice.send(CREATE_GROUP, groupname=unique("out"), groupdesc="", req="group")
    alice.group_chat(group, "lost?", cid="gc")
    replies = [clients[REG].expect(REG_ACK, ANSWER_IN, req="o"), clients[LOGIN].expect(LOGIN_ACK, ANSWER_IN, req="o"),
               alice.expect(ADD_FRIEND_ACK, ANSWER_IN, req="friend"), alice.expect(CREATE_GROUP_ACK, ANSWER_IN, req="group"),
               alice.expect(CHAT_ACK, ANSWER_IN, cid="gc")]
    for reply in replies:
        assert reply["errno"] == UNAVAILABLE and reply["retry_ms"] > 0, reply
    # Online chat goes on.
    for number in range(20):
        watch = Stopwatch()
        ack = alice.chat_acked(bob, "during %d" % number)
        assert (ack["errno"], ack["state"]) == (0, "delivered") and watch.seconds < 1 * SCALE
    count = len(online.sent)
    wait_until(lambda: len(online.sent) > count + 50, 10, "online chat goes on")

    mend()
    wait_until(lambda: alice.request(ADD_FRIEND, 15, friendid=friend.id)["errno"] in (0, ALREADY), 20, "the store is used again")
    wait_until(lambda: alice.group_chat_acked(group, "lost?", cid="gc", deadline=15)["errno"] == 0, 20, "group chat again")
    count = len(offline.done())
    wait_until(lambda: len(offline.done()) > count + 50, 15, "offline messages are stored again")
    assert online.finish() == online.sent
    stored = offline.finish()
    assert stored == offline.sent and len(stored) > 100
    client = daemon.relogin(away, deadline=15)
    client.ping(10)
    wait_until(lambda: set(stored) <= set(client.texts()), 15, "every acknowledged message arrives")
    texts = client.texts()
    assert texts == stored, "doubled or out of order"
    assert [f["id"] for f in alice.ok(FRIEND_LIST)["friends"]] == [friend.id]


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_silent_messages_are_stored_later_or_refused(setting, how):
    """Without cid: each is delivered in the end, or ERROR has said that it will not be."""
    daemon, mariadb = setting
    alice, away = daemon.online(slot=0), daemon.account()
    mend = outage(mariadb, how)
    for number in range(20):
        alice.chat(away, "m%d" % number, req=number)
    alice.ping()
    mend()
    client = daemon.relogin(away, deadline=20)
    wait_until(lambda: len({f["req"] for f in alice.of(ERROR)} | {int(t[1:]) for t in client.texts()}) == 20, 20, "20 fates")
    for error in alice.of(ERROR):
        assert error["errno"] == UNAVAILABLE and error["of"] == 5
    texts = client.texts()
    assert len(texts) == len(set(texts))


def test_start_without_the_database(make_daemon, mariadb):
    """It waits or refuses to start; where it runs, it serves as soon as the database is there."""
    url = mariadb.url(mariadb.database())
    mariadb.stop()
    daemon = make_daemon(start=False, store=url, pool_wait_ms=1000, store_timeout_seconds=2)
    daemon.allow("store|database|mysql|MySQL|MariaDB|migrat|schema")
    daemon.spawn()
    watch = Stopwatch()
    wait_until(lambda: daemon.process.poll() is not None or daemon.log_contains(r"(?i)store|database|mysql"), 10)
    mariadb.start()
    if daemon.process.poll() is not None or (watch.seconds > 0 and wait_until(
            lambda: daemon.process.poll() is not None or daemon.workers, 15) and daemon.process.poll() is not None):
        assert daemon.process.returncode != 0
        daemon.start()
    wait_until(lambda: try_register(daemon), 20, "it serves")


def try_register(daemon):
    try:
        with daemon.connect() as client:
            return client.request(REG, name=unique("late"), password="x")["errno"] == 0
    except (OSError, AssertionError):
        return False


def test_idle_connections_that_the_database_closed_are_replaced(make_daemon, mariadb):
    """A request after such a time is simply done."""
    mariadb.sql("SET GLOBAL wait_timeout=1; SET GLOBAL interactive_timeout=1")
    try:
        daemon = make_daemon(store=mariadb.url(mariadb.database()))
        alice = daemon.online()
        holds_for(lambda: True, 2.5)
        alice.ok(CREATE_GROUP, groupname=unique("g"), groupdesc="")
        assert alice.chat_acked(daemon.account(), "x")["errno"] == 0
    finally:
        mariadb.sql("SET GLOBAL wait_timeout=28800; SET GLOBAL interactive_timeout=28800")


def test_killed_database_connections_are_replaced(setting):
    daemon, mariadb = setting
    alice, away = daemon.online(), daemon.account()
    for _ in range(5):
        for (ident,) in mariadb.sql("SELECT id FROM information_schema.processlist WHERE user='parley'"):
            try:
                mariadb.sql("KILL %s" % ident)
            except AssertionError:
                pass                    # it has ended by itself
        wait_until(lambda: alice.chat_acked(away, "x", deadline=10)["errno"] == 0, 10)
        wait_until(lambda: alice.request(FRIEND_LIST)["errno"] == 0, 10)


def test_pool_stays_within_its_bounds(make_daemon, mariadb):
    """pool_init and pool_max are for the host; idle connections above pool_init are closed again."""
    daemon = make_daemon(store=mariadb.url(mariadb.database()), workers=2, pool_init=4, pool_max=6, pool_idle_seconds=1)

    def count():
        return int(mariadb.sql("SELECT COUNT(*) FROM information_schema.processlist WHERE user='parley'")[0][0])

    people = [daemon.online() for _ in range(10)]
    most = 0
    for _ in range(30):
        for person in people:
            person.send(CREATE_GROUP, groupname=unique("g"), groupdesc="")
            person.send(GROUP_LIST)
        most = max(most, count())
    for person in people:
        person.ping(20)
    assert 1 <= most <= 6
    wait_until(lambda: count() <= 4, 10, "the pool shrinks to pool_init")


def test_password_from_a_file(make_daemon, mariadb):
    daemon = make_daemon(start=False)
    path = os.path.join(daemon.dir, "db-password")
    with open(path, "w") as file:
        file.write(mariadb.PASSWORD + "\n")
    os.chmod(path, 0o600)
    url = mariadb.url(mariadb.database()).replace(":" + mariadb.PASSWORD, "")
    daemon.write_conf(store=url, store_password_file=path)
    daemon.start()
    daemon.online()


def test_the_password_is_shown_nowhere(setting):
    daemon, mariadb = setting
    alice = daemon.online()
    mariadb.stop()
    alice.request(CREATE_GROUP, 10, groupname=unique("g"), groupdesc="")
    mariadb.start()
    for pid in daemon.processes():
        with open("/proc/%d/cmdline" % pid) as file:
            assert mariadb.PASSWORD not in file.read()
    assert mariadb.PASSWORD not in daemon.log_text()
    assert mariadb.PASSWORD not in daemon.ctl_ok("--json", "status")


def test_tables_keep_their_names(setting):
    daemon, mariadb = setting
    daemon.online()
    database = daemon.conf["store"].rsplit("/", 1)[1]
    tables = {row[0].lower() for row in mariadb.sql("SHOW TABLES", database)}
    assert {"user", "friend", "allgroup", "groupuser", "offlinemessage"} <= tables
    columns = " ".join(row[0] for row in mariadb.sql("SHOW COLUMNS FROM User", database))
    assert "state" not in columns.lower().split()
    dump_ = str(mariadb.sql("SELECT * FROM User", database))
    assert "$argon2id$" in dump_ and "secret-word" not in dump_


def test_warns_where_the_database_may_lose_commits(make_daemon, mariadb):
    mariadb.sql("SET GLOBAL innodb_flush_log_at_trx_commit=2")
    try:
        daemon = make_daemon(store=mariadb.url(mariadb.database()))
        daemon.wait_log("innodb_flush_log_at_trx_commit")
    finally:
        mariadb.sql("SET GLOBAL innodb_flush_log_at_trx_commit=1")


def test_sqlite_file_that_cannot_be_written(make_daemon):
    """The disk of the embedded store is full: errno 9, online chat goes on."""
    daemon = make_daemon(pool_wait_ms=1000)
    alice, bob, away = daemon.online(slot=0), daemon.online(slot=1), daemon.account()
    import sqlite3
    lock = sqlite3.connect(daemon.conf["store"].split(":", 1)[1], isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")         # somebody else writes, for longer than anybody waits
    try:
        watch = Stopwatch()
        reply = alice.request(CREATE_GROUP, 15, groupname=unique("g"), groupdesc="")
        assert reply["errno"] == UNAVAILABLE and watch.seconds < 10
        assert alice.chat_acked(bob, "online")["state"] == "delivered"
        assert alice.chat_acked(away, "offline", cid="o", deadline=15)["errno"] == UNAVAILABLE
        alice.ping()
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    wait_until(lambda: alice.request(CREATE_GROUP, 15, groupname=unique("g"), groupdesc="")["errno"] == 0, 15)
    assert alice.chat_acked(away, "offline", cid="o")["errno"] == 0
    assert alice.chat_acked(away, "and more")["errno"] == 0
    assert daemon.login(away).texts() == ["offline", "and more"]
