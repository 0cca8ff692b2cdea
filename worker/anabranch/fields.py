"""What a field of a message may hold: names, references, seals, JSON, lanes, and the words that mean something.

Types and patterns, and no import of ours. `messages.py` and `log_events.py` are made of them; so is what users declare.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import Field

NAME_PATTERN = r"^[A-Za-z0-9._:-]{1,128}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
NAME_SAID: Final = "1 to 128 of A-Z, a-z, 0-9, '.', '_', ':' and '-'"
_NAME = re.compile(NAME_PATTERN, re.ASCII)
REFERENCE_PATTERN = r"^sha256:[0-9a-f]{64};[0-9]{1,12}$"
Reference = Annotated[str, Field(pattern=REFERENCE_PATTERN)]
"""What lies in the store and not in the record: the hash and the size of its bytes (`references.py`)."""
SEAL_PATTERN = r"^[A-Za-z0-9._-]{1,64};[A-Za-z0-9+/]+={0,2}$"
Seal = Annotated[str, Field(pattern=SEAL_PATTERN)]
"""What only who has the tenant's key can read: the key's id and the ciphertext (`security/seals.py`)."""
Sealed = Annotated[str, Field(pattern=f"{REFERENCE_PATTERN}|{SEAL_PATTERN}")]
"""A seal, or a reference to one."""
SEALED: Final = "(sealed)"
"""What stands where a text would be, for whoever has no key."""

Json = Any  # JSON that is not ours: a model's input, a tool's schema, a user's metadata
Blocks = Annotated[list[dict[str, Json]], Field(fail_fast=True)]
"""The first that is none is told. A record may hold half a million of them, and to find all takes a second."""
Content = str | Blocks
Partition = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

Delivery = Literal["at_least_once", "at_most_once"]
OnError = Literal["return", "abort"]


def says(text: str) -> Any:
    """What the schemas tell of a field."""
    return Field(description=text)


def is_name(text: str) -> bool:
    """Whether `text` can be a run id, a tenant or the name of something."""
    return _NAME.fullmatch(text) is not None


# --- lanes ----------------------------------------------------------------------------------------

Lane = Literal["interactive", "bulk"]
LANES: Final[tuple[Lane, ...]] = ("interactive", "bulk")
_BULK: Final = "bulk."


def life_of(lane: Lane, request_offset: int) -> str:
    """A request's offset, behind its lane's name unless that is `interactive`: the life of the run that it opens."""
    return f"{_BULK}{request_offset}" if lane == "bulk" else str(request_offset)


def lane_of(life: str) -> Lane:
    """The lane that a run came by."""
    return "bulk" if life.startswith(_BULK) else "interactive"
