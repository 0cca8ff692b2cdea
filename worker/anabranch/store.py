"""The store for what is too large for a record: a folder or a bucket, given by URL. The only user of
obstore, with `keys.py`.

An object is named by the hash of its bytes, under its namespace and tenant, and is checked against the hash when it
is read. It is written before the record that refers to it, so a crash in between leaves garbage and nothing else,
and writing it again changes nothing. Nothing is ever deleted here: that is the bucket's lifecycle rule. Both roles and
the client use it; without a URL it refuses, and says which setting is missing.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_before_delay, wait_random_exponential

from anabranch import references
from anabranch.config import StoreSettings, without_secrets
from anabranch.errors import ConfigError, ObjectLost, StoreError, StoreUnavailable
from anabranch.topics import Namespace

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

SCHEMES: Final = ("file", "s3", "gs", "az")
TRY_S: Final = 120.0
"""How long one try to read or write an object may take."""
CHECK_S: Final = 15.0
SOON_S: Final = 10.0
"""How long the store is tried for what fits into a record all the same."""
BACKOFF_S: Final = (0.2, 10.0)
AT_ONCE: Final = 8
"""Objects that are read at once for one reader."""
REASON: Final = 400
"""Letters of what obstore says of a failure: more is a server's page."""
READ: Final = 10_000
"""How many of them are looked at: tags that are opened and never closed take the time of their square."""
_URL: Final = re.compile(r"(https?://)(?:[^\s/?'\"]*@)?([^\s/?'\")]+)[^\s'\")]*")
_NOISE: Final = re.compile(r"/[0-9a-f]{64}(?:#\d+)?|<\?xml[^>]*\?>|\?[^\s'\"]*")
_ANSWER: Final = re.compile(r"<Error\b[^>]*>.*", re.DOTALL)
_TOLD: Final = re.compile(r"<(Code|Message|Details)>.*?</\1>", re.DOTALL)
_NO_BUCKET: Final = ("<Code>NoSuchBucket</Code>", "<Code>ContainerNotFound</Code>")
"""What S3 and Google's storage, and Azure, answer if there is no such bucket: of an object that says nothing."""
_PROBE: Final = b'"anabranch was here"'


class Store:
    """The objects of one namespace. `objects` is one of obstore's stores; None: no store is set. `folder` is where it
    keeps them, if that is a folder.
    """

    def __init__(self, objects: Any, namespace: str, settings: StoreSettings, folder: Path | None = None) -> None:
        self._objects, self._namespace, self._settings = objects, namespace, settings
        self._folder, self._is_checked = folder, False

    @property
    def is_set(self) -> bool:
        return self._objects is not None

    def takes(self, size: int) -> bool:
        """Whether a body of `size` bytes goes here, and not into the record."""
        return self.is_set and size > self._settings.store_inline_bytes

    @property
    def inline_bytes(self) -> int:
        return self._settings.store_inline_bytes

    def refuse(self, reference: str) -> None:
        """Raises `StoreError` for what cannot be had here, whatever the store has: before memory is spent."""
        size = references.size_of(reference)
        if not self.is_set:
            raise StoreError(f"{reference} lies in a store, and none is set here (ANABRANCH_STORE)")
        if size > self._settings.store_max_bytes:
            raise StoreError(
                f"{reference} is larger than {self._settings.store_max_bytes} bytes (ANABRANCH_STORE_MAX_BYTES)"
            )

    async def put(self, data: bytes, tenant: str | None, within_s: float) -> str:
        """Keep `data`, and return its reference. Tried again for `within_s` seconds while the store is unreachable.

        Raises `StoreError`, or `StoreUnavailable` when the time is up.
        """
        reference = await _of_large(data)
        self.refuse(reference)
        path = self._path(reference, tenant)
        await _patiently(f"{reference} cannot be kept", within_s, lambda: self._put(path, data))
        return reference

    async def put_if(self, data: bytes, tenant: str | None, within_s: float, fits: bool) -> str | None:
        """As `put`. But what `fits` into its record need not wait for a store that cannot be had: None."""
        try:
            return await self.put(data, tenant, min(within_s, SOON_S) if fits else within_s)
        except StoreError as error:
            if not fits:
                raise
            log.warning("%s; it goes into the record", error)
            return None

    async def get(self, reference: str, tenant: str | None, within_s: float) -> bytes:
        """The bytes of `reference`, checked. Tried again for `within_s` seconds while the store is unreachable.

        Raises `ObjectLost` if they are missing or others, `StoreUnavailable` when the time is up, or `StoreError`.
        """
        self.refuse(reference)
        path = self._path(reference, tenant)
        size = references.size_of(reference)
        data = await _patiently(f"{reference} cannot be had", within_s, lambda: self._get(path, size))
        if data is None:
            raise ObjectLost(
                f"{reference} is not in the store, as {path} (was it deleted by a lifecycle rule, or has whoever put "
                "it there another ANABRANCH_STORE?): put it back, or ask for the run anew"
            )
        if len(data) != size or await _of_large(data) != reference:
            raise ObjectLost(f"{reference} is corrupt: the store has other bytes as {path}: ask for the run anew")
        return data

    async def get_all(self, references: Iterable[str], tenant: str | None, within_s: float) -> dict[str, bytes]:
        """The bytes of each, by its reference; raises what the first failure raises."""
        few = asyncio.Semaphore(AT_ONCE)

        async def one(reference: str) -> bytes:
            async with few:
                return await self.get(reference, tenant, within_s)

        try:
            async with asyncio.TaskGroup() as tasks:
                getting = {name: tasks.create_task(one(name), name=f"fetch {name}") for name in references}
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        return {name: task.result() for name, task in getting.items()}

    async def check(self) -> None:
        """Write something and read it back. Raises `ConfigError` if that does not work."""
        if not self.is_set:
            return
        try:
            await self.get(await self.put(_PROBE, None, CHECK_S), None, CHECK_S)
        except StoreError as error:
            where = without_secrets(self._settings.store or "")
            raise ConfigError(f"the store {where} (ANABRANCH_STORE) cannot be used: {error}") from None
        self._is_checked = True

    def _path(self, reference: str, tenant: str | None) -> str:
        """Nothing in it can lead elsewhere: a namespace and a tenant have no slash, and no tenant stands alone."""
        whose = "shared" if tenant is None else f"tenant={tenant}"
        return f"{self._namespace}/{whose}/{references.read(reference).digest}"

    async def _put(self, path: str, data: bytes) -> None:
        await self._see_folder()
        await self._objects.put_async(path, data)

    async def _get(self, path: str, size: int) -> bytes | None:
        """The object, or None if there is none; one of another size is not read."""
        try:
            found = await self._objects.get_async(path)
        except FileNotFoundError as error:
            if any(code in str(error) for code in _NO_BUCKET):
                raise
            await self._see_folder()
            return None
        if found.meta["size"] != size:
            return b""
        return bytes(await found.bytes_async())

    async def _see_folder(self) -> None:
        """Raises `OSError` if the folder was there when it was checked, and is gone: nobody else would find what is put
        there now, and whoever mounts it again finds all that seems to be lost.
        """
        if self._folder is not None and self._is_checked and not await asyncio.to_thread(self._folder.is_dir):
            raise OSError(
                f"the folder {self._folder} is gone, which was there: mount it again, or restart if it is a new one"
            )


NO_STORE: Final = Store(None, "", StoreSettings())


def opened(settings: StoreSettings, namespace: Namespace) -> Store:
    """The store of the settings, or one that refuses. Raises `ConfigError` for a URL that is none of ours."""
    if settings.store is None:
        return Store(None, namespace.name, settings)
    objects, parts = objects_at(settings.store, "ANABRANCH_STORE"), urlsplit(settings.store)
    folder = Path(unquote(parts.path), namespace.name) if parts.scheme == "file" else None
    return Store(objects, namespace.name, settings, folder)


def objects_at(url: str, variable: str) -> Any:
    """obstore's store at the `url` that a setting gives. Raises `ConfigError`."""
    shown, scheme = without_secrets(url), urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise ConfigError(f"the store {shown!r} ({variable}) must be a URL of {', '.join(SCHEMES)}")
    try:
        return _objects(url, scheme)
    except Exception as error:  # noqa: BLE001 - whatever obstore does not like about it
        raise ConfigError(f"the store {shown} ({variable}) cannot be used: {_reason(error)}") from None


def _objects(url: str, scheme: str) -> Any:
    from obstore.store import from_url  # only who has a store pays for it

    if scheme == "file":
        return from_url(url, mkdir=True)
    # It retries by itself for three minutes, without a word; we retry, and say so.
    return from_url(url, retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=10)})


async def _of_large(data: bytes) -> str:
    return await asyncio.to_thread(references.name_of, data)


async def _patiently(failing: str, within_s: float, work: Callable[[], Awaitable[T]]) -> T:
    """Do it, again and again while the store cannot be reached, for `within_s` seconds."""
    return await until_available(within_s, tried_once, failing, work, min(TRY_S, max(1.0, within_s)))


async def until_available(within_s: float, work: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do it, again and again for `within_s` seconds while it raises `StoreUnavailable`: then it raises that."""

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        log.warning("%s; trying again", error)

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(StoreUnavailable),
        stop=stop_before_delay(max(0.0, within_s)),
        wait=wait_random_exponential(multiplier=BACKOFF_S[0], max=BACKOFF_S[1]),
        before_sleep=tell,
        reraise=True,
    )
    return await retrying(work, *args, **kwargs)


async def tried_once(failing: str, work: Callable[[], Awaitable[T]], within_s: float) -> T:
    """Do it. Whatever obstore raises becomes a `StoreUnavailable`."""
    try:
        async with asyncio.timeout(within_s):
            return await work()
    except TimeoutError:
        raise StoreUnavailable(f"{failing}: the store did not answer within {within_s:.0f} s") from None
    except Exception as error:  # noqa: BLE001 - whatever obstore could not do
        raise StoreUnavailable(f"{failing}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What obstore says, with what the server answered: without obstore's own innards, which come below, and of a URL
    only whose it is, for the rest leaves no room for the reason, and the query of a signed one is a secret. S3 answers
    with the session token that it does not take, and with what was signed.
    """
    said = str(error)[:READ].partition("\n\nDebug source:")[0]
    said = _ANSWER.sub(lambda answer: f"<Error>{''.join(told[0] for told in _TOLD.finditer(answer[0]))}</Error>", said)
    said = " ".join(_NOISE.sub("", _URL.sub(r"\1\2", said)).split())
    return said[:REASON] or type(error).__name__
