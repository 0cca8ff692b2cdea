"""How many of something, as people write it: one is one.

Responsible for: `wording.py`.
Called by: pytest.
"""

from __future__ import annotations

import pytest

from anabranch.wording import counted


@pytest.mark.parametrize(
    ("count", "one", "more", "said"),
    [
        (1, "call", None, "1 call"),
        (0, "call", None, "0 calls"),
        (2000, "call", None, "2,000 calls"),
        (1, "try", "tries", "1 try"),
        (2, "reply", "replies", "2 replies"),
    ],
)
def test_one_is_told_as_one(count: int, one: str, more: str | None, said: str) -> None:
    assert counted(count, one, more) == said
