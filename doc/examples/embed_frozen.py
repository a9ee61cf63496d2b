"""A program with a Degu server, to be frozen by PyInstaller.

    pyinstaller --onefile embed_frozen.py

``freeze_support()`` has to come before anything else: under spawn and forkserver the
new process is this very program, started again.
"""

import multiprocessing
import sys

import degu
from degu.client import Client


def app(request):
    """Greet."""
    return (200, "OK", {}, b"Hello from " + request["method"].encode())


def main():
    """Start a server by the method that is given, and ask it."""
    degu.EmbeddedServer.start_method = sys.argv[1] if sys.argv[1:] else None
    with degu.EmbeddedServer(degu.IPv6_LOOPBACK, None, app) as server:
        print(Client(server.address).get("/").body.read().decode())


if __name__ == "__main__":
    multiprocessing.freeze_support()
    main()
