"""The load: runs without end, some at a time, and which of their requests Kafka has taken.

Responsible for: submitting, waiting for answers, and a new client when the old one can no longer read.
Must never: submit a run again that Kafka has taken, or count answers (`evidence.py` reads all of them).
Called by: `__main__.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Final

from anabranch.client import Client, Run
from anabranch.config import Settings
from anabranch.errors import AnabranchError, BrokerError
from anabranch.fields import Lane
from tests.chaos.app import app
from tests.chaos.ledger import Submitted

AGAIN_S: Final = 0.5
PATIENCE_S: Final = 60.0
"""After this long the next run is submitted although this one is not answered: a part of the load never stops."""


def lane_for(run_id: str) -> Lane:
    """Every third run comes by the bulk lane."""
    return "bulk" if int(run_id.rpartition("-")[2]) % 3 == 0 else "interactive"


class Load:
    """`submitted` is its ledger."""

    def __init__(self, settings: Settings) -> None:
        self.submitted: list[Submitted] = []
        self._settings = settings
        self._numbers = count(1)
        self._again: list[str] = []
        self._ending = False

    def end(self) -> None:
        """Submit nothing more."""
        self._ending = True

    async def run(self, at_once: int) -> None:
        """Keep so many runs open until `end`; returns when the last of them is answered, or has had its time."""
        while self._goes_on():
            async with self._client() as client, asyncio.TaskGroup() as tasks:
                broken = asyncio.Event()
                for _ in range(at_once):
                    tasks.create_task(self._keep_asking(client, broken), name="load")

    def _goes_on(self) -> bool:
        return bool(self._again) or not self._ending

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Client]:
        """A client, as soon as Kafka can be reached."""
        while True:
            client = Client.for_app(app, settings=self._settings)
            try:
                await client.__aenter__()
                break
            except AnabranchError:
                await asyncio.sleep(AGAIN_S)
        try:
            yield client
        finally:
            await client.__aexit__(None, None, None)

    async def _keep_asking(self, client: Client, broken: asyncio.Event) -> None:
        while self._goes_on() and not broken.is_set():
            run_id = self._again.pop() if self._again else f"run-{next(self._numbers)}"
            try:
                run = await self._submit(client, run_id)
            except (AnabranchError, TimeoutError):
                self._again.append(run_id)  # it may have been taken: the next client joins it
                broken.set()
                return
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await run
            except TimeoutError:
                continue
            except AnabranchError:
                broken.set()  # it no longer reads: the others will hear the same

    async def _submit(self, client: Client, run_id: str) -> Run:
        """Until Kafka has it, or the client has had its time; it may have it without our knowing."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    run = await client.submit("worker", run_id, run_id=run_id, lane=lane_for(run_id))
                except BrokerError:
                    await asyncio.sleep(AGAIN_S)
                else:
                    self.submitted.append(Submitted(run_id, time.time()))
                    return run
