"""Scenarios: more workers, more hosts, changes while everybody chats."""
import contextlib
import re
import os
import shutil
import signal
import subprocess
import threading
import time

from .measure import (Cell, alternate, callgrind_counts, counted, load, perf_instructions, perf_works, system_calls)
from .report import cost, num, times, us
from .servers import BIN, CPUS, OUT, MariaDB, Missing, Parleyd, Redis, folder, make_accounts


# --- more workers ------------------------------------------------------------------------------

def cost_of_workers(rep, acc, a):
    """What a message costs with 1, 2, 4 and 8 workers."""
    conns, rows = 1000, []
    perf = perf_works()
    for workers in (1, 2, 4, 8):
        with acc.daemon(conns, f"workers={workers}") as d:
            d.wait_workers(workers)
            with counted(d) as grown:
                x = load(d, "pairs", "--conns", conns, "--window", 16, "--seconds", a.seconds)
            calls = system_calls(grown) / grown["messages_out"]
            used = None
            if perf:
                count = 300000
                used = perf_instructions(d, lambda: load(d, "pairs", "--conns", conns, "--window", 16, "--messages", count,
                                                         "--warmup", 0)) / count
        rep.raw(x, workers=workers, system_calls=calls, instructions=used, counters=grown)
        rows.append([workers, num(x["per_second"]), cost(x["server_cpu_us"]), f"{calls:.3f}",
                     f"{grown['packets_out'] / grown['messages_out']:.3f}",
                     f"{grown['messages_peer'] / grown['messages_out']:.0%}", num(used) if used else "", ""])
    if not perf:
        valgrind_columns(rep, acc, rows)
    rep.section("More workers", f"""{num(conns)} clients in pairs, window 16; all workers on one CPU, so that what counts is
        the work and not the number of CPUs. System calls are those that traffic needs, by the daemon's counters: turns of
        the loop, reads, writes, packets between workers. Instructions are in user space"""
                + (" (perf)." if perf else ", allocations are calls of malloc and its kin (callgrind: the difference of two runs)."))
    rep.table(("workers", "messages/s", "CPU a message", "system calls a message", "packets a message", "to another worker",
               "instructions a message", "allocations a message"), rows)
    if rows[0][6]:
        worst = max(float(str(r[6]).replace(",", "")) for r in rows) / float(str(rows[0][6]).replace(",", ""))
        rep.goal("instructions a message, the worst of 2, 4 and 8 workers to one's", worst, "<=", 1.5)


def valgrind_columns(rep, acc, rows):
    """Instructions and allocations from two runs of different length, whose difference is traffic only."""
    short, long, conns = 4000, 24000, 40
    for row in rows:
        def make(prefix):
            return acc.daemon(conns, f"workers={row[0]}", "hang_seconds=600", "login_seconds=600", "stop_seconds=60",
                              prefix=prefix, cpus=set(CPUS), seconds=120)

        def run(d, count):
            load(d, "pairs", "--conns", conns, "--window", 16, "--messages", count, "--warmup", 0, cpu=None)

        try:
            one = callgrind_counts(make, lambda d: run(d, short))
            two = callgrind_counts(make, lambda d: run(d, long))
        except (Missing, RuntimeError, OSError) as e:
            rep.skipped(f"instructions a message: no counter for perf, and {e}")
            return
        per = [(y - x) / (long - short) for x, y in zip(one, two)]
        row[6], row[7] = num(per[0]), f"{max(0, per[1]):.3f}"
        rep.raw(workers=row[0], instructions=per[0], allocations=per[1], by="callgrind")
        if row[0] == 1:
            rep.goal("allocations a delivered message", max(0, per[1]), "<=", 0.01)


# --- changes under load ------------------------------------------------------------------------

def reload(rep, acc, a):
    """A reload, more and fewer workers, while messages leave by the clock."""
    rows = []

    def reloaded(d):
        with open(f"{d.state}/parleyd.conf", "a") as f:
            f.write("output_limit=2m\n")
        d.ctl("reload")

    def scaled(d):
        d.ctl("scale", 2)
        d.ctl("scale", 1)

    for name, act in (("nothing", None), ("reload", reloaded), ("scale 2, scale 1", scaled)):
        with acc.daemon(1000, cpus=set(CPUS)) as d:
            timer = threading.Timer(0.5 + a.seconds / 2 + 0.6, act or (lambda _: None), (d,))
            timer.start()
            x = load(d, "pairs", "--conns", 1000, "--rate", 5000, "--seconds", 2 * a.seconds, cpu=None)
            timer.join()
        rep.raw(x, during=name)
        rows.append((name, num(x["sent_all"]), num(x["sent_all"] - x["received_all"]), num(x["lost"]), us(x["gap_us"]),
                     us(x["p50_us"]), us(x["p99_us"]), us(x["max_us"])))
    rep.section("Changes under load", """1,000 clients in pairs, 5,000 messages a second by the clock, one worker, all CPUs.
        The gap is the longest time in which no message arrived.""")
    rep.table(("meanwhile", "sent", "not arrived", "connections lost", "gap", "median", "99 %", "worst"), rows)


# --- more hosts --------------------------------------------------------------------------------

@contextlib.contextmanager
def cluster(count, users):
    """COUNT daemons on one MariaDB and one Redis, with USERS accounts."""
    with contextlib.ExitStack() as stack:
        db, redis = stack.enter_context(MariaDB()), stack.enter_context(Redis(cpus=set(CPUS)))
        hosts = []
        for n in range(1, count + 1):
            hosts.append(stack.enter_context(Parleyd(
                folder(f"host{n}"), f"store={db.url}", f"redis=redis://127.0.0.1:{redis.port}", f"host_id=h{n}",
                "group_members_max=100000", users=f"{OUT}/users-cluster")))
        make_accounts(hosts[0], users, hosts[0].accounts)
        time.sleep(1)                           # the hosts have found each other
        yield hosts, redis


def hosts(rep, acc, a):
    """Messages between hosts beside those within one; what they cost Redis."""
    rows, groups = [], []
    try:
        with cluster(3, 1000) as (h, redis):
            for window in (1, 16):
                args = ("--conns", 200, "--window", window, "--seconds", a.seconds, "--warmup", 0.3)
                cells = [Cell("within one", lambda: across(redis, h[:1], h[:1], "pairs", *args)),
                         Cell("between two", lambda: across(redis, h[:2], h[:2], "pairs", *args)),
                         Cell("between two, confirmed", lambda: across(redis, h[:2], h[:2], "pairs", "--ack", *args))]
                for c in cells:
                    c.base = cells[0]
                alternate(cells, a.rounds)
                for c in cells:
                    rep.raw(hosts=c.name, window=window, runs=c.runs)
                    rows.append((c.name, window, num(c.median("per_second")), times(c.ratio("per_second")),
                                 cost(c.median("server_cpu_us")), times(c.ratio("server_cpu_us")),
                                 f"{c.median('commands'):.3f}", f"{c.median('publishes'):.3f}", us(c.median("p50_us")),
                                 us(c.median("p99_us"))))
            for members, senders, window in ((1000, 1, 1), (1000, 16, 16)):
                x = across(redis, h, h, "group", "--conns", members, "--senders", senders, "--window", window,
                           "--seconds", 2 * a.seconds)
                rep.raw(x, members=members)
                groups.append((num(members), 3, senders, window, num(x["acked_per_second"]), num(x["per_second"]),
                               f"{x['commands']:.2f}", f"{x['publishes']:.2f}"))
    except Missing as e:
        rep.skipped(f"hosts: {e}")
        return
    rep.section("Hosts", f"""Daemons with one worker each on the server's CPU, one Redis and one MariaDB on all; 200 clients in
        pairs, whose two ends are on the same host or on different ones. Commands are Redis's (INFO commandstats) for a
        message, PUBLISH alone beside it. {a.how}.""")
    rep.table(("hosts", "window", "messages/s", "to within one", "CPU of the daemons", "to within one", "commands a message",
               "publishes a message", "median", "99 %"), rows)
    rep.say("A group whose members are spread over three hosts:")
    rep.table(("members", "hosts", "senders", "window", "messages/s", "deliveries/s", "commands a message",
               "publishes a message"), groups)


class Watched:
    """What Redis was asked and what the daemons took in, looked at again and again during a run."""

    def __init__(self, redis, daemons):
        self.redis, self.daemons, self.seen, self.end = redis, daemons, [], threading.Event()
        self.thread = threading.Thread(target=self.look)

    def look(self):
        while not self.end.wait(0.1):
            count = sum(d.counters()["messages_in"] for d in self.daemons)
            self.seen.append((count, self.redis.commands()))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.end.set()
        self.thread.join()

    def grown(self):
        """(messages, {command: calls}) between the first and the last look at which messages came: not the logins."""
        busy = [i for i in range(1, len(self.seen)) if self.seen[i][0] > self.seen[i - 1][0]]
        if len(busy) < 2:
            return 1, {}
        (n0, first), (n1, last) = self.seen[busy[0]], self.seen[busy[-1] - 1] if len(busy) > 2 else self.seen[busy[-1]]
        return max(1, n1 - n0), {k: v - first.get(k, 0) for k, v in last.items() if k != "info"}


def across(redis, daemons, watched, mode, *args):
    """One run whose clients go round the DAEMONS; with what Redis was asked for each message."""
    with Watched(redis, daemons) as w:
        x = load(daemons[0], mode, *args, to=[d.address for d in daemons],
                 watch=",".join(str(d.proc.pid) for d in watched))
    count, grown = w.grown()
    x["commands"], x["publishes"] = sum(grown.values()) / count, grown.get("publish", 0) / count
    x["redis"] = grown
    return x


# --- system calls a turn -----------------------------------------------------------------------

READS = "read|readv|recvfrom|recvmsg"
WRITES = "write|writev|sendto|sendmsg|sendmmsg"


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


def turns(rep, acc, a):
    """System calls a turn of the loop, from a trace of a worker under load."""
    if not shutil.which("strace"):
        rep.skipped("system calls a turn: strace is not installed")
        return
    conns, rows = 64, []
    for workers in (1, 2):
        with acc.daemon(conns, f"workers={workers}", cpus=set(CPUS)) as d:
            d.wait_workers(workers)
            bench = subprocess.Popen([f"{BIN}/parley-bench", "pairs", "--to", d.address, *d.users(), "--conns", str(conns),
                                      "--window", "16", "--seconds", "3", "--warmup", "0"], stdout=subprocess.DEVNULL)
            try:
                time.sleep(0.7)                 # logged in and running
                pid, trace = max(d.workers()), f"{OUT}/trace.{workers}"
                tcp, other = tcp_fds(pid)
                st = subprocess.Popen(["strace", "-f", "-q", "-o", trace, "-e", "trace=epoll_wait,epoll_pwait,"
                                       "epoll_pwait2," + f"{READS}|{WRITES}".replace("|", ","), "-p", str(pid)],
                                      stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
                time.sleep(1)
                st.send_signal(signal.SIGINT)
                st.wait(30)
            finally:
                bench.wait(60)
        rows.append((workers, *calls_of(trace, pid, tcp, other, rep, workers)))
        os.unlink(trace)
    rep.section("System calls a turn", f"""A worker's trace under {conns} connections with 16 messages under way a pair (slowed
        by being traced, so that turns are full). A turn is what lies between two epoll_wait.""")
    rep.table(("workers", "turns", "reads of clients", "most for one client in a turn", "writes to clients",
               "most for one client in a turn", "most packets to a peer in a turn"), rows)


def calls_of(trace, pid, tcp, other, rep, workers):
    count = 0
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
                count, seen = count + 1, {}
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
    rep.raw(workers=workers, turns=count, reads=total["read"], writes=total["write"], most=most)
    return count, num(total["read"]), most["read"], num(total["write"]), most["write"], most["packet"]


SCENARIOS = {"cost": cost_of_workers, "turns": turns, "reload": reload, "hosts": hosts}
