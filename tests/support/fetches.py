"""A broker's half of fetching, over a link that is no connection: bytes in, bytes out, both by aiokafka's own classes.

Responsible for: what KIP-227 has the broker remember, and answers whenever a test gives one; a consumer of aiokafka's
own, with its state and its metadata, that has never been started. Must never: read or write the protocol by our code.
Called by: the unit tests of fetching.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from io import BytesIO
from struct import pack
from types import SimpleNamespace
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol import fetch as protocol
from aiokafka.protocol.metadata import MetadataResponse_v1
from aiokafka.record._crecords.cutil import crc32c_cython
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from anabranch.kafka.seam import Place

DEADLINE_S = 20.0
Said = tuple[Place, int, bytes]
"""Of a place: an error code, and records."""


class Broker:
    """A fake of `Link`, and the broker behind it. `known` is what it remembers of the session."""

    def __init__(self, version: int = 11, session_id: int = 7) -> None:
        self.is_open = True
        self.deaf_for_ms = 0
        self.known: dict[Place, int] = {}
        self.asked: list[Any] = []
        self._version, self._session_id = version, session_id
        self._then: Callable[[bytes | Exception], object] | None = None
        self._news = asyncio.Event()

    def abort(self) -> None:
        self.is_open = False
        if self._then is not None:
            self.tell(KafkaConnectionError("ended"))

    def throttled(self, for_ms: int) -> None:
        self.deaf_for_ms = for_ms

    def version(self, api_key: int, lowest: int, highest: int) -> int:
        assert (api_key, lowest, highest) == (1, 4, 11)
        return self._version

    def ask(self, api_key: int, version: int, body: bytes, then: Callable[[bytes | Exception], object]) -> None:
        assert (api_key, version) == (1, self._version)
        assert self._then is None, "one fetch at a time"
        self._then = then
        self.asked.append(self._read(body))
        self._news.set()

    def _read(self, body: bytes) -> SimpleNamespace:
        kind = getattr(protocol, f"FetchRequest_v{self._version}")
        rest = BytesIO(body)
        read = kind(*kind.SCHEMA.decode(rest)).to_object()
        assert not rest.read(), "nothing follows"
        fetched = {
            Place(topic["topic"], one["partition"]): one.get("fetch_offset", one.get("offset"))
            for topic in read["topics"]
            for one in topic["partitions"]
        }
        forgotten = [
            Place(topic["topic"], partition)
            for topic in read.get("forgotten_topics_data", ())
            for partition in topic["partitions"]
        ]
        epoch = read.get("session_epoch", 0)
        if epoch == 0:
            self.known = {}
        self.known.update(fetched)
        for place in forgotten:
            del self.known[place]
        return SimpleNamespace(
            session=read.get("session_id", 0),
            epoch=epoch,
            fetched=fetched,
            forgotten=forgotten,
            read=dict(self.known),
            at=asyncio.get_running_loop().time(),
            whole=read,
        )

    @property
    def is_asked(self) -> bool:
        return self._then is not None

    async def request(self) -> Any:
        """The request under way, once there is one."""
        async with asyncio.timeout(DEADLINE_S):
            while self._then is None:
                self._news.clear()
                await self._news.wait()
        return self.asked[-1]

    def answer(
        self,
        *said: Said,
        error: int = 0,
        aborted: Iterable[tuple[int, int]] = (),
        highwater: int = 99,
        throttled_ms: int = 0,
    ) -> None:
        """Answer the request under way."""
        topics: dict[str, list[Any]] = {}
        for place, code, records in said:
            log_start = () if self._version < 5 else (0,)
            replica = () if self._version < 11 else (-1,)
            one = (place.partition, code, highwater, 98, *log_start, list(aborted), *replica, records)
            topics.setdefault(place.topic, []).append(one)
        whole = () if self._version < 7 else (error, self._session_id)
        kind = getattr(protocol, f"FetchResponse_v{self._version}")
        self.tell(b"\0\0\0\1" + kind(throttled_ms, *whole, list(topics.items())).encode())

    def tell(self, what: bytes | Exception) -> None:
        then, self._then = self._then, None
        assert then is not None, "nothing is asked"
        then(what)


def emptied(first: int, last: int, control: bool) -> bytes:
    """What compaction leaves of a batch whose records are all gone: its header, while somebody may ask who wrote it."""
    attributes = 0x30 if control else 0  # transactional, and a marker
    rest = pack(">hiqqqhii", attributes, last - first, -1, -1, 9, 0, -1 if control else 0, 0)
    checked = pack(">I", crc32c_cython(rest)) + rest
    return pack(">qiib", first, 4 + 1 + len(checked), 0, 2) + checked


def batch(first: int, count: int = 1, producer: int = -1, size: int = 1, codec: int = 0) -> bytes:
    """`count` records from offset `first` on; of a transaction, if there is a producer; compressed by a `codec`."""
    is_transactional = int(producer >= 0)
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=is_transactional,
        producer_id=producer,
        producer_epoch=0,
        base_sequence=0,
        batch_size=2**30,
    )
    for number in range(count):
        builder.append(number, timestamp=1, key=None, value=b"%d" % (first + number) + b"x" * (size - 1), headers=[])
    return pack(">q", first) + bytes(builder.build())[8:]


def rewritten(raw: bytes, old: bytes, new: bytes) -> bytes:
    """A batch with other bytes of the same length in it, and the checksum of those."""
    checked = raw[21:].replace(old, new)
    assert len(checked) == len(raw[21:])
    return raw[:17] + pack(">I", crc32c_cython(checked)) + checked


class Coordinator:
    """aiokafka's, as far as a reader asks it."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.generation = 1

    def check_errors(self) -> None:
        if self.error is not None:
            raise self.error


def prepare(consumer: AIOKafkaConsumer, leaders: dict[Place, int]) -> AIOKafkaConsumer:
    """As if it had been started: it knows who leads what. Its fetcher is none, and does nothing."""
    consumer._closed = True  # it never was open
    consumer._coordinator = Coordinator()
    consumer._fetcher = SimpleNamespace(
        seek_to=consumer._subscription.seek,
        error_future=asyncio.get_running_loop().create_future(),
        woken=0,
        _client=consumer._client,
        _in_flight=set(),
        _wait_consume_future=None,
    )

    def wake(_: object) -> None:
        consumer._fetcher.woken += 1

    consumer._fetcher._notify = wake
    consumer._client.updates = 0

    def update() -> None:
        consumer._client.updates += 1

    consumer._client.force_metadata_update = update
    lead(consumer, leaders)
    return consumer


def lead(consumer: AIOKafkaConsumer, leaders: dict[Place, int]) -> None:
    topics: dict[str, list[Any]] = {}
    for place, leader in leaders.items():
        topics.setdefault(place.topic, []).append((0, place.partition, leader, [leader], [leader]))
    brokers = [(node, "nowhere", 1, None) for node in sorted({*leaders.values()} - {-1})]
    told = [(0, topic, False, partitions) for topic, partitions in topics.items()]
    consumer._client.cluster.update_metadata(MetadataResponse_v1(brokers, 0, told))


def state(consumer: AIOKafkaConsumer, place: Place) -> Any:
    return consumer._subscription.subscription.assignment.state_value(TopicPartition(*place))
