"""The harness of parley's integration tests: a daemon, a database and protocol clients."""

from .client import Client, Dropped, WireError
from .daemon import BUILD_DIR, Daemon, SANITIZED, free_port
from .mariadb import MariaDB
from .netns import Namespace
from .poll import SCALE, Stopwatch, holds_for, wait_until
from .wire import *  # noqa: F401,F403  (the message names, meant to be used bare)
