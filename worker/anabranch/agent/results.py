"""What a tool's result says: the log keeps it as the bytes that its worker wrote, and they are read when needed. PURE.

Its content stands in it, or in the store, or is sealed. A worker may be somebody else's, so it may be no result at all:
then that is what is told. Called by whoever shows a result, or sends it to the model.
"""

from __future__ import annotations

from typing import Final

from anabranch.bodies import read
from anabranch.errors import WireError
from anabranch.fields import SEALED, Content
from anabranch.log_events import ToolResult

UNREADABLE: Final = "the tool's worker sent a result that cannot be read"
_WITH_CONTENT: Final = (b'{"content":"', b'{"content":[')
"""How the results of our workers begin whose content stands in them: they need not be read to see that."""
_LONGEST_S: Final = 1e9


def result_of(body: bytes) -> ToolResult | None:
    """A tool's result, or None if its worker sent something else."""
    try:
        return _read(body)
    except WireError:
        return None


def unreadable(body: bytes) -> str:
    """What is told in the place of a result that is none, and why it is none."""
    try:
        _read(body)
    except WireError as error:
        return f"{UNREADABLE}: {error}"
    return UNREADABLE


def _read(body: bytes) -> ToolResult:
    result = read(ToolResult, body)
    if [result.content, result.content_ref, result.content_sealed].count(None) != 2:
        raise WireError("it must have one of content, content_ref and content_sealed")
    return result


def result_elsewhere(body: bytes) -> ToolResult | None:
    """A result whose content is not in its body: its `content_ref` or `content_sealed` stands for it."""
    if body.startswith(_WITH_CONTENT) or not (b'"content_ref"' in body or b'"content_sealed"' in body):
        return None
    told = result_of(body)
    return told if told is not None and told.content is None else None


def shown_content(result: ToolResult) -> Content:
    """What people are shown of a result without a look into the store, or a key."""
    if result.content is not None:
        return result.content
    return SEALED if result.content_ref is None else f"(in the store: {result.content_ref})"


def seconds_between(started_at: float, finished_at: float) -> float:
    """How long a call took by its worker's clock; 0 if that is no time that a call takes, or none that JSON has."""
    seconds = float(finished_at - started_at)
    return seconds if 0 <= seconds < _LONGEST_S else 0.0
