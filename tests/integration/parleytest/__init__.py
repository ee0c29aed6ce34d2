"""The harness of parley's integration tests: a daemon, a database and protocol clients."""

from .client import Client, Dropped, WireError
from .cluster import Cluster, Host, NetCluster, Switch, needs_redis
from .cut import Cut, refused
from .daemon import BUILD_DIR, Daemon, SANITIZED, free_port
from .mariadb import MariaDB
from .netns import Namespace
from .nginx import Nginx
from .poll import SCALE, Stopwatch, holds_for, wait_until
from .redis import Redis, RedisError, Resp, Sentinel
from .wire import *  # noqa: F401,F403  (the message names, meant to be used bare)
