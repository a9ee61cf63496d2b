"""What the server was asked: written down in its process, read in the test's.

`RecordedJob` puts the app of a server into a `Recorder`, which writes every request
to a tape, and answers those that the test expects. `Observed` is the test's side. The
app notices nothing: bodies are streamed through, what it returns and what it raises
goes on its way.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from degu.base import ChunkedInput, Input, wire
from degu.child import ServerJob, build_app
from degu.errors import ContentTooLargeError, shown
from degu.limits import MAX_READ_SIZE
from degu.testing.expect import (
    Answer,
    Anything,
    RecordedRequest,
    UnmetError,
    Wanted,
    build_answer,
    build_wanted,
    explain_unmet,
    matches,
    matches_head,
)
from degu.testing.tape import Tape, close_others

__all__ = [
    "RECORDED_BODY_SIZE",
    "Expectation",
    "Observed",
    "RecordedRequest",
    "UnmetError",
]

RECORDED_BODY_SIZE = 64 * 1024
"""How much of a request's body is kept (bytes), unless told otherwise."""

SERVER_LOG = "degu.server"


# --- In the server's process --------------------------------------------------------


class Link(NamedTuple):
    """The two tapes between a server and its test, and what else the server needs."""

    requests: Tape
    orders: Tape
    body_size: int = RECORDED_BODY_SIZE
    leaks: str = ""
    """What `degu.testing.leaks.follow` takes."""


class RecordedJob(ServerJob):
    """A `ServerJob` whose app is recorded; the `Link` is the option ``record``."""

    __slots__ = ()

    def __call__(self) -> Any:
        """Build the server."""
        options = dict(self.options)
        link: Link = options.pop("record")
        close_others(link.requests, link.orders)
        if link.leaks:
            from degu.testing.leaks import follow

            follow(link.leaks)
        write_log(link.requests)
        args = (link, self.build_func, *self.build_args)
        job = ServerJob(self.address, build_recorder, args, options, self.sslconfig)
        return job()


def build_recorder(link: Link, build_func: Any, *build_args: Any) -> Any:
    """The user's app inside of a `Recorder`."""
    app = build_app(build_func, build_args)
    # The server itself says best what is wrong with one that can't be called.
    return Recorder(app, link) if callable(app) else app


def refuse_unexpected(_request: Any) -> Any:
    """The app of a server that has only expectations."""
    body = b"This request was not expected; the test's failure says what was.\n"
    headers = {"content-type": "text/plain"}
    return 500, "Unexpected Request", headers, body


class TapeHandler(logging.Handler):
    """Writes log records, one line each, to a tape."""

    def __init__(self, tape: Tape) -> None:
        super().__init__(logging.INFO)
        self.tape = tape

    def emit(self, record: logging.LogRecord) -> None:
        """Write one; the traceback goes another way."""
        try:
            self.tape.append("log", record.levelname, record.getMessage())
        except Exception:
            self.handleError(record)


def write_log(tape: Tape) -> None:
    """Have the server's log on the tape, whatever the level of the test's logging."""
    logger = logging.getLogger(SERVER_LOG)
    level = logger.getEffectiveLevel()
    if level > logging.INFO:
        logger.setLevel(logging.INFO)
        for handler in logging.root.handlers:
            handler.addFilter(
                lambda record: record.name != SERVER_LOG or record.levelno >= level
            )
    logger.addHandler(TapeHandler(tape))


class Tee:
    """The file of a request's body, telling what is read from it."""

    def __init__(self, rfile: Any, note: Callable[[memoryview], None]) -> None:
        self._rfile = rfile
        self._note = note

    def readinto(self, buffer: Any) -> int:
        """Read, and tell."""
        count: int = self._rfile.readinto(buffer) or 0
        if count:
            self._note(memoryview(buffer)[:count])
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rfile, name)


class Recorder:
    """An app that writes down what another one is asked."""

    def __init__(self, app: Any, link: Link) -> None:
        self.app = app
        self.link = link
        self.tape = link.requests
        self.number = 0
        self.lock = threading.Lock()
        self.wanted: list[Wanted] = []
        self.uses: dict[int, int] = {}
        for hook in ("on_connect", "on_refused"):
            if hasattr(app, hook):
                setattr(self, hook, getattr(app, hook))
        for kind, *rest in self.tape.read():
            # A server that was started again goes on where the last one ended.
            if kind == "met":
                self.uses[rest[1]] = self.uses.get(rest[1], 0) + 1
            elif kind == "request":
                self.number = max(self.number, rest[0] + 1)

    def __call__(self, request: Any) -> Any:
        """Write the request down, and pass it on."""
        with self.lock:
            number = self.number
            self.number += 1
        began = time.monotonic()
        record = build_record(request)
        self.tape.note("request", number, record)
        if request["body"] is not None:
            request["body"].rfile = Tee(request["body"].rfile, self.make_note(number))
        try:
            response = self.respond(number, record, request)
        except BaseException as error:
            last = traceback.format_exception_only(error)[-1].strip()
            self.tape.note("failed", number, last, time.monotonic() - began)
            raise
        is_whole = isinstance(response, tuple) and len(response) > 0
        status = response[0] if is_whole and type(response[0]) is int else None
        self.tape.note("answered", number, status, time.monotonic() - began)
        return response

    def make_note(self, number: int) -> Callable[[memoryview], None]:
        """What a `Tee` of one request calls."""
        room = self.link.body_size

        def note(data: memoryview) -> None:
            nonlocal room
            self.tape.note("body", number, bytes(data[:room]), len(data))
            room -= min(room, len(data))

        return note

    def respond(self, number: int, record: RecordedRequest, request: Any) -> Any:
        """Answer what is expected; what is not is the app's."""
        if not (self.wanted or self.link.orders.has_more()):
            return self.app(request)
        self.update()
        body = request["body"]
        if body is not None and self.needs_body(record):
            record.body = self.read_ahead(request)
        answer = self.choose(number, record)
        if answer is None:
            return self.app(request)
        return perform(answer, request)

    def update(self) -> None:
        """Take what the test ordered meanwhile."""
        with self.lock:
            for kind, value in self.link.orders.read():
                if kind == "clear":
                    self.wanted.clear()
                    continue
                numbers = [one.number for one in self.wanted]
                if value.number in numbers:
                    self.wanted[numbers.index(value.number)] = value
                else:
                    self.wanted.append(value)

    def needs_body(self, record: RecordedRequest) -> bool:
        """Whether the body has to be known to choose an answer."""
        with self.lock:
            wanted = list(self.wanted)
        return any(one.is_about_body and matches_head(one, record) for one in wanted)

    def read_ahead(self, request: Any) -> bytes:
        """Read the body whole, and give the app another one with the same content."""
        body = request["body"]
        if isinstance(body, ChunkedInput):
            data, request["body"] = _replay_chunks(body)
        else:
            data = body.read()
            request["body"] = Input(_Bytes(data), len(data))
        return data

    def choose(self, number: int, record: RecordedRequest) -> Answer | None:
        """Find the expectation that a request meets, and count it."""
        with self.lock:
            wanted = self.find(record)
            if wanted is None:
                return None
            use = self.uses.get(wanted.number, 0)
            self.uses[wanted.number] = use + 1
            self.tape.note("met", number, wanted.number)
            return wanted.answer_for(use)

    def find(self, record: RecordedRequest) -> Wanted | None:
        """Counted expectations come first, the oldest first; stubs newest first."""
        ordered = [one for one in self.wanted if one.ordered and self.is_left(one)]
        for one in self.wanted:
            if one.times is None or not self.is_left(one):
                continue
            if one.ordered and one is not ordered[0]:
                continue
            if matches(one, record):
                return one
        for one in reversed(self.wanted):
            if one.times is None and matches(one, record):
                return one
        return None

    def is_left(self, wanted: Wanted) -> bool:
        """Whether a counted expectation has not had all its requests."""
        return self.uses.get(wanted.number, 0) < wanted.count


def build_record(request: Any) -> RecordedRequest:
    """What is known of a request when it comes."""
    return RecordedRequest(
        method=request["method"],
        uri=request["uri"],
        headers=dict(request["headers"]),
        peer=request["client"],
        scheme=request["scheme"],
        peercert=request["ssl_peercert"],
        cipher=request["ssl_cipher"],
        credentials=request["credentials"],
        time=time.time(),
    )


class _Bytes:
    """A body that was read, to be read again."""

    def __init__(self, data: bytes) -> None:
        self._view = memoryview(data)

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), len(self._view))
        buffer[:count] = self._view[:count]
        self._view = self._view[count:]
        return count

    def readline(self, size: int) -> bytes:
        data = bytes(self._view[:size])
        line = data[: data.find(b"\n") + 1] or data
        self._view = self._view[len(line) :]
        return line


def _replay_chunks(body: ChunkedInput) -> tuple[bytes, ChunkedInput]:
    """The data of a body, and the same chunks, extensions and trailers once more."""
    raw, data = [], []
    size = 0
    for extension, piece in body.chunks():
        head = wire.format_chunk_head(len(piece), extension)
        raw.append(head + b"\r\n" + piece + (b"\r\n" if piece else b""))
        data.append(piece)
        size += len(piece)
        if size > MAX_READ_SIZE:
            raise ContentTooLargeError(
                f"expected a body of at most {MAX_READ_SIZE} bytes to compare, got more"
            )
    for name, value in body.trailers.items():
        raw.append(f"{name}: {value}\r\n".encode("latin-1"))
    raw.append(b"\r\n")
    return b"".join(data), ChunkedInput(_Bytes(b"".join(raw)), body.max_size)


def perform(answer: Answer, request: Any) -> Any:
    """Give a canned answer, to a request that was read to its end."""
    if answer.delay:
        time.sleep(answer.delay)
    if answer.app is not None:
        return build_app(None, (answer.app,))(request)
    body = request["body"]
    if body is not None and not body.closed:
        for _ in body:
            pass
    headers: Mapping[str, Any] = answer.headers
    if request["method"] == "HEAD" and answer.body is not None:
        headers = {**headers, "content-length": len(answer.body)}
        return answer.status, answer.reason, headers, None
    return answer.status, answer.reason, headers, answer.body


# --- In the test's process ----------------------------------------------------------


class Expectation:
    """One request that should come, in the hands of the test that expects it."""

    def __init__(self, orders: Any, wanted: Any) -> None:
        self._orders: Tape = orders
        self._wanted: Wanted = wanted

    def __repr__(self) -> str:
        return f"<Expectation {self._wanted}>"

    def answer(
        self,
        status: int = 200,
        body: bytes | str | None = None,
        *,
        json: Any = Anything,
        headers: Mapping[str, Any] | None = None,
        reason: str | None = None,
        delay: float = 0.0,
    ) -> Expectation:
        """Answer so; called again, the next request gets the next answer.

        The last answer stays for all further requests; without any it is an empty
        200. `body` is bytes or a text (UTF-8), or there is a value for `json`;
        `delay` is in seconds. Raises `TypeError` or `ValueError`.
        """
        return self._add(build_answer(status, reason, headers or {}, body, json, delay))

    def answer_with(self, app: Callable[[Any], Any] | str) -> Expectation:
        """Answer by an app: a function of a module, or ``'module:attribute'``.

        It has to travel to a process that runs already, so it can't be a lambda or
        a function of the test; raises `ValueError` where it is.
        """
        return self._add(Answer(app=app))

    def _add(self, answer: Answer) -> Expectation:
        answers = (*self._wanted.answers, answer)
        wanted = dataclasses.replace(self._wanted, answers=answers)
        _order(self._orders, wanted)
        self._wanted = wanted
        return self


def _order(orders: Tape, wanted: Wanted) -> None:
    try:
        orders.append("want", wanted)
    except Exception as error:
        raise ValueError(
            f"{wanted}: expected only what can be sent to another process ({error})"
        ) from error


class Observed:
    """What a test can see and order of a server that is recorded."""

    _link: Link | None = None

    def _observe(self, link: Link | None) -> None:
        self._link = link
        self._records: dict[int, RecordedRequest] = {}
        self._first = 0
        self._expected: list[Expectation] = []
        self._uses: dict[int, int] = {}
        self._log: list[str] = []
        # The tests that share a server must not share a number.
        self._number = os.getpid() * 1_000_000

    def _update(self) -> Link:
        link = self._link
        if link is None:
            raise RuntimeError("this server was started with record=False")
        for event in link.requests.read():
            self._hear(*event)
        return link

    def _hear(self, kind: str, *values: Any) -> None:
        if kind == "log":
            self._log.append(": ".join(values))
            return
        number, *rest = values
        if kind == "request":
            self._records[number] = rest[0]
            return
        if kind == "met":
            self._uses[rest[0]] = self._uses.get(rest[0], 0) + 1
        record = self._records.get(number)
        if record is None:
            return  # there was no room for its beginning
        if kind == "body":
            record.body += rest[0]
            record.body_size += rest[1]
        elif kind == "met":
            record.met = rest[0]
        elif kind == "answered":
            record.status, record.seconds = rest
        elif kind == "failed":
            record.error, record.seconds = rest

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests that came to the app so far, the oldest first.

        Those that the server refused by itself are not among them. Raises
        `RuntimeError` for a server that was started with ``record=False``.
        """
        self._update()
        return [r for number, r in self._records.items() if number >= self._first]

    def wait_for_requests(
        self, count: int = 1, within: float = 5.0
    ) -> list[RecordedRequest]:
        """Wait until `count` requests were answered; give all that came.

        Raises `UnmetError` after `within` seconds.
        """
        if not _poll(lambda: len(self._list_done()) >= count, within):
            came = self.requests
            lines = [f"expected {count} answered requests within {within:g} s, "]
            lines[0] += f"got {len(self._list_done())}" + (":" if came else "")
            raise UnmetError("\n".join([*lines, *(f"  {one}" for one in came)]))
        return self.requests

    def _list_done(self) -> list[RecordedRequest]:
        return [r for r in self.requests if (r.status, r.error) != (None, None)]

    def expect(
        self,
        method: Any,
        path: Any,
        *,
        query: Any = None,
        headers: Mapping[str, Any] | None = None,
        body: Any = None,
        json: Any = Anything,
        form: Any = None,
        times: int = 1,
        ordered: bool = False,
    ) -> Expectation:
        """Expect a request, and answer it in the app's place.

        `method` and `path` are texts or patterns (`re.compile`, to match as a whole)
        or None for any; `query` a text, or names and values in any order; `headers`
        those that count; `body` bytes, a text or a pattern; `json` and `form` are
        compared as values. It has to come `times` times, or as often as there are
        answers if they are more; with `ordered` not before the ordered ones that
        were expected earlier. Raises `TypeError` or `ValueError`.
        """
        fields = {"query": query, "headers": headers, "body": body, "json": json}
        if times is None:
            raise TypeError("times: expected an int (stub() takes any number)")
        return self._want(
            method, path, **fields, form=form, times=times, ordered=ordered
        )

    def stub(
        self,
        method: Any,
        path: Any,
        *,
        query: Any = None,
        headers: Mapping[str, Any] | None = None,
        body: Any = None,
        json: Any = Anything,
        form: Any = None,
    ) -> Expectation:
        """Answer such a request whenever it comes, which may be never.

        Takes what `expect` takes. Expectations have precedence, and a later stub has
        it over an earlier one.
        """
        fields = {"query": query, "headers": headers, "body": body, "json": json}
        return self._want(method, path, **fields, form=form, times=None)

    def _want(self, method: Any, path: Any, **fields: Any) -> Expectation:
        link = self._update()
        wanted = build_wanted(self._number, method, path, **fields)
        _order(link.orders, wanted)
        self._number += 1
        self._expected.append(Expectation(link.orders, wanted))
        return self._expected[-1]

    def clear(self) -> None:
        """Forget the requests and the expectations so far."""
        link = self._update()
        link.orders.append("clear", None)
        self._first = max(self._records, default=-1) + 1
        self._expected.clear()

    def assert_all_met(self, within: float = 0.0) -> None:
        """Assert that all came that was expected, and nothing that was not.

        It waits at most `within` seconds for what is missing. Where the server has
        an app of its own, that one gets what was not expected; otherwise such a
        request is a failure. Raises `UnmetError`, which shows for each expectation
        the nearest miss.
        """
        _poll(lambda: not self._list_missing(), within)
        missing = self._list_missing()
        strays = [one for one in self.requests if one.met is None]
        parts = [explain_unmet(wanted, count, strays) for wanted, count in missing]
        if self._is_bare() and strays:
            parts.append("not expected:")
            parts += [f"  {one}" for one in strays]
        if parts:
            raise UnmetError("\n".join(parts))

    def _list_missing(self) -> list[tuple[Wanted, int]]:
        self._update()
        counts = [
            (wanted, wanted.count - self._uses.get(wanted.number, 0))
            for wanted in (one._wanted for one in self._expected)
        ]
        return [(wanted, count) for wanted, count in counts if count > 0]

    def _is_bare(self) -> bool:
        """Whether the server has nothing but expectations."""
        return False

    def assert_requested(
        self, method: Any, path: Any, *, times: int | None = None, **fields: Any
    ) -> list[RecordedRequest]:
        """Assert that such requests came; give them.

        Takes what `expect` takes. `times` None is at least once. Raises `UnmetError`,
        which shows the nearest miss.
        """
        wanted = build_wanted(-1, method, path, times=times or 1, **fields)
        came = self.requests
        found = [one for one in came if matches(wanted, one)]
        if (times is None and found) or len(found) == times:
            return found
        if found or times == 0:
            lines = [f"expected {times} times, came {len(found)} times: {wanted}"]
            raise UnmetError("\n".join([*lines, *(f"  {one}" for one in found)]))
        raise UnmetError(explain_unmet(wanted, wanted.count, came))

    @property
    def server_log(self) -> Sequence[str]:
        """The lines of Degu's own server: each connection's end, and every error."""
        self._update()
        return tuple(self._log)


def _poll(condition: Callable[[], object], within: float) -> bool:
    """Wait until `condition` is true, at most `within` seconds."""
    deadline = time.monotonic() + within
    pause = 0.0005
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    return True


def check_body_size(value: object) -> int:
    """The option `recorded_body_size`; raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"recorded_body_size: expected an int, got {shown(value)}")
    if value < 0:
        raise ValueError(f"recorded_body_size: expected bytes from 0, got {value}")
    return value
