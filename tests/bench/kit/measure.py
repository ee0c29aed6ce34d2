"""How a server is measured: parley-bench, alternating runs, memory, instructions, system calls."""
import contextlib
import glob
import json
import os
import re
import signal
import statistics
import subprocess
import time

from .servers import BIN, LOAD_CPU, OUT, Missing, installed


def load(server, mode, *args, cpu=LOAD_CPU, timeout=300, to=None, watch=None):
    """One run; the tool's report."""
    argv = [f"{BIN}/parley-bench", mode, "--json", "--protocol", server.protocol, *server.options,
            "--parallel", server.parallel, *server.users(), "--watch", watch or server.proc.pid, *args]
    for address in to or [server.address]:
        argv += ["--to", address]
    if cpu is not None:
        argv += ["--cpu", cpu]
    argv = list(map(str, argv))
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv[1:])}: {done.stderr.strip()[:500]}")
    if done.stderr:
        print("   ", done.stderr.strip()[:500], flush=True)
    got = json.loads(done.stdout.splitlines()[-1])
    if got["received_all"] < got["sent_all"] and mode == "pairs":
        print(f"    {server.name}: {got['sent_all'] - got['received_all']} messages did not arrive", flush=True)
    return got


def median(runs, key):
    return statistics.median(x[key] for x in runs)


class Cell:
    """One line of a comparison: a server under one load, run some times."""

    best = False                # figures of the best run of each server, not medians

    def __init__(self, name, run, base=None):
        self.name, self.run, self.base, self.runs = name, run, base, []

    def median(self, key):
        return self.best_run()[key] if Cell.best else median(self.runs, key)

    def best_run(self):
        """The one that was disturbed least."""
        return max(self.runs, key=lambda x: (0 if x["offered"] else x["per_second"] + x["logins_per_second"],
                                             -x["p99_us"]))

    def ratio(self, key):
        """To the base cell: the median of the ratios within each round."""
        if self.base is None or self.base is self:
            return 1.0
        if Cell.best:
            return self.best_run()[key] / (self.base.best_run()[key] or float("nan"))
        pairs = [(a[key], b[key]) for a, b in zip(self.runs, self.base.runs) if b[key] > 0]
        return statistics.median(a / b for a, b in pairs) if pairs else float("nan")


def alternate(cells, rounds):
    """Runs all cells in turn, ROUNDS times, so that what disturbs the machine disturbs all of them."""
    for _ in range(rounds):
        for cell in cells:
            cell.runs.append(cell.run())


# --- memory ------------------------------------------------------------------------------------

def memory_of(server):
    """Bytes of a server's processes, and the shared segment as the kernel has backed it."""
    pss = shm = 0
    blocks = {}
    for pid in server.pids():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as f:
            v = {m[1]: int(m[2]) for m in re.finditer(r"^(\w+):\s+(\d+) kB", f.read(), re.M)}
            pss += v["Pss"] * 1024
            shm += v.get("Pss_Shmem", 0) * 1024
    for fd in os.scandir(f"/proc/{server.proc.pid}/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(fd.path).startswith("/memfd:"):
                st = os.stat(fd.path)
                blocks[st.st_ino] = st.st_blocks * 512
    return max(pss, pss - shm + sum(blocks.values()))


def settled_memory(server, seconds=12):
    """memory_of() once it stands still: threads of a busy moment have gone, or time is up."""
    last, end = memory_of(server), time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(2)
        now = memory_of(server)
        if abs(now - last) < 65536:
            return now
        last = now
    return last


# --- instructions and allocations --------------------------------------------------------------

def perf_works():
    with contextlib.suppress(Missing, OSError):
        done = subprocess.run([installed("perf"), "stat", "-x,", "-e", "instructions:u", "true"],
                              capture_output=True, text=True)
        return done.returncode == 0 and "not supported" not in done.stderr and "not counted" not in done.stderr
    return False


def perf_instructions(daemon, run):
    """User-space instructions of all workers during RUN()."""
    perf = subprocess.Popen([installed("perf"), "stat", "-x,", "-e", "instructions:u", "-p",
                             ",".join(map(str, daemon.workers()))], stdin=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)
    time.sleep(0.5)
    try:
        run()
    finally:
        perf.send_signal(signal.SIGINT)
        out = perf.communicate(timeout=30)[1]
    return int(out.split(",")[0])


def callgrind_counts(make_daemon, run):
    """(instructions, allocations) of all workers from start to end, by valgrind."""
    path = f"{OUT}/callgrind"
    for old in glob.glob(f"{path}.*"):
        os.unlink(old)
    prefix = (installed("valgrind"), "-q", "--tool=callgrind", f"--callgrind-out-file={path}.%p")
    with make_daemon(prefix) as d:
        workers = d.workers()
        run(d)
    counts = [callgrind_file(f"{path}.{pid}") for pid in workers]
    return sum(c[0] for c in counts), sum(c[1] for c in counts)


def callgrind_file(path):
    """(instructions, calls of malloc and its kin by the daemon's own code) in one profile."""
    instructions = calls = 0
    names, objects, caller, pending = {}, {}, "", False
    with open(path) as f:
        for line in f:
            m = re.match(r"(c?fn|ob)=\((\d+)\)(?: (.*))?", line)
            if m:
                table = objects if m[1] == "ob" else names
                if m[3]:
                    table[m[2]] = m[3].split("@")[0].split("'")[0]
                if m[1] == "ob":
                    caller = objects.get(m[2], "")
                pending = m[1] == "cfn" and names.get(m[2]) in ("malloc", "calloc", "realloc")
            elif pending and line.startswith("calls="):
                if caller.endswith("/parleyd"):
                    calls += int(line[6:].split()[0])
                pending = False
            elif line.startswith(("summary:", "totals:")):
                instructions = int(line.split()[1])
    return instructions, calls


# --- a daemon's own counters --------------------------------------------------------------------

@contextlib.contextmanager
def counted(daemon):
    """A dict that holds, at the end, by how much the counters have grown."""
    before, grown = daemon.counters(), {}
    yield grown
    for key, value in daemon.counters().items():
        grown[key] = value - before.get(key, 0)


def system_calls(grown):
    """Calls that the traffic needed, by the daemon's counters: turns, reads, writes, packets."""
    return sum(grown[k] for k in ("turns", "reads", "writes", "packets_out", "packets_in"))


