# cython: language_level=3, binding=True
"""Kept connections, which a few threads serve by turns.

One exchange after the other without a step of Python between them but the app's: what
`degu.server` does, for requests and responses that are plainly valid, whole in one
piece, and without anything that asks for a decision. All else is given back untouched,
and goes the long way.

A connection that is alone, over TLS, or has something in its session, is served by its
own thread, which waits in recv. Of others there may be many. To hand the interpreter's
lock from one of their threads to the next for each request would take longer than the
request. So they form a pool of a leader and followers: the leader waits for all of them,
and serves whichever has a request, one after the other, with the lock held.

The other threads, one for each waiting connection, sleep. One of them is called to lead
when the leader leaves, as it does before whatever may take long: a request that is not
plain, or an app that lately was slow. One of them, the deputy, looks every TICK (of
`_watch.pxd`) whether the leader got on; where it did not, since its app waits for
something, the deputy takes the lead and the app counts as slow.

All of this is done with the interpreter's lock held, but for the waiting.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Contains, PyDict_Size
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EINTR, errno

from degu._exchange cimport HOLD, RECEIVE, find_end, receive_any, send_any
from degu._system cimport MSG_DONTWAIT, now, recv_from, set_errno, would_block
from degu._watch cimport (
    Follower,
    Watch,
    appoint,
    begin_waiting,
    call_follower,
    count_turn,
    end_waiting,
    finish_follower,
    follow,
    init_watch,
    prepare_follower,
)
from degu._wire cimport Text, build_plain_response, parse_plain_request

__all__ = ["Kept", "Pool"]

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() nogil

cdef extern from *:
    """
    #ifdef __linux__
    #include <sys/epoll.h>
    #include <unistd.h>
    #else  /* base.py uses no plain socket there, so that no pool ever forms */
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
    #endif
    """
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
    int close_descriptor "close"(int fd) nogil

cdef enum:
    EVENTS = 64  # taken from the kernel at once
    SLOW_TURNS = 64  # quick calls after which an app does not count as slow any more

cdef double QUICK = 0.0002  # seconds a call may take to count as quick
cdef double LONGEST = 1_000_000  # seconds of one wait


# --- what is plain -----------------------------------------------------------


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
    return build_plain_response(values[0], values[1], values[2], body, method)


# --- connections -------------------------------------------------------------


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
                    if count >= 0:
                        outcome = self._answer(kept, buffer, count)
                except Exception as error:  # of this connection, whosever thread it is
                    outcome = error
            return kept.handler, outcome
        finally:
            self._hand_over()

    cdef object _answer(self, Kept kept, const char *data, Py_ssize_t size):
        """Answer what came; None where that was all, else why the long way is next."""
        cdef dict request
        cdef bytes message
        cdef ssize_t sent
        handler = kept.handler
        if size < 5 or find_end(data, size) != size - 4:
            return PyBytes_FromStringAndSize(data, size)
        request = parse_plain_request(<Text>data, size - 4, self.methods, kept.environ)
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
        sent = send_any(kept.sock, kept.plain, message)
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
            return receive_any(kept.sock, kept.plain, buffer)
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
