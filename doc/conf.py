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
    # Names of types that are said in words where they are used.
    ("py:.*", r"Address|App|Kept|(degu\.base\.)?Pool|degu\.base\.(Read|Write)File"),
    ("py:.*", r"degu\.limits\.Option|trustme\.CA"),
]

# Figures that would be wrong by tomorrow are measured each time.
_HERE = Path(__file__).parent
(_HERE / "figures.inc").write_text(
    subprocess.run(
        [sys.executable, _HERE / "figures.py"], check=True, stdout=subprocess.PIPE
    ).stdout.decode()
)
