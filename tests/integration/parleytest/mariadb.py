"""A private MariaDB server on loopback, made and thrown away by the tests."""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile

from .daemon import free_port, proc_stat
from .poll import wait_until

_serial = itertools.count(1)


class MariaDB:
    USER, PASSWORD = "parley", "db-secret"

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="parley-db-")
        self.socket = os.path.join(self.dir, "sock")
        self.port = free_port()
        self.process = None
        user = ["--user=root"] if os.getuid() == 0 else []
        self.common = ["--no-defaults", "--datadir=" + os.path.join(self.dir, "data")] + user
        subprocess.run(["mariadb-install-db"] + self.common + [
            "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve", "--force",
            "--innodb-log-file-size=8M", "--innodb-buffer-pool-size=16M"],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.start()
        self.sql("CREATE USER '%s'@'%%' IDENTIFIED BY '%s'; GRANT ALL ON *.* TO '%s'@'%%'"
                 % (self.USER, self.PASSWORD, self.USER))

    @staticmethod
    def available():
        return all(shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
                   for name in ("mariadbd", "mariadb-install-db", "mariadb"))

    def start(self):
        binary = shutil.which("mariadbd", path=os.environ["PATH"] + ":/usr/sbin")
        log = open(os.path.join(self.dir, "log"), "ab")
        self.process = subprocess.Popen([binary] + self.common + [
            "--socket=" + self.socket, "--port=%d" % self.port, "--bind-address=127.0.0.1",
            "--pid-file=" + os.path.join(self.dir, "pid"), "--skip-name-resolve",
            "--innodb-flush-log-at-trx-commit=1", "--innodb-buffer-pool-size=32M",
            "--innodb-log-file-size=8M", "--performance-schema=OFF", "--skip-log-bin",
            "--max-connections=200"], stdout=log, stderr=log, start_new_session=True)
        log.close()
        wait_until(self.answers, 30, "mariadbd answers")

    def answers(self):
        assert self.process.poll() is None, "mariadbd exited: see %s/log" % self.dir
        return subprocess.run(["mariadb", "--no-defaults", "-S", self.socket, "-uroot", "-e", "SELECT 1"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    def sql(self, text, database=""):
        done = subprocess.run(["mariadb", "--no-defaults", "-S", self.socket, "-uroot", "-N", "-B", "-e", text]
                              + ([database] if database else []), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [line.split("\t") for line in done.stdout.splitlines()]

    def database(self):
        """A fresh, empty database; returns its name."""
        name = "parley_%d" % next(_serial)
        self.sql("CREATE DATABASE " + name)
        return name

    def url(self, database):
        return "mysql://%s:%s@127.0.0.1:%d/%s" % (self.USER, self.PASSWORD, self.port, database)

    def stop(self):
        """An orderly shutdown."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)

    def kill(self):
        """kill -9, as a crash."""
        self.process.kill()
        self.process.wait(10)

    def freeze(self):
        """Stops every thread; returns when all stand still."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = "/proc/%d/task" % self.process.pid
        wait_until(lambda: all(proc_stat("%d/task/%s" % (self.process.pid, t))[1] in "Tt" for t in os.listdir(tasks)), 5)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def running(self):
        return self.process is not None and self.process.poll() is None

    def destroy(self):
        if self.running():
            self.thaw()
            self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)
