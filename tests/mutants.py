"""Mutation testing: does a test notice when one thing in a module is wrong?

``python -m tests.mutants degu/wire.py [test file ...]`` changes one thing at a time
(`<` to `<=`, an argument to None, a condition to its opposite, ...) and runs the tests
against each such mutant. One that every test passes is alive: a test is missing, or
code does nothing, or nobody could tell the difference, and then a line in
``tests/mutants.txt`` says why. Exit status 1 where one is alive without such a line.

The words of error messages are left alone, and so are docstrings, annotations and
imports. What a message shows of its values is mutated like everything else.

A mutant inside of a function is put into the imported module in a fork of a process
that collected all tests, and only those run that pass its line. The others, and
all that survive, are imported by a process of their own that runs every test given.
Needs fork(). The compiled twin stays out of it, but for what is alive of
``degu/base.py``: some of it only runs beside that twin, where there is one.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib
import importlib.util
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import hypothesis  # noqa: F401  (imported once, for all forks)
import pytest

ROOT = Path(__file__).parents[1]
EXPLAINED = Path(__file__).with_suffix(".txt")
TESTS = {
    "degu/wire.py": ["tests/test_wire.py", "tests/test_corpus.py"],
    "degu/base.py": ["tests/test_base.py"],
}
BESIDE_TWIN = {"degu/base.py"}  # is tried with the compiled twin, too
QUICK = "not linear_time and not test_server and not test_client"
PYTEST = [
    *("-q", "-x", "--capture=no", "-p", "no:cacheprovider", "-p", "no:xdist"),
    *("-o", "timeout=0", "--hypothesis-profile=mutants"),
    *("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"),
]
LEAST_SECONDS = 5.0  # for one test; then it hangs, which is noticed too

# --- what is changed -----------------------------------------------------------

SWAPS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Div,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitAnd,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
METHODS = {
    **{name: "r" + name for name in ("find", "index", "partition", "split")},
    **{"r" + name: name for name in ("find", "index", "partition", "split")},
    "lower": "upper",
    "upper": "lower",
    "lstrip": "rstrip",
    "rstrip": "lstrip",
    "startswith": "endswith",
    "endswith": "startswith",
}
CODECS = {"ascii", "latin-1"}  # are the same in capitals
NONE = ast.Constant(None)


def changed(node: ast.AST, **fields: Any) -> Any:
    """A shallow copy of `node` in which these fields are others."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def negated(test: ast.expr) -> Iterator[ast.expr]:
    """The opposite of a condition, where no other operator makes it."""
    is_swapped = isinstance(test, ast.Compare) and isinstance(
        test.ops[0], ast.Eq | ast.NotEq | ast.Is | ast.IsNot | ast.In | ast.NotIn
    )
    if not is_swapped and not isinstance(test, ast.UnaryOp):
        yield ast.UnaryOp(ast.Not(), test)


def mutate_constant(node: ast.Constant) -> Iterator[ast.AST]:
    """Other values of a literal."""
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int | float):
        yield from (ast.Constant(value + 1), ast.Constant(value - 1))
    elif isinstance(value, str | bytes):
        mark: Any = b"XX" if isinstance(value, bytes) else "XX"
        texts = [mark + value + mark]
        if value not in CODECS:
            texts += [value.lower(), value.upper()]
        yield from (ast.Constant(text) for text in texts if text != value)


def mutate_call(node: ast.Call) -> Iterator[ast.AST]:
    """Other arguments, fewer arguments, another method."""
    args, keywords = node.args, node.keywords
    for at, arg in enumerate(args):
        if not isinstance(arg, ast.Constant) or arg.value is not None:
            yield changed(node, args=[*args[:at], NONE, *args[at + 1 :]])
        if len(args) + len(keywords) > 1:
            yield changed(node, args=args[:at] + args[at + 1 :])
    for at, keyword in enumerate(keywords):
        if not isinstance(keyword.value, ast.Constant):
            none = changed(keyword, value=NONE)
            yield changed(node, keywords=[*keywords[:at], none, *keywords[at + 1 :]])
        yield changed(node, keywords=keywords[:at] + keywords[at + 1 :])
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    # Without a count, both ways to split give the same.
    if name in METHODS and not (name[-5:] == "split" and len(args) < 2):
        yield changed(node, func=changed(node.func, attr=METHODS[name]))


def mutate_assignment(node: Any) -> Iterator[ast.AST]:
    """None instead of the value, and `+=` that forgets or takes away."""
    if isinstance(node, ast.AugAssign):
        yield ast.Assign([node.target], node.value, lineno=node.lineno)
        if type(node.op) in SWAPS:
            yield changed(node, op=SWAPS[type(node.op)]())
    elif node.value is not None:
        is_none = isinstance(node.value, ast.Constant) and node.value.value is None
        yield changed(node, value=ast.Constant("") if is_none else NONE)


def mutate(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of `node`."""
    match node:
        case ast.Constant():
            yield from mutate_constant(node)
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPS:
            yield changed(node, op=SWAPS[type(op)]())
        case ast.Compare(ops=ops):
            for at, one in enumerate(ops):
                new = SWAPS[type(one)]()
                yield changed(node, ops=[*ops[:at], new, *ops[at + 1 :]])
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node.operand
        case ast.Call():
            yield from mutate_call(node)
        case ast.Assign() | ast.AnnAssign() | ast.AugAssign() | ast.NamedExpr():
            yield from mutate_assignment(node)
        case ast.Lambda():
            yield changed(node, body=NONE)
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Break():
            yield ast.Return()
        case ast.Continue():
            yield ast.Break()
    match node:
        case ast.If() | ast.While() | ast.IfExp():
            for test in negated(node.test):
                yield changed(node, test=test)


SKIPPED = {"annotation", "returns", "type_comment", "ctx", "keywords_of_class"}
UNTOUCHED = {"__all__", "__slots__"}


@dataclass
class Place:
    """Where a node stands: its parent's field, and what is around it."""

    holder: Any  # an ast node or a list of them
    key: Any  # the field's name or the index in the list
    statement: Any
    function: bool
    qualname: str


def is_left_alone(node: ast.AST) -> bool:
    """Whether nothing in `node` is to be mutated."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom():
            return True
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name in UNTOUCHED
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
    return False


def is_error(node: ast.AST) -> bool:
    """Whether `node` makes an exception: its strings are a message."""
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error")


def walk(
    node: ast.AST, place: Place, in_message: bool = False
) -> Iterator[tuple[ast.AST, Place]]:
    """Every node that may be mutated, with its place."""
    if is_left_alone(node):
        return
    if isinstance(node, ast.stmt):
        place.statement = node
    is_text = isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    in_message = in_message or is_error(node)
    if not (in_message and is_text):
        yield node, place
    is_definition = isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)
    for name, value in ast.iter_fields(node):
        if name in SKIPPED or (is_definition and name == "bases"):
            continue
        inner = place
        if is_definition and name == "body":
            own = f"{place.qualname}.{getattr(node, 'name', '<lambda>')}".strip(".")
            function = place.function or not isinstance(node, ast.ClassDef)
            inner = Place(None, None, place.statement, function, own)
        for holder, key, child in children(node, name, value):
            at = Place(holder, key, inner.statement, inner.function, inner.qualname)
            yield from walk(child, at, in_message and not is_value(node))


def is_value(node: ast.AST) -> bool:
    """Whether `node` is the ``{value}`` of an f-string, which is no word of it."""
    return isinstance(node, ast.FormattedValue)


def children(node: ast.AST, name: str, value: Any) -> Iterator[tuple[Any, Any, Any]]:
    if isinstance(value, ast.AST):
        yield node, name, value
    elif isinstance(value, list):
        for at, child in enumerate(value):
            if isinstance(child, ast.AST):
                yield value, at, child


def put(place: Place, node: ast.AST) -> None:
    """Let `node` stand there."""
    if isinstance(place.holder, list):
        place.holder[place.key] = node
    else:
        setattr(place.holder, place.key, node)


def head_of(statement: Any) -> str:
    """A statement on one line, without the block that it may have."""
    blocks = {"body", "orelse", "finalbody", "handlers", "cases"} & set(
        statement._fields
    )
    bare = changed(statement, **{name: [] for name in blocks})
    text = ast.unparse(bare if blocks else statement)
    return " ".join(text.split())


@dataclass
class Mutant:
    """One change: what it is called, what it changes, and the compiled module."""

    name: str
    lines: range
    function: bool
    code: CodeType


def find_mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of a module, one after the other (they share one tree)."""
    tree = ast.parse(path.read_text())
    root = Place(None, None, tree, False, "")
    seen: Counter[str] = Counter()
    for node, place in list(walk(tree, root)):
        if place.holder is None:
            continue
        before = head_of(place.statement)
        for new in mutate(node):
            ast.copy_location(new, node)
            ast.fix_missing_locations(new)
            put(place, new)
            statement = new if node is place.statement else place.statement
            name = shorten(place.qualname or "module", before, head_of(statement))
            seen[name] += 1
            if seen[name] > 1:
                name += f"  #{seen[name]}"
            lines = range(node.lineno, (node.end_lineno or 0) + 1)  # type: ignore[attr-defined]
            yield Mutant(name, lines, place.function, compile(tree, path, "exec"))
            put(place, node)


def shorten(qualname: str, before: str, after: str) -> str:
    """What differs between two lines, with a little of what they have in common."""
    start = common(before, after)
    end = common(before[start:][::-1], after[start:][::-1])
    begin = before.rfind(" ", 0, max(0, start - 30)) + 1
    end = max(0, end - 20)
    cut = slice(begin, -end or None)
    shown = (text[cut][:120].strip() for text in (before, after))
    return f"{qualname}: {' -> '.join(shown)}"


def common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    same = (at for at, (a, b) in enumerate(pairs) if a != b)
    return next(same, min(len(one), len(other)))


# --- what notices it -------------------------------------------------------------


def fork(work: Callable[[], Any], seconds: float, quiet: bool = True) -> Any:
    """What `work` returns in a child (as JSON); "died" or "hangs" where it does not.

    The kernel ends the child after `seconds`; `work` may set that alarm anew.
    """
    sys.stdout.flush()
    with tempfile.TemporaryFile("w+") as file:
        pid = os.fork()
        if pid == 0:
            try:
                os.setpgid(0, 0)
                signal.setitimer(signal.ITIMER_REAL, seconds)
                null = os.open(os.devnull, os.O_RDWR)
                for number in range(3 if quiet else 1):
                    os.dup2(null, number)
                json.dump(work(), file)
                file.flush()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # whatever it started
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
            return "hangs"
        file.seek(0)
        return "died" if status else json.load(file)


def swap(path: Path, code: CodeType) -> bool:
    """Give each function of the imported module its code from `code`, if it can."""
    new: dict[tuple[str, int], CodeType] = {}
    codes = [code]
    for one in codes:
        new[one.co_qualname, one.co_firstlineno] = one
        codes += [inner for inner in one.co_consts if isinstance(inner, CodeType)]
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__.co_filename == str(
            path
        ):
            old = function.__code__
            try:
                function.__code__ = new[old.co_qualname, old.co_firstlineno]
            except ValueError:  # another number of variables of an outer function
                return False
    return True


class Watcher:
    """A pytest plugin that keeps which test failed first, and with what."""

    killer = ""

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Modules that can't be imported count too."""
        if report.failed:
            self.note(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tests, and what they set up and take down."""
        if report.failed:
            self.note(report)

    def note(self, report: Any) -> None:
        """Keep the first one."""
        crash = getattr(report.longrepr, "reprcrash", None) or report.longrepr
        text = " ".join(str(getattr(crash, "message", crash)).split())
        self.killer = self.killer or f"killed by {report.nodeid}: {text[:200]}"


class Session(Watcher):
    """A pytest plugin: runs no test itself, but some for each mutant in a fork.

    It says "" through the pipe when it is ready, or why it never will be. Then it
    gets one mutant's index at a time and says what became of that one.
    """

    def __init__(self, path: Path, mutants: list[Mutant], pipe: Connection) -> None:
        self.path = path
        self.mutants = mutants
        self.pipe = pipe
        self.touched: dict[int, set[int]] = defaultdict(set)
        self.seconds: list[float] = []
        self.items: list[pytest.Item] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Instead of running the tests."""
        self.items = session.items
        measured = fork(self.measure, 3600)
        if isinstance(measured, str):
            self.pipe.send(measured)
            return True
        for index, (seconds, lines) in enumerate(measured):
            self.seconds.append(seconds)
            for line in lines:
                self.touched[line].add(index)
        self.pipe.send("")
        with suppress(EOFError):
            while True:
                self.pipe.send(self.try_quickly(self.mutants[self.pipe.recv()]))
        return True

    def run(self, indices: list[int]) -> Iterator[int]:
        """Run some tests, one at each step, up to the first that fails."""
        for at, index in enumerate(indices):
            following = self.items[indices[at + 1]] if at + 1 < len(indices) else None
            item = self.items[index]
            if self.seconds:
                limit = LEAST_SECONDS + 5 * self.seconds[index]
                signal.setitimer(signal.ITIMER_REAL, limit)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.killer:
                return
            yield index

    def measure(self) -> list[tuple[float, list[int]]] | str:
        """Of each test how many seconds it takes, and which lines it passes."""
        lines: set[int] = set()
        name = str(self.path)

        def local(frame: Any, event: str, arg: Any) -> Any:
            lines.add(frame.f_lineno)
            return local

        def begin(frame: Any, event: str, arg: Any) -> Any:
            return local if frame.f_code.co_filename == name else None

        found = []
        threading.settrace(begin)
        sys.settrace(begin)
        started = time.monotonic()
        for _ in self.run(list(range(len(self.items)))):
            found.append((time.monotonic() - started, sorted(lines)))
            lines.clear()
            started = time.monotonic()
        sys.settrace(None)
        return self.killer or found

    def try_quickly(self, mutant: Mutant) -> str:
        """Run the tests that pass the mutant's lines, each file's quick ones first."""
        indices = {at for line in mutant.lines for at in self.touched[line]}
        order = sorted(indices, key=lambda at: (self.items[at].path, self.seconds[at]))

        def work() -> str:
            if swap(self.path, mutant.code):
                for _ in self.run(order):
                    pass
            return self.killer or "alive"

        return str(fork(work, LEAST_SECONDS)) if order else "alive"


def start_session(
    path: Path, mutants: list[Mutant], arguments: list[str]
) -> Connection:
    """The pipe to a process that collected the tests and waits for mutants."""
    ours, theirs = Pipe()
    if os.fork() == 0:
        ours.close()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        pytest.main([*PYTEST, *arguments], plugins=[Session(path, mutants, theirs)])
        os._exit(0)
    theirs.close()
    return ours


def try_alone(path: Path, code: CodeType, arguments: list[str], pure: str = "1") -> str:
    """Run all tests in a process that imports the mutant."""

    def work() -> str:
        os.environ["DEGU_PURE_PYTHON"] = pure
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        package = importlib.import_module(name.rpartition(".")[0])
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        exec(code, vars(module))
        setattr(package, path.stem, module)
        watcher = Watcher()
        status = pytest.main([*PYTEST, *arguments], plugins=[watcher])
        return watcher.killer or (f"killed by status {status}" if status else "alive")

    return str(fork(work, 600))


def read_explained(path: Path) -> set[str]:
    """The names of the mutants of a module that may live, by ``tests/mutants.txt``."""
    wanted, names = str(path.relative_to(ROOT)), set()
    if EXPLAINED.exists():
        section = ""
        for line in EXPLAINED.read_text().splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif section == wanted and line and line[0] not in "# ":
                names.add(line)
    return names


def run(
    path: Path, mutants: list[Mutant], arguments: list[str], quick: bool
) -> Iterator[str]:
    """Of each mutant what became of it: "killed", "died", "hangs" or "alive"."""
    for text, expected in ((path.read_text(), "alive"), ("", "killed")):
        kind = try_alone(path, compile(text, path, "exec"), arguments)
        if not kind.startswith(expected):
            sys.exit(f"expected a control to be {expected}, got: {kind}")
    session = start_session(path, mutants, arguments)
    try:
        if reason := session.recv():
            sys.exit(f"expected tests that pass without a mutant, got one {reason}")
        for index, mutant in enumerate(mutants):
            kind = "alive"
            if mutant.function:
                session.send(index)
                kind = session.recv()
            if kind == "alive" and not (quick and mutant.function):
                kind = try_alone(path, mutant.code, arguments)
                if kind == "alive" and str(path.relative_to(ROOT)) in BESIDE_TWIN:
                    kind = try_alone(path, mutant.code, arguments, pure="")
            yield kind
    except EOFError:
        sys.exit("expected a session of tests that goes on, it ended")
    finally:
        session.close()


def main() -> int:
    """Run the mutants of one module; print those that live, and the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("module", type=Path, help="such as degu/wire.py")
    parser.add_argument("tests", nargs="*", help="files of tests")
    parser.add_argument("-k", default=QUICK, help="pytest's expression to select tests")
    parser.add_argument("--only", type=Path, help="a file with the names of mutants")
    parser.add_argument(
        "--quick", action="store_true", help="don't try again, alone, what is alive"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="killed ones too")
    parser.add_argument("--list", action="store_true", help="run nothing, only list")
    options = parser.parse_args()
    path = options.module.resolve()
    mutants = list(find_mutants(path))
    explained = read_explained(path)
    for name in sorted(explained - {mutant.name for mutant in mutants}):
        print(f"{EXPLAINED.name} explains what is no mutant: {name}", flush=True)
    if options.only:
        only = set(options.only.read_text().splitlines())
        mutants = [mutant for mutant in mutants if mutant.name in only]
    if options.list:
        print(*(mutant.name for mutant in mutants), sep="\n")
        return 0
    os.environ["DEGU_PURE_PYTHON"] = "1"
    os.environ.setdefault("DEGU_TEST_TIMEOUT_FACTOR", "4")
    tests = options.tests or TESTS[str(options.module)]
    counts: Counter[str] = Counter()
    kinds = run(path, mutants, [*tests, "-k", options.k], options.quick)
    for mutant, kind in zip(mutants, kinds, strict=True):
        is_known = kind == "alive" and mutant.name in explained
        counts["explained" if is_known else kind.split()[0]] += 1
        if kind != "alive" and mutant.name in explained:
            print(f"{EXPLAINED.name} explains what is {kind}: {mutant.name}")
        if options.verbose or (kind == "alive" and not is_known):
            shown = f" ({kind})" if options.verbose else ""
            print(f"{path.name}:{mutant.lines[0]}: {mutant.name}{shown}", flush=True)
    print(f"{len(mutants)} mutants:", dict(counts))
    return 1 if counts["alive"] else 0


if __name__ == "__main__":
    sys.exit(main())
