/* The physical limit: the bytes of one exchange, by nothing but recv(2) and send(2).
 *
 *   raw serve ADDRESS RESPONSE-FILE    answer each head with the file's bytes
 *   raw ping ADDRESS REQUEST-FILE      for each COUNT on stdin: exchange so often, print
 *                                      the microseconds of one
 *   raw load ADDRESS REQUEST-FILE N    for each COUNT on stdin: exchange so often, on N
 *                                      connections at once; print requests a second,
 *                                      microseconds p50, p99 and max, and the fewest
 *                                      exchanges of one connection
 *   raw sink ADDRESS                   accept, receive to the end, send one byte; for ever
 *   raw pour ADDRESS                   for each SIZE on stdin: connect, send SIZE bytes,
 *                                      wait for the byte, print seconds
 *
 * ADDRESS is the path of a Unix socket, or a port on ::1. "serve" and "sink" take port 0
 * and print the address once they listen.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 18];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static size_t load_file(const char *path, char *data, size_t room) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    size_t size = fread(data, 1, room, file);
    fclose(file);
    return size;
}

/* --- addresses ----------------------------------------------------------- */

union address {
    struct sockaddr any;
    struct sockaddr_un un;
    struct sockaddr_in6 in6;
};

static socklen_t parse_address(const char *text, union address *address) {
    memset(address, 0, sizeof *address);
    if (text[0] == '/') {
        address->un.sun_family = AF_UNIX;
        snprintf(address->un.sun_path, sizeof address->un.sun_path, "%s", text);
        return sizeof address->un;
    }
    address->in6.sin6_family = AF_INET6;
    address->in6.sin6_addr = in6addr_loopback;
    address->in6.sin6_port = htons(atoi(text));
    return sizeof address->in6;
}

static void set_nodelay(int fd) {
    int one = 1; /* fails on a Unix socket, where nothing is delayed */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static int open_connection(const char *text) {
    union address address;
    socklen_t size = parse_address(text, &address);
    int fd = socket(address.any.sa_family, SOCK_STREAM, 0);
    if (fd < 0) fail("socket");
    if (connect(fd, &address.any, size)) fail("connect");
    set_nodelay(fd);
    return fd;
}

static int open_listener(const char *text) {
    union address address;
    socklen_t size = parse_address(text, &address);
    int fd = socket(address.any.sa_family, SOCK_STREAM, 0);
    if (fd < 0) fail("socket");
    if (bind(fd, &address.any, size) || listen(fd, 1024)) fail("listen");
    getsockname(fd, &address.any, &size);
    if (text[0] == '/') printf("%s\n", text);
    else printf("%d\n", ntohs(address.in6.sin6_port));
    fflush(stdout);
    return fd;
}

static int accept_one(int listener) {
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) fail("accept");
    set_nodelay(fd);
    return fd;
}

/* --- small round trips ---------------------------------------------------- */

static void send_all(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent <= 0) fail("send");
        data += sent;
        size -= sent;
    }
}

/* Answer one connection after the other; only whole heads are expected. */
static void serve(const char *address, const char *path) {
    static char response[1 << 16];
    size_t size = load_file(path, response, sizeof response);
    int listener = open_listener(address);
    for (;;) {
        int fd = accept_one(listener);
        size_t filled = 0;
        ssize_t got;
        while ((got = recv(fd, buffer + filled, sizeof buffer - filled, 0)) > 0) {
            filled += got;
            if (filled >= 4 && !memcmp(buffer + filled - 4, "\r\n\r\n", 4)) {
                send_all(fd, response, size);
                filled = 0;
            }
        }
        close(fd);
    }
}

static char request[1 << 16];
static size_t request_size, response_size;

/* The first response tells how long all of them are. */
static void learn_size(int fd) {
    size_t filled = 0;
    send_all(fd, request, request_size);
    while (!response_size) {
        ssize_t got = recv(fd, buffer + filled, sizeof buffer - 1 - filled, 0);
        if (got <= 0) fail("recv");
        filled += got;
        buffer[filled] = 0;
        char *end = strstr(buffer, "\r\n\r\n");
        if (!end) continue;
        char *field = strcasestr(buffer, "\r\ncontent-length:");
        response_size = end + 4 - buffer;
        if (field && field < end) response_size += atol(field + 17);
    }
    while (filled < response_size) {
        ssize_t got = recv(fd, buffer, sizeof buffer, 0);
        if (got <= 0) fail("recv");
        filled += got;
    }
}

static void ping(const char *address) {
    int fd = open_connection(address);
    long count;
    learn_size(fd);
    while (scanf("%ld", &count) == 1) {
        double started = now();
        for (long i = 0; i < count; i++) {
            send_all(fd, request, request_size);
            for (size_t filled = 0; filled < response_size;) {
                ssize_t got = recv(fd, buffer, sizeof buffer, 0);
                if (got <= 0) fail("recv");
                filled += got;
            }
        }
        printf("%.3f\n", (now() - started) / count * 1e6);
        fflush(stdout);
    }
}

/* --- many connections at once --------------------------------------------- */

struct connection {
    int fd;
    size_t filled;
    long served;
    double sent;
};

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void send_request(struct connection *one) {
    one->filled = 0;
    one->sent = now();
    send_all(one->fd, request, request_size);
}

/* Each connection has one request under way until `count` were answered in all. */
static void run_load(int epoll, struct connection *all, int number, long count) {
    double *times = malloc(count * sizeof *times), started = now();
    long done = 0, begun = 0, fewest = count;
    struct epoll_event events[256];
    for (int i = 0; i < number; i++) all[i].served = 0;
    for (int i = 0; i < number && begun < count; i++, begun++) send_request(&all[i]);
    while (done < count) {
        int ready = epoll_wait(epoll, events, 256, 60000);
        if (ready <= 0) fail("epoll_wait");
        for (int i = 0; i < ready; i++) {
            struct connection *one = events[i].data.ptr;
            ssize_t got = recv(one->fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (got < 0 && errno == EAGAIN) continue;
            if (got <= 0) fail("recv");
            one->filled += got;
            if (one->filled < response_size) continue;
            times[done++] = (now() - one->sent) * 1e6;
            one->served++;
            if (begun < count) {
                begun++;
                send_request(one);
            }
        }
    }
    double seconds = now() - started;
    qsort(times, count, sizeof *times, compare);
    for (int i = 0; i < number; i++)
        if (all[i].served < fewest) fewest = all[i].served;
    printf("%.1f %.1f %.1f %.1f %ld\n", count / seconds, times[count / 2],
           times[count * 99 / 100], times[count - 1], fewest);
    fflush(stdout);
    free(times);
}

static void load(const char *address, int number) {
    struct connection *all = calloc(number, sizeof *all);
    int epoll = epoll_create1(0);
    long count;
    for (int i = 0; i < number; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        all[i].fd = open_connection(address);
        if (i == 0) learn_size(all[i].fd);
        epoll_ctl(epoll, EPOLL_CTL_ADD, all[i].fd, &event);
    }
    while (scanf("%ld", &count) == 1) run_load(epoll, all, number, count);
}

/* --- bulk ------------------------------------------------------------------ */

static void sink(const char *address) {
    int listener = open_listener(address);
    for (;;) {
        int fd = accept_one(listener);
        while (recv(fd, buffer, sizeof buffer, 0) > 0) {
        }
        send(fd, "", 1, MSG_NOSIGNAL);
        close(fd);
    }
}

static void pour(const char *address) {
    long long left;
    while (scanf("%lld", &left) == 1) {
        int fd = open_connection(address);
        double started = now();
        while (left > 0) {
            size_t size = left < (long long)sizeof buffer ? (size_t)left : sizeof buffer;
            send_all(fd, buffer, size);
            left -= size;
        }
        shutdown(fd, SHUT_WR);
        if (recv(fd, buffer, 1, 0) != 1) fail("recv");
        printf("%.6f\n", now() - started);
        fflush(stdout);
        close(fd);
    }
}

int main(int argc, char **argv) {
    const char *what = argc > 2 ? argv[1] : "";
    if (argc == 4 && !strcmp(what, "serve")) {
        serve(argv[2], argv[3]);
    } else if (argc == 4 && !strcmp(what, "ping")) {
        request_size = load_file(argv[3], request, sizeof request);
        ping(argv[2]);
    } else if (argc == 5 && !strcmp(what, "load")) {
        request_size = load_file(argv[3], request, sizeof request);
        load(argv[2], atoi(argv[4]));
    } else if (argc == 3 && !strcmp(what, "sink")) {
        sink(argv[2]);
    } else if (argc == 3 && !strcmp(what, "pour")) {
        pour(argv[2]);
    } else {
        fprintf(stderr, "usage: raw serve|ping|load|sink|pour ADDRESS ...\n");
        return 2;
    }
    return 0;
}
