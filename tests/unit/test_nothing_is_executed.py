"""What is in a record is never executed, unpickled, evaluated or followed: the package has nothing to do it with.

Responsible for: looking through every file of the package for calls and imports of that kind, and for the few places
that have a reason. Called by: pytest.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import anabranch
from anabranch.agent.reply.plan import unfit
from anabranch.declarations.schema import check_schema
from anabranch.errors import DefinitionError
from anabranch.specs import ToolSpec

PACKAGE = Path(anabranch.__file__).parent
MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "code", "codeop", "runpy", "yaml", "jsonpickle",
    "tarfile", "zipfile", "shutil", "ctypes", "telnetlib", "ftplib", "urllib.request", "xmlrpc", "xml",
    "subprocess", "multiprocessing", "joblib", "pty",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__", "execfile", "breakpoint"}
METHODS = {"unpack_archive", "extractall", "urlopen", "Unpickler"}
OF_OS = {"system", "popen", "startfile", "posix_spawn"}
"""And all of `os` that begins with exec or spawn."""
HARMLESS_PICKLE = {"dumps", "PicklingError"}
ALLOWED = {
    # Whoever starts a worker names its App; nothing of a record comes here.
    ("declarations/loading.py", "import_module"),
    ("testing/load.py", "import_module"),
    # What is loaded when it is used, by a table in the code.
    ("__init__.py", "import_module"),
    ("cli/frame.py", "import_module"),
    # The embedded broker of `dev`: a program of a dependency, with arguments of ours, without a shell.
    ("kafka/embedded.py", "create_subprocess_exec"),
    # Tools in processes: anyio sends function and arguments to our own children through pipes, by pickle.
    ("tools/executor.py", "to_process"),
    # The C library's own allocator is told to give memory back.
    ("memory.py", "ctypes"),
    # Whether a tool's function could be sent so: it is pickled when it is declared, and nothing is unpickled.
    ("app.py", "pickle"),
}
WATCHED = {"import_module", "create_subprocess_exec", "create_subprocess_shell", "to_process"}
"""What has a reason in the places of `ALLOWED`, and in no other."""


def found_in(source: str) -> Iterator[str]:
    """The names in a file that are forbidden, or need a reason."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_forbidden(alias.name))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [alias.name for alias in node.names]
            yield from (module for _ in [0] if node.level == 0 and _is_forbidden(module))
            yield from (name for name in names if name in WATCHED | METHODS or _is_forbidden(f"{module}.{name}"))
        elif isinstance(node, ast.Attribute):
            of = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in WATCHED | METHODS or _is_dangerous(of, node.attr):
                yield node.attr
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in CALLS:
                yield node.func.id
            yield from ("shell" for keyword in node.keywords if keyword.arg == "shell")


def _is_dangerous(of: str, name: str) -> bool:
    if of == "pickle":
        return name not in HARMLESS_PICKLE
    return of == "os" and (name in OF_OS or name.startswith(("exec", "spawn")))


def _is_forbidden(module: str) -> bool:
    return module in MODULES or module.split(".")[0] in MODULES


def test_the_package_has_nothing_to_execute_or_unpack_a_record_with() -> None:
    files = {file.relative_to(PACKAGE).as_posix(): file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py")}
    found = {(name, what) for name, source in files.items() for what in found_in(source)}
    assert found == ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "pickle.loads(body)", "os.execv('x', [])", "from pickle import loads", "import yaml",
        "eval('1')",
        "import os\nos.system('x')", "import subprocess", "from urllib import request", "import urllib.request",
        "exec(body)", "run(x, shell=True)",
        "asyncio.create_subprocess_shell('x')", "from importlib import import_module",
    ],
)  # fmt: skip
def test_what_is_looked_for_is_found(source: str) -> None:
    assert list(found_in(source))


def test_a_schema_that_refers_elsewhere_is_refused_and_not_fetched() -> None:
    elsewhere = {"type": "object", "properties": {"x": {"$ref": "https://elsewhere.invalid/schema.json"}}}
    with pytest.raises(DefinitionError, match="elsewhere"):
        check_schema(elsewhere)
    said = unfit(ToolSpec("t", "io", "", elsewhere), {"x": 1})
    assert said is not None
    assert "elsewhere" in said
