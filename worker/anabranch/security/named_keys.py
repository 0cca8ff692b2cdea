"""Keys as settings have them: `id:base64`, one or more, parted by spaces or commas. PURE.

Must never: show a key, or any part of one. Called by: `signing.py`, `keys.py`.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from typing import Final

from anabranch.errors import ConfigError

LEAST_BYTES: Final = 32
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,32}", re.ASCII)


def named_keys(text: str, variable: str, exactly: bool = False) -> dict[str, bytes]:
    """The keys of the setting `variable` by their ids, in their order; of 32 bytes or more, or `exactly` so many.

    Raises `ConfigError`.
    """
    keys = [_key(entry, variable, exactly) for entry in re.split(r"[\s,]+", text) if entry]
    if not keys or len(dict(keys)) < len(keys):
        raise ConfigError(f"{variable} must hold one key or more, each with an id of its own")
    return dict(keys)


def _key(entry: str, variable: str, exactly: bool) -> tuple[str, bytes]:
    name, _, text = entry.partition(":")
    try:
        key = b64decode(text, validate=True)
    except binascii.Error:
        key = b""
    if not _ID.fullmatch(name) or len(key) < LEAST_BYTES or (exactly and len(key) > LEAST_BYTES):
        size = f"{LEAST_BYTES} bytes" + ("" if exactly else " or more")
        raise ConfigError(
            f"{variable} must be of the form id:base64, each key of {size}, parted by spaces; "
            f"`openssl rand -base64 {LEAST_BYTES}` makes one"
        )
    return name, key
