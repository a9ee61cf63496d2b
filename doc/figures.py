"""The project in figures: ``python doc/figures.py`` prints them as a table.

The same quantities as were measured for other projects of the field, so that they can
stand beside one another: lines of code, modules with their depth and cycles, longest
and median function, tests to source.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

OTHERS = [
    # code / all lines, modules, depth, cycles, longest (median) body, tests : source
    ("h11", "1 230 / 2 568", "11", "7", "0", "57 (4)", "1.08"),
    ("websockets", "8 505 / 16 484", "43", "8", "1", "177 (6)", "1.25"),
    ("trustme", "412 / 662", "4", "4", "0", "87 (7.5)", "0.93"),
    ("pytest-httpserver", "1 004 / 2 075", "6", "4", "0", "48 (3)", "1.13"),
    ("waitress", "3 263 / 4 991", "16", "9", "0", "244 (5)", "1.98"),
    ("cheroot", "3 301 / 5 425", "15", "6", "0", "221 (6)", "0.97"),
    ("httpcore", "5 111 / 7 139", "31", "8", "0", "102 (3)", "0.80"),
]


def count_lines(paths: list[Path]) -> tuple[int, int]:
    """Lines of code (neither blank, comment nor docstring) and all lines."""
    code = total = 0
    for path in paths:
        text = path.read_text(encoding="utf-8")
        total += text.count("\n")
        documented = docstring_lines(ast.parse(text))
        lines = set()
        skipped = (
            tokenize.COMMENT,
            tokenize.NL,
            tokenize.NEWLINE,
            tokenize.INDENT,
            tokenize.DEDENT,
            tokenize.ENDMARKER,
        )
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type not in skipped:
                lines.update(range(token.start[0], token.end[0] + 1))
        code += len(lines - documented)
    return code, total


def docstring_lines(tree: ast.AST) -> set[int]:
    """The numbers of the lines that are docstrings."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                lines.update(range(child.lineno, (child.end_lineno or 0) + 1))
    return lines


def function_lengths(paths: list[Path]) -> list[int]:
    """Lines of every function's body, without its docstring."""
    lengths = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body
                if ast.get_docstring(node) is not None and len(body) > 1:
                    body = body[1:]
                lengths.append((body[-1].end_lineno or 0) - body[0].lineno + 1)
    return lengths


def module_imports(package: Path) -> dict[str, set[str]]:
    """Which modules of the package each of them imports at module level."""
    names = {module_name(path, package): path for path in package.rglob("*.py")}
    graph = {}
    for name, path in names.items():
        found: set[str] = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
        graph[name] = {other for other in found if other in names} - {name}
    return graph


def module_name(path: Path, package: Path) -> str:
    """``degu.testing.pki`` for the file of that module."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def measure_graph(graph: dict[str, set[str]]) -> tuple[int, int]:
    """The longest chain of imports, and how many modules are part of a cycle."""
    depths: dict[str, int] = {}
    cyclic: set[str] = set()

    def depth(name: str, above: tuple[str, ...]) -> int:
        if name in above:
            cyclic.update(above[above.index(name) :])
            return 0
        if name not in depths:
            below = [depth(other, (*above, name)) for other in graph[name]]
            depths[name] = 1 + max(below, default=0)
        return depths[name]

    for name in graph:
        depth(name, ())
    return max(depths.values()), len(cyclic)


def build_row(package: str = "degu", tests: str = "tests") -> tuple[str, ...]:
    """This project's row of the table."""
    paths = sorted((ROOT / package).rglob("*.py"))
    code, total = count_lines(paths)
    _, test_lines = count_lines(sorted((ROOT / tests).rglob("*.py")))
    lengths = function_lengths(paths)
    graph = module_imports(ROOT / package)
    depth, cyclic = measure_graph(graph)
    return (
        "**Degu**",
        f"{code:,} / {total:,}".replace(",", " "),
        str(len(graph)),
        str(depth),
        str(cyclic),
        f"{max(lengths)} ({statistics.median(lengths):g})",
        f"{test_lines / total:.2f}",
    )


def format_table() -> str:
    """The figures of all projects as a table in reStructuredText."""
    head = (
        "project",
        "code / all lines",
        "modules",
        "depth",
        "cyclic",
        "longest (median) body",
        "tests : source",
    )
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in (head, build_row(), *OTHERS):
        lines.extend(f"   {'* -' if i == 0 else '  -'} {v}" for i, v in enumerate(row))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(format_table())
