"""Several server processes that share one listening socket."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from typing import TYPE_CHECKING, Any

from degu.cli.app import load_app
from degu.cli.command import DONE, CommandError
from degu.cli.console import say
from degu.cli.server import (
    GRACE,
    announce,
    bind,
    build_options,
    ended_by_signal,
    set_up_logging,
)
from degu.cli.tls import build_server_sslconfig

if TYPE_CHECKING:
    import argparse


def serve_workers(args: argparse.Namespace) -> int:
    """Serve from several processes, which share one listening socket."""
    from degu import EmbeddedServer, EmbeddedSSLServer
    from degu.address import format_url, identify_socket, listen, unlink_socket

    sslconfig = build_server_sslconfig(args)
    sock = bind(args, listen)
    set_up_logging(args)
    address = sock.getsockname()
    what = (build_worker, args.app, args.factory, args.wsgi, args.quiet)
    options = {**build_options(args), "restart": "on-failure"}
    workers: list[Any] = []
    with contextlib.ExitStack() as stack:
        if isinstance(address, str):
            stack.callback(unlink_socket, address, identify_socket(address))
        stack.callback(_stop, workers)
        with sock, ended_by_signal(), contextlib.suppress(KeyboardInterrupt):
            for _ in range(args.workers):
                if sslconfig is None:
                    workers.append(EmbeddedServer(sock, *what, **options))
                else:
                    workers.append(EmbeddedSSLServer(sslconfig, sock, *what, **options))
            scheme = "http" if sslconfig is None else "https"
            announce(scheme, address)
            logging.getLogger("degu.cli").info(
                "%s from %d processes", format_url(scheme, address), len(workers)
            )
            while all(worker.is_alive() for worker in workers):
                workers[0].wait(1.0)
            raise CommandError("a worker has ended and could not be started again")
        say("degu: stopping")
    return DONE


def _stop(workers: list[Any]) -> None:
    """End all of them; a Ctrl-C cuts their grace short, and is the last one heard."""
    try:
        stops = [threading.Thread(target=one.stop, args=(GRACE,)) for one in workers]
        for thread in stops:
            thread.start()
        for thread in stops:
            thread.join()
    except KeyboardInterrupt:
        # For good: this process is about to end, and nothing is to interrupt that.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for worker in workers:
            worker.terminate()
        raise


def build_worker(name: str, factory: bool, wsgi: bool, quiet: bool) -> Any:
    """Build a worker's app, in the worker."""
    from degu.apps import RequestLogger

    level = logging.WARNING if quiet else logging.INFO
    logging.getLogger("degu.requests").setLevel(level)
    return RequestLogger(load_app(name, factory, wsgi))
