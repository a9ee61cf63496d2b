"""The drawing of the house, executed: who may import whom, and how long a function is.

`TABLE` has a row for every module of degu, bottom to top. Imports of a module's own
body go strictly downwards and only where its row says so; imports inside a function
are the row's `lazy` ones; imports for type checkers need no row, but go down as well.
`DOORS` names the few modules that may touch something outside, wherever in them.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LONGEST_BODY = 60
"""Lines of a function's body: what fits on one screen."""

TYPING_ONLY = {"__future__", "typing", "collections"}
RE_TOO = TYPING_ONLY | {"re"}
ANYTHING = None
NOTHING: set[str] = set()


@dataclass(frozen=True)
class Row:
    """What one module may import.

    `degu`: modules of degu, on import; `lazy`: the same inside of functions;
    `outside`: top-level names of the standard library, None for all without a door.
    """

    level: int
    degu: set[str]
    lazy: set[str]
    outside: set[str] | None


def row(level: int, degu: str = "", lazy: str = "", outside=ANYTHING) -> Row:
    """Write a row with its modules as words."""
    return Row(level, set(degu.split()), set(lazy.split()), outside)


TABLE = {
    # The package itself comes before all its modules and brings none of them.
    "degu": row(0, lazy="embed", outside=NOTHING),
    "errors": row(1, outside=TYPING_ONLY),
    "limits": row(2, "errors", outside=TYPING_ONLY),
    # Bytes, addresses and certificates, each without the others.
    "wire": row(3, "errors limits", outside=RE_TOO),
    # Compiled, so their own imports are not looked at here. In C each of the three
    # takes only from those before it.
    "_wire": row(3, "errors limits", outside=RE_TOO),
    "_exchange": row(3, outside=NOTHING),
    "_pool": row(3, outside=NOTHING),
    "address": row(3, "errors limits"),
    "transport": row(2),
    "tls": row(3, "errors limits transport"),
    "base": row(4, "errors limits wire _wire _exchange _pool"),
    "door": row(5, "errors limits base"),
    "rgi": row(5, "errors limits base"),
    "forms": row(5, "errors limits wire base"),
    "wsgi": row(6, "errors limits base wire door rgi"),
    "pki": row(4, "errors certificate"),
    # Siblings, that know nothing of each other.
    "server": row(6, "errors limits address tls base door"),
    "client": row(6, "errors limits address tls base"),
    "files": row(6, "errors limits base rgi"),
    "apps": row(7, "errors limits address base client rgi forms files"),
    "guard": row(4, "address"),
    "package": row(4, "errors"),
    "sharing": row(7, "server"),
    "child": row(8, "errors address guard package", lazy="server sharing"),
    "parent": row(9, "errors limits address guard child"),
    "supervisor": row(9, "address guard child", lazy="sharing"),
    "embed": row(10, "errors limits address package child parent", lazy="supervisor"),
    # Devices that trust each other: values, then files, then both ends of HTTP.
    "private": row(2, "errors"),
    "certificate": row(3, "errors"),
    "fingerprint": row(2, "errors", outside=TYPING_ONLY | {"base64", "hashlib"}),
    "invitation": row(4, "errors address fingerprint"),
    "pairing": row(5, "errors address fingerprint invitation"),
    "identity": row(6, "errors address certificate fingerprint pairing private"),
    "store": row(7, "errors certificate fingerprint pairing identity private"),
    "meeting": row(8, "errors address certificate invitation pairing identity store"),
    "joining": row(
        8,
        "errors address certificate tls client fingerprint invitation pairing identity"
        " store",
    ),
    "peers": row(
        9,
        "errors address certificate tls client fingerprint invitation pairing identity"
        " store"
        " meeting joining",
    ),
    # What a test left behind: who is asked, what was seen, what it means, the checks.
    "testing.leaks.errors": row(9),
    "testing.leaks.probe": row(9),
    "testing.leaks.origins": row(9),
    "testing.leaks.journals": row(9),
    "testing.leaks.waiting": row(9),
    "testing.leaks.tracker": row(
        10, "testing.leaks.journals testing.leaks.origins testing.leaks.probe"
    ),
    "testing.leaks.snapshot": row(
        11,
        "testing.leaks.errors testing.leaks.origins testing.leaks.probe"
        " testing.leaks.tracker",
    ),
    "testing.leaks.processes": row(
        12,
        "testing.leaks.errors testing.leaks.probe testing.leaks.snapshot"
        " testing.leaks.tracker",
    ),
    "testing.leaks.sockets": row(
        12,
        "testing.leaks.errors testing.leaks.probe testing.leaks.snapshot"
        " testing.leaks.tracker",
    ),
    "testing.leaks.threads": row(
        12,
        "testing.leaks.errors testing.leaks.origins testing.leaks.snapshot"
        " testing.leaks.tracker",
    ),
    "testing.leaks.paths": row(
        12,
        "testing.leaks.errors testing.leaks.origins testing.leaks.snapshot"
        " testing.leaks.tracker",
    ),
    "testing.leaks.files": row(
        13,
        "testing.leaks.errors testing.leaks.origins testing.leaks.probe"
        " testing.leaks.processes testing.leaks.snapshot testing.leaks.tracker",
    ),
    "testing.leaks.memory": row(
        13,
        "testing.leaks.errors testing.leaks.probe testing.leaks.processes",
    ),
    "testing.leaks.check": row(
        14,
        "testing.leaks.errors testing.leaks.files testing.leaks.paths"
        " testing.leaks.processes testing.leaks.snapshot testing.leaks.sockets"
        " testing.leaks.threads testing.leaks.tracker testing.leaks.waiting",
    ),
    "testing.leaks.ending": row(
        15,
        "testing.leaks.check testing.leaks.errors testing.leaks.probe"
        " testing.leaks.processes testing.leaks.snapshot testing.leaks.sockets"
        " testing.leaks.tracker testing.leaks.waiting",
    ),
    "testing.leaks": row(
        16,
        "testing.leaks.check testing.leaks.ending testing.leaks.errors"
        " testing.leaks.memory testing.leaks.probe testing.leaks.snapshot"
        " testing.leaks.sockets testing.leaks.tracker",
    ),
    "testing.pki": row(9, "errors certificate tls", lazy="peers"),
    "testing.faults.wire": row(9),
    "testing.faults.messages": row(9),
    "testing.faults.fault": row(9, "errors"),
    "testing.faults.player": row(10, "testing.faults.fault testing.faults.wire"),
    "testing.faults.server_faults": row(
        10, "testing.faults.fault testing.faults.messages testing.faults.wire"
    ),
    "testing.faults.client_faults": row(
        10, "testing.faults.fault testing.faults.messages testing.faults.wire"
    ),
    "testing.faults.server": row(
        11,
        "testing.faults.fault testing.faults.messages testing.faults.player"
        " testing.faults.server_faults testing.faults.wire",
    ),
    "testing.faults.client": row(
        11,
        "testing.faults.client_faults testing.faults.fault testing.faults.player"
        " testing.faults.wire",
    ),
    "testing.faults": row(
        12,
        "testing.faults.client testing.faults.fault testing.faults.messages"
        " testing.faults.player testing.faults.server testing.faults.wire",
    ),
    "testing.tape": row(9),
    "testing.expect": row(9, "errors address"),
    "testing.report": row(17, lazy="testing.leaks"),
    "testing.recorder": row(
        17,
        "errors limits base child testing.expect testing.tape",
        lazy="testing.leaks",
    ),
    "testing.servers": row(
        18,
        "errors limits address child client parent embed testing.recorder"
        " testing.report testing.tape",
        lazy="apps server tls testing.leaks testing.pki",
    ),
    "testing.fixtures": row(
        19,
        "errors testing.faults testing.report testing.servers",
        lazy="tls testing.pki testing.recorder testing.tape",
    ),
    "testing": row(
        20,
        lazy="testing.expect testing.faults testing.leaks testing.pki testing.servers",
    ),
    "testing.plugin": row(
        21, lazy="testing.fixtures testing.leaks testing.pki testing.servers"
    ),
    "misc": row(22, "testing", lazy="testing.pki testing.servers"),
    # The command: what all commands share, what servers or clients share, commands.
    "cli.command": row(23),
    "cli.console": row(23, lazy="files"),
    "cli.addresses": row(23, lazy="address"),
    "cli.app": row(24, "errors cli.command", lazy="wsgi"),
    "cli.tls": row(24, "cli.command"),
    "cli.server": row(
        25,
        "cli.addresses cli.command cli.console cli.tls",
        lazy="address apps server",
    ),
    "cli.workers": row(
        26,
        "cli.app cli.command cli.console cli.server cli.tls",
        lazy="degu address apps",
    ),
    "cli.client": row(
        26,
        "degu errors cli.addresses cli.command cli.console cli.tls",
        lazy="client",
    ),
    "cli.serve": row(27, "cli.app cli.command cli.server cli.workers"),
    "cli.files": row(27, "cli.command cli.server", lazy="files"),
    "cli.proxy": row(
        27,
        "cli.addresses cli.client cli.command cli.server cli.tls",
        lazy="apps client",
    ),
    "cli.inspect": row(27, "cli.command cli.server", lazy="apps"),
    "cli.get": row(27, "cli.client cli.command cli.console"),
    "cli.put": row(27, "errors cli.client cli.command cli.console", lazy="base"),
    "cli.pki": row(27, "cli.command cli.console", lazy="pki"),
    "cli": row(
        28,
        "degu errors cli.addresses cli.app cli.client cli.command cli.console"
        " cli.files cli.get cli.inspect cli.pki cli.proxy cli.put cli.serve"
        " cli.server cli.workers",
    ),
    "__main__": row(29, "cli"),
}

DOORS = {
    "argparse": {
        "cli",
        "cli.addresses",
        "cli.app",
        "cli.client",
        "cli.command",
        "cli.serve",
    },
    "cryptography": {"certificate", "testing.pki"},
    "multipart": {"forms"},
    "multiprocessing": {"child", "embed", "guard", "package", "parent", "supervisor"},
    "psutil": {"testing.leaks.probe"},
    "pytest": {"testing.plugin"},
    "socket": {
        "address",
        "base",
        "child",
        "client",
        "embed",
        "joining",
        "server",
        "sharing",
        "testing.faults.client",
        "testing.faults.player",
        "testing.faults.server",
        "testing.faults.wire",
        "testing.leaks.sockets",
        "testing.pki",
        "tls",
        "transport",
    },
    "ssl": {"tls", "transport"},
    "trustme": {"testing.pki"},
}

DEMO_RULES = {
    # group of the demo's modules: the modules that none of it may import
    "": {"PySide6", "segno"},  # HTTP apps and stores know no Qt
    "application": {"segno", "degu"},
    "workers": {"PySide6.QtWidgets", "PySide6.QtGui", "segno"},
    "windows": {"degu.client", "degu.server", "degu.embed", "socket"},
}


@dataclass(frozen=True)
class Import:
    """One imported module: on import, inside of a function, or for types only."""

    name: str
    line: int
    kind: str


class _Finder(ast.NodeVisitor):
    """Collects the imports of one module's source."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.kind = "module"
        self.found: list[Import] = []

    def _visit_as(self, kind: str, nodes: list[ast.stmt]) -> None:
        before, self.kind = self.kind, kind
        for node in nodes:
            self.visit(node)
        self.kind = before

    def visit_If(self, node: ast.If) -> None:
        kind = "type" if _is_type_checking(node.test) else self.kind
        self._visit_as(kind, node.body)
        self._visit_as(self.kind, node.orelse)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._visit_as("type" if self.kind == "type" else "function", node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.found.append(Import(alias.name, node.lineno, self.kind))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parents = self.package.split(".")
            kept = parents[: len(parents) - node.level + 1]
            base = ".".join([*kept, *([base] if base else [])])
        for alias in node.names:
            # `from degu import wire` is about degu.wire, not about degu.
            deeper = f"{base}.{alias.name}"
            name = deeper if deeper.removeprefix("degu.") in TABLE else base
            self.found.append(Import(name, node.lineno, self.kind))

    def visit_Call(self, node: ast.Call) -> None:
        called = ast.unparse(node.func)
        if called in ("__import__", "import_module", "importlib.import_module"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    name = str(argument.value)
                    self.found.append(Import(name, node.lineno, self.kind))
        self.generic_visit(node)


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def find_imports(source: str, package: str) -> list[Import]:
    """Every import in `source`, a module that lies in `package`."""
    finder = _Finder(package)
    finder.visit(ast.parse(source))
    return finder.found


def find_faults(name: str, source: str, package: str = "degu") -> Iterator[str]:
    """What is wrong with the imports of the module `name` of degu."""
    rules = TABLE.get(name)
    if rules is None:
        yield f"{name}: has no row in the table of tests/test_layers.py"
        return
    for found in find_imports(source, package):
        where = f"{name}:{found.line} imports {found.name}"
        fault = (
            _degu_fault(rules, found)
            if found.name == "degu" or found.name.startswith("degu.")
            else _outside_fault(name, rules, found)
        )
        if fault:
            yield f"{where}: {fault}"


def _degu_fault(rules: Row, found: Import) -> str:
    target = found.name.removeprefix("degu.")
    if target not in TABLE:
        return "it has no row in the table"
    if found.kind == "type":
        below = TABLE[target].level < rules.level or target in rules.lazy
        return "" if below else "types too are imported from further down only"
    if found.kind == "function":
        return "" if target in rules.degu | rules.lazy else "not even inside a function"
    return "" if target in rules.degu else "its row does not say so"


def _outside_fault(name: str, rules: Row, found: Import) -> str:
    top = found.name.partition(".")[0]
    if found.kind == "type":
        return ""
    if top in DOORS:
        doors = ", ".join(sorted(DOORS[top]))
        return "" if name in DOORS[top] else f"that is for {doors} only"
    if top not in sys.stdlib_module_names:
        return "a dependency without a door"
    if rules.outside is not None and top not in rules.outside:
        return "its row does not say so"
    return ""


def module_name(path: Path, package: Path) -> str:
    """`testing.pki` for degu/testing/pki.py, `degu` for degu/__init__.py."""
    parts = path.relative_to(package).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts) or package.name


def package_of(path: Path) -> str:
    """The dotted package that the module in `path` lies in."""
    return ".".join(path.relative_to(ROOT).parent.parts)


def modules(folder: str) -> list[Path]:
    """The Python files below `folder`, none where there is no such folder."""
    return sorted((ROOT / folder).rglob("*.py"))


def test_every_module_imports_only_what_its_row_allows():
    """The import table holds for the tree as it is."""
    faults = [
        fault
        for path in modules("degu")
        for fault in find_faults(
            module_name(path, ROOT / "degu"),
            path.read_text(encoding="utf-8"),
            package_of(path),
        )
    ]
    assert not faults, "\n".join(faults)


def test_the_table_itself_goes_strictly_downwards():
    """No row allows an import of something beside or above its module."""
    upwards = [
        f"{name} -> {target}"
        for name, rules in TABLE.items()
        for target in rules.degu
        if TABLE[target].level >= rules.level
    ]
    assert not upwards
    named = {target for rules in TABLE.values() for target in rules.degu | rules.lazy}
    assert named <= set(TABLE)
    assert {name for names in DOORS.values() for name in names} <= set(TABLE)


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("server", "from degu.client import Client", "its row does not say so"),
        ("client", "from degu import server", "its row does not say so"),
        ("client", "from . import server", "its row does not say so"),
        ("client", "from .server import Server", "its row does not say so"),
        ("base", "def f():\n  import degu.server", "not even inside a function"),
        ("wire", "import degu.base", "its row does not say so"),
        ("wire", "import os", "its row does not say so"),
        ("wire", "try:\n  import time\nexcept ImportError: pass", "its row"),
        ("errors", "class E:\n  import re", "its row does not say so"),
        ("degu", "from __future__ import annotations", "its row does not say so"),
        ("degu", "from degu.embed import start_server", "its row does not say so"),
        ("server", "import ssl", "that is for tls, transport"),
        ("server", "async def f():\n  from ssl import SSLError", "for tls, transport"),
        ("client", "import multiprocessing.util", "that is for child, embed"),
        ("testing.servers", "import pytest", "that is for testing.plugin only"),
        ("rgi", "psutil = importlib.import_module('psutil')", "that is for testing"),
        ("apps", "import numpy", "a dependency without a door"),
        ("wire", "from socket import socket", "that is for address"),
        ("novel", "", "has no row"),
        ("server", "import degu.novel", "it has no row"),
        (
            "wire",
            "if TYPE_CHECKING:\n  from degu.base import Input",
            "types too are imported from further down only",
        ),
        (
            "server",
            "if typing.TYPE_CHECKING:\n  pass\nelse:\n  import degu.client",
            "its row does not say so",
        ),
    ],
)
def test_a_broken_rule_is_found(name, source, fault):
    """Each rule of the table, broken once in a made-up module, gives its fault."""
    package = "degu.testing" if "." in name else "degu"
    faults = list(find_faults(name, source, package))
    assert len(faults) == 1
    assert fault in faults[0]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("degu", "def __getattr__(name):\n  from degu import embed"),
        ("degu", "if TYPE_CHECKING:\n  from degu.embed import start_server"),
        ("base", "try:\n  from degu import _wire as w\nexcept E:\n  import degu.wire"),
        ("server", "if TYPE_CHECKING:\n  import ssl\n  from degu.base import Input"),
        ("child", "def run():\n  from degu.server import Server"),
        ("tls", "import ssl\nfrom degu.errors import TLSError"),
        ("cli", "from degu import __version__"),
        ("testing.plugin", "import pytest\ndef f():\n  from . import pki"),
    ],
)
def test_what_the_table_allows_is_no_fault(name, source):
    """The same shapes of imports, where a row or a door has them, pass."""
    package = "degu.testing" if "." in name else "degu"
    assert list(find_faults(name, source, package)) == []


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of `graph` as a path that ends where it began; [] without any."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph.get(name, ())):
            if cycle := walk(target, [*path, name]):
                return cycle
        done.add(name)
        return []

    return next((cycle for name in sorted(graph) if (cycle := walk(name, []))), [])


def test_no_modules_import_each_other_in_a_circle():
    """Any module can be imported first."""
    graph = {}
    for path in modules("degu"):
        imports = find_imports(path.read_text(encoding="utf-8"), package_of(path))
        graph[module_name(path, ROOT / "degu")] = {
            found.name.removeprefix("degu.")
            for found in imports
            if found.kind == "module"
        }
    assert find_cycle(graph) == []


def test_a_circle_of_imports_is_found():
    """The search for circles finds one, and none in a tree."""
    circle = {"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}
    assert find_cycle(circle) == ["b", "d", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def find_demo_faults(name: str, source: str, package: str) -> list[str]:
    """Imports that the rule of a demo module's group forbids."""
    group = name.partition(".")[0]
    forbidden = DEMO_RULES.get(group, DEMO_RULES[""])
    return [
        f"{name}:{found.line} imports {found.name}"
        for found in find_imports(source, package)
        # "from PySide6 import QtWidgets" shows as PySide6, so that is forbidden too.
        if any(
            f"{found.name}.".startswith(f"{bad}.") or bad == f"{found.name}.QtWidgets"
            for bad in forbidden
        )
    ]


def test_the_demo_keeps_qt_http_and_stores_apart():
    """HTTP apps and stores know no Qt, workers no widgets, windows no sockets."""
    package = ROOT / "demo_app"
    faults = [
        fault
        for path in modules("demo_app")
        for fault in find_demo_faults(
            module_name(path, package),
            path.read_text(encoding="utf-8"),
            package_of(path),
        )
    ]
    assert not faults


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("share", "from PySide6.QtCore import QObject"),
        ("workers.pool", "from PySide6 import QtWidgets"),
        ("windows.plot", "from degu.client import Client"),
        ("windows.plot", "import socket"),
    ],
)
def test_a_demo_module_that_reaches_across_is_found(name, source):
    """The rule of each group finds a breach."""
    assert find_demo_faults(name, source, "demo_app")


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method in `source`, the nested ones too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body, its docstring not counted."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    if not body:
        return 0
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def test_no_function_is_longer_than_a_screen():
    """A function that needs scrolling is more than one function."""
    long = [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}: {length} lines"
        for path in modules("degu")
        for function in functions(path.read_text(encoding="utf-8"))
        if (length := body_length(function)) > LONGEST_BODY
    ]
    assert not long, "\n".join(long)


def test_the_lines_of_a_body_are_counted_without_the_docstring():
    """One line more than the allowance is one line too many, documented or not."""
    lines = "  pass\n" * (LONGEST_BODY + 1)
    for source in ("def f():\n" + lines, 'def f():\n  """Do\n\n  it."""\n' + lines):
        (function,) = functions(source)
        assert body_length(function) == LONGEST_BODY + 1
    (function,) = functions('def f():\n  """Do nothing."""\n')
    assert body_length(function) == 0


def find_untold_tests(source: str) -> list[str]:
    """The tests in `source` that do not say what they show."""
    return [
        function.name
        for function in functions(source)
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]


def test_every_test_says_in_a_sentence_what_it_shows():
    """A test without a docstring is found wherever it is in tests/."""
    untold = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules("tests")
        if path.name.startswith("test_")
        for name in find_untold_tests(path.read_text(encoding="utf-8"))
    ]
    assert not untold, "\n".join(untold)


def test_a_test_without_a_sentence_is_found():
    """The search for missing docstrings sees methods too, and spares helpers."""
    source = (
        "def test_a(): pass\n"
        "class TestX:\n"
        "  def test_b(self): pass\n"
        '  def test_c(self):\n    """Say it."""\n'
        "def helper(): pass\n"
    )
    assert find_untold_tests(source) == ["test_a", "test_b"]


def test_importing_degu_imports_nothing_else():
    """An application that never starts a server pays for one small module."""
    code = (
        "import sys; before = set(sys.modules); import degu;"
        "print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert result.stdout.split() == ["degu"]
