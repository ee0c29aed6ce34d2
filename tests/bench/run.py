#!/usr/bin/env python3
"""Measures the server on this machine and writes build/bench/report.md and results.jsonl.

    tests/bench/run.py [--only pairs,latency,...] [--seconds S] [--sessions N]      (make bench)

Throughput is reported as a ratio to a bare relay (tests/bench/relay.c) that runs in the same
minute on the same core, because single numbers say more about the machine than about the server.
The server has CPU 0, the load CPU 1, where there are two. All is on loopback, so the kernel's work
for both ends is in every number.
"""
import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

OUT = os.path.abspath("build/bench")
BIN = os.path.abspath("build")
CPUS = sorted(os.sched_getaffinity(0))
SERVER_CPU, LOAD_CPU = CPUS[0], CPUS[-1]
PASSWORD = "bench-password"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(what, true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)


def answers(port, ping):
    """Takes a connection; and a worker says PONG, where there are workers."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as s:
        if not ping:
            return True
        s.sendall(b'{"msgid":25}\n')
        return s.recv(100) != b""
    return False


class Process:
    """A program on its own port, ended with the with-block."""

    def __init__(self, port, argv, cpus, log, ping=False):
        self.port, self.address = port, f"127.0.0.1:{port}"
        with open(log, "ab") as f:
            self.proc = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=f, stderr=f,
                                         preexec_fn=lambda: os.sched_setaffinity(0, cpus))
        wait_until(argv[0], lambda: answers(port, ping) or self.proc.poll() is not None)
        if self.proc.poll() is not None:
            raise RuntimeError(f"{argv[0]} ended with {self.proc.returncode}, see {log}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.proc.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.proc.wait(20)
            return
        self.proc.kill()
        self.proc.wait()

    def children(self):
        with open(f"/proc/{self.proc.pid}/task/{self.proc.pid}/children") as f:
            return [int(p) for p in f.read().split()]

    def workers(self):
        def is_worker(pid):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as f:
                return f.read().startswith("parleyd-w")
        return [pid for pid in self.children() if is_worker(pid)]

    def pids(self):
        return [self.proc.pid] + self.children()


def relay():
    port = free_port()
    return Process(port, [f"{BIN}/parley-relay", str(port)], {SERVER_CPU}, f"{OUT}/relay.log")


def parleyd(state, *keys, cpus=None):
    """A daemon on the accounts below STATE."""
    port = free_port()
    os.makedirs(state, exist_ok=True)
    with open(f"{state}/parleyd.conf", "w") as conf:
        conf.writelines(f"{key}\n" for key in (f"listen=127.0.0.1:{port}", f"state_dir={state}",
            f"store=sqlite:{state}/parley.db",
            f"control={state}/control", "rate_messages=0", "rate_logins=0", "offline_max=0",
            "group_members_max=100000", "log_level=warn", *keys))
    return Process(port, [f"{BIN}/parleyd", "-c", f"{state}/parleyd.conf"], cpus or {SERVER_CPU},
                   f"{OUT}/parleyd.log", ping=True)


def load(server, mode, *args, cpu=LOAD_CPU, timeout=600):
    argv = [f"{BIN}/parley-bench", mode, "--json", "--to", server.address,
            "--watch", str(server.proc.pid), *map(str, args)]
    if cpu is not None:
        argv += ["--cpu", str(cpu)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=timeout)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
    if done.stderr:
        print("   ", done.stderr.strip())
    return json.loads(done.stdout)


def ctl(state, args, text):
    done = subprocess.run([f"{BIN}/parleyctl", "-s", f"{state}/control", *args], input=text,
                          capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(f"parleyctl {' '.join(args)}: {done.stderr[:300]}")
    return done.stdout


class Accounts:
    """Accounts made once; each scenario works on a copy of the folder."""

    def __init__(self):
        self.made, self.users, self.state = 0, f"{OUT}/users", f"{OUT}/accounts"

    def need(self, count):
        if count <= self.made:
            return
        shutil.rmtree(self.state, ignore_errors=True)
        names = "".join(f"bench{n}:*\n" for n in range(1, count + 1))     # * is no password: tokens only
        with parleyd(self.state, "workers=1", cpus=set(CPUS)) as d:
            start = time.monotonic()
            ctl(self.state, ["user", "import", "-"], names)
            tokens = ctl(self.state, ["token", "-"], names.replace(":*", ""))
            took = time.monotonic() - start
        with open(self.users, "w") as f:
            for line in tokens.splitlines():
                f.write("{0} {2}\n".format(*line.split("\t")))
        print(f"    {count} accounts and tokens made in {took:.1f} s")
        self.made = count

    def copy(self):
        to = f"{OUT}/state"
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.state, to, ignore=lambda _, names: [n for n in names if n in
                                                                 ("control", "parleyd.sock")])
        return to


class Report:
    def __init__(self):
        self.lines, self.rows = [], []
        self.jsonl = open(f"{OUT}/results.jsonl", "w")

    def section(self, title, text):
        self.lines += ["", f"## {title}", "", text, ""]

    def table(self, head, rows):
        self.lines += ["| " + " | ".join(head) + " |",
                       "|" + "|".join("---" if i == 0 else "---:" for i in range(len(head))) + "|"]
        self.lines += ["| " + " | ".join(str(c) for c in row) + " |" for row in rows]

    def say(self, text):
        self.lines += ["", text]

    def raw(self, scenario, **values):
        self.jsonl.write(json.dumps({"scenario": scenario, **values}) + "\n")
        self.jsonl.flush()

    def write(self, path):
        with open(path, "w") as f:
            f.write("\n".join(self.lines) + "\n")


def thousands(x):
    return f"{x:,.0f}"


def us(x):
    return f"{x:,.0f} us" if x < 10000 else f"{x / 1000:,.0f} ms"


# --- the scenarios -----------------------------------------------------------------------------

def scenario_pairs(rep, acc, a):
    """One-to-one messages through one worker, against the relay."""
    conns, rounds = 200, 3
    acc.need(conns)
    got = {}
    for _ in range(rounds):
        for window in (1, 16):
            common = ("--conns", conns, "--window", window, "--seconds", a.seconds)
            with relay() as r:
                got.setdefault(("relay", window), []).append(load(r, "pairs", "--protocol", "relay", *common))
            with parleyd(acc.copy(), "workers=1") as d:
                got.setdefault(("parleyd", window), []).append(
                    load(d, "pairs", "--users", acc.users, *common))
    rep.section("One-to-one", f"{conns} connections in pairs, one worker, 100-byte texts; each pair keeps "
                "`window` messages under way. Medians of "
                f"{rounds} runs that alternate with the relay's. CPU is the server's, for one message.")
    rows = []
    for window in (1, 16):
        med = {}
        for who in ("relay", "parleyd"):
            runs = got[(who, window)]
            med[who] = {k: statistics.median(x[k] for x in runs)
                        for k in ("per_second", "server_cpu_us", "p50_us", "p99_us")}
            for x in runs:
                rep.raw("pairs", who=who, **x)
        for who in ("relay", "parleyd"):
            m = med[who]
            rows.append((who, window, thousands(m["per_second"]), f"{m['server_cpu_us']:.2f} us",
                         us(m["p50_us"]), us(m["p99_us"]),
                         f"{med['relay']['per_second'] / m['per_second']:.2f}",
                         f"{m['server_cpu_us'] / med['relay']['server_cpu_us']:.2f}"))
        rep.raw("pairs_ratio", window=window,
                throughput=med["relay"]["per_second"] / med["parleyd"]["per_second"],
                cpu=med["parleyd"]["server_cpu_us"] / med["relay"]["server_cpu_us"])
    rep.table(("server", "window", "messages/s", "CPU", "median", "99 %", "relay is faster by",
               "CPU to the relay's"), rows)


def scenario_latency(rep, acc, a):
    """Times at fixed rates, counted from when each message was due."""
    conns = 200
    acc.need(conns)
    rows = []
    for rate in (2000, 10000, 30000):
        with parleyd(acc.copy(), "workers=1") as d:
            x = load(d, "pairs", "--users", acc.users, "--conns", conns, "--rate", rate,
                     "--seconds", a.seconds)
        rep.raw("latency", **x)
        rows.append((thousands(rate), thousands(x["per_second"]), f"{x['server_cpu_share']:.0%}",
                     us(x["p50_us"]), us(x["p90_us"]), us(x["p99_us"]), us(x["p999_us"]), us(x["max_us"])))
    rep.section("Time from sender to receiver", "Messages leave by the clock, and each one's time counts from "
                "when it was due: a stall shows in all that it delayed. One worker.")
    rep.table(("offered/s", "arrived/s", "CPU", "50 %", "90 %", "99 %", "99.9 %", "worst"), rows)


def scenario_login(rep, acc, a):
    """Logins by password and by token."""
    acc.need(5000)
    rows = []
    with parleyd(acc.copy(), "workers=1") as d:
        x = load(d, "login", "--users", acc.users, "--parallel", 64, "--seconds", a.seconds)
    rep.raw("login_token", **x)
    rows.append(("token", thousands(x["logins_per_second"]), us(x["p50_us"]), us(x["p99_us"])))
    state, users = f"{OUT}/costly", f"{OUT}/costly-users"
    shutil.rmtree(state, ignore_errors=True)
    with parleyd(state, "workers=1", "hash_threads=1") as d:
        load(d, "register", "--count", 60, "--out", users, "--password", PASSWORD, "--parallel", 8)
        x = load(d, "login", "--users", users, "--password", PASSWORD, "--parallel", 8, "--seconds", 30)
    rep.raw("login_password", **x)
    rows.append(("password, argon2id 19 MiB, 2 passes, one thread", thousands(x["logins_per_second"]),
                 us(x["p50_us"]), us(x["p99_us"])))
    rep.section("Logins", "Each is a new connection, a login, and the end of the connection; one worker.")
    rep.table(("by", "logins/s", "median", "99 %"), rows)


def scenario_store(rep, acc, a):
    """Messages to people who are away, and their return."""
    away, senders = 400, 8
    acc.need(senders + away)
    state = acc.copy()
    rows, kept = [], 0
    with parleyd(state, "workers=1") as d:
        for window in (1, 64):
            x = load(d, "store", "--users", acc.users, "--conns", senders, "--count", away,
                     "--window", window, "--seconds", a.seconds)
            rep.raw("store", **x)
            kept += x["sent_all"] - x["refused"]
            rows.append((f"store, window {window}", thousands(x["acked_per_second"]), thousands(x["acked"]),
                         x["refused"]))
        x = load(d, "drain", "--users", acc.users, "--first", senders, "--conns", away, "--parallel", 64)
        rep.raw("drain", missing=kept - x["received"], **x)
        if x["received"] != kept:
            raise RuntimeError(f"{kept} messages were stored, {x['received']} came back")
        rows.append((f"drain by {away} logins", thousands(x["per_second"]), thousands(x["received"]),
                     x["refused"]))
    rep.section("Messages to people who are away", f"{senders} senders, {away} receivers, SQLite with "
                "synchronous=full; a message counts when CHAT_ACK said that it is committed.")
    rep.table(("", "messages/s", "messages", "refused"), rows)

def scenario_group(rep, acc, a):
    """One sender, many members."""
    rows = []
    for members in (50, 500):
        acc.need(members)
        with parleyd(acc.copy(), f"workers={min(2, len(CPUS))}", cpus=set(CPUS)) as d:
            x = load(d, "group", "--users", acc.users, "--conns", members, "--window", 16,
                     "--seconds", a.seconds, cpu=None)
        rep.raw("group", **x)
        rows.append((members, thousands(x["acked_per_second"]), thousands(x["per_second"]), us(x["p50_us"]),
                     us(x["p99_us"])))
    rep.section("A group", "One member sends, 16 messages under way, each committed before it goes out; two "
                "workers on all CPUs, which the load shares.")
    rep.table(("members", "messages/s", "deliveries/s", "median", "99 %"), rows)


def memory_of(pids):
    """Bytes: what is each process's own, and the shared segment as the kernel has backed it."""
    pss = shm = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            v = {m[1]: int(m[2]) for m in re.finditer(r"^(\w+):\s+(\d+) kB", f.read(), re.M)}
        pss += v["Pss"] * 1024
        shm += v.get("Pss_Shmem", 0) * 1024
    blocks = {}
    for fd in os.scandir(f"/proc/{pids[0]}/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(fd.path).startswith("/memfd:"):
                st = os.stat(fd.path)
                blocks[st.st_ino] = st.st_blocks * 512
    return max(pss, pss - shm + sum(blocks.values()))


def scenario_idle(rep, acc, a):
    """What a logged-in session that says nothing costs."""
    limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1 << 20)
    each = max(200, min(15000, limit - 2000))
    n = min(a.sessions, 16 * each)
    procs = -(-n // each)
    n -= n % procs
    acc.need(n)
    with parleyd(acc.copy(), f"workers={max(procs, 1)}", "max_sessions=1000000", "pool_idle_seconds=1",
                 cpus=set(CPUS)) as d:
        wait_until("workers", lambda: len(d.workers()) >= procs)
        time.sleep(1)
        before = memory_of(d.pids())
        bench = subprocess.Popen(
            [f"{BIN}/parley-bench", "idle", "--to", d.address, "--users", acc.users, "--conns",
             str(n), "--procs", str(procs), "--parallel", "64"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)
        started = time.monotonic()
        try:
            if not bench.stdout.readline():
                raise RuntimeError("the sessions could not be made")
            took = time.monotonic() - started
            time.sleep(6)                       # the store's threads of the storm have gone
            after = memory_of(d.pids())
        finally:
            bench.stdin.close()
            bench.wait(120)
    per = (after - before) / n
    rep.raw("idle", sessions=n, workers=procs, before=before, after=after, bytes_per_session=per)
    rep.section("Idle sessions", f"{thousands(n)} sessions logged in by token on {procs} workers (each process may "
                f"have {thousands(limit)} files open), a table for a million users; memory of all processes "
                "(PSS) and of the shared segment, without the kernel's sockets; store connections that "
                "only the logins needed have been closed (pool_idle_seconds = 1).")
    rep.table(("sessions", "before", "after", "bytes a session", "logins/s"),
              [(thousands(n), f"{before / 2**20:.1f} MiB", f"{after / 2**20:.1f} MiB", thousands(per),
                thousands(n / took))])


def tcp_fds(pid):
    """The descriptors of a process that are connected TCP sockets; and its other sockets."""
    inodes = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/net/{name}") as f:
            inodes |= {line.split()[9] for line in f.readlines()[1:] if line.split()[3] == "01"}
    tcp, other = set(), set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            m = re.match(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{fd}"))
            if m:
                (tcp if m[1] in inodes else other).add(int(fd))
    return tcp, other


READS = "read|readv|recvfrom|recvmsg"
WRITES = "write|writev|sendto|sendmsg|sendmmsg"


def scenario_calls(rep, acc, a):
    """System calls a turn of the loop, from a trace of a worker under load."""
    if not shutil.which("strace"):
        rep.section("System calls", "Not measured: no strace here.")
        return
    conns = 64
    acc.need(conns)
    rows = []
    for workers in (1, 2):
        with parleyd(acc.copy(), f"workers={workers}", cpus=set(CPUS)) as d:
            wait_until("workers", lambda: len(d.workers()) >= workers)
            bench = subprocess.Popen(
                [f"{BIN}/parley-bench", "pairs", "--to", d.address, "--users", acc.users, "--conns", str(conns),
                 "--window", "16", "--seconds", "4", "--warmup", "0"], stdout=subprocess.PIPE, text=True)
            try:
                time.sleep(1)                   # logged in and running
                pid, trace = max(d.workers()), f"{OUT}/trace.{workers}"
                tcp, other = tcp_fds(pid)
                st = subprocess.Popen(["strace", "-f", "-q", "-o", trace, "-e", "trace=epoll_wait,epoll_pwait,"
                                       "epoll_pwait2," + f"{READS}|{WRITES}".replace("|", ","), "-p", str(pid)],
                                      stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
                time.sleep(1.5)
                st.send_signal(signal.SIGINT)
                st.wait(30)
            finally:
                bench.wait(60)
        rows.append((workers, *calls_of(trace, pid, tcp, other, rep, workers)))
    rep.section("System calls", f"A worker's trace under {conns} connections with 16 messages under way each (slowed by being "
                "traced, so that turns are full). A turn is what lies between two epoll_wait.")
    rep.table(("workers", "turns", "reads of clients", "most for one client in a turn", "writes to clients",
               "most for one client in a turn", "most packets to a peer in a turn"), rows)


def calls_of(trace, pid, tcp, other, rep, workers):
    turns = 0
    total = {"read": 0, "write": 0}
    most = {"read": 0, "write": 0, "packet": 0}
    seen = {}
    line_re = re.compile(rf"^{pid}\s+(\w+)\((\d+)")
    with open(trace) as f:
        for line in f:
            m = line_re.match(line)
            if not m:
                continue
            call, fd = m[1], int(m[2])
            if call.startswith("epoll"):
                turns, seen = turns + 1, {}
                continue
            kind = "read" if re.fullmatch(READS, call) else "write"
            if fd in tcp:
                total[kind] += 1
            elif kind == "write" and fd in other:
                kind = "packet"
            else:
                continue
            seen[kind, fd] = seen.get((kind, fd), 0) + 1
            most[kind] = max(most[kind], seen[kind, fd])
    rep.raw("calls", workers=workers, turns=turns, reads=total["read"], writes=total["write"], most=most)
    return turns, thousands(total["read"]), most["read"], thousands(total["write"]), most["write"], most["packet"]


SCENARIOS = {"pairs": scenario_pairs, "latency": scenario_latency, "calls": scenario_calls,
             "login": scenario_login, "store": scenario_store, "group": scenario_group,
             "idle": scenario_idle}


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, comma-separated: " + ", ".join(SCENARIOS))
    ap.add_argument("--seconds", type=float, default=3.0, help="of each measurement (3)")
    ap.add_argument("--sessions", type=int, default=50000, help="for the idle scenario (50000)")
    a = ap.parse_args()
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    rep, acc, failed = Report(), Accounts(), 0
    with open("/proc/cpuinfo") as f:
        model = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "unknown CPU")
    rep.lines = ["# Measured", "", f"{time.strftime('%Y-%m-%d')}, {len(CPUS)} CPUs ({model}), Linux {os.uname().release}, "
                 "loopback; server on one CPU and load on another unless said otherwise."]
    for name in a.only.split(","):
        print(f"-- {name}: {SCENARIOS[name].__doc__}", flush=True)
        try:
            SCENARIOS[name](rep, acc, a)
        except (RuntimeError, OSError, subprocess.SubprocessError, ValueError) as e:
            failed += 1
            print(f"   failed: {e}")
            rep.section(name, f"**Failed:** {e}")
        rep.write(f"{OUT}/report.md")
    for leftover in ("accounts", "state", "costly"):
        shutil.rmtree(f"{OUT}/{leftover}", ignore_errors=True)
    with open(f"{OUT}/report.md") as f:
        print(f.read())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
