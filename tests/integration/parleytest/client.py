"""A protocol client written from the protocol document alone.

One thread (the hub) reads the sockets of all clients, so that no client is a slow reader unless a
test makes it one. Every frame that arrives is checked against what holds for all frames; what
breaks a rule is kept in `violations`, which expect() and the daemon's teardown raise.
"""

import collections
import itertools
import os
import re
import select
import socket
import struct
import threading
import time

from .poll import SCALE, wait_until
from .wire import *  # noqa: F403
from .wire import NAME, NUMBER, REPLY, dump, load

SLACK = 4096            # a frame that the server makes may be this much over max_frame
NEVER_CLASSIC = ("token", "mid", "ts", "cid", "n")
END_OF_FRAME = re.compile(rb"[\n\0]")
RETRY_MS_WITH = (7, 9)


class WireError(AssertionError):
    """The server sent what the protocol does not allow."""


class Dropped(AssertionError):
    """The connection ended while a frame was waited for."""


class Frame(dict):
    """One parsed frame: `kind` is its message name, `raw` its bytes, `end` its terminator, `at`
    the monotonic time of its arrival, `chunk` the number of the read that completed it."""

    kind = raw = end = at = chunk = None


class _Hub:
    def __init__(self):
        self.changed = threading.Condition()
        self.clients = {}
        self.epoll = None
        self.pid = None

    def start(self):
        if self.pid != os.getpid():
            self.pid = os.getpid()
            self.clients = {}
            self.epoll = select.epoll()
            threading.Thread(target=self.run, daemon=True, name="hub").start()

    def add(self, client):
        with self.changed:
            self.start()
            self.clients[client.sock.fileno()] = client
            self.epoll.register(client.sock.fileno(), select.EPOLLIN)

    def drop(self, client):
        with self.changed:
            fd = client.sock.fileno()
            if self.clients.get(fd) is client:
                del self.clients[fd]
                self.epoll.unregister(fd)

    def run(self):
        while True:
            events = self.epoll.poll()
            with self.changed:
                for fd, _ in events:
                    client = self.clients.get(fd)
                    if client is not None and not client._read():
                        del self.clients[fd]
                        self.epoll.unregister(fd)
                self.changed.notify_all()


HUB = _Hub()
_serial = itertools.count(1)


class Client:
    """A connection. `address` is (host, port) or the path of a unix socket."""

    def __init__(self, address, dialect="plain", end=b"\n", reading=True, rcvbuf=None,
                 max_frame=65536, source=None, timeout=10):
        self.dialect, self.end, self.max_frame = dialect, end, max_frame
        family = (socket.AF_UNIX if isinstance(address, str)
                  else socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(timeout * SCALE)
        if rcvbuf:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        if source:
            self.sock.bind(source)
        self.sock.connect(address)
        if family != socket.AF_UNIX:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.local = self.sock.getsockname()
        self.frames, self.pending = [], collections.deque()
        self.by_kind = collections.defaultdict(list)
        self.violations, self.chunks = [], []
        self.eof = self.reset = self.closed = False
        self.may_be_cut_off = False                 # the test lets the server end inside a frame
        self.account = self.ack = self.id = self.name = None
        self.counts = {CHAT: 0, GROUP_CHAT: 0}      # chat messages so far, offline ones included
        self._partial = b""
        self.reading = False
        if reading:
            self.resume()

    # -- reading ---------------------------------------------------------------------------------

    def _read(self):
        """Called by the hub, under its lock. False ends the reading."""
        try:
            data = os.read(self.sock.fileno(), 1 << 18)
        except BlockingIOError:
            return True
        except OSError:
            self.reset = self.eof = True
            return False
        if not data:
            self.eof = True
            if self._partial and not self.may_be_cut_off:
                self.violations.append("the stream ended inside a frame: %r" % self._partial[:200])
            return False
        self.chunks.append((time.monotonic(), data))
        self._feed(data)
        return True

    def _feed(self, data):
        data = self._partial + data
        start = 0
        for match in END_OF_FRAME.finditer(data):
            self._frame(data[start:match.start()], match.group())
            start = match.end()
        self._partial = data[start:]

    def _frame(self, raw, end):
        try:
            frame = Frame(load(raw))
            frame.kind = NAME[self.dialect].get(frame.get("msgid"), frame.get("msgid"))
        except (ValueError, UnicodeDecodeError, TypeError) as why:
            self.violations.append("no frame: %s: %r" % (why, raw[:300]))
            return
        frame.raw, frame.end, frame.at = raw, end, time.monotonic()
        frame.chunk = len(self.chunks) - 1
        self._check(frame)
        self._count(frame)
        self.frames.append(frame)
        self.by_kind[frame.kind].append(frame)
        self.pending.append(frame)

    def _count(self, frame):
        if frame.kind in self.counts:
            self.counts[frame.kind] += 1
        elif frame.kind == LOGIN_ACK:
            for item in frame.get("offlinemsg", ()):
                number = (load(item.encode()) if isinstance(item, str) else item).get("msgid")
                if NAME[self.dialect].get(number) in self.counts:
                    self.counts[NAME[self.dialect][number]] += 1

    def count(self, kind=None):
        return self.counts[kind] if kind else sum(self.counts.values())

    def _check(self, frame):
        def wrong(text):
            self.violations.append("%s: %r" % (text, frame.raw[:300]))

        if len(frame.raw) > self.max_frame + SLACK:
            wrong("a frame of %d bytes" % len(frame.raw))
        if not isinstance(frame.kind, str):
            wrong("an unknown msgid")
        if "errno" in frame:
            number = frame["errno"]
            if type(number) is not int or not 0 <= number <= 10:
                wrong("an errno that is not in the table")
            elif number != 0:
                text = frame.get("errmsg")
                if not isinstance(text, str) or len(text) < 4:
                    wrong("an errno without a sentence in errmsg")
                if number in RETRY_MS_WITH and self.dialect == "plain" and (
                        type(frame.get("retry_ms")) is not int or frame["retry_ms"] < 0):
                    wrong("errno %d without retry_ms" % number)
        if frame.kind == ERROR and frame.get("errno") in (None, 0):
            wrong("an ERROR without an errno")
        if self.dialect == "classic":
            for name in NEVER_CLASSIC:
                if name in frame:
                    wrong("`%s` towards a classic session" % name)
            if frame.kind in (ERROR, PRESENCE, SESSION_END, CHAT_ACK, ADD_FRIEND_ACK,
                              CREATE_GROUP_ACK, ADD_GROUP_ACK, LOGOUT_ACK):
                wrong("%s towards a classic session" % frame.kind)
        elif frame.kind in (CHAT, GROUP_CHAT):
            self._check_chat(frame, wrong)
        elif frame.kind == LOGIN_ACK and frame.get("errno") == 0:
            for item in frame.get("offlinemsg", []):
                self._check_chat(item, wrong)

    def _check_chat(self, chat, wrong):
        other = "to" if chat.get("msgid") == NUMBER["plain"][CHAT] else "groupid"
        for name, kind in (("id", int), ("name", str), (other, int), ("msg", str), ("time", str),
                           ("ts", int), ("mid", str)):
            if type(chat.get(name)) is not kind:
                wrong("a chat message without a proper `%s`" % name)
        if "req" in chat:
            wrong("`req` is never carried")

    def pause(self):
        """Stops reading: the client becomes a slow reader."""
        if self.reading:
            HUB.drop(self)
            self.reading = False

    def resume(self):
        if not self.reading:
            self.reading = True
            HUB.add(self)

    def _raise_violations(self):
        if self.violations:
            raise WireError("; ".join(self.violations[:3]))

    def wait(self, predicate, deadline=5.0, what="condition"):
        """Waits for PREDICATE(self), looked at after every read of the hub."""
        end = time.monotonic() + deadline * SCALE
        with HUB.changed:
            while True:
                value = predicate(self)
                if value:
                    return value
                left = end - time.monotonic()
                if left <= 0:
                    raise AssertionError("client %s: not within %.1f s: %s" % (self, deadline * SCALE, what))
                HUB.changed.wait(min(left, 0.5))

    def expect(self, kind, deadline=5.0, **members):
        """Takes the first unseen frame of that kind with those members, waiting for it."""
        found = []

        def look(_):
            for frame in self.pending:
                if frame.kind == kind and all(frame.get(k) == v for k, v in members.items()):
                    found.append(frame)
                    self.pending.remove(frame)
                    return True
            return self.eof or bool(self.violations)

        what = "%s %s" % (kind, members or "")
        self.wait(look, deadline, what)
        self._raise_violations()
        if not found:
            raise Dropped("the connection ended while waiting for %s; unseen: %r"
                          % (what, list(self.pending)[-5:]))
        return found[0]

    def expect_next(self, deadline=5.0):
        """Takes the next unseen frame, whatever it is."""
        self.wait(lambda _: self.pending or self.eof, deadline, "any frame")
        self._raise_violations()
        with HUB.changed:
            if not self.pending:
                raise Dropped("the connection ended while waiting for a frame")
            return self.pending.popleft()

    def of(self, *kinds):
        """Every frame of those kinds that ever arrived, seen or not."""
        with HUB.changed:
            if len(kinds) == 1:
                return list(self.by_kind[kinds[0]])
            return [frame for frame in self.frames if frame.kind in kinds]

    def chats(self, kind=None):
        """All chat messages in the order in which a person saw them, offline ones included."""
        kinds = (kind,) if kind else (CHAT, GROUP_CHAT)
        numbers = [NUMBER[self.dialect][k] for k in kinds]
        out = []
        with HUB.changed:
            for frame in self.frames:
                if frame.kind in kinds:
                    out.append(frame)
                elif frame.kind == LOGIN_ACK and frame.get("errno") == 0:
                    for item in frame["offlinemsg"]:
                        chat = load(item.encode()) if isinstance(item, str) else item
                        if chat.get("msgid") in numbers:
                            out.append(chat)
        return out

    def texts(self, kind=None):
        return [chat["msg"] for chat in self.chats(kind)]

    def wait_texts(self, texts, deadline=10.0, kind=None):
        """Waits for as many chat messages as TEXTS and asserts that they are these, in this order."""
        texts = list(texts)
        try:
            self.wait(lambda _: self.count(kind) >= len(texts) or self.eof, deadline,
                      "%d chat messages" % len(texts))
        except AssertionError as late:
            raise AssertionError("%s; has %d" % (late, self.count(kind))) from None
        self._raise_violations()
        assert self.texts(kind) == texts

    def wait_closed(self, deadline=5.0, clean=True):
        """Waits for the end of the stream; CLEAN: without a reset."""
        self.wait(lambda _: self.eof, deadline, "the end of the connection")
        self._raise_violations()
        if clean:
            assert not self.reset, "the connection was reset"

    # -- writing ---------------------------------------------------------------------------------

    def number(self, kind):
        return NUMBER[self.dialect][kind] if isinstance(kind, str) else kind

    def frame(self, kind, **members):
        """The bytes of a request with its terminator."""
        return dump(dict({"msgid": self.number(kind)}, **members)) + self.end

    def send(self, kind, **members):
        self.send_raw(self.frame(kind, **members))

    def send_raw(self, data):
        self.sock.sendall(data)

    def request(self, kind, deadline=5.0, **members):
        """Sends a request and returns its reply, recognised by `req`."""
        if self.dialect == "classic":
            self.send(kind, **members)
            return self.expect(REPLY[kind], deadline)
        members.setdefault("req", "r%d" % next(_serial))
        self.send(kind, **members)
        return self.reply(kind, members["req"], deadline)

    def reply(self, kind, req, deadline=5.0):
        found = []

        def look(_):
            for frame in self.pending:
                if frame.get("req") == req and frame.kind in (REPLY.get(kind), CHAT_ACK, ERROR):
                    found.append(frame)
                    self.pending.remove(frame)
                    return True
            return self.eof or bool(self.violations)

        self.wait(look, deadline, "the reply to %s %r" % (kind, req))
        self._raise_violations()
        if not found:
            raise Dropped("the connection ended before the reply to %s; unseen: %r"
                          % (kind, list(self.pending)[-5:]))
        return found[0]

    def ok(self, kind, deadline=5.0, **members):
        """A request that has to succeed."""
        reply = self.request(kind, deadline, **members)
        assert reply.kind == REPLY[kind] and reply.get("errno", 0) == 0, reply
        return reply

    def refused(self, kind, errno, deadline=5.0, **members):
        """A request that has to be refused with that errno (or one of them), in its own reply."""
        reply = self.request(kind, deadline, **members)
        wanted = errno if isinstance(errno, tuple) else (errno,)
        assert reply.kind == REPLY[kind] and reply.get("errno") in wanted, reply
        return reply

    def ping(self, deadline=5.0):
        """A barrier: all that was sent on this connection before has been taken up."""
        req = "p%d" % next(_serial)
        self.send(PING, req=req)
        return self.expect(PONG, deadline, req=req)

    def chat(self, to, text, **members):
        to = getattr(to, "id", to)
        self.send(CHAT, **dict({"toid" if self.dialect == "classic" else "to": to, "msg": text}, **members))

    def chat_acked(self, to, text, cid=None, deadline=5.0, **members):
        """Sends with a cid and returns the CHAT_ACK."""
        cid = cid or "c%d" % next(_serial)
        self.chat(to, text, cid=cid, **members)
        return self.expect(CHAT_ACK, deadline, cid=cid)

    def chat_delivered(self, to, text, deadline=15.0):
        """Sends until it goes straight to its receiver: after trouble a host looks into the store first,
        and what comes meanwhile takes that way."""
        wait_until(lambda: self.chat_acked(to, text, deadline=deadline)["state"] == "delivered", deadline,
                   "a message is delivered straight")

    def group_chat(self, group, text, **members):
        self.send(GROUP_CHAT, **dict({"groupid": group, "msg": text}, **members))

    def group_chat_acked(self, group, text, cid=None, deadline=5.0, **members):
        cid = cid or "c%d" % next(_serial)
        self.group_chat(group, text, cid=cid, **members)
        return self.expect(CHAT_ACK, deadline, cid=cid)

    def login(self, account, deadline=5.0, **members):
        """Logs in and keeps the LOGIN_MSG_ACK in `ack`."""
        if not {"id", "name"} & members.keys():
            members["id"] = account.id
        if not {"password", "token"} & members.keys():
            members["password"] = account.password
        self.ack = self.request(LOGIN, deadline, **members)
        assert self.ack.kind == LOGIN_ACK and self.ack["errno"] == 0, self.ack
        self.account, self.id, self.name = account, self.ack["id"], self.ack["name"]
        return self.ack

    # -- ending ----------------------------------------------------------------------------------

    def shutdown(self):
        """Half-closes: the server reads the end of the stream."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass                                    # the other side was first

    def close(self):
        if not self.closed:
            self.pause()
            self.closed = True
            self.sock.close()

    def abort(self):
        """Vanishes with a reset, whatever is still unread."""
        if not self.closed:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return "<%s %s%s>" % (self.dialect, self.name or self.local, " (ended)" if self.eof else "")
