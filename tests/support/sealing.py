"""Keys that a test knows, and what it seals with them.

Responsible for: a source of keys in memory, in which a tenant can be forgotten. Called by: unit tests of sealed runs.
"""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from anabranch.errors import Forgotten
from anabranch.keys import Keyring
from anabranch.security.sealing import Sealing
from anabranch.security.seals import Key, Sealer, What, Whose
from anabranch.store import NO_STORE, Store


class Keys:
    """A key for each tenant, that follows from its name. It is a `KeyProvider`."""

    def __init__(self) -> None:
        self.forgotten: set[str | None] = set()

    async def current(self, tenant: str | None) -> Key:
        if tenant in self.forgotten:
            raise Forgotten(f"tenant {tenant!r} is forgotten")
        return key_of(tenant)

    async def named(self, tenant: str | None, key_id: str) -> Key:
        return await self.current(tenant)


def key_of(tenant: str | None) -> Key:
    return Key("k1", hashlib.sha256(repr(tenant).encode()).digest())


def sealing(keys: Keys, store: Store = NO_STORE, namespace: str = "t") -> Sealing:
    return Sealing(Keyring(keys, namespace), store)


def sealer(tenant: str | None = "acme", run_id: str = "r", namespace: str = "t") -> Sealer:
    return Sealer(key_of(tenant), Whose(namespace, tenant, run_id))


def sealed(what: What, value: Any) -> str:
    """`value` as JSON, sealed for run `r` of tenant `acme`."""
    return sealer().seal(what, orjson.dumps(value))


def opened(what: What, seal: str) -> Any:
    return orjson.loads(sealer().open(what, seal))
