"""The app that ``MODULE:APP`` names."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from typing import Any

from degu.cli.command import CommandError
from degu.errors import shown


def parse_app_name(text: str) -> str:
    """Check that it is one; raises `ArgumentTypeError`."""
    if not re.fullmatch(r"[\w.]+:[\w.]+", text):
        raise argparse.ArgumentTypeError(f"expected MODULE:APP, got {text!r}")
    return text


def load_app(name: str, factory: bool = False, wsgi: bool = False) -> Any:
    """The app that ``MODULE:APP`` names. Raises `CommandError`."""
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        app: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise CommandError(f"{module_name} needs a module: {error}") from error
        raise CommandError(f"there is no module {module_name!r} here") from error
    except Exception as error:
        raise CommandError(
            f"importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(app, part):
            raise CommandError(f"{module_name} has no {attribute!r}")
        app = getattr(app, part)
    if factory and callable(app):
        try:
            app = app()
        except Exception as error:
            raise CommandError(
                f"{name}() failed: {type(error).__name__}: {error}"
            ) from error
    if not callable(app):
        raise CommandError(f"{name}: expected an app (a callable), got {shown(app)}")
    if wsgi:
        from degu.wsgi import from_wsgi

        return from_wsgi(app, spool=True)  # whatever it does with chunked bodies
    return app
