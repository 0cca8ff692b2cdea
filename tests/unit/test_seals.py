"""Seals: what opens them, and what does not; keys made once, wrapped, remembered for a minute, and forgotten for ever.

Responsible for: `seals.py`, `keys.py`, `sealing.py`, with keys in a folder of the test.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path
from typing import Any

import pytest
from tests.support.wait import until

from anabranch import App
from anabranch.config import SealingSettings, Settings, StoreSettings
from anabranch.environment import load, shown
from anabranch.errors import ConfigError, Forgotten, SealError, StoreUnavailable
from anabranch.keys import KEPT_S, Keyring, StoredKeys, Tenancy, stored_keys
from anabranch.references import is_one
from anabranch.security.sealing import LARGE, NO_SEALING, Sealing, checked, opened
from anabranch.security.seals import Key, Sealer, Whose
from anabranch.store import NO_STORE
from anabranch.store import opened as open_store
from anabranch.topics import Namespace

KEY = Key("k1", bytes(range(32)))
WHOSE = Whose("shop", "acme", "order-1")
DOCUMENT = Path(__file__).parents[2] / "docs" / "wire.md"
MASTER = "m1:" + base64.b64encode(b"m" * 32).decode()
OTHER_MASTER = "m1:" + base64.b64encode(b"n" * 32).decode()


def keys_in(folder: Path, namespace: str = "shop", master: str = MASTER) -> StoredKeys:
    found = stored_keys(SealingSettings(folder.as_uri(), master), namespace)
    assert found is not None
    return found


# --- seals ----------------------------------------------------------------------------------------------------------


def test_a_seal_says_nothing_of_what_it_holds_and_opens_to_the_same_bytes() -> None:
    data = '{"text": "naïve \\u00e9 1.0e5"}'.encode()
    seal = Sealer(KEY, WHOSE).seal("input", data)
    assert seal.startswith("k1;")
    assert b"text" not in base64.b64decode(seal.partition(";")[2])
    assert Sealer(KEY, WHOSE).open("input", seal) == data


def test_no_two_seals_are_alike() -> None:
    sealer = Sealer(KEY, WHOSE)
    assert sealer.seal("input", b"{}") != sealer.seal("input", b"{}")


@pytest.mark.parametrize(
    ("key", "whose", "what"),
    [
        (Key("k1", b"x" * 32), WHOSE, "input"),
        (KEY, WHOSE._replace(namespace="shop2"), "input"),
        (KEY, WHOSE._replace(tenant="umbrella"), "input"),
        (KEY, WHOSE._replace(tenant=None), "input"),
        (KEY, WHOSE._replace(run_id="order-2"), "input"),
        (KEY, WHOSE, "result"),
    ],
)
def test_a_seal_that_was_moved_does_not_open(key: Key, whose: Whose, what: Any) -> None:
    with pytest.raises(SealError, match="does not open"):
        Sealer(key, whose).open(what, Sealer(KEY, WHOSE).seal("input", b"{}"))


def test_a_seal_that_was_changed_does_not_open() -> None:
    sealer = Sealer(KEY, WHOSE)
    data = bytearray(base64.b64decode(sealer.seal("input", b"{}").partition(";")[2]))
    for place in (0, 12, len(data) - 1):
        changed = bytes(data[:place]) + bytes([data[place] ^ 1]) + bytes(data[place + 1 :])
        with pytest.raises(SealError, match="does not open"):
            sealer.open("input", "k1;" + base64.b64encode(changed).decode())


@pytest.mark.parametrize(
    ("seal", "why"),
    [("k1;AAAA", "cut off"), ("k1;not base64", "no base64"), ("k2;AAAA", "of key 'k2'"), ("", "of key")],
)
def test_what_is_no_seal_is_refused(seal: str, why: str) -> None:
    with pytest.raises(SealError, match=why):
        Sealer(KEY, WHOSE).open("input", seal)


def test_a_hash_tells_equal_texts_of_a_tenant_and_needs_its_key() -> None:
    one = Sealer(KEY, WHOSE).hashed("customer_id=17")
    assert one == Sealer(KEY, WHOSE._replace(run_id="order-2")).hashed("customer_id=17")
    assert (
        len(
            {
                one,
                Sealer(KEY, WHOSE).hashed("customer_id=18"),
                Sealer(Key("k1", b"x" * 32), WHOSE).hashed("customer_id=17"),
            }
        )
        == 3
    )


def test_the_seal_in_the_documentation_opens() -> None:
    """What workers in other languages are tested against."""
    [seal] = re.findall(r"^    (k1;\S+)$", DOCUMENT.read_text(), re.MULTILINE)
    assert Sealer(KEY, WHOSE).open("input", seal) == b'{"n":1}'


def test_a_key_is_not_shown() -> None:
    assert repr(KEY) == "Key('k1', ...)"


# --- keys in a folder -------------------------------------------------------------------------------------------------


async def test_a_tenants_key_is_made_once_whoever_asks_first(tmp_path: Path) -> None:
    found = await asyncio.gather(*(keys_in(tmp_path).current("acme") for _ in range(8)))
    assert len(set(found)) == 1
    assert await keys_in(tmp_path).named("acme", found[0].id) == found[0]


async def test_tenants_and_namespaces_have_keys_of_their_own(tmp_path: Path) -> None:
    asked = [("shop", "acme"), ("shop", "shared"), ("shop", None), ("shop2", "acme")]
    found = [await keys_in(tmp_path, namespace).current(tenant) for namespace, tenant in asked]
    assert len({key.secret for key in found}) == 4


async def test_what_lies_in_the_folder_is_wrapped(tmp_path: Path) -> None:
    key = await keys_in(tmp_path).current("acme")
    data = (tmp_path / "shop" / "tenant=acme").read_bytes()
    assert key.secret not in data
    assert base64.b64encode(key.secret)[:20] not in data
    (tmp_path / "shop" / "tenant=umbrella").write_bytes(data)
    with pytest.raises(SealError, match="does not open with the master key"):
        await keys_in(tmp_path).current("umbrella")


async def test_a_deleted_key_is_forgotten_and_never_made_again(tmp_path: Path) -> None:
    keys = keys_in(tmp_path)
    key = await keys.current("acme")
    await keys.forget("acme")
    for asked in (keys.current("acme"), keys.named("acme", key.id), keys_in(tmp_path).current("acme")):
        with pytest.raises(Forgotten, match="tenant 'acme' is forgotten"):
            await asked
    assert await keys.make("acme") is False
    await keys.current(None)
    assert await keys.tenants() == [Tenancy(None, False), Tenancy("acme", True)]


async def test_a_master_key_can_be_changed(tmp_path: Path) -> None:
    key = await keys_in(tmp_path).current("acme")
    new = "m2:" + base64.b64encode(b"2" * 32).decode()
    assert await keys_in(tmp_path, master=f"{new} {MASTER}").current("acme") == key
    with pytest.raises(SealError, match="wrapped with the master key 'm1'"):
        await keys_in(tmp_path, master=new).current("acme")


@pytest.mark.parametrize("tenant", ["../../elsewhere", "a/b", "", "a\nb"])
async def test_no_tenant_leads_elsewhere(tmp_path: Path, tenant: str) -> None:
    with pytest.raises(SealError, match="cannot be a tenant"):
        await keys_in(tmp_path).current(tenant)


async def test_a_key_that_nobody_has_is_not_made_to_open(tmp_path: Path) -> None:
    with pytest.raises(SealError, match="has no key 'k9'"):
        await keys_in(tmp_path).named("acme", "k9")
    assert await keys_in(tmp_path).tenants() == []


async def test_a_worker_with_another_master_key_does_not_start(tmp_path: Path) -> None:
    for master, starts in ((MASTER, True), (MASTER, True), (OTHER_MASTER, False)):
        settings = SealingSettings(tmp_path.as_uri(), master)
        if starts:
            assert (await checked(settings, "shop", open_store(StoreSettings(), Namespace("shop")))).is_set
        else:
            with pytest.raises(ConfigError, match="is it another one than elsewhere"):
                await checked(settings, "shop", open_store(StoreSettings(), Namespace("shop")))


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"ANABRANCH_KEYS": "file:///keys"}, "no master key is set"),
        ({"ANABRANCH_KEYS": "file:///keys", "ANABRANCH_KEYS_MASTER": "m1:c2hvcnQ="}, "each key of 32 bytes,"),
        ({"ANABRANCH_KEYS": "ftp://keys", "ANABRANCH_KEYS_MASTER": MASTER}, r"\(ANABRANCH_KEYS\) must be a URL of"),
    ],
)
def test_settings_that_do_not_do_are_refused(environment: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        opened(load(environment=environment).sealing, "shop")


def test_the_master_key_is_never_shown() -> None:
    settings = load(environment={"ANABRANCH_KEYS": "s3://k?secret=1", "ANABRANCH_KEYS_MASTER": MASTER})
    assert shown(settings)["sealing"] == {"keys": "s3://k", "keys_master": "********"}


# --- in memory --------------------------------------------------------------------------------------------------------


class Provider:
    """Counts what it is asked for; `error` is raised instead, if there is one."""

    def __init__(self) -> None:
        self.asked: list[tuple[str | None, str | None]] = []
        self.error: Exception | None = None

    async def current(self, tenant: str | None) -> Key:
        return await self.named(tenant, "")

    async def named(self, tenant: str | None, key_id: str) -> Key:
        self.asked.append((tenant, key_id))
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return Key(key_id or "k1", b"s" * 32)


async def test_keys_are_asked_for_once_a_minute_however_many_want_them() -> None:
    provider, now = Provider(), [0.0]
    ring = Keyring(provider, "shop", lambda: now[0])
    await asyncio.gather(*(ring.sealer("acme", f"r{i}") for i in range(5)), ring.sealer("acme", "r", "k0"))
    await ring.sealer("acme", "r", "k1")  # the one that seals
    assert sorted(provider.asked) == [("acme", ""), ("acme", "k0")]
    now[0] = KEPT_S - 1
    await ring.sealer("acme", "r")
    assert len(provider.asked) == 2
    now[0] = KEPT_S + 1
    provider.error = Forgotten("gone")
    with pytest.raises(Forgotten):
        await ring.sealer("acme", "r")


@pytest.mark.parametrize("error", [StoreUnavailable("the KMS is away"), OSError("whatever a KMS raises")])
async def test_keys_that_cannot_be_had_are_waited_for(error: Exception) -> None:
    provider = Provider()
    sealing = Sealing(Keyring(provider, "shop"))
    provider.error = error
    with pytest.raises(StoreUnavailable):
        await sealing.sealer("acme", "r", 0.0)
    waiting = asyncio.create_task(sealing.sealer("acme", "r", 60.0))
    await until(lambda: len(provider.asked) >= 2, what="it was asked once more")
    provider.error = None
    assert (await waiting).key_id == "k1"


async def test_an_app_may_have_keys_of_its_own(tmp_path: Path) -> None:
    app = App("shop", keys=Provider())
    assert app.client(settings=Settings())._seals.is_set
    assert not App("shop").client(settings=Settings())._seals.is_set
    sealing = await checked(SealingSettings("file:///nowhere"), "shop", NO_STORE, app.keys)
    assert (await sealing.sealer("acme", "r", 1.0)).key_id == "k1"


async def test_without_keys_nothing_is_sealed_and_what_is_sealed_is_refused() -> None:
    seal = Sealer(KEY, WHOSE).seal("input", b"{}")
    assert not opened(SealingSettings(), "shop").is_set
    with pytest.raises(SealError, match="no keys are set here"):
        await NO_SEALING.open("input", seal, "acme", "order-1", 1.0)
    with pytest.raises(SealError, match="no keys are set here"):
        NO_SEALING.refuse(seal)


@pytest.mark.parametrize("size", [10, LARGE * 2])
async def test_what_is_large_lies_sealed_in_the_store(tmp_path: Path, size: int) -> None:
    store = open_store(StoreSettings(store=(tmp_path / "objects").as_uri()), Namespace("shop"))
    sealing = Sealing(Keyring(keys_in(tmp_path), "shop"), store)
    data = b"x" * size
    sealer = await sealing.sealer("acme", "r", 1.0)
    sealed = await sealing.seal(sealer, "reply", data, "acme", 1.0)
    assert is_one(sealed) == (size > LARGE)
    assert await sealing.open("reply", sealed, "acme", "r", 1.0) == data
    kept = [file.read_bytes() for file in (tmp_path / "objects").rglob("*") if file.is_file()]
    assert len(kept) == (size > LARGE)
    assert not any(b"x" * 12 in each for each in kept)
