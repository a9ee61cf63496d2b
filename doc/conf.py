"""How Sphinx builds these pages: ``make doc``."""

from __future__ import annotations

import builtins
import collections.abc
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

from docutils import nodes  # type: ignore[import-untyped]

import degu

project = "Degu"
author = "The Degu authors"
project_copyright = author
version = release = degu.__version__

extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["_build", "examples"]
# A name in single backquotes is a link where it is something's name, and else code.
# Backticks in docstrings mostly name arguments, which are not to be linked.
default_role = "code"
highlight_language = "python3"

html_theme = "furo"
html_title = f"Degu {release}"
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
# What is said in words where it is used stays a name in the signatures.
_ALIASES = ("Address", "App", "Body", "Chunk", "OnConnect", "OnRefused", "SSLConfig")
autodoc_type_aliases = {name: name for name in _ALIASES}
python_use_unqualified_type_names = True

# Every reference has to lead somewhere. What belongs to Python itself does so on
# a machine that reaches docs.python.org and asks for it; elsewhere it stays plain.
nitpicky = True
if os.environ.get("DEGU_DOC_INTERSPHINX") == "yes":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {"python": ("https://docs.python.org/3", None)}

_PLAIN = {*dir(builtins), *typing.__all__, *collections.abc.__all__}
_MODULES = "|".join(re.escape(name) for name in sorted(sys.stdlib_module_names))
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:.*", r"(.+\.)?_\w+"),
    ("py:.*", "|".join(re.escape(name) for name in sorted(_PLAIN))),
    ("py:.*", rf"({_MODULES})(\..+)?"),
    ("py:.*", "|".join(_ALIASES)),
    ("py:.*", r"Kept|(degu\.base\.)?Pool|degu\.base\.(Read|Write)File"),
    ("py:.*", r"degu\.limits\.Option|trustme\.CA"),
]


def setup(app: Any) -> None:
    """Signatures and bases as a reader needs them."""
    app.connect("autodoc-process-signature", _name_aliases)
    app.connect("autodoc-process-bases", _hide_bases)
    app.connect("doctree-read", _hide_no_bases)


def _name_aliases(
    app: Any, what: str, name: str, obj: Any, options: Any, *parts: str | None
) -> tuple[str | None, ...]:
    """An alias in a union loses its name to what Sphinx puts in its place."""
    pattern = r"TypeAliasForwardRef\('(\w+)'\)"
    return tuple(part and re.sub(pattern, r"\1", part) for part in parts)


def _hide_bases(app: Any, name: str, obj: Any, options: Any, bases: list[Any]) -> None:
    public = [base for base in bases if not base.__name__.startswith("_")]
    bases[:] = [base for base in public if base is not object]


def _hide_no_bases(app: Any, doctree: nodes.document) -> None:
    for paragraph in list(doctree.findall(nodes.paragraph)):
        if paragraph.astext().strip() == "Bases:":
            paragraph.parent.remove(paragraph)


# Figures that would be wrong by tomorrow are measured each time.
_HERE = Path(__file__).parent
(_HERE / "figures.inc").write_text(
    subprocess.run(
        [sys.executable, _HERE / "figures.py"], check=True, stdout=subprocess.PIPE
    ).stdout.decode()
)
