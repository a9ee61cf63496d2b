"""A job on its way to another process, under spawn and forkserver.

`Packing` is the sender's side, `Package` what arrives. Under these start methods
multiprocessing runs the program's script again in every child, needed or not. Degu
does so itself, and only for jobs that refer to it; so scripts need no main guard.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import types
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

from degu.errors import StartError, shown

importing_main = False
"""True while the parent's script is imported for the sake of what it defines."""


class MainReentered(BaseException):
    """A script without a main guard came to its own start of a server again."""


# --- there ------------------------------------------------------------------------


class Package:
    """A job as pickled bytes, opened only when errors can be reported."""

    def __init__(self, data: bytes, main: tuple[str, str] | None) -> None:
        self.data = data
        self.main = main

    def open(self) -> Any:
        """Unpickle; what the parent's script defines is imported first."""
        if self.main is not None:
            import_main(*self.main)
        return pickle.loads(self.data)


def import_main(kind: str, where: str) -> None:
    """Run the parent's script under the name ``__mp_main__``, up to its first server.

    Raises whatever the script raises.
    """
    global importing_main
    if kind == "path" and getattr(sys.modules["__main__"], "__file__", "") == where:
        return
    module = types.ModuleType("__mp_main__")
    code = load_main(module, kind, where)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    process = multiprocessing.current_process()
    importing_main = True
    # A script that starts processes otherwise gets multiprocessing's own warning.
    process._inheriting = True  # type: ignore[attr-defined]
    try:
        exec(code, module.__dict__)
    except MainReentered:
        pass
    finally:
        importing_main = False
        del process._inheriting  # type: ignore[attr-defined]


def load_main(module: types.ModuleType, kind: str, where: str) -> types.CodeType:
    """Compile the script at a path, or the module of ``python -m name``."""
    if kind == "path":
        module.__file__ = where
        with open(where, "rb") as file:
            return compile(file.read(), where, "exec")
    import importlib.util

    spec = importlib.util.find_spec(where)
    loader: Any = None if spec is None else spec.loader
    if spec is None or loader is None:
        raise ImportError(f"cannot import the main module {where!r} again")
    module.__file__ = spec.origin
    module.__package__ = spec.parent
    module.__spec__ = spec
    found: types.CodeType = loader.get_code(where)
    return found


# --- here -------------------------------------------------------------------------


class Packing:
    """A job that is pickled when the process starts, and opened late in it."""

    def __init__(self, job: Any, method: str, reason: str) -> None:
        self.job = job
        self.method = method
        self.reason = reason

    def __reduce__(self) -> tuple[type[Package], tuple[Any, ...]]:
        main = find_main()
        try:
            data = bytes(ForkingPickler.dumps(self.job))
        except Exception as exc:
            raise self.explain(exc) from exc
        if b"__main__" not in data:
            return Package, (data, None)
        if main is None and not getattr(sys, "frozen", False):
            raise self.explain(None)
        return Package, (data, main)

    def explain(self, error: Exception | None) -> StartError:
        """The error for an object that can't be sent, which it names."""
        name, value = self.find_culprit()
        why = error or "it is defined in __main__, which is not a file to import"
        return StartError(
            f"{name}: {shown(value)} cannot be sent to a new process ({why}). "
            f"The start method is {self.method!r}: {self.reason}. Define it at the top "
            "level of a module, or pass 'module:attribute' instead, or set "
            "EmbeddedServer.start_method = 'fork'"
        )

    def find_culprit(self) -> tuple[str, Any]:
        """The first part of the job that can't be pickled, or imported again."""
        for name, value in self.parts():
            try:
                data = bytes(ForkingPickler.dumps(value))
            except Exception:
                return name, value
            if b"__main__" in data and find_main() is None:
                return name, value
        return "build_args", self.job.build_args

    def parts(self) -> Iterator[tuple[str, Any]]:
        """What the user gave, with its names."""
        for field, value in self.job._asdict().items():
            if field == "build_args":
                for number, each in enumerate(value):
                    yield f"build_args[{number}]", each
            elif field == "options":
                yield from value.items()
            else:
                yield field, value


def find_main() -> tuple[str, str] | None:
    """Where the program's script can be imported from again, if anywhere."""
    main = sys.modules["__main__"]
    if isinstance(main, ShadowMain):
        main = main.shadowed
    if getattr(sys, "frozen", False):
        return None
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        name: str = spec.name
        return None if name.split(".")[-1] == "__main__" else ("name", name)
    path = getattr(main, "__file__", None)
    if path is None:  # as when the script has run to its end
        path = getattr(getattr(main, "__loader__", None), "path", None)
    if path is None or not os.path.isfile(path):
        return None
    return "path", os.path.abspath(path)


class ShadowMain(types.ModuleType):
    """Stands for ``__main__``, without the two names by which it would be imported.

    So multiprocessing leaves the script alone.
    """

    def __init__(self, main: types.ModuleType) -> None:
        super().__init__("__main__")
        self.shadowed = main

    def __getattr__(self, name: str) -> Any:
        if name == "__file__":
            raise AttributeError(name)
        return getattr(self.shadowed, name)
