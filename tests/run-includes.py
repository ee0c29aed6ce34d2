#!/usr/bin/env python3
"""Checks who includes whom: the rules of the source tree, one line a folder.

A violation is printed as FILE:LINE and makes the exit status 1. Run from the top of the tree.
"""
import glob
import os
import re
import sys

# Which project headers the files of a folder may include (the longest matching key decides).
MAY = {
    "shm":            ["shm/"],
    "worker/base":    ["worker/base/"],
    "sql":            ["sql/"],
    "worker":         ["worker/", "shm/"],
    "worker/store":   ["worker/", "shm/", "sql/"],         # the one caller of sql/
    "worker/proto":   ["worker/proto.h", "worker/base/"],  # shared with the client
    "master":         ["master/", "worker/worker.h", "worker/ipc.h", "worker/base/", "shm/"],
    "client":         ["client/", "worker/proto.h", "worker/base/"],
}

# Which files see the headers of a library. All other <...> headers are libc's.
LIBRARY = [
    (r"(mysql|mariadb|errmsg\.h|mysqld_error)", ["sql/mysql.c"]),
    (r"sqlite3",                                ["sql/sqlite.c"]),
    (r"hiredis",                                ["worker/redis.c"]),
    (r"jsmn",                                   ["worker/base/json.c"]),
    (r"sodium",                                 ["worker/", "client/"]),
    (r"(histedit|editline|readline)",           ["client/"]),
]
NO_LIBRARY = ["shm/", "worker/base/", "sql/", "master/"]   # beyond what LIBRARY grants by file

INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]')


def rule_for(path):
    """The longest key that the path lies under, or that its stem begins with (worker/store*.c)."""
    keys = [k for k in MAY if path.startswith(k + "/") or
            (path.startswith(k) and os.path.dirname(path) == os.path.dirname(k))]
    return max(keys, key=len)


def allowed(what, grants):
    return any(what == g or (g.endswith("/") and what.startswith(g)) for g in grants)


def check(path):
    wrong = []
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            m = INCLUDE.match(line)
            if not m:
                continue
            kind, what = m.groups()
            where = f"{path}:{number}: includes {kind}{what}{'>' if kind == '<' else kind}"
            if kind == '"':
                key = rule_for(path)
                if not os.path.exists(what):
                    wrong.append(f"{where}, which is no path from the top of the tree")
                elif not allowed(what, MAY[key]):
                    wrong.append(f"{where}; {key} may include {', '.join(MAY[key])}")
                continue
            for pattern, owners in LIBRARY:
                if not re.match(pattern, what):
                    continue
                granted = path in owners or (allowed(path, owners) and not allowed(path, NO_LIBRARY))
                if not granted:
                    wrong.append(f"{where}; only {', '.join(owners)} may")
    return wrong


def main():
    files = sorted(f for d in ("shm", "worker/base", "sql", "worker", "master", "client")
                   for f in glob.glob(f"{d}/*.[ch]"))
    wrong = [w for f in files for w in check(f)]
    for w in wrong:
        print(w)
    print(f"{len(files)} files, {len(wrong)} includes against the rules")
    return 1 if wrong or not files else 0


if __name__ == "__main__":
    sys.exit(main())
