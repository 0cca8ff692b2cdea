"""Names of topics, and the partition of a key: it must be the one that every Java client computes.

Responsible for: `topics.py`.
Must never: open a connection.
Called by: pytest.
"""

from __future__ import annotations

import pytest
from aiokafka.partitioner import murmur2 as aiokafkas
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import ConfigError
from anabranch.topics import Namespace, murmur2, partition_of

JAVA = {
    b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829, b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}  # fmt: skip
"""From Kafka's own test of its hash (UtilsTest.testMurmur2)."""


@pytest.mark.parametrize("data", JAVA)
def test_the_hash_is_the_java_clients(data: bytes) -> None:
    assert murmur2(data) == JAVA[data] & 0xFFFFFFFF


@given(st.binary(max_size=64))
def test_the_hash_is_aiokafkas(data: bytes) -> None:
    assert murmur2(data) == aiokafkas(data) & 0xFFFFFFFF


@given(st.binary(max_size=64), st.lists(st.binary(max_size=9), max_size=5))
def test_the_hashes_of_keys_that_begin_alike_are_aiokafkas(head: bytes, tails: list[bytes]) -> None:
    assert [murmur2(head + tail) for tail in tails] == [aiokafkas(head + tail) & 0xFFFFFFFF for tail in tails]


@given(st.text(max_size=20), st.integers(1, 200))
def test_a_partition_is_one_of_those_there_are(key: str, partitions: int) -> None:
    assert 0 <= partition_of(key, partitions) < partitions
    assert partition_of(key, partitions) == (aiokafkas(key.encode()) & 0x7FFFFFFF) % partitions


@pytest.mark.parametrize("name", ["", "Shop", "a b", "a/b", "ä", "x" * 101])
def test_a_namespace_that_cannot_begin_a_topics_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="namespace"):
        Namespace(name)


def test_topics_have_the_settings_of_the_wire() -> None:
    specs = {spec.name: spec for spec in Namespace("shop").specs(["io"], 6)}
    assert {name: spec.partitions for name, spec in specs.items()} == {
        "shop.agent.requests": 6, "shop.agent.requests.bulk": 6, "shop.agent.log": 6,
        "shop.agent.responses": 24, "shop.agent.stream": 24, "shop.registry": 1, "shop.dead.letters": 6,
        "shop.tool.calls.io": 24,
    }  # fmt: skip
    assert specs["shop.agent.log"].settings["message.timestamp.type"] == "LogAppendTime"
    assert specs["shop.agent.stream"].settings["retention.ms"] == "600000"
    assert specs["shop.registry"].settings == {
        "cleanup.policy": "compact",
        "message.timestamp.type": "LogAppendTime",
    }
