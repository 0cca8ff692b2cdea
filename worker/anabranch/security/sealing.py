"""Sealed fields as the roles and the client use them: made, kept in the store if they are large, and opened.

A run is sealed if its request is: who asks for it decides, and whoever goes on with it does the same. The value of a
sealed field is a seal (`seals.py`), or the reference to one in the store. Without `ANABRANCH_KEYS`, or keys of the
App's own, nothing is sealed, and what is sealed is refused.

Must never: be asked by the fold, or on the way through the log. Called by: the client, `agent/large.py` and
`tools/large.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from anabranch import references
from anabranch.config import SealingSettings
from anabranch.errors import ConfigError, Forgotten, InvalidRequest, SealError
from anabranch.store import NO_STORE, Store, until_available
from anabranch.topics import BODY_BYTES

if TYPE_CHECKING:
    from anabranch.keys import KeyProvider, Keyring, StoredKeys
    from anabranch.security.seals import Sealer, What

log = logging.getLogger(__name__)

Fields = Sequence[tuple["What", str]]
"""Sealed fields: what each is, and its value."""
LARGE: Final = 256 * 1024
"""What is sealed or opened beside the event loop, in bytes: a millisecond's work."""


class Sealing:
    """The keys of one namespace, and its store. `keyring` None: there are no keys."""

    def __init__(self, keyring: Keyring | None = None, store: Store = NO_STORE) -> None:
        self._keyring, self._store = keyring, store

    @property
    def is_set(self) -> bool:
        return self._keyring is not None

    async def sealer(self, tenant: str | None, run_id: str, within_s: float) -> Sealer:
        """What seals for this run. Raises `StoreError`: `Forgotten`, or `StoreUnavailable` when the time is up."""
        return await until_available(within_s, self._keys().sealer, tenant, run_id)

    async def seal(
        self,
        sealer: Sealer,
        what: What,
        data: bytes,
        tenant: str | None,
        within_s: float,
        inline_bytes: int = BODY_BYTES,
    ) -> str:
        """The value of a sealed field: a seal, or the reference to it. Raises `StoreError`.

        One of more than `inline_bytes` goes into the store even if others of its size do not.
        """
        seal = sealer.seal(what, data) if len(data) < LARGE else await asyncio.to_thread(sealer.seal, what, data)
        if not self._store.takes(len(seal)) and not (self._store.is_set and len(seal) > inline_bytes):
            return seal
        kept = await self._store.put_if(seal.encode(), tenant, within_s, fits=len(seal) <= BODY_BYTES)
        return seal if kept is None else kept

    async def open(self, what: What, sealed: str, tenant: str | None, run_id: str, within_s: float) -> bytes:
        """What the value of a sealed field says. Raises `StoreError`: `SealError` if it does not open, `Forgotten`."""
        keys = self._keys()
        if references.is_one(sealed):
            sealed = str(await self._store.get(sealed, tenant, within_s), "utf-8", "replace")
        sealer = await until_available(within_s, keys.sealer, tenant, run_id, _key_id_of(sealed))
        return await _opened(sealer, what, sealed)

    async def open_all(self, fields: Fields, tenant: str | None, run_id: str, within_s: float) -> dict[str, bytes]:
        """What each says, by its value. A result that does not open is left out: its worker has sent something else; of
        messages it is their sender's fault, an `InvalidRequest`.
        """
        keys, lying = self._keys(), [sealed for _, sealed in fields if references.is_one(sealed)]
        seals = await self._store.get_all(lying, tenant, within_s)
        found: dict[str, bytes] = {}
        sealers: dict[str, Sealer] = {}
        for what, sealed in fields:
            seal = str(seals[sealed], "utf-8", "replace") if sealed in seals else sealed
            try:
                if (sealer := sealers.get(key_id := _key_id_of(seal))) is None:
                    sealer = sealers[key_id] = await until_available(within_s, keys.sealer, tenant, run_id, key_id)
                found[sealed] = await _opened(sealer, what, seal)
            except Forgotten:
                raise
            except SealError as error:
                if what == "messages":
                    raise InvalidRequest(f"messages_sealed: {error}") from None
                if what != "result":
                    raise
                log.warning("a result of run %s: %s", run_id, error)
        return found

    def refuse(self, sealed: str) -> None:
        """Raises `StoreError` for what cannot be opened here, whatever it is: before memory is spent."""
        self._keys()
        if references.is_one(sealed):
            self._store.refuse(sealed)

    def _keys(self) -> Keyring:
        if self._keyring is None:
            raise SealError("what is sealed cannot be opened: no keys are set here (ANABRANCH_KEYS)")
        return self._keyring


NO_SEALING: Final = Sealing()


async def _opened(sealer: Sealer, what: What, seal: str) -> bytes:
    return sealer.open(what, seal) if len(seal) < LARGE else await asyncio.to_thread(sealer.open, what, seal)


def _key_id_of(seal: str) -> str:
    return seal.partition(";")[0]


def size_of(sealed: str) -> int:
    """How many bytes the value of a sealed field stands for, about."""
    return references.size_of(sealed) if references.is_one(sealed) else len(sealed) * 3 // 4


def opened(
    settings: SealingSettings, namespace: str, store: Store = NO_STORE, provider: KeyProvider | None = None
) -> Sealing:
    """With the keys of `provider`, or else of the settings, if they name any. Raises `ConfigError`."""
    provider = provider or stored(settings, namespace)
    if provider is None:
        return Sealing(None, store)
    from anabranch.keys import Keyring

    return Sealing(Keyring(provider, namespace), store)


def stored(settings: SealingSettings, namespace: str) -> StoredKeys | None:
    """The keys that the settings name. Raises `ConfigError`."""
    if settings.keys is None:
        return None
    try:
        from anabranch import keys
    except ImportError as error:
        raise ConfigError(
            f"ANABRANCH_KEYS is set, but cryptography is not installed ({error}): pip install 'anabranch[sealing]'"
        ) from None
    return keys.stored_keys(settings, namespace)


async def checked(
    settings: SealingSettings, namespace: str, store: Store, provider: KeyProvider | None = None
) -> Sealing:
    """As `opened`, for a worker: keys of the settings that cannot be had end its start."""
    if provider is None and (keys := stored(settings, namespace)) is not None:
        await keys.check()
        provider = keys
    return opened(settings, namespace, store, provider)
