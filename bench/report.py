"""Tables and a plot of what was measured, for the documentation and for people."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from html import escape
from pathlib import Path

from bench.tools import Row, Table, dump

WIDTH, BAR, GAP, LABEL = 760, 18, 6, 210
LETTER = 7
"""Pixels that a letter of 12 takes at the most, on average."""
OURS, THEIRS = "#2a6f97", "#b5b5b5"


def write(folder: Path, machine: dict[str, str], tables: list[Table]) -> None:
    """Write results.json, results.rst, results.md and plots of the comparisons."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(
        dump({"machine": machine, "tables": [asdict(table) for table in tables]}) + "\n"
    )
    (folder / "results.rst").write_text(format_rst(machine, tables))
    (folder / "results.md").write_text(format_markdown(machine, tables))
    for table in tables:
        if table.key in ("servers", "clients"):
            (folder / f"{table.key}.svg").write_text(format_svg(table))


def cells(table: Table, row: Row) -> list[str]:
    """A row's texts: name, median, least, most, ratio, note."""
    numbers = (row.median, min(row.samples), max(row.samples))
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    return [
        row.name,
        *(f"{number:.{table.digits}f}" for number in numbers),
        ratio,
        row.note,
    ]


def heads(table: Table) -> list[str]:
    return ["", f"median {table.unit}", "least", "most", "ratio", ""]


def format_text(table: Table) -> str:
    """For the terminal."""
    rows = [heads(table), *(cells(table, row) for row in table.rows)]
    widths = [max(len(row[at]) for row in rows) for at in range(6)]
    lines = [table.title]
    for row in rows:
        first = row[0].ljust(widths[0])
        rest = (row[at].rjust(widths[at]) for at in range(1, 5))
        lines.append("  ".join([" ", first, *rest, row[5]]).rstrip())
    return "\n".join(lines)


def format_machine(machine: dict[str, str]) -> str:
    return (
        f"Measured on {machine['date']}: {machine['processor']}; {machine['system']}; "
        f"{machine['interpreter']} ({machine['compiler']})."
    )


def format_rst(machine: dict[str, str], tables: Iterable[Table]) -> str:
    lines = [format_machine(machine), ""]
    for table in tables:
        lines += [f".. list-table:: {table.title}", "   :header-rows: 1", ""]
        for row in [heads(table), *(cells(table, row) for row in table.rows)]:
            for number, cell in enumerate(row):
                lead = "   * - " if number == 0 else "     - "
                lines.append(f"{lead}{cell}".rstrip())
        lines += ["", *([table.note, ""] if table.note else [])]
    return "\n".join(lines)


def format_markdown(machine: dict[str, str], tables: Iterable[Table]) -> str:
    lines = [format_machine(machine), ""]
    for table in tables:
        lines += [f"### {table.title}", ""]
        lines.append("| " + " | ".join(heads(table)) + " |")
        lines.append("|---|--:|--:|--:|--:|---|")
        for row in table.rows:
            lines.append("| " + " | ".join(cells(table, row)) + " |")
        lines += ["", *([table.note, ""] if table.note else [])]
    return "\n".join(lines)


def format_svg(table: Table) -> str:
    """Horizontal bars, the fastest first, each with its median and ratio."""
    rows = sorted(table.rows, key=lambda row: row.median)
    labels = [format_label(table, row) for row in rows]
    height = (BAR + GAP) * len(table.rows) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(table.title)}</title>",
        f'<text x="0" y="14" font-weight="bold">{escape(table.title)}</text>',
    ]
    room = WIDTH - LABEL - LETTER * max(map(len, labels))
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = 28 + number * (BAR + GAP)
        color = OURS if row.name.startswith("degu") else THEIRS
        length = max(1.0, row.median / rows[-1].median * room)
        parts += [
            f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">'
            f"{escape(row.name)}</text>",
            f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" '
            f'fill="{color}"/>',
            f'<text x="{LABEL + length + 6:.1f}" y="{y + 13}">{escape(label)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def format_label(table: Table, row: Row) -> str:
    """What stands at the end of a bar."""
    ratio = "" if row.ratio is None else f" ({row.ratio:.1f})"
    return f"{row.median:.{table.digits}f} {table.unit}{ratio}"


def redraw(folder: Path) -> None:
    """Write everything again from results.json, which stays as it is."""
    results = json.loads((folder / "results.json").read_text())
    tables = [
        Table(**{**table, "rows": [Row(**row) for row in table["rows"]]})
        for table in results["tables"]
    ]
    write(folder, results["machine"], tables)
