"""A server in a process of its own that never outlives, or holds up, its parent.

::

    server = EmbeddedServer(('::1', 0, 0, 0), build_func, *build_args)
    server.address ... server.stop()

`EmbeddedService` does it for anything with ``serve_forever()``, `EmbeddedServer` and
`EmbeddedSSLServer` for Degu's own. What happens in the new process is in `degu.child`;
this is the parent's side, which never imports `degu.server` or `ssl`.

Which start method is used
    `EmbeddedServer.start_method` if it is set. Otherwise 'fork' where that is safe, on
    Linux in a process with a single thread: nothing has to be picklable then. In a
    process with more threads 'forkserver' where there is one, else 'spawn'.
    The default of `multiprocessing` has no say in it.

Threads in the parent
    One, named ``degu-embed``, for all servers together, and only while there is one
    whose log records or end somebody wants to hear of. It does not count above: it is
    stopped before a fork and started again after it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import multiprocessing.context
import os
import signal
import socket
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Self

from degu import child, package, parent
from degu.address import (
    Address,
    check_address,
    format_url,
    listen,
)
from degu.child import Plan, ServerJob, ServiceJob
from degu.errors import DiedError, shown
from degu.limits import EMBED_OPTIONS, SERVER_OPTIONS, check_options
from degu.package import Packing, ShadowMain
from degu.parent import PROCESSES, Core, Ending, defer_signals

__all__ = [
    "EmbeddedSSLServer",
    "EmbeddedServer",
    "EmbeddedService",
    "start_server",
    "start_sslserver",
]

_numbers = itertools.count(1)

_SERVICE_OPTIONS = {k: v for k, v in EMBED_OPTIONS.items() if k != "workers"}

STOP_GRACE = 5.0
"""Seconds that requests in flight have at `stop()`, unless told otherwise."""


# --- starting ---------------------------------------------------------------------


def _choose_method(wanted: str | None) -> tuple[str, str]:
    """The start method, and why it is that."""
    available = multiprocessing.get_all_start_methods()
    if wanted is not None:
        if wanted not in available:
            raise ValueError(
                f"start_method: expected None or one of {', '.join(available)}, "
                f"got {shown(wanted)}"
            )
        return wanted, "as start_method says"
    threads = _count_threads()
    if "fork" in available and sys.platform != "darwin" and threads == 1:
        return "fork", "this process has one thread"
    method = "forkserver" if "forkserver" in available else "spawn"
    if "fork" in available and sys.platform != "darwin":
        return method, f"this process has {threads} threads, which a fork would break"
    return method, "the default of this system"


def _count_threads() -> int:
    """How many threads this process has, those of C libraries included (Linux).

    The one that watches over a server's own process does not count.
    """
    harmless = child.watcher is not None and child.watcher.is_alive()
    try:
        return len(os.listdir("/proc/self/task")) - harmless
    except OSError:
        return threading.active_count() - harmless


@contextlib.contextmanager
def _quiet_start(method: str) -> Iterator[None]:
    """Start one process at a time, undisturbed by Ctrl-C and by warnings."""
    main = sys.modules["__main__"]
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    with contextlib.ExitStack() as stack:
        if config.get("daemon"):
            # Such a process may have no children, lest they outlive it. Ours do not.
            config["daemon"] = False
            stack.callback(config.__setitem__, "daemon", True)
        if hasattr(signal, "pthread_sigmask"):
            if method != "fork":
                # It would let SIGINT through again when it is started later.
                from multiprocessing import resource_tracker

                resource_tracker.ensure_running()
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
            if method == "forkserver":
                _start_forkserver()
        if method == "fork":
            # Either there is one thread, or the user chose to fork anyway.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings(
                "ignore", r"This process .* is multi-threaded", DeprecationWarning
            )
        else:
            sys.modules["__main__"] = ShadowMain(main)
            stack.callback(sys.modules.__setitem__, "__main__", main)
        yield


def _start_forkserver() -> None:
    """Start it with SIGCHLD let through: it would hear of no end of a process else."""
    from multiprocessing import forkserver

    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _warm_up(method: str) -> None:
    """Have a fork server that is yet to start import what every server needs.

    One that the program set up for itself is left alone.
    """
    if method != "forkserver":
        return
    from multiprocessing import forkserver

    server = getattr(forkserver, "_forkserver", None)
    running = getattr(server, "_forkserver_pid", True) is not None
    if not running and getattr(server, "_preload_modules", None) == ["__main__"]:
        forkserver.set_forkserver_preload(["__main__", "degu.embed", "degu.server"])


def _own_pidfd() -> Connection | None:
    """A pidfd of this process, as something that travels by every start method."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return Connection(os.pidfd_open(os.getpid()), writable=False)
    except OSError:
        return None


def _start(
    job: ServiceJob | ServerJob,
    options: dict[str, Any],
    wanted: str | None,
    name: str,
    adopt: Callable[[Core, Any], object] = lambda core, process: None,
) -> tuple[Core, Any]:
    """Start a process for `job`, wait for its address, and have it adopted."""
    if package.importing_main:
        raise package.MainReentered
    for old in list(parent.alive):
        if not old.is_alive():
            old.finish()
    core = None
    try:
        with defer_signals():
            core, process = _launch(job, options, wanted, name)
        core.await_start(options["start_timeout"])
        with defer_signals():
            adopt(core, process)
            if options["log"]:
                parent.reader.watch(core)
    except BaseException:
        if core is not None:
            core.abort()
        raise
    return core, process


def _launch(
    job: ServiceJob | ServerJob, options: dict[str, Any], wanted: str | None, name: str
) -> tuple[Core, Any]:
    """Start the process."""
    core = None
    try:
        with parent.starting, parent.reader.pause():
            method, reason = _choose_method(wanted)
            ours, theirs = multiprocessing.Pipe()
            pidfd = _own_pidfd()
            plan = _make_plan(job, options)
            if method == "fork":
                plan = plan._replace(forked=True)
            else:
                plan = plan._replace(job=Packing(job, method, reason))
            process = PROCESSES[method](
                target=_find_target(plan),
                args=(plan, theirs, pidfd),
                name=f"{name}-{next(_numbers)}",
                daemon=True,
            )
            core = Core(process, ours, method)
            parent.alive.add(core)
            parent.stop_at_exit()
            _warm_up(method)
            try:
                with _quiet_start(method):
                    core.begin()
            finally:
                theirs.close()
                if pidfd is not None:
                    pidfd.close()
    except BaseException:
        if core is not None:
            core.abort()
        raise
    return core, process


def _make_plan(job: ServiceJob | ServerJob, options: dict[str, Any]) -> Plan:
    plan = Plan(
        job,
        os.getpid(),
        restart=options["restart"] is not None,
        workers=options["workers"],
    )
    if options["log"]:
        plan = plan._replace(levels=_find_levels())
    if not isinstance(job, ServerJob) or isinstance(job.address, socket.socket):
        return plan
    if isinstance(job.address, str):
        plan = plan._replace(path=job.address)
    if plan.is_supervised:
        known = ("backlog", "backlog"), ("socket_mode", "mode")
        given = {to: job.options[at] for at, to in known if at in job.options}
        plan = plan._replace(listen=partial(listen, job.address, **given))
    return plan


def _find_target(plan: Plan) -> Callable[[Plan, Connection, Any], None]:
    """What runs in the process."""
    if not plan.is_supervised:
        return child.run
    from degu import supervisor

    return supervisor.run


def _find_levels() -> dict[str, int]:
    """The levels of all loggers that have one."""
    levels = {"": logging.root.level}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            levels[name] = logger.level
    return levels


# --- what users see ---------------------------------------------------------------


class EmbeddedService:
    """Any server in a process of its own: ``build_func(*build_args)`` makes it there.

    `build_func` is a callable, or its name as ``'module:attribute'``. What it returns
    needs ``serve_forever()`` and an address (``address``, ``server_address`` or
    ``getsockname()``); with ``shutdown()``, or ``shutdown(grace)``, it can be stopped
    gently. All servers of the standard library's `socketserver` will do.

    Options:

    `start_timeout`
        Seconds until the address has to be known (10.0).
    `restart`
        ``'on-failure'``: start it again, after a growing pause of 0.05 to 5 seconds,
        when it ended by a signal or an exit code other than zero. The address stays;
        `pid` is the one of a process that watches over it. Not on Windows.
    `log`
        Whether log records of the process are handled in this one (True).

    Raises whatever `build_func` raised, with the traceback of there as its cause;
    `DiedError` if the process ended without a word; `StartTimeoutError`; `TypeError`
    or `ValueError` for wrong arguments.

    It ends with this process, however this process ends, and when the object is
    garbage collected.
    """

    start_method: str | None = None
    """How to start processes: 'fork', 'forkserver', 'spawn', or None to choose."""

    def __init__(
        self,
        build_func: Callable[..., Any] | str,
        *build_args: Any,
        **options: Any,
    ) -> None:
        _check_build_func(build_func)
        self.build_func: Any = build_func
        self.build_args = build_args
        self.options = options
        _take_options(options)
        # One that makes its own socket can't share it.
        check_options(options, _SERVICE_OPTIONS)
        self._begin(ServiceJob(build_func, build_args))

    def _begin(self, job: ServiceJob | ServerJob) -> None:
        options = _take_options(self.options)
        name = type(self).__name__
        _start(job, options, self.start_method, name, self._adopt)

    def _adopt(self, core: Core, process: Any) -> None:
        self._core, self._process = core, process
        self._finalizer = weakref.finalize(self, core.close)
        self._finalizer.atexit = False

    def __repr__(self) -> str:
        if self._core.mine():
            state = "" if self.is_alive() else ", ended"
        else:
            state = ", of the process that started it"
        return f"<{type(self).__name__} {self._core.address!r}, pid {self.pid}{state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        if kind is None or issubclass(kind, Exception):
            self.stop()
        else:
            self.terminate()

    @property
    def address(self) -> Any:
        """The address that the server is bound to.

        Raises `DiedError` when the server has ended without being told to.
        """
        if not self._core.asked and self._core.mine() and not self.is_alive():
            self._core.finish()
            code = self._core.exitcode
            raise DiedError(
                f"the server at {self._core.address!r} has ended: "
                f"{child.describe_exit(code)}",
                code,
            )
        return self._core.address

    @property
    def process(self) -> multiprocessing.Process:
        """The `multiprocessing.Process` that the server runs in."""
        process: multiprocessing.Process = self._process
        return process

    @property
    def pid(self) -> int:
        """The id of the process."""
        pid: int = self._process.pid
        return pid

    @property
    def sentinel(self) -> int:
        """A descriptor to wait on: it is readable when the process has ended.

        It may be given to any event loop, and is valid as long as this object is.
        """
        end: int = self._core.end
        return end

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._core.is_alive()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end of the process, at most `timeout` seconds.

        Returns its exit code, negative for a signal; None if it still runs, and where
        nobody knows it, as in a program that ignores SIGCHLD.
        """
        if not self._core.wait_end(timeout):
            return None
        self._core.finish()
        return self._core.exitcode

    def on_exit(self, callback: Callable[[int | None], object]) -> None:
        """Have ``callback(exitcode)`` called when the process ends, for any reason.

        It is called in a thread of Degu's, or in the one that stopped the server; at
        once if the process has ended already. What it raises is logged.
        """
        core = self._core
        with core.lock:
            if not core.finished:
                core.callbacks.append(callback)
                callback = _do_nothing
        callback(core.exitcode)
        parent.reader.watch(core)

    def terminate(self) -> None:
        """End the process now: SIGTERM, and SIGKILL if it defies that for 2 seconds.

        May be called again; `process.exitcode` can be read afterwards.
        """
        self._core.terminate()

    def stop(self, grace: float = STOP_GRACE) -> Ending:
        """End the process gently, within `grace` seconds for requests in flight.

        New connections are refused and idle ones closed at once; `atexit` runs in the
        process. If it does not end, it is terminated, then killed.

        Returns how it went: ``'stopped'``, everything was answered; ``'cut'``, it ended
        by itself, but requests were cut off at the end of the grace period;
        ``'terminated'``; ``'killed'``; or ``'exited'``, it had ended before.

        Raises `ValueError` for a grace below zero, `TypeError` if it is not a number.
        """
        if isinstance(grace, bool) or not isinstance(grace, int | float):
            raise TypeError(f"grace: expected seconds, got {shown(grace)}")
        if not 0 <= grace < float("inf"):
            raise ValueError(f"grace: expected 0 or more seconds, got {grace!r}")
        return self._core.stop(grace)


class EmbeddedServer(EmbeddedService):
    """A `degu.server.Server` in a process of its own.

    The server is ``Server(address, build_func(*build_args), **options)``, made in the
    new process. With None for `build_func` the one argument after it is the app. The
    options of `EmbeddedService` are taken out of `options` before, and one more:

    `workers`
        How many processes serve the address (1, at most `degu.limits.MAX_WORKERS`).
        With more than one, `build_func` is called in each of them, they share nothing
        but the listening socket, and `process` and `pid` are those of a process that
        watches over them. The end of one without being told to is the end of all, or
        with `restart` it is replaced. Not on Windows.

    Raises what `EmbeddedService` raises, and `OSError` if `address` can't be bound.
    """

    _scheme = "http"

    def __init__(
        self,
        address: Address | socket.socket,
        build_func: Callable[..., Any] | str | None,
        *build_args: Any,
        **options: Any,
    ) -> None:
        self.build_func = build_func
        self.build_args = build_args
        self.options = options
        self._begin(_make_job(None, address, build_func, build_args, options))

    @property
    def url(self) -> str:
        """The URL of the server's root, as ``'http://[::1]:8080/'``."""
        return format_url(self._scheme, self._core.address)


class EmbeddedSSLServer(EmbeddedServer):
    """A `degu.server.SSLServer` in a process of its own.

    `sslconfig` is a dict as `degu.tls` explains it; the context is made in the new
    process. All else is as with `EmbeddedServer`.
    """

    _scheme = "https"

    def __init__(
        self,
        sslconfig: dict[str, Any],
        address: Address | socket.socket,
        build_func: Callable[..., Any] | str | None,
        *build_args: Any,
        **options: Any,
    ) -> None:
        _check_sslconfig(sslconfig)
        self.sslconfig = sslconfig
        self.build_func = build_func
        self.build_args = build_args
        self.options = options
        self._begin(_make_job(sslconfig, address, build_func, build_args, options))


def start_server(
    address: Address | socket.socket,
    build_func: Callable[..., Any] | str | None,
    *build_args: Any,
    **options: Any,
) -> tuple[multiprocessing.Process, Any]:
    """Start a server in a new process; return ``(process, address)``.

    The function form of `EmbeddedServer`: the server runs until
    ``process.terminate()``, or this process ends.
    """
    job = _make_job(None, address, build_func, build_args, options)
    return _start_plain(job, options)


def start_sslserver(
    sslconfig: dict[str, Any],
    address: Address | socket.socket,
    build_func: Callable[..., Any] | str | None,
    *build_args: Any,
    **options: Any,
) -> tuple[multiprocessing.Process, Any]:
    """Start a TLS server in a new process; return ``(process, address)``."""
    _check_sslconfig(sslconfig)
    job = _make_job(sslconfig, address, build_func, build_args, options)
    return _start_plain(job, options)


def _start_plain(
    job: ServerJob, options: dict[str, Any]
) -> tuple[multiprocessing.Process, Any]:
    method = EmbeddedServer.start_method
    core, process = _start(job, _take_options(options), method, "EmbeddedServer")
    return process, core.address


def _make_job(
    sslconfig: dict[str, Any] | None,
    address: Address | socket.socket,
    build_func: Any,
    build_args: tuple[Any, ...],
    options: dict[str, Any],
) -> ServerJob:
    """Check the arguments of a server as far as it can be done here."""
    if not isinstance(address, socket.socket):
        check_address(address)
    if build_func is not None:
        _check_build_func(build_func)
    elif len(build_args) != 1:
        raise TypeError(
            "build_func: None takes one argument after it, the app; "
            f"got {len(build_args)}: {shown(build_args)}"
        )
    elif not (callable(build_args[0]) or _is_name(build_args[0])):
        raise TypeError(f"app: expected a callable, got {shown(build_args[0])}")
    rest = {k: v for k, v in options.items() if k not in EMBED_OPTIONS}
    check_options(rest, SERVER_OPTIONS)
    return ServerJob(address, build_func, build_args, rest, sslconfig)


def _check_build_func(build_func: object) -> None:
    if isinstance(build_func, str):
        if not _is_name(build_func):
            raise ValueError(
                f"build_func: expected 'module:attribute', got {shown(build_func)}"
            )
    elif not callable(build_func):
        raise TypeError(f"build_func: expected a callable, got {shown(build_func)}")


def _is_name(target: object) -> bool:
    """Whether `target` is of the form 'module:attribute'."""
    if not isinstance(target, str):
        return False
    module, colon, attribute = target.partition(":")
    words = [*module.split("."), *attribute.split(".")]
    return bool(colon) and all(word.isidentifier() for word in words)


def _check_sslconfig(sslconfig: object) -> None:
    if not isinstance(sslconfig, dict):
        raise TypeError(
            "sslconfig: expected a dict (a context can't be sent to a new process), "
            f"got {shown(sslconfig)}"
        )


def _take_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are ours, checked; the others are not looked at."""
    restart = options.get("restart")
    if isinstance(restart, str) and restart != "on-failure":
        raise ValueError(
            f"restart: expected None or 'on-failure', got {shown(restart)}"
        )
    ours = {name: value for name, value in options.items() if name in EMBED_OPTIONS}
    found = check_options(ours, EMBED_OPTIONS)
    if (restart is not None or found["workers"] > 1) and not hasattr(os, "fork"):
        raise ValueError("restart, workers: not on this system, they need os.fork()")
    return found


def _do_nothing(_exitcode: int | None) -> None:
    pass
