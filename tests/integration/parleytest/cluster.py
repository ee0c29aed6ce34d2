"""Several hosts that are one chat: a MariaDB, a Redis and daemons with an address each."""

import json
import os
import signal
import subprocess
import time

import pytest

from .client import Dropped
from .cut import Cut, listener_in
from .daemon import Daemon, all_pids, proc_stat, unique
from .netns import Namespace
from .poll import SCALE, Stopwatch, wait_until
from .redis import Redis
from .wire import *  # noqa: F403

# The defaults of the daemon are for networks; on loopback a test may be quicker about it.
QUICK = {"heartbeat_ms": 300, "host_timeout_ms": 1500, "redis_timeout_ms": 500, "confirm_timeout": 2,
         "drain_seconds": 1, "store_timeout_seconds": 2}
# What everything slower than a release build gets.
if SCALE > 1:
    QUICK.update(heartbeat_ms=1000, host_timeout_ms=6000, redis_timeout_ms=2000)


class Host(Daemon):
    """A parleyd of a cluster. `link` is its line to Redis (a Cut), `number` counts from 1."""

    def __init__(self, cluster, number, ip=None, prefix=(), local=False, **conf):
        super().__init__(prefix=prefix, env=cluster.env)
        self.cluster, self.number, self.id = cluster, number, "h%d" % number
        self.ip = ip or "127.0.1.%d" % number
        self.local, self.link = local, None         # LOCAL: clients come through the unix socket
        self.conf.update({
            "host_id": self.id, "cluster": cluster.name, "advertise": "%s:%d" % (self.ip, self.port),
            "listen": ["%s:%d" % (self.ip, self.port),
                       "%s:%d dialect=classic" % (self.ip, self.classic_port), self.unix]})
        self.conf.update(conf)

    def address(self, dialect="plain"):
        if self.local:
            assert dialect == "plain"
            return self.unix
        return (self.ip, self.port if dialect == "plain" else self.classic_port)

    @property
    def advertised(self):
        return "%s:%d" % (self.ip, self.port)

    # -- the whole host --------------------------------------------------------------------------

    def kill_host(self):
        """The power fails: the master and every worker are gone at the same instant."""
        self.remember()
        for client in self.clients:
            client.may_be_cut_off = True
        pid = self.pid
        os.killpg(pid, signal.SIGKILL)              # its session is its group: one system call for all
        self.process.wait(10)
        for left in self.processes():               # one that was born at that moment
            try:
                os.kill(left, signal.SIGKILL)
            except OSError:
                pass
        wait_until(lambda: not self.processes(), 10, "nothing of %s survives" % self.id)
        return time.monotonic()

    def freeze_host(self):
        """Every process stands still; returns when all do."""
        os.killpg(self.pid, signal.SIGSTOP)

        def still():
            return all(proc_stat("%d/task/%s" % (pid, task))[1] in "TtZ"
                       for pid in self.session() for task in os.listdir("/proc/%d/task" % pid))

        wait_until(lambda: self.calm(still), 10, "%s stands still" % self.id)
        return time.monotonic()

    def thaw_host(self):
        os.killpg(self.pid, signal.SIGCONT)

    def session(self):
        return [pid for pid in all_pids() if (proc_stat(pid) or (0, 0, 0, 0))[3] == self.pid]

    @staticmethod
    def calm(predicate):
        try:
            return predicate()
        except (OSError, TypeError):                # a process that ended while it was looked at
            return False

    def restart(self, deadline=20):
        """Starts it again after kill_host() or stop(): the same host, a new epoch."""
        self.clients = []
        return self.start(deadline)

    def destroy(self):
        if self.process is not None and self.process.poll() is None:
            try:
                os.killpg(self.pid, signal.SIGCONT)
            except OSError:
                pass
        super().destroy()
        if self.link:
            self.link.close()

    # -- what it says ----------------------------------------------------------------------------

    def lines(self, *args):
        """The objects that parleyctl prints; its verdict is the last."""
        return [json.loads(line) for line in self.ctl("--json", *args).stdout.splitlines()]

    def hosts(self):
        """{id: row} as `parleyctl hosts` on this host shows the cluster."""
        return {row["id"]: row for row in self.lines("hosts") if "epoch" in row}

    def epoch(self):
        return self.hosts()[self.id]["epoch"]

    def wait_hosts(self, *ids, state=None, deadline=15):
        """Waits until this host sees exactly those hosts (ids or Hosts), read from Redis after this call."""
        names = sorted(getattr(host, "id", host) for host in ids)
        watch = Stopwatch()

        def seen():
            rows = self.hosts()             # without Redis: what was known before, ever older
            return sorted(rows) == names and all(
                (state is None or row["state"] == state) and row["seen_ms"] < watch.seconds * 1000
                for row in rows.values()) and rows

        return wait_until(seen, deadline, "%s sees the hosts %s" % (self.id, names), step=0.05)


class Cluster:
    """HOSTS daemons h1, h2, ... that share MARIADB and a Redis of their own (or REDIS).

    Every host reaches Redis over a line of its own, which the test may cut (`host.link`); `conf`
    goes to all hosts, `each` is a list of what goes to one each."""

    def __init__(self, mariadb, hosts=2, redis=None, redis_url=None, each=(), env=None, name=None,
                 start=True, **conf):
        self.name, self.mariadb, self.env = name or unique("t%d" % os.getpid()), mariadb, env
        self.redis, self.own_redis = redis or Redis(), redis is None
        self.database = mariadb.database()
        self.store_url = mariadb.url(self.database)
        self.hosts = []
        self.conf = dict(QUICK, store=self.store_url, **conf)
        try:
            for number in range(1, hosts + 1):
                extra = each[number - 1] if number <= len(each) else {}
                self.add(redis_url=redis_url, **extra)
            if start:
                self.start()
        except BaseException:
            self.destroy()
            raise

    def add(self, redis_url=None, **conf):
        """One more host, not yet started."""
        host = Host(self, len(self.hosts) + 1, **dict(self.conf, **conf))
        if redis_url is None:
            host.link = Cut(self.redis.address)
            redis_url = self.redis.url(address=host.link.address)
        host.conf.setdefault("redis", redis_url)
        host.write_conf()
        self.hosts.append(host)
        return host

    def start(self):
        for host in self.hosts:
            host.spawn()
        for host in self.hosts:
            host.wait_ready(30)
        self.wait_whole()
        return self

    def wait_whole(self, deadline=20):
        """Every live host sees every live host, all of them up."""
        live = self.live()
        for host in live:
            host.wait_hosts(*live, state="up", deadline=deadline)

    def live(self):
        return [host for host in self.hosts if host.alive()]

    def __getitem__(self, number):
        return self.hosts[number]

    def __iter__(self):
        return iter(self.hosts)

    def __len__(self):
        return len(self.hosts)

    # -- people ----------------------------------------------------------------------------------

    def accounts(self, count, prefix="user"):
        return self.live()[0].accounts(count, prefix)

    def people(self, count, prefix="user", **kw):
        """COUNT new users, logged in on the hosts in turn."""
        accounts = self.accounts(count, prefix)
        return [self.hosts[k % len(self.hosts)].login(account, **kw) for k, account in enumerate(accounts)]

    def login_anywhere(self, account, hosts=None, deadline=15, **kw):
        """Logs in on whichever of HOSTS lets the user in first; returns (client, host, seconds)."""
        begin = time.monotonic()
        found = []

        def attempt():
            for host in hosts or self.live():
                client = None
                try:
                    client = host.connect(**kw)
                    reply = client.request(LOGIN, 3, id=account.id, password=account.password)
                except (OSError, Dropped):
                    reply = None
                if reply is not None and reply["errno"] == 0:
                    client.ack, client.account = reply, account
                    client.id, client.name = reply["id"], reply["name"]
                    found.append((client, host, time.monotonic() - begin))
                    return True
                assert reply is None or reply["errno"] in (ELSEWHERE, UNAVAILABLE, TOO_FAST), reply
                if client is not None:
                    client.close()
                    host.clients.remove(client)
            return False

        wait_until(attempt, deadline, "%s can log in somewhere" % account, step=0.02)
        return found[0]

    def presence(self):
        """Redis' keys of this cluster, for assertions about what is left behind."""
        return [key for key in self.redis.keys() if self.name in key]

    # -- the end ---------------------------------------------------------------------------------

    def check_health(self):
        for host in self.hosts:
            host.check_health()

    def finish(self):
        """Stops and checks every host; the first trouble is raised when all are gone."""
        trouble = None
        for host in self.hosts:
            for client in host.clients:
                client.close()
        for host in self.hosts:
            try:
                if host.process is None:
                    host.destroy()
                else:
                    host.finish()
            except AssertionError as why:
                trouble = trouble or why
        self.destroy()
        if trouble:
            raise trouble

    def destroy(self):
        for host in self.hosts:
            host.destroy()
        if self.own_redis:
            self.redis.destroy()


class Switch:
    """A network of its own: a bridge with a cable for each host, which can be pulled.

    Redis runs at the bridge; MariaDB is reached over a forwarder there. Hosts are at 10.89.0.10+k,
    the bridge at 10.89.0.1. Clients use the hosts' unix sockets."""

    needed = Namespace.needed
    hub = "10.89.0.1"

    def __init__(self, hosts):
        self.holders = []
        try:
            self.center = self.namespace()
            self.run(self.center, "ip link add hub type bridge; ip addr add %s/24 dev hub; ip link set hub up"
                     % self.hub)
            self.cables = [self.plug_in(number) for number in range(1, hosts + 1)]
        except BaseException:
            self.close()
            raise

    def namespace(self):
        holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "ip link set lo up; echo; exec sleep 1200"],
                                  stdout=subprocess.PIPE)
        self.holders.append(holder)
        holder.stdout.readline()
        return holder.pid

    @staticmethod
    def run(pid, script):
        subprocess.run(["nsenter", "-n", "-t", str(pid), "sh", "-ec", script], check=True, capture_output=True)

    def plug_in(self, number):
        pid = self.namespace()
        self.run(self.center, "ip link add to%d type veth peer name cable netns %d" % (number, pid))
        self.run(self.center, "ip link set to%d master hub; ip link set to%d up" % (number, number))
        self.run(pid, "ip addr add %s/24 dev cable; ip link set cable up" % self.ip(number))
        return pid

    @staticmethod
    def ip(number):
        return "10.89.0.%d" % (10 + number)

    def inside(self, pid):
        """The words before a command that is to run there."""
        return ["nsenter", "-n", "-t", str(pid)]

    def pull(self, number):
        """Nothing arrives any more, nothing is refused: as a pulled cable."""
        self.run(self.center, "ip link set to%d down" % number)

    def plug(self, number):
        self.run(self.center, "ip link set to%d up" % number)

    def delay(self, number, ms):
        """Every packet of that host takes so long; False where the kernel cannot."""
        done = subprocess.run(self.inside(self.center) + [
            "tc", "qdisc", "replace", "dev", "to%d" % number, "root", "netem", "delay", "%dms" % ms],
            capture_output=True)
        return done.returncode == 0

    def close(self):
        for holder in self.holders:
            holder.kill()
            holder.wait()
            holder.stdout.close()
        self.holders = []


class NetCluster(Cluster):
    """A Cluster whose hosts are in network namespaces at a Switch."""

    def __init__(self, mariadb, hosts=2, **conf):
        self.switch = Switch(hosts)
        self.sql = None
        try:
            redis = Redis(prefix=self.switch.inside(self.switch.center), bind="0.0.0.0")
            self.sql = Cut(("127.0.0.1", mariadb.port), self.switch.hub, listener_in(self.switch.center))
            super().__init__(mariadb, hosts, redis=redis, redis_url=redis.url(address=(self.switch.hub, redis.port)),
                             **conf)
            self.own_redis = True
        except BaseException:
            if self.sql:
                self.sql.close()
            self.switch.close()
            raise

    def add(self, redis_url=None, **conf):
        number = len(self.hosts) + 1
        url = self.store_url.replace("127.0.0.1:%d" % self.mariadb.port, "%s:%d" % self.sql.address)
        return super().add(redis_url, **dict(
            conf, ip=self.switch.ip(number), local=True, store=url,
            prefix=self.switch.inside(self.switch.cables[number - 1])))

    def destroy(self):
        super().destroy()
        self.sql.close()
        self.switch.close()


needs_redis = pytest.mark.skipif(not Redis.available(), reason="needs redis-server")
