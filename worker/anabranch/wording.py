"""Texts for people: numbers in them (`1 call`, `2,000 calls`), and those of others, so that they can be written. PURE.

Must never: be used by the fold, whose texts are what the log of years ago made them. Called by: whoever says how many,
or repeats what somebody else has said.
"""

from __future__ import annotations


def counted(count: int, one: str, more: str | None = None) -> str:
    """So many of what is called `one`, of several `more`: by default with an s."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def writable(text: str) -> str:
    """`text` as UTF-8 can hold it. Python's strings may hold half a character (a lone surrogate): it becomes a `?`."""
    return text.encode("utf-8", "replace").decode()
