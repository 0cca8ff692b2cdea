"""A job of the peers' benchmark that finds out, once it runs, that it cannot be done here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.bench.peers.job import CannotBeHad, Job, main
from tests.bench.peers.place import Place


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Job]:
    raise CannotBeHad("there is no server here")
    yield  # type: ignore[unreachable]  # makes it what it has to be, a generator


if __name__ == "__main__":
    main(opened, [])
