"""Anabranch on Kafka: an agent worker, a tool worker and the client, with the settings that users have by default."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.bench.anabranch_run import anabranch
from tests.bench.peers.job import Job, main
from tests.bench.peers.place import Place

ROLES = {"agent": "agent-http", "tool": "tool"}


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Job]:
    """Its workers are started as those of the benchmark against the floor are."""
    async with anabranch(place.bootstrap, place.namespace, ROLES) as subject:
        yield Job(subject)


if __name__ == "__main__":
    main(opened, ["anabranch", "aiokafka", "anthropic"])
