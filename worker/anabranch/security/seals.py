"""Texts sealed with a tenant's key: AES-256-GCM, bound to the run and to what the text is. PURE, but for the nonces.

A seal is `<key id>;<base64(nonce || ciphertext || tag)>`. The key of a run is derived from its tenant's, so that one
key seals what one run says and no more: nonces are random, and no fleet has to count how many it has used. The
additional data name namespace, tenant, run and kind of text, so a seal that is put elsewhere does not open.

Responsible for: making and opening seals, whatever they hold. Must never: know where keys come from, or show one. The
only user of `cryptography`. Called by: `keys.py`, which has the keys, and whoever got a `Sealer` there.
"""

from __future__ import annotations

import binascii
import hmac
import os
from base64 import b64decode, b64encode
from typing import Final, Literal, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from anabranch.errors import SealError

What = Literal["messages", "metadata", "reply", "input", "result", "rejected", "stream", "error"]
"""What a sealed text is. Each is JSON."""

KEY_BYTES: Final = 32
_NONCE: Final = 12
_TAG: Final = 16


class Key(NamedTuple):
    """A tenant's key: 32 random bytes under an id, `[A-Za-z0-9._-]{1,64}`, that tells it from others of the tenant."""

    id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"Key({self.id!r}, ...)"


class Whose(NamedTuple):
    """The run that a text is of; `tenant` None: nobody's in particular."""

    namespace: str
    tenant: str | None
    run_id: str


class Sealer:
    """Seals what is said in one run, and opens what was sealed with the same key."""

    __slots__ = ("_about", "_aead", "_hashing", "key_id")

    def __init__(self, key: Key, whose: Whose) -> None:
        space = f"{whose.namespace}\n{whose.tenant or ''}\n"
        self.key_id, self._about = key.id, f"{space}{whose.run_id}\n"
        self._aead = AESGCM(_derived(key.secret, f"{space}{whose.run_id}"))
        self._hashing = _derived(key.secret, f"{space}serial key")  # no run id has a space

    def seal(self, what: What, data: bytes) -> str:
        return f"{self.key_id};{_locked(self._aead, data, self._about + what)}"

    def open(self, what: What, seal: str) -> bytes:
        """What `seal` holds. Raises `SealError` if it is of another key, run or kind, or was changed."""
        key_id, _, text = seal.partition(";")
        if key_id != self.key_id:
            raise SealError(f"a sealed {what} is of key {key_id[:64]!r}, and not of {self.key_id!r}")
        return _unlocked(self._aead, text, self._about + what, f"a sealed {what}")

    def hashed(self, text: str) -> str:
        """16 hex digits that say whether two texts of the tenant are the same, and to nobody without the key what they
        are.
        """
        return hmac.digest(self._hashing, text.encode(), "sha256").hex()[:16]


def wrapped(master: bytes, secret: bytes, about: str) -> str:
    """A key, sealed with another."""
    return _locked(AESGCM(master), secret, about)


def unwrapped(master: bytes, text: str, about: str) -> bytes:
    """Raises `SealError` if it is of another master key, or of something else."""
    return _unlocked(AESGCM(master), text, about, "a wrapped key")


def _derived(secret: bytes, label: str) -> bytes:
    return hmac.digest(secret, label.encode(), "sha256")


def _locked(aead: AESGCM, data: bytes, about: str) -> str:
    nonce = os.urandom(_NONCE)
    return b64encode(nonce + aead.encrypt(nonce, data, about.encode())).decode()


def _unlocked(aead: AESGCM, text: str, about: str, shown: str) -> bytes:
    try:
        data = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SealError(f"{shown} is no base64") from None
    if len(data) < _NONCE + _TAG:
        raise SealError(f"{shown} is cut off")
    try:
        return aead.decrypt(data[:_NONCE], data[_NONCE:], about.encode())
    except InvalidTag:
        raise SealError(f"{shown} does not open: it is of another key or another place, or was changed") from None
