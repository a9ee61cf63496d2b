"""The supervisor: a process that keeps the address, and starts the server in another.

It runs no code of the user, so nothing of the user's can take it down; each server is
forked from it as it was at first.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from multiprocessing.connection import Connection, wait
from typing import Any

from degu import child
from degu.address import Identity, identify_socket, unlink_socket
from degu.child import Plan, describe_exit, detach, pack_error, send, send_logs_home
from degu.guard import descendants, kill

log = logging.getLogger("degu.embed")

RESTART_PAUSES = (0.05, 5.0)
"""First and longest pause before a failed server is started again; it doubles."""

RESTART_STEADY_SECONDS = 10.0
"""A server that ran this long failed for a new reason: the pauses begin anew."""


def run(plan: Plan, conn: Connection, parent: Connection | None) -> None:
    """Keep a server up, until told to stop or the parent is gone.

    Raises `SystemExit` with the exit code of the process.
    """
    detach(plan)
    code = Supervisor(plan, conn, parent).run()
    if code:
        raise SystemExit(code)


class Terminated(BaseException):
    """SIGTERM came to a supervisor."""


class Supervisor:
    """The work of that process."""

    def __init__(self, plan: Plan, conn: Connection, parent: Connection | None):
        self.plan = plan
        self.conn = conn
        self.parent = parent
        self.address: Any = None
        self.identity: Identity | None = None
        self.stopping = False
        self.child: Connection | None = None
        self.pid = 0

    def run(self) -> int:
        """Start the server until it ends without failing; return the exit code."""
        signal.signal(signal.SIGTERM, self.on_sigterm)
        if self.plan.levels is not None:
            send_logs_home(self.conn, self.plan.levels)
        try:
            if self.plan.listen is not None:
                self.plan = self.plan._replace(listener=self.plan.listen())
                if self.plan.path is not None:
                    self.identity = identify_socket(self.plan.path)
            code = self.keep_up()
            self.close()
            return end_like(code)
        except Terminated:
            self.kill_server()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self.close()
            os.kill(os.getpid(), signal.SIGTERM)
        except OSError as exc:
            send(self.conn, "error", *pack_error(exc))
        finally:
            self.close()
        return 1

    def on_sigterm(self, *_args: Any) -> None:
        """Leave the loop, once."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    def keep_up(self) -> int:
        """Run the server, again after each failure and a pause."""
        first, longest = RESTART_PAUSES
        pause = first
        while True:
            began = time.monotonic()
            code = self.run_once()
            if self.stopping or code == 0 or self.address is None:
                return code
            if time.monotonic() - began > RESTART_STEADY_SECONDS:
                pause = first
            log.warning(
                "the server at %r ended with %s, starting it again in %.2f s",
                self.address,
                describe_exit(code),
                pause,
            )
            self.pump([], pause)
            if self.stopping:
                send(self.conn, "exiting", True)
                return 0
            pause = min(2 * pause, longest)

    def run_once(self) -> int:
        """Fork a server and pass messages until it ends; return its exit code."""
        self.child, theirs = multiprocessing.Pipe()
        me = None
        if self.parent is not None:
            me = Connection(os.pidfd_open(os.getpid()), writable=False)
        self.pid = os.fork()
        if self.pid == 0:
            self.be_server(theirs, me)
        theirs.close()
        if me is not None:
            me.close()
        while self.pump([self.child], None):
            pass
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        self.child.close()
        self.child = None
        return os.waitstatus_to_exitcode(status)

    def be_server(self, theirs: Connection, me: Connection | None) -> None:
        """Go on as the server's process; does not return."""
        code = 1
        try:
            assert self.child is not None
            self.child.close()
            self.conn.close()
            pid = os.getppid()
            plan = self.plan._replace(
                parent_pid=pid, forked=True, restart=False, path=None
            )
            child.run(plan, theirs, me)
            code = 0
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            child.leave(code)

    def pump(self, children: list[Connection], seconds: float | None) -> bool:
        """Pass messages on for a while; False when it is over with the child's."""
        end = None if seconds is None else time.monotonic() + seconds
        parents = [self.conn] if self.parent is None else [self.conn, self.parent]
        while not (self.stopping and not children):
            left = None if end is None else max(0.0, end - time.monotonic())
            ready = wait([*parents, *children], left)
            if not ready:
                return False
            if self.parent in ready:
                self.die()
            if self.conn in ready:
                self.hear_parent()
            if children and children[0] in ready:
                return self.hear_child(children[0])
        return False

    def hear_parent(self) -> None:
        """Take "stop": give the address up, and pass it on."""
        try:
            message = self.conn.recv()
        except (EOFError, OSError):
            self.die()
        self.stopping = True
        if self.plan.listener is not None:
            self.plan.listener.close()
        if self.child is not None:
            send(self.child, *message)

    def hear_child(self, child: Connection) -> bool:
        """Pass one message home; False at the last."""
        try:
            data = child.recv_bytes()
        except (EOFError, OSError):
            return False
        message = pickle.loads(data)
        if message[0] == "ready":
            self.hear_ready(message[1])
        elif message[0] == "error" and self.address is not None:
            log.error("the server did not start again: %s", message[3])
        elif message[0] != "exiting" or self.stopping:
            with contextlib.suppress(OSError):
                self.conn.send_bytes(data)
        return True

    def hear_ready(self, address: Any) -> None:
        """Report the address, and insist on it from then on."""
        if self.address is None:
            self.address = address
            send(self.conn, "ready", address, self.plan.path, self.identity)
        elif address != self.address:
            log.error("restarted at %r instead of %r: ended", address, self.address)
            self.stopping = True
            self.kill_server()
        else:
            log.info("the server at %r is up again", address)

    def kill_server(self) -> None:
        """Kill the server's process and all that it started, and wait for it."""
        if self.pid:
            for pid in [*descendants(self.pid), self.pid]:
                kill(pid)
            with contextlib.suppress(OSError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        """Give the address up."""
        if self.plan.listener is not None:
            self.plan.listener.close()
        if self.plan.path is not None and self.plan.listener is not None:
            unlink_socket(self.plan.path, self.identity)

    def die(self) -> None:
        """End because the parent did; does not return."""
        self.kill_server()
        self.close()
        os._exit(1)


def end_like(code: int) -> int:
    """An exit code as it is; a signal is sent to ourselves as well."""
    if code < 0:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code
