"""A Degu server in a tkinter program, whose window never waits for it."""

import queue
import threading

import embed_app

import degu


class ServerRunner:
    """Starts, watches and stops a server; `report` is called in the window's thread.

    Tk can't be called from other threads, nor wait for a descriptor everywhere: the
    window looks at a queue, twenty times a second. `after` is the method of that name
    of any widget.
    """

    def __init__(self, after, report):
        self.after = after
        self.report = report
        self.server = None
        self.events = queue.SimpleQueue()
        self._look()

    def start(self, address=degu.IPv6_LOOPBACK):
        """Return at once; ``report('started', url)`` or ``('failed', why)`` follows."""
        threading.Thread(target=self._start, args=(address,)).start()

    def stop(self):
        """Return at once; ``report('ended', exitcode)`` follows."""
        if self.server is not None:
            threading.Thread(target=self.server.stop).start()

    def _start(self, address):
        try:
            self.server = degu.EmbeddedServer(address, None, embed_app.app)
        except Exception as exc:
            self.events.put(("failed", str(exc)))
        else:
            self.events.put(("started", self.server.url))
            # Called in a thread of Degu's, which only fills the queue.
            self.server.on_exit(lambda code: self.events.put(("ended", code)))

    def _look(self):
        while not self.events.empty():
            self.report(*self.events.get())
        self.after(50, self._look)


def main():
    """A button stops the server, and says how it is."""
    import tkinter

    window = tkinter.Tk()
    button = tkinter.Button(window, text="Starting …")
    runner = ServerRunner(
        window.after, lambda what, value: button.configure(text=f"{what}: {value}")
    )
    button.configure(command=runner.stop)
    button.pack()
    runner.start()
    window.mainloop()


if __name__ == "__main__":
    main()
