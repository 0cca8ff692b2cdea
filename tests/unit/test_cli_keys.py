"""`anabranch keys`: tenants that have a key, and tenants that are forgotten.

Responsible for: `cli/keys.py`, with keys in a folder of the test.
Must never: need a broker.
Called by: pytest.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from anabranch.cli import anabranch

Run = Callable[..., Result]
MASTER = base64.b64encode(b"m" * 32).decode()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    environment = environment_of(tmp_path)
    return lambda *words, **more: CliRunner().invoke(anabranch, ["keys", *words], **{"env": environment, **more})


def environment_of(folder: Path) -> dict[str, str]:
    found = {"ANABRANCH_NAMESPACE": "shop", "ANABRANCH_KEYS": folder.as_uri()}
    return found | {"ANABRANCH_KEYS_MASTER": f"m1:{MASTER}"}


def listed(run: Run) -> dict[str, bool]:
    return {each["tenant"]: each["forgotten"] for each in json.loads(run("list", "--json").stdout)}


def test_a_tenant_that_is_forgotten_stays_so(run: Run) -> None:
    for tenant in ("acme", "umbrella"):
        assert run("make", tenant).exit_code == 0
    assert "is forgotten" in run("forget", "acme", "--yes").stderr
    assert listed(run) == {"acme": True, "umbrella": False}
    assert "forgotten already" in run("forget", "acme").stderr
    assert "or is forgotten" in run("make", "acme").stderr
    assert listed(run)["acme"] is True


def test_whoever_does_not_say_yes_deletes_nothing(run: Run) -> None:
    run("make", "acme")
    refused = run("forget", "acme", input="n\n")
    assert refused.exit_code == 1
    assert "the key of tenant acme is not deleted" in str(refused.exception)
    assert listed(run) == {"acme": False}
    run("forget", "acme", input="y\n")
    assert listed(run) == {"acme": True}


def test_a_tenant_that_nobody_knows_is_not_forgotten_by_mistake(run: Run) -> None:
    found = run("forget", "acmee", "--yes")
    assert (found.exit_code, "has no key" in str(found.exception)) == (1, True)
    assert listed(run) == {}
    assert run("forget", "a/b").exit_code == 2


def test_no_key_is_made_with_another_master_key_than_the_namespace_has(run: Run, tmp_path: Path) -> None:
    assert run("make", "acme").exit_code == 0
    other = base64.b64encode(b"o" * 32).decode()
    for masters, told in ((f"m2:{other}", "with the master key 'm1'"), (f"m1:{other}", "does not open")):
        found = run("make", "umbrella", env={**environment_of(tmp_path), "ANABRANCH_KEYS_MASTER": masters})
        assert (found.exit_code, told in str(found.exception)) == (1, True)
    assert listed(run) == {"acme": False}
    both = {**environment_of(tmp_path), "ANABRANCH_KEYS_MASTER": f"m2:{other} m1:{MASTER}"}
    assert run("make", "umbrella", env=both).exit_code == 0


def test_no_key_is_printed(run: Run, tmp_path: Path) -> None:
    run("make", "acme")
    wrapped = json.loads((tmp_path / "shop" / "tenant=acme").read_bytes())["wrapped"]
    printed = run("list").output + run("list", "--json").output
    assert "acme" in printed
    assert wrapped not in printed
    assert MASTER not in printed
