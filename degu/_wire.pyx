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

from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Contains, PyDict_Copy, PyDict_Next, PyDict_Size
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.memoryview cimport PyMemoryView_FromMemory
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
    unsigned long PyThread_get_thread_ident() nogil

cdef extern from *:
    """
    #include <errno.h>
    #ifdef __linux__
    #include <pthread.h>
    #include <sys/epoll.h>
    #include <sys/socket.h>
    #include <time.h>

    #define TICK 1000000 /* nanoseconds after which the deputy looks at the leader */
    #define QUIET_TICKS 8 /* ticks without a request after which it sleeps */
    #define LOAD(of) __atomic_load_n(&(of), __ATOMIC_SEQ_CST)
    #define STORE(to, value) __atomic_store_n(&(to), (value), __ATOMIC_SEQ_CST)

    /* A thread of a pool that waits to be called, without the interpreter's lock. */
    struct degu_follower {
        pthread_cond_t turn;
        unsigned long thread, seen;
        int called;
        struct degu_follower *next;
    };

    /* What the threads of a pool tell each other without the interpreter's lock. */
    struct degu_watch {
        pthread_mutex_t lock;
        struct degu_follower *deputy;
        unsigned long turns; /* of the leader */
        int waiting; /* the leader, for a request */
        int asleep; /* the deputy, until the leader has one */
    };

    static void degu_init(struct degu_watch *watch) {
        pthread_mutex_init(&watch->lock, NULL);
        watch->deputy = NULL;
        watch->turns = 0;
        watch->waiting = watch->asleep = 0;
    }

    static void degu_prepare(struct degu_follower *me, unsigned long thread) {
        pthread_condattr_t monotonic;
        pthread_condattr_init(&monotonic);
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
        pthread_cond_init(&me->turn, &monotonic);
        pthread_condattr_destroy(&monotonic);
        me->thread = thread;
        me->called = 0;
    }

    static void degu_finish(struct degu_follower *me) {
        pthread_cond_destroy(&me->turn);
    }

    /* Wait to be called; whoever is the deputy also for a leader that stalls. */
    static void degu_follow(struct degu_watch *watch, struct degu_follower *me) {
        struct timespec at;
        int quiet = 0, late = 0;
        pthread_mutex_lock(&watch->lock);
        while (!me->called && !late) {
            me->seen = LOAD(watch->turns);
            if (watch->deputy != me) {
                pthread_cond_wait(&me->turn, &watch->lock);
            } else if (quiet < QUIET_TICKS) {
                clock_gettime(CLOCK_MONOTONIC, &at);
                at.tv_nsec += TICK;
                if (at.tv_nsec >= 1000000000) {
                    at.tv_nsec -= 1000000000;
                    at.tv_sec++;
                }
                if (pthread_cond_timedwait(&me->turn, &watch->lock, &at) == ETIMEDOUT) {
                    quiet = LOAD(watch->turns) == me->seen ? quiet + 1 : 0;
                    late = quiet && !LOAD(watch->waiting);
                }
            } else {
                STORE(watch->asleep, 1);
                if (LOAD(watch->waiting)) pthread_cond_wait(&me->turn, &watch->lock);
                STORE(watch->asleep, 0);
                quiet = 0;
            }
        }
        pthread_mutex_unlock(&watch->lock);
    }

    static void degu_call(struct degu_watch *watch, struct degu_follower *one) {
        pthread_mutex_lock(&watch->lock);
        if (watch->deputy == one) watch->deputy = NULL;
        one->called = 1;
        pthread_cond_signal(&one->turn);
        pthread_mutex_unlock(&watch->lock);
    }

    static void degu_appoint(struct degu_watch *watch, struct degu_follower *one) {
        pthread_mutex_lock(&watch->lock);
        watch->deputy = one;
        if (one) pthread_cond_signal(&one->turn);
        pthread_mutex_unlock(&watch->lock);
    }

    static void degu_count(struct degu_watch *watch) {
        __atomic_add_fetch(&watch->turns, 1, __ATOMIC_RELAXED);
    }

    static void degu_begin_waiting(struct degu_watch *watch) {
        STORE(watch->waiting, 1);
    }

    static void degu_end_waiting(struct degu_watch *watch) {
        STORE(watch->waiting, 0);
        if (LOAD(watch->asleep)) {
            pthread_mutex_lock(&watch->lock);
            if (watch->deputy) pthread_cond_signal(&watch->deputy->turn);
            pthread_mutex_unlock(&watch->lock);
        }
    }

    static double degu_now(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec + now.tv_nsec * 1e-9;
    }
    #else  /* base.py uses no plain socket there, so that no pool ever forms */
    #define MSG_DONTWAIT 0
    #define MSG_NOSIGNAL 0
    #define MSG_PEEK 0
    #define recv(fd, buffer, size, flags) (errno = ENOSYS, -1)
    #define send(fd, data, size, flags) (errno = ENOSYS, -1)
    #define EPOLLIN 0
    #define EPOLLRDHUP 0
    #define EPOLLONESHOT 0
    #define EPOLL_CLOEXEC 0
    #define EPOLL_CTL_ADD 0
    #define EPOLL_CTL_DEL 0
    #define EPOLL_CTL_MOD 0
    #define epoll_create1(flags) (-1)
    #define epoll_ctl(epoll, what, fd, event) (-1)
    #define epoll_wait(epoll, events, most, millis) (0)
    #define close(fd) (0)
    struct epoll_event { unsigned events; union { int fd; } data; };
    struct degu_follower {
        unsigned long thread, seen;
        int called;
        struct degu_follower *next;
    };
    struct degu_watch { struct degu_follower *deputy; unsigned long turns; int waiting; };
    #define degu_init(watch)
    #define degu_prepare(me, ident)
    #define degu_finish(me)
    #define degu_follow(watch, me)
    #define degu_call(watch, one)
    #define degu_appoint(watch, one)
    #define degu_count(watch)
    #define degu_begin_waiting(watch)
    #define degu_end_waiting(watch)
    #define degu_now() (0.0)
    #endif
    static int degu_set_errno(int number) {
        return errno = number;
    }
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
    int set_errno "degu_set_errno"(int number) nogil
    enum:
        EPOLLONESHOT
        EPOLLIN
        EPOLLRDHUP
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
    union epoll_data:
        int fd
    struct epoll_event:
        unsigned int events
        epoll_data data
    int epoll_create1(int flags) nogil
    int epoll_ctl(int epoll, int what, int fd, epoll_event *event) nogil
    int epoll_wait(int epoll, epoll_event *events, int most, int millis) nogil
    struct Follower "degu_follower":
        unsigned long thread
        unsigned long seen
        int called
        Follower *next
    struct Watch "degu_watch":
        Follower *deputy
        unsigned long turns
        int waiting
    void init_watch "degu_init"(Watch *watch) nogil
    void prepare_follower "degu_prepare"(Follower *me, unsigned long thread) nogil
    void finish_follower "degu_finish"(Follower *me) nogil
    void follow "degu_follow"(Watch *watch, Follower *me) nogil
    void call_follower "degu_call"(Watch *watch, Follower *one) nogil
    void appoint "degu_appoint"(Watch *watch, Follower *one) nogil
    void count_turn "degu_count"(Watch *watch) nogil
    void begin_waiting "degu_begin_waiting"(Watch *watch) nogil
    void end_waiting "degu_end_waiting"(Watch *watch) nogil
    double now "degu_now"() nogil

cdef extern from "unistd.h":
    int close_descriptor "close"(int fd) nogil

ctypedef const unsigned char *Text

cdef enum:
    ROOM = 8192  # bytes of a head that is formatted here; of a longer one by wire
    HOLD = 16384  # bytes that are sent without letting go of the interpreter's lock
    RECEIVE = 8192  # bytes that are received by way of the stack
    WANT_READ = 2  # the errno of ssl.SSLWantReadError
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
# For sockets in blocking mode, whose timeouts the kernel keeps. Where a socket is not
# `plain` but a `degu.transport.TLSSocket`, what passes here are the bytes of its records.


cdef ssize_t _receive(int fd, char *buffer) except -1:
    """Wait for bytes; 0 where the peer has closed. Raises `OSError`."""
    cdef ssize_t count
    cdef int failure
    while True:
        with nogil:
            count = recv_from(fd, buffer, RECEIVE, 0)
            failure = errno
        if count >= 0:
            return count
        if failure != EINTR:
            set_errno(failure)
            PyErr_SetFromErrno(OSError)
        PyErr_CheckSignals()


cdef ssize_t _send_now(int fd, const char *data, Py_ssize_t size) noexcept:
    """Send what the kernel has room for; -1 with `errno` where that is nothing.

    Without letting go of the interpreter's lock: to give it away and to wait for it
    again, behind other threads that want it, would take longer than the call.
    """
    return send_to(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)


def recv(sock, Py_ssize_t size):
    """Receive at most `size` bytes, as ``sock.recv(size)`` does."""
    cdef char buffer[RECEIVE]
    cdef ssize_t count
    if size != RECEIVE:
        return sock.recv(size)
    count = _receive(sock.fileno(), buffer)
    return PyBytes_FromStringAndSize(buffer, count)


cdef ssize_t _send(int fd, const char *data, Py_ssize_t size) except -1:
    """Wait until the kernel has room for some bytes; how many. Raises `OSError`."""
    cdef ssize_t count
    cdef int failure
    if size <= HOLD:
        count = _send_now(fd, data, size)
        if count >= 0:
            return count
        if errno != EINTR and not would_block():
            PyErr_SetFromErrno(OSError)
    while True:
        with nogil:
            count = send_to(fd, data, size, MSG_NOSIGNAL)
            failure = errno
        if count >= 0:
            return count
        if failure != EINTR:
            set_errno(failure)
            PyErr_SetFromErrno(OSError)
        PyErr_CheckSignals()


def send(sock, data):
    """Send what the kernel has room for, as ``socket.socket.send(sock, data)`` does."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return _send(sock.fileno(), <const char *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


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
        and headers.get("connection", "keep-alive") == "keep-alive"
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


cdef class Records:
    """What `degu.transport.TLSSocket` does its work with, within reach of C."""

    cdef object incoming, outgoing, put, take, read, write, pending

    def __cinit__(self, incoming, outgoing, sslobj):
        self.incoming, self.outgoing = incoming, outgoing
        self.put, self.take = incoming.write, outgoing.read
        self.read, self.write, self.pending = sslobj.read, sslobj.write, sslobj.pending


cdef bint _is_drained(sock) except -1:
    """Whether all that came over TLS so far was read."""
    cdef Records records = sock.records
    return not records.incoming.pending and not records.pending() and not sock.failure


cdef ssize_t _receive_tls(sock, char *buffer, bint drained) except -1:
    """As `_receive`, for the data of one record; all but the usual is for `sock`."""
    cdef Records records = sock.records
    cdef double started = 0
    cdef ssize_t count = -1
    cdef bytes data
    if drained or _is_drained(sock):
        started = now()
        count = _receive(sock.fileno(), buffer)
        if count:
            records.put(PyBytes_FromStringAndSize(buffer, count))
        else:
            records.incoming.write_eof()
        try:
            view = PyMemoryView_FromMemory(buffer, RECEIVE, PyBUF_WRITE)
            count = records.read(RECEIVE, view)
            if records.outgoing.pending:
                sock.flush()
            return count
        except OSError as error:
            if error.errno != WANT_READ:
                sock.failure = error
    data = sock.read_since(started or None, RECEIVE)
    count = PyBytes_GET_SIZE(data)
    if count > RECEIVE:
        raise ValueError("expected no more than was asked for")
    memcpy(buffer, PyBytes_AS_STRING(data), count)
    return count


cdef ssize_t _receive_any(sock, bint plain, char *buffer) except -1:
    if plain:
        return _receive(sock.fileno(), buffer)
    return _receive_tls(sock, buffer, False)


cdef bytes _seal(sock, bytes message):
    """The records of `message`, as ``sock.seal(message)`` makes them."""
    cdef Records records = sock.records
    if message and not sock.rest:
        try:
            records.write(message)
            return records.take()
        except OSError as error:
            if error.errno != WANT_READ:
                raise
    return sock.seal(message)


cdef ssize_t _send_any(sock, bint plain, bytes message) except -1:
    """How much of a message was sent; an error of it comes again the long way.

    Where it was encrypted, but not all of that sent, it is more than there was.
    """
    cdef ssize_t count
    cdef bytes sealed
    try:
        sealed = message if plain else _seal(sock, message)
    except OSError:
        return 0
    count = _send_now(
        sock.fileno(), PyBytes_AS_STRING(sealed), PyBytes_GET_SIZE(sealed)
    )
    count = max(0, count)
    if plain:
        return count
    if count < PyBytes_GET_SIZE(sealed):
        sock.rest = sealed[count:]
        return PyBytes_GET_SIZE(message) + 1
    return PyBytes_GET_SIZE(message)


def exchange_plain(sock, bint plain, bytes message, bint used):
    """Send a whole request and receive the plain head of its response.

    Returns ``(status, reason, headers, rest)``, where `rest` is what came behind the
    head; or the bytes of a head that is not plain (none where the peer has closed);
    or the number of bytes taken, where they were not all sent at once; or None, and
    nothing was sent, where a connection that was `used` before may not be quiet.

    Raises `OSError` where nothing came.
    """
    cdef char buffer[RECEIVE]
    cdef ssize_t count
    cdef Py_ssize_t end
    cdef tuple response
    if used and not (_is_quiet(sock.fileno()) and (plain or _is_drained(sock))):
        return None
    count = _send_any(sock, plain, message)
    if count != PyBytes_GET_SIZE(message):
        return count
    if used and not plain:
        count = _receive_tls(sock, buffer, True)  # it has just been looked at
    else:
        count = _receive_any(sock, plain, buffer)
    end = _find_end(buffer, count)
    if end > 0:
        response = _parse_response(<Text>buffer, end)
        if response is not None and response[0] >= 200:
            rest = PyBytes_FromStringAndSize(buffer + end + 4, count - end - 4)
            return response[0], response[1], response[2], rest
    return PyBytes_FromStringAndSize(buffer, count)


# --- kept connections --------------------------------------------------------
#
# A connection that is alone, over TLS, or has something in its session, is served by its
# own thread, which waits in recv. Of others there may be many. To hand the interpreter's
# lock from one of their threads to the next for each request would take longer than the
# request. So they form a pool of a leader and followers: the leader waits for all of them,
# and serves whichever has a request, one after the other, with the lock held.
#
# The other threads, one for each waiting connection, sleep. One of them is called to lead
# when the leader leaves, as it does before whatever may take long: a request that is not
# plain, or an app that lately was slow. One of them, the deputy, looks every TICK whether
# the leader got on; where it did not, since its app waits for something, the deputy takes
# the lead and the app counts as slow.
#
# All of this is done with the interpreter's lock held, but for the waiting.

cdef enum:
    EVENTS = 64  # taken from the kernel at once
    SLOW_TURNS = 64  # quick calls after which an app does not count as slow any more

cdef double QUICK = 0.0002  # seconds a call may take to count as quick
cdef double LONGEST = 1_000_000  # seconds of one wait


cdef class Kept:
    """A connection of a pool, between its requests or in one that is plain."""

    cdef readonly object handler
    cdef Pool pool
    cdef object server
    cdef object sock
    cdef object environ
    cdef dict session
    cdef bint plain
    cdef bint parked  # it waits, and a leader may take it
    cdef bint taken  # because something came, or because it waited for too long
    cdef bint expired
    cdef int fd  # under which the kernel tells of it, or -1
    cdef unsigned long thread  # that serves it
    cdef double deadline
    cdef Kept before
    cdef Kept after

    def __cinit__(self, Pool pool, handler, sock, bint plain, dict environ):
        self.pool = pool
        self.handler = handler
        self.server = handler.server
        self.sock = sock
        self.plain = plain
        self.environ = environ
        self.session = environ["session"]
        self.fd = -1

    def leave(self):
        """Be none of the pool's any more; only for the thread that serves it."""
        self.pool._leave(self)

    def serve(self):
        """Answer requests for as long as they and their responses are plain.

        Begins with this connection and may go on with others. Returns the handler of
        the one that needs another way, and why: the bytes of a head that is not plain
        (none where the peer has closed), what was raised, or ``(method, response,
        rest)``: what the app returned, and where some of it was sent already, the
        bytes that were not.

        Keeps ``handler.begun``, ``.busy`` and ``.count`` as the long way does; the
        request numbered `most` goes that way. What was raised came from the app if
        ``handler.busy``, else from the socket.
        """
        return self.pool._serve(self)


cdef class Queue:
    """Connections in the order in which they came, each of them in one line only."""

    cdef Kept first
    cdef Kept last

    cdef int add(self, Kept kept) except -1:
        kept.before = self.last
        if self.last is None:
            self.first = kept
        else:
            self.last.after = kept
        self.last = kept

    cdef int remove(self, Kept kept) except -1:
        if kept.before is None:
            self.first = kept.after
        else:
            kept.before.after = kept.after
        if kept.after is None:
            self.last = kept.before
        else:
            kept.after.before = kept.before
        kept.before = kept.after = None


cdef class Pool:
    """The kept connections of one server, and the threads that serve them.

    `most` is the number of requests a connection may make, `timeout` the seconds for
    which it may wait for the next one.
    """

    cdef object app
    cdef object methods
    cdef object admitted
    cdef long long most
    cdef double timeout
    cdef int epoll
    cdef int members
    cdef int slow  # for so many more calls the app counts as slow
    cdef unsigned long leader  # a thread, or 0
    cdef Watch watch
    cdef Follower *followers
    cdef dict watched  # the connections by their descriptors
    cdef Queue waiting
    cdef Queue ready

    def __cinit__(self):
        self.followers = NULL
        self.watched = {}
        self.waiting = Queue()
        self.ready = Queue()
        init_watch(&self.watch)
        self.epoll = -1

    def __init__(self, app, methods, admitted, long long most, double timeout):
        self.app = app
        self.methods = methods
        self.admitted = admitted
        self.most = most
        self.timeout = timeout

    def __dealloc__(self):
        self._close()

    def enter(self, handler, sock, bint plain, dict environ):
        """Make a connection one of these; every one has to leave before it is closed."""
        kept = Kept(self, handler, sock, plain, environ)
        self.members += plain
        return kept

    cdef int _close(self) except -1:
        if self.epoll >= 0:
            close_descriptor(self.epoll)
            self.epoll = -1

    cdef int _leave(self, Kept kept) except -1:
        if kept.parked:  # only after an error of the pool itself
            kept.parked = False
            self.waiting.remove(kept)
        if kept.fd >= 0 and self.watched.get(kept.fd) is kept:
            del self.watched[kept.fd]
            if kept.sock.fileno() == kept.fd:  # else the kernel knows it no more
                epoll_ctl(self.epoll, EPOLL_CTL_DEL, kept.fd, NULL)
        self.members -= kept.plain
        if self.members == 0:
            self._close()

    cdef tuple _serve(self, Kept kept):
        cdef char buffer[RECEIVE]
        cdef ssize_t count
        outcome = None
        try:
            while outcome is None:
                kept = self._choose(kept)
                try:
                    count = self._receive(kept, buffer)
                except (OSError, ValueError) as error:  # ValueError: TLS was ended
                    outcome = error
                else:
                    if count >= 0:
                        outcome = self._answer(kept, buffer, count)
            return kept.handler, outcome
        finally:
            self._hand_over()

    cdef object _answer(self, Kept kept, const char *data, Py_ssize_t size):
        """Answer what came; None where that was all, else why the long way is next."""
        cdef dict request
        cdef bytes message
        cdef ssize_t sent
        handler = kept.handler
        if size < 5 or _find_end(data, size) != size - 4:
            return PyBytes_FromStringAndSize(data, size)
        request = _parse_request(<Text>data, size - 4, self.methods, kept.environ)
        if request is None or not _asks_nothing(request["headers"], self.admitted):
            return PyBytes_FromStringAndSize(data, size)
        if kept.thread != PyThread_get_thread_ident():
            kept.thread = handler.thread = PyThread_get_thread_ident()
        handler.begun = handler.busy = True
        method = request["method"]
        try:
            response = self._call_app(request)
        except BaseException as error:
            return error
        del request
        done = handler.count + 1
        if kept.server.stopping or done >= self.most:
            return method, response, None
        message = _build_plain(response, method)
        if message is None:
            return method, response, None
        sent = _send_any(kept.sock, kept.plain, message)
        if sent != PyBytes_GET_SIZE(message):
            return method, response, message[sent:]
        handler.count = done
        handler.busy = False
        return None

    cdef object _call_app(self, dict request):
        cdef double begun
        if not self.slow:
            response = self.app(request)
            count_turn(&self.watch)
            return response
        self._hand_over()
        begun = now()
        try:
            return self.app(request)
        finally:
            self.slow = self.slow - 1 if now() - begun < QUICK else SLOW_TURNS

    # which connection is next

    cdef Kept _choose(self, Kept kept):
        """The connection to receive from: where others wait too, not always this one."""
        if (
            not kept.plain
            or self.members < 2
            or PyDict_Size(kept.session)
            or not self._watch(kept)
        ):
            self._hand_over()
            return kept
        kept.deadline = now() + self.timeout
        kept.parked = True
        self.waiting.add(kept)
        self._lead()
        while self.ready.first is None:
            self._poll()
            self._lead()
        kept = self.ready.first
        self.ready.remove(kept)
        return kept

    cdef ssize_t _receive(self, Kept kept, char *buffer) except? -2:
        """What came on a connection; -1 where nothing did, and it may wait for more."""
        cdef bint expired = kept.expired
        cdef ssize_t count
        cdef int failure
        if not kept.taken:
            return _receive_any(kept.sock, kept.plain, buffer)
        kept.taken = kept.expired = False
        count = recv_from(kept.sock.fileno(), buffer, RECEIVE, MSG_DONTWAIT)
        failure = errno
        if count < 0 and (expired or not would_block()):
            set_errno(failure)
            PyErr_SetFromErrno(OSError)
        return count

    cdef bint _watch(self, Kept kept) except -1:
        """Have the kernel tell once of what has come on a connection, or will."""
        cdef epoll_event event
        if self.epoll < 0:
            self.epoll = epoll_create1(EPOLL_CLOEXEC)
        event.data.fd = kept.sock.fileno()
        event.events = EPOLLIN | EPOLLRDHUP | EPOLLONESHOT
        if kept.fd >= 0:
            return epoll_ctl(self.epoll, EPOLL_CTL_MOD, event.data.fd, &event) == 0
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, event.data.fd, &event) < 0:
            return False
        kept.fd = event.data.fd
        self.watched[kept.fd] = kept
        return True

    cdef int _poll(self) except -1:
        """Make ready what has something to read, or has waited for too long."""
        cdef epoll_event events[EVENTS]
        cdef Kept kept
        cdef double left
        cdef int at
        cdef int count = epoll_wait(self.epoll, events, EVENTS, 0)
        if count < 0 and errno != EINTR:
            PyErr_SetFromErrno(OSError)
        count_turn(&self.watch)
        if count == 0:
            left = min(max(self.waiting.first.deadline - now(), 0), LONGEST)
            begin_waiting(&self.watch)
            with nogil:
                count = epoll_wait(self.epoll, events, EVENTS, <int>(left * 1000) + 1)
            end_waiting(&self.watch)
        for at in range(count):
            kept = self.watched.get(events[at].data.fd)
            if kept is not None and kept.parked:
                self._make_ready(kept)
        kept = self.waiting.first
        if kept is not None and kept.deadline <= now():
            kept.expired = True
            self._make_ready(kept)

    cdef int _make_ready(self, Kept kept) except -1:
        kept.parked = False
        kept.taken = True
        self.waiting.remove(kept)
        self.ready.add(kept)

    # which thread leads

    cdef int _lead(self) except -1:
        """Become the leader, at once or when this thread is called."""
        cdef unsigned long thread = PyThread_get_thread_ident()
        # Once called, it may come too late: then the deputy leads, or nobody does.
        while self.leader != thread:
            if self.leader == 0:
                self.leader = thread
            else:
                self._follow(thread)

    cdef int _follow(self, unsigned long thread) except -1:
        cdef Follower me
        prepare_follower(&me, thread)
        me.next = self.followers
        self.followers = &me
        if self.watch.deputy is NULL:
            appoint(&self.watch, &me)
        while not me.called:
            with nogil:
                follow(&self.watch, &me)
            # It may have got on while this thread waited for the interpreter's lock.
            if not me.called and me.seen == self.watch.turns and not self.watch.waiting:
                self.slow = SLOW_TURNS
                self._call(&me)
        finish_follower(&me)

    cdef int _hand_over(self) except -1:
        """Call another thread to lead, if this one does."""
        cdef Follower *one = self.followers
        if self.leader != PyThread_get_thread_ident():
            return 0
        if one is NULL:
            self.leader = 0  # then nothing waits either
            return 0
        if one is self.watch.deputy and one.next is not NULL:
            one = one.next
        self._call(one)

    cdef int _call(self, Follower *one) except -1:
        cdef Follower **place = &self.followers
        while place[0] is not one:
            place = &place[0].next
        place[0] = one.next
        self.leader = one.thread
        call_follower(&self.watch, one)
        if self.watch.deputy is NULL and self.followers is not NULL:
            appoint(&self.watch, self.followers)
