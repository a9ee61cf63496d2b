"""Forms: query strings, urlencoded bodies and multipart/form-data, in and out.

`read_form` gives an app one `Form` however the fields came: in the query of a
GET, as ``application/x-www-form-urlencoded``, or as ``multipart/form-data`` that is
streamed, so that a form of any size costs a fixed amount of memory and at most one
temporary file without a name.  `format_query`, `format_form` and
`format_multipart` are the way back, for a client.

One way to say a thing (RFC 7578 and the WHATWG encoding, where they leave a choice):

* Text is UTF-8; another charset is refused with 415, bad UTF-8 with 400.
* A body of parts begins with its first boundary and ends with the closing one
  and at most one CRLF: neither a preamble nor an epilogue.
* In a part's name and filename ``%22``, ``%0D`` and ``%0A`` are a quote, CR and LF;
  nothing else is an escape, a backslash least of all.  Control characters are refused.
* ``Content-Transfer-Encoding`` may only say that there is none; a part that is
  itself ``multipart/…`` is refused (RFC 7578 §4.3 and §4.7: both are of the past).
* ``filename*`` does not belong here (RFC 7578 §4.2): ignored beside a
  ``filename``, refused where it is the only one.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeVar
from urllib.parse import quote_plus, unquote_to_bytes

from degu.base import Output
from degu.errors import (
    ContentTooLargeError,
    ParseError,
    ProtocolError,
    TargetTooLongError,
    UnderFlowError,
    UnsupportedMediaTypeError,
    shown,
)
from degu.limits import (
    COPY_SIZE,
    FORM_SPOOL_SIZE,
    MAX_BOUNDARY_SIZE,
    MAX_FORM_FIELD_SIZE,
    MAX_FORM_FIELDS_SIZE,
    MAX_FORM_FILE_SIZE,
    MAX_FORM_PARTS,
    MAX_FORM_SIZE,
    MAX_PART_HEADER_SIZE,
    MAX_PART_HEADERS,
    Option,
    check_options,
)

__all__ = [
    "FORM_OPTIONS",
    "FORM_TYPE",
    "MULTIPART_TYPE",
    "FilePart",
    "Form",
    "Readable",
    "Upload",
    "format_form",
    "format_multipart",
    "format_query",
    "parse_content_type",
    "parse_form",
    "parse_query",
    "read_form",
    "read_multipart",
]

FORM_OPTIONS: Mapping[str, Option] = {
    name: Option(
        default, lambda value: type(value) is int and value >= 0, "an int >= 0"
    )
    for name, default in {
        "max_parts": MAX_FORM_PARTS,
        "max_field_size": MAX_FORM_FIELD_SIZE,
        "max_fields_size": MAX_FORM_FIELDS_SIZE,
        "max_file_size": MAX_FORM_FILE_SIZE,
        "max_form_size": MAX_FORM_SIZE,
        "max_part_headers": MAX_PART_HEADERS,
        "max_part_header_size": MAX_PART_HEADER_SIZE,
        "spool_size": FORM_SPOOL_SIZE,
    }.items()
}
"""The limits that `read_form` and its sisters take as keywords.

A form over any of them is a `ContentTooLargeError` (413), a query a
`TargetTooLongError` (414); `spool_size` only decides between memory and disk."""


FORM_TYPE = "application/x-www-form-urlencoded"
"""The content type of a body that `parse_form` reads."""

MULTIPART_TYPE = "multipart/form-data"
"""The content type of a body that `read_multipart` reads (RFC 7578)."""

FILE_TYPE = "application/octet-stream"

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE = re.compile(rf"[ \t]*({_TOKEN}/{_TOKEN})[ \t]*")
_TYPE_PARAMETER = re.compile(
    rf';[ \t]*(?:({_TOKEN})=({_TOKEN}|"(?:[^"\\]|\\.)*"))?[ \t]*'
)
_DISPOSITION = re.compile(r"form-data[ \t]*", re.IGNORECASE)
_DISPOSITION_PARAMETER = re.compile(
    rf';[ \t]*({_TOKEN})[ \t]*=[ \t]*({_TOKEN}|"[^"]*")[ \t]*'
)
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]*[0-9A-Za-z'()+_,./:=?-]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CONTROL_BUT_TAB = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_CONTROL_BUT_ESCAPED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_QUOTED_PAIR = re.compile(r"\\(.)")
_ESCAPES = {"%22": '"', "%0D": "\r", "%0A": "\n"}
_ESCAPED = re.compile("|".join(_ESCAPES))
_UNESCAPED = str.maketrans({char: escape for escape, char in _ESCAPES.items()})

_T = TypeVar("_T")
_Many = Mapping[str, _T | Sequence[_T]] | Iterable[tuple[str, _T]]


class Readable(Protocol):
    """What a body or an open file has: ``read(size) -> bytes``, empty at the end."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes."""


# Query strings and urlencoded bodies


def parse_query(
    text: str, *, keep_blank: bool = True, **limits: int
) -> dict[str, list[str]]:
    """Parse a query string, the text after ``?``, into names and their values.

    A name that comes several times keeps all of its values in their order.  Without
    `keep_blank` the empty values are dropped.  ``;`` does not separate anything.

    Raises `ParseError` (400) for an incomplete escape, for bytes that are
    not UTF-8, for a control character and for a NUL in a name; `TargetTooLongError`
    (414) over `max_parts`, `max_field_size` or `max_fields_size` (see `FORM_OPTIONS`).
    """
    return _parse_pairs(
        text, keep_blank, check_options(limits, FORM_OPTIONS), TargetTooLongError
    )


def format_query(fields: _Many[str]) -> str:
    """Format `fields` as a query string; the inverse of `parse_query`.

    `fields` is a mapping of name to str or list of str, or an iterable of pairs.
    The escapes are those of browsers (WHATWG URL, section 5.2).

    Raises `TypeError` where a name or a value is not a str, `ValueError` for a NUL in
    a name.
    """
    return "&".join(
        f"{_quote(_check_name(name))}={_quote(value)}"
        for name, value in _pairs(fields, str)
    )


def parse_form(
    data: bytes, *, keep_blank: bool = True, **limits: int
) -> dict[str, list[str]]:
    """Parse an ``application/x-www-form-urlencoded`` body; see `parse_query`.

    Raises `ParseError` (400), and `ContentTooLargeError` (413) over a limit.
    """
    rules = check_options(limits, FORM_OPTIONS)
    _check_size(len(data), rules["max_fields_size"], "bytes of fields")
    text = _decode(data, "a form")
    return _parse_pairs(text, keep_blank, rules, ContentTooLargeError)


def format_form(fields: _Many[str]) -> tuple[dict[str, str], bytes]:
    """Format `fields` for a request: ``client.post(uri, *format_form(fields))``.

    Returns the headers (``content-type``) and the body; takes and raises what
    `format_query` does.
    """
    return {"content-type": FORM_TYPE}, format_query(fields).encode("ascii")


def _parse_pairs(
    text: str, keep_blank: bool, limits: dict[str, int], error: type[ProtocolError]
) -> dict[str, list[str]]:
    _check_size(len(text), limits["max_fields_size"], "characters of fields", error)
    _check_size(text.count("&") + 1, limits["max_parts"], "fields", error)
    bad = _BAD_ESCAPE.search(text) or _CONTROL.search(text)
    if bad:
        at = text[bad.start() : bad.start() + 3]
        raise ParseError(f"expected urlencoded fields, got {shown(at)}")
    form: dict[str, list[str]] = {}
    for pair in filter(None, text.split("&")):
        name, _, value = map(_unquote, pair.partition("="))
        _check_size(
            len(value), limits["max_field_size"], "characters of a field", error
        )
        if "\0" in name:
            raise ParseError(f"expected a name without NUL, got {shown(name)}")
        if value or keep_blank:
            form.setdefault(name, []).append(value)
    return form


def _quote(text: str) -> str:
    return quote_plus(text, safe="*").replace("~", "%7E")


def _unquote(text: str) -> str:
    try:
        return unquote_to_bytes(text.replace("+", " ")).decode("utf-8")
    except UnicodeError:
        raise ParseError(f"expected escapes of UTF-8, got {shown(text)}") from None


def _pairs(values: _Many[_T], *types: type) -> Iterator[tuple[str, _T]]:
    items: Iterable[Any] = values.items() if isinstance(values, Mapping) else values
    for name, value in items:
        _check_type(name, str)
        for one in value if isinstance(value, list | tuple) else [value]:
            _check_type(one, *types)
            yield name, one


def _check_type(value: object, *types: type) -> None:
    if not isinstance(value, types):
        names = " or ".join(cls.__name__ for cls in types)
        raise TypeError(f"expected {names}, got {shown(value)}")


def _check_name(name: str) -> str:
    if "\0" in name:
        raise ValueError(f"expected a name without NUL, got {shown(name)}")
    return name


def _check_size(
    size: int,
    limit: int,
    what: str,
    error: type[ProtocolError] = ContentTooLargeError,
) -> None:
    if size > limit:
        raise error(f"expected at most {limit} {what}, got {size} or more")


def _decode(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = data[error.start : error.start + 8]
        raise ParseError(f"expected {what} in UTF-8, got {shown(bad)}") from None


# Content types and dispositions


def parse_content_type(value: str) -> tuple[str, dict[str, str]]:
    """Parse a Content-Type into its type and its parameters (RFC 9110 §8.3).

    The type and the names of the parameters are lower-case, the values unquoted.

    Raises `ParseError` (400) for anything outside the grammar, and for a
    parameter that comes twice.
    """
    match = _MEDIA_TYPE.match(value)
    if match is None:
        raise ParseError(f"expected a content type, got {shown(value)}")
    parameters = _parse_parameters(value, match.end(), _TYPE_PARAMETER)
    return match[1].lower(), {
        name: _QUOTED_PAIR.sub(r"\1", text) for name, text in parameters
    }


def _parse_disposition(value: str) -> tuple[str, str | None]:
    match = _DISPOSITION.match(value)
    start = match.end() if match else 0
    found = dict(_parse_parameters(value, start, _DISPOSITION_PARAMETER))
    if "name" not in found or ("filename*" in found and "filename" not in found):
        raise ParseError(f"expected a name and a plain filename, got {shown(value)}")
    filename = found.get("filename")
    return _unescape(found["name"]), None if filename is None else _unescape(filename)


def _parse_parameters(
    value: str, start: int, pattern: re.Pattern[str]
) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    while start < len(value):
        match = pattern.match(value, start)
        if match is None:
            raise ParseError(f"expected parameters, got {shown(value[start:])}")
        start = match.end()
        if match[1] is not None:
            name = match[1].lower()
            if name in found:
                raise ParseError(f"expected {name!r} once, got {shown(value)}")
            found[name] = match[2][1:-1] if match[2].startswith('"') else match[2]
    return list(found.items())


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda match: _ESCAPES[match[0]], text)


def _escape(text: str) -> str:
    if _CONTROL_BUT_ESCAPED.search(text):
        raise ValueError(f"expected a name without controls, got {shown(text)}")
    if _ESCAPED.search(text):
        # Browsers do not escape "%" either; the receiver could not tell them apart.
        raise ValueError(f"expected a name without %22, %0D, %0A, got {shown(text)}")
    return text.translate(_UNESCAPED)


def _parse_boundary(boundary: str) -> bytes:
    if len(boundary) > MAX_BOUNDARY_SIZE or not _BOUNDARY.fullmatch(boundary):
        raise ParseError(
            f"expected a boundary of 1 to {MAX_BOUNDARY_SIZE} characters"
            f" (RFC 2046 §5.1.1), got {shown(boundary)}"
        )
    return boundary.encode("ascii")


def _check_charset(content_type: str) -> tuple[str, dict[str, str]]:
    kind, parameters = parse_content_type(content_type)
    charset = parameters.get("charset", "utf-8").lower()
    if charset not in {"utf-8", "utf8", "us-ascii"}:
        raise UnsupportedMediaTypeError(f"expected UTF-8, got {shown(content_type)}")
    return kind, parameters


# Forms that were received


class Upload:
    """A file of a received form.

    `name`
        The name of the form's field (str).
    `filename`
        What the client says the file is called (str, may be empty or a path of
        its file system: never open it; see `safe_name`).
    `content_type`
        What the client says it contains (str), not checked against the content.
    `size`
        In bytes (int).
    `file`
        The content: a seekable binary file for reading, at its start, until the
        form is closed.  All uploads of a form share one temporary file, so they are
        for one thread at a time.
    """

    def __init__(
        self, name: str, filename: str, content_type: str, size: int, file: BinaryIO
    ) -> None:
        self.name = name
        self.filename = filename
        self.content_type = content_type
        self.size = size
        self.file = file

    def __repr__(self) -> str:
        return (
            f"Upload({shown(self.name)}, {shown(self.filename)},"
            f" {shown(self.content_type)}, {self.size})"
        )

    @property
    def safe_name(self) -> str:
        r"""A name for a file in a folder of your own, made from `filename` (str).

        It is the part after the last ``/`` or ``\``, without what cannot be printed
        and without dots and spaces at its ends; what Windows forbids is replaced; it
        is at most 255 bytes of UTF-8, and ``unnamed`` where nothing is left.
        It may still exist in the folder: open it with mode ``x``.
        """
        return _build_safe_name(self.filename)

    def text(self, encoding: str = "utf-8") -> str:
        """The whole content as one str; `UnicodeDecodeError` where it is not text."""
        self.file.seek(0)
        return self.file.read().decode(encoding)

    def write_to(self, file: BinaryIO) -> int:
        """Write the whole content to `file`; returns the number of bytes (int)."""
        self.file.seek(0)
        for block in iter(lambda: self.file.read(COPY_SIZE), b""):
            file.write(block)
        return self.size


class Form(Mapping[str, list[str | Upload]]):
    """What a client sent: name -> list of values, in the order of first appearance.

    A value is a str for a field and an `Upload` for a file.  Used as a context manager,
    or closed, it closes and so removes its temporary file, if there is one.
    """

    def __init__(self, values: Mapping[str, list[str | Upload]]) -> None:
        self._values = dict(values)
        self._spool: BinaryIO | None = None

    def __getitem__(self, name: str) -> list[str | Upload]:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Form({shown(self._values)})"

    def __enter__(self) -> Form:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def fields(self) -> dict[str, list[str]]:
        """The values that are text (dict of name to list of str)."""
        return self._select(lambda value: isinstance(value, str))

    @property
    def uploads(self) -> dict[str, list[Upload]]:
        """The values that are files (dict of name to list of `Upload`)."""
        return self._select(lambda value: isinstance(value, Upload))

    def first(self, name: str, default: _T | None = None) -> str | Upload | _T | None:
        """The first value of `name`, or `default` where there is none."""
        return self._values[name][0] if name in self._values else default

    def close(self) -> None:
        """Close and remove the temporary file; harmless when done before."""
        if self._spool is not None:
            self._spool.close()

    def _select(self, wanted: Callable[[object], bool]) -> dict[str, list[Any]]:
        chosen = {
            name: [value for value in values if wanted(value)]
            for name, values in self._values.items()
        }
        return {name: values for name, values in chosen.items() if values}


def read_form(
    request: Mapping[str, Any],
    *,
    keep_blank: bool = True,
    tempdir: str | None = None,
    **limits: int,
) -> Form:
    """Read the form of an RGI `request`, the same way for every method.

    GET and HEAD have their form in the query, every other method in the body and there
    only; neither query nor body is an empty form.  A multipart body is
    read as it comes (see `read_multipart`, also for `tempdir`).  Without `keep_blank`,
    empty fields and file inputs where no file was chosen are dropped.  The
    `limits` are those of `FORM_OPTIONS`.

    Raises `ParseError` (400), `ContentTooLargeError` (413),
    `TargetTooLongError` (414), `UnsupportedMediaTypeError` (415), what reading
    the body raises, and `ImportError` where a multipart body came and the extra
    ``forms`` is not installed.  A refused body has the refusal as its ``error``, so
    that the server answers it where the app does not.
    """
    if request["method"] in {"GET", "HEAD"}:
        query = request["query"] or ""
        return _make_form(parse_query(query, keep_blank=keep_blank, **limits))
    body, content_type = request["body"], request["headers"].get("content-type")
    if body is None and content_type is None:
        check_options(limits, FORM_OPTIONS)
        return Form({})
    try:
        return _read_body(body, content_type, keep_blank, tempdir, limits)
    except ProtocolError as error:
        if getattr(body, "error", error) is None:
            body.error = error
        raise


def _read_body(
    body: Readable | None,
    content_type: str | None,
    keep_blank: bool,
    tempdir: str | None,
    limits: dict[str, int],
) -> Form:
    kind, parameters = _parse_form_type(content_type)
    rfile = io.BytesIO() if body is None else body
    if kind == FORM_TYPE:
        limit = check_options(limits, FORM_OPTIONS)["max_fields_size"]
        data = _read_fields(rfile, limit)
        return _make_form(parse_form(data, keep_blank=keep_blank, **limits))
    return read_multipart(
        rfile,
        parameters.get("boundary", ""),
        keep_blank=keep_blank,
        tempdir=tempdir,
        **limits,
    )


def _parse_form_type(content_type: str | None) -> tuple[str, dict[str, str]]:
    if content_type is not None:
        kind, parameters = _check_charset(content_type)
        if kind in {FORM_TYPE, MULTIPART_TYPE}:
            return kind, parameters
    raise UnsupportedMediaTypeError(f"expected a form, got {shown(content_type)}")


def read_multipart(
    rfile: Readable,
    boundary: str,
    *,
    keep_blank: bool = True,
    tempdir: str | None = None,
    **limits: int,
) -> Form:
    """Read a ``multipart/form-data`` body (RFC 7578) with this `boundary` to its end.

    `rfile` is a body, or anything with ``read(size)``.  All uploads together
    are kept in memory up to `spool_size` bytes, beyond that in one temporary
    file without a name in the folder `tempdir` (default: that of `tempfile`), which no
    end of the process leaves behind.

    Raises what `read_form` does; then nothing is left open.
    """
    rules = check_options(limits, FORM_OPTIONS)
    delimiter = _parse_boundary(boundary)
    size = getattr(rfile, "content_length", None)
    _check_size(size or 0, rules["max_form_size"], "bytes of form")
    builder = _FormBuilder(rules, keep_blank, tempdir)
    try:
        _parse_parts(rfile, delimiter, rules, builder)
    except BaseException:
        builder.form.close()
        raise
    return builder.form


def _make_form(values: dict[str, list[str]]) -> Form:
    return Form({name: list(texts) for name, texts in values.items()})


def _read_fields(rfile: Readable, limit: int) -> bytes:
    size = getattr(rfile, "content_length", None)
    _check_size(size or 0, limit, "bytes of fields")
    data = bytearray()
    while block := rfile.read(COPY_SIZE):
        data += block
        _check_size(len(data), limit, "bytes of fields")
    return bytes(data)


def _import_multipart() -> Any:
    try:
        import multipart  # type: ignore[import-untyped,import-not-found,unused-ignore]

        multipart.PushMultipartParser  # noqa: B018 - another package has this name too
    except (ImportError, AttributeError) as error:
        raise ImportError(
            "multipart/form-data needs the package 'multipart':"
            " pip install 'degu[forms]'"
        ) from error
    return multipart


def _parse_parts(
    rfile: Readable, boundary: bytes, limits: dict[str, int], builder: _FormBuilder
) -> None:
    multipart = _import_multipart()
    read = _limit_reads(rfile.read, limits["max_form_size"])
    try:
        with multipart.PushMultipartParser(
            boundary,
            max_header_size=limits["max_part_header_size"],
            max_header_count=limits["max_part_headers"],
            max_segment_size=max(limits["max_field_size"], limits["max_file_size"]),
            max_segment_count=limits["max_parts"],
            strict=True,
        ) as parser:
            for block in _read_blocks(read, boundary):
                for event in parser.parse(block):
                    builder.add(event)
    except multipart.ParserLimitReached as error:
        raise ContentTooLargeError(f"the form is too large: {error}") from error
    except multipart.MultipartError as error:
        raise ParseError(f"the form is malformed: {error}") from error


def _limit_reads(read: Callable[[int], bytes], limit: int) -> Callable[[int], bytes]:
    total = 0

    def read_counted(size: int) -> bytes:
        nonlocal total
        block = read(size)
        total += len(block)
        _check_size(total, limit, "bytes of form")
        return block

    return read_counted


def _read_blocks(read: Callable[[int], bytes], boundary: bytes) -> Iterator[bytes]:
    # What surrounds the parts is checked here, because the parser ignores some of it
    # or not, depending on how the network happened to cut the body.
    delimiter = b"\r\n--" + boundary
    close = delimiter + b"--"
    buffer = b"\r\n"  # which makes the first delimiter like the others
    begun = False
    while block := read(COPY_SIZE):
        buffer += block
        if len(buffer) < len(close):
            continue
        if not begun and not buffer.startswith(delimiter):
            raise ParseError(f"expected {delimiter[2:]!r}, got {shown(buffer[2:])}")
        begun = True
        end = buffer.find(close)
        if end >= 0:
            yield buffer[: end + len(close)]
            return _check_end(read, buffer[end + len(close) :])
        # A block never ends inside of a delimiter, nor between CR and LF.
        cut = len(buffer) - len(close) + 1
        cut -= buffer[cut - 1 : cut] == b"\r"
        if cut:
            yield buffer[:cut]
            buffer = buffer[cut:]
    raise ParseError(f"expected {close[2:]!r}, the body ended with {shown(buffer)}")


def _check_end(read: Callable[[int], bytes], rest: bytes) -> None:
    while len(rest) <= len(b"\r\n") and (block := read(COPY_SIZE)):
        rest += block
    if rest not in (b"", b"\r\n"):
        raise ParseError(f"expected the end of the form, got {shown(rest)}")


class _FormBuilder:
    """Collects the parser's events: a segment, then blocks of bytes, then None."""

    def __init__(
        self, limits: dict[str, int], keep_blank: bool, tempdir: str | None
    ) -> None:
        self.form = Form({})
        self._limits = limits
        self._keep_blank = keep_blank
        self._tempdir = tempdir
        self._head = _PartHead("", None, "")
        self._text = bytearray()
        self._size = self._fields_size = self._spool_size = 0

    def add(self, event: Any) -> None:
        if event is None:
            self._end()
        elif isinstance(event, bytes | bytearray):
            self._feed(event)
        else:
            self._begin(_parse_part_head(event.headerlist))

    def _begin(self, head: _PartHead) -> None:
        self._head = head
        self._size = 0
        if head.filename is None:
            self._text = bytearray()
            self._count_field(len(head.name.encode("utf-8")))

    def _feed(self, data: bytes | bytearray) -> None:
        self._size += len(data)
        if self._head.filename is None:
            _check_size(self._size, self._limits["max_field_size"], "bytes of a field")
            self._count_field(len(data))
            self._text += data
        else:
            _check_size(self._size, self._limits["max_file_size"], "bytes of a file")
            self._open_spool().write(data)

    def _count_field(self, size: int) -> None:
        self._fields_size += size
        limit = self._limits["max_fields_size"]
        _check_size(self._fields_size, limit, "bytes of fields")

    def _end(self) -> None:
        name, filename, content_type = self._head
        if not (self._keep_blank or self._size or filename):
            return
        value: str | Upload
        if filename is None:
            value = _decode(bytes(self._text), f"the field {shown(name)}")
        else:
            window = _Window(self._open_spool(), self._spool_size, self._size)
            file = io.BufferedReader(window)
            value = Upload(name, filename, content_type, self._size, file)
            self._spool_size += self._size
        self.form._values.setdefault(name, []).append(value)

    def _open_spool(self) -> BinaryIO:
        if self.form._spool is None:
            self.form._spool = _make_spool(self._limits["spool_size"], self._tempdir)
        return self.form._spool


def _make_spool(size: int, tempdir: str | None) -> BinaryIO:
    # To the standard library a size of 0 is no limit; here it is the lowest one.
    spool: Any = tempfile.SpooledTemporaryFile(max(size, 1), dir=tempdir)  # noqa: SIM115
    return spool  # type: ignore[no-any-return]


class _PartHead(NamedTuple):
    name: str
    filename: str | None
    content_type: str


def _parse_part_head(headers: list[tuple[str, str]]) -> _PartHead:
    # RFC 7578 §4.8: other header fields than these three are ignored.
    values: dict[str, str | None] = {
        "Content-Disposition": None,
        "Content-Type": None,
        "Content-Transfer-Encoding": None,
    }
    for name, value in headers:
        if _CONTROL_BUT_TAB.search(value) or values.get(name) is not None:
            raise ParseError(f"expected {name} once, without controls: {shown(value)}")
        if name in values:
            values[name] = value
    disposition, content_type, coding = values.values()
    field, filename = _parse_disposition(disposition or "")
    _check_coding(content_type or "", (coding or "binary").strip().lower())
    if filename is None and content_type is not None:
        _check_charset(content_type)
    return _PartHead(field, filename, (content_type or FILE_TYPE).strip())


def _check_coding(content_type: str, coding: str) -> None:
    kind = parse_content_type(content_type)[0] if content_type else ""
    if kind.startswith("multipart/"):
        raise UnsupportedMediaTypeError(f"expected a plain part, got {shown(kind)}")
    if coding not in {"7bit", "8bit", "binary"}:
        raise UnsupportedMediaTypeError(f"expected no coding, got {shown(coding)}")


class _Window(io.RawIOBase):
    """The bytes of one upload in the file that holds them all."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        position = base[whence] + offset
        if position < 0:
            raise ValueError(f"expected a position >= 0, got {position}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._position))
        self._file.seek(self._start + self._position)
        view[:count] = self._file.read(count)
        self._position += count
        return count


_SEPARATOR = re.compile(r"[/\\]")
_FORBIDDEN = re.compile(r'[<>:"|?*]')
_DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [device + digit for device in ("COM", "LPT") for digit in "0123456789¹²³"]
)
_MAX_NAME_SIZE = 255
_MAX_SUFFIX_SIZE = 32


def _build_safe_name(filename: str) -> str:
    name = _SEPARATOR.split(filename)[-1]
    name = "".join(char for char in name if char.isprintable())
    name = _cut_name(_FORBIDDEN.sub("_", name).strip(" ."))
    if name.partition(".")[0].rstrip().upper() in _DEVICES:
        name = "_" + name
    return name or "unnamed"


def _cut_name(name: str) -> str:
    # One byte is left for the underscore before a name of a device.
    room = _MAX_NAME_SIZE - 1
    if len(name.encode("utf-8")) <= room:
        return name
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix.encode("utf-8")) > _MAX_SUFFIX_SIZE:
        stem, dot, suffix = name, "", ""
    room -= len((dot + suffix).encode("utf-8"))
    cut = stem.encode("utf-8")[:room].decode("utf-8", "ignore")
    return (cut + dot + suffix).strip(" .")


# Forms to send


@dataclass(frozen=True, slots=True)
class FilePart:
    """A file to send with `format_multipart`.

    `source`
        A path, bytes, or a binary file open for reading, of which the `size` bytes
        from its position are sent.
    `filename`
        What the server is told (str); by default the last component of a path, else
        the last component of the name of the file, else ``file``.
    `content_type`
        What the server is told (str).
    `size`
        In bytes (int); None measures the source, which has to be a path, bytes or
        seekable.
    """

    source: str | os.PathLike[str] | bytes | Readable
    filename: str | None = None
    content_type: str = FILE_TYPE
    size: int | None = None


_File = str | os.PathLike[str] | FilePart | Upload


class _Part(NamedTuple):
    head: bytes
    source: Any
    size: int


def format_multipart(
    fields: _Many[str],
    files: _Many[_File] = (),
    *,
    boundary: str | None = None,
) -> tuple[dict[str, str], Output]:
    """Format a form with files: ``client.post(uri, *format_multipart(fields, files))``.

    `fields` are what `format_query` takes, `files` likewise with a path, a `FilePart`
    or an `Upload` for each file.  Returns the headers (``content-type``) and an
    `Output` of known length that reads the files while it is sent; paths are opened
    only then.

    By default the `boundary` is random (128 bits).  Any boundary is looked for in all
    that is sent: in the fields at once, in a file while it is sent, so that no
    content can pass for a part.

    Raises `TypeError` and `ValueError` for what cannot be said in a form: controls and
    ``%22``, ``%0D``, ``%0A`` in a name or filename, a malformed content type or
    boundary, a boundary within a field, a file without a size; `OSError` where a path
    cannot be opened; and, while sending, `UnderFlowError` for a file that became
    shorter, `ValueError` for a file that contains the boundary.
    """
    if boundary is None:
        boundary = f"----DeguFormBoundary{secrets.token_hex(16)}"
    delimiter = b"--" + _parse_own(_parse_boundary, boundary)
    parts = [_build_field(name, text) for name, text in _pairs(fields, str)]
    types = (str, os.PathLike, FilePart, Upload)
    parts += [_build_file(name, file) for name, file in _pairs(files, *types)]
    for part in parts:
        _check_absent(delimiter, part.head)
        if isinstance(part.source, bytes):
            _check_absent(delimiter, part.source)
    around = len(delimiter) + len(b"\r\n\r\n")
    size = sum(len(part.head) + part.size + around for part in parts)
    end = delimiter + b"--\r\n"
    quoted = boundary if re.fullmatch(_TOKEN, boundary) else f'"{boundary}"'
    headers = {"content-type": f"{MULTIPART_TYPE}; boundary={quoted}"}
    pieces = _join_pieces(_iter_parts(parts, delimiter, end))
    return headers, Output(pieces, size + len(end))


def _build_field(name: str, text: str) -> _Part:
    head = f'Content-Disposition: form-data; name="{_escape(name)}"\r\n\r\n'
    data = text.encode("utf-8")
    return _Part(head.encode("utf-8"), data, len(data))


def _build_file(name: str, file: _File) -> _Part:
    if isinstance(file, Upload):
        file.file.seek(0)
        file = FilePart(file.file, file.filename, file.content_type, file.size)
    elif not isinstance(file, FilePart):
        file = FilePart(file)
    kind = _parse_own(parse_content_type, file.content_type)[0]
    if kind.startswith("multipart/") or not file.content_type.isprintable():
        raise ValueError(f"expected a plain type, got {shown(file.content_type)}")
    filename = _build_filename(file.source) if file.filename is None else file.filename
    head = (
        f'Content-Disposition: form-data; name="{_escape(name)}";'
        f' filename="{_escape(filename)}"\r\n'
        f"Content-Type: {file.content_type}\r\n\r\n"
    )
    size = _measure(file.source) if file.size is None else file.size
    return _Part(head.encode("utf-8"), file.source, size)


def _parse_own(parse: Callable[[str], _T], value: str) -> _T:
    # A mistake of this side is not the peer's: no status must come of it.
    try:
        return parse(value)
    except ParseError as error:
        raise ValueError(str(error)) from None


def _build_filename(source: object) -> str:
    if not isinstance(source, str | os.PathLike):
        source = getattr(source, "name", "file")
    if not isinstance(source, str | os.PathLike):  # a file opened by its descriptor
        return "file"
    return os.path.basename(os.fspath(source))


def _measure(source: Any) -> int:
    if isinstance(source, bytes):
        return len(source)
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            return file.seek(0, io.SEEK_END)
    if not (hasattr(source, "seekable") and source.seekable()):
        raise ValueError(f"expected a size for {shown(source)}, which cannot seek")
    position: int = source.tell()
    size: int = source.seek(0, io.SEEK_END) - position
    source.seek(position)
    return size


def _iter_parts(parts: list[_Part], delimiter: bytes, end: bytes) -> Iterator[bytes]:
    for part in parts:
        yield delimiter + b"\r\n" + part.head
        if isinstance(part.source, str | os.PathLike):
            with open(part.source, "rb") as file:
                yield from _iter_file(file, part.size, delimiter)
        elif isinstance(part.source, bytes):
            yield part.source
        else:
            yield from _iter_file(part.source, part.size, delimiter)
        yield b"\r\n"
    yield end


def _join_pieces(pieces: Iterator[bytes]) -> Iterator[bytes]:
    # Each piece is a call of the kernel: a form without large files leaves in one.
    joined = bytearray()
    for piece in pieces:
        joined += piece
        if len(joined) >= COPY_SIZE:
            yield bytes(joined)
            joined.clear()
    yield bytes(joined)


def _iter_file(file: Readable, size: int, delimiter: bytes) -> Iterator[bytes]:
    left, tail = size, b""
    while left:
        block = file.read(min(left, COPY_SIZE))
        if not block:
            raise UnderFlowError(size - left, size)
        _check_absent(delimiter, tail + block)
        tail = (tail + block)[1 - len(delimiter) :]
        left -= len(block)
        yield block


def _check_absent(delimiter: bytes, data: bytes) -> None:
    if delimiter in data:
        raise ValueError(f"expected no boundary in the content, got {delimiter!r}")
