"""parleyctl for several hosts: the registry, other hosts' status, who and kick, draining."""

import json
import time

import pytest

from parleytest import *
from parleytest.daemon import free_port

CLUSTER = {"hosts": 3}
pytestmark = needs_redis


def refused_login(host, account):
    client = host.connect()
    return client.request(LOGIN, id=account.id, password=account.password)


# -- the registry --------------------------------------------------------------------------------

def test_hosts(cluster):
    people = cluster.people(4)
    for host in cluster:
        rows = host.wait_hosts("h1", "h2", "h3", state="up")
        assert [row["id"] for row in rows.values() if row["self"]] == [host.id]
        for other in cluster:
            row = rows[other.id]
            assert row["address"] == other.advertised and row["weight"] == 1
    assert all(row["epoch"].isdigit() for row in cluster[0].hosts().values())
    wait_until(lambda: [cluster[2].hosts()[h]["sessions"] for h in ("h1", "h2", "h3")] == [2, 1, 1], 10,
               "the sessions of all hosts")
    text = cluster[1].ctl_ok("hosts")
    assert all(host.id in text and host.advertised in text for host in cluster)
    people[0].ping()


def test_weight_and_address_are_reloaded(make_cluster):
    cluster = make_cluster(hosts=2)
    cluster[0].write_conf(weight=7, advertise="198.51.100.7:6000")
    cluster[0].ctl_ok("reload")
    wait_until(lambda: (lambda r: (r["weight"], r["address"]))(cluster[1].hosts()["h1"]) ==
               (7, "198.51.100.7:6000"), 10, "the other host reads it")


def test_alone_without_redis(make_daemon):
    daemon = make_daemon()
    done = daemon.ctl("hosts")
    assert "Traceback" not in done.stderr and (done.returncode != 0 or done.stdout)


# -- other hosts ---------------------------------------------------------------------------------

def test_status_of_another_host(cluster):
    client = cluster[1].online()
    wait_until(lambda: json.loads(cluster[0].ctl_ok("--json", "--host", "h2", "status"))["users_online"] == 1, 5)
    here = cluster[1].status()
    there = json.loads(cluster[0].ctl_ok("--json", "--host", "h2", "status"))
    assert there.keys() == here.keys()
    assert [w["pid"] for w in there["workers"]] == [w["pid"] for w in here["workers"]]
    own = json.loads(cluster[0].ctl_ok("--json", "--host", "h1", "status"))
    assert [w["pid"] for w in own["workers"]] == [w["pid"] for w in cluster[0].status()["workers"]]
    client.ping()


def test_absent_host(cluster):
    watch = Stopwatch()
    done = cluster[0].ctl("--host", "nobody", "status")
    assert done.returncode != 0 and "nobody" in done.stderr and watch.seconds < 3 * SCALE


def test_silent_host(make_cluster):
    cluster = make_cluster(hosts=2, heartbeat_ms=2000, host_timeout_ms=30000)
    cluster[1].freeze_host()
    watch = Stopwatch()
    try:
        done = cluster[0].ctl("--timeout", "2", "--host", "h2", "status", timeout=30)
    finally:
        cluster[1].thaw_host()
    assert done.returncode != 0 and done.stderr.strip() and watch.seconds < 10 * SCALE


def test_who_covers_all_hosts(cluster):
    people = cluster.people(6)
    for host in cluster:
        found = {row["id"]: row for row in host.lines("who") if "id" in row}
        for number, client in enumerate(people):
            assert found[client.id]["host"] == cluster[number % 3].id
    text = cluster[0].ctl_ok("who")
    assert all(client.name in text for client in people)


def test_kick_from_any_host(cluster):
    people = cluster.people(3)
    for number, client in enumerate(people):
        by = cluster[(number + 1) % 3]
        who = client.id if number % 2 else client.name
        by.ctl_ok("kick", who)
        assert client.expect(SESSION_END)["reason"] == "kicked"
        client.wait_closed()
        by.relogin(client.account)
    assert cluster[0].ctl("kick", "nobody-of-that-name").returncode != 0


# -- draining ------------------------------------------------------------------------------------

def test_drain_refuses_and_names_others(make_cluster):
    cluster = make_cluster(hosts=3, drain_seconds=60)
    account = cluster.accounts(1)[0]
    client = cluster[0].connect()
    cluster[0].ctl_ok("drain")
    reply = client.request(LOGIN, id=account.id, password=account.password)
    assert reply["errno"] == UNAVAILABLE
    assert sorted(reply["try"]) == sorted(host.advertised for host in cluster.hosts[1:])
    for host in cluster:
        rows = wait_until(lambda: (lambda r: r["h1"]["state"] == "draining" and r)(host.hosts()), 10)
        assert rows["h2"]["state"] == rows["h3"]["state"] == "up"
    cluster[1].login(account)
    cluster[1].ctl_ok("drain")
    cluster[2].ctl_ok("drain")
    wait_until(lambda: refused_login(cluster[0], account).get("try", []) == [], 10, "nobody is left to try")


def test_clients_are_not_sent_to_what_is_for_a_proxy(make_cluster):
    """nginx is to use one listener, clients another; `try` names that."""
    cluster = make_cluster(hosts=2, start=False)
    for host in cluster:
        inner = "%s:%d" % (host.ip, free_port())
        host.conf.update(listen=[inner + " proxy"] + host.conf["listen"], advertise=inner)
        host.write_conf()
    cluster.start()
    account = cluster.accounts(1)[0]
    assert cluster[1].hosts()["h2"]["address"] == cluster[1].conf["advertise"]
    cluster[0].ctl_ok("drain")
    assert refused_login(cluster[0], account)["try"] == ["%s:%d" % (cluster[1].ip, cluster[1].port)]


def test_drain_sends_everybody_away(make_cluster):
    """Spread over drain_seconds, with a reason, and wherever they go they are let in."""
    cluster = make_cluster(hosts=2, drain_seconds=2)
    accounts = cluster.accounts(24)
    clients = [cluster[0].login(account, login={"ack": number % 2 == 0}) for number, account in enumerate(accounts)]
    old = cluster[0].login(cluster.accounts(1)[0], dialect="classic")
    alice = cluster[1].online()
    alice.chat(accounts[0], "not confirmed", cid="u")
    clients[0].expect(CHAT)
    begin = time.monotonic()
    cluster[0].ctl_ok("drain")
    for client in clients:
        assert client.expect(SESSION_END, 15)["reason"] == "moved"
        client.wait_closed()
    old.wait_closed(15)
    ends = sorted(client.of(SESSION_END)[0].at - begin for client in clients)
    print("drain: sessions ended after %s" % ["%.2f" % end for end in ends])
    assert ends[-1] - ends[0] > 0.7 and ends[-1] < 2 + 3 * SCALE
    early = sum(1 for end in ends if end < ends[-1] / 2)
    assert 4 <= early <= 20, "not spread"
    for account in accounts:
        cluster.login_anywhere(account, [cluster[1]], 5)
    assert alice.expect(CHAT_ACK, 10, cid="u")["errno"] == 0
    wait_until(lambda: cluster[0].users_online() == 0, 5)
    assert any("not confirmed" in client.texts() for client in cluster[1].clients)
    cluster[0].stop()
    cluster[1].wait_hosts("h2")


def test_drain_is_taken_back(make_cluster):
    cluster = make_cluster(hosts=2, drain_seconds=30)
    account, other = cluster.accounts(2)
    stays = cluster[0].login(other)
    cluster[0].ctl_ok("drain")
    assert refused_login(cluster[0], account)["errno"] == UNAVAILABLE
    cluster[0].ctl_ok("drain", "--cancel")
    cluster[0].login(account)
    cluster[1].wait_hosts("h1", "h2", state="up")
    if not stays.eof:
        stays.ping()


def test_drain_outlives_workers(make_cluster):
    cluster = make_cluster(hosts=2, drain_seconds=60)
    account = cluster.accounts(1)[0]
    cluster[0].ctl_ok("drain")
    for slot in (0, 1):
        old = cluster[0].kill_worker(slot)
        cluster[0].wait_worker(slot, old)
    cluster[0].wait_ready()
    assert refused_login(cluster[0], account)["errno"] == UNAVAILABLE
    wait_until(lambda: cluster[1].hosts()["h1"]["state"] == "draining", 10, "the other host knows")
    holds_for(lambda: cluster[1].hosts().get("h1", {}).get("state") == "draining", 1)


def test_drain_of_another_host(make_cluster):
    cluster = make_cluster(hosts=2, drain_seconds=1)
    client = cluster[1].online()
    cluster[0].ctl_ok("--host", "h2", "drain")
    assert client.expect(SESSION_END, 15)["reason"] == "moved"
    assert refused_login(cluster[1], client.account)["errno"] == UNAVAILABLE
    cluster[0].ctl_ok("--host", "h2", "drain", "--cancel")
    cluster[0].wait_hosts("h1", "h2", state="up")
    cluster[1].relogin(client.account)


def test_drained_host_restarts_as_usual(make_cluster):
    cluster = make_cluster(hosts=2, drain_seconds=1)
    cluster[0].ctl_ok("drain")
    cluster[0].stop()
    cluster[1].wait_hosts("h2")
    cluster[0].restart()
    cluster.wait_whole()
    cluster[0].online()
