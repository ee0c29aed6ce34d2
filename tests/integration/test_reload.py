"""HUP: the whole file or nothing. USR1: the log is opened anew."""

import os
import signal

import pytest

from parleytest import *
from parleytest.daemon import unique


def short_password_allowed(daemon):
    with daemon.connect() as client:
        reply = client.request(REG, name=unique("pw"), password="abc")
        daemon.clients.remove(client)
        assert reply["errno"] in (0, MALFORMED)
        return reply["errno"] == 0


def test_good_file_takes_effect_everywhere_and_disturbs_nobody(make_daemon):
    daemon = make_daemon()
    people = [daemon.online(slot=slot) for slot in (0, 1)]
    workers = daemon.workers
    daemon.write_conf(password_min=6)
    daemon.reload()
    wait_until(lambda: not short_password_allowed(daemon), 5, "password_min is in force")
    for slot in (0, 1):
        client = daemon.connect_on(slot)
        wait_until(lambda: client.request(REG, name=unique("s"), password="abc")["errno"] == MALFORMED, 5)
    for person in people:
        person.ping()
    assert daemon.workers == workers
    daemon.write_conf(password_min=1)
    done = daemon.ctl("reload")
    assert done.returncode == 0, done
    assert short_password_allowed(daemon)


BAD = {
    "unknown key": ("no_such_key = 5", "no_such_key"),
    "bad number": ("rate_messages = many", "rate_messages"),
    "out of range": ("workers = 100000", "workers"),
    "no equals sign": ("this is no setting", ""),
    "bad enum": ("duplicate_login = maybe", "duplicate_login"),
}


@pytest.mark.parametrize("line,names", BAD.values(), ids=BAD.keys())
def test_invalid_file_changes_nothing_and_says_so(make_daemon, line, names):
    daemon = make_daemon()
    person = daemon.online()
    workers = daemon.workers
    good = daemon.conf_text()
    bad = good + "password_min = 6\n" + line + "\n"
    daemon.write_conf(text=bad)
    daemon.reload()
    where = r"parleyd\.conf:%d\b.*%s" % (bad.count("\n"), names)
    daemon.wait_log(where)
    done = daemon.ctl("reload")
    assert done.returncode != 0
    assert "parleyd.conf:%d" % bad.count("\n") in done.stdout + done.stderr and names in done.stdout + done.stderr
    assert short_password_allowed(daemon)
    person.ping()
    assert daemon.workers == workers
    daemon.write_conf(text=good + "password_min = 6\n")
    daemon.ctl_ok("reload")
    assert not short_password_allowed(daemon)


def test_missing_file_changes_nothing(make_daemon):
    daemon = make_daemon()
    os.rename(daemon.conf_path, daemon.conf_path + ".away")
    assert daemon.ctl("reload").returncode != 0
    daemon.online().ping()
    os.rename(daemon.conf_path + ".away", daemon.conf_path)
    daemon.ctl_ok("reload")


@pytest.mark.parametrize("key,value", [
    ("store", "sqlite:/tmp/elsewhere.db"), ("max_workers", 5), ("state_dir", "/tmp/other"), ("control", "/tmp/other.sock"),
    ("max_sessions", 500), ("listen", "127.0.0.1:1"),
])
def test_key_that_cannot_be_reloaded_fails_the_whole_and_is_named(make_daemon, key, value):
    daemon = make_daemon()
    person = daemon.online()
    daemon.write_conf(**{key: value, "password_min": 6})
    done = daemon.ctl("reload")
    assert done.returncode != 0 and key in done.stdout + done.stderr, done
    daemon.reload()
    daemon.wait_log(r"\b%s\b" % key)
    assert short_password_allowed(daemon)
    person.ping()


def test_reload_with_another_number_of_workers(make_daemon):
    daemon = make_daemon(workers=2)
    person = daemon.online()
    daemon.write_conf(workers=4)
    daemon.reload()
    wait_until(lambda: sorted(daemon.workers) == [0, 1, 2, 3], 5, "four workers")
    person.ping()
    daemon.write_conf(workers=1)
    daemon.ctl_ok("reload")
    wait_until(lambda: len(daemon.workers) == 1, 8, "one worker")
    person.ping()
    daemon.online().ping()


def test_many_reloads_in_a_row(make_daemon):
    daemon = make_daemon()
    person = daemon.online()
    for number in range(50):
        daemon.write_conf(password_min=1 + number % 2)
        daemon.reload()
        person.ping()
    daemon.write_conf(password_min=6)
    daemon.ctl_ok("reload")
    assert not short_password_allowed(daemon)


def test_new_workers_have_the_reloaded_configuration(make_daemon):
    daemon = make_daemon()
    daemon.write_conf(password_min=6)
    daemon.ctl_ok("reload")
    holds_for(lambda: True, 1.0)
    old = daemon.kill_worker(0)
    daemon.wait_worker(0, old)
    client = daemon.connect_on(0)
    assert client.request(REG, name=unique("n"), password="abc")["errno"] == MALFORMED


def test_log_level_is_reloadable(make_daemon):
    daemon = make_daemon(log_level="error")
    daemon.online().ok(LOGOUT)
    before = len(daemon.log_text())
    daemon.write_conf(log_level="debug")
    daemon.ctl_ok("reload")
    daemon.online().ok(LOGOUT)
    wait_until(lambda: len(daemon.log_text()) > before, 3)


def test_usr1_reopens_the_log(make_daemon):
    daemon = make_daemon(start=False)
    path = os.path.join(daemon.dir, "parleyd.log")
    daemon.write_conf(log=path)
    daemon.start()
    daemon.online().ok(LOGOUT)
    wait_until(lambda: os.path.getsize(path) > 0, 3)
    os.rename(path, path + ".1")
    daemon.send_signal(signal.SIGUSR1)
    wait_until(lambda: os.path.exists(path), 3, "the log is made anew")
    for slot in (0, 1):
        daemon.online(slot=slot).ok(LOGOUT)
    writers = [pid for pid in [daemon.pid] + list(daemon.workers.values())
               for fd in os.listdir("/proc/%d/fd" % pid) if readlink(pid, fd) == path + ".1"]
    wait_until(lambda: not [pid for pid in [daemon.pid] + list(daemon.workers.values())
                            for fd in os.listdir("/proc/%d/fd" % pid) if readlink(pid, fd) == path + ".1"], 3,
               "nobody writes to the old log: %s" % writers)


def readlink(pid, fd):
    try:
        return os.readlink("/proc/%d/fd/%s" % (pid, fd))
    except OSError:
        return ""
