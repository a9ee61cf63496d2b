"""The project in figures: ``python doc/figures.py`` prints them as tables.

The same quantities as were measured for other projects of the field, so that they can
stand beside one another. This project's are measured anew each time: its size and shape
from the source, the way of a request by counting calls while it is served.
"""

from __future__ import annotations

import ast
import io
import os
import re
import statistics
import sys
import threading
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "degu"

SHAPE_HEAD = (
    "project",
    "code",
    "all lines",
    "modules",
    "layers",
    "cycles",
    "longest (median)",
    "notes : code",
    "tests : all",
)
SHAPES = [
    ("h11", "1 230", "2 568", "11", "7", "0", "57 (4)", "0.84", "1.08"),
    ("websockets", "8 505", "16 484", "43", "8", "1 of 6", "177 (6)", "0.71", "1.25"),
    ("http.client", "857", "1 537", "1", "1", "0", "117 (9)", "0.56", "—"),
    ("trustme", "412", "662", "4", "4", "0", "87 (7.5)", "0.44", "0.93"),
    ("pytest-httpserver", "1 004", "2 075", "6", "4", "0", "48 (3)", "0.76", "1.13"),
    ("psleak", "488", "754", "1", "1", "0", "40 (7)", "0.25", "1.35"),
    ("waitress", "3 263", "4 991", "16", "9", "0", "244 (5)", "0.27", "1.98"),
    ("cheroot", "3 301", "5 425", "15", "6", "0", "221 (6)", "0.43", "0.97"),
    ("httpcore", "5 111", "7 139", "31", "8", "0", "102 (3)", "0.20", "0.80"),
    ("uvicorn", "4 599", "5 780", "40", "9", "1 of 2", "119 (7)", "0.07", "1.03"),
    ("werkzeug", "12 101", "21 885", "52", "11", "1 of 11", "142 (4)", "0.55", "0.46"),
]

WAY_HEAD = ("one GET on a kept connection", "calls", "files", "frames above the app")
WAYS = [
    ("cheroot", "74", "6", "5"),
    ("waitress", "84", "9", "5"),
    ("werkzeug", "68", "6", "8"),
    ("wsgiref", "90", "6", "7"),
    ("uvicorn with h11", "203", "13", "4, and the loop's"),
    ("http.client", "29", "1", "—"),
    ("httpcore", "321", "18", "—"),
]


# --- size and shape -----------------------------------------------------------------


class Lines(NamedTuple):
    """Lines of some files: of code, of comments and docstrings, and all of them."""

    code: int
    comments: int
    total: int


def count_lines(texts: list[str]) -> Lines:
    """Count the lines; one that has both code and a comment is both."""
    counted = [_count_text(text) for text in texts]
    return Lines(*(sum(column) for column in zip(*counted, strict=True)))


def _count_text(text: str) -> Lines:
    layout = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    documented = docstring_lines(ast.parse(text))
    comments: set[int] = set(documented)
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        span = range(token.start[0], token.end[0] + 1)
        if token.type == tokenize.COMMENT:
            comments.update(span)
        elif token.type not in (*layout, tokenize.ENDMARKER):
            code.update(span)
    return Lines(len(code - documented), len(comments), text.count("\n"))


def docstring_lines(tree: ast.AST) -> set[int]:
    """The numbers of the lines that are docstrings, those of attributes too."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines.update(range(node.lineno, (node.end_lineno or 0) + 1))
    return lines


def function_lengths(texts: list[str]) -> list[int]:
    """Lines of every function's body, without its docstring."""
    lengths = []
    for text in texts:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[ast.get_docstring(node) is not None :]
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                lengths.append(lines)
    return lengths


def module_imports(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which of these modules each of them imports when it is imported itself."""
    graph = {}
    for name, text in sources.items():
        found: set[str] = set()
        for node in _run_on_import(ast.parse(text).body):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    # `from degu import wire` is about degu.wire, not about degu.
                    deeper = f"{node.module}.{alias.name}"
                    found.add(deeper if deeper in sources else node.module)
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
        graph[name] = (found & set(sources)) - {name}
    return graph


def _run_on_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements outside of functions, without what is for type checkers only."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _run_on_import(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                yield from _run_on_import(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from _run_on_import(handler.body)


def list_below(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """All that each module imports, and what these import, and so on."""
    below = {}
    for name in graph:
        found, left = set(), [*graph[name]]
        while left:
            if (one := left.pop()) not in found:
                found.add(one)
                left.extend(graph[one])
        below[name] = found
    return below


def find_cycles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The groups of modules that import one another."""
    below = list_below(graph)
    groups = {
        frozenset({name, *(other for other in below[name] if name in below[other])})
        for name in graph
        if name in below[name]
    }
    return [set(group) for group in groups]


def count_layers(graph: dict[str, set[str]]) -> int:
    """The length of the longest chain of imports, counted in modules."""
    left, layers = dict(graph), 0
    while left:
        lowest = {name for name, others in left.items() if not others & left.keys()}
        # Those of a cycle stand on one layer.
        lowest = lowest or set(left)
        left = {name: others for name, others in left.items() if name not in lowest}
        layers += 1
    return layers


def read_sources(folder: Path) -> dict[str, str]:
    """The text of every module below `folder`, by its dotted name."""
    sources = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = path.read_text(encoding="utf-8")
    return sources


def measure_shape() -> tuple[str, ...]:
    """This project's row of the first table."""
    sources = read_sources(PACKAGE)
    lines = count_lines([*sources.values()])
    tests = count_lines([*read_sources(ROOT / "tests").values()])
    lengths = function_lengths([*sources.values()])
    graph = module_imports(sources)
    cycles = [f"1 of {len(group)}" for group in find_cycles(graph)]
    return (
        "**Degu**",
        f"{lines.code:,}".replace(",", " "),
        f"{lines.total:,}".replace(",", " "),
        str(len(graph)),
        str(count_layers(graph)),
        ", ".join(cycles) or "0",
        f"{max(lengths)} ({statistics.median(lengths):g})",
        f"{lines.comments / lines.code:.2f}",
        f"{tests.total / lines.total:.2f}",
    )


# --- the way of a request -----------------------------------------------------------


class Counted:
    """A profiler that counts the calls into degu; an app that notes who called it."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.frames = 0

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            self.calls[frame.f_code.co_filename] += 1

    def app(self, request: Any) -> tuple[int, str, dict[str, Any], bytes]:
        """Answer."""
        frame = sys._getframe().f_back
        self.frames = 0
        while frame is not None:
            self.frames += frame.f_code.co_filename.startswith(str(PACKAGE))
            frame = frame.f_back
        return 200, "OK", {"content-type": "text/plain"}, b"hello"


REQUESTS = 10


def measure_ways() -> list[tuple[str, ...]]:
    """This project's rows of the second table, for the pure twin."""
    # Compiled functions are not seen by a profiler: there would be little to count.
    os.environ["DEGU_PURE_PYTHON"] = "1"
    sys.path.insert(0, str(ROOT))
    from degu.client import Client
    from degu.server import Server

    server_side, client_side = Counted(), Counted()
    server = Server(("127.0.0.1", 0), server_side.app)
    with server.running():
        threading.setprofile(server_side)
        try:
            with Client(server.address).connect() as connection:
                _ask(connection)
                _ask(connection)
                server_side.calls.clear()
                sys.setprofile(client_side)
                for _ in range(REQUESTS):
                    _ask(connection)
                sys.setprofile(None)
        finally:
            threading.setprofile(None)
    return [
        ("**Degu**, server", *_format_way(server_side), str(server_side.frames)),
        ("**Degu**, client", *_format_way(client_side), "—"),
    ]


def _ask(connection: Any) -> None:
    assert connection.get("/a/b", {"accept": "text/plain"}).body.read() == b"hello"


def _format_way(counted: Counted) -> tuple[str, str]:
    calls = counted.calls.total() / REQUESTS
    return f"{calls:.0f}", str(len(counted.calls))


# --- tables -------------------------------------------------------------------------


def format_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in reStructuredText, whose numbers stay in one piece."""
    lines = [".. list-table::", "   :header-rows: 1", "   :align: left", ""]
    for row in (head, *rows):
        cells = [re.sub(r"(?<=\d) (?=\d)", "\u202f", cell) for cell in row]
        lines.extend(
            f"   {'  ' if i else '* '}- {cell}" for i, cell in enumerate(cells)
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print(format_table(SHAPE_HEAD, [measure_shape(), *SHAPES]))
    print(".. the way of a request\n")
    print(format_table(WAY_HEAD, [*measure_ways(), *WAYS]), end="")
