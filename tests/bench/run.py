#!/usr/bin/env python3
"""Measures the server on this machine and writes build/bench/report.md and results.jsonl.

    tests/bench/run.py [--only pairs,latency,...] [--seconds S] [--rounds N]      (make bench)

Throughput, times and CPU are reported as ratios to a bare relay (tests/bench/relay.c), and to brokers
where they are installed, that run in turn with the daemon in the same minute on the same core: single
numbers say more about the machine than about the server. The server has the first CPU, the load the
last, where there are two. All is on loopback, so the kernel's work for both ends is in every number.
"""
import argparse
import os
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from kit import chat, sessions, wide                            # noqa: E402
from kit.measure import Cell                                    # noqa: E402
from kit.report import Report                                   # noqa: E402
from kit.servers import CPUS, OUT, Accounts                     # noqa: E402

SCENARIOS = {**chat.SCENARIOS, **wide.SCENARIOS, **sessions.SCENARIOS}


def numbers(text):
    return [int(n) for n in text.split(",")]


def arguments():
    ap = argparse.ArgumentParser(description="Measures the server on this machine.", epilog="Scenarios: " + "; ".join(
        f"{name}: {run.__doc__}" for name, run in SCENARIOS.items()))
    ap.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, comma-separated (all)")
    ap.add_argument("--seconds", type=float, default=1.2, help="of each measurement (1.2)")
    ap.add_argument("--rounds", type=int, default=3, help="of servers taking turns (3)")
    ap.add_argument("--clients", type=numbers, default=[100, 1000, 10000], help="of pairs (100,1000,10000)")
    ap.add_argument("--members", type=numbers, default=[10, 100, 1000, 10000], help="of groups (10,100,1000,10000)")
    ap.add_argument("--sessions", type=numbers, default=[10000, 100000, 500000],
                    help="idle ones, as far as the machine holds them (10000,100000,500000)")
    ap.add_argument("--limit", type=float, default=600, help="seconds after which no further scenario begins (600)")
    ap.add_argument("--best", action="store_true", help="each server's best run instead of medians: for a machine "
                    "that others use as well")
    ap.add_argument("--no-brokers", action="store_true", help="do not compare with mosquitto and others")
    a = ap.parse_args()
    Cell.best = a.best
    a.how = f"The best of {a.rounds} rounds" if a.best else f"Medians of {a.rounds} rounds, ratios within each round"
    unknown = [name for name in a.only.split(",") if name not in SCENARIOS]
    if unknown:
        ap.error(f"no such scenario: {', '.join(unknown)}")
    return a


def cpu_model():
    with open("/proc/cpuinfo") as f:
        return next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "unknown CPU")


def main():
    a = arguments()
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    rep = Report(OUT, ["# Measured", "", f"{time.strftime('%Y-%m-%d')}, {len(CPUS)} CPUs ({cpu_model()}), Linux "
                       f"{os.uname().release}, loopback; server on one CPU and load on another unless said otherwise."])
    acc, failed = Accounts(), 0
    a.deadline = time.monotonic() + a.limit
    for name in a.only.split(","):
        if time.monotonic() > a.deadline:
            rep.skipped(f"{name}: the time was up (--limit)")
            continue
        print(f"-- {name}: {SCENARIOS[name].__doc__} (load average {os.getloadavg()[0]:.1f})", flush=True)
        rep.scenario, began = name, time.monotonic()
        try:
            SCENARIOS[name](rep, acc, a)
        except Exception as e:                      # the other scenarios are worth having
            failed += 1
            print(f"   failed: {e}", flush=True)
            rep.section(name, f"**Failed:** {e}")
        print(f"   {time.monotonic() - began:.0f} s", flush=True)
        rep.write()
    for leftover in os.listdir(OUT):
        if os.path.isdir(f"{OUT}/{leftover}"):
            shutil.rmtree(f"{OUT}/{leftover}", ignore_errors=True)
    print(rep.text())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
