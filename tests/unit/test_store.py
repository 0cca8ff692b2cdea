"""The store: named by hash, checked on reading, bounded, and patient with what passes.

Responsible for: `references.py`, `store.py`, with obstore's store in memory or in a folder of the test.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from anabranch import references
from anabranch.config import StoreSettings
from anabranch.environment import load, shown
from anabranch.errors import ConfigError, ObjectLost, StoreError, StoreUnavailable
from anabranch.store import NO_STORE, Store, opened
from anabranch.topics import Namespace

DATA = b'"a large thing"'
NAME = f"sha256:{hashlib.sha256(DATA).hexdigest()};{len(DATA)}"
NAMESPACE = Namespace("t")


def store_in(folder: Path, **settings: Any) -> Store:
    return opened(StoreSettings(store=folder.as_uri(), **settings), NAMESPACE)


def in_memory(namespace: str = "t", objects: Any = None) -> Store:
    return Store(objects or MemoryStore(), namespace, StoreSettings())


# --- references -----------------------------------------------------------------------------------------


def test_a_reference_is_the_hash_and_the_size() -> None:
    assert references.name_of(DATA) == NAME
    assert references.read(NAME) == (hashlib.sha256(DATA).hexdigest(), len(DATA))


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "sha256:../../../etc/passwd;5",
        f"sha256:{'A' * 64};5",
        f"sha256:{'a' * 63};5",
        f"sha256:{'a' * 64}",
        f"sha256:{'a' * 64};-1",
        f"sha256:{'a' * 64};5\n",
        f"sha256:{'a' * 64};{'9' * 13}",
        f"sha256:{'a' * 64};\u0665",
        "s3://elsewhere/secret",
        f"md5:{'a' * 64};5",
    ],
)
def test_what_is_no_reference_is_refused(wrong: str) -> None:
    with pytest.raises(StoreError, match="is no reference"):
        references.read(wrong)


# --- reading and writing --------------------------------------------------------------------------------


async def test_what_is_kept_is_found_under_its_hash_and_tenant(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    assert await store.put(DATA, "acme", 5.0) == NAME
    assert await store.get(NAME, "acme", 5.0) == DATA
    digest = references.read(NAME).digest
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [
        f"t/tenant=acme/{digest}"
    ]


async def test_keeping_a_thing_twice_keeps_it_once(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    assert [await store.put(DATA, None, 5.0) for _ in range(2)] == [NAME, NAME]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


async def test_a_reference_of_another_tenant_or_namespace_finds_nothing() -> None:
    objects = MemoryStore()
    await in_memory("t", objects).put(DATA, "acme", 5.0)
    for namespace, tenant in (("t", "other"), ("t", None), ("t", "shared"), ("u", "acme"), ("t", "../t/tenant=acme")):
        with pytest.raises(StoreError):
            await in_memory(namespace, objects).get(NAME, tenant, 0.0)


async def test_a_missing_object_is_named() -> None:
    with pytest.raises(StoreError, match=f"{NAME} is not in the store, as t/shared/[0-9a-f]{{64}} "):
        await in_memory().get(NAME, None, 5.0)


@pytest.mark.parametrize("other", [b'"a LARGE thing"', b"", DATA + b" "])
async def test_other_bytes_than_those_of_the_hash_are_refused(tmp_path: Path, other: bytes) -> None:
    store = store_in(tmp_path)
    await store.put(DATA, None, 5.0)
    (tmp_path / "t" / "shared" / references.read(NAME).digest).write_bytes(other)
    with pytest.raises(StoreError, match="is corrupt"):
        await store.get(NAME, None, 5.0)
    await store.put(DATA, None, 5.0)
    assert await store.get(NAME, None, 5.0) == DATA, "writing it again mends it"


async def test_an_object_beyond_the_largest_size_is_neither_kept_nor_read(tmp_path: Path) -> None:
    store = store_in(tmp_path, store_max_bytes=len(DATA) - 1)
    for attempt in (store.put(DATA, None, 5.0), store.get(NAME, None, 5.0)):
        with pytest.raises(StoreError, match="ANABRANCH_STORE_MAX_BYTES"):
            await attempt
    assert not list(tmp_path.rglob("*"))


class Metered:
    """In the place of obstore's store: an object that is larger than its reference says, or one that cannot be had."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.read, self.objects = list(failures), 0, MemoryStore()

    async def put_async(self, path: str, data: bytes) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        return await self.objects.put_async(path, data)

    async def get_async(self, path: str) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        found = await self.objects.get_async(path)
        self.read += 1
        return found


async def test_a_folder_that_is_gone_is_waited_for_and_nothing_in_it_counts_as_lost(tmp_path: Path) -> None:
    """As when it is unmounted: the path of the mount is there, and nothing in it."""
    root = tmp_path / "mount ü"
    store = store_in(root)
    await store.put(DATA, None, 5.0)
    await store.check()
    root.rename(tmp_path / "elsewhere")
    root.mkdir()
    for attempt in (store.get(NAME, None, 0.0), store.put(b"more", None, 0.0)):
        with pytest.raises(StoreUnavailable, match=r"the folder .*mount ü/t is gone, .*: mount it again"):
            await attempt
    assert not list(root.iterdir()), "nothing is put where nobody looks for it"
    root.rmdir()
    (tmp_path / "elsewhere").rename(root)
    assert await store.get(NAME, None, 0.0) == DATA


@pytest.mark.parametrize("code", ["NoSuchBucket", "ContainerNotFound"])
async def test_a_bucket_that_is_gone_is_waited_for_and_nothing_in_it_counts_as_lost(code: str) -> None:
    gone = FileNotFoundError(f"Object at location t/x not found: 404 Not Found: <Error><Code>{code}</Code></Error>")
    with pytest.raises(StoreUnavailable, match=code):
        await in_memory(objects=Metered(gone)).get(NAME, None, 0.0)
    with pytest.raises(ObjectLost):
        await in_memory().get(NAME, f"{code}", 0.0)


async def test_an_object_of_another_size_is_not_even_read() -> None:
    class Huge:
        meta = {"size": 2**40}  # noqa: RUF012

        async def bytes_async(self) -> bytes:
            raise AssertionError("its bytes were read")

    class Objects:
        async def get_async(self, path: str) -> Any:
            return Huge()

    with pytest.raises(StoreError, match="is corrupt"):
        await in_memory(objects=Objects()).get(NAME, None, 5.0)


async def test_a_store_that_cannot_be_reached_is_tried_again() -> None:
    objects = Metered(OSError("no route"), OSError("no route"))
    store = in_memory(objects=objects)
    assert await store.put(DATA, None, 30.0) == NAME
    objects.failures = [OSError("no route")]
    assert await store.get(NAME, None, 30.0) == DATA


async def test_when_the_time_is_up_it_is_unavailable() -> None:
    store = in_memory(objects=Metered(*[OSError("no route")] * 100))
    with pytest.raises(StoreUnavailable, match="no route"):
        await store.get(NAME, None, 0.0)


async def test_what_went_wrong_is_told_without_what_may_be_secret_in_a_url() -> None:
    failure = OSError("GET https://user:geheim@host:1/path?sig=geheim&x=1 failed\n\nDebug source: innards")
    with pytest.raises(StoreUnavailable, match=r"GET https://host:1 failed$"):
        await in_memory(objects=Metered(failure)).get(NAME, None, 0.0)


@pytest.mark.parametrize("prolog", ["", '<?xml version="1.0" encoding="UTF-8"?>\n'])
async def test_what_the_server_answered_is_told_however_long_the_names_are(prolog: str) -> None:
    url = f"https://{'b' * 60}.s3.eu-central-1.amazonaws.com/{'prefix/' * 20}tenant%3Dacme/{'0' * 64}"
    failure = OSError(
        f"Generic S3 error: Error performing PUT {url} in 260ms, after 2 retries, max_retries: 2, retry_timeout: 10s - "
        f"Server returned non-2xx status code: 503 Service Unavailable: {prolog}<Error><Code>SlowDown</Code></Error>"
    )
    with pytest.raises(StoreUnavailable, match=r"503 Service Unavailable: <Error><Code>SlowDown</Code></Error>$"):
        await in_memory(objects=Metered(failure)).get(NAME, None, 0.0)


async def test_of_the_servers_answer_only_what_says_why_is_told() -> None:
    """S3 sends back the session token that it does not take."""
    why = "<Code>InvalidToken</Code><Message>The provided token is malformed\nor otherwise invalid.</Message>"
    failure = OSError(
        "Generic S3 error: Error performing GET https://host/0 in 2ms - Server returned non-2xx status code: 400 Bad "
        f"Request: <?xml version='1.0'?>\n<Error>{why}<Token-0>geheim</Token-0><RequestId>1</RequestId></Error>"
    )
    with pytest.raises(StoreUnavailable) as caught:
        await in_memory(objects=Metered(failure)).get(NAME, None, 0.0)
    assert "geheim" not in str(caught.value)
    assert str(caught.value).endswith(f"400 Bad Request: <Error>{why}</Error>".replace("\n", " "))


@pytest.mark.parametrize("page", ["<Error " * 20_000, f"<Error>{'<Code>' * 20_000}"])
async def test_a_page_of_tags_that_are_never_closed_takes_no_time(page: str) -> None:
    began = time.process_time()
    with pytest.raises(StoreUnavailable):
        await in_memory(objects=Metered(OSError(page))).get(NAME, None, 0.0)
    assert time.process_time() - began < 0.5, "seconds, if all of it is looked through"


async def test_the_first_failure_of_several_is_told() -> None:
    store = in_memory()
    await store.put(DATA, None, 5.0)
    missing = references.name_of(b"other")
    with pytest.raises(StoreError, match=f"{missing} is not in the store"):
        await store.get_all([NAME, missing], None, 5.0)
    assert await store.get_all([NAME], None, 5.0) == {NAME: DATA}


async def test_a_reader_that_is_cancelled_leaves_nothing_behind() -> None:
    reading = asyncio.Event()

    class Slow:
        async def get_async(self, path: str) -> Any:
            reading.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(in_memory(objects=Slow()).get_all([NAME], None, 60.0))
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- settings -------------------------------------------------------------------------------------------


async def test_without_a_store_the_setting_is_named() -> None:
    assert not NO_STORE.takes(10**9)
    for attempt in (NO_STORE.put(DATA, None, 5.0), NO_STORE.get(NAME, None, 5.0)):
        with pytest.raises(StoreError, match="ANABRANCH_STORE"):
            await attempt
    await NO_STORE.check()


def test_what_is_larger_than_the_limit_goes_there(tmp_path: Path) -> None:
    store = store_in(tmp_path, store_inline_bytes=2000)
    assert (store.takes(2000), store.takes(2001)) == (False, True)


async def test_a_store_that_works_is_found_to_work(tmp_path: Path) -> None:
    await store_in(tmp_path / "new").check()


async def test_a_store_that_cannot_be_written_ends_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t").write_text("a file where a folder should be")
    monkeypatch.setattr("anabranch.store.CHECK_S", 0.0)
    with pytest.raises(ConfigError, match=r"the store file:///.* \(ANABRANCH_STORE\) cannot be used: "):
        await store_in(tmp_path).check()


@pytest.mark.parametrize("url", ["bucket", "ftp://host/x", "memory:///", "http://user:geheim@host/x", ""])
def test_a_url_of_another_kind_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(ConfigError, match="file, s3, gs, az") as caught:
        opened(StoreSettings(store=url), NAMESPACE)
    assert "geheim" not in str(caught.value)


def test_the_environment_names_the_store_and_its_secrets_are_masked() -> None:
    url = "az://user:geheim@container/prefix?sig=geheim"
    settings = load(environment={"ANABRANCH_STORE": url, "ANABRANCH_STORE_INLINE_BYTES": "4096"})
    assert settings.storage == StoreSettings(store=url, store_inline_bytes=4096)
    assert shown(settings)["storage"]["store"] == "az://container/prefix"
