#!/usr/bin/python3
"""The proof of confirmed delivery: everything is killed under traffic, and the account must balance.

People (`ack` sessions that keep the rules of "Confirmed delivery") send each other numbered messages,
alone and in groups, while a plan drawn from a seed kills and stops workers, the master and the
database, resets connections, lets people vanish, reloads and rescales. Then everything is quiet,
everybody drains, and is asked: acknowledged = delivered, shown once, in order, one order for all
members of a group, the `mid` of CHAT_ACK is the one delivered, nothing that nobody sent.

A seed fixes the plan and what people decide; the kernel's scheduling stays free, so a replayed
seed meets the same weather, not the same instant.

With --hosts N people are on several hosts that share a MariaDB and a Redis, and go to any of them:
hosts are killed with all their processes, stand still, are drained and stopped; Redis is killed,
emptied and stopped; single hosts are cut off from it.

The exit status is 0, 1 (the promise was broken)
or 2 (the run could not be made).
"""

import argparse
import collections
import errno
import os
import random
import re
import select
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")
sys.path.insert(0, os.path.join(HERE, "..", "integration"))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=None, help="default: a fresh one, printed")
    parser.add_argument("--seconds", type=float, default=60, help="of chaos; the end takes some more")
    parser.add_argument("--store", choices=("sqlite", "mysql"), default="sqlite")
    parser.add_argument("--build", choices=("release", "faults", "asan", "debug"), default="release")
    parser.add_argument("--hosts", type=int, default=1, help="more than one: with MariaDB and Redis")
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--rate", type=float, default=12, help="messages a second and person, about")
    parser.add_argument("--pause", type=float, default=0.5, help="mean seconds between two blows")
    parser.add_argument("--only", default="", help="kinds of blows, comma separated; default: all")
    parser.add_argument("--without", default="", help="kinds of blows left out")
    parser.add_argument("--keep", action="store_true", help="leave the daemon's directory and a trace")
    args = parser.parse_args()
    if args.hosts > 1:
        args.store = "mysql"
    return args


ARGS = arguments() if __name__ == "__main__" else None
if ARGS:
    os.environ["PARLEY_BUILD"] = ARGS.build

try:
    import pytest                               # noqa: F401  (the harness wants it)
except ImportError:                             # the distribution's Python has the distribution's
    if sys.executable == "/usr/bin/python3":
        raise
    os.execv("/usr/bin/python3", ["/usr/bin/python3"] + sys.argv)

from parleytest import *                        # noqa: E402,F403
from parleytest import daemon as daemon_module  # noqa: E402
from parleytest.client import Client, Frame     # noqa: E402

FINAL = (MALFORMED, NO_SUCH, NOT_ALLOWED, TOO_LARGE)
RESET = struct.pack("ii", 1, 0)
PATIENCE = 60 * SCALE       # for the drain at the end
# For a reply to LOGIN, before the client tries another connection.
LOGIN_PATIENCE = (6 if ARGS is None or ARGS.hosts == 1 else 3) * SCALE


class Message:
    """What its sender knows of one message. `conv` is ("u", user) or ("g", group)."""

    __slots__ = ("cid", "sender", "conv", "seq", "text", "mid", "acks", "refused", "shown", "trace")

    def __init__(self, sender, conv, seq, text):
        self.cid = "%d.%s%d.%d" % (sender, conv[0], conv[1], seq)
        self.sender, self.conv, self.seq, self.text = sender, conv, seq, text
        self.mid, self.acks, self.refused = None, 0, None
        self.shown = {}                         # receiver -> mid
        self.trace = []


class World:
    """The account: who sent what, who saw what, and what was done to the daemon, with times."""

    def __init__(self):
        self.start = time.monotonic()
        self.messages = {}
        self.blows, self.wrong = [], []
        self.counts = collections.Counter()
        self.outages, self.disturbed = [], 0.0
        self.returns = []                       # (seconds, user, when, nothing else was disturbed)
        self.last_kill = collections.defaultdict(lambda: -1e9)      # of a worker, by host
        self.quiet, self.checking = False, []

    def now(self):
        return time.monotonic() - self.start

    def note(self, text):
        self.blows.append((self.now(), text))

    def violate(self, kind, text, *messages):
        self.wrong.append((kind, self.now(), text, messages))


class Link(Client):
    """A connection of the harness, without its thread: the loop below reads and writes."""

    def __init__(self, address, owner):
        self.dialect, self.end, self.max_frame = "plain", b"\n", 65536
        self.violations = []
        self.eof, self.part = False, b""
        self.owner, self.out, self.n, self.confirmed = owner, b"", 0, 0
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self.sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            self.sock.close()
            raise OSError(code, "connect")

    def read(self):
        """The frames that have arrived; at the end of the stream `eof` is set. What a dying worker
        had begun to write may be cut off."""
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self.eof = not data
        *lines, self.part = (self.part + data).split(b"\n")
        return [frame for frame in map(self.parse, lines) if frame]

    def parse(self, raw):
        try:
            frame = Frame(load(raw))
        except (ValueError, TypeError) as why:
            self.violations.append("no frame: %s: %r" % (why, raw[:300]))
            return None
        frame.raw, frame.kind = raw, NAME[self.dialect].get(frame.get("msgid"), frame.get("msgid"))
        self._check(frame)
        return frame

    def push(self, kind, **members):
        self.out += self.frame(kind, **members)

    def flush(self):
        try:
            while self.out:
                self.out = self.out[self.sock.send(self.out):]
        except BlockingIOError:
            pass
        except OSError as why:
            if why.errno != errno.ENOTCONN:
                self.eof = True

    def end_now(self, hard):
        if hard:
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            except OSError:
                pass
        self.sock.close()
        self.closed = True


class Person:
    """A user with an outbox and a memory, which both outlive connections."""

    def __init__(self, loop, account, seed):
        self.loop, self.world, self.account = loop, loop.world, account
        self.id = account.id
        self.random = random.Random(seed)
        self.pace = self.random.choice(("each", "timed", "many"))
        self.window = self.random.choice((1, 8, 40, 120))
        self.partners, self.groups = [], []
        self.outbox, self.open = [], {}         # in the order first sent; cid -> Message
        self.seqs = collections.Counter()
        self.seen, self.shown = {}, []          # mid -> cid; cids in the order shown
        self.link, self.state = None, "away"
        self.retry_at, self.tries = 0.0, 0
        self.resend = {}                        # conv -> when to send its open messages again
        self.next_at = 0.0
        self.confirm_at = None
        self.stalled_until = 0.0
        self.lost_at = None                     # when a worker's death took the link
        self.killed_at = None                   # when the host died
        self.login_at = 0.0
        self.place, self.heard_at = 0, 0.0      # the host; when it last said something
        self.faith = 1.5 + 3 * self.random.random()     # seconds without a word

    # -- the connection --------------------------------------------------------------------------

    def connect(self, now):
        self.place = self.random.randrange(len(self.loop.addresses))
        try:
            self.link = Link(self.loop.addresses[self.place], self)
        except OSError:
            self.again(now)
            return
        self.loop.add(self.link)
        self.log_in(now)

    def log_in(self, now):
        self.state, self.login_at, self.heard_at = "login", now, now
        self.link.push(LOGIN, id=self.id, password=self.account.password, ack=True)

    def again(self, now, after=None):
        self.tries += 1
        if after is None:
            after = min(0.02 * 2 ** min(self.tries, 5), 0.5) * self.random.uniform(0.5, 1)
        self.state, self.retry_at = "away", now + after

    def drop(self, now, hard=True, after=None):
        """Ends the connection from this side."""
        if self.link:
            self.loop.remove(self.link)
            self.link.end_now(hard)
            self.link = None
        self.resend.clear()
        self.confirm_at = None
        self.again(now, after)

    def lost(self, now):
        """The server's side ended it."""
        if self.state == "in" and now - self.world.last_kill[self.place] < 0.3:
            self.lost_at = now
        self.drop(now, hard=False, after=self.random.uniform(0, 0.02))

    def leave(self):
        """Logs out; logs in again on the same connection when that is answered."""
        if self.state == "in":
            self.confirm_at = None
            self.link.push(LOGOUT)
            self.state, self.login_at = "leaving", self.world.now()

    # -- receiving -------------------------------------------------------------------------------

    def frame(self, frame, now):
        kind, self.heard_at = frame.kind, now
        if kind in (CHAT, GROUP_CHAT):
            self.chat(frame, now)
        elif kind == CHAT_ACK:
            self.chat_ack(frame, now)
        elif kind == LOGIN_ACK:
            self.login_ack(frame, now)
        elif kind == LOGOUT_ACK:
            if self.state == "leaving":
                self.log_in(now)
        elif kind == PING:
            self.link.push("PONG", **({"req": frame["req"]} if "req" in frame else {}))
        elif kind == SESSION_END:
            self.world.counts["session ends: %s" % frame.get("reason")] += 1
        elif kind == ERROR:
            self.world.counts["errors %s of %s" % (frame["errno"], frame.get("of"))] += 1
            if frame["errno"] not in (UNAVAILABLE, NOT_LOGGED_IN):
                self.world.violate("error", "%d got %r" % (self.id, dict(frame)))

    def login_ack(self, frame, now):
        number = frame["errno"]
        if number != 0:
            self.world.counts["logins refused with %d" % number] += 1
            if number not in (ELSEWHERE, TOO_FAST, UNAVAILABLE) or (
                    not set(frame.get("try", ())) <= {"%s:%d" % a for a in self.loop.addresses}):
                self.world.violate("login", "%d: %r" % (self.id, dict(frame)))
            self.drop(now, hard=False, after=max(frame.get("retry_ms", 50) / 1000, 0.02))
            return
        self.world.counts["logins"] += 1
        self.state, self.tries = "in", 0
        if self.lost_at is not None:
            if self.world.disturbed < self.lost_at:
                self.world.outages.append((now - self.lost_at, self.id, self.lost_at))
            self.lost_at = None
        if self.killed_at is not None:
            self.world.returns.append((now - self.killed_at, self.id, self.killed_at,
                                       self.world.disturbed < self.killed_at))
            self.killed_at = None
        for chat in frame["offlinemsg"]:
            self.chat(chat, now)
        self.resend.clear()
        for message in list(self.open.values()):
            self.say(message, "resent")

    def chat(self, chat, now):
        link, mid, cid = self.link, chat["mid"], chat.get("cid")
        link.n += 1
        if chat.get("n") != link.n:
            self.world.violate("n", "%d got n %r where %d was due" % (self.id, chat.get("n"), link.n))
            link.n = chat.get("n") or link.n
        message = self.world.messages.get(cid)
        if message:
            message.trace.append((now, "to %d n=%d%s" % (self.id, link.n, " again" if mid in self.seen else "")))
        if mid in self.seen:
            self.world.counts["duplicates dropped"] += 1
            if self.seen[mid] != cid:
                self.world.violate("mid", "two messages have mid %s: %s %s" % (mid, self.seen[mid], cid))
        else:
            self.seen[mid] = cid
            self.show(chat, message, mid)
        waiting = link.n - link.confirmed
        if self.pace == "each" or waiting >= 64:
            self.confirm(now)
        elif self.confirm_at is None or self.pace == "many":
            self.confirm_at = now + (0.3 if self.pace == "timed" else 0.9)

    def show(self, chat, message, mid):
        """What the person sees; judged at once."""
        world = self.world
        world.counts["messages shown"] += 1
        if message is None:
            return world.violate("unsent", "%d was shown what nobody sent: %r" % (self.id, dict(chat)))
        conv = ("g", chat["groupid"]) if "groupid" in chat else ("u", chat["to"])
        if (conv, chat["id"], chat["msg"]) != (message.conv, message.sender, message.text) or (
                self.id not in self.loop.receivers(message)):
            world.violate("unsent", "%d was shown %r" % (self.id, dict(chat)), message)
        if self.id in message.shown:
            world.violate("twice", "%s was shown twice to %d" % (message.cid, self.id), message)
        message.shown[self.id] = mid
        self.shown.append(message.cid)

    def confirm(self, now):
        link = self.link
        self.confirm_at = None
        if link and self.state == "in" and link.n > link.confirmed:
            link.confirmed = link.n
            link.push(RECEIVED, n=link.n)

    # -- sending ---------------------------------------------------------------------------------

    def say(self, message, how="sent"):
        message.trace.append((self.world.now(), how))
        members = {"to" if message.conv[0] == "u" else "groupid": message.conv[1]}
        self.link.push(CHAT if message.conv[0] == "u" else GROUP_CHAT, msg=message.text,
                       cid=message.cid, **members)

    def chat_ack(self, frame, now):
        message, number = self.world.messages.get(frame.get("cid")), frame["errno"]
        if message is None or message.sender != self.id:
            return self.world.violate("ack", "%d: an answer to what it never sent: %r" % (self.id, dict(frame)))
        message.trace.append((now, "answer %d %s" % (number, frame.get("state", ""))))
        if number == 0:
            message.acks += 1
            self.world.counts["answers: " + frame["state"]] += 1
            if message.mid not in (None, frame["mid"]):
                self.world.violate("mid", "%s was acknowledged with two mids" % message.cid, message)
            message.mid = frame["mid"]
            self.open.pop(message.cid, None)
        elif number in FINAL:
            self.world.violate("refused", "%s: %r" % (message.cid, dict(frame)), message)
            message.refused = number
            self.open.pop(message.cid, None)
        else:
            self.world.counts["answers: errno %d" % number] += 1
            if message.cid in self.open:
                self.resend.setdefault(message.conv, now + frame["retry_ms"] / 1000)

    def write(self, now):
        """A new message, perhaps."""
        if now < self.next_at or len(self.open) >= self.window or self.world.quiet:
            return
        burst = self.random.choice((1, 1, 1, 1, 5, 20))
        self.next_at = now + self.random.expovariate(ARGS.rate) * burst
        for _ in range(burst):
            if self.groups and self.random.random() < 0.35:
                conv = ("g", self.random.choice(self.groups))
            else:
                conv = ("u", self.random.choice(self.partners))
            self.seqs[conv] += 1
            size = self.random.choice((0, 0, 10, 200, 200, 3000))
            message = Message(self.id, conv, self.seqs[conv], "%d>%s%d #%d %s" % (
                self.id, conv[0], conv[1], self.seqs[conv], "x" * size))
            self.world.messages[message.cid] = self.open[message.cid] = message
            if conv not in self.resend:
                self.say(message)

    def tick(self, now):
        if self.state == "away":
            if now >= self.retry_at:
                self.connect(now)
        elif self.state in ("login", "leaving"):
            if now - self.login_at > LOGIN_PATIENCE:
                self.world.counts["logins without an answer"] += 1
                self.drop(now)
        elif now >= self.stalled_until:
            if len(self.loop.addresses) > 1 and self.open and now - self.heard_at > self.faith:
                self.world.counts["silent hosts given up"] += 1
                self.drop(now)
                return
            if self.confirm_at is not None and now >= self.confirm_at:
                self.confirm(now)
            for conv in [conv for conv, at in self.resend.items() if now >= at]:
                del self.resend[conv]
                for message in list(self.open.values()):
                    if message.conv == conv:
                        self.say(message, "resent after refusal")
            self.write(now)
        if self.link:
            self.link.flush()
            if self.link.eof:
                self.lost(now)


class Loop:
    """Reads the sockets of all people and lets them act."""

    def __init__(self, world, addresses):
        self.world, self.addresses = world, addresses
        self.epoll, self.links = select.epoll(), {}
        self.people, self.by_id, self.members = [], {}, {}

    def receivers(self, message):
        kind, id = message.conv
        return {id} if kind == "u" else self.members[id] - {message.sender}

    def add(self, link):
        self.links[link.sock.fileno()] = link
        self.epoll.register(link.sock.fileno(), select.EPOLLIN)

    def remove(self, link):
        if self.links.pop(link.sock.fileno(), None):
            self.epoll.unregister(link.sock.fileno())

    def turn(self):
        events = self.epoll.poll(0.005)
        now = self.world.now()
        for fd, _ in events:
            link = self.links.get(fd)
            if link is None or now < link.owner.stalled_until:
                continue
            for frame in link.read():
                if link.owner.link is not link:
                    break
                link.owner.frame(frame, now)
            for text in link.violations:
                self.world.violate("frame", "%d: %s" % (link.owner.id, text))
            link.violations = []
            if link.eof and link.owner.link is link:
                link.owner.lost(now)
        for person in self.people:
            person.tick(now)
        if any(now < person.stalled_until for person in self.people):
            time.sleep(0.002)       # level-triggered: what is not read is ready all the time

    def run(self, seconds=None, until=None):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.turn()
            if until and until():
                return True
        return False


WEIGHTS = {
    "host": 0, "silent": 0, "drain": 0, "line": 0, "redis_killed": 0, "flush": 0, "still": 0,
    "worker": 6, "two": 1, "stop": 3, "master": 1, "store": 1, "reset": 4, "close": 2, "vanish": 4,
    "logout": 3, "stall": 3, "cut": 4, "kick": 2, "hup": 1, "scale": 2,
}
# With several hosts: what happens to hosts comes first.
HOST_WEIGHTS = dict(WEIGHTS, host=5, silent=2, drain=2, line=4, redis_killed=2, flush=2, still=1,
                    worker=3, stop=1, stall=2, vanish=3, reset=3, scale=1)
MEANING = {
    "host": "hosts killed with all processes", "silent": "hosts that stood still",
    "drain": "hosts drained", "line": "hosts cut off from Redis", "redis_killed": "Redis killed",
    "flush": "Redis emptied", "still": "Redis standing still",
    "worker": "workers killed", "two": "all workers killed at once", "stop": "workers stopped",
    "master": "masters killed", "store": "stores taken away", "reset": "connections reset by clients",
    "close": "connections closed by clients", "vanish": "clients gone for a while",
    "logout": "logouts", "stall": "clients that did not read", "kick": "sessions ended by the server",
    "cut": "clients cut off, what came unread",
    "hup": "reloads", "scale": "changes of scale",
}


class Weather:
    """The plan: what is done when, all of it drawn from the seed, and how it is mended."""

    def __init__(self, world, hosts, people, store, seed, redis=None):
        self.world, self.hosts, self.people, self.keeper, self.redis = world, hosts, people, store, redis
        self.random = random.Random("weather %d" % seed)
        self.weights = WEIGHTS if len(hosts) == 1 else HOST_WEIGHTS
        kinds = [k for k in (ARGS.only.split(",") if ARGS.only else self.weights) if k]
        self.kinds = [k for k in kinds if k not in ARGS.without.split(",") and self.weights[k]]
        self.next_at = self.random.uniform(0.5, 1.5)
        self.mends = []                         # (when, what)
        self.done = collections.Counter()
        self.children = []
        self.points = fault_points() if ARGS.build == "faults" else []
        self.store_away = self.redis_away = False
        self.away, self.ending, self.frozen, self.cut_off, self.drained = set(), set(), set(), set(), set()

    def turn(self):
        now = self.world.now()
        for mend in [mend for mend in self.mends if mend[0] <= now]:
            self.mends.remove(mend)
            mend[1]()
        self.children = [child for child in self.children if child.poll() is None]
        for host in self.hosts:
            if host in self.away or host.alive():
                continue
            if host.process.returncode != 0 or host not in self.ending:
                self.world.violate("daemon", "parleyd %sended with %s" % (self.name(host), host.process.returncode))
            self.start(host)
        if self.world.quiet or now < self.next_at:
            return
        self.next_at = now + self.random.expovariate(1 / ARGS.pause)
        kind = self.random.choices(self.kinds, [self.weights[k] for k in self.kinds])[0]
        pick, span = self.random.random(), self.random.random()
        if getattr(self, kind)(pick, span):
            self.done[kind] += 1

    def name(self, host):
        return "" if len(self.hosts) == 1 else "of %s " % host.id

    def some_host(self, pick, without=()):
        """A host that runs, and what is left of PICK for the next choice."""
        found = [h for h in self.hosts if h not in self.away and h not in self.ending and h not in without]
        place = pick * len(found)
        return (found[int(place)], place - int(place)) if found else (None, pick)

    def disturb(self, seconds):
        self.world.disturbed = max(self.world.disturbed, self.world.now() + seconds)

    def later(self, seconds, what):
        self.mends.append((self.world.now() + seconds, what))

    def mend_all(self):
        while self.mends:                       # in the order meant: a drain ends before its host starts
            self.mends.sort(key=lambda mend: mend[0])
            self.mends.pop(0)[1]()
        self.keeper.ready()
        for person in self.people:
            person.stalled_until = 0.0

    # -- blows -----------------------------------------------------------------------------------

    def victim(self, pick):
        """(host, slot, pid) of a worker."""
        host, pick = self.some_host(pick, self.frozen)
        workers = sorted(host.workers.items()) if host else []
        return (host,) + workers[int(pick * len(workers))] if workers else None

    def signal(self, pid, number):
        try:
            os.kill(pid, number)
            return True
        except ProcessLookupError:
            return False

    def worker(self, pick, span):
        found = self.victim(pick)
        if not found or not self.signal(found[2], signal.SIGKILL):
            return False
        host, slot, pid = found
        self.world.note("worker %d %s(pid %d) killed" % (slot, self.name(host), pid))
        self.world.last_kill[self.hosts.index(host)] = self.world.now()
        return True

    def two(self, pick, span):
        host, _ = self.some_host(pick)
        found = list(host.workers.items()) if host else []
        for slot, pid in found:
            self.signal(pid, signal.SIGKILL)
        if found:
            self.world.note("all %d workers %skilled" % (len(found), self.name(host)))
            self.world.last_kill[self.hosts.index(host)] = self.world.now()
        return bool(found)

    def stop(self, pick, span):
        found = self.victim(pick)
        if not found or not self.signal(found[2], signal.SIGSTOP):
            return False
        host, slot, pid = found
        seconds = span ** 3 * 6                 # sometimes longer than hang_seconds
        self.world.note("worker %d %s(pid %d) stopped for %.2f s" % (slot, self.name(host), pid, seconds))
        self.disturb(seconds + 1)
        self.later(seconds, lambda: self.signal(pid, signal.SIGCONT))
        return True

    def master(self, pick, span):
        host, _ = self.some_host(pick, self.frozen)
        if not host:
            return False
        self.world.note("master %s(pid %d) killed" % (self.name(host), host.pid))
        self.disturb(span + 10)
        host.process.kill()
        host.process.wait()
        self.gone(host, span ** 2 * 2)
        return True

    def gone(self, host, seconds):
        """It runs no more; it is started again after SECONDS."""
        self.away.add(host)
        for state in (self.frozen, self.drained, self.ending):
            state.discard(host)
        self.later(seconds, lambda: self.start(host))

    def start(self, host):
        self.arm(host)
        host.spawn()
        for state in (self.away, self.drained, self.ending):
            state.discard(host)
        self.world.note("parleyd %sstarted (pid %d)" % (self.name(host), host.pid))

    def arm(self, host):
        """Fault points of the next daemon."""
        if self.points:
            host.env = {"PARLEY_FAULT": ",".join("%s=kill:%d:%d" % (
                self.random.choice(self.points), self.random.choice((1, 5, 20, 80, 300, 1000)),
                self.random.randrange(2)) for _ in range(14))}
            self.world.note("armed: " + host.env["PARLEY_FAULT"])

    # -- what only several hosts have ------------------------------------------------------------

    def host(self, pick, span):
        """The power fails on one of them."""
        host, _ = self.some_host(pick)
        if not host:
            return False
        now, place = self.world.now(), self.hosts.index(host)
        for person in self.people:
            if person.state == "in" and person.place == place and host not in self.frozen:
                person.killed_at = now
        host.kill_host()
        self.world.note("%s killed with all its processes, back in %.2f s" % (host.id, span ** 2 * 4))
        self.gone(host, span ** 2 * 4)
        return True

    def silent(self, pick, span):
        host, _ = self.some_host(pick, self.frozen)
        if not host:
            return False
        seconds = span ** 2 * 5                 # sometimes longer than host_timeout_ms
        self.world.note("%s stands still for %.2f s" % (host.id, seconds))
        self.disturb(seconds + 2)
        self.frozen.add(host)
        pid = host.pid
        os.killpg(pid, signal.SIGSTOP)
        self.later(seconds, lambda: self.thaw(host, pid))
        return True

    def thaw(self, host, pid):
        if host in self.frozen and host.pid == pid:
            self.frozen.discard(host)
            os.killpg(pid, signal.SIGCONT)
            self.world.note("%s goes on" % host.id)

    def line(self, pick, span):
        host, pick = self.some_host(pick, self.cut_off)
        if not host:
            return False
        seconds, how = span ** 2 * 4, ("cut", "freeze", "slow", "deaf")[int(pick * 4)]
        self.world.note("%s: its line to Redis: %s for %.2f s" % (host.id, how, seconds))
        self.disturb(seconds + 3)
        self.cut_off.add(host)
        {"cut": host.link.cut, "freeze": host.link.freeze, "slow": lambda: host.link.delay(150),
         "deaf": lambda: host.link.freeze(False, True)}[how]()
        self.later(seconds, lambda: self.mend_line(host))
        return True

    def mend_line(self, host):
        host.link.pass_()
        self.cut_off.discard(host)
        self.world.note("%s: its line to Redis is whole" % host.id)

    def take_redis(self, seconds, take, give, text):
        if self.redis_away:
            return False
        self.world.note("Redis %s for %.2f s" % (text, seconds))
        self.disturb(seconds + 3)
        self.redis_away = True
        take()

        def back():
            give()
            self.redis_away = False
            self.world.note("Redis is back")

        self.later(seconds, back)
        return True

    def redis_killed(self, pick, span):
        return self.take_redis(span ** 2 * 3, self.redis.kill, self.redis.spawn, "killed")

    def still(self, pick, span):
        return self.take_redis(span ** 2 * 3, self.redis.freeze, self.redis.thaw, "stands still")

    def flush(self, pick, span):
        if self.redis_away:
            return False
        self.redis.flush()
        self.world.note("Redis emptied")
        self.disturb(2)
        return True

    def drain(self, pick, span):
        """Out of the registry, everybody sent away; then it takes it back, or is stopped and starts anew."""
        if len(self.away | self.ending | self.drained) + 1 >= len(self.hosts):
            return False                        # somebody has to take those who are sent away
        host, pick = self.some_host(pick, self.frozen | self.drained)
        if not host:
            return False
        self.drained.add(host)
        pid = host.pid
        self.world.note("%s is drained, then %s" % (host.id, "rejoins" if pick < 0.5 else "stops"))
        self.ctl(host, "drain")
        self.later(1.5 + span * 2, lambda: self.end_drain(host, pid, pick >= 0.5))
        return True

    def end_drain(self, host, pid, stop):
        if host not in self.drained or host.pid != pid or host in self.away:
            return
        self.drained.discard(host)
        if not stop:
            self.world.note("%s rejoins" % host.id)
            self.ctl(host, "drain", "--cancel")
        elif host not in self.frozen:
            self.world.note("%s stops" % host.id)
            self.ending.add(host)
            self.signal(pid, signal.SIGTERM)

    def ctl(self, host, *words):
        self.children.append(subprocess.Popen(
            [host.program("parleyctl"), "-s", host.control, "--timeout", "5"] + [str(w) for w in words],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def store_back(self):
        self.keeper.give_back()
        self.store_away = False
        self.world.note("the store is back")

    def store(self, pick, span):
        if self.store_away:
            return False
        seconds = span ** 2 * 3
        self.world.note("the store is taken away for %.2f s" % seconds)
        self.disturb(seconds + 8)
        self.keeper.take_away()
        self.store_away = True
        self.later(seconds, self.store_back)
        return True

    def someone(self, pick, states=("in",)):
        found = [p for p in self.people if p.state in states]
        return found[int(pick * len(found))] if found else None

    def reset(self, pick, span, hard=True, after=0.0):
        person = self.someone(pick, ("in", "login"))
        if person:
            self.world.note("%d %s, away for %.2f s" % (person.id, "resets" if hard else "closes", after))
            person.drop(self.world.now(), hard, after)
        return bool(person)

    def close(self, pick, span):
        return self.reset(pick, span, hard=False)

    def vanish(self, pick, span):
        return self.reset(pick, span, hard=span < 0.5, after=span * 5)

    def logout(self, pick, span):
        person = self.someone(pick)
        if person:
            self.world.note("%d logs out" % person.id)
            person.leave()
        return bool(person)

    def stall(self, pick, span):
        person = self.someone(pick)
        if person:
            self.world.note("%d does not read for %.2f s" % (person.id, span * 3))
            person.stalled_until = self.world.now() + span * 3
        return bool(person)

    def cut(self, pick, span):
        """What arrives until the client gives up is never read: delivered to a host, to no person."""
        person = self.someone(pick)
        if person:
            link, seconds = person.link, 0.2 + span * 2
            self.world.note("%d is cut off for %.2f s" % (person.id, seconds))
            person.stalled_until = self.world.now() + seconds + 1
            self.later(seconds, lambda: self.give_up(person, link))
        return bool(person)

    def give_up(self, person, link):
        person.stalled_until = 0.0
        if person.link is link:
            person.drop(self.world.now())

    def kick(self, pick, span):
        person, (host, _) = self.someone(pick), self.some_host(span)
        if not person or not host or len(self.children) > 3:
            return False
        self.world.note("%d is kicked" % person.id)
        self.ctl(host, "kick", person.id)
        return True

    def hup(self, pick, span):
        host, _ = self.some_host(pick)
        if not host:
            return False
        host.write_conf(confirm_timeout=int(1 + span * 4))
        self.world.note("reload %swith confirm_timeout %d" % (self.name(host), host.conf["confirm_timeout"]))
        return self.signal(host.pid, signal.SIGHUP)

    def scale(self, pick, span):
        """HUP counts the workers of the file anew, so the file follows what TTIN and TTOU have done."""
        host, pick = self.some_host(pick)
        if not host:
            return False
        count = host.conf["workers"]
        more = count <= 1 or (count < 4 and pick < 0.5)
        host.write_conf(workers=count + (1 if more else -1))
        self.world.note("one worker %s%s: %d" % (self.name(host), "more" if more else "less", host.conf["workers"]))
        return self.signal(host.pid, signal.SIGTTIN if more else signal.SIGTTOU)


def fault_points():
    out = set()
    for folder in ("shm", "worker", "sql"):
        for name in os.listdir(os.path.join(ROOT, folder)):
            if name.endswith(".c"):
                with open(os.path.join(ROOT, folder, name)) as file:
                    out.update(re.findall(r'\bFAULT\("([^"]+)"\)', file.read()))
    return sorted(out)


class SqliteStore:
    """A file cannot be killed; it can be locked by somebody else for longer than anybody waits."""

    def __init__(self, path):
        self.path, self.lock = path, None

    def take_away(self):
        self.lock = sqlite3.connect(self.path, timeout=0.2, isolation_level=None)
        try:
            self.lock.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            pass                                # the daemon is in the way, and writes on

    def give_back(self):
        if self.lock:
            self.lock.close()
            self.lock = None

    def ready(self):
        pass

    def rows(self, text):
        with sqlite3.connect(self.path, timeout=10) as db:
            return [[str(value) for value in row] for row in db.execute(text)]

    def destroy(self):
        self.give_back()


class MariaStore:
    def __init__(self, server, name):
        self.server, self.name, self.starting = server, name, None

    def take_away(self):
        self.ready()
        self.server.kill()

    def give_back(self):
        self.starting = threading.Thread(target=self.server.start)
        self.starting.start()

    def ready(self):
        if self.starting:
            self.starting.join()

    def rows(self, text):
        return self.server.sql(text, self.name)

    def destroy(self):
        self.server.destroy()


def settled(world, loop):
    """Nothing open, and everything acknowledged has been shown."""
    if not all(p.state == "in" and not p.open for p in loop.people):
        return False
    while world.checking:
        message = world.messages[world.checking[-1]]
        if message.acks and len(message.shown) < len(loop.receivers(message)):
            return False
        world.checking.pop()
    return True


def check_account(world, loop):
    """What must hold when all is quiet; the rest was judged as it happened."""
    for message in world.messages.values():
        want, got = loop.receivers(message), set(message.shown)
        if not message.acks and message.refused is None:
            world.violate("unanswered", "%s never got an answer" % message.cid, message)
        for receiver in sorted(want - got if message.acks else ()):
            world.violate("lost", "%s was acknowledged and never shown to %d" % (message.cid, receiver), message)
        for receiver, mid in message.shown.items():
            if message.mid not in (None, mid):
                world.violate("mid", "%s: CHAT_ACK says %s, %d got %s" % (
                    message.cid, message.mid, receiver, mid), message)
    for person in loop.people:
        latest = {}
        for cid in person.shown:
            message = world.messages[cid]
            before = latest.get((message.sender, message.conv))
            if before and before.seq > message.seq:
                world.violate("order", "%d saw %s after %s" % (person.id, cid, before.cid), message, before)
            else:
                latest[(message.sender, message.conv)] = message
    for group in sorted(loop.members):
        check_group(world, loop, group)


def check_group(world, loop, group):
    """One order for all: members that saw the same two messages saw them in the same order."""
    after, waits = collections.defaultdict(set), collections.Counter()
    for id in loop.members[group]:
        seen = [cid for cid in loop.by_id[id].shown if world.messages[cid].conv == ("g", group)]
        for one, two in zip(seen, seen[1:]):
            if two not in after[one]:
                after[one].add(two)
                waits[two] += 1
    ready = [cid for cid in after if not waits[cid]]
    count = 0
    while ready:
        cid = ready.pop()
        count += 1
        for two in after[cid]:
            waits[two] -= 1
            if not waits[two]:
                ready.append(two)
    everything = set(after) | set(waits)
    if count < len(everything):
        circle = [world.messages[cid] for cid in everything if waits[cid] > 0]
        circle.sort(key=lambda m: (m.sender, m.seq))
        world.violate("group order", "group %d: the members' orders contradict each other in %d messages" % (
            group, len(circle)), *circle[:6])


def check_numbers(world, loop, store):
    """The log of a group has no gap and nothing twice (old numbers may have been purged)."""
    for group in sorted(loop.members):
        rows = store.rows("SELECT number, hex(mid) FROM GroupMessage WHERE groupid = %d ORDER BY number" % group)
        numbers = [int(row[0]) for row in rows]
        if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            gaps = [n for n, m in zip(numbers, numbers[1:]) if m != n + 1]
            world.violate("numbers", "group %d: gaps after %r" % (group, gaps[:10]))
        mids = [row[1].lower() for row in rows]
        if len(set(mids)) != len(mids):
            world.violate("numbers", "group %d: a mid is stored twice" % group)
        place = dict(zip(mids, numbers))
        for id in loop.members[group]:
            shown = [place.get(world.messages[cid].shown[id]) for cid in loop.by_id[id].shown
                     if world.messages[cid].conv == ("g", group)]
            shown = [n for n in shown if n is not None]
            if shown != sorted(shown):
                world.violate("group order", "%d saw group %d in another order than its numbers" % (id, group))


def populate(daemon, loop, seed):
    """Accounts, friendships of a sort, and groups that stay as they are."""
    dice = random.Random("people %d" % seed)
    for number, account in enumerate(daemon.accounts(ARGS.people, "chaos")):
        loop.people.append(Person(loop, account, "%d of %d" % (number, seed)))
    loop.by_id = {person.id: person for person in loop.people}
    ids = sorted(loop.by_id)
    for person in loop.people:
        person.partners = dice.sample(ids, min(5, len(ids)))    # oneself, now and then
    for _ in range(ARGS.groups):
        inside = dice.sample(loop.people, max(2, min(len(loop.people), dice.randrange(3, 9))))
        creator = daemon.relogin(inside[0].account)
        group = daemon.group(creator)
        creator.ok(LOGOUT)
        for person in inside[1:]:
            client = daemon.relogin(person.account)
            client.ok(ADD_GROUP, groupid=group)
            client.ok(LOGOUT)
        loop.members[group] = {person.id for person in inside}
        for person in inside:
            person.groups.append(group)
    for client in daemon.clients:
        client.close()
    daemon.clients = []


def make_hosts(folder):
    """(hosts, what keeps the store, the cluster or None), none started."""
    conf = dict(workers=2, confirm_timeout=2, hang_seconds=3, log_level="info", max_sessions=10000,
                memory_limit="32m", max_workers=8, stop_seconds=3, store_timeout_seconds=1, pool_wait_ms=500)
    if ARGS.store == "sqlite":
        path = os.path.join(folder, "chaos.db")
        return [Daemon(store="sqlite:" + path, **conf)], SqliteStore(path), None
    server = MariaDB()
    if ARGS.hosts > 1:
        cluster = Cluster(server, hosts=ARGS.hosts, start=False, **conf)
        return cluster.hosts, MariaStore(server, cluster.database), cluster
    name = server.database()
    return [Daemon(store=server.url(name), **conf)], MariaStore(server, name), None


def own_programs(folder):
    """Copies, so that whoever builds meanwhile changes nothing under this run."""
    for name in ("parleyd", "parleyctl"):
        shutil.copy2(os.path.join(daemon_module.BUILD_DIR, name), folder)
    daemon_module.BUILD_DIR = folder


def drain(world, loop, weather, seconds):
    """Everything is mended and nothing new is written; True when the account is settled."""
    world.quiet = True
    weather.mend_all()
    world.note("quiet")
    world.checking = list(world.messages)

    def done():
        weather.turn()
        return settled(world, loop)

    ok = loop.run(seconds, done)
    if not ok:
        for person in loop.people:
            if person.state != "in":
                world.violate("stuck", "%d cannot log in" % person.id)
            elif person.open:
                first = next(iter(person.open.values()))
                world.violate("stuck", "%d has %d messages without an answer, the first is %s" % (
                    person.id, len(person.open), first.cid), first)
    loop.run(1.5, lambda: weather.turn())       # the last confirmations
    return ok


def last_look(world, loop, weather):
    """Everybody leaves and comes back once more: nothing new may be waiting."""
    before = world.counts["messages shown"], world.counts["duplicates dropped"]
    for person in loop.people:
        person.drop(world.now(), hard=False, after=0.5)
    loop.run(15 * SCALE, lambda: weather.turn() or settled(world, loop))
    loop.run(1.5, lambda: weather.turn())
    late = world.counts["messages shown"] - before[0]
    if late:
        world.counts["shown only at the last login"] += late
    if world.counts["duplicates dropped"] > before[1]:
        world.counts["confirmed, yet still stored"] += world.counts["duplicates dropped"] - before[1]


def report(world, weather, hosts, seed, seconds):
    kinds = collections.Counter(kind for kind, _, _, _ in world.wrong)
    acked = sum(1 for m in world.messages.values() if m.acks)
    print("chaos: seed %d, %.0f s, %s, %s build%s" % (
        seed, seconds, ARGS.store, ARGS.build, ", %d hosts" % len(hosts) if len(hosts) > 1 else ""))
    for kind in WEIGHTS:
        if weather.done[kind]:
            print("  %-32s %7d" % (MEANING[kind], weather.done[kind]))
    deaths = collections.Counter(re.findall(r"was ended by signal (\d+)|hangs \((no) heartbeat",
                                            "\n".join(host.log_text() for host in hosts)))
    for (number, hang), count in sorted(deaths.items()):
        print("  %-32s %7d" % ("worker deaths: " + ("signal " + number if number else "found hanging"), count))
    print("  %-32s %7d" % ("messages written", len(world.messages)))
    print("  %-32s %7d" % ("messages acknowledged", acked))
    for name in sorted(world.counts):
        print("  %-32s %7d" % (name, world.counts[name]))
    for kind, name in (("lost", "lost"), ("twice", "shown twice"), ("order", "out of order"),
                       ("group order", "groups out of order"), ("numbers", "gaps in group numbers"),
                       ("mid", "wrong mids"), ("unsent", "sent by nobody"), ("unanswered", "never answered")):
        print("  %-32s %7d" % (name, kinds[kind]))
    if world.outages:
        longest = max(world.outages)
        print("  %-32s %7.0f ms of %d (user %d at %.2f s)" % (
            "longest outage by a worker death", longest[0] * 1000, len(world.outages), longest[1], longest[2]))
    for name, calm in (("users of killed hosts back", True), ("... amid other trouble", False)):
        times = sorted(seconds for seconds, _, _, alone in world.returns if alone is calm)
        if times:
            print("  %-32s %7d p50 %.0f ms, max %.0f ms" % (
                name, len(times), times[len(times) // 2] * 1000, times[-1] * 1000))


def explain(world, out, limit):
    shown = collections.Counter()
    for kind, at, text, messages in world.wrong:
        shown[kind] += 1
        if shown[kind] > limit:
            continue
        print("WRONG %s at %.3f s: %s" % (kind, at, text), file=out)
        for message in messages:
            events = sorted(message.trace)
            print("    %s mid %s acks %d: %s" % (message.cid, message.mid, message.acks, "; ".join(
                "%.3f %s" % event for event in events)), file=out)
        if messages:
            times = [event[0] for message in messages for event in message.trace]
            near = [blow for blow in world.blows if min(times) - 1 <= blow[0] <= max(times) + 0.5]
            for blow in near[:40]:
                print("      %8.3f %s" % blow, file=out)
    for kind, count in shown.items():
        if count > limit:
            print("WRONG %s: %d more" % (kind, count - limit), file=out)


def command(seed):
    return "tests/fault/chaos.py --seed %d --seconds %g --store %s --build %s%s" % (
        seed, ARGS.seconds, ARGS.store, ARGS.build, " --hosts %d" % ARGS.hosts if ARGS.hosts > 1 else "")


def look_inside(world, hosts):
    """What the hosts themselves say when everybody is there and nothing moves."""
    for host in hosts:
        done = host.ctl("fsck")
        if done.returncode:
            world.violate("fsck", done.stdout + done.stderr)


def stop_all(world, hosts, cluster):
    for host in hosts:
        try:
            host.stop()
        except AssertionError as why:
            world.violate("daemon", str(why))
        for line in host.log_text().splitlines():
            if re.search(r"signal (6|7|8|11) |Sanitizer|runtime error:", line):
                world.violate("crash", line)
    # A worker that a fault point ends while it stops leaves claims of a life that is over: harmless.
    left = [key for key in cluster.presence() if ":user" in key] if cluster and ARGS.build != "faults" else []
    if left:
        world.violate("claims", "users are still claimed in Redis: %s" % left[:10])


def keep_trace(world, hosts):
    with open(os.path.join(hosts[0].dir, "trace"), "w") as file:
        explain(world, file, 1000)
        for blow in world.blows:
            print("%9.3f %s" % blow, file=file)


def main():
    seed = random.SystemRandom().randrange(1 << 31) if ARGS.seed is None else ARGS.seed
    print("chaos: seed %d; again with: %s" % (seed, command(seed)), flush=True)
    folder = tempfile.mkdtemp(prefix="parley-chaos-")
    own_programs(folder)
    hosts, store, cluster = make_hosts(folder)
    world = World()
    loop = Loop(world, [host.address() for host in hosts])
    code = 1
    try:
        for host in hosts:
            host.start(30)
        populate(hosts[0], loop, seed)
        for host in hosts:
            host.stop()
        weather = Weather(world, hosts, loop.people, store, seed, cluster and cluster.redis)
        for host in hosts:
            weather.start(host)
        world.start = time.monotonic()
        loop.run(ARGS.seconds, lambda: weather.turn())
        if drain(world, loop, weather, PATIENCE):
            last_look(world, loop, weather)
        check_account(world, loop)
        check_numbers(world, loop, store)
        look_inside(world, hosts)
        for person in loop.people:
            person.drop(world.now(), hard=False)
        stop_all(world, hosts, cluster)
        report(world, weather, hosts, seed, ARGS.seconds)
        explain(world, sys.stdout, 5)
        code = 1 if world.wrong else 0
        print("chaos: seed %d: %s" % (seed, "FAILED" if code else "passed"))
    finally:
        if ARGS.keep:
            print("kept: %s %s" % (folder, " ".join(host.dir for host in hosts)))
            keep_trace(world, hosts)
        for host in hosts:
            host.destroy()
            if not ARGS.keep:
                shutil.rmtree(host.dir, ignore_errors=True)
        if cluster:
            cluster.destroy()
        store.destroy()
        if not ARGS.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
