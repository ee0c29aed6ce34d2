"""A private parleyd: its directory, ports and configuration; its processes as /proc shows them."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from .client import Client, Dropped
from .poll import SCALE, wait_until
from .wire import *  # noqa: F403

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
BUILD = os.environ.get("PARLEY_BUILD", "release")
BUILD_DIR = os.environ.get("PARLEY_BIN") or os.path.join(ROOT, "build", "" if BUILD == "release" else BUILD)
SANITIZED = BUILD in ("asan", "tsan")

SANITIZER = re.compile(r"Sanitizer|runtime error:")
ALARM = re.compile(r"\b(panic|fatal)\b", re.I)
DEFAULTS = {
    "workers": 2, "hash_memory": 64, "hash_passes": 1, "rate_messages": 0, "rate_logins": 0,
    "stop_seconds": 5, "log_level": "debug",
}
# PARLEY_CONF="key=value key=value" changes what every daemon is configured with, where its test says nothing.
DEFAULTS.update(item.split("=", 1) for item in os.environ.get("PARLEY_CONF", "").split())
_serial = itertools.count(1)
_ports_given = set()


def free_port():
    """A loopback port outside the ephemeral range, so that no outgoing connection takes it."""
    while True:
        port = random.SystemRandom().randrange(12000, 32000)
        if port in _ports_given:
            continue
        _ports_given.add(port)
        try:
            for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                with socket.socket(family) as probe:
                    probe.bind((host, port))
            return port
        except OSError:
            continue


class Account:
    """A registered user, as a test knows it."""

    def __init__(self, id, name, password):
        self.id, self.name, self.password = id, name, password

    def __repr__(self):
        return "<account %d %s>" % (self.id, self.name)


def unique(prefix):
    """A name that no other test of this run uses."""
    return "%s-%d" % (prefix, next(_serial))


def proc_text(pid, name):
    try:
        with open("/proc/%s/%s" % (pid, name), "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def proc_stat(pid):
    """(comm, state, ppid, session, starttime) of a process, or None."""
    text = proc_text(pid, "stat")
    if not text:
        return None
    comm, rest = text[text.index("(") + 1:text.rindex(")")], text[text.rindex(")") + 2:].split()
    return comm, rest[0], int(rest[1]), int(rest[3]), int(rest[19])


def all_pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


class Daemon:
    """`conf` overrides the configuration: a list gives a key several times, None leaves it out."""

    def __init__(self, argv=(), prefix=(), env=None, **conf):
        self.dir = tempfile.mkdtemp(prefix="parley-")
        os.chmod(self.dir, 0o755)
        self.port, self.classic_port = free_port(), free_port()
        self.proxy_port = None              # see listen_behind_proxy()
        self.unix = os.path.join(self.dir, "chat.sock")
        self.conf_path = os.path.join(self.dir, "parleyd.conf")
        self.log_path = os.path.join(self.dir, "log")
        self.control = os.path.join(self.dir, "ctl.sock")
        self.conf = dict(DEFAULTS, **{
            "listen": ["127.0.0.1:%d" % self.port, "127.0.0.1:%d dialect=classic" % self.classic_port,
                       self.unix],
            "store": "sqlite:" + os.path.join(self.dir, "parley.db"), "control": self.control,
            "pid_file": os.path.join(self.dir, "parleyd.pid"),
            "state_dir": os.path.join(self.dir, "state"), "log": "stderr"})
        os.mkdir(self.conf["state_dir"], 0o755)
        self.conf.update(conf)
        self.argv, self.prefix, self.env = list(argv), list(prefix), env
        self.mark = "PARLEYTEST=%d-%d" % (os.getpid(), next(_serial))
        self.process = None
        self.clients, self.allowed, self.seen = [], [], {}
        self.write_conf()

    # -- configuration ---------------------------------------------------------------------------

    def conf_text(self):
        lines = []
        for key, value in self.conf.items():
            if value is not None:
                lines += ["%s = %s" % (key, item) for item in (value if isinstance(value, list) else [value])]
        return "\n".join(lines) + "\n"

    def write_conf(self, text=None, **changes):
        """Writes the file anew: with changed keys, or as TEXT."""
        self.conf.update(changes)
        with open(self.conf_path + ".new", "w") as file:
            file.write(self.conf_text() if text is None else text)
        os.rename(self.conf_path + ".new", self.conf_path)

    def listen_behind_proxy(self, options=""):
        """Adds a listener that expects a PROXY header (before the daemon is started)."""
        self.proxy_port = free_port()
        self.write_conf(listen=self.conf["listen"] + ["127.0.0.1:%d proxy %s" % (self.proxy_port, options)])
        return self

    def program(self, name):
        return os.path.join(BUILD_DIR, name)

    def command(self):
        return self.prefix + [self.program("parleyd"), "-c", self.conf_path] + self.argv

    # -- starting and stopping -------------------------------------------------------------------

    def environment(self):
        env = dict(os.environ, **(self.env or {}))
        name, value = self.mark.split("=")
        env[name] = value
        env.setdefault("ASAN_OPTIONS", "abort_on_error=0:exitcode=99:detect_leaks=1")
        env.setdefault("UBSAN_OPTIONS", "print_stacktrace=1:halt_on_error=1")
        return env

    def spawn(self, preexec=None):
        """Starts the process without waiting for anything."""
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.dir, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self.environment(), start_new_session=True, preexec_fn=preexec)
        return self

    def start(self, deadline=10, preexec=None):
        self.spawn(preexec)
        self.wait_ready(deadline)
        return self

    def wait_ready(self, deadline=10):
        """Every worker is there and the first listener answers."""
        def ready():
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError("parleyd exited with %s:\n%s" % (self.process.returncode, self.log_tail()))
            try:
                with Client(self.address(), timeout=2) as client:
                    client.ping(2)
                return self.workers
            except (OSError, AssertionError):
                return False

        wait_until(ready, deadline, "parleyd answers; log:\n" + self.log_tail())
        count = self.conf.get("workers")
        if isinstance(count, int):
            wait_until(lambda: len(self.workers) == count, deadline, "%d workers" % count)
        self.remember()

    @property
    def pid(self):
        return self.process.pid

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait_exit(self, deadline=10):
        wait_until(lambda: self.process.poll() is not None, deadline, "parleyd exits")
        return self.process.returncode

    def stop(self, number=signal.SIGTERM, code=0):
        """A clean end: the exit status, nothing left behind, nothing alarming in the log."""
        self.remember()
        self.send_signal(number)
        status = self.wait_exit(int(self.conf["stop_seconds"]) + 5)
        for client in self.clients:
            client.close()
        assert status == code, "exit status %s\n%s" % (status, self.log_tail())
        self.check_gone()
        self.check_log()

    def finish(self):
        """For fixtures: stops a daemon that still runs, checks it, and removes its directory."""
        try:
            try:
                for client in self.clients:     # first: the end of a session waits for its client
                    client.close()
                if self.alive():
                    self.stop()
                self.check_gone()
                self.check_log()
                self.check_clients()
            finally:
                self.destroy()
        finally:
            shutil.rmtree(self.dir, ignore_errors=True)

    def destroy(self):
        """Leaves nothing running, whatever the state of the test."""
        for client in self.clients:
            client.close()
        for _ in range(3):
            for pid in self.processes():
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            if self.process is not None:
                try:
                    self.process.wait(5)
                except subprocess.TimeoutExpired:
                    continue
            break

    # -- what must hold --------------------------------------------------------------------------

    def check_gone(self):
        """No process of this daemon is left (a dying one gets a moment)."""
        wait_until(lambda: not self.processes(), 5, "the daemon's processes are gone: %s" % [
            (pid, proc_text(pid, "comm").strip()) for pid in self.processes()])

    def check_log(self):
        for line in self.log_text().splitlines():
            if SANITIZER.search(line):
                raise AssertionError("sanitizer report:\n" + self.log_text()[-8000:])
            if ALARM.search(line) and not any(re.search(allowed, line) for allowed in self.allowed):
                raise AssertionError("in the log: %s\n%s" % (line, self.log_tail()))

    def check_clients(self):
        for client in self.clients:
            client._raise_violations()

    def check_health(self):
        assert self.alive(), "parleyd died:\n" + self.log_tail()
        self.check_log()
        self.check_clients()

    def allow(self, pattern):
        """A test that provokes a `fatal` line says which."""
        self.allowed.append(pattern)

    # -- processes -------------------------------------------------------------------------------

    def remember(self):
        for pid in self.processes():
            stat = proc_stat(pid)
            if stat:
                self.seen[pid] = stat[4]

    def processes(self):
        """Every live process of this daemon: by session, by environment, or known from before."""
        out = []
        session = self.process.pid if self.process is not None else None
        for pid in all_pids():
            stat = proc_stat(pid)
            if stat is None or stat[1] == "Z":
                continue
            if (stat[3] == session or self.seen.get(pid) == stat[4] or
                    self.mark in proc_text(pid, "environ").split("\0")):
                out.append(pid)
        return out

    @property
    def workers(self):
        """{slot: pid} of the live worker processes, by their short names."""
        out = {}
        for pid in all_pids():
            match = re.fullmatch(r"parleyd-w(\d+)\n", proc_text(pid, "comm"))
            stat = match and proc_stat(pid)
            if stat and stat[1] != "Z" and (stat[2] == self.pid or stat[3] == self.pid):
                out[int(match.group(1))] = pid
        return out

    def kill_worker(self, slot, number=signal.SIGKILL):
        pid = self.workers[slot]
        os.kill(pid, number)
        return pid

    def wait_worker(self, slot, old=None, deadline=5):
        """Waits for a worker in SLOT that is not the process OLD; returns its pid."""
        pid = wait_until(lambda: self.workers.get(slot) not in (None, old) and self.workers.get(slot),
                         deadline, "worker %d is replaced" % slot)
        self.remember()
        return pid

    def worker_of(self, client, deadline=5):
        """The slot whose process holds the server's end of a TCP connection."""
        def find():
            if client.eof:
                return (None,)              # it ended before that could be seen
            inode = self.inodes().get(client.local[1])
            if not inode:
                return None
            link = "socket:[%d]" % inode
            for slot, pid in self.workers.items():
                try:
                    for fd in os.listdir("/proc/%d/fd" % pid):
                        try:
                            if os.readlink("/proc/%d/fd/%s" % (pid, fd)) == link:
                                return (slot,)
                        except OSError:
                            pass
                except OSError:
                    pass
            return None

        return wait_until(find, deadline, "a worker holds %s" % client)[0]

    def tcp_rows(self):
        """The server's ends of established connections: (client port, unread bytes, inode)."""
        mine = {self.port, self.classic_port, self.proxy_port}
        for name in ("net/tcp", "net/tcp6"):
            for line in proc_text(self.pid, name).splitlines()[1:]:
                field = line.split()
                local, remote = field[1].rsplit(":", 1), field[2].rsplit(":", 1)
                if int(local[1], 16) in mine and field[3] == "01":
                    yield int(remote[1], 16), int(field[4].split(":")[1], 16), int(field[9])

    def inodes(self):
        return {port: inode for port, _, inode in self.tcp_rows()}

    def wait_read(self, *clients, deadline=5):
        """Waits until the server has read every byte that these TCP clients have sent."""
        ports = {client.local[1] for client in clients}

        def drained():
            rows = {port: unread for port, unread, inode in self.tcp_rows() if port in ports and inode}
            return len(rows) == len(ports) and not any(rows.values())

        wait_until(drained, deadline, "the server has read all bytes")

    # -- log -------------------------------------------------------------------------------------

    def log_text(self):
        text = ""
        for path in {self.log_path, self.conf.get("log")}:
            if path and path.startswith("/") and os.path.exists(path):
                with open(path, errors="replace") as file:
                    text += file.read()
        return text

    def log_tail(self, lines=40, without="\0"):
        return "\n".join([line for line in self.log_text().splitlines() if without not in line][-lines:])

    def log_contains(self, pattern):
        return re.search(pattern, self.log_text(), re.M) is not None

    def wait_log(self, pattern, deadline=5):
        wait_until(lambda: self.log_contains(pattern), deadline, "the log says /%s/" % pattern)

    # -- the admin side --------------------------------------------------------------------------

    def ctl(self, *args, input=None, timeout=20, env=None):
        """Runs parleyctl; returns the CompletedProcess."""
        return subprocess.run([self.program("parleyctl"), "-s", self.control] + [str(a) for a in args],
                              input=input, capture_output=True, text=True, timeout=timeout * SCALE,
                              cwd=self.dir, env=dict(self.environment(), **(env or {})))

    def ctl_ok(self, *args, **kw):
        done = self.ctl(*args, **kw)
        assert done.returncode == 0, (args, done)
        return done.stdout

    def status(self):
        return json.loads(self.ctl_ok("--json", "status"))

    def worker_status(self, slot):
        return next(w for w in self.status()["workers"] if w["slot"] == slot)

    def reload(self):
        """HUP; the verdict is asked for with parleyctl where a test needs it."""
        self.send_signal(signal.SIGHUP)

    # -- clients ---------------------------------------------------------------------------------

    def address(self, dialect="plain"):
        return ("127.0.0.1", self.port if dialect == "plain" else self.classic_port)

    def connect(self, dialect="plain", address=None, **kw):
        kw.setdefault("end", b"\n" if dialect == "plain" else b"\0")
        kw.setdefault("max_frame", int(self.conf.get("max_frame") or 65536))
        client = Client(address or self.address(dialect), dialect, **kw)
        self.clients.append(client)
        return client

    def connect_on(self, slot, tries=400, **kw):
        """A connection that the kernel has given to the worker in SLOT."""
        for _ in range(tries):
            client = self.connect(**kw)
            if self.worker_of(client) == slot:
                return client
            client.close()
            self.clients.remove(client)
        raise AssertionError("no connection of %d came to worker %d" % (tries, slot))

    def account(self, name=None, password="secret-word"):
        """Registers a user."""
        name = unique(name or "user")
        with self.connect() as client:
            reply = client.ok(REG, name=name, password=password)
            self.clients.remove(client)
        return Account(reply["id"], name, password)

    def accounts(self, count, prefix="user", password="secret-word", slot=None):
        """Registers many users over one connection."""
        out = []
        with self.connect() if slot is None else self.connect_on(slot) as client:
            names = [unique(prefix) for _ in range(count)]
            for name in names:
                client.send(REG, name=name, password=password)
            for name in names:
                reply = client.expect(REG_ACK, 20)
                assert reply["errno"] == 0, reply
                out.append(Account(reply["id"], name, password))
            self.clients.remove(client)
        return out

    def login(self, account, slot=None, dialect="plain", deadline=5, login=None, **kw):
        """A connection that is logged in, on the worker SLOT where that is given."""
        client = (self.connect(dialect, **kw) if slot is None
                  else self.connect_on(slot, dialect=dialect, **kw))
        client.login(account, deadline, **(login or {}))
        return client

    def online(self, name=None, slot=None, **kw):
        """A new user, logged in."""
        return self.login(self.account(name), slot, **kw)

    def relogin(self, account, deadline=5, **kw):
        """Logs in as soon as the daemon lets the user in (its old session may still be closing, its
        passwords may still be queued for their hash)."""
        def attempt():
            client = None
            try:
                client = self.connect(**kw)
                reply = client.request(LOGIN, id=account.id, password=account.password)
            except (OSError, Dropped):
                reply = None
            if reply is not None and reply["errno"] == 0:
                client.ack, client.account = reply, account
                client.id, client.name = reply["id"], reply["name"]
                return client
            assert reply is None or reply["errno"] in (ELSEWHERE, UNAVAILABLE, TOO_FAST), reply
            if client is not None:
                client.close()
                self.clients.remove(client)
            return None

        return wait_until(attempt, deadline, "%s can log in again" % account)

    def connect_hard(self, account, deadline=5):
        """relogin() for measuring: tries without a pause."""
        end = time.monotonic() + deadline * SCALE
        while time.monotonic() < end:
            try:
                client = self.connect()
                if client.request(LOGIN, id=account.id, password=account.password)["errno"] == 0:
                    client.account, client.id, client.name = account, account.id, account.name
                    return client
                client.close()
            except (OSError, Dropped):
                pass
        raise AssertionError("%s could not log in again within %.1f s" % (account, deadline))

    def group(self, creator, name=None, desc="a group"):
        """A new group; returns its id."""
        return creator.ok(CREATE_GROUP, groupname=unique(name or "group"), groupdesc=desc)["groupid"]

    def befriend(self, client, *others):
        for other in others:
            client.ok(ADD_FRIEND, friendid=other.id)

    def users_online(self):
        return self.status()["users_online"]
