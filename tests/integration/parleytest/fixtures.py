"""The fixtures, shared by tests/integration and tests/fault. See tests/README.md."""

import pytest

from .cluster import Cluster
from .daemon import Daemon
from .redis import Redis, Sentinel
from .mariadb import MariaDB
from .nginx import Nginx

RAN = pytest.StashKey()


def pytest_configure(config):
    config.addinivalue_line("markers", "timed: promises a time; run without another test beside it")
    config.addinivalue_line("markers", "long: takes longer than `make check` has; run by `make check-long`")


def pytest_addoption(parser):
    try:
        parser.addoption("--long", action="store_true", help="run the tests marked `long` too")
    except ValueError:
        pass                        # both conftests import this, when both folders are run


def pytest_collection_modifyitems(config, items):
    if config.getoption("--long") or "long" in (config.getoption("-m") or ""):
        return
    skip = pytest.mark.skip(reason="long: run by make check-long")
    for item in items:
        if "long" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Keeps whether a test failed, and shows the daemon's log with a failure."""
    outcome = yield
    report = outcome.get_result()
    item.stash.setdefault(RAN, {})[report.when] = report
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            for daemon in value if isinstance(value, list) else [value]:
                if isinstance(daemon, Daemon):
                    report.sections.append(("parleyd log", daemon.log_tail(60, " debug: ")))
        for daemon in item.stash.get(MADE, []):
            report.sections.append(("parleyd log", daemon.log_tail(60, " debug: ")))


MADE = pytest.StashKey()


@pytest.fixture
def make_daemon(request):
    """make_daemon(key=value, ...) starts a daemon of the test's own; it is checked at the end."""
    made = request.node.stash.setdefault(MADE, [])

    def make(start=True, **kw):
        daemon = Daemon(**kw)
        made.append(daemon)
        if start:
            daemon.start()
        return daemon

    yield make
    failed = request.node.stash.get(RAN, {}).get("call")
    trouble = None
    for daemon in made:
        try:
            if failed is not None and failed.failed:
                daemon.allow(".")
            daemon.finish()
        except AssertionError as why:
            trouble = trouble or why
    if trouble and not (failed is not None and failed.failed):
        raise trouble


@pytest.fixture(scope="module")
def shared(request):
    """One daemon for a module, made with the keys in the module's DAEMON; see `daemon`."""
    holder = {"daemon": None}

    def get():
        if holder["daemon"] is None:
            keys = dict(getattr(request.module, "DAEMON", {}))
            holder["daemon"] = Daemon(**keys).start()
        return holder["daemon"]

    def drop():
        daemon, holder["daemon"] = holder["daemon"], None
        if daemon is not None:
            daemon.finish()

    get.drop = drop
    yield get
    drop()


@pytest.fixture
def daemon(shared, request):
    """The module's daemon. After each test it has to be in good health, and its clients are closed."""
    daemon = shared()
    yield daemon
    ran = request.node.stash.get(RAN, {}).get("call")
    failed = ran is None or ran.failed
    try:
        if not failed:
            daemon.check_health()
    except AssertionError:
        failed = True
        raise
    finally:
        for client in daemon.clients:
            client.close()
        daemon.clients.clear()
        if failed or not daemon.alive():        # whatever state it is in, the next test gets a new one
            daemon.allow(".")
            try:
                shared.drop()
            except AssertionError:
                pass


@pytest.fixture
def make_nginx():
    """make_nginx(servers, directive=value, ...) starts an nginx in front of them."""
    if not Nginx.available():
        pytest.fail("nginx is not installed (make deps installs it)")
    made = []

    def make(servers, start=True, **directives):
        made.append(Nginx(servers, **directives))
        return made[-1].start() if start else made[-1]

    yield make
    for nginx in made:
        nginx.destroy()


@pytest.fixture(scope="session")
def mariadb_server():
    if not MariaDB.available():
        pytest.fail("mariadb-server is not installed (make deps installs it)")
    server = MariaDB()
    yield server
    server.destroy()


@pytest.fixture
def mariadb(mariadb_server):
    """The server, running at the start of each test whatever the test before did to it."""
    if not mariadb_server.running():
        mariadb_server.start()
    yield mariadb_server
    if mariadb_server.running():
        mariadb_server.thaw()
    else:
        mariadb_server.start()


@pytest.fixture
def make_redis():
    """make_redis(key=value, ...) starts a Redis of the test's own, make_redis(sentinel=REDIS, ...) a Sentinel."""
    made = []

    def make(sentinel=None, **kw):
        made.append(Sentinel(sentinel, **kw) if sentinel else Redis(**kw))
        return made[-1]

    yield make
    for server in made:
        server.destroy()


def end_cluster(cluster, failed):
    """Stops it; what is wrong with a cluster of a failed test is no news."""
    for host in cluster.hosts if failed else ():
        host.allow(".")
    try:
        cluster.finish()
    except AssertionError:
        if not failed:
            raise


@pytest.fixture
def make_cluster(request, mariadb):
    """make_cluster(hosts=2, key=value, ...) starts a cluster of the test's own; it is checked at the end."""
    made, hosts = [], request.node.stash.setdefault(MADE, [])

    def make(kind=Cluster, **kw):
        cluster = kind(mariadb, **kw)
        made.append(cluster)
        hosts.extend(cluster.hosts)
        return cluster

    yield make
    ran = request.node.stash.get(RAN, {}).get("call")
    for cluster in made:
        end_cluster(cluster, ran is None or ran.failed)


@pytest.fixture(scope="module")
def shared_cluster(request, mariadb_server):
    """One cluster for a module, made with the keys in the module's CLUSTER; see `cluster`."""
    holder = {"cluster": None}

    def get():
        if holder["cluster"] is None:
            holder["cluster"] = Cluster(mariadb_server, **dict(getattr(request.module, "CLUSTER", {})))
        return holder["cluster"]

    def drop(failed=True):
        cluster, holder["cluster"] = holder["cluster"], None
        if cluster is not None:
            end_cluster(cluster, failed)

    get.drop = drop
    yield get
    drop(False)


@pytest.fixture
def cluster(shared_cluster, request, mariadb):
    """The module's cluster, whole and in good health before and after each test."""
    cluster = shared_cluster()
    request.node.stash.setdefault(MADE, []).extend(cluster.hosts)
    yield cluster
    ran = request.node.stash.get(RAN, {}).get("call")
    failed = ran is None or ran.failed
    try:
        if not failed:
            cluster.check_health()
    except AssertionError:
        failed = True
        raise
    finally:
        for host in cluster:
            for client in host.clients:
                client.close()
            host.clients.clear()
        if failed:
            shared_cluster.drop()
