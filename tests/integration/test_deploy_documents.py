"""The documents about deploying: that what they link to and name is there.

Responsible for: links between documents, and our commands in them. Must never: run what they say.
Called by: pytest.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.support.chart import CHART, ROOT
from tests.support.commands import parsed

DOCUMENTS = [ROOT / "docs" / "deploy.md", ROOT / "docs" / "runbook.md", CHART / "README.md"]


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_there_are(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", document.read_text())

    assert links
    for path, heading in links:
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), path
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
            assert heading in map(slug, headings), f"{path}#{heading}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_our_commands_are_such_as_there_are(document: Path) -> None:
    """With the options that they are given there; what is in capitals stands for something."""
    text = document.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    code = [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text)
    found = re.findall(r"(?:^|[ -])anabranch ((?:[a-z]+ ?)+[^#\n]*)", "\n".join(code), flags=re.MULTILINE)

    for words in found:
        if words.split()[0] not in {"worker", "topics"} or len(words.split()) > 2:
            parsed(re.sub(r'"[^"]*"', "TEXT", words).split())
