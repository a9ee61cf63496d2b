"""The pytest plugin: fixtures, leak checks, and servers that explain failed tests.

It is imported by every run of pytest where Degu is installed, so it costs nothing
until it is used: it imports pytest alone, has no autouse fixture, and everything it
adds to options, markers and ini files begins with ``degu_``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from degu.testing.fixtures import ServerFactory, SharedServers, SSLServerFactory
    from degu.testing.pki import TempPKI
    from degu.testing.servers import SharedServer, TempServer, TempService

_WORKER_KEY = "degu_shared_servers"
_shared_key = pytest.StashKey["SharedServers"]()
_marks_key = pytest.StashKey[Any]()


# --- Options ------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, all of them off."""
    group = parser.getgroup("degu", "servers for tests")
    group.addoption(
        "--degu-leaks",
        action="store_true",
        default=None,
        help="check every test for what it leaves behind (ini: degu_leaks)",
    )
    parser.addini("degu_leaks", "check every test for leaks", "bool", False)
    parser.addini("degu_leaks_exclude", "kinds of leaks not to look for", "args", [])
    parser.addini("degu_leaks_allow", "patterns of what may stay", "linelist", [])
    parser.addini("degu_leaks_grace", "seconds until it is a leak", "string", "")
    parser.addini("degu_grace", "seconds to stop a server in", "string", "1.0")
    parser.addini(
        "degu_shared_servers",
        "servers for all workers: name = module:app, or name = module:build()",
        "linelist",
        [],
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "degu_leaks(enabled=True, only=None, exclude=(), grace=2.0, allow=()): "
        "check that the test leaves nothing behind (degu.testing.leaks.check_leaks)",
    )


# --- Fixtures to override -----------------------------------------------------------


@pytest.fixture(scope="session")
def degu_address() -> Any:
    """Where servers listen: an address, or a callable that makes one for each."""
    return ("127.0.0.1", 0)


@pytest.fixture(scope="session")
def degu_options() -> dict[str, Any]:
    """Options that every server gets, unless it is given others."""
    return {}


@pytest.fixture(scope="session")
def temp_pki(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TempPKI]:
    """A `degu.testing.TempPKI`, one for the session, as keys take their time."""
    from degu.testing.pki import TempPKI

    # A killed run leaves its files where pytest will remove them.
    with TempPKI(folder=tmp_path_factory.getbasetemp()) as pki:
        yield pki


# --- Fixtures that start servers ----------------------------------------------------


def _make_factory(request: pytest.FixtureRequest) -> ServerFactory:
    from degu.testing.fixtures import ServerFactory

    return ServerFactory(
        request.getfixturevalue("degu_address"),
        grace=_read_seconds(request.config, "degu_grace", 1.0),
        options=request.getfixturevalue("degu_options"),
    )


def _make_ssl_factory(request: pytest.FixtureRequest) -> SSLServerFactory:
    from degu.testing.fixtures import SSLServerFactory

    return SSLServerFactory(
        request.getfixturevalue("temp_pki"),
        request.getfixturevalue("degu_address"),
        grace=_read_seconds(request.config, "degu_grace", 1.0),
        options=request.getfixturevalue("degu_options"),
    )


@pytest.fixture
def temp_server(request: pytest.FixtureRequest) -> Iterator[ServerFactory]:
    """Start servers, each in its own process: ``temp_server(app)``.

    ``temp_server(build_func, *args)``, ``temp_server()`` for expectations alone, and
    ``temp_server.faulty('reset', after=100)``. All are stopped after the test.
    """
    with _make_factory(request) as factory:
        yield factory


@pytest.fixture
def temp_ssl_server(request: pytest.FixtureRequest) -> Iterator[SSLServerFactory]:
    """Start servers with TLS and client certificates; else like `temp_server`."""
    with _make_ssl_factory(request) as factory:
        yield factory


@pytest.fixture(scope="session")
def session_temp_server(request: pytest.FixtureRequest) -> Iterator[ServerFactory]:
    """Like `temp_server`; the servers live until the end of the session."""
    with _make_factory(request) as factory:
        yield factory


@pytest.fixture(scope="session")
def session_temp_ssl_server(
    request: pytest.FixtureRequest,
) -> Iterator[SSLServerFactory]:
    """Like `temp_ssl_server`; the servers live until the end of the session."""
    with _make_ssl_factory(request) as factory:
        yield factory


@pytest.fixture
def temp_proxy(temp_server: ServerFactory) -> Callable[..., TempServer]:
    """Start a reverse proxy in front of a server: ``temp_proxy(server)``."""
    return temp_server.proxy


@pytest.fixture
def temp_service(temp_server: ServerFactory) -> Callable[..., TempService]:
    """Start any server with ``serve_forever()``: ``temp_service(build, *args)``."""
    return temp_server.service


@pytest.fixture(scope="session")
def shared_temp_server(request: pytest.FixtureRequest) -> Any:
    """Get a server that all xdist workers share: ``shared_temp_server('api')``.

    The ini option ``degu_shared_servers`` says what it is. It runs as a child of the
    process that was started first, and as long as that.
    """
    from degu.testing.fixtures import connect

    config = request.config
    described = getattr(config, "workerinput", {}).get(_WORKER_KEY)
    if described is None:
        return _find_shared(config).get
    servers: dict[str, SharedServer] = {}

    def get(name: str) -> SharedServer:
        if name not in described:
            raise LookupError(f"no shared server {name!r}: {', '.join(described)}")
        if name not in servers:
            servers[name] = connect(described[name])
        return servers[name]

    return get


def _read_seconds(config: pytest.Config, name: str, default: float) -> float:
    text = config.getini(name)
    try:
        return float(text or default)
    except ValueError:
        raise pytest.UsageError(f"{name}: expected seconds, got {text!r}") from None


# --- Servers for all workers --------------------------------------------------------


def _find_shared(config: pytest.Config) -> SharedServers:
    from degu.testing.fixtures import SharedServers, parse_plan

    if _shared_key not in config.stash:
        try:
            plan = parse_plan(config.getini("degu_shared_servers"))
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
        config.stash[_shared_key] = SharedServers(plan)
    return config.stash[_shared_key]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Start the shared servers, before there are threads that talk to workers."""
    config = session.config
    if config.pluginmanager.hasplugin("dsession") and config.getini(
        "degu_shared_servers"
    ):
        _find_shared(config).start()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker where the shared servers are."""
    if _shared_key in node.config.stash:
        from degu.testing.fixtures import describe_shared

        servers = node.config.stash[_shared_key].start()
        node.workerinput[_WORKER_KEY] = describe_shared(servers)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the shared servers."""
    if _shared_key in config.stash:
        config.stash[_shared_key].stop()


# --- Leaks --------------------------------------------------------------------------


@pytest.fixture
def leak_check(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Check that the test leaves nothing behind, in it and in running servers.

    Its value is `degu.testing.leaks.check_leaks`, to check a part of the test. The
    marker ``degu_leaks`` has the options; it and the ini option ``degu_leaks`` ask
    for this fixture too.
    """
    from degu.testing import leaks

    options = _read_leak_options(request)
    if not options.pop("enabled"):
        yield leaks.check_leaks
        return
    try:
        with leaks.check_leaks(processes=_list_processes(), **options):
            yield leaks.check_leaks
    except leaks.LeakError as error:
        # The stack of the check says nothing about the leak.
        pytest.fail(f"{type(error).__name__}: {error}", pytrace=False)


def _read_leak_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    config = request.config
    options: dict[str, Any] = {
        "enabled": True,
        "exclude": config.getini("degu_leaks_exclude"),
        "allow": config.getini("degu_leaks_allow"),
    }
    if config.getini("degu_leaks_grace"):
        options["grace"] = _read_seconds(config, "degu_leaks_grace", 2.0)
    for marker in reversed(list(request.node.iter_markers("degu_leaks"))):
        options["enabled"] = all(marker.args)
        options.update(marker.kwargs)
    return options


def _list_processes() -> list[Any]:
    report = sys.modules.get("degu.testing.report")
    return [] if report is None else report.list_processes()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Put the leak check around everything else that lives for one test only."""
    names = getattr(item, "fixturenames", None)
    if names is None:
        return
    marked = item.get_closest_marker("degu_leaks") is not None
    if not (marked or "leak_check" in names or _checks_all(item.config)):
        return
    if "leak_check" in names:
        names.remove("leak_check")
    defs = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    wide = [
        name for name in names if name in defs and defs[name][-1].scope != "function"
    ]
    last = max((names.index(name) for name in wide), default=-1)
    names.insert(last + 1, "leak_check")


def _checks_all(config: pytest.Config) -> bool:
    return bool(config.getoption("degu_leaks") or config.getini("degu_leaks"))


# --- Failed tests -------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Remember what the servers have done before this test."""
    report = sys.modules.get("degu.testing.report")
    item.stash[_marks_key] = {} if report is None else report.take_marks()


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Have the servers' log records in this test's section, and not in the next's."""
    try:
        return (yield)
    finally:
        for server in _list_processes():
            server.drain_log()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say in a failed test's report, and only there, what its servers did."""
    outcome = yield
    report = sys.modules.get("degu.testing.report")
    if outcome.failed and report is not None:
        outcome.sections += report.build_sections(item.stash.get(_marks_key, {}))
    return outcome
