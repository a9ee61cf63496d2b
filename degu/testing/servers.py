"""Servers for tests: each in its own process, on a port of its own, gone afterwards."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from degu.address import Address, format_url
from degu.child import ServerJob, ServiceJob, describe_exit
from degu.client import Client, SSLClient
from degu.embed import (
    STOP_GRACE,
    EmbeddedServer,
    EmbeddedService,
    EmbeddedSSLServer,
)
from degu.limits import MAX_WORKERS
from degu.parent import Ending
from degu.testing import report
from degu.testing.recorder import (
    RECORDED_BODY_SIZE,
    Link,
    Observed,
    RecordedJob,
    check_body_size,
    refuse_unexpected,
)
from degu.testing.tape import Tape

if TYPE_CHECKING:
    from degu.testing.pki import TempPKI

__all__ = ["SharedServer", "TempSSLServer", "TempServer", "TempService"]

# Apps of tests are often local functions, which only a fork can take along; and the
# threads of a test runner wait for input, they hold no lock that a child could need.
_START_METHOD = "fork" if sys.platform == "linux" else None

_SEVERAL = range(2, MAX_WORKERS + 1)


class _Temporary(EmbeddedService):
    """What the servers of tests share: they can say what became of them."""

    start_method = _START_METHOD
    _died: str | None = None
    ended = False
    """Whether `stop` or `terminate` was called, if only to say that it is known."""

    def _begin(self, job: ServiceJob | ServerJob) -> None:
        super()._begin(job)
        report.enter(self)

    def check_leaks(self, **options: Any) -> contextlib.AbstractContextManager[None]:
        """Check that the body leaves nothing behind here, nor in the server's process.

        Takes the options of `degu.testing.leaks.check_leaks`, and raises what it does.
        """
        from degu.testing.leaks import check_leaks

        return check_leaks(processes=[self], **options)

    def is_own(self) -> bool:
        """Whether this process started it, and not one that this was forked from."""
        return self._core.mine()

    @property
    def died(self) -> str | None:
        """How the server ended without being told to, as ``'SIGSEGV'``; else None."""
        core = self._core
        if self._died is None and core.mine() and not (core.asked or core.is_alive()):
            core.finish()
            self._died = describe_exit(core.exitcode)
        return self._died

    def stop(self, grace: float = STOP_GRACE) -> Ending:
        """End the process gently; see `EmbeddedService.stop`."""
        was_asked = self._core.asked
        self.ended = True
        ending = super().stop(grace)
        if ending == "exited" and not was_asked:
            # It was ending already, which could not be seen before.
            self._died = self._died or describe_exit(self._core.exitcode)
        return ending

    def terminate(self) -> None:
        """End the process now; see `EmbeddedService.terminate`."""
        self.ended = True
        super().terminate()

    def drain_log(self) -> None:
        """Handle the log records that the server has sent so far."""
        if self._core.mine():
            self._core.receive()

    def take_mark(self) -> Any:
        """A value that changes when something happens to the server."""
        return (self.died,)

    def describe(self, mark: Any) -> str:
        """What happened to the server since `mark`, for the report of a failed test."""
        return "\n".join(self._describe(mark))

    def _describe(self, mark: Any) -> list[str]:
        lines = [self._describe_state()]
        if self.is_own() and self.is_alive():
            sockets = report.describe_sockets(self.pid)
            lines += report.indent("open sockets:", sockets)
        return lines

    def _describe_state(self) -> str:
        core = self._core
        if not core.mine() or core.is_alive():
            return f"process {self.pid} runs"
        if self.died:
            return f"process {self.pid} ended without being told to: {self.died}"
        return f"process {self.pid} was told to end: {describe_exit(core.exitcode)}"


class _Mark(NamedTuple):
    """How far a recorded server was."""

    died: str | None
    requests: int
    lines: int


class _Recorded(Observed, _Temporary):
    """A server whose requests are recorded."""

    _recorded_body_size: int | None = None
    _bare = False

    def _take_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options without those for the recording."""
        size = check_body_size(options.pop("recorded_body_size", RECORDED_BODY_SIZE))
        record = options.pop("record", True)
        if not isinstance(record, bool):
            raise TypeError(f"record: expected True or False, got {record!r}")
        self._recorded_body_size = size if record else None
        return options

    def _take_args(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """`build_func` and its arguments; without any there are only expectations."""
        self._bare = not args or args == (None,)
        return (None, refuse_unexpected) if self._bare else args

    def _begin(self, job: ServiceJob | ServerJob) -> None:
        self._observe(None)
        workers = self.options.get("workers")
        if self._recorded_body_size is not None and workers in _SEVERAL:
            raise ValueError(
                f"workers: expected 1, as each would count its requests from 0, "
                f"or record=False beside it, got {workers}"
            )
        self._preload()
        if self._recorded_body_size is not None and isinstance(job, ServerJob):
            link = Link(Tape(), Tape(), self._recorded_body_size, _name_leaks())
            self._observe(link)
            options = {**job.options, "record": link}
            job = RecordedJob(*job)._replace(options=options)
        try:
            super()._begin(job)
        except BaseException:
            self._rewind()
            raise

    def _preload(self) -> None:
        """Import what the server needs here once, and not in every fork again."""
        if self.start_method == "fork":
            import degu.server  # noqa: F401

    def _is_bare(self) -> bool:
        return self._bare

    def stop(self, grace: float = STOP_GRACE) -> Ending:
        """End the process gently; see `EmbeddedService.stop`.

        What was recorded stays readable.
        """
        try:
            return super().stop(grace)
        finally:
            self._rewind()

    def terminate(self) -> None:
        """End the process now; what was recorded stays readable."""
        super().terminate()
        self._rewind()

    def _rewind(self) -> None:
        """Read the tapes to their end, and let go of them."""
        if self._link is not None:
            self._update()
            self._link.requests.close()
            self._link.orders.close()

    def take_mark(self) -> _Mark:
        """A value that changes when something happens to the server."""
        if self._link is not None:
            self._update()
        return _Mark(self.died, len(self._records), len(self._log))

    def _describe(self, mark: _Mark | None) -> list[str]:
        if self._link is not None:
            self._update()
        begin = mark or _Mark(None, 0, 0)
        requests = list(self._records.values())[begin.requests :]
        lines = super()._describe(mark)
        lines += report.indent("requests:", [str(one) for one in requests])
        return lines + report.indent("server log:", self._log[begin.lines :])


def _name_leaks() -> str:
    """What lets a server that is no fork take part in a leak check, if there is any."""
    if _START_METHOD == "fork" or not report.is_loaded("degu.testing.leaks"):
        return ""
    from degu.testing.leaks import journal

    return journal()


class TempServer(_Recorded, EmbeddedServer):
    """A `degu.EmbeddedServer` for a test, with a client made to measure.

    ``TempServer(address, build_func, *build_args, **options)``, where `build_func` may
    be None: then the next argument is the app itself. With neither there are only
    expectations (`expect`), and what is not expected gets a 500. It is stopped by
    ``stop()`` or ``terminate()``, at the end of a ``with``, or when it is garbage
    collected.

    Two options more: `recorded_body_size` is how much of a request's body `requests`
    keep (bytes, default 64 KiB); ``record=False`` records nothing.
    """

    def __init__(self, address: Any, *args: Any, **options: Any) -> None:
        options = self._take_options(options)
        super().__init__(address, *self._take_args(args), **options)

    def client(self, **options: Any) -> Client:
        """A new `degu.client.Client` of this server; `options` are the client's."""
        return Client(self.address, **options)


class TempSSLServer(_Recorded, EmbeddedSSLServer):
    """A `degu.EmbeddedSSLServer` for a test, with a client that it accepts.

    The first argument is a `TempPKI`, whose server certificate is used and whose
    client certificates are required, or an sslconfig dict. All else is as with
    `TempServer`.
    """

    def __init__(
        self, pki: TempPKI | dict[str, Any], address: Any, *args: Any, **options: Any
    ) -> None:
        self.pki = None if isinstance(pki, Mapping) else pki
        sslconfig: Any = pki if isinstance(pki, Mapping) else pki.server_sslconfig
        options = self._take_options(options)
        super().__init__(sslconfig, address, *self._take_args(args), **options)

    def _preload(self) -> None:
        super()._preload()
        if self.start_method == "fork":
            import degu.tls  # noqa: F401

    def client(self, sslctx: Any = None, **options: Any) -> SSLClient:
        """A new `degu.client.SSLClient` of this server.

        `sslctx` is an `ssl.SSLContext` or an sslconfig dict, by default the client's
        one of the `TempPKI`. Raises `ValueError` where there is neither.
        """
        if sslctx is None:
            if self.pki is None:
                raise ValueError("sslctx: expected one, as this server has no TempPKI")
            sslctx = self.pki.client_sslconfig
        return SSLClient(sslctx, self.address, **options)


class TempService(_Temporary):
    """A `degu.EmbeddedService` for a test: any server, in a process of its own."""


class SharedServer(Observed):
    """A `TempServer` of another process of the same test run.

    `requests` has what all of its users sent since this object was made; `clear`
    takes the expectations of all. It is not this process's to stop.
    """

    def __init__(self, address: Address, link: Any) -> None:
        self.address = address
        self._observe(link)
        self._update()
        self._first = len(self._records)
        report.enter(self)

    def __repr__(self) -> str:
        return f"<SharedServer {self.address!r}>"

    @property
    def url(self) -> str:
        """The URL of the server's root."""
        return format_url("http", self.address)

    def client(self, **options: Any) -> Client:
        """A new `degu.client.Client` of this server; `options` are the client's."""
        return Client(self.address, **options)

    def take_mark(self) -> Any:
        """A value that changes when the server is asked something."""
        self._update()
        return len(self._records)

    def describe(self, mark: Any) -> str:
        """What the server was asked since `mark`."""
        self._update()
        requests = list(self._records.values())[mark or self._first :]
        return "\n".join(report.indent("requests:", [str(one) for one in requests]))


# --- Other people's servers ---------------------------------------------------------


def build_proxy(
    address: Any, sslconfig: dict[str, Any] | None, host: str | None, prefix: str
) -> Any:
    """A `degu.apps.ProxyApp` in front of the server at `address`."""
    from degu.apps import ProxyApp

    options = {} if host is None else {"host": host}
    client = (
        Client(address, **options)
        if sslconfig is None
        else SSLClient(sslconfig, address, **options)
    )
    return ProxyApp(client, prefix=prefix)


def find_upstream(server: Any, sslconfig: Any = None) -> tuple[Any, Any]:
    """(address, sslconfig or None) of a server, or of an address itself."""
    if sslconfig is None and getattr(server, "pki", None) is not None:
        sslconfig = server.pki.client_sslconfig
    address = getattr(server, "address", server)
    if isinstance(address, str | bytes | tuple):
        return address, sslconfig
    raise TypeError(f"upstream: expected a server or an address, got {server!r}")
