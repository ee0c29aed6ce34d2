"""Private Redis servers and a Sentinel on loopback, made and thrown away by the tests."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile

from .daemon import free_port, proc_stat
from .poll import SCALE, wait_until

PATH = os.environ["PATH"] + ":/usr/sbin"


class RedisError(Exception):
    """What Redis answered with `-`."""


class Resp:
    """A connection that sends one command at a time. ADDRESS is (host, port) or a unix path."""

    def __init__(self, address, password=None, db=0, timeout=5):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(timeout * SCALE)
        try:
            self.sock.connect(address)
            self.file = self.sock.makefile("rb")
            if password:
                self("AUTH", password)
            if db:
                self("SELECT", db)
        except BaseException:
            self.sock.close()
            raise

    def __call__(self, *words):
        """One command: its reply, RedisError for an error reply."""
        out = b"*%d\r\n" % len(words)
        for word in words:
            word = word if isinstance(word, bytes) else str(word).encode()
            out += b"$%d\r\n%s\r\n" % (len(word), word)
        self.sock.sendall(out)
        return self.reply()

    def reply(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("redis ended the connection")
        kind, text = line[:1], line[1:-2].decode(errors="replace")
        if kind == b"+":
            return text
        if kind == b"-":
            raise RedisError(text)
        if kind == b":":
            return int(text)
        if kind == b"$":
            return None if text == "-1" else self.file.read(int(text) + 2)[:-2].decode(errors="surrogateescape")
        if kind == b"*":
            return None if text == "-1" else [self.reply() for _ in range(int(text))]
        raise ConnectionError("not RESP: %r" % line)

    def close(self):
        self.file.close()
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Server:
    """A redis-server process of whatever mode; its configuration is `conf()`."""

    def __init__(self, prefix=(), bind="127.0.0.1"):
        self.dir = tempfile.mkdtemp(prefix="parley-redis-")
        self.port, self.bind, self.prefix = free_port(), bind, list(prefix)
        self.socket = os.path.join(self.dir, "sock")
        self.conf_path = os.path.join(self.dir, "redis.conf")
        self.log_path = os.path.join(self.dir, "log")
        self.process, self.password = None, None

    @staticmethod
    def binary():
        """The server, or, where only the tools are installed, the file that is the server too."""
        return shutil.which("redis-server", path=PATH) or shutil.which("redis-check-rdb", path=PATH)

    @classmethod
    def available(cls):
        return cls.binary() is not None

    def conf(self):
        return ["port %d" % self.port, "bind %s" % self.bind, "unixsocket " + self.socket,
                "dir " + self.dir, "logfile " + self.log_path, "protected-mode no", "daemonize no"]

    def arguments(self):
        """As execvp wants them: its own name decides what the program is."""
        return ["redis-server", self.conf_path]

    def start(self):
        with open(self.conf_path, "w") as file:
            file.write("\n".join(self.conf()) + "\n")
        return self.spawn()

    def spawn(self):
        log = open(self.log_path, "ab")
        words = self.arguments()
        if self.prefix:                         # nsenter has no way to set a program's own name
            words, binary = self.prefix + [self.binary()] + words[1:], None
        else:
            binary = self.binary()
        self.process = subprocess.Popen(words, executable=binary, stdin=subprocess.DEVNULL,
                                        stdout=log, stderr=log, start_new_session=True)
        log.close()
        wait_until(self.answers, 20, "redis answers; see %s" % self.log_path)
        return self

    def answers(self):
        assert self.process.poll() is None, "redis-server exited:\n" + proc_tail(self.log_path)
        try:
            with self.connect(timeout=2) as redis:
                return redis("PING") == "PONG"
        except (OSError, RedisError):
            return False

    @property
    def address(self):
        return (self.bind if self.bind != "0.0.0.0" else "127.0.0.1", self.port)

    def connect(self, **kw):
        """Through the unix socket: it works whatever network the server is in."""
        return Resp(self.socket, password=self.password, **kw)

    def __call__(self, *words, **kw):
        try:
            with self.connect(**kw) as redis:
                return redis(*words)
        except ConnectionError:         # a server whose role changes ends its connections
            with self.connect(**kw) as redis:
                return redis(*words)

    def info(self, section="default"):
        """INFO as a dictionary of strings."""
        rows = (line.partition(":") for line in self("INFO", section).splitlines() if ":" in line)
        return {name: value for name, _, value in rows}

    def running(self):
        return self.process is not None and self.process.poll() is None

    def stop(self):
        """An orderly end."""
        if self.running():
            self.thaw()
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)

    def kill(self):
        """kill -9, as a crash."""
        if self.running():
            self.process.kill()
            self.process.wait(10)

    def freeze(self):
        """Stops every thread; returns when all stand still."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = "/proc/%d/task" % self.process.pid
        wait_until(lambda: all(proc_stat("%d/task/%s" % (self.process.pid, t))[1] in "Tt"
                               for t in os.listdir(tasks)), 5)

    def thaw(self):
        if self.running():
            self.process.send_signal(signal.SIGCONT)

    def restart(self):
        """Killed and started again at the same place. It keeps nothing: it saves nothing."""
        self.kill()
        return self.spawn()

    def log_text(self):
        with open(self.log_path, errors="replace") as file:
            return file.read()

    def destroy(self):
        if self.running():
            self.thaw()
            self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.destroy()


class Redis(Server):
    """A data server that writes nothing to disk. `replica_of` is another Redis."""

    def __init__(self, password=None, replica_of=None, prefix=(), bind="127.0.0.1", databases=16):
        super().__init__(prefix, bind)
        self.password, self.replica_of, self.databases = password, replica_of, databases
        self.start()

    def conf(self):
        out = super().conf() + ["save \"\"", "appendonly no", "databases %d" % self.databases,
                                "repl-diskless-sync-delay 0", "loglevel notice"]
        if self.password:
            out += ["requirepass \"%s\"" % self.password]
        if self.replica_of:
            out += ["replicaof %s %d" % self.replica_of.address]
        if self.replica_of and self.replica_of.password:
            out += ["masterauth \"%s\"" % self.replica_of.password]
        elif self.password:
            out += ["masterauth \"%s\"" % self.password]      # it may become a replica one day
        return out

    def url(self, db=0, address=None, password=None):
        """ADDRESS: of a forwarder in front of it."""
        host, port = address or self.address
        password = self.password if password is None else password
        return "redis://%s%s:%d/%d" % (":%s@" % password if password else "", host, port, db)

    def flush(self):
        self("FLUSHALL")

    def keys(self, pattern="*", db=0):
        with self.connect(db=db) as redis:
            return sorted(redis("KEYS", pattern))

    def channels(self, pattern="*"):
        return sorted(self("PUBSUB", "CHANNELS", pattern))

    def role(self):
        return self("ROLE")[0]

    def drop_clients(self):
        """Ends every connection but the one that says so."""
        for kind in ("normal", "pubsub"):
            self("CLIENT", "KILL", "TYPE", kind)

    def reset_counts(self):
        self("CONFIG", "RESETSTAT")

    def counts(self):
        """{command: calls} since reset_counts(); the commands of this client are in it, too."""
        out = {}
        for name, value in self.info("commandstats").items():
            out[name.partition("_")[2]] = int(value.partition("calls=")[2].partition(",")[0])
        return out

    def wait_replica(self, deadline=20):
        """For a replica: its copy is complete and the link stands."""
        wait_until(lambda: self.info("replication").get("master_link_status") == "up", deadline,
                   "the replica has its master")
        return self


class Sentinel(Server):
    """Watches MASTER under the name NAME and makes a replica the master when it is gone."""

    def __init__(self, master, name="parley", quorum=1, down_ms=500, failover_ms=2000, prefix=(),
                 bind="127.0.0.1", password=None):
        super().__init__(prefix, bind)
        self.master, self.name, self.quorum = master, name, quorum
        self.down_ms, self.failover_ms, self.password = down_ms, failover_ms, password
        self.start()
        for name, value in (("info-period", 200), ("publish-period", 200), ("ask-period", 200),
                            ("ping-period", 100), ("min-link-reconnect-period", 1000),
                            ("default-down-after", 500), ("tilt-period", 1000)):
            try:
                self("SENTINEL", "DEBUG", name, value)
            except RedisError:
                pass                            # an older one is slower, that is all

    def conf(self):
        host, port = self.master.address
        out = super().conf() + ["sentinel monitor %s %s %d %d" % (self.name, host, port, self.quorum),
                                "sentinel down-after-milliseconds %s %d" % (self.name, self.down_ms),
                                "sentinel failover-timeout %s %d" % (self.name, self.failover_ms)]
        if self.master.password:
            out += ["sentinel auth-pass %s %s" % (self.name, self.master.password)]
        if self.password:
            out += ["requirepass " + self.password, "sentinel sentinel-pass " + self.password]
        return out

    def arguments(self):
        return super().arguments() + ["--sentinel"]

    def pairs(self, words):
        return dict(zip(words[::2], words[1::2]))

    def master_address(self):
        found = self("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        return (found[0], int(found[1])) if found else None

    def replicas(self):
        """Those that are in good health, as (host, port)."""
        rows = [self.pairs(row) for row in self("SENTINEL", "REPLICAS", self.name)]
        return [(row["ip"], int(row["port"])) for row in rows
                if row["flags"] == "slave" and row.get("master-link-status") == "ok"]

    def wait_knows(self, master, *replicas, others=0, deadline=30):
        """Waits until it knows MASTER, those REPLICAS, and OTHERS other sentinels."""
        def knows():
            row = self.pairs(self("SENTINEL", "MASTER", self.name))
            return (row["flags"] == "master" and int(row["num-other-sentinels"]) >= others and
                    self.master_address() == master.address and
                    {r.address for r in replicas} <= set(self.replicas()))

        wait_until(knows, deadline, "the sentinel knows its master and replicas", step=0.05)
        return self

    def wait_master(self, redis, deadline=30):
        """Waits until REDIS is the master, and knows it."""
        wait_until(lambda: self.master_address() == redis.address and redis.role() == "master",
                   deadline, "the replica becomes the master", step=0.02)

    def url(self, *others, db=None):
        """Of this sentinel and OTHERS."""
        hosts = ",".join("%s:%d" % sentinel.address for sentinel in (self,) + others)
        return "sentinel://%s;%s%s" % (hosts, self.name, "" if db is None else "/%d" % db)


def proc_tail(path, lines=20):
    try:
        with open(path, errors="replace") as file:
            return "".join(file.readlines()[-lines:])
    except OSError:
        return ""

