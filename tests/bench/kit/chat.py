"""Scenarios: people who chat, two by two and in groups."""
import contextlib

from .measure import Cell, alternate, load
from .report import cost, num, times, us
from .servers import CPUS, Relay, brokers


def rows_of(cells, *what):
    """Table rows, and the raw lines; WHAT are the columns before the server's name."""
    for c in cells:
        yield (*what, c.name, num(c.median("per_second")), times(c.ratio("per_second")),
               cost(c.median("server_cpu_us")), times(c.ratio("server_cpu_us")),
               f"{c.median('server_cpu_share'):.0%}", f"{c.median('load_cpu_share'):.0%}", us(c.median("p50_us")),
               us(c.median("p99_us")))


COLUMNS = ("server", "messages/s", "to the relay's", "server's CPU", "to the relay's", "CPU used", "load's CPU", "median", "99 %")


def record(rep, cells, **values):
    for c in cells:
        for x in c.runs:
            rep.raw(x, server=c.name, **values)
        rep.raw(server=c.name, median=True, **values, per_second=c.median("per_second"),
                server_cpu_us=c.median("server_cpu_us"), per_second_ratio=c.ratio("per_second"),
                server_cpu_ratio=c.ratio("server_cpu_us"), p99_us=c.median("p99_us"), p99_ratio=c.ratio("p99_us"))


def trio(relay, daemon, *args):
    """The yardstick, and the daemon without and with confirmed delivery, on one load."""
    base = Cell("relay", lambda: load(relay, "pairs", *args))
    base.base = base
    return [base, Cell("parleyd", lambda: load(daemon, "pairs", *args), base),
            Cell("parleyd, confirmed", lambda: load(daemon, "pairs", "--ack", *args), base)]


def pairs(rep, acc, a):
    """One-to-one messages through one worker, closed loop."""
    rep.section("One-to-one", f"""Clients in pairs, 100-byte texts (frames of some 130 bytes), one worker; each pair
        keeps `window` messages under way. {a.how} in which all servers take turns. CPU is the server's, user and system, for one message; then how much
        of its CPU it used, and the load of its own (what is not used of either was taken by others, or idle).""")
    rows = []
    with contextlib.ExitStack() as stack:
        relay, daemon = stack.enter_context(Relay()), stack.enter_context(acc.daemon(max(a.clients)))
        others = brokers(stack, rep) if not a.no_brokers else []
        for conns in a.clients:
            for window in (1, 16):
                args = ("--conns", conns, "--window", window, "--seconds", a.seconds, "--warmup", 0.3)
                cells = trio(relay, daemon, *args)
                if conns == 1000:
                    cells += [Cell(o.name, lambda o=o: load(o, "pairs", *args), cells[0]) for o in others]
                alternate(cells, a.rounds)
                record(rep, cells, clients=conns, window=window)
                rows += rows_of(cells, num(conns), window)
                if conns == 1000:
                    pair_goals(rep, cells, window)
        args = ("--conns", 1000, "--window", 16, "--think", 1000, "--seconds", a.seconds, "--warmup", 0.3)
        if 1000 in a.clients:
            cells = trio(relay, daemon, *args)
            alternate(cells, a.rounds)
            record(rep, cells, clients=1000, window=16, think_ns=1000)
            rows += rows_of(cells, "1,000 *", 16)
            rep.goal("window 16, clients that take 1 us a message: messages/s to the relay's",
                     cells[1].ratio("per_second"), ">=", 0.85)
    rep.table(("clients", "window", *COLUMNS), rows)
    rep.say("""* Clients that are busy for 1 us with each message that they get, as a program that parses JSON is at least.
        Without that, the load is one core that does nothing but move bytes.""")


def pair_goals(rep, cells, window):
    by = {c.name: c for c in cells}
    plain, ack = by["parleyd"], by["parleyd, confirmed"]
    rep.goal(f"window {window}: messages/s to the relay's", plain.ratio("per_second"), ">=", 0.85)
    if window != 16:
        return
    rep.goal("window 16: CPU a message, us (where the relay takes "
             f"{by['relay'].median('server_cpu_us'):.2f})", plain.median("server_cpu_us"), "<=", 1.5)
    rep.goal("window 16: CPU a confirmed message to an unconfirmed one's",
             ack.median("server_cpu_us") / plain.median("server_cpu_us"), "<=", 2)
    if "mosquitto QoS 1" in by:
        rep.goal("window 16: CPU a confirmed message to mosquitto's at QoS 1",
                 ack.median("server_cpu_us") / by["mosquitto QoS 1"].median("server_cpu_us"), "<=", 0.1)
    if "redis-server pub/sub" in by:
        rep.goal("window 16: CPU a message to Redis pub/sub's",
                 plain.median("server_cpu_us") / by["redis-server pub/sub"].median("server_cpu_us"), "<", 1)


def latency(rep, acc, a):
    """Times at fixed rates, open loop, counted from when each message was due."""
    conns, rows = 1000, []
    rep.section("Time from sender to receiver", f"""{num(conns)} clients in pairs; messages leave by the clock, and each
        one's time counts from when it was due: a stall shows in all that it delayed. The load itself was late by
        what the last column says. {a.how}; brokers once.""")
    with contextlib.ExitStack() as stack:
        relay, daemon = stack.enter_context(Relay()), stack.enter_context(acc.daemon(conns))
        others = brokers(stack, rep) if not a.no_brokers else []
        for rate in (5000, 50000):
            args = ("--conns", conns, "--rate", rate, "--seconds", a.seconds, "--warmup", 0.3)
            cells = trio(relay, daemon, *args)
            alternate(cells, a.rounds)
            more = [Cell(o.name, lambda o=o: load(o, "pairs", *args), cells[0]) for o in others]
            alternate(more, 1)
            record(rep, cells + more, rate=rate)
            for c in cells + more:
                rows.append((num(rate), c.name, num(c.median("per_second")), us(c.median("p50_us")),
                             us(c.median("p99_us")), us(c.median("p999_us")), times(c.ratio("p99_us")),
                             f"{c.median('server_cpu_share'):.0%}", us(c.median("late_p99_us"))))
            rep.goal(f"{num(rate)} messages/s: 99 % time to the relay's", cells[1].ratio("p99_us"), "<=", 1.5)
    rep.table(("offered/s", "server", "arrived/s", "50 %", "99 %", "99.9 %", "99 % to the relay's", "CPU", "load late, 99 %"),
              rows)


def group(rep, acc, a):
    """A message to many: members of one group, 16 senders with 16 messages under way each."""
    rep.section("Groups", """16 senders (10 in the group of 10), 16 messages under way each; a message is committed
        before it goes out, and its sender is told. The relay copies bytes to all in a room and keeps nothing. One worker
        on one CPU, or two on all CPUs, which the load shares.""")
    rows = []
    with contextlib.ExitStack() as stack:
        relay = stack.enter_context(Relay())
        others = [o for o in ([] if a.no_brokers else brokers(stack, rep)) if o.name in ("redis-server pub/sub", "mosquitto QoS 0")]
        for workers in (1, 2):
            cpus = None if workers == 1 else set(CPUS)
            with acc.daemon(max(a.members), f"workers={workers}", "memory_limit=2g", cpus=cpus) as daemon:
                one = Cell("one-to-one", lambda: load(daemon, "pairs", "--conns", 1000, "--window", 1, "--seconds",
                                                      a.seconds, "--warmup", 0.3, cpu=cpu_of(workers)))
                alternate([one], a.rounds)
                for members in a.members:
                    cells = group_cells(relay, daemon, others, workers, members, a)
                    alternate(cells, a.rounds if members == 1000 else 1)
                    record(rep, cells, members=members, workers=workers)
                    for c in cells:
                        rows.append((num(members), workers, c.name, num(c.median("acked_per_second")),
                                     num(c.median("per_second")), times(c.median("per_second") / one.median("per_second")),
                                     cost(c.median("server_cpu_us")), us(c.median("p50_us")), us(c.median("p99_us")),
                                     num(c.median("lost"))))
                    if members == 1000 and workers == 1:
                        rep.goal("group of 1,000: deliveries/s to one-to-one's at window 1",
                                 cells[0].median("per_second") / one.median("per_second"), ">=", 5)
    rep.table(("members", "workers", "server", "messages/s", "deliveries/s", "to one-to-one's", "CPU a delivery", "median",
               "99 %", "clients lost"), rows)


def cpu_of(workers):
    return CPUS[-1] if workers == 1 else None


def group_cells(relay, daemon, others, workers, members, a):
    senders = min(16, members)
    args = ("--conns", members, "--senders", senders, "--window", 16, "--seconds",
            a.seconds if members < 10000 else 2 * a.seconds, "--warmup", 0.3 if members < 10000 else 1)
    made = []                           # the first run makes the group, the others use it

    def run():
        x = load(daemon, "group", *args, *(("--group", made[0]) if made else ()), cpu=cpu_of(workers))
        made[:] = [x["group"]]
        return x

    cells = [Cell("parleyd", run)]
    if workers == 1:
        cells.append(Cell("relay", lambda: load(relay, "group", *args)))
        if members == 1000:
            cells += [Cell(o.name, lambda o=o: load(o, "group", *args)) for o in others]
    return cells


SCENARIOS = {"pairs": pairs, "latency": latency, "group": group}
