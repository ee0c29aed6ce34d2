"""People who come and go on three hosts all the time: in the end claims, sessions and states agree."""

import random
import time

import pytest

from parleytest import *

pytestmark = needs_redis


class Storm:
    """PEOPLE who log in and out anywhere; a watcher on each host has them all on its list."""

    def __init__(self, cluster, people, seed):
        self.cluster, self.rng, self.counts = cluster, random.Random(seed), {}
        self.accounts = cluster.accounts(people)
        self.live = {}
        self.watchers = [host.online() for host in cluster]
        for host, watcher in zip(cluster, self.watchers):
            host.befriend(watcher, *self.accounts)
            watcher.ok(LOGOUT)
            watcher.login(watcher.account)

    def leave(self, client):
        client.may_be_cut_off = True
        how = self.rng.random()
        try:
            if how < 0.5:
                client.ok(LOGOUT)
            (client.abort if how > 0.8 else client.close)()
        except (OSError, Dropped):
            pass                                # its host or its session ended before

    def turn(self, alone=True):
        """Somebody goes, or tries to come; where they are online they cannot."""
        account = self.rng.choice(self.accounts)
        old = self.live.pop(account.id, None)
        if old is not None and self.rng.random() < 0.7:
            self.leave(old)
            return
        client = self.rng.choice(list(self.cluster)).connect()
        client.may_be_cut_off = True
        reply = client.request(LOGIN, 20, id=account.id, password=account.password)
        self.counts[reply["errno"]] = self.counts.get(reply["errno"], 0) + 1
        if reply["errno"] == 0:
            assert old is None or not alone, "twice: %s" % account
            self.live[account.id] = client
            if old is not None:
                self.leave(old)
        else:
            assert reply["errno"] in (ELSEWHERE, UNAVAILABLE), reply
            client.close()
            if old is not None:
                self.live[account.id] = old

    def sessions(self):
        """Those whose session still answers."""
        alive = set()
        for user, client in self.live.items():
            try:
                client.ping()
                alive.add(user)
            except (OSError, Dropped):
                pass
        return alive

    def claims(self):
        ids = {account.id for account in self.accounts}
        return ids & {int(key.rsplit(":", 1)[1]) for key in self.cluster.presence() if ":user:" in key}

    @staticmethod
    def listed(watcher):
        """Who is online, by FRIEND_LIST."""
        online, after = set(), 0
        while True:
            friends = watcher.ok(FRIEND_LIST, after=after)["friends"]
            if not friends:
                return online
            online |= {friend["id"] for friend in friends if friend["state"] == "online"}
            after = friends[-1]["id"]

    @staticmethod
    def told(watcher):
        """Who is online, by LOGIN_MSG_ACK and PRESENCE."""
        states = {friend["id"]: friend["state"] for friend in watcher.ack["friends"]}
        states.update((frame["id"], frame["state"]) for frame in watcher.of(PRESENCE))
        return {user for user, state in states.items() if state == "online"}

    def settle(self, deadline=20):
        print(self.counts)
        self.cluster.wait_whole()
        for client in list(self.live.values())[::2]:
            self.leave(client)
        wait_until(lambda: self.sessions() == self.claims(), deadline, "claims are those of sessions")
        for host, number in zip(self.cluster, range(len(self.watchers))):
            watcher = self.watchers[number]
            try:
                watcher.ping()
            except (OSError, Dropped):          # its worker was killed
                self.watchers[number] = watcher = host.relogin(watcher.account)
            wait_until(lambda: self.listed(watcher) == self.sessions(), deadline, "%s lists who is there" % host.id)
            wait_until(lambda: self.told(watcher) == self.sessions(), deadline, "%s was told who is there" % host.id)


@pytest.mark.parametrize("duplicate", ["reject", "replace"])
def test_coming_and_going(make_cluster, duplicate):
    cluster = make_cluster(hosts=3, duplicate_login=duplicate, presence_delay_ms=300)
    storm = Storm(cluster, 12, seed=duplicate)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        storm.turn(alone=duplicate == "reject")
    storm.settle()


def trouble(storm, undo):
    """Something happens to Redis, a line, a worker or a host; UNDO gets (when, what)."""
    cluster, rng = storm.cluster, storm.rng
    host, until = rng.choice(list(cluster)), time.monotonic() + rng.uniform(0.3, 3)

    def freeze(thing, thaw):
        thing()
        undo.append((until, thaw))

    rng.choice([
        cluster.redis.restart,
        cluster.redis.flush,
        cluster.redis.drop_clients,
        lambda: host.kill_worker(rng.randrange(2)),
        lambda: freeze(cluster.redis.freeze, cluster.redis.thaw),
        lambda: freeze(host.link.cut, host.link.pass_),
        lambda: freeze(host.link.freeze, host.link.pass_),
    ])()
    return until


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("duplicate", ["reject", "replace"])
def test_coming_and_going_in_bad_weather(make_cluster, duplicate, seed):
    cluster = make_cluster(hosts=3, duplicate_login=duplicate, presence_delay_ms=300)
    storm = Storm(cluster, 40, seed)
    for watcher in storm.watchers:
        watcher.may_be_cut_off = True
    undo, end, calm = [], time.monotonic() + 40, time.monotonic() + 2
    while time.monotonic() < end or undo:
        storm.turn(alone=False)
        for due in [u for u in undo if time.monotonic() > u[0]]:
            due[1]()
            undo.remove(due)
        if time.monotonic() > calm and not undo and time.monotonic() < end:
            calm = trouble(storm, undo) + storm.rng.uniform(0, 2)
    storm.settle()
