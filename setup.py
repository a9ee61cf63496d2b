"""The optional compiled twin; everything else about the package is pyproject.toml's.

``DEGU_BUILD_EXTENSION`` says what to do about ``degu._wire``, ``degu._exchange`` and
``degu._pool``, which there are all of or none:

* ``yes``: they have to compile, or the build fails;
* ``no``: they are left out, for a wheel that runs anywhere;
* unset: they are compiled where a C compiler is at hand, and done without elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = ["degu/_wire.pyx", "degu/_exchange.pyx", "degu/_pool.pyx"]


class BuildTogether(build_ext):
    """Leaves nothing of an optional twin of which a part could not be built."""

    def build_extensions(self) -> None:
        """Build all; where one is missing then, remove the others."""
        super().build_extensions()
        built = [Path(self.get_ext_fullpath(one.name)) for one in self.extensions]
        if not all(path.exists() for path in built):
            for path in built:
                path.unlink(missing_ok=True)


def build_extensions() -> list[Extension]:
    """What there is to compile, by the environment and the files at hand."""
    wanted = os.environ.get("DEGU_BUILD_EXTENSION", "")
    if wanted not in ("", "yes", "no"):
        raise SystemExit(f"DEGU_BUILD_EXTENSION: expected yes or no, got {wanted!r}")
    if wanted == "no":
        return []
    here = Path(__file__).parent
    missing = [source for source in SOURCES if not (here / source).exists()]
    if missing:
        if wanted == "yes":
            raise SystemExit(f"DEGU_BUILD_EXTENSION=yes, but there is no {missing[0]}")
        return []
    from Cython.Build import cythonize

    modules = [
        Extension(source.removesuffix(".pyx").replace("/", "."), [source])
        for source in SOURCES
    ]
    extensions = cythonize(modules, language_level=3)
    for extension in extensions:
        # Only now, since cythonize() makes new objects and forgets this one.
        extension.optional = wanted == ""
    return list(extensions)


setup(ext_modules=build_extensions(), cmdclass={"build_ext": BuildTogether})
