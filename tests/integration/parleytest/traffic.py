"""Pairs of people who talk all the time, and the account of what became of each message."""

import itertools
import threading

from .wire import *  # noqa: F403


class Talker:
    """Sends numbered messages with a cid to one recipient, a window of them open at a time; keeps
    which were sent, which CHAT_ACK settled (0) and which were refused."""

    WINDOW = 32

    def __init__(self, client, to, tag):
        self.client, self.to, self.tag = client, to, tag
        self.sent, self.refused = [], []
        self.stopped = threading.Event()
        self.error = None
        self.thread = threading.Thread(target=self.run, daemon=True)

    def start(self):
        self.thread.start()
        return self

    def settled(self):
        return {ack["cid"]: ack for ack in self.client.of(CHAT_ACK)}

    def run(self):
        try:
            for number in itertools.count():
                if self.stopped.is_set():
                    return
                text = "%s %d" % (self.tag, number)
                self.sent.append(text)
                self.client.chat(self.to, text, cid=text)
                self.client.wait(lambda c: c.eof or self.stopped.is_set() or
                                 len(self.sent) - len(c.of(CHAT_ACK)) < self.WINDOW, 60, "acknowledgements")
                if self.client.eof:
                    return
        except OSError:
            pass                        # its own worker died
        except Exception as why:        # reported by finish()
            self.error = why

    def stop(self):
        self.stopped.set()

    def finish(self, deadline=20):
        """Stops; returns the texts that were acknowledged with errno 0."""
        self.stop()
        self.thread.join(60)
        assert not self.thread.is_alive() and self.error is None, self.error
        if not self.client.eof:
            self.client.wait(lambda c: c.eof or len(c.of(CHAT_ACK)) >= len(self.sent), deadline,
                             "every message of %s is answered" % self.tag)
        acks = self.settled()
        return [text for text in self.sent if acks.get(text, {"errno": -1})["errno"] == 0]


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
