"""The dependency order that DESIGN promises, as imports: who may know what.

Responsible for: libraries that are imported in one place, and the roles that do not know each other. Called by: pytest.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import anabranch

PACKAGE = Path(anabranch.__file__).parent
HOMES = {
    "prometheus_client": {"metrics.py"},
    "aiolimiter": {"limits.py"},
    "anthropic": {"agent/model/anthropic_model.py"},
    "opentelemetry": {"tracing.py"},
    "cryptography": {"security/seals.py"},
    "obstore": {"store.py", "keys.py"},
}
PURE = ("meters.py", "health.py")
"""They know nothing of ours that does I/O, and no library."""


@cache
def imported(file: Path) -> frozenset[str]:
    names = set[str]()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
    return frozenset(names)


def who_imports(library: str) -> set[str]:
    files = PACKAGE.rglob("*.py")
    found = (file for file in files if any(name.split(".")[0] == library for name in imported(file)))
    return {file.relative_to(PACKAGE).as_posix() for file in found}


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_in_its_place_alone(library: str) -> None:
    assert who_imports(library) == HOMES[library]


def test_only_the_kafka_folder_knows_kafkas_client() -> None:
    assert {name.split("/")[0] for name in who_imports("aiokafka")} == {"kafka"}


@pytest.mark.parametrize(("role", "other"), [("agent", "tools"), ("tools", "agent")])
def test_the_roles_do_not_know_each_other(role: str, other: str) -> None:
    for file in (PACKAGE / role).rglob("*.py"):
        assert not [name for name in imported(file) if name.startswith(f"anabranch.{other}")], file


@pytest.mark.parametrize(("role", "other"), [("agent_role", "tools"), ("tool_role", "agent")])
def test_who_starts_one_role_is_spared_the_other_and_what_few_need(role: str, other: str) -> None:
    """A start is a part of a second of CPU, which a fleet that grows under load has little of."""
    code = f"import anabranch.{role}, sys; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert f"anabranch.{role}" in found
    assert not [name for name in found if name.split(".")[:2] == ["anabranch", other]]
    assert not {"anthropic", "aiohttp", "obstore", "opentelemetry", "cryptography"} & set(found)


@pytest.mark.parametrize("folder", ["agent", "tools", "kafka"])
def test_nobody_below_the_runtime_knows_who_watches(folder: str) -> None:
    above = {"anabranch.roles", "anabranch.agent_role", "anabranch.tool_role", "anabranch.runtime", "anabranch.watch"}
    above |= {"anabranch.probes", "anabranch.metrics", "anabranch.health", "anabranch.tracing"}
    for file in (PACKAGE / folder).rglob("*.py"):
        assert not above & set(imported(file)), file


@pytest.mark.parametrize("name", PURE)
def test_a_pure_file_imports_nothing_but_the_standard_library(name: str) -> None:
    assert not [found for found in imported(PACKAGE / name) if found.split(".")[0] in ("anabranch", *HOMES)]
