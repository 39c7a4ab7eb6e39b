"""Handlers as arguments of commands: ``package.module:Class`` or ``path/to/file.py:Class``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

import chronicle
from chronicle.errors import BadArgument

if TYPE_CHECKING:
    from types import ModuleType

    from chronicle.hot.handler import Handler

__all__ = ["find_handler"]


def find_handler(text: str) -> type[Handler]:
    """Import a module and return a handler class of it.

    Parameters
    ----------
    text
        ``module:Class`` or ``file.py:Class``; without ``:Class`` the one handler of the module.

    Raises
    ------
    BadArgument
        If the module cannot be imported, or has no such handler; with what to do about it.
    """
    from chronicle.hot.handler import Handler

    place, _, name = text.rpartition(":") if ":" in text else (text, "", "")
    module = _load(place)
    found: dict[str, type[Handler]] = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Handler) and value is not Handler
    }
    own = {key: cls for key, cls in found.items() if cls.__module__ == module.__name__}
    choices = ", ".join(f"{place}:{key}" for key in own or found) or "none"
    if not name:
        if len(own) == 1:
            return next(iter(own.values()))
        raise BadArgument(f"'{text}' names no handler; it has: {choices}")
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    if isinstance(value, Handler):
        return type(value)
    if not (isinstance(value, type) and issubclass(value, Handler)):
        what = "nothing" if value is None else f"a {type(value).__name__}, which is no handler"
        raise BadArgument(f"'{text}' is {what}; handlers there: {choices}")
    return value


def _load(place: str) -> ModuleType:
    # As `python -m` does: what lies here can be imported.
    here = os.getcwd()  # noqa: PTH109
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        if place.endswith(".py"):
            return _load_file(place)
        return importlib.import_module(place)
    except BadArgument:
        raise
    except ModuleNotFoundError as error:
        raise BadArgument(_not_found(place, error.name or "")) from None
    except Exception as error:
        raise BadArgument(_broken(place, error)) from error


def _load_file(place: str) -> ModuleType:
    if not os.path.exists(place):  # noqa: PTH110
        raise BadArgument(f"there is no file '{place}'; check the path")
    # The folder of a script is where its own imports are looked for.
    folder = os.path.dirname(os.path.abspath(place))  # noqa: PTH100, PTH120
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = os.path.basename(place).removesuffix(".py")  # noqa: PTH119
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None  # A path that ends in .py has a loader.
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _not_found(place: str, missing: str) -> str:
    if place == missing or place.startswith(missing + "."):
        return (
            f"there is no module '{missing}' here; run it where the module is, write the path to "
            "the file (strategy.py:Handler), or set PYTHONPATH"
        )
    return f"module '{place}' cannot be imported: it needs '{missing}'; install it, or check it"


def _broken(place: str, error: Exception) -> str:
    # The last line of somebody else's: that this package has raised the error is not the news.
    own = f"{os.path.dirname(chronicle.__file__)}{os.sep}"  # noqa: PTH120
    frames = [f for f in traceback.extract_tb(error.__traceback__) if own not in f.filename]
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    if isinstance(error, SyntaxError):
        where = f" at {error.filename}:{error.lineno}"
    text = str(error) or "no reason was given"
    return (
        f"module '{place}' cannot be imported: {type(error).__name__}{where}: {text}; "
        "put what needs other resources under `if __name__ == '__main__'`"
    )
