# What the other compiled modules take from _wire.pyx.

ctypedef const unsigned char *Text

cdef dict parse_plain_request(Text p, Py_ssize_t size, methods, environ)
cdef tuple parse_plain_response(Text p, Py_ssize_t size)
cdef bytes build_plain_response(status, reason, headers, body, method)
