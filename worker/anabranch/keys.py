"""Whose key seals what: a key for each tenant, from a folder, a bucket, or whatever an App brings.

`StoredKeys` keeps one object for each tenant: its key, wrapped by the master key of the settings, or nothing at all
once it was deleted, so that it is never made again. Another source, such as a KMS, is a `KeyProvider` that is given to
`App(keys=...)`. Keys are held in memory for a minute, so a deletion is heard within one.

Responsible for: keys made, found, remembered and deleted. Must never: write a key that is not wrapped, or show one.
Called by: `security/sealing.py`, and `cli/keys.py`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from obstore.exceptions import AlreadyExistsError

from anabranch.bodies import dump, read
from anabranch.config import SealingSettings, without_secrets
from anabranch.errors import ConfigError, Forgotten, SealError, StoreError, StoreUnavailable, WireError
from anabranch.fields import is_name
from anabranch.security.named_keys import named_keys
from anabranch.security.seals import KEY_BYTES, Key, Sealer, Whose, unwrapped, wrapped
from anabranch.serially import Serially
from anabranch.store import objects_at, tried_once

T = TypeVar("T")

KEPT_S: Final = 60.0
KEPT: Final = 10_000
"""How many keys are held in memory, about."""
TRY_S: Final = 15.0
"""How long one try to read or write a key may take."""


class KeyProvider(Protocol):
    """Where keys come from. `tenant` is None for what is nobody's in particular.

    Raises `Forgotten` for a tenant whose key was deleted, `StoreUnavailable` for what is worth another try, and
    `SealError` for what is not.
    """

    async def current(self, tenant: str | None) -> Key:
        """The key that seals from now on; made, if the tenant is new."""
        ...

    async def named(self, tenant: str | None, key_id: str) -> Key:
        """The key that something was sealed with."""
        ...


class Tenancy(NamedTuple):
    """A tenant that has a key, or had one."""

    tenant: str | None
    forgotten: bool


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the object of a tenant says."""

    key_id: str
    master: str
    wrapped: str


class StoredKeys:
    """The keys of one namespace in a store of obstore's. `masters` by id; the first one wraps."""

    def __init__(self, objects: Any, namespace: str, masters: Mapping[str, bytes]) -> None:
        self._objects, self._namespace, self._masters = objects, namespace, dict(masters)

    async def current(self, tenant: str | None) -> Key:
        path = self._path(tenant)
        if (found := await self._get(path)) is None:
            await self._make(path, tenant)  # somebody else may be quicker
            found = await self._get(path)
        if found is None:
            raise StoreUnavailable(f"the key of {_called(tenant)} was made, and is not there")
        return self._key(found, tenant)

    async def named(self, tenant: str | None, key_id: str) -> Key:
        found = await self._get(self._path(tenant))
        key = self._key(found, tenant) if found is not None else None
        if key is None or key.id != key_id:
            raise SealError(f"{_called(tenant)} has no key {key_id[:64]!r} in {self._namespace!r} (ANABRANCH_KEYS)")
        return key

    async def make(self, tenant: str | None) -> bool:
        """False, if the tenant has a key or had one."""
        return await self._make(self._path(tenant), tenant)

    async def forget(self, tenant: str | None) -> None:
        """Delete the key for ever, or see to it that there never is one: what is left is an empty object."""
        path = self._path(tenant)
        await _tried("the key cannot be deleted", lambda: self._objects.put_async(path, b""))

    async def tenants(self) -> list[Tenancy]:
        """All that have a key or had one, by name."""
        prefix = f"{self._namespace}/"

        async def listed() -> list[Any]:
            return [found async for batch in self._objects.list(prefix) for found in batch]

        listing = await _tried("the keys cannot be listed", listed)
        found = {str(each["path"]).removeprefix(prefix): each["size"] for each in listing}
        tenants = [name for name in sorted(found) if name == _SHARED or name.startswith(_OF)]
        return [Tenancy(None if name == _SHARED else name.removeprefix(_OF), not found[name]) for name in tenants]

    async def check(self) -> None:
        """Raises `ConfigError` if keys cannot be had here, or if others wrap theirs with another master key."""
        try:
            await self._agree()
        except StoreError as error:
            raise ConfigError(f"the keys of ANABRANCH_KEYS cannot be used: {error}") from None

    # --- objects --------------------------------------------------------------------------------------------------

    @property
    def _probe(self) -> str:
        return f"{self._namespace}/{_PROBE}"

    def _path(self, tenant: str | None) -> str:
        if tenant is not None and not is_name(tenant):
            raise SealError(f"{tenant[:128]!r} cannot be a tenant")
        return f"{self._namespace}/{_SHARED if tenant is None else _OF + tenant}"

    async def _get(self, path: str) -> bytes | None:
        async def get() -> bytes | None:
            try:
                return bytes(await (await self._objects.get_async(path)).bytes_async())
            except FileNotFoundError:
                return None

        return await _tried("a key cannot be had", get)

    async def _make(self, path: str, tenant: str | None) -> bool:
        """Nobody may make one that the others cannot open."""
        await self._agree()
        return await self._create(path, tenant)

    async def _agree(self) -> None:
        """Raises `StoreError` if others wrap their keys with a master key that we have not."""
        if await self._get(self._probe) is None:
            await self._create(self._probe, _PROBE)
        if (found := await self._get(self._probe)) is not None:
            self._key(found, _PROBE)

    async def _create(self, path: str, tenant: str | None) -> bool:
        """One that is there already, empty or not, stays as it is."""
        key = Key(os.urandom(8).hex(), os.urandom(KEY_BYTES))
        name, master = next(iter(self._masters.items()))
        entry = _Entry(key.id, name, wrapped(master, key.secret, self._about(tenant, key.id)))

        async def create() -> bool:
            try:
                await self._objects.put_async(path, dump(entry), mode="create")
            except AlreadyExistsError:
                return False
            return True

        return await _tried(f"a key for {_called(tenant)} cannot be made", create)

    def _key(self, found: bytes, tenant: str | None) -> Key:
        if not found:
            raise Forgotten(f"{_called(tenant)} is forgotten: its key was deleted")
        try:
            entry = read(_Entry, found)
        except WireError as error:
            raise SealError(f"the key of {_called(tenant)} cannot be read: {error}") from None
        if (master := self._masters.get(entry.master)) is None:
            known = ", ".join(self._masters)
            raise SealError(
                f"the key of {_called(tenant)} is wrapped with the master key {entry.master[:32]!r}, and "
                f"ANABRANCH_KEYS_MASTER has {known}"
            )
        try:
            return Key(entry.key_id, unwrapped(master, entry.wrapped, self._about(tenant, entry.key_id)))
        except SealError:
            raise SealError(
                f"the key of {_called(tenant)} does not open with the master key {entry.master!r} of "
                "ANABRANCH_KEYS_MASTER: is it another one than elsewhere?"
            ) from None

    def _about(self, tenant: str | None, key_id: str) -> str:
        return f"anabranch key\n{self._namespace}\n{tenant or ''}\n{key_id}"


_SHARED: Final = "shared"
_OF: Final = "tenant="
_PROBE: Final = "master key"
"""What tells whether all have the same master key: no tenant is called so."""


def _called(tenant: str | None) -> str:
    if tenant == _PROBE:
        return "the namespace"
    return "whoever has no tenant" if tenant is None else f"tenant {tenant!r}"


async def _tried(failing: str, work: Callable[[], Awaitable[T]]) -> T:
    return await tried_once(failing, work, TRY_S)


class Keyring:
    """The keys of a namespace as a process uses them. `now` is a steady clock."""

    def __init__(self, provider: KeyProvider, namespace: str, now: Callable[[], float] = time.monotonic) -> None:
        self._provider, self._namespace, self._now = provider, namespace, now
        self._known: dict[tuple[str | None, str | None], tuple[Key, float]] = {}
        self._asking = Serially()

    async def sealer(self, tenant: str | None, run_id: str, key_id: str | None = None) -> Sealer:
        """What seals for this run now, or what opens the seals of that key. Raises `Forgotten`, `StoreUnavailable`."""
        return Sealer(await self._key(tenant, key_id), Whose(self._namespace, tenant, run_id))

    async def _key(self, tenant: str | None, key_id: str | None) -> Key:
        if (key := self._remembered(tenant, key_id)) is not None:
            return key
        async with self._asking.turn(f"{tenant or ''} {key_id or ''}"):
            if (key := self._remembered(tenant, key_id)) is None:
                key = await _given(self._provider, tenant, key_id)
                self._remember(tenant, key_id, key)
        return key

    def _remembered(self, tenant: str | None, key_id: str | None) -> Key | None:
        """Mostly the key that opens is the one that seals."""
        now = self._now()
        for asked in (key_id, None):
            key, until = self._known.get((tenant, asked), (None, 0.0))
            if key is not None and now < until and key_id in (None, key.id):
                return key
        return None

    def _remember(self, tenant: str | None, key_id: str | None, key: Key) -> None:
        now = self._now()
        if len(self._known) >= KEPT:
            self._known = {asked: known for asked, known in self._known.items() if known[1] > now}
        if len(self._known) >= KEPT:
            self._known.clear()
        self._known[tenant, key_id] = key, now + KEPT_S


async def _given(provider: KeyProvider, tenant: str | None, key_id: str | None) -> Key:
    """The provider may be somebody else's: what it raises that nobody expects is worth another try."""
    try:
        async with asyncio.timeout(TRY_S):
            return await (provider.current(tenant) if key_id is None else provider.named(tenant, key_id))
    except StoreError:
        raise
    except TimeoutError:
        raise StoreUnavailable(f"the key of {_called(tenant)} cannot be had within {TRY_S:g} s") from None
    except Exception as error:
        raise StoreUnavailable(
            f"the key of {_called(tenant)} cannot be had: {type(error).__name__}: {error}"
        ) from error


def stored_keys(settings: SealingSettings, namespace: str) -> StoredKeys | None:
    """The keys that the settings name; None if they name none. Raises `ConfigError`."""
    if settings.keys is None:
        return None
    if settings.keys_master is None:
        raise ConfigError(
            f"ANABRANCH_KEYS is {without_secrets(settings.keys)}, and no master key is set: the keys there are "
            "wrapped by ANABRANCH_KEYS_MASTER (id:base64)"
        )
    masters = named_keys(settings.keys_master, "ANABRANCH_KEYS_MASTER", exactly=True)
    return StoredKeys(objects_at(settings.keys, "ANABRANCH_KEYS"), namespace, masters)
