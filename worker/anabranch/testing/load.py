"""Finds the script that a command line names: `module:attribute` or `path.py[:attribute]`.

It imports the user's module and does nothing else with it. `python -m anabranch.testing` calls it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import cast

from anabranch.errors import AnabranchError, ConfigError
from anabranch.testing.server import Script

DEFAULT_ATTRIBUTE = "model"


def load_script(target: str) -> Script:
    """The script named by `target`; the attribute is `model` unless given.

    Raises:
        ConfigError: there is no such file, module or attribute, it fails when it is imported, or it is no script.
    """
    place, attribute = _split(target)
    with _imported(place):
        module = _from_file(Path(place)) if place.endswith(".py") else _from_name(place)
    try:
        script = getattr(module, attribute)
    except AttributeError as error:
        raise ConfigError(f"{place} has no {attribute!r}: name the script as {place}:NAME") from error
    if not callable(script) and not isinstance(script, list | tuple):
        raise ConfigError(f"{target} is {script!r}: a script is a function of the request or a list of replies")
    return cast(Script, script)


@contextmanager
def _imported(place: str) -> Iterator[None]:
    """Says in which line the import failed: a traceback would be mostly ours."""
    try:
        yield
    except AnabranchError:
        raise
    except SyntaxError as error:
        raise ConfigError(f"{place} is no Python: {error.msg} ({error.filename}:{error.lineno})") from error
    except (Exception, SystemExit) as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"importing {place} failed: {type(error).__name__}: {error} ({at.filename}:{at.lineno})"
        ) from error


def _split(target: str) -> tuple[str, str]:
    place, colon, attribute = target.rpartition(":")
    if not colon or attribute.endswith(".py"):
        return target, DEFAULT_ATTRIBUTE
    return place, attribute or DEFAULT_ATTRIBUTE


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r}: name an existing script")
    _importable(path.resolve().parent)  # what lies beside the script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{str(path)!r} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickle look their module up by name
    spec.loader.exec_module(module)
    return module


def _from_name(name: str) -> ModuleType:
    _importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        raise ConfigError(f"there is no module {name!r}: use `module:attribute` or `path.py`") from error


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
