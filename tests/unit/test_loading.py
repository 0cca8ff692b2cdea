"""An App is found by the names that a command takes, and what is wrong with a name is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from anabranch import AppNotFound, DefinitionError
from anabranch.declarations.loading import load_app

APP = (
    "from anabranch import App\napp = App('shop')\nother = App('other')\nclass inner:\n    app = App('inner')\nx = 3\n"
)


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fresh working folder, and what a test imports is forgotten."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: str, content: str = APP) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


@pytest.mark.parametrize(
    ("reference", "namespace"),
    [
        ("shop_mod", "shop"),
        ("shop_mod:app", "shop"),
        ("shop_mod:other", "other"),
        ("shop_mod:inner.app", "inner"),
        ("shop_mod.py", "shop"),
        ("./shop_mod.py:other", "other"),
    ],
)
def test_an_app_is_found_by_module_or_file_and_attribute(reference: str, namespace: str) -> None:
    write("shop_mod.py")
    assert load_app(reference).namespace == namespace


def test_a_module_in_a_package_is_found_from_the_current_folder() -> None:
    write("pack_a/__init__.py", "")
    write("pack_a/tools.py")
    assert load_app("pack_a.tools:app").name == "shop"
    assert sys.path[0] == str(Path.cwd())


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    write("deep/neighbour_a.py")
    write("deep/main_a.py", "from neighbour_a import app\n")
    assert load_app("deep/main_a.py").name == "shop"
    assert sys.path[0] == str(tmp_path / "deep")


def test_a_file_is_imported_under_its_own_name_so_that_child_processes_find_its_functions() -> None:
    write("shop_b.py", APP + "@app.tool(run_in='process')\ndef f(x: int) -> int:\n    'F.'\n    return x\n")
    app = load_app("shop_b.py")
    assert app.tools["f"].function.__module__ == "shop_b"
    app.check()


def test_a_file_loaded_twice_is_the_same_app() -> None:
    write("shop_c.py")
    assert load_app("shop_c.py") is load_app(str(Path("shop_c.py").resolve()))


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("", "names no App"),
        (":app", "names no App"),
        ("shop_d:", "names no App"),
        ("shop_d:a-b", "names no App"),
        ("nowhere_d", "no module 'nowhere_d'"),
        ("nowhere_d.sub:app", "no module 'nowhere_d'"),
        ("shop_d.sub:app", "no module 'shop_d.sub'"),
        ("nowhere.py", "there is no file"),
        ("dir/shop_d", "neither a module's name nor a file"),
        ("shop_d:missing", "no attribute 'missing'; it has the App 'app', 'other'"),
        ("shop_d:x", "'x' in shop_d is a int, not an App; it has the App 'app', 'other'"),
        ("empty_d", "no attribute 'app'; define one"),
        ("with-dash.py", "rename it"),
        ("json.py", "name 'json' is already that of the module"),
    ],
)
def test_a_name_that_finds_no_app_is_refused(reference: str, told: str) -> None:
    write("shop_d.py")
    write("empty_d.py", "")
    write("with-dash.py")
    write("json.py")
    with pytest.raises(AppNotFound, match=told) as caught:
        load_app(reference)
    assert repr(reference) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("import nowhere_at_all\n", r"ModuleNotFoundError: No module named 'nowhere_at_all' \(.*broken_e\.py:1\)"),
        ("\n1 / 0\n", r"ZeroDivisionError: .*broken_e\.py:2"),
        ("def (\n", r"SyntaxError: .*broken_e\.py:1"),
        ("raise SystemExit(3)\n", r"SystemExit: 3 \(.*broken_e\.py:1"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_the_line(content: str, told: str) -> None:
    write("broken_e.py", content)
    for reference in ("broken_e", "broken_e.py"):
        with pytest.raises(AppNotFound, match=told):
            load_app(reference)


def test_a_wrong_declaration_comes_through_as_it_is() -> None:
    write("wrong_f.py", "from anabranch import App\napp = App('shop')\n@app.tool\ndef f(x):\n    'F.'\n")
    with pytest.raises(DefinitionError, match=r"tool f \(.*wrong_f\.py:3\): the parameter 'x' has no type"):
        load_app("wrong_f.py")
