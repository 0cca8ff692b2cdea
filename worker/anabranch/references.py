"""Names of what lies in the store: the hash of the bytes and their number, `sha256:<hex>;<size>`. PURE.

A reference is all that a message may say of an object: where it lies follows from the namespace, the tenant and
the hash (`store.py`), never from anything that somebody sent. So a reference can be checked against the bytes, and
is worth nothing to who does not read in that namespace and for that tenant.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, NamedTuple

from anabranch.errors import StoreError
from anabranch.fields import REFERENCE_PATTERN

_REFERENCE: Final = re.compile(REFERENCE_PATTERN, re.ASCII)
_LONGEST: Final = 100


class Named(NamedTuple):
    """What a reference says: the sha256 of the bytes in hex, and how many there are."""

    digest: str
    size: int


def name_of(data: bytes) -> str:
    """The reference of these bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()};{len(data)}"


def is_one(text: str) -> bool:
    """Whether it is a reference; a seal, which may stand in the same place, is none."""
    return len(text) < _LONGEST and _REFERENCE.fullmatch(text) is not None


def read(reference: str) -> Named:
    """What `reference` says. Raises `StoreError` if it is none."""
    if _REFERENCE.fullmatch(reference) is None:
        raise StoreError(f"{reference[:100]!r} is no reference: it is sha256:<64 hex digits>;<bytes>")
    digest, _, size = reference.removeprefix("sha256:").partition(";")
    return Named(digest, int(size))


def size_of(reference: str) -> int:
    """The bytes of the object, as the reference says."""
    return read(reference).size
