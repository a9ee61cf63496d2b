"""Where the packaged program begins, and so does each process that it starts."""

import multiprocessing
import sys

if __name__ == "__main__":
    # In a process that multiprocessing started this does its work and does not return.
    multiprocessing.freeze_support()
    from demo_app.__main__ import main

    sys.exit(main())
