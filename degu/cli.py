"""The `degu` command: servers to try things with, downloads and uploads, a small PKI.

Exit codes: 0 it was done (a server: it was told to stop); 1 it could not be done (a
file, the network, TLS, an address in use); 2 the command line is wrong; 3 the server
answered with another status than 2xx; 130 interrupted by Ctrl-C.

What a program would want to read goes to standard output, everything else to standard
error. `main` returns the exit code and raises nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote, unquote_to_bytes, urlsplit

from degu import __version__
from degu.errors import DeguError, PeerError, TLSError, shown

__all__ = ["main"]

DONE, FAILED, WRONG_USAGE, OTHER_STATUS, INTERRUPTED = 0, 1, 2, 3, 130

EXIT_CODES = """exit codes:
  0    done; of a server: it was told to stop (Ctrl-C or SIGTERM)
  1    it could not be done: a file, the network, TLS, an address in use
  2    the command line is wrong
  3    the server answered with another status than 2xx
  130  interrupted by Ctrl-C
"""

DEFAULT_PORT = 8000
GRACE = 5.0
"""Seconds that requests in flight have when a server is told to stop."""

COPY_SIZE = 256 * 1024
PART_SUFFIX = ".degu-part"

_PATH_SAFE = "/%:@!$&'()*+,;=~|[]^-._"


FILE_HELP = "a path; - (the default) is standard input or output"


class CommandError(Exception):
    """What could not be done, in words for the user."""


# --- addresses and URLs ------------------------------------------------------


def parse_bind(text: str) -> Any:
    """An address to listen on, as it is written on a command line.

    ``8000`` is this host only (IPv6), ``[::1]:8000``, ``127.0.0.1:8000``, ``*:8000``
    every interface, ``/run/my.sock`` or ``unix:my.sock`` a Unix socket, ``@name`` an
    abstract one (Linux). Raises `ArgumentTypeError`.
    """
    from degu.address import check_address

    try:
        address = _parse_bind(text)
        check_address(address)
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(
            f"expected [::1]:8000, 127.0.0.1:8000, *:8000, 8000, /path or @name, "
            f"got {text!r} ({error})"
        ) from None
    return address


def _parse_bind(text: str) -> Any:
    if text.startswith("@"):
        return b"\0" + os.fsencode(text[1:])
    if text.startswith("unix:") or "/" in text:
        return os.path.abspath(text.removeprefix("unix:"))
    host, colon, port = text.rpartition(":")
    if not (port.isdecimal() and port.isascii()):
        raise ValueError("no port")
    if not colon or host == "[::1]":
        return ("::1", int(port), 0, 0)
    if host in ("*", "[::]"):
        return ("::", int(port), 0, 0)
    if host.startswith("[") and host.endswith("]"):
        return (host[1:-1], int(port), 0, 0)
    return (host, int(port))


class Target(NamedTuple):
    """Where a URL points to: whether over TLS, the addresses to try, and what there."""

    tls: bool
    addresses: list[Any]
    uri: str


def parse_url(text: str) -> Target:
    """A URL of a server: http or https, or either with ``+unix`` and a quoted path.

    A name is looked for as IPv6 first. Raises `ArgumentTypeError`.
    """
    try:
        url = urlsplit(text)
        scheme, _, family = url.scheme.partition("+")
        if scheme not in ("http", "https") or family not in ("", "unix"):
            raise ValueError("not http:// or https://")
        if url.username is not None or not url.netloc:
            raise ValueError("no plain host")
        path = quote(url.path or "/", safe=_PATH_SAFE)
        query = quote(url.query, safe=_PATH_SAFE + "?") if url.query else None
        uri = path if query is None else f"{path}?{query}"
        if family == "unix":
            return Target(scheme == "https", [_unix(url.netloc)], uri)
        port = url.port or (443 if scheme == "https" else 80)
        host = url.hostname or ""
        ipv6, ipv4 = (host, port, 0, 0), (host, port)
        if ":" in host:
            return Target(scheme == "https", [ipv6], uri)
        if re.fullmatch(r"[0-9.]+", host):
            return Target(scheme == "https", [ipv4], uri)
        return Target(scheme == "https", [ipv6, ipv4], uri)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected a URL such as http://localhost:8000/path, got {text!r} ({error})"
        ) from None


def _unix(netloc: str) -> Any:
    name = unquote_to_bytes(netloc)
    return name if name.startswith(b"\0") else os.fsdecode(name)


# --- the command line --------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """Everything that can be said on the command line, with its help."""
    parser: argparse.ArgumentParser = _make_parser(
        argparse.ArgumentParser,
        prog="degu",
        description="An HTTP server and client for applications that embed them.\n"
        "'degu COMMAND --help' explains a command, with examples.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"degu {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_serve, _add_files, _add_proxy, _add_inspect, _add_get, _add_put):
        add(commands)
    _add_pki(commands)
    return parser


def _make_parser(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return make(
        *args,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **options,
    )


def _add_command(
    commands: Any, name: str, run: Callable[..., int], text: str, examples: str
) -> Any:
    first = text.partition("\n")[0]
    parser = _make_parser(
        commands.add_parser,
        name,
        help=first[0].lower() + first[1:].rstrip("."),
        description=text,
        epilog=f"examples:\n{examples}\n\n{EXIT_CODES}",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error"
    )
    return parser


def _add_server_options(parser: Any) -> None:
    group = parser.add_argument_group("where to listen, and for whom")
    group.add_argument(
        "--bind",
        type=parse_bind,
        metavar="ADDRESS",
        help="[::1]:8000, 127.0.0.1:8000, *:8000 (every interface), 8000 (this host), "
        "/path or unix:path (a Unix socket), @name (an abstract one); port 0 takes "
        f"a free port (default: [::1]:{DEFAULT_PORT}, this host only)",
    )
    group.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a host name that the server is known by, besides localhost and IP "
        "addresses, or '*' for any; may be repeated",
    )
    group.add_argument(
        "--allowed-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="an origin, as https://example.org, whose web pages may send requests, "
        "or '*' for any; may be repeated",
    )
    group.add_argument("--cert", metavar="FILE", help="serve over TLS: certificate")
    group.add_argument("--key", metavar="FILE", help="its private key")
    group.add_argument(
        "--ca", metavar="FILE", help="whose client certificates are required"
    )
    group.add_argument(
        "--allow-unauthenticated-clients",
        action="store_true",
        help="TLS without client certificates: let everybody in",
    )
    group = parser.add_argument_group("what is said meanwhile")
    group.add_argument(
        "-q", "--quiet", action="store_true", help="log no requests, only troubles"
    )
    group.add_argument(
        "-v", "--verbose", action="store_true", help="log connections too"
    )


def _add_serve(commands: Any) -> None:
    parser = _add_command(
        commands,
        "serve",
        run_serve,
        "Serve an app of your own.\n\n"
        "APP is an attribute of MODULE: a callable app(request) that returns\n"
        "(status, reason, headers, body). The current folder is searched first.",
        "  degu serve hello:app\n"
        "  degu serve hello:build_app --factory --bind 127.0.0.1:0\n"
        "  degu serve flask_hello:app --wsgi\n"
        "  degu serve hello:app --cert me.pem --key me-key.pem --ca ca.pem",
    )
    parser.add_argument("app", metavar="MODULE:APP", type=_parse_app_name)
    parser.add_argument(
        "--factory", action="store_true", help="APP is a function that builds the app"
    )
    parser.add_argument(
        "--wsgi", action="store_true", help="APP is a WSGI app (Flask, Django, ...)"
    )
    parser.add_argument(
        "--workers",
        type=_parse_workers,
        default=0,
        metavar="N",
        help="serve from N processes that share the address, each started again when "
        "it dies (default: from this process)",
    )
    _add_server_options(parser)


def _add_files(commands: Any) -> None:
    parser = _add_command(
        commands,
        "files",
        run_files,
        "Serve a folder.\n\n"
        "With listings, ranges and resumable downloads. Links are not followed and\n"
        "hidden files are not shown.",
        "  degu files\n"
        "  degu files ~/Music --bind '*:8000'\n"
        "  degu files inbox --writable --bind 127.0.0.1:8000\n"
        "  curl -T photo.jpg http://127.0.0.1:8000/photo.jpg",
    )
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default=".")
    parser.add_argument(
        "--writable", action="store_true", help="let files be uploaded by PUT"
    )
    parser.add_argument(
        "--hidden", action="store_true", help="show names that begin with a dot"
    )
    parser.add_argument(
        "--no-listing", action="store_true", help="do not list what is in a folder"
    )
    _add_server_options(parser)


def _add_proxy(commands: Any) -> None:
    parser = _add_command(
        commands,
        "proxy",
        run_proxy,
        "Pass requests on to another server.\n\n"
        "A path in the URL is put before that of each request. What can't be reached\n"
        "is answered by 502, what does not answer in time by 504.",
        "  degu proxy http://127.0.0.1:5000/\n"
        "  degu proxy http+unix://%2Frun%2Fmy.sock/ --bind '*:8080'\n"
        "  degu proxy https://device.example/v1 --upstream-ca ca.pem",
    )
    parser.add_argument("to", metavar="URL", type=parse_url)
    group = parser.add_argument_group("TLS to the other server")
    group.add_argument("--upstream-ca", metavar="FILE", help="whom to trust")
    group.add_argument("--upstream-cert", metavar="FILE", help="certificate to show")
    group.add_argument("--upstream-key", metavar="FILE", help="its private key")
    group.add_argument(
        "--upstream-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long the other server may be silent (default: 60)",
    )
    _add_server_options(parser)


def _add_inspect(commands: Any) -> None:
    parser = _add_command(
        commands,
        "inspect",
        run_inspect,
        "Show what clients send.\n\n"
        "Each request is printed, and answered by the same text (or HTML, or JSON).\n"
        "Open it in a browser to send it a form or a file.",
        "  degu inspect\n  curl -d 'pets=dog&pets=cat' 'http://[::1]:8000/foo'",
    )
    _add_server_options(parser)


def _add_client_options(parser: Any) -> None:
    group = parser.add_argument_group("TLS")
    group.add_argument(
        "--ca", metavar="FILE", help="whom to trust (default: the system's CAs)"
    )
    group.add_argument("--cert", metavar="FILE", help="certificate to show")
    group.add_argument("--key", metavar="FILE", help="its private key")
    parser.add_argument(
        "-H",
        "--header",
        action="append",
        default=[],
        type=_parse_header,
        metavar="'NAME: VALUE'",
        help="a header to send; may be repeated",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long the server may be silent (default: 60)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def _add_get(commands: Any) -> None:
    parser = _add_command(
        commands,
        "get",
        run_get,
        "Download from a URL.\n\n"
        "To standard output, or to FILE: then what a broken download left behind is\n"
        "used (if the server's file is still the same), and FILE appears when whole.",
        "  degu get http://localhost:8000/ | less\n"
        "  degu get http://localhost:8000/big.iso big.iso\n"
        "  degu get https://device.example/ --ca ca.pem --cert me.pem --key me-key.pem",
    )
    parser.add_argument("url", metavar="URL", type=parse_url)
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help=FILE_HELP)
    _add_client_options(parser)


def _add_put(commands: Any) -> None:
    parser = _add_command(
        commands,
        "put",
        run_put,
        "Upload to a URL.\n\n"
        "From FILE, or from standard input. To a URL that ends with a slash the name\n"
        "of the file is added.",
        "  degu put http://localhost:8000/inbox/ photo.jpg\n"
        "  degu put http://localhost:8000/inbox/ big.iso --resume\n"
        "  tar c . | degu put http://localhost:8000/backup.tar",
    )
    parser.add_argument("url", metavar="URL", type=parse_url)
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help=FILE_HELP)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where an upload of the same file broke off (the server has to be "
        "'degu files --writable', or to do as it does)",
    )
    _add_client_options(parser)


def _add_pki(commands: Any) -> None:
    parser = _add_command(
        commands,
        "pki",
        run_pki,
        "Make a CA, and certificates for devices.\n\n"
        "FOLDER gets ca.pem and ca-key.pem, if they are not there, and NAME.pem and\n"
        "NAME-key.pem: a certificate for a server at the HOSTs (names or addresses;\n"
        "default: localhost) that is a client's as well. Keep ca-key.pem off the\n"
        "devices: whoever has it can make more. Needs the extra 'peers'.",
        "  degu pki ~/pki\n"
        "  degu pki ~/pki desk desk.local 192.168.1.5\n"
        "  degu pki ~/pki phone\n"
        "  degu files --cert ~/pki/desk.pem --key ~/pki/desk-key.pem --ca ~/pki/ca.pem",
    )
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("name", metavar="NAME", nargs="?")
    parser.add_argument("hosts", metavar="HOST", nargs="*")
    parser.add_argument(
        "--days", type=int, default=825, help="how long NAME is valid (default: 825)"
    )


def _parse_app_name(text: str) -> str:
    if not re.fullmatch(r"[\w.]+:[\w.]+", text):
        raise argparse.ArgumentTypeError(f"expected MODULE:APP, got {text!r}")
    return text


def _parse_workers(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and 0 < int(text) <= 64):
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 64, got {text}")
    return int(text)


def _parse_header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name:
        raise argparse.ArgumentTypeError(f"expected 'name: value', got {text!r}")
    return name.strip().lower(), value.strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` is what follows ``degu``. Returns the exit code."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as error:  # argparse has said why
        return int(error.code or 0)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        _say("")
        return INTERRUPTED
    except BrokenPipeError as error:
        if isinstance(error, DeguError):
            return _fail(args, error)
        # Whoever read our output has seen enough; Python would complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except (CommandError, DeguError, OSError, ValueError, TypeError) as error:
        return _fail(args, error)
    except ImportError as error:
        return _fail(args, error)


def _fail(args: argparse.Namespace, error: BaseException) -> int:
    if args.debug:
        traceback.print_exception(error)
    _say(f"degu: {explain(error)}")
    return FAILED


def explain(error: BaseException) -> str:
    """One line about an error, for somebody who did not write the program."""
    if isinstance(error, OSError) and not isinstance(error, DeguError):
        reason = error.strerror or str(error) or type(error).__name__
        return f"{error.filename}: {reason}" if error.filename else reason
    return str(error) or type(error).__name__


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


# --- servers -----------------------------------------------------------------


def load_app(name: str, factory: bool = False, wsgi: bool = False) -> Any:
    """The app that ``MODULE:APP`` names. Raises `CommandError`."""
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        app: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise CommandError(f"{module_name} needs a module: {error}") from error
        raise CommandError(f"there is no module {module_name!r} here") from error
    except Exception as error:
        raise CommandError(
            f"importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(app, part):
            raise CommandError(f"{module_name} has no {attribute!r}")
        app = getattr(app, part)
    if factory and callable(app):
        try:
            app = app()
        except Exception as error:
            raise CommandError(
                f"{name}() failed: {type(error).__name__}: {error}"
            ) from error
    if not callable(app):
        raise CommandError(f"{name}: expected an app (a callable), got {shown(app)}")
    if wsgi:
        from degu.wsgi import from_wsgi

        return from_wsgi(app, spool=True)  # whatever it does with chunked bodies
    return app


def run_serve(args: argparse.Namespace) -> int:
    """``degu serve``."""
    app = load_app(args.app, args.factory, args.wsgi)
    if args.workers:
        return _serve_workers(args)
    return _serve(args, app)


def run_files(args: argparse.Namespace) -> int:
    """``degu files``."""
    from degu.files import FilesApp

    app = FilesApp(
        args.folder,
        listing=not args.no_listing,
        hidden=args.hidden,
        writable=args.writable,
    )
    return _serve(args, app)


def run_proxy(args: argparse.Namespace) -> int:
    """``degu proxy``."""
    from degu.apps import ProxyApp

    target: Target = args.to
    upstream = {"ca": args.upstream_ca, "cert": args.upstream_cert}
    client = _make_client(
        target,
        target.addresses[-1] if len(target.addresses) == 1 else _reach(target),
        args.upstream_timeout,
        key=args.upstream_key,
        **upstream,
    )
    path, _, query = target.uri.partition("?")
    if query:
        raise CommandError("expected a URL without a query to pass requests on to")
    return _serve(args, ProxyApp(client, prefix=path if path != "/" else ""))


def _reach(target: Target) -> Any:
    """Which address of a name is connected to; the last one where none is there."""
    from degu.client import Client

    for address in target.addresses:
        with contextlib.suppress(OSError), Client(address, timeout=5.0).connect():
            return address
    return target.addresses[-1]


def run_inspect(args: argparse.Namespace) -> int:
    """``degu inspect``."""
    from degu.apps import InspectApp

    log = logging.getLogger("degu.inspect")
    handler = logging.StreamHandler(sys.stdout)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        args.quiet = not args.verbose
        return _serve(args, InspectApp(log))
    finally:
        log.removeHandler(handler)


def _serve(args: argparse.Namespace, app: Any) -> int:
    """Serve `app` from this process until a signal."""
    from degu.apps import RequestLogger
    from degu.server import Server, SSLServer

    if not args.quiet:
        app = RequestLogger(app)
    sslconfig = _server_sslconfig(args)
    options = _server_options(args)

    def make(address: Any) -> Any:
        if sslconfig is None:
            return Server(address, app, **options)
        return SSLServer(sslconfig, address, app, **options)

    server = _listen(args, make)
    _set_up_logging(args)
    with _ended_by_signal():
        _announce(server.scheme, server.address)
        server.serve_forever()  # a Ctrl-C ends it without an exception
    _say("degu: stopping")
    try:
        server.shutdown(GRACE)
    finally:
        server.close()
    return DONE


def _listen(args: argparse.Namespace, make: Callable[[Any], Any]) -> Any:
    if args.bind is not None:
        return make(args.bind)
    try:
        return make(("::1", DEFAULT_PORT, 0, 0))
    except OSError as error:
        import errno

        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return make(("127.0.0.1", DEFAULT_PORT))  # a host without IPv6
        if error.errno == errno.EADDRINUSE:
            raise CommandError(
                f"port {DEFAULT_PORT} is in use; choose another one, as --bind 8001, "
                "or let one be chosen, with --bind 0"
            ) from error
        raise


def _serve_workers(args: argparse.Namespace) -> int:
    """Serve from several processes, which share one listening socket."""
    from degu import EmbeddedServer, EmbeddedSSLServer
    from degu.address import format_url, identify_socket, listen, unlink_socket

    sslconfig = _server_sslconfig(args)
    sock = _listen(args, listen)
    _set_up_logging(args)
    address = sock.getsockname()
    path = address if isinstance(address, str) else None
    identity = None if path is None else identify_socket(path)
    what = (build_worker, args.app, args.factory, args.wsgi, args.quiet)
    options = {**_server_options(args), "restart": "on-failure"}
    workers: list[Any] = []
    try:
        with sock, _ended_by_signal(), contextlib.suppress(KeyboardInterrupt):
            for _ in range(args.workers):
                if sslconfig is None:
                    workers.append(EmbeddedServer(sock, *what, **options))
                else:
                    workers.append(EmbeddedSSLServer(sslconfig, sock, *what, **options))
            scheme = "http" if sslconfig is None else "https"
            _announce(scheme, address)
            logging.getLogger(__name__).info(
                "%s from %d processes", format_url(scheme, address), len(workers)
            )
            while all(worker.is_alive() for worker in workers):
                workers[0].wait(1.0)
            raise CommandError("a worker has ended and could not be started again")
        _say("degu: stopping")
        return DONE
    finally:
        stops = [threading.Thread(target=one.stop, args=(GRACE,)) for one in workers]
        for thread in stops:
            thread.start()
        for thread in stops:
            thread.join()
        if path is not None:
            unlink_socket(path, identity)


def build_worker(name: str, factory: bool, wsgi: bool, quiet: bool) -> Any:
    """Build a worker's app, in the worker."""
    from degu.apps import RequestLogger

    app = load_app(name, factory, wsgi)
    if quiet:
        return app
    logging.getLogger("degu.requests").setLevel(logging.INFO)
    return RequestLogger(app)


def _server_options(args: argparse.Namespace) -> dict[str, Any]:
    def names(given: list[str]) -> list[str] | str:
        return "*" if "*" in given else given

    return {
        "allowed_hosts": names(args.allowed_host),
        "allowed_origins": names(args.allowed_origin),
    }


def _server_sslconfig(args: argparse.Namespace) -> dict[str, Any] | None:
    if args.cert is None:
        if args.key or args.ca or args.allow_unauthenticated_clients:
            raise CommandError(
                "--key, --ca and the like need a --cert to serve over TLS"
            )
        return None
    if args.ca is None and not args.allow_unauthenticated_clients:
        raise CommandError(
            "--cert needs --ca, to check clients with, or "
            "--allow-unauthenticated-clients, to let in everybody"
        )
    config = _sslconfig(args.ca, args.cert, args.key)
    if args.allow_unauthenticated_clients:
        config["allow_unauthenticated_clients"] = True
    return config


def _sslconfig(ca: str | None, cert: str | None, key: str | None) -> dict[str, Any]:
    files = {"ca_file": ca, "cert_file": cert, "key_file": key}
    return {name: os.path.abspath(path) for name, path in files.items() if path}


def _announce(scheme: str, address: Any) -> None:
    from degu.address import format_url

    everywhere = isinstance(address, tuple) and address[0] in ("::", "0.0.0.0")
    if everywhere:
        host = "::1" if address[0] == "::" else "127.0.0.1"
        address = (host, *address[1:])
    print(format_url(scheme, address), flush=True)
    where = " on every interface" if everywhere else ""
    _say(f"degu: serving{where}, Ctrl-C stops it")


def _set_up_logging(args: argparse.Namespace) -> None:
    level = logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", force=True)
    quiet = args.quiet and not args.verbose
    logging.getLogger("degu.requests").setLevel(level if quiet else logging.INFO)


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Let SIGTERM end a server as Ctrl-C does; only the main thread can."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --- downloads and uploads ---------------------------------------------------


def _make_client(
    target: Target,
    address: Any,
    timeout: float,
    *,
    ca: str | None,
    cert: str | None,
    key: str | None,
) -> Any:
    from degu.client import Client, SSLClient

    if not target.tls:
        if ca or cert or key:
            raise CommandError("certificates are for https:// URLs")
        return Client(address, timeout=timeout)
    return SSLClient(_sslconfig(ca, cert, key), address, timeout=timeout)


@contextlib.contextmanager
def _connect(args: argparse.Namespace) -> Iterator[Any]:
    """A function that sends one request, on a connection of its own."""
    target: Target = args.url
    tls = {"ca": args.ca, "cert": args.cert, "key": args.key}
    clients = [
        _make_client(target, address, args.timeout, **tls)
        for address in target.addresses
    ]
    with contextlib.ExitStack() as stack:

        def ask(
            method: str, uri: str, headers: dict[str, str], body: Any = None
        ) -> Any:
            connection = stack.enter_context(_connect_first(clients))
            agent = {"user-agent": f"degu/{__version__}", "accept": "*/*"}
            headers = {**agent, **dict(args.header), **headers}
            return connection.request(method, uri, headers, body)

        yield ask


def _connect_first(clients: list[Any]) -> Any:
    for client in clients[:-1]:
        try:
            return client.connect()
        except TLSError:
            raise  # somebody is there
        except OSError:
            continue
    return clients[-1].connect()


def run_get(args: argparse.Namespace) -> int:
    """``degu get``."""
    with _connect(args) as ask:
        if args.file == "-":
            return _get_to(ask("GET", args.url.uri, {}), sys.stdout.buffer, args)
        return _Download(ask, args).run()


def _get_to(response: Any, file: BinaryIO, args: argparse.Namespace) -> int:
    if response.status != 200:
        return _tell_status(response)
    total = None if response.body is None else response.body.content_length
    quiet = args.quiet or file.isatty()
    with Progress(total, quiet=quiet) as progress:
        for piece in response.body or ():
            file.write(piece)
            progress.add(len(piece))
    file.flush()
    return DONE


def _tell_status(response: Any) -> int:
    where = response.headers.get("location")
    _say(f"degu: {response.status} {response.reason}{f': {where}' if where else ''}")
    return OTHER_STATUS


class _Download:
    """One download to a file, which goes on with what an earlier one left behind.

    The part is called by what the server says of the file's state, so that parts of
    different states are never mixed; without such a word nothing is kept.
    """

    def __init__(self, ask: Any, args: argparse.Namespace) -> None:
        self.ask = ask
        self.args = args
        path = os.path.abspath(args.file)
        if os.path.isdir(path):
            raise CommandError(f"{args.file}: expected a file, that is a folder")
        self.path = path
        self.folder, self.name = os.path.split(path)

    def run(self) -> int:
        response = self.ask("GET", self.args.url.uri, {})
        if response.status != 200:
            return _tell_status(response)
        validator = self._find_validator(response.headers)
        part = self._name_part(validator)
        with open(part, "ab") as file:
            _lock(file, self.args.file)
            offset = file.tell()
            if offset and validator is not None:
                response, offset = self._go_on(response, validator, offset)
            file.truncate(offset)
            try:
                self._receive(response, file, offset)
            except BaseException:
                self._keep(part, validator)
                raise
        os.replace(part, self.path)
        for other in self._find_parts():
            os.unlink(other)
        return DONE

    def _go_on(self, response: Any, validator: str, offset: int) -> tuple[Any, int]:
        """Ask for the rest; all over again where the server does not give it."""
        headers = {"range": f"bytes={offset}-", "if-range": validator}
        rest = self.ask("GET", self.args.url.uri, headers)
        span = rest.headers.get("content-range", "")
        if rest.status == 206 and span.startswith(f"bytes {offset}-"):
            return rest, offset
        if rest.status == 416 and span == f"bytes */{offset}":
            return rest._replace(body=None), offset  # it was whole already
        return response, 0

    def _receive(self, response: Any, file: BinaryIO, offset: int) -> None:
        size = None
        if response.body is None:
            size = offset
        elif response.body.content_length is not None:
            size = offset + response.body.content_length
        with Progress(size, offset, quiet=self.args.quiet) as progress:
            for piece in response.body or ():
                file.write(piece)
                progress.add(len(piece))

    def _keep(self, part: str, validator: str | None) -> None:
        if validator is None or os.path.getsize(part) == 0:
            os.unlink(part)
        else:
            _say("degu: what came is kept, the same command goes on with it")

    def _find_validator(self, headers: dict[str, Any]) -> str | None:
        etag = headers.get("etag", "")
        if etag.startswith('"'):
            return str(etag)
        return headers.get("last-modified") if not etag else None

    def _name_part(self, validator: str | None) -> str:
        state = validator or os.urandom(8).hex()
        mark = hashlib.sha256(f"{self.args.url}\0{state}".encode()).hexdigest()[:16]
        stem = os.fsdecode(os.fsencode(self.name)[:80])
        return os.path.join(self.folder, f".{stem}.{mark}{PART_SUFFIX}")

    def _find_parts(self) -> Iterator[str]:
        stem = os.fsdecode(os.fsencode(self.name)[:80])
        pattern = re.compile(
            rf"\.{re.escape(stem)}\.[0-9a-f]{{16}}{re.escape(PART_SUFFIX)}"
        )
        for name in os.listdir(self.folder):
            if pattern.fullmatch(name):
                yield os.path.join(self.folder, name)


def _lock(file: BinaryIO, name: str) -> None:
    try:
        import fcntl
    except ImportError:  # pragma: no cover - not on this system
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CommandError(f"{name} is being downloaded by another degu") from None


def run_put(args: argparse.Namespace) -> int:
    """``degu put``."""
    uri = args.url.uri
    if uri.endswith("/"):
        if args.file == "-":
            raise CommandError(
                "expected a URL with a name, to upload standard input to"
            )
        uri += quote(os.fsencode(os.path.basename(args.file)), safe="")
    with _connect(args) as ask:
        if args.file == "-":
            if args.resume:
                raise CommandError("standard input can't be resumed, a FILE can")
            response = _put_stream(ask, uri, sys.stdin.buffer, args)
        else:
            with open(args.file, "rb") as file:
                response = _put_file(ask, uri, file, args)
        if 200 <= response.status < 300:
            _say(f"degu: {response.status} {response.reason}")
            return DONE
        return _tell_status(response)


def _put_stream(ask: Any, uri: str, file: BinaryIO, args: argparse.Namespace) -> Any:
    from degu.base import ChunkedOutput

    with Progress(None, quiet=args.quiet) as progress:
        body = ChunkedOutput(_read_pieces(file, progress, None))
        return ask("PUT", uri, {}, body)


def _put_file(ask: Any, uri: str, file: BinaryIO, args: argparse.Namespace) -> Any:
    from degu.base import Output

    size, offset = os.fstat(file.fileno()).st_size, 0
    headers: dict[str, str] = {}
    if args.resume and size:
        headers["repr-digest"] = _format_digest(file)
        offset = _ask_offset(ask, uri, headers, size)
        headers["content-range"] = f"bytes {offset}-{size - 1}/{size}"
    file.seek(offset)
    with Progress(size, offset, quiet=args.quiet) as progress:
        pieces = _read_pieces(file, progress, size - offset)
        try:
            return ask("PUT", uri, headers, Output(pieces, size - offset))
        except PeerError:
            if args.resume:
                _say("degu: the same command goes on where it broke off")
            raise


def _ask_offset(ask: Any, uri: str, headers: dict[str, str], size: int) -> int:
    offset = ask("HEAD", uri, headers).headers.get("upload-offset", "0")
    known = re.fullmatch(r"[0-9]{1,16}", offset)
    # All of it: the answer was lost, so the end is sent again from the start.
    return int(offset) if known and int(offset) < size else 0


def _format_digest(file: BinaryIO) -> str:
    import base64

    digest = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
    return f"sha-256=:{base64.b64encode(digest).decode()}:"


def _read_pieces(
    file: BinaryIO, progress: Progress, size: int | None
) -> Iterator[bytes]:
    left = sys.maxsize if size is None else size
    while left and (piece := file.read(min(COPY_SIZE, left))):
        yield piece
        left -= len(piece)
        progress.add(len(piece))


class Progress:
    """A bar on standard error, if that is a terminal; begun at `done` of `total`."""

    WIDTH = 30

    def __init__(self, total: int | None, done: int = 0, *, quiet: bool) -> None:
        self.total = total
        self.start = self.done = done
        self.begun = time.monotonic()
        self.drawn = 0.0
        self.shown = not quiet and sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.shown:
            self.draw()
            _say("")

    def add(self, size: int) -> None:
        """Count `size` bytes more."""
        self.done += size
        if self.shown and time.monotonic() - self.drawn > 0.1:
            self.draw()

    def draw(self) -> None:
        """Write the bar over the one before."""
        self.drawn = time.monotonic()
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\r\033[K{self.format(self.drawn - self.begun)}")
            sys.stderr.flush()

    def format(self, seconds: float) -> str:
        """The bar as text, `seconds` after the beginning."""
        from degu.files import format_size

        rate = (self.done - self.start) / seconds if seconds > 0 else 0
        text = f"{format_size(self.done)}"
        if self.total:
            share = min(1.0, self.done / self.total)
            bar = ("=" * round(share * self.WIDTH)).ljust(self.WIDTH)
            text = f"{share:4.0%} [{bar}] {text} of {format_size(self.total)}"
        text += f", {format_size(int(rate))}/s"
        if self.total and rate and self.done < self.total:
            left = int((self.total - self.done) / rate)
            text += f", {left // 60}:{left % 60:02} left"
        return text


# --- certificates ------------------------------------------------------------


def run_pki(args: argparse.Namespace) -> int:
    """``degu pki``: prints the sslconfig to use, as JSON."""
    import json

    from degu.pki import make_ca, make_certificate

    folder = os.path.abspath(args.folder)
    ca_file, made = make_ca(folder)
    if made:
        _say(f"degu: made a CA: {ca_file}")
    if args.name is None:
        config: dict[str, Any] = {"ca_file": ca_file}
    else:
        config = make_certificate(folder, args.name, args.hosts, days=args.days)
        _say(f"degu: made a certificate: {config['cert_file']}")
    print(json.dumps(config, indent=2))
    return DONE
