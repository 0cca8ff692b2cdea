"""The table of docs/spec/README.md says where each rule is kept; whoever moves the code moves the table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs" / "spec" / "README.md").read_text()


def places() -> Iterator[tuple[str, str]]:
    """File and name of each place that the table names."""
    for line in TABLE.splitlines():
        file = None
        for quoted in re.findall(r"`([^`]+)`", re.sub(r"\(`[^)]*\)", "", line)):
            if quoted.endswith(".py"):
                file = quoted
            elif file is not None:
                yield file, quoted.split("(")[0].rpartition(".")[2]


def test_the_table_names_places() -> None:
    assert len(list(places())) > 40


@pytest.mark.parametrize(("file", "name"), sorted(set(places())))
def test_a_rule_is_kept_where_the_table_says(file: str, name: str) -> None:
    code = (ROOT / "worker" / "anabranch" / file).read_text()
    assert re.search(rf"\b(def|class) {name}\b|\b{name}\b *[:=]", code), f"{file} has no {name}"
