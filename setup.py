"""The optional compiled twin; everything else about the package is pyproject.toml's.

``DEGU_BUILD_EXTENSION`` says what to do about ``degu._wire``:

* ``yes``: it has to compile, or the build fails;
* ``no``: it is left out, for a wheel that runs anywhere;
* unset: it is compiled where a C compiler is at hand, and done without elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import Extension, setup

SOURCE = "degu/_wire.pyx"


def build_extensions() -> list[Extension]:
    """What there is to compile, by the environment and the files at hand."""
    wanted = os.environ.get("DEGU_BUILD_EXTENSION", "")
    if wanted not in ("", "yes", "no"):
        raise SystemExit(f"DEGU_BUILD_EXTENSION: expected yes or no, got {wanted!r}")
    if wanted == "no":
        return []
    if not Path(__file__).with_name("degu").joinpath("_wire.pyx").exists():
        if wanted == "yes":
            raise SystemExit(f"DEGU_BUILD_EXTENSION=yes, but there is no {SOURCE}")
        return []
    from Cython.Build import cythonize

    extensions = cythonize([Extension("degu._wire", [SOURCE])], language_level=3)
    for extension in extensions:
        # Only now, since cythonize() makes new objects and forgets this one.
        extension.optional = wanted == ""
    return list(extensions)


setup(ext_modules=build_extensions())
