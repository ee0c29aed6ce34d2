#!/usr/bin/env python3
"""Compares what the documentation lists with what the code has.

    tests/run-docs.py KEYS         (KEYS is what run-keys printed; from the top of the tree)

Configuration keys in etc/parleyd.conf and parleyd.conf(5), message numbers and error codes in
worker/PROTOCOL.md, make targets and files in README.md.
"""
import os
import re
import sys

wrong = []


def text_of(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def complain(text):
    wrong.append(text)


def check_keys(table):
    sample, manual = text_of("etc/parleyd.conf"), text_of("etc/man/parleyd.conf.5")
    blocks = {}
    for block in sample.split("\n\n"):
        m = re.search(r"^#(\w+) = (.*)$", block, re.M)
        if m:
            blocks[m[1]] = (m[2], "reload]" in re.sub(r"\n# ", " ", block))
    entries = dict(re.findall(r"^\.TP\n\.B (\w+)\n((?:(?!\.TP|\.SH).*\n)+)", manual, re.M))
    for name, default, reload in table:
        shown = default.replace("STATE_DIR", "/var/lib/parley") or '""'
        if name not in blocks:
            complain(f"etc/parleyd.conf lacks {name}")
        elif blocks[name] != (shown, reload == "reload"):
            complain(f"etc/parleyd.conf: {name} is {shown}, {reload}; it says {blocks[name]}")
        if name not in entries:
            complain(f"parleyd.conf(5) lacks {name}")
            continue
        said = entries[name].replace("\\-", "-")
        if (f"Default: \\fB{default}\\fR" if default else "Default: empty") not in said:
            complain(f"parleyd.conf(5): {name}: the default is {default or 'empty'}")
        if ("\\fIreload\\fR" in said) != (reload == "reload"):
            complain(f"parleyd.conf(5): {name}: {reload}")
    for name in set(blocks) | set(entries):
        if name not in {row[0] for row in table}:
            complain(f"documented and unknown: {name}")


def check_protocol():
    header, page = text_of("worker/proto.h"), text_of("worker/PROTOCOL.md")
    numbers = {int(n) for n in re.findall(r"\bMSG_\w+ = (\d+)", header)} - {0, 30}
    told = set()
    for row in re.findall(r"^\| ([\d, ]+) \| [A-Z]", page, re.M):
        told |= {int(n) for n in row.split(",")}
    if told != numbers:
        complain(f"PROTOCOL.md: messages {sorted(numbers ^ told)} are in one of table and code only")
    errors = {int(n) for n in re.findall(r"\bE_\w+ = (\d+)", header)}
    section = page.split("\n## Errors\n")[1].split("\n## ")[0]
    if {int(n) for n in re.findall(r"^\| (\d+) \|", section, re.M)} != errors:
        complain("PROTOCOL.md: the error codes are not those of proto.h")


def check_readme():
    readme, makefile = text_of("README.md"), text_of("Makefile")
    for target in set(re.findall(r"(?:`|^|sudo )make ([a-z]+(?:-[a-z]+)?)\b", readme, re.M)):
        if not re.search(rf"^{target}:", makefile, re.M):
            complain(f"README.md: make {target}: no such target")
    for path in set(re.findall(r"`((?:master|worker|shm|sql|client|etc|tests)/[\w./-]*)`", readme)):
        if not os.path.exists(path):
            complain(f"README.md: {path} does not exist")
    for page in set(re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", readme)):
        if not os.path.exists(page):
            complain(f"README.md: link to {page}")


def main():
    with open(sys.argv[1], encoding="utf-8") as f:
        table = [line.rstrip("\n").split("\t") for line in f]
    if not table:
        complain("no table of keys")
    check_keys(table)
    check_protocol()
    if os.path.exists("README.md"):
        check_readme()
    else:
        complain("no README.md")
    print("\n".join(wrong) or f"{len(table)} keys, protocol and README agree with the code")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
