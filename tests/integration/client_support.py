"""Running build/parley for tests: as a filter through pipes, and as a person would, on a pty with a screen."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
import unicodedata

from parleytest import BUILD_DIR, SCALE

PROGRAM = os.path.join(BUILD_DIR, "parley")


def environment(home, **extra):
    env = {k: v for k, v in os.environ.items()
           if not k.startswith(("PARLEY_PASSWORD", "XDG_STATE", "NO_COLOR"))}
    env.update(HOME=str(home), LC_ALL="C.UTF-8", TERM="xterm", TZ="UTC", **extra)
    return env


def run_filter(home, port, name, lines=(), *args, password="pw", timeout=60, **extra):
    """One run with its input given; the CompletedProcess, with .events where --json was among ARGS."""
    if password is not None:
        extra["PARLEY_PASSWORD"] = password
    argv = [PROGRAM, "-p", str(port), *args] + ([name] if name else [])
    done = subprocess.run(argv, input="".join(line + "\n" for line in lines).encode(),
                          capture_output=True, env=environment(home, **extra), timeout=timeout,
                          start_new_session=True)
    done.out, done.err = done.stdout.decode(), done.stderr.decode()
    assert "Sanitizer" not in done.err and "runtime error" not in done.err, done.err
    if "--json" in args:
        done.events = [json.loads(line) for line in done.out.splitlines()]
    return done


class Filter:
    """A filter that stays: lines go in one by one, its output is read as it comes."""

    def __init__(self, home, port, name, *args, password="pw"):
        env = environment(home, PARLEY_PASSWORD=password)
        self.process = subprocess.Popen([PROGRAM, "-p", str(port), *args, name], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
                                        start_new_session=True)
        self.out, self.err = [], []
        for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            threading.Thread(target=self._read, args=(stream, lines), daemon=True).start()

    @staticmethod
    def _read(stream, lines):
        for line in stream:
            lines.append(line.decode().rstrip("\n"))

    def type(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def wait_out(self, pattern, seconds=10):
        end = time.monotonic() + seconds * SCALE
        while not any(re.search(pattern, line) for line in self.out):
            assert time.monotonic() < end, f"no {pattern!r} in {self.out} / {self.err}"
            time.sleep(0.01)

    def end(self, seconds=20):
        self.process.stdin.close()
        return self.process.wait(seconds * SCALE)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Screen:
    """As much of a terminal as libedit and parley use: cursor, erasing, inserting, wrapping, scrolling."""

    def __init__(self, rows=24, cols=80):
        self.rows, self.cols = rows, cols
        self.cells = [[" "] * cols for _ in range(rows)]
        self.row = self.col = 0
        self.wrap = False               # the last column was written: the next character wraps
        self.state = ""

    def feed(self, text):
        for ch in text:
            if self.state:
                self._escape(ch)
            elif ch == "\033":
                self.state = ch
            else:
                self._put(ch)

    def _down(self):
        if self.row < self.rows - 1:
            self.row += 1
        else:
            self.cells.pop(0)
            self.cells.append([" "] * self.cols)

    def _put(self, ch):
        if ch == "\r":
            self.col, self.wrap = 0, False
        elif ch == "\n":
            self._down()
            self.wrap = False
        elif ch == "\b":
            self.col, self.wrap = max(0, self.col - 1), False
        elif ch < " " or ch == "\x7f":
            assert ch in "\a\t\x0f\x0e\0", f"control character {ch!r} on the terminal"
        else:
            width = 2 if unicodedata.east_asian_width(ch) in "WF" else 0 if unicodedata.combining(ch) else 1
            if width == 0:
                return
            if self.wrap or self.col + width > self.cols:
                self.col, self.wrap = 0, False
                self._down()
            self.cells[self.row][self.col] = ch
            if width == 2:
                self.cells[self.row][self.col + 1] = ""
            self.col += width
            if self.col >= self.cols:
                self.col, self.wrap = self.cols - 1, True

    def _escape(self, ch):
        self.state += ch
        if self.state == "\033[" or not (ch.isalpha() or ch in "@~=>"):
            return
        seq, self.state = self.state, ""
        match = re.fullmatch(r"\033\[(\??)([\d;]*)([A-Za-z@])", seq)
        if not match:
            assert seq in ("\033=", "\033>", "\033(B", "\033M"), f"unknown sequence {seq!r}"
            return
        if match[1]:
            return
        args = [int(a or 0) for a in match[2].split(";")]
        self._csi(match[3], args[0], args)

    def _csi(self, final, n, args):
        line = self.cells[self.row]
        if final != "m":
            self.wrap = False
        if final == "A":
            self.row = max(0, self.row - max(1, n))
        elif final == "B":
            self.row = min(self.rows - 1, self.row + max(1, n))
        elif final == "C":
            self.col = min(self.cols - 1, self.col + max(1, n))
        elif final == "D":
            self.col = max(0, self.col - max(1, n))
        elif final == "G":
            self.col = max(1, n) - 1
        elif final == "H":
            self.row = max(1, n) - 1
            self.col = (max(1, args[1]) if len(args) > 1 else 1) - 1
        elif final == "K":
            assert n == 0
            line[self.col:] = [" "] * (self.cols - self.col)
        elif final == "J":
            if n == 2:
                self.cells = [[" "] * self.cols for _ in range(self.rows)]
            else:
                line[self.col:] = [" "] * (self.cols - self.col)
                for row in range(self.row + 1, self.rows):
                    self.cells[row] = [" "] * self.cols
        elif final == "P":
            del line[self.col:self.col + max(1, n)]
            line += [" "] * (self.cols - len(line))
        elif final == "@":
            line[self.col:self.col] = [" "] * max(1, n)
            del line[self.cols:]
        else:
            assert final in "mhl", f"unknown sequence {final!r}"

    def lines(self):
        lines = ["".join(row).rstrip() for row in self.cells]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def __str__(self):
        return "\n".join(self.lines())


class Tty:
    """The client on a pty."""

    def __init__(self, home, port, *args, cols=80, rows=24, under=(), **extra):
        self.screen = Screen(rows, cols)
        self.raw = b""
        self.pending = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            argv = [*under, PROGRAM, "-p", str(port), *args]
            os.execvpe(argv[0], argv, environment(home, **extra))
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
        self.status = None

    def type(self, text):
        os.write(self.fd, text.encode())

    def pump(self, seconds):
        """Reads what comes within SECONDS; False at the end."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            data = b""
        if not data:
            return False
        self.raw += data
        self.pending += data
        text = self.pending.decode("utf-8", "ignore")
        whole = len(self.pending)
        while whole and len(self.pending) - whole < 4:
            try:
                text = self.pending[:whole].decode()
                break
            except UnicodeDecodeError:
                whole -= 1
        self.pending = self.pending[whole:]
        self.screen.feed(text)
        return True

    def wait(self, predicate, what, seconds=10):
        end = time.monotonic() + seconds * SCALE
        while not predicate():
            left = end - time.monotonic()
            assert left > 0, f"never on the screen: {what}\n{self.screen}"
            if not self.pump(min(left, 0.2)):
                assert predicate(), f"the client ended; never on the screen: {what}\n{self.screen}"
                return

    def expect(self, pattern, seconds=10):
        self.wait(lambda: re.search(pattern, str(self.screen), re.M), repr(pattern), seconds)

    def expect_last(self, text, seconds=10):
        """The last line on the screen is TEXT, and the cursor stands behind it."""
        self.wait(lambda: self.screen.lines()[-1:] == [text.rstrip()], repr(text), seconds)

    def settle(self, seconds=0.3):
        """Reads until nothing has come for a while: before something is said to be absent."""
        while True:
            size = len(self.raw)
            if not self.pump(seconds) or len(self.raw) == size:
                return

    def login(self, name, password="pw"):
        self.expect("^Name:")
        self.type(name + "\n")
        self.expect("^Password:")
        self.type(password + "\n")
        self.expect(f"^logged in as {name} ")

    def wait_end(self, seconds=10):
        """The exit status of a client that is to end by itself."""
        end = time.monotonic() + seconds * SCALE
        while self.pump(0.05) or True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                return self.status
            assert time.monotonic() < end, f"the client did not end\n{self.screen}"

    def kill(self):
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.status = -9
        os.close(self.fd)
