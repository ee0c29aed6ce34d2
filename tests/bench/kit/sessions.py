"""Scenarios: people who come, go, are away, or sit there."""
import contextlib
import json
import resource
import shutil
import subprocess
import time

from .measure import Cell, alternate, load, settled_memory
from .report import cost, mib, num, us
from .servers import (BIN, BROKERS, CPUS, OUT, MariaDB, Missing, Parleyd, folder, make_accounts)

PASSWORD = "bench-password"


@contextlib.contextmanager
def on_mariadb(rep, *keys, users=0):
    """A Parleyd whose store is a MariaDB of its own; None where there is none."""
    with contextlib.ExitStack() as stack:
        try:
            db = stack.enter_context(MariaDB())
        except Missing as e:
            rep.skipped(f"MariaDB: {e}")
            yield None
            return
        d = stack.enter_context(Parleyd(folder("state-mariadb"), f"store={db.url}", *keys, cpus=set(CPUS),
                                        users=f"{OUT}/users-mariadb"))
        if users:
            make_accounts(d, users, d.accounts)
        yield d


def login(rep, acc, a):
    """Logins by token and by password, SQLite and MariaDB."""
    rep.section("Logins", """Each is a new connection, a login, its answer and the end of the connection; one worker, users
        without friends and groups. The daemon on SQLite has one CPU; with MariaDB, the two of them and the load share
        all CPUs.""")
    rows, users = [], 20000

    def row(what, store, cells):
        alternate(cells, a.rounds)
        c = cells[0]
        for x in c.runs:
            rep.raw(x, by=what, store=store)
        rows.append((what, store, num(c.median("logins_per_second")), cost(c.median("server_cpu_us")),
                     us(c.median("p50_us")), us(c.median("p99_us"))))
        return c.median("logins_per_second")

    with acc.daemon(users) as d:
        rate = row("token", "SQLite", [Cell("", lambda: load(d, "login", "--parallel", 64, "--seconds", a.seconds))])
        rep.goal("logins a second by token, SQLite, one worker", rate, ">=", 10000)
    with on_mariadb(rep, users=users) as d:
        if d:
            row("token", "MariaDB", [Cell("", lambda: load(d, "login", "--parallel", 64, "--seconds", a.seconds, cpu=None))])
    with Parleyd(folder("costly"), "hash_threads=1", users=f"{OUT}/users-costly") as d:
        subprocess.run([f"{BIN}/parley-bench", "register", "--to", d.address, "--count", "40", "--out", d.accounts,
                        "--password", PASSWORD, "--parallel", "8"], check=True, stdout=subprocess.DEVNULL)
        x = load(d, "login", "--password", PASSWORD, "--parallel", 4, "--seconds", 3, "--warmup", 1)
    rep.raw(x, by="password", store="SQLite")
    rows.append(("password (argon2id, 19 MiB, 2 passes; one thread)", "SQLite", num(x["logins_per_second"]),
                 cost(x["server_cpu_us"]), us(x["p50_us"]), us(x["p99_us"])))
    rep.table(("by", "store", "logins/s", "server's CPU", "median", "99 %"), rows)


def presence(rep, acc, a):
    """Friends who come and go, and everybody is told."""
    rows = []
    for watchers, friends in ((10, 100), (200, 100)):
        with acc.daemon(watchers + friends, "presence_delay_ms=100") as d:
            x = load(d, "presence", "--conns", watchers, "--count", friends, "--seconds", 2 * a.seconds)
        rep.raw(x, watchers=watchers, friends=friends)
        rows.append((watchers, friends, num(x["logins_per_second"]), num(x["per_second"]), cost(x["server_cpu_us"]),
                     us(x["p50_us"]), us(x["p99_us"])))
    rep.section("Friends who come and go", """Each friend logs in, is seen online by all who have it on their lists, logs
        out, is seen offline, and comes again; one worker, told offline after 0.1 s of absence (the default is 2 s). Times
        are from sending LOGIN to the notice at each watcher.""")
    rep.table(("watchers", "friends", "logins/s", "notices/s", "CPU a notice", "median", "99 %"), rows)


def store(rep, acc, a):
    """Messages to people who are away, and their return."""
    away, senders, rows = 400, 8, []

    def run(d, name):
        kept = 0
        for window in (1, 64):
            x = load(d, "store", "--conns", senders, "--count", away, "--window", window, "--seconds", a.seconds,
                     cpu=None)
            rep.raw(x, store=name)
            kept += x["sent_all"] - x["refused"]
            rows.append((name, f"store, window {window}", num(x["acked_per_second"]), cost(x["server_cpu_us"]),
                         us(x["ack_p50_us"]), us(x["ack_p99_us"]), x["refused"]))
        x = load(d, "drain", "--first", senders, "--conns", away, "--parallel", 64, cpu=None)
        rep.raw(x, store=name, missing=kept - x["received"])
        if x["received"] != kept:
            raise RuntimeError(f"{kept} messages were stored, {x['received']} came back")
        rows.append((name, f"drain of {num(kept)} by {away} logins", num(x["per_second"]), "", us(x["p50_us"]),
                     us(x["p99_us"]), x["refused"]))

    with acc.daemon(senders + away, cpus=set(CPUS)) as d:
        run(d, "SQLite")
    with on_mariadb(rep, "offline_max=0", users=senders + away) as d:
        if d:
            run(d, "MariaDB")
    rep.section("Messages to people who are away", f"""{senders} senders, {away} receivers; a message counts when CHAT_ACK
        said that it is committed (SQLite with synchronous=full, MariaDB with a flush a commit). One worker, all CPUs.""")
    rep.table(("store", "", "messages/s", "CPU", "median", "99 %", "refused"), rows)


# --- sessions that say nothing -----------------------------------------------------------------

class Held:
    """parley-bench in idle mode, with its sessions up for the time of the with-block."""

    def __init__(self, server, count, procs, *args):
        argv = [f"{BIN}/parley-bench", "idle", "--json", "--protocol", server.protocol, *server.options, *server.users(),
                "--to", server.address, "--conns", count, "--procs", procs, "--parallel", server.parallel, "--watch", server.proc.pid,
                *args]
        self.tool = subprocess.Popen([str(x) for x in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self.tool.stdout.readline()
        if not line:
            raise RuntimeError(f"{num(count)} sessions of {server.name} could not be made")
        self.ready = json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.tool.stdin.close()
        self.end = json.loads(self.tool.stdout.read().splitlines()[-1])
        self.tool.wait(120)


def idle_of(server, count, procs, *args):
    """(report line, bytes a session, memory before and with them)."""
    before = settled_memory(server)
    with Held(server, count, procs, *args) as held:
        with_them = settled_memory(server)
    return held, (with_them - before) / count, before, with_them


def row_of(held, name, n, workers, before, after, per):
    return (name, num(n), workers, mib(before), mib(after), num(per), num(held.ready["connects_per_second"]),
            cost(held.ready["server_cpu_us"]), cost(held.ready["load_cpu_us"]), held.end["lost"])


def machine_holds():
    """Connections with both ends here: memory for some 12 KB each, files, and a gigabyte to spare."""
    with open("/proc/meminfo") as f:
        free = next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))
    with open("/proc/sys/fs/file-max") as f:
        files = int(f.read())
    return max(0, min((free - 2**30) // 12288, files // 2 - 20000, 500000))


def idle(rep, acc, a):
    """What a logged-in session that says nothing costs, and how fast many come."""
    limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1 << 20)
    each = max(200, min(14000, limit - 2500))
    rows, done = [], 0
    sizes = sorted({min(n, machine_holds()) for n in a.sessions})
    for n in sizes:
        procs = -(-n // each)
        if time.monotonic() + 20 + n / 4000 > a.deadline:
            rep.skipped(f"{num(n)} idle sessions: not enough time left (--only idle, --limit)")
            continue
        done = n
        with acc.daemon(n, f"workers={procs}", f"max_workers={max(64, procs)}", "max_sessions=1000000",
                        "pool_idle_seconds=1", "keepalive_seconds=0", cpus=set(CPUS)) as d:
            d.wait_workers(procs)
            start = time.monotonic()
            held, per, before, after = idle_of(d, n, procs)
            rep.raw(server="parleyd", sessions=n, workers=procs, before=before, after=after, bytes_per_session=per,
                    per_second=held.ready["connects_per_second"], lost=held.end["lost"])
            print(f"    {num(n)} sessions: {time.monotonic() - start:.0f} s", flush=True)
        rows.append(row_of(held, "parleyd", n, procs, before, after, per))
    if done:
        rep.goal(f"memory of an idle session, bytes ({num(done)} of them)", per, "<=", 512)
        rep.goal(f"logins a second, by token, while {num(done)} sessions come", held.ready["connects_per_second"],
                 ">=", 20000)
        rep.goal("sessions held at once", done, ">=", 500000)
    n = 10000
    for make in [] if a.no_brokers else BROKERS:
        try:
            with make() as server:
                held, per, before, after = idle_of(server, n, 1)
        except (Missing, RuntimeError) as e:
            rep.skipped(f"idle sessions: {e}")
            continue
        rep.raw(server=server.name, sessions=n, before=before, after=after, bytes_per_session=per,
                per_second=held.ready["connects_per_second"])
        rows.append(row_of(held, server.name, n, "", before, after, per))
    rep.section("Idle sessions", f"""Sessions logged in by token; each process may have {num(limit)} files open, so there
        are as many workers, and as many processes of load, as that needs; all on all CPUs. Memory is that of all
        processes, each page counted once, with the shared segment, without the kernel's sockets; store connections
        that only the logins needed have been closed. TCP keepalive is off: the kernel sends the probes of thousands of
        connections at the same instant, more than loopback queues (net.core.netdev_max_backlog), and ends those whose
        probes it dropped.""")
    rep.table(("server", "sessions", "workers", "before", "with them", "bytes a session", "logins/s", "server's CPU a login",
               "load's CPU", "lost"), rows)
    shutil.rmtree(f"{OUT}/state", ignore_errors=True)


SCENARIOS = {"login": login, "presence": presence, "store": store, "idle": idle}
