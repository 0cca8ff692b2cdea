"""Fetch sessions (KIP-227) for a consumer of aiokafka, which knows none: it names all of its partitions in every fetch.

The broker remembers what is read; a request names only what has changed, and the answer only what has something new.
So what a fetch costs, here and there, follows from the records and no longer from the partitions: with 48 of them it
was a third of what a worker spent on a lone run.

And a fetch that has brought something is followed by the next one a moment later: what we append in answer goes first,
for its sender waits and a reader does not, and what comes meanwhile is fetched together. Where an acknowledgement is a
reading, the next one begins behind what was acknowledged meanwhile: our own events would come back one by one, each for
the price of a fetch, which is more than half of those that a lone run needs.

Responsible for: when to fetch; turning each whole fetch into what changed since the last one, a session a broker;
and beginning anew whenever it is not certain what the broker remembers. Must never: know what is read, or keep a broker
without sessions from being read. Called by: `pump.py`, `reader.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import FetchSessionIdNotFound, InvalidFetchSessionEpoch, for_code
from aiokafka.protocol.fetch import FetchRequest

SESSIONS_SINCE: Final = 7
"""The version of the protocol's fetch that has them."""
RACK_SINCE: Final = 11
LEADER_EPOCH_SINCE: Final = 9
UNKNOWN: Final = -1
LAST_EPOCH: Final = 2**31 - 1
PAUSE_S, PAUSE_PER_BYTE_S, LONGEST_PAUSE_S = 0.001, 20e-9, 0.005
"""Between what a fetch has brought and the next one: longer the more it was, for then there is more to come, and the
longest while it is still being answered."""
ANSWERING_S: Final = 0.0005
CALM_TURNS: Final = 6
"""Turns of the loop without a record under way, after which what was fetched counts as answered."""

Known = Callable[[str, int], int]
"""Where to read on in a partition at the earliest, by topic and partition: what lies below is known."""
Read = dict[tuple[str, int], tuple[int, int]]
"""What is read: by topic and partition, the offset to go on at and how many bytes at most."""


@dataclass(slots=True)
class _Session:
    """What one broker remembers of us. `epoch` is the next request's; 0 begins anew, and ends session `id`."""

    id: int = 0
    epoch: int = 0
    known: Read = field(default_factory=dict)
    next_at: float = 0.0
    latest_at: float = 0.0

    def begin_anew(self) -> None:
        self.epoch, self.known = 0, {}

    def stands(self, session_id: int, read: Read) -> None:
        """The broker has answered: from now on it knows `read`, unless it keeps no sessions (`session_id` 0)."""
        self.id = session_id
        if session_id == 0:
            self.begin_anew()
        else:
            self.epoch, self.known = self.epoch % LAST_EPOCH + 1, read


class _Fetch(FetchRequest):  # type: ignore[misc]  # aiokafka has no types
    """A fetch of `read` within a session. An old broker is sent all of it, as if there were none."""

    def __init__(self, whole: FetchRequest, session: _Session, read: Read) -> None:
        super().__init__(
            whole._max_wait_ms, whole._min_bytes, whole._max_bytes, whole._isolation_level, whole.topics, whole._rack_id
        )
        self._session, self._read = session, read

    def build(self, kind: Any) -> Any:
        if kind.API_VERSION < SESSIONS_SINCE:
            return super().build(kind)
        known = self._session.known
        changed = {where: what for where, what in self._read.items() if known.get(where) != what}
        forgotten = [where for where in known if where not in self._read]
        arguments = [
            UNKNOWN,  # we are no replica
            self._max_wait_ms,
            self._min_bytes,
            self._max_bytes,
            self._isolation_level,
            self._session.id,
            self._session.epoch,
            _by_topic((topic, _asked(partition, what, kind)) for (topic, partition), what in changed.items()),
            _by_topic(forgotten),
        ]
        return kind(*arguments, self._rack_id) if kind.API_VERSION >= RACK_SINCE else kind(*arguments)


def _asked(partition: int, what: tuple[int, int], kind: Any) -> tuple[int, ...]:
    offset, max_bytes = what
    if kind.API_VERSION >= LEADER_EPOCH_SINCE:
        return partition, UNKNOWN, offset, UNKNOWN, max_bytes
    return partition, offset, UNKNOWN, max_bytes


def _by_topic(pairs: Any) -> list[tuple[str, list[Any]]]:
    found: dict[str, list[Any]] = {}
    for topic, one in pairs:
        found.setdefault(topic, []).append(one)
    return list(found.items())


class FetchSessions:
    """A consumer's way to its brokers, `send` in between: see the module."""

    def __init__(
        self,
        send: Callable[..., Awaitable[Any]],
        known: Known = lambda topic, partition: 0,
        is_answering: Callable[[], bool] = lambda: False,
    ) -> None:
        self._send, self._known, self._is_answering = send, known, is_answering
        self._of: dict[Any, _Session] = {}

    async def send(self, node_id: Any, request: Any, **more: Any) -> Any:
        if type(request) is not FetchRequest:
            return await self._send(node_id, request, **more)
        session = self._of.setdefault(node_id, _Session())
        if (pause := session.next_at - time.monotonic()) > 0:
            await asyncio.sleep(pause)
            await self._until_answered(session.latest_at)
        read = {
            (topic, partition): (max(offset, self._known(topic, partition)), max_bytes)
            for topic, partitions in request.topics
            for partition, offset, max_bytes in partitions
        }
        response = await self._fetch(node_id, request, session, read, more)
        if _refused(response) in (FetchSessionIdNotFound, InvalidFetchSessionEpoch):
            session.begin_anew()
            response = await self._fetch(node_id, request, session, read, more)
        if (error := _refused(response)) is not None:
            session.begin_anew()
            raise error()
        session.stands(response.session_id if response.API_VERSION >= SESSIONS_SINCE else 0, read)
        if size := sum(len(records) for _, partitions in response.topics for *_, records in partitions):
            now = time.monotonic()
            session.next_at = now + min(PAUSE_S + size * PAUSE_PER_BYTE_S, LONGEST_PAUSE_S)
            session.latest_at = now + LONGEST_PAUSE_S
        return response

    async def _until_answered(self, latest_at: float) -> None:
        """What was fetched makes us write, and what is written then may make us write again."""
        calm = 0
        while calm < CALM_TURNS and time.monotonic() < latest_at:
            calm = 0 if self._is_answering() else calm + 1
            await asyncio.sleep(0.0 if calm else ANSWERING_S)

    async def _fetch(self, node_id: Any, whole: Any, session: _Session, read: Read, more: dict[str, Any]) -> Any:
        try:
            return await self._send(node_id, _Fetch(whole, session, read), **more)
        except BaseException:  # it may have been counted, also if it was only cancelled here
            session.begin_anew()
            raise


def _refused(response: Any) -> type[Exception] | None:
    """What the broker says of the fetch as a whole."""
    code = response.error_code if response.API_VERSION >= SESSIONS_SINCE else 0
    error: type[Exception] = for_code(code)
    return error if code else None


def keep_sessions(
    consumer: AIOKafkaConsumer,
    known: Known = lambda topic, partition: 0,
    is_answering: Callable[[], bool] = lambda: False,
) -> None:
    """Let `consumer` fetch in sessions; to be called before it is started. There is no public way to do it.

    What `known` says may grow at any time; a fetch waits, for some milliseconds, while `is_answering`.
    """
    client = consumer._client
    client.send = FetchSessions(client.send, known, is_answering).send
