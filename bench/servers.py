"""The servers that are compared, each with the smallest app that answers 13 bytes.

``python -m bench.servers NAME ADDRESS``: the path of a Unix socket (Degu only), or a
port on ::1. All keep an idle connection while the others take their turns.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from time import thread_time
from typing import Any

BODY = b"Hello, world!"


def rgi_app(request: dict[str, Any]) -> Any:
    return 200, "OK", {"content-type": "text/plain"}, BODY


def wsgi_app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("content-type", "text/plain"), ("content-length", "13")])
    return [BODY]


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"13")]
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


async def rsgi_app(scope: Any, protocol: Any) -> None:
    protocol.response_bytes(200, [("content-type", "text/plain")], BODY)


def run_degu(address: str) -> None:
    from degu.server import Server

    where = address if address[0] == "/" else ("::1", int(address), 0, 0)
    Server(where, rgi_app, max_connections=4096, timeout=600).serve_forever()


def burn_app(request: dict[str, Any]) -> Any:
    """Compute for 200 microseconds, in Python, before the same answer."""
    until = thread_time() + 200e-6
    while thread_time() < until:
        pass
    return rgi_app(request)


def run_workers(app: Any, workers: int) -> Callable[[str], None]:
    """Share the address between processes."""

    def run(address: str) -> None:
        from degu import EmbeddedServer

        options = {"max_connections": 4096, "timeout": 600, "workers": workers}
        server = EmbeddedServer(("::1", int(address), 0, 0), None, app, **options)
        # The address is bound before all the workers serve it.
        print("ready", flush=True)
        server.wait()

    return run


def run_http_server(address: str) -> None:
    import socket
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else every answer takes 40 ms

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/plain")
            self.send_header("content-length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6
        request_queue_size = 1024

    Server(("::1", int(address)), Handler).serve_forever()


def run_waitress(address: str) -> None:
    import waitress

    where = f"[::1]:{address}"
    waitress.serve(wsgi_app, listen=where, threads=8, channel_timeout=600)


def run_cheroot(address: str) -> None:
    wsgi = importlib.import_module("cheroot.wsgi")
    wsgi.Server(("::1", int(address)), wsgi_app, timeout=600).start()


def run_aiohttp(address: str) -> None:
    from aiohttp import web

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=BODY, content_type="text/plain")

    app = web.Application()
    app.router.add_get("/a/b", answer)
    web.run_app(
        app,
        host="::1",
        port=int(address),
        print=None,
        access_log=None,
        keepalive_timeout=600,
    )


def run_program(*command: str) -> Callable[[str], None]:
    """Become a program of the environment that this interpreter belongs to."""

    def run(address: str) -> None:
        words = [word.replace("PORT", address) for word in command]
        os.execv(str(Path(sys.executable).parent / words[0]), words)

    return run


GRANIAN = ("granian", "--host", "::1", "--port", "PORT", "--workers", "1", "--no-log")
SERVERS: dict[str, Callable[[str], None]] = {
    "degu": run_degu,
    "degu, pure Python": run_degu,
    "degu, 2 workers": run_workers(rgi_app, 2),
    "degu, busy app": run_workers(burn_app, 1),
    "degu, busy app, 2 workers": run_workers(burn_app, 2),
    "granian wsgi": run_program(
        *GRANIAN, "--interface", "wsgi", "bench.servers:wsgi_app"
    ),
    "granian rsgi": run_program(
        *GRANIAN, "--interface", "rsgi", "bench.servers:rsgi_app"
    ),
    "uvicorn": run_program(
        *("uvicorn", "--host", "::1", "--port", "PORT", "--no-access-log"),
        *("--log-level", "warning", "--timeout-keep-alive", "600"),
        "bench.servers:asgi_app",
    ),
    "aiohttp": run_aiohttp,
    "http.server": run_http_server,
    "waitress": run_waitress,
    "cheroot": run_cheroot,
    "gunicorn gthread": run_program(
        *("gunicorn", "-k", "gthread", "--threads", "8", "-b", "[::1]:PORT"),
        *("--log-level", "warning", "--keep-alive", "600", "bench.servers:wsgi_app"),
    ),
}
ANNOUNCED = ("degu, 2 workers", "degu, busy app", "degu, busy app, 2 workers")
"""Those that say when they are ready."""

if __name__ == "__main__":
    SERVERS[sys.argv[1]](sys.argv[2])
