"""The documents say what the code does, as far as that can be seen without running it.

Responsible for: links, commands, metrics, files of the package, settings with their defaults, and what the log says.
Must never: run a command. The tables of docs/metrics.md, docs/wire.md, docs/security.md (grants) and the chart's README
have tests of their own. Called by: pytest.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
from tests.support.commands import parsed

from anabranch import __all__, environment, errors, events
from anabranch.agent.telemetry.meters import AgentMeters
from anabranch.cli import anabranch as program
from anabranch.client import Client, Run
from anabranch.config import Settings
from anabranch.declarations.declared import Declared, RemoteOptions
from anabranch.tools.meters import ToolMeters
from anabranch.watch import Build

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "worker" / "anabranch"
README, DOCS = ROOT / "README.md", ROOT / "docs"
SETTINGS = [DOCS / f"{name}.md" for name in ("operations", "security", "observability")]
"""Where each setting is told of."""
DOCUMENTS = [
    README, ROOT / "CHANGELOG.md", ROOT / "helm/anabranch/README.md", ROOT / "examples/README.md",
    *sorted(DOCS.rglob("*.md")),
]  # fmt: skip
SIZES = {"kB": 1024, "MB": 1024**2, "days": 86_400}

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


# --- links and names ----------------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@each_document
def test_links_lead_to_files_and_headings_that_there_are(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)

    for path, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), path
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
            assert heading in map(slug, headings), f"{path}#{heading}"


@each_document
def test_files_of_the_package_are_where_they_are_said_to_be(document: Path) -> None:
    for file in re.findall(r"`((?:agent|tools|kafka|cli|tests|docs|schemas)/[\w./-]*\.\w+)`", document.read_text()):
        assert (PACKAGE / file).exists() or (ROOT / file).exists(), file


@each_document
def test_metrics_are_such_as_there_are(document: Path) -> None:
    known = {meter.name for meters in (Build(), AgentMeters(), ToolMeters("q")) for meter in meters.all()}

    assert set(re.findall(r"\banabranch_[a-z_]+\b", document.read_text())) <= known


# --- commands and code --------------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of ours; what is quoted stands for something, of alternatives the first is taken."""
    blocks = re.findall(r"```sh\n(.*?)```|((?:^    .+\n)+)", text, flags=re.DOTALL | re.MULTILINE)
    code = [line for block in blocks for line in "".join(block).splitlines()] + re.findall(r"`([^`\n]+)`", text)
    for line in code:
        for words in re.findall(r"(?:^|[ -])(?<!--only )anabranch (?!import )((?:[a-z]+(?: |$))+[^#\n]*)", line):
            yield re.sub(r'"[^"]*"', "TEXT", re.sub(r"\|\S+", "", words)).split()


@each_document
def test_our_commands_are_such_as_there_are(document: Path) -> None:
    """With the options that they are given there. In a sentence the rest may be left out."""
    for words in commands(document.read_text()):
        if len(words) > 1 or not isinstance(program.get_command(click.Context(program), words[0]), click.Group):
            with suppress(click.MissingParameter):
                parsed(words)


def python_of_the_readme() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_what_the_readme_declares_can_be_declared() -> None:
    declaring = [block for block in python_of_the_readme() if "app.agent(" in block]
    names: dict[str, Any] = {}

    for block in declaring:
        exec(compile(block, "README.md", "exec", dont_inherit=True), names)
    assert len(declaring) == 2
    names["app"].check()


def test_what_the_readme_imports_and_matches_is_there() -> None:
    matched = 0
    for block in python_of_the_readme():
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):  # into nothing: what is not there is an error
                exec(compile(ast.Module([node], []), "README.md", "exec"))
            if isinstance(node, ast.MatchClass) and isinstance(node.cls, ast.Name):
                matched += 1
                assert set(node.kwd_attrs) <= set(dir(getattr(events, node.cls.id)))
    assert matched > 3


def test_errors_that_the_client_is_said_to_raise_can_be_imported_by_its_users() -> None:
    said = " ".join(method.__doc__ or "" for kind in (Client, Run) for method in vars(kind).values())
    named = set(re.findall(r"`([A-Z]\w+)`", said)) & set(vars(errors))

    assert {"StoreError", "Forbidden", "RunFailed"} <= named <= set(__all__)


def test_the_page_on_tools_has_every_keyword_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)`( \*)? \| `(.+?)` \|", (DOCS / "tools.md").read_text(), flags=re.MULTILINE)

    assert {name: ast.literal_eval(default) for name, _, default in rows} == vars_of(Declared())
    assert {name for name, marked, _ in rows if not marked} == RemoteOptions.__annotations__.keys() | {"queue"}


def vars_of(declared: Declared) -> dict[str, Any]:
    return {item.name: getattr(declared, item.name) for item in fields(declared)}


# --- settings -----------------------------------------------------------------------------------------------------


def settings() -> dict[str, Any]:
    """Each setting by its variable, with its default; `...` for one that is reckoned."""
    known = {}
    for section, kind in environment._sections():
        default = getattr(Settings(), section)
        for item in fields(kind):
            value = getattr(default, item.name) if item.default is not MISSING else ...
            known[environment._variable(section, item.name)] = value
    return known


def told() -> Iterator[tuple[str, str]]:
    """Variables and their defaults: of tables that have a column for these, and in brackets behind a name."""
    for text in map(Path.read_text, SETTINGS):
        yield from re.findall(r"`([A-Z_]+)` \(([^;:)]+)", text)
        for table in re.findall(r"^\| setting \| default .*\n((?:\|.*\n)+)", text, flags=re.MULTILINE):
            for row in table.splitlines():
                cells = row.split("|")
                yield from zip(re.findall(r"`([A-Z_]+)`", cells[1]), cells[2].split(", "), strict=False)


def value_of(text: str, like: Any) -> Any:
    """The value that a default is written as."""
    text = text.strip().strip("`")
    if isinstance(like, bool):
        return {"true": True, "false": False}.get(text, text)
    if isinstance(like, int | float) and (found := re.match(r"(-?[\d.,]+)(?: (kB|MB|days)\b)?", text)):
        return float(found[1].replace(",", "")) * SIZES.get(found[2], 1)
    return None if like is None else text


def test_settings_that_are_told_of_have_the_default_that_is_told() -> None:
    known = settings()
    defaults = {name: text for name, text in told() if known.get(name, ...) is not ...}

    assert {name: value_of(text, known[name]) for name, text in defaults.items()} == {n: known[n] for n in defaults}
    assert {name for name, default in known.items() if isinstance(default, int | float)} <= defaults.keys() | {
        "ANABRANCH_SSL_CHECK_HOSTNAME"
    }


def test_each_setting_is_told_of() -> None:
    said = "".join(map(Path.read_text, SETTINGS))

    assert {name for name in settings() if f"`{name}`" not in said} == set()


@each_document
def test_settings_are_such_as_there_are(document: Path) -> None:
    names = {f"{name}{end}" for name in settings() for end in ("", "_FILE")} | {
        "ANABRANCH_TEST_BOOTSTRAP", "ANABRANCH_DEMO_MODEL",
    }  # fmt: skip

    assert set(re.findall(r"\bANABRANCH_[A-Z_]+\b", document.read_text())) <= names


# --- what the log says --------------------------------------------------------------------------------------------


def text_of(node: ast.AST) -> str | None:
    """A text as it is written, with a line's end for what is put in."""
    if isinstance(node, ast.Constant):
        return re.sub(r"%[.\d]*[a-z]", "\n", node.value) if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "\n" for part in node.values)
    return None


@cache
def texts() -> str:
    files = [ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py")]
    return "\n".join(text for file in files for node in ast.walk(file) if (text := text_of(node)))


def quoted() -> list[str]:
    table = (DOCS / "operations.md").read_text().split("\n| log line |")[1].split("\n\n")[0]
    return [line for row in table.splitlines()[2:] for line in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


@pytest.mark.parametrize("line", quoted())
def test_what_the_log_is_said_to_say_is_in_the_code(line: str) -> None:
    """But for what stands for something: three dots, and letters and words in capitals."""
    parts = [part.strip(" :'") for part in re.split(r"\.\.\.|\b[A-Z]+\b", line)]

    assert [part for part in parts if part not in texts()] == []
