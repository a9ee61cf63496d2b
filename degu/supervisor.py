"""The supervisor: a process that keeps the address, and has others serve there.

It starts one worker or several, which share the listening socket, and starts them again
where that is wished for. It runs no code of the user, so nothing of the user's can take
it down; each worker is forked from it as it was at first, is a server's process like
any other (`degu.child`), and has the supervisor for its parent.
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
from typing import TYPE_CHECKING, Any

from degu import child
from degu.address import Identity, identify_socket, unlink_socket
from degu.child import Plan, describe_exit, detach, pack_error, send, send_logs_home
from degu.guard import descendants, kill

if TYPE_CHECKING:
    from degu.sharing import Share

log = logging.getLogger("degu.embed")

RESTART_PAUSES = (0.05, 5.0)
"""First and longest pause before a failed server is started again; it doubles."""

RESTART_STEADY_SECONDS = 10.0
"""A server that ran this long failed for a new reason: the pauses begin anew."""


def run(plan: Plan, conn: Connection, parent: Connection | None) -> None:
    """Keep the workers up, until told to stop or the parent is gone.

    Raises `SystemExit` with the exit code of the process.
    """
    detach(plan)
    code = Supervisor(plan, conn, parent).run()
    if code:
        raise SystemExit(code)


class Terminated(BaseException):
    """SIGTERM came to a supervisor."""


class Worker:
    """One process of the server, and the next one in its place."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid = 0
        self.end: int | None = None
        self.conn: Connection | None = None
        self.ready = False
        self.clean: bool | None = None
        self.began = 0.0
        self.due = 0.0
        self.pause = RESTART_PAUSES[0]

    def begin(self, pid: int, conn: Connection) -> None:
        """Take note of a process that was started."""
        self.pid, self.conn, self.clean = pid, conn, None
        self.began = time.monotonic()
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                # What the process forked may hold its end of the pipe for longer.
                self.end = os.pidfd_open(pid)

    def let_go(self) -> None:
        """Close what we have of the process."""
        if self.conn is not None:
            self.conn.close()
        if self.end is not None:
            os.close(self.end)
        self.conn = self.end = None

    def reap(self) -> int:
        """Clear up after the process, which has ended; return its exit code."""
        if hasattr(os, "waitid"):
            # Nobody else can have this number before the process is reaped.
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        self.let_go()
        return os.waitstatus_to_exitcode(status)

    def postpone(self) -> float:
        """Set when to start again; return in how many seconds that is."""
        first, longest = RESTART_PAUSES
        now = time.monotonic()
        if now - self.began > RESTART_STEADY_SECONDS:
            self.pause = first
        pause = self.pause
        self.due = now + pause
        self.pause = min(2 * pause, longest)
        return pause


class Supervisor:
    """The work of that process."""

    def __init__(self, plan: Plan, conn: Connection, parent: Connection | None):
        self.plan = plan
        self.conn = conn
        self.parent = parent
        self.address: Any = None
        self.identity: Identity | None = None
        self.stopping = False
        self.workers = [Worker(number) for number in range(plan.workers)]
        self.shares: list[Share] | None = None
        if plan.workers > 1:
            from degu.sharing import make_shares

            self.shares = make_shares(plan.workers)

    def run(self) -> int:
        """Keep all workers up until the end of the server; return the exit code."""
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
            self.close()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
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
        """Run the workers, if need be each again, until the server is to end."""
        for worker in self.workers:
            self.start(worker)
        code = 0
        while any(worker.pid for worker in self.workers) or not self.stopping:
            for worker in self.pump():
                ended = self.reap(worker)
                if self.stopping:
                    code = code or ended
                elif ended == 0 or not self.plan.restart or self.address is None:
                    return ended
                else:
                    self.postpone(worker, describe_exit(ended))
            self.start_due()
        return code

    def start_due(self) -> None:
        """Start the workers whose pause is over."""
        now = time.monotonic()
        for worker in self.workers:
            if not (worker.pid or self.stopping or worker.due > now):
                try:
                    self.start(worker)
                except OSError as exc:
                    self.postpone(worker, repr(exc))

    def start(self, worker: Worker) -> None:
        """Fork a process for a worker."""
        ours, theirs = multiprocessing.Pipe()
        me = None
        if self.parent is not None:
            me = Connection(os.pidfd_open(os.getpid()), writable=False)
        pid = os.fork()
        if pid == 0:
            ours.close()
            self.be_server(worker, theirs, me)
        worker.begin(pid, ours)
        if child.is_writable(self.conn):
            send(self.conn, "worker", pid)
        theirs.close()
        if me is not None:
            me.close()

    def be_server(
        self, worker: Worker, theirs: Connection, me: Connection | None
    ) -> None:
        """Go on as the process of a worker; does not return."""
        code = 1
        try:
            self.conn.close()
            for other in self.workers:
                other.let_go()
            plan = self.plan._replace(
                parent_pid=os.getppid(),
                forked=True,
                path=None,
                share=None if self.shares is None else self.shares[worker.number],
            )
            child.run(plan, theirs, me)
            code = 0
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            child.leave(code)

    def reap(self, worker: Worker) -> int:
        """Clear up after a worker that has ended; return its exit code."""
        code = worker.reap()
        if self.shares is not None:
            self.shares[worker.number].leave()
        if worker.clean is None:
            worker.clean = not self.stopping
        self.say_exiting()
        return code

    def postpone(self, worker: Worker, why: str) -> None:
        """Start a worker later that has failed."""
        name = (
            "the server" if self.shares is None else f"worker {worker.number} of that"
        )
        log.warning(
            "%s at %r ended with %s, starting it again in %.2f s",
            name,
            self.address,
            why,
            worker.postpone(),
        )

    # --- messages

    def pump(self) -> list[Worker]:
        """Pass messages on until something is to be done; return who has ended."""
        running = [worker for worker in self.workers if worker.pid]
        ends = [worker.end for worker in running if worker.end is not None]
        conns = [worker.conn for worker in running if worker.conn is not None]
        parents = [self.conn] if self.parent is None else [self.conn, self.parent]
        ready = wait([*parents, *ends, *conns], self.find_pause())
        if self.parent in ready:
            self.die()
        if self.conn in ready:
            self.hear_parent()
        return [
            worker
            for worker in running
            if (worker.end in ready or worker.conn in ready)
            and self.hear_worker(worker, worker.end in ready)
        ]

    def find_pause(self) -> float | None:
        """Seconds until the next worker is due; None if none is."""
        if self.stopping:
            return None
        dues = [worker.due for worker in self.workers if not worker.pid]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def hear_parent(self) -> None:
        """Take "stop": give the address up, and pass it on."""
        try:
            message = self.conn.recv()
        except (EOFError, OSError):
            self.die()
        self.stopping = True
        if self.plan.listener is not None:
            self.plan.listener.close()
        for worker in self.workers:
            if worker.conn is not None:
                send(worker.conn, *message)
        self.say_exiting()

    def say_exiting(self) -> None:
        """Say goodbye once all workers have."""
        if self.stopping and all(
            w.clean is not None or not w.pid for w in self.workers
        ):
            send(self.conn, "exiting", all(w.clean is not False for w in self.workers))

    def hear_worker(self, worker: Worker, ended: bool) -> bool:
        """Take one message of a worker, at its end all; whether it has ended."""
        try:
            while worker.conn is not None and (not ended or worker.conn.poll()):
                self.hear(worker, worker.conn.recv_bytes())
                if not ended:
                    return False
        except (EOFError, OSError):
            ended = ended or worker.end is None
            if worker.conn is not None:
                worker.conn.close()
                worker.conn = None
        return ended

    def hear(self, worker: Worker, data: bytes) -> None:
        """Handle one message of a worker; most are for the parent."""
        message = pickle.loads(data)
        match message:
            case ("ready", address, *_):
                self.hear_ready(worker, address)
            case ("error", _, _, text) if self.address is not None:
                log.error("the server did not start again: %s", text)
            case ("exiting", clean):
                worker.clean = clean
                self.say_exiting()
            case _ if child.is_writable(self.conn):
                with contextlib.suppress(OSError):
                    self.conn.send_bytes(data)

    def hear_ready(self, worker: Worker, address: Any) -> None:
        """Report the address when all are there, and insist on it from then on."""
        worker.ready = True
        if self.address is None:
            if all(each.ready for each in self.workers):
                self.address = address
                send(self.conn, "ready", address, self.plan.path, self.identity)
        elif address != self.address:
            log.error("restarted at %r instead of %r: ended", address, self.address)
            self.stopping = True
            self.kill_workers()
        else:
            log.info("the server at %r is up again", address)

    # --- the end

    def kill_workers(self) -> None:
        """Kill the workers and all that they started, and wait for that."""
        pids = [worker.pid for worker in self.workers if worker.pid]
        for pid in [*descendants(os.getpid()), *pids] if pids else []:
            kill(pid)
        for pid in pids:
            with contextlib.suppress(OSError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        """End what is left of the server, then give the address up."""
        self.kill_workers()
        if self.plan.listener is not None:
            self.plan.listener.close()
        if self.plan.path is not None and self.plan.listener is not None:
            unlink_socket(self.plan.path, self.identity)

    def die(self) -> None:
        """End because the parent did; does not return."""
        self.close()
        os._exit(1)


def end_like(code: int) -> int:
    """An exit code as it is; a signal is sent to ourselves as well."""
    if code < 0:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code
