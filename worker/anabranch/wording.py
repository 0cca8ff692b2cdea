"""Numbers in texts for people: `1 call`, `2,000 calls`. PURE.

Must never: be used by the fold, whose texts are what the log of years ago made them. Called by: whoever says how many.
"""

from __future__ import annotations


def counted(count: int, one: str, more: str | None = None) -> str:
    """So many of what is called `one`, of several `more`: by default with an s."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"
