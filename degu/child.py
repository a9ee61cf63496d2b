"""What runs in the process of an embedded server, around the server itself.

`degu.embed` starts the process and waits; `run()` here is all that the process does:

    detach   a session of its own, so that Ctrl-C and a closed terminal pass it by
    guard    a second, tiny process that outlasts a server whose threads are stuck
    watch    a thread that hears "stop" and notices that the parent is gone
    build    call the user's function, report the address or the exception
    serve    until told to stop; then close, run `atexit`, exit

The parent's end is noticed in two ways. A pipe to it reads EOF when it is gone, and
also when it turned into another program with exec. But processes that the parent
forked may have inherited its end of the pipe, so on Linux a pidfd of the parent is
watched too: it fires when that very process ends, whoever started us, whichever thread
did, and whatever process we are re-parented to.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import importlib
import logging
import multiprocessing.util
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, NamedTuple

from degu.address import Identity, identify_socket, unlink_socket
from degu.errors import shown
from degu.guard import await_guard, descendants, kill, start_guard
from degu.package import Package

if TYPE_CHECKING:
    from degu.sharing import Share

log = logging.getLogger("degu.embed")

MESSAGE_CHARS = 12_000
"""Most of a text that goes home: below the size that is written in one piece."""

LOG_SECONDS = 1.0
"""How long a log record may wait for a parent that does not read."""

PARENT_POLL_SECONDS = 0.05
"""How often to ask for the parent where the system has no pidfd."""

CLOSE_SECONDS = 5.0
"""How long a server that ended by itself may take to close."""

DATAGRAM_POLL_SECONDS = 0.02
"""How soon a socketserver of datagrams sees that it is to stop."""


watcher: threading.Thread | None = None
"""Our own thread in a server's process; it holds no lock that a fork could break."""


class Plan(NamedTuple):
    """What the parent tells the process that it starts."""

    job: Any
    """A callable that builds the server, or a `Package` with one."""

    parent_pid: int
    forked: bool = False
    levels: dict[str, int] | None = None
    """Levels of the parent's loggers; None where records stay here."""

    path: str | None = None
    """Where a Unix socket file will be, if that is known before."""

    restart: bool = False
    """Whether a server that fails is started again."""

    listen: Callable[[], socket.socket] | None = None
    """Make the listening socket that outlives restarts."""

    listener: socket.socket | None = None
    """That socket, once it is made."""

    workers: int = 1
    """How many processes serve."""

    share: Share | None = None
    """The place of this one among them, if there are others."""

    @property
    def is_supervised(self) -> bool:
        """Whether the process that is started has others serve."""
        return self.restart or self.workers > 1


# --- the work of run() ------------------------------------------------------------


def run(plan: Plan, conn: Connection, parent: Connection | None) -> None:
    """Build and serve, until told to stop or the parent is gone.

    Raises `SystemExit` with the exit code of the process.
    """
    detach(plan)
    code = Child(plan, conn, parent).run()
    if code:
        raise SystemExit(code)


def detach(plan: Plan) -> None:
    """Become a session, with signals as a fresh process has them."""
    if hasattr(os, "setsid"):
        with contextlib.suppress(OSError):
            os.setsid()
    reset_signals()
    with contextlib.suppress(Exception):
        faulthandler.enable(2)
    if plan.forked:
        # What the parent registered is the parent's to clean up (3.13 does the same).
        atexit._clear()
        atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]
        forget_forkserver()
    # A server that uses multiprocessing itself is welcome to.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]


def forget_forkserver() -> None:
    """Let a server start a fork server of its own; the parent's is not our child."""
    module = sys.modules.get("multiprocessing.forkserver")
    server = getattr(module, "_forkserver", None)
    for name in ("_forkserver_pid", "_forkserver_alive_fd", "_forkserver_address"):
        if hasattr(server, name):
            setattr(server, name, None)


def reset_signals() -> None:
    """Forget the handlers that a fork inherits, and let nothing block SIGTERM.

    Nor ignore SIGCHLD, which would keep the exit codes of all children from us.
    """
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, [])


class Child:
    """The process of one server."""

    def __init__(self, plan: Plan, conn: Connection, parent: Connection | None):
        self.plan = plan
        self.conn = conn
        self.parent = parent
        self.server: Any = None
        self.path = plan.path
        self.identity: Identity | None = None
        self.is_guest = False
        self.deadline: float | None = None
        self.clean = False
        self.stopped: threading.Event | None = None
        self.news = start_guard(plan.path, conn, parent)

    def run(self) -> int:
        """Build, report, serve, close; return the exit code."""
        global watcher
        watcher = threading.Thread(target=self.watch, name="degu-watch", daemon=True)
        try:
            watcher.start()
            if self.plan.levels is not None:
                send_logs_home(self.conn, self.plan.levels)
            self.server = self.build()
            address = find_address(self.server)
        except Exception as exc:
            send(self.conn, "error", *pack_error(exc))
            return 1
        self.note_path(address)
        send(self.conn, "ready", address, self.path, self.identity)
        return self.serve()

    def build(self) -> Any:
        """Call the user's function; raises whatever it raises."""
        job = self.plan.job
        if isinstance(job, Package):
            job = job.open()
        if self.plan.listener is not None:
            job = job._replace(address=self.plan.listener)
        self.is_guest = isinstance(getattr(job, "address", None), socket.socket)
        if self.plan.share is not None:
            from degu.sharing import SharedListener

            job = job._replace(address=SharedListener(job.address, self.plan.share))
        server = job()
        if not callable(getattr(server, "serve_forever", None)):
            raise TypeError(
                "build_func: expected to return a server with serve_forever(), "
                f"got {type(server).__name__}: {shown(server)}"
            )
        return server

    def note_path(self, address: Any) -> None:
        """Tell the guard which file to remove; not if somebody else made it."""
        if isinstance(address, str) and not self.is_guest:
            self.path = os.path.abspath(address)
            self.identity = identify_socket(self.path)
            if self.news is not None:
                with contextlib.suppress(OSError):
                    os.write(self.news, pickle.dumps((self.path, self.identity)))

    def serve(self) -> int:
        """Serve until told to stop; what ends it otherwise is logged."""
        code = 0
        try:
            serve_forever(self.server)
        except Exception:
            if self.plan.levels is None:
                raise
            log.critical("the server failed: %r", self.server, exc_info=True)
            code = 1
        if self.stopped is not None:
            self.stopped.wait()
        self.close()
        return code

    def close(self) -> None:
        """Close the server within the grace period, and run `atexit`."""
        left = CLOSE_SECONDS
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
        closed = close_within(left, self.server)
        clean = self.clean and closed
        if self.path is not None:
            unlink_socket(self.path, self.identity)
        send(self.conn, "exiting", clean)
        atexit._run_exitfuncs()
        for pid in descendants(os.getpid()):
            kill(pid)
        if not closed or lingering_threads():
            # Whoever is stuck would keep the interpreter from ending by itself.
            leave(0)

    def watch(self) -> None:
        """Wait for "stop", and for the parent's end (thread)."""
        while True:
            if parent_ended(self.plan, self.conn, self.parent):
                self.die()
            try:
                message = self.conn.recv()
            except (EOFError, OSError):
                self.die()
            if message[0] == "stop" and self.stopped is None:
                self.deadline = time.monotonic() + message[1]
                self.stopped = threading.Event()
                stop = partial(self.stop, message[1], self.stopped)
                try:
                    threading.Thread(target=stop, daemon=True).start()
                except RuntimeError:  # there is none to be had
                    stop()

    def stop(self, grace: float, stopped: threading.Event) -> None:
        """Shut the server down; `serve_forever()` returns then (thread)."""
        try:
            if callable(getattr(self.server, "shutdown", None)):
                self.clean = shut_down(self.server, grace)
            else:
                send(self.conn, "unstoppable")
        finally:
            stopped.set()

    def die(self) -> None:
        """End without a further word, with every process that was started here."""
        if self.path is not None:
            unlink_socket(self.path, self.identity)
        if self.news is not None:
            await_guard(self.news)
        for pid in descendants(os.getpid()):
            kill(pid)
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)


def parent_ended(plan: Plan, conn: Connection, parent: Connection | None) -> bool:
    """Wait until there is something to receive; True if instead the parent is gone."""
    while True:
        if parent is not None:
            return parent in wait([conn, parent])
        if wait([conn], PARENT_POLL_SECONDS):
            return False
        # A child of the fork server has another parent, and only the pipe.
        if plan.forked and os.getppid() != plan.parent_pid:
            return True


def lingering_threads() -> bool:
    """Whether a thread is left that the interpreter would wait for at its end."""
    mine = (threading.main_thread(), threading.current_thread())
    return any(t not in mine and not t.daemon for t in threading.enumerate())


def leave(code: int) -> None:
    """Exit now: `atexit` and the buffers, but no waiting for threads."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def describe_exit(code: int | None) -> str:
    """An exit code in words, as 'exit code 3' or 'SIGSEGV'."""
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


# --- any server -------------------------------------------------------------------


class ServiceJob(NamedTuple):
    """Build any server that has ``serve_forever()``."""

    build_func: Any
    build_args: tuple[Any, ...]

    def __call__(self) -> Any:
        """Build it."""
        return resolve(self.build_func)(*self.build_args)


class ServerJob(NamedTuple):
    """Build a `degu.server.Server`, or SSLServer, around the user's app."""

    address: Any
    build_func: Any
    build_args: tuple[Any, ...]
    options: dict[str, Any]
    sslconfig: dict[str, Any] | None = None

    def __call__(self) -> Any:
        """Build it."""
        plain, secure = find_servers(self.address)
        app = build_app(self.build_func, self.build_args)
        if self.sslconfig is None:
            return plain(self.address, app, **self.options)
        return secure(self.sslconfig, self.address, app, **self.options)


def find_servers(address: Any) -> tuple[Any, Any]:
    """The classes of servers for an address, without and with TLS."""
    sharing = sys.modules.get("degu.sharing")
    if sharing is not None and isinstance(address, sharing.SharedListener):
        return sharing.SharingServer, sharing.SharingSSLServer
    from degu.server import Server, SSLServer

    return Server, SSLServer


def build_app(build_func: Any, build_args: tuple[Any, ...]) -> Any:
    """Call `build_func`; None means that its one argument is the app."""
    if build_func is None:
        return resolve(build_args[0])
    func = resolve(build_func)
    try:
        return func(*build_args)
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise  # from within, not from the call
        raise TypeError(
            "build_func: expected one that takes the build_args (an app itself is "
            f"given as: address, None, app), got {error}"
        ) from error


def resolve(target: Any) -> Any:
    """The object that 'module:attribute' names; anything but a str is itself."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    value: Any = importlib.import_module(module)
    for name in attribute.split("."):
        value = getattr(value, name)
    return value


def find_address(server: Any) -> Any:
    """The address that `server` is bound to, by any of the three customary names."""
    for name in ("address", "server_address"):
        if (address := getattr(server, name, None)) is not None:
            return address
    if callable(getattr(server, "getsockname", None)):
        return server.getsockname()
    raise TypeError(
        "build_func: expected a server with address, server_address or getsockname(), "
        f"got {type(server).__name__}: {shown(server)}"
    )


def is_socketserver(server: Any) -> bool:
    """Whether `server` is one of the standard library's socketserver family."""
    module = sys.modules.get("socketserver")
    return module is not None and isinstance(server, module.BaseServer)


def serve_forever(server: Any) -> None:
    """Serve; the standard library's servers get what a bounded, quick stop needs."""
    if not is_socketserver(server):
        server.serve_forever()
        return
    if hasattr(server, "daemon_threads"):
        # Answers in flight are waited for, so its threads have to be known to it.
        server.daemon_threads = False
        server.block_on_close = True
    server.serve_forever(poll_interval=DATAGRAM_POLL_SECONDS)


def shut_down(server: Any, grace: float) -> bool:
    """Ask `server` to end within `grace` seconds; whether nothing was cut off."""
    if takes_grace(server.shutdown):
        return server.shutdown(grace=grace) is not False
    if is_socketserver(server):
        wake_listener(server)
    return within(grace, server.shutdown)


def takes_grace(function: Any) -> bool:
    """Whether `function` has a parameter named ``grace``."""
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    count = code.co_argcount + code.co_kwonlyargcount
    return "grace" in code.co_varnames[:count]


def wake_listener(server: Any) -> None:
    """Stop a stream listener at once, without waiting for the next poll."""
    if server.socket.type == socket.SOCK_STREAM:
        with contextlib.suppress(OSError):
            server.socket.shutdown(socket.SHUT_RD)


def close_within(seconds: float, server: Any) -> bool:
    """Close `server`; False if that took longer than `seconds`."""
    close = getattr(server, "server_close", None) or getattr(server, "close", None)
    return not callable(close) or within(seconds, close)


def within(seconds: float, function: Callable[[], object]) -> bool:
    """Call `function` in a thread and wait for its end at most `seconds`."""
    thread = threading.Thread(target=function, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # there is none to be had
        function()
        return True
    # A grace of zero still lets through what does not wait for anybody.
    thread.join(max(seconds, 0.02))
    return not thread.is_alive()


# --- messages to the parent -------------------------------------------------------


def send(conn: Connection, *message: Any) -> None:
    """Send a message; a parent that is gone is the watcher's business."""
    with contextlib.suppress(OSError, ValueError):
        conn.send(message)


def cut(text: str) -> str:
    """Shorten a text in its middle, so that it goes home in one piece."""
    if len(text) <= MESSAGE_CHARS:
        return text
    half = MESSAGE_CHARS // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[... {left_out} characters left out ...]\n{text[-half:]}"


def pack_error(exc: BaseException) -> tuple[bytes | None, str, str]:
    """An exception as (pickle or None, its last line, its traceback)."""
    text = "".join(traceback.format_exception(exc))
    last = traceback.format_exception_only(exc)[-1].strip()
    try:
        data = pickle.dumps(exc)
        pickle.loads(data)
    except Exception:
        return None, cut(last), cut(text)
    return (data if len(data) < MESSAGE_CHARS else None), cut(last), cut(text)


def is_writable(conn: Connection) -> bool:
    """Wait until the parent has room for a record, not for ever."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLOUT)
    return bool(poll.poll(LOG_SECONDS * 1000))


class HomeHandler(logging.Handler):
    """Send log records to the parent, in which they are handled again."""

    def __init__(self, conn: Connection) -> None:
        super().__init__()
        self.conn = conn
        self.formatter = logging.Formatter()
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send `record`; it is dropped where the parent reads nothing for a second."""
        try:
            data = pickle.dumps(("log", self.pack(record)))
            if is_writable(self.conn):
                self.conn.send_bytes(data)
            else:
                self.dropped += 1
        except OSError:
            self.dropped += 1
        except Exception:
            self.handleError(record)

    def pack(self, record: logging.LogRecord) -> dict[str, Any]:
        """The attributes of `record`, with nothing in them that can't be pickled."""
        message = record.getMessage()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        plain: dict[str, Any] = {
            name: value if isinstance(value, PLAIN) else shown(value)
            for name, value in record.__dict__.items()
        }
        plain.update(msg=cut(message), args=None, exc_info=None)
        for name in ("exc_text", "stack_info"):
            if plain.get(name):
                plain[name] = cut(plain[name])
        plain.pop("message", None)
        return plain


PLAIN = (str, int, float, bool, bytes, type(None))


def send_logs_home(conn: Connection, levels: dict[str, int]) -> None:
    """Let the parent handle every record, and tracebacks of threads as well."""
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
    for name, level in levels.items():
        logging.getLogger(name or None).setLevel(level)
    logging.root.handlers[:] = [HomeHandler(conn)]
    threading.excepthook = log_thread_error


def log_thread_error(args: Any) -> None:
    """Log what ended a thread (`threading.excepthook`)."""
    if args.exc_type is SystemExit:
        return
    name = args.thread.name if args.thread is not None else "unknown"
    info = (args.exc_type, args.exc_value, args.exc_traceback)
    log.error("unhandled exception in thread %s", name, exc_info=info)
