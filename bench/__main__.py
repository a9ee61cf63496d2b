"""``python -m bench [--quick] [--only SECTION ...]``; see the package's docstring."""

from __future__ import annotations

import argparse
import importlib
import shutil
from pathlib import Path

from bench import report
from bench.tools import ROOT, Settings, Table, describe_machine, make_peers_venv

SECTIONS = ("small", "bulk", "handshake", "many", "start")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under two minutes")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--rounds", type=int, help="turns of each competitor")
    parser.add_argument("--cpu", type=int, default=0, help="the one to be pinned to")
    parser.add_argument("--out", type=Path, help="folder for the tables and plots")
    parser.add_argument("--redraw", action="store_true", help="write the results again")
    chosen = parser.parse_args()
    # The documentation shows a full run; a quick one must not take its place.
    out = chosen.out or ROOT / ("build/bench" if chosen.quick else "bench/results")
    if chosen.redraw:
        report.redraw(out)
        return
    make_peers_venv()
    settings = Settings(
        quick=chosen.quick,
        rounds=chosen.rounds or (5 if chosen.quick else 21),
        seconds=0.05 if chosen.quick else 0.2,
        only=set(chosen.only),
        cpu=chosen.cpu,
    )
    tables: list[Table] = []
    try:
        for name in chosen.only:
            section = importlib.import_module(f"bench.{name}")
            for table in section.measure(settings):
                print(report.format_text(table), end="\n\n", flush=True)
                tables.append(table)
    finally:
        shutil.rmtree(settings.folder, ignore_errors=True)
    report.write(out, describe_machine(), tables)
    print(f"Written to {out}")


if __name__ == "__main__":
    main()
