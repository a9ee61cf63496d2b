"""Feed Degu with bytes that atheris makes up, guided by which lines they reach.

``python -m tests.fuzz [TARGET ...] --seconds 60`` runs each target for so long, in a
process of its own, from the corpus under ``tests/data`` on. What was found interesting
is kept in ``.fuzz/TARGET`` for the next run; a finding is written to
``.fuzz/TARGET-crash-...`` and ends the run with status 1. ``--replay FILE TARGET`` runs
one finding again. Needs atheris (``pip install atheris``; Linux).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests import corpus
from tests.fuzz.targets import TARGETS

FOLDER = Path(".fuzz")
MAX_SIZE = 40_000  # bytes of an input: more than any head may have


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--replay", type=Path, help="run this one input")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"unknown {sorted(unknown)}; the targets are {sorted(TARGETS)}")
    if arguments.replay:
        for name in names:
            TARGETS[name](arguments.replay.read_bytes())
        return 0
    if arguments.inside:
        return fuzz(names[0], arguments.seconds)
    failed = [name for name in names if not run(name, arguments.seconds)]
    print("findings in:", ", ".join(failed) if failed else "none of the targets")
    return int(bool(failed))


def run(name: str, seconds: int) -> bool:
    """Fuzz one target in a child, as libFuzzer ends the process it runs in."""
    print(f"--- {name}, {seconds} seconds", flush=True)
    command = [sys.executable, "-m", "tests.fuzz", name, "--inside"]
    # In the compiled functions nobody counts lines, so the pure ones lead the way.
    environ = {**os.environ, "DEGU_PURE_PYTHON": "1"}
    return subprocess.call([*command, "--seconds", str(seconds)], env=environ) == 0


def fuzz(name: str, seconds: int) -> int:
    """Instrument Degu and fuzz one target; does not return."""
    try:
        import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        print("expected atheris: pip install atheris", file=sys.stderr)
        return 2
    folder = FOLDER / name
    write_seeds(folder)
    target = TARGETS[name]
    # The functions were imported before anybody could instrument them.
    for function in find_functions():
        atheris.instrument_func(function)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_SIZE}",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
        "-verbosity=0",
        f"-artifact_prefix={FOLDER / name}-",
        str(folder),
    ]
    atheris.Setup([sys.argv[0], *options], lambda data: target(data))
    atheris.Fuzz()
    return 0


def find_functions() -> list[object]:
    """The functions and methods of the modules that read what a peer sends."""
    from degu import base, door, wire

    found: list[object] = []
    for module in (wire, base, door):
        for value in vars(module).values():
            if getattr(value, "__module__", None) != module.__name__:
                continue
            members = vars(value).values() if isinstance(value, type) else [value]
            found += [one for one in members if hasattr(one, "__code__")]
    return found


def write_seeds(folder: Path) -> None:
    """The bytes of every case, as files for libFuzzer to begin with."""
    folder.mkdir(parents=True, exist_ok=True)
    cases: list[corpus.Case] = [*corpus.read_request_cases()]
    cases += corpus.read_response_cases()
    for case in cases:
        head, _, body = case.data.partition(b"\r\n\r\n")
        # Some targets read all of it, some a head alone, some a chunked body alone.
        for kind, data in (("all", case.data), ("head", head), ("body", body)):
            path = folder / f"{type(case).__name__}-{case.name}-{kind}"
            path.write_bytes(data[:MAX_SIZE])


if __name__ == "__main__":
    sys.exit(main())
