# cython: language_level=3, binding=True
"""The compiled twin of :mod:`degu.wire`.

It decides nothing. What is plainly valid takes the short way through C; whatever is
not (an error, a rare form, a text too long for a buffer on the stack) is handed as it
came to the function of the same name in `degu.wire`, whose value or exception is then
the answer. So this module can only be wrong by accepting something that `degu.wire`
would not, or by giving another value for it, and that is what the tests look for.

How bounds are kept: text is read between a pointer and an `end`, and every loop asks
``p < end`` before it looks at ``p[0]``; text is written through `_put`, which knows
how much room is left. What has no compiled form here is wire's own function.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Contains, PyDict_Copy, PyDict_Next, PyDict_Size
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy

from degu import wire
from degu.limits import (
    MAX_CHUNK_SIZE,
    MAX_CONTENT_LENGTH_DIGITS,
    MAX_HEADER_COUNT,
    MAX_TARGET_SIZE,
)
from degu.wire import *

__all__ = wire.__all__

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    const unsigned char *PyUnicode_DATA(object text)
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 highest)
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1

cdef enum:
    ROOM = 8192  # bytes of a head that is formatted here; of a longer one by wire
    TEXTS = 1024  # texts that are remembered; a power of two
    TEXT_SIZE = 128  # bytes of a text that is worth it
    NAME_SIZE = 64  # bytes of a name that is read here

cdef Py_ssize_t MAX_FIELDS = MAX_HEADER_COUNT
cdef Py_ssize_t MAX_TARGET = MAX_TARGET_SIZE
cdef Py_ssize_t MAX_LINE = wire.MAX_REQUEST_LINE_SIZE - 2
cdef Py_ssize_t MAX_DIGITS = MAX_CONTENT_LENGTH_DIGITS
cdef long long MAX_LENGTH = 10 ** MAX_CONTENT_LENGTH_DIGITS - 1
cdef long MAX_CHUNK = MAX_CHUNK_SIZE

cdef object _nothing = wire._NOTHING
cdef object _hosts = wire._hosts
cdef object _until_close = wire.UNTIL_CLOSE
cdef frozenset _bodiless = wire.BODILESS_METHODS
cdef frozenset _content = wire.CONTENT_METHODS


# --- classes of characters ---------------------------------------------------

cdef enum:
    TOKEN = 1
    LOWER = 2  # a token's, but for upper-case letters
    VALUE = 4
    VISIBLE = 8
    PATH = 16
    QUERY = 32
    HEX = 64
    DIGIT = 128

cdef unsigned char _kinds[256]
cdef unsigned char _lower[256]


def _fill_tables():
    letters = "abcdefghijklmnopqrstuvwxyz"
    digits = "0123456789"
    token = "!#$%&'*+-.^_`|~" + digits + letters
    path = "-._~!$&'()*+,;=:@/|[]^" + digits + letters + letters.upper()
    visible = "".join(map(chr, range(0x21, 0x7F)))
    for kind, characters in (
        (TOKEN, token + letters.upper()),
        (LOWER, token),
        (VALUE, visible + " \t"),
        (VISIBLE, visible),
        (PATH, path),
        (QUERY, path + "?{}`\\"),
        (HEX, digits + "abcdefABCDEF"),
        (DIGIT, digits),
    ):
        for character in characters:
            _kinds[<unsigned char>ord(character)] |= kind
    for code in range(256):
        _lower[code] = code + 32 if 0x41 <= code <= 0x5A else code


_fill_tables()


cdef inline bint _is(Text p, int kind) noexcept:
    return _kinds[p[0]] & kind


cdef inline bint _all(Text p, Text end, int kind) noexcept:
    while p < end:
        if not _is(p, kind):
            return False
        p += 1
    return True


cdef inline bint _equal(Text p, Text end, const char *text, Py_ssize_t size) noexcept:
    return end - p == size and memcmp(p, text, size) == 0


# --- texts that come again ---------------------------------------------------

cdef PyObject *_texts[TEXTS]


cdef object _make_text(Text p, Py_ssize_t size):
    text = PyUnicode_New(size, 127)
    memcpy(<void *>PyUnicode_DATA(text), p, size)
    return text


cdef object _text(Text p, Py_ssize_t size):
    """The `str` of ASCII text; where it came before, the same object again."""
    cdef uint64_t word, mixed = <uint64_t>size
    cdef Py_ssize_t at = 0
    cdef PyObject **place
    if size > TEXT_SIZE or size == 0:
        return _make_text(p, size)
    while at < size:
        word = 0
        memcpy(&word, p + at, 8 if size - at >= 8 else size - at)
        mixed = (mixed ^ word) * 0x9E3779B97F4A7C15u
        mixed ^= mixed >> 32
        at += 8
    place = &_texts[mixed & (TEXTS - 1)]
    if place[0] is not NULL:
        text = <object>place[0]
        if PyUnicode_GET_LENGTH(text) == size and not memcmp(PyUnicode_DATA(text), p, size):
            return text
    text = _make_text(p, size)
    Py_INCREF(text)
    Py_XDECREF(place[0])
    place[0] = <PyObject *>text
    return text


# --- targets -----------------------------------------------------------------


cdef struct _Target:
    Text end
    Text query  # what follows the "?", or NULL
    Py_ssize_t segments
    bint risky  # there may be a dot segment


cdef bint _read_target(Text p, Text end, _Target *target) noexcept:
    """Read a target in origin-form as far as it goes; False where there is none."""
    cdef int kind = PATH
    cdef Text start = p
    target.query = NULL
    target.segments = 0
    target.risky = False
    if p >= end or p[0] != c"/":
        return False
    while p < end:
        if _is(p, kind):
            if kind == PATH:
                if p[0] == c"/":
                    target.segments += 1
                elif p[0] == c"." and p[-1] == c"/":
                    target.risky = True
        elif p[0] == c"%":
            if end - p < 3 or not (_is(p + 1, HEX) and _is(p + 2, HEX)):
                return False
            if kind == PATH:
                target.risky = True
            p += 2
        elif p[0] == c"?" and kind == PATH:
            kind = QUERY
            target.query = p + 1
        else:
            break
        p += 1
    target.end = p
    return p - start <= MAX_TARGET


cdef bint _has_dot_segment(Text p, _Target *target) except -1:
    cdef Text end = target.end if target.query is NULL else target.query - 1
    return target.risky and wire._find_dot_segment(_make_text(p, end - p)) is not None


cdef list _split_path(Text p, _Target *target):
    """The segments of a path that `_read_target` has read."""
    cdef Text end = target.end if target.query is NULL else target.query - 1
    cdef Text start = p + 1
    cdef list path = []
    if end - p == 1:
        return path
    p += 1
    while p < end:
        if p[0] == c"/":
            path.append(_make_text(start, p - start))
            start = p + 1
        p += 1
    path.append(_make_text(start, end - start))
    return path


# --- heads that came in ------------------------------------------------------


cdef object _parse_length(Text p, Text end):
    """The value of a Content-Length; None where wire has to look at it."""
    cdef long long length = 0
    if p >= end or end - p > MAX_DIGITS or (p[0] == c"0" and end - p > 1):
        return None
    while p < end:
        if not _is(p, DIGIT):
            return None
        length = length * 10 + (p[0] - c"0")
        p += 1
    return length


cdef bint _parse_fields(Text p, Text end, dict headers) except -1:
    """Fill `headers` from the lines of a section; False where wire has to look."""
    cdef unsigned char name[NAME_SIZE]
    cdef Py_ssize_t size, count = 0
    cdef Text start, stop
    while count < MAX_FIELDS:
        size = 0
        while p < end and size < NAME_SIZE and _is(p, TOKEN):
            name[size] = _lower[p[0]]
            size += 1
            p += 1
        if size == 0 or p >= end or p[0] != c":":
            return False
        p += 1
        while p < end and (p[0] == c" " or p[0] == c"\t"):
            p += 1
        start = p
        while p < end and _is(p, VALUE):
            p += 1
        stop = p
        while stop > start and not _is(stop - 1, VISIBLE):
            stop -= 1
        if _equal(name, name + size, "content-length", 14):
            value = _parse_length(start, stop)
            if value is None:
                return False
        elif _equal(name, name + size, "transfer-encoding", 17) and not _equal(
            start, stop, "chunked", 7
        ):
            return False
        else:
            value = _text(start, stop - start)
        headers[_text(name, size)] = value
        count += 1
        if PyDict_Size(headers) != count:  # a repeated one
            return False
        if p == end:
            return True
        if end - p < 2 or p[0] != c"\r" or p[1] != c"\n":
            return False
        p += 2
    return False


cdef bint _parse_lines(Text p, Text end, dict headers) except -1:
    """Fill `headers` from what follows a start-line, if anything does."""
    if p == end:
        return True
    if end - p < 2 or p[0] != c"\r" or p[1] != c"\n":
        return False
    return _parse_fields(p + 2, end, headers)


cdef dict parse_plain_request(Text p, Py_ssize_t size, methods, environ):
    """A plainly valid request; None for any other."""
    cdef Text end = p + size
    cdef Text line, start
    cdef _Target target
    cdef dict request, headers = {}
    if end - p > 2 and p[0] == c"\r" and p[1] == c"\n":
        p += 2
    line = start = p
    while p < end and _is(p, TOKEN):
        p += 1
    if p == start or p == end or p[0] != c" ":
        return None
    method = _text(start, p - start)
    p += 1
    start = p
    if not _read_target(p, end, &target):
        return None
    p = target.end
    if end - p < 9 or memcmp(p, b" HTTP/1.1", 9) or _has_dot_segment(start, &target):
        return None
    if p + 9 - line > MAX_LINE:
        return None
    if method not in methods or not _parse_lines(p + 9, end, headers):
        return None
    host = headers.get("host")
    if host is None or not PyDict_Contains(_hosts, host) or "expect" in headers:
        return None
    request = dict(environ)
    request["method"] = method
    request["uri"] = _make_text(start, p - start)
    request["script"] = []
    request["path"] = _split_path(start, &target)
    request["query"] = None
    if target.query is not NULL:
        request["query"] = _make_text(target.query, p - target.query)
    request["headers"] = headers
    return request


def parse_request(head, methods=wire.METHODS, scheme="http", environ=_nothing):
    if type(head) is bytes:
        request = parse_plain_request(
            <Text>PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head), methods, environ
        )
        if request is not None:
            return request
    return wire.parse_request(head, methods, scheme, environ)


cdef tuple parse_plain_response(Text p, Py_ssize_t size):
    """A plainly valid response; None for any other."""
    cdef Text end = p + size
    cdef Text start
    cdef int status
    cdef dict headers = {}
    if end - p < 13 or memcmp(p, b"HTTP/1.1 ", 9) or p[12] != c" ":
        return None
    p += 9
    if not (c"1" <= p[0] <= c"5" and _is(p + 1, DIGIT) and _is(p + 2, DIGIT)):
        return None
    status = (p[0] - c"0") * 100 + (p[1] - c"0") * 10 + (p[2] - c"0")
    p += 4
    start = p
    while p < end and _is(p, VALUE):
        p += 1
    if p > start and not (_is(start, VISIBLE) and _is(p - 1, VISIBLE)):
        return None
    reason = _text(start, p - start)
    if not _parse_lines(p, end, headers):
        return None
    return status, reason, headers


def parse_response(head):
    if type(head) is bytes:
        response = parse_plain_response(<Text>PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head))
        if response is not None:
            return response
    return wire.parse_response(head)


def parse_headers(block):
    cdef dict headers = {}
    cdef Text p
    if type(block) is bytes:
        p = <Text>PyBytes_AS_STRING(block)
        if _parse_fields(p, p + PyBytes_GET_SIZE(block), headers):
            return headers
    return wire.parse_headers(block)


# --- heads that go out -------------------------------------------------------


cdef struct _Line:
    Py_ssize_t size
    char data[ROOM]


cdef inline bint _put(_Line *line, const void *data, Py_ssize_t size) noexcept:
    """Append to the line; False where there is no room."""
    if size > ROOM - line.size:
        return False
    memcpy(line.data + line.size, data, size)
    line.size += size
    return True


cdef int _small_int(object value) except -2:
    """An `int` from 0 to 999; -1 for anything else."""
    cdef int overflow = 0
    cdef long long number
    if type(value) is not int:
        return -1
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    return number if not overflow and 0 <= number <= 999 else -1


cdef inline bint _is_text(object value) noexcept:
    """Whether `value` is a `str` whose bytes can be looked at as they are."""
    return type(value) is str and PyUnicode_IS_COMPACT_ASCII(value)


cdef bint _put_field(_Line *line, object name, object value) except -1:
    cdef Text p, v
    cdef Py_ssize_t size, length
    cdef long long number
    cdef int overflow = 0
    cdef char digits[24]
    if not _is_text(name):
        return False
    p = PyUnicode_DATA(name)
    size = PyUnicode_GET_LENGTH(name)
    if size == 0 or not _all(p, p + size, LOWER):
        return False
    if _equal(p, p + size, "content-length", 14):
        if type(value) is not int:
            return False
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow or not 0 <= number <= MAX_LENGTH:
            return False
        v = <Text>digits
        length = snprintf(digits, sizeof(digits), "%lld", number)
    else:
        if not _is_text(value):
            return False
        v = PyUnicode_DATA(value)
        length = PyUnicode_GET_LENGTH(value)
        if not _all(v, v + length, VALUE):
            return False
        if length and not (_is(v, VISIBLE) and _is(v + length - 1, VISIBLE)):
            return False
        if _equal(p, p + size, "transfer-encoding", 17) and not _equal(
            v, v + length, "chunked", 7
        ):
            return False
    return (
        _put(line, b"\r\n", 2)
        and _put(line, p, size)
        and _put(line, b": ", 2)
        and _put(line, v, length)
    )


cdef bint _put_fields(_Line *line, object headers) except -1:
    """Append each field with the CRLF before it; False where wire has to look."""
    cdef PyObject *name
    cdef PyObject *value
    cdef Py_ssize_t position = 0
    if type(headers) is not dict or PyDict_Size(headers) > MAX_FIELDS:
        return False
    while PyDict_Next(headers, &position, &name, &value):
        if not _put_field(line, <object>name, <object>value):
            return False
    return True


cdef bint _put_request(_Line *line, object method, object uri) except -1:
    cdef Text p, end
    cdef _Target target
    if not (_is_text(method) and _is_text(uri)):
        return False
    p = PyUnicode_DATA(method)
    end = p + PyUnicode_GET_LENGTH(method)
    if p == end or not _all(p, end, TOKEN) or _equal(p, end, "CONNECT", 7):
        return False
    if not (_put(line, p, end - p) and _put(line, b" ", 1)):
        return False
    p = PyUnicode_DATA(uri)
    end = p + PyUnicode_GET_LENGTH(uri)
    if not _read_target(p, end, &target) or target.end != end:
        return False
    if _has_dot_segment(p, &target):
        return False
    return (
        _put(line, p, end - p)
        and _put(line, b" HTTP/1.1", 9)
        and line.size <= MAX_LINE
    )


def format_request(method, uri, headers):
    cdef _Line line
    line.size = 0
    if _put_request(&line, method, uri) and _put_fields(&line, headers):
        return PyBytes_FromStringAndSize(line.data, line.size)
    return wire.format_request(method, uri, headers)


cdef bint _put_status(_Line *line, object status, object reason) except -1:
    cdef Text p, end
    cdef int number = _small_int(status)
    if not 100 <= number <= 599 or not _is_text(reason):
        return False
    p = PyUnicode_DATA(reason)
    end = p + PyUnicode_GET_LENGTH(reason)
    if p == end or not (_is(p, VISIBLE) and _is(end - 1, VISIBLE) and _all(p, end, VALUE)):
        return False
    line.size = snprintf(line.data, ROOM, "HTTP/1.1 %d ", number)
    return _put(line, p, end - p)


def format_response(status, reason, headers):
    cdef _Line line
    line.size = 0
    if _put_status(&line, status, reason) and _put_fields(&line, headers):
        return PyBytes_FromStringAndSize(line.data, line.size)
    return wire.format_response(status, reason, headers)


cdef bint _put_length(_Line *line, Py_ssize_t length) noexcept:
    cdef char text[48]
    cdef int size = snprintf(text, sizeof(text), "\r\ncontent-length: %zd", length)
    return _put(line, text, size)


cdef bytes _join(_Line *line, object body):
    """The head in `line`, the end of it, and a body of bytes or None."""
    cdef Py_ssize_t size = 0 if body is None else PyBytes_GET_SIZE(body)
    cdef bytes message = PyBytes_FromStringAndSize(NULL, line.size + 4 + size)
    cdef char *data = PyBytes_AS_STRING(message)
    memcpy(data, line.data, line.size)
    memcpy(data + line.size, b"\r\n\r\n", 4)
    if size:
        memcpy(data + line.size + 4, PyBytes_AS_STRING(body), size)
    return message


cdef inline bint _is_unframed(object headers) except -1:
    """Whether these are a `dict` that leaves it to us to say how long the body is."""
    return (
        type(headers) is dict
        and not PyDict_Contains(headers, "content-length")
        and not PyDict_Contains(headers, "transfer-encoding")
    )


cdef bint _put_whole_request(
    _Line *line, object method, object uri, object headers, object body, object host
) except -1:
    cdef Py_ssize_t length = 0 if body is None else PyBytes_GET_SIZE(body)
    if not _is_unframed(headers) or not _put_request(line, method, uri):
        return False
    if not PyDict_Contains(headers, "host") and not (
        PyDict_Size(headers) < MAX_FIELDS - 1 and _put_field(line, "host", host)
    ):
        return False
    if PyDict_Size(headers) >= MAX_FIELDS or not _put_fields(line, headers):
        return False
    if length:
        return method not in _bodiless and _put_length(line, length)
    return method not in _content or _put_length(line, 0)


def build_request(method, uri, headers, body, host):
    cdef _Line line
    line.size = 0
    if (body is None or type(body) is bytes) and _put_whole_request(
        &line, method, uri, headers, body, host
    ):
        return _join(&line, body)
    return wire.build_request(method, uri, headers, body, host)


cdef bytes build_plain_response(status, reason, headers, body, method):
    """A whole response, if it is plain; `body` is `bytes` or None."""
    cdef _Line line
    line.size = 0
    if (
        _is_unframed(headers)
        and PyDict_Size(headers) < MAX_FIELDS
        and _has_content(status)
        and method != "HEAD"
        and _put_status(&line, status, reason)
        and _put_fields(&line, headers)
        and _put_length(&line, 0 if body is None else PyBytes_GET_SIZE(body))
    ):
        return _join(&line, body)
    return None


def build_response(status, reason, headers, body, method):
    if body is None or type(body) is bytes:
        message = build_plain_response(status, reason, headers, body, method)
        if message is not None:
            return message
    return wire.build_response(status, reason, headers, body, method)


def format_headers(headers):
    cdef _Line line
    line.size = 0
    if _put_fields(&line, headers) and line.size:
        return PyBytes_FromStringAndSize(line.data + 2, line.size - 2)
    return wire.format_headers(headers)


# --- framing -----------------------------------------------------------------


cdef inline bint _has_content(object status) except -1:
    """Whether a response of this status is framed by its headers alone."""
    cdef int number = _small_int(status)
    return number >= 200 and number != 204 and number != 304


def body_framing(headers, method, status=None):
    if type(headers) is dict and "transfer-encoding" not in headers:
        length = (<dict>headers).get("content-length")
        if status is None:
            if length is None:
                return None
            if type(length) is int and length > 0 and method not in _bodiless:
                return length
        elif _has_content(status) and method != "HEAD":
            if length is None:
                return _until_close
            if type(length) is int and length > 0:
                return length
    return wire.body_framing(headers, method, status)


def frame_headers(headers, framing, method, status=None):
    if (
        type(headers) is dict
        and "content-length" not in headers
        and "transfer-encoding" not in headers
    ):
        if status is None:
            if framing is None and method not in _content:
                return headers
            if type(framing) is int and framing > 0 and method not in _bodiless:
                headers = PyDict_Copy(headers)
                headers["content-length"] = framing
                return headers
        elif _has_content(status) and method != "HEAD":
            if framing is None or (type(framing) is int and framing >= 0):
                headers = PyDict_Copy(headers)
                headers["content-length"] = framing or 0
                return headers
    return wire.frame_headers(headers, framing, method, status)


def says_close(headers):
    value = headers["connection"]
    if value == "close":
        return True
    if value == "keep-alive":
        return False
    return wire.says_close(headers)


# --- chunks ------------------------------------------------------------------


def parse_chunk_head(line):
    cdef Text p, end
    cdef long size = 0
    if type(line) is bytes:
        p = <Text>PyBytes_AS_STRING(line)
        end = p + PyBytes_GET_SIZE(line)
        if 0 < end - p <= 7 and (p[0] != c"0" or end - p == 1) and _all(p, end, HEX):
            while p < end:
                # The last digit of a letter's code, and nine, are its value.
                size = size * 16 + (p[0] & 15) + (0 if _is(p, DIGIT) else 9)
                p += 1
            if size <= MAX_CHUNK:
                return size, None
    return wire.parse_chunk_head(line)


def format_chunk_head(size, extension=None):
    cdef char line[24]
    cdef int length
    if extension is None and type(size) is int and 0 <= size <= MAX_CHUNK:
        length = snprintf(line, sizeof(line), "%lx", <unsigned long>size)
        return PyBytes_FromStringAndSize(line, length)
    return wire.format_chunk_head(size, extension)
