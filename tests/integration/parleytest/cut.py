"""A line between two programs that can be cut, frozen and delayed: a TCP forwarder in a thread."""

import collections
import errno
import selectors
import socket
import struct
import threading
import time

from .daemon import free_port
from .netns import in_network

RESET = struct.pack("ii", 1, 0)
READ = 1 << 16
HELD = 1 << 22          # bytes on their way in one direction; past it the sender is not read


class _Way:
    """One direction of a connection: read from `source`, written to `sink` when it is due."""

    def __init__(self, source, sink, up):
        self.source, self.sink, self.up = source, sink, up
        self.queue, self.held = collections.deque(), 0      # (when due, bytes)
        self.eof = self.done = False


class Cut:
    """Listens on `address` and forwards to TARGET, (host, port) or a unix path.

    pass_() lets everything through; freeze() stops reading, connections stand and new ones are
    taken by the kernel only; cut() ends all connections with a reset and refuses new ones;
    delay(ms) holds every byte back so long, each way. `up` is towards the target. LISTEN makes the
    listening socket (in another network, say)."""

    def __init__(self, target, host="127.0.0.1", listen=None):
        self.target, self.host, self.make = target, host, listen or self.make_listener
        self.listener = self.make(host, free_port())
        self.address = self.listener.getsockname()[:2]
        self.frozen_up = self.frozen_down = self.refuse = False
        self.delay_s = 0.0
        self.ways, self.accepted, self.bytes_up, self.bytes_down = [], 0, 0, 0
        self.lock = threading.Condition()
        self.round, self.ended = 0, False
        self.bell, self.ring_end = socket.socketpair()
        self.bell.setblocking(False)
        self.thread = threading.Thread(target=self.run, daemon=True, name="cut")
        self.thread.start()

    @staticmethod
    def make_listener(host, port):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(128)
        return sock

    @property
    def port(self):
        return self.address[1]

    # -- the line --------------------------------------------------------------------------------

    def change(self, **values):
        """Sets VALUES and returns when the thread goes by them."""
        with self.lock:
            for name, value in values.items():
                setattr(self, name, value)
            seen = self.round
            self.ring_end.send(b"x")
            self.lock.wait_for(lambda: self.round > seen or self.ended, 10)

    def pass_(self):
        self.change(frozen_up=False, frozen_down=False, refuse=False, delay_s=0.0)

    heal = pass_

    def freeze(self, up=True, down=True):
        self.change(frozen_up=up, frozen_down=down)

    def cut(self):
        self.change(refuse=True)

    def delay(self, ms):
        self.change(delay_s=ms / 1000)

    def drop(self):
        """Ends the connections of now, and takes new ones."""
        self.cut()
        self.change(refuse=False)

    def connections(self):
        with self.lock:
            return sum(1 for way in self.ways if way.up)

    def close(self):
        if not self.ended:
            with self.lock:
                self.ended = True
                self.ring_end.send(b"x")
            self.thread.join(10)
            self.bell.close()
            self.ring_end.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # -- the thread ------------------------------------------------------------------------------

    def run(self):
        try:
            while not self.ended:
                self.turn()
        finally:
            with self.lock:
                self.end_all()
                if self.listener:
                    self.listener.close()
                self.ended = True
                self.lock.notify_all()

    def turn(self):
        with self.lock:
            self.apply()
            self.round += 1
            self.lock.notify_all()
            events, timeout = self.wanted()
        with selectors.EpollSelector() as waiting:
            for sock, mask in events.items():
                waiting.register(sock, mask)
            ready = waiting.select(timeout)
        with self.lock:
            for key, mask in ready:
                if key.fileobj is self.bell:
                    self.hear()
                elif key.fileobj is self.listener:
                    self.accept()
                elif mask & selectors.EVENT_READ:
                    self.read(key.fileobj)
            for way in list(self.ways):
                self.write(way)
            self.sweep()

    def apply(self):
        if self.refuse and self.listener:
            self.listener.close()
            self.listener = None
            self.end_all()
        elif not self.refuse and not self.listener:
            self.listener = self.make(self.host, self.address[1])

    def frozen(self, way):
        return self.frozen_up if way.up else self.frozen_down

    def wanted(self):
        """What to wait for, and how long."""
        events = {self.bell: selectors.EVENT_READ}
        if self.listener and not (self.frozen_up and self.frozen_down):
            events[self.listener] = selectors.EVENT_READ
        now, timeout = time.monotonic(), None
        for way in self.ways:
            if self.frozen(way):
                continue
            if not way.eof and way.held < HELD:
                events[way.source] = events.get(way.source, 0) | selectors.EVENT_READ
            if way.queue and way.queue[0][0] <= now:
                events[way.sink] = events.get(way.sink, 0) | selectors.EVENT_WRITE
            elif way.queue:
                left = way.queue[0][0] - now
                timeout = left if timeout is None else min(timeout, left)
        return events, timeout

    def hear(self):
        try:
            while self.bell.recv(256):
                pass
        except BlockingIOError:
            pass

    def accept(self):
        client, _ = self.listener.accept()
        server = None
        try:
            unix = isinstance(self.target, str)
            server = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
            server.settimeout(2)
            server.connect(self.target)
        except OSError:                     # what the client sees is what it would see without us
            server.close()
            self.end(client)
            return
        for sock in (client, server):
            sock.setblocking(False)
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.accepted += 1
        self.ways += [_Way(client, server, True), _Way(server, client, False)]

    def read(self, sock):
        for way in self.ways:
            if way.source is sock and not way.eof and not self.frozen(way) and way.held < HELD:
                try:
                    data = sock.recv(READ)
                except BlockingIOError:
                    continue
                except OSError:
                    self.end_pair(way)
                    return
                way.eof = not data
                way.queue.append((time.monotonic() + self.delay_s, data))
                way.held += len(data)
                if way.up:
                    self.bytes_up += len(data)
                else:
                    self.bytes_down += len(data)

    def write(self, way):
        while way.queue and way.queue[0][0] <= time.monotonic() and not self.frozen(way):
            due, data = way.queue.popleft()
            try:
                if not data:
                    way.done = True
                    way.sink.shutdown(socket.SHUT_WR)
                    return
                sent = way.sink.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as why:
                if why.errno != errno.ENOTCONN or data:
                    self.end_pair(way)
                return
            way.held -= sent
            if sent < len(data):
                way.queue.appendleft((due, data[sent:]))
                return

    def sweep(self):
        """Pairs that have ended both ways."""
        for way in [way for way in self.ways if way.up and way.done]:
            if any(w.source is way.sink and w.done for w in self.ways):
                self.end_pair(way, hard=False)

    def end_pair(self, way, hard=True):
        self.ways = [w for w in self.ways if w.source not in (way.source, way.sink)]
        for sock in (way.source, way.sink):
            self.end(sock, hard)

    def end_all(self):
        for way in [way for way in self.ways if way.up]:
            self.end_pair(way)

    @staticmethod
    def end(sock, hard=True):
        if hard and sock.family == socket.AF_INET:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            except OSError:
                pass
        sock.close()


def listener_in(pid):
    """For Cut(listen=...): sockets that listen in the network namespace of process PID."""
    def make(host, port):
        return in_network(pid, lambda: Cut.make_listener(host, port))

    return make


def refused(address):
    """True where nobody listens at ADDRESS."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(address) == errno.ECONNREFUSED
