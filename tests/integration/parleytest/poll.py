"""Waiting with a deadline. Nothing in these tests sleeps in the hope that something has happened."""

import os
import time

# Sanitizers slow everything down; a deadline is only there to end a test that has failed.
SCALE = 4.0 if os.environ.get("PARLEY_BUILD") in ("asan", "tsan", "cov") else 1.0


def wait_until(predicate, deadline=5.0, what=None, step=0.005):
    """Returns the first true value of PREDICATE; fails the test after DEADLINE seconds."""
    end = time.monotonic() + deadline * SCALE
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= end:
            name = what or getattr(predicate, "__name__", "condition")
            raise AssertionError("not within %.1f s: %s (last value %r)" % (deadline * SCALE, name, value))
        time.sleep(step)


def holds_for(predicate, seconds, what=None, step=0.01):
    """Fails as soon as PREDICATE is false within SECONDS: for what must not happen in a time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert predicate(), what or "condition did not hold for %.1f s" % seconds
        time.sleep(step)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self):
        self.start = time.monotonic()

    @property
    def seconds(self):
        return time.monotonic() - self.start
