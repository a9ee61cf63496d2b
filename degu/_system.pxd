# The system calls that more than one compiled module makes. There is nothing to build
# of this file: what is in quotes becomes a part of every module that takes from it.

cdef extern from *:
    """
    #include <errno.h>
    #ifdef __linux__
    #include <sys/socket.h>
    #include <time.h>

    static double degu_now(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec + now.tv_nsec * 1e-9;
    }
    #else  /* base.py uses no plain socket there */
    #define MSG_DONTWAIT 0
    #define MSG_NOSIGNAL 0
    #define MSG_PEEK 0
    #define recv(fd, buffer, size, flags) (errno = ENOSYS, -1)
    #define send(fd, data, size, flags) (errno = ENOSYS, -1)
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
    double now "degu_now"() nogil
