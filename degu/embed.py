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

import atexit
import contextlib
import itertools
import logging
import multiprocessing
import multiprocessing.context
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, Self

from degu import child, package
from degu.address import (
    Address,
    Identity,
    check_address,
    format_url,
    listen,
    unlink_socket,
)
from degu.child import Plan, ServerJob, ServiceJob
from degu.errors import DiedError, StartError, StartTimeoutError, shown
from degu.guard import descendants
from degu.package import Packing, ShadowMain

__all__ = [
    "EmbeddedSSLServer",
    "EmbeddedServer",
    "EmbeddedService",
    "start_server",
    "start_sslserver",
]

log = logging.getLogger("degu.embed")

START_TIMEOUT = 10.0
"""Seconds that a server has to report its address, unless told otherwise."""

STOP_GRACE = 5.0
"""Seconds that requests in flight have at `stop()`, unless told otherwise."""

STOP_MARGIN_SECONDS = 0.25
"""How long after the grace period a server may be silent before it is terminated."""

EXIT_SECONDS = 5.0
"""How long a server that said goodbye may take for `atexit`."""

KILL_SECONDS = 2.0
"""How long a terminated server may take before it is killed."""

PARENT_EXIT_GRACE = 1.0
"""The grace period of `stop()` when the interpreter ends."""

THREAD_SECONDS = 0.25
"""How long to wait for our own thread before a fork."""

ORPHAN_SECONDS = 1.0
"""How long to wait for processes that a server left to us (if we are PID 1)."""

EMBED_OPTIONS = ("start_timeout", "restart", "log")

Ending = Literal["stopped", "cut", "terminated", "killed", "exited"]
"""How `stop()` went: all requests were answered; some were cut off at the end of the
grace period; the process had to be terminated, or killed; or it had ended before."""


# --- the parent's view of one process ---------------------------------------------


class _Process:
    """Makes `join()` and its kin of a multiprocessing.Process sure and complete.

    They work from several threads, do not wait for the server's own children, and
    tell the `_Core`, which clears up.
    """

    _core: _Core | None = None

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end, at most `timeout` seconds."""
        if self._core is None or self._core.finished:
            super().join(timeout)  # type: ignore[misc]
        elif self._core.wait_end(timeout):
            self._core.finish()

    def is_alive(self) -> bool:
        """Whether the process runs."""
        if self._core is None or self._core.finished:
            return bool(super().is_alive())  # type: ignore[misc]
        return self._core.is_alive()

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self._core is not None:
            self._core.note_strays()
        super().terminate()  # type: ignore[misc]

    def kill(self) -> None:
        """Send SIGKILL."""
        if self._core is not None:
            self._core.note_strays()
        super().kill()  # type: ignore[misc]

    @property
    def exitcode(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        if self._core is not None and not self._core.is_alive():
            self._core.finish()
        code: int | None = super().exitcode  # type: ignore[misc]
        return code


class _SpawnProcess(  # type: ignore[misc]
    _Process,
    multiprocessing.context.SpawnProcess,
    multiprocessing.Process,
):
    pass


if sys.platform == "win32":  # pragma: no cover
    _PROCESSES: dict[str, Any] = {"spawn": _SpawnProcess}
else:

    class _ForkProcess(  # type: ignore[misc]
        _Process,
        multiprocessing.context.ForkProcess,
        multiprocessing.Process,
    ):
        pass

    class _ForkServerProcess(  # type: ignore[misc]
        _Process,
        multiprocessing.context.ForkServerProcess,
        multiprocessing.Process,
    ):
        pass

    _PROCESSES = {
        "fork": _ForkProcess,
        "forkserver": _ForkServerProcess,
        "spawn": _SpawnProcess,
    }


class _Core:
    """One started process: its pipe, its end, what it left behind.

    Apart from the object that the user holds, so that this one can be watched while
    that one can be collected.
    """

    def __init__(self, process: Any, conn: Connection, method: str) -> None:
        self.process = process
        self.conn: Connection | None = conn
        self.method = method
        self.owner = os.getpid()
        self.lock = threading.RLock()
        self.pidfd: int | None = None
        self.end: Any = None
        self.address: Any = None
        self.path: str | None = None
        self.identity: Identity | None = None
        self.callbacks: list[Callable[[int | None], object]] = []
        self.strays: list[int] = []  # pidfds
        self.asked = False
        self.silent = False
        self.finished = False
        self.exiting: bool | None = None
        self.unstoppable = False
        self.ending: Ending | None = None
        self.exitcode: int | None = None

    def __del__(self) -> None:
        for number in [self.pidfd, *self.strays]:
            if number is not None and os.getpid() == self.owner:
                os.close(number)

    def begin(self) -> None:
        """Start the process."""
        self.process.start()
        self.process._core = self
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self.pidfd = os.pidfd_open(self.process.pid)
        # The sentinel would be held open by what the server forks.
        self.end = self.process.sentinel if self.pidfd is None else self.pidfd

    # --- its end

    def mine(self) -> bool:
        """Whether this is the process that started it, and not a fork of that."""
        return os.getpid() == self.owner

    def is_alive(self) -> bool:
        """Whether the process runs."""
        if not self.mine():
            raise RuntimeError("a server belongs to the process that started it")
        return not (self.finished or self.end is None or self.wait_end(0))

    def wait_end(self, timeout: float | None) -> bool:
        """Wait for the end of the process at most `timeout` seconds."""
        return self.finished or bool(wait([self.end], timeout))

    def finish(self) -> None:
        """Clear up after a process that has ended, once."""
        if self.end is None or not self.mine():
            return
        # Before the lock, which our thread may be waiting for.
        _reader.forget(self)
        with self.lock:
            if self.finished:
                return
            self.finished = True
            messages = self.drain()
            pid = self.process.pid
            if self.is_unreaped(pid):
                # Nobody else can have this number before the process is reaped.
                with contextlib.suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
            self.process.join()
            self.exitcode = self.process.exitcode
            self.clear_up(pid)
            self.process = None
        for message in [] if self.silent else messages:
            self.hear(message)
        _alive.discard(self)
        for callback in self.callbacks:
            self.call(callback)

    def is_unreaped(self, pid: int) -> bool:
        """Whether `pid` still names our child."""
        if not hasattr(os, "waitid") or self.method == "forkserver":
            return False
        try:
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, pid, options) is not None
        except OSError:
            return False

    def clear_up(self, pid: int) -> None:
        """Remove what is left of the process: children, socket file, pipe."""
        for number in self.strays:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(number, signal.SIGKILL)
            os.close(number)
        self.strays.clear()
        if self.path is not None:
            unlink_socket(self.path, self.identity)
        if self.conn is not None:
            self.conn.close()
        if hasattr(os, "killpg"):
            _reap_orphans(pid)

    def note_strays(self) -> None:
        """Hold on to processes that its end would take out of sight."""
        if self.finished or self.strays or not hasattr(os, "pidfd_open"):
            return
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):
                self.strays.append(os.pidfd_open(pid))

    def call(self, callback: Callable[[int | None], object]) -> None:
        """Call what `on_exit()` was given; its exceptions are logged."""
        try:
            callback(self.exitcode)
        except Exception:
            log.exception("on_exit: the callback %r failed", callback)

    # --- messages

    def receive(self) -> None:
        """Handle every message that is there."""
        # Without the lock, because handlers of log records are the user's code.
        for message in self.drain():
            self.hear(message)

    def drain(self) -> list[tuple[Any, ...]]:
        """Take every message that is there."""
        messages = []
        with self.lock:
            try:
                while self.conn is not None and self.conn.poll():
                    messages.append(self.conn.recv())
            except (EOFError, OSError):
                self.hang_up()
        return messages

    def hang_up(self) -> None:
        """Nothing more can come, which is not yet the end of the process."""
        if self.conn is not None:
            self.conn.close()
            self.conn = None

    def hear(self, message: tuple[Any, ...]) -> None:
        """Handle one message other than the first word."""
        match message:
            case ("log", record):
                _handle_record(record)
            case ("exiting", clean):
                self.exiting = clean
            case ("unstoppable",):
                self.unstoppable = True

    def await_start(self, timeout: float) -> None:
        """Wait for the first word of the process.

        Raises what it raised, `DiedError` or `StartTimeoutError`.
        """
        deadline = time.monotonic() + timeout
        while self.address is None:
            ready = self.wait_word(deadline)
            if not ready:
                raise StartTimeoutError(
                    f"{self.process.name}: neither address nor error after "
                    f"{timeout} seconds (start_timeout)"
                )
            if self.conn in ready:
                self.hear_first()
            else:
                self.finish()
                raise DiedError(
                    "the server's process ended before it reported an address: "
                    f"{child.describe_exit(self.exitcode)}",
                    self.exitcode,
                )

    def wait_word(self, deadline: float) -> list[Any]:
        """Wait for a message, or for the end."""
        left = max(0.0, deadline - time.monotonic())
        return wait([self.end, *([] if self.conn is None else [self.conn])], left)

    def hear_first(self) -> None:
        """Handle one message while the server starts."""
        assert self.conn is not None
        try:
            message = self.conn.recv()
        except (EOFError, OSError):
            self.hang_up()
            return
        match message:
            case ("ready", address, path, identity):
                self.address, self.path, self.identity = address, path, identity
            case ("error", data, last, text):
                raise _unpack_error(data, last) from _ChildTraceback(text)
            case _:
                self.hear(message)

    # --- stopping

    def abort(self) -> None:
        """Kill a process that did not start."""
        self.asked = True
        if self.process is not None and self.process.pid is not None:
            self.process.kill()
            self.wait_end(None)
            self.finish()
        self.hang_up()
        _alive.discard(self)

    def terminate(self) -> Ending:
        """Send SIGTERM and wait, send SIGKILL and wait."""
        if not self.mine():
            return "exited"
        ending: Ending = "exited"
        if self.is_alive():
            self.asked = True
            ending = "terminated"
            self.signal("terminate")
            if not self.wait_end(KILL_SECONDS):
                ending = "killed"
                self.signal("kill")
                self.wait_end(None)
        self.ending = self.ending or ending
        self.finish()
        return self.ending

    def signal(self, how: str) -> None:
        """Call a method of the process, which may be gone meanwhile."""
        with self.lock:
            if self.process is not None:
                getattr(self.process, how)()

    def stop(self, grace: float) -> Ending:
        """Ask for the end; see `EmbeddedService.stop`."""
        if not self.is_alive():
            return self.terminate()
        self.asked = True
        _reader.forget(self)
        self.send_stop(grace)
        ending = self.await_exit(grace)
        if ending is None:
            return self.terminate()
        self.ending = ending
        self.finish()
        return ending

    def send_stop(self, grace: float) -> None:
        """Ask for the end."""
        self.asked = True
        with self.lock, contextlib.suppress(OSError):
            if self.conn is not None:
                self.conn.send(("stop", grace))

    def await_exit(self, grace: float) -> Ending | None:
        """Wait for the end that was asked for; None if the process keeps silent."""
        deadline = time.monotonic() + grace + STOP_MARGIN_SECONDS
        said = False
        while ready := self.wait_word(deadline):
            self.receive()
            if self.end in ready:
                if self.exiting is None:
                    return "exited"
                return "stopped" if self.exiting else "cut"
            if self.unstoppable:
                break
            if self.exiting is not None and not said:
                said = True
                deadline = time.monotonic() + EXIT_SECONDS
        return None

    def close(self) -> None:
        """End it silently: nobody has a use for it any more.

        The garbage collector comes here in any thread at any moment, also in one that
        a holder of a lock of ours is waiting for. So no lock is waited for: where one
        is taken, the process gets its SIGTERM, and is cleared up after later.
        """
        if not self.mine() or self.finished:
            return
        self.silent = True
        self.callbacks.clear()
        if _is_free(_reader.lock) and _is_free(self.lock):
            self.terminate()
        elif self.pidfd is not None:
            self.asked = True
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)


def _is_free(lock: Any) -> bool:
    """Whether no other thread has the lock."""
    if not lock.acquire(blocking=False):
        return False
    lock.release()
    return True


def _reap_orphans(group: int) -> None:
    """Reap what became our child when its parent died, if we are PID 1 or the like."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            if os.waitpid(-group, os.WNOHANG)[0] == 0:
                time.sleep(0.001)


def _handle_record(attributes: dict[str, Any]) -> None:
    """Handle a log record of the server's process as if it were made here."""
    record = logging.makeLogRecord(attributes)
    logger = logging.getLogger(record.name)
    try:
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except Exception:
        # A handler that fails is no reason not to hear of the next record.
        if logging.raiseExceptions:
            traceback.print_exc()


class _ChildTraceback(Exception):
    """The traceback of an exception in the server's process, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def _unpack_error(data: bytes | None, last: str) -> BaseException:
    """The exception of the server's process, as far as it can travel."""
    if data is not None:
        with contextlib.suppress(Exception):
            exc = pickle.loads(data)
            if isinstance(exc, BaseException):
                return exc
    return StartError(f"the server did not start: {last}")


# --- our thread -------------------------------------------------------------------


class _Reader:
    """The thread that hears what the servers have to say."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.cores: list[_Core] = []
        self.thread: threading.Thread | None = None
        self.wake: Connection | None = None
        self.leaving: threading.Thread | None = None
        self.paused = 0

    def watch(self, core: _Core) -> None:
        """Listen to `core` from now on."""
        with self.lock:
            if core not in self.cores and not core.finished:
                self.cores.append(core)
            self.resume()

    def forget(self, core: _Core) -> None:
        """Do not listen to `core` any more."""
        with self.lock:
            if core not in self.cores:
                return
            self.cores.remove(core)
            if self.cores:
                self.nudge()
                return
            thread = self.dismiss()
        self.join(thread)

    def nudge(self) -> None:
        """Make the thread look at its list again."""
        if self.wake is not None:
            self.wake.send_bytes(b"look")

    def resume(self) -> None:
        """Start the thread, or have it look at its list."""
        with self.lock:
            if self.thread is not None:
                self.nudge()
            elif self.cores and not self.paused:
                theirs, self.wake = multiprocessing.Pipe(duplex=False)
                self.thread = threading.Thread(
                    target=self.run, args=(theirs,), name="degu-embed", daemon=True
                )
                self.thread.start()

    def dismiss(self) -> threading.Thread | None:
        """Tell the thread to end; return it."""
        with self.lock:
            thread, wake = self.thread, self.wake
            self.thread = self.wake = None
            if wake is not None:
                wake.close()
            return thread

    def join(self, thread: threading.Thread | None) -> None:
        """Wait for the end of a dismissed thread, but not in itself, and not long."""
        if thread is threading.current_thread():
            self.leaving = thread
        elif thread is not None:
            thread.join(THREAD_SECONDS)
            _wait_gone(thread)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Be without the thread for a while."""
        with self.lock:
            self.paused += 1
            leaving, thread = self.leaving, self.dismiss()
        self.join(leaving)
        self.join(thread)
        try:
            yield
        finally:
            with self.lock:
                self.paused -= 1
                self.resume()

    def run(self, wake: Connection) -> None:
        """Listen until the other end of `wake` is closed."""
        with wake:
            while True:
                with self.lock:
                    cores = list(self.cores)
                objects: dict[Any, _Core] = {core.end: core for core in cores}
                objects.update({c.conn: c for c in cores if c.conn is not None})
                try:
                    ready = wait([wake, *objects])
                    if wake in ready:
                        wake.recv_bytes()
                except EOFError:
                    return
                except OSError:
                    # Another thread closed one meanwhile, and took it off the list.
                    continue
                for core in {objects[item] for item in ready if item is not wake}:
                    core.receive()
                    if core.end in ready:
                        core.finish()


def _wait_gone(thread: threading.Thread) -> None:
    """Wait until the system too has no such thread any more."""
    task = f"/proc/self/task/{thread.native_id}"
    deadline = time.monotonic() + THREAD_SECONDS
    while os.path.exists(task) and time.monotonic() < deadline:
        time.sleep(0.0001)


_reader = _Reader()
_alive: set[_Core] = set()
_starting = threading.RLock()
_numbers = itertools.count(1)
_registered = 0


def _forget_all() -> None:
    """In a fork of this process: let go of what keeps the parent's servers alive."""
    global _reader, _starting
    for core in list(_alive):
        core.hang_up()
    _alive.clear()
    _reader = _Reader()
    _starting = threading.RLock()


def _stop_at_exit() -> None:
    """Register `_stop_all()`, once in every process that starts servers."""
    global _registered
    if _registered != os.getpid():
        _registered = os.getpid()
        atexit.register(_stop_all)


def _stop_all() -> None:
    """At the end of the interpreter: stop what runs, all at once, without a word."""
    cores = [core for core in list(_alive) if core.mine() and core.is_alive()]
    for core in cores:
        core.callbacks.clear()
        core.send_stop(PARENT_EXIT_GRACE)
    for core in cores:
        core.stop(PARENT_EXIT_GRACE)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


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
    with contextlib.ExitStack() as stack:
        if hasattr(signal, "pthread_sigmask"):
            if method != "fork":
                # It would let SIGINT through again when it is started later.
                from multiprocessing import resource_tracker

                resource_tracker.ensure_running()
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
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
    job: ServiceJob | ServerJob, options: dict[str, Any], wanted: str | None, name: str
) -> tuple[_Core, Any]:
    """Start a process for `job` and wait for its address."""
    if package.importing_main:
        raise package.MainReentered
    for old in list(_alive):
        if not old.is_alive():
            old.finish()
    core, process = _launch(job, options, wanted, name)
    try:
        core.await_start(options["start_timeout"])
    except BaseException:
        core.abort()
        raise
    if options["log"]:
        _reader.watch(core)
    return core, process


def _launch(
    job: ServiceJob | ServerJob, options: dict[str, Any], wanted: str | None, name: str
) -> tuple[_Core, Any]:
    """Start the process."""
    with _starting, _reader.pause():
        method, reason = _choose_method(wanted)
        ours, theirs = multiprocessing.Pipe()
        parent = _own_pidfd()
        plan = _make_plan(job, options)
        if method == "fork":
            plan = plan._replace(forked=True)
        else:
            plan = plan._replace(job=Packing(job, method, reason))
        process = _PROCESSES[method](
            target=_find_target(plan),
            args=(plan, theirs, parent),
            name=f"{name}-{next(_numbers)}",
            daemon=True,
        )
        core = _Core(process, ours, method)
        _alive.add(core)
        _stop_at_exit()
        _warm_up(method)
        try:
            with _quiet_start(method):
                core.begin()
        except BaseException:
            core.abort()
            raise
        finally:
            theirs.close()
            if parent is not None:
                parent.close()
    return core, process


def _make_plan(job: ServiceJob | ServerJob, options: dict[str, Any]) -> Plan:
    restart = options["restart"] is not None
    plan = Plan(job, os.getpid(), restart=restart)
    if options["log"]:
        plan = plan._replace(levels=_find_levels())
    if not isinstance(job, ServerJob) or isinstance(job.address, socket.socket):
        return plan
    if isinstance(job.address, str):
        plan = plan._replace(path=job.address)
    if restart:
        known = ("backlog", "backlog"), ("socket_mode", "mode")
        given = {to: job.options[at] for at, to in known if at in job.options}
        plan = plan._replace(listen=partial(listen, job.address, **given))
    return plan


def _find_target(plan: Plan) -> Callable[[Plan, Connection, Any], None]:
    """What runs in the process."""
    if not plan.restart:
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
        _check_names(options)
        self.build_func: Any = build_func
        self.build_args = build_args
        self.options = options
        self._begin(ServiceJob(build_func, build_args))

    def _begin(self, job: ServiceJob | ServerJob) -> None:
        options = _take_options(self.options)
        self._core, self._process = _start(
            job, options, self.start_method, type(self).__name__
        )
        self._finalizer = weakref.finalize(self, self._core.close)
        self._finalizer.atexit = False

    def __repr__(self) -> str:
        state = "" if self.is_alive() else ", ended"
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

        Returns its exit code, negative for a signal; None if it still runs.
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
        _reader.watch(core)

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
    options of `EmbeddedService` are taken out of `options` before.

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


def _check_names(options: dict[str, Any]) -> None:
    for name in options:
        if name not in EMBED_OPTIONS:
            known = ", ".join(EMBED_OPTIONS)
            raise TypeError(f"unknown option {name!r}, expected one of: {known}")


def _take_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are ours, checked."""
    timeout = options.get("start_timeout", START_TIMEOUT)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"start_timeout: expected seconds, got {shown(timeout)}")
    if not 0 < timeout < float("inf"):
        raise ValueError(f"start_timeout: expected seconds above 0, got {timeout!r}")
    restart = options.get("restart")
    if restart not in (None, "on-failure"):
        raise ValueError(
            f"restart: expected None or 'on-failure', got {shown(restart)}"
        )
    if restart is not None and not hasattr(os, "fork"):
        raise ValueError("restart: not on this system, it needs os.fork()")
    logs = options.get("log", True)
    if not isinstance(logs, bool):
        raise TypeError(f"log: expected True or False, got {shown(logs)}")
    return {"start_timeout": timeout, "restart": restart, "log": logs}


def _do_nothing(_exitcode: int | None) -> None:
    pass
