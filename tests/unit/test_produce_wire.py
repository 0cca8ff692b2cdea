"""The request to write and its answer, byte for byte as aiokafka has them.

Responsible for: `produce_wire`, over random batches, in every version that we speak. Must never: reach a broker.
Called by: pytest.
"""

from __future__ import annotations

import random
import struct

import pytest
from aiokafka.protocol import produce

from anabranch.kafka.produce.wire import HIGHEST, LOWEST, read_produced, read_throttled_ms, write_produce
from anabranch.kafka.seam import Place

VERSIONS = range(LOWEST, HIGHEST + 1)


def places(chance: random.Random) -> list[Place]:
    topics = chance.sample(["t.agent.log", "t.tool.calls.q", "größe", "x" * 249], chance.randint(1, 4))
    return [
        Place(topic, partition) for topic in topics for partition in chance.sample(range(200), chance.randint(1, 5))
    ]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("seed", range(20))
def test_a_request_is_the_one_that_aiokafka_writes(version: int, seed: int) -> None:
    chance = random.Random(seed)
    batches = [(where, chance.randbytes(chance.randrange(300))) for where in places(chance)]
    topics: dict[str, list[tuple[int, bytes]]] = {}
    for (topic, partition), data in batches:
        topics.setdefault(topic, []).append((partition, data))
    kind = getattr(produce, f"ProduceRequest_v{version}")
    whole = kind(transactional_id=None, required_acks=-1, timeout=15_000, topics=list(topics.items()))
    assert write_produce(batches, 15_000) == whole.encode()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("seed", range(20))
def test_an_answer_is_read_as_aiokafka_reads_it(version: int, seed: int) -> None:
    chance = random.Random(seed)
    told = {
        where: (chance.choice([0, 6, 46, -1]), chance.randrange(-1, 2**40), chance.choice([-1, 1_700_000_000_000]))
        for where in places(chance)
    }
    topics: dict[str, list[tuple[int, ...]]] = {}
    for (topic, partition), produced in told.items():
        topics.setdefault(topic, []).append((partition, *produced, *((9,) if version >= 5 else ())))
    kind = getattr(produce, f"ProduceResponse_v{version}")
    throttled_ms = chance.choice([0, 35_000])
    answer = struct.pack(">i", 7) + kind(topics=list(topics.items()), throttle_time_ms=throttled_ms).encode()
    assert read_produced(answer, version) == told
    assert read_throttled_ms(answer) == throttled_ms


def test_an_answer_that_was_cut_short_is_an_error_and_not_an_answer() -> None:
    answer = produce.ProduceResponse_v7(topics=[("t", [(0, 0, 5, -1, 0)])], throttle_time_ms=0).encode()
    with pytest.raises(struct.error):
        read_produced((struct.pack(">i", 7) + answer)[:20], 7)
