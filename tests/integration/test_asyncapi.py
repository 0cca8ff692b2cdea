"""The AsyncAPI document, read by the official parser.

Responsible for: that `schemas/asyncapi.json` is valid AsyncAPI and that all of its references lead somewhere.
Must never: check the document against the code; `tests/unit/test_schemas.py` does.
Called by: pytest.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support.node import node_for

from anabranch.contract.records import KINDS

pytestmark = pytest.mark.timeout(300)  # the parser may have to be fetched first

SCHEMAS = Path(__file__).parents[2] / "schemas"
VALIDATOR = SCHEMAS / "validator"


@pytest.fixture(scope="module")
def node() -> str:
    return node_for(VALIDATOR)


def validate(node: str, document: Path) -> subprocess.CompletedProcess[str]:
    command = [node, "validate.mjs", str(document)]
    return subprocess.run(command, cwd=VALIDATOR, capture_output=True, text=True, check=False)


def copy_of_the_schemas(target: Path) -> Path:
    for path in SCHEMAS.glob("*.json"):
        shutil.copy(path, target)
    return target / "asyncapi.json"


def test_the_document_is_valid_and_has_every_kind_of_record(node: str) -> None:
    done = validate(node, SCHEMAS / "asyncapi.json")

    assert done.returncode == 0, done.stdout + done.stderr
    *remarks, summary = done.stdout.splitlines()
    assert [remark for remark in remarks if not remark.startswith("Information ")] == []
    told = json.loads(summary)
    assert told["asyncapi"] == "3.0.0"
    assert told["messages"] == sorted([kind.name for kind in KINDS] + ["dead.letter"])
    assert "{namespace}.tool.calls.{queue}" in told["channels"]
    assert len(told["channels"]) == 8


def test_a_reference_that_leads_nowhere_is_found(node: str, tmp_path: Path) -> None:
    document = copy_of_the_schemas(tmp_path)
    (tmp_path / "tool-call.json").unlink()

    done = validate(node, document)

    assert done.returncode == 1
    assert "tool-call.json" in done.stdout


def test_what_the_specification_does_not_know_is_found(node: str, tmp_path: Path) -> None:
    document = copy_of_the_schemas(tmp_path)
    document.write_text(document.read_text().replace('"action": "send"', '"action": "shout"', 1))

    done = validate(node, document)

    assert done.returncode == 1
    assert "operations" in done.stdout


@pytest.mark.parametrize("folder", [VALIDATOR, SCHEMAS.parent / "tests" / "tools" / "strimzi"])
def test_the_lock_file_names_no_host(folder: Path) -> None:
    lock = json.loads((folder / "package-lock.json").read_text())
    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []
    assert all("integrity" in package for name, package in lock["packages"].items() if name)
