# cython: language_level=3, binding=True
"""Sockets, and plain exchanges over them, without a detour.

For sockets in blocking mode, whose timeouts the kernel keeps. Where a socket is not
`plain` but a `degu.transport.TLSSocket`, what passes here are the bytes of its records.

An exchange takes no step of Python between sending and receiving: it is what
`degu.client` does, for messages that are plainly valid, whole in one piece, and without
anything that asks for a decision. All else is given back untouched, and goes the long
way. `degu._pool` is the same for the other side.
"""

from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EINTR, errno
from libc.string cimport memchr, memcmp, memcpy

from degu._system cimport (
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_PEEK,
    now,
    recv_from,
    send_to,
    set_errno,
    would_block,
)
from degu._wire cimport Text, parse_plain_response

__all__ = ["Records", "exchange_plain", "is_quiet", "recv", "send"]

cdef enum:
    WANT_READ = 2  # the errno of ssl.SSLWantReadError


# --- sockets -----------------------------------------------------------------


cdef ssize_t _receive(int fd, char *buffer) except -1:
    """Wait for bytes; 0 where the peer has closed. Raises `OSError`."""
    cdef ssize_t count
    cdef int failure
    while True:
        PyErr_CheckSignals()  # one that came before the waiting would not end it
        with nogil:
            count = recv_from(fd, buffer, RECEIVE, 0)
            failure = errno
        if count >= 0:
            return count
        if failure != EINTR:
            set_errno(failure)
            PyErr_SetFromErrno(OSError)


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
        PyErr_CheckSignals()
        with nogil:
            count = send_to(fd, data, size, MSG_NOSIGNAL)
            failure = errno
        if count >= 0:
            return count
        if failure != EINTR:
            set_errno(failure)
            PyErr_SetFromErrno(OSError)


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


# --- sockets, or TLS above them ----------------------------------------------


cdef class Records:
    """What `degu.transport.TLSSocket` does its work with, within reach of C."""

    cdef object incoming, outgoing, put, take, read, write, pending

    def __cinit__(self, incoming, outgoing, sslobj):
        self.incoming, self.outgoing = incoming, outgoing
        self.put, self.take = incoming.write, outgoing.read
        self.read, self.write, self.pending = sslobj.read, sslobj.write, sslobj.pending


cdef bint _is_drained(sock) except -1:
    """Whether all that came over TLS so far was read."""
    cdef Records records = <Records?>sock.records
    return not records.incoming.pending and not records.pending() and not sock.failure


cdef ssize_t _receive_tls(sock, char *buffer, bint drained) except -1:
    """As `_receive`, for the data of one record; all but the usual is for `sock`."""
    cdef Records records = <Records?>sock.records
    cdef double started = 0
    cdef ssize_t count = -1
    cdef bytes data
    if drained or _is_drained(sock):
        started = now()
        count = _receive(sock.fileno(), buffer)
        records.put(PyBytes_FromStringAndSize(buffer, count))
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


cdef ssize_t receive_any(sock, bint plain, char *buffer) except -1:
    if plain:
        return _receive(sock.fileno(), buffer)
    return _receive_tls(sock, buffer, False)


cdef bytes _seal(sock, bytes message):
    """The records of `message`, as ``sock.seal(message)`` makes them."""
    cdef Records records = <Records?>sock.records
    if message and not sock.rest:
        try:
            records.write(message)
            return records.take()
        except OSError as error:
            if error.errno != WANT_READ:
                raise
    return sock.seal(message)


cdef ssize_t send_any(sock, bint plain, bytes message) except -1:
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


# --- plain exchanges ---------------------------------------------------------


cdef Py_ssize_t find_end(const char *data, Py_ssize_t size) noexcept:
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
    count = send_any(sock, plain, message)
    if count != PyBytes_GET_SIZE(message):
        return count
    if used and not plain:
        count = _receive_tls(sock, buffer, True)  # it has just been looked at
    else:
        count = receive_any(sock, plain, buffer)
    end = find_end(buffer, count)
    if end > 0:
        response = parse_plain_response(<Text>buffer, end)
        if response is not None and response[0] >= 200:
            rest = PyBytes_FromStringAndSize(buffer + end + 4, count - end - 4)
            return response[0], response[1], response[2], rest
    return PyBytes_FromStringAndSize(buffer, count)
