"""One broker: a fetch under way at a time, in a session, over a connection of its own, and when the next one goes out.

Responsible for: that one fetch; waiting, before the next one, until what it has brought is answered; connecting anew,
after a while, whatever went wrong. Must never: know a partition's state, or ask while something is to be taken. Called
by: `fetching.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from aiokafka.errors import (
    FetchSessionIdNotFound,
    IncompatibleBrokerVersion,
    InvalidFetchSessionEpoch,
    KafkaError,
    for_code,
)

from anabranch.kafka.fetch.reading import Reading
from anabranch.kafka.fetch.sessions import Session
from anabranch.kafka.fetch.wire import API_KEY, HIGHEST, LOWEST, Answer, Bounds, answer
from anabranch.kafka.link import Link
from anabranch.kafka.seam import Place

log = logging.getLogger(__name__)

REST_S: Final = 0.1
"""For how long whatever went wrong is left alone."""
PAUSE_S, PAUSE_PER_BYTE_S, LONGEST_PAUSE_S = 0.001, 20e-9, 0.005
"""Between what a fetch has brought and the next one: longer the more it was, for then there is more to come, and the
longest while it is still being answered."""
ANSWERING_S: Final = 0.0005
CALM_TURNS: Final = 3
"""Turns of the loop without a record under way, after which what was fetched counts as answered."""


class Asker(Protocol):
    """Whom a broker is asked for: `Fetching`."""

    @property
    def bounds(self) -> Bounds: ...
    @property
    def may_ask(self) -> bool: ...
    @property
    def is_answering(self) -> Callable[[], bool]: ...
    async def connect(self, node_id: int) -> Link: ...
    def wanted(self, asking: Asking) -> dict[Place, int]:
        """Offsets to fetch from: the answer, or that there is none, counts for these."""
        ...

    def heard(self, asking: Asking, heard: Answer) -> None: ...
    def fail(self, error: Exception) -> None: ...


class Asking:
    """See the module. `readings` are those of the partitions that the broker leads."""

    def __init__(self, of: Asker, node_id: int) -> None:
        self._of, self._node_id = of, node_id
        self.readings: list[Reading] = []
        self._loop = asyncio.get_running_loop()
        self._session = Session()
        self._link: Link | None = None
        self._version = 0
        self._is_asked = self._is_failing = self._is_over = self._is_again = False
        self._rests_until = 0.0
        self._connecting: asyncio.Task[None] | None = None
        self._pause: asyncio.Handle | None = None
        self._latest = 0.0
        self._calm = 0

    async def end(self) -> None:
        self._is_over = True
        if self._pause is not None:
            self._pause.cancel()
        if self._link is not None:
            self._link.abort()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])

    def ask(self) -> None:
        """Ask if anything is wanted, and nothing stands against it: a question, a pause, or what is to be taken."""
        if self._is_asked or self._pause is not None or self._is_over or not self.readings or not self._of.may_ask:
            return
        if self._rests_until:
            if self._loop.time() < self._rests_until:
                return
            self._rests_until = 0.0
        link = self._link
        if link is None or not link.is_open:
            self._connect()
        elif wanted := self._of.wanted(self):
            self._is_asked = True
            link.ask(API_KEY, self._version, self._session.request(self._version, self._of.bounds, wanted), self._hear)

    # --- what comes back --------------------------------------------------------------------------------------

    def _hear(self, frame: bytes | Exception) -> None:
        self._is_asked = False
        if self._is_over:
            return
        if isinstance(frame, Exception):
            self._rest(frame)
            return
        try:
            heard = answer(self._version, frame)
        except Exception as error:
            self._rest(error)
            raise  # which ends the connection
        if heard.throttled_ms and self._link is not None:
            self._link.throttled(heard.throttled_ms)
        if heard.error_code:
            self._refused(for_code(heard.error_code))
            return
        if self._is_failing:
            log.info("broker %d is read from again", self._node_id)
        self._is_failing = self._is_again = False
        self._session.stands(heard.session_id)
        if heard.session_id == 0 and self.readings:  # in a session the broker lets each have its turn
            self.readings.append(self.readings.pop(0))
        if size := sum(len(part.records) for part in heard.parts):
            self._pause_for(size)
        self._of.heard(self, heard)

    def _refused(self, error: type[Exception]) -> None:
        """The fetch as a whole. A session that the broker does not know is a matter of asking again, once."""
        self._session.begin_anew()
        if error in (FetchSessionIdNotFound, InvalidFetchSessionEpoch) and not self._is_again:
            self._is_again = True
            self.ask()
        else:
            self._rest(error())

    def _rest(self, error: Exception) -> None:
        """Ask again with the first look after a while; what we asked may have been counted, or not."""
        self._session.begin_anew()
        self._rests_until = self._loop.time() + REST_S
        if not self._is_failing:
            self._is_failing = True
            log.warning("broker %d cannot be read from, and is tried again: %r", self._node_id, error)

    def _connect(self) -> None:
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connected(), name=f"connecting to broker {self._node_id}")

    async def _connected(self) -> None:
        self._link = None
        try:
            link = await self._of.connect(self._node_id)
            self._version = link.version(API_KEY, LOWEST, HIGHEST)
            self._link = link
        except IncompatibleBrokerVersion as error:
            self._of.fail(error)
        except (KafkaError, OSError) as error:
            self._rest(error)
        except Exception as error:  # noqa: BLE001 - whoever reads raises it
            self._of.fail(error)
        finally:
            self._connecting = None
        self.ask()

    # --- the pause after a fetch that has brought something ---------------------------------------------------

    def _pause_for(self, size: int) -> None:
        pause_s = min(PAUSE_S + size * PAUSE_PER_BYTE_S, LONGEST_PAUSE_S)
        self._calm, self._latest = 0, self._loop.time() + LONGEST_PAUSE_S
        self._pause = self._loop.call_later(pause_s, self._until_answered)

    def _until_answered(self) -> None:
        """What was fetched makes us write, and what is written then may make us write again."""
        self._pause = None
        if self._calm < CALM_TURNS and self._loop.time() < self._latest:
            if self._of.is_answering():
                self._calm = 0
                self._pause = self._loop.call_later(ANSWERING_S, self._until_answered)
            else:
                self._calm += 1
                self._pause = self._loop.call_soon(self._until_answered)
        else:
            self.ask()
