# What _pool.pyx takes from _exchange.pyx.

cdef enum:
    HOLD = 16384  # bytes that are sent without letting go of the interpreter's lock
    RECEIVE = 8192  # bytes that are received by way of the stack

cdef Py_ssize_t find_end(const char *data, Py_ssize_t size) noexcept
cdef ssize_t receive_any(sock, bint plain, char *buffer) except -1
cdef ssize_t send_any(sock, bint plain, bytes message) except -1
