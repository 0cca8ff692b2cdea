"""The metadata of a queue partition's commit: which offsets above the committed one are done, or begun. PURE.

Finished calls leave gaps, so a commit is a set: all below the offset, and those named here. *Begun* are the
at-most-once calls that may have been started. A set is written as run lengths or as a bitmap, whichever is
shorter. Kafka takes 4,096 bytes; `FULL` of them is when intake has to pause.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from itertools import groupby
from typing import Final

from anabranch.errors import WireError
from anabranch.values import frozen

FULL: Final = 3000
"""Bytes that may be used."""
PAUSE: Final = 2250
"""Bytes from which on nothing more is taken in."""
_VERSION: Final = "1"


@frozen()
class ShareMark:
    """What a home's owner leaves of a budget (a hash of its name; `*` for all that are not named).

    `due_ms` is epoch milliseconds: when the next call is due, or 0 if nothing is said of it; of `*`, since when they
    have not been used. `places` are held by its calls until the epoch second `until`.
    """

    budget: str
    due_ms: int = 0
    places: int = 0
    until: int = 0


@frozen()
class Marks:
    """Offsets above the committed one. `finished` are over; `begun` may have been started, and must not be again.

    `held` are serial keys that a former owner goes on with, each until an epoch second.
    """

    finished: frozenset[int] = frozenset()
    begun: frozenset[int] = frozenset()
    held: tuple[tuple[str, int], ...] = ()
    shares: tuple[ShareMark, ...] = ()


def lying_below(end: int, marks: Marks) -> Marks:
    """What counts of them where a queue ends at `end`: of calls that are yet to come none is over, or was started.

    Keys and shares are those of calls that run, wherever these lay.
    """
    if all(offset < end for offsets in (marks.finished, marks.begun) for offset in offsets):
        return marks
    finished, begun = (frozenset(at for at in offsets if at < end) for offsets in (marks.finished, marks.begun))
    return Marks(finished, begun, marks.held, marks.shares)


def write(low: int, marks: Marks) -> str:
    """The metadata for a commit at `low`. Offsets below `low` are left out: the commit itself says them."""
    held = ",".join(f"{key}={until:x}" for key, until in marks.held)
    parts = [_pack(low, marks.finished), _pack(low, marks.begun), held]
    if marks.shares:
        parts.append(",".join(f"{s.budget}={s.due_ms:x}.{s.places:x}.{s.until:x}" for s in marks.shares))
    return " ".join((_VERSION, *parts)) if any(parts) else ""


def read(low: int, metadata: str) -> Marks:
    """The marks of a commit at `low`. Raises `WireError` for what another version wrote."""
    if not metadata:
        return Marks()
    version, *parts = metadata.split(" ")
    if version != _VERSION or len(parts) not in (3, 4):
        raise WireError(f"commit metadata {metadata[:40]!r} is of another version")
    try:
        shares = _read_shares(parts[3]) if len(parts) == 4 else ()
        return Marks(_unpack(low, parts[0]), _unpack(low, parts[1]), _read_held(parts[2]), shares)
    except ValueError as error:
        raise WireError(f"commit metadata {metadata[:40]!r} cannot be read: {error}") from None


def shares_in(metadata: str) -> tuple[ShareMark, ...]:
    """The shares that a commit names, and nothing else of it; none, if it cannot be read."""
    version, *parts = metadata.split(" ")
    try:
        return _read_shares(parts[3]) if version == _VERSION and len(parts) == 4 else ()
    except ValueError:
        return ()


def _read_held(text: str) -> tuple[tuple[str, int], ...]:
    pairs = (entry.split("=") for entry in text.split(",")) if text else ()
    return tuple((key, int(until, 16)) for key, until in pairs)


def _read_shares(text: str) -> tuple[ShareMark, ...]:
    found: list[ShareMark] = []
    for entry in text.split(","):
        budget, numbers = entry.split("=")
        due_ms, places, until = (int(number, 16) for number in numbers.split("."))
        found.append(ShareMark(budget, due_ms, places, until))
    return tuple(found)


def _pack(low: int, offsets: Iterable[int]) -> str:
    places = sorted(offset - low for offset in offsets if offset >= low)
    if not places:
        return ""
    return min(_as_runs(places), _as_bitmap(places), key=len)


def _unpack(low: int, text: str) -> frozenset[int]:
    if not text:
        return frozenset()
    places = _from_runs(text[1:]) if text[0] == "r" else _from_bitmap(text[1:])
    return frozenset(low + place for place in places)


def _as_runs(places: list[int]) -> str:
    """Alternating lengths of gaps and runs, from the committed offset on, in base 36."""
    lengths: list[int] = []
    end = 0
    for _, group in groupby(enumerate(places), key=lambda pair: pair[1] - pair[0]):
        run = [place for _, place in group]
        lengths += [run[0] - end, len(run)]
        end = run[-1] + 1
    return "r" + ".".join(_base36(length) for length in lengths)


def _from_runs(text: str) -> Iterable[int]:
    lengths = [int(part, 36) for part in text.split(".")]
    if len(lengths) % 2 or sum(lengths) > 1_000_000:
        raise ValueError("the run lengths make no sense")
    place = 0
    for gap, run in zip(lengths[::2], lengths[1::2], strict=True):
        yield from range(place + gap, place + gap + run)
        place += gap + run


def _as_bitmap(places: list[int]) -> str:
    raw = bytearray(places[-1] // 8 + 1)
    for place in places:
        raw[place >> 3] |= 1 << (place & 7)
    return "m" + base64.b64encode(raw).decode().rstrip("=")


def _from_bitmap(text: str) -> Iterable[int]:
    raw = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    return [8 * index + bit for index, byte in enumerate(raw) for bit in range(8) if byte >> bit & 1]


def _base36(number: int) -> str:
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
        if not number:
            return digits
