# cython: language_level=3, binding=True
"""The compiled twin of :mod:`degu.wire`, and three system calls without a detour.

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
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcmp, memcpy

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

cdef extern from *:
    """
    #include <errno.h>
    #ifdef __linux__
    #include <pthread.h>
    #include <sys/socket.h>

    /* Threads that want the interpreter's lock wait for it here, in the order in which
     * they came, and only the first of them waits for the lock itself. That lock goes
     * to whoever is quickest: of many threads some would wait for very long. */
    struct degu_waiter {
        pthread_cond_t turn;
        int called;
        struct degu_waiter *next;
    };
    static pthread_mutex_t degu_line = PTHREAD_MUTEX_INITIALIZER;
    static struct degu_waiter *degu_first, *degu_last;
    static int degu_taken;

    static void degu_queue(void) {
        struct degu_waiter waiter = {PTHREAD_COND_INITIALIZER, 0, NULL};
        pthread_mutex_lock(&degu_line);
        if (degu_taken) {
            if (degu_first) degu_last->next = &waiter;
            else degu_first = &waiter;
            degu_last = &waiter;
            while (!waiter.called) pthread_cond_wait(&waiter.turn, &degu_line);
        }
        degu_taken = 1;
        pthread_mutex_unlock(&degu_line);
    }

    static void degu_leave(void) {
        struct degu_waiter *waiter;
        pthread_mutex_lock(&degu_line);
        if ((waiter = degu_first)) {
            degu_first = waiter->next;
            waiter->called = 1;
            pthread_cond_signal(&waiter->turn);
        } else {
            degu_taken = 0;
        }
        pthread_mutex_unlock(&degu_line);
    }

    static void degu_after_fork(void) { /* the other threads are gone */
        pthread_mutex_init(&degu_line, NULL);
        degu_first = degu_last = NULL;
        degu_taken = 0;
    }

    static void degu_begin(void) {
        pthread_atfork(NULL, NULL, degu_after_fork);
    }
    #else  /* there the kernel keeps no timeouts, and base.py never calls these */
    #define degu_begin()
    #define degu_queue()
    #define degu_leave()
    #define MSG_DONTWAIT 0
    #define MSG_NOSIGNAL 0
    #define MSG_PEEK 0
    #define recv(fd, buffer, size, flags) (errno = ENOSYS, -1)
    #define send(fd, data, size, flags) (errno = ENOSYS, -1)
    #endif
    static int degu_would_block(void) {
        return errno == EAGAIN || errno == EWOULDBLOCK;
    }
    """
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL
        MSG_PEEK
    ssize_t recv_from "recv"(int fd, void *buffer, size_t size, int flags) nogil
    ssize_t send_to "send"(int fd, const void *data, size_t size, int flags) nogil
    bint would_block "degu_would_block"() nogil
    void prepare_queue "degu_begin"() nogil
    void queue "degu_queue"() nogil
    void leave_queue "degu_leave"() nogil

ctypedef const unsigned char *Text

cdef enum:
    ROOM = 8192  # bytes of a head that is formatted here; of a longer one by wire
    HOLD = 16384  # bytes that are sent without letting go of the interpreter's lock
    RECEIVE = 8192  # bytes that are received by way of the stack
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
cdef object _chunked = wire.CHUNKED
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
prepare_queue()


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


cdef dict _parse_request(Text p, Py_ssize_t size, methods, environ):
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
        request = _parse_request(
            <Text>PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head), methods, environ
        )
        if request is not None:
            return request
    return wire.parse_request(head, methods, scheme, environ)


cdef tuple _parse_response(Text p, Py_ssize_t size):
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
        response = _parse_response(<Text>PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head))
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


cdef bytes _build_response(status, reason, headers, body, method):
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
        message = _build_response(status, reason, headers, body, method)
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


# --- sockets -----------------------------------------------------------------
#
# For plain sockets in blocking mode, whose timeouts the kernel keeps. Where a socket is
# not `plain` but an `ssl.SSLSocket`, what its methods call is called: that object keeps
# the timeout, and the methods add nothing but a look at whether it is there.


cdef ssize_t _receive(int fd, char *buffer, bint fair) except -1:
    """Wait for bytes; 0 where the peer has closed. Raises `OSError`.

    `fair` is for threads of which there may be many, and that end with the process.
    """
    cdef ssize_t count
    cdef int failure
    while True:
        with nogil:
            count = recv_from(fd, buffer, RECEIVE, 0)
            failure = errno
            if fair:
                queue()
        if fair:
            leave_queue()
        if count >= 0:
            return count
        if failure != EINTR:
            errno = failure
            PyErr_SetFromErrno(OSError)
        PyErr_CheckSignals()


cdef ssize_t _send_now(int fd, bytes data) noexcept:
    """Send what the kernel has room for; -1 with `errno` where that is nothing.

    Without letting go of the interpreter's lock: to give it away and to wait for it
    again, behind other threads that want it, would take longer than the call.
    """
    return send_to(
        fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), MSG_DONTWAIT | MSG_NOSIGNAL
    )


def recv(sock, Py_ssize_t size):
    """Receive at most `size` bytes, as ``sock.recv(size)`` does."""
    cdef char buffer[RECEIVE]
    cdef ssize_t count
    if size != RECEIVE:
        return sock.recv(size)
    count = _receive(sock.fileno(), buffer, False)
    return PyBytes_FromStringAndSize(buffer, count)


def send(sock, data):
    """Send what the kernel has room for, as ``sock.send(data)`` does."""
    cdef ssize_t count
    if type(data) is bytes and PyBytes_GET_SIZE(data) <= HOLD:
        count = _send_now(sock.fileno(), data)
        if count >= 0:
            return count
        if errno != EINTR and not would_block():
            PyErr_SetFromErrno(OSError)
    return sock.send(data)


cdef bint _is_quiet(int fd) noexcept:
    cdef char byte
    return recv_from(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 and would_block()


def is_quiet(sock):
    """Whether the peer is there and has sent nothing."""
    return _is_quiet(sock.fileno())


# --- plain exchanges ---------------------------------------------------------
#
# One exchange after the other without a step of Python between them but the app's:
# what `degu.server` and `degu.client` do, for messages that are plainly valid, whole
# in one piece, and without anything that asks for a decision. All else is given back
# untouched, and goes the long way.

cdef Py_ssize_t _find_end(const char *data, Py_ssize_t size) noexcept:
    """Where the first empty line of `data` begins; -1 where there is none."""
    cdef const char *p = data
    cdef const char *end = data + size
    while end - p >= 4:
        p = <const char *>memchr(p, c"\r", end - p - 3)
        if p is NULL:
            return -1
        if memcmp(p, b"\r\n\r\n", 4) == 0:
            return p - data
        p += 1
    return -1


cdef bint _asks_nothing(dict headers, admitted) except -1:
    """Whether a request needs no look at who sent it, and has no body."""
    return (
        headers["host"] in admitted
        and not PyDict_Contains(headers, "content-length")
        and not PyDict_Contains(headers, "transfer-encoding")
        and not PyDict_Contains(headers, "connection")
        and not PyDict_Contains(headers, "origin")
        and not PyDict_Contains(headers, "sec-fetch-site")
        and not PyDict_Contains(headers, "expect")
    )


cdef bytes _build_plain(object response, object method):
    """The bytes of a plain response; None for any other."""
    cdef tuple values
    if type(response) is not tuple:
        return None
    values = <tuple>response
    if len(values) != 4 or type(values[2]) is not dict:
        return None
    if PyDict_Contains(values[2], "connection"):
        return None
    body = values[3]
    if body is not None and (type(body) is not bytes or PyBytes_GET_SIZE(body) > HOLD):
        return None
    return _build_response(values[0], values[1], values[2], body, method)


cdef ssize_t _receive_any(sock, bint plain, char *buffer, bint fair) except -1:
    cdef bytes data
    if plain:
        return _receive(sock.fileno(), buffer, fair)
    data = (sock._sslobj or sock).read(RECEIVE)
    if PyBytes_GET_SIZE(data) > RECEIVE:
        raise ValueError("expected no more than was asked for")
    memcpy(buffer, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    return PyBytes_GET_SIZE(data)


cdef ssize_t _send_any(sock, bint plain, bytes message) except -1:
    """How much of a message was sent; an error of it comes again the long way."""
    if plain:
        return max(0, _send_now(sock.fileno(), message))
    try:
        return (sock._sslobj or sock).write(message)
    except OSError:
        return 0


def serve_plain(
    handler, sock, bint plain, app, methods, environ, admitted, long long most
):
    """Answer requests for as long as they and their responses are plain.

    Keeps ``handler.begun``, ``.busy`` and ``.count`` as the long way does; the request
    numbered `most` goes that way. Returns what stopped it: the bytes of a head that is
    not plain (none where the peer has closed), or ``(method, response, rest)``: what
    the app returned, and where some of it was sent already, the bytes that were not.

    Raises `OSError` while ``handler.busy`` is False, else what the app raised.
    """
    cdef char buffer[RECEIVE]
    cdef ssize_t count
    cdef bytes head, message
    cdef dict request
    server = handler.server
    while True:
        count = _receive_any(sock, plain, buffer, True)
        if count < 5 or _find_end(buffer, count) != count - 4:
            return PyBytes_FromStringAndSize(buffer, count)
        request = _parse_request(<Text>buffer, count - 4, methods, environ)
        if request is None or not _asks_nothing(request["headers"], admitted):
            return PyBytes_FromStringAndSize(buffer, count)
        handler.begun = handler.busy = True
        method = request["method"]
        response = app(request)
        del request
        done = handler.count + 1
        if server.stopping or done >= most:
            return method, response, None
        message = _build_plain(response, method)
        if message is None:
            return method, response, None
        count = _send_any(sock, plain, message)
        if count != PyBytes_GET_SIZE(message):
            return method, response, message[count:]
        handler.count = done
        handler.busy = False


def exchange_plain(sock, bint plain, bytes message, bint used):
    """Send a whole request and receive the plain head of its response.

    Returns ``(status, reason, headers, rest)``, where `rest` is what came behind the
    head; or the bytes of a head that is not plain (none where the peer has closed);
    or the number of bytes sent, where they were not all taken at once; or None, and
    nothing was sent, where a connection that was `used` before may not be quiet.

    Raises `OSError` where nothing came.
    """
    cdef char buffer[RECEIVE]
    cdef ssize_t count
    cdef Py_ssize_t end
    cdef tuple response
    if used and not (_is_quiet(sock.fileno()) and (plain or not sock._sslobj.pending())):
        return None
    count = _send_any(sock, plain, message)
    if count != PyBytes_GET_SIZE(message):
        return count
    count = _receive_any(sock, plain, buffer, False)
    end = _find_end(buffer, count)
    if end > 0:
        response = _parse_response(<Text>buffer, end)
        if response is not None and response[0] >= 200:
            rest = PyBytes_FromStringAndSize(buffer + end + 4, count - end - 4)
            return response[0], response[1], response[2], rest
    return PyBytes_FromStringAndSize(buffer, count)
