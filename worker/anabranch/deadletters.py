"""Dead letters: what could not be read or run, kept as it came, with the reason and where it was found."""

from __future__ import annotations

from typing import Final

from anabranch.about import place_of
from anabranch.codec import Outgoing, Record
from anabranch.topics import Namespace

KEPT: Final = 64 * 1024


def dead_letter(namespace: Namespace, record: Record, reason: str) -> Outgoing:
    """The record for `dead.letters`: original key and headers, the first 64 kB of the value."""
    headers = [(name, value or b"") for name, value in record.headers if name not in ("ce_reason", "ce_origin")]
    kept, room = [], KEPT
    for name, raw in headers:  # headers count too: a record may be all header
        room -= len(name) + len(raw)
        if room >= 0:
            kept.append((name, raw))
    ours = [("ce_reason", reason[:2000].encode("utf-8", "replace")), ("ce_origin", place_of(record).encode())]
    key = record.key[:KEPT] if record.key is not None else None
    nothing = b"" if key is None else None  # aiokafka sends no record that has neither key nor value
    value = record.value[:KEPT] if record.value is not None else nothing
    return Outgoing(namespace.dead_letters, key, value, (*kept, *ours))
