"""What a producer does with batches: who is sent them, in which bytes, how often, and who is told what.

Responsible for: `Producer` against links that only play their part. Must never: reach a broker;
tests/integration does. Called by: pytest.
"""

from __future__ import annotations

import asyncio
import struct
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    KafkaStorageError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NodeNotReadyError,
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    NotLeaderForPartitionError,
    OutOfOrderSequenceNumber,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.produce import ProduceRequest_v7, ProduceResponse_v7
from aiokafka.record.default_records import DefaultRecordBatch
from tests.support.wait import until

from anabranch.codec import Outgoing
from anabranch.kafka import silent
from anabranch.kafka.produce import producing
from anabranch.kafka.produce.producing import Batch, Producer
from anabranch.kafka.seam import Place
from anabranch.kafka.sent import Acked
from anabranch.kafka.silent import Silent

SOON_S = 10.0
LOG = "t.agent.log"
Told = list[Acked | Exception]


class Link:
    """`asked` are requests that wait for their answers."""

    def __init__(self) -> None:
        self.is_open = True
        self.asked: list[tuple[Any, Any]] = []
        self.deaf_for_ms = 0

    @property
    def is_deaf(self) -> bool:
        return self.deaf_for_ms > 0

    def throttled(self, for_ms: int) -> None:
        self.deaf_for_ms = for_ms

    def version(self, api_key: int, lowest: int, highest: int) -> int:
        return highest

    def ask(self, api_key: int, version: int, body: bytes, then: Any) -> None:
        self.asked.append((ProduceRequest_v7.decode(body), then))

    def abort(self) -> None:
        self.is_open = False

    def answer(self, code: int = 0, offset: int = 7, throttled_ms: int = 0) -> None:
        request, then = self.asked.pop(0)
        topics = [(topic, [(n, code, offset, -1, 0) for n, _ in parts]) for topic, parts in request.topics]
        then(struct.pack(">i", 1) + ProduceResponse_v7(topics=topics, throttle_time_ms=throttled_ms).encode())

    def lose(self) -> None:
        """The connection breaks."""
        self.is_open = False
        asked, self.asked = self.asked, []
        for _, then in asked:
            then(KafkaConnectionError("cut"))

    @property
    def batches(self) -> dict[tuple[str, int], DefaultRecordBatch]:
        """What the oldest request brings."""
        topics = self.asked[0][0].topics
        return {(topic, n): DefaultRecordBatch(bytes(data)) for topic, parts in topics for n, data in parts}


class Cluster:
    """Two brokers: partition n is led by broker n % 2, unless `leaders` says otherwise. It is its own client."""

    def __init__(self) -> None:
        self.leaders: dict[int, int | None] = {}
        self.links: dict[int, Link] = {}
        self.unready = 0
        self.looked = 0
        self.cluster = self
        self.codes = [0]
        self.gone: set[int] = set()
        self.quiet: set[int] = set()
        self._conns: dict[Any, Any] = {}

    def leader_for_partition(self, where: TopicPartition) -> int | None:
        return self.leaders.get(where.partition, where.partition % 2)

    def force_metadata_update(self) -> None:
        self.looked += 1

    def brokers(self) -> list[Any]:
        return [SimpleNamespace(nodeId=node_id) for node_id in (0, 1)]

    def get_random_node(self) -> int:
        return max(self.gone | self.quiet, default=0)

    hosts = (("broker", 9092, 0),)
    _get_conn = _metadata_update = None

    async def bootstrap(self) -> None: ...

    async def close(self) -> None: ...

    async def send(self, node_id: int, request: Any) -> Any:
        if node_id in self.gone:
            self.gone.remove(node_id)
            raise NodeNotReadyError
        if node_id in self.quiet:
            self.quiet.remove(node_id)
            await asyncio.Event().wait()

        class Answer:
            error_code, producer_id, producer_epoch = self.codes.pop(0), 41, 3

        return Answer

    async def linked(self, client: Any, node_id: int, timeout_s: float) -> Link:
        if self.unready:
            self.unready -= 1
            raise NodeNotReadyError
        link = self.links[node_id] = Link()
        return link


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(producing, "AIOKafkaClient", lambda **_: cluster)
    monkeypatch.setattr(producing, "linked", cluster.linked)
    monkeypatch.setattr(producing, "AGAIN_S", 0.001)
    return cluster


async def started(idempotent: bool = True) -> Producer:
    producer = Producer({}, idempotent)
    await producer.start()
    return producer


def batch(told: Told, partition: int = 0, records: int = 1, topic: str = LOG) -> Batch:
    made = Batch(Place(topic, partition), told.append)
    for number in range(records):
        assert made.append(Outgoing(topic, b"k", b"%d" % number))
    return made


async def asked(cluster: Cluster, node_id: int = 0) -> Link:
    await until(lambda: node_id in cluster.links and bool(cluster.links[node_id].asked), SOON_S, "a request")
    return cluster.links[node_id]


async def test_batches_of_a_turn_go_in_one_request_to_each_leader(cluster: Cluster) -> None:
    producer, told = await started(), Told()
    producer.send([batch(told, n, records=n + 1) for n in range(4)])
    for node_id in (0, 1):
        link = await asked(cluster, node_id)
        assert sorted(link.batches) == [(LOG, node_id), (LOG, node_id + 2)]
        assert link.batches[LOG, node_id].producer_id == 41
        assert link.batches[LOG, node_id].producer_epoch == 3
        link.answer()
    assert told == [Acked(7)] * 4


async def test_a_leader_that_waits_for_its_replicas_says_so_before_it_counts_as_silent(cluster: Cluster) -> None:
    producer, told = await started(), Told()
    producer.send([batch(told)])
    request, _ = (await asked(cluster)).asked[0]
    assert request.timeout == 10_000 < producing.REQUEST_S * 1000


async def test_sequence_numbers_count_the_records_of_a_partition(cluster: Cluster) -> None:
    producer, told = await started(), Told()
    for first, records in ((0, 3), (3, 1), (4, 2)):
        producer.send([batch(told, 0, records), batch(told, 2)])
        link = await asked(cluster)
        assert link.batches[LOG, 0].base_sequence == first
        link.answer()
    assert len(told) == 6


@pytest.mark.parametrize("trouble", ["the connection breaks", "the leader has moved", "no leader", "no connection"])
async def test_what_a_broker_may_take_later_is_sent_again_with_the_same_bytes(cluster: Cluster, trouble: str) -> None:
    producer, told = await started(), Told()
    one = batch(told, 0, 5)
    if trouble == "no connection":
        cluster.unready = 1
    if trouble == "no leader":
        cluster.leaders[0] = -1
    producer.send([one])
    if trouble == "the connection breaks":
        (await asked(cluster)).lose()
    elif trouble == "the leader has moved":
        link = await asked(cluster)
        cluster.leaders[0] = 1
        link.answer(NotLeaderForPartitionError.errno)
    elif trouble == "no leader":
        await until(lambda: cluster.looked > 0, SOON_S, "the leader is asked for")
        assert not one.is_out
        cluster.leaders[0] = 0
    link = await asked(cluster, 1 if trouble == "the leader has moved" else 0)
    assert link.batches[LOG, 0].base_sequence == 0
    link.answer()
    assert told == [Acked(7)]
    producer.send([batch(told, 0)])
    assert (await asked(cluster, cluster.leaders.get(0) or 0)).batches[LOG, 0].base_sequence == 5


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (NotEnoughReplicasError, "fewer replicas are in sync than min.insync.replicas"),
        (NotEnoughReplicasAfterAppendError, "fewer replicas are in sync than min.insync.replicas"),
        (KafkaStorageError, "a disk of the broker is full or broken"),
    ],
)
async def test_what_ails_a_broker_is_said_while_it_is_asked_again(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, kind: type[KafkaError], words: str
) -> None:
    producer, told = await started(), Told()
    producer.send([batch(told)])
    (await asked(cluster)).answer(kind.errno)
    (await asked(cluster)).answer()
    assert told == [Acked(7)]
    assert words in caplog.text


async def test_a_batch_that_the_broker_has_already_is_written_and_lies_nobody_knows_where(cluster: Cluster) -> None:
    producer, told = await started(), Told()
    producer.send([batch(told)])
    (await asked(cluster)).answer(46, offset=-1)
    assert told == [Acked(None)]


@pytest.mark.parametrize("kind", [MessageSizeTooLargeError, OutOfOrderSequenceNumber, TopicAuthorizationFailedError])
async def test_what_no_repetition_cures_is_told_at_once(cluster: Cluster, kind: type[Exception]) -> None:
    producer, told = await started(), Told()
    producer.send([batch(told)])
    (await asked(cluster)).answer(kind.errno)  # type: ignore[attr-defined]
    assert [type(each) for each in told] == [kind]
    if kind is TopicAuthorizationFailedError:
        assert LOG in str(told[0])


async def test_a_partition_that_is_not_in_the_answer_is_not_taken_for_written(cluster: Cluster) -> None:
    producer, told = await started(), Told()
    producer.send([batch(told)])
    _, then = (await asked(cluster)).asked.pop()
    then(struct.pack(">i", 1) + ProduceResponse_v7(topics=[], throttle_time_ms=0).encode())
    assert not any(isinstance(each, Acked) for each in told)


async def test_an_answer_that_cannot_be_understood_is_told_to_all_that_wait_for_it(cluster: Cluster) -> None:
    producer, told = await started(), Told()
    producer.send([batch(told, 0), batch(told, 2)])
    _, then = (await asked(cluster)).asked.pop()
    then(struct.pack(">ii", 1, 5))
    assert [type(each) for each in told] == [KafkaError, KafkaError]


async def test_without_idempotence_a_batch_has_no_producer_and_no_number(cluster: Cluster) -> None:
    producer, told = await started(idempotent=False), Told()
    producer.send([batch(told)])
    written = (await asked(cluster)).batches[LOG, 0]
    assert (written.producer_id, written.producer_epoch, written.base_sequence) == (-1, -1, -1)


async def test_a_few_requests_are_under_way_and_what_comes_meanwhile_goes_together(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producing, "UNDER_WAY", 2)
    producer, told = await started(), Told()
    producer.send([batch(told, 0)])
    link = await asked(cluster)
    for partition in (2, 4, 6, 8):
        producer.send([batch(told, partition)])
    assert len(link.asked) == 2
    link.answer()
    assert len(link.asked) == 2
    link.answer()
    assert sorted(link.batches) == [(LOG, 4), (LOG, 6), (LOG, 8)]
    link.answer()
    assert told == [Acked(7)] * 5


async def test_a_request_stays_below_what_a_broker_takes(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producing, "REQUEST_BYTES", 150)
    producer, told = await started(), Told()
    producer.send([batch(told, partition) for partition in (0, 2, 4, 6, 8)])
    link = await asked(cluster)
    assert [len(request.topics[0][1]) for request, _ in link.asked] == [2, 2, 1]


async def test_without_sequence_numbers_a_batch_is_given_up_in_time(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With them it is not, while it has a leader: it may be written, and the leader will say so."""
    monkeypatch.setattr(producing, "REQUEST_S", 0.02)
    told, kept = Told(), Told()
    for idempotent, who in ((False, told), (True, kept)):
        producer = await started(idempotent)
        cluster.unready = 1_000_000
        producer.send([batch(who)])
    await until(lambda: bool(told), SOON_S, "it is given up")
    assert isinstance(told[0], KafkaTimeoutError)
    assert not kept
    cluster.leaders[0] = None
    await until(lambda: bool(kept), SOON_S, "without a leader nobody will say anything")


@pytest.mark.parametrize("idempotent", [True, False])
async def test_without_sequence_numbers_what_may_be_written_is_not_sent_again_if_it_may_be_sent_only_once(
    cluster: Cluster, idempotent: bool
) -> None:
    producer, told, others = await started(idempotent), Told(), Told()
    once = batch(told)
    once.once = True
    producer.send([once, batch(others, 2)])
    (await asked(cluster)).answer(NotLeaderForPartitionError.errno)
    first = await asked(cluster)
    assert not told, "that was not written"
    first.lose()
    await until(lambda: cluster.links[0] is not first and bool(cluster.links[0].asked), SOON_S, "the rest goes again")
    assert cluster.links[0].batches.keys() == ({(LOG, 0), (LOG, 2)} if idempotent else {(LOG, 2)})
    assert [type(each) for each in told] == ([] if idempotent else [KafkaConnectionError])
    await producer.stop()


async def test_a_stopped_producer_sends_and_says_nothing_more(cluster: Cluster) -> None:
    before = asyncio.all_tasks()
    producer, told = await started(), Told()
    producer.send([batch(told)])
    link = await asked(cluster)
    cluster.leaders[2] = None
    producer.send([batch(told, 2), batch(told, 1)])
    await producer.stop()
    assert not link.is_open
    link.lose()
    assert not told
    assert asyncio.all_tasks() == before
    assert producer._timer is not None
    assert producer._timer.cancelled()


async def test_who_writes_is_asked_for_until_the_broker_knows_or_refuses(cluster: Cluster) -> None:
    cluster.codes = [15, 14, 0]  # the coordinator is not available, is loading
    assert (await started())._identity == (41, 3)
    cluster.codes = [ClusterAuthorizationFailedError.errno]
    with pytest.raises(ClusterAuthorizationFailedError):
        await started()


async def test_a_broker_that_throttles_us_is_given_its_time_and_has_written_all_the_same(
    cluster: Cluster,
) -> None:
    producer, told = await started(), Told()
    producer.send([batch(told)])
    link = await asked(cluster)
    link.answer()
    assert not producer.is_throttled
    producer.send([batch(told)])
    link.answer(throttled_ms=35_000)
    assert told == [Acked(7)] * 2
    assert (link.deaf_for_ms, producer.is_throttled) == (35_000, True)


async def test_a_broker_that_is_gone_is_not_the_only_one_that_can_say_who_writes(cluster: Cluster) -> None:
    cluster.gone = {1, 2}
    assert (await started())._identity == (41, 3)


async def test_a_silent_broker_is_left_and_another_says_who_writes(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producing, "REQUEST_S", 2.0)
    monkeypatch.setattr(silent, "SERVER_S", 0.05)
    cluster.quiet = {1}
    producer = await started()
    assert producer._identity == (41, 3)
    assert Silent.of(producer._client).is_left(1)


async def test_brokers_without_numbers_are_asked_for_longer_than_silent_ones(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their controller fell silent, and they wait for it."""
    monkeypatch.setattr(producing, "REQUEST_S", 0.05)
    cluster.codes = [14] * 200 + [0]
    assert (await started())._identity == (41, 3)
    monkeypatch.setattr(producing, "NUMBERED_S", 0.05)
    cluster.codes = [14] * 100_000
    with pytest.raises(KafkaTimeoutError, match="controller"):
        await started()
