"""``python -m degu`` is the `degu` command."""

from __future__ import annotations

import sys

from degu.cli import main

if __name__ == "__main__":
    sys.exit(main())
