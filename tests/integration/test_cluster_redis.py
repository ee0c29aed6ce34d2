"""Redis goes away, comes back, forgets, stands still: what each host goes on with, and what arrives after."""

import contextlib
import os
import subprocess

import pytest

from parleytest import *
from parleytest.traffic import Confirmer, Talker, distinct, in_order

pytestmark = needs_redis
TROUBLES = ("killed", "frozen", "cut", "line frozen")


class Trouble:
    """Something that happens to Redis, or to the line of the first host, and its end."""

    def __init__(self, cluster, kind):
        self.cluster, self.kind = cluster, kind
        self.hosts = cluster.hosts if kind in ("killed", "frozen") else cluster.hosts[:1]

    def begin(self):
        redis, line = self.cluster.redis, self.cluster[0].link
        {"killed": redis.kill, "frozen": redis.freeze, "cut": line.cut, "line frozen": line.freeze}[self.kind]()

    def end(self):
        redis, line = self.cluster.redis, self.cluster[0].link
        {"killed": redis.spawn, "frozen": redis.thaw, "cut": line.pass_, "line frozen": line.pass_}[self.kind]()

    @contextlib.contextmanager
    def __call__(self):
        self.begin()
        try:
            yield
        finally:
            self.end()


def claimed(cluster, account):
    return any(key.endswith(":user:%d" % account.id) for key in cluster.presence())


def settled(talker, deadline=40):
    """Everything is answered; returns what was acknowledged."""
    return talker.finish(deadline)


# -- chat within a host goes on ------------------------------------------------------------------

@pytest.mark.parametrize("kind", TROUBLES)
def test_each_host_goes_on(make_cluster, kind):
    cluster = make_cluster(hosts=2)
    trouble = Trouble(cluster, kind)
    accounts = cluster.accounts(5)
    alice, bob = (cluster[0].login(account) for account in accounts[:2])
    group = cluster[0].group(alice)
    bob.ok(ADD_GROUP, groupid=group)
    with trouble():
        for number in range(3):
            watch = Stopwatch()
            assert alice.chat_acked(bob, "m%d" % number)["state"] == "delivered"
            assert watch.seconds < 1 * SCALE
            alice.group_chat(group, "g%d" % number)
            bob.expect(GROUP_CHAT, msg="g%d" % number)
        client, _, seconds = cluster.login_anywhere(accounts[2], [cluster[0]])
        assert seconds < 4 * SCALE                              # logins are let in
        assert alice.chat_acked(client, "to the new one")["state"] == "delivered"
        client.ok(LOGOUT)
        assert alice.chat_acked(client, "to nobody", deadline=15)["state"] == "stored"
        assert "to nobody" in cluster.login_anywhere(accounts[2], [cluster[0]])[0].texts()


@pytest.mark.parametrize("kind", TROUBLES)
def test_what_cannot_cross_is_stored_and_arrives_after(make_cluster, kind):
    cluster = make_cluster(hosts=2)
    trouble = Trouble(cluster, kind)
    alice, bob = cluster.people(2)
    assert alice.chat_acked(bob, "before")["state"] == "delivered"
    group = cluster[0].group(alice)
    bob.ok(ADD_GROUP, groupid=group)
    texts = {alice: [], bob: ["before"]}
    with trouble():
        for number in range(3):
            for sender, receiver in ((alice, bob), (bob, alice)):
                text = "%d>%d" % (sender.id, number)
                texts[receiver].append(text)
                sender.chat(receiver, text, cid=text)
        for sender in (alice, bob):
            for number in range(3):
                ack = sender.expect(CHAT_ACK, 20, cid="%d>%d" % (sender.id, number))
                assert ack["errno"] == 0
                if sender is alice and kind in ("killed", "cut"):
                    assert ack["state"] == "stored"
        assert alice.group_chat_acked(group, "g")["errno"] == 0
    texts[bob].append("g")
    for client in (alice, bob):
        client.wait(lambda c: set(c.texts()) >= set(texts[client]), 20, "what could not cross")
        chats = [text for text in distinct(client.chats()) if text != "g"]
        assert chats == [text for text in texts[client] if text != "g"]
    wait_until(lambda: alice.chat_acked(bob, "after", deadline=15)["state"] == "delivered", 20)


@pytest.mark.parametrize("who", ["worker", "leaver", "host", "host that stays away"])
def test_what_could_not_cross_outlives_whoever_stored_it(make_cluster, who):
    """Stored, acknowledged, and its owner not told: whoever is to tell them dies before that."""
    cluster = make_cluster(hosts=2)
    accounts = cluster.accounts(2)
    alice, bob = cluster[0].login(accounts[0], slot=1), cluster[1].login(accounts[1])
    cluster[0].link.cut()
    cluster[1].wait_hosts("h2")
    assert alice.chat_acked(bob, "kept", deadline=20)["state"] == "stored"
    alice.may_be_cut_off = True
    if who == "worker":
        cluster[0].wait_worker(1, cluster[0].kill_worker(1))
    elif who == "leaver":
        cluster[0].ctl_ok("scale", 1)
    else:
        cluster[0].kill_host()
    cluster[0].link.pass_()
    if who == "host that stays away":
        again = cluster[1].relogin(logged_out(bob))         # at the latest then
        assert distinct(bob.chats() + again.chats()) == ["kept"]
        return
    if who == "host":
        cluster[0].restart()
    bob.wait_texts(["kept"], 15)


def logged_out(client):
    client.ok(LOGOUT)
    return client.account


@pytest.mark.parametrize("how", ["cut", "redis away"])
def test_order_of_a_sender_whose_host_died_untold(make_cluster, how):
    """What the sender says on another host does not overtake what nobody was told of."""
    cluster = make_cluster(hosts=2)
    accounts = cluster.accounts(2)
    alice, bob = cluster[0].login(accounts[0]), cluster[1].login(accounts[1])
    if how == "cut":
        cluster[0].link.cut()
    else:
        cluster.redis.kill()
    for text in ("one", "two"):
        assert alice.chat_acked(bob, text, deadline=20)["state"] == "stored"
    cluster[0].kill_host()
    again, _, _ = cluster.login_anywhere(accounts[0], [cluster[1]])
    for text in ("three", "four"):
        again.chat(bob, text)
    if how == "redis away":
        cluster.redis.spawn()
    bob.wait_texts(["one", "two", "three", "four"], 15)


@pytest.mark.parametrize("kind", TROUBLES)
def test_traffic_through_trouble(make_cluster, kind):
    """Talkers on both hosts, to both hosts, and in a group; nothing acknowledged is lost, nothing is
    shown twice, and the order of each sender stands."""
    cluster = make_cluster(hosts=2)
    trouble = Trouble(cluster, kind)
    people = cluster.people(4, login={"ack": True})
    readers = [Confirmer(client) for client in people]
    talkers = []
    for number, client in enumerate(people):
        other = people[(number + 1) % 4]                # the neighbour is on the other host
        talkers.append((Talker(client, other.id, "t%d" % number).start(), other))
    for _ in range(2):
        sent = len(talkers[0][0].sent)
        wait_until(lambda: len(talkers[0][0].sent) > sent + 50, 20, "traffic")
        with trouble():
            holds_for(lambda: not any(client.eof for client in people), 1.5, "a session ended")
        cluster.wait_whole(30)
    sent = len(talkers[0][0].sent)
    wait_until(lambda: len(talkers[0][0].sent) > sent + 50, 20, "traffic")
    for number, (talker, receiver) in enumerate(talkers):
        done = settled(talker)
        receiver.wait(lambda c: set(done) <= set(c.texts()), 20, "all that was acknowledged")
        texts = [text for text in distinct(receiver.chats())]
        assert len(texts) == len(set(texts))
        assert in_order(texts, "t%d" % number)
    # What both hosts answered for comes again, is confirmed again, and is gone from the store then.
    wait_until(lambda: cluster.mariadb.sql("SELECT COUNT(*) FROM OfflineMessage", cluster.database) == [["0"]],
               20, "the store is empty")
    for reader in readers:
        reader.stop()
    for client in people:                               # and nothing is left for them
        client.ok(LOGOUT)
        assert client.login(client.account, ack=True)["offlinemsg"] == []


# -- Redis forgets -------------------------------------------------------------------------------

@pytest.mark.parametrize("how", ["flush", "restart"])
def test_presence_is_rebuilt(make_cluster, how):
    cluster = make_cluster(hosts=3)
    accounts = cluster.accounts(30)
    clients = [cluster[number % 3].login(account) for number, account in enumerate(accounts)]
    friend = cluster[0].online()
    cluster[0].befriend(friend, *accounts[:6])
    getattr(cluster.redis, how)()
    wait_until(lambda: all(claimed(cluster, account) for account in accounts), 15, "all claims are there again")
    cluster.wait_whole(15)
    assert {f["state"] for f in friend.ok(FRIEND_LIST)["friends"]} == {"online"}
    for number, account in enumerate(accounts[:6]):
        client = cluster[(number + 1) % 3].connect()
        reply = client.request(LOGIN, id=account.id, password=account.password)
        assert reply["errno"] == ELSEWHERE
    for sender, receiver in zip(clients, clients[1:]):
        wait_until(lambda: sender.chat_acked(receiver, "x", deadline=10)["state"] == "delivered", 10)
    for client in clients:
        assert not client.of(SESSION_END)
    offline = {"offline"} & {f["state"] for f in friend.of(PRESENCE)}
    assert not offline, "friends were told offline"


def test_traffic_through_flushes(make_cluster):
    cluster = make_cluster(hosts=2)
    people = cluster.people(4, login={"ack": True})
    readers = [Confirmer(client) for client in people]
    talkers = [Talker(client, people[(number + 1) % 4].id, "t%d" % number).start()
               for number, client in enumerate(people)]
    for _ in range(4):
        sent = len(talkers[0].sent)
        wait_until(lambda: len(talkers[0].sent) > sent + 50, 20, "traffic")
        cluster.redis.flush()
    cluster.wait_whole()
    for number, talker in enumerate(talkers):
        done, receiver = settled(talker), people[(number + 1) % 4]
        receiver.wait(lambda c: set(done) <= set(c.texts()), 20, "all that was acknowledged")
        texts = distinct(receiver.chats())
        assert len(texts) == len(set(texts)) and in_order(texts, "t%d" % number)
    for reader in readers:
        reader.stop()


def test_dropped_connections(make_cluster):
    """Redis stays, its connections end: all is mended without anybody noticing more than a delay."""
    cluster = make_cluster(hosts=2)
    alice, bob = cluster.people(2)
    for number in range(4):
        if number % 2:
            cluster.redis.drop_clients()
        else:
            cluster[1].link.drop()
        assert alice.chat_acked(bob, "m%d" % number, deadline=15)["errno"] == 0
    bob.wait(lambda c: len(distinct(c.chats())) == 4, 20, "all four")
    assert distinct(bob.chats()) == ["m%d" % number for number in range(4)]
    assert not bob.of(SESSION_END)


def test_slow_redis(make_cluster):
    cluster = make_cluster(hosts=2)
    alice, bob = cluster.people(2)
    for host in cluster:
        host.link.delay(100)
    texts = ["m%d" % number for number in range(100)]
    for text in texts:
        alice.chat(bob, text, cid=text)
    bob.wait(lambda c: len(distinct(c.chats())) == 100, 30, "all of them")
    assert distinct(bob.chats()) == texts
    for text in texts:
        assert alice.expect(CHAT_ACK, 20, cid=text)["errno"] == 0


def test_subscription_without_an_ear(make_cluster):
    """The line carries commands out and nothing back: the host notices, and no message is lost."""
    cluster = make_cluster(hosts=2)
    alice, bob = cluster.people(2)
    cluster[1].link.freeze(up=False, down=True)
    try:
        for number in range(5):
            assert alice.chat_acked(bob, "m%d" % number, deadline=20)["errno"] == 0
    finally:
        cluster[1].link.pass_()
    bob.wait(lambda c: len(distinct(c.chats())) == 5, 20, "all five")
    assert distinct(bob.chats()) == ["m%d" % number for number in range(5)]


# -- two sessions of a user ----------------------------------------------------------------------

def test_older_session_ends_when_a_cut_host_returns(make_cluster):
    cluster = make_cluster(hosts=2)
    account, alice = cluster.accounts(1)[0], cluster[1].online()
    older = cluster[0].login(account)
    cluster[0].link.cut()
    try:
        younger, _, seconds = cluster.login_anywhere(account, [cluster[1]])
        assert seconds < 5 * SCALE
        older.ping()
    finally:
        cluster[0].link.pass_()
    assert older.expect(SESSION_END, 15)["reason"] == "replaced"
    older.wait_closed()
    alice.chat_delivered(account, "x")
    younger.expect(CHAT, msg="x")
    assert not younger.of(SESSION_END)


def test_younger_session_stays_wherever_it_is(make_cluster):
    """The older one is on the host that never lost Redis."""
    cluster = make_cluster(hosts=2)
    account = cluster.accounts(1)[0]
    older = cluster[1].login(account)
    cluster[0].link.cut()
    try:
        younger, _, _ = cluster.login_anywhere(account, [cluster[0]])
    finally:
        cluster[0].link.pass_()
    assert older.expect(SESSION_END, 15)["reason"] == "replaced"
    older.wait_closed()
    younger.ping()
    assert not younger.of(SESSION_END)
    sender = cluster[1].online()
    wait_until(lambda: sender.chat_acked(account, "x", deadline=10)["state"] == "delivered", 15)
    younger.expect(CHAT, msg="x")


def test_both_let_in_while_redis_was_dead(make_cluster):
    cluster = make_cluster(hosts=2)
    account = cluster.accounts(1)[0]
    cluster.redis.kill()
    try:
        older = cluster.login_anywhere(account, [cluster[0]])[0]
        younger = cluster.login_anywhere(account, [cluster[1]])[0]
    finally:
        cluster.redis.spawn()
    assert older.expect(SESSION_END, 15)["reason"] == "replaced"
    younger.ping()
    assert not younger.of(SESSION_END)


# -- starting ------------------------------------------------------------------------------------

def twin(cluster, number=0, **conf):
    """A second daemon that says it is the same host."""
    host = cluster.add(host_id=cluster[number].id, **conf)
    cluster.hosts.remove(host)
    return host


def test_second_start_with_a_live_host_id(make_cluster):
    cluster = make_cluster(hosts=2)
    alice = cluster[0].online()
    other = twin(cluster)
    try:
        other.spawn()
        assert other.wait_exit(20) != 0
        said = other.log_text()
        assert "h1" in said and "host_id" in said, said
        other.check_gone()
    finally:
        other.destroy()
    alice.ping()
    assert not alice.of(SESSION_END)
    cluster.wait_whole()


def test_host_id_of_a_dead_host(make_cluster):
    """Another machine takes over the name of one that died."""
    cluster = make_cluster(hosts=2)
    account = cluster.accounts(1)[0]
    cluster[0].login(account)
    before = cluster[1].hosts()["h1"]["epoch"]
    cluster[0].kill_host()
    cluster[1].wait_hosts("h2")
    other = twin(cluster)
    cluster.hosts[0] = other
    other.start(20)
    rows = cluster[1].wait_hosts("h1", "h2")
    assert rows["h1"]["epoch"] != before
    cluster.login_anywhere(account, [other])


def test_start_without_redis(make_cluster):
    cluster = make_cluster(hosts=2, start=False)
    cluster.redis.kill()
    for host in cluster:
        host.spawn()
    for host in cluster:
        host.wait_ready(30)
    accounts = cluster.accounts(2)
    alice, bob = (cluster[k].login(account) for k, account in enumerate(accounts))
    other = cluster[0].online()
    # The first goes through the store: where alice was before, nobody can say.
    assert alice.chat_acked(other, "first")["errno"] == 0
    wait_until(lambda: alice.chat_acked(other, "x")["state"] == "delivered", 10)
    assert other.texts()[:2] == ["first", "x"]
    assert alice.chat_acked(bob, "across", deadline=15)["state"] == "stored"
    cluster.redis.spawn()
    cluster.wait_whole(30)
    bob.wait_texts(["across"], 15)
    wait_until(lambda: alice.chat_acked(bob, "y", deadline=15)["state"] == "delivered", 15)


# -- where Redis is ------------------------------------------------------------------------------

def whole(cluster):
    """Two hosts that are one chat."""
    alice, bob = cluster.people(2)
    alice.chat_delivered(bob, "x")
    bob.expect(CHAT, msg="x")
    return alice, bob


def test_password_and_database(make_cluster, make_redis):
    redis = make_redis(password="pass word/@")
    url = "redis://:pass%%20word%%2F%%40@127.0.0.1:%d/3" % redis.port
    cluster = make_cluster(hosts=2, redis=redis, redis_url=url)
    whole(cluster)
    assert redis.keys(db=3) and not redis.keys(db=0)


def test_password_in_a_file(make_cluster, make_redis, tmp_path):
    redis = make_redis(password="from-a-file")
    path = tmp_path / "redis.password"
    path.write_text("from-a-file\n")
    os.chmod(path, 0o600)
    whole(make_cluster(hosts=2, redis=redis, redis_url="redis://127.0.0.1:%d" % redis.port,
                       redis_password_file=str(path)))


def test_unix_socket(make_cluster, make_redis):
    redis = make_redis()
    whole(make_cluster(hosts=2, redis=redis, redis_url=redis.socket))


def test_databases_and_names_keep_clusters_apart(make_cluster, make_redis):
    """The same host ids in two databases, and under two names, of one Redis."""
    redis = make_redis()
    address = "redis://127.0.0.1:%d" % redis.port
    clusters = [make_cluster(hosts=1, redis=redis, name="one", redis_url=address + "/0"),
                make_cluster(hosts=1, redis=redis, name="one", redis_url=address + "/5"),
                make_cluster(hosts=1, redis=redis, name="two", redis_url=address + "/0")]
    people = [cluster.people(1)[0] for cluster in clusters]     # the same id in three databases of users
    assert len({client.id for client in people}) == 1
    for cluster, client in zip(clusters, people):
        assert list(cluster[0].hosts()) == ["h1"]
        other = cluster[0].online()
        other.chat_delivered(client, "x")
        client.wait(lambda c: set(c.texts()) == {"x"}, 10, "it and nothing else")


def test_wrong_password(make_cluster, make_redis):
    redis = make_redis(password="right")
    url = "redis://:wrong@127.0.0.1:%d/0" % redis.port
    cluster = make_cluster(hosts=2, redis=redis, redis_url=url, start=False)
    for host in cluster:
        host.spawn()
    for host in cluster:
        host.wait_ready(30)
        host.wait_log(r"(?i)redis.*(WRONGPASS|password)", 15)
        assert "wrong@" not in host.log_text()                  # what was tried stays in the file
    accounts = cluster.accounts(3)
    alice, bob, carol = (cluster[k].login(account) for k, account in zip((0, 0, 1), accounts))
    assert alice.chat_acked(bob, "first")["errno"] == 0
    wait_until(lambda: alice.chat_acked(bob, "x")["state"] == "delivered", 10)
    assert bob.texts()[:2] == ["first", "x"]
    assert alice.chat_acked(carol, "y", deadline=15)["state"] == "stored"


def test_what_no_redis_can_do_is_refused_at_start(make_daemon):
    """What the URL says wrongly is a mistake in the configuration."""
    for url in ("redis://127.0.0.1:99999/0", "http://127.0.0.1/", "redis://127.0.0.1:6379/x",
                "sentinel://127.0.0.1:26379"):
        daemon = make_daemon(start=False, redis=url)
        done = subprocess.run(daemon.command() + ["-t"], capture_output=True, text=True, timeout=20)
        assert done.returncode != 0 and "redis" in done.stdout + done.stderr, (url, done)


# -- Sentinel ------------------------------------------------------------------------------------

@pytest.mark.parametrize("password", [None, "secret"])
def test_sentinel_failover(make_cluster, make_redis, password):
    master = make_redis(password=password)
    replica = make_redis(password=password, replica_of=master).wait_replica()
    sentinel = make_redis(sentinel=master).wait_knows(master, replica)
    nobody = "127.0.0.1:%d" % free_port()                       # one of the sentinels is away
    url = sentinel.url().replace("sentinel://", "sentinel://%s%s," % (
        ":%s@" % password if password else "", nobody))
    cluster = make_cluster(hosts=2, redis=master, redis_url=url)
    people = cluster.people(4, login={"ack": True})
    readers = [Confirmer(client) for client in people]
    talkers = [Talker(client, people[(number + 1) % 4].id, "t%d" % number).start()
               for number, client in enumerate(people)]
    wait_until(lambda: len(talkers[0].sent) > 50, 20, "traffic")
    master.kill()
    sentinel.wait_master(replica)
    watch = Stopwatch()
    cluster.redis = replica
    cluster.wait_whole(30)
    print("failover: whole again %.2f s after the replica became master" % watch.seconds)
    sent = len(talkers[0].sent)
    wait_until(lambda: len(talkers[0].sent) > sent + 50, 20, "traffic")
    for number, talker in enumerate(talkers):
        done, receiver = settled(talker), people[(number + 1) % 4]
        receiver.wait(lambda c: set(done) <= set(c.texts()), 20, "all that was acknowledged")
        texts = distinct(receiver.chats())
        assert len(texts) == len(set(texts)) and in_order(texts, "t%d" % number)
    for reader in readers:
        reader.stop()
    account = people[0].account
    reply = cluster[1].connect().request(LOGIN, id=account.id, password=account.password)
    assert reply["errno"] == ELSEWHERE
    for client in people:
        assert not client.of(SESSION_END)
