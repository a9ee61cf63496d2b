"""An app that serves a folder: listings, ranges, conditional requests, uploads.

Nothing outside of the folder can be reached: each component of a path is opened by
itself, below the directory before it and without following a link, so that neither
dots, nor encodings, nor symbolic links, nor a race between a look and an open lead out.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import mimetypes
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from html import escape
from typing import Any, BinaryIO
from urllib.parse import quote, unquote_to_bytes

from degu.base import FileOutput, Input
from degu.errors import ParseError, shown
from degu.limits import MAX_CONTENT_LENGTH_DIGITS
from degu.rgi import Request, ResponseTuple, accepts

__all__ = ["FilesApp"]

_DIGITS = rf"[0-9]{{1,{MAX_CONTENT_LENGTH_DIGITS}}}"
_match_range = re.compile(rf"bytes=({_DIGITS})?-({_DIGITS})?", re.IGNORECASE).fullmatch
_match_ranges = re.compile(r"bytes=[0-9\-, \t]*,[0-9\-, \t]*", re.IGNORECASE).fullmatch
_match_content_range = re.compile(
    rf"bytes ({_DIGITS})-({_DIGITS})/({_DIGITS})"
).fullmatch
_match_digest = re.compile(r":([A-Za-z0-9+/]{43}=):").fullmatch

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_OPEN_FILE = os.O_RDONLY | _NO_FOLLOW | getattr(os, "O_CLOEXEC", 0)
_OPEN_FOLDER = _OPEN_FILE | getattr(os, "O_DIRECTORY", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a FIFO must not hold the thread
_NOT_THERE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,  # a symbolic link
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.ENXIO,  # a socket
)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_THE_WAY = (*_NOT_THERE, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

FOREVER = float("inf")

PART_SUFFIX = ".degu-part"
"""How the name of a file ends whose upload is not complete; it begins with a dot."""


class FilesApp:
    """Serve a folder over HTTP.

    `folder` is its path. With `listing` a folder is shown as HTML or JSON (by
    ``Accept``), unless it has an ``index.html``. `hidden` shows names that begin with
    a dot. With `writable`, PUT makes or replaces a file, atomically; folders on the
    way are made.

    An upload may be resumed: PUT with ``content-range: bytes a-b/size`` keeps what
    came; ``upload-offset`` in the answer, and in the one to HEAD, says where to go on.
    ``repr-digest: sha-256=:...:`` (RFC 9530) is checked before the file appears, and
    keeps the parts of different contents apart.

    GET takes one range (RFC 9110 §14); several in one request are refused by 416.
    Symbolic links are never followed, and nothing but files and folders is served.

    Raises `OSError` where the folder can't be opened, and where the system can't open
    a file relative to a folder (Windows).
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        listing: bool = True,
        hidden: bool = False,
        writable: bool = False,
    ) -> None:
        self.folder = os.path.realpath(folder)
        self.listing = listing
        self.hidden = hidden
        self.writable = writable
        self._open_root()

    def _open_root(self) -> None:
        if os.open not in os.supports_dir_fd:
            raise OSError(
                errno.ENOTSUP, "FilesApp needs openat(), which this system lacks"
            )
        self._root = os.open(self.folder, _OPEN_FOLDER & ~_NO_FOLLOW)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.folder!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_root"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_root()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._root)

    def __call__(self, request: Request) -> ResponseTuple:
        """Answer GET, HEAD and, if writable, PUT."""
        method = request["method"]
        if method not in ("GET", "HEAD") and not (method == "PUT" and self.writable):
            allow = "GET, HEAD, PUT" if self.writable else "GET, HEAD"
            return 405, "Method Not Allowed", {"allow": allow}, None
        names = self._names(request["path"])
        if names is None:
            return 404, "Not Found", {}, None
        if method == "PUT":
            return self._put(request, names)
        if not names and request["script"]:
            return _add_slash(request, request["script"][-1])
        try:
            response = self._get(request, names)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            response = 404, "Not Found", {}, None
        return self._add_offset(request, names, response)

    def _names(self, path: list[str]) -> list[str] | None:
        """The decoded components, None where one can't be a name here."""
        names = [os.fsdecode(unquote_to_bytes(component)) for component in path]
        for name in names[:-1] if names and not names[-1] else names:
            if not name or "/" in name or "\0" in name or name in (".", ".."):
                return None
            if name.startswith(".") and (not self.hidden or name.endswith(PART_SUFFIX)):
                return None
        return names

    # --- reading

    def _get(self, request: Request, names: list[str]) -> ResponseTuple:
        is_folder = not names or not names[-1]
        with self._open_folder(names[:-1]) as folder:
            if is_folder:
                return self._get_folder(request, names, folder)
            file = _open_file(names[-1], folder)
        if file is None:
            return _add_slash(request, request["path"][-1])
        return send_file(request, file, names[-1])

    @contextlib.contextmanager
    def _open_folder(self, names: list[str], make: bool = False) -> Iterator[int]:
        """The descriptor of a folder below the root, reached step by step."""
        # Not a duplicate, that would share its locks with every other request.
        here = os.open(".", _OPEN_FOLDER, dir_fd=self._root)
        try:
            for name in names:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, dir_fd=here)
                below = os.open(name, _OPEN_FOLDER, dir_fd=here)
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)

    def _get_folder(
        self, request: Request, names: list[str], folder: int
    ) -> ResponseTuple:
        file = None
        with contextlib.suppress(OSError):
            file = _open_file("index.html", folder)
        if file is not None:
            return send_file(request, file, "index.html")
        if not self.listing:
            return 404, "Not Found", {}, None
        entries = sorted(
            self._entries(folder), key=lambda e: (e["type"] == "file", e["name"])
        )
        kind = accepts(request, "text/html", "application/json")
        if kind == "application/json":
            text = json.dumps(entries, indent=1) + "\n"
        else:
            text = format_listing("/".join(["", *filter(None, names), ""]), entries)
        body = text.encode("utf-8", "replace")
        headers: dict[str, Any] = {
            "content-type": f"{kind}; charset=utf-8",
            "vary": "accept",
            "x-content-type-options": "nosniff",
        }
        if request["method"] == "HEAD":
            return 200, "OK", {**headers, "content-length": len(body)}, None
        return 200, "OK", headers, body

    def _entries(self, folder: int) -> Iterator[dict[str, Any]]:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.name.startswith(".") and (
                    not self.hidden or entry.name.endswith(PART_SUFFIX)
                ):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue  # it went away meanwhile
                if stat.S_ISDIR(status.st_mode):
                    kind, size, slash = "folder", None, "/"
                elif stat.S_ISREG(status.st_mode):
                    kind, size, slash = "file", status.st_size, ""
                else:
                    continue
                raw = os.fsencode(entry.name)
                yield {
                    "name": raw.decode("utf-8", "replace"),
                    # "./" keeps a name with a colon from being taken for a scheme.
                    "href": f"./{quote(raw)}{slash}",
                    "type": kind,
                    "size": size,
                    "modified": int(status.st_mtime),
                }

    # --- uploads

    def _add_offset(
        self, request: Request, names: list[str], response: ResponseTuple
    ) -> ResponseTuple:
        """Say in answer to HEAD how far an upload to this name has come."""
        if not self.writable or request["method"] != "HEAD" or not any(names[-1:]):
            return response
        try:
            with self._open_folder(names[:-1]) as folder:
                part = _part_name(request, names[-1])
                size = os.stat(part, dir_fd=folder, follow_symlinks=False).st_size
        except OSError:
            return response
        status, reason, headers, body = response
        return status, reason, {**headers, "upload-offset": str(size)}, body

    def _put(self, request: Request, names: list[str]) -> ResponseTuple:
        if not names or not names[-1]:
            return 409, "Conflict", {}, None
        try:
            span = parse_content_range(request)
            with self._open_folder(names[:-1], make=True) as folder:
                return _Upload(request, names[-1], folder, span).run()
        except ParseError as error:
            body = request["body"]
            if body is not None and error is body.error:
                raise
            return 400, "Bad Request", {}, None
        except OSError as error:
            body = request["body"]
            if body is not None and body.error is not None:
                raise  # the peer went away
            if error.errno in _NO_ROOM:
                return 507, "Insufficient Storage", {}, None
            if error.errno in _FORBIDDEN:
                return 403, "Forbidden", {}, None
            if error.errno in _IN_THE_WAY:
                return 409, "Conflict", {}, None
            raise


class _Upload:
    """One PUT: the bytes go to a hidden file, which takes the name when it is whole.

    `folder` is the open descriptor of where it goes, `span` what `content-range` says.
    """

    def __init__(
        self,
        request: Request,
        name: str,
        folder: int,
        span: tuple[int, int, int] | None,
    ) -> None:
        self.request = request
        self.name = name
        self.folder = folder
        self.span = span
        self.digest = _wanted_digest(request)

    def run(self) -> ResponseTuple:
        if not self._may_replace(self._find()):
            return 412, "Precondition Failed", {}, None
        if self.span is None:
            part = _build_part_name(self.name, secrets.token_hex(8))
            flags = os.O_CREAT | os.O_EXCL
        else:
            part = _part_name(self.request, self.name)
            flags = os.O_CREAT
        fd = os.open(part, _OPEN_FILE | os.O_RDWR | flags, 0o666, dir_fd=self.folder)
        with open(fd, "r+b", buffering=0) as file, _locked(fd, wait=False) as mine:
            if not (mine and self._is_still(part, fd)):
                return 409, "Conflict", {}, None
            try:
                return self._fill(part, file)
            except BaseException:
                if self.span is None:
                    self._remove(part)
                raise

    def _is_still(self, part: str, fd: int) -> bool:
        """Whether nobody has given the part its final name since it was opened."""
        try:
            now = os.stat(part, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(now, os.fstat(fd))

    def _fill(self, part: str, file: Any) -> ResponseTuple:
        start, stop, size = self.span or (0, None, None)
        offset = file.seek(0, os.SEEK_END)
        if start == 0 and offset:
            offset = file.seek(0)
            file.truncate()
        if offset != start:
            if offset == 0:
                self._remove(part)
            return 409, "Conflict", {"upload-offset": str(offset)}, None
        body = self.request["body"]
        if body is not None:
            body.write_to(file)
        reached = file.tell()
        if stop is not None and reached < size:
            return 202, "Accepted", {"upload-offset": str(reached)}, None
        if self.digest is not None and _digest(file) != self.digest:
            self._remove(part)
            return 422, "Unprocessable Content", {}, None
        os.fsync(file.fileno())
        with _locked(self.folder, wait=True):
            return self._publish(part, file)

    def _publish(self, part: str, file: Any) -> ResponseTuple:
        """Give the whole part its name, unless the file there has changed."""
        before = self._find()
        if not self._may_replace(before):
            self._remove(part)
            return 412, "Precondition Failed", {}, None
        if before is not None and stat.S_ISDIR(before.st_mode):
            raise IsADirectoryError(errno.EISDIR, "a folder is in the way")
        os.rename(part, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        os.fsync(self.folder)
        headers = {"etag": make_etag(os.fstat(file.fileno()))}
        if before is not None:
            return 204, "No Content", headers, None
        return 201, "Created", headers, None

    def _find(self) -> os.stat_result | None:
        """The status of what has the name now."""
        try:
            return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _may_replace(self, before: os.stat_result | None) -> bool:
        """Whether the request is for a file in this state (RFC 9110 §13.2.2)."""
        if before is None:
            headers = self.request["headers"]
            return "if-match" not in headers and "if-unmodified-since" not in headers
        etag, modified = make_etag(before), int(before.st_mtime)
        # To anything but GET and HEAD both failures are a 412; a date is no reason.
        headers = dict(self.request["headers"])
        headers.pop("if-modified-since", None)
        return check_conditions(headers, etag, modified) is None

    def _remove(self, part: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(part, dir_fd=self.folder)


@contextlib.contextmanager
def _locked(fd: int, *, wait: bool) -> Iterator[bool]:
    """Lock an open file or folder; False where somebody else has it."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - not on this system
        yield True
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        # Closing alone would leave the lock to a process forked meanwhile.
        fcntl.flock(fd, fcntl.LOCK_UN)


def _part_name(request: Request, name: str) -> str:
    """The hidden name of an upload that can be resumed; one for each content."""
    key = f"{name}\0{request['headers'].get('repr-digest', '')}"
    mark = hashlib.sha256(os.fsencode(key)).hexdigest()[:16]
    return _build_part_name(name, mark)


def _build_part_name(name: str, mark: str) -> str:
    return f".{os.fsdecode(os.fsencode(name)[:80])}.{mark}{PART_SUFFIX}"


def _wanted_digest(request: Request) -> bytes | None:
    """The SHA-256 that ``repr-digest`` states; other algorithms are ignored."""
    for member in request["headers"].get("repr-digest", "").split(","):
        name, _, value = member.strip(" \t").partition("=")
        if name == "sha-256":
            match = _match_digest(value)
            if match is None:
                raise ParseError(
                    f"repr-digest: expected 'sha-256=:...:', got {shown(member)}"
                )
            return base64.b64decode(match[1])
    return None


def _digest(file: Any) -> bytes:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").digest()


def parse_content_range(request: Request) -> tuple[int, int, int] | None:
    """The ``content-range`` of a partial PUT (RFC 9110 §14.5) as first, stop, size.

    Raises `ParseError` where it contradicts itself or the body.
    """
    value = request["headers"].get("content-range")
    if value is None:
        return None
    match = _match_content_range(value)
    body = request["body"]
    length = body.content_length if isinstance(body, Input) else None
    if match is not None:
        first, last, size = map(int, match.groups())
        if first <= last < size and length == last + 1 - first:
            return first, last + 1, size
    raise ParseError(
        f"content-range: expected 'bytes a-b/size' for {length} bytes, got {value!r}"
    )


# --- files as responses ------------------------------------------------------


def _add_slash(request: Request, name: str) -> ResponseTuple:
    """Send a browser to where the links of a folder's page are right."""
    query = "" if request["query"] is None else f"?{request['query']}"
    location = f"./{quote(name, safe='%')}/{query}"
    return 308, "Permanent Redirect", {"location": location}, None


def _open_file(name: str, folder: int) -> BinaryIO | None:
    """Open a regular file; None for a folder; ENOENT for anything else."""
    fd = os.open(name, _OPEN_FILE | _NO_WAIT, dir_fd=folder)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return open(fd, "rb", buffering=0)
    os.close(fd)
    if stat.S_ISDIR(mode):
        return None
    raise FileNotFoundError(errno.ENOENT, "not a file")


def send_file(request: Request, file: BinaryIO, name: str) -> ResponseTuple:
    """The response to GET or HEAD for an open file, which it closes.

    Conditional requests (RFC 9110 §13) and one range (§14) are honoured.
    """
    status = os.fstat(file.fileno())
    size = status.st_size
    headers: dict[str, Any] = {
        "accept-ranges": "bytes",
        "content-type": guess_type(name),
        "etag": make_etag(status),
        "last-modified": formatdate(int(status.st_mtime), usegmt=True),
        "x-content-type-options": "nosniff",
    }
    outcome = check_conditions(
        request["headers"], headers["etag"], int(status.st_mtime)
    )
    if outcome is not None:
        file.close()
        if outcome == 412:
            return 412, "Precondition Failed", {}, None
        del headers["content-type"]
        return 304, "Not Modified", headers, None
    code, reason, start, stop = 200, "OK", 0, size
    span = choose_range(request, size, headers["etag"], status.st_mtime)
    if span is not None:
        start, stop = span
        if start >= stop:
            file.close()
            unsatisfied = {"content-range": f"bytes */{size}"}
            return 416, "Range Not Satisfiable", unsatisfied, None
        headers["content-range"] = f"bytes {start}-{stop - 1}/{size}"
        code, reason = 206, "Partial Content"
    headers["content-length"] = stop - start
    if request["method"] == "HEAD" or stop == start:
        file.close()
        return code, reason, headers, None
    file.seek(start)
    return code, reason, headers, FileOutput(file, stop - start)


def make_etag(status: os.stat_result) -> str:
    """A strong validator: it changes with whatever changes the file."""
    return f'"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"'


def check_conditions(
    headers: Mapping[str, Any], etag: str, modified: int
) -> int | None:
    """304, 412 or None, in the order of RFC 9110 §13.2.2."""
    if "if-match" in headers:
        if not _etag_in(headers["if-match"], etag, weak=False):
            return 412
    elif _parse_date(headers.get("if-unmodified-since"), FOREVER) < modified:
        return 412
    if "if-none-match" in headers:
        if _etag_in(headers["if-none-match"], etag, weak=True):
            return 304
    elif _parse_date(headers.get("if-modified-since"), -FOREVER) >= modified:
        return 304
    return None


def _etag_in(field: str, etag: str, *, weak: bool) -> bool:
    if field == "*":
        return True
    tags = [tag.strip(" \t") for tag in field.split(",")]
    if weak:
        tags = [tag.removeprefix("W/") for tag in tags]
    return etag in tags


def _parse_date(value: str | None, otherwise: float) -> float:
    """Seconds since the epoch of an HTTP-date; `otherwise` where it isn't one."""
    try:
        date = parsedate_to_datetime(value or "")
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, IndexError, OverflowError):
        return otherwise


def choose_range(
    request: Request, size: int, etag: str, modified: float
) -> tuple[int, int] | None:
    """The first byte and the one after the last that are asked for; None for all.

    Without overlap the two are equal (416), also where several ranges are asked for.
    A field that is no range of bytes is ignored (RFC 9110 §14.2).
    """
    headers = request["headers"]
    value = headers.get("range")
    if value is None or request["method"] != "GET":
        return None
    if "if-range" in headers and not _is_same(headers["if-range"], etag, modified):
        return None
    if _match_ranges(value):
        return size, size
    match = _match_range(value)
    if match is None or match.groups() == (None, None):
        return None
    first, last = match.groups()
    if first is None:
        if int(last) == 0:
            return size, size
        # Of an empty file all is the only way to say what a suffix of it is.
        return (max(0, size - int(last)), size) if size else None
    start = int(first)
    stop = size if last is None else min(int(last) + 1, size)
    if last is not None and int(last) < start:
        return None
    return (start, stop) if start < size else (size, size)


def _is_same(validator: str, etag: str, modified: float) -> bool:
    """Whether ``if-range`` names this very state (RFC 9110 §13.1.5).

    A date does so only when the second that it names is over.
    """
    if validator.startswith('"'):
        return validator == etag
    settled = time.time() >= int(modified) + 1
    return settled and _parse_date(validator, FOREVER) == int(modified)


_TYPES = mimetypes.MimeTypes()
"""What the standard library knows by itself, the same on every system."""

for _type, _suffixes in {
    "application/epub+zip": ".epub",
    "application/wasm": ".wasm",
    "application/yaml": ".yaml .yml",
    "audio/flac": ".flac",
    "audio/mp4": ".m4a",
    "audio/ogg": ".ogg .oga .opus",
    "audio/wav": ".wav",
    "font/otf": ".otf",
    "font/ttf": ".ttf",
    "font/woff": ".woff",
    "font/woff2": ".woff2",
    "image/avif": ".avif",
    "image/webp": ".webp",
    "text/javascript": ".js .mjs",
    "text/markdown": ".md",
    "text/x-rst": ".rst",
    "video/matroska": ".mkv",
    "video/ogg": ".ogv",
    "video/webm": ".webm",
}.items():
    for _suffix in _suffixes.split():
        _TYPES.add_type(_type, _suffix)


def guess_type(name: str) -> str:
    """The media type by a file's name; text is UTF-8."""
    # By the end alone: of a whole name a colon would make a URL.
    stem, end = os.path.splitext(name.lower())
    if end in _TYPES.encodings_map:
        return "application/gzip" if end == ".gz" else "application/octet-stream"
    if end in (".tgz", ".taz"):
        return "application/gzip"
    kind = _TYPES.types_map[True].get(end) if stem else None
    if kind is None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
td, th {{ padding: .25rem .5rem; text-align: left; border-bottom: 1px solid #8884; }}
td + td, th + th {{ text-align: right; white-space: nowrap; }}
a {{ text-decoration: none; }} a:hover {{ text-decoration: underline; }}
</style></head><body><h1>{title}</h1>
<table><tr><th>Name</th><th>Size</th><th>Modified (UTC)</th></tr>
{rows}
</table></body></html>
"""


def format_listing(title: str, entries: list[dict[str, Any]]) -> str:
    """A folder as a page of HTML."""
    rows = []
    if title != "/":
        rows.append('<tr><td><a href="../">..</a></td><td></td><td></td></tr>')
    for entry in entries:
        name = escape(entry["name"]) + ("/" if entry["type"] == "folder" else "")
        date = f"{datetime.fromtimestamp(entry['modified'], UTC):%Y-%m-%d %H:%M}"
        rows.append(
            f'<tr><td><a href="{escape(entry["href"])}">{name}</a></td>'
            f"<td>{format_size(entry['size'])}</td><td>{date}</td></tr>"
        )
    return _PAGE.format(title=escape(title), rows="\n".join(rows))


def format_size(size: int | None) -> str:
    """A number of bytes for people: 1536 is ``1.5 KiB``; None is nothing."""
    if size is None:
        return ""
    if size < 1024:
        return f"{size} B"
    power = min(4, (size.bit_length() - 1) // 10)
    return f"{size / 1024**power:.1f} {' KMGT'[power]}iB"
