"""Two network namespaces with a cable between them: for what must not come from loopback."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import threading

import pytest

from .client import Client
from .daemon import Daemon

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _usable():
    if os.getuid() != 0 or not shutil.which("ip") or not shutil.which("nsenter"):
        return False
    probe = "ip link add v0 type veth peer name v1"
    return subprocess.run(["unshare", "-n", "sh", "-c", probe], capture_output=True).returncode == 0


def in_network(pid, action):
    """Runs ACTION in the network namespace of process PID; sockets made there stay there."""
    result = []

    def work():
        fd = os.open("/proc/%d/ns/net" % pid, os.O_RDONLY)
        try:
            if _libc.setns(fd, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            result.append(action())
        except BaseException as why:        # carried over to the caller
            result.append(why)
        finally:
            os.close(fd)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


class Namespace:
    """The daemon lives in one namespace (address `inner`), clients in another (`outer`, `other`)."""

    inner, outer, other = "10.88.0.1", "10.88.0.2", "10.88.0.3"
    needed = pytest.mark.skipif(not _usable(), reason="needs root and network namespaces")

    def __enter__(self):
        self.holders = []
        for _ in range(2):
            holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "ip link set lo up; echo; exec sleep 600"],
                                      stdout=subprocess.PIPE)
            holder.stdout.readline()
            self.holders.append(holder)
        server, client = (holder.pid for holder in self.holders)
        self.run(server, "ip link add cable type veth peer name cable netns %d" % client)
        self.run(server, "ip addr add %s/24 dev cable; ip link set cable up" % self.inner)
        self.run(client, "ip addr add %s/24 dev cable; ip addr add %s/24 dev cable; ip link set cable up"
                 % (self.outer, self.other))
        return self

    def __exit__(self, *_):
        for holder in self.holders:
            holder.kill()
            holder.wait()
            holder.stdout.close()

    @staticmethod
    def run(pid, script):
        subprocess.run(["nsenter", "-n", "-t", str(pid), "sh", "-ec", script], check=True)

    def cut(self):
        """Pulls the cable."""
        self.run(self.holders[1].pid, "ip link set cable down")

    def inside(self, action, end=1):
        """Runs ACTION in a namespace (0: the daemon's, 1: the clients'); sockets made there stay."""
        return in_network(self.holders[end].pid, action)

    @contextlib.contextmanager
    def daemon(self, **conf):
        daemon = Daemon(prefix=["nsenter", "-n", "-t", str(self.holders[0].pid)], **conf)
        daemon.write_conf(listen=["%s:%d" % (self.inner, daemon.port), "127.0.0.1:%d" % daemon.port, daemon.unix])
        daemon.address = lambda dialect="plain": daemon.unix
        try:
            daemon.start()
            yield daemon
            daemon.finish()
        finally:
            daemon.destroy()

    def connect(self, daemon, source):
        client = self.inside(lambda: Client((self.inner, daemon.port), source=(source, 0)))
        daemon.clients.append(client)
        return client
