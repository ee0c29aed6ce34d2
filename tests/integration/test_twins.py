"""`immortal = on`: a worker and its twins share their descriptors; any of them is killed, at any time."""

import ctypes
import os
import platform
import random
import re
import signal
import struct
import subprocess
import time

import pytest

from parleytest import *
from parleytest.daemon import proc_stat, proc_text
from parleytest.traffic import Talker

DAEMON = {"immortal": "on", "workers": 2}
pytestmark = pytest.mark.skipif(os.environ.get("PARLEY_BUILD") == "tsan", reason="this sanitizer knows fork() only")


def children(daemon):
    """{pid: comm} of the master's children, zombies too."""
    out = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        stat = proc_stat(pid)
        if stat and stat[2] == daemon.pid:
            out[pid] = stat[0] + (" (zombie)" if stat[1] == "Z" else "")
    return out


def twins(daemon, slot):
    return sorted(pid for pid, comm in children(daemon).items() if comm == "parleyd-t%d" % slot)


def wait_whole(daemon, count, deadline=10):
    """Each of the workers 0 to COUNT - 1 is there, serves and has two twins, and nobody else is there."""
    want = sorted(name for n in range(count) for name in ("parleyd-w%d" % n, "parleyd-t%d" % n, "parleyd-t%d" % n))
    wait_until(lambda: sorted(children(daemon).values()) == want, deadline, "%s; there are %s" % (want, children(daemon)))
    wait_until(lambda: all(w["state"] == "ready" and len(w["twins"]) == 2 for w in daemon.status()["workers"]), deadline)
    daemon.remember()
    for slot in range(count):
        assert daemon.worker_status(slot)["twins"] and sorted(daemon.worker_status(slot)["twins"]) == twins(daemon, slot)


def kill(*pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def kill_together(*pids):
    """Stopped first, so that none makes another one while the next is killed."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    kill(*pids)


def every_slot_serves(daemon, count):
    seen = set()
    wait_until(lambda: seen.add(daemon.worker_of(daemon.connect())) or len(seen) == count, 20, "each of %d slots serves" % count)


def descriptors(daemon, slot):
    """What is open in the table of a slot: {number: what}."""
    pid = twins(daemon, slot)[0]
    out = {}
    for fd in os.listdir("/proc/%d/fd" % pid):
        try:
            out[int(fd)] = re.sub(r"\d+", "N", os.readlink("/proc/%d/fd/%s" % (pid, fd)))
        except OSError:
            pass
    return out


def served_a_second(daemon):
    """Whoever is killed then is replaced at once."""
    holds_for(lambda: True, 1.1)


def test_processes_say_what_they_are(daemon):
    wait_whole(daemon, 2)
    status, text = daemon.status(), daemon.ctl_ok("status")
    assert status["immortal"] is True and "TWINS" in text
    for worker in status["workers"]:
        for pid in worker["twins"]:
            assert str(pid) in text
            assert proc_text(pid, "cmdline").rstrip("\0 ") == "parleyd: twin of worker %d" % worker["slot"]
            assert proc_stat(pid)[2] == daemon.pid
        assert proc_text(worker["pid"], "cmdline").rstrip("\0 ") == "parleyd: worker %d" % worker["slot"]
        assert descriptors(daemon, worker["slot"])
    assert 'parley_twins{worker="1"} 2' in daemon.ctl_ok("metrics")


def test_off_as_long_as_nobody_asks(make_daemon):
    daemon = make_daemon(immortal="off")
    assert sorted(children(daemon).values()) == ["parleyd-w0", "parleyd-w1"]
    assert daemon.status()["immortal"] is False and "TWINS" not in daemon.ctl_ok("status")


def test_a_twin_is_small(make_daemon):
    daemon = make_daemon(**DAEMON)
    wait_whole(daemon, 2)
    for pid in twins(daemon, 0):
        rollup = proc_text(pid, "smaps_rollup")
        sizes = {key: int(re.search(r"^%s:\s+(\d+) kB" % key, rollup, re.M).group(1)) for key in ("Pss", "Private_Dirty")}
        if not SANITIZED:
            assert sizes["Pss"] < 1024 and sizes["Private_Dirty"] < 128, sizes


@pytest.mark.parametrize("rounds", [6, pytest.param(25, marks=pytest.mark.long)])
def test_workers_are_killed_in_a_loop(make_daemon, rounds):
    """8 workers a round. Nothing leaks: no process, no descriptor; each slot serves; clients hear of it."""
    daemon = make_daemon(immortal="on", workers=8)
    wait_whole(daemon, 8)
    holder = twins(daemon, 3)
    before = {slot: descriptors(daemon, slot) for slot in range(8)}
    for _ in range(rounds):
        clients = [daemon.connect() for _ in range(20)]
        served_a_second(daemon)
        old = dict(daemon.workers)
        kill(*old.values())
        for client in clients:
            client.wait_closed(clean=False)
            daemon.clients.remove(client)
        for slot, pid in old.items():
            daemon.wait_worker(slot, pid)
        wait_until(lambda: daemon.status()["workers_ready"] == 8, 5)
    wait_whole(daemon, 8)
    assert [w["restarts"] for w in daemon.status()["workers"]] == [rounds] * 8
    assert [w["twin_deaths"] for w in daemon.status()["workers"]] == [0] * 8
    assert twins(daemon, 3) == holder
    every_slot_serves(daemon, 8)

    def extra(slot):
        """Numbers are given out lowest first, so that leaks would be above all others."""
        now = descriptors(daemon, slot)
        return len(now) - len(before[slot]), max(now) - max(before[slot])

    for client in daemon.clients:
        client.close()
    for slot in range(8):           # the store's pool may have one or two connections more than at first
        wait_until(lambda: max(extra(slot)) <= 12, 5, "descriptors of slot %d: %s" % (slot, extra(slot)))


def test_clients_of_a_dead_worker_hear_of_it_at_once(make_daemon):
    """Also when no worker takes its place for a while: its twin closes what it had open."""
    daemon = make_daemon(**DAEMON)
    for _ in range(5):                          # the next back-off lasts more than a second
        old = daemon.workers.get(1)
        daemon.kill_worker(1)
        wait_until(lambda: daemon.workers.get(1) not in (None, old), 10, step=0.002)
    wait_until(lambda: daemon.status()["workers_ready"] == 2, 5, step=0.002)
    clients = [daemon.connect(dialect="classic" if n % 2 else "plain") for n in range(12)]
    on_1 = [client for client in clients if daemon.worker_of(client) == 1]
    watch = Stopwatch()
    daemon.kill_worker(1)
    for client in on_1:
        client.wait_closed(clean=False)
    assert on_1 and watch.seconds < 1.0 * SCALE
    assert 1 not in daemon.workers, "the back-off was over too soon to prove anything"
    assert len(twins(daemon, 1)) == 2


def test_locks_of_a_dead_worker_do_not_last(make_daemon):
    """SQLite's locks belong to the table that outlives it: they end before anybody waits for long."""
    daemon = make_daemon(offline_max=0, **DAEMON)
    away, sender = daemon.account(), daemon.online(slot=0)
    others = [daemon.online(slot=1) for _ in range(4)]
    talkers = [Talker(client, away, "w%d" % n).start() for n, client in enumerate(others)]
    wait_until(lambda: all(len(t.sent) > 100 for t in talkers), 20, "worker 1 writes")
    served_a_second(daemon)
    old = daemon.kill_worker(1)
    watch = Stopwatch()
    assert sender.chat_acked(away, "stored")["errno"] == 0
    assert watch.seconds < 2.0 * SCALE
    daemon.wait_worker(1, old)
    acked = [t.finish() for t in talkers]
    late = daemon.relogin(away)
    wait_until(lambda: set(sum(acked, ["stored"])) <= set(late.texts()), 20, "all that was acknowledged arrives")


@pytest.mark.parametrize("which", [0, 1])
def test_a_twin_is_killed(make_daemon, which):
    daemon = make_daemon(**DAEMON)
    wait_whole(daemon, 2)
    client = daemon.online(slot=1)
    served_a_second(daemon)
    for _ in range(3):
        pid = daemon.worker_status(1)["twins"][which]
        kill(pid)
        wait_until(lambda: pid not in children(daemon), 5)
        wait_whole(daemon, 2)
        client.ping()
        served_a_second(daemon)
    assert daemon.worker_status(1)["twin_deaths"] == 3
    old = daemon.kill_worker(1)
    daemon.wait_worker(1, old)
    wait_whole(daemon, 2)


@pytest.mark.parametrize("which", [0, 1])
def test_worker_and_twin_at_once(make_daemon, which):
    daemon = make_daemon(**DAEMON)
    wait_whole(daemon, 2)
    for _ in range(3):
        served_a_second(daemon)
        dead = [daemon.worker_status(1)["twins"][which], daemon.workers[1]]
        other = [pid for pid in twins(daemon, 1) if pid not in dead]
        random.shuffle(dead)
        kill(*dead)
        daemon.wait_worker(1, next(p for p in dead))
        wait_until(lambda: not set(dead) & set(children(daemon)), 5)
        wait_whole(daemon, 2)
        assert set(other) <= set(twins(daemon, 1))
        daemon.connect_on(1).ping()
    assert daemon.worker_status(1)["restarts"] == 3


def test_both_twins_are_killed_and_no_client_is_lost(make_daemon):
    """The worker hands its clients to the others and is started anew, with twins."""
    daemon = make_daemon(offline_max=0, **DAEMON)
    wait_whole(daemon, 2)
    served_a_second(daemon)
    people = [daemon.online(slot=1) for _ in range(10)]
    away = daemon.account()
    talkers = [Talker(p, away, "t%d" % n).start() for n, p in enumerate(people)]
    wait_until(lambda: all(len(t.sent) > 20 for t in talkers), 20)
    old = daemon.workers[1]
    kill_together(*twins(daemon, 1))
    daemon.wait_worker(1, old, deadline=15)
    wait_whole(daemon, 2)
    counts = [len(t.sent) for t in talkers]
    wait_until(lambda: all(len(t.sent) > n + 20 for t, n in zip(talkers, counts)), 20, "traffic goes on")
    for talker in talkers:
        assert talker.finish() == talker.sent and not talker.client.eof
    assert daemon.worker_status(1)["restarts"] == 0


def test_both_twins_of_the_only_worker(make_daemon):
    """Nobody can take its clients: it serves on, and is found dead by itself as before there were twins."""
    daemon = make_daemon(immortal="on", workers=1)
    wait_whole(daemon, 1)
    client = daemon.online()
    served_a_second(daemon)
    kill_together(*twins(daemon, 0))
    daemon.wait_log("has lost both of its twins")
    client.ping()
    assert daemon.worker_status(0)["twins"] == []
    old = daemon.kill_worker(0)
    client.wait_closed(clean=False)
    daemon.wait_worker(0, old)
    wait_whole(daemon, 1)


def test_all_three_at_once(make_daemon):
    daemon = make_daemon(**DAEMON)
    wait_whole(daemon, 2)
    for _ in range(2):
        served_a_second(daemon)
        dead = twins(daemon, 1) + [daemon.workers[1]]
        random.shuffle(dead)
        client = daemon.connect_on(1)
        kill(*dead)
        client.wait_closed(clean=False)
        wait_until(lambda: not set(dead) & set(children(daemon)), 5)
        wait_whole(daemon, 2)
        daemon.connect_on(1).ping()


def test_every_process_but_the_master_at_once(make_daemon):
    daemon = make_daemon(**DAEMON)
    wait_whole(daemon, 2)
    people = [daemon.online(slot=n % 2) for n in range(6)]
    served_a_second(daemon)
    kill(*children(daemon))
    for person in people:
        daemon.connect_hard(person.account)
    wait_whole(daemon, 2)


def test_a_stopped_twin_does_not_hold_its_slot_up(make_daemon):
    daemon = make_daemon(hang_seconds=2, **DAEMON)
    wait_whole(daemon, 2)
    served_a_second(daemon)
    stopped = twins(daemon, 1)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    old = daemon.kill_worker(1)
    clients = [daemon.connect() for _ in range(10)]
    daemon.wait_worker(1, old, deadline=15)
    for client in clients:
        client.ping()
    wait_until(lambda: not set(stopped) & set(children(daemon)), 10)
    wait_whole(daemon, 2)


def test_a_hanging_worker(make_daemon):
    daemon = make_daemon(hang_seconds=1, **DAEMON)
    wait_whole(daemon, 2)
    holder = twins(daemon, 1)
    bob = daemon.online(slot=1)
    served_a_second(daemon)
    old = daemon.kill_worker(1, signal.SIGSTOP)
    daemon.wait_worker(1, old, deadline=10)
    bob.wait_closed(clean=False)
    wait_whole(daemon, 2)
    assert twins(daemon, 1) == holder


def kill_at_random(daemon, dice, seconds):
    """Anybody but the master, for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        victims = [pid for pid, comm in children(daemon).items() if re.fullmatch(r"parleyd-[wt]\d+", comm)]
        if victims:
            kill(*dice.sample(victims, min(len(victims), dice.choice((1, 1, 1, 2, 3)))))
        end_of_pause = time.monotonic() + dice.random() * 0.3
        wait_until(lambda: time.monotonic() >= end_of_pause, 5)


@pytest.mark.parametrize("seed", [1, 2, pytest.param(3, marks=pytest.mark.long), pytest.param(4, marks=pytest.mark.long)])
def test_kills_while_it_scales_and_reloads(make_daemon, seed):
    daemon = make_daemon(immortal="on", workers=3, max_workers=6)
    dice = random.Random(seed)
    for count in (5, 1, 4, 2, 6, 3):
        daemon.ctl_ok("scale", count)
        kill_at_random(daemon, dice, 0.4)
        daemon.reload()
        kill_at_random(daemon, dice, 0.4)
    wait_until(lambda: daemon.status()["workers_ready"] == 3, 90, "the back-offs are over")
    wait_whole(daemon, 3, 90)
    for slot in range(3):
        daemon.connect_on(slot).ping()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT], ids=lambda s: s.name)
@pytest.mark.parametrize("seed", range(4))
def test_kills_while_it_stops(make_daemon, number, seed):
    daemon = make_daemon(immortal="on", workers=3, stop_seconds=2)
    dice = random.Random(seed)
    away = daemon.account()
    clients = [daemon.online() for _ in range(6)]
    for n, client in enumerate(clients):
        client.chat(away, "m%d" % n)
    daemon.remember()
    victims = list(children(daemon))
    dice.shuffle(victims)
    daemon.send_signal(number)
    for pid in victims[:dice.randrange(1, len(victims))]:
        kill(pid)
    assert daemon.wait_exit(15) == 0
    daemon.check_gone()


def test_terminal_signals_do_not_end_twins(make_daemon):
    daemon = make_daemon(**DAEMON)
    wait_whole(daemon, 2)
    before = children(daemon)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGPIPE):
        for pid in twins(daemon, 0):
            os.kill(pid, number)
    daemon.online(slot=0).ping()
    assert children(daemon) == before


def test_a_newborn_has_the_configuration_of_now(make_daemon):
    """Its twin remembers another one."""
    daemon = make_daemon(registration="on", log_level="info", **DAEMON)
    wait_whole(daemon, 2)
    served_a_second(daemon)
    daemon.write_conf(registration="off", log_level="debug")
    daemon.ctl_ok("reload")
    old = daemon.kill_worker(1)
    daemon.wait_worker(1, old)
    wait_whole(daemon, 2)
    with daemon.connect_on(1) as client:
        assert client.request(REG, name="nobody-else", password="secret-word")["errno"] == 6
        daemon.clients.remove(client)
    assert daemon.log_contains(r"worker 1 debug: serving")
    assert len({w["conf_version"] for w in daemon.status()["workers"]}) == 1


def test_a_newborn_writes_to_the_log_of_now(make_daemon, tmp_path):
    log = str(tmp_path / "log")
    daemon = make_daemon(log=log, **DAEMON)
    wait_whole(daemon, 2)
    served_a_second(daemon)
    for _ in range(5):                          # with a back-off, so that nobody is there to be told
        old = daemon.workers.get(1)
        daemon.kill_worker(1)
        wait_until(lambda: daemon.workers.get(1) not in (None, old), 10, step=0.002)
    wait_until(lambda: daemon.status()["workers_ready"] == 2, 5)
    daemon.kill_worker(1)
    wait_until(lambda: 1 not in daemon.workers, 5)
    os.rename(log, log + ".1")
    daemon.send_signal(signal.SIGUSR1)
    wait_until(lambda: os.path.exists(log), 5)
    wait_until(lambda: daemon.status()["workers_ready"] == 2, 10)
    wait_until(lambda: "worker 1 debug: serving" in open(log).read(), 5)


def test_masters_death_ends_twins_as_well(make_daemon):
    daemon = make_daemon(stop_seconds=2, **DAEMON)
    wait_whole(daemon, 2)
    holders = twins(daemon, 0) + twins(daemon, 1)
    daemon.send_signal(signal.SIGKILL)
    daemon.wait_exit()
    wait_until(lambda: not any(proc_stat(pid) and proc_stat(pid)[1] != "Z" for pid in holders), 2)
    daemon.start()
    wait_whole(daemon, 2)


def refuse_clone():
    """A seccomp filter as a container may have one: clone() with CLONE_PARENT is not permitted."""
    number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
    code = [
        (0x20, 0, 0, 0),                        # load the number of the call
        (0x15, 0, 3, number),                   # not clone: allow
        (0x20, 0, 0, 16),                       # load its first argument
        (0x45, 0, 1, 0x00008000),               # without CLONE_PARENT: allow
        (0x06, 0, 0, 0x00050001),               # EPERM
        (0x06, 0, 0, 0x7fff0000),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *c) for c in code))
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(program))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.create_string_buffer(header), 0, 0) == 0


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the number of clone is not known here")
def test_where_it_is_not_permitted(make_daemon):
    """It says so once, and works as with off."""
    daemon = make_daemon(start=False, **DAEMON)
    daemon.start(preexec=refuse_clone)
    said = [line for line in daemon.log_text().splitlines() if "immortal is not possible here" in line]
    assert len(said) == 1 and "refused" in said[0], said
    assert sorted(children(daemon).values()) == ["parleyd-w0", "parleyd-w1"]
    assert daemon.status()["immortal"] is False
    served_a_second(daemon)
    old = daemon.kill_worker(1)
    daemon.wait_worker(1, old)
    daemon.connect_on(1).ping()


def test_detached(make_daemon):
    daemon = make_daemon(start=False, argv=["-d"], **DAEMON)
    assert subprocess.run(daemon.command(), env=daemon.environment(), cwd=daemon.dir).returncode == 0
    pid = int(open(daemon.conf["pid_file"]).read())
    try:
        found = sorted(proc_stat(p)[0] for p in map(int, filter(str.isdigit, os.listdir("/proc")))
                       if proc_stat(p) and proc_stat(p)[2] == pid)
        assert found.count("parleyd-t0") >= 1 and found.count("parleyd-w0") == 1
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not daemon.processes(), 10)
