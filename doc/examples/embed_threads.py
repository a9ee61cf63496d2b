"""A Degu server that is looked after by plain threads, without an event loop."""

import threading

import embed_app

import degu


def main():
    """Start a server that is started again when it fails, and wait for its end."""
    over = threading.Event()
    with degu.EmbeddedServer(
        degu.IPv6_LOOPBACK, None, embed_app.app, restart="on-failure"
    ) as server:
        # Called in a thread of Degu's: set an event, fill a queue, but do not block.
        server.on_exit(lambda code: over.set())
        print("serving at", server.url, flush=True)
        over.wait(60)


if __name__ == "__main__":
    main()
