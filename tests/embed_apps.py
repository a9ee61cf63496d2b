"""Apps, build functions and a parent process for the tests of degu.embed.

Everything is at the top level of a module, so that every start method can find it.
Run as a program it is a parent that starts one server, says where, and lives on until
it is told how to end: ``python -m tests.embed_apps '{"method": "fork", ...}'``.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import logging
import multiprocessing
import os
import re
import signal
import socketserver
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import degu
from degu.address import connect

START_METHODS = ("fork", "forkserver", "spawn")
LOOPBACK = degu.IPv6_LOOPBACK


def request(address, path="/", timeout=20.0):
    """GET `path` without degu.client; return the bytes of the answer."""
    with connect(address, timeout) as sock:
        sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\n".encode()
            + b"Connection: close\r\n\r\n"
        )
        answer = b""
        while data := sock.recv(65536):
            answer += data
    return answer


def body_of(address, path="/"):
    """GET `path`; return the body as text."""
    return request(address, path).partition(b"\r\n\r\n")[2].decode()


def is_running(pid):
    """Whether there is a process that is not a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def app(request):
    """Do what the path says."""
    todo = ACTIONS.get("/".join(request["path"]))
    return (200, "OK", {"hello": "world"}, todo() if todo else None)


def say_pid():
    return str(os.getpid()).encode()


def say_facts():
    """What a server's process is like."""
    facts = {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "name": multiprocessing.current_process().name,
        "sigint": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "main": getattr(sys.modules["__main__"], "__file__", None),
    }
    return json.dumps(facts).encode()


def sleep_a_little():
    time.sleep(0.3)
    return b"slept " * 1000


def hang():
    threading.Event().wait()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def exit_badly():
    os._exit(7)


def log_something():
    extra = {"answer": 42, "odd": object()}
    logging.getLogger("tests.child").info("hello %s", "home", extra=extra)
    return b"logged"


def log_much():
    logging.getLogger("tests.child").warning("x" * 500_000)
    return b"logged"


def fail():
    raise ValueError("a handler failed")


def fail_in_thread():
    thread = threading.Thread(target=fail, name="unlucky")
    thread.start()
    thread.join()
    return b"failed"


def hold_the_interpreter():
    """Match for years, without ever letting another thread run."""
    re.match(r"(a|a|a)+$", "a" * 60 + "b")


def compute_in_threads():
    """Start 50 threads that compute for ever."""
    for _ in range(50):
        threading.Thread(target=compute, daemon=True).start()
    return b"busy"


def compute():
    while True:
        sum(range(1000))


def start_grandchildren():
    """Start a process in our session and one that leaves it."""
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    stays = subprocess.Popen(sleep)
    leaves = subprocess.Popen(sleep, start_new_session=True)
    # They are not waited for; that is what this is about.
    stays.returncode = leaves.returncode = 0
    return f"{stays.pid} {leaves.pid}".encode()


def run_a_pool():
    """Use multiprocessing inside of the server."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return str(pool.apply(abs, (-3,))).encode()


ACTIONS = {
    "pid": say_pid,
    "facts": say_facts,
    "sleep": sleep_a_little,
    "hang": hang,
    "die": die,
    "exit": exit_badly,
    "log": log_something,
    "log-much": log_much,
    "fail": fail,
    "fail-in-thread": fail_in_thread,
    "busy": compute_in_threads,
    "hold": hold_the_interpreter,
    "grandchildren": start_grandchildren,
    "pool": run_a_pool,
}


# --- build functions --------------------------------------------------------------


def build_app(*_args):
    return app


def build_args_app(*args):
    return lambda request: (200, "OK", {}, repr(args).encode())


def build_nested_app():
    """An app that has an embedded server of its own."""
    server = degu.EmbeddedServer(LOOPBACK, None, app)
    return lambda request: (200, "OK", {}, body_of(server.address, "/pid").encode())


def build_threaded_nested_app():
    """The same in a process that has to start it in another way."""
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return build_nested_app()


def build_atexit_app(path):
    """An app that writes a file when its process ends by itself."""
    atexit.register(Path(path).write_text, "atexit")
    return app


def build_once_app(path):
    """An app that can be built once only."""
    Path(path).touch(exist_ok=False)
    return app


def raise_error():
    raise ValueError("no luck")


class UnpicklableError(Exception):
    """Can't be sent home."""

    def __init__(self, one, two):
        super().__init__("odd")
        self.both = one, two, lambda: None


def raise_unpicklable():
    raise UnpicklableError(1, 2)


def call_exit():
    sys.exit(3)


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_for_ever():
    threading.Event().wait()


def defy_sigterm():
    """An app in a process that SIGTERM does not end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return app


# --- other servers ----------------------------------------------------------------


class EchoHandler(socketserver.StreamRequestHandler):
    """One line there and back, slowly if it says so."""

    def handle(self):
        line = self.rfile.readline()
        if line.startswith(b"slow"):
            time.sleep(0.3)
        self.wfile.write(line)


class EchoDatagramHandler(socketserver.BaseRequestHandler):
    """One datagram there and back."""

    def handle(self):
        data, sock = self.request
        sock.sendto(data, self.client_address)


def build_http_server(name, address):
    """One of http.server's, that answers every GET with a greeting."""
    # Not at the top: it brings ssl, of which parents have to stay free.
    import http.server

    class HelloHandler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, format, *args):
            logging.getLogger("tests.http").info(format, *args)

    return getattr(http.server, name)(address, HelloHandler)


class Endless:
    """A server that knows no shutdown()."""

    address = "nowhere"

    def serve_forever(self):
        threading.Event().wait()


class Failing:
    """A server that fails as soon as it serves."""

    def getsockname(self):
        return ("127.0.0.1", 1)

    def serve_forever(self):
        raise ValueError("cannot serve")


class Addressless:
    """A server that is nowhere."""

    def serve_forever(self):
        """Never called."""


# --- a parent ---------------------------------------------------------------------


def main(plan):
    """Start a server as `plan` says, tell its pid and address, end as told."""
    if plan.get("warnings"):
        warnings.simplefilter("error")
    degu.EmbeddedServer.start_method = plan["method"]
    address = plan["address"]
    address = tuple(address) if isinstance(address, list) else address
    server = start(address, plan)
    report = {"pid": server.pid, "address": server.address}
    if plan.get("fork"):
        report["forked"] = fork_past_python()
    print(json.dumps(report), flush=True)
    while line := sys.stdin.readline():
        end(line.strip())


def start(address, plan):
    """Start the server, in a thread of its own if the plan says so."""
    build, options = globals()[plan["build"]], plan.get("options", {})
    servers = []

    def target():
        servers.append(degu.EmbeddedServer(address, build, **options))

    if plan.get("thread"):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    else:
        target()
    return servers[0]


def fork_past_python():
    """Fork as a C library does, so that the child keeps every descriptor."""
    pid = ctypes.CDLL(None).fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    return pid


def end(how):
    """End this process, in one of many ways."""
    match how:
        case "_exit":
            os._exit(0)
        case "exit":
            sys.exit(0)
        case "error":
            raise RuntimeError("the parent fails")
        case "crash":
            ctypes.string_at(0)
        case "exec":
            os.execv("/bin/sleep", ["sleep", "2"])
        case _:
            os.kill(os.getpid(), getattr(signal, how))
            time.sleep(60)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
