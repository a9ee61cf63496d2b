"""What a client should ask, what it did ask, and how the two differ.

Values and comparisons only: `RecordedRequest` is what came, `Wanted` what should
come, `Answer` what it gets. The same comparison runs in the server's process, where
it chooses the answer, and in the test's, where it explains.
"""

from __future__ import annotations

import dataclasses
import difflib
import http
import json as jsonlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from degu.address import format_host
from degu.errors import shown

__all__ = ["Answer", "RecordedRequest", "UnmetError", "Wanted"]


class Anything:
    """The default of what is not compared, where None would be a value."""


class UnmetError(AssertionError):
    """Requests and expectations do not agree; the message says where."""


# --- What came ----------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class RecordedRequest:
    """A request that came to an app, as far as it got; it grows while it comes.

    `method`, `uri`, `headers` (names lower-case), `scheme`, `peercert`, `cipher` and
    `credentials` are as the app sees them, `peer` is the client's address. `body` is
    what the app read of it (`bytes`, up to the cap), `body_size` how much that was.
    `time` is when it came (seconds since the epoch), `seconds` how long the app took.
    `status` is what the app answered, `error` how it failed: both None until then.
    """

    method: str
    uri: str
    headers: Mapping[str, Any]
    peer: Any = None
    scheme: str = "http"
    peercert: Any = None
    cipher: Any = None
    credentials: tuple[int, int, int] | None = None
    time: float = 0.0
    seconds: float = 0.0
    body: bytes = b""
    body_size: int = 0
    status: int | None = None
    error: str | None = None
    met: int | None = None
    """The number of the expectation that it met."""

    @property
    def path(self) -> str:
        """The URI up to the query."""
        return self.uri.partition("?")[0]

    @property
    def query(self) -> str | None:
        """The URI after the first ``?``, None where there is none."""
        _, mark, query = self.uri.partition("?")
        return query if mark else None

    def json(self) -> Any:
        """The body as JSON; raises `ValueError` where it is something else."""
        return jsonlib.loads(self.body)

    def text(self) -> str:
        """The body as text, what is no UTF-8 replaced."""
        return self.body.decode("utf-8", "replace")

    def __str__(self) -> str:
        size = f", {self.body_size} bytes" if self.body_size else ""
        outcome = "no answer" if self.status is None else str(self.status)
        if self.error is not None:
            outcome = self.error
        peer = "a Unix socket"
        if isinstance(self.peer, tuple):
            peer = format_host(self.peer)
        return f"{self.method} {self.uri} from {peer}{size} -> {outcome}"


# --- What should come ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the server answers, after `delay` seconds; or an `app` that does."""

    status: int = 200
    reason: str = "OK"
    headers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    body: bytes | None = None
    delay: float = 0.0
    app: Callable[[Any], Any] | str | None = None


def build_answer(
    status: int,
    reason: str | None,
    headers: Mapping[str, Any],
    body: bytes | str | None,
    json: Any,
    delay: float,
) -> Answer:
    """An `Answer` of what its author wrote down; raises TypeError or ValueError."""
    headers = {name.lower(): value for name, value in headers.items()}
    if json is not Anything:
        if body is not None:
            raise TypeError("expected either a body or json, got both")
        body = jsonlib.dumps(json)
        headers.setdefault("content-type", "application/json")
    if isinstance(body, str):
        body = body.encode()
    if body is not None and not isinstance(body, bytes):
        raise TypeError(f"body: expected bytes, str or None, got {shown(body)}")
    if delay < 0:
        raise ValueError(f"delay: expected seconds from 0, got {delay!r}")
    if reason is None:
        reason = _find_reason(status)
    return Answer(status, reason, headers, body, delay)


def _find_reason(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "-"


Text = str | re.Pattern[str]
Pairs = Mapping[str, Any] | Iterable[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A request that should come: `times` times, None for any number of times.

    `method` and `path` are texts or patterns (`re.compile`, to match as a whole), or
    None for any. `query` is a text, or names and values in any order. `headers` has
    only those that count: a text, a pattern, or None where there must be none. `body`
    is bytes, a text or a pattern; `json` and `form` are compared as values.
    """

    number: int
    method: Text | None
    path: Text | None
    query: str | Pairs | None = None
    headers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    body: Any = None
    json: Any = Anything
    form: Pairs | None = None
    times: int | None = 1
    ordered: bool = False
    answers: tuple[Answer, ...] = ()

    @property
    def is_about_body(self) -> bool:
        """Whether the body has to be read to decide."""
        given = (self.body, self.form)
        return self.json is not Anything or any(one is not None for one in given)

    @property
    def count(self) -> int:
        """How often it has to come, at least."""
        return 0 if self.times is None else max(self.times, len(self.answers))

    def answer_for(self, use: int) -> Answer:
        """The answer to the request that is number `use` (from 0) to meet this."""
        if not self.answers:
            return Answer()
        return self.answers[min(use, len(self.answers) - 1)]

    def __str__(self) -> str:
        return " ".join([_show_text(self.method), _show_text(self.path)])


def build_wanted(number: int, method: Any, path: Any, **fields: Any) -> Wanted:
    """A `Wanted` of what its author wrote down; raises TypeError or ValueError."""
    times = fields.get("times")
    if times is not None and (isinstance(times, bool) or not isinstance(times, int)):
        raise TypeError(f"times: expected an int or None, got {shown(times)}")
    if times is not None and times < 1:
        raise ValueError(f"times: expected at least 1, got {times}")
    for name, value in (("method", method), ("path", path)):
        if value is not None and not isinstance(value, str | re.Pattern):
            raise TypeError(
                f"{name}: expected a str, a pattern or None, got {shown(value)}"
            )
    if isinstance(path, str) and "?" in path:
        if fields.get("query") is not None:
            raise TypeError("expected a query in the path or as query, got both")
        path, _, fields["query"] = path.partition("?")
    headers = fields.pop("headers", None) or {}
    lowered = {name.lower(): value for name, value in headers.items()}
    return Wanted(number, method, path, headers=lowered, **fields)


# --- The comparison -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Field:
    """One thing that was compared: its name, both sides as lines, and the verdict."""

    name: str
    wanted: list[str]
    came: list[str]
    same: bool


def compare_head(wanted: Wanted, request: RecordedRequest) -> Iterator[Field]:
    """Compare everything but the body."""
    path = request.path
    method_same = _is_like(wanted.method, request.method)
    path_same = _is_like(wanted.path, path)
    first = [
        _show_text(wanted.method) if not method_same else request.method,
        _show_text(wanted.path) if not path_same else path,
    ]
    yield Field("method", [first[0]], [request.method], method_same)
    yield Field("path", [first[1]], [path], path_same)
    if wanted.query is not None:
        yield _compare_query(wanted.query, request.query)
    for name, value in wanted.headers.items():
        came = request.headers.get(name)
        yield Field(
            "header",
            [f"header {name}: {_show_text(value)}" if value else f"no header {name}"],
            [f"no header {name}" if came is None else f"header {name}: {came}"],
            came is None if value is None else _is_like(str_of(value), str_of(came)),
        )


def str_of(value: Any) -> Any:
    """A header's value as text, so that ``content-length`` may be a number."""
    return str(value) if isinstance(value, int) else value


def compare_body(wanted: Wanted, request: RecordedRequest) -> Iterator[Field]:
    """Compare the body in the ways that `wanted` asks for."""
    if wanted.body is not None:
        expected, came = wanted.body, request.body
        as_text = isinstance(expected, str) or (
            isinstance(expected, re.Pattern) and isinstance(expected.pattern, str)
        )
        given: Any = request.text() if as_text else came
        lines = _show_body(given)
        yield Field("body", _show_body(expected), lines, _is_like(expected, given))
    if wanted.json is not Anything:
        try:
            value = request.json()
            came_lines, same = _show_json(value), value == wanted.json
        except ValueError:
            came_lines, same = _show_body(request.body), False
        yield Field("json", _show_json(wanted.json), came_lines, same)
    if wanted.form is not None:
        want = _list_pairs(wanted.form)
        pairs = _list_pairs(parse_qsl(request.text(), keep_blank_values=True))
        same = want == pairs
        yield Field("form", _show_pairs("form", want), _show_pairs("form", pairs), same)


def matches_head(wanted: Wanted, request: RecordedRequest) -> bool:
    """Whether everything but the body is as wanted."""
    return all(field.same for field in compare_head(wanted, request))


def matches(wanted: Wanted, request: RecordedRequest) -> bool:
    """Whether it is the wanted request."""
    return matches_head(wanted, request) and all(
        field.same for field in compare_body(wanted, request)
    )


def _is_like(wanted: Any, came: Any) -> bool:
    if wanted is None:
        return True
    if isinstance(wanted, re.Pattern):
        return came is not None and wanted.fullmatch(came) is not None
    return bool(wanted == came)


def _compare_query(wanted: str | Pairs, came: str | None) -> Field:
    if isinstance(wanted, str):
        lines = [f"query {wanted}"]
        return Field("query", lines, [f"query {came or ''}"], wanted == came)
    want = _list_pairs(wanted)
    pairs = _list_pairs(parse_qsl(came or "", keep_blank_values=True))
    return Field(
        "query", _show_pairs("query", want), _show_pairs("query", pairs), want == pairs
    )


def _list_pairs(pairs: Pairs) -> list[tuple[str, str]]:
    """Names and values in a fixed order; a dict's value may be a list of values."""
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    flat = []
    for name, value in items:
        values = value if isinstance(value, list | tuple) else [value]
        flat += [(name, str(one)) for one in values]
    return sorted(flat)


# --- The explanation ----------------------------------------------------------------


def _show_text(value: Any) -> str:
    if value is None:
        return "<any>"
    if isinstance(value, re.Pattern):
        return f"/{value.pattern}/"
    return str(value)


def _show_pairs(name: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{name} {key}={value}" for key, value in pairs] or [f"{name} is empty"]


def _show_json(value: Any) -> list[str]:
    try:
        text = jsonlib.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return ["json:", *("  " + line for line in text.splitlines())]


def _show_body(value: Any) -> list[str]:
    if isinstance(value, re.Pattern):
        return [f"body matching {value.pattern!r}"]
    text = value.decode("utf-8", "backslashreplace") if type(value) is bytes else value
    lines = [line[:200] for line in str(text).splitlines()[:50]]
    return ["body:", *("  " + line for line in lines)] if text else ["no body"]


def explain_miss(wanted: Wanted, request: RecordedRequest) -> str:
    """The lines of both sides: ``-`` is what was wanted, ``+`` what came."""
    fields = [*compare_head(wanted, request), *compare_body(wanted, request)]
    left = [f"{fields[0].wanted[0]} {fields[1].wanted[0]}"]
    right = [f"{fields[0].came[0]} {fields[1].came[0]}"]
    for field in fields[2:]:
        # A pattern that matched is shown as what it matched.
        left += field.came if field.same else field.wanted
        right += field.came
    return "\n".join(_diff(left, right))


def _diff(left: list[str], right: list[str]) -> Iterator[str]:
    if max(len(left), len(right)) <= MAX_DIFF_LINES:
        for line in difflib.ndiff(left, right):
            if line[:1] != "?":
                yield line
        return
    # The nicer one takes minutes for thousands of lines.
    for line in difflib.unified_diff(left, right, n=2, lineterm=""):
        if line[:3] not in ("---", "+++"):
            yield line if line[:2] == "@@" else f"{line[:1]} {line[1:]}"


MAX_DIFF_LINES = 60
"""Up to so many lines a difference is shown with everything around it."""

_WEIGHTS = {"path": 3.0, "method": 2.0}


def measure_miss(wanted: Wanted, request: RecordedRequest) -> float:
    """How far apart the two are; 0.0 where they match."""
    distance = 0.0
    for field in [*compare_head(wanted, request), *compare_body(wanted, request)]:
        if not field.same:
            wanted_text, came_text = map("\n".join, (field.wanted, field.came))
            matcher = difflib.SequenceMatcher(None, wanted_text, came_text)
            likeness = matcher.quick_ratio()
            distance += _WEIGHTS.get(field.name, 1.0) * (1.5 - likeness)
    return distance


def find_nearest(
    wanted: Wanted, requests: Iterable[RecordedRequest]
) -> RecordedRequest | None:
    """The request that is least unlike `wanted`, None where there is none."""
    return min(requests, key=lambda one: measure_miss(wanted, one), default=None)


def explain_unmet(
    wanted: Wanted, missing: int, requests: Sequence[RecordedRequest]
) -> str:
    """A paragraph about an expectation that was not met, with the nearest miss."""
    lines = [f"expected {missing} more: {wanted}" if wanted.count > 1 else ""]
    lines[0] = lines[0] or f"expected, and did not come: {wanted}"
    nearest = find_nearest(wanted, requests)
    if nearest is None:
        return f"{lines[0]}\n  and nothing else came that was not expected"
    if matches(wanted, nearest):
        reason = "out of order" if wanted.ordered else "before it was expected"
        return f"{lines[0]}\n  it came {reason}: {nearest}"
    lines.append(f"  nearest of {len(requests)} that met nothing:")
    lines += ["    " + line for line in explain_miss(wanted, nearest).splitlines()]
    return "\n".join(lines)
