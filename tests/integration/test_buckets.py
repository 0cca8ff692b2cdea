"""A bucket as the store: a real client of S3 and of Google's storage, over HTTP, and runs whose large things lie in it.

Responsible for: what only a bucket does. Must never: repeat what a folder shows as well (tests/unit/test_store,
tests/integration/test_store).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.bucket import Bucket, bucket
from tests.support.fleet import fleet, settings_for

from anabranch import App
from anabranch.config import StoreSettings
from anabranch.errors import ConfigError, StoreError, StoreUnavailable
from anabranch.store import Store, opened
from anabranch.testing import Answer, last_results, result_text, tool_use, turn_of
from anabranch.topics import Namespace

LARGE = random.Random(1).randbytes(12_000_000)
LETTERS = "".join(chr(ord("a") + byte % 26) for byte in LARGE[:2_000_000])

app = App("buckets")


@app.tool(queue="io", max_result="5MB", timeout=60)
async def double(document: str) -> str:
    """Says a document twice."""
    return document + document


app.agent("doubler", model="scripted", tools=["double"])


@pytest.fixture(params=["s3", "gs"])
def there(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with bucket(tmp_path, request.param) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


def store_at(url: str) -> Store:
    return opened(StoreSettings(store=url), Namespace("shop"))


async def test_what_is_kept_is_read_back_by_its_hash_and_by_nobody_elses_tenant(there: Bucket) -> None:
    store = store_at(there.url)
    await store.check()
    name = await store.put(LARGE, "acme", 30.0)
    assert await store.put(LARGE, "acme", 30.0) == name, "once more changes nothing"
    assert await store.get(name, "acme", 30.0) == LARGE
    with pytest.raises(StoreError, match="is not in the store"):
        await store.get(name, "other", 30.0)


async def test_a_bucket_that_is_not_there_is_told_at_the_start(there: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anabranch.store.CHECK_S", 0.3)
    nowhere = there.url_of("nowhere")
    with pytest.raises(ConfigError, match=rf"{nowhere} \(ANABRANCH_STORE\) cannot be used: .* not found"):
        await store_at(nowhere).check()


async def test_a_bucket_that_goes_away_is_waited_for_no_longer_than_allowed(there: Bucket) -> None:
    store = store_at(there.url)
    name = await store.put(b"x" * 1000, None, 30.0)
    there.process.kill()
    with pytest.raises(StoreUnavailable, match="cannot be had"):
        await store.get(name, None, 0.5)


async def test_a_run_with_large_things_goes_through_a_bucket(kafka: str, namespace: str, there: Bucket) -> None:
    def script(request: dict[str, object]) -> Answer:
        if turn_of(request) == 1:
            return [tool_use("double", {"document": LETTERS})]
        (result,) = last_results(request).values()
        return f"{len(result_text(result))} letters"

    settings = replace(settings_for(kafka, namespace), storage=StoreSettings(store=there.url))
    async with fleet(app, script, settings) as running:
        response = await (await running.client.submit("doubler", "x" * 1_500_000))
    assert (response.status, response.output) == ("completed", f"{2 * len(LETTERS)} letters")
