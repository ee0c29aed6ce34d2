"""parleyd's command line, its exit codes, pid file, lock, signals and privileges."""

import os
import pwd
import re
import signal
import socket
import subprocess

import pytest

from parleytest import *
from parleytest.daemon import proc_stat, proc_text, unique


def run(daemon, *args, input=None, timeout=20):
    return subprocess.run([daemon.program("parleyd")] + list(args), capture_output=True, text=True, cwd=daemon.dir,
                          env=daemon.environment(), timeout=timeout * SCALE, stdin=subprocess.DEVNULL)


@pytest.fixture
def idle(make_daemon):
    """A daemon that is configured and not started."""
    return make_daemon(start=False)


# -- options --------------------------------------------------------------------------------------


def test_version_and_help(idle):
    done = run(idle, "-V")
    assert done.returncode == 0 and re.search(r"parley.* \d+\.\d+", done.stdout)
    done = run(idle, "-h")
    assert done.returncode == 0
    for option in ("-c", "-t", "-d", "-o", "-V", "-h"):
        assert option in done.stdout
    done = run(idle, "-x")
    assert done.returncode == 2 and done.stderr


def test_t_accepts_a_good_file(idle):
    done = run(idle, "-t", "-c", idle.conf_path)
    assert done.returncode == 0, done
    assert not os.path.exists(idle.control)


def test_t_prints_every_error_with_file_and_line(idle):
    good = idle.conf_text()
    first = good.count("\n") + 1
    idle.write_conf(text=good + "# a comment\nno_such_key = 1\nrate_messages = often\n\nworkers = -3\nnothing\nduplicate_login = x # y\nlisten = 300.1.1.1:6000\n")
    done = run(idle, "-t", "-c", idle.conf_path)
    assert done.returncode == 2
    text = done.stdout + done.stderr
    for line, word in ((1, "no_such_key"), (2, "rate_messages"), (4, "workers"), (5, ""), (6, "duplicate_login"), (7, "listen")):
        assert re.search(r"parleyd\.conf:%d\b.*%s" % (first + line, word), text), (line, word, text)
    assert not re.search(r"parleyd\.conf:%d\b" % first, text)


@pytest.mark.parametrize("line", [
    "listen = 127.0.0.1", "listen = 127.0.0.1:0x", "listen = 127.0.0.1:70000", "listen = [::1]", "listen = 127.0.0.1:6000 dialect=latin",
    "listen = 127.0.0.1:6000 no-such-option", "store = oracle:x", "store = mysql://nohost", "workers = 1.5", "workers = 0", "max_frame = 1",
    "max_frame = 2g", "duplicate_login =", "registration = maybe", "log_level = loud", "hash_memory = 1", "host_id = a/b", "password_min = 129",
    "= 5", "workers 3", "[section]",
])
def test_t_refuses(idle, line):
    idle.write_conf(text=idle.conf_text() + line + "\n")
    done = run(idle, "-t", "-c", idle.conf_path)
    assert done.returncode == 2
    assert "parleyd.conf:%d" % (idle.conf_text().count("\n") + 1) in done.stdout + done.stderr


@pytest.mark.parametrize("text", ["   workers   =   2   # two\n", "\tworkers=2\r\n", "workers = \"2\"\n", "# workers = 99999\n\n   \n#\n",
                                  "workers = 2\nmax_workers = 3\n", "max_frame = 128k\noutput_limit = 1m\nidle_seconds = 5m\n", "redis = 127.0.0.1:6379\n"])
def test_t_accepts(idle, text):
    idle.write_conf(text=re.sub(r"workers = .*\n", "", idle.conf_text()) + text)
    done = run(idle, "-t", "-c", idle.conf_path)
    assert done.returncode == 0, done


def test_every_key_of_the_sample_is_accepted(idle):
    """etc/parleyd.conf as it is, and with each commented default switched on."""
    from parleytest.daemon import ROOT
    with open(os.path.join(ROOT, "etc", "parleyd.conf")) as file:
        text = file.read()
    assert run(idle, "-t", "-c", os.path.join(ROOT, "etc", "parleyd.conf")).returncode == 0
    seen = set()
    active = []
    for line in text.splitlines():
        match = re.match(r"#([a-z_]+) = (.*)", line)
        if match and match.group(1) not in seen:
            seen.add(match.group(1))
            active.append(line[1:])
    assert len(seen) > 40
    idle.write_conf(text="\n".join(active) + "\n")
    done = run(idle, "-t", "-c", idle.conf_path)
    assert done.returncode == 0, done


def test_missing_file(idle):
    for args in (("-c", "/nowhere/parleyd.conf"), ("-t", "-c", "/nowhere/parleyd.conf")):
        done = run(idle, *args)
        assert done.returncode == 2 and "/nowhere/parleyd.conf" in done.stderr + done.stdout


def test_o_overrides_a_key(make_daemon):
    daemon = make_daemon(argv=["-o", "password_min=6", "-o", "workers=1"], workers=1)
    daemon.connect().refused(REG, MALFORMED, name=unique("short"), password="abc")
    assert sorted(daemon.workers) == [0]
    daemon.write_conf(password_min=1)
    daemon.ctl_ok("reload")                     # the command line still wins
    daemon.connect().refused(REG, MALFORMED, name=unique("short"), password="abc")


def test_o_with_errors(idle):
    for text in ("no_such_key=1", "workers=x", "workers", "=1"):
        done = run(idle, "-t", "-c", idle.conf_path, "-o", text)
        assert done.returncode == 2 and done.stderr + done.stdout, text


def test_listens_where_it_says(make_daemon):
    daemon = make_daemon(start=False)
    six = free_port()
    daemon.write_conf(listen=["127.0.0.1:%d" % daemon.port, "[::1]:%d" % six, "[::1]:%d dialect=classic" % daemon.classic_port, daemon.unix])
    daemon.start()
    account = daemon.account()
    client = daemon.connect(address=("::1", six))
    client.login(account)
    client.ok(LOGOUT)
    classic = daemon.connect("classic", address=("::1", daemon.classic_port))
    classic.login(account)


def test_default_port_is_6000(idle):
    """Not started (another server may be there): -t of an empty file is fine, and the manual says so."""
    idle.write_conf(text="")
    assert run(idle, "-t", "-c", idle.conf_path).returncode == 0
    with open("/proc/net/tcp") as file:
        busy = any(line.split()[1] == "0100007F:%04X" % 6000 for line in file.readlines()[1:])
    if busy:
        pytest.skip("port 6000 is in use on this machine")
    idle.write_conf(listen=None)
    idle.port = 6000
    idle.start()
    idle.online().ping()


# -- background -----------------------------------------------------------------------------------


def detached(daemon, *args):
    done = run(daemon, "-d", "-c", daemon.conf_path, *args)
    pid = None
    path = daemon.conf["pid_file"]
    if os.path.exists(path):
        with open(path) as file:
            pid = int(file.read())
    return done, pid


def test_d_detaches_as_init_scripts_expect(make_daemon):
    daemon = make_daemon(start=False)
    daemon.write_conf(log=os.path.join(daemon.dir, "parleyd.log"))
    done, pid = detached(daemon)
    assert done.returncode == 0, done
    stat = proc_stat(pid)
    assert stat and stat[2] != os.getpid() and stat[3] != os.getsid(0)
    for fd in (0, 1, 2):
        assert os.readlink("/proc/%d/fd/%d" % (pid, fd)) in ("/dev/null", daemon.conf["log"])
    assert os.readlink("/proc/%d/cwd" % pid) == "/"
    client = daemon.connect()                   # it was up when the parent returned
    client.ping(1)
    os.kill(pid, signal.SIGTERM)
    client.wait_closed()
    wait_until(lambda: proc_stat(pid) is None or proc_stat(pid)[1] == "Z", 10)
    wait_until(lambda: not os.path.exists(daemon.conf["pid_file"]), 3, "the pid file is removed")
    daemon.process = None


def test_d_without_pid_file_writes_one_in_state_dir(make_daemon):
    daemon = make_daemon(start=False)
    del daemon.conf["pid_file"]
    daemon.write_conf(log=os.path.join(daemon.dir, "parleyd.log"))
    assert run(daemon, "-d", "-c", daemon.conf_path).returncode == 0
    path = os.path.join(daemon.conf["state_dir"], "parleyd.pid")
    with open(path) as file:
        pid = int(file.read())
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not os.path.exists(path), 15, "the pid file is removed")
    wait_until(lambda: proc_stat(pid) is None or proc_stat(pid)[1] == "Z", 10)
    daemon.process = None


def test_d_says_when_it_did_not_come_up(make_daemon):
    daemon = make_daemon(start=False)
    daemon.write_conf(log=os.path.join(daemon.dir, "parleyd.log"))
    daemon.allow(".")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", daemon.port))
        busy.listen()
        done, _ = detached(daemon)
        assert done.returncode not in (0, None)
    daemon.write_conf(text="nonsense\n")
    done, _ = detached(daemon)
    assert done.returncode == 2 and "parleyd.conf:1" in done.stderr
    daemon.process = None


def test_pid_file_in_the_foreground(make_daemon):
    daemon = make_daemon()
    # It says that the daemon is up; a worker may answer a moment before.
    wait_until(lambda: os.path.exists(daemon.conf["pid_file"]) and os.path.getsize(daemon.conf["pid_file"]), 5)
    with open(daemon.conf["pid_file"]) as file:
        assert int(file.read()) == daemon.pid
    daemon.stop()
    assert not os.path.exists(daemon.conf["pid_file"])


def test_stale_pid_file_is_overwritten(make_daemon):
    daemon = make_daemon(start=False)
    with open(daemon.conf["pid_file"], "w") as file:
        file.write("999999\n")
    daemon.start()

    def written():
        with open(daemon.conf["pid_file"]) as file:
            return file.read() == "%d\n" % daemon.pid

    wait_until(written, 10, "the file has the new pid")


# -- failures to start ----------------------------------------------------------------------------


def test_busy_port(make_daemon):
    daemon = make_daemon(start=False)
    daemon.allow(".")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", daemon.port))
        busy.listen()
        daemon.spawn()
        assert daemon.wait_exit() not in (0, None)
    assert daemon.log_contains(str(daemon.port))
    daemon.check_gone()
    daemon.start()


def test_second_daemon_on_the_same_ports(make_daemon):
    """SO_REUSEPORT must not let two of them share the port."""
    first = make_daemon()
    second = make_daemon(start=False)
    second.write_conf(listen="127.0.0.1:%d" % first.port)
    second.allow(".")
    second.spawn()
    assert second.wait_exit() not in (0, None)
    assert second.log_contains(str(first.port))
    for _ in range(20):
        first.connect().ping()


def test_second_start_with_the_same_state_dir(make_daemon):
    """Refused, and the first one goes on."""
    first = make_daemon()
    member = first.online()
    second = make_daemon(start=False)
    second.write_conf(state_dir=first.conf["state_dir"])
    second.allow(".")
    second.spawn()
    wait_until(lambda: second.process.poll() is not None, 20, "the second one gives up")
    assert second.process.returncode not in (0, None)
    assert second.log_contains(r"state|lock")
    member.ping()


def test_unusable_state_dir(make_daemon):
    daemon = make_daemon(start=False)
    with open(os.path.join(daemon.dir, "plain-file"), "w"):
        pass
    daemon.write_conf(state_dir=os.path.join(daemon.dir, "plain-file", "x"))
    daemon.allow(".")
    daemon.spawn()
    assert daemon.wait_exit() not in (0, None)
    assert daemon.log_contains("plain-file")


def test_host_id_is_made_once(make_daemon):
    daemon = make_daemon()
    kept = state_files(daemon)
    daemon.stop()
    daemon.start()
    assert state_files(daemon) == kept


def state_files(daemon):
    out = {}
    folder = daemon.conf["state_dir"]
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isfile(path) and re.search("host|key", name):
            with open(path, "rb") as file:
                out[name] = file.read()
            if "key" in name:
                assert os.stat(path).st_mode & 0o077 == 0, "a key that others can read"
    assert out
    return out


# -- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_stop_signals_tell_the_clients(make_daemon, number):
    daemon = make_daemon()
    people = [daemon.online(slot=n % 2) for n in range(6)]
    away, waiting = daemon.account(), daemon.connect()
    waiting.ping()
    people[0].chat(away, "flushed")
    people[0].ping()
    daemon.send_signal(number)
    for person in people:
        assert person.expect(SESSION_END)["reason"] == "shutdown"
        person.wait_closed()
    waiting.wait_closed(clean=False)
    assert daemon.wait_exit() == 0
    daemon.start()
    daemon.login(away).wait_texts(["flushed"])


def test_stop_is_bounded_by_stop_seconds(make_daemon):
    """A slow reader does not hold it up."""
    daemon = make_daemon(stop_seconds=1, output_limit="32m")
    alice = daemon.online(slot=0)
    slow = daemon.login(daemon.account(), slot=1, rcvbuf=4096)
    slow.may_be_cut_off = True
    slow.pause()
    texts = ["%d " % n + "x" * 8000 for n in range(1200)]
    for text in texts:
        alice.chat(slow, text)
    alice.ping(20)
    watch = Stopwatch()
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait_exit(10) == 0
    assert watch.seconds < 1 + 2 * SCALE
    slow.resume()
    slow.wait(lambda c: c.eof, 10, "the end")
    daemon.start()
    again = daemon.login(slow.account, deadline=10)
    from parleytest.traffic import distinct
    wait_until(lambda: distinct(slow.chats() + again.chats()) == texts, 20, "nothing is lost by stopping")


def test_quit_ends_at_once(make_daemon):
    daemon = make_daemon(stop_seconds=30)
    person = daemon.online()
    watch = Stopwatch()
    daemon.send_signal(signal.SIGQUIT)
    daemon.wait_exit()
    assert watch.seconds < 1.5 * SCALE
    person.wait_closed(clean=False)
    daemon.check_gone()
    daemon.process.returncode = 0


def test_signals_during_a_start(make_daemon):
    """TERM at any moment of the start ends it, with nothing left behind."""
    for delay in (0, 0.01, 0.03, 0.1):
        daemon = make_daemon(start=False)
        daemon.spawn()
        holds_for(lambda: True, delay)
        daemon.send_signal(signal.SIGTERM)
        daemon.wait_exit()
        daemon.check_gone()


def test_hup_before_clients_and_repeated_term(make_daemon):
    daemon = make_daemon()
    daemon.reload()
    daemon.online().ping()
    for _ in range(3):
        daemon.send_signal(signal.SIGTERM)
    assert daemon.wait_exit() == 0


def test_unhandled_signals_are_harmless(make_daemon):
    daemon = make_daemon()
    person = daemon.online()
    for number in (signal.SIGPIPE, signal.SIGCHLD, signal.SIGCONT):
        daemon.send_signal(number)
        for pid in daemon.workers.values():
            os.kill(pid, number)
    person.ping()
    daemon.online().ping()


# -- privileges -----------------------------------------------------------------------------------


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
@pytest.mark.parametrize("store", ["sqlite", "mariadb"])
def test_privileges_are_dropped(make_daemon, store, request):
    """Workers, and whoever makes the store's file, are the configured user."""
    daemon = make_daemon(start=False)
    user = pwd.getpwnam("nobody")
    for path in (daemon.dir, daemon.conf["state_dir"]):
        os.chown(path, user.pw_uid, user.pw_gid)
    if store == "mariadb":
        server = request.getfixturevalue("mariadb")
        daemon.write_conf(store=server.url(server.database()))
    daemon.write_conf(user="nobody")
    daemon.start()
    for pid in daemon.workers.values():
        status = proc_text(pid, "status")
        assert re.search(r"^Uid:\s+%d\s+%d\s+%d\s" % ((user.pw_uid,) * 3), status, re.M)
        assert re.search(r"^Gid:\s+%d\s+%d\s+%d\s" % ((user.pw_gid,) * 3), status, re.M)
        groups = re.search(r"^Groups:(.*)$", status, re.M).group(1).split()
        assert "0" not in groups
        assert re.search(r"^CapEff:\s+0+$", status, re.M)
    if store == "sqlite":
        path = daemon.conf["store"].split(":", 1)[1]
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(path + suffix):
                assert os.stat(path + suffix).st_uid == user.pw_uid
    alice, bob = daemon.online(slot=0), daemon.online(slot=1)
    assert alice.chat_acked(bob, "x")["errno"] == 0
    holds_for(lambda: True, 1.0)
    old = daemon.kill_worker(1)
    pid = daemon.wait_worker(1, old)
    wait_until(lambda: re.search(r"^Uid:\s+%d\s" % user.pw_uid, proc_text(pid, "status"), re.M), 3)
    daemon.relogin(bob.account).ping()
    daemon.ctl_ok("status")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_unknown_user_is_an_error(idle):
    idle.write_conf(user="no-such-user-here")
    idle.allow(".")
    idle.spawn()
    assert idle.wait_exit() not in (0, None)
    assert idle.log_contains("no-such-user-here")


# -- sd_notify ------------------------------------------------------------------------------------


def test_sd_notify(make_daemon):
    daemon = make_daemon(start=False)
    path = os.path.join(daemon.dir, "notify.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(path)
        notify.settimeout(10)
        daemon.env = {"NOTIFY_SOCKET": path}
        daemon.start()
        said = notify.recv(4096).decode()
        while "READY=1" not in said:
            said += notify.recv(4096).decode()
        daemon.send_signal(signal.SIGTERM)
        while "STOPPING=1" not in said:
            said += notify.recv(4096).decode()
        assert daemon.wait_exit() == 0


def test_memory_is_touched_only_as_used(make_daemon):
    """A table for a million users costs little until they come."""
    daemon = make_daemon(max_sessions=1000000)
    daemon.online()
    total = 0
    for pid in [daemon.pid] + list(daemon.workers.values()):
        for line in proc_text(pid, "smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    if not SANITIZED:
        assert total < 64 * 1024, "%d KiB" % total
