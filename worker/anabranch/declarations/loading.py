"""Finds the App that a command names: `module`, `module:attribute`, `path.py` or `path.py:attribute`.

Imports the user's code, as Python would: the current folder (of a module) or the file's folder comes first on
`sys.path`, and stays there, so that child processes find the tools too. Must never import a second copy of a
module. Called by the commands, once a process.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

from anabranch.app import App
from anabranch.errors import AnabranchError, AppNotFound

DEFAULT_ATTRIBUTE = "app"


def load_app(reference: str) -> App:
    """The App at `reference`. Raises `AppNotFound`, or the `DefinitionError` of what is declared wrongly there."""
    target, attribute = _split(reference)
    module = _import_file(target, reference) if target.endswith(".py") else _import_module(target, reference)
    found: object = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise AppNotFound(f"{reference!r}: {target} has no attribute {attribute!r}{_others(module)}") from None
    if not isinstance(found, App):
        raise AppNotFound(
            f"{reference!r}: {attribute!r} in {target} is a {type(found).__name__}, not an App{_others(module)}"
        )
    return found


def _split(reference: str) -> tuple[str, str]:
    target, colon, attribute = reference.strip().rpartition(":")
    if not colon:
        target, attribute = attribute, DEFAULT_ATTRIBUTE
    if not target or not all(name.isidentifier() for name in attribute.split(".")):
        raise AppNotFound(f"{reference!r} names no App: write module:attribute or path.py, such as shop.app:app")
    return target, attribute


def _others(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, App)]
    if names:
        return f"; it has the App {', '.join(map(repr, names))}: name it after a colon"
    return "; define one there, such as `app = App('shop')`"


def _import_module(name: str, reference: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise AppNotFound(f"{reference!r}: {name!r} is neither a module's name nor a file that ends in .py")
    _put_first(Path.cwd())
    return _import(name, reference)


def _import_file(name: str, reference: str) -> ModuleType:
    path = Path(name).resolve()
    if not path.is_file():
        raise AppNotFound(f"{reference!r}: there is no file {path}")
    if not path.stem.isidentifier():
        raise AppNotFound(f"{reference!r}: {path.name} cannot be imported: rename it to letters, digits and '_'")
    if path.stem in sys.modules:
        _check_file(sys.modules[path.stem], path, reference)
    _put_first(path.parent)
    module = _import(path.stem, reference)
    _check_file(module, path, reference)
    return module


def _check_file(module: ModuleType, path: Path, reference: str) -> None:
    """A name stands for one module in a process, and Python's built-in ones come before any file."""
    if not _is_file(module, path):
        raise AppNotFound(
            f"{reference!r}: the name {path.stem!r} is already that of the module at "
            f"{getattr(module, '__file__', None) or 'Python itself'}, so {path} cannot be loaded: rename the file"
        )


def _is_file(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve() == path


def _put_first(folder: Path) -> None:
    """Also if it is on the path already: behind another folder with a module of that name it would be of no use."""
    entry = str(folder)
    if sys.path[:1] != [entry]:
        sys.path.insert(0, entry)
    importlib.invalidate_caches()


def _import(name: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except AnabranchError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise AppNotFound(
                f"{reference!r}: there is no module {error.name!r} in {Path.cwd()} or among the installed packages"
            ) from None
        raise AppNotFound(_failed(name, reference, error)) from error
    except (Exception, SystemExit) as error:
        raise AppNotFound(_failed(name, reference, error)) from error


def _failed(name: str, reference: str, error: BaseException) -> str:
    """Says in which line of the user's code the import failed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    last = frames[-1] if len(frames) > 1 else None
    if isinstance(error, SyntaxError):
        where = f" ({error.filename}:{error.lineno})"
    else:
        where = f" ({last.filename}:{last.lineno})" if last else ""
    return f"{reference!r}: importing {name!r} failed: {type(error).__name__}: {error}{where}"
