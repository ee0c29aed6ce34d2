"""People who talk all the time, and the account of what became of each message."""

import itertools
import threading
import time

from .wire import *  # noqa: F403

FINAL = (MALFORMED, NO_SUCH, NOT_ALLOWED, TOO_LARGE)


class Talker:
    """Sends numbered messages with a cid to one recipient, a window of them open at a time. What is
    answered with errno 7 or 9 is sent again after `retry_ms`, with all that is open behind it, in the
    order first sent, as the protocol asks."""

    WINDOW = 16

    def __init__(self, client, to, tag):
        self.client, self.to, self.tag = client, to, tag
        self.sent, self.open, self.settled = [], [], {}
        self.stopped = threading.Event()
        self.error = None
        self.seen = 0                       # CHAT_ACKs looked at
        self.answered = set()               # of the present round
        self.again_at = None                # when to send everything open again
        self.thread = threading.Thread(target=self.run, daemon=True)

    def start(self):
        self.thread.start()
        return self

    def take(self):
        acks = self.client.by_kind[CHAT_ACK]
        fresh = acks[self.seen:]
        for ack in fresh:
            if ack["errno"] == 0 or ack["errno"] in FINAL:
                self.settled[ack["cid"]] = ack
                self.open = [text for text in self.open if text != ack["cid"]]
            else:
                self.answered.add(ack["cid"])
                if self.again_at is None:
                    self.again_at = time.monotonic() + ack["retry_ms"] / 1000
        self.seen += len(fresh)

    def say(self, text):
        self.client.chat(self.to, text, cid=text)

    def run(self):
        try:
            for number in itertools.count():
                while not self.client.eof:
                    self.take()
                    if self.again_at is not None:
                        if self.answered >= set(self.open) and time.monotonic() >= self.again_at:
                            self.again_at, self.answered = None, set()
                            for text in list(self.open):
                                self.say(text)
                    elif self.stopped.is_set() and not self.open:
                        return
                    elif len(self.open) < self.WINDOW and not self.stopped.is_set():
                        break
                    seen = self.seen
                    try:
                        self.client.wait(lambda c: c.eof or len(c.by_kind[CHAT_ACK]) > seen, 0.05)
                    except AssertionError:
                        pass                # nothing new; look at the clock
                if self.client.eof:
                    return
                text = "%s %d" % (self.tag, number)
                self.sent.append(text)
                self.open.append(text)
                self.say(text)
        except OSError:
            pass                            # its own worker died
        except Exception as why:            # raised again by finish()
            self.error = why

    def done(self):
        """The texts that were acknowledged with errno 0, in the order sent."""
        return [text for text in self.sent if self.settled.get(text, {"errno": -1})["errno"] == 0]

    def finish(self, deadline=30):
        """Stops, waits until everything open is settled, and returns done()."""
        self.stopped.set()
        self.thread.join(deadline)
        assert not self.thread.is_alive(), "%s: unanswered: %r" % (self.tag, self.open[:5])
        assert self.error is None, self.error
        self.take()
        return self.done()


def distinct(chats):
    """Texts in order, a `mid` that was had before dropped (rule 5)."""
    seen, out = set(), []
    for chat in chats:
        if chat["mid"] not in seen:
            seen.add(chat["mid"])
            out.append(chat["msg"])
    return out


def in_order(texts, tag):
    """The numbers that follow TAG in TEXTS are ascending."""
    numbers = [int(text.rsplit(" ", 1)[1]) for text in texts if text.rsplit(" ", 1)[0] == tag]
    return numbers == sorted(numbers)


class Confirmer:
    """Confirms what an `ack` session has been sent, a moment after it came, until the session ends."""

    def __init__(self, client):
        self.client, self.confirmed = client, 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        try:
            while not self.stopped.is_set() and not self.client.eof and not self.client.closed:
                count = self.client.count()
                if count > self.confirmed:
                    self.client.send(RECEIVED, n=count)
                    self.confirmed = count
                try:
                    self.client.wait(lambda c: c.eof or c.count() > self.confirmed, 0.1)
                except AssertionError:
                    pass                    # nothing new
        except OSError:
            pass                            # it ended

    def stop(self):
        self.stopped.set()
        self.thread.join(10)
