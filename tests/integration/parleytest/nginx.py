"""A private nginx on loopback ports, run with the shipped etc/nginx.conf."""

import os
import re
import shutil
import signal
import subprocess
import tempfile

from .daemon import ROOT, all_pids, free_port, proc_stat, proc_text
from .poll import wait_until

SAMPLE = os.path.join(ROOT, "etc", "nginx.conf")
MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"


class Nginx:
    """In front of SERVERS ("127.0.0.1:6010 weight=2", ...): `port` takes turns, `hash_port` goes by the
    client's address. DIRECTIVES replace what the sample says: proxy_timeout="1s", ..."""

    def __init__(self, servers, **directives):
        self.dir = tempfile.mkdtemp(prefix="parley-nginx-")
        self.conf_path = os.path.join(self.dir, "nginx.conf")
        self.port, self.hash_port = free_port(), free_port()
        self.address, self.hash_address = ("127.0.0.1", self.port), ("127.0.0.1", self.hash_port)
        self.servers, self.directives = list(servers), directives
        self.process = None
        self.write()

    @staticmethod
    def program():
        return shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")

    @classmethod
    def available(cls):
        return cls.program() is not None

    def sample(self):
        """The shipped file with the paths, ports and servers of this instance."""
        with open(SAMPLE) as file:
            text = file.read()

        def put(pattern, new, at_least=1):
            nonlocal text
            text, count = re.subn(pattern, new, text, flags=re.M)
            assert count >= at_least, pattern

        put(r"^user .*;", "user root;" if os.getuid() == 0 else "")
        put(r"^include .*;", "load_module %s;" % MODULE if os.path.exists(MODULE) else "")
        put(r"/run/nginx\.pid|/var/log/nginx", lambda m: self.dir + ("/pid" if "pid" in m[0] else ""), 3)
        put(r"^worker_processes .*;", "worker_processes 2;")
        put(r"^worker_rlimit_nofile .*;", "worker_rlimit_nofile 2048;")
        put(r"worker_connections \d+;", "worker_connections 1024;")
        put(r" backlog=\d+", "", 4)
        put(r"listen (\[::\]:)?(6000|6100)\b", lambda m: "listen %s:%d" % (
            "[::1]" if m[1] else "127.0.0.1", self.port if m[2] == "6000" else self.hash_port), 4)
        put(r"(\n\t\tserver 10\.0\.0\.1\d:6010 .*;)+",
            "".join("\n\t\tserver %s;" % server for server in self.servers), 2)
        for name, value in self.directives.items():
            put(r"^(\s*)%s .*;" % name, r"\g<1>%s %s;" % (name, value))
        return text

    def write(self, text=None, servers=None, **directives):
        """Writes the configuration anew; see reload()."""
        self.servers = list(servers) if servers is not None else self.servers
        self.directives.update(directives)
        with open(self.conf_path, "w") as file:
            file.write(self.sample() if text is None else text)
        return self

    def command(self, *more):
        return [self.program(), "-p", self.dir, "-e", self.dir + "/error.log", "-c", self.conf_path, *more]

    def check(self):
        """`nginx -t`; returns what it says."""
        done = subprocess.run(self.command("-t"), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def start(self):
        with open(self.dir + "/out", "ab") as out:
            self.process = subprocess.Popen(self.command("-g", "daemon off;"), stdin=subprocess.DEVNULL,
                                            stdout=out, stderr=out, start_new_session=True)

        def up():
            assert self.process.poll() is None, "nginx exited:\n" + self.log_text()
            return len(self.workers()) == 2

        wait_until(up, 10, "nginx has its workers")
        return self

    def children(self):
        return [pid for pid in all_pids() if (proc_stat(pid) or (0, "Z", 0))[2] == self.process.pid]

    def workers(self):
        """The worker processes that take new connections."""
        return {pid for pid in self.children() if proc_text(pid, "cmdline").startswith("nginx: worker process")
                and "shutting down" not in proc_text(pid, "cmdline")}

    def reload(self):
        """HUP; returns when new workers have taken over. Connections stay with the old ones."""
        old = self.workers()
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(self.workers() - old) == 2 and not self.workers() & old, 10,
                   "nginx has new workers")

    def stop(self):
        """An orderly end: waits for no client."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)

    def kill(self):
        """kill -9 of every process: of the master first, which would start others."""
        pids = [self.process.pid] + self.children()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(10)
        wait_until(lambda: all((proc_stat(p) or (0, "Z"))[1] == "Z" for p in pids), 5, "nginx is gone")

    def running(self):
        return self.process is not None and self.process.poll() is None

    def log_text(self):
        text = ""
        for name in ("out", "error.log"):
            if os.path.exists(os.path.join(self.dir, name)):
                with open(os.path.join(self.dir, name), errors="replace") as file:
                    text += file.read()
        return text

    def destroy(self):
        if self.running():
            self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)
