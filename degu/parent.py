"""What a parent knows of the processes it started: their words and their end.

A `Core` stands for one process; it is apart from the object that the user holds, so
that this one can be watched while that one can be collected. `reader` is the one
thread that hears all of them, where somebody wants to be told.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import multiprocessing.context
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from degu.address import Identity, unlink_socket
from degu.child import describe_exit
from degu.errors import DiedError, StartError, StartTimeoutError
from degu.guard import descendants
from degu.limits import MAX_WORKERS

log = logging.getLogger("degu.embed")

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

REPORT_SECONDS = 2.0
"""How long a fork server may take to tell the exit code of a process that has ended."""

ORPHAN_SECONDS = 1.0
"""How long to wait for processes that a server left to us (if we are PID 1)."""

Ending = Literal["stopped", "cut", "terminated", "killed", "exited"]
"""How `stop()` went: all requests were answered; some were cut off at the end of the
grace period; the process had to be terminated, or killed; or it had ended before."""


DEFERRED = [
    getattr(signal, f"SIG{name}")
    for name in ("INT", "TERM", "HUP", "QUIT", "ALRM", "USR1", "USR2")
    if hasattr(signal, f"SIG{name}")
]
"""Signals whose handlers may raise, as those of Ctrl-C and of timeouts do."""


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Have no handler raise in the midst of what is to be done as a whole.

    Signals that come meanwhile are handled afterwards. All handlers run in the main
    thread, so that others need nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, Any]] = []
    handlers: dict[int, Any] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [handlers[n](n, frame) for n, frame in came])
        for number in DEFERRED:
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
                stack.callback(signal.signal, number, handler)
                signal.signal(number, lambda *facts: came.append(facts))
        yield


class _Process:
    """Makes `join()` and its kin of a multiprocessing.Process sure and complete.

    They work from several threads, do not wait for the server's own children, and
    tell the `Core`, which clears up.
    """

    _core: Core | None = None

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
            self._core.check_mine()
            self._core.note_strays()
        super().terminate()  # type: ignore[misc]

    def kill(self) -> None:
        """Send SIGKILL."""
        if self._core is not None:
            self._core.check_mine()
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
    PROCESSES: dict[str, Any] = {"spawn": _SpawnProcess}
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

    PROCESSES = {
        "fork": _ForkProcess,
        "forkserver": _ForkServerProcess,
        "spawn": _SpawnProcess,
    }


class Core:
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
        self.workers: deque[int] = deque(maxlen=MAX_WORKERS)  # pids
        self.asked = False
        self.silent = False
        self.finished = False
        self.exiting: bool | None = None
        self.unstoppable = False
        self.ending: Ending | None = None
        self.exitcode: int | None = None

    # What it calls is kept here, as at the interpreter's end the module has it no more.
    def __del__(
        self,
        getpid: Callable[[], int] = os.getpid,
        close: Callable[[int], None] = os.close,
    ) -> None:
        for number in [self.pidfd, *self.strays]:
            if number is not None and getpid() == self.owner:
                close(number)

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

    def check_mine(self) -> None:
        """Raise `RuntimeError` in a fork."""
        if not self.mine():
            raise RuntimeError("a server belongs to the process that started it")

    def is_alive(self) -> bool:
        """Whether the process runs."""
        self.check_mine()
        return not (self.finished or self.end is None or self.wait_end(0))

    def wait_end(self, timeout: float | None) -> bool:
        """Wait for the end of the process at most `timeout` seconds."""
        return self.finished or bool(wait([self.end], timeout))

    def finish(self) -> None:
        """Clear up after a process that has ended, once."""
        if self.end is None or not self.mine():
            return
        # Before the lock, which our thread may be waiting for.
        reader.forget(self)
        with defer_signals(), self.lock:
            if self.finished:
                return
            self.finished = True
            messages = self.drain()
            pid = self.process.pid
            if self.is_unreaped(pid):
                # Nobody else can have this number before the process is reaped.
                with contextlib.suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
            # A fork server that is stopped, or was told of no SIGCHLD, says nothing.
            self.process.join(REPORT_SECONDS if self.method == "forkserver" else None)
            self.exitcode = self.process.exitcode
            self.clear_up(pid)
            self.process = None
            alive.discard(self)
        for message in [] if self.silent else messages:
            self.hear(message)
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
                # It may be our child by now, if we are PID 1 or the like.
                os.waitid(os.P_PIDFD, number, os.WEXITED)
            os.close(number)
        self.strays.clear()
        if self.path is not None:
            unlink_socket(self.path, self.identity)
        self.hang_up()
        if hasattr(os, "killpg"):
            for group in [pid, *self.workers]:
                _reap_orphans(group)

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
                    self.note_worker(messages[-1])
            except (EOFError, OSError, TypeError):  # the last from a closed one
                self.hang_up()
        return messages

    def note_worker(self, message: tuple[Any, ...]) -> None:
        """Remember the processes that a supervisor starts."""
        if message[0] == "worker":
            self.workers.append(message[1])

    def hang_up(self) -> None:
        """Nothing more can come, which is not yet the end of the process."""
        conn, self.conn = self.conn, None
        if conn is not None:
            conn.close()

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
                    f"{describe_exit(self.exitcode)}",
                    self.exitcode,
                )

    def wait_word(self, deadline: float) -> list[Any]:
        """Wait for a message, or for the end."""
        while True:
            conn = self.conn
            left = max(0.0, deadline - time.monotonic())
            try:
                return wait([self.end, *([] if conn is None else [conn])], left)
            except OSError:
                if conn is self.conn:
                    raise  # else the reader's thread closed it meanwhile

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
                raise unpack_error(data, last) from ChildTraceback(text)
            case _:
                self.note_worker(message)
                self.hear(message)

    # --- stopping

    def abort(self) -> None:
        """Kill a process that did not start."""
        self.asked = True
        with defer_signals():
            if self.process is not None and self.process.pid is not None:
                self.process.kill()
                self.wait_end(None)
                self.finish()
            self.hang_up()
            alive.discard(self)

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
        reader.forget(self)
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
        # A handler of signals that stops it, too, may have closed the pipe meanwhile.
        with self.lock, contextlib.suppress(OSError, TypeError):
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
        if _is_free(reader.lock) and _is_free(self.lock):
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


class ChildTraceback(Exception):
    """The traceback of an exception in the server's process, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def unpack_error(data: bytes | None, last: str) -> BaseException:
    """The exception of the server's process, as far as it can travel."""
    if data is not None:
        with contextlib.suppress(Exception):
            exc = pickle.loads(data)
            if isinstance(exc, BaseException):
                return exc
    return StartError(f"the server did not start: {last}")


# --- our thread -------------------------------------------------------------------


class Reader:
    """The thread that hears what the servers have to say."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.cores: list[Core] = []
        self.thread: threading.Thread | None = None
        self.wake: Connection | None = None
        self.leaving: threading.Thread | None = None
        self.paused = 0

    def watch(self, core: Core) -> None:
        """Listen to `core` from now on."""
        with self.lock:
            if core not in self.cores and not core.finished:
                self.cores.append(core)
            self.resume()

    def forget(self, core: Core) -> None:
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
                theirs, wake = multiprocessing.Pipe(duplex=False)
                thread = threading.Thread(
                    target=self.run, args=(theirs,), name="degu-embed", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:
                    theirs.close()
                    wake.close()
                    raise
                self.thread, self.wake = thread, wake

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
                objects: dict[Any, Core] = {core.end: core for core in cores}
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


reader = Reader()
alive: set[Core] = set()
starting = threading.RLock()
_registered = 0


def _forget_all() -> None:
    """In a fork of this process: let go of what keeps the parent's servers alive.

    And of what would end them: multiprocessing does, at the end of the interpreter.
    """
    global reader, starting
    for core in list(alive):
        core.hang_up()
        multiprocessing.process._children.discard(core.process)  # type: ignore[attr-defined]
    alive.clear()
    reader = Reader()
    starting = threading.RLock()


def stop_at_exit() -> None:
    """Register `_stop_all()`, once in every process that starts servers."""
    global _registered
    if _registered != os.getpid():
        _registered = os.getpid()
        atexit.register(_stop_all)


def _stop_all() -> None:
    """At the end of the interpreter: stop what runs, all at once, without a word."""
    cores = [core for core in list(alive) if core.mine() and core.is_alive()]
    for core in cores:
        core.callbacks.clear()
        core.send_stop(PARENT_EXIT_GRACE)
    for core in cores:
        core.stop(PARENT_EXIT_GRACE)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
