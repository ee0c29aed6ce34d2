"""The servers that are measured: parleyd, the relay, and brokers where they are installed.

Each is a private process with its own directory and a free port on loopback, ended with the
with-block. None of the system's services is started or touched.
"""
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time

OUT = os.path.abspath("build/bench")
BIN = os.path.abspath("build")
CPUS = sorted(os.sched_getaffinity(0))
SERVER_CPU, LOAD_CPU = CPUS[0], CPUS[-1]
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"


class Missing(Exception):
    """What a measurement needs is not installed."""


def installed(program):
    found = shutil.which(program, path=PATH)
    if not found:
        raise Missing(f"{program} is not installed")
    return found


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(what, true, seconds=30.0, step=0.02):
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {seconds:.0f} s")
        time.sleep(step)


class Server:
    """A process that listens. `protocol` is what parley-bench calls it."""

    name, protocol, options = "server", "relay", ()
    parallel = 64                               # logins that it can stand at once

    def __init__(self, argv, port, log, cpus=None, cwd=None, env=None, seconds=30):
        self.port, self.address, self.log = port, f"127.0.0.1:{port}", log
        cpus = cpus or {SERVER_CPU}
        with open(log, "ab") as f:
            self.proc = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=f, stderr=f, cwd=cwd, env=env,
                                         preexec_fn=lambda: os.sched_setaffinity(0, cpus))
        try:
            wait_until(f"{self.name} answers, see {log}", lambda: self.answers() or self.ended(), seconds)
            if self.ended():
                raise RuntimeError(f"{self.name} ended with {self.proc.returncode}, see {log}")
        except BaseException:
            self.kill()
            raise

    def ended(self):
        return self.proc.poll() is not None

    def answers(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as s:
            hello = self.hello()
            if not hello:
                return True
            s.settimeout(2)
            s.sendall(hello)
            return s.recv(100) != b""
        return False

    def hello(self):
        return b""

    def kill(self):
        self.proc.kill()
        self.proc.wait()

    def stop(self):
        self.proc.send_signal(signal.SIGTERM)
        try:
            self.proc.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def pids(self):
        """The process and all below it."""
        out = [self.proc.pid]
        for pid in out:
            with contextlib.suppress(OSError):
                for task in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{task}/children") as f:
                        out += [int(p) for p in f.read().split() if int(p) not in out]
        return out

    def users(self):
        """What parley-bench has to be told about accounts."""
        return ()


def folder(name):
    path = f"{OUT}/{name}"
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    return path


class Relay(Server):
    name = "relay"

    def __init__(self):
        port = free_port()
        super().__init__([f"{BIN}/parley-relay", str(port)], port, f"{OUT}/relay.log")


# --- parleyd -----------------------------------------------------------------------------------

class Parleyd(Server):
    """A daemon on the accounts below STATE. KEYS are lines of its configuration."""

    name, protocol = "parleyd", "parley"

    def __init__(self, state, *keys, cpus=None, users=None, prefix=(), env=None, seconds=30, address="127.0.0.1"):
        self.state, self.control, self.accounts = state, f"{state}/control", users
        port = free_port()
        os.makedirs(state, exist_ok=True)
        given = {key.split("=")[0].strip() for key in keys}
        defaults = {"listen": f"{address}:{port}", "state_dir": state, "store": f"sqlite:{state}/parley.db",
                    "control": self.control, "rate_messages": 0, "rate_logins": 0, "offline_max": 0,
                    "friends_max": 1000000, "group_members_max": 1000000, "log_level": "warn", "workers": 1}
        with open(f"{state}/parleyd.conf", "w") as conf:
            conf.writelines(f"{k}={v}\n" for k, v in defaults.items() if k not in given)
            conf.writelines(f"{key}\n" for key in keys)
        super().__init__([*prefix, f"{BIN}/parleyd", "-c", f"{state}/parleyd.conf"], port,
                         f"{OUT}/parleyd.log", cpus, env=env, seconds=seconds)

    def hello(self):
        return b'{"msgid":25}\n'                # a worker says PONG

    def ctl(self, *args, text=None, timeout=600):
        done = subprocess.run([f"{BIN}/parleyctl", "-s", self.control, *map(str, args)], input=text,
                              capture_output=True, text=True, timeout=timeout)
        if done.returncode != 0:
            raise RuntimeError(f"parleyctl {' '.join(map(str, args))}: {(done.stderr or done.stdout)[:300]}")
        return done.stdout

    def counters(self):
        """The counters of all workers, added up."""
        out = {}
        for line in self.ctl("metrics").splitlines():
            if line.startswith("parley_"):
                name, value = line.rsplit(None, 1)
                name = name.split("{")[0].removeprefix("parley_").removesuffix("_total")
                out[name] = out.get(name, 0) + float(value)
        return out

    def workers(self):
        def is_worker(pid):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as f:
                return f.read().startswith("parleyd-w")
        return [pid for pid in self.pids() if is_worker(pid)]

    def wait_workers(self, count, seconds=60):
        wait_until(f"{count} workers", lambda: len(self.workers()) == count, seconds)

    def users(self):
        return ("--users", self.accounts)


class Accounts:
    """Accounts made once, by login token only; each scenario works on a copy of the folder."""

    def __init__(self):
        self.made, self.users, self.state = 0, f"{OUT}/users", f"{OUT}/accounts"

    def need(self, count):
        if count <= self.made:
            return
        shutil.rmtree(self.state, ignore_errors=True)
        with Parleyd(self.state, cpus=set(CPUS)) as d:
            took = make_accounts(d, count, self.users)
        print(f"    {count:,} accounts and tokens made in {took:.1f} s", flush=True)
        self.made = count

    def daemon(self, count, *keys, **kw):
        """A Parleyd with at least COUNT accounts, on a folder of its own."""
        self.need(count)
        to = folder("state")
        os.rmdir(to)
        shutil.copytree(self.state, to, ignore=lambda _, names: [n for n in names if n in
                                                                 ("control", "parleyd.sock", "parleyd.conf")])
        return Parleyd(to, *keys, users=self.users, **kw)


def make_accounts(daemon, count, users):
    """COUNT accounts and their tokens in the file USERS; the seconds it took."""
    names = [f"bench{n}" for n in range(1, count + 1)]
    start = time.monotonic()
    daemon.ctl("user", "import", "-", text="".join(f"{n}:*\n" for n in names))     # * is no password
    tokens = daemon.ctl("token", "-", text="".join(f"{n}\n" for n in names))
    took = time.monotonic() - start
    with open(users, "w") as f:
        f.write(tokens)
    return took


# --- the store and the bus ---------------------------------------------------------------------

class MariaDB:
    """A private server on loopback, as durable as its default."""

    def __init__(self):
        server, install = installed("mariadbd"), installed("mariadb-install-db")
        self.client = installed("mariadb")
        self.dir, self.port = folder("mariadb"), free_port()
        common = ["--no-defaults", f"--datadir={self.dir}/data"] + (["--user=root"] if os.getuid() == 0 else [])
        subprocess.run([install, *common, "--auth-root-authentication-method=normal", "--skip-test-db",
                        "--skip-name-resolve", "--force"], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        with open(f"{self.dir}/log", "ab") as log:
            self.proc = subprocess.Popen(
                [server, *common, f"--socket={self.dir}/sock", f"--port={self.port}", "--bind-address=127.0.0.1",
                 f"--pid-file={self.dir}/pid", "--skip-name-resolve", "--innodb-flush-log-at-trx-commit=1",
                 "--innodb-buffer-pool-size=256M", "--skip-log-bin", "--max-connections=400"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until("mariadbd answers", lambda: self.sql("SELECT 1").returncode == 0)
            self.sql("CREATE DATABASE parley; CREATE USER parley@'%' IDENTIFIED BY 'bench';"
                     "GRANT ALL ON parley.* TO parley@'%'")
        except BaseException:
            self.proc.kill()
            raise
        self.url = f"mysql://parley:bench@127.0.0.1:{self.port}/parley"

    def sql(self, text):
        return subprocess.run([self.client, "--no-defaults", "-S", f"{self.dir}/sock", "-uroot", "-e", text],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def empty(self):
        self.sql("DROP DATABASE parley; CREATE DATABASE parley")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.proc.send_signal(signal.SIGTERM)
        try:
            self.proc.wait(30)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


class Redis(Server):
    name, protocol = "redis-server pub/sub", "redis"

    def __init__(self, cpus=None):
        port = free_port()
        super().__init__([installed("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", "",
                          "--appendonly", "no", "--maxclients", "100000", "--protected-mode", "no"], port, f"{OUT}/redis.log", cpus,
                         cwd=folder("redis"))

    def hello(self):
        return b"PING\r\n"

    def ask(self, *words):
        """The reply to one command, as the bytes of its first value."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as s, s.makefile("rb") as f:
            s.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words))
            line = f.readline()
            return f.read(int(line[1:])).decode() if line[:1] == b"$" else line.decode()

    def commands(self):
        """{command: calls} so far."""
        out = {}
        for line in self.ask("INFO", "commandstats").splitlines():
            if line.startswith("cmdstat_"):
                name, value = line[8:].split(":", 1)
                out[name] = int(value.split("calls=")[1].split(",")[0])
        return out


# --- brokers to compare with -------------------------------------------------------------------

class Mosquitto(Server):
    name, protocol = "mosquitto", "mqtt"

    def __init__(self, qos=0):
        program, port, path = installed("mosquitto"), free_port(), folder("mosquitto")
        self.name, self.options = f"mosquitto QoS {qos}", ("--qos", qos)
        with open(f"{path}/conf", "w") as f:
            f.write(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
                    "set_tcp_nodelay true\nmax_queued_messages 0\nlog_type error\n")
        super().__init__([program, "-c", f"{path}/conf"], port, f"{OUT}/mosquitto.log")


class NgIRCd(Server):
    name, protocol, parallel = "ngircd", "irc", 8       # it listens with a backlog of 10

    def __init__(self):
        program, port, path = installed("ngircd"), free_port(), folder("ngircd")
        with open(f"{path}/conf", "w") as f:
            f.write(f"[Global]\nName = irc.bench.local\nInfo = bench\nListen = 127.0.0.1\nPorts = {port}\n"
                    f"MotdPhrase = bench\nServerUID = {os.getuid()}\nServerGID = {os.getgid()}\n[Limits]\n"
                    "MaxConnections = 0\nMaxConnectionsIP = 0\nMaxNickLength = 15\nPingTimeout = 3600\n"
                    "PongTimeout = 3600\nMaxPenaltyTime = 0\n[Options]\nDNS = no\nIdent = no\nPAM = no\n")
        super().__init__([program, "-n", "-f", f"{path}/conf"], port, f"{OUT}/ngircd.log")


class Ejabberd(Server):
    """The Erlang node alone: no name, so no epmd, and none of the service's files."""

    name, protocol = "ejabberd", "xmpp"

    def __init__(self):
        installed("ejabberdctl")
        erl, port, path = installed("erl"), free_port(), folder("ejabberd")
        with open(f"{path}/ejabberd.yml", "w") as f:
            f.write(f"hosts:\n  - localhost\nloglevel: 2\nlisten:\n  -\n    port: {port}\n    ip: \"127.0.0.1\"\n"
                    "    module: ejabberd_c2s\n    max_stanza_size: 65536\n    backlog: 4096\n"
                    "auth_method: anonymous\nanonymous_protocol: sasl_anon\nallow_multiple_connections: true\n"
                    "modules: {}\n")
        env = dict(os.environ, HOME=path, EJABBERD_CONFIG_PATH=f"{path}/ejabberd.yml",
                   EJABBERD_LOG_PATH=f"{path}/log", ERL_LIBS=self.library())
        super().__init__([erl, "+K", "true", "+P", "250000", "+Q", "65536", "-noinput", "-noshell", "-mnesia",
                          "dir", f'"{path}/spool"', "-s", "ejabberd"], port, f"{OUT}/ejabberd.log", cwd=path,
                         env=env, seconds=60)

    @staticmethod
    def library():
        for base in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib", "/usr/lib64"):
            with contextlib.suppress(OSError):
                if any(name.startswith("ejabberd-") for name in os.listdir(base)):
                    return base
        raise Missing("ejabberd's Erlang modules were not found")

    def hello(self):
        return b"<?xml version='1.0'?><stream:stream to='localhost' version='1.0' xmlns='jabber:client' " \
               b"xmlns:stream='http://etherx.jabber.org/streams'>"


BROKERS = (lambda: Mosquitto(0), lambda: Mosquitto(1), Redis, NgIRCd, Ejabberd)


def brokers(stack, rep):
    """Starts those that are installed; says which are not."""
    out = []
    for make in BROKERS:
        try:
            out.append(stack.enter_context(make()))
        except Missing as e:
            rep.skipped(str(e))
        except RuntimeError as e:
            rep.skipped(f"not compared: {e}")
    return out
