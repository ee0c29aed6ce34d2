"""The load tool: what it counts is what the daemon counts. Nothing here is about speed."""

import json
import os
import subprocess

import pytest

from parleytest import *
from parleytest.daemon import unique
from parleytest.poll import SCALE, wait_until

PEOPLE = 20


def bench(daemon, *args, code=0, timeout=60):
    done = subprocess.run([daemon.program("parley-bench"), *map(str, args)], capture_output=True, text=True,
                          timeout=timeout * SCALE, stdin=subprocess.DEVNULL, env=daemon.environment())
    assert done.returncode == code, done
    return done


def run(daemon, mode, *args, **kw):
    """One run, with all accounts of the file; its report."""
    out = bench(daemon, mode, "--json", "--to", "127.0.0.1:%d" % daemon.port, "--users",
                os.path.join(daemon.dir, "users"), *args, **kw).stdout
    return json.loads(out.splitlines()[-1])


def counters(daemon):
    """Sums over the workers."""
    out = {}
    for line in daemon.ctl_ok("metrics").splitlines():
        if line.startswith("parley_"):
            name, value = line.rsplit(None, 1)
            out[name.split("{")[0]] = out.get(name.split("{")[0], 0) + float(value)
    return out


def grown(daemon, before, name):
    return next(v - before[k] for k, v in counters(daemon).items() if k in (
        "parley_" + name, "parley_%s_total" % name))


@pytest.fixture
def people(daemon):
    """The module's daemon, with accounts in its file of users."""
    path = os.path.join(daemon.dir, "users")
    if not os.path.exists(path):
        names = ["bench%d" % n for n in range(PEOPLE)]
        daemon.ctl_ok("user", "import", "-", input="".join("%s:*\n" % n for n in names))
        with open(path, "w") as file:
            file.write(daemon.ctl_ok("token", "-", input="\n".join(names) + "\n"))
    wait_until(lambda: daemon.users_online() == 0, 10, "the sessions of the last run have ended")
    return daemon


@pytest.mark.parametrize("ack", [False, True])
@pytest.mark.parametrize("load", [("--window", 4), ("--rate", 500)])
def test_pairs_count_what_the_daemon_counts(people, load, ack):
    before = counters(people)
    got = run(people, "pairs", "--conns", PEOPLE, "--procs", 2, "--seconds", 1, "--warmup", 0.1, *load,
              *["--ack"] * ack)
    sent = got["sent_all"]
    assert sent > 100 and got["received_all"] == sent
    assert got["refused"] == got["disordered"] == got["lost"] == 0
    assert got["acked_all"] == (sent if ack else 0)
    assert 0 < got["received"] <= sent and 0 < got["p50_us"] <= got["p99_us"] <= got["max_us"]
    assert grown(people, before, "messages_in") == sent
    assert grown(people, before, "messages_out") == sent
    assert grown(people, before, "logins") == PEOPLE
    if ack:
        assert grown(people, before, "confirmed") == sent


def test_a_number_of_messages(people):
    before = counters(people)
    got = run(people, "pairs", "--conns", 4, "--window", 3, "--messages", 1000, "--warmup", 0)
    assert got["sent_all"] == got["received_all"] == got["received"] == 1000
    assert grown(people, before, "messages_out") == 1000


def test_a_group(people):
    before = counters(people)
    got = run(people, "group", "--conns", PEOPLE, "--procs", 2, "--senders", 3, "--window", 2, "--seconds", 1)
    assert got["acked_all"] == got["sent_all"] == grown(people, before, "group_in")
    assert got["received_all"] == got["sent_all"] * (PEOPLE - 1)
    again = run(people, "group", "--group", got["group"], "--conns", PEOPLE, "--seconds", 0.5)
    assert again["received_all"] == again["sent_all"] * (PEOPLE - 1) > 0


def test_stored_messages_are_drained(people):
    got = run(people, "store", "--conns", 2, "--count", 5, "--window", 8, "--seconds", 0.5)
    assert got["acked_all"] == got["sent_all"] > 0 and got["refused"] == 0
    back = run(people, "drain", "--first", 2, "--conns", 5)
    assert back["received_all"] == got["sent_all"]


def test_logins_and_friends(people):
    before = counters(people)
    got = run(people, "login", "--parallel", 2, "--procs", 2, "--seconds", 1)
    assert 0 < got["logins"] <= grown(people, before, "logins")
    got = run(people, "presence", "--conns", 3, "--count", 2, "--seconds", 1)
    assert got["received"] >= 6             # each of the two was seen to come by all three


def test_accounts_can_be_made_and_used(people):
    out = os.path.join(people.dir, "more")
    to = ("--to", "127.0.0.1:%d" % people.port)
    bench(people, "register", *to, "--count", 6, "--password", "secret-word", "--prefix", unique("made"),
          "--out", out, "--parallel", 3)
    for how in ([], ["--password", "secret-word"]):
        wait_until(lambda: people.users_online() == 0, 10, "nobody is online")
        text = bench(people, "pairs", *to, "--users", out, "--conns", 6, "--seconds", 0.3, *how).stdout
        assert "messages" in text and "trouble" not in text and "missing" not in text


def test_idle_sessions_stay(people):
    tool = subprocess.Popen(
        [people.program("parley-bench"), "idle", "--json", "--to", "127.0.0.1:%d" % people.port, "--users",
         os.path.join(people.dir, "users"), "--conns", str(PEOPLE), "--procs", "3", "--watch", str(people.pid)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=people.environment())
    try:
        assert json.loads(tool.stdout.readline())["ready"] == PEOPLE
        assert people.users_online() == PEOPLE
    finally:
        out, _ = tool.communicate("", 30 * SCALE)
    assert tool.returncode == 0 and json.loads(out)["memory_after"] > 0


def test_what_is_wrong_is_said(people):
    to, users = ("--to", "127.0.0.1:%d" % people.port), ("--users", os.path.join(people.dir, "users"))
    for args, code, words in [
        (("pairs",), 2, "--to"),
        (("sing", *to), 2, "sing"),
        (("pairs", *to), 2, "users are needed"),
        (("pairs", *to, *users, "--conns", PEOPLE + 2), 2, "%d users are needed" % (PEOPLE + 2)),
        (("pairs", *to, *users, "--window", "x"), 2, "--window wants a whole number"),
        (("pairs", *to, "--users", "/no/such/file"), 2, "No such file"),
        (("pairs", *to, *users, "--conns", 2, "--password", "wrong"), 1, "refused"),
        (("pairs", "--to", "127.0.0.1:1", *users, "--conns", 2), 1, "Connection refused"),
    ]:
        assert words in bench(people, *args, code=code).stderr, args
