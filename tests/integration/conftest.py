import os
import sys

sys.path.insert(0, os.path.dirname(__file__))

from parleytest.fixtures import *  # noqa: E402,F401,F403

# Until hosts find each other: PARLEY_CLUSTER=1 collects what several of them are tested with.
collect_ignore_glob = [] if os.environ.get("PARLEY_CLUSTER") else [
    "test_cluster_%s.py" % name for name in ("chat", "unique", "redis", "admin", "net")]
